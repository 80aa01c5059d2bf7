//! The story of Heartwatch in two acts, told by real processes on this machine.
//!
//! Five agents beat to a controller. One is killed: it is suspected, probed, declared down, and a signed
//! webhook asks for its work to be failed over. It comes back: the recovery webhook carries a higher
//! token. Another one is stopped politely: no failover. Then a whole rack goes dark ([`rack`]). Whatever goes
//! otherwise ends the demo with a non-zero exit, what was expected, what was seen, and the logs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use heartwatch_common::time::{Clock, Instant, SystemClock};
use heartwatch_tests::world::{
    Agent, Call, Controller, Receiver, World, eventually, now, number, text, throughout,
    webhook_secret,
};
use serde_json::Value;

#[path = "demo/rack.rs"]
mod rack;

/// How long each step may take at most; it takes a second or three.
const STEP_MAX: Duration = Duration::from_secs(20);
/// How long a polite leave is watched for a failover that must not come.
const LEAVE_WATCH: Duration = Duration::from_secs(5);

/// Five agents, a crash, a failover, a recovery, a polite goodbye; then a rack of eight goes dark.
#[derive(Parser)]
struct Args {
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

/// Name, pool, zone and rack of each host.
const HOSTS: [[&str; 4]; 5] = [
    ["web-1", "web", "a", "r1"],
    ["web-2", "web", "b", "r2"],
    ["web-3", "web", "a", "r3"],
    ["db-1", "db", "a", "r1"],
    ["db-2", "db", "b", "r2"],
];

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let started = now();
    let world = match World::new() {
        Ok(world) => world,
        Err(e) => {
            eprintln!("demo: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut demo = Demo { started, world: &world, step: 0 };
    match demo.tell(args.keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("\nThe demo did not go as it should.\n{e:#}\n\nLogs:\n{}", world.logs(25));
            ExitCode::FAILURE
        }
    }
}

struct Demo<'w> {
    started: Instant,
    world: &'w World,
    step: u32,
}

/// What the summary tells of the crash.
struct Crash {
    /// From the kill to the event in the journal.
    detected: Duration,
    /// From the kill to the webhook at the receiver.
    delivered: Duration,
    token: u64,
}

impl Demo<'_> {
    fn say(&self, words: &str) {
        say(self.started, words);
    }

    fn chapter(&mut self, title: &str) {
        self.step += 1;
        println!("\n{}. {title}", self.step);
    }

    async fn tell(&mut self, keep: bool) -> Result<()> {
        println!("Heartwatch demo. Everything runs on loopback in {}", self.world.dir().display());

        self.chapter("A controller, a webhook receiver, and five agents start.");
        let secret = webhook_secret(7);
        let receiver = Receiver::start(&secret).await?;
        self.print_calls(&receiver);
        let controller = self.start_controller(&secret, &receiver).await?;
        let mut agents = self.start_agents(&controller)?;
        self.wait_for_fleet(&controller).await?;
        println!("{}", indent(&controller.ctl(&["hosts"])?.ok()?));

        let [victim, leaver, ..] = agents.as_mut_slice() else {
            anyhow::bail!("there are five agents");
        };
        self.chapter("web-1 crashes: SIGKILL, no goodbye.");
        let crash = self.crash(&controller, &receiver, victim).await?;

        self.chapter("Why? The controller shows its evidence: heartwatchctl why web-1");
        println!("{}", indent(&controller.ctl(&["why", "web-1"])?.ok()?));

        self.chapter("web-1 starts again.");
        let recovered = self.recover(&receiver, victim, &crash).await?;

        self.chapter("web-2 is stopped politely: SIGTERM.");
        self.leave(&controller, &receiver, leaver).await?;

        let (cast, outcome) = self.rack(&controller, &receiver).await?;

        self.chapter("The fleet in the end, and the sums.");
        println!("{}", indent(&controller.ctl(&["hosts"])?.ok()?));
        self.sum_up(&controller, &receiver, (&crash, &recovered), &outcome).await?;
        if keep {
            self.keep_running(&controller).await?;
        }
        for agent in &mut agents {
            agent.process()?.stop(STEP_MAX).await?;
        }
        cast.end().await?;
        let mut controller = controller;
        controller.stop().await?;
        self.say("all stopped; the demo went as it should");
        Ok(())
    }

