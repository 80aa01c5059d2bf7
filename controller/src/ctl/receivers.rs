//! `receivers`: who is told and how that goes, trying one, and what one would get.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use heartwatch_common::config::Span;
use heartwatch_common::secret;
use heartwatch_common::time::{Clock, SystemClock};
use serde_json::{Value, json};

use super::args::Global;
use super::client::{Client, ClientError, typed};
use super::text::clean;
use super::{CtlError, local, show};
use crate::api::types::{DeliveryJson, ReceiversJson};
use crate::delivery::format::Message;
use crate::delivery::sample::{Sample, sample};
use crate::delivery::target;
use crate::event::EventKind;
use crate::store::DeliveryState;

/// How often a test's delivery is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Receivers {
    #[command(subcommand)]
    command: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lists receivers with their health, backlog and the age of the oldest delivery.
    List,
    /// Sends a marked test event (`heartwatch.test`) by the way of all others and tells how it ends.
    Test {
        /// The receiver's name.
        name: String,
        /// How long to wait for the answer, at most 10m.
        #[arg(long, default_value = "30s")]
        wait: Span,
    },
    /// Prints the request that an event would cause, from the config file on this machine. Secrets are
    /// masked, nothing is sent, and no controller need run.
    Preview(Preview),
}

#[derive(Debug, Args)]
pub(super) struct Preview {
    /// The receiver's name.
    name: String,
    /// What happens.
    #[arg(long, default_value = "host.down")]
    event: EventKind,
    /// The name of the host to which it happens.
    #[arg(long, default_value = "web-1")]
    host: String,
    /// A label of that host, key=value; may be repeated.
    #[arg(long)]
    label: Vec<String>,
}

impl Receivers {
    pub(super) fn preview(&self) -> Option<&Preview> {
        match &self.command {
            Some(What::Preview(preview)) => Some(preview),
            _ => None,
        }
    }

    pub(super) fn needs_token(&self) -> bool {
        matches!(self.command, Some(What::Test { .. }))
    }
}

/// What asks the controller.
pub(super) async fn run(
    global: &Global,
    client: &Client,
    args: &Receivers,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    match &args.command {
        None | Some(What::List) => {
            let answer = client.receivers().await?;
            if global.json {
                return pretty(out, &answer);
            }
            Ok(show::receiver_reports(out, &typed::<ReceiversJson>(answer)?)?)
        }
        Some(What::Test { name, wait }) => test(global, client, (name, wait.0), out).await,
        // `ctl::execute` keeps it to itself.
        Some(What::Preview(_)) => {
            Err(CtlError::Usage("this command asks no controller".to_owned()))
        }
    }
}

async fn test(
    global: &Global,
    client: &Client,
    (name, wait): (&str, Duration),
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    if wait > Duration::from_secs(600) {
        return Err(CtlError::Usage("--wait: at most 10m are allowed".to_owned()));
    }
    let begun = client.test_receiver(name).await?;
    let look = async {
        loop {
            let answer = client.delivery(begun.delivery.0).await?;
            let delivery: DeliveryJson = typed(answer.clone())?;
            if !matches!(delivery.delivery.state, DeliveryState::Pending | DeliveryState::Held) {
                return Ok::<_, ClientError>((answer, delivery));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let number = begun.delivery.0;
    let Ok(ended) = tokio::time::timeout(wait, look).await else {
        return Err(CtlError::Failed(format!(
            "delivery {number} has not ended yet: an earlier one may be in its way, or the receiver fails \
             and is left alone for a while; see `heartwatchctl receivers` and `heartwatchctl deliveries \
             --receiver {}`",
            clean(name)
        )));
    };
    let (answer, ended) = ended?;
    if global.json {
        pretty(out, &answer)?;
    }
    let row = &ended.delivery;
    let said = row.last_outcome.as_deref().unwrap_or("no answer");
    if row.state == DeliveryState::Delivered {
        if !global.json {
            writeln!(out, "{} took it: {}", clean(name), clean(said))?;
        }
        return Ok(());
    }
    let why = row.reason.as_deref().unwrap_or(said);
    Err(CtlError::Failed(format!("{name} did not take it: {}", clean(why))))
}

fn pretty(out: &mut dyn Write, answer: &Value) -> Result<(), CtlError> {
    let text = serde_json::to_string_pretty(answer).map_err(ClientError::Form)?;
    Ok(writeln!(out, "{text}")?)
}

/// `receivers preview`
pub(super) fn preview(
    global: &Global,
    args: &Preview,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let config = local::config(global)?;
    let Some(receiver) = config.receivers.get(&args.name) else {
        let known: Vec<_> = config.receivers.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let message = format!("there is no receiver `{}`; known are: {known}", args.name);
        return Err(CtlError::Config(message));
    };
    let label = |text: &String| {
        let (key, value) = text.split_once('=')?;
        (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
    };
    let labels: Option<BTreeMap<String, String>> = args.label.iter().map(label).collect();
    let Some(labels) = labels else {
        return Err(CtlError::Usage("--label: write key=value".to_owned()));
    };
    let host = Sample { name: args.host.clone(), labels, ..Sample::default() };
    let shown = target::preview(receiver, args.event, &host, SystemClock.wall());
    let shown = shown.map_err(|why| CtlError::Config(format!("{}: {why}", args.name)))?;
    let Some(message) = shown else {
        let event = sample(args.event, &host);
        writeln!(out, "{} runs a command, with this on its standard input:\n", args.name)?;
        return Ok(writeln!(out, "{}", event.body)?);
    };
    if global.json {
        return pretty(out, &as_json(&message));
    }
    write_message(&message, out)
}

/// Where it would go, without the name and the password that a URL may hold.
fn shown_url(message: &Message) -> Cow<'_, str> {
    secret::hidden(&message.url)
}

fn as_json(message: &Message) -> Value {
    let headers: serde_json::Map<String, Value> =
        message.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "method": message.method,
        "url": shown_url(message),
        "headers": headers,
        "body": message.body,
    })
}

fn write_message(message: &Message, out: &mut dyn Write) -> Result<(), CtlError> {
    writeln!(out, "{} {}", message.method, clean(&shown_url(message)))?;
    for (name, value) in &message.headers {
        writeln!(out, "{name}: {}", clean(value))?;
    }
    // Indented for people; what is no JSON is shown as it is.
    let body: Result<Value, _> = serde_json::from_str(&message.body);
    match body.and_then(|body| serde_json::to_string_pretty(&body)) {
        Ok(pretty) => writeln!(out, "\n{pretty}")?,
        Err(_) => writeln!(out, "\n{}", message.body)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_shows_no_password_of_a_url() {
        let url = "https://ann:hunter2@x/y".to_owned();
        let (headers, body) = (Vec::new(), "{}".to_owned());
        let message = Message { method: "POST".to_owned(), url, headers, body };
        let mut out = Vec::new();
        write_message(&message, &mut out).unwrap();
        let told = String::from_utf8(out).unwrap();
        assert!(told.starts_with("POST https://…@x/y\n"), "{told}");
        assert_eq!(as_json(&message)["url"], "https://…@x/y");
    }
}
