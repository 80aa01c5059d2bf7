//! The controller itself fails: stopped, restarted, killed over and over. It may be late; it may not be
//! wrong, and it may not forget.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heartwatch_common::id::Boot;
use heartwatch_common::time::Clock;
use heartwatch_tests::fleet::{Fleet, FleetSetup};
use heartwatch_tests::world::{
    Answer, Api, Call, PATIENCE, Plan, Receiver, Station, World, eventually, now, number, story,
    text, throughout, webhook_secret,
};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

const ALL: [&str; 7] = [
    "host.joined",
    "host.suspect",
    "host.down",
    "host.agent-lost",
    "host.recovered",
    "host.restarted",
    "host.left",
];

fn fleet(
    world: &World,
    controller: &heartwatch_tests::world::Controller,
    hosts: usize,
    interval: Duration,
) -> Result<Fleet> {
    Fleet::start(&FleetSetup {
        controller: controller.beats(),
        secret: world.secret().clone(),
        hosts,
        interval,
        seed: 20_261_122,
    })
}

async fn all_alive(api: &Api, count: usize) -> Result<()> {
    eventually(PATIENCE, &format!("{count} hosts are alive"), || async {
        let status = api.get("/v1/status").await?;
        let alive = number(&status, "/hosts/alive");
        ensure!(alive == count as u64, "{} are: {}", alive, status["hosts"]);
        Ok(Some(()))
    })
    .await
}

