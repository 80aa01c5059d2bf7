//! Who is told: webhooks in several forms of body, and commands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span, bounded};
use heartwatch_common::secret;
use serde::{Deserialize, Serialize};

use super::{DAY, HOUR, PerSecond, ms, secs};
use crate::event::EventKind;

/// How a receiver is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawKind {
    /// By HTTP.
    #[default]
    Webhook,
    /// By running a command on the controller's machine.
    Exec,
}

/// What a webhook's body looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawFormat {
    /// Heartwatch's own: `controller/docs/event.schema.json`.
    #[default]
    Native,
    /// Prometheus Alertmanager's API v2.
    Alertmanager,
    /// OpenStack Masakari's notification of a compute host.
    Masakari,
    /// As a template file says.
    Template,
}

/// Who is told, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawReceiver {
    /// `webhook` or `exec`. Default: webhook.
    #[serde(default)]
    pub kind: RawKind,
    /// What a webhook's body looks like: `native`, `alertmanager`, `masakari` or `template`. Default:
    /// native.
    #[serde(default)]
    pub format: RawFormat,
    /// Where to send: http:// or https://. Of `alertmanager` and `masakari` the base, to which
    /// `/api/v2/alerts` or `/notifications` is added; of `template` what the template calls `url`, and not
    /// needed if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Of `native`: wrap each event in a CloudEvents 1.0 envelope (structured JSON). Default: false.
    #[serde(default)]
    pub cloudevents: bool,
    /// Of `alertmanager`: how often what goes on is said again, 10s to 1h; an alert that is not said again
    /// for four times as long ends by itself. Default: 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resend_every: Option<Span>,
    /// Of `alertmanager`: where people find this controller's API; alerts link to it. Default: no link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator_url: Option<String>,
    /// Of `template`: its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_file: Option<PathBuf>,
    /// Of `template`: hosts that its URLs may name, such as `"*.bmc.example"`. Default: only the one that
    /// they name whatever the event is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_hosts: Vec<String>,
    /// Of `exec`: the program, by its absolute path, and its arguments. No shell is between.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Signing secrets as Standard Webhooks writes them (`whsec_` and base64, 24 to 64 bytes), one a
    /// line, at most two, mode 0600; every live one signs. Without a file nothing is signed, and the
    /// controller says so at start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Bearer token to send, mode 0600; read again for every attempt, so that it may be renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_token_file: Option<PathBuf>,
    /// Certificate chain (PEM) by which the controller shows who it is, with `client_key_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// Its private key (PEM), mode 0600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
    /// Authorities (PEM) that are trusted beside the system's. No one but its owner may write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Time to connect, 100ms to 1m. Default: 3s.
    #[serde(default = "default::connect_timeout")]
    pub connect_timeout: Span,
    /// Time from the start of an attempt until the answer begins, 100ms to 5m. Default: 10s.
    #[serde(default = "default::first_byte_timeout")]
    pub first_byte_timeout: Span,
    /// Time for the whole attempt, 100ms to 5m; of `exec` the command's. Default: 15s.
    #[serde(default = "default::timeout")]
    pub timeout: Span,
    /// Attempts under way at once, 1 to 1000. Default: 16.
    #[serde(default = "default::concurrency")]
    pub concurrency: u16,
    /// Deliveries in one request, 1 to 100, of `native` and `alertmanager`. Above 1 a native body is an
    /// array, also of one. Default: 1.
    #[serde(default = "default::max_batch")]
    pub max_batch: u16,
    /// Most requests per second in the long run, "0/s" to "100000/s"; "0/s" sets no limit. Default: "0/s".
    #[serde(default = "default::rate")]
    pub rate: PerSecond,
    /// Requests that may be made at once after a rest, while `rate` limits them, 1 to 10000. Default: 10.
    #[serde(default = "default::burst")]
    pub burst: u32,
    /// Bound of the first wait between attempts, 10ms to 1m; it doubles. Default: 1s.
    #[serde(default = "default::retry_base")]
    pub retry_base: Span,
    /// Bound of any wait, 1s to 1h. Default: 5m.
    #[serde(default = "default::retry_cap")]
    pub retry_cap: Span,
    /// Time waited in all before a delivery becomes a dead letter, 1m to 30d. Default: 25h.
    #[serde(default = "default::give_up_after")]
    pub give_up_after: Span,
    /// Of `template`: what it calls `vars.NAME`, beside those that its own file sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vars: BTreeMap<String, String>,
    /// Of `template`: files, mode 0600, whose content it calls `secrets.NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, PathBuf>,
}

