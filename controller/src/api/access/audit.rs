//! Who changed what: one event `controller.audit` in the journal for every call that was let through and may
//! have changed something, whatever became of it.
//!
//! It is journaled once the answer is known, so that it can tell it. What needs the scope `admin` is refused
//! beforehand while the journal cannot be written, and answered only when its entry is on the disk: rights
//! are not given, and the store not handed out, without a trace. What needs `operate` goes through all the
//! same: with a full disk people must still be able to hold failovers. Its entry waits with the other events
//! until the journal can be written, and stands in the log meanwhile. Whatever cannot be journaled at all is
//! logged with all it says, and counted.
//!
//! An entry tells of the query and the body only what the route's row in the table names.

use axum::body::Bytes;
use axum::http::Uri;
use heartwatch_common::secret;
use serde_json::{Map, Value, json};

use super::routes::Rule;
use super::scope::Who;
use crate::api::peer::Peer;

/// Longest path and longest value that is told, characters.
const TEXT_LEN_MAX: usize = 300;
/// Most entries of a list that are told.
const LIST_LEN_MAX: usize = 20;

/// What is known before the answer is.
#[derive(Clone, Debug)]
pub(in crate::api) struct Entry {
    who: Map<String, Value>,
    what: Map<String, Value>,
}

/// Short, and without a secret that somebody put where its name belongs.
fn clip(text: &str) -> String {
    if let Some(at) = secret::begins_at(text) {
        return format!("{}(a secret)", clip(&text[..at]));
    }
    match text.char_indices().nth(TEXT_LEN_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A value that may be long, made short.
fn short(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(clip(text)),
        Value::Array(list) if list.len() > LIST_LEN_MAX => {
            let mut few: Vec<_> = list[..LIST_LEN_MAX].iter().map(short).collect();
            few.push(json!(format!("and {} more", list.len() - LIST_LEN_MAX)));
            Value::Array(few)
        }
        Value::Array(list) => Value::Array(list.iter().map(short).collect()),
        Value::Object(_) => json!(clip(&value.to_string())),
        other => other.clone(),
    }
}

fn parameters(told: &[&str], uri: &Uri, body: &[u8]) -> Map<String, Value> {
    let mut all = Map::new();
    let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    for (key, value) in query.map(|q| q.0).unwrap_or_default() {
        if told.contains(&key.as_str()) {
            all.insert(key, json!(clip(&value)));
        }
    }
    if let Ok(Value::Object(body)) = serde_json::from_slice(body) {
        for (key, value) in body {
            if told.contains(&key.as_str()) {
                all.insert(key, short(&value));
            }
        }
    }
    all
}

/// The member of a body, of those that an entry tells, in which a secret stands.
pub(super) fn secret_in(told: &[&'static str], body: &[u8]) -> Option<&'static str> {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return None };
    told.iter().copied().find(|key| match body.get(*key) {
        Some(Value::String(text)) if *key == "host" => secret::is_no_name(text),
        // A join token that has lost its beginning looks like that.
        Some(Value::String(text)) if *key == "name" => {
            secret::is_in(text) || secret::is_token_digits(text)
        }
        Some(value) => secret::is_in(&value.to_string()),
        None => false,
    })
}

impl Entry {
    pub(in crate::api) fn new(
        who: &Who,
        peer: &Peer,
        rule: &Rule,
        uri: &Uri,
        body: &Bytes,
    ) -> Self {
        let mut by = Map::new();
        by.insert("name".to_owned(), json!(who.name));
        by.insert("scope".to_owned(), json!(who.scope));
        by.insert("address".to_owned(), json!(peer.address));
        let mut what = Map::new();
        what.insert("method".to_owned(), json!(rule.method));
        what.insert("path".to_owned(), json!(clip(uri.path())));
        let parameters = parameters(rule.told.unwrap_or_default(), uri, body);
        if !parameters.is_empty() {
            what.insert("parameters".to_owned(), Value::Object(parameters));
        }
        Self { who: by, what }
    }

    /// The event's `data`, now that it is known what was answered.
    pub(in crate::api) fn data(self, status: u16) -> Map<String, Value> {
        let text = |map: &Map<String, Value>, key: &str| {
            map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let reason = format!(
            "{} {} by {} ({}) from {}: {status}",
            text(&self.what, "method"),
            text(&self.what, "path"),
            text(&self.who, "name"),
            text(&self.who, "scope"),
            text(&self.who, "address"),
        );
        Map::from_iter([
            ("reason".to_owned(), json!(reason)),
            ("who".to_owned(), Value::Object(self.who)),
            ("what".to_owned(), Value::Object(self.what)),
            ("status".to_owned(), json!(status)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::access::routes::ROUTES;
    use crate::api::access::scope::Scope;

    fn entry(path: &str, uri: &str, body: &str) -> Map<String, Value> {
        let rule = ROUTES.iter().find(|r| r.path == path && r.told.is_some()).unwrap();
        let who = Who { name: "ann".to_owned(), scope: Scope::Operate };
        let uri = uri.parse().unwrap();
        let body = Bytes::from(body.to_owned());
        Entry::new(&who, &Peer::LOCAL, rule, &uri, &body).data(200)
    }

    #[test]
    fn an_entry_tells_who_did_what_and_only_what_the_table_names() {
        let body =
            r#"{"for": "10m", "reason": "switch", "secret": "s3cret", "password": "s3cret"}"#;
        let data = entry("/v1/pause", "/v1/pause?token=s3cret&for=1m", body);
        assert_eq!(data["reason"], "POST /v1/pause by ann (operate) from 127.0.0.1: 200");
        assert_eq!(
            data["what"],
            json!({
                "method": "POST",
                "path": "/v1/pause",
                "parameters": {"for": "10m", "reason": "switch"}
            })
        );
        assert_eq!(data["who"], json!({"name": "ann", "scope": "operate", "address": "127.0.0.1"}));
        assert!(!Value::Object(data).to_string().contains("s3cret"));
    }

    /// `token revoke` was given the token itself: it stood in the log, and in the journal for all to read.
    #[test]
    fn a_secret_in_the_place_of_a_name_is_not_told() {
        for secret in ["hwj1_00ff_aa", "hwt1_00ff", "hwk1:1:0:00ff", "whsec_00ff"] {
            let told = clip(&format!("/v1/join-tokens/{secret}"));
            assert_eq!(told, "/v1/join-tokens/(a secret)");
        }
        assert_eq!(clip("/v1/tokens/grafana"), "/v1/tokens/grafana");
    }

    #[test]
    fn whatever_is_sent_an_entry_is_short() {
        let ids: Vec<u64> = (0..5_000).collect();
        let body = json!({"ids": ids, "dead": {"x": "y".repeat(50_000)}}).to_string();
        let uri =
            format!("/v1/deliveries/redrive?ids={}", "é".repeat(3_000).replace('é', "%C3%A9"));
        let data = entry("/v1/deliveries/redrive", &uri, &body);
        let text = Value::Object(data).to_string();
        assert!(text.len() < 1_500 && text.contains("and 4980 more"), "{text}");
        for odd in ["", "[", "[1,2]", "\"x\"", "\u{0}"] {
            entry("/v1/pause", "/v1/pause", odd);
        }
    }
}
