//! How long one host may be overdue: a margin learned from how overdue its beats were.
//!
//! A beat says when it was sent (on the agent's own monotonic clock) and when the next will be. With
//! `o = arrival − sent` (clock offset plus delay; only its changes matter), S a slow average of o and
//! `B = max(o, S)`, the next beat is expected at `E = sent + gap + B`. Its residual `x = arrival − E` is
//! how *overdue* it was. Sender jitter, clock skew and the plain delay cancel out; lateness of the host,
//! queueing on the path and lost beats (x ≈ lost · gap) remain, and that is what a timeout is about.
//!
//! The host's learned state is a decayed histogram of x in 19 logarithmic counters of one byte. The
//! margin M minimises `M + C · P(x > M)`: seconds of detection time against false suspicions, where C
//! says how many seconds one false suspicion per beat is worth. The probability is the host's own
//! frequency drawn towards the fleet's ([`Prior`]; empirical Bayes), so that a new host starts with what
//! its siblings know:  `P(x > edge) = (tail + a) / (n + a/π)`.
//!
//! Source: the recommendation of the project's own detector study ("EB, one context"); B as in 2W-FD
//! (Tomsic et al., IPDPS 2015), the expectation as in NFD-E (Chen, Toueg, Aguilera, IEEE ToC 51(5),
//! 2002) with the sender's schedule taken from the beat.
//!
//! Cost: a beat that is not overdue by 10 ms costs a few integer operations; the margin is recomputed
//! every 64 beats, or at once after a beat that was overdue by more than half a gap. 44 bytes a host.

use std::sync::OnceLock;
use std::time::Duration;

use heartwatch_common::time::Instant;

/// Number of histogram edges.
pub const EDGES: usize = 19;
/// Edges of the histogram: the first five in seconds (scaled down for intervals under a second), the
/// others in intervals.
const EDGE: [f32; EDGES] = [
    0.01, 0.025, 0.06, 0.15, 0.35, 0.75, 1.12, 1.4, 2.22, 2.7, 3.4, 4.4, 5.6, 7.0, 9.0, 11.5, 15.0,
    20.0, 30.0,
];
/// Edges below this index are in seconds.
const EDGES_IN_SECONDS: usize = 5;
/// Weight of the prior, in overdue beats.
const PRIOR_WEIGHT: f32 = 0.5;
/// Weight of the built-in prior against the fleet's own beats.
const BUILT_IN_WEIGHT: f64 = 1_000.0;
/// Beats between two recomputations of the margin.
const RECOMPUTE_EVERY: u16 = 64;
/// Beats between two decays.
const DECAY_EVERY: u16 = 1_024;
/// Memory of the histogram in beats: 30 days of one a second.
const MEMORY_BEATS: f32 = 30.0 * 86_400.0;
/// An offset that falls by more than this has a new cause, and is taken as it is.
const OFFSET_FALL_MAX_NS: i64 = 1_000_000_000;
/// Overdue times beyond this are outages, not behaviour to be patient with: not learned.
pub const LEARN_MAX: Duration = Duration::from_secs(30);

/// Edge j in seconds for beats that come once per `interval_s`.
fn edge(j: usize, interval_s: f32) -> f32 {
    EDGE[j] * if j < EDGES_IN_SECONDS { interval_s.min(1.0) } else { interval_s }
}

/// Value of a one-byte logarithmic counter: `0.05 · (2^(c/10) − 1)`.
fn counter_value(c: u8) -> f32 {
    static TABLE: OnceLock<[f32; 256]> = OnceLock::new();
    let table =
        TABLE.get_or_init(|| std::array::from_fn(|c| 0.05 * ((c as f32 / 10.0).exp2() - 1.0)));
    table[usize::from(c)]
}

/// The counter for `target`; between two steps one is taken at random so that the expectation is
/// exact. `dice` is uniformly random.
fn counter_for(target: f32, dice: u16) -> u8 {
    let (mut low, mut high) = (0u8, u8::MAX);
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if counter_value(mid) <= target {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    if low == u8::MAX {
        return low;
    }
    let (floor, step) = (counter_value(low), counter_value(low + 1) - counter_value(low));
    let share = (target - floor) / step;
    low + u8::from(f32::from(dice) < share * 65_536.0)
}

/// How likely a beat is to be overdue beyond each edge, before a host has shown its own ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    beyond: [f32; EDGES],
}

impl Prior {
    /// The built-in start value, for a fleet of which nothing is known.
    pub fn built_in() -> Self {
        Self {
            beyond: std::array::from_fn(|j| {
                let e = EDGE[j];
                if e < 1.12 {
                    (3e-3 * (0.1 / e).powf(0.3)).min(0.5)
                } else {
                    1e-4 * (1.12 / e).powi(2)
                }
            }),
        }
    }
}

