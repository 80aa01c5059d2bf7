//! The store's disk is full: beats go on, the controller says so, and nothing acknowledged is lost.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heartwatch_tests::fleet::{Fleet, FleetSetup};
use heartwatch_tests::world::{
    PATIENCE, Receiver, World, can_unshare_mounts, eventually, number, skip, story, webhook_secret,
};

const NAME: &str = "a_full_disk_stops_no_beat_is_told_and_loses_nothing";

/// Writes until the file system has no byte left.
fn fill(path: &Path) -> Result<()> {
    let mut file =
        std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    // Large pieces first, then small ones, so that no page remains.
    for size in [64 * 1024, 4 * 1024, 512, 1] {
        let block = vec![0xa5; size];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => break,
                Err(e) => bail!("expected a full disk, seen: {e}"),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_no_beat_is_told_and_loses_nothing() {
    if !nix::unistd::geteuid().is_root() || !can_unshare_mounts() {
        return skip(NAME, "a small file system can only be mounted by root, in a namespace");
    }
    story(async |world: &World| {
        const HOSTS: usize = 20;
        const VICTIM: usize = 3;
        let secret = webhook_secret(1);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        let controller = world
            .controller()
            .on_tmpfs(16 * 1024)
            .receiver("r", &receiver.url(), &file)
            .rule("all", &["host.joined", "host.suspect", "host.down", "host.recovered"], &["r"])
            .start()
            .await?;
        let api = controller.api()?;
        let fleet = Fleet::start(&FleetSetup {
            controller: controller.beats(),
            secret: world.secret().clone(),
            hosts: HOSTS,
            interval: Duration::from_millis(500),
            seed: 1,
        })?;
        eventually(PATIENCE, "all are alive and their joining delivered", || async {
            let alive = number(&api.get("/v1/status").await?, "/hosts/alive");
            let told = receiver.calls().len();
            ensure!(alive == HOSTS as u64 && told >= HOSTS, "{alive} alive, {told} told");
            Ok(Some(()))
        })
        .await?;
        let (ready, body) = api.get_text("/readyz").await?;
        ensure!(ready == 200, "expected /readyz 200 before, seen {ready}: {body}");
        let (acknowledged, _) = api.events("").await?;

        let ballast = controller.visible_state_dir().join("ballast");
        fill(&ballast)?;
        fleet.kill(VICTIM);
        let victim = fleet.ids()[VICTIM];
        eventually(PATIENCE, "/readyz answers 503 and names the store", || async {
            let (status, body) = api.get_text("/readyz").await?;
            ensure!(status == 503 && body.contains("store"), "{status}: {body}");
            Ok(Some(()))
        })
        .await?;
        eventually(PATIENCE, "the metrics say so", || async {
            let writable = api.metric("heartwatch_store_writable", &[]).await?;
            let doubt = api.metric("heartwatch_doubt", &["reason=\"store\""]).await?;
            ensure!(writable == 0.0 && doubt == 1.0, "store_writable {writable}, doubt {doubt}");
            Ok(Some(()))
        })
        .await?;
        let beats = api.metric("heartwatch_beats_received_total", &[]).await?;
        eventually(PATIENCE, "beats go on", || async {
            let seen = api.metric("heartwatch_beats_received_total", &[]).await?;
            ensure!(seen > beats + 2.0 * HOSTS as f64, "{beats}, then {seen}");
            Ok(Some(()))
        })
        .await?;
        let alive = number(&api.get("/v1/status").await?, "/hosts/alive");
        ensure!(alive >= HOSTS as u64 - 1, "expected the others to be alive, seen {alive}");
        let told = receiver.calls().iter().any(|c| c.kind() == "host.down");
        ensure!(!told, "expected that nothing is sent that is not journaled");

        std::fs::remove_file(&ballast)?;
        eventually(PATIENCE, "/readyz answers 200 again", || async {
            let (status, body) = api.get_text("/readyz").await?;
            ensure!(status == 200, "{status}: {body}");
            Ok(Some(()))
        })
        .await?;
        receiver.wait(&victim.to_string(), "host.down", PATIENCE).await?;
        api.wait_state(victim, "down").await?;
        let (events, _) = api.events("").await?;
        ensure!(
            events.starts_with(&acknowledged),
            "expected everything that was journaled before to be there still"
        );
        Ok(())
    })
    .await;
}
