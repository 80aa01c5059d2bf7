//! What a request asks, read from its bytes alone: every body and every query that some route takes.
//!
//! Routes read theirs through the same functions and then ask the controller; here nobody is asked, so that
//! any bytes can be thrown at all that reads bytes (`tests/src/fuzzing/asked.rs`). A new route with a body
//! gets a line in [`Asked`].

use axum::http::Uri;
use heartwatch_common::id::HostId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::extract::{Params, parse};
use super::hosts::{FreezeBody, PageToken, check_import, filter};
use super::problem::Problem;
use super::types::{CompleteBody, PauseBody, SupposeBody, WindowBody, WordBody, parse_cursor};
use super::{candidates, holds};
use crate::control::{ImportHost, Redrive};
use crate::policy::maintenance::Labels;
use crate::policy::parse_domain;
use crate::policy::question::parse_supposed;

/// A kind of body, or a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `POST /v1/hosts/import`
    Import,
    /// `PUT /v1/hosts/{host}/freeze`
    Freeze,
    /// `POST /v1/pause`
    Pause,
    /// `POST /v1/deliveries/redrive`
    Redrive,
    /// `POST /v1/holds/…`
    Word,
    /// `POST /v1/maintenance`
    Window,
    /// `POST /v1/rules/test`
    Supposed,
    /// `POST /v1/incidents/{id}/complete`
    Complete,
    /// What follows the question mark, of any route.
    Query,
}

impl Asked {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Import,
        Self::Freeze,
        Self::Pause,
        Self::Redrive,
        Self::Word,
        Self::Window,
        Self::Supposed,
        Self::Complete,
        Self::Query,
    ];

    /// Reads `bytes` as that, with every check that needs nothing but them. Answers what was understood, as
    /// it would be written again; `None` of a query and of what is only read.
    pub fn read(self, bytes: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
        match self {
            Self::Import => {
                let hosts: Vec<ImportHost> = parse(bytes)?;
                hosts.iter().try_for_each(check_import).map_err(Problem::bad_request)?;
                Ok(again(&hosts))
            }
            Self::Freeze => parse::<FreezeBody>(bytes).map(|_| None),
            Self::Pause => only_read::<PauseBody>(bytes),
            Self::Redrive => only_read::<Redrive>(bytes),
            Self::Word => {
                let body: WordBody = parse(bytes)?;
                words(&body.by, &body.reason)?;
                Ok(again(&body))
            }
            Self::Window => {
                let body: WindowBody = parse(bytes)?;
                words(&body.by, &body.reason)?;
                let domain = body.domain.as_deref().map(parse_domain).transpose();
                domain.map_err(Problem::bad_request)?;
                let labels = body.labels.as_deref().map(str::parse::<Labels>).transpose();
                labels.map_err(Problem::bad_request)?;
                Ok(again(&body))
            }
            Self::Supposed => {
                let body: SupposeBody = parse(bytes)?;
                parse_supposed(&body.kind).map_err(Problem::bad_request)?;
                Ok(again(&body))
            }
            Self::Complete => only_read::<CompleteBody>(bytes),
            Self::Query => query(bytes).map(|()| None),
        }
    }
}

fn again<T: Serialize>(body: &T) -> Option<Vec<u8>> {
    serde_json::to_vec(body).ok()
}

fn only_read<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    parse::<T>(bytes).map(|body| again(&body))
}

fn words(by: &str, reason: &str) -> Result<(), Problem> {
    holds::check("by", by, holds::BY_LEN_MAX)?;
    holds::check("reason", reason, holds::REASON_LEN_MAX).map(drop)
}

/// Each parameter by every reader that some route has for it.
fn query(bytes: &[u8]) -> Result<(), Problem> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    // What is no URL reaches no route.
    let Ok(uri) = format!("/v1/x?{text}").parse::<Uri>() else { return Ok(()) };
    let params = Params::of(&uri)?;
    let known = [
        "state", "label", "name", "limit", "page", "after", "host", "wait", "tail", "receiver",
        "incident", "domain", "by", "reason", "labels", "same", "open",
    ];
    let params = params.only(&known)?;
    filter(&params)?;
    params.limit()?;
    params.number("tail", 1, 1_000)?;
    params.span("wait", super::events::WAIT_MAX)?;
    params.parsed::<HostId>("host")?;
    if let Some(text) = params.one("domain")? {
        parse_domain(text).map_err(Problem::bad_request)?;
    }
    if let Some(text) = params.one("labels")? {
        candidates::labels(text)?;
    }
    if let Some(text) = params.one("page")? {
        PageToken::parse(text);
    }
    if let Some(text) = params.one("after")? {
        parse_cursor(text);
    }
    words(params.one("by")?.unwrap_or("x"), params.one("reason")?.unwrap_or("x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_understood_again_as_it_is_written() {
        let host = HostId([7; 16]);
        let cases = [
            (Asked::Import, format!("[{{\"id\":\"{host}\",\"labels\":{{\"zone\":\"a\"}}}}]")),
            (Asked::Pause, "{\"for\":\"30m\",\"reason\":\"switch\"}".into()),
            (Asked::Redrive, "{\"dead\":{\"receiver\":null}}".into()),
            (Asked::Word, "{\"by\":\"me\",\"reason\":\"it is dead\"}".into()),
            (
                Asked::Window,
                "{\"labels\":\"pool=db,zone!=a\",\"for\":\"1h\",\"by\":\"me\",\"reason\":\"disk\"}"
                    .into(),
            ),
            (Asked::Supposed, "{\"host\":\"web-1\",\"as\":\"down\"}".into()),
            (Asked::Complete, "{\"token\":7,\"result\":\"failed\"}".into()),
        ];
        for (asked, text) in cases {
            let once = asked.read(text.as_bytes()).unwrap().unwrap();
            assert_eq!(asked.read(&once).unwrap().unwrap(), once, "{asked:?}");
        }
        assert_eq!(Asked::Freeze.read(b"{\"margin_ms\":5000}"), Ok(None));
        assert_eq!(Asked::Query.read(b"state=down&label=a%3Db&limit=7&wait=30s"), Ok(None));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for asked in Asked::ALL {
            let nonsense: &[u8] = if asked == Asked::Query { b"limit=0" } else { b"[{]" };
            let problem = asked.read(nonsense).unwrap_err();
            assert!(problem.status == 400 && !problem.detail.is_empty(), "{asked:?}");
        }
        let word = b"{\"by\":\"me\",\"reason\":\"two\\nlines\"}";
        assert!(Asked::Word.read(word).unwrap_err().detail.contains("one line"));
    }
}
