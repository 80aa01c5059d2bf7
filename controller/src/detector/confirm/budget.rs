//! What probing may cost: a token bucket.

use heartwatch_common::time::Instant;

/// Tokens gathered at `rate` per second up to `burst`; pure.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { rate: f64::from(rate), burst, tokens: burst, filled: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_above(0.0, now)
    }

    /// Takes one token for something that can be left undone: only while the bucket is more than half
    /// full, so that what cannot be left undone never waits for it.
    pub fn take_spare(&mut self, now: Instant) -> bool {
        self.take_above(self.burst / 2.0, now)
    }

    fn take_above(&mut self, level: f64, now: Instant) -> bool {
        let gathered = now.since(self.filled).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gathered).min(self.burst);
        self.filled = self.filled.max(now);
        if self.tokens < level + 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_left_undone_leaves_half_for_what_cannot() {
        let now = Instant::from_millis(0);
        let mut bucket = Bucket::new(10, 10, now);
        assert_eq!((0..20).filter(|_| bucket.take_spare(now)).count(), 5);
        assert_eq!((0..20).filter(|_| bucket.take(now)).count(), 5);
        let later = Instant::from_millis(600);
        assert_eq!((0..20).filter(|_| bucket.take_spare(later)).count(), 1);
        assert_eq!((0..20).filter(|_| bucket.take(later)).count(), 5);
    }
}
