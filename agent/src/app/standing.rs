//! Whether this host was revoked, asked beside the loop when no controller answers: datagrams under a dead
//! key are answered by nobody, and its owner shall not have to guess.

use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::enrol::Revoked;
use heartwatch_common::time::Instant;
use rand::rngs::SysRng;
use rand::{RngExt, SeedableRng};

use super::{App, chain};
use crate::enrol::{self, Url};

/// A host that was never answered since its start asks within this. Hosts do not start all at once.
const FIRST: Duration = Duration::from_secs(10);
/// One that was asks within this: if it is the controller that is gone, it had better not be asked by a whole
/// fleet when it comes back.
const LATER: Duration = Duration::from_secs(300);
/// And again within this.
const AGAIN: Duration = Duration::from_secs(1_200);

/// What is known of it.
#[derive(Debug)]
pub(super) struct Standing {
    /// Where to ask; `None`: this host did not enrol.
    url: Option<Url>,
    /// Some controller has answered since the start.
    was_heard: bool,
    /// When to ask; `None`: some controller answers.
    due: Option<Instant>,
    under_way: bool,
    /// What it was told.
    pub(super) revoked: Option<Revoked>,
}

/// How a question ended.
pub(super) type Stood = Result<Option<Revoked>, String>;

impl Standing {
    pub(super) fn new(url: Option<Url>) -> Self {
        Self { url, was_heard: false, due: None, under_way: false, revoked: None }
    }
}

impl App {
    /// Asks if it is time to.
    pub(super) fn look_after_standing(&mut self, now: Instant) {
        if self.heard.iter().any(|heard| *heard) {
            let s = &mut self.standing;
            (s.was_heard, s.due, s.revoked) = (true, None, None);
            return;
        }
        let Some(url) = self.standing.url.clone().filter(|_| !self.standing.under_way) else {
            return;
        };
        let Some(due) = self.standing.due else {
            let span = if self.standing.was_heard { LATER } else { FIRST };
            let draw: f64 = self.rng.random();
            self.standing.due = Some(now + span.mul_f64(0.2 + 0.8 * draw));
            return;
        };
        if now < due {
            return;
        }
        self.standing.under_way = true;
        let (host, present) = (self.core.settings().host, self.core.settings().key.clone());
        let (clock, done) = (Arc::clone(&self.clock), self.stood.0.clone());
        tokio::task::spawn_blocking(move || {
            let ask = || -> Stood {
                let mut rng = rand::rngs::StdRng::try_from_rng(&mut SysRng)
                    .map_err(|e| format!("the system gives no randomness: {e}"))?;
                enrol::standing(&url, host, &present, &*clock, &mut rng).map_err(|e| chain(&e))
            };
            // An error means that the agent ends.
            drop(done.send(ask()));
        });
    }

    pub(super) fn stood(&mut self, stood: Stood, now: Instant) {
        self.standing.under_way = false;
        let draw: f64 = self.rng.random();
        self.standing.due = Some(now + AGAIN.mul_f64(0.5 + draw / 2.0));
        match stood {
            Ok(revoked) => {
                let news = revoked.as_ref().filter(|_| revoked != self.standing.revoked);
                if let Some(revoked) = news {
                    log::error!(
                        "this host was revoked by the cluster's operators at {}: {}; beats go on, and nobody \
                         believes them until an operator lifts that and the host is enrolled again",
                        revoked.at_ms,
                        revoked.reason
                    );
                }
                self.standing.revoked = revoked;
            }
            // Nothing new: that no controller answers was said.
            Err(why) => log::debug!("the controller cannot be asked how this host stands: {why}"),
        }
    }
}
