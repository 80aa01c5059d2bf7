//! The programs of the packages.
//!
//! For `release`: linked by zig against glibc 2.17, with the list of their dependencies inside, and with no
//! path of this machine in them, so that two checkouts in two folders give the same bytes. For any other
//! profile: as that profile has them, for this machine's glibc, which is quick and enough to try them out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::elf::{self, Linked};
use super::{Options, PRODUCTS, tools};
use crate::machine::{cargo, root, target_dir};
use crate::run::{attached, timed};

/// CentOS 7, Debian 8, Ubuntu 14.04 and everything after them have it.
pub(super) const GLIBC_MAX: (u32, u32) = (2, 17);
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Where the programs are, and what they are linked against.
pub(super) struct Programs {
    dir: PathBuf,
    linked: Vec<(&'static str, Linked)>,
}

impl Programs {
    /// One program's file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What one program is linked against.
    pub(super) fn linked(&self, name: &str) -> Option<&Linked> {
        self.linked.iter().find(|(program, _)| *program == name).map(|(_, linked)| linked)
    }
}

/// Builds all programs and looks into them.
pub(super) fn programs(options: &Options) -> Result<Programs, String> {
    println!("\nbuilding the programs (profile {})…", options.profile);
    let (built, took) =
        timed(|| if options.is_release() { for_old_glibc() } else { for_here(options) });
    let dir = built?;
    println!("built in {:.0} s", took.as_secs_f64());
    let mut linked = Vec::new();
    for name in PRODUCTS.iter().flat_map(|p| p.programs) {
        let found = elf::linked(&dir.join(name))?;
        let (major, minor) = found.glibc;
        println!("{name}: glibc {major}.{minor}, loads {}", found.libraries.join(" "));
        if options.is_release() {
            if found.glibc > GLIBC_MAX {
                return Err(format!(
                    "{name} needs glibc {major}.{minor}, at most {}.{} is promised: which symbol it is, `objdump \
                     -T` tells",
                    GLIBC_MAX.0, GLIBC_MAX.1
                ));
            }
            if !found.auditable {
                return Err(format!("{name} carries no list of its dependencies (.dep-v0)"));
            }
        }
        linked.push((*name, found));
    }
    Ok(Programs { dir, linked })
}

fn packages() -> impl Iterator<Item = &'static str> {
    PRODUCTS.iter().flat_map(|p| ["--package", p.name])
}

fn for_here(options: &Options) -> Result<PathBuf, String> {
    let mut build = cargo();
    // The whole workspace, as the tests build it: with fewer crates cargo would choose other features for
    // their dependencies and compile all of them again.
    build.args(["build", "--workspace", "--bins", "--quiet", "--profile", &options.profile]);
    attached(&mut build)?;
    Ok(target_dir().join(&options.profile))
}

fn for_old_glibc() -> Result<PathBuf, String> {
    let top = root();
    let home = cargo_home();
    let map = |flag: &str| {
        format!(
            "{flag}={}=/usr/src/heartwatch {flag}={}=/usr/src/cargo",
            top.display(),
            home.display()
        )
    };
    let built = top.join("target/package-build");
    let mut build = cargo();
    build
        .args(["auditable", "zigbuild", "--release", "--locked", "--bins"])
        .args(["--target", &format!("{TRIPLE}.{}.{}", GLIBC_MAX.0, GLIBC_MAX.1)])
        .args(packages())
        .env("PATH", search_path()?)
        .env("CARGO_TARGET_DIR", &built)
        .env("RUSTFLAGS", map("--remap-path-prefix"))
        .env("CFLAGS", map("-ffile-prefix-map"));
    attached(&mut build)?;
    Ok(built.join(TRIPLE).join("release"))
}

fn cargo_home() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(PathBuf::new, PathBuf::from);
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

fn search_path() -> Result<OsString, String> {
    let tools = tools::dir();
    let mut dirs = vec![tools.join("venv/bin"), tools.join("bin")];
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    std::env::join_paths(dirs.iter().map(|d: &PathBuf| -> &Path { d }))
        .map_err(|e| format!("the path of the tools cannot be used: {e}"))
}
