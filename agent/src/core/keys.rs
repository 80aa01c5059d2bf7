//! Changing the key while beating: the new one at once, the old one until the new one has proved good.
//!
//! Whatever a controller still sends under the old key is understood. The first ack under the new one ends
//! that. If none comes for [`PROBATION`], nor for six beats, the new key is given up: a controller that does
//! not know it must not be taken for one that is away for ever.

use std::time::Duration;

use heartwatch_common::auth::HostKey;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{Datagram, Foreign};

use super::Core;

/// How long a new key may stay without an ack.
pub const PROBATION: Duration = Duration::from_secs(60);

/// What became of a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyNews {
    /// A controller answered under it: the one before is forgotten.
    Good,
    /// None did: the one before is in force again.
    GivenUp,
}

/// Keys beside the one in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    /// The one before, and since when.
    previous: Option<(HostKey, Instant)>,
    /// A controller asked that the next one be fetched.
    wanted: bool,
    news: Option<KeyNews>,
}

impl Keys {
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// An ack came under the key in force.
    pub(super) fn proved(&mut self) {
        if self.previous.take().is_some() {
            self.news = Some(KeyNews::Good);
        }
    }
}

impl Core {
    /// Seals with another key from now on; numbers go on. The one in force so far is kept beside it.
    pub fn rekey(&mut self, next: HostKey, now: Instant) {
        let old = std::mem::replace(&mut self.settings.key, next);
        self.keys.previous = Some((old, now));
        self.keys.wanted = false;
        self.keys.news = None;
    }

    /// After a restart before the present key has proved good: the one before it.
    pub fn may_go_back_to(&mut self, previous: HostKey, now: Instant) {
        self.keys.previous = Some((previous, now));
    }

    /// Whether a controller wants this host to fetch its next key, and no new one is on probation.
    pub fn wants_renewal(&self) -> bool {
        self.keys.wanted && self.keys.previous.is_none()
    }

    /// What became of a new key, once.
    pub fn take_key_news(&mut self) -> Option<KeyNews> {
        self.keys.news.take()
    }

    /// Whether a datagram is sealed with a key of this host; and if so, whether with the one in force.
    pub(super) fn opens(&self, datagram: &Datagram<'_>) -> Option<bool> {
        if self.settings.key.verify(datagram) {
            return Some(true);
        }
        let previous = self.keys.previous.as_ref();
        previous.is_some_and(|(key, _)| key.verify(datagram)).then_some(false)
    }

    /// The same of a datagram of another version of the wire.
    pub(super) fn opens_foreign(&self, datagram: &Foreign<'_>) -> bool {
        let previous = self.keys.previous.as_ref().map(|(key, _)| key);
        std::iter::once(&self.settings.key).chain(previous).any(|key| key.verify_foreign(datagram))
    }

    /// Gives a new key up that nobody answers under.
    pub(super) fn judge_key(&mut self, now: Instant) {
        let patience = PROBATION.max(self.schedule.interval() * 6);
        let over = |(_, since): &(HostKey, Instant)| now.since(*since) > patience;
        if self.keys.previous.as_ref().is_some_and(over)
            && let Some((old, _)) = self.keys.previous.take()
        {
            self.settings.key = old;
            self.keys.news = Some(KeyNews::GivenUp);
        }
    }
}
