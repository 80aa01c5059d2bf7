//! The shell around the production values of a controller, in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::auth::Keyring;
use heartwatch_common::backoff::Backoff;
use heartwatch_common::id::{ControllerId, Epoch, HostId};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::{Instant, Wall};
use heartwatch_common::wire::{self, Message};
use heartwatch_controller::config::{RawConfig, Rule};
use heartwatch_controller::control::Pause;
use heartwatch_controller::delivery::outcome::Outcome;
use heartwatch_controller::delivery::schedule::{self, NOT_YET_WAIT, Rescan, Schedule};
use heartwatch_controller::detector::Settings;
use heartwatch_controller::detector::doubt::Waking;
use heartwatch_controller::detector::host::{Transition, Turn};
use heartwatch_controller::event::{EventKind, State};
use heartwatch_controller::intervals::Assigned;
use heartwatch_controller::metrics::{ShardMetrics, get};
use heartwatch_controller::policy::driver::known_of;
use heartwatch_controller::policy::guard::Target;
use heartwatch_controller::policy::holds::Word;
use heartwatch_controller::policy::placement::{Depth, Draw, Pool, Seen, Wanted, find};
use heartwatch_controller::policy::{Author, Order, Part, Policy, new_row, order_of};
use heartwatch_controller::shard::core::{Identity, Send, ShardCore, Via};
use heartwatch_controller::shard::notices::Notice;
use heartwatch_controller::shard::watch::Watch;
use heartwatch_controller::store::sqlite::Db;
use heartwatch_controller::store::{
    Begin, Cursor, DeliveryFilter, DeliveryId, DeliveryRow, DeliveryState, EventRow, Finish,
    FinishVerdict, HostRow, NewEvent, Receivers,
};
use heartwatch_controller::view::LiveId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::fault::{Fault, Plan};
use super::host::{Truth, secret};
use super::receiver::Reception;
use super::{Happening, PASS, World};
use crate::invariants::Heard;

const RECEIVERS: [&str; 2] = ["orchestrator", "pager"];

struct Mail {
    from: SocketAddr,
    bytes: Vec<u8>,
    stamp_ns: i64,
    at: Instant,
}

#[derive(Default)]
struct Socket {
    mail: VecDeque<Mail>,
    drops: u64,
}

/// Something to be written.
enum Work {
    Event(Box<NewEvent>),
    Row(HostRow),
    Release(HostId, Vec<String>),
    Part(Box<Part>),
    Cancel(HostId, String),
    Guard(String),
}

/// The controller's process and its disk.
pub(super) struct SimController {
    pub(super) life: u32,
    pub(super) running: bool,
    pub(super) stopped_until: Option<Instant>,
    /// The machine is suspended, for so long.
    pub(super) suspended: Option<Duration>,
    /// How long it was in all: its monotonic clock stood still.
    asleep: Duration,
    /// When the present suspend began.
    sleeps_since: Instant,
    /// The same, since the last pass.
    slept: Duration,
    wall_offset_ms: i64,
    /// Somebody floods its beat socket: that share of what arrives is dropped.
    pub(super) flood: Option<f64>,
    doubt_max: Duration,
    metrics: Arc<ShardMetrics>,
    pub(super) disk_full: bool,
    /// Since when nothing has happened to its process and clock.
    pub(super) calm_since: Instant,
    buffer_len: usize,
    read_max: usize,
    epoch: Epoch,
    core: Option<ShardCore>,
    policy: Policy,
    /// The disk: it survives the process.
    db: Db,
    schedule: Schedule,
    rows: BTreeMap<HostId, HostRow>,
    sockets: [Socket; 2],
    watches: [Watch; 2],
    work: VecDeque<Work>,
    unfinished: Vec<(DeliveryId, Finish, FinishVerdict)>,
    unreachables: Vec<Vec<u8>>,
    rescan_at: Instant,
    release_at: Option<Instant>,
    rng: StdRng,
}

