//! The beginning of `heartwatchctl why`: a host's newest outage in a few lines, one for each thing that
//! happened, its failure domain's storm and operators' words among them, for somebody who has never seen one.

use std::collections::BTreeSet;
use std::io::{self, Write};

use heartwatch_common::time::Wall;
use serde_json::Value;

use super::candidates::sentence;
use super::text::{between, clean, count};
use crate::api::types::{DeliveryJson, EventJson, IncidentStage, WhyJson};
use crate::event::{EventKind, IncidentId, State};
use crate::policy::is_action;
use crate::store::DeliveryState;

/// Most lines; of longer outages the newest are told.
const LINES_MAX: usize = 30;

/// The time of day, UTC.
fn clock(at: Wall) -> String {
    let text = at.to_string();
    text.get(11..23).unwrap_or(&text).to_owned()
}

fn field<'a>(event: &'a EventJson, key: &str) -> &'a str {
    event.data.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Tells it; nothing if the host never was in an outage.
pub(super) fn write(out: &mut dyn Write, why: &WhyJson) -> io::Result<()> {
    let Some(outage) = why.events.iter().find_map(|e| e.incident) else { return Ok(()) };
    let mut lines: Vec<(Wall, usize, String)> = Vec::new();
    let mut say = |at: Wall, text: String| {
        let order = lines.len();
        lines.push((at, order, text));
    };
    let mut told = Vec::new();
    for event in why.events.iter().rev().filter(|e| e.incident == Some(outage)) {
        // Journaled again under a higher token: that is no turn of the story.
        let again = is_action(event.kind) && told.contains(&event.kind) && step(event).is_none();
        if let Some(text) = turn(event).filter(|_| !again) {
            say(event.at_ms, text);
        }
        told.push(event.kind);
        if let Some(reason) = verdict(event, "hold") {
            say(event.at_ms, format!("Its failover was held back: {}", clean(&reason)));
        } else if let Some(reason) = verdict(event, "suppress").filter(|_| nobody_acts(event)) {
            say(event.at_ms, format!("Nobody was ordered to do anything: {}", clean(&reason)));
        }
    }
    for event in why.around.iter().rev() {
        say(event.at_ms, around(event));
    }
    for delivery in why.deliveries.iter().rev() {
        let row = &delivery.delivery;
        let again = |other: &DeliveryJson| {
            let (other, kind) = (&other.delivery, row.kind);
            other.id > row.id && (&other.receiver, other.kind) == (&row.receiver, kind)
        };
        // Its place was taken by the same under a higher token, of which more is told.
        let replaced = matches!(row.state, DeliveryState::Cancelled | DeliveryState::Superseded)
            && why.deliveries.iter().any(again);
        if row.incident == Some(outage) && is_action(row.kind) && !replaced {
            for (at, text) in carried(delivery) {
                say(at, text);
            }
        }
    }
    lines.sort_by_key(|(at, order, _)| (*at, *order));
    // Two receivers, one sentence.
    let mut said = BTreeSet::new();
    lines.retain(|(at, _, text)| said.insert((*at, text.clone())));
    let over = why.incident.as_ref().is_none_or(|i| i.id != outage);
    writeln!(out, "\nIN SHORT: ITS {} OUTAGE", if over { "LAST" } else { "PRESENT" })?;
    if lines.len() > LINES_MAX {
        writeln!(out, "  … {} earlier", count(lines.len() - LINES_MAX, "line"))?;
    }
    for (at, _, text) in lines.iter().skip(lines.len().saturating_sub(LINES_MAX)) {
        let text = text.trim_end_matches(['.', ' ']);
        let stop = if text.ends_with(['?', '!']) { "" } else { "." };
        writeln!(out, "  {}  {text}{stop}", clock(*at))?;
    }
    writeln!(out, "  {}  Now: {}.", clock(why.now_ms), now(why, outage))
}

fn now(why: &WhyJson, outage: IncidentId) -> String {
    let for_long = between(why.host.since_ms, why.now_ms);
    let how = match why.host.state {
        State::Alive => "it is alive",
        State::Suspect => "it is suspect",
        State::Duplicate if super::twin::both_answer(why) => {
            "two machines answer under its identity"
        }
        State::Duplicate => "one machine answers under its identity, and not long ago two did",
        State::Down => "it is down",
        State::Left => "it has left",
        State::Pending => "it is waited for",
    };
    let held = why.hold.as_ref().map_or("", |_| ", and its failover waits");
    let open = why.incident.as_ref().is_some_and(|i| i.id == outage);
    let over = if open { "" } else { ", and that outage is over" };
    let stage = why.incident.as_ref().filter(|_| open && why.hold.is_none()).map(|i| i.stage);
    let orders = match stage {
        Some(IncidentStage::Held) => ", and what was to be done about it is kept back",
        Some(IncidentStage::Ordered) => ", and its failover is on its way",
        Some(IncidentStage::Vetoed) => ", and its failover was refused: somebody must look",
        Some(IncidentStage::Failed) => ", and its failover FAILED: somebody must look",
        Some(IncidentStage::Escalated) => ", and nobody has done it in time: people were told",
        Some(IncidentStage::Completed) => ", and its failover is done",
        _ => "",
    };
    format!("{how} for {for_long}{held}{orders}{over}")
}

