use std::time::Duration;

use super::*;
use crate::store::sqlite::{ATTEMPTS_LEN_MAX, RENEWALS_MAX, TOKEN_BELIEVED_MAX};
use crate::store::{
    BATCH_LEN_MAX, Backlog, Cursor, READ_LEN_MAX, RECORD_LEN_MAX, Retention, Token,
};

const RETRY: FinishVerdict = FinishVerdict::Retry { wait: Duration::from_secs(1) };

fn db() -> Db {
    Db::memory().unwrap()
}

#[test]
fn appending_again_changes_nothing_and_answers_the_same() {
    let db = db();
    let suspect = append(&db, event(1, EventKind::HostSuspect, &["a"]));
    let mut down = event(2, EventKind::HostDown, &["a", "b"]);
    down.settle = Settle::SameReceivers;
    down.row = Some(row(1));
    let first = db.append(&[down.clone()]).unwrap();
    assert_eq!(first[0].settled, suspect);
    db.save_hosts(&[HostRow { name: "renamed".to_owned(), ..row(1) }]).unwrap();
    assert_eq!(db.append(&[down.clone(), down]).unwrap(), [first[0].clone(), first[0].clone()]);
    assert_eq!(db.hosts().unwrap()[0].name, "renamed");
    assert_eq!(db.head().unwrap(), Cursor(2));
}

#[test]
fn rows_and_events_are_recorded_together_or_not_at_all() {
    let db = db();
    let good = event(1, EventKind::HostDown, &["a"]);
    let appended = db.record(&[row(1), row(2)], std::slice::from_ref(&good)).unwrap();
    assert_eq!(appended, db.append(&[good]).unwrap());
    let many = vec![event(9, EventKind::HostDown, &[]); RECORD_LEN_MAX + 1];
    assert!(matches!(db.record(&[row(3)], &many), Err(StoreError::Invalid(_))));
    assert_eq!(db.hosts().unwrap(), [row(1), row(2)]);
}

#[test]
fn the_registry_is_read_page_by_page() {
    let db = db();
    let rows: Vec<HostRow> = (0..=9).map(row).collect();
    db.save_hosts(&rows).unwrap();
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let page = db.hosts_after(after, 4).unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        read.extend(page);
    }
    assert_eq!(read, db.hosts().unwrap());
    assert_eq!(read.len(), 10);
}

#[test]
fn the_body_is_complete_and_the_same_on_every_attempt() {
    let db = db();
    let mut down = event(1, EventKind::HostDown, &["a"]);
    down.data.insert("token".to_owned(), 99.into());
    down.data.insert("name".to_owned(), "h\"1\"".into());
    let id = append(&db, down)[0];
    let first = go(&db, id);
    db.finish_attempt(id, &finish(RETRY)).unwrap();
    let second = go(&db, id);
    assert_eq!((first.attempt, second.attempt), (1, 2));
    assert_eq!(first.body, second.body);
    let token = (1u64 << 32) + 1;
    assert_eq!(
        first.body,
        format!(
            "{{\"type\":\"host.down\",\"timestamp\":\"2026-01-31T12:00:00.250Z\",\"data\":{{\
             \"event_id\":\"{}\",\"host\":\"{}\",\"incident\":\"{}\",\"token\":{token},\
             \"supersedes\":[],\"name\":\"h\\\"1\\\"\"}}}}",
            first.event,
            host(1),
            incident(1)
        )
    );
    let data = &db.events(Cursor(0), None, 1).unwrap()[0].data;
    assert_eq!(data["token"], token);
    assert_eq!(data["name"], "h\"1\"");
}

#[test]
fn an_event_of_the_controller_has_no_token() {
    let db = db();
    let mut blind = event(1, EventKind::ControllerBlind, &["a"]);
    (blind.host, blind.incident) = (None, None);
    let appended = db.append(&[blind]).unwrap();
    assert_eq!(appended[0].token, None);
    let outgoing = go(&db, appended[0].deliveries[0].id);
    assert_eq!(outgoing.token, None);
    assert!(!outgoing.body.contains("supersedes"));
}

