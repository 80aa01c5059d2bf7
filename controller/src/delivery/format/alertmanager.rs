//! Alerts for Prometheus Alertmanager, by its API v2.
//!
//! An event that tells of something that goes on raises an alert, and the event of its end ends it. An
//! alert is known by its labels alone: `alertname` (one a kind of event), `severity`, `host`, `host_id` and
//! the host's own labels, as the raising event has them; for a failure domain `domain` and its labels. Each
//! alert says until when it holds: four times `resend_every`; the [`resend`](crate::delivery::resend) says
//! it again in time. So an alert whose end cannot be told (Alertmanager was restored from a backup, the
//! host's labels changed during the outage) ends by itself, and a controller that dies takes its alerts
//! along.
//!
//! The controller's own states (`controller.blind`, `controller.paused`), storms (`domain.down`,
//! `domain.storm`) and `host.flapping` are raised once, for [`OWN_LIFETIME`] at most. What an event ends is
//! named without its beginning: Alertmanager then keeps the one that it knows.
//!
//! Source: Alertmanager's `api/v2/openapi.yaml`, and `provider/mem` for how alerts are merged.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::time::Wall;
use serde_json::{Value, json};

use super::{Message, Unsendable, join, json_message, parsed, text};
use crate::event::EventKind;
use crate::store::Outgoing;

/// How many resends may be lost before an alert ends by itself.
pub const LIFETIME_RESENDS: u32 = 4;
/// How long an alert that is not said again holds unless its end is told.
pub const OWN_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
/// How long the alert of a test holds.
pub const TEST_LIFETIME: Duration = Duration::from_secs(300);

/// What kinds raise: event, `alertname`, `severity`.
const RAISING: [(EventKind, &str, &str); 13] = [
    (EventKind::HostSuspect, "HeartwatchHostSuspect", "warning"),
    (EventKind::HostUnreachable, "HeartwatchHostUnreachable", "warning"),
    (EventKind::HostDown, "HeartwatchHostDown", "critical"),
    (EventKind::HostAgentLost, "HeartwatchHostAgentLost", "warning"),
    (EventKind::HostMissing, "HeartwatchHostMissing", "warning"),
    (EventKind::HostOverdue, "HeartwatchHostOverdue", "warning"),
    (EventKind::HostDuplicate, "HeartwatchHostDuplicate", "warning"),
    (EventKind::ControllerBlind, "HeartwatchControllerBlind", "critical"),
    (EventKind::ControllerPaused, "HeartwatchControllerPaused", "warning"),
    (EventKind::DomainDown, "HeartwatchDomainDown", "critical"),
    (EventKind::DomainStorm, "HeartwatchDomainStorm", "critical"),
    (EventKind::HostFlapping, "HeartwatchHostFlapping", "warning"),
    (EventKind::Test, "HeartwatchTest", "info"),
];

/// Of a host whose story told no more of where it stood.
const ANY: [EventKind; 6] = [
    EventKind::HostSuspect,
    EventKind::HostOverdue,
    EventKind::HostUnreachable,
    EventKind::HostDown,
    EventKind::HostAgentLost,
    EventKind::HostMissing,
];

/// Whatever can be raised of a host.
const ALL_OF_HOST: [EventKind; 8] = [
    EventKind::HostSuspect,
    EventKind::HostOverdue,
    EventKind::HostDuplicate,
    EventKind::HostUnreachable,
    EventKind::HostDown,
    EventKind::HostAgentLost,
    EventKind::HostMissing,
    EventKind::HostFlapping,
];

/// Whether an event raises or ends an alert.
pub fn knows(kind: EventKind) -> bool {
    raising(kind).is_some() || ends(kind, &Value::Null).is_some()
}

/// Whether an event raises an alert of a host that is to be said again.
pub fn is_resent(kind: EventKind) -> bool {
    ANY.contains(&kind)
}

fn raising(kind: EventKind) -> Option<(&'static str, &'static str)> {
    RAISING.iter().find(|(k, ..)| *k == kind).map(|(_, name, severity)| (*name, *severity))
}