mod default {
    use super::{HOUR, PerSecond, Span, secs};

    pub(super) const fn connect_timeout() -> Span {
        secs(3)
    }
    pub(super) const fn first_byte_timeout() -> Span {
        secs(10)
    }
    pub(super) const fn timeout() -> Span {
        secs(15)
    }
    pub(super) const fn concurrency() -> u16 {
        16
    }
    pub(super) const fn max_batch() -> u16 {
        1
    }
    pub(super) const fn rate() -> PerSecond {
        PerSecond(0)
    }
    pub(super) const fn burst() -> u32 {
        10
    }
    pub(super) const fn retry_base() -> Span {
        secs(1)
    }
    pub(super) const fn retry_cap() -> Span {
        secs(300)
    }
    pub(super) const fn give_up_after() -> Span {
        secs(25 * HOUR)
    }
    /// Of the format that has it: the others refuse it, so it cannot be filled in at once.
    pub(super) const fn resend_every() -> Span {
        secs(60)
    }
}

/// How a receiver is told, with what only that way has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A webhook with Heartwatch's own body.
    Native {
        /// See [`RawReceiver::cloudevents`].
        cloudevents: bool,
    },
    /// A push to Alertmanager.
    Alertmanager {
        /// See [`RawReceiver::resend_every`].
        resend_every: Duration,
        /// See [`RawReceiver::generator_url`].
        generator_url: Option<String>,
    },
    /// A notification to Masakari.
    Masakari,
    /// A request as a template says.
    Template(TemplateConfig),
    /// A command.
    Exec {
        /// See [`RawReceiver::command`]; never empty.
        command: Vec<String>,
    },
}

/// See [`RawReceiver`], field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is documented in RawReceiver under the same name")]
pub struct TemplateConfig {
    pub template_file: PathBuf,
    pub allow_hosts: Vec<String>,
    pub vars: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, PathBuf>,
}

impl Kind {
    /// Whether events of this kind can be told so; `Err` says why not. What a template can tell is found by
    /// rendering it: `delivery::target::inspect`.
    pub fn has_word_for(&self, event: EventKind) -> Result<(), String> {
        let (name, known): (_, fn(EventKind) -> bool) = match self {
            Self::Alertmanager { .. } => {
                ("alertmanager", crate::delivery::format::alertmanager::knows)
            }
            Self::Masakari => ("masakari", crate::delivery::format::masakari::knows),
            Self::Native { .. } | Self::Template(_) | Self::Exec { .. } => return Ok(()),
        };
        if known(event) {
            return Ok(());
        }
        let others = EventKind::ALL.into_iter().filter(|k| known(*k)).map(|k| k.as_str());
        let others: Vec<_> = others.collect();
        Err(format!("the format {name} has no word for {event}, only for {}", others.join(", ")))
    }

    /// As it stands in lists for people.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Native { cloudevents: false } => "native",
            Self::Native { cloudevents: true } => "cloudevents",
            Self::Alertmanager { .. } => "alertmanager",
            Self::Masakari => "masakari",
            Self::Template(_) => "template",
            Self::Exec { .. } => "exec",
        }
    }
}

/// See [`RawReceiver`], field by field.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented in RawReceiver under the same name")]
pub struct Receiver {
    pub name: String,
    pub kind: Kind,
    /// Empty if it has none: a command, or a template that names its own.
    pub url: String,
    pub secret_file: Option<PathBuf>,
    pub bearer_token_file: Option<PathBuf>,
    /// Certificate chain and key.
    pub client_files: Option<(PathBuf, PathBuf)>,
    pub ca_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub timeout: Duration,
    pub concurrency: u16,
    pub max_batch: u16,
    /// Requests per second; 0: no limit.
    pub rate: u64,
    pub burst: u32,
    pub retry_base: Duration,
    pub retry_cap: Duration,
    pub give_up_after: Duration,
}

