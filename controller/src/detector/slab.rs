//! Where the records stand: each beside its host's live cell, in chunks that never move.

use std::sync::Arc;

use super::host::{BEAT_LINES, Host};
use super::index::SLOTS_MAX;
use crate::memory::places::{Cell, Cells, Owned};
use crate::view::{CHUNK_LEN, LiveId, LiveTable};

/// Lines of a place before the record.
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

    /// Has what a beat needs of a host fetched, but not into the first cache yet: that is for many hosts.
    #[inline]
    pub(crate) fn prefetch_far(&self, slot: u32) {
        // Not a look at it: that would wait for what is to be fetched.
        if let Some(chunk) = self.chunks.get(slot as usize / CHUNK_LEN) {
            chunk.prefetch_second(slot as usize % CHUNK_LEN, CELL_LINES + BEAT_LINES);
        }
    }

    /// Has what a beat needs of a host fetched, after [`Self::prefetch_far`].
    #[inline]
    pub(crate) fn prefetch_beat(&self, slot: u32) {
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

    /// Publishes there from now on, in this lane.
    ///
    /// # Panics
    /// If there are records already.
    pub(crate) fn publish_to(&mut self, table: Arc<LiveTable>, lane: u16) {
        assert!(self.chunks.is_empty(), "their cells would be read by nobody");
        (self.table, self.lane) = (table, lane);
    }

    /// Gives back a cell that was taken for a host, of which a record turned out to stand in `slot` already.
    pub(crate) fn give_back(&self, id: LiveId, slot: Option<u32>) {
        if slot.is_none_or(|slot| self.id(slot) != id) {
            self.table.give_back(id);
        }
    }

    /// Puts a record beside the cell that was taken for it; beside any, if that is [`LiveId::NONE`]. `None`:
    /// there is no cell, or it is another host's or another shard's.
    pub(crate) fn add(&mut self, host: Host, taken: LiveId) -> Option<u32> {
        let id = match taken {
            LiveId::NONE => self.table.take(self.lane),
            taken => taken,
        };
        let slot = self.slot_for(id)?;
        if self.get(slot).is_some() {
            log::error!("a cell was taken for two hosts: {} is not watched", host.id);
            return None;
        }
        self.chunks.get_mut(slot as usize / CHUNK_LEN)?.put(id.at(), Some(host)).then_some(())?;
        self.len = self.len.max(slot as usize + 1);
        Some(slot)
    }

    /// The slot beside a cell. If it can't be ours, the cell is given back.
    fn slot_for(&mut self, id: LiveId) -> Option<u32> {
        if id == LiveId::NONE {
            return None;
        }
        let known = self.names.iter().position(|name| *name == id.chunk());
        let slot = known.unwrap_or(self.chunks.len()) * CHUNK_LEN + id.at();
        // A registry of more hosts than a shard watches takes cells for all of them.
        let claimed = match known {
            _ if slot >= SLOTS_MAX => None,
            Some(_) => Some(()),
            None => self.table.claim(id.chunk(), self.lane).map(|records| {
                self.chunks.push(records);
                self.names.push(id.chunk());
            }),
        };
        if claimed.is_none() {
            self.table.give_back(id);
        }
        claimed.map(|()| slot as u32)
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

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::id::HostId;
    use heartwatch_common::time::Instant;

    use crate::detector::host::Known;
    use crate::event::State;
    use crate::view::Lesson;

    fn host(n: u8) -> Host {
        Host::new(&Known::new(HostId([n; 16]), State::Alive), None, Instant(1))
    }

    fn id_of(slab: &Slab, slot: u32) -> Option<u8> {
        slab.get(slot).map(|host| host.id.0[0])
    }

    #[test]
    fn records_stand_where_their_cells_do_whatever_the_order_and_chunk() {
        let table = Arc::new(LiveTable::default());
        // Of two shards, whose chunks alternate.
        let theirs = table.take(1);
        let mine: Vec<LiveId> = (0..CHUNK_LEN + 2).map(|_| table.take(0)).collect();
        let mut slab = Slab::default();
        slab.publish_to(Arc::clone(&table), 0);
        let last = CHUNK_LEN + 1;
        // The second chunk is met first, and becomes the first of ours.
        assert_eq!(slab.add(host(1), mine[last]), Some(1));
        assert_eq!(slab.add(host(2), mine[5]), Some(CHUNK_LEN as u32 + 5));
        for (slot, n, id) in [(1, 1, mine[last]), (CHUNK_LEN as u32 + 5, 2, mine[5])] {
            assert_eq!((id_of(&slab, slot), slab.id(slot)), (Some(n), id));
            let (_, cell) = slab.get_both(slot).unwrap();
            crate::view::beat(cell, Instant(u64::from(n)), 1, None, &Lesson::default());
            assert_eq!(table.get(id).last_arrival, Some(Instant(u64::from(n))));
        }
        assert_eq!(slab.len(), CHUNK_LEN + 6);
        assert_eq!(slab.add(host(3), theirs), None);
        assert_eq!(slab.add(host(3), mine[5]), None, "it is another host's");
        assert_eq!(id_of(&slab, CHUNK_LEN as u32 + 5), Some(2));
        assert!(slab.take(1) && !slab.take(1));
        assert_eq!((id_of(&slab, 1), table.get(mine[last]).last_arrival), (None, None));
        // What was taken out is used again.
        assert_eq!(slab.add(host(4), LiveId::NONE), Some(1));
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let mut slab = Slab::default();
        (1..=3).for_each(|n| assert_eq!(slab.add(host(n), LiveId::NONE), Some(u32::from(n) - 1)));
        slab.take(1);
        let mut copy = slab.clone();
        assert_eq!([0, 1, 2, 3].map(|slot| id_of(&copy, slot)), [Some(1), None, Some(3), None]);
        let (record, cell) = copy.get_both(2).unwrap();
        record.mistakes = 7;
        crate::view::beat(cell, Instant(9), 1, None, &Lesson::default());
        assert_eq!(slab.get(2).unwrap().mistakes, 0);
        assert_eq!(slab.cell(2).unwrap()[0].load(std::sync::atomic::Ordering::Relaxed), 0);
        assert_eq!([4, 5].map(|n| copy.add(host(n), LiveId::NONE)), [Some(1), Some(3)]);
        assert_eq!(
            [0, 1, 2, 3].map(|slot| id_of(&copy, slot)),
            [Some(1), Some(4), Some(3), Some(5)]
        );
        assert_eq!([1, 3].map(|slot| id_of(&slab, slot)), [None, None]);
    }

    #[test]
    fn no_slot_is_given_that_the_index_can_not_name() {
        let table = Arc::new(LiveTable::default());
        let mut slab = Slab::default();
        slab.publish_to(Arc::clone(&table), 0);
        let chunks = SLOTS_MAX.div_ceil(CHUNK_LEN);
        let ids = (0..chunks * CHUNK_LEN).map(|_| table.take(0));
        // The first place of each chunk, and the very last place of all.
        let ids: Vec<LiveId> = ids
            .enumerate()
            .filter(|(n, id)| id.at() == 0 || n + 1 == chunks * CHUNK_LEN)
            .map(|(_, id)| id)
            .collect();
        let slots: Vec<_> = ids.iter().map(|id| slab.add(host(1), *id)).collect();
        assert_eq!(slots.len(), chunks + 1);
        for (n, slot) in slots.iter().enumerate() {
            assert_eq!(*slot, (n < chunks).then_some((n * CHUNK_LEN) as u32));
        }
    }
}
