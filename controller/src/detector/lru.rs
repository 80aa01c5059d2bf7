//! Who to look at next: least-recently-filed rows, one per degree of patience.
//!
//! With one timeout for all, a single LRU list is ordered by deadline. With a timeout per host, and gaps
//! that differ from beat to beat, it is not. So there is one queue per *row*; a row stands for a waiting
//! time R from a geometric grid. A slot is filed at the tail of the largest row with R ≤ its remaining
//! time and stamped with the filing time plus R, when it is due; so every row is ordered by that whatever the
//! deadlines do, and nothing behind its head is due before it. Whoever looks decides anew: expire, or file
//! again by what remains.
//!
//! A slot need not be filed again when its deadline moves *later*: whoever looks finds that it is not over.
//! A deadline that moves *earlier* than `filed + R` must be filed again at once ([`Rows::hasten`]).
//!
//! Nothing is ever taken out of the middle of a row: it is left where it stands, and passed over when its
//! turn comes, since the slot is by then due at another time. So a row is read and written from its ends,
//! in order, where links from slot to slot would be a trip to memory each. What is left standing is swept
//! out, a row at a time, when it is more than what counts.
//!
//! Times are kept in units of about a millisecond, rounded down: a look may come that much early, never late.
//!
//! Cost: filing O(1); looking O(rows that are not empty + slots that are due), amortised over what is passed
//! over. Memory: 12 bytes per slot, 8 for each place where it no longer counts, and 4 KiB for a row that is
//! not empty.
//!
//! Invariants: a slot counts in at most one row, once; each row is ordered by the time at which its entries
//! are due; `filed + R ≤ deadline` for the deadline given at filing.

use std::collections::VecDeque;

use heartwatch_common::time::Instant;

use crate::memory::{prefetch, room};

/// Rows per doubling of the waiting time, as a power of two. The finer, the later a look: it falls up to
/// a 64th of the waiting time before the deadline, and one that falls before the next beat is in vain. With
/// a sixteenth nearly every host with a margin of 25 ms was looked at between any two beats a second apart,
/// which cost a fifth of all that its beat did.
const STEP_BITS: u32 = 6;
/// The waiting time of row 1 is two to this power of nanoseconds: 4.2 ms.
const BASE_BITS: u32 = 22;
/// Doublings: the longest waiting time is 72 minutes.
const OCTAVES: u32 = 20;
/// Number of rows; row 0 waits for nothing.
const ROWS: usize = 1 + ((OCTAVES as usize) << STEP_BITS);
/// Words of a bit for each row.
const ROW_WORDS: usize = ROWS.div_ceil(64);
/// Nanoseconds of a unit of time, as a power of two: 1.05 ms.
const UNIT_BITS: u32 = 20;
/// Bits of an entry that hold the slot; the others hold when it is due, for 146 years.
const SLOT_BITS: u32 = 22;
/// Slots are below this.
pub(crate) const SLOTS_MAX: usize = 1 << SLOT_BITS;
/// What stands in the place of the time at which a slot is due if it is in no row.
const UNFILED: u32 = 0;
/// Entries of a block of a row.
const BLOCK: usize = 512;
/// Empty blocks kept for what is filed next.
const SPARE_MAX: usize = 64;
/// Entries for each that counts from which on a row is swept: a host that is filed anew at every beat has
/// about two, as the one before has yet to be passed over.
const SWEEP_RATIO: usize = 4;
/// Fewer entries that do not count are not worth a sweep.
const SWEEP_MIN: usize = 4_096;
/// How far ahead of the look the times of slots are fetched.
const AHEAD: usize = 16;

/// A slot, and when it is due by what it was filed for. It counts if the slot is still due then.
#[derive(Clone, Copy, Debug)]
struct Entry(u64);

impl Entry {
    #[inline]
    fn new(due: u64, slot: u32) -> Self {
        Self(due << SLOT_BITS | u64::from(slot))
    }

    #[inline]
    fn slot(self) -> u32 {
        self.0 as u32 & ((1 << SLOT_BITS) - 1)
    }

    /// When it is due, in units.
    #[inline]
    fn due(self) -> u64 {
        self.0 >> SLOT_BITS
    }

    /// The same as it stands by the slot: without what changes once in 52 days. No entry stands for longer
    /// than the longest waiting time without being looked at, so that no two are taken for one.
    #[inline]
    fn mark(self) -> u32 {
        self.due() as u32
    }
}

