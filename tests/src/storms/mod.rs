//! Storms, in virtual time: a fleet in zones, racks and power trees, and the production policy with its
//! guard, over the production store.
//!
//! What is simulated is what the detector would say ([`crate::sim`] runs the real one, with fewer hosts): a
//! silent host is suspect after the rest of its gap and a margin, and down after its probes; one that is
//! heard again before is not. Each seed draws a fleet, the guard's settings, and a mix of what befalls it:
//! single deaths, dead racks and power trees, slow cascades, a cut of the controller's own link, mass
//! flapping, restarts, blindness, an operator. Then all is healed but for the dead, an operator approves what
//! is still held, and all must be settled.
//!
//! What must hold is in `promises`, checked as it goes against what a loop over all hosts says.

mod fleet;
mod maintenance;
mod promises;
mod story;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use heartwatch_common::id::{Boot, ControllerId, HostId};
use heartwatch_common::time::{Instant, Wall};
use heartwatch_controller::config::Rule;
use heartwatch_controller::control::Pause;
use heartwatch_controller::detector::host::{Evidence, Transition, Turn};
use heartwatch_controller::event::{Cause, EventKind, State};
use heartwatch_controller::policy::expression::Expression;
use heartwatch_controller::policy::guard::Target;
use heartwatch_controller::policy::holds::Word;
use heartwatch_controller::policy::maintenance::Window;
use heartwatch_controller::policy::placement::Placement;
use heartwatch_controller::policy::{Author, Order, Part, Policy, order_of};
use heartwatch_controller::store::sqlite::Db;
use heartwatch_controller::store::{
    Begin, DeliveryFilter, DeliveryId, DeliveryState, Due, Finish, FinishVerdict, HostRow,
    NewEvent, Receivers,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::invariants::Violation;
use fleet::Host;
use promises::Promises;
use story::{Happening, Patience, Plan};

/// Where failovers go; never told `always`.
const ORCHESTRATOR: &str = "orchestrator";
/// Where failovers go only after a delay, within some hours, and at a rate, as the seed says.
const PATIENT: &str = "patient";
/// Who is told of everything, at once.
const PAGER: &str = "pager";
/// Things happen before this; then the world must heal.
const STORIES_UNTIL: Duration = Duration::from_secs(25 * 60);
/// From then on somebody approves what is held.
const APPROVED_FROM: Duration = Duration::from_secs(32 * 60);
/// The run ends here.
const END: Duration = Duration::from_secs(46 * 60);
/// How often the policy's clock ticks.
const TICK: Duration = Duration::from_millis(500);
/// From a start of the controller until what was held may be judged again.
const GRACE: Duration = Duration::from_secs(10);

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Hash of all that happened, in order.
    pub trace: String,
    /// Promises that were broken; empty is good.
    pub violations: Vec<Violation>,
    /// Events journaled, by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Failovers that went out.
    pub failovers: u64,
    /// Failovers that were looked at against the naive count of silent hosts.
    pub looked: u64,
    /// What happened, one line each, for people.
    pub story: Vec<String>,
}

enum Work {
    Event(Box<NewEvent>),
    Row(HostId),
    Release(HostId, Vec<String>),
    Part(Box<Part>),
    Cancel(HostId, String),
}

/// The world.
struct World {
    now: Instant,
    rng: StdRng,
    queue: BTreeMap<(Instant, u64), Happening>,
    queued: u64,
    plan: Plan,
    hosts: Vec<Host>,
    index: BTreeMap<HostId, usize>,
    rows: BTreeMap<HostId, HostRow>,
    db: Db,
    policy: Option<Policy>,
    release_at: Option<Instant>,
    pause_ends: Option<Instant>,
    blind: bool,
    /// Maintenance windows as they were asked for, for the naive count.
    windows: Vec<Window>,
    link_cut: bool,
    receiver_down: bool,
    work: VecDeque<Work>,
    due: BTreeMap<DeliveryId, Due>,
    promises: Promises,
    trace: blake3::Hasher,
    story: Vec<String>,
}

fn rules(patience: &Patience) -> Vec<Rule> {
    let rule = |name: &str, events: &[EventKind], receiver: &str, always| Rule {
        name: name.to_owned(),
        events: events.iter().copied().collect(),
        receivers: vec![receiver.to_owned()],
        always,
        ..Rule::default()
    };
    let both = [EventKind::HostDown, EventKind::HostRecovered];
    let patient = Rule {
        expression: Some(Expression::parse("not rack or rack ~ \"r*\"").expect("it is one")),
        delay: patience.delay,
        hours: patience.hours.clone(),
        rate: patience.rate,
        ..rule("patient", &both, PATIENT, false)
    };
    vec![
        rule("failover", &both, ORCHESTRATOR, false),
        patient,
        rule("everything", &EventKind::ALL, PAGER, true),
    ]
}