/// Learns the fleet's prior from all beats of a shard.
#[derive(Clone, Debug)]
pub struct PriorLearner {
    n: f64,
    bins: [f64; EDGES],
}

impl Default for PriorLearner {
    fn default() -> Self {
        Self { n: 0.0, bins: [0.0; EDGES] }
    }
}

impl PriorLearner {
    /// Beats after which the past weighs half.
    const HALVE_AT: f64 = 1e8;

    fn learn(&mut self, bin: Option<usize>) {
        self.n += 1.0;
        if let Some(j) = bin {
            self.bins[j] += 1.0;
        }
        if self.n > Self::HALVE_AT {
            self.n /= 2.0;
            self.bins.iter_mut().for_each(|b| *b /= 2.0);
        }
    }

    /// The prior so far: the fleet's frequencies, drawn towards the built-in ones; beyond the last edge
    /// that three beats have passed, a tail that falls with the third power.
    pub fn prior(&self) -> Prior {
        let built_in = Prior::built_in();
        let mut prior = built_in;
        let mut tail: f64 = self.bins.iter().sum();
        for j in 0..EDGES {
            let blended = (tail + BUILT_IN_WEIGHT * f64::from(built_in.beyond[j]))
                / (self.n + BUILT_IN_WEIGHT);
            prior.beyond[j] = blended as f32;
            if tail < 3.0 && j > 0 {
                let fall = 0.5 * (EDGE[j - 1] / EDGE[j]).powi(3);
                prior.beyond[j] = prior.beyond[j].min(prior.beyond[j - 1] * fall.max(0.05));
            }
            prior.beyond[j] = prior.beyond[j].clamp(1e-12, 0.5);
            tail -= self.bins[j];
        }
        prior
    }
}

/// What decides margins, beside what was learned.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// C: seconds of later detection that one false suspicion per beat is worth.
    pub cost_s: f32,
    /// Least margin.
    pub min: Duration,
    /// Greatest margin.
    pub max: Duration,
}

/// What set a margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarginSource {
    /// The host's own beats.
    Learned,
    /// Mostly its siblings': it has beaten too little yet.
    Prior,
    /// The configured minimum.
    Floor,
    /// The configured maximum.
    Ceiling,
}

impl MarginSource {
    /// As it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Prior => "prior",
            Self::Floor => "floor",
            Self::Ceiling => "ceiling",
        }
    }
}

/// What a host's beats have taught so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// S: slow average of `arrival − sent`, nanoseconds; meaningless before the first beat.
    slow_ns: i64,
    /// Beats learned from, decayed.
    n: f32,
    /// Slow average of announced gaps, microseconds.
    interval_us: u32,
    /// Beats since the last decay.
    phase: u16,
    /// Histogram of overdue times: bin j counts those between edge j and edge j + 1.
    bins: [u8; EDGES],
    /// Index of the edge that is the margin.
    margin: u8,
    based: bool,
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            slow_ns: 0,
            n: 0.0,
            interval_us: 0,
            phase: 0,
            bins: [0; EDGES],
            margin: (EDGES - 1) as u8,
            based: false,
        }
    }
}

/// `arrival − sent` in nanoseconds: a clock offset plus a delay, of which only changes matter.
pub fn offset_ns(arrival: Instant, sent: Instant) -> i64 {
    arrival.0.wrapping_sub(sent.0) as i64
}

impl Learned {
    /// The offset that beats of this boot usually have; `None` before the first.
    pub fn baseline_ns(&self) -> Option<i64> {
        self.based.then_some(self.slow_ns)
    }

    /// Forgets the offset, keeps the habits: the agent's clock starts anew (new boot, stepped clock).
    pub fn rebase(&mut self) {
        self.based = false;
    }

    /// Slow average of announced gaps; zero before the first beat.
    pub fn interval(&self) -> Duration {
        Duration::from_micros(u64::from(self.interval_us))
    }

    fn interval_s(&self) -> f32 {
        self.interval_us as f32 / 1e6
    }

    /// Takes the offset of a proof of life and says when the next beat is expected to arrive.
    pub fn expect(&mut self, arrival: Instant, sent: Instant, gap: Duration) -> Instant {
        let offset = offset_ns(arrival, sent);
        // If our own clock stood still for a while (a suspended machine), following slowly would make
        // every deadline of the fleet late for minutes.
        if self.based && self.slow_ns.saturating_sub(offset) < OFFSET_FALL_MAX_NS {
            self.slow_ns = self.slow_ns.wrapping_add(offset.wrapping_sub(self.slow_ns) >> 6);
        } else {
            self.slow_ns = offset;
            self.based = true;
        }
        let gap_us = u32::try_from(gap.as_micros()).unwrap_or(u32::MAX);
        self.interval_us = match self.interval_us {
            0 => gap_us,
            old => (i64::from(old) + ((i64::from(gap_us) - i64::from(old)) >> 6)) as u32,
        };
        // sent + gap + max(offset, slow) = arrival + gap + max(0, slow − offset)
        let usual = self.slow_ns.saturating_sub(offset).max(0);
        arrival + gap + Duration::from_nanos(usual.unsigned_abs())
    }

