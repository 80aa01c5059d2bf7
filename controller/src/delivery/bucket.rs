//! Pure: how many requests a second a receiver gets.

use std::time::Duration;

use heartwatch_common::time::Instant;

/// A limit on requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time that one request pays for. Not zero.
    pub every: Duration,
    /// Requests that may be made at once after a rest. Not zero.
    pub burst: u32,
}

impl Rate {
    /// So many a second; `None` for 0, which is no limit.
    pub fn per_second(rate: u64, burst: u32) -> Option<Self> {
        let every = Duration::from_nanos(1_000_000_000u64.checked_div(rate)?.max(1));
        Some(Self { every, burst: burst.max(1) })
    }
}

/// A token bucket in one number, the generic cell rate algorithm of ITU-T I.371: the time at which the
/// bucket would be full again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    rate: Rate,
    full_at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, full_at: Instant(0) }
    }

    /// From when on a request may be made.
    pub(super) fn ready_at(&self) -> Instant {
        let ahead = self.rate.every.saturating_mul(self.rate.burst - 1);
        Instant(self.full_at.0.saturating_sub(u64::try_from(ahead.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// A request is made.
    pub(super) fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.rate.every;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bucket that is filled drop by drop: `level` in nanoseconds of credit.
    struct Naive {
        level: u64,
        at: Instant,
    }

    #[test]
    fn it_lets_through_what_a_bucket_filled_drop_by_drop_does() {
        let rate = Rate::per_second(4, 3).unwrap();
        let one = 250_000_000u64;
        let mut bucket = Bucket::new(rate);
        let mut naive = Naive { level: 3 * one, at: Instant(0) };
        let (mut taken, mut seed) = (0, 1u64);
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let now = Instant(naive.at.0 + (seed >> 33) % (2 * one));
            naive.level = (naive.level + (now.0 - naive.at.0)).min(3 * one);
            naive.at = now;
            assert_eq!(bucket.ready_at() <= now, naive.level >= one);
            if naive.level >= one {
                naive.level -= one;
                bucket.take(now);
                taken += 1;
            }
        }
        assert!(taken > 5_000, "{taken}");
        assert_eq!(Rate::per_second(0, 3), None);
    }
}
