//! Pure: one receiver's part of the [`Schedule`](super::schedule::Schedule): its lanes, its window into
//! the outbox, its breaker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use rand::Rng;

use super::breaker::Breaker;
use super::outcome::Outcome;
use super::schedule::{Policy, QueueStatus, Read, Rescan, next};
use crate::store::{DeliveryId, Due, FinishVerdict, READ_LEN_MAX};

type Owner = BTreeMap<DeliveryId, String>;

/// Whether a delivery stays in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    No,
}

#[derive(Debug)]
struct Entry {
    lane: Option<HostId>,
    attempts: u32,
    waited: Duration,
    due: Instant,
    /// When its present wait began, and how much of it is in `waited` already.
    since: Instant,
    counted: Duration,
    flight: Option<Flight>,
}

impl Entry {
    fn new(due: &Due, now: Instant) -> Self {
        Self {
            lane: due.host,
            attempts: due.attempts,
            waited: due.waited,
            due: now,
            since: now,
            counted: Duration::ZERO,
            flight: None,
        }
    }
}

#[derive(Debug)]
struct Flight {
    trial: bool,
    settled: bool,
    /// Time waited before this attempt that is not in `waited` yet.
    extra: Duration,
    /// The wait that was chosen after it; `None`: not judged yet.
    delay: Option<Duration>,
}

#[derive(Debug, Default)]
struct Lane {
    ids: BTreeSet<DeliveryId>,
    flying: Option<DeliveryId>,
    /// How its head stands in `ready`.
    filed: Option<(Instant, DeliveryId)>,
}

#[derive(Debug)]
pub(super) struct Queue {
    name: String,
    policy: Policy,
    breaker: Breaker,
    entries: BTreeMap<DeliveryId, Entry>,
    lanes: BTreeMap<Option<HostId>, Lane>,
    /// Heads of lanes that do not fly, by due time.
    ready: BTreeSet<(Instant, DeliveryId)>,
    in_flight: usize,
    /// The store may have pending ones above `read_after` that are not here.
    more: bool,
    read_after: Option<DeliveryId>,
    reading: bool,
    /// Read a page even if the window is more than half full.
    forced: bool,
    /// Something was turned away since the last read began.
    turned_away: bool,
    /// The highest id ever read. Not of those pushed: one below them may never have been.
    read_max: Option<DeliveryId>,
}

impl Queue {
    pub(super) fn new(name: &str, policy: Policy) -> Self {
        Self {
            name: name.to_owned(),
            policy,
            breaker: Breaker::new(policy.backoff),
            entries: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: BTreeSet::new(),
            in_flight: 0,
            more: true,
            read_after: None,
            reading: false,
            forced: false,
            turned_away: false,
            read_max: None,
        }
    }

    pub(super) fn push(&mut self, due: &Due, now: Instant, owner: &mut Owner) {
        let max = self.entries.last_key_value().map(|(id, _)| *id);
        if !self.more || Some(due.id) <= max {
            self.take(due, now, owner);
        } else {
            // Not lost: it is above `read_after` in the store, and `more` says so.
            self.turned_away = true;
        }
    }

    fn take(&mut self, due: &Due, now: Instant, owner: &mut Owner) {
        if self.entries.contains_key(&due.id) {
            return;
        }
        self.entries.insert(due.id, Entry::new(due, now));
        owner.insert(due.id, self.name.clone());
        self.lanes.entry(due.host).or_default().ids.insert(due.id);
        self.file(due.host);
        if self.entries.len() > self.policy.queue_len_max {
            self.evict(now, owner);
        }
    }

    /// Leaves the highest one that does not fly to the store.
    fn evict(&mut self, now: Instant, owner: &mut Owner) {
        let last = self.entries.iter().rev().find(|(_, e)| e.flight.is_none()).map(|(id, _)| *id);
        let Some(id) = last else { return };
        self.remove(id, now);
        owner.remove(&id);
        let below = Some(DeliveryId(id.0.saturating_sub(1)));
        self.read_after = if self.more { self.read_after.min(below) } else { below };
        self.more = true;
    }

