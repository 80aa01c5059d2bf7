//! A recording never feigns life: nothing proves a dead host alive that was not on its way when it died.

use std::time::Duration;

use heartwatch_common::time::Instant;

use super::Ledger;
use crate::sim::{SimHost, Truth};

/// The network's greatest delay, with a margin.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

impl Ledger {
    /// A host was called alive by something that arrived at `arrival`.
    pub fn check_alive(&mut self, host: &SimHost, arrival: Instant) {
        self.strict.remove(&host.id);
        let dead = matches!(host.truth, Truth::AgentDead | Truth::MachineDead | Truth::Left);
        // Mail that waited while the controller stood still may be stamped as late as its return.
        let due = (host.since + ON_ITS_WAY).max(self.back + Duration::from_millis(100));
        if dead && arrival > due {
            let late = arrival.since(host.since);
            self.broken("fresh_life", format!("{} alive {late:?} after its death", host.id));
        }
    }
}
