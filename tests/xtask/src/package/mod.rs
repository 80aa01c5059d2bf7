//! `cargo xtask package`: the product as .deb and .rpm, for any x86_64 distribution of the last ten years.
//!
//! The programs are linked against glibc 2.17 by zig's linker ([`build`]), their files staged once
//! ([`stage`]) and packed by the distributions' own tools, `dpkg-deb` and `rpmbuild` ([`pack`]). The same
//! checkout gives the same bytes in whatever folder it lies. [`report`] measures what is promised of the
//! packages.
//! Why so: `controller/docs/adr/0020-packages-by-the-distributions-tools.md`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::{root, target_dir};

mod build;
mod elf;
mod pack;
mod report;
mod stage;
mod tools;

/// What is packed: the package's name, its programs, and its words.
pub(crate) struct Product {
    pub(crate) name: &'static str,
    pub(crate) programs: &'static [&'static str],
    pub(crate) summary: &'static str,
    pub(crate) description: &'static str,
    /// Its config file in `packaging/examples`.
    config: &'static str,
    /// What it needs of Debian and of rpm distributions beside the C library.
    needs: &'static [&'static str],
}

/// The two packages.
pub(crate) const PRODUCTS: [Product; 2] = [
    Product {
        name: "heartwatch-agent",
        programs: &["heartwatch-agent"],
        summary: "tells the Heartwatch controllers that this host lives",
        description: "Sends an authenticated UDP datagram with the host's load, once a second or\n\
                      so, to the controllers of the fleet, which have the host's work failed over\n\
                      when it falls silent. Takes some 5 MiB of memory; listens to nobody but its\n\
                      controllers.",
        config: "agent.toml",
        needs: &[],
    },
    Product {
        name: "heartwatch-controller",
        programs: &["heartwatch-controller", "heartwatchctl"],
        summary: "watches the beats of a fleet and has failed hosts' work moved",
        description: "Receives the beats of up to a million hosts, decides who is down, doubts itself\n\
                      first, and tells the orchestrator by signed webhooks. With heartwatchctl, the\n\
                      operator's command line.",
        config: "controller.toml",
        // Receivers' certificates are checked against the distribution's authorities.
        needs: &["ca-certificates"],
    },
];

/// What was asked for.
pub(crate) struct Options {
    /// `release` (glibc 2.17, optimised) or any other profile (built for this machine, quickly).
    profile: String,
    version: String,
    out: PathBuf,
    lint: bool,
    report: bool,
    /// Seconds since 1970 that every file is dated to.
    epoch: u64,
}

const USAGE: &str = "usage: cargo xtask package [--profile release|ci] [--version V] [--out DIR] [--no-lint] \
                     [--report [--json]]";

impl Options {
    fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            profile: "release".into(),
            version: version()?,
            out: target_dir().join("packages"),
            lint: true,
            report: false,
            epoch: epoch()?,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value =
                || args.next().cloned().ok_or_else(|| format!("{arg} needs a value\n{USAGE}"));
            match arg.as_str() {
                "--profile" => options.profile = value()?,
                "--version" => options.version = value()?,
                "--out" => options.out = root().join(value()?),
                "--no-lint" => options.lint = false,
                "--report" => options.report = true,
                // What is measured is always told as one line of JSON, the last.
                "--json" => {}
                other => return Err(format!("`{other}` is not known\n{USAGE}")),
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '~';
        if !options.version.starts_with(|c: char| c.is_ascii_digit())
            || !options.version.chars().all(plain)
        {
            return Err(format!("`{}` is no version that both dpkg and rpm take", options.version));
        }
        Ok(options)
    }

    fn is_release(&self) -> bool {
        self.profile == "release"
    }
}

/// The version of the workspace.
fn version() -> Result<String, String> {
    let path = root().join("Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let line = text.lines().find_map(|l| l.strip_prefix("version = \""));
    let version = line.and_then(|rest| rest.strip_suffix('"'));
    version.map(str::to_owned).ok_or_else(|| "Cargo.toml names no version of the workspace".into())
}

/// When the checkout was last changed, unless `SOURCE_DATE_EPOCH` says otherwise.
fn epoch() -> Result<u64, String> {
    if let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") {
        let text = text.to_string_lossy();
        return text
            .parse()
            .map_err(|_| format!("SOURCE_DATE_EPOCH={text} is no number of seconds"));
    }
    let git = output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()));
    // From a tarball: a day that never changes is as good as any.
    Ok(git.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1_750_000_000))
}

/// Runs a program and answers what it printed.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().map_err(|e| format!("cannot run {name}: {e}"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(format!("{name} ended with {}: {}", out.status, said.trim()));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn make_dir(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|e| format!("cannot make {}: {e}", path.display()))
}

fn remove_dir(path: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {e}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Builds, packs, checks, and where asked for measures.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let options = Options::parse(args)?;
    tools::provide(&options)?;
    let programs = build::programs(&options)?;
    let mut packed = Vec::new();
    for product in &PRODUCTS {
        let staged = stage::stage(product, &programs, &options)?;
        packed.push(pack::deb(product, &staged, &options)?);
        packed.push(pack::rpm(product, &staged, &options)?);
    }
    for path in &packed {
        let len = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.len();
        println!("{:>6.2} MiB  {}", mib(len), path.display());
    }
    if options.lint {
        pack::lint(&packed)?;
    }
    if options.report {
        report::report(&options, &programs, &packed)?;
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_a_packager_could_not_order_is_refused() {
        let parse = |v: &str| Options::parse(&["--version".into(), v.into()]);
        assert!(parse("0.1.0").is_ok());
        assert!(parse("0.2.0~rc1").is_ok());
        for wrong in ["0.1-1", "v1", "", "1.0 "] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(Options::parse(&["--frob".into()]).is_err());
        assert!(Options::parse(&["--out".into()]).is_err());
    }
}
