//! The operator's command line and the API under it, command by command.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heartwatch_common::id::Generation;
use heartwatch_tests::world::{
    Answer, Controller, PATIENCE, Plan, Process, Receiver, Station, World, binary, eventually,
    host_id, number, skip, story, text, throughout, webhook_secret,
};
use serde_json::{Value, json};

const FAILURES: [&str; 3] = ["host.down", "host.agent-lost", "host.recovered"];

async fn with_receiver(world: &World, events: &[&str]) -> Result<(Controller, Receiver)> {
    let secret = webhook_secret(1);
    let file = world.write_secret("secret", &secret)?;
    let receiver = Receiver::start(&secret).await?;
    let controller = world
        .controller()
        .receiver("r", &receiver.url(), &file)
        .rule("all", events, &["r"])
        .start()
        .await?;
    Ok((controller, receiver))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_that_reads_prints_a_table_and_the_apis_json() {
    story(async |world: &World| {
        let (controller, receiver) = with_receiver(world, &["host.joined"]).await?;
        let agent = world.agent("db-1").label("zone", "a").beats_to(controller.beats()).start()?;
        receiver.wait(&agent.host().to_string(), "host.joined", PATIENCE).await?;
        let commands: [(&[&str], &str); 8] = [
            (&["status"], "alive"),
            (&["hosts"], "db-1"),
            (&["hosts", "--state", "alive", "--label", "zone=a"], "db-1"),
            (&["host", "db-1"], "alive"),
            (&["why", "db-1"], "alive"),
            (&["events"], "host.joined"),
            (&["events", "--host", "db-1"], "host.joined"),
            (&["deliveries", "--receiver", "r"], "delivered"),
        ];
        for (command, word) in commands {
            let table = controller.ctl(command)?.ok()?;
            ensure!(table.contains(word), "{command:?}: expected `{word}`, seen:\n{table}");
            let with_json = [command, &["--json"]].concat();
            let value = controller.ctl(&with_json)?.json()?;
            ensure!(value.is_object(), "{with_json:?}: expected an object, seen {value}");
        }
        let none = controller.ctl(&["hosts", "--state", "down"])?.ok()?;
        ensure!(!none.contains("db-1"), "expected no host that is down, seen:\n{none}");
        let unknown = controller.ctl(&["host", "nobody"])?;
        ensure!(unknown.code == 1 && unknown.stderr.contains("nobody"), "{unknown:?}");
        let nonsense = controller.ctl(&["hosts", "--state", "asleep"])?;
        ensure!(nonsense.code == 64, "expected exit 64, seen {nonsense:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expected_hosts_are_pending_then_missing_and_alive_once_they_say_hello() {
    story(async |world: &World| {
        let controller = world.controller().detector("missing_after", "\"2s\"").start().await?;
        let api = controller.api()?;
        let (csv, lines) = (host_id("from-csv"), host_id("from-json"));
        let file = world
            .write("hosts.csv", &format!("id,name,labels\n{csv},from-csv,zone=a;rack=r1\n"))?;
        let said = controller.ctl(&["import", &file.to_string_lossy()])?.ok()?;
        ensure!(said.contains('1'), "expected one added, seen {said}");
        let host =
            json!({ "id": lines.to_string(), "name": "from-json", "labels": { "zone": "b" } });
        let file = world.write("hosts.json", &json!([host]).to_string())?;
        let report = controller.ctl(&["import", &file.to_string_lossy(), "--json"])?.json()?;
        ensure!(number(&report, "/added") == 1 && number(&report, "/known") == 0, "{report}");
        let again = controller.ctl(&["import", &file.to_string_lossy(), "--json"])?.json()?;
        ensure!(number(&again, "/added") == 0 && number(&again, "/known") == 1, "{again}");
        let bad = world.write("bad.csv", "not-an-id,x\n")?;
        let refused = controller.ctl(&["import", &bad.to_string_lossy()])?;
        ensure!(refused.code != 0 && refused.stderr.contains("bad.csv:1"), "{refused:?}");

        let pending = controller.ctl(&["hosts", "--state", "pending"])?.ok()?;
        ensure!(pending.contains("from-csv") && pending.contains("from-json"), "{pending}");
        api.wait_event(csv, "host.missing", PATIENCE).await?;
        api.wait_event(lines, "host.missing", PATIENCE).await?;
        ensure!(api.state(csv).await? == "pending", "missing is an event, the state stays pending");

        let agent = world.agent("from-csv").beats_to(controller.beats()).start()?;
        ensure!(agent.host() == csv, "the same host");
        api.wait_state(csv, "alive").await?;
        api.wait_event(csv, "host.joined", PATIENCE).await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_actions_and_what_is_no_longer_true_at_its_end_is_never_sent() {
    story(async |world: &World| {
        let (controller, receiver) = with_receiver(world, &FAILURES).await?;
        let api = controller.api()?;
        let mut stays = world.agent("stays-down").beats_to(controller.beats()).start()?;
        let mut returns = world.agent("returns").beats_to(controller.beats()).start()?;
        for host in [stays.host(), returns.host()] {
            api.wait_state(host, "alive").await?;
        }
        let said = controller.ctl(&["pause", "--for", "10m", "--reason", "moving racks"])?.ok()?;
        ensure!(said.contains("moving racks"), "expected the reason, seen {said}");
        let status = controller.ctl(&["status"])?.ok()?;
        ensure!(status.contains("moving racks"), "expected the pause in the status:\n{status}");

        stays.kill()?;
        returns.kill()?;
        // States are always true, also while actions rest.
        api.wait_state(stays.host(), "down").await?;
        api.wait_state(returns.host(), "down").await?;
        eventually(PATIENCE, "both failovers are held, with the reason", || async {
            let held = controller.ctl(&["deliveries", "--state", "held", "--json"])?.json()?;
            let list = held["deliveries"].as_array().context("a list")?;
            ensure!(list.len() == 2, "{held:#}");
            ensure!(list.iter().all(|d| text(d, "/reason").contains("pause")), "{held:#}");
            Ok(Some(()))
        })
        .await?;
        returns.start()?;
        api.wait_state(returns.host(), "alive").await?;
        throughout(Duration::from_secs(1), || async {
            let calls = receiver.calls();
            ensure!(calls.is_empty(), "expected no call during the pause, seen {calls:?}");
            Ok(())
        })
        .await?;

        controller.ctl(&["pause", "--end"])?.ok()?;
        receiver.wait(&stays.host().to_string(), "host.agent-lost", PATIENCE).await?;
        let returned = returns.host().to_string();
        throughout(Duration::from_secs(2), || async {
            let calls = receiver.calls();
            let stale = calls.iter().find(|c| c.host() == returned);
            ensure!(stale.is_none(), "expected nothing about the host that came back: {stale:?}");
            Ok(())
        })
        .await
    })
    .await;
}

/// It was dropped, and neither the answer nor the journal said a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_order_that_goes_with_its_host_is_told_to_whoever_takes_the_host_out() {
    story(async |world: &World| {
        let (controller, receiver) = with_receiver(world, &FAILURES).await?;
        let api = controller.api()?;
        let mut hosts = Vec::new();
        for name in ["stolen", "scrapped"] {
            hosts.push(world.agent(name).beats_to(controller.beats()).start()?);
        }
        for host in &hosts {
            api.wait_state(host.host(), "alive").await?;
        }
        controller.ctl(&["pause", "--for", "10m", "--reason", "moving racks"])?.ok()?;
        for host in &mut hosts {
            host.kill()?;
        }
        let held = || async {
            let held = controller.ctl(&["deliveries", "--state", "held", "--json"])?.json()?;
            anyhow::Ok(held["deliveries"].as_array().map_or(0, Vec::len))
        };
        eventually(PATIENCE, "both failovers are held", || async {
            Ok((held().await? == 2).then_some(()))
        })
        .await?;
        let revoked = controller.ctl(&["hosts", "revoke", "stolen", "--reason", "lost"])?.ok()?;
        let forgotten = controller.ctl(&["forget", "scrapped"])?.ok()?;
        for (said, host) in [(revoked, &hosts[0]), (forgotten, &hosts[1])] {
            for part in
                ["Its order host.agent-lost for r", "held back", "will not be sent", "by hand"]
            {
                ensure!(said.contains(part), "{part} is not in:\n{said}");
            }
            let id = host.host().to_string();
            let events = controller.ctl(&["events", "--after", "c0", "--host", &id, "--json"])?;
            let events = events.json()?;
            let events = events["events"].as_array().context("a list")?;
            let gone =
                events.iter().find(|e| e["type"] == "host.forgotten").context("journaled")?;
            let reason = text(gone, "/data/reason");
            ensure!(reason.contains("its held order will not be sent"), "{reason}");
            ensure!(reason.contains("moving racks"), "{reason}");
        }
        ensure!(held().await? == 0, "expected nothing to be held any more");
        controller.ctl(&["pause", "--end"])?.ok()?;
        throughout(Duration::from_secs(1), || async {
            let calls = receiver.calls();
            ensure!(calls.is_empty(), "expected no call about hosts that are gone, seen {calls:?}");
            Ok(())
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_can_be_redriven() {
    story(async |world: &World| {
        let (controller, receiver) = with_receiver(world, &["host.joined"]).await?;
        receiver.plan(Plan::script([Answer::Status(410), Answer::Status(410)]));
        for name in ["first", "second"] {
            Station::new(world, name, controller.beats())?.join()?;
        }
        let dead = || async {
            let page = controller.ctl(&["deliveries", "--state", "dead", "--json"])?.json()?;
            anyhow::Ok(page["deliveries"].as_array().cloned().unwrap_or_default())
        };
        let letters = eventually(PATIENCE, "two dead letters", || async {
            let letters: Vec<Value> = dead().await?;
            ensure!(letters.len() == 2, "{letters:?}");
            Ok(Some(letters))
        })
        .await?;
        let id = number(&letters[0], "/id").to_string();
        let report = controller.ctl(&["redrive", &id, "--json"])?.json()?;
        ensure!(report["redriven"].as_array().is_some_and(|l| l.len() == 1), "{report:#}");
        let report = controller.ctl(&["redrive", "--dead", "--json"])?.json()?;
        ensure!(report["redriven"].as_array().is_some_and(|l| l.len() == 1), "{report:#}");
        for name in ["first", "second"] {
            receiver.wait(&host_id(name).to_string(), "host.joined", PATIENCE).await?;
        }
        let skipped = controller.ctl(&["redrive", &id, "--json"])?.json()?;
        ensure!(skipped["skipped"].as_array().is_some_and(|l| l.len() == 1), "{skipped:#}");
        let left: Vec<Value> = dead().await?;
        ensure!(left.is_empty(), "expected no dead letter to be left, seen {left:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_rise_above_every_earlier_one_after_a_restore_from_an_older_backup() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        controller.pin_ports()?;
        let mut old = Station::new(world, "in-the-backup", controller.beats())?;
        old.join()?;
        let api = controller.api()?;
        api.wait_event(old.host, "host.joined", PATIENCE).await?;
        let file = world.path("backup.db");
        let file = file.to_string_lossy();
        controller.ctl(&["backup", &file])?.ok()?;
        let again = controller.ctl(&["backup", &file])?;
        ensure!(again.code != 0, "expected that no file is overwritten, seen {again:?}");

        let mut late = Station::new(world, "after-the-backup", controller.beats())?;
        late.join()?;
        for _ in 0..3 {
            old.boot.0 += 1;
            old.join()?;
        }
        eventually(PATIENCE, "three restarts are journaled", || async {
            let kinds = api.kinds_of(old.host).await?;
            ensure!(kinds.iter().filter(|k| *k == "host.restarted").count() == 3, "{kinds:?}");
            Ok(Some(()))
        })
        .await?;
        let (events, _) = api.events("").await?;
        let highest = events.iter().map(|e| number(e, "/token")).max().unwrap_or(0);

        let config = controller.config().to_string_lossy().into_owned();
        let restore = ["restore", &file, "--config", &config];
        let refused = controller.ctl(&restore)?;
        ensure!(refused.code != 0, "expected a refusal while it runs, seen {refused:?}");
        controller.stop().await?;
        controller.ctl(&restore)?.ok()?;
        controller.start().await?;
        let api = controller.api()?;
        let state = api.state(late.host).await?;
        ensure!(state.is_empty(), "expected the older registry, but it is {state} there");
        old.boot.0 += 1;
        old.join()?;
        late.boot.0 += 1;
        late.join()?;
        let rejoined = api.wait_event(late.host, "host.joined", PATIENCE).await?;
        let token = number(&rejoined, "/token");
        ensure!(token > highest, "expected a token above {highest}, seen {token}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_host_is_gone_until_it_says_hello_again() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut agent = world.agent("old-iron").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        agent.kill()?;
        api.wait_state(agent.host(), "down").await?;
        controller.ctl(&["forget", "old-iron"])?.ok()?;
        let table = controller.ctl(&["hosts"])?.ok()?;
        ensure!(!table.contains("old-iron"), "expected it to be gone, seen:\n{table}");
        api.wait_event(agent.host(), "host.forgotten", PATIENCE).await?;
        let again = controller.ctl(&["forget", "old-iron"])?;
        ensure!(again.code == 1, "expected exit 1 for an unknown host, seen {again:?}");
        agent.start()?;
        api.wait_state(agent.host(), "alive").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_derived_and_secrets_made_from_files_alone() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        controller.stop().await?;
        let host = host_id("new");
        let config = controller.config().to_string_lossy().into_owned();
        let key = controller.ctl(&["key", &host.to_string(), "--config", &config])?.ok()?;
        ensure!(key.trim() == *world.key(host).to_text(), "expected the derived key, seen {key}");
        let args = ["key", &host.to_string(), "--config", &config, "--generation", "2", "--json"];
        let second = controller.ctl(&args)?.json()?;
        let expected = world.secret().host_key(host, Generation(2));
        ensure!(text(&second, "/key") == *expected.to_text(), "generation 2, seen {second}");
        let secret = controller.ctl(&["secret", "new", "--key-id", "9"])?.ok()?;
        ensure!(secret.starts_with("hwf1:9:"), "expected a fleet secret, seen {secret}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn following_events_shows_what_happens_from_now_on_across_a_restart() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        // The API's port must stay for somebody who follows.
        let api_address = controller.url().trim_start_matches("http://").to_owned();
        let text = std::fs::read_to_string(controller.config())?;
        let text = text
            .replace("api_listen = \"127.0.0.1:0\"", &format!("api_listen = \"{api_address}\""));
        std::fs::write(controller.config(), text)?;
        controller.pin_ports()?;
        let mut command = Command::new(binary("heartwatchctl")?);
        command.args(["--url", &controller.url(), "events", "--follow"]);
        let mut follower = Process::start("follower", &mut command, &world.path("follow.log"))?;
        let mut first = Station::new(world, "first", controller.beats())?;
        first.join()?;
        follower.says("first", PATIENCE).await?;
        controller.kill()?;
        controller.start().await?;
        let mut second = Station::new(world, "second", controller.beats())?;
        second.join()?;
        follower.says("second", PATIENCE).await?;
        let seen = follower.log().matches("host.joined").count();
        ensure!(seen == 2, "expected each joining once, seen:\n{}", follower.log());
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_changes_without_the_token_and_errors_are_problem_documents() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let pause = json!({ "for": "10m", "reason": "x" });
        let forbidden = [
            ("POST", "/v1/pause", Some(pause.clone())),
            ("DELETE", "/v1/pause", None),
            ("POST", "/v1/hosts/import", Some(json!([]))),
            ("DELETE", "/v1/hosts/x", None),
            ("POST", "/v1/deliveries/redrive", Some(json!({ "dead": {} }))),
            ("POST", "/v1/backup", None),
        ];
        for (method, path, body) in forbidden {
            let (status, text) = api.send(method, path, body, false).await?;
            ensure!(status == 401, "{method} {path}: expected 401, seen {status}: {text}");
            let problem: Value = serde_json::from_str(&text).context("problem+json")?;
            ensure!(number(&problem, "/status") == 401, "{problem:#}");
        }
        let (status, text) = api.send("POST", "/v1/pause", Some(pause), true).await?;
        ensure!(status == 200, "with the token: expected 200, seen {status}: {text}");
        for path in ["/v1/hosts/nobody", "/v1/nothing", "/v1/events?after=zzz"] {
            let (status, text) = api.get_text(path).await?;
            ensure!([400, 404].contains(&status), "{path}: seen {status}");
            let problem: Value = serde_json::from_str(&text).context("problem+json")?;
            ensure!(number(&problem, "/status") == u64::from(status), "{path}: {problem:#}");
        }
        let wrong = Command::new(binary("heartwatchctl")?)
            .args(["--url", &controller.url(), "--token-file"])
            .arg(world.write_secret("wrong-token", "ffffffffffffffffffffffffffffffff")?)
            .args(["pause", "--end"])
            .output()?;
        ensure!(wrong.status.code() == Some(1), "expected exit 1 with a wrong token: {wrong:?}");
        Ok(())
    })
    .await;
}

/// promtool as `cargo xtask` found it, or as it is on the path.
fn promtool() -> Option<String> {
    let named = std::env::var("HEARTWATCH_PROMTOOL").unwrap_or_default();
    let candidates = [named, "promtool".to_owned()];
    candidates.into_iter().filter(|c| !c.is_empty()).find(|program| {
        Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_no_fault_with_the_metrics() {
    let Some(promtool) = promtool() else {
        let why = "promtool is missing: apt-get install -y prometheus";
        return skip("promtool_finds_no_fault_with_the_metrics", why);
    };
    story(async |world: &World| {
        let events = ["host.joined", "host.suspect", "host.agent-lost"];
        let (controller, receiver) = with_receiver(world, &events).await?;
        receiver.plan(Plan::script([Answer::Status(503)]));
        let mut agent = world.agent("counted").beats_to(controller.beats()).start()?;
        let api = controller.api()?;
        api.wait_state(agent.host(), "alive").await?;
        agent.kill()?;
        api.wait_state(agent.host(), "down").await?;
        let metrics = api.metrics().await?;
        for wanted in [
            "heartwatch_beats_received_total",
            "heartwatch_beats_expected_total",
            "heartwatch_beats_lost_total",
            "heartwatch_datagrams_rejected_total",
            "heartwatch_suspects_total",
            "heartwatch_mistakes_total",
            "heartwatch_detection_time_seconds_bucket",
            "heartwatch_delivery_attempts_total",
            "heartwatch_delivery_retries_total",
            "heartwatch_shard_lag_seconds",
            "heartwatch_datagrams_dropped_total",
        ] {
            ensure!(metrics.contains(wanted), "expected {wanted} among:\n{metrics}");
        }
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        check.stdin.take().context("a pipe")?.write_all(metrics.as_bytes())?;
        let out = check.wait_with_output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success() && said.trim().is_empty(), "promtool says:\n{said}");
        Ok(())
    })
    .await;
}
