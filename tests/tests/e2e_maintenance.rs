//! Maintenance, planned leaves and cloned identities, told by real processes.

use anyhow::ensure;
use heartwatch_tests::world::{PATIENCE, Receiver, World, eventually, story, text, webhook_secret};
use nix::sys::signal::Signal;
use serde_json::Value;

const ACTED: [&str; 3] = ["host.down", "host.agent-lost", "host.recovered"];

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_in_a_window_is_acted_upon_at_its_end_though_the_controller_was_restarted() {
    story(async |world: &World| {
        let secret = webhook_secret(1);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        let mut controller = world
            .controller()
            .receiver("all", &receiver.url(), &file)
            .rule("all", &ACTED, &["all"])
            .detector("restart_grace", "\"2s\"")
            .start()
            .await?;
        controller.pin_ports()?;
        let mut agent =
            world.agent("db-1").label("zone", "a").beats_to(controller.beats()).start()?;
        let host = agent.host();
        controller.api()?.wait_state(host, "alive").await?;
        let said = controller.ctl(&[
            "maintenance",
            "add",
            "--labels",
            "zone=a",
            "--for",
            "30m",
            "--reason",
            "new disk",
        ])?;
        let said = said.ok()?;
        ensure!(said.starts_with("m1: hosts with zone=a (1 host) in maintenance"), "{said}");
        let none = controller.ctl(&[
            "maintenance",
            "add",
            "--domain",
            "zone=nowhere",
            "--for",
            "30m",
            "--reason",
            "x",
        ])?;
        ensure!(none.ok()?.contains("warning: no registered host is covered"));
        agent.kill()?;
        controller.api()?.wait_state(host, "down").await?;
        let held = controller.api()?.get("/v1/holds").await?;
        ensure!(text(&held, "/holds/0/kind") == "maintenance", "{held:#}");
        let why = controller.ctl(&["why", "db-1"])?.ok()?;
        ensure!(why.contains("It is in maintenance for") && why.contains("new disk"), "{why}");

        controller.stop().await?;
        controller.start().await?;
        let api = controller.api()?;
        eventually(PATIENCE, "the window and what it holds are known again", || async {
            let held = api.get("/v1/holds").await?;
            ensure!(text(&held, "/holds/0/kind") == "maintenance", "{held:#}");
            Ok(Some(()))
        })
        .await?;
        ensure!(receiver.calls().is_empty(), "nothing was sent: {:?}", receiver.calls());
        controller.ctl(&["maintenance", "end", "m1"])?.ok()?;
        receiver.wait(&host.to_string(), "host.agent-lost", PATIENCE).await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_announces_its_own_maintenance_over_its_restart_and_ends_it() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut agent = world.agent("db-1").beats_to(controller.beats()).start()?;
        let path = format!("/v1/hosts/{}", agent.host());
        api.wait_state(agent.host(), "alive").await?;
        let on = ["maintenance", "on", "--for", "8h", "--reason", "new disk"];
        let said = agent.verbs(&on)?.ok()?;
        ensure!(said.starts_with("in maintenance until"), "{said}");
        let wait = async |wanted: &str| {
            eventually(PATIENCE, "the controller knows of it", || async {
                let shown = api.get(&path).await?;
                ensure!(text(&shown, "/maintenance/reason") == wanted, "{shown:#}");
                Ok(Some(shown["maintenance"].clone()))
            })
            .await
        };
        let window = wait("new disk").await?;
        let span =
            window["until_ms"].as_i64().unwrap_or(0) - window["from_ms"].as_i64().unwrap_or(0);
        ensure!(span == 4 * 3_600_000, "cut to maintenance.announced_max: {window:#}");
        ensure!(window["announced"] == Value::Bool(true), "{window:#}");
        eventually(PATIENCE, "the agent knows that it was heard", || async {
            let shown = agent.verbs(&["maintenance", "status"])?.ok()?;
            ensure!(shown.contains("(new disk); 1 of 1 controllers know of it"), "{shown}");
            Ok(Some(()))
        })
        .await?;
        agent.kill()?;
        agent.start()?;
        api.wait_state(agent.host(), "alive").await?;
        eventually(PATIENCE, "the agent announces it again", || async {
            let again = agent.verbs(&["maintenance", "status"])?.ok()?;
            ensure!(again.contains("(new disk); 1 of 1 controllers"), "{again}");
            Ok(Some(()))
        })
        .await?;
        ensure!(wait("new disk").await? == window, "the same window");
        agent.verbs(&["maintenance", "off"])?.ok()?;
        wait("").await?;
        let kinds = api.kinds_of(agent.host()).await?;
        let edges: Vec<_> = kinds.iter().filter(|k| k.starts_with("maintenance.")).collect();
        ensure!(edges == ["maintenance.started", "maintenance.ended"], "{kinds:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_is_a_promise_and_who_breaks_it_is_probed_and_then_down() {
    story(async |world: &World| {
        let controller = world.controller().detector("leave_grace", "\"0s\"").start().await?;
        let api = controller.api()?;
        let mut agent = world.agent("db-1").beats_to(controller.beats()).start()?;
        let host = agent.host();
        api.wait_state(host, "alive").await?;
        // Kept: back in time, and nothing is said.
        agent.verbs(&["leave", "--reason", "upgrade", "--for", "60s"])?.ok()?;
        agent.stop().await?;
        let left = api.wait_event(host, "host.left", PATIENCE).await?;
        ensure!(text(&left, "/data/leave_reason") == "upgrade", "{left:#}");
        ensure!(left["data"]["expected_away_s"] == 60, "{left:#}");
        let shown = api.get(&format!("/v1/hosts/{host}")).await?;
        ensure!(shown["back_by_ms"].is_i64(), "{shown:#}");
        agent.start()?;
        api.wait_state(host, "alive").await?;
        // Broken.
        agent.verbs(&["leave", "--reason", "upgrade", "--for", "2s"])?.ok()?;
        agent.stop().await?;
        api.wait_event(host, "host.overdue", PATIENCE).await?;
        // Its kernel answers: the upgrade broke the agent, not the machine.
        let lost = api.wait_event(host, "host.agent-lost", PATIENCE).await?;
        ensure!(!text(&lost, "/data/incident").is_empty(), "{lost:#}");
        agent.start()?;
        let back = api.wait_event(host, "host.recovered", PATIENCE).await?;
        ensure!(back["data"]["same_boot"] == Value::Bool(false), "{back:#}");
        // For good.
        agent.stop().await?;
        api.wait_state(host, "left").await?;
        let why = controller.ctl(&["why", "db-1"])?.ok()?;
        ensure!(why.contains("It said goodbye for good."), "{why}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_one_identity_are_a_duplicate_told_with_both_addresses() {
    story(async |world: &World| {
        let secret = webhook_secret(1);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        let controller = world
            .controller()
            .receiver("all", &receiver.url(), &file)
            .rule("all", &ACTED, &["all"])
            .start()
            .await?;
        let api = controller.api()?;
        let mut one = world.agent("db-1").beats_to(controller.beats()).start()?;
        let host = one.host();
        api.wait_state(host, "alive").await?;
        let mut two = world.agent("copy").clone_of("db-1").beats_to(controller.beats()).start()?;
        api.wait_state(host, "duplicate").await?;
        let told = api.wait_event(host, "host.duplicate", PATIENCE).await?;
        let (here, there) = (text(&told, "/data/host/address"), text(&told, "/data/other_address"));
        ensure!(!here.is_empty() && !there.is_empty() && here != there, "{told:#}");
        let listed = api.hosts_where("state=duplicate&").await?;
        ensure!(listed.len() == 1, "{listed:#?}");
        let counted = api.metric("heartwatch_hosts", &["state=\"duplicate\""]).await?;
        ensure!(counted == 1.0, "{counted}");
        let why = controller.ctl(&["why", &host.to_string()])?.ok()?;
        ensure!(why.contains("from two machines"), "{why}");
        // Both fall silent: it is seen, and not acted upon before somebody says that one is left.
        one.process()?.signal(Signal::SIGSTOP)?;
        two.process()?.signal(Signal::SIGSTOP)?;
        api.wait_state(host, "down").await?;
        let down = api.wait_event(host, "host.down", PATIENCE).await?;
        ensure!(text(&down, "/data/verdicts/0/verdict") == "hold", "{down:#}");
        let kinds = api.kinds_of(host).await?;
        let told = kinds.iter().filter(|k| *k == "host.duplicate").count();
        ensure!(told == 1, "told once: {kinds:?}");
        ensure!(receiver.calls().is_empty(), "{:?}", receiver.calls());
        let holds = controller.ctl(&["holds"])?.ok()?;
        ensure!(holds.contains("hosts single") && holds.contains("duplicate"), "{holds}");
        let why = controller.ctl(&["why", &host.to_string()])?.ok()?;
        ensure!(why.contains("was last heard") && why.contains("it is taken for gone in"), "{why}");
        let id = host.to_string();
        let said = controller.ctl(&["hosts", "single", &id, "--reason", "the copy is off"])?;
        let said = said.ok()?;
        ensure!(said.contains("judged again now"), "{said}");
        eventually(PATIENCE, "the failover", async || {
            Ok(receiver.calls().iter().any(|c| c.kind() == "host.down").then_some(()))
        })
        .await?;
        let single = api.wait_event(host, "host.single", PATIENCE).await?;
        ensure!(text(&single, "/data/reason").ends_with("the copy is off"), "{single:#}");
        let again = controller.ctl(&["hosts", "single", &id, "--reason", "x"])?.ok();
        ensure!(again.is_err_and(|e| format!("{e:#}").contains("nothing to end")));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_of_one_identity_one_says_goodbye_and_the_death_of_the_other_is_told() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut one = world.agent("db-1").beats_to(controller.beats()).start()?;
        let host = one.host();
        api.wait_state(host, "alive").await?;
        let mut two = world.agent("copy").clone_of("db-1").beats_to(controller.beats()).start()?;
        api.wait_state(host, "duplicate").await?;
        one.stop().await?;
        two.process()?.signal(Signal::SIGKILL)?;
        api.wait_state(host, "down").await?;
        let kinds = api.kinds_of(host).await?;
        ensure!(!kinds.iter().any(|kind| kind == "host.left"), "{kinds:?}");
        let why = controller.ctl(&["why", &host.to_string()])?.ok()?;
        ensure!(why.contains("Two machines answered") && why.contains("said goodbye"), "{why}");
        Ok(())
    })
    .await;
}
