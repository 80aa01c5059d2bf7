//! Two machines under one identity.

use super::*;

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
    assert_eq!(turns, [(601_600, Turn::Single)], "told once, after ten minutes");
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
