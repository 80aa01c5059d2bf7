//! `heartwatchctl plan`: what a fleet of a given size, on ways of a given quality, costs and gets.
//!
//! Pure arithmetic; every figure has its formula and source in [`Figure`], which `--explain` prints. The
//! formulas assume ways that are alike and lose alike in both directions, hosts that are otherwise prompt,
//! and a controller that loses nothing itself. What the simulation says of the same ways stands beside it
//! in `controller/README.md`; it agrees where losses are independent, and is lower for bursts, of which the
//! formulas know no longest length unless they are told.

use std::time::Duration;

use serde::Serialize;

pub mod cost;
pub mod loss;
#[cfg(test)]
mod tests;

use crate::shard::core::{ACK_RATE, CADENCE_MAX};
use cost::{
    BASE_BYTES, BEAT_NS, BUSY_MAX, DATAGRAM_BUFFER_BYTES, DATAGRAM_BYTES, HOST_BYTES,
    IPV6_MORE_BYTES, OVERHEAD_BYTES,
};
use loss::Loss;

/// Days of a year, as astronomers count.
const YEAR_DAYS: f64 = 365.25;
const DAY_S: f64 = 86_400.0;
/// For how long the detector remembers the longest silence that a host came back from (ADR 8).
const MEMORY_DAYS: f64 = 21.0;
/// Announced gaps are not longer than this.
const INTERVAL_MAX_S: f64 = 1_800.0;
/// No interval is shorter.
const INTERVAL_MIN_S: f64 = 0.1;

/// What is given: the fleet, its ways, and the settings.
#[derive(Clone, Debug)]
pub struct Given {
    /// Hosts.
    pub hosts: f64,
    /// Time between two beats of a host.
    pub interval: Duration,
    /// What ways lose.
    pub loss: Loss,
    /// How much later than usual all but one in ten thousand datagrams come.
    pub delay_spread: Duration,
    /// Round trip between controller and hosts.
    pub round_trip: Duration,
    /// Mean time between two failures of one host.
    pub mtbf: Duration,
    /// From `down` until its work runs elsewhere.
    pub failover: Duration,
    /// The longest time for which a shard may not read its socket.
    pub stall: Duration,
    /// Datagrams go over IPv6.
    pub ipv6: bool,
    /// The controller's.
    pub settings: Settings,
}

/// What of the config matters here; under the same names.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is documented in RawDetector under the same name")]
pub struct Settings {
    pub timeout_min: Duration,
    pub timeout_max: Duration,
    pub false_suspicion_cost_s: f64,
    pub probes: u8,
    pub probe_spacing: Duration,
    pub confirm_max: Duration,
    pub peers: u8,
    pub ack_every: u16,
    pub shards: u16,
}

/// What it comes to. Times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each field has its words, formula and source in `FIGURES`")]
pub struct Plan {
    pub hosts: f64,
    pub interval_s: f64,
    pub beats_per_s: f64,
    pub datagrams_per_s: f64,
    pub bits_per_s_in: f64,
    pub bits_per_s_out: f64,
    pub cores_busy: f64,
    pub cores: f64,
    pub memory_bytes: f64,
    pub buffer_bytes_per_shard: f64,
    pub margin_s: f64,
    pub lost_beats_borne: u32,
    pub false_suspects_per_year: f64,
    pub false_downs_per_year: f64,
    pub suspect_p50_s: f64,
    pub suspect_p99_s: f64,
    pub down_p50_s: f64,
    pub down_p99_s: f64,
    pub down_worst_s: f64,
    pub availability: f64,
    pub downtime_s_per_host_year: f64,
}

/// One figure of a [`Plan`] in words.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// As in JSON.
    pub key: &'static str,
    /// For people.
    pub name: &'static str,
    /// How it is computed.
    pub formula: &'static str,
    /// Whose formula it is, or where its constants were measured.
    pub source: &'static str,
}

const fn figure(
    key: &'static str,
    name: &'static str,
    formula: &'static str,
    source: &'static str,
) -> Figure {
    Figure { key, name, formula, source }
}

