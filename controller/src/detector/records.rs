//! The hosts themselves: who is tracked, where each record stands, what labels and operators make of it.

use std::hash::BuildHasher;
use std::ops::Range;
use std::time::Duration;

use hashbrown::DefaultHashBuilder;
use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;

use super::confirm;
use super::host::{Host, Known, Rare};
use super::knobs::Profile;
use super::timeout::{GroupId, Patience};
use super::{DUPLICATE_WINDOW, Detector, HOSTS_MAX, SUSPECT_TOLERANCE};
use crate::event::State;
use crate::ingest::admit::{Newest, Past};
use crate::intervals::CLASSES_MAX;
use crate::view::LiveId;

/// Datagrams whose records are fetched together, one such group ahead.
///
/// Together, in a loop that does nothing else: of a million hosts hardly a page is in the processor's table
/// of pages, and a fetch is not over for it before the page is found. Fetches between which there are
/// hundreds of instructions wait for that one after the other; these wait side by side. And into the second
/// cache: a processor has some twenty lines on their way to the first at a time, and there are those that
/// drop what is asked of them beyond that.
const GROUP: usize = 16;
/// So many datagrams ahead its record is fetched into the first cache, and what else a beat needs.
const NEAR: usize = 8;
/// So many ahead is a line of the index fetched: what it says is read for a group, up to two groups ahead.
const LINES: usize = 2 * GROUP + NEAR;

/// What is known ahead of a batch of datagrams; see [`Detector::look_at`].
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    hashes: Vec<u64>,
    /// Guesses, as far as they were made.
    slots: Vec<u32>,
    /// Datagrams of which all is fetched that a beat needs.
    near: usize,
}

/// A number from 0 to 1 that is a host's own.
fn share_of(id: HostId) -> f64 {
    let spread = u32::from_be_bytes([id.0[12], id.0[13], id.0[14], id.0[15]]);
    f64::from(spread) / f64::from(u32::MAX)
}

/// What there is of a range.
fn some<T>(all: &[T], range: Range<usize>) -> &[T] {
    all.get(range.start..range.end.min(all.len())).unwrap_or_default()
}

/// As one number: bytes are hashed with their length, and by a loop over them.
#[inline]
fn hash_of(hashes: &DefaultHashBuilder, id: HostId) -> u64 {
    hashes.hash_one(u128::from_ne_bytes(id.0))
}

impl Detector {
    /// Takes what a host's labels make of it.
    pub fn set_profile(&mut self, slot: u32, profile: Profile) {
        let group = self.group(profile.group);
        let knobs = profile.knobs.min((self.knobs.len() - 1) as u8);
        self.count(slot, |alive, one| alive - one);
        let h = self.host_mut(slot);
        (h.group, h.knobs) = (group, knobs);
        h.class = profile.class.min((CLASSES_MAX - 1) as u8);
        self.count(slot, |alive, one| alive + one);
        self.hasten(slot);
    }

    fn group(&mut self, name: u64) -> GroupId {
        if name == 0 {
            return GroupId(0);
        }
        if let Some(known) = self.groups.get(&name) {
            return *known;
        }
        let group = self.siblings.add_group();
        // Names beyond the last group are not remembered: whoever invents labels gets no memory for it.
        if group != GroupId(0) {
            self.groups.insert(name, group);
        }
        group
    }

    /// Keeps a host's margin where an operator wants it, or lets it learn again. It holds from the
    /// present deadline on.
    pub fn freeze(&mut self, slot: u32, margin: Option<Duration>) {
        self.host_mut(slot).freeze(margin);
        self.hasten(slot);
    }

    /// Counts a host in or out of those alive under its knobs, and of those of its class that may beat.
    pub(super) fn count(&mut self, slot: u32, change: impl Fn(u64, u64) -> u64) {
        let h = self.hosts.get(slot).expect("slot is live: the index owns it");
        let alive = &mut self.knobs[usize::from(h.knobs)].alive;
        *alive = change(*alive, u64::from(h.state == State::Alive));
        let may_beat = h.state.may_beat();
        let class = &mut self.classes[usize::from(h.class)];
        *class = change(*class, u64::from(may_beat));
    }

    /// The slot of a host.
    #[inline]
    pub fn slot(&self, id: HostId) -> Option<u32> {
        let is_it = |slot| self.hosts.get(slot).is_some_and(|h| h.id == id);
        self.index.find(self.hash(id), is_it)
    }

    /// The slot of the host that datagram `i` of the batch names.
    #[inline]
    pub fn slot_ahead(&self, i: usize, id: HostId, ahead: &Ahead) -> Option<u32> {
        let guess = ahead.slots.get(i).copied();
        guess.filter(|s| self.hosts.get(*s).is_some_and(|h| h.id == id)).or_else(|| self.slot(id))
    }

