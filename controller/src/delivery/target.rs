//! A receiver ready to be told, whatever its kind.

use heartwatch_common::auth::read_secret_file;
use heartwatch_common::time::Wall;

use super::exec::Exec;
use super::format::{Format, Message, Secrets, TemplateError, Unsendable};
use super::outcome::{Outcome, OutcomeClass};
use super::sample::{Sample, sample};
use super::webhook::{Webhook, WebhookError};
use crate::config::{Config, Kind, Receiver};
use crate::event::EventKind;
use crate::store::Outgoing;

/// A receiver.
#[derive(Debug)]
pub enum Target {
    /// By HTTP.
    Http(Box<Webhook>),
    /// By running a command.
    Exec(Exec),
}

/// The receiver's format with its template tried on what it will be given; `None` if it is a command.
fn format(
    receiver: &Receiver,
    kinds: &[EventKind],
    secrets: Secrets,
) -> Result<Option<Format>, WebhookError> {
    let error = |source| WebhookError::Template { receiver: receiver.name.clone(), source };
    let mut format = Format::new(receiver, secrets).map_err(error)?;
    if let Some(Format::Template(template)) = &mut format {
        template.try_on(kinds.iter().copied(), &Sample::default()).map_err(error)?;
    }
    Ok(format)
}

/// The kinds of events that the rules send to a receiver, each once.
pub fn kinds_for(config: &Config, receiver: &str) -> Vec<EventKind> {
    let rules = config.rules.iter().filter(|r| r.receivers.iter().any(|name| name == receiver));
    let mut kinds: Vec<_> = rules.flat_map(|r| r.events.iter().copied()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// Reads all files that [`Target::new`] would for the receivers, and tries templates on what the rules send;
/// answers all that is wrong with any.
pub fn inspect(config: &Config) -> Vec<WebhookError> {
    let mut wrong = Vec::new();
    for (name, receiver) in &config.receivers {
        let kinds = kinds_for(config, name);
        let before = wrong.len();
        // Its form and its secrets apart: either may be wrong.
        wrong.extend(format(receiver, &kinds, Secrets::Masked).err());
        if let Kind::Template(template) = &receiver.kind {
            wrong.extend(template.secrets.iter().filter_map(|(name, path)| {
                let source = read_secret_file(path).err()?;
                let source = TemplateError::Secret { name: name.clone(), source };
                Some(WebhookError::Template { receiver: receiver.name.clone(), source })
            }));
        }
        wrong.extend(Webhook::inspect(receiver));
        if wrong.len() == before {
            wrong.extend(Target::new(receiver, &kinds).err());
        }
    }
    wrong
}

/// What a receiver would be told of an event like this; secrets are masked. `Ok(None)`: it is a command,
/// which gets the event itself.
///
/// # Errors
/// If it cannot be told of it, with the reason.
pub fn preview(
    receiver: &Receiver,
    kind: EventKind,
    host: &Sample,
    at: Wall,
) -> Result<Option<Message>, String> {
    let format = format(receiver, &[], Secrets::Masked).map_err(|e| match &e {
        WebhookError::Template { source, .. } => match std::error::Error::source(source) {
            Some(cause) => format!("{source}: {cause}"),
            None => source.to_string(),
        },
        other => other.to_string(),
    })?;
    let Some(format) = format else { return Ok(None) };
    let shown = format.render(&receiver.url, &[sample(kind, host)], at);
    shown.map(Some).map_err(|e| e.to_string())
}

impl Target {
    /// Reads the receiver's secrets and prepares its connections; opens none. `kinds`: what the rules
    /// send it.
    ///
    /// # Errors
    /// If something that it needs cannot be used.
    pub fn new(receiver: &Receiver, kinds: &[EventKind]) -> Result<Self, WebhookError> {
        if let Kind::Exec { command } = &receiver.kind {
            return Ok(Self::Exec(Exec::new(&receiver.name, command, receiver.timeout)));
        }
        let format = format(receiver, kinds, Secrets::Read)?.expect("all but commands have one");
        Ok(Self::Http(Box::new(Webhook::new(receiver, format)?)))
    }

    /// Whether these events can be said to it at all.
    ///
    /// # Errors
    /// Why not.
    pub fn can_say(&self, batch: &[Outgoing], at: Wall) -> Result<(), Unsendable> {
        match self {
            Self::Http(webhook) => webhook.render(batch, at).map(drop),
            Self::Exec(_) => Ok(()),
        }
    }

    /// One attempt, at `at`.
    pub async fn send(&self, batch: &[Outgoing], at: Wall) -> Outcome {
        match (self, batch) {
            (Self::Http(webhook), _) => webhook.post(batch, at).await,
            (Self::Exec(exec), [one]) => exec.run(one).await,
            (Self::Exec(_), _) => {
                Outcome::failed(OutcomeClass::Unsendable, "a command gets one event at a time")
            }
        }
    }
}
