//! The loop of a mass: orders, what is due, what came in; then a nap until the next millisecond.
//!
//! It never makes up for lost time by a burst: of what is overdue it sends a few milliseconds' worth,
//! reads its mail, goes on, and counts how late it was.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use heartwatch_common::auth::seal_many;
use heartwatch_common::id::{Epoch, Generation, HostId};
use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::{Clock, Instant, SystemClock};
use heartwatch_common::wire::{
    self, Beat, FLAG_ACK_WANTED, Field, Fixed, Header, Leave, LeaveReason, Message, ProbeReply,
    RoundTrip, encode_hello,
};
use heartwatch_controller::shard::route::shard_of;

use super::facts::MassFacts;
use super::mass::{Act, Counts, First, MassSetup, Order};
use super::member::{Life, Member, NEVER, Pace, Taken, Tick};
use super::mix::{Draws, Shuffle, mass_id, mass_number};
use super::post::{Batch, Post};
use super::wheel::{HORIZON, Wheel};
use crate::machine;

/// Milliseconds' worth of beats between two looks at the mail.
const TICKS_MAX: u32 = 4;
/// Batches of mail taken from one socket in one pass, and how long reading may take in all: beats come
/// first, or a storm of probes would make living hosts look dead.
const BATCHES_MAX: usize = 4;
const READING_MAX: Duration = Duration::from_millis(2);
/// A beat that goes out later than this counts as late.
const LATE: Duration = Duration::from_millis(5);
/// Hosts to which something is done between two looks at what is due.
const ACTS_MAX: usize = 2_000;
/// Hosts whose records are fetched together.
const GROUP: usize = 64;
/// Probes for others that wait for an answer.
const RELAYS_MAX: usize = 65_536;
/// How long they wait.
const RELAY_LIFE: Duration = Duration::from_secs(3);
/// First beats after a restart are spread over at most this, ms.
const RESTART_SPREAD: u32 = 5_000;
struct Relay {
    back: SocketAddr,
    until: Instant,
}

pub(super) struct Engine {
    setup: MassSetup,
    shuffle: Shuffle,
    members: Vec<Member>,
    wheel: Wheel,
    post: Post,
    pace: Pace,
    draws: Draws,
    relays: BTreeMap<[u8; 16], Relay>,
    start: Instant,
    counts: Arc<Counts>,
    /// Beats of the present group of hosts.
    unsealed: Vec<(usize, Fixed)>,
    /// The controller's epoch as the newest ack that named a new one said.
    epoch: Epoch,
    /// The socket that is read next.
    read_next: usize,
}

fn millis(d: Duration) -> u32 {
    u32::try_from(d.as_millis()).unwrap_or(u32::MAX).clamp(1, HORIZON - 4_096)
}

impl Engine {
    pub(super) fn new(setup: MassSetup, shuffle: Shuffle, counts: Arc<Counts>) -> io::Result<Self> {
        let post = Post::open(setup.controller, setup.sockets, setup.shards, setup.segments)?;
        let key = |n| Member::new(setup.secret.host_key(mass_id(n), Generation(0)));
        let mut engine = Self {
            members: (0..setup.hosts).map(key).collect(),
            wheel: Wheel::new(),
            pace: Pace {
                interval: millis(setup.interval),
                jitter: (setup.jitter.clamp(0.0, 0.5) * 1_024.0) as u32,
                cadence: 10,
            },
            draws: Draws::new(setup.seed),
            relays: BTreeMap::new(),
            start: SystemClock.boottime(),
            epoch: Epoch(0),
            read_next: 0,
            unsealed: Vec::with_capacity(GROUP),
            post,
            shuffle,
            setup,
            counts,
        };
        let join = engine.setup.join.as_millis() as u64;
        let hosts = engine.members.len() as u64;
        for n in 0..engine.members.len() {
            let at = u32::try_from(n as u64 * join / hosts).unwrap_or(HORIZON);
            let member = &mut engine.members[n];
            member.start(at, engine.setup.boot);
            match engine.setup.first {
                First::Hello => {}
                First::Beat => member.introduce(),
                First::BeatUntilAcked => member.remember(),
            }
            engine.file_start(n, at);
        }
        engine.counts.alive.store(hosts, Ordering::Relaxed);
        Ok(engine)
    }

    /// Files a host for the beat that [`Member::start`] planned. The wheel may take it earlier.
    fn file_start(&mut self, n: usize, at: Tick) {
        let filed = self.wheel.file(n as u32, at);
        self.members[n].filed(filed);
    }

