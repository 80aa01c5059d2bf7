//! The operator's settings of failure domains, storms, holds, action rates and flap damping.

use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span, bounded};
use serde::{Deserialize, Serialize};

use super::{DAY, HOUR, RawConfig, ms, secs};

/// Most trees of failure domains, and most levels of one.
const TREES_MAX: usize = 8;
/// Most hosts or actions that a setting may name.
const COUNT_MAX: u32 = 1_000_000;

/// Failure domains, and how many of a domain's hosts may fall silent before their failovers are held.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDomains {
    /// Labels that make failure domains, from the largest down, at most 8 trees of at most 8 labels. A host
    /// that lacks a label is in no domain of that level; every host is in the fleet. Default:
    /// `[["zone", "rack"], ["power"]]`.
    pub trees: Vec<Vec<String>>,
    /// Storm: so large a share of a domain's hosts is silent, 0.01 to 1.0. Default: 0.3. Raise it where
    /// domains of few hosts often lose several at once for good reason.
    pub storm_share: f64,
    /// … and at least so many of them, 2 to 1000000; 0 switches the guard of domains off. Default: 5.
    pub storm_hosts: u32,
    /// The same for the whole fleet: is it us? 0.01 to 1.0. Default: 0.5.
    pub fleet_share: f64,
    /// … and at least so many hosts, 2 to 1000000; 0 switches the guard of the fleet off. Default: 5.
    pub fleet_hosts: u32,
    /// Hosts that were acted upon count as silent for this long after it, 10s to 1d; those that wait for
    /// their action, or are suspect, always do. Default: 10m. Raise it to see slower cascades.
    pub storm_window: Span,
    /// How long an action waits while other hosts of its domain are silent, or as long as the host's own
    /// gap between beats if that is longer; 0s to 1m. Default: 2s. A host that falls alone waits for nothing.
    pub settle: Span,
    /// A storm is over when less than half of what it takes is silent for this long, 1s to 1h. Default: 30s.
    pub calm: Span,
    /// Or when for so long no host of the domain has fallen silent or come back: what is dead then is taken
    /// for dead, and acted upon at the domain's rate. 1m to 7d; 0s: never, somebody must approve. The
    /// fleet's storm never ends so. Default: 15m.
    pub release_after: Span,
    /// An action held for longer raises `hold.overdue`, 1m to 7d. Default: 10m.
    pub hold_max: Span,
    /// Most actions per minute in one domain, 1 to 1000000; 0 sets no limit. Default: 10.
    pub actions_per_minute: u32,
    /// How many of them at once, 1 to 1000000. Default: 10.
    pub actions_burst: u32,
    /// Most actions per minute in the whole fleet, 1 to 1000000; 0 sets no limit. Default: 120.
    pub fleet_actions_per_minute: u32,
    /// How many of them at once, 1 to 1000000. Default: 60.
    pub fleet_actions_burst: u32,
}

impl Default for RawDomains {
    fn default() -> Self {
        let tree = |labels: &[&str]| labels.iter().map(|l| (*l).to_owned()).collect();
        Self {
            trees: vec![tree(&["zone", "rack"]), tree(&["power"])],
            storm_share: 0.3,
            storm_hosts: 5,
            fleet_share: 0.5,
            fleet_hosts: 5,
            storm_window: secs(600),
            settle: secs(2),
            calm: secs(30),
            release_after: secs(900),
            hold_max: secs(600),
            actions_per_minute: 10,
            actions_burst: 10,
            fleet_actions_per_minute: 120,
            fleet_actions_burst: 60,
        }
    }
}

/// When a host that comes and goes is taken for one that flaps: the figures of RFC 2439, section 4.2. A
/// fall to `down` costs it 1000 points, a mere suspicion 250.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawFlaps {
    /// In which time a penalty halves, 10s to 1d. Default: 15m.
    pub half_life: Span,
    /// Penalty from which a host flaps, 500 to 1000000; 0 damps nobody. Default: 3000.
    pub suppress: u32,
    /// Penalty below which it no longer does, 100 to less than `suppress`. Default: 750.
    pub reuse: u32,
    /// Longest that it is said to flap after its last fall, 1m to 7d. Default: 1h.
    pub suppress_max: Span,
    /// A flapping host is acted upon only after it has been down for this long, 0s to 1d. Default: 2m.
    pub act_after: Span,
}

