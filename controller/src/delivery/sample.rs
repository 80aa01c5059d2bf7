//! Pure: events of every kind as they might be journaled, to try what is made of them: at start, by
//! `check-config`, by `heartwatchctl receivers preview`, in tests. And the event of a real test.

use std::collections::BTreeMap;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use serde_json::{Map, Value, json};

use crate::detector::host::Evidence;
use crate::event::{EventId, EventKind, IncidentId, payload};
use crate::policy::is_action;
use crate::store::{Outgoing, Token};

/// A host that a sample is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is told as the reason.
    pub reason: String,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            name: "web-1".to_owned(),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            reason: "a sample: nothing happened".to_owned(),
        }
    }
}

impl Sample {
    /// Another host, with the same labels but other values.
    pub fn other(&self) -> Self {
        let labels = self.labels.iter().map(|(k, v)| (k.clone(), format!("other-{v}"))).collect();
        Self { name: format!("other-{}", self.name), labels, ..self.clone() }
    }

    /// A host with these labels whose texts try to break out of whatever they are put into.
    pub fn nasty(&self) -> Self {
        let nasty = "x\"y\\z\n'<&>@/?#% {{ 1 }} \u{fc}";
        let labels = self.labels.keys().map(|k| (k.clone(), nasty.to_owned())).collect();
        Self { name: nasty.to_owned(), labels, reason: nasty.to_owned() }
    }
}

/// When samples happen.
const AT: Wall = Wall(1_769_860_800_250);

/// An event of this kind. The same arguments give the same event.
pub fn sample(kind: EventKind, host: &Sample) -> Outgoing {
    let event = EventId(uuid::Uuid::from_u128(0x019c_12ab_34cd_7000_8000_0000_0000_0001));
    let incident = IncidentId(uuid::Uuid::from_u128(0x019c_12ab_34cd_7000_8000_0000_0000_0002));
    if kind == EventKind::Test {
        let body = payload(kind, AT, &test_data(event, author()));
        return Outgoing { event, kind, host: None, token: None, attempt: 1, body };
    }
    let of_host = ["host.", "incident."].iter().any(|p| kind.as_str().starts_with(p));
    let token = of_host.then_some(Token((1 << 32) + 7));
    let mut data = Map::new();
    let mut put = |key: &str, value: Value| {
        data.insert(key.to_owned(), value);
    };
    put("event_id", json!(event));
    if of_host {
        put(
            "host",
            json!({
                "id": HostId([0x5a; 16]),
                "name": host.name,
                "labels": host.labels,
                "address": "192.0.2.7:40000",
            }),
        );
        put("incident", json!(incident));
        put("token", json!(token));
        put("supersedes", json!([]));
        put("state", json!(state(kind)));
        put("cause", json!(cause(kind)));
        put("boot", json!(3));
    }
    put("reason", json!(host.reason));
    put("controller", author());
    if of_host {
        put(
            "evidence",
            json!(Evidence { silence_ms: 3_500, probes_sent: 3, ..Evidence::default() }),
        );
    }
    match kind {
        EventKind::HostRecovered | EventKind::HostRestarted | EventKind::HostJoined => {
            put("same_boot", json!(false));
            put("from", json!("down"));
            put("from_cause", json!("silent"));
        }
        EventKind::HostLeft => {
            put("leave_reason", json!("shutdown"));
            put("expected_away_s", json!(0));
        }
        EventKind::DomainDown | EventKind::DomainStorm | EventKind::DomainCalm => {
            // A domain of one level.
            let labels = host.labels.iter().next_back();
            let labels: BTreeMap<_, _> =
                labels.map(|(k, v)| (k.clone(), v.clone())).into_iter().collect();
            let name = labels.iter().map(|(k, v)| format!("{k}={v}")).next();
            put("domain", json!(name.unwrap_or_else(|| "fleet".to_owned())));
            put("labels", json!(labels));
            put("silent", json!(7));
            put("heard", json!(13));
            put("held", json!(5));
        }
        EventKind::IncidentCompleted => {
            put("receiver", json!("orchestrator"));
            put("order_token", json!(Token((1 << 32) + 6)));
        }
        EventKind::IncidentVetoed => {
            put("rule", json!("failover"));
            put("receiver", json!("orchestrator"));
            put("order", json!(event));
        }
        EventKind::IncidentFailed => put("rule", json!("failover")),
        EventKind::IncidentEscalated => {
            put("rule", json!("failover"));
            put("level", json!(0));
            put("receiver", json!("second"));
            put("instead_of", json!(["orchestrator"]));
        }
        EventKind::HostDuplicate => {
            put("other_boot", json!(4));
            put("other_address", json!("192.0.2.8:40000"));
        }
        EventKind::HostOverdue => put("expected_away_s", json!(600)),
        EventKind::MaintenanceStarted | EventKind::MaintenanceEnded => {
            put("by", json!("an operator"));
            put(
                "window",
                json!({
                    "id": "m7",
                    "scope": { "domain": "zone=a" },
                    "reason": host.reason,
                    "by": "an operator",
                    "from_ms": AT.0,
                    "until_ms": AT.0 + 1_800_000,
                    "announced": false,
                    "begun": true,
                }),
            );
        }
        EventKind::ControllerAudit => {
            put("who", json!({ "name": "ann", "scope": "operate", "address": "192.0.2.8" }));
            let parameters = json!({ "for": "10m", "reason": "switch work" });
            let path = "/v1/pause";
            put("what", json!({ "method": "POST", "path": path, "parameters": parameters }));
            put("status", json!(200));
        }
        EventKind::HostEnrolled => {
            let labels = json!({ "pool": "a" });
            put(
                "enrolment",
                json!({
                    "how": "new", "token": "t", "generation": 0, "labels": labels, "asked_for": null,
                }),
            );
        }
        EventKind::HostFrozen => put("frozen_ms", json!(5_000)),
        EventKind::HostUnfrozen => put("frozen_ms", Value::Null),
        kind if is_action(kind) => {
            let left_out = json!({ "suspect": 1 });
            put("candidates", json!([]));
            put("placement", json!({ "looked_at": 1, "whole": true, "left_out": left_out }));
        }
        _ => {}
    }
    put("verdicts", json!([]));
    let id = of_host.then_some(HostId([0x5a; 16]));
    Outgoing { event, kind, host: id, token, attempt: 1, body: payload(kind, AT, &data) }
}

