//! Receivers that are other people's work: Alertmanager, Standard Webhooks' library for Python, a script.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use heartwatch_tests::world::{
    Call, Controller, PATIENCE, Process, Receiver, World, can_unshare_mounts, eventually, skip,
    story, text, webhook_secret,
};
use serde_json::{Value, json};

/// A folder that `cargo xtask` found or filled.
fn tool(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// A real Alertmanager that tells nobody, on a free port; answers its API's address too. Debian's looks for
/// its templates in `/usr/share`, so that it gets one of its own.
async fn alertmanager(world: &World, tools: &Path) -> Result<(Process, String)> {
    let config =
        world.write("alertmanager.yml", "route: {receiver: none}\nreceivers: [{name: none}]\n")?;
    let script = format!(
        "mount --bind {tools}/usr/share /usr/share && exec {tools}/usr/bin/prometheus-alertmanager \
         --config.file={} --storage.path={} --web.listen-address=127.0.0.1:0 \
         --cluster.listen-address=",
        config.display(),
        world.path("alertmanager").display(),
        tools = tools.display(),
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    let process = Process::start("alertmanager", &mut command, &world.path("alertmanager.log"))?;
    let url = eventually(PATIENCE, "Alertmanager listens", || async {
        let log = process.log();
        let line = log.lines().find(|l| l.contains("Listening on"));
        let address = line.and_then(|l| l.split("address=").nth(1)).map(str::trim);
        Ok(address.map(|address| format!("http://{address}")))
    })
    .await?;
    Ok((process, url))
}

/// The alerts that are active now.
async fn alerts(url: &str) -> Result<Vec<Value>> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client.get(format!("{url}/api/v2/alerts")).send().await?.error_for_status()?;
    Ok(answer.json().await?)
}

fn names(alerts: &[Value]) -> Vec<&str> {
    alerts.iter().map(|a| text(a, "/labels/alertname")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_alertmanager_raises_what_is_down_keeps_it_and_resolves_it_on_recovery() {
    let test = "a_real_alertmanager_raises_what_is_down_keeps_it_and_resolves_it_on_recovery";
    let Some(tools) = tool("HEARTWATCH_ALERTMANAGER") else {
        return skip(test, "Alertmanager is missing: cargo xtask e2e fetches it as root");
    };
    if !can_unshare_mounts() {
        return skip(test, "mounts cannot be unshared: run as root");
    }
    story(async |world: &World| {
        let (_process, url) = alertmanager(world, &tools).await?;
        let kinds = ["host.suspect", "host.down", "host.agent-lost", "host.recovered"];
        let lines = format!(
            "format = \"alertmanager\"\nurl = \"{url}\"\nmax_batch = 10\nresend_every = \"10s\"\n\
             generator_url = \"https://heartwatch.example\""
        );
        let controller = world
            .controller()
            .detector("timeout_max", "\"2s\"")
            .receiver_of("alerts", &lines)
            .rule("alerts", &kinds, &["alerts"])
            .start()
            .await?;
        let tested = controller.ctl(&["receivers", "test", "alerts"])?.ok()?;
        ensure!(tested.contains("alerts took it: 200 OK"), "{tested}");
        let api = controller.api()?;
        let mut agent =
            world.agent("db-1").label("zone", "b").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        agent.kill()?;
        let down = "HeartwatchHostAgentLost";
        let raised = eventually(PATIENCE, "the alert is active", || async {
            let all = alerts(&url).await?;
            ensure!(
                !names(&all).contains(&"HeartwatchHostSuspect"),
                "the suspicion is over: {all:?}"
            );
            Ok(all.into_iter().find(|a| text(a, "/labels/alertname") == down))
        })
        .await?;
        ensure!(text(&raised, "/labels/host") == "db-1", "{raised:#}");
        ensure!(text(&raised, "/labels/zone") == "b", "{raised:#}");
        ensure!(text(&raised, "/generatorURL").starts_with("https://heartwatch.example/v1/hosts/"));
        eventually(PATIENCE, "it is said again and holds for longer", || async {
            let all = alerts(&url).await?;
            let now = all.iter().find(|a| a["fingerprint"] == raised["fingerprint"]);
            let now = now.context("it ended")?;
            ensure!(now["startsAt"] == raised["startsAt"], "{now:#}");
            Ok((text(now, "/endsAt") > text(&raised, "/endsAt")).then_some(()))
        })
        .await?;
        // The same host, in a new life.
        agent.start()?;
        eventually(PATIENCE, "recovery resolves it", || async {
            let all = alerts(&url).await?;
            let left: Vec<_> = names(&all).into_iter().filter(|n| *n != "HeartwatchTest").collect();
            ensure!(left.is_empty(), "still active: {left:?}");
            Ok(Some(()))
        })
        .await
    })
    .await;
}

/// What the library for Python says of a call.
fn verified(library: &Path, secret: &str, call: &Call) -> Result<bool> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/verify_webhook.py");
    let mut child = Command::new("python3")
        .arg(script)
        .arg(secret)
        .env("PYTHONPATH", library)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let headers = json!({
        "webhook-id": call.id,
        "webhook-timestamp": call.timestamp,
        "webhook-signature": call.signature,
    });
    let input = json!({ "headers": headers, "body": call.raw }).to_string();
    child.stdin.take().context("it has an input")?.write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.code().is_some_and(|c| c < 2) && !said.contains("Traceback"), "{said}");
    Ok(out.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_library_of_standard_webhooks_for_python_verifies_by_the_old_and_the_new_secret() {
    let test = "the_library_of_standard_webhooks_for_python_verifies_by_the_old_and_the_new_secret";
    let Some(library) = tool("HEARTWATCH_STANDARDWEBHOOKS") else {
        return skip(test, "pip could not fetch standardwebhooks: cargo xtask e2e tries it");
    };
    story(async |world: &World| {
        let (old, new, other) = (webhook_secret(5), webhook_secret(6), webhook_secret(7));
        let file = world.write_secret("secret", &format!("{new}\n{old}"))?;
        let receiver = Receiver::start(&old).await?;
        let controller = world
            .controller()
            .receiver("r", &receiver.url(), &file)
            .rule("all", &["host.joined"], &["r"])
            .start()
            .await?;
        let agent =
            world.agent("one").label("site", "n\u{f6}rd").beats_to(controller.beats()).start()?;
        let call = receiver.wait(&agent.host().to_string(), "host.joined", PATIENCE).await?;
        ensure!(verified(&library, &old, &call)?, "by the old secret");
        ensure!(verified(&library, &new, &call)?, "by the new secret");
        ensure!(!verified(&library, &other, &call)?, "by another secret");
        let forged = Call { raw: call.raw.replace("joined", "downed"), ..call };
        ensure!(!verified(&library, &old, &forged)?, "forged");
        Ok(())
    })
    .await;
}

fn row<'a>(table: &'a str, name: &str) -> &'a str {
    table.lines().find(|l| l.starts_with(name)).unwrap_or_default()
}

fn receivers(controller: &Controller) -> Result<String> {
    controller.ctl(&["receivers"])?.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_are_shown_tried_and_previewed_and_a_command_is_one() {
    story(async |world: &World| {
        let secret = webhook_secret(9);
        let file = world.write_secret("secret", &secret)?;
        let mut receiver = Receiver::start(&secret).await?;
        let got = world.path("got");
        let script = world.write("take.sh", &format!("cat >> {}\n", got.display()))?;
        let exec = format!("kind = \"exec\"\ncommand = [\"/bin/sh\", \"{}\"]", script.display());
        let masakari = "format = \"masakari\"\nurl = \"http://127.0.0.1:1/v1\"";
        let controller = world
            .controller()
            .receiver("orchestrator", &receiver.url(), &file)
            .receiver_of("script", &exec)
            .receiver_of("evacuate", masakari)
            .rule("all", &["host.joined"], &["orchestrator", "script"])
            .start()
            .await?;
        let ctl = |args: &[&str]| controller.ctl(args);
        ensure!(ctl(&["receivers", "test", "orchestrator"])?.ok()?.contains("took it: 200"));
        let call = receiver.calls().pop().context("it was called")?;
        ensure!(call.kind() == "heartwatch.test" && call.body["data"]["test"] == true, "{call:?}");
        ensure!(call.verified.is_ok(), "a test is signed as all are: {call:?}");
        ensure!(ctl(&["receivers", "test", "script"])?.ok()?.contains("took it: exit 0"));
        let refused = ctl(&["receivers", "test", "evacuate"])?;
        ensure!(refused.code == 1 && refused.stderr.contains("no word for"), "{refused:?}");
        let unknown = ctl(&["receivers", "test", "nobody"])?;
        ensure!(unknown.code == 1 && unknown.stderr.contains("no such receiver"), "{unknown:?}");

        let agent = world.agent("one").beats_to(controller.beats()).start()?;
        let id = agent.host().to_string();
        receiver.wait(&id, "host.joined", PATIENCE).await?;
        eventually(PATIENCE, "the command got it too", || async {
            let text = std::fs::read_to_string(&got)?;
            Ok(text.lines().any(|l| l.contains("host.joined") && l.contains(&id)).then_some(()))
        })
        .await?;
        receiver.pause().await;
        let failed = ctl(&["receivers", "test", "orchestrator"])?;
        ensure!(failed.code == 1 && failed.stderr.contains("a test is not repeated"), "{failed:?}");
        let table = receivers(&controller)?;
        ensure!(row(&table, "orchestrator").contains("native"), "{table}");
        ensure!(row(&table, "script").contains("exec"), "{table}");
        ensure!(row(&table, "evacuate").contains("masakari"), "{table}");
        let json = ctl(&["receivers", "--json"])?.json()?;
        ensure!(json["receivers"][1]["dead"] == 1, "{json:#}");

        let config = controller.config().display().to_string();
        let preview = |args: &[&str]| {
            let mut all = vec!["--config", config.as_str(), "receivers", "preview"];
            all.extend(args);
            ctl(&all)
        };
        let shown = preview(&["evacuate", "--host", "compute-7"])?.ok()?;
        ensure!(shown.contains("POST http://127.0.0.1:1/v1/notifications"), "{shown}");
        ensure!(shown.contains("\"hostname\": \"compute-7\""), "{shown}");
        let refused = preview(&["evacuate", "--event", "host.joined"])?;
        ensure!(refused.code == 78 && refused.stderr.contains("no word"), "{refused:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_will_not_do_is_found_before_the_controller_runs() {
    story(async |world: &World| {
        let template = world.write("t.toml", "body = '{\"host\": \"{{ host.name }}\"}'")?;
        let lines = format!(
            "format = \"template\"\nurl = \"http://127.0.0.1:1/\"\ntemplate_file = \"{}\"",
            template.display()
        );
        let setup = world.controller().receiver_of("t", &lines).rule("r", &["host.down"], &["t"]);
        let config = setup.write()?.display().to_string();
        let args = ["check-config", "--config", config.as_str()];
        let check = || heartwatch_tests::world::CtlOutput::of("heartwatch-controller", &args);
        let bad = check()?;
        ensure!(bad.code == 78 && bad.stderr.contains("tojson"), "{bad:?}");
        ensure!(bad.stderr.contains("host.down") && bad.stderr.contains("receiver t"), "{bad:?}");
        world.write("t.toml", "body = '{\"host\": {{ host.name | tojson }}}'")?;
        check()?.ok()?;
        Ok(())
    })
    .await;
}