/// All figures, in the order in which they are shown.
pub const FIGURES: [Figure; 19] = [
    figure("interval_s", "interval η", "given, or the longest with which --detect is kept", "-"),
    figure("beats_per_s", "beats", "hosts / η", "-"),
    figure(
        "datagrams_per_s",
        "datagrams, both ways",
        "beats and acks: beats / ack_every, of many hosts 4,000 a shard, or beats / 120 if that is more; two \
         for each probe of a wrong suspicion",
        "detector.ack_every; controller/src/shard/core.rs; controller/src/detector/confirm.rs",
    ),
    figure(
        "bits_per_s_in",
        "bits in",
        "beats · 8 · (80 + UDP 8 + IPv4 20 or IPv6 40 + Ethernet 38)",
        "RFC 768, RFC 791, RFC 8200, IEEE 802.3 with preamble and gap",
    ),
    figure("bits_per_s_out", "bits out", "the same for acks", "as bits in"),
    figure(
        "cores_busy",
        "cores busy",
        "beats · time per beat (its share of the acks is in it)",
        "a budget (plan/cost.rs); compare cargo xtask bench ingest",
    ),
    figure(
        "cores",
        "cores to have",
        "busy / 0.7, rounded up",
        "M/D/1 waits 1.2 service times at 0.7 (Kleinrock, Queueing Systems I, 1975)",
    ),
    figure(
        "memory_bytes",
        "memory",
        "a fixed part + hosts · bytes per host",
        "measured (plan/cost.rs): cargo xtask bench memory",
    ),
    figure(
        "buffer_bytes_per_shard",
        "receive buffer a shard",
        "beats / shards · --stall · 832 bytes (what the kernel counts for one)",
        "measured; net.core.rmem_max must allow it",
    ),
    figure(
        "margin_s",
        "margin M",
        "m₀ + k·η with the k that minimises M + C · P(k + 1 beats in a row lost), within timeout_min and \
         timeout_max; m₀ = max(timeout_min, --delay-spread)",
        "controller/src/detector/timeout; C = detector.false_suspicion_cost",
    ),
    figure(
        "false_suspects_per_year",
        "false suspects a year",
        "hosts · beats a year · P(k + 1 lost): p^(k+1), or for bursts of length D share / E[D] · \
         ∫ P(D > u + k·η) du over an interval",
        "Gilbert (BSTJ 39, 1960), Elliott (BSTJ 42, 1963), in time; λ_M of Chen, Toueg, Aguilera (IEEE ToC \
         51(5), 2002)",
    ),
    figure(
        "false_downs_per_year",
        "false downs a year",
        "false suspects · P(no answer): (1 − (1−p)²)^(2·probes) · (1 − (1−p)⁴)^(2·peers), or for bursts \
         P(D > M + probing | D > M)",
        "ADR 8; an upper bound: beats that come meanwhile are left out, and no burst has a longest length \
         unless --burst-longest tells it",
    ),
    figure(
        "suspect_p50_s",
        "crash to suspect, p50",
        "a crash at any moment: η/2 + M + half the round trip",
        "T_D of NFD-E (Chen, Toueg, Aguilera 2002), with announced gaps",
    ),
    figure("suspect_p99_s", "crash to suspect, p99", "0.99·η + M + half the round trip", "as p50"),
    figure(
        "down_p50_s",
        "crash to down, p50",
        "to suspect + probes · max(probe_spacing, min(2 round trips, 2 s)), of a host that never came back \
         from a suspicion",
        "controller/src/detector/confirm.rs",
    ),
    figure("down_p99_s", "crash to down, p99", "as p50", "as p50"),
    figure(
        "down_worst_s",
        "the same at worst",
        "of a host that came back before: until it is silent for 3 · its longest silence in three weeks, \
         within confirm_max",
        "ADR 8; longest of n bursts: E[D] · (ln n + 0.577) (David and Nagaraja, Order Statistics, 2003)",
    ),
    figure(
        "availability",
        "availability of a service",
        "A = MTBF / (MTBF + crash to down + failover), crash to down as its p50",
        "Trivedi, Probability and Statistics with Reliability, 2002: steady state of one unit",
    ),
    figure(
        "downtime_s_per_host_year",
        "downtime a host-year",
        "(1 − A) · a year, and a failover for each false down",
        "as availability",
    ),
];

/// The margin that costs least: how many lost beats in a row it bears, and how long it is, in seconds.
pub fn margin(g: &Given, interval_s: f64) -> (u32, f64) {
    let s = &g.settings;
    let (min, max) = (s.timeout_min.as_secs_f64(), s.timeout_max.as_secs_f64());
    let floor = g.delay_spread.as_secs_f64().max(min).min(max);
    let at = |k: u32| floor + f64::from(k) * interval_s;
    let most = ((max - floor) / interval_s).floor() as u32;
    let cost = |k: u32| at(k) + s.false_suspicion_cost_s * g.loss.misses(k, interval_s);
    let best = (0..=most.min(10_000)).min_by(|a, b| cost(*a).total_cmp(&cost(*b)));
    let k = best.unwrap_or(0);
    (k, at(k).min(max))
}