    /// Prints every webhook as it arrives, with whether its signature is right.
    fn print_calls(&self, receiver: &Receiver) {
        let started = self.started;
        receiver.tell(move |call| say(started, &shown(call)));
    }

    async fn start_controller(&self, secret: &str, receiver: &Receiver) -> Result<Controller> {
        let file = self.world.write_secret("webhook-secret", secret)?;
        let failover = ["host.down", "host.agent-lost", "host.recovered"];
        let controller = self
            .world
            .controller()
            .receiver("orchestrator", &receiver.url(), &file)
            // By default a lost agent on a host that still answers is an alert and no more. Here all
            // hosts are this machine, whose kernel always answers, so this rule acts on it.
            .rule_with("failover", &failover, &["orchestrator"], "candidates_same = [\"pool\"]")
            .rule("tell", &["host.suspect", "host.left", "domain.down"], &["orchestrator"])
            // Here a host's work is all that another can bear, so that no two go to one.
            .top("placement.reserve_load = 1.0")
            .top("placement.load_max = 1.0")
            .start()
            .await?;
        self.say(&format!(
            "controller: beats on UDP {}, API on {}",
            controller.beats(),
            controller.url()
        ));
        self.say(&format!(
            "receiver:   webhooks on {}, every signature is checked",
            receiver.url()
        ));
        self.say(
            "rule:       host.agent-lost is acted on here like host.down, because all five hosts",
        );
        self.say("            are this one machine: its kernel answers for a process that is gone");
        Ok(controller)
    }

    fn start_agents(&self, controller: &Controller) -> Result<Vec<Agent>> {
        let start = |[name, pool, zone, rack]: &[&str; 4]| {
            self.world
                .agent(name)
                .interval("1s")
                .label("pool", pool)
                .label("zone", zone)
                .label("rack", rack)
                .beats_to(controller.beats())
                .start()
        };
        let agents = HOSTS.iter().map(start).collect::<Result<Vec<_>>>()?;
        self.say("agents:     5 started, one beat a second each, with this machine's real load");
        Ok(agents)
    }

    /// Waits until all are alive and their load is known.
    async fn wait_for_fleet(&self, controller: &Controller) -> Result<()> {
        let api = controller.api()?;
        eventually(STEP_MAX, "five hosts alive, with their load", || async {
            let hosts = api.hosts().await?;
            let states: Vec<_> = hosts.iter().map(|h| text(h, "/state")).collect();
            ensure!(states == ["alive"; 5], "their states are {states:?}");
            ensure!(hosts.iter().all(has_load), "the load of some is not known yet");
            Ok(Some(()))
        })
        .await?;
        // A few beats more, so that the detector has something to learn from.
        eventually(STEP_MAX, "20 beats in all", || async {
            let beats = api.metric("heartwatch_beats_received_total", &[]).await?;
            ensure!(beats >= 20.0, "{beats} beats so far");
            Ok(Some(()))
        })
        .await?;
        self.say("all five are alive:");
        Ok(())
    }

