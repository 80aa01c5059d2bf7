//! One signed request, and what came back.
//!
//! What it says is its [`Format`]'s; every request has these headers too: `webhook-id` (the event's id, the
//! same on every attempt: the idempotency key; of several events a hash of theirs), `webhook-timestamp` (this
//! attempt's, seconds since 1970), `webhook-signature` (see [`sign`](super::sign); absent if the receiver has
//! no secret), `heartwatch-attempt` (from 1, of several the highest), `heartwatch-token` (if it is one event
//! and has one), `authorization: Bearer …` (if configured; Masakari gets it as `x-auth-token`). A template
//! may set its own in their place.
//!
//! Redirects are not followed: a signed failover belongs to nobody but the receiver that was
//! configured. Of the answer's body [`BODY_LEN_MAX`] bytes are read and no longer than
//! [`BODY_WAIT_MAX`]; the status decides, beside a 409's `{"highest_token": N}` and what a success may say
//! ([`decision`](super::decision)). Proxies are
//! taken from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, except for loopback addresses,
//! which are always reached directly. Certificates are checked against the system's authorities and those
//! of `ca_file`; with `client_cert_file` the controller shows its own.

use std::error::Error;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heartwatch_common::auth::{SecretFileError, read_secret_file};
use heartwatch_common::time::Wall;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Method, Response, Url};

use super::decision::Decision;
use super::format::{Format, Message, TemplateError, masakari};
use super::outcome::{Outcome, OutcomeClass, clip};
use super::sign::{SecretTextError, SigningSecret, signatures};
use crate::config::Receiver;
use crate::store::{Outgoing, Token};

/// Most bytes of an answer's body that are read.
pub const BODY_LEN_MAX: usize = 1_024;
/// Longest that an answer's body is waited for once the status is there.
pub const BODY_WAIT_MAX: Duration = Duration::from_secs(2);

/// Longest file of certificates.
const PEM_LEN_MAX: u64 = 1_024 * 1_024;
const USER_AGENT: &str = concat!("heartwatch/", env!("CARGO_PKG_VERSION"));
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const ATTEMPT: HeaderName = HeaderName::from_static("heartwatch-attempt");
const TOKEN: HeaderName = HeaderName::from_static("heartwatch-token");

/// A receiver cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// A secret file cannot be read.
    #[error("receiver {receiver}")]
    File {
        /// Whose.
        receiver: String,
        /// Why.
        source: SecretFileError,
    },
    /// The signing secrets are not such.
    #[error("receiver {receiver}: the secret file {path} is not usable")]
    Secrets {
        /// Whose.
        receiver: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: SecretTextError,
    },
    /// The bearer token cannot be sent.
    #[error("receiver {receiver}: the bearer token file {path} needs one line of printable ASCII")]
    Bearer {
        /// Whose.
        receiver: String,
        /// The file.
        path: PathBuf,
    },
    /// A certificate or its key cannot be used.
    #[error("receiver {receiver}: {path} {why}")]
    Pem {
        /// Whose.
        receiver: String,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Its template cannot be used.
    #[error("receiver {receiver}")]
    Template {
        /// Whose.
        receiver: String,
        /// Why.
        source: TemplateError,
    },
    /// The URL is not one, or TLS cannot be set up.
    #[error("receiver {receiver}: cannot set up HTTP: {detail}")]
    Client {
        /// Whose.
        receiver: String,
        /// Why.
        detail: String,
    },
}

/// A receiver, ready to be sent to.
pub struct Webhook {
    client: Client,
    url: String,
    format: Format,
    secrets: Vec<SigningSecret>,
    bearer_file: Option<PathBuf>,
    first_byte_timeout: Duration,
    timeout: Duration,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Webhook").field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

impl Webhook {
    /// Reads the receiver's secrets and prepares its connections; opens none.
    pub fn new(receiver: &Receiver, format: Format) -> Result<Self, WebhookError> {
        let name = || receiver.name.clone();
        let secrets = signing_secrets(receiver)?;
        check_bearer(receiver)?;
        let client_error = |detail: String| WebhookError::Client { receiver: name(), detail };
        install_crypto();
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(receiver.connect_timeout)
            .timeout(receiver.timeout)
            .user_agent(USER_AGENT);
        if !receiver.url.is_empty() {
            let url = Url::parse(&receiver.url).map_err(|e| client_error(e.to_string()))?;
            if is_loopback(&url) {
                builder = builder.no_proxy();
            }
        }
        let client = tls(builder, receiver)?.build().map_err(|e| client_error(root(&e)))?;
        Ok(Self {
            client,
            url: receiver.url.clone(),
            format,
            secrets,
            bearer_file: receiver.bearer_token_file.clone(),
            first_byte_timeout: receiver.first_byte_timeout,
            timeout: receiver.timeout,
        })
    }

