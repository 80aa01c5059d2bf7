//! Sets of labels, each kept once for all hosts that have the same, with these hosts.
//!
//! A filter is answered once per set, not once per host; and who could take over for a host is found
//! among the members of some sets, not in the whole registry. Operating system and agent version stand
//! in the set too: they are as few. A set of three labels and eight hosts takes some 90 bytes; labels that
//! are different on every host cost as much a host.
//!
//! Where there is no room for one more text ([`Texts::take`]) a host counts among those without labels.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::DefaultHashBuilder;

use super::index::Index;
use super::lists::{List, Lists};
use super::texts::{Sym, Texts, cut};
use crate::store::HostRow;

/// Members that have gone before a set looks who is left.
const STALE_MIN: usize = 16;
/// Sets in a chunk.
const CHUNK_LEN: usize = 1_024;
/// Words of a key before its labels: operating system and agent version.
const FACTS: usize = 2;
/// The key of hosts that say nothing.
const BARE: [Sym; FACTS] = [Sym::EMPTY; FACTS];

/// A label: key and value.
pub(super) type Label = (Sym, Sym);

/// The key of a row's set: its facts, then key and value of each label, in the order of the keys' texts.
/// `None`, and nothing is taken: there is no room for one of its texts.
fn take_key(row: &HostRow, texts: &mut Texts) -> Option<Vec<u32>> {
    let mut key = Vec::with_capacity(FACTS + 2 * row.labels.len());
    for text in of(row) {
        let sym = texts.take(text);
        if sym == Sym::EMPTY && !text.is_empty() {
            release(&key, texts);
            return None;
        }
        key.push(sym.word());
    }
    Some(key)
}

fn release(key: &[u32], texts: &mut Texts) {
    key.iter().for_each(|word| texts.release(Sym::of(*word)));
}

/// A key's texts, as [`of`] answers those of a row.
fn texts_of<'a>(key: &'a [u32], texts: &'a Texts) -> impl Iterator<Item = &'a str> {
    key.iter().map(|word| texts.get(Sym::of(*word)))
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
    key: List,
    /// Slots that have this set, and as many more as once had it; sometimes one twice.
    members: List,
    /// How many have it; none: there is no set at this place.
    hosts: u32,
}

impl Set {
    const NONE: Self = Self { key: List::EMPTY, members: List::EMPTY, hosts: 0 };
}