#[test]
fn a_recovery_cancels_what_was_never_begun_and_supersedes_what_was() {
    let db = db();
    let ids = append(&db, event(1, EventKind::HostDown, &["a", "b", "~c"]));
    go(&db, ids[0]);
    let mut up = event(2, EventKind::HostRecovered, &["a", "b", "c"]);
    (up.settle, up.audience) = (Settle::All, Audience::Told);
    let appended = db.append(&[up.clone()]).unwrap().remove(0);
    let told: Vec<&str> = appended.deliveries.iter().map(|d| d.receiver.as_str()).collect();
    assert_eq!(told, ["a"], "b and c never heard of the outage");
    assert_eq!(appended.settled.len(), 3);
    let rows = db.deliveries(&DeliveryFilter::default(), 10).unwrap();
    let states: Vec<_> = rows.iter().map(|d| d.state).collect();
    use DeliveryState::{Cancelled, Pending, Superseded};
    assert_eq!(states, [Superseded, Cancelled, Cancelled, Pending]);
    let reason = rows[0].reason.clone().unwrap();
    assert!(reason.contains("host.recovered") && reason.contains(&up.id.to_string()), "{reason}");
    let data = &db.events(Cursor(1), None, 1).unwrap()[0].data;
    assert_eq!(data["supersedes"], serde_json::json!([event(1, EventKind::HostDown, &[]).id]));
    assert_eq!(db.begin_attempt(ids[1], NOW).unwrap(), Begin::Gone);
}

#[test]
fn an_attempt_that_the_controller_died_in_counts_as_begun() {
    let dir = tempfile::tempdir().unwrap();
    let db = open_in(dir.path()).unwrap();
    let id = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    go(&db, id);
    drop(db);
    let db = open_in(dir.path()).unwrap();
    assert_eq!(db.pending("a", None, 10).unwrap()[0].attempts, 1);
    assert!(!db.cancel(id, "late", NOW).unwrap());
    let mut up = event(2, EventKind::HostRecovered, &["a"]);
    (up.settle, up.audience) = (Settle::All, Audience::Told);
    assert_eq!(append(&db, up).len(), 1);
    assert_eq!(state(&db, id), DeliveryState::Superseded);
    assert_eq!(db.attempts(id).unwrap()[0].ended_ms, None);
}

#[test]
fn a_success_is_true_even_after_it_was_superseded() {
    let db = db();
    for (n, verdict, expected) in [
        (1, FinishVerdict::Delivered, DeliveryState::Delivered),
        (3, RETRY, DeliveryState::Superseded),
        (5, FinishVerdict::Dead { reason: "gone".to_owned() }, DeliveryState::Superseded),
        (7, FinishVerdict::Conflict { highest: Token(u64::MAX) }, DeliveryState::Superseded),
    ] {
        let id = append(&db, event(n, EventKind::HostDown, &["a"]))[0];
        go(&db, id);
        let mut up = event(n + 1, EventKind::HostRecovered, &[]);
        up.settle = Settle::All;
        append(&db, up);
        assert_eq!(db.finish_attempt(id, &finish(verdict)).unwrap(), []);
        assert_eq!(state(&db, id), expected);
    }
}

#[test]
fn order_holds_per_receiver_and_host() {
    let db = db();
    let first = append(&db, event(1, EventKind::HostJoined, &["a", "~b"]));
    let second = append(&db, event(2, EventKind::HostSuspect, &["a", "b"]));
    let mut other = event(3, EventKind::HostSuspect, &["a"]);
    other.host = Some(host(2));
    let other = append(&db, other);
    assert_eq!(db.begin_attempt(second[0], NOW).unwrap(), Begin::NotYet);
    assert_eq!(db.begin_attempt(second[1], NOW).unwrap(), Begin::NotYet, "behind a held one");
    go(&db, other[0]);
    go(&db, first[0]);
    assert_eq!(db.begin_attempt(second[0], NOW).unwrap(), Begin::NotYet);
    db.finish_attempt(first[0], &finish(FinishVerdict::Delivered)).unwrap();
    go(&db, second[0]);
    assert_eq!(db.held_hosts().unwrap(), [host(1)]);
    assert_eq!(db.release(host(1), &Receivers::All, Err("no".to_owned()), NOW).unwrap(), []);
    go(&db, second[1]);
}

