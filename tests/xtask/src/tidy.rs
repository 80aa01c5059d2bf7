//! The house rules that no compiler checks.
//!
//! - Modules that decide are pure: no sockets, files, threads, run time or clock in them, and no
//!   `HashMap` whose order could leak into a decision.
//! - Every crate takes the workspace's lints.
//! - No comment is longer than 110 columns, but for table rows of a format; rustfmt minds the code.
//! - Nothing unfinished and no debugging aid is left behind.
//! - No path of somebody's machine and no address of a package registry stands anywhere.
//! - What the README tells people to type exists.

use std::fs;
use std::path::{Path, PathBuf};

use crate::VERBS;

/// Longest comment: the longest that stood when this was first checked. May fall, must not rise.
const COMMENT_COLUMNS_MAX: usize = 110;

/// Files and folders in which only values decide.
const PURE: [&str; 19] = [
    "agent/src/core.rs",
    "agent/src/core",
    "agent/src/schedule.rs",
    "common/src/backoff.rs",
    "common/src/id.rs",
    "common/src/load.rs",
    "common/src/wire.rs",
    "controller/src/delivery/bucket.rs",
    "controller/src/delivery/format/alertmanager.rs",
    "controller/src/delivery/format/masakari.rs",
    "controller/src/delivery/format/native.rs",
    "controller/src/delivery/sample.rs",
    "controller/src/delivery/schedule.rs",
    "controller/src/detector",
    "controller/src/ingest/admit.rs",
    "controller/src/ingest/sources.rs",
    "controller/src/policy",
    "controller/src/shard/rest.rs",
    "controller/src/shard/watch.rs",
];

/// Shells that live beside the values they drive.
const SHELLS: [&str; 6] = [
    "controller/src/policy/driver.rs",
    "controller/src/policy/driver/follow.rs",
    "controller/src/policy/driver/holds.rs",
    "controller/src/policy/driver/rules.rs",
    "controller/src/policy/driver/single.rs",
    "controller/src/policy/driver/windows.rs",
];

/// What a pure module does not name.
const IMPURE: [&str; 15] = [
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "tokio::",
    "SystemClock",
    "Instant::now",
    "SystemTime",
    "rand::rng(",
    "std::collections::HashMap",
    "std::collections::HashSet",
    "RandomState",
];

/// Checks the checkout at `root`; answers one line for each thing out of order.
pub(crate) fn check(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut files = Vec::new();
    walk(root, root, &mut files);
    files.sort();
    for path in &files {
        let Ok(text) = fs::read_to_string(root.join(path)) else { continue };
        let name = path.to_string_lossy().into_owned();
        check_file(&name, &text, &mut found);
        if name == "README.md" {
            check_readme(&text, &mut found);
        }
    }
    for pure in PURE {
        if !root.join(pure).exists() {
            found.push(format!("{pure}: tidy watches over it, but it is not there"));
        }
    }
    found
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name();
        // In a worktree of git's, `.git` is a file, and names the machine's paths.
        if name == ".git" {
            continue;
        }
        if path.is_dir() {
            if !["target", "corpus"].iter().any(|skip| name == *skip) {
                walk(root, &path, files);
            }
        } else if let Ok(relative) = path.strip_prefix(root) {
            files.push(relative.to_owned());
        }
    }
}

fn check_file(name: &str, text: &str, found: &mut Vec<String>) {
    if name == "Cargo.lock" || name.ends_with("/Cargo.lock") {
        return;
    }
    // This file names what it looks for.
    let is_tidy = name.ends_with("xtask/src/tidy.rs");
    let ends = |ext: &str| Path::new(name).extension().is_some_and(|e| e == ext);
    if !is_tidy {
        for (i, line) in text.lines().enumerate() {
            check_machine_words(name, i + 1, line, found);
            if ends("rs") {
                check_rust_line(name, i + 1, line, found);
            }
        }
    }
    if ends("rs") && PURE.iter().any(|p| is_within(name, p)) && !SHELLS.contains(&name) {
        check_purity(name, text, found);
    }
    if name.ends_with("Cargo.toml") && text.contains("[package]") {
        let takes_lints = text
            .split("[lints]")
            .nth(1)
            .is_some_and(|rest| rest.trim_start().starts_with("workspace = true"));
        // The fuzz target is a workspace of its own, since it is built with other flags.
        if !takes_lints && !text.contains("[workspace]") {
            found.push(format!("{name}: [lints] workspace = true is missing"));
        }
    }
}

fn is_within(name: &str, pure: &str) -> bool {
    name == pure || name.strip_prefix(pure).is_some_and(|rest| rest.starts_with('/'))
}

