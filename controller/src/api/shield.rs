//! What stands around every route: bounds on number and time, and one form for every error.

use std::any::Any;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use heartwatch_common::secret;

use super::Api;
use super::problem::Problem;

/// Time for a request that only looks something up.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time for one that may wait for news, longer than [`super::events::WAIT_MAX`].
const TIMEOUT_FOLLOW: Duration = Duration::from_secs(90);
/// Time to make a backup or take an import. Sending a backup's bytes is not part of it.
const TIMEOUT_LONG: Duration = Duration::from_secs(600);
/// Most of a foreign error text that is read.
const FOREIGN_TEXT_LEN_MAX: usize = 4 * 1024;

pub(super) fn timeout(path: &str) -> Duration {
    match path {
        "/v1/events" => TIMEOUT_FOLLOW,
        "/v1/backup" | "/v1/hosts/import" => TIMEOUT_LONG,
        _ => TIMEOUT,
    }
}

/// The outermost layer.
pub(super) async fn shield(State(api): State<Api>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let limit = timeout(&path);
    let response = match api.requests.try_acquire() {
        Err(_) => {
            let detail = "too many requests are under way: try again";
            Problem::of_status(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
        }
        Ok(_permit) => tokio::time::timeout(limit, next.run(request))
            .await
            .unwrap_or_else(|_| timed_out(limit)),
    };
    let mut response = unify(response, &path).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderName::from_static("x-content-type-options");
    headers.insert(nosniff, HeaderValue::from_static("nosniff"));
    response
}

fn timed_out(limit: Duration) -> Response {
    let detail = format!("not done within {} s; what was asked may still happen", limit.as_secs());
    let title = "the request took too long";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", title, detail).into_response()
}

/// Answers for a route that panicked: a bug of ours, told without its text.
pub(super) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    log::error!("an API route panicked (a bug, please report it): {text}");
    let detail = "a bug of the controller's; its log says more";
    Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
}

/// Makes every error a problem that names the path.
async fn unify(response: Response, path: &str) -> Response {
    if !(response.status().is_client_error() || response.status().is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let problem = match parts.extensions.remove::<Problem>() {
        Some(problem) => problem,
        None => {
            let text = axum::body::to_bytes(body, FOREIGN_TEXT_LEN_MAX).await.unwrap_or_default();
            Problem::of_status(parts.status, String::from_utf8_lossy(&text).trim())
        }
    };
    let kept = [header::ALLOW, header::RETRY_AFTER].map(|name| (parts.headers.remove(&name), name));
    let mut response = Problem { instance: Some(instance(path).into()), ..problem }.into_response();
    for (value, name) in kept {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The path as it is told back: a join token without its beginning looks like a host's id, but stands where
/// only names of tokens do.
fn instance(path: &str) -> String {
    match path.split_once("tokens/") {
        Some((begin, name)) if secret::is_token_digits(name) => {
            format!("{begin}tokens/{}", secret::HIDDEN)
        }
        _ => super::extract::shorten(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_news_is_shorter_than_its_timeout() {
        assert!(super::super::events::WAIT_MAX < TIMEOUT_FOLLOW);
        assert_eq!(timeout("/v1/events"), TIMEOUT_FOLLOW);
        assert_eq!(timeout("/v1/status"), TIMEOUT);
    }

    #[tokio::test]
    async fn a_panic_is_told_as_a_problem_without_its_text() {
        let response = unify(panicked(Box::new("secret detail")), "/v1/x").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.instance.as_deref(), Some("/v1/x"));
        assert!(!problem.detail.contains("secret"));
    }

    #[tokio::test]
    async fn a_foreign_plain_text_error_becomes_a_problem() {
        let foreign = (StatusCode::PAYLOAD_TOO_LARGE, "length limit exceeded").into_response();
        let response = unify(foreign, "/").await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], super::super::problem::PROBLEM_JSON);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!((problem.status, problem.detail.as_str()), (413, "length limit exceeded"));
    }
}
