//! The second act: a rack of eight goes dark. One event tells of it, its failovers wait, four hosts come
//! back and theirs are cancelled, and what somebody approves goes to four different hosts.
//!
//! "Dark" is SIGSTOP: the process is there, but nothing of it moves, and the kernel says nothing in its
//! place. A killed agent would make the kernel answer that nobody listens, and that is no silence.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heartwatch_common::id::HostId;
use heartwatch_tests::world::{Agent, Call, Controller, Receiver, World, eventually, now, text};
use serde_json::Value;

use super::{Demo, STEP_MAX, candidates, has_load, indent};

/// The rack that goes dark.
const RACK: &str = "zone=c,rack=r9";
/// How many hosts it has.
const DARK: usize = 8;
/// How many of them come back.
const BACK: usize = 4;
/// Who could take over: four racks of two, half of them in the dark rack's zone.
const STANDBY: [[&str; 3]; 8] = [
    ["app-1", "a", "r4"],
    ["app-2", "a", "r4"],
    ["app-3", "b", "r5"],
    ["app-4", "b", "r5"],
    ["app-5", "c", "r6"],
    ["app-6", "c", "r6"],
    ["app-7", "c", "r7"],
    ["app-8", "c", "r7"],
];

/// The hosts of the second act.
pub(super) struct Cast {
    dark: Vec<Agent>,
    standby: Vec<Agent>,
}

/// What the summary tells of it.
pub(super) struct Outcome {
    /// From the first SIGSTOP to the one event.
    pub(super) told_after: Duration,
    /// From the approval to the last of the webhooks.
    pub(super) delivered_after: Duration,
    /// Who was named first, each for another host.
    pub(super) places: Vec<String>,
}

impl Cast {
    /// Stops all that run.
    pub(super) async fn end(mut self) -> Result<()> {
        for agent in &mut self.dark {
            agent.kill()?;
        }
        for agent in &mut self.standby {
            agent.process()?.stop(STEP_MAX).await?;
        }
        Ok(())
    }
}

