//! Whether an action may go now, or is held: storms, flapping, and rates. Pure.
//!
//! Seeing and acting are apart: nothing here changes what a host *is*. Whoever goes down gets an *order*
//! here; the guard lets it pass, or holds it with a reason, and judges it again whenever that reason may
//! have gone. In this order it asks, and the first that objects holds:
//!
//! 1. *Maintenance*: is it being worked on? Such a host counts for nothing, neither as heard nor as silent;
//!    what is ordered of it waits until the window closes.
//! 2. *Own doubt*: is the controller blind, or paused?
//! 3. *Two machines* under one identity: which of them fell silent nobody knows, and the other may still do
//!    its work. It waits until the other is gone for certain, or somebody says so.
//! 4. *Storm*: has too large a share, and number, of the hosts of any of its domains fallen silent? The
//!    fleet is a domain too, with figures of its own: then it may be us.
//! 5. *Flapping*: it acts upon such a host only after it has been down for a while.
//! 6. *Settling*: are others of its domain silent right now? Then this may be the first of many, and it
//!    waits for a moment. So the first few of a dead rack do not slip through before the storm is seen.
//! 7. *Rate*: a token bucket for each of its domains. What waits for a token waits in line.
//!
//! Evidence of a storm are suspects, hosts that wait for their order, and hosts that were acted upon within
//! `storm_window`: a slow cascade adds up. So no more than the threshold less one are ever acted upon in a
//! domain before its storm is seen, however slowly they fall. A domain most of whose silent hosts lie in one
//! smaller domain that is in a storm is in none itself: a dead rack is the rack's matter, not the zone's.
//! What somebody approved, rejected, or what was
//! let go as the storm had become steady, is evidence no more.
//!
//! # Cost
//!
//! A turn costs O(levels · log) whatever else is held. A host without an order costs nothing here; one with
//! an order some 200 bytes, until it is back, or its window has passed. A storm's end judges those that it
//! held again, [`JUDGED_MAX`] in a step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use serde_json::{Map, Value};

use super::domains::{DomainId, Domains};
use super::flaps::Flaps;
use super::maintenance::{Maintenance, WindowId};
use crate::config::{ActionRate, GuardConfig, Threshold};
use crate::event::{Cause, EventKind, State};
use crate::store::HostRow;

mod operator;
mod report;
mod shelter;
mod steps;
mod storms;

pub use operator::{HoldReport, Target};
pub use report::{GuardStatus, HoldKind, HoldStatus, HoldsPage, STORMS_SHOWN_MAX, StormStatus};
use storms::Storm;

/// Orders that are judged again in one step; the rest waits for the next.
pub const JUDGED_MAX: usize = 2_000;
/// Longest wait for others of its domain.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// What holds an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Shelter(WindowId),
    Own,
    Twin,
    Storm(DomainId),
    Flap,
    Settle,
    Rate(DomainId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Acted,
    Held(Why),
    Rejected,
}

/// A host that is down, or reached by others only, and what became of its order.
#[derive(Clone, Debug)]
struct Entry {
    path: Box<[DomainId]>,
    stage: Stage,
    /// Two machines answered under its identity.
    twin: bool,
    /// It counts as evidence of a storm.
    counted: bool,
    /// It has waited for others.
    settled: bool,
    /// Its storm has become steady: what is let go now is not the next storm's evidence.
    excused: bool,
    /// Somebody approved it: only its domain's rate can hold it yet.
    approved: bool,
    /// It was told that it is held for too long.
    overdue: bool,
    /// Between its beats.
    gap: Duration,
    /// When it was held first, or acted upon.
    since: Instant,
    /// When the order was wanted.
    wanted_at: Instant,
    /// When it is looked at again, if time alone matters.
    due: Option<Instant>,
}

/// What the guard has decided.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// Nothing holds this host's order any more.
    Release(HostId),
    /// Somebody rejected it.
    Cancel(HostId, String),
    /// Something to be told, of a domain with these labels.
    Tell(EventKind, BTreeMap<String, String>, Map<String, Value>),
    /// It no longer flaps.
    Steady(HostId),
}

/// Holds of one kind that became overdue.
#[derive(Clone, Debug, Default)]
struct Overdue {
    count: u64,
    tell_at: Instant,
    told_at: Option<Instant>,
}

