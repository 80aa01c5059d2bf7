//! Looks at every host in every sweep.

use heartwatch_common::time::Instant;

use super::Deadlines;

#[derive(Default)]
pub(super) struct Scan {
    /// [`Instant::FAR`]: not kept.
    deadlines: Vec<Instant>,
}

impl Deadlines for Scan {
    fn beat(&mut self, slot: u32, deadline: Instant, _: Instant) {
        let at = slot as usize;
        if at >= self.deadlines.len() {
            self.deadlines.resize(at + 1, Instant::FAR);
        }
        self.deadlines[at] = deadline;
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<u32>) {
        for (slot, deadline) in (0..).zip(&mut self.deadlines) {
            if *deadline <= now {
                *deadline = Instant::FAR;
                out.push(slot);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.deadlines.capacity() * size_of::<Instant>()
    }
}
