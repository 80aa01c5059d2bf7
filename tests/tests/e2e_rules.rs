//! Rules that wait, by real processes: a delay that a crash of the controller does not shorten, lose or
//! double, and an operator who asks beforehand.

use std::time::Duration;

use anyhow::ensure;
use heartwatch_tests::world::{PATIENCE, Receiver, World, eventually, story, text, webhook_secret};
use nix::sys::signal::Signal;

const DELAY: Duration = Duration::from_secs(6);
const EVENTS: [&str; 2] = ["host.down", "host.recovered"];

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_outlives_the_controller_and_ends_once_while_others_are_told_at_once() {
    story(async |world: &World| {
        let secret = webhook_secret(1);
        let file = world.write_secret("secret", &secret)?;
        let (early, late) = (Receiver::start(&secret).await?, Receiver::start(&secret).await?);
        let patient = "match = \"pool in (db, cache) and not canary\"\ndelay = \"6s\"";
        let mut controller = world
            .controller()
            .receiver("early", &early.url(), &file)
            .receiver("late", &late.url(), &file)
            .rule("alert", &EVENTS, &["early"])
            .rule_with("failover", &EVENTS, &["late"], patient)
            .start()
            .await?;
        controller.pin_ports()?;
        let api = controller.api()?;
        let mut db =
            world.agent("db-1").label("pool", "db").beats_to(controller.beats()).start()?;
        let mut web =
            world.agent("web-1").label("pool", "web").beats_to(controller.beats()).start()?;
        let (id, other) = (db.host().to_string(), web.host().to_string());
        api.wait_state(db.host(), "alive").await?;
        api.wait_state(web.host(), "alive").await?;

        // Asked beforehand.
        let report = controller.ctl(&["rules", "--json"])?.json()?;
        ensure!(report["rules"][1]["hosts"] == 1 && report["hosts"] == 2, "{report:#}");
        ensure!(text(&report, "/warnings/0/text").contains("canary"), "{report:#}");
        let foreseen = controller.ctl(&["rules", "test", "db-1", "--as", "down"])?.ok()?;
        ensure!(foreseen.contains("early would be told at once"), "{foreseen}");
        ensure!(foreseen.contains("late would be told after 6s"), "{foreseen}");
        let foreseen = controller.ctl(&["rules", "test", "web-1", "--as", "down"])?.ok()?;
        ensure!(foreseen.contains("does not hold: pool is `web`"), "{foreseen}");
        ensure!(early.calls().is_empty(), "a question sends nothing");

        db.process()?.signal(Signal::SIGSTOP)?;
        web.process()?.signal(Signal::SIGSTOP)?;
        let told = early.wait(&id, "host.down", PATIENCE).await?;
        let why = controller.ctl(&["why", "db-1"])?.ok()?;
        ensure!(why.contains("late is not told of host.down yet"), "{why}");
        controller.kill()?;
        controller.start().await?;
        let api = controller.api()?;
        let down = late.wait(&id, "host.down", PATIENCE).await?;
        let waited = down.at.since(told.at);
        ensure!(waited + Duration::from_millis(500) >= DELAY, "it waited {waited:?} of {DELAY:?}");
        ensure!(down.id == told.id, "one event, two receivers: {} and {}", told.id, down.id);

        // Both come back; of the other the patient receiver has heard nothing, and hears nothing now.
        db.process()?.signal(Signal::SIGCONT)?;
        web.process()?.signal(Signal::SIGCONT)?;
        late.wait(&id, "host.recovered", PATIENCE).await?;
        early.wait(&other, "host.recovered", PATIENCE).await?;
        eventually(PATIENCE, "nothing is left to be delivered", || async {
            let open = api.deliveries().await?;
            let open = open.iter().filter(|d| ["held", "pending"].contains(&text(d, "/state")));
            Ok((open.count() == 0).then_some(()))
        })
        .await?;
        let calls: Vec<_> =
            late.calls().iter().map(|c| (c.host().to_owned(), c.kind().to_owned())).collect();
        let both = EVENTS.map(|kind| (id.clone(), kind.to_owned()));
        ensure!(calls == both, "expected {both:?}, seen {calls:?}");
        Ok(())
    })
    .await;
}
