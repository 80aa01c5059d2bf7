//! What each verb runs, and the order of everything that CI runs.
//!
//! Tests, simulator, end-to-end tests and the demo of `test` all run one build, in the profile
//! [`PROFILE`]: optimised, with assertions on. So the dependencies are compiled once for running and
//! once, without code, for the lints.

use std::path::PathBuf;
use std::process::Command;

use crate::machine::{self, cargo, root, target_dir};
use crate::report::{Counts, Report};
use crate::run::{attached, stream, timed};
use crate::tidy;

/// The profile in which everything that is tested is built.
const PROFILE: &str = "ci";
/// Seeds of the simulator in `test`.
const SIM_SEEDS: &str = "500";
/// Seconds of fuzzing in `test`.
const FUZZ_SECONDS: &str = "20";

fn build_dir(profile: &str) -> PathBuf {
    target_dir().join(profile)
}

/// `cargo VERB --workspace --profile ci …`: always the same selection, so that cargo never has to
/// compile a dependency twice because another crate wants other features of it.
fn workspace(verb: &str) -> Command {
    let mut command = cargo();
    command.args([verb, "--workspace", "--profile", PROFILE, "--quiet"]);
    if verb != "build" {
        command.env("HEARTWATCH_PROMTOOL", machine::promtool().unwrap_or_default());
        command.env("HEARTWATCH_ALERTMANAGER", machine::alertmanager().unwrap_or_default());
        command.env("HEARTWATCH_STANDARDWEBHOOKS", machine::standardwebhooks().unwrap_or_default());
    }
    command
}

fn ok_or(success: bool, what: &str) -> Result<(), String> {
    if success { Ok(()) } else { Err(format!("{what} failed")) }
}

/// Formatting, lints, docs and tidy.
pub(crate) fn check() -> Result<(), String> {
    machine::need_c_compiler()?;
    let mut report = new_report();
    check_stages(&mut report)?;
    finish(&report)
}

/// Formats and fixes.
pub(crate) fn fix() -> Result<(), String> {
    attached(cargo().args(["fmt", "--all"]))?;
    attached(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ]))?;
    attached(cargo().args(["fmt", "--all"]))
}

/// The house rules.
pub(crate) fn tidy() -> Result<(), String> {
    let found = tidy::check(&root());
    found.iter().for_each(|line| println!("{line}"));
    match found.len() {
        0 => Ok(()),
        n => Err(format!("tidy found {n} things to put in order")),
    }
}

/// Everything that CI runs.
pub(crate) fn test() -> Result<(), String> {
    machine::need_c_compiler()?;
    machine::provide_test_tools();
    let mut report = new_report();
    let result = test_stages(&mut report);
    report.print();
    result?;
    if report.is_red() { Err(String::new()) } else { Ok(()) }
}

fn test_stages(report: &mut Report) -> Result<(), String> {
    check_stages(report)?;
    if report.is_red() {
        return Err("fix what check found first (cargo xtask fix does what a machine can)".into());
    }
    let build = stream(workspace("build").arg("--all-targets"))?;
    report.book("build", build.took, one(build.success));
    if !build.success {
        return Err("nothing more can run before it builds".to_owned());
    }
    let unit = ["--no-fail-fast", "--lib", "--bins", "--test", "[!e]*"];
    tests(report, "unit and property tests", &unit, &[])?;
    doc_tests(report)?;
    sim_stage(report)?;
    fuzz_stage(report)?;
    tests(
        report,
        "end-to-end tests",
        &["--no-fail-fast", "--test", "e2e_*"],
        &["--test-threads=2"],
    )?;
    let demo = stream(&mut Command::new(build_dir(PROFILE).join("heartwatch-demo")))?;
    report.book("demo", demo.took, one(demo.success));
    verify_install_stage(report)
}

fn one(success: bool) -> Counts {
    if success { Counts::ONE_PASSED } else { Counts::ONE_FAILED }
}

fn new_report() -> Report {
    let log = std::env::temp_dir().join(format!("heartwatch-skips-{}", std::process::id()));
    Report::new(log)
}

