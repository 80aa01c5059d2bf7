//! The API from the other side: one method per route, for the CLI, the demo and tests.
//!
//! Answers come as JSON values; [`typed`] makes them the types of [`crate::api::types`].

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heartwatch_common::config::Span;
use heartwatch_common::id::HostId;
use heartwatch_common::secret;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::api::problem::{NO_ROUTE, PROBLEM_JSON, Problem};
use crate::api::types::{
    CompleteBody, DrillBegun, SupposeBody, TokenBody, TokenMade, WindowBody, WordBody,
};
use crate::control::{
    HoldReport, ImportHost, ImportReport, Redrive, RedriveReport, TestBegun, Window, WindowAdded,
    WindowId,
};

use crate::enrol::NewToken;

mod error;
mod query;
mod trust;

pub use error::ClientError;
pub use query::{
    CandidatesQuery, DeliveriesQuery, EventsQuery, HoldsQuery, HostsQuery, IncidentsQuery,
};
pub use trust::Trust;

/// Time for an ordinary request.
const TIMEOUT: Duration = Duration::from_secs(40);
/// Time for an import, and for the first byte of a backup.
const TIMEOUT_LONG: Duration = Duration::from_secs(660);
/// Longest answer that is read, bytes: a page of 1,000 hosts with many labels is far shorter.
const ANSWER_LEN_MAX: usize = 128 * 1024 * 1024;

/// Makes an answer one of the types of [`crate::api::types`].
pub fn typed<T: DeserializeOwned>(answer: Value) -> Result<T, ClientError> {
    serde_json::from_value(answer).map_err(ClientError::Form)
}

type Pairs = Vec<(&'static str, String)>;

fn given(pairs: &mut Pairs, key: &'static str, value: Option<impl ToString>) {
    pairs.extend(value.map(|v| (key, v.to_string())));
}

/// A controller's API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.base)
    }
}

