//! How hosts get keys, by real binaries and real TLS: enrolment, clones, renewal, revocation.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use heartwatch_common::id::HostId;
use heartwatch_tests::world::{
    Controller, CtlOutput, PATIENCE, Process, World, binary, eventually, number, story, text,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A machine with the agent installed and nothing configured.
struct Bare<'w> {
    world: &'w World,
    name: String,
    dir: PathBuf,
    /// Further lines of its config.
    lines: String,
}

impl<'w> Bare<'w> {
    fn new(world: &'w World, name: &str, machine_id: &str) -> Result<Self> {
        let dir = world.path(name);
        std::fs::create_dir_all(dir.join("run"))?;
        let bare = Self { world, name: name.to_owned(), dir, lines: String::new() };
        bare.be(machine_id)?;
        bare.configure()?;
        Ok(bare)
    }

    /// Its machine id from now on.
    fn be(&self, machine_id: &str) -> Result<()> {
        Ok(std::fs::write(self.dir.join("machine-id"), format!("{machine_id}\n"))?)
    }

    fn configure(&self) -> Result<()> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let config = format!(
            "name = {:?}\ninterval = \"200ms\"\nack_every = 5\nstate_dir = {:?}\nruntime_dir = {:?}\n\
             machine_id_file = {:?}\nlog_level = \"debug\"\n{}\n[labels]\npool = \"mine\"\nos = \"x\"\n",
            self.name,
            at("state"),
            at("run"),
            at("machine-id"),
            self.lines
        );
        Ok(std::fs::write(self.dir.join("agent.toml"), config)?)
    }

    fn verb(&self, args: &[&str]) -> Result<CtlOutput> {
        let config = self.dir.join("agent.toml").display().to_string();
        CtlOutput::of("heartwatch-agent", &[args, &["--config", &config]].concat())
    }

    fn enroll(&self, controller: &Controller, token: &Path) -> Result<CtlOutput> {
        let token = token.display().to_string();
        self.verb(&["enroll", "--controller", &controller.https(), "--token-file", &token])
    }

    fn id(&self) -> Result<HostId> {
        Ok(self.verb(&["id"])?.ok()?.trim().parse()?)
    }

    fn start(&self) -> Result<Process> {
        let mut command = std::process::Command::new(binary("heartwatch-agent")?);
        command.arg("run").arg("--config").arg(self.dir.join("agent.toml"));
        let log = self.world.path(format!("{}.log", self.name));
        Process::start(&self.name, &mut command, &log)
    }

    fn status(&self) -> Result<Value> {
        self.verb(&["status", "--json"])?.json()
    }
}

const ONE: &str = "11111111111111111111111111111111";
const TWO: &str = "22222222222222222222222222222222";

/// Makes a join token and puts it into a file.
fn token(world: &World, controller: &Controller, name: &str, args: &[&str]) -> Result<PathBuf> {
    let all = [&["token", "create", "--name", name], args].concat();
    let made = controller.ctl(&all)?.ok()?;
    world.write_secret(&format!("token-{name}"), made.trim())
}

