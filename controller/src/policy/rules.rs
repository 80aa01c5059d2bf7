//! Which rules apply, and whom they choose: pure.
//!
//! Every rule that matches counts, in the order of the file; of several that choose one receiver the first
//! that does not suppress decides. When what is chosen may go is [`waits`](super::waits)' matter.

use std::collections::BTreeMap;

use heartwatch_common::time::Wall;

use super::{Disposition, Verdict, is_action};
use crate::config::{Outside, Rule};
use crate::event::{EventKind, State};

/// What rules are asked about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What happened.
    pub kind: EventKind,
    /// The labels of the host, or of the domain; `None` stands for the controller itself, which only rules
    /// without label conditions match.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// Where a host stood before, if it is its own news.
    pub from: Option<State>,
}

/// The part of a rule that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// It names other events.
    Events,
    /// Its labels or its expression.
    Match,
    /// The host stood otherwise before.
    From,
}

impl Rule {
    /// Whether it applies; `Err` names the first part that does not fit.
    pub fn judge(&self, of: Subject<'_>) -> Result<(), Clause> {
        if !self.events.contains(&of.kind) {
            return Err(Clause::Events);
        }
        let fits = match of.labels {
            None => self.is_for_all(),
            Some(labels) => self.means(labels),
        };
        if !fits {
            return Err(Clause::Match);
        }
        let elsewhere = of.kind == EventKind::HostRecovered
            && !self.from.is_empty()
            && of.from.is_some_and(|from| !self.from.contains(&from));
        if elsewhere { Err(Clause::From) } else { Ok(()) }
    }

    /// Whether it has no condition on labels.
    pub fn is_for_all(&self) -> bool {
        self.labels.is_empty() && self.expression.is_none()
    }

    /// Whether hosts with these labels are meant.
    pub fn means(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.expression.as_ref().is_none_or(|e| e.holds(labels))
    }

    /// The labels that it asks for.
    pub fn asks_for(&self) -> impl Iterator<Item = &str> {
        let named = self.expression.iter().flat_map(|e| e.labels());
        self.labels.keys().map(String::as_str).chain(named)
    }

    /// Its condition on labels, as it would be written.
    pub fn condition(&self) -> String {
        match &self.expression {
            Some(expression) => expression.to_string(),
            None if self.labels.is_empty() => "every host".to_owned(),
            None => {
                let each: Vec<_> = self.labels.iter().map(|(k, v)| format!("{k} = {v}")).collect();
                each.join(" and ")
            }
        }
    }

    /// Whether it may keep back what it chose.
    pub(super) fn is_gated(&self) -> bool {
        !self.delay.is_zero() || self.hours.is_some() || self.rate.is_some()
    }

    /// Why it does not send an event now, whatever happens later; `None`: it does, or holds it.
    ///
    /// Outside its hours only what goes on can be held, as only that can be judged again; and who may have
    /// heard of a beginning is told the end of it at any time.
    pub(super) fn suppresses(&self, kind: EventKind, at: Wall) -> Option<String> {
        if self.dry_run {
            return Some("the rule is a dry run".to_owned());
        }
        let hours = self.hours.as_ref().filter(|h| !kind.is_end() && !h.is_open(at))?;
        let holds = kind.goes_on() && self.outside == Outside::Hold;
        (!holds)
            .then(|| format!("outside the hours of the rule `{}` ({})", self.name, hours.words()))
    }
}

impl Clause {
    /// Why a rule does not apply, in plain words.
    pub fn words(self, rule: &Rule, of: Subject<'_>) -> String {
        match self {
            Self::Events => {
                let named: Vec<_> = rule.events.iter().map(|e| e.as_str()).collect();
                format!("events: {} is not among {}", of.kind, named.join(", "))
            }
            Self::Match => {
                let Some(labels) = of.labels else {
                    return "match: the controller itself has no labels".to_owned();
                };
                let other = rule.labels.iter().find(|(k, v)| labels.get(*k) != Some(v));
                if let Some((k, v)) = other {
                    return match labels.get(k) {
                        Some(has) => format!("match: {k} is `{has}`, not `{v}`"),
                        None => format!("match: it has no label {k}"),
                    };
                }
                let objection = rule.expression.as_ref().and_then(|e| e.objection(labels));
                format!("match: {}", objection.unwrap_or_default())
            }
            Self::From => {
                let from = of.from.map_or("otherwise", State::as_str);
                let wanted: Vec<_> = rule.from.iter().map(|s| s.as_str()).collect();
                format!("from: it was {from} before, not {}", wanted.join(" or "))
            }
        }
    }
}

/// The rules that apply, in order, with their places.
pub fn matching<'a>(rules: &'a [Rule], of: Subject<'a>) -> impl Iterator<Item = (usize, &'a Rule)> {
    rules.iter().enumerate().filter(move |(_, rule)| rule.judge(of).is_ok())
}

/// A receiver that rules chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which rule, by its place.
    pub rule: usize,
    /// What becomes of the event there.
    pub verdict: Verdict,
}

