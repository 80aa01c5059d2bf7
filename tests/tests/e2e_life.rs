//! The story of one host, told by real processes: every turn that it can take.

use anyhow::ensure;
use heartwatch_common::id::Boot;
use heartwatch_common::wire::LeaveReason;
use heartwatch_tests::world::{
    PATIENCE, Receiver, Station, World, eventually, skip, story, text, webhook_secret,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const ALL: [&str; 8] = [
    "host.joined",
    "host.suspect",
    "host.down",
    "host.agent-lost",
    "host.recovered",
    "host.restarted",
    "host.left",
    "host.forgotten",
];

/// Whether `wanted` occur in `seen` in this order, whatever stands between.
fn in_order(seen: &[String], wanted: &[&str]) -> bool {
    let mut rest = seen.iter();
    wanted.iter().all(|w| rest.any(|s| s == w))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_crashes_is_found_down_comes_back_and_leaves() {
    story(async |world: &World| {
        let secret = webhook_secret(1);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        let controller = world
            .controller()
            .receiver("all", &receiver.url(), &file)
            .rule("all", &ALL, &["all"])
            .start()
            .await?;
        let api = controller.api()?;
        let mut agent =
            world.agent("db-1").label("zone", "a").beats_to(controller.beats()).start()?;
        let host = agent.host();
        let id = host.to_string();
        api.wait_state(host, "alive").await?;
        receiver.wait(&id, "host.joined", PATIENCE).await?;

        agent.kill()?;
        api.wait_state(host, "down").await?;
        let lost = receiver.wait(&id, "host.agent-lost", PATIENCE).await?;
        ensure!(text(&lost.body, "/data/cause") == "agent-lost", "{:#}", lost.body);
        ensure!(text(&lost.body, "/data/host/name") == "db-1", "{:#}", lost.body);
        ensure!(text(&lost.body, "/data/host/labels/zone") == "a", "{:#}", lost.body);
        ensure!(!text(&lost.body, "/data/incident").is_empty(), "{:#}", lost.body);

        agent.start()?;
        let back = receiver.wait(&id, "host.recovered", PATIENCE).await?;
        ensure!(back.body["data"]["same_boot"] == Value::Bool(false), "{:#}", back.body);
        ensure!(back.token() > lost.token(), "{} then {}", lost.token(), back.token());
        api.wait_state(host, "alive").await?;

        agent.stop().await?;
        receiver.wait(&id, "host.left", PATIENCE).await?;
        api.wait_state(host, "left").await?;

        agent.start()?;
        api.wait_state(host, "alive").await?;
        let kinds = api.kinds_of(host).await?;
        let wanted =
            ["host.joined", "host.suspect", "host.agent-lost", "host.recovered", "host.left"];
        ensure!(in_order(&kinds, &wanted), "expected {wanted:?} in this order, seen {kinds:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_falls_silent_is_down_silent_and_the_same_boot_that_returns_says_we_were_wrong()
{
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut agent = world.agent("frozen").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        // Its socket stays open, so its kernel answers no probe in its place.
        agent.process()?.signal(Signal::SIGSTOP)?;
        let down = api.wait_event(agent.host(), "host.down", PATIENCE).await?;
        ensure!(text(&down, "/data/cause") == "silent", "{down:#}");
        agent.process()?.signal(Signal::SIGCONT)?;
        api.wait_state(agent.host(), "alive").await?;
        let back = api.wait_event(agent.host(), "host.recovered", PATIENCE).await?;
        ensure!(back["data"]["same_boot"] == Value::Bool(true), "{back:#}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_boot_without_an_outage_is_a_restart_and_a_goodbye_before_it_no_failure() {
    story(async |world: &World| {
        // Nobody is suspected in this test, so that only the turns that it makes are seen.
        let controller = world.controller().detector("timeout_min", "\"20s\"").start().await?;
        let api = controller.api()?;
        let mut station = Station::new(world, "by-hand", controller.beats())?;
        station.join()?;
        station.boot = Boot(2);
        station.seq = 0;
        station.join()?;
        api.wait_event(station.host, "host.restarted", PATIENCE).await?;
        let leave = station.leave(LeaveReason::Reboot);
        station.send(&leave)?;
        let left = api.wait_event(station.host, "host.left", PATIENCE).await?;
        ensure!(left.to_string().contains("reboot"), "expected its reason: {left:#}");
        station.boot = Boot(3);
        station.seq = 0;
        station.join()?;
        api.wait_state(station.host, "alive").await?;
        let kinds = api.kinds_of(station.host).await?;
        let bad = kinds.iter().find(|k| ["host.suspect", "host.down"].contains(&k.as_str()));
        ensure!(bad.is_none(), "expected no failure, seen {kinds:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_over_ipv6_is_heard() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        return skip("an_agent_over_ipv6_is_heard", "this machine has no IPv6 loopback");
    }
    story(async |world: &World| {
        let controller = world.controller().listen("[::1]:0").start().await?;
        ensure!(controller.beats().is_ipv6(), "expected IPv6, seen {}", controller.beats());
        let agent = world.agent("six").beats_to(controller.beats()).start()?;
        controller.api()?.wait_state(agent.host(), "alive").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_before_its_controller_is_heard_once_that_is_there() {
    story(async |world: &World| {
        let reserved = std::net::UdpSocket::bind("127.0.0.1:0")?;
        let address = reserved.local_addr()?;
        let mut agent = world.agent("early").beats_to(address).start()?;
        // It must have tried before anybody could have heard it.
        eventually(PATIENCE, "the agent says that nobody answers", || async {
            let status = agent.status()?;
            let sent = status.pointer("/controllers/0/hellos_sent");
            ensure!(sent.and_then(Value::as_u64) > Some(0), "its status: {status:#}");
            Ok(Some(()))
        })
        .await?;
        drop(reserved);
        let controller = world.controller().listen(&address.to_string()).start().await?;
        controller.api()?.wait_state(agent.host(), "alive").await?;
        ensure!(agent.process()?.ended()?.is_none(), "the agent still runs");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_brings_new_labels_without_a_new_boot() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let setup = || world.agent("relabelled").beats_to(controller.beats());
        let mut agent = setup().label("zone", "a").start()?;
        api.wait_state(agent.host(), "alive").await?;
        let path = format!("/v1/hosts/{}", agent.host());
        let before = api.get(&path).await?;
        ensure!(text(&before, "/labels/zone") == "a", "{before:#}");
        setup().label("zone", "b").label("rack", "r9").write()?;
        agent.reload()?;
        eventually(PATIENCE, "the controller shows the new labels", || async {
            let after = api.get(&path).await?;
            ensure!(text(&after, "/labels/zone") == "b", "{after:#}");
            ensure!(text(&after, "/labels/rack") == "r9", "{after:#}");
            ensure!(after["boot"] == before["boot"], "the boot changed: {after:#}");
            Ok(Some(()))
        })
        .await?;
        let kinds = api.kinds_of(agent.host()).await?;
        ensure!(!kinds.iter().any(|k| k == "host.restarted"), "no restart, seen {kinds:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assigned_interval_is_adopted_and_shown_by_the_agents_status() {
    story(async |world: &World| {
        let controller = world.controller().detector("interval", "\"400ms\"").start().await?;
        let agent = world.agent("assigned").beats_to(controller.beats()).start()?;
        controller.api()?.wait_state(agent.host(), "alive").await?;
        eventually(PATIENCE, "the agent's status shows the assigned 400 ms", || async {
            let status = agent.status()?.to_string();
            ensure!(status.contains("\"assigned_interval_ms\":400.0"), "{status}");
            Ok(Some(()))
        })
        .await?;
        let shown = agent.verb("status")?.ok()?;
        ensure!(!shown.trim().is_empty(), "expected a status for people as well");
        let id = agent.verb("id")?.ok()?;
        ensure!(id.contains(&agent.host().to_string()), "expected its id, seen {id}");
        Ok(())
    })
    .await;
}
