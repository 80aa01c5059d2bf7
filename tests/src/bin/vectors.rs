//! Writes `tests/vectors/wire.json` anew.

use anyhow::{Context, Result};
use heartwatch_tests::vectors;

fn main() -> Result<()> {
    let path = vectors::path();
    let text = serde_json::to_string_pretty(&vectors::generate()?)?;
    std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
