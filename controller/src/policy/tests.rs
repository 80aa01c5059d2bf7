use super::*;
use crate::detector::host::Evidence;
use heartwatch_common::time::Instant;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::time::Duration;

mod question;
mod waits;

fn rule(events: &[EventKind], receiver: &str) -> Rule {
    Rule {
        name: format!("to {receiver}"),
        events: events.iter().copied().collect(),
        receivers: vec![receiver.to_owned()],
        ..Rule::default()
    }
}

fn policy() -> Policy {
    Policy::new(
        Author { id: ControllerId(1), name: "c".to_owned() },
        vec![rule(&EventKind::ALL, "orchestrator")],
    )
}

fn row(state: State) -> HostRow {
    HostRow { state, boot: Boot(5), ..new_row(HostId([1; 16]), Wall(0)) }
}

fn turn(turn: Turn, state: State, boot: u32) -> Transition {
    Transition {
        host: HostId([1; 16]),
        turn,
        state,
        boot: Boot(boot),
        address: None,
        at: Instant(0),
        duplicate: false,
        evidence: Evidence::default(),
    }
}

fn take(p: &mut Policy, row: &HostRow, t: Transition) -> Decision {
    // Ids of the same moment must still differ.
    static SEED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let seed = SEED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut rng = StdRng::seed_from_u64(seed);
    p.take(row, &t, Wall(1_000), |_| Placement::default(), &mut rng)
}

const SUSPECT: (Turn, State) = (Turn::Suspect, State::Suspect);
const DOWN: (Turn, State) = (Turn::Down(Cause::Silent), State::Down);
const LOST: (Turn, State) = (Turn::Down(Cause::AgentLost), State::Down);

fn recovered(same_boot: bool) -> (Turn, State) {
    (Turn::Recovered { same_boot }, State::Alive)
}

/// Plays turns; answers the kinds of the events and the row at the end.
fn play(
    p: &mut Policy,
    mut at: HostRow,
    turns: &[((Turn, State), u32)],
) -> (Vec<NewEvent>, HostRow) {
    let mut events = Vec::new();
    for ((t, state), boot) in turns {
        let decision = take(p, &at, turn(*t, *state, *boot));
        events.extend(decision.event);
        at = decision.row;
    }
    (events, at)
}

fn kinds(events: &[NewEvent]) -> Vec<EventKind> {
    events.iter().map(|e| e.kind).collect()
}

#[test]
fn an_outage_is_one_incident_from_suspicion_to_recovery() {
    let turns = [(SUSPECT, 5), (DOWN, 5), (recovered(true), 5)];
    let (events, end) = play(&mut policy(), row(State::Alive), &turns);
    assert_eq!(
        kinds(&events),
        [EventKind::HostSuspect, EventKind::HostDown, EventKind::HostRecovered]
    );
    assert!(events[0].incident.is_some());
    assert!(events.iter().all(|e| e.incident == events[0].incident));
    assert_eq!((end.state, end.incident, end.cause), (State::Alive, None, None));
    assert_eq!(events[2].data["same_boot"], true);
    assert_eq!((events[2].settle.clone(), events[2].audience), (Settle::All, Audience::Told));
    assert_eq!(events[1].settle, Settle::SameReceivers);
}

#[test]
fn of_a_host_not_heard_since_the_start_reasons_say_since_when_we_listen() {
    let mut p = policy();
    let evidence =
        Evidence { silence_ms: 12_340, unheard: true, probes_sent: 3, ..Evidence::default() };
    let reason = |p: &mut Policy, state, t: Turn, now| {
        let before = HostRow { since: Wall(1_000 - 90_000), ..row(state) };
        let event = take(p, &before, Transition { evidence, ..turn(t, now, 5) }).event.unwrap();
        event.data["reason"].as_str().unwrap().to_owned()
    };
    let since = "not heard since this controller began to listen 12.34 s ago";
    let suspect = reason(&mut p, State::Alive, SUSPECT.0, SUSPECT.1);
    assert_eq!(suspect, format!("{since}: the time that it had for that is over; probing"));
    let down = reason(&mut p, State::Suspect, DOWN.0, DOWN.1);
    assert_eq!(down, format!("{since} and 3 probes went unanswered"));
    let lost = reason(&mut p, State::Suspect, LOST.0, LOST.1);
    assert!(lost.starts_with(&format!("{since}; its kernel answers")), "{lost}");
    // What the row knows from before the start is told.
    let overdue = Turn::Overdue { expected: Duration::ZERO };
    let overdue = reason(&mut p, State::Left, overdue, State::Suspect);
    assert!(overdue.starts_with("it said goodbye 90 s ago"), "{overdue}");
}

