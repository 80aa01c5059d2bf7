//! The worker with a real store and a real server that misbehaves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use heartwatch_common::id::{ControllerId, HostId};
use heartwatch_common::time::{SystemClock, Wall};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::*;
use crate::event::{EventId, EventKind};
use crate::store::sqlite::SqliteStore;
use crate::store::{
    Audience, Backlog, DeliveryFilter, DeliveryState, NewDelivery, NewEvent, Settle,
};

/// Longest that a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server got, and how it answered.
#[derive(Clone, Debug)]
struct Hit {
    id: String,
    host: String,
    token: u64,
    body: String,
    status: u16,
}

type Answer = Box<dyn FnMut(usize) -> Option<StatusCode> + Send>;

struct Server {
    address: SocketAddr,
    hits: Arc<Mutex<Vec<Hit>>>,
    count: watch::Receiver<usize>,
}

#[derive(Clone)]
struct Shared {
    hits: Arc<Mutex<Vec<Hit>>>,
    count: Arc<watch::Sender<usize>>,
    answer: Arc<Mutex<Answer>>,
}

/// A receiver on an ephemeral port; `answer` says how the n-th call ends, `None`: never.
async fn serve(answer: impl FnMut(usize) -> Option<StatusCode> + Send + 'static) -> Server {
    let (sender, count) = watch::channel(0);
    let shared = Shared {
        hits: Arc::default(),
        count: Arc::new(sender),
        answer: Arc::new(Mutex::new(Box::new(answer))),
    };
    let hits = Arc::clone(&shared.hits);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/", post(take)).with_state(shared);
    drop(tokio::spawn(async move { axum::serve(listener, app).await }));
    Server { address, hits, count }
}

async fn take(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let value: Value = serde_json::from_str(&body).unwrap();
    let data = &value["data"];
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    assert_eq!(data["event_id"], id.as_str());
    let n = shared.hits.lock().unwrap().len();
    let status = (shared.answer.lock().unwrap())(n);
    shared.hits.lock().unwrap().push(Hit {
        id,
        host: data["host"].as_str().unwrap_or("").to_owned(),
        token: data["token"].as_u64().unwrap_or(0),
        body: body.clone(),
        status: status.map_or(0, |s| s.as_u16()),
    });
    shared.count.send_modify(|c| *c += 1);
    let Some(status) = status else { return std::future::pending().await };
    (status, String::new())
}

impl Server {
    fn hits(&self) -> Vec<Hit> {
        self.hits.lock().unwrap().clone()
    }

    async fn wait_for(&self, n: usize) {
        let mut count = self.count.clone();
        tokio::time::timeout(PATIENCE, count.wait_for(|c| *c >= n)).await.unwrap().unwrap();
    }
}

fn receiver(name: &str, url: String) -> (String, Receiver) {
    let receiver = Receiver {
        connect_timeout: Duration::from_secs(5),
        first_byte_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
        concurrency: 8,
        retry_base: Duration::from_millis(5),
        retry_cap: Duration::from_millis(40),
        give_up_after: Duration::from_secs(3_600),
        ..Receiver::sample(name, &format!("url = \"{url}\""))
    };
    (name.to_owned(), receiver)
}

fn open(dir: &Path) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(dir, ControllerId(7)).unwrap())
}

fn event(n: u128, host: u8, to: &[&str]) -> NewEvent {
    NewEvent {
        id: EventId(uuid::Uuid::from_u128(n)),
        kind: EventKind::HostDown,
        at: Wall(1_769_860_800_250),
        host: Some(HostId([host; 16])),
        incident: None,
        data: Map::new(),
        row: None,
        settle: Settle::Nothing,
        deliveries: to
            .iter()
            .map(|r| NewDelivery { receiver: (*r).to_owned(), hold: None })
            .collect(),
        audience: Audience::All,
    }
}

fn spawn(
    store: &Arc<SqliteStore>,
    receivers: &[(String, Receiver)],
    seed: u64,
) -> (DeliveryHandle, Arc<DeliveryMetrics>) {
    let receivers: BTreeMap<_, _> = receivers.iter().cloned().collect();
    let metrics = Arc::new(DeliveryMetrics::new(receivers.keys()));
    let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(store);
    let handle =
        Delivery::spawn(store, receivers, Arc::new(SystemClock), seed, Arc::clone(&metrics))
            .unwrap();
    (handle, metrics)
}

