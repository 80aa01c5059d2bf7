//! Sockets that outlive the controller: the harness plays the service manager. While no controller is there
//! beats wait in the kernel; the next one reads them all, and nobody is suspected.
//!
//! What "loses no beat" means: the kernel drops none at the controller's sockets, no sender is refused, and
//! the next controller reads every one that was sent while none was there. Those echo the epoch of the life
//! before, so they prove nothing by themselves (a recording would look the same); each host's first one is
//! answered by the new epoch at once, and its next beat proves that it lives.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heartwatch_tests::fleet::{Mass, MassSetup, count};
use heartwatch_tests::world::{
    Api, Controller, Manager, PATIENCE, World, eventually, number, story, text,
};

/// How long no controller is there: every host sends a beat or two.
const AWAY: Duration = Duration::from_millis(1_500);
/// Memory that a waiting beat takes in the kernel, at most, bytes.
const BEAT_MEMORY: u64 = 1_280;

/// Datagrams that the kernel dropped at sockets of this port since they were made, and bytes that wait.
fn kernel(port: u16) -> Result<(u64, u64)> {
    let table = std::fs::read_to_string("/proc/net/udp").context("cannot read the sockets")?;
    let (mut dropped, mut waiting) = (0, 0);
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, _, queues, ..] = words[..] else { continue };
        if !local.ends_with(&format!(":{port:04X}")) {
            continue;
        }
        let received = queues.split(':').nth(1).unwrap_or("0");
        waiting += u64::from_str_radix(received, 16).context("a length")?;
        dropped += words.last().and_then(|w| w.parse::<u64>().ok()).context("a count")?;
    }
    Ok((dropped, waiting))
}

async fn all_alive(api: &Api, hosts: usize) -> Result<()> {
    eventually(PATIENCE, &format!("{hosts} hosts are alive"), || async {
        let status = api.get("/v1/status").await?;
        ensure!(number(&status, "/hosts/alive") == hosts as u64, "{}", status["hosts"]);
        Ok(Some(()))
    })
    .await
}

async fn suspicions(api: &Api) -> Result<usize> {
    let (events, _) = api.events("").await?;
    let wrong = ["host.suspect", "host.down", "host.agent-lost", "host.unreachable"];
    Ok(events.iter().filter(|e| wrong.contains(&text(e, "/type"))).count())
}

/// All that a mass has sent.
fn sent(mass: &Mass) -> u64 {
    let c = mass.counts();
    count(&c.beats) + count(&c.hellos) + count(&c.probes_answered)
}

