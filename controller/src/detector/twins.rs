//! Two machines under one identity: when that is over, and what is known of the other one.
//!
//! That there are two is seen where proofs of life are taken ([`super::observe`]). It is over when the other
//! has been silent for [`DUPLICATE_WINDOW`], which the next proof of life tells, or, of a host that has died
//! meanwhile, time itself; when the keys that the other may have are believed no more; and when an operator
//! says so. Until then what is ordered of the host is held (`policy/guard.rs`).
//!
//! A goodbye is of one machine and says nothing of the other, which may run what failover would start
//! elsewhere, or may have died while the beats of the one that leaves hid it. So it ends the watch over the
//! one that says it: the identity is expected to be heard from the other from then on, and is suspect and
//! down if it is not. That takes the one that left for the other of the two, so that what is ordered is held
//! for [`DUPLICATE_WINDOW`] from its goodbye on: its agent has ended, the machine need not have.

use heartwatch_common::id::Boot;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{Leave, Stamp};

use super::host::{Address, DUPLICATE, Evidence, HELLO_WANTED, OneLeft, Rare, Transition, Turn};
use super::{DUPLICATE_WINDOW, Detector};
use crate::control::TwinWhy;
use crate::event::State;
use crate::ingest::admit::Newest;

impl Rare {
    /// Whether a life that is newer than all, heard at `from`, is that of the machine that was heard last, at
    /// `old`: it is where that one was, and the other was elsewhere. Two behind one address cannot be told
    /// apart so, nor one that has moved.
    pub(super) fn is_restart(&self, old: Address, from: Address) -> bool {
        let ip = |address: Address| address.get().map(|a| a.ip());
        let other = ip(self.other_address);
        self.other_life.boot != Boot(0)
            && ip(from)
                .is_some_and(|from| ip(old) == Some(from) && other.is_some_and(|o| o != from))
    }
}

impl Detector {
    /// Until when the other of two machines may come back: while it has not been silent for
    /// [`DUPLICATE_WINDOW`], or has said that it would be back. Zero: it can't. `None`: there are no two.
    pub(super) fn twin_until(&self, slot: u32) -> Option<Instant> {
        let twin = self.host(slot).is(DUPLICATE);
        twin.then(|| match self.rare.get(&slot) {
            Some(rare) if rare.other_until > Instant(0) => rare.other_until.max(rare.other_back),
            _ => Instant(0),
        })
    }

    /// A dead host's other machine has been silent for long enough too: what is left is one, and that is
    /// dead. It is forgotten `forget_after` from now, which is a few minutes late.
    pub(super) fn outlast(&mut self, slot: u32, now: Instant) -> Transition {
        let left = match self.twin_until(slot) {
            Some(Instant(0)) => OneLeft::Rekeyed,
            _ => OneLeft::Silent,
        };
        self.forget_other(slot);
        let forget = now + self.settings.forget_after;
        self.host_mut(slot).until = forget;
        self.file(slot, forget);
        self.turn(slot, Turn::Single(left), now, Evidence::default())
    }

    /// An operator says that one machine is left: the other is forgotten at once, and nothing is told of it.
    /// Should it be heard again, the two are told anew.
    pub fn single_out(&mut self, slot: u32, now: Instant) {
        if !self.host(slot).is(DUPLICATE) {
            return;
        }
        self.forget_other(slot);
        if self.host(slot).state == State::Down {
            let forget = now + self.settings.forget_after;
            self.host_mut(slot).until = forget;
            self.file(slot, forget);
        }
    }

    /// Whether the other of two machines has neither said goodbye nor been silent for [`DUPLICATE_WINDOW`].
    pub(super) fn may_other_live(&self, slot: u32) -> bool {
        let other = self.rare.get(&slot).filter(|r| r.other_until > Instant(0) && !r.other_left);
        self.host(slot).is(DUPLICATE) && other.is_some()
    }

