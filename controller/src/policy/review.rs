//! What is odd about rules: those that mean nobody, that contradict each other, or that never decide. Pure.
//!
//! Whether two conditions can hold together is asked of the label sets that known hosts have, as that is what
//! counts; two conditions that are written alike, or one that means everybody, need no host.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{Outside, Rule};

/// Label sets of hosts that are looked at; of larger fleets the rest is not.
pub const SETS_MAX: usize = 100_000;

/// Something odd about one rule or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The rules, by name.
    pub rules: Vec<String>,
    /// What is odd, and what to do.
    pub text: String,
}

/// What known hosts say about rules.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Hosts that each rule means.
    pub hosts: Vec<u64>,
    /// All that were asked.
    pub total: u64,
    labels: BTreeSet<String>,
    /// Pairs of rules, by place, that mean some host both.
    both: BTreeSet<(usize, usize)>,
}

impl Survey {
    /// Of no hosts yet.
    pub fn new(rules: &[Rule]) -> Self {
        Self { hosts: vec![0; rules.len()], ..Self::default() }
    }

    /// So many hosts have these labels.
    pub fn add(&mut self, rules: &[Rule], labels: &BTreeMap<String, String>, hosts: u64) {
        self.total += hosts;
        for label in labels.keys() {
            if !self.labels.contains(label) {
                self.labels.insert(label.clone());
            }
        }
        let meant: Vec<usize> =
            rules.iter().enumerate().filter(|(_, r)| r.means(labels)).map(|(at, _)| at).collect();
        for (n, at) in meant.iter().enumerate() {
            self.hosts[*at] += hosts;
            self.both.extend(meant[n + 1..].iter().map(|other| (*at, *other)));
        }
    }

    /// Whether two rules may mean one host.
    fn may_meet(&self, rules: &[Rule], a: usize, b: usize) -> bool {
        covers(&rules[a], &rules[b]) || covers(&rules[b], &rules[a]) || self.both.contains(&(a, b))
    }
}

/// Whether a rule surely means all that another means.
fn covers(a: &Rule, b: &Rule) -> bool {
    a.is_for_all() || (a.labels == b.labels && a.expression == b.expression)
}

fn list(items: &[&str]) -> String {
    items.join(", ")
}

/// All that is odd. Without any hosts only what needs none to be seen.
pub fn warnings(rules: &[Rule], survey: &Survey) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |of: &[usize], text: String| {
        let rules = of.iter().map(|at| rules[*at].name.clone()).collect();
        warnings.push(Warning { rules, text });
    };
    for (at, rule) in rules.iter().enumerate() {
        if let Some(before) = rules[..at].iter().position(|r| r.name == rule.name) {
            let text =
                format!("two rules are called `{}`: `why` cannot tell them apart", rule.name);
            warn(&[before, at], text);
        }
        if survey.total > 0 && survey.hosts.get(at) == Some(&0) {
            let mut unknown: Vec<&str> =
                rule.asks_for().filter(|label| !survey.labels.contains(*label)).collect();
            unknown.dedup();
            let why = match unknown.is_empty() {
                true => "none has these values".to_owned(),
                false => format!("none has a label {}", list(&unknown)),
            };
            warn(&[at], format!("`{}` means no known host: {why}", rule.condition()));
        } else if survey.total > 0 {
            let unknown = rule.asks_for().find(|label| !survey.labels.contains(*label));
            if let Some(label) = unknown {
                let text = format!("no known host has a label {label}: is it written rightly?");
                warn(&[at], text);
            }
        }
        if let Some(always) = shadow(rules, at) {
            let names: Vec<&str> = always.iter().map(|r| rules[*r].name.as_str()).collect();
            let of: Vec<usize> = always.iter().copied().chain([at]).collect();
            let text = format!(
                "`{}` never decides anything: for all that it says, {} comes first; put it before, or take \
                 it out",
                rule.name,
                list(&names)
            );
            warn(&of, text);
        }
        for earlier in 0..at {
            let other = &rules[earlier];
            let differs = other.dry_run != rule.dry_run;
            if !differs || !survey.may_meet(rules, earlier, at) {
                continue;
            }
            let events = other.events.intersection(&rule.events).next();
            let receiver = other.receivers.iter().find(|r| rule.receivers.contains(r));
            if let (Some(event), Some(receiver)) = (events, receiver) {
                let (dry, wet) = if rule.dry_run { (rule, other) } else { (other, rule) };
                let text = format!(
                    "`{}` is a dry run, but `{}` sends {event} of the same hosts to {receiver} all the same",
                    dry.name, wet.name
                );
                warn(&[earlier, at], text);
            }
        }
    }
    warnings
}

