//! Throws mutations of the corpus at decoder, admission, the agent's protocol, the config reader and what the
//! API reads, for a bounded time. Needs no nightly compiler; `cargo xtask fuzz --coverage` is the guided one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use heartwatch_tests::fuzzing;
use heartwatch_tests::world::now;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Bad bytes against everything that reads bytes.
#[derive(Parser)]
struct Args {
    /// How long.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Where the mutations come from; the default is another one in every run.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs this file alone, as a datagram, a config (.toml), a label expression (.txt), a request (.json) or
    /// an enrolment (.enrol).
    #[arg(long)]
    replay: Option<PathBuf>,
}

type Target = (&'static str, fn(&[u8]));
const TARGETS: [Target; 5] = [
    ("datagram", fuzzing::datagram),
    ("config", fuzzing::config),
    ("expression", fuzzing::expression),
    ("asked", fuzzing::asked),
    ("enrolment", fuzzing::enrolment),
];
/// How their files end.
const ENDINGS: [&str; 5] = ["bin", "toml", "txt", "json", "enrol"];
/// Runs between two looks at the clock.
const BURST: u32 = 64;

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(path) = &args.replay {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let ending = ENDINGS.iter().position(|e| path.extension().is_some_and(|is| is == *e));
        TARGETS[ending.unwrap_or(0)].1(&bytes);
        println!("{} holds", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let seed = args.seed.unwrap_or(now().0);
    println!("fuzzing for {} s from seed {seed}", args.seconds);
    let mut rng = StdRng::seed_from_u64(seed);
    let corpora = [
        corpus("datagram")?,
        corpus("config")?,
        corpus("expression")?,
        corpus("asked")?,
        corpus("enrolment")?,
    ];
    let end = now() + Duration::from_secs(args.seconds);
    let mut runs = [0_u64; 5];
    while now() < end {
        // Configs cost a hundred times as much.
        let which = [1, 2, 2, 3, 3, 3, 4].get(rng.random_range(0..11_usize)).copied().unwrap_or(0);
        let (name, target) = TARGETS[which];
        let corpus = &corpora[which];
        for _ in 0..BURST {
            let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
            let other = &corpus[rng.random_range(0..corpus.len())];
            fuzzing::mutate(&mut bytes, other, &mut rng);
            if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
                return report(name, &bytes, seed);
            }
            runs[which] += 1;
        }
    }
    let [datagrams, configs, expressions, asked, enrolments] = runs;
    println!(
        "{datagrams} datagrams, {configs} configs, {expressions} expressions, {asked} requests and \
         {enrolments} enrolments: every promise held"
    );
    Ok(ExitCode::SUCCESS)
}

fn report(name: &str, bytes: &[u8], seed: u64) -> Result<ExitCode> {
    let place = TARGETS.iter().position(|(n, _)| *n == name).unwrap_or(0);
    let ending = ENDINGS[place];
    let path = std::env::temp_dir().join(format!("heartwatch-fuzz-{name}-{seed}.{ending}"));
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    println!("\na promise of `{name}` was broken by {} bytes: {}", bytes.len(), hex::encode(bytes));
    println!("replay: cargo xtask fuzz --replay {}", path.display());
    Ok(ExitCode::FAILURE)
}

fn corpus(name: &str) -> Result<Vec<Vec<u8>>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths = std::fs::read_dir(&dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .map(|e| Ok(e?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    let files: Vec<_> = paths.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    if files.is_empty() {
        bail!("{} is empty: `cargo run -p heartwatch-tests --bin vectors` fills it", dir.display());
    }
    Ok(files)
}