/// The unit that a moment lies in; the first is 1.
#[inline]
fn units(at: Instant) -> u64 {
    (at.0 >> UNIT_BITS) + 1
}

/// The beginning of a unit.
#[inline]
fn begin_of(units: u64) -> Instant {
    Instant(units.saturating_sub(1) << UNIT_BITS)
}

/// Entries in the order of filing, in blocks.
#[derive(Clone, Debug, Default)]
struct Row {
    wait_ns: u64,
    /// Blocks that are full, before the newest.
    full: VecDeque<Vec<Entry>>,
    newest: Vec<Entry>,
    /// Entries of the first block that are gone.
    gone: usize,
}

impl Row {
    fn head(&self) -> Option<Entry> {
        self.ahead(0)
    }

    /// The entry `n` after the head.
    fn ahead(&self, n: usize) -> Option<Entry> {
        let at = self.gone + n;
        let block = self.full.get(at / BLOCK);
        if block.is_none() && at / BLOCK > self.full.len() {
            return None;
        }
        block.unwrap_or(&self.newest).get(at % BLOCK).copied()
    }

    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.newest.is_empty()
    }

    #[inline]
    fn push(&mut self, entry: Entry, spare: &mut Vec<Vec<Entry>>) {
        if self.newest.len() >= BLOCK || self.newest.capacity() == 0 {
            self.begin_block(spare);
        }
        self.newest.push(entry);
    }

    /// Has room for one more entry at least.
    #[cold]
    #[inline(never)]
    fn begin_block(&mut self, spare: &mut Vec<Vec<Entry>>) {
        let block = spare.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK));
        let full = std::mem::replace(&mut self.newest, block);
        if !full.is_empty() {
            self.full.push_back(full);
        }
    }

    fn pop(&mut self, spare: &mut Vec<Vec<Entry>>) {
        self.gone += 1;
        let block = self.full.front_mut().unwrap_or(&mut self.newest);
        if self.gone < block.len() {
            return;
        }
        self.gone = 0;
        let mut block = self.full.pop_front().unwrap_or_else(|| std::mem::take(&mut self.newest));
        block.clear();
        if spare.len() < SPARE_MAX {
            spare.push(block);
        }
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.full.iter().chain([&self.newest]).flatten().copied().skip(self.gone)
    }
}

/// The waiting time of a row, nanoseconds.
fn wait_ns(row: usize) -> u64 {
    let Some(i) = row.checked_sub(1) else { return 0 };
    let (octave, step) = (i >> STEP_BITS, i & ((1 << STEP_BITS) - 1));
    ((1 << STEP_BITS) + step as u64) << (octave as u32 + BASE_BITS - STEP_BITS)
}

/// The largest row whose waiting time is at most `remaining_ns`.
fn row_for(remaining_ns: u64) -> usize {
    let Some(octave) = remaining_ns.checked_ilog2().and_then(|e| e.checked_sub(BASE_BITS)) else {
        return 0;
    };
    if octave >= OCTAVES {
        return ROWS - 1;
    }
    let step = remaining_ns >> (octave + BASE_BITS - STEP_BITS) & ((1 << STEP_BITS) - 1);
    1 + ((octave as usize) << STEP_BITS) + step as usize
}

/// The rows.
#[derive(Clone, Debug)]
pub struct Rows {
    rows: Vec<Row>,
    /// Which rows are not empty.
    occupied: [u64; ROW_WORDS],
    /// When each slot will be looked at, in the lowest bits of units; [`UNFILED`] if it is in no row.
    due: Vec<u32>,
    /// Slots in rows, and entries.
    filed: usize,
    entries: usize,
    spare: Vec<Vec<Entry>>,
    /// Rows before this one have nothing that is due, in the pass that goes on.
    looked: usize,
    /// Which row is swept next.
    swept: usize,
}

impl Default for Rows {
    fn default() -> Self {
        let rows = (0..ROWS).map(|row| Row { wait_ns: wait_ns(row), ..Row::default() });
        Self {
            rows: rows.collect(),
            occupied: [0; ROW_WORDS],
            due: Vec::new(),
            filed: 0,
            entries: 0,
            spare: Vec::new(),
            looked: 0,
            swept: 0,
        }
    }
}

