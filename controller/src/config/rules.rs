//! `[[rules]]`: the checks of what a rule matches, when it is on, and how much it may do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use heartwatch_common::config::ConfigError;
use jiff::tz::TimeZone;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ActionRate, RawRule};
use crate::event::{EventKind, State};
use crate::policy::expression::Expression;
use crate::policy::hours::Hours;

const COUNT_MAX: u32 = 1_000_000;

/// `match`: a table of labels, or a label expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RawMatch {
    /// All of these labels.
    Labels(BTreeMap<String, String>),
    /// See [`crate::policy::expression`].
    Expression(String),
}

impl Default for RawMatch {
    fn default() -> Self {
        Self::Labels(BTreeMap::new())
    }
}

impl<'de> Deserialize<'de> for RawMatch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawMatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a table such as { pool = \"db\" }, or a text such as \"pool in (db, cache)\"",
                )
            }

            fn visit_str<E>(self, text: &str) -> Result<RawMatch, E> {
                Ok(RawMatch::Expression(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawMatch, A::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(map)).map(RawMatch::Labels)
            }
        }

        d.deserialize_any(Either)
    }
}

/// What becomes, outside a rule's hours, of news of what goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outside {
    /// Held until the hours begin, and judged again then.
    #[default]
    Hold,
    /// Not sent.
    Suppress,
}

pub(super) fn utc() -> String {
    "UTC".to_owned()
}

pub(super) const fn burst() -> u32 {
    10
}

type Key<'a> = &'a dyn Fn(&str) -> String;

impl RawRule {
    pub(super) fn check_match(
        &self,
        key: Key<'_>,
    ) -> Result<(BTreeMap<String, String>, Option<Expression>), ConfigError> {
        match &self.matching {
            RawMatch::Labels(labels) => Ok((labels.clone(), None)),
            RawMatch::Expression(text) if text.trim().is_empty() => {
                let message = "an empty condition: leave `match` out to mean every host";
                Err(ConfigError::value(&key("match"), message))
            }
            RawMatch::Expression(text) => match Expression::parse(text) {
                Ok(expression) => Ok((BTreeMap::new(), Some(expression))),
                Err(e) => Err(ConfigError::value(&key("match"), format!("`{text}`: {e}"))),
            },
        }
    }

    pub(super) fn check_receivers(&self, key: Key<'_>) -> Result<Vec<String>, ConfigError> {
        let twice =
            (1..self.receivers.len()).find(|i| self.receivers[..*i].contains(&self.receivers[*i]));
        match twice {
            None => Ok(self.receivers.clone()),
            Some(i) => {
                let message = format!("`{}` is named twice: once is enough", self.receivers[i]);
                Err(ConfigError::value(&key("receivers"), message))
            }
        }
    }