/// Seconds from a suspicion to the verdict, of a host that never came back from one.
fn probing_s(g: &Given) -> f64 {
    let trips = (g.round_trip * 2).min(Duration::from_secs(2));
    g.settings.probe_spacing.max(trips).as_secs_f64() * f64::from(g.settings.probes)
}

/// Works everything out.
pub fn plan(g: &Given) -> Plan {
    let s = &g.settings;
    let interval_s = g.interval.as_secs_f64();
    let beats = g.hosts / interval_s;
    let busy = beats * BEAT_NS * 1e-9;
    let cores = (busy / BUSY_MAX).ceil().max(1.0);
    let shards = if s.shards == 0 { cores } else { f64::from(s.shards) };
    let most = (f64::from(ACK_RATE) * shards).max(beats / CADENCE_MAX as f64);
    let acks = (beats / f64::from(s.ack_every)).min(most);
    let (k, margin_s) = margin(g, interval_s);
    let suspicions_per_s = beats * g.loss.misses(k, interval_s);

    let probing = probing_s(g);
    let longest = g.loss.longest_s(interval_s, MEMORY_DAYS);
    // Beyond the expected beat; who lost no beat in a row before gets no more than the burst of probes.
    let given = (3.0 * longest).min(s.confirm_max.as_secs_f64());
    let probed_on = probing.max(if longest > 0.0 { given - margin_s } else { 0.0 });
    let rounds = f64::from(s.probes) * probed_on / probing;
    let requests = 2.0 * f64::from(s.peers);
    let unheard = g.loss.unheard(margin_s, probed_on, rounds, requests);

    let wire = |datagrams: f64| {
        let more = if g.ipv6 { IPV6_MORE_BYTES } else { 0.0 };
        datagrams * 8.0 * (DATAGRAM_BYTES + OVERHEAD_BYTES + more)
    };
    let (half_trip, failover) = (g.round_trip.as_secs_f64() / 2.0, g.failover.as_secs_f64());
    let suspect = |share: f64| share * interval_s + margin_s + half_trip;
    let down_p50 = suspect(0.5) + probing;
    let mtbf = g.mtbf.as_secs_f64();
    let availability = mtbf / (mtbf + down_p50 + failover);
    let year_s = YEAR_DAYS * DAY_S;
    let false_suspects = suspicions_per_s * year_s;
    let false_downs = false_suspects * unheard;
    Plan {
        hosts: g.hosts,
        interval_s,
        beats_per_s: beats,
        datagrams_per_s: beats + acks + suspicions_per_s * 2.0 * f64::from(s.probes),
        bits_per_s_in: wire(beats),
        bits_per_s_out: wire(acks),
        cores_busy: busy,
        cores,
        memory_bytes: BASE_BYTES + g.hosts * HOST_BYTES,
        buffer_bytes_per_shard: beats / shards * g.stall.as_secs_f64() * DATAGRAM_BUFFER_BYTES,
        margin_s,
        lost_beats_borne: k,
        false_suspects_per_year: false_suspects,
        false_downs_per_year: false_downs,
        suspect_p50_s: suspect(0.5),
        suspect_p99_s: suspect(0.99),
        down_p50_s: down_p50,
        down_p99_s: suspect(0.99) + probing,
        down_worst_s: suspect(1.0) + probed_on,
        availability,
        downtime_s_per_host_year: (1.0 - availability) * year_s + false_downs / g.hosts * failover,
    }
}

/// The longest interval, in whole milliseconds, with which 99 of 100 crashes are told as `down` within
/// `wanted`; `None`: even the shortest is too long.
///
/// The margin jumps where another lost beat is worth bearing, so this looks at intervals 2 % apart first
/// and then closes in on the last one that is good.
pub fn interval_for(g: &Given, wanted: Duration) -> Option<Duration> {
    let wanted = wanted.as_secs_f64();
    let good = |interval_s: f64| {
        let interval = Duration::from_secs_f64(interval_s);
        plan(&Given { interval, ..g.clone() }).down_p99_s <= wanted
    };
    let mut bad = INTERVAL_MAX_S.min(wanted.max(INTERVAL_MIN_S) * 1.02);
    let mut at = bad;
    while !good(at) {
        if at <= INTERVAL_MIN_S {
            return None;
        }
        bad = at;
        at = (at / 1.02).max(INTERVAL_MIN_S);
    }
    for _ in 0..20 {
        let middle = f64::midpoint(at, bad);
        if good(middle) { at = middle } else { bad = middle }
    }
    let ms = (at * 1e3).floor().max(1.0);
    Some(Duration::from_millis(ms as u64).max(Duration::from_secs_f64(INTERVAL_MIN_S)))
}
