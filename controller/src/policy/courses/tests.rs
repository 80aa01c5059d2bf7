use std::collections::BTreeSet;

use heartwatch_common::id::HostId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

use super::*;
use crate::store::{Cursor, Token};

const S: fn(u64) -> Duration = Duration::from_secs;
const KIND: EventKind = EventKind::HostDown;

fn incident() -> IncidentId {
    IncidentId(uuid::Uuid::from_u128(1))
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

/// A journal in memory, with what a controller does to it, and two clocks.
struct World {
    plan: Plan,
    receivers: Vec<String>,
    deliveries: Vec<DeliveryRow>,
    events: Vec<EventRow>,
    ages: Ages,
    made: BTreeSet<(u8, String)>,
    now: Instant,
    wall: Wall,
}

impl World {
    fn new(plan: Plan, receivers: &[&str]) -> Self {
        let mut world = Self {
            plan,
            receivers: names(receivers),
            deliveries: Vec::new(),
            events: Vec::new(),
            ages: Ages::default(),
            made: BTreeSet::new(),
            now: Instant::from_millis(1_000_000),
            wall: Wall(5_000_000),
        };
        let to = match world.plan.first.first() {
            Some(first) => vec![first.clone()],
            None => world.receivers.clone(),
        };
        world.order(&to, &[]);
        world
    }

    fn event(&mut self, kind: EventKind, data: Value) -> (EventId, Token) {
        let n = self.events.len() as u64 + 1;
        let id = EventId(uuid::Uuid::from_u128(n.into()));
        let data = data.as_object().cloned().unwrap_or_else(Map::new);
        self.events.push(EventRow {
            cursor: Cursor(n),
            id,
            kind,
            at_ms: self.wall,
            host: Some(HostId([1; 16])),
            incident: Some(incident()),
            token: Some(Token(n)),
            data,
        });
        (id, Token(n))
    }

    fn deliver(&mut self, kind: EventKind, (event, token): (EventId, Token), to: &[String]) {
        for receiver in to {
            self.deliveries.push(DeliveryRow {
                id: DeliveryId(self.deliveries.len() as u64 + 1),
                event,
                kind,
                host: Some(HostId([1; 16])),
                incident: Some(incident()),
                receiver: receiver.clone(),
                state: DeliveryState::Pending,
                reason: None,
                token: Some(token),
                attempts: 1,
                created_ms: self.wall,
                changed_ms: self.wall,
                last_outcome: None,
                placed: None,
            });
        }
    }

    fn order(&mut self, to: &[String], instead_of: &[String]) {
        for d in self.deliveries.iter_mut().filter(|d| instead_of.contains(&d.receiver)) {
            if d.state == DeliveryState::Pending {
                (d.state, d.changed_ms) = (DeliveryState::Superseded, self.wall);
            }
        }
        let event = self.event(KIND, json!({ "instead_of": instead_of }));
        self.deliver(KIND, event, to);
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        self.wall.0 += i64::try_from(span.as_millis()).unwrap();
    }

    fn set(&mut self, receiver: &str, state: DeliveryState) {
        let wall = self.wall;
        let newest = self.deliveries.iter_mut().rev().find(|d| d.receiver == receiver);
        let row = newest.expect("it was told");
        (row.state, row.changed_ms) = (state, wall);
        row.reason = Some("so it is".to_owned());
    }

    fn report(&mut self, receiver: &str, kind: EventKind) {
        let row = self.deliveries.iter().rev().find(|d| d.receiver == receiver).unwrap();
        let token = row.token;
        self.event(kind, json!({ "receiver": receiver, "order_token": token }));
    }

    /// The controller dies: what it remembers is gone.
    fn restart(&mut self) {
        self.ages = Ages::default();
        self.made.clear();
    }

    fn look(&mut self) -> Look {
        let route = Route { rule: "r", receivers: &self.receivers, plan: &self.plan };
        let facts = Facts {
            incident: incident(),
            kind: KIND,
            deliveries: &self.deliveries,
            events: &self.events,
        };
        look(route, facts, &mut self.ages, (self.now, self.wall))
    }

    /// Journals what a look asks for, once.
    fn step(&mut self) -> Option<Step> {
        let step = self.look().step?;
        if !self.made.insert(step.key()) {
            return None;
        }
        match &step {
            Step::Order { stage, receivers, instead_of, .. } => {
                let before = match stage {
                    Stage::First(i) => &self.plan.first[..*i],
                    Stage::Receivers => &self.plan.first[..],
                    Stage::Escalated(_) => &[],
                };
                assert!(before.iter().all(|r| self.has_done(r)), "passed over: {step:?}");
                self.order(receivers, instead_of);
            }
            Step::Tell { level, receiver, .. } => {
                let kind = EventKind::IncidentEscalated;
                let event = self.event(kind, json!({ "rule": "r", "level": level }));
                self.deliver(kind, event, std::slice::from_ref(receiver));
            }
            Step::Hand { level, receiver, .. } => {
                let data = json!({ "rule": "r", "level": level, "receiver": receiver });
                self.event(EventKind::IncidentEscalated, data);
            }
            Step::Fail { .. } => {
                self.event(EventKind::IncidentFailed, json!({ "rule": "r" }));
            }
            Step::Veto { receiver, event, .. } => {
                let data = json!({ "receiver": receiver, "order": event });
                self.event(EventKind::IncidentVetoed, data);
            }
        }
        Some(step)
    }

    fn has_done(&self, receiver: &String) -> bool {
        let row = self.deliveries.iter().find(|d| d.receiver == *receiver).unwrap();
        match report_of(row, &self.events) {
            Some(reported) => reported == Reported::Completed,
            None => row.state == DeliveryState::Delivered && self.plan.complete_within.is_zero(),
        }
    }

    fn told(&self) -> Vec<&str> {
        let orders = self.deliveries.iter().filter(|d| d.kind == KIND);
        orders.map(|d| d.receiver.as_str()).collect()
    }
}

fn plan() -> Plan {
    Plan {
        first: names(&["fence"]),
        accept_within: S(60),
        complete_within: S(600),
        escalate: names(&["second", "third"]),
        escalate_acts: true,
    }
}

#[test]
fn a_step_comes_only_after_the_one_before_has_reported_that_it_is_done() {
    let mut w = World::new(plan(), &["main"]);
    assert_eq!(w.told(), ["fence"]);
    assert_eq!(w.look(), Look { step: None, again: Some(w.now + S(60)) });
    w.pass(S(5));
    w.set("fence", DeliveryState::Delivered);
    assert_eq!(w.look(), Look { step: None, again: Some(w.now + S(600)) });
    w.pass(S(100));
    w.report("fence", EventKind::IncidentCompleted);
    assert!(matches!(w.step(), Some(Step::Order { stage: Stage::Receivers, .. })));
    assert_eq!(w.told(), ["fence", "main"]);
    w.set("main", DeliveryState::Delivered);
    w.report("main", EventKind::IncidentCompleted);
    assert_eq!(w.look(), Look::default());
}

#[test]
fn a_fence_that_fails_lets_nobody_act_and_people_are_told() {
    let mut w = World::new(plan(), &["main"]);
    w.set("fence", DeliveryState::Dead);
    let Some(Step::Tell { level: 0, receiver, reason, .. }) = w.step() else { panic!() };
    assert_eq!(receiver, "second");
    assert!(reason.contains("`fence` failed: given up (so it is)"), "{reason}");
    // Who was told knows.
    w.set("second", DeliveryState::Delivered);
    assert_eq!(w.look(), Look::default());
    assert_eq!(w.told(), ["fence"]);
}

#[test]
fn who_does_not_take_it_in_time_is_replaced_once_and_told_so() {
    let mut w = World::new(Plan { first: Vec::new(), ..plan() }, &["main"]);
    w.pass(S(59));
    assert!(w.look().step.is_none());
    w.pass(S(1));
    let Some(Step::Order { stage, instead_of, .. }) = w.step() else { panic!() };
    assert_eq!((stage, instead_of), (Stage::Escalated(0), names(&["main"])));
    assert_eq!(w.deliveries[0].state, DeliveryState::Superseded);
    let Some(Step::Hand { receiver, instead_of, .. }) = w.step() else { panic!() };
    assert_eq!((receiver, instead_of), ("second".to_owned(), names(&["main"])));
    // The second has its own time.
    assert_eq!(w.look(), Look { step: None, again: Some(w.now + S(60)) });
    w.set("second", DeliveryState::Delivered);
    w.look();
    w.pass(S(600));
    let Some(Step::Order { stage: Stage::Escalated(1), reason, .. }) = w.step() else { panic!() };
    assert_eq!(reason, "`second` has not completed it within 10m");
    assert!(matches!(w.step(), Some(Step::Hand { level: 1, .. })));
    w.set("third", DeliveryState::Dead);
    let Some(Step::Fail { reason, .. }) = w.step() else { panic!() };
    assert!(reason.ends_with("and nobody is left to turn to"), "{reason}");
    assert_eq!(w.look(), Look::default());
}

/// People had been told that the fence was late. It came, and nobody was ever told that what came after it
/// was late too.
#[test]
fn each_step_that_is_late_is_told_of_by_itself() {
    let plan = Plan { escalate_acts: false, ..plan() };
    let mut w = World::new(plan, &["main"]);
    w.set("fence", DeliveryState::Delivered);
    w.look();
    w.pass(S(600));
    assert!(matches!(w.step(), Some(Step::Tell { stage: Stage::First(0), level: 0, .. })));
    w.set("second", DeliveryState::Delivered);
    assert_eq!(w.look().step, None);
    w.report("fence", EventKind::IncidentCompleted);
    assert!(matches!(w.step(), Some(Step::Order { stage: Stage::Receivers, .. })));
    w.set("main", DeliveryState::Delivered);
    w.look();
    w.pass(S(600));
    let Some(Step::Tell { stage: Stage::Receivers, level: 0, reason, .. }) = w.step() else {
        panic!()
    };
    assert_eq!(reason, "`main` has not completed it within 10m");
    w.set("second", DeliveryState::Delivered);
    assert_eq!(w.look(), Look::default());
}

/// Nobody heard of it, for the rule had no plan to follow.
#[test]
fn a_refusal_and_a_failure_are_told_without_any_plan() {
    let mut w = World::new(Plan::default(), &["main"]);
    assert_eq!(w.look(), Look::default());
    w.set("main", DeliveryState::Dead);
    let Some(Step::Fail { stage: Stage::Receivers, reason }) = w.step() else { panic!() };
    assert_eq!(reason, "`main` failed: given up (so it is), and the rule names nobody to turn to");
    assert_eq!(w.look(), Look::default());
    let mut w = World::new(Plan::default(), &["main"]);
    w.set("main", DeliveryState::Vetoed);
    assert!(matches!(w.step(), Some(Step::Veto { .. })));
    assert_eq!(w.look(), Look::default());
}

#[test]
fn who_only_is_told_is_passed_over_if_it_cannot_be_told_in_time() {
    let plan = Plan { first: Vec::new(), escalate_acts: false, ..plan() };
    let mut w = World::new(plan, &["main"]);
    w.pass(S(60));
    assert!(matches!(w.step(), Some(Step::Tell { level: 0, .. })));
    // It is still main's to act: its delivery goes on.
    assert_eq!((w.told(), w.deliveries[0].state), (vec!["main"], DeliveryState::Pending));
    assert_eq!(w.look(), Look { step: None, again: Some(w.now + S(60)) });
    w.pass(S(60));
    assert!(matches!(w.step(), Some(Step::Tell { level: 1, .. })));
    // It took it after all.
    w.set("main", DeliveryState::Delivered);
    assert_eq!(w.look(), Look { step: None, again: Some(w.now + S(600)) });
}

/// Once a fence that was late was told of under the same number, who was replaced later was told nothing.
#[test]
fn that_people_were_told_of_a_late_fence_does_not_count_as_telling_who_is_replaced() {
    let mut w = World::new(plan(), &["main"]);
    w.pass(S(60));
    assert!(matches!(w.step(), Some(Step::Tell { level: 0, .. })));
    w.report("fence", EventKind::IncidentCompleted);
    assert!(matches!(w.step(), Some(Step::Order { stage: Stage::Receivers, .. })));
    w.look();
    w.pass(S(60));
    assert!(matches!(w.step(), Some(Step::Order { stage: Stage::Escalated(0), .. })));
    assert!(matches!(w.step(), Some(Step::Hand { level: 0, .. })));
}

/// What was done about an unreachable host would have kept its failover back for ever.
#[test]
fn a_host_that_is_down_after_it_was_unreachable_takes_its_course_from_the_beginning() {
    let mut w = World::new(Plan { escalate_acts: false, ..plan() }, &["main"]);
    w.pass(S(60));
    assert!(matches!(w.step(), Some(Step::Tell { level: 0, .. })));
    w.set("second", DeliveryState::Delivered);
    w.report("fence", EventKind::IncidentCompleted);
    assert!(matches!(w.step(), Some(Step::Order { stage: Stage::Receivers, .. })));
    for row in w.deliveries.iter_mut().filter(|d| d.kind == KIND) {
        (row.kind, row.state) = (EventKind::HostUnreachable, DeliveryState::Delivered);
    }
    w.order(&names(&["fence"]), &[]);
    assert_eq!(w.look(), Look { step: None, again: Some(w.now + S(60)) });
    w.pass(S(60));
    assert!(matches!(w.look().step, Some(Step::Tell { level: 0, .. })), "told anew");
    w.report("fence", EventKind::IncidentCompleted);
    let Some(Step::Order { stage, .. }) = w.look().step else { panic!() };
    assert_eq!(stage, Stage::Receivers);
}

#[test]
fn a_veto_is_an_answer_and_not_asked_of_others() {
    let mut w = World::new(plan(), &["main"]);
    w.set("fence", DeliveryState::Vetoed);
    assert!(matches!(w.step(), Some(Step::Veto { .. })));
    w.pass(S(100_000));
    assert_eq!(w.look(), Look::default());
    assert_eq!(w.told(), ["fence"]);
}

#[test]
fn a_wall_clock_that_steps_hurries_nothing_and_delays_nothing() {
    let mut w = World::new(plan(), &["main"]);
    let due = w.look().again;
    for step in [86_400_000, -172_800_000] {
        w.wall.0 += step;
        assert_eq!(w.look(), Look { step: None, again: due });
    }
    w.pass(S(60));
    assert!(w.look().step.is_some());
    // Over a restart the wall clock is all there is: at most the whole span is believed.
    let mut w = World::new(plan(), &["main"]);
    w.wall.0 -= 7_200_000;
    w.restart();
    assert_eq!(w.look(), Look { step: None, again: Some(w.now + S(60)) });
}

#[test]
fn nothing_follows_what_is_held_or_was_taken_back() {
    for state in [DeliveryState::Held, DeliveryState::Cancelled, DeliveryState::Superseded] {
        let mut w = World::new(plan(), &["main"]);
        w.set("fence", state);
        w.pass(S(1_000_000));
        assert_eq!(w.look(), Look::default(), "{state:?}");
    }
}

/// Plays a world with receivers of any behaviour and a controller that dies at any moment.
fn play(seed: u64) -> World {
    let mut rng = StdRng::seed_from_u64(seed);
    let some = |rng: &mut StdRng, all: &[&str]| names(&all[..rng.random_range(0..=all.len())]);
    let mut plan = Plan {
        first: some(&mut rng, &["f0", "f1"]),
        accept_within: S(rng.random_range(0..3) * 30),
        complete_within: S(rng.random_range(0..3) * 300),
        escalate: some(&mut rng, &["e0", "e1", "e2"]),
        escalate_acts: rng.random_bool(0.5),
    };
    plan.escalate_acts &= !plan.escalate.is_empty();
    let receivers: &[&str] =
        if plan.escalate_acts || rng.random_bool(0.5) { &["m0"] } else { &["m0", "m1"] };
    let mut w = World::new(plan, receivers);
    for _ in 0..rng.random_range(5..60) {
        let pending: Vec<usize> = (0..w.deliveries.len())
            .filter(|i| w.deliveries[*i].state == DeliveryState::Pending)
            .collect();
        match rng.random_range(0..8) {
            0 if !pending.is_empty() => {
                let at = pending[rng.random_range(0..pending.len())];
                let states = [DeliveryState::Delivered, DeliveryState::Dead, DeliveryState::Vetoed];
                let odds: usize = rng.random_range(0..6);
                let row = &mut w.deliveries[at];
                (row.state, row.changed_ms) = (states[odds.saturating_sub(3)], w.wall);
            }
            1 => {
                let at = rng.random_range(0..w.deliveries.len());
                let row = w.deliveries[at].clone();
                if row.kind == KIND && report_of(&row, &w.events).is_none() {
                    let kind = [EventKind::IncidentCompleted, EventKind::IncidentFailed];
                    w.report(&row.receiver, kind[usize::from(rng.random_bool(0.3))]);
                }
            }
            2 => w.restart(),
            3 => w.wall.0 += rng.random_range(-1_000_000..1_000_000),
            _ => w.pass(S(rng.random_range(0..200))),
        }
        for _ in 0..rng.random_range(0..3) {
            w.step();
        }
    }
    w
}

#[test]
fn whoever_answers_what_and_whenever_the_controller_dies_nobody_acts_out_of_turn_or_twice() {
    for seed in 0..3_000 {
        let mut w = play(seed);
        let told = w.told().into_iter().map(str::to_owned).collect::<Vec<_>>();
        let once: BTreeSet<&String> = told.iter().collect();
        assert_eq!(once.len(), told.len(), "seed {seed}: somebody was ordered twice: {told:?}");
        // In the order of the plan, and nobody is passed over.
        let mut order = w.plan.first.clone();
        order.extend(w.receivers.clone());
        if w.plan.escalate_acts {
            order.extend(w.plan.escalate.clone());
        }
        assert_eq!(told, order[..told.len()], "seed {seed}");
        let said = |kind| w.events.iter().filter(|e| e.kind == kind).count();
        let vetoes = w.deliveries.iter().filter(|d| d.state == DeliveryState::Vetoed).count();
        assert!(said(EventKind::IncidentVetoed) <= vetoes, "seed {seed}");
        // In the end everything stands still, and somebody knows.
        for _ in 0..200 {
            w.pass(S(1_000));
            w.step();
        }
        assert_eq!(w.look().step.map(|s| s.key()).filter(|k| !w.made.contains(k)), None);
    }
}