    /// Reads all files that [`Webhook::new`] reads; answers what is wrong with each.
    pub fn inspect(receiver: &Receiver) -> Vec<WebhookError> {
        let files = [
            signing_secrets(receiver).map(drop),
            check_bearer(receiver),
            authorities(receiver).map(drop),
            identity(receiver).map(drop),
        ];
        files.into_iter().filter_map(Result::err).collect()
    }

    /// Whether deliveries are signed.
    pub fn is_signed(&self) -> bool {
        !self.secrets.is_empty()
    }

    /// What would be sent.
    ///
    /// # Errors
    /// If these events cannot be said so.
    pub fn render(
        &self,
        batch: &[Outgoing],
        at: Wall,
    ) -> Result<Message, super::format::Unsendable> {
        self.format.render(&self.url, batch, at)
    }

    /// Sends them in one request; `at` is the time of this attempt. Ends within the receiver's timeout and
    /// [`BODY_WAIT_MAX`].
    pub async fn post(&self, batch: &[Outgoing], at: Wall) -> Outcome {
        let message = match self.render(batch, at) {
            Ok(message) => message,
            Err(e) => return Outcome::failed(OutcomeClass::Unsendable, &e.to_string()),
        };
        let bearer = match self.bearer().await {
            Ok(bearer) => bearer,
            Err(why) => return Outcome::failed(OutcomeClass::Connect, &why),
        };
        let (headers, request) = match self.prepare(&message, batch, at, bearer) {
            Ok(both) => both,
            Err(why) => return Outcome::failed(OutcomeClass::Unsendable, &why),
        };
        let sent = request.headers(headers).body(message.body).send();
        // The client's own limit is on the whole.
        let outcome = match tokio::time::timeout(self.first_byte_timeout, sent).await {
            Ok(Ok(answer)) => judge_answer(answer, at).await,
            Ok(Err(e)) => self.failure(&e),
            Err(_) => {
                let limit = self.first_byte_timeout.as_secs_f64();
                let text = format!("no answer began within {limit:.1} s");
                Outcome::failed(OutcomeClass::Timeout, &text)
            }
        };
        self.judge_format(outcome)
    }

    fn judge_format(&self, mut outcome: Outcome) -> Outcome {
        // What other systems say in their own words is not meant for us.
        if !matches!(self.format, Format::Native { .. }) {
            outcome.decision = None;
        }
        match outcome.status {
            Some(status) if self.format.is_done(status) => Outcome {
                class: OutcomeClass::Success,
                detail: clip(&format!("{}: it has this already", outcome.detail)).to_owned(),
                ..outcome
            },
            _ => outcome,
        }
    }

    /// The header with the token, if there is a file for it.
    async fn bearer(&self) -> Result<Option<(HeaderName, HeaderValue)>, String> {
        let Some(path) = self.bearer_file.clone() else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || read_secret_file(&path)).await;
        let text = match read {
            Ok(Ok(text)) => text,
            Ok(Err(e)) => return Err(format!("cannot read the bearer token: {e}")),
            Err(e) => return Err(format!("cannot read the bearer token: {e}")),
        };
        let (name, scheme) = match self.format {
            Format::Masakari => (HeaderName::from_static(masakari::TOKEN_HEADER), ""),
            _ => (AUTHORIZATION, "Bearer "),
        };
        let value =
            token_value(scheme, &text).ok_or("the bearer token is not one line of ASCII")?;
        Ok(Some((name, value)))
    }

    fn prepare(
        &self,
        message: &Message,
        batch: &[Outgoing],
        at: Wall,
        bearer: Option<(HeaderName, HeaderValue)>,
    ) -> Result<(HeaderMap, reqwest::RequestBuilder), String> {
        let method = Method::from_bytes(message.method.as_bytes()).map_err(|e| e.to_string())?;
        let url = Url::parse(&message.url).map_err(|e| format!("the URL is none: {e}"))?;
        let mut headers = self.headers(batch, message.body.as_bytes(), at);
        headers.extend(bearer);
        for (name, text) in &message.headers {
            let name = HeaderName::try_from(name).map_err(|e| format!("header {name}: {e}"))?;
            let mut value =
                HeaderValue::from_str(text).map_err(|e| format!("header {name}: {e}"))?;
            // Templates put credentials there.
            value.set_sensitive(name != CONTENT_TYPE);
            headers.insert(name, value);
        }
        Ok((headers, self.client.request(method, url)))
    }

