//! What the delivery counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::outcome::OutcomeClass;

const CLASSES: usize = OutcomeClass::ALL.len();

#[derive(Debug, Default)]
struct Counters {
    attempts: [AtomicU64; CLASSES],
    retries: AtomicU64,
    delivered: AtomicU64,
    dead: AtomicU64,
    in_flight: AtomicU64,
    breaker_open: AtomicBool,
    resent: AtomicU64,
    resends_failed: AtomicU64,
}

/// Counters of every receiver. They start at zero with the process and only rise, but for the gauges.
#[derive(Debug)]
pub struct DeliveryMetrics {
    receivers: BTreeMap<String, Counters>,
}

/// One receiver's counters at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverCounts {
    /// Attempts that ended, by how. Every class is there.
    pub attempts: Vec<(OutcomeClass, u64)>,
    /// Attempts that were not the first of their delivery.
    pub retries: u64,
    /// Deliveries that the receiver took.
    pub delivered: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// Gauge: attempts under way.
    pub in_flight: u64,
    /// Gauge: whether the breaker keeps deliveries back.
    pub breaker_open: bool,
    /// Requests that said again what goes on, and were taken.
    pub resent: u64,
    /// And those that were not.
    pub resends_failed: u64,
}

impl DeliveryMetrics {
    /// Counters at zero for these receivers; others are not counted.
    pub fn new<'a>(receivers: impl IntoIterator<Item = &'a String>) -> Self {
        let zero = |name: &String| (name.clone(), Counters::default());
        Self { receivers: receivers.into_iter().map(zero).collect() }
    }

    /// All counters now, by receiver.
    pub fn snapshot(&self) -> BTreeMap<String, ReceiverCounts> {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let counts = |c: &Counters| ReceiverCounts {
            attempts: OutcomeClass::ALL.map(|o| (o, get(&c.attempts[o.index()]))).to_vec(),
            retries: get(&c.retries),
            delivered: get(&c.delivered),
            dead: get(&c.dead),
            in_flight: get(&c.in_flight),
            breaker_open: c.breaker_open.load(Ordering::Relaxed),
            resent: get(&c.resent),
            resends_failed: get(&c.resends_failed),
        };
        self.receivers.iter().map(|(name, c)| (name.clone(), counts(c))).collect()
    }

    pub(super) fn attempted(&self, receiver: &str, class: OutcomeClass, attempt: u32) {
        let Some(c) = self.receivers.get(receiver) else { return };
        c.attempts[class.index()].fetch_add(1, Ordering::Relaxed);
        if attempt > 1 {
            c.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn resent(&self, receiver: &str, class: OutcomeClass) {
        let Some(c) = self.receivers.get(receiver) else { return };
        let counter = match class {
            OutcomeClass::Success => &c.resent,
            _ => &c.resends_failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn delivered(&self, receiver: &str) {
        if let Some(c) = self.receivers.get(receiver) {
            c.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn dead(&self, receiver: &str) {
        if let Some(c) = self.receivers.get(receiver) {
            c.dead.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn gauge(&self, receiver: &str, in_flight: usize, breaker_open: bool) {
        if let Some(c) = self.receivers.get(receiver) {
            c.in_flight.store(in_flight as u64, Ordering::Relaxed);
            c.breaker_open.store(breaker_open, Ordering::Relaxed);
        }
    }
}