impl Receiver {
    /// Whether its receiver can be expected to check a signature: a webhook, but not one of a product that
    /// has its own ways.
    pub fn should_sign(&self) -> bool {
        matches!(self.kind, Kind::Native { .. })
    }

    /// A webhook with the defaults, for tests.
    #[cfg(test)]
    pub(crate) fn sample(name: &str, lines: &str) -> Self {
        let raw: RawReceiver = toml::from_str(lines).unwrap();
        raw.check(name).unwrap()
    }
}

impl RawReceiver {
    /// The receiver on the controller's own API: it is there, or it is not worth waiting for.
    pub(crate) fn own(url: String, secret_file: PathBuf) -> Self {
        let minimal = "retry_base = \"100ms\"\nretry_cap = \"1s\"\ngive_up_after = \"1m\"";
        let raw: Self = toml::from_str(minimal).expect("a test reads it");
        Self { url: Some(url), secret_file: Some(secret_file), ..raw }
    }

    /// Checked already: this one is ours.
    pub(crate) fn into_receiver(self, name: &str) -> Receiver {
        self.check(name).expect("a test checks it")
    }

    /// Fills in what is filled in only when its format is known.
    pub(super) fn fill(&mut self) {
        self.resend_every.get_or_insert(default::resend_every());
    }

    pub(super) fn check(&self, name: &str) -> Result<Receiver, ConfigError> {
        let key = |field: &str| format!("receivers.{name}.{field}");
        let refuse = |field: &str, message: &str| Err(ConfigError::value(&key(field), message));
        if secret::is_no_name(name) {
            let what = "a receiver's name is a secret itself: put that into a file, and name it by `secret_file`";
            return Err(ConfigError::value("receivers", what));
        }
        let usable = !name.is_empty()
            && name.len() <= 63
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !usable {
            return Err(ConfigError::value(
                &format!("receivers.{name}"),
                "a receiver's name has 1 to 63 letters, digits, `-`, `_` or `.`",
            ));
        }
        self.check_strangers(&key)?;
        let kind = self.check_kind(&key)?;
        let url = self.check_url(&key)?;
        if !(1..=1000).contains(&self.concurrency) {
            return refuse("concurrency", "1 to 1000 are allowed");
        }
        if !(1..=100).contains(&self.max_batch) {
            return refuse("max_batch", "1 to 100 are allowed");
        }
        if self.max_batch > 1 && !matches!(kind, Kind::Native { .. } | Kind::Alertmanager { .. }) {
            return refuse("max_batch", "only the formats native and alertmanager take arrays");
        }
        if self.rate.0 > 100_000 {
            return refuse("rate", "\"0/s\" (no limit) to \"100000/s\" are allowed");
        }
        if !(1..=10_000).contains(&self.burst) {
            return refuse("burst", "1 to 10000 are allowed");
        }
        let client_files = match (&self.client_cert_file, &self.client_key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return refuse("client_key_file", "client_cert_file needs its key"),
            (None, Some(_)) => {
                return refuse("client_cert_file", "client_key_file needs its certificate");
            }
        };
        let b = |field: &str, span: Span, min: Span, max: Span| {
            bounded(&key(field), span, min.0, max.0)
        };
        Ok(Receiver {
            name: name.to_owned(),
            kind,
            url,
            secret_file: self.secret_file.clone(),
            bearer_token_file: self.bearer_token_file.clone(),
            client_files,
            ca_file: self.ca_file.clone(),
            connect_timeout: b("connect_timeout", self.connect_timeout, ms(100), secs(60))?,
            first_byte_timeout: b(
                "first_byte_timeout",
                self.first_byte_timeout,
                ms(100),
                secs(300),
            )?,
            timeout: b("timeout", self.timeout, ms(100), secs(300))?,
            concurrency: self.concurrency,
            max_batch: self.max_batch,
            rate: self.rate.0,
            burst: self.burst,
            retry_base: b("retry_base", self.retry_base, ms(10), secs(60))?,
            retry_cap: b("retry_cap", self.retry_cap, secs(1), secs(HOUR))?,
            give_up_after: b("give_up_after", self.give_up_after, secs(60), secs(30 * DAY))?,
        })
    }