/// An alert about a veto came two minutes late, as a rule's delay held another order to the same receiver.
#[test]
fn a_notice_overtakes_what_is_held_which_then_goes_under_a_higher_token() {
    let db = db();
    append(&db, event(1, EventKind::HostDown, &["~a"]));
    let veto = append(&db, event(2, EventKind::IncidentVetoed, &["a"]))[0];
    let said = go(&db, veto);
    db.finish_attempt(veto, &finish(FinishVerdict::Delivered)).unwrap();
    let due = db.release(host(1), &Receivers::All, Ok(()), NOW).unwrap();
    let order = go(&db, due[0].id);
    assert_eq!((order.kind, due.len()), (EventKind::HostDown, 1));
    assert!(order.token > said.token, "else a receiver that keeps the highest would refuse it");
    let rows = db.deliveries(&DeliveryFilter::default(), 9).unwrap();
    let states: Vec<_> = rows.iter().map(|r| r.state).collect();
    assert_eq!(
        states,
        [DeliveryState::Cancelled, DeliveryState::Delivered, DeliveryState::Pending]
    );
    // Nothing went before it: the very event that was held.
    let held = db.append(&[event(3, EventKind::HostDown, &["~b"])]).unwrap().remove(0);
    let due = db.release(host(1), &Receivers::All, Ok(()), NOW).unwrap();
    assert_eq!(go(&db, due[0].id).token, held.token);
}

/// A dead order was sent again after people had been told of it: the receiver knew that notice's token, and
/// the order passed for stale.
#[test]
fn a_notice_makes_no_order_stale() {
    let db = db();
    let order = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    go(&db, order);
    db.finish_attempt(order, &finish(FinishVerdict::Dead { reason: "x".to_owned() })).unwrap();
    let notice = db.append(&[event(2, EventKind::IncidentFailed, &["a"])]).unwrap().remove(0);
    go(&db, notice.deliveries[0].id);
    db.finish_attempt(notice.deliveries[0].id, &finish(FinishVerdict::Delivered)).unwrap();
    db.redrive(order, NOW).unwrap();
    go(&db, order);
    let highest = notice.token.unwrap();
    let born = db.finish_attempt(order, &finish(FinishVerdict::Conflict { highest })).unwrap();
    assert!(go(&db, born[0].id).token > Some(highest));
}

#[test]
fn waits_add_up_and_a_redrive_starts_them_anew() {
    let db = db();
    let id = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    assert_eq!(db.redrive(id, NOW).unwrap().unwrap().attempts, 0, "pending: as it is");
    for _ in 0..3 {
        go(&db, id);
        db.finish_attempt(id, &finish(RETRY)).unwrap();
        // Said again, by a caller that got no answer.
        db.finish_attempt(id, &finish(RETRY)).unwrap();
    }
    let due = &db.pending("a", None, 1).unwrap()[0];
    assert_eq!((due.attempts, due.waited), (3, Duration::from_secs(3)));
    go(&db, id);
    db.finish_attempt(id, &finish(FinishVerdict::Dead { reason: "gone".to_owned() })).unwrap();
    assert_eq!(db.begin_attempt(id, NOW).unwrap(), Begin::Gone);
    let due = db.redrive(id, NOW).unwrap().unwrap();
    assert_eq!((due.attempts, due.waited), (0, Duration::ZERO));
    assert_eq!(go(&db, id).attempt, 5);
    db.finish_attempt(id, &finish(FinishVerdict::Delivered)).unwrap();
    assert_eq!(db.redrive(id, NOW).unwrap(), None);
    let ended: Vec<_> = db.attempts(id).unwrap().iter().map(|a| a.ended_ms).collect();
    assert_eq!(ended, [Some(NOW); 5]);
}

#[test]
fn only_the_newest_attempts_are_kept() {
    let db = db();
    let id = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    for _ in 0..ATTEMPTS_LEN_MAX + 20 {
        go(&db, id);
        db.finish_attempt(id, &finish(RETRY)).unwrap();
    }
    let numbers: Vec<u32> = db.attempts(id).unwrap().iter().map(|a| a.number).collect();
    assert_eq!(numbers, (21..=ATTEMPTS_LEN_MAX + 20).collect::<Vec<_>>());
}

