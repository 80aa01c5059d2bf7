//! What goes on is said again to Alertmanager, which would end it by itself otherwise.
//!
//! A resend is no delivery: it says nothing new, is not journaled, and one that fails is made good by the
//! next. What is open is not remembered here either; each round asks the registry which hosts are in an
//! outage, page by page, and the outbox what the receiver was last told of each. So memory is bounded by a
//! page, a restart forgets nothing, and what is said again is always what was said and accepted last.
//!
//! **Order.** A resend that is overtaken by the end of its alert would raise it again. So the worker keeps
//! the lanes of a page's hosts free while their resend is under way
//! ([`Schedule::borrow`](super::schedule::Schedule::borrow)): nothing of theirs is begun until it has
//! ended. A host that has something on its way is left out: that will tell where it stands, or if it can't
//! be delivered, then a resend could not be either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;

use super::DeliveryHandle;
use super::format::alertmanager;
use super::outcome::Outcome;
use super::target::Target;
use crate::config::{Kind, Receiver};
use crate::event::{IncidentId, State, payload};
use crate::store::{DeliveryFilter, DeliveryState, Outgoing, READ_LEN_MAX, Store, StoreError};
use crate::view::{Filter, View};

/// Most hosts in one request.
pub const PAGE_LEN_MAX: usize = 100;
/// Newest events of a host among which the one that opened its outage is looked for.
const EVENTS_LEN_MAX: usize = 100;

/// A host in an outage.
pub type Open = (HostId, IncidentId);

/// How often each receiver is to be told again, of those that want that.
pub fn receivers(all: &BTreeMap<String, Receiver>) -> Vec<(String, Duration)> {
    let every = |r: &Receiver| match r.kind {
        Kind::Alertmanager { resend_every, .. } => Some((r.name.clone(), resend_every)),
        _ => None,
    };
    all.values().filter_map(every).collect()
}

/// Tells one receiver again and again, until it is dropped.
pub async fn run(
    delivery: Arc<DeliveryHandle>,
    view: Arc<View>,
    receiver: String,
    every: Duration,
) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        round(&delivery, &view, &receiver).await;
    }
}

/// One round over all hosts that are in an outage.
async fn round(delivery: &DeliveryHandle, view: &View, receiver: &str) {
    let states = vec![State::Suspect, State::Down, State::Pending];
    let filter = Filter { states, ..Filter::default() };
    let mut from = 0;
    loop {
        let (hosts, next) = view.list(&filter, from, PAGE_LEN_MAX);
        let open = hosts.iter().filter_map(|h| Some((h.row.id, h.row.incident?)));
        let open: Vec<Open> = open.collect();
        if !open.is_empty() {
            delivery.resend(receiver, open).await;
        }
        match next {
            Some(next) => from = next,
            None => return,
        }
        // A registry of a million hosts is looked through in slices.
        tokio::task::yield_now().await;
    }
}

/// What the receiver was last told of each of these, if it took that and it goes on still.
pub(super) async fn last_told(
    store: &dyn Store,
    receiver: &str,
    open: &[Open],
) -> Result<Vec<Outgoing>, StoreError> {
    let mut told = Vec::new();
    for (host, incident) in open {
        let filter = DeliveryFilter {
            receiver: Some(receiver.to_owned()),
            incident: Some(*incident),
            ..DeliveryFilter::default()
        };
        let deliveries = store.deliveries(filter, READ_LEN_MAX).await?;
        let Some(last) = deliveries.iter().rev().find(|d| d.attempts > 0) else { continue };
        if last.state != DeliveryState::Delivered || !alertmanager::is_resent(last.kind) {
            continue;
        }
        let events = store.events_of(*host, EVENTS_LEN_MAX).await?;
        let Some(event) = events.into_iter().find(|e| e.id == last.event) else { continue };
        told.push(Outgoing {
            event: event.id,
            kind: event.kind,
            host: event.host,
            token: event.token,
            attempt: last.attempts,
            body: payload(event.kind, event.at_ms, &event.data),
        });
    }
    Ok(told)
}

/// Says it again. `None`: there was nothing to be said.
pub(super) async fn tell(
    store: &dyn Store,
    target: &Target,
    receiver: &str,
    open: &[Open],
    at: Wall,
) -> Option<Outcome> {
    match last_told(store, receiver, open).await {
        Ok(told) if told.is_empty() => None,
        Ok(told) => Some(target.send(&told, at).await),
        Err(e) => {
            log::debug!("nothing is said again to {receiver}: {e}");
            None
        }
    }
}
