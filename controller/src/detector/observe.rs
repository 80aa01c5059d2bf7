//! What a proof of life does to its host: nearly always little, and then as little as can be.
//!
//! A beat of a host that is alive, in the life and from the address that are known, makes no turn. It is
//! told from all others by one look at the record ([`Host::is_usual`]) and takes a way of its own, which
//! builds no evidence, asks no side table and changes no count. What such a beat teaches is the same on
//! both ways: [`Host::learn_from`] and [`Host::follow`] are the only places that do it.

use heartwatch_common::id::Boot;
use heartwatch_common::time::{Instant, micros, nanos};

use super::host::{
    AWAITED, Address, DUPLICATE, EXCUSED, Evidence, HELLO_WANTED, HUSHED, Host, MISSING_REPORTED,
    OneLeft, Transition, Turn,
};
use super::timeout::{LEARN_MAX, Patience, Siblings};
use super::{DUPLICATE_WINDOW, Detector, Observed, Proof, TWINS_TURNS};
use crate::event::State;
use crate::view::{self, Lesson};

impl Host {
    /// Whether a proof of life can neither make a turn nor end anything but an excuse.
    #[inline]
    fn is_usual(&self, proof: &Proof<'_>, from: Address) -> bool {
        self.state == State::Alive
            && self.flags & (DUPLICATE | MISSING_REPORTED | AWAITED) == 0
            && self.boot == proof.stamp.boot
            && !proof.rebase
            && self.last_arrival().is_some()
            && self.learned.baseline_ns().is_some()
            && self.address == from
    }

    /// Learns from a proof of the same life as the one before, which was heard at `last`. `dropped`: the gap
    /// may be our own doing. Answers what its live cell shall learn.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "two call sites; a struct would only rename them"
    )]
    fn learn_from(
        &mut self,
        proof: &Proof<'_>,
        last: Option<Instant>,
        arrival: Instant,
        dropped: bool,
        gap_us: u32,
        patience: &Patience,
        siblings: &mut Siblings,
        dice: u32,
    ) -> Lesson {
        let mut lesson = Lesson {
            since_last_ns: last.map(|last| arrival.0.saturating_sub(last.0)),
            late_ms: proof.late_ms,
            ..Lesson::default()
        };
        if self.learned.baseline_ns().is_none() {
            return lesson;
        }
        let overdue_ns = arrival.0.wrapping_sub(self.expected.0) as i64;
        // Left alone, it would have been overdue until its next beat. Learning what our own probe cut short
        // would keep the margin as short as it was wrong.
        let cut_short_ns = if proof.asked { i64::from(gap_us) * 1_000 } else { 0 };
        let overdue_ns = overdue_ns.saturating_add(cut_short_ns);
        lesson.overdue_ns = Some(overdue_ns);
        if !dropped && overdue_ns < nanos(LEARN_MAX) as i64 {
            let Self { learned, histograms, group, .. } = self;
            learned.learn(histograms, overdue_ns, patience, siblings, *group, dice);
        }
        lesson
    }

    /// Takes over what a proof says of itself. `sent`: when, by the agent's clock as if ours had never stood
    /// still.
    #[inline(always)]
    fn follow(&mut self, proof: &Proof<'_>, arrival: Instant, sent: Instant, gap_us: u32) {
        self.seq = proof.stamp.seq;
        self.sent = proof.stamp.sent;
        self.gap_us = gap_us;
        self.expected = self.learned.expect(arrival, sent, gap_us);
        self.hear(arrival);
    }
}

impl Detector {
    /// Takes a proof of life: pushes the turns that it makes true (none for a beat like any other).
    #[inline]
    pub fn observe(
        &mut self,
        slot: u32,
        proof: &Proof<'_>,
        turns: &mut Vec<Transition>,
    ) -> Observed {
        let dice = self.roll();
        let sent = Instant(proof.stamp.sent.0.wrapping_sub(self.asleep_ns));
        let gap_us = micros(proof.stamp.gap).min(self.gap_max_us);
        let Self { hosts, siblings, knobs, doubt, hush, .. } = self;
        let (h, cell) = hosts.get_both(slot).expect("slot is live: the index owns it");
        if !h.is_usual(proof, Address::from(proof.from)) {
            return self.observe_unusual(slot, proof, sent, dice, turns);
        }
        let patience = &knobs[usize::from(h.knobs)].patience;
        let last = h.last_arrival();
        let arrival = last.map_or(proof.arrival, |last| last.max(proof.arrival));
        let lost = proof.stamp.seq.0.saturating_sub(h.seq.0).saturating_sub(1);
        let dropped = last.is_some_and(|last| {
            doubt.explains(last, h.expected, lost) || hush.explains(h.expected, proof.arrival)
        });
        let lesson = h.learn_from(proof, last, arrival, dropped, gap_us, patience, siblings, dice);
        h.follow(proof, arrival, sent, gap_us);
        h.flag(EXCUSED | HUSHED, false);
        view::beat(cell, arrival, gap_us, proof.load, &lesson);
        let deadline = Instant(h.expected.0.saturating_add(h.margin_ns(patience)));
        let expected = h.expected;
        self.file_well(slot, expected, deadline);
        Observed { lost, mistake: None, moved: false }
    }

