//! The controller's settings: every field with its unit, default and bound.
//!
//! [`RawConfig`] is what was typed; [`Config`] is what is true, checked once. `heartwatch-controller
//! check-config` prints the effective settings.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span, bounded};
use heartwatch_common::secret;
use serde::{Deserialize, Serialize};

use crate::detector::knobs::AllKnobs;
use crate::detector::peers::DomainLabels;
use crate::event::{EventKind, State};
use crate::intervals::Rules;
use crate::intervals::watched::Watch;
use crate::policy::courses::Plan;
use crate::policy::expression::Expression;
use crate::policy::hours::Hours;

mod addresses;
mod api;
mod canary;
mod domains;
mod intervals;
mod knobs;
mod maintenance;
mod placement;
mod plan;
mod receivers;
pub mod reference;
mod rules;

pub use addresses::BeatAddress;
pub use api::{ApiConfig, RawApi};
pub use canary::{CanaryConfig, RawCanary};
pub use domains::{ActionRate, FlapConfig, GuardConfig, RawDomains, RawFlaps, Threshold};
pub use intervals::{PerSecond, RawClass, RawIntervals};
pub use knobs::RawOverride;
pub use maintenance::{MaintenanceConfig, RawMaintenance};
pub use placement::{PlacementConfig, RawPlacement};
pub use receivers::{Kind, RawFormat, RawKind, RawReceiver, Receiver, TemplateConfig};
pub use rules::{Outside, RawMatch};

const fn ms(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

const fn secs(n: u64) -> Span {
    Span(Duration::from_secs(n))
}

const fn no_delay() -> Span {
    secs(0)
}

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

/// The file as typed. Defaults are filled in by serde; bounds are checked by [`RawConfig::check`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Name of this controller in events and logs. Default: `controller`.
    pub name: String,
    /// UDP addresses on which beats are received. Default: `["[::]:2328"]`, which takes IPv4 too.
    pub listen: Vec<SocketAddr>,
    /// Where hosts that enrol are told to send their beats, `host` or `host:port`. Default: to the host of
    /// the URL by which they enrolled, on the first `listen`'s port.
    pub beat_addresses: Vec<String>,
    /// TCP address of the HTTP API. Default: loopback only; from elsewhere it is reached by TLS alone.
    pub api_listen: SocketAddr,
    /// Where the store, secrets made at first start, and backups live.
    pub state_dir: PathBuf,
    /// Fleet secrets, mode 0600. Default: `fleet-secret` in `state_dir`, made at first start.
    pub fleet_secret_file: Option<PathBuf>,
    /// Bearer token of the API, of scope `admin`, mode 0600. Default: `api-token` in `state_dir`, made at
    /// first start.
    pub api_token_file: Option<PathBuf>,
    /// Threads that receive and judge, 1 to 64; 0 = one per core. Default: 0.
    pub shards: u16,
    /// Whether the kernel may hand over datagrams of one flow in one piece (UDP GRO): a gateway that sends
    /// for many hosts by one socket costs a tenth, hosts that beat for themselves the same. Default: true.
    pub gro: bool,
    /// error, warn, info or debug. Default: info.
    pub log_level: String,
    /// How the API is reached.
    pub api: RawApi,
    /// When a host is suspect, and when it is down.
    pub detector: RawDetector,
    /// How often hosts beat.
    pub intervals: RawIntervals,
    /// Failure domains, and when actions in them are held.
    pub domains: RawDomains,
    /// When a host flaps.
    pub flaps: RawFlaps,
    /// How long hosts may be in maintenance.
    pub maintenance: RawMaintenance,
    /// Who may take over.
    pub placement: RawPlacement,
    /// The controller's own drills.
    pub canary: RawCanary,
    /// How long things are kept.
    pub retention: RawRetention,
    /// Who is told, by name.
    pub receivers: BTreeMap<String, RawReceiver>,
    /// Which events go to whom, in order; every rule that matches counts.
    pub rules: Vec<RawRule>,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            name: "controller".to_owned(),
            listen: vec![SocketAddr::from(([0u16; 8], heartwatch_common::wire::PORT))],
            beat_addresses: Vec::new(),
            api_listen: SocketAddr::from(([127, 0, 0, 1], heartwatch_common::wire::PORT)),
            state_dir: PathBuf::from("/var/lib/heartwatch-controller"),
            fleet_secret_file: None,
            api_token_file: None,
            shards: 0,
            gro: true,
            log_level: "info".to_owned(),
            api: RawApi::default(),
            detector: RawDetector::default(),
            intervals: RawIntervals::default(),
            domains: RawDomains::default(),
            flaps: RawFlaps::default(),
            maintenance: RawMaintenance::default(),
            placement: RawPlacement::default(),
            canary: RawCanary::default(),
            retention: RawRetention::default(),
            receivers: BTreeMap::new(),
            rules: Vec::new(),
        }
    }
}

