//! Fleet secrets that somebody edits by hand, while hosts beat under them.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use heartwatch_tests::world::{
    Agent, Controller, PATIENCE, World, eventually, number, story, text,
};
use nix::sys::signal::Signal;

/// How many hosts beat under a secret; `None`: there is no such secret.
fn on(controller: &Controller, id: u64) -> Result<Option<u64>> {
    let all = controller.ctl(&["--json", "secrets"])?.json()?;
    let secrets = all["secrets"].as_array().cloned().unwrap_or_default();
    let one =
        secrets.iter().find(|s| number(s, "/key_id") == id && text(s, "/state") != "renew-only");
    Ok(one.map(|s| number(s, "/hosts")))
}

fn refused(controller: &Controller, args: &[&str]) -> Result<String> {
    let said = controller.ctl(args)?.ok();
    Ok(said.err().map(|e| format!("{e:#}")).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_taken_out_of_its_file_silences_nobody_unless_somebody_says_so() {
    story(async |world: &World| {
        let mut controller = world.controller().start().await?;
        let api = controller.api()?;
        let agent = world.agent("steady").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        let file = controller.state_dir().join("fleet-secret");
        let before = std::fs::read_to_string(&file)?;
        let used = number(&controller.ctl(&["--json", "secrets"])?.json()?, "/secrets/0/key_id");
        ensure!(on(&controller, used)? == Some(1));
        let current = refused(&controller, &["secrets", "retire", &used.to_string(), "--force"])?;
        ensure!(current.contains("secrets rotate") && !current.contains("--force`"), "{current}");

        let fresh = controller.ctl(&["secret", "new", "--key-id", "9"])?.ok()?;
        std::fs::write(&file, &fresh)?;
        for verb in ["reload", "rotate"] {
            let told = refused(&controller, &["secrets", verb])?;
            ensure!(told.contains("by which 1 host lately came through"), "{verb}: {told}");
            ensure!(told.contains("secrets reload --force"), "{verb}: {told}");
        }
        controller.process()?.signal(Signal::SIGHUP)?;
        eventually(PATIENCE, "a refusal in the log", async || {
            Ok(controller
                .log()
                .contains("SIGHUP: the fleet secrets stay as they were")
                .then_some(()))
        })
        .await?;
        ensure!(on(&controller, used)? == Some(1) && on(&controller, 9)?.is_none());
        ensure!(std::fs::read_to_string(&file)? == fresh, "the file is its editor's");

        // Beside the old line it is taken, by SIGHUP too.
        std::fs::write(&file, format!("{fresh}{before}"))?;
        controller.process()?.signal(Signal::SIGHUP)?;
        eventually(PATIENCE, "the new secret beside the old one", async || {
            Ok((on(&controller, 9)?.is_some() && on(&controller, used)? == Some(1)).then_some(()))
        })
        .await?;
        ensure!(api.state(agent.host()).await? == "alive");
        let kinds = api.kinds_of(agent.host()).await?;
        ensure!(!kinds.iter().any(|k| k == "host.suspect"), "{kinds:?}");

        std::fs::write(&file, &fresh)?;
        controller.ctl(&["secrets", "reload", "--force"])?.ok()?;
        ensure!(on(&controller, used)?.is_none());
        api.wait_state(agent.host(), "down").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_somebody_puts_in_place_of_another_is_taken_up_at_a_reload() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let mut agent = world.agent("by-hand").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        let (boot, id) = (number(&agent.status()?, "/boot"), agent.host().to_string());
        let used = number(&controller.ctl(&["--json", "secrets"])?.json()?, "/secrets/0/key_id");
        controller.ctl(&["secrets", "rotate"])?.ok()?;
        let next = number(&controller.ctl(&["--json", "secrets"])?.json()?, "/secrets/0/key_id");
        let config = controller.config().display().to_string();
        let key = controller.ctl(&["--config", &config, "key", &id])?.ok()?;
        ensure!(key.starts_with(&format!("hwk1:{next}:")), "a key under the new secret");

        // What is no key changes nothing.
        let file = key_file(&agent)?;
        std::fs::write(&file, "no key\n")?;
        agent.reload()?;
        agent.process()?.says("the key was not read anew", PATIENCE).await?;
        ensure!(on(&controller, used)? == Some(1));

        std::fs::write(&file, &key)?;
        agent.reload()?;
        eventually(PATIENCE, "the host under the new secret", async || {
            Ok((on(&controller, next)? == Some(1) && on(&controller, used)? == Some(0))
                .then_some(()))
        })
        .await?;
        controller.ctl(&["secrets", "retire", &used.to_string()])?.ok()?;
        ensure!(number(&agent.status()?, "/boot") == boot, "it went on in the same life");
        ensure!(api.state(agent.host()).await? == "alive");
        let kinds = api.kinds_of(agent.host()).await?;
        ensure!(!kinds.iter().any(|k| k == "host.suspect"), "{kinds:?}");
        ensure!(std::fs::read_to_string(&file)? == key, "the file is as it was put there");
        Ok(())
    })
    .await;
}

/// Where an agent's config says that its key is.
fn key_file(agent: &Agent) -> Result<PathBuf> {
    let text = std::fs::read_to_string(agent.config())?;
    let line = text.lines().find_map(|line| line.strip_prefix("key_file = "));
    let path = line.context("the config names a key file")?.trim_matches('"').to_owned();
    Ok(PathBuf::from(path))
}
