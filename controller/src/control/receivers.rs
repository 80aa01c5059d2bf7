//! Where receivers stand.

use std::time::Duration;

use heartwatch_common::time::Wall;
use serde::{Deserialize, Serialize};

use crate::delivery::BreakerState;
use crate::event::EventId;
use crate::store::DeliveryId;

/// A receiver whose oldest pending delivery was journaled longer ago than this is behind.
pub const BEHIND_AFTER: Duration = Duration::from_secs(60);

/// How a receiver does, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It takes what it is sent.
    Good,
    /// Something has been pending for longer than [`BEHIND_AFTER`].
    Behind,
    /// Its breaker is open: it failed again and again, and is tried now and then.
    Failing,
    /// The config does not know it, but the store has deliveries for it.
    NotConfigured,
}

impl Health {
    /// As it stands in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Behind => "behind",
            Self::Failing => "failing",
            Self::NotConfigured => "not configured",
        }
    }

    /// Of a receiver of the config.
    pub fn of(breaker: BreakerState, oldest: Option<Wall>, now: Wall) -> Self {
        let age_ms = oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0));
        match breaker {
            BreakerState::Open | BreakerState::HalfOpen => Self::Failing,
            BreakerState::Closed if i128::from(age_ms) > BEHIND_AFTER.as_millis() as i128 => {
                Self::Behind
            }
            BreakerState::Closed => Self::Good,
        }
    }
}

/// Where one receiver stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverReport {
    /// Its name.
    pub name: String,
    /// How it is told, such as `native` or `exec`; empty if it is not configured.
    pub format: String,
    /// How it does.
    pub health: Health,
    /// Attempts under way.
    pub in_flight: u64,
    /// Deliveries that are kept back.
    pub held: u64,
    /// Deliveries to be sent, or sent without success so far.
    pub pending: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// When the oldest pending one was journaled, milliseconds since 1970.
    pub oldest_pending_ms: Option<Wall>,
    /// How its last attempt ended since the controller started, for people.
    pub last_outcome: Option<String>,
    /// When, milliseconds since 1970.
    pub last_ms: Option<Wall>,
}

/// A test that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestBegun {
    /// Its delivery: look there for how it ends.
    pub delivery: DeliveryId,
    /// Its event.
    pub event: EventId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_of_the_breaker_first_and_of_the_backlog_then() {
        let (now, late) = (Wall(100_000), Some(Wall(39_999)));
        assert_eq!(Health::of(BreakerState::Open, None, now), Health::Failing);
        assert_eq!(Health::of(BreakerState::HalfOpen, late, now), Health::Failing);
        assert_eq!(Health::of(BreakerState::Closed, late, now), Health::Behind);
        assert_eq!(Health::of(BreakerState::Closed, Some(Wall(40_000)), now), Health::Good);
        assert_eq!(Health::of(BreakerState::Closed, Some(Wall(200_000)), now), Health::Good);
        assert_eq!(Health::of(BreakerState::Closed, None, now), Health::Good);
    }
}
