//! What is said to a receiver of a format: method, address, headers, body. Saying it is pure; only
//! [`Template::read`] opens files, once, at start.
//!
//! A format sees nothing but the journaled events, so that every attempt of a delivery says the same;
//! Alertmanager's alone also says until when an alert holds, counted from the attempt.
//!
//! | format | body | several in one request |
//! | --- | --- | --- |
//! | native | the event as journaled, byte for byte; `controller/docs/event.schema.json` | an array |
//! | native, `cloudevents` | one CloudEvents 1.0 envelope in structured JSON | a batch of them |
//! | [`alertmanager`] | an array of alerts, some raised, some ended | yes |
//! | [`masakari`] | a notification about a compute host | no |
//! | [`template`] | what the operator's file says | no |

pub mod alertmanager;
pub mod masakari;
mod native;
pub mod template;

use heartwatch_common::time::Wall;
use serde_json::Value;

use crate::config::{Kind, Receiver};
use crate::store::Outgoing;
use alertmanager::Alertmanager;
pub use template::{Secrets, Template, TemplateError};

/// One HTTP request, less what every request has (signature, credentials).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Such as `POST`.
    pub method: String,
    /// Where to.
    pub url: String,
    /// Headers by name, `content-type` among them.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// An event cannot be said in this form, now or ever: another attempt would not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsendable(pub String);

/// What a receiver's requests look like.
#[derive(Debug)]
pub enum Format {
    /// Heartwatch's own events.
    Native {
        /// In CloudEvents envelopes.
        cloudevents: bool,
        /// In an array, also if there is one only.
        array: bool,
    },
    /// Alerts.
    Alertmanager(Alertmanager),
    /// Notifications about compute hosts.
    Masakari,
    /// As a file says.
    Template(Box<Template>),
}

impl Format {
    /// The format of a receiver; `None` if it is a command.
    ///
    /// # Errors
    /// If its template cannot be used.
    pub fn new(receiver: &Receiver, secrets: Secrets) -> Result<Option<Self>, TemplateError> {
        Ok(Some(match &receiver.kind {
            Kind::Exec { .. } => return Ok(None),
            Kind::Native { cloudevents } => {
                Self::Native { cloudevents: *cloudevents, array: receiver.max_batch > 1 }
            }
            Kind::Alertmanager { resend_every, generator_url } => {
                Self::Alertmanager(Alertmanager::new(*resend_every, generator_url.clone()))
            }
            Kind::Masakari => Self::Masakari,
            Kind::Template(config) => {
                Self::Template(Box::new(Template::read(config, &receiver.url, secrets)?))
            }
        }))
    }

    /// The request that tells these events, in this order, of different hosts; `at` is the time of the
    /// attempt. Formats without arrays get one at a time.
    pub fn render(&self, url: &str, batch: &[Outgoing], at: Wall) -> Result<Message, Unsendable> {
        match self {
            Self::Native { cloudevents, array } => native::render(url, batch, *cloudevents, *array),
            Self::Alertmanager(format) => format.render(url, batch, at),
            Self::Masakari => masakari::render(url, only(batch)?),
            Self::Template(template) => template.render(only(batch)?),
        }
    }

    /// Whether an answer that is no success says that it is done all the same.
    pub fn is_done(&self, status: u16) -> bool {
        matches!(self, Self::Masakari) && masakari::is_done(status)
    }
}

fn only(batch: &[Outgoing]) -> Result<&Outgoing, Unsendable> {
    match batch {
        [one] => Ok(one),
        _ => Err(Unsendable(format!("{} events at once, and this format takes one", batch.len()))),
    }
}

/// The journaled body as JSON.
fn parsed(outgoing: &Outgoing) -> Result<Value, Unsendable> {
    serde_json::from_str(&outgoing.body)
        .map_err(|e| Unsendable(format!("the journaled event is not JSON: {e}")))
}

/// The text at a place in an event, or an empty one.
fn text<'a>(event: &'a Value, pointer: &str) -> &'a str {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A base address with a path behind it, unless it stands there already.
fn join(url: &str, path: &str) -> String {
    let base = url.trim_end_matches('/');
    if base.ends_with(path) { base.to_owned() } else { format!("{base}{path}") }
}

fn json_message(url: String, media: &str, body: String) -> Message {
    let headers = vec![("content-type".to_owned(), media.to_owned())];
    Message { method: "POST".to_owned(), url, headers, body }
}
