//! The wall clock may step by an hour at any moment: nobody is called suspect for it, the dead are
//! still found, and deliveries neither stall nor hurry. The controller runs in this process, so that its
//! clock can be stepped through the `Clock` seam; the machine's own clock is never touched.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use heartwatch_common::time::SteppedClock;
use heartwatch_controller::app::App;
use heartwatch_controller::config::RawConfig;
use heartwatch_tests::fleet::{Fleet, FleetSetup};
use heartwatch_tests::world::{PATIENCE, Plan, Receiver, World, eventually, story, webhook_secret};

const HOSTS: usize = 30;
const HOUR_MS: i64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_steps_by_an_hour_convicts_nobody_and_stalls_nothing() {
    story(async |world: &World| {
        let secret = webhook_secret(9);
        let file = world.write_secret("webhook-secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        let setup = world.controller().receiver("orchestrator", &receiver.url(), &file).rule(
            "all",
            &["host.suspect", "host.down", "host.recovered"],
            &["orchestrator"],
        );
        let raw = RawConfig::load(Some(&setup.write()?))?;
        let clock = Arc::new(SteppedClock::default());
        let app = App::start(raw.check()?, Arc::clone(&clock) as _).await?;
        let base = format!("http://{}", app.addresses.api);
        let http = reqwest::Client::builder().no_proxy().build()?;
        let count = async |state: &str| -> Result<u64> {
            let status: serde_json::Value =
                http.get(format!("{base}/v1/status")).send().await?.json().await?;
            Ok(status["hosts"][state].as_u64().unwrap_or(0))
        };
        let fleet = Fleet::start(&FleetSetup {
            controller: app.addresses.listen[0],
            secret: world.secret().clone(),
            hosts: HOSTS,
            interval: Duration::from_millis(250),
            seed: 3,
        })?;
        eventually(PATIENCE, "all hosts are alive", async || {
            Ok((count("alive").await? == 30).then_some(()))
        })
        .await?;

        for offset in [HOUR_MS, -HOUR_MS, HOUR_MS, 0] {
            clock.step_to(offset);
            // A dozen beats of every host pass under the stepped clock.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let alive = count("alive").await?;
            ensure!(alive == 30, "expected 30 alive at {offset} ms, seen {alive}");
        }
        ensure!(receiver.calls().is_empty(), "somebody was suspected: {:?}", receiver.calls());

        // A host dies, and its webhook fails twice: it is found, and the retries go on when the clock
        // steps forward between them. (Four minutes: a signature may be five minutes old.)
        clock.step_to(-240_000);
        receiver.plan(Plan::script([
            heartwatch_tests::world::Answer::Status(500),
            heartwatch_tests::world::Answer::Status(500),
        ]));
        fleet.kill(0);
        eventually(PATIENCE, "the dead host is down", async || {
            Ok((count("down").await? == 1).then_some(()))
        })
        .await?;
        clock.step_to(0);
        let id = fleet.ids()[0].to_string();
        receiver.wait(&id, "host.down", PATIENCE).await?;
        ensure!(count("alive").await? == 29, "expected the other 29 alive");
        drop(fleet);
        app.stop().await;
        Ok(())
    })
    .await;
}
