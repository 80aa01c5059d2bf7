//! Fetching the next key, beside the loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::auth::HostKey;
use heartwatch_common::backoff::Backoff;
use heartwatch_common::config::Span;
use heartwatch_common::time::Instant;
use rand::rngs::SysRng;
use rand::{RngExt, SeedableRng};

use super::{App, chain};
use crate::core::KeyNews;
use crate::enrol::{self, Url};

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
                     hand (`heartwatchctl key {}`), or enrol it",
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
            if let Err(e) = done {
                log::warn!("keys in {}: {e}", state_dir.display());
            }
        });
    }
}