/// When a host is suspect, and when it is down.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDetector {
    /// Interval assigned to agents; `0s` lets each keep its own. 0, or 100ms to 1h. Default: 0s.
    pub interval: Span,
    /// Longest gap that a beat may announce, 1s to 1h. Default: 1m. Longer ones are clamped.
    pub gap_max: Span,
    /// Beats between two acks that an agent asks for, 1 to 1000. Default: 10.
    pub ack_every: u16,
    /// Least margin beyond the expected arrival, 10ms to 1m. Default: 25ms.
    pub timeout_min: Span,
    /// Greatest margin beyond the expected arrival, 100ms to 10m. Default: 30s.
    pub timeout_max: Span,
    /// How many seconds of later detection one false suspicion per beat is worth (C), 1s to 1000000000s.
    /// Default: 100000s. Raise it for fewer suspicions and slower detection.
    pub false_suspicion_cost: Span,
    /// Instead: mistakes (suspicions that proved wrong) per host and day that you will bear, 0.0001 to
    /// 1000. The cost then only says where to start, and is steered by the mistakes that are seen. 0.0
    /// steers nothing. Default: 0.0.
    pub max_mistakes_per_host_day: f64,
    /// Labels by which hosts are grouped: a host starts with what its group's beats have taught, and
    /// groups start with what the fleet's have. At most 64 groups learn apart. Default: `["pool"]`.
    pub group_labels: Vec<String>,
    /// Other margins for some hosts; at most 64, and the first that matches holds. Default: none.
    pub overrides: Vec<RawOverride>,
    /// Probes of a suspect before it is down, 1 to 20. Default: 3.
    pub probes: u8,
    /// Time between probes, and after the last, 20ms to 10s. Default: 200ms.
    pub probe_spacing: Span,
    /// A suspect that has come back from silences before is probed on until it has been silent for twice
    /// the longest of them (three times, if it lost several beats in a row), but no longer than this
    /// beyond its expected beat; 0s to 10m, 0s gives nobody more time. Default: 20s.
    pub confirm_max: Span,
    /// Probes per second and shard, 10 to 1000000: bounds a storm of suspects. Default: 5000.
    pub probe_rate_max: u32,
    /// Peers in other failure domains asked to probe a suspect, with each of the last two probes; 0 to 8,
    /// 0 asks nobody. Default: 3.
    pub peers: u8,
    /// Labels that make a failure domain, at most 8: hosts that differ in any of them are in different
    /// ones, and so is a host that has none of them. Default: `["zone", "rack"]`.
    pub domain_labels: Vec<String>,
    /// How long the controller's own losses, or a cut of its own link, may excuse a host, 1s to 10m: longer
    /// than a switch takes to restart. Default: 90s.
    pub doubt_max: Span,
    /// No known host is judged by its silence before this after a restart of the controller, 1s to 10m; each
    /// gets its own moment within an eighth of it then. If an interval is assigned, it is one and a
    /// half of that at least. Default: 10s.
    pub restart_grace: Span,
    /// An expected host never heard is missing after this, 1s to 30d. Default: 10m.
    pub missing_after: Span,
    /// Longest absence that a goodbye may announce, 1s to 7d; longer ones are cut to this. Default: 1d.
    pub leave_max: Span,
    /// A host that announced how long it would be away is overdue so much later, 0s to 1h. Default: 30s.
    pub leave_grace: Span,
    /// Hosts that left, or have been down, this long are forgotten; 1m to 3650d. Default: 30d.
    pub forget_after: Span,
}

