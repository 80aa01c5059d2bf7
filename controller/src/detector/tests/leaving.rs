//! Goodbyes that say for how long.

use super::*;

#[test]
fn who_is_not_back_when_it_said_is_overdue_is_probed_and_is_then_down() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    let expected = SECOND * 60;
    let left = Turn::Left { reason: LeaveReason::Reboot, expected };
    assert_eq!(w.leave_for(1, 1, ms(500), expected), [left]);
    // Half a minute of grace.
    let turns = w.judge(501, 95_000);
    let overdue = Turn::Overdue { expected };
    assert_eq!(turns, [(90_500, overdue), (91_100, Turn::Down(Cause::Silent))]);
    w.detector.check();
    // The same life: it was never away, and we were wrong.
    assert_eq!(w.beat(1, 1, ms(96_000), SECOND), [Turn::Recovered { same_boot: true }]);
    let slot = w.detector.slot(id(1)).unwrap();
    assert_eq!(w.detector.record(slot).mistakes, 1);
}

#[test]
fn who_is_back_in_time_is_not_waited_for_any_more() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    w.leave_for(1, 1, ms(500), SECOND * 60);
    assert_eq!(w.beat(1, 2, ms(30_000), SECOND), [Turn::Restarted]);
    for at in (31_000..120_000).step_by(1_000) {
        assert_eq!(w.beat(1, 2, ms(at), SECOND), []);
        assert_eq!(w.judge(at, at), []);
    }
    w.detector.check();
}

#[test]
fn an_answer_of_its_kernel_says_that_only_the_agent_did_not_come_back() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    w.leave_for(1, 1, ms(500), SECOND);
    let (mut out, mut turns) = (Vec::new(), Vec::new());
    for at in 501..40_000 {
        w.detector.judge(ms(at), ms(at), ms(at), &mut out);
        for judged in out.drain(..) {
            match judged {
                Judged::Probe { nonce, .. } => {
                    let slot = w.detector.slot(id(1)).unwrap();
                    assert!(w.detector.unreachable(slot, &nonce, ms(at)));
                }
                Judged::Turn(t) => turns.push(t.turn),
                _ => {}
            }
        }
    }
    assert_eq!(turns, [Turn::Overdue { expected: SECOND }, Turn::Down(Cause::AgentLost)]);
}

#[test]
fn a_promise_is_cut_to_what_is_allowed_and_survives_a_restart_of_the_controller() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    let day = SECOND * 86_400;
    let left = Turn::Left { reason: LeaveReason::Reboot, expected: day };
    assert_eq!(w.leave_for(1, 1, ms(500), day * 365), [left]);
    let restarted = |back_in| {
        let mut w = World::new();
        w.detector.register(Known { back_in, ..known(1, State::Left) }, ms(0));
        w.judge(0, 60_000).into_iter().map(|(at, turn)| (at / 1_000, turn)).collect::<Vec<_>>()
    };
    let overdue = Turn::Overdue { expected: Duration::ZERO };
    let down = Turn::Down(Cause::Silent);
    assert_eq!(restarted(Some(SECOND * 20)), [(50, overdue), (50, down)]);
    // Long over: it has its chance nevertheless.
    assert_eq!(restarted(Some(Duration::ZERO)), [(30, overdue), (30, down)]);
    assert_eq!(restarted(None), [], "it left for good");
}
