//! What a detector costs: detection time against mistakes, over one host's beats.
//!
//! The figures are those of Chen, Toueg and Aguilera ("On the Quality of Service of Failure Detectors",
//! IEEE ToC 51(5), 2002): detection time T_D from a crash to the suspicion that stays, mistake rate λ_M,
//! mean mistake duration T_M, query accuracy P_A = 1 − λ_M · E(T_M).
//!
//! A crash may come at any moment, each as likely as any other. If it comes between the sending of beats
//! k and k + 1, everything up to beat k still arrives, and the host is suspected at the deadline that
//! stands once it has. So the *mean* T_D is an integral over the whole recording, not a sample; for the
//! quantiles one moment is drawn in every eighth gap.

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

/// A moment is drawn in one of so many gaps.
const DRAW_EVERY: u32 = 8;
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
    fn gap(&mut self, sent: f64, next: f64, deadline: f64, draw: Option<f64>) {
        let span = next - sent;
        let (at_start, at_end) = (deadline - sent, deadline - next);
        self.time_s += span;
        // The integral of max(0, deadline − t).
        self.detection_s2 += if at_end >= 0.0 {
            span * (at_start + at_end) / 2.0
        } else {
            at_start.max(0.0).powi(2) / 2.0
        };
        if let Some(draw) = draw {
            let drawn = (at_start - draw * span).max(1e-3);
            let bin = (drawn / 1e-3).log10() * 200.0;
            self.drawn[(bin as usize).min(BINS - 1)] += 1.0;
        }
    }

    /// Counts an arrival at `at`, of a host that was suspected from `suspected` on, if that has come.
    /// `goes_on`: it was suspected already when the beat before came, so this is the same mistake.
    fn arrival(&mut self, at: f64, suspected: f64, goes_on: bool) {
        if at > suspected {
            self.mistakes += f64::from(u8::from(!goes_on));
            self.mistaken_s += at - suspected;
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
    heard: f64,
}

impl<D: Detector> Walk<D> {
    /// At the start of a series.
    pub fn new(detector: D) -> Self {
        Self { detector, next: 0, deadline: f64::INFINITY, heard: f64::NEG_INFINITY }
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
                    let suspected = self.deadline.max(self.heard);
                    tally.arrival(at_s, suspected, self.deadline <= self.heard);
                }
                self.heard = at_s;
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
                // that beat had been sent. Draws: steps of the golden ratio, which no jitter follows.
                let draw = (k % DRAW_EVERY == 0)
                    .then(|| (f64::from(k / DRAW_EVERY) * 0.618_033_988_749_895).fract());
                tally.gap(sent, next, self.deadline, draw);
            }
            sent = next;
        }
        self.next = self.next.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rivals::Fixed;
    use super::*;

    /// Beats once a second without jitter or delay, from one to `n`, some lost.
    fn series(n: usize, lost: &[usize]) -> Series {
        let mut delays = vec![0; n];
        lost.iter().for_each(|k| delays[*k] = LOST);
        Series::new(0, Plan::new(1.0, 0.0, 1), delays, NEVER_FROZEN)
    }

    fn tally(series: &Series, timeout_s: f64) -> Tally {
        let mut tally = Tally::default();
        Walk::new(Fixed::new(timeout_s)).on(series, u32::MAX, 0, &mut tally);
        tally
    }

    #[test]
    fn detection_time_by_hand() {
        // The deadline is 1.5 s after each beat, and a crash comes 0 to 1 s after it: 1.5 to 0.5, mean 1.
        let all = tally(&series(1_000, &[]), 1.5);
        assert!((all.mean_s() - 1.0).abs() < 1e-9, "{}", all.mean_s());
        assert!(
            (all.quantile_s(0.5) - 1.0).abs() < 0.02 && (all.quantile_s(0.99) - 1.49).abs() < 0.02
        );
        assert_eq!((all.mistakes, all.accuracy()), (0.0, 1.0));
    }

    #[test]
    fn a_mistake_by_hand() {
        // Beat 5 is lost: suspected at 5.5 s, and trusted again at 6 s.
        let one = tally(&series(10, &[5]), 1.5);
        assert_eq!((one.mistakes, one.mistaken_s), (1.0, 0.5));
        assert!((one.mistake_s() - 0.5).abs() < 1e-9 && (one.accuracy() - 0.95).abs() < 1e-9);
        assert!((one.mistakes_per_day() - 8_640.0).abs() < 1e-6);
        // In the gap after the lost beat: 0.5 to 0 s in its first half, and 0 then; nine others mean 1.
        assert!((one.mean_s() - (9.0 + 0.125) / 10.0).abs() < 1e-9, "{}", one.mean_s());
    }

    #[test]
    fn a_timeout_shorter_than_the_gap_is_one_mistake_a_beat_and_one_at_zero_is_one_for_ever() {
        let short = tally(&series(100, &[]), 0.25);
        assert_eq!(short.mistakes, 99.0);
        assert!((short.accuracy() - (1.0 - 99.0 * 0.75 / 100.0)).abs() < 1e-9);
        // A deadline that has passed when the beat comes: suspected without end.
        assert_eq!(tally(&series(100, &[]), -0.5).mistakes, 0.0);
    }

    #[test]
    fn an_overtaken_beat_counts_as_lost() {
        let delays = vec![0, 2_500_000, 0, 0];
        let series = Series::new(0, Plan::new(1.0, 0.0, 1), delays, NEVER_FROZEN);
        assert_eq!(series.delays_us, [0, LOST, 0, 0]);
    }

    #[test]
    fn a_frozen_sender_says_when_it_really_sent() {
        struct Heard(Vec<Arrival>);
        impl Detector for Heard {
            fn observe(&mut self, a: &Arrival) -> f64 {
                self.0.push(*a);
                a.at_s + 10.0
            }
            fn state_bytes(&self) -> usize {
                0
            }
        }
        // It froze from 1 s to 4.25 s: beat 1 is late, 2 to 4 are skipped, 5 is as planned.
        let delays = vec![0, 3_250_000, LOST, LOST, LOST, 0];
        let series = Series::new(0, Plan::new(1.0, 0.0, 1), delays, 500_000);
        let mut walk = Walk::new(Heard(Vec::new()));
        walk.on(&series, u32::MAX, 0, &mut Tally::default());
        let late = walk.detector.0[1];
        assert!((late.sent_s - 4.25).abs() < 1e-9 && (late.at_s - 4.25).abs() < 1e-9);
        assert!((late.gap_s - 0.75).abs() < 1e-9, "{late:?}");
    }
}