    /// Where its datagrams come from; host `n` uses the one with that number modulo their count.
    pub(super) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.post.addresses()
    }

    pub(super) fn run(mut self, inbox: &Receiver<Order>) {
        let mut batch = Batch::new();
        self.start = SystemClock.boottime();
        let mut acts: VecDeque<(Act, Range<usize>)> = VecDeque::new();
        loop {
            for order in inbox.try_iter() {
                match order {
                    Order::Act(act, places) => {
                        acts.push_back((act, places.start..places.end.min(self.members.len())));
                    }
                    Order::Interval(interval) => self.pace.interval = millis(interval),
                    Order::Stop => return self.post.flush(),
                }
            }
            self.act_on_some(&mut acts);
            let now = SystemClock.boottime();
            let behind = self.send_due(now);
            self.post.flush();
            self.read_all(&mut batch);
            self.post.flush();
            self.counts.send_errors.store(self.post.errors, Ordering::Relaxed);
            let cpu = machine::thread_time().as_micros() as u64;
            self.counts.cpu_us.store(cpu, Ordering::Relaxed);
            if !behind && acts.is_empty() {
                let next = self.time_of(self.wheel.next());
                // Ended early by an order; a little late otherwise, as timers are.
                std::thread::park_timeout(next.since(SystemClock.boottime()));
            }
        }
    }

    fn tick_of(&self, now: Instant) -> Tick {
        (now.since(self.start).as_millis() as u64).min(u64::from(NEVER - 1)) as u32
    }

    fn time_of(&self, tick: Tick) -> Instant {
        self.start + Duration::from_millis(u64::from(tick))
    }

    /// Does what is to be done to some hosts: to a hundred thousand in one go, all others would beat late.
    fn act_on_some(&mut self, acts: &mut VecDeque<(Act, Range<usize>)>) {
        let Some((act, places)) = acts.front_mut() else { return };
        let act = *act;
        for place in places.by_ref().take(ACTS_MAX) {
            self.act(act, self.shuffle.host(place));
        }
        if places.start >= places.end {
            acts.pop_front();
        }
    }

    fn act(&mut self, act: Act, n: usize) {
        let life = self.members[n].life;
        let now = self.wheel.next();
        match (act, life) {
            (Act::Kill, Life::Alive | Life::Paused) => self.members[n].life = Life::Gone,
            (Act::Pause, Life::Alive) => self.members[n].life = Life::Paused,
            (Act::Resume, Life::Paused) => {
                self.members[n].resume(now);
                self.file_start(n, now);
            }
            (Act::Leave, Life::Alive) => self.leave(n),
            (Act::Restart, _) => {
                let spread = self.pace.interval.min(RESTART_SPREAD);
                let at = now + self.draws.below(spread);
                self.settle(n, |m| m.start(at, 0));
                self.file_start(n, at);
            }
            (Act::Loss(share), _) => self.members[n].loss = share,
            _ => {}
        }
        let alive = u64::from(life == Life::Alive);
        let is = u64::from(self.members[n].life == Life::Alive);
        self.counts.alive.fetch_add(is.wrapping_sub(alive), Ordering::Relaxed);
    }

    /// Changes a host and keeps count of those that are settled.
    fn settle<T>(&mut self, n: usize, change: impl FnOnce(&mut Member) -> T) -> T {
        let member = &mut self.members[n];
        let was = u64::from(member.is_settled());
        let answer = change(member);
        let is = u64::from(member.is_settled());
        if was != is {
            self.counts.settled.fetch_add(is.wrapping_sub(was), Ordering::Relaxed);
        }
        answer
    }

    /// Sends what is due, at most [`TICKS_MAX`] ticks of it. Answers whether there is more.
    fn send_due(&mut self, mut now: Instant) -> bool {
        for _ in 0..TICKS_MAX {
            let tick = self.wheel.next();
            if tick > self.tick_of(now) {
                return false;
            }
            let due = self.wheel.take();
            for group in due.chunks(GROUP) {
                // Independent reads: the records of a group come from memory all at once.
                let touched: u32 =
                    group.iter().map(|n| u32::from(self.members[*n as usize].loss)).sum();
                std::hint::black_box(touched);
                now = SystemClock.boottime();
                let late = now.since(self.time_of(tick));
                let late_us = late.as_micros() as u64;
                let (mut beats, mut asked) = (0, 0);
                let load = LoadSample {
                    cpu_busy: Share::from_ratio(f64::from(self.draws.below(100)) / 100.0),
                    memory_used: Share::from_ratio(0.5),
                    ..LoadSample::UNKNOWN
                };
                for n in group {
                    self.turn(*n as usize, tick, now, &load, &mut beats, &mut asked);
                }
                self.seal();
                self.counts.beats.fetch_add(beats, Ordering::Relaxed);
                self.counts.acks_wanted.fetch_add(asked, Ordering::Relaxed);
                if late > LATE {
                    self.counts.beats_late.fetch_add(beats, Ordering::Relaxed);
                }
                self.counts.late_max_us.fetch_max(late_us, Ordering::Relaxed);
                self.counts.late_us.fetch_max(late_us, Ordering::Relaxed);
            }
            self.wheel.give_back(due);
        }
        true
    }

    /// One host's turn in a tick.
    fn turn(
        &mut self,
        n: usize,
        tick: Tick,
        now: Instant,
        load: &LoadSample,
        beats: &mut u64,
        asked: &mut u64,
    ) {
        if let Some(start) = self.members[n].starts_after(tick) {
            // That was beyond the wheel's horizon.
            return self.file_start(n, start);
        }
        let fires = self.members[n].beat_is_due(tick);
        if fires {
            // Later than the tick being worked off if we are late.
            let at = self.tick_of(now).max(tick);
            let next = self.members[n].fire(at, &self.pace, &mut self.draws);
            let filed = self.wheel.file(n as u32, next);
            self.members[n].filed(filed);
        }
        if self.members[n].hello_is_due(tick) {
            self.hello(n, now);
        }
        if !fires {
            return;
        }
        let gap = self.gap(n, now);
        let late = now.since(self.time_of(tick)).as_millis();
        let member = &mut self.members[n];
        let asks = member.ask(&self.pace);
        let stamp = member.stamp(now, gap);
        if member.shows_first(self.epoch) {
            self.counts.shown.fetch_add(1, Ordering::Relaxed);
        }
        *beats += 1;
        *asked += u64::from(asks);
        if member.loss > 0 && self.draws.below(256) < u32::from(member.loss) {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let host = mass_id(n);
        let flags = if asks { FLAG_ACK_WANTED } else { 0 };
        let beat = Beat {
            stamp,
            late_ms: u16::try_from(late).unwrap_or(u16::MAX),
            checks: 0,
            load: *load,
            round_trip: RoundTrip(1),
        };
        self.unsealed.push((n, beat.encode(&header(&member.key, host, flags))));
    }

    /// Seals the beats of a group of hosts side by side, and has them sent.
    fn seal(&mut self) {
        let Self { unsealed, members, post, setup, .. } = self;
        let sealed = unsealed.iter_mut().map(|(n, bytes)| (&members[*n].key, bytes));
        seal_many(&mut sealed.collect::<Vec<_>>());
        for (n, bytes) in unsealed.drain(..) {
            let shard = shard_of(mass_id(n), setup.shards);
            post.beat(n % post.sockets(), shard).copy_from_slice(&bytes);
        }
    }

    fn gap(&self, n: usize, now: Instant) -> Duration {
        self.time_of(self.members[n].next()).since(now).max(Duration::from_micros(1))
    }

    fn hello(&mut self, n: usize, now: Instant) {
        let (gap, tick) = (self.gap(n, now), self.tick_of(now));
        let member = &mut self.members[n];
        let stamp = member.stamp(now, gap);
        let again = member.hello_goes_out(tick, &self.pace, &mut self.draws);
        self.wheel.file(n as u32, again);
        self.counts.hellos.fetch_add(1, Ordering::Relaxed);
        if self.is_lost(n) {
            return;
        }
        let host = mass_id(n);
        let facts = MassFacts::of(n);
        let [pool, zone, rack] = facts.labels();
        let fields = [
            Field::Name(&facts.name),
            Field::AgentVersion(MassFacts::AGENT_VERSION),
            Field::Os(MassFacts::OS),
            Field::Label(pool.0, pool.1),
            Field::Label(zone.0, zone.1),
            Field::Label(rack.0, rack.1),
        ];
        let key = &self.members[n].key;
        let header = header(key, host, FLAG_ACK_WANTED);
        let interval = Duration::from_millis(u64::from(self.pace.interval));
        let mut bytes = encode_hello(&header, &stamp, 0, interval, &fields)
            .expect("names and labels this short fit a hello");
        key.seal(&mut bytes);
        let shard = shard_of(host, self.setup.shards);
        self.post.hello(n % self.post.sockets(), shard, &bytes);
    }

    fn leave(&mut self, n: usize) {
        let now = SystemClock.boottime();
        let gap = Duration::from_millis(u64::from(self.pace.interval));
        for _ in 0..2 {
            let member = &mut self.members[n];
            let stamp = member.stamp(now, gap);
            let leave = Leave { stamp, reason: LeaveReason::Shutdown, expected: Duration::ZERO };
            let mut bytes = leave.encode(&header(&member.key, mass_id(n), 0));
            member.key.seal(&mut bytes);
            let shard = shard_of(mass_id(n), self.setup.shards);
            self.post.beat(n % self.post.sockets(), shard).copy_from_slice(&bytes);
        }
        self.members[n].life = Life::Gone;
        self.counts.leaves.fetch_add(1, Ordering::Relaxed);
    }

    fn is_lost(&mut self, n: usize) -> bool {
        let share = u32::from(self.members[n].loss);
        let lost = share > 0 && self.draws.below(256) < share;
        if lost {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        lost
    }

    fn read_all(&mut self, batch: &mut Batch) {
        let sockets = self.post.sockets();
        let begin = SystemClock.boottime();
        for _ in 0..sockets {
            self.read(self.read_next, batch);
            self.read_next = (self.read_next + 1) % sockets;
            if SystemClock.boottime().since(begin) > READING_MAX {
                return;
            }
        }
    }

    fn read(&mut self, socket: usize, batch: &mut Batch) {
        for _ in 0..BATCHES_MAX {
            let more = self.post.receive(socket, batch);
            let now = SystemClock.boottime();
            for (bytes, from) in batch.iter() {
                self.hear(socket, bytes, from, now);
            }
            if !more {
                return;
            }
        }
    }

    /// Takes one datagram.
    fn hear(&mut self, socket: usize, bytes: &[u8], from: SocketAddr, now: Instant) {
        let Ok(datagram) = wire::decode(bytes) else {
            self.counts.invalid.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if let Message::ProbeReply(reply) = &datagram.message {
            let Ok(bytes) = bytes.try_into() else { return };
            return self.bring_back(socket, datagram.header.host, reply, bytes, now);
        }
        let number = mass_number(&datagram.header.host);
        let Some(n) = number.filter(|n| *n < self.members.len()) else {
            self.counts.invalid.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.members[n].life != Life::Alive {
            self.counts.for_the_dead.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !self.members[n].key.verify(&datagram) {
            self.counts.invalid.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.is_lost(n) {
            return;
        }
        match datagram.message {
            Message::Ack(ack) => {
                let (flags, tick) = (datagram.header.flags, self.tick_of(now));
                if ack.epoch != self.epoch {
                    self.epoch = ack.epoch;
                    self.counts.shown.store(0, Ordering::Relaxed);
                }
                if ack.cadence != 0 {
                    self.pace.cadence = ack.cadence;
                }
                match self.settle(n, |m| m.take_ack(&ack, flags, tick)) {
                    Taken::Unmatched => {
                        self.counts.acks_unmatched.fetch_add(1, Ordering::Relaxed);
                    }
                    Taken::Yes { hello_at, challenge } => {
                        self.counts.acks.fetch_add(1, Ordering::Relaxed);
                        self.counts.challenges.fetch_add(u64::from(challenge), Ordering::Relaxed);
                        if hello_at != NEVER {
                            self.wheel.file(n as u32, hello_at);
                        }
                    }
                }
            }
            Message::Probe(probe) => {
                let gap = self.gap(n, now);
                self.settle(n, |m| m.learn(probe.epoch));
                let member = &mut self.members[n];
                let reply = ProbeReply { stamp: member.stamp(now, gap), nonce: probe.nonce };
                let mut answer: Fixed = reply.encode(&header(&member.key, mass_id(n), 0));
                member.key.seal(&mut answer);
                self.counts.probes_answered.fetch_add(1, Ordering::Relaxed);
                let shard = shard_of(mass_id(n), self.setup.shards);
                self.post.answer(socket, from, shard, &answer);
            }
            Message::ProbeVia(via) => {
                let Ok(inner) = wire::decode(via.probe) else { return };
                let Message::Probe(probe) = inner.message else { return };
                if self.relays.len() >= RELAYS_MAX {
                    self.relays.retain(|_, r| now < r.until);
                }
                if self.relays.len() < RELAYS_MAX {
                    let relay = Relay { back: from, until: now + RELAY_LIFE };
                    self.relays.insert(probe.nonce, relay);
                    self.counts.probes_passed_on.fetch_add(1, Ordering::Relaxed);
                    // An agent is no shard: its address is not the controller's.
                    self.post.answer(socket, via.to, 0, via.probe);
                }
            }
            _ => {
                self.counts.invalid.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Brings another host's answer to the controller that waits for it.
    fn bring_back(
        &mut self,
        socket: usize,
        host: HostId,
        reply: &ProbeReply,
        bytes: &Fixed,
        now: Instant,
    ) {
        let relay = self.relays.remove(&reply.nonce).filter(|r| now < r.until);
        if let Some(relay) = relay {
            self.counts.replies_brought_back.fetch_add(1, Ordering::Relaxed);
            let shard = shard_of(host, self.setup.shards);
            self.post.answer(socket, relay.back, shard, bytes);
        }
    }
}

fn header(key: &heartwatch_common::auth::HostKey, host: HostId, flags: u8) -> Header {
    Header { host, key_id: key.key_id(), generation: key.generation(), flags }
}
