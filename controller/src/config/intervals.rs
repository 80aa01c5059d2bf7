//! The operator's rules for intervals: a budget of beats per second, and classes of hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span, bounded};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{HOUR, RawConfig, ms, secs};
use crate::intervals::watched::Watch;
use crate::intervals::{CLASSES_MAX, Class, Rules};

/// Beats, or requests, per second, as they are written: `"50000/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerSecond(pub u64);

impl FromStr for PerSecond {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix("/s").map(str::trim).unwrap_or_default();
        number.parse().map(Self).map_err(|_| {
            format!("`{text}` is no rate: write whole numbers per second, such as \"50000/s\"")
        })
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

impl Serialize for PerSecond {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PerSecond {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How often hosts beat.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawIntervals {
    /// Most beats per second of the whole fleet, up to "100000000/s"; the controller then assigns each
    /// agent its interval, within the agent's own bounds. Default: "0/s", no budget: `detector.interval`
    /// holds.
    pub budget: PerSecond,
    /// Shortest interval assigned, 100ms to `max`. Default: 1s.
    pub min: Span,
    /// Longest interval assigned, 100ms to half of `detector.gap_max`. Default: 30s.
    pub max: Span,
    /// Most that an interval grows or shrinks by in a minute, 1.05 to 10.0. Default: 2.0.
    pub change_max: f64,
    /// A host that came back from a suspicion beats this many times as often for `watch_for`, 1.0 to 10.0;
    /// 1.0 asks nobody to. It holds wherever the controller assigns intervals, with a budget or by
    /// `detector.interval`; at most one host in 32 is asked at a time. Default: 4.0.
    pub watch_factor: f64,
    /// How long after its last suspicion, 1m to 1h. Default: 10m.
    pub watch_for: Span,
    /// Other rules for some hosts; at most 15, and the first that matches holds. Default: none.
    pub classes: Vec<RawClass>,
}

impl Default for RawIntervals {
    fn default() -> Self {
        Self {
            budget: PerSecond(0),
            min: secs(1),
            max: secs(30),
            change_max: 2.0,
            watch_factor: 4.0,
            watch_for: secs(600),
            classes: Vec::new(),
        }
    }
}

/// Another rule for hosts with these labels.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawClass {
    /// For people, in the status and in metrics.
    pub name: String,
    /// Labels that a host must have, all of them. The first class that matches holds.
    #[serde(rename = "match")]
    pub labels: BTreeMap<String, String>,
    /// How many times as often as other hosts these beat, where the bounds allow it, 0.01 to 100.0.
    /// Default: 1.0.
    #[serde(default = "one")]
    pub weight: f64,
    /// Shortest interval. Default: that of the others.
    #[serde(default)]
    pub min: Option<Span>,
    /// Longest interval. Default: that of the others.
    #[serde(default)]
    pub max: Option<Span>,
}

const fn one() -> f64 {
    1.0
}

impl RawConfig {
    pub(super) fn check_watch(&self) -> Result<Watch, ConfigError> {
        let raw = &self.intervals;
        if !(1.0..=10.0).contains(&raw.watch_factor) {
            return Err(ConfigError::value("intervals.watch_factor", "1.0 to 10.0 are allowed"));
        }
        let span = bounded("intervals.watch_for", raw.watch_for, secs(60).0, secs(HOUR).0)?;
        Ok(Watch { factor: raw.watch_factor, span })
    }

    /// `None`: there is no budget.
    pub(super) fn check_intervals(&self) -> Result<Option<Rules>, ConfigError> {
        let raw = &self.intervals;
        let value = |key: &str, message: String| Err(ConfigError::value(key, message));
        if raw.budget.0 > 100_000_000 {
            return value("intervals.budget", "at most \"100000000/s\" is allowed".to_owned());
        }
        if !(1.05..=10.0).contains(&raw.change_max) {
            return value("intervals.change_max", "1.05 to 10.0 are allowed".to_owned());
        }
        if raw.classes.len() >= CLASSES_MAX {
            let message = format!("at most {} are allowed", CLASSES_MAX - 1);
            return value("intervals.classes", message);
        }
        // A gap is up to twice the interval: jitter, and a beat that was skipped.
        let longest = self.detector.gap_max.0 / 2;
        let class = |at: &str, name: &str, labels, weight: f64, min: Span, max: Span| {
            let key = |field: &str| format!("{at}.{field}");
            let min = bounded(&key("min"), min, ms(100).0, secs(HOUR).0)?;
            let max = bounded(&key("max"), max, ms(100).0, longest.max(ms(100).0))?;
            if min > max {
                return Err(ConfigError::value(&key("min"), "it must not exceed max"));
            }
            if !(0.01..=100.0).contains(&weight) {
                return Err(ConfigError::value(&key("weight"), "0.01 to 100.0 are allowed"));
            }
            Ok(Class { name: name.to_owned(), labels, weight, min, max })
        };
        if raw.budget.0 == 0 {
            return match raw.classes.first() {
                Some(first) => value(
                    &format!("intervals.classes[0] ({})", first.name),
                    "classes share a budget: set intervals.budget".to_owned(),
                ),
                None => Ok(None),
            };
        }
        if self.detector.interval.0 != Duration::ZERO {
            let message = "intervals.budget and detector.interval exclude each other";
            return value("intervals.budget", message.to_owned());
        }
        let mut classes =
            vec![class("intervals", "default", BTreeMap::new(), 1.0, raw.min, raw.max)?];
        for (i, c) in raw.classes.iter().enumerate() {
            let at = format!("intervals.classes[{i}] ({})", c.name);
            if c.labels.is_empty() {
                let message =
                    "at least one label is needed; the [intervals] table is for all hosts";
                return value(&format!("{at}.match"), message.to_owned());
            }
            let usable = (1..=63).contains(&c.name.len());
            if !usable || classes.iter().any(|other| other.name == c.name) {
                let message = "a name of 1 to 63 bytes that no other class has is needed";
                return value(&format!("{at}.name"), message.to_owned());
            }
            let (min, max) = (c.min.unwrap_or(raw.min), c.max.unwrap_or(raw.max));
            classes.push(class(&at, &c.name, c.labels.clone(), c.weight, min, max)?);
        }
        let budget = raw.budget.0 as f64;
        Ok(Some(Rules { budget, change_max: raw.change_max, classes }))
    }
}