#[test]
fn a_token_from_a_lost_history_makes_the_event_anew_above_it() {
    let db = db();
    let id = append(&db, event(1, EventKind::HostDown, &["a", "b"]))[0];
    go(&db, id);
    let highest = Token((1 << 32) + 50);
    let conflict = finish(FinishVerdict::Conflict { highest });
    let born = db.finish_attempt(id, &conflict).unwrap();
    assert_eq!(db.finish_attempt(id, &conflict).unwrap(), born, "said twice, done once");
    assert_eq!(state(&db, id), DeliveryState::Superseded);
    let outgoing = go(&db, born[0].id);
    assert!(outgoing.token > Some(highest));
    assert_ne!(outgoing.event, event(1, EventKind::HostDown, &[]).id);
    let anew = &db.events(Cursor(1), None, 1).unwrap()[0];
    assert_eq!(anew.at_ms, NOW);
    assert_eq!(anew.data["supersedes"].as_array().unwrap().len(), 1);
    assert!(db.append(&[event(2, EventKind::HostDown, &[])]).unwrap()[0].token > outgoing.token);
}

#[test]
fn a_token_of_our_own_makes_a_stale_event_superseded() {
    let db = db();
    let stale = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    go(&db, stale);
    db.finish_attempt(stale, &finish(FinishVerdict::Dead { reason: "x".to_owned() })).unwrap();
    let later = db.append(&[event(2, EventKind::HostRecovered, &["a"])]).unwrap().remove(0);
    go(&db, later.deliveries[0].id);
    db.finish_attempt(later.deliveries[0].id, &finish(FinishVerdict::Delivered)).unwrap();
    let conflict = finish(FinishVerdict::Conflict { highest: later.token.unwrap() });
    db.redrive(stale, NOW).unwrap();
    go(&db, stale);
    assert_eq!(db.finish_attempt(stale, &conflict).unwrap(), []);
    assert_eq!(state(&db, stale), DeliveryState::Superseded);
}

#[test]
fn a_token_of_our_own_is_known_even_after_its_event_was_thrown_away() {
    let db = db();
    let stale = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    go(&db, stale);
    db.finish_attempt(stale, &finish(FinishVerdict::Dead { reason: "x".to_owned() })).unwrap();
    let later = db.append(&[event(2, EventKind::HostRecovered, &["a"])]).unwrap().remove(0);
    go(&db, later.deliveries[0].id);
    db.finish_attempt(later.deliveries[0].id, &finish(FinishVerdict::Delivered)).unwrap();
    let day = Duration::from_secs(86_400);
    let keep = Retention { events: day, dead: 99 * day, events_max: 1_000 };
    assert_eq!(db.prune(keep, Wall(NOW.0 + 90_000_000)).unwrap(), 2);
    assert_eq!(db.events(Cursor(0), None, 10).unwrap().len(), 1);
    db.redrive(stale, NOW).unwrap();
    go(&db, stale);
    let conflict = finish(FinishVerdict::Conflict { highest: later.token.unwrap() });
    assert_eq!(db.finish_attempt(stale, &conflict).unwrap(), []);
    assert_eq!(state(&db, stale), DeliveryState::Superseded);
}

#[test]
fn a_receiver_that_is_never_content_is_given_up() {
    let db = db();
    let mut id = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    for _ in 0..RENEWALS_MAX {
        let highest = Token(go(&db, id).token.unwrap().0 + 1_000);
        let born = db.finish_attempt(id, &finish(FinishVerdict::Conflict { highest })).unwrap();
        id = born[0].id;
    }
    let highest = Token(go(&db, id).token.unwrap().0 + 1_000);
    db.finish_attempt(id, &finish(FinishVerdict::Conflict { highest })).unwrap();
    assert_eq!(state(&db, id), DeliveryState::Dead);
    let absurd = append(&db, event(2, EventKind::HostDown, &["b"]))[0];
    go(&db, absurd);
    let highest = Token(TOKEN_BELIEVED_MAX + 1);
    db.finish_attempt(absurd, &finish(FinishVerdict::Conflict { highest })).unwrap();
    assert_eq!(state(&db, absurd), DeliveryState::Dead);
}

