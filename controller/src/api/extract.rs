//! What a route takes from a request, with every refusal told as a [`Problem`].

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri, header};
use serde::de::DeserializeOwned;

use super::access::{Scope, Who};
use super::problem::Problem;
use super::{Api, PAGE_LEN_DEFAULT};
use crate::store::READ_LEN_MAX;

/// Longest query, bytes.
pub(super) const QUERY_LEN_MAX: usize = 8 * 1024;
/// Most parameters in a query.
const PARAMS_LEN_MAX: usize = 64;
/// Longest host name, id or delivery number in a path, bytes.
const NAME_LEN_MAX: usize = 256;

/// Somebody whom the guard let through to change something. Routes that do take this first: should the guard
/// ever not stand before one, nothing of a stranger's body is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operator(());

impl FromRequestParts<Api> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Problem> {
        let who = parts.extensions.get::<Who>();
        if who.is_some_and(|who| who.scope >= Scope::Operate) {
            return Ok(Self(()));
        }
        let (title, detail) = ("a bearer token is needed", "this route changes something");
        Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", title, detail))
    }
}

/// Somebody whom the guard let through to do what needs the scope `admin`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trusted(());

impl FromRequestParts<Api> for Trusted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Problem> {
        if parts.extensions.get::<Who>().is_some_and(|who| who.scope == Scope::Admin) {
            return Ok(Self(()));
        }
        let (title, detail) = ("the token may not do this", "this route needs the scope `admin`");
        Err(Problem::new(StatusCode::FORBIDDEN, "scope", title, detail))
    }
}

/// The part of a path that names a host or a delivery.
#[derive(Clone, Debug)]
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|e| Problem::bad_request(e.body_text()))?;
        if name.len() > NAME_LEN_MAX {
            let detail =
                format!("a name of {} bytes is too long: {NAME_LEN_MAX} are allowed", name.len());
            return Err(Problem::bad_request(detail));
        }
        Ok(Self(name))
    }
}

/// The query, parameter by parameter. [`Params::only`] must be called first: it refuses what is unknown.
#[derive(Clone, Debug)]
pub(super) struct Params(BTreeMap<String, Vec<String>>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(&parts.uri)
    }
}

impl Params {
    /// The query of a URL.
    pub(super) fn of(uri: &Uri) -> Result<Self, Problem> {
        if uri.query().is_some_and(|q| q.len() > QUERY_LEN_MAX) {
            let detail = format!("the query is longer than {QUERY_LEN_MAX} bytes");
            let title = "the query is too long";
            return Err(Problem::new(StatusCode::URI_TOO_LONG, "too-long", title, detail));
        }
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| Problem::bad_request(e.body_text()))?;
        if pairs.len() > PARAMS_LEN_MAX {
            let detail = format!("at most {PARAMS_LEN_MAX} query parameters are allowed");
            return Err(Problem::bad_request(detail));
        }
        let mut params = BTreeMap::<String, Vec<String>>::new();
        for (key, value) in pairs {
            params.entry(key).or_default().push(value);
        }
        Ok(Self(params))
    }

    /// Refuses any parameter that is not listed: a misspelt filter must not list everything.
    pub(super) fn only(self, known: &[&str]) -> Result<Self, Problem> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(self),
            Some(key) if known.is_empty() => Err(Problem::bad_request(format!(
                "unknown query parameter `{}`: this route takes none",
                shorten(key)
            ))),
            Some(key) => Err(Problem::bad_request(format!(
                "unknown query parameter `{}`: this route takes {}",
                shorten(key),
                known.join(", ")
            ))),
        }
    }

    /// All values of a repeatable parameter.
    pub(super) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// The value of a parameter that may stand once.
    pub(super) fn one(&self, key: &str) -> Result<Option<&str>, Problem> {
        match self.all(key) {
            [] => Ok(None),
            [value] => Ok(Some(value)),
            _ => Err(Problem::bad_request(format!("`{key}` may be given once only"))),
        }
    }

    /// A parsed parameter that may stand once.
    pub(super) fn parsed<T>(&self, key: &str) -> Result<Option<T>, Problem>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.one(key)?
            .map(|text| {
                text.parse()
                    .map_err(|e| Problem::bad_request(format!("`{key}={}`: {e}", shorten(text))))
            })
            .transpose()
    }

    /// A parameter that is a whole number within bounds.
    pub(super) fn number(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.one(key)? else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(n) if (min..=max).contains(&n) => Ok(Some(n)),
            _ => Err(Problem::bad_request(format!(
                "`{key}={}`: a whole number from {min} to {max} is needed",
                shorten(text)
            ))),
        }
    }

    /// The page length: `limit`, 1 to 1000, default 100.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let limit = self.number("limit", 1, READ_LEN_MAX as u64)?;
        Ok(limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(PAGE_LEN_DEFAULT))
    }

    /// A length of time with its unit, bounded.
    pub(super) fn span(&self, key: &str, max: Duration) -> Result<Option<Duration>, Problem> {
        let Some(span) = self.parsed::<heartwatch_common::config::Span>(key)? else {
            return Ok(None);
        };
        if span.0 > max {
            let most = heartwatch_common::config::Span(max);
            return Err(Problem::bad_request(format!("`{key}={span}`: at most {most} is allowed")));
        }
        Ok(Some(span.0))
    }
}

/// A JSON request body.
#[derive(Clone, Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let media = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let media = media.and_then(|m| m.split(';').next()).unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Problem::of_status(
                status,
                "send the header `content-type: application/json`",
            ));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|e| Problem::of_status(e.status(), &e.body_text()))?;
        parse(&bytes).map(Self)
    }
}

/// A JSON body.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|e| {
        let e = e.to_string();
        let shown = heartwatch_common::secret::hidden(&e);
        Problem::bad_request(format!("the request body is not usable: {shown}"))
    })
}

/// A stranger's text for an error message: bounded, and without a secret that was put in the place of a name.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let text = &*heartwatch_common::secret::hidden(text);
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}
