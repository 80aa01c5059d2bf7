//! Somebody else's client: thirty lines of Python, written from the byte table alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use heartwatch_common::auth::create_secret_file;
use heartwatch_tests::world::{PATIENCE, Process, World, eventually, host_id, skip, story, text};

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(clients().join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn has_python(test: &str) -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        skip(test, "python3 is missing: apt-get install -y python3");
    }
    found
}

#[test]
fn a_blake3_of_another_hand_agrees_with_ours() {
    if !has_python("a_blake3_of_another_hand_agrees_with_ours") {
        return;
    }
    let out = python("check.py").arg(heartwatch_tests::vectors::path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_written_from_the_byte_table_is_alive_while_it_beats_and_down_when_it_stops() {
    if !has_python("a_client_written_from_the_byte_table_is_alive") {
        return;
    }
    story(async |world: &World| {
        let lines = std::fs::read_to_string(clients().join("beat.py"))?.lines().count();
        ensure!(lines <= 30, "it claims thirty lines, but has {lines}");
        let controller = world.controller().start().await?;
        let host = host_id("python");
        // Provisioned as an operator would.
        let key = heartwatch_tests::world::CtlOutput::of(
            "heartwatchctl",
            &["key", &host.to_string(), "--config", &controller.config().to_string_lossy()],
        )?
        .ok()?;
        ensure!(key.trim() == *world.key(host).to_text(), "expected the derived key, seen {key}");
        let key_file = world.path("python.key");
        create_secret_file(&key_file, key.trim())?;
        let mut command = python("beat.py");
        command
            .arg("127.0.0.1")
            .arg(controller.beats().port().to_string())
            .arg(&key_file)
            .arg(host.to_string())
            .arg("8");
        let mut client = Process::start("beat.py", &mut command, &world.path("beat.log"))?;
        eventually(PATIENCE, "heartwatchctl hosts shows it alive", || async {
            let table = controller.ctl(&["hosts"])?.ok()?;
            let row = table.lines().find(|l| l.contains("python")).unwrap_or_default();
            ensure!(row.contains("alive"), "{table}");
            Ok(Some(()))
        })
        .await?;
        client.says("silent", PATIENCE).await?;
        eventually(PATIENCE, "heartwatchctl hosts shows it down", || async {
            let table = controller.ctl(&["hosts"])?.ok()?;
            let row = table.lines().find(|l| l.contains("python")).unwrap_or_default();
            ensure!(row.contains("down"), "{table}");
            Ok(Some(()))
        })
        .await?;
        let down = controller.api()?.wait_event(host, "host.down", PATIENCE).await?;
        ensure!(text(&down, "/data/cause") == "silent", "its socket is open, so: {down:#}");
        Ok(())
    })
    .await;
}
