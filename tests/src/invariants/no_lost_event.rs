//! No journaled event is lost: every delivery is delivered (and then the receiver has it), cancelled
//! (and then it never had it) or superseded; none waits for ever.

use std::collections::BTreeSet;

use heartwatch_controller::event::EventKind;
use heartwatch_controller::policy::is_action;
use heartwatch_controller::store::{DeliveryRow, DeliveryState, EventRow};

use super::Ledger;
use crate::sim::Reception;

impl Ledger {
    /// The world has healed: the journal against what the receivers have.
    pub fn check_delivered(
        &mut self,
        events: &[EventRow],
        deliveries: &[DeliveryRow],
        receptions: &[Reception],
    ) {
        let had: BTreeSet<_> =
            receptions.iter().map(|r| (r.event.to_string(), r.receiver.clone())).collect();
        for d in deliveries {
            let has = had.contains(&(d.event.to_string(), d.receiver.clone()));
            let good = match d.state {
                DeliveryState::Delivered | DeliveryState::Vetoed => has,
                DeliveryState::Cancelled => !has,
                DeliveryState::Superseded => d.attempts > 0,
                DeliveryState::Held | DeliveryState::Pending | DeliveryState::Dead => false,
            };
            if !good {
                let seen = format!(
                    "delivery {} of {} to {} is {:?} after {} attempts; received: {has}",
                    d.id.0, d.kind, d.receiver, d.state, d.attempts
                );
                self.broken("no_lost_event", seen);
            }
        }
        let ordered: BTreeSet<_> = deliveries.iter().map(|d| d.event).collect();
        for event in events {
            let action = is_action(event.kind);
            // Of a duplicate identity nothing is ordered, and the event says so.
            let suppressed = event.data["verdicts"].to_string().contains("suppress");
            if action && !suppressed && !ordered.contains(&event.id) {
                self.broken("no_lost_event", format!("{} has no delivery", event.id));
            }
        }
    }

    /// The world has healed: nothing that was decided waits to be written.
    pub fn check_nothing_unwritten(&mut self, unwritten: &[EventKind]) {
        if !unwritten.is_empty() {
            self.broken("no_lost_event", format!("never written: {unwritten:?}"));
        }
    }
}
