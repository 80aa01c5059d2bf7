//! From the outbox to the receivers.
//!
//! Journal, send, journal: an attempt is journaled before its first byte leaves, and how it ended after.
//! Whatever dies in between, the next controller finds the delivery pending and begun, and sends it
//! again under the same idempotency key.
//!
//! - [`schedule`] (pure) decides which delivery is attempted when, and which go together;
//! - [`mod@format`] says what a receiver's request looks like;
//! - [`webhook`] makes one signed attempt, [`exec`] runs a command; [`target`] is either;
//! - [`resend`] says again to Alertmanager what goes on;
//! - the worker here is the shell: one task that owns the schedule, and one short-lived task for each
//!   attempt, as many as the receivers' concurrency allows.
//!
//! While the store cannot write, nothing is sent. What is handed over by [`DeliveryHandle::wake`] is a
//! hint that saves time, not the only way: the store is asked for news every [`POLL_EVERY`], and asked
//! for everything every [`SWEEP_EVERY`].

mod breaker;
pub mod bucket;
pub mod decision;
pub mod exec;
pub mod format;
pub mod metrics;
pub mod outcome;
mod queue;
pub mod resend;
pub mod sample;
pub mod schedule;
pub mod sign;
pub mod target;
#[cfg(test)]
mod tests;
pub mod webhook;
mod worker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Wall};
use tokio::sync::{mpsc, oneshot};

pub use metrics::{DeliveryMetrics, ReceiverCounts};
pub use outcome::{Outcome, OutcomeClass};
pub use schedule::BreakerState;
pub use webhook::WebhookError;

use crate::config::Receiver;
use crate::event::EventKind;
use crate::store::{DeliveryId, Due, Store};
use resend::Open;
use target::Target;
use worker::{Command, Worker};

/// Hints that may wait for the worker; what does not fit is found by asking the store.
pub const HINTS_LEN_MAX: usize = 1_024;
/// How often the store is asked for deliveries that nobody handed over.
pub const POLL_EVERY: Duration = Duration::from_secs(1);
/// How often the store is asked for all that is pending.
pub const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Where a receiver stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverStatus {
    /// How it is told, such as `native` or `exec`; empty if it is not configured.
    pub format: &'static str,
    /// Whether it is in the config. Deliveries to others stay in the store until it is again.
    pub configured: bool,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Deliveries in the worker's window, those in flight among them; for a receiver that is not
    /// configured, those that the store had pending or held when last asked.
    pub queued: u64,
    /// Whether the store may have more than these.
    pub more: bool,
    /// Attempts under way.
    pub in_flight: u64,
    /// How its last attempt ended, for people.
    pub last_outcome: Option<String>,
    /// When, milliseconds since 1970.
    pub last_ms: Option<Wall>,
}

/// Something happened to an order of a host: what, stands in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Of which host.
    pub host: HostId,
    /// It was refused or given up.
    pub bad: bool,
}

/// Tells somebody of which hosts an order was taken, refused or given up.
#[derive(Clone, Debug)]
pub struct News {
    hosts: mpsc::Sender<Word>,
    missed: Arc<AtomicBool>,
}

impl News {
    /// A way for news, at most `len` of which wait, and who hears them. More than that are not told one by
    /// one: [`News::missed`].
    pub fn new(len: usize) -> (Self, mpsc::Receiver<Word>) {
        let (hosts, heard) = mpsc::channel(len);
        (Self { hosts, missed: Arc::default() }, heard)
    }

    /// Tells of a host. Never waits.
    pub fn tell(&self, word: Word) {
        if self.hosts.try_send(word).is_err() {
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether something was not told since this was asked last: any host may have news.
    pub fn missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }
}

/// Starts the delivery.
#[derive(Debug)]
pub struct Delivery;

impl Delivery {
    /// Reads the receivers' secrets and starts delivering what the store has pending. Must be called
    /// within a tokio runtime. `rng_seed` draws the jitter.
    ///
    /// # Errors
    /// If a receiver's secret, token, certificate or template cannot be used; then nothing is started.
    pub fn spawn(
        store: Arc<dyn Store>,
        receivers: BTreeMap<String, Receiver>,
        clock: Arc<dyn Clock>,
        rng_seed: u64,
        metrics: Arc<DeliveryMetrics>,
    ) -> Result<DeliveryHandle, WebhookError> {
        Self::spawn_for(store, receivers, |_| Vec::new(), None, clock, rng_seed, metrics)
    }

