//! Where the records stand: each beside its host's live cell, in chunks that never move.

use std::sync::Arc;

use super::host::{BEAT_LINES, Host};
use super::lru::SLOTS_MAX;
use crate::memory::places::{Cell, Cells, Owned};
use crate::view::{CHUNK_LEN, LiveId, LiveTable};

/// Lines of a place: the cell, then those of the record.
const CELL_LINES: usize = 1;

const _: () = assert!(Cells::<Host>::PLACE == 256, "no place lies in two pages");

/// Records by slot. A slot is a place of one of the shard's chunks of the live table.
#[derive(Default)]
pub(crate) struct Slab {
    chunks: Vec<Owned<Host>>,
    /// Which chunk of the table each is.
    names: Vec<u32>,
    len: usize,
    /// Where live figures are published, and the lane of it that is ours.
    table: Arc<LiveTable>,
    lane: u16,
}

/// The copy publishes to a table of its own: cells have one writer.
impl Clone for Slab {
    fn clone(&self) -> Self {
        let table = Arc::new(LiveTable::default());
        let copies = self.chunks.iter().map(|chunk| table.adopt(chunk, self.lane));
        let chunks: Vec<_> = copies.collect();
        let names = (0..chunks.len() as u32).collect();
        Self { chunks, names, len: self.len, table, lane: self.lane }
    }
}

impl std::fmt::Debug for Slab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slab").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Slab {
    /// Slots below this were ever used.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The record in a slot.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&Host> {
        self.chunks.get(slot as usize / CHUNK_LEN)?.get(slot as usize % CHUNK_LEN)
    }

    /// The record in a slot.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Host> {
        self.get_both(slot).map(|(host, _)| host)
    }

    /// The live cell of a slot.
    pub(crate) fn cell(&self, slot: u32) -> Option<&Cell> {
        self.chunks.get(slot as usize / CHUNK_LEN)?.cell(slot as usize % CHUNK_LEN)
    }

    /// The record in a slot, and the live cell beside it.
    #[inline]
    pub(crate) fn get_both(&mut self, slot: u32) -> Option<(&mut Host, &Cell)> {
        self.chunks.get_mut(slot as usize / CHUNK_LEN)?.get_mut(slot as usize % CHUNK_LEN)
    }

    /// Has what a beat needs of a host fetched.
    #[inline]
    pub(crate) fn prefetch_beat(&self, slot: u32) {
        // Not a look at it: that would wait for what is to be fetched.
        if let Some(chunk) = self.chunks.get(slot as usize / CHUNK_LEN) {
            chunk.prefetch(slot as usize % CHUNK_LEN, 0, CELL_LINES + BEAT_LINES);
        }
    }

    /// Has what a look at a host needs of it fetched.
    #[inline]
    pub(crate) fn prefetch_look(&self, slot: u32) {
        if let Some(chunk) = self.chunks.get(slot as usize / CHUNK_LEN) {
            chunk.prefetch(slot as usize % CHUNK_LEN, CELL_LINES, BEAT_LINES);
        }
    }

    /// Publishes there from now on, in this lane; there must be no records yet.
    pub(crate) fn publish_to(&mut self, table: Arc<LiveTable>, lane: u16) {
        (self.table, self.lane) = (table, lane);
    }

    /// Gives back a cell that was taken for a record.
    pub(crate) fn give_back(&self, id: LiveId) {
        self.table.give_back(id);
    }

    /// Puts a record beside the cell that was taken for it; beside any, if that is [`LiveId::NONE`]. `None`:
    /// there is no cell, or it is another shard's.
    pub(crate) fn add(&mut self, host: Host, taken: LiveId) -> Option<u32> {
        let id = match taken {
            LiveId::NONE => self.table.take(self.lane),
            taken => taken,
        };
        let slot = self.put(host, id);
        if slot.is_none() {
            self.table.give_back(id);
        }
        slot
    }

    fn put(&mut self, host: Host, id: LiveId) -> Option<u32> {
        if id == LiveId::NONE {
            return None;
        }
        let known = self.names.iter().position(|name| *name == id.chunk());
        let chunk = match known {
            Some(chunk) => chunk,
            None if self.chunks.len() == SLOTS_MAX / CHUNK_LEN => return None,
            None => {
                self.chunks.push(self.table.claim(id.chunk())?);
                self.names.push(id.chunk());
                self.chunks.len() - 1
            }
        };
        self.chunks.get_mut(chunk)?.put(id.at(), Some(host)).then_some(())?;
        let slot = chunk * CHUNK_LEN + id.at();
        self.len = self.len.max(slot + 1);
        Some(slot as u32)
    }

    /// Takes a record out, and gives its cell back. `false`: there was none.
    pub(crate) fn take(&mut self, slot: u32) -> bool {
        let (chunk, at) = (slot as usize / CHUNK_LEN, slot as usize % CHUNK_LEN);
        let Some(chunk) = self.chunks.get_mut(chunk).filter(|chunk| chunk.get(at).is_some()) else {
            return false;
        };
        chunk.put(at, None);
        self.table.give_back(self.id(slot));
        true
    }

    /// Which cell of the table stands beside a slot's record.
    pub(crate) fn id(&self, slot: u32) -> LiveId {
        let name = self.names.get(slot as usize / CHUNK_LEN);
        name.map_or(LiveId::NONE, |name| LiveId::new(*name, slot as usize % CHUNK_LEN))
    }
}
