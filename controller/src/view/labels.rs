//! Sets of labels, each kept once for all hosts that have the same, with these hosts.
//!
//! A filter is answered once per set, not once per host; and who could take over for a host is found
//! among the members of some sets, not in the whole registry. Operating system and agent version stand
//! in the set too: they are as few. What is different on every host costs some 200 bytes a host here.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::DefaultHashBuilder;

use super::index::Index;
use super::texts::{Sym, Texts, cut};
use crate::store::HostRow;

/// Members that have gone before a set looks who is left.
const STALE_MIN: u32 = 16;

/// A label: key and value.
pub(super) type Label = (Sym, Sym);

/// What hosts with equal labels share.
#[derive(Debug)]
struct Key {
    /// In the order of the keys' texts.
    labels: Box<[Label]>,
    os: Sym,
    agent_version: Sym,
}

impl Key {
    fn take(row: &HostRow, texts: &mut Texts) -> Self {
        let labels = row.labels.iter();
        Self {
            labels: labels.map(|(k, v)| (texts.take(k), texts.take(v))).collect(),
            os: texts.take(&row.os),
            agent_version: texts.take(&row.agent_version),
        }
    }

    fn release(&self, texts: &mut Texts) {
        for (k, v) in &self.labels {
            texts.release(*k);
            texts.release(*v);
        }
        texts.release(self.os);
        texts.release(self.agent_version);
    }

    /// Its texts, as [`of`] answers those of a row.
    fn texts<'a>(&'a self, texts: &'a Texts) -> impl Iterator<Item = &'a str> {
        let facts = [texts.get(self.os), texts.get(self.agent_version)];
        let labels = self.labels.iter().flat_map(|(k, v)| [texts.get(*k), texts.get(*v)]);
        facts.into_iter().chain(labels)
    }
}

/// The texts by which a row's set is found.
fn of(row: &HostRow) -> impl Iterator<Item = &str> {
    let labels = row.labels.iter().flat_map(|(k, v)| [cut(k), cut(v)]);
    [cut(&row.os), cut(&row.agent_version)].into_iter().chain(labels)
}

fn hash<'a>(texts: impl Iterator<Item = &'a str>, hasher: &DefaultHashBuilder) -> u64 {
    let mut hasher = hasher.build_hasher();
    texts.for_each(|text| text.hash(&mut hasher));
    hasher.finish()
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

    /// How many hosts have a set.
    pub(super) fn hosts(&self, at: u32) -> u32 {
        self.get(at).hosts
    }

    /// Whether there is a set at this place.
    pub(super) fn is_there(&self, at: usize) -> bool {
        self.sets.get(at).is_some_and(Option::is_some)
    }

    /// A set's labels.
    pub(super) fn labels(&self, at: u32, texts: &Texts) -> BTreeMap<String, String> {
        let text = |sym| texts.get(sym).to_owned();
        self.get(at).key.labels.iter().map(|(k, v)| (text(*k), text(*v))).collect()
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
        self.get(at).key.texts(texts).eq(of(row))
    }

    /// Makes the host at `slot` a member of the set of its labels; answers which that is.
    pub(super) fn join(&mut self, row: &HostRow, slot: u32, texts: &mut Texts) -> u32 {
        let hash = hash(of(row), self.index.hasher());
        let at = self.find(row, hash, texts).unwrap_or_else(|| self.add(row, hash, texts));
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

    fn find(&self, row: &HostRow, hash: u64, texts: &Texts) -> Option<u32> {
        self.index.find(hash, |at| self.is(at, row, texts))
    }

    fn add(&mut self, row: &HostRow, hashed: u64, texts: &mut Texts) -> u32 {
        self.generation += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            self.sets.push(None);
            (self.sets.len() - 1) as u32
        });
        let members = Vec::with_capacity(1);
        let key = Key::take(row, texts);
        self.sets[at as usize] = Some(Set { key, hosts: 0, members, stale: 0 });
        let (sets, texts) = (&self.sets, &*texts);
        self.index.insert(hashed, at, |at, hasher: &DefaultHashBuilder| {
            let set = sets[at as usize].as_ref().expect("a set lives as long as it is indexed");
            hash(set.key.texts(texts), hasher)
        });
        at
    }

    fn remove(&mut self, at: u32, texts: &mut Texts) {
        let Some(set) = self.sets[at as usize].take() else { return };
        self.generation += 1;
        self.index.remove(hash(set.key.texts(texts), self.index.hasher()), at);
        set.key.release(texts);
        self.free.push(at);
    }

    /// Sets that are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all().count()
    }
}
