//! What was promised away lately: who is named first for one failure counts as busier for the next. Pure.
//!
//! Its beats show the work that a host took over only when that runs, and many hosts may fail before. So each
//! order that goes out adds `placement.reserve_load` to the rank of the host that it names first, and that
//! halves every `placement.reserve_half_life`. Nothing is taken back when an order is refused or its host
//! returns: the receiver may have acted, and time heals it.
//!
//! It changes who is named first, never who may be named: where all have been promised away, the least
//! promised is still better than nobody.
//!
//! At most [`RESERVED_MAX`] hosts are remembered, some 100 bytes each; beyond that the one named longest ago
//! is forgotten. Over a restart the newest [`SAVED_MAX`] are kept, as one small value in the store, written
//! at most every [`SAVE_EVERY`]: a crash forgets what was promised in the last moments before it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use serde::{Deserialize, Serialize};

/// Most hosts that are remembered.
pub const RESERVED_MAX: usize = 16_384;
/// Most that are kept over a restart.
pub const SAVED_MAX: usize = 1_000;
/// How often they are written at most.
pub const SAVE_EVERY: Duration = Duration::from_secs(2);
/// After so many half-lives less than a point is left of the most that a host can have.
const FORGET_AFTER: u32 = 24;
/// Most points of one host: a thousand hosts' whole load.
const POINTS_MAX: f64 = 1e6;

/// What was promised away of each host.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservations {
    points: u16,
    half_life: Duration,
    by_host: BTreeMap<HostId, Promise>,
    by_age: BTreeSet<(Instant, HostId)>,
    unsaved: bool,
    saved_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Promise {
    /// Points as of then.
    points: f64,
    at: Instant,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    host: HostId,
    points: f64,
    at_ms: Wall,
}

impl Reservations {
    /// Nothing is promised; each promise will count so many points of load, 0 to 1000, and halve in this
    /// time.
    pub fn new(points: u16, half_life: Duration) -> Self {
        Self {
            points,
            half_life: half_life.max(Duration::from_millis(1)),
            by_host: BTreeMap::new(),
            by_age: BTreeSet::new(),
            unsaved: false,
            saved_at: None,
        }
    }

    /// Points of a host as of now.
    pub fn of(&self, host: HostId, now: Instant) -> u16 {
        // `as` saturates.
        self.exact(host, now).round() as u16
    }

    fn exact(&self, host: HostId, now: Instant) -> f64 {
        let Some(promise) = self.by_host.get(&host) else { return 0.0 };
        let age = now.since(promise.at).as_secs_f64() / self.half_life.as_secs_f64();
        promise.points * (-age).exp2()
    }

    /// A host was named first.
    pub fn reserve(&mut self, host: HostId, now: Instant) {
        if self.points == 0 {
            return;
        }
        let points = (self.exact(host, now) + f64::from(self.points)).min(POINTS_MAX);
        self.put(host, Promise { points, at: now });
        while let Some((at, oldest)) = self.by_age.first().copied() {
            let forgotten = now.since(at) > self.half_life * FORGET_AFTER;
            if !forgotten && self.by_host.len() <= RESERVED_MAX {
                break;
            }
            self.by_age.remove(&(at, oldest));
            self.by_host.remove(&oldest);
        }
        self.unsaved = true;
    }

    fn put(&mut self, host: HostId, promise: Promise) {
        if let Some(old) = self.by_host.insert(host, promise) {
            self.by_age.remove(&(old.at, host));
        }
        self.by_age.insert((promise.at, host));
    }

    /// What is to be kept for the next start, if it has changed, and not too often.
    pub fn save(&mut self, now: Instant, wall: Wall) -> Option<String> {
        let soon = self.saved_at.is_some_and(|at| now.since(at) < SAVE_EVERY);
        if !self.unsaved || soon {
            return None;
        }
        (self.unsaved, self.saved_at) = (false, Some(now));
        let newest = self.by_age.iter().rev().take(SAVED_MAX);
        let saved: Vec<Saved> = newest
            .filter_map(|(at, host)| {
                let ago = i64::try_from(now.since(*at).as_millis()).unwrap_or(i64::MAX);
                let points = self.by_host.get(host)?.points;
                Some(Saved { host: *host, points, at_ms: Wall(wall.0.saturating_sub(ago)) })
            })
            .collect();
        serde_json::to_string(&saved).ok()
    }

