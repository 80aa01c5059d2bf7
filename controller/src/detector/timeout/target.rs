//! Reaching a wished rate of mistakes by a closed loop.
//!
//! What a false suspicion costs (C) is hard to say; how many an operator will bear is easy. The posterior
//! of [`super`] alone would promise too few (the margin with the luckiest history is chosen, and hosts
//! change), so the promise is not computed but kept: every [`LOOK_EVERY`], C moves by the mistakes that
//! were seen against those that were allowed,
//!
//! ```text
//! C ← C · clamp((seen + 1) / (allowed + 1), 0.8, 1.25)
//! ```
//!
//! A mistake labels itself: the host that was suspected comes back in the same life. Source: the
//! project's detector study; an integral controller on the margin as in SFD (Xiong et al., IPDPS 2012).

use std::time::Duration;

use heartwatch_common::time::Instant;

/// Time between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(300);
/// C stays within these bounds, seconds.
pub const COST_S: (f32, f32) = (100.0, 1e8);

/// The loop.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Mistakes per host-day that are allowed.
    per_host_day: f64,
    seen: u64,
    since: Instant,
    /// Integral of the hosts watched over the time since the last look, host-seconds.
    watched_s: f64,
    counted: Instant,
}

impl Target {
    /// A loop that has seen nothing yet.
    pub fn new(per_host_day: f64, now: Instant) -> Self {
        Self { per_host_day, seen: 0, since: now, watched_s: 0.0, counted: now }
    }

    /// Mistakes per host-day that are allowed.
    pub fn per_host_day(&self) -> f64 {
        self.per_host_day
    }

    /// A suspicion proved wrong.
    pub fn mistake(&mut self) {
        self.seen += 1;
    }

    /// Says that `hosts` are being watched, and answers the cost to go on with.
    pub fn look(&mut self, cost_s: f32, hosts: u64, now: Instant) -> f32 {
        self.watched_s += hosts as f64 * now.since(self.counted).as_secs_f64();
        self.counted = self.counted.max(now);
        if now.since(self.since) < LOOK_EVERY {
            return cost_s;
        }
        let allowed = self.per_host_day * self.watched_s / 86_400.0;
        let ratio = ((self.seen as f64 + 1.0) / (allowed + 1.0)).clamp(0.8, 1.25);
        (self.seen, self.watched_s, self.since) = (0, 0.0, now);
        (cost_s * ratio as f32).clamp(COST_S.0, COST_S.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(n: u64) -> Instant {
        Instant::from_millis(n * 60_000)
    }

    #[test]
    fn the_cost_moves_with_what_was_seen_against_what_is_allowed() {
        // 2,880 hosts for five minutes are ten host-days: one mistake is allowed at 0.1 a host-day.
        let mut target = Target::new(0.1, minutes(0));
        assert_eq!(target.look(1_000.0, 2_880, minutes(4)), 1_000.0, "too early");
        assert_eq!(target.look(1_000.0, 2_880, minutes(5)), 800.0, "1/2, but no less than 0.8");
        target.mistake();
        assert_eq!(target.look(1_000.0, 2_880, minutes(10)), 1_000.0, "as many as allowed");
        (0..9).for_each(|_| target.mistake());
        assert_eq!(
            target.look(1_000.0, 2_880, minutes(15)),
            1_250.0,
            "10/2, but no more than 1.25"
        );
    }

    #[test]
    fn a_small_fleet_moves_slowly_and_the_cost_stays_within_bounds() {
        let mut target = Target::new(0.1, minutes(0));
        let after = target.look(1_000.0, 3, minutes(5));
        assert!((998.0..1_000.0).contains(&after), "{after}");
        assert_eq!(target.look(10.0, 3, minutes(10)), COST_S.0);
    }

    /// Against a fleet whose mistakes fall with C as one over it, the loop finds the C that is wished.
    #[test]
    fn it_settles_where_the_wish_is_met() {
        let mut target = Target::new(1.0, minutes(0));
        let (hosts, mut cost) = (10_000u64, 1e6f32);
        let mut carry = 0.0;
        for look in 1..=400u64 {
            // One mistake per host-day at C = 30,000 s.
            carry += hosts as f64 * 300.0 / 86_400.0 * 30_000.0 / f64::from(cost);
            while carry >= 1.0 {
                target.mistake();
                carry -= 1.0;
            }
            cost = target.look(cost, hosts, minutes(5 * look));
        }
        assert!((27_000.0..33_000.0).contains(&cost), "{cost}");
    }
}