/// Polls the store until `done`; sockets and fsyncs are real, so there is nothing else to wait on.
async fn until(store: &SqliteStore, done: impl Fn(&Backlog) -> bool) {
    let wait = async {
        while !done(&store.backlog().await.unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

fn is_empty(backlog: &Backlog) -> bool {
    backlog.by_receiver.is_empty()
}

/// Every event once or more, the same body under the same id, per host in order of tokens.
fn check_story(hits: &[Hit], events: usize) {
    let mut bodies = BTreeMap::new();
    let mut tokens: BTreeMap<&str, u64> = BTreeMap::new();
    for hit in hits {
        let body = bodies.entry(&hit.id).or_insert(&hit.body);
        assert_eq!(*body, &hit.body, "a repeat is byte for byte the same");
        let highest = tokens.entry(&hit.host).or_default();
        assert!(hit.token >= *highest, "{} after {highest}: out of order", hit.token);
        *highest = hit.token;
    }
    assert_eq!(bodies.len(), events);
}

#[tokio::test]
async fn a_server_that_fails_half_its_calls_gets_everything_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut rng = StdRng::seed_from_u64(5);
    let flaky = move |_| {
        let bad = [500, 503, 404, 302, 429][rng.random_range(0..5)];
        Some(if rng.random_bool(0.5) { StatusCode::OK } else { StatusCode::from_u16(bad).unwrap() })
    };
    let server = serve(flaky).await;
    let receivers = [receiver("a", format!("http://{}/", server.address))];
    // Some are there before the worker is, some are handed over, some nobody mentions.
    store.append((1..=30).map(|n| event(n, (n % 5) as u8, &["a"])).collect()).await.unwrap();
    let (handle, metrics) = spawn(&store, &receivers, 1);
    for n in 31..=60 {
        let appended = store.append(vec![event(n, (n % 5) as u8, &["a"])]).await.unwrap();
        if n % 3 > 0 {
            handle.wake(appended[0].deliveries.clone());
        }
    }
    until(&store, is_empty).await;
    handle.shutdown(PATIENCE).await;
    let hits = server.hits();
    check_story(&hits, 60);
    assert_eq!(hits.iter().filter(|h| h.status == 200).count(), 60);
    let counts = &metrics.snapshot()["a"];
    assert_eq!((counts.delivered, counts.dead, counts.in_flight), (60, 0, 0));
    assert_eq!(counts.retries, hits.len() as u64 - 60);
    assert_eq!(counts.attempts.iter().map(|(_, n)| n).sum::<u64>(), hits.len() as u64);
    let rows = store.deliveries(DeliveryFilter::default(), 100).await.unwrap();
    assert!(rows.iter().all(|d| d.state == DeliveryState::Delivered));
    assert_eq!(rows.iter().map(|d| d.attempts as usize).sum::<usize>(), hits.len());
    store.shutdown().await;
}

#[tokio::test]
async fn ending_the_worker_anywhere_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(9);
    let flaky =
        move |_| Some(if rng.random_bool(0.5) { StatusCode::OK } else { StatusCode::BAD_GATEWAY });
    let server = serve(flaky).await;
    let receivers = [receiver("a", format!("http://{}/", server.address))];
    let store = open(dir.path());
    store.append((1..=80).map(|n| event(n, (n % 7) as u8, &["a"])).collect()).await.unwrap();
    store.shutdown().await;
    for life in 0..12 {
        let store = open(dir.path());
        let (handle, _) = spawn(&store, &receivers, life);
        let seen = server.hits().len();
        tokio::select! {
            () = server.wait_for(seen + 7) => {}
            () = until(&store, is_empty) => {}
        }
        drop(handle);
        store.shutdown().await;
    }
    let store = open(dir.path());
    let (handle, _) = spawn(&store, &receivers, 99);
    until(&store, is_empty).await;
    handle.shutdown(PATIENCE).await;
    check_story(&server.hits(), 80);
    store.shutdown().await;
}

#[tokio::test]
async fn nothing_is_sent_while_the_store_cannot_write_and_no_success_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let breaks = Arc::clone(&store);
    // The first call succeeds, but by then the store is broken.
    let server = serve(move |n| {
        if n == 0 {
            breaks.break_writes(true);
        }
        Some(StatusCode::OK)
    })
    .await;
    let mut only = receiver("a", format!("http://{}/", server.address));
    only.1.concurrency = 1;
    store.append((1..=3).map(|n| event(n, n as u8, &["a"])).collect()).await.unwrap();
    let (handle, _) = spawn(&store, &[only], 1);
    server.wait_for(1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.hits().len(), 1, "what is not journaled is not sent");
    store.break_writes(false);
    until(&store, is_empty).await;
    assert_eq!(server.hits().len(), 3, "the first was not sent again");
    handle.shutdown(PATIENCE).await;
    store.shutdown().await;
}

