//! Pure: one receiver's part of the [`Schedule`](super::schedule::Schedule): its lanes, its window into
//! the outbox, its breaker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use rand::Rng;

use super::breaker::{Breaker, BreakerState};
use super::bucket::Bucket;
use super::outcome::{Outcome, OutcomeClass};
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
    /// It was refused together with others: from now on it goes alone.
    alone: bool,
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
            alone: false,
            flight: None,
        }
    }
}

/// One attempt of one or more deliveries.
#[derive(Debug)]
struct Attempt {
    len: usize,
    /// Of these, those that fly still.
    flying: usize,
    /// The breaker has heard how it ended.
    judged: bool,
}

#[derive(Debug)]
struct Flight {
    attempt: u64,
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
    /// Hosts whose lanes are kept free.
    borrowed: BTreeSet<HostId>,
    attempts: BTreeMap<u64, Attempt>,
    attempt_next: u64,
    bucket: Option<Bucket>,
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
            borrowed: BTreeSet::new(),
            attempts: BTreeMap::new(),
            attempt_next: 0,
            bucket: policy.rate.map(Bucket::new),
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
            Some(_) if lane.is_some_and(|host| self.borrowed.contains(&host)) => {}
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

    /// When the next attempt may start, as far as the receiver as a whole is concerned.
    fn open_at(&self) -> Option<Instant> {
        let bucket = self.bucket.as_ref().map_or(Instant(0), Bucket::ready_at);
        Some(self.breaker.opens_at()?.max(bucket))
    }

    pub(super) fn start(&mut self, now: Instant) -> Vec<Vec<DeliveryId>> {
        let mut started = Vec::new();
        while self.attempts.len() < self.policy.concurrency
            && self.open_at().is_some_and(|at| at <= now)
        {
            let batch = self.take_batch(now);
            if batch.is_empty() {
                break;
            }
            let trial = self.breaker.started();
            if let Some(bucket) = &mut self.bucket {
                bucket.take(now);
            }
            let attempt = self.attempt_next;
            self.attempt_next += 1;
            let len = batch.len();
            self.attempts.insert(attempt, Attempt { len, flying: len, judged: false });
            batch.iter().for_each(|id| self.launch(*id, attempt, trial, now));
            started.push(batch);
        }
        started
    }

    /// Heads that go together now.
    fn take_batch(&mut self, now: Instant) -> Vec<DeliveryId> {
        // To see whether a receiver is back, one is enough.
        let most = match self.breaker.state() {
            BreakerState::Closed => self.policy.batch_len_max,
            BreakerState::Open | BreakerState::HalfOpen => 1,
        };
        let mut batch = Vec::new();
        while batch.len() < most
            && let Some((due, id)) = self.ready.first().copied()
            && due <= now
        {
            let alone = self.entries.get(&id).is_some_and(|e| e.alone);
            if alone && !batch.is_empty() {
                break;
            }
            self.ready.pop_first();
            batch.push(id);
            if alone {
                break;
            }
        }
        batch
    }

    fn launch(&mut self, id: DeliveryId, attempt: u64, trial: bool, now: Instant) {
        let entry = self.entries.get_mut(&id).expect("what is ready is here: see `check`");
        let extra = if entry.attempts == 0 {
            // Not a wait between attempts: the first one is yet to come.
            Duration::ZERO
        } else {
            now.since(entry.since).saturating_sub(entry.counted)
        };
        entry.flight = Some(Flight { attempt, trial, settled: false, extra, delay: None });
        if let Some(lane) = self.lanes.get_mut(&entry.lane) {
            (lane.flying, lane.filed) = (Some(id), None);
        }
    }

    /// Those of the hosts that have nothing to be delivered: their lanes stay free.
    pub(super) fn borrow(&mut self, hosts: &[HostId]) -> Vec<HostId> {
        if self.breaker.state() != BreakerState::Closed {
            return Vec::new();
        }
        let free = |host: &HostId| !self.lanes.contains_key(&Some(*host));
        let free: Vec<_> = hosts.iter().copied().filter(free).collect();
        free.into_iter().filter(|host| self.borrowed.insert(*host)).collect()
    }

    pub(super) fn give_back(&mut self, hosts: &[HostId]) {
        for host in hosts {
            self.borrowed.remove(host);
            self.file(Some(*host));
        }
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
        let attempt = self.attempts.get_mut(&flight.attempt)?;
        // Once an attempt, however many it carried.
        if !std::mem::replace(&mut attempt.judged, true) {
            match outcome.class {
                // Nothing was sent, so that nothing was learnt of the receiver.
                OutcomeClass::Unsendable if flight.trial => self.breaker.trial_void(now),
                OutcomeClass::Unsendable => {}
                class if class.is_failing() => self.breaker.failed(flight.trial, now, rng),
                _ => self.breaker.succeeded(),
            }
        }
        let alone;
        let refused = outcome.class.is_refusal() || outcome.decision.is_some();
        let outcome = if attempt.len > 1 && refused {
            entry.alone = true;
            let detail = format!("{}, in a batch of {}: now alone", outcome.detail, attempt.len);
            alone = Outcome { detail, retry_after: outcome.retry_after, ..Outcome::of_status(400) };
            &alone
        } else {
            outcome
        };
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
        if let Some(attempt) = self.attempts.get_mut(&flight.attempt) {
            attempt.flying -= 1;
            if attempt.flying == 0 {
                self.attempts.remove(&flight.attempt);
            }
        }
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
        if self.attempts.len() >= self.policy.concurrency {
            return None;
        }
        let (due, _) = self.ready.first()?;
        Some(self.open_at()?.max(*due))
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
            in_flight: self.attempts.len(),
        }
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> impl Iterator<Item = &DeliveryId> {
        self.entries.keys()
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        let flying_max = self.policy.concurrency * self.policy.batch_len_max;
        assert!(self.entries.len() <= self.policy.queue_len_max + flying_max);
        assert!(self.attempts.len() <= self.policy.concurrency);
        for (n, attempt) in &self.attempts {
            let of = |e: &&Entry| e.flight.as_ref().is_some_and(|f| f.attempt == *n);
            assert_eq!(attempt.flying, self.entries.values().filter(of).count());
            assert!((1..=attempt.len).contains(&attempt.flying));
        }
        let flying = self.entries.values().filter(|e| e.flight.is_some()).count();
        assert_eq!(self.attempts.values().map(|a| a.flying).sum::<usize>(), flying);
        let in_lanes: usize = self.lanes.values().map(|l| l.ids.len()).sum();
        assert_eq!(self.entries.len(), in_lanes);
        for (host, lane) in &self.lanes {
            let free = !host.is_some_and(|host| self.borrowed.contains(&host));
            let head = lane.ids.first().copied();
            assert!(head.is_some());
            let flying = lane.ids.iter().filter(|id| self.entries[id].flight.is_some());
            assert!(flying.eq(&lane.flying));
            assert_eq!(
                lane.filed.map(|(_, id)| id),
                head.filter(|_| lane.flying.is_none() && free)
            );
            assert!(free || lane.flying.is_none(), "nothing flies in a borrowed lane");
        }
        let filed = self.lanes.values().filter_map(|l| l.filed);
        assert_eq!(self.ready, filed.collect());
    }
}