fn finish(report: &Report) -> Result<(), String> {
    report.print();
    if report.is_red() { Err(String::new()) } else { Ok(()) }
}

fn check_stages(report: &mut Report) -> Result<(), String> {
    let (found, took) = timed(|| tidy::check(&root()));
    found.iter().for_each(|line| println!("{line}"));
    report.book("tidy", took, one(found.is_empty()));
    if machine::has_component("fmt") {
        let ended = stream(cargo().args(["fmt", "--all", "--check"]))?;
        report.book("fmt", ended.took, one(ended.success));
    } else {
        report.skip("fmt", "rustfmt is not installed: rustup component add rustfmt");
    }
    if machine::has_component("clippy") {
        let args = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        let ended = stream(cargo().args(args))?;
        report.book("clippy", ended.took, one(ended.success));
    } else {
        report.skip("clippy", "clippy is not installed: rustup component add clippy");
    }
    let args = ["doc", "--workspace", "--no-deps", "--quiet"];
    let ended = stream(cargo().args(args).env("RUSTDOCFLAGS", "-D warnings"))?;
    report.book("doc", ended.took, one(ended.success));
    Ok(())
}

fn tests(
    report: &mut Report,
    name: &str,
    targets: &[&str],
    harness: &[&str],
) -> Result<(), String> {
    let mut command = workspace("test");
    command.args(targets).arg("--").args(harness).env("HEARTWATCH_SKIP_LOG", report.skip_log());
    let ended = stream(&mut command)?;
    let mut counts = ended.counts;
    if !ended.success && counts.failed == 0 {
        // A test binary that died prints no result.
        counts.add(Counts::ONE_FAILED);
    }
    report.book(name, ended.took, counts);
    Ok(())
}

fn doc_tests(report: &mut Report) -> Result<(), String> {
    tests(report, "doc tests", &["--doc"], &[])
}

fn sim_stage(report: &mut Report) -> Result<(), String> {
    let sim = build_dir(PROFILE).join("sim");
    if !sim.is_file() {
        report.skip("simulator", "tests/src/bin/sim.rs is not there");
        return Ok(());
    }
    let ended = stream(Command::new(sim).args(["--seeds", SIM_SEEDS]))?;
    report.book("simulator", ended.took, one(ended.success));
    Ok(())
}

/// The packages, installed on fresh distributions.
fn verify_install_stage(report: &mut Report) -> Result<(), String> {
    // The script's word for a machine that cannot try it; it has said why.
    const CANNOT: i32 = 77;
    let mut verify = Command::new(root().join("packaging/verify-install"));
    let ended = stream(verify.current_dir(root()).args(["--profile", PROFILE]))?;
    if ended.code == Some(CANNOT) {
        report.skip("verify-install", "this machine cannot try packages out: see above");
    } else {
        report.book("verify-install", ended.took, one(ended.success));
    }
    Ok(())
}

fn fuzz_stage(report: &mut Report) -> Result<(), String> {
    let fuzz = build_dir(PROFILE).join("heartwatch-fuzz");
    let mut command = Command::new(fuzz);
    command.args(["--seconds", FUZZ_SECONDS]).current_dir(root());
    let ended = stream(&mut command)?;
    report.book("fuzz", ended.took, one(ended.success));
    Ok(())
}

/// Builds the binaries of the tests crate and of the product in [`PROFILE`].
fn build_bins() -> Result<(), String> {
    machine::need_c_compiler()?;
    let built = stream(workspace("build").arg("--bins"))?;
    ok_or(built.success, "the build")
}

/// The simulator.
pub(crate) fn sim(args: &[String]) -> Result<(), String> {
    build_bins()?;
    attached(Command::new(build_dir(PROFILE).join("sim")).args(args))
}

/// The comparison of detectors.
pub(crate) fn eval(args: &[String]) -> Result<(), String> {
    build_bins()?;
    attached(Command::new(build_dir(PROFILE).join("heartwatch-eval")).args(args))
}

