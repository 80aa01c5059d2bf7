//! Batches, commands, tests and resends, with the real store.

use super::*;
use crate::event::IncidentId;
use crate::store::Settle;

/// A receiver of whatever, that keeps what it gets.
async fn collect(
    answer: impl Fn(usize, &Value) -> StatusCode + Send + Sync + 'static,
) -> Collector {
    let seen = Arc::<Mutex<Vec<Value>>>::default();
    let (sender, count) = watch::channel(0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (kept, answer) = (Arc::clone(&seen), Arc::new(answer));
    let app = Router::new().fallback(move |body: String| {
        let (kept, answer, sender) = (Arc::clone(&kept), Arc::clone(&answer), sender.clone());
        async move {
            let body: Value = serde_json::from_str(&body).unwrap();
            let mut kept = kept.lock().unwrap();
            kept.push(body);
            let status = answer(kept.len() - 1, kept.last().unwrap());
            sender.send_modify(|c| *c += 1);
            status
        }
    });
    drop(tokio::spawn(async move { axum::serve(listener, app).await }));
    Collector { address, seen, count }
}

struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Value>>>,
    count: watch::Receiver<usize>,
}

impl Collector {
    fn seen(&self) -> Vec<Value> {
        self.seen.lock().unwrap().clone()
    }

    async fn wait_for(&self, n: usize) {
        let mut count = self.count.clone();
        tokio::time::timeout(PATIENCE, count.wait_for(|c| *c >= n)).await.unwrap().unwrap();
    }
}

fn as_kind(name: &str, lines: &str) -> (String, Receiver) {
    let (_, quick) = receiver(name, "http://127.0.0.1:1/".to_owned());
    let wanted = Receiver::sample(name, lines);
    let receiver = Receiver {
        kind: wanted.kind,
        url: wanted.url,
        max_batch: wanted.max_batch,
        rate: wanted.rate,
        burst: wanted.burst,
        concurrency: wanted.concurrency,
        ..quick
    };
    (name.to_owned(), receiver)
}

#[tokio::test]
async fn batches_lose_nothing_keep_order_per_host_and_get_past_an_event_that_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // Refuses whatever holds event 13, fails now and then.
    let poison = EventId(uuid::Uuid::from_u128(13)).to_string();
    let server = collect(move |n, body| {
        let events = body.as_array().unwrap();
        if events.iter().any(|e| e["data"]["event_id"] == poison.as_str()) {
            return if events.len() == 1 { StatusCode::GONE } else { StatusCode::BAD_REQUEST };
        }
        if n % 5 == 2 { StatusCode::BAD_GATEWAY } else { StatusCode::OK }
    })
    .await;
    let lines = format!("url = \"http://{}/\"\nmax_batch = 7\nconcurrency = 2", server.address);
    let receivers = [as_kind("a", &lines)];
    store.append((1..=80).map(|n| event(n, (n % 9) as u8, &["a"])).collect()).await.unwrap();
    let (handle, metrics) = spawn(&store, &receivers, 1);
    until(&store, |b| b.by_receiver.keys().all(|(_, state)| *state == DeliveryState::Dead)).await;
    handle.shutdown(PATIENCE).await;
    let counts = &metrics.snapshot()["a"];
    assert_eq!((counts.delivered, counts.dead), (79, 1));
    let seen = server.seen();
    assert!(seen.len() < 80, "{} requests for 80 events", seen.len());
    let mut tokens: BTreeMap<String, u64> = BTreeMap::new();
    for batch in &seen {
        let mut hosts = std::collections::BTreeSet::new();
        for e in batch.as_array().unwrap() {
            let host = e["data"]["host"].as_str().unwrap().to_owned();
            assert!(hosts.insert(host.clone()), "one host twice in a batch");
            let token = e["data"]["token"].as_u64().unwrap();
            let highest = tokens.entry(host).or_default();
            assert!(token >= *highest, "out of order");
            *highest = token;
        }
    }
    // Each was begun and is journaled.
    let rows = store.deliveries(DeliveryFilter::default(), 100).await.unwrap();
    assert!(rows.iter().all(|d| d.attempts > 0));
    store.shutdown().await;
}

#[tokio::test]
async fn a_command_is_delivered_to_as_a_webhook_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (got, flag) = (dir.path().join("got"), dir.path().join("busy-once"));
    let script = format!(
        "[ -e {flag} ] || {{ touch {flag}; exit 75; }}; cat >> {got}",
        flag = flag.display(),
        got = got.display()
    );
    let lines = format!(
        "kind = \"exec\"\nconcurrency = 1\ncommand = [\"/bin/sh\", \"-c\", {}]",
        toml::Value::from(script)
    );
    let receivers = [as_kind("script", &lines)];
    store.append((1..=5).map(|n| event(n, 1, &["script"])).collect()).await.unwrap();
    let (handle, metrics) = spawn(&store, &receivers, 1);
    until(&store, is_empty).await;
    handle.shutdown(PATIENCE).await;
    let text = std::fs::read_to_string(got).unwrap();
    let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let tokens: Vec<_> = events.iter().map(|e| e["data"]["token"].as_u64().unwrap()).collect();
    assert!(tokens.len() == 5 && tokens.is_sorted(), "{tokens:?}");
    let counts = &metrics.snapshot()["script"];
    assert_eq!((counts.delivered, counts.retries), (5, 1));
    store.shutdown().await;
}

