//! What the store promises, as slowly and obviously as possible: lists and loops.
//!
//! Prunes nothing and knows no disk. Cursors and delivery ids are places in its lists, from 1.

use std::time::Duration;

use heartwatch_common::id::HostId;

use super::sqlite::{RENEWALS_MAX, TOKEN_BELIEVED_MAX};
use super::{
    Appended, Audience, Begin, Cursor, DeliveryId, DeliveryState, Due, FinishVerdict, NewEvent,
    Outgoing, Receivers, Settle, Token,
};
use crate::event::{EventId, EventKind, IncidentId};

#[derive(Debug)]
pub(super) struct Event {
    /// `None`: journaled again by the store under an id of its own making.
    pub(super) id: Option<EventId>,
    pub(super) kind: EventKind,
    pub(super) host: Option<HostId>,
    pub(super) incident: Option<IncidentId>,
    pub(super) token: Option<u64>,
    /// Cursors.
    pub(super) supersedes: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) event: u64,
    pub(super) receiver: String,
    pub(super) state: DeliveryState,
    pub(super) attempts: u32,
    attempts_base: u32,
    waited: Duration,
    renewals: u32,
    open: bool,
    settled_by: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) epoch: u64,
    pub(super) events: Vec<Event>,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) last: std::collections::BTreeMap<HostId, u64>,
    pub(super) hosts: std::collections::BTreeSet<HostId>,
}

/// What [`Oracle::begin`] says of an attempt, less what it cannot know (ids of renewed events, bodies).
pub(super) fn same_begin(oracle: &Begin, db: &Begin) -> bool {
    match (oracle, db) {
        (Begin::Go(a), Begin::Go(b)) => {
            (a.kind, a.token, a.attempt) == (b.kind, b.token, b.attempt)
                && b.body.contains(&b.event.to_string())
        }
        (a, b) => a == b,
    }
}

impl Oracle {
    pub(super) fn event(&self, cursor: u64) -> &Event {
        &self.events[cursor as usize - 1]
    }

    pub(super) fn due(&self, id: u64) -> Due {
        let d = &self.deliveries[id as usize - 1];
        Due {
            id: DeliveryId(id),
            receiver: d.receiver.clone(),
            host: self.event(d.event).host,
            attempts: d.attempts - d.attempts_base,
            waited: d.waited,
        }
    }

    fn ids(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.deliveries.len() as u64
    }

    fn d(&self, id: u64) -> &Delivery {
        &self.deliveries[id as usize - 1]
    }

    fn d_mut(&mut self, id: u64) -> &mut Delivery {
        &mut self.deliveries[id as usize - 1]
    }

    pub(super) fn pending(&self, receiver: &str) -> Vec<Due> {
        self.ids()
            .filter(|id| {
                self.d(*id).state == DeliveryState::Pending && self.d(*id).receiver == receiver
            })
            .map(|id| self.due(id))
            .collect()
    }

    fn next_token(&mut self, host: HostId) -> u64 {
        let last = self.last.entry(host).or_default();
        *last = (*last).max(self.epoch << 32) + 1;
        *last
    }

    fn answer(&self, cursor: u64) -> Appended {
        let of =
            |id: &u64| self.d(*id).event == cursor && self.d(*id).state == DeliveryState::Pending;
        Appended {
            cursor: Cursor(cursor),
            token: self.event(cursor).token.map(Token),
            deliveries: self.ids().filter(of).map(|id| self.due(id)).collect(),
            settled: self
                .ids()
                .filter(|id| self.d(*id).settled_by == Some(cursor))
                .map(DeliveryId)
                .collect(),
        }
    }

