//! Commands that ask the controller's API.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Command, Deliveries, Events, Global, Hosts, Pause, Redrive};
use super::client::{Client, ClientError, DeliveriesQuery, EventsQuery, HostsQuery, typed};
use super::text::{clean, count, human_ms};
use super::{CtlError, chain, import, receivers, show, story, token};
use crate::api::types::{EventsPage, ForgottenJson, FreezeJson, HostsPage, PauseJson};
use crate::control::{self, FREEZE, ImportReport};
use crate::store::DeliveryId;
use crate::view::PAGE_LEN_MAX;

/// How long `--follow` lets the controller wait for news.
const FOLLOW_WAIT: Duration = Duration::from_secs(30);
/// How long `--follow` waits before it tries a controller again that cannot be reached.
const FOLLOW_RETRY: Duration = Duration::from_secs(2);

/// A command with where it asks and where it prints.
pub(super) struct Run<'a> {
    pub(super) global: &'a Global,
    pub(super) client: Client,
    pub(super) out: &'a mut dyn Write,
}

pub(super) async fn execute(
    global: &Global,
    command: &Command,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let (token, missing) = if changes(command) {
        (Some(token::needed(global)?), None)
    } else {
        token::for_reading(global)?
    };
    let sent = token.is_some();
    let client = Client::trusting(&global.url, token, &global.trust.for_url(global)?)?;
    let mut run = Run { global, client, out };
    let done = run.command(command).await;
    match (done, missing) {
        // Why none was sent is worth more than how to send one.
        (Err(CtlError::Client(ClientError::Problem(p))), Some(why)) if p.status == 401 => {
            Err(CtlError::Config(format!("{}, and none was sent: {why}", p.title)))
        }
        // Nobody named it: a file lies in the usual place, which may be another controller's.
        (Err(CtlError::Client(ClientError::Problem(p))), None)
            if p.status == 401 && sent && global.token_file.is_none() =>
        {
            Err(CtlError::Config(format!(
                "{}: {}; what was sent is the token in {}, as no other was named: say --token-file or \
                 HEARTWATCH_TOKEN_FILE",
                p.title,
                p.detail,
                token::path(global).display()
            )))
        }
        (done, _) => done,
    }
}

/// Whether a command is refused without a token, wherever it is given.
fn changes(command: &Command) -> bool {
    match command {
        Command::Hosts(args) => args.verb.is_some(),
        Command::Receivers(args) => args.needs_token(),
        Command::Holds(holds) => holds.changes(),
        Command::Incidents(incidents) => incidents.changes(),
        Command::Maintenance(args) => args.changes(),
        Command::Redrive(_)
        | Command::Import { .. }
        | Command::Forget { .. }
        | Command::Freeze { .. }
        | Command::Unfreeze { .. }
        | Command::Pause(_)
        | Command::Drill
        | Command::Token(_)
        | Command::Secrets(_)
        | Command::Backup { .. }
        | Command::ApiToken { .. } => true,
        _ => false,
    }
}

impl Run<'_> {
    async fn command(&mut self, command: &Command) -> Result<(), CtlError> {
        let run = self;
        match command {
            Command::Status => {
                let answer = run.client.status().await?;
                run.print(answer, |out, status| show::status(out, &status))
            }
            Command::Hosts(args) => match &args.verb {
                Some(verb) => run.hosts_verb(verb).await,
                None => run.hosts(args).await,
            },
            Command::Host { host } => {
                let answer = run.client.host(host).await?;
                run.print(answer, |out, host| show::host(out, &host))
            }
            Command::Why { host } => {
                let answer = run.client.why(host).await?;
                run.print(answer, |out, why| story::write(out, &why))
            }
            Command::Events(args) => run.events(args).await,
            Command::Deliveries(args) => run.deliveries(args).await,
            Command::Receivers(args) => {
                receivers::run(run.global, &run.client, args, run.out).await
            }
            Command::Redrive(args) => run.redrive(args).await,
            Command::Holds(args) => run.holds(args).await,
            Command::Incidents(args) => run.incidents(args).await,
            Command::Rules(args) => run.rules(args).await,
            Command::Maintenance(args) => run.maintenance(args).await,
            Command::Drill => run.drill().await,
            Command::Token(args) => run.join_tokens(args).await,
            Command::Secrets(args) => run.secrets(args).await,
            Command::Candidates(args) => run.candidates(args).await,
            Command::Import { file } => run.import(file).await,
            Command::Forget { host } => run.forget(host).await,
            Command::Freeze { host, margin } => run.freeze(host, margin.map(|m| m.0)).await,
            Command::Unfreeze { host } => run.unfreeze(host).await,
            Command::Pause(args) => run.pause(args).await,
            Command::Backup { file } => run.backup(file).await,
            Command::ApiToken { command } => run.api_token(command).await,
            // `ctl::execute` keeps these to itself.
            Command::Restore { .. }
            | Command::Key { .. }
            | Command::Enroll(_)
            | Command::Secret { .. }
            | Command::Replay(_)
            | Command::Plan(_)
            | Command::Generate(_) => {
                Err(CtlError::Usage("this command asks no controller".to_owned()))
            }
        }
    }
}

