//! When the next beat is due.
//!
//! Beats stand on a grid of points one interval apart, and each is moved off its point by its own
//! uniform draw from `±interval · jitter / 2`. So a gap between two beats lies within `interval ·
//! (1 ± jitter)`, and neither draws nor late timers add up: the grid does not move. (Drawing every
//! *gap* anew would be a random walk, and a fleet's beats would bunch and spread at will.)
//!
//! A beat sent late keeps the grid, so the next gap is that much shorter. When less than half the
//! shortest gap would be left, grid points are skipped: after a stall one beat goes out, never a
//! burst.
//!
//! Planned instants are whole microseconds, as on the wire, so `sent + gap` of one beat is exactly
//! the planned instant of the next. That promise also outranks a new interval, which takes effect
//! with the next beat; the grid then starts anew there.

use std::time::Duration;

use heartwatch_common::time::Instant;
use heartwatch_common::wire::GAP_MAX;
use rand::{Rng, RngExt};

/// No first beat waits longer than this, however long the interval.
pub const PHASE_MAX: Duration = Duration::from_secs(5);
/// Largest share of the interval that jitter may take.
pub const JITTER_MAX: f64 = 0.5;
/// No interval is shorter, whatever is configured or assigned.
pub const INTERVAL_FLOOR: Duration = Duration::from_millis(10);
/// No interval is longer: with jitter and one skipped beat its gap still fits [`GAP_MAX`].
pub const INTERVAL_CEILING: Duration = Duration::from_secs(GAP_MAX.as_secs() / 2);

/// How often this host beats when nobody says otherwise, and how far it may be told to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Time between beats without an assignment.
    pub interval: Duration,
    /// Share of the interval by which a gap may differ from it, 0 to [`JITTER_MAX`].
    pub jitter: f64,
    /// An assigned interval is never taken to be shorter.
    pub interval_min: Duration,
    /// An assigned interval is never taken to be longer.
    pub interval_max: Duration,
}

impl Pace {
    /// `interval` brought into the local bounds and those of the wire.
    pub fn bounded(&self, interval: Duration) -> Duration {
        interval
            .min(self.interval_max)
            .max(self.interval_min)
            .clamp(INTERVAL_FLOOR, INTERVAL_CEILING)
    }

    fn jitter(&self) -> f64 {
        if self.jitter.is_nan() { 0.0 } else { self.jitter.clamp(0.0, JITTER_MAX) }
    }
}

/// What a beat that is sent now says about its own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    /// How late it is, milliseconds, at most 65,535.
    pub late_ms: u16,
    /// Time until the next planned beat: 1 µs to [`GAP_MAX`].
    pub gap: Duration,
}

/// The instants at which beats are due. See the module's doc.
#[derive(Clone, Debug)]
pub struct Schedule {
    pace: Pace,
    /// In force from the next beat on; within bounds.
    interval: Duration,
    /// The interval by which `grid` was laid out.
    grid_interval: Duration,
    /// The grid point of the planned beat.
    grid: Instant,
    /// When the next beat is due: `grid` and its jitter, whole microseconds.
    next: Instant,
}

fn nanos(d: Duration) -> i128 {
    i128::try_from(d.as_nanos()).unwrap_or(i128::MAX)
}

/// The instant `ns` nanoseconds after the origin, to the microsecond below, saturating at both
/// ends.
fn instant(ns: i128) -> Instant {
    let ns = u64::try_from(ns.max(0)).unwrap_or(u64::MAX);
    Instant(ns / 1_000 * 1_000)
}

impl Schedule {
    /// A schedule whose first beat is due after a uniform draw from zero to the interval, at most
    /// [`PHASE_MAX`]: agents that start together do not beat together.
    pub fn new<R: Rng + ?Sized>(pace: Pace, now: Instant, rng: &mut R) -> Self {
        let interval = pace.bounded(pace.interval);
        let phase = nanos(interval.min(PHASE_MAX)) as f64 * rng.random::<f64>();
        let next = instant(i128::from(now.0) + phase as i128);
        Self { pace, interval, grid_interval: interval, grid: next, next }
    }

