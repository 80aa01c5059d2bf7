//! What an operator does about margins: record, replay, freeze.

use std::time::Duration;

use anyhow::{Context, ensure};
use heartwatch_tests::world::{PATIENCE, World, eventually, number, story, text};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_controller_recorded_can_be_replayed_under_other_settings() {
    story(async |world: &World| {
        let file = world.path("beats.csv");
        let shown = file.to_string_lossy().into_owned();
        let recorded = ["--record", &shown, "--record-max", "1MiB"];
        let mut controller = world.controller().args(&recorded).start().await?;
        let agent = world.agent("db-1").interval("100ms").beats_to(controller.beats()).start()?;
        let host = agent.host().to_string();
        eventually(PATIENCE, "thirty beats are recorded", || async {
            let lines = std::fs::read_to_string(&file).unwrap_or_default();
            Ok((lines.lines().filter(|l| l.starts_with(&host)).count() >= 30).then_some(()))
        })
        .await?;
        controller.stop().await?;
        let set = "detector.timeout_max=5s,detector.false_suspicion_cost=1000s";
        let svg = world.path("curve.svg");
        let command =
            ["replay", &shown, "--set", set, "--svg", &svg.to_string_lossy(), "--skip", "0s"];
        let table = controller.ctl(&command)?.ok()?;
        for word in [&host, "now", "set 1", set, "T_D MEAN", "P_A"] {
            ensure!(table.contains(word), "expected `{word}`, seen:\n{table}");
        }
        let report = controller.ctl(&[&command[..], &["--json"]].concat())?.json()?;
        let results = report["hosts"][0]["results"].as_array().context("results")?;
        ensure!(results.len() == 2 && number(&results[0], "/beats") >= 30, "{report}");
        let mean = results[0]["detection_mean_ms"].as_f64().context("a mean")?;
        ensure!(mean > 50.0 && mean < 5_000.0, "{report}");
        ensure!(std::fs::read_to_string(&svg)?.contains("</svg>"), "no picture");

        let bad = world.write("bad.csv", "host,seq,sent_us,gap_us,arrived_us\nh,1,x,1,1\n")?;
        let refused = controller.ctl(&["replay", &bad.to_string_lossy()])?;
        ensure!(refused.code == 1 && refused.stderr.contains("bad.csv:2: sent_us"), "{refused:?}");
        let unknown = controller.ctl(&["replay", &shown, "--set", "detector.x=1"])?;
        ensure!(unknown.code == 64, "{unknown:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_margin_holds_until_it_is_let_go_and_over_restarts() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        controller.pin_ports()?;
        let agent = world
            .agent("db-1")
            .label("pool", "db")
            .interval("100ms")
            .beats_to(controller.beats())
            .start()?;
        let api = controller.api()?;
        api.wait_state(agent.host(), "alive").await?;
        let said = controller.ctl(&["freeze", "db-1", "--margin", "7s"])?.ok()?;
        ensure!(said.contains("7s"), "{said}");
        api.wait_event(agent.host(), "host.frozen", PATIENCE).await?;
        let unknown = controller.ctl(&["freeze", "nobody"])?;
        ensure!(unknown.code == 1 && unknown.stderr.contains("nobody"), "{unknown:?}");
        controller.stop().await?;
        controller.start().await?;
        let api = controller.api()?;
        let path = format!("/v1/hosts/{}/why", agent.host());
        let why = eventually(PATIENCE, "its margin is still frozen", || async {
            let why = api.get(&path).await?;
            let frozen = why["detector"]["margin_ms"].as_f64() == Some(7_000.0);
            Ok(frozen.then_some(why))
        })
        .await?;
        ensure!(text(&why, "/detector/margin_source") == "frozen", "{why}");
        ensure!(text(&why, "/detector/group") == "pool=db", "{why}");
        ensure!(number(&why, "/host/frozen_ms") == 7_000, "{why}");
        let told = controller.ctl(&["why", "db-1"])?.ok()?;
        ensure!(told.contains("an operator froze it there"), "{told}");
        let table = controller.ctl(&["hosts"])?.ok()?;
        ensure!(table.contains("margin frozen"), "{table}");
        controller.ctl(&["unfreeze", "db-1"])?.ok()?;
        api.wait_event(agent.host(), "host.unfrozen", PATIENCE).await?;
        eventually(Duration::from_secs(5), "its margin learns again", || async {
            let why = api.get(&path).await?;
            Ok((text(&why, "/detector/margin_source") != "frozen").then_some(()))
        })
        .await?;
        // Without a margin it is kept as it is.
        let kept = controller.ctl(&["freeze", "db-1", "--json"])?.json()?;
        ensure!((10..=30_000).contains(&number(&kept, "/frozen_ms")), "{kept}");
        Ok(())
    })
    .await;
}
