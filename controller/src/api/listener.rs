//! A TCP listener that serves TLS and plain HTTP on one port, and bounds how many connections there are and
//! how long one may idle, so that a thousand half-open ones can't take the controller's file descriptors or
//! keep the API from everyone.
//!
//! The first byte says what a client speaks: 0x16 begins a TLS handshake (RFC 8446 §5.1, `handshake(22)`)
//! and no HTTP method. Plain HTTP is served to this machine itself alone, where nobody is in between; from
//! elsewhere it is told to come by https, before anything of its request is understood. Greeting one
//! connection never keeps another waiting, and no source may have more than a quarter of all places. How long
//! each may take over what: [`super::server`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::StatusCode;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::peer::{Peer, is_local};
use super::problem::{PROBLEM_JSON, Problem};
use super::sources::{Place, Sources};
use crate::tls::Tls;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1_024;
/// A connection on which no byte moved for this long is closed. Longer than any route takes, backups
/// included: while the controller works, nothing moves either.
const IDLE_MAX: Duration = Duration::from_secs(660);
/// A client that has taken nothing of what was waiting for it for this long is gone.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Connections of one source: a quarter of all, and more than any proxy or site behind one address needs.
const OF_SOURCE_MAX: usize = 256;
/// A connection that has sent nothing at all is closed much sooner; so is one that has sent nothing since
/// its handshake.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(20);
/// Time for a TLS handshake, from its first byte.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Time to tell a plain client that it must use https.
const REFUSAL_MAX: Duration = Duration::from_secs(2);
/// Most of its request that is read meanwhile.
const REFUSAL_READ_MAX: u64 = 64 * 1024;
/// What the first record of a TLS handshake begins with.
const TLS_HANDSHAKE: u8 = 0x16;

pub(super) struct Bounded {
    inner: TcpListener,
    connections: Arc<Semaphore>,
    /// `None` serves plain HTTP only.
    tls: Option<Arc<Tls>>,
    handshake_max: Duration,
    sources: Arc<Sources>,
    /// Connections of which it is not known yet what they speak; as many as [`CONNECTIONS_MAX`] allows.
    greeted: JoinSet<Option<(Connection, SocketAddr)>>,
}

