//! Every setting of the agent: its unit, default and bound.
//!
//! From weak to strong: the built-in default, the config file, the environment
//! (`HEARTWATCH_AGENT_…`), the command line. [`RawConfig`] is what was typed, [`AgentConfig`] is
//! what is true. `agent.example.toml` shows the file; a test holds it to the defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use heartwatch_common::config::{ConfigError, Span, bounded, check_path, load};
use heartwatch_common::id::{Boot, HostId};
use heartwatch_common::secret;
use serde::{Deserialize, Serialize};

use crate::core::Settings;
use crate::schedule::JITTER_MAX;
pub use endpoint::Endpoint;

mod endpoint;

/// Read when no other file is named; it may be missing.
pub const CONFIG_PATH: &str = "/etc/heartwatch/agent.toml";
/// A config file that shows every key with its default.
pub const EXAMPLE: &str = include_str!("../agent.example.toml");

/// An agent beats to at most this many controllers.
pub const CONTROLLERS_MAX: usize = 8;
/// No interval is set shorter.
pub const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// No interval is set longer.
pub const INTERVAL_MAX: Duration = Duration::from_secs(600);
/// Acks are asked for at least once every so many beats.
pub const ACK_EVERY_MAX: u16 = 600;
/// A host name has at most this many bytes.
pub const NAME_LEN_MAX: usize = 190;
/// A label's key has at most this many bytes.
pub const LABEL_KEY_LEN_MAX: usize = 63;
/// A label's value has at most this many bytes.
pub const LABEL_VALUE_LEN_MAX: usize = 190;

const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const INTERVAL_MIN_DEFAULT: Duration = Duration::from_millis(100);
const INTERVAL_MAX_DEFAULT: Duration = Duration::from_secs(60);
const JITTER_DEFAULT: f64 = 0.2;
const ACK_EVERY_DEFAULT: u16 = 10;
const STATE_DIR: &str = "/var/lib/heartwatch-agent";
const RUNTIME_DIR: &str = "/run/heartwatch-agent";

/// How much the agent tells about itself in its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what stops it from working.
    Error,
    /// Also what may need somebody's attention.
    Warn,
    /// Also starts, stops, and controllers that come and go.
    #[default]
    Info,
    /// Also what helps its developers.
    Debug,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

/// The config file, as typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    controllers: Option<Vec<String>>,
    key_file: Option<PathBuf>,
    join_token_file: Option<PathBuf>,
    enroll_url: Option<String>,
    machine_id_file: Option<PathBuf>,
    host_id: Option<HostId>,
    name: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    interval: Option<Span>,
    jitter: Option<f64>,
    interval_min: Option<Span>,
    interval_max: Option<Span>,
    ack_every: Option<u16>,
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    log_level: Option<LogLevel>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(format!("`{text}` is no label: write KEY=VALUE")),
    }
}

/// What the environment and the command line say; each setting overrides the config file.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Settings (each overrides the config file)")]
pub struct Overrides {
    /// Config file in TOML [default: /etc/heartwatch/agent.toml, may be missing]
    #[arg(long, global = true, value_name = "FILE", env = "HEARTWATCH_AGENT_CONFIG")]
    pub config: Option<PathBuf>,

