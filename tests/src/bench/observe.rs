//! What one beat costs the detector alone: look-up and observe, no socket, no tag.
//!
//! Hosts beat once a second in an order that is random in memory. The yardstick is a bare read, change
//! and write of one 64-byte record in a slab of as many, in the same order, in the same run.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use heartwatch_common::id::{Boot, Epoch, HostId, Seq};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::Stamp;
use heartwatch_controller::config::RawConfig;
use heartwatch_controller::detector::host::Known;
use heartwatch_controller::detector::{Ahead, Detector, Proof, Settings};
use heartwatch_controller::event::State;
use heartwatch_controller::memory::room;
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::{Context as BenchContext, Figures, median};

/// Datagrams of one receive, as in the product.
const BATCH: usize = 128;
/// Datagrams between two looks at who is due: what a busy shard drains in a pass.
const PASS: usize = 8 * BATCH;
/// Beats of each host before anything is measured: the first 64 choose margins anew each.
const WARM_UP: u32 = 66;
/// Between two beats of a host.
const SECOND_NS: u64 = 1_000_000_000;

/// CPU time of this thread, nanoseconds: what others do on the machine disturbs it least.
pub fn cpu_ns() -> Result<u64> {
    let t = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("cannot read the CPU clock")?;
    Ok(t.tv_sec() as u64 * SECOND_NS + t.tv_nsec() as u64)
}

/// CPU time, nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Of looking up and observing.
    pub observe: f64,
    /// Of judging after each batch.
    pub judge: f64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { observe: self.observe + other.observe, judge: self.judge + other.judge }
    }
}

/// A detector whose hosts all beat.
pub struct Beating {
    detector: Detector,
    ids: Vec<HostId>,
    order: Vec<u32>,
    ahead: Ahead,
    round: u32,
    from: SocketAddr,
}

impl Beating {
    /// `hosts` hosts with random ids that have beaten `rounds` times each.
    pub fn new(hosts: usize, rounds: u32, seed: u64) -> Result<Self> {
        let config = RawConfig::default().check().map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut detector =
            Detector::new(Settings::new(&config.detector), &config.knobs, seed, Instant(SECOND_NS));
        let ids: Vec<HostId> = (0..hosts).map(|_| HostId(rng.random())).collect();
        let from = SocketAddr::from(([192, 0, 2, 1], 9));
        for id in &ids {
            let known =
                Known { boot: Boot(1), address: Some(from), ..Known::new(*id, State::Alive) };
            detector.register(known, Instant(SECOND_NS)).context("no room for a host")?;
        }
        let mut order: Vec<u32> = (0..hosts as u32).collect();
        order.shuffle(&mut rng);
        let mut beating = Self { detector, ids, order, ahead: Ahead::default(), round: 1, from };
        for _ in 0..rounds {
            beating.round()?;
        }
        Ok(beating)
    }

    /// One beat of every host, judged after every few batches, as in the product.
    pub fn round(&mut self) -> Result<Cost> {
        self.round += 1;
        let start = u64::from(self.round) * SECOND_NS;
        let step = SECOND_NS as f64 / self.order.len() as f64;
        let (mut pass, mut spent) = (Vec::with_capacity(PASS), Cost::default());
        let (mut turns, mut judged) = (Vec::new(), Vec::new());
        for (k, chunk) in self.order.chunks(PASS).enumerate() {
            pass.clear();
            for (i, host) in chunk.iter().enumerate() {
                // A path of 0.2 to 0.4 ms, as in a data centre.
                let sent = Instant(start + ((k * PASS + i) as f64 * step) as u64);
                let delay = 200_000 + u64::from(host.wrapping_mul(0x9E37_79B9 ^ self.round) >> 14);
                pass.push((self.ids[*host as usize], sent, sent + Duration::from_nanos(delay)));
            }
            // Reading this clock is a system call: once for each batch it would be felt.
            let before = cpu_ns()?;
            for batch in pass.chunks(BATCH) {
                self.detector.look_at(batch.iter().map(|(id, ..)| Some(*id)), &mut self.ahead);
                for (i, (id, sent, arrival)) in batch.iter().enumerate() {
                    self.detector.look_ahead(i, &mut self.ahead);
                    let slot = self.detector.slot_ahead(i, *id, &self.ahead);
                    let stamp = Stamp {
                        boot: Boot(1),
                        seq: Seq(self.round),
                        sent: *sent,
                        gap: Duration::from_secs(1),
                        epoch: Epoch(1),
                    };
                    let proof = Proof {
                        stamp: &stamp,
                        arrival: *arrival,
                        from: self.from,
                        late_ms: 0,
                        load: Some(&LoadSample::UNKNOWN),
                        asked: false,
                        rebase: false,
                    };
                    let slot = slot.context("a registered host is not found")?;
                    black_box(self.detector.observe(slot, &proof, &mut turns));
                }
            }
            let between = cpu_ns()?;
            spent.observe += (between - before) as f64;
            if let Some((.., now)) = pass.last() {
                self.detector.judge(*now, *now, *now, &mut judged);
                spent.judge += (cpu_ns()? - between) as f64;
            }
            judged.clear();
            turns.clear();
        }
        Ok(spent)
    }
}

