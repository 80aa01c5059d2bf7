//! `heartwatchctl holds`: what is held and why, and an operator's word on it.

use std::io::{self, Write};

use clap::{ArgGroup, Args, Subcommand};
use heartwatch_common::time::Wall;

use super::CtlError;
use super::client::HoldsQuery;
use super::remote::Run;
use super::text::{Table, between, clean, count, shorten};
use crate::api::types::WordBody;
use crate::control::{GuardStatus, HoldKind, HoldStatus, HoldsPage, RuleWaits, WaitFor};

#[derive(Debug, Args)]
pub(super) struct Holds {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists held orders, the oldest first.
    List(List),
    /// Lets held orders go: one host's at once, a domain's at its action rate, each if it is still true.
    Approve(Say),
    /// Has held orders cancelled: nothing is ordered again in these outages.
    Reject(Say),
}

#[derive(Debug, Default, Args)]
struct List {
    /// Only of this failure domain, such as zone=a,rack=7; `fleet` is all.
    #[arg(long)]
    domain: Option<String>,
    /// Continues behind this place.
    #[arg(long)]
    after: Option<String>,
    /// At most this many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).args(["host", "domain"])))]
struct Say {
    /// Of this host, by id or name.
    host: Option<String>,
    /// Of all hosts of this failure domain, such as zone=a,rack=7; `fleet` is all.
    #[arg(long)]
    domain: Option<String>,
    /// Why; others will ask.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    by: super::by::By,
}

impl Holds {
    /// Whether it changes something.
    pub(super) fn changes(&self) -> bool {
        matches!(self.verb, Some(Verb::Approve(_) | Verb::Reject(_)))
    }
}

impl Run<'_> {
    pub(super) async fn holds(&mut self, args: &Holds) -> Result<(), CtlError> {
        match &args.verb {
            None => self.list_holds(&List { limit: 100, ..List::default() }).await,
            Some(Verb::List(list)) => self.list_holds(list).await,
            Some(Verb::Approve(say)) => self.judge_holds("approve", say).await,
            Some(Verb::Reject(say)) => self.judge_holds("reject", say).await,
        }
    }

    async fn list_holds(&mut self, list: &List) -> Result<(), CtlError> {
        let query = HoldsQuery {
            domain: list.domain.clone(),
            after: list.after.clone(),
            limit: Some(list.limit),
        };
        let answer = self.client.holds(&query).await?;
        let status = self.client.status().await?;
        let now = Wall(status["now_ms"].as_i64().unwrap_or(0));
        self.print(answer, |out, page: HoldsPage| write(out, &page, now))
    }

    async fn judge_holds(&mut self, verb: &str, say: &Say) -> Result<(), CtlError> {
        let body = WordBody { by: say.by.text(), reason: say.reason.clone() };
        let (host, domain) = (say.host.as_deref(), say.domain.as_deref());
        let report = self.client.judge_hold(verb, host, domain, &body).await?;
        if self.global.json {
            return self.json(&report);
        }
        let parts = [
            (report.released, "let go, if it is still true"),
            (
                report.queued,
                "approved: each goes at its domain's action rate, if it is still true then",
            ),
            (report.rejected, "rejected"),
        ];
        for (n, what) in parts.iter().filter(|(n, _)| *n > 0) {
            writeln!(self.out, "{n} {what}")?;
        }
        Ok(())
    }
}

