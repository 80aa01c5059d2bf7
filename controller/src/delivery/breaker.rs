//! Pure: when a receiver as a whole is left alone, so that a dead one costs a trial now and then
//! instead of an attempt per delivery.

use std::time::Duration;

use heartwatch_common::backoff::Backoff;
use heartwatch_common::time::Instant;
use rand::Rng;
use serde::Serialize;

/// Failures in a row, of the receiver rather than of one delivery, that open the breaker.
pub const BREAKER_FAILURES: u32 = 5;

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// Attempts are made as they fall due.
    Closed,
    /// Nothing is attempted for a while.
    Open,
    /// One attempt is under way to see whether the receiver is back.
    HalfOpen,
}

/// One receiver's breaker.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    backoff: Backoff,
    failures: u32,
    openings: u32,
    /// While not closed: no trial before this.
    until: Option<Instant>,
    trial: bool,
}

impl Breaker {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { backoff, failures: 0, openings: 0, until: None, trial: false }
    }

    pub(super) fn state(&self) -> BreakerState {
        match (self.until, self.trial) {
            (None, _) => BreakerState::Closed,
            (Some(_), false) => BreakerState::Open,
            (Some(_), true) => BreakerState::HalfOpen,
        }
    }

    /// From when on an attempt may start; `None`: not before the trial has ended.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        match self.state() {
            BreakerState::Closed => Some(Instant(0)),
            BreakerState::Open => self.until,
            BreakerState::HalfOpen => None,
        }
    }

    /// An attempt starts; answers whether it is the trial.
    pub(super) fn started(&mut self) -> bool {
        self.trial = self.until.is_some();
        self.trial
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::new(self.backoff);
    }

    /// `was_trial`: what [`Breaker::started`] said of this attempt.
    pub(super) fn failed<R: Rng + ?Sized>(&mut self, was_trial: bool, now: Instant, rng: &mut R) {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state() {
            BreakerState::Closed => self.failures >= BREAKER_FAILURES,
            // Others that were under way when it opened say nothing new.
            BreakerState::Open | BreakerState::HalfOpen => was_trial,
        };
        if opens {
            self.openings = self.openings.saturating_add(1);
            self.trial = false;
            self.until = Some(now + self.wait(rng));
        }
    }

    /// The trial came to nothing: the delivery was settled, or the store was away.
    pub(super) fn trial_void(&mut self, now: Instant) {
        self.trial = false;
        self.until = self.until.map(|_| now);
    }

    /// Half the bound and up to the whole: never zero as full jitter might be, since a trial at once
    /// says nothing, and never beyond the cap.
    fn wait<R: Rng + ?Sized>(&self, rng: &mut R) -> Duration {
        let half = Backoff { base: self.backoff.base / 2, cap: self.backoff.cap / 2 };
        half.bound(self.openings) + half.delay(self.openings, rng)
    }
}