/// A held failover of a host that was revoked was dropped without a word.
#[test]
fn a_forgotten_hosts_event_tells_the_order_that_goes_with_it() {
    let mut p = policy();
    let mut rng = StdRng::seed_from_u64(1);
    p.register(&row(State::Alive), Instant(0), Wall(0));
    let plain = p.forgotten(&row(State::Alive), "an operator said so", Wall(0), &mut rng);
    assert_eq!(plain.data["reason"], "an operator said so");
    p.set_pause(Some(Pause { until_ms: Wall(9_000), reason: "switch works".to_owned() }));
    let (events, down) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5)]);
    assert!(events[1].deliveries[0].hold.is_some(), "it is held");
    let told = p.forgotten(&down, "revoked: lost", Wall(2_000), &mut rng);
    let reason = told.data["reason"].as_str().unwrap();
    assert!(reason.starts_with("revoked: lost; its held order will not be sent"), "{reason}");
    assert!(reason.contains("switch works"), "{reason}");
    assert!(told.data["held_for"].as_str().unwrap().contains("switch works"));
    assert_eq!(told.settle, Settle::All);
}

#[test]
fn a_machine_that_dies_after_its_agent_is_down_in_the_same_incident_and_once() {
    let mut p = policy();
    let (events, lost) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (LOST, 5)]);
    let evidence = Evidence { agent_lost: true, probes_sent: 10, ..Evidence::default() };
    let later = Transition { evidence, ..turn(DOWN.0, DOWN.1, 5) };
    assert!(Policy::rejudge(Some(&lost), EventKind::HostAgentLost, lost.incident).is_ok());
    let decision = take(&mut p, &lost, later);
    let event = decision.event.unwrap();
    assert_eq!((event.kind, event.incident), (EventKind::HostDown, events[0].incident));
    assert_eq!(event.settle, Settle::All, "that its machine answers is no longer true");
    let reason = event.data["reason"].as_str().unwrap();
    assert!(reason.contains("its machine answered; now 10 probes in a row"), "{reason}");
    assert!(!event.deliveries.is_empty(), "it is failed over now");
    let down = decision.row;
    assert_eq!((down.state, down.cause), (State::Down, Some(Cause::Silent)));
    let late = Policy::rejudge(Some(&down), EventKind::HostAgentLost, down.incident);
    assert!(late.unwrap_err().contains("machine"));
    assert!(take(&mut p, &down, later).event.is_none(), "once");
    let (events, _) = play(&mut p, down, &[(recovered(false), 6)]);
    assert_eq!(events[0].data["from_cause"], "silent");
}

#[test]
fn agent_lost_is_its_own_event_and_names_its_cause() {
    let (events, end) = play(&mut policy(), row(State::Alive), &[(SUSPECT, 5), (LOST, 5)]);
    assert_eq!(kinds(&events), [EventKind::HostSuspect, EventKind::HostAgentLost]);
    assert_eq!(end.cause, Some(Cause::AgentLost));
    assert_eq!(events[1].data["cause"], "agent-lost");
}

