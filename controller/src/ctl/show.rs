//! Answers of the API as tables for people.

use std::io::{self, Write};

use serde_json::Value;

use super::text::{Table, between, clean, details, human_f64, human_ms, percent, ppm, shorten};
use crate::api::types::{
    DeliveriesPage, EventJson, HostJson, HostsPage, ReceiversJson, StatusJson,
};
use crate::control::{Doubt, Status, Window};
use crate::event::{Cause, State};
use crate::intervals::IntervalsStatus;
use crate::store::DeliveryState;
use heartwatch_common::time::Wall;

/// What an event's line leaves to `why`.
const BRIEF: [&str; 3] = ["evidence", "candidates", "placement"];

/// Where a host stands, with the cause.
pub(super) fn state(host: &HostJson) -> String {
    let mut text = host.state.to_string();
    if let Some(cause) = host.cause {
        text.push_str(&format!(" ({})", cause.as_str()));
    }
    if host.duplicate && host.state != State::Duplicate {
        text.push_str(" duplicate!");
    }
    if host.maintenance.is_some() {
        text.push_str(" in maintenance");
    }
    if host.frozen_ms.is_some() {
        text.push_str(" margin frozen");
    }
    text
}

fn labels(host: &HostJson) -> String {
    let pairs: Vec<String> = host.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

/// A page of hosts.
pub(super) fn hosts(out: &mut dyn Write, page: &HostsPage) -> io::Result<()> {
    let mut table = Table::new(
        &["NAME", "STATE", "FOR", "SILENT", "CPU", "MEM", "ID", "LABELS"],
        &[2, 3, 4, 5],
    );
    for host in &page.hosts {
        let load = host.load.as_ref();
        table.row([
            if host.name.is_empty() { "-".to_owned() } else { host.name.clone() },
            state(host),
            between(host.since_ms, page.now_ms),
            host.silence_ms.map_or_else(|| "-".to_owned(), human_ms),
            percent(load.and_then(|l| l.cpu_busy_ratio)),
            percent(load.and_then(|l| l.memory_used_ratio)),
            host.id.to_string(),
            shorten(&labels(host), 80),
        ]);
    }
    table.write(out)
}

/// One fact a line; what is empty is left out.
fn facts(out: &mut dyn Write, facts: &[(&str, String)]) -> io::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{name:<width$}  {}", clean(value))?;
    }
    Ok(())
}

/// One host.
pub(super) fn host(out: &mut dyn Write, host: &HostJson) -> io::Result<()> {
    let silence = host.silence_ms.map_or_else(
        || "no proof of life since the controller's start".to_owned(),
        |ms| format!("{} ago", human_ms(ms)),
    );
    facts(
        out,
        &[
            ("name", host.name.clone()),
            ("id", host.id.to_string()),
            ("state", format!("{} since {}", state(host), host.since_ms)),
            ("cause", host.cause.map(|c| cause(c).to_owned()).unwrap_or_default()),
            ("two machines", host.twin.as_ref().map(super::twin::other).unwrap_or_default()),
            ("last beat", silence),
            ("gap", host.gap_ms.map(human_ms).unwrap_or_default()),
            (
                "margin",
                host.frozen_ms.map(|ms| format!("frozen at {}", human_ms(ms))).unwrap_or_default(),
            ),
            ("maintenance", host.maintenance.as_ref().map(Window::words).unwrap_or_default()),
            ("back by", host.back_by_ms.map(|at| at.to_string()).unwrap_or_default()),
            ("outage", host.incident.map(|i| i.to_string()).unwrap_or_default()),
            ("address", host.address.map(|a| a.to_string()).unwrap_or_default()),
            ("labels", labels(host)),
            ("system", host.os.clone()),
            ("agent", host.agent_version.clone()),
            ("boot", host.boot.to_string()),
            ("key generation", host.generation.to_string()),
            ("first seen", host.first_seen_ms.to_string()),
        ],
    )?;
    let Some(load) = &host.load else { return Ok(()) };
    let number = |n: Option<f64>| n.map(|n| format!("{n:.2}")).unwrap_or_default();
    facts(
        out,
        &[
            ("cpu busy      ", percent(load.cpu_busy_ratio)),
            ("memory used", percent(load.memory_used_ratio)),
            ("swap used", percent(load.swap_used_ratio)),
            ("fullest disk", percent(load.disk_used_ratio)),
            ("run queue/core", number(load.run_queue_per_core)),
            ("network", load.network_kib_per_s.map(|n| format!("{n} KiB/s")).unwrap_or_default()),
            ("waits for cpu", percent(load.psi_cpu_ratio)),
            ("waits for mem", percent(load.psi_memory_ratio)),
            ("waits for disk", percent(load.psi_io_ratio)),
            ("load score", format!("{} of 1000", load.score)),
        ],
    )
}

