//! Commands that work on this machine's files: host keys, fleet secrets, restoring a backup.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use heartwatch_common::auth::{FleetSecret, Keyring, load_secret};
use heartwatch_common::id::{Generation, HostId, KeyId};
use rand::TryRng;
use serde_json::json;
use zeroize::Zeroizing;

use super::args::Global;
use super::text::clean;
use super::{CtlError, chain};
use crate::config::{Config, RawConfig};
use crate::store::sqlite::{KeyStanding, standings};

/// Where packages put the controller's settings.
const CONFIG_DEFAULT: &str = "/etc/heartwatch/controller.toml";

/// The controller's config file: the one that is named, or the default one if it exists.
pub(super) fn config_file(global: &Global) -> Option<PathBuf> {
    let default = PathBuf::from(CONFIG_DEFAULT);
    global.config.clone().or_else(|| default.exists().then_some(default))
}

/// The controller's settings; without a file, its defaults.
pub(super) fn config(global: &Global) -> Result<Config, CtlError> {
    let path = config_file(global);
    let raw = RawConfig::load(path.as_deref());
    raw.and_then(|raw| raw.check()).map_err(|e| CtlError::Config(chain(&e)))
}

/// `key`
pub(super) fn key(
    global: &Global,
    host: HostId,
    generation: Option<u16>,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let config = config(global)?;
    let file = &config.fleet_secret_file;
    let ring: Keyring = load_secret(file).map_err(|e| {
        CtlError::Config(format!(
            "{}; keys are made where the controller's fleet secret is: run this there as root or as the \
             controller's user, or say --config",
            chain(&e)
        ))
    })?;
    let generation = generations(&config.state_dir, &[host], generation)?[0];
    let key = ring.current().host_key(host, Generation(generation)).to_text();
    if global.json {
        writeln!(out, "{}", json!({"host": host, "generation": generation, "key": *key}))?;
    } else {
        writeln!(out, "{}", *key)?;
    }
    Ok(())
}

/// The generation of each host's next key: the one that is asked for, else the least that is accepted.
///
/// # Errors
/// A host is revoked, or its key would be dead.
pub(super) fn generations(
    state_dir: &Path,
    hosts: &[HostId],
    asked: Option<u16>,
) -> Result<Vec<u16>, CtlError> {
    let standings = match standings(state_dir, hosts) {
        Ok(standings) => standings,
        Err(e) => {
            let line = format!(
                "warning: the store in {} cannot be read ({}), so it is not known whether a host is revoked\n",
                state_dir.display(),
                chain(&e)
            );
            drop(std::io::stderr().write_all(line.as_bytes()));
            vec![KeyStanding::default(); hosts.len()]
        }
    };
    let one = |(host, standing): (&HostId, &KeyStanding)| {
        if let Some((at, reason)) = &standing.revoked {
            return Err(CtlError::Failed(format!(
                "host {host} was revoked at {at}: {}. A key of it would be worth nothing; if it may come back, say \
                 `heartwatchctl hosts revoke {host} --lift` first",
                clean(reason)
            )));
        }
        let least = standing.least.0;
        match asked {
            Some(generation) if generation < least => Err(CtlError::Usage(format!(
                "keys of host {host} below generation {least} are believed no more: leave --generation out"
            ))),
            generation => Ok(generation.unwrap_or(least)),
        }
    };
    hosts.iter().zip(&standings).map(one).collect()
}

/// `secret new`
pub(super) fn new_secret(global: &Global, id: u8, out: &mut dyn Write) -> Result<(), CtlError> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::rngs::SysRng
        .try_fill_bytes(&mut *bytes)
        .map_err(|e| CtlError::Failed(format!("the system gives no randomness: {e}")))?;
    let secret = FleetSecret::new(KeyId(id), *bytes).to_text();
    if global.json {
        writeln!(out, "{}", json!({"key_id": id, "secret": *secret}))?;
    } else {
        writeln!(out, "{}", *secret)?;
    }
    Ok(())
}

/// `restore`
pub(super) fn restore(
    global: &Global,
    backup: &Path,
    state_dir: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let state_dir = match state_dir {
        Some(dir) => dir.to_owned(),
        None => config(global)?.state_dir,
    };
    let shown = state_dir.display();
    let meta = std::fs::metadata(&state_dir)
        .map_err(|e| CtlError::Config(format!("the state directory {shown}: {e}")))?;
    let uid = nix::unistd::geteuid().as_raw();
    // Files of another user would keep the controller from its own store.
    if meta.uid() != uid {
        return Err(CtlError::Failed(format!(
            "{shown} belongs to user {owner}, and so must what is restored into it: run \
             `sudo -u '#{owner}' heartwatchctl restore …`",
            owner = meta.uid()
        )));
    }
    crate::store::sqlite::restore(backup, &state_dir)
        .map_err(|e| CtlError::Failed(format!("{}; is the controller stopped?", chain(&e))))?;
    if global.json {
        writeln!(out, "{}", json!({"restored": backup, "state_dir": state_dir}))?;
    } else {
        writeln!(out, "{} is the store in {shown} again.", backup.display())?;
        writeln!(out, "Fencing tokens go on above every earlier one. Start the controller now.")?;
    }
    Ok(())
}
