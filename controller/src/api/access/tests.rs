//! The guard over the whole router: who gets through to what, and what is kept of it.

use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::routes::ROUTES;
use super::*;
use crate::api::testing::{TOKEN, World, host_row};
use crate::event::State as HostState;

const AFAR: Peer = Peer {
    address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9)),
    local: false,
    tls: true,
    certificate: false,
};

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

async fn ask(
    router: Router,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &Value,
) -> Answer {
    let mut request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    request = request.header(header::CONTENT_TYPE, "application/json");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let response = router.oneshot(request.body(body).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status: parts.status, headers: parts.headers, body }
}

/// Makes a token by the API.
async fn token(world: &World, name: &str, scope: &str, ttl: Option<&str>) -> String {
    let mut body = json!({"name": name, "scope": scope});
    if let Some(ttl) = ttl {
        body["ttl"] = json!(ttl);
    }
    let made = ask(world.router.clone(), "POST", "/v1/tokens", Some(TOKEN), &body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.body["name"], name);
    made.body["token"].as_str().unwrap().to_owned()
}

fn path_of(rule: &Rule) -> String {
    let host = rule.path.replace("{host}", "host-1").replace("{window}", "m1");
    host.replace("{name}", "nobody").replace("{id}", "1")
}

#[tokio::test]
async fn every_route_lets_through_who_may_and_nobody_else() {
    let world = World::new();
    world.view.upsert(host_row(1, HostState::Alive), None);
    let tokens = [
        token(&world, "r", "read", None).await,
        token(&world, "o", "operate", None).await,
        token(&world, "a", "admin", None).await,
    ];
    for rule in ROUTES.iter().filter(|rule| rule.path != "/v1/canary") {
        let path = path_of(rule);
        let (name, need) = (format!("{} {path}", rule.method), rule.need);
        let open = need == Need::Nothing;
        let reads = open || need == Need::Scope(Scope::Read);
        for (peer, free) in
            [(AFAR, open), (Peer { local: true, ..AFAR }, open), (Peer::LOCAL, reads)]
        {
            let answer = ask(world.seen_by(peer), rule.method, &path, None, &Value::Null).await;
            let refused = answer.status == StatusCode::UNAUTHORIZED;
            assert_eq!(refused, !free, "{name} from {peer:?}: {}", answer.status);
        }
        for (scope, token) in Scope::ALL.into_iter().zip(&tokens) {
            let may = match need {
                Need::Nothing => true,
                Need::Scope(needed) => scope >= needed,
            };
            for peer in [AFAR, Peer::LOCAL] {
                let router = world.seen_by(peer);
                let answer = ask(router, rule.method, &path, Some(token), &Value::Null).await;
                let refused = answer.status == StatusCode::FORBIDDEN;
                assert_eq!(refused, !may, "{name} with {scope}: {}", answer.body);
                assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{name} with {scope}");
            }
        }
    }
    // Nobody at the other end is nobody at all.
    let nobody = ask(world.bare.clone(), "GET", "/v1/hosts", None, &Value::Null).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    for (path, wanted) in [("/nowhere", 404), ("/v1/pause", 405)] {
        let known = ask(world.seen_by(AFAR), "GET", path, Some(&tokens[0]), &Value::Null).await;
        assert_eq!(known.status, wanted, "{path}");
        let stranger = ask(world.seen_by(AFAR), "GET", path, None, &Value::Null).await;
        assert_eq!(
            stranger.status,
            StatusCode::UNAUTHORIZED,
            "strangers learn of no route: {path}"
        );
    }
}

#[tokio::test]
async fn loopback_reads_can_be_closed_too() {
    let world = World::changed(|state| state.loopback_reads = false);
    let status = async |path: &str, token| {
        ask(world.router.clone(), "GET", path, token, &Value::Null).await.status
    };
    assert_eq!(status("/v1/hosts", None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status("/metrics", Some(TOKEN)).await, StatusCode::OK);
    assert_eq!(status("/healthz", None).await, StatusCode::OK);
}

#[tokio::test]
async fn why_it_is_not_ready_is_told_to_who_may_read() {
    let world = World::new();
    world.control.not_ready.lock().unwrap().push("the disk of host-7 is full".to_owned());
    for (peer, token, told) in
        [(AFAR, None, false), (AFAR, Some(TOKEN), true), (Peer::LOCAL, None, true)]
    {
        let answer = ask(world.seen_by(peer), "GET", "/readyz", token, &Value::Null).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.body.to_string().contains("host-7"), told, "{}", answer.body);
    }
}

