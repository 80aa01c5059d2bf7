//! What is refused, and in which words.

use super::*;

const CHANGING: [(Method, &str); 13] = [
    (Method::POST, "/v1/hosts/import"),
    (Method::DELETE, "/v1/hosts/host-1"),
    (Method::PUT, "/v1/hosts/host-1/freeze"),
    (Method::DELETE, "/v1/hosts/host-1/freeze"),
    (Method::POST, "/v1/pause"),
    (Method::DELETE, "/v1/pause"),
    (Method::POST, "/v1/deliveries/redrive"),
    (Method::POST, "/v1/holds/host-1/approve"),
    (Method::POST, "/v1/holds/host-1/reject"),
    (Method::POST, "/v1/holds/approve"),
    (Method::POST, "/v1/holds/reject"),
    (Method::POST, "/v1/receivers/orchestrator/test"),
    (Method::POST, "/v1/backup"),
];

#[tokio::test]
async fn whatever_changes_something_needs_the_token() {
    let world = World::new();
    fleet(&world, 5);
    let wrong = ["", "Bearer", "Bearer ", "Bearer hwt1_0123456789abcdeX", "Basic aHd0", "\u{7f}"];
    for (method, path) in CHANGING {
        for value in wrong {
            // Nobody shows that many wrong tokens at once without being throttled.
            world.clock.advance(Duration::from_secs(60));
            let mut request = Request::builder().method(method.clone()).uri(path);
            if let Ok(value) = value.parse::<header::HeaderValue>() {
                request = request.header(header::AUTHORIZATION, value);
            }
            let answer = send(&world, request.body(Body::from("[]")).unwrap()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path} {value}");
            assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE));
        }
        world.clock.advance(Duration::from_secs(60));
        let two = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
            .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"));
        let answer = send(&world, two.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    assert!(world.control.forgotten.lock().unwrap().is_empty());
    assert!(world.control.frozen.lock().unwrap().is_empty());
    let answer = act(&world, Method::DELETE, "/v1/hosts/host-1", &Value::Null).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(*world.control.forgotten.lock().unwrap(), [HostId([1; 16])]);
}

#[tokio::test]
async fn every_failure_is_a_problem_of_the_right_kind() {
    let world = World::new();
    fleet(&world, 5);
    let long = format!("/v1/hosts?name={}", "x".repeat(9_000));
    let long_name = format!("/v1/hosts/{}", "x".repeat(300));
    let many = format!("/v1/hosts?{}", "label=a=b&".repeat(70));
    let cases = [
        ("/nowhere", 404, "not-found"),
        ("/v1/hosts/none", 404, "unknown-host"),
        ("/v1/hosts/none/why", 404, "unknown-host"),
        ("/v1/hosts/%FF", 400, "bad-request"),
        (long_name.as_str(), 400, "bad-request"),
        (long.as_str(), 414, "too-long"),
        (many.as_str(), 400, "bad-request"),
        ("/v1/hosts?limit=0", 400, "bad-request"),
        ("/v1/hosts?limit=abc", 400, "bad-request"),
        ("/v1/hosts?limit=1001", 400, "bad-request"),
        ("/v1/hosts?limit=-1", 400, "bad-request"),
        ("/v1/hosts?limit=5&limit=6", 400, "bad-request"),
        ("/v1/hosts?stat=down", 400, "bad-request"),
        ("/v1/hosts?state=dwon", 400, "bad-request"),
        ("/v1/hosts?state=", 400, "bad-request"),
        ("/v1/hosts?label=zone", 400, "bad-request"),
        ("/v1/hosts?label==x", 400, "bad-request"),
        ("/v1/hosts?label=a=1&label=a=2", 400, "bad-request"),
        ("/v1/hosts?page=5", 400, "bad-request"),
        ("/v1/hosts?page=p5.0.99", 410, "page-gone"),
        ("/v1/hosts/host-1?x=1", 400, "bad-request"),
        ("/v1/events?after=17", 400, "bad-request"),
        ("/v1/events?after=c", 400, "bad-request"),
        ("/v1/events?after=c%2B5", 400, "bad-request"),
        ("/v1/events?after=cffffffffffffffff0", 400, "bad-request"),
        ("/v1/events?after=cffffffffffffffff", 410, "cursor-gone"),
        ("/v1/events?wait=61s", 400, "bad-request"),
        ("/v1/events?wait=5", 400, "bad-request"),
        ("/v1/events?host=none", 404, "unknown-host"),
        ("/v1/events?tail=5&after=c0", 400, "bad-request"),
        ("/v1/events?tail=0", 400, "bad-request"),
        ("/v1/events?kind=host.dwon", 400, "bad-request"),
        ("/v1/deliveries?state=lost", 400, "bad-request"),
        ("/v1/deliveries?incident=x", 400, "bad-request"),
        ("/v1/deliveries?after=99999999999999999999", 400, "bad-request"),
        ("/v1/deliveries/0", 404, "unknown-delivery"),
        ("/v1/deliveries/x", 404, "unknown-delivery"),
        ("/v1/deliveries/18446744073709551615", 404, "unknown-delivery"),
        ("/v1/status?x", 400, "bad-request"),
        ("/metrics?x=1", 400, "bad-request"),
    ];
    for (path, status, kind) in cases {
        let answer = get(&world, path).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.json()["type"], format!("urn:heartwatch:problem:{kind}"), "{path}");
        assert!(answer.body.len() < 1_000, "{path}: a long echo");
    }
    let answer = get(&world, "/v1/hosts?stat=down").await;
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("`stat`") && detail.contains("state"), "{detail}");
}