#[test]
fn a_turn_that_was_merged_away_is_made_good_by_the_next() {
    // Recorded alive; the suspicion was never told.
    let (events, _) = play(&mut policy(), row(State::Alive), &[(DOWN, 5)]);
    assert_eq!(kinds(&events), [EventKind::HostDown]);
    assert!(events[0].incident.is_some());
    // Recorded down; the recovery was never told, and now it only "restarted".
    let (events, end) =
        play(&mut policy(), row(State::Down), &[((Turn::Restarted, State::Alive), 6)]);
    assert_eq!(kinds(&events), [EventKind::HostRecovered]);
    assert_eq!((end.state, &events[0].data["same_boot"]), (State::Alive, &json!(false)));
    // The same turn twice says nothing new.
    let (events, _) = play(&mut policy(), row(State::Down), &[(DOWN, 5)]);
    assert!(events.is_empty());
}

#[test]
fn a_boot_that_changed_without_an_outage_is_a_restart() {
    let (events, end) =
        play(&mut policy(), row(State::Alive), &[((Turn::Restarted, State::Alive), 6)]);
    assert_eq!((kinds(&events), end.boot), (vec![EventKind::HostRestarted], Boot(6)));
}

#[test]
fn actions_are_held_while_paused_or_blind_and_nothing_else_is() {
    let mut p = policy();
    assert!(p.set_blind(0, true) && !p.set_blind(1, true));
    let (events, end) =
        play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5), (recovered(false), 6)]);
    let holds: Vec<bool> = events.iter().map(|e| e.deliveries[0].hold.is_some()).collect();
    assert_eq!(holds, [false, true, false]);
    assert_eq!(events[1].data["verdicts"][0]["verdict"], "hold");
    assert_eq!(end.state, State::Alive, "seeing is never held");
    assert!(!p.set_blind(0, false) && p.set_blind(1, false));
    p.set_pause(Some(Pause { until_ms: Wall(5), reason: "switch work".to_owned() }));
    let (events, _) = play(&mut p, row(State::Alive), &[(LOST, 5)]);
    assert!(events[0].deliveries[0].hold.as_ref().unwrap().contains("switch work"));
}

#[test]
fn a_duplicate_identity_is_not_failed_over_before_one_is_left() {
    let mut p = policy();
    let duplicate = Turn::Duplicate { other: Boot(9), address: None };
    let mut at = row(State::Alive);
    let mut events = Vec::new();
    for (t, state) in [(duplicate, State::Alive), SUSPECT, DOWN] {
        let decision = take(&mut p, &at, Transition { duplicate: true, ..turn(t, state, 5) });
        at = decision.row;
        events.extend(decision.event);
    }
    let end = at;
    assert_eq!(kinds(&events)[0], EventKind::HostDuplicate);
    assert!(end.duplicate && end.state == State::Down);
    assert_eq!(events[2].data["verdicts"][0]["verdict"], "hold");
    let hold = p.hold_of(end.id, Wall(9)).unwrap();
    assert_eq!(hold.kind, guard::HoldKind::Duplicate);
    assert!(hold.reason.contains("hosts single"), "{}", hold.reason);
    let mut rng = StdRng::seed_from_u64(3);
    let mut orders = |p: &mut Policy, row: &HostRow, at: u64| {
        p.step(Instant::from_millis(at));
        p.orders(|_| Some(row.clone()), Wall(9), &mut rng)
    };
    // Not with its domain, nor by time alone.
    let fleet = guard::Target::Domain(BTreeMap::new());
    let word = holds::Word { by: "ann".to_owned(), reason: "all of it".to_owned() };
    let mut other = StdRng::seed_from_u64(4);
    assert_eq!(p.approve(&fleet, &word, None, Wall(9), &mut other), Default::default());
    assert_eq!(orders(&mut p, &end, 100_000), []);
    assert_eq!(p.guard_status(Wall(9)).holds[&guard::HoldKind::Duplicate], 1);
    // The other one has been silent for long enough, too.
    let single = turn(Turn::Single(OneLeft::Silent), State::Down, 5);
    let decision = take(&mut p, &end, single);
    let told = decision.event.unwrap();
    assert_eq!((told.kind, &told.data["state"]), (EventKind::HostSingle, &json!("down")));
    assert!(told.data["reason"].as_str().unwrap().contains("what is left is one"));
    assert!(!decision.row.duplicate && decision.row.incident == end.incident);
    assert_eq!(orders(&mut p, &decision.row, 100_200), [Order::Release(end.id, Vec::new())]);
}

