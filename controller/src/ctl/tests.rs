//! Commands against a served API over stand-ins, and the story from a fixture.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::CommandFactory;
use heartwatch_common::auth::create_secret_file;
use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use serde_json::{Value, json};

use super::*;
use crate::api::testing::{TOKEN, World, delivery, event, host_row};
use crate::api::types::WhyJson;
use crate::event::{EventKind, State};
use crate::store::{DeliveryState, HostRow};

mod tokens;

/// A world whose API is served on a real socket.
struct Served {
    world: World,
    url: String,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    fn new() -> Self {
        let world = World::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = world.router.clone();
        runtime.spawn(crate::api::serve(listener, None, router, std::future::pending()));
        let served = Self { world, url, _runtime: runtime };
        create_secret_file(&served.token_file(), TOKEN).unwrap();
        served
    }

    fn token_file(&self) -> std::path::PathBuf {
        self.world.state_dir.path().join("api-token")
    }

    fn run(&self, args: &[&str]) -> Result<String, CtlError> {
        let token_file = self.token_file();
        let global = ["--url", self.url.as_str(), "--token-file", token_file.to_str().unwrap()];
        command(&[args, &global].concat())
    }

    fn good(&self, args: &[&str]) -> String {
        self.run(args).unwrap_or_else(|e| panic!("{args:?}: {}", chain(&e)))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[args, &["--json"]].concat())).unwrap()
    }
}

