//! What the shell does about the courses of orders: it looks where each stands whenever the journal may say
//! something new of it, or its time has come, and journals the next step.
//!
//! Bounds: one entry a host in an outage whose orders a rule follows. A look costs two reads of the store a
//! host. At most [`LOOKS_MAX`] are made between two other things.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use tokio::sync::oneshot;

use super::{Running, Work, line};
use crate::control::{Completion, ControlError};
use crate::crash;
use crate::event::{EventKind, IncidentId, State};
use crate::policy::courses::{self, Ages, Facts, Reported, report_of};
use crate::policy::follow::Report;
use crate::policy::placement::{Depth, Wanted, find};
use crate::policy::{is_action, order_of};
use crate::store::{
    DeliveryFilter, DeliveryRow, DeliveryState, EventRow, READ_LEN_MAX, Store, StoreError,
};
use crate::view::Filter;

/// Hosts with news that wait for the driver; more are found by looking at all.
pub const NEWS_MAX: usize = 8_192;
/// Looks at courses in one go.
const LOOKS_MAX: usize = 64;
/// Events of a host that are looked through for what was said of an incident.
const EVENTS_MAX: usize = 256;
/// How long a step waits that may not be made now, or for a store that can't be read.
const AGAIN: Duration = Duration::from_secs(5);
/// Hosts of one page of the registry.
const PAGE: usize = 1_000;

/// One host's course.
struct Course {
    incident: IncidentId,
    /// Of which order: what was done about an unreachable host says nothing once it is down.
    kind: EventKind,
    due: Option<Instant>,
    ages: Ages,
    /// Steps that were journaled, or are about to be.
    made: BTreeSet<(String, (u8, String))>,
}

/// All courses.
pub(super) struct Courses {
    open: BTreeMap<HostId, Course>,
    timers: BTreeSet<(Instant, HostId)>,
    /// Hosts to be looked at: something may have happened.
    news: BTreeSet<HostId>,
    /// Where a search through the whole registry stands.
    search: Option<u64>,
    /// The store could not be read: nothing is looked at before this.
    resumed_at: Instant,
}

impl Default for Courses {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            timers: BTreeSet::new(),
            news: BTreeSet::new(),
            search: None,
            resumed_at: Instant(0),
        }
    }
}

impl Courses {
    fn set_due(&mut self, host: HostId, due: Option<Instant>) {
        let Some(course) = self.open.get_mut(&host) else { return };
        if let Some(old) = std::mem::replace(&mut course.due, due) {
            self.timers.remove(&(old, host));
        }
        if let Some(new) = due {
            self.timers.insert((new, host));
        }
    }

    fn end(&mut self, host: HostId) {
        self.set_due(host, None);
        self.open.remove(&host);
    }

    /// A host has news.
    pub(super) fn hear(&mut self, host: HostId) {
        self.news.insert(host);
    }

    /// Any host may have.
    pub(super) fn search(&mut self) {
        self.search = Some(0);
    }

    /// Whether there is something to look at now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.resumed_at
            && (!self.news.is_empty()
                || self.search.is_some()
                || self.timers.first().is_some_and(|(at, _)| *at <= now))
    }
}

impl Running {
    /// Whether a course may have moved.
    pub(super) fn has_courses_due(&self) -> bool {
        self.work.has_room() && self.courses.is_due(self.d.clock.now())
    }

