//! Who to look at next: least-recently-filed rows, one per degree of patience.
//!
//! With one timeout for all, a single LRU list is ordered by deadline. With a timeout per host, and gaps
//! that differ from beat to beat, it is not. So there is one list per *row*; a row stands for a waiting
//! time R from a grid of powers. A slot is filed at the tail of the largest row with R ≤ its remaining
//! time and stamped with the filing time; so every row is ordered by filing time whatever the deadlines
//! do, and its head need not be looked at before `filed + R`. Whoever looks decides anew: expire, or file
//! again by what remains.
//!
//! A slot is filed again only when looked at, not at every beat: a beat that moves the deadline *later*
//! touches no list at all. A deadline that moves *earlier* than `filed + R` is filed again at once
//! ([`Rows::hasten`]).
//!
//! Cost: filing O(1); looking O(rows + slots that are due). Memory: 24 bytes per slot.
//!
//! Invariants: a slot is in at most one row; each row is ordered by filing time; `filed + R ≤ deadline`
//! for the deadline given at filing.

use std::time::Duration;

use heartwatch_common::time::Instant;

/// Row 0 waits for nothing; the others are log-linear: of every power of two from 2^[`FIRST`] nanoseconds
/// (4 ms) to 2^[`LAST`] (over an hour) there are eight, so that a row waits for at least 8/9 of what it is
/// asked for. With five to four a host whose margin is short was looked at twice a gap instead of once.
const ROWS: usize = 1 + 8 * (LAST - FIRST) as usize;
const FIRST: u32 = 22;
const LAST: u32 = 42;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
    filed: Instant,
    /// Row, or `ROWS` when in none.
    row: u8,
}

const UNFILED: Link = Link { prev: NONE, next: NONE, filed: Instant(0), row: ROWS as u8 };

#[derive(Clone, Copy, Debug)]
struct Row {
    wait: Duration,
    /// When its head is looked at; [`Instant::FAR`] if it is empty.
    due: Instant,
    head: u32,
    tail: u32,
}

/// The rows.
#[derive(Clone, Debug)]
pub struct Rows {
    rows: [Row; ROWS],
    links: Vec<Link>,
    /// The row in which something was due last: the search goes on there. Starting at row 0 for every slot
    /// cost more than all the rest of a sweep.
    looking: usize,
}

impl Default for Rows {
    fn default() -> Self {
        let rows = std::array::from_fn(|row| {
            let wait = Duration::from_nanos(wait_ns(row));
            Row { wait, due: Instant::FAR, head: NONE, tail: NONE }
        });
        Self { rows, links: Vec::new(), looking: 0 }
    }
}

/// Waiting time of a row.
const fn wait_ns(row: usize) -> u64 {
    match row {
        0 => 0,
        _ => (8 + (row as u64 - 1) % 8) << (FIRST as u64 - 3 + (row as u64 - 1) / 8),
    }
}

/// The largest row whose waiting time is at most `remaining`: a few shifts, where a search among the rows
/// took as long as all the rest of filing.
fn row_for(remaining: Duration) -> usize {
    let ns = u64::try_from(remaining.as_nanos()).unwrap_or(u64::MAX);
    if ns >> FIRST == 0 {
        return 0;
    }
    let power = 63 - ns.leading_zeros();
    if power >= LAST {
        return ROWS - 1;
    }
    let eighth = (ns >> (power - 3)) & 7;
    1 + (power - FIRST) as usize * 8 + eighth as usize
}

impl Rows {
    /// Files a slot to be looked at no later than `deadline`, and takes it out of its row first.
    pub fn file(&mut self, slot: u32, deadline: Instant, now: Instant) {
        self.unfile(slot);
        let at = slot as usize;
        if at >= self.links.len() {
            self.links.resize(at + 1, UNFILED);
        }
        let row = row_for(deadline.since(now));
        let tail = self.rows[row].tail;
        debug_assert!(
            tail == NONE || self.links[tail as usize].filed <= now,
            "the shard's clock fell"
        );
        self.links[at] = Link { prev: tail, next: NONE, filed: now, row: row as u8 };
        if tail == NONE {
            self.rows[row].head = slot;
            self.rows[row].due = now + self.rows[row].wait;
        } else {
            self.links[tail as usize].next = slot;
        }
        self.rows[row].tail = slot;
    }

