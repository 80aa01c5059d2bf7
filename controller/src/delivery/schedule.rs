//! Pure: which delivery is attempted when, and what follows from how an attempt ended.
//!
//! Per receiver there is one *lane* a host (and one for the controller's own events), in the order of
//! delivery ids, which is the order of events. Only the head of a lane may be in flight. Heads wait in
//! a queue by due time; how many attempts fly at once is bounded per receiver, a token bucket bounds how
//! many start in a second, and a breaker leaves a receiver that fails as a whole alone. Due times are on the
//! monotonic clock.
//!
//! One attempt may carry several deliveries, heads of different lanes. They succeed together; a receiver
//! that refuses them gets each alone, since it may be one of them that it refuses.
//!
//! Only a window of the outbox is held here, at most [`QUEUE_LEN_MAX`] deliveries a receiver; the
//! store has the rest. [`Schedule::reads`] says what to read next, [`Schedule::read`] takes it. What is
//! beyond the window is not lost by not being taken: `more` remembers that the store has it.
//!
//! Invariants: a lane's head alone flies; a delivery is in one lane once; every delivery pushed is
//! offered, settled or left to be read again.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::backoff::Backoff;
use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use rand::Rng;

pub use super::breaker::{BREAKER_FAILURES, BreakerState};
pub use super::bucket::Rate;
use super::decision::Decision;
use super::outcome::{Outcome, OutcomeClass};
use super::queue::{Keep, Queue};
use crate::config::Receiver;
use crate::store::{DeliveryId, Due, FinishVerdict};

/// Most deliveries held here for one receiver; the store has the rest.
pub const QUEUE_LEN_MAX: usize = 10_000;
/// How long a delivery waits that an unfinished earlier one precedes: a held one, or one that is still
/// to be read.
pub const NOT_YET_WAIT: Duration = Duration::from_secs(1);

/// How one receiver is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most attempts under way at once. Not zero.
    pub concurrency: usize,
    /// Waits between attempts of one delivery.
    pub backoff: Backoff,
    /// Time waited in all before a delivery is dead.
    pub give_up_after: Duration,
    /// Most deliveries held. Not zero. [`QUEUE_LEN_MAX`] but in tests.
    pub queue_len_max: usize,
    /// Most deliveries in one attempt. Not zero.
    pub batch_len_max: usize,
    /// Limit on attempts, if there is one.
    pub rate: Option<Rate>,
}

impl From<&Receiver> for Policy {
    fn from(r: &Receiver) -> Self {
        Self {
            concurrency: usize::from(r.concurrency),
            backoff: Backoff { base: r.retry_base, cap: r.retry_cap },
            give_up_after: r.give_up_after,
            queue_len_max: QUEUE_LEN_MAX,
            batch_len_max: usize::from(r.max_batch),
            rate: Rate::per_second(r.rate, r.burst),
        }
    }
}

/// What becomes of a delivery whose attempt ended so. `attempts` counts this one; `waited` is the time
/// waited between attempts so far.
///
/// 2xx is success, unless it says `hold` (asked again after that time, which counts as waiting) or `veto`
/// (final); 409 with a token is a conflict; 410 is final, and so is an event that the receiver's format
/// cannot say; everything else is tried again, after the longer of a full-jitter backoff and `Retry-After`,
/// never longer than the cap, until the waits add up to `give_up_after`.
pub fn next<R: Rng + ?Sized>(
    outcome: &Outcome,
    attempts: u32,
    waited: Duration,
    policy: &Policy,
    rng: &mut R,
) -> FinishVerdict {
    let mut held = None;
    match (outcome.class, outcome.highest_token) {
        (OutcomeClass::Success, _) => match &outcome.decision {
            None => return FinishVerdict::Delivered,
            Some(Decision::Veto { reason }) => {
                return FinishVerdict::Vetoed { reason: reason.clone() };
            }
            Some(Decision::Hold { wait, .. }) => held = Some(*wait),
            Some(Decision::Unknown { .. }) => {}
        },
        (OutcomeClass::Conflict, Some(highest)) => return FinishVerdict::Conflict { highest },
        (OutcomeClass::Gone, _) => return FinishVerdict::Dead { reason: "gone".to_owned() },
        (OutcomeClass::Unsendable, _) => {
            return FinishVerdict::Dead { reason: format!("unsendable: {}", outcome.detail) };
        }
        _ => {}
    }
    if waited >= policy.give_up_after {
        let hours = waited.as_secs() as f64 / 3_600.0;
        let reason = format!(
            "no success in {attempts} attempts over {hours:.1} h of waiting; the last: {}",
            outcome.detail
        );
        return FinishVerdict::Dead { reason };
    }
    let jittered = policy.backoff.delay(attempts.max(1), rng);
    let asked = outcome.retry_after.unwrap_or_default().min(policy.backoff.cap);
    FinishVerdict::Retry { wait: held.unwrap_or_else(|| jittered.max(asked)) }
}