/// A cause in plain words.
pub(super) fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Silent => "neither its agent nor its operating system answered",
        Cause::AgentLost => {
            "its operating system answered that the agent is gone: the machine is up"
        }
        Cause::Unreachable => {
            "hosts in other failure domains reach it, but the controller does not"
        }
    }
}

/// A doubt in plain words.
pub(super) fn doubt(doubt: &Doubt, now: Wall) -> String {
    let mut text = match doubt.shard {
        Some(shard) => format!("{} (shard {shard}): {}", doubt.reason, clean(&doubt.text)),
        None => format!("{}: {}", doubt.reason, clean(&doubt.text)),
    };
    let mut more = Vec::new();
    more.extend(doubt.drop_ppm.map(|n| format!("{} of the datagrams just now", ppm(n))));
    more.extend(doubt.lag_ms.map(|ms| format!("{} behind", human_ms(ms))));
    more.extend(doubt.remaining_ms.map(|ms| format!("{} more", human_ms(ms))));
    more.extend(doubt.error.as_deref().map(|e| format!("it says: {}", clean(e))));
    more.extend(doubt.since_ms.map(|since| format!("for {}", between(since, now))));
    if !more.is_empty() {
        text = format!("{text}; {}", more.join(", "));
    }
    text
}

/// The controller.
pub(super) fn status(out: &mut dyn Write, s: &StatusJson) -> io::Result<()> {
    let status = &s.status;
    let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
    let pause = status.pause.as_ref();
    facts(
        out,
        &[
            (
                "controller",
                format!("{} ({}), version {}", status.name, status.controller, status.version),
            ),
            ("beats on", listen.join(", ")),
            ("certificate", certificate(s)),
            ("running for", between(status.started_ms, s.now_ms)),
            ("hosts", counts(status)),
            (
                "paused",
                pause.map(|p| format!("until {}: {}", p.until_ms, p.reason)).unwrap_or_default(),
            ),
            (
                "events waiting",
                if status.events_waiting > 0 {
                    status.events_waiting.to_string()
                } else {
                    String::new()
                },
            ),
        ],
    )?;
    if status.doubts.is_empty() {
        writeln!(out, "doubts          none: what it says is what it sees")?;
    } else {
        writeln!(out, "\nThe controller doubts its own eyes:")?;
        for d in &status.doubts {
            writeln!(out, "  - {}", doubt(d, s.now_ms))?;
        }
    }
    other_versions(out, status)?;
    super::holds::of_all(out, &status.guard, s.now_ms)?;
    super::maintenance::of_all(out, &status.maintenance)?;
    if let Some(assigned) = &status.intervals {
        writeln!(out)?;
        intervals(out, assigned)?;
    }
    if !status.shards.is_empty() {
        writeln!(out)?;
        shards(out, s)?;
    }
    writeln!(out)?;
    receivers(out, s)
}

/// Hosts by state.
fn counts(status: &Status) -> String {
    let count = |state: &State| {
        let n = status.hosts.get(state.as_str()).copied().unwrap_or(0);
        // A duplicate that does not beat is counted where it stands.
        match status.silent_duplicates.get(state.as_str()) {
            Some(twins) => format!("{n} {state} ({twins} duplicate)"),
            None => format!("{n} {state}"),
        }
    };
    State::ALL.iter().map(count).collect::<Vec<_>>().join(", ")
}

/// Who speaks another version of the wire.
fn other_versions(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let ours = status.wire_version;
    for seen in &status.other_versions {
        let upgrade = match seen.version < ours {
            true => "Upgrade their agents",
            false => "Upgrade the controller, or take their agents back to its release",
        };
        let named: Vec<String> = seen.named.iter().map(ToString::to_string).collect();
        let more = if seen.hosts > named.len() as u64 { ", …" } else { "" };
        writeln!(
            out,
            "\n{} in wire format {}, sealed with their keys, and this controller speaks format {ours}: they count \
             for nothing. {upgrade}: {}{more}",
            match seen.hosts {
                1 => "1 host sends its datagrams".to_owned(),
                n => format!("{n} hosts send their datagrams"),
            },
            seen.version,
            named.join(", ")
        )?;
    }
    Ok(())
}

