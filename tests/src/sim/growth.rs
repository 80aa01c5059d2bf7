//! A fleet that grows under a budget of beats: real agents, a real shard, the real assigner, and only the
//! clock and the network are simulated. No faults but lost acks: this shows what assigning costs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_agent::core::{Core, Outgoing, Settings, To};
use heartwatch_common::auth::Keyring;
use heartwatch_common::id::{Boot, ControllerId, Epoch, Generation, HostId};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::Instant;
use heartwatch_controller::config::RawConfig;
use heartwatch_controller::detector;
use heartwatch_controller::intervals::{Assigned, Assigner, Class, Rules};
use heartwatch_controller::metrics::{ShardMetrics, get};
use heartwatch_controller::shard::core::{Identity, Send, ShardCore, Via};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::host::secret;

/// How often the shard judges, and how often intervals are looked at.
const PASS: Duration = Duration::from_millis(10);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// One way's longest time.
const DELAY_MAX_US: u64 = 2_000;

/// What happens.
enum Happening {
    Wake(usize),
    ToController(usize, Vec<u8>),
    ToHost(usize, Vec<u8>),
    Pass,
    Look,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Growth {
    /// Suspicions; all hosts live and nothing of theirs is lost.
    pub suspects: u64,
    /// Beats that arrived in each second.
    pub beats: Vec<u64>,
    /// Interval in force at the agents at the end of each second: shortest and longest, milliseconds.
    pub intervals_ms: Vec<(u64, u64)>,
}

/// A fleet of `hosts` that doubles after `doubles_at`, under `budget` beats a second, watched for `until`.
pub fn run(hosts: usize, budget: f64, doubles_at: Duration, until: Duration, seed: u64) -> Growth {
    let mut world = World::new(hosts, budget, seed);
    for host in 0..hosts * 2 {
        let start = if host < hosts { Duration::ZERO } else { doubles_at };
        let spread = Duration::from_millis(world.rng.random_range(0..1_000));
        world.at(ORIGIN + start + spread, Happening::Wake(host));
    }
    world.at(ORIGIN, Happening::Pass);
    world.at(ORIGIN, Happening::Look);
    let mut growth = Growth::default();
    let mut second = ORIGIN + Duration::from_secs(1);
    let mut before = 0;
    while let Some(((when, _), what)) = world.queue.pop_first() {
        while when >= second {
            let beats = get(&world.metrics.beats);
            growth.beats.push(beats - before);
            before = beats;
            let present = world.agents.iter().flatten();
            let ms = present.map(|a| a.interval().as_millis() as u64);
            growth.intervals_ms.push((ms.clone().min().unwrap_or(0), ms.max().unwrap_or(0)));
            second = second + Duration::from_secs(1);
        }
        if when > ORIGIN + until {
            break;
        }
        world.now = when;
        world.happen(what);
    }
    growth.suspects = get(&world.metrics.suspects);
    growth
}

const ORIGIN: Instant = Instant::from_millis(1_000_000);

struct World {
    now: Instant,
    rng: StdRng,
    queue: BTreeMap<(Instant, u64), Happening>,
    queued: u64,
    agents: Vec<Option<Core>>,
    core: ShardCore,
    metrics: Arc<ShardMetrics>,
    assigner: Assigner,
    assigned: Arc<Assigned>,
    received: u64,
}

fn id(host: usize) -> HostId {
    let mut id = [3; 16];
    id[8..].copy_from_slice(&(host as u64).to_be_bytes());
    HostId(id)
}

fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (host / 250) as u8, (host % 250) as u8 + 1], 20_000))
}

fn controller() -> SocketAddr {
    SocketAddr::from(([10, 1, 0, 1], 2328))
}

impl World {
    fn new(hosts: usize, budget: f64, seed: u64) -> Self {
        let config = RawConfig::default().check().expect("the defaults are good");
        let metrics = Arc::new(ShardMetrics::default());
        let assigned = Assigned::fixed(Duration::ZERO, 10).watching(config.watch);
        let assigned = Arc::new(assigned);
        let identity = Identity {
            live: Default::default(),
            shard: 0,
            controller: ControllerId(1),
            epoch: Epoch(9),
            keyring: Keyring::new(vec![secret()]).expect("one secret makes a ring"),
            enrolled: Arc::default(),
            assigned: Arc::clone(&assigned),
            knobs: Arc::new(config.knobs),
            domains: config.domain_labels,
            seed,
        };
        let settings = detector::Settings::new(&config.detector);
        let class = Class {
            name: "default".to_owned(),
            labels: BTreeMap::new(),
            weight: 1.0,
            min: Duration::from_secs(1),
            max: Duration::from_secs(30),
        };
        let rules = Rules { budget, change_max: 2.0, classes: vec![class] };
        Self {
            now: ORIGIN,
            rng: StdRng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            queued: 0,
            agents: vec![None; hosts * 2],
            core: ShardCore::new(identity, settings, Arc::clone(&metrics), ORIGIN),
            metrics,
            assigner: Assigner::new(rules),
            assigned,
            received: 0,
        }
    }