impl Demo<'_> {
    /// The whole act.
    pub(super) async fn rack(
        &mut self,
        controller: &Controller,
        receiver: &Receiver,
    ) -> Result<(Cast, Outcome)> {
        self.chapter("A second act: a rack of eight hosts, and eight more that could take over.");
        let mut cast = start(self.world, controller)?;
        self.wait_for_cast(controller, &cast).await?;

        self.chapter("The rack goes dark: all eight at once.");
        let told_after = self.go_dark(controller, &mut cast).await?;
        self.show_holds(controller, receiver, &cast).await?;

        self.chapter("Power returns to half of it.");
        self.come_back(controller, receiver, &mut cast).await?;

        self.chapter("Somebody looks, and approves the rest: the other four are dead indeed.");
        let (delivered_after, places) = self.approve(controller, receiver, &cast).await?;

        self.chapter("The story of one of them: heartwatchctl why dark-8");
        let story = controller.ctl(&["why", "dark-8"])?.ok()?;
        println!("{}", indent(&story));
        for told in ["IN SHORT", RACK, "held back", "approved", "let go", "delivered", "take over"]
        {
            ensure!(story.contains(told), "expected the story to tell of `{told}`");
        }
        Ok((cast, Outcome { told_after, delivered_after, places }))
    }

    async fn wait_for_cast(&self, controller: &Controller, cast: &Cast) -> Result<()> {
        let api = controller.api()?;
        let wanted: BTreeSet<String> =
            cast.dark.iter().chain(&cast.standby).map(|a| a.host().to_string()).collect();
        eventually(STEP_MAX, "sixteen more hosts alive, with their load", || async {
            let hosts = api.hosts_where("state=alive&label=pool=app&").await?;
            let ready = hosts.iter().filter(|h| has_load(h) && wanted.contains(text(h, "/id")));
            let ready = ready.count();
            ensure!(ready == wanted.len(), "{ready} are alive, with their load");
            Ok(Some(()))
        })
        .await?;
        // Some beats each, so that their margins are their own.
        let before = api.metric("heartwatch_beats_received_total", &[]).await?;
        eventually(STEP_MAX, "100 beats more", || async {
            let beats = api.metric("heartwatch_beats_received_total", &[]).await?;
            ensure!(beats >= before + 100.0, "{} so far", beats - before);
            Ok(Some(()))
        })
        .await?;
        self.say("dark-1 to dark-8 are one rack; app-1 to app-8 stand in four others");
        Ok(())
    }

    async fn go_dark(&self, controller: &Controller, cast: &mut Cast) -> Result<Duration> {
        let api = controller.api()?;
        let stopped = now();
        for agent in &mut cast.dark {
            agent.freeze()?;
        }
        self.say("stopped all eight agents: nothing of them moves, nothing answers");
        let told = eventually(STEP_MAX, "domain.down of the rack", || async {
            let told = domain_events(&api).await?;
            ensure!(!told.is_empty(), "no domain event yet");
            Ok(Some(told))
        })
        .await?;
        let told_after = now().since(stopped);
        let reason = text(&told[0], "/data/reason");
        ensure!(
            told.len() == 1
                && text(&told[0], "/type") == "domain.down"
                && text(&told[0], "/data/domain") == RACK,
            "expected one domain.down of {RACK}, seen {told:#?}"
        );
        self.say(&format!("one event after {:.1} s: domain.down", told_after.as_secs_f64()));
        self.say(&format!("  {reason}"));
        for agent in &cast.dark {
            api.wait_event(agent.host(), "host.down", STEP_MAX).await?;
        }
        self.say("the truth is not held: all eight show as down at once. Their failovers are:");
        Ok(told_after)
    }

    async fn show_holds(
        &self,
        controller: &Controller,
        receiver: &Receiver,
        cast: &Cast,
    ) -> Result<()> {
        let api = controller.api()?;
        let held = eventually(STEP_MAX, "eight held orders, by the storm", || async {
            let page = api.get(&format!("/v1/holds?domain={}", encoded(RACK))).await?;
            let holds = page["holds"].as_array().context("`holds` is a list")?;
            let by_storm = holds.iter().filter(|h| text(h, "/kind") == "storm").count();
            ensure!(by_storm == DARK, "{by_storm} of {} are held by the storm", holds.len());
            Ok(Some(holds.clone()))
        })
        .await?;
        let ids: BTreeSet<&str> = held.iter().map(|h| text(h, "/host")).collect();
        let dark: Vec<String> = cast.dark.iter().map(|a| a.host().to_string()).collect();
        ensure!(dark.iter().all(|id| ids.contains(id.as_str())), "held of others: {held:#?}");
        println!("{}", indent(&controller.ctl(&["holds", "list", "--domain", RACK])?.ok()?));
        none_of(receiver, &cast.dark, "while the rack's failovers are held")?;
        self.say("not one failover webhook was sent");
        Ok(())
    }

    async fn come_back(
        &self,
        controller: &Controller,
        receiver: &Receiver,
        cast: &mut Cast,
    ) -> Result<()> {
        let api = controller.api()?;
        for agent in &mut cast.dark[..BACK] {
            agent.thaw()?;
        }
        self.say("dark-1 to dark-4 beat again");
        for agent in &cast.dark[..BACK] {
            let host = agent.host();
            let back = api.wait_event(host, "host.recovered", STEP_MAX).await?;
            ensure!(
                back["data"]["same_boot"] == Value::Bool(true),
                "expected the same life: {back:#}"
            );
            eventually(STEP_MAX, "its held failover is cancelled", || async {
                let state = order_of(&api.deliveries().await?, host);
                ensure!(state == "cancelled", "it is `{state}`");
                Ok(Some(()))
            })
            .await?;
        }
        none_of(receiver, &cast.dark[..BACK], "of hosts that came back")?;
        self.say(
            "each was judged again and cancelled: nobody will ever be told to move their work",
        );
        Ok(())
    }

    async fn approve(
        &self,
        controller: &Controller,
        receiver: &Receiver,
        cast: &Cast,
    ) -> Result<(Duration, Vec<String>)> {
        let dead = &cast.dark[BACK..];
        println!("{}", indent(&controller.ctl(&["candidates", dead[0].name()])?.ok()?));
        let reason = ["--by", "the demo", "--reason", "half of the rack has no power"];
        let approve = [&["holds", "approve", "--domain", RACK][..], &reason].concat();
        let approved = now();
        print!("{}", indent(&controller.ctl(&approve)?.ok()?));
        let (mut places, mut last) = (Vec::new(), approved);
        for agent in dead {
            let call = receiver.wait(&agent.host().to_string(), "host.down", STEP_MAX).await?;
            last = last.max(call.at);
            places.push(self.check_placed(agent, &call, cast)?);
        }
        let distinct: BTreeSet<&String> = places.iter().collect();
        ensure!(
            distinct.len() == dead.len(),
            "expected distinct hosts to take over, seen {places:?}"
        );
        none_of(receiver, &cast.dark[..BACK], "of hosts that came back, after the approval")?;
        self.say(&format!(
            "four failovers, placed as they went, and to four different hosts: {}",
            places.join(", ")
        ));
        Ok((last.since(approved), places))
    }

    /// The webhook names who can take over; answers who is named first.
    fn check_placed(&self, agent: &Agent, call: &Call, cast: &Cast) -> Result<String> {
        let names = candidates(call);
        let standby: BTreeSet<&str> = cast.standby.iter().map(Agent::name).collect();
        let fit = names.iter().all(|name| standby.contains(name.as_str()));
        ensure!(
            fit && !names.is_empty(),
            "expected candidates for {} of the same pool and no rack of its own, seen {names:?}",
            agent.name()
        );
        let placed = call.body.pointer("/data/placed_again_ms").is_some_and(Value::is_i64);
        ensure!(placed, "expected fresh candidates, seen {:#}", call.body);
        names.into_iter().next().context("just checked")
    }
}

