//! The operator's settings of who may take over from a failed host.

use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span, bounded};
use serde::{Deserialize, Serialize};

use super::{DAY, RawConfig, secs};

/// Who may take over from a failed host, and how failovers are spread.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPlacement {
    /// Hosts whose load is above this share are not named, 0.05 to 1.0; 1.0 leaves nobody out. The load is
    /// that of the scarcest of CPU, memory and run queue. Default: 0.9.
    pub load_max: f64,
    /// By so much more loaded counts a host that was named first for a failover, 0.0 to 1.0; 0.0 spreads
    /// nothing. Default: 0.1.
    pub reserve_load: f64,
    /// In which time that halves, 1s to 1d. Default: 5m.
    pub reserve_half_life: Span,
}

impl Default for RawPlacement {
    fn default() -> Self {
        Self { load_max: 0.9, reserve_load: 0.1, reserve_half_life: secs(300) }
    }
}

/// See [`RawPlacement`], field by field; loads in points, 0 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is documented in RawPlacement under the same name")]
pub struct PlacementConfig {
    pub load_max: u16,
    pub reserve_load: u16,
    pub reserve_half_life: Duration,
}

impl Default for PlacementConfig {
    fn default() -> Self {
        RawConfig::default().check_placement().expect("the defaults are good")
    }
}

impl RawConfig {
    /// Checks the table.
    pub(super) fn check_placement(&self) -> Result<PlacementConfig, ConfigError> {
        let raw = &self.placement;
        let points = |key: &str, share: f64, min: f64| {
            if !(min..=1.0).contains(&share) {
                let message = format!("{min:?} to 1.0 are allowed: a share of a host's capacity");
                return Err(ConfigError::value(&format!("placement.{key}"), &message));
            }
            Ok((share * 1_000.0).round() as u16)
        };
        Ok(PlacementConfig {
            load_max: points("load_max", raw.load_max, 0.05)?,
            reserve_load: points("reserve_load", raw.reserve_load, 0.0)?,
            reserve_half_life: bounded(
                "placement.reserve_half_life",
                raw.reserve_half_life,
                secs(1).0,
                secs(DAY).0,
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_points_and_nonsense_is_refused_by_its_key() {
        let config = PlacementConfig::default();
        assert_eq!((config.load_max, config.reserve_load), (900, 100));
        let mut raw = RawConfig::default();
        raw.placement.load_max = 1.01;
        let text = raw.check_placement().unwrap_err().to_string();
        assert!(text.contains("placement.load_max") && text.contains("0.05 to 1.0"), "{text}");
        raw.placement = RawPlacement { reserve_load: f64::NAN, ..RawPlacement::default() };
        let text = raw.check_placement().unwrap_err().to_string();
        assert!(text.contains("placement.reserve_load"), "{text}");
    }
}