impl Default for RawDetector {
    fn default() -> Self {
        Self {
            interval: secs(0),
            gap_max: secs(60),
            ack_every: 10,
            timeout_min: ms(25),
            timeout_max: secs(30),
            false_suspicion_cost: secs(100_000),
            max_mistakes_per_host_day: 0.0,
            group_labels: vec!["pool".to_owned()],
            overrides: Vec::new(),
            probes: 3,
            probe_spacing: ms(200),
            confirm_max: secs(20),
            probe_rate_max: 5_000,
            peers: 3,
            domain_labels: vec!["zone".to_owned(), "rack".to_owned()],
            doubt_max: secs(90),
            restart_grace: secs(10),
            missing_after: secs(600),
            leave_max: secs(DAY),
            leave_grace: secs(30),
            forget_after: secs(30 * DAY),
        }
    }
}

/// How long things are kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRetention {
    /// Events and finished deliveries, 1h to 3650d. Default: 30d.
    pub events: Span,
    /// Dead letters, 1h to 3650d. Default: 90d.
    pub dead_letters: Span,
    /// Most events kept, 1000 to 100000000. Default: 1000000.
    pub events_max: u64,
}

impl Default for RawRetention {
    fn default() -> Self {
        Self { events: secs(30 * DAY), dead_letters: secs(90 * DAY), events_max: 1_000_000 }
    }
}

/// Which events go to whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRule {
    /// For people and for `why`.
    pub name: String,
    /// Labels that a host must have, all of them, or a label expression. Empty: every host, and the
    /// controller's own events.
    #[serde(default, rename = "match")]
    pub matching: RawMatch,
    /// Event kinds, such as `host.down`.
    pub events: Vec<String>,
    /// Names of receivers.
    pub receivers: Vec<String>,
    /// For `host.recovered` alone: only of hosts that stood so before (suspect, down, left). Default: any.
    #[serde(default)]
    pub from: Vec<State>,
    /// How long a host must stand so before its news goes, by the monotonic clock; 0s to 1d. Default: 0s.
    #[serde(default = "no_delay")]
    pub delay: Span,
    /// When the rule is on, such as `Mon-Fri 08:00-18:00`. Default: always.
    #[serde(default)]
    pub hours: Option<String>,
    /// IANA time zone of `hours`. Default: UTC.
    #[serde(default = "rules::utc")]
    pub timezone: String,
    /// What becomes outside the hours of news that goes on: `hold` until they begin, or `suppress`. Default:
    /// hold.
    #[serde(default)]
    pub outside: Outside,
    /// Most actions of this rule per minute in the long run, 1 to 1000000; 0 sets no limit. Default: 0.
    #[serde(default)]
    pub actions_per_minute: u32,
    /// How many actions at once after a rest, 1 to 1000000. Default: 10.
    #[serde(default = "rules::burst")]
    pub actions_burst: u32,
    /// Labels in which candidates for taking over must equal the failed host. Default: none.
    #[serde(default)]
    pub candidates_same: Vec<String>,
    /// Decide and record, but send nothing. Default: false.
    #[serde(default)]
    pub dry_run: bool,
    /// Never hold what this rule sends, whatever storms, pauses or limits hold elsewhere: for alerts, not
    /// for failovers. Default: false.
    #[serde(default)]
    pub always: bool,
    /// Receivers that must have done what an order asks, one after another, before `receivers` are ordered
    /// to: fencing before failover. At most 8. Default: none.
    #[serde(default)]
    pub first: Vec<String>,
    /// Longest that an order may wait for being accepted before it is escalated; 0s (as long as deliveries
    /// are tried), or 1s to 1d. Default: 0s.
    #[serde(default)]
    pub accept_within: Span,
    /// Longest that it may take after that until it is reported as completed; 0s (accepted is as good as
    /// done), or 1s to 7d. Default: 0s.
    #[serde(default)]
    pub complete_within: Span,
    /// Receivers that are turned to, in this order, if nobody did it. At most 8. Default: none.
    #[serde(default)]
    pub escalate: Vec<String>,
    /// Whether those are ordered to act, under a higher token, and not just told. Default: false.
    #[serde(default)]
    pub escalate_acts: bool,
}