/// Whether a URL leads to this machine itself.
pub(super) fn is_loopback(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

impl Client {
    /// A client of the API at `url`. Without a token it can only read, and that on the controller's own
    /// machine alone.
    pub fn new(url: &str, token: Option<Zeroizing<String>>) -> Result<Self, ClientError> {
        Self::trusting(url, token, &Trust::default())
    }

    /// The same, and says which https server is the controller.
    pub fn trusting(
        url: &str,
        token: Option<Zeroizing<String>>,
        trust: &Trust,
    ) -> Result<Self, ClientError> {
        let wrong = |message: String| ClientError::Url { url: secret::hidden(url).into(), message };
        let base = Url::parse(url).map_err(|e| wrong(e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(wrong("neither http nor https".to_owned()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            let message = "a name and a password stand in it: the controller wants a token instead, from a file \
                           (--token-file)";
            return Err(wrong(message.to_owned()));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(wrong("it has a query or fragment".to_owned()));
        }
        if token.is_some() && base.scheme() == "http" && !is_loopback(&base) {
            let message = "plain http would show the token to everybody on the way";
            return Err(wrong(message.to_owned()));
        }
        // An error means that a provider is installed already, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(TIMEOUT_LONG)
            .user_agent(concat!("heartwatchctl/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        if base.scheme() == "http" {
            // No TLS, no roots: it must work where no ca-certificates are installed.
            builder = builder.tls_certs_only([]);
        } else {
            builder = trust.apply(builder)?;
        }
        let http = builder.build().map_err(ClientError::Build)?;
        Ok(Self { http, base, token })
    }

    /// Where it asks.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Servers log URLs, and the controller looks up, tells back and journals what it is asked for: a secret
    /// in the place of a name is not sent.
    fn request(
        &self,
        method: Method,
        path: &[&str],
        pairs: &Pairs,
    ) -> Result<RequestBuilder, ClientError> {
        let of_tokens = path.get(1).is_some_and(|what| what.ends_with("tokens"));
        let is_one =
            |text: &str| secret::is_no_name(text) || of_tokens && secret::is_token_digits(text);
        if path.iter().any(|part| is_one(part)) || pairs.iter().any(|(_, value)| is_one(value)) {
            return Err(ClientError::Secret);
        }
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !pairs.is_empty() {
            url.query_pairs_mut().extend_pairs(pairs);
        }
        let request = self.http.request(method, url).timeout(TIMEOUT);
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token.trim()),
            None => request,
        })
    }

    /// A body with names in it, as [`Client::request`] has them.
    fn named<T: Serialize>(body: &T) -> Result<Value, ClientError> {
        let body = serde_json::to_value(body).map_err(ClientError::Form)?;
        let is_one = |(key, value): (&String, &Value)| match value {
            Value::String(text) if key == "name" => {
                secret::is_no_name(text) || secret::is_token_digits(text)
            }
            Value::String(text) if key == "host" => secret::is_no_name(text),
            other => secret::is_in(&other.to_string()),
        };
        if body.as_object().is_some_and(|body| body.iter().any(is_one)) {
            return Err(ClientError::Secret);
        }
        Ok(body)
    }

    fn broken(&self, source: reqwest::Error) -> ClientError {
        let url = self.url().to_owned();
        if let Some(objection) = trust::objection(&source) {
            ClientError::Tls { url, objection }
        } else if source.is_connect() {
            ClientError::Unreachable { url, source }
        } else if source.is_timeout() {
            ClientError::TimedOut { url }
        } else {
            ClientError::Broken { url, source }
        }
    }

    async fn bytes(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.broken(e))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_LEN_MAX {
                let status = response.status().as_u16();
                return Err(ClientError::Foreign { url: self.url().to_owned(), status });
            }
        }
        Ok(bytes)
    }

    /// Sends, and turns every "no" into an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| self.broken(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let media = response.headers().get(reqwest::header::CONTENT_TYPE);
        let is_problem = media.is_some_and(|m| m.as_bytes().starts_with(PROBLEM_JSON.as_bytes()));
        let foreign = match self.base.path() {
            "/" | "" => {
                ClientError::Foreign { url: self.url().to_owned(), status: status.as_u16() }
            }
            path => ClientError::Path { url: self.url().to_owned(), path: path.to_owned() },
        };
        if !is_problem {
            return Err(foreign);
        }
        let bytes = self.bytes(response).await?;
        Err(match serde_json::from_slice::<Problem>(&bytes) {
            // The controller itself has no such route: it is the path that is wrong.
            Ok(p) if *p.title != *NO_ROUTE || self.base.path() == "/" => {
                ClientError::Problem(Box::new(p))
            }
            _ => foreign,
        })
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let bytes = self.bytes(response).await?;
        serde_json::from_slice(&bytes).map_err(ClientError::Form)
    }

    async fn get(&self, path: &[&str], pairs: &Pairs) -> Result<Value, ClientError> {
        self.answer(self.request(Method::GET, path, pairs)?).await
    }

    async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(self.request(Method::GET, &[path], &Vec::new())?).await?;
        Ok(String::from_utf8_lossy(&self.bytes(response).await?).into_owned())
    }

    /// A request that changes something.
    fn act(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, ClientError> {
        self.act_with(method, path, &Vec::new())
    }

    fn act_with(
        &self,
        method: Method,
        path: &[&str],
        pairs: &Pairs,
    ) -> Result<RequestBuilder, ClientError> {
        self.has_token()?;
        self.request(method, path, pairs)
    }

    fn has_token(&self) -> Result<(), ClientError> {
        if self.token.is_some() { Ok(()) } else { Err(ClientError::NoToken) }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, ClientError> {
        self.answer(self.act(Method::POST, path)?.timeout(TIMEOUT_LONG).json(body)).await
    }

    /// `GET /v1/status`: a [`crate::api::types::StatusJson`].
    pub async fn status(&self) -> Result<Value, ClientError> {
        self.get(&["v1", "status"], &Vec::new()).await
    }

    /// `GET /v1/hosts`: a [`crate::api::types::HostsPage`].
    pub async fn hosts(&self, query: &HostsQuery) -> Result<Value, ClientError> {
        let mut pairs = Pairs::new();
        pairs.extend(query.states.iter().map(|s| ("state", s.clone())));
        pairs.extend(query.labels.iter().map(|l| ("label", l.clone())));
        given(&mut pairs, "name", query.name.as_ref());
        given(&mut pairs, "limit", query.limit);
        given(&mut pairs, "page", query.page.as_ref());
        self.get(&["v1", "hosts"], &pairs).await
    }

    /// `GET /v1/hosts/{host}`: a [`crate::api::types::HostJson`].
    pub async fn host(&self, host: &str) -> Result<Value, ClientError> {
        self.get(&["v1", "hosts", host], &Vec::new()).await
    }

    /// `GET /v1/hosts/{host}/why`: a [`crate::api::types::WhyJson`].
    pub async fn why(&self, host: &str) -> Result<Value, ClientError> {
        self.get(&["v1", "hosts", host, "why"], &Vec::new()).await
    }

    /// `GET /v1/events`: an [`crate::api::types::EventsPage`].
    pub async fn events(&self, query: &EventsQuery) -> Result<Value, ClientError> {
        let mut pairs = Pairs::new();
        given(&mut pairs, "after", query.after.as_ref());
        given(&mut pairs, "host", query.host.as_ref());
        given(&mut pairs, "kind", query.kind);
        given(&mut pairs, "limit", query.limit);
        given(&mut pairs, "wait", query.wait.map(Span));
        given(&mut pairs, "tail", query.tail);
        let timeout = TIMEOUT + query.wait.unwrap_or_default();
        self.answer(self.request(Method::GET, &["v1", "events"], &pairs)?.timeout(timeout)).await
    }

    /// `POST /v1/drill`
    pub async fn drill(&self) -> Result<DrillBegun, ClientError> {
        self.post(&["v1", "drill"], &json!({})).await
    }

    /// `GET /v1/drill`: a [`crate::canary::CanaryStatus`].
    pub async fn canary(&self) -> Result<Value, ClientError> {
        self.get(&["v1", "drill"], &Vec::new()).await
    }

    /// `GET /v1/candidates`: a [`crate::control::CandidatesReport`].
    pub async fn candidates(&self, query: &CandidatesQuery) -> Result<Value, ClientError> {
        let mut pairs = Pairs::new();
        given(&mut pairs, "host", query.host.as_ref());
        given(&mut pairs, "labels", query.labels.as_ref());
        given(&mut pairs, "same", query.same.as_ref());
        given(&mut pairs, "limit", query.limit);
        self.get(&["v1", "candidates"], &pairs).await
    }

    /// `GET /v1/deliveries`: a [`crate::api::types::DeliveriesPage`].
    pub async fn deliveries(&self, query: &DeliveriesQuery) -> Result<Value, ClientError> {
        let mut pairs = Pairs::new();
        given(&mut pairs, "state", query.state.as_ref());
        given(&mut pairs, "receiver", query.receiver.as_ref());
        given(&mut pairs, "host", query.host.as_ref());
        given(&mut pairs, "incident", query.incident.as_ref());
        given(&mut pairs, "after", query.after);
        given(&mut pairs, "limit", query.limit);
        self.get(&["v1", "deliveries"], &pairs).await
    }

    /// `GET /v1/deliveries/{id}`: a [`crate::api::types::DeliveryJson`].
    pub async fn delivery(&self, id: u64) -> Result<Value, ClientError> {
        self.get(&["v1", "deliveries", &id.to_string()], &Vec::new()).await
    }

    /// `GET /metrics`
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.text("metrics").await
    }

    /// `GET /healthz`
    pub async fn health(&self) -> Result<(), ClientError> {
        self.text("healthz").await.map(drop)
    }

    /// `GET /readyz`: `Some` with the reasons if it is not ready.
    pub async fn not_ready(&self) -> Result<Option<Vec<String>>, ClientError> {
        match self.text("readyz").await {
            Ok(_) => Ok(None),
            Err(ClientError::Problem(p))
                if p.status == StatusCode::SERVICE_UNAVAILABLE.as_u16() =>
            {
                Ok(Some(if p.reasons.is_empty() { vec![p.detail] } else { p.reasons }))
            }
            Err(e) => Err(e),
        }
    }

    /// `POST /v1/hosts/import`
    pub async fn import(&self, hosts: &[ImportHost]) -> Result<ImportReport, ClientError> {
        self.post(&["v1", "hosts", "import"], hosts).await
    }

    /// `DELETE /v1/hosts/{host}`: a [`crate::api::types::ForgottenJson`].
    pub async fn forget(&self, host: &str) -> Result<Value, ClientError> {
        self.answer(self.act(Method::DELETE, &["v1", "hosts", host])?).await
    }

    /// `PUT /v1/hosts/{host}/freeze`: a [`crate::api::types::FreezeJson`]. Without a margin: as it is.
    pub async fn freeze(&self, host: &str, margin: Option<Duration>) -> Result<Value, ClientError> {
        let request = self.act(Method::PUT, &["v1", "hosts", host, "freeze"])?;
        let body = json!({"margin_ms": margin.map(|m| m.as_millis() as u64)});
        self.answer(request.json(&body)).await
    }

    /// `DELETE /v1/hosts/{host}/freeze`: a [`crate::api::types::FreezeJson`].
    pub async fn unfreeze(&self, host: &str) -> Result<Value, ClientError> {
        self.answer(self.act(Method::DELETE, &["v1", "hosts", host, "freeze"])?).await
    }

    /// `POST /v1/hosts/{host}/single`: a [`crate::api::types::SingleJson`].
    pub async fn single(&self, host: &str, word: &WordBody) -> Result<Value, ClientError> {
        self.post(&["v1", "hosts", host, "single"], word).await
    }

    /// `GET /v1/join-tokens`
    pub async fn join_tokens(&self) -> Result<Value, ClientError> {
        self.get(&["v1", "join-tokens"], &Vec::new()).await
    }

    /// `POST /v1/join-tokens`: the token's text is told this once.
    pub async fn add_join_token(&self, wish: &NewToken) -> Result<Value, ClientError> {
        self.post(&["v1", "join-tokens"], &Self::named(wish)?).await
    }

    /// `DELETE /v1/join-tokens/{name}`
    pub async fn revoke_join_token(&self, name: &str) -> Result<(), ClientError> {
        self.send(self.act(Method::DELETE, &["v1", "join-tokens", name])?).await.map(drop)
    }

    /// `GET /v1/identities`: a page of them, after a host.
    pub async fn identities(&self, after: Option<HostId>) -> Result<Value, ClientError> {
        let mut pairs = Pairs::new();
        given(&mut pairs, "after", after);
        self.get(&["v1", "identities"], &pairs).await
    }

    /// `POST /v1/hosts/{host}/revoke`
    pub async fn revoke(&self, host: &str, by: &str, reason: &str) -> Result<Value, ClientError> {
        let body = json!({"by": by, "reason": reason});
        self.post(&["v1", "hosts", host, "revoke"], &body).await
    }

    /// `DELETE /v1/hosts/{host}/revoke`: it may enrol again.
    pub async fn lift_revocation(&self, host: &str) -> Result<Value, ClientError> {
        self.answer(self.act(Method::DELETE, &["v1", "hosts", host, "revoke"])?).await
    }

    /// `GET /v1/secrets`
    pub async fn secrets(&self) -> Result<Value, ClientError> {
        self.get(&["v1", "secrets"], &Vec::new()).await
    }

    /// `POST /v1/secrets/rotate`, `…/reload`, `…/{key id}/retire`
    pub async fn change_secrets(&self, path: &[&str], force: bool) -> Result<Value, ClientError> {
        let path: Vec<&str> = ["v1", "secrets"].iter().chain(path).copied().collect();
        let mut pairs = Pairs::new();
        given(&mut pairs, "force", force.then_some(true));
        self.answer(self.act_with(Method::POST, &path, &pairs)?).await
    }

    /// `POST /v1/pause`: a [`crate::api::types::PauseJson`].
    pub async fn pause(&self, span: Duration, reason: &str) -> Result<Value, ClientError> {
        self.post(&["v1", "pause"], &json!({"for": Span(span), "reason": reason})).await
    }

    /// `DELETE /v1/pause`: a [`crate::api::types::PauseJson`].
    pub async fn resume(&self) -> Result<Value, ClientError> {
        self.answer(self.act(Method::DELETE, &["v1", "pause"])?).await
    }

    /// `POST /v1/deliveries/redrive`
    pub async fn redrive(&self, what: &Redrive) -> Result<RedriveReport, ClientError> {
        self.post(&["v1", "deliveries", "redrive"], what).await
    }

    /// `GET /v1/holds`: a [`crate::control::HoldsPage`].
    pub async fn holds(&self, query: &HoldsQuery) -> Result<Value, ClientError> {
        let mut pairs = Pairs::new();
        given(&mut pairs, "domain", query.domain.as_ref());
        given(&mut pairs, "after", query.after.as_ref());
        given(&mut pairs, "limit", query.limit);
        self.get(&["v1", "holds"], &pairs).await
    }

    /// `POST /v1/holds/{host}/approve` or `…/reject`, or of a whole domain.
    pub async fn judge_hold(
        &self,
        verb: &str,
        host: Option<&str>,
        domain: Option<&str>,
        body: &WordBody,
    ) -> Result<HoldReport, ClientError> {
        self.has_token()?;
        let mut pairs = Pairs::new();
        given(&mut pairs, "domain", domain);
        let path: Vec<&str> = ["v1", "holds"].into_iter().chain(host).chain([verb]).collect();
        let request = self.request(Method::POST, &path, &pairs)?;
        self.answer(request.timeout(TIMEOUT_LONG).json(body)).await
    }

    /// `GET /v1/incidents?open=true`: a page of open outages.
    pub async fn incidents(&self, query: &IncidentsQuery) -> Result<Value, ClientError> {
        let mut pairs: Pairs = vec![("open", "true".to_owned())];
        given(&mut pairs, "page", query.page.as_ref());
        given(&mut pairs, "limit", query.limit);
        self.get(&["v1", "incidents"], &pairs).await
    }

    /// `GET /v1/incidents/{id}`
    pub async fn incident(&self, id: &str) -> Result<Value, ClientError> {
        self.get(&["v1", "incidents", id], &Vec::new()).await
    }

    /// `POST /v1/incidents/{id}/complete`
    pub async fn complete(&self, id: &str, body: &CompleteBody) -> Result<(), ClientError> {
        let request = self.act(Method::POST, &["v1", "incidents", id, "complete"])?;
        self.send(request.json(body)).await.map(drop)
    }

    /// `GET /v1/rules`: a [`crate::control::RulesReport`].
    pub async fn rules(&self) -> Result<Value, ClientError> {
        self.get(&["v1", "rules"], &Vec::new()).await
    }

    /// `POST /v1/rules/test`: a [`crate::control::Foresight`]. Needs no token, as it changes nothing.
    pub async fn test_rules(&self, body: &SupposeBody) -> Result<Value, ClientError> {
        let request = self.request(Method::POST, &["v1", "rules", "test"], &Vec::new())?;
        self.answer(request.timeout(TIMEOUT_LONG).json(&Self::named(body)?)).await
    }

    /// `GET /v1/maintenance`: a [`crate::api::types::WindowsJson`].
    pub async fn windows(&self) -> Result<Value, ClientError> {
        self.get(&["v1", "maintenance"], &Vec::new()).await
    }

    /// `POST /v1/maintenance`
    pub async fn add_window(&self, body: &WindowBody) -> Result<WindowAdded, ClientError> {
        self.post(&["v1", "maintenance"], &Self::named(body)?).await
    }

    /// `DELETE /v1/maintenance/{window}`
    pub async fn end_window(
        &self,
        window: WindowId,
        by: &str,
        reason: Option<&str>,
    ) -> Result<Window, ClientError> {
        self.has_token()?;
        let mut pairs = Pairs::new();
        given(&mut pairs, "by", Some(by));
        given(&mut pairs, "reason", reason);
        let path = ["v1", "maintenance", &window.to_string()];
        let request = self.request(Method::DELETE, &path, &pairs)?;
        self.answer(request.timeout(TIMEOUT_LONG)).await
    }

    /// `GET /v1/receivers`: a [`crate::api::types::ReceiversJson`].
    pub async fn receivers(&self) -> Result<Value, ClientError> {
        self.get(&["v1", "receivers"], &Vec::new()).await
    }

    /// `POST /v1/receivers/{name}/test`
    pub async fn test_receiver(&self, name: &str) -> Result<TestBegun, ClientError> {
        self.post(&["v1", "receivers", name, "test"], &json!({})).await
    }

    /// `GET /v1/tokens`: a [`crate::api::types::TokensJson`].
    pub async fn tokens(&self) -> Result<Value, ClientError> {
        self.answer(self.act(Method::GET, &["v1", "tokens"])?).await
    }

    /// `POST /v1/tokens`
    pub async fn create_token(&self, body: &TokenBody) -> Result<TokenMade, ClientError> {
        self.post(&["v1", "tokens"], &Self::named(body)?).await
    }

    /// `DELETE /v1/tokens/{name}`
    pub async fn revoke_token(&self, name: &str) -> Result<(), ClientError> {
        self.send(self.act(Method::DELETE, &["v1", "tokens", name])?).await.map(drop)
    }

    /// `POST /v1/backup`, into a new file that only its owner can read. It appears under its name only
    /// when it is whole and on the disk. Answers its length in bytes.
    pub async fn backup(&self, to: &Path) -> Result<u64, ClientError> {
        let failed = |source| ClientError::File { path: to.to_owned(), source };
        if to.symlink_metadata().is_ok() {
            let exists = "it exists, and a backup never overwrites";
            return Err(failed(std::io::Error::new(std::io::ErrorKind::AlreadyExists, exists)));
        }
        let mut partial = to.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let request =
            self.act(Method::POST, &["v1", "backup"])?.timeout(Duration::from_secs(86_400));
        let response = tokio::time::timeout(TIMEOUT_LONG, self.send(request))
            .await
            .map_err(|_| ClientError::TimedOut { url: self.url().to_owned() })??;
        let len = self.store(response, &partial).await;
        // A link fails if the name exists, where a rename would overwrite.
        let linked =
            len.and_then(|len| std::fs::hard_link(&partial, to).map(|()| len).map_err(failed));
        match std::fs::remove_file(&partial) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound && linked.is_ok() => Err(failed(e)),
            _ => linked,
        }
    }

    async fn store(&self, mut response: Response, partial: &Path) -> Result<u64, ClientError> {
        let failed = |source| ClientError::File { path: partial.to_owned(), source };
        match std::fs::remove_file(partial) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(partial)
            .map_err(failed)?;
        let mut len = 0;
        while let Some(chunk) = response.chunk().await.map_err(|e| self.broken(e))? {
            file.write_all(&chunk).map_err(failed)?;
            len += chunk.len() as u64;
        }
        file.sync_all().map_err(failed)?;
        Ok(len)
    }
}