#[tokio::test]
async fn tokens_are_shown_once_listed_without_themselves_end_and_are_revoked() {
    let world = World::new();
    let short = token(&world, "grafana", "read", Some("1m")).await;
    let long = token(&world, "night-shift", "operate", None).await;
    assert!(short.starts_with("hwt1_") && short.len() == 69 && short != long);
    let get = async |token: &str| {
        ask(world.seen_by(AFAR), "GET", "/v1/hosts", Some(token), &Value::Null).await.status
    };
    assert_eq!((get(&short).await, get(&long).await), (StatusCode::OK, StatusCode::OK));
    let list = ask(world.router.clone(), "GET", "/v1/tokens", Some(TOKEN), &Value::Null).await.body;
    let names: Vec<_> = list["tokens"].as_array().unwrap().iter().map(|t| &t["name"]).collect();
    assert_eq!(names, ["grafana", "night-shift"]);
    let text = list.to_string();
    assert!(!text.contains(&short) && !text.contains(&long) && !text.contains(TOKEN), "{text}");
    let hash = blake3::hash(short.as_bytes()).to_hex().to_string();
    assert!(!text.contains(&hash), "{text}");
    assert_eq!(list["tokens"][0]["last_used_ms"], 1_000_000);
    world.clock.advance(Duration::from_secs(60));
    assert_eq!((get(&short).await, get(&long).await), (StatusCode::UNAUTHORIZED, StatusCode::OK));
    let revoke = async || {
        let path = "/v1/tokens/night-shift";
        ask(world.router.clone(), "DELETE", path, Some(TOKEN), &Value::Null).await.status
    };
    assert_eq!(revoke().await, StatusCode::NO_CONTENT);
    assert_eq!(get(&long).await, StatusCode::UNAUTHORIZED);
    assert_eq!(revoke().await, StatusCode::NOT_FOUND);
    for (body, wanted) in [
        (json!({"name": "a b", "scope": "read"}), 400),
        (json!({"name": "x", "scope": "root"}), 400),
        (json!({"name": "x", "scope": "read", "ttl": "59s"}), 400),
        (json!({"name": "x", "scope": "read", "ttl": "3651d"}), 400),
        (json!({"name": "x", "scope": "read", "token": "mine"}), 400),
        (json!({"name": "api-token", "scope": "read"}), 409),
        (json!({"name": "y", "scope": "read"}), 201),
        (json!({"name": "y", "scope": "admin"}), 409),
    ] {
        let made = ask(world.router.clone(), "POST", "/v1/tokens", Some(TOKEN), &body).await;
        assert_eq!(made.status, wanted, "{body}: {}", made.body);
    }
}

