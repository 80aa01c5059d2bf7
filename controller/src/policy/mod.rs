//! What a turn of a host's story means, and who is told: pure.
//!
//! `Opinion → Decision {row, event}`. The policy compares what a shard says with what was recorded
//! before, so a turn that was merged away, or lost with a crash between detector and journal, is made
//! good by the next one. Every receiver of an event gets a *verdict* with its reason, and all verdicts
//! stand in the journaled event, the held and suppressed ones too.
//!
//! Seeing and acting are apart: the row (the state) is always true at once; only *actions* (`host.down`,
//! `host.agent-lost`, `host.unreachable`) are ever held, by the [`guard`]: while the controller is blind or
//! paused, in a storm, while a host flaps or may be there twice, or for a rate. Alerts, recoveries, goodbyes
//! and joins never are, nor what a rule sends `always`. What was held is judged again on release
//! ([`Policy::rejudge`]), against the present state; it is not replayed.
//!
//! The caller hands in every change of a row, turns by [`Policy::take`] and others by [`Policy::changed`],
//! lets time pass by [`Policy::step`], and does what [`Policy::orders`] says.

mod audit;
pub mod courses;
mod domains;
pub mod driver;
pub mod expression;
mod flaps;
mod follow;
pub mod guard;
pub mod holds;
pub mod hours;
pub mod maintenance;
pub mod placement;
mod places;
pub mod question;
pub mod queue;
pub mod review;
pub mod rules;
pub mod tally;
mod waiting;
pub mod waits;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::{Boot, ControllerId, HostId};
use heartwatch_common::time::{Instant, Wall};
use rand::Rng;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::{GuardConfig, PlacementConfig, Rule};
use crate::control::Pause;
use crate::detector::DUPLICATE_WINDOW;
use crate::detector::host::{Evidence, OneLeft, Transition, Turn};
use crate::event::{Cause, EventId, EventKind, IncidentId, State};
use crate::store::{Audience, HostRow, NewDelivery, NewEvent, Settle};
pub use domains::{DOMAINS_MAX, parse_name as parse_domain};
pub use flaps::FLAPS_MAX;
use guard::Guard;
use holds::Word;
use placement::{Placement, Wanted};
use places::Places;
use rules::{Choice, Subject};
use tally::{Opinion, Tally};
use waiting::Fall;
use waits::Waits;

/// What becomes of an event at one receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Disposition {
    /// Sent.
    Act,
    /// Kept back until released or no longer true.
    Hold {
        /// Why.
        reason: String,
    },
    /// Not sent.
    Suppress {
        /// Why.
        reason: String,
    },
    /// Sent only if something else happens first.
    Later {
        /// What.
        reason: String,
    },
}

impl Disposition {
    /// Whether another rule may still decide otherwise.
    fn is_open(&self) -> bool {
        matches!(self, Self::Suppress { .. } | Self::Later { .. })
    }
}

/// One receiver's verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Receiver's name.
    pub receiver: String,
    /// The rule that chose it.
    pub rule: String,
    /// What becomes of it.
    #[serde(flatten)]
    pub disposition: Disposition,
}

/// What a turn brings about.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The host's row from now on.
    pub row: HostRow,
    /// What is journaled and sent; `None` if the turn says nothing new.
    pub event: Option<NewEvent>,
}

/// Who this controller is, in events.
#[derive(Clone, Debug)]
pub struct Author {
    /// Its lasting identity.
    pub id: ControllerId,
    /// Its name.
    pub name: String,
}

/// Decides.
#[derive(Clone, Debug)]
pub struct Policy {
    author: Author,
    rules: Vec<Rule>,
    pause: Option<Pause>,
    blind: BTreeSet<u16>,
    tally: Tally,
    guard: Guard,
    waits: Waits,
    /// Whom the guard has let go last, and when: at one moment it is asked once.
    passed: Option<(HostId, Instant)>,
    places: Places,
    /// Events beside those that turns bring about.
    also: Vec<NewEvent>,
    /// What waited and is decided.
    parts: Vec<Part>,
}