    /// Looks at some of the courses that may have moved.
    pub(super) async fn look_at_courses(&mut self) {
        if !self.d.policy.follows() {
            self.courses.news.clear();
            self.courses.search = None;
            return;
        }
        if let Some(from) = self.courses.search {
            let filter = Filter { states: vec![State::Suspect, State::Down], ..Filter::default() };
            let (page, next) = self.d.view.list(&filter, from, PAGE);
            let open = page.into_iter().filter(|h| h.row.incident.is_some());
            self.courses.news.extend(open.map(|h| h.row.id));
            self.courses.search = next;
        }
        let now = self.d.clock.now();
        for _ in 0..LOOKS_MAX {
            if !self.work.has_room() {
                return;
            }
            let due = self.courses.timers.first().filter(|(at, _)| *at <= now).map(|(_, h)| *h);
            let Some(host) = due.or_else(|| self.courses.news.first().copied()) else { return };
            self.courses.news.remove(&host);
            self.courses.set_due(host, None);
            if let Err(e) = self.look(host).await {
                log::warn!("what follows orders waits, as the store cannot be read: {e}");
                self.courses.news.insert(host);
                self.courses.resumed_at = now + AGAIN;
                return;
            }
        }
    }

    async fn look(&mut self, host: HostId) -> Result<(), StoreError> {
        let known = self.d.view.get(host);
        let open = known.as_ref().and_then(|k| Some((&k.row, k.row.incident?)));
        let Some((row, incident)) = open else {
            self.courses.end(host);
            return Ok(());
        };
        if self.d.policy.routes(row).next().is_none() {
            self.courses.end(host);
            return Ok(());
        }
        let kind = order_of(Some(row));
        if self.courses.open.get(&host).is_some_and(|c| (c.incident, c.kind) != (incident, kind)) {
            self.courses.end(host);
        }
        crash::pass("look");
        let (deliveries, events) = journaled(&*self.d.store, host, incident).await?;
        let (now, wall) = (self.d.clock.now(), self.d.clock.wall());
        let facts = Facts { incident, kind, deliveries: &deliveries, events: &events };
        let (ages, made) = (Ages::default(), BTreeSet::new());
        let fresh = || Course { incident, kind, due: None, ages, made };
        let course = self.courses.open.entry(host).or_insert_with(fresh);
        let may_act = self.d.policy.may_act_on(host);
        let mut due: Option<Instant> = None;
        let mut looks = Vec::new();
        for route in self.d.policy.routes(row) {
            let look = courses::look(route, facts, &mut course.ages, (now, wall));
            looks.push((route.rule.to_owned(), look));
        }
        for (rule, look) in looks {
            let mut again = look.again;
            if let Some(step) = look.step {
                let key = (rule.clone(), step.key());
                if step.acts() && !may_act {
                    // Paused, blind or in maintenance: nobody is made to act, here as elsewhere.
                    again = Some(now + AGAIN);
                } else if !course.made.contains(&key) {
                    let (view, seed) = (&self.d.view, rand::RngExt::random(&mut self.rng));
                    let who = |wanted: &Wanted<'_>| find(&**view, wanted, Depth::ORDER, seed);
                    let policy = &mut self.d.policy;
                    let event =
                        policy.follow(row, incident, &rule, &step, wall, who, &mut self.rng);
                    if let Some(event) = event {
                        log::warn!("{} {}", event.kind, line(row, &event));
                        crash::pass("step");
                        self.work.push(Work::Event(Box::new(event)));
                        course.made.insert(key);
                    }
                }
            }
            due = [due, again].into_iter().flatten().min();
        }
        self.courses.set_due(host, due);
        Ok(())
    }

    /// A receiver reports how an order ended.
    pub(super) async fn complete(
        &mut self,
        incident: IncidentId,
        what: Completion,
        answer: oneshot::Sender<Result<(), ControlError>>,
    ) {
        match self.judge_report(incident, what).await {
            // Whoever asked may have given up waiting.
            Err(e) => drop(answer.send(Err(e))),
            Ok(None) => drop(answer.send(Ok(()))),
            Ok(Some((host, report))) => {
                let Some(known) = self.d.view.get(host) else {
                    return drop(answer.send(Err(ControlError::UnknownHost(host))));
                };
                let wall = self.d.clock.wall();
                let event =
                    self.d.policy.reported(&known.row, incident, &report, wall, &mut self.rng);
                log::info!("{} {}", event.kind, line(&known.row, &event));
                self.work.push(Work::Event(Box::new(event)));
                self.answer_when_written(answer, Ok(()));
            }
        }
    }