impl Rows {
    /// Files a slot to be looked at no later than `deadline`, and nowhere else. `now` never falls.
    ///
    /// # Panics
    /// If the slot is not below two to the power of 22.
    #[inline]
    pub fn file(&mut self, slot: u32, deadline: Instant, now: Instant) {
        let row = row_for(deadline.0.saturating_sub(now.0));
        let due = units(Instant(now.0.saturating_add(self.rows[row].wait_ns)))
            .min((1 << (64 - SLOT_BITS)) - 1);
        // Of one whose lowest bits are all zero we say that it is due a unit earlier. Order is kept.
        let due = if due as u32 == UNFILED { due.saturating_sub(1) } else { due };
        let entry = Entry::new(due, slot);
        let Some(at) = self.due.get_mut(slot as usize) else { return self.file_first(row, entry) };
        self.filed += usize::from(*at == UNFILED);
        *at = entry.mark();
        self.push(row, entry);
    }

    #[cold]
    fn file_first(&mut self, row: usize, entry: Entry) {
        let at = entry.slot() as usize;
        assert!(at < SLOTS_MAX, "slots are below two to the power of {SLOT_BITS}");
        if at >= self.due.capacity() {
            let mut larger = room((at + 1).next_power_of_two().max(BLOCK));
            larger.append(&mut self.due);
            self.due = larger;
        }
        self.due.resize(at + 1, UNFILED);
        self.filed += 1;
        self.due[at] = entry.mark();
        self.push(row, entry);
    }

    #[inline]
    fn push(&mut self, row: usize, entry: Entry) {
        self.rows[row].push(entry, &mut self.spare);
        self.occupied[row / 64] |= 1 << (row % 64);
        self.entries += 1;
        if self.entries > SWEEP_RATIO * self.filed + SWEEP_MIN {
            self.sweep();
        }
    }

    /// Files a slot again only if it would otherwise be looked at after `deadline`. `now` is not after it.
    pub fn hasten(&mut self, slot: u32, deadline: Instant, now: Instant) {
        if self.due(slot, now).is_none_or(|due| due > deadline) {
            self.file(slot, deadline, now);
        }
    }

    /// When a slot will be looked at, or up to a unit earlier; `None` if it is in no row. `now` is less than
    /// 26 days away from when it was filed.
    #[inline]
    pub fn due(&self, slot: u32, now: Instant) -> Option<Instant> {
        let mark = self.due.get(slot as usize).copied().filter(|mark| *mark != UNFILED)?;
        let ahead = mark.wrapping_sub(units(now) as u32) as i32;
        Some(begin_of(units(now).saturating_add_signed(ahead.into())))
    }

    /// Whether a slot will be looked at neither after `deadline` nor, by more than a unit, before `from`,
    /// which is not after `deadline`. `now` as in [`Self::due`], for all three.
    #[inline]
    pub fn is_due_within(&self, slot: u32, from: Instant, deadline: Instant) -> bool {
        let Some(mark) = self.due.get(slot as usize).filter(|mark| **mark != UNFILED) else {
            return false;
        };
        let (from, to) = (units(from), units(deadline));
        // However far apart: what is longer than the rows wait can't be meant.
        u64::from(mark.wrapping_sub(from as u32))
            <= to.saturating_sub(from).min(u64::from(u32::MAX >> 1))
    }

    /// Has fetched what filing a slot needs.
    #[inline]
    pub(crate) fn prefetch(&self, slot: u32) {
        if let Some(due) = self.due.get(slot as usize) {
            prefetch(due, 1);
        }
    }

    /// Takes a slot out of its row; nothing happens if it is in none.
    pub fn unfile(&mut self, slot: u32) {
        if let Some(due) = self.due.get_mut(slot as usize).filter(|due| **due != UNFILED) {
            *due = UNFILED;
            self.filed -= 1;
        }
    }

