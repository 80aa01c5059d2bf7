//! What readers see: the registry with its live figures. Readers never touch a shard.
//!
//! Rows change when a host's story turns, which is rare: they stand behind one lock that is held for a
//! few microseconds at a time. What changes with every beat (last arrival, load) stands in a
//! [`LiveTable`], which shards write with plain relaxed stores.
//!
//! Slots are stable: a host keeps its slot until it is forgotten, so a page token is a slot number and a
//! page is never shifted by joins. Every change of a row gets the next *change number*.
//!
//! # Cost
//!
//! A host takes 61 bytes of rows, 6 to 7 of index, 4 to 5 as member of its label set and 64 of live cell;
//! names and labels that hosts share are kept once, a set of three labels in some 60. Looking through all
//! hosts costs 1 ns (by state or label) to some 15 ns (by digits of the name) each, in pieces of 4,096 slots
//! between which the lock is let go. `tests/tests/memory.rs` holds the bytes.

mod filter;
mod habits;
mod index;
mod labels;
mod lists;
mod live;
mod names;
mod rows;
mod texts;

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::DefaultHashBuilder;
use heartwatch_common::id::HostId;

use crate::event::State;
use crate::policy::placement::{Draw, Pool, Seen};
use crate::store::HostRow;
pub use filter::Filter;
use filter::Sieve;
pub use habits::Lesson;
use index::Index;
use labels::LabelSets;
pub(crate) use live::{CHUNK_LEN, beat, habits_of};
pub use live::{Live, LiveId, LiveTable};
use names::Name;
use rows::{Rows, Tag};
use texts::{Sym, Texts};

/// Most hosts that one page holds.
pub const PAGE_LEN_MAX: usize = 1_000;
/// Slots looked at before a page is returned short, so that a filter that matches little stays bounded.
const SCAN_LEN_MAX: usize = 2_000_000;
/// Pools whose label sets are remembered.
const POOLS_MAX: usize = 4_096;
/// Places of label sets that are looked at before the lock is let go.
const SETS_AT_ONCE: usize = 1_024;

/// One host as readers see it.
#[derive(Clone, Debug)]
pub struct HostView {
    /// Its place; stable until it is forgotten.
    pub slot: u64,
    /// Its row.
    pub row: HostRow,
    /// What changes with every beat, as it was when this was asked for.
    pub live: Live,
    /// The change number of its last change.
    pub changed: u64,
}

/// What a [`View`] takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// The rows of hosts.
    pub rows: usize,
    /// Where each host's row is.
    pub ids: usize,
    /// Sets of labels, with their members.
    pub sets: usize,
    /// Texts of names and labels.
    pub texts: usize,
    /// Live cells.
    pub live: usize,
}

/// All that stands behind the lock.
#[derive(Default)]
struct Registry {
    rows: Rows,
    sets: LabelSets,
    texts: Texts,
    ids: Index,
    counts: [u64; State::ALL.len()],
    /// Of these, those under whose identity two machines answered.
    duplicates: [u64; State::ALL.len()],
    change: u64,
}

impl Registry {
    fn slot(&self, id: HostId) -> Option<u32> {
        self.ids.find(self.ids.hash(id), |slot| self.rows.id(slot) == id)
    }

    fn upsert(&mut self, row: &HostRow, live: Option<LiveId>) {
        let Self { rows, sets, texts, ids, counts, duplicates, change } = self;
        let hash = ids.hash(row.id);
        let known = ids.find(hash, |slot| rows.id(slot) == row.id);
        let Some(slot) = known.or_else(|| rows.take()) else { return };
        *change += 1;
        counts[row.state as usize] += 1;
        duplicates[row.state as usize] += u64::from(row.duplicate);
        match rows.tag(slot).state() {
            Some(before) => {
                counts[before as usize] -= 1;
                duplicates[before as usize] -= u64::from(rows.tag(slot).duplicate());
                let old = rows.set(slot);
                if !sets.is(old, row, texts) {
                    let new = sets.join(row, slot, texts);
                    rows.set_labels(slot, new);
                    sets.leave(old, texts, |slot| rows.has_set(slot, old));
                }
                rows.write(slot, row, live, *change, texts);
            }
            None => {
                let set = sets.join(row, slot, texts);
                rows.set_labels(slot, set);
                rows.write(slot, row, Some(live.unwrap_or_default()), *change, texts);
                let key = |slot, hasher: &DefaultHashBuilder| hasher.hash_one(rows.id(slot));
                ids.insert(hash, slot, key);
            }
        }
    }