/// One choice per receiver that any matching rule names. The first rule decides, unless it suppresses or puts
/// off and a later one does not. An order goes to the first step of a rule; later steps are named. `heard`:
/// the event is for those alone who heard of the incident, among whom may be whom a rule turned to.
pub fn choose(
    rules: &[Rule],
    of: Subject<'_>,
    heard: bool,
    dispose: impl Fn(&Rule) -> Disposition,
) -> Vec<Choice> {
    let mut choices: Vec<Choice> = Vec::new();
    for (at, rule) in matching(rules, of) {
        let disposition = dispose(rule);
        for (receiver, later) in addressed(rule, of.kind, heard) {
            let disposition = match (&disposition, later) {
                (Disposition::Suppress { .. }, _) | (_, None) => disposition.clone(),
                (_, Some(before)) => {
                    Disposition::Later { reason: format!("only once `{before}` has done it") }
                }
            };
            let verdict =
                Verdict { receiver: receiver.clone(), rule: rule.name.clone(), disposition };
            let new = Choice { rule: at, verdict };
            match choices.iter_mut().find(|c| c.verdict.receiver == *receiver) {
                None => choices.push(new),
                Some(old) if old.verdict.disposition.is_open() => *old = new,
                Some(_) => {}
            }
        }
    }
    choices
}

/// Whom a rule means by an event, and who must have done it before.
fn addressed(rule: &Rule, kind: EventKind, heard: bool) -> Vec<(&String, Option<&String>)> {
    if !is_action(kind) {
        let more = rule.plan.escalate.iter().filter(|_| heard);
        return rule.receivers.iter().chain(more).map(|r| (r, None)).collect();
    }
    let steps = &rule.plan.first;
    let before = std::iter::once(None).chain(steps.iter().map(Some));
    let first = steps.iter().zip(before);
    first.chain(rule.receivers.iter().map(|r| (r, steps.last()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, pool: Option<&str>, receivers: &[&str], dry_run: bool) -> Rule {
        Rule {
            name: name.to_owned(),
            labels: pool.map(|p| ("pool".to_owned(), p.to_owned())).into_iter().collect(),
            events: [EventKind::HostDown].into(),
            receivers: receivers.iter().map(|r| (*r).to_owned()).collect(),
            dry_run,
            ..Rule::default()
        }
    }

    fn of(kind: EventKind, labels: Option<&BTreeMap<String, String>>) -> Subject<'_> {
        Subject { kind, labels, from: None }
    }

    fn dispose(rule: &Rule) -> Disposition {
        if rule.dry_run {
            Disposition::Suppress { reason: "dry".to_owned() }
        } else {
            Disposition::Act
        }
    }

    #[test]
    fn a_receiver_that_several_rules_choose_is_told_once() {
        let rules = [
            rule("dry", None, &["a"], true),
            rule("db", Some("db"), &["a", "b"], false),
            rule("all", None, &["b", "c"], false),
        ];
        let db = BTreeMap::from([("pool".to_owned(), "db".to_owned())]);
        let choices = choose(&rules, of(EventKind::HostDown, Some(&db)), false, dispose);
        let told: Vec<_> = choices
            .iter()
            .map(|c| &c.verdict)
            .map(|v| (v.receiver.as_str(), v.rule.as_str(), v.disposition == Disposition::Act))
            .collect();
        assert_eq!(told, [("a", "db", true), ("b", "db", true), ("c", "all", true)]);
    }

    #[test]
    fn an_order_goes_to_the_first_step_and_its_end_to_whoever_may_have_been_turned_to() {
        let mut stepped = rule("steps", None, &["c", "d"], false);
        stepped.events.insert(EventKind::HostRecovered);
        stepped.plan.first = vec!["a".to_owned(), "b".to_owned()];
        stepped.plan.escalate = vec!["e".to_owned()];
        let rules = [stepped, rule("plain", None, &["d"], false)];
        let labels = BTreeMap::new();
        let verdicts = choose(&rules, of(EventKind::HostDown, Some(&labels)), false, dispose);
        let acts: Vec<_> = verdicts
            .iter()
            .map(|c| (c.verdict.receiver.as_str(), c.verdict.disposition == Disposition::Act))
            .collect();
        assert_eq!(acts, [("a", true), ("b", false), ("c", false), ("d", true)]);
        let told = |told| {
            let of = of(EventKind::HostRecovered, Some(&labels));
            let all = choose(&rules, of, told, dispose);
            all.into_iter().map(|c| c.verdict.receiver).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["c", "d", "e"]);
        assert_eq!(told(false), ["c", "d"]);
    }

    #[test]
    fn labels_events_and_the_controller_itself_are_told_apart() {
        let rules = [rule("db", Some("db"), &["a"], false), rule("all", None, &["c"], false)];
        let web = BTreeMap::from([("pool".to_owned(), "web".to_owned())]);
        let count = |kind, labels| choose(&rules, of(kind, labels), false, dispose).len();
        assert_eq!(count(EventKind::HostDown, Some(&web)), 1);
        assert_eq!(count(EventKind::HostDown, None), 1);
        assert_eq!(count(EventKind::HostLeft, Some(&web)), 0);
    }
}