/// Settings that have been checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// See [`RawConfig::name`].
    pub name: String,
    /// See [`RawConfig::listen`]; never empty.
    pub listen: Vec<SocketAddr>,
    /// See [`RawConfig::beat_addresses`].
    pub beat_addresses: Vec<BeatAddress>,
    /// See [`RawConfig::api_listen`].
    pub api_listen: SocketAddr,
    /// See [`RawConfig::state_dir`].
    pub state_dir: PathBuf,
    /// See [`RawConfig::fleet_secret_file`].
    pub fleet_secret_file: PathBuf,
    /// See [`RawConfig::api_token_file`].
    pub api_token_file: PathBuf,
    /// See [`RawConfig::shards`]; 0 = one per core.
    pub shards: u16,
    /// See [`RawConfig::gro`].
    pub gro: bool,
    /// See [`RawConfig::log_level`].
    pub log_level: log::LevelFilter,
    /// See [`RawApi`].
    pub api: ApiConfig,
    /// See [`RawDetector`].
    pub detector: DetectorConfig,
    /// See [`RawDetector::overrides`] and the settings of margins beside it.
    pub knobs: AllKnobs,
    /// See [`RawIntervals`]; `None`: there is no budget.
    pub intervals: Option<Rules>,
    /// See [`RawIntervals::watch_factor`].
    pub watch: Watch,
    /// See [`RawDetector::domain_labels`].
    pub domain_labels: DomainLabels,
    /// See [`RawDomains`] and [`RawFlaps`].
    pub guard: GuardConfig,
    /// See [`RawMaintenance`].
    pub maintenance: MaintenanceConfig,
    /// See [`RawPlacement`].
    pub placement: PlacementConfig,
    /// See [`RawCanary`].
    pub canary: CanaryConfig,
    /// See [`RawRetention`].
    pub retention: crate::store::Retention,
    /// See [`RawReceiver`].
    pub receivers: BTreeMap<String, Receiver>,
    /// See [`RawRule`].
    pub rules: Vec<Rule>,
}

/// See [`RawDetector`], field by field.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is documented in RawDetector under the same name")]
pub struct DetectorConfig {
    pub interval: Duration,
    pub gap_max: Duration,
    pub ack_every: u16,
    pub probes: u8,
    pub probe_spacing: Duration,
    pub confirm_max: Duration,
    pub probe_rate_max: u32,
    pub peers: u8,
    pub doubt_max: Duration,
    pub restart_grace: Duration,
    pub missing_after: Duration,
    pub leave_max: Duration,
    pub leave_grace: Duration,
    pub forget_after: Duration,
}

/// See [`RawRule`], field by field. The default tells nobody of nothing: tests fill in what they are about.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is documented in RawRule under the same name")]
pub struct Rule {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub expression: Option<Expression>,
    pub events: BTreeSet<EventKind>,
    pub receivers: Vec<String>,
    pub from: BTreeSet<State>,
    pub delay: Duration,
    pub hours: Option<Hours>,
    pub outside: Outside,
    pub rate: Option<ActionRate>,
    pub candidates_same: Vec<String>,
    pub dry_run: bool,
    pub always: bool,
    pub plan: Plan,
}