    /// Takes out one slot that is due at `at`, if there is one. Ask until there is none; file what is not
    /// over yet again only then: row 0 waits for nothing, so it would be due at once.
    pub fn pop_due(&mut self, at: Instant) -> Option<u32> {
        let now = units(at);
        while let Some(of) = self.occupied_from(self.looked) {
            self.looked = of;
            let row = &mut self.rows[of];
            while let Some(entry) = row.head() {
                if entry.due() > now {
                    break;
                }
                if let Some(next) = row.ahead(AHEAD).and_then(|e| self.due.get(e.slot() as usize)) {
                    prefetch(next, 1);
                }
                row.pop(&mut self.spare);
                if row.is_empty() {
                    self.occupied[of / 64] &= !(1 << (of % 64));
                }
                self.entries -= 1;
                let due = &mut self.due[entry.slot() as usize];
                if *due == entry.mark() {
                    *due = UNFILED;
                    self.filed -= 1;
                    return Some(entry.slot());
                }
            }
            self.looked += 1;
        }
        self.looked = 0;
        None
    }

    /// The first row from this one on that is not empty.
    #[inline]
    fn occupied_from(&self, row: usize) -> Option<usize> {
        let (mut at, mut skipped) = (row / 64, row % 64);
        while let Some(word) = self.occupied.get(at) {
            let rest = word >> skipped;
            if rest != 0 {
                return Some(at * 64 + skipped + rest.trailing_zeros() as usize);
            }
            (at, skipped) = (at + 1, 0);
        }
        None
    }

    /// The slot that will be due `n` after the one that was taken out last, most likely.
    pub fn coming(&self, n: usize) -> Option<u32> {
        self.rows.get(self.looked)?.ahead(n).map(Entry::slot)
    }

    /// When the next look is due, or earlier; `None` if nothing is filed.
    pub fn next_due(&self) -> Option<Instant> {
        let (mut least, mut row) = (None::<u64>, 0);
        while let Some(of) = self.occupied_from(row) {
            let due = self.rows[of].head().map(Entry::due);
            least = least.into_iter().chain(due).min();
            row = of + 1;
        }
        least.map(begin_of)
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        let blocks: usize = self
            .rows
            .iter()
            .map(|row| row.full.len() + usize::from(row.newest.capacity() > 0))
            .sum();
        (blocks + self.spare.len()) * BLOCK * size_of::<Entry>()
            + self.due.capacity() * size_of::<u32>()
    }

    /// Sweeps what does not count out of one row that has any.
    fn sweep(&mut self) {
        for _ in 0..ROWS {
            self.swept = (self.swept + 1) % ROWS;
            let Self { rows, due, spare, .. } = self;
            let row = &mut rows[self.swept];
            let wait_ns = row.wait_ns;
            let old = std::mem::replace(row, Row { wait_ns, ..Row::default() });
            let (mut before, mut kept) = (0, 0);
            for entry in old.entries() {
                before += 1;
                if due[entry.slot() as usize] == entry.mark() {
                    kept += 1;
                    row.push(entry, spare);
                }
            }
            if kept == 0 {
                self.occupied[self.swept / 64] &= !(1 << (self.swept % 64));
            }
            self.entries -= before - kept;
            if before > kept {
                return;
            }
        }
    }