fn start(world: &World, controller: &Controller) -> Result<Cast> {
    let start = |name: &str, zone: &str, rack: &str| {
        let agent = world.agent(name).interval("500ms").label("pool", "app");
        agent.label("zone", zone).label("rack", rack).beats_to(controller.beats()).start()
    };
    let dark = (1..=DARK).map(|n| start(&format!("dark-{n}"), "c", "r9"));
    let dark = dark.collect::<Result<_>>()?;
    let standby = STANDBY.iter().map(|[name, zone, rack]| start(name, zone, rack));
    Ok(Cast { dark, standby: standby.collect::<Result<_>>()? })
}

/// What the journal tells of domains' storms.
async fn domain_events(api: &heartwatch_tests::world::Api) -> Result<Vec<Value>> {
    let (events, _) = api.events("").await?;
    let storms = ["domain.down", "domain.storm"];
    Ok(events.into_iter().filter(|e| storms.contains(&text(e, "/type"))).collect())
}

/// How far the failover of a host is.
fn order_of(deliveries: &[Value], host: HostId) -> String {
    let id = host.to_string();
    let mut of =
        deliveries.iter().filter(|d| text(d, "/host") == id && text(d, "/type") == "host.down");
    of.next_back().map(|d| text(d, "/state").to_owned()).unwrap_or_default()
}

/// No failover webhook about any of these came.
fn none_of(receiver: &Receiver, agents: &[Agent], when: &str) -> Result<()> {
    let ids: BTreeSet<String> = agents.iter().map(|a| a.host().to_string()).collect();
    let calls = receiver.calls();
    let bad = calls.iter().find(|c| c.kind() == "host.down" && ids.contains(c.host()));
    ensure!(bad.is_none(), "expected no failover webhook {when}, seen {bad:?}");
    Ok(())
}

fn encoded(domain: &str) -> String {
    domain.replace('=', "%3D").replace(',', "%2C")
}
