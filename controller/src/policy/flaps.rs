//! Who comes and goes: flap damping after RFC 2439 (section 4.2). Pure.
//!
//! Each fall of a host adds to its *penalty*, which halves in every `half_life`. From `suppress` on it
//! *flaps*, until the penalty has sunk below `reuse`. The penalty has a ceiling from which it sinks to
//! `reuse` in `suppress_max`, so nobody flaps for longer than that after the last fall.
//!
//! Kept is only who has a penalty worth it (half of `reuse`, as the RFC has it): some 80 bytes each, at most
//! [`FLAPS_MAX`]; of more, those that come later are not damped until others have calmed down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;

use crate::config::FlapConfig;

/// Most hosts with a penalty.
pub const FLAPS_MAX: usize = 100_000;
/// What a fall to `down` costs.
pub(super) const DOWN_PENALTY: f64 = 1_000.0;
/// What a mere suspicion costs.
pub(super) const SUSPECT_PENALTY: f64 = 250.0;

#[derive(Clone, Copy, Debug)]
struct Flap {
    penalty: f64,
    at: Instant,
    flapping: bool,
    /// Its present outage was not told to anybody.
    quiet: bool,
    /// How it stands in `wakes`.
    wake: Instant,
}

/// All who come and go.
#[derive(Clone, Debug)]
pub(super) struct Flaps {
    config: FlapConfig,
    hosts: BTreeMap<HostId, Flap>,
    /// When penalties have sunk far enough.
    wakes: BTreeSet<(Instant, HostId)>,
    flapping: usize,
}

/// What a penalty has become after a time.
fn sunk(penalty: f64, after: Duration, half_life: Duration) -> f64 {
    penalty * (-(after.as_secs_f64() / half_life.as_secs_f64())).exp2()
}

/// How long a penalty takes to sink to a limit.
fn sinks_to(penalty: f64, limit: f64, half_life: Duration) -> Duration {
    let halvings = (penalty / limit).log2().max(0.0);
    // A moment more, so that rounding does not leave it a hair above.
    half_life.mul_f64(halvings) + Duration::from_millis(1)
}

impl Flaps {
    pub(super) fn new(config: FlapConfig) -> Self {
        Self { config, hosts: BTreeMap::new(), wakes: BTreeSet::new(), flapping: 0 }
    }

    /// Highest penalty.
    fn ceiling(&self) -> f64 {
        let halvings = self.config.suppress_max.as_secs_f64() / self.config.half_life.as_secs_f64();
        let ceiling = f64::from(self.config.reuse) * halvings.min(60.0).exp2();
        ceiling.max(f64::from(self.config.suppress))
    }

    /// A host fell. `true`: it flaps from now on.
    pub(super) fn fell(&mut self, host: HostId, penalty: f64, now: Instant) -> bool {
        if self.config.suppress == 0
            || (!self.hosts.contains_key(&host) && self.hosts.len() >= FLAPS_MAX)
        {
            return false;
        }
        let (half_life, ceiling) = (self.config.half_life, self.ceiling());
        let new = Flap { penalty: 0.0, at: now, flapping: false, quiet: false, wake: now };
        let flap = self.hosts.entry(host).or_insert(new);
        let left = sunk(flap.penalty, now.since(flap.at), half_life);
        (flap.penalty, flap.at) = ((left + penalty).min(ceiling), now);
        let begins = !flap.flapping && flap.penalty >= f64::from(self.config.suppress);
        flap.flapping |= begins;
        self.flapping += usize::from(begins);
        self.file(host);
        begins
    }

    fn file(&mut self, host: HostId) {
        let Some(flap) = self.hosts.get_mut(&host) else { return };
        self.wakes.remove(&(flap.wake, host));
        let reuse = f64::from(self.config.reuse);
        let limit = if flap.flapping { reuse } else { reuse / 2.0 };
        flap.wake = flap.at + sinks_to(flap.penalty, limit, self.config.half_life);
        self.wakes.insert((flap.wake, host));
    }

    /// A host that no longer flaps by now, if there is one more; whoever else has calmed down is forgotten.
    pub(super) fn steady(&mut self, now: Instant) -> Option<HostId> {
        while let Some((at, host)) = self.wakes.first().copied().filter(|(at, _)| *at <= now) {
            self.wakes.remove(&(at, host));
            let Some(flap) = self.hosts.get_mut(&host) else { continue };
            if flap.flapping {
                flap.flapping = false;
                self.flapping -= 1;
                self.file(host);
                return Some(host);
            }
            self.hosts.remove(&host);
        }
        None
    }

    /// Its removal from the registry ends it too.
    pub(super) fn forget(&mut self, host: HostId) {
        if let Some(flap) = self.hosts.remove(&host) {
            self.wakes.remove(&(flap.wake, host));
            self.flapping -= usize::from(flap.flapping);
        }
    }

    pub(super) fn is_flapping(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_some_and(|f| f.flapping)
    }

