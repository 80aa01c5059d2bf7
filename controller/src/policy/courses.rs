//! What follows an order: a rule's steps, the answers, and whom to turn to if none comes. Pure.
//!
//! ```text
//! first[0] → first[1] → … → receivers → (nobody did it in time) escalate[0] → escalate[1] → …
//! ```
//!
//! An order goes to the next step once the one before is *done*: accepted, or reported as completed if
//! the rule sets `complete_within`. A step that fails (given up, reported as failed, late) never leads to the
//! next; it is escalated, each step by itself: the next receiver of `escalate` is told of it, or, if the rule
//! consents (`escalate_acts`), ordered to act in place of the one before, under a higher token. A veto is an
//! answer: it ends the course, and is told, to those of `escalate` too. Of a rule without any plan nothing is
//! followed, but vetoes and failures are told all the same.
//!
//! Nothing of a course is kept but how long it stands where it stands: [`look`] derives it from the journal
//! each time. So a controller that dies between any two steps goes on with the right one, and no step
//! is lost or made twice because of what memory held. Spans are measured by the monotonic clock
//! ([`Ages`]): a stepped wall clock matters only to what had begun before a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::time::{Instant, Wall};

use super::is_action;
use crate::event::{EventId, EventKind, IncidentId};
use crate::store::{DeliveryId, DeliveryRow, DeliveryState, EventRow, Token};

/// Receivers in one list of a plan.
pub const STEPS_MAX: usize = 8;

/// What a rule says of its orders beyond whom they go to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Receivers that must have done it, one after another, before the rule's receivers are ordered to.
    pub first: Vec<String>,
    /// How long an order may wait for being accepted; zero: as long as deliveries are tried.
    pub accept_within: Duration,
    /// How long after that it may take until it is reported as completed; zero: accepted is as good as done.
    pub complete_within: Duration,
    /// Who is turned to, in this order.
    pub escalate: Vec<String>,
    /// Whether those act, under a higher token, and are not just told.
    pub escalate_acts: bool,
}

impl Plan {
    /// Whether anything follows an order.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A rule's plan with what it is applied to.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The rule's name.
    pub rule: &'a str,
    /// Its receivers.
    pub receivers: &'a [String],
    /// The rest.
    pub plan: &'a Plan,
}

/// What a receiver reported of an order that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// It has done it.
    Completed,
    /// It could not.
    Failed,
}

/// What is journaled of an incident's orders.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The incident.
    pub incident: IncidentId,
    /// The kind of order that the host causes as it stands.
    pub kind: EventKind,
    /// The deliveries of the incident, by rising id.
    pub deliveries: &'a [DeliveryRow],
    /// Events of the host, in any order, those of the incident among them.
    pub events: &'a [EventRow],
}

/// Where a course stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// At this one of [`Plan::first`].
    First(usize),
    /// At the rule's receivers.
    Receivers,
    /// At this one of [`Plan::escalate`].
    Escalated(usize),
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Order the same of these, at the next stage.
    Order {
        /// The stage that begins.
        stage: Stage,
        /// Who.
        receivers: Vec<String>,
        /// Who is not to act any more.
        instead_of: Vec<String>,
        /// Why now.
        reason: String,
    },
    /// Tell this receiver of `escalate` that nobody did it.
    Tell {
        /// At which stage nobody did it.
        stage: Stage,
        /// Its place there.
        level: usize,
        /// Who.
        receiver: String,
        /// What happened.
        reason: String,
    },
    /// Say that another was ordered to act, to those who are not to act any more too.
    Hand {
        /// The place in `escalate` of who was ordered.
        level: usize,
        /// Who was.
        receiver: String,
        /// Who may have heard of the order before.
        instead_of: Vec<String>,
    },
    /// Say that it failed, and that nobody is left.
    Fail {
        /// At which stage.
        stage: Stage,
        /// What happened.
        reason: String,
    },
    /// Say that a receiver refused.
    Veto {
        /// Who.
        receiver: String,
        /// Which order.
        event: EventId,
        /// Why.
        reason: String,
    },
}

impl Step {
    /// Whether somebody is made to act by it.
    pub fn acts(&self) -> bool {
        matches!(self, Self::Order { .. })
    }

