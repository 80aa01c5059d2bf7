//! What a beat costs the detector alone.

fn main() -> anyhow::Result<()> {
    println!("{}", heartwatch_tests::bench::observe::run(true)?);
    Ok(())
}
