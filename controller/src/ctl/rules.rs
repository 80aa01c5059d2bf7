//! `heartwatchctl rules`: what rules do, whom they mean, and what they would do.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;

use super::CtlError;
use super::remote::Run;
use super::text::{Table, between, clean, count, shorten};
use crate::api::types::SupposeBody;
use crate::control::{Foresight, RulesReport, WaitStatus};

#[derive(Debug, Args)]
pub(super) struct Rules {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists the rules: what each does, how many known hosts it means, and what is odd about them.
    List,
    /// Tells what would happen if a host went so: which rules match, who would be told what, and when.
    /// Asks the controller's own decision code; changes nothing.
    Test(Test),
}

#[derive(Debug, Args)]
struct Test {
    /// The host, by id or name.
    host: String,
    /// What is supposed to happen to it: down, suspect, unreachable, agent-lost, recovered, left, …
    #[arg(long = "as", default_value = "down")]
    kind: String,
    /// When, such as 2026-11-22T03:00:00Z [default: now]. Only hours depend on it.
    #[arg(long, value_parser = moment)]
    at: Option<Wall>,
}

fn moment(text: &str) -> Result<Wall, String> {
    let at: jiff::Timestamp = text.parse().map_err(|_| {
        "write a moment before the year 9999 with its offset, such as 2026-11-22T03:00:00Z"
            .to_owned()
    })?;
    Ok(Wall(at.as_millisecond()))
}

impl Run<'_> {
    pub(super) async fn rules(&mut self, args: &Rules) -> Result<(), CtlError> {
        match &args.verb {
            None | Some(Verb::List) => {
                let answer = self.client.rules().await?;
                self.print(answer, |out, report: RulesReport| list(out, &report))
            }
            Some(Verb::Test(test)) => {
                let (host, kind) = (test.host.clone(), test.kind.clone());
                let body = SupposeBody { host, kind, at_ms: test.at };
                let answer = self.client.test_rules(&body).await?;
                self.print(answer, |out, foresight: Foresight| tell(out, &foresight))
            }
        }
    }
}

fn list(out: &mut dyn Write, report: &RulesReport) -> io::Result<()> {
    if report.rules.is_empty() {
        return writeln!(out, "There are no rules: hosts are watched, but nobody is told.");
    }
    let mut table = Table::new(&["RULE", "HOSTS", "WAITING", "MATCHES", "DOES"], &[1, 2]);
    for rule in &report.rules {
        table.row([
            rule.name.clone(),
            rule.hosts.to_string(),
            rule.waiting.to_string(),
            shorten(&rule.matches, 60),
            format!("{}{}", rule.line, if rule.on { "" } else { " (off at this hour)" }),
        ]);
    }
    table.write(out)?;
    writeln!(out, "{} of {}.", count(report.rules.len(), "rule"), hosts(report.hosts))?;
    for warning in &report.warnings {
        let names: Vec<String> = warning.rules.iter().map(|name| clean(name)).collect();
        writeln!(out, "Odd ({}): {}.", names.join(", "), clean(&warning.text))?;
    }
    Ok(())
}

fn hosts(n: u64) -> String {
    count(n, "known host")
}

fn tell(out: &mut dyn Write, f: &Foresight) -> io::Result<()> {
    let name = if f.name.is_empty() { f.host.to_string() } else { clean(&f.name) };
    let labels: Vec<String> = f.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") };
    writeln!(out, "If {name} ({}) were {} at {}:", clean(&labels), f.kind, f.at_ms)?;
    for rule in &f.rules {
        match &rule.failed {
            None => writeln!(out, "  rule {} matches", clean(&rule.rule))?,
            Some(why) => writeln!(out, "  rule {} does not: {}", clean(&rule.rule), clean(why))?,
        }
    }
    if f.receivers.is_empty() {
        writeln!(out, "Nobody would be told.")?;
    }
    for r in &f.receivers {
        let (receiver, rule) = (clean(&r.receiver), clean(&r.rule));
        let reason = r.reason.as_ref().map_or_else(String::new, |why| format!(": {}", clean(why)));
        match (r.verdict.as_str(), r.goes_ms, &r.dropped) {
            ("act", ..) => writeln!(out, "{receiver} would be told at once (rule {rule})")?,
            ("suppress", ..) => {
                writeln!(out, "{receiver} would not be told (rule {rule}){reason}")?
            }
            (_, Some(at), _) => {
                let after = between(f.at_ms, at);
                writeln!(
                    out,
                    "{receiver} would be told after {after}, at {at} (rule {rule}){reason}"
                )?;
            }
            (_, None, Some(why)) => {
                writeln!(out, "{receiver} would not be told (rule {rule}): {}", clean(why))?;
            }
            (_, None, None) => writeln!(out, "{receiver} would be held (rule {rule}){reason}")?,
        }
        for wait in r.waits.iter().skip(1) {
            writeln!(out, "  then {}", clean(&wait.reason))?;
        }
    }
    for note in &f.notes {
        writeln!(out, "Note: {}.", clean(note))?;
    }
    writeln!(out, "Nothing was changed; if nothing else changes meanwhile, it goes like this.")
}

/// What rules keep back of one host, for its story.
pub(super) fn of_host(
    out: &mut dyn Write,
    waits: &[WaitStatus],
    host: HostId,
    now: Wall,
) -> io::Result<()> {
    for wait in waits {
        writeln!(
            out,
            "{} is not told of {} yet, for {} now: {}{}.",
            clean(&wait.receiver),
            wait.kind,
            between(wait.since_ms, now),
            clean(&wait.reason),
            wait.until_ms.map_or_else(String::new, |at| format!("; judged again at {at}")),
        )?;
    }
    if waits.is_empty() {
        return Ok(());
    }
    writeln!(out, "Let it go now or not: heartwatchctl holds approve|reject {host} --reason …")
}