/// What a later step of a rule's course says in place of a fall.
fn step(event: &EventJson) -> Option<String> {
    let rule = event.data.get("rule").and_then(Value::as_str)?;
    is_action(event.kind)
        .then(|| format!("Rule {} went on: {}", clean(rule), clean(field(event, "reason"))))
}

/// What a turn of the host's own story means.
fn turn(event: &EventJson) -> Option<String> {
    if let Some(text) = step(event) {
        return Some(text);
    }
    let evidence = event.data.get("evidence");
    let unheard = evidence.is_some_and(|e| e["unheard"] == true);
    let silent = evidence.and_then(|e| e["silence_ms"].as_f64()).map_or_else(String::new, |ms| {
        let s = ms / 1e3;
        match unheard {
            true => format!(" since the controller began to listen {s:.1} s before"),
            false => format!(" for {s:.1} s"),
        }
    });
    Some(match event.kind {
        EventKind::HostSuspect if unheard => {
            format!("Nothing was heard of it{silent}: it was asked (probes)")
        }
        EventKind::HostSuspect => {
            format!("Nothing was heard of it{silent}, longer than usual: it was asked (probes)")
        }
        EventKind::HostDown => {
            format!("Nothing answered, and it had been silent{silent}: it was taken for dead")
        }
        EventKind::HostAgentLost => {
            "Its machine answered, but its agent was gone: that is not dead, but not watched"
                .to_owned()
        }
        EventKind::HostUnreachable => {
            "Other hosts could reach it, the controller could not: it lives".to_owned()
        }
        EventKind::HostRecovered => match event.data.get("same_boot").and_then(Value::as_bool) {
            Some(true) => "It was heard again, and had lived on all the time".to_owned(),
            _ => "It was heard again, after a restart".to_owned(),
        },
        EventKind::HostLeft => "It said goodbye".to_owned(),
        EventKind::HostMissing => "It was expected, and never heard".to_owned(),
        EventKind::HostFlapping => {
            "It comes and goes: it is acted upon only when it stays down".to_owned()
        }
        EventKind::IncidentEscalated => {
            format!("It was escalated: {}", clean(field(event, "reason")))
        }
        // These say who, what and why in one sentence. A veto is told with the order that it refuses.
        EventKind::HoldApproved
        | EventKind::HoldRejected
        | EventKind::IncidentCompleted
        | EventKind::IncidentFailed => clean(field(event, "reason")),
        _ => return None,
    })
}

fn verdicts(event: &EventJson) -> &[Value] {
    event.data.get("verdicts").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Why its failover was held back, or not ordered, at a receiver.
fn verdict(event: &EventJson, what: &str) -> Option<String> {
    let found = verdicts(event).iter().find(|v| v["verdict"] == what)?;
    found["reason"].as_str().map(str::to_owned)
}

/// Whether it is an order that was given to nobody, nor kept for anybody.
fn nobody_acts(event: &EventJson) -> bool {
    is_action(event.kind) && verdicts(event).iter().all(|v| v["verdict"] == "suppress")
}

/// What happened to its failure domain, or was said of it.
fn around(event: &EventJson) -> String {
    let domain = clean(field(event, "domain"));
    let number = |key: &str| event.data.get(key).and_then(Value::as_u64).unwrap_or(0);
    match event.kind {
        EventKind::DomainDown => format!(
            "All {} hosts of {domain} were silent: one event told that the domain itself is down, and \
             their failovers wait for somebody to look",
            number("silent")
        ),
        EventKind::DomainStorm => format!(
            "{} of {domain} fell silent together (a storm), and their failovers wait",
            count(number("silent"), "host")
        ),
        EventKind::DomainCalm => format!("The storm in {domain} was over"),
        // These say who, what and why in one sentence.
        _ => clean(field(event, "reason")),
    }
}

/// What became of its failover at one receiver.
fn carried(d: &DeliveryJson) -> Vec<(Wall, String)> {
    let row = &d.delivery;
    let receiver = clean(&row.receiver);
    let mut told = Vec::new();
    if let (Some(placed), Some(first)) = (&row.placed, d.attempt_log.first()) {
        let at = placed.get("placed_again_ms").and_then(Value::as_i64).map_or(first.began_ms, Wall);
        let places = sentence(placed).map_or_else(String::new, |places| format!("; {places}"));
        told.push((at, format!("It was still true, so its failover was let go{places}")));
    }
    let tries = count(usize::try_from(row.attempts).unwrap_or(usize::MAX), "try");
    let reason =
        row.reason.as_ref().map_or_else(String::new, |r| format!(", because {}", clean(r)));
    let end = match row.state {
        DeliveryState::Held => return told,
        DeliveryState::Pending if row.attempts == 0 => return told,
        DeliveryState::Pending => {
            let last = row.last_outcome.as_ref();
            let last =
                last.map_or_else(String::new, |last| format!("; the last answer: {}", clean(last)));
            format!("{receiver} has not taken its failover yet, after {tries}{last}")
        }
        DeliveryState::Delivered => {
            format!("Its failover was delivered: {receiver} took it, after {tries}")
        }
        DeliveryState::Cancelled => {
            format!("Its failover was cancelled before {receiver} ever heard of it{reason}")
        }
        DeliveryState::Superseded => {
            format!("Its failover was taken back from {receiver}: newer news took its place")
        }
        DeliveryState::Vetoed => format!("{receiver} refused its failover{reason}"),
        DeliveryState::Dead => format!("{receiver} never took its failover, after {tries}{reason}"),
    };
    told.push((row.changed_ms, end));
    told
}
