//! Keeps the fleet to its budget of beats: every few seconds, from what the shards count.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heartwatch_common::time::{Clock, Instant};

use crate::detector::host::Known;
use crate::intervals::{Assigned, Assigner, CLASSES_MAX, IntervalsStatus, Rules};
use crate::metrics::get;
use crate::shard::worker::ShardHandle;

/// How often intervals are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What others may see of it; `None` until the first look, and without a budget.
pub(super) type Shown = Arc<Mutex<Option<IntervalsStatus>>>;

/// Assigns intervals.
pub(super) struct Pacing {
    /// What was assigned so far.
    pub(super) assigner: Assigner,
    /// Who counts hosts.
    pub(super) shards: Vec<ShardHandle>,
    /// What their acks say.
    pub(super) assigned: Arc<Assigned>,
    /// For people.
    pub(super) shown: Shown,
    /// Where time comes from.
    pub(super) clock: Arc<dyn Clock>,
}

/// Assigns what the hosts need that are known from before this start, before any is heard: until the
/// shards have counted them, a whole fleet would be told to beat as often as one host may.
pub(super) fn at_start<'a>(
    rules: &Rules,
    known: impl Iterator<Item = &'a Known>,
    assigned: &Assigned,
    now: Instant,
) -> Assigner {
    let mut counts = [0u64; CLASSES_MAX];
    for host in known.filter(|host| host.state.may_beat()) {
        counts[usize::from(host.profile.class) % CLASSES_MAX] += 1;
    }
    let mut assigner = Assigner::new(rules.clone());
    assigner.step(&counts, now);
    publish(&assigner, assigned);
    assigner
}

fn publish(assigner: &Assigner, assigned: &Assigned) {
    for (class, interval) in assigner.intervals().into_iter().enumerate() {
        assigned.set(class, interval);
    }
}

impl Pacing {
    /// Works until it is aborted.
    pub(super) async fn run(self) {
        let mut assigner = self.assigner;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tick.tick().await;
            if self.shards.iter().any(|shard| get(&shard.metrics.loops) == 0) {
                // It has not counted its hosts yet.
                continue;
            }
            let mut counts = [0u64; CLASSES_MAX];
            for shard in &self.shards {
                for (sum, n) in counts.iter_mut().zip(&shard.metrics.class_hosts) {
                    *sum += get(n);
                }
            }
            assigner.step(&counts, self.clock.now());
            publish(&assigner, &self.assigned);
            let status = assigner.status();
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::id::{Boot, HostId};

    use crate::config::RawConfig;
    use crate::event::State;

    /// Every restart used to assign the shortest interval for its first five seconds.
    #[test]
    fn a_restart_assigns_what_the_known_hosts_need_before_any_is_heard() {
        let config = toml::from_str::<RawConfig>("[intervals]\nbudget = \"50/s\"\n")
            .unwrap()
            .check()
            .unwrap();
        let rules = config.intervals.unwrap();
        let known = |n: u32, state| Known {
            id: HostId([n as u8; 16]),
            state,
            boot: Boot(1),
            generation: Default::default(),
            address: None,
            in_state: Duration::ZERO,
            missing_reported: false,
            duplicate: false,
            agent_lost: false,
            domain: Default::default(),
            profile: Default::default(),
            frozen: None,
            back_in: None,
            live: Default::default(),
        };
        let hosts: Vec<Known> = (0..500)
            .map(|n| known(n, State::Alive))
            .chain((0..500).map(|n| known(n, State::Left)))
            .collect();
        let assigned = Assigned::fixed(Duration::ZERO, 10);
        at_start(&rules, hosts.iter(), &assigned, Instant::from_millis(1));
        let interval = assigned.get(0).0.as_secs_f64();
        assert!((10.0..13.0).contains(&interval), "500 hosts, 50 beats a second: {interval} s");
        // Without any host there is nothing to be gentle with.
        at_start(&rules, [].iter(), &assigned, Instant::from_millis(1));
        assert_eq!(assigned.get(0).0, rules.classes[0].min);
    }
}
