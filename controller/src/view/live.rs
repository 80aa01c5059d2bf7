//! What changes with every beat: one cache line a host, written by its shard, read by anyone.
//!
//! | bytes | holds |
//! | --- | --- |
//! | 0..8 | arrival of the last proof of life, nanoseconds; 0 = none yet |
//! | 8..15 | seven shares of the load sample, one byte each as on the wire |
//! | 15 | 1 once there is a load sample |
//! | 16..18 | run queue, as on the wire |
//! | 18..22 | network, KiB/s |
//! | 22..24 | the gap that the last beat announced: milliseconds below 2¹⁵, else seconds with the top bit set |
//! | 24..64 | its [`Habits`], which only its shard reads |
//!
//! A cell is written by one thread, the host's shard, with plain relaxed stores; a reader may see half of
//! one beat and half of the next, which are neighbours. Cells stand in chunks that appear as they are
//! needed and never move, so neither side ever waits. A chunk belongs to one *lane* (a shard), so that two
//! shards never write to one cache line. Beside each cell stands the record that the shard keeps of the host:
//! see [`crate::memory::places`].

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::Instant;

use super::habits::{self, Habits, Lesson};
use crate::detector::host::Host;
use crate::memory::places::{self, Cell, Cells, Owned};

/// Places in a chunk: 32 MiB, of which only what is used takes memory.
pub(crate) const CHUNK_LEN: usize = 131_072;
/// Of a lane's first chunk so many bytes stand in usual pages: a machine may have many lanes and few hosts.
const SMALL: usize = 2 << 20;
/// Chunks of a table: 16 million cells, and a last chunk that is not full for each of 64 lanes.
const CHUNKS_MAX: usize = 128 + 64;
/// Bit of the second word that says that there is a load sample.
const HAS_LOAD: u64 = 1 << 56;
/// Where the gap stands in the third word.
const GAP_SHIFT: u32 = 48;
/// Marks a gap that is told in seconds.
const GAP_SECONDS: u64 = 1 << 15;

/// Which cell of a [`LiveTable`] is a host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveId(u32);

impl LiveId {
    /// No cell.
    pub const NONE: Self = Self(u32::MAX);

    /// Place `at` of a chunk.
    pub(crate) fn new(chunk: u32, at: usize) -> Self {
        Self(chunk * CHUNK_LEN as u32 + at as u32)
    }

    /// Its chunk.
    pub(crate) fn chunk(self) -> u32 {
        self.0 / CHUNK_LEN as u32
    }

    /// Its place within that.
    pub(crate) fn at(self) -> usize {
        self.0 as usize % CHUNK_LEN
    }
}

impl Default for LiveId {
    fn default() -> Self {
        Self::NONE
    }
}

/// What a cell held when it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Live {
    /// The last proof of life; `None` before the first.
    pub last_arrival: Option<Instant>,
    /// The gap that the last beat announced, to the millisecond below 32 s, to the second above.
    pub gap: Duration,
    /// The last load sample; `None` before the first.
    pub load: Option<LoadSample>,
}

const _: () = assert!((3 + habits::WORDS) * size_of::<u64>() == size_of::<Cell>());

/// The cells of all hosts.
pub struct LiveTable {
    chunks: Box<[OnceLock<Cells<Host>>]>,
    places: Mutex<Places>,
}

/// Which cells are free.
#[derive(Default)]
struct Places {
    /// To which lane each chunk belongs, and its records until that lane's shard has claimed them.
    owners: Vec<(u16, Option<Owned<Host>>)>,
    lanes: Vec<Lane>,
}

#[derive(Clone, Default)]
struct Lane {
    /// Given back.
    free: Vec<u32>,
    /// Never given out yet, in the lane's newest chunk.
    fresh: std::ops::Range<u32>,
    /// Whether it has a chunk.
    begun: bool,
}

impl Default for LiveTable {
    fn default() -> Self {
        let chunks = (0..CHUNKS_MAX).map(|_| OnceLock::new()).collect();
        Self { chunks, places: Mutex::default() }
    }
}

