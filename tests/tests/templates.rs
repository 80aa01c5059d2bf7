//! The ready templates: the example in each one's head is accepted, and what they say is what the documents
//! of those products ask for, whatever a host calls itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use heartwatch_common::time::Wall;
use heartwatch_controller::config::{Config, Kind, RawConfig};
use heartwatch_controller::delivery::format::Message;
use heartwatch_controller::delivery::sample::Sample;
use heartwatch_controller::delivery::target;
use heartwatch_controller::event::EventKind;
use serde_json::{Value, json};

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples/templates")
}

/// The config that a template's head shows, with the template where it is here.
fn example(name: &str) -> Config {
    let text = std::fs::read_to_string(dir().join(format!("{name}.toml"))).expect("it is there");
    let lines = text.lines().take_while(|l| l.starts_with('#'));
    let shown: Vec<_> = lines.filter_map(|l| l.strip_prefix("#   ")).collect();
    let here = dir().display().to_string();
    let toml = shown.join("\n").replace("/etc/heartwatch/templates", &here);
    let raw: RawConfig = toml::from_str(&toml).unwrap_or_else(|e| panic!("{name}: {e}\n{toml}"));
    raw.check().unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn preview(config: &Config, kind: EventKind, host: &Sample) -> Result<Message, String> {
    let receiver = config.receivers.values().next().expect("a template has a receiver");
    Ok(target::preview(receiver, kind, host, Wall(0))?.expect("it is no command"))
}

fn said(name: &str, kind: EventKind, host: &Sample) -> (Message, Value) {
    let message = preview(&example(name), kind, host).unwrap_or_else(|e| panic!("{name}: {e}"));
    let body = serde_json::from_str(&message.body)
        .unwrap_or_else(|e| panic!("{name}: {e}\n{}", message.body));
    (message, body)
}

fn host(name: &str) -> Sample {
    let labels = BTreeMap::from([("nomad_node_id".to_owned(), "5f-ab".to_owned())]);
    Sample { name: name.to_owned(), labels, ..Sample::default() }
}

fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
}

#[test]
fn every_ready_template_passes_check_config_with_the_example_in_its_head() {
    let mut seen = 0;
    for entry in std::fs::read_dir(dir()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let config = example(&name);
        assert!(matches!(config.receivers.values().next().unwrap().kind, Kind::Template(_)));
        assert!(!config.rules.is_empty(), "{name}");
        let wrong =
            target::inspect(&config).into_iter().map(|e| format!("{:#}", anyhow::Error::from(e)));
        // The secrets and certificates that it names are not on this machine.
        let wrong: Vec<_> = wrong.filter(|e| !e.contains("No such file")).collect();
        assert_eq!(wrong, [""; 0], "{name}");
        seen += 1;
    }
    assert_eq!(seen, 5);
}

#[test]
fn kubernetes_gets_a_json_patch_that_adds_the_taint_and_removes_none() {
    let name = "kubernetes-out-of-service";
    let (message, body) = said(name, EventKind::HostDown, &host("node-1.example"));
    assert_eq!(message.method, "PATCH");
    assert_eq!(message.url, "https://kubernetes.example:6443/api/v1/nodes/node-1.example");
    assert_eq!(header(&message, "content-type"), "application/json-patch+json");
    let taint = json!({
        "key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute",
    });
    assert_eq!(body, json!([{ "op": "add", "path": "/spec/taints/-", "value": taint }]));
    for kind in [EventKind::HostRecovered, EventKind::HostAgentLost, EventKind::Test] {
        assert!(preview(&example(name), kind, &host("n")).unwrap_err().contains("refused"));
    }
    // A name cannot leave the path of its node.
    let (message, _) = said(name, EventKind::HostDown, &host("../../secrets?x=\"y\"\n"));
    let tail = message.url.strip_prefix("https://kubernetes.example:6443/api/v1/nodes/").unwrap();
    assert!(!tail.contains(['?', '"', '\n', ' ']), "{tail}");
}