    #[inline]
    fn hash(&self, id: HostId) -> u64 {
        hash_of(&self.hashes, id)
    }

    /// Begins with a batch of datagrams of these hosts; `None` if one names no host.
    pub fn look_at(&self, ids: impl Iterator<Item = Option<HostId>>, ahead: &mut Ahead) {
        ahead.hashes.clear();
        ahead.slots.clear();
        ahead.hashes.extend(ids.map(|id| id.map_or(0, |id| self.hash(id))));
        ahead.near = 0;
        for hash in some(&ahead.hashes, 0..LINES) {
            self.index.prefetch(*hash);
        }
        self.fetch_records(GROUP, ahead);
    }

    /// Has fetched what datagrams after number `i` of the batch will need. To be called for each in turn.
    #[inline]
    pub fn look_ahead(&self, i: usize, ahead: &mut Ahead) {
        if i.is_multiple_of(GROUP) {
            self.fetch_records(i + 2 * GROUP, ahead);
        }
        if let Some(hash) = ahead.hashes.get(i + LINES) {
            self.index.prefetch(*hash);
        }
        // The first of a batch are not all fetched at once, either.
        let end = (2 * i + 2).min(i + NEAR);
        for slot in some(&ahead.slots, ahead.near..end) {
            self.hosts.prefetch_beat(*slot);
            self.rows.prefetch(*slot);
        }
        ahead.near = end;
    }

    /// Guesses slots, and has their records fetched, up to datagram number `end`.
    #[inline(never)]
    fn fetch_records(&self, end: usize, ahead: &mut Ahead) {
        let first = ahead.slots.len();
        for hash in some(&ahead.hashes, first..end) {
            ahead.slots.push(self.index.candidate(*hash).unwrap_or(u32::MAX));
        }
        for slot in some(&ahead.slots, first..end) {
            self.hosts.prefetch_far(*slot);
        }
    }

    #[inline]
    pub(super) fn host(&self, slot: u32) -> &Host {
        self.hosts.get(slot).expect("slot is live: the index owns it")
    }

    #[inline]
    pub(super) fn host_mut(&mut self, slot: u32) -> &mut Host {
        self.hosts.get_mut(slot).expect("slot is live: the index owns it")
    }

    /// A host's record; for the shard.
    #[inline]
    pub(crate) fn record(&mut self, slot: u32) -> &mut Host {
        self.host_mut(slot)
    }

    /// Where a host's live figures are published.
    pub(crate) fn live_of(&self, slot: u32) -> LiveId {
        self.hosts.id(slot)
    }

    /// When a host was last heard, since the start.
    pub fn last_arrival(&self, host: HostId) -> Option<Instant> {
        self.host(self.slot(host)?).last_arrival()
    }

    /// What a host has proved in the life that is known.
    #[inline]
    pub fn newest(&self, slot: u32) -> Newest {
        self.awake(self.host(slot).newest())
    }

    /// Baselines are kept as if our clock had never stood still: otherwise a recording that is as old as a
    /// suspend was long would look fresh.
    #[inline]
    pub(super) fn awake(&self, mut newest: Newest) -> Newest {
        let asleep = self.asleep_ns as i64;
        newest.baseline_ns = newest.baseline_ns.map(|b| b.wrapping_sub(asleep));
        newest
    }

    /// What else it has proved.
    pub fn past(&self, slot: u32) -> Past {
        self.host(slot).past()
    }

    /// How far off the usual a datagram's time may be to prove life: `timeout_max`; but for a suspect or
    /// down host no more than a second. What somebody kept from us and sends now would
    /// otherwise revive the dead for a moment; a live host that is only slow answers the challenge.
    #[inline]
    pub fn tolerance(&self, slot: u32) -> Duration {
        match self.host(slot).state {
            State::Suspect | State::Down => SUSPECT_TOLERANCE.min(self.patience(slot).max()),
            _ => self.patience(slot).max(),
        }
    }

    pub(super) fn patience(&self, slot: u32) -> &Patience {
        &self.knobs[usize::from(self.host(slot).knobs)].patience
    }