#[tokio::test]
async fn a_test_is_tried_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let server = collect(|_, _| StatusCode::SERVICE_UNAVAILABLE).await;
    let receivers = [as_kind("a", &format!("url = \"http://{}/\"", server.address))];
    let test = NewEvent { kind: EventKind::Test, host: None, ..event(1, 0, &["a"]) };
    store.append(vec![test]).await.unwrap();
    let (handle, _) = spawn(&store, &receivers, 1);
    let dead = ("a".to_owned(), DeliveryState::Dead);
    until(&store, |b| b.by_receiver.contains_key(&dead)).await;
    handle.shutdown(PATIENCE).await;
    assert_eq!(server.seen().len(), 1);
    let rows = store.deliveries(DeliveryFilter::default(), 9).await.unwrap();
    assert!(rows[0].reason.as_ref().unwrap().contains("503"), "{rows:?}");
    store.shutdown().await;
}

/// An event of a host's outage.
fn of_outage(n: u128, host: u8, kind: EventKind, settle: Settle) -> NewEvent {
    let data = serde_json::json!({ "host": { "id": HostId([host; 16]), "name": format!("h{host}"), "labels": {} } });
    NewEvent {
        kind,
        settle,
        incident: Some(outage(host)),
        data: data.as_object().unwrap().clone(),
        ..event(n, host, &["am"])
    }
}

fn outage(host: u8) -> IncidentId {
    IncidentId(uuid::Uuid::from_u128(1_000 + u128::from(host)))
}

fn names(alerts: &Value) -> Vec<String> {
    let name = |a: &Value| {
        let end = if a.get("startsAt").is_some() { "+" } else { "-" };
        format!("{end}{}", a["labels"]["alertname"].as_str().unwrap())
    };
    alerts.as_array().unwrap().iter().map(name).collect()
}

#[tokio::test]
async fn what_goes_on_is_said_again_until_its_end_was_told_and_never_after() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let server = collect(|_, _| StatusCode::OK).await;
    let lines = format!("format = \"alertmanager\"\nurl = \"http://{}\"", server.address);
    let receivers = [as_kind("am", &lines)];
    let (handle, metrics) = spawn(&store, &receivers, 1);
    let say = async |event: NewEvent| {
        let appended = store.append(vec![event]).await.unwrap();
        handle.wake(appended[0].deliveries.clone());
        until(&store, is_empty).await;
        // Journaled as delivered, but the worker may not have filed that yet.
        while handle.receivers_status()["am"].queued > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let open_now = || vec![(HostId([1; 16]), outage(1)), (HostId([2; 16]), outage(2))];
    handle.resend("am", open_now()).await;
    assert!(server.seen().is_empty(), "nothing was told, so nothing is said again");
    say(of_outage(1, 1, EventKind::HostSuspect, Settle::Nothing)).await;
    say(of_outage(2, 2, EventKind::HostSuspect, Settle::Nothing)).await;
    say(of_outage(3, 1, EventKind::HostDown, Settle::SameReceivers)).await;
    handle.resend("am", open_now()).await;
    let seen = server.seen();
    let again = seen.last().unwrap();
    assert_eq!(
        names(again),
        [
            "+HeartwatchHostDown",
            "-HeartwatchHostSuspect",
            "-HeartwatchHostOverdue",
            "-HeartwatchHostUnreachable",
            "+HeartwatchHostSuspect"
        ]
    );
    assert_eq!(again[0]["labels"], seen[2][0]["labels"], "the same alert");
    assert_eq!(again[0]["startsAt"], seen[2][0]["startsAt"]);
    say(of_outage(4, 1, EventKind::HostRecovered, Settle::All)).await;
    // The registry may be a moment behind: what was told counts.
    handle.resend("am", open_now()).await;
    assert_eq!(names(server.seen().last().unwrap()), ["+HeartwatchHostSuspect"]);
    assert_eq!(server.seen().len(), 6);
    assert_eq!(metrics.snapshot()["am"].resent, 2);
    handle.shutdown(PATIENCE).await;
    store.shutdown().await;
}

#[tokio::test]
async fn the_end_of_an_alert_waits_for_a_resend_that_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let server = collect(|_, _| StatusCode::OK).await;
    let lines = format!("format = \"alertmanager\"\nurl = \"http://{}\"", server.address);
    let receivers = [as_kind("am", &lines)];
    let (handle, _) = spawn(&store, &receivers, 1);
    store.append(vec![of_outage(1, 1, EventKind::HostDown, Settle::Nothing)]).await.unwrap();
    server.wait_for(1).await;
    until(&store, is_empty).await;
    while handle.receivers_status()["am"].queued > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let open_now = vec![(HostId([1; 16]), outage(1))];
    let recovered = store.append(vec![of_outage(2, 1, EventKind::HostRecovered, Settle::All)]);
    let told = async {
        let appended = recovered.await.unwrap();
        handle.wake(appended[0].deliveries.clone());
    };
    tokio::join!(handle.resend("am", open_now), told);
    until(&store, is_empty).await;
    handle.shutdown(PATIENCE).await;
    let last = server.seen().last().unwrap().clone();
    assert!(names(&last).iter().all(|n| n.starts_with('-')), "the end comes last: {last}");
    store.shutdown().await;
}
