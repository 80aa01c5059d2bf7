//! Measures what is promised of the packages, and tells it in one line of JSON, the last.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::build::Programs;
use super::{Options, make_dir, mib, output, remove_dir, tools, write};
use crate::machine::{cargo, root, target_dir};
use crate::run::{attached, timed};

/// How long the agent beats, ten times a second, before its memory is looked at.
const BEATS_FOR: Duration = Duration::from_secs(20);
/// Between two looks at whether the controller is there, of which there are at most [`LOOKS_MAX`].
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS_MAX: u32 = 300;

/// Prints the line.
pub(super) fn report(
    options: &Options,
    programs: &Programs,
    packed: &[PathBuf],
) -> Result<(), String> {
    let rss = agent_rss_kib(programs)?;
    println!("\nthe agent's memory after {} s of beats: {rss} KiB at most", BEATS_FOR.as_secs());
    let reproducible = reproducible(options, packed)?;
    let exposure = |name: &str| {
        exposure(name).map_or_else(|| "null".to_owned(), |level| format!("{level:.1}"))
    };
    let deb = packed.iter().find(|p| p.to_string_lossy().contains("heartwatch-agent_"));
    let deb = deb.ok_or("there is no .deb of the agent")?;
    let len = std::fs::metadata(deb).map_err(|e| format!("{}: {e}", deb.display()))?.len();
    let glibc = programs.linked("heartwatch-agent").map_or((0, 0), |linked| linked.glibc);
    println!(
        "{{\"package\":\"report\",\"agent_exposure\":{},\"controller_exposure\":{},\"agent_glibc\":\"{}.{}\",\
         \"agent_deb_mib\":{:.2},\"agent_rss_mib\":{:.2},\"reproducible\":{reproducible}}}",
        exposure("heartwatch-agent"),
        exposure("heartwatch-controller"),
        glibc.0,
        glibc.1,
        mib(len),
        mib(rss * 1024),
    );
    Ok(())
}

/// What `systemd-analyze security` says of a unit; `None` where it can't be had.
fn exposure(name: &str) -> Option<f64> {
    let unit = root().join("packaging/systemd").join(format!("{name}.service"));
    let mut analyze = Command::new("systemd-analyze");
    let said = output(analyze.args(["security", "--offline=true", "--no-pager"]).arg(unit)).ok()?;
    level(&said)
}

fn level(said: &str) -> Option<f64> {
    let line = said.lines().find(|l| l.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split_whitespace().next()?.parse().ok()
}

/// A program that is ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which whoever waits for it has noticed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(program: &Path, args: &[&str], log: &Path) -> Result<Running, String> {
    let name = program.display();
    let log = std::fs::File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().map(Running).map_err(|e| format!("cannot run {name}: {e}"))
}