    fn remove(&mut self, id: HostId) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        let Self { rows, sets, texts, ids, counts, duplicates, change } = self;
        if let Some(state) = rows.tag(slot).state() {
            counts[state as usize] -= 1;
            duplicates[state as usize] -= u64::from(rows.tag(slot).duplicate());
        }
        ids.remove(ids.hash(id), slot);
        let set = rows.set(slot);
        rows.clear(slot, texts);
        sets.leave(set, texts, |slot| rows.has_set(slot, set));
        *change += 1;
        true
    }
}

/// Labels that hosts of a pool have in common, with their values; `None`: they do not have that one.
type PoolKey = Vec<(Sym, Option<Sym>)>;

/// Which label sets make a pool: remembered as long as none appears or goes.
#[derive(Default)]
struct Pools {
    generation: u64,
    sets: HashMap<PoolKey, Arc<[u32]>>,
}

/// The registry as readers see it.
#[derive(Default)]
pub struct View {
    registry: RwLock<Registry>,
    /// Who wants to change something waits here, and readers after it: otherwise one that takes the lock
    /// again and again, piece after piece, would win it each time.
    turnstile: Mutex<()>,
    pools: Mutex<Pools>,
    live: Arc<LiveTable>,
}

/// A host by its name and its id, for the log. What it calls itself must not begin a line of its own there.
pub fn called(name: &str, id: HostId) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { id.to_string() } else { format!("{name} ({id})") }
}

impl View {
    /// Where shards publish what changes with every beat.
    pub fn live(&self) -> &Arc<LiveTable> {
        &self.live
    }

    fn read(&self) -> RwLockReadGuard<'_, Registry> {
        drop(self.turnstile.lock().unwrap_or_else(PoisonError::into_inner));
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Registry> {
        let _first = self.turnstile.lock().unwrap_or_else(PoisonError::into_inner);
        self.registry.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, registry: &Registry, slot: u32) -> Option<HostView> {
        Some(HostView {
            slot: u64::from(slot),
            row: registry.rows.read(slot, &registry.sets, &registry.texts)?,
            live: self.live.get(registry.rows.live(slot)),
            changed: registry.rows.changed(slot),
        })
    }

    /// Adds a host or replaces its row; its live cell stays, unless `live` brings one.
    ///
    /// Texts longer than 255 bytes, which neither a hello nor an import can carry, are cut.
    pub fn upsert(&self, row: impl Borrow<HostRow>, live: Option<LiveId>) {
        self.write().upsert(row.borrow(), live);
    }

    /// Removes a host. `false` if it was not there.
    pub fn remove(&self, id: HostId) -> bool {
        self.write().remove(id)
    }

    /// One host.
    pub fn get(&self, id: HostId) -> Option<HostView> {
        let registry = self.read();
        self.show(&registry, registry.slot(id)?)
    }

    /// What a host is called in the log: its name, if it is registered under one, and its id.
    pub fn called(&self, id: HostId) -> String {
        let name = self.get(id).map(|host| host.row.name).unwrap_or_default();
        called(&name, id)
    }

    /// Whether a host is registered.
    pub fn contains(&self, id: HostId) -> bool {
        self.read().slot(id).is_some()
    }