    #[inline(never)]
    fn observe_unusual(
        &mut self,
        slot: u32,
        proof: &Proof<'_>,
        sent: Instant,
        dice: u32,
        turns: &mut Vec<Transition>,
    ) -> Observed {
        let evidence = match self.host(slot).state {
            // Nothing was expected of them, so there is nothing to tell.
            State::Alive | State::Duplicate | State::Pending => Evidence::default(),
            _ => self.evidence(slot, proof.arrival),
        };
        let h = self.host(slot);
        let lost = proof.stamp.seq.0.saturating_sub(h.seq.0).saturating_sub(1);
        // A gap that our own pause, cut, hush or drops made teaches nothing about the host.
        let last = h.last_arrival();
        let expected = h.expected;
        let dropped = last.is_some_and(|last| {
            self.doubt.explains(last, expected, lost) || self.hush.explains(expected, proof.arrival)
        });
        let gap_us = micros(proof.stamp.gap).min(self.gap_max_us);
        let Self { hosts, siblings, knobs, rare, .. } = self;
        let (h, cell) = hosts.get_both(slot).expect("slot is live: the index owns it");
        let knobs = &mut knobs[usize::from(h.knobs)];
        let patience = &knobs.patience;
        let mut observed = Observed::default();
        let last = h.last_arrival();
        let arrival = last.map_or(proof.arrival, |last| last.max(proof.arrival));
        let same_boot = h.boot == proof.stamp.boot;
        let old_boot = h.boot;
        let old_life = h.newest();
        let is_newest = proof.stamp.boot > h.boot_max;
        let continues = same_boot && !proof.rebase;

        let lesson = if continues {
            observed.lost = lost;
            h.learn_from(proof, last, arrival, dropped, gap_us, patience, siblings, dice)
        } else {
            h.learned.rebase();
            Lesson { late_ms: proof.late_ms, begins: true, ..Lesson::default() }
        };
        h.boot = proof.stamp.boot;
        if !same_boot {
            h.boot_max = h.boot_max.max(h.boot);
        }
        h.follow(proof, arrival, sent, gap_us);
        if !continues || h.learned.beats() == 0 {
            h.learned.choose(&h.histograms, patience, siblings.prior(h.group));
        }
        let deadline = Instant(h.expected.0.saturating_add(h.margin_ns(patience)));
        let rekeyed = rare.get(&slot).is_some_and(|r| r.other_until == Instant(0));
        h.flag(MISSING_REPORTED | EXCUSED | HUSHED | AWAITED, false);
        let from = Address::from(proof.from);
        let old_address = h.address;
        observed.moved = old_address != from;
        h.address = from;
        view::beat(cell, arrival, gap_us, proof.load, &lesson);
        let (state, expected) = (h.state, h.expected);

        // The other one has not answered for a long while.
        let single = h.is(DUPLICATE) && rare.get(&slot).is_none_or(|r| arrival > r.other_until);
        if single {
            h.flag(DUPLICATE, false);
        }
        let new_life = !same_boot && old_boot != Boot(0);
        // Of one boot two machines are told by where they are: the numbers and clocks of one prove nothing
        // after the other's, so that a nonce must re-base them. Those of one host that moves go on.
        let turns_address = same_boot && observed.moved && old_address != Address::default();
        let watched = turns_address && (proof.rebase || rare.contains_key(&slot));
        let mut two_alive = None;
        if new_life || watched {
            let other = rare.entry(slot).or_default();
            let back = match new_life {
                true => other.other_life.boot == h.boot,
                false => {
                    let same = other.other_life.boot == h.boot && other.other_address == from;
                    proof.rebase && same
                }
            };
            let in_time = arrival <= other.other_until;
            other.turns = if in_time { other.turns.saturating_add(u8::from(back)) } else { 0 };
            if other.turns >= TWINS_TURNS && !h.is(DUPLICATE) {
                two_alive = Some((old_boot, old_address.get()));
                other.turns = 0;
            }
            let twin = h.is(DUPLICATE);
            if !(twin && is_newest && other.is_restart(old_address, from)) {
                other.other_life = old_life;
                other.other_address = old_address;
                other.other_left = state == State::Left;
                other.other_back = Instant(0);
                other.other_until = last.filter(|_| twin).unwrap_or(arrival) + DUPLICATE_WINDOW;
            }
            h.flag(HELLO_WANTED, true);
        }
        // Of an unreachable host we said that it lives.
        let given_up = matches!(state, State::Suspect | State::Down);
        if same_boot && given_up && !self.confirm.is_unreachable(slot) {
            h.mistakes = h.mistakes.saturating_add(1);
            knobs.mistake();
            observed.mistake = Some(state);
        }
        if state == State::Alive {
            self.file_well(slot, expected, deadline);
        } else {
            self.confirm.end(slot);
            self.file(slot, deadline);
            self.set_state(slot, State::Alive);
        }
        let turn = match state {
            State::Pending => Some(Turn::Joined),
            State::Alive | State::Duplicate if !same_boot => Some(Turn::Restarted),
            State::Alive | State::Duplicate => None,
            State::Left if !same_boot => Some(Turn::Restarted),
            State::Suspect | State::Down | State::Left => Some(Turn::Recovered { same_boot }),
        };
        let one_left = if rekeyed { OneLeft::Rekeyed } else { OneLeft::Silent };
        let single = single.then_some(Turn::Single(one_left));
        turns.extend(single.into_iter().chain(turn).map(|t| self.turn(slot, t, arrival, evidence)));
        if let Some((other, address)) = two_alive {
            // Not before: that it is one is told by this turn, and not by the one on the way to it.
            self.host_mut(slot).flag(DUPLICATE, true);
            let turn = Turn::Duplicate { other, address };
            turns.push(self.turn(slot, turn, arrival, evidence));
        }
        observed
    }
}
