//! Routes by which hosts get keys.

use heartwatch_common::auth::HostKey;

use super::*;

const HOST: &str = "8a4e3b1c5d6f70819203a4b5c6d7e8f9";

async fn say(world: &World, path: &str, body: &Value) -> Answer {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    send(world, request.body(Body::from(body.to_string())).unwrap()).await
}

fn ask(token: &Value) -> Value {
    json!({
        "token": token, "host": HOST, "attempt": "01".repeat(16), "name": "web-1",
        "machine": "02".repeat(32), "of": "a newer version",
    })
}

#[tokio::test]
async fn a_token_is_made_once_shown_once_and_lets_a_host_in_without_another_word() {
    let world = World::new();
    let wish = json!({"name": "t", "ttl": "1h", "uses": 1, "labels": {"pool": "a"}, "by": "me"});
    let made = act(&world, Method::POST, "/v1/join-tokens", &wish).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.text());
    let token = made.json()["token"].clone();
    assert!(token.as_str().unwrap().ends_with(&"05".repeat(32)), "the certificate's SHA-256");
    let twice = act(&world, Method::POST, "/v1/join-tokens", &wish).await;
    assert_eq!(twice.status, StatusCode::CONFLICT);
    let list = act(&world, Method::GET, "/v1/join-tokens", &Value::Null).await;
    assert!(!list.text().contains(token.as_str().unwrap().get(5..37).unwrap()));
    assert_eq!(list.json()["tokens"][0]["uses_left"], 1);

    let welcome = say(&world, "/v1/enrol", &ask(&token)).await;
    assert_eq!(welcome.status, StatusCode::OK, "{}", welcome.text());
    let welcome = welcome.json();
    assert!(welcome["key"].as_str().unwrap().parse::<HostKey>().is_ok());
    assert_eq!((&welcome["host"], &welcome["labels"]), (&json!(HOST), &json!({"pool": "a"})));
    let again = say(&world, "/v1/enrol", &ask(&token)).await.json();
    assert_eq!(again["key"], welcome["key"]);
    // Journaled once, and counted both times.
    let journaled = world.control.enrolled.lock().unwrap().clone();
    assert_eq!(journaled.len(), 1);
    assert_eq!(journaled[0].1["reason"], "let in by the join token `t`");
    let scraped = get(&world, "/metrics").await.text();
    for line in [
        "heartwatch_enrolments_total{outcome=\"new\"} 1",
        "heartwatch_enrolments_total{outcome=\"repeated\"} 1",
        "heartwatch_enrolments_refused_total{reason=\"host-taken\"} 0",
        "heartwatch_key_renewals_total 0",
        "heartwatch_hosts_revoked 0",
    ] {
        assert!(scraped.contains(line), "{line}");
    }

    let path = format!("/v1/hosts/{HOST}/revoke");
    // It stood in the log, in the journal, in a webhook and in every answer about the host.
    let leaky = json!({"reason": "key hwk1:1:0:d285d1b2 leaked"});
    let refused = act(&world, Method::POST, &path, &leaky).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text().contains("a key or a token") && !refused.text().contains("d285"));
    let nameless = act(&world, Method::POST, &path, &json!({"reason": " "})).await;
    assert_eq!(nameless.status, StatusCode::BAD_REQUEST);
    let order = delivery(7, HOST.parse().unwrap(), DeliveryState::Held);
    world.store.deliveries.lock().unwrap().push(order);
    let gone = act(&world, Method::POST, &path, &json!({"reason": "lost", "by": "me"})).await;
    assert_eq!(gone.json()["reason"], "lost (me)");
    assert_eq!(gone.json()["already"], false);
    // Whoever does it is told of the order that goes with it.
    let dropped = &gone.json()["dropped"][0];
    let seen = [&dropped["type"], &dropped["receiver"], &dropped["was"], &dropped["delivery"]];
    assert_eq!(seen, [&json!("host.down"), &json!("orchestrator"), &json!("held"), &json!(7)]);
    // Whoever asks for it, by whatever it is called, hears what became of it.
    let again = act(&world, Method::POST, "/v1/hosts/web-1/revoke", &json!({"reason": "x"})).await;
    assert_eq!(
        (&again.json()["already"], &again.json()["reason"]),
        (&json!(true), &json!("lost (me)"))
    );
    for path in ["/v1/hosts/web-1", "/v1/hosts/web-1/why", &format!("/v1/hosts/{HOST}")] {
        let told = act(&world, Method::GET, path, &Value::Null).await;
        assert_eq!(told.status, StatusCode::GONE, "{path}");
        assert!(
            told.text().contains("lost (me)") && told.text().contains("--lift"),
            "{}",
            told.text()
        );
    }
    let forget = act(&world, Method::DELETE, "/v1/hosts/web-1", &Value::Null).await;
    assert_eq!(forget.status, StatusCode::GONE);
    let list = json!([{"id": HOST}, {"id": "00".repeat(15) + "99"}]);
    let imported = act(&world, Method::POST, "/v1/hosts/import", &list).await.json();
    assert_eq!(imported, json!({"added": 1, "known": 0, "revoked": [HOST]}));
    let refused = say(&world, "/v1/enrol", &ask(&token)).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.text().contains("host-revoked"), "{}", refused.text());
    let by_name = "/v1/hosts/web-1/revoke";
    let lifted = act(&world, Method::DELETE, by_name, &Value::Null).await;
    assert_eq!(lifted.status, StatusCode::OK, "{}", lifted.text());
    let twice = act(&world, Method::DELETE, &path, &Value::Null).await;
    assert_eq!(twice.status, StatusCode::NOT_FOUND);
    assert!(twice.text().contains("is not revoked: it may enrol"), "{}", twice.text());
    let twice = act(&world, Method::DELETE, by_name, &Value::Null).await;
    assert!(twice.text().contains("lifted before"), "{}", twice.text());
}

