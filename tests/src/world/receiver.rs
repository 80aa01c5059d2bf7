//! A webhook receiver that writes down what it gets, checks every signature by an implementation that
//! is not ours, and misbehaves on demand.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use base64::Engine;
use futures_util::{StreamExt, stream};
use heartwatch_common::time::Instant;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{eventually, now, number, text};

/// Longest body that is read.
const BODY_LEN_MAX: usize = 1024 * 1024;
/// Length of a huge answer.
const HUGE: usize = 16 * 1024 * 1024;

/// A signing secret as Standard Webhooks writes it, made of one byte.
pub fn webhook_secret(byte: u8) -> String {
    format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode([byte; 32]))
}

/// How to answer one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This status and a short body.
    Status(u16),
    /// This status after a while.
    Slow(u16, Duration),
    /// Take the request and never answer.
    Hang,
    /// 302 to somewhere.
    Redirect(String),
    /// 200 with a body of 16 MiB.
    Huge(u16),
    /// 200, then the connection breaks in the middle of the body.
    CloseMidBody(u16),
    /// 200 with this body.
    Says(String),
    /// 409: this token is the highest that was seen.
    Conflict(u64),
}

/// How to answer calls.
#[derive(Debug)]
pub enum Plan {
    /// All alike.
    Always(Answer),
    /// A share of them, drawn from a seed, badly; the others with 200.
    Share {
        /// Of a hundred.
        percent: u32,
        /// How the bad ones are answered.
        bad: Answer,
        /// Where the draws come from.
        rng: Box<StdRng>,
    },
    /// These in order, then 200 for ever.
    Script(VecDeque<Answer>),
}

impl Plan {
    /// Everything is accepted.
    pub fn ok() -> Self {
        Self::Always(Answer::Status(200))
    }

    /// `percent` of a hundred calls are answered by `bad`.
    pub fn share(percent: u32, bad: Answer, seed: u64) -> Self {
        Self::Share { percent, bad, rng: Box::new(StdRng::seed_from_u64(seed)) }
    }

    /// These in order, then 200 for ever.
    pub fn script(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::Script(answers.into_iter().collect())
    }

    fn next(&mut self) -> Answer {
        match self {
            Self::Always(answer) => answer.clone(),
            Self::Share { percent, bad, rng } => {
                if rng.random_range(0..100) < *percent {
                    bad.clone()
                } else {
                    Answer::Status(200)
                }
            }
            Self::Script(answers) => answers.pop_front().unwrap_or(Answer::Status(200)),
        }
    }
}

/// One call as it came in.
#[derive(Clone, Debug)]
pub struct Call {
    /// When.
    pub at: Instant,
    /// The idempotency key (`webhook-id`).
    pub id: String,
    /// `webhook-timestamp`.
    pub timestamp: String,
    /// How many signatures it carried.
    pub signatures: usize,
    /// `webhook-signature`.
    pub signature: String,
    /// Whether one of them was right, and if not, why not.
    pub verified: Result<(), String>,
    /// The body, byte for byte.
    pub raw: String,
    /// The body as JSON.
    pub body: Value,
    /// How it was answered.
    pub answer: Answer,
}

impl Call {
    /// The event's kind.
    pub fn kind(&self) -> &str {
        text(&self.body, "/type")
    }

    /// The host's id.
    pub fn host(&self) -> &str {
        text(&self.body, "/data/host/id")
    }

    /// The fencing token.
    pub fn token(&self) -> u64 {
        number(&self.body, "/data/token")
    }

    /// Whether the controller was told that it arrived.
    pub fn was_accepted(&self) -> bool {
        matches!(
            self.answer,
            Answer::Status(200..=299)
                | Answer::Huge(200..=299)
                | Answer::CloseMidBody(200..=299)
                | Answer::Says(_)
        )
    }
}

/// Told of every call as it comes in.
type Listener = Box<dyn Fn(&Call) + Send + Sync>;

struct Shared {
    calls: Mutex<Vec<Call>>,
    listener: Mutex<Option<Listener>>,
    plan: Mutex<Plan>,
    secrets: Mutex<Vec<String>>,
}

