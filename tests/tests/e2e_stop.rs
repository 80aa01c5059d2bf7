//! A controller that stood still reads ten thousand hosts' mail before it judges any of them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use heartwatch_tests::fleet::{Act, Mass, MassSetup, count};
use heartwatch_tests::world::{PATIENCE, World, eventually, now, number, stop_span, story, text};
use serde_json::Value;

const HOSTS: usize = 10_000;
const KILLED: usize = 20;
/// The stop, unless `HEARTWATCH_TEST_STOP` says otherwise.
const STOP: Duration = Duration::from_secs(10);
const FALSE: [&str; 3] = ["host.suspect", "host.down", "host.agent-lost"];

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_stood_still_suspects_none_of_ten_thousand_hosts_and_finds_the_dead() {
    story(async |world: &World| {
        let stop = stop_span(STOP);
        let top = "shards = 2\nlog_level = \"info\"";
        // The hosts' own process stands still now and then, for some 30 ms, where the machine is not ours
        // alone: whoever has learnt that they are punctual would rightly suspect them.
        let setup = world.controller().only_top(top).detector("timeout_min", "\"1s\"");
        let mut controller = setup.start().await?;
        let api = controller.api()?;
        let mass = Mass::start(&MassSetup {
            shards: 2,
            join: Duration::from_secs(5),
            ..MassSetup::new(controller.beats(), world.secret().clone(), HOSTS)
        })?;
        eventually(PATIENCE, "all hosts are known and alive", || async {
            let alive = number(&api.get("/v1/status").await?, "/hosts/alive");
            ensure!(alive == HOSTS as u64, "{alive} are");
            let settled = count(&mass.counts().settled);
            ensure!(settled == HOSTS as u64, "{settled} of the hosts know the controller");
            Ok(Some(()))
        })
        .await?;
        // Past the cold start.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (before, after) = api.events("").await?;
        let before = before.iter().filter(|e| FALSE.contains(&text(e, "/type"))).count();

        controller.freeze()?;
        tokio::time::sleep(stop / 2).await;
        mass.act(Act::Kill, 0..KILLED);
        tokio::time::sleep(stop / 2).await;
        controller.thaw()?;
        let thawed = now();
        let dead: BTreeSet<String> = (0..KILLED).map(|p| mass.id(p).to_string()).collect();
        let found = eventually(PATIENCE, "the dead are down", || async {
            let down = api.hosts_where("state=down&").await?;
            let down: BTreeSet<_> = down.iter().map(|h| text(h, "/id").to_owned()).collect();
            let missing = dead.difference(&down).count();
            ensure!(missing == 0, "{missing} of them are not");
            Ok(Some(now().since(thawed)))
        })
        .await?;
        // Whatever else it may think of somebody shows within some beats.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (events, _) = api.events(&after).await?;
        // What took the longest to find, and why.
        let evidence = |e: &Value| e["data"]["evidence"].clone();
        let downs = events.iter().filter(|e| text(e, "/type") == "host.down");
        let slowest = downs.map(evidence).max_by_key(|e| number(e, "/silence_ms"));
        println!("of the dead, who was found last: {}", slowest.unwrap_or_default());
        let of = |kind: &str| -> BTreeSet<String> {
            let of_kind = events.iter().filter(|e| text(e, "/type") == kind);
            of_kind.map(|e| text(e, "/host").to_owned()).filter(|h| !dead.contains(h)).collect()
        };
        let living = FALSE.map(|kind| of(kind).len());
        println!(
            "stopped for {stop:?}: {KILLED} of {KILLED} that died found {found:.1?} after it; of {} \
             living {} suspected, {} down, {} agent-lost ({before} before the stop); {} datagrams \
             dropped by the kernel, {} beats sent, {} of them late",
            HOSTS - KILLED,
            living[0],
            living[1],
            living[2],
            api.metric("heartwatch_datagrams_dropped_total", &[]).await?,
            count(&mass.counts().beats),
            count(&mass.counts().beats_late),
        );
        ensure!(living == [0; 3], "of the living, [suspect, down, agent-lost]: {living:?}");
        Ok(())
    })
    .await;
}
