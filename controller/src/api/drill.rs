//! The canary: its drills, and the receiver that is the controller's own.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};

use super::Api;
use super::extract::{Operator, Params};
use super::metrics::Families;
use super::problem::Problem;
use super::types::DrillBegun;
use crate::canary::CanaryStatus;

/// `GET /v1/drill`
pub(super) async fn status(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<CanaryStatus>, Problem> {
    params.only(&[])?;
    Ok(Json(api.control.canary().status()))
}

/// `POST /v1/drill`
pub(super) async fn begin(
    _: Operator,
    State(api): State<Api>,
    params: Params,
) -> Result<(StatusCode, Json<DrillBegun>), Problem> {
    params.only(&[])?;
    Ok((StatusCode::ACCEPTED, Json(DrillBegun { number: api.control.canary().drill() })))
}

/// `POST /v1/canary`: a drill's own webhook. Its signature is its pass.
pub(super) async fn arrive(
    State(api): State<Api>,
    params: Params,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    params.only(&[])?;
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let [id, at, signatures] = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(header);
    let now = (api.clock.now(), api.clock.wall());
    if !api.control.canary().arrive(id, at, signatures, &body, now) {
        let detail =
            "this is where the controller's own drills arrive: the signature is not theirs";
        let (status, title) = (StatusCode::UNAUTHORIZED, "not signed");
        return Err(Problem::new(status, "unauthorized", title, detail));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What `/metrics` shows of it. Figures of a half that failed are absent.
pub(super) fn families(f: &mut Families, canary: &CanaryStatus) {
    let last = canary.last.as_ref();
    if let Some(ms) = last.and_then(|last| last.detection_ms) {
        let help =
            "Time from the canary's last beat until it was called down, in the newest drill.";
        f.gauge("canary_detection_seconds", help, ms / 1e3);
    }
    if let Some(ms) = last.and_then(|last| last.delivery_ms) {
        let help = "Time from a test event until its receiver had it, in the newest drill.";
        f.gauge("canary_delivery_seconds", help, ms / 1e3);
    }
    let help = "Drills of the canary that failed since the start.";
    f.counters("canary_failures_total", help, [(Vec::new(), canary.failures)]);
    if let Some(at) = canary.last_success_ms {
        let help = "When a drill passed last, seconds since 1970.";
        f.gauge("canary_last_success_timestamp_seconds", help, at.0 as f64 / 1e3);
    }
}
