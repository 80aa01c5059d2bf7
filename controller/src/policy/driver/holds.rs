//! What the shell does about holds: it lets time pass for the guard, follows its orders, and answers what
//! operators ask.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Instant};
use tokio::sync::oneshot;

use super::{Order, Running, Work};
use crate::control::ControlError;
use crate::policy::Policy;
use crate::policy::guard::{HoldReport, HoldStatus, HoldsPage, Target};
use crate::policy::holds::Word;
use crate::store::{DeliveryFilter, DeliveryState, READ_LEN_MAX, Store, StoreError};
use crate::view::View;

/// Under which name the guard's memory stands in the store.
const GUARD_KEY: &str = "guard";

/// What an operator asks or says about held orders.
#[derive(Debug)]
pub enum Ask {
    /// A page of them, the oldest first: of the domain with these labels or of all, after a place.
    List {
        /// Which domain.
        domain: Option<BTreeMap<String, String>>,
        /// After which place.
        after: Option<String>,
        /// At most so many.
        limit: usize,
        /// Who wants to know.
        answer: oneshot::Sender<Result<HoldsPage, ControlError>>,
    },
    /// What holds this host's.
    Of(HostId, oneshot::Sender<Result<Option<HoldStatus>, ControlError>>),
    /// Let them go.
    Approve(Target, Word, oneshot::Sender<Result<HoldReport, ControlError>>),
    /// Have them cancelled.
    Reject(Target, Word, oneshot::Sender<Result<HoldReport, ControlError>>),
}

/// Hands a policy, to which every host is registered already, the orders that the store holds and what else
/// the controller knew of them when it stopped.
pub async fn load_guard(
    policy: &mut Policy,
    store: &dyn Store,
    view: &View,
    clock: &dyn Clock,
) -> Result<(), StoreError> {
    let mut filter =
        DeliveryFilter { state: Some(DeliveryState::Held), ..DeliveryFilter::default() };
    loop {
        let page = store.deliveries(filter.clone(), READ_LEN_MAX).await?;
        let wall = clock.wall();
        for row in &page {
            let Some(host) = row.host else { continue };
            let ms = wall.0.saturating_sub(row.created_ms.0);
            let held_for = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
            let known = view.get(host);
            policy.restore(row, known.as_ref().map(|k| &k.row), held_for);
        }
        let Some(last) = page.last().filter(|_| page.len() >= READ_LEN_MAX) else { break };
        filter.after = Some(last.id);
    }
    let saved = store.get(GUARD_KEY).await?;
    if let Err(e) = policy.resume(saved.as_deref(), clock.wall()) {
        log::error!(
            "what is stored of storms is damaged ({e}): they are found again from what is held"
        );
    }
    super::places::load(policy, store, clock).await
}

impl Running {
    /// Lets time pass for the guard. While much waits to be written nothing more is let go.
    pub(super) fn look_after_holds(&mut self, now: Instant) {
        // Of hosts that come out of maintenance none is judged before all are counted.
        if self.work.has_room() && !self.is_scanning() {
            self.d.policy.step(now);
            if let Some(text) = self.d.policy.save(self.d.clock.wall()) {
                self.work.push(Work::Put(GUARD_KEY, Some(text)));
            }
            self.save_places();
        }
        self.follow_orders();
        let wall = self.d.clock.wall();
        self.d.status.set_guard(self.d.policy.guard_status(wall));
    }

    pub(super) fn follow_orders(&mut self) {
        let view = &self.d.view;
        let row = |host| view.get(host).map(|known| known.row);
        let orders = self.d.policy.orders(row, self.d.clock.wall(), &mut self.rng);
        for order in orders {
            let work = match order {
                Order::Release(host, but) => {
                    let places = self.place_again(host);
                    Work::Release(host, but, places)
                }
                Order::Part(part) => {
                    let places = if part.go.is_ok() { self.place_again(part.host) } else { None };
                    Work::Part(part, places)
                }
                Order::Cancel(host, why) => Work::Cancel(host, why),
                Order::Event(event) => {
                    let reason = event.data.get("reason").and_then(|r| r.as_str());
                    let reason = reason.unwrap_or_default();
                    match event.host {
                        Some(host) => {
                            log::warn!("{} {}: {reason}", event.kind, self.d.view.called(host));
                        }
                        None => log::warn!("{}: {reason}", event.kind),
                    }
                    Work::Event(event)
                }
            };
            self.work.push(work);
        }
    }

    pub(super) fn answer(&mut self, ask: Ask) {
        let wall = self.d.clock.wall();
        // Whoever asked may have given up waiting.
        match ask {
            Ask::List { domain, after, limit, answer } => {
                let page = self.d.policy.holds(domain.as_ref(), after.as_deref(), limit, wall);
                let message = "`after` is no place in this list: begin anew";
                let mut page = page.ok_or_else(|| ControlError::Invalid(message.to_owned()));
                for hold in page.iter_mut().flat_map(|p| &mut p.holds) {
                    hold.name = self.d.view.get(hold.host).map(|h| h.row.name).unwrap_or_default();
                }
                drop(answer.send(page));
            }
            Ask::Of(host, answer) => drop(answer.send(Ok(self.d.policy.hold_of(host, wall)))),
            Ask::Approve(target, word, answer) => {
                let known = self.host_of(&target);
                let row = known.as_ref().map(|k| &k.row);
                let report = self.d.policy.approve(&target, &word, row, wall, &mut self.rng);
                self.follow_orders();
                self.answer_when_written(answer, Ok(report));
            }
            Ask::Reject(target, word, answer) => {
                let known = self.host_of(&target);
                let row = known.as_ref().map(|k| &k.row);
                let report = self.d.policy.reject(&target, &word, row, wall, &mut self.rng);
                self.follow_orders();
                self.answer_when_written(answer, Ok(report));
            }
        }
    }

    fn host_of(&self, target: &Target) -> Option<crate::view::HostView> {
        match target {
            Target::Host(host) => self.d.view.get(*host),
            Target::Domain(_) => None,
        }
    }
}
