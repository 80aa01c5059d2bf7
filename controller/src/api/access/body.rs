//! A request's body: as long as the route takes, and come within a time.
//!
//! It is read here, before the route runs: whoever declares too much is told so at once and not once it has
//! come, and whoever sends a byte now and then holds a place among the requests for no longer than
//! [`TIME_MIN`] and what so long a body may take.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::{Method, StatusCode, header};

use crate::api::problem::Problem;

/// Time that every body has.
pub(super) const TIME_MIN: Duration = Duration::from_secs(20);
/// Bytes for which there is another second: who sends more slowly had better mend the line first.
const BYTES_PER_SECOND: usize = 128 * 1024;

/// How long a body of that length may take.
fn time(len: usize) -> Duration {
    TIME_MIN + Duration::from_secs((len / BYTES_PER_SECOND) as u64)
}

fn too_long(len_max: usize, declared: Option<u64>) -> Problem {
    let detail = match declared {
        Some(len) => format!("{len} bytes are declared: at most {len_max} are taken here"),
        None => format!("it is longer than {len_max} bytes: no more are taken here"),
    };
    Problem::of_status(StatusCode::PAYLOAD_TOO_LARGE, &detail)
}

fn too_slow(time: Duration) -> Problem {
    let detail = format!(
        "it had not come after {} s: nothing was done; is the line to the controller slow, or the declared length \
         wrong?",
        time.as_secs()
    );
    let title = "the request body took too long";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", title, detail)
}

/// The request with all of its body, and that body once more.
pub(super) async fn whole(request: Request, len_max: usize) -> Result<(Request, Bytes), Problem> {
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|len| len > len_max as u64) {
        return Err(too_long(len_max, declared));
    }
    let (parts, body) = request.into_parts();
    // Nobody reads what comes with a question.
    let ignored = [Method::GET, Method::HEAD].contains(&parts.method);
    let bytes = if ignored || body.is_end_stream() {
        Bytes::new()
    } else {
        let len = declared.and_then(|len| usize::try_from(len).ok()).unwrap_or(len_max);
        read(body, len_max, time(len)).await?
    };
    let mut request = Request::from_parts(parts, Body::from(bytes.clone()));
    // It was counted here.
    DefaultBodyLimit::disable().apply(&mut request);
    Ok((request, bytes))
}

async fn read(body: Body, len_max: usize, time: Duration) -> Result<Bytes, Problem> {
    let mut request = Request::new(body);
    DefaultBodyLimit::max(len_max).apply(&mut request);
    let reading = tokio::time::timeout(time, Bytes::from_request(request, &()));
    match reading.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_long(len_max, None)),
        Ok(Err(e)) => Err(Problem::bad_request(format!("the body broke off: {}", e.body_text()))),
        Err(_) => Err(too_slow(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream::{self, StreamExt};
    use tokio::time::Instant;

    fn post(body: Body) -> Request {
        Request::post("/").body(body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_declares_too_much_is_refused_before_a_byte_of_it_has_come() {
        let endless = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        for (declared, wanted) in [("90000000", 413), ("101", 413), ("100", 408)] {
            let mut request = post(endless());
            request.headers_mut().insert(header::CONTENT_LENGTH, declared.parse().unwrap());
            let since = Instant::now();
            let refused = whole(request, 100).await.unwrap_err();
            assert_eq!(refused.status, wanted, "{declared}");
            assert_eq!(since.elapsed() >= TIME_MIN, wanted == 408, "{declared}");
        }
        let refused = whole(post(Body::from("x".repeat(101))), 100).await.unwrap_err();
        assert_eq!(refused.status, 413);
        let (request, bytes) = whole(post(Body::from("x".repeat(100))), 100).await.unwrap();
        assert_eq!(bytes.len(), 100);
        assert_eq!(Bytes::from_request(request, &()).await.unwrap(), bytes);
    }

    /// It was cut off by the time for the whole request, with a 503 that says that what was asked may happen.
    #[tokio::test(start_paused = true)]
    async fn who_sends_a_byte_now_and_then_is_told_that_it_takes_too_long() {
        let drip = stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(b" "))
        });
        let since = Instant::now();
        let refused = whole(post(Body::from_stream(drip)), 64 * 1024).await.unwrap_err();
        assert_eq!((refused.status, since.elapsed()), (408, TIME_MIN));
        assert!(refused.detail.contains("nothing was done"), "{}", refused.detail);
    }

    #[tokio::test]
    async fn what_comes_with_a_question_is_not_waited_for() {
        let endless = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let (_, bytes) = whole(Request::get("/").body(endless).unwrap(), 100).await.unwrap();
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_body_has_less_time_than_its_request() {
        assert!(time(crate::api::BODY_LEN_MAX) < crate::api::shield::timeout("/v1/pause"));
        let import = crate::api::IMPORT_BODY_LEN_MAX;
        assert!(time(import) < crate::api::shield::timeout("/v1/hosts/import"));
    }
}
