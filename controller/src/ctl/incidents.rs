//! `heartwatchctl incidents`: outages that are open, how far their orders are, and the report of their end.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use heartwatch_common::time::Wall;

use super::CtlError;
use super::client::IncidentsQuery;
use super::remote::Run;
use super::text::{Table, between, clean, shorten};
use crate::api::types::{CompleteBody, CompleteResult, IncidentStatusJson, IncidentsPage};

#[derive(Debug, Args)]
pub(super) struct Incidents {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists open outages.
    List(List),
    /// Shows one outage with its orders, also if it is over.
    Show {
        /// Its id.
        incident: String,
    },
    /// Reports, in a receiver's place, how an order ended.
    Complete(Complete),
}

#[derive(Debug, Default, Args)]
struct List {
    /// Continues where the page before ended.
    #[arg(long)]
    page: Option<String>,
    /// At most this many hosts are looked at for a page.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

#[derive(Debug, Args)]
struct Complete {
    /// The outage's id.
    incident: String,
    /// The order's fencing token.
    #[arg(long)]
    token: u64,
    /// Who reports; needed if the order went to several receivers.
    #[arg(long)]
    receiver: Option<String>,
    /// It could not be done.
    #[arg(long)]
    failed: bool,
    /// In a few words.
    #[arg(long, default_value = "")]
    reason: String,
}

impl Incidents {
    /// Whether it changes something.
    pub(super) fn changes(&self) -> bool {
        matches!(self.verb, Some(Verb::Complete(_)))
    }
}

impl Run<'_> {
    pub(super) async fn incidents(&mut self, args: &Incidents) -> Result<(), CtlError> {
        match &args.verb {
            None => self.list_incidents(&List { limit: 100, ..List::default() }).await,
            Some(Verb::List(list)) => self.list_incidents(list).await,
            Some(Verb::Show { incident }) => {
                let answer = self.client.incident(incident).await?;
                self.print(answer, |out, incident: IncidentStatusJson| show(out, &incident))
            }
            Some(Verb::Complete(report)) => {
                let result = match report.failed {
                    true => CompleteResult::Failed,
                    false => CompleteResult::Completed,
                };
                let body = CompleteBody {
                    token: report.token,
                    receiver: report.receiver.clone(),
                    result,
                    reason: report.reason.clone(),
                };
                self.client.complete(&report.incident, &body).await?;
                writeln!(self.out, "reported as {}", result.as_str())?;
                Ok(())
            }
        }
    }

    async fn list_incidents(&mut self, list: &List) -> Result<(), CtlError> {
        let query = IncidentsQuery { page: list.page.clone(), limit: Some(list.limit) };
        let answer = self.client.incidents(&query).await?;
        self.print(answer, |out, page: IncidentsPage| write(out, &page))
    }
}

fn write(out: &mut dyn Write, page: &IncidentsPage) -> io::Result<()> {
    let mut table = Table::new(&["HOST", "STATE", "FOR", "ORDERS", "TOKEN", "INCIDENT"], &[2]);
    for i in &page.incidents {
        table.row([
            name(i),
            i.state.to_string(),
            between(i.since_ms, page.now_ms),
            i.stage.as_str().to_owned(),
            i.token.map_or_else(|| "-".to_owned(), |t| t.0.to_string()),
            i.id.to_string(),
        ]);
    }
    if page.incidents.is_empty() && page.next_page.is_none() {
        return writeln!(out, "No outage is open.");
    }
    table.write(out)?;
    match &page.next_page {
        Some(next) => writeln!(out, "more: --page {}", clean(next)),
        None => Ok(()),
    }
}

fn name(i: &IncidentStatusJson) -> String {
    if i.name.is_empty() { i.host.to_string() } else { clean(&i.name) }
}

fn show(out: &mut dyn Write, i: &IncidentStatusJson) -> io::Result<()> {
    let open = if i.open { "open" } else { "over" };
    let (state, since): (_, Wall) = (i.state, i.since_ms);
    writeln!(out, "Outage {} of {} ({}) is {open}.", i.id, name(i), i.host)?;
    writeln!(out, "The host is {state} since {since}. Its orders: {}.", i.stage.as_str())?;
    let mut table =
        Table::new(&["RECEIVER", "ORDER", "TOKEN", "STATE", "TRIES", "REPORTED", "WHY"], &[4]);
    for order in &i.orders {
        let row = &order.delivery;
        table.row([
            clean(&row.receiver),
            row.kind.to_string(),
            row.token.map_or_else(|| "-".to_owned(), |t| t.0.to_string()),
            row.state.as_str().to_owned(),
            row.attempts.to_string(),
            order.reported.map_or("-", CompleteResult::as_str).to_owned(),
            shorten(row.reason.as_deref().unwrap_or("-"), 100),
        ]);
    }
    if i.orders.is_empty() {
        return writeln!(out, "Nobody was ordered to do anything about it.");
    }
    table.write(out)
}
