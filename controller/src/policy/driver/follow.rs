//! What the shell does about the courses of orders: it looks where each stands whenever the journal may say
//! something new of it, or its time has come, and journals the next step.
//!
//! Bounds: one entry a host in an outage whose orders a rule follows, or of which one was refused or given
//! up. A look costs two reads of the store a host. At most [`LOOKS_MAX`] are made between two other things.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use tokio::sync::oneshot;

use super::{Running, Work, line};
use crate::control::{Completion, ControlError};
use crate::crash;
use crate::delivery::Word;
use crate::event::{EventKind, IncidentId, State};
use crate::policy::courses::{self, Ages, Facts, Reported, is_handed_on, report_of};
use crate::policy::follow::Report;
use crate::policy::placement::{Depth, Wanted, find};
use crate::policy::{is_action, order_of};
use crate::store::{
    DeliveryFilter, DeliveryId, DeliveryRow, DeliveryState, EventRow, READ_LEN_MAX, Store,
    StoreError,
};
use crate::view::Filter;

/// Hosts with news that wait for the driver; more are found by looking at all.
pub const NEWS_MAX: usize = 8_192;
/// Looks at courses in one go.
const LOOKS_MAX: usize = 64;
/// Events of a host that are looked through for what was said of an incident.
pub(super) const EVENTS_MAX: usize = 256;
/// How long a step waits that may not be made now, or for a store that can't be read.
const AGAIN: Duration = Duration::from_secs(5);
/// How an order stands that was refused or given up.
const BAD: [DeliveryState; 2] = [DeliveryState::Dead, DeliveryState::Vetoed];
/// Hosts of one page of the registry.
const PAGE: usize = 1_000;

/// One host's course.
struct Course {
    incident: IncidentId,
    /// Of which order: what was done about an unreachable host says nothing once it is down.
    kind: EventKind,
    due: Option<Instant>,
    ages: Ages,
    /// An order was refused or given up: rules without a plan count too.
    bad: bool,
    /// Steps that were journaled, or are about to be.
    made: BTreeSet<(String, (u8, String))>,
}

/// All courses.
pub(super) struct Courses {
    open: BTreeMap<HostId, Course>,
    timers: BTreeSet<(Instant, HostId)>,
    /// Hosts to be looked at: something may have happened.
    news: BTreeSet<HostId>,
    /// Of these, those of which an order was refused or given up.
    bad: BTreeSet<HostId>,
    /// Where a search for such orders in the store stands: at this state, after this delivery.
    bad_search: Option<(DeliveryState, Option<DeliveryId>)>,
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
            bad: BTreeSet::new(),
            bad_search: None,
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
    pub(super) fn hear(&mut self, word: Word) {
        self.news.insert(word.host);
        if word.bad {
            self.bad.insert(word.host);
        }
    }

    /// Any host may have.
    pub(super) fn search(&mut self) {
        self.search = Some(0);
        self.bad_search = Some((BAD[0], None));
    }

    /// Whether there is something to look at now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.resumed_at
            && (!self.news.is_empty()
                || self.search.is_some()
                || self.bad_search.is_some()
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
            // Nothing follows an order then but the word that it was refused or given up.
            let Courses { news, bad, .. } = &mut self.courses;
            news.retain(|host| bad.contains(host));
            self.courses.search = None;
        }
        if let Err(e) = self.search_bad().await {
            self.wait_for_store(&e);
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
            let bad = self.courses.bad.remove(&host);
            if let Err(e) = self.look(host, bad).await {
                self.courses.hear(Word { host, bad });
                self.wait_for_store(&e);
                return;
            }
        }
    }

    fn wait_for_store(&mut self, e: &StoreError) {
        log::warn!("what follows orders waits, as the store cannot be read: {e}");
        self.courses.resumed_at = self.d.clock.now() + AGAIN;
    }

    /// Looks for orders of outages that go on which were refused or given up, a page at a time: nobody may
    /// have heard of it before a crash.
    async fn search_bad(&mut self) -> Result<(), StoreError> {
        let Some((state, after)) = self.courses.bad_search else { return Ok(()) };
        let filter = DeliveryFilter { state: Some(state), after, ..DeliveryFilter::default() };
        let page = self.d.store.deliveries(filter, READ_LEN_MAX).await?;
        for row in page.iter().filter(|row| is_action(row.kind)) {
            let known = row.host.and_then(|host| self.d.view.get(host));
            if let Some(known) = known.filter(|k| k.row.incident.is_some())
                && known.row.incident == row.incident
            {
                self.courses.hear(Word { host: known.row.id, bad: true });
            }
        }
        let next = BAD.iter().position(|s| *s == state).and_then(|at| BAD.get(at + 1));
        self.courses.bad_search = match page.last().filter(|_| page.len() >= READ_LEN_MAX) {
            Some(last) => Some((state, Some(last.id))),
            None => next.map(|state| (*state, None)),
        };
        Ok(())
    }

    async fn look(&mut self, host: HostId, bad: bool) -> Result<(), StoreError> {
        let known = self.d.view.get(host);
        let open = known.as_ref().and_then(|k| Some((&k.row, k.row.incident?)));
        let Some((row, incident)) = open else {
            self.courses.end(host);
            return Ok(());
        };
        let kind = order_of(Some(row));
        if self.courses.open.get(&host).is_some_and(|c| (c.incident, c.kind) != (incident, kind)) {
            self.courses.end(host);
        }
        let bad = bad || self.courses.open.get(&host).is_some_and(|c| c.bad);
        if self.d.policy.routes(row, bad).next().is_none() {
            self.courses.end(host);
            return Ok(());
        }
        crash::pass("look");
        let (deliveries, events) = journaled(&*self.d.store, host, incident).await?;
        let (now, wall) = (self.d.clock.now(), self.d.clock.wall());
        let facts = Facts { incident, kind, deliveries: &deliveries, events: &events };
        let (ages, made) = (Ages::default(), BTreeSet::new());
        let fresh = || Course { incident, kind, due: None, ages, bad, made };
        let course = self.courses.open.entry(host).or_insert_with(fresh);
        course.bad = bad;
        let may_act = self.d.policy.may_act_on(host);
        let mut due: Option<Instant> = None;
        let mut looks = Vec::new();
        for route in self.d.policy.routes(row, bad) {
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
    orders.iter().any(again) || is_handed_on(row, events)
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