#[expect(clippy::disallowed_methods, reason = "what is measured here is how real time passes")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// The most memory that an agent had while it beat to a controller, in KiB.
fn agent_rss_kib(programs: &Programs) -> Result<u64, String> {
    let dir = target_dir().join("package-rss");
    remove_dir(&dir)?;
    make_dir(&dir)?;
    let here = dir.display();
    let config = dir.join("controller.toml");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\napi_listen = \"127.0.0.1:0\"\nstate_dir = \"{here}/controller\"\n"
    );
    write(&config, &text)?;
    let config = config.to_string_lossy().into_owned();
    make_dir(&dir.join("controller"))?;
    let controller = programs.path("heartwatch-controller");
    let _controller =
        start(&controller, &["run", "--config", &config], &dir.join("controller.log"))?;
    let address = (0..LOOKS_MAX)
        .find_map(|_| {
            pause(LOOK_EVERY);
            listens_on(&std::fs::read_to_string(dir.join("controller/runtime.json")).ok()?)
        })
        .ok_or_else(|| format!("the controller did not start: {here}/controller.log"))?;
    let host = "000102030405060708090a0b0c0d0e0f";
    let mut key = Command::new(programs.path("heartwatchctl"));
    let key = output(key.args(["--config", &config, "key", host]))?;
    write(&dir.join("key"), &key)?;
    output(Command::new("chmod").arg("0600").arg(dir.join("key")))?;
    let config = dir.join("agent.toml");
    let text = format!(
        "controllers = [\"{address}\"]\nkey_file = \"{here}/key\"\nhost_id = \"{host}\"\ninterval = \"100ms\"\n\
         state_dir = \"{here}/agent\"\nruntime_dir = \"{here}/agent\"\n"
    );
    write(&config, &text)?;
    let config = config.to_string_lossy().into_owned();
    let log = dir.join("agent.log");
    let agent = start(&programs.path("heartwatch-agent"), &["run", "--config", &config], &log)?;
    pause(BEATS_FOR);
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    if !said.contains(" answers") {
        return Err(format!("no controller answered the agent: {}", log.display()));
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.0.id()));
    let status = status.map_err(|e| format!("the agent is gone: {e}; {}", log.display()))?;
    most_memory(&status).ok_or_else(|| "the kernel does not tell VmHWM".to_owned())
}

/// The first address in the file that a controller leaves about itself.
fn listens_on(runtime: &str) -> Option<String> {
    let rest = runtime.split_once("\"listen\":[\"")?.1;
    Some(rest.split_once('"')?.0.to_owned())
}

fn most_memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether another checkout in another folder, built there from nothing, gives the same bytes.
fn reproducible(options: &Options, packed: &[PathBuf]) -> Result<bool, String> {
    let copy = target_dir().join("package-again/heartwatch");
    let out = target_dir().join("package-again/packages");
    println!("\nbuilding all of it once more, in {}…", copy.display());
    remove_dir(&copy)?;
    remove_dir(&out)?;
    make_dir(&copy)?;
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let files = output(Command::new("git").args(list).current_dir(root()))?;
    for name in files.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root().join(name), copy.join(name));
        // Deleted, but not yet in a commit.
        if !from.exists() {
            continue;
        }
        make_dir(to.parent().unwrap_or(&copy))?;
        output(Command::new("cp").arg("-a").args([&from, &to]))?;
    }
    let mut again = cargo();
    again
        .args(["run", "--quiet", "--package", "xtask", "--", "package", "--no-lint"])
        .args(["--profile", &options.profile, "--version", &options.version, "--out"])
        .arg(&out)
        .current_dir(&copy)
        .env_remove("CARGO_TARGET_DIR")
        .env(tools::DIR_VAR, tools::dir())
        .env("SOURCE_DATE_EPOCH", options.epoch.to_string());
    let (built, took) = timed(|| attached(&mut again));
    built?;
    let mut same = true;
    for path in packed {
        let read = |p: &Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
        let other = out.join(path.file_name().unwrap_or_default());
        let equal = read(path)? == read(&other)?;
        let verdict = if equal { "the same bytes" } else { "DIFFERENT bytes" };
        println!("{verdict}: {} and {}", path.display(), other.display());
        same &= equal;
    }
    println!("built again in {:.0} s", took.as_secs_f64());
    Ok(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_others_say() {
        let said = "✓ x 0.1\n\n→ Overall exposure level for heartwatch-agent.service: 1.2 OK 🙂\n";
        assert_eq!(level(said), Some(1.2));
        assert_eq!(level("Unknown verb"), None);
        assert_eq!(most_memory("VmPeak:\t 9 kB\nVmHWM:\t    4321 kB\n"), Some(4321));
        let runtime = "{\"pid\":1,\"listen\":[\"127.0.0.1:4711\"],\"api\":\"127.0.0.1:1\"}";
        assert_eq!(listens_on(runtime).as_deref(), Some("127.0.0.1:4711"));
        assert_eq!(listens_on("{}"), None);
    }
}
