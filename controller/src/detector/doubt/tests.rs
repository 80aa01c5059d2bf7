use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MARGIN: Duration = Duration::from_millis(500);

fn s(n: u64) -> Instant {
    Instant::from_millis(n * 1_000)
}

fn ms(n: u64) -> Instant {
    Instant::from_millis(n)
}

fn record(doubt: &mut Doubt, now: Instant, received: u64, dropped: u64) {
    doubt.record(now, &Pass { seen: now, received, dropped, alive: 1_000 });
}

/// A doubt that saw so many of 1,000 datagrams dropped in every quarter of a second up to `until`.
fn dropping(per_mille: u64, until: u64, doubt_max: u64) -> Doubt {
    let mut doubt = Doubt::new(s(0), Duration::from_secs(doubt_max));
    quarters(&mut doubt, 0, until, per_mille);
    doubt
}

fn quarters(doubt: &mut Doubt, from: u64, to: u64, per_mille: u64) {
    for q in from * 4 + 1..=to * 4 {
        record(doubt, ms(q * 250), 1_000 - per_mille, per_mille);
    }
}

/// A host that beats once a second and was due at `expected`; on the controller's own machine unless
/// said otherwise, so that drops alone count.
fn overdue(expected: Instant) -> Overdue {
    Overdue {
        expected,
        gap: SECOND,
        margin: MARGIN,
        last: Some(expected - SECOND),
        local: true,
        excused_since: None,
        again: false,
    }
}

fn remote(expected: Instant) -> Overdue {
    Overdue { local: false, ..overdue(expected) }
}

fn judge(doubt: &mut Doubt, expected: u64, seen: u64) -> Excuse {
    doubt.judge(&overdue(s(expected)), s(seen))
}

/// Seconds of silence until a host expected at 10 s is convicted (or excuses end).
fn convicted_after(per_mille: u64, doubt_max: u64) -> (u64, Excuse) {
    let mut doubt = dropping(per_mille, 10, doubt_max);
    let mut excused_since = None;
    for q in 41..800 {
        let now = ms(q * 250);
        record(&mut doubt, now, 1_000 - per_mille, per_mille);
        if now < s(10) + MARGIN {
            continue;
        }
        match doubt.judge(&Overdue { excused_since, ..overdue(s(10)) }, now) {
            Excuse::Until(at, why) => {
                assert!(at > now && why == DoubtReason::Drops);
                excused_since = excused_since.or(Some(now));
            }
            done => return (q / 4 - 10, done),
        }
    }
    panic!("excused for ever");
}

#[test]
fn without_drops_one_missed_beat_is_enough() {
    assert_eq!(convicted_after(0, 30), (0, Excuse::None));
}

#[test]
fn the_fair_chance_grows_with_the_drop_share() {
    // −ln 0.01 = 4.6: four beats; at one beat per 1.5 s at the worst.
    let (one_percent, verdict) = convicted_after(10, 30);
    assert_eq!(verdict, Excuse::None);
    assert!((3..=6).contains(&one_percent), "{one_percent}");
    // −ln 0.5 = 0.69: twenty-one beats.
    let (half, verdict) = convicted_after(500, 60);
    assert_eq!(verdict, Excuse::None);
    assert!((20..=32).contains(&half), "{half}");
}

#[test]
fn a_flood_excuses_for_doubt_max_and_no_longer() {
    let (after, verdict) = convicted_after(950, 30);
    assert_eq!(verdict, Excuse::Exhausted(DoubtReason::Drops));
    assert!((30..=31).contains(&after), "{after}");
}

#[test]
fn a_trickle_of_drops_for_hours_is_no_eternal_doubt() {
    // One datagram in a thousand, all the time: two missed beats convict, and hosts are learned from.
    let (after, verdict) = convicted_after(1, 30);
    assert_eq!(verdict, Excuse::None);
    assert!(after <= 3, "{after}");
    let doubt = dropping(1, 20, 30);
    assert!(doubt.explains(s(18), s(19), 1) && !doubt.explains(s(18), s(19), 0));
}

#[test]
fn drops_before_the_expected_beat_excuse_nothing() {
    let mut doubt = dropping(900, 9, 30);
    quarters(&mut doubt, 9, 11, 0);
    assert_eq!(judge(&mut doubt, 10, 11), Excuse::None);
}