/// Whose alerts an event ends; `None`: it has nothing to do with any.
fn ends(kind: EventKind, data: &Value) -> Option<&'static [EventKind]> {
    use EventKind as K;
    Some(match kind {
        K::HostUnreachable => &[K::HostSuspect, K::HostOverdue],
        K::HostDown | K::HostAgentLost => &[K::HostSuspect, K::HostOverdue, K::HostUnreachable],
        K::HostRecovered => match (text(data, "/from"), text(data, "/from_cause")) {
            ("suspect", _) => &[K::HostSuspect, K::HostOverdue, K::HostUnreachable],
            ("down", "agent-lost") => {
                &[K::HostSuspect, K::HostOverdue, K::HostUnreachable, K::HostAgentLost]
            }
            ("down", _) => &[K::HostSuspect, K::HostOverdue, K::HostUnreachable, K::HostDown],
            _ => &ANY,
        },
        K::HostForgotten => &ALL_OF_HOST,
        K::HostRestarted | K::HostLeft => &ANY,
        K::HostJoined => &[K::HostMissing],
        K::ControllerSighted => &[K::ControllerBlind],
        K::ControllerResumed => &[K::ControllerPaused],
        K::DomainCalm => &[K::DomainDown, K::DomainStorm],
        K::HostSteady => &[K::HostFlapping],
        K::HostSingle => &[K::HostDuplicate],
        _ => return None,
    })
}

/// The format with its settings.
#[derive(Debug)]
pub struct Alertmanager {
    lifetime: Duration,
    generator_url: Option<String>,
}

impl Alertmanager {
    /// Alerts that hold for [`LIFETIME_RESENDS`] times `resend_every`.
    pub fn new(resend_every: Duration, generator_url: Option<String>) -> Self {
        Self { lifetime: resend_every * LIFETIME_RESENDS, generator_url }
    }

    pub(super) fn render(
        &self,
        url: &str,
        batch: &[Outgoing],
        at: Wall,
    ) -> Result<Message, Unsendable> {
        let mut alerts = Vec::new();
        for outgoing in batch {
            self.tell(outgoing, at, &mut alerts)?;
        }
        let body = Value::from(alerts).to_string();
        Ok(json_message(join(url, "/api/v2/alerts"), "application/json", body))
    }

    fn tell(
        &self,
        outgoing: &Outgoing,
        at: Wall,
        alerts: &mut Vec<Value>,
    ) -> Result<(), Unsendable> {
        let event = parsed(outgoing)?;
        let (kind, before) = (outgoing.kind, alerts.len());
        if let Some((name, severity)) = raising(kind) {
            let lifetime = match kind {
                EventKind::Test => TEST_LIFETIME,
                _ if is_resent(kind) => self.lifetime,
                _ => OWN_LIFETIME,
            };
            let mut alert = self.alert(&event, name, severity);
            alert["startsAt"] = json!(text(&event, "/timestamp"));
            alert["endsAt"] = json!(after(at, lifetime).to_string());
            alerts.push(alert);
        }
        for ended in ends(kind, &event["data"]).unwrap_or_default() {
            let (name, severity) = raising(*ended).expect("what ends was raised: see the test");
            let mut alert = self.alert(&event, name, severity);
            alert["endsAt"] = json!(text(&event, "/timestamp"));
            alerts.push(alert);
        }
        if alerts.len() == before {
            return Err(Unsendable(format!("Alertmanager has no word for {kind}")));
        }
        Ok(())
    }

    fn alert(&self, event: &Value, name: &str, severity: &str) -> Value {
        let mut labels = BTreeMap::new();
        // Of a host, or of a failure domain.
        let own = ["/data/host/labels", "/data/labels"]
            .into_iter()
            .filter_map(|at| event.pointer(at)?.as_object());
        for (key, value) in own.flatten() {
            labels.insert(label_name(key), value.as_str().unwrap_or_default());
        }
        // These win over a host's label of the same name: they are what an alert is known by.
        labels.insert("alertname".to_owned(), name);
        labels.insert("severity".to_owned(), severity);
        labels.insert("host".to_owned(), text(event, "/data/host/name"));
        labels.insert("host_id".to_owned(), text(event, "/data/host/id"));
        labels.insert("domain".to_owned(), text(event, "/data/domain"));
        labels.retain(|_, value| !value.is_empty());
        let mut annotations = BTreeMap::new();
        let host = text(event, "/data/host/name");
        let kind = text(event, "/type");
        annotations.insert(
            "summary",
            match (host, text(event, "/data/domain")) {
                ("", "") => kind.to_owned(),
                ("", whom) | (whom, _) => format!("{kind}: {whom}"),
            },
        );
        annotations.insert("description", text(event, "/data/reason").to_owned());
        annotations.insert("incident", text(event, "/data/incident").to_owned());
        annotations.insert("event_id", text(event, "/data/event_id").to_owned());
        annotations.insert("address", text(event, "/data/host/address").to_owned());
        annotations.retain(|_, value| !value.is_empty());
        let mut alert = json!({ "labels": labels, "annotations": annotations });
        if let Some(url) = &self.generator_url {
            let id = text(event, "/data/host/id");
            let path =
                if id.is_empty() { "/v1/status".into() } else { format!("/v1/hosts/{id}/why") };
            alert["generatorURL"] = json!(join(url, &path));
        }
        alert
    }
}

