//! What is to be tried: a config, and the same with some keys changed.

use heartwatch_common::config::ConfigError;

use super::Setting;
use super::svg::Point;
use super::table::Measured;
use crate::config::{Config, RawConfig};
use crate::detector::Settings;
use crate::detector::knobs::Knobs;

/// Costs of a false suspicion that the trade-off curve goes through, seconds.
pub const SWEEP_COSTS_S: [f32; 11] =
    [1e2, 3.16e2, 1e3, 3.16e3, 1e4, 3.16e4, 1e5, 3.16e5, 1e6, 3.16e6, 1e7];

/// Why a change can't be tried.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It isn't one.
    #[error("--set {0}: {1}")]
    Typed(String, String),
    /// The config with it is not good.
    #[error("--set {0}")]
    Refused(String, #[source] ConfigError),
}

/// The config with the changes of one `--set`: `key=value`, several with commas between.
pub fn changed(raw: &RawConfig, set: &str) -> Result<Config, SetError> {
    let wrong = |reason: &str| SetError::Typed(set.to_owned(), reason.to_owned());
    let mut table = toml::Table::try_from(raw).map_err(|e| wrong(&e.to_string()))?;
    for pair in set.split(',') {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(wrong(&format!("`{pair}` is not `detector.KEY=VALUE`")));
        };
        let (key, value) = (key.trim(), value.trim());
        let Some(key) = key.strip_prefix("detector.").filter(|k| !k.contains('.')) else {
            let reason = format!("`{key}`: only keys of [detector] change what a replay finds");
            return Err(wrong(&reason));
        };
        let typed = toml::from_str::<toml::Table>(&format!("v = {value}\n"));
        let value = typed.ok().filter(|t| t.len() == 1).and_then(|mut t| t.remove("v"));
        let value = value.unwrap_or_else(|| toml::Value::String(pair_value(pair)));
        let detector = table.entry("detector").or_insert_with(|| toml::Table::new().into());
        let Some(detector) = detector.as_table_mut() else {
            return Err(wrong("[detector] is not a table"));
        };
        detector.insert(key.to_owned(), value);
    }
    let raw: RawConfig = table.try_into().map_err(|e: toml::de::Error| wrong(e.message()))?;
    raw.check().map_err(|e| SetError::Refused(set.to_owned(), e))
}

/// What stands behind the `=`.
fn pair_value(pair: &str) -> String {
    pair.split_once('=').map_or_else(String::new, |(_, v)| v.trim().to_owned())
}

impl Setting {
    /// That of a config.
    pub fn of(config: &Config) -> Self {
        Self { settings: Settings::new(&config.detector), knobs: config.knobs.default }
    }

    /// The same with another cost of a false suspicion, and no wished rate.
    pub fn with_cost(&self, cost_s: f32) -> Self {
        let mut patience = self.knobs.patience;
        patience.cost_s = cost_s;
        let knobs = Knobs { patience, mistakes_per_host_day: None };
        Self { knobs, ..self.clone() }
    }

    /// Where it stands in the picture; `None` if nothing was measured.
    pub fn point(&self, found: &Measured) -> Option<Point> {
        let steered = self.knobs.mistakes_per_host_day.is_some();
        Some(Point {
            cost_s: (!steered).then_some(f64::from(self.knobs.patience.cost_s)),
            mistakes_per_day: found.mistakes_per_host_day?,
            mean_s: found.detection_mean_ms? / 1e3,
            p99_s: found.detection_p99_ms? / 1e3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_set_changes_what_it_names_and_nothing_else() {
        let raw = RawConfig::default();
        let set = "detector.timeout_max=5s, detector.false_suspicion_cost=1000s,\
                   detector.max_mistakes_per_host_day=1,detector.probes=5";
        let config = changed(&raw, set).unwrap();
        let knobs = config.knobs.default;
        assert_eq!(knobs.patience.max(), Duration::from_secs(5));
        assert_eq!((knobs.patience.cost_s, knobs.mistakes_per_host_day), (1_000.0, Some(1.0)));
        assert_eq!(config.detector.probes, 5);
        assert_eq!(knobs.patience.min(), raw.check().unwrap().knobs.default.patience.min());
    }

    #[test]
    fn what_cannot_be_tried_is_refused_by_name() {
        let raw = RawConfig::default();
        for (set, wanted) in [
            ("timeout_max", "is not `detector.KEY=VALUE`"),
            ("", "is not `detector.KEY=VALUE`"),
            ("name=x", "only keys of [detector]"),
            ("detector.overrides.x=1", "only keys of [detector]"),
            ("detector.timeout_mux=5s", "timeout_mux"),
            ("detector.timeout_max=5", "expected a string"),
            ("detector.timeout_max=fast", "is not a length of time"),
            ("detector.timeout_max=1us", "detector.timeout_max"),
        ] {
            let error = anyhow::Error::from(changed(&raw, set).unwrap_err());
            let text = format!("{error:#}");
            assert!(text.contains(wanted) && text.contains(set), "{set}: {text}");
        }
    }
}