/// Where a receiver stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its breaker.
    pub breaker: BreakerState,
    /// Deliveries held here, those in flight among them.
    pub queued: usize,
    /// Whether the store may have more than these.
    pub more: bool,
    /// Attempts under way; one may carry several deliveries.
    pub in_flight: usize,
}

/// A page of pending deliveries to be read from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Whose.
    pub receiver: String,
    /// Those with ids above this.
    pub after: Option<DeliveryId>,
    /// At most so many.
    pub limit: usize,
}

/// From where on the store is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rescan {
    /// Above the highest id ever seen: is there anything new?
    New,
    /// From the beginning: has anything older been released unseen?
    All,
}

/// The schedule of all receivers.
#[derive(Debug)]
pub struct Schedule {
    queues: BTreeMap<String, Queue>,
    /// Which receiver each delivery held here belongs to.
    owner: BTreeMap<DeliveryId, String>,
}

impl Schedule {
    /// An empty schedule for these receivers: at first everything is still to be read.
    pub fn new(policies: BTreeMap<String, Policy>) -> Self {
        let queue = |(name, p): (String, Policy)| {
            let queue = Queue::new(&name, p);
            (name, queue)
        };
        let queues = policies.into_iter().map(queue).collect();
        Self { queues, owner: BTreeMap::new() }
    }

    /// Takes a delivery that is pending in the store, due now. One that is known, or beyond the
    /// window, changes nothing. `false`: there is no such receiver.
    pub fn push(&mut self, due: &Due, now: Instant) -> bool {
        let Some(queue) = self.queues.get_mut(&due.receiver) else { return false };
        queue.push(due, now, &mut self.owner);
        true
    }

    /// Takes a delivery that was redriven: due now, even if it was waiting for a retry. `false`: there
    /// is no such receiver.
    pub fn redriven(&mut self, due: &Due, now: Instant) -> bool {
        let Some(queue) = self.queues.get_mut(&due.receiver) else { return false };
        if !queue.restart(due, now) {
            queue.push(due, now, &mut self.owner);
        }
        true
    }

    /// Starts what is due: these are in flight until [`Schedule::finished`], [`Schedule::postponed`] or
    /// [`Schedule::gone`] is said of them. What one answer holds is to be sent together; no two of it are
    /// about the same host.
    pub fn next_batches(&mut self, now: Instant) -> Vec<Vec<DeliveryId>> {
        self.queues.values_mut().flat_map(|q| q.start(now)).collect()
    }

    /// [`Schedule::next_batches`] of receivers that take one at a time.
    pub fn next_due(&mut self, now: Instant) -> Vec<DeliveryId> {
        self.next_batches(now).into_iter().flatten().collect()
    }

    /// Keeps the lanes of those hosts free that have nothing to be delivered to a receiver: nothing of
    /// theirs starts until [`Schedule::give_back`]. Answers whose. Nobody's, while the breaker is not
    /// closed.
    ///
    /// What is said in between about a host is said after everything that the receiver was told of it, and
    /// before everything that it will be.
    pub fn borrow(&mut self, receiver: &str, hosts: &[HostId]) -> Vec<HostId> {
        self.queues.get_mut(receiver).map(|q| q.borrow(hosts)).unwrap_or_default()
    }