#[test]
fn after_a_stop_with_drops_one_clean_span_convicts() {
    let mut doubt = dropping(0, 10, 30);
    // Stopped for a minute: the buffer kept 100 of 240 000. Nobody is judged by that minute.
    doubt.wake(s(70), &Waking::default());
    record(&mut doubt, s(70), 100, 239_900);
    assert!(matches!(judge(&mut doubt, 10, 70), Excuse::Until(_, DoubtReason::Drops)));
    assert_eq!(doubt.since(DoubtReason::Stall), Some(s(10)));
    quarters(&mut doubt, 70, 76, 0);
    assert_eq!(judge(&mut doubt, 10, 75), Excuse::None);
    assert_eq!((doubt.since(DoubtReason::Stall), doubt.since(DoubtReason::Drops)), (None, None));
    assert!(doubt.explains(s(20), s(21), 0) && !doubt.explains(s(71), s(72), 1));
}

/// Chances were counted from the expected beat on in steps of a span, so a loss just after a step cost the
/// next one too: 7.6 s of excuse after a stop where 4 s are fair.
#[test]
fn the_chance_after_a_loss_begins_where_the_loss_ends() {
    for lost_until in [70_000, 70_400, 70_900, 71_300, 71_700] {
        let mut doubt = dropping(0, 10, 30);
        doubt.wake(s(70), &Waking::default());
        record(&mut doubt, s(70), 100, 239_900);
        for at in (70_100..=80_000).step_by(100) {
            record(&mut doubt, ms(at), 400, if at <= lost_until { 200 } else { 0 });
        }
        let host = Overdue { excused_since: Some(s(70)), ..overdue(s(10)) };
        let fair = ms(lost_until) + host.gap + host.gap / 2 + host.margin;
        let mut looks = (70_000..80_000).step_by(50).map(ms);
        let told = looks.find(|at| doubt.judge(&host, *at) == Excuse::None).unwrap();
        assert!(told >= fair && told.since(fair) <= Duration::from_millis(300), "{told:?}");
    }
}

#[test]
fn what_is_missing_after_an_own_stall_counts_as_lost_once_all_mail_is_read() {
    // 4 000 datagrams a second; then a minute's stop that leaves ten in the mailbox.
    let mut doubt = dropping(0, 60, 30);
    doubt.wake(s(120), &Waking::default());
    record(&mut doubt, s(120), 10, 0);
    assert!(matches!(judge(&mut doubt, 61, 120), Excuse::Until(_, DoubtReason::Stall)));
    // Here all of it lay in the mailbox, of which two passes read half each.
    let mut heard = dropping(0, 60, 30);
    heard.wake(s(120), &Waking::default());
    heard.record(s(120), &Pass { seen: s(90), received: 120_000, dropped: 0, alive: 1_000 });
    assert_eq!(judge(&mut heard, 61, 90), Excuse::Until(s(120), DoubtReason::Stall));
    record(&mut heard, s(121), 120_000, 0);
    assert_eq!(judge(&mut heard, 61, 121), Excuse::None);
}

#[test]
fn a_wait_that_was_asked_for_is_no_stall() {
    let mut doubt = dropping(0, 60, 30);
    doubt.wake(s(62), &Waking { asked: 2 * SECOND, ..Waking::default() });
    assert_eq!(doubt.since(DoubtReason::Stall), None);
}

#[test]
fn a_stepped_wall_clock_is_told_and_changes_no_verdict() {
    let mut doubt = dropping(0, 60, 30);
    let hour = 3_600_000;
    doubt.wake(s(60), &Waking { wall_step_ms: -hour, ..Waking::default() });
    record(&mut doubt, s(60), 1_000, 0);
    assert_eq!(doubt.since(DoubtReason::ClockStep), Some(s(60)));
    assert_eq!(judge(&mut doubt, 59, 61), Excuse::None);
    assert!(!doubt.explains(s(58), s(59), 3));
}

