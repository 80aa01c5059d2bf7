//! `heartwatchctl why`: everything recorded about a host, told to somebody who was woken by it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::Value;

use super::margin;
use super::show::{cause, doubt};
use super::text::{between, clean, count, details, human_ms, ppm};
use crate::api::types::{DeliveryJson, EventJson, WhyJson};
use crate::control::{HostWhy, OtherVersionWhy};
use crate::event::{Cause, EventId, EventKind, State};
use crate::store::DeliveryState;

/// Most verdicts of one event that are told.
const VERDICTS_MAX: usize = 50;

/// Tells the whole story.
pub(super) fn write(out: &mut dyn Write, why: &WhyJson) -> io::Result<()> {
    verdict(out, why)?;
    super::short::write(out, why)?;
    writeln!(out, "\nHOW THE CONTROLLER KNOWS")?;
    match (&why.detector, &why.detector_error) {
        (Some(detector), _) => evidence(out, detector)?,
        (None, Some(e)) => writeln!(out, "  It cannot say right now: {}", clean(e))?,
        (None, None) => writeln!(out, "  It cannot say right now.")?,
    }
    writeln!(out, "\nWHAT THE CONTROLLER DOUBTS ABOUT ITSELF")?;
    if why.doubts.is_empty() {
        writeln!(out, "  Nothing: it reads every datagram in time, and its store can be written.")?;
    }
    for d in &why.doubts {
        writeln!(out, "  - {}", doubt(d, why.now_ms))?;
    }
    if let Some(pause) = &why.pause {
        let (until, reason) = (pause.until_ms, clean(&pause.reason));
        writeln!(out, "  An operator holds all actions until {until}: {reason}")?;
    }
    history(out, why)
}

fn verdict(out: &mut dyn Write, why: &WhyJson) -> io::Result<()> {
    let host = &why.host;
    let name =
        if host.name.is_empty() { "A host without a name".to_owned() } else { clean(&host.name) };
    let state = host.state;
    let (since, ago) = (host.since_ms, between(host.since_ms, why.now_ms));
    writeln!(out, "{name} ({}) is {state} since {since}, {ago} ago.", host.id)?;
    let meaning = match (host.state, host.cause) {
        (State::Pending, _) => "It is expected, but has never been heard.",
        (State::Alive, _) => "Its beats arrive in time.",
        (State::Suspect, Some(Cause::Unreachable)) => {
            "It lives: hosts in other failure domains brought back its answers. But the controller cannot \
             hear it: the network between them is cut. Nothing is failed over unless a rule says so."
        }
        (State::Suspect, _) => {
            "Its next beat is overdue, and probes are asking it. This may be a mistake; nothing is \
             failed over yet."
        }
        (State::Left, _) if why.host.back_by_ms.is_some() => {
            "It said goodbye, and when it would be back. Until then that is no outage."
        }
        (State::Left, _) => "It said goodbye for good. That is no outage.",
        (State::Duplicate, _) if super::twin::both_answer(why) => {
            "Beats arrive, but from two machines."
        }
        (State::Duplicate, _) => "Beats arrive, from one machine now; not long ago two answered.",
        (State::Down, None) => "It is taken for dead.",
        (State::Down, Some(Cause::AgentLost)) => {
            "Its machine is up, but its agent is gone: its operating system says that nobody listens. It is asked on, \
             every ten seconds, and down as soon as it falls silent too."
        }
        (State::Down, Some(c)) => {
            return writeln!(out, "It is taken for dead: {}.", cause(c))
                .and_then(|()| rest(out, why));
        }
    };
    writeln!(out, "{meaning}")?;
    rest(out, why)
}

fn rest(out: &mut dyn Write, why: &WhyJson) -> io::Result<()> {
    if let Some(seen) = why.detector.as_ref().and_then(|d| d.other_version.as_ref()) {
        other_version(out, seen)?;
    }
    super::twin::of_host(out, why)?;
    if let Some(incident) = &why.incident {
        let opened = incident.opened_ms.map_or_else(String::new, |at| format!(", opened {at}"));
        writeln!(out, "It is in outage {}{opened}.", incident.id)?;
    }
    if let Some(at) = why.host.back_by_ms {
        let verb = if at > why.now_ms { "is" } else { "was" };
        writeln!(
            out,
            "It {verb} to be back by {at}; if it is not, it is probed, then taken for dead."
        )?;
    }
    if let Some(window) = &why.host.maintenance {
        super::maintenance::of_host(out, window, why.now_ms)?;
    }
    if let Some(hold) = &why.hold {
        super::holds::of_host(out, hold, why.now_ms)?;
    }
    super::rules::of_host(out, &why.waits, why.host.id, why.now_ms)?;
    if let Some(address) = why.host.address {
        writeln!(out, "Its last sign of life came from {address}.")?;
    }
    Ok(())
}