fn command(args: &[&str]) -> Result<String, CtlError> {
    let cli = Cli::try_parse_from([&["heartwatchctl"], args].concat())
        .map_err(|e| CtlError::Usage(e.to_string()))?;
    let mut out = Vec::new();
    execute(&cli, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_command_line_is_sound_and_senseless_ones_are_usage_errors() {
    Cli::command().debug_assert();
    for bad in [
        vec![],
        vec!["hots"],
        vec!["hosts", "--state", "dwon"],
        vec!["hosts", "--limit", "0"],
        vec!["hosts", "--limit", "5", "--all"],
        vec!["redrive"],
        vec!["redrive", "1", "--dead"],
        vec!["redrive", "1", "--receiver", "x"],
        vec!["pause"],
        vec!["pause", "--for", "10m"],
        vec!["pause", "--for", "10", "--reason", "x"],
        vec!["pause", "--reason", "x"],
        vec!["pause", "--end", "--for", "10m", "--reason", "x"],
        vec!["key", "zz"],
        vec!["key", "00000000000000000000000000000001", "--generation", "65536"],
        vec!["secret", "new", "--key-id", "256"],
    ] {
        let args = [&["heartwatchctl"], bad.as_slice()].concat();
        assert!(Cli::try_parse_from(&args).is_err(), "{args:?}");
    }
    for good in [
        vec!["pause", "--end"],
        vec!["holds", "approve", "host-2", "--reason", "x"],
        vec!["maintenance"],
        vec!["maintenance", "add", "--labels", "pool=db,zone!=a", "--for", "1h", "--reason", "x"],
        vec!["maintenance", "add", "host-1", "--in", "2h", "--for", "1h", "--reason", "x"],
        vec!["maintenance", "end", "m7"],
        vec!["pause", "--for", "10m", "--reason", "x"],
        vec!["redrive", "1", "2"],
        vec!["redrive", "--dead", "--receiver", "x"],
        vec!["hosts", "--state", "down", "--state", "left", "--label", "a=b", "--all"],
        vec!["status", "--json"],
    ] {
        let args = [&["heartwatchctl"], good.as_slice()].concat();
        assert!(Cli::try_parse_from(&args).is_ok(), "{args:?}");
    }
    assert_eq!(command(&["status", "--url", "ftp://x"]).unwrap_err().exit_code(), EXIT_USAGE);
}

#[test]
fn hosts_are_listed_over_all_pages_as_table_and_as_json() {
    let served = Served::new();
    for n in 0..=255 {
        let state = if n == 7 { State::Down } else { State::Alive };
        served.world.view.upsert(host_row(n, state), None);
    }
    let first = served.good(&["hosts", "--limit", "3"]);
    assert!(first.starts_with("NAME "), "{first}");
    assert!(first.ends_with("3 hosts; there may be more: say --limit or --all\n"), "{first}");
    let all = served.json(&["hosts", "--all"]);
    assert_eq!((all["hosts"].as_array().unwrap().len(), &all["next_page"]), (256, &Value::Null));
    let down = served.good(&["hosts", "--state", "down", "--label", "zone=odd"]);
    assert!(down.contains("host-7") && down.ends_with("\n1 host\n"), "{down}");
    let id = HostId([7; 16]).to_string();
    assert!(served.good(&["host", "host-7"]).contains(&id));
    let gone = served.run(&["host", "no/such host"]).unwrap_err();
    assert_eq!(gone.exit_code(), EXIT_FAILURE);
    assert_eq!(chain(&gone), "no such host: no host `no/such host` is registered");
}

#[test]
fn status_events_and_deliveries_are_readable() {
    let served = Served::new();
    let id = HostId([1; 16]);
    let text = served.good(&["status"]);
    assert!(text.contains("test (0000000000000007), version 0.1.0"), "{text}");
    assert!(text.contains("drops (shard 0): its own machine lost datagrams"), "{text}");
    assert!(text.contains("orchestrator  yes") && text.contains("mute"), "{text}");
    served.world.store.push(event(id, EventKind::HostJoined, 1));
    served.world.store.push(event(id, EventKind::HostDown, 2));
    let text = served.good(&["events"]);
    assert!(text.contains("1970-01-01T00:00:02.000Z  host.down") && text.contains("--after c2"));
    let page = served.json(&["events", "--after", "c1"]);
    assert_eq!((page["events"][0]["cursor"].as_str(), &page["more"]), (Some("c2"), &json!(false)));
    let error = served.run(&["events", "--after", "17"]).unwrap_err();
    assert!(chain(&error).contains("no cursor"), "{error}");
    served.world.store.deliveries.lock().unwrap().push(delivery(4, id, DeliveryState::Dead));
    let text = served.good(&["deliveries", "--state", "dead"]);
    assert!(text.contains(" 4  dead") || text.contains("4  dead "), "{text}");
}

#[test]
fn what_changes_something_reads_the_token_and_says_what_to_do_without_one() {
    let served = Served::new();
    served.world.view.upsert(host_row(1, State::Alive), None);
    let error = command(&[
        "forget",
        "host-1",
        "--url",
        &served.url,
        "--token-file",
        "/nonexistent/api-token",
    ])
    .unwrap_err();
    assert_eq!(error.exit_code(), EXIT_CONFIG);
    assert!(chain(&error).contains("--token-file or HEARTWATCH_TOKEN_FILE"), "{error}");
    assert!(served.good(&["forget", "host-1"]).contains("is forgotten"));
    assert_eq!(*served.world.control.forgotten.lock().unwrap(), [HostId([1; 16])]);
    let text = served.good(&["freeze", "host-1", "--margin", "5s"]);
    assert!(text.contains("host-1 may be 5s late from now on"), "{text}");
    assert_eq!(served.json(&["freeze", "host-1"])["frozen_ms"], 121);
    assert!(served.good(&["unfreeze", "host-1"]).contains("as its beats teach again"));
    let error = served.run(&["freeze", "host-1", "--margin", "1ms"]).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_USAGE);
    let error = served.run(&["unfreeze", "nobody"]).unwrap_err();
    assert!(chain(&error).contains("nobody"), "{error}");
    let row = crate::store::HostRow { frozen_ms: Some(5_000), ..host_row(1, State::Alive) };
    served.world.view.upsert(row, None);
    assert!(served.good(&["hosts"]).contains("alive margin frozen"));
    assert!(served.good(&["host", "host-1"]).contains("frozen at 5s"));
    let text = served.good(&["pause", "--for", "10m", "--reason", "switch works"]);
    assert!(text.contains("held until 1970-01-01T00:10:00.000Z (switch works)"), "{text}");
    assert_eq!(served.json(&["pause", "--end"]), json!({"pause": null}));
    let args = ["maintenance", "add", "--domain", "zone=odd", "--for", "30m"];
    let args = [&args[..], &["--reason", "new switch", "--by", "ann"]].concat();
    let text = served.good(&args);
    assert!(text.starts_with("m1: zone=odd (3 hosts) in maintenance from "), "{text}");
    let list = served.good(&["maintenance"]);
    assert!(list.contains("zone=odd") && list.contains("new switch"), "{list}");
    let text = served.good(&["maintenance", "end", "m1", "--by", "ann"]);
    assert_eq!(text, "m1 is over: zone=odd; who is still down is judged now\n");
    assert!(served.good(&["status"]).contains("3 hosts in 1 open window, 2 to come"));
    assert_eq!(served.good(&["redrive", "4", "5"]), "2 deliveries on their way again\n");
    std::fs::write(served.token_file(), "hwt1_ffffffffffffffff").unwrap();
    let error = served.run(&["redrive", "--dead"]).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_FAILURE);
    assert!(chain(&error).contains("not this controller's"), "{error}");
}