#[test]
fn what_is_held_of_a_duplicate_goes_by_its_name_or_by_a_word_on_the_other() {
    let twin = |p: &mut Policy| {
        let mut at = HostRow { duplicate: true, ..row(State::Duplicate) };
        for (t, state) in [SUSPECT, DOWN] {
            at = take(p, &at, Transition { duplicate: true, ..turn(t, state, 5) }).row;
        }
        assert!(p.hold_of(at.id, Wall(9)).is_some());
        at
    };
    let word = holds::Word { by: "ann".to_owned(), reason: "it is off".to_owned() };
    let mut rng = StdRng::seed_from_u64(3);
    let (mut p, mut q) = (policy(), policy());
    let down = twin(&mut p);
    let target = guard::Target::Host(down.id);
    assert_eq!(p.approve(&target, &word, Some(&down), Wall(9), &mut rng).released, 1);
    let kind = EventKind::HostDown;
    assert_eq!(Policy::rejudge(Some(&down), kind, down.incident), Ok(()), "and it is still true");

    let down = twin(&mut q);
    let one = HostRow { duplicate: false, ..down.clone() };
    q.changed(Some(&down), Some(&one));
    let event = q.singled(&one, &word, Wall(9), &mut rng);
    assert_eq!(event.data["reason"], "ann says that one machine is left: it is off");
    q.step(Instant::from_millis(1_000));
    let orders = q.orders(|_| Some(one.clone()), Wall(9), &mut rng);
    assert_eq!(orders, [Order::Release(down.id, Vec::new())]);
}

#[test]
fn a_duplicate_is_a_state_of_its_own_told_with_both_addresses_until_it_ends() {
    let mut p = policy();
    let mut at = row(State::Alive);
    let mut events = Vec::new();
    let address = |n: u8| Some(([192, 0, 2, n], 4_000).into());
    let both = Turn::Duplicate { other: Boot(9), address: address(2) };
    let mut play = |p: &mut Policy, t, duplicate, boot| {
        let t = Transition { duplicate, address: address(1), ..turn(t, State::Alive, boot) };
        let decision = take(p, &at, t);
        at = decision.row;
        events.extend(decision.event);
        at.clone()
    };
    // As the detector tells it: first the other life, then that there are two.
    play(&mut p, Turn::Restarted, false, 5);
    let twins = play(&mut p, both, true, 5);
    assert_eq!((twins.state, twins.duplicate), (State::Duplicate, true));
    for boot in [9, 5, 9] {
        assert_eq!(play(&mut p, Turn::Restarted, true, boot).state, State::Duplicate);
    }
    let one = play(&mut p, Turn::Single(OneLeft::Silent), false, 9);
    assert_eq!((one.state, one.duplicate), (State::Alive, false));
    assert_eq!(kinds(&events), [EventKind::HostDuplicate, EventKind::HostSingle]);
    let reason = events[0].data["reason"].as_str().unwrap();
    assert!(reason.contains("192.0.2.1:4000, and boot 9 at 192.0.2.2:4000"), "{reason}");
    assert_eq!(events[0].data["state"], "duplicate");
    // The turn itself was merged away: the mark on a later one tells it all the same.
    let late = Transition { duplicate: true, ..turn(Turn::Restarted, State::Alive, 6) };
    let decision = take(&mut p, &one, late);
    assert_eq!(decision.row.state, State::Duplicate);
    let orders = p.orders(|_| None, Wall(0), &mut StdRng::seed_from_u64(9));
    assert!(matches!(&orders[..], [Order::Event(e)] if e.kind == EventKind::HostDuplicate));
}