    /// The machine that was heard last says goodbye: the other is expected from now on.
    ///
    /// Where that one stood with its numbers and its clock is known, so that its next beat proves life. It
    /// has two gaps for it: one beat of it may have come in vain, while the other life was the known one. Of
    /// one from before our start nothing is known: it is no life and has no address until it is heard, and
    /// its time is that of a host after our start.
    pub(super) fn leave_to_other(
        &mut self,
        slot: u32,
        leave: &Leave,
        arrival: Instant,
        turns: &mut Vec<Transition>,
    ) {
        let back = self.back(leave, arrival);
        let grace = self.settings.restart_grace;
        let Self { hosts, rare, .. } = self;
        let h = hosts.get_mut(slot).expect("slot is live: the index owns it");
        let other = rare.entry(slot).or_default();
        let (gone, at) = (h.newest(), h.address);
        let life = other.other_life;
        (h.boot, h.seq, h.sent) = (life.boot, life.seq, life.sent);
        h.address = other.other_address;
        h.learned.base(life.baseline_ns);
        let unheard = life.boot == Boot(0);
        h.hear(if unheard { Instant(0) } else { other.other_until - DUPLICATE_WINDOW });
        let two = h.gap() * 2;
        h.expected = arrival + if unheard { two.max(grace) } else { two };
        h.flag(HELLO_WANTED, true);
        (other.other_life, other.other_address) = (gone, at);
        (other.other_until, other.other_left) = (arrival + DUPLICATE_WINDOW, true);
        other.other_back = back;
        let deadline = self.host(slot).expected + self.margin(self.host(slot)).0;
        self.host_mut(slot).until = deadline;
        self.file(slot, deadline);
        if life.boot != gone.boot && !unheard {
            turns.push(self.turn(slot, Turn::Restarted, arrival, Evidence::default()));
        }
    }

    /// What the other of two machines has proved, by which a goodbye of it is known: whoever says that
    /// answers no challenge any more.
    pub fn other_newest(&self, slot: u32) -> Option<Newest> {
        let rare = self.rare.get(&slot).filter(|_| self.host(slot).is(DUPLICATE))?;
        Some(self.awake(rare.other_life))
    }

    /// Takes a goodbye of the other of two machines: nothing changes for the one that was heard last.
    pub fn leave_other(&mut self, slot: u32, leave: &Leave, stamp: &Stamp, arrival: Instant) {
        let back = self.back(leave, arrival);
        let Some(rare) = self.rare.get_mut(&slot) else { return };
        (rare.other_life.seq, rare.other_life.sent) = (stamp.seq, stamp.sent);
        (rare.other_left, rare.other_until) = (true, arrival + DUPLICATE_WINDOW);
        rare.other_back = back;
        let until = self.twin_until(slot).unwrap_or_default();
        let h = self.host_mut(slot);
        if h.state == State::Down {
            // It is filed for an earlier look, which will find that it is not over.
            h.until = h.until.max(until);
        }
    }

    /// When whoever says this goodbye is back at the latest; zero: it does not say.
    fn back(&self, leave: &Leave, arrival: Instant) -> Instant {
        let expected = leave.expected.min(self.settings.leave_max);
        if expected.is_zero() { Instant(0) } else { arrival + expected + self.settings.leave_grace }
    }

    fn forget_other(&mut self, slot: u32) {
        self.host_mut(slot).flag(DUPLICATE, false);
        self.rare.remove(&slot);
    }

    /// Keys of before are believed no more: whichever machine proves itself next is the one that was given a
    /// new one, and the other cannot come back. Until then nothing is known of either.
    pub fn rekeyed(&mut self, slot: u32) {
        if let Some(rare) = self.rare.get_mut(&slot) {
            (rare.other_until, rare.turns) = (Instant(0), 0);
            (rare.other_life, rare.other_address) = Default::default();
            (rare.other_left, rare.other_back) = (false, Instant(0));
        }
    }

    /// What is known of the other machine, for people; `None`: there are no two.
    pub(super) fn twin(&self, slot: u32, now: Instant) -> Option<TwinWhy> {
        let over = self.twin_until(slot)?;
        // Of one from before our start nothing is known but that it was there.
        let other = self.rare.get(&slot).filter(|r| r.other_life.boot != Boot(0));
        let millis = |span: std::time::Duration| span.as_millis() as u64;
        Some(TwinWhy {
            boot: other.map(|r| r.other_life.boot),
            address: other.and_then(|r| r.other_address.get()),
            silence_ms: other.map(|r| millis(now.since(r.other_until - DUPLICATE_WINDOW))),
            over_in_ms: millis(over.since(now)),
            left: other.is_some_and(|r| r.other_left),
        })
    }
}