    /// When the next beat is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// The interval in force from the next beat on.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// The pace that this schedule was given.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Takes an interval that a controller assigned, within the local bounds, or goes back to the
    /// default. The planned beat stays where it was announced.
    pub fn assign(&mut self, interval: Option<Duration>) {
        self.interval = self.pace.bounded(interval.unwrap_or(self.pace.interval));
    }

    /// Takes a new pace and drops any assignment; the planned beat stays where it was announced.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
        self.assign(None);
    }

    /// Time from `now` to the planned beat as the wire tells it: 1 µs to [`GAP_MAX`].
    pub fn gap(&self, now: Instant) -> Duration {
        let us = self.next.as_micros().saturating_sub(now.as_micros());
        Duration::from_micros(us).clamp(Duration::from_micros(1), GAP_MAX)
    }

    /// If a beat is due, plans the next one and tells what the present one must say.
    pub fn fire<R: Rng + ?Sized>(&mut self, now: Instant, rng: &mut R) -> Option<Fired> {
        if now < self.next {
            return None;
        }
        let late = now.since(self.next);
        if self.grid_interval != self.interval {
            self.grid = self.next;
            self.grid_interval = self.interval;
        }
        let interval = nanos(self.interval);
        let jitter = self.pace.jitter();
        let offset = (interval as f64 * jitter * (rng.random::<f64>() - 0.5)) as i128;
        let least = (interval as f64 * (1.0 - jitter) / 2.0) as i128;
        let planned = i128::from(self.grid.0) + interval + offset;
        let short = i128::from(now.0) + least - planned;
        // Rounded up, so that at least `least` remains.
        let skipped = if short > 0 { (short + interval - 1) / interval } else { 0 };
        let planned = planned + skipped * interval;
        self.grid = instant(planned - offset);
        self.next = instant(planned);
        let late_ms = u16::try_from(late.as_millis()).unwrap_or(u16::MAX);
        Some(Fired { late_ms, gap: self.gap(now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const START: Instant = Instant::from_millis(1_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn pace(interval: Duration, jitter: f64) -> Pace {
        Pace {
            interval,
            jitter,
            interval_min: Duration::from_millis(100),
            interval_max: Duration::from_secs(60),
        }
    }

    fn schedule(jitter: f64, seed: u64) -> (Schedule, StdRng) {
        let mut rng = StdRng::seed_from_u64(seed);
        (Schedule::new(pace(SECOND, jitter), START, &mut rng), rng)
    }

    #[test]
    fn first_phases_spread_over_the_interval_but_not_beyond_five_seconds() {
        for (interval, limit) in [(SECOND, 1.0), (Duration::from_secs(60), 5.0)] {
            let mut quarters = [0u32; 4];
            for seed in 0..4_000 {
                let mut rng = StdRng::seed_from_u64(seed);
                let first = Schedule::new(pace(interval, 0.2), START, &mut rng).next();
                let share = first.since(START).as_secs_f64() / limit;
                assert!((0.0..=1.0).contains(&share), "{share}");
                quarters[(share * 4.0).min(3.0) as usize] += 1;
            }
            assert!(quarters.iter().all(|q| (850..1_150).contains(q)), "{quarters:?}");
        }
    }

    #[test]
    fn gaps_spread_within_the_jitter_and_do_not_drift() {
        let (mut s, mut rng) = schedule(0.2, 7);
        let first = s.next();
        let (mut sum, mut squares, mut least, mut most) = (0.0, 0.0, f64::MAX, 0.0f64);
        let n = 20_000;
        for _ in 0..n {
            let now = s.next();
            let gap = s.fire(now, &mut rng).unwrap().gap.as_secs_f64();
            (sum, squares) = (sum + gap, squares + gap * gap);
            (least, most) = (least.min(gap), most.max(gap));
        }
        let mean = sum / f64::from(n);
        let deviation = (squares / f64::from(n) - mean * mean).sqrt();
        assert!((0.8..0.83).contains(&least) && (1.17..1.2001).contains(&most), "{least} {most}");
        // The difference of two uniform draws of width 0.2 has the deviation 0.2 / √6 ≈ 0.0816.
        assert!((0.079..0.085).contains(&deviation), "{deviation}");
        // No drift: after 20,000 beats the schedule is still within one draw of its grid.
        let off = s.next().since(first).as_secs_f64() - f64::from(n);
        assert!(off.abs() <= 0.1 + 1e-3, "{off}");
    }

    #[test]
    fn without_jitter_every_gap_is_the_interval() {
        let (mut s, mut rng) = schedule(0.0, 1);
        for _ in 0..100 {
            let now = s.next();
            assert_eq!(s.fire(now, &mut rng), Some(Fired { late_ms: 0, gap: SECOND }));
        }
    }

    #[test]
    fn lateness_is_told_and_not_added_up() {
        let (mut s, mut rng) = schedule(0.0, 1);
        let first = s.next();
        for beat in 0..1_000u32 {
            let now = s.next() + Duration::from_millis(37);
            assert_eq!(s.next(), first + SECOND * beat);
            assert_eq!(
                s.fire(now, &mut rng),
                Some(Fired { late_ms: 37, gap: Duration::from_millis(963) })
            );
        }
    }

    #[test]
    fn after_a_stall_one_beat_goes_out_and_not_a_burst() {
        let (mut s, mut rng) = schedule(0.2, 3);
        let now = s.next();
        s.fire(now, &mut rng).unwrap();
        let after = s.next() + Duration::from_secs(90);
        let fired = s.fire(after, &mut rng).unwrap();
        assert_eq!(fired.late_ms, u16::MAX);
        assert!(fired.gap >= SECOND.mul_f64(0.4) && fired.gap <= SECOND.mul_f64(1.6), "{fired:?}");
        assert_eq!(s.fire(after, &mut rng), None);
        assert_eq!(s.fire(after + fired.gap - Duration::from_micros(1), &mut rng), None);
        assert!(s.fire(after + fired.gap, &mut rng).is_some());
    }

    #[test]
    fn an_assigned_interval_is_bounded_and_starts_with_the_next_beat() {
        let (mut s, mut rng) = schedule(0.0, 1);
        let now = s.next();
        s.fire(now, &mut rng).unwrap();
        let promised = s.next();
        s.assign(Some(Duration::from_secs(5)));
        assert_eq!(s.next(), promised, "the gap was announced and is kept");
        assert_eq!(s.fire(promised, &mut rng).unwrap().gap, Duration::from_secs(5));
        s.assign(Some(Duration::from_secs(9_999)));
        assert_eq!(s.interval(), Duration::from_secs(60));
        s.assign(Some(Duration::from_nanos(1)));
        assert_eq!(s.interval(), Duration::from_millis(100));
        s.assign(None);
        assert_eq!(s.interval(), SECOND);
    }

    #[test]
    fn senseless_bounds_and_far_times_do_not_panic() {
        let mut rng = StdRng::seed_from_u64(1);
        let odd = Pace {
            interval: Duration::ZERO,
            jitter: f64::NAN,
            interval_min: Duration::MAX,
            interval_max: Duration::ZERO,
        };
        for now in [Instant(0), Instant(u64::MAX - 5), Instant::FAR] {
            let mut s = Schedule::new(odd, now, &mut rng);
            for _ in 0..3 {
                s.fire(Instant::FAR, &mut rng);
                assert!(s.gap(now) <= GAP_MAX);
            }
        }
    }

    proptest! {
        #[test]
        fn the_announced_gap_always_ends_at_the_planned_instant(
            seed: u64,
            jitter in 0.0..0.5f64,
            steps in proptest::collection::vec((0..3_000_000_000u64, 0..5u8), 1..60),
        ) {
            let (mut s, mut rng) = schedule(jitter, seed);
            for (late, what) in steps {
                let now = Instant(s.next().0 + if what == 0 { late } else { late / 1_000 });
                let fired = s.fire(now, &mut rng).unwrap();
                let told = now.as_micros() + fired.gap.as_micros() as u64;
                prop_assert_eq!(told, s.next().as_micros());
                let interval = s.interval().as_secs_f64();
                let gap = fired.gap.as_secs_f64();
                prop_assert!(gap >= interval * (1.0 - jitter) / 2.0 - 1e-5, "{} {}", gap, interval);
                prop_assert!(gap <= interval * 2.0 + 1e-5, "{} {}", gap, interval);
                if what == 1 {
                    s.assign(Some(Duration::from_nanos(late)));
                }
            }
        }
    }
}