    /// The same; `kinds` says what the rules send to a receiver, on which its template is tried, and `news`
    /// is told how orders fare.
    ///
    /// # Errors
    /// As [`Delivery::spawn`]'s.
    pub fn spawn_for(
        store: Arc<dyn Store>,
        receivers: BTreeMap<String, Receiver>,
        kinds: impl Fn(&str) -> Vec<EventKind>,
        news: Option<News>,
        clock: Arc<dyn Clock>,
        rng_seed: u64,
        metrics: Arc<DeliveryMetrics>,
    ) -> Result<DeliveryHandle, WebhookError> {
        let mut targets = BTreeMap::new();
        for (name, receiver) in &receivers {
            let target = Target::new(receiver, &kinds(name))?;
            if matches!(&target, Target::Http(webhook) if !webhook.is_signed())
                && receiver.should_sign()
            {
                log::warn!("receiver {name} has no secret_file: its webhooks are not signed");
            }
            targets.insert(name.clone(), Arc::new(target));
        }
        let (commands, queue) = mpsc::channel(HINTS_LEN_MAX);
        let missed = Arc::new(AtomicBool::new(false));
        let status = Arc::new(Mutex::new(BTreeMap::new()));
        let worker = Worker::new(
            store,
            targets.clone(),
            &receivers,
            news,
            clock,
            rng_seed,
            metrics,
            Arc::clone(&missed),
            Arc::clone(&status),
        );
        drop(tokio::spawn(worker.run(queue)));
        Ok(DeliveryHandle { commands, missed, status, targets })
    }
}

/// How the rest of the controller speaks to the delivery. Dropping it ends the delivery at once, in the
/// middle of whatever it does; what was begun is sent again by the next one.
#[derive(Debug)]
pub struct DeliveryHandle {
    commands: mpsc::Sender<Command>,
    missed: Arc<AtomicBool>,
    status: Arc<Mutex<BTreeMap<String, ReceiverStatus>>>,
    targets: BTreeMap<String, Arc<Target>>,
}

impl DeliveryHandle {
    /// A receiver of the config.
    pub fn target(&self, receiver: &str) -> Option<&Target> {
        self.targets.get(receiver).map(Arc::as_ref)
    }

    /// Says again to a receiver what it was last told of these hosts, at most
    /// [`resend::PAGE_LEN_MAX`]; returns when that has ended.
    pub(crate) async fn resend(&self, receiver: &str, open: Vec<Open>) {
        let (done, ended) = oneshot::channel();
        let command = Command::Resend { receiver: receiver.to_owned(), open, done };
        if self.commands.send(command).await.is_ok() && ended.await.is_err() {
            log::debug!("{receiver}: what was to be said again was dropped at the end");
        }
    }

    /// Deliveries that have become pending. Never waits: what does not fit is found in the store.
    pub fn wake(&self, due: Vec<Due>) {
        if !due.is_empty() {
            self.hint(Command::Wake(due));
        }
    }

    /// Deliveries that were cancelled or superseded. Only a hint: the store refuses to begin them.
    pub fn settled(&self, ids: Vec<DeliveryId>) {
        if !ids.is_empty() {
            self.hint(Command::Settled(ids));
        }
    }

    /// A delivery that was redriven: due now.
    pub fn redriven(&self, due: Due) {
        self.hint(Command::Redriven(due));
    }

    /// Where each receiver stands: those of the config, and others that the store has deliveries for.
    pub fn receivers_status(&self) -> BTreeMap<String, ReceiverStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts nothing more, lets attempts under way end and be journaled for at most `deadline`, and
    /// breaks off the others.
    pub async fn shutdown(&self, deadline: Duration) {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Shutdown { deadline, done }).await.is_ok()
            && stopped.await.is_err()
        {
            log::error!("delivery: the worker died before it could stop");
        }
    }

    fn hint(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            self.missed.store(true, Ordering::Relaxed);
        }
    }
}
