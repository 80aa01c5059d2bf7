//! What rules keep back: delays, hours, rates, and what ends them.

use super::*;
use crate::config::{ActionRate, Outside};
use crate::policy::hours::Hours;
use crate::policy::waits::WaitFor;
use crate::store::{DeliveryId, DeliveryRow, DeliveryState};
use jiff::tz::TimeZone;

/// A Monday, 07:00 UTC.
pub(super) const MONDAY: Wall = Wall(1_772_434_800_000);
pub(super) const HOUR: i64 = 3_600_000;

pub(super) fn author() -> Author {
    Author { id: ControllerId(1), name: "c".to_owned() }
}

pub(super) fn host(n: u8) -> HostId {
    HostId([n; 16])
}

pub(super) fn secs(s: u64) -> Instant {
    Instant::from_millis(1_000_000 + s * 1_000)
}

pub(super) fn delayed(receiver: &str, delay: u64) -> Rule {
    Rule { delay: Duration::from_secs(delay), ..rule(&[EventKind::HostDown], receiver) }
}

pub(super) fn at_hours(receiver: &str, outside: Outside) -> Rule {
    let hours = Hours::parse("Mon-Fri 08:00-18:00", TimeZone::UTC).unwrap();
    Rule { hours: Some(hours), outside, ..rule(&EventKind::ALL, receiver) }
}

/// A fall, a return, or what else of host `n` at a moment; answers its row and event.
pub(super) fn happens(
    p: &mut Policy,
    row: &HostRow,
    t: (Turn, State),
    at: Instant,
    wall: Wall,
) -> Decision {
    let mut rng = StdRng::seed_from_u64(at.0 ^ u64::from(row.id.0[0]));
    let t = Transition { host: row.id, at, ..turn(t.0, t.1, 5) };
    p.take(row, &t, wall, |_| Placement::default(), &mut rng)
}

/// What becomes of what was held, at a moment.
pub(super) fn orders(p: &mut Policy, row: &HostRow, at: Instant, wall: Wall) -> Vec<Order> {
    p.step(at);
    let rows = |id| (id == row.id).then(|| row.clone());
    p.orders(rows, wall, &mut StdRng::seed_from_u64(9))
}

/// To whom something goes now.
fn goes(orders: &[Order]) -> Vec<&str> {
    let parts = orders.iter().filter_map(|order| match order {
        Order::Part(part) if part.go.is_ok() => Some(part.receiver.as_str()),
        _ => None,
    });
    parts.collect()
}

fn held(event: &NewEvent) -> Vec<(&str, bool)> {
    event.deliveries.iter().map(|d| (d.receiver.as_str(), d.hold.is_some())).collect()
}

pub(super) fn alive(n: u8) -> HostRow {
    HostRow { id: host(n), ..row(State::Alive) }
}

#[test]
fn two_delays_of_one_host_are_independent_and_who_waits_for_nothing_is_told_at_once() {
    let rules =
        vec![delayed("slow", 300), delayed("fast", 30), rule(&[EventKind::HostDown], "now")];
    let mut p = Policy::new(author(), rules);
    let fall = happens(&mut p, &alive(1), DOWN, secs(0), MONDAY);
    let event = fall.event.unwrap();
    assert_eq!(held(&event), [("slow", true), ("fast", true), ("now", false)]);
    assert!(event.data["verdicts"][1]["reason"].as_str().unwrap().contains("waits 30s"));
    assert!(p.hold_of(host(1), MONDAY).is_none(), "nobody need decide anything, so it is no hold");
    let waits = p.waits_of(host(1), MONDAY);
    assert_eq!((waits[0].receiver.as_str(), waits[0].wait), ("fast", WaitFor::Delay));
    assert_eq!(waits[0].until_ms, Some(Wall(MONDAY.0 + 30_000)));
    let row = &fall.row;
    // The wall clock steps back an hour: nothing comes of it.
    let stepped = Wall(MONDAY.0 - HOUR);
    assert_eq!(orders(&mut p, row, Instant(secs(30).0 - 1), stepped), []);
    assert_eq!(goes(&orders(&mut p, row, secs(30), stepped)), ["fast"]);
    assert_eq!(goes(&orders(&mut p, row, secs(31), Wall(MONDAY.0 + 9 * HOUR))), [""; 0]);
    assert_eq!(goes(&orders(&mut p, row, secs(300), MONDAY)), ["slow"]);
    assert!(p.waits_of(host(1), MONDAY).is_empty());
}

