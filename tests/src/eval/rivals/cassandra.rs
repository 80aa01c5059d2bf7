//! The accrual detector of Cassandra, with an exponential distribution: apache/cassandra,
//! `src/java/org/apache/cassandra/gms/FailureDetector.java` at 07242de0 (CASSANDRA-2597 has the
//! mathematics).
//!
//! `phi(t) = t / mean · log10(e)`, convicted above the threshold (default 8), that is from
//! `mean · threshold · ln 10` after the last beat on. The mean is of the last 1000 intervals; the first
//! beat puts twice the interval there. An interval longer than `max_interval` is not recorded.
//!
//! The source's `max_interval` is twice the interval. In versions that read it from
//! `CassandraRelevantProperties` its default is a count of nanoseconds taken for milliseconds, so that
//! in effect every interval is recorded: [`CassandraPhi::recording_all`].

use super::window::{Window, micros};
use super::{Arrival, Detector, WINDOW};

/// Phi-accrual with an exponential distribution.
#[derive(Clone, Debug)]
pub struct CassandraPhi {
    interval_s: f64,
    interval_s_max: f64,
    /// Means of silence at which phi meets the threshold.
    reach: f64,
    last_s: Option<f64>,
    window: Window,
}

impl CassandraPhi {
    /// A detector of a host that beats every `interval_s`, which suspects at `threshold` and records
    /// no interval longer than two.
    pub fn new(interval_s: f64, threshold: f64) -> Self {
        Self {
            interval_s,
            interval_s_max: 2.0 * interval_s,
            reach: threshold * std::f64::consts::LN_10,
            last_s: None,
            window: Window::new(WINDOW),
        }
    }

    /// The same, but every interval is recorded.
    pub fn recording_all(interval_s: f64, threshold: f64) -> Self {
        Self { interval_s_max: f64::INFINITY, ..Self::new(interval_s, threshold) }
    }
}

impl Detector for CassandraPhi {
    #[inline]
    fn observe(&mut self, a: &Arrival) -> f64 {
        let interval_s = self.last_s.map_or(2.0 * self.interval_s, |last_s| a.at_s - last_s);
        // Half a microsecond of grace: differences of large instants are not exact.
        if interval_s <= self.interval_s_max + 5e-7 {
            self.window.push(micros(interval_s));
        }
        self.last_s = Some(a.at_s);
        a.at_s + self.window.mean() * 1e-6 * self.reach
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>() + self.window.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at_s: f64) -> Arrival {
        Arrival { seq: 0, sent_s: 0.0, gap_s: 0.0, at_s }
    }

    fn near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-5, "{got} instead of {expected}");
    }

    #[test]
    fn the_deadline_is_a_multiple_of_the_mean() {
        let mut d = CassandraPhi::new(1.0, 8.0);
        // 2 · 8 · ln 10 = 36.841361.
        near(d.observe(&at(5.0)), 5.0 + 36.841_361);
        // (2 + 1) / 2 = 1.5; 1.5 · 18.420681 = 27.631021.
        near(d.observe(&at(6.0)), 6.0 + 27.631_021);
        // There phi is 27.631021 / 1.5 · 0.4342945 = 8.
        near(27.631_021 / 1.5 * std::f64::consts::LOG10_E, 8.0);
        // (2 + 1 + 1.5) / 3 = 1.5.
        near(d.observe(&at(7.5)), 7.5 + 27.631_021);
    }

    #[test]
    fn intervals_beyond_two_are_not_recorded() {
        let mut d = CassandraPhi::new(1.0, 8.0);
        d.observe(&at(0.0));
        d.observe(&at(1.0));
        near(d.observe(&at(3.1)), 3.1 + 27.631_021);
        // Two seconds to the microsecond are: (2 + 1 + 2) / 3 · 18.420681 = 30.701134.
        near(d.observe(&at(5.1)), 5.1 + 30.701_134);
    }

    #[test]
    fn where_all_are_recorded_an_outage_moves_the_mean() {
        let mut d = CassandraPhi::recording_all(1.0, 8.0);
        d.observe(&at(0.0));
        // (2 + 28) / 2 = 15; 15 · 18.420681 = 276.310211.
        near(d.observe(&at(28.0)), 28.0 + 276.310_211);
    }

    #[test]
    fn the_window_forgets() {
        let mut d = CassandraPhi::new(1.0, 8.0);
        let last = (0..1_001).map(|k| d.observe(&at(f64::from(k)))).last().unwrap();
        near(last, 1_000.0 + 18.420_681);
    }
}
