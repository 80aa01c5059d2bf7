//! A token bucket in integers: so many at once, so many per second in the long run.

use std::time::Duration;

use heartwatch_common::time::Instant;

/// See the module's doc. Time that runs backwards refills nothing.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// What one token costs in time.
    cost: Duration,
    full: Duration,
    level: Duration,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let cost = Duration::from_secs(1) / per_second.max(1);
        let full = cost * burst;
        Self { cost, full, level: full, at: now }
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.level = self.level.saturating_add(now.since(self.at)).min(self.full);
        self.at = self.at.max(now);
        match self.level.checked_sub(self.cost) {
            Some(left) => {
                self.level = left;
                true
            }
            None => false,
        }
    }
}
