//! How enrolments, renewals and questions of hosts ended, counted for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::EnrolError;
use super::decide::Refusal;

/// How an enrolment that is granted changes its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gained {
    /// It was let in.
    New,
    /// It was let in again, under a new key that ended its older ones.
    Rekeyed,
    /// It proved its key, which it keeps.
    Kept,
    /// The same answer was asked for again.
    Repeated,
}

impl Gained {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::New, Self::Rekeyed, Self::Kept, Self::Repeated];

    /// As it stands in labels and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Rekeyed => "rekeyed",
            Self::Kept => "kept",
            Self::Repeated => "repeated",
        }
    }
}

/// Reasons of refusals, as labels.
pub const REASONS: [&str; 13] = [
    "join-token-unknown",
    "join-token-revoked",
    "join-token-expired",
    "join-token-used-up",
    "host-revoked",
    "host-taken",
    "host-exhausted",
    "invalid",
    "unproved",
    "conflict",
    "unknown",
    "busy",
    "failed",
];

impl EnrolError {
    /// As it stands in metrics: one of [`REASONS`].
    pub const fn slug(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => Refusal::slug(refusal),
            Self::Invalid(_) => "invalid",
            Self::Unproved(_) => "unproved",
            Self::Conflict(_) => "conflict",
            Self::NotFound(_) => "unknown",
            Self::Busy => "busy",
            Self::Store(_) | Self::Secrets(_) => "failed",
        }
    }
}

/// The counters, since the start.
#[derive(Debug, Default)]
pub struct Counts {
    granted: [AtomicU64; Gained::ALL.len()],
    refused: [AtomicU64; REASONS.len()],
    renewed: AtomicU64,
    not_renewed: [AtomicU64; REASONS.len()],
}

fn count(all: &[AtomicU64; REASONS.len()], error: &EnrolError) {
    if let Some(at) = REASONS.iter().position(|reason| *reason == error.slug()) {
        all[at].fetch_add(1, Ordering::Relaxed);
    }
}

fn read(all: &[AtomicU64; REASONS.len()]) -> [(&'static str, u64); REASONS.len()] {
    std::array::from_fn(|at| (REASONS[at], all[at].load(Ordering::Relaxed)))
}

impl Counts {
    pub(super) fn enrolled(&self, how: Result<Gained, &EnrolError>) {
        match how {
            Ok(gained) => drop(self.granted[gained as usize].fetch_add(1, Ordering::Relaxed)),
            Err(e) => count(&self.refused, e),
        }
    }

    pub(super) fn renewed(&self, how: Result<(), &EnrolError>) {
        match how {
            Ok(()) => drop(self.renewed.fetch_add(1, Ordering::Relaxed)),
            Err(e) => count(&self.not_renewed, e),
        }
    }

    /// Enrolments that were granted, by what they changed.
    pub fn granted(&self) -> [(&'static str, u64); Gained::ALL.len()] {
        Gained::ALL.map(|g| (g.as_str(), self.granted[g as usize].load(Ordering::Relaxed)))
    }

    /// Enrolments that were refused, by reason.
    pub fn refused(&self) -> [(&'static str, u64); REASONS.len()] {
        read(&self.refused)
    }

    /// Keys that were renewed.
    pub fn renewals(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// Renewals that were refused, by reason.
    pub fn renewals_refused(&self) -> [(&'static str, u64); REASONS.len()] {
        read(&self.not_renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;
    use heartwatch_common::id::HostId;

    #[test]
    fn every_refusal_has_a_label_of_its_own() {
        let (token, host) = (String::new, HostId([1; 16]));
        let errors: [EnrolError; REASONS.len()] = [
            Refusal::UnknownToken.into(),
            Refusal::TokenRevoked(token()).into(),
            Refusal::TokenExpired(token()).into(),
            Refusal::TokenUsedUp(token()).into(),
            Refusal::HostRevoked(host).into(),
            Refusal::Taken(host).into(),
            Refusal::Exhausted(host).into(),
            EnrolError::Invalid(token()),
            EnrolError::Unproved(token()),
            EnrolError::Conflict(token()),
            EnrolError::NotFound(token()),
            EnrolError::Busy,
            EnrolError::Store(StoreError::Unknown),
        ];
        let counts = Counts::default();
        errors.iter().for_each(|e| counts.enrolled(Err(e)));
        counts.renewed(Err(&errors[8]));
        assert!(counts.refused().iter().all(|(_, n)| *n == 1), "{:?}", counts.refused());
        assert_eq!(counts.renewals_refused().iter().map(|(_, n)| n).sum::<u64>(), 1);
        for gained in Gained::ALL {
            counts.enrolled(Ok(gained));
        }
        assert!(counts.granted().iter().all(|(_, n)| *n == 1));
    }
}
