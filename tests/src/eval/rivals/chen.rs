//! NFD-E of Chen, Toueg and Aguilera, "On the Quality of Service of Failure Detectors", IEEE
//! Transactions on Computers 51(5), 2002.
//!
//! `EA_{l+1} = (1/n) Σ (A_i − η·i) + (l+1)·η` over the last `n` beats received, `l` being the newest;
//! `τ_{l+1} = EA_{l+1} + α`.
//!
//! Lost beats do not move the estimate, as `i` counts them too. With [`Schedule::Announced`] the
//! sender's own `sent` takes the place of `η·i`, and `sent + gap` that of `(l+1)·η`: deliberate
//! jitter is then no noise. The paper's detector is the raw one; the other is what it becomes with
//! what our beats carry.

use super::window::{Expected, Schedule};
use super::{Arrival, Detector};

/// The expected arrival plus a constant margin.
#[derive(Clone, Debug)]
pub struct Chen {
    expected: Expected,
    alpha_s: f64,
}

impl Chen {
    /// A detector that averages `window` beats of a host that beats every `interval_s`, and waits
    /// `alpha_s` beyond the expected arrival.
    pub fn new(schedule: Schedule, window: usize, interval_s: f64, alpha_s: f64) -> Self {
        Self { expected: Expected::new(schedule, window, interval_s), alpha_s }
    }
}

impl Detector for Chen {
    #[inline]
    fn observe(&mut self, a: &Arrival) -> f64 {
        self.expected.observe(a) + self.alpha_s
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>() + self.expected.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 2e-6, "{got} instead of {expected}");
    }

    #[test]
    fn the_raw_form_averages_what_arrivals_differ_from_the_grid() {
        let mut d = Chen::new(Schedule::Raw, 3, 1.0, 0.5);
        let at = |seq, at_s| Arrival { seq, sent_s: 0.0, gap_s: 0.0, at_s };
        // 10.1 − 0 = 10.1; EA = 10.1 + 1.
        near(d.observe(&at(0, 10.1)), 11.1 + 0.5);
        // 11.3 − 1 = 10.3; mean 10.2; EA = 10.2 + 2.
        near(d.observe(&at(1, 11.3)), 12.2 + 0.5);
        // Beats 2 and 3 are lost: 14.2 − 4 = 10.2; mean 10.2; EA = 10.2 + 5.
        near(d.observe(&at(4, 14.2)), 15.2 + 0.5);
        // 15.7 − 5 = 10.7; the window of three forgets 10.1: mean 10.4; EA = 10.4 + 6.
        near(d.observe(&at(5, 15.7)), 16.4 + 0.5);
    }

    #[test]
    fn the_announced_form_knows_the_jitter() {
        let mut d = Chen::new(Schedule::Announced, 1_000, 1.0, 0.5);
        // The sender's clock is 100 s behind. 200.03 − 100 = 100.03; EA = 100 + 0.9 + 100.03.
        let a = Arrival { seq: 7, sent_s: 100.0, gap_s: 0.9, at_s: 200.03 };
        near(d.observe(&a), 200.93 + 0.5);
        // 200.95 − 100.9 = 100.05; mean 100.04; EA = 100.9 + 1.1 + 100.04.
        let a = Arrival { seq: 8, sent_s: 100.9, gap_s: 1.1, at_s: 200.95 };
        near(d.observe(&a), 202.04 + 0.5);
    }

    #[test]
    fn a_beat_later_than_its_successor_is_expected_restores_no_trust() {
        let mut d = Chen::new(Schedule::Raw, 2, 1.0, 0.5);
        let at = |seq, at_s| Arrival { seq, sent_s: 0.0, gap_s: 0.0, at_s };
        d.observe(&at(0, 0.0));
        // 6 − 1 = 5; mean 2.5; EA = 2.5 + 2, and the margin ends at 5, before the arrival.
        near(d.observe(&at(1, 6.0)), 5.0);
    }
}