fn rules() -> Vec<Rule> {
    let rule = |name: &str, events: &[EventKind], receiver: &str| Rule {
        name: name.to_owned(),
        events: events.iter().copied().collect(),
        receivers: vec![receiver.to_owned()],
        ..Rule::default()
    };
    vec![
        rule("failover", &[EventKind::HostDown, EventKind::HostRecovered], RECEIVERS[0]),
        rule("everything", &EventKind::ALL, RECEIVERS[1]),
    ]
}

fn schedule() -> Schedule {
    let policy = schedule::Policy {
        concurrency: 4,
        backoff: Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(20) },
        give_up_after: Duration::from_secs(25 * 3_600),
        queue_len_max: 1_000,
        batch_len_max: 1,
        rate: None,
    };
    Schedule::new(RECEIVERS.iter().map(|r| ((*r).to_owned(), policy)).collect())
}

fn author() -> Author {
    Author { id: ControllerId(1), name: "simulated".to_owned() }
}

impl SimController {
    pub(super) fn new(now: Instant, rng: &mut StdRng, plan: &Plan) -> Self {
        let db = Db::memory().expect("memory holds a database");
        let mut controller = Self {
            life: 0,
            running: true,
            stopped_until: None,
            suspended: None,
            asleep: Duration::ZERO,
            sleeps_since: now,
            slept: Duration::ZERO,
            wall_offset_ms: 0,
            flood: None,
            doubt_max: plan.doubt_max,
            metrics: Arc::default(),
            disk_full: false,
            calm_since: now,
            buffer_len: plan.buffer_len,
            read_max: plan.read_max,
            epoch: Epoch(1),
            core: None,
            policy: Policy::new(author(), rules()),
            db,
            schedule: schedule(),
            rows: BTreeMap::new(),
            sockets: Default::default(),
            watches: [Watch::new(now), Watch::new(now)],
            work: VecDeque::new(),
            unfinished: Vec::new(),
            unreachables: Vec::new(),
            rescan_at: now,
            release_at: None,
            rng: StdRng::seed_from_u64(rng.random()),
        };
        controller.start(now, Wall(1_700_000_000_000));
        controller
    }

    /// A start of the process: everything but the disk is new.
    fn start(&mut self, now: Instant, wall: Wall) {
        self.life += 1;
        self.running = true;
        self.stopped_until = None;
        self.calm_since = now;
        self.epoch = Epoch(self.rng.random_range(1..=u32::MAX));
        let config = RawConfig::default().check().expect("the defaults are good");
        let (domains, knobs) = (config.domain_labels, config.knobs);
        let config = config.detector;
        let identity = Identity {
            shard: 0,
            controller: ControllerId(1),
            epoch: self.epoch,
            keyring: Keyring::new(vec![secret()]).expect("one secret makes a ring"),
            enrolled: Arc::default(),
            assigned: Arc::new(Assigned::fixed(Duration::ZERO, 10)),
            knobs: Arc::new(knobs.clone()),
            domains: domains.clone(),
            live: Arc::default(),
            seed: self.rng.random(),
        };
        // What was counted before is kept, for the ledger.
        let metrics = Arc::clone(&self.metrics);
        let settings = Settings { doubt_max: self.doubt_max, ..Settings::new(&config) };
        let monotonic = now - self.asleep;
        let mut core = ShardCore::new(identity, settings, metrics, monotonic);
        self.rows =
            self.db.hosts().expect("reading works").into_iter().map(|r| (r.id, r)).collect();
        for row in self.rows.values() {
            core.register(known_of(row, &domains, &knobs, wall, LiveId::NONE), monotonic);
        }
        self.core = Some(core);
        self.start_policy(monotonic, wall);
        self.schedule = schedule();
        self.sockets = Default::default();
        self.watches = [Watch::new(monotonic), Watch::new(monotonic)];
        self.work.clear();
        self.unfinished.clear();
        self.unreachables.clear();
        self.rescan_at = now;
        self.release_at = Some(now + config.restart_grace);
    }

