//! Rules: what they are, whom they mean, and what they would do.

use axum::Json;
use axum::extract::State;

use super::extract::{Body, Params};
use super::problem::Problem;
use super::types::SupposeBody;
use super::{Api, hosts};
use crate::control::{Foresight, RulesReport};
use crate::policy::question::parse_supposed;

/// `GET /v1/rules`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<RulesReport>, Problem> {
    params.only(&[])?;
    Ok(Json(api.control.rules().await?))
}

/// `POST /v1/rules/test`. A question, so nobody need be an operator.
pub(super) async fn test(
    State(api): State<Api>,
    params: Params,
    Body(body): Body<SupposeBody>,
) -> Result<Json<Foresight>, Problem> {
    params.only(&[])?;
    let kind = parse_supposed(&body.kind).map_err(Problem::bad_request)?;
    let host = hosts::find(&api, &body.host)?.row.id;
    Ok(Json(api.control.foresee(host, kind, body.at_ms).await?))
}