    /// Controllers to beat to, as HOST or HOST:PORT, IPv6 in brackets; port 2328 if not given. For
    /// `enroll` one URL, https://HOST:PORT [default: those of the enrolment]
    #[arg(
        long = "controller",
        global = true,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        env = "HEARTWATCH_AGENT_CONTROLLERS"
    )]
    pub controllers: Option<Vec<String>>,

    /// File with this host's key [default: $CREDENTIALS_DIRECTORY/key, else STATE_DIR/key]
    #[arg(long, global = true, value_name = "FILE", env = "HEARTWATCH_AGENT_KEY_FILE")]
    pub key_file: Option<PathBuf>,

    /// This host's id, 32 hexadecimal digits [default: of its enrolment, else derived from /etc/machine-id]
    #[arg(long, global = true, value_name = "ID", env = "HEARTWATCH_AGENT_HOST_ID")]
    pub host_id: Option<HostId>,

    /// This host's name, for people [default: the system's host name]
    #[arg(long, global = true, value_name = "NAME", env = "HEARTWATCH_AGENT_NAME")]
    pub name: Option<String>,

    /// Label of this host, on top of those in the file; may repeat
    #[arg(
        long = "label",
        global = true,
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        value_parser = label,
        env = "HEARTWATCH_AGENT_LABELS"
    )]
    pub labels: Option<Vec<(String, String)>>,

    /// Time between beats when no controller assigns one, 20ms to 10m [default: 1s]
    #[arg(long, global = true, value_name = "TIME", env = "HEARTWATCH_AGENT_INTERVAL")]
    pub interval: Option<Span>,

    /// Share of the interval by which a gap may differ from it, 0 to 0.5 [default: 0.2]
    #[arg(long, global = true, value_name = "SHARE", env = "HEARTWATCH_AGENT_JITTER")]
    pub jitter: Option<f64>,

    /// Shortest interval that a controller may assign [default: 100ms, or the interval if shorter]
    #[arg(long, global = true, value_name = "TIME", env = "HEARTWATCH_AGENT_INTERVAL_MIN")]
    pub interval_min: Option<Span>,

    /// Longest interval that a controller may assign [default: 1m, or the interval if longer]
    #[arg(long, global = true, value_name = "TIME", env = "HEARTWATCH_AGENT_INTERVAL_MAX")]
    pub interval_max: Option<Span>,

    /// Ask for an ack every so many beats, 1 to 600 [default: 10]
    #[arg(long, global = true, value_name = "BEATS", env = "HEARTWATCH_AGENT_ACK_EVERY")]
    pub ack_every: Option<u16>,

    /// Folder for what must survive a restart [default: /var/lib/heartwatch-agent]
    #[arg(long, global = true, value_name = "DIR", env = "HEARTWATCH_AGENT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,

    /// Folder for the socket that `status` asks [default: /run/heartwatch-agent]
    #[arg(long, global = true, value_name = "DIR", env = "HEARTWATCH_AGENT_RUNTIME_DIR")]
    pub runtime_dir: Option<PathBuf>,

    /// How much to log [default: info]
    #[arg(long, global = true, value_name = "LEVEL", env = "HEARTWATCH_AGENT_LOG_LEVEL")]
    pub log_level: Option<LogLevel>,
}

/// The settings in force, all checked. Serialised, it is the effective config file; it holds no
/// secret.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentConfig {
    /// Where to beat to, 1 to [`CONTROLLERS_MAX`], none twice. May be empty here: see
    /// [`AgentConfig::check_controllers`].
    #[serde(serialize_with = "as_text")]
    pub controllers: Vec<Endpoint>,
    /// The file with this host's key; `None` = where [`crate::identity::key_path`] finds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// A join token that was left for this host, for its first start and for clones of it; `None` = systemd's
    /// credential of the name `join-token`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_token_file: Option<PathBuf>,
    /// Where to bring it: `https://HOST[:PORT]`; `None` = where this host enrolled before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enroll_url: Option<String>,
    /// Where this machine's id is, default `/etc/machine-id`.
    pub machine_id_file: PathBuf,
    /// This host's id; `None` = that of its enrolment, else derived from the machine id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    /// This host's name, at most [`NAME_LEN_MAX`] bytes; default: the system's host name.
    pub name: String,
    /// Time between beats without an assignment, [`INTERVAL_MIN`] to [`INTERVAL_MAX`], default 1 s.
    #[serde(serialize_with = "as_span")]
    pub interval: Duration,
    /// Share of the interval by which a gap may differ from it, 0 to 0.5, default 0.2.
    pub jitter: f64,
    /// Shortest interval that a controller may assign, default 100 ms or `interval` if shorter.
    #[serde(serialize_with = "as_span")]
    pub interval_min: Duration,
    /// Longest interval that a controller may assign, default 1 min or `interval` if longer.
    #[serde(serialize_with = "as_span")]
    pub interval_max: Duration,
    /// Every so manieth beat asks for an ack, 1 to [`ACK_EVERY_MAX`], default 10.
    pub ack_every: u16,
    /// What must survive a restart: boot number, key. Default `/var/lib/heartwatch-agent`.
    pub state_dir: PathBuf,
    /// The socket for `status`. Default `/run/heartwatch-agent`.
    pub runtime_dir: PathBuf,
    /// How much to log, default info.
    pub log_level: LogLevel,
    /// Labels, by which rules and failure domains are formed: keys of at most [`LABEL_KEY_LEN_MAX`]
    /// bytes, values of at most [`LABEL_VALUE_LEN_MAX`], no `=` in either. All must fit one hello.
    pub labels: BTreeMap<String, String>,
}

