//! Keeps the fleet to its budget of beats: every few seconds, from what the shards count.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heartwatch_common::time::Clock;

use crate::intervals::{Assigned, Assigner, CLASSES_MAX, IntervalsStatus, Rules};
use crate::metrics::get;
use crate::shard::worker::ShardHandle;

/// How often intervals are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What others may see of it; `None` until the first look, and without a budget.
pub(super) type Shown = Arc<Mutex<Option<IntervalsStatus>>>;

/// Assigns intervals.
pub(super) struct Pacing {
    /// The operator's.
    pub(super) rules: Rules,
    /// Who counts hosts.
    pub(super) shards: Vec<ShardHandle>,
    /// What their acks say.
    pub(super) assigned: Arc<Assigned>,
    /// For people.
    pub(super) shown: Shown,
    /// Where time comes from.
    pub(super) clock: Arc<dyn Clock>,
}

impl Pacing {
    /// Works until it is aborted.
    pub(super) async fn run(self) {
        let mut assigner = Assigner::new(self.rules.clone());
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tick.tick().await;
            let mut counts = [0u64; CLASSES_MAX];
            for shard in &self.shards {
                for (sum, n) in counts.iter_mut().zip(&shard.metrics.class_hosts) {
                    *sum += get(n);
                }
            }
            assigner.step(&counts, self.clock.now());
            for (class, interval) in assigner.intervals().into_iter().enumerate() {
                self.assigned.set(class, interval);
            }
            let status = assigner.status();
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        }
    }
}
