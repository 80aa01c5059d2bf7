//! Serves HTTP on connections: each for as long as it asks, and none for as long as it likes.
//!
//! | what is waited for | at most |
//! | --- | --- |
//! | a connection's first byte | 20 s ([`super::listener`]) |
//! | the end of a TLS handshake | 10 s (there too) |
//! | all of a request's head, from when it may begin: on a fresh connection, and on one that has had its answer | [`HEAD_MAX`] |
//! | a request's body | 20 s, and another for each 128 KiB (`access/body.rs`) |
//! | what is to be answered | as the route is given ([`super::shield`]) |
//! | that a client takes what is sent | 30 s for each piece ([`super::listener`]) |
//!
//! So whoever sends nothing, or a byte now and then, holds a place for less than a minute.

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::listener::Bounded;
use super::peer::Peer;

/// Time for a request's head, from when it may begin: what ends slow ones ends idle connections too. Longer
/// than Prometheus' usual 15 s between two scrapes, so that it keeps its connection.
const HEAD_MAX: Duration = Duration::from_secs(20);
/// Longest head that is taken, bytes, and most that is read ahead for one connection.
const HEAD_LEN_MAX: usize = 64 * 1024;

/// Serves until `stop` is ready; then every connection ends with the answer that is under way on it.
pub(super) async fn run(
    mut listener: Bounded,
    router: Router,
    stop: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let (told, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            (stream, _) = listener.accept() => {
                let (peer, stopping) = (stream.peer(), stopping.clone());
                connections.spawn(connection(stream, peer, router.clone(), stopping));
            }
            // Only so that those that have ended take no memory.
            Some(_) = connections.join_next() => {}
            () = &mut stop => break,
        }
    }
    drop(listener);
    told.send_replace(true);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Serves one connection to its end.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_LEN_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // How a client ends its connection is its own matter.
        ended = serving.as_mut() => return log_end(ended),
        // An error means that the server itself is gone, which is a stop too.
        _ = stopping.wait_for(|s| *s) => {}
    }
    serving.as_mut().graceful_shutdown();
    log_end(serving.await);
}

fn log_end(ended: Result<(), hyper::Error>) {
    if let Err(e) = ended {
        log::debug!("API: a connection ended: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// A served connection's other end; time stands still but for what is waited for.
    fn served() -> (DuplexStream, watch::Sender<bool>) {
        let (near, far) = tokio::io::duplex(4_096);
        let (told, stopping) = watch::channel(false);
        let slow = get(|| async {
            tokio::time::sleep(Duration::from_secs(300)).await;
            "late"
        });
        let router = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/slow", slow)
            .route("/echo", post(|body: String| async { body }));
        tokio::spawn(connection(far, Peer::LOCAL, router, stopping));
        (near, told)
    }

    async fn answer(near: &mut DuplexStream) -> String {
        let mut bytes = vec![0; 4_096];
        let n = near.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..n].to_vec()).unwrap()
    }

    /// How long until the other side ends it.
    async fn ended(near: &mut DuplexStream, since: Instant) -> Duration {
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        since.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_stops_in_the_middle_of_a_head_is_cut_off() {
        for begun in [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost: loc"] {
            let (mut near, _told) = served();
            let since = Instant::now();
            near.write_all(begun).await.unwrap();
            let after = ended(&mut near, since).await;
            assert!((HEAD_MAX..HEAD_MAX * 2).contains(&after), "{begun:?}: {after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_buys_no_time() {
        let (mut near, _told) = served();
        let since = Instant::now();
        near.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
        let mut written = 0;
        while near.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            written += 1;
            assert!(written < 60, "it goes on for ever");
        }
        assert!((HEAD_MAX..HEAD_MAX * 2).contains(&since.elapsed()), "{:?}", since.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_had_its_answer_may_ask_again_but_not_idle() {
        let (mut near, _told) = served();
        for _ in 0..3 {
            near.write_all(ASK).await.unwrap();
            assert!(answer(&mut near).await.ends_with("here"));
            tokio::time::sleep(HEAD_MAX - Duration::from_secs(1)).await;
        }
        near.write_all(ASK).await.unwrap();
        assert!(answer(&mut near).await.ends_with("here"));
        let since = Instant::now();
        let after = ended(&mut near, since).await;
        assert!((HEAD_MAX..HEAD_MAX * 2).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_long_is_waited_for() {
        let (mut near, _told) = served();
        near.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert!(answer(&mut near).await.ends_with("late"));
        // As is a body: how long it may take is the route's.
        let head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n";
        near.write_all(head).await.unwrap();
        for piece in [b"ab", b"cd"] {
            tokio::time::sleep(HEAD_MAX * 2).await;
            near.write_all(piece).await.unwrap();
        }
        assert!(answer(&mut near).await.ends_with("abcd"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_idle_connections_and_lets_answers_under_way_be_given() {
        let (mut idle, told) = served();
        let (mut busy, told_too) = served();
        busy.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        idle.write_all(ASK).await.unwrap();
        assert!(answer(&mut idle).await.ends_with("here"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let since = Instant::now();
        told.send_replace(true);
        told_too.send_replace(true);
        assert!(ended(&mut idle, since).await < Duration::from_secs(1));
        let mut all = String::new();
        busy.read_to_string(&mut all).await.unwrap();
        assert!(all.ends_with("late") && all.contains("connection: close"), "{all}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_without_end_is_refused() {
        let (mut near, _told) = served();
        near.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let line = format!("X: {}\r\n", "x".repeat(1_000));
        let mut written = 0;
        while written < HEAD_LEN_MAX * 2 && near.write_all(line.as_bytes()).await.is_ok() {
            written += line.len();
        }
        assert!(written < HEAD_LEN_MAX * 2, "{written} bytes were taken");
    }
}
