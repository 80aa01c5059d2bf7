//! The operator's settings of maintenance windows.

use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span, bounded};
use serde::{Deserialize, Serialize};

use super::{DAY, HOUR, secs};

/// How long hosts may be in maintenance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawMaintenance {
    /// Longest window that an operator may open, 1m to 90d. Default: 30d.
    pub window_max: Span,
    /// Longest maintenance that a host's own agent may announce, 1m to 7d; longer ones are cut to this, and
    /// `0s` heeds none. Default: 4h.
    pub announced_max: Span,
}

impl Default for RawMaintenance {
    fn default() -> Self {
        Self { window_max: secs(30 * DAY), announced_max: secs(4 * HOUR) }
    }
}

/// See [`RawMaintenance`], field by field.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is documented in RawMaintenance under the same name")]
pub struct MaintenanceConfig {
    pub window_max: Duration,
    pub announced_max: Duration,
}

impl RawMaintenance {
    pub(super) fn check(&self) -> Result<MaintenanceConfig, ConfigError> {
        let b = |key: &str, span: Span, min: Span, max: Span| {
            bounded(&format!("maintenance.{key}"), span, min.0, max.0)
        };
        let announced_max = if self.announced_max.0.is_zero() {
            Duration::ZERO
        } else {
            b("announced_max", self.announced_max, secs(60), secs(7 * DAY))?
        };
        Ok(MaintenanceConfig {
            window_max: b("window_max", self.window_max, secs(60), secs(90 * DAY))?,
            announced_max,
        })
    }
}
