//! What cannot start says why, in words that name the setting or the file, and with the right exit code.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Result, ensure};
use heartwatch_tests::world::{CtlOutput, PATIENCE, Process, World, binary, host_id, story};

const EXIT_FAILURE: i32 = 1;
const EXIT_USAGE: i32 = 64;
const EXIT_CONFIG: i32 = 78;

/// Runs what must not stay up; answers exit code and everything that it said.
async fn refused(world: &World, program: &str, config: &std::path::Path) -> Result<(i32, String)> {
    let log = world.path(format!("refused-{program}.log"));
    if log.exists() {
        std::fs::remove_file(&log)?;
    }
    let mut command = Command::new(binary(program)?);
    command.arg("run").arg("--config").arg(config);
    let mut process = Process::start(program, &mut command, &log)?;
    let status = process.wait(PATIENCE).await?;
    Ok((status.code().unwrap_or(-1), process.log()))
}

async fn expect_refused(
    world: &World,
    program: &str,
    config: &std::path::Path,
    code: i32,
    words: &[&str],
) -> Result<()> {
    let (seen, said) = refused(world, program, config).await?;
    ensure!(seen == code, "expected exit {code} from {program}, seen {seen}:\n{said}");
    for word in words {
        ensure!(said.contains(word), "expected `{word}` in what {program} says, seen:\n{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_a_bad_config_says_which_setting_and_exits_78() {
    story(async |world: &World| {
        let good = world.controller().config();
        let cases = [
            ("nmae = \"x\"\n".to_owned() + &good, "nmae"),
            (good.replace("[detector]", "[detector]\nprobe_spacing = 200"), "probe_spacing"),
            (good.replace("[detector]", "[detector]\nprobe_spacing = \"2 parsecs\""), "parsecs"),
            (good.replace("[detector]", "[detector]\nprobes = 0"), "detector.probes"),
            (good.replace("[detector]", "[detector]\ntimeout_min = \"50s\""), "timeout_min"),
        ];
        for (text, word) in cases {
            let path = world.write("bad.toml", &text)?;
            expect_refused(world, "heartwatch-controller", &path, EXIT_CONFIG, &[word]).await?;
            let check = CtlOutput::of(
                "heartwatch-controller",
                &["check-config", "--config", &path.to_string_lossy()],
            )?;
            ensure!(check.code == EXIT_CONFIG, "check-config: expected 78, seen {check:?}");
            ensure!(check.stderr.contains(word), "check-config names {word}: {check:?}");
        }
        let none = world.path("none.toml");
        expect_refused(world, "heartwatch-controller", &none, EXIT_CONFIG, &["none.toml"]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_of_all_keys_is_printed_even_beside_a_bad_config() {
    story(async |world: &World| {
        let bad = world.write("bad.toml", "nmae = \"x\"\n")?;
        let of = |args: &[&str]| CtlOutput::of("heartwatch-controller", args);
        let text = of(&["config", "--reference", "--config", &bad.to_string_lossy()])?.ok()?;
        ensure!(text == heartwatch_controller::config::reference::markdown(), "seen:\n{text}");
        let nothing = of(&["config"])?;
        ensure!(nothing.code == EXIT_USAGE, "expected exit 64 without --reference: {nothing:?}");
        ensure!(nothing.stderr.contains("--reference"), "it says what is missing: {nothing:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_config_prints_the_settings_in_force_as_a_file_that_means_the_same() {
    story(async |world: &World| {
        let path = world.controller().detector("probes", "7").write()?;
        let print = |path: &std::path::Path| {
            CtlOutput::of(
                "heartwatch-controller",
                &["check-config", "--config", &path.to_string_lossy()],
            )?
            .ok()
        };
        let first = print(&path)?;
        ensure!(first.contains("probes = 7"), "expected the setting, seen:\n{first}");
        ensure!(first.contains("probe_spacing"), "expected defaults too, seen:\n{first}");
        let again = print(&world.write("again.toml", &first)?)?;
        ensure!(first == again, "expected the same again, seen:\n{first}\nand\n{again}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    story(async |world: &World| {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0")?;
        let address = udp.local_addr()?.to_string();
        let config = world.controller().listen(&address).write()?;
        expect_refused(world, "heartwatch-controller", &config, EXIT_FAILURE, &[&address]).await?;
        let tcp = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = tcp.local_addr()?.to_string();
        let config = world.controller().api_listen(&address).write()?;
        expect_refused(world, "heartwatch-controller", &config, EXIT_FAILURE, &[&address]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_read_or_that_everybody_can_read_is_refused() {
    story(async |world: &World| {
        let nowhere = world.path("no-such-folder").join("fleet-secret");
        let line = format!("fleet_secret_file = \"{}\"", nowhere.display());
        let config = world.controller().named("nowhere").top(&line).write()?;
        let (code, said) = refused(world, "heartwatch-controller", &config).await?;
        ensure!([EXIT_CONFIG, EXIT_FAILURE].contains(&code), "seen exit {code}:\n{said}");
        ensure!(said.contains("no-such-folder"), "expected the file's name, seen:\n{said}");

        let garbage = world.write_secret("garbage-secret", "this is no secret")?;
        let line = format!("fleet_secret_file = \"{}\"", garbage.display());
        let config = world.controller().named("garbage").top(&line).write()?;
        let (code, said) = refused(world, "heartwatch-controller", &config).await?;
        ensure!([EXIT_CONFIG, EXIT_FAILURE].contains(&code), "seen exit {code}:\n{said}");
        ensure!(said.contains("garbage-secret"), "expected the file's name, seen:\n{said}");

        let config = world.controller().named("open").write()?;
        let secret = world.path("open").join("fleet-secret");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644))?;
        let (code, said) = refused(world, "heartwatch-controller", &config).await?;
        ensure!(code != 0, "expected a refusal, seen exit 0:\n{said}");
        ensure!(said.contains("chmod 600"), "expected what to do, seen:\n{said}");

        let config = world.agent("a").beats_to("127.0.0.1:9".parse()?).write()?;
        let key = world.path("agent-a").join("key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o604))?;
        let (code, said) = refused(world, "heartwatch-agent", &config).await?;
        ensure!(code != 0, "expected a refusal, seen exit 0:\n{said}");
        ensure!(said.contains("chmod 600"), "expected what to do, seen:\n{said}");
        std::fs::remove_file(&key)?;
        let (code, said) = refused(world, "heartwatch-agent", &config).await?;
        ensure!(code != 0 && said.contains("key"), "expected the key file's name:\n{said}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_secret_of_the_wrong_form_is_refused_at_start() {
    story(async |world: &World| {
        let file = world.write_secret("hook", "not-a-secret")?;
        let config = world.controller().receiver("r", "http://127.0.0.1:9/", &file).write()?;
        let (code, said) = refused(world, "heartwatch-controller", &config).await?;
        ensure!(code != 0, "expected a refusal, seen exit 0:\n{said}");
        ensure!(said.contains("hook") || said.contains("whsec_"), "expected why, seen:\n{said}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_another_controller_holds_is_not_touched() {
    story(async |world: &World| {
        let mut first = world.controller().start().await?;
        let second = world.controller().config();
        let path = world.write("second.toml", &second)?;
        let (code, said) = refused(world, "heartwatch-controller", &path).await?;
        ensure!(code == EXIT_FAILURE, "expected exit 1, seen {code}:\n{said}");
        let names = said.contains("lock") || said.contains("another controller");
        ensure!(names, "expected that another controller holds the store, seen:\n{said}");
        ensure!(first.process()?.ended()?.is_none(), "the first one goes on");
        let agent = world.agent("a").beats_to(first.beats()).start()?;
        first.api()?.wait_state(agent.host(), "alive").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_bad_config_says_which_setting_and_exits_78() {
    story(async |world: &World| {
        let setup = world.agent("bad").beats_to("127.0.0.1:9".parse()?);
        setup.write()?;
        let good = setup.config();
        let cases = [
            ("intervall = \"1s\"\n".to_owned() + &good, "intervall"),
            (good.replace("interval = \"200ms\"", "interval = 200"), "interval"),
            (good.replace("interval = \"200ms\"", "interval = \"1ms\""), "interval"),
            (good.replace(&host_id("bad").to_string(), "xyz"), "host_id"),
            (good.replace("127.0.0.1:9", "127.0.0.1:none"), "none"),
        ];
        for (text, word) in cases {
            let path = world.write("bad-agent.toml", &text)?;
            expect_refused(world, "heartwatch-agent", &path, EXIT_CONFIG, &[word]).await?;
        }
        Ok(())
    })
    .await;
}

#[test]
fn a_command_line_that_makes_no_sense_exits_64() -> Result<()> {
    for program in ["heartwatch-agent", "heartwatch-controller", "heartwatchctl"] {
        let out = CtlOutput::of(program, &["frobnicate"])?;
        ensure!(out.code == EXIT_USAGE, "{program}: expected exit 64, seen {out:?}");
        let help = CtlOutput::of(program, &["--help"])?;
        ensure!(help.code == 0 && !help.stdout.is_empty(), "{program} --help: {help:?}");
        let version = CtlOutput::of(program, &["--version"])?;
        ensure!(version.code == 0, "{program} --version: {version:?}");
    }
    Ok(())
}
