//! A deterministic world in virtual time: from one seed, minutes of a fleet in a fraction of a second.
//!
//! What decides is production code: the agent's [`Core`](heartwatch_agent::core::Core), the shard's
//! `ShardCore` (admission, detector, doubt, confirmation) with its `Watch`, the `Policy`, the SQLite
//! engine (in memory), and the delivery's `Schedule`. Simulated are the clock, the network (loss, delay,
//! duplication, reordering, partitions, cuts between a host and the controller alone, a recorder that
//! replays, peers that lie when they are asked about others), socket buffers that overrun, processes
//! that crash, stop and go on, machines that die, disks that fill, and a receiver that fails.
//!
//! Each seed draws its own mix of faults, sometimes none. After the faults stop the run must heal.
//! [`crate::invariants`] are checked as the run goes, and at its end. One thread, one queue of events in
//! time order; two runs of one seed have the same trace hash.

mod controller;
mod fault;
pub mod growth;
mod host;
mod net;
mod peers;
mod receiver;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use heartwatch_controller::delivery::outcome::Outcome;
use heartwatch_controller::event::EventKind;
use heartwatch_controller::store::DeliveryId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::invariants::{Ledger, Violation};
use controller::SimController;
pub use fault::{Fault, Plan};
pub use host::{SimHost, Truth};
use net::Net;
use peers::{Look, Overheard};
pub use receiver::Reception;
use receiver::SimReceiver;

/// Faults happen before this; then the world must heal.
pub const FAULTS_UNTIL: Duration = Duration::from_secs(150);
/// From then on somebody approves what the guard holds: by then every host is known as it is.
const APPROVED_FROM: Duration = Duration::from_secs(215);
/// The run ends here.
pub const END: Duration = Duration::from_secs(270);
/// The last part of a run, in which nothing may be left to settle.
const SETTLED_FOR: Duration = Duration::from_secs(30);
/// How often the controller looks at its sockets.
const PASS: Duration = Duration::from_millis(5);

/// Something that happens at a moment.
#[derive(Debug)]
enum Happening {
    /// An agent's timer fires.
    Wake { host: usize, life: u32 },
    /// A datagram reaches the controller's machine.
    ToController { from: SocketAddr, probes: bool, bytes: Vec<u8>, original: Option<usize> },
    /// A datagram reaches a host's machine.
    ToHost { host: usize, to: SocketAddr, from: SocketAddr, probes: bool, bytes: Vec<u8> },
    /// "Port unreachable", quoting a datagram, reaches the controller's probe socket.
    Unreachable { quoted: Vec<u8> },
    /// The controller looks at its sockets.
    Pass { life: u32 },
    /// An attempt reaches the receiver.
    Post { life: u32, delivery: DeliveryId, reception: Reception },
    /// The attempt's answer, or what the controller makes of its absence.
    Answer { life: u32, delivery: DeliveryId, outcome: Outcome },
    /// A fault.
    Fault(Fault),
    /// It is time to look whether a promise was kept.
    Look(Look),
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Hash of all that happened, in order.
    pub trace: String,
    /// Promises that were broken; empty is good.
    pub violations: Vec<Violation>,
    /// Faults that happened, in order, for people.
    pub faults: Vec<String>,
    /// Events journaled, by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Datagrams delivered to the controller.
    pub datagrams: u64,
    /// Webhooks received, repeats included.
    pub receptions: u64,
    /// Promises about peers that were looked at when their time had come.
    pub looked: u64,
    /// Turns and webhooks, one line each, for people.
    pub story: Vec<String>,
}