    /// Hosts whose name is exactly this; at most two, enough to tell "ambiguous" from "the one".
    pub fn by_name(&self, name: &str) -> Vec<HostView> {
        let mut found = Vec::new();
        let (mut at, mut wanted) = (0, None);
        loop {
            let registry = self.read();
            // Symbols mean what they meant as long as nothing has changed.
            if wanted.is_none_or(|(then, _)| then != registry.change) {
                let Some(kept) = Name::find(name, &registry.texts) else { return found };
                wanted = Some((registry.change, kept));
            }
            let Some((_, kept)) = wanted else { return found };
            if at >= registry.rows.end() {
                return found;
            }
            let named = registry.rows.columns(at).iter().filter(|(.., name)| *name == kept);
            let shown = named.filter_map(|(slot, ..)| self.show(&registry, slot));
            found.extend(shown.take(2 - found.len()));
            if found.len() == 2 {
                return found;
            }
            at = rows::chunk_end(at);
        }
    }

    /// A page of hosts from slot `from` on, at most `limit` (bounded by [`PAGE_LEN_MAX`]), and the slot
    /// where the next page starts, if there is more.
    pub fn list(&self, filter: &Filter, from: u64, limit: usize) -> (Vec<HostView>, Option<u64>) {
        let limit = limit.clamp(1, PAGE_LEN_MAX);
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let stop = from.saturating_add(SCAN_LEN_MAX);
        let mut sieve = Sieve::new(filter);
        let mut page = Vec::new();
        let mut at = from;
        loop {
            let registry = self.read();
            sieve.refresh(&registry);
            if sieve.is_closed() {
                return (page, None);
            }
            if at >= registry.rows.end() {
                return (page, None);
            }
            if at >= stop {
                return (page, Some(at as u64));
            }
            for (slot, tag, set, name) in registry.rows.columns(at).iter() {
                if page.len() == limit {
                    return (page, Some(u64::from(slot)));
                }
                if sieve.passes(&registry, tag, set, name) {
                    page.extend(self.show(&registry, slot));
                }
            }
            at = rows::chunk_end(at);
        }
    }

    /// Alive hosts other than `host` that equal it in the labels named `same` and are no duplicates:
    /// all of them if the pool is small, else `most` picks by `seed`, some perhaps twice. Looks at no
    /// more than `most` members of the pool's label sets. `f` gets each one's id and live figures.
    pub fn pool(
        &self,
        host: &HostRow,
        same: &[String],
        most: usize,
        seed: u64,
        mut f: impl FnMut(HostId, Live),
    ) {
        let draw = Draw { picks: most, seed };
        self.members(host, same, most, draw, |id, tag, live| {
            if tag.state() == Some(State::Alive) && !tag.duplicate() {
                f(id, live);
            }
        });
    }