fn after(at: Wall, span: Duration) -> Wall {
    Wall(at.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
}

/// A label name as Prometheus allows them: letters, digits and `_`, no digit in front.
fn label_name(key: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = key.chars().map(fits).collect();
    match name.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("_{name}"),
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::{Sample, sample};
    use super::*;

    const AT: Wall = Wall(1_769_860_860_000);

    fn alerts(batch: &[Outgoing]) -> Vec<Value> {
        let format = Alertmanager::new(Duration::from_secs(60), Some("https://hw/".to_owned()));
        let message = format.render("http://am:9093/", batch, AT).unwrap();
        assert_eq!(message.url, "http://am:9093/api/v2/alerts");
        serde_json::from_str(&message.body).unwrap()
    }

    fn host() -> Sample {
        let labels = [("zone", "b"), ("k8s.io/os", "linux"), ("alertname", "mine"), ("9", "")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        Sample { name: "web \"1\"".to_owned(), labels, ..Sample::default() }
    }

    #[test]
    fn down_raises_for_a_while_and_ends_what_was_said_before() {
        let raised = alerts(&[sample(EventKind::HostDown, &host())]);
        let names: Vec<_> = raised.iter().map(|a| text(a, "/labels/alertname")).collect();
        assert_eq!(
            names,
            [
                "HeartwatchHostDown",
                "HeartwatchHostSuspect",
                "HeartwatchHostOverdue",
                "HeartwatchHostUnreachable"
            ]
        );
        let down = &raised[0];
        assert_eq!(down["labels"]["severity"], "critical");
        assert_eq!(down["labels"]["host"], "web \"1\"");
        assert_eq!(
            (&down["labels"]["zone"], &down["labels"]["k8s_io_os"]),
            (&json!("b"), &json!("linux"))
        );
        assert!(down["labels"].get("_9").is_none(), "Alertmanager knows no empty labels");
        assert_eq!(down["endsAt"], Wall(AT.0 + 240_000).to_string());
        assert!(text(down, "/startsAt") < text(down, "/endsAt"));
        assert!(text(down, "/generatorURL").starts_with("https://hw/v1/hosts/"));
        assert!(raised[1..].iter().all(|a| a.get("startsAt").is_none()), "{raised:?}");
    }

    #[test]
    fn the_end_names_the_same_labels_as_the_beginning() {
        let down = alerts(&[sample(EventKind::HostDown, &host())]);
        let recovered = alerts(&[sample(EventKind::HostRecovered, &host())]);
        let ended = recovered.iter().find(|a| a["labels"] == down[0]["labels"]).unwrap();
        assert!(text(ended, "/endsAt") < AT.to_string().as_str());
        assert!(recovered.iter().all(|a| text(a, "/endsAt") < AT.to_string().as_str()));
    }

    #[test]
    fn whatever_is_raised_of_a_host_is_ended_by_its_goodbye_and_every_end_was_raised() {
        for kind in EventKind::ALL {
            let told = alerts_of(kind);
            assert_eq!(told.is_some(), knows(kind), "{kind}");
        }
        let ended = alerts(&[sample(EventKind::HostLeft, &host())]);
        for kind in ANY {
            let raised = alerts(&[sample(kind, &host())]);
            assert!(ended.iter().any(|a| a["labels"] == raised[0]["labels"]), "{kind}");
        }
    }

    fn alerts_of(kind: EventKind) -> Option<Message> {
        let format = Alertmanager::new(Duration::from_secs(60), None);
        format.render("http://am", &[sample(kind, &host())], AT).ok()
    }

    #[test]
    fn a_storm_is_an_alert_of_its_domain_until_it_is_calm() {
        let raised = alerts(&[sample(EventKind::DomainStorm, &host())]);
        assert_eq!(raised[0]["labels"]["domain"], "zone=b");
        assert_eq!(raised[0]["labels"]["zone"], "b");
        assert_eq!(raised[0]["annotations"]["summary"], "domain.storm: zone=b");
        let ended = alerts(&[sample(EventKind::DomainCalm, &host())]);
        assert!(ended.iter().any(|a| a["labels"] == raised[0]["labels"]), "{ended:?}");
    }

    #[test]
    fn several_events_are_one_array_and_own_alerts_hold_for_a_day() {
        let own = sample(EventKind::ControllerBlind, &host());
        let both = alerts(&[own, sample(EventKind::HostSuspect, &host())]);
        assert_eq!(both.len(), 2);
        assert_eq!(both[0]["endsAt"], Wall(AT.0 + 86_400_000).to_string());
        assert!(both[0]["labels"].get("host").is_none());
    }
}