    /// Takes up what was kept. `Err`: it can't be read, and nothing is taken for promised.
    pub fn resume(&mut self, saved: &str, now: Instant, wall: Wall) -> Result<(), String> {
        let saved: Vec<Saved> = serde_json::from_str(saved).map_err(|e| e.to_string())?;
        for one in saved.into_iter().take(SAVED_MAX) {
            if !(0.0..=POINTS_MAX).contains(&one.points) {
                return Err(format!("{} points of {} cannot be", one.points, one.host));
            }
            // A clock that was set back meanwhile makes it as new as can be.
            let ago = u64::try_from(wall.0.saturating_sub(one.at_ms.0)).unwrap_or(0);
            let ago = Duration::from_millis(ago);
            let age = ago.as_secs_f64() / self.half_life.as_secs_f64();
            // By now, so that the machine may have been up for less time than that.
            let points = one.points * (-age).exp2();
            if points >= 1.0 {
                self.put(one.host, Promise { points, at: now });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Duration = Duration::from_secs(300);

    fn host(n: u16) -> HostId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        HostId(id)
    }

    fn at(s: u64) -> Instant {
        Instant(s * 1_000_000_000)
    }

    #[test]
    fn promises_add_up_and_halve() {
        let mut r = Reservations::new(100, HALF);
        r.reserve(host(1), at(1_000));
        assert_eq!((r.of(host(1), at(1_000)), r.of(host(2), at(1_000))), (100, 0));
        assert_eq!(r.of(host(1), at(1_300)), 50);
        r.reserve(host(1), at(1_300));
        assert_eq!((r.of(host(1), at(1_300)), r.of(host(1), at(1_900))), (150, 38));
        // A question of the past is no panic.
        assert_eq!(r.of(host(1), at(5)), 150);
    }

    #[test]
    fn nothing_is_promised_if_a_promise_counts_nothing() {
        let mut r = Reservations::new(0, HALF);
        r.reserve(host(1), at(1));
        assert_eq!((r.of(host(1), at(1)), r.save(at(9), Wall(9))), (0, None));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_is_forgotten() {
        let mut r = Reservations::new(100, HALF);
        for n in 0..u16::MAX {
            r.reserve(host(n), at(1_000 + u64::from(n) / 1_000));
        }
        assert_eq!((r.by_host.len(), r.by_age.len()), (RESERVED_MAX, RESERVED_MAX));
        assert_eq!(r.of(host(0), at(1_065)), 0);
        assert!(r.of(host(u16::MAX - 1), at(1_065)) >= 99);
        r.reserve(host(1), at(1_000_000));
        assert_eq!(r.by_host.len(), 1);
    }

    #[test]
    fn a_restart_forgets_neither_what_was_promised_nor_the_time_since() {
        let mut r = Reservations::new(100, HALF);
        r.reserve(host(1), at(1_000));
        r.reserve(host(2), at(1_300));
        let text = r.save(at(1_300), Wall(5_000_000)).expect("it has changed");
        assert_eq!(r.save(at(1_301), Wall(5_001_000)), None);
        r.reserve(host(3), at(1_301));
        assert_eq!(r.save(at(1_301), Wall(5_001_000)), None, "not again so soon");
        assert!(r.save(at(1_303), Wall(5_003_000)).is_some());
        // The machine was booted meanwhile: its monotonic clock is young.
        let mut again = Reservations::new(100, HALF);
        again.resume(&text, at(7), Wall(5_300_000)).expect("it can be read");
        assert_eq!((again.of(host(1), at(7)), again.of(host(2), at(7))), (25, 50));
        assert!(again.resume("{", at(7), Wall(0)).is_err());
    }
}
