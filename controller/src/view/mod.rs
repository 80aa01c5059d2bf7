//! What readers see: the registry with its live figures. Readers never touch a shard.
//!
//! Rows change when a host's story turns, which is rare: they stand behind one lock that is held for a
//! copy at most. What changes with every beat (last arrival, load) stands in a [`LiveTable`], which
//! shards write with plain relaxed stores.
//!
//! Slots are stable: a host keeps its slot until it is forgotten, so a page token is a slot number and a
//! page is never shifted by joins. Every change of a row gets the next *change number*.

mod live;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use heartwatch_common::id::HostId;

use crate::event::State;
use crate::store::HostRow;
pub use live::{Live, LiveId, LiveTable};

/// Most hosts that one page holds.
pub const PAGE_LEN_MAX: usize = 1_000;
/// Slots looked at before a page is returned short, so that a filter that matches little stays bounded.
const SCAN_LEN_MAX: usize = 2_000_000;

/// One host as readers see it.
#[derive(Clone, Debug)]
pub struct HostView {
    /// Its place; stable until it is forgotten.
    pub slot: u64,
    /// Its row.
    pub row: Arc<HostRow>,
    /// What changes with every beat, as it was when this was asked for.
    pub live: Live,
    /// The change number of its last change.
    pub changed: u64,
}

/// Which hosts to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only in one of these states; empty = any.
    pub states: Vec<State>,
    /// Only with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only with this text in the name.
    pub name_contains: Option<String>,
}

impl Filter {
    /// Whether a row passes.
    pub fn matches(&self, row: &HostRow) -> bool {
        (self.states.is_empty() || self.states.contains(&row.state))
            && self.labels.iter().all(|(k, v)| row.labels.get(k) == Some(v))
            && self.name_contains.as_ref().is_none_or(|part| row.name.contains(part.as_str()))
    }
}

#[derive(Clone)]
struct Entry {
    row: Arc<HostRow>,
    live: LiveId,
    changed: u64,
}

#[derive(Default)]
struct Inner {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    index: HashMap<HostId, usize>,
    counts: [u64; State::ALL.len()],
    change: u64,
}

/// The registry as readers see it.
#[derive(Default)]
pub struct View {
    inner: RwLock<Inner>,
    live: Arc<LiveTable>,
}

impl View {
    /// Where shards publish what changes with every beat.
    pub fn live(&self) -> &Arc<LiveTable> {
        &self.live
    }

    fn show(&self, slot: usize, entry: &Entry) -> HostView {
        HostView {
            slot: slot as u64,
            row: Arc::clone(&entry.row),
            live: self.live.get(entry.live),
            changed: entry.changed,
        }
    }

    /// Adds a host or replaces its row; its live cell stays, unless `live` brings one.
    pub fn upsert(&self, row: HostRow, live: Option<LiveId>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        inner.change += 1;
        let changed = inner.change;
        inner.counts[row.state as usize] += 1;
        let row = Arc::new(row);
        if let Some(&slot) = inner.index.get(&row.id) {
            if let Some(host) = inner.slots[slot].as_mut() {
                inner.counts[host.row.state as usize] -= 1;
                host.row = row;
                host.changed = changed;
                if let Some(live) = live {
                    host.live = live;
                }
            }
            return;
        }
        let slot = inner.free.pop().unwrap_or_else(|| {
            inner.slots.push(None);
            inner.slots.len() - 1
        });
        inner.index.insert(row.id, slot);
        let live = live.unwrap_or_default();
        inner.slots[slot] = Some(Entry { row, live, changed });
    }

    /// Removes a host. `false` if it was not there.
    pub fn remove(&self, id: HostId) -> bool {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = inner.index.remove(&id) else { return false };
        if let Some(host) = inner.slots[slot].take() {
            inner.counts[host.row.state as usize] -= 1;
        }
        inner.free.push(slot);
        inner.change += 1;
        true
    }