#[test]
fn an_overdue_leave_is_an_incident_that_ends_in_a_failover_or_in_a_mistake() {
    let expected = Duration::from_secs(60);
    let left = (
        Turn::Left { reason: heartwatch_common::wire::LeaveReason::Reboot, expected },
        State::Left,
    );
    let overdue = (Turn::Overdue { expected }, State::Suspect);
    let turns = [(left, 5), (overdue, 5), (DOWN, 5)];
    let (events, end) = play(&mut policy(), row(State::Alive), &turns);
    assert_eq!(kinds(&events), [EventKind::HostLeft, EventKind::HostOverdue, EventKind::HostDown]);
    assert_eq!(events[0].row.as_ref().unwrap().back_by, Some(Wall(61_000)));
    assert!(events[0].incident.is_none() && events[1].incident.is_some());
    assert_eq!((events[2].incident, end.state), (events[1].incident, State::Down));
    assert_eq!(events[2].deliveries.len(), 1, "acted upon as any other");
    let (back, now) = play(&mut policy(), end.clone(), &[(recovered(true), 5)]);
    assert_eq!((back[0].data["same_boot"].clone(), now.back_by), (json!(true), None));
    let (back, _) = play(&mut policy(), end, &[(recovered(false), 6)]);
    assert_eq!(back[0].data["same_boot"], false);
    // For good: nobody waits for it.
    let good = (
        Turn::Left {
            reason: heartwatch_common::wire::LeaveReason::Shutdown,
            expected: Duration::ZERO,
        },
        State::Left,
    );
    let (events, end) = play(&mut policy(), row(State::Alive), &[(good, 5)]);
    assert!(events[0].data["reason"].as_str().unwrap().contains("for good"));
    assert_eq!(end.back_by, None);
}

#[test]
fn orders_are_judged_against_the_present_state_not_replayed() {
    let mut p = policy();
    let (events, down) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5)]);
    let incident = events[1].incident;
    let judge = |row, kind| Policy::rejudge(row, kind, incident);
    assert_eq!(judge(Some(&down), EventKind::HostDown), Ok(()));
    let (_, back) = play(&mut p, down.clone(), &[(recovered(true), 5)]);
    assert!(judge(Some(&back), EventKind::HostDown).unwrap_err().contains("alive"));
    let (_, again) = play(&mut p, back.clone(), &[(DOWN, 5)]);
    assert!(judge(Some(&again), EventKind::HostDown).unwrap_err().contains("another"));
    assert!(judge(None, EventKind::HostDown).is_err());
    assert!(judge(Some(&again), EventKind::HostRecovered).unwrap_err().contains("down"));
    assert_eq!(judge(None, EventKind::HostForgotten), Ok(()));
}

#[test]
fn a_missing_host_is_told_once_and_its_joining_ends_that_incident() {
    let turns = [
        ((Turn::Missing, State::Pending), 0),
        ((Turn::Missing, State::Pending), 0),
        ((Turn::Joined, State::Alive), 3),
    ];
    let (events, end) = play(&mut policy(), row(State::Pending), &turns);
    assert_eq!(kinds(&events), [EventKind::HostMissing, EventKind::HostJoined]);
    assert_eq!((events[1].incident, end.incident), (events[0].incident, None));
}

#[test]
fn a_goodbye_closes_the_incident_and_settles_its_orders() {
    let left = Turn::Left {
        reason: heartwatch_common::wire::LeaveReason::Reboot,
        expected: std::time::Duration::from_secs(600),
    };
    let (events, end) =
        play(&mut policy(), row(State::Alive), &[(SUSPECT, 5), ((left, State::Left), 5)]);
    assert_eq!(events[1].kind, EventKind::HostLeft);
    assert_eq!((events[1].settle.clone(), end.incident), (Settle::All, None));
    assert_eq!(events[1].data["expected_away_s"], 600);
}

const CUT: (Turn, State) = (Turn::Unreachable, State::Suspect);

#[test]
fn an_unreachable_host_stays_suspect_and_its_return_says_that_the_network_was_cut() {
    let turns = [(SUSPECT, 5), (CUT, 5), (CUT, 5), (recovered(true), 5)];
    let (events, end) = play(&mut policy(), row(State::Alive), &turns);
    assert_eq!(
        kinds(&events),
        [EventKind::HostSuspect, EventKind::HostUnreachable, EventKind::HostRecovered],
        "said once"
    );
    let row = events[1].row.as_ref().unwrap();
    assert_eq!((row.state, row.cause), (State::Suspect, Some(Cause::Unreachable)));
    assert!(events.iter().all(|e| e.incident == events[0].incident));
    assert_eq!(events[2].data["from_cause"], "unreachable");
    assert!(events[2].data["reason"].as_str().unwrap().contains("the network was cut"));
    assert_eq!((end.state, end.incident, end.cause), (State::Alive, None, None));
}

