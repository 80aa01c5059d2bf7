//! Held orders: what is held and why, and an operator's word on it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use heartwatch_common::secret;

use super::extract::{Body, Name, Operator, Params, shorten};
use super::metrics::Families;
use super::problem::Problem;
use super::types::WordBody;
use super::{Api, hosts};
use crate::control::{HoldReport, HoldsPage, Status, Target, Word};
use crate::policy::parse_domain;

/// Longest name of whoever speaks, characters.
pub(super) const BY_LEN_MAX: usize = 100;
/// Longest reason, characters.
pub(super) const REASON_LEN_MAX: usize = 500;

/// `GET /v1/holds`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<HoldsPage>, Problem> {
    let params = params.only(&["domain", "after", "limit"])?;
    let domain = params.one("domain")?.map(parse_domain).transpose();
    let domain = domain.map_err(Problem::bad_request)?;
    let after = params.one("after")?.map(str::to_owned);
    Ok(Json(api.control.holds(domain, after, params.limit()?).await?))
}

/// Refuses what people say if a key or a token is part of it: it would stand in the log, in the journal and
/// in webhooks.
pub(super) fn without_secret(key: &str, text: &str) -> Result<(), Problem> {
    if secret::is_in(text) {
        let detail = format!("`{key}`: a key or a token is part of it; say it without");
        return Err(Problem::bad_request(detail));
    }
    Ok(())
}

/// One line of text, not empty.
pub(super) fn check(key: &str, text: &str, max: usize) -> Result<String, Problem> {
    let text = text.trim().to_owned();
    without_secret(key, &text)?;
    if text.is_empty() || text.chars().count() > max || text.chars().any(char::is_control) {
        let detail = format!("`{key}`: one line of 1 to {max} characters is needed");
        return Err(Problem::bad_request(detail));
    }
    Ok(text)
}

pub(super) fn word(body: WordBody) -> Result<Word, Problem> {
    Ok(Word {
        by: check("by", &body.by, BY_LEN_MAX)?,
        reason: check("reason", &body.reason, REASON_LEN_MAX)?,
    })
}

fn one(api: &Api, name: &str) -> Result<Target, Problem> {
    Ok(Target::Host(hosts::find(api, name)?.row.id))
}

/// The domain that is meant, and as it was written.
fn all_of(params: Params) -> Result<(Target, String), Problem> {
    let params = params.only(&["domain"])?;
    let Some(domain) = params.one("domain")? else {
        let detail = "`domain` is needed, such as `zone=a,rack=7`, or `fleet` for all";
        return Err(Problem::bad_request(detail));
    };
    let target = parse_domain(domain).map(Target::Domain).map_err(Problem::bad_request)?;
    Ok((target, domain.to_owned()))
}

/// A report of something; nothing was held: 404.
fn done(report: HoldReport, what: &str) -> Result<Json<HoldReport>, Problem> {
    if report == HoldReport::default() {
        let detail = format!(
            "nothing is held of `{}`: `heartwatchctl holds` (GET /v1/holds) lists what is",
            shorten(what)
        );
        let (status, title) = (StatusCode::NOT_FOUND, "nothing is held");
        return Err(Problem::new(status, "not-held", title, detail));
    }
    Ok(Json(report))
}

/// `POST /v1/holds/{host}/approve`
pub(super) async fn approve(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
    Body(body): Body<WordBody>,
) -> Result<Json<HoldReport>, Problem> {
    params.only(&[])?;
    done(api.control.approve(one(&api, &name)?, word(body)?).await?, &name)
}

/// `POST /v1/holds/{host}/reject`
pub(super) async fn reject(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
    Body(body): Body<WordBody>,
) -> Result<Json<HoldReport>, Problem> {
    params.only(&[])?;
    done(api.control.reject(one(&api, &name)?, word(body)?).await?, &name)
}

/// `POST /v1/holds/approve?domain=`
pub(super) async fn approve_domain(
    _: Operator,
    State(api): State<Api>,
    params: Params,
    Body(body): Body<WordBody>,
) -> Result<Json<HoldReport>, Problem> {
    let (target, whose) = all_of(params)?;
    done(api.control.approve(target, word(body)?).await?, &whose)
}

/// `POST /v1/holds/reject?domain=`
pub(super) async fn reject_domain(
    _: Operator,
    State(api): State<Api>,
    params: Params,
    Body(body): Body<WordBody>,
) -> Result<Json<HoldReport>, Problem> {
    let (target, whose) = all_of(params)?;
    done(api.control.reject(target, word(body)?).await?, &whose)
}

/// What `/metrics` shows of it. Names of domains are no labels: there may be as many as racks.
pub(super) fn families(f: &mut Families, status: &Status, now_ms: i64) {
    let guard = &status.guard;
    let help = "Orders that are held, by what holds them now.";
    let holds = guard.holds.iter().map(|(k, n)| (vec![("kind", k.as_str().to_owned())], *n as f64));
    f.gauges("holds", help, holds);
    let oldest = guard.oldest_ms.map_or(0, |at| (now_ms - at.0).max(0));
    let help = "Age of the oldest held order; 0 if nothing is held.";
    f.gauge("hold_oldest_seconds", help, oldest as f64 / 1e3);
    let help = "Failure domains, the fleet among them, whose failovers a storm holds.";
    f.gauge("storms", help, guard.storms_total as f64);
    let help = "1 while the whole fleet's failovers are held: it may be us.";
    let fleet = guard.storms.iter().any(|s| s.domain == "fleet");
    f.gauge("storm_fleet", help, f64::from(u8::from(fleet)));
    f.gauge("hosts_flapping", "Hosts that come and go.", guard.flapping as f64);
    f.gauge("domains", "Failure domains that are known.", guard.domains as f64);
    let help = "1 if there were too many failure domains: some count in larger ones alone.";
    f.gauge("domains_full", help, f64::from(u8::from(guard.domains_full)));
}
