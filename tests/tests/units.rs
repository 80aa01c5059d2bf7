//! The service units: systemd understands them, they stay as hardened as was promised, and what they rely on
//! is what the programs do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use heartwatch_common::daemon::{EXIT_CONFIG, EXIT_USAGE};
use heartwatch_tests::world::skip;

/// The units, and the exposure level (0 best, 10 worst) that none of them may pass.
const UNITS: [(&str, f64); 2] =
    [("heartwatch-agent.service", 1.5), ("heartwatch-controller.service", 2.0)];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd")
}

fn text(unit: &str) -> String {
    let path = folder().join(unit);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All values of a key, in order; a unit may give one several times.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let line = |l: &'a str| l.split_once('=').filter(|(k, _)| *k == key).map(|(_, value)| value);
    unit.lines().filter_map(line).collect()
}

/// `systemd-analyze` where it can be had; says so loudly where not.
fn analyze(test: &str, args: &[&str], unit: &Path) -> Option<Output> {
    match Command::new("systemd-analyze").args(args).arg(unit).output() {
        Ok(output) => Some(output),
        Err(e) => {
            skip(test, &format!("systemd-analyze: {e}; apt-get install -y systemd"));
            None
        }
    }
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    let dir = tempfile::tempdir().unwrap();
    for (unit, _) in UNITS {
        // The programs are not installed where this runs, and their names are not what is tested.
        let path = dir.path().join(unit);
        let here = text(unit).replace("/usr/bin/heartwatch-", "/bin/true ");
        std::fs::write(&path, here).unwrap();
        let args = ["verify", "--man=no"];
        let Some(out) = analyze("systemd_understands_every_line", &args, &path) else { return };
        let said = String::from_utf8_lossy(&out.stderr);
        // Of other units of this machine it may complain as it likes.
        let ours: Vec<&str> = said.lines().filter(|l| l.contains("heartwatch")).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

#[test]
fn the_units_are_no_more_exposed_than_promised() {
    for (unit, most) in UNITS {
        let args = ["security", "--offline=true", "--no-pager"];
        let path = folder().join(unit);
        let Some(out) = analyze("the_units_are_no_more_exposed", &args, &path) else { return };
        let said = String::from_utf8_lossy(&out.stdout);
        let Some(after) = said.rsplit_once(": ").filter(|_| said.contains("exposure level")) else {
            let why = "this systemd-analyze knows no offline security review (250 does)";
            return skip("the_units_are_no_more_exposed", why);
        };
        let level: f64 = after.1.split_whitespace().next().unwrap().parse().unwrap();
        println!("{unit}: exposure {level}, at most {most}");
        assert!(level <= most, "{unit}: exposure {level}, at most {most} is promised:\n{said}");
    }
}

#[test]
fn what_no_restart_can_mend_is_not_restarted_and_everything_else_is() {
    for (unit, _) in UNITS {
        let text = text(unit);
        let codes = format!("{EXIT_USAGE} {EXIT_CONFIG}");
        assert_eq!(values(&text, "RestartPreventExitStatus"), [codes], "{unit}");
        assert_eq!(values(&text, "Restart"), ["always"], "{unit}");
        assert_eq!(values(&text, "StartLimitIntervalSec"), ["0"], "{unit} must never give up");
        assert_eq!(values(&text, "Type"), ["notify"], "{unit}");
        assert_eq!(values(&text, "WatchdogSec"), ["30s"], "{unit}");
    }
}

#[test]
fn each_unit_runs_as_a_user_that_its_package_makes_and_who_owns_its_folder() {
    for (unit, _) in UNITS {
        let text = text(unit);
        let name = unit.strip_suffix(".service").unwrap();
        assert_eq!(values(&text, "User"), [name]);
        assert_eq!(values(&text, "StateDirectory"), [name]);
        let users = self::text(&format!("{name}.sysusers.conf"));
        assert!(users.lines().any(|l| l.starts_with(&format!("u {name} "))), "{users}");
        let folders = self::text(&format!("{name}.tmpfiles.conf"));
        let line = format!("d /var/lib/{name} 0700 {name} {name} -");
        assert!(folders.lines().any(|l| l == line), "{folders}");
    }
}