impl std::fmt::Debug for LiveTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveTable").finish_non_exhaustive()
    }
}

impl LiveTable {
    /// Takes an empty cell for a host of a shard; [`LiveId::NONE`] if all 16 million are taken.
    pub fn take(&self, lane: u16) -> LiveId {
        let mut places = self.lock();
        let Places { owners, lanes } = &mut *places;
        if lanes.len() <= usize::from(lane) {
            lanes.resize(usize::from(lane) + 1, Lane::default());
        }
        let own = &mut lanes[usize::from(lane)];
        if let Some(id) = own.free.pop() {
            return LiveId(id);
        }
        if own.fresh.is_empty() {
            let Some(chunk) = self.chunks.get(owners.len()) else { return LiveId::NONE };
            let small = if own.begun { 0 } else { SMALL };
            let (records, cells) = places::map(CHUNK_LEN, small);
            own.begun = true;
            let first = (owners.len() * CHUNK_LEN) as u32;
            own.fresh = first..first + cells.len() as u32;
            chunk.get_or_init(|| cells);
            owners.push((lane, Some(records)));
        }
        own.fresh.next().map_or(LiveId::NONE, LiveId)
    }

    /// The records of a chunk, once, for the shard whose lane it is.
    pub(crate) fn claim(&self, chunk: u32, lane: u16) -> Option<Owned<Host>> {
        let mut places = self.lock();
        let (owner, records) = places.owners.get_mut(chunk as usize)?;
        records.take_if(|_| *owner == lane)
    }

