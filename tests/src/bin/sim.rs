//! Runs seeds of the simulated world; a failing seed says how to replay it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Parser;
use heartwatch_tests::{sim, storms};

#[derive(Parser)]
#[command(name = "sim")]
/// Simulates fleets in virtual time, two per seed, and checks what was promised: a few hosts with all of the
/// production code, and racks and zones of them with the production policy.
struct Cli {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run this seed alone and tell its story.
    #[arg(long)]
    seed: Option<u64>,
    /// Leaves out the large fleets and their storms.
    #[arg(long)]
    no_storms: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seeds = cli.seed.map_or(cli.from..cli.from + cli.seeds, |s| s..s + 1);
    let count = seeds.end - seeds.start;
    let (mut failed, mut datagrams, mut receptions, mut looked) = (Vec::new(), 0, 0, 0);
    let mut events: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds.clone() {
        let report = sim::run(seed);
        if cli.seed.is_some() {
            for line in report.faults.iter().chain(&report.story) {
                println!("{line}");
            }
        }
        for v in &report.violations {
            println!("seed {seed}: {} broken: {}", v.invariant, v.seen);
        }
        if cli.seed.is_some() {
            println!("trace {}", report.trace);
        }
        datagrams += report.datagrams;
        receptions += report.receptions;
        looked += report.looked;
        report.events.iter().for_each(|(kind, n)| *events.entry(kind).or_default() += n);
        if !report.violations.is_empty() {
            println!("replay it: cargo xtask sim --seed {seed}");
            failed.push(seed);
        }
        if count > 20 && (seed - seeds.start + 1).is_multiple_of(50) {
            println!("{} of {count} seeds run, {} failed", seed - seeds.start + 1, failed.len());
        }
    }
    // Determinism is itself tested: the first seed once more.
    let (once, again) = (sim::run(seeds.start), sim::run(seeds.start));
    if once.trace != again.trace {
        println!("seed {} is not deterministic: {} and {}", seeds.start, once.trace, again.trace);
        failed.push(seeds.start);
    } else {
        println!("seed {} run twice: trace {} both times", seeds.start, once.trace);
    }
    if !cli.no_storms {
        failed.extend(storms_of(seeds.clone(), cli.seed.is_some()));
        failed.sort_unstable();
        failed.dedup();
    }
    println!(
        "{count} seeds, {} simulated minutes, {datagrams} datagrams, {receptions} webhooks, {looked} looks \
         at promises about peers; events: {events:?}",
        count * sim::END.as_secs() / 60,
    );
    println!("{} passed, {} failed", count - failed.len().min(count as usize) as u64, failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the large fleets; answers the seeds that broke a promise.
fn storms_of(seeds: std::ops::Range<u64>, tells: bool) -> Vec<u64> {
    let (mut failed, mut failovers, mut looked) = (Vec::new(), 0, 0);
    let mut events: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds.clone() {
        let report = storms::run(seed);
        if tells {
            report.story.iter().for_each(|line| println!("{line}"));
            println!("trace {}", report.trace);
        }
        for v in &report.violations {
            println!("seed {seed}: storms: {} broken: {}", v.invariant, v.seen);
        }
        if !report.violations.is_empty() {
            println!("replay it: cargo xtask sim --seed {seed}");
            failed.push(seed);
        }
        failovers += report.failovers;
        looked += report.looked;
        report.events.iter().for_each(|(kind, n)| *events.entry(kind).or_default() += n);
    }
    if storms::run(seeds.start).trace != storms::run(seeds.start).trace {
        println!("seed {}: storms are not deterministic", seeds.start);
        failed.push(seeds.start);
    }
    println!(
        "storms: {} seeds, {failovers} failovers, {looked} counts of silent hosts, {} failed; events: \
         {events:?}",
        seeds.end - seeds.start,
        failed.len()
    );
    failed
}
