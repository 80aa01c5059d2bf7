//! The operator's settings of the controller's own drills.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span, bounded};
use serde::{Deserialize, Serialize};

use super::{DAY, HOUR, RawConfig, Receiver, secs};
use crate::canary::OWN_RECEIVER;

/// Drills: a host inside the controller falls silent, and a test event is delivered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCanary {
    /// Hold drills by themselves; `heartwatchctl drill` holds one whenever it is asked. Default: true.
    pub enabled: bool,
    /// Between two drills, and before the first, 1m to 7d. Default: 1h.
    pub interval: Span,
    /// A drill fails if the canary's silence is found later, 2s to 10m. Default: 30s.
    pub detection_max: Span,
    /// A drill fails if its test event is delivered later, 1s to 10m. Default: 30s.
    pub delivery_max: Span,
    /// To which receiver it is delivered. Default: to the controller's own API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receiver: Option<String>,
}

impl Default for RawCanary {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: secs(HOUR),
            detection_max: secs(30),
            delivery_max: secs(30),
            receiver: None,
        }
    }
}

/// See [`RawCanary`], field by field.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented in RawCanary under the same name")]
pub struct CanaryConfig {
    pub enabled: bool,
    pub interval: Duration,
    pub detection_max: Duration,
    pub delivery_max: Duration,
    pub receiver: Option<String>,
}

impl RawConfig {
    /// Checks the table.
    pub(super) fn check_canary(
        &self,
        receivers: &BTreeMap<String, Receiver>,
    ) -> Result<CanaryConfig, ConfigError> {
        let raw = &self.canary;
        let b = |key: &str, span: Span, min: Span, max: Span| {
            bounded(&format!("canary.{key}"), span, min.0, max.0)
        };
        if receivers.contains_key(OWN_RECEIVER) {
            let message = "this name is the controller's own, for its drills: choose another";
            return Err(ConfigError::value(&format!("receivers.{OWN_RECEIVER}"), message));
        }
        if let Some(name) = raw.receiver.as_ref().filter(|name| !receivers.contains_key(*name)) {
            let message =
                format!("there is no receiver `{name}`: name one of [receivers], or none");
            return Err(ConfigError::value("canary.receiver", &message));
        }
        Ok(CanaryConfig {
            enabled: raw.enabled,
            interval: b("interval", raw.interval, secs(60), secs(7 * DAY))?,
            detection_max: b("detection_max", raw.detection_max, secs(2), secs(600))?,
            delivery_max: b("delivery_max", raw.delivery_max, secs(1), secs(600))?,
            receiver: raw.receiver.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drills_receiver_must_exist_and_its_own_name_is_taken() {
        let check = |text: &str| toml::from_str::<RawConfig>(text).unwrap().check();
        assert!(check("").unwrap().canary.enabled);
        let error = check("canary.receiver = \"x\"").unwrap_err().to_string();
        assert!(error.contains("canary.receiver") && error.contains("`x`"), "{error}");
        let own = format!("[receivers.{OWN_RECEIVER}]\nurl = \"http://localhost/\"");
        assert!(check(&own).unwrap_err().to_string().contains("choose another"));
        let error = check("canary.interval = \"59s\"").unwrap_err().to_string();
        assert!(error.contains("canary.interval"), "{error}");
    }
}
