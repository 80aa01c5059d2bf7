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
    assert_eq!(turns, [(600_600, Turn::Single(OneLeft::Silent))], "told once, after ten minutes");
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

/// It became `left`, and of the other's death nobody was told.
#[test]
fn a_goodbye_of_one_of_two_does_not_end_the_watch_over_the_other() {
    let silent = |turns: Vec<(u64, Turn)>, at: u64| {
        let down = Turn::Down(Cause::Silent);
        assert_eq!(turns, [(at, Turn::Suspect), (at + 600, down)]);
    };
    // The other lives: its next beats prove it, and its own death is seen as any other's.
    let mut w = World::twins();
    assert_eq!(
        w.leave(1, 9, ms(1_000)),
        [Turn::Restarted],
        "the life that is known is the other's"
    );
    for at in (1_300..10_000).step_by(1_000) {
        assert_eq!(w.proof_from(1, 1, at, false), []);
        assert_eq!(w.judge(at, at + 999), []);
    }
    silent(w.judge(10_000, 20_000), 10_800);
    w.detector.check();
    // It died while the beats of the one that leaves hid it.
    let mut w = World::twins();
    for at in (1_400..60_000).step_by(1_000) {
        w.proof_from(2, 9, at, false);
    }
    w.leave(1, 9, ms(60_000));
    silent(w.judge(60_001, 70_000), 62_500);
    w.detector.check();
    // What is ordered goes ten minutes after the goodbye: what left was an agent, not surely its machine.
    assert_eq!(w.judge(650_000, 661_000), [(660_000, Turn::Single(OneLeft::Silent))]);
}

/// The one that stayed was cut off from its keys by the other's new one, and fell silent here while it went
/// on elsewhere: its failover was ordered within seconds.
#[test]
fn of_a_goodbye_and_a_new_key_nothing_follows_before_ten_minutes_are_over() {
    let mut w = World::twins();
    w.leave(1, 9, ms(1_000));
    let slot = w.detector.slot(id(1)).unwrap();
    w.detector.rekeyed(slot);
    let turns = w.judge(1_001, 60_000);
    let [(_, Turn::Suspect), (down, Turn::Down(Cause::Silent))] = turns[..] else {
        panic!("{turns:?}")
    };
    let over = down + 600_000;
    assert_eq!(w.judge(over - 1_000, over), [(over, Turn::Single(OneLeft::Rekeyed))]);
}

/// An upgrade of eleven minutes that was announced was a failover after ten.
#[test]
fn of_two_the_one_that_said_when_it_would_be_back_is_awaited_until_then() {
    let mut w = World::twins();
    w.leave_for(1, 9, ms(1_000), Duration::from_secs(900));
    let turns: Vec<Turn> = w.judge(1_001, 60_000).into_iter().map(|t| t.1).collect();
    assert_eq!(turns, [Turn::Suspect, Turn::Down(Cause::Silent)]);
    let back = 1_000 + 900_000 + w.detector.settings.leave_grace.as_millis() as u64;
    assert_eq!(w.judge(595_000, 605_000), []);
    assert_eq!(w.judge(back - 1_000, back), [(back, Turn::Single(OneLeft::Silent))]);
}

#[test]
fn of_two_the_host_has_left_when_both_said_goodbye_or_the_other_is_long_silent() {
    let is_left = |turns: &[Turn]| matches!(turns, [Turn::Left { .. }]);
    let mut w = World::twins();
    w.leave(1, 9, ms(1_000));
    w.from = address(1);
    assert!(is_left(&w.leave(1, 1, ms(1_100))));
    assert_eq!(w.judge(1_101, 60_000), []);
    // One that was back in between has not left.
    let mut w = World::twins();
    w.leave(1, 9, ms(1_000));
    w.proof_from(1, 1, 1_300, false);
    w.proof_from(2, 10, 1_400, false);
    assert_eq!(w.leave(1, 10, ms(1_500)), [Turn::Restarted]);
    w.proof_from(1, 1, 1_700, false);
    assert!(is_left(&w.leave(1, 1, ms(1_800))));
    // Ten minutes of silence of the other.
    let mut w = World::twins();
    for at in (1_400..600_000).step_by(1_000) {
        w.proof_from(2, 9, at, false);
    }
    assert!(is_left(&w.leave(1, 9, ms(600_500))));
    // An operator's word.
    let mut w = World::twins();
    let slot = w.detector.slot(id(1)).unwrap();
    w.detector.single_out(slot, ms(500));
    assert!(is_left(&w.leave(1, 9, ms(1_000))));
}

