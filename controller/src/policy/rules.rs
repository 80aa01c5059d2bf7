//! Which rules apply, and whom they choose: pure.

use std::collections::BTreeMap;

use super::{Disposition, Verdict};
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
/// and a later one does not.
pub fn choose(
    rules: &[Rule],
    kind: EventKind,
    labels: Option<&BTreeMap<String, String>>,
    dispose: impl Fn(&Rule) -> Disposition,
) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    for rule in matching(rules, kind, labels) {
        let disposition = dispose(rule);
        for receiver in &rule.receivers {
            let new = Verdict {
                receiver: receiver.clone(),
                rule: rule.name.clone(),
                disposition: disposition.clone(),
            };
            match verdicts.iter_mut().find(|v| v.receiver == *receiver) {
                None => verdicts.push(new),
                Some(old) if matches!(old.disposition, Disposition::Suppress { .. }) => *old = new,
                Some(_) => {}
            }
        }
    }
    verdicts
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
        let verdicts = choose(&rules, EventKind::HostDown, Some(&db), dispose);
        let told: Vec<_> = verdicts
            .iter()
            .map(|v| (v.receiver.as_str(), v.rule.as_str(), v.disposition == Disposition::Act))
            .collect();
        assert_eq!(told, [("a", "db", true), ("b", "db", true), ("c", "all", true)]);
    }

    #[test]
    fn labels_events_and_the_controller_itself_are_told_apart() {
        let rules = [rule("db", Some("db"), &["a"], false), rule("all", None, &["c"], false)];
        let web = BTreeMap::from([("pool".to_owned(), "web".to_owned())]);
        let count = |kind, labels| choose(&rules, kind, labels, dispose).len();
        assert_eq!(count(EventKind::HostDown, Some(&web)), 1);
        assert_eq!(count(EventKind::HostDown, None), 1);
        assert_eq!(count(EventKind::HostLeft, Some(&web)), 0);
    }
}
