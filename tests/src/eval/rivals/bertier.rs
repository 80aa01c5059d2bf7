//! The adaptable detector of Bertier, Marin and Sens, "Implementation and performance evaluation of an
//! adaptable failure detector", DSN 2002: Chen's expected arrival with Jacobson's margin.
//!
//! ```text
//! error_k   = A_k − EA_k − delay_k
//! delay_k+1 = delay_k + γ·error_k
//! var_k+1   = var_k + γ·(|error_k| − var_k)
//! α_k+1     = β·delay_k+1 + φ·var_k+1          τ_k+1 = EA_k+1 + α_k+1
//! ```
//!
//! γ = 0.1, β = 1, φ = 4; φ is the knob. The formulas are those by which later papers quote it. After
//! lost beats `EA_k` is the newest estimate moved along by the intervals lost, so that a loss is no
//! error. Margin and delay start at zero.

use super::window::{Expected, Schedule};
use super::{Arrival, Detector, WINDOW};

const GAMMA: f64 = 0.1;
const BETA: f64 = 1.0;

/// The expected arrival plus a margin that follows recent errors.
#[derive(Clone, Debug)]
pub struct Bertier {
    expected: Expected,
    interval_s: f64,
    phi: f64,
    /// The newest beat and when the one after it is expected.
    last: Option<(u32, f64)>,
    delay_s: f64,
    var_s: f64,
}

impl Bertier {
    /// A detector of a host that beats every `interval_s`; `phi` deviations are waited for.
    pub fn new(interval_s: f64, phi: f64) -> Self {
        let expected = Expected::new(Schedule::Raw, WINDOW, interval_s);
        Self { expected, interval_s, phi, last: None, delay_s: 0.0, var_s: 0.0 }
    }
}

impl Detector for Bertier {
    #[inline]
    fn observe(&mut self, a: &Arrival) -> f64 {
        if let Some((seq, expected_s)) = self.last {
            let lost = f64::from(a.seq - seq - 1);
            let error_s = a.at_s - (expected_s + lost * self.interval_s) - self.delay_s;
            self.delay_s += GAMMA * error_s;
            self.var_s += GAMMA * (error_s.abs() - self.var_s);
        }
        let expected_s = self.expected.observe(a);
        self.last = Some((a.seq, expected_s));
        expected_s + BETA * self.delay_s + self.phi * self.var_s
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

    fn at(seq: u32, at_s: f64) -> Arrival {
        Arrival { seq, sent_s: 0.0, gap_s: 0.0, at_s }
    }

    #[test]
    fn the_margin_follows_the_errors() {
        let mut d = Bertier::new(1.0, 4.0);
        // EA = 1, no error known.
        near(d.observe(&at(0, 0.0)), 1.0);
        // error = 1.2 − 1 − 0 = 0.2; delay 0.02, var 0.02; EA = (0 + 0.2) / 2 + 2 = 2.1;
        // margin 0.02 + 4 · 0.02 = 0.1.
        near(d.observe(&at(1, 1.2)), 2.2);
        // error = 2.0 − 2.1 − 0.02 = −0.12; delay 0.02 − 0.012 = 0.008;
        // var = 0.02 + 0.1 · (0.12 − 0.02) = 0.03; EA = 0.2 / 3 + 3; margin 0.008 + 0.12.
        near(d.observe(&at(2, 2.0)), 3.066_667 + 0.128);
    }

    #[test]
    fn a_lost_beat_is_no_error() {
        let mut d = Bertier::new(1.0, 4.0);
        d.observe(&at(0, 0.0));
        // Beats 1 to 3 are lost, beat 4 is on time: EA_1 = 1, EA_4 = 4, error 0.
        near(d.observe(&at(4, 4.0)), 5.0);
    }
}