#[test]
fn a_conflict_over_the_own_token_after_a_repeat_means_that_it_arrived() {
    let db = db();
    let appended = db.append(&[event(1, EventKind::HostDown, &["a"])]).unwrap().remove(0);
    let id = appended.deliveries[0].id;
    go(&db, id);
    db.finish_attempt(id, &finish(RETRY)).unwrap();
    go(&db, id);
    let highest = appended.token.unwrap();
    db.finish_attempt(id, &finish(FinishVerdict::Conflict { highest })).unwrap();
    assert_eq!(state(&db, id), DeliveryState::Delivered);
}

#[test]
fn a_forgotten_host_keeps_its_token_counter() {
    let db = db();
    db.save_hosts(&[row(1), row(2)]).unwrap();
    assert_eq!(db.hosts().unwrap(), [row(1), row(2)]);
    let down = db.append(&[event(1, EventKind::HostDown, &["a"])]).unwrap().remove(0);
    let gone = event(2, EventKind::HostForgotten, &["a"]);
    assert!(db.forget(host(1), &gone).unwrap());
    assert!(db.forget(host(1), &gone).unwrap(), "said again: it was there");
    assert!(!db.forget(host(1), &event(3, EventKind::HostForgotten, &[])).unwrap());
    assert_eq!(db.hosts().unwrap(), [row(2)]);
    assert_eq!(state(&db, down.deliveries[0].id), DeliveryState::Cancelled);
    assert!(db.append(&[event(4, EventKind::HostJoined, &[])]).unwrap()[0].token > down.token);
    let wrong = db.forget(host(2), &event(5, EventKind::HostForgotten, &[]));
    assert!(matches!(wrong, Err(StoreError::Invalid(_))));
}

#[test]
fn pruning_keeps_what_is_not_finished_and_dead_letters_for_longer() {
    let db = db();
    let done = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    go(&db, done);
    db.finish_attempt(done, &finish(FinishVerdict::Delivered)).unwrap();
    let dead = append(&db, event(2, EventKind::HostDown, &["a"]))[0];
    go(&db, dead);
    db.finish_attempt(dead, &finish(FinishVerdict::Dead { reason: "x".to_owned() })).unwrap();
    let open = append(&db, event(3, EventKind::HostDown, &["a", "~b"]))[0];
    let day = Duration::from_secs(86_400);
    let keep = Retention { events: day, dead: 10 * day, events_max: 1_000 };
    let later = |days: i64| Wall(NOW.0 + days * 86_400_000 + 1);
    assert_eq!(db.prune(keep, NOW).unwrap(), 0);
    assert_eq!(db.prune(keep, later(1)).unwrap(), 2);
    assert_eq!(db.prune(keep, later(2)).unwrap(), 0);
    assert_eq!(db.prune(keep, later(10)).unwrap(), 2);
    let left = db.deliveries(&DeliveryFilter::default(), 10).unwrap();
    assert_eq!(left[0].id, open);
    assert_eq!(left.len(), 2);
    assert_eq!(db.head().unwrap(), Cursor(3));
    assert_eq!(db.attempts(dead).unwrap(), []);
}

#[test]
fn pruning_by_number_takes_the_oldest_finished_a_bounded_amount_per_call() {
    let db = db();
    append(&db, event(1, EventKind::HostDown, &["a"]));
    for batch in 0..25u128 {
        let events: Vec<_> =
            (0..100).map(|n| event(2 + batch * 100 + n, EventKind::HostJoined, &[])).collect();
        db.append(&events).unwrap();
    }
    let day = Duration::from_secs(86_400);
    let keep = Retention { events: day, dead: day, events_max: 1_000 };
    let went: Vec<u64> = (0..3).map(|_| db.prune(keep, NOW).unwrap()).collect();
    assert_eq!(went, [1_000, 501, 0]);
    let left = db.events(Cursor(0), None, 1_000).unwrap();
    assert_eq!(left.len(), 1_000);
    assert_eq!((left[0].cursor, left[1].cursor), (Cursor(1), Cursor(1_503)));
}

