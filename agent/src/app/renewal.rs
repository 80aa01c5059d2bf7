//! Fetching the next key, beside the loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::auth::HostKey;
use heartwatch_common::backoff::Backoff;
use heartwatch_common::config::Span;
use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use rand::rngs::SysRng;
use rand::{RngExt, SeedableRng};

use super::{App, chain};
use crate::config::AgentConfig;
use crate::core::KeyNews;
use crate::enrol::{self, Url};
use crate::identity::IdentityError;

/// Waits between tries.
const TRIES: Backoff = Backoff { base: Duration::from_secs(30), cap: Duration::from_secs(3_600) };

/// How far the renewal of this host's key is.
#[derive(Debug)]
pub(super) struct Renewal {
    /// Where to fetch it; `None`: nobody told, somebody must bring it.
    url: Option<Url>,
    /// Where keys are kept.
    state_dir: PathBuf,
    key_file: PathBuf,
    due: Instant,
    tries: u32,
    under_way: bool,
    said: bool,
}

/// What SIGHUP has had read anew.
pub(super) struct Reread {
    /// The settings.
    pub(super) config: AgentConfig,
    /// Whose they are, if that can be told.
    pub(super) host: Option<HostId>,
    /// The key that lies there now.
    pub(super) key: Result<HostKey, IdentityError>,
}

/// How a try ended.
pub(super) type Fetched = Result<HostKey, String>;

impl Renewal {
    pub(super) fn new(
        url: Option<Url>,
        state_dir: PathBuf,
        key_file: PathBuf,
        now: Instant,
    ) -> Self {
        Self { url, state_dir, key_file, due: now, tries: 0, under_way: false, said: false }
    }
}

impl App {
    /// What follows for keys from the step just made.
    pub(super) fn look_after_keys(&mut self, now: Instant) {
        if let Some(news) = self.core.take_key_news() {
            self.settle(news);
        }
        if !self.core.wants_renewal() || self.renewal.under_way || now < self.renewal.due {
            return;
        }
        let Some(url) = self.renewal.url.clone() else {
            if !std::mem::replace(&mut self.renewal.said, true) {
                log::warn!(
                    "the controller asks for a newer key, and this host did not enrol: give it a new one by \
                     hand (`heartwatchctl key {}`, then `systemctl reload heartwatch-agent`), or enrol it",
                    self.core.settings().host
                );
            }
            return;
        };
        self.renewal.under_way = true;
        let (host, present) = (self.core.settings().host, self.core.settings().key.clone());
        let (state_dir, key_file) = (self.renewal.state_dir.clone(), self.renewal.key_file.clone());
        let (clock, done) = (Arc::clone(&self.clock), self.fetched.0.clone());
        tokio::task::spawn_blocking(move || {
            let fetch = || -> Result<HostKey, String> {
                let mut rng = rand::rngs::StdRng::try_from_rng(&mut SysRng)
                    .map_err(|e| format!("the system gives no randomness: {e}"))?;
                let next =
                    enrol::renew(&url, host, &present, &*clock, &mut rng).map_err(|e| chain(&e))?;
                // Kept before it is used: after a crash the host still has a key that is known.
                enrol::keep_renewed(&state_dir, &key_file, &present, &next)
                    .map_err(|e| chain(&e))?;
                Ok(next)
            };
            // An error means that the agent ends.
            drop(done.send(fetch()));
        });
    }

    pub(super) fn fetched(&mut self, fetched: Fetched, now: Instant) {
        self.renewal.under_way = false;
        match fetched {
            Ok(next) => {
                self.renewal.tries = 0;
                log::info!("a new key (id {}) from now on", next.key_id());
                self.core.rekey(next, now);
            }
            Err(why) => {
                self.renewal.tries = self.renewal.tries.saturating_add(1);
                let draw: f64 = self.rng.random();
                let wait = TRIES.bound(self.renewal.tries).mul_f64(0.5 + draw / 2.0);
                self.renewal.due = now + wait;
                log::warn!("the next key cannot be had, again in {}: {why}", Span(wait));
            }
        }
    }

    /// Takes a key up that somebody has put in place of the one in force. That one is kept beside it until a
    /// controller has answered under the new one.
    pub(super) fn take_up_key(&mut self, key: Result<HostKey, IdentityError>, now: Instant) {
        let key = match key {
            Ok(key) => key,
            Err(e) => {
                log::warn!("the key was not read anew, the one in force stays: {}", chain(&e));
                return;
            }
        };
        // What a renewal writes is taken up by the renewal.
        if self.renewal.under_way || *key.to_text() == *self.core.settings().key.to_text() {
            return;
        }
        log::info!(
            "another key (id {}, generation {}) lies in place of the one in force: it is used from now on",
            key.key_id(),
            key.generation()
        );
        // One that is kept from a renewal before must not come back in place of what somebody put there.
        match enrol::forget_previous(&self.renewal.state_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("keys in {}: {e}", self.renewal.state_dir.display());
            }
            _ => {}
        }
        self.renewal.said = false;
        self.core.rekey(key, now);
    }

    fn settle(&mut self, news: KeyNews) {
        let (state_dir, key_file) = (self.renewal.state_dir.clone(), self.renewal.key_file.clone());
        match news {
            KeyNews::Good => log::info!("the controller answers under the new key"),
            KeyNews::GivenUp => {
                log::error!(
                    "no controller answers under the new key: the one before is used again"
                );
                // The same key would be given again: not before somebody has had time to look.
                self.renewal.due = self.clock.boottime() + TRIES.cap;
            }
        }
        tokio::task::spawn_blocking(move || {
            let done = match news {
                KeyNews::Good => enrol::forget_previous(&state_dir),
                KeyNews::GivenUp => enrol::go_back(&state_dir, &key_file),
            };
            // None is kept of a key that somebody put there: what is in its file is theirs.
            match done {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    log::warn!("keys in {}: {e}", state_dir.display());
                }
                _ => {}
            }
        });
    }
}
