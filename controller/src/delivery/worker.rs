//! The shell around the schedule: takes hints and results, starts attempts, asks the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use heartwatch_common::backoff::Backoff;
use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Instant, Wall};
use heartwatch_common::words;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::outcome::{Outcome, OutcomeClass, clip};
use super::resend::{self, Open};
use super::schedule::{BreakerState, NOT_YET_WAIT, Policy, Read, Rescan, Schedule};
use super::target::Target;
use super::{DeliveryMetrics, News, POLL_EVERY, ReceiverStatus, SWEEP_EVERY, Word};
use crate::config::Receiver;
use crate::crash;
use crate::event::EventKind;
use crate::policy::{is_action, is_followed};
use crate::store::{
    Backlog, Begin, DeliveryId, DeliveryState, Due, Finish, FinishVerdict, Outgoing, Store,
    StoreError, Token,
};

/// Waits while the store cannot write.
const STORE_BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
/// A delivery that the store cannot make sense of is left alone for this long.
const PUZZLED_WAIT: Duration = Duration::from_secs(60);

/// What the handle says.
#[derive(Debug)]
pub(super) enum Command {
    Wake(Vec<Due>),
    Settled(Vec<DeliveryId>),
    Redriven(Due),
    Resend { receiver: String, open: Vec<Open>, done: oneshot::Sender<()> },
    Shutdown { deadline: Duration, done: oneshot::Sender<()> },
}

/// What a task of the worker brings back.
enum Job {
    Attempted(Vec<(DeliveryId, Attempt)>),
    Resent(Resent),
    /// The host is that of an order.
    Finished(DeliveryId, Option<HostId>, FinishVerdict, Result<Vec<Due>, StoreError>),
    Read(Read, Result<Vec<Due>, StoreError>),
    Backlog(Result<Backlog, StoreError>),
}

/// A resend that ended; nothing of these hosts was begun meanwhile.
struct Resent {
    receiver: String,
    outcome: Option<Outcome>,
    done: oneshot::Sender<()>,
}

enum Attempt {
    Answered(Box<Answered>),
    Gone,
    NotYet,
    Refused(StoreError),
}

/// How an attempt ended, and of what it was one.
struct Answered {
    outcome: Outcome,
    kind: EventKind,
    host: Option<HostId>,
    attempt: u32,
    token: Option<Token>,
    /// Whether it carried nothing else.
    alone: bool,
}

/// Says at most once a second that the store fails.
struct Complaint {
    clock: Arc<dyn Clock>,
    not_before_ns: AtomicU64,
}

impl Complaint {
    fn say(&self, e: &StoreError) {
        let now = self.clock.now();
        let not_before = self.not_before_ns.load(Ordering::Relaxed);
        if now.0 >= not_before {
            let next = (now + Duration::from_secs(1)).0;
            self.not_before_ns.store(next, Ordering::Relaxed);
            log::warn!("delivery waits for the store: {e}");
        }
    }
}

struct Stop {
    deadline: Pin<Box<Sleep>>,
    done: oneshot::Sender<()>,
}

pub(super) struct Worker {
    store: Arc<dyn Store>,
    targets: BTreeMap<String, Arc<Target>>,
    clock: Arc<dyn Clock>,
    rng: StdRng,
    metrics: Arc<DeliveryMetrics>,
    missed: Arc<AtomicBool>,
    status: Arc<Mutex<BTreeMap<String, ReceiverStatus>>>,
    schedule: Schedule,
    jobs: JoinSet<Job>,
    /// Deliveries in flight by their task, should it panic.
    flights: HashMap<tokio::task::Id, Vec<DeliveryId>>,
    /// Lanes that are kept free, by the task that needs them so.
    borrowed: HashMap<tokio::task::Id, (String, Vec<HostId>)>,
    formats: BTreeMap<String, &'static str>,
    complaint: Arc<Complaint>,
    store_failures: u32,
    paused_until: Instant,
    fenced: bool,
    poll_at: Instant,
    sweep_at: Instant,
    last: BTreeMap<String, (String, Wall)>,
    /// Receivers that the store knows and the config does not, with what it has for them.
    strangers: BTreeMap<String, u64>,
    warned: BTreeSet<String>,
    news: Option<News>,
}

