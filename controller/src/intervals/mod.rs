//! How often hosts beat, so that the whole fleet keeps to a budget of beats per second.
//!
//! Hosts are in *classes*, by their labels. A class has a weight and bounds of its interval. With λ beats
//! a second for a weight of one, a host of class c beats λ·w_c times a second, within its bounds; λ is the
//! largest with which the fleet keeps to the budget ("water filling": Bertsekas and Gallager, *Data
//! Networks*, 1992, section 6.5.2, weighted max-min fairness). If even the longest intervals are too many
//! beats, they hold, and the status says so.
//!
//! [`Assigner`] moves towards that solution by at most a factor a minute, and has hysteresis: it aims at
//! [`AIM`] of the budget and looks for another aim only when the one it has would cost more than the
//! budget, or less than [`IDLE`] of it. So a few joins and leaves change nothing.
//!
//! Whoever may beat at any moment counts: alive, suspect and down hosts. So those that come back together
//! after a power cut find intervals that were meant for all of them.
//!
//! Acks carry the result ([`Assigned`]: one relaxed load of an array by the host's class), and agents take
//! it within their own bounds. The detector needs no notice: each beat announces the gap to the next.
//!
//! Hosts that came back from a suspicion are asked to beat faster for a while: [`watched`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use heartwatch_common::time::Instant;
use serde::{Deserialize, Serialize};

use watched::Watch;

#[cfg(test)]
mod tests;
pub mod watched;

/// Most classes, that of hosts that no rule is for among them: it is number 0.
pub const CLASSES_MAX: usize = 16;
/// Share of the budget that is aimed at.
pub const AIM: f64 = 0.9;
/// Another aim is looked for if the present one would cost less than this share of the budget.
pub const IDLE: f64 = 0.8;
/// Agents hear of a new interval within about this time, or at their next beat if that is later.
const HEARD_WITHIN: Duration = Duration::from_secs(60);
/// A pause of ours is not made up for by one large step.
const STEP_MAX: Duration = Duration::from_secs(10);

/// What holds for the hosts of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// For people; `default` for number 0.
    pub name: String,
    /// Labels that a host must have, all of them; the first class that matches holds.
    pub labels: BTreeMap<String, String>,
    /// How many times as often as one of weight 1 a host beats; positive.
    pub weight: f64,
    /// Shortest interval.
    pub min: Duration,
    /// Longest interval; not shorter than `min`.
    pub max: Duration,
}

/// The operator's rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Beats per second of the whole fleet.
    pub budget: f64,
    /// Most that an interval grows or shrinks by in a minute, as a factor above 1.
    pub change_max: f64,
    /// 1 to [`CLASSES_MAX`], the default first.
    pub classes: Vec<Class>,
}

/// The longest of all rates λ that `budget` allows `counts` hosts, as an interval per class.
///
/// Sum of `counts / interval` ≤ `budget`, unless even the longest intervals exceed it: then they are the
/// answer. Intervals are whole milliseconds, rounded up. O(n²) in the number of classes.
pub fn solve(classes: &[Class], counts: &[u64], budget: f64) -> Vec<Duration> {
    let n = |i: usize| counts.get(i).copied().unwrap_or(0) as f64;
    let bounds = |c: &Class| (1.0 / c.max.as_secs_f64(), 1.0 / c.min.as_secs_f64());
    let rate = |c: &Class, level: f64| {
        let (low, high) = bounds(c);
        (level * c.weight).clamp(low, high)
    };
    let all =
        |level: f64| classes.iter().enumerate().map(|(i, c)| n(i) * rate(c, level)).sum::<f64>();
    // The sum is piecewise linear in λ and bends where a class reaches a bound.
    let mut bends: Vec<f64> = classes
        .iter()
        .flat_map(|c| {
            let (low, high) = bounds(c);
            [low / c.weight, high / c.weight]
        })
        .collect();
    bends.sort_by(f64::total_cmp);
    let mut level = 0.0;
    for bend in bends {
        if all(bend) <= budget {
            level = bend;
            continue;
        }
        if level > 0.0 {
            // Between the two bends the sum is a straight line.
            let (from, to) = (all(level), all(bend));
            level += (bend - level) * (budget - from) / (to - from);
        }
        break;
    }
    let interval = |c: &Class| {
        // Less a picosecond's worth of rounding, so that 1 s stays 1 s.
        let ms = (1e3 / rate(c, level) - 1e-9).ceil().max(1.0);
        Duration::from_millis(ms as u64).clamp(c.min, c.max)
    };
    classes.iter().map(interval).collect()
}

/// Beats per second of hosts that keep these intervals.
pub fn rate(counts: &[u64], intervals: &[Duration]) -> f64 {
    counts.iter().zip(intervals).map(|(n, i)| *n as f64 / i.as_secs_f64()).sum()
}

/// Moves each class's interval gradually to where the budget wants it.
#[derive(Clone, Debug)]
pub struct Assigner {
    rules: Rules,
    counts: Vec<u64>,
    aim: Vec<Duration>,
    /// Seconds, unrounded: small steps must add up.
    present: Vec<f64>,
    stepped: Option<Instant>,
}