/// The end-to-end tests.
pub(crate) fn e2e(args: &[String]) -> Result<(), String> {
    build_bins()?;
    machine::provide_test_tools();
    let mut report = new_report();
    let mut harness = vec!["--test-threads=2"];
    harness.extend(args.iter().map(String::as_str));
    tests(&mut report, "end-to-end tests", &["--no-fail-fast", "--test", "e2e_*"], &harness)?;
    finish(&report)
}

/// Bad bytes against decoder and admission.
pub(crate) fn fuzz(args: &[String]) -> Result<(), String> {
    if args.iter().any(|a| a == "--coverage") {
        let rest: Vec<String> = args.iter().filter(|a| *a != "--coverage").cloned().collect();
        return fuzz_with_coverage(&rest);
    }
    build_bins()?;
    let mut command = Command::new(build_dir(PROFILE).join("heartwatch-fuzz"));
    attached(command.args(args).current_dir(root()))
}

/// libFuzzer on the stable compiler: the flags are those that cargo-fuzz passes, less the sanitiser,
/// which only a nightly compiler has.
fn fuzz_with_coverage(args: &[String]) -> Result<(), String> {
    if !machine::has("c++", "--version") {
        return Err(
            "libFuzzer is C++. On Debian or Ubuntu: apt-get install -y build-essential".into()
        );
    }
    let seconds = match args {
        [] => "60".to_owned(),
        [flag, n] if flag == "--seconds" && n.parse::<u32>().is_ok() => n.clone(),
        _ => return Err("usage: cargo xtask fuzz --coverage [--seconds N]".into()),
    };
    const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions";
    let dir = root().join("tests/fuzz");
    let built = target_dir().join("fuzz");
    // With a named target the flags are not applied to build scripts, which could not be linked.
    let target = machine::host_triple()?;
    attached(
        cargo()
            .args(["build", "--release", "--target", &target, "--target-dir"])
            .arg(&built)
            .current_dir(&dir)
            .env("RUSTFLAGS", FLAGS),
    )?;
    let found = built.join("artifacts/");
    std::fs::create_dir_all(&found).map_err(|e| format!("cannot make {}: {e}", found.display()))?;
    for name in ["datagram", "expression", "asked"] {
        let corpus = built.join("corpus").join(name);
        std::fs::create_dir_all(&corpus)
            .map_err(|e| format!("cannot make {}: {e}", corpus.display()))?;
        attached(
            Command::new(built.join(&target).join("release").join(name))
                .arg(&corpus)
                .arg(dir.join("corpus").join(name))
                .arg(format!("-max_total_time={seconds}"))
                .arg(format!("-artifact_prefix={}", found.display()))
                .args(["-max_len=1300", "-use_value_profile=1", "-print_final_stats=1"]),
        )?;
    }
    Ok(())
}

/// Builds the product and one more program for release, and runs that one.
fn released(program: &str, args: &[String]) -> Result<(), String> {
    machine::need_c_compiler()?;
    println!("building (the first time takes some minutes)…");
    let bins = ["heartwatch-agent", "heartwatch-controller", "heartwatchctl", program];
    let mut build = cargo();
    build.args(["build", "--release", "--workspace"]);
    build.args(bins.iter().flat_map(|bin| ["--bin", bin]));
    attached(&mut build)?;
    attached(Command::new(build_dir("release").join(program)).args(args).current_dir(root()))
}

/// The story in a minute, with release binaries.
pub(crate) fn demo(args: &[String]) -> Result<(), String> {
    released("heartwatch-demo", args)
}

/// The fleet generator, with release binaries.
pub(crate) fn fleet(args: &[String]) -> Result<(), String> {
    released("heartwatch-fleet", args)
}

/// The measurements, with release binaries.
pub(crate) fn bench(args: &[String]) -> Result<(), String> {
    if args.iter().any(|a| a == "all" || a == "peers") {
        machine::provide_redis();
    }
    released("heartwatch-bench", args)
}
