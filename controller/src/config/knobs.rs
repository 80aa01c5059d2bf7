//! The operator's knobs on margins: how long a host may be overdue.

use std::collections::BTreeMap;

use heartwatch_common::config::{ConfigError, Span, bounded};
use serde::{Deserialize, Serialize};

use super::{RawDetector, ms, secs};
use crate::detector::knobs::{AllKnobs, Knobs, OVERRIDES_MAX, Override};
use crate::detector::timeout::Patience;

/// Other knobs for hosts with these labels.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawOverride {
    /// For people and for `why`.
    pub name: String,
    /// Labels that a host must have, all of them. The first override that matches holds.
    #[serde(rename = "match")]
    pub labels: BTreeMap<String, String>,
    /// Least margin. Default: the detector's.
    #[serde(default)]
    pub timeout_min: Option<Span>,
    /// Greatest margin. Default: the detector's.
    #[serde(default)]
    pub timeout_max: Option<Span>,
    /// Cost of a false suspicion. Default: the detector's.
    #[serde(default)]
    pub false_suspicion_cost: Option<Span>,
    /// A wished rate of mistakes instead; `0.0`: none. Default: the detector's, unless a cost is given.
    #[serde(default)]
    pub max_mistakes_per_host_day: Option<f64>,
}

/// Checks one set of knobs; `at` names the table that it stands in.
fn check(
    at: &str,
    min: Span,
    max: Span,
    cost: Span,
    per_host_day: f64,
) -> Result<Knobs, ConfigError> {
    let key = |field: &str| format!("{at}.{field}");
    let cost = bounded(&key("false_suspicion_cost"), cost, secs(1).0, secs(1_000_000_000).0)?;
    let min = bounded(&key("timeout_min"), min, ms(10).0, secs(60).0)?;
    let max = bounded(&key("timeout_max"), max, ms(100).0, secs(600).0)?;
    if min > max {
        let message = "it must not exceed timeout_max";
        return Err(ConfigError::value(&key("timeout_min"), message));
    }
    let patience = Patience::new(cost.as_secs_f32(), min, max);
    let wished = per_host_day != 0.0;
    if wished && !(0.000_1..=1_000.0).contains(&per_host_day) {
        let message = "0.0001 to 1000 are allowed; 0.0 steers nothing";
        return Err(ConfigError::value(&key("max_mistakes_per_host_day"), message));
    }
    Ok(Knobs { patience, mistakes_per_host_day: wished.then_some(per_host_day) })
}

impl RawDetector {
    pub(super) fn check_knobs(&self) -> Result<AllKnobs, ConfigError> {
        let default = check(
            "detector",
            self.timeout_min,
            self.timeout_max,
            self.false_suspicion_cost,
            self.max_mistakes_per_host_day,
        )?;
        if self.overrides.len() > OVERRIDES_MAX {
            let message = format!("at most {OVERRIDES_MAX} are allowed");
            return Err(ConfigError::value("detector.overrides", message));
        }
        let mut overrides = Vec::new();
        for (i, raw) in self.overrides.iter().enumerate() {
            let at = format!("detector.overrides[{i}] ({})", raw.name);
            if raw.labels.is_empty() {
                let message = "at least one label is needed; the [detector] table is for all hosts";
                return Err(ConfigError::value(&format!("{at}.match"), message));
            }
            let steered = match raw.false_suspicion_cost {
                Some(_) => 0.0,
                None => self.max_mistakes_per_host_day,
            };
            let knobs = check(
                &at,
                raw.timeout_min.unwrap_or(self.timeout_min),
                raw.timeout_max.unwrap_or(self.timeout_max),
                raw.false_suspicion_cost.unwrap_or(self.false_suspicion_cost),
                raw.max_mistakes_per_host_day.unwrap_or(steered),
            )?;
            overrides.push(Override { name: raw.name.clone(), labels: raw.labels.clone(), knobs });
        }
        let labels = &self.group_labels;
        if labels.len() > 8 || labels.iter().any(String::is_empty) {
            let message = "at most 8 labels are allowed, such as [\"pool\"]";
            return Err(ConfigError::value("detector.group_labels", message));
        }
        let group_labels = labels.clone();
        Ok(AllKnobs { default, overrides, group_labels, classes: Vec::new() })
    }
}
