//! What the machine does to the controller, looked at once a second, outside of any hot path: time that
//! the hypervisor took away (steal), and which addresses are the machine's own; and who speaks another
//! version of the wire.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::time::{Clock, Instant};

use super::others::Others;
use crate::detector::doubt::DoubtReason;
use crate::metrics::DoubtMetrics;
use crate::policy::driver::DriverStatus;
use crate::shard::worker::{Command, ShardHandle};

const EVERY: Duration = Duration::from_secs(1);
/// Looks between two at the addresses.
const ADDRESSES_EVERY: u32 = 10;
/// Share of processor time that must be stolen in a second to be told, of 1,000.
const STEAL_MIN: u64 = 100;
/// How long it is told after it has ended.
const SHOWN_FOR: Duration = Duration::from_secs(5);

/// The doubts that are the whole controller's.
pub(super) struct Surroundings {
    /// Who speaks another version of the wire.
    pub(super) others: Arc<Others>,
    /// Where they are shown.
    pub(super) doubts: Arc<DoubtMetrics>,
    /// Who must know which addresses are local.
    pub(super) shards: Vec<ShardHandle>,
    /// Whether the store can be written.
    pub(super) driver: Arc<DriverStatus>,
    /// When the controller started, and how long it takes then until each known host has been judged.
    pub(super) started: Instant,
    /// See above.
    pub(super) chance: Duration,
    /// Where time comes from.
    pub(super) clock: Arc<dyn Clock>,
}

impl Surroundings {
    /// Looks once a second until aborted.
    pub(super) async fn watch(self) {
        let mut tick = tokio::time::interval(EVERY);
        let mut ticks: Option<Ticks> = None;
        let (mut stolen, mut store): (Option<(Instant, Instant)>, Option<Instant>) = (None, None);
        let mut known: Option<Vec<IpAddr>> = None;
        for look in 0u32.. {
            tick.tick().await;
            let now = self.clock.now();
            let present = std::fs::read_to_string("/proc/stat").ok().and_then(|t| Ticks::parse(&t));
            if let (Some(before), Some(present)) = (ticks, present)
                && present.stolen_since(before) >= STEAL_MIN
            {
                let since = stolen.map_or(now, |(since, _)| since);
                stolen = Some((since, now + SHOWN_FOR));
            }
            ticks = present;
            stolen = stolen.filter(|(_, until)| now < *until);
            store = self.driver.store_error().map(|_| store.unwrap_or(now));
            let restarted = now.since(self.started) < self.chance;
            self.doubts.set(DoubtReason::Steal, stolen.map(|(since, _)| since), now);
            self.doubts.set(DoubtReason::Store, store, now);
            self.doubts.set(DoubtReason::Restarted, restarted.then_some(self.started), now);
            self.others.look(now).await;
            if look.is_multiple_of(ADDRESSES_EVERY) {
                let own = own_addresses();
                if known.as_ref() != Some(&own) && self.tell(&own) {
                    known = Some(own);
                }
            }
        }
    }

    /// Whether every shard was told.
    fn tell(&self, own: &[IpAddr]) -> bool {
        let untold = |s: &&ShardHandle| s.send(Command::Local(own.to_vec())).is_err();
        self.shards.iter().filter(untold).count() == 0
    }
}

/// Addresses of this machine; empty if the system does not say.
fn own_addresses() -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = match nix::ifaddrs::getifaddrs() {
        Ok(all) => all
            .filter_map(|i| i.address)
            .filter_map(|a| {
                let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .collect(),
        Err(_) => Vec::new(),
    };
    own.sort_unstable();
    own.dedup();
    own
}

/// Processor time of all cores since the machine's start, in ticks of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    total: u64,
    stolen: u64,
}

impl Ticks {
    /// From `/proc/stat`: `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; the
    /// last two are counted in the first two already.
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let ticks: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { total: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// Share stolen since `before`, of 1,000.
    fn stolen_since(self, before: Self) -> u64 {
        let total = self.total.saturating_sub(before.total).max(1);
        self.stolen.saturating_sub(before.stolen) * 1_000 / total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_read_from_the_first_line() {
        let before = Ticks::parse("cpu  10 0 10 80 0 0 0 0 5 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!(before, Ticks { total: 100, stolen: 0 });
        let after = Ticks::parse("cpu  40 0 10 80 0 0 0 70 5 0").unwrap();
        assert_eq!(after.stolen_since(before), 700);
        assert_eq!(Ticks::parse("intr 5"), None);
        assert_eq!(before.stolen_since(before), 0);
    }

    #[test]
    fn loopback_is_among_the_own_addresses() {
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
