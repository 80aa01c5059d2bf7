//! The example configs say what the code does: they parse, they are accepted, and every value in them is
//! the default.

use std::path::PathBuf;

use heartwatch_controller::config::{Kind, RawConfig};

fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Switches on the lines that begin with `#: `.
fn switched_on(text: &str) -> String {
    text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_controllers_example_equals_the_defaults() {
    let text = example("controller.toml");
    let example: RawConfig = toml::from_str(&text).unwrap();
    example.check().unwrap();
    let print = |c: &RawConfig| toml::to_string_pretty(c).unwrap();
    assert_eq!(print(&example), print(&RawConfig::default()));
}

#[test]
fn the_controllers_example_shows_every_setting() {
    let text = switched_on(&example("controller.toml"));
    let shown: toml::Table = text.parse().unwrap();
    let all: toml::Table = toml::to_string(&RawConfig::default()).unwrap().parse().unwrap();
    for (key, value) in &all {
        assert!(shown.contains_key(key), "{key} is not shown");
        for inner in value.as_table().into_iter().flat_map(toml::Table::keys) {
            let table = shown[key].as_table().unwrap();
            assert!(table.contains_key(inner), "{key}.{inner} is not shown");
        }
    }
}

#[test]
fn what_the_controllers_example_only_suggests_is_accepted_too_and_equals_the_defaults() {
    let raw: RawConfig = toml::from_str(&switched_on(&example("controller.toml"))).unwrap();
    raw.check().unwrap();
    let short = "[receivers.orchestrator]\nurl = \"https://orchestrator.example/hooks/heartwatch\"\n\
                 secret_file = \"/etc/heartwatch/orchestrator.secret\"\n\
                 bearer_token_file = \"/etc/heartwatch/orchestrator.token\"\n\
                 client_cert_file = \"/etc/heartwatch/orchestrator-client.pem\"\n\
                 client_key_file = \"/etc/heartwatch/orchestrator-client.key\"\n\
                 ca_file = \"/etc/heartwatch/orchestrator-ca.pem\"\n";
    let defaults: RawConfig = toml::from_str(short).unwrap();
    let print = |c: &RawConfig| toml::to_string(&c.receivers["orchestrator"]).unwrap();
    assert_eq!(print(&raw), print(&defaults));
    // The other receivers are of every other kind.
    let config = raw.check().unwrap();
    let kinds: Vec<_> = config.receivers.values().map(|r| r.kind.as_str()).collect();
    assert_eq!(kinds, ["alertmanager", "masakari", "native", "template", "exec"]);
    let Kind::Alertmanager { resend_every, .. } = &config.receivers["alerts"].kind else {
        panic!("it is one")
    };
    assert_eq!(resend_every.as_secs(), 60, "the default, as the example shows it");
    assert!(!raw.rules[0].dry_run);
}

#[test]
fn the_agents_example_is_the_one_that_the_agent_carries() {
    // The agent's own tests hold that one to the agent's defaults.
    assert_eq!(example("agent.toml"), heartwatch_agent::config::EXAMPLE);
    let _: toml::Table = switched_on(&example("agent.toml")).parse().unwrap();
}