impl Worker {
    #[expect(clippy::too_many_arguments, reason = "called once, by `Delivery::spawn`")]
    pub(super) fn new(
        store: Arc<dyn Store>,
        targets: BTreeMap<String, Arc<Target>>,
        receivers: &BTreeMap<String, Receiver>,
        news: Option<News>,
        clock: Arc<dyn Clock>,
        rng_seed: u64,
        metrics: Arc<DeliveryMetrics>,
        missed: Arc<AtomicBool>,
        status: Arc<Mutex<BTreeMap<String, ReceiverStatus>>>,
    ) -> Self {
        let policies = receivers.iter().map(|(name, r)| (name.clone(), Policy::from(r))).collect();
        let complaint = Complaint { clock: Arc::clone(&clock), not_before_ns: AtomicU64::new(0) };
        let mut worker = Self {
            store,
            targets,
            clock,
            rng: StdRng::seed_from_u64(rng_seed),
            metrics,
            missed,
            status,
            schedule: Schedule::new(policies),
            jobs: JoinSet::new(),
            flights: HashMap::new(),
            borrowed: HashMap::new(),
            formats: receivers.iter().map(|(name, r)| (name.clone(), r.kind.as_str())).collect(),
            complaint: Arc::new(complaint),
            store_failures: 0,
            paused_until: Instant(0),
            fenced: false,
            poll_at: Instant(0),
            sweep_at: Instant(0),
            last: BTreeMap::new(),
            strangers: BTreeMap::new(),
            warned: BTreeSet::new(),
            news,
        };
        worker.publish();
        worker
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut stop: Option<Stop> = None;
        loop {
            let wait = match &stop {
                None => self.start(),
                Some(_) if self.flights.is_empty() => break,
                Some(_) => POLL_EVERY,
            };
            self.publish();
            tokio::select! {
                command = commands.recv() => match command {
                    // The handle was dropped: what is under way is broken off with `self`.
                    None => return,
                    Some(Command::Shutdown { deadline, done }) => {
                        let deadline = Box::pin(tokio::time::sleep(deadline));
                        stop = Some(Stop { deadline, done });
                    }
                    Some(command) => self.take(command),
                },
                Some(job) = self.jobs.join_next_with_id() => self.ended(job),
                () = tokio::time::sleep(wait) => {}
                () = reached(&mut stop) => {
                    let attempts = words::count(self.flights.len() as u64, "attempt");
                    log::warn!("delivery: broken off: {attempts}");
                    break;
                }
            }
        }
        self.jobs.shutdown().await;
        if let Some(Stop { done, .. }) = stop
            && done.send(()).is_err()
        {
            log::debug!("delivery: has stopped, nobody waits for it");
        }
    }

