//! The way of a beat through a shard, alone: no socket, no thread, no clock.
//!
//! [`BeatPath`] is a real [`ShardCore`] of the default config whose hosts said hello, were challenged,
//! proved themselves and have beaten until their margins have settled. Datagrams are sealed before they
//! are fed, so that what is counted between two amounts of beats is the controller's work and nothing
//! else: `heartwatch-beatpath` runs it, `tests/tests/instructions.rs` counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use heartwatch_common::auth::{FleetSecret, HostKey, Keyring};
use heartwatch_common::id::{Boot, ControllerId, Epoch, Generation, HostId, KeyId, Seq};
use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{
    Beat, DATAGRAM_LEN, FLAG_ACK_WANTED, Field, Fixed, Header, RoundTrip, Stamp, encode_hello,
};
use heartwatch_controller::config::RawConfig;
use heartwatch_controller::detector;
use heartwatch_controller::event::State;
use heartwatch_controller::ingest::socket::BATCH_LEN;
use heartwatch_controller::intervals::Assigned;
use heartwatch_controller::metrics::{ShardMetrics, get};
use heartwatch_controller::shard::core::{Identity, Send, ShardCore, Via};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const EPOCH: Epoch = Epoch(77);
const BOOT: Boot = Boot(5);
const KEY: KeyId = KeyId(1);
/// Between two beats of a host.
const INTERVAL: Duration = Duration::from_secs(1);
/// Beats of each host before anything is measured: the first 64 choose margins anew far more often.
const WARM_UP: usize = 66;
/// Every so manieth beat of a host wants an ack, as an agent's does.
const ACK_EVERY: u64 = 10;
/// Batches between two looks at who is due, as in `bench observe`.
const JUDGE_EVERY: usize = 8;

/// A host that beats.
struct Member {
    id: HostId,
    key: HostKey,
    from: SocketAddr,
    seq: u32,
}

impl Member {
    fn stamp(&mut self, sent: Instant, epoch: Epoch) -> Stamp {
        self.seq += 1;
        Stamp { boot: BOOT, seq: Seq(self.seq), sent, gap: INTERVAL, epoch }
    }

    fn header(&self, flags: u8) -> Header {
        Header { host: self.id, key_id: KEY, generation: Generation(0), flags }
    }

    fn hello(&mut self, sent: Instant, epoch: Epoch) -> Result<Vec<u8>> {
        let stamp = self.stamp(sent, epoch);
        let fields = [Field::Name("db-1"), Field::Label("zone", "a")];
        let header = self.header(FLAG_ACK_WANTED);
        let mut bytes = encode_hello(&header, &stamp, 0, INTERVAL, &fields)?;
        self.key.seal(&mut bytes);
        Ok(bytes)
    }
}

/// A sealed beat on its way.
pub struct Sealed {
    bytes: Fixed,
    from: SocketAddr,
    arrival: Instant,
}

/// What became of beats that were fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Proofs of life.
    pub beats: u64,
    /// Acks sent.
    pub acks: u64,
    /// Anything else than an ack that was sent, or told to the policy.
    pub other: u64,
}

/// A shard whose hosts are all alive.
pub struct BeatPath {
    core: ShardCore,
    metrics: Arc<ShardMetrics>,
    members: Vec<Member>,
    rng: StdRng,
    /// When the first beat was due.
    start: Instant,
    /// Beats sealed since then.
    sealed: usize,
    /// Batches fed.
    batches: usize,
    out: Vec<Send>,
}