    /// A copy of a chunk's records and cells, in the first chunk that is free, for that lane. New hosts of
    /// the copy may come to stand in other places than those of the original.
    ///
    /// # Panics
    /// If the table has no room.
    pub(crate) fn adopt(&self, chunk: &Owned<Host>, lane: u16) -> Owned<Host> {
        let (len, ready) = chunk.extent();
        let (mut copy, cells) = places::map::<Host>(len, SMALL);
        for at in 0..ready {
            copy.put(at, chunk.get(at).cloned());
            for (to, from) in
                cells.get(at).into_iter().flatten().zip(chunk.cell(at).into_iter().flatten())
            {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        let mut places = self.lock();
        let Places { owners, lanes } = &mut *places;
        if lanes.len() <= usize::from(lane) {
            lanes.resize(usize::from(lane) + 1, Lane::default());
        }
        let first = (owners.len() * CHUNK_LEN) as u32;
        let own = &mut lanes[usize::from(lane)];
        // Of the chunk before too: whatever of it was not given out is so from the list.
        own.free.extend(own.fresh.clone());
        own.free
            .extend((0..ready).filter(|at| chunk.get(*at).is_none()).map(|at| first + at as u32));
        own.fresh = first + ready as u32..first + len as u32;
        own.begun = true;
        self.chunks[owners.len()].get_or_init(|| cells);
        owners.push((lane, None));
        copy
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a cell back. Only its writer may do that, and only once.
    pub fn give_back(&self, id: LiveId) {
        let Some(cell) = self.cell(id) else { return };
        cell.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let mut places = self.lock();
        let Places { owners, lanes } = &mut *places;
        let (lane, _) = owners[id.chunk() as usize];
        lanes[usize::from(lane)].free.push(id.0);
    }

    /// Publishes a proof of life of a host that no shard watches: for tests and measurements.
    pub fn beat(
        &self,
        id: LiveId,
        arrival: Instant,
        gap_us: u32,
        load: Option<&LoadSample>,
        lesson: &Lesson,
    ) {
        let Some(cell) = self.cell(id) else { return };
        beat(cell, arrival, gap_us, load, lesson);
    }

    /// Reads a cell; nothing is known of [`LiveId::NONE`].
    pub fn get(&self, id: LiveId) -> Live {
        let Some(cell) = self.cell(id) else { return Live::default() };
        let [first, second, third] = [0, 1, 2].map(|i: usize| cell[i].load(Ordering::Relaxed));
        let share = second.to_le_bytes().map(Share::from_byte);
        let load = (second & HAS_LOAD != 0).then(|| LoadSample {
            cpu_busy: share[0],
            memory_used: share[1],
            swap_used: share[2],
            disk_used: share[3],
            psi_cpu: share[4],
            psi_memory: share[5],
            psi_io: share[6],
            run_queue_centi: third as u16,
            network_kib_per_s: (third >> 16) as u32,
        });
        let last_arrival = Some(first).filter(|ns| *ns > 0).map(Instant);
        Live { last_arrival, gap: gap_of(third >> GAP_SHIFT), load }
    }

    /// Bytes of places that were ever given out, and of the list of those that are free.
    pub fn bytes(&self) -> usize {
        let places = self.lock();
        let all: usize = self.chunks.iter().filter_map(|c| c.get()).map(Cells::len).sum();
        let fresh: usize = places.lanes.iter().map(|lane| lane.fresh.len()).sum();
        let free: usize = places.lanes.iter().map(|lane| lane.free.capacity()).sum();
        (all - fresh) * Cells::<Host>::PLACE + free * size_of::<u32>()
    }

    #[inline]
    fn cell(&self, id: LiveId) -> Option<&Cell> {
        self.chunks.get(id.chunk() as usize)?.get()?.get(id.at())
    }
}

/// Publishes in a cell a proof of life that arrived at `arrival`, with the gap to the next beat in
/// microseconds, and the load that it carries; without one, the load that was known stays. Only the shard
/// whose host it is does that.
#[inline(always)]
pub(crate) fn beat(
    cell: &Cell,
    arrival: Instant,
    gap_us: u32,
    load: Option<&LoadSample>,
    lesson: &Lesson,
) {
    cell[0].store(arrival.0, Ordering::Relaxed);
    let figures = match load {
        Some(l) => {
            // One by one: a map over them is a loop of calls, and an array of bytes that is read in one go
            // has the processor wait.
            let byte = |share: Share, place: u32| u64::from(share.to_byte()) << (8 * place);
            let shares = byte(l.cpu_busy, 0)
                | byte(l.memory_used, 1)
                | byte(l.swap_used, 2)
                | byte(l.disk_used, 3)
                | byte(l.psi_cpu, 4)
                | byte(l.psi_memory, 5)
                | byte(l.psi_io, 6);
            cell[1].store(shares | HAS_LOAD, Ordering::Relaxed);
            u64::from(l.run_queue_centi) | u64::from(l.network_kib_per_s) << 16
        }
        None => cell[2].load(Ordering::Relaxed) & !(u64::MAX << GAP_SHIFT),
    };
    cell[2].store(figures | gap_code(gap_us) << GAP_SHIFT, Ordering::Relaxed);
    if let Some(words) = cell[3..].first_chunk() {
        habits::learn(words, lesson);
    }
}

/// A host's habits. For its shard alone: what others read could be of two beats.
pub(crate) fn habits_of(cell: &Cell) -> Habits {
    cell[3..].first_chunk().map(Habits::read).unwrap_or_default()
}

#[inline]
fn gap_code(gap_us: u32) -> u64 {
    let ms = u64::from(gap_us / 1_000);
    if ms < GAP_SECONDS { ms } else { GAP_SECONDS | (ms / 1_000) }
}

fn gap_of(code: u64) -> Duration {
    if code < GAP_SECONDS {
        Duration::from_millis(code)
    } else {
        Duration::from_secs(code - GAP_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_beat_says_survives_its_cell() {
        let table = LiveTable::default();
        let (id, other) = (table.take(0), table.take(0));
        assert_eq!(table.get(id), Live::default());
        let sample = LoadSample {
            cpu_busy: Share::from_ratio(0.5),
            run_queue_centi: 1234,
            network_kib_per_s: u32::MAX,
            psi_io: Share::from_ratio(1.0),
            ..LoadSample::UNKNOWN
        };
        table.beat(id, Instant(9), 1_500_000, Some(&sample), &Lesson::default());
        let live = Live {
            last_arrival: Some(Instant(9)),
            gap: Duration::from_millis(1_500),
            load: Some(sample),
        };
        assert_eq!((table.get(id), table.get(other)), (live, Live::default()));
        let idle = LoadSample { run_queue_centi: 0, network_kib_per_s: 0, ..sample };
        table.beat(id, Instant(9), 1_500_000, Some(&idle), &Lesson::default());
        assert_eq!(table.get(id), Live { load: Some(idle), ..live });
        table.beat(id, Instant(10), 3_600_000_000, None, &Lesson::default());
        let gap = Duration::from_secs(3_600);
        let later = Live { last_arrival: Some(Instant(10)), gap, load: Some(idle) };
        assert_eq!(table.get(id), later);
    }

    #[test]
    fn gaps_round_down_to_what_the_code_tells() {
        for ms in [0, 1, 999, 32_767, 32_768, 60_500, 3_600_000] {
            let (gap, exact) = (Duration::from_millis(ms), ms < GAP_SECONDS);
            let told = gap_of(gap_code(gap.as_micros() as u32));
            assert_eq!(told, if exact { gap } else { Duration::from_secs(ms / 1_000) });
        }
        assert_eq!(gap_of(gap_code(u32::MAX)), Duration::from_secs(4_294));
    }

    #[test]
    fn cells_are_used_again_empty_and_lanes_share_no_chunk() {
        let table = LiveTable::default();
        let mine: Vec<LiveId> = (0..3).map(|_| table.take(0)).collect();
        let theirs = table.take(5);
        assert_ne!(mine[0].0 as usize / CHUNK_LEN, theirs.0 as usize / CHUNK_LEN);
        table.beat(mine[1], Instant(7), 1_000_000, None, &Lesson::default());
        table.give_back(mine[1]);
        assert_eq!(table.get(mine[1]), Live::default());
        assert_eq!(table.take(0), mine[1]);
        assert_ne!(table.take(5), mine[1]);
    }

    #[test]
    fn a_lane_goes_on_with_another_chunk_and_its_records_are_claimed_once() {
        let table = LiveTable::default();
        let many = CHUNK_LEN + 2;
        let mut ids: Vec<u32> = (0..many).map(|_| table.take(3).0).collect();
        let chunks = || table.chunks.iter().filter_map(|c| c.get()).map(Cells::len);
        assert!(chunks().eq([CHUNK_LEN, CHUNK_LEN]));
        ids.dedup();
        assert!(ids.len() == many && ids.is_sorted());
        for id in ids.into_iter().map(LiveId) {
            table.beat(id, Instant(u64::from(id.0) + 1), 0, None, &Lesson::default());
            assert_eq!(LiveId::new(id.chunk(), id.at()), id);
        }
        let last = LiveId(CHUNK_LEN as u32 + 1);
        assert_eq!(table.get(last).last_arrival, Some(Instant(u64::from(last.0) + 1)));
        assert_eq!(table.bytes(), many * 256);
        // A number beyond what was given out names an empty cell, and one beyond all chunks none.
        assert_eq!(table.get(LiveId(last.0 + 1)), Live::default());
        assert_eq!(table.get(LiveId(2 * CHUNK_LEN as u32)), Live::default());
        assert!(table.claim(1, 2).is_none(), "another shard's");
        assert!(table.claim(1, 3).is_some() && table.claim(1, 3).is_none());
        assert!(table.claim(2, 3).is_none());
    }

    #[test]
    fn no_cell_holds_nothing_and_breaks_nothing() {
        let table = LiveTable::default();
        table.beat(LiveId::NONE, Instant(1), 0, Some(&LoadSample::UNKNOWN), &Lesson::default());
        table.give_back(LiveId::NONE);
        assert_eq!(table.get(LiveId::NONE), Live::default());
    }
}