fn as_text<S: serde::Serializer>(list: &[Endpoint], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(list.iter().map(Endpoint::to_string))
}

fn as_span<S: serde::Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    Span(*d).serialize(s)
}

/// Reads the config file and lays `overrides` over it. `hostname` stands in for a missing name.
pub fn read(overrides: &Overrides, hostname: &str) -> Result<AgentConfig, ConfigError> {
    let raw = match &overrides.config {
        Some(path) => load(path)?,
        None => {
            let path = Path::new(CONFIG_PATH);
            match load(path) {
                Err(ConfigError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    RawConfig::default()
                }
                other => other?,
            }
        }
    };
    AgentConfig::new(raw, overrides, hostname)
}

fn text(key: &str, text: &str, len_max: usize) -> Result<(), ConfigError> {
    let wrong = |what: String| Err(ConfigError::value(key, what));
    if text.is_empty() {
        return wrong("must not be empty".to_owned());
    }
    if secret::is_in(text) {
        return wrong("it holds a secret, and is shown to others".to_owned());
    }
    if text.len() > len_max {
        return wrong(format!("`{text}` has {} bytes, at most {len_max} are allowed", text.len()));
    }
    if text.chars().any(char::is_control) {
        return wrong(format!("{text:?} holds a control character"));
    }
    Ok(())
}

/// Labels of the command line, each key once: of two values one would be dropped without a word.
fn once_each(typed: &[(String, String)]) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut labels = BTreeMap::new();
    for (key, value) in typed {
        if let Some(other) = labels.insert(key.clone(), value.clone()).filter(|o| o != value) {
            let text = format!("it cannot be both `{other}` and `{value}`: say one");
            return Err(ConfigError::value(&format!("labels.{key}"), text));
        }
    }
    Ok(labels)
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    for (key, value) in labels {
        let at = format!("labels.{key}");
        text(if key.is_empty() { "labels" } else { &at }, key, LABEL_KEY_LEN_MAX)?;
        text(&at, value, LABEL_VALUE_LEN_MAX)?;
        if key.contains('=') || value.contains('=') {
            return Err(ConfigError::value(&at, "neither key nor value may hold `=`"));
        }
    }
    Ok(())
}