    pub(super) fn append(&mut self, new: &NewEvent) -> Appended {
        if let Some(at) = self.events.iter().position(|e| e.id == Some(new.id)) {
            return self.answer(at as u64 + 1);
        }
        let cursor = self.events.len() as u64 + 1;
        let mut to: Vec<(String, bool)> = Vec::new();
        for d in &new.deliveries {
            let told = self.deliveries.iter().any(|old| {
                old.receiver == d.receiver
                    && old.attempts > 0
                    && new.incident.is_some()
                    && self.event(old.event).incident == new.incident
            });
            let listed = to.iter().any(|(name, _)| *name == d.receiver);
            if !listed && (new.audience == Audience::All || told) {
                to.push((d.receiver.clone(), d.hold.is_some()));
            }
        }
        let token = new.host.map(|h| self.next_token(h));
        let mut supersedes = Vec::new();
        for id in self.ids() {
            let same_host = new.host.is_some() && self.event(self.d(id).event).host == new.host;
            let meant = match &new.settle {
                Settle::Nothing => false,
                Settle::All => true,
                Settle::At(at) => at.contains(&self.d(id).receiver),
                Settle::SameReceivers => to.iter().any(|(name, _)| *name == self.d(id).receiver),
            };
            let goes_on = self.event(self.d(id).event).kind.goes_on();
            let d = self.d_mut(id);
            let unfinished =
                goes_on && matches!(d.state, DeliveryState::Held | DeliveryState::Pending);
            if !(same_host && meant && unfinished) {
                continue;
            }
            d.settled_by = Some(cursor);
            if d.attempts == 0 {
                d.state = DeliveryState::Cancelled;
            } else {
                d.state = DeliveryState::Superseded;
                supersedes.push(d.event);
            }
        }
        supersedes.sort_unstable();
        supersedes.dedup();
        self.events.push(Event {
            id: Some(new.id),
            kind: new.kind,
            host: new.host,
            incident: new.incident,
            token,
            supersedes,
        });
        for (receiver, held) in to {
            let state = if held { DeliveryState::Held } else { DeliveryState::Pending };
            self.push(cursor, receiver, state, Duration::ZERO, 0);
        }
        if let Some(row) = &new.row {
            self.hosts.insert(row.id);
        }
        self.answer(cursor)
    }

    fn push(
        &mut self,
        event: u64,
        receiver: String,
        state: DeliveryState,
        waited: Duration,
        renewals: u32,
    ) {
        self.deliveries.push(Delivery {
            event,
            receiver,
            state,
            attempts: 0,
            attempts_base: 0,
            waited,
            renewals,
            open: false,
            settled_by: None,
        });
    }

    pub(super) fn forget(&mut self, host: HostId, event: &NewEvent) -> bool {
        if self.events.iter().any(|e| e.id == Some(event.id)) {
            return true;
        }
        if !self.hosts.remove(&host) {
            return false;
        }
        self.append(&NewEvent { settle: Settle::All, row: None, ..event.clone() });
        true
    }

    pub(super) fn begin(&mut self, id: u64) -> Begin {
        if !self.ids().contains(&id) || self.d(id).state != DeliveryState::Pending {
            return Begin::Gone;
        }
        let lane = |id: u64| (self.event(self.d(id).event).host, self.d(id).receiver.clone());
        let notice = self.event(self.d(id).event).kind.is_notice();
        let earlier = (1..id).any(|other| {
            lane(other) == lane(id)
                && match self.d(other).state {
                    DeliveryState::Held => !notice,
                    state => state == DeliveryState::Pending,
                }
        });
        if earlier {
            return Begin::NotYet;
        }
        let d = self.d_mut(id);
        d.attempts += 1;
        d.open = true;
        let (attempt, event) = (d.attempts, d.event);
        let event = self.event(event);
        Begin::Go(Outgoing {
            event: EventId(uuid::Uuid::nil()),
            kind: event.kind,
            host: event.host,
            token: event.token.map(Token),
            attempt,
            body: String::new(),
        })
    }

    /// `None`: the caller's mistake.
    pub(super) fn finish(&mut self, id: u64, verdict: &FinishVerdict) -> Option<Vec<Due>> {
        if !self.ids().contains(&id) || self.d(id).attempts == 0 {
            return None;
        }
        if !self.d(id).open {
            let by = self.d(id).settled_by;
            return Some(
                self.ids()
                    .filter(|n| {
                        self.d(id).state == DeliveryState::Superseded
                            && Some(self.d(*n).event) == by
                            && self.d(*n).renewals > 0
                            && self.d(*n).receiver == self.d(id).receiver
                            && self.d(*n).state == DeliveryState::Pending
                    })
                    .map(|n| self.due(n))
                    .collect(),
            );
        }
        let d = self.d_mut(id);
        d.open = false;
        match verdict {
            FinishVerdict::Delivered => d.state = DeliveryState::Delivered,
            _ if d.state != DeliveryState::Pending => {}
            FinishVerdict::Retry { wait } => d.waited += *wait,
            FinishVerdict::Dead { .. } => d.state = DeliveryState::Dead,
            FinishVerdict::Vetoed { .. } => d.state = DeliveryState::Vetoed,
            FinishVerdict::Conflict { highest } => return Some(self.conflict(id, highest.0)),
        }
        Some(Vec::new())
    }

