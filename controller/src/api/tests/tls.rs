//! TLS and plain HTTP on one port, in process.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zeroize::Zeroizing;

use super::*;
use crate::ctl::client::{Client, ClientError, Trust};
use crate::tls::{Files, Fingerprint, Tls, make};

struct Served {
    world: World,
    tls: Arc<Tls>,
    address: std::net::SocketAddr,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let at = "127.0.0.1:1".parse().unwrap();
    let now = heartwatch_common::time::Wall(1_800_000_000_000);
    let (certificate, key) = make::ensure(dir.path(), at, now).unwrap();
    let tls = Arc::new(Tls::open(Files { certificate, key, client_ca: None }).unwrap());
    let world = World::changed(|state| state.tls = Some(Arc::clone(&tls)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shown, router) = (Arc::clone(&tls), world.bare.clone());
    tokio::spawn(crate::api::serve(listener, Some(shown), router, std::future::pending()));
    Served { world, tls, address }
}

impl Served {
    fn client(&self, scheme: &str, token: Option<&str>, pin: Option<Fingerprint>) -> Client {
        let url = format!("{scheme}://{}", self.address);
        let token = token.map(|token| Zeroizing::new(token.to_owned()));
        Client::trusting(&url, token, &Trust { pin, ..Trust::default() }).unwrap()
    }
}

#[tokio::test]
async fn tls_and_plain_http_share_a_port_and_tls_needs_a_token_on_this_machine_too() {
    let served = served().await;
    let pin = Some(served.tls.fingerprint());
    let status = served.client("http", None, None).status().await.unwrap();
    assert_eq!(status["certificate"]["sha256"], served.tls.fingerprint().to_string());
    let refused = served.client("https", None, pin).status().await.unwrap_err();
    assert_eq!(refused.problem().unwrap().status, 401);
    served.client("https", None, pin).health().await.unwrap();
    served.client("https", Some(TOKEN), pin).status().await.unwrap();
    let wrong = Some(Fingerprint([7; 32]));
    let refused = served.client("https", Some(TOKEN), wrong).status().await.unwrap_err();
    assert!(matches!(refused, ClientError::Tls { .. }), "{refused}");
    let text = served.client("http", None, None).metrics().await.unwrap();
    check_exposition(&text);
    for outcome in ["done", "failed"] {
        let line = format!("heartwatch_api_tls_handshakes_total{{outcome=\"{outcome}\"}} ");
        let n = text.lines().find_map(|l| l.strip_prefix(&line)).unwrap();
        assert_ne!(n, "0", "{outcome}: {text}");
    }
}

#[tokio::test]
async fn who_dawdles_over_a_handshake_keeps_nobody_waiting() {
    let served = served().await;
    let mut idle = Vec::new();
    for first in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(first).await.unwrap();
        idle.push(stream);
    }
    let pin = Some(served.tls.fingerprint());
    for _ in 0..3 {
        served.client("https", None, pin).health().await.unwrap();
        served.client("http", None, None).health().await.unwrap();
    }
    // What begins as TLS and is none ends at once.
    let mut nonsense = TcpStream::connect(served.address).await.unwrap();
    nonsense.write_all(&[0x16; 200]).await.unwrap();
    let mut answer = Vec::new();
    nonsense.read_to_end(&mut answer).await.unwrap_or_default();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    drop(idle);
    assert!(served.world.control.audited.lock().unwrap().is_empty());
}
