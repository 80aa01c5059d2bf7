//! Two machines under one identity: when that is over, and what is known of the other one.
//!
//! That there are two is seen where proofs of life are taken ([`super::observe`]). It is over when the other
//! has been silent for [`DUPLICATE_WINDOW`], which the next proof of life tells, or, of a host that has died
//! meanwhile, time itself; when the keys that the other may have are believed no more; and when an operator
//! says so. Until then what is ordered of the host is held (`policy/guard.rs`).

use heartwatch_common::id::Boot;
use heartwatch_common::time::Instant;

use super::host::{DUPLICATE, Evidence, OneLeft, Transition, Turn};
use super::{DUPLICATE_WINDOW, Detector};
use crate::control::TwinWhy;

impl Detector {
    /// Until when the other of two machines may come back; `None`: there are no two.
    pub(super) fn twin_until(&self, slot: u32) -> Option<Instant> {
        let twin = self.host(slot).is(DUPLICATE);
        twin.then(|| self.rare.get(&slot).map_or(Instant(0), |r| r.other_until))
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
        if self.host(slot).state == crate::event::State::Down {
            let forget = now + self.settings.forget_after;
            self.host_mut(slot).until = forget;
            self.file(slot, forget);
        }
    }

    fn forget_other(&mut self, slot: u32) {
        self.host_mut(slot).flag(DUPLICATE, false);
        if let Some(excused) = self.rare.remove(&slot).and_then(|r| r.excused) {
            self.rare.entry(slot).or_default().excused = Some(excused);
        }
    }

    /// Keys of before are believed no more: whichever machine proves itself next is the one that was given a
    /// new one, and the other cannot come back. Until then nothing is known of either.
    pub fn rekeyed(&mut self, slot: u32) {
        if let Some(rare) = self.rare.get_mut(&slot) {
            (rare.other_until, rare.turns) = (Instant(0), 0);
            (rare.other_boot, rare.other_address) = Default::default();
        }
    }

    /// What is known of the other machine, for people; `None`: there are no two.
    pub(super) fn twin(&self, slot: u32, now: Instant) -> Option<TwinWhy> {
        let over = self.twin_until(slot)?;
        // Of one from before our start nothing is known but that it was there.
        let other = self.rare.get(&slot).filter(|r| r.other_boot != Boot(0));
        let millis = |span: std::time::Duration| span.as_millis() as u64;
        Some(TwinWhy {
            boot: other.map(|r| r.other_boot),
            address: other.and_then(|r| r.other_address.get()),
            silence_ms: other.map(|r| millis(now.since(r.other_until - DUPLICATE_WINDOW))),
            over_in_ms: millis(over.since(now)),
        })
    }
}
