//! Bad datagrams: counted by reason, never a state change; what does not authenticate is never answered.
//! And what looks bad but is honest (a lost state file, a restored machine) is never locked out.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use heartwatch_common::id::{Boot, Epoch};
use heartwatch_tests::world::{PATIENCE, Said, Station, World, eventually, number, story};

/// Sends bytes from a socket of its own; an answer to them is an error.
fn expect_no_answer(bytes: &[u8], to: std::net::SocketAddr, what: &str) -> Result<()> {
    let stranger = UdpSocket::bind("127.0.0.1:0")?;
    stranger.send_to(bytes, to)?;
    stranger.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut buffer = [0; 2048];
    match stranger.recv_from(&mut buffer) {
        Ok((len, _)) => bail!("{what}: expected no answer, seen {len} bytes"),
        Err(_) => Ok(()),
    }
}

fn resealed(station: &Station, mut bytes: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut bytes);
    station.seal(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_datagrams_are_counted_by_reason_and_change_nothing() {
    story(async |world: &World| {
        // So patient that only what a bad datagram did could change the state.
        let controller = world.controller().detector("timeout_min", "\"20s\"").start().await?;
        let api = controller.api()?;
        let to = controller.beats();
        let mut host = Station::new(world, "victim", to)?;
        host.boot = Boot(5);
        host.join()?;
        api.wait_state(host.host, "alive").await?;
        let before = api.metrics().await?;

        // What cannot be believed: no answer to any of it.
        let sound = host.beat(1);
        let mut wrong_tag = sound.clone();
        wrong_tag[79] ^= 1;
        let mut unknown_key = sound.clone();
        unknown_key[3] = 200;
        let long = [sound.clone(), vec![0; 40]].concat();
        let unauthenticated = [
            ("too_short", sound[..40].to_vec(), "truncated"),
            ("too_short", Vec::new(), "empty"),
            ("too_long", long, "longer than its kind"),
            ("too_long", vec![1; 1_400], "longer than any datagram"),
            ("other_version", resealed(&host, sound.clone(), |b| b[0] = 1), "the version before"),
            ("other_version", resealed(&host, sound.clone(), |b| b[0] = 9), "a version to come"),
            ("version", vec![1; 80], "noise that looks like another version"),
            ("kind", resealed(&host, sound.clone(), |b| b[1] = 99), "an unknown kind"),
            (
                "kind",
                resealed(&host, sound.clone(), |b| b[1] = 3),
                "an ack, which agents never send",
            ),
            ("malformed", resealed(&host, sound.clone(), |b| b[40..44].fill(0)), "a gap of zero"),
            ("unauthentic", wrong_tag, "a wrong tag"),
            ("unauthentic", unknown_key, "an unknown key id"),
            ("unauthentic", [vec![2, 1], vec![1; 78]].concat(), "noise of the right size"),
        ];
        for (_, bytes, what) in &unauthenticated {
            expect_no_answer(bytes, to, what)?;
            host.pump(Duration::from_millis(50))?;
        }

        // What is authentic but proves nothing.
        let replayed = host.beat(0);
        let (first, second) = (host.beat(0), host.beat(0));
        for bytes in [&replayed, &replayed, &second, &first, &second] {
            host.send(bytes)?;
            host.pump(Duration::from_millis(50))?;
        }
        let (boot, seq, epoch) = (host.boot, host.seq, host.epoch);
        host.boot = Boot(4);
        let earlier = host.beat(0);
        host.boot = boot;
        host.epoch = Epoch(epoch.0.wrapping_add(1).max(1));
        let foreign = host.beat(0);
        host.epoch = epoch;
        host.seq = seq + 10;
        for bytes in [&earlier, &foreign] {
            host.send(bytes)?;
            host.pump(Duration::from_millis(50))?;
        }
        let mut nobody = Station::new(world, "never-said-hello", to)?;
        nobody.epoch = epoch;
        let beat = nobody.beat(0);
        nobody.send(&beat)?;
        host.pump(Duration::from_millis(600))?;

        let mut reasons: Vec<&str> = unauthenticated.iter().map(|u| u.0).collect();
        reasons.extend(["not_rising", "earlier_boot", "wrong_epoch", "unknown_host"]);
        reasons.sort_unstable();
        eventually(PATIENCE, "every bad datagram is counted under its reason", || async {
            for reason in &reasons {
                let label = format!("reason=\"{reason}\"");
                let seen = api.metric("heartwatch_datagrams_rejected_total", &[&label]).await?;
                let was = sum_of(&before, &label);
                let sent = reasons.iter().filter(|r| *r == reason).count() as f64;
                ensure!(seen - was >= sent, "{reason}: {sent} sent, {was} then {seen} counted");
            }
            Ok(Some(()))
        })
        .await?;
        let state = api.state(host.host).await?;
        ensure!(state == "alive", "expected no change of state, seen {state}");
        let kinds = api.kinds_of(host.host).await?;
        ensure!(kinds == ["host.joined"], "expected no event but its joining, seen {kinds:?}");
        let hosts = api.hosts().await?.len();
        ensure!(hosts == 1, "expected no other host to be registered, seen {hosts}");
        Ok(())
    })
    .await;
}

fn sum_of(metrics: &str, label: &str) -> f64 {
    metrics
        .lines()
        .filter(|l| l.starts_with("heartwatch_datagrams_rejected_total") && l.contains(label))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_larger_than_what_caused_it() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let mut host = Station::new(world, "measured", controller.beats())?;
        host.join()?;
        // `hear` decodes: an ack or a probe is exactly as long as the shortest datagram from a host.
        let said = host.pump(Duration::from_secs(2))?;
        ensure!(said.iter().any(|s| matches!(s, Said::Ack(..))), "expected acks, seen {said:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_number_that_fell_is_rebased_by_a_probe_and_not_locked_out() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut host = Station::new(world, "fell", controller.beats())?;
        host.boot = Boot(1_000);
        host.join()?;
        // As after a lost state file on a machine whose clock stepped back: a low boot, nothing known.
        host.boot = Boot(3);
        host.seq = 0;
        host.epoch = Epoch(0);
        rebased(&mut host, &api, 3).await
    })
    .await;
}

