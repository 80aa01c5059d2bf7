//! What the shell does about dead letters that somebody wants sent again: each is judged anew first.

use std::sync::Arc;

use super::Running;
use super::follow::EVENTS_MAX;
use crate::control::{ControlError, Redrive, RedriveReport};
use crate::policy::courses::is_handed_on;
use crate::policy::{Policy, is_action};
use crate::store::{
    DeliveryFilter, DeliveryId, DeliveryRow, DeliveryState, READ_LEN_MAX, StoreError,
};

impl Running {
    pub(super) async fn redrive(&mut self, what: Redrive) -> Result<RedriveReport, ControlError> {
        let store = Arc::clone(&self.d.store);
        let rows = match what {
            Redrive::Dead { receiver } => {
                let state = Some(DeliveryState::Dead);
                let filter = DeliveryFilter { state, receiver, ..DeliveryFilter::default() };
                store.deliveries(filter, READ_LEN_MAX).await?
            }
            Redrive::Ids(ids) => {
                let mut rows = Vec::new();
                for id in ids.into_iter().take(READ_LEN_MAX) {
                    let after = id.0.checked_sub(1).map(DeliveryId);
                    let filter = DeliveryFilter { after, ..DeliveryFilter::default() };
                    let found = store.deliveries(filter, 1).await?;
                    let row = found.into_iter().find(|r| r.id == id);
                    rows.push(row.ok_or_else(|| {
                        ControlError::Invalid(format!("there is no delivery {}", id.0))
                    })?);
                }
                rows
            }
        };
        let mut report = RedriveReport::default();
        let at = self.d.clock.wall();
        for row in rows {
            if row.state != DeliveryState::Dead {
                report.skipped.push(row.id);
                continue;
            }
            match self.is_still_due(&row).await? {
                Ok(()) => match store.redrive(row.id, at).await? {
                    Some(due) => {
                        self.d.delivery.redriven(due);
                        report.redriven.push(row.id);
                    }
                    None => report.skipped.push(row.id),
                },
                Err(why) => {
                    store.cancel(row.id, why.clone(), at).await?;
                    report.cancelled.push((row.id, why));
                }
            }
        }
        Ok(report)
    }

    /// Whether what a dead letter says is still to be said to its receiver; why not, if it isn't.
    async fn is_still_due(&self, row: &DeliveryRow) -> Result<Result<(), String>, StoreError> {
        let Some(host) = row.host else { return Ok(Ok(())) };
        let known = self.d.view.get(host);
        if let Err(why) = Policy::rejudge(known.as_ref().map(|h| &h.row), row.kind, row.incident) {
            return Ok(Err(why));
        }
        let filter = DeliveryFilter {
            host: Some(host),
            receiver: Some(row.receiver.clone()),
            after: Some(row.id),
            ..DeliveryFilter::default()
        };
        let later = self.d.store.deliveries(filter, READ_LEN_MAX).await?;
        if later.iter().any(|d| d.attempts > 0 && !d.kind.is_notice()) {
            return Ok(Err("newer news of the host went there since".to_owned()));
        }
        if is_action(row.kind) {
            let events = self.d.store.events_of(host, EVENTS_MAX).await?;
            if is_handed_on(row, &events) {
                return Ok(Err("another was ordered to act in its place since".to_owned()));
            }
        }
        Ok(Ok(()))
    }
}
