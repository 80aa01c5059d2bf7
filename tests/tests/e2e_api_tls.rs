//! The API over TLS, by real binaries: who is believed to be the controller, what other machines must speak,
//! certificates that change while it runs, and clients that must show one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use heartwatch_common::time::{Clock, SystemClock};
use heartwatch_controller::tls::{Files, Tls, make};
use heartwatch_tests::world::{
    Controller, CtlOutput, Net, PATIENCE, World, eventually, skip, story, text,
};
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn ctl(controller: &Controller, url: &str, args: &[&str]) -> Result<CtlOutput> {
    let token = controller.token_file().display().to_string();
    CtlOutput::of("heartwatchctl", &[&["--url", url, "--token-file", &token], args].concat())
}

/// Expects failure; answers what it said.
fn refused(output: CtlOutput) -> Result<String> {
    ensure!(output.code != 0, "expected heartwatchctl to fail, seen: {}", output.stdout);
    Ok(output.stderr)
}

/// A pair of files with a certificate for loopback, and its SHA-256.
fn pair(dir: &Path) -> Result<(PathBuf, PathBuf, String)> {
    std::fs::create_dir_all(dir)?;
    let (certificate, key) = make::ensure(dir, "127.0.0.1:1".parse()?, SystemClock.wall())?;
    let files = Files { certificate: certificate.clone(), key: key.clone(), client_ca: None };
    Ok((certificate, key, Tls::open(files)?.fingerprint().to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_is_known_by_the_certificate_that_it_made_and_nobody_else_is_taken_for_it() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        let api = controller.api()?;
        let status = api.get("/v1/status").await?;
        let pin = text(&status, "/certificate/sha256").to_owned();
        ensure!(pin.len() == 64 && controller.log().contains(&pin), "{}", controller.log());
        let https = controller.https();
        // Beside its token lies its certificate: nothing must be said.
        let shown = ctl(&controller, &https, &["status"])?.ok()?;
        ensure!(shown.contains(&pin) && shown.contains("days left"), "{shown}");
        ctl(&controller, &https, &["--pin", &pin, "pause", "--for", "1m", "--reason", "t"])?
            .ok()?;
        let upper = format!("SHA256:{}", pin.to_uppercase());
        ctl(&controller, &https, &["--pin", &upper, "status"])?.ok()?;
        let own = controller.certificate().display().to_string();
        ctl(&controller, &https, &["--ca", &own, "status"])?.ok()?;
        let wrong = "0".repeat(64);
        let said = refused(ctl(&controller, &https, &["--pin", &wrong, "status"])?)?;
        ensure!(said.contains(&pin) && said.contains("is pinned"), "{said}");
        let (other, _, _) = pair(&world.path("other"))?;
        let other = other.display().to_string();
        let said = refused(ctl(&controller, &https, &["--ca", &other, "status"])?)?;
        ensure!(said.contains("no trusted connection"), "{said}");

        // After a restart it is the same: who pinned it still knows it.
        controller.stop().await?;
        controller.start().await?;
        ctl(&controller, &controller.https(), &["--pin", &pin, "status"])?.ok()?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_certificates_are_taken_while_it_runs_and_broken_ones_are_not() {
    story(async |world: &World| {
        let (certificate, key, first) = pair(&world.path("first"))?;
        let (next_certificate, next_key, next) = pair(&world.path("next"))?;
        let files = format!(
            "[api]\ncertificate_file = \"{}\"\nkey_file = \"{}\"",
            certificate.display(),
            key.display()
        );
        let mut controller = world.controller().top(&files).start().await?;
        let https = controller.https();
        let with = |pin: &str| ctl(&controller, &https, &["--pin", pin, "status"]);
        with(&first)?.ok()?;
        refused(with(&next)?)?;
        std::fs::copy(&next_key, &key)?;
        std::fs::copy(&next_certificate, &certificate)?;
        eventually(PATIENCE, "the new certificate", async || {
            Ok((with(&next)?.code == 0).then_some(()))
        })
        .await?;
        refused(with(&first)?)?;

        std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nno\n")?;
        controller.process()?.signal(Signal::SIGHUP)?;
        eventually(PATIENCE, "a refusal in the log", async || {
            Ok(controller.log().contains("the one before stays in use").then_some(()))
        })
        .await?;
        ctl(&controller, &https, &["--pin", &next, "status"])?.ok()?;
        let (_, metrics) = controller.api()?.get_text("/metrics").await?;
        let refused = "heartwatch_api_certificate_reloads_total{outcome=\"refused\"} ";
        let seen = metrics.lines().find_map(|line| line.strip_prefix(refused));
        ensure!(seen.is_some_and(|n| n != "0"), "{metrics}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_at_the_start_is_a_wrong_setting() {
    story(async |world: &World| {
        let (certificate, _, _) = pair(&world.path("one"))?;
        let (_, key, _) = pair(&world.path("two"))?;
        let files = format!(
            "[api]\ncertificate_file = \"{}\"\nkey_file = \"{}\"",
            certificate.display(),
            key.display()
        );
        let config = world.controller().top(&files).write()?.display().to_string();
        let run = CtlOutput::of("heartwatch-controller", &["run", "--config", &config])?;
        ensure!(run.code == 78, "exit {}: {}", run.code, run.stderr);
        ensure!(run.stderr.contains("cannot be used together"), "{}", run.stderr);
        Ok(())
    })
    .await;
}

/// An authority in a file, and a client's certificate and key by it.
fn client(world: &World, name: &str) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
    let certificate = params.signed_by(&key, &ca)?;
    Ok((
        world.write(&format!("{name}-ca.pem"), &ca.pem())?,
        world.write(&format!("{name}.pem"), &certificate.pem())?,
        world.write_secret(&format!("{name}.key"), &key.serialize_pem())?,
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_must_show_a_certificate_where_that_is_asked_but_on_the_machine_itself_not() {
    story(async |world: &World| {
        let (ca, certificate, key) = client(world, "ann")?;
        let (_, strange, strange_key) = client(world, "eve")?;
        let asked = format!("[api]\nclient_ca_file = \"{}\"", ca.display());
        let controller = world.controller().top(&asked).start().await?;
        let https = controller.https();
        let said = refused(ctl(&controller, &https, &["status"])?)?;
        ensure!(said.contains("certificate"), "{said}");
        let shown = |certificate: &Path, key: &Path| {
            let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
            ctl(
                &controller,
                &https,
                &["--client-cert", &certificate, "--client-key", &key, "status"],
            )
        };
        let status = shown(&certificate, &key)?.ok()?;
        ensure!(status.contains("clients must show theirs"), "{status}");
        refused(shown(&strange, &strange_key)?)?;
        ctl(&controller, &controller.url(), &["status"])?.ok()?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_must_speak_https_and_show_a_token() {
    if let Some(why) = Net::refused() {
        return skip("other_machines_must_speak_https_and_show_a_token", &why);
    }
    story(async |world: &World| {
        let (net, _) = Net::new(1, 1)?;
        let (there, _) = net.management();
        let controller = world
            .controller()
            .within(&net.controller())
            .listen("0.0.0.0:2328")
            .api_listen(&format!("{there}:2328"))
            .start()
            .await?;
        let mut plain = tokio::net::TcpStream::connect((there, 2328)).await?;
        plain.write_all(b"GET /v1/hosts HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, plain.read_to_string(&mut answer))
            .await
            .context("a close")??;
        ensure!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https"), "{answer}");
        let url = format!("http://{there}:2328");
        let said = refused(ctl(&controller, &url, &["hosts"])?)?;
        ensure!(said.contains("plain http would show the token"), "{said}");
        let said = refused(CtlOutput::of("heartwatchctl", &["--url", &url, "hosts"])?)?;
        ensure!(said.contains("https is needed"), "{said}");
        controller.ctl(&["status"])?.ok()?;
        // Its own drills' webhooks arrive though its API listens on no loopback address.
        let drill = controller.ctl(&["drill"])?.ok()?;
        ensure!(drill.contains("passed"), "{drill}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_do_what_their_scope_says_by_tls_too_and_who_changed_what_is_in_the_journal() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        let made = |controller: &Controller, name: &str, scope: &str| -> Result<String> {
            let file = world.path(format!("{name}.token")).display().to_string();
            let args = ["api-token", "create", "--name", name, "--scope", scope, "--ttl", "1d"];
            controller.ctl(&[&args[..], &["--out", &file]].concat())?.ok()?;
            Ok(file)
        };
        let reader = made(&controller, "grafana", "read")?;
        let operator = made(&controller, "ann", "operate")?;
        let own = controller.certificate().display().to_string();
        let with = |controller: &Controller, token: &str, args: &[&str]| {
            let url = controller.https();
            let global = ["--url", &url, "--ca", &own, "--token-file", token];
            CtlOutput::of("heartwatchctl", &[&global[..], args].concat())
        };
        let pause = ["pause", "--for", "10m", "--reason", "switch work"];
        with(&controller, &reader, &["hosts"])?.ok()?;
        let said = refused(with(&controller, &reader, &pause)?)?;
        ensure!(said.contains("`operate`") && said.contains("`read`"), "{said}");
        with(&controller, &operator, &pause)?.ok()?;
        let said = refused(with(&controller, &operator, &["api-token", "list"])?)?;
        ensure!(said.contains("`admin`"), "{said}");
        let said = refused(with(&controller, "/nowhere", &["hosts"])?)?;
        ensure!(said.contains("/nowhere") && said.contains("is the path right?"), "{said}");
        let none = ["--url", &controller.https(), "--ca", &own, "hosts"];
        let said = refused(CtlOutput::of("heartwatchctl", &none)?)?;
        ensure!(said.contains("bearer token is needed"), "{said}");

        // They and the journal outlive a crash.
        controller.kill()?;
        controller.start().await?;
        with(&controller, &reader, &["hosts"])?.ok()?;
        let list = controller.ctl(&["api-token", "list", "--json"])?.json()?;
        ensure!(text(&list, "/tokens/0/name") == "ann", "{list:#}");
        ensure!(list["tokens"][0]["last_used_ms"].is_number(), "{list:#}");
        let audit = ["events", "--kind", "controller.audit", "--json"];
        let events = controller.ctl(&audit)?.json()?;
        let reasons: Vec<_> = events["events"].as_array().context("events")?.iter().collect();
        let paused = reasons.iter().find(|e| text(e, "/data/what/path") == "/v1/pause");
        let paused = paused.with_context(|| format!("no pause in {events:#}"))?;
        ensure!(text(paused, "/data/who/name") == "ann", "{paused:#}");
        ensure!(text(paused, "/data/what/parameters/reason") == "switch work", "{paused:#}");
        ensure!(paused["data"]["status"] == 200, "{paused:#}");
        let made = reasons.iter().filter(|e| text(e, "/data/what/path") == "/v1/tokens").count();
        ensure!(made == 2 && reasons.len() == 3, "refusals are not journaled: {events:#}");

        controller.ctl(&["api-token", "revoke", "grafana"])?.ok()?;
        let said = refused(with(&controller, &reader, &["hosts"])?)?;
        ensure!(said.contains("not this controller's"), "{said}");
        controller.stop().await?;
        controller.start().await?;
        refused(with(&controller, &reader, &["hosts"])?)?;
        with(&controller, &operator, &["hosts"])?.ok()?;
        Ok(())
    })
    .await;
}

/// Every route that is asked by GET, with names that exist.
const GETS: [&str; 20] = [
    "/v1/hosts",
    "/v1/hosts/web-1",
    "/v1/hosts/web-1/why",
    "/v1/events?limit=1000",
    "/v1/events?tail=100",
    "/v1/deliveries",
    "/v1/deliveries?state=pending",
    "/v1/deliveries/1",
    "/v1/deliveries/2",
    "/v1/holds",
    "/v1/incidents?open=true",
    "/v1/rules",
    "/v1/maintenance",
    "/v1/drill",
    "/v1/candidates?host=web-1",
    "/v1/receivers",
    "/v1/tokens",
    "/v1/status",
    "/metrics",
    "/readyz",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_holds_a_secret_whatever_went_wrong_with_it() {
    story(async |world: &World| {
        use base64::Engine;
        let mark = |n: u8| format!("s3cret-mark-{n}-");
        let signing = base64::engine::general_purpose::STANDARD.encode(mark(1).repeat(3));
        let signed = world.write_secret("webhook", &format!("whsec_{signing}"))?;
        let bearer = world.write_secret("bearer", &format!("{}bearer", mark(2)))?;
        // Nobody listens there: errors tell of it.
        let url = |host: &str| format!("http://user:{}@{host}/hook?key={}", mark(3), mark(4));
        let lines = format!("bearer_token_file = \"{}\"", bearer.display());
        let controller = world
            .controller()
            .receiver_with("closed", &url("127.0.0.1:9"), &signed, &lines)
            .receiver_with("nowhere", &url("127.0.0.2:9"), &signed, "")
            .rule("all", &["host.joined", "controller.audit"], &["closed", "nowhere"])
            .start()
            .await?;
        let api = controller.api()?;
        let agent = world.agent("web-1").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        let made = controller.ctl(&[
            "api-token",
            "create",
            "--name",
            "t",
            "--scope",
            "admin",
            "--json",
        ])?;
        let token = text(&made.json()?, "/token").to_owned();
        for receiver in ["closed", "nowhere"] {
            // Not by the command line: that waits for a delivery which never succeeds.
            api.send("POST", &format!("/v1/receivers/{receiver}/test"), None, true).await?;
        }
        eventually(PATIENCE, "failed attempts", async || {
            let one = api.get("/v1/receivers").await?;
            let all = one["receivers"].as_array().context("receivers")?;
            let failed = all
                .iter()
                .filter(|r| r["name"] != "heartwatch-canary" && r["last_outcome"].is_string());
            Ok((failed.count() >= 2).then_some(()))
        })
        .await?;
        let file = |name: &str| std::fs::read_to_string(controller.visible_state_dir().join(name));
        let own = std::fs::read_to_string(controller.token_file())?;
        let fleet = file("fleet-secret").unwrap_or_default();
        let canary = file("canary-secret")?;
        let key = file("api-key.pem")?;
        let hash = blake3::hash(token.as_bytes()).to_hex().to_string();
        let mut secrets: Vec<String> = (2..5).map(mark).collect();
        secrets.extend([signing, token, hash, own.trim().to_owned()]);
        secrets.extend(canary.trim().strip_prefix("whsec_").map(str::to_owned));
        secrets.extend(fleet.lines().filter_map(|line| line.rsplit(':').next()).map(str::to_owned));
        secrets.extend(key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
        ensure!(secrets.iter().all(|s| s.len() > 8 || s.is_empty()), "{secrets:?}");
        secrets.retain(|secret| !secret.is_empty());
        for path in GETS {
            let (status, answer) = api.get_text(path).await?;
            ensure!(status == 200 || path == "/readyz", "GET {path}: {status} {answer}");
            let found = secrets.iter().find(|secret| answer.contains(*secret));
            ensure!(found.is_none(), "GET {path} holds {found:?}:\n{answer}");
        }
        let log = controller.log();
        let found = secrets.iter().find(|secret| log.contains(*secret));
        ensure!(found.is_none(), "the log holds {found:?}:\n{log}");
        Ok(())
    })
    .await;
}