    /// The policy knows what the disk knows.
    fn start_policy(&mut self, now: Instant, wall: Wall) {
        self.policy = Policy::new(author(), rules());
        self.rows.values().for_each(|row| self.policy.register(row, now, wall));
        for delivery in self.journal().1 {
            if let Some(host) = delivery.host.filter(|_| delivery.state == DeliveryState::Held) {
                let ms = wall.0.saturating_sub(delivery.created_ms.0);
                let held_for = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
                self.policy.restore(&delivery, self.rows.get(&host), held_for);
            }
        }
        let saved = self.db.get("guard").expect("reading works");
        self.policy.resume(saved.as_deref(), wall).expect("what was saved can be read");
    }

    fn follow_orders(&mut self, wall: Wall) {
        let rows = &self.rows;
        for order in self.policy.orders(|host| rows.get(&host).cloned(), wall, &mut self.rng) {
            self.work.push_back(match order {
                Order::Event(event) => Work::Event(event),
                Order::Release(host, but) => Work::Release(host, but),
                Order::Part(part) => Work::Part(part),
                Order::Cancel(host, why) => Work::Cancel(host, why),
            });
        }
    }

    /// An operator approves all that is held: the world has healed, so what is still dead is dead.
    pub(super) fn approve_all(&mut self, wall: Wall) {
        let word = Word { by: "operator".to_owned(), reason: "healed".to_owned() };
        let fleet = Target::Domain(BTreeMap::new());
        self.policy.approve(&fleet, &word, None, wall, &mut self.rng);
        self.follow_orders(wall);
    }

    pub(super) fn heal(&mut self) {
        self.disk_full = false;
        self.flood = None;
        self.buffer_len = 4_096;
    }

    /// Whether the process listens right now: an agent that says goodbye is heard.
    pub(super) fn hears(&self, _host: usize) -> bool {
        self.running
    }

    /// Whether a probe with that nonce is being waited for.
    fn asked(&self, id: HostId, nonce: &[u8; 16], now: Instant) -> bool {
        let Some(detector) = self.core.as_ref().map(ShardCore::detector) else { return false };
        detector.slot(id).is_some_and(|slot| detector.answers_probe(slot, nonce, now))
    }

    /// Whether its kernel dropped datagrams in this life of the process.
    pub(super) fn has_dropped(&self) -> bool {
        self.sockets.iter().any(|s| s.drops > 0)
    }

    /// Whether its detector holds a host to be alive.
    pub(super) fn holds_alive(&self, id: HostId) -> bool {
        self.core.as_ref().is_some_and(|c| c.detector().state(id) == Some(State::Alive))
    }

    /// Challenges sent so far.
    pub(super) fn challenges(&self) -> u64 {
        get(&self.metrics.challenges)
    }

    /// What the detector grants a host now.
    fn margin(&self, id: HostId, now: Instant) -> Option<Duration> {
        let why = self.core.as_ref()?.why(id, now - self.asleep, Duration::ZERO)?;
        Some(Duration::from_secs_f64(why.margin_ms? / 1e3))
    }

    /// How it stands with a host of which a beat is expected.
    fn heard(&self, id: HostId, now: Instant) -> Option<Heard> {
        let why = self.core.as_ref()?.why(id, now - self.asleep, Duration::ZERO)?;
        let left = Duration::from_millis(u64::try_from(why.deadline_in_ms?).unwrap_or(0));
        Some(Heard {
            margin: Duration::from_secs_f64(why.margin_ms? / 1e3),
            deadline: now + left,
            due_in: Duration::from_millis(u64::try_from(why.expected_in_ms?).unwrap_or(0)),
        })
    }

    pub(super) fn row(&self, id: HostId) -> Option<&HostRow> {
        self.rows.get(&id)
    }

    pub(super) fn unreachable(&mut self, quoted: Vec<u8>) {
        if self.running {
            self.unreachables.push(quoted);
        }
    }

