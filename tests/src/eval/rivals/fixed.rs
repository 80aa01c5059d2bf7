//! A fixed time-out: `τ = A_l + timeout`. What most shipping software does.

use super::{Arrival, Detector};

/// Suspects a host a fixed time after its last beat.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    timeout_s: f64,
}

impl Fixed {
    /// Suspects `timeout_s` after the last arrival.
    pub fn new(timeout_s: f64) -> Self {
        Self { timeout_s }
    }
}

impl Detector for Fixed {
    #[inline]
    fn observe(&mut self, a: &Arrival) -> f64 {
        a.at_s + self.timeout_s
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_last_arrival_counts() {
        let mut d = Fixed::new(2.5);
        assert_eq!(d.observe(&Arrival { seq: 0, sent_s: 9.0, gap_s: 1.0, at_s: 1.0 }), 3.5);
        assert_eq!(d.observe(&Arrival { seq: 8, sent_s: 0.0, gap_s: 7.0, at_s: 9.0 }), 11.5);
    }
}
