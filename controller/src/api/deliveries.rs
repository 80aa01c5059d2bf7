//! The outbox: what is on its way, what was given up, and sending it again.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Body, Name, Operator, Params, shorten};
use super::problem::Problem;
use super::types::{DeliveriesPage, DeliveryJson};
use super::{Api, hosts, receivers};
use crate::control::{Redrive, RedriveReport};
use crate::store::{DeliveryFilter, DeliveryId, READ_LEN_MAX};

/// `GET /v1/deliveries`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<DeliveriesPage>, Problem> {
    let params = params.only(&["state", "receiver", "host", "incident", "after", "limit"])?;
    let limit = params.limit()?;
    let filter = DeliveryFilter {
        state: params.parsed("state")?,
        receiver: params.one("receiver")?.map(str::to_owned),
        host: params.one("host")?.map(|name| hosts::find_id(&api, name)).transpose()?,
        incident: params.parsed("incident")?,
        after: params.number("after", 0, i64::MAX as u64)?.map(DeliveryId),
    };
    let receiver = filter.receiver.clone().filter(|_| filter.after.is_none());
    let deliveries = api.store.deliveries(filter, limit).await?;
    if let Some(name) = receiver.filter(|_| deliveries.is_empty()) {
        // One that was taken out of the config may have old ones; of this nothing was ever heard.
        receivers::known(&api, &name)?;
    }
    let full = deliveries.len() >= limit;
    let next_after = deliveries.last().filter(|_| full).map(|d| d.id.0);
    Ok(Json(DeliveriesPage { deliveries, next_after }))
}

/// `GET /v1/deliveries/{id}`
pub(super) async fn one(
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<DeliveryJson>, Problem> {
    params.only(&[])?;
    let unknown = || {
        let detail = format!("there is no delivery `{}`", shorten(&name));
        Problem::new(StatusCode::NOT_FOUND, "unknown-delivery", "no such delivery", detail)
    };
    let number: u64 =
        name.parse().ok().filter(|n| i64::try_from(*n).is_ok()).ok_or_else(unknown)?;
    let id = DeliveryId(number);
    let after = number.checked_sub(1).map(DeliveryId);
    let filter = DeliveryFilter { after, ..DeliveryFilter::default() };
    let row = api.store.deliveries(filter, 1).await?.into_iter().next();
    let delivery = row.filter(|row| row.id == id).ok_or_else(unknown)?;
    let attempt_log = api.store.attempts(id).await?;
    Ok(Json(DeliveryJson { delivery, attempt_log }))
}

/// `POST /v1/deliveries/redrive`
pub(super) async fn redrive(
    _: Operator,
    State(api): State<Api>,
    params: Params,
    Body(what): Body<Redrive>,
) -> Result<Json<RedriveReport>, Problem> {
    params.only(&[])?;
    if let Redrive::Ids(ids) = &what
        && !(1..=READ_LEN_MAX).contains(&ids.len())
    {
        let detail = format!("{} ids given: 1 to {READ_LEN_MAX} are allowed", ids.len());
        return Err(Problem::bad_request(detail));
    }
    Ok(Json(api.control.redrive(what).await?))
}