    /// Ends a [`Schedule::borrow`].
    pub fn give_back(&mut self, receiver: &str, hosts: &[HostId]) {
        if let Some(queue) = self.queues.get_mut(receiver) {
            queue.give_back(hosts);
        }
    }

    /// Decides what becomes of a delivery in flight. The journal is to be told this verdict, and then
    /// [`Schedule::finished`]. The wait in it is what the store adds up: it includes time that the
    /// delivery was kept waiting beyond what was scheduled, by the breaker or by others' attempts.
    pub fn judge<R: Rng + ?Sized>(
        &mut self,
        id: DeliveryId,
        outcome: &Outcome,
        now: Instant,
        rng: &mut R,
    ) -> FinishVerdict {
        self.queue_of(id)
            .and_then(|q| q.judge(id, outcome, now, rng))
            .unwrap_or(FinishVerdict::Retry { wait: Duration::ZERO })
    }

    /// The verdict is journaled: a retry is filed under its due time, anything else leaves.
    pub fn finished(&mut self, id: DeliveryId, verdict: &FinishVerdict, now: Instant) {
        let FinishVerdict::Retry { wait } = verdict else { return self.gone(id, now) };
        if let Some(queue) = self.queue_of(id)
            && queue.retry(id, *wait, now) == Keep::No
        {
            self.gone(id, now);
        }
    }

    /// An attempt could not begin: an earlier delivery precedes it, or the store is away. Due again
    /// after `wait`.
    pub fn postponed(&mut self, id: DeliveryId, wait: Duration, now: Instant) {
        if let Some(queue) = self.queue_of(id)
            && queue.postpone(id, wait, now) == Keep::No
        {
            self.gone(id, now);
        }
    }

    /// It is not pending any more.
    pub fn gone(&mut self, id: DeliveryId, now: Instant) {
        let Some(queue) = self.queue_of(id) else { return };
        queue.remove(id, now);
        self.owner.remove(&id);
    }

    /// These were cancelled or superseded. One in flight keeps its lane until its attempt ends.
    pub fn settled(&mut self, ids: &[DeliveryId], now: Instant) {
        for id in ids {
            if self.queue_of(*id).is_some_and(|q| q.settle(*id) == Keep::No) {
                self.gone(*id, now);
            }
        }
    }

    /// Whose it is, if it is held here.
    pub fn receiver_of(&self, id: DeliveryId) -> Option<&str> {
        self.owner.get(&id).map(String::as_str)
    }

    /// When [`Schedule::next_due`] has something next, if nothing else happens.
    pub fn next_wake(&self) -> Option<Instant> {
        self.queues.values().filter_map(Queue::wake).min()
    }

    /// What to read from the store now; each is to be answered with [`Schedule::read`] or
    /// [`Schedule::read_failed`].
    pub fn reads(&mut self) -> Vec<Read> {
        self.queues.values_mut().filter_map(Queue::want).collect()
    }

    /// The answer to a [`Read`].
    pub fn read(&mut self, read: &Read, page: &[Due], now: Instant) {
        if let Some(queue) = self.queues.get_mut(&read.receiver) {
            queue.read(read, page, now, &mut self.owner);
        }
    }

    /// The store could not answer a [`Read`]: it is wanted again.
    pub fn read_failed(&mut self, read: &Read) {
        if let Some(queue) = self.queues.get_mut(&read.receiver) {
            queue.read_failed();
        }
    }

    /// Looks again for what nobody pushed.
    pub fn rescan(&mut self, from: Rescan) {
        self.queues.values_mut().for_each(|q| q.rescan(from));
    }

    /// Where each receiver stands.
    pub fn status(&self) -> BTreeMap<&str, QueueStatus> {
        self.queues.iter().map(|(name, q)| (name.as_str(), q.status())).collect()
    }

    fn queue_of(&mut self, id: DeliveryId) -> Option<&mut Queue> {
        self.owner.get(&id).and_then(|name| self.queues.get_mut(name))
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for (name, queue) in &self.queues {
            queue.check();
            assert!(queue.ids().all(|id| self.owner.get(id) == Some(name)));
        }
        assert_eq!(self.owner.len(), self.queues.values().map(|q| q.ids().count()).sum::<usize>());
    }
}

#[cfg(test)]
mod tests;