/// Pumps until the controller takes the host's present boot and numbers for true.
async fn rebased(host: &mut Station, api: &heartwatch_tests::world::Api, boot: u64) -> Result<()> {
    let path = format!("/v1/hosts/{}", host.host);
    let deadline = heartwatch_tests::world::now() + PATIENCE;
    let mut probed = false;
    loop {
        let said = host.pump(Duration::from_millis(500))?;
        probed |= said.iter().any(|s| matches!(s, Said::Probe(_)));
        let seen = api.get(&path).await?;
        let is_heard = number(&seen, "/silence_ms") < 2_000 && seen["state"] == "alive";
        let why = api.get(&format!("{path}/why")).await?;
        let seq = number(&why, "/detector/seq");
        if number(&seen, "/boot") == boot && is_heard && seq.abs_diff(u64::from(host.seq)) < 20 {
            ensure!(probed, "expected that a nonce probe settled it, but none came");
            return Ok(());
        }
        ensure!(
            heartwatch_tests::world::now() < deadline,
            "expected boot {boot} alive with numbers near {}, seen {seen:#} and seq {seq}",
            host.seq
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_restored_from_a_snapshot_is_rebased_by_a_probe_and_not_locked_out() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut host = Station::new(world, "restored", controller.beats())?;
        host.join()?;
        host.seq = 5_000;
        host.pump(Duration::from_secs(1))?;
        // The snapshot: same boot, same epoch, but far older numbers.
        host.seq = 50;
        rebased(&mut host, &api, 1).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_lost_its_state_file_is_heard_again() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut agent = world.agent("forgetful").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        let path = format!("/v1/hosts/{}", agent.host());
        agent.kill()?;
        std::fs::remove_dir_all(agent.state_dir())?;
        std::fs::create_dir(agent.state_dir())?;
        agent.start()?;
        // Its boot number may even be the one that it had before: no file says otherwise.
        eventually(PATIENCE, "it is alive, heard, and its agent knows", || async {
            let seen = api.get(&path).await?;
            let is_heard = seen["state"] == "alive" && number(&seen, "/silence_ms") < 1_500;
            ensure!(is_heard, "{seen:#}");
            let status = agent.status()?;
            let acked = status.pointer("/controllers/0/hello_acked");
            ensure!(acked == Some(&serde_json::Value::Bool(true)), "{status:#}");
            let why = api.get(&format!("{path}/why")).await?;
            let sent = number(&status, "/controllers/0/seq");
            let taken = number(&why, "/detector/seq");
            ensure!(taken.abs_diff(sent) < 20, "the agent is at {sent}, the controller at {taken}");
            Ok(Some(()))
        })
        .await
    })
    .await;
}

/// Hosts whose agents were of another wire format stayed `pending`, and nobody was told why.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_the_wire_format_before_is_named_with_what_to_do() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let mut old = Station::new(world, "old-agent", controller.beats())?;
        let file = world.write("hosts.csv", &format!("id,name\n{},old-agent\n", old.host))?;
        controller.ctl(&["import", &file.to_string_lossy()])?.ok()?;
        // What version 1 sent differs in the first byte alone.
        let (hello, beat) = (old.hello()?, old.beat(1));
        let sent = [hello, beat].map(|bytes| resealed(&old, bytes, |b| b[0] = 1));
        eventually(PATIENCE, "status, why and the log name its format", || async {
            for bytes in &sent {
                old.send(bytes)?;
            }
            let status = controller.ctl(&["status"])?.ok()?;
            let named = status.contains("wire format 1") && status.contains(&old.host.to_string());
            ensure!(named && status.contains("Upgrade their agents"), "{status}");
            let why = controller.ctl(&["why", "old-agent"])?.ok()?;
            ensure!(why.contains("is pending since"), "{why}");
            ensure!(
                why.contains("Datagrams of wire format 1 come of it, sealed with its key"),
                "{why}"
            );
            let log = controller.log();
            let line = "wire: 1 host(s) send datagrams of wire format 1";
            ensure!(log.matches(line).count() == 1, "{log}");
            Ok(Some(()))
        })
        .await?;
        // It is upgraded: once it is heard nothing more is told.
        old.join()?;
        eventually(PATIENCE, "nobody of another format any more", || async {
            let status = controller.ctl(&["status"])?.ok()?;
            ensure!(!status.contains("wire format"), "{status}");
            Ok(Some(()))
        })
        .await
    })
    .await;
}