fn check_machine_words(name: &str, line_no: usize, line: &str, found: &mut Vec<String>) {
    const WORDS: [&str; 8] = [
        "/work/",
        "/root/",
        "/home/",
        "//crates.io",
        "index.crates.io",
        "pypi.org",
        "registry.npmjs.org",
        "deb.debian.org",
    ];
    for word in WORDS.iter().filter(|w| line.contains(**w)) {
        found.push(format!("{name}:{line_no}: `{word}` belongs to one machine or registry"));
    }
}

fn check_rust_line(name: &str, line_no: usize, line: &str, found: &mut Vec<String>) {
    let columns = line.chars().count();
    let trimmed = line.trim_start();
    let is_table = trimmed.starts_with("//! |") || trimmed.starts_with("/// |");
    let is_comment = trimmed.starts_with("//");
    // A formula loses its meaning when it is broken.
    let is_formula = trimmed.starts_with("//!") && line.contains(" = ");
    if is_comment && columns > COMMENT_COLUMNS_MAX && !is_table && !is_formula {
        let allowed = COMMENT_COLUMNS_MAX;
        found.push(format!("{name}:{line_no}: {columns} columns, {allowed} are allowed"));
    }
    for word in ["dbg!(", "FIXME", "todo!(", "unimplemented!("] {
        if line.contains(word) {
            found.push(format!("{name}:{line_no}: `{word}` is left over"));
        }
    }
}

/// Looks at the code before the tests; comments may say what they like.
fn check_purity(name: &str, text: &str, found: &mut Vec<String>) {
    if name.ends_with("/tests.rs") || name.contains("/tests/") {
        return;
    }
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    for (i, line) in code.lines().enumerate() {
        let line_no = i + 1;
        let code = line.split("//").next().unwrap_or(line);
        for word in IMPURE.iter().filter(|w| code.contains(**w)) {
            found.push(format!("{name}:{line_no}: `{word}` in a module that only decides"));
        }
    }
}

/// Every `cargo xtask VERB` and every `heartwatch…` program of the README exists.
fn check_readme(text: &str, found: &mut Vec<String>) {
    const PROGRAMS: [&str; 3] = ["heartwatch-agent", "heartwatch-controller", "heartwatchctl"];
    for (i, line) in text.lines().enumerate() {
        let line_no = i + 1;
        for after in line.split("cargo xtask ").skip(1) {
            let verb: String = after.chars().take_while(char::is_ascii_lowercase).collect();
            if !verb.is_empty() && !VERBS.iter().any(|v| v.0 == verb) {
                found.push(format!("README.md:{line_no}: `cargo xtask {verb}` does not exist"));
            }
        }
        let command = line.trim_start().trim_start_matches("$ ").trim_start_matches("sudo ");
        if let Some(program) = command.split_whitespace().next()
            && program.starts_with("heartwatch")
            && program.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            && !PROGRAMS.contains(&program)
        {
            found.push(format!("README.md:{line_no}: there is no program `{program}`"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check_file(name, text, &mut found);
        found
    }

    #[test]
    fn a_socket_in_a_pure_module_is_found_but_not_in_its_tests() {
        let pure = "controller/src/detector/lru.rs";
        assert_eq!(found(pure, "use std::net::UdpSocket;\n").len(), 1);
        assert_eq!(found(pure, "// no UdpSocket here\n").len(), 0);
        assert_eq!(found(pure, "fn f() {}\n#[cfg(test)]\nuse std::fs;\n").len(), 0);
        assert_eq!(found("controller/src/shard.rs", "use std::net::UdpSocket;\n").len(), 0);
        assert_eq!(found("agent/src/core.rs", "use std::net::SocketAddr;\n").len(), 0);
    }

    #[test]
    fn long_comments_are_found_but_for_tables() {
        let long = "x".repeat(111);
        assert_eq!(found("a.rs", &format!("// {long}")).len(), 1);
        assert_eq!(found("a.rs", &format!("    \"{long}\"")).len(), 0);
        assert_eq!(found("a.rs", &format!("//! | {long}")).len(), 0);
        assert_eq!(found("a.md", &long).len(), 0);
    }

    #[test]
    fn leftovers_and_machine_paths_are_found() {
        assert_eq!(found("a.rs", "dbg!(x);").len(), 1);
        assert_eq!(found("a.toml", "path = \"/work/main\"").len(), 1);
    }

    #[test]
    fn a_crate_without_the_workspace_lints_is_found() {
        assert_eq!(found("x/Cargo.toml", "[package]\nname = \"x\"\n").len(), 1);
        assert_eq!(found("x/Cargo.toml", "[package]\n[lints]\nworkspace = true\n").len(), 0);
    }

    #[test]
    fn a_readme_that_names_what_does_not_exist_is_found() {
        let mut found = Vec::new();
        check_readme("cargo xtask demo\ncargo xtask frobnicate\nheartwatchd run\n", &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
