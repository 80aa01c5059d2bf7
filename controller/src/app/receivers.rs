//! Receivers: where they stand, and trying one.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use serde_json::json;

use super::running::Running;
use crate::control::{ControlError, Health, ReceiverReport, TestBegun};
use crate::delivery::sample::test_data;
use crate::event::{EventId, EventKind, payload};
use crate::store::{
    Audience, DeliveryFilter, DeliveryState, NewDelivery, NewEvent, Outgoing, Settle,
};

impl Running {
    pub(super) async fn receiver_reports(&self) -> Result<Vec<ReceiverReport>, ControlError> {
        let backlog = self.store.backlog().await?;
        let mut reports: BTreeMap<String, ReceiverReport> = BTreeMap::new();
        let now = self.clock.wall();
        let known = self.delivery.receivers_status();
        let strangers = backlog.by_receiver.keys().map(|(name, _)| name);
        for name in known.keys().chain(strangers) {
            if reports.contains_key(name) || name == crate::canary::OWN_RECEIVER {
                continue;
            }
            let count = |state| backlog.by_receiver.get(&(name.clone(), state)).copied();
            let pending = count(DeliveryState::Pending).unwrap_or(0);
            let oldest_pending_ms = match pending {
                0 => None,
                _ => self.oldest_pending(name).await?,
            };
            let status = known.get(name);
            let configured = status.filter(|s| s.configured);
            reports.insert(
                name.clone(),
                ReceiverReport {
                    name: name.clone(),
                    format: status.map(|s| s.format.to_owned()).unwrap_or_default(),
                    health: configured.map_or(Health::NotConfigured, |s| {
                        Health::of(s.breaker, oldest_pending_ms, now)
                    }),
                    in_flight: status.map_or(0, |s| s.in_flight),
                    held: count(DeliveryState::Held).unwrap_or(0),
                    pending,
                    dead: count(DeliveryState::Dead).unwrap_or(0),
                    oldest_pending_ms,
                    last_outcome: status.and_then(|s| s.last_outcome.clone()),
                    last_ms: status.and_then(|s| s.last_ms),
                },
            );
        }
        Ok(reports.into_values().collect())
    }

    /// When the oldest pending delivery to a receiver was journaled.
    async fn oldest_pending(
        &self,
        receiver: &str,
    ) -> Result<Option<heartwatch_common::time::Wall>, ControlError> {
        let filter = DeliveryFilter {
            state: Some(DeliveryState::Pending),
            receiver: Some(receiver.to_owned()),
            ..DeliveryFilter::default()
        };
        let first = self.store.deliveries(filter, 1).await?;
        Ok(first.first().map(|d| d.created_ms))
    }

    pub(super) async fn begin_test(&self, receiver: &str) -> Result<TestBegun, ControlError> {
        let Some(target) = self.delivery.target(receiver) else {
            return Err(ControlError::Invalid(format!("there is no receiver `{receiver}`")));
        };
        let at = self.clock.wall();
        let id = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            EventId::new(at, &mut *rng)
        };
        let data = test_data(id, json!({ "id": self.store.controller(), "name": self.name }));
        let kind = EventKind::Test;
        let body = payload(kind, at, &data);
        let outgoing = Outgoing { event: id, kind, host: None, token: None, attempt: 1, body };
        // Said now rather than by a dead letter: a format that has no word for a test can't be tried.
        target.can_say(&[outgoing], at).map_err(|why| {
            ControlError::Invalid(format!("{receiver} cannot be sent a test: {why}"))
        })?;
        let event = NewEvent {
            id,
            kind,
            at,
            host: None,
            incident: None,
            data,
            row: None,
            settle: Settle::Nothing,
            deliveries: vec![NewDelivery { receiver: receiver.to_owned(), hold: None }],
            audience: Audience::All,
        };
        let appended = self.store.append(vec![event]).await?;
        let due = appended.into_iter().flat_map(|a| a.deliveries).collect::<Vec<_>>();
        let delivery = due.first().map(|d| d.id).ok_or_else(|| {
            ControlError::Invalid("the store made no delivery of the test".to_owned())
        })?;
        self.delivery.wake(due);
        Ok(TestBegun { delivery, event: id })
    }
}
