//! `controller/docs/SECURITY.md` promises only what a test shows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Names of all functions that are tests, in all Rust files below `dir`.
fn tests_below(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("the folder is there").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("source is text");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                let called = line.trim_start_matches("async ").strip_prefix("fn ");
                if let Some(rest) = called.filter(|_| is_test) {
                    names.insert(rest.split('(').next().unwrap_or(rest).to_owned());
                }
                // Between the two there may be other attributes and comments.
                let goes_on = is_test && (line.starts_with('#') || line.starts_with("//"));
                is_test = goes_on
                    || line.starts_with("#[test]")
                    || line.starts_with("#[tokio::test")
                    // Properties have their attribute within `proptest!`.
                    || line.starts_with("#![proptest_config");
            }
        }
    }
}

/// Whether a word in backticks is the name of a test: they are sentences.
fn is_sentence(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.chars().all(plain) && word.matches('_').count() >= 2
}

#[test]
fn every_test_that_the_threat_model_names_exists_and_every_attack_names_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut names = BTreeSet::new();
    for part in ["common/src", "agent/src", "controller/src", "tests/src", "tests/tests"] {
        tests_below(&root.join(part), &mut names);
    }
    let text = fs::read_to_string(root.join("controller/docs/SECURITY.md")).unwrap();
    let (mut named, mut attacks, mut section) = (0, 0, "");
    for line in text.lines() {
        section = line.strip_prefix("## ").unwrap_or(section);
        let sentences: Vec<_> =
            line.split('`').skip(1).step_by(2).filter(|w| is_sentence(w)).collect();
        for name in &sentences {
            assert!(names.contains(*name), "SECURITY.md names `{name}`, which is no test");
        }
        named += sentences.len();
        let is_row =
            line.starts_with("| ") && !line.starts_with("| Attack") && !line.starts_with("| ---");
        if section.starts_with("Attacks") && is_row {
            assert!(!sentences.is_empty(), "no test shows: {line}");
            attacks += 1;
        }
    }
    println!("{attacks} attacks, {named} tests named");
    assert!(attacks >= 30 && named >= attacks, "{attacks} attacks, {named} tests");
}