    pub(super) fn events_by_kind(&self) -> BTreeMap<&'static str, u64> {
        let mut kinds = BTreeMap::new();
        for event in self.journal().0 {
            *kinds.entry(event.kind.as_str()).or_default() += 1;
        }
        kinds
    }

    pub(super) fn journal(&self) -> (Vec<EventRow>, Vec<DeliveryRow>) {
        let (mut events, mut after) = (Vec::new(), Cursor(0));
        loop {
            let page = self.db.events(after, None, 1_000).expect("reading works");
            let Some(last) = page.last() else { break };
            after = last.cursor;
            events.extend(page);
        }
        let (mut deliveries, mut filter) = (Vec::new(), DeliveryFilter::default());
        loop {
            let page = self.db.deliveries(&filter, 1_000).expect("reading works");
            let Some(last) = page.last() else { break };
            filter.after = Some(last.id);
            deliveries.extend(page);
        }
        (events, deliveries)
    }

    /// Events that were decided and never written.
    pub(super) fn unwritten(&self) -> Vec<EventKind> {
        self.work
            .iter()
            .filter_map(|w| match w {
                Work::Event(e) => Some(e.kind),
                _ => None,
            })
            .collect()
    }

    /// Has what own doubt held judged again, once every host has had its chance.
    fn release_own(&mut self) {
        if self.release_at.is_none() {
            self.policy.release_own();
        }
    }
}

impl World {
    fn wall(&self) -> Wall {
        Wall(self.wall_ms())
    }

    /// Hosts that live, undisturbed, and are taken for alive.
    fn calm(&self) -> impl Iterator<Item = HostId> {
        let calm = self.hosts.iter().enumerate().filter(|(i, h)| {
            h.truth == Truth::Running
                && h.disturbed_until < self.now
                && !self.net.cut_up[*i]
                && self.controller.row(h.id).is_some_and(|r| r.state == State::Alive)
        });
        calm.map(|(_, h)| h.id)
    }

    /// Margins of the hosts that live, undisturbed, and are taken for alive.
    pub(super) fn margins(&self) -> BTreeMap<HostId, Duration> {
        let c = &self.controller;
        self.calm().filter_map(|id| Some((id, c.margin(id, self.now)?))).collect()
    }

    /// The controller is about to hear nothing: its link is cut, or it stands still.
    pub(super) fn deaf_begins(&mut self, cut: bool) {
        let c = &self.controller;
        if c.running && c.stopped_until.is_none() {
            let hosts = self.calm().filter_map(|id| Some((id, c.heard(id, self.now)?))).collect();
            self.ledger.deaf_begins(self.now, &hosts, cut);
        }
    }

    /// It hears again: what it learned shows in some seconds.
    pub(super) fn deaf_ends(&mut self) {
        let what = Fault::DeafEnded { ended: self.now };
        self.at(self.now + Duration::from_secs(5), Happening::Fault(what));
    }

    pub(super) fn suspend_controller(&mut self, span: Duration) {
        let c = &mut self.controller;
        if c.running && c.suspended.is_none() && c.stopped_until.is_none() {
            c.suspended = Some(span);
            c.stopped_until = Some(self.now + span);
            c.sleeps_since = self.now;
            c.calm_since = self.now + span;
        }
    }

    pub(super) fn resume_controller(&mut self, span: Duration) {
        let c = &mut self.controller;
        if c.suspended != Some(span) {
            return;
        }
        let slept = self.now.since(c.sleeps_since);
        (c.suspended, c.stopped_until) = (None, None);
        c.asleep += slept;
        c.slept += slept;
        c.calm_since = self.now;
        self.ledger.controller_back(self.now);
    }