    /// Its penalty as of now.
    pub(super) fn penalty(&self, host: HostId, now: Instant) -> f64 {
        let half_life = self.config.half_life;
        self.hosts.get(&host).map_or(0.0, |f| sunk(f.penalty, now.since(f.at), half_life))
    }

    /// Notes whether its present outage was told to nobody; answers whether it was so before.
    pub(super) fn set_quiet(&mut self, host: HostId, quiet: bool) -> bool {
        let Some(flap) = self.hosts.get_mut(&host) else { return false };
        std::mem::replace(&mut flap.quiet, quiet)
    }

    /// How many flap.
    pub(super) fn len(&self) -> usize {
        self.flapping
    }

    /// The first of those that flap, with their penalties, at most `most`.
    pub(super) fn list(&self, now: Instant, most: usize) -> Vec<(HostId, f64)> {
        let flapping = self.hosts.iter().filter(|(_, f)| f.flapping).take(most);
        flapping.map(|(host, _)| (*host, self.penalty(*host, now))).collect()
    }

    /// Takes over one that flapped before a restart.
    pub(super) fn restore(&mut self, host: HostId, penalty: f64, now: Instant) {
        if self.config.suppress == 0 || self.hosts.len() >= FLAPS_MAX || !penalty.is_finite() {
            return;
        }
        let penalty = penalty.clamp(f64::from(self.config.reuse), self.ceiling());
        self.forget(host);
        let flap = Flap { penalty, at: now, flapping: true, quiet: false, wake: now };
        self.hosts.insert(host, flap);
        self.flapping += 1;
        self.file(host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GuardConfig;

    const MINUTE: Duration = Duration::from_secs(60);

    fn flaps() -> Flaps {
        Flaps::new(GuardConfig::default().flaps)
    }

    fn host(n: u8) -> HostId {
        HostId([n; 16])
    }

    #[test]
    fn a_penalty_halves_in_a_half_life() {
        assert_eq!(sunk(3_000.0, MINUTE * 15, MINUTE * 15), 1_500.0);
        let span = sinks_to(3_000.0, 750.0, MINUTE * 15);
        assert!(span >= MINUTE * 30 && span < MINUTE * 31);
    }

    #[test]
    fn three_outages_in_a_row_are_flapping_and_three_in_a_day_are_not() {
        let mut f = flaps();
        let mut now = Instant::from_millis(1_000_000);
        let fall = |f: &mut Flaps, now| {
            f.fell(host(1), SUSPECT_PENALTY, now) | f.fell(host(1), DOWN_PENALTY, now)
        };
        assert!(!fall(&mut f, now));
        now = now + MINUTE;
        assert!(!fall(&mut f, now));
        now = now + MINUTE;
        assert!(fall(&mut f, now), "3750 points, less what has sunk");
        assert!(!fall(&mut f, now), "said once");
        let mut f = flaps();
        for _ in 0..3 {
            now = now + MINUTE * 480;
            assert!(f.steady(now).is_none());
            assert!(!fall(&mut f, now));
        }
    }

    #[test]
    fn it_ends_by_itself_and_leaves_nothing_behind() {
        let mut f = flaps();
        let mut now = Instant::from_millis(1_000_000);
        for _ in 0..100 {
            f.fell(host(1), DOWN_PENALTY, now);
        }
        assert!(f.is_flapping(host(1)) && f.len() == 1);
        assert!(f.steady(now + MINUTE * 59).is_none());
        now = now + MINUTE * 61;
        assert_eq!((f.steady(now), f.steady(now)), (Some(host(1)), None));
        assert!(!f.is_flapping(host(1)) && f.len() == 0);
        assert!(f.steady(now + MINUTE * 16).is_none());
        assert!(f.hosts.is_empty() && f.wakes.is_empty());
    }

    #[test]
    fn what_was_flapping_before_a_restart_still_is() {
        let (mut f, now) = (flaps(), Instant::from_millis(5));
        f.restore(host(3), 2_000.0, now);
        assert_eq!(f.list(now, 10), [(host(3), 2_000.0)]);
        f.restore(host(3), f64::NAN, now);
        assert_eq!(f.len(), 1);
        f.forget(host(3));
        assert!(f.len() == 0 && f.wakes.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_damping_can_be_switched_off() {
        let (mut f, now) = (flaps(), Instant::from_millis(5));
        for n in 0..FLAPS_MAX as u64 + 10 {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_be_bytes());
            f.fell(HostId(id), DOWN_PENALTY, now);
        }
        assert_eq!((f.hosts.len(), f.wakes.len()), (FLAPS_MAX, FLAPS_MAX));
        let mut f = Flaps::new(FlapConfig { suppress: 0, ..GuardConfig::default().flaps });
        (0..50).for_each(|_| assert!(!f.fell(host(1), DOWN_PENALTY, now)));
        assert!(f.hosts.is_empty());
    }
}
