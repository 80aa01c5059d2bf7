//! A held order that goes says what is true when it goes; nobody else is told anything new.

use serde_json::{Map, Value, json};

use super::*;

fn db() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().unwrap();
    let db = open_in(dir.path()).unwrap();
    (dir, db)
}

fn said(names: &[&str]) -> Map<String, Value> {
    Map::from_iter([("candidates".to_owned(), json!(names))])
}

fn candidates(out: &Outgoing) -> Value {
    let body: Value = serde_json::from_str(&out.body).unwrap();
    body["data"]["candidates"].clone()
}

#[test]
fn what_was_held_says_something_new_and_the_same_again_at_each_attempt() {
    let (dir, db) = db();
    let data = said(&["old"]);
    let down = NewEvent { data, ..event(1, EventKind::HostDown, &["alert", "~failover"]) };
    let alert = append(&db, down)[0];
    let first = go(&db, alert);
    let retry = FinishVerdict::Retry { wait: std::time::Duration::from_secs(1) };
    db.finish_attempt(alert, &finish(retry.clone())).unwrap();
    let released = db.release_placed(host(1), &Receivers::All, &said(&["new"]), NOW).unwrap();
    assert_eq!(released.len(), 1);
    let failover = released[0].id;
    let body = go(&db, failover);
    assert_eq!((candidates(&first), candidates(&body)), (json!(["old"]), json!(["new"])));
    assert_eq!((first.event, first.token), (body.event, body.token), "the same event");
    db.finish_attempt(failover, &finish(retry)).unwrap();
    drop(db);
    // Byte for byte, for both, after a restart too.
    let db = open_in(dir.path()).unwrap();
    assert_eq!((go(&db, alert).body, go(&db, failover).body), (first.body, body.body));
    let rows = db.deliveries(&DeliveryFilter::default(), 9).unwrap();
    let placed = |id| rows.iter().find(|r| r.id == id).unwrap().placed.clone();
    assert_eq!((placed(alert), placed(failover)), (None, Some(said(&["new"]))));
}

#[test]
fn an_order_under_a_higher_token_still_says_it() {
    let (_dir, db) = db();
    let data = said(&["old"]);
    append(&db, NewEvent { data, ..event(1, EventKind::HostDown, &["~failover"]) });
    let failover = db.release_placed(host(1), &Receivers::All, &said(&["new"]), NOW).unwrap()[0].id;
    let token = go(&db, failover).token.unwrap();
    let verdict = FinishVerdict::Conflict { highest: crate::store::Token(token.0 + 5) };
    let renewed = db.finish_attempt(failover, &finish(verdict)).unwrap();
    let again = go(&db, renewed[0].id);
    assert!(again.token.unwrap().0 > token.0 + 5);
    assert_eq!(candidates(&again), json!(["new"]));
}