    /// A redriven delivery starts anew, due now; one in flight is left alone. `false`: not known here.
    pub(super) fn restart(&mut self, due: &Due, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&due.id) else { return false };
        if entry.flight.is_none() {
            *entry = Entry { lane: entry.lane, ..Entry::new(due, now) };
            let lane = entry.lane;
            self.file(lane);
        }
        true
    }

    /// Puts a lane's head where it belongs in `ready`.
    fn file(&mut self, lane: Option<HostId>) {
        let Some(l) = self.lanes.get_mut(&lane) else { return };
        if let Some(filed) = l.filed.take() {
            self.ready.remove(&filed);
        }
        if l.flying.is_some() {
            return;
        }
        match l.ids.first() {
            None => {
                self.lanes.remove(&lane);
            }
            Some(head) => {
                let due = self.entries.get(head).map_or(Instant(0), |e| e.due);
                l.filed = Some((due, *head));
                self.ready.insert((due, *head));
            }
        }
    }

    pub(super) fn start(&mut self, now: Instant) -> Vec<DeliveryId> {
        let mut started = Vec::new();
        while self.in_flight < self.policy.concurrency
            && self.breaker.opens_at().is_some_and(|at| at <= now)
            && let Some((due, id)) = self.ready.first().copied()
            && due <= now
        {
            self.ready.pop_first();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let extra = if entry.attempts == 0 {
                // Not a wait between attempts: the first one is yet to come.
                Duration::ZERO
            } else {
                now.since(entry.since).saturating_sub(entry.counted)
            };
            let trial = self.breaker.started();
            entry.flight = Some(Flight { trial, settled: false, extra, delay: None });
            self.in_flight += 1;
            if let Some(lane) = self.lanes.get_mut(&entry.lane) {
                (lane.flying, lane.filed) = (Some(id), None);
            }
            started.push(id);
        }
        started
    }

    pub(super) fn judge<R: Rng + ?Sized>(
        &mut self,
        id: DeliveryId,
        outcome: &Outcome,
        now: Instant,
        rng: &mut R,
    ) -> Option<FinishVerdict> {
        let entry = self.entries.get_mut(&id)?;
        let flight = entry.flight.as_mut()?;
        if outcome.class.is_failing() {
            self.breaker.failed(flight.trial, now, rng);
        } else {
            self.breaker.succeeded();
        }
        let waited = entry.waited.saturating_add(flight.extra);
        let attempts = entry.attempts.saturating_add(1);
        let verdict = next(outcome, attempts, waited, &self.policy, rng);
        flight.delay = Some(Duration::ZERO);
        Some(match verdict {
            FinishVerdict::Retry { wait } => {
                flight.delay = Some(wait);
                FinishVerdict::Retry { wait: wait.saturating_add(flight.extra) }
            }
            other => other,
        })
    }

    /// Ends a flight; the lane is to be filed anew, or its delivery removed.
    fn land(&mut self, id: DeliveryId) -> Option<Flight> {
        let entry = self.entries.get_mut(&id)?;
        let flight = entry.flight.take()?;
        self.in_flight -= 1;
        if let Some(lane) = self.lanes.get_mut(&entry.lane) {
            lane.flying = None;
        }
        let lane = entry.lane;
        self.file(lane);
        Some(flight)
    }

    pub(super) fn retry(&mut self, id: DeliveryId, wait: Duration, now: Instant) -> Keep {
        let Some(flight) = self.land(id) else { return Keep::Yes };
        if flight.settled {
            return Keep::No;
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            let delay = flight.delay.unwrap_or(wait);
            entry.attempts = entry.attempts.saturating_add(1);
            entry.waited = entry.waited.saturating_add(wait);
            (entry.since, entry.counted) = (now, delay);
            entry.due = now + delay;
            let lane = entry.lane;
            self.file(lane);
        }
        Keep::Yes
    }

    pub(super) fn postpone(&mut self, id: DeliveryId, wait: Duration, now: Instant) -> Keep {
        let Some(flight) = self.land(id) else { return Keep::Yes };
        if flight.trial && flight.delay.is_none() {
            self.breaker.trial_void(now);
        }
        if flight.settled {
            return Keep::No;
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.due = now + wait;
            let lane = entry.lane;
            self.file(lane);
        }
        Keep::Yes
    }

    pub(super) fn settle(&mut self, id: DeliveryId) -> Keep {
        match self.entries.get_mut(&id).and_then(|e| e.flight.as_mut()) {
            Some(flight) => {
                flight.settled = true;
                Keep::Yes
            }
            None => Keep::No,
        }
    }

    pub(super) fn remove(&mut self, id: DeliveryId, now: Instant) {
        if let Some(flight) = self.land(id)
            && flight.trial
            && flight.delay.is_none()
        {
            // The trial never got an answer, so another one may be made.
            self.breaker.trial_void(now);
        }
        if let Some(entry) = self.entries.remove(&id) {
            if let Some(lane) = self.lanes.get_mut(&entry.lane) {
                lane.ids.remove(&id);
            }
            self.file(entry.lane);
        }
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        if self.in_flight >= self.policy.concurrency {
            return None;
        }
        let (due, _) = self.ready.first()?;
        Some(self.breaker.opens_at()?.max(*due))
    }

    pub(super) fn want(&mut self) -> Option<Read> {
        let max = self.policy.queue_len_max;
        let room = self.entries.len() <= max / 2;
        if !self.more || self.reading || !(room || self.forced) {
            return None;
        }
        (self.reading, self.forced, self.turned_away) = (true, false, false);
        let limit = (max / 2).clamp(1, READ_LEN_MAX);
        Some(Read { receiver: self.name.clone(), after: self.read_after, limit })
    }

    pub(super) fn read(&mut self, read: &Read, page: &[Due], now: Instant, owner: &mut Owner) {
        self.reading = false;
        let last = page.last().map(|d| d.id);
        self.read_max = self.read_max.max(last);
        // Otherwise something was evicted meanwhile: then the next read starts below that.
        if self.read_after == read.after {
            self.more = page.len() >= read.limit || self.turned_away;
            self.read_after = last.or(read.after);
        }
        for due in page {
            self.take(due, now, owner);
        }
    }

    pub(super) fn read_failed(&mut self) {
        self.reading = false;
    }

    pub(super) fn rescan(&mut self, from: Rescan) {
        if self.reading {
            return;
        }
        match from {
            Rescan::New if self.more => {}
            Rescan::New => (self.more, self.read_after) = (true, self.read_max),
            Rescan::All => (self.more, self.read_after, self.forced) = (true, None, true),
        }
    }

    pub(super) fn status(&self) -> QueueStatus {
        QueueStatus {
            breaker: self.breaker.state(),
            queued: self.entries.len(),
            more: self.more,
            in_flight: self.in_flight,
        }
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> impl Iterator<Item = &DeliveryId> {
        self.entries.keys()
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.entries.len() <= self.policy.queue_len_max + self.policy.concurrency);
        assert!(self.in_flight <= self.policy.concurrency);
        let flying = self.entries.values().filter(|e| e.flight.is_some()).count();
        assert_eq!(self.in_flight, flying);
        let in_lanes: usize = self.lanes.values().map(|l| l.ids.len()).sum();
        assert_eq!(self.entries.len(), in_lanes);
        for lane in self.lanes.values() {
            let head = lane.ids.first().copied();
            assert!(head.is_some());
            let flying = lane.ids.iter().filter(|id| self.entries[id].flight.is_some());
            assert!(flying.eq(&lane.flying));
            assert_eq!(lane.filed.map(|(_, id)| id), head.filter(|_| lane.flying.is_none()));
        }
        let filed = self.lanes.values().filter_map(|l| l.filed);
        assert_eq!(self.ready, filed.collect());
    }
}
