use std::net::SocketAddr;
use std::path::Path;

use heartwatch_common::auth::create_secret_file;
use heartwatch_common::time::{Clock, SystemClock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::delivery::format::Secrets;
use crate::event::{EventId, EventKind};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const BODY: &str = "{\"type\":\"host.down\"}";

fn receiver(url: &str) -> Receiver {
    Receiver {
        connect_timeout: Duration::from_millis(500),
        timeout: Duration::from_millis(500),
        concurrency: 4,
        retry_cap: Duration::from_secs(60),
        give_up_after: Duration::from_secs(3_600),
        ..Receiver::sample("r", &format!("url = \"{url}\""))
    }
}

/// A webhook in the receiver's format.
fn webhook(receiver: &Receiver) -> Result<Webhook, WebhookError> {
    Webhook::new(receiver, Format::new(receiver, Secrets::Read).unwrap().unwrap())
}

fn outgoing() -> Outgoing {
    Outgoing {
        event: EventId(uuid::Uuid::from_u128(7)),
        kind: EventKind::HostDown,
        host: None,
        token: Some(Token((1 << 32) + 5)),
        attempt: 3,
        body: BODY.to_owned(),
    }
}

/// Reads one request: its head, lower case, and its body.
async fn request(stream: &mut TcpStream) -> (String, String) {
    let mut text = String::new();
    let mut buffer = [0; 4_096];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= BODY.len()
        {
            return (head.to_ascii_lowercase(), body.to_owned());
        }
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(n > 0, "the request broke off: {text}");
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Posts to a server that sends `answer` to the one request that it takes, and then keeps the
/// connection open (`hang`) or closes it.
async fn answered(answer: &[u8], hang: bool) -> Outcome {
    let (listener, address) = listen().await;
    let hook = webhook(&receiver(&format!("http://user:hunter2@{address}/hook"))).unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        // The client may hang up in the middle of a huge body.
        drop(stream.write_all(answer).await);
        if hang {
            std::future::pending::<()>().await;
        }
    };
    let out = outgoing();
    let post = hook.post(std::slice::from_ref(&out), SystemClock.wall());
    let outcome = tokio::select! {
        outcome = post => outcome,
        () = async { server.await; std::future::pending().await } => unreachable!(),
    };
    assert!(!outcome.detail.contains("hunter2"), "{outcome:?}");
    assert!(outcome.detail.len() <= super::super::outcome::DETAIL_LEN_MAX);
    outcome
}

fn http(status: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{more}\r\n{body}").into_bytes()
}

#[tokio::test]
async fn the_request_is_what_receivers_were_promised() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        create_secret_file(&path, text).unwrap();
        Some(path)
    };
    let (listener, address) = listen().await;
    let hook = webhook(&Receiver {
        secret_file: file("secrets", &format!("{SECRET}\n{SECRET}")),
        bearer_token_file: file("token", "opensesame"),
        ..receiver(&format!("http://{address}/hook?x=1"))
    })
    .unwrap();
    assert!(hook.is_signed());
    assert!(!format!("{hook:?}").contains("opensesame"));
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = request(&mut stream).await;
        stream.write_all(&http("204 No Content", "", "")).await.unwrap();
        request
    };
    let (out, at) = (outgoing(), SystemClock.wall());
    let (outcome, (head, body)) = tokio::join!(hook.post(std::slice::from_ref(&out), at), server);
    assert_eq!((outcome.class, outcome.status), (OutcomeClass::Success, Some(204)));
    assert_eq!(outcome.detail, "204 No Content");
    assert_eq!(body, BODY);
    assert!(head.starts_with("post /hook?x=1 http/1.1"), "{head}");
    let at = at.as_secs();
    for line in [
        "webhook-id: 00000000-0000-0000-0000-000000000007".to_owned(),
        format!("webhook-timestamp: {at}"),
        "heartwatch-attempt: 3".to_owned(),
        "heartwatch-token: 4294967301".to_owned(),
        "content-type: application/json".to_owned(),
        "authorization: bearer opensesame".to_owned(),
        format!("user-agent: heartwatch/{}", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(head.lines().any(|l| l == line), "{line} in {head}");
    }
    let signature = SigningSecret::parse_all(SECRET).unwrap()[0].sign(
        "00000000-0000-0000-0000-000000000007",
        at,
        BODY.as_bytes(),
    );
    let line = format!("webhook-signature: {signature} {signature}").to_ascii_lowercase();
    assert!(head.lines().any(|l| l == line), "{line} in {head}");
}