impl Bounded {
    pub(super) fn new(inner: TcpListener, tls: Option<Arc<Tls>>) -> Self {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (handshake_max, greeted) = (HANDSHAKE_MAX, JoinSet::new());
        let sources = Sources::new(OF_SOURCE_MAX);
        Self { inner, connections, tls, handshake_max, sources, greeted }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let connections = Arc::clone(&self.connections);
            let inner = &mut self.inner;
            // Whichever of the two is dropped unfinished has lost nothing: a permit goes back, and a
            // connection that was not accepted stays in the kernel's queue.
            let accepted = async move {
                let permit = loop {
                    match Arc::clone(&connections).acquire_owned().await {
                        Ok(permit) => break permit,
                        // Never: the semaphore is not closed while `self` lives.
                        Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                    }
                };
                (permit, Listener::accept(inner).await)
            };
            tokio::select! {
                Some(greeted) = self.greeted.join_next() => {
                    if let Ok(Some(ready)) = greeted {
                        return ready;
                    }
                }
                (permit, (stream, peer)) = accepted => {
                    let tls = self.tls.clone();
                    let Some(place) = self.sources.take(peer.ip()) else {
                        if let Some(tls) = tls {
                            tls.counts.connections_refused.fetch_add(1, Ordering::Relaxed);
                        }
                        continue;
                    };
                    let places = (permit, place);
                    self.greeted.spawn(greet(stream, peer, tls, self.handshake_max, places));
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// Finds out what a connection speaks. `None`: it is closed.
async fn greet(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    handshake_max: Duration,
    places: Places,
) -> Option<(Connection, SocketAddr)> {
    let local = is_local(address, stream.local_addr().ok()?);
    let mut peer =
        Peer { address: address.ip().to_canonical(), local, tls: false, certificate: false };
    let mut first = [0];
    let peeked = timeout(FIRST_BYTE_MAX, stream.peek(&mut first)).await.ok()?.ok()?;
    if peeked == 0 {
        return None;
    }
    let stream = match tls {
        Some(tls) if first[0] == TLS_HANDSHAKE => {
            let acceptor = TlsAcceptor::from(Arc::clone(&tls.current().config));
            let Ok(Ok(stream)) = timeout(handshake_max, acceptor.accept(stream)).await else {
                tls.counts.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                return None;
            };
            tls.counts.handshakes.fetch_add(1, Ordering::Relaxed);
            peer.tls = true;
            peer.certificate = stream.get_ref().1.peer_certificates().is_some();
            Stream::Tls(Box::new(stream))
        }
        _ if local => Stream::Plain(stream),
        tls => {
            if let Some(tls) = tls {
                tls.counts.plain_refused.fetch_add(1, Ordering::Relaxed);
            }
            // Whether the client heard it is its own matter.
            drop(timeout(REFUSAL_MAX, refuse(stream)).await);
            return None;
        }
    };
    let idle = Box::pin(tokio::time::sleep(FIRST_BYTE_MAX));
    Some((Connection { stream, idle, stalled: None, peer, _places: places }, address))
}

/// Tells a plain client from another machine that it must use https.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    let detail = "plain HTTP is served on the controller's own machine alone: write https:// in the URL, and \
                  give --ca or --pin to heartwatchctl";
    let problem = Problem::new(StatusCode::BAD_REQUEST, "https-needed", "https is needed", detail);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let text = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: {PROBLEM_JSON}\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    // What is still unread when a socket is closed makes the kernel reset it, and the client would lose the
    // answer.
    tokio::io::copy(&mut stream.take(REFUSAL_READ_MAX), &mut tokio::io::sink()).await.map(drop)
}

enum Stream {
    Plain(TcpStream),
    /// Boxed: it is some hundred times larger.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection's place among all, and among those of its source.
type Places = (OwnedSemaphorePermit, Place);

/// One accepted connection.
pub(super) struct Connection {
    stream: Stream,
    idle: Pin<Box<Sleep>>,
    /// Runs while the client takes nothing of what waits for it.
    stalled: Option<Pin<Box<Sleep>>>,
    peer: Peer,
    _places: Places,
}

impl Connection {
    /// Who is at the other end.
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// A byte moved: starts the wait anew. Else: an error once the wait is over.
    fn settle<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
            return polled;
        }
        self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The same for what is sent, whose wait is over much sooner.
    fn settle_sent<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return self.settle(polled, cx);
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_MAX)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        self.settle(polled, cx)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.settle_sent(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.settle_sent(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TLS stream still has records to send here, and a client that takes none stalls it too. That there
        // is nothing to send is no byte that moved.
        let polled = match &mut self.stream {
            Stream::Plain(stream) => return Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        self.settle_sent(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS has a last record to send.
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        if polled.is_ready() { polled } else { self.settle_sent(polled, cx) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Files, make};
    use heartwatch_common::time::Wall;

    #[tokio::test]
    async fn a_handshake_that_does_not_end_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (certificate, key) =
            make::ensure(dir.path(), address, Wall(1_800_000_000_000)).unwrap();
        let tls = Arc::new(Tls::open(Files { certificate, key, client_ca: None }).unwrap());
        let mut bounded = Bounded::new(listener, Some(Arc::clone(&tls)));
        bounded.handshake_max = Duration::from_millis(20);
        tokio::spawn(async move { bounded.accept().await });
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&[TLS_HANDSHAKE, 3, 1]).await.unwrap();
        let mut answer = Vec::new();
        // The end may come as a reset: bytes of the client's were never read.
        client.read_to_end(&mut answer).await.unwrap_or_default();
        assert!(answer.is_empty());
        assert_eq!(tls.counts.handshakes_failed.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = Bounded::new(listener, None);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"G").await.unwrap();
        let (mut connection, _) = bounded.accept().await;
        let since = Instant::now();
        let piece = vec![0; 1 << 20];
        let error = loop {
            if let Err(e) = connection.write_all(&piece).await {
                break e;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((STALL_MAX..STALL_MAX * 2).contains(&since.elapsed()), "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn one_source_does_not_get_every_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = Bounded::new(listener, None);
        bounded.sources = Sources::new(2);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            loop {
                kept.push(bounded.accept().await);
            }
        });
        let mut taken = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"G").await.unwrap();
            taken.push(client);
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(third.read(&mut [0]).await.unwrap_or_default(), 0, "it is closed at once");
        drop(taken);
    }
}