    async fn crash(
        &self,
        controller: &Controller,
        receiver: &Receiver,
        victim: &mut Agent,
    ) -> Result<Crash> {
        let api = controller.api()?;
        let host = victim.host();
        victim.kill()?;
        let (killed, killed_wall) = (now(), SystemClock.wall());
        self.say("killed web-1");
        api.wait_event(host, "host.suspect", STEP_MAX).await?;
        self.say("web-1 is suspect: its beat is overdue; the controller probes it now");
        let event = api.wait_event(host, "host.agent-lost", STEP_MAX).await?;
        // By the event's own time: we only looked every now and then.
        let at_ms = event["at_ms"].as_i64().context("an event has a time")?;
        let detected_ms = at_ms.saturating_sub(killed_wall.0);
        let detected = Duration::from_millis(u64::try_from(detected_ms).unwrap_or(0));
        self.say(&format!(
            "web-1 is down, cause agent-lost: no probe was answered by an agent, but the kernel says \
             that nobody listens there; found {:.1} s after the kill",
            detected.as_secs_f64()
        ));
        ensure!(
            text(&event, "/data/cause") == "agent-lost",
            "expected the cause agent-lost, seen: {event:#}"
        );
        let call = receiver.wait(&host.to_string(), "host.agent-lost", STEP_MAX).await?;
        let delivered = call.at.since(killed);
        check_failover(&call)?;
        self.say(&format!(
            "failover webhook: fencing token {}, take over on {}",
            call.token(),
            candidates(&call).join(", then ")
        ));
        Ok(Crash { detected, delivered, token: call.token() })
    }

    async fn recover(&self, receiver: &Receiver, agent: &mut Agent, crash: &Crash) -> Result<Call> {
        agent.start()?;
        self.say("started web-1");
        let call = receiver.wait(&agent.host().to_string(), "host.recovered", STEP_MAX).await?;
        ensure!(
            call.body["data"]["same_boot"] == Value::Bool(false),
            "expected same_boot: false after a crash, seen: {:#}",
            call.body
        );
        ensure!(
            call.token() > crash.token,
            "expected a token above {}, seen {}",
            crash.token,
            call.token()
        );
        self.say(&format!(
            "recovery webhook: a new boot (so it truly was down), token {} is above {}",
            call.token(),
            crash.token
        ));
        Ok(call)
    }

    async fn leave(
        &self,
        controller: &Controller,
        receiver: &Receiver,
        leaver: &mut Agent,
    ) -> Result<()> {
        let host = leaver.host().to_string();
        leaver.stop().await?;
        self.say("stopped web-2");
        receiver.wait(&host, "host.left", STEP_MAX).await?;
        self.say("web-2 has left; watching for 5 s that nobody calls this a failure…");
        let api = controller.api()?;
        throughout(LEAVE_WATCH, || async {
            let kinds = api.kinds_of(leaver.host()).await?;
            let bad = kinds.iter().find(|k| FAILURES.contains(&k.as_str()));
            ensure!(bad.is_none(), "expected no failure of a host that left, seen {kinds:?}");
            let calls = receiver.calls();
            let bad = calls.iter().find(|c| c.host() == host && FAILURES.contains(&c.kind()));
            ensure!(bad.is_none(), "expected no such webhook of a host that left: {bad:?}");
            let state = api.state(leaver.host()).await?;
            ensure!(state == "left", "expected web-2 to stay `left`, seen `{state}`");
            Ok(())
        })
        .await?;
        self.say("right: host.left, and no failover");
        Ok(())
    }

    async fn sum_up(
        &self,
        controller: &Controller,
        receiver: &Receiver,
        (crash, recovered): (&Crash, &Call),
        rack: &rack::Outcome,
    ) -> Result<()> {
        let api = controller.api()?;
        let settled = || async {
            let deliveries = api.deliveries().await?;
            let open = deliveries.iter().filter(|d| text(d, "/state") == "pending").count();
            ensure!(open == 0, "{open} deliveries are still on their way");
            Ok(Some(deliveries))
        };
        let deliveries = eventually(STEP_MAX, "every delivery has ended", settled).await?;
        let attempts: u64 = deliveries.iter().map(|d| number(d, "/attempts")).sum();
        let delivered = deliveries.iter().filter(|d| text(d, "/state") == "delivered").count();
        let calls = receiver.calls();
        let unsigned = calls.iter().filter(|c| c.verified.is_err()).count();
        ensure!(unsigned == 0, "expected every webhook rightly signed, {unsigned} were not");
        let wrong: Vec<_> = deliveries
            .iter()
            .filter(|d| !["delivered", "cancelled", "superseded"].contains(&text(d, "/state")))
            .collect();
        ensure!(wrong.is_empty(), "expected every delivery well ended, seen {wrong:?}");
        let rows = [
            ("detection time (kill to event)", format!("{:.2} s", crash.detected.as_secs_f64())),
            ("kill to failover webhook", format!("{:.2} s", crash.delivered.as_secs_f64())),
            (
                "fencing tokens, failover then recovery",
                format!("{}, {}", crash.token, recovered.token()),
            ),
            ("rack dark to its one event", format!("{:.2} s", rack.told_after.as_secs_f64())),
            (
                "approval to the last of four failovers",
                format!("{:.2} s", rack.delivered_after.as_secs_f64()),
            ),
            ("they go to", rack.places.join(", ")),
            ("deliveries journaled", deliveries.len().to_string()),
            ("  of which delivered", delivered.to_string()),
            ("attempts", attempts.to_string()),
            ("webhooks received, all rightly signed", calls.len().to_string()),
            ("whole demo so far", format!("{:.1} s", now().since(self.started).as_secs_f64())),
        ];
        rows.iter().for_each(|(what, value)| println!("     {what:<42} {value}"));
        println!();
        Ok(())
    }

