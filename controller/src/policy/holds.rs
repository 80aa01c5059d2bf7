//! The policy's side of its [`guard`](super::guard): what the shell tells it, asks it, and does for it.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use rand::Rng;
use serde_json::{Map, Value, json};

use super::guard::{GuardStatus, HoldReport, HoldStatus, HoldsPage, News, Target};
use super::{Order, Policy};
use crate::event::EventKind;
use crate::store::HostRow;

/// Who said something about a hold, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Policy {
    /// A host of the registry as it stands at the start, before anything else happens.
    pub fn register(&mut self, row: &HostRow, now: Instant, at: Wall) {
        self.guard.advance(now);
        let in_state = at.0.saturating_sub(row.since.0);
        let in_state = Duration::from_millis(u64::try_from(in_state).unwrap_or(0));
        self.guard.register(row, in_state);
    }

    /// Goes on where the controller stopped: all hosts are registered and their held orders restored.
    /// `saved` is what [`Policy::save`] answered last. `Err`: it can't be read, and storms are found again
    /// from what is held alone.
    pub fn resume(&mut self, saved: Option<&str>, at: Wall) -> Result<(), String> {
        self.guard.resume(saved, at)
    }

    /// What must be kept for the next start, if it has changed since it was asked for last.
    pub fn save(&mut self, at: Wall) -> Option<String> {
        self.guard.save(at)
    }

    /// A row changed, or came, or went, otherwise than by [`Policy::take`].
    pub fn changed(&mut self, old: Option<&HostRow>, new: Option<&HostRow>) {
        self.guard.observe(old, new);
        if let (Some(old), None) = (old, new) {
            self.drop_waits(old.id);
        }
    }

    /// Whoever was held as the controller was paused, blind or restarted is judged again, unless
    /// something of that goes on.
    pub fn release_own(&mut self) {
        self.waits.wake();
        self.guard.release_own();
    }

    /// Lets time pass.
    pub fn step(&mut self, now: Instant) {
        self.guard.step(now);
    }

    /// What is to be done by now, in order. `row` answers how a host is recorded.
    pub fn orders<R: Rng + ?Sized>(
        &mut self,
        row: impl Fn(HostId) -> Option<HostRow>,
        at: Wall,
        rng: &mut R,
    ) -> Vec<Order> {
        let mut orders: Vec<Order> =
            std::mem::take(&mut self.also).into_iter().map(|e| Order::Event(Box::new(e))).collect();
        orders
            .extend(std::mem::take(&mut self.parts).into_iter().map(|p| Order::Part(Box::new(p))));
        self.step_waits(&row, at, &mut orders);
        while let Some(news) = self.guard.news() {
            match news {
                News::Release(host) => self.released(host, row(host).as_ref(), at, &mut orders),
                News::Cancel(host, why) => {
                    self.drop_waits(host);
                    orders.push(Order::Cancel(host, why));
                }
                News::Tell(kind, labels, data) => {
                    let event = self.domain_event(kind, &labels, data, at, rng);
                    orders.push(Order::Event(Box::new(event)));
                }
                News::Steady(host) => {
                    let Some(row) = row(host) else { continue };
                    let reason = "it has been steady for long enough".to_owned();
                    let kind = EventKind::HostSteady;
                    let event = self.beside(kind, &row, reason, Map::new(), at, rng);
                    orders.push(Order::Event(Box::new(event)));
                }
            }
        }
        orders
    }

    /// Lets held orders go, by an operator's word. `row` is the host's, if it is one host's.
    pub fn approve<R: Rng + ?Sized>(
        &mut self,
        target: &Target,
        word: &Word,
        row: Option<&HostRow>,
        at: Wall,
        rng: &mut R,
    ) -> HoldReport {
        let held = self.held_before(target, at);
        let mut report = self.guard.approve(target);
        if let Target::Host(host) = target
            && self.hurry_waits(*host)
        {
            report.released = 1;
        }
        let count = report.released + report.queued;
        self.say(EventKind::HoldApproved, "approved", target, word, count, held, row, at, rng);
        report
    }

    /// Has held orders cancelled, by an operator's word.
    pub fn reject<R: Rng + ?Sized>(
        &mut self,
        target: &Target,
        word: &Word,
        row: Option<&HostRow>,
        at: Wall,
        rng: &mut R,
    ) -> HoldReport {
        let held = self.held_before(target, at);
        let words = format!("rejected by {}: {}", word.by, word.reason);
        let mut report = self.guard.reject(target, &words);
        if let Target::Host(host) = target
            && self.drop_waits(*host)
            && report.rejected == 0
        {
            self.guard.cancel(*host, words);
            report.rejected = 1;
        }
        let count = report.rejected;
        self.say(EventKind::HoldRejected, "rejected", target, word, count, held, row, at, rng);
        report
    }

    /// What holds orders of a target now, if something does.
    pub(super) fn held_before(&self, target: &Target, at: Wall) -> Option<String> {
        match target {
            Target::Host(host) => {
                let held = self.guard.hold_of(*host, at).map(|h| h.reason);
                held.or_else(|| self.waits_of(*host, at).into_iter().next().map(|w| w.reason))
            }
            Target::Domain(_) => None,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "who said what of whom, and why")]
    fn say<R: Rng + ?Sized>(
        &mut self,
        kind: EventKind,
        verb: &str,
        target: &Target,
        word: &Word,
        count: u64,
        held: Option<String>,
        row: Option<&HostRow>,
        at: Wall,
        rng: &mut R,
    ) {
        if count == 0 {
            return;
        }
        let mut data = Map::new();
        data.insert("by".to_owned(), json!(word.by));
        data.insert("count".to_owned(), json!(count));
        let said = |what: String| format!("{} {verb} {what}: {}", word.by, word.reason);
        match target {
            Target::Host(_) => {
                let Some(row) = row else { return };
                data.insert("held_for".to_owned(), json!(held));
                let reason = said("its held order".to_owned());
                let event = self.beside(kind, row, reason, data, at, rng);
                self.also.push(event);
            }
            Target::Domain(labels) => {
                let name = self.guard.domain_name(labels).unwrap_or_default();
                let reason = said(format!("{count} held orders in {name}"));
                data.insert("domain".to_owned(), json!(name));
                data.insert("reason".to_owned(), Value::String(reason));
                self.guard.tell_word(kind, labels, data);
            }
        }
    }

    /// A page of what is held, the oldest first: of one domain, or of all. `None`: `after` is no place.
    pub fn holds(
        &self,
        domain: Option<&BTreeMap<String, String>>,
        after: Option<&str>,
        limit: usize,
        at: Wall,
    ) -> Option<HoldsPage> {
        let page = self.guard.page(domain, after, limit, at)?;
        Some(HoldsPage { waits: self.waits_by_rule(at), ..page })
    }

    /// What holds a host's order now, if something does.
    pub fn hold_of(&self, host: HostId, at: Wall) -> Option<HoldStatus> {
        self.guard.hold_of(host, at)
    }

    /// What is held, in figures, and which storms there are.
    pub fn guard_status(&self, at: Wall) -> GuardStatus {
        self.guard.status(at)
    }
}