/// All sets. A set is named by its place, a `u32`, which is used again when its last host goes.
#[derive(Debug, Default)]
pub(super) struct LabelSets {
    chunks: Vec<Box<[Set]>>,
    /// Places ever used.
    end: usize,
    free: Vec<u32>,
    lists: Lists,
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
        self.end
    }

    /// The places of all sets.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        let sets = self.chunks.iter().flat_map(|chunk| chunk.iter());
        (0u32..).zip(sets).filter(|(_, set)| set.hosts > 0).map(|(at, _)| at)
    }

    fn set(&self, at: u32) -> &Set {
        &self.chunks[at as usize / CHUNK_LEN][at as usize % CHUNK_LEN]
    }

    fn set_mut(&mut self, at: u32) -> &mut Set {
        &mut self.chunks[at as usize / CHUNK_LEN][at as usize % CHUNK_LEN]
    }

    fn key(&self, at: u32) -> &[u32] {
        self.lists.get(&self.set(at).key)
    }

    fn pairs(&self, at: u32) -> impl Iterator<Item = Label> {
        let pairs = self.key(at).get(FACTS..).unwrap_or_default().as_chunks::<2>().0;
        pairs.iter().map(|[k, v]| (Sym::of(*k), Sym::of(*v)))
    }

    /// Whether a set has this value under this key; `None`: has the key not at all.
    pub(super) fn has(&self, at: u32, key: Sym, value: Option<Sym>) -> bool {
        self.pairs(at).find(|(k, _)| *k == key).map(|(_, v)| v) == value
    }

    /// How many hosts have a set.
    pub(super) fn hosts(&self, at: u32) -> u32 {
        self.set(at).hosts
    }

    /// Whether there is a set at this place.
    pub(super) fn is_there(&self, at: usize) -> bool {
        u32::try_from(at).is_ok_and(|place| at < self.end && self.set(place).hosts > 0)
    }

    /// A set's labels.
    pub(super) fn labels(&self, at: u32, texts: &Texts) -> BTreeMap<String, String> {
        let text = |sym| texts.get(sym).to_owned();
        self.pairs(at).map(|(k, v)| (text(k), text(v))).collect()
    }

    /// The slots of a set's hosts, and some that have left it.
    pub(super) fn members(&self, at: u32) -> &[u32] {
        self.lists.get(&self.set(at).members)
    }

    /// Writes what a set holds into a row.
    pub(super) fn write(&self, at: u32, texts: &Texts, row: &mut HostRow) {
        row.labels = self.labels(at, texts);
        let [os, agent_version, ..] = self.key(at) else { return };
        row.os = texts.get(Sym::of(*os)).to_owned();
        row.agent_version = texts.get(Sym::of(*agent_version)).to_owned();
    }

    /// Whether a set is that of a row's labels.
    pub(super) fn is(&self, at: u32, row: &HostRow, texts: &Texts) -> bool {
        texts_of(self.key(at), texts).eq(of(row))
    }

    /// Makes the host at `slot` a member of the set of its labels; answers which that is.
    pub(super) fn join(&mut self, row: &HostRow, slot: u32, texts: &mut Texts) -> u32 {
        let at = match self.find(|| of(row), texts) {
            Ok(at) => at,
            Err(hash) => match take_key(row, texts) {
                Some(key) => self.add(&key, hash, texts),
                None => match self.find(|| BARE.iter().map(|sym| texts.get(*sym)), texts) {
                    Ok(at) => at,
                    Err(hash) => self.add(&BARE.map(Sym::word), hash, texts),
                },
            },
        };
        let Self { chunks, lists, .. } = self;
        let set = &mut chunks[at as usize / CHUNK_LEN][at as usize % CHUNK_LEN];
        set.hosts += 1;
        lists.push(&mut set.members, slot);
        at
    }

    /// Ends a membership. `has` answers which slots have this set, after the change.
    pub(super) fn leave(&mut self, at: u32, texts: &mut Texts, has: impl Fn(u32) -> bool) {
        let Self { chunks, lists, .. } = self;
        let set = &mut chunks[at as usize / CHUNK_LEN][at as usize % CHUNK_LEN];
        set.hosts = set.hosts.saturating_sub(1);
        let hosts = set.hosts as usize;
        if hosts == 0 {
            return self.remove(at, texts);
        }
        let stale = set.members.len().saturating_sub(hosts);
        if stale > STALE_MIN && stale > hosts {
            let mut members = lists.get(&set.members).to_vec();
            members.sort_unstable();
            members.dedup();
            members.retain(|slot| has(*slot));
            members.shrink_to(hosts + hosts / 8);
            let old = std::mem::replace(&mut set.members, lists.keep(&members));
            lists.give_back(old);
        }
    }

    /// The set with these texts, or the hash under which it would be found.
    fn find<'a, I>(&self, wanted: impl Fn() -> I, texts: &Texts) -> Result<u32, u64>
    where
        I: Iterator<Item = &'a str>,
    {
        let hash = hash(wanted(), self.index.hasher());
        let is = |at| texts_of(self.key(at), texts).eq(wanted());
        self.index.find(hash, is).ok_or(hash)
    }

    fn add(&mut self, key: &[u32], hashed: u64, texts: &Texts) -> u32 {
        self.generation += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            if self.end == self.chunks.len() * CHUNK_LEN {
                self.chunks.push((0..CHUNK_LEN).map(|_| Set::NONE).collect());
            }
            self.end += 1;
            (self.end - 1) as u32
        });
        let key = self.lists.keep(key);
        *self.set_mut(at) = Set { key, ..Set::NONE };
        let Self { chunks, lists, index, .. } = self;
        index.insert(hashed, at, |at, hasher: &DefaultHashBuilder| {
            let key = &chunks[at as usize / CHUNK_LEN][at as usize % CHUNK_LEN].key;
            hash(texts_of(lists.get(key), texts), hasher)
        });
        at
    }

    fn remove(&mut self, at: u32, texts: &mut Texts) {
        self.generation += 1;
        let Set { key, members, .. } = std::mem::replace(self.set_mut(at), Set::NONE);
        let words = self.lists.get(&key);
        self.index.remove(hash(texts_of(words, texts), self.index.hasher()), at);
        release(words, texts);
        self.lists.give_back(key);
        self.lists.give_back(members);
        self.free.push(at);
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let sets: usize = self.chunks.iter().map(|chunk| size_of_val(&**chunk)).sum();
        sets + self.free.capacity() * 4 + self.lists.bytes() + self.index.bytes()
    }

    /// Sets that are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::new_row;
    use heartwatch_common::id::HostId;
    use heartwatch_common::time::Wall;

    fn row(pool: &str) -> HostRow {
        let labels = [("pool".to_owned(), pool.to_owned())].into();
        HostRow { labels, ..new_row(HostId([1; 16]), Wall(0)) }
    }

    #[test]
    fn who_has_a_text_for_which_there_is_no_room_counts_among_those_without_labels() {
        let (mut sets, mut texts) = (LabelSets::default(), Texts::with_room(1));
        let known = sets.join(&row("a"), 0, &mut texts);
        let refused = sets.join(&row("b"), 1, &mut texts);
        assert_eq!(sets.join(&row("c"), 2, &mut texts), refused);
        assert!(sets.labels(refused, &texts).is_empty() && sets.members(refused) == [1, 2]);
        assert!(sets.is(known, &row("a"), &texts) && !sets.is(refused, &row("b"), &texts));
        assert_eq!((texts.len(), texts.refused()), (2, 2));
        // Once a text has gone there is room for another.
        sets.leave(known, &mut texts, |_| false);
        let now = sets.join(&row("c"), 2, &mut texts);
        sets.leave(refused, &mut texts, |slot| slot == 1);
        assert!(sets.is(now, &row("c"), &texts) && sets.hosts(refused) == 1);
        sets.leave(refused, &mut texts, |_| false);
        sets.leave(now, &mut texts, |_| false);
        assert_eq!((sets.len(), texts.len()), (0, 0));
    }
}
