//! What a beat costs the detector alone: `cargo bench --bench observe`, or with HOSTS and ROUNDS nothing
//! but beats, for a profiler.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let numbers = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let numbers: Vec<usize> = numbers
        .map(|a| a.parse().with_context(|| format!("{a} is no number")))
        .collect::<Result<_, _>>()?;
    if let [hosts, rounds] = numbers[..] {
        return heartwatch_tests::bench::observe::beats(hosts, u32::try_from(rounds)?);
    }
    println!("{}", heartwatch_tests::bench::observe::run(true)?);
    Ok(())
}
