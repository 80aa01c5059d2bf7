//! Random histories: SQL and oracle answer alike and stand alike after every step.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::oracle::{Oracle, same_begin};
use crate::store::{Cursor, Retention, Token};

const RECEIVERS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Op {
    Append {
        id: u8,
        host: u8,
        incident: u8,
        kind: usize,
        settle: u8,
        told: bool,
        to: Vec<(u8, bool)>,
    },
    Begin(u8),
    Finish(u8, Ending),
    Release(u8, Receivers, bool),
    Redrive(u8),
    Cancel(u8),
    Forget(u8, u8),
    Reopen,
}

#[derive(Clone, Debug)]
enum Ending {
    Delivered,
    Retry(u16),
    Dead,
    Vetoed,
    /// The receiver has seen its own token and this much.
    Conflict(i8),
    Absurd,
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        2 => Just(Ending::Delivered),
        2 => any::<u16>().prop_map(Ending::Retry),
        1 => Just(Ending::Dead),
        1 => Just(Ending::Vetoed),
        3 => (-1i8..6).prop_map(Ending::Conflict),
        1 => Just(Ending::Absurd),
    ]
}

fn which() -> impl Strategy<Value = Receivers> {
    let name = || (0usize..3).prop_map(|n| RECEIVERS[n].to_owned());
    prop_oneof![
        2 => Just(Receivers::All),
        1 => name().prop_map(Receivers::Only),
        1 => proptest::collection::vec(name(), 0..3).prop_map(Receivers::AllBut),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let to = proptest::collection::vec((0u8..3, prop::bool::weighted(0.2)), 0..4);
    let append = (any::<u8>(), 0u8..4, 0u8..3, 0usize..14, 0u8..4, any::<bool>(), to).prop_map(
        |(id, host, incident, kind, settle, told, to)| Op::Append {
            id,
            host,
            incident,
            kind,
            settle,
            told,
            to,
        },
    );
    prop_oneof![
        4 => append,
        6 => (1u8..24).prop_map(Op::Begin),
        6 => ((1u8..24), ending()).prop_map(|(n, e)| Op::Finish(n, e)),
        1 => (1u8..4, which(), any::<bool>()).prop_map(|(h, which, go)| Op::Release(h, which, go)),
        1 => (1u8..24).prop_map(Op::Redrive),
        1 => (1u8..24).prop_map(Op::Cancel),
        1 => (any::<u8>(), 1u8..4).prop_map(|(id, h)| Op::Forget(id, h)),
        1 => Just(Op::Reopen),
    ]
}

fn new_event(op: &Op) -> NewEvent {
    let Op::Append { id, host: h, incident: i, kind, settle, told, to } = op else {
        panic!("only called for an append")
    };
    let mut new = event(u128::from(*id) + 1, EventKind::ALL[*kind], &[]);
    new.host = (*h > 0).then(|| host(*h));
    new.incident = (*i > 0).then(|| incident(u128::from(*i)));
    let at = Settle::At(vec![RECEIVERS[0].to_owned()]);
    let settles = [Settle::Nothing, Settle::SameReceivers, Settle::All, at];
    new.settle = settles[usize::from(*settle)].clone();
    new.audience = if *told { Audience::Told } else { Audience::All };
    new.row = (*h > 0).then(|| row(*h));
    new.deliveries = to
        .iter()
        .map(|(r, held)| NewDelivery {
            receiver: RECEIVERS[usize::from(*r)].to_owned(),
            hold: held.then(|| "held".to_owned()),
        })
        .collect();
    new
}

fn step(db: &Db, oracle: &mut Oracle, op: &Op) {
    match op {
        Op::Append { .. } => {
            let new = new_event(op);
            let expected = oracle.append(&new);
            assert_eq!(db.append(&[new]).unwrap(), [expected]);
        }
        Op::Begin(n) => {
            let answer = db.begin_attempt(DeliveryId((*n).into()), NOW).unwrap();
            let expected = oracle.begin((*n).into());
            assert!(same_begin(&expected, &answer), "{expected:?} {answer:?}");
        }
        Op::Finish(n, ending) => {
            let own = oracle.deliveries.get(usize::from(*n) - 1);
            let own = own.and_then(|d| oracle.event(d.event).token).unwrap_or(1);
            let verdict = match ending {
                Ending::Delivered => FinishVerdict::Delivered,
                Ending::Retry(ms) => {
                    FinishVerdict::Retry { wait: Duration::from_millis((*ms).into()) }
                }
                Ending::Vetoed => FinishVerdict::Vetoed { reason: "no".to_owned() },
                Ending::Dead => FinishVerdict::Dead { reason: "gone".to_owned() },
                Ending::Conflict(more) => FinishVerdict::Conflict {
                    highest: Token(own.saturating_add_signed((*more).into())),
                },
                Ending::Absurd => FinishVerdict::Conflict { highest: Token(u64::MAX) },
            };
            let expected = oracle.finish((*n).into(), &verdict);
            let answer = db.finish_attempt(DeliveryId((*n).into()), &finish(verdict));
            assert_eq!(answer.ok(), expected);
        }
        Op::Release(h, which, go) => {
            let verdict = if *go { Ok(()) } else { Err("rejected".to_owned()) };
            let released = db.release(host(*h), which, verdict, NOW).unwrap();
            assert_eq!(released, oracle.release(host(*h), which, *go));
        }
        Op::Redrive(n) => {
            let answer = db.redrive(DeliveryId((*n).into()), NOW).unwrap();
            assert_eq!(answer, oracle.redrive((*n).into()));
        }
        Op::Cancel(n) => {
            let answer = db.cancel(DeliveryId((*n).into()), "by hand", NOW).unwrap();
            assert_eq!(answer, oracle.cancel((*n).into()));
        }
        Op::Forget(id, h) => {
            let mut new = event(u128::from(*id) + 1, EventKind::HostForgotten, &RECEIVERS);
            new.host = Some(host(*h));
            assert_eq!(db.forget(host(*h), &new).unwrap(), oracle.forget(host(*h), &new));
        }
        Op::Reopen => {}
    }
}

fn compare(db: &Db, oracle: &Oracle) {
    let events = db.events(Cursor(0), None, 1_000).unwrap();
    let cursor_of = |id: &str| events.iter().find(|e| e.id.to_string() == id).map(|e| e.cursor.0);
    assert_eq!(events.len(), oracle.events.len());
    assert_eq!(db.head().unwrap().0, events.len() as u64);
    for (n, (e, o)) in events.iter().zip(&oracle.events).enumerate() {
        assert_eq!(e.cursor.0, n as u64 + 1);
        assert_eq!((e.kind, e.host, e.incident), (o.kind, o.host, o.incident));
        assert_eq!(e.token.map(|t| t.0), o.token);
        assert!(o.id.is_none_or(|id| id == e.id));
        let named = e.data.get("supersedes").and_then(|s| s.as_array()).cloned();
        let named: Vec<_> = named
            .unwrap_or_default()
            .iter()
            .map(|id| cursor_of(id.as_str().unwrap()).unwrap())
            .collect();
        assert_eq!(named, o.supersedes);
    }
    for h in 1..4 {
        let tokens: Vec<_> =
            events.iter().filter(|e| e.host == Some(host(h))).map(|e| e.token).collect();
        assert!(tokens.is_sorted_by(|a, b| a < b), "tokens rise: {tokens:?}");
    }
    let rows = db.deliveries(&DeliveryFilter::default(), 1_000).unwrap();
    assert_eq!(rows.len(), oracle.deliveries.len());
    for (n, (d, o)) in rows.iter().zip(&oracle.deliveries).enumerate() {
        assert_eq!(d.id.0, n as u64 + 1);
        assert_eq!(d.event, events[o.event as usize - 1].id);
        assert_eq!((&d.receiver, d.state, d.attempts), (&o.receiver, o.state, o.attempts));
    }
    for r in RECEIVERS {
        assert_eq!(db.pending(r, None, 1_000).unwrap(), oracle.pending(r));
    }
    let known: BTreeSet<HostId> = db.hosts().unwrap().iter().map(|h| h.id).collect();
    assert_eq!(known, oracle.hosts);
    chains(db);
}

/// What is found by host is what is found by looking at everything.
fn chains(db: &Db) {
    let events = db.events(Cursor(0), None, 1_000).unwrap();
    let deliveries = db.deliveries(&DeliveryFilter::default(), 1_000).unwrap();
    for h in 0..5 {
        let h = host(h);
        let own: Vec<_> = events.iter().filter(|e| e.host == Some(h)).cloned().collect();
        assert_eq!(db.events(Cursor(0), Some(h), 1_000).unwrap(), own);
        let half = own.get(own.len() / 2).map_or(Cursor(0), |e| e.cursor);
        let late: Vec<_> = own.iter().filter(|e| e.cursor > half).take(2).cloned().collect();
        assert_eq!(db.events(half, Some(h), 2).unwrap(), late);
        let newest: Vec<_> = own.iter().rev().take(3).cloned().collect();
        assert_eq!(db.events_of(h, 3).unwrap(), newest);
        let filter = DeliveryFilter { host: Some(h), ..DeliveryFilter::default() };
        let own: Vec<_> = deliveries.iter().filter(|d| d.host == Some(h)).cloned().collect();
        assert_eq!(db.deliveries(&filter, 1_000).unwrap(), own);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_history_leaves_what_the_oracle_says(ops in proptest::collection::vec(op(), 1..60)) {
        let db = Db::memory().unwrap();
        let mut oracle = Oracle { epoch: 1, ..Oracle::default() };
        for op in &ops {
            step(&db, &mut oracle, op);
            compare(&db, &oracle);
        }
    }

    /// An event stays while a delivery of it is unfinished, newer ones of its host may go before it.
    #[test]
    fn whatever_is_thrown_away_what_stays_is_found(
        ops in proptest::collection::vec(op(), 1..60),
        keep in 0..30u64,
    ) {
        let db = Db::memory().unwrap();
        let mut oracle = Oracle { epoch: 1, ..Oracle::default() };
        ops.iter().for_each(|op| step(&db, &mut oracle, op));
        let long = Duration::from_secs(1 << 40);
        for events_max in [keep, 0] {
            db.prune(Retention { events: long, events_max, dead: long }, NOW).unwrap();
            chains(&db);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_history_survives_being_cut_anywhere(ops in proptest::collection::vec(op(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut db = Some(open_in(dir.path()).unwrap());
        let mut oracle = Oracle { epoch: 1, ..Oracle::default() };
        for op in &ops {
            if matches!(op, Op::Reopen) {
                drop(db.take());
                db = Some(open_in(dir.path()).unwrap());
                oracle.epoch += 1;
            }
            step(db.as_ref().unwrap(), &mut oracle, op);
            compare(db.as_ref().unwrap(), &oracle);
        }
    }
}