/// `in 990ms`, `3.2s ago`.
fn in_or_ago(ms: i64) -> String {
    let text = human_ms(ms.unsigned_abs());
    if ms < 0 { format!("{text} ago") } else { format!("in {text}") }
}

/// From when on anything can be known of it.
fn listening(d: &HostWhy) -> String {
    match d.listening_ms {
        0 => "the controller's start".to_owned(),
        ms => format!("the controller began to listen {} ago", human_ms(ms)),
    }
}

/// What comes of it in a format that the controller does not speak.
fn other_version(out: &mut dyn Write, seen: &OtherVersionWhy) -> io::Result<()> {
    let (version, ours) = (seen.version, seen.ours);
    let upgrade = match version < ours {
        true => "Upgrade its agent",
        false => "Upgrade the controller, or take its agent back to the controller's release",
    };
    writeln!(
        out,
        "Datagrams of wire format {version} come of it, sealed with its key ({}, the last {} ago from {}), and the \
         controller speaks format {ours}: they count for nothing. {upgrade}.",
        seen.datagrams,
        human_ms(seen.last_ago_ms),
        seen.from
    )
}

fn evidence(out: &mut dyn Write, d: &HostWhy) -> io::Result<()> {
    match d.silence_ms {
        Some(ms) => writeln!(
            out,
            "  Last sign of life: {} ago (life {} of its agent, datagram {}).",
            human_ms(ms),
            d.boot,
            d.seq
        )?,
        None => writeln!(out, "  No sign of life since {}.", listening(d))?,
    }
    if let Some(expected) = d.expected_in_ms {
        let verb = if expected < 0 { "was" } else { "is" };
        writeln!(
            out,
            "  Its agent announced the next beat for {} after that one: it {verb} expected {}.",
            human_ms(d.gap_ms),
            in_or_ago(expected)
        )?;
    }
    margin::write(out, d)?;
    if let Some(deadline) = d.deadline_in_ms {
        let verb = if deadline < 0 { "ended" } else { "ends" };
        writeln!(out, "  Its patience {verb} {}; after that it is suspect.", in_or_ago(deadline))?;
    }
    margin::arrivals(out, d)?;
    if let Some(p) = &d.probes {
        writeln!(
            out,
            "  Probes: {} sent. {}",
            if p.sent > u16::from(p.of) {
                p.sent.to_string()
            } else {
                format!("{} of {}", p.sent, p.of)
            },
            match p.unreachable {
                0 => "None was answered.".to_owned(),
                n => format!("To {n} its operating system answered that no agent listens."),
            }
        )?;
        if p.peers_asked > 0 {
            writeln!(
                out,
                "  Peers in other failure domains: asked {} to probe it too; {} brought its answer back.",
                count(usize::from(p.peers_asked), "time"),
                p.testimonies
            )?;
        }
    }
    if let Some(e) = &d.excuse {
        writeln!(
            out,
            "  Its silence {} by a doubt of the controller's own, since {} ago ({}): {}.",
            if e.remaining_ms > 0 { "is excused" } else { "was excused, for a time," },
            human_ms(e.since_ms),
            e.reason,
            e.reason.words()
        )?;
    }
    writeln!(
        out,
        "  It was wrongly suspected {} since {}.",
        count(usize::try_from(d.mistakes).unwrap_or(usize::MAX), "time"),
        listening(d)
    )?;
    writeln!(
        out,
        "  The controller's own losses where this host is watched (shard {}): {}; it judges as of {} ago.",
        d.shard,
        ppm(d.shard_drop_ppm),
        human_ms(d.shard_lag_ms)
    )?;
    margin::learned(out, d)
}

