//! Heartwatch's own events, bare or in CloudEvents envelopes.
//!
//! Source: CloudEvents 1.0.2 and its JSON event format, <https://github.com/cloudevents/spec>. `id` is the
//! event's id, `source` the controller's, `subject` and `partitionkey` the host's: with `id` and `source` a
//! consumer knows repeats, by the key it keeps one host's events in order. The fencing token stays in
//! `data`, as a CloudEvents integer has 32 bits only.

use serde_json::{Value, json};

use super::{Message, Unsendable, json_message, parsed, text};
use crate::store::Outgoing;

pub(super) fn render(
    url: &str,
    batch: &[Outgoing],
    cloudevents: bool,
    array: bool,
) -> Result<Message, Unsendable> {
    let bodies = if cloudevents {
        batch.iter().map(|o| Ok(envelope(o)?.to_string())).collect::<Result<Vec<_>, _>>()?
    } else {
        // The bytes of the journal, not what a parser would make of them.
        batch.iter().map(|o| o.body.clone()).collect()
    };
    let media = match (cloudevents, array) {
        (false, _) => "application/json",
        (true, false) => "application/cloudevents+json",
        (true, true) => "application/cloudevents-batch+json",
    };
    let body = match (array, bodies.as_slice()) {
        (false, [one]) => one.clone(),
        (false, _) => {
            return Err(Unsendable(format!("{} events for one body", bodies.len())));
        }
        (true, _) => format!("[{}]", bodies.join(",")),
    };
    Ok(json_message(url.to_owned(), media, body))
}

fn envelope(outgoing: &Outgoing) -> Result<Value, Unsendable> {
    let mut event = parsed(outgoing)?;
    let kind = outgoing.kind.as_str();
    let mut envelope = json!({
        "specversion": "1.0",
        "id": outgoing.event,
        "source": format!("/heartwatch/controllers/{}", text(&event, "/data/controller/id")),
        "type": if kind.starts_with("heartwatch.") {
            kind.to_owned()
        } else {
            format!("heartwatch.{kind}")
        },
        "time": text(&event, "/timestamp"),
        "datacontenttype": "application/json",
    });
    let host = text(&event, "/data/host/id");
    if !host.is_empty() {
        envelope["subject"] = json!(format!("hosts/{host}"));
        envelope["partitionkey"] = json!(host);
    }
    envelope["data"] = event["data"].take();
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::{Sample, sample};
    use super::*;
    use crate::event::EventKind;

    #[test]
    fn a_single_event_goes_out_as_it_was_journaled() {
        let down = sample(EventKind::HostDown, &Sample::default());
        let message = render("http://a/x", std::slice::from_ref(&down), false, false).unwrap();
        assert_eq!((message.url.as_str(), &message.body), ("http://a/x", &down.body));
        assert!(render("http://a/", &[down.clone(), down], false, false).is_err());
    }

    #[test]
    fn a_batch_is_an_array_of_the_same_bytes_also_of_one() {
        let down = sample(EventKind::HostDown, &Sample::default());
        let one = render("http://a/", std::slice::from_ref(&down), false, true).unwrap();
        assert_eq!(one.body, format!("[{}]", down.body));
        let two = render("http://a/", &[down.clone(), down], false, true).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Value>>(&two.body).unwrap().len(), 2);
    }

    #[test]
    fn an_envelope_has_what_the_specification_requires() {
        let down = sample(EventKind::HostDown, &Sample::default());
        let message = render("http://a/", std::slice::from_ref(&down), true, false).unwrap();
        assert_eq!(message.headers[0].1, "application/cloudevents+json");
        let envelope: Value = serde_json::from_str(&message.body).unwrap();
        assert_eq!(envelope["specversion"], "1.0");
        assert_eq!(envelope["id"], down.event.to_string());
        assert_eq!(envelope["type"], "heartwatch.host.down");
        assert!(text(&envelope, "/source").starts_with("/heartwatch/controllers/"));
        let event: Value = serde_json::from_str(&down.body).unwrap();
        assert_eq!((&envelope["data"], &envelope["time"]), (&event["data"], &event["timestamp"]));
        assert_eq!(envelope["subject"], format!("hosts/{}", text(&event, "/data/host/id")));
        // Attribute names are lower-case letters and digits, by the specification.
        let names = envelope.as_object().unwrap().keys();
        assert!(names.clone().all(|n| n.bytes().all(|b| b.is_ascii_lowercase())), "{envelope}");
        let batch = render("http://a/", &[down], true, true).unwrap();
        assert_eq!(batch.headers[0].1, "application/cloudevents-batch+json");
        let own = sample(EventKind::ControllerBlind, &Sample::default());
        let message = render("http://a/", &[own], true, false).unwrap();
        let envelope: Value = serde_json::from_str(&message.body).unwrap();
        assert!(envelope.get("subject").is_none(), "{envelope}");
    }
}