#[test]
fn blindness_ends_when_the_sockets_have_been_quiet() {
    let mut doubt = dropping(950, 60, 30);
    let host = Overdue { excused_since: Some(s(20)), ..overdue(s(10)) };
    assert_eq!(doubt.judge(&host, s(60)), Excuse::Exhausted(DoubtReason::Drops));
    assert!(doubt.is_blind());
    quarters(&mut doubt, 60, 64, 0);
    assert!(doubt.is_blind() && doubt.since(DoubtReason::Blind).is_some());
    quarters(&mut doubt, 64, 66, 0);
    assert!(!doubt.is_blind() && doubt.since(DoubtReason::Blind).is_none());
}

/// `hosts` of which each beats once a second, evenly spread, all heard until `until`.
fn hearing(hosts: u64, until: Instant, doubt_max: u64) -> Doubt {
    let mut doubt = Doubt::new(s(0), Duration::from_secs(doubt_max));
    for beat in 1.. {
        let at = Instant::from_micros(beat * 1_000_000 / hosts);
        if at > until {
            return doubt;
        }
        doubt.hear(at);
        if hosts < 200 || beat.is_multiple_of(hosts / 200) {
            doubt.record(at, &Pass { seen: at, received: 1, dropped: 0, alive: hosts });
        }
    }
    doubt
}

fn silence(doubt: &mut Doubt, from: Instant, until: Instant, alive: u64) {
    let mut at = from;
    while at < until {
        at = at + Duration::from_millis(5);
        doubt.record(at, &Pass { seen: at, received: 0, dropped: 0, alive });
    }
}

#[test]
fn silence_of_a_large_fleet_is_a_cut_before_anybody_is_overdue() {
    for hosts in [500, 10_000] {
        let mut doubt = hearing(hosts, s(20), 90);
        silence(&mut doubt, s(20), ms(20_050), hosts);
        let margin = Duration::from_millis(50);
        let first = Overdue { margin, ..remote(ms(20_001)) };
        let excused = doubt.judge(&first, ms(20_051));
        assert!(matches!(excused, Excuse::Until(_, DoubtReason::Cut)), "{hosts}: {excused:?}");
        assert!(doubt.holds_verdicts(ms(20_051)));
        assert!(doubt.since(DoubtReason::Cut).is_some());
    }
}

#[test]
fn after_a_cut_a_host_gets_the_time_of_its_next_beat_and_no_more() {
    let mut doubt = hearing(1_000, s(20), 90);
    silence(&mut doubt, s(20), s(80), 1_000);
    doubt.hear(s(80));
    assert!(!doubt.holds_verdicts(s(80)));
    // 1.5 gaps and the margin.
    let excused = doubt.judge(&remote(ms(20_500)), s(80));
    assert_eq!(excused, Excuse::Until(s(82), DoubtReason::Cut));
    silence(&mut doubt, s(80), ms(80_010), 1_000);
    for at in 80_011..82_001 {
        doubt.hear(ms(at));
    }
    assert_eq!(doubt.judge(&remote(ms(20_500)), s(82)), Excuse::None);
    // Nothing is learned from a gap that the cut made; but from one after it.
    assert!(doubt.explains(ms(19_500), ms(20_500), 60));
    assert!(!doubt.explains(ms(80_500), ms(81_500), 0));
    // Who was overdue before it began is not excused by it.
    assert_eq!(doubt.judge(&remote(ms(19_000)), s(82)), Excuse::None);
}

#[test]
fn a_cut_that_never_ends_excuses_for_doubt_max_and_makes_blind() {
    let mut doubt = hearing(1_000, s(20), 30);
    silence(&mut doubt, s(20), s(49), 1_000);
    let mut host = remote(ms(20_500));
    host.excused_since = Some(s(21));
    assert!(matches!(doubt.judge(&host, s(49)), Excuse::Until(..)));
    assert!(doubt.holds_verdicts(s(49)) && !doubt.is_blind());
    silence(&mut doubt, s(49), s(52), 1_000);
    assert_eq!(doubt.judge(&host, s(52)), Excuse::Exhausted(DoubtReason::Cut));
    assert!(!doubt.holds_verdicts(s(52)) && doubt.is_blind());
}

#[test]
fn four_silent_hosts_of_a_small_fleet_make_a_cut_and_three_do_not() {
    for hosts in [3u64, 8] {
        let mut doubt = hearing(hosts, s(20), 90);
        let mut excused = 0;
        for i in 1..=hosts {
            let due = s(20) + SECOND / hosts as u32 * i as u32;
            silence(&mut doubt, due, due + MARGIN, hosts);
            let verdict = doubt.judge(&remote(due), due + MARGIN);
            excused += u32::from(matches!(verdict, Excuse::Until(_, DoubtReason::Cut)));
        }
        assert_eq!(excused, if hosts == 3 { 0 } else { 5 }, "{hosts}");
    }
}