fn history(out: &mut dyn Write, why: &WhyJson) -> io::Result<()> {
    writeln!(out, "\nWHAT HAPPENED (oldest first)")?;
    if why.events_truncated {
        writeln!(out, "  … older events: heartwatchctl events --after c0 --host {}", why.host.id)?;
    }
    let mut by_event = BTreeMap::<EventId, Vec<&DeliveryJson>>::new();
    for delivery in why.deliveries.iter().rev() {
        by_event.entry(delivery.delivery.event).or_default().push(delivery);
    }
    let mut incident = None;
    for event in why.events.iter().rev() {
        if event.incident != incident {
            if let Some(id) = event.incident {
                let open = why.incident.as_ref().is_some_and(|i| i.id == id);
                writeln!(out, "  --- outage {id}{} ---", if open { " (not over)" } else { "" })?;
            } else {
                writeln!(out, "  --- no outage ---")?;
            }
            incident = event.incident;
        }
        tell(out, event)?;
        for delivery in by_event.remove(&event.id).into_iter().flatten() {
            carry(out, delivery)?;
        }
    }
    if why.events.is_empty() {
        writeln!(out, "  Nothing is recorded.")?;
    }
    if !by_event.is_empty() {
        writeln!(out, "  --- deliveries of older events ---")?;
        for delivery in by_event.into_values().flatten() {
            carry(out, delivery)?;
        }
    }
    if why.deliveries_truncated {
        writeln!(out, "  … more deliveries: heartwatchctl deliveries --host {}", why.host.id)?;
    }
    Ok(())
}

fn tell(out: &mut dyn Write, event: &EventJson) -> io::Result<()> {
    let same_boot = event.data.get("same_boot").and_then(Value::as_bool);
    let text = match (event.kind, same_boot) {
        (EventKind::HostJoined, _) => "heard for the first time",
        (EventKind::HostSuspect, _) => "overdue: became suspect, and probes were sent",
        (EventKind::HostUnreachable, _) => {
            "other hosts reach it, but the controller does not: it lives"
        }
        (EventKind::HostDown, _) => "taken for dead: no probe was answered",
        (EventKind::HostAgentLost, _) => "its agent is gone, but the machine answers",
        (EventKind::HostRecovered, Some(true)) => {
            "back, in the same life of its agent: it had not crashed, we were wrong or cut off from it"
        }
        (EventKind::HostRecovered, Some(false)) => "back, in a new life of its agent",
        (EventKind::HostRecovered, None) => "back",
        (EventKind::HostRestarted, _) => "its agent was restarted, without an outage",
        (EventKind::HostLeft, _) => "said goodbye",
        (EventKind::HostMissing, _) => "expected, but not heard in time",
        (EventKind::HostDuplicate, _) => "two machines answer under its identity",
        (EventKind::HostSingle, _) => "only one machine answers under its identity again",
        (EventKind::HostOverdue, _) => {
            "it said when it would be back, and was not: probes were sent"
        }
        (EventKind::MaintenanceStarted, _) => "it was put into maintenance",
        (EventKind::MaintenanceEnded, _) => "its maintenance was over",
        (EventKind::HostForgotten, _) => "removed from the registry",
        (EventKind::HostEnrolled, _) => "it enrolled",
        (EventKind::HostFrozen, _) => "an operator froze its margin",
        (EventKind::HostUnfrozen, _) => "an operator let its margin learn again",
        (EventKind::ControllerBlind, _) => "the controller could not trust its own eyes",
        (EventKind::ControllerSighted, _) => "the controller could trust its eyes again",
        (EventKind::ControllerPaused, _) => "an operator held all actions",
        (EventKind::ControllerResumed, _) => "the operator's pause ended",
        (EventKind::HostFlapping, _) => {
            "it comes and goes: its suspicions are told to nobody for now"
        }
        (EventKind::HostSteady, _) => "it has been steady for long enough",
        (EventKind::DomainDown, _) => "all hosts of a failure domain fell silent",
        (EventKind::DomainStorm, _) => "many hosts of a failure domain fell silent together",
        (EventKind::DomainCalm, _) => "the storm in its domain was over",
        (EventKind::HoldApproved, _) => "somebody let its held order go",
        (EventKind::HoldRejected, _) => "somebody had its held order cancelled",
        (EventKind::HoldOverdue, _) => "orders were held for too long",
        (EventKind::IncidentCompleted, _) => "the receiver reported that its order is done",
        (EventKind::IncidentFailed, _) => "its order was not done, and nobody is left to ask",
        (EventKind::IncidentVetoed, _) => "the receiver refused the order",
        (EventKind::IncidentEscalated, _) => {
            "nobody did it in time: the next receiver was turned to"
        }
        (EventKind::ControllerCanaryFailed, _) => "the controller's own drill failed",
        (EventKind::ControllerCanaryPassed, _) => "the controller's own drill passed again",
        (EventKind::ControllerAudit, _) => "somebody used the controller's API",
        (EventKind::Test, _) => "an operator tried a receiver",
    };
    writeln!(out, "  {}  {}: {text}", event.at_ms, event.kind)?;
    if let Some(reason) = event.data.get("reason").and_then(Value::as_str) {
        writeln!(out, "      reason: {}", clean(reason))?;
    }
    // What the detector saw matters where it led to something.
    let skipped = ["reason", "candidates", "placement", "evidence"];
    let skipped = &skipped[..if event.kind.goes_on() { 3 } else { 4 }];
    let details = details(&event.data, skipped);
    let token = event.token.map(|t| format!("fencing token {}", t.0));
    let more: Vec<String> =
        token.into_iter().chain((!details.is_empty()).then_some(details)).collect();
    if !more.is_empty() {
        writeln!(out, "      {}", more.join("; "))?;
    }
    if let Some(places) = super::candidates::sentence(&event.data) {
        writeln!(out, "      {places}")?;
    }
    verdicts(out, event)
}