/// A webhook receiver on a port of its own.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Starts one that accepts everything signed with `secret`.
    pub async fn start(secret: &str) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, secret).await
    }

    /// The same on another address of this machine.
    pub async fn start_at(ip: Ipv4Addr, secret: &str) -> Result<Self> {
        let shared = Arc::new(Shared {
            calls: Mutex::default(),
            listener: Mutex::default(),
            plan: Mutex::new(Plan::ok()),
            secrets: Mutex::new(vec![secret.to_owned()]),
        });
        let address = SocketAddr::from((ip, 0));
        let mut receiver = Self { address, shared, server: None };
        receiver.resume().await?;
        Ok(receiver)
    }

    /// Listens (again), on the same port as before.
    pub async fn resume(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.address).await.context("cannot listen")?;
        self.address = listener.local_addr().context("cannot tell the port")?;
        let app = Router::new().fallback(take).with_state(Arc::clone(&self.shared));
        self.server = Some(tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, app).await {
                eprintln!("the receiver ended: {e}");
            }
        }));
        Ok(())
    }

    /// Stops listening: connections are refused from now on.
    pub async fn pause(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // The port is free once the task has gone; that it was aborted is what we wanted.
            drop(server.await);
        }
    }

    /// Where to POST.
    pub fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    /// Changes how calls are answered from now on.
    pub fn plan(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// Changes which secrets are right from now on.
    pub fn secrets(&self, secrets: &[&str]) {
        *self.shared.secrets.lock().unwrap_or_else(PoisonError::into_inner) =
            secrets.iter().map(|s| (*s).to_owned()).collect();
    }

    /// Has every further call told to `listener` as it comes in.
    pub fn tell(&self, listener: impl Fn(&Call) + Send + Sync + 'static) {
        *self.shared.listener.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::new(listener));
    }

    /// Everything that came in so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for an accepted call of a kind about a host; answers the first.
    ///
    /// # Errors
    /// If none comes, or if any call so far had no right signature.
    pub async fn wait(&self, host: &str, kind: &str, patience: Duration) -> Result<Call> {
        eventually(patience, &format!("the receiver gets {kind} of {host}"), || async {
            let calls = self.calls();
            for call in &calls {
                if let Err(e) = &call.verified {
                    bail!("a call of {} is not rightly signed: {e}", call.kind());
                }
            }
            let of_host = || calls.iter().filter(|c| c.host() == host);
            let found = of_host().find(|c| c.kind() == kind && c.was_accepted()).cloned();
            if found.is_none() {
                bail!("it got {:?} of it", of_host().map(Call::kind).collect::<Vec<_>>());
            }
            Ok(found)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
}

fn verify(secrets: &[String], headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let mut last = "no secret is known".to_owned();
    for secret in secrets {
        match Webhook::new(secret).and_then(|w| w.verify(body, headers)) {
            Ok(()) => return Ok(()),
            Err(e) => last = e.to_string(),
        }
    }
    Err(last)
}

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Response<Body> {
    let Ok(bytes) = axum::body::to_bytes(body, BODY_LEN_MAX).await else {
        return respond(413, Body::empty());
    };
    let answer = shared.plan.lock().unwrap_or_else(PoisonError::into_inner).next();
    let secrets = shared.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let raw = String::from_utf8_lossy(&bytes).into_owned();
    let call = Call {
        at: now(),
        id: header(&headers, "webhook-id"),
        timestamp: header(&headers, "webhook-timestamp"),
        signatures: header(&headers, "webhook-signature").split_whitespace().count(),
        signature: header(&headers, "webhook-signature"),
        verified: verify(&secrets, &headers, &bytes),
        body: serde_json::from_str(&raw).unwrap_or(Value::Null),
        raw,
        answer: answer.clone(),
    };
    if let Some(tell) = &*shared.listener.lock().unwrap_or_else(PoisonError::into_inner) {
        tell(&call);
    }
    shared.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    perform(answer).await
}

async fn perform(answer: Answer) -> Response<Body> {
    match answer {
        Answer::Status(status) => respond(status, Body::from("{}")),
        Answer::Slow(status, wait) => {
            tokio::time::sleep(wait).await;
            respond(status, Body::from("{}"))
        }
        Answer::Says(body) => respond(200, Body::from(body)),
        Answer::Hang => std::future::pending().await,
        Answer::Redirect(to) => {
            let mut response = respond(302, Body::empty());
            if let Ok(value) = to.parse() {
                response.headers_mut().insert("location", value);
            }
            response
        }
        Answer::Huge(status) => respond(status, Body::from(vec![b'x'; HUGE])),
        Answer::CloseMidBody(status) => {
            // After a moment, so that status and first half have left.
            let first = stream::iter([Ok(Bytes::from_static(b"{\"half\":"))]);
            let broken = stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(std::io::Error::other("broken on purpose"))
            });
            respond(status, Body::from_stream(first.chain(broken)))
        }
        Answer::Conflict(highest) => {
            respond(409, Body::from(json!({ "highest_token": highest }).to_string()))
        }
    }
}

fn respond(status: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
    // So that `pause` also ends connections that would have been used again.
    response.headers_mut().insert("connection", axum::http::HeaderValue::from_static("close"));
    response
}