#[tokio::test]
async fn what_operators_may_is_refused_to_all_others_and_nonsense_to_everybody() {
    let world = World::new();
    for (method, path) in [
        (Method::POST, "/v1/join-tokens"),
        (Method::DELETE, "/v1/join-tokens/t"),
        (Method::POST, "/v1/hosts/x/revoke"),
        (Method::DELETE, "/v1/hosts/x/revoke"),
        (Method::POST, "/v1/secrets/rotate"),
        (Method::POST, "/v1/secrets/reload"),
        (Method::POST, "/v1/secrets/1/retire"),
    ] {
        let request = Request::builder().method(method.clone()).uri(path);
        let answer = send(&world, request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    for (path, body) in [
        ("/v1/enrol", json!({})),
        ("/v1/enrol", ask(&json!("hwj1_x"))),
        ("/v1/enrol", json!({"token": "x".repeat(20_000)})),
        ("/v1/enrol/renew", json!({"host": HOST, "nonce": "00"})),
    ] {
        let answer = say(&world, path, &body).await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.text());
    }
    let unknown = ask(&json!(format!("hwj1_{}", "0".repeat(32))));
    let answer = say(&world, "/v1/enrol", &unknown).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let wishes = [
        json!({"ttl": "0s", "uses": 1}),
        json!({"ttl": "400d", "uses": 1}),
        json!({"ttl": "1h", "uses": 0}),
        json!({"ttl": "1h", "uses": 1, "name": "a/b"}),
        json!({"ttl": "1h", "uses": 1, "labels": {"": "x"}}),
    ];
    for wish in wishes {
        let answer = act(&world, Method::POST, "/v1/join-tokens", &wish).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wish}");
    }
    let wrong = json!({"ttl": "1h", "uses": 1, format!("hwj1_{}", "0f".repeat(16)): 1});
    let answer = act(&world, Method::POST, "/v1/join-tokens", &wrong).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(!answer.text().contains("0f0f"), "{}", answer.text());
}

#[tokio::test]
async fn secrets_are_counted_rotated_and_retired_and_never_shown() {
    let world = World::new();
    let rotated = act(&world, Method::POST, "/v1/secrets/rotate", &Value::Null).await;
    let expected = json!({"secrets": [
        {"key_id": 2, "state": "current", "hosts": 0}, {"key_id": 1, "state": "live", "hosts": 0},
    ]});
    assert_eq!(rotated.json(), expected);
    let retired = act(&world, Method::POST, "/v1/secrets/1/retire", &Value::Null).await;
    assert_eq!(retired.json()["secrets"][1]["state"], "renew-only");
    let again = act(&world, Method::POST, "/v1/secrets/1/retire", &Value::Null).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let none = act(&world, Method::POST, "/v1/secrets/9/retire", &Value::Null).await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    let reloaded = act(&world, Method::POST, "/v1/secrets/reload", &Value::Null).await;
    assert_eq!(reloaded.json(), retired.json());
}