#[test]
fn an_unreachable_host_that_goes_down_takes_back_what_was_said_of_it() {
    let (events, end) = play(&mut policy(), row(State::Alive), &[(CUT, 5), (DOWN, 5)]);
    assert_eq!(kinds(&events), [EventKind::HostUnreachable, EventKind::HostDown]);
    assert_eq!((events[1].settle.clone(), end.cause), (Settle::All, Some(Cause::Silent)));
    assert_eq!(events[0].incident, events[1].incident);
}

#[test]
fn an_unreachable_host_is_told_of_only_where_a_rule_names_it_and_fails_nothing_over() {
    let author = Author { id: ControllerId(1), name: "c".to_owned() };
    let failover = rule(&[EventKind::HostDown, EventKind::HostRecovered], "orchestrator");
    let mut p = Policy::new(author, vec![failover, rule(&[EventKind::HostUnreachable], "network")]);
    let (events, _) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (CUT, 5)]);
    let told: Vec<_> = events[1].deliveries.iter().map(|d| d.receiver.as_str()).collect();
    assert_eq!((events[0].deliveries.len(), told), (0, vec!["network"]));
}

#[test]
fn an_unreachable_order_is_true_only_while_that_is_why_it_is_suspect() {
    let cut = HostRow { cause: Some(Cause::Unreachable), ..row(State::Suspect) };
    let judge = |row: &HostRow| Policy::rejudge(Some(row), order_of(Some(&cut)), None);
    assert_eq!(order_of(Some(&cut)), EventKind::HostUnreachable);
    assert_eq!(judge(&cut), Ok(()));
    assert!(judge(&row(State::Suspect)).is_err() && judge(&row(State::Down)).is_err());
}

#[test]
fn a_frozen_margin_is_journaled_with_the_row_that_keeps_it() {
    let (p, mut rng) = (policy(), StdRng::seed_from_u64(1));
    let frozen = HostRow { frozen_ms: Some(5_000), ..row(State::Alive) };
    let event = p.frozen(&frozen, Wall(7), &mut rng);
    assert_eq!((event.kind, event.row.as_ref()), (EventKind::HostFrozen, Some(&frozen)));
    assert_eq!(event.data["frozen_ms"], 5_000);
    assert_eq!(event.data["reason"], "an operator keeps its margin at 5000 ms");
    let event = p.frozen(&row(State::Alive), Wall(8), &mut rng);
    assert_eq!(event.kind, EventKind::HostUnfrozen);
}

/// A restarted controller knows at once which group and which override a host has, and where its margin is
/// kept.
#[test]
fn what_the_registry_knows_of_a_host_is_known_to_its_shard_from_the_start() {
    use crate::config::RawConfig;
    use std::time::Duration;

    let text =
        "[[detector.overrides]]\nname = \"db\"\nmatch = { pool = \"db\" }\ntimeout_max = \"5s\"";
    let raw: RawConfig = toml::from_str(text).unwrap();
    let config = raw.check().unwrap();
    let labels = BTreeMap::from([("pool".to_owned(), "db".to_owned())]);
    let row = HostRow { labels: labels.clone(), frozen_ms: Some(5_000), ..row(State::Alive) };
    let known =
        driver::known_of(&row, &config.domain_labels, &config.knobs, Wall(0), Default::default());
    assert_eq!(known.profile, config.knobs.profile(&labels));
    assert_eq!(known.profile.knobs, 1);
    assert_ne!(known.profile.group, 0);
    assert_eq!(known.frozen, Some(Duration::from_secs(5)));
}

