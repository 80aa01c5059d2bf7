//! `cargo xtask bench NAME|all [--json] [--quick]`: measures, and ends with one JSON line for each.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use heartwatch_tests::bench::plot::pictures;
use heartwatch_tests::bench::{BENCHES, Bench, Context, MILLION, machine_line};
use heartwatch_tests::world::now;

/// Measures this build on this machine, and ends with a JSON line for each measurement.
#[derive(Parser)]
#[command(name = "heartwatch-bench")]
struct Args {
    /// Which, or `all`, or `plot` to draw what was measured; without one they are listed.
    names: Vec<String>,
    /// Fewer runs, shorter ones, and of some fewer hosts: whether all of them work, in some minutes.
    #[arg(long)]
    quick: bool,
    /// Hosts of those measurements that are about a million: to try them out.
    #[arg(long, default_value_t = MILLION)]
    hosts: usize,
    /// Repeat all JSON lines at the very end, and nothing after them.
    #[arg(long)]
    json: bool,
}

fn chosen(names: &[String]) -> Result<Vec<&'static Bench>> {
    if names.iter().any(|n| n == "all") {
        return Ok(BENCHES.iter().collect());
    }
    let find = |name: &String| match BENCHES.iter().find(|b| b.name == *name) {
        Some(bench) => Ok(bench),
        None => bail!("there is no `{name}`: run without a name to see which there are"),
    };
    names.iter().map(find).collect()
}

fn measure(args: &Args) -> Result<bool> {
    let chosen = chosen(&args.names)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start tokio")?;
    let ctx = Context { quick: args.quick, hosts: args.hosts, runtime };
    println!("{}", machine_line());
    if args.quick {
        println!(
            "quick: figures are rough, and where a fleet comes together, of a fifth of the hosts"
        );
    }
    let all = now();
    let (mut lines, mut good) = (Vec::new(), true);
    for bench in chosen {
        println!("\n{}: {}", bench.name, bench.what);
        let begin = now();
        match (bench.run)(&ctx) {
            Ok(figures) => {
                let took = now().since(begin).as_secs();
                println!("  medians of {} runs; took {took} s", figures.runs);
                let line = figures.json(bench.name, args.quick);
                println!("{line}");
                lines.push(line);
            }
            Err(e) => {
                eprintln!("  {}: {e:#}", bench.name);
                good = false;
            }
        }
    }
    if lines.len() > 1 {
        println!("\nall of them took {} s", now().since(all).as_secs());
    }
    if args.json && lines.len() > 1 {
        println!();
        lines.iter().for_each(|line| println!("{line}"));
    }
    Ok(good)
}

/// Draws what was measured: `controller/docs/bench.jsonl`, the last JSON line of each benchmark, as pictures
/// beside it.
fn plot() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../controller/docs");
    let file = docs.join("bench.jsonl");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read the JSON lines in {}", file.display()))?;
    for (name, svg) in pictures(&text)? {
        let to = docs.join(name);
        std::fs::write(&to, svg).with_context(|| format!("cannot write {}", to.display()))?;
        println!("controller/docs/{name}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.names == ["plot"] {
        return match plot() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("bench: {e:#}");
                ExitCode::FAILURE
            }
        };
    }
    if args.names.is_empty() {
        BENCHES.iter().for_each(|b| println!("{:<10} {}", b.name, b.what));
        return ExitCode::SUCCESS;
    }
    match measure(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}
