//! The tools that packages are made with. What is missing is installed where that is allowed, else named
//! together with the command that installs it.

use std::path::PathBuf;
use std::process::Command;

use super::Options;
use crate::machine::{apt, cargo, has, may_install, need_c_compiler, root, target_dir};
use crate::run::attached;

/// Pinned, so that the same checkout is linked by the same linker.
const ZIG: &str = "ziglang==0.15.1";
const ZIGBUILD: &str = "cargo-zigbuild==0.24.0";
const AUDITABLE: &str = "0.7.7";

/// Program, how to ask whether it is there, Debian's package.
const DEBIAN: [(&str, &str, &str); 4] = [
    ("dpkg-deb", "--version", "dpkg"),
    ("rpmbuild", "--version", "rpm"),
    ("readelf", "--version", "binutils"),
    ("gzip", "--version", "gzip"),
];
const LINTERS: [(&str, &str, &str); 2] =
    [("lintian", "--version", "lintian"), ("rpmlint", "--version", "rpmlint")];

/// Where zig and cargo-auditable are kept; a second checkout may use those of the first.
pub(super) fn dir() -> PathBuf {
    match std::env::var_os(DIR_VAR) {
        Some(dir) => root().join(dir),
        None => target_dir().join("package-tools"),
    }
}

/// Names another place for [`dir`].
pub(super) const DIR_VAR: &str = "HEARTWATCH_PACKAGE_TOOLS";

/// Everything that these packages need.
pub(super) fn provide(options: &Options) -> Result<(), String> {
    need_c_compiler()?;
    let mut wanted = DEBIAN.to_vec();
    if options.lint {
        wanted.extend(LINTERS);
    }
    debian(&wanted)?;
    if options.is_release() {
        zig()?;
        auditable()?;
    }
    Ok(())
}

fn debian(wanted: &[(&str, &str, &str)]) -> Result<(), String> {
    let missing = || wanted.iter().filter(|t| !has(t.0, t.1)).map(|t| t.2).collect::<Vec<_>>();
    let first = missing();
    if first.is_empty() {
        return Ok(());
    }
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(&first);
    if may_install() {
        // A failed update may still leave lists that will do.
        let updated = apt(&["update", "-qq"], &root());
        if apt(&install, &root()) && missing().is_empty() {
            return Ok(());
        }
        if !updated {
            return Err("apt-get update failed: is the network there?".to_owned());
        }
    }
    let names = missing().join(" ");
    Err(format!("missing: {names}. On Debian or Ubuntu, as root: apt-get install -y {names}"))
}

/// zig as linker and C compiler for an old glibc, and the wrapper that lets cargo use it; both are wheels.
fn zig() -> Result<(), String> {
    let venv = dir().join("venv");
    if venv.join("bin/cargo-zigbuild").is_file() {
        return Ok(());
    }
    println!("\nfetching zig, which links against glibc 2.17 (100 MB, once)…");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status();
    if !made.is_ok_and(|s| s.success()) {
        let needs = [("python3", "--version", "python3-venv")];
        if may_install() {
            apt(&["install", "-y", "-qq", "--no-install-recommends", needs[0].2], &root());
        }
        let again = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv).status();
        if !again.is_ok_and(|s| s.success()) {
            return Err(
                "python3 cannot make a virtual environment. On Debian or Ubuntu, as root: \
                        apt-get install -y python3-venv"
                    .to_owned(),
            );
        }
    }
    attached(Command::new(venv.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        ZIG,
        ZIGBUILD,
    ]))
    .map_err(|e| format!("zig cannot be had: {e}"))
}

/// Puts the list of dependencies into the programs.
fn auditable() -> Result<(), String> {
    if dir().join("bin/cargo-auditable").is_file() {
        return Ok(());
    }
    println!("\nbuilding cargo-auditable (once, half a minute)…");
    let mut install = cargo();
    install.args(["install", "--quiet", "--locked", "--version", AUDITABLE, "--root"]).arg(dir());
    attached(install.arg("cargo-auditable"))
        .map_err(|e| format!("cargo-auditable cannot be had: {e}"))
}