    /// What tells it from other steps of the same course.
    pub fn key(&self) -> (u8, String) {
        match self {
            Self::Order { stage, .. } => (0, format!("{stage:?}")),
            Self::Tell { stage, level, .. } => (1, format!("{stage:?} {level}")),
            Self::Hand { level, .. } => (2, level.to_string()),
            Self::Fail { stage, .. } => (3, format!("{stage:?}")),
            Self::Veto { receiver, event, .. } => (4, format!("{event} {receiver}")),
        }
    }
}

/// What a look at a course found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// To be done now.
    pub step: Option<Step>,
    /// When to look again if nothing else happens.
    pub again: Option<Instant>,
}

/// Since when each delivery has been in its state, by the monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    seen: BTreeMap<DeliveryId, (DeliveryState, Instant)>,
}

impl Ages {
    /// Since when a delivery has been as it is. One that is seen for the first time has been so for as long
    /// as the wall clock says, but not longer than `most`: a clock that was set forward ages nothing by
    /// years.
    pub fn since(
        &mut self,
        row: &DeliveryRow,
        most: Duration,
        (now, wall): (Instant, Wall),
    ) -> Instant {
        let age = wall.0.saturating_sub(row.changed_ms.0);
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0)).min(most);
        let entry = self.seen.entry(row.id).or_insert_with(|| {
            (row.state, Instant(now.0.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(0))))
        });
        if entry.0 != row.state {
            *entry = (row.state, now);
        }
        entry.1
    }
}

/// How an order stands with one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// Held, cancelled or superseded: none of our business.
    Still,
    Ordered,
    Accepted,
    Done,
    Vetoed(String),
    Failed(String),
}

/// Looks where the course of an order stands and what follows.
pub fn look(
    route: Route<'_>,
    facts: Facts<'_>,
    ages: &mut Ages,
    (now, wall): (Instant, Wall),
) -> Look {
    let Some((stage, rows)) = stage_of(route, facts) else { return Look::default() };
    let plan = route.plan;
    if let Stage::Escalated(level) = stage
        && let Some(step) = handed(route, facts, level)
    {
        return Look { step: Some(step), again: None };
    }
    let mut again: Option<Instant> = None;
    let mut done = true;
    let mut failed = taken_back(route, facts, stage);
    // What was said before this stage began was said of another.
    let begun = rows.iter().filter_map(|row| row.token).min();
    for row in rows {
        let progress = progress(row, facts, plan);
        let ordered = progress == Progress::Ordered;
        let within = match progress {
            Progress::Done => continue,
            Progress::Vetoed(reason) => {
                if let Some(step) = vetoed(row, reason, facts) {
                    return Look { step: Some(step), again: None };
                }
                Duration::ZERO
            }
            Progress::Failed(why) => {
                failed = failed.or(Some(format!("`{}` failed: {why}", row.receiver)));
                continue;
            }
            Progress::Still => Duration::ZERO,
            Progress::Ordered => plan.accept_within,
            Progress::Accepted => plan.complete_within,
        };
        done = false;
        if within.is_zero() {
            continue;
        }
        let due = ages.since(row, within, (now, wall)) + within;
        if due > now {
            again = Some(again.map_or(due, |a| a.min(due)));
        } else if failed.is_none() {
            let what = if ordered { "accepted" } else { "completed" };
            let within = humantime::format_duration(within);
            failed = Some(format!("`{}` has not {what} it within {within}", row.receiver));
        }
    }
    if let Some(why) = failed {
        let step = escalate(route, facts, (stage, begun), why, ages, (now, wall));
        return Look { again: step.again.or(again), ..step };
    }
    let step = done.then(|| next(route, stage)).flatten();
    Look { step, again }
}

/// The stage that was reached, and its orders.
fn stage_of<'a>(route: Route<'_>, facts: Facts<'a>) -> Option<(Stage, Vec<&'a DeliveryRow>)> {
    let told = |receiver: &String| newest(facts, facts.kind, receiver);
    let at =
        |list: &[String]| (0..list.len()).rev().find_map(|i| Some((i, vec![told(list.get(i)?)?])));
    if route.plan.escalate_acts
        && let Some((i, row)) = at(&route.plan.escalate)
    {
        return Some((Stage::Escalated(i), row));
    }
    let rows: Vec<_> = route.receivers.iter().filter_map(told).collect();
    if !rows.is_empty() {
        return Some((Stage::Receivers, rows));
    }
    at(&route.plan.first).map(|(i, row)| (Stage::First(i), row))
}