/// The API's certificate: what to pin, and how long it is good.
fn certificate(s: &StatusJson) -> String {
    let Some(c) = &s.certificate else { return String::new() };
    let days = c.not_after_ms.0.saturating_sub(s.now_ms.0) / 86_400_000;
    let clients = if c.asks_clients { ", clients must show theirs" } else { "" };
    format!("SHA-256 {}, {days} days left{clients}", c.sha256)
}

/// What intervals are assigned, and why.
fn intervals(out: &mut dyn Write, i: &IntervalsStatus) -> io::Result<()> {
    writeln!(
        out,
        "Beats: {:.1} a second planned of {:.0} allowed (intervals.budget).",
        i.planned_per_s, i.budget_per_s
    )?;
    if i.exceeded {
        writeln!(
            out,
            "Even the longest intervals exceed the budget: raise intervals.budget or intervals.max."
        )?;
    }
    let mut table = Table::new(&["CLASS", "HOSTS", "INTERVAL", "MOVES TO"], &[1, 2, 3]);
    for class in &i.classes {
        let moves = (class.interval_ms - class.aim_ms).abs() >= 1.0;
        table.row([
            class.class.clone(),
            class.hosts.to_string(),
            human_f64(class.interval_ms),
            if moves { human_f64(class.aim_ms) } else { "-".to_owned() },
        ]);
    }
    table.write(out)
}

fn shards(out: &mut dyn Write, s: &StatusJson) -> io::Result<()> {
    let header =
        ["SHARD", "HOSTS", "BEATS", "DATAGRAMS", "DROPPED", "PROBING", "LAG", "BUFFER", "REJECTED"];
    let mut table = Table::new(&header, &[0, 1, 2, 3, 4, 5, 6, 7]);
    for shard in &s.status.shards {
        let rejects: Vec<String> =
            shard.rejects.iter().map(|(why, n)| format!("{why} {n}")).collect();
        table.row([
            shard.shard.to_string(),
            shard.hosts.to_string(),
            shard.beats.to_string(),
            shard.received.to_string(),
            shard.dropped.to_string(),
            shard.probing.to_string(),
            human_ms(shard.lag_ms),
            format!("{} KiB", shard.receive_buffer_bytes / 1024),
            rejects.join(", "),
        ]);
    }
    table.write(out)
}

fn receivers(out: &mut dyn Write, s: &StatusJson) -> io::Result<()> {
    let mut table = Table::new(&["RECEIVER", "SIGNED", "HELD", "PENDING", "DEAD"], &[2, 3, 4]);
    let known = s.config.receivers.iter().map(|r| r.name.as_str());
    let mut names: Vec<&str> =
        known.chain(s.status.deliveries.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return writeln!(out, "No receiver is configured: nobody is told when a host goes down.");
    }
    for name in names {
        let config = s.config.receivers.iter().find(|r| r.name == name);
        let backlog = |state: &str| {
            let n = s.status.deliveries.get(name).and_then(|by_state| by_state.get(state));
            n.copied().unwrap_or(0).to_string()
        };
        table.row([
            name.to_owned(),
            config.map_or("not configured", |c| if c.signed { "yes" } else { "no" }).to_owned(),
            backlog("held"),
            backlog("pending"),
            backlog("dead"),
        ]);
    }
    table.write(out)
}

/// The host of an event: its name, if the event tells it.
fn event_host(event: &EventJson) -> String {
    let named =
        event.data.get("name").or_else(|| event.data.get("host").and_then(|h| h.get("name")));
    match (named.and_then(Value::as_str).filter(|n| !n.is_empty()), event.host) {
        (Some(name), _) => name.to_owned(),
        (None, Some(id)) => id.to_string(),
        (None, None) => "-".to_owned(),
    }
}

/// Events, oldest first.
pub(super) fn events(out: &mut dyn Write, events: &[EventJson]) -> io::Result<()> {
    let mut table = Table::new(&["TIME", "EVENT", "HOST", "DETAILS"], &[]);
    for event in events {
        table.row([
            event.at_ms.to_string(),
            event.kind.to_string(),
            event_host(event),
            details(&event.data, &BRIEF),
        ]);
    }
    table.write(out)
}

