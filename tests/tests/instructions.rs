//! What a beat costs a shard, in instructions and allocations: figures that a busy machine does not
//! change, so that CI can hold them where seconds would lie.
//!
//! Instructions are those of `heartwatch-beatpath` under callgrind, for two amounts of beats; divided by
//! the beats that lie between, set-up cancels out.

use std::path::Path;
use std::process::{Command, Output};

use heartwatch_tests::world::skip;

const BEATPATH: &str = env!("CARGO_BIN_EXE_heartwatch-beatpath");
const HOSTS: usize = 1_000;
const FEWER: usize = 10_000;
const MORE: usize = 30_000;
/// Instructions a beat, an ack for every tenth and judging included: 8 % above the 3,514 that were measured
/// with [`COMPILER`]. Runs of one binary do not differ at all; the room is for code that is laid out anew
/// when something else changes.
const BOUND: f64 = 3_795.0;
/// The compiler that [`BOUND`] was measured with; another one may make other code of the same source.
const COMPILER: &str = "rustc 1.95.0";
/// Below this share of [`BOUND`] it guards nothing any more.
const SLACK: f64 = 0.7;
/// Tables still double now and then, so it is not zero; and as these thousand hosts are looked at once a
/// second only, they stand in some hundreds of rows whose blocks come and go (79 in all in the run that was
/// measured). One allocation for every batch of 128 beats would be twice as many.
const ALLOCATIONS_MAX: u64 = 120;

/// How to see where instructions go.
const AGAIN: &str = "  cargo build --profile ci --workspace --bin heartwatch-beatpath
  valgrind --tool=callgrind --callgrind-out-file=beat.out target/ci/heartwatch-beatpath
  callgrind_annotate beat.out";

fn said(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

fn arguments(beats: usize) -> [String; 6] {
    let value = |n: usize| n.to_string();
    let [hosts, beats, sealed] = [HOSTS, beats, MORE].map(value);
    ["--hosts".into(), hosts, "--beats".into(), beats, "--sealed".into(), sealed]
}

/// Instructions of a whole run that takes so many beats.
fn instructions(beats: usize, dir: &Path) -> f64 {
    let file = dir.join(format!("callgrind.{beats}"));
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(BEATPATH)
        .args(arguments(beats))
        .output()
        .expect("valgrind was there a moment ago");
    assert!(output.status.success(), "{}", said(&output));
    let text = std::fs::read_to_string(&file).expect("callgrind writes what it counted");
    let counted = text
        .lines()
        .find_map(|l| l.strip_prefix("totals:"))
        .and_then(|n| n.split_whitespace().next()?.parse().ok());
    counted.unwrap_or_else(|| panic!("{} names no total", file.display()))
}

/// Why instructions can't be held to [`BOUND`] here.
fn cannot_count() -> Option<String> {
    // The binary lies at target/PROFILE/NAME, or target/TRIPLE/PROFILE/NAME.
    let profile = Path::new(BEATPATH).parent().and_then(Path::file_name);
    if profile.is_none_or(|p| p != "ci") {
        return Some("the bound holds for the profile `ci`: cargo test --profile ci".to_owned());
    }
    if !cfg!(target_arch = "x86_64") {
        return Some(format!("the bound holds for x86-64, not {}", std::env::consts::ARCH));
    }
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Some("the bound holds for processors with AVX2, this one has none".to_owned());
    }
    let valgrind = Command::new("valgrind").arg("--version").output();
    if !valgrind.is_ok_and(|o| o.status.success()) {
        return Some("valgrind is missing: apt-get install -y valgrind".to_owned());
    }
    None
}

#[test]
fn a_beat_takes_no_more_instructions_than_it_did() {
    if let Some(why) = cannot_count() {
        return skip("a_beat_takes_no_more_instructions_than_it_did", &why);
    }
    let dir = tempfile::tempdir().unwrap();
    // Each runs alone for some seconds, and needs but one core.
    let (fewer, more) = std::thread::scope(|s| {
        let fewer = s.spawn(|| instructions(FEWER, dir.path()));
        let more = instructions(MORE, dir.path());
        (fewer.join().unwrap(), more)
    });
    let each = (more - fewer) / (MORE - FEWER) as f64;
    println!("{each:.1} instructions a beat, bound {BOUND}");
    assert!(
        each <= BOUND,
        "a beat takes {each:.0} instructions, {BOUND} are allowed ({:+.1} %).\n\
         Find what grew, by comparing with the commit before:\n{AGAIN}\n\
         If it is worth its price, raise BOUND in {} in the same commit and say there why.\n\
         The bound was measured with {COMPILER}; is yours another one?",
        (each / BOUND - 1.0) * 100.0,
        file!(),
    );
    assert!(
        each >= BOUND * SLACK,
        "a beat takes {each:.0} instructions, {:.1} % below the bound of {BOUND}: well done.\n\
         Lower BOUND in {} to {:.0}, so that it is not lost again.\n\
         (If nothing was made faster, see whether beats still go the whole way:\n{AGAIN})",
        (1.0 - each / BOUND) * 100.0,
        file!(),
        each * 1.08,
    );
}

#[test]
fn a_beat_allocates_no_memory() {
    let output = Command::new(BEATPATH).args(arguments(MORE)).output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let counted = text.split_whitespace().find_map(|word| word.strip_prefix("allocations="));
    let counted: u64 = counted.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    assert!(
        counted <= ALLOCATIONS_MAX,
        "{MORE} beats, every tenth acked, took {counted} allocations, {ALLOCATIONS_MAX} are allowed.\n\
         A breakpoint at malloc once the shard is warm shows who asks."
    );
}