impl RawConfig {
    /// Reads a file; without one, the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(Self::default()), heartwatch_common::config::load)
    }

    /// The settings in TOML, for people: without the names and passwords that URLs of receivers hold.
    ///
    /// # Errors
    /// None are known.
    pub fn shown(&self) -> Result<String, toml::ser::Error> {
        let text = toml::to_string_pretty(self)?;
        let shown = text.lines().map(|line| {
            let url = line.contains("://");
            let line = if url { secret::hidden(line) } else { Cow::Borrowed(line) };
            line + "\n"
        });
        Ok(shown.collect())
    }

    /// Checks every bound and every reference between settings.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let refuse = |key: &str, message: &str| Err(ConfigError::value(key, message));
        if self.name.is_empty() || self.name.len() > 63 {
            return refuse("name", "1 to 63 characters are needed");
        }
        if self.listen.is_empty() || self.listen.len() > 16 {
            return refuse("listen", "1 to 16 addresses are needed, such as \"[::]:2328\"");
        }
        if self.shards > 64 {
            return refuse("shards", "at most 64 are allowed; 0 takes one per core");
        }
        let log_level = match self.log_level.as_str() {
            "error" => log::LevelFilter::Error,
            "warn" => log::LevelFilter::Warn,
            "info" => log::LevelFilter::Info,
            "debug" => log::LevelFilter::Debug,
            _ => return refuse("log_level", "use error, warn, info or debug"),
        };
        let mut receivers = BTreeMap::new();
        for (name, raw) in &self.receivers {
            receivers.insert(name.clone(), raw.check(name)?);
        }
        let mut rules = Vec::new();
        for (i, raw) in self.rules.iter().enumerate() {
            rules.push(raw.check(i, &receivers)?);
        }
        let intervals = self.check_intervals()?;
        let behind_default = intervals.iter().flat_map(|rules| rules.classes.iter().skip(1));
        let classes = behind_default.map(|class| class.labels.clone()).collect();
        let in_state = |file: &Option<PathBuf>, name: &str| {
            file.clone().unwrap_or_else(|| self.state_dir.join(name))
        };
        Ok(Config {
            name: self.name.clone(),
            listen: self.listen.clone(),
            beat_addresses: self.check_beat_addresses()?,
            api_listen: self.api_listen,
            state_dir: self.state_dir.clone(),
            fleet_secret_file: in_state(&self.fleet_secret_file, "fleet-secret"),
            api_token_file: in_state(&self.api_token_file, "api-token"),
            shards: self.shards,
            gro: self.gro,
            log_level,
            api: self.check_api()?,
            detector: self.detector.check()?,
            knobs: AllKnobs { classes, ..self.detector.check_knobs()? },
            intervals,
            watch: self.check_watch()?,
            domain_labels: self.detector.check_domain_labels()?,
            guard: self.check_guard()?,
            maintenance: self.maintenance.check()?,
            placement: self.check_placement()?,
            canary: self.check_canary(&receivers)?,
            retention: self.retention.check()?,
            receivers,
            rules,
        })
    }
}

impl RawDetector {
    fn check(&self) -> Result<DetectorConfig, ConfigError> {
        let b = |key: &str, span: Span, min: Span, max: Span| {
            bounded(&format!("detector.{key}"), span, min.0, max.0)
        };
        let interval = if self.interval.0.is_zero() {
            Duration::ZERO
        } else {
            b("interval", self.interval, ms(100), secs(HOUR))?
        };
        let c = DetectorConfig {
            interval,
            gap_max: b("gap_max", self.gap_max, secs(1), secs(HOUR))?,
            ack_every: self.ack_every,
            probes: self.probes,
            probe_spacing: b("probe_spacing", self.probe_spacing, ms(20), secs(10))?,
            confirm_max: b("confirm_max", self.confirm_max, secs(0), secs(600))?,
            probe_rate_max: self.probe_rate_max,
            peers: self.peers,
            doubt_max: b("doubt_max", self.doubt_max, secs(1), secs(600))?,
            restart_grace: b("restart_grace", self.restart_grace, secs(1), secs(600))?,
            leave_max: b("leave_max", self.leave_max, secs(1), secs(7 * DAY))?,
            leave_grace: b("leave_grace", self.leave_grace, secs(0), secs(HOUR))?,
            missing_after: b("missing_after", self.missing_after, secs(1), secs(30 * DAY))?,
            forget_after: b("forget_after", self.forget_after, secs(60), secs(3_650 * DAY))?,
        };
        let value = |key: &str, message: &str| Err(ConfigError::value(key, message));
        if !(1..=1000).contains(&c.ack_every) {
            return value("detector.ack_every", "1 to 1000 are allowed");
        }
        if !(1..=20).contains(&c.probes) {
            return value("detector.probes", "1 to 20 are allowed");
        }
        if !(10..=1_000_000).contains(&c.probe_rate_max) {
            return value("detector.probe_rate_max", "10 to 1000000 are allowed");
        }
        if c.peers > 8 {
            return value("detector.peers", "0 to 8 are allowed");
        }
        if c.interval > c.gap_max {
            return value("detector.interval", "it must not exceed detector.gap_max");
        }
        Ok(c)
    }
}