/// The guard.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    config: GuardConfig,
    domains: Domains,
    pub(super) flaps: Flaps,
    pub(super) maintenance: Maintenance,
    /// Hosts in maintenance, and which window covers each.
    sheltered: BTreeMap<HostId, WindowId>,
    now: Instant,
    /// Why the controller distrusts itself or was told to wait.
    own: Option<String>,
    entries: BTreeMap<HostId, Entry>,
    storms: BTreeMap<DomainId, Storm>,
    /// Orders that each storm holds.
    stormbound: BTreeMap<DomainId, BTreeSet<HostId>>,
    /// Orders that wait for a token, in line.
    lines: BTreeMap<DomainId, VecDeque<HostId>>,
    /// Orders that own doubt holds.
    doubted: BTreeSet<HostId>,
    /// When time alone may change something.
    timers: BTreeSet<(Instant, HostId)>,
    /// To be judged again.
    again: VecDeque<HostId>,
    /// All that is held, the oldest first.
    by_age: BTreeSet<(Instant, HostId)>,
    /// What is older was looked at.
    overdue_until: Option<(Instant, HostId)>,
    overdue: BTreeMap<Why, Overdue>,
    held: [u64; HoldKind::ALL.len()],
    news: VecDeque<News>,
    /// Something that must survive a restart has changed.
    unsaved: bool,
}

/// Whether a host as it stands has an order.
fn is_out(row: &HostRow) -> bool {
    row.state == State::Down
        || (row.state == State::Suspect && row.cause == Some(Cause::Unreachable))
}

fn is_silent(row: &HostRow) -> bool {
    row.cause != Some(Cause::AgentLost)
}

impl Guard {
    pub(super) fn new(config: GuardConfig) -> Self {
        Self {
            domains: Domains::new(&config.trees),
            flaps: Flaps::new(config.flaps),
            maintenance: Maintenance::default(),
            sheltered: BTreeMap::new(),
            config,
            now: Instant(0),
            own: None,
            entries: BTreeMap::new(),
            storms: BTreeMap::new(),
            stormbound: BTreeMap::new(),
            lines: BTreeMap::new(),
            doubted: BTreeSet::new(),
            timers: BTreeSet::new(),
            again: VecDeque::new(),
            by_age: BTreeSet::new(),
            overdue_until: None,
            overdue: BTreeMap::new(),
            held: [0; HoldKind::ALL.len()],
            news: VecDeque::new(),
            unsaved: false,
        }
    }

    /// Time never falls here.
    pub(super) fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Labels that make failure domains.
    pub(super) fn trees(&self) -> &[Vec<String>] {
        &self.config.trees
    }

    /// Whether a host with these labels lies in a domain, other than the fleet, that is in a storm.
    pub(super) fn is_stormy_place(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.storms.is_empty() && self.domains.any_of(labels, |id| self.storms.contains_key(&id))
    }

    /// The controller's own reason to act upon nothing, or none any more.
    pub(super) fn set_own(&mut self, own: Option<String>) {
        self.own = own;
    }

    /// Has all that own doubt held judged again, unless it goes on.
    pub(super) fn release_own(&mut self) {
        if self.own.is_none() {
            self.again.extend(self.doubted.iter());
        }
    }

    /// A host of the registry, at the start. `in_state`: for how long it has stood so.
    pub(super) fn register(&mut self, row: &HostRow, in_state: Duration) {
        let covered = self.maintenance.cover(row.id, &row.labels).map(|w| w.id);
        self.shelter(row.id, covered);
        if covered.is_some() {
            return;
        }
        self.domains.shift(None, Some(row));
        if is_out(row) && in_state < self.config.storm_window {
            self.enter(row, self.now - in_state);
        }
    }

    /// Whether a host's order is held.
    pub(super) fn holds(&self, host: HostId) -> bool {
        self.entries.get(&host).is_some_and(|e| matches!(e.stage, Stage::Held(_)))
    }

    /// An order that was held before a restart, for so long.
    pub(super) fn restore(&mut self, host: HostId, row: Option<&HostRow>, held_for: Duration) {
        match row.filter(|row| is_out(row)) {
            Some(row) => {
                let since = self.now - held_for;
                self.enter(row, since);
                self.stage(host, Stage::Held(Why::Own), since);
                self.wake(host, None);
            }
            // It came back, and the store was not told: let it be judged by what is true now.
            None => self.news.push_back(News::Release(host)),
        }
    }

