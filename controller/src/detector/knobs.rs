//! Which hosts wait how long, and which learn together, by their labels.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use heartwatch_common::time::Instant;

use super::timeout::Patience;
use super::timeout::target::Target;
use crate::intervals::CLASSES_MAX;

/// What an operator decides about margins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// What a false suspicion costs, and the bounds. With a wished rate: the cost to start with.
    pub patience: Patience,
    /// Mistakes per host-day that are wished for, if any.
    pub mistakes_per_host_day: Option<f64>,
}

/// Knobs for some hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// For people and for `why`.
    pub name: String,
    /// Labels that a host must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// What holds for them.
    pub knobs: Knobs,
}

/// All knobs of a controller.
#[derive(Clone, Debug, PartialEq)]
pub struct AllKnobs {
    /// For hosts that no override is for.
    pub default: Knobs,
    /// The first that matches holds; at most [`OVERRIDES_MAX`].
    pub overrides: Vec<Override>,
    /// Labels by which hosts learn together.
    pub group_labels: Vec<String>,
    /// Labels of the classes of intervals behind the default one; see [`crate::intervals`].
    pub classes: Vec<BTreeMap<String, String>>,
}

/// Most overrides.
pub const OVERRIDES_MAX: usize = 64;

/// What a host's labels make of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// 0: the default knobs; k: those of override k − 1.
    pub knobs: u8,
    /// Names its group; 0: it has none of the labels.
    pub group: u64,
    /// Its class of intervals; below [`CLASSES_MAX`].
    pub class: u8,
}

impl AllKnobs {
    /// The same for all hosts, learning together.
    pub fn plain(patience: Patience) -> Self {
        let default = Knobs { patience, mistakes_per_host_day: None };
        Self { default, overrides: Vec::new(), group_labels: Vec::new(), classes: Vec::new() }
    }

    /// The labels that make a host's group, for people; empty: it has none of them.
    pub fn group_name(&self, labels: &BTreeMap<String, String>) -> String {
        let named = |l: &String| labels.get(l).map(|value| format!("{l}={value}"));
        let parts: Vec<String> = self.group_labels.iter().filter_map(named).collect();
        parts.join(", ")
    }

    /// What these labels make of a host.
    pub fn profile(&self, labels: &BTreeMap<String, String>) -> Profile {
        let has = |of: &BTreeMap<String, String>| of.iter().all(|(k, v)| labels.get(k) == Some(v));
        let found = self.overrides.iter().take(OVERRIDES_MAX).position(|o| has(&o.labels));
        let class = self.classes.iter().take(CLASSES_MAX - 1).position(has);
        let mut hasher = std::hash::DefaultHasher::new();
        let mut grouped = false;
        for label in &self.group_labels {
            grouped |= labels.contains_key(label);
            labels.get(label).hash(&mut hasher);
        }
        Profile {
            knobs: found.map_or(0, |i| i as u8 + 1),
            group: if grouped { hasher.finish() | 1 } else { 0 },
            class: class.map_or(0, |i| i as u8 + 1),
        }
    }
}

/// Knobs at work in one shard.
#[derive(Clone, Debug)]
pub(crate) struct Turned {
    /// As they stand now: a wished rate moves the cost.
    pub(crate) patience: Patience,
    pub(crate) target: Option<Target>,
    /// Hosts alive under them.
    pub(crate) alive: u64,
    /// For people; empty for the default.
    pub(crate) name: String,
}

impl Turned {
    fn new(knobs: &Knobs, name: &str, now: Instant) -> Self {
        Self {
            patience: knobs.patience,
            target: knobs.mistakes_per_host_day.map(|rate| Target::new(rate, now)),
            alive: 0,
            name: name.to_owned(),
        }
    }

    /// Those of a controller, in the order of [`Profile::knobs`].
    pub(crate) fn all(knobs: &AllKnobs, now: Instant) -> Vec<Self> {
        let overrides = knobs.overrides.iter().take(OVERRIDES_MAX);
        std::iter::once(Self::new(&knobs.default, "", now))
            .chain(overrides.map(|o| Self::new(&o.knobs, &o.name, now)))
            .collect()
    }

    /// A suspicion under them proved wrong.
    pub(crate) fn mistake(&mut self) {
        if let Some(target) = &mut self.target {
            target.mistake();
        }
    }

    /// Lets a wished rate move the cost.
    pub(crate) fn look(&mut self, now: Instant) {
        if let Some(target) = &mut self.target {
            self.patience.cost_s = target.look(self.patience.cost_s, self.alive, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_first_override_that_matches_holds_and_groups_follow_their_labels() {
        let patience = Patience::new(1.0, Duration::from_millis(50), Duration::from_secs(30));
        let knobs = Knobs { patience, mistakes_per_host_day: None };
        let one = |name: &str, of| Override { name: name.to_owned(), labels: labels(of), knobs };
        let all = AllKnobs {
            default: knobs,
            overrides: vec![
                one("db", &[("pool", "db")]),
                one("remote", &[("site", "sea"), ("pool", "db")]),
                one("sea", &[("site", "sea")]),
            ],
            group_labels: vec!["site".to_owned(), "pool".to_owned()],
            classes: vec![labels(&[("pool", "web")]), labels(&[("site", "sea")])],
        };
        let profile = |of| all.profile(&labels(of));
        assert_eq!(profile(&[]), Profile::default());
        assert_eq!(profile(&[("pool", "web")]).knobs, 0);
        assert_eq!(profile(&[("pool", "db"), ("site", "sea")]).knobs, 1);
        assert_eq!(profile(&[("site", "sea")]).knobs, 3);
        assert_eq!(profile(&[("pool", "db")]).class, 0);
        assert_eq!(profile(&[("site", "sea"), ("pool", "web")]).class, 1);
        assert_eq!(profile(&[("site", "sea")]).class, 2);
        let groups = [
            profile(&[("pool", "web")]).group,
            profile(&[("site", "web")]).group,
            profile(&[("pool", "db")]).group,
        ];
        assert!(groups[0] != groups[1] && groups[0] != groups[2] && !groups.contains(&0));
        assert_eq!(groups[0], profile(&[("pool", "web"), ("x", "y")]).group);
        let name = |of| all.group_name(&labels(of));
        assert_eq!(name(&[("pool", "db"), ("x", "y"), ("site", "sea")]), "site=sea, pool=db");
        assert_eq!(name(&[("x", "y")]), "");
    }
}
