//! The share of beats received in a sliding window: a host is suspected once fewer than
//! `share · W / η` arrivals lie in `(t − W, t]`.
//!
//! This is how an alert on a counted rate behaves ("fewer than 80 % of the expected samples in 5 min"),
//! and Eureka's renewal threshold, for one host. With `n = ⌈share · W / η⌉` beats needed, the count
//! falls below when the `n`-th newest arrival leaves the window: `τ = A_(n-th newest) + W`. So the
//! state is the last `n` arrivals.
//!
//! Before `n` beats have come, the host is given credit for regular ones before its first: it is not
//! suspected for being new. While too few of a window's beats have come, an answer lies before the
//! arrival it answers: one beat does not restore trust.

use super::{Arrival, Detector};

/// Suspects where too few beats came lately.
#[derive(Clone, Debug)]
pub struct Share {
    window_s: f64,
    interval_s: f64,
    /// The last arrivals; before the first of all, empty of meaning.
    ring: Box<[f64]>,
    /// Where the oldest is.
    oldest: usize,
    is_fresh: bool,
}

impl Share {
    /// A detector of a host that beats every `interval_s`, which wants `share` of the beats of any
    /// `window_s`.
    ///
    /// # Panics
    ///
    /// If that is no beat at all, or if `share` is above one: regular beats would not do.
    pub fn new(window_s: f64, share: f64, interval_s: f64) -> Self {
        assert!(share > 0.0 && share <= 1.0, "share {share}");
        // Products such as 0.7 · 10 may come out a hair above the whole number that is meant.
        let needed = (share * window_s / interval_s - 1e-9).ceil();
        assert!(needed >= 1.0, "no beat is needed");
        let ring = vec![0.0; needed as usize].into_boxed_slice();
        Self { window_s, interval_s, ring, oldest: 0, is_fresh: true }
    }
}

impl Detector for Share {
    #[inline]
    fn observe(&mut self, a: &Arrival) -> f64 {
        if self.is_fresh {
            self.is_fresh = false;
            let n = self.ring.len() as f64;
            for (i, slot) in self.ring.iter_mut().enumerate() {
                *slot = a.at_s - (n - i as f64) * self.interval_s;
            }
        }
        self.ring[self.oldest] = a.at_s;
        self.oldest += 1;
        if self.oldest == self.ring.len() {
            self.oldest = 0;
        }
        self.ring[self.oldest] + self.window_s
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at_s: f64) -> Arrival {
        Arrival { seq: 0, sent_s: 0.0, gap_s: 0.0, at_s }
    }

    #[test]
    fn suspicion_starts_when_the_last_beat_needed_leaves_the_window() {
        // 0.6 · 5 = 3 beats of 5 s.
        let mut d = Share::new(5.0, 0.6, 1.0);
        // Credited: 8 and 9. In (t − 5, t] at t = 13 lie 9, 10 only.
        assert_eq!(d.observe(&at(10.0)), 13.0);
        assert_eq!(d.observe(&at(11.0)), 14.0);
        // 10 11 12: at 15 ten leaves.
        assert_eq!(d.observe(&at(12.0)), 15.0);
        // 13 and 14 are lost: 11 12 14.9.
        assert_eq!(d.observe(&at(14.9)), 16.0);
    }

    #[test]
    fn after_an_outage_trust_needs_enough_beats() {
        let mut d = Share::new(5.0, 0.6, 1.0);
        for t in [1.0, 2.0, 3.0] {
            d.observe(&at(t));
        }
        // Third newest: 2, 3, then 20.
        assert_eq!([20.0, 21.0, 22.0].map(|t| d.observe(&at(t))), [7.0, 8.0, 25.0]);
    }

    #[test]
    fn one_beat_needed_is_a_fixed_time_out() {
        let mut d = Share::new(10.0, 0.1, 1.0);
        assert_eq!([3.0, 7.5].map(|t| d.observe(&at(t))), [13.0, 17.5]);
    }

    #[test]
    fn the_count_needed_is_rounded_up() {
        // 0.7 · 10 = 7 and 0.71 · 10 → 8; the k-th newest of steady beats is k − 1 old.
        for (share, n) in [(0.7, 7.0), (0.71, 8.0), (1.0, 10.0)] {
            let mut d = Share::new(10.0, share, 1.0);
            let last = (0..30).map(|k| d.observe(&at(f64::from(k)))).last().unwrap();
            assert_eq!(last, 29.0 - (n - 1.0) + 10.0);
        }
    }
}