    fn look_for_the_dead(&mut self) {
        let c = &self.controller;
        // A reader that takes one at a time is behind for longer than any bound.
        if c.read_max == 1 {
            return;
        }
        for host in &self.hosts {
            let Some(state) = c.row(host.id).map(|r| r.state) else { continue };
            let Some(margin) = c.margin(host.id, self.now) else { continue };
            self.ledger.check_found(host, state, margin, c.doubt_max, self.now);
        }
    }

    /// A datagram reaches the controller's machine.
    pub(super) fn arrive(
        &mut self,
        from: SocketAddr,
        probes: bool,
        bytes: Vec<u8>,
        original: Option<usize>,
    ) {
        self.datagrams += 1;
        let stamp_ns = self.wall_ms() * 1_000_000 + (self.now.0 % 1_000_000) as i64;
        let c = &mut self.controller;
        if !c.running || c.suspended.is_some() {
            return;
        }
        let flooded = !probes && c.flood.is_some_and(|share| self.rng.random_bool(share));
        let socket = &mut c.sockets[usize::from(probes)];
        if flooded || socket.mail.len() >= c.buffer_len {
            socket.drops += 1;
            return;
        }
        // What it proves, if it proves anything, is noted before the controller has seen it.
        if let Some(host) = original
            && let Ok(datagram) = wire::decode(&bytes)
            && let Some(stamp) = datagram.message.stamp()
        {
            let id = datagram.header.host;
            // Of one that proved nothing since the start, an answer to a challenge is wanted first.
            let proved = c.core.as_ref().is_some_and(|core| {
                let d = core.detector();
                d.slot(id).is_some_and(|slot| d.newest(slot).baseline_ns.is_some())
            });
            let known = c.rows.get(&id).filter(|r| r.state != State::Pending);
            // What a host brings back for another is no proof of life of either.
            let own = id == self.hosts[host].id;
            // A reply counts for what it answers, however new it is: it may have come through others.
            let asked = match datagram.message {
                Message::ProbeReply(reply) => c.asked(id, &reply.nonce, self.now - c.asleep),
                _ => true,
            };
            if own && asked && stamp.epoch == c.epoch && known.is_some_and(|r| r.boot == stamp.boot)
            {
                self.ledger.fresh(id, stamp, proved, self.now);
            }
        }
        c.sockets[usize::from(probes)].mail.push_back(Mail { from, bytes, stamp_ns, at: self.now });
    }

    /// The controller looks at its sockets, judges, writes and sends.
    pub(super) fn pass(&mut self, life: u32) {
        if life != self.controller.life || !self.controller.running {
            return;
        }
        // A reader that takes one at a time is a slow one too: after a stop it needs many seconds for its
        // mail, longer than doubt alone would excuse anybody.
        let every = if self.controller.read_max == 1 { PASS * 4 } else { PASS };
        self.at(self.now + every, Happening::Pass { life });
        if self.controller.stopped_until.is_some_and(|u| u > self.now) {
            return;
        }
        let (now, wall) = (self.now, self.wall());
        let wall_ns = self.wall_ms() * 1_000_000 + (now.0 % 1_000_000) as i64;
        let mut sends: Vec<Send> = Vec::new();
        let c = &mut self.controller;
        let Some(core) = &mut c.core else { return };
        // The machine's own clock stood still while it was suspended.
        let now = now - c.asleep;
        let waking = Waking {
            asked: every,
            suspended: std::mem::take(&mut c.slept),
            wall_step_ms: self.wall_offset_ms - c.wall_offset_ms,
        };
        c.wall_offset_ms = self.wall_offset_ms;
        core.wake(now, &waking);
        let (mut received, mut dropped) = (0, 0);
        if let Some(share) = c.flood {
            // Of the junk as much as of the beats.
            let junk = 200.0;
            received += (junk * (1.0 - share)) as u64;
            dropped += (junk * share) as u64;
        }
        for (i, via) in [Via::Beats(0), Via::Probes].into_iter().enumerate() {
            let (socket, watch) = (&mut c.sockets[i], &mut c.watches[i]);
            let n = socket.mail.len().min(c.read_max);
            for mail in socket.mail.drain(..n) {
                let arrival = watch.arrival(Some(mail.stamp_ns), wall_ns, now);
                core.receive(&mail.bytes, mail.from, via, arrival, now, &mut sends);
            }
            if n < c.read_max {
                watch.found_empty(now);
            }
            received += n as u64;
            dropped += socket.drops - watch.drops;
            watch.drops = socket.drops;
        }
        for quoted in c.unreachables.drain(..) {
            core.unreachable(&quoted, now);
        }
        let seen = c.watches[0].advance().min(now);
        core.heard(now, seen, received, dropped);
        let seen_probes = c.watches[1].advance().min(now);
        core.judge(seen, seen_probes, now, &mut sends);
        let mut notices = Vec::new();
        while let Some(notice) = core.notices().pop() {
            notices.push(notice);
        }
        for send in sends {
            self.send_to_host(send.to, send.via == Via::Probes, send.bytes.as_ref().to_vec());
        }
        for notice in notices {
            self.hear(notice, wall);
        }
        self.controller.follow_orders(wall);
        let now = self.now;
        if now >= self.look_at {
            self.look_at = now + Duration::from_secs(1);
            self.look_for_the_dead();
        }
        if self.controller.release_at.is_some_and(|at| now >= at) {
            self.controller.release_at = None;
            self.controller.release_own();
        }
        if now >= self.approve_at {
            self.approve_at = now + Duration::from_secs(5);
            self.controller.approve_all(wall);
        }
        let c = &mut self.controller;
        c.policy.step(now - c.asleep);
        c.follow_orders(wall);
        if let Some(text) = c.policy.save(wall) {
            c.work.push_back(Work::Guard(text));
        }
        self.write(wall);
        self.deliver(wall);
    }

