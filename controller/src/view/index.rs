//! A hash index of places (`u32`) whose keys stand elsewhere: some six bytes per entry, no long pause.
//!
//! The entries are spread over [`PARTS`] small tables. Growing one of them moves an eightieth of all
//! entries, so nobody who waits for the lock around it notices; and as they do not all grow at the same
//! moment, less memory lies idle.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Tables of an index. With eighty, a million hosts fill the tables to 76 % (12,500 in 16,384 places each),
/// four million as well; with sixty-four it would be 48 %.
const PARTS: usize = 80;

#[derive(Debug)]
pub(super) struct Index {
    parts: Box<[HashTable<u32>]>,
    hasher: DefaultHashBuilder,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| HashTable::new()).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl Index {
    /// What makes the hashes.
    pub(super) fn hasher(&self) -> &DefaultHashBuilder {
        &self.hasher
    }

    /// The hash under which a key is kept.
    pub(super) fn hash(&self, key: impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The table for a hash: by its middle bits, as a table itself uses the lowest and highest ones.
    fn part(hash: u64) -> usize {
        (hash >> 24) as u32 as usize % PARTS
    }

    /// The place whose key is the one looked for.
    pub(super) fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.parts[Self::part(hash)].find(hash, |at| is(*at)).copied()
    }

    /// Adds a place that is not there; `key` answers the hash of any place that is.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        at: u32,
        key: impl Fn(u32, &DefaultHashBuilder) -> u64,
    ) {
        let hasher = &self.hasher;
        self.parts[Self::part(hash)].insert_unique(hash, at, |at| key(*at, hasher));
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let tables: usize = self.parts.iter().map(HashTable::allocation_size).sum();
        tables + size_of_val(&*self.parts)
    }

    /// Removes a place.
    pub(super) fn remove(&mut self, hash: u64, at: u32) {
        if let Ok(entry) = self.parts[Self::part(hash)].find_entry(hash, |other| *other == at) {
            entry.remove();
        }
    }
}
