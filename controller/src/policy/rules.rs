//! Which rules apply, and whom they choose: pure.

use std::collections::BTreeMap;

use super::{Disposition, Verdict, is_action};
use crate::config::Rule;
use crate::event::EventKind;

/// The rules that apply to an event of a host with these labels, in order. `None` stands for the
/// controller itself, which only rules without label conditions match.
pub fn matching<'a>(
    rules: &'a [Rule],
    kind: EventKind,
    labels: Option<&'a BTreeMap<String, String>>,
) -> impl Iterator<Item = &'a Rule> {
    rules.iter().filter(move |rule| {
        rule.events.contains(&kind)
            && match labels {
                None => rule.labels.is_empty(),
                Some(labels) => rule.labels.iter().all(|(k, v)| labels.get(k) == Some(v)),
            }
    })
}

/// One verdict per receiver that any matching rule names. The first rule decides, unless it suppresses
/// or puts off and a later one does not. An order goes to the first step of a rule; later steps are named.
/// `told`: the event is for those alone who were told of the incident, among whom may be whom a rule
/// turned to later.
pub fn choose(
    rules: &[Rule],
    kind: EventKind,
    labels: Option<&BTreeMap<String, String>>,
    told: bool,
    dispose: impl Fn(&Rule) -> Disposition,
) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    for rule in matching(rules, kind, labels) {
        let disposition = dispose(rule);
        for (receiver, later) in addressed(rule, kind, told) {
            let disposition = match (&disposition, later) {
                (Disposition::Suppress { .. }, _) | (_, None) => disposition.clone(),
                (_, Some(before)) => {
                    Disposition::Later { reason: format!("only once `{before}` has done it") }
                }
            };
            let new = Verdict { receiver: receiver.clone(), rule: rule.name.clone(), disposition };
            match verdicts.iter_mut().find(|v| v.receiver == *receiver) {
                None => verdicts.push(new),
                Some(old) if old.disposition.is_open() => *old = new,
                Some(_) => {}
            }
        }
    }
    verdicts
}

/// Whom a rule means by an event, and who must have done it before.
fn addressed(rule: &Rule, kind: EventKind, told: bool) -> Vec<(&String, Option<&String>)> {
    if !is_action(kind) {
        let more = rule.plan.escalate.iter().filter(|_| told);
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
            candidates_same: Vec::new(),
            dry_run,
            always: false,
            plan: Default::default(),
        }
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
        let verdicts = choose(&rules, EventKind::HostDown, Some(&db), false, dispose);
        let told: Vec<_> = verdicts
            .iter()
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
        let verdicts = choose(&rules, EventKind::HostDown, Some(&labels), false, dispose);
        let acts: Vec<_> = verdicts
            .iter()
            .map(|v| (v.receiver.as_str(), v.disposition == Disposition::Act))
            .collect();
        assert_eq!(acts, [("a", true), ("b", false), ("c", false), ("d", true)]);
        let told = |told| {
            let all = choose(&rules, EventKind::HostRecovered, Some(&labels), told, dispose);
            all.into_iter().map(|v| v.receiver).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["c", "d", "e"]);
        assert_eq!(told(false), ["c", "d"]);
    }

    #[test]
    fn labels_events_and_the_controller_itself_are_told_apart() {
        let rules = [rule("db", Some("db"), &["a"], false), rule("all", None, &["c"], false)];
        let web = BTreeMap::from([("pool".to_owned(), "web".to_owned())]);
        let count = |kind, labels| choose(&rules, kind, labels, false, dispose).len();
        assert_eq!(count(EventKind::HostDown, Some(&web)), 1);
        assert_eq!(count(EventKind::HostDown, None), 1);
        assert_eq!(count(EventKind::HostLeft, Some(&web)), 0);
    }
}