    fn hear(&mut self, notice: Notice, wall: Wall) {
        match notice {
            Notice::Facts(facts) => {
                let c = &mut self.controller;
                let mut row = match c.rows.get(&facts.host) {
                    Some(row) => row.clone(),
                    None => new_row(facts.host, wall),
                };
                row.name = facts.name;
                row.labels = facts.labels;
                c.policy.changed(c.rows.get(&facts.host), Some(&row));
                c.rows.insert(row.id, row.clone());
                c.work.push_back(Work::Row(row));
            }
            Notice::Moved { host, address } => {
                if let Some(row) = self.controller.rows.get_mut(&host) {
                    row.address = Some(address);
                    let row = row.clone();
                    self.controller.work.push_back(Work::Row(row));
                }
            }
            Notice::Blind { shard, blind } => {
                let c = &mut self.controller;
                if c.policy.set_blind(shard, blind) {
                    let kind = if blind {
                        EventKind::ControllerBlind
                    } else {
                        EventKind::ControllerSighted
                    };
                    let event = c.policy.own_event(kind, "simulated", wall, &mut c.rng);
                    c.work.push_back(Work::Event(Box::new(event)));
                    c.release_own();
                    self.tell(kind.as_str().to_owned());
                }
            }
            Notice::Turn(turn) => self.turn(&turn, wall),
        }
    }