    /// Learns that a beat was overdue by `overdue_ns` (negative: early). `dice` is uniformly random.
    /// Returns whether the margin was recomputed.
    pub fn learn(
        &mut self,
        overdue_ns: i64,
        patience: &Patience,
        prior: &Prior,
        fleet: &mut PriorLearner,
        dice: u32,
    ) -> bool {
        self.n += 1.0;
        self.phase += 1;
        let overdue_s = overdue_ns as f32 / 1e9;
        let interval_s = self.interval_s();
        let bin = (overdue_s >= edge(0, interval_s)).then(|| {
            (1..EDGES).take_while(|j| overdue_s >= edge(*j, interval_s)).last().unwrap_or(0)
        });
        fleet.learn(bin);
        if let Some(j) = bin {
            self.bins[j] = counter_for(counter_value(self.bins[j]) + 1.0, dice as u16);
        }
        if self.phase >= DECAY_EVERY {
            self.phase = 0;
            self.decay(dice);
        }
        let due = self.phase.is_multiple_of(RECOMPUTE_EVERY)
            || overdue_s > 0.5 * interval_s
            || self.n < f32::from(RECOMPUTE_EVERY);
        if due {
            self.choose(patience, prior);
        }
        due
    }

    fn decay(&mut self, dice: u32) {
        let keep = 1.0 - f32::from(DECAY_EVERY) / MEMORY_BEATS;
        self.n *= keep;
        for (j, bin) in self.bins.iter_mut().enumerate() {
            // One draw serves all bins: multiply it apart so that they do not move together.
            let mixed = dice.wrapping_mul(0x9E37_79B9).rotate_left(j as u32) >> 16;
            *bin = counter_for(counter_value(*bin) * keep, mixed as u16);
        }
    }

    /// Chance that a beat is overdue beyond edge j, given `tail` (decayed) beats that were.
    fn chance(&self, tail: f32, pi: f32) -> f32 {
        (tail + PRIOR_WEIGHT) / (self.n + PRIOR_WEIGHT / pi)
    }

    /// Chooses the edge that costs least as the margin.
    pub fn choose(&mut self, patience: &Patience, prior: &Prior) {
        let interval_s = self.interval_s();
        let mut tail = 0.0;
        let mut best = (f32::INFINITY, EDGES - 1);
        for j in (0..EDGES).rev() {
            tail += counter_value(self.bins[j]);
            let cost = edge(j, interval_s) + patience.cost_s * self.chance(tail, prior.beyond[j]);
            if cost <= best.0 {
                best = (cost, j);
            }
        }
        self.margin = best.1 as u8;
    }

    /// How much later than expected a beat may come, and what says so.
    pub fn margin(&self, patience: &Patience) -> (Duration, MarginSource) {
        let raw = Duration::from_secs_f32(edge(usize::from(self.margin), self.interval_s()));
        if raw < patience.min {
            (patience.min, MarginSource::Floor)
        } else if raw > patience.max {
            (patience.max, MarginSource::Ceiling)
        } else if self.n < 1_000.0 {
            (raw, MarginSource::Prior)
        } else {
            (raw, MarginSource::Learned)
        }
    }

    /// Beats learned from, decayed.
    pub fn beats(&self) -> f32 {
        self.n
    }