/// Which rule wanted whom to be told, and what was decided: also where nothing was ever sent.
fn verdicts(out: &mut dyn Write, event: &EventJson) -> io::Result<()> {
    let Some(list) = event.data.get("verdicts").and_then(Value::as_array) else { return Ok(()) };
    if list.is_empty() {
        return writeln!(out, "      no rule tells anybody of this");
    }
    for verdict in list.iter().take(VERDICTS_MAX) {
        let field = |key: &str| clean(verdict.get(key).and_then(Value::as_str).unwrap_or("?"));
        let decided = match field("verdict").as_str() {
            "act" => "send it".to_owned(),
            "hold" => format!("hold it back, because: {}", field("reason")),
            "suppress" => format!("do not send it, because: {}", field("reason")),
            "later" => format!("do not send it yet: {}", field("reason")),
            other => other.to_owned(),
        };
        writeln!(out, "      rule `{}` for {}: {decided}", field("rule"), field("receiver"))?;
    }
    Ok(())
}

fn carry(out: &mut dyn Write, d: &DeliveryJson) -> io::Result<()> {
    let row = &d.delivery;
    let how = match row.state {
        DeliveryState::Held => "held back",
        DeliveryState::Pending if row.attempts == 0 => "waits to be sent",
        DeliveryState::Pending => "not taken yet, will be tried again",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Cancelled => "cancelled before anything was sent",
        DeliveryState::Superseded => "superseded: later news replaced it",
        DeliveryState::Vetoed => "vetoed: the receiver will not do it",
        DeliveryState::Dead => "given up (a dead letter; `heartwatchctl redrive` sends it again)",
    };
    let (receiver, id) = (clean(&row.receiver), row.id.0);
    write!(out, "      -> {receiver}: {how} (delivery {id}, since {})", row.changed_ms)?;
    match &row.reason {
        Some(reason) => writeln!(out, ", because: {}", clean(reason))?,
        None => writeln!(out)?,
    }
    if let Some(places) = row.placed.as_ref().and_then(super::candidates::sentence) {
        writeln!(out, "         judged again as it went; {places}")?;
    }
    for a in &d.attempt_log {
        let answer = match (&a.detail, a.status) {
            (Some(detail), _) => clean(detail),
            (None, Some(status)) => format!("HTTP {status}"),
            (None, None) => "no answer recorded".to_owned(),
        };
        let took = match a.ended_ms {
            Some(end) => format!("after {}", between(a.began_ms, end)),
            None => "under way, or the controller stopped in it".to_owned(),
        };
        writeln!(out, "         try {} at {}: {answer}, {took}", a.number, a.began_ms)?;
    }
    Ok(())
}
