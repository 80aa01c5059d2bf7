//! Each route in process, over a real view and stand-ins for the rest.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use heartwatch_common::id::HostId;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::problem::PROBLEM_JSON;
use super::testing::*;
use super::types::{EventsPage, HostsPage, StatusJson, WhyJson};
use crate::event::{EventKind, IncidentId, State};
use crate::store::{DeliveryState, HostRow};
use crate::view::Lesson;

mod enrol;
mod names;
mod refusals;
mod tls;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

async fn send(world: &World, request: Request<Body>) -> Answer {
    let path = request.uri().path().to_owned();
    let response = world.router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let answer = Answer { status: parts.status, headers: parts.headers, body };
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    if answer.status.is_client_error() || answer.status.is_server_error() {
        assert_eq!(answer.headers[header::CONTENT_TYPE], PROBLEM_JSON, "{}", answer.text());
        let problem = answer.json();
        assert_eq!(problem["status"], answer.status.as_u16());
        assert!(problem["type"].as_str().unwrap().starts_with("urn:heartwatch:problem:"));
        assert!(!problem["title"].as_str().unwrap().is_empty());
        assert!(!problem["detail"].as_str().unwrap().is_empty());
        assert!(path.len() > 60 || problem["instance"] == path.as_str());
    }
    answer
}

async fn get(world: &World, path: &str) -> Answer {
    send(world, Request::get(path).body(Body::empty()).unwrap()).await
}

async fn good(world: &World, path: &str) -> Value {
    let answer = get(world, path).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
    answer.json()
}

async fn act(world: &World, method: Method, path: &str, body: &Value) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
        .header(header::CONTENT_TYPE, "application/json");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    send(world, request.body(body).unwrap()).await
}

fn fleet(world: &World, n: u8) {
    for i in 0..n {
        let state = if i == 3 { State::Down } else { State::Alive };
        world.view.upsert(host_row(i, state), None);
    }
}

#[tokio::test]
async fn what_operators_ask_is_done() {
    let world = World::new();
    let hosts = json!([{"id": "01".repeat(16), "name": "a", "labels": {"zone": "x"}}]);
    let answer = act(&world, Method::POST, "/v1/hosts/import", &hosts).await;
    assert_eq!(answer.json(), json!({"added": 1, "known": 0}));
    let body = json!({"for": "10m", "reason": "switch works"});
    let answer = act(&world, Method::POST, "/v1/pause", &body).await;
    assert_eq!(answer.json()["pause"]["reason"], "switch works");
    assert_eq!(good(&world, "/v1/status").await["pause"]["until_ms"], 600_000);
    let answer = act(&world, Method::DELETE, "/v1/pause", &Value::Null).await;
    assert_eq!(answer.json(), json!({"pause": null}));
    for (body, ids) in [(json!({"ids": [4, 5]}), json!([4, 5])), (json!({"dead": {}}), json!([1]))]
    {
        let answer = act(&world, Method::POST, "/v1/deliveries/redrive", &body).await;
        assert_eq!(answer.json()["redriven"], ids);
    }
}