#[test]
fn an_import_reports_bad_lines_and_sends_good_files() {
    let served = Served::new();
    let dir = served.world.state_dir.path();
    let id = "8a4e3b1c5d6f70819203a4b5c6d7e8f9";
    let bad = write(dir, "bad.csv", &format!("{id},a\nx,b\n"));
    let error = served.run(&["import", &bad]).unwrap_err();
    assert!(chain(&error).starts_with(&format!("{bad}:2: `x`: a host id")), "{error}");
    let good = write(dir, "good.csv", &format!("id,name,labels\n{id},a,zone=x\n"));
    let text = served.good(&["import", &good]);
    assert_eq!(text, "1 added as pending, 0 known already\n");
    assert_eq!(served.world.control.imported.lock().unwrap()[0].labels["zone"], "x");
    let error = served.run(&["import", "/nonexistent"]).unwrap_err();
    assert!(chain(&error).starts_with("/nonexistent: "), "{error}");
}

#[test]
fn a_backup_is_whole_private_and_never_overwrites() {
    let served = Served::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy");
    let name = file.to_str().unwrap();
    served.good(&["backup", name]);
    assert_eq!(std::fs::read(&file).unwrap(), vec![7; 700_000]);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = served.run(&["backup", name]).unwrap_err();
    assert!(chain(&error).contains("never overwrites"), "{error}");
    served.world.store.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let other = dir.path().join("other");
    assert!(served.run(&["backup", other.to_str().unwrap()]).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn a_controller_that_is_not_there_or_not_one_is_told_as_such() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = command(&["status", "--url", &format!("http://{free}")]).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_FAILURE);
    let text = chain(&error);
    assert!(text.contains("cannot reach") && text.contains("--url") && text.contains("systemctl"));
    let served = Served::new();
    let error = command(&["status", "--url", &format!("{}/metrics", served.url)]).unwrap_err();
    assert!(chain(&error).contains("the path `/metrics`"), "{error}");
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", foreign.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        use std::io::Read;
        let (mut stream, _) = foreign.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").unwrap();
    });
    let error = command(&["status", "--url", &url]).unwrap_err();
    assert!(chain(&error).contains("not as a Heartwatch controller does"), "{error}");
    answering.join().unwrap();
}

#[test]
fn keys_and_secrets_are_made_locally() {
    let dir = tempfile::tempdir().unwrap();
    let secret = command(&["secret", "new", "--key-id", "3"]).unwrap();
    assert!(secret.starts_with("hwf1:3:"), "{secret}");
    assert_ne!(secret, command(&["secret", "new", "--key-id", "3"]).unwrap());
    let config = write(dir.path(), "c.toml", &format!("state_dir = {:?}\n", dir.path()));
    let key = |args: &[&str]| {
        let id = "00000000000000000000000000000001";
        command(&[&["key", id, "--config", config.as_str()], args].concat())
    };
    let error = key(&[]).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_CONFIG);
    assert!(chain(&error).contains("fleet-secret"), "{error}");
    create_secret_file(&dir.path().join("fleet-secret"), secret.trim()).unwrap();
    let first = key(&[]).unwrap();
    assert!(first.starts_with("hwk1:3:0:"), "{first}");
    let second: Value =
        serde_json::from_str(&key(&["--generation", "1", "--json"]).unwrap()).unwrap();
    assert!(second["key"].as_str().unwrap().starts_with("hwk1:3:1:"));
    write(dir.path(), "c.toml", "nmae = 1\n");
    assert_eq!(key(&[]).unwrap_err().exit_code(), EXIT_CONFIG);
}

#[test]
fn restoring_what_is_no_backup_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "no-backup", "hello");
    let state_dir = dir.path().join("state");
    let args = ["restore", file.as_str(), "--state-dir", state_dir.to_str().unwrap()];
    assert_eq!(command(&args).unwrap_err().exit_code(), EXIT_CONFIG);
    std::fs::create_dir(&state_dir).unwrap();
    let error = command(&args).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_FAILURE, "{error}");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let broken = CtlError::Output(io::ErrorKind::BrokenPipe.into());
    assert_eq!(broken.exit_code(), EXIT_OK);
    assert_eq!(CtlError::Output(io::ErrorKind::StorageFull.into()).exit_code(), EXIT_FAILURE);
}

