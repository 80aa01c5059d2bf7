//! The canary: a drill tests the whole way of a real controller, and nobody takes it for a host.

use anyhow::ensure;
use heartwatch_tests::world::{PATIENCE, Receiver, World, eventually, story, text, webhook_secret};

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_passes_and_nothing_takes_the_canary_for_a_host() {
    story(async |world: &World| {
        let secret = webhook_secret(3);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        let kinds =
            ["host.joined", "host.suspect", "host.down", "host.agent-lost", "host.recovered"];
        let controller = world
            .controller()
            .receiver("r", &receiver.url(), &file)
            .rule("all", &kinds, &["r"])
            .start()
            .await?;
        let api = controller.api()?;
        let agent = world.agent("web-1").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        let said = controller.ctl(&["drill"])?.ok()?;
        for told in ["the canary beats", "the canary is silent", "The drill passed."] {
            ensure!(said.contains(told), "`{told}` is not in:\n{said}");
        }
        let found = api.metric("heartwatch_canary_detection_seconds", &[]).await?;
        ensure!(
            found > 1.0 && found < 30.0,
            "its margin is a second, and it was found in {found} s"
        );
        let delivered = api.metric("heartwatch_canary_delivery_seconds", &[]).await?;
        ensure!(delivered < 30.0, "delivered after {delivered} s");
        ensure!(api.metric("heartwatch_canary_failures_total", &[]).await? == 0.0);
        api.metric("heartwatch_canary_last_success_timestamp_seconds", &[]).await?;
        let hosts = api.hosts().await?;
        ensure!(hosts.len() == 1, "only the agent is a host: {hosts:#?}");
        let (events, _) = api.events("").await?;
        let kinds: Vec<&str> = events.iter().map(|e| text(e, "/type")).collect();
        // Somebody asked for the drill.
        ensure!(kinds == ["host.joined", "controller.audit", "heartwatch.test"], "seen {kinds:?}");
        let calls: Vec<_> = receiver.calls().iter().map(|c| c.kind().to_owned()).collect();
        ensure!(calls == ["host.joined"], "the rules' receiver was told {calls:?}");
        let (status, _) = api.get_text("/readyz").await?;
        ensure!(status == 200, "/readyz says {status}");
        // A second one finds no trace of the first.
        controller.ctl(&["drill"])?.ok()?;
        let strange = api.send("POST", "/v1/canary", Some(serde_json::json!({})), true).await?;
        ensure!(strange.0 == 401, "an unsigned webhook is answered {strange:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_drill_says_so_everywhere_until_one_passes() {
    story(async |world: &World| {
        let secret = webhook_secret(4);
        let file = world.write_secret("secret", &secret)?;
        let (mut target, ops) = (Receiver::start(&secret).await?, Receiver::start(&secret).await?);
        let controller = world
            .controller()
            .top("canary.receiver = \"target\"")
            .top("canary.delivery_max = \"4s\"")
            .receiver("target", &target.url(), &file)
            .receiver("ops", &ops.url(), &file)
            .rule("canary", &["controller.canary-failed", "controller.canary-passed"], &["ops"])
            .start()
            .await?;
        let api = controller.api()?;
        let agent = world.agent("web-1").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        target.pause().await;
        let failed = controller.ctl(&["drill"])?;
        ensure!(failed.code == 1, "expected exit 1, seen {}:\n{}", failed.code, failed.stdout);
        let told = "the test event did not reach `target` within 4.0 s";
        ensure!(failed.stderr.contains(told), "`{told}` is not in:\n{}", failed.stderr);
        let (status, ready) = api.get_text("/readyz").await?;
        ensure!(status == 503 && ready.contains("the last drill failed"), "{status}: {ready}");
        ensure!(api.metric("heartwatch_canary_failures_total", &[]).await? == 1.0);
        let heard = |kind: &'static str| {
            let ops = &ops;
            eventually(PATIENCE, kind, move || async move {
                Ok(ops.calls().iter().any(|c| c.kind() == kind).then_some(()))
            })
        };
        heard("controller.canary-failed").await?;
        target.resume().await?;
        eventually(PATIENCE, "a drill passes again", || async {
            let again = controller.ctl(&["drill"])?;
            ensure!(again.code == 0, "{}{}", again.stdout, again.stderr);
            Ok(Some(()))
        })
        .await?;
        heard("controller.canary-passed").await?;
        let calls = target.calls();
        let marked = calls.iter().all(|c| c.kind() == "heartwatch.test" && c.verified.is_ok());
        ensure!(marked && !calls.is_empty(), "the drills' receiver got {calls:?}");
        let (status, _) = api.get_text("/readyz").await?;
        ensure!(status == 200, "/readyz says {status}");
        Ok::<(), anyhow::Error>(())
    })
    .await;
}