#[tokio::test]
async fn held_orders_are_listed_and_an_operators_word_reaches_the_policy() {
    use crate::control::Target;
    let world = World::new();
    fleet(&world, 5);
    let page = good(&world, "/v1/holds").await;
    assert_eq!((&page["total"], &page["holds"][0]["kind"]), (&json!(1), &json!("storm")));
    assert!(good(&world, "/v1/holds?domain=zone%3Dodd").await["holds"][0].is_null());
    assert_eq!(good(&world, "/v1/hosts/host-2/why").await["hold"]["domain"], "zone=even");
    assert!(good(&world, "/v1/hosts/host-3/why").await["hold"].is_null());
    assert_eq!(good(&world, "/v1/status").await["guard"]["storms"][0]["silent"], 7);
    let body = json!({"by": "ann", "reason": "it is dead"});
    let answer = act(&world, Method::POST, "/v1/holds/host-2/approve", &body).await;
    assert_eq!(answer.json()["released"], 1);
    let path = "/v1/holds/reject?domain=zone%3Da,rack%3D7";
    assert_eq!(act(&world, Method::POST, path, &body).await.json()["rejected"], 1);
    let words = world.control.words.lock().unwrap().clone();
    assert_eq!(words[0].1, Target::Host(HostId([2; 16])));
    assert_eq!(words[0].2.by, "ann");
    let rack = crate::policy::parse_domain("zone=a,rack=7").unwrap();
    assert_eq!((words[1].0, &words[1].1), ("reject", &Target::Domain(rack)));
    let nothing = act(&world, Method::POST, "/v1/holds/host-1/approve", &body).await;
    assert_eq!(nothing.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn open_outages_are_listed_with_their_orders_and_reported_on() {
    let world = World::new();
    fleet(&world, 5);
    let incident = IncidentId(crate::api::testing::uuid(1));
    let row = HostRow { incident: Some(incident), ..host_row(3, State::Down) };
    world.view.upsert(row, None);
    let host = HostId([3; 16]);
    let superseded = delivery(1, host, DeliveryState::Superseded);
    world.store.deliveries.lock().unwrap().push(superseded);
    world.store.deliveries.lock().unwrap().push(delivery(2, host, DeliveryState::Delivered));
    let page = good(&world, "/v1/incidents?open=true").await;
    let one = &page["incidents"][0];
    assert_eq!(
        (&one["name"], &one["stage"], &one["token"]),
        (&json!("host-3"), &json!("accepted"), &json!(2))
    );
    assert_eq!((one["orders"].as_array().unwrap().len(), &page["next_page"]), (2, &Value::Null));
    let path = format!("/v1/incidents/{incident}");
    assert_eq!(good(&world, &path).await["orders"][1]["reported"], Value::Null);

    let path = format!("{path}/complete");
    let done = json!({"token": 2, "reason": "runs on host-1"});
    assert_eq!(act(&world, Method::POST, &path, &done).await.status, StatusCode::NO_CONTENT);
    let failed = json!({"token": 2, "result": "failed", "receiver": "orchestrator"});
    assert_eq!(act(&world, Method::POST, &path, &failed).await.status, StatusCode::NO_CONTENT);
    let taken = world.control.completed.lock().unwrap().clone();
    assert_eq!((taken[0].0, taken[0].1.failed, taken[1].1.failed), (incident, false, true));
    let stale = act(&world, Method::POST, &path, &json!({"token": 1})).await;
    assert_eq!((stale.status, &stale.json()["highest_token"]), (StatusCode::CONFLICT, &json!(2)));
    for bad in [json!({"token": 2, "reason": "a\nb"}), json!({"token": 2, "why": "x"}), json!({})] {
        let status = act(&world, Method::POST, &path, &bad).await.status;
        assert!(status.is_client_error(), "{bad}: {status}");
    }
    for unknown in ["/v1/incidents/nonsense", "/v1/incidents/00000000-0000-0000-0000-000000000009"]
    {
        assert_eq!(get(&world, unknown).await.status, StatusCode::NOT_FOUND, "{unknown}");
    }
    assert_eq!(get(&world, "/v1/incidents?open=false").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn windows_are_opened_shown_with_their_hosts_and_ended() {
    let world = World::new();
    fleet(&world, 5);
    let add = async |body: Value| act(&world, Method::POST, "/v1/maintenance", &body).await;
    let body = json!({"domain": "zone=odd", "for": "30m", "by": "ann", "reason": "new switch"});
    let added = add(body).await.json();
    assert_eq!((&added["window"]["id"], &added["hosts"]), (&json!("m1"), &json!(3)));
    assert_eq!(added["window"]["scope"]["domain"], "zone=odd");
    let one = json!({"host": "host-2", "until_ms": 9e15 as i64, "by": "bob", "reason": "disk"});
    assert_eq!(add(one).await.json()["window"]["scope"]["host"], HostId([2; 16]).to_string());
    let all = good(&world, "/v1/maintenance").await;
    assert_eq!(all["windows"].as_array().unwrap().len(), 2);
    let covers = async |host: &str| {
        good(&world, &format!("/v1/hosts/{host}")).await["maintenance"]["id"].clone()
    };
    assert_eq!(covers("host-3").await, "m1");
    assert_eq!(covers("host-2").await, "m2");
    assert_eq!(covers("host-4").await, Value::Null);
    let why = good(&world, "/v1/hosts/host-3/why").await;
    assert_eq!(why["host"]["maintenance"]["reason"], "new switch");
    let path = "/v1/maintenance/m1?by=ann&reason=done";
    let ended = act(&world, Method::DELETE, path, &Value::Null).await;
    assert_eq!((ended.status, &ended.json()["id"]), (StatusCode::OK, &json!("m1")));
    let again = act(&world, Method::DELETE, path, &Value::Null).await;
    assert_eq!(
        (again.status, &again.json()["title"]),
        (StatusCode::NOT_FOUND, &json!("no such window"))
    );
    for (bad, wanted) in [
        (json!({"for": "1m", "by": "a", "reason": "r"}), "one of `host`"),
        (
            json!({"host": "host-1", "domain": "fleet", "for": "1m", "by": "a", "reason": "r"}),
            "one of",
        ),
        (json!({"host": "host-1", "by": "a", "reason": "r"}), "every window ends"),
        (json!({"host": "host-1", "for": "1m", "by": "a", "reason": " "}), "`reason`"),
        (json!({"labels": "pool", "for": "1m", "by": "a", "reason": "r"}), "pool=db,zone!=a"),
        (json!({"domain": "zone", "for": "1m", "by": "a", "reason": "r"}), "is no domain"),
    ] {
        let answer = add(bad).await;
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == StatusCode::BAD_REQUEST && detail.contains(wanted), "{detail}");
    }
    let nobody = Request::builder().method(Method::POST).uri("/v1/maintenance");
    let nobody = send(&world, nobody.body(Body::from("{}")).unwrap()).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn who_could_take_over_is_told_of_a_host_or_of_labels() {
    let world = World::new();
    fleet(&world, 3);
    let page = good(&world, "/v1/candidates?host=host-2&same=zone,pool&limit=1").await;
    assert_eq!(
        page["candidates"][0]["name"], "host-2",
        "the stand-in answers who it was asked for"
    );
    assert_eq!(
        (&page["same"], &page["left_out"]["suspect"]),
        (&json!(["zone", "pool"]), &json!(1))
    );
    let page = good(&world, "/v1/candidates?labels=zone%3Da,pool%3Dweb").await;
    assert_eq!(page["candidates"][1]["labels"], json!({"zone": "a", "pool": "web"}));
    for (query, told) in [
        ("", "either `host`"),
        ("?host=host-1&labels=a%3Db", "either `host`"),
        ("?labels=a", "write `labels=zone=a"),
        ("?labels=a%3Db,a%3Dc", "two values"),
        ("?host=host-1&limit=101", "from 1 to 100"),
    ] {
        let answer = get(&world, &format!("/v1/candidates{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(answer.text().contains(told), "{query}: {}", answer.text());
    }
    let unknown = get(&world, "/v1/candidates?host=nobody").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn pages_walk_every_host_once_while_hosts_come_and_go() {
    let world = World::new();
    fleet(&world, 30);
    world.store.push(event(HostId([1; 16]), EventKind::HostJoined, 1));
    let mut path = "/v1/hosts?limit=7".to_owned();
    let (mut seen, mut cursors) = (Vec::new(), Vec::new());
    loop {
        let page: HostsPage = serde_json::from_value(good(&world, &path).await).unwrap();
        assert!(page.hosts.len() <= 7);
        seen.extend(page.hosts.iter().map(|h| h.id.0[0]));
        cursors.push(page.cursor);
        world.view.remove(HostId([0; 16]));
        world.view.upsert(host_row(100, State::Alive), None);
        world.store.push(event(HostId([100; 16]), EventKind::HostJoined, 2));
        let Some(next) = page.next_page else { break };
        path = format!("/v1/hosts?limit=7&page={next}");
    }
    let stayed: Vec<u8> = seen.iter().copied().filter(|n| *n != 0 && *n != 100).collect();
    assert_eq!(stayed, (1..30).collect::<Vec<_>>());
    // Every page carries the cursor of the first, so that nothing that happened meanwhile is missed.
    assert!(cursors.iter().all(|c| c == "c1"), "{cursors:?}");
    let events: EventsPage =
        serde_json::from_value(good(&world, "/v1/events?after=c1").await).unwrap();
    assert_eq!(events.events.len(), cursors.len());
}

#[tokio::test]
async fn filters_narrow_the_list() {
    let world = World::new();
    fleet(&world, 6);
    for (query, ids) in [
        ("state=down", vec!["host-3"]),
        ("state=down,pending&state=left", vec!["host-3"]),
        ("label=zone=odd", vec!["host-1", "host-3", "host-5"]),
        ("label=zone=odd&state=alive&name=-5", vec!["host-5"]),
        ("label=zone=", vec![]),
        ("name=none", vec![]),
    ] {
        let page = good(&world, &format!("/v1/hosts?{query}")).await;
        assert_eq!(keys(&page, "hosts", "name"), ids, "{query}");
        assert_eq!(page["next_page"], Value::Null);
    }
}

#[tokio::test]
async fn a_host_is_found_by_id_or_by_a_unique_name() {
    let world = World::new();
    fleet(&world, 3);
    let id = HostId([2; 16]).to_string();
    assert_eq!(good(&world, &format!("/v1/hosts/{id}")).await["name"], "host-2");
    let host = good(&world, "/v1/hosts/host-2").await;
    assert_eq!((&host["id"], &host["silence_ms"]), (&json!(id), &Value::Null));
    let twin = HostRow { name: "host-2".to_owned(), ..host_row(9, State::Alive) };
    world.view.upsert(twin, None);
    let answer = get(&world, "/v1/hosts/host-2").await;
    assert_eq!(
        (answer.status, &answer.json()["title"]),
        (StatusCode::CONFLICT, &json!("more than one host has this name"))
    );
}

#[tokio::test]
async fn silence_and_load_are_live() {
    use heartwatch_common::load::{LoadSample, Share};
    use heartwatch_common::time::Instant;
    let world = World::new();
    let live = world.view.live().take(0);
    let load = LoadSample { cpu_busy: Share::from_ratio(0.5), ..LoadSample::UNKNOWN };
    let at = Instant(4_000_000_000);
    world.view.live().beat(live, at, 1_000_000, Some(&load), &Lesson::default());
    world.view.upsert(host_row(1, State::Alive), Some(live));
    world.clock.advance(Duration::from_millis(250));
    let host = good(&world, "/v1/hosts/host-1").await;
    assert_eq!((&host["silence_ms"], &host["gap_ms"]), (&json!(1_250), &json!(1_000)));
    assert_eq!(host["load"]["cpu_busy_ratio"], 0.5);
    assert_eq!(host["load"]["network_kib_per_s"], Value::Null);
}

#[tokio::test]
async fn cursors_continue_where_the_last_answer_ended() {
    let world = World::new();
    for n in 0..25 {
        world.store.push(event(HostId([(n % 5) as u8; 16]), EventKind::HostJoined, n));
    }
    let mut after = String::new();
    let mut seen = Vec::new();
    loop {
        let path = format!("/v1/events?limit=10{after}");
        let page: EventsPage = serde_json::from_value(good(&world, &path).await).unwrap();
        seen.extend(page.events.iter().map(|e| e.data["n"].as_u64().unwrap()));
        after = format!("&after={}", page.cursor);
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, (0..25).collect::<Vec<_>>());
    let end = good(&world, &format!("/v1/events?limit=10{after}")).await;
    assert_eq!((&end["events"], &end["cursor"]), (&json!([]), &json!("c19")));
    let id = HostId([3; 16]);
    let page = good(&world, &format!("/v1/events?host={id}")).await;
    assert_eq!(page["events"].as_array().unwrap().len(), 5);
    // Behind everything that was looked at, not just behind the last match.
    assert_eq!(page["cursor"], "c19");
    let page = good(&world, "/v1/events?tail=2").await;
    assert_eq!(keys(&page, "events", "cursor"), ["c18", "c19"]);
    let page = good(&world, &format!("/v1/events?tail=2&host={id}")).await;
    assert_eq!(
        (keys(&page, "events", "cursor"), &page["cursor"]),
        (vec!["c13".to_owned(), "c18".to_owned()], &json!("c19"))
    );
}

#[tokio::test]
async fn waiting_for_news_ends_with_the_news_or_with_the_time() {
    let world = World::new();
    let id = HostId([3; 16]);
    let page = good(&world, "/v1/events?wait=700ms").await;
    assert_eq!((&page["events"], &page["cursor"]), (&json!([]), &json!("c0")));
    assert_eq!(world.store.heads_read.load(Ordering::Relaxed), 2, "polled too often");

    let store = world.store.clone();
    let news = async {
        store.push(event(HostId([1; 16]), EventKind::HostJoined, 1));
        // Two polls of the journal later, the other host's event has been looked at and passed over.
        while store.heads_read.load(Ordering::Relaxed) < 5 {
            tokio::task::yield_now().await;
        }
        store.push(event(id, EventKind::HostDown, 2));
    };
    let path = format!("/v1/events?wait=30s&host={id}");
    let (page, ()) = tokio::join!(good(&world, &path), news);
    assert_eq!(keys(&page, "events", "type"), ["host.down"]);
    assert_eq!(page["cursor"], "c2");
}

#[tokio::test]
async fn why_joins_everything_that_is_recorded() {
    let world = World::new();
    let id = HostId([1; 16]);
    let incident = Some(crate::event::IncidentId(uuid(1)));
    world.view.upsert(HostRow { incident, ..host_row(1, State::Down) }, None);
    world.store.push(event(id, EventKind::HostSuspect, 10));
    world.store.push(event(id, EventKind::HostDown, 11));
    world.store.push(event(HostId([2; 16]), EventKind::HostDown, 12));
    world
        .store
        .deliveries
        .lock()
        .unwrap()
        .extend((1..=60).map(|n| delivery(n, id, DeliveryState::Delivered)));
    let why: WhyJson = serde_json::from_value(good(&world, "/v1/hosts/host-1/why").await).unwrap();
    assert_eq!(why.events.len(), 2);
    assert_eq!(why.incident.unwrap().opened_ms.unwrap().0, 10_000);
    let ids: Vec<u64> = why.deliveries.iter().map(|d| d.delivery.id.0).collect();
    assert_eq!(ids, (11..=60).rev().collect::<Vec<_>>());
    assert!(why.deliveries_truncated && !why.events_truncated);
    assert_eq!(why.deliveries[0].attempt_log[0].status, Some(200));
    assert_eq!((why.doubts.len(), why.detector.unwrap().margin_ms), (1, Some(120.5)));
    // A stuck shard must not hide the rest.
    world.control.busy.store(true, Ordering::Relaxed);
    let why = good(&world, "/v1/hosts/host-1/why").await;
    assert_eq!(why["detector"], Value::Null);
    assert!(why["detector_error"].as_str().unwrap().contains("shard 3"));
}

#[tokio::test]
async fn deliveries_are_listed_filtered_and_shown_with_their_attempts() {
    let world = World::new();
    let id = HostId([1; 16]);
    world.store.deliveries.lock().unwrap().extend((1..=5).map(|n| {
        let state = if n == 4 { DeliveryState::Dead } else { DeliveryState::Pending };
        delivery(n, id, state)
    }));
    let page = good(&world, "/v1/deliveries?limit=2&after=1").await;
    assert_eq!(
        (keys(&page, "deliveries", "id"), &page["next_after"]),
        (vec!["2".to_owned(), "3".to_owned()], &json!(3))
    );
    let page =
        good(&world, &format!("/v1/deliveries?state=dead&host={id}&receiver=orchestrator")).await;
    assert_eq!(
        (keys(&page, "deliveries", "id"), &page["next_after"]),
        (vec!["4".to_owned()], &Value::Null)
    );
    let one = good(&world, "/v1/deliveries/4").await;
    assert_eq!((&one["state"], &one["attempts"]), (&json!("dead"), &json!(1)));
    assert_eq!(one["attempt_log"][0]["detail"], "200 OK");
}

#[tokio::test]
async fn readyz_tells_its_reasons_and_healthz_does_not_care() {
    let world = World::new();
    assert_eq!(get(&world, "/readyz").await.status, StatusCode::OK);
    let reasons = vec!["the store cannot write now: disk full".to_owned(), "blind".to_owned()];
    world.control.not_ready.lock().unwrap().clone_from(&reasons);
    let answer = get(&world, "/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["reasons"], json!(reasons));
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    assert_eq!(get(&world, "/healthz").await.text(), "ok\n");
}

#[tokio::test]
async fn a_broken_store_and_a_panic_are_told_and_survived() {
    let world = World::new();
    world.store.broken.store(true, Ordering::Relaxed);
    for path in ["/v1/hosts", "/v1/events"] {
        let answer = get(&world, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.json()["detail"].as_str().unwrap().contains("disk full"));
    }
    world.control.panics.store(true, Ordering::Relaxed);
    let answer = get(&world, "/v1/status").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!answer.text().contains("planted"));
    world.control.panics.store(false, Ordering::Relaxed);
    let status: StatusJson = serde_json::from_value(good(&world, "/v1/status").await).unwrap();
    assert_eq!(status.status.name, "test");
}

#[tokio::test]
async fn a_backup_is_streamed_and_leaves_nothing_behind() {
    let world = World::new();
    // As a crash would leave it.
    std::fs::create_dir(world.state_dir.path().join("api-backup.tmp")).unwrap();
    let answer = act(&world, Method::POST, "/v1/backup", &Value::Null).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.headers[header::CONTENT_LENGTH], "700000");
    assert_eq!(answer.body, vec![7; 700_000]);
    world.store.broken.store(true, Ordering::Relaxed);
    let answer = act(&world, Method::POST, "/v1/backup", &Value::Null).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(std::fs::read_dir(world.state_dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn metrics_are_served_as_classic_text() {
    let world = World::new();
    fleet(&world, 5);
    let answer = get(&world, "/metrics").await;
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/plain; version=0.0.4");
    let text = answer.text();
    check_exposition(&text);
    assert!(text.contains("heartwatch_hosts{state=\"alive\"} 4"), "{text}");
    // For `promtool check metrics` by hand.
    if let Ok(path) = std::env::var("HEARTWATCH_TEST_METRICS_OUT") {
        std::fs::write(path, text).unwrap();
    }
}

#[tokio::test]
async fn no_answer_invites_other_origins() {
    let world = World::new();
    let request = Request::get("/v1/status").header(header::ORIGIN, "https://evil.example");
    let answer = send(&world, request.body(Body::empty()).unwrap()).await;
    assert!(!answer.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
}

#[tokio::test]
async fn serving_stops_when_told_even_if_somebody_waits() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(super::serve(listener, None, world.router.clone(), async {
        stopped.await.unwrap();
    }));
    let mut waiting = tokio::net::TcpStream::connect(address).await.unwrap();
    waiting.write_all(b"GET /v1/events?wait=60s HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ok\n"), "{text}");
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn receivers_are_listed_with_their_health_and_can_be_tried() {
    let world = World::new();
    let all = good(&world, "/v1/receivers").await;
    assert_eq!(all["now_ms"], 1_000_000);
    let first = &all["receivers"][0];
    assert_eq!((&first["name"], &first["health"]), (&json!("orchestrator"), &json!("failing")));
    assert_eq!((&first["pending"], &first["oldest_pending_ms"]), (&json!(7), &json!(1_000)));
    assert_eq!(all["receivers"][1]["health"], "not-configured");
    let path = |name: &str| format!("/v1/receivers/{name}/test");
    let begun = act(&world, Method::POST, &path("orchestrator"), &json!({})).await;
    assert_eq!((begun.status, &begun.json()["delivery"]), (StatusCode::OK, &json!(1)));
    let unknown = act(&world, Method::POST, &path("nobody"), &json!({})).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let mute = act(&world, Method::POST, &path("mute"), &json!({})).await;
    assert!(mute.status.is_client_error() && mute.text().contains("no word"), "{}", mute.text());
}

#[tokio::test]
async fn rules_are_listed_and_asked_without_a_token() {
    let world = World::new();
    world.view.upsert(host_row(2, State::Alive), None);
    let report = good(&world, "/v1/rules").await;
    assert_eq!(report["rules"][0]["hosts"], 7);
    assert_eq!(report["warnings"][0]["rules"][0], "failover");
    let ask = async |body: Value| {
        let request =
            Request::post("/v1/rules/test").header(header::CONTENT_TYPE, "application/json");
        send(&world, request.body(Body::from(body.to_string())).unwrap()).await
    };
    let answer = ask(json!({"host": "host-2", "as": "down", "at_ms": 77})).await;
    let answer = answer.json();
    assert_eq!((&answer["as"], &answer["at_ms"]), (&json!("host.down"), &json!(77)));
    assert_eq!(answer["receivers"][0]["waits"][0]["wait"], "delay");
    for (body, status) in [
        (json!({"host": "nobody", "as": "down"}), StatusCode::NOT_FOUND),
        (json!({"host": "host-2", "as": "up"}), StatusCode::BAD_REQUEST),
        (json!({"host": "host-2"}), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(ask(body).await.status, status);
    }
    let why: WhyJson = serde_json::from_value(good(&world, "/v1/hosts/host-2/why").await).unwrap();
    assert_eq!(why.waits, [wait()]);
}
