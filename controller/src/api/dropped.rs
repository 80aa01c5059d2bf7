//! What becomes of the orders of a host that an operator takes out of the registry: they are cancelled or
//! taken back with it, and whoever did it is told which.

use heartwatch_common::id::HostId;
use serde::{Deserialize, Serialize};

use super::Api;
use super::problem::Problem;
use crate::event::{EventId, EventKind, IncidentId};
use crate::policy::is_followed;
use crate::store::{DeliveryFilter, DeliveryId, DeliveryRow, DeliveryState, READ_LEN_MAX};

/// An order that ended with its host's place in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedOrder {
    /// Its event.
    pub event: EventId,
    /// What kind of event.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// Of which outage.
    pub incident: Option<IncidentId>,
    /// Its delivery.
    pub delivery: DeliveryId,
    /// Whom it was for.
    pub receiver: String,
    /// Where it stood: `held` or `pending`.
    pub was: DeliveryState,
    /// What held it first, if it was held.
    pub held_for: Option<String>,
    /// Attempts begun: the receiver may have heard of it.
    pub attempts: u32,
    /// Where it stands now.
    pub state: DeliveryState,
}

/// A host's orders that nobody has taken yet, as of before it is taken out. One that is decided between this
/// and that is told by the journal alone.
pub(super) async fn unfinished(api: &Api, host: HostId) -> Result<Vec<DeliveryRow>, Problem> {
    let mut orders = Vec::new();
    for state in [DeliveryState::Held, DeliveryState::Pending] {
        let filter = DeliveryFilter { host: Some(host), state: Some(state), ..Default::default() };
        let rows = api.store.deliveries(filter, READ_LEN_MAX).await?;
        orders.extend(rows.into_iter().filter(|row| is_followed(row.kind)));
    }
    Ok(orders)
}

/// What has become of them.
pub(super) async fn become_of(
    api: &Api,
    host: HostId,
    orders: Vec<DeliveryRow>,
) -> Result<Vec<DroppedOrder>, Problem> {
    let mut dropped = Vec::with_capacity(orders.len());
    for order in orders {
        let after = order.id.0.checked_sub(1).map(DeliveryId);
        let filter = DeliveryFilter { host: Some(host), after, ..Default::default() };
        let now = api.store.deliveries(filter, 1).await?;
        let now = now.into_iter().next().filter(|row| row.id == order.id).unwrap_or(order.clone());
        dropped.push(DroppedOrder {
            event: order.event,
            kind: order.kind,
            incident: order.incident,
            delivery: order.id,
            receiver: order.receiver,
            was: order.state,
            held_for: order.reason.filter(|_| order.state == DeliveryState::Held),
            attempts: now.attempts,
            state: now.state,
        });
    }
    Ok(dropped)
}
