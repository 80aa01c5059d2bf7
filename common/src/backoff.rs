//! Pure capped exponential delays with full jitter.
//!
//! "Full jitter" draws uniformly from zero to the capped exponential bound; of the usual variants it
//! spreads a crowd of retriers best. Source: M. Brooker, "Exponential Backoff And Jitter", AWS
//! Architecture Blog, 2015.

use std::time::Duration;

use rand::{Rng, RngExt};

/// A schedule of delays: the bound doubles from `base` to at most `cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first delay. Not zero.
    pub base: Duration,
    /// The bound never exceeds this.
    pub cap: Duration,
}

impl Backoff {
    /// The largest delay after `failures` failures (1 = the first): `base · 2^(failures−1)`, at most
    /// `cap`; zero for `failures = 0`.
    pub fn bound(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).unwrap_or(self.cap).min(self.cap)
    }

    /// A delay drawn uniformly from zero to [`Backoff::bound`].
    pub fn delay<R: Rng + ?Sized>(&self, failures: u32, rng: &mut R) -> Duration {
        let bound = u64::try_from(self.bound(failures).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(rng.random_range(0..=bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const B: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(300) };

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let secs: Vec<u64> = (0..12).map(|n| B.bound(n).as_secs()).collect();
        assert_eq!(secs, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(B.bound(u32::MAX), B.cap);
    }

    #[test]
    fn delays_spread_over_the_whole_bound() {
        let mut rng = StdRng::seed_from_u64(1);
        let n = 10_000u32;
        let mut quarters = [0u32; 4];
        for _ in 0..n {
            let d = B.delay(4, &mut rng);
            assert!(d <= Duration::from_secs(8));
            quarters[(d.as_secs_f64() / 2.0).min(3.0) as usize] += 1;
        }
        for q in quarters {
            assert!((2_200..2_800).contains(&q), "{quarters:?}");
        }
    }
}