#[tokio::test]
async fn a_wrong_method_names_the_right_ones() {
    let world = World::new();
    let answer = act(&world, Method::PUT, "/v1/pause", &Value::Null).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    let allow = answer.headers[header::ALLOW].to_str().unwrap().to_owned();
    assert!(allow.contains("POST") && allow.contains("DELETE"), "{allow}");
}

#[tokio::test]
async fn bodies_are_bounded_and_understood_or_refused() {
    let world = World::new();
    let import = "/v1/hosts/import";
    let cases = [
        (import, json!({"id": "x"}), 400),
        (import, json!([{"id": "x"}]), 400),
        (import, json!([{"id": "00".repeat(16), "nmae": "a"}]), 400),
        (import, json!([{"id": "00".repeat(16), "name": "a\nb"}]), 400),
        (import, json!([{"id": "00".repeat(16), "name": "a".repeat(256)}]), 400),
        (import, json!([{"id": "00".repeat(16), "labels": {"": "x"}}]), 400),
        ("/v1/pause", json!({"for": "10m"}), 400),
        ("/v1/pause", json!({"for": "10m", "reason": "  "}), 400),
        ("/v1/pause", json!({"for": "0s", "reason": "x"}), 400),
        ("/v1/pause", json!({"for": "8d", "reason": "x"}), 400),
        ("/v1/pause", json!({"for": 10, "reason": "x"}), 400),
        ("/v1/pause", json!({"for": "10m", "reason": "x".repeat(70_000)}), 413),
        ("/v1/deliveries/redrive", json!({"ids": []}), 400),
        ("/v1/holds/approve", json!({"by": "ann", "reason": "x"}), 400),
        ("/v1/holds/reject?domain=zone", json!({"by": "ann", "reason": "x"}), 400),
        ("/v1/holds/reject?domain=fleet", json!({"by": "", "reason": "x"}), 400),
        ("/v1/holds/reject?domain=fleet", json!({"by": "ann", "reason": "a\nb"}), 400),
        ("/v1/holds/reject?domain=fleet", json!({"reason": "x"}), 400),
        ("/v1/holds/nobody/approve", json!({"by": "ann", "reason": "x"}), 404),
        ("/v1/deliveries/redrive", json!({"ids": ["x"]}), 400),
        ("/v1/deliveries/redrive", json!("everything"), 400),
    ];
    for (path, body, status) in cases {
        let answer = act(&world, Method::POST, path, &body).await;
        assert_eq!(answer.status, status, "{path} {}: {}", body, answer.text());
    }
    let huge = Body::from(vec![b' '; crate::api::IMPORT_BODY_LEN_MAX + 1]);
    let request = Request::post(import)
        .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
        .header(header::CONTENT_TYPE, "application/json");
    assert_eq!(send(&world, request.body(huge).unwrap()).await.status, 413);
    let request = Request::post(import)
        .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
        .header(header::CONTENT_TYPE, "text/plain");
    assert_eq!(send(&world, request.body(Body::from("[]")).unwrap()).await.status, 415);
    assert!(world.control.imported.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_margin_is_frozen_within_bounds_and_let_go() {
    use crate::control::Freeze;
    use std::time::Duration;

    let world = World::new();
    fleet(&world, 3);
    let path = "/v1/hosts/host-1/freeze";
    for body in [
        json!({"margin_ms": 9}),
        json!({"margin_ms": 600_001}),
        json!({"margin_ms": "5s"}),
        json!({"margin_ms": -1}),
        json!({"margin": 5_000}),
    ] {
        let answer = act(&world, Method::PUT, path, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
    }
    let unknown = act(&world, Method::PUT, "/v1/hosts/nobody/freeze", &json!({})).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.json()["type"], "urn:heartwatch:problem:unknown-host");
    assert!(world.control.frozen.lock().unwrap().is_empty());

    let host = HostId([1; 16]);
    for (method, body, frozen_ms) in [
        (Method::PUT, json!({"margin_ms": 5_000}), json!(5_000)),
        (Method::PUT, json!({"margin_ms": null}), json!(121)),
        (Method::DELETE, Value::Null, Value::Null),
    ] {
        let answer = act(&world, method, path, &body).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json(), json!({"host": host, "frozen_ms": frozen_ms}));
    }
    let asked = [Freeze::At(Duration::from_secs(5)), Freeze::AsItIs, Freeze::Off];
    assert_eq!(*world.control.frozen.lock().unwrap(), asked.map(|what| (host, what)));
}