fn check_controllers(list: &[String]) -> Result<Vec<Endpoint>, ConfigError> {
    let wrong = |what: String| Err(ConfigError::value("controllers", what));
    if list.len() > CONTROLLERS_MAX {
        return wrong(format!(
            "{} are too many, at most {CONTROLLERS_MAX} are allowed",
            list.len()
        ));
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(list.len());
    for text in list {
        let endpoint: Endpoint =
            text.trim().parse().map_err(|e: String| ConfigError::value("controllers", e))?;
        if endpoints.contains(&endpoint) {
            return wrong(format!("`{endpoint}` is there twice"));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

impl AgentConfig {
    /// Checks what the file and the overrides say together.
    fn new(raw: RawConfig, o: &Overrides, hostname: &str) -> Result<Self, ConfigError> {
        let wrong = |key: &str, what: String| Err(ConfigError::value(key, what));
        let interval = bounded(
            "interval",
            o.interval.or(raw.interval).unwrap_or(Span(INTERVAL_DEFAULT)),
            INTERVAL_MIN,
            INTERVAL_MAX,
        )?;
        let least = Span(INTERVAL_MIN_DEFAULT.min(interval));
        let least = o.interval_min.or(raw.interval_min).unwrap_or(least);
        let most = Span(INTERVAL_MAX_DEFAULT.max(interval));
        let most = o.interval_max.or(raw.interval_max).unwrap_or(most);
        let interval_min = bounded("interval_min", least, INTERVAL_MIN, interval)?;
        let interval_max = bounded("interval_max", most, interval, INTERVAL_MAX)?;

        let jitter = o.jitter.or(raw.jitter).unwrap_or(JITTER_DEFAULT);
        if !(0.0..=JITTER_MAX).contains(&jitter) {
            return wrong("jitter", format!("{jitter} is out of bounds, 0 to 0.5 are allowed"));
        }
        let ack_every = o.ack_every.or(raw.ack_every).unwrap_or(ACK_EVERY_DEFAULT);
        if !(1..=ACK_EVERY_MAX).contains(&ack_every) {
            let what = format!("{ack_every} is out of bounds, 1 to {ACK_EVERY_MAX} are allowed");
            return wrong("ack_every", what);
        }
        let given = o.name.clone().or(raw.name);
        if given.as_ref().is_some_and(|name| secret::is_in(name)) {
            return wrong("name", "it is a secret, and is shown to others".to_owned());
        }
        let name = given.unwrap_or_else(|| hostname.to_owned());
        text("name", &name, NAME_LEN_MAX)?;
        let mut labels = raw.labels.unwrap_or_default();
        labels.extend(once_each(o.labels.as_deref().unwrap_or_default())?);
        check_labels(&labels)?;
        let controllers = o.controllers.clone().or(raw.controllers).unwrap_or_default();
        if let Some(url) = &raw.enroll_url {
            let parsed: Result<crate::enrol::Url, String> = url.parse();
            parsed.map_err(|e| ConfigError::value("enroll_url", e))?;
        }
        let key_file = o.key_file.clone().or(raw.key_file);
        check_path("key_file", key_file.as_deref())?;
        check_path("state_dir", o.state_dir.as_deref().or(raw.state_dir.as_deref()))?;
        check_path("runtime_dir", o.runtime_dir.as_deref().or(raw.runtime_dir.as_deref()))?;
        let config = Self {
            controllers: check_controllers(&controllers)?,
            key_file,
            join_token_file: raw.join_token_file,
            enroll_url: raw.enroll_url,
            machine_id_file: raw
                .machine_id_file
                .unwrap_or_else(|| crate::identity::MACHINE_ID_PATH.into()),
            host_id: o.host_id.or(raw.host_id),
            name,
            interval,
            jitter,
            interval_min,
            interval_max,
            ack_every,
            state_dir: o.state_dir.clone().or(raw.state_dir).unwrap_or_else(|| STATE_DIR.into()),
            runtime_dir: o
                .runtime_dir
                .clone()
                .or(raw.runtime_dir)
                .unwrap_or_else(|| RUNTIME_DIR.into()),
            log_level: o.log_level.or(raw.log_level).unwrap_or_default(),
            labels,
        };
        config.check_hello()?;
        Ok(config)
    }

    /// Name and labels must fit one hello, whatever the key.
    fn check_hello(&self) -> Result<(), ConfigError> {
        let key = format!("hwk1:0:0:{}", "0".repeat(64));
        let key = key.parse().map_err(|e| ConfigError::value("key_file", format!("{e}")))?;
        self.settings(HostId([0; 16]), key, Boot(0), crate::identity::OS_LEN_WORST.to_owned())
            .check_hello()
            .map_err(|e| ConfigError::value("labels", e.to_string()))
    }

    /// Adds what this host's enrolment says, where the config says nothing; labels that it was given win, as
    /// they do at the controller.
    pub fn complete(&mut self, own: &crate::enrol::Enrolment) -> Result<(), ConfigError> {
        self.host_id = self.host_id.or(Some(own.host));
        if self.controllers.is_empty() {
            self.controllers = check_controllers(&own.controllers)?;
        }
        let before = self.labels.clone();
        self.labels.extend(own.labels.iter().map(|(k, v)| (k.clone(), v.clone())));
        if let Err(e) = self.check_hello() {
            // The controller knows them anyway.
            log::warn!("labels of the enrolment are not told by this host itself: {e}");
            self.labels = before;
        }
        Ok(())
    }

    /// There must be a controller before the agent can run.
    pub fn check_controllers(&self) -> Result<(), ConfigError> {
        if self.controllers.is_empty() {
            let what = "none is given: enrol this host, write `controllers = [\"HOST:2328\"]` into the config file, \
                        or give --controller HOST:2328";
            return Err(ConfigError::value("controllers", what));
        }
        Ok(())
    }

    /// What the protocol needs of this.
    pub fn settings(
        &self,
        host: HostId,
        key: heartwatch_common::auth::HostKey,
        boot: Boot,
        os: String,
    ) -> Settings {
        Settings {
            host,
            key,
            boot,
            interval: self.interval,
            jitter: self.jitter,
            interval_min: self.interval_min,
            interval_max: self.interval_max,
            ack_every: self.ack_every,
            name: self.name.clone(),
            os,
            labels: self.labels.clone(),
            controllers: self.controllers.len(),
        }
    }

    /// The effective settings as a config file. It holds no secret: the key stands in its own file.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::value("config", e.to_string()))
    }
}

#[cfg(test)]
mod tests;