#[test]
fn nomad_drains_what_is_down_and_frees_what_is_back() {
    let (message, body) = said("nomad-drain", EventKind::HostDown, &host("a\"b"));
    assert_eq!(message.method, "POST");
    assert_eq!(message.url, "https://nomad.example:4646/v1/node/5f-ab/drain");
    assert_eq!(header(&message, "x-nomad-token"), "SECRET-token");
    assert_eq!(body["DrainSpec"], json!({ "Deadline": -1, "IgnoreSystemJobs": true }));
    assert_eq!(body["MarkEligible"], false);
    // Nomad's Meta maps texts to texts.
    assert!(body["Meta"].as_object().unwrap().values().all(Value::is_string), "{body}");
    let (_, body) = said("nomad-drain", EventKind::HostRecovered, &host("a"));
    assert_eq!((&body["DrainSpec"], &body["MarkEligible"]), (&Value::Null, &json!(true)));
}

#[test]
fn redfish_forces_off_and_credentials_go_nowhere_else() {
    let (message, body) = said("redfish-power-off", EventKind::HostDown, &host("web-1"));
    assert_eq!(
        message.url,
        "https://web-1.bmc.example/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
    );
    assert_eq!(body, json!({ "ResetType": "ForceOff" }));
    assert!(header(&message, "authorization").starts_with("Basic "));
    for evil in ["evil.example/", "evil.example#", "x@evil.example:8443/", "a\"b"] {
        let error = preview(&example("redfish-power-off"), EventKind::HostDown, &host(evil));
        assert!(error.is_err(), "{evil}: {error:?}");
    }
}

#[test]
fn pagerduty_triggers_and_resolves_under_one_key() {
    let name = "pagerduty";
    let nasty = "a\"b\\c\n</script>";
    let (message, down) = said(name, EventKind::HostDown, &host(nasty));
    assert_eq!(message.url, "https://events.pagerduty.com/v2/enqueue");
    assert_eq!(down["event_action"], "trigger");
    assert_eq!(down["routing_key"], "SECRET-routing_key");
    let payload = &down["payload"];
    assert_eq!((&payload["source"], &payload["severity"]), (&json!(nasty), &json!("critical")));
    assert!(payload["summary"].as_str().unwrap().contains(nasty), "{payload}");
    assert_eq!(payload["custom_details"]["labels"]["nomad_node_id"], "5f-ab");
    let (_, up) = said(name, EventKind::HostRecovered, &host(nasty));
    assert_eq!((&up["event_action"], &up["dedup_key"]), (&json!("resolve"), &down["dedup_key"]));
    assert!(up.get("payload").is_none(), "{up}");
    let long = Sample { reason: "x".repeat(5_000), ..host("a") };
    let (_, long) = said(name, EventKind::HostDown, &long);
    assert_eq!(long["payload"]["summary"].as_str().unwrap().len(), 1_024);
    let (_, test) = said(name, EventKind::Test, &host("a"));
    assert_eq!(test["payload"]["severity"], "info");
    assert!(!test["dedup_key"].as_str().unwrap().is_empty());
}

#[test]
fn slack_gets_text_and_blocks_with_its_three_characters_escaped() {
    let (message, body) = said("slack", EventKind::HostDown, &host("<a&\"b\">\n"));
    assert_eq!(message.url, "SECRET-url");
    let text = body["text"].as_str().unwrap();
    assert!(text.contains("&lt;a&amp;\"b\"&gt;\n"), "{text}");
    assert_eq!(body["blocks"][0]["type"], "section");
    assert_eq!(body["blocks"][0]["text"], json!({ "type": "mrkdwn", "text": text }));
    let long = Sample { reason: "y".repeat(9_000), ..host("a") };
    let (_, long) = said("slack", EventKind::HostDown, &long);
    assert!(long["blocks"][0]["text"]["text"].as_str().unwrap().len() <= 3_000);
    let (_, own) = said("slack", EventKind::ControllerBlind, &host("a"));
    assert!(own["text"].as_str().unwrap().contains("the controller"), "{own}");
}
