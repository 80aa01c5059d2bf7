//! Where the records stand: in chunks that never move, so that no growth copies a million of them.

use super::host::{self, Host};
use crate::memory::{prefetch, room};

/// Records of a chunk: 24 megabytes. Memory begins anywhere within a huge page, so of twelve one is lost;
/// with chunks of two half of all records stood in small pages. What is not used takes no memory.
const CHUNK: usize = 131_072;

/// Records by slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slab {
    chunks: Vec<Vec<Option<Host>>>,
    len: usize,
    free: Vec<u32>,
}

impl Slab {
    /// Slots in use or free.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The record in a slot.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&Host> {
        self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)?.as_ref()
    }

    /// The record in a slot.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Host> {
        self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?.as_mut()
    }

    /// Has what a beat needs of a record fetched.
    #[inline]
    pub(crate) fn prefetch(&self, slot: u32) {
        // Not a look at it: that would wait for what is to be fetched.
        let chunk = self.chunks.get(slot as usize / CHUNK);
        if let Some(record) = chunk.and_then(|c| c.get(slot as usize % CHUNK)) {
            prefetch(record, host::BEAT_LINES);
        }
    }

    /// Puts a record into a free slot.
    pub(crate) fn add(&mut self, host: Host) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.chunks[slot as usize / CHUNK][slot as usize % CHUNK] = Some(host);
            return slot;
        }
        if self.len == self.chunks.len() * CHUNK {
            self.chunks.push(room(CHUNK));
        }
        self.chunks[self.len / CHUNK].push(Some(host));
        self.len += 1;
        (self.len - 1) as u32
    }

    /// Takes a record out.
    pub(crate) fn take(&mut self, slot: u32) -> Option<Host> {
        let host =
            self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?.take();
        self.free.extend(host.is_some().then_some(slot));
        host
    }
}
