//! A binary heap with lazy deletion, as delay queues are: an entry that no longer says the truth is thrown
//! away, or filed again, when it comes to the top.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use heartwatch_common::time::Instant;

use super::{Deadlines, Refile};

pub(super) struct Heap {
    refile: Refile,
    heap: BinaryHeap<Reverse<(Instant, u32)>>,
    /// [`Instant::FAR`]: not kept.
    deadlines: Vec<Instant>,
    /// Under which time each slot's present entry is filed; [`Instant::FAR`]: it has none. Only when
    /// filed again when looked at: at every beat the deadline itself tells a stale entry.
    filed: Vec<Instant>,
}

impl Heap {
    pub(super) fn new(refile: Refile) -> Self {
        Self { refile, heap: BinaryHeap::new(), deadlines: Vec::new(), filed: Vec::new() }
    }
}

impl Deadlines for Heap {
    fn beat(&mut self, slot: u32, deadline: Instant, _: Instant) {
        let at = slot as usize;
        if at >= self.deadlines.len() {
            self.deadlines.resize(at + 1, Instant::FAR);
            if self.refile == Refile::WhenLookedAt {
                self.filed.resize(at + 1, Instant::FAR);
            }
        }
        self.deadlines[at] = deadline;
        if self.refile == Refile::AtEveryBeat {
            self.heap.push(Reverse((deadline, slot)));
        } else if deadline < self.filed[at] {
            self.filed[at] = deadline;
            self.heap.push(Reverse((deadline, slot)));
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<u32>) {
        while let Some(mut top) = self.heap.peek_mut() {
            let Reverse((at, slot)) = *top;
            if at > now {
                break;
            }
            let deadline = self.deadlines[slot as usize];
            let stale = match self.refile {
                Refile::AtEveryBeat => deadline != at,
                Refile::WhenLookedAt => self.filed[slot as usize] != at,
            };
            if !stale && deadline > now {
                // Filed again in place: half the work of a pop and a push.
                self.filed[slot as usize] = deadline;
                *top = Reverse((deadline, slot));
                continue;
            }
            std::collections::binary_heap::PeekMut::pop(top);
            if !stale {
                self.deadlines[slot as usize] = Instant::FAR;
                if let Some(filed) = self.filed.get_mut(slot as usize) {
                    *filed = Instant::FAR;
                }
                out.push(slot);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.heap.capacity() * size_of::<Reverse<(Instant, u32)>>()
            + (self.deadlines.capacity() + self.filed.capacity()) * size_of::<Instant>()
    }
}