impl Default for RawFlaps {
    fn default() -> Self {
        Self {
            half_life: secs(900),
            suppress: 3_000,
            reuse: 750,
            suppress_max: secs(HOUR),
            act_after: secs(120),
        }
    }
}

/// How many silent hosts make a storm: a share and a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Of all that beat when it began, in (0, 1].
    pub share: f64,
    /// At least so many; 0: never.
    pub hosts: u32,
}

/// How many actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionRate {
    /// In the long run; 0: no limit.
    pub per_minute: u32,
    /// At once.
    pub burst: u32,
}

/// See [`RawFlaps`], field by field.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is documented in RawFlaps under the same name")]
pub struct FlapConfig {
    pub half_life: Duration,
    pub suppress: u32,
    pub reuse: u32,
    pub suppress_max: Duration,
    pub act_after: Duration,
}

/// See [`RawDomains`], field by field.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented in RawDomains under the same name")]
pub struct GuardConfig {
    pub trees: Vec<Vec<String>>,
    pub storm: Threshold,
    pub fleet: Threshold,
    pub storm_window: Duration,
    pub settle: Duration,
    pub calm: Duration,
    pub release_after: Duration,
    pub hold_max: Duration,
    pub rate: ActionRate,
    pub fleet_rate: ActionRate,
    /// See [`RawFlaps`].
    pub flaps: FlapConfig,
}

impl Default for GuardConfig {
    fn default() -> Self {
        RawConfig::default().check_guard().expect("the defaults are good")
    }
}

impl RawConfig {
    /// Checks both tables.
    pub(super) fn check_guard(&self) -> Result<GuardConfig, ConfigError> {
        let raw = &self.domains;
        let b = |key: &str, span: Span, min: Span, max: Span| {
            bounded(&format!("domains.{key}"), span, min.0, max.0)
        };
        let release_after = if raw.release_after.0.is_zero() {
            Duration::ZERO
        } else {
            b("release_after", raw.release_after, secs(60), secs(7 * DAY))?
        };
        Ok(GuardConfig {
            trees: raw.check_trees()?,
            storm: threshold("storm", raw.storm_share, raw.storm_hosts)?,
            fleet: threshold("fleet", raw.fleet_share, raw.fleet_hosts)?,
            storm_window: b("storm_window", raw.storm_window, secs(10), secs(DAY))?,
            settle: b("settle", raw.settle, ms(0), secs(60))?,
            calm: b("calm", raw.calm, secs(1), secs(HOUR))?,
            release_after,
            hold_max: b("hold_max", raw.hold_max, secs(60), secs(7 * DAY))?,
            rate: rate("actions", raw.actions_per_minute, raw.actions_burst)?,
            fleet_rate: rate(
                "fleet_actions",
                raw.fleet_actions_per_minute,
                raw.fleet_actions_burst,
            )?,
            flaps: self.flaps.check()?,
        })
    }
}

fn threshold(name: &str, share: f64, hosts: u32) -> Result<Threshold, ConfigError> {
    if !(0.01..=1.0).contains(&share) {
        let message = "0.01 to 1.0 are allowed";
        return Err(ConfigError::value(&format!("domains.{name}_share"), message));
    }
    if hosts == 1 || hosts > COUNT_MAX {
        let message = "2 to 1000000 are allowed, and 0, which switches the guard off";
        return Err(ConfigError::value(&format!("domains.{name}_hosts"), message));
    }
    Ok(Threshold { share, hosts })
}

fn rate(name: &str, per_minute: u32, burst: u32) -> Result<ActionRate, ConfigError> {
    if per_minute > COUNT_MAX {
        let message = "1 to 1000000 are allowed, and 0, which sets no limit";
        return Err(ConfigError::value(&format!("domains.{name}_per_minute"), message));
    }
    if !(1..=COUNT_MAX).contains(&burst) {
        let message = "1 to 1000000 are allowed";
        return Err(ConfigError::value(&format!("domains.{name}_burst"), message));
    }
    Ok(ActionRate { per_minute, burst })
}

