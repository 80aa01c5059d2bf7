//! `heartwatch-agent enroll`.

use std::path::{Path, PathBuf};

use heartwatch_agent::app::{AppError, Joined};
use heartwatch_agent::config::{self, Overrides};
use heartwatch_agent::enrol::file::BROKEN_NAME;
use heartwatch_agent::identity;
use heartwatch_common::id::HostId;
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
    let before = joined.own().map(|own| own.host);
    let done = joined.enrol(&token_file, &url, ca, &SystemClock)?;
    let mut text = format!("enrolled as host {}", done.host);
    let labels: Vec<String> = done.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if !labels.is_empty() {
        text += &format!(", labels {}", labels.join(","));
    }
    text += &format!("\nkey and enrolment are in {}\n", joined.config.state_dir.display());
    text += &changed(before, overrides.host_id, done.host);
    text += &not_kept(&overrides)?;
    let broken = joined.config.state_dir.join(BROKEN_NAME);
    if broken.exists() {
        text += &format!("the enrolment that could not be read is kept as {}\n", broken.display());
    }
    text += &start(&joined, &overrides, no_start)?;
    crate::print(&text)
}

/// What became of the identity that this host had before, and of the one that was asked for.
fn changed(before: Option<HostId>, asked: Option<HostId>, now: HostId) -> String {
    let mut text = String::new();
    if let Some(asked) = asked.filter(|asked| *asked != now) {
        text +=
            &format!("the controller did not give it the id {asked}, which is another host's\n");
    }
    match before {
        Some(before) if before != now => {
            text += &format!(
                "it was host {before} before, which falls silent now and will be called down: if that one is gone for \
                 good, say `heartwatchctl forget {before}` on the controller's machine\n"
            );
        }
        _ => {}
    }
    text
}

/// Settings of the command line that an enrolment does not keep: the agent that runs later has its own.
fn not_kept(overrides: &Overrides) -> Result<String, AppError> {
    let plain = Overrides { name: None, labels: None, ..overrides.clone() };
    let later = config::read(&plain, &identity::hostname())?;
    let file = overrides.config.as_deref().unwrap_or(Path::new(config::CONFIG_PATH)).display();
    let mut text = String::new();
    if let Some(name) = overrides.name.as_ref().filter(|name| **name != later.name) {
        text += &format!(
            "the name {name:?} is not kept: it will call itself {:?}; write `name = {name:?}` into {file} to change that\n",
            later.name
        );
    }
    for (key, value) in overrides.labels.iter().flatten() {
        if later.labels.get(key) != Some(value) {
            text += &format!(
                "the label {key}={value} is not kept: write it into {file} under [labels], or have the join token give \
                 it (`heartwatchctl token create --labels`)\n"
            );
        }
    }
    Ok(text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_enrols_again_hears_what_is_kept_and_what_is_not() {
        let (old, new) = (HostId([1; 16]), HostId([2; 16]));
        assert_eq!(changed(None, None, new), "");
        assert_eq!(changed(Some(new), Some(new), new), "");
        let moved = changed(Some(old), Some(new), new);
        assert!(moved.contains(&format!("heartwatchctl forget {old}")), "{moved}");
        assert!(changed(Some(old), Some(new), old).contains("did not give it"));

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, "name = \"web-1\"\n[labels]\nrack = \"7\"\n").unwrap();
        let with = |name: &str, rack: &str| Overrides {
            config: Some(file.clone()),
            name: Some(name.to_owned()),
            labels: Some(vec![("rack".to_owned(), rack.to_owned())]),
            ..Overrides::default()
        };
        assert_eq!(not_kept(&with("web-1", "7")).unwrap(), "");
        let told = not_kept(&with("web-2", "8")).unwrap();
        assert!(
            told.contains("call itself \"web-1\"") && told.contains("name = \"web-2\""),
            "{told}"
        );
        assert!(told.contains("rack=8") && told.contains("agent.toml"), "{told}");
    }
}