    /// Settings of another kind or format would do nothing: whoever wrote one meant something.
    fn check_strangers(&self, key: &impl Fn(&str) -> String) -> Result<(), ConfigError> {
        let exec = self.kind == RawKind::Exec;
        let format = |f| !exec && self.format == f;
        let template = format(RawFormat::Template);
        let alertmanager = format(RawFormat::Alertmanager);
        let http = ["url", "secret_file", "bearer_token_file", "client_cert_file", "ca_file"];
        let set = [
            self.url.is_some(),
            self.secret_file.is_some(),
            self.bearer_token_file.is_some(),
            self.client_cert_file.is_some() || self.client_key_file.is_some(),
            self.ca_file.is_some(),
        ];
        let strange = http.into_iter().zip(set).map(|(field, set)| (field, set && exec, "webhook"));
        let others = [
            ("format", exec && self.format != RawFormat::Native, "webhook"),
            ("command", !exec && !self.command.is_empty(), "exec"),
            ("cloudevents", !format(RawFormat::Native) && self.cloudevents, "native"),
            ("resend_every", !alertmanager && self.resend_every.is_some(), "alertmanager"),
            ("generator_url", !alertmanager && self.generator_url.is_some(), "alertmanager"),
            ("template_file", !template && self.template_file.is_some(), "template"),
            ("allow_hosts", !template && !self.allow_hosts.is_empty(), "template"),
            ("vars", !template && !self.vars.is_empty(), "template"),
            ("secrets", !template && !self.secrets.is_empty(), "template"),
        ];
        match strange.chain(others).find(|(_, strange, _)| *strange) {
            Some((field, _, of)) => {
                let message = format!("it is of receivers of kind or format `{of}` only");
                Err(ConfigError::value(&key(field), message))
            }
            None => Ok(()),
        }
    }

    fn check_kind(&self, key: &impl Fn(&str) -> String) -> Result<Kind, ConfigError> {
        let refuse = |field: &str, message: &str| Err(ConfigError::value(&key(field), message));
        if self.kind == RawKind::Exec {
            if !self.command.first().is_some_and(|program| program.starts_with('/')) {
                return refuse(
                    "command",
                    "the program's absolute path and its arguments are needed",
                );
            }
            if self.command.iter().any(|word| word.contains('\0')) {
                return refuse("command", "no word may hold a NUL");
            }
            return Ok(Kind::Exec { command: self.command.clone() });
        }
        Ok(match self.format {
            RawFormat::Native => Kind::Native { cloudevents: self.cloudevents },
            RawFormat::Alertmanager => {
                let every = self.resend_every.unwrap_or(default::resend_every());
                if self.generator_url.as_ref().is_some_and(|url| !is_http(url)) {
                    return refuse("generator_url", "an http:// or https:// URL is needed");
                }
                Kind::Alertmanager {
                    resend_every: bounded(&key("resend_every"), every, secs(10).0, secs(HOUR).0)?,
                    generator_url: self.generator_url.clone(),
                }
            }
            RawFormat::Masakari => Kind::Masakari,
            RawFormat::Template => {
                let Some(file) = &self.template_file else {
                    return refuse("template_file", "the format template needs a file");
                };
                let bad = |pattern: &String| {
                    let name = pattern.strip_prefix("*.").unwrap_or(pattern);
                    name.is_empty() || name.contains(['*', '/', ':', '@'])
                };
                if self.allow_hosts.iter().any(bad) {
                    let message = "write host names, or `*.` and a domain, without port";
                    return refuse("allow_hosts", message);
                }
                Kind::Template(TemplateConfig {
                    template_file: file.clone(),
                    allow_hosts: self.allow_hosts.clone(),
                    vars: self.vars.clone(),
                    secrets: self.secrets.clone(),
                })
            }
        })
    }