const ORIGIN: Instant = Instant::from_millis(100_000_000);

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5702);
        // Drawn apart, so that what befalls the fleet does not depend on it.
        let patience = Patience::draw(&mut StdRng::seed_from_u64(seed ^ 0x9A71));
        let plan = Plan { patience, ..Plan::draw(&mut rng) };
        let hosts = fleet::draw(&plan, &mut rng);
        let mut world = Self {
            now: ORIGIN,
            queue: BTreeMap::new(),
            queued: 0,
            index: hosts.iter().enumerate().map(|(i, h)| (h.id, i)).collect(),
            rows: BTreeMap::new(),
            db: Db::memory().expect("memory holds a database"),
            policy: None,
            release_at: None,
            pause_ends: None,
            blind: false,
            windows: Vec::new(),
            link_cut: false,
            receiver_down: false,
            work: VecDeque::new(),
            due: BTreeMap::new(),
            promises: Promises::new(plan.guard.clone(), plan.patience.clone()),
            trace: blake3::Hasher::new(),
            story: Vec::new(),
            hosts,
            plan,
            rng,
        };
        let rows: Vec<HostRow> = world.hosts.iter().map(|h| h.row(world.wall())).collect();
        rows.chunks(500).for_each(|some| world.db.save_hosts(some).expect("memory has room"));
        world.start_controller();
        for (after, what) in story::draw(&world.plan, &world.hosts, &mut world.rng) {
            world.at(ORIGIN + after, what);
        }
        world
    }

    fn wall(&self) -> Wall {
        Wall(1_700_000_000_000 + (self.now.since(ORIGIN).as_millis() as i64))
    }

    fn at(&mut self, when: Instant, what: Happening) {
        self.queued += 1;
        self.queue.insert((when, self.queued), what);
    }

    fn tell(&mut self, line: String) {
        self.trace.update(&self.now.0.to_be_bytes());
        self.trace.update(line.as_bytes());
        self.story.push(format!("{:9.3} s  {line}", self.now.since(ORIGIN).as_secs_f64()));
    }

    fn run(mut self) -> Report {
        let (mut tick, mut healed) = (ORIGIN, false);
        while tick < ORIGIN + END {
            tick = tick + TICK;
            while let Some((&(when, n), _)) = self.queue.first_key_value()
                && when <= tick
            {
                self.now = when;
                if let Some(what) = self.queue.remove(&(when, n)) {
                    self.happen(what);
                }
                self.pass();
            }
            self.now = tick;
            if !healed && tick >= ORIGIN + STORIES_UNTIL {
                healed = true;
                self.heal();
            }
            self.tick();
        }
        let (events, deliveries) = promises::journal(&self.db);
        self.promises.at_the_end(&self.hosts, &self.rows, &events, &deliveries);
        let mut kinds = BTreeMap::new();
        events.iter().for_each(|e| *kinds.entry(e.kind.as_str()).or_default() += 1);
        Report {
            trace: self.trace.finalize().to_hex()[..16].to_owned(),
            events: kinds,
            failovers: self.promises.failovers,
            looked: self.promises.looked,
            violations: self.promises.into_violations(),
            story: self.story,
        }
    }

    fn tick(&mut self) {
        let (now, wall) = (self.now, self.wall());
        if self.pause_ends.is_some_and(|end| now >= end) {
            self.end_pause();
        }
        self.turn_windows();
        if let Some(policy) = &mut self.policy {
            if self.release_at.is_some_and(|at| now >= at) {
                self.release_at = None;
                policy.release_own();
            }
            policy.step(now);
        }
        let since = now.since(ORIGIN);
        if since >= APPROVED_FROM && since.as_millis().is_multiple_of(60_000) {
            let fleet = Target::Domain(BTreeMap::new());
            self.operator(&fleet, true);
        }
        self.pass();
        let saved = self.policy.as_mut().and_then(|p| p.save(wall));
        if let Some(text) = saved {
            self.db.put("guard", Some(&text)).expect("memory has room");
        }
        if since.as_secs().is_multiple_of(30)
            && let Some(policy) = &self.policy
        {
            self.promises.look_at_holds(policy, &self.db, now, wall);
        }
    }

    /// What the policy has said is written and sent.
    fn pass(&mut self) {
        self.follow_orders();
        self.write();
        self.deliver();
    }

    fn follow_orders(&mut self) {
        let wall = self.wall();
        let Some(policy) = &mut self.policy else { return };
        let rows = &self.rows;
        for order in policy.orders(|host| rows.get(&host).cloned(), wall, &mut self.rng) {
            self.work.push_back(match order {
                Order::Event(event) => Work::Event(event),
                Order::Release(host, but) => Work::Release(host, but),
                Order::Part(part) => Work::Part(part),
                Order::Cancel(host, why) => Work::Cancel(host, why),
            });
        }
    }

    fn write(&mut self) {
        let wall = self.wall();
        while let Some(work) = self.work.pop_front() {
            let due = match work {
                Work::Event(event) => {
                    self.tell(format!("{} {:?}", event.kind, event.data.get("domain")));
                    self.promises.journaled(&event);
                    let appended = self.db.append(&[*event]).expect("memory has room");
                    let mut due = Vec::new();
                    for one in appended {
                        one.settled.iter().for_each(|id| drop(self.due.remove(id)));
                        due.extend(one.deliveries);
                    }
                    due
                }
                Work::Row(host) => {
                    let row = self.rows.get(&host).cloned();
                    self.db.save_hosts(row.as_slice()).expect("memory has room");
                    Vec::new()
                }
                Work::Release(host, but) => {
                    let row = self.rows.get(&host);
                    let verdict = Policy::rejudge(row, order_of(row), row.and_then(|r| r.incident));
                    let which = Receivers::AllBut(but);
                    self.db.release(host, &which, verdict, wall).expect("memory has room")
                }
                Work::Part(part) => {
                    let row = self.rows.get(&part.host);
                    let still = || Policy::rejudge(row, part.kind, part.incident);
                    let verdict = part.go.and_then(|()| still());
                    let which = Receivers::Only(part.receiver);
                    self.db.release(part.host, &which, verdict, wall).expect("memory has room")
                }
                Work::Cancel(host, why) => {
                    self.promises.rejected(host);
                    self.db.release(host, &Receivers::All, Err(why), wall).expect("memory has room")
                }
            };
            for one in due {
                self.ordered(&one);
                self.due.insert(one.id, one);
            }
        }
    }

    /// A delivery is let go.
    fn ordered(&mut self, due: &Due) {
        let Some(host) = due.host.filter(|_| due.receiver != PAGER) else { return };
        let Some(row) = self.rows.get(&host).filter(|r| r.state == State::Down) else { return };
        let silent = row.cause == Some(Cause::Silent);
        let patient = due.receiver == PATIENT && silent;
        if patient {
            self.promises.patient(row, self.now, self.wall());
        }
        self.check_maintenance(host);
        if silent && !patient {
            self.promises.acted(host, &self.hosts, &self.index, &self.rows, self.now);
        }
    }

    fn deliver(&mut self) {
        if self.receiver_down {
            return;
        }
        let wall = self.wall();
        for id in self.due.keys().copied().collect::<Vec<_>>() {
            let Some(due) = self.due.get(&id).cloned() else { continue };
            match self.db.begin_attempt(id, wall).expect("memory has room") {
                Begin::Go(outgoing) => {
                    if due.receiver == PATIENT
                        && let Some(host) = due.host
                    {
                        let row = self.rows.get(&host);
                        self.promises.sent_late(host, outgoing.kind, outgoing.event, row);
                        self.tell(format!("patient <- {} {host}", outgoing.kind));
                    }
                    if due.receiver == ORCHESTRATOR
                        && let Some(host) = due.host
                    {
                        let silent = self.index.get(&host).is_none_or(|i| self.is_silent(*i));
                        let told = format!("orchestrator <- {} {host}", outgoing.kind);
                        let row = self.rows.get(&host);
                        self.promises.sent(host, outgoing.kind, outgoing.event, row, silent);
                        self.tell(told);
                    }
                    let verdict = FinishVerdict::Delivered;
                    let finish =
                        Finish { at: wall, status: Some(200), detail: String::new(), verdict };
                    self.db.finish_attempt(id, &finish).expect("memory has room");
                    self.due.remove(&id);
                }
                Begin::Gone => drop(self.due.remove(&id)),
                Begin::NotYet => {}
            }
        }
    }

    /// Nothing of it reaches the controller.
    fn is_silent(&self, host: usize) -> bool {
        self.link_cut || self.hosts[host].dead
    }

    fn turn(&mut self, host: usize, turn: Turn, state: State) {
        let (now, wall) = (self.now, self.wall());
        let h = &self.hosts[host];
        let Some(row) = self.rows.get(&h.id).cloned() else { return };
        let Some(policy) = &mut self.policy else { return };
        let transition = Transition {
            host: h.id,
            turn,
            state,
            boot: Boot(h.boot),
            address: None,
            at: now,
            duplicate: false,
            evidence: Evidence { gap_ms: h.gap.as_millis() as u64, ..Evidence::default() },
        };
        let decision =
            policy.take(&row, &transition, wall, |_| Placement::default(), &mut self.rng);
        self.rows.insert(row.id, decision.row);
        // What the turn itself says comes before what the policy says beside it.
        match decision.event {
            Some(event) => self.work.push_back(Work::Event(Box::new(event))),
            None => self.work.push_back(Work::Row(row.id)),
        }
        self.tell(format!("host {host} {turn:?}"));
        self.follow_orders();
    }

    fn operator(&mut self, target: &Target, approves: bool) {
        let wall = self.wall();
        let word = Word { by: "operator".to_owned(), reason: "drill".to_owned() };
        let row = match target {
            Target::Host(host) => self.rows.get(host).cloned(),
            Target::Domain(_) => None,
        };
        let Some(policy) = &mut self.policy else { return };
        if let Target::Host(host) = target {
            self.promises.spoken_of(*host);
        }
        let rng = &mut self.rng;
        let report = match approves {
            true => policy.approve(target, &word, row.as_ref(), wall, rng),
            false => policy.reject(target, &word, row.as_ref(), wall, rng),
        };
        if approves && let Target::Host(host) = target {
            self.promises.approved_by_name(*host);
        }
        if report != Default::default() {
            self.promises.operator_spoke(self.now, report.released);
            self.tell(format!("operator: {approves} {target:?} {report:?}"));
        }
        self.follow_orders();
    }

    fn start_controller(&mut self) {
        let (now, wall) = (self.now, self.wall());
        let author = Author { id: ControllerId(1), name: "simulated".to_owned() };
        let mut policy =
            Policy::guarded(author, rules(&self.plan.patience), self.plan.guard.clone());
        self.rows =
            self.db.hosts().expect("reading works").into_iter().map(|r| (r.id, r)).collect();
        self.load_windows(&mut policy);
        self.rows.values().for_each(|row| policy.register(row, now, wall));
        let held = DeliveryFilter { state: Some(DeliveryState::Held), ..DeliveryFilter::default() };
        for delivery in promises::deliveries(&self.db, held) {
            let Some(host) = delivery.host else { continue };
            let held_for = Duration::from_millis((wall.0 - delivery.created_ms.0) as u64);
            policy.restore(&delivery, self.rows.get(&host), held_for);
        }
        let saved = self.db.get("guard").expect("reading works");
        policy.resume(saved.as_deref(), wall).expect("what was saved can be read");
        let pending =
            DeliveryFilter { state: Some(DeliveryState::Pending), ..DeliveryFilter::default() };
        self.due = promises::deliveries(&self.db, pending)
            .into_iter()
            .map(|d| {
                let due = Due {
                    id: d.id,
                    receiver: d.receiver,
                    host: d.host,
                    attempts: d.attempts,
                    waited: Duration::ZERO,
                };
                (d.id, due)
            })
            .collect();
        self.policy = Some(policy);
        self.release_at = Some(now + GRACE);
        (self.blind, self.pause_ends) = (false, None);
        self.promises.restarted(&self.rows, wall, now);
        // Each known host has its chance; who is silent is found anew.
        for host in 0..self.hosts.len() {
            self.hosts[host].life += 1;
            let known = self.rows.get(&self.hosts[host].id).map(|r| r.state);
            if known == Some(State::Left) && self.is_silent(host) {
                self.await_return(host);
                continue;
            }
            if known != Some(State::Down) && self.is_silent(host) {
                self.falls_silent(host, GRACE / 2);
            } else if !self.is_silent(host) && known != Some(State::Alive) {
                let life = self.hosts[host].life;
                self.at(now + Duration::from_secs(1), Happening::Heard { host, life });
            }
        }
    }

    fn heal(&mut self) {
        self.receiver_down = false;
        if self.policy.is_none() {
            self.happen(Happening::StartController);
        }
        if self.link_cut {
            self.happen(Happening::MendLink);
        }
        if self.blind {
            self.happen(Happening::Sighted);
        }
        if self.pause_ends.is_some() {
            self.end_pause();
        }
        self.tell("healed".to_owned());
    }

    fn end_pause(&mut self) {
        self.pause_ends = None;
        if let Some(policy) = &mut self.policy {
            policy.set_pause(None);
            if self.release_at.is_none() {
                policy.release_own();
            }
        }
    }

    fn pause(&mut self, span: Duration) {
        self.pause_ends = Some(self.now + span);
        let until_ms = Wall(self.wall().0 + span.as_millis() as i64);
        if let Some(policy) = &mut self.policy {
            policy.set_pause(Some(Pause { until_ms, reason: "drill".to_owned() }));
        }
    }

    fn set_blind(&mut self, blind: bool) {
        self.blind = blind;
        if let Some(policy) = &mut self.policy {
            policy.set_blind(0, blind);
            if !blind && self.release_at.is_none() {
                policy.release_own();
            }
        }
    }
}

/// Runs one seed.
pub fn run(seed: u64) -> Report {
    World::new(seed).run()
}

/// Hosts of a set, by their ids.
type Hosts = BTreeSet<HostId>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_one_story() {
        assert_eq!(run(3).trace, run(3).trace);
        assert_ne!(run(3).trace, run(4).trace);
    }
}