impl Run<'_> {
    /// Prints an answer as it is, or as a table.
    pub(super) fn print<T: serde::de::DeserializeOwned>(
        &mut self,
        answer: Value,
        table: impl FnOnce(&mut dyn Write, T) -> std::io::Result<()>,
    ) -> Result<(), CtlError> {
        if self.global.json {
            return self.json(&answer);
        }
        table(self.out, typed(answer)?)?;
        Ok(())
    }

    pub(super) fn json(&mut self, answer: &impl serde::Serialize) -> Result<(), CtlError> {
        let text = serde_json::to_string_pretty(answer).map_err(ClientError::Form)?;
        Ok(writeln!(self.out, "{text}")?)
    }

    async fn hosts(&mut self, args: &Hosts) -> Result<(), CtlError> {
        let wanted = if args.all { u64::MAX } else { args.limit };
        let mut query = HostsQuery {
            states: args.state.iter().map(|s| s.as_str().to_owned()).collect(),
            labels: args.label.clone(),
            name: args.name.clone(),
            ..HostsQuery::default()
        };
        let (mut got, mut pages) = (0, 0_u64);
        let mut whole = None::<Value>;
        loop {
            query.limit = Some((wanted - got).min(PAGE_LEN_MAX as u64));
            let answer = self.client.hosts(&query).await?;
            let page: HostsPage = typed(answer.clone())?;
            got += page.hosts.len() as u64;
            pages += 1;
            query.page.clone_from(&page.next_page);
            if self.global.json {
                join(&mut whole, answer);
            } else if pages == 1 || !page.hosts.is_empty() {
                show::hosts(self.out, &page)?;
            }
            if query.page.is_none() || got >= wanted {
                break;
            }
        }
        if let Some(whole) = whole {
            return self.json(&whole);
        }
        let more =
            if query.page.is_some() { "; there may be more: say --limit or --all" } else { "" };
        let shown = count(usize::try_from(got).unwrap_or(usize::MAX), "host");
        Ok(writeln!(self.out, "{shown}{more}")?)
    }

    async fn events(&mut self, args: &Events) -> Result<(), CtlError> {
        let mut query =
            EventsQuery { host: args.host.clone(), kind: args.kind, ..EventsQuery::default() };
        match &args.after {
            Some(after) => {
                query.after = Some(after.clone());
                query.limit = Some(args.limit);
            }
            None => query.tail = Some(args.limit),
        }
        let answer = self.client.events(&query).await?;
        let page: EventsPage = typed(answer.clone())?;
        if !args.follow {
            if self.global.json {
                return self.json(&answer);
            }
            show::events(self.out, &page.events)?;
            let more = if page.more { "more" } else { "later ones" };
            return Ok(writeln!(self.out, "{more}: --after {}", page.cursor)?);
        }
        self.follow(answer, page, query).await
    }

    /// One event a line, as they come, until somebody ends it.
    async fn follow(
        &mut self,
        mut answer: Value,
        mut page: EventsPage,
        mut query: EventsQuery,
    ) -> Result<(), CtlError> {
        query.tail = None;
        query.limit = Some(PAGE_LEN_MAX as u64);
        query.wait = Some(FOLLOW_WAIT);
        let mut told = false;
        loop {
            if self.global.json {
                for event in answer["events"].as_array().into_iter().flatten() {
                    writeln!(self.out, "{event}")?;
                }
            } else {
                for event in &page.events {
                    show::event_line(self.out, event)?;
                }
            }
            self.out.flush()?;
            query.after = Some(page.cursor);
            answer = loop {
                match self.client.events(&query).await {
                    Ok(answer) => break answer,
                    // A restart of the controller is no reason to stop looking; the cursor stays good.
                    Err(e) if passing(&e) => {
                        if !told {
                            eprint_line(&format!("{}; trying again", chain(&e)));
                        }
                        told = true;
                        tokio::time::sleep(FOLLOW_RETRY).await;
                    }
                    Err(e) => return Err(e.into()),
                }
            };
            if told {
                eprint_line("the controller answers again");
            }
            told = false;
            page = typed(answer.clone())?;
        }
    }

    async fn deliveries(&mut self, args: &Deliveries) -> Result<(), CtlError> {
        let query = DeliveriesQuery {
            state: args.state.map(|s| s.as_str().to_owned()),
            receiver: args.receiver.clone(),
            host: args.host.clone(),
            incident: None,
            after: args.after,
            limit: Some(args.limit),
        };
        let answer = self.client.deliveries(&query).await?;
        self.print(answer, |out, page| show::deliveries(out, &page))
    }

    async fn redrive(&mut self, args: &Redrive) -> Result<(), CtlError> {
        let what = if args.dead {
            control::Redrive::Dead { receiver: args.receiver.clone() }
        } else {
            control::Redrive::Ids(args.ids.iter().copied().map(DeliveryId).collect())
        };
        let report = self.client.redrive(&what).await?;
        if self.global.json {
            return self.json(&report);
        }
        writeln!(self.out, "{} on their way again", count(report.redriven.len(), "delivery"))?;
        for (id, reason) in &report.cancelled {
            writeln!(self.out, "delivery {}: cancelled, no longer true: {}", id.0, clean(reason))?;
        }
        for id in &report.skipped {
            writeln!(self.out, "delivery {}: left alone, it is not a dead letter", id.0)?;
        }
        Ok(())
    }

    async fn import(&mut self, file: &Path) -> Result<(), CtlError> {
        let hosts = import::read(file).map_err(CtlError::Failed)?;
        let mut total = ImportReport::default();
        for chunk in import::chunks(&hosts) {
            let report = self.client.import(chunk).await.map_err(|e| {
                let done = total.added + total.known + total.revoked.len() as u64;
                let text = format!(
                    "{}; the first {done} hosts of the file are imported, and importing \
                     it again is harmless",
                    chain(&e)
                );
                if done == 0 { CtlError::Client(e) } else { CtlError::Failed(text) }
            })?;
            total.added += report.added;
            total.known += report.known;
            total.revoked.extend(report.revoked);
        }
        if self.global.json {
            return self.json(&total);
        }
        writeln!(self.out, "{} added as pending, {} known already", total.added, total.known)?;
        let revoked = &total.revoked;
        if !revoked.is_empty() {
            let shown: Vec<String> = revoked.iter().take(5).map(|id| id.to_string()).collect();
            writeln!(
                self.out,
                "{} left out, as they are revoked: {}{}; `heartwatchctl hosts revoke ID --lift` lets one in again",
                revoked.len(),
                shown.join(", "),
                if revoked.len() > shown.len() { ", …" } else { "" }
            )?;
        }
        Ok(())
    }

    async fn forget(&mut self, host: &str) -> Result<(), CtlError> {
        let answer = self.client.forget(host).await?;
        if self.global.json {
            return self.json(&json!({"forgotten": host, "dropped": answer["dropped"]}));
        }
        self.print(answer, |out, gone: ForgottenJson| {
            writeln!(out, "{} is forgotten; it comes back if it says hello again", clean(host))?;
            super::enrol::dropped(out, &gone.host, &gone.dropped)
        })
    }

    async fn freeze(&mut self, host: &str, margin: Option<Duration>) -> Result<(), CtlError> {
        if margin.is_some_and(|m| !FREEZE.contains(&m)) {
            return Err(CtlError::Usage("--margin: 10ms to 10m are allowed".to_owned()));
        }
        let answer = self.client.freeze(host, margin).await?;
        let host = clean(host);
        self.print(answer, |out, frozen: FreezeJson| {
            let at = human_ms(frozen.frozen_ms.unwrap_or_default());
            writeln!(
                out,
                "{host} may be {at} late from now on, until `heartwatchctl unfreeze {host}`"
            )
        })
    }

    async fn unfreeze(&mut self, host: &str) -> Result<(), CtlError> {
        let answer = self.client.unfreeze(host).await?;
        let host = clean(host);
        self.print(answer, |out, _: FreezeJson| {
            writeln!(out, "{host} may be as late as its beats teach again")
        })
    }

    async fn pause(&mut self, args: &Pause) -> Result<(), CtlError> {
        let answer = match (&args.span, &args.reason) {
            (Some(span), Some(reason)) => self.client.pause(span.0, reason).await?,
            _ => self.client.resume().await?,
        };
        self.print(answer, |out, PauseJson { pause }| match pause {
            Some(p) => writeln!(
                out,
                "actions are held until {} ({}); states stay true and visible",
                p.until_ms,
                clean(&p.reason)
            ),
            None => writeln!(out, "no pause is in force: what was held is judged again"),
        })
    }

    async fn backup(&mut self, file: &Path) -> Result<(), CtlError> {
        let len = self.client.backup(file).await?;
        if self.global.json {
            return self.json(&json!({"file": file, "bytes": len}));
        }
        Ok(writeln!(self.out, "{}: {len} bytes", file.display())?)
    }
}

/// Adds a page to the first one, which then says all.
fn join(whole: &mut Option<Value>, mut page: Value) {
    let Some(first) = whole else {
        *whole = Some(page);
        return;
    };
    first["next_page"] = page["next_page"].take();
    if let (Some(all), Some(more)) = (first["hosts"].as_array_mut(), page["hosts"].as_array_mut()) {
        all.append(more);
    }
}

/// Whether it may go better in a moment.
fn passing(e: &ClientError) -> bool {
    match e {
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Broken { .. } => true,
        ClientError::Problem(p) => p.status == 503,
        _ => false,
    }
}

fn eprint_line(line: &str) {
    // A closed stderr must not end the following.
    drop(std::io::stderr().write_all(format!("{}\n", clean(line)).as_bytes()));
}