    fn check_url(&self, key: &impl Fn(&str) -> String) -> Result<String, ConfigError> {
        match &self.url {
            Some(url) if is_http(url) => Ok(url.clone()),
            None if self.kind == RawKind::Exec || self.format == RawFormat::Template => {
                Ok(String::new())
            }
            _ => Err(ConfigError::value(&key("url"), "an http:// or https:// URL is needed")),
        }
    }
}

fn is_http(url: &str) -> bool {
    reqwest::Url::parse(url)
        .is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.host().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Receiver, String> {
        let raw: RawReceiver = toml::from_str(text).map_err(|e| e.to_string())?;
        raw.check("r").map_err(|e| e.to_string())
    }

    #[test]
    fn a_secret_is_no_receivers_name() {
        let raw: RawReceiver = toml::from_str("url = \"http://a/\"").unwrap();
        for name in ["whsec_C2FVsBQIhrscChlQIMV", &"00ff".repeat(16)] {
            let error = raw.check(name).unwrap_err().to_string();
            assert!(error.contains("secret") && !error.contains(name), "{error}");
        }
    }

    #[test]
    fn each_kind_is_accepted_with_little() {
        let good = [
            "url = \"https://a/\"",
            "url = \"https://a/\"\ncloudevents = true\nmax_batch = 100\nrate = \"5/s\"\nburst = 1",
            "format = \"alertmanager\"\nurl = \"http://a:9093\"\nresend_every = \"10s\"",
            "format = \"masakari\"\nurl = \"http://a/v1\"",
            "format = \"template\"\ntemplate_file = \"/t\"\nallow_hosts = [\"*.bmc\", \"a\"]",
            "kind = \"exec\"\ncommand = [\"/bin/true\"]",
        ];
        for text in good {
            check(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
    }

    #[test]
    fn what_cannot_be_or_would_do_nothing_is_refused_by_its_key() {
        let url = "url = \"https://a/\"\n";
        let bad = [
            ("", "receivers.r.url"),
            ("kind = \"exec\"", "command"),
            ("kind = \"exec\"\ncommand = [\"true\"]", "absolute"),
            ("kind = \"exec\"\ncommand = [\"/bin/true\"]\nurl = \"http://a/\"", "receivers.r.url"),
            ("kind = \"exec\"\ncommand = [\"/bin/true\"]\nmax_batch = 2", "max_batch"),
            (&format!("{url}command = [\"/bin/true\"]"), "command"),
            (&format!("{url}resend_every = \"1m\""), "resend_every"),
            (&format!("{url}format = \"alertmanager\"\nresend_every = \"1s\""), "resend_every"),
            (&format!("{url}format = \"alertmanager\"\ncloudevents = true"), "cloudevents"),
            (&format!("{url}format = \"masakari\"\nmax_batch = 2"), "max_batch"),
            (&format!("{url}format = \"template\""), "template_file"),
            (
                &format!("{url}format = \"template\"\ntemplate_file=\"/t\"\nallow_hosts = [\"*\"]"),
                "allow_hosts",
            ),
            (&format!("{url}vars = {{ a = \"b\" }}"), "vars"),
            (&format!("{url}max_batch = 0"), "max_batch"),
            (&format!("{url}rate = \"5\""), "per second"),
            (&format!("{url}burst = 0"), "burst"),
            (&format!("{url}client_cert_file = \"/c\""), "client_key_file"),
            (&format!("{url}first_byte_timeout = \"1ms\""), "first_byte_timeout"),
        ];
        for (text, wanted) in bad {
            let error = check(text).unwrap_err();
            assert!(error.contains(wanted), "{text}\n{error}");
        }
    }

    #[test]
    fn a_format_refuses_events_that_it_has_no_word_for() {
        let masakari = check("format = \"masakari\"\nurl = \"http://a/\"").unwrap().kind;
        assert!(masakari.has_word_for(EventKind::HostDown).is_ok());
        let why = masakari.has_word_for(EventKind::HostAgentLost).unwrap_err();
        assert!(why.contains("host.down, host.recovered"), "{why}");
    }
}