/// The world.
pub struct World {
    now: Instant,
    rng: StdRng,
    queue: BTreeMap<(Instant, u64), Happening>,
    queued: u64,
    hosts: Vec<SimHost>,
    controller: SimController,
    net: Net,
    overheard: Overheard,
    receiver: SimReceiver,
    ledger: Ledger,
    trace: blake3::Hasher,
    faults: Vec<String>,
    story: Vec<String>,
    wall_offset_ms: i64,
    datagrams: u64,
    /// When dead hosts are next looked for.
    look_at: Instant,
    /// When somebody next approves what is held: only once the world has healed.
    approve_at: Instant,
    /// Challenges sent until half a minute before the end.
    challenges_before: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan::draw(&mut rng);
        let now = Instant::from_millis(1_000_000);
        let count = rng.random_range(3..=12);
        let mut world = Self {
            now,
            queue: BTreeMap::new(),
            queued: 0,
            hosts: (0..count).map(|i| SimHost::new(i, plan.liars, &mut rng)).collect(),
            controller: SimController::new(now, &mut rng, &plan),
            net: Net::new(&plan),
            overheard: Overheard::default(),
            receiver: SimReceiver::new(&plan),
            ledger: Ledger::default(),
            trace: blake3::Hasher::new(),
            faults: Vec::new(),
            story: Vec::new(),
            wall_offset_ms: 0,
            datagrams: 0,
            look_at: now,
            approve_at: now + APPROVED_FROM,
            challenges_before: 0,
            rng,
        };
        world.at(now, Happening::Pass { life: world.controller.life });
        for host in 0..count {
            let start = now + Duration::from_millis(world.rng.random_range(0..3_000));
            world.at(start, Happening::Fault(Fault::Start { host }));
        }
        for (after, fault) in plan.faults(count, &mut world.rng) {
            world.at(now + after, Happening::Fault(fault));
        }
        world
    }

    fn at(&mut self, when: Instant, what: Happening) {
        self.queued += 1;
        self.queue.insert((when, self.queued), what);
    }

    /// The wall clock of all machines, milliseconds since 1970.
    fn wall_ms(&self) -> i64 {
        1_700_000_000_000 + (self.now.0 / 1_000_000) as i64 + self.wall_offset_ms
    }

    fn tell(&mut self, line: String) {
        self.trace.update(&self.now.0.to_be_bytes());
        self.trace.update(line.as_bytes());
        let at = self.now.since(Instant::from_millis(1_000_000)).as_secs_f64();
        self.story.push(format!("{at:9.3} s  {line}"));
    }

    fn host_at(&self, id: HostId) -> Option<usize> {
        self.hosts.iter().position(|h| h.id == id)
    }

    fn run(mut self, seed: u64) -> Report {
        let begin = self.now;
        let (heal, end) = (begin + FAULTS_UNTIL, begin + END);
        let mut healing = false;
        while let Some(((when, _), what)) = self.queue.pop_first() {
            if when > end {
                break;
            }
            self.now = when;
            if when + SETTLED_FOR <= end {
                self.challenges_before = self.controller.challenges();
            }
            if !healing && when >= heal {
                healing = true;
                self.heal();
            }
            self.happen(what);
        }
        self.now = end;
        self.check_end();
        let events = self.controller.events_by_kind();
        Report {
            seed,
            trace: self.trace.finalize().to_hex()[..16].to_owned(),
            looked: self.ledger.looked(),
            violations: self.ledger.into_violations(),
            faults: self.faults,
            events,
            datagrams: self.datagrams,
            receptions: self.receiver.receptions.len() as u64,
            story: self.story,
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Wake { host, life } => self.wake(host, life),
            Happening::ToController { from, probes, bytes, original } => {
                self.arrive(from, probes, bytes, original);
            }
            Happening::ToHost { host, to, from, probes, bytes } => {
                self.reach_host(host, to, from, probes, bytes);
            }
            Happening::Unreachable { quoted } => self.controller.unreachable(quoted),
            Happening::Pass { life } => self.pass(life),
            Happening::Post { life, delivery, reception } => self.post(life, delivery, reception),
            Happening::Answer { life, delivery, outcome } => self.answer(life, delivery, &outcome),
            Happening::Fault(fault) => self.fault(fault),
            Happening::Look(look) => self.look(look),
        }
    }

    /// All faults end; whatever is broken is mended, but for dead hosts, which stay dead.
    fn heal(&mut self) {
        self.net.heal();
        (0..self.hosts.len()).for_each(|host| self.disturb(host));
        self.receiver.heal();
        self.controller.heal();
        self.faults.push("healing".to_owned());
        if !self.controller.running {
            self.fault(Fault::StartController);
        }
        if let Some(span) = self.controller.suspended {
            self.fault(Fault::ResumeController { span });
        }
        if self.controller.stopped_until.is_some() {
            self.fault(Fault::ContinueController);
        }
    }

    fn check_end(&mut self) {
        let challenges = self.controller.challenges() - self.challenges_before;
        self.ledger.check_settled(challenges);
        for host in &self.hosts {
            let recorded = self.controller.row(host.id);
            self.ledger.check_healed(host, recorded);
        }
        let (events, deliveries) = self.controller.journal();
        self.ledger.check_delivered(&events, &deliveries, &self.receiver.receptions);
        self.ledger.check_order(&self.receiver.receptions);
        let unsaid: Vec<EventKind> = self.controller.unwritten();
        self.ledger.check_nothing_unwritten(&unsaid);
    }
}

/// Runs one seed.
pub fn run(seed: u64) -> Report {
    World::new(seed).run(seed)
}