    /// Registers a host, or answers the slot that it has. `None`: [`HOSTS_MAX`] are tracked, or there is no
    /// place in the live table.
    ///
    /// One that was alive or suspect gets a fresh deadline behind `restart_grace`, spread by its id, so that
    /// a restart of the controller neither convicts in its own shadow nor judges all at once.
    pub fn register(&mut self, known: Known, now: Instant) -> Option<u32> {
        if let Some(slot) = self.slot(known.id) {
            self.hosts.give_back(known.live, Some(slot));
            return Some(slot);
        }
        if self.index.len() >= HOSTS_MAX {
            self.hosts.give_back(known.live, None);
            return None;
        }
        let s = &self.settings;
        let due = match known.state {
            State::Alive | State::Suspect | State::Duplicate => {
                Some(now + self.grace_of(known.id, Duration::ZERO))
            }
            State::Pending if known.missing_reported => None,
            // The grace at least, should the wall clock by which `in_state` was told be wrong.
            State::Pending => {
                let left = s.missing_after.saturating_sub(known.in_state);
                Some(now + left.max(s.restart_grace.min(s.missing_after)))
            }
            State::Left if known.back_in.is_some() => {
                // Its chance at least, if that was while we were away.
                let left = known.back_in.unwrap_or_default() + s.leave_grace;
                Some(now + left.max(self.grace_of(known.id, Duration::ZERO)))
            }
            State::Down | State::Left => {
                let left = s.forget_after.saturating_sub(known.in_state);
                let left = left.max(s.restart_grace.min(s.forget_after));
                let twin = known.duplicate && known.state == State::Down;
                Some(now + if twin { DUPLICATE_WINDOW } else { left })
            }
        };
        let hash = self.hash(known.id);
        let slot = self.hosts.add(Host::new(&known, due, now), known.live)?;
        let Self { index, hosts, hashes, .. } = self;
        index.insert(hash, slot, |slot| hosts.get(slot).map_or(0, |h| hash_of(hashes, h.id)));
        if known.duplicate {
            let other_until = now + DUPLICATE_WINDOW;
            self.rare.insert(slot, Rare { other_until, ..Rare::default() });
        }
        self.count(slot, |alive, one| alive + one);
        self.set_profile(slot, known.profile);
        if let Some(due) = due {
            self.file(slot, due);
        }
        if known.agent_lost && known.state == State::Down {
            // Not all at one moment, as after each.
            let spread = confirm::LOST_EVERY.mul_f64(share_of(known.id));
            self.confirm.watch_lost(slot, now + spread, now);
        }
        Some(slot)
    }

    /// How long a host that was alive before our start may stay silent, if its beats are `gap` apart: for
    /// `restart_grace` or one and a half of its gaps, whichever is longer, and up to an eighth longer, so
    /// that not all are looked at in one moment.
    fn grace_of(&self, id: HostId, gap: Duration) -> Duration {
        let least = self.settings.grace_for(gap);
        least + (least / 8).mul_f64(share_of(id))
    }

    /// Until when a host that has proved nothing since our start is not judged: its grace counts from when
    /// we began to listen, however long it took to load the registry. How far apart its beats are is known
    /// as far as the shard has told.
    pub(super) fn fair_chance(&self, slot: u32) -> Option<Instant> {
        let h = self.host(slot);
        h.last_arrival().is_none().then(|| self.begun + self.grace_of(h.id, h.gap()))
    }

    /// A host that was alive before our start, and has proved nothing since, has sent something authentic
    /// that proves no life yet; `gap` is when its next beat is due. Either it was asked for proof just now,
    /// or we could not ask yet: we owe it the time in which that next beat must come. But not beyond
    /// `doubt_max` after we began to listen: somebody who plays recordings of a dead host gains no more.
    pub fn await_proof(&mut self, slot: u32, gap: Duration, now: Instant) {
        let h = self.host(slot);
        if h.state != State::Alive || h.last_arrival().is_some() {
            return;
        }
        let owed = now + gap.min(self.settings.gap_max) + self.margin(h).0;
        let until = owed.min(self.begun + self.settings.doubt_max);
        // It is filed for an earlier look, which will find that it is not over.
        let h = self.host_mut(slot);
        h.until = h.until.max(until);
    }

    /// Forgets a host. `false` if it was not tracked.
    pub fn remove(&mut self, id: HostId) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        self.index.remove(self.hash(id), slot);
        self.rows.unfile(slot);
        self.confirm.end(slot);
        self.rare.remove(&slot);
        self.count(slot, |alive, one| alive - one);
        self.hosts.take(slot)
    }

    /// When a host's patience ends.
    pub(crate) fn deadline(&self, slot: u32) -> Instant {
        self.host(slot).deadline(self.patience(slot))
    }

    /// Has a host looked at no later than `at`.
    #[inline]
    pub(super) fn file(&mut self, slot: u32, at: Instant) {
        self.rows.file(slot, at, self.clock);
    }

    /// Has an alive host looked at by `deadline`, and not before its next beat is `expected`: a look before
    /// that would find nothing but that it is, and would have to fetch the record for it. Now it is at hand.
    #[inline]
    pub(super) fn file_well(&mut self, slot: u32, expected: Instant, deadline: Instant) {
        if !self.rows.is_due_within(slot, expected, deadline) {
            self.file(slot, deadline);
        }
    }

    /// Has an alive host whose deadline changed looked at in time.
    fn hasten(&mut self, slot: u32) {
        let h = self.host(slot);
        if h.state == State::Alive && h.last_arrival().is_some() {
            let deadline = self.deadline(slot);
            self.rows.hasten(slot, deadline, self.clock);
        }
    }
}