/// Whether a step that was done, and went on to this one, was reported as failed since.
fn taken_back(route: Route<'_>, facts: Facts<'_>, stage: Stage) -> Option<String> {
    let Stage::First(at) = stage else { return None };
    let failed = |receiver: &&String| {
        let row = newest(facts, facts.kind, receiver);
        row.and_then(|row| report_of(row, facts.events)) == Some(Reported::Failed)
    };
    let who = route.plan.first.iter().take(at).find(failed)?;
    Some(format!("`{who}` failed: it says so"))
}

/// The token of the first order of this kind: what was said before was said of another. An unreachable host
/// may have had a whole course of its own before it was down.
fn first_token(facts: Facts<'_>) -> Option<Token> {
    let own = |d: &&DeliveryRow| d.kind == facts.kind && d.incident == Some(facts.incident);
    facts.deliveries.iter().filter(own).filter_map(|d| d.token).min()
}

/// Events of this kind that were journaled about these orders.
fn said<'a>(facts: Facts<'a>, kind: EventKind) -> impl Iterator<Item = &'a EventRow> {
    let first = first_token(facts);
    facts
        .events
        .iter()
        .filter(move |e| e.kind == kind && e.incident == Some(facts.incident) && e.token >= first)
}

/// The newest delivery of this kind to a receiver; an order is journaled again under a higher token at times.
fn newest<'a>(facts: Facts<'a>, kind: EventKind, receiver: &str) -> Option<&'a DeliveryRow> {
    let first = first_token(facts);
    let of = |d: &&DeliveryRow| {
        d.kind == kind
            && d.receiver == receiver
            && d.incident == Some(facts.incident)
            && d.token >= first
    };
    facts.deliveries.iter().rev().find(of)
}

fn progress(row: &DeliveryRow, facts: Facts<'_>, plan: &Plan) -> Progress {
    let why = || row.reason.clone().unwrap_or_default();
    match (report_of(row, facts.events), row.state) {
        (Some(Reported::Completed), _) => Progress::Done,
        (Some(Reported::Failed), _) => Progress::Failed("it says so".to_owned()),
        (None, DeliveryState::Delivered) if plan.complete_within.is_zero() => Progress::Done,
        (None, DeliveryState::Delivered) => Progress::Accepted,
        (None, DeliveryState::Pending) => Progress::Ordered,
        (None, DeliveryState::Vetoed) => Progress::Vetoed(why()),
        (None, DeliveryState::Dead) => Progress::Failed(format!("given up ({})", why())),
        (None, DeliveryState::Held | DeliveryState::Cancelled | DeliveryState::Superseded) => {
            Progress::Still
        }
    }
}

/// What a receiver reported of an order, by the events of the host.
pub fn report_of(row: &DeliveryRow, events: &[EventRow]) -> Option<Reported> {
    events.iter().find_map(|event| {
        let reported = match event.kind {
            EventKind::IncidentCompleted => Reported::Completed,
            EventKind::IncidentFailed => Reported::Failed,
            _ => return None,
        };
        let of_it = event.incident == row.incident
            && event.data.get("receiver").and_then(|r| r.as_str()) == Some(&row.receiver)
            && event.data.get("order_token").and_then(serde_json::Value::as_u64)
                == row.token.map(|t| t.0);
        of_it.then_some(reported)
    })
}

/// Whether another was ordered to act in its place, by the events of the host.
pub fn is_handed_on(row: &DeliveryRow, events: &[EventRow]) -> bool {
    events.iter().any(|e| {
        let instead_of = e.data.get("instead_of").and_then(|list| list.as_array());
        is_action(e.kind)
            && e.incident == row.incident
            && e.token > row.token
            && instead_of.is_some_and(|l| l.iter().any(|r| r.as_str() == Some(&row.receiver)))
    })
}

fn vetoed(row: &DeliveryRow, reason: String, facts: Facts<'_>) -> Option<Step> {
    let said = facts.events.iter().any(|e| {
        e.kind == EventKind::IncidentVetoed
            && e.incident == row.incident
            && e.data.get("order").and_then(|o| o.as_str()) == Some(&row.event.to_string())
            && e.data.get("receiver").and_then(|r| r.as_str()) == Some(&row.receiver)
    });
    let receiver = row.receiver.clone();
    (!said).then_some(Step::Veto { receiver, event: row.event, reason })
}

