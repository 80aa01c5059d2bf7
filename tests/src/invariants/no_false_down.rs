//! No host is called suspect or down whose beats arrived in time: what reached the socket counts, read
//! or unread.

use std::time::Duration;

use heartwatch_common::time::Instant;

use super::{CATCHING_UP, Ledger};
use crate::sim::SimHost;

/// `timeout_min` of the defaults: no margin is shorter.
const MARGIN_MIN: Duration = Duration::from_millis(50);
/// Three probes, 200 ms apart and after the last.
const PROBES: Duration = Duration::from_millis(600);
/// How far a slow reader may be behind without having been stopped.
const SLOW: Duration = Duration::from_secs(1);
/// The watermark's slack and a pass.
const GRAIN: Duration = Duration::from_millis(20);

impl Ledger {
    /// A host was called suspect as of `now`.
    pub fn check_suspect(&mut self, host: &SimHost, now: Instant) {
        self.check_silence(host, now, "no_false_suspect", MARGIN_MIN);
        if !self.fresh.contains_key(&host.id) {
            self.strict.insert(host.id);
        }
    }

    /// A host was called down as of `now`.
    pub fn check_down(&mut self, host: &SimHost, now: Instant) {
        self.check_silence(host, now, "no_false_down", MARGIN_MIN + PROBES);
    }

    fn check_silence(
        &mut self,
        host: &SimHost,
        now: Instant,
        promise: &'static str,
        patience: Duration,
    ) {
        let Some(fresh) = self.fresh.get(&host.id) else { return };
        let Some((last, gap)) = fresh.iter().rev().find(|f| f.0 <= now).copied() else { return };
        let least = (gap + patience).saturating_sub(GRAIN);
        // A silence that was too long has ended, but a slow reader, or who was stopped, reads of that later.
        if let Some((end, overdue)) = self.overdue.get(&host.id)
            && *overdue + GRAIN >= patience
            && (now < self.back + CATCHING_UP || now.since(*end) < SLOW)
        {
            return;
        }
        if now.since(last) < least {
            let silence = now.since(last);
            self.broken(
                promise,
                format!("{} after {silence:?} of silence, its gap was {gap:?}", host.id),
            );
        }
    }
}
