//! How an attempt ended, before anybody decides what follows from it.

use std::time::Duration;

use serde::Serialize;

use super::decision::Decision;
use crate::store::Token;

/// Longest [`Outcome::detail`], bytes.
pub const DETAIL_LEN_MAX: usize = 200;

/// What kind of end, for counting and for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeClass {
    /// 2xx.
    Success,
    /// 3xx: redirects are never followed.
    Redirect,
    /// 409.
    Conflict,
    /// 410.
    Gone,
    /// Any other status below 500.
    ClientError,
    /// 5xx.
    ServerError,
    /// No connection: refused, unreachable, no such name, bad certificate.
    Connect,
    /// No answer in time.
    Timeout,
    /// The connection broke before an answer came.
    Broken,
    /// Nothing was sent: the receiver's format or template cannot say this event, now or ever.
    Unsendable,
}

impl OutcomeClass {
    /// Every class, in the order of [`OutcomeClass::index`].
    pub const ALL: [Self; 10] = [
        Self::Success,
        Self::Redirect,
        Self::Conflict,
        Self::Gone,
        Self::ClientError,
        Self::ServerError,
        Self::Connect,
        Self::Timeout,
        Self::Broken,
        Self::Unsendable,
    ];

    /// As it stands in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Redirect => "redirect",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::ClientError => "client-error",
            Self::ServerError => "server-error",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Unsendable => "unsendable",
        }
    }

    /// Its place in [`OutcomeClass::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Of an HTTP status.
    pub const fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Success,
            300..=399 => Self::Redirect,
            409 => Self::Conflict,
            410 => Self::Gone,
            500.. => Self::ServerError,
            _ => Self::ClientError,
        }
    }

    /// Whether the receiver answered, and refused what it was given: then another part of the same request
    /// may be what it refuses.
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::Conflict | Self::Gone | Self::ClientError | Self::Unsendable)
    }

    /// Whether the receiver as a whole is in trouble, rather than this one delivery.
    pub const fn is_failing(self) -> bool {
        matches!(self, Self::ServerError | Self::Connect | Self::Timeout | Self::Broken)
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What kind of end.
    pub class: OutcomeClass,
    /// HTTP status, if one came.
    pub status: Option<u16>,
    /// For people: "200 OK", "connect: connection refused". Without secrets and without the URL, at
    /// most [`DETAIL_LEN_MAX`] bytes.
    pub detail: String,
    /// `Retry-After`, if the answer had one, counted from the answer.
    pub retry_after: Option<Duration>,
    /// The `highest_token` of a 409's body, if it had one.
    pub highest_token: Option<Token>,
    /// What a success said beside being one.
    pub decision: Option<Decision>,
}

impl Outcome {
    /// An answer with this status and nothing else worth knowing.
    pub fn of_status(status: u16) -> Self {
        Self {
            class: OutcomeClass::of_status(status),
            status: Some(status),
            detail: status.to_string(),
            retry_after: None,
            highest_token: None,
            decision: None,
        }
    }

    /// No answer came.
    pub fn failed(class: OutcomeClass, detail: &str) -> Self {
        let detail = clip(detail).to_owned();
        Self { class, status: None, detail, retry_after: None, highest_token: None, decision: None }
    }
}

/// At most [`DETAIL_LEN_MAX`] bytes of it, cut between characters.
pub(super) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(DETAIL_LEN_MAX)]
}
