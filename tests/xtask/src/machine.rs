//! What this machine has: says at once what is missing, and where that is allowed installs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The top of the checkout.
pub(crate) fn root() -> PathBuf {
    // This file is at tests/xtask/src/machine.rs, so the manifest is two levels below the top.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that started us, as if it had been started by hand.
///
/// What it told us of ourselves is not passed on: build scripts that look at their own `CARGO_PKG_…` run
/// again whenever those change, so a build by hand and one from here would each undo the other's minutes.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let ours = ["CARGO_MANIFEST_", "CARGO_PKG_"];
        if name.to_str().is_some_and(|n| ours.iter().any(|o| n.starts_with(o))) {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(root());
    cargo
}

/// What rustc builds for here.
pub(crate) fn host_triple() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc).arg("-vV").output().map_err(|e| format!("rustc: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let host = text.lines().find_map(|l| l.strip_prefix("host: ")).map(str::to_owned);
    host.ok_or_else(|| "rustc does not tell its host".to_owned())
}

/// Whether a program can be started at all.
pub(crate) fn has(program: &str, probe: &str) -> bool {
    Command::new(program)
        .arg(probe)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Whether a cargo component, such as `clippy`, is there.
pub(crate) fn has_component(name: &str) -> bool {
    cargo()
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Whether we may install Debian packages.
pub(crate) fn may_install() -> bool {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    root && has("apt-get", "--version")
}

/// The C compiler is the one thing without which nothing can be built (SQLite, ring and BLAKE3 hold C).
pub(crate) fn need_c_compiler() -> Result<(), String> {
    if has("cc", "--version") {
        return Ok(());
    }
    Err("a C compiler is missing (SQLite and the cryptography are C inside).\n       \
         On Debian or Ubuntu: apt-get install -y build-essential"
        .to_owned())
}

/// Makes sure of what only tests need; what can't be had is left out, and the tests that need it say so.
pub(crate) fn provide_test_tools() {
    provide_debian_tools();
    let python = has("python3", "--version");
    let promtool = promtool().is_some();
    if python && standardwebhooks().is_none() && !fetch_standardwebhooks() {
        println!(
            "note: Python's standardwebhooks can't be had by pip; the test with it will be skipped"
        );
    }
    let alertmanager = alertmanager().is_some();
    if python && promtool && alertmanager {
        return;
    }
    if !may_install() {
        if !python {
            println!(
                "note: python3 is missing, its test will be skipped: apt-get install -y python3"
            );
        }
        if !promtool {
            println!(
                "note: promtool is missing, its test will be skipped: apt-get install -y prometheus"
            );
        }
        if !alertmanager {
            println!(
                "note: Debian's Alertmanager can only be fetched as root; its test is skipped"
            );
        }
        return;
    }
    let update = apt(&["update", "-qq"], &root());
    if !update {
        println!("note: apt-get update failed; going on with the package lists that are there");
    }
    if !python && !apt(&["install", "-y", "-qq", "--no-install-recommends", "python3"], &root()) {
        println!("note: python3 could not be installed; its test will be skipped");
    }
    if !(promtool || unpack("prometheus") && self::promtool().is_some()) {
        println!("note: promtool could not be fetched; its test will be skipped");
    }
    if !(alertmanager || unpack("prometheus-alertmanager") && self::alertmanager().is_some()) {
        println!("note: Alertmanager could not be fetched; its test will be skipped");
    }
}

/// Redis, with which the controller is compared. Debian's `redis-tools` carries the server under another name
/// and, unlike `redis-server`, starts no service that nobody asked for.
pub(crate) fn provide_redis() {
    if has("redis-server", "--version") || has("redis-check-rdb", "--version") {
        return;
    }
    let args = ["install", "-y", "-qq", "--no-install-recommends", "redis-tools"];
    let installed = may_install() && apt(&["update", "-qq"], &root()) && apt(&args, &root());
    if !installed {
        println!("note: Redis is missing, `peers` needs it: apt-get install -y redis-tools");
    }
}

/// `ip` and `nft`, with which the tests cut networks of their own making, valgrind, which counts the
/// instructions of a beat, and systemd-analyze, which judges the units.
fn provide_debian_tools() {
    let tools = [
        ("ip", "-V", "iproute2"),
        ("nft", "-v", "nftables"),
        ("valgrind", "--version", "valgrind"),
        ("systemd-analyze", "--version", "systemd"),
    ];
    let missing: Vec<&str> = tools
        .into_iter()
        .filter(|(program, probe, _)| !has(program, probe))
        .map(|(_, _, package)| package)
        .collect();
    if missing.is_empty() {
        return;
    }
    let updated = may_install() && apt(&["update", "-qq"], &root());
    for package in missing {
        // One by one: that one of them can't be had is no reason to go without the others.
        let args = ["install", "-y", "-qq", "--no-install-recommends", package];
        if !(updated && apt(&args, &root())) {
            println!(
                "note: {package} is missing, its tests will be skipped: apt-get install -y {package}"
            );
        }
    }
}

/// promtool on the path, or the copy that [`provide_test_tools`] unpacked.
pub(crate) fn promtool() -> Option<PathBuf> {
    if has("promtool", "--version") {
        return Some(PathBuf::from("promtool"));
    }
    let unpacked = tools_dir().join("usr/bin/promtool");
    unpacked.is_file().then_some(unpacked)
}

fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// The folder into which Debian's Alertmanager was unpacked.
pub(crate) fn alertmanager() -> Option<PathBuf> {
    let dir = tools_dir();
    dir.join("usr/bin/prometheus-alertmanager").is_file().then_some(dir)
}

/// The folder in which Python finds its own library of Standard Webhooks.
pub(crate) fn standardwebhooks() -> Option<PathBuf> {
    let dir = tools_dir().join("python");
    dir.join("standardwebhooks").is_dir().then_some(dir)
}

/// Of the library's dependencies none is needed to verify.
fn fetch_standardwebhooks() -> bool {
    let dir = tools_dir().join("python");
    println!("$ pip install standardwebhooks");
    let installed = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
        .arg(&dir)
        .arg("standardwebhooks==1.1.0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    installed.is_ok_and(|s| s.success()) && standardwebhooks().is_some()
}

/// Unpacks one of Debian's packages beside the build. Installing it would also start a server, which nobody
/// asked for.
fn unpack(package: &str) -> bool {
    let dir = tools_dir();
    if let Err(e) = std::fs::create_dir_all(&dir) {
        println!("note: cannot make {}: {e}", dir.display());
        return false;
    }
    if !apt(&["download", "-qq", package], &dir) {
        return false;
    }
    let Ok(entries) = std::fs::read_dir(&dir) else { return false };
    let prefix = format!("{package}_");
    let file = entries.filter_map(Result::ok).map(|e| e.path()).find(|p| {
        p.extension().is_some_and(|x| x == "deb")
            && p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
    });
    let Some(file) = file else { return false };
    Command::new("dpkg-deb")
        .arg("-x")
        .args([&file, &dir])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

pub(crate) fn apt(args: &[&str], dir: &Path) -> bool {
    println!("$ apt-get {}", args.join(" "));
    Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}