    async fn keep_running(&self, controller: &Controller) -> Result<()> {
        let ctl = heartwatch_tests::world::binary("heartwatchctl")?;
        let ctl = format!(
            "{} --url {} --token-file {}",
            ctl.display(),
            controller.url(),
            controller.token_file().display()
        );
        println!("   Everything is left running. Try:\n");
        for command in
            ["status", "hosts", "why web-1", "candidates web-1", "events --follow", "deliveries"]
        {
            println!("     {ctl} {command}");
        }
        println!("     curl {}/metrics", controller.url());
        let dir = self.world.dir().display();
        println!("\n   Configs, logs and the store are in {dir} until Ctrl-C ends it all.");
        tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")
    }
}

/// Events that call a host failed.
const FAILURES: [&str; 2] = ["host.down", "host.agent-lost"];

fn say(started: Instant, words: &str) {
    println!("   {:5.1} s  {words}", now().since(started).as_secs_f64());
}

fn indent(block: &str) -> String {
    block.lines().map(|line| format!("     {line}\n")).collect()
}

/// One line for one webhook.
fn shown(call: &Call) -> String {
    let name = match text(&call.body, "/data/host/name") {
        "" => text(&call.body, "/data/domain"),
        name => name,
    };
    let signed = match &call.verified {
        Ok(()) => "signature ok".to_owned(),
        Err(e) => format!("SIGNATURE WRONG: {e}"),
    };
    format!("      webhook: {} of {name}, token {}, {signed}", call.kind(), call.token())
}

fn has_load(host: &Value) -> bool {
    host.get("load").is_some_and(|l| !l.is_null())
}

fn candidates(call: &Call) -> Vec<String> {
    let list = call.body.pointer("/data/candidates").and_then(Value::as_array);
    let name = |c: &Value| text(c, "/name").to_owned();
    list.map(|l| l.iter().map(name).collect()).unwrap_or_default()
}

/// The failover names whom to fail over to: hosts of the same pool, the least loaded first.
fn check_failover(call: &Call) -> Result<()> {
    ensure!(call.token() > 0, "expected a fencing token, seen: {:#}", call.body);
    ensure!(!text(&call.body, "/data/event_id").is_empty(), "no event_id: {:#}", call.body);
    ensure!(call.id == text(&call.body, "/data/event_id"), "webhook-id is not the event's id");
    let mut names = candidates(call);
    let list = call.body.pointer("/data/candidates").and_then(Value::as_array);
    let scores: Vec<f64> =
        list.into_iter().flatten().filter_map(|c| c["load_score"].as_f64()).collect();
    ensure!(scores.is_sorted(), "expected the least loaded first, seen {scores:?}");
    names.sort();
    ensure!(
        names == ["web-2", "web-3"],
        "expected the candidates web-2 and web-3 (same pool), seen {names:?}: {:#}",
        call.body
    );
    Ok(())
}