impl Assigner {
    /// Nobody is known yet: the shortest intervals.
    pub fn new(rules: Rules) -> Self {
        let aim: Vec<Duration> = rules.classes.iter().map(|c| c.min).collect();
        Self {
            counts: vec![0; rules.classes.len()],
            present: aim.iter().map(Duration::as_secs_f64).collect(),
            aim,
            stepped: None,
            rules,
        }
    }

    /// Takes how many hosts each class has. The first time that there are any, what they need is assigned
    /// at once: nothing was assigned before that could change too fast.
    pub fn step(&mut self, counts: &[u64], now: Instant) {
        self.counts = self.rules.classes.iter().zip(counts).map(|(_, n)| *n).collect();
        self.counts.resize(self.rules.classes.len(), 0);
        if self.counts.iter().all(|n| *n == 0) {
            return;
        }
        let budget = self.rules.budget;
        let cost = rate(&self.counts, &self.aim);
        if self.stepped.is_none() || cost > budget || cost < budget * IDLE {
            self.aim = solve(&self.rules.classes, &self.counts, budget * AIM);
        }
        let Some(last) = self.stepped.replace(now) else {
            self.present = self.aim.iter().map(Duration::as_secs_f64).collect();
            return;
        };
        let minutes = now.since(last).min(STEP_MAX).as_secs_f64() / 60.0;
        let most = self.rules.change_max.powf(minutes);
        for (present, aim) in self.present.iter_mut().zip(&self.aim) {
            let aim = aim.as_secs_f64();
            *present = aim.clamp(*present / most, *present * most);
        }
    }

    /// The interval of each class now, in microseconds' precision.
    pub fn intervals(&self) -> Vec<Duration> {
        self.present.iter().map(|s| Duration::from_micros((s * 1e6).round() as u64)).collect()
    }

    /// For people.
    pub fn status(&self) -> IntervalsStatus {
        let intervals = self.intervals();
        let class = |(i, c): (usize, &Class)| ClassStatus {
            class: c.name.clone(),
            hosts: self.counts[i],
            interval_ms: intervals[i].as_secs_f64() * 1e3,
            aim_ms: self.aim[i].as_secs_f64() * 1e3,
        };
        let aimed = rate(&self.counts, &self.aim);
        IntervalsStatus {
            budget_per_s: self.rules.budget,
            planned_per_s: rate(&self.counts, &intervals),
            aimed_per_s: aimed,
            exceeded: aimed > self.rules.budget,
            classes: self.rules.classes.iter().enumerate().map(class).collect(),
        }
    }
}

/// Intervals as they are assigned, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IntervalsStatus {
    /// Beats per second that the fleet may send.
    pub budget_per_s: f64,
    /// What the present intervals come to when every known host beats.
    pub planned_per_s: f64,
    /// What those come to that the present ones move to.
    pub aimed_per_s: f64,
    /// Even the longest intervals that the rules allow are more beats than the budget.
    pub exceeded: bool,
    /// Each class, the default first.
    pub classes: Vec<ClassStatus>,
}

/// One class's interval, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassStatus {
    /// Its name.
    pub class: String,
    /// Hosts that are alive, suspect or down.
    pub hosts: u64,
    /// Assigned now, milliseconds.
    pub interval_ms: f64,
    /// Where that moves to, milliseconds.
    pub aim_ms: f64,
}

/// What acks assign, by class: written by one task, read by every shard at every ack.
#[derive(Debug)]
pub struct Assigned {
    /// Interval in microseconds, and below it 16 bits of cadence: read as one, so they fit together.
    packed: [AtomicU64; CLASSES_MAX],
    /// Cadence that is configured.
    ack_every: u16,
    watch: Watch,
}

impl Assigned {
    /// The same for all; an interval of zero leaves agents their own. `ack_every` is the most beats
    /// between two acks.
    pub fn fixed(interval: Duration, ack_every: u16) -> Self {
        let packed = Default::default();
        let assigned = Self { packed, ack_every, watch: Watch::NONE };
        (0..CLASSES_MAX).for_each(|class| assigned.put(class, interval, ack_every));
        assigned
    }

    /// The same, and hosts that came back from a suspicion are asked to beat faster.
    pub fn watching(self, watch: Watch) -> Self {
        Self { watch, ..self }
    }

    /// How much faster, and for how long.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    fn put(&self, class: usize, interval: Duration, cadence: u16) {
        let us = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).min(u64::MAX >> 16);
        self.packed[class].store(us << 16 | u64::from(cadence), Ordering::Relaxed);
    }

    /// Assigns another interval. Hosts that beat rarely are asked to want acks more often, so that they
    /// hear of the next change within a minute or so.
    pub fn set(&self, class: usize, interval: Duration) {
        if class < CLASSES_MAX {
            let beats = HEARD_WITHIN.as_micros() / interval.as_micros().max(1);
            let cadence = u16::try_from(beats.max(1)).unwrap_or(u16::MAX).min(self.ack_every);
            self.put(class, interval, cadence);
        }
    }

    /// The longest interval of any class; zero: none is assigned.
    pub fn longest(&self) -> Duration {
        (0..CLASSES_MAX as u8).map(|class| self.get(class).0).max().unwrap_or_default()
    }

    /// The interval and the beats between two acks of a class.
    pub fn get(&self, class: u8) -> (Duration, u16) {
        let packed = self.packed[usize::from(class) % CLASSES_MAX].load(Ordering::Relaxed);
        (Duration::from_micros(packed >> 16), packed as u16)
    }
}