impl RawDetector {
    fn check_domain_labels(&self) -> Result<DomainLabels, ConfigError> {
        let labels = &self.domain_labels;
        if labels.is_empty() || labels.len() > 8 || labels.iter().any(String::is_empty) {
            let message = "1 to 8 labels are needed, such as [\"zone\", \"rack\"]";
            return Err(ConfigError::value("detector.domain_labels", message));
        }
        Ok(DomainLabels::new(labels.clone()))
    }
}

impl RawRetention {
    fn check(&self) -> Result<crate::store::Retention, ConfigError> {
        let (min, max) = (Duration::from_secs(HOUR), Duration::from_secs(3_650 * DAY));
        if !(1_000..=100_000_000).contains(&self.events_max) {
            return Err(ConfigError::value(
                "retention.events_max",
                "1000 to 100000000 are allowed",
            ));
        }
        Ok(crate::store::Retention {
            events: bounded("retention.events", self.events, min, max)?,
            dead: bounded("retention.dead_letters", self.dead_letters, min, max)?,
            events_max: self.events_max,
        })
    }
}

impl RawRule {
    fn check(
        &self,
        index: usize,
        receivers: &BTreeMap<String, Receiver>,
    ) -> Result<Rule, ConfigError> {
        let key = |field: &str| format!("rules[{index}] ({}).{field}", self.name);
        if self.events.is_empty() {
            return Err(ConfigError::value(&key("events"), "at least one event is needed"));
        }
        let events = self
            .events
            .iter()
            .map(|e| e.parse())
            .collect::<Result<BTreeSet<EventKind>, String>>()
            .map_err(|message| ConfigError::value(&key("events"), message))?;
        if events.contains(&EventKind::Test) {
            let message = "heartwatch.test is sent by `heartwatchctl receivers test` alone";
            return Err(ConfigError::value(&key("events"), message));
        }
        if self.receivers.is_empty() {
            return Err(ConfigError::value(&key("receivers"), "at least one receiver is needed"));
        }
        if let Some(unknown) = self.receivers.iter().find(|r| !receivers.contains_key(*r)) {
            let message = format!("`{unknown}` is not among the receivers of this file");
            return Err(ConfigError::value(&key("receivers"), message));
        }
        for name in &self.receivers {
            for event in &events {
                receivers[name].kind.has_word_for(*event).map_err(|why| {
                    ConfigError::value(&key("events"), format!("receiver {name}: {why}"))
                })?;
            }
        }
        let plan = self.check_plan(&key, &events, receivers)?;
        let (labels, expression) = self.check_match(&key)?;
        self.check_from(&key, &events)?;
        Ok(Rule {
            name: self.name.clone(),
            labels,
            expression,
            receivers: self.check_receivers(&key)?,
            from: self.from.iter().copied().collect(),
            delay: bounded(&key("delay"), self.delay, Duration::ZERO, Duration::from_secs(DAY))?,
            hours: self.check_hours(&key)?,
            outside: self.outside,
            rate: self.check_rate(&key)?,
            events,
            candidates_same: self.candidates_same.clone(),
            dry_run: self.dry_run,
            always: self.always,
            plan,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        raw.check().map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_shown_of_a_config_holds_no_password() {
        let text = "[receivers.r]\nurl = \"https://ann:hunter2@x/y\"\n[receivers.q]\nurl = \"http://a/\"\n";
        let raw: RawConfig = toml::from_str(text).unwrap();
        let shown = raw.shown().unwrap();
        assert!(!shown.contains("hunter2") && shown.contains("https://…@x/y"), "{shown}");
        let again: RawConfig = toml::from_str(&shown).unwrap();
        assert!(again.check().is_ok() && shown.contains("\"http://a/\""), "{shown}");
    }

    #[test]
    fn the_defaults_are_good() {
        let config = check("").unwrap();
        assert_eq!(config.api_listen.to_string(), "127.0.0.1:2328");
        assert!(config.rules.is_empty());
    }

    #[test]
    fn bad_values_are_refused_with_the_key_that_is_wrong() {
        let receiver = "[receivers.r]\nurl = \"http://127.0.0.1:1/\"\n";
        let cases = [
            ("[detector]\nprobes = 0", "detector.probes"),
            ("[detector]\npeers = 9", "detector.peers"),
            ("[detector]\ndomain_labels = []", "detector.domain_labels"),
            ("[detector]\ntimeout_max = \"1ms\"", "detector.timeout_max"),
            ("[detector]\ntimeout_min = \"40s\"", "detector.timeout_min"),
            ("[detector]\nmax_mistakes_per_host_day = -1.0", "detector.max_mistakes_per_host_day"),
            ("[[detector.overrides]]\nname = \"x\"\nmatch = {}", "(x).match"),
            (
                "[[detector.overrides]]\nname = \"x\"\nmatch = {a = \"b\"}\ntimeout_max = \"1us\"",
                "(x).timeout_max",
            ),
            ("[detector]\ninterval = \"2m\"", "detector.interval"),
            ("[intervals]\nbudget = \"5\"", "50000/s"),
            ("[intervals]\nbudget = \"5/s\"\nmax = \"31s\"", "intervals.max"),
            ("[intervals]\nbudget = \"5/s\"\nmin = \"9s\"\nmax = \"3s\"", "intervals.min"),
            ("[intervals]\nbudget = \"5/s\"\nchange_max = 1.0", "intervals.change_max"),
            ("[intervals]\nbudget = \"5/s\"\n[detector]\ninterval = \"2s\"", "detector.interval"),
            ("[intervals]\nwatch_factor = 0.5", "intervals.watch_factor"),
            ("[intervals]\nwatch_for = \"1s\"", "intervals.watch_for"),
            ("[[intervals.classes]]\nname = \"x\"\nmatch = {a = \"b\"}", "set intervals.budget"),
            (
                "[intervals]\nbudget = \"5/s\"\n[[intervals.classes]]\nname = \"x\"\nmatch = {}",
                "(x).match",
            ),
            (
                "[intervals]\nbudget = \"5/s\"\n[[intervals.classes]]\nname = \"x\"\n\
                 match = {a = \"b\"}\nweight = 0.0",
                "(x).weight",
            ),
            ("[maintenance]\nwindow_max = \"1s\"", "maintenance.window_max"),
            ("[maintenance]\nannounced_max = \"8d\"", "maintenance.announced_max"),
            ("[detector]\nleave_max = \"0s\"", "detector.leave_max"),
            ("[detector]\nleave_grace = \"2h\"", "detector.leave_grace"),
            ("listen = []", "listen"),
            ("log_level = \"loud\"", "log_level"),
            ("nmae = \"x\"", "nmae"),
            ("[receivers.r]\nurl = \"ftp://x/\"", "receivers.r.url"),
            ("[receivers.\"a b\"]\nurl = \"http://x/\"", "receivers.a b"),
            (&format!("{receiver}timeout = \"1h\""), "receivers.r.timeout"),
            (
                "[[rules]]\nname = \"n\"\nevents = [\"host.down\"]\nreceivers = [\"x\"]",
                "`x` is not",
            ),
            (
                &format!(
                    "{receiver}[[rules]]\nname=\"n\"\nevents=[\"host.dwon\"]\nreceivers=[\"r\"]"
                ),
                "host.dwon",
            ),
        ];
        for (text, wanted) in cases {
            let error = check(text).unwrap_err();
            assert!(error.contains(wanted), "{text}\n{error}");
        }
    }
}