#[test]
fn who_comes_back_within_the_delay_is_told_to_nobody() {
    let mut p = Policy::new(author(), vec![delayed("a", 30)]);
    let fall = happens(&mut p, &alive(1), DOWN, secs(0), MONDAY);
    let back = happens(&mut p, &fall.row, recovered(true), secs(29), MONDAY);
    assert_eq!(back.event.unwrap().settle, Settle::All);
    assert!(p.waits_of(host(1), MONDAY).is_empty());
    assert_eq!(orders(&mut p, &back.row, secs(60), MONDAY), []);
    // It falls again: the delay begins anew.
    let again = happens(&mut p, &back.row, DOWN, secs(61), MONDAY);
    assert_eq!(orders(&mut p, &again.row, secs(90), MONDAY), []);
    assert_eq!(goes(&orders(&mut p, &again.row, secs(91), MONDAY)), ["a"]);
}

#[test]
fn an_alert_of_a_suspicion_is_dropped_once_the_host_is_down() {
    let alert = Rule { delay: Duration::from_secs(30), ..rule(&[EventKind::HostSuspect], "pager") };
    let mut p = Policy::new(author(), vec![alert, rule(&[EventKind::HostDown], "orchestrator")]);
    let suspect = happens(&mut p, &alive(1), SUSPECT, secs(0), MONDAY);
    assert_eq!(held(suspect.event.as_ref().unwrap()), [("pager", true)]);
    let down = happens(&mut p, &suspect.row, DOWN, secs(2), MONDAY);
    assert_eq!(held(down.event.as_ref().unwrap()), [("orchestrator", false)]);
    let orders = orders(&mut p, &down.row, secs(2), MONDAY);
    let [Order::Part(part)] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!((part.receiver.as_str(), part.kind), ("pager", EventKind::HostSuspect));
    assert!(part.go.as_ref().unwrap_err().contains("the host is down now"));
}

#[test]
fn what_holds_the_host_when_a_delay_ends_holds_its_order_until_it_is_gone() {
    let quick = rule(&[EventKind::HostDown], "quick");
    let mut p = Policy::new(author(), vec![delayed("a", 30), quick]);
    let fall = happens(&mut p, &alive(1), DOWN, secs(0), MONDAY);
    let row = &fall.row;
    p.set_pause(Some(Pause { until_ms: Wall(5), reason: "switch work".to_owned() }));
    assert_eq!(orders(&mut p, row, secs(31), MONDAY), []);
    assert!(p.hold_of(host(1), MONDAY).unwrap().reason.contains("switch work"));
    let waits = p.waits_of(host(1), MONDAY);
    assert_eq!(waits[0].wait, WaitFor::Guard);
    assert!(waits[0].reason.contains("switch work"), "{waits:?}");
    p.set_pause(None);
    p.release_own();
    let orders = orders(&mut p, row, secs(40), MONDAY);
    assert_eq!(goes(&orders), ["a"]);
    assert_eq!(orders.last(), Some(&Order::Release(host(1), vec!["a".to_owned()])));
}

/// What the guard holds goes with its word, but for those whose rules wait longer.
#[test]
fn a_hold_that_ends_lets_nobody_go_before_his_delay() {
    let mut p = Policy::new(author(), vec![delayed("a", 300), rule(&[EventKind::HostDown], "b")]);
    p.set_pause(Some(Pause { until_ms: Wall(5), reason: "switch work".to_owned() }));
    let fall = happens(&mut p, &alive(1), DOWN, secs(0), MONDAY);
    assert_eq!(held(fall.event.as_ref().unwrap()), [("a", true), ("b", true)]);
    p.set_pause(None);
    p.release_own();
    let released = orders(&mut p, &fall.row, secs(10), MONDAY);
    assert_eq!(released, [Order::Release(host(1), vec!["a".to_owned()])]);
    assert_eq!(goes(&orders(&mut p, &fall.row, secs(300), MONDAY)), ["a"]);
}

