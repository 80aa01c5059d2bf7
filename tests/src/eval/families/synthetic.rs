//! Series made from a seed. One generator per host; its parameters are drawn first, so that hosts of
//! a family differ, and the beats after them. Ranges are drawn log-uniformly unless said otherwise.
//!
//! - `lan`: lognormal about a median near 0.15 ms, shape 0.2 to 0.6; loss 1e-6 to 1e-4.
//! - `wan`: base 5 to 150 ms, lognormal queueing of 1 to 10 % of it on top; with 1 % probability a
//!   Pareto spike (exponent 1.6, from 20 to 100 ms up) of at most 20 s; loss 1e-4 to 3e-3.
//! - `ge`: Gilbert-Elliott. In the bad state every beat is lost, for 1 to 4 beats on average; mean
//!   loss 1 to 10 %; delays as in `lan`.
//! - `stall`: `lan`, and the host freezes for 3 to 8 s (uniform), 5 to 60 min after the last freeze: a
//!   period of the host's own ± 20 %. The agent sends one beat after a stall and skips grid points:
//!   the first beat planned in a freeze is delayed to its end, and the others planned in it, or so soon
//!   after it that the agent would skip them, are lost. So a delay of more than half a second is always
//!   the sender's own lateness, which its beat announces, and never the network's.
//! - `shift`: `wan`'s base and queueing, loss 1e-5 to 1e-3. About every 2 h the path changes: the level
//!   jumps by 5 to 300 ms, up or down, never below the base. About every 3 h queues fill for 5 min on
//!   average, adding 50 to 500 ms on average and losing 1 to 5 % of the beats.
//!
//! Freezes, levels and congestion are laid out in time, losses and spikes per beat: the interval
//! matters to the former only.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::LOST;
use crate::eval::schedule::mix;

/// Shortest and longest freeze of a `stall` host.
pub const FREEZE_S: (f64, f64) = (3.0, 8.0);
/// Least and greatest time from freeze to freeze.
pub const FREEZE_PERIOD_S: (f64, f64) = (300.0, 3_600.0);
/// Longest spike of a `wan` host.
pub const SPIKE_S_MAX: f64 = 20.0;

/// The part of an interval after a stall in which the agent sends no second beat: half its shortest
/// gap, `(1 − 0.2) / 2` with the default jitter.
const SKIP_SHARE: f64 = 0.4;

/// A kind of host and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// A quiet local network.
    Lan,
    /// A wide-area path with rare long spikes.
    Wan,
    /// Bursts of loss.
    Ge,
    /// A host that freezes.
    Stall,
    /// A path whose delay jumps and congests.
    Shift,
}

impl Family {
    /// All of them, in the order of their documentation.
    pub const ALL: [Self; 5] = [Self::Lan, Self::Wan, Self::Ge, Self::Stall, Self::Shift];

    /// The name by which results are reported.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
            Self::Ge => "ge",
            Self::Stall => "stall",
            Self::Shift => "shift",
        }
    }

    /// Share of the hosts in the synthetic mix.
    pub fn weight(self) -> f64 {
        match self {
            Self::Lan => 0.60,
            Self::Wan => 0.15,
            Self::Ge => 0.08,
            Self::Stall => 0.10,
            Self::Shift => 0.07,
        }
    }
}

/// The series of one host: `beats` elements for a host that beats every `interval_s`.
///
/// The same arguments give the same series, and a longer one begins with the shorter. Seeds and
/// families are independent of each other.
///
/// # Panics
///
/// If the interval is not positive.
pub fn generate(family: Family, seed: u64, beats: usize, interval_s: f64) -> Vec<u32> {
    assert!(interval_s > 0.0 && interval_s.is_finite(), "interval {interval_s}");
    let mut rng = StdRng::seed_from_u64(mix(seed) ^ (family as u64 + 1));
    let rng = &mut rng;
    let fill = |next: &mut dyn FnMut(f64) -> u32| -> Vec<u32> {
        (0..beats).map(|k| next(k as f64 * interval_s)).collect()
    };
    match family {
        Family::Lan => {
            let lan = Lan::draw(rng);
            fill(&mut |_| lan.beat(rng))
        }
        Family::Wan => {
            let wan = Wan::draw(rng);
            fill(&mut |_| wan.beat(rng))
        }
        Family::Ge => {
            let mut ge = Ge::draw(rng);
            fill(&mut |_| ge.beat(rng))
        }
        Family::Stall => {
            let mut stall = Stall::draw(rng, interval_s);
            fill(&mut |t| stall.beat(rng, t))
        }
        Family::Shift => {
            let mut shift = Shift::draw(rng);
            fill(&mut |t| shift.beat(rng, t))
        }
    }
}

