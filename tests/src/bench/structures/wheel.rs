//! A hierarchical timing wheel: six wheels of 64 buckets, the first of a millisecond each, every next one
//! 64 times as coarse (Varghese and Lauck, *Hashed and Hierarchical Timing Wheels*, SOSP 1987; laid out as
//! in tokio's timer). A bucket is a doubly linked list through the slots; a bitmap a wheel finds the next
//! bucket that is not empty.

use heartwatch_common::time::Instant;

use super::{Deadlines, Refile};

const TICK_NS: u64 = 1_000_000;
const LEVELS: usize = 6;
const BUCKETS: usize = 64;
const NONE: u32 = u32::MAX;
const IN_NONE: u16 = u16::MAX;

#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
    bucket: u16,
}

pub(super) struct Wheel {
    refile: Refile,
    /// Ticks below this are done with.
    elapsed: u64,
    heads: [u32; LEVELS * BUCKETS],
    occupied: [u64; LEVELS],
    links: Vec<Link>,
    deadlines: Vec<Instant>,
    /// Ticks under which slots are filed.
    ticks: Vec<u64>,
    again: Vec<u32>,
}

impl Wheel {
    pub(super) fn new(refile: Refile) -> Self {
        Self {
            refile,
            elapsed: 0,
            heads: [NONE; LEVELS * BUCKETS],
            occupied: [0; LEVELS],
            links: Vec::new(),
            deadlines: Vec::new(),
            ticks: Vec::new(),
            again: Vec::new(),
        }
    }

    fn bucket_of(&self, tick: u64) -> usize {
        // The level is that of the highest bits in which the tick differs from now.
        let differs = (tick ^ self.elapsed) | (BUCKETS as u64 - 1);
        let level = ((63 - differs.leading_zeros()) as usize / 6).min(LEVELS - 1);
        level * BUCKETS + (tick >> (6 * level)) as usize % BUCKETS
    }

    fn file(&mut self, slot: u32) {
        let at = slot as usize;
        let tick = (self.deadlines[at].0 / TICK_NS).max(self.elapsed);
        let bucket = self.bucket_of(tick);
        let head = std::mem::replace(&mut self.heads[bucket], slot);
        if head != NONE {
            self.links[head as usize].prev = slot;
        }
        self.links[at] = Link { prev: NONE, next: head, bucket: bucket as u16 };
        self.occupied[bucket / BUCKETS] |= 1 << (bucket % BUCKETS);
        if self.refile == Refile::WhenLookedAt {
            self.ticks[at] = tick;
        }
    }

    fn unfile(&mut self, slot: u32) {
        let Link { prev, next, bucket } = self.links[slot as usize];
        if bucket == IN_NONE {
            return;
        }
        let bucket = usize::from(bucket);
        if prev == NONE {
            self.heads[bucket] = next;
            if next == NONE {
                self.occupied[bucket / BUCKETS] &= !(1 << (bucket % BUCKETS));
            }
        } else {
            self.links[prev as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        self.links[slot as usize].bucket = IN_NONE;
    }

    /// The first bucket that is not empty, and the tick at which it begins.
    fn next_bucket(&self) -> Option<(usize, u64)> {
        // Whatever stands on a finer wheel comes before all that stands on a coarser one.
        (0..LEVELS).find_map(|level| {
            let shift = 6 * level as u32;
            let present = (self.elapsed >> shift) % BUCKETS as u64;
            let ahead = self.occupied[level].rotate_right(present as u32);
            if ahead == 0 {
                return None;
            }
            let steps = u64::from(ahead.trailing_zeros());
            let begin = ((self.elapsed >> shift) + steps) << shift;
            let bucket = ((present + steps) % BUCKETS as u64) as usize;
            Some((level * BUCKETS + bucket, begin.max(self.elapsed)))
        })
    }
}

impl Deadlines for Wheel {
    fn beat(&mut self, slot: u32, deadline: Instant, _: Instant) {
        let at = slot as usize;
        if at >= self.links.len() {
            self.links.resize(at + 1, Link { prev: NONE, next: NONE, bucket: IN_NONE });
            self.deadlines.resize(at + 1, Instant::FAR);
            if self.refile == Refile::WhenLookedAt {
                self.ticks.resize(at + 1, 0);
            }
        }
        self.deadlines[at] = deadline;
        let stays = self.refile == Refile::WhenLookedAt
            && self.links[at].bucket != IN_NONE
            && self.ticks[at] <= deadline.0 / TICK_NS;
        if !stays {
            self.unfile(slot);
            self.file(slot);
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<u32>) {
        let tick = now.0 / TICK_NS;
        while let Some((bucket, begin)) = self.next_bucket().filter(|(_, begin)| *begin <= tick) {
            self.elapsed = begin;
            let mut next = std::mem::replace(&mut self.heads[bucket], NONE);
            self.occupied[bucket / BUCKETS] &= !(1 << (bucket % BUCKETS));
            while next != NONE {
                let slot = next;
                next = self.links[slot as usize].next;
                self.links[slot as usize].bucket = IN_NONE;
                let deadline = self.deadlines[slot as usize];
                if deadline <= now {
                    out.push(slot);
                } else if deadline.0 / TICK_NS <= tick {
                    // Due within this very tick: it would be found again at once.
                    self.again.push(slot);
                } else {
                    self.file(slot);
                }
            }
        }
        self.elapsed = tick;
        let mut again = std::mem::take(&mut self.again);
        again.drain(..).for_each(|slot| self.file(slot));
        self.again = again;
    }

    fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
            + self.deadlines.capacity() * size_of::<Instant>()
            + self.ticks.capacity() * size_of::<u64>()
    }
}
