//! The phi-accrual detector of Hayashibara et al. (SRDS 2004) as Akka and Pekko ship it: apache/pekko,
//! `remote/src/main/scala/org/apache/pekko/remote/PhiAccrualFailureDetector.scala` at 17f8894f;
//! akka/akka has the same under `akka-remote`.
//!
//! ```text
//! y   = (t − (mean + pause)) / max(sd, min_sd)       t = time since the last beat
//! e   = exp(−y·(1.5976 + 0.070566·y²))
//! phi = −log10(e / (1 + e))            if t > mean + pause
//!       −log10(1 − 1 / (1 + e))        otherwise
//! ```
//!
//! Mean and deviation are of the last 1000 intervals between arrivals. The window starts with
//! `est − est/4` and `est + est/4`, `est` being the interval. A host is available while phi is below
//! the threshold, and an interval at whose end the host was not available is not recorded. Defaults of
//! the cluster module: threshold 8, pause 3 s, `min_sd` 0.1 s.
//!
//! The two branches are one function, `log10(1 + 1/e)`, written so that neither loses digits, and it
//! rises with `t`. So the host is suspected from `mean + pause + sd·y*` on, where `y*` solves
//! `y·(1.5976 + 0.070566·y²) = ln(10^threshold − 1)` and is found once. Times are kept in microseconds
//! instead of milliseconds. Sequence numbers and schedules play no part.

use super::window::{Window, micros};
use super::{Arrival, Detector, WINDOW};

/// The least standard deviation, seconds.
const DEVIATION_MIN_S: f64 = 0.1;

/// Phi-accrual with a normal distribution.
#[derive(Clone, Debug)]
pub struct AkkaPhi {
    pause_s: f64,
    /// Deviations beyond mean and pause at which phi meets the threshold.
    reach: f64,
    interval_us: i64,
    /// When the last beat came, and when it would have been too late for the next.
    last: Option<(f64, f64)>,
    /// By how much recorded intervals differ from `interval_us`.
    window: Window,
    /// Sum of their squares: integers, and exact while below 2⁵³.
    squares: f64,
}

/// The `y` at which phi equals `threshold`.
fn reach_of(threshold: f64) -> f64 {
    // ln(10^θ − 1), by way of a form that does not overflow.
    let power = threshold * std::f64::consts::LN_10;
    let target = power + (-(-power).exp()).ln_1p();
    // y³ alone is beyond the target at either end: 0.070566 · 1e9 ≫ 1e5 · ln 10.
    let (mut low, mut high) = (-1e3f64, 1e3f64);
    for _ in 0..200 {
        let y = (low + high) / 2.0;
        if y * (1.5976 + 0.070566 * y * y) < target { low = y } else { high = y }
    }
    high
}

impl AkkaPhi {
    /// A detector of a host that beats every `interval_s`, which bears `pause_s` of silence beyond
    /// the mean before phi rises, and suspects at `threshold`.
    ///
    /// # Panics
    ///
    /// If the threshold is not within 1e-6 to 1e5.
    pub fn new(interval_s: f64, pause_s: f64, threshold: f64) -> Self {
        assert!((1e-6..=1e5).contains(&threshold), "threshold {threshold}");
        let mut new = Self {
            pause_s,
            reach: reach_of(threshold),
            interval_us: micros(interval_s),
            last: None,
            window: Window::new(WINDOW),
            squares: 0.0,
        };
        let quarter = new.interval_us / 4;
        new.record(-quarter);
        new.record(quarter);
        new
    }

    #[inline]
    fn record(&mut self, value: i64) {
        let square = |v: i64| v as f64 * v as f64;
        let old = self.window.push(value).map_or(0.0, square);
        self.squares += square(value) - old;
        // What a few outages rounded off is put right once a round.
        if self.window.is_at_start() {
            self.squares = self.window.values().iter().map(|&v| square(v)).sum();
        }
    }

    /// Mean and standard deviation in force, seconds.
    #[inline]
    fn moments(&self) -> (f64, f64) {
        let mean_us = self.window.mean();
        let variance = (self.squares * self.window.share() - mean_us * mean_us).max(0.0);
        let mean_s = (self.interval_us as f64 + mean_us) * 1e-6;
        (mean_s, (variance.sqrt() * 1e-6).max(DEVIATION_MIN_S))
    }
}

impl Detector for AkkaPhi {
    #[inline]
    fn observe(&mut self, a: &Arrival) -> f64 {
        if let Some((last_s, deadline_s)) = self.last
            && a.at_s < deadline_s
        {
            self.record(micros(a.at_s - last_s) - self.interval_us);
        }
        let (mean_s, deviation_s) = self.moments();
        let deadline_s = a.at_s + mean_s + self.pause_s + deviation_s * self.reach;
        self.last = Some((a.at_s, deadline_s));
        deadline_s
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>() + self.window.heap_bytes()
    }
}

#[cfg(test)]
mod tests;