    fn conflict(&mut self, id: u64, highest: u64) -> Vec<Due> {
        let event = self.event(self.d(id).event);
        let (Some(host), Some(token)) = (event.host, event.token) else {
            self.d_mut(id).state = DeliveryState::Dead;
            return Vec::new();
        };
        let ours = self.deliveries.iter().any(|d| {
            let e = self.event(d.event);
            let told = d.attempts > 0 && e.host == Some(host) && e.token == Some(highest);
            told && !e.kind.is_notice()
        });
        let (kind, incident, waited) = (event.kind, event.incident, self.d(id).waited);
        let d = self.d_mut(id);
        let renewals = d.renewals + 1;
        if highest < token {
            return Vec::new();
        }
        if highest == token && d.attempts > 1 {
            d.state = DeliveryState::Delivered;
        } else if highest > token && ours {
            d.state = DeliveryState::Superseded;
        } else if highest > TOKEN_BELIEVED_MAX || renewals > RENEWALS_MAX {
            d.state = DeliveryState::Dead;
        } else {
            let (receiver, old) = (d.receiver.clone(), d.event);
            let last = self.last.entry(host).or_default();
            *last = (*last).max(highest);
            let token = Some(self.next_token(host));
            let cursor = self.events.len() as u64 + 1;
            let (host, supersedes) = (Some(host), vec![old]);
            self.events.push(Event { id: None, kind, host, incident, token, supersedes });
            let d = self.d_mut(id);
            d.state = DeliveryState::Superseded;
            d.settled_by = Some(cursor);
            self.push(cursor, receiver, DeliveryState::Pending, waited, renewals);
            return vec![self.due(self.deliveries.len() as u64)];
        }
        Vec::new()
    }

    /// One held delivery goes: as it is, or as a new one if a later one went first.
    fn let_go(&mut self, id: u64) -> u64 {
        let (event, receiver) = (self.d(id).event, self.d(id).receiver.clone());
        let e = self.event(event);
        let (kind, host, incident) = (e.kind, e.host, e.incident);
        let overtaken = self.deliveries.iter().any(|d| {
            let later = d.event > event && d.attempts > 0;
            later && d.receiver == receiver && self.event(d.event).host == host
        });
        let Some(known) = host.filter(|_| overtaken) else {
            self.d_mut(id).state = DeliveryState::Pending;
            return id;
        };
        let token = Some(self.next_token(known));
        let cursor = self.events.len() as u64 + 1;
        let supersedes = Vec::new();
        self.events.push(Event { id: None, kind, host, incident, token, supersedes });
        let d = self.d_mut(id);
        d.state = DeliveryState::Cancelled;
        d.settled_by = Some(cursor);
        let (waited, renewals) = (d.waited, d.renewals);
        self.push(cursor, receiver, DeliveryState::Pending, waited, renewals);
        self.deliveries.len() as u64
    }

    pub(super) fn release(&mut self, host: HostId, which: &Receivers, go: bool) -> Vec<Due> {
        let mut released = Vec::new();
        for id in self.ids() {
            let meant =
                self.event(self.d(id).event).host == Some(host) && which.has(&self.d(id).receiver);
            if meant && self.d(id).state == DeliveryState::Held {
                if go {
                    released.push(self.let_go(id));
                } else {
                    self.d_mut(id).state = DeliveryState::Cancelled;
                }
            }
        }
        released.into_iter().map(|id| self.due(id)).collect()
    }

    pub(super) fn redrive(&mut self, id: u64) -> Option<Due> {
        if !self.ids().contains(&id) {
            return None;
        }
        let d = self.d_mut(id);
        match d.state {
            DeliveryState::Dead => {
                d.state = DeliveryState::Pending;
                d.attempts_base = d.attempts;
                d.waited = Duration::ZERO;
                d.renewals = 0;
            }
            DeliveryState::Pending => {}
            _ => return None,
        }
        Some(self.due(id))
    }

    pub(super) fn cancel(&mut self, id: u64) -> bool {
        if !self.ids().contains(&id) {
            return false;
        }
        let d = self.d_mut(id);
        let in_time = match d.state {
            DeliveryState::Held | DeliveryState::Dead => true,
            DeliveryState::Pending => d.attempts == 0,
            _ => false,
        };
        if in_time {
            d.state = DeliveryState::Cancelled;
        }
        in_time
    }
}