/// Alerts of a rule that says `always` go at once, whatever holds the failover; and who is told why.
#[test]
fn what_a_rule_sends_always_is_never_held() {
    let author = Author { id: ControllerId(1), name: "c".to_owned() };
    let alert = Rule { always: true, ..rule(&[EventKind::HostDown], "pager") };
    let mut p = Policy::new(author, vec![rule(&[EventKind::HostDown], "orchestrator"), alert]);
    p.set_pause(Some(Pause { until_ms: Wall(5), reason: "switch work".to_owned() }));
    let (events, _) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5)]);
    let holds: Vec<_> =
        events[1].deliveries.iter().map(|d| (&*d.receiver, d.hold.is_some())).collect();
    assert_eq!(holds, [("orchestrator", true), ("pager", false)]);
    let hold = p.hold_of(HostId([1; 16]), Wall(9)).unwrap();
    assert!(hold.reason.contains("switch work"), "{}", hold.reason);
}

#[test]
fn a_flapping_host_is_one_incident_and_not_a_stream() {
    let (mut p, mut rng) = (policy(), StdRng::seed_from_u64(4));
    let mut at = row(State::Alive);
    let mut told = Vec::new();
    for n in 0..40 {
        for (t, state) in [SUSPECT, recovered(true)] {
            let now = Instant::from_millis(1_000_000 + n * 10_000);
            let decision = take(&mut p, &at, Transition { at: now, ..turn(t, state, 5) });
            at = decision.row;
            told.extend(decision.event.map(|e| e.kind));
            let orders = p.orders(|_| None, Wall(0), &mut rng);
            told.extend(orders.into_iter().map(|order| match order {
                Order::Event(event) => event.kind,
                other => panic!("{other:?}"),
            }));
        }
    }
    assert_eq!((at.state, at.incident), (State::Alive, None), "what it is, is always true");
    let count = |kind| told.iter().filter(|k| **k == kind).count();
    assert_eq!(count(EventKind::HostFlapping), 1);
    assert_eq!(count(EventKind::HostSuspect), count(EventKind::HostRecovered));
    assert!((8..16).contains(&count(EventKind::HostSuspect)), "{told:?}");
    // It stays dead: that is told, and held for a while.
    let now = Instant::from_millis(2_000_000);
    let decision = take(&mut p, &at, Transition { at: now, ..turn(DOWN.0, DOWN.1, 5) });
    let event = decision.event.unwrap();
    assert!(event.deliveries[0].hold.as_ref().unwrap().contains("flapping"));
    p.step(now + Duration::from_secs(121));
    let orders = p.orders(|_| None, Wall(0), &mut rng);
    assert!(orders.contains(&Order::Release(HostId([1; 16]), Vec::new())), "{orders:?}");
}

#[test]
fn in_maintenance_nobody_is_alerted_nothing_is_done_and_everything_is_recorded() {
    use super::maintenance::{Scope, Window, WindowId};
    let mut p = Policy::new(
        Author { id: ControllerId(1), name: "c".to_owned() },
        vec![
            rule(&EventKind::ALL, "orchestrator"),
            Rule { always: true, ..rule(&EventKind::ALL, "pager") },
        ],
    );
    let window = Window {
        id: WindowId(1),
        scope: Scope::Host(HostId([1; 16])),
        reason: "new disk".to_owned(),
        by: "ann".to_owned(),
        from_ms: Wall(0),
        until_ms: Wall(60_000),
        announced: false,
        begun: false,
    };
    p.add_window(window, Instant(0), Wall(0));
    let mut rng = StdRng::seed_from_u64(1);
    let mut kept = Vec::new();
    for edge in p.windows_step(Instant(0)) {
        kept.push(p.window_event(&edge, Some(&row(State::Alive)), "", Wall(0), &mut rng));
        p.look_again(&row(State::Alive));
    }
    assert_eq!(kinds(&kept), [EventKind::MaintenanceStarted]);
    assert_eq!((kept[0].host, &kept[0].data["by"]), (Some(HostId([1; 16])), &json!("ann")));
    let (events, end) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5)]);
    assert_eq!(end.state, State::Down, "what is true is recorded");
    let told = |e: &NewEvent| {
        let held = |d: &NewDelivery| (d.receiver.clone(), d.hold.clone().is_some());
        e.deliveries.iter().map(held).collect::<Vec<_>>()
    };
    assert_eq!(told(&events[0]), [("pager".to_owned(), false)]);
    let both = [("orchestrator".to_owned(), true), ("pager".to_owned(), false)];
    assert_eq!(told(&events[1]), both);
    let reason = events[0].data["verdicts"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("window m1 of ann): new disk"), "{reason}");
    // No flap penalty either, however often it goes up and down.
    for _ in 0..9 {
        play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5), (recovered(true), 5)]);
    }
    assert_eq!(p.guard_status(Wall(0)).flapping, 0);
    p.changed(None, Some(&end));
    let edges = p.windows_step(Instant::from_millis(60_000));
    assert_eq!((edges.len(), edges[0].opened), (1, false));
    p.look_again(&end);
    p.step(Instant::from_millis(60_000));
    assert!(p.shelter_of(end.id).is_none());
}