/// How many hosts the receive buffers that the kernel grants here can hold for.
async fn hosts_that_fit(api: &Api) -> Result<usize> {
    let status = api.get("/v1/status").await?;
    let granted = number(&status, "/shards/0/receive_buffer_bytes");
    let fit = granted / BEAT_MEMORY / 3;
    Ok(usize::try_from(fit).unwrap_or(usize::MAX).min(10_000))
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_and_crashes_lose_no_beat_of_10_000_hosts_and_suspect_nobody() {
    story(async |world: &World| {
        let manager = Arc::new(Manager::start(world)?);
        let setup = world.controller().managed(&manager).detector("restart_grace", "\"3s\"");
        // The hosts' own process may stand still for some 30 ms, which is nothing that the controller did.
        let setup = setup.detector("timeout_min", "\"300ms\"");
        let mut controller = setup.top("gro = true").start().await?;
        // Its ports are those that it drew from now on, so that the sockets fit the settings.
        controller.pin_ports()?;
        controller.pin_api()?;
        let (beats, names) = (controller.beats(), manager.names());
        ensure!(names.len() == 3, "two sockets for beats and one for the API: {names:?}");
        let hosts = hosts_that_fit(&controller.api()?).await?;
        let mass = Mass::start(&MassSetup {
            shards: 2,
            join: Duration::from_secs(4),
            ..MassSetup::new(beats, world.secret().clone(), hosts)
        })?;
        all_alive(&controller.api()?, hosts).await?;
        // Past the cold start.
        tokio::time::sleep(Duration::from_secs(3)).await;

        let mut waited_in_all = 0;
        for (round, crash) in [false, true, false, true].into_iter().enumerate() {
            match crash {
                true => controller.kill()?,
                false => drop(controller.stop().await?),
            }
            let before = sent(&mass);
            tokio::time::sleep(AWAY).await;
            let (dropped, waiting) = kernel(beats.port())?;
            ensure!(waiting > 0, "nothing waits for the controller");
            let meanwhile = sent(&mass) - before;
            controller.start().await?;
            ensure!(manager.names() == names, "kept: {:?}", manager.names());
            let api = controller.api()?;
            // Each host has shown the new epoch: it was heard, answered, and has beaten again.
            let all_read = eventually(PATIENCE, "all that was sent is read", || async {
                let sent = sent(&mass) - before;
                let read = api.metric("heartwatch_datagrams_received_total", &[]).await?;
                ensure!(read >= sent as f64, "{read} of {sent}");
                Ok(Some((sent, read)))
            });
            let (sent_since, read) = all_read.await?;
            eventually(PATIENCE, "every host proves that it lives", || async {
                let shown = count(&mass.counts().shown);
                ensure!(shown == hosts as u64, "{shown} of {hosts}");
                Ok(Some(()))
            })
            .await?;
            let astray =
                api.metric("heartwatch_datagrams_rejected_total", &["other_shard"]).await?;
            ensure!(astray == 0.0, "{astray} beats came to a shard that they do not belong to");
            all_alive(&api, hosts).await?;
            // Longer than the grace after a start, so that whoever was not heard would be suspected.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let suspects = api.metric("heartwatch_suspects_total", &[]).await?;
            let (dropped_after, _) = kernel(beats.port())?;
            println!(
                "{} {}: {meanwhile} datagrams of {hosts} hosts sent while none was there ({waiting} \
                 bytes waited); {sent_since} sent since the end of the life before, {read} read; \
                 {dropped} then {dropped_after} dropped by the kernel, {suspects} suspects",
                if crash { "SIGKILL" } else { "SIGTERM" },
                round + 1,
            );
            ensure!(dropped_after == 0, "the kernel dropped {dropped_after} datagrams");
            ensure!(suspects == 0.0, "{suspects} hosts were suspected");
            waited_in_all += meanwhile;
        }
        let refused = count(&mass.counts().send_errors);
        ensure!(refused == 0, "{refused} datagrams were refused on their way");
        let wrong = suspicions(&controller.api()?).await?;
        ensure!(wrong == 0, "{wrong} suspicions are journaled");
        println!(
            "4 restarts under {hosts} hosts: {} datagrams sent in all, {waited_in_all} of them while no \
             controller was there; dropped by the kernel 0, refused 0, suspects 0",
            sent(&mass)
        );
        Ok(())
    })
    .await;
}

/// The controller goes on under other settings; answers what it said since.
async fn restarted_with(
    controller: &mut Controller,
    change: impl Fn(&str) -> String,
) -> Result<String> {
    controller.stop().await?;
    let said = controller.log().len();
    let config = std::fs::read_to_string(controller.config())?;
    std::fs::write(controller.config(), change(&config))?;
    controller.start().await?;
    Ok(controller.log()[said..].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_no_longer_fit_the_settings_are_given_up_with_a_clear_word() {
    story(async |world: &World| {
        const HOSTS: usize = 200;
        let manager = Arc::new(Manager::start(world)?);
        let mut controller = world.controller().managed(&manager).start().await?;
        controller.pin_ports()?;
        controller.pin_api()?;
        let beats = controller.beats();
        let mass = Mass::start(&MassSetup {
            segments: 1,
            ..MassSetup::new(beats, world.secret().clone(), HOSTS)
        })?;
        all_alive(&controller.api()?, HOSTS).await?;

        // More shards, then fewer: the first go on, and all are steered right.
        for shards in [4, 1, 2] {
            let said = restarted_with(&mut controller, |config| {
                let line = config.lines().find(|l| l.starts_with("shards = ")).unwrap_or_default();
                config.replace(line, &format!("shards = {shards}"))
            })
            .await?;
            ensure!(said.contains("go on from the life before"), "{said}");
            let of_beats = manager.names().iter().filter(|n| n.starts_with("beats-")).count();
            ensure!(of_beats == shards, "{shards} shards: {:?}", manager.names());
            let api = controller.api()?;
            all_alive(&api, HOSTS).await?;
            let before = api.metric("heartwatch_beats_received_total", &[]).await?;
            eventually(PATIENCE, "beats are taken", || async {
                let beats = api.metric("heartwatch_beats_received_total", &[]).await?;
                Ok((beats > before + 2.0 * HOSTS as f64).then_some(()))
            })
            .await?;
            let astray =
                api.metric("heartwatch_datagrams_rejected_total", &["other_shard"]).await?;
            // What waited was steered for as many shards as there were before; it is handed over.
            ensure!(astray <= HOSTS as f64, "{shards} shards: {astray} astray");
        }

        let wrong = suspicions(&controller.api()?).await?;
        ensure!(wrong == 0, "{wrong} suspicions while all was well");

        // What is no socket for beats is refused by name, and so is what comes to another address.
        manager.put("beats-7-odd", UdpSocket::bind("127.0.0.1:0")?.into());
        manager.put("left by somebody", std::fs::File::open("/dev/null")?.into());
        let other: SocketAddr = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let said = restarted_with(&mut controller, |config| {
            config.replace(&format!("listen = [\"{beats}\"]"), &format!("listen = [\"{other}\"]"))
        })
        .await?;
        for words in [
            "beats-7-odd was kept by the service manager and is closed: it is no socket that beats",
            "left by somebody was kept by the service manager and is closed: it is no socket of the",
            "is closed: the settings name this address no more",
        ] {
            ensure!(said.contains(words), "expected `{words}` in:\n{said}");
        }
        ensure!(controller.beats() == other, "it listens at {}", controller.beats());
        let names = manager.names();
        let there = |n: &&String| n.ends_with(&format!("_{}", other.port()));
        ensure!(names.len() == 3 && names.iter().filter(there).count() == 2, "{names:?}");
        drop(mass);
        // Nobody holds the old port any more.
        UdpSocket::bind(beats).context("the old port is still held")?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_the_api_during_a_restart_waits_and_is_answered() {
    story(async |world: &World| {
        let manager = Arc::new(Manager::start(world)?);
        let mut controller = world.controller().managed(&manager).start().await?;
        controller.pin_ports()?;
        controller.pin_api()?;
        controller.kill()?;
        let address = controller.url().trim_start_matches("http://").to_owned();
        let early = TcpStream::connect(&address).context("nobody takes connections meanwhile")?;
        let api = controller.api()?;
        let asked = tokio::spawn(async move { api.get("/v1/status").await });
        controller.start().await?;
        let status = asked.await.context("the question was given up")??;
        ensure!(number(&status, "/hosts/alive") == 0, "{status}");
        drop(early);
        Ok(())
    })
    .await;
}