    /// Checks the invariants; for tests.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        let (mut counts, mut entries) = (vec![0; self.due.len()], 0);
        for (i, row) in self.rows.iter().enumerate() {
            assert_eq!(row.head().is_some(), self.occupied_from(i) == Some(i), "row {i}");
            let mut before = 0;
            for entry in row.entries() {
                assert!(entry.due() >= before, "a row is out of order");
                before = entry.due();
                entries += 1;
                let slot = entry.slot() as usize;
                counts[slot] += u32::from(entry.mark() == self.due[slot]);
            }
        }
        assert_eq!(entries, self.entries);
        for (slot, due) in self.due.iter().enumerate() {
            // Filed twice at one time it stands there twice, and counts at the first look only.
            assert_eq!(*due != UNFILED, counts[slot] > 0, "slot {slot} is lost");
        }
        assert_eq!(self.filed, self.due.iter().filter(|due| **due != UNFILED).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn ms(n: u64) -> Instant {
        Instant::from_millis(n)
    }

    #[test]
    fn a_slot_is_looked_at_before_its_deadline_and_no_64th_of_its_time_before() {
        for remaining in [0, 1, 5, 7, 100, 1_300, 30_000, 3_600_000, 90_000_000] {
            let mut rows = Rows::default();
            rows.file(3, ms(1_000 + remaining), ms(1_000));
            let due = rows.next_due().unwrap();
            assert!(due <= ms(1_000 + remaining));
            // The shortest waiting times are not much longer than the unit of time.
            if (10..3_600_000).contains(&remaining) {
                let most = Duration::from_millis(remaining / 64 + 2);
                assert!(ms(1_000 + remaining).since(due) <= most, "{remaining} ms: {due:?}");
            }
        }
    }

    #[test]
    fn rows_are_ordered_and_the_chosen_one_is_the_largest_that_is_short_enough() {
        let waits: Vec<u64> = (0..ROWS).map(wait_ns).collect();
        assert!(waits.is_sorted_by(|a, b| a < b));
        for wait in waits.iter().flat_map(|w| [w.saturating_sub(1), *w, w + 1, w + w / 17]) {
            assert_eq!(row_for(wait), waits.partition_point(|w| *w <= wait) - 1, "{wait} ns");
        }
        assert_eq!(row_for(u64::MAX), ROWS - 1);
    }

    #[test]
    fn a_later_deadline_touches_no_row_and_an_earlier_one_does() {
        let mut rows = Rows::default();
        rows.file(0, ms(1_000), ms(0));
        let due = rows.next_due();
        rows.hasten(0, ms(9_000), ms(500));
        assert_eq!(rows.next_due(), due);
        rows.hasten(0, ms(510), ms(500));
        assert!(rows.next_due().unwrap() <= ms(510));
    }

    #[test]
    fn what_is_passed_over_does_not_pile_up() {
        let mut rows = Rows::default();
        // Hosts that are put off for a day and come back at once, again and again.
        for round in 0..200u64 {
            let now = ms(1_000 + round);
            (0..1_000).for_each(|slot| {
                rows.file(slot, now + Duration::from_secs(86_400), now);
                rows.file(slot, now + Duration::from_secs(1), now);
            });
            rows.check();
            assert!(
                rows.entries <= SWEEP_RATIO * 1_000 + SWEEP_MIN + 1,
                "{} entries",
                rows.entries
            );
        }
        let late = ms(10_000);
        let found = std::iter::from_fn(|| rows.pop_due(late)).count();
        assert_eq!(found, 1_000);
        assert!(rows.entries <= SWEEP_RATIO * 1_000 + SWEEP_MIN, "{} entries", rows.entries);
        assert!(rows.bytes() < 400_000, "{} bytes", rows.bytes());
    }

    proptest! {
        #[test]
        fn rows_find_exactly_what_a_sorted_map_finds(
            ops in proptest::collection::vec((0..4u8, 0..12u32, 0..5_000u64), 1..200)
        ) {
            let mut rows = Rows::default();
            let mut naive: BTreeMap<u32, Instant> = BTreeMap::new();
            let mut now = ms(1);
            for (op, slot, n) in ops {
                match op {
                    0 => {
                        rows.file(slot, now + Duration::from_millis(n), now);
                        naive.insert(slot, now + Duration::from_millis(n));
                    }
                    1 => {
                        rows.unfile(slot);
                        naive.remove(&slot);
                    }
                    2 => {
                        let deadline = now + Duration::from_millis(n);
                        rows.hasten(slot, deadline, now);
                        naive.insert(slot, deadline);
                    }
                    _ => {
                        now = now + Duration::from_millis(n);
                        if let Some(due) = rows.next_due() {
                            prop_assert!(naive.values().all(|deadline| due <= *deadline));
                        }
                        let (mut expired, mut again) = (Vec::new(), Vec::new());
                        while let Some(slot) = rows.pop_due(now) {
                            let over = naive[&slot] <= now;
                            if over { &mut expired } else { &mut again }.push(slot);
                        }
                        for slot in again {
                            rows.file(slot, naive[&slot], now);
                        }
                        expired.sort_unstable();
                        let wanted: Vec<u32> =
                            naive.iter().filter(|(_, d)| **d <= now).map(|(s, _)| *s).collect();
                        prop_assert_eq!(&expired, &wanted);
                        naive.retain(|_, d| *d > now);
                    }
                }
                for (from, to) in [(now, now + Duration::from_millis(n)), (now, now)] {
                    let due = rows.due(slot, now).map(units);
                    let naive = due.is_some_and(|due| (units(from)..=units(to)).contains(&due));
                    prop_assert_eq!(rows.is_due_within(slot, from, to), naive);
                }
                rows.check();
            }
        }
    }
}