#[test]
fn silence_of_others_is_no_excuse_while_somebody_is_heard() {
    // A rack of 40 dies; two others go on.
    let mut doubt = hearing(42, s(20), 90);
    for half in 40..48u64 {
        doubt.hear(ms(half * 500));
        silence(&mut doubt, ms(half * 500), ms(half * 500 + 495), 42);
        let due = ms(half * 500 - 400);
        assert_eq!(doubt.judge(&remote(due), due + MARGIN), Excuse::None, "{half}");
    }
}

#[test]
fn hosts_on_the_own_machine_are_judged_during_a_cut() {
    let mut doubt = hearing(1_000, s(20), 90);
    silence(&mut doubt, s(20), s(22), 1_000);
    assert!(matches!(doubt.judge(&remote(ms(20_500)), s(22)), Excuse::Until(..)));
    assert_eq!(doubt.judge(&overdue(ms(20_500)), s(22)), Excuse::None);
}

#[test]
fn a_fleet_that_beats_in_step_is_not_cut_off_once_a_second() {
    let mut doubt = Doubt::new(s(0), Duration::from_secs(90));
    let mut cuts = Vec::new();
    for second in 1..120 {
        // A thousand beats within 50 ms, then nothing.
        for i in 0..1_000 {
            doubt.hear(Instant::from_micros(second * 1_000_000 + i * 50));
        }
        silence(&mut doubt, ms(second * 1_000 + 50), ms(second * 1_000 + 995), 1_000);
        if doubt.cut.is_some() {
            cuts.push(second);
        }
    }
    assert!(cuts.iter().all(|second| *second < 20), "{cuts:?}");
    // A true cut still shows, some beats later.
    silence(&mut doubt, s(120), s(124), 1_000);
    assert!(doubt.cut.is_some());
}

#[test]
fn a_link_that_flaps_is_one_cut() {
    let mut doubt = hearing(1_000, s(20), 90);
    for flap in 0..5 {
        silence(&mut doubt, s(20 + flap * 3), ms(22_900 + flap * 3_000), 1_000);
        (0..50).for_each(|i| doubt.hear(ms(22_950 + flap * 3_000 + i)));
    }
    silence(&mut doubt, s(35), s(36), 1_000);
    assert_eq!(
        doubt.cut,
        Some(s(20)),
        "from its first beginning, so that doubt_max bounds them all"
    );
}

#[test]
fn after_a_suspend_everybody_gets_a_fresh_chance() {
    let mut doubt = hearing(10, s(20), 90);
    // Our clock stood still: the host seems due in a moment, but may beat at any.
    doubt.wake(s(20), &Waking { suspended: Duration::from_secs(600), ..Waking::default() });
    record(&mut doubt, s(20), 0, 0);
    let host = Overdue { last: Some(ms(19_200)), ..remote(ms(20_200)) };
    assert_eq!(doubt.judge(&host, ms(20_700)), Excuse::Until(s(22), DoubtReason::Suspend));
    (0..30).for_each(|i| doubt.hear(ms(20_700 + i * 50)));
    assert_eq!(doubt.judge(&host, s(22)), Excuse::None);
    assert_eq!(doubt.since(DoubtReason::Suspend), Some(s(20)));
    assert!(doubt.explains(ms(19_200), ms(20_200), 0));
}

/// Three hosts that died together while nobody else beat were looked at again and again, and counted each
/// time: they made a cut, which would have excused them for as long as doubt lasts.
#[test]
fn looked_at_again_a_host_is_no_other_silent_one() {
    let mut doubt = Doubt::new(s(0), Duration::from_secs(90));
    for again in [false, true, true] {
        for _ in 0..3 {
            doubt.judge(&Overdue { again, ..remote(s(10)) }, s(20));
        }
    }
    assert!(!doubt.holds_verdicts(s(20)));
    doubt.judge(&remote(s(10)), s(20));
    assert!(doubt.holds_verdicts(s(20)), "a fourth one does");
}