    fn turn(&mut self, turn: &Transition, wall: Wall) {
        let index = self.host_at(turn.host).expect("only simulated hosts beat");
        let host = &self.hosts[index];
        // A reader that is far behind judges as of what it has read; what came later counts later.
        let c = &self.controller;
        let unread = c.sockets.iter().filter_map(|s| s.mail.front()).map(|m| m.at).min();
        let as_of = unread.filter(|_| c.read_max == 1).unwrap_or(self.now);
        match turn.turn {
            Turn::Down(_) => {
                self.ledger.check_down(host, as_of);
                if self.net.cut_link && !self.net.has_tail() && host.truth == Truth::Running {
                    let doubt_max = self.controller.doubt_max;
                    self.ledger.down_during_cut(host.id, self.now, doubt_max);
                }
                let voucher = self.settled_voucher(index);
                self.ledger.check_down_despite(&self.hosts[index], voucher);
            }
            Turn::Unreachable => self.ledger.check_unreachable(host, self.now),
            Turn::Suspect => self.ledger.check_suspect(host, as_of),
            Turn::Joined | Turn::Recovered { .. } | Turn::Restarted => {
                self.ledger.check_alive(host, turn.at + self.controller.asleep);
            }
            _ => {}
        }
        self.tell(format!("host {index} {:?} boot {}", turn.turn, turn.boot));
        let c = &mut self.controller;
        let Some(row) = c.rows.get(&turn.host).cloned() else { return };
        let rows = &c.rows;
        let candidates = |wanted: &Wanted<'_>| find(&Rows(rows), wanted, Depth::ORDER, 0);
        let decision = c.policy.take(&row, turn, wall, candidates, &mut c.rng);
        if turn.state == State::Alive {
            self.hosts[index].joined = true;
        }
        let c = &mut self.controller;
        c.rows.insert(turn.host, decision.row.clone());
        match decision.event {
            Some(event) => c.work.push_back(Work::Event(Box::new(event))),
            None => c.work.push_back(Work::Row(decision.row)),
        }
    }

    /// Writes what waits, in order, as far as the disk lets us.
    fn write(&mut self, wall: Wall) {
        let now = self.now;
        let c = &mut self.controller;
        if c.disk_full {
            return;
        }
        while let Some(work) = c.work.pop_front() {
            let due = match work {
                Work::Event(event) => {
                    let appended = c.db.append(&[*event]).expect("the disk has room");
                    let mut due = Vec::new();
                    for one in appended {
                        c.schedule.settled(&one.settled, now);
                        due.extend(one.deliveries);
                    }
                    due
                }
                Work::Row(row) => {
                    c.db.save_hosts(&[row]).expect("the disk has room");
                    Vec::new()
                }
                Work::Release(host, but) => {
                    let row = c.rows.get(&host);
                    let verdict = Policy::rejudge(row, order_of(row), row.and_then(|r| r.incident));
                    let which = Receivers::AllBut(but);
                    c.db.release(host, &which, verdict, wall).expect("the disk has room")
                }
                Work::Part(part) => {
                    let row = c.rows.get(&part.host);
                    let still = || Policy::rejudge(row, part.kind, part.incident);
                    let verdict = part.go.and_then(|()| still());
                    let which = Receivers::Only(part.receiver);
                    c.db.release(part.host, &which, verdict, wall).expect("the disk has room")
                }
                Work::Cancel(host, why) => {
                    c.db.release(host, &Receivers::All, Err(why), wall).expect("the disk has room")
                }
                Work::Guard(text) => {
                    c.db.put("guard", Some(&text)).expect("the disk has room");
                    Vec::new()
                }
            };
            for one in due {
                c.schedule.push(&one, now);
            }
        }
    }