#[test]
fn a_duplicate_and_a_dry_run_take_no_place_in_any_line() {
    let author = Author { id: ControllerId(1), name: "c".to_owned() };
    let dry = Rule { dry_run: true, ..rule(&[EventKind::HostDown], "orchestrator") };
    let mut p = Policy::new(author, vec![dry]);
    p.set_pause(Some(Pause { until_ms: Wall(5), reason: "x".to_owned() }));
    let (events, _) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5)]);
    assert!(events[1].deliveries.is_empty() && p.hold_of(HostId([1; 16]), Wall(9)).is_none());
}

#[test]
fn an_operators_word_is_an_event_of_the_host() {
    use guard::Target;
    use holds::Word;
    let (mut p, mut rng) = (policy(), StdRng::seed_from_u64(4));
    p.set_pause(Some(Pause { until_ms: Wall(5), reason: "x".to_owned() }));
    let (_, down) = play(&mut p, row(State::Alive), &[(SUSPECT, 5), (DOWN, 5)]);
    let word = Word { by: "ann".to_owned(), reason: "it burns".to_owned() };
    let target = Target::Host(down.id);
    let report = p.approve(&target, &word, Some(&down), Wall(9), &mut rng);
    assert_eq!(report.released, 1);
    let orders = p.orders(|_| None, Wall(9), &mut rng);
    let Order::Event(event) = &orders[0] else { panic!("{orders:?}") };
    assert_eq!((event.kind, event.host), (EventKind::HoldApproved, Some(down.id)));
    assert_eq!(event.data["reason"], "ann approved its held order: it burns");
    assert_eq!(orders[1], Order::Release(down.id, Vec::new()));
    assert_eq!(p.approve(&target, &word, Some(&down), Wall(9), &mut rng).released, 0);
}

/// Picks from a large pool cost more than all else of a turn: 100,000 hosts that die under no rule at all
/// were each given candidates that nobody would ever see.
#[test]
fn candidates_are_looked_for_if_a_rule_names_the_order_be_it_a_dry_run() {
    let lively = rule(&[EventKind::HostDown], "orchestrator");
    let dry = Rule { dry_run: true, ..lively.clone() };
    let alert = rule(&[EventKind::HostSuspect], "pager");
    for (rules, asked) in [(vec![lively], true), (vec![dry], true), (vec![alert], false)] {
        let author = Author { id: ControllerId(1), name: "c".to_owned() };
        let (mut policy, mut looks) = (Policy::new(author, rules), 0);
        let down = turn(DOWN.0, DOWN.1, 5);
        let mut rng = StdRng::seed_from_u64(1);
        let look = |_: &Wanted<'_>| {
            looks += 1;
            Placement::default()
        };
        let decision = policy.take(&row(State::Suspect), &down, Wall(1_000), look, &mut rng);
        let event = decision.event.expect("a fall is journaled whoever is told");
        assert_eq!(event.data.contains_key("candidates"), asked);
        assert_eq!(looks, u32::from(asked));
    }
}
