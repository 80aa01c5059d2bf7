//! Writes `tests/vectors/wire.json` anew, and the datagrams in it as seeds of the fuzz corpus.

use anyhow::{Context, Result};
use heartwatch_tests::vectors;

fn main() -> Result<()> {
    let path = vectors::path();
    let file = vectors::generate()?;
    let corpus = path.with_file_name("../fuzz/corpus/datagram");
    std::fs::create_dir_all(&corpus)
        .with_context(|| format!("cannot make {}", corpus.display()))?;
    for (n, vector) in file["vectors"].as_array().into_iter().flatten().enumerate() {
        let bytes = hex::decode(vector["datagram"].as_str().unwrap_or_default())?;
        let name = format!("{n}-{}.bin", vector["kind"].as_str().unwrap_or_default());
        std::fs::write(corpus.join(&name), bytes)
            .with_context(|| format!("cannot write {name}"))?;
    }
    let text = serde_json::to_string_pretty(&file)?;
    std::fs::write(&path, text + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
