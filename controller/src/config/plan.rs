//! What follows a rule's orders: steps before them, time limits, and whom to turn to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::config::ConfigError;

use super::{DAY, RawRule, Receiver};
use crate::event::EventKind;
use crate::policy::courses::{Plan, STEPS_MAX};
use crate::policy::is_action;

/// Longest [`RawRule::accept_within`].
const ACCEPT_WITHIN_MAX: Duration = Duration::from_secs(DAY);
/// Longest [`RawRule::complete_within`].
const COMPLETE_WITHIN_MAX: Duration = Duration::from_secs(7 * DAY);

impl RawRule {
    /// Checks what follows this rule's orders.
    pub(super) fn check_plan(
        &self,
        key: &dyn Fn(&str) -> String,
        events: &BTreeSet<EventKind>,
        receivers: &BTreeMap<String, Receiver>,
    ) -> Result<Plan, ConfigError> {
        let plan = Plan {
            first: self.first.clone(),
            accept_within: self.accept_within.0,
            complete_within: self.complete_within.0,
            escalate: self.escalate.clone(),
            escalate_acts: self.escalate_acts,
        };
        if plan.is_empty() {
            return Ok(plan);
        }
        let orders: Vec<EventKind> = events.iter().copied().filter(|k| is_action(*k)).collect();
        if orders.is_empty() {
            let message = "only orders have steps and are escalated: add host.down, host.agent-lost or \
                           host.unreachable to `events`, or remove first, accept_within, complete_within, \
                           escalate and escalate_acts";
            return Err(ConfigError::value(&key("events"), message));
        }
        let mut seen: BTreeSet<&String> = self.receivers.iter().collect();
        let told = [EventKind::IncidentEscalated];
        for (field, list, kinds) in [
            ("first", &plan.first, orders.as_slice()),
            ("escalate", &plan.escalate, if plan.escalate_acts { &orders[..] } else { &told[..] }),
        ] {
            let refuse = |message: String| Err(ConfigError::value(&key(field), message));
            if list.len() > STEPS_MAX {
                return refuse(format!("at most {STEPS_MAX} are allowed"));
            }
            for name in list {
                let Some(receiver) = receivers.get(name) else {
                    return refuse(format!("`{name}` is not among the receivers of this file"));
                };
                if !seen.insert(name) {
                    return refuse(format!("`{name}` stands in this rule already: once is enough"));
                }
                for kind in kinds {
                    if let Err(why) = receiver.kind.has_word_for(*kind) {
                        return refuse(format!("receiver {name}: {why}"));
                    }
                }
            }
        }
        for (field, span, most) in [
            ("accept_within", plan.accept_within, ACCEPT_WITHIN_MAX),
            ("complete_within", plan.complete_within, COMPLETE_WITHIN_MAX),
        ] {
            if !span.is_zero() && !(Duration::from_secs(1)..=most).contains(&span) {
                let most = humantime::format_duration(most);
                return Err(ConfigError::value(&key(field), format!("0s, or 1s to {most}")));
            }
        }
        if plan.escalate_acts && (plan.escalate.is_empty() || self.receivers.len() > 1) {
            let message = "needs somebody in `escalate`, and one receiver in `receivers`: of several, those \
                           that have done it would be acted for again";
            return Err(ConfigError::value(&key("escalate_acts"), message));
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::RawConfig;

    #[test]
    fn a_plan_that_cannot_be_followed_is_refused_with_its_key() {
        let receivers: String = ["a", "b", "c"]
            .map(|n| format!("[receivers.{n}]\nurl = \"http://127.0.0.1:1/\"\n"))
            .concat();
        let am = "[receivers.am]\nformat = \"alertmanager\"\nurl = \"http://127.0.0.1:1/\"\n";
        let check = |rule: &str| {
            let text = format!(
                "{receivers}{am}[[rules]]\nname = \"r\"\nevents = [\"host.down\", \
                 \"host.recovered\"]\nreceivers = [\"a\"]\n{rule}"
            );
            let raw: RawConfig = toml::from_str(&text).unwrap();
            raw.check().map(|c| c.rules[0].plan.clone()).map_err(|e| e.to_string())
        };
        assert!(check("").unwrap().is_empty());
        let good = "first = [\"b\"]\naccept_within = \"5m\"\ncomplete_within = \"1h\"\n\
                    escalate = [\"c\"]\nescalate_acts = true";
        assert_eq!(check(good).unwrap().first, ["b"]);
        for (rule, key) in [
            ("first = [\"nobody\"]", ".first"),
            ("first = [\"a\"]", ".first"),
            ("first = [\"b\"]\nescalate = [\"b\"]", ".escalate"),
            ("escalate = [\"am\"]", ".escalate"),
            ("accept_within = \"500ms\"", ".accept_within"),
            ("accept_within = \"2d\"", ".accept_within"),
            ("complete_within = \"8d\"", ".complete_within"),
            ("escalate_acts = true", ".escalate_acts"),
        ] {
            let error = check(rule).unwrap_err();
            assert!(error.contains(key), "{rule}: {error}");
        }
        let text = format!(
            "{receivers}[[rules]]\nname = \"r\"\nevents = [\"host.left\"]\nreceivers = [\"a\"]\n\
             first = [\"b\"]"
        );
        let raw: RawConfig = toml::from_str(&text).unwrap();
        assert!(raw.check().unwrap_err().to_string().contains("only orders have steps"));
    }
}
