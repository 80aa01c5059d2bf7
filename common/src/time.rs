//! When: instants, wall-clock times, and the only code that reads the operating system's clocks.
//!
//! [`Instant`] is a plain number of nanoseconds, so tests build any moment they like. Everything that
//! decides compares instants; [`Wall`] is for people, journals and signatures, and may step.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment on a monotonic clock, in nanoseconds from an arbitrary origin.
///
/// Arithmetic saturates at both ends: a far deadline is "never", not a panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Later than any real moment.
    pub const FAR: Self = Self(u64::MAX);

    /// The instant `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros.saturating_mul(1_000))
    }

    /// The instant `millis` milliseconds after the origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Whole microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }

    /// Time from `earlier` to `self`; zero if `earlier` is not earlier.
    #[inline]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Nanoseconds of a span; `u64::MAX` for spans of more than 584 years. `Duration::as_nanos` counts in 128
/// bits, which is felt where it is done a million times a second.
#[inline]
pub const fn nanos(d: Duration) -> u64 {
    d.as_secs().saturating_mul(1_000_000_000).saturating_add(d.subsec_nanos() as u64)
}

/// Whole microseconds of a span; `u32::MAX` for spans of more than 71 minutes.
#[inline]
pub const fn micros(d: Duration) -> u32 {
    if d.as_secs() > 4_294 {
        return u32::MAX;
    }
    (d.as_secs() as u32 * 1_000_000).saturating_add(d.subsec_micros())
}

impl Add<Duration> for Instant {
    type Output = Self;
    #[inline]
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(nanos(d)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    #[inline]
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(d)))
    }
}

/// A wall-clock time in milliseconds since 1970-01-01T00:00:00Z. For display, journals and signatures
/// only: it may step at any moment, so nothing that decides about hosts compares it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Wall(pub i64);

impl Wall {
    /// Whole seconds since 1970.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000)
    }
}

impl fmt::Display for Wall {
    /// RFC 3339 in UTC with milliseconds, for example `2026-01-31T12:00:00.250Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// Where time comes from. Shells read it once per step and pass the result on.
pub trait Clock: Send + Sync {
    /// Monotonic time that stands still while the machine is suspended (`CLOCK_MONOTONIC`): after a
    /// suspend no silence has passed that anyone could have filled.
    fn now(&self) -> Instant;

    /// Monotonic time that counts suspends too (`CLOCK_BOOTTIME`): what an agent stamps beats with, so
    /// that a suspend does not look like a clock that slipped.
    fn boottime(&self) -> Instant;

    /// Wall-clock time.
    fn wall(&self) -> Wall {
        Wall(self.wall_ns().div_euclid(1_000_000))
    }

    /// Wall-clock time in nanoseconds since 1970, the scale of the kernel's receive stamps.
    fn wall_ns(&self) -> i64;
}

/// The operating system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

fn read(clock: ClockId) -> Duration {
    // Cannot fail for these clocks on Linux; zero keeps the type honest without a panic path.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::default() + read(ClockId::CLOCK_MONOTONIC)
    }

    fn boottime(&self) -> Instant {
        Instant::default() + read(ClockId::CLOCK_BOOTTIME)
    }

    fn wall_ns(&self) -> i64 {
        i64::try_from(read(ClockId::CLOCK_REALTIME).as_nanos()).unwrap_or(i64::MAX)
    }
}

/// The system's clocks with a wall clock that is off by a settable amount: how tests step the wall
/// clock of a real process without touching the machine's.
#[derive(Debug, Default)]
pub struct SteppedClock {
    offset_ms: AtomicI64,
}

impl SteppedClock {
    /// Makes the wall clock read `offset_ms` milliseconds off the system's from now on.
    pub fn step_to(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

impl Clock for SteppedClock {
    fn now(&self) -> Instant {
        SystemClock.now()
    }

    fn boottime(&self) -> Instant {
        SystemClock.boottime()
    }

    fn wall_ns(&self) -> i64 {
        let offset_ns = self.offset_ms.load(Ordering::Relaxed).saturating_mul(1_000_000);
        SystemClock.wall_ns().saturating_add(offset_ns)
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ns: AtomicU64,
    wall_ms: AtomicI64,
}

impl ManualClock {
    /// A clock that reads `now` and `wall` until moved.
    pub fn new(now: Instant, wall: Wall) -> Self {
        Self { now_ns: AtomicU64::new(now.0), wall_ms: AtomicI64::new(wall.0) }
    }

    /// Moves both clocks forward by `d`.
    pub fn advance(&self, d: Duration) {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
        self.wall_ms.fetch_add(i64::try_from(d.as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Steps the wall clock alone by `ms` milliseconds, either way.
    pub fn step_wall(&self, ms: i64) {
        self.wall_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        Instant(self.now_ns.load(Ordering::Relaxed))
    }

    fn boottime(&self) -> Instant {
        self.now()
    }

    fn wall_ns(&self) -> i64 {
        self.wall_ms.load(Ordering::Relaxed).saturating_mul(1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_saturate_instead_of_wrapping() {
        assert_eq!(Instant(5).since(Instant(9)), Duration::ZERO);
        assert_eq!(Instant::FAR + Duration::from_secs(1), Instant::FAR);
        assert_eq!(Instant(5) - Duration::from_secs(1), Instant(0));
    }

    #[test]
    fn wall_times_are_shown_as_rfc3339() {
        assert_eq!(Wall(1_769_860_800_250).to_string(), "2026-01-31T12:00:00.250Z");
    }

    #[test]
    fn the_system_clock_does_not_run_backwards() {
        let a = SystemClock.now();
        assert!(SystemClock.now() >= a);
        assert!(SystemClock.wall().as_secs() > 1_700_000_000);
    }

    #[test]
    fn stepping_the_wall_clock_leaves_the_monotonic_clock_alone() {
        let clock = ManualClock::new(Instant(7), Wall(1_000));
        clock.step_wall(-3_600_000);
        assert_eq!((clock.now(), clock.wall()), (Instant(7), Wall(1_000 - 3_600_000)));
    }
}
