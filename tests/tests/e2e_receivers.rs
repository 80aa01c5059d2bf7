//! Receivers that misbehave: whatever ails one, what was journaled arrives once it heals, in order,
//! under the same idempotency key, byte for byte the same.

use std::time::Duration;

use anyhow::{Result, ensure};
use heartwatch_common::wire::LeaveReason;
use heartwatch_tests::world::{
    Answer, Call, PATIENCE, Plan, Receiver, Station, World, eventually, number, story, text,
    webhook_secret,
};
use serde_json::Value;

const SHORT: &str = "timeout = \"600ms\"\nconnect_timeout = \"300ms\"\n";

/// Every call of one event was the same, but for its time of signing.
fn check_repeats(calls: &[Call]) -> Result<()> {
    let first = &calls[0];
    for call in calls {
        ensure!(call.verified.is_ok(), "expected a right signature: {call:?}");
        ensure!(
            call.id == first.id,
            "expected one idempotency key, seen {} and {}",
            first.id,
            call.id
        );
        ensure!(call.raw == first.raw, "expected the same bytes on every attempt");
        ensure!(call.id == text(&call.body, "/data/event_id"), "{call:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_arrives_after_its_receiver_heals_whatever_ailed_it() {
    story(async |world: &World| {
        let secret = webhook_secret(2);
        let file = world.write_secret("secret", &secret)?;
        let trap = Receiver::start(&secret).await?;
        let ailments = [
            ("s500", Answer::Status(500)),
            ("s503", Answer::Status(503)),
            ("s404", Answer::Status(404)),
            ("s429", Answer::Status(429)),
            ("hangs", Answer::Hang),
            ("slow", Answer::Slow(200, Duration::from_secs(5))),
            ("redirects", Answer::Redirect(trap.url())),
            ("huge", Answer::Huge(500)),
            ("breaks", Answer::CloseMidBody(502)),
        ];
        let mut setup = world.controller();
        let mut receivers = Vec::new();
        for (name, answer) in ailments {
            let receiver = Receiver::start(&secret).await?;
            receiver.plan(Plan::script([answer.clone(), answer]));
            setup = setup.receiver_with(name, &receiver.url(), &file, SHORT).rule(
                name,
                &["host.joined"],
                &[name],
            );
            receivers.push((name, receiver));
        }
        let controller = setup.start().await?;
        let mut host = Station::new(world, "news", controller.beats())?;
        host.join()?;
        let id = host.host.to_string();
        for (name, receiver) in &receivers {
            receiver.wait(&id, "host.joined", PATIENCE).await.map_err(|e| e.context(*name))?;
            let calls = receiver.calls();
            ensure!(
                calls.len() >= 3,
                "{name}: expected two bad attempts and a good one: {calls:?}"
            );
            check_repeats(&calls).map_err(|e| e.context(*name))?;
        }
        ensure!(trap.calls().is_empty(), "expected that no redirect is followed");
        let api = controller.api()?;
        eventually(PATIENCE, "every delivery is booked as delivered", || async {
            let deliveries = api.deliveries().await?;
            let states: Vec<_> = deliveries.iter().map(|d| text(d, "/state")).collect();
            ensure!(states == ["delivered"; 9], "{states:?}");
            ensure!(deliveries.iter().all(|d| number(d, "/attempts") >= 3), "{deliveries:?}");
            Ok(Some(()))
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_2xx_counts_however_its_body_goes_on() {
    story(async |world: &World| {
        let secret = webhook_secret(2);
        let file = world.write_secret("secret", &secret)?;
        let mut setup = world.controller();
        let mut receivers = Vec::new();
        for (name, answer) in [("huge", Answer::Huge(200)), ("breaks", Answer::CloseMidBody(200))] {
            let receiver = Receiver::start(&secret).await?;
            receiver.plan(Plan::Always(answer));
            setup = setup.receiver_with(name, &receiver.url(), &file, SHORT).rule(
                name,
                &["host.joined"],
                &[name],
            );
            receivers.push(receiver);
        }
        let controller = setup.start().await?;
        let mut host = Station::new(world, "news", controller.beats())?;
        host.join()?;
        let api = controller.api()?;
        eventually(PATIENCE, "both deliveries are booked as delivered", || async {
            let deliveries = api.deliveries().await?;
            let states: Vec<_> = deliveries.iter().map(|d| text(d, "/state")).collect();
            ensure!(states == ["delivered"; 2], "{deliveries:?}");
            Ok(Some(()))
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_a_receiver_was_away_reaches_it_in_order() {
    story(async |world: &World| {
        let secret = webhook_secret(3);
        let file = world.write_secret("secret", &secret)?;
        let mut receiver = Receiver::start(&secret).await?;
        let controller = world
            .controller()
            .detector("timeout_min", "\"20s\"")
            .receiver("r", &receiver.url(), &file)
            .rule("all", &["host.joined", "host.restarted", "host.left"], &["r"])
            .start()
            .await?;
        let api = controller.api()?;
        receiver.pause().await;
        let mut host = Station::new(world, "busy", controller.beats())?;
        host.join()?;
        api.wait_event(host.host, "host.joined", PATIENCE).await?;
        host.boot.0 += 1;
        host.join()?;
        api.wait_event(host.host, "host.restarted", PATIENCE).await?;
        eventually(PATIENCE, "it was tried in vain", || async {
            let tried = api.deliveries().await?.iter().any(|d| number(d, "/attempts") >= 2);
            Ok(tried.then_some(()))
        })
        .await?;
        receiver.resume().await?;
        let id = host.host.to_string();
        receiver.wait(&id, "host.restarted", PATIENCE).await?;
        let leave = host.leave(LeaveReason::Shutdown);
        host.send(&leave)?;
        receiver.wait(&id, "host.left", PATIENCE).await?;
        let calls = receiver.calls();
        let tokens: Vec<_> = calls.iter().filter(|c| c.was_accepted()).map(Call::token).collect();
        ensure!(tokens.is_sorted(), "expected rising tokens, seen {tokens:?}");
        let kinds: Vec<_> = calls.iter().map(Call::kind).collect();
        let last = ["host.restarted", "host.left"];
        ensure!(kinds.ends_with(&last), "expected the order of events, seen {kinds:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_saw_a_higher_token_gets_the_news_again_under_one_above_it() {
    story(async |world: &World| {
        let secret = webhook_secret(4);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        // As after a restore from an old backup: the receiver remembers more than the controller.
        let seen: u64 = (1 << 45) + 7;
        receiver.plan(Plan::script([Answer::Conflict(seen)]));
        let controller = world
            .controller()
            .receiver("r", &receiver.url(), &file)
            .rule("all", &["host.joined"], &["r"])
            .start()
            .await?;
        let mut host = Station::new(world, "restored", controller.beats())?;
        host.join()?;
        let id = host.host.to_string();
        let call = receiver.wait(&id, "host.joined", PATIENCE).await?;
        ensure!(call.token() > seen, "expected a token above {seen}, seen {}", call.token());
        ensure!(call.token() < 1 << 53, "expected one that JSON carries exactly: {}", call.token());
        let first = &receiver.calls()[0];
        ensure!(first.id != call.id, "expected a new event id, seen {} again", call.id);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_live_secret_signs_so_that_secrets_can_be_changed_without_a_gap() {
    story(async |world: &World| {
        let (old, new) = (webhook_secret(5), webhook_secret(6));
        let file = world.write_secret("secret", &format!("{new}\n{old}"))?;
        let receiver = Receiver::start(&old).await?;
        let controller = world
            .controller()
            .receiver("r", &receiver.url(), &file)
            .rule("all", &["host.joined"], &["r"])
            .start()
            .await?;
        let mut first = Station::new(world, "first", controller.beats())?;
        first.join()?;
        let call = receiver.wait(&first.host.to_string(), "host.joined", PATIENCE).await?;
        ensure!(call.signatures == 2, "expected two signatures, seen {}", call.signatures);
        receiver.secrets(&[&new]);
        let mut second = Station::new(world, "second", controller.beats())?;
        second.join()?;
        receiver.wait(&second.host.to_string(), "host.joined", PATIENCE).await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_names_candidates_of_the_same_pool_least_loaded_first() {
    story(async |world: &World| {
        let secret = webhook_secret(8);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        let controller = world
            .controller()
            .receiver("r", &receiver.url(), &file)
            .rule_with(
                "failover",
                &["host.down", "host.agent-lost"],
                &["r"],
                "candidates_same = [\"pool\"]\nmatch = { pool = \"web\" }",
            )
            .start()
            .await?;
        let api = controller.api()?;
        let start = |name: &str, pool: &str| {
            world.agent(name).label("pool", pool).beats_to(controller.beats()).start()
        };
        let mut victim = start("web-1", "web")?;
        let mut other = start("db-1", "db")?;
        let standby = [start("web-2", "web")?, start("web-3", "web")?];
        for host in [victim.host(), other.host(), standby[0].host(), standby[1].host()] {
            api.wait_state(host, "alive").await?;
        }
        eventually(PATIENCE, "every host's load is known", || async {
            let hosts = api.hosts().await?;
            Ok(hosts.iter().all(|h| !h["load"].is_null()).then_some(()))
        })
        .await?;
        other.kill()?;
        api.wait_state(other.host(), "down").await?;
        victim.kill()?;
        let id = victim.host().to_string();
        let call = receiver.wait(&id, "host.agent-lost", PATIENCE).await?;
        let empty = Vec::new();
        let list = call.body["data"]["candidates"].as_array().unwrap_or(&empty);
        let mut names: Vec<_> = list.iter().map(|c| text(c, "/name")).collect();
        let scores: Vec<_> = list.iter().filter_map(|c| c["load_score"].as_f64()).collect();
        ensure!(scores.is_sorted() && scores.len() == 2, "least loaded first: {list:?}");
        names.sort_unstable();
        ensure!(names == ["web-2", "web-3"], "expected web-2 and web-3, seen {names:?}");
        let strangers = receiver.calls().iter().filter(|c| c.host() != id).count();
        ensure!(strangers == 0, "expected no call about a host that the rule does not match");
        ensure!(call.body["data"]["supersedes"] == Value::Array(Vec::new()), "{:#}", call.body);
        Ok(())
    })
    .await;
}