    fn headers(&self, batch: &[Outgoing], body: &[u8], at: Wall) -> HeaderMap {
        let id = message_id(batch);
        let mut headers = HeaderMap::new();
        headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(at.as_secs()));
        let attempt = batch.iter().map(|o| o.attempt).max().unwrap_or_default();
        headers.insert(ATTEMPT, HeaderValue::from(attempt));
        if let [Outgoing { token: Some(token), .. }] = batch {
            headers.insert(TOKEN, HeaderValue::from(token.0));
        }
        let signature = signatures(&self.secrets, &id, at.as_secs(), body);
        for (name, text) in [(WEBHOOK_ID, id), (WEBHOOK_SIGNATURE, signature)] {
            if !text.is_empty() {
                let value =
                    HeaderValue::try_from(text).expect("an id and base64 are printable ASCII");
                headers.insert(name, value);
            }
        }
        headers
    }

    fn failure(&self, e: &reqwest::Error) -> Outcome {
        if e.is_connect() {
            let why = if e.is_timeout() { "timed out".to_owned() } else { root(e) };
            Outcome::failed(OutcomeClass::Connect, &format!("connect: {why}"))
        } else if e.is_timeout() {
            let text = format!("no answer within {:.1} s", self.timeout.as_secs_f64());
            Outcome::failed(OutcomeClass::Timeout, &text)
        } else {
            Outcome::failed(OutcomeClass::Broken, &format!("the connection broke: {}", root(e)))
        }
    }
}

/// The event's id; of several one that the same events in the same order have again.
fn message_id(batch: &[Outgoing]) -> String {
    if let [one] = batch {
        return one.event.to_string();
    }
    let mut hash = blake3::Hasher::new_derive_key("heartwatch batch of events 1");
    for outgoing in batch {
        hash.update(outgoing.event.0.as_bytes());
    }
    format!("batch-{}", &hash.finalize().to_hex()[..32])
}

fn unreadable(receiver: &Receiver) -> impl Fn(SecretFileError) -> WebhookError {
    |source| WebhookError::File { receiver: receiver.name.clone(), source }
}

fn bad_pem(receiver: &Receiver, path: &Path, why: String) -> WebhookError {
    WebhookError::Pem { receiver: receiver.name.clone(), path: path.to_owned(), why }
}

fn signing_secrets(receiver: &Receiver) -> Result<Vec<SigningSecret>, WebhookError> {
    let Some(path) = &receiver.secret_file else { return Ok(Vec::new()) };
    let text = read_secret_file(path).map_err(unreadable(receiver))?;
    let (name, path) = (|| receiver.name.clone(), path.clone());
    let bad = |source| WebhookError::Secrets { receiver: name(), path, source };
    SigningSecret::parse_all(&text).map_err(bad)
}

/// The token is read again for each attempt; at start only so that a mistake shows.
fn check_bearer(receiver: &Receiver) -> Result<(), WebhookError> {
    let Some(path) = &receiver.bearer_token_file else { return Ok(()) };
    let text = read_secret_file(path).map_err(unreadable(receiver))?;
    let bad = || WebhookError::Bearer { receiver: receiver.name.clone(), path: path.clone() };
    token_value("Bearer ", &text).map(drop).ok_or_else(bad)
}

/// The authorities of a receiver's own.
fn authorities(receiver: &Receiver) -> Result<Vec<Certificate>, WebhookError> {
    let Some(path) = &receiver.ca_file else { return Ok(Vec::new()) };
    let bad = |why| bad_pem(receiver, path, why);
    let pem = read_pem(path).map_err(bad)?;
    let found = Certificate::from_pem_bundle(&pem)
        .map_err(|e| bad(format!("holds no certificates: {}", root(&e))))?;
    if found.is_empty() { Err(bad("holds no certificates".to_owned())) } else { Ok(found) }
}

/// The certificate that a receiver is shown.
fn identity(receiver: &Receiver) -> Result<Option<Identity>, WebhookError> {
    let Some((cert, key)) = &receiver.client_files else { return Ok(None) };
    let bad = |why| bad_pem(receiver, cert, why);
    let mut pem = read_pem(cert).map_err(bad)?;
    let text = read_secret_file(key).map_err(unreadable(receiver))?;
    pem.push(b'\n');
    pem.extend_from_slice(text.as_bytes());
    let identity = Identity::from_pem(&pem);
    zeroize::Zeroize::zeroize(&mut pem);
    let why = |e| format!("and {} are no certificate and key: {}", key.display(), root(&e));
    identity.map(Some).map_err(|e| bad(why(e)))
}