    pub(super) fn check_from(
        &self,
        key: Key<'_>,
        events: &BTreeSet<EventKind>,
    ) -> Result<(), ConfigError> {
        let refuse = |message: &str| Err(ConfigError::value(&key("from"), message));
        if self.from.is_empty() {
            return Ok(());
        }
        if !events.contains(&EventKind::HostRecovered) {
            return refuse(
                "it says which host.recovered are meant, and the rule names no such event",
            );
        }
        let recovers = [State::Suspect, State::Down, State::Left];
        if self.from.iter().any(|s| !recovers.contains(s)) {
            return refuse("hosts recover from suspect, down or left");
        }
        for (state, told) in [
            (State::Suspect, [EventKind::HostSuspect, EventKind::HostUnreachable]),
            (State::Down, [EventKind::HostDown, EventKind::HostAgentLost]),
        ] {
            if let Some(event) =
                told.iter().find(|e| events.contains(*e) && !self.from.contains(&state))
            {
                return refuse(&format!(
                    "the rule tells {event}, so it must tell the end of it too: add `{state}`"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn check_hours(&self, key: Key<'_>) -> Result<Option<Hours>, ConfigError> {
        let zone = TimeZone::get(&self.timezone).map_err(|_| {
            let message = format!(
                "`{}` is no time zone that is known here: write an IANA name such as Europe/Berlin",
                self.timezone
            );
            ConfigError::value(&key("timezone"), message)
        })?;
        let Some(text) = &self.hours else {
            if self.outside == Outside::Suppress {
                let message = "it says what becomes outside `hours`, and there are none";
                return Err(ConfigError::value(&key("outside"), message));
            }
            return Ok(None);
        };
        let hours = Hours::parse(text, zone);
        hours.map(Some).map_err(|message| ConfigError::value(&key("hours"), message))
    }

    pub(super) fn check_rate(&self, key: Key<'_>) -> Result<Option<ActionRate>, ConfigError> {
        let (per_minute, burst) = (self.actions_per_minute, self.actions_burst);
        if per_minute > COUNT_MAX {
            let message = "1 to 1000000 are allowed, and 0, which sets no limit";
            return Err(ConfigError::value(&key("actions_per_minute"), message));
        }
        if !(1..=COUNT_MAX).contains(&burst) {
            return Err(ConfigError::value(&key("actions_burst"), "1 to 1000000 are allowed"));
        }
        Ok((per_minute > 0).then_some(ActionRate { per_minute, burst }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, RawConfig};
    use super::*;

    fn check(rule: &str) -> Result<Config, String> {
        let text = format!(
            "[receivers.r]\nurl = \"http://127.0.0.1:1/\"\n[[rules]]\nname = \"n\"\n{rule}\n{}{}",
            if rule.contains("events") { "" } else { "events = [\"host.down\"]\n" },
            if rule.contains("receivers") { "" } else { "receivers = [\"r\"]\n" },
        );
        let raw: RawConfig = toml::from_str(&text).map_err(|e| e.to_string())?;
        raw.check().map_err(|e| e.to_string())
    }

    #[test]
    fn a_rule_that_cannot_be_is_refused_with_the_key_that_is_wrong() {
        for (rule, key, wanted) in [
            ("match = \"pool in db\"", "match", "column 9: expected `(`"),
            ("match = \" \"", "match", "leave `match` out"),
            ("match = 7", "match", "a text such as"),
            ("match = { pool = 7 }", "match", "expected a string"),
            ("receivers = [\"r\", \"r\"]", "receivers", "named twice"),
            ("delay = \"2d\"", "delay", "1day"),
            ("delay = 30", "delay", "expected a string"),
            ("hours = \"9 to 5\"", "hours", "is no window"),
            ("hours = \"08:00-18:00\"\ntimezone = \"Mars/Olympus\"", "timezone", "Europe/Berlin"),
            ("outside = \"suppress\"", "outside", "there are none"),
            ("hours = \"Mon\"\noutside = \"drop\"", "outside", "`hold`"),
            ("actions_per_minute = 1000001", "actions_per_minute", "0, which sets no limit"),
            ("actions_burst = 0", "actions_burst", "1 to 1000000"),
            ("from = [\"down\"]", "from", "no such event"),
            ("events = [\"host.recovered\"]\nfrom = [\"alive\"]", "from", "suspect, down or left"),
            (
                "events = [\"host.recovered\", \"host.suspect\"]\nfrom = [\"down\"]",
                "from",
                "add `suspect`",
            ),
        ] {
            let error = check(rule).unwrap_err();
            assert!(error.contains(key) && error.contains(wanted), "{rule}\n{error}");
        }
    }

    #[test]
    fn a_rule_may_say_all_of_it_and_is_the_same_when_printed() {
        let text = "match = \"pool in (db, cache) and not canary\"\n\
                    events = [\"host.down\", \"host.recovered\"]\nfrom = [\"down\"]\ndelay = \"30s\"\n\
                    hours = \"Mon-Fri 08:00-18:00\"\ntimezone = \"Europe/Berlin\"\noutside = \"suppress\"\n\
                    actions_per_minute = 6\nactions_burst = 2";
        let rule = &check(text).unwrap().rules[0];
        assert_eq!(
            rule.expression.as_ref().unwrap().as_str(),
            "pool in (db, cache) and not canary"
        );
        assert_eq!((rule.delay.as_secs(), rule.outside), (30, Outside::Suppress));
        assert_eq!(rule.rate, Some(ActionRate { per_minute: 6, burst: 2 }));
        let plain = &check("match = { pool = \"db\" }").unwrap().rules[0];
        assert!(plain.expression.is_none() && plain.labels["pool"] == "db" && plain.rate.is_none());
    }
}