/// Hosts by how often an event of one of `kinds` happened to them.
async fn happened(api: &Api, kinds: &[&str]) -> Result<BTreeMap<String, u64>> {
    let (events, _) = api.events("").await?;
    let mut hosts = BTreeMap::new();
    for event in events.iter().filter(|e| kinds.contains(&text(e, "/type"))) {
        *hosts.entry(text(event, "/host").to_owned()).or_insert(0) += 1;
    }
    Ok(hosts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_stood_still_for_20_s_suspects_nobody_that_was_beating() {
    story(async |world: &World| {
        const HOSTS: usize = 200;
        const VICTIM: usize = 17;
        let mut controller = world.controller().start().await?;
        let api = controller.api()?;
        let fleet = fleet(world, &controller, HOSTS, Duration::from_secs(1))?;
        all_alive(&api, HOSTS).await?;
        // Some beats, so that the detector is past its cold start.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let before = happened(&api, &["host.suspect", "host.down", "host.agent-lost"]).await?;

        controller.freeze()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        fleet.kill(VICTIM);
        tokio::time::sleep(Duration::from_secs(15)).await;
        controller.thaw()?;

        let victim = fleet.ids()[VICTIM];
        api.wait_state(victim, "down").await?;
        throughout(Duration::from_secs(5), || async {
            let mut after =
                happened(&api, &["host.suspect", "host.down", "host.agent-lost"]).await?;
            after.remove(&victim.to_string());
            ensure!(
                after == before,
                "expected nobody else to be suspected or down, seen {after:?} (before: {before:?})"
            );
            Ok(())
        })
        .await?;
        all_alive(&api, HOSTS - 1).await?;
        println!("stopped for 20 s under {HOSTS} hosts: 0 suspected, 0 down, but the one killed");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_forgets_no_host_calls_no_live_one_down_and_finds_those_that_died_meanwhile() {
    story(async |world: &World| {
        const HOSTS: usize = 60;
        const DEAD: [usize; 3] = [3, 20, 41];
        let mut controller = world.controller().detector("restart_grace", "\"4s\"").start().await?;
        controller.pin_ports()?;
        let api = controller.api()?;
        let fleet = fleet(world, &controller, HOSTS, Duration::from_millis(500))?;
        all_alive(&api, HOSTS).await?;
        let names: BTreeSet<String> =
            api.hosts().await?.iter().map(|h| text(h, "/name").to_owned()).collect();
        controller.kill()?;
        DEAD.iter().for_each(|n| fleet.kill(*n));
        controller.start().await?;
        let api = controller.api()?;
        let kept: BTreeSet<String> =
            api.hosts().await?.iter().map(|h| text(h, "/name").to_owned()).collect();
        ensure!(
            kept == names,
            "expected every host to be kept, lost {:?}",
            names.difference(&kept)
        );
        for n in DEAD {
            let id = fleet.ids()[n];
            api.wait_state(id, "down").await?;
            let why = controller.ctl(&["why", &id.to_string()])?.ok()?;
            let since = "reason: not heard since this controller began to listen";
            ensure!(why.contains(since) && !why.contains("silent for 0.00 s"), "{why}");
        }
        all_alive(&api, HOSTS - DEAD.len()).await?;
        let mut down = happened(&api, &["host.down", "host.agent-lost"]).await?;
        for n in DEAD {
            down.remove(&fleet.ids()[n].to_string());
        }
        ensure!(down.is_empty(), "expected no live host to be called down, seen {down:?}");
        // And by an orderly stop.
        controller.stop().await?;
        controller.start().await?;
        let api = controller.api()?;
        all_alive(&api, HOSTS - DEAD.len()).await?;
        for n in DEAD {
            let state = api.state(fleet.ids()[n]).await?;
            ensure!(state == "down", "expected the dead to stay down, seen {state}");
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn goodbyes_that_reached_the_controller_before_its_stop_are_not_forgotten() {
    story(async |world: &World| {
        const HOSTS: usize = 200;
        let mut controller = world.controller().detector("restart_grace", "\"2s\"").start().await?;
        controller.pin_ports()?;
        let fleet = fleet(world, &controller, HOSTS, Duration::from_millis(500))?;
        all_alive(&controller.api()?, HOSTS).await?;
        // A rack is switched off while the controller is about to be upgraded: the goodbyes lie in its
        // sockets when it is told to stop.
        controller.freeze()?;
        (0..HOSTS).for_each(|n| fleet.leave(n));
        // Ends once all commands before are done.
        drop(fleet);
        controller.process()?.signal(Signal::SIGTERM)?;
        controller.thaw()?;
        let status = controller.process()?.wait(PATIENCE).await?;
        ensure!(status.success(), "expected exit 0 after SIGTERM, seen {status}");
        controller.start().await?;
        let status = controller.api()?.get("/v1/status").await?;
        let left = number(&status, "/hosts/left");
        ensure!(left == HOSTS as u64, "{left} goodbyes were kept: {}", status["hosts"]);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_by_a_newer_one_stays_revoked_after_a_restart() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        controller.pin_ports()?;
        let api = controller.api()?;
        let mut host = Station::new(world, "rekeyed", controller.beats())?;
        host.join()?;
        // As after `heartwatchctl key HOST --generation 2` and a restart of the agent.
        host.rekey(world, 2);
        (host.boot, host.seq) = (Boot(2), 0);
        host.join()?;
        api.wait_event(host.host, "host.restarted", PATIENCE).await?;
        controller.stop().await?;
        controller.start().await?;
        let api = controller.api()?;
        host.rekey(world, 0);
        let hello = host.hello()?;
        host.send(&hello)?;
        let said = host.pump(Duration::from_secs(1))?;
        ensure!(said.is_empty(), "the old key was answered: {said:?}");
        let refused =
            api.metric("heartwatch_datagrams_rejected_total", &["reason=\"revoked\""]).await?;
        ensure!(refused >= 2.0, "expected the old key to be refused, {refused} were");
        host.rekey(world, 2);
        host.join()
    })
    .await;
}

/// What 50 kills must leave behind.
struct Tally<'a> {
    events: &'a [Value],
    deliveries: &'a [Value],
    calls: &'a [Call],
}

impl Tally<'_> {
    /// Every event that the rule names has exactly one delivery, and that has ended well.
    fn check_nothing_is_lost(&self) -> Result<BTreeMap<String, u64>> {
        let mut by_event: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for delivery in self.deliveries {
            by_event.entry(text(delivery, "/event")).or_default().push(delivery);
        }
        let mut ends = BTreeMap::new();
        for event in self.events.iter().filter(|e| ALL.contains(&text(e, "/type"))) {
            let id = text(event, "/id");
            let told = by_event.get(id).map_or(0, Vec::len);
            // The end of an incident is told only to those who may have heard of its beginning.
            let is_end = text(event, "/type") == "host.recovered";
            ensure!(told == 1 || (told == 0 && is_end), "{told} deliveries of the event {event:#}");
            for delivery in by_event.get(id).into_iter().flatten() {
                let state = text(delivery, "/state");
                ensure!(
                    ["delivered", "cancelled", "superseded"].contains(&state),
                    "expected a delivery that has ended well, seen {delivery:#}"
                );
                *ends.entry(state.to_owned()).or_insert(0) += 1;
            }
        }
        Ok(ends)
    }

    /// What the journal calls delivered did arrive.
    fn check_delivered_arrived(&self) -> Result<()> {
        let arrived: BTreeSet<&str> =
            self.calls.iter().filter(|c| c.was_accepted()).map(|c| c.id.as_str()).collect();
        for delivery in self.deliveries.iter().filter(|d| text(d, "/state") == "delivered") {
            let id = text(delivery, "/event");
            ensure!(arrived.contains(id), "booked as delivered, but never accepted: {delivery:#}");
        }
        Ok(())
    }

    /// Tokens rise from event to event of a host, and never fall from call to call.
    fn check_order(&self) -> Result<()> {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for event in self.events.iter().filter(|e| !text(e, "/host").is_empty()) {
            let token = number(event, "/token");
            let before = last.insert(text(event, "/host"), token).unwrap_or(0);
            ensure!(token > before, "token {token} after {before} in the journal: {event:#}");
        }
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for call in self.calls {
            let before = last.insert(call.host(), call.token()).unwrap_or(0);
            ensure!(call.token() >= before, "token {} after {before}: {call:?}", call.token());
        }
        Ok(())
    }

    /// Repeats carry the same idempotency key and the same bytes; answers how many there were.
    fn check_repeats(&self) -> Result<usize> {
        let mut by_id: BTreeMap<&str, &Call> = BTreeMap::new();
        let mut by_token: BTreeMap<(&str, u64), &str> = BTreeMap::new();
        let mut repeats = 0;
        for call in self.calls {
            ensure!(call.verified.is_ok(), "wrongly signed: {call:?}");
            if let Some(first) = by_id.insert(&call.id, call) {
                repeats += 1;
                ensure!(first.raw == call.raw, "{} was sent in two versions", call.id);
            }
            if let Some(id) = by_token.insert((call.host(), call.token()), &call.id) {
                ensure!(
                    id == call.id,
                    "token {} names two events: {id}, {}",
                    call.token(),
                    call.id
                );
            }
        }
        Ok(repeats)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_of_the_controller_lose_no_event_and_no_order() {
    story(async |world: &World| {
        const HOSTS: usize = 60;
        const KILLS: u32 = 50;
        const SEED: u64 = 5_050;
        let secret = webhook_secret(9);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        receiver.plan(Plan::share(50, Answer::Status(503), SEED));
        let mut controller = world
            .controller()
            .detector("restart_grace", "\"1s\"")
            // Waits so long that some news is overtaken by newer ones before it gets through.
            .receiver_with("r", &receiver.url(), &file, "retry_base = \"2s\"\nretry_cap = \"4s\"")
            .rule("all", &ALL, &["r"])
            // Hosts that crash three times would be damped for longer than this test waits, and a zone
            // of which a third is dead is a storm, whose orders wait for a minute at least.
            .top("flaps.suppress = 0\ndomains.storm_hosts = 0")
            .start()
            .await?;
        controller.pin_ports()?;
        let fleet = fleet(world, &controller, HOSTS, Duration::from_millis(250))?;
        all_alive(&controller.api()?, HOSTS).await?;

        let mut rng = StdRng::seed_from_u64(SEED);
        let mut dead = BTreeSet::new();
        let (mut crashes, mut returns) = (0, 0);
        let started = now();
        for round in 0..KILLS {
            for _ in 0..2 {
                let host = rng.random_range(0..HOSTS);
                if dead.remove(&host) {
                    fleet.revive(host);
                    returns += 1;
                } else if dead.len() < HOSTS / 3 {
                    fleet.kill(host);
                    dead.insert(host);
                    crashes += 1;
                }
            }
            // From "just ready" to "has found the dead and is telling of them".
            let life = Duration::from_millis(rng.random_range(20..3_000));
            tokio::time::sleep(life).await;
            controller.kill()?;
            controller
                .start()
                .await
                .with_context(|| format!("after kill {} of seed {SEED}", round + 1))?;
        }
        let took = heartwatch_common::time::SystemClock.now().since(started);

        let api = controller.api()?;
        for host in &dead {
            api.wait_state(fleet.ids()[*host], "down").await?;
        }
        all_alive(&api, HOSTS - dead.len()).await?;
        let deliveries = eventually(PATIENCE, "every delivery has ended", || async {
            let deliveries = api.deliveries().await?;
            // Those that were held while others fell silent are judged again a moment later.
            let open = |d: &&Value| matches!(text(d, "/state"), "pending" | "held");
            let open = deliveries.iter().filter(open).count();
            if open > 0 {
                let holds = api.get("/v1/holds?limit=3").await?;
                bail!("{open} are still on their way; held: {holds}");
            }
            Ok(Some(deliveries))
        })
        .await?;
        let (events, _) = api.events("").await?;
        let calls = receiver.calls();
        let tally = Tally { events: &events, deliveries: &deliveries, calls: &calls };
        let ends = tally.check_nothing_is_lost()?;
        tally.check_delivered_arrived()?;
        tally.check_order()?;
        let repeats = tally.check_repeats()?;
        let kind = |k: &str| events.iter().filter(|e| text(e, "/type") == k).count();
        let down = kind("host.down") + kind("host.agent-lost");
        ensure!(down >= dead.len(), "expected at least {} downs, seen {down}", dead.len());
        println!(
            "{KILLS} kills in {:.0} s: {crashes} hosts crashed, {returns} came back; {} events \
             ({down} down); deliveries {ends:?}, none lost; {} calls of which {} were refused, \
             {repeats} repeats under the same key; order and tokens right",
            took.as_secs_f64(),
            events.len(),
            calls.len(),
            calls.iter().filter(|c| !c.was_accepted()).count(),
        );
        Ok(())
    })
    .await;
}
