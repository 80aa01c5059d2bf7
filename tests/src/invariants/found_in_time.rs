//! Doubt ends: whatever the controller lost itself, a dead host is down within a stated time.

use std::time::Duration;

use heartwatch_common::time::Instant;
use heartwatch_controller::event::State;

use super::Ledger;
use crate::sim::{SimHost, Truth};

/// Longest gap between two beats, and the span in which one must come.
const SPAN: Duration = Duration::from_millis(1_800);
/// A restart's grace, three probes, and some passes.
const REST: Duration = Duration::from_secs(15);

impl Ledger {
    /// How a host is recorded while the controller runs. `margin`: what the detector grants it.
    pub fn check_found(
        &mut self,
        host: &SimHost,
        recorded: State,
        margin: Duration,
        doubt_max: Duration,
        now: Instant,
    ) {
        let dead = matches!(host.truth, Truth::AgentDead | Truth::MachineDead);
        if !dead || !matches!(recorded, State::Alive | State::Suspect) {
            return;
        }
        // Twice: a second cut may begin while its probes are out.
        let bound = (doubt_max + SPAN + margin) * 2 + REST;
        let since = host.since.max(self.back);
        if now.since(since) > bound && self.late.insert(host.id) {
            let seen = format!("{} is {recorded} {:?} after its death", host.id, now.since(since));
            self.broken("found_in_time", seen);
        }
    }
}