    /// Hosts other than `host` that equal it in the labels named `same`: all of them, and answers true, if
    /// their label sets have `whole_max` members or fewer; else so many are drawn, some perhaps twice. Label
    /// sets are drawn evenly, then a member of one: hosts of small sets are drawn more often.
    fn members(
        &self,
        host: &HostRow,
        same: &[String],
        whole_max: usize,
        Draw { picks, seed }: Draw,
        mut f: impl FnMut(HostId, Tag, Live),
    ) -> bool {
        let registry = self.read();
        let Some(sets) = self.pool_sets(&registry, host, same) else { return true };
        let mut look = |slot: u32, set: u32| {
            let id = registry.rows.id(slot);
            if registry.rows.has_set(slot, set) && id != host.id {
                f(id, registry.rows.tag(slot), self.live.get(registry.rows.live(slot)));
            }
        };
        let mut total = 0;
        let small = sets.iter().all(|set| {
            total += registry.sets.members(*set).len();
            total <= whole_max
        });
        if small {
            for set in sets.iter() {
                registry.sets.members(*set).iter().for_each(|slot| look(*slot, *set));
            }
            return true;
        }
        let mut state = seed;
        let mut draw = |below: usize| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            ((u128::from(mix(state)) * below as u128) >> 64) as usize
        };
        for _ in 0..picks {
            let set = sets[draw(sets.len())];
            let members = registry.sets.members(set);
            look(members[draw(members.len())], set);
        }
        false
    }

    fn pool_sets(
        &self,
        registry: &Registry,
        host: &HostRow,
        same: &[String],
    ) -> Option<Arc<[u32]>> {
        let Registry { sets, texts, .. } = registry;
        let mut wanted = Vec::with_capacity(same.len());
        for label in same {
            match (texts.find(label), host.labels.get(label)) {
                (Some(key), Some(value)) => wanted.push((key, Some(texts.find(value)?))),
                (Some(key), None) => wanted.push((key, None)),
                // No host at all has this label.
                (None, None) => {}
                (None, Some(_)) => return None,
            }
        }
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if pools.generation != sets.generation() || pools.sets.len() >= POOLS_MAX {
            pools.generation = sets.generation();
            pools.sets.clear();
        }
        if let Some(known) = pools.sets.get(&wanted) {
            return Some(Arc::clone(known));
        }
        let fits = |set: &u32| wanted.iter().all(|(key, value)| sets.has(*set, *key, *value));
        let found: Arc<[u32]> = sets.all().filter(fits).collect();
        pools.sets.insert(wanted, Arc::clone(&found));
        Some(found)
    }

    /// Each set of labels that hosts have in common (one set may come several times, as hosts with equal
    /// labels may differ otherwise), and how many hosts have it; at most `most`. What comes or goes
    /// meanwhile may be missed or told twice: the lock is let go in between.
    pub fn label_sets(&self, most: usize, mut f: impl FnMut(&BTreeMap<String, String>, u64)) {
        let (mut at, mut told) = (0, 0);
        loop {
            let registry = self.read();
            let end = registry.sets.end();
            let places = (at..end.min(at + SETS_AT_ONCE)).filter(|at| registry.sets.is_there(*at));
            let places = places.take(most - told).filter_map(|at| u32::try_from(at).ok());
            let some: Vec<_> = places
                .map(|set| (registry.sets.labels(set, &registry.texts), registry.sets.hosts(set)))
                .collect();
            drop(registry);
            told += some.len();
            some.iter().for_each(|(labels, hosts)| f(labels, u64::from(*hosts)));
            at += SETS_AT_ONCE;
            if at >= end || told >= most {
                return;
            }
        }
    }

    /// Bytes that it takes, by what for.
    pub fn bytes(&self) -> Bytes {
        let live = self.live.bytes();
        let registry = self.read();
        Bytes {
            rows: registry.rows.bytes(),
            ids: registry.ids.bytes(),
            sets: registry.sets.bytes(),
            texts: registry.texts.bytes(),
            live,
        }
    }

    /// How many hosts are in each state, in the order of [`State::ALL`].
    pub fn counts(&self) -> [u64; State::ALL.len()] {
        self.read().counts
    }

    /// How many hosts in each state two machines answered for, in the order of [`State::ALL`].
    pub fn duplicates(&self) -> [u64; State::ALL.len()] {
        self.read().duplicates
    }

    /// The number of the last change.
    pub fn change(&self) -> u64 {
        self.read().change
    }
}

impl Pool for View {
    fn look(
        &self,
        failed: &HostRow,
        same: &[String],
        whole_max: usize,
        draw: Draw,
        seen: &mut dyn FnMut(Seen),
    ) -> bool {
        self.members(failed, same, whole_max, draw, |id, tag, live| {
            let Some(state) = tag.state() else { return };
            seen(Seen { id, state, duplicate: tag.duplicate(), load: live.load });
        })
    }

    fn row(&self, id: HostId) -> Option<HostRow> {
        self.get(id).map(|host| host.row)
    }
}

/// SplitMix64's output function: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators"
/// (OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests;