pub(super) fn fixture() -> WhyJson {
    let (a, b) = ("018f0000-0000-7000-8000-000000000001", "018f0000-0000-7000-8000-000000000002");
    let outage = "018f0000-0000-7000-8000-00000000000a";
    serde_json::from_value(json!({
        "now_ms": 1_769_860_980_000_u64,
        "host": {
            "id": "8a4e3b1c5d6f70819203a4b5c6d7e8f9", "name": "web-1\u{1b}[2J", "state": "down",
            "cause": "agent-lost", "since_ms": 1_769_860_800_250_u64, "first_seen_ms": 0,
            "labels": {"zone": "a"}, "os": "linux", "agent_version": "0.1.0", "boot": 12,
            "generation": 0, "address": "10.0.0.1:4000", "incident": outage, "duplicate": false,
            "silence_ms": 183_000, "gap_ms": 1_000, "load": null
        },
        "detector": {
            "state": "down", "shard": 3, "boot": 12, "seq": 331, "silence_ms": 183_000,
            "expected_in_ms": -182_000, "margin_ms": 120.5, "margin_source": "learned",
            "deadline_in_ms": -181_900, "gap_ms": 1_000, "inter_arrival_mean_ms": 1_000.2,
            "inter_arrival_p99_ms": 1_250.0, "group": "pool=web",
            "inter_arrival_deviation_ms": 3.1,
            "overdue": [{"above_ms": 0.0, "count": 300.0}, {"above_ms": 100.0, "count": 0.4}],
            "overdue_disturbed": [{"above_ms": 1_120.0, "count": 2.0}], "context": "calm",
            "margin_calm_ms": 120.5, "margin_disturbed_ms": 2_220.0,
            "mistakes_foreseen_per_day": 0.04, "group_beats": 100_000,
            "knobs": {"name": "", "false_suspicion_cost_s": 100_000.0, "timeout_min_ms": 25,
                      "max_mistakes_per_host_day": null, "timeout_max_ms": 30_000, "frozen_ms": null},
            "beats_learned": 300.4, "last_overdue_ms": [0.5, -0.2], "last_late_ms": [0, 1],
            "late_ms": 1, "mistakes": 2,
            "probes": {"sent": 3, "of": 3, "unreachable": 3}, "shard_drop_ppm": 120,
            "excuse": {"reason": "cut", "since_ms": 182_500, "remaining_ms": 0},
            "shard_lag_ms": 2
        },
        "detector_error": null,
        "incident": {"id": outage, "opened_ms": 1_769_860_799_000_u64},
        "events": [
            {"cursor": "c2", "id": b, "type": "host.agent-lost", "at_ms": 1_769_860_800_250_u64,
             "host": "8a4e3b1c5d6f70819203a4b5c6d7e8f9", "incident": outage, "token": 42,
             "data": {"event_id": b, "reason": "3 probes, no agent", "silence_ms": 2_300, "verdicts": [
                {"receiver": "orchestrator", "rule": "all", "verdict": "act"},
                {"receiver": "audit", "rule": "try", "verdict": "suppress", "reason": "dry run"}]}},
            {"cursor": "c1", "id": a, "type": "host.suspect", "at_ms": 1_769_860_799_000_u64,
             "host": "8a4e3b1c5d6f70819203a4b5c6d7e8f9", "incident": outage, "token": 41, "data": {}}
        ],
        "events_truncated": true,
        "deliveries": [
            {"id": 18, "event": b, "type": "host.agent-lost", "host": null, "incident": outage,
             "receiver": "orchestrator", "state": "pending", "reason": null, "token": 42,
             "attempts": 1, "created_ms": 0, "changed_ms": 1_769_860_800_260_u64, "last_outcome": null,
             "attempt_log": [{"number": 1, "began_ms": 1_000, "ended_ms": 1_120, "status": 503,
                              "detail": "503 Service Unavailable"}]},
            {"id": 17, "event": a, "type": "host.suspect", "host": null, "incident": outage,
             "receiver": "orchestrator", "state": "cancelled", "reason": "host.agent-lost tells more",
             "token": 41, "attempts": 0, "created_ms": 0, "changed_ms": 0, "last_outcome": null,
             "attempt_log": []},
            {"id": 16, "event": "018f0000-0000-7000-8000-000000000000", "type": "host.joined",
             "host": null, "incident": null, "receiver": "audit", "state": "held",
             "reason": "paused", "token": 40, "attempts": 0, "created_ms": 0, "changed_ms": 0,
             "last_outcome": null, "attempt_log": []}
        ],
        "deliveries_truncated": false,
        "doubts": [{"reason": "drops", "shard": 3, "drop_ppm": 120, "text": "its machine lost some",
                    "since_ms": 1_769_860_960_000_u64}],
        "pause": {"until_ms": 1_769_861_000_000_u64, "reason": "switch works"}
    }))
    .unwrap()
}