/// A slab of 64-byte records, for which huge pages are asked as for the detector's own: without them the
/// yardstick would be held up by the page tables, and we not.
fn slab(hosts: usize) -> Vec<[u64; 8]> {
    let mut records = room(hosts);
    records.resize(hosts, [0; 8]);
    records
}

/// A slab of 64-byte records, changed in the same order.
fn bare(records: &mut [[u64; 8]], order: &[u32]) -> Result<f64> {
    let before = cpu_ns()?;
    for host in order {
        let record = &mut records[*host as usize];
        record.iter_mut().for_each(|word| *word = word.wrapping_add(1));
    }
    black_box(&records);
    Ok((cpu_ns()? - before) as f64)
}

/// Sizes, and how the figures call them.
const SIZES: [(usize, [&str; 4]); 3] = [
    (10_000, ["ns_10k", "limit_10k", "ratio_10k", "judge_ns_10k"]),
    (1_000_000, ["ns_1m", "limit_1m", "ratio_1m", "judge_ns_1m"]),
    (4_000_000, ["ns_4m", "limit_4m", "ratio_4m", "judge_ns_4m"]),
];

/// Measures: the median of some rounds at each size; quick: up to a million hosts.
pub(super) fn run(context: &BenchContext) -> Result<Figures> {
    let runs = if context.quick { 3 } else { 11 };
    // Four million hosts take longer to come to rest than all else together.
    let sizes = if context.quick { &SIZES[..2] } else { &SIZES[..] };
    let mut values = Vec::new();
    println!("     hosts    ns/beat   limit ns   ratio   judging ns/beat   limit in small pages");
    for (hosts, names) in sizes.iter().copied() {
        let mut beating = Beating::new(hosts, WARM_UP, 7)?;
        let (mut records, mut in_small_pages) = (slab(hosts), vec![[0u64; 8]; hosts]);
        bare(&mut records, &beating.order)?;
        bare(&mut in_small_pages, &beating.order)?;
        // A round of ten thousand hosts is too short to be timed alone.
        let repeat = (200_000 / hosts).max(1);
        let (mut ours, mut judging, mut limit) = (Vec::new(), Vec::new(), Vec::new());
        let mut small = Vec::new();
        for _ in 0..runs {
            let (mut spent, mut touches, mut slower) = (Cost::default(), 0.0, 0.0);
            for _ in 0..repeat {
                spent = spent + beating.round()?;
                touches += bare(&mut records, &beating.order)?;
                slower += bare(&mut in_small_pages, &beating.order)?;
            }
            let beats = (hosts * repeat) as f64;
            ours.push(spent.observe / beats);
            judging.push(spent.judge / beats);
            limit.push(touches / beats);
            small.push(slower / beats);
        }
        let (ours, judging, limit) = (median(ours), median(judging), median(limit));
        let ratio = ours / limit;
        let small = median(small);
        println!(
            "{hosts:>10} {ours:>10.1} {limit:>10.1} {ratio:>7.2} {judging:>17.1} {small:>13.1}"
        );
        values.extend(names.into_iter().zip([ours, limit, ratio, judging]));
    }
    Ok(Figures { values, runs })
}
