//! Hosts that came back from a suspicion and are asked to beat faster for a while.
//!
//! A host that was silent without being dead will be so again sooner than others, and its margin has grown
//! with it. Beats at a quarter of the interval tell its next failure from one lost beat that much earlier;
//! what that is worth was measured (`controller/docs/adr/0010-a-budget-of-beats.md`).
//!
//! The table is small and looked at only when an ack goes out; a host that finds no room in it beats like
//! any other. So the beats that it costs are bounded: at most [`WATCHED_MAX`] hosts a shard, and one in
//! [`HOSTS_PER_WATCHED`] of its hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::time::Instant;

/// Most hosts watched by one shard.
pub const WATCHED_MAX: usize = 4_096;
/// Hosts of a shard for each that may be watched; so four times the beats of all that are watched are less
/// than what [`super::AIM`] leaves of the budget.
pub const HOSTS_PER_WATCHED: usize = 32;
/// This many are watched in the smallest fleet.
const WATCHED_MIN: usize = 4;
/// No watched host is asked to beat more often.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How much faster, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watch {
    /// What intervals are divided by; 1 asks nobody.
    pub factor: f64,
    /// After the end of the last suspicion.
    pub span: Duration,
}

impl Watch {
    /// Nobody is asked to beat faster.
    pub const NONE: Self = Self { factor: 1.0, span: Duration::ZERO };

    /// The interval of a watched host whose like have `interval`; zero, which leaves it to the agent,
    /// stays zero.
    pub fn hasten(&self, interval: Duration) -> Duration {
        if interval.is_zero() {
            return interval;
        }
        interval.div_f64(self.factor.max(1.0)).max(INTERVAL_MIN.min(interval))
    }
}

/// The hosts of a shard that are watched, by slot.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    until: BTreeMap<u32, Instant>,
    swept: Option<Instant>,
}

impl Watched {
    /// A suspicion of this host ended; the shard has so many hosts.
    pub fn came_back(&mut self, slot: u32, hosts: usize, watch: &Watch, now: Instant) {
        if watch.factor <= 1.0 {
            return;
        }
        let room = (hosts / HOSTS_PER_WATCHED).clamp(WATCHED_MIN, WATCHED_MAX);
        // Once a second is enough: who finds no room until then is not watched.
        let sweep = self.swept.is_none_or(|at| now.since(at) >= Duration::from_secs(1));
        if self.until.len() >= room && sweep {
            self.swept = Some(now);
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < room || self.until.contains_key(&slot) {
            self.until.insert(slot, now + watch.span);
        }
    }

    /// Whether a host is watched.
    pub fn is_watched(&self, slot: u32, now: Instant) -> bool {
        self.until.get(&slot).is_some_and(|until| *until > now)
    }

    /// Forgets a host.
    pub fn forget(&mut self, slot: u32) {
        self.until.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCH: Watch = Watch { factor: 4.0, span: Duration::from_secs(600) };

    fn s(n: u64) -> Instant {
        Instant::from_millis(n * 1_000)
    }

    #[test]
    fn a_host_that_came_back_is_watched_for_a_while_and_again() {
        let mut w = Watched::default();
        w.came_back(7, 10, &WATCH, s(0));
        assert!(w.is_watched(7, s(599)) && !w.is_watched(7, s(600)) && !w.is_watched(8, s(1)));
        w.came_back(7, 10, &WATCH, s(500));
        assert!(w.is_watched(7, s(1_099)));
        w.forget(7);
        assert!(!w.is_watched(7, s(501)));
        w.came_back(7, 10, &Watch::NONE, s(502));
        assert!(!w.is_watched(7, s(502)));
    }

    #[test]
    fn few_of_a_fleet_are_watched_at_once_and_room_comes_back() {
        let mut w = Watched::default();
        (0..10_000).for_each(|slot| w.came_back(slot, 64_000, &WATCH, s(1)));
        assert_eq!(w.until.len(), 2_000);
        assert!(w.is_watched(1_999, s(2)) && !w.is_watched(2_000, s(2)));
        w.came_back(5_000, 64_000, &WATCH, s(700));
        assert!(w.is_watched(5_000, s(701)) && w.until.len() == 1);
        let mut w = Watched::default();
        (0..100_000).for_each(|slot| w.came_back(slot, 4_000_000, &WATCH, s(1)));
        assert_eq!(w.until.len(), WATCHED_MAX);
        // What they cost stays within what the aim leaves of the budget.
        let extra = (WATCH.factor - 1.0) / HOSTS_PER_WATCHED as f64;
        assert!(super::super::AIM * (1.0 + extra) < 1.0);
    }

    #[test]
    fn a_watched_hosts_interval_is_shorter_but_not_absurd() {
        let ms = Duration::from_millis;
        assert_eq!(WATCH.hasten(ms(2_000)), ms(500));
        assert_eq!(WATCH.hasten(ms(200)), ms(100));
        assert_eq!(WATCH.hasten(ms(50)), ms(50));
        assert_eq!(WATCH.hasten(ms(0)), ms(0));
    }
}