fn series_value(delay_s: f64) -> u32 {
    // Saturates; `LOST` is 71 min away from any delay made here.
    (delay_s * 1e6 + 0.5) as u32
}

/// Uniform above 0, at most 1: its logarithm is finite.
fn unit(rng: &mut StdRng) -> f64 {
    1.0 - rng.random::<f64>()
}

fn chance(rng: &mut StdRng, p: f64) -> bool {
    rng.random::<f64>() < p
}

fn uniform(rng: &mut StdRng, (low, high): (f64, f64)) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

fn log_uniform(rng: &mut StdRng, (low, high): (f64, f64)) -> f64 {
    uniform(rng, (low.ln(), high.ln())).exp()
}

fn exponential(rng: &mut StdRng, mean: f64) -> f64 {
    -mean * unit(rng).ln()
}

fn lognormal(rng: &mut StdRng, median: f64, shape: f64) -> f64 {
    // Box and Muller; the second normal is not worth keeping.
    let radius = (-2.0 * unit(rng).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * rng.random::<f64>()).cos();
    median * (shape * normal).exp()
}

struct Lan {
    median_s: f64,
    shape: f64,
    loss: f64,
}

impl Lan {
    fn draw(rng: &mut StdRng) -> Self {
        Self {
            median_s: log_uniform(rng, (0.1e-3, 0.225e-3)),
            shape: uniform(rng, (0.2, 0.6)),
            loss: log_uniform(rng, (1e-6, 1e-4)),
        }
    }

    fn delay_s(&self, rng: &mut StdRng) -> f64 {
        lognormal(rng, self.median_s, self.shape)
    }

    fn beat(&self, rng: &mut StdRng) -> u32 {
        if chance(rng, self.loss) { LOST } else { series_value(self.delay_s(rng)) }
    }
}

/// Base and queueing that `wan` and `shift` share.
struct Path {
    base_s: f64,
    queue_s: f64,
}

impl Path {
    fn draw(rng: &mut StdRng) -> Self {
        let base_s = log_uniform(rng, (5e-3, 150e-3));
        Self { base_s, queue_s: base_s * log_uniform(rng, (0.01, 0.1)) }
    }

    fn delay_s(&self, rng: &mut StdRng) -> f64 {
        self.base_s + lognormal(rng, self.queue_s, 0.8)
    }
}

struct Wan {
    path: Path,
    spike_s_min: f64,
    loss: f64,
}

impl Wan {
    const SPIKES: f64 = 0.01;
    const EXPONENT: f64 = 1.6;

    fn draw(rng: &mut StdRng) -> Self {
        Self {
            path: Path::draw(rng),
            spike_s_min: log_uniform(rng, (20e-3, 100e-3)),
            loss: log_uniform(rng, (1e-4, 3e-3)),
        }
    }

    fn beat(&self, rng: &mut StdRng) -> u32 {
        if chance(rng, self.loss) {
            return LOST;
        }
        let mut delay_s = self.path.delay_s(rng);
        if chance(rng, Self::SPIKES) {
            let spike_s = self.spike_s_min * unit(rng).powf(-1.0 / Self::EXPONENT);
            delay_s += spike_s.min(SPIKE_S_MAX);
        }
        series_value(delay_s)
    }
}

struct Ge {
    lan: Lan,
    is_bad: bool,
    worsens: f64,
    mends: f64,
}

impl Ge {
    fn draw(rng: &mut StdRng) -> Self {
        let lan = Lan::draw(rng);
        let loss = log_uniform(rng, (0.01, 0.1));
        let mends = 1.0 / uniform(rng, (1.0, 4.0));
        // In the long run as many beats enter the bad state as leave it.
        Self { lan, is_bad: false, worsens: mends * loss / (1.0 - loss), mends }
    }