impl BeatPath {
    /// `hosts` hosts, everything drawn from a fixed seed.
    pub fn new(hosts: usize) -> Result<Self> {
        let config = RawConfig::default().check()?;
        let secret = FleetSecret::new(KEY, [9; 32]);
        let metrics = Arc::new(ShardMetrics::default());
        let assigned = Assigned::fixed(config.detector.interval, config.detector.ack_every);
        let identity = Identity {
            shard: 0,
            controller: ControllerId(1),
            epoch: EPOCH,
            keyring: Keyring::new(vec![secret.clone()])?,
            enrolled: Arc::default(),
            assigned: Arc::new(assigned.watching(config.watch)),
            knobs: Arc::new(config.knobs),
            domains: config.domain_labels,
            live: Arc::default(),
            seed: 1,
        };
        let settings = detector::Settings::new(&config.detector);
        let now = Instant::from_millis(1_000);
        let mut core = ShardCore::new(identity, settings, Arc::clone(&metrics), now);
        core.begin(now);
        let mut rng = StdRng::seed_from_u64(7);
        let mut members: Vec<Member> = (0..hosts)
            .map(|n| {
                let id = HostId(rng.random());
                let key = secret.host_key(id, Generation(0));
                let from = SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8 + 1], 9));
                Member { id, key, from, seq: 0 }
            })
            .collect();
        // In no order of theirs do beats come.
        members.shuffle(&mut rng);
        let (sealed, batches) = (0, 0);
        let mut path =
            Self { core, metrics, members, rng, start: now, sealed, batches, out: Vec::new() };
        path.greet(now)?;
        let warm_up = path.seal(hosts * WARM_UP);
        path.feed(&warm_up);
        path.check_alive()?;
        Ok(path)
    }

    /// Every host says hello, is challenged, and answers with the epoch that it learnt.
    fn greet(&mut self, begin: Instant) -> Result<()> {
        let step = INTERVAL / self.members.len().max(1) as u32;
        let mut now = begin;
        for epoch in [Epoch(0), EPOCH] {
            for member in &mut self.members {
                now = now + step;
                let bytes = member.hello(now, epoch)?;
                self.core.receive(&bytes, member.from, Via::Beats(0), now, now, &mut self.out);
                // The policy reads on, or the shard would take no more strangers.
                while self.core.notices().pop().is_some() {}
            }
            self.core.judge(now, now, now, &mut self.out);
        }
        self.out.clear();
        self.start = now + step;
        self.check_alive()
    }

    fn check_alive(&self) -> Result<()> {
        let is_alive = |m: &&Member| self.core.detector().state(m.id) == Some(State::Alive);
        let (alive, all) = (self.members.iter().filter(is_alive).count(), self.members.len());
        ensure!(alive == all, "{alive} of {all} hosts are alive");
        Ok(())
    }

    /// Seals the beats that come next.
    pub fn seal(&mut self, beats: usize) -> Vec<Sealed> {
        let step = INTERVAL.as_nanos() as u64 / self.members.len().max(1) as u64;
        let load = LoadSample {
            cpu_busy: Share::from_ratio(0.3),
            memory_used: Share::from_ratio(0.6),
            ..LoadSample::UNKNOWN
        };
        (0..beats)
            .map(|_| {
                let n = self.sealed;
                self.sealed += 1;
                let at = n % self.members.len();
                let member = &mut self.members[at];
                let sent = self.start + Duration::from_micros(n as u64 * step / 1_000);
                let stamp = member.stamp(sent, EPOCH);
                let wants = (u64::from(member.seq) + at as u64).is_multiple_of(ACK_EVERY);
                let header = member.header(if wants { FLAG_ACK_WANTED } else { 0 });
                let round_trip = RoundTrip::new(Duration::from_micros(700));
                let mut bytes =
                    Beat { stamp, late_ms: 0, checks: 0, load, round_trip }.encode(&header);
                member.key.seal(&mut bytes);
                // A path of 0.2 to 0.45 ms, as in a data centre.
                let delay = Duration::from_nanos(self.rng.random_range(200_000..450_000));
                Sealed { bytes, from: member.from, arrival: sent + delay }
            })
            .collect()
    }

    /// The same beats under wrong tags, as somebody without keys would send them.
    pub fn forge(beats: &[Sealed]) -> Vec<Sealed> {
        let forge = |beat: &Sealed| {
            let mut bytes = beat.bytes;
            bytes[DATAGRAM_LEN - 1] ^= 1;
            Sealed { bytes, ..*beat }
        };
        beats.iter().map(forge).collect()
    }

    /// Feeds beats in the order in which they were sealed, in full batches as a busy shard reads them.
    pub fn feed(&mut self, beats: &[Sealed]) -> Fed {
        let (beats_before, acks_before) = (get(&self.metrics.beats), get(&self.metrics.acks));
        let mut sent = 0;
        for batch in beats.chunks(BATCH_LEN) {
            // Beats that follow each other closely may arrive the other way round.
            let Some(now) = batch.iter().map(|b| b.arrival).max() else { continue };
            self.core.look_at(batch.iter().map(|b| b.bytes.as_slice()));
            for (i, b) in batch.iter().enumerate() {
                let via = Via::Beats(0);
                self.core.receive_next(i, &b.bytes, b.from, via, b.arrival, now, &mut self.out);
            }
            self.batches += 1;
            if self.batches.is_multiple_of(JUDGE_EVERY) {
                self.core.heard(now, now, (JUDGE_EVERY * BATCH_LEN) as u64, 0);
                self.core.judge(now, now, now, &mut self.out);
            }
            sent += self.out.len() as u64;
            self.out.clear();
        }
        let mut news = 0;
        while self.core.notices().pop().is_some() {
            news += 1;
        }
        let acks = get(&self.metrics.acks) - acks_before;
        let beats = get(&self.metrics.beats) - beats_before;
        Fed { beats, acks, other: sent - acks + news }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_beat_is_a_proof_of_life_and_every_tenth_is_acked() {
        let mut path = BeatPath::new(100).unwrap();
        let beats = path.seal(3_000);
        assert_eq!(path.feed(&beats), Fed { beats: 3_000, acks: 300, other: 0 });
        path.check_alive().unwrap();
    }
}