    /// The histogram: lower edge in seconds and decayed count of each bin.
    pub fn histogram(&self) -> impl Iterator<Item = (f32, f32)> + '_ {
        let interval_s = self.interval_s();
        self.bins.iter().enumerate().map(move |(j, c)| (edge(j, interval_s), counter_value(*c)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    const PATIENCE: Patience = Patience {
        cost_s: 100_000.0,
        min: Duration::from_millis(50),
        max: Duration::from_secs(30),
    };
    const SECOND: Duration = Duration::from_secs(1);

    /// Beats once a second with the given overdue times; returns the margin after each.
    fn run(learned: &mut Learned, overdue_s: &[f64], rng: &mut StdRng) -> Duration {
        let mut fleet = PriorLearner::default();
        let prior = Prior::built_in();
        for x in overdue_s {
            learned.expect(Instant(0), Instant(0), SECOND);
            learned.learn((x * 1e9) as i64, &PATIENCE, &prior, &mut fleet, rng.random());
        }
        learned.margin(&PATIENCE).0
    }

    #[test]
    fn a_quiet_host_earns_a_short_margin_and_a_stalling_one_a_long_one() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut quiet = Learned::default();
        let cold = run(&mut quiet, &[0.0], &mut rng);
        let warm = run(&mut quiet, &vec![0.000_5; 20_000], &mut rng);
        assert!(cold > SECOND && cold < 4 * SECOND, "{cold:?}");
        assert!(warm < Duration::from_millis(800), "{warm:?}");

        let mut stalling = Learned::default();
        let mut xs = vec![0.000_5; 20_000];
        xs.iter_mut().step_by(500).for_each(|x| *x = 6.0);
        let margin = run(&mut stalling, &xs, &mut rng);
        assert!(margin >= Duration::from_secs(7), "{margin:?}");
    }

    #[test]
    fn the_margin_is_the_edge_that_costs_least_by_hand() {
        // n = 10 000 beats, of which 100 were overdue by about 0.5 s: beyond edge .35 lies 1 %, beyond
        // .75 nothing but the prior. C = 1e5: staying below .35 would cost 1 000 s, so .75 or more.
        let mut learned = Learned { n: 10_000.0, ..Learned::default() };
        learned.expect(Instant(0), Instant(0), SECOND);
        learned.bins[4] = counter_for(100.0, 0);
        learned.choose(&PATIENCE, &Prior::built_in());
        let by_hand = (0..EDGES)
            .map(|j| {
                let tail: f32 = (j..EDGES).map(|k| counter_value(learned.bins[k])).sum();
                let pi = Prior::built_in().beyond[j];
                EDGE[j] + 1e5 * (tail + 0.5) / (10_000.0 + 0.5 / pi)
            })
            .collect::<Vec<_>>();
        let best = (0..EDGES).min_by(|a, b| by_hand[*a].total_cmp(&by_hand[*b])).unwrap();
        assert_eq!(usize::from(learned.margin), best, "{by_hand:?}");
        assert!(EDGE[best] >= 0.75);
    }

    #[test]
    fn logarithmic_counters_are_right_on_average() {
        let mut rng = StdRng::seed_from_u64(3);
        let runs = 400;
        let mut sum = 0.0;
        for _ in 0..runs {
            let mut c = 0;
            for _ in 0..1_000 {
                c = counter_for(counter_value(c) + 1.0, rng.random());
            }
            sum += f64::from(counter_value(c));
        }
        let mean = sum / f64::from(runs);
        assert!((950.0..1_050.0).contains(&mean), "{mean}");
    }

    #[test]
    fn decay_forgets_slowly() {
        let mut learned = Learned { n: 1e6, ..Learned::default() };
        learned.bins[9] = counter_for(1_000.0, 0);
        let mut rng = StdRng::seed_from_u64(5);
        // One memory's worth of decays leaves 1/e.
        for _ in 0..(MEMORY_BEATS / f32::from(DECAY_EVERY)) as u32 {
            learned.decay(rng.random());
        }
        let left = counter_value(learned.bins[9]) / 1_000.0;
        assert!((0.2..0.6).contains(&left), "{left}");
        assert!((learned.n / 1e6 - 0.368).abs() < 0.01);
    }

    #[test]
    fn the_expectation_ignores_clock_offset_and_announced_gaps() {
        let mut learned = Learned::default();
        let skewed = |s: u64| Instant::from_millis(s + 5_000_000);
        let gap = Duration::from_millis(870);
        let expected = learned.expect(Instant::from_millis(1_000), skewed(990), gap);
        assert_eq!(expected, Instant::from_millis(1_870));
        // A beat that took 40 ms longer than usual moves the expectation by its own delay…
        let late = learned.expect(Instant::from_millis(1_910), skewed(1_860), gap);
        assert_eq!(late, Instant::from_millis(2_780));
        // …and one that came as usual is not expected sooner than the slow average says.
        let usual = learned.expect(Instant::from_millis(2_740), skewed(2_730), gap);
        assert!(usual >= Instant::from_millis(3_610) && usual < Instant::from_millis(3_612));
    }

    #[test]
    fn edges_rise_for_every_interval() {
        for interval in [0.1, 0.25, 1.0, 10.0, 3_600.0] {
            for j in 1..EDGES {
                assert!(edge(j, interval) > edge(j - 1, interval), "{interval} {j}");
            }
        }
    }

    #[test]
    fn the_fleet_prior_follows_what_the_fleet_does() {
        let mut fleet = PriorLearner::default();
        for i in 0..1_000_000u32 {
            fleet.learn((i % 10_000 == 0).then_some(9));
        }
        let prior = fleet.prior();
        assert!((0.5e-4..2e-4).contains(&prior.beyond[9]), "{prior:?}");
        assert!(prior.beyond[10] < 1e-5, "{prior:?}");
        assert!(prior.beyond.windows(2).all(|w| w[1] <= w[0]), "{prior:?}");
    }
}
