//! Receivers: where they stand, and trying one.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::extract::{Name, Operator, Params, shorten};
use super::problem::Problem;
use super::types::ReceiversJson;
use crate::control::TestBegun;

/// `GET /v1/receivers`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<ReceiversJson>, Problem> {
    params.only(&[])?;
    let receivers = api.control.receivers().await?;
    Ok(Json(ReceiversJson { receivers, now_ms: api.clock.wall() }))
}

/// `POST /v1/receivers/{name}/test`
pub(super) async fn test(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<TestBegun>, Problem> {
    params.only(&[])?;
    known(&api, &name)?;
    Ok(Json(api.control.test_receiver(&name).await?))
}

/// An error unless the config has a receiver of that name.
pub(super) fn known(api: &Api, name: &str) -> Result<(), Problem> {
    if api.config.receivers.iter().any(|r| r.name == name) {
        return Ok(());
    }
    let detail = format!(
        "there is no receiver `{}` in the config: `heartwatchctl receivers` lists them",
        shorten(name)
    );
    let (slug, title) = ("unknown-receiver", "no such receiver");
    Err(Problem::new(StatusCode::NOT_FOUND, slug, title, detail))
}