    /// Whether a report is about an order that was given last; `None`: it was reported before.
    async fn judge_report(
        &self,
        incident: IncidentId,
        what: Completion,
    ) -> Result<Option<(HostId, Report)>, ControlError> {
        let filter = DeliveryFilter { incident: Some(incident), ..DeliveryFilter::default() };
        let rows = self.d.store.deliveries(filter, READ_LEN_MAX).await?;
        let orders: Vec<&DeliveryRow> =
            rows.iter().filter(|r| is_action(r.kind) && r.attempts > 0).collect();
        let newest = orders.iter().filter_map(|r| r.token).max();
        let (Some(newest), Some(host)) = (newest, orders.iter().find_map(|r| r.host)) else {
            let what = if rows.is_empty() { "is known" } else { "has orders that were sent" };
            return Err(ControlError::NotFound(format!("no incident {incident} {what}")));
        };
        let stale = |message: String| ControlError::Stale { message, highest: newest };
        let of_token: Vec<&&DeliveryRow> =
            orders.iter().filter(|r| r.token == Some(what.token)).collect();
        let of_receiver =
            |r: &&&&DeliveryRow| what.receiver.as_ref().is_none_or(|name| *name == r.receiver);
        let row = match of_token.iter().filter(of_receiver).collect::<Vec<_>>()[..] {
            [one] => **one,
            [] => {
                let message = format!(
                    "token {} is of no order that was sent to it in this incident",
                    what.token.0
                );
                return Err(stale(message));
            }
            _ => {
                let names: Vec<&str> = of_token.iter().map(|r| r.receiver.as_str()).collect();
                let names = names.join(", ");
                let message = format!("this order went to {names}: say as `receiver` who reports");
                return Err(ControlError::Invalid(message));
            }
        };
        if row.state == DeliveryState::Vetoed {
            let message = format!("`{}` has refused this order: a veto is final", row.receiver);
            return Err(stale(message));
        }
        let events = self.d.store.events_of(host, EVENTS_MAX).await?;
        if is_replaced(row, &orders, &events) {
            let message =
                format!("the order with token {} was given to another since", what.token.0);
            return Err(stale(message));
        }
        let reported = if what.failed { Reported::Failed } else { Reported::Completed };
        match report_of(row, &events) {
            Some(before) if before == reported => Ok(None),
            Some(_) => {
                let message =
                    "the opposite was reported of this order before: the first report counts";
                Err(stale(message.to_owned()))
            }
            None => {
                let receiver = row.receiver.clone();
                let (token, reason) = (what.token, what.reason);
                Ok(Some((host, Report { receiver, token, reported, reason })))
            }
        }
    }
}

/// Whether a later order of the incident took this one's place: an escalation, or the same under a
/// higher token. A later step of a rule does not.
fn is_replaced(row: &DeliveryRow, orders: &[&DeliveryRow], events: &[EventRow]) -> bool {
    let again = |o: &&DeliveryRow| o.token > row.token && o.receiver == row.receiver;
    let handed_on = |e: &EventRow| {
        let list = e.data.get("instead_of").and_then(|l| l.as_array());
        is_action(e.kind)
            && e.incident == row.incident
            && e.token > row.token
            && list.is_some_and(|l| l.iter().any(|r| r.as_str() == Some(&row.receiver)))
    };
    orders.iter().any(again) || events.iter().any(handed_on)
}

async fn journaled(
    store: &dyn Store,
    host: HostId,
    incident: IncidentId,
) -> Result<(Vec<DeliveryRow>, Vec<EventRow>), StoreError> {
    let filter = DeliveryFilter { incident: Some(incident), ..DeliveryFilter::default() };
    let deliveries = store.deliveries(filter, READ_LEN_MAX).await?;
    let mut events = store.events_of(host, EVENTS_MAX).await?;
    events.retain(|e| e.incident == Some(incident));
    Ok((deliveries, events))
}