/// What a rule kept back from one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of which host.
    pub host: HostId,
    /// From whom.
    pub receiver: String,
    /// News of what: judge whether it is still true ([`Policy::rejudge`]),
    pub kind: EventKind,
    /// of this outage,
    pub incident: Option<IncidentId>,
    /// unless it must not go anyway, for this reason.
    pub go: Result<(), String>,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Nothing holds this host's orders any more, but to these receivers, for which rules still wait: judge
    /// them ([`Policy::rejudge`]), and let them go or cancel them.
    Release(HostId, Vec<String>),
    /// What a rule kept back from one receiver goes, or is cancelled.
    Part(Box<Part>),
    /// Cancel what is held of this host, for this reason.
    Cancel(HostId, String),
    /// Journal it.
    Event(Box<NewEvent>),
}

/// A host of which beats arrive, by whether two machines send them.
fn of_duplicate(state: State, duplicate: bool) -> State {
    match state.heard() {
        State::Alive if duplicate => State::Duplicate,
        state => state,
    }
}

fn after(at: Wall, span: Duration) -> Wall {
    Wall(at.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
}

/// What of a turn is worth an event.
struct Story {
    kind: EventKind,
    state: State,
    settle: Settle,
    audience: Audience,
    incident: Incident,
    reason: String,
    extra: Map<String, Value>,
}

/// Whether an event is told at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    All,
    /// It is part of a flapping host's coming and going.
    Nobody,
}

/// What an event does to the host's incident.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Incident {
    /// Opens one, or goes on with the open one.
    Open,
    /// Ends it; the event still names it.
    Close,
    /// Has nothing to do with one.
    Keep,
}

impl Policy {
    /// A policy that is neither paused nor blind, and guards as the defaults say.
    pub fn new(author: Author, rules: Vec<Rule>) -> Self {
        Self::guarded(author, rules, GuardConfig::default())
    }