/// The earlier rules that together decide whatever this one could, if they do.
fn shadow(rules: &[Rule], at: usize) -> Option<BTreeSet<usize>> {
    let rule = &rules[at];
    let mut by = BTreeSet::new();
    for receiver in &rule.receivers {
        for event in &rule.events {
            let first = rules[..at].iter().position(|r| {
                let suppresses = r.dry_run || (r.hours.is_some() && r.outside == Outside::Suppress);
                // Outside any hours what does not go on is suppressed.
                let sometimes = r.hours.is_some() && !event.goes_on();
                let from = r.from.is_empty() || r.from == rule.from;
                !suppresses
                    && !sometimes
                    && from
                    && r.events.contains(event)
                    && r.receivers.contains(receiver)
                    && covers(r, rule)
            });
            by.insert(first?);
        }
    }
    Some(by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;
    use crate::policy::expression::Expression;

    fn rule(name: &str, condition: &str, receiver: &str) -> Rule {
        Rule {
            name: name.to_owned(),
            expression: (!condition.is_empty()).then(|| Expression::parse(condition).unwrap()),
            events: [EventKind::HostDown].into(),
            receivers: vec![receiver.to_owned()],
            ..Rule::default()
        }
    }

    fn survey(rules: &[Rule]) -> Survey {
        let mut survey = Survey::new(rules);
        for (pool, zone) in [("db", "z1"), ("web", "z2")] {
            let labels = [("pool", pool), ("zone", zone)];
            let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            survey.add(rules, &labels, 3);
        }
        survey
    }

    fn said(rules: &[Rule]) -> Vec<(Vec<String>, String)> {
        let found = warnings(rules, &survey(rules));
        found.into_iter().map(|w| (w.rules, w.text)).collect()
    }

    #[test]
    fn good_rules_are_not_warned_of() {
        let rules =
            [rule("db", "pool = db", "a"), rule("web", "pool = web", "a"), rule("all", "", "b")];
        assert_eq!(said(&rules), []);
        assert_eq!((survey(&rules).hosts, survey(&rules).total), (vec![3, 3, 6], 6));
    }

    #[test]
    fn who_means_nobody_or_asks_for_an_unknown_label_is_named() {
        let rules = [
            rule("typo", "polo = db", "a"),
            rule("value", "pool = bd", "b"),
            rule("half", "pool = db and not cannary", "c"),
        ];
        let said = said(&rules);
        assert!(said[0].1.contains("`polo = db` means no known host: none has a label polo"));
        assert!(said[1].1.contains("none has these values"), "{said:?}");
        assert_eq!(said[2].0, ["half"]);
        assert!(said[2].1.contains("no known host has a label cannary"), "{said:?}");
        // An empty registry says nothing.
        assert_eq!(warnings(&rules, &Survey::new(&rules)), []);
    }

    #[test]
    fn a_dry_run_beside_one_that_sends_is_named_with_both() {
        let dry = Rule { dry_run: true, ..rule("dry", "zone = z1", "a") };
        let both = said(&[dry.clone(), rule("db", "pool = db", "a")]);
        assert_eq!(both[0].0, ["dry", "db"]);
        assert!(both[0].1.contains("`dry` is a dry run, but `db` sends host.down"), "{both:?}");
        assert_eq!(said(&[dry.clone(), rule("web", "pool = web", "a")]), []);
        assert_eq!(said(&[dry, rule("db", "pool = db", "b")]), []);
    }

    #[test]
    fn a_rule_that_never_decides_is_named_with_who_comes_first() {
        let found = said(&[rule("all", "", "a"), rule("db", "pool = db", "a")]);
        assert_eq!(found[0].0, ["all", "db"]);
        assert!(found[0].1.contains("`db` never decides anything"), "{found:?}");
        assert!(said(&[rule("db", "pool = db", "a"), rule("all", "", "a")]).is_empty());
        let twice = said(&[rule("x", "pool = db", "a"), rule("x", "pool = web", "a")]);
        assert!(twice[0].1.contains("two rules are called `x`"));
    }
}