    /// The delivery's shell: ask the store, begin, post; and journal how it ended.
    fn deliver(&mut self, wall: Wall) {
        let now = self.now;
        let c = &mut self.controller;
        if c.disk_full {
            return;
        }
        for (id, finish, verdict) in std::mem::take(&mut c.unfinished) {
            let due = c.db.finish_attempt(id, &finish).expect("the disk has room");
            c.schedule.finished(id, &verdict, now);
            for one in due {
                c.schedule.push(&one, now);
            }
        }
        if now >= c.rescan_at {
            c.rescan_at = now + Duration::from_secs(1);
            c.schedule.rescan(Rescan::All);
        }
        for read in c.schedule.reads() {
            let page = c.db.pending(&read.receiver, read.after, read.limit).expect("reading works");
            c.schedule.read(&read, &page, now);
        }
        let mut posts = Vec::new();
        for id in c.schedule.next_due(now) {
            let receiver = c.schedule.receiver_of(id).unwrap_or_default().to_owned();
            match c.db.begin_attempt(id, wall).expect("the disk has room") {
                Begin::Go(outgoing) => {
                    let body: serde_json::Value =
                        serde_json::from_str(&outgoing.body).expect("bodies are JSON");
                    let host = body["data"]["host"]["id"].as_str().and_then(|h| h.parse().ok());
                    let row = host.and_then(|h: HostId| c.rows.get(&h));
                    let incident = body["data"]["incident"].as_str().and_then(|i| i.parse().ok());
                    self.ledger.check_order_is_true(row, outgoing.kind, incident);
                    posts.push((id, receiver, outgoing, host));
                }
                Begin::Gone => c.schedule.gone(id, now),
                Begin::NotYet => c.schedule.postponed(id, NOT_YET_WAIT, now),
            }
        }
        let life = c.life;
        for (delivery, receiver, outgoing, host) in posts {
            let reception = Reception {
                at: now,
                event: outgoing.event,
                kind: outgoing.kind,
                host,
                token: outgoing.token.map(|t| t.0),
                body: outgoing.body,
                receiver,
            };
            let delay = Duration::from_micros(self.rng.random_range(100..30_000));
            self.at(now + delay, Happening::Post { life, delivery, reception });
        }
    }

    /// The answer to an attempt reaches the controller, if it is still the one that asked.
    pub(super) fn answer(&mut self, life: u32, delivery: DeliveryId, outcome: &Outcome) {
        let (now, at) = (self.now, self.wall());
        let c = &mut self.controller;
        if life != c.life || !c.running {
            return;
        }
        if let Some(until) = c.stopped_until.filter(|u| *u > now) {
            let outcome = outcome.clone();
            return self.at(until, Happening::Answer { life, delivery, outcome });
        }
        let verdict = c.schedule.judge(delivery, outcome, now, &mut c.rng);
        let finish = Finish {
            at,
            status: outcome.status,
            detail: outcome.detail.clone(),
            verdict: verdict.clone(),
        };
        c.unfinished.push((delivery, finish, verdict));
    }

    pub(super) fn kill_controller(&mut self) {
        self.controller.running = false;
        self.controller.core = None;
        self.tell("controller killed".to_owned());
    }

    pub(super) fn start_controller(&mut self) {
        if self.controller.running {
            return;
        }
        let (now, wall) = (self.now, self.wall());
        self.controller.start(now, wall);
        self.ledger.controller_back(now);
        let out = |r: &&HostRow| matches!(r.state, State::Suspect | State::Down);
        let strict = self.controller.rows.values().filter(out).map(|r| r.id).collect();
        self.ledger.controller_started(strict);
        let life = self.controller.life;
        self.tell("controller started".to_owned());
        self.at(now, Happening::Pass { life });
    }

    pub(super) fn pause_controller(&mut self, span: Duration) {
        let until_ms = Wall(self.wall_ms() + span.as_millis() as i64);
        self.controller.policy.set_pause(Some(Pause { until_ms, reason: "drill".to_owned() }));
    }

    pub(super) fn unpause_controller(&mut self) {
        self.controller.policy.set_pause(None);
        self.controller.release_own();
    }
}

/// The registry as placement looks at it: hosts whose loads nobody knows better than another's.
struct Rows<'a>(&'a BTreeMap<HostId, HostRow>);

impl Pool for Rows<'_> {
    fn look(
        &self,
        failed: &HostRow,
        same: &[String],
        _: usize,
        _: Draw,
        seen: &mut dyn FnMut(Seen),
    ) -> bool {
        let equal = |row: &&HostRow| {
            row.id != failed.id && same.iter().all(|l| row.labels.get(l) == failed.labels.get(l))
        };
        for row in self.0.values().filter(equal) {
            let load = Some(LoadSample::UNKNOWN);
            seen(Seen { id: row.id, state: row.state, duplicate: row.duplicate, load });
        }
        true
    }

    fn row(&self, id: HostId) -> Option<HostRow> {
        self.0.get(&id).cloned()
    }
}