    fn take(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Wake(all) => all.iter().for_each(|due| self.push(due, now)),
            Command::Settled(ids) => self.schedule.settled(&ids, now),
            Command::Redriven(due) => {
                if !self.schedule.redriven(&due, now) {
                    self.stranger(&due.receiver);
                }
            }
            Command::Resend { receiver, open, done } => self.resend(receiver, &open, done),
            // Taken by `run`.
            Command::Shutdown { .. } => {}
        }
    }

    fn push(&mut self, due: &Due, now: Instant) {
        if !self.schedule.push(due, now) {
            self.stranger(&due.receiver);
        }
    }

    fn stranger(&mut self, receiver: &str) {
        self.strangers.entry(receiver.to_owned()).or_default();
        if self.warned.insert(receiver.to_owned()) {
            log::warn!(
                "deliveries to receiver {receiver} stay in the store: it is not in the config"
            );
        }
    }

    /// Starts what is due and asks what is to be asked; answers how long there is nothing to do.
    fn start(&mut self) -> Duration {
        let now = self.clock.now();
        if self.fenced {
            return POLL_EVERY;
        }
        if now < self.paused_until {
            return self.paused_until.since(now);
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.schedule.rescan(Rescan::All);
            let store = Arc::clone(&self.store);
            self.jobs.spawn(async move { Job::Backlog(store.backlog().await) });
        } else if self.missed.swap(false, Ordering::Relaxed) {
            self.schedule.rescan(Rescan::All);
        }
        if now >= self.poll_at {
            self.poll_at = now + POLL_EVERY;
            self.schedule.rescan(Rescan::New);
        }
        for read in self.schedule.reads() {
            let store = Arc::clone(&self.store);
            self.jobs.spawn(async move {
                let page = store.pending(&read.receiver, read.after, read.limit).await;
                Job::Read(read, page)
            });
        }
        for batch in self.schedule.next_batches(now) {
            self.attempt(batch);
        }
        let wake = self.schedule.next_wake().unwrap_or(Instant::FAR).min(self.poll_at);
        // Looked at again by then even if the clock is one that a test moves.
        wake.since(now).min(POLL_EVERY)
    }

    fn attempt(&mut self, batch: Vec<DeliveryId>) {
        let receiver = batch.first().and_then(|id| self.schedule.receiver_of(*id));
        let target = receiver.and_then(|name| self.targets.get(name)).map(Arc::clone);
        let Some(target) = target else {
            let now = self.clock.now();
            return batch.iter().for_each(|id| self.schedule.gone(*id, now));
        };
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        let ids = batch.clone();
        let task = self
            .jobs
            .spawn(async move { Job::Attempted(attempt(&*store, &target, &*clock, &ids).await) });
        self.flights.insert(task.id(), batch);
    }

    fn resend(&mut self, receiver: String, open: &[Open], done: oneshot::Sender<()>) {
        let hosts: Vec<HostId> = open.iter().map(|(host, _)| *host).collect();
        let target = self.targets.get(&receiver).filter(|_| !self.fenced).map(Arc::clone);
        let Some(target) = target else { return };
        let hosts = self.schedule.borrow(&receiver, &hosts);
        let open: Vec<Open> = open.iter().filter(|o| hosts.contains(&o.0)).copied().collect();
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        let name = receiver.clone();
        let task = self.jobs.spawn(async move {
            let told = resend::tell(&*store, &target, &name, &open, clock.wall());
            let outcome = told.await;
            Job::Resent(Resent { receiver: name, outcome, done })
        });
        self.borrowed.insert(task.id(), (receiver, hosts));
    }

    fn give_back(&mut self, task: tokio::task::Id) {
        if let Some((receiver, hosts)) = self.borrowed.remove(&task) {
            self.schedule.give_back(&receiver, &hosts);
        }
    }

    fn resent(&mut self, resent: Resent) {
        let Resent { receiver, outcome, done } = resent;
        if let Some(outcome) = outcome {
            if outcome.class != OutcomeClass::Success {
                let detail = &outcome.detail;
                log::warn!("{receiver}: what goes on could not be said again: {detail}");
            }
            self.metrics.resent(&receiver, outcome.class);
            self.last.insert(receiver, (outcome.detail, self.clock.wall()));
        }
        if done.send(()).is_err() {
            log::trace!("nobody waits for the resend any more");
        }
    }

    fn ended(&mut self, job: Result<(tokio::task::Id, Job), tokio::task::JoinError>) {
        let now = self.clock.now();
        match job {
            Err(e) => {
                log::error!("delivery: a task failed: {e}");
                self.give_back(e.id());
                for id in self.flights.remove(&e.id()).unwrap_or_default() {
                    self.schedule.postponed(id, PUZZLED_WAIT, now);
                }
            }
            Ok((task, job)) => {
                self.flights.remove(&task);
                self.give_back(task);
                match job {
                    Job::Attempted(all) => {
                        for (id, attempt) in all {
                            self.attempted(id, attempt, now);
                        }
                    }
                    Job::Resent(resent) => self.resent(resent),
                    Job::Finished(id, host, verdict, answer) => {
                        self.finished(id, host, &verdict, answer, now);
                    }
                    Job::Read(read, answer) => self.read(&read, answer, now),
                    Job::Backlog(answer) => self.backlog(answer),
                }
            }
        }
    }

    fn attempted(&mut self, id: DeliveryId, attempt: Attempt, now: Instant) {
        match attempt {
            Attempt::Answered(answered) => {
                self.store_failures = 0;
                self.answered(id, *answered, now);
            }
            Attempt::Gone => self.schedule.gone(id, now),
            Attempt::NotYet => self.schedule.postponed(id, NOT_YET_WAIT, now),
            Attempt::Refused(StoreError::Invalid(text)) => {
                log::error!("delivery {} cannot be attempted: {text}", id.0);
                self.schedule.postponed(id, PUZZLED_WAIT, now);
            }
            Attempt::Refused(e) => {
                self.schedule.postponed(id, Duration::ZERO, now);
                self.store_failed(&e, now);
            }
        }
    }

    fn answered(&mut self, id: DeliveryId, answered: Answered, now: Instant) {
        let Answered { mut outcome, kind, host, attempt, token, alone } = answered;
        // News is not refused; in company the others are to go alone first, too.
        if alone && !is_action(kind) {
            outcome.decision = None;
        }
        if let Some(decision) = &outcome.decision {
            outcome.detail = clip(&format!("{}: {}", outcome.detail, decision.words())).to_owned();
        }
        // Below our own it contradicts itself, and an event without a token has none to conflict with:
        // a refusal like any other.
        if token.is_none() || outcome.highest_token < token {
            outcome.highest_token = None;
        }
        let at = self.clock.wall();
        if let Some(receiver) = self.schedule.receiver_of(id) {
            self.metrics.attempted(receiver, outcome.class, attempt);
            self.last.insert(receiver.to_owned(), (outcome.detail.clone(), at));
        }
        let mut verdict = self.schedule.judge(id, &outcome, now, &mut self.rng);
        if kind == EventKind::Test && matches!(verdict, FinishVerdict::Retry { .. }) {
            // Whoever tries a receiver sees how that ends, and tries again by hand.
            let reason = format!("a test is not repeated; it ended with: {}", outcome.detail);
            verdict = FinishVerdict::Dead { reason };
        }
        let (status, detail) = (outcome.status, outcome.detail);
        let finish = Finish { at, status, detail, verdict };
        let of_order = host.filter(|_| is_followed(kind));
        let (store, complaint) = (Arc::clone(&self.store), Arc::clone(&self.complaint));
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        let task = self.jobs.spawn(async move {
            // A success that is known must not be forgotten because the disk is full just now.
            let mut failures = 0u32;
            loop {
                match store.finish_attempt(id, finish.clone()).await {
                    Err(e @ (StoreError::Unavailable(_) | StoreError::Unknown)) => {
                        complaint.say(&e);
                        failures = failures.saturating_add(1);
                        tokio::time::sleep(STORE_BACKOFF.delay(failures, &mut rng)).await;
                    }
                    answer => return Job::Finished(id, of_order, finish.verdict, answer),
                }
            }
        });
        self.flights.insert(task.id(), vec![id]);
    }

    fn finished(
        &mut self,
        id: DeliveryId,
        of_order: Option<HostId>,
        verdict: &FinishVerdict,
        answer: Result<Vec<Due>, StoreError>,
        now: Instant,
    ) {
        match answer {
            Ok(born) => {
                crash::pass("finished");
                if let (Some(news), Some(host)) = (&self.news, of_order)
                    && !matches!(verdict, FinishVerdict::Retry { .. })
                {
                    let bad = matches!(
                        verdict,
                        FinishVerdict::Dead { .. } | FinishVerdict::Vetoed { .. }
                    );
                    news.tell(Word { host, bad });
                    crash::pass("told");
                }
                if let Some(receiver) = self.schedule.receiver_of(id) {
                    let of = of_order.map_or_else(String::new, |host| format!(" of host {host}"));
                    match verdict {
                        FinishVerdict::Delivered => self.metrics.delivered(receiver),
                        FinishVerdict::Dead { reason } => {
                            self.metrics.dead(receiver);
                            log::warn!("delivery {}{of} to {receiver} is given up: {reason}", id.0);
                        }
                        FinishVerdict::Vetoed { reason } => {
                            log::warn!("delivery {}{of} to {receiver} is vetoed: {reason}", id.0);
                        }
                        _ => {}
                    }
                }
                self.schedule.finished(id, verdict, now);
                born.iter().for_each(|due| self.push(due, now));
            }
            Err(StoreError::Fenced) => {
                self.schedule.gone(id, now);
                self.store_failed(&StoreError::Fenced, now);
            }
            Err(e) => {
                log::error!("how delivery {} ended cannot be journaled: {e}", id.0);
                self.schedule.gone(id, now);
            }
        }
    }

    fn read(&mut self, read: &Read, answer: Result<Vec<Due>, StoreError>, now: Instant) {
        match answer {
            Ok(page) => self.schedule.read(read, &page, now),
            Err(e) => {
                self.schedule.read_failed(read);
                self.store_failed(&e, now);
            }
        }
    }

    fn backlog(&mut self, answer: Result<Backlog, StoreError>) {
        let backlog = match answer {
            Ok(backlog) => backlog,
            Err(e) => return self.complaint.say(&e),
        };
        self.strangers.clear();
        for ((receiver, state), n) in backlog.by_receiver {
            let unfinished = matches!(state, DeliveryState::Pending | DeliveryState::Held);
            if unfinished && !self.targets.contains_key(&receiver) {
                self.stranger(&receiver);
                *self.strangers.entry(receiver).or_default() += n;
            }
        }
    }

    /// Nothing is started for a while.
    fn store_failed(&mut self, e: &StoreError, now: Instant) {
        if matches!(e, StoreError::Fenced) && !self.fenced {
            self.fenced = true;
            log::error!("delivery stops: {e}");
            return;
        }
        self.complaint.say(e);
        if now >= self.paused_until {
            self.store_failures = self.store_failures.saturating_add(1);
            let wait = STORE_BACKOFF.delay(self.store_failures, &mut self.rng);
            self.paused_until = now + wait.max(STORE_BACKOFF.base);
        }
    }

    fn publish(&mut self) {
        let mut all = BTreeMap::new();
        for (name, q) in self.schedule.status() {
            self.metrics.gauge(name, q.in_flight, q.breaker != BreakerState::Closed);
            let last = self.last.get(name);
            let status = ReceiverStatus {
                format: self.formats.get(name).copied().unwrap_or_default(),
                configured: true,
                breaker: q.breaker,
                queued: q.queued as u64,
                more: q.more,
                in_flight: q.in_flight as u64,
                last_outcome: last.map(|(detail, _)| detail.clone()),
                last_ms: last.map(|(_, at)| *at),
            };
            all.insert(name.to_owned(), status);
        }
        for (name, queued) in &self.strangers {
            let status = ReceiverStatus {
                format: "",
                configured: false,
                breaker: BreakerState::Closed,
                queued: *queued,
                more: false,
                in_flight: 0,
                last_outcome: None,
                last_ms: None,
            };
            all.insert(name.clone(), status);
        }
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// Begins each in the journal, sends those that may go in one request.
async fn attempt(
    store: &dyn Store,
    target: &Target,
    clock: &dyn Clock,
    ids: &[DeliveryId],
) -> Vec<(DeliveryId, Attempt)> {
    let at = clock.wall();
    crash::pass("begin");
    // All at once: the store then writes them in one transaction.
    let begun = join_all(ids.iter().map(|id| store.begin_attempt(*id, at))).await;
    let (mut ended, mut going, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    for (id, begin) in ids.iter().zip(begun) {
        match begin {
            Ok(Begin::Go(outgoing)) => {
                going.push(*id);
                batch.push(outgoing);
            }
            Ok(Begin::Gone) => ended.push((*id, Attempt::Gone)),
            Ok(Begin::NotYet) => ended.push((*id, Attempt::NotYet)),
            Err(e) => ended.push((*id, Attempt::Refused(e))),
        }
    }
    if batch.is_empty() {
        return ended;
    }
    crash::pass("begun");
    let outcome = target.send(&batch, clock.wall()).await;
    crash::pass("answered");
    let alone = batch.len() == 1;
    ended.extend(going.into_iter().zip(batch).map(|(id, outgoing)| {
        let Outgoing { kind, host, attempt, token, .. } = outgoing;
        let outcome = outcome.clone();
        let answered = Answered { outcome, kind, host, attempt, token, alone };
        (id, Attempt::Answered(Box::new(answered)))
    }));
    ended
}

async fn reached(stop: &mut Option<Stop>) {
    match stop {
        Some(stop) => stop.deadline.as_mut().await,
        None => std::future::pending().await,
    }
}
