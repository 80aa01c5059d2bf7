//! Outages as a whole: where each stands, who was ordered what, and how receivers report the end.
//!
//! What is open is read from the registry and its orders from the journal, at each request: an orchestrator
//! that has lost everything learns here what is owed to it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Body, Name, Operator, Params, shorten};
use super::hosts::PageToken;
use super::problem::Problem;
use super::types::{CompleteBody, CompleteResult, IncidentStatusJson, IncidentsPage, OrderJson};
use super::{Api, holds};
use crate::control::Completion;
use crate::event::{IncidentId, State as HostState};
use crate::policy::courses::{Reported, report_of};
use crate::policy::is_action;
use crate::store::{DeliveryFilter, DeliveryRow, EventRow, READ_LEN_MAX, Token};
use crate::view::{Filter, HostView};

mod stage;

pub(crate) use stage::stage;

/// Events of a host that are looked through for reports.
const EVENTS_MAX: usize = 256;
/// Longest reason of a report, characters.
const REASON_LEN_MAX: usize = 500;

/// `GET /v1/incidents`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<IncidentsPage>, Problem> {
    let params = params.only(&["open", "limit", "page"])?;
    if params.one("open")?.is_some_and(|open| open != "true") {
        let detail = "only what is open is listed: say `open=true`, or nothing; what is over stands in \
                      /v1/events and at /v1/incidents/{id}";
        return Err(Problem::bad_request(detail));
    }
    let limit = params.limit()?;
    let token = PageToken::of(&api, &params).await?;
    let states = vec![HostState::Pending, HostState::Suspect, HostState::Down];
    let filter = Filter { states, ..Filter::default() };
    let view = Arc::clone(&api.view);
    let look = tokio::task::spawn_blocking(move || view.list(&filter, token.slot, limit));
    let (hosts, next) = look.await.map_err(|e| {
        let detail = format!("looking through the hosts broke off: {e}");
        Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR, &detail)
    })?;
    let mut incidents = Vec::new();
    for host in &hosts {
        if let Some(incident) = host.row.incident {
            incidents.push(tell(&api, incident, host).await?);
        }
    }
    let next_page = next.map(|slot| token.at(slot).to_text());
    Ok(Json(IncidentsPage { incidents, next_page, now_ms: api.clock.wall() }))
}

/// `GET /v1/incidents/{id}`
pub(super) async fn one(
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<IncidentStatusJson>, Problem> {
    params.only(&[])?;
    let incident = id(&name)?;
    let filter = DeliveryFilter { incident: Some(incident), ..DeliveryFilter::default() };
    let told = api.store.deliveries(filter, 1).await?;
    let host = match told.first().and_then(|d| d.host) {
        Some(host) => api.view.get(host),
        // Nobody was told of it: then it is known only while it is open.
        None => open_host(&api, incident).await?,
    };
    let host = host.ok_or_else(|| unknown(&name))?;
    Ok(Json(tell(&api, incident, &host).await?))
}

/// `POST /v1/incidents/{id}/complete`
pub(super) async fn complete(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
    Body(body): Body<CompleteBody>,
) -> Result<StatusCode, Problem> {
    params.only(&[])?;
    let incident = id(&name)?;
    let reason = body.reason.trim().to_owned();
    holds::without_secret("reason", &reason)?;
    if reason.chars().count() > REASON_LEN_MAX || reason.chars().any(char::is_control) {
        let detail = format!("`reason`: one line of at most {REASON_LEN_MAX} characters");
        return Err(Problem::bad_request(detail));
    }
    let failed = body.result == CompleteResult::Failed;
    let what = Completion { token: Token(body.token), receiver: body.receiver, failed, reason };
    api.control.complete(incident, what).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn id(name: &str) -> Result<IncidentId, Problem> {
    name.parse().map_err(|_| unknown(name))
}

fn unknown(name: &str) -> Problem {
    let detail = format!("no incident `{}` is known", shorten(name));
    Problem::new(StatusCode::NOT_FOUND, "unknown-incident", "no such incident", detail)
}

async fn open_host(api: &Api, incident: IncidentId) -> Result<Option<HostView>, Problem> {
    let view = Arc::clone(&api.view);
    let search = move || {
        let states = vec![HostState::Pending, HostState::Suspect, HostState::Down];
        let filter = Filter { states, ..Filter::default() };
        let mut from = Some(0);
        while let Some(at) = from {
            let (page, next) = view.list(&filter, at, READ_LEN_MAX);
            if let Some(host) = page.into_iter().find(|h| h.row.incident == Some(incident)) {
                return Some(host);
            }
            from = next;
        }
        None
    };
    tokio::task::spawn_blocking(search).await.map_err(|e| {
        let detail = format!("looking through the hosts broke off: {e}");
        Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR, &detail)
    })
}

async fn tell(
    api: &Api,
    incident: IncidentId,
    host: &HostView,
) -> Result<IncidentStatusJson, Problem> {
    let filter = DeliveryFilter { incident: Some(incident), ..DeliveryFilter::default() };
    let mut rows = api.store.deliveries(filter, READ_LEN_MAX).await?;
    rows.retain(|row| is_action(row.kind));
    let events = match rows.is_empty() {
        true => Vec::new(),
        false => api.store.events_of(host.row.id, EVENTS_MAX).await?,
    };
    let row = &host.row;
    Ok(IncidentStatusJson {
        id: incident,
        open: row.incident == Some(incident),
        host: row.id,
        name: row.name.clone(),
        labels: row.labels.clone(),
        state: row.state,
        cause: row.cause,
        since_ms: row.since,
        stage: stage(&rows, &events),
        token: rows.iter().filter(|r| r.attempts > 0).filter_map(|r| r.token).max(),
        orders: rows.into_iter().map(|row| order(row, &events)).collect(),
    })
}

fn order(row: DeliveryRow, events: &[EventRow]) -> OrderJson {
    let reported = report_of(&row, events).map(|reported| match reported {
        Reported::Completed => CompleteResult::Completed,
        Reported::Failed => CompleteResult::Failed,
    });
    OrderJson { delivery: row, reported }
}
