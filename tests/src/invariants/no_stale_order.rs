//! No order goes out that is no longer true: a failover is begun only while its host is down, in the
//! outage that the order names.

use heartwatch_controller::event::{EventKind, IncidentId};
use heartwatch_controller::policy::{Policy, is_action};
use heartwatch_controller::store::HostRow;

use super::Ledger;

impl Ledger {
    /// An attempt is about to be made; all that was decided before is written.
    pub fn check_order_is_true(
        &mut self,
        row: Option<&HostRow>,
        kind: EventKind,
        incident: Option<IncidentId>,
    ) {
        if is_action(kind)
            && let Err(why) = Policy::rejudge(row, kind, incident)
        {
            self.broken("no_stale_order", format!("{kind} is sent although {why}"));
        }
    }
}