/// Adds the authorities and the certificate of a receiver.
fn tls(mut builder: ClientBuilder, receiver: &Receiver) -> Result<ClientBuilder, WebhookError> {
    let authorities = authorities(receiver)?;
    if !authorities.is_empty() {
        builder = builder.tls_certs_merge(authorities);
    }
    Ok(match identity(receiver)? {
        Some(identity) => builder.identity(identity),
        None => builder,
    })
}

/// A file that anybody may read but only its owner may write: whoever writes it chooses who is trusted.
fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    let text = |e: std::io::Error| format!("cannot be read: {e}");
    let meta = std::fs::metadata(path).map_err(text)?;
    let mode = meta.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(format!("may be written by others (mode {mode:04o}): chmod go-w"));
    }
    if !meta.is_file() || meta.len() > PEM_LEN_MAX {
        return Err("is not a file of certificates".to_owned());
    }
    std::fs::read(path).map_err(text)
}

fn token_value(scheme: &str, text: &str) -> Option<HeaderValue> {
    let token = text.trim();
    if token.is_empty() || token.bytes().any(|b| !b.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::try_from(format!("{scheme}{token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// reqwest is built without a crypto provider of its own choice; ours is ring.
fn install_crypto() {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        log::trace!("a crypto provider is installed already");
    }
}

fn is_loopback(url: &Url) -> bool {
    // `host_str` puts IPv6 addresses in brackets.
    let host = url.host_str().unwrap_or("").trim_matches(['[', ']']);
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// The innermost cause. The outer ones name the URL, which may hold a password.
fn root(e: &reqwest::Error) -> String {
    let mut cause: Option<&(dyn Error + 'static)> = e.source();
    while let Some(inner) = cause.and_then(Error::source) {
        cause = Some(inner);
    }
    match cause {
        Some(cause) => clip(&cause.to_string()).to_owned(),
        None if e.is_builder() => "the request cannot be built".to_owned(),
        None => "unknown cause".to_owned(),
    }
}

async fn judge_answer(answer: Response, at: Wall) -> Outcome {
    let status = answer.status();
    let class = OutcomeClass::of_status(status.as_u16());
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|v| retry_after(v, at));
    // Read in any case: what is left unread costs the connection. What goes wrong here changes nothing.
    let body = tokio::time::timeout(BODY_WAIT_MAX, head(answer)).await.unwrap_or_default();
    let highest_token = if class == OutcomeClass::Conflict { highest_token(&body) } else { None };
    let decision = match class {
        OutcomeClass::Success => Decision::parse(&body),
        _ => None,
    };
    let detail = status.to_string().trim_end_matches(" <unknown status code>").to_owned();
    Outcome { class, status: Some(status.as_u16()), detail, retry_after, highest_token, decision }
}

/// The first [`BODY_LEN_MAX`] bytes of the body, or fewer if it breaks off.
async fn head(mut answer: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < BODY_LEN_MAX
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        body.extend_from_slice(&chunk[..chunk.len().min(BODY_LEN_MAX - body.len())]);
    }
    body
}

fn highest_token(body: &[u8]) -> Option<Token> {
    #[derive(serde::Deserialize)]
    struct Body {
        highest_token: u64,
    }
    serde_json::from_slice::<Body>(body).ok().map(|b| Token(b.highest_token))
}

fn retry_after(value: &HeaderValue, at: Wall) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = http_date(text)?.saturating_sub(at.as_secs());
    Some(Duration::from_secs(u64::try_from(until).unwrap_or(0)))
}

/// Seconds since 1970 of an HTTP date in the form that RFC 9110 asks for:
/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let mut parts = date.split(' ');
    let mut number =
        |max: i64| -> Option<i64> { parts.next()?.parse().ok().filter(|n| (0..=max).contains(n)) };
    let day = number(31)?;
    let month = MONTHS.iter().position(|m| date.get(3..6) == Some(*m))?;
    let month = i64::try_from(month).ok()? + 1;
    let year: i64 = date.get(7..11)?.parse().ok()?;
    let mut clock = date.get(12..)?.strip_suffix(" GMT")?.split(':');
    let mut unit =
        |max: i64| -> Option<i64> { clock.next()?.parse().ok().filter(|n| (0..=max).contains(n)) };
    let (hour, minute, second) = (unit(23)?, unit(59)?, unit(60)?);
    // Days since 1970 of a proleptic Gregorian date: H. Hinnant, "chrono-Compatible Low-Level Date
    // Algorithms", 2013.
    let y = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let of_era = (y % 400) * 365 + (y % 400) / 4 - (y % 400) / 100 + of_year;
    let days = (y / 400) * 146_097 + of_era - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests;