#[test]
fn outside_its_hours_a_rule_holds_or_suppresses_and_ends_go_at_any_time() {
    let rules = vec![at_hours("hold", Outside::Hold), at_hours("drop", Outside::Suppress)];
    let mut p = Policy::new(author(), rules);
    let fall = happens(&mut p, &alive(1), DOWN, secs(0), MONDAY);
    let event = fall.event.unwrap();
    assert_eq!(held(&event), [("hold", true)]);
    let reason = |n: usize| event.data["verdicts"][n]["reason"].as_str().unwrap();
    assert!(reason(0).contains("next Mon 2026-03-02 08:00"), "{}", reason(0));
    assert!(reason(1).contains("outside the hours"), "{}", reason(1));
    let row = &fall.row;
    assert_eq!(orders(&mut p, row, secs(1_000), Wall(MONDAY.0 + HOUR - 1)), []);
    assert_eq!(goes(&orders(&mut p, row, secs(1_001), Wall(MONDAY.0 + HOUR))), ["hold"]);
    // What is only true for a moment is not kept for the morning; the end of something is told.
    let mut rng = StdRng::seed_from_u64(3);
    let storm = p.own_event(EventKind::ControllerBlind, "x", MONDAY, &mut rng);
    let calm = p.own_event(EventKind::ControllerSighted, "x", MONDAY, &mut rng);
    assert_eq!((storm.deliveries.len(), calm.deliveries.len()), (0, 2));
    let back = happens(&mut p, row, recovered(true), secs(1_002), MONDAY);
    assert_eq!(back.event.unwrap().deliveries.len(), 2);
}

#[test]
fn a_delay_that_ends_outside_the_hours_waits_for_them_or_is_dropped() {
    for (outside, said) in [(Outside::Hold, None), (Outside::Suppress, Some("outside the hours"))] {
        let rule = Rule { delay: Duration::from_secs(60), ..at_hours("a", outside) };
        let mut p = Policy::new(author(), vec![rule]);
        let evening = Wall(MONDAY.0 + 11 * HOUR - 1);
        let fall = happens(&mut p, &alive(1), DOWN, secs(0), evening);
        let after = orders(&mut p, &fall.row, secs(60), Wall(evening.0 + 60_000));
        let refused = after.iter().find_map(|order| match order {
            Order::Part(part) => part.go.clone().err(),
            _ => None,
        });
        assert_eq!(refused.is_some(), said.is_some(), "{after:?}");
        assert!(refused.unwrap_or_default().contains(said.unwrap_or_default()));
        let morning = orders(&mut p, &fall.row, secs(61), Wall(evening.0 + 14 * HOUR + 1));
        assert_eq!(goes(&morning).len(), usize::from(said.is_none()));
    }
}

#[test]
fn a_rules_rate_makes_a_line_of_its_own() {
    let slow = Rule {
        rate: Some(ActionRate { per_minute: 2, burst: 2 }),
        ..rule(&[EventKind::HostDown], "slow")
    };
    // Alone in the fleet, so that no storm is seen.
    let guard = crate::config::GuardConfig {
        fleet: crate::config::Threshold { share: 1.0, hosts: 0 },
        settle: Duration::ZERO,
        ..Default::default()
    };
    let mut p = Policy::guarded(author(), vec![slow, rule(&[EventKind::HostDown], "fast")], guard);
    let mut rows = BTreeMap::new();
    let mut slow_held = Vec::new();
    for n in 1..=5 {
        let fall = happens(&mut p, &alive(n), DOWN, secs(0), MONDAY);
        slow_held.push(held(fall.event.as_ref().unwrap())[0].1);
        rows.insert(host(n), fall.row);
    }
    assert_eq!(slow_held, [false, false, true, true, true]);
    // Host 3 is back: its place in line is nobody's.
    let back = happens(&mut p, &rows[&host(3)].clone(), recovered(true), secs(1), MONDAY);
    rows.insert(host(3), back.row);
    let mut went = Vec::new();
    for s in 1..=120 {
        p.step(secs(s));
        let rows = |id| rows.get(&id).cloned();
        for order in p.orders(rows, MONDAY, &mut StdRng::seed_from_u64(s)) {
            let Order::Part(part) = order else { panic!("{order:?}") };
            went.push((s, part.host.0[0], part.go.is_ok()));
        }
    }
    assert_eq!(went, [(30, 4, true), (60, 5, true)]);
}

