//! The real binary against a controller of a few lines: what a colleague, a package and a service
//! manager rely on. Nothing here sleeps; every wait is for a datagram, a line or an exit, with a
//! limit.

#![expect(
    clippy::unwrap_used,
    reason = "this whole file is a test; the lint knows only #[test] functions"
)]

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use heartwatch_common::auth::{FleetSecret, HostKey, create_secret_file};
use heartwatch_common::id::{ControllerId, Epoch, Generation, HostId, KeyId};
use heartwatch_common::wire::{
    self, Ack, DATAGRAM_LEN_MAX, FLAG_ACK_WANTED, Field, Header, LeaveReason, Message, Probe, Stamp,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const HOST: HostId = HostId([0x42; 16]);
const PATIENCE: Duration = Duration::from_secs(20);

fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heartwatch-agent"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEARTWATCH") {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
    command
}

/// A folder with a config file and a key, and a socket that plays the controller.
struct World {
    dir: tempfile::TempDir,
    socket: UdpSocket,
    key: HostKey,
}

/// What the controller heard.
#[derive(Debug)]
struct Heard {
    from: SocketAddr,
    stamp: Stamp,
    asks: bool,
    what: What,
}

#[derive(Debug, PartialEq)]
enum What {
    Beat,
    Hello { name: String, labels: Vec<(String, String)> },
    Leave(LeaveReason),
    ProbeReply([u8; 16]),
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let key = FleetSecret::new(KeyId(1), [3; 32]).host_key(HOST, Generation(0));
        create_secret_file(&dir.path().join("key"), &key.to_text()).unwrap();
        let world = Self { dir, socket, key };
        world.write_config("a", "100ms");
        world
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    fn write_config(&self, zone: &str, interval: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "controllers = [\"{}\"]\nkey_file = \"{dir}/key\"\nhost_id = \"{HOST}\"\n\
             name = \"test-host\"\ninterval = \"{interval}\"\nstate_dir = \"{dir}/state\"\n\
             runtime_dir = \"{dir}/run\"\n[labels]\nzone = \"{zone}\"\n",
            self.socket.local_addr().unwrap()
        );
        std::fs::write(self.config(), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Output {
        agent().args(arguments).arg("--config").arg(self.config()).output().unwrap()
    }

    fn start(&self, reason: Option<&str>) -> Running {
        let mut command = agent();
        command.args(["run", "--config"]).arg(self.config()).stderr(Stdio::piped());
        if let Some(reason) = reason {
            command.env("HEARTWATCH_LEAVE_REASON", reason);
        }
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Running { child, log }
    }

    fn hear(&self) -> Heard {
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let (len, from) = self.socket.recv_from(&mut buffer).expect("a datagram in time");
        let datagram = wire::decode(&buffer[..len]).unwrap();
        assert!(self.key.verify(&datagram));
        let what = match datagram.message {
            Message::Beat(_) => What::Beat,
            Message::Hello(hello) => {
                let mut name = String::new();
                let mut labels = Vec::new();
                for field in hello.fields() {
                    match field {
                        Field::Name(n) => name = n.to_owned(),
                        Field::Label(k, v) => labels.push((k.to_owned(), v.to_owned())),
                        _ => {}
                    }
                }
                What::Hello { name, labels }
            }
            Message::Leave(leave) => What::Leave(leave.reason),
            Message::ProbeReply(reply) => What::ProbeReply(reply.nonce),
            other => panic!("not from an agent: {other:?}"),
        };
        let stamp = *datagram.message.stamp().unwrap();
        Heard { from, stamp, asks: datagram.header.flags & FLAG_ACK_WANTED != 0, what }
    }

    /// Listens until something of that kind comes, acking what asks on the way.
    fn hear_until(&self, mut wanted: impl FnMut(&Heard) -> bool) -> Heard {
        for _ in 0..2_000 {
            let heard = self.hear();
            if heard.asks {
                self.ack(&heard);
            }
            if wanted(&heard) {
                return heard;
            }
        }
        panic!("it never came");
    }

    fn send(&self, to: SocketAddr, mut bytes: wire::Fixed) {
        self.key.seal(&mut bytes);
        self.socket.send_to(&bytes, to).unwrap();
    }

    fn header(&self) -> Header {
        Header { host: HOST, key_id: KeyId(1), generation: Generation(0), flags: 0 }
    }

    fn ack(&self, heard: &Heard) {
        let ack = Ack {
            boot: heard.stamp.boot,
            seq: heard.stamp.seq,
            echoed_sent: heard.stamp.sent,
            interval: Duration::from_millis(150),
            epoch: Epoch(77),
            controller: ControllerId(5),
            cadence: 2,
            lease: Duration::ZERO,
        };
        self.send(heard.from, ack.encode(&self.header()));
    }
}

/// A running agent, killed if the test ends early.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Running {
    fn log_line(&mut self, part: &str) -> String {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            if line.contains(part) {
                return line;
            }
            line.clear();
        }
        panic!("the log ended without `{part}`");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn an_agent_lives_a_whole_life() {
    let world = World::new();
    let mut running = world.start(None);
    let hello = world.hear_until(|h| h.what != What::Beat);
    let labels = |zone: &str| vec![("zone".to_owned(), zone.to_owned())];
    assert_eq!(hello.what, What::Hello { name: "test-host".to_owned(), labels: labels("a") });
    let line = running.log_line("beating to ");
    assert!(line.contains(&world.socket.local_addr().unwrap().to_string()), "{line}");

    // It echoes the epoch and takes the assigned interval.
    let slow = Duration::from_millis(150).mul_f64(0.75);
    let beat = world.hear_until(|h| h.what == What::Beat && h.stamp.gap >= slow);
    assert_eq!(beat.stamp.epoch, Epoch(77));

    // It answers a probe.
    let (controller, epoch) = (ControllerId(5), Epoch(77));
    let probe = Probe { boot: beat.stamp.boot, number: 1, controller, epoch, nonce: [9; 16] };
    world.send(beat.from, probe.encode(&world.header()));
    world.hear_until(|h| h.what == What::ProbeReply([9; 16]));

    // It tells its status.
    let output = world.command(&["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["host"], HOST.to_string());
    assert_eq!(status["controllers"][0]["heard"], true);
    assert_eq!(status["controllers"][0]["assigned_interval_ms"], 150.0);
    assert!(status["controllers"][0]["rtt_last_ms"].as_f64().unwrap() < 5_000.0);
    let output = world.command(&["status"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("test-host") && text.contains("round trip"), "{text}");

    // It reloads: first a config that cannot be, then one that can.
    std::fs::write(world.config(), "intervall = 1").unwrap();
    running.signal(Signal::SIGHUP);
    assert!(running.log_line("was not reloaded").contains("intervall"));
    world.write_config("b", "100ms");
    running.signal(Signal::SIGHUP);
    let renewed = What::Hello { name: "test-host".to_owned(), labels: labels("b") };
    world.hear_until(|h| h.what == renewed);

    // It says goodbye twice and ends.
    running.signal(Signal::SIGTERM);
    for _ in 0..2 {
        world.hear_until(|h| h.what == What::Leave(LeaveReason::Shutdown));
    }
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert!(!world.dir.path().join("run/agent.sock").exists());

    // Its next life has a higher number, and may leave for another reason.
    let mut second = world.start(Some("restart"));
    let hello = world.hear_until(|h| h.stamp.boot > beat.stamp.boot);
    assert_eq!(hello.stamp.seq.0, 1);
    second.log_line("beating to ");
    second.signal(Signal::SIGINT);
    world.hear_until(|h| h.what == What::Leave(LeaveReason::Restart));
    assert_eq!(second.child.wait().unwrap().code(), Some(0));
}

#[test]
fn without_any_controller_in_reach_it_still_runs_and_leaves() {
    let world = World::new();
    let text = std::fs::read_to_string(world.config()).unwrap();
    let address = world.socket.local_addr().unwrap().to_string();
    std::fs::write(world.config(), text.replace(&address, "no-such-host.invalid")).unwrap();
    let mut running = world.start(None);
    running.log_line("cannot look up controller no-such-host.invalid");
    running.signal(Signal::SIGTERM);
    running.log_line("said goodbye");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn exit_codes_tell_usage_from_configuration() {
    let world = World::new();
    let code = |arguments: &[&str]| agent().args(arguments).output().unwrap().status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&["run", "--help"]), Some(0));
    assert_eq!(code(&[]), Some(64));
    assert_eq!(code(&["fly"]), Some(64));
    assert_eq!(code(&["run", "--interval", "5"]), Some(64), "no unit");
    assert_eq!(code(&["run", "--config", "/nonexistent"]), Some(78));
    assert_eq!(code(&["status", "--runtime-dir", "/nonexistent"]), Some(1));
    assert_eq!(world.command(&["run", "--key-file", "/nonexistent"]).status.code(), Some(78));
    assert_eq!(world.command(&["run", "--jitter", "0.9"]).status.code(), Some(78));
    let blocked = world.command(&["run", "--state-dir", "/dev/null/state"]);
    assert_eq!(blocked.status.code(), Some(78));
    let text = String::from_utf8(blocked.stderr).unwrap();
    assert!(text.contains("/dev/null/state"), "{text}");
}

#[test]
fn the_effective_config_is_printed_without_secrets_and_can_be_used_again() {
    let world = World::new();
    let first = world.command(&["check-config", "--label", "rack=r1"]);
    assert!(first.status.success(), "{first:?}");
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(text.contains("rack = \"r1\"") && text.contains("interval = \"100ms\""), "{text}");
    assert!(!text.contains("hwk1"), "{text}");
    std::fs::write(world.config(), &text).unwrap();
    let second = world.command(&["check-config"]);
    assert_eq!(String::from_utf8(second.stdout).unwrap(), text);
    std::fs::write(world.config(), "jitter = 2").unwrap();
    let bad = world.command(&["check-config"]);
    assert_eq!(bad.status.code(), Some(78));
    assert!(String::from_utf8(bad.stderr).unwrap().contains("jitter"));
}

/// It said `warning`, ended with 0, and the agent did not start.
#[test]
fn check_config_reads_the_files_that_are_named_and_tells_all_that_is_wrong() {
    let world = World::new();
    let dir = world.dir.path();
    let key = dir.join("key");
    let token = dir.join("token");
    std::fs::write(&key, "no key").unwrap();
    create_secret_file(&token, "hwj1_00").unwrap();
    let mut text = std::fs::read_to_string(world.config()).unwrap();
    let lines = format!("join_token_file = {token:?}\nenroll_url = \"https://c:2328\"\n");
    text.insert_str(0, &lines);
    std::fs::write(world.config(), &text).unwrap();
    let bad = world.command(&["check-config"]);
    let said = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(78), "{said}");
    for what in [key.to_str().unwrap(), token.to_str().unwrap(), "hwk1:KEY_ID", "join token looks"]
    {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert!(!said.contains("hwj1_00"), "{said}");
    let elsewhere = world.command(&["check-config", "--no-files"]);
    assert!(elsewhere.status.success(), "{elsewhere:?}");
    // What is still to be fetched may be missing.
    std::fs::remove_file(&key).unwrap();
    std::fs::remove_file(&token).unwrap();
    create_secret_file(&token, &format!("hwj1_{}", "00".repeat(16))).unwrap();
    let invited = text.lines().filter(|line| !line.starts_with("controllers"));
    let invited: Vec<&str> = invited.collect();
    for text in [&text, &invited.join("\n")] {
        std::fs::write(world.config(), text).unwrap();
        let waiting = world.command(&["check-config"]);
        assert!(waiting.status.success(), "{waiting:?}");
    }
}

/// The parser showed the line as it stood, in the log of every start.
#[test]
fn no_error_about_the_config_shows_a_secret() {
    let world = World::new();
    let key = format!("hwk1:1:0:{}", "2233".repeat(16));
    for line in
        [format!("key = {key:?}"), format!("key_file = {key:?}"), format!("interval = {key:?}")]
    {
        std::fs::write(world.config(), format!("\n{line}\n")).unwrap();
        for verb in ["run", "check-config"] {
            let out = world.command(&[verb]);
            let said = String::from_utf8(out.stderr).unwrap();
            assert_eq!(out.status.code(), Some(78), "{said}");
            assert!(said.contains("line 2") && said.contains("mode 0600"), "{said}");
            assert!(!said.contains("2233"), "{said}");
        }
    }
    std::fs::write(world.config(), "").unwrap();
    let out = world.command(&["run", "--key-file", &key]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("key_file") && !said.contains("2233"), "{said}");
    // Nor does one about the command line.
    let out = world.command(&["run", "--host-id", &key]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(64), "{said}");
    assert!(said.contains("--host-id") && !said.contains("2233"), "{said}");
}

#[test]
fn the_environment_outranks_the_file_and_a_flag_the_environment() {
    let world = World::new();
    let config = |flags: &[&str]| {
        let output = agent()
            .args(["check-config", "--config"])
            .arg(world.config())
            .args(flags)
            .env("HEARTWATCH_AGENT_INTERVAL", "3s")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(config(&[]).contains("interval = \"3s\""));
    assert!(config(&["--interval", "4s"]).contains("interval = \"4s\""));
}

#[test]
fn id_prints_the_host_id() {
    let world = World::new();
    let output = world.command(&["id"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{HOST}\n"));
}

#[test]
fn a_host_that_nobody_has_set_up_is_told_apart_from_one_that_is_set_up_wrongly() {
    let world = World::new();
    assert!(world.command(&["configured"]).status.success());
    let says = |out: &Output, what: &str| {
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains("not set up yet") && said.contains(what), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        // systemd skips a unit whose condition ends with 1 to 254.
        assert_eq!(out.status.code(), Some(78));
    };
    std::fs::remove_file(world.dir.path().join("key")).unwrap();
    says(&world.command(&["configured"]), "there is no key in");
    std::fs::write(world.config(), "").unwrap();
    says(&world.command(&["configured"]), "names no controller");
    // That is for `run` to tell, so that the unit fails where somebody can see it.
    std::fs::write(world.config(), "controllers = 5").unwrap();
    assert!(world.command(&["configured"]).status.success());
    assert_eq!(world.command(&["run"]).status.code(), Some(78));
}