#[test]
fn of_two_of_one_boot_the_one_that_stays_goes_on_by_its_own_numbers_and_address() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    for n in 0..6 {
        w.proof_from(1 + (n % 2) as u8, 5, 100 + n * 100, n % 2 == 1);
    }
    // The one at address 2 was heard last.
    assert_eq!(w.leave(1, 5, ms(700)), []);
    let slot = w.detector.slot(id(1)).unwrap();
    assert_eq!(w.detector.record(slot).address.get(), Some(address(1)));
    assert_eq!(w.proof_from(1, 5, 1_500, false), []);
    assert_eq!(w.judge(1_500, 3_000), [(3_000, Turn::Suspect)]);
}

/// Of the other of before the start nothing is known, but that it was there.
#[test]
fn after_a_restart_a_goodbye_leaves_the_other_its_chance_too() {
    let mut w = World::new();
    w.detector.register(Known { duplicate: true, ..known(1, State::Alive) }, ms(0));
    w.beat(1, 1, ms(100), SECOND);
    assert_eq!(w.leave(1, 1, ms(5_000)), [], "no life is known of it");
    // As long as any host after a start.
    assert_eq!(w.judge(5_001, 15_000), []);
    let turns: Vec<Turn> = w.judge(15_001, 20_000).into_iter().map(|t| t.1).collect();
    assert_eq!(turns, [Turn::Suspect, Turn::Down(Cause::Silent)]);
    assert_eq!(w.proof_from(2, 7, 21_000, true), [Turn::Recovered { same_boot: false }]);
    w.detector.check();
}

/// `why` named a host's own former life as the other, and the ten minutes began anew.
#[test]
fn a_restart_of_an_agent_changes_nothing_of_the_other_machine() {
    let mut w = World::twins();
    for at in (1_400..60_400).step_by(1_000) {
        w.proof_from(2, 9, at, false);
    }
    let restarted = SocketAddr::from(([192, 0, 2, 2], 4_001));
    w.from = restarted;
    assert_eq!(w.proof(1, 10, ms(61_000), SECOND, false), [Turn::Restarted]);
    let is_other = |w: &World, at: u64| {
        let twin = w.twin(at).unwrap();
        assert_eq!((twin.boot, twin.address), (Some(Boot(1)), Some(address(1))));
        assert_eq!(twin.silence_ms, Some(at - 400));
    };
    is_other(&w, 61_000);
    // Politely.
    w.from = restarted;
    w.leave(1, 10, ms(61_500));
    assert_eq!(w.proof(1, 11, ms(62_500), SECOND, false), [Turn::Restarted]);
    is_other(&w, 62_500);
    let mut turns = Vec::new();
    for at in (63_500..700_000).step_by(1_000) {
        turns.extend(w.proof(1, 11, ms(at), SECOND, false).into_iter().map(|t| (at, t)));
    }
    assert_eq!(turns, [(600_500, Turn::Single(OneLeft::Silent))]);
    // Of two behind one address, or from another one, whose new life it is cannot be told.
    for from in [address(2), address(3)] {
        let mut w = World::new();
        w.detector.register(known(1, State::Alive), ms(0));
        for (boot, at) in [(1, 100), (9, 200), (1, 300), (9, 400)] {
            w.proof_from(2, boot, at, boot == 1);
        }
        w.from = from;
        w.proof(1, 10, ms(1_000), SECOND, false);
        assert_eq!(w.twin(1_000).unwrap().boot, Some(Boot(9)));
    }
}