#[tokio::test]
async fn the_status_decides() {
    for (status, class) in [
        ("200 OK", OutcomeClass::Success),
        ("404 Not Found", OutcomeClass::ClientError),
        ("409 Conflict", OutcomeClass::Conflict),
        ("410 Gone", OutcomeClass::Gone),
        ("429 Too Many Requests", OutcomeClass::ClientError),
        ("500 Internal Server Error", OutcomeClass::ServerError),
        ("503 Service Unavailable", OutcomeClass::ServerError),
    ] {
        let outcome = answered(&http(status, "", "no"), false).await;
        assert_eq!((outcome.class, outcome.detail.as_str()), (class, status));
    }
    let outcome = answered(&http("799 Odd", "", ""), false).await;
    assert_eq!((outcome.class, outcome.detail.as_str()), (OutcomeClass::ServerError, "799"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, address) = listen().await;
    let location = format!("location: http://{address}/\r\n");
    let outcome = answered(&http("307 Temporary Redirect", &location, ""), false).await;
    assert_eq!((outcome.class, outcome.status), (OutcomeClass::Redirect, Some(307)));
    let followed = tokio::time::timeout(Duration::from_millis(50), elsewhere.accept()).await;
    assert!(followed.is_err(), "nobody called there");
}

#[tokio::test]
async fn a_conflict_tells_the_highest_token_if_it_says_it_well() {
    for (body, expected) in [
        ("{\"highest_token\": 4294967340, \"x\": []}", Some(Token(4_294_967_340))),
        ("{\"highest_token\": -1}", None),
        ("{\"highest_token\": \"7\"}", None),
        ("{\"highest_token\": 1e99}", None),
        ("[]", None),
        ("", None),
    ] {
        let outcome = answered(&http("409 Conflict", "", body), false).await;
        assert_eq!(outcome.highest_token, expected, "{body}");
    }
    let elsewhere = answered(&http("400 Bad Request", "", "{\"highest_token\": 7}"), false).await;
    assert_eq!(elsewhere.highest_token, None);
}

#[tokio::test]
async fn a_huge_an_endless_and_a_cut_body_leave_it_to_the_status() {
    let huge = answered(&http("200 OK", "", &"x".repeat(10_000_000)), false).await;
    assert_eq!(huge.class, OutcomeClass::Success);
    let endless =
        b"HTTP/1.1 503 Service Unavailable\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    assert_eq!(answered(endless, true).await.class, OutcomeClass::ServerError);
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf of it";
    assert_eq!(answered(cut, false).await.class, OutcomeClass::Success);
    let cut = b"HTTP/1.1 409 Conflict\r\ncontent-length: 500\r\n\r\n{\"highest_token\": 4";
    assert_eq!(answered(cut, false).await.highest_token, None);
}

#[tokio::test]
async fn silence_refusal_and_nonsense_are_told_apart() {
    let outcome = answered(b"", true).await;
    assert_eq!(outcome.class, OutcomeClass::Timeout);
    assert_eq!(outcome.detail, "no answer within 0.5 s");
    assert_eq!(answered(b"HTTP/1.1 200 OK\r\nslow", true).await.class, OutcomeClass::Timeout);
    assert_eq!(answered(b"", false).await.class, OutcomeClass::Broken);
    assert_eq!(answered(b"SSH-2.0-OpenSSH_9.6\r\n", false).await.class, OutcomeClass::Broken);
    let (listener, address) = listen().await;
    drop(listener);
    let hook = webhook(&receiver(&format!("http://u:hunter2@{address}/"))).unwrap();
    let outcome = hook.post(std::slice::from_ref(&outgoing()), Wall(0)).await;
    assert_eq!((outcome.class, outcome.status), (OutcomeClass::Connect, None));
    assert!(outcome.detail.contains("refused"), "{outcome:?}");
    assert!(!outcome.detail.contains("hunter2"), "{outcome:?}");
    let hook = webhook(&receiver("https://no-such-host.invalid/")).unwrap();
    assert_eq!(
        hook.post(std::slice::from_ref(&outgoing()), Wall(0)).await.class,
        OutcomeClass::Connect
    );
}

#[tokio::test]
async fn retry_after_is_understood_in_seconds_and_as_a_date() {
    let after = |value: &str| {
        let at = Wall(784_111_777_000 - 30_000);
        retry_after(&HeaderValue::from_str(value).unwrap(), at)
    };
    assert_eq!(after("120"), Some(Duration::from_secs(120)));
    assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(30)));
    assert_eq!(after("Sat, 05 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
    for bad in ["", "soon", "-5", "Sun, 06 Nov 1994", "Sun, 06 Foo 1994 08:49:37 GMT", "1, 2, 3"] {
        assert_eq!(after(bad), None, "{bad}");
    }
    assert_eq!(http_date("Tue, 29 Feb 2028 00:00:00 GMT"), Some(1_835_395_200));
    assert_eq!(http_date("Fri, 31 Dec 9999 23:59:60 GMT"), Some(253_402_300_800));
    let slow = http("503 Service Unavailable", "retry-after: 7\r\n", "");
    assert_eq!(answered(&slow, false).await.retry_after, Some(Duration::from_secs(7)));
}

#[test]
fn loopback_is_told_from_the_rest() {
    let is = |url: &str| is_loopback(&Url::parse(url).unwrap());
    for url in [
        "http://127.0.0.1:1/",
        "http://127.8.9.1/",
        "https://[::1]:8/",
        "http://localhost/",
        "http://a.localhost:9/",
        "http://[::ffff:127.0.0.1]/",
    ] {
        assert!(is(url), "{url}");
    }
    for url in ["http://192.0.2.1/", "http://localhost.example/", "https://[2001:db8::1]/"] {
        assert!(!is(url), "{url}");
    }
}

#[test]
fn secrets_that_cannot_be_used_are_refused_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    create_secret_file(&path, SECRET).unwrap();
    let signed = |path: &Path| {
        webhook(&Receiver { secret_file: Some(path.to_owned()), ..receiver("http://127.0.0.1:1/") })
    };
    assert!(signed(&path).is_ok());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(signed(&path), Err(WebhookError::File { .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, "whsec_short").unwrap();
    let error = signed(&path).unwrap_err();
    assert!(matches!(error, WebhookError::Secrets { .. }), "{error}");
    assert!(matches!(signed(&dir.path().join("none")), Err(WebhookError::File { .. })));
    for bad in ["", "two words", "n\u{f6}"] {
        std::fs::write(&path, bad).unwrap();
        let receiver =
            Receiver { bearer_token_file: Some(path.clone()), ..receiver("http://127.0.0.1:1/") };
        assert!(matches!(webhook(&receiver), Err(WebhookError::Bearer { .. })), "{bad}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_a_timeout_of_its_own() {
    let (listener, address) = listen().await;
    let slow = Receiver {
        first_byte_timeout: Duration::from_millis(150),
        timeout: Duration::from_secs(60),
        ..receiver(&format!("http://{address}/"))
    };
    let hook = webhook(&slow).unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        std::future::pending::<()>().await;
    };
    let out = outgoing();
    let outcome = tokio::select! {
        outcome = hook.post(std::slice::from_ref(&out), Wall(0)) => outcome,
        () = server => unreachable!(),
    };
    assert_eq!(outcome.class, OutcomeClass::Timeout);
    assert_eq!(outcome.detail, "no answer began within 0.1 s");
}

/// A receiver that takes 25 s where 15 are allowed has done it, and says so to nobody: the next attempt must
/// be known to it as the same.
#[tokio::test]
async fn a_yes_that_comes_after_the_client_has_left_is_asked_for_again_under_the_same_id() {
    let (listener, address) = listen().await;
    let hook = webhook(&receiver(&format!("http://{address}/"))).unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (first, _) = request(&mut stream).await;
        // It answers only once the client is gone.
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
        drop(stream.write_all(&http("200 OK", "", "")).await);
        let (mut stream, _) = listener.accept().await.unwrap();
        let (second, _) = request(&mut stream).await;
        stream.write_all(&http("200 OK", "", "")).await.unwrap();
        (first, second)
    };
    let client = async {
        let out = outgoing();
        let first = hook.post(std::slice::from_ref(&out), Wall(0)).await;
        let again = Outgoing { attempt: out.attempt + 1, ..out };
        (first, hook.post(std::slice::from_ref(&again), Wall(0)).await)
    };
    let ((first, second), (late, taken)) = tokio::join!(server, client);
    assert_eq!((late.class, taken.class), (OutcomeClass::Timeout, OutcomeClass::Success));
    let id = |head: &str| head.lines().find(|l| l.starts_with("webhook-id:")).map(str::to_owned);
    assert!(id(&first).is_some());
    assert_eq!(id(&first), id(&second));
}

#[tokio::test]
async fn a_renewed_bearer_token_is_sent_from_the_next_attempt_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    create_secret_file(&path, "first").unwrap();
    let (listener, address) = listen().await;
    let with_token = Receiver {
        bearer_token_file: Some(path.clone()),
        ..Receiver::sample("m", &format!("format = \"masakari\"\nurl = \"http://{address}/v1\""))
    };
    let hook = webhook(&with_token).unwrap();
    let down = crate::delivery::sample::sample(EventKind::HostDown, &Default::default());
    for token in ["first", "second"] {
        std::fs::write(&path, token).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = request(&mut stream).await.0;
            // Masakari has it already.
            stream.write_all(&http("409 Conflict", "connection: close\r\n", "")).await.unwrap();
            head
        };
        let (outcome, head) = tokio::join!(hook.post(std::slice::from_ref(&down), Wall(0)), server);
        assert_eq!(outcome.class, OutcomeClass::Success, "{outcome:?}");
        assert!(head.starts_with("post /v1/notifications "), "{head}");
        assert!(head.contains(&format!("x-auth-token: {token}\r\n")), "{head}");
    }
    std::fs::remove_file(&path).unwrap();
    let outcome = hook.post(std::slice::from_ref(&down), Wall(0)).await;
    assert_eq!(outcome.class, OutcomeClass::Connect);
    assert!(outcome.detail.contains("bearer token"), "{}", outcome.detail);
}

#[test]
fn the_same_batch_has_the_same_id_and_another_one_another() {
    let one = outgoing();
    let two = Outgoing { event: EventId(uuid::Uuid::from_u128(8)), ..outgoing() };
    assert_eq!(message_id(std::slice::from_ref(&one)), one.event.to_string());
    let both = [one, two];
    assert_eq!(message_id(&both), message_id(&both.clone()));
    let [one, two] = both.clone();
    assert_ne!(message_id(&both), message_id(&[two, one]));
}

mod tls;