#[test]
fn lists_filter_and_are_bounded() {
    let db = db();
    let mut other = event(2, EventKind::HostDown, &["b"]);
    (other.host, other.incident) = (Some(host(2)), Some(incident(2)));
    db.append(&[event(1, EventKind::HostDown, &["a", "~b"]), other]).unwrap();
    let ids = |filter: DeliveryFilter| -> Vec<u64> {
        db.deliveries(&filter, usize::MAX).unwrap().iter().map(|d| d.id.0).collect()
    };
    let all = DeliveryFilter::default;
    assert_eq!(ids(DeliveryFilter { state: Some(DeliveryState::Held), ..all() }), [2]);
    assert!(ids(DeliveryFilter { state: Some(DeliveryState::Delivered), ..all() }).is_empty());
    assert_eq!(ids(DeliveryFilter { receiver: Some("b".to_owned()), ..all() }), [2, 3]);
    assert_eq!(ids(DeliveryFilter { host: Some(host(2)), ..all() }), [3]);
    assert_eq!(ids(DeliveryFilter { incident: Some(incident(1)), ..all() }), [1, 2]);
    assert_eq!(ids(DeliveryFilter { after: Some(DeliveryId(1)), ..all() }), [2, 3]);
    assert_eq!(db.events(Cursor(0), Some(host(2)), 9).unwrap()[0].cursor, Cursor(2));
    assert_eq!(db.events_of(host(1), 9).unwrap()[0].cursor, Cursor(1));
    let Backlog { by_receiver, oldest_pending } = db.backlog().unwrap();
    assert_eq!(by_receiver[&("b".to_owned(), DeliveryState::Held)], 1);
    assert_eq!(by_receiver[&("b".to_owned(), DeliveryState::Pending)], 1);
    assert_eq!(oldest_pending, Some(NOW));
    let many = vec![event(9, EventKind::HostDown, &[]); BATCH_LEN_MAX + 1];
    assert!(matches!(db.append(&many), Err(StoreError::Invalid(_))));
    let many = vec![row(1); READ_LEN_MAX + 1];
    assert!(matches!(db.save_hosts(&many), Err(StoreError::Invalid(_))));
}

#[test]
fn small_values_are_set_replaced_and_removed() {
    let db = db();
    assert_eq!(db.get("k").unwrap(), None);
    db.put("k", Some("1")).unwrap();
    db.put("k", Some("2")).unwrap();
    assert_eq!(db.get("k").unwrap().as_deref(), Some("2"));
    db.put("k", None).unwrap();
    assert_eq!(db.get("k").unwrap(), None);
    db.check().unwrap();
}

#[test]
fn nonsense_is_answered_not_panicked_at() {
    let db = db();
    assert_eq!(db.begin_attempt(DeliveryId(u64::MAX), Wall(i64::MIN)).unwrap(), Begin::Gone);
    let done = finish(FinishVerdict::Delivered);
    assert!(matches!(db.finish_attempt(DeliveryId(5), &done), Err(StoreError::Invalid(_))));
    let id = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    assert!(matches!(db.finish_attempt(id, &done), Err(StoreError::Invalid(_))));
    go(&db, id);
    let wait = Duration::MAX;
    db.finish_attempt(id, &finish(FinishVerdict::Retry { wait })).unwrap();
    go(&db, id);
    db.finish_attempt(id, &finish(FinishVerdict::Retry { wait })).unwrap();
    assert!(db.pending("a", None, 1).unwrap()[0].waited > Duration::from_secs(1 << 32));
    let mut blind = event(2, EventKind::ControllerBlind, &["a"]);
    blind.host = None;
    let id = append(&db, blind)[0];
    go(&db, id);
    db.finish_attempt(id, &finish(FinishVerdict::Conflict { highest: Token(1) })).unwrap();
    assert_eq!(state(&db, id), DeliveryState::Dead);
    let old = Retention { events: Duration::MAX, dead: Duration::MAX, events_max: u64::MAX };
    assert_eq!(db.prune(old, Wall(i64::MIN)).unwrap(), 0);
}
