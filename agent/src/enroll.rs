//! `heartwatch-agent enroll`.

use std::path::{Path, PathBuf};

use heartwatch_agent::app::{AppError, Joined};
use heartwatch_agent::config::Overrides;
use heartwatch_agent::enrol::file::BROKEN_NAME;
use heartwatch_common::time::SystemClock;

/// Where systemd runs.
const SYSTEMD: &str = "/run/systemd/system";
/// The unit that packages bring.
const UNIT: &str = "heartwatch-agent.service";

/// Enrols this host, says as whom, and has the agent take it up.
pub(crate) fn enroll(
    mut overrides: Overrides,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    no_start: bool,
) -> anyhow::Result<()> {
    // For this verb it is a URL, not where to beat to.
    let given = overrides.controllers.take().unwrap_or_default();
    let joined = Joined::read_to_enrol(&overrides)?;
    let known = || joined.enrolment.as_ref().and_then(|e| e.url.clone());
    let url = match given.as_slice() {
        [one] => Some(one.clone()),
        [] => joined.config.enroll_url.clone().or_else(known),
        _ => anyhow::bail!("a host enrols at one controller: give --controller once"),
    };
    let Some(url) = url else {
        anyhow::bail!("say where: --controller https://CONTROLLER:2328");
    };
    let left = || joined.config.join_token_file.clone().or_else(credential);
    let Some(token_file) = token_file.or_else(left) else {
        anyhow::bail!(
            "a join token is needed: --token-file FILE (mode 600), or `--token-file -` and paste it; \
             `heartwatchctl token create` on the controller's machine makes one"
        );
    };
    let done = joined.enrol(&token_file, &url, ca, &SystemClock)?;
    let mut text = format!("enrolled as host {}", done.host);
    let labels: Vec<String> = done.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if !labels.is_empty() {
        text += &format!(", labels {}", labels.join(","));
    }
    text += &format!("\nkey and enrolment are in {}\n", joined.config.state_dir.display());
    let broken = joined.config.state_dir.join(BROKEN_NAME);
    if broken.exists() {
        text += &format!("the enrolment that could not be read is kept as {}\n", broken.display());
    }
    text += &start(&joined, &overrides, no_start)?;
    crate::print(&text)
}

fn credential() -> Option<PathBuf> {
    let file = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join("join-token");
    file.exists().then_some(file)
}

/// Has the agent that packages bring take the new identity up, where there is one.
fn start(joined: &Joined, overrides: &Overrides, no_start: bool) -> Result<String, AppError> {
    let packaged = overrides.config.is_none()
        && joined.config.state_dir == Path::new("/var/lib/heartwatch-agent")
        && Path::new("/usr/lib/systemd/system").join(UNIT).exists();
    let command = "systemctl restart heartwatch-agent";
    if no_start || !packaged || !nix::unistd::geteuid().is_root() {
        return Ok(format!("next: {command}, or `heartwatch-agent run` without systemd\n"));
    }
    if !Path::new(SYSTEMD).is_dir() {
        return Ok("no systemd runs here; next: heartwatch-agent run, as user heartwatch-agent\n"
            .to_owned());
    }
    let done = std::process::Command::new("systemctl").args(["restart", UNIT]).status();
    match done {
        Ok(status) if status.success() => {
            Ok("the agent beats now: heartwatch-agent status\n".to_owned())
        }
        Ok(status) => Ok(format!("could not start the agent ({status}); next: {command}\n")),
        Err(e) => Ok(format!("could not start the agent ({e}); next: {command}\n")),
    }
}
