//! `heartwatchctl maintenance`: windows in which hosts are worked on.

use std::io::{self, Write};

use clap::{ArgGroup, Args, Subcommand};
use heartwatch_common::config::Span;
use heartwatch_common::time::Wall;

use super::CtlError;
use super::remote::Run;
use super::text::{Table, between, clean, count, shorten};
use crate::api::types::{WindowBody, WindowsJson};
use crate::control::{MaintenanceStatus, Scope, Window, WindowId};

#[derive(Debug, Args)]
pub(super) struct Maintenance {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists windows, the coming ones too.
    List,
    /// Opens a window: until it ends nothing is acted upon on its hosts, and nobody is alerted.
    Add(Add),
    /// Ends a window now: who is still down is judged now.
    End(End),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).args(["host", "domain", "labels"])))]
struct Add {
    /// This host, by id or name.
    host: Option<String>,
    /// All hosts of this failure domain, such as zone=a,rack=7; `fleet` is all.
    #[arg(long)]
    domain: Option<String>,
    /// All hosts whose labels fit, such as pool=db,zone!=a: every term must hold.
    #[arg(long)]
    labels: Option<String>,
    /// For how long, such as 30m.
    #[arg(long = "for")]
    span: Span,
    /// Begins so much later [default: now].
    #[arg(long = "in")]
    later: Option<Span>,
    /// Why; others will ask.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    by: super::by::By,
}

#[derive(Debug, Args)]
struct End {
    /// Its name, as the list has it, such as m7.
    window: WindowId,
    /// Why.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    by: super::by::By,
}

impl Maintenance {
    /// Whether it changes something.
    pub(super) fn changes(&self) -> bool {
        matches!(self.verb, Some(Verb::Add(_) | Verb::End(_)))
    }
}

impl Run<'_> {
    pub(super) async fn maintenance(&mut self, args: &Maintenance) -> Result<(), CtlError> {
        match &args.verb {
            None | Some(Verb::List) => {
                let answer = self.client.windows().await?;
                self.print(answer, |out, all: WindowsJson| list(out, &all))
            }
            Some(Verb::Add(add)) => self.add_window(add).await,
            Some(Verb::End(end)) => {
                let reason = end.reason.as_deref();
                let window = self.client.end_window(end.window, &end.by.text(), reason).await?;
                if self.global.json {
                    return self.json(&window);
                }
                let scope = clean(&window.scope.to_string());
                Ok(writeln!(
                    self.out,
                    "{} is over: {scope}; who is still down is judged now",
                    window.id
                )?)
            }
        }
    }

    async fn add_window(&mut self, add: &Add) -> Result<(), CtlError> {
        let from_ms = match add.later {
            None => None,
            // By the controller's clock, whatever ours says.
            Some(later) => {
                let status = self.client.status().await?;
                let ms = i64::try_from(later.0.as_millis()).unwrap_or(i64::MAX);
                Some(Wall(status["now_ms"].as_i64().unwrap_or(0).saturating_add(ms)))
            }
        };
        let body = WindowBody {
            host: add.host.clone(),
            domain: add.domain.clone(),
            labels: add.labels.clone(),
            span: Some(add.span),
            until_ms: None,
            from_ms,
            by: add.by.text(),
            reason: add.reason.clone(),
        };
        let added = self.client.add_window(&body).await?;
        if self.global.json {
            return self.json(&added);
        }
        let Window { id, scope, until_ms, from_ms, .. } = &added.window;
        let hosts = count(usize::try_from(added.hosts).unwrap_or(usize::MAX), "host");
        let scope = clean(&scope.to_string());
        writeln!(
            self.out,
            "{id}: {scope} ({hosts}) in maintenance from {from_ms} until {until_ms}"
        )?;
        if added.hosts == 0 {
            writeln!(
                self.out,
                "warning: no registered host is covered now: is it spelt as the hosts say it?"
            )?;
        }
        Ok(())
    }
}

fn list(out: &mut dyn Write, all: &WindowsJson) -> io::Result<()> {
    if all.windows.is_empty() {
        return writeln!(out, "No maintenance window is open or planned.");
    }
    let mut table = Table::new(&["WINDOW", "WHOM", "BEGINS", "ENDS", "BY", "WHY"], &[]);
    for window in &all.windows {
        let begins = if window.from_ms <= all.now_ms {
            "open".to_owned()
        } else {
            format!("in {}", between(all.now_ms, window.from_ms))
        };
        let whom = match &window.scope {
            Scope::Host(host) => host.to_string(),
            scope => scope.to_string(),
        };
        table.row([
            window.id.to_string(),
            shorten(&whom, 80),
            begins,
            format!("in {}", between(all.now_ms, window.until_ms)),
            shorten(&window.by, 40),
            shorten(&window.reason, 120),
        ]);
    }
    table.write(out)
}

/// The window that covers a host, for its story.
pub(super) fn of_host(out: &mut dyn Write, window: &Window, now: Wall) -> io::Result<()> {
    let whom = match window.scope {
        Scope::Host(_) if window.announced => "announced by its own agent".to_owned(),
        Scope::Host(_) => "of this host".to_owned(),
        ref scope => format!("of {}", clean(&scope.to_string())),
    };
    writeln!(
        out,
        "It is in maintenance for {} more (window {} {whom}, by {}): {}. Nothing is acted upon until then; \
         if it is down at the end, it is judged then.",
        between(now, window.until_ms),
        window.id,
        clean(&window.by),
        clean(&window.reason)
    )
}

/// For the status; nothing if there are no windows.
pub(super) fn of_all(out: &mut dyn Write, m: &MaintenanceStatus) -> io::Result<()> {
    if m.open + m.coming == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "\nMaintenance: {} in {}, {} to come. See `heartwatchctl maintenance`.",
        count(m.hosts, "host"),
        count(m.open, "open window"),
        m.coming
    )
}