    /// A row has changed.
    pub(super) fn observe(&mut self, old: Option<&HostRow>, new: Option<&HostRow>) {
        let cover = |row: &HostRow| self.maintenance.cover(row.id, &row.labels).map(|w| w.id);
        let now_by = new.and_then(cover);
        let before_by = old.or(new).and_then(|row| self.shelter(row.id, now_by));
        // Whoever is in maintenance counts for nothing.
        let risen = self
            .domains
            .shift(old.filter(|_| before_by.is_none()), new.filter(|_| now_by.is_none()));
        if let Some(row) = new.filter(|_| before_by != now_by) {
            self.shelter_changed(row, now_by);
        }
        match new.filter(|row| is_out(row)) {
            Some(row) => {
                // Of one whose order is long past only news makes another.
                let news =
                    old.is_none_or(|o| !is_out(o) || (o.state, o.cause) != (row.state, row.cause));
                if news {
                    self.enter(row, self.now);
                    self.look_around(row.id);
                }
                self.set_twin(row);
            }
            None => {
                if let Some(row) = old.or(new) {
                    self.leave(row.id, true);
                }
            }
        }
        if new.is_none()
            && let Some(row) = old
        {
            self.flaps.forget(row.id);
        }
        for id in risen.unwrap_or_default().into_iter().rev() {
            self.look_for_storm(id);
        }
    }

    /// A host falls silent for good: it is evidence from now on.
    fn enter(&mut self, row: &HostRow, since: Instant) {
        let (host, window) = (row.id, self.config.storm_window);
        if !self.entries.contains_key(&host) {
            let path = self.domains.path(&row.labels).into_boxed_slice();
            self.domains.hold(&path);
            let entry = Entry {
                path,
                stage: Stage::Acted,
                twin: row.duplicate,
                counted: false,
                settled: false,
                excused: false,
                approved: false,
                overdue: false,
                gap: Duration::ZERO,
                since,
                wanted_at: since,
                due: None,
            };
            self.entries.insert(host, entry);
            self.wake(host, Some(since + window));
        }
        self.count(host, is_silent(row) && !self.sheltered.contains_key(&host));
    }

    /// Whether two machines answer under its identity. If that is over, its order is judged again.
    fn set_twin(&mut self, row: &HostRow) {
        let Some(entry) = self.entries.get_mut(&row.id) else { return };
        entry.twin = row.duplicate;
        if !row.duplicate && entry.stage == Stage::Held(Why::Twin) {
            self.again.push_back(row.id);
        }
    }

    fn look_around(&mut self, host: HostId) {
        let path = self.entries.get(&host).map(|e| e.path.clone()).unwrap_or_default();
        // The smallest first: it may explain the larger ones.
        path.iter().rev().for_each(|id| self.look_for_storm(*id));
    }

    fn is_stormy(&self, path: &[DomainId]) -> bool {
        path.iter().any(|id| self.storms.contains_key(id))
    }

    /// It is back, or gone, or long past.
    fn leave(&mut self, host: HostId, changed: bool) {
        if !self.entries.contains_key(&host) {
            return;
        }
        self.stage(host, Stage::Acted, self.now);
        let counted = !self.sheltered.contains_key(&host);
        self.count(host, false);
        self.wake(host, None);
        if let Some(entry) = self.entries.remove(&host) {
            for id in &entry.path {
                if let Some(storm) = self.storms.get_mut(id).filter(|_| changed && counted) {
                    storm.changed = self.now;
                }
            }
            self.domains.release(&entry.path);
        }
    }

    fn count(&mut self, host: HostId, counts: bool) {
        let Some(entry) = self.entries.get_mut(&host).filter(|e| e.counted != counts) else {
            return;
        };
        entry.counted = counts;
        for id in &entry.path {
            let Some(domain) = self.domains.get_mut(*id) else { continue };
            domain.counted = domain.counted.saturating_add_signed(if counts { 1 } else { -1 });
            if let Some(storm) = self.storms.get_mut(id).filter(|_| counts) {
                storm.changed = self.now;
            }
        }
    }