/// A page of holds.
pub(super) fn write(out: &mut dyn Write, page: &HoldsPage, now: Wall) -> io::Result<()> {
    if page.holds.is_empty() {
        let elsewhere = match (page.total, page.waits.is_empty()) {
            (0, true) => "",
            (0, false) => " by a storm, a pause or a rate of actions",
            _ => " here",
        };
        writeln!(out, "Nothing is held{elsewhere}.")?;
        return kept_back(out, &page.waits, now);
    }
    let mut table = Table::new(&["HOST", "HELD FOR", "BY", "ID", "WHY"], &[1]);
    for hold in &page.holds {
        let mut by = hold.kind.as_str().to_owned();
        if hold.approved {
            by.push_str(" (approved)");
        }
        table.row([
            if hold.name.is_empty() { "-".to_owned() } else { hold.name.clone() },
            format!("{}{}", between(hold.since_ms, now), if hold.overdue { "!" } else { "" }),
            by,
            hold.host.to_string(),
            shorten(&hold.reason, 160),
        ]);
    }
    table.write(out)?;
    writeln!(out, "{} of {}.", page.holds.len(), count(page.total, "held order"))?;
    kept_back(out, &page.waits, now)?;
    match &page.next_after {
        Some(after) => writeln!(out, "more: --after {}", clean(after)),
        None => Ok(()),
    }
}

/// What rules keep back by themselves, in any domain.
fn kept_back(out: &mut dyn Write, waits: &[RuleWaits], now: Wall) -> io::Result<()> {
    for wait in waits {
        let what = match wait.wait {
            WaitFor::Delay => "delay",
            WaitFor::Hours => "hours",
            WaitFor::Rate => "rate",
            WaitFor::Guard => "holds",
        };
        writeln!(
            out,
            "Kept back by rule {} for its {what}: {}, the oldest for {}.",
            clean(&wait.rule),
            if wait.count == 1 {
                "1 order or alert".to_owned()
            } else {
                format!("{} orders or alerts", wait.count)
            },
            between(wait.oldest_ms, now)
        )?;
    }
    match waits {
        [] => Ok(()),
        _ => writeln!(
            out,
            "These go by themselves if they are still true then. `heartwatchctl why HOST` tells when; \
             `holds approve HOST` or `holds reject HOST` decides now."
        ),
    }
}

/// What holds one host's order, for its story.
pub(super) fn of_host(out: &mut dyn Write, hold: &HoldStatus, now: Wall) -> io::Result<()> {
    writeln!(
        out,
        "Its failover is held for {} now: {}.",
        between(hold.since_ms, now),
        clean(&hold.reason)
    )?;
    if hold.approved {
        return writeln!(
            out,
            "Somebody approved it: it goes as soon as its domain's action rate allows."
        );
    }
    writeln!(
        out,
        "Let it go or not: heartwatchctl holds approve|reject {} --reason …{}",
        hold.host,
        if hold.overdue { " (it is held for too long)" } else { "" }
    )
}

/// Storms and holds, for the status; nothing if there are none.
pub(super) fn of_all(out: &mut dyn Write, guard: &GuardStatus, now: Wall) -> io::Result<()> {
    let held: u64 = guard.holds.values().sum();
    if held > 0 {
        let kinds: Vec<String> = guard
            .holds
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(kind, n)| format!("{n} by {}", HoldKind::words(*kind)))
            .collect();
        let oldest = guard
            .oldest_ms
            .map_or_else(String::new, |at| format!(", the oldest for {}", between(at, now)));
        writeln!(
            out,
            "\nHeld failovers: {}{oldest}. See `heartwatchctl holds`.",
            kinds.join(", ")
        )?;
    }
    if guard.flapping > 0 {
        let come = if guard.flapping == 1 { "comes and goes" } else { "come and go" };
        writeln!(out, "{} {come} (flapping).", count(guard.flapping, "host"))?;
    }
    if guard.domains_full {
        writeln!(out, "There are too many failure domains: name fewer labels in domains.trees.")?;
    }
    if guard.storms.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nStorms: too many hosts of these failure domains are silent.")?;
    let mut table = Table::new(&["DOMAIN", "FOR", "SILENT", "HEARD", "HELD"], &[1, 2, 3, 4]);
    for storm in &guard.storms {
        table.row([
            storm.domain.clone(),
            between(storm.since_ms, now),
            storm.silent.to_string(),
            storm.heard.to_string(),
            storm.held.to_string(),
        ]);
    }
    table.write(out)?;
    let more = guard.storms_total.saturating_sub(guard.storms.len() as u64);
    if more > 0 {
        writeln!(out, "and {more} more")?;
    }
    Ok(())
}
