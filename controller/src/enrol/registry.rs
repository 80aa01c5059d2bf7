//! What shards must know of enrolments: least generations and given labels, by host.
//!
//! Shared by all shards and asked only off the way of a beat: for a host that is not registered, and for a
//! hello. A host takes some 25 bytes, and only if its generation was raised or it was given labels (another
//! 16 while it is revoked); hosts with the same labels share one copy of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use heartwatch_common::id::{Generation, HostId};

type Labels = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    least: Generation,
    /// Which set of labels, plus one; 0: none.
    labels: u32,
}

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<HostId, Entry>,
    sets: Vec<Arc<Labels>>,
    numbers: HashMap<Arc<Labels>, u32>,
    revoked: HashSet<HostId>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Enrolled(RwLock<Inner>);

impl Enrolled {
    /// What is known of a host from now on. A least generation never falls.
    pub fn set(&self, host: HostId, least: Generation, labels: &Labels) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let number = if labels.is_empty() {
            0
        } else if let Some(number) = inner.numbers.get(labels) {
            *number
        } else {
            let set = Arc::new(labels.clone());
            inner.sets.push(Arc::clone(&set));
            let number = u32::try_from(inner.sets.len()).unwrap_or(u32::MAX);
            inner.numbers.insert(set, number);
            number
        };
        let least = least.max(inner.hosts.get(&host).map_or(Generation(0), |e| e.least));
        if least > Generation(0) || number > 0 {
            inner.hosts.insert(host, Entry { least, labels: number });
        } else {
            inner.hosts.remove(&host);
        }
    }

    fn get(&self, host: HostId) -> Entry {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        inner.hosts.get(&host).copied().unwrap_or_default()
    }

    /// Least generation of a host's key that is accepted.
    pub fn least(&self, host: HostId) -> Generation {
        self.get(host).least
    }

    /// Notes whether a host is revoked.
    pub fn set_revoked(&self, host: HostId, revoked: bool) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if revoked {
            inner.revoked.insert(host);
        } else {
            inner.revoked.remove(&host);
        }
    }

    /// How many hosts are revoked.
    pub fn revoked_len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).revoked.len()
    }

    /// Whether a host was revoked, and that was not lifted.
    pub fn is_revoked(&self, host: HostId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).revoked.contains(&host)
    }

    /// A number that changes when the labels given to a host do.
    pub fn mark(&self, host: HostId) -> u32 {
        self.get(host).labels
    }

    /// Lays the labels that a host was given over those that it says itself: the controller's word wins.
    pub fn label(&self, host: HostId, labels: &mut Labels) {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = inner.hosts.get(&host).filter(|e| e.labels > 0) else { return };
        if let Some(set) = inner.sets.get(entry.labels as usize - 1) {
            labels.extend(set.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn given_labels_win_and_least_generations_never_fall() {
        let all = Enrolled::default();
        let (a, b, c) = (HostId([1; 16]), HostId([2; 16]), HostId([3; 16]));
        let given = labels(&[("pool", "a"), ("rack", "7")]);
        all.set(a, Generation(0), &given);
        all.set(b, Generation(4), &given);
        all.set(b, Generation(2), &given);
        assert_eq!((all.least(a).0, all.least(b).0, all.least(c).0), (0, 4, 0));
        assert!(all.mark(a) == all.mark(b) && all.mark(c) == 0);
        let mut own = labels(&[("pool", "mine"), ("os", "x")]);
        all.label(a, &mut own);
        assert_eq!(own, labels(&[("os", "x"), ("pool", "a"), ("rack", "7")]));
        let mut own = labels(&[("pool", "mine")]);
        all.label(c, &mut own);
        assert_eq!(own, labels(&[("pool", "mine")]));
        let before = all.mark(a);
        all.set(a, Generation(0), &labels(&[("pool", "b")]));
        assert!(all.mark(a) != before);
        all.set(a, Generation(0), &Labels::new());
        assert_eq!(all.0.read().unwrap().hosts.len(), 1, "what says nothing is not kept");
    }
}