    fn beat(&mut self, rng: &mut StdRng) -> u32 {
        self.is_bad =
            if self.is_bad { !chance(rng, self.mends) } else { chance(rng, self.worsens) };
        if self.is_bad { LOST } else { series_value(self.lan.delay_s(rng)) }
    }
}

struct Stall {
    lan: Lan,
    interval_s: f64,
    period_s: f64,
    /// The present or next freeze.
    from_s: f64,
    until_s: f64,
    is_first_due: bool,
}

impl Stall {
    fn draw(rng: &mut StdRng, interval_s: f64) -> Self {
        let lan = Lan::draw(rng);
        let period_s = log_uniform(rng, FREEZE_PERIOD_S);
        let mut new =
            Self { lan, interval_s, period_s, from_s: 0.0, until_s: 0.0, is_first_due: true };
        new.plan(rng);
        new.from_s -= period_s * rng.random::<f64>();
        new.from_s = new.from_s.max(0.0);
        new.until_s = new.from_s + uniform(rng, FREEZE_S);
        new
    }

    fn plan(&mut self, rng: &mut StdRng) {
        let (least_s, most_s) = FREEZE_PERIOD_S;
        let wait_s = self.period_s * uniform(rng, (0.8, 1.2));
        self.from_s = self.until_s + wait_s.clamp(least_s, most_s);
        self.until_s = self.from_s + uniform(rng, FREEZE_S);
        self.is_first_due = true;
    }

    fn beat(&mut self, rng: &mut StdRng, t: f64) -> u32 {
        // The beat that a freeze delays is the only one until shortly after the freeze; a freeze that
        // fits between two beats is noticed by nobody.
        let skip_s = if self.is_first_due { 0.0 } else { SKIP_SHARE * self.interval_s };
        while t >= self.until_s + skip_s {
            self.plan(rng);
        }
        if t < self.from_s {
            self.lan.beat(rng)
        } else if self.is_first_due {
            self.is_first_due = false;
            match self.lan.beat(rng) {
                LOST => LOST,
                delay => series_value(self.until_s - t).saturating_add(delay),
            }
        } else {
            LOST
        }
    }
}

struct Shift {
    path: Path,
    loss: f64,
    queue_s: f64,
    queue_loss: f64,
    level_s: f64,
    jump_at_s: f64,
    congested: (f64, f64),
}

impl Shift {
    const JUMP_PERIOD_S: f64 = 7_200.0;
    const CONGESTION_PERIOD_S: f64 = 10_800.0;
    const CONGESTION_S: f64 = 300.0;

    fn draw(rng: &mut StdRng) -> Self {
        let mut new = Self {
            path: Path::draw(rng),
            loss: log_uniform(rng, (1e-5, 1e-3)),
            queue_s: log_uniform(rng, (50e-3, 500e-3)),
            queue_loss: log_uniform(rng, (0.01, 0.05)),
            level_s: 0.0,
            jump_at_s: exponential(rng, Self::JUMP_PERIOD_S),
            congested: (0.0, 0.0),
        };
        new.plan_congestion(rng);
        new
    }

    fn plan_congestion(&mut self, rng: &mut StdRng) {
        let from_s = self.congested.1 + exponential(rng, Self::CONGESTION_PERIOD_S);
        self.congested = (from_s, from_s + exponential(rng, Self::CONGESTION_S));
    }

    fn beat(&mut self, rng: &mut StdRng, t: f64) -> u32 {
        while t >= self.jump_at_s {
            let jump_s = log_uniform(rng, (5e-3, 300e-3));
            let falls = chance(rng, 0.5) && self.level_s > 0.0;
            self.level_s =
                if falls { (self.level_s - jump_s).max(0.0) } else { self.level_s + jump_s };
            self.jump_at_s += exponential(rng, Self::JUMP_PERIOD_S);
        }
        while t >= self.congested.1 {
            self.plan_congestion(rng);
        }
        let is_congested = t >= self.congested.0;
        if chance(rng, if is_congested { self.queue_loss } else { self.loss }) {
            return LOST;
        }
        let queue_s = if is_congested { exponential(rng, self.queue_s) } else { 0.0 };
        series_value(self.path.delay_s(rng) + self.level_s + queue_s)
    }
}

#[cfg(test)]
mod tests;