impl RawDomains {
    fn check_trees(&self) -> Result<Vec<Vec<String>>, ConfigError> {
        let refuse = |message: &str| Err(ConfigError::value("domains.trees", message));
        let fits = |n: usize| n <= TREES_MAX;
        if !fits(self.trees.len()) || !self.trees.iter().all(|t| fits(t.len()) && !t.is_empty()) {
            return refuse(
                "at most 8 trees of 1 to 8 labels each are allowed, such as [[\"zone\", \"rack\"]]; \
                 [] leaves the fleet as the only domain",
            );
        }
        for tree in &self.trees {
            let twice = (1..tree.len()).any(|i| tree[..i].contains(&tree[i]));
            if twice || tree.iter().any(String::is_empty) {
                return refuse("a label must not be empty, nor stand twice in one tree");
            }
        }
        Ok(self.trees.clone())
    }
}

impl RawFlaps {
    fn check(&self) -> Result<FlapConfig, ConfigError> {
        let b = |key: &str, span: Span, min: Span, max: Span| {
            bounded(&format!("flaps.{key}"), span, min.0, max.0)
        };
        let off = self.suppress == 0;
        if !off && !(500..=COUNT_MAX).contains(&self.suppress) {
            let message = "500 to 1000000 are allowed, and 0, which damps nobody";
            return Err(ConfigError::value("flaps.suppress", message));
        }
        if !off && !(100..self.suppress).contains(&self.reuse) {
            let message = "100 to less than flaps.suppress are allowed";
            return Err(ConfigError::value("flaps.reuse", message));
        }
        Ok(FlapConfig {
            half_life: b("half_life", self.half_life, secs(10), secs(DAY))?,
            suppress: self.suppress,
            reuse: self.reuse,
            suppress_max: b("suppress_max", self.suppress_max, secs(60), secs(7 * DAY))?,
            act_after: b("act_after", self.act_after, secs(0), secs(DAY))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<GuardConfig, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| e.to_string())?;
        raw.check_guard().map_err(|e| e.to_string())
    }

    #[test]
    fn bad_values_are_refused_with_the_key_that_is_wrong() {
        let cases = [
            ("[domains]\ntrees = [[]]", "domains.trees"),
            ("[domains]\ntrees = [[\"zone\", \"zone\"]]", "domains.trees"),
            ("[domains]\nstorm_share = 0.0", "domains.storm_share"),
            ("[domains]\nfleet_share = 1.5", "domains.fleet_share"),
            ("[domains]\nstorm_hosts = 1", "domains.storm_hosts"),
            ("[domains]\nstorm_window = \"1s\"", "domains.storm_window"),
            ("[domains]\nsettle = \"2m\"", "domains.settle"),
            ("[domains]\ncalm = \"0s\"", "domains.calm"),
            ("[domains]\nrelease_after = \"1s\"", "domains.release_after"),
            ("[domains]\nhold_max = \"1s\"", "domains.hold_max"),
            ("[domains]\nactions_burst = 0", "domains.actions_burst"),
            ("[domains]\nfleet_actions_per_minute = 1000001", "domains.fleet_actions_per_minute"),
            ("[domains]\nracks = 1", "racks"),
            ("[flaps]\nsuppress = 100", "flaps.suppress"),
            ("[flaps]\nreuse = 3000", "flaps.reuse"),
            ("[flaps]\nhalf_life = \"1s\"", "flaps.half_life"),
            ("[flaps]\nact_after = \"2d\"", "flaps.act_after"),
        ];
        for (text, wanted) in cases {
            let error = check(text).unwrap_err();
            assert!(error.contains(wanted), "{text}\n{error}");
        }
    }

    #[test]
    fn what_switches_something_off_is_good() {
        let text = "[domains]\ntrees = []\nstorm_hosts = 0\nfleet_hosts = 0\nrelease_after = \"0s\"\n\
                    actions_per_minute = 0\n[flaps]\nsuppress = 0";
        let config = check(text).unwrap();
        assert!(config.trees.is_empty() && config.release_after.is_zero());
        assert_eq!((config.storm.hosts, config.rate.per_minute, config.flaps.suppress), (0, 0, 0));
    }
}
