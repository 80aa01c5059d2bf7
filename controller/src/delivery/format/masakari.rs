//! Notifications for OpenStack Masakari, which evacuates the instances of a compute host.
//!
//! `POST {url}/notifications` with the host's *name*, which must be the one that Masakari's segment knows
//! (Nova's hypervisor host name). `host_status` is `NORMAL`: Masakari ignores anything else. It means that
//! the host is known to be off, so fence it in an earlier rule, or let Nova's own fencing do that. Masakari
//! answers 409 to a notification that it has already, and to any about a host that it has set on
//! maintenance, as it does with one that it evacuates: both mean that there is nothing left to be told.
//! The bearer token goes out as `X-Auth-Token`, as Keystone wants it.
//!
//! Source: Masakari's `api/openstack/ha/schemas` and `engine/manager.py`.

use serde_json::json;

use super::{Message, Unsendable, join, json_message, parsed, text};
use crate::event::EventKind;
use crate::store::Outgoing;

/// The header of the token.
pub const TOKEN_HEADER: &str = "x-auth-token";

/// Masakari's words for an event: `event` and `cluster_status`. A host whose agent alone is lost runs its
/// instances still, and to evacuate them would run them twice.
fn words(kind: EventKind) -> Option<(&'static str, &'static str)> {
    match kind {
        EventKind::HostDown => Some(("STOPPED", "OFFLINE")),
        EventKind::HostRecovered | EventKind::HostRestarted => Some(("STARTED", "ONLINE")),
        _ => None,
    }
}

/// Whether Masakari can be told of an event.
pub fn knows(kind: EventKind) -> bool {
    words(kind).is_some()
}

pub(super) fn is_done(status: u16) -> bool {
    status == 409
}

pub(super) fn render(url: &str, outgoing: &Outgoing) -> Result<Message, Unsendable> {
    let kind = outgoing.kind;
    let Some((event, cluster_status)) = words(kind) else {
        return Err(Unsendable(format!("Masakari has no word for {kind}")));
    };
    let journaled = parsed(outgoing)?;
    let hostname = text(&journaled, "/data/host/name");
    if hostname.is_empty() {
        return Err(Unsendable(
            "the host has no name, and Masakari knows hosts by name".to_owned(),
        ));
    }
    let body = json!({ "notification": {
        "type": "COMPUTE_HOST",
        "hostname": hostname,
        "generated_time": text(&journaled, "/timestamp"),
        "payload": { "event": event, "cluster_status": cluster_status, "host_status": "NORMAL" },
    }});
    let mut message =
        json_message(join(url, "/notifications"), "application/json", body.to_string());
    // Without a version Masakari takes the oldest, which is the same for notifications.
    message.headers.push(("openstack-api-version".to_owned(), "instance-ha 1.0".to_owned()));
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::{Sample, sample};
    use super::*;
    use serde_json::Value;

    #[test]
    fn down_stops_and_recovery_starts_in_masakaris_schema() {
        let host = Sample { name: "compute-1".to_owned(), ..Sample::default() };
        for (kind, event, cluster) in [
            (EventKind::HostDown, "STOPPED", "OFFLINE"),
            (EventKind::HostRecovered, "STARTED", "ONLINE"),
        ] {
            let message = render("http://m:15868/v1/", &sample(kind, &host)).unwrap();
            assert_eq!(message.url, "http://m:15868/v1/notifications");
            let body: Value = serde_json::from_str(&message.body).unwrap();
            let notification = body["notification"].as_object().unwrap();
            let keys: Vec<_> = notification.keys().map(String::as_str).collect();
            // The schema allows no others.
            assert_eq!(keys, ["type", "hostname", "generated_time", "payload"]);
            assert_eq!(notification["type"], "COMPUTE_HOST");
            assert_eq!(notification["hostname"], "compute-1");
            assert!(text(&body, "/notification/generated_time").ends_with('Z'));
            assert_eq!(
                notification["payload"],
                json!({ "event": event, "cluster_status": cluster, "host_status": "NORMAL" })
            );
        }
    }

    #[test]
    fn nothing_else_is_said_and_no_host_without_a_name() {
        assert!(render("http://m", &sample(EventKind::HostAgentLost, &Sample::default())).is_err());
        let nameless = Sample { name: String::new(), ..Sample::default() };
        assert!(render("http://m", &sample(EventKind::HostDown, &nameless)).is_err());
    }
}