#[test]
fn an_operators_word_on_a_host_ends_what_rules_wait_for() {
    use guard::Target;
    use holds::Word;
    for approves in [true, false] {
        let mut p = Policy::new(author(), vec![delayed("a", 300)]);
        let fall = happens(&mut p, &alive(1), DOWN, secs(0), MONDAY);
        let (target, row) = (Target::Host(host(1)), Some(&fall.row));
        let word = Word { by: "ann".to_owned(), reason: "it burns".to_owned() };
        let mut rng = StdRng::seed_from_u64(4);
        let report = match approves {
            true => p.approve(&target, &word, row, MONDAY, &mut rng),
            false => p.reject(&target, &word, row, MONDAY, &mut rng),
        };
        assert_eq!(report.released + report.rejected, 1);
        let now = orders(&mut p, &fall.row, secs(1), MONDAY);
        assert!(matches!(&now[0], Order::Event(e) if e.data["held_for"] != Value::Null), "{now:?}");
        match approves {
            true => assert_eq!(goes(&now), ["a"]),
            false => assert!(matches!(&now[1], Order::Cancel(_, why) if why.contains("it burns"))),
        }
        assert_eq!(orders(&mut p, &fall.row, secs(400), MONDAY), []);
    }
}

#[test]
fn after_a_restart_a_delay_goes_on_and_nothing_goes_before_hosts_had_their_chance() {
    let mut before = Policy::new(author(), vec![delayed("a", 300)]);
    let fall = happens(&mut before, &alive(1), DOWN, secs(0), MONDAY);
    let event = fall.event.unwrap();
    let delivery = DeliveryRow {
        id: DeliveryId(1),
        event: event.id,
        kind: event.kind,
        host: event.host,
        incident: event.incident,
        receiver: "a".to_owned(),
        state: DeliveryState::Held,
        reason: None,
        token: None,
        attempts: 0,
        created_ms: MONDAY,
        changed_ms: MONDAY,
        last_outcome: None,
        placed: None,
    };
    // Down for 100 s of the 300, and the wall clock stepped by more than all of it in the second case.
    for (held_for, due) in [(100, 200), (9_000, 10)] {
        let mut p = Policy::new(author(), vec![delayed("a", 300)]);
        p.register(&fall.row, secs(0), Wall(MONDAY.0 + held_for * 1_000));
        p.restore(&delivery, Some(&fall.row), Duration::from_secs(held_for.unsigned_abs()));
        assert_eq!(goes(&orders(&mut p, &fall.row, secs(9), MONDAY)), [""; 0]);
        p.release_own();
        if due > 10 {
            assert_eq!(goes(&orders(&mut p, &fall.row, secs(due - 1), MONDAY)), [""; 0]);
        }
        assert_eq!(goes(&orders(&mut p, &fall.row, secs(due), MONDAY)), ["a"]);
        assert_eq!(goes(&orders(&mut p, &fall.row, secs(due + 999), MONDAY)), [""; 0], "once");
    }
    // It came back meanwhile, and the store was not told.
    let mut p = Policy::new(author(), vec![delayed("a", 300)]);
    let back = HostRow { state: State::Alive, incident: None, ..fall.row.clone() };
    p.restore(&delivery, Some(&back), Duration::from_secs(1));
    assert_eq!(orders(&mut p, &back, secs(1), MONDAY), [Order::Release(host(1), Vec::new())]);
}

#[test]
fn a_rule_may_want_to_hear_of_recoveries_from_down_alone() {
    let events = [EventKind::HostDown, EventKind::HostRecovered];
    let only = Rule { from: [State::Down].into(), ..rule(&events, "a") };
    let mut p = Policy::new(author(), vec![only]);
    let suspect = happens(&mut p, &alive(1), SUSPECT, secs(0), MONDAY);
    let back = happens(&mut p, &suspect.row, recovered(true), secs(1), MONDAY);
    assert!(back.event.unwrap().deliveries.is_empty());
    let down = happens(&mut p, &back.row, DOWN, secs(2), MONDAY);
    let back = happens(&mut p, &down.row, recovered(true), secs(3), MONDAY);
    assert_eq!(back.event.unwrap().deliveries.len(), 1);
}