    /// Files a slot again only if it would otherwise be looked at after `deadline`.
    pub fn hasten(&mut self, slot: u32, deadline: Instant, now: Instant) {
        let late = self
            .links
            .get(slot as usize)
            .filter(|l| usize::from(l.row) < ROWS)
            .is_none_or(|l| l.filed + self.rows[usize::from(l.row)].wait > deadline);
        if late {
            self.file(slot, deadline, now);
        }
    }

    /// Takes a slot out of its row; nothing happens if it is in none.
    pub fn unfile(&mut self, slot: u32) {
        let Some(&link) = self.links.get(slot as usize) else { return };
        let Some(row) = self.rows.get_mut(usize::from(link.row)) else { return };
        if link.prev == NONE {
            row.head = link.next;
            row.due = match self.links.get(link.next as usize) {
                Some(next) => next.filed + row.wait,
                None => Instant::FAR,
            };
        } else {
            self.links[link.prev as usize].next = link.next;
        }
        let row = &mut self.rows[usize::from(link.row)];
        if link.next == NONE {
            row.tail = link.prev;
        } else {
            self.links[link.next as usize].prev = link.prev;
        }
        self.links[slot as usize] = UNFILED;
    }

    /// Takes out one slot that is due at `at`, if there is one. File what is not over yet again only
    /// when no more is due: row 0 waits for nothing, so it would be due at once.
    pub fn pop_due(&mut self, at: Instant) -> Option<u32> {
        for step in 0..ROWS {
            let looking = (self.looking + step) % ROWS;
            let row = &self.rows[looking];
            if row.due <= at && row.head != NONE {
                let due = row.head;
                self.looking = looking;
                self.unfile(due);
                return Some(due);
            }
        }
        None
    }

    /// When the next look is due; `None` if nothing is filed.
    pub fn next_due(&self) -> Option<Instant> {
        self.rows.iter().filter(|row| row.head != NONE).map(|row| row.due).min()
    }

    /// Bytes that the links hold.
    pub fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
    }

    /// Checks the invariants; for tests.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        let mut seen = vec![false; self.links.len()];
        for (i, row) in self.rows.iter().enumerate() {
            let (mut at, mut prev, mut filed) = (row.head, NONE, Instant(0));
            while at != NONE {
                let link = self.links[at as usize];
                assert!(!seen[at as usize], "slot {at} stands in two places");
                assert!(usize::from(link.row) == i && link.prev == prev && link.filed >= filed);
                seen[at as usize] = true;
                (prev, filed, at) = (at, link.filed, link.next);
            }
            assert_eq!(row.tail, prev);
            let head = self.links.get(row.head as usize);
            assert_eq!(row.due, head.map_or(Instant::FAR, |l| l.filed + row.wait));
        }
        for (slot, link) in self.links.iter().enumerate() {
            assert_eq!(usize::from(link.row) < ROWS, seen[slot], "slot {slot} is lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn ms(n: u64) -> Instant {
        Instant::from_millis(n)
    }

    #[test]
    fn a_slot_is_never_looked_at_after_its_deadline_nor_long_before_it() {
        for remaining in [0, 1, 5, 7, 100, 1_300, 30_000, 3_600_000, 90_000_000] {
            let mut rows = Rows::default();
            rows.file(3, ms(1_000 + remaining), ms(1_000));
            let due = rows.next_due().unwrap();
            assert!(due <= ms(1_000 + remaining));
            if (10..3_600_000).contains(&remaining) {
                assert!(due.since(ms(1_000)) * 9 >= Duration::from_millis(remaining) * 8);
            }
        }
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
    fn the_row_for_a_time_is_the_largest_that_waits_no_longer() {
        let waits: Vec<u64> = (0..ROWS).map(wait_ns).collect();
        assert!(waits.is_sorted() && waits[1] == 1 << FIRST);
        let near = |ns: u64| [ns.saturating_sub(1), ns, ns + 1];
        for ns in
            waits.iter().copied().flat_map(near).chain([u64::MAX, 1 << LAST, 3_600_000_000_000])
        {
            let wanted = waits.partition_point(|w| *w <= ns) - 1;
            assert_eq!(row_for(Duration::from_nanos(ns)), wanted, "{ns}");
        }
        assert!(waits[1..].windows(2).all(|w| w[1] * 8 <= w[0] * 9));
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
                rows.check();
            }
        }
    }
}