/// One event, for `--follow`.
pub(super) fn event_line(out: &mut dyn Write, event: &EventJson) -> io::Result<()> {
    let (at, kind) = (event.at_ms, event.kind);
    let host = clean(&event_host(event));
    let line = format!("{at}  {kind:<19}  {host}  {}", details(&event.data, &BRIEF));
    writeln!(out, "{}", line.trim_end())
}

/// Where receivers stand.
pub(super) fn receiver_reports(out: &mut dyn Write, all: &ReceiversJson) -> io::Result<()> {
    if all.receivers.is_empty() {
        return writeln!(out, "No receiver is configured: nobody is told when a host goes down.");
    }
    let header = [
        "RECEIVER",
        "FORMAT",
        "HEALTH",
        "HELD",
        "PENDING",
        "OLDEST",
        "DEAD",
        "LAST",
        "LAST ANSWER",
    ];
    let mut table = Table::new(&header, &[3, 4, 5, 6, 7]);
    let age = |at: Option<Wall>| at.map_or_else(|| "-".to_owned(), |at| between(at, all.now_ms));
    for r in &all.receivers {
        table.row([
            r.name.clone(),
            if r.format.is_empty() { "-".to_owned() } else { r.format.clone() },
            r.health.as_str().to_owned(),
            r.held.to_string(),
            r.pending.to_string(),
            age(r.oldest_pending_ms),
            r.dead.to_string(),
            age(r.last_ms),
            shorten(r.last_outcome.as_deref().unwrap_or("-"), 80),
        ]);
    }
    table.write(out)
}

/// Deliveries, oldest first.
pub(super) fn deliveries(out: &mut dyn Write, page: &DeliveriesPage) -> io::Result<()> {
    let header = [
        "ID",
        "STATE",
        "EVENT",
        "RECEIVER",
        "HOST",
        "TOKEN",
        "TRIES",
        "JOURNALED",
        "WHY / LAST ANSWER",
    ];
    let mut table = Table::new(&header, &[0, 5, 6]);
    for d in &page.deliveries {
        let told = [d.reason.as_deref(), d.last_outcome.as_deref()];
        let told: Vec<&str> = told.into_iter().flatten().collect();
        table.row([
            d.id.0.to_string(),
            d.state.as_str().to_owned(),
            d.kind.to_string(),
            d.receiver.clone(),
            d.host.map_or_else(|| "-".to_owned(), |h| h.to_string()),
            d.token.map_or_else(|| "-".to_owned(), |t| t.0.to_string()),
            d.attempts.to_string(),
            d.created_ms.to_string(),
            shorten(&told.join("; "), 120),
        ]);
    }
    table.write(out)?;
    if page.deliveries.iter().any(|d| d.state == DeliveryState::Held) {
        writeln!(
            out,
            "Of held ones this tells what held them first; `heartwatchctl holds` tells what does now."
        )?;
    }
    match page.next_after {
        Some(after) => writeln!(out, "more: --after {after}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::status;
    use crate::control::OtherVersionStatus;
    use heartwatch_common::id::HostId;

    /// It said "0 duplicate" while a duplicate was down.
    #[test]
    fn a_duplicate_that_is_down_is_counted_as_both() {
        let mut status = status();
        status.hosts = [("down".to_owned(), 3), ("alive".to_owned(), 9)].into();
        status.silent_duplicates = [("down".to_owned(), 1)].into();
        let text = counts(&status);
        assert!(text.contains("9 alive,") && text.contains("3 down (1 duplicate)"), "{text}");
    }

    #[test]
    fn who_speaks_another_version_of_the_wire_is_named_with_what_to_do() {
        let mut status = status();
        let mut told = |version, hosts| {
            let named = vec![HostId([7; 16])];
            let last_ms = Wall(0);
            status.other_versions =
                vec![OtherVersionStatus { version, hosts, datagrams: 9, last_ms, named }];
            let mut out = Vec::new();
            other_versions(&mut out, &status).unwrap();
            String::from_utf8(out).unwrap()
        };
        let old = told(1, 1);
        for part in
            ["1 host sends", "in wire format 1", "speaks format 2", "Upgrade their agents: 0707"]
        {
            assert!(old.contains(part), "{part}\n{old}");
        }
        let new = told(3, 2);
        assert!(new.contains("2 hosts send") && new.contains("Upgrade the controller"), "{new}");
        assert!(new.trim_end().ends_with(", …"), "{new}");
    }
}
