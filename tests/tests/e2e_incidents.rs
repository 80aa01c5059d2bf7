//! What follows an order: steps, answers, reports, escalation; and a controller that is killed between any
//! two steps of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heartwatch_common::time::Clock;
use heartwatch_controller::crash::POINTS;
use heartwatch_tests::fleet::{Fleet, FleetSetup};
use heartwatch_tests::world::{
    Answer, Api, Call, Controller, PATIENCE, Plan, Receiver, World, eventually, now, number, story,
    text, throughout, webhook_secret,
};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const ORDERS: [&str; 2] = ["host.down", "host.agent-lost"];
const FAILOVER: [&str; 3] = ["host.down", "host.agent-lost", "host.recovered"];

fn fleet(world: &World, controller: &Controller, hosts: usize) -> Result<Fleet> {
    Fleet::start(&FleetSetup {
        controller: controller.beats(),
        secret: world.secret().clone(),
        hosts,
        interval: Duration::from_millis(250),
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

fn order(calls: &[Call], host: &str) -> Option<Call> {
    calls.iter().find(|c| c.host() == host && ORDERS.contains(&c.kind())).cloned()
}

async fn ordered(receiver: &Receiver, host: &str) -> Result<Call> {
    eventually(PATIENCE, "it is ordered to act", || async { Ok(order(&receiver.calls(), host)) })
        .await
}

async fn report(api: &Api, call: &Call, body: Value) -> Result<u16> {
    let incident = text(&call.body, "/data/incident");
    let path = format!("/v1/incidents/{incident}/complete");
    let (status, answer) = api.send("POST", &path, Some(body), true).await?;
    println!("reported: {status} {answer}");
    Ok(status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_fenced_before_it_is_failed_over_and_each_reports_what_it_did() {
    story(async |world: &World| {
        let secret = webhook_secret(3);
        let file = world.write_secret("secret", &secret)?;
        let (fence, main) = (Receiver::start(&secret).await?, Receiver::start(&secret).await?);
        // First it asks to come again.
        let wait = r#"{"decision": "hold", "for": "1s", "reason": "the console is busy"}"#;
        fence.plan(Plan::script([Answer::Says(wait.to_owned())]));
        let mut controller = world
            .controller()
            .receiver("fence", &fence.url(), &file)
            .receiver("main", &main.url(), &file)
            .rule_with(
                "failover",
                &FAILOVER,
                &["main"],
                "first = [\"fence\"]\ncomplete_within = \"1h\"",
            )
            .start()
            .await?;
        controller.pin_ports()?;
        let fleet = fleet(world, &controller, 8)?;
        let api = controller.api()?;
        all_alive(&api, 8).await?;
        fleet.kill(3);
        let host = fleet.ids()[3].to_string();
        let first = ordered(&fence, &host).await?;
        let taken = eventually(PATIENCE, "the fence takes it", || async {
            let calls = fence.calls();
            Ok(calls.into_iter().filter(|c| ORDERS.contains(&c.kind())).nth(1))
        })
        .await?;
        ensure!(taken.raw == first.raw, "asked again with other bytes");
        // Accepted is not done: the rule waits for the report, over a restart too.
        controller.kill()?;
        controller.start().await?;
        let api = controller.api()?;
        throughout(Duration::from_secs(2), || async {
            ensure!(
                order(&main.calls(), &host).is_none(),
                "it was failed over before it was fenced"
            );
            Ok(())
        })
        .await?;
        let wrong = json!({ "token": first.token() + 7 });
        ensure!(report(&api, &first, wrong).await? == 409, "a token of no order was taken");
        ensure!(report(&api, &first, json!({ "token": first.token() })).await? == 204);
        ensure!(report(&api, &first, json!({ "token": first.token() })).await? == 204);
        let opposite = json!({ "token": first.token(), "result": "failed" });
        ensure!(report(&api, &first, opposite).await? == 409, "two ends of one order were taken");

        let second = ordered(&main, &host).await?;
        ensure!(second.token() > first.token(), "{} after {}", second.token(), first.token());
        ensure!(text(&second.body, "/data/incident") == text(&first.body, "/data/incident"));
        ensure!(
            text(&second.body, "/data/reason").contains("`fence` has completed it"),
            "{:#}",
            second.body
        );
        let open = api.get("/v1/incidents?open=true").await?;
        let one = &open["incidents"][0];
        ensure!(text(one, "/stage") == "accepted" || text(one, "/stage") == "ordered", "{one:#}");
        ensure!(number(one, "/token") == second.token(), "{one:#}");
        eventually(PATIENCE, "the report is taken", || async {
            let done = json!({ "token": second.token(), "reason": "runs on web-2" });
            Ok((report(&api, &second, done).await? == 204).then_some(()))
        })
        .await?;
        let id = text(&second.body, "/data/incident").to_owned();
        let one = api.get(&format!("/v1/incidents/{id}")).await?;
        ensure!(text(&one, "/stage") == "completed", "{one:#}");
        let shown = controller.ctl(&["incidents"])?.ok()?;
        ensure!(shown.contains("completed") && shown.contains(&id), "{shown}");
        let why = controller.ctl(&["why", &host])?.ok()?;
        ensure!(why.contains("`main` has completed the order: runs on web-2"), "{why}");
        ensure!(why.contains("it asks to come again after 1s: the console is busy"), "{why}");

        fleet.revive(3);
        main.wait(&host, "host.recovered", PATIENCE).await?;
        let list = controller.ctl(&["incidents", "list"])?.ok()?;
        ensure!(list.contains("No outage is open."), "{list}");
        ensure!(
            fence.calls().iter().all(|c| c.kind() != "host.recovered"),
            "a fence is told of falls"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_accepts_and_never_completes_is_replaced_under_a_higher_token_and_told_so() {
    story(async |world: &World| {
        let secret = webhook_secret(4);
        let file = world.write_secret("secret", &secret)?;
        let (main, second) = (Receiver::start(&secret).await?, Receiver::start(&secret).await?);
        let controller = world
            .controller()
            .receiver("main", &main.url(), &file)
            .receiver("second", &second.url(), &file)
            .rule_with(
                "failover",
                &FAILOVER,
                &["main"],
                "complete_within = \"2s\"\nescalate = [\"second\"]\nescalate_acts = true",
            )
            .start()
            .await?;
        let fleet = fleet(world, &controller, 8)?;
        let api = controller.api()?;
        all_alive(&api, 8).await?;
        fleet.kill(1);
        let host = fleet.ids()[1].to_string();
        let first = ordered(&main, &host).await?;
        let other = ordered(&second, &host).await?;
        ensure!(other.token() > first.token());
        ensure!(other.body["data"]["instead_of"] == json!(["main"]), "{:#}", other.body);
        let told = main.wait(&host, "incident.escalated", PATIENCE).await?;
        ensure!(told.token() > other.token() && text(&told.body, "/data/receiver") == "second");
        // Too late: the fence of the token holds here too.
        ensure!(report(&api, &first, json!({ "token": first.token() })).await? == 409);
        ensure!(report(&api, &other, json!({ "token": other.token() })).await? == 204);
        throughout(Duration::from_secs(3), || async {
            let failed = api.kinds_of(fleet.ids()[1]).await?;
            ensure!(!failed.iter().any(|k| k == "incident.failed"), "{failed:?}");
            Ok(())
        })
        .await?;
        fleet.revive(1);
        second.wait(&host, "host.recovered", PATIENCE).await?;
        main.wait(&host, "host.recovered", PATIENCE).await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_veto_ends_an_order_and_a_word_that_is_no_yes_does_not_pass_for_one() {
    story(async |world: &World| {
        let secret = webhook_secret(5);
        let file = world.write_secret("secret", &secret)?;
        let (main, pager) = (Receiver::start(&secret).await?, Receiver::start(&secret).await?);
        let says = |text: &str| Answer::Says(format!("{{\"decision\": {text}}}"));
        main.plan(Plan::Always(says("\"veto\", \"reason\": \"in use by hand\"")));
        let controller = world
            .controller()
            .receiver_with("main", &main.url(), &file, "retry_base = \"100ms\"")
            .receiver("pager", &pager.url(), &file)
            // Without any plan: a refusal is told all the same.
            .rule("failover", &FAILOVER, &["main"])
            .rule("tell", &["incident.vetoed"], &["pager"])
            .start()
            .await?;
        let fleet = fleet(world, &controller, 8)?;
        let api = controller.api()?;
        all_alive(&api, 8).await?;
        fleet.kill(2);
        let host = fleet.ids()[2].to_string();
        let vetoed = pager.wait(&host, "incident.vetoed", PATIENCE).await?;
        ensure!(text(&vetoed.body, "/data/reason").contains("in use by hand"), "{:#}", vetoed.body);
        let incident = text(&vetoed.body, "/data/incident").to_owned();
        let one = api.get(&format!("/v1/incidents/{incident}")).await?;
        ensure!(text(&one, "/stage") == "vetoed", "{one:#}");
        throughout(Duration::from_secs(2), || async {
            let asked = main.calls().iter().filter(|c| ORDERS.contains(&c.kind())).count();
            ensure!(asked == 1, "asked {asked} times");
            Ok(())
        })
        .await?;

        main.plan(Plan::script([says("\"nope\""), says("false"), says("\"accept\"")]));
        fleet.kill(5);
        let host = fleet.ids()[5].to_string();
        eventually(PATIENCE, "it is asked until it says yes", || async {
            let all = api.deliveries().await?;
            let of = |d: &&Value| text(d, "/host") == host && ORDERS.contains(&text(d, "/type"));
            let Some(row) = all.iter().find(of) else { return Ok(None) };
            let done = text(row, "/state") == "delivered";
            Ok(done.then_some(number(row, "/attempts")))
        })
        .await
        .and_then(|tries| {
            ensure!(tries == 3, "{tries} tries");
            Ok(())
        })
    })
    .await;
}

/// A receiver that was given up, and in whose place another was ordered, was ordered again by `redrive`: two
/// acted upon one death.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_order_that_another_was_given_is_not_sent_again() {
    story(async |world: &World| {
        let secret = webhook_secret(6);
        let file = world.write_secret("secret", &secret)?;
        let (main, second) = (Receiver::start(&secret).await?, Receiver::start(&secret).await?);
        main.plan(Plan::Always(Answer::Status(410)));
        let controller = world
            .controller()
            .receiver("main", &main.url(), &file)
            .receiver("second", &second.url(), &file)
            .rule_with(
                "failover",
                &FAILOVER,
                &["main"],
                "escalate = [\"second\"]\nescalate_acts = true",
            )
            .start()
            .await?;
        let fleet = fleet(world, &controller, 8)?;
        let api = controller.api()?;
        all_alive(&api, 8).await?;
        fleet.kill(4);
        let host = fleet.ids()[4].to_string();
        let first = ordered(&main, &host).await?;
        let other = ordered(&second, &host).await?;
        ensure!(other.token() > first.token());
        eventually(PATIENCE, "it is told that another acts", || async {
            Ok(main.calls().iter().any(|c| c.kind() == "incident.escalated").then_some(()))
        })
        .await?;
        main.plan(Plan::Always(Answer::Status(200)));
        let said = eventually(PATIENCE, "nothing is pending", || async {
            let all = api.deliveries().await?;
            let waits = all.iter().any(|d| text(d, "/state") == "pending");
            if waits { Ok(None) } else { controller.ctl(&["redrive", "--dead"])?.ok().map(Some) }
        })
        .await?;
        ensure!(said.contains("another was ordered to act in its place"), "{said}");
        throughout(Duration::from_secs(1), || async {
            let asked = main.calls().iter().filter(|c| ORDERS.contains(&c.kind())).count();
            ensure!(asked == 1, "ordered {asked} times");
            Ok(())
        })
        .await
    })
    .await;
}

/// What the kills must leave behind.
struct Tally<'a> {
    events: &'a [Value],
    deliveries: &'a [Value],
    calls: BTreeMap<&'static str, Vec<Call>>,
}

impl Tally<'_> {
    /// Every delivery has ended well, and what the journal calls delivered did arrive.
    fn check_nothing_is_lost(&self) -> Result<BTreeMap<String, u64>> {
        let mut ends = BTreeMap::new();
        for delivery in self.deliveries {
            let (state, id) = (text(delivery, "/state"), text(delivery, "/event"));
            *ends.entry(state.to_owned()).or_insert(0) += 1;
            let calls = &self.calls[text(delivery, "/receiver")];
            let arrived = calls.iter().any(|c| c.id == id && c.was_accepted());
            let good = match state {
                "delivered" => arrived,
                "cancelled" => !calls.iter().any(|c| c.id == id),
                "superseded" => true,
                _ => false,
            };
            ensure!(good, "arrived: {arrived}, but {delivery:#}");
        }
        let told: BTreeSet<&str> = self.deliveries.iter().map(|d| text(d, "/event")).collect();
        for event in self.events {
            let named = event["data"]["verdicts"].as_array().is_some_and(|v| !v.is_empty());
            // The end of an outage is told only to those who may have heard of it.
            let is_end = text(event, "/type") == "host.recovered";
            ensure!(
                !named || is_end || told.contains(text(event, "/id")),
                "told nobody: {event:#}"
            );
        }
        Ok(ends)
    }

    /// Tokens never fall at a receiver, and a repeat is the same byte for byte. Answers the repeats.
    fn check_order(&self) -> Result<usize> {
        let mut repeats = 0;
        for calls in self.calls.values() {
            let mut last: BTreeMap<&str, u64> = BTreeMap::new();
            let mut by_id: BTreeMap<&str, &Call> = BTreeMap::new();
            for call in calls {
                ensure!(call.verified.is_ok(), "wrongly signed: {call:?}");
                let before = last.insert(call.host(), call.token()).unwrap_or(0);
                ensure!(call.token() >= before, "token {} after {before}: {call:?}", call.token());
                if let Some(first) = by_id.insert(&call.id, call) {
                    repeats += 1;
                    ensure!(first.raw == call.raw, "{} was sent in two versions", call.id);
                }
            }
        }
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for event in self.events.iter().filter(|e| !text(e, "/host").is_empty()) {
            let token = number(event, "/token");
            let before = last.insert(text(event, "/host"), token).unwrap_or(0);
            ensure!(token > before, "token {token} after {before} in the journal: {event:#}");
        }
        Ok(repeats)
    }

    /// In each outage the fence was ordered before the main receiver and that before the second, and
    /// each once. Answers the outages that went all the way.
    fn check_steps(&self) -> Result<usize> {
        let mut outages: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
        let mut kinds = BTreeMap::new();
        let orders = self.deliveries.iter().filter(|d| ORDERS.contains(&text(d, "/type")));
        for d in orders {
            // Who was unreachable by its agent first and silent then is ordered about twice.
            let key = (text(d, "/incident"), text(d, "/type"));
            kinds.entry(key.0).or_insert_with(BTreeSet::new).insert(key.1);
            outages.entry(key.0).or_default().push((number(d, "/token"), text(d, "/receiver")));
        }
        let mut whole = 0;
        for (incident, mut orders) in outages {
            orders.sort_unstable();
            let to: Vec<&str> = orders.iter().map(|(_, to)| *to).collect();
            ensure!(
                ["fence", "main", "second"].starts_with(&to),
                "in outage {incident} ({:?}) {orders:?} were ordered",
                kinds[incident]
            );
            whole += usize::from(to.len() == 3);
        }
        Ok(whole)
    }
}

/// Runs a controller until it crashes at this place, while hosts come and go. `false`: it never came there.
async fn live_until_crash(
    controller: &mut Controller,
    (point, passes): (&str, u32),
    mut stir: impl FnMut(u32),
) -> Result<bool> {
    controller.set_env(&[("HEARTWATCH_CRASH_AT", &format!("{point}:{passes}"))]);
    controller.spawn()?;
    for turn in 0..80 {
        if controller.process()?.ended()?.is_some() {
            return Ok(true);
        }
        stir(turn);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    controller.process()?.signal(Signal::SIGKILL)?;
    controller.process()?.wait(PATIENCE).await.context("after a SIGKILL")?;
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_kills_between_any_two_steps_lose_nothing_and_order_nothing_twice() {
    story(async |world: &World| {
        const HOSTS: usize = 60;
        const KILLS: usize = 300;
        const SEED: u64 = 77;
        let secret = webhook_secret(9);
        let file = world.write_secret("secret", &secret)?;
        let mut receivers = BTreeMap::new();
        for (n, name) in ["news", "fence", "main", "second"].into_iter().enumerate() {
            let receiver = Receiver::start(&secret).await?;
            receiver.plan(Plan::share(20, Answer::Status(503), SEED + n as u64));
            receivers.insert(name, receiver);
        }
        // It comes back at the same address each time, for the reports.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut setup = world
            .controller()
            .api_listen(&format!("127.0.0.1:{port}"))
            .detector("restart_grace", "\"1s\"")
            // This is about the journal: storms and flaps would hold for longer than it waits.
            .top("flaps.suppress = 0\ndomains.storm_hosts = 0\ndomains.settle = \"100ms\"\n\
                  domains.actions_per_minute = 0\ndomains.fleet_actions_per_minute = 0");
        for (name, receiver) in &receivers {
            let retries = "retry_base = \"100ms\"\nretry_cap = \"1s\"";
            setup = setup.receiver_with(name, &receiver.url(), &file, retries);
        }
        let news = ["host.joined", "host.left", "host.restarted", "incident.failed"];
        let mut controller = setup
            .rule("news", &news, &["news"])
            .rule_with(
                "failover",
                &FAILOVER,
                &["main"],
                "first = [\"fence\"]\nescalate = [\"second\"]\nescalate_acts = true\n\
                 accept_within = \"30s\"\ncomplete_within = \"1s\"",
            )
            .start()
            .await?;
        controller.pin_ports()?;
        let fleet = fleet(world, &controller, HOSTS)?;
        let api = controller.api()?;
        all_alive(&api, HOSTS).await?;
        // A fence reports at once, the others never do.
        let (report, mut reports) = tokio::sync::mpsc::unbounded_channel::<Call>();
        receivers["fence"].tell(move |call| drop(report.send(call.clone())));
        let token = std::fs::read_to_string(controller.token_file())?;
        let base = controller.url();
        tokio::spawn(async move {
            while let Some(call) = reports.recv().await {
                if !ORDERS.contains(&call.kind()) || !call.was_accepted() {
                    continue;
                }
                let (base, token) = (base.clone(), token.clone());
                // Until it is taken: the controller may be dead.
                tokio::spawn(async move {
                    let id = text(&call.body, "/data/incident");
                    let url = format!("{base}/v1/incidents/{id}/complete");
                    for _ in 0..600 {
                        let request = reqwest::Client::new().post(&url).bearer_auth(token.trim());
                        let body = json!({ "token": call.token() });
                        match request.json(&body).send().await.map(|a| a.status().as_u16()) {
                            Ok(204 | 404 | 409) => return,
                            _ => tokio::time::sleep(Duration::from_millis(300)).await,
                        }
                    }
                });
            }
        });
        controller.kill()?;

        let mut rng = StdRng::seed_from_u64(SEED);
        let (mut dead, mut away) = (BTreeSet::new(), BTreeSet::new());
        let mut hit: BTreeMap<&str, u32> = BTreeMap::new();
        let mut missed: BTreeMap<&str, u32> = BTreeMap::new();
        let started = now();
        for kill in 0..KILLS {
            let at = POINTS[kill % POINTS.len()];
            let passes = if at == "start" { 1 } else { rng.random_range(1..4) };
            let host = rng.random_range(0..HOSTS / 2);
            if dead.remove(&host) {
                fleet.revive(host);
            } else if dead.len() < 10 {
                fleet.kill(host);
                dead.insert(host);
            }
            let crashed = live_until_crash(&mut controller, (at, passes), |turn| {
                // The other half says goodbye and comes back, which is news at once.
                if turn % 4 == 3 {
                    let host = rng.random_range(HOSTS / 2..HOSTS);
                    if away.remove(&host) {
                        fleet.revive(host);
                    } else {
                        fleet.leave(host);
                        away.insert(host);
                    }
                }
            });
            let crashed = crashed.await.with_context(|| format!("kill {kill} at {at}"))?;
            *if crashed { &mut hit } else { &mut missed }.entry(at).or_default() += 1;
        }
        let took = heartwatch_common::time::SystemClock.now().since(started);

        controller.set_env(&[]);
        controller.start().await?;
        let api = controller.api()?;
        for host in &dead {
            api.wait_state(fleet.ids()[*host], "down").await?;
        }
        for host in &away {
            fleet.revive(*host);
        }
        all_alive(&api, HOSTS - dead.len()).await?;
        let deliveries = eventually(PATIENCE, "every outage has gone all the way", || async {
            for host in &dead {
                let id = fleet.ids()[*host].to_string();
                let kinds = api.kinds_of(fleet.ids()[*host]).await?;
                // Ordered of all three, and all in vain.
                let failed = kinds.iter().rposition(|k| k == "incident.failed");
                let down = kinds.iter().rposition(|k| k == "host.suspect");
                if failed < down {
                    bail!("{id}: {kinds:?}");
                }
            }
            // After the events: what they cause is then among them.
            let deliveries = api.deliveries().await?;
            let open = |d: &&Value| matches!(text(d, "/state"), "pending" | "held");
            let open = deliveries.iter().filter(open).count();
            ensure!(open == 0, "{open} are still on their way");
            Ok(Some(deliveries))
        })
        .await?;
        let (events, _) = api.events("").await?;
        let calls = receivers.iter().map(|(name, r)| (*name, r.calls())).collect();
        let tally = Tally { events: &events, deliveries: &deliveries, calls };
        let ends = tally.check_nothing_is_lost()?;
        let repeats = tally.check_order()?;
        let whole = tally.check_steps()?;
        let all: usize = tally.calls.values().map(Vec::len).sum();
        println!(
            "{KILLS} kills in {:.0} s, at {hit:?}; by hand, as the place was not reached: {missed:?}; \
             {} events; deliveries {ends:?}: 0 lost; {all} calls, {repeats} repeats, all under the same key \
             with the same bytes; 0 order violations; tokens rose; {whole} outages went through all steps",
            took.as_secs_f64(),
            events.len(),
        );
        for point in POINTS {
            ensure!(hit.contains_key(point), "the controller was never killed at `{point}`");
        }
        Ok(())
    })
    .await;
}
