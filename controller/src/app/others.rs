//! Who speaks another version of the wire: asked of the shards while such datagrams come, shown in the
//! status, and told in the log, at most once in [`TOLD_EVERY`].

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heartwatch_common::daemon::Throttle;
use heartwatch_common::time::{Clock, Instant, Wall};
use heartwatch_common::wire;
use tokio::sync::oneshot;

use crate::control::OtherVersionStatus;
use crate::metrics::{Reject, get};
use crate::shard::foreign::{NAMED_MAX, OtherVersion};
use crate::shard::worker::{Command, ShardHandle};

/// Least time between two lines of the log.
const TOLD_EVERY: Duration = Duration::from_secs(300);
/// Between two questions to the shards.
const ASKED_EVERY: Duration = Duration::from_secs(2);
/// How long a shard may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// See the module's doc.
pub(super) struct Others {
    shards: Vec<ShardHandle>,
    clock: Arc<dyn Clock>,
    throttle: Throttle,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Datagrams of other versions, as of the last line of the log.
    told: u64,
    asked: Instant,
    shown: Vec<OtherVersionStatus>,
}

impl Others {
    pub(super) fn new(shards: Vec<ShardHandle>, clock: Arc<dyn Clock>) -> Self {
        Self { shards, clock, throttle: Throttle::new(TOLD_EVERY), seen: Mutex::default() }
    }

    /// As of the last look.
    pub(super) fn shown(&self) -> Vec<OtherVersionStatus> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).shown.clone()
    }

    /// To be called about once a second.
    pub(super) async fn look(&self, now: Instant) {
        let count = |s: &ShardHandle| get(&s.metrics.rejects[Reject::OtherVersion as usize]);
        let came: u64 = self.shards.iter().map(count).sum();
        let told = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever was shown is shown until a shard says that it is over.
            let any = came != seen.told || !seen.shown.is_empty();
            if !any || now.since(seen.asked) < ASKED_EVERY {
                return;
            }
            seen.asked = now;
            seen.told
        };
        let mut all = Vec::new();
        for shard in &self.shards {
            let (answer, answered) = oneshot::channel();
            // Of a shard that is busy nothing is shown until it has time for it.
            if shard.send(Command::OtherVersions(answer)).is_ok()
                && let Ok(Ok(versions)) = tokio::time::timeout(ANSWER_MAX, answered).await
            {
                all.extend(versions);
            }
        }
        let shown = merge(all, now, self.clock.wall());
        let tells = came > told && !shown.is_empty() && self.throttle.pass(now).is_some();
        if tells {
            for version in &shown {
                log::warn!("{}", line(version, came - told));
            }
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.shown = shown;
        // What came of hosts that are heard again is nothing to be told.
        if tells || seen.shown.is_empty() {
            seen.told = came;
        }
    }
}

/// What all shards saw, by version.
fn merge(all: Vec<OtherVersion>, now: Instant, wall: Wall) -> Vec<OtherVersionStatus> {
    let mut by_version = BTreeMap::<u8, Vec<OtherVersion>>::new();
    for one in all {
        by_version.entry(one.version).or_default().push(one);
    }
    let merged = |(version, mut of_shards): (u8, Vec<OtherVersion>)| {
        of_shards.sort_by_key(|one| Reverse(one.last));
        let ago = of_shards.first().map_or(Duration::ZERO, |one| now.since(one.last));
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        OtherVersionStatus {
            version,
            hosts: of_shards.iter().map(|one| one.hosts).sum(),
            datagrams: of_shards.iter().map(|one| one.datagrams).sum(),
            last_ms: Wall(wall.0.saturating_sub(ago)),
            named: of_shards.iter().flat_map(|one| &one.named).take(NAMED_MAX).copied().collect(),
        }
    };
    by_version.into_iter().map(merged).collect()
}

/// For the log.
fn line(seen: &OtherVersionStatus, came: u64) -> String {
    let (version, ours) = (seen.version, wire::VERSION);
    let named: Vec<String> = seen.named.iter().map(ToString::to_string).collect();
    let more = if seen.hosts > named.len() as u64 { ", …" } else { "" };
    let upgrade = match version < ours {
        true => "upgrade their agents",
        false => "upgrade this controller, or take their agents back to its release",
    };
    format!(
        "wire: {} host(s) send datagrams of wire format {version}, sealed with their keys, and this controller \
         speaks format {ours}: they count for nothing (of all such formats {came} since this was last told); \
         {upgrade}: {}{more}",
        seen.hosts,
        named.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::id::HostId;

    #[test]
    fn shards_are_summed_up_and_the_line_says_what_to_do() {
        let one = |version, hosts, ms, n: u8| OtherVersion {
            version,
            hosts,
            datagrams: 10 * hosts,
            last: Instant::from_millis(ms),
            named: vec![HostId([n; 16])],
        };
        let now = Instant::from_millis(10_000);
        let all = merge(
            vec![one(1, 5, 9_000, 7), one(3, 1, 4_000, 8), one(1, 2, 9_500, 9)],
            now,
            Wall(50_000),
        );
        let told: Vec<_> =
            all.iter().map(|v| (v.version, v.hosts, v.datagrams, v.last_ms)).collect();
        assert_eq!(told, [(1, 7, 70, Wall(49_500)), (3, 1, 10, Wall(44_000))]);
        assert_eq!(all[0].named, [HostId([9; 16]), HostId([7; 16])]);
        let old = line(&all[0], 12);
        for part in
            ["7 host(s)", "format 1", "format 2", "12 since", "upgrade their agents", "0909", ", …"]
        {
            assert!(old.contains(part), "{part}\n{old}");
        }
        assert!(line(&all[1], 1).contains("upgrade this controller"));
    }
}
