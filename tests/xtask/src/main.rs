//! The one door for contributors: `cargo xtask VERB`. CI calls nothing else, so whatever fails there
//! fails on a laptop too.

use std::process::ExitCode;

mod machine;
mod mutants;
mod package;
mod report;
mod run;
mod stages;
mod tidy;

/// Every verb with what it does; `tidy` checks that the README names no other.
const VERBS: [(&str, &str); 14] = [
    ("check", "formatting, lints, docs, tidy; writes nothing"),
    ("fix", "formats, and applies what clippy can fix by itself"),
    ("tidy", "the house rules that no compiler checks"),
    ("test", "everything that CI runs, with a summary at the end"),
    ("sim", "the simulator; arguments are passed on, such as --seeds 200 or --seed 8173"),
    ("eval", "compares detectors on synthetic and measured delays: [--traces DIR] [--json]"),
    ("mutants", "plants known bugs one by one; the simulator must notice each: [PART OF A NAME]…"),
    ("e2e", "end-to-end tests with the real binaries; an argument is a filter on test names"),
    ("fuzz", "throws bad bytes at the decoder and admission: [--seconds N] [--coverage]"),
    (
        "fleet",
        "up to millions of hosts in one process, which die on demand: --hosts N --kill 10%; --help",
    ),
    ("bench", "measures this build on this machine: NAME|all [--json] [--quick]"),
    ("demo", "the story in a minute: a crash, a failover, a dark rack; --keep leaves it running"),
    (
        "package",
        "deb and rpm into target/packages: [--profile ci] [--report --json]; see packaging/",
    ),
    ("ci", "the same as test"),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (verb, rest) = match args.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("help", [].as_slice()),
    };
    let result = match verb {
        "check" => stages::check(),
        "fix" => stages::fix(),
        "tidy" => stages::tidy(),
        "test" | "ci" => stages::test(),
        "sim" => stages::sim(rest),
        "eval" => stages::eval(rest),
        "mutants" => mutants::run(rest),
        "e2e" => stages::e2e(rest),
        "fuzz" => stages::fuzz(rest),
        "fleet" => stages::fleet(rest),
        "bench" => stages::bench(rest),
        "demo" => stages::demo(rest),
        "package" => package::run(rest),
        "help" | "--help" | "-h" => {
            usage();
            return ExitCode::SUCCESS;
        }
        unknown => {
            eprintln!("`{unknown}` is not a verb of cargo xtask\n");
            usage();
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            if !message.is_empty() {
                eprintln!("xtask: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

fn usage() {
    println!("usage: cargo xtask VERB\n");
    for (verb, what) in VERBS {
        println!("  {verb:<7} {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_named_once_each() {
        let mut names: Vec<_> = VERBS.iter().map(|v| v.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), VERBS.len());
    }
}
