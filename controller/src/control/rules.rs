//! Rules as they stand, for people.

use heartwatch_common::time::Wall;
use serde::{Deserialize, Serialize};

use crate::config::Rule;
use crate::policy::review::{Survey, Warning, warnings};

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its name.
    pub name: String,
    /// What it does, on one line.
    pub line: String,
    /// Its condition on labels.
    pub matches: String,
    /// Known hosts that it means.
    pub hosts: u64,
    /// What it keeps back now.
    pub waiting: u64,
    /// Whether its hours are now; true without any.
    pub on: bool,
}

/// All rules, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesReport {
    /// The rules.
    pub rules: Vec<RuleStatus>,
    /// What is odd about them.
    pub warnings: Vec<Warning>,
    /// Known hosts; of fleets with more than 100,000 different sets of labels, those that were asked.
    pub hosts: u64,
}

impl RulesReport {
    /// Of these rules, by what known hosts say; `waiting` things wait for each.
    pub fn new(rules: &[Rule], survey: &Survey, waiting: &[u64], now: Wall) -> Self {
        let each = rules.iter().enumerate().map(|(at, rule)| RuleStatus {
            name: rule.name.clone(),
            line: line(rule),
            matches: rule.condition(),
            hosts: survey.hosts.get(at).copied().unwrap_or(0),
            waiting: waiting.get(at).copied().unwrap_or(0),
            on: rule.hours.as_ref().is_none_or(|hours| hours.is_open(now)),
        });
        Self { rules: each.collect(), warnings: warnings(rules, survey), hosts: survey.total }
    }
}

/// What a rule does, in plain words.
fn line(rule: &Rule) -> String {
    let events: Vec<&str> = rule.events.iter().map(|e| e.as_str()).collect();
    let mut line = format!("{} to {}", events.join(", "), rule.receivers.join(", "));
    let mut add = |text: String| {
        line.push_str("; ");
        line.push_str(&text);
    };
    if !rule.from.is_empty() {
        let from: Vec<&str> = rule.from.iter().map(|s| s.as_str()).collect();
        add(format!("recovered from {} alone", from.join(" or ")));
    }
    if !rule.delay.is_zero() {
        add(format!("after {}", humantime::format_duration(rule.delay)));
    }
    if let Some(hours) = &rule.hours {
        let outside = match rule.outside {
            crate::config::Outside::Hold => "held",
            crate::config::Outside::Suppress => "not sent",
        };
        add(format!("{}, otherwise {outside}", hours.words()));
    }
    if let Some(rate) = rule.rate {
        add(format!("at most {} actions a minute", rate.per_minute));
    }
    let plan = &rule.plan;
    if !plan.first.is_empty() {
        add(format!("once {} did it", plan.first.join(", then ")));
    }
    for (what, within) in [("accepted", plan.accept_within), ("completed", plan.complete_within)] {
        if !within.is_zero() {
            add(format!("to be {what} within {}", humantime::format_duration(within)));
        }
    }
    if !plan.escalate.is_empty() {
        let verb = if plan.escalate_acts { "is ordered to" } else { "is told" };
        add(format!("else {} {verb}", plan.escalate.join(", then ")));
    }
    if rule.always {
        add("never held by storms and pauses".to_owned());
    }
    if rule.dry_run {
        add("dry run".to_owned());
    }
    line
}
