//! What a detector costs: detection time against mistakes.
//!
//! The figures are those of Chen, Toueg and Aguilera ("On the Quality of Service of Failure Detectors",
//! IEEE ToC 51(5), 2002): detection time T_D from a crash to the suspicion that stays, mistake rate λ_M,
//! mean mistake duration T_M, query accuracy P_A = 1 − λ_M · E(T_M).
//!
//! A crash may come at any moment, each as likely as any other. If it comes between the sending of beats
//! k and k + 1, everything up to beat k still arrives, and the host is suspected at the deadline that
//! stands once it has. So the *mean* T_D is an integral over the whole recording, not a sample; for the
//! quantiles one moment is drawn in each gap.

/// Bins of the histogram of detection times: 200 a decade from 1 ms to 10,000 s.
const BINS: usize = 1_400;

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// Time watched, seconds.
    pub time_s: f64,
    /// Integral of the detection time over it.
    detection_s2: f64,
    /// Detection times drawn, by size.
    drawn: Vec<f64>,
    /// Wrong suspicions.
    pub mistakes: f64,
    /// Their durations, summed, seconds.
    pub mistaken_s: f64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            time_s: 0.0,
            detection_s2: 0.0,
            drawn: vec![0.0; BINS],
            mistakes: 0.0,
            mistaken_s: 0.0,
        }
    }
}

impl Tally {
    /// Counts the gap from `sent` to `next` with the deadline that stands after the beat of `sent`;
    /// `draw`, 0 to 1, is the moment of a crash within it.
    pub fn gap(&mut self, sent: f64, next: f64, deadline: f64, draw: f64) {
        let span = next - sent;
        let (at_start, at_end) = (deadline - sent, deadline - next);
        self.time_s += span;
        // The integral of max(0, deadline − t).
        self.detection_s2 += if at_end >= 0.0 {
            span * (at_start + at_end) / 2.0
        } else {
            at_start.max(0.0).powi(2) / 2.0
        };
        let drawn = (at_start - draw * span).max(1e-3);
        let bin = (drawn / 1e-3).log10() * 200.0;
        self.drawn[(bin as usize).min(BINS - 1)] += 1.0;
    }

    /// Counts a wrong suspicion that stood for `lasted_s` seconds.
    pub fn mistake(&mut self, lasted_s: f64) {
        self.mistakes += 1.0;
        self.mistaken_s += lasted_s;
    }

    /// Adds another tally, with a weight.
    pub fn add(&mut self, other: &Self, weight: f64) {
        self.time_s += weight * other.time_s;
        self.detection_s2 += weight * other.detection_s2;
        self.mistakes += weight * other.mistakes;
        self.mistaken_s += weight * other.mistaken_s;
        for (mine, theirs) in self.drawn.iter_mut().zip(&other.drawn) {
            *mine += weight * theirs;
        }
    }

    /// Mean detection time, seconds; NaN if nothing was watched, as below.
    pub fn mean_s(&self) -> f64 {
        self.detection_s2 / self.time_s
    }

    /// The detection time that a share `q` of crashes does not exceed, seconds.
    pub fn quantile_s(&self, q: f64) -> f64 {
        let all = self.drawn.iter().sum::<f64>();
        let mut sum = 0.0;
        for (bin, count) in self.drawn.iter().enumerate() {
            sum += count;
            if all > 0.0 && sum >= all * q {
                return 1e-3 * 10f64.powf((bin as f64 + 0.5) / 200.0);
            }
        }
        f64::NAN
    }

    /// Mistakes per host-day (λ_M).
    pub fn mistakes_per_day(&self) -> f64 {
        self.mistakes / (self.time_s / 86_400.0)
    }

    /// Mean duration of a mistake (T_M), seconds; `None` if there was none.
    pub fn mistake_s(&self) -> Option<f64> {
        (self.mistakes > 0.0).then(|| self.mistaken_s / self.mistakes)
    }

    /// Share of the time in which the host was rightly trusted (P_A).
    pub fn accuracy(&self) -> f64 {
        1.0 - self.mistaken_s / self.time_s
    }
}