#[tokio::test]
async fn one_dead_receiver_does_not_hold_up_another_and_a_stranger_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let server = serve(|_| Some(StatusCode::OK)).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = closed.local_addr().unwrap();
    drop(closed);
    let receivers = [
        receiver("alive", format!("http://{}/", server.address)),
        receiver("dead", format!("http://{dead}/")),
    ];
    let to = ["alive", "dead", "stranger"];
    store.append((1..=50).map(|n| event(n, n as u8, &to)).collect()).await.unwrap();
    let (handle, metrics) = spawn(&store, &receivers, 1);
    until(&store, |b| !b.by_receiver.keys().any(|(r, _)| r == "alive")).await;
    let look = async {
        loop {
            let status = handle.receivers_status();
            let open = status["dead"].breaker != BreakerState::Closed;
            if open && status.get("stranger").is_some_and(|s| s.queued == 50 && !s.configured) {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let status = tokio::time::timeout(PATIENCE, look).await.unwrap();
    assert!(status["dead"].last_outcome.as_ref().unwrap().contains("refused"));
    assert_eq!(status["dead"].queued, 50);
    assert!(metrics.snapshot()["dead"].breaker_open);
    handle.shutdown(PATIENCE).await;
    store.shutdown().await;
}

#[tokio::test]
async fn shutdown_lets_an_attempt_end_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let server = serve(|n| (n > 0).then_some(StatusCode::OK)).await;
    let receivers = [receiver("a", format!("http://{}/", server.address))];
    store.append(vec![event(1, 1, &["a"])]).await.unwrap();
    let (handle, _) = spawn(&store, &receivers, 1);
    server.wait_for(1).await;
    handle.shutdown(Duration::from_millis(20)).await;
    assert_eq!(store.pending("a", None, 9).await.unwrap()[0].attempts, 1);
    handle.wake(Vec::new());
    handle.shutdown(Duration::ZERO).await;
    let (handle, _) = spawn(&store, &receivers, 1);
    until(&store, is_empty).await;
    handle.shutdown(PATIENCE).await;
    check_story(&server.hits(), 1);
    store.shutdown().await;
}

#[tokio::test]
async fn a_gone_receiver_makes_a_dead_letter_and_a_redrive_sends_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let server =
        serve(|n| Some(if n == 0 { StatusCode::GONE } else { StatusCode::ACCEPTED })).await;
    let receivers = [receiver("a", format!("http://{}/", server.address))];
    let appended = store.append(vec![event(1, 1, &["a"])]).await.unwrap();
    let (handle, metrics) = spawn(&store, &receivers, 1);
    let dead = ("a".to_owned(), DeliveryState::Dead);
    until(&store, |b| b.by_receiver.contains_key(&dead)).await;
    let id = appended[0].deliveries[0].id;
    let due = store.redrive(id, Wall(2)).await.unwrap().unwrap();
    handle.redriven(due);
    until(&store, is_empty).await;
    handle.shutdown(PATIENCE).await;
    let counts = &metrics.snapshot()["a"];
    assert_eq!((counts.delivered, counts.dead, counts.retries), (1, 1, 1));
    store.shutdown().await;
}

mod kinds;