fn author() -> Value {
    json!({ "id": "0000000000000007", "name": "controller" })
}

fn state(kind: EventKind) -> &'static str {
    match kind {
        EventKind::HostSuspect | EventKind::HostUnreachable | EventKind::HostOverdue => "suspect",
        EventKind::HostDuplicate => "duplicate",
        EventKind::HostDown
        | EventKind::HostAgentLost
        | EventKind::IncidentCompleted
        | EventKind::IncidentFailed
        | EventKind::IncidentVetoed
        | EventKind::IncidentEscalated => "down",
        EventKind::HostMissing | EventKind::HostEnrolled => "pending",
        EventKind::HostLeft | EventKind::HostForgotten => "left",
        _ => "alive",
    }
}

fn cause(kind: EventKind) -> Option<&'static str> {
    match kind {
        EventKind::HostUnreachable => Some("unreachable"),
        EventKind::HostDown => Some("silent"),
        EventKind::HostAgentLost => Some("agent-lost"),
        _ => None,
    }
}

/// The `data` of a real test event: marked, and about a host that does not exist.
pub fn test_data(event: EventId, author: Value) -> Map<String, Value> {
    let data = json!({
        "event_id": event,
        "test": true,
        "host": {
            "id": HostId([0; 16]),
            "name": "heartwatch-test",
            "labels": {},
            "address": null,
        },
        "incident": null,
        "token": null,
        "state": "alive",
        "cause": null,
        "reason": "an operator tries this receiver: nothing happened, do nothing",
        "controller": author,
    });
    match data {
        Value::Object(data) => data,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks what the schema uses: types, required members, members of members.
    fn check(schema: &Value, value: &Value, at: &str) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let allowed = match &schema["type"] {
            Value::Array(several) => several.clone(),
            one => vec![one.clone()],
        };
        assert!(allowed.iter().any(|t| t == kind), "{at} is {kind}, the schema says {allowed:?}");
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(value.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}");
        }
        let Some(members) = schema["properties"].as_object() else { return };
        for (name, member) in value.as_object().into_iter().flatten() {
            let known = members.get(name).unwrap_or_else(|| panic!("{at}.{name} is not told of"));
            check(known, member, &format!("{at}.{name}"));
        }
    }

    #[test]
    fn every_event_is_as_the_schema_says() {
        let text = include_str!("../../docs/event.schema.json");
        let schema: Value = serde_json::from_str(text).unwrap();
        for kind in EventKind::ALL {
            let body: Value = serde_json::from_str(&sample(kind, &Sample::default()).body).unwrap();
            check(&schema, &body, kind.as_str());
            assert_eq!(body["type"], kind.as_str());
        }
    }

    #[test]
    fn what_the_policy_writes_of_the_controller_itself_is_so_too() {
        use rand::SeedableRng;
        let schema: Value =
            serde_json::from_str(include_str!("../../docs/event.schema.json")).unwrap();
        let author = crate::policy::Author {
            id: heartwatch_common::id::ControllerId(7),
            name: "c".to_owned(),
        };
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let policy = crate::policy::Policy::new(author, Vec::new());
        let mut event = policy.own_event(EventKind::ControllerBlind, "why", AT, &mut rng);
        event.data.insert("event_id".to_owned(), json!(event.id));
        let body = payload(event.kind, event.at, &event.data);
        check(&schema, &serde_json::from_str(&body).unwrap(), "own");
    }
}
