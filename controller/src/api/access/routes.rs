//! Which route needs what: the one table.
//!
//! A route that is not in it answers nobody (the guard refuses it as a bug of ours), and a test compares it
//! with the router.

use axum::http::Method;
use heartwatch_common::enrol::MESSAGE_LEN_MAX;

use super::scope::Scope;
use crate::api::{BODY_LEN_MAX, IMPORT_BODY_LEN_MAX};

/// What a request must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Need {
    /// Nothing: it tells next to nothing, or proves itself by what it carries.
    Nothing,
    /// A token of at least this scope.
    Scope(Scope),
}

/// One route.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct Rule {
    pub(in crate::api) method: &'static str,
    pub(in crate::api) path: &'static str,
    pub(in crate::api) need: Need,
    /// What the audit tells of its query and body: these members and no other. Nothing secret may stand in
    /// them. `None`: it changes nothing, and is not audited.
    pub(in crate::api) told: Option<&'static [&'static str]>,
    /// Longest body that it takes, bytes.
    pub(in crate::api) body_max: usize,
}

impl Rule {
    const fn taking(self, body_max: usize) -> Self {
        Self { body_max, ..self }
    }
}

const fn get(path: &'static str) -> Rule {
    Rule { method: "GET", path, need: Need::Scope(Scope::Read), told: None, body_max: BODY_LEN_MAX }
}

/// Who may do what, and under which keys, is for those alone who say so.
const fn list(path: &'static str) -> Rule {
    Rule { need: Need::Scope(Scope::Admin), ..get(path) }
}

const fn open(method: &'static str, path: &'static str) -> Rule {
    Rule { method, need: Need::Nothing, ..get(path) }
}

const fn operate(method: &'static str, path: &'static str, told: &'static [&'static str]) -> Rule {
    Rule { method, need: Need::Scope(Scope::Operate), told: Some(told), ..get(path) }
}

const fn admin(method: &'static str, path: &'static str, told: &'static [&'static str]) -> Rule {
    Rule { method, need: Need::Scope(Scope::Admin), told: Some(told), ..get(path) }
}

/// Members of an operator's word.
const WORD: &[&str] = &["by", "reason", "domain"];

pub(in crate::api) const ROUTES: &[Rule] = &[
    get("/v1/hosts"),
    operate("POST", "/v1/hosts/import", &[]).taking(IMPORT_BODY_LEN_MAX),
    get("/v1/hosts/{host}"),
    admin("DELETE", "/v1/hosts/{host}", &[]),
    get("/v1/hosts/{host}/why"),
    operate("PUT", "/v1/hosts/{host}/freeze", &["margin_ms"]),
    operate("DELETE", "/v1/hosts/{host}/freeze", &[]),
    operate("POST", "/v1/hosts/{host}/single", &["by", "reason"]),
    get("/v1/events"),
    get("/v1/deliveries"),
    operate("POST", "/v1/deliveries/redrive", &["ids", "dead"]),
    get("/v1/deliveries/{id}"),
    get("/v1/holds"),
    operate("POST", "/v1/holds/approve", WORD),
    operate("POST", "/v1/holds/reject", WORD),
    operate("POST", "/v1/holds/{host}/approve", WORD),
    operate("POST", "/v1/holds/{host}/reject", WORD),
    get("/v1/incidents"),
    get("/v1/incidents/{id}"),
    operate("POST", "/v1/incidents/{id}/complete", &["token", "result", "reason", "receiver"]),
    get("/v1/rules"),
    // It supposes something, and changes nothing.
    Rule { method: "POST", ..get("/v1/rules/test") },
    get("/v1/maintenance"),
    operate(
        "POST",
        "/v1/maintenance",
        &["host", "domain", "labels", "for", "from_ms", "until_ms", "by", "reason"],
    ),
    operate("DELETE", "/v1/maintenance/{window}", &["by", "reason"]),
    get("/v1/drill"),
    operate("POST", "/v1/drill", &[]),
    // A drill's own webhook: its signature is its pass.
    open("POST", "/v1/canary"),
    get("/v1/candidates"),
    get("/v1/receivers"),
    operate("POST", "/v1/receivers/{name}/test", &[]),
    // A join token, or the proof of a key, is the pass here.
    open("GET", "/v1/enrol/nonce"),
    open("POST", "/v1/enrol").taking(MESSAGE_LEN_MAX),
    open("POST", "/v1/enrol/renew").taking(MESSAGE_LEN_MAX),
    open("POST", "/v1/enrol/standing").taking(MESSAGE_LEN_MAX),
    list("/v1/join-tokens"),
    admin("POST", "/v1/join-tokens", &["name", "ttl", "uses", "labels", "clones", "by"]),
    admin("DELETE", "/v1/join-tokens/{name}", &[]),
    list("/v1/identities"),
    admin("POST", "/v1/hosts/{host}/revoke", &["by", "reason"]),
    admin("DELETE", "/v1/hosts/{host}/revoke", &[]),
    list("/v1/secrets"),
    admin("POST", "/v1/secrets/rotate", &[]),
    admin("POST", "/v1/secrets/reload", &["force"]),
    admin("POST", "/v1/secrets/{key_id}/retire", &["force"]),
    list("/v1/tokens"),
    admin("POST", "/v1/tokens", &["name", "scope", "ttl"]),
    admin("DELETE", "/v1/tokens/{name}", &[]),
    get("/v1/status"),
    operate("POST", "/v1/pause", &["for", "reason"]),
    operate("DELETE", "/v1/pause", &[]),
    admin("POST", "/v1/backup", &[]),
    get("/metrics"),
    open("GET", "/healthz"),
    // Its reasons are told to those who may read.
    open("GET", "/readyz"),
];