/// What is still to be said of an order that was handed on.
fn handed(route: Route<'_>, facts: Facts<'_>, level: usize) -> Option<Step> {
    let said = said(facts, EventKind::IncidentEscalated).any(|e| {
        e.data.get("rule").and_then(|r| r.as_str()) == Some(route.rule)
            && e.data.get("receiver").is_some()
            && e.data.get("level").and_then(serde_json::Value::as_u64) == u64::try_from(level).ok()
    });
    let begun = |receiver: &&String| {
        newest(facts, facts.kind, receiver).is_some_and(|row| row.attempts > 0)
    };
    let before = before(route, Stage::Escalated(level));
    let instead_of = before.iter().filter(begun).cloned().collect();
    let receiver = route.plan.escalate.get(level)?.clone();
    (!said).then_some(Step::Hand { level, receiver, instead_of })
}

/// Who was to act before this stage of an escalation.
fn before(route: Route<'_>, stage: Stage) -> Vec<String> {
    match stage {
        Stage::Escalated(0) => route.receivers.to_vec(),
        Stage::Escalated(i) => route.plan.escalate.get(i - 1).cloned().into_iter().collect(),
        Stage::First(_) | Stage::Receivers => Vec::new(),
    }
}

fn next(route: Route<'_>, stage: Stage) -> Option<Step> {
    let Stage::First(i) = stage else { return None };
    let by = route.plan.first.get(i)?;
    let verb = if route.plan.complete_within.is_zero() { "accepted" } else { "completed" };
    let reason = format!("`{by}` has {verb} it");
    let instead_of = Vec::new();
    let (stage, receivers) = match route.plan.first.get(i + 1) {
        Some(next) => (Stage::First(i + 1), vec![next.clone()]),
        None => (Stage::Receivers, route.receivers.to_vec()),
    };
    Some(Step::Order { stage, receivers, instead_of, reason })
}

fn escalate(
    route: Route<'_>,
    facts: Facts<'_>,
    (stage, begun): (Stage, Option<Token>),
    why: String,
    ages: &mut Ages,
    time: (Instant, Wall),
) -> Look {
    let plan = route.plan;
    // What a step that must come first has not done is not asked of others: it is for people.
    let acts = plan.escalate_acts && !matches!(stage, Stage::First(_));
    let now = |step| Look { step: Some(step), again: None };
    if acts {
        let level = match stage {
            Stage::Escalated(i) => i + 1,
            Stage::First(_) | Stage::Receivers => 0,
        };
        let Some(receiver) = plan.escalate.get(level) else {
            return fail(route, facts, (stage, begun), why);
        };
        let (stage, receivers) = (Stage::Escalated(level), vec![receiver.clone()]);
        let instead_of = before(route, stage);
        return now(Step::Order { stage, receivers, instead_of, reason: why });
    }
    for (level, receiver) in plan.escalate.iter().enumerate() {
        let told = newest(facts, EventKind::IncidentEscalated, receiver);
        let Some(row) = told.filter(|row| row.token > begun) else {
            return now(Step::Tell { stage, level, receiver: receiver.clone(), reason: why });
        };
        // Who was told knows; who could not be told in time is passed over.
        match row.state {
            DeliveryState::Dead => {}
            DeliveryState::Pending if !plan.accept_within.is_zero() => {
                let due = ages.since(row, plan.accept_within, time) + plan.accept_within;
                if due > time.0 {
                    return Look { step: None, again: Some(due) };
                }
            }
            _ => return Look::default(),
        }
    }
    fail(route, facts, (stage, begun), why)
}

fn fail(
    route: Route<'_>,
    facts: Facts<'_>,
    (stage, begun): (Stage, Option<Token>),
    why: String,
) -> Look {
    let said = said(facts, EventKind::IncidentFailed)
        .filter(|e| e.token > begun)
        .any(|e| e.data.get("rule").and_then(|r| r.as_str()) == Some(route.rule));
    let left = if route.plan.escalate.is_empty() {
        "the rule names nobody to turn to"
    } else {
        "nobody is left to turn to"
    };
    let reason = format!("{why}, and {left}");
    Look { step: (!said).then_some(Step::Fail { stage, reason }), again: None }
}

#[cfg(test)]
mod tests;