    /// One host.
    pub fn get(&self, id: HostId) -> Option<HostView> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let slot = *inner.index.get(&id)?;
        inner.slots[slot].as_ref().map(|entry| self.show(slot, entry))
    }

    /// Hosts whose name is exactly this; at most two, enough to tell "ambiguous" from "the one".
    pub fn by_name(&self, name: &str) -> Vec<HostView> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let named = |e: &Entry| e.row.name == name;
        let all = inner.slots.iter().enumerate().filter_map(|(i, e)| Some((i, e.as_ref()?)));
        all.filter(|(_, e)| named(e)).take(2).map(|(i, e)| self.show(i, e)).collect()
    }

    /// A page of hosts from slot `from` on, at most `limit` (bounded by [`PAGE_LEN_MAX`]), and the slot
    /// where the next page starts, if there is more.
    pub fn list(&self, filter: &Filter, from: u64, limit: usize) -> (Vec<HostView>, Option<u64>) {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let limit = limit.clamp(1, PAGE_LEN_MAX);
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let mut page = Vec::new();
        for (scanned, slot) in (from..inner.slots.len()).enumerate() {
            if page.len() == limit || scanned == SCAN_LEN_MAX {
                return (page, Some(slot as u64));
            }
            let found = inner.slots[slot].iter().filter(|e| filter.matches(&e.row));
            page.extend(found.map(|e| self.show(slot, e)));
        }
        (page, None)
    }

    /// Calls `f` for every host, under the read lock: keep it short.
    pub fn for_each(&self, mut f: impl FnMut(&HostView)) {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        for (slot, entry) in inner.slots.iter().enumerate() {
            entry.iter().for_each(|e| f(&self.show(slot, e)));
        }
    }

    /// How many hosts are in each state, in the order of [`State::ALL`].
    pub fn counts(&self) -> [u64; State::ALL.len()] {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).counts
    }

    /// The number of the last change.
    pub fn change(&self) -> u64 {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::id::{Boot, Generation};
    use heartwatch_common::time::Wall;

    fn row(n: u8, state: State, zone: &str) -> HostRow {
        HostRow {
            id: HostId([n; 16]),
            name: format!("host-{n}"),
            labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
            os: String::new(),
            agent_version: String::new(),
            state,
            cause: None,
            boot: Boot(1),
            generation: Generation(0),
            address: None,
            first_seen: Wall(0),
            since: Wall(0),
            incident: None,
            duplicate: false,
            frozen_ms: None,
        }
    }

    #[test]
    fn pages_walk_every_host_once_while_hosts_come_and_go() {
        let view = View::default();
        for n in 0..10 {
            view.upsert(row(n, State::Alive, "a"), None);
        }
        let (first, next) = view.list(&Filter::default(), 0, 4);
        assert_eq!((first.len(), next), (4, Some(4)));
        view.remove(HostId([0; 16]));
        view.upsert(row(50, State::Alive, "a"), None);
        let (rest, next) = view.list(&Filter::default(), next.unwrap(), 100);
        assert_eq!((rest.len(), next), (6, None));
    }

    #[test]
    fn filters_and_counts_follow_the_rows() {
        let view = View::default();
        view.upsert(row(1, State::Alive, "a"), None);
        view.upsert(row(2, State::Alive, "b"), None);
        view.upsert(row(2, State::Down, "b"), None);
        let filter = Filter { states: vec![State::Down], ..Filter::default() };
        assert_eq!(view.list(&filter, 0, 10).0.len(), 1);
        let filter =
            Filter { labels: BTreeMap::from([("zone".into(), "a".into())]), ..Filter::default() };
        assert_eq!(view.list(&filter, 0, 10).0.len(), 1);
        assert_eq!(view.counts(), [0, 1, 0, 1, 0]);
        assert_eq!(view.by_name("host-2").len(), 1);
        assert!(view.remove(HostId([2; 16])) && !view.remove(HostId([2; 16])));
        assert_eq!(view.counts(), [0, 1, 0, 0, 0]);
    }
}