/// What the table says of a request.
#[derive(Clone, Debug)]
pub(in crate::api) enum Found {
    Rule(&'static Rule),
    /// The path has other methods: these.
    OtherMethods(String),
    /// The path is not there.
    Unlisted,
}

/// Looks a request up by its method and the pattern that its path met.
pub(in crate::api) fn find(method: &Method, pattern: &str) -> Found {
    // Who may GET may ask for the head of it.
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    let of_path: Vec<_> = ROUTES.iter().filter(|rule| rule.path == pattern).collect();
    match of_path.iter().find(|rule| rule.method == method) {
        Some(rule) => Found::Rule(rule),
        None if of_path.is_empty() => Found::Unlisted,
        None => {
            let methods: Vec<_> = of_path.iter().map(|rule| rule.method).collect();
            Found::OtherMethods(methods.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Methods and paths as the router's own text has them.
    fn in_router() -> BTreeSet<(String, String)> {
        let part = |text: &'static str, ends: &str| {
            let begin = text.find("Router::new()").unwrap();
            &text[begin..begin + text[begin..].find(ends).unwrap()]
        };
        let own = part(include_str!("../mod.rs"), ".fallback(");
        let enrol = part(include_str!("../enrol.rs"), "\n}\n");
        let mut found = BTreeSet::new();
        for route in own.split(".route(").skip(1).chain(enrol.split(".route(").skip(1)) {
            let path = route.split('"').nth(1).unwrap();
            let handlers = route.split_once('"').unwrap().1.split_once('"').unwrap().1;
            for (word, method) in [
                ("get(", "GET"),
                ("post(", "POST"),
                ("put(", "PUT"),
                ("delete(", "DELETE"),
                ("patch(", "PATCH"),
                ("any(", "ANY"),
                ("on(", "ON"),
            ] {
                let begins = |at: usize| {
                    !handlers[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                };
                if handlers.match_indices(word).any(|(at, _)| begins(at)) {
                    found.insert((method.to_owned(), path.to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn every_route_of_the_router_is_in_the_table_and_no_other() {
        let table: BTreeSet<_> =
            ROUTES.iter().map(|r| (r.method.to_owned(), r.path.to_owned())).collect();
        assert_eq!(table.len(), ROUTES.len(), "a route is told twice");
        assert_eq!(table, in_router());
    }

    #[test]
    fn what_changes_something_needs_more_than_reading_and_is_audited() {
        for rule in ROUTES {
            let reads =
                rule.method == "GET" || rule.path == "/v1/rules/test" || rule.need == Need::Nothing;
            assert_eq!(reads, rule.told.is_none(), "{} {}", rule.method, rule.path);
            let weak = matches!(rule.need, Need::Nothing | Need::Scope(Scope::Read));
            assert!(reads || !weak, "{} {}", rule.method, rule.path);
        }
    }

    #[test]
    fn requests_are_found_by_pattern_and_method() {
        let found = |method: &Method, pattern| find(method, pattern);
        assert!(matches!(found(&Method::HEAD, "/metrics"), Found::Rule(r) if r.method == "GET"));
        assert!(matches!(found(&Method::PATCH, "/metrics"), Found::OtherMethods(m) if m == "GET"));
        assert!(matches!(found(&Method::GET, "/v2"), Found::Unlisted));
    }
}
