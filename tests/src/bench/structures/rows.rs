//! The product's own: segmented LRU rows.

use heartwatch_common::time::Instant;
use heartwatch_controller::detector::lru::Rows;

use super::{Deadlines, Refile};

pub(super) struct LruRows {
    rows: Rows,
    refile: Refile,
    deadlines: Vec<Instant>,
    again: Vec<u32>,
}

impl LruRows {
    pub(super) fn new(refile: Refile) -> Self {
        Self { rows: Rows::default(), refile, deadlines: Vec::new(), again: Vec::new() }
    }
}

impl Deadlines for LruRows {
    fn beat(&mut self, slot: u32, deadline: Instant, now: Instant) {
        let at = slot as usize;
        if at >= self.deadlines.len() {
            self.deadlines.resize(at + 1, Instant::FAR);
        }
        self.deadlines[at] = deadline;
        match self.refile {
            Refile::AtEveryBeat => {
                self.rows.file(slot, deadline, now);
            }
            Refile::WhenLookedAt => self.rows.hasten(slot, deadline, now),
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<u32>) {
        while let Some(slot) = self.rows.pop_due(now) {
            if self.deadlines[slot as usize] <= now { &mut *out } else { &mut self.again }
                .push(slot);
        }
        for slot in self.again.drain(..) {
            self.rows.file(slot, self.deadlines[slot as usize], now);
        }
    }

    fn bytes(&self) -> usize {
        self.deadlines.capacity() * size_of::<Instant>() + self.rows.bytes()
    }
}
