//! The policy's side of what follows an order: which courses a host's orders take, and what each step
//! journals.

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use rand::Rng;
use serde_json::{Map, Value, json};

use super::courses::{Reported, Route, Stage, Step};
use super::placement::{Placement, Wanted};
use super::rules::Subject;
use super::{Policy, order_of, rules};
use crate::event::{EventKind, IncidentId};
use crate::store::{HostRow, NewDelivery, NewEvent, Settle, Token};

/// What a receiver reports of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who.
    pub receiver: String,
    /// Of the order with this token.
    pub token: Token,
    /// How it ended.
    pub reported: Reported,
    /// In its words; may be empty.
    pub reason: String,
}

impl Policy {
    /// The courses that the orders of a host as it stands take, by rule. `all`: of rules without a plan, too,
    /// of which nothing is to be said but that an order was refused or given up.
    pub fn routes<'a>(&'a self, row: &'a HostRow, all: bool) -> impl Iterator<Item = Route<'a>> {
        let of = Subject { kind: order_of(Some(row)), labels: Some(&row.labels), from: None };
        rules::matching(&self.rules, of)
            .filter(move |(_, rule)| !rule.dry_run && (all || !rule.plan.is_empty()))
            .map(|(_, rule)| Route {
                rule: &rule.name,
                receivers: &rule.receivers,
                plan: &rule.plan,
            })
    }

    /// Whether somebody may be made to act about a host now.
    pub fn may_act_on(&self, host: HostId) -> bool {
        self.holding().is_none() && self.guard.shelter_of(host).is_none()
    }

    /// Whether anything follows any order.
    pub fn follows(&self) -> bool {
        self.rules.iter().any(|rule| !rule.plan.is_empty())
    }

    /// What a step of a course journals. `None`: what it was about is no longer true. `candidates` answers
    /// who could take over; it is asked for orders only.
    #[expect(clippy::too_many_arguments, reason = "a step, whose it is, and the world")]
    pub fn follow<R: Rng + ?Sized>(
        &mut self,
        row: &HostRow,
        incident: IncidentId,
        rule: &str,
        step: &Step,
        at: Wall,
        candidates: impl FnOnce(&Wanted<'_>) -> Placement,
        rng: &mut R,
    ) -> Option<NewEvent> {
        let kind = order_of(Some(row));
        Self::rejudge(Some(row), kind, Some(incident)).ok()?;
        let mut extra = Map::new();
        extra.insert("rule".to_owned(), json!(rule));
        let mut event = match step {
            Step::Order { stage, receivers, reason, instead_of } => {
                let told = match stage {
                    Stage::Escalated(_) => format!("{reason}: it is yours now"),
                    Stage::First(_) | Stage::Receivers => format!("{reason}: now it is your turn"),
                };
                let mut event = self.beside(kind, row, told, extra, at, rng);
                let same = self.rules.iter().find(|r| r.name == rule);
                let same = same.map(|r| r.candidates_same.clone()).unwrap_or_default();
                let placement = self.place(row, &same, candidates);
                self.promise(&placement);
                placement.write(&mut event.data);
                let verdicts: Vec<Value> = receivers
                    .iter()
                    .map(|r| json!({ "receiver": r, "rule": rule, "verdict": "act" }))
                    .collect();
                event.data.insert("verdicts".to_owned(), Value::from(verdicts));
                event.deliveries = receivers.iter().map(|r| to(r)).collect();
                if !instead_of.is_empty() {
                    event.data.insert("instead_of".to_owned(), json!(instead_of));
                    event.settle = Settle::At(instead_of.clone());
                }
                event
            }
            Step::Tell { stage: _, level, receiver, reason } => {
                extra.insert("level".to_owned(), json!(level));
                let kind = EventKind::IncidentEscalated;
                let mut event = self.beside(kind, row, reason.clone(), extra, at, rng);
                add(&mut event, rule, std::slice::from_ref(receiver));
                event
            }
            Step::Hand { level, receiver, instead_of } => {
                extra.insert("level".to_owned(), json!(level));
                extra.insert("receiver".to_owned(), json!(receiver));
                extra.insert("instead_of".to_owned(), json!(instead_of));
                let reason = format!(
                    "`{receiver}` was ordered to act, under a higher token: whoever had the order before \
                     must not act on it any more"
                );
                let kind = EventKind::IncidentEscalated;
                let mut event = self.beside(kind, row, reason, extra, at, rng);
                add(&mut event, rule, instead_of);
                event
            }
            Step::Fail { stage: _, reason } => {
                let kind = EventKind::IncidentFailed;
                self.beside(kind, row, reason.clone(), extra, at, rng)
            }
            Step::Veto { receiver, event, reason } => {
                extra.insert("receiver".to_owned(), json!(receiver));
                extra.insert("order".to_owned(), json!(event));
                let why = if reason.is_empty() { "it does not say why" } else { reason };
                let reason = format!("`{receiver}` vetoes the order: {why}");
                let kind = EventKind::IncidentVetoed;
                let mut event = self.beside(kind, row, reason, extra, at, rng);
                // Who is turned to when nobody does it hears that somebody won't.
                let known = self.rules.iter().find(|r| r.name == rule);
                add(&mut event, rule, known.map_or(&[], |r| &r.plan.escalate));
                event
            }
        };
        event.incident = Some(incident);
        Some(event)
    }

    /// What a receiver's report of an order journals; the incident may be over.
    pub fn reported<R: Rng + ?Sized>(
        &self,
        row: &HostRow,
        incident: IncidentId,
        report: &Report,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        let (kind, verb) = match report.reported {
            Reported::Completed => (EventKind::IncidentCompleted, "has completed"),
            Reported::Failed => (EventKind::IncidentFailed, "could not do"),
        };
        let mut extra = Map::new();
        extra.insert("receiver".to_owned(), json!(report.receiver));
        extra.insert("order_token".to_owned(), json!(report.token));
        let colon = if report.reason.is_empty() { "" } else { ": " };
        let reason = format!("`{}` {verb} the order{colon}{}", report.receiver, report.reason);
        let mut event = self.beside(kind, row, reason, extra, at, rng);
        event.incident = Some(incident);
        event.data.insert("incident".to_owned(), json!(incident));
        event
    }
}

fn to(receiver: &str) -> NewDelivery {
    NewDelivery { receiver: receiver.to_owned(), hold: None }
}

/// Has an event sent to these receivers, beside those whom rules choose for it.
fn add(event: &mut NewEvent, rule: &str, receivers: &[String]) {
    let known: Vec<String> = event.deliveries.iter().map(|d| d.receiver.clone()).collect();
    let verdicts = event.data.entry("verdicts").or_insert_with(|| json!([]));
    for receiver in receivers.iter().filter(|r| !known.contains(r)) {
        event.deliveries.push(to(receiver));
        if let Some(list) = verdicts.as_array_mut() {
            list.push(json!({ "receiver": receiver, "rule": rule, "verdict": "act" }));
        }
    }
}