    fn wake(&mut self, host: HostId, at: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&host) else { return };
        if let Some(old) = std::mem::replace(&mut entry.due, at) {
            self.timers.remove(&(old, host));
        }
        if let Some(at) = at {
            self.timers.insert((at, host));
        }
    }

    /// Moves an order to another stage, with all that hangs on it. `since` is when a hold begins; one that
    /// goes on for another reason keeps its age.
    fn stage(&mut self, host: HostId, stage: Stage, since: Instant) {
        let Some(entry) = self.entries.get_mut(&host) else { return };
        let before = std::mem::replace(&mut entry.stage, stage);
        match before {
            Stage::Held(why) => {
                self.held[HoldKind::of(why) as usize] -= 1;
                match why {
                    Why::Own => drop(self.doubted.remove(&host)),
                    Why::Storm(id) => {
                        if let Some(bound) = self.stormbound.get_mut(&id) {
                            bound.remove(&host);
                            if bound.is_empty() {
                                self.stormbound.remove(&id);
                            }
                        }
                    }
                    // Of a line it is passed over when its turn comes.
                    Why::Rate(_) | Why::Flap | Why::Settle | Why::Shelter(_) | Why::Twin => {}
                }
            }
            Stage::Acted | Stage::Rejected => {
                entry.since = since;
                entry.overdue = false;
            }
        }
        let (was, is) = (matches!(before, Stage::Held(_)), matches!(stage, Stage::Held(_)));
        if is
            && matches!(before, Stage::Held(Why::Shelter(_)))
            && !matches!(stage, Stage::Held(Why::Shelter(_)))
        {
            // Nobody is late with what had to wait for the end of a window: its age begins here.
            self.by_age.remove(&(entry.since, host));
            entry.since = self.now;
            self.by_age.insert((entry.since, host));
        }
        if was != is {
            if is {
                self.by_age.insert((entry.since, host));
            } else {
                self.by_age.remove(&(entry.since, host));
                entry.since = since;
            }
            for id in &entry.path {
                if let Some(domain) = self.domains.get_mut(*id) {
                    domain.held = domain.held.saturating_add_signed(if is { 1 } else { -1 });
                }
            }
        }
        let Stage::Held(why) = stage else { return };
        self.held[HoldKind::of(why) as usize] += 1;
        match why {
            Why::Own => drop(self.doubted.insert(host)),
            Why::Storm(id) => drop(self.stormbound.entry(id).or_default().insert(host)),
            Why::Rate(id) => self.lines.entry(id).or_default().push_back(host),
            Why::Flap | Why::Settle | Why::Shelter(_) | Why::Twin => {}
        }
    }

    /// A host that is out wants its order now. `None`: let it go; else why it is held.
    pub(super) fn order(&mut self, host: HostId, gap: Duration) -> Option<String> {
        let now = self.now;
        let entry = self.entries.get_mut(&host)?;
        (entry.gap, entry.wanted_at) = (gap, now);
        (entry.settled, entry.approved, entry.excused) = (false, false, false);
        match self.judge(host, None) {
            Ok(()) => {
                self.acted(host);
                None
            }
            Err(why) => {
                self.hold(host, why);
                Some(self.words(host, why))
            }
        }
    }

    /// The order of a host that has been out for a while goes only now, as a rule delayed it: judged as if it
    /// fell now, and evidence from now on. What holds the host already holds this too.
    pub(super) fn order_again(&mut self, row: &HostRow, gap: Duration) -> Option<String> {
        let host = row.id;
        if let Some(Stage::Held(why)) = self.entries.get(&host).map(|e| e.stage) {
            return Some(self.words(host, why));
        }
        self.enter(row, self.now);
        self.look_around(host);
        let entry = self.entries.get_mut(&host)?;
        (entry.gap, entry.settled) = (gap, false);
        match self.judge(host, None) {
            Ok(()) => {
                self.acted(host);
                None
            }
            Err(why) => {
                self.hold(host, why);
                Some(self.words(host, why))
            }
        }
    }

    fn hold(&mut self, host: HostId, why: Why) {
        let Some(entry) = self.entries.get_mut(&host) else { return };
        if matches!(why, Why::Storm(_) | Why::Own) {
            entry.excused = false;
        }
        let due = match why {
            Why::Settle => Some(self.now + self.config.settle.max(entry.gap).min(SETTLE_MAX)),
            Why::Flap => Some(entry.wanted_at + self.config.flaps.act_after),
            Why::Shelter(_) | Why::Own | Why::Twin | Why::Storm(_) | Why::Rate(_) => None,
        };
        self.stage(host, Stage::Held(why), self.now);
        self.wake(host, due);
    }

    /// Whether an order may go. `turn`: it stands first in that domain's line.
    fn judge(&mut self, host: HostId, turn: Option<DomainId>) -> Result<(), Why> {
        let Some(entry) = self.entries.get(&host) else { return Ok(()) };
        if !entry.approved {
            if let Some(by) = self.sheltered.get(&host) {
                return Err(Why::Shelter(*by));
            }
            if self.own.is_some() {
                return Err(Why::Own);
            }
            if entry.twin {
                return Err(Why::Twin);
            }
            if let Some(id) = entry.path.iter().find(|id| self.storms.contains_key(id)) {
                return Err(Why::Storm(*id));
            }
            let patience = self.config.flaps.act_after;
            if self.flaps.is_flapping(host) && self.now < entry.wanted_at + patience {
                return Err(Why::Flap);
            }
            if !entry.settled && !self.config.settle.is_zero() && self.is_brewing(entry) {
                return Err(Why::Settle);
            }
        }
        for id in &entry.path {
            let ahead = turn != Some(*id) && self.lines.get(id).is_some_and(|l| !l.is_empty());
            if ahead || !self.has_token(*id) {
                return Err(Why::Rate(*id));
            }
        }
        let path = entry.path.clone();
        path.iter().for_each(|id| self.take_token(*id));
        Ok(())
    }

    /// Whether others of one of its domains are silent now: a quarter of a storm is enough.
    fn is_brewing(&self, entry: &Entry) -> bool {
        entry.path.iter().any(|id| {
            let Some(domain) = self.domains.get(*id) else { return false };
            let limit = self.threshold(*id);
            let others = domain.silent().saturating_sub(u32::from(entry.counted));
            limit.hosts > 0
                && others > 0
                && f64::from(others) * 4.0 >= limit.share * f64::from(domain.base())
        })
    }

    fn threshold(&self, id: DomainId) -> Threshold {
        if id == DomainId::FLEET { self.config.fleet } else { self.config.storm }
    }

    fn rate(&self, id: DomainId) -> ActionRate {
        if id == DomainId::FLEET { self.config.fleet_rate } else { self.config.rate }
    }

    /// The generic cell rate algorithm (ITU-T I.371): one instant says how full a bucket is.
    fn has_token(&self, id: DomainId) -> bool {
        let rate = self.rate(id);
        let Some(domain) = self.domains.get(id).filter(|_| rate.per_minute > 0) else {
            return true;
        };
        let ahead = per_action(rate.per_minute) * (rate.burst - 1);
        domain.action_due - ahead <= self.now
    }

    fn take_token(&mut self, id: DomainId) {
        let (rate, now) = (self.rate(id), self.now);
        if rate.per_minute > 0
            && let Some(domain) = self.domains.get_mut(id)
        {
            domain.action_due = domain.action_due.max(now) + per_action(rate.per_minute);
        }
    }

    /// Judges a held order again.
    fn rejudge(&mut self, host: HostId, turn: Option<DomainId>) {
        let Some(entry) = self.entries.get(&host) else { return };
        if !matches!(entry.stage, Stage::Held(_)) {
            return;
        }
        // Those that left, and so count no more, may have made it a storm.
        self.look_around(host);
        match self.judge(host, turn) {
            Ok(()) => self.let_go(host),
            Err(why) => self.hold(host, why),
        }
    }

    fn let_go(&mut self, host: HostId) {
        self.acted(host);
        self.news.push_back(News::Release(host));
        if self.entries.get(&host).is_some_and(|e| e.excused || e.approved) {
            self.leave(host, false);
        }
    }

    /// It is evidence for a while yet.
    fn acted(&mut self, host: HostId) {
        self.stage(host, Stage::Acted, self.now);
        self.wake(host, Some(self.now + self.config.storm_window));
    }

    /// What was decided and not asked for yet.
    pub(super) fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }
}

impl Why {
    fn domain(self) -> Option<DomainId> {
        match self {
            Self::Storm(id) | Self::Rate(id) => Some(id),
            Self::Shelter(_) | Self::Own | Self::Twin | Self::Flap | Self::Settle => None,
        }
    }
}

/// The time that one action takes up of so many a minute.
pub(super) fn per_action(per_minute: u32) -> Duration {
    Duration::from_secs(60) / per_minute.max(1)
}

#[cfg(test)]
mod tests;