fn left(controller: &Controller, name: &str) -> Result<u64> {
    let all = controller.ctl(&["--json", "token", "list"])?.json()?;
    let tokens = all["tokens"].as_array().cloned().unwrap_or_default();
    let one = tokens.iter().find(|t| t["name"] == name).cloned().unwrap_or_default();
    Ok(number(&one, "/uses_left"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_commands_make_a_bare_host_beat_with_the_tokens_labels() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let token = token(world, &controller, "t", &["--uses", "2", "--labels", "pool=a,rack=7"])?;
        let bare = Bare::new(world, "bare", ONE)?;
        ensure!(bare.verb(&["configured"])?.ok().is_err(), "it is not set up yet");
        let said = bare.enroll(&controller, &token)?.ok()?;
        ensure!(said.contains("enrolled as host") && said.contains("next:"), "{said}");
        let host = bare.id()?;
        ensure!(said.contains(&host.to_string()), "{said}");
        bare.verb(&["configured"])?.ok()?;
        let told = api.wait_event(host, "host.enrolled", PATIENCE).await?;
        ensure!(text(&told, "/data/enrolment/how") == "new", "{told:#}");
        ensure!(api.metric("heartwatch_enrolments_total", &["outcome=\"new\""]).await? == 1.0);
        // Known before it beats, as expected.
        ensure!(api.state(host).await? == "pending");
        let _agent = bare.start()?;
        api.wait_state(host, "alive").await?;
        eventually(PATIENCE, "the token's labels, over the agent's own", async || {
            let shown = api.get(&format!("/v1/hosts/{host}")).await?;
            let labels = &shown["labels"];
            let right = labels["pool"] == "a" && labels["rack"] == "7" && labels["os"] == "x";
            Ok(right.then_some(()))
        })
        .await?;
        ensure!(left(&controller, "t")? == 1);
        // Enrolling again while it beats: it proves its key, stays who it is, and pays nothing.
        bare.enroll(&controller, &token)?.ok()?;
        ensure!(bare.id()? == host && left(&controller, "t")? == 1);
        // A broken enrolment is replaced, and kept aside.
        let enrolment = bare.dir.join("state/enrolment");
        std::fs::write(&enrolment, "{ \"host\": ")?;
        let told = bare.verb(&["id"])?.ok().err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(told.contains("`heartwatch-agent enroll`"), "{told}");
        let said = bare.enroll(&controller, &token)?.ok()?;
        ensure!(said.contains("enrolment.broken"), "{said}");
        ensure!(bare.id()? == host && left(&controller, "t")? == 1);
        // Other labels cost a use, and a token that is used up gives none.
        let other = self::token(world, &controller, "other", &["--labels", "pool=b"])?;
        bare.enroll(&controller, &other)?.ok()?;
        ensure!(left(&controller, "other")? == 0);
        bare.enroll(&controller, &other)?.ok()?;
        let used = Bare::new(world, "used", TWO)?;
        let said = used.enroll(&controller, &other)?.ok();
        ensure!(said.is_err_and(|e| format!("{e:#}").contains("is used up")));
        api.wait_state(host, "alive").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_enrols_is_told_where_to_beat_to_if_the_config_says_so() {
    story(async |world: &World| {
        // Not by the name of the URL by which it enrols.
        let controller = world.controller().top("beat_addresses = [\"localhost\"]").start().await?;
        let token = token(world, &controller, "t", &[])?;
        let bare = Bare::new(world, "bare", ONE)?;
        bare.enroll(&controller, &token)?.ok()?;
        let enrolment = std::fs::read_to_string(bare.dir.join("state/enrolment"))?;
        let told: Value = serde_json::from_str(&enrolment)?;
        let expected = format!("localhost:{}", controller.beats().port());
        ensure!(told["controllers"] == serde_json::json!([expected]), "{enrolment}");
        let _agent = bare.start()?;
        controller.api()?.wait_state(bare.id()?, "alive").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tokens_and_wrong_controllers_are_refused_in_clear_words() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let good = token(world, &controller, "good", &["--uses", "1"])?;
        let bare = Bare::new(world, "bare", ONE)?;
        let refused = |file: &Path, words: &str| -> Result<()> {
            let said = bare.enroll(&controller, file)?;
            let told = said.ok().err().map(|e| format!("{e:#}")).unwrap_or_default();
            ensure!(told.contains(words), "expected `{words}`, seen: {told}");
            ensure!(!bare.dir.join("state/key").exists(), "a key in spite of: {told}");
            Ok(())
        };
        let text = std::fs::read_to_string(&good)?;
        let other_pin = format!("{}_{}", &text[..37], "0".repeat(64));
        let other_pin = world.write_secret("other-pin", &other_pin)?;
        refused(&other_pin, "is not the controller that the join token is for")?;
        let unknown = format!("hwj1_{}_{}", "0".repeat(32), &text.trim()[38..]);
        let unknown = world.write_secret("unknown", &unknown)?;
        refused(&unknown, "not known here")?;
        let no_pin = world.write_secret("no-pin", &text[..37])?;
        refused(&no_pin, "--ca FILE")?;
        let revoked = token(world, &controller, "revoked", &[])?;
        controller.ctl(&["token", "revoke", "revoked"])?.ok()?;
        refused(&revoked, "was revoked")?;
        let short = token(world, &controller, "short", &["--ttl", "1ms"])?;
        refused(&short, "has expired")?;
        let open = world.path("open");
        std::fs::write(&open, &text)?;
        refused(&open, "chmod 600")?;
        // By the authority that signed it, which here is itself, the same token without its pin is good.
        let ca = controller.certificate().display().to_string();
        let (url, file) = (controller.https(), no_pin.display().to_string());
        bare.verb(&["enroll", "--controller", &url, "--token-file", &file, "--ca", &ca])?.ok()?;
        let other = Bare::new(world, "other", TWO)?;
        let said = other.enroll(&controller, &good)?.ok();
        let told = said.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(told.contains("is used up"), "{told}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_are_refused_or_get_an_id_of_their_own() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let strict = token(world, &controller, "strict", &["--uses", "9"])?;
        let lax = token(world, &controller, "lax", &["--uses", "9", "--clones"])?;
        let first = Bare::new(world, "first", ONE)?;
        first.enroll(&controller, &strict)?.ok()?;
        let host = first.id()?;
        let _agent = first.start()?;
        api.wait_state(host, "alive").await?;
        // The same machine id elsewhere.
        let clone = Bare::new(world, "clone", ONE)?;
        let said = clone.enroll(&controller, &strict)?.ok();
        let told = said.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(told.contains("is taken") && told.contains("--clones"), "{told}");
        ensure!(left(&controller, "strict")? == 8, "a refusal takes no use");
        clone.enroll(&controller, &lax)?.ok()?;
        let own = clone.id()?;
        ensure!(own != host);
        let _second = clone.start()?;
        api.wait_state(own, "alive").await?;
        // A copy of its disk, on a machine with an id of its own, says so and does not beat.
        let mut copy = Bare::new(world, "copy", TWO)?;
        std::fs::create_dir(copy.dir.join("state"))?;
        for file in ["key", "enrolment"] {
            std::fs::copy(first.dir.join("state").join(file), copy.dir.join("state").join(file))?;
        }
        let told = copy.verb(&["run"])?.ok().err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(told.contains("belongs to another machine"), "{told}");
        // Left a token, it enrols as itself.
        copy.lines = format!("join_token_file = {:?}\n", strict.display().to_string());
        copy.configure()?;
        let _third = copy.start()?;
        eventually(PATIENCE, "an enrolment of its own", async || {
            Ok((copy.id()? != host).then_some(()))
        })
        .await?;
        api.wait_state(copy.id()?, "alive").await?;
        ensure!(api.state(host).await? == "alive" && api.state(own).await? == "alive");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_renewed_while_its_host_beats_and_nobody_suspects_it() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let token = token(world, &controller, "t", &[])?;
        let bare = Bare::new(world, "bare", ONE)?;
        bare.enroll(&controller, &token)?.ok()?;
        let host = bare.id()?;
        let mut agent = bare.start()?;
        api.wait_state(host, "alive").await?;
        let before = bare.status()?;
        controller.ctl(&["secrets", "rotate"])?.ok()?;
        let early = controller.ctl(&["secrets", "retire", "1"])?.ok();
        let told = early.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(told.is_empty() || told.contains("still beat"), "{told}");
        let on = |id: u64| -> Result<u64> {
            let all = controller.ctl(&["--json", "secrets"])?.json()?;
            let secrets = all["secrets"].as_array().cloned().unwrap_or_default();
            let one = secrets.iter().find(|s| number(s, "/key_id") == id).cloned();
            Ok(number(&one.unwrap_or_default(), "/hosts"))
        };
        eventually(PATIENCE, "the host under the new key", async || {
            Ok((on(2)? >= 1 && on(1)? == 0).then_some(()))
        })
        .await?;
        eventually(PATIENCE, "the old key forgotten", async || {
            Ok((!bare.dir.join("state/key.previous").exists()).then_some(()))
        })
        .await?;
        ensure!(std::fs::read_to_string(bare.dir.join("state/key"))?.starts_with("hwk1:2:"));
        controller.ctl(&["secrets", "retire", "1"])?.ok()?;
        let after = bare.status()?;
        ensure!(after["boot"] == before["boot"], "the same life");
        let lost = api.metric("heartwatch_beats_lost_total", &[]).await?;
        ensure!(lost == 0.0, "{lost} beats are missing in its numbers");
        let kinds = api.kinds_of(host).await?;
        ensure!(!kinds.iter().any(|k| k == "host.suspect"), "{kinds:?}");
        // Away while its secret was retired: it still finds its way back.
        agent.signal(Signal::SIGTERM)?;
        agent.stop(PATIENCE).await?;
        api.wait_state(host, "left").await?;
        let _agent = bare.start()?;
        api.wait_state(host, "alive").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_host_is_believed_no_more_and_stays_out_over_a_restart() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        controller.pin_ports()?;
        let api = controller.api()?;
        let token = token(world, &controller, "t", &["--uses", "9"])?;
        let bare = Bare::new(world, "bare", ONE)?;
        bare.enroll(&controller, &token)?.ok()?;
        let host = bare.id()?;
        let id = host.to_string();
        let mut agent = bare.start()?;
        api.wait_state(host, "alive").await?;
        controller.ctl(&["hosts", "revoke", &id, "--reason", "lost"])?.ok()?;
        let gone = api.wait_event(host, "host.forgotten", PATIENCE).await?;
        ensure!(text(&gone, "/data/reason").contains("lost"), "{gone:#}");
        let refused = async |least: f64| {
            eventually(PATIENCE, "its beats refused as revoked", async || {
                let n = controller_metric(&api).await?;
                Ok((n > least).then_some(n))
            })
            .await
        };
        let n = refused(0.0).await?;
        refused(n).await?;
        ensure!(api.hosts().await?.is_empty());
        // Its own agent is told, and so is who asks for it.
        agent.signal(Signal::SIGTERM)?;
        agent.stop(PATIENCE).await?;
        agent = bare.start()?;
        eventually(PATIENCE, "the agent knows that it is revoked", async || {
            let shown = bare.verb(&["status"])?.ok().unwrap_or_default();
            Ok((shown.contains("REVOKED") && shown.contains("lost")).then_some(()))
        })
        .await?;
        let log = std::fs::read_to_string(world.path("bare.log"))?;
        ensure!(log.contains("was revoked by the cluster's operators"), "{log}");
        let config = controller.config().display().to_string();
        for verb in [
            &["why", "bare"][..],
            &["host", &id],
            &["forget", "bare"],
            &["--config", &config, "key", &id],
        ] {
            let told = controller.ctl(verb)?.ok().err().map(|e| format!("{e:#}"));
            let told = told.unwrap_or_default();
            ensure!(told.contains("lost") && told.contains("--lift"), "{verb:?}: {told}");
        }
        let list = world.write("hosts.csv", &format!("id,name,labels\n{id},bare,\n"))?;
        let said = controller.ctl(&["import", &list.display().to_string()])?.ok()?;
        ensure!(said.contains("1 left out, as they are revoked"), "{said}");
        ensure!(api.hosts().await?.is_empty());
        let said = controller.ctl(&["hosts", "revoke", "bare", "--reason", "again"])?.ok()?;
        ensure!(said.contains("revoked already") && said.contains("lost"), "{said}");
        let listed = controller.ctl(&["hosts", "enrolled"])?.ok()?;
        ensure!(listed.contains("bare") && listed.contains("lost"), "{listed}");
        // Not even a token lets it in, until somebody says so.
        let said = bare.enroll(&controller, &token)?.ok();
        let told = said.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(told.contains("was revoked") && told.contains("--lift"), "{told}");
        controller.stop().await?;
        controller.start().await?;
        let api = controller.api()?;
        eventually(PATIENCE, "still refused after a restart", async || {
            Ok((controller_metric(&api).await? > 0.0).then_some(()))
        })
        .await?;
        ensure!(api.hosts().await?.is_empty());
        let lifted = controller.ctl(&["hosts", "revoke", "bare", "--lift"])?.ok()?;
        ensure!(lifted.contains("may enrol again"), "{lifted}");
        bare.enroll(&controller, &token)?.ok()?;
        agent.signal(Signal::SIGTERM)?;
        agent.stop(PATIENCE).await?;
        let _agent = bare.start()?;
        api.wait_state(host, "alive").await
    })
    .await;
}

async fn controller_metric(api: &heartwatch_tests::world::Api) -> Result<f64> {
    api.metric("heartwatch_datagrams_rejected_total", &["reason=\"revoked\""]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_made_offline_beats() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let out = world.path("made");
        let config = controller.config().display().to_string();
        let (beats, https) = (controller.beats().to_string(), controller.https());
        let made = controller.ctl(&[
            "--config",
            &config,
            "enroll",
            "--offline",
            "--count",
            "1",
            "--controller",
            &beats,
            "--renew-at",
            &https,
            "--labels",
            "pool=img",
            "--out",
            &out.display().to_string(),
        ])?;
        made.ok()?;
        let list = out.join("hosts.json").display().to_string();
        controller.ctl(&["import", &list])?.ok()?;
        let hosts = api.hosts().await?;
        ensure!(hosts.len() == 1 && text(&hosts[0], "/labels/pool") == "img", "{hosts:#?}");
        let host: HostId = text(&hosts[0], "/id").parse()?;
        let bare = Bare::new(world, "image", ONE)?;
        std::fs::create_dir(bare.dir.join("state"))?;
        for file in ["key", "enrolment"] {
            std::fs::copy(
                out.join(host.to_string()).join(file),
                bare.dir.join("state").join(file),
            )?;
        }
        let _agent = bare.start()?;
        api.wait_state(host, "alive").await?;
        // It belongs to this machine from now on.
        bare.be(TWO)?;
        let told = bare.verb(&["run"])?.ok().err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(told.contains("belongs to another machine"), "{told}");
        Ok(())
    })
    .await;
}