    fn at(&mut self, when: Instant, what: Happening) {
        self.queued += 1;
        self.queue.insert((when, self.queued), what);
    }

    fn happen(&mut self, what: Happening) {
        let now = self.now;
        match what {
            Happening::Wake(host) => self.wake(host),
            Happening::ToController(host, bytes) => {
                self.received += 1;
                let mut out = Vec::new();
                self.core.receive(&bytes, address(host), Via::Beats(0), now, now, &mut out);
                self.answer(out);
            }
            Happening::ToHost(host, bytes) => {
                let Some(agent) = &mut self.agents[host] else { return };
                let mut out = Vec::new();
                agent.receive(controller(), Some(0), &bytes, now, &mut out);
                self.send(host, out);
                self.at(now, Happening::Wake(host));
            }
            Happening::Pass => {
                let received = std::mem::take(&mut self.received);
                self.core.heard(now, now, received, 0);
                let mut out = Vec::new();
                self.core.judge(now, now, now, &mut out);
                self.answer(out);
                self.at(now + PASS, Happening::Pass);
            }
            Happening::Look => {
                let counts: Vec<u64> = self.metrics.class_hosts.iter().map(get).collect();
                self.assigner.step(&counts, now);
                for (class, interval) in self.assigner.intervals().into_iter().enumerate() {
                    self.assigned.set(class, interval);
                }
                self.at(now + LOOK_EVERY, Happening::Look);
            }
        }
    }

    fn wake(&mut self, host: usize) {
        let now = self.now;
        if self.agents[host].is_none() {
            let settings = Settings {
                host: id(host),
                key: secret().host_key(id(host), Generation(0)),
                boot: Boot(1),
                interval: Duration::from_secs(1),
                jitter: 0.2,
                interval_min: Duration::from_millis(100),
                interval_max: Duration::from_secs(60),
                ack_every: 10,
                name: format!("host-{host}"),
                os: "simulated".to_owned(),
                labels: BTreeMap::new(),
                controllers: 1,
            };
            self.agents[host] = Core::new(settings, now, &mut self.rng).ok();
        }
        let Some(agent) = &mut self.agents[host] else { return };
        let mut out = Vec::new();
        agent.tick(now, &LoadSample::UNKNOWN, 0, &mut self.rng, &mut out);
        let next = agent.next_wake();
        self.send(host, out);
        // An ack wakes it too: one wake in the queue that comes too early does nothing.
        if next > now {
            self.at(next, Happening::Wake(host));
        }
    }

    fn delay(&mut self) -> Duration {
        Duration::from_micros(100 + self.rng.random_range(0..DELAY_MAX_US))
    }

    fn send(&mut self, host: usize, out: Vec<Outgoing>) {
        for one in out {
            if let To::Controller(_) = one.to {
                let at = self.now + self.delay();
                self.at(at, Happening::ToController(host, one.bytes.as_slice().to_vec()));
            }
        }
    }

    fn answer(&mut self, out: Vec<Send>) {
        for one in out {
            let host = (0..self.agents.len()).find(|h| address(*h) == one.to);
            // One answer in ten is lost: that must cost nothing but time.
            if let Some(host) = host.filter(|_| !self.rng.random_bool(0.1)) {
                let at = self.now + self.delay();
                self.at(at, Happening::ToHost(host, one.bytes.as_ref().to_vec()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_doubles_keeps_to_its_budget_and_nobody_is_suspected() {
        let (doubles, until) = (Duration::from_secs(120), Duration::from_secs(480));
        // 50 hosts at 1 s want 50 beats a second: 45 are aimed at, 1.112 s; twice as many, 2.223 s.
        let growth = run(50, 50.0, doubles, until, 7);
        assert_eq!(growth.suspects, 0, "announced gaps tell the detector all that it needs");
        let mean = |from: usize, to: usize| {
            growth.beats[from..to].iter().sum::<u64>() as f64 / (to - from) as f64
        };
        assert!((43.0..=50.0).contains(&mean(60, 120)), "{}", mean(60, 120));
        assert!(mean(121, 131) > 60.0, "it changes gradually, so at first there are too many");
        assert!((43.0..=50.0).contains(&mean(240, 480)), "{}", mean(240, 480));
        assert_eq!(growth.intervals_ms[479], (2_223, 2_223));
        // Hosts that stay: none moves faster than by a factor of two a minute, and what it had not heard.
        for (a, b) in growth.intervals_ms.iter().zip(&growth.intervals_ms[60..]).skip(60) {
            assert!(b.1 as f64 <= a.1 as f64 * 2.5, "{a:?} {b:?}");
        }
        assert_eq!(growth, run(50, 50.0, doubles, until, 7), "one seed, one story");
    }
}