#[tokio::test]
async fn only_who_shows_wrong_tokens_is_throttled_and_a_right_one_is_taken_at_any_time() {
    let world = World::new();
    let ask_from = async |address: [u8; 4], token: Option<&str>| {
        let peer = Peer { address: IpAddr::from(address), ..AFAR };
        ask(world.seen_by(peer), "GET", "/v1/hosts", token, &Value::Null).await
    };
    let wrong = Some("hwt1_0000000000000000");
    for _ in 0..throttle::BURST {
        assert_eq!(ask_from([192, 0, 2, 1], wrong).await.status, StatusCode::UNAUTHORIZED);
    }
    let throttled = ask_from([192, 0, 2, 1], wrong).await;
    assert_eq!(throttled.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(throttled.headers[header::RETRY_AFTER], "6");
    for _ in 0..20 {
        assert_eq!(ask_from([192, 0, 2, 1], Some(TOKEN)).await.status, StatusCode::OK);
    }
    assert_eq!(ask_from([192, 0, 2, 1], None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(ask_from([192, 0, 2, 2], wrong).await.status, StatusCode::UNAUTHORIZED);
    world.clock.advance(Duration::from_secs(6));
    assert_eq!(ask_from([192, 0, 2, 1], wrong).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(ask_from([192, 0, 2, 1], wrong).await.status, StatusCode::TOO_MANY_REQUESTS);
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let metrics = world.router.clone().oneshot(request).await.unwrap().into_body();
    let metrics = axum::body::to_bytes(metrics, usize::MAX).await.unwrap();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for line in [
        "heartwatch_api_refused_total{reason=\"throttled\"} 2",
        "heartwatch_api_refused_total{reason=\"wrong\"} 12",
        "heartwatch_api_refused_total{reason=\"missing\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

/// A wrong one was not looked at where none is needed: a monitor's token ended, and nobody heard of it.
#[tokio::test]
async fn a_token_that_is_shown_must_be_right_also_where_none_is_needed() {
    let world = World::new();
    let ended = token(&world, "short", "read", Some("1m")).await;
    world.clock.advance(Duration::from_secs(60));
    for peer in [Peer::LOCAL, AFAR] {
        for path in
            ["/v1/hosts", "/v1/status", "/metrics", "/healthz", "/readyz", "/v1/enrol/nonce"]
        {
            for wrong in ["hwt1_0000000000000000", &ended, ""] {
                // Nobody shows that many at once without being throttled.
                world.clock.advance(Duration::from_secs(60));
                let answer = ask(world.seen_by(peer), "GET", path, Some(wrong), &Value::Null).await;
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} from {peer:?}");
            }
        }
    }
    let nonce = ask(world.seen_by(AFAR), "GET", "/v1/enrol/nonce", Some(TOKEN), &Value::Null).await;
    assert_eq!(nonce.status, StatusCode::OK);
}

/// They were looked up, told back, logged and journaled for all to read.
#[tokio::test]
async fn a_secret_in_the_place_of_a_name_is_refused_untold_and_not_journaled() {
    let world = World::new();
    let digits = "00112233445566778899aabbccddeeff";
    let key = digits.repeat(2);
    let long_name = "9a".repeat(32);
    let row = crate::store::HostRow { name: long_name.clone(), ..host_row(1, HostState::Alive) };
    world.view.upsert(row, None);
    let cases = [
        ("DELETE", format!("/v1/join-tokens/{digits}"), Value::Null),
        ("DELETE", format!("/v1/join-tokens/hwj1_{digits}_{key}"), Value::Null),
        ("DELETE", format!("/v1/tokens/{digits}"), Value::Null),
        ("DELETE", format!("/v1/tokens/hwt1%5F{key}"), Value::Null),
        ("GET", format!("/v1/hosts/hwk1:1:0:{key}"), Value::Null),
        ("GET", format!("/v1/hosts/{key}/why"), Value::Null),
        ("DELETE", format!("/v1/hosts/hwk1%3A1%3A0%3A{key}"), Value::Null),
        ("POST", format!("/v1/hosts/{key}/revoke"), json!({"reason": "x"})),
        ("GET", format!("/v1/events?host={key}"), Value::Null),
        ("GET", format!("/v1/hosts?name=hwt1_{key}"), Value::Null),
        ("POST", "/v1/tokens".to_owned(), json!({"name": digits, "scope": "read"})),
        ("POST", "/v1/join-tokens".to_owned(), json!({"name": digits, "ttl": "1h", "uses": 1})),
        ("POST", "/v1/pause".to_owned(), json!({"for": "1m", "reason": format!("whsec_{digits}")})),
        (
            "POST",
            "/v1/maintenance".to_owned(),
            json!({"host": key, "for": "1m", "by": "ann", "reason": "x"}),
        ),
    ];
    for (method, path, body) in &cases {
        let answer = ask(world.router.clone(), method, path, Some(TOKEN), body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{method} {path}: {}", answer.body);
        let told = answer.body.to_string();
        assert!(told.contains("a key or a token") && !told.contains("2233"), "{told}");
    }
    assert!(world.control.audited.lock().unwrap().is_empty());
    // Nor does one who may not ask hear it again, nor who asks for what is not there.
    let stranger = ask(world.seen_by(AFAR), "GET", &cases[1].1, None, &Value::Null).await;
    let nowhere = format!("/v2/hwt1_{key}");
    let nowhere = ask(world.router.clone(), "GET", &nowhere, None, &Value::Null).await;
    for told in [stranger.body.to_string(), nowhere.body.to_string()] {
        assert!(!told.contains("2233"), "{told}");
    }
    // What is no secret: a host's id, and a host that is called so.
    for (name, status) in [(digits, 404), (&long_name, 200)] {
        let path = format!("/v1/hosts/{name}");
        let answer = ask(world.router.clone(), "GET", &path, None, &Value::Null).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_body_is_as_long_as_its_route_takes() {
    let world = World::new();
    for (path, len_max) in [
        ("/v1/pause", crate::api::BODY_LEN_MAX),
        ("/v1/hosts/import", crate::api::IMPORT_BODY_LEN_MAX),
        ("/v1/enrol", heartwatch_common::enrol::MESSAGE_LEN_MAX),
    ] {
        for (len, refused) in [(len_max, false), (len_max + 1, true)] {
            let request = Request::post(path)
                .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(vec![b' '; len]))
                .unwrap();
            let answer = world.router.clone().oneshot(request).await.unwrap();
            let is_refused = answer.status() == StatusCode::PAYLOAD_TOO_LARGE;
            assert_eq!(is_refused, refused, "{path} {len}: {}", answer.status());
        }
    }
}

#[tokio::test]
async fn what_changes_something_is_journaled_with_who_did_it_and_what_is_refused_is_not() {
    let world = World::new();
    let operator = token(&world, "ann", "operate", None).await;
    world.control.audited.lock().unwrap().clear();
    let body = json!({"for": "10m", "reason": "switch work"});
    let far = || world.seen_by(AFAR);
    assert_eq!(
        ask(far(), "POST", "/v1/pause", Some(&operator), &body).await.status,
        StatusCode::OK
    );
    // Its handler says no: it got that far.
    let nonsense = json!({"for": "never"});
    let answer = ask(far(), "POST", "/v1/pause", Some(&operator), &nonsense).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    for (method, path, token) in [
        ("GET", "/v1/hosts", Some(operator.as_str())),
        ("POST", "/v1/rules/test", Some(operator.as_str())),
        ("POST", "/v1/pause", None),
        ("POST", "/v1/pause", Some("hwt1_wrong_wrong_wrong")),
        ("POST", "/v1/backup", Some(operator.as_str())),
    ] {
        ask(far(), method, path, token, &Value::Null).await;
    }
    let audited = world.control.audited.lock().unwrap().clone();
    assert_eq!(audited.len(), 2, "{audited:?}");
    assert_eq!(audited[0]["reason"], "POST /v1/pause by ann (operate) from 192.0.2.9: 200");
    assert_eq!(audited[0]["what"]["parameters"], body);
    assert_eq!((&audited[0]["status"], &audited[1]["status"]), (&json!(200), &json!(400)));
}

#[tokio::test]
async fn without_a_journal_nothing_is_done_that_needs_admin_but_people_may_still_hold_failovers() {
    let world = World::new();
    world.view.upsert(host_row(1, HostState::Alive), None);
    world.store.broken.store(true, Ordering::Relaxed);
    let forget =
        ask(world.router.clone(), "DELETE", "/v1/hosts/host-1", Some(TOKEN), &Value::Null).await;
    assert_eq!(forget.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(forget.body["type"], "urn:heartwatch:problem:journal-unavailable");
    assert!(world.control.forgotten.lock().unwrap().is_empty());
    let body = json!({"for": "10m", "reason": "the disk is full"});
    let pause = ask(world.router.clone(), "POST", "/v1/pause", Some(TOKEN), &body).await;
    assert_eq!(pause.status, StatusCode::OK);
    assert_eq!(world.control.audited.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_request_that_is_broken_off_is_journaled_as_such() {
    let world = World::new();
    world.control.stuck.store(true, Ordering::Relaxed);
    let body = json!({"for": "10m", "reason": "r"});
    let pause = ask(world.router.clone(), "POST", "/v1/pause", Some(TOKEN), &body);
    // Its client goes away while the controller still thinks about it.
    let gone = tokio::time::timeout(Duration::from_millis(20), pause).await;
    assert!(gone.is_err());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.control.audited.lock().unwrap()[0]["status"], 503);
}

#[test]
fn who_comes_without_an_asked_for_certificate_may_enrol_only() {
    let dir = tempfile::tempdir().unwrap();
    let at = "127.0.0.1:1".parse().unwrap();
    let (certificate, key) =
        crate::tls::make::ensure(dir.path(), at, Wall(1_800_000_000_000)).unwrap();
    let asks = |client_ca| {
        let files =
            crate::tls::Files { certificate: certificate.clone(), key: key.clone(), client_ca };
        Tls::open(files).unwrap()
    };
    let (strict, lax) = (asks(Some(certificate.clone())), asks(None));
    let shown = Peer { certificate: true, ..AFAR };
    for (tls, peer, path, good) in [
        (Some(&strict), AFAR, "/v1/hosts", false),
        (Some(&strict), AFAR, "/healthz", false),
        (Some(&strict), AFAR, "/v1/enrol", true),
        (Some(&strict), AFAR, "/v1/enrol/next", true),
        (Some(&strict), shown, "/v1/hosts", true),
        (Some(&strict), Peer::LOCAL, "/v1/hosts", true),
        (Some(&lax), AFAR, "/v1/hosts", true),
        (None, AFAR, "/v1/hosts", true),
    ] {
        assert_eq!(check_certificate(tls, &peer, path).is_ok(), good, "{path} {peer:?}");
    }
}
