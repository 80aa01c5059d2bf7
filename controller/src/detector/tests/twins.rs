//! Two machines under one identity.

use super::*;
use crate::detector::host::OneLeft;

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 4_000))
}

impl World {
    fn proof_from(&mut self, place: u8, boot: u32, at: u64, rebase: bool) -> Vec<Turn> {
        self.from = address(place);
        self.proof(1, boot, ms(at), SECOND, rebase)
    }
}

#[test]
fn two_boots_in_turn_are_told_with_both_addresses_and_end_when_one_falls_silent() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.proof_from(1, 1, 100, false);
    w.proof_from(2, 9, 200, false);
    assert_eq!(w.proof_from(1, 1, 300, true), [Turn::Restarted]);
    let both = Turn::Duplicate { other: Boot(1), address: Some(address(1)) };
    assert_eq!(w.proof_from(2, 9, 400, false), [Turn::Restarted, both]);
    assert_eq!(w.proof_from(1, 1, 500, true), [Turn::Restarted]);
    assert_eq!(w.proof_from(2, 9, 600, false), [Turn::Restarted]);
    let mut turns = Vec::new();
    for at in (1_600..700_000).step_by(1_000) {
        turns.extend(w.proof_from(2, 9, at, false).into_iter().map(|t| (at, t)));
    }
    assert_eq!(turns, [(601_600, Turn::Single(OneLeft::Silent))], "told once, after ten minutes");
}

#[test]
fn one_boot_at_two_addresses_is_two_machines_if_their_numbers_contradict_each_other() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.proof_from(1, 5, 100, false);
    // A copy of the machine, which went on with the same life: its numbers prove nothing, a nonce does.
    assert_eq!(w.proof_from(2, 5, 200, true), []);
    assert_eq!(w.proof_from(1, 5, 300, false), []);
    assert_eq!(w.proof_from(2, 5, 400, true), []);
    assert_eq!(w.proof_from(1, 5, 500, false), []);
    let both = Turn::Duplicate { other: Boot(5), address: Some(address(1)) };
    assert_eq!(w.proof_from(2, 5, 600, true), [both]);
    for n in 1..20 {
        assert_eq!(w.proof_from(1 + (n % 2) as u8, 5, 600 + n * 500, n % 2 == 1), []);
    }
}

#[test]
fn a_host_that_moves_there_and_back_is_one() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    for n in 0..50 {
        w.from = address((n % 2) as u8);
        let turns = w.beat(1, 5, ms(100 + n * 1_000), SECOND);
        assert!(turns.is_empty() || n == 0, "{turns:?}");
    }
    // One wake from sleep re-bases it once.
    assert_eq!(w.proof_from(7, 5, 50_500, true), []);
}

impl World {
    /// Two lives of host 1 in turn, told as two by 0.4 s; boot 9 at address 2 is heard last.
    fn twins() -> Self {
        let mut w = World::new();
        w.detector.register(known(1, State::Alive), ms(0));
        w.proof_from(1, 1, 100, false);
        w.proof_from(2, 9, 200, false);
        w.proof_from(1, 1, 300, true);
        let both = Turn::Duplicate { other: Boot(1), address: Some(address(1)) };
        assert_eq!(w.proof_from(2, 9, 400, false), [Turn::Restarted, both]);
        w
    }

    fn twin(&self, at: u64) -> Option<crate::control::TwinWhy> {
        self.detector.why(self.detector.slot(id(1)).unwrap(), 0, ms(at), Duration::ZERO).twin
    }
}

/// It was withheld for ever: only a proof of life told that a duplicate was over, and the dead give none.
#[test]
fn of_a_host_that_died_a_duplicate_the_other_is_given_up_after_the_same_ten_minutes() {
    let mut w = World::twins();
    let down = w.judge(401, 5_000);
    assert_eq!(down.last().map(|t| t.1), Some(Turn::Down(Cause::Silent)));
    let turns = w.judge(595_000, 605_000);
    assert_eq!(turns, [(600_400, Turn::Single(OneLeft::Silent))]);
    assert_eq!(w.detector.state(id(1)), Some(State::Down));
    assert_eq!(w.twin(605_000), None);
    // It is still forgotten in the end.
    let turns = w.judge(600_400 + 3_599_000, 600_400 + 3_601_000);
    assert_eq!(turns.first().map(|t| t.1), Some(Turn::Forgettable));
    w.detector.check();
}

#[test]
fn after_a_restart_a_dead_duplicate_gets_the_whole_ten_minutes_again() {
    let mut w = World::new();
    w.detector.register(Known { duplicate: true, ..known(1, State::Down) }, ms(0));
    let twin = w.twin(1_000).unwrap();
    assert_eq!((twin.boot, twin.silence_ms, twin.over_in_ms), (None, None, 599_000));
    assert_eq!(w.judge(590_000, 601_000), [(600_000, Turn::Single(OneLeft::Silent))]);
}

#[test]
fn what_is_known_of_the_other_is_told_and_until_when_it_may_come_back() {
    let mut w = World::twins();
    for at in (1_400..60_400).step_by(1_000) {
        assert_eq!(w.proof_from(2, 9, at, false), []);
    }
    let twin = w.twin(60_400).unwrap();
    assert_eq!((twin.boot, twin.address), (Some(Boot(1)), Some(address(1))));
    assert_eq!((twin.silence_ms, twin.over_in_ms), (Some(60_000), 540_000));
}

#[test]
fn whose_keys_are_dead_cannot_come_back_and_the_next_proof_says_so() {
    let mut w = World::twins();
    let slot = w.detector.slot(id(1)).unwrap();
    w.detector.rekeyed(slot);
    assert_eq!(w.twin(500).map(|t| t.over_in_ms), Some(0));
    let single = Turn::Single(OneLeft::Rekeyed);
    assert_eq!(w.proof_from(2, 10, 1_000, false), [single, Turn::Restarted]);
    for at in (2_000..20_000).step_by(1_000) {
        assert_eq!(w.proof_from(2, 10, at, false), []);
    }
    // Of one that is dead nothing is told before the time is over: nobody has shown the new key.
    let mut w = World::twins();
    w.judge(401, 5_000);
    let slot = w.detector.slot(id(1)).unwrap();
    w.detector.rekeyed(slot);
    assert_eq!(w.judge(5_001, 60_000), []);
    assert_eq!(w.judge(595_000, 601_000), [(600_400, Turn::Single(OneLeft::Rekeyed))]);
}

#[test]
fn an_operators_word_ends_it_at_once_and_another_sign_of_the_other_begins_it_anew() {
    let mut w = World::twins();
    let slot = w.detector.slot(id(1)).unwrap();
    w.detector.single_out(slot, ms(500));
    assert_eq!(w.twin(600), None);
    assert_eq!(w.proof_from(2, 9, 1_000, false), [], "nothing is told of it here");
    w.proof_from(1, 1, 1_100, true);
    w.proof_from(2, 9, 1_200, true);
    let turns = w.proof_from(1, 1, 1_300, true);
    assert!(matches!(turns[..], [Turn::Restarted, Turn::Duplicate { .. }]), "{turns:?}");
    // A dead one is forgotten as any other from then on.
    w.judge(1_301, 6_000);
    w.detector.single_out(slot, ms(6_000));
    assert_eq!(w.judge(600_000, 602_000), []);
}