    /// The same, and it guards as these settings say.
    pub fn guarded(author: Author, rules: Vec<Rule>, guard: GuardConfig) -> Self {
        Self {
            author,
            waits: Waits::new(&rules),
            rules,
            passed: None,
            parts: Vec::new(),
            pause: None,
            blind: BTreeSet::new(),
            tally: Tally::new(1),
            guard: Guard::new(guard),
            places: Places::new(PlacementConfig::default()),
            also: Vec::new(),
        }
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The pause in force, if any.
    pub fn pause(&self) -> Option<&Pause> {
        self.pause.as_ref()
    }

    /// Sets or ends a pause.
    pub fn set_pause(&mut self, pause: Option<Pause>) {
        self.pause = pause;
        self.guard.set_own(self.holding());
    }

    /// Notes that a shard went blind or sees again. Answers whether the controller as a whole did.
    pub fn set_blind(&mut self, shard: u16, blind: bool) -> bool {
        let before = self.is_blind();
        if blind {
            self.blind.insert(shard);
        } else {
            self.blind.remove(&shard);
        }
        self.guard.set_own(self.holding());
        before != self.is_blind()
    }

    /// Whether any shard is blind.
    pub fn is_blind(&self) -> bool {
        !self.blind.is_empty()
    }

    /// Why actions are held right now, if they are.
    pub fn holding(&self) -> Option<String> {
        if let Some(pause) = &self.pause {
            return Some(format!("paused until {}: {}", pause.until_ms, pause.reason));
        }
        self.is_blind().then(|| {
            "the controller is blind: it has lost datagrams for longer than doubt_max".to_owned()
        })
    }

    /// Takes a shard's opinion about a host whose recorded row is `row`. `candidates` answers who could
    /// take over; it is asked only for actions that a rule names.
    pub fn take<R: Rng + ?Sized>(
        &mut self,
        row: &HostRow,
        transition: &Transition,
        at: Wall,
        candidates: impl FnOnce(&Wanted<'_>) -> Placement,
        rng: &mut R,
    ) -> Decision {
        let opinion = Opinion {
            controller: self.author.id,
            host: transition.host,
            boot: transition.boot,
            state: transition.state,
        };
        let before = row;
        let mut row = row.clone();
        if !self.tally.agrees(&opinion) {
            return Decision { row, event: None };
        }
        self.guard.advance(transition.at);
        let old_boot = row.boot;
        // Of one of two machines that was not heard since our start no life is known.
        if transition.boot != Boot(0) {
            row.boot = transition.boot;
        }
        row.address = transition.address.or(row.address);
        if !matches!(transition.turn, Turn::Duplicate { .. } | Turn::Single(_)) {
            row.duplicate = transition.duplicate;
        }
        if row.duplicate && !before.duplicate {
            // The turn that told it was merged away.
            let reason = "two machines answer under this identity".to_owned();
            let event = self.beside(EventKind::HostDuplicate, &row, reason, Map::new(), at, rng);
            self.also.push(event);
        }
        let Some(mut story) = story(&mut row, old_boot, transition, at) else {
            let state = of_duplicate(row.state, row.duplicate);
            if row.state != state {
                (row.state, row.since) = (state, at);
            }
            return Decision { row, event: None };
        };
        story.state = of_duplicate(story.state, row.duplicate);
        let kind = story.kind;
        self.damp(before, kind, at, rng);
        let told = !self.is_quiet(before, kind);
        let told = if told { Told::All } else { Told::Nobody };
        let event = self.write(before, &mut row, transition, story, told, at, candidates, rng);
        Decision { row, event: (told == Told::All).then_some(event) }
    }

    /// Counts a fall of a host; from one too many on it flaps.
    fn damp<R: Rng + ?Sized>(&mut self, row: &HostRow, kind: EventKind, at: Wall, rng: &mut R) {
        let penalty = match kind {
            EventKind::HostSuspect => flaps::SUSPECT_PENALTY,
            EventKind::HostDown | EventKind::HostAgentLost | EventKind::HostUnreachable => {
                flaps::DOWN_PENALTY
            }
            _ => return,
        };
        if self.guard.shelter_of(row.id).is_some() {
            return;
        }
        let now = self.guard.now();
        if self.guard.flaps.fell(row.id, penalty, now) {
            self.guard.flap_changed();
            let penalty = self.guard.flaps.penalty(row.id, now);
            let reason = format!(
                "it comes and goes (penalty {penalty:.0}): until it is steady its suspicions are told to \
                 nobody, and it is acted upon only after it has been down for a while"
            );
            let event = self.beside(EventKind::HostFlapping, row, reason, Map::new(), at, rng);
            self.also.push(event);
        }
    }

    /// Whether an event is part of a flapping host's coming and going, of which nobody is told.
    fn is_quiet(&mut self, before: &HostRow, kind: EventKind) -> bool {
        let host = before.id;
        match kind {
            EventKind::HostSuspect if self.guard.flaps.is_flapping(host) => {
                self.guard.flaps.set_quiet(host, true);
                true
            }
            EventKind::HostRecovered => {
                self.guard.flaps.set_quiet(host, false) && before.state == State::Suspect
            }
            _ => {
                self.guard.flaps.set_quiet(host, false);
                false
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a turn, the row on both sides of it, and the world"
    )]
    fn write<R: Rng + ?Sized>(
        &mut self,
        before: &HostRow,
        row: &mut HostRow,
        transition: &Transition,
        story: Story,
        told: Told,
        at: Wall,
        candidates: impl FnOnce(&Wanted<'_>) -> Placement,
        rng: &mut R,
    ) -> NewEvent {
        let incident = match story.incident {
            Incident::Open => {
                let open = row.incident.unwrap_or_else(|| IncidentId::new(at, rng));
                row.incident = Some(open);
                Some(open)
            }
            Incident::Close => row.incident.take(),
            Incident::Keep => row.incident,
        };
        if row.state != story.state {
            row.state = story.state;
            row.since = at;
        }
        row.cause = match transition.turn {
            Turn::Down(cause) => Some(cause),
            Turn::Unreachable => Some(Cause::Unreachable),
            _ if matches!(row.state, State::Down | State::Suspect) => row.cause,
            _ => None,
        };
        row.back_by = match transition.turn {
            Turn::Left { expected, .. } => (!expected.is_zero()).then(|| after(at, expected)),
            _ if matches!(row.state, State::Left | State::Suspect | State::Down) => row.back_by,
            _ => None,
        };
        self.guard.observe(Some(before), Some(row));
        let kind = story.kind;
        let heard = story.audience == Audience::Told;
        let mut choices = self.choose(row, kind, Some(before.state), heard, at);
        if told == Told::All {
            self.settle_waits(row, &story.settle, &choices);
            let gap = Duration::from_millis(transition.evidence.gap_ms);
            self.let_through(&mut choices, &Fall { row, kind, incident, gap, at });
        } else {
            self.settle_waits(row, &Settle::Nothing, &[]);
        }
        let goes = is_action(kind)
            && told == Told::All
            && choices
                .iter()
                .any(|c| c.verdict.disposition == Disposition::Act && !self.rules[c.rule].always);
        let verdicts = verdicts(choices);
        let mut data = self.describe(row, incident, &story);
        let evidence = serde_json::to_value(transition.evidence).unwrap_or(Value::Null);
        data.insert("evidence".to_owned(), evidence);
        data.extend(story.extra);
        // A dry run names them too: it is to show what would be sent.
        if is_action(story.kind) && !verdicts.is_empty() {
            let same = self.candidates_same(story.kind, &row.labels);
            let placement = self.place(row, &same, candidates);
            // What is held, or only an alert, takes nobody's place.
            if goes {
                self.promise(&placement);
            }
            placement.write(&mut data);
        }
        data.insert("verdicts".to_owned(), json!(verdicts));
        NewEvent {
            id: EventId::new(at, rng),
            kind: story.kind,
            at,
            host: Some(row.id),
            incident,
            data,
            row: Some(row.clone()),
            settle: story.settle,
            deliveries: deliveries(&verdicts),
            audience: story.audience,
        }
    }

    fn describe(
        &self,
        row: &HostRow,
        incident: Option<IncidentId>,
        story: &Story,
    ) -> Map<String, Value> {
        let mut data = Map::new();
        data.insert(
            "host".to_owned(),
            json!({
                "id": row.id,
                "name": row.name,
                "labels": row.labels,
                "address": row.address,
            }),
        );
        data.insert("incident".to_owned(), json!(incident));
        data.insert("state".to_owned(), json!(story.state));
        data.insert("cause".to_owned(), json!(row.cause));
        data.insert("boot".to_owned(), json!(row.boot));
        data.insert("reason".to_owned(), json!(story.reason));
        data.insert("controller".to_owned(), self.signature());
        data
    }

    fn signature(&self) -> Value {
        json!({ "id": self.author.id, "name": self.author.name })
    }

    /// Who would be told of an event, before anything holds it. Of several rules that choose one receiver
    /// the first that does not suppress it counts. `heard`: it is for those who heard of the incident.
    fn choose(
        &self,
        row: &HostRow,
        kind: EventKind,
        from: Option<State>,
        heard: bool,
        at: Wall,
    ) -> Vec<Choice> {
        let shelter = self.guard.shelter_of(row.id).filter(|_| is_alert(kind)).map(|w| w.words());
        let of = Subject { kind, labels: Some(&row.labels), from };
        rules::choose(&self.rules, of, heard, |rule| {
            if let Some(reason) = rule.suppresses(kind, at) {
                Disposition::Suppress { reason }
            } else if let Some(reason) = shelter.as_ref().filter(|_| !rule.always) {
                Disposition::Suppress { reason: reason.clone() }
            } else {
                Disposition::Act
            }
        })
    }

    /// An event of the controller's own; rules without label conditions apply.
    pub fn own_event<R: Rng + ?Sized>(
        &self,
        kind: EventKind,
        reason: &str,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        self.domain_event(kind, &BTreeMap::new(), one("reason", json!(reason)), at, rng)
    }

    /// An event of a failure domain; rules whose conditions its labels meet apply.
    fn domain_event<R: Rng + ?Sized>(
        &self,
        kind: EventKind,
        labels: &BTreeMap<String, String>,
        mut data: Map<String, Value>,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        let of = Subject { kind, labels: Some(labels), from: None };
        let choices =
            rules::choose(&self.rules, of, false, |rule| match rule.suppresses(kind, at) {
                Some(reason) => Disposition::Suppress { reason },
                None => Disposition::Act,
            });
        let verdicts = verdicts(choices);
        data.insert("controller".to_owned(), self.signature());
        data.insert("verdicts".to_owned(), json!(verdicts));
        NewEvent {
            id: EventId::new(at, rng),
            kind,
            at,
            host: None,
            incident: None,
            data,
            row: None,
            settle: Settle::Nothing,
            deliveries: deliveries(&verdicts),
            audience: Audience::All,
        }
    }

    /// An event of a host beside its story: it leaves its state, its row and its orders alone.
    fn beside<R: Rng + ?Sized>(
        &self,
        kind: EventKind,
        row: &HostRow,
        reason: String,
        extra: Map<String, Value>,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        let story = Story {
            kind,
            state: row.state,
            settle: Settle::Nothing,
            audience: Audience::All,
            incident: Incident::Keep,
            reason,
            extra: Map::new(),
        };
        let verdicts = verdicts(self.choose(row, kind, None, false, at));
        let mut data = self.describe(row, row.incident, &story);
        data.extend(extra);
        data.insert("verdicts".to_owned(), json!(verdicts));
        NewEvent {
            id: EventId::new(at, rng),
            kind,
            at,
            host: Some(row.id),
            incident: row.incident,
            data,
            row: None,
            settle: story.settle,
            deliveries: deliveries(&verdicts),
            audience: story.audience,
        }
    }

    /// The event that goes with a host's removal from the registry.
    pub fn forgotten<R: Rng + ?Sized>(
        &self,
        row: &HostRow,
        reason: &str,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        // What is kept back of it is cancelled with this event, and is told nowhere else.
        let host = guard::Target::Host(row.id);
        let (reason, extra) = match self.held_before(&host, at) {
            Some(held) => (
                format!("{reason}; its held order will not be sent (it was held because: {held})"),
                one("held_for", json!(held)),
            ),
            None => (reason.to_owned(), Map::new()),
        };
        let event = self.beside(EventKind::HostForgotten, row, reason, extra, at, rng);
        NewEvent { settle: Settle::All, ..event }
    }

    /// The event that goes with a change of where a host's margin is kept; `row` is the changed one.
    pub fn frozen<R: Rng + ?Sized>(&self, row: &HostRow, at: Wall, rng: &mut R) -> NewEvent {
        let (kind, reason) = match row.frozen_ms {
            Some(ms) => (EventKind::HostFrozen, format!("an operator keeps its margin at {ms} ms")),
            None => (EventKind::HostUnfrozen, "an operator lets its margin learn again".to_owned()),
        };
        let extra = one("frozen_ms", json!(row.frozen_ms));
        let event = self.beside(kind, row, reason, extra, at, rng);
        NewEvent { row: Some(row.clone()), ..event }
    }

    /// The event that goes with an operator's word that of two machines under one identity one is left; `row`
    /// is the changed one.
    pub fn singled<R: Rng + ?Sized>(
        &self,
        row: &HostRow,
        word: &Word,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        let reason = format!("{} says that one machine is left: {}", word.by, word.reason);
        let extra = one("by", json!(word.by));
        let event = self.beside(EventKind::HostSingle, row, reason, extra, at, rng);
        NewEvent { row: Some(row.clone()), ..event }
    }

    /// Whether an order about an incident is still true of a host as it stands now (`None`: forgotten).
    /// `Err` says why not.
    pub fn rejudge(
        row: Option<&HostRow>,
        kind: EventKind,
        incident: Option<IncidentId>,
    ) -> Result<(), String> {
        let wanted = match kind {
            EventKind::HostDown | EventKind::HostAgentLost => State::Down,
            EventKind::HostSuspect | EventKind::HostUnreachable | EventKind::HostOverdue => {
                State::Suspect
            }
            EventKind::HostMissing => State::Pending,
            // Older news of a host must not come after newer: it is told only while it is how things are.
            EventKind::HostJoined | EventKind::HostRecovered | EventKind::HostRestarted => {
                State::Alive
            }
            EventKind::HostLeft => State::Left,
            EventKind::IncidentEscalated if row.is_none_or(|row| row.incident != incident) => {
                return Err("that outage ended".to_owned());
            }
            _ => return Ok(()),
        };
        let ended = matches!(wanted, State::Alive | State::Left);
        let Some(row) = row else { return Err("the host was forgotten meanwhile".to_owned()) };
        if row.state.heard() != wanted {
            return Err(format!("the host is {} now", row.state));
        }
        if kind == EventKind::HostAgentLost && row.cause == Some(Cause::Silent) {
            return Err("its machine does not answer any more either".to_owned());
        }
        if kind == EventKind::HostUnreachable && row.cause != Some(Cause::Unreachable) {
            return Err("the host is no longer known to be alive but unreachable".to_owned());
        }
        if !ended && row.incident != incident {
            return Err("that outage ended; the host is in another one now".to_owned());
        }
        Ok(())
    }
}

/// Whether receivers act on it: these are held in doubt.
pub const fn is_action(kind: EventKind) -> bool {
    matches!(kind, EventKind::HostDown | EventKind::HostAgentLost | EventKind::HostUnreachable)
}

/// Whether somebody follows what becomes of it at a receiver: orders, and what was made of them.
pub const fn is_followed(kind: EventKind) -> bool {
    is_action(kind) || matches!(kind, EventKind::IncidentEscalated)
}

/// Whether it alerts people of a host that may be at fault: of these nobody hears during maintenance.
fn is_alert(kind: EventKind) -> bool {
    matches!(kind, EventKind::HostSuspect | EventKind::HostMissing | EventKind::HostOverdue)
}

/// The order that a host as it stands would cause: what is held of it is judged against that.
pub fn order_of(row: Option<&HostRow>) -> EventKind {
    match row.and_then(|r| r.cause) {
        Some(Cause::AgentLost) => EventKind::HostAgentLost,
        Some(Cause::Unreachable) => EventKind::HostUnreachable,
        Some(Cause::Silent) | None => EventKind::HostDown,
    }
}

/// Whether a host that is down because its agent is lost is now down as its machine does not answer either.
fn is_worse(row: &HostRow, t: &Transition) -> bool {
    row.state == State::Down && row.cause == Some(Cause::AgentLost) && t.evidence.agent_lost
}

fn verdicts(choices: Vec<Choice>) -> Vec<Verdict> {
    choices.into_iter().map(|choice| choice.verdict).collect()
}

fn deliveries(verdicts: &[Verdict]) -> Vec<NewDelivery> {
    verdicts
        .iter()
        .filter_map(|v| {
            let hold = match &v.disposition {
                Disposition::Act => None,
                Disposition::Hold { reason } => Some(reason.clone()),
                Disposition::Suppress { .. } | Disposition::Later { .. } => return None,
            };
            Some(NewDelivery { receiver: v.receiver.clone(), hold })
        })
        .collect()
}

fn one(key: &str, value: Value) -> Map<String, Value> {
    Map::from_iter([(key.to_owned(), value)])
}

/// What a turn means for a host that was recorded as `row`; `None` if nothing new.
fn story(row: &mut HostRow, old_boot: Boot, t: &Transition, at: Wall) -> Option<Story> {
    let recorded = row.state.heard();
    let (silence_s, overdue_s) =
        (t.evidence.silence_ms as f64 / 1e3, t.evidence.overdue_ms as f64 / 1e3);
    let silent = silent(&t.evidence);
    match t.turn {
        Turn::Joined | Turn::Recovered { .. } | Turn::Restarted => {
            let same_boot = match t.turn {
                Turn::Recovered { same_boot } => same_boot,
                _ => old_boot == t.boot,
            };
            // After a restart of the controller it began to listen anew: the row knows of the time before.
            let known_s = match recorded {
                State::Suspect | State::Down => at.0.saturating_sub(row.since.0) as f64 / 1e3,
                _ => 0.0,
            };
            alive(row, same_boot, old_boot, t.boot, silence_s.max(known_s))
        }
        Turn::Suspect => (recorded == State::Alive).then(|| Story {
            kind: EventKind::HostSuspect,
            state: State::Suspect,
            settle: Settle::Nothing,
            audience: Audience::All,
            incident: Incident::Open,
            reason: match t.evidence.unheard {
                true => format!("{silent}: the time that it had for that is over; probing"),
                false => format!(
                    "{silent}, {overdue_s:.2} s later than expected, with a margin of {:.2} s ({}); probing",
                    t.evidence.margin_ms / 1e3,
                    t.evidence.margin_source,
                ),
            },
            extra: Map::new(),
        }),
        Turn::Unreachable => {
            let new = row.cause != Some(Cause::Unreachable);
            let news = matches!(recorded, State::Alive | State::Suspect) && new;
            news.then(|| Story {
                kind: EventKind::HostUnreachable,
                state: State::Suspect,
                settle: Settle::SameReceivers,
                audience: Audience::All,
                incident: Incident::Open,
                reason: format!(
                    "{silent} and {} probes went unanswered, but {} of {} peers in \
                     other failure domains brought back its answer: it lives, and the network between \
                     it and the controller is cut",
                    t.evidence.probes_sent, t.evidence.testimonies, t.evidence.peers_asked,
                ),
                extra: Map::new(),
            })
        }
        Turn::Down(cause) => (recorded != State::Down || is_worse(row, t)).then(|| Story {
            kind: match cause {
                Cause::AgentLost => EventKind::HostAgentLost,
                Cause::Silent | Cause::Unreachable => EventKind::HostDown,
            },
            state: State::Down,
            settle: match row.cause {
                // What was said of it is no longer true for anybody.
                Some(Cause::Unreachable) => Settle::All,
                Some(Cause::AgentLost) if is_worse(row, t) => Settle::All,
                _ => Settle::SameReceivers,
            },
            audience: Audience::All,
            incident: Incident::Open,
            reason: match cause {
                Cause::Silent if is_worse(row, t) => format!(
                    "its agent was gone, but its machine answered; now {} probes in a row went \
                     unanswered{}",
                    t.evidence.probes_sent,
                    through_peers(&t.evidence),
                ),
                Cause::Silent | Cause::Unreachable => format!(
                    "{silent} and {} probes went unanswered{}",
                    t.evidence.probes_sent,
                    through_peers(&t.evidence),
                ),
                Cause::AgentLost => format!(
                    "{silent}; its kernel answers the probes with `port \
                     unreachable`: the host is up, its agent is gone"
                ),
            },
            extra: Map::new(),
        }),
        Turn::Left { reason, expected } => (recorded != State::Left).then(|| Story {
            kind: EventKind::HostLeft,
            state: State::Left,
            settle: Settle::All,
            audience: Audience::All,
            incident: Incident::Close,
            reason: match expected.is_zero() {
                true => format!("said goodbye for good: {}", reason.as_str()),
                false => format!(
                    "said goodbye: {}; it is expected back within {}",
                    reason.as_str(),
                    humantime::format_duration(expected)
                ),
            },
            extra: Map::from_iter([
                ("leave_reason".to_owned(), json!(reason)),
                ("expected_away_s".to_owned(), json!(expected.as_secs())),
            ]),
        }),
        Turn::Missing => (recorded == State::Pending && row.incident.is_none()).then(|| Story {
            kind: EventKind::HostMissing,
            state: State::Pending,
            settle: Settle::Nothing,
            audience: Audience::All,
            incident: Incident::Open,
            reason: "expected, but never heard".to_owned(),
            extra: Map::new(),
        }),
        Turn::Overdue { expected } => (recorded == State::Left).then(|| Story {
            kind: EventKind::HostOverdue,
            state: State::Suspect,
            settle: Settle::Nothing,
            audience: Audience::All,
            incident: Incident::Open,
            reason: format!(
                "it said goodbye {:.0} s ago, was to be back by {}, and is not; probing",
                // A goodbye of before our start is known by the row alone.
                match t.evidence.unheard {
                    true => at.0.saturating_sub(row.since.0) as f64 / 1e3,
                    false => silence_s,
                },
                row.back_by.map_or_else(|| "now".to_owned(), |at| at.to_string())
            ),
            extra: one("expected_away_s", json!(expected.as_secs())),
        }),
        Turn::Duplicate { other, address } => (!row.duplicate).then(|| {
            row.duplicate = true;
            let at = |address: Option<std::net::SocketAddr>| {
                address.map_or_else(|| "an unknown address".to_owned(), |a| a.to_string())
            };
            Story {
                kind: EventKind::HostDuplicate,
                state: recorded,
                settle: Settle::Nothing,
                audience: Audience::All,
                incident: Incident::Keep,
                reason: format!(
                    "two machines answer under this identity: boot {} at {}, and boot {other} at {}; \
                     what is ordered of it is held until one is left for certain",
                    t.boot,
                    at(t.address),
                    at(address)
                ),
                extra: Map::from_iter([
                    ("other_boot".to_owned(), json!(other)),
                    ("other_address".to_owned(), json!(address)),
                ]),
            }
        }),
        Turn::Single(why) => row.duplicate.then(|| {
            row.duplicate = false;
            Story {
                kind: EventKind::HostSingle,
                state: recorded,
                settle: Settle::Nothing,
                audience: Audience::All,
                incident: Incident::Keep,
                reason: match (why, recorded) {
                    (OneLeft::Rekeyed, _) => format!(
                        "it was given a new key, which boot {} has: what had the old one is believed no more",
                        t.boot
                    ),
                    (OneLeft::Silent, State::Down) => format!(
                        "the other machine has been silent for {}, too: what is left is one, which is down",
                        humantime::format_duration(DUPLICATE_WINDOW)
                    ),
                    (OneLeft::Silent, _) => format!(
                        "only boot {} has answered for {}: the other machine has fallen silent",
                        t.boot,
                        humantime::format_duration(DUPLICATE_WINDOW)
                    ),
                },
                extra: Map::new(),
            }
        }),
        Turn::Forgettable => None,
    }
}

/// For how long nothing was heard, as far as this controller can know.
fn silent(evidence: &Evidence) -> String {
    let seconds = evidence.silence_ms as f64 / 1e3;
    match evidence.unheard {
        true => format!("not heard since this controller began to listen {seconds:.2} s ago"),
        false => format!("silent for {seconds:.2} s"),
    }
}

/// What peers could tell of a host that is down.
fn through_peers(evidence: &Evidence) -> String {
    match (evidence.peers_asked, evidence.testimonies) {
        (0, _) => String::new(),
        (asked, 0) => format!(", and so did {asked} through peers"),
        (_, brought) => {
            format!("; {brought} answers came through peers, until they too heard nothing")
        }
    }
}

/// What a proof of life means for a host as it was recorded.
fn alive(
    row: &HostRow,
    same_boot: bool,
    old_boot: Boot,
    boot: Boot,
    silence_s: f64,
) -> Option<Story> {
    let (recorded, duplicate) = (row.state.heard(), row.duplicate);
    let cut = row.cause == Some(Cause::Unreachable);
    let (kind, audience, reason) = match recorded {
        State::Pending => {
            (EventKind::HostJoined, Audience::All, "heard for the first time".to_owned())
        }
        State::Alive | State::Duplicate if same_boot => return None,
        // Two that take turns: said once, not at every turn.
        State::Alive | State::Duplicate if duplicate => return None,
        State::Alive | State::Duplicate => (
            EventKind::HostRestarted,
            Audience::All,
            format!("boot {old_boot} became {boot} without an outage in between"),
        ),
        State::Left if !same_boot => (
            EventKind::HostRestarted,
            Audience::All,
            format!("back after its goodbye, as boot {boot}"),
        ),
        State::Left => (
            EventKind::HostRecovered,
            Audience::All,
            "goes on after its goodbye, with the same boot".to_owned(),
        ),
        State::Suspect if same_boot && cut => (
            EventKind::HostRecovered,
            Audience::Told,
            format!(
                "back after {silence_s:.2} s with the same boot: the network was cut, it lived on"
            ),
        ),
        State::Suspect | State::Down if same_boot => (
            EventKind::HostRecovered,
            Audience::Told,
            format!("back after {silence_s:.2} s with the same boot: we were wrong, it lived on"),
        ),
        State::Suspect | State::Down => (
            EventKind::HostRecovered,
            Audience::Told,
            format!("back after {silence_s:.2} s as boot {boot}: it had crashed or restarted"),
        ),
    };
    Some(Story {
        kind,
        state: State::Alive,
        settle: Settle::All,
        audience,
        incident: Incident::Close,
        reason,
        extra: Map::from_iter([
            ("same_boot".to_owned(), json!(same_boot)),
            ("from".to_owned(), json!(recorded)),
            ("from_cause".to_owned(), json!(row.cause)),
        ]),
    })
}

/// A row for a host that was never registered before.
pub fn new_row(id: HostId, at: Wall) -> HostRow {
    HostRow {
        id,
        name: String::new(),
        labels: Default::default(),
        os: String::new(),
        agent_version: String::new(),
        state: State::Pending,
        cause: None,
        boot: Boot(0),
        generation: Default::default(),
        address: None,
        first_seen: at,
        since: at,
        incident: None,
        duplicate: false,
        frozen_ms: None,
        back_by: None,
    }
}

#[cfg(test)]
mod tests;
