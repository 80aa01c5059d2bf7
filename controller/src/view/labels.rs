//! Sets of labels, each kept once for all hosts that have the same, with these hosts.
//!
//! A filter is answered once per set, not once per host; and who could take over for a host is found
//! among the members of some sets, not in the whole registry. Operating system and agent version stand
//! in the set too: they are as few. What is different on every host costs some 200 bytes a host here.

use std::collections::BTreeMap;

use hashbrown::DefaultHashBuilder;
use std::hash::BuildHasher;

use super::index::Index;
use super::texts::{Sym, Texts};
use crate::store::HostRow;

/// Members that have gone before a set looks who is left.
const STALE_MIN: u32 = 16;

/// A label: key and value.
pub(super) type Label = (Sym, Sym);

/// What hosts with equal labels share, as it is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Sorted by key symbol.
    labels: Box<[Label]>,
    os: Sym,
    agent_version: Sym,
}

#[derive(Debug)]
struct Set {
    key: Key,
    hosts: u32,
    /// Slots that have this set, and `stale` that once had it; sometimes one twice.
    members: Vec<u32>,
    stale: u32,
}

/// All sets. A set is named by its place, a `u32`, which is used again when its last host goes.
#[derive(Debug, Default)]
pub(super) struct LabelSets {
    sets: Vec<Option<Set>>,
    free: Vec<u32>,
    index: Index,
    generation: u64,
}

impl LabelSets {
    /// Rises whenever a set appears or goes: what was remembered about sets is then worth nothing.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Places of sets lie below this.
    pub(super) fn end(&self) -> usize {
        self.sets.len()
    }

    /// The places of all sets.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.sets).filter(|(_, set)| set.is_some()).map(|(at, _)| at)
    }

    fn get(&self, at: u32) -> &Set {
        self.sets[at as usize].as_ref().expect("a set lives as long as it has hosts")
    }

    /// Whether a set has this value under this key; `None`: has the key not at all.
    pub(super) fn has(&self, at: u32, key: Sym, value: Option<Sym>) -> bool {
        self.get(at).key.labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v) == value
    }

    /// The slots of a set's hosts, and some that have left it.
    pub(super) fn members(&self, at: u32) -> &[u32] {
        &self.get(at).members
    }

    /// Writes what a set holds into a row.
    pub(super) fn write(&self, at: u32, texts: &Texts, row: &mut HostRow) {
        let key = &self.get(at).key;
        let text = |sym| texts.get(sym).to_owned();
        row.labels = key.labels.iter().map(|(k, v)| (text(*k), text(*v))).collect();
        row.os = text(key.os);
        row.agent_version = text(key.agent_version);
    }

    /// Whether a set is that of a row's labels.
    pub(super) fn is(&self, at: u32, row: &HostRow, texts: &Texts) -> bool {
        find_key(row, texts).is_some_and(|key| key == self.get(at).key)
    }

    /// Makes the host at `slot` a member of the set of its labels; answers which that is.
    pub(super) fn join(&mut self, row: &HostRow, slot: u32, texts: &mut Texts) -> u32 {
        let known = find_key(row, texts).and_then(|key| self.find(&key));
        let at = known.unwrap_or_else(|| self.add(row, texts));
        let set = self.sets[at as usize].as_mut().expect("found or made just now");
        set.hosts += 1;
        set.members.push(slot);
        at
    }

    /// Ends a membership. `has` answers which slots have this set, after the change.
    pub(super) fn leave(&mut self, at: u32, texts: &mut Texts, has: impl Fn(u32) -> bool) {
        let Some(set) = self.sets[at as usize].as_mut() else { return };
        set.hosts -= 1;
        set.stale += 1;
        if set.hosts == 0 {
            return self.remove(at, texts);
        }
        if set.stale > STALE_MIN && set.stale > set.hosts {
            set.members.sort_unstable();
            set.members.dedup();
            set.members.retain(|slot| has(*slot));
            set.members.shrink_to(set.hosts as usize + set.hosts as usize / 4);
            set.stale = 0;
        }
    }

    fn find(&self, key: &Key) -> Option<u32> {
        self.index.find(self.index.hash(key), |at| self.get(at).key == *key)
    }

    fn add(&mut self, row: &HostRow, texts: &mut Texts) -> u32 {
        let key = take_key(row, texts);
        // Texts that were cut, or found no room, may make two sets one.
        if let Some(known) = self.find(&key) {
            release(&key, texts);
            return known;
        }
        self.generation += 1;
        let hash = self.index.hash(&key);
        let at = self.free.pop().unwrap_or_else(|| {
            self.sets.push(None);
            (self.sets.len() - 1) as u32
        });
        let members = Vec::with_capacity(1);
        self.sets[at as usize] = Some(Set { key, hosts: 0, members, stale: 0 });
        let sets = &self.sets;
        self.index.insert(hash, at, |at, hasher: &DefaultHashBuilder| {
            let set = sets[at as usize].as_ref();
            hasher.hash_one(&set.expect("a set lives as long as it is indexed").key)
        });
        at
    }

    fn remove(&mut self, at: u32, texts: &mut Texts) {
        let Some(set) = self.sets[at as usize].take() else { return };
        self.generation += 1;
        self.index.remove(self.index.hash(&set.key), at);
        release(&set.key, texts);
        self.free.push(at);
    }

    /// Sets that are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all().count()
    }
}

fn sorted(labels: impl Iterator<Item = Label>) -> Box<[Label]> {
    let mut labels: Vec<Label> = labels.collect();
    labels.sort_unstable();
    labels.into()
}

fn find_key(row: &HostRow, texts: &Texts) -> Option<Key> {
    let find = |(k, v): (&String, &String)| Some((texts.find(k)?, texts.find(v)?));
    let labels: Option<Vec<Label>> = row.labels.iter().map(find).collect();
    Some(Key {
        labels: sorted(labels?.into_iter()),
        os: texts.find(&row.os)?,
        agent_version: texts.find(&row.agent_version)?,
    })
}

fn take_key(row: &HostRow, texts: &mut Texts) -> Key {
    let labels: &BTreeMap<String, String> = &row.labels;
    let labels = sorted(labels.iter().map(|(k, v)| (texts.take(k), texts.take(v))));
    Key { labels, os: texts.take(&row.os), agent_version: texts.take(&row.agent_version) }
}

fn release(key: &Key, texts: &mut Texts) {
    for (k, v) in &key.labels {
        texts.release(*k);
        texts.release(*v);
    }
    texts.release(key.os);
    texts.release(key.agent_version);
}
