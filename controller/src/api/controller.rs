//! Routes about the controller itself: status, health, pause, backup.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body as HttpBody, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::{Extension, Json};
use tokio::io::AsyncReadExt;

use super::access::Who;
use super::extract::{Body, Operator, Params};
use super::problem::Problem;
use super::types::{PauseBody, PauseJson, StatusJson};
use super::{Api, holds};
use crate::control::PAUSE_MAX;

/// Longest reason of a pause, characters.
const REASON_LEN_MAX: usize = 500;
/// Bytes of a backup that are read at a time.
const CHUNK_LEN: usize = 256 * 1024;
/// Folder in the state directory that holds a backup while it is made.
const SCRATCH: &str = "api-backup.tmp";

/// `GET /v1/status`
pub(super) async fn status(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<StatusJson>, Problem> {
    params.only(&[])?;
    let status = api.control.status().await;
    Ok(Json(StatusJson {
        status,
        now_ms: api.clock.wall(),
        config: api.config.clone(),
        certificate: api.tls.as_deref().map(Into::into),
    }))
}

/// `GET /healthz`: the process lives and answers.
pub(super) async fn healthz(params: Params) -> Result<&'static str, Problem> {
    params.only(&[])?;
    Ok("ok\n")
}

/// `GET /readyz`: it can do its work. A certificate about to end does not keep it from that, but is told. Why
/// it can't is for those who may read: reasons name receivers, files and hosts.
pub(super) async fn readyz(
    State(api): State<Api>,
    who: Option<Extension<Who>>,
    params: Params,
) -> Result<String, Problem> {
    params.only(&[])?;
    if who.is_none() {
        return api.control.ready().await.map(|()| "ready\n".to_owned()).map_err(|_| {
            let detail = "the reasons are told to those who show a token";
            let title = "the controller cannot do its work";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", title, detail)
        });
    }
    let warning = api.tls.as_ref().and_then(|tls| tls.current().warning(api.clock.wall()));
    let ready = || warning.map_or_else(|| "ready\n".to_owned(), |text| format!("ready; {text}\n"));
    api.control.ready().await.map(|()| ready()).map_err(|reasons| {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let title = "the controller cannot do its work";
        Problem {
            reasons: reasons.clone(),
            ..Problem::new(status, "not-ready", title, reasons.join("; "))
        }
    })
}

/// `POST /v1/pause`
pub(super) async fn pause(
    _: Operator,
    State(api): State<Api>,
    params: Params,
    Body(body): Body<PauseBody>,
) -> Result<Json<PauseJson>, Problem> {
    params.only(&[])?;
    let reason = body.reason.trim();
    holds::without_secret("reason", reason)?;
    if reason.is_empty() || reason.chars().count() > REASON_LEN_MAX {
        let detail =
            format!("`reason`: 1 to {REASON_LEN_MAX} characters are needed; others will ask why");
        return Err(Problem::bad_request(detail));
    }
    if reason.chars().any(char::is_control) {
        return Err(Problem::bad_request(
            "`reason`: one line without control characters is needed",
        ));
    }
    if body.span.0 < Duration::from_secs(1) || body.span.0 > PAUSE_MAX {
        let most = heartwatch_common::config::Span(PAUSE_MAX);
        let detail = format!("`for`: 1s to {most} is allowed; DELETE /v1/pause ends a pause");
        return Err(Problem::bad_request(detail));
    }
    let pause = api.control.pause(body.span.0, reason.to_owned()).await?;
    Ok(Json(PauseJson { pause }))
}

/// `DELETE /v1/pause`
pub(super) async fn resume(
    _: Operator,
    State(api): State<Api>,
    params: Params,
) -> Result<Json<PauseJson>, Problem> {
    params.only(&[])?;
    let pause = api.control.pause(Duration::ZERO, String::new()).await?;
    Ok(Json(PauseJson { pause }))
}

/// Removes the folder of a backup however its making ends.
struct Scratch(PathBuf);

impl Scratch {
    /// An empty folder that only we can enter. One left by a crash goes first.
    fn create(state_dir: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = state_dir.join(SCRATCH);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove {}: {e}", self.0.display());
        }
    }
}

/// `POST /v1/backup`
pub(super) async fn backup(
    _: Operator,
    State(api): State<Api>,
    params: Params,
) -> Result<Response, Problem> {
    params.only(&[])?;
    let Ok(_permit) = api.backups.try_acquire() else {
        let detail = "a backup is being made: wait for it";
        return Err(Problem::of_status(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let failed = |e: std::io::Error| {
        log::warn!("cannot make a backup: {e}");
        let detail = format!("cannot make the copy in the controller's state directory: {e}");
        let title = "the backup could not be made";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "backup-failed", title, detail)
    };
    let scratch = Scratch::create(&api.state_dir).map_err(failed)?;
    let copy = scratch.0.join("backup");
    api.store.backup(&copy).await?;
    let file = tokio::fs::File::open(&copy).await.map_err(failed)?;
    let len = file.metadata().await.map_err(failed)?.len();
    // The open file outlives its name: whatever becomes of the connection, nothing is left behind.
    drop(scratch);
    let mut response = Response::new(stream(file));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    Ok(response)
}

fn stream(file: tokio::fs::File) -> HttpBody {
    HttpBody::from_stream(futures_util::stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK_LEN];
        let len = file.read(&mut chunk).await?;
        chunk.truncate(len);
        Ok::<_, std::io::Error>((len > 0).then(|| (Bytes::from(chunk), file)))
    }))
}
