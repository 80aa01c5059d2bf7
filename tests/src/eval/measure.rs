//! What a detector costs: detection time against mistakes, over one host's beats.
//!
//! The figures are those of Chen, Toueg and Aguilera ("On the Quality of Service of Failure Detectors",
//! IEEE ToC 51(5), 2002): detection time T_D from a crash to the suspicion that stays, mistake rate λ_M,
//! mean mistake duration T_M, query accuracy P_A = 1 − λ_M · E(T_M).
//!
//! A crash may come at any moment, each as likely as any other. If it comes between the sending of beats
//! k and k + 1, everything up to beat k still arrives, and the host is suspected at the deadline that
//! stands once it has. So the *mean* T_D is an integral over the whole recording, not a sample; for the
//! quantiles one moment is drawn in each gap.

use super::families::LOST;
use super::rivals::{Arrival, Detector};
use super::schedule::Plan;

/// One host's way to the controller: when its beats are planned, and how long each was under way.
#[derive(Clone, Debug)]
pub struct Series {
    /// Index of its family.
    pub family: usize,
    /// When beats are sent.
    pub plan: Plan,
    /// One-way delay of each beat in microseconds, or [`LOST`].
    pub delays_us: Vec<u32>,
    /// Delays beyond this are the sender's own: it froze, and sent the beat when it thawed.
    pub frozen_us: u32,
}

/// No delay is the sender's.
pub const NEVER_FROZEN: u32 = u32::MAX - 1;

impl Series {
    /// A series in which beats that a later one overtook count as lost: every detector here believes
    /// the newest number only.
    pub fn new(family: usize, plan: Plan, mut delays_us: Vec<u32>, frozen_us: u32) -> Self {
        let mut earliest_later = f64::INFINITY;
        for k in (0..delays_us.len()).rev() {
            if delays_us[k] == LOST {
                continue;
            }
            let at = plan.planned(k as u32) + f64::from(delays_us[k]) / 1e6;
            if at >= earliest_later {
                delays_us[k] = LOST;
            } else {
                earliest_later = at;
            }
        }
        Self { family, plan, delays_us, frozen_us }
    }

    /// The first beat after k that is sent at all: a sender that froze skips those it slept through.
    fn next_sent(&self, k: usize) -> usize {
        if self.delays_us[k] > self.frozen_us {
            let slept = f64::from(self.delays_us[k]) / 1e6;
            let awake = self.plan.planned(k as u32) + slept;
            return (k + 1..).find(|j| self.plan.planned(*j as u32) > awake).unwrap_or(k + 1);
        }
        k + 1
    }
}

/// Bins of the histogram of detection times: 200 a decade from 1 ms to 10,000 s.
const BINS: usize = 1_400;

/// What was measured.
#[derive(Clone, Debug)]
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
    fn gap(&mut self, sent: f64, next: f64, deadline: f64, draw: f64) {
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

    fn arrival(&mut self, at: f64, deadline: f64) {
        if at > deadline {
            self.mistakes += 1.0;
            self.mistaken_s += at - deadline;
        }
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

    /// The same as if it had been watched for one second: families of unlike size can be mixed then.
    pub fn scaled(&self) -> Self {
        let mut one = Self::default();
        if self.time_s > 0.0 {
            one.add(self, 1.0 / self.time_s);
        }
        one
    }

    /// Mean detection time, seconds.
    pub fn mean_s(&self) -> f64 {
        self.detection_s2 / self.time_s
    }

    /// The detection time that a share `q` of crashes does not exceed, seconds.
    pub fn quantile_s(&self, q: f64) -> f64 {
        let wanted = self.drawn.iter().sum::<f64>() * q;
        let mut sum = 0.0;
        for (bin, count) in self.drawn.iter().enumerate() {
            sum += count;
            if sum >= wanted {
                return 1e-3 * 10f64.powf((bin as f64 + 0.5) / 200.0);
            }
        }
        f64::NAN
    }

    /// Mistakes per host-day (λ_M).
    pub fn mistakes_per_day(&self) -> f64 {
        self.mistakes / (self.time_s / 86_400.0)
    }

    /// Mean duration of a mistake (T_M), seconds; zero if there was none.
    pub fn mistake_s(&self) -> f64 {
        if self.mistakes > 0.0 { self.mistaken_s / self.mistakes } else { 0.0 }
    }

    /// Share of the time in which the host was rightly trusted (P_A).
    pub fn accuracy(&self) -> f64 {
        1.0 - self.mistaken_s / self.time_s
    }
}

/// A place in a series, with a detector that follows it.
#[derive(Clone, Debug)]
pub struct Walk<D> {
    /// The detector.
    pub detector: D,
    next: u32,
    deadline: f64,
}

impl<D: Detector> Walk<D> {
    /// At the start of a series.
    pub fn new(detector: D) -> Self {
        Self { detector, next: 0, deadline: f64::INFINITY }
    }

    /// Walks on to beat `until` (at most to the end), counting from beat `from` on.
    pub fn on(&mut self, series: &Series, until: u32, from: u32, tally: &mut Tally) {
        let until = until.min(series.delays_us.len() as u32);
        let mut sent = series.plan.planned(self.next);
        for k in self.next..until {
            let next = series.plan.planned(k + 1);
            let delay = series.delays_us[k as usize];
            if delay != LOST {
                let at_s = sent + f64::from(delay) / 1e6;
                if k >= from {
                    tally.arrival(at_s, self.deadline);
                }
                let (sent_s, gap_s) = if delay > series.frozen_us {
                    let then = series.next_sent(k as usize);
                    (at_s, series.plan.planned(then as u32) - at_s)
                } else {
                    (sent, next - sent)
                };
                self.deadline = self.detector.observe(&Arrival { seq: k + 1, sent_s, gap_s, at_s });
            }
            if k >= from && self.deadline.is_finite() {
                // A crash while a beat is under way, or kept back by a frozen sender, is counted as if
                // that beat had been sent. A draw that differs from beat to beat and from the jitter: the golden ratio's steps.
                let draw = (f64::from(k) * 0.618_033_988_749_895).fract();
                tally.gap(sent, next, self.deadline, draw);
            }
            sent = next;
        }
        self.next = self.next.max(until);
    }
}
