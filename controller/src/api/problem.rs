//! Errors as the API tells them: RFC 9457, `application/problem+json`.
//!
//! ```json
//! {"type": "urn:heartwatch:problem:unknown-host", "title": "no such host", "status": 404,
//!  "detail": "no host `web-1` is registered", "instance": "/v1/hosts/web-1"}
//! ```
//!
//! `type` is what programs compare, `detail` is for people. `instance` (the path asked for) is added by
//! the outermost layer of the router, which also turns every error that axum or a layer made itself
//! (plain text) into a problem.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::control::ControlError;
use crate::enrol::decide::Enrolment;
use crate::store::{StoreError, Token};

/// Media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";
const TYPE_PREFIX: &str = "urn:heartwatch:problem:";

/// The title of what is told where there is no route.
pub const NO_ROUTE: &str = "no such route";

/// One error, as its JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which kind of problem; stable.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words; stable.
    pub title: Box<str>,
    /// HTTP status.
    pub status: u16,
    /// What is wrong this time, and what would be right.
    pub detail: String,
    /// The path that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Box<str>>,
    /// The token of the order that counts, where another was reported on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_token: Option<Box<Token>>,
    /// One entry per reason, where there can be several (`/readyz`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

impl Problem {
    /// A problem of a kind of our own.
    pub fn new(status: StatusCode, slug: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{slug}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: None,
            highest_token: None,
            reasons: Vec::new(),
        }
    }

    /// The request makes no sense.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "the request makes no sense", detail)
    }

    /// No host of that id or name.
    pub fn unknown_host(host: &str) -> Self {
        let detail = format!("no host `{host}` is registered");
        Self::new(StatusCode::NOT_FOUND, "unknown-host", "no such host", detail)
    }

    /// The host was revoked, and is therefore not registered.
    pub fn revoked(e: &Enrolment) -> Self {
        let called = if e.name.is_empty() { String::new() } else { format!(" ({})", e.name) };
        let at = e.revoked_ms.map_or_else(String::new, |at| format!(" at {at}"));
        let detail = format!(
            "host {}{called} was revoked{at}: {}. Nothing of it is believed, and it is not registered; `heartwatchctl \
             hosts revoke {} --lift` lets it enrol again",
            e.host, e.reason, e.host
        );
        Self::new(StatusCode::GONE, "host-revoked", "the host was revoked", detail)
    }

    /// A problem that is told by its status alone.
    pub fn of_status(status: StatusCode, detail: &str) -> Self {
        let (slug, title) = match status {
            StatusCode::NOT_FOUND => ("not-found", NO_ROUTE),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method-not-allowed", "the route does not take this method")
            }
            StatusCode::PAYLOAD_TOO_LARGE => ("too-large", "the request body is too large"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                ("media-type", "the request body must be application/json")
            }
            StatusCode::SERVICE_UNAVAILABLE => ("unavailable", "not possible right now"),
            s if s.is_client_error() => ("bad-request", "the request makes no sense"),
            _ => ("internal", "the controller failed"),
        };
        let detail = if detail.is_empty() { title } else { detail };
        Self::new(status, slug, title, detail)
    }

    /// The status; 500 if it is none.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        // A struct of strings always serialises; an empty body would still carry the status.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match status {
            StatusCode::UNAUTHORIZED => {
                let challenge = HeaderValue::from_static("Bearer realm=\"heartwatch\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        // The outer layer adds `instance` to this copy instead of reading the body back.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(e: StoreError) -> Self {
        let (status, slug, title) = match &e {
            StoreError::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "the store cannot do it now")
            }
            StoreError::Fenced => {
                (StatusCode::SERVICE_UNAVAILABLE, "fenced", "another controller owns the store")
            }
            StoreError::Unknown => {
                (StatusCode::SERVICE_UNAVAILABLE, "unknown", "the store did not answer")
            }
            StoreError::Invalid(_) => {
                (StatusCode::BAD_REQUEST, "bad-request", "the request makes no sense")
            }
            StoreError::Open(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "store-broken", "the store cannot be opened")
            }
        };
        Self::new(status, slug, title, e.to_string())
    }
}

impl From<ControlError> for Problem {
    fn from(e: ControlError) -> Self {
        match e {
            ControlError::UnknownHost(id) => Self::unknown_host(&id.to_string()),
            ControlError::Invalid(detail) => Self::bad_request(detail),
            ControlError::NotFound(detail) => {
                Self::new(StatusCode::NOT_FOUND, "not-found", "no such thing", detail)
            }
            ControlError::Stale { message, highest } => {
                let title = "another order counts";
                let problem = Self::new(StatusCode::CONFLICT, "stale-order", title, message);
                Self { highest_token: Some(Box::new(highest)), ..problem }
            }
            ControlError::Unknown(detail) => {
                Self::new(StatusCode::NOT_FOUND, "unknown-window", "no such window", detail)
            }
            ControlError::Conflict(detail) => {
                let title = "this does not fit how things stand";
                Self::new(StatusCode::CONFLICT, "conflict", title, detail)
            }
            ControlError::Busy(_) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, "busy", "a shard did not answer in time", e.to_string())
            }
            ControlError::Store(e) => e.into(),
        }
    }
}
