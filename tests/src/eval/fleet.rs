//! The hosts of one mix.

use super::families::{Family, TraceFile, generate, host_series, trace_weight};
use super::measure::{NEVER_FROZEN, Series};
use super::schedule::{Plan, mix};

/// How long and how many.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Hosts, about; every family gets at least `FAMILY_LEN_MIN`, and every trace a host.
    pub hosts: usize,
    /// Beats of each; the first third is for learning and is not counted.
    pub beats: usize,
    /// Share of the interval by which gaps differ from it.
    pub jitter: f64,
    /// What everything random follows from.
    pub seed: u64,
}

/// Seconds between two beats.
pub const INTERVAL_S: f64 = 1.0;
/// Least hosts of a family.
const FAMILY_LEN_MIN: usize = 14;
/// A delay beyond this in the family of freezing hosts is the freeze.
const FREEZE_US: u32 = 500_000;

/// A family within a mix.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its share of the mix; zero: it is reported apart.
    pub weight: f64,
}

/// A fleet under one setting.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// `synthetic` or `traces`.
    pub mix: &'static str,
    /// Families by index.
    pub members: Vec<Member>,
    /// Hosts, all with as many beats.
    pub hosts: Vec<Series>,
}

impl Fleet {
    /// Hosts of the synthetic families.
    pub fn synthetic(size: &Size) -> Self {
        let mut fleet = Self { mix: "synthetic", members: Vec::new(), hosts: Vec::new() };
        for (index, family) in Family::ALL.into_iter().enumerate() {
            let weight = family.weight();
            fleet.members.push(Member { name: family.name().to_owned(), weight });
            let frozen_us = if family == Family::Stall { FREEZE_US } else { NEVER_FROZEN };
            for n in 0..share(size.hosts, weight) {
                let seed = mix(size.seed ^ mix((index * 1_000_000 + n) as u64));
                let delays = generate(family, seed, size.beats, INTERVAL_S);
                let plan = Plan::new(INTERVAL_S, size.jitter, mix(seed));
                fleet.hosts.push(Series::new(index, plan, delays, frozen_us));
            }
        }
        fleet
    }

    /// Hosts whose delays were measured. Weights of families that are not there are spread over those
    /// that are.
    pub fn traced(traces: &[TraceFile], size: &Size) -> Self {
        let mut fleet = Self { mix: "traces", members: Vec::new(), hosts: Vec::new() };
        let mut names: Vec<&str> = traces.iter().map(|t| t.family.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let there: f64 = names.iter().map(|n| trace_weight(n)).sum();
        for (index, name) in names.into_iter().enumerate() {
            let files: Vec<_> = traces.iter().filter(|t| t.family == name).collect();
            let weight = if there > 0.0 { trace_weight(name) / there } else { 0.0 };
            fleet.members.push(Member { name: name.to_owned(), weight });
            // Every file as often as any other.
            let rounds = share(size.hosts, weight).div_ceil(files.len());
            for n in 0..rounds * files.len() {
                let seed = mix(size.seed ^ mix((index * 1_000_000 + n) as u64) ^ 0x7261_6365);
                let delays = host_series(&files[n % files.len()].delays, seed, size.beats);
                let plan = Plan::new(INTERVAL_S, size.jitter, mix(seed));
                fleet.hosts.push(Series::new(index, plan, delays, NEVER_FROZEN));
            }
        }
        fleet
    }

    /// Beats of each host.
    pub fn beats(&self) -> u32 {
        self.hosts.first().map_or(0, |h| h.delays_us.len() as u32)
    }

    /// The first beat that counts.
    pub fn counted_from(&self) -> u32 {
        self.beats() / 3
    }
}

fn share(hosts: usize, weight: f64) -> usize {
    ((hosts as f64 * weight).round() as usize).max(FAMILY_LEN_MIN)
}
