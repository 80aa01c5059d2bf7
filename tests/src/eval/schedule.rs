//! When a host that keeps its schedule sends: the agent's phase jitter, without its state.
//!
//! Beat `k` is planned at `k·η + u(k)·η·jitter/2`, with `u(k)` uniform in ±1 and drawn from a hash of
//! seed and `k`. So a gap lies within `η·(1 ± jitter)` and the grid never moves, as in the agent's
//! `schedule`; unlike there, any beat can be asked for without those before it, and planned times
//! are not rounded to microseconds.

/// 2⁶⁴ divided by the golden ratio: successive multiples differ in about half of their bits.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A bijection of 64 bits after which neighbouring inputs have nothing in common (SplitMix64's).
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The planned sends of one host. A value without state: two calls agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    interval_s: f64,
    /// What a draw of 2⁶³ moves a beat by.
    reach_s: f64,
    key: u64,
}

impl Plan {
    /// A plan with `interval_s` between grid points, whose beats stray from them by at most
    /// `interval_s · jitter / 2` either way. Plans of different seeds stray independently.
    ///
    /// # Panics
    ///
    /// If the interval is not positive or the jitter is not within 0 to 1, where the order of beats
    /// would be lost.
    pub fn new(interval_s: f64, jitter: f64, seed: u64) -> Self {
        assert!(interval_s > 0.0 && interval_s.is_finite(), "interval {interval_s}");
        assert!((0.0..=1.0).contains(&jitter), "jitter {jitter}");
        let reach_s = interval_s * jitter / 2.0 / (1u64 << 63) as f64;
        Self { interval_s, reach_s, key: mix(seed.wrapping_add(GOLDEN)) }
    }

    /// When beat `k` is to be sent: seconds since the grid's origin, which beat 0 may precede by its
    /// jitter.
    #[inline]
    pub fn planned(&self, k: u32) -> f64 {
        let draw = mix(self.key.wrapping_add(u64::from(k).wrapping_mul(GOLDEN))) as i64;
        f64::from(k) * self.interval_s + draw as f64 * self.reach_s
    }

    /// Seconds from beat `k` to the next, which is what beat `k` announces.
    #[inline]
    pub fn gap(&self, k: u32) -> f64 {
        self.planned(k + 1) - self.planned(k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_spread_evenly_about_their_grid_points() {
        let plan = Plan::new(2.0, 0.2, 7);
        let (mut tenths, mut sum, mut product, mut last) = ([0u32; 10], 0.0, 0.0, 0.0);
        let n = 100_000u32;
        for k in 0..n {
            // ±2 · 0.2 / 2 = ±0.2 s.
            let stray = (plan.planned(k) - f64::from(k) * 2.0) / 0.2;
            assert!((-1.000001..=1.000001).contains(&stray), "{stray}");
            tenths[((stray + 1.0) * 5.0).clamp(0.0, 9.0) as usize] += 1;
            sum += stray;
            product += stray * last;
            last = stray;
        }
        // Expected 10,000 each with deviation 95; mean 0 ± 0.0018; neighbours' product 0 ± 0.001.
        assert!(tenths.iter().all(|t| (9_600..10_400).contains(t)), "{tenths:?}");
        assert!((sum / f64::from(n)).abs() < 0.008, "{sum}");
        assert!((product / f64::from(n)).abs() < 0.005, "{product}");
    }

    #[test]
    fn gaps_lead_from_beat_to_beat_and_stay_within_the_jitter() {
        let plan = Plan::new(1.0, 0.2, 3);
        let (mut least, mut most) = (f64::MAX, 0.0f64);
        for k in 0..50_000 {
            let gap = plan.gap(k);
            assert!((plan.planned(k) + gap - plan.planned(k + 1)).abs() < 1e-9);
            (least, most) = (least.min(gap), most.max(gap));
        }
        assert!((0.8..0.81).contains(&least) && (1.19..=1.2).contains(&most), "{least} {most}");
    }

    #[test]
    fn without_jitter_beats_stand_on_the_grid() {
        let plan = Plan::new(0.5, 0.0, 9);
        assert_eq!((plan.planned(0), plan.planned(7), plan.gap(3)), (0.0, 3.5, 0.5));
    }

    #[test]
    fn neighbouring_seeds_have_nothing_in_common_and_the_same_seed_has_all() {
        let [a, b] = [4, 5].map(|seed| Plan::new(1.0, 0.2, seed));
        assert_eq!(a, Plan::new(1.0, 0.2, 4));
        // Not only beat by beat: neither is the other moved along by a few beats.
        for shift in 0..4 {
            let together: f64 = (0..20_000u32)
                .map(|k| {
                    let (x, y) = (a.planned(k), b.planned(k + shift));
                    (x - f64::from(k)) * (y - f64::from(k + shift)) / 0.01
                })
                .sum();
            assert!((together / 20_000.0).abs() < 0.012, "{together} at {shift}");
        }
    }
}
