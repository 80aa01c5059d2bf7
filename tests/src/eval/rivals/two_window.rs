//! The two-window detector (2W-FD) of Tomsic, Sens, Garcia, Arantes and Sopena, "2W-FD: A Failure
//! Detector Algorithm with QoS", IPDPS 2015 (hal-01357777).
//!
//! `τ_{l+1} = max(EA over the last 1, EA over the last n) + Δ`, each `EA` as in Chen's NFD-E. The short
//! window follows a sudden delay at once, the long one does not follow a single early beat. The
//! authors' windows are 1 and 1000.

use super::window::{Expected, Schedule};
use super::{Arrival, Detector};

/// The later of two expected arrivals plus a constant margin.
#[derive(Clone, Debug)]
pub struct TwoWindow {
    expected: Expected,
    delta_s: f64,
}

impl TwoWindow {
    /// A detector with windows of 1 and `window` beats that waits `delta_s` beyond the later of the
    /// two expected arrivals.
    pub fn new(schedule: Schedule, window: usize, interval_s: f64, delta_s: f64) -> Self {
        Self { expected: Expected::new(schedule, window, interval_s), delta_s }
    }
}

impl Detector for TwoWindow {
    #[inline]
    fn observe(&mut self, a: &Arrival) -> f64 {
        let (short_s, long_s) = self.expected.observe_both(a);
        short_s.max(long_s) + self.delta_s
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
    fn the_later_expectation_counts() {
        let mut d = TwoWindow::new(Schedule::Raw, 3, 1.0, 0.5);
        let at = |seq, at_s| Arrival { seq, sent_s: 0.0, gap_s: 0.0, at_s };
        near(d.observe(&at(0, 0.1)), 1.1 + 0.5);
        // Late: short 1.7 + 1 = 2.7; long (0.1 + 0.7) / 2 + 2 = 2.4.
        near(d.observe(&at(1, 1.7)), 2.7 + 0.5);
        // Early: short 2.1 + 1 = 3.1; long (0.1 + 0.7 + 0.1) / 3 + 3 = 3.3.
        near(d.observe(&at(2, 2.1)), 3.3 + 0.5);
    }

    #[test]
    fn the_announced_form_adds_the_announced_gap() {
        let mut d = TwoWindow::new(Schedule::Announced, 1_000, 1.0, 0.5);
        let a = Arrival { seq: 0, sent_s: 50.0, gap_s: 1.1, at_s: 3.0 };
        near(d.observe(&a), 4.1 + 0.5);
        // Offsets −47 and −47.3: short 51.1 + 0.9 − 47.3 = 4.7; long 52 − 47.15 = 4.85.
        let a = Arrival { seq: 1, sent_s: 51.1, gap_s: 0.9, at_s: 3.8 };
        near(d.observe(&a), 4.85 + 0.5);
    }
}
