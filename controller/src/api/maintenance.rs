//! Maintenance windows: which there are, one more, one less.

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use heartwatch_common::time::Wall;

use super::access::Who;
use super::extract::{Body, Name, Operator, Params};
use super::holds::{BY_LEN_MAX, REASON_LEN_MAX, check};
use super::metrics::Families;
use super::problem::Problem;
use super::types::{WindowBody, WindowsJson};
use super::{Api, hosts};
use crate::control::{Scope, Status, Window, WindowAdded, WindowId};
use crate::policy::parse_domain;

/// `GET /v1/maintenance`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<WindowsJson>, Problem> {
    params.only(&[])?;
    let windows = api.control.maintenance();
    Ok(Json(WindowsJson {
        windows: windows.all().map(|w| Window::clone(w)).collect(),
        now_ms: api.clock.wall(),
    }))
}

fn scope(api: &Api, body: &WindowBody) -> Result<Scope, Problem> {
    match (&body.host, &body.domain, &body.labels) {
        (Some(host), None, None) => Ok(Scope::Host(hosts::find(api, host)?.row.id)),
        (None, Some(domain), None) => {
            parse_domain(domain).map(Scope::Domain).map_err(Problem::bad_request)
        }
        (None, None, Some(labels)) => {
            labels.parse().map(Scope::Labels).map_err(Problem::bad_request)
        }
        _ => Err(Problem::bad_request(
            "one of `host` (id or name), `domain` (`zone=a,rack=7`, `fleet`) and `labels` \
             (`pool=db,zone!=a`) is needed",
        )),
    }
}

/// `POST /v1/maintenance`
pub(super) async fn add(
    _: Operator,
    State(api): State<Api>,
    params: Params,
    Body(body): Body<WindowBody>,
) -> Result<Json<WindowAdded>, Problem> {
    params.only(&[])?;
    let from_ms = body.from_ms.unwrap_or_else(|| api.clock.wall());
    let until_ms = match (body.span, body.until_ms) {
        (Some(span), None) => after(from_ms, span.0),
        (None, Some(until)) => until,
        _ => {
            let detail =
                "one of `for` (such as \"30m\") and `until_ms` is needed: every window ends";
            return Err(Problem::bad_request(detail));
        }
    };
    let window = Window {
        id: WindowId(0),
        scope: scope(&api, &body)?,
        reason: check("reason", &body.reason, REASON_LEN_MAX)?,
        by: check("by", &body.by, BY_LEN_MAX)?,
        from_ms,
        until_ms,
        announced: false,
        begun: false,
    };
    Ok(Json(api.control.add_window(window).await?))
}

fn after(at: Wall, span: Duration) -> Wall {
    Wall(at.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
}

/// `DELETE /v1/maintenance/{window}?by=&reason=`
pub(super) async fn end(
    _: Operator,
    Extension(who): Extension<Who>,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<Window>, Problem> {
    let params = params.only(&["by", "reason"])?;
    let id = name.parse::<WindowId>().map_err(Problem::bad_request)?;
    let by = check("by", &who.said(params.one("by")?.unwrap_or_default()), BY_LEN_MAX)?;
    let why = match params.one("reason")? {
        Some(reason) => format!("ended by {by}: {}", check("reason", reason, REASON_LEN_MAX)?),
        None => format!("ended by {by}"),
    };
    Ok(Json(Window::clone(&*api.control.end_window(id, why).await?)))
}

/// What `/metrics` shows of it.
pub(super) fn families(f: &mut Families, status: &Status) {
    let m = &status.maintenance;
    let help = "Maintenance windows, by whether they are open or will be.";
    let states = [("open", m.open), ("coming", m.coming)];
    let windows = states.into_iter().map(|(s, n)| (vec![("state", s.to_owned())], n as f64));
    f.gauges("maintenance_windows", help, windows);
    f.gauge("hosts_in_maintenance", "Hosts that an open window covers.", m.hosts as f64);
}