#[test]
fn the_story_tells_all_of_it_in_plain_words_and_in_order() {
    let mut out = Vec::new();
    story::write(&mut out, &fixture()).unwrap();
    let text = String::from_utf8(out).unwrap();
    if std::env::var_os("HEARTWATCH_TEST_SHOW").is_some() {
        println!("{text}");
    }
    let wanted = [
        "is down since 2026-01-31T12:00:00.250Z, 2m 59s ago",
        "Its machine is up, but its agent is gone",
        "outage 018f0000-0000-7000-8000-00000000000a, opened 2026-01-31T11:59:59.000Z",
        "Last sign of life: 3m 3s ago (life 12 of its agent, datagram 331)",
        "announced the next beat for 1s after that one: it was expected 3m 2s ago",
        "may come 120ms late",
        "costs least for C = 100000s (detector.false_suspicion_cost)",
        "It is calm now: 120ms; disturbed, which lasts 16 beats after a missing or unusually late one, it \
         would be 2.22s",
        "learned from 300 of its own beats and from 100000 of its group (pool=web)",
        "0.04 wrong suspicions of it a day are foreseen",
        "99 of 100 within 1.25s",
        "Probes: 3 of 3 sent. To 3 its operating system answered",
        "was excused, for a time, by a doubt of the controller's own, since 3m 2s ago (cut): nothing",
        "wrongly suspected 2 times since the controller's start",
        "shard 3): 0.01%",
        "While calm",
        &format!("≥ 0 ms  {} 300.0", "#".repeat(40)),
        "≥ 100 ms  . 0.4",
        "While disturbed",
        &format!("≥ 1.12 s  {} 2.0", "#".repeat(40)),
        "0.5ms overdue, of which 0ms its own timer",
        "0.2ms early, 1ms late by its own timer",
        "drops (shard 3): its machine lost some; 0.01% of the datagrams just now, for 20s",
        "holds all actions until 2026-01-31T12:03:20.000Z: switch works",
        "older events: heartwatchctl events",
        "(not over)",
        "11:59:59.000Z  host.suspect: overdue",
        "cancelled before anything was sent (delivery 17, since 1970-01-01T00:00:00.000Z), because: host.agent-lost tells more",
        "12:00:00.250Z  host.agent-lost: its agent is gone",
        "reason: 3 probes, no agent",
        "fencing token 42; silence: 2.30s",
        "rule `all` for orchestrator: send it",
        "rule `try` for audit: do not send it, because: dry run",
        "not taken yet, will be tried again",
        "try 1 at 1970-01-01T00:00:01.000Z: 503 Service Unavailable, after 120ms",
        "deliveries of older events",
        "audit: held back",
        "because: paused",
    ];
    let mut from = 0;
    for line in wanted {
        let at = text[from..].find(line);
        from += at.unwrap_or_else(|| panic!("{line}\nis not, or not in its place, in\n{text}"));
    }
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn the_story_is_told_with_whatever_is_missing() {
    let mut why = fixture();
    why.detector = None;
    why.detector_error = Some("shard 3 did not answer in time".to_owned());
    why.events.clear();
    why.deliveries.clear();
    why.doubts.clear();
    why.incident = None;
    why.host.state = State::Pending;
    why.host.name.clear();
    let mut out = Vec::new();
    story::write(&mut out, &why).unwrap();
    let text = String::from_utf8(out).unwrap();
    for line in ["without a name", "never been heard", "shard 3 did not", "Nothing is recorded"] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    let mut why = fixture();
    let detector = why.detector.as_mut().unwrap();
    detector.overdue =
        vec![crate::control::OverdueBin { above_ms: f64::NAN, count: f64::INFINITY }];
    detector.margin_ms = Some(f64::MAX);
    detector.expected_in_ms = Some(i64::MIN);
    story::write(&mut Vec::new(), &why).unwrap();
}

#[test]
fn the_story_says_what_each_knob_did_to_the_margin() {
    let told = |change: &dyn Fn(&mut crate::control::HostWhy)| {
        let mut why = fixture();
        change(why.detector.as_mut().unwrap());
        let mut out = Vec::new();
        story::write(&mut out, &why).unwrap();
        String::from_utf8(out).unwrap()
    };
    let source = |source: &str, ms: f64| {
        let source = source.to_owned();
        told(&move |d| {
            d.margin_source.clone_from(&source);
            d.margin_ms = Some(ms);
        })
    };
    for (text, wanted) in [
        (source("floor", 25.0), "25ms late (the margin): the least (detector.timeout_min)"),
        (source("ceiling", 30_000.0), "30.00s late (the margin): the most (detector.timeout_max)"),
        (source("prior", 350.0), "350ms late (the margin), the usual of its group"),
        (source("frozen", 5_000.0), "5.00s late (the margin): an operator froze it there"),
        (
            told(&|d| d.knobs.max_mistakes_per_host_day = Some(0.5)),
            "C is steered to 0.5 mistakes per host and day (detector.max_mistakes_per_host_day)",
        ),
        (told(&|d| d.knobs.name = "db".to_owned()), "The override `db` holds for it"),
        (told(&|d| d.group.clear()), "of hosts without a group"),
        (told(&|d| d.context = "disturbed".to_owned()), "It is disturbed now"),
    ] {
        assert!(text.contains(wanted), "{wanted}\nis not in\n{text}");
    }
    let pending = told(&|d| {
        d.state = State::Pending;
        (d.margin_ms, d.silence_ms, d.expected_in_ms, d.deadline_in_ms) = (None, None, None, None);
        d.mistakes_foreseen_per_day = None;
        (d.overdue, d.overdue_disturbed) = (vec![], vec![]);
        (d.last_overdue_ms, d.last_late_ms) = (vec![], vec![]);
        (d.beats_learned, d.inter_arrival_mean_ms) = (0.0, 0.0);
    });
    assert!(pending.contains("No beat is expected of it"), "{pending}");
    // What was counted begins with this controller's life.
    let restarted = told(&|d| (d.silence_ms, d.listening_ms) = (None, 12_000));
    for part in [
        "No sign of life since the controller began to listen 12s ago.",
        "wrongly suspected 2 times since the controller began to listen 12s ago",
    ] {
        assert!(restarted.contains(part), "{part}\nis not in\n{restarted}");
    }
    let other = told(&|d| {
        d.other_version = Some(crate::control::OtherVersionWhy {
            version: 1,
            ours: 2,
            datagrams: 37,
            last_ago_ms: 400,
            from: ([192, 0, 2, 7], 4_000).into(),
        });
    });
    let wanted = "Datagrams of wire format 1 come of it, sealed with its key (37, the last 400ms ago from \
                  192.0.2.7:4000), and the controller speaks format 2: they count for nothing. Upgrade its agent.";
    assert!(other.contains(wanted), "{other}");
    for absent in ["margin", "apart", "overdue", "foreseen"] {
        let known = pending.split("WHAT THE CONTROLLER DOUBTS").next().unwrap();
        assert!(!known.contains(absent), "{absent}\nis in\n{known}");
    }
}

#[test]
fn open_outages_are_readable_and_reported_on() {
    let served = Served::new();
    assert!(served.good(&["incidents"]).contains("No outage is open."));
    let incident = crate::event::IncidentId(crate::api::testing::uuid(1));
    let row = HostRow { incident: Some(incident), ..host_row(3, State::Down) };
    served.world.view.upsert(row, None);
    assert!(served.good(&["incidents", "list"]).contains("opened"));
    let id = incident.to_string();
    assert!(served.good(&["incidents", "show", &id]).contains("Nobody was ordered"));
    let order = delivery(2, HostId([3; 16]), DeliveryState::Delivered);
    served.world.store.deliveries.lock().unwrap().push(order);
    let text = served.good(&["incidents", "show", &id]);
    assert!(text.contains("Its orders: accepted.") && text.contains("orchestrator"), "{text}");
    let text = served.good(&["incidents", "complete", &id, "--token", "2", "--reason", "done"]);
    assert!(text.contains("reported as completed"), "{text}");
    let error = served.run(&["incidents", "complete", &id, "--token", "1", "--failed"]);
    assert!(chain(&error.unwrap_err()).contains("another order counts"));
}

#[test]
fn held_orders_are_readable_and_judged() {
    let served = Served::new();
    (0..4).for_each(|n| served.world.view.upsert(host_row(n, State::Down), None));
    let text = served.good(&["holds"]);
    assert!(text.contains("storm in zone=even: 7 of 10") && text.contains("1 of 1 held"), "{text}");
    assert!(
        served.good(&["holds", "list", "--domain", "zone=odd"]).contains("Nothing is held here")
    );
    assert_eq!(served.json(&["holds", "list"])["holds"][0]["overdue"], true);
    let reason = ["--by", "ann", "--reason", "it is dead"];
    let text = served.good(&[&["holds", "approve", "host-2"], &reason[..]].concat());
    assert!(text.contains("1 let go"), "{text}");
    let text = served.good(&[&["holds", "reject", "--domain", "zone=even"], &reason[..]].concat());
    assert!(text.contains("1 rejected"), "{text}");
    let error = served.run(&[&["holds", "approve", "host-1"], &reason[..]].concat());
    assert!(chain(&error.unwrap_err()).contains("nothing is held"));
    let text = served.good(&["status"]);
    assert!(text.contains("Held failovers: 1 by a storm") && text.contains("zone=even"), "{text}");
    let text = served.good(&["why", "host-2"]);
    assert!(text.contains("Its failover is held for") && text.contains("holds approve"), "{text}");
    for bad in [&["holds", "approve", "--reason", "x"][..], &["holds", "reject", "h"]] {
        assert_eq!(command(bad).unwrap_err().exit_code(), EXIT_USAGE);
    }
}

#[test]
fn rules_are_listed_and_what_they_would_do_is_told() {
    let served = Served::new();
    served.world.view.upsert(host_row(2, State::Alive), None);
    let text = served.good(&["rules"]);
    assert!(
        text.contains("failover") && text.contains("host.down to orchestrator; after 30s"),
        "{text}"
    );
    assert!(text.contains("Odd (failover): no known host has a label polo."), "{text}");
    assert_eq!(served.json(&["rules", "list"])["rules"][0]["hosts"], 7);
    let text =
        served.good(&["rules", "test", "host-2", "--as", "down", "--at", "1970-01-01T00:00:01Z"]);
    for wanted in [
        "If host-2 (no labels) were host.down at 1970-01-01T00:00:01.000Z:",
        "rule failover matches",
        "rule web does not: match: it has no label pool",
        "orchestrator would be told after 29.5s",
        "waits 30s",
        "Nothing was changed",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    assert_eq!(served.json(&["rules", "test", "host-2"])["as"], "host.down");
    let error = served.run(&["rules", "test", "host-2", "--as", "up"]).unwrap_err();
    assert!(chain(&error).contains("cannot be supposed"), "{}", chain(&error));
    let why = served.good(&["why", "host-2"]);
    assert!(why.contains("orchestrator is not told of host.down yet"), "{why}");
}

#[test]
fn who_could_take_over_is_a_table_with_figures_and_reasons() {
    let served = Served::new();
    (0..3).for_each(|n| served.world.view.upsert(host_row(n, State::Alive), None));
    let text = served.good(&["candidates", "host-2", "--same", "zone"]);
    for told in
        ["PROMISED", "host-2", "50%", "equal it in zone", "3 hosts looked at, all", "1  suspect"]
    {
        assert!(text.contains(told), "{told}\nis not in\n{text}");
    }
    let text = served.good(&["candidates", "--labels", "zone=a,pool=web"]);
    assert!(text.contains("pool=web,zone=a") && text.contains("no rule"), "{text}");
    assert_eq!(served.json(&["candidates", "host-1"])["looked_at"], 3);
    for bad in [&["candidates"][..], &["candidates", "h", "--labels", "a=b"]] {
        assert_eq!(command(bad).unwrap_err().exit_code(), EXIT_USAGE);
    }
}

#[test]
fn an_outage_is_told_in_short_with_its_storm_and_who_let_its_failover_go() {
    let mut why = fixture();
    let domain = |n: u64, kind: &str, reason: &str| {
        json!({"cursor": format!("c{n}"), "id": format!("018f0000-0000-7000-8000-0000000000{n:02}"),
               "type": kind, "at_ms": 1_769_860_800_000_u64 + n * 100, "host": null, "incident": null,
               "token": null, "data": {"domain": "zone=a", "silent": 7, "reason": reason}})
    };
    why.around = vec![
        serde_json::from_value(domain(9, "hold.approved", "ann approved 7 held orders")).unwrap(),
        serde_json::from_value(domain(3, "domain.down", "all are silent")).unwrap(),
    ];
    let held = json!([{"receiver": "orchestrator", "rule": "all", "verdict": "hold", "reason": "storm in zone=a"}]);
    why.events[0].data.insert("verdicts".to_owned(), held);
    let placed = json!({"candidates": [{"name": "web-2", "load_score": 120}],
                        "placed_again_ms": 1_769_860_801_000_u64});
    let order = &mut why.deliveries[0].delivery;
    order.placed = placed.as_object().cloned();
    order.state = DeliveryState::Delivered;
    order.changed_ms = Wall(1_769_860_801_500);
    let mut out = Vec::new();
    story::write(&mut out, &why).unwrap();
    let text = String::from_utf8(out).unwrap();
    let wanted = [
        "IN SHORT: ITS PRESENT OUTAGE",
        "11:59:59.000  Nothing was heard of it, longer than usual",
        "12:00:00.250  Its machine answered, but its agent was gone",
        "Its failover was held back: storm in zone=a.",
        "12:00:00.300  All 7 hosts of zone=a were silent",
        "12:00:00.900  ann approved 7 held orders.",
        "12:00:01.000  It was still true, so its failover was let go; could take over, the least loaded first: \
         web-2 (load 12%).",
        "12:00:01.500  Its failover was delivered: orchestrator took it, after 1 try.",
        "12:03:00.000  Now: it is down for 2m 59s.",
        "HOW THE CONTROLLER KNOWS",
        "judged again as it went",
    ];
    let mut at = 0;
    for line in wanted {
        let found = text[at..].find(line).unwrap_or_else(|| panic!("`{line}` is not in\n{text}"));
        at += found + line.len();
    }
    // Nothing is told of a host that was always well.
    why.events.clear();
    let mut out = Vec::new();
    story::write(&mut out, &why).unwrap();
    assert!(!String::from_utf8(out).unwrap().contains("IN SHORT"));
}

/// The second step of a rule was told as if the host had died again, and an order that was journaled again
/// under a higher token as if it had been taken back.
#[test]
fn later_steps_and_orders_journaled_again_are_told_as_what_they_are() {
    let mut why = fixture();
    let outage = why.events[0].incident;
    let event = |n: u64, kind: &str, data: serde_json::Value| -> crate::api::types::EventJson {
        serde_json::from_value(
            json!({"cursor": format!("c{n}"), "id": format!("018f0000-0000-7000-8000-0000000000{n:02}"),
                   "type": kind, "at_ms": 1_769_860_800_000_u64 + n * 100, "host": why.host.id,
                   "incident": outage, "token": 40 + n, "data": data}),
        )
        .unwrap()
    };
    let again = event(5, "host.agent-lost", json!({"reason": "3 probes, no agent"}));
    let done =
        event(6, "incident.completed", json!({"reason": "`fence` has completed the order: off"}));
    let step =
        json!({"rule": "failover", "reason": "`fence` has completed it: now it is your turn"});
    let step = event(7, "host.agent-lost", step);
    why.events.splice(0..0, [step, done, again]);
    let order = why.deliveries[0].clone();
    let told = |id: u64, receiver: &str, state: DeliveryState| {
        let mut told = order.clone();
        told.delivery.id = crate::store::DeliveryId(id);
        (told.delivery.receiver, told.delivery.state) = (receiver.to_owned(), state);
        told.delivery.changed_ms = Wall(1_769_860_800_000 + id as i64 * 100);
        told
    };
    why.deliveries = vec![
        told(21, "orchestrator", DeliveryState::Vetoed),
        told(20, "fence", DeliveryState::Delivered),
        told(19, "fence", DeliveryState::Superseded),
    ];
    why.deliveries[0].delivery.reason = Some("is it down, rightly?".to_owned());
    why.incident.as_mut().unwrap().stage = crate::api::types::IncidentStage::Vetoed;
    let mut out = Vec::new();
    story::write(&mut out, &why).unwrap();
    let text = String::from_utf8(out).unwrap();
    let short =
        &text[text.find("IN SHORT").unwrap()..text.find("HOW THE CONTROLLER KNOWS").unwrap()];
    let lines: Vec<&str> = short.lines().skip(1).filter_map(|l| l.get(16..)).collect();
    assert_eq!(
        lines,
        [
            "Nothing was heard of it, longer than usual: it was asked (probes).",
            "Its machine answered, but its agent was gone: that is not dead, but not watched.",
            "`fence` has completed the order: off.",
            "Rule failover went on: `fence` has completed it: now it is your turn.",
            "Its failover was delivered: fence took it, after 1 try.",
            "orchestrator refused its failover, because is it down, rightly?",
            "Now: it is down for 2m 59s, and its failover was refused: somebody must look.",
        ]
    );
}

#[test]
fn what_rules_keep_back_is_said_where_nothing_is_held() {
    let page = |total| crate::control::HoldsPage {
        total,
        waits: vec![crate::control::RuleWaits {
            rule: "night".to_owned(),
            wait: crate::control::WaitFor::Hours,
            count: 2,
            oldest_ms: Wall(0),
        }],
        ..Default::default()
    };
    let shown = |page: &crate::control::HoldsPage| {
        let mut out = Vec::new();
        super::holds::write(&mut out, page, Wall(60_000)).unwrap();
        String::from_utf8(out).unwrap()
    };
    let text = shown(&page(0));
    assert!(
        text.starts_with("Nothing is held by a storm, a pause or a rate of actions.\n"),
        "{text}"
    );
    assert!(
        text.contains(
            "Kept back by rule night for its hours: 2 orders or alerts, the oldest for 1m"
        ),
        "{text}"
    );
    assert!(shown(&page(3)).starts_with("Nothing is held here."));
    assert_eq!(shown(&crate::control::HoldsPage::default()), "Nothing is held.\n");
}
