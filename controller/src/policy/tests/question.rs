//! What would happen is what happens.

use super::waits::{HOUR, MONDAY, alive, at_hours, author, delayed, happens, orders, secs};
use super::*;
use crate::config::Outside;
use crate::policy::question::parse_supposed;
use crate::policy::waits::WaitFor;
use proptest::prelude::*;

#[test]
fn it_tells_which_clause_failed_who_is_told_and_when() {
    let mut db = delayed("orchestrator", 30);
    db.expression = Some("pool in (db, cache) and zone != z3".parse().unwrap());
    let night = Rule { name: "office".to_owned(), ..at_hours("desk", Outside::Suppress) };
    let p = Policy::new(author(), vec![db, night, rule(&[EventKind::HostLeft], "log")]);
    let labels = BTreeMap::from([("pool".to_owned(), "db".to_owned())]);
    let host = HostRow { labels, name: "db-1".to_owned(), ..alive(1) };
    let f = p.foresee(&host, EventKind::HostDown, MONDAY).unwrap();
    let failed: Vec<_> = f.rules.iter().map(|r| r.failed.as_deref().unwrap_or("-")).collect();
    assert_eq!(failed, ["-", "-", "events: host.down is not among host.left"]);
    let [orchestrator, desk] = &f.receivers[..] else { panic!("{f:?}") };
    assert_eq!((orchestrator.verdict.as_str(), orchestrator.waits.len()), ("hold", 1));
    assert_eq!(orchestrator.goes_ms, Some(Wall(MONDAY.0 + 30_000)));
    assert_eq!((desk.verdict.as_str(), desk.goes_ms), ("suppress", None));
    // Two hours later the office is open.
    let f = p.foresee(&host, EventKind::HostDown, Wall(MONDAY.0 + 2 * HOUR)).unwrap();
    assert_eq!(f.receivers[1].verdict, "act");
    let web = HostRow { labels: BTreeMap::new(), ..host };
    let f = p.foresee(&web, EventKind::HostDown, MONDAY).unwrap();
    let why = f.rules[0].failed.as_deref().unwrap();
    assert_eq!(why, "match: `pool in (db, cache)` does not hold: it has no label pool");
}

#[test]
fn what_holds_now_is_told_and_nothing_is_changed_by_asking() {
    let mut p = Policy::new(author(), vec![delayed("a", 30)]);
    p.set_pause(Some(Pause { until_ms: Wall(5), reason: "switch work".to_owned() }));
    p.changed(None, Some(&alive(1)));
    let before = format!("{p:?}");
    let f = p.foresee(&alive(1), EventKind::HostDown, MONDAY).unwrap();
    assert_eq!(format!("{p:?}"), before);
    let a = &f.receivers[0];
    let waits: Vec<_> = a.waits.iter().map(|w| w.wait).collect();
    assert_eq!((waits, a.goes_ms), (vec![WaitFor::Delay, WaitFor::Guard], None));
    assert!(a.waits[1].reason.contains("switch work"));
    // Of one that is down already the same is told.
    let down = HostRow { cause: Some(Cause::Silent), ..HostRow { state: State::Down, ..alive(1) } };
    assert_eq!(p.foresee(&down, EventKind::HostDown, MONDAY).unwrap().receivers.len(), 1);
    let f = p.foresee(&alive(1), EventKind::HostRecovered, MONDAY).unwrap();
    assert!(f.receivers.is_empty() && f.notes[0].contains("only who was told"));
}

#[test]
fn what_cannot_be_supposed_is_refused_with_what_can() {
    assert_eq!(parse_supposed("down"), Ok(EventKind::HostDown));
    assert_eq!(parse_supposed("host.agent-lost"), Ok(EventKind::HostAgentLost));
    for text in ["up", "domain.down", "", "host.forgotten"] {
        assert!(parse_supposed(text).unwrap_err().contains("down, agent-lost"), "{text}");
    }
}

proptest! {
    /// Whatever the rules: who is foreseen to be told at once or later is told then, and nobody else.
    #[test]
    fn what_is_foreseen_happens(
        delays in prop::collection::vec((0..3u64, 0..3u8, any::<bool>()), 1..5), hour in 0..24i64,
    ) {
        let rules: Vec<Rule> = delays.iter().enumerate().map(|(n, (delay, hours, dry))| Rule {
            delay: Duration::from_secs(delay * 600),
            dry_run: *dry && n % 2 == 0,
            ..match hours {
                0 => delayed(["a", "b", "c"][n % 3], 0),
                1 => at_hours(["a", "b", "c"][n % 3], Outside::Hold),
                _ => at_hours(["a", "b", "c"][n % 3], Outside::Suppress),
            }
        }).collect();
        let mut p = Policy::new(author(), rules);
        p.changed(None, Some(&alive(1)));
        let at = Wall(MONDAY.0 + hour * HOUR + 17 * 60_000);
        let foreseen = p.foresee(&alive(1), EventKind::HostDown, at).unwrap();
        let goes = |r: &crate::policy::question::ReceiverForesight| {
            r.goes_ms.map(|goes| (r.receiver.clone(), goes.0 - at.0))
        };
        let foreseen: BTreeMap<String, i64> = foreseen.receivers.iter().filter_map(goes).collect();
        let fall = happens(&mut p, &alive(1), DOWN, secs(0), at);
        let event = fall.event.unwrap();
        let sent = event.deliveries.iter().filter(|d| d.hold.is_none());
        let mut told: BTreeMap<String, i64> = sent.map(|d| (d.receiver.clone(), 0)).collect();
        for minute in 1..=1_440 * 2i64 {
            let now = secs(minute.unsigned_abs() * 60);
            for order in orders(&mut p, &fall.row, now, Wall(at.0 + minute * 60_000)) {
                if let Order::Part(part) = order && part.go.is_ok() {
                    prop_assert!(told.insert(part.receiver, minute * 60_000).is_none(), "once");
                }
            }
        }
        prop_assert_eq!(told, foreseen);
    }
}
