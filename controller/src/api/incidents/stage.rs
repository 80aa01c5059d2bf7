//! Pure: how far an outage's orders are, in one word: that of the order which most needs somebody.

use super::super::types::IncidentStage;
use crate::event::EventKind;
use crate::policy::courses::{Reported, is_handed_on, report_of};
use crate::store::{DeliveryRow, DeliveryState, EventRow};

/// How far they are. `rows`: the outage's orders; `events`: those of its host; both in any order.
///
/// Of each receiver its newest order counts, unless it was handed on to another since. What was cancelled or
/// replaced counts only if nothing else is left.
pub(crate) fn stage(rows: &[DeliveryRow], events: &[EventRow]) -> IncidentStage {
    let newest = |row: &&DeliveryRow| {
        !rows.iter().any(|other| other.id > row.id && other.receiver == row.receiver)
    };
    let counts = |row: &&DeliveryRow| !is_handed_on(row, events);
    rows.iter()
        .filter(newest)
        .filter(counts)
        .map(|row| of(row, events))
        .max_by_key(|stage| need(*stage))
        .or_else(|| (!rows.is_empty()).then_some(IncidentStage::Cancelled))
        .unwrap_or_default()
}

/// How much somebody is needed, rising.
fn need(stage: IncidentStage) -> u8 {
    match stage {
        IncidentStage::Opened => 0,
        IncidentStage::Cancelled => 1,
        IncidentStage::Completed => 2,
        IncidentStage::Accepted => 3,
        IncidentStage::Ordered => 4,
        IncidentStage::Held => 5,
        IncidentStage::Escalated => 6,
        IncidentStage::Vetoed => 7,
        IncidentStage::Failed => 8,
    }
}

fn of(row: &DeliveryRow, events: &[EventRow]) -> IncidentStage {
    let stage = match (report_of(row, events), row.state) {
        (Some(Reported::Completed), _) => return IncidentStage::Completed,
        (Some(Reported::Failed), _) | (None, DeliveryState::Dead) => IncidentStage::Failed,
        (None, DeliveryState::Vetoed) => return IncidentStage::Vetoed,
        (None, DeliveryState::Delivered) => IncidentStage::Accepted,
        (None, DeliveryState::Pending) => IncidentStage::Ordered,
        (None, DeliveryState::Held) => return IncidentStage::Held,
        (None, DeliveryState::Cancelled | DeliveryState::Superseded) => {
            return IncidentStage::Cancelled;
        }
    };
    // People were turned to for want of its end, or nobody was left to turn to. Since it stands so: it may
    // have been sent again.
    let of_it = |e: &&EventRow| e.incident == row.incident && e.token > row.token;
    let mut since = events.iter().filter(of_it).filter(|e| e.at_ms >= row.changed_ms);
    let said = |kind: EventKind, e: &EventRow| e.kind == kind && !e.data.contains_key("receiver");
    if since.clone().any(|e| said(EventKind::IncidentFailed, e)) {
        IncidentStage::Failed
    } else if since.any(|e| said(EventKind::IncidentEscalated, e)) {
        IncidentStage::Escalated
    } else {
        stage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use crate::store::{Cursor, DeliveryId, Token};
    use heartwatch_common::time::Wall;
    use serde_json::{Value, json};

    fn row(event: u128, receiver: &str, state: DeliveryState) -> DeliveryRow {
        DeliveryRow {
            id: DeliveryId(event as u64),
            event: EventId(uuid::Uuid::from_u128(event)),
            kind: EventKind::HostDown,
            host: None,
            incident: None,
            receiver: receiver.to_owned(),
            state,
            reason: None,
            token: Some(Token(event as u64)),
            attempts: 1,
            created_ms: Wall(0),
            changed_ms: Wall(0),
            last_outcome: None,
            placed: None,
        }
    }

    fn event(token: u64, kind: EventKind, data: Value) -> EventRow {
        let Value::Object(data) = data else { panic!("an object") };
        EventRow {
            cursor: Cursor(token),
            id: EventId(uuid::Uuid::from_u128(token.into())),
            kind,
            at_ms: Wall(0),
            host: None,
            incident: None,
            token: Some(Token(token)),
            data,
        }
    }

    #[test]
    fn the_order_that_most_needs_somebody_tells_how_far_it_is() {
        use DeliveryState as D;
        assert_eq!(stage(&[], &[]), IncidentStage::Opened);
        let rows = [row(1, "a", D::Superseded), row(2, "a", D::Pending), row(3, "b", D::Delivered)];
        assert_eq!(stage(&rows, &[]), IncidentStage::Ordered, "one has it, the other has not");
        assert_eq!(stage(&rows[..1], &[]), IncidentStage::Cancelled);
        let vetoed = [row(1, "a", D::Vetoed), row(2, "b", D::Delivered)];
        assert_eq!(stage(&vetoed, &[]), IncidentStage::Vetoed, "a refusal beside a yes");
        let done =
            event(9, EventKind::IncidentCompleted, json!({"receiver": "a", "order_token": 1}));
        let steps = [row(1, "a", D::Delivered), row(2, "b", D::Delivered)];
        assert_eq!(stage(&steps[..1], std::slice::from_ref(&done)), IncidentStage::Completed);
        assert_eq!(stage(&steps, &[done]), IncidentStage::Accepted, "the fence is done, not all");
    }

    #[test]
    fn what_nobody_did_in_time_is_escalated_and_failed_if_nobody_is_left() {
        let taken = [row(1, "a", DeliveryState::Delivered)];
        let told = event(2, EventKind::IncidentEscalated, json!({"level": 0}));
        let left = event(3, EventKind::IncidentFailed, json!({}));
        assert_eq!(stage(&taken, std::slice::from_ref(&told)), IncidentStage::Escalated);
        assert_eq!(stage(&taken, &[told.clone(), left]), IncidentStage::Failed);
        let late =
            event(4, EventKind::IncidentCompleted, json!({"receiver": "a", "order_token": 1}));
        assert_eq!(stage(&taken, &[told, late]), IncidentStage::Completed, "late, but done");
        // Sent again after that, and taken.
        let again = DeliveryRow { changed_ms: Wall(1), ..taken[0].clone() };
        let told_before = event(2, EventKind::IncidentFailed, json!({}));
        assert_eq!(stage(&[again], &[told_before]), IncidentStage::Accepted);
        // Handed on to another, who has it.
        let both = [row(1, "a", DeliveryState::Superseded), row(2, "b", DeliveryState::Delivered)];
        let handed = event(2, EventKind::HostDown, json!({"instead_of": ["a"]}));
        let said = event(3, EventKind::IncidentEscalated, json!({"receiver": "b"}));
        assert_eq!(stage(&both, &[handed.clone(), said]), IncidentStage::Accepted);
        assert_eq!(stage(&both[..1], &[handed]), IncidentStage::Cancelled);
    }
}
