//! Who may ask the API for what: the guard in front of every route.
//!
//! In this order: a client certificate, where one is asked for; the route's row in the table ([`routes`]);
//! the token that was shown; whether its scope suffices; whether a secret stands where a name belongs
//! ([`names_secret`]); the body ([`body`]). A right token is found before anything else is thought about, so
//! that failures of others never keep it out; a wrong one is refused wherever it is shown, also where none is
//! needed, as whoever shows it believes in it; and who shows wrong ones is throttled ([`throttle`]). What
//! gets through and may change something is journaled ([`audit`]).
//!
//! | from | without a token | with one |
//! | --- | --- | --- |
//! | this machine, plain HTTP | reads, unless `api.loopback_reads = false`, by a name of its own ([`super::names`]) | what its scope allows |
//! | anywhere, TLS | `/healthz`, and `/readyz` without reasons | what its scope allows |
//!
//! Refusals are counted, and logged at most once a minute; they are not journaled, as strangers must not
//! be able to fill the journal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::{ConnectInfo, MatchedPath, Query, RawPathParams, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use heartwatch_common::secret;
use heartwatch_common::time::{Instant, Wall};
use heartwatch_common::words;

use super::Api;
use super::metrics::Families;
use super::peer::Peer;
use super::problem::Problem;
use crate::control::Journaled;
use crate::tls::Tls;

pub(super) mod audit;
mod body;
mod book;
mod routes;
mod scope;
mod throttle;

#[cfg(test)]
mod tests;

pub use book::{TOKENS_MAX, TokenBook, TokenRow};
pub use scope::Scope;

pub(super) use book::AddError;
pub(super) use scope::Who;

use book::Shown;
use routes::{Found, Need, Rule};
use throttle::Throttle;

/// The name of the token that stands in the config's `api_token_file`.
pub(super) const FILE_TOKEN: &str = "api-token";
/// What begins the routes by which a host gets its identity: it has no certificate yet.
const ENROL: &str = "/v1/enrol";
/// How often refusals are logged at most.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// TLS without a certificate that is asked for.
    Certificate,
    /// No token.
    Missing,
    /// A header that is none, or a token that is not known.
    Wrong,
    /// A token that has ended.
    Ended,
    /// Wrong once too often.
    Throttled,
    /// A token that may do less.
    Scope,
    /// The journal cannot be written, and without it this is not done.
    Journal,
    /// Reading without a token, by a name that may not be this machine's own.
    Name,
    /// A secret in the place of a name.
    Secret,
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::Certificate,
        Self::Missing,
        Self::Wrong,
        Self::Ended,
        Self::Throttled,
        Self::Scope,
        Self::Journal,
        Self::Name,
        Self::Secret,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Missing => "missing",
            Self::Wrong => "wrong",
            Self::Ended => "ended",
            Self::Throttled => "throttled",
            Self::Scope => "scope",
            Self::Journal => "journal",
            Self::Name => "name",
            Self::Secret => "secret",
        }
    }
}

/// What the guard keeps between requests.
#[derive(Debug, Default)]
pub(super) struct Guard {
    throttle: Mutex<Throttle>,
    refused: [AtomicU64; Refusal::ALL.len()],
    audited: AtomicU64,
    audit_failed: AtomicU64,
    /// When refusals were logged last, and how many have come since.
    logged: Mutex<(Option<Instant>, u64)>,
}

impl Guard {
    fn count(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Says that tokens are wrong, now and then.
    fn log(&self, peer: &Peer, now: Instant) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.1 += 1;
        if logged.0.is_some_and(|at| now.since(at) < LOG_EVERY) {
            return;
        }
        let times = std::mem::take(&mut logged.1);
        logged.0 = Some(now);
        log::warn!(
            "API: {} with a wrong or ended token, the last from {}",
            words::count(times, "request"),
            peer.address
        );
    }
}

/// The guard of all routes, inside of the shield.
pub(super) async fn guard(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let peer =
        request.extensions().get::<ConnectInfo<Peer>>().map_or(Peer::STRANGER, |info| info.0);
    let path = request.uri().path();
    if let Err(problem) = check_certificate(api.tls.as_deref(), &peer, path) {
        api.guard.count(Refusal::Certificate);
        return problem.into_response();
    }
    let pattern = request.extensions().get::<MatchedPath>();
    let found = pattern.map(|p| routes::find(request.method(), p.as_str()));
    let rule = match &found {
        Some(Found::Rule(rule)) => Some(*rule),
        Some(Found::Unlisted) => {
            log::error!("the API's route {path} is in no table (a bug, please report it)");
            let detail = "a bug of the controller's: nobody said who may ask for this";
            return Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response();
        }
        // No such route, or not by this method.
        Some(Found::OtherMethods(_)) | None => None,
    };
    let who = match admit(&api, &peer, rule, &request) {
        Ok(who) => who,
        Err(refused) => {
            let (refusal, problem, wait) = *refused;
            api.guard.count(refusal);
            return refuse(problem, wait);
        }
    };
    // Here and not by the router: a handler that the table does not know must not run.
    if let Some(Found::OtherMethods(methods)) = found {
        let mut response = Problem::of_status(StatusCode::METHOD_NOT_ALLOWED, "").into_response();
        if let Ok(allow) = HeaderValue::try_from(methods) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        return response;
    }
    if let Some(who) = who.clone() {
        request.extensions_mut().insert(who);
    }
    let Some(rule) = rule else { return next.run(request).await };
    let request = match names_secret(&api, request).await {
        Ok(request) => request,
        Err(problem) => {
            api.guard.count(Refusal::Secret);
            return problem.into_response();
        }
    };
    match who {
        Some(who) if rule.told.is_some() => change(&api, &peer, rule, &who, request, next).await,
        _ => match body::whole(request, rule.body_max).await {
            Ok((request, _)) => next.run(request).await,
            Err(problem) => problem.into_response(),
        },
    }
}

/// Says that a key or a token stands where something else belongs, without itself.
fn secret_at(place: &str) -> Problem {
    let detail = format!(
        "{place}: a key or a token stands there and not a name; nothing was done and nothing of it is kept here. \
         It has been seen on its way: revoke it (`heartwatchctl token list` and `heartwatchctl api-token list` \
         tell the names of tokens)"
    );
    Problem::new(StatusCode::BAD_REQUEST, "secret", "a secret is not a name", detail)
}

/// Refuses a request that has a secret in its path or query: it would be looked up, told back, and journaled.
/// 32 hexadecimal digits are a host's id, but no token's name: that is what a join token looks like without
/// its beginning. 64 are a key; but they are a host's name if a host is called so.
async fn names_secret(api: &Api, request: Request) -> Result<Request, Problem> {
    let (mut parts, body) = request.into_parts();
    let of_tokens =
        parts.extensions.get::<MatchedPath>().is_some_and(|p| p.as_str().contains("tokens/"));
    // Not UTF-8: its route says so.
    if let Ok(names) = RawPathParams::from_request_parts(&mut parts, &()).await {
        for (_, name) in &names {
            let is_one = secret::is_no_name(name) || of_tokens && secret::is_token_digits(name);
            if is_one && (of_tokens || api.view.by_name(name).is_empty()) {
                return Err(secret_at("the path"));
            }
        }
    }
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    for (key, value) in query.map(|q| q.0).unwrap_or_default() {
        if secret::is_no_name(&value) || secret::is_in(&key) {
            return Err(secret_at("the query"));
        }
    }
    Ok(Request::from_parts(parts, body))
}

fn refuse(problem: Problem, wait: Option<Duration>) -> Response {
    let mut response = problem.into_response();
    if let Some(wait) = wait {
        let secs = HeaderValue::from(wait.as_millis().div_ceil(1_000) as u64);
        response.headers_mut().insert(header::RETRY_AFTER, secs);
    }
    response
}

/// Why a request is refused, in which words, and how long to wait.
type Refused = Box<(Refusal, Problem, Option<Duration>)>;

/// The token that a request shows. `Err`: a header that is none.
fn shown(request: &Request) -> Result<Option<&str>, ()> {
    let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
    let value = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(()),
    };
    let (scheme, token) = value.to_str().ok().and_then(|v| v.split_once(' ')).ok_or(())?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(()) }
}

/// Who asks, if they may. `None`: nobody whom we know, for what anybody may ask.
fn admit(
    api: &Api,
    peer: &Peer,
    rule: Option<&Rule>,
    request: &Request,
) -> Result<Option<Who>, Refused> {
    let need = rule.map_or(Need::Scope(Scope::Read), |rule| rule.need);
    let own_name = api.names.check(request, peer);
    let may_read_freely = peer.local && !peer.tls && api.loopback_reads;
    let reads_freely = may_read_freely && own_name.is_ok();
    let without = match need {
        Need::Nothing => Some(reads_freely.then(Who::anybody)),
        Need::Scope(Scope::Read) if reads_freely => Some(Some(Who::anybody())),
        Need::Scope(_) => None,
    };
    let refusal = match shown(request) {
        Ok(Some(token)) => match identify(api, token) {
            Shown::Right(who) => return may(need, who).map(Some),
            Shown::Ended => Refusal::Ended,
            Shown::Unknown => Refusal::Wrong,
        },
        Ok(None) => Refusal::Missing,
        Err(()) => Refusal::Wrong,
    };
    if let (Refusal::Missing, Some(without)) = (refusal, without) {
        return Ok(without);
    }
    if let (Refusal::Missing, Need::Scope(Scope::Read), true, Err(name)) =
        (refusal, need, may_read_freely, &own_name)
    {
        return Err(Box::new((Refusal::Name, unknown_name(name), None)));
    }
    let title = "a bearer token is needed";
    let unauthorized =
        |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", title, detail);
    let detail = match refusal {
        Refusal::Missing => {
            let detail = "send `Authorization: Bearer TOKEN`, with the token of the controller's \
                          api_token_file or one that `heartwatchctl api-token create` made";
            return Err(Box::new((refusal, unauthorized(detail), None)));
        }
        Refusal::Ended => {
            "the token has ended: ask for a new one (`heartwatchctl api-token create`)"
        }
        _ if matches!(shown(request), Ok(Some(_))) => "the token is not this controller's",
        _ => "one Authorization header of the form `Bearer TOKEN` is needed",
    };
    let now = api.clock.now();
    api.guard.log(peer, now);
    let mut throttle = api.guard.throttle.lock().unwrap_or_else(PoisonError::into_inner);
    match throttle.fail(peer.address, now) {
        Ok(()) => Err(Box::new((refusal, unauthorized(detail), None))),
        Err(wait) => {
            let detail =
                "too many wrong tokens came from this address; a right one is taken at any time";
            let title = "too many failures";
            let status = StatusCode::TOO_MANY_REQUESTS;
            let problem = Problem::new(status, "too-many-failures", title, detail);
            Err(Box::new((Refusal::Throttled, problem, Some(wait))))
        }
    }
}

/// No web page's name may be made to point here, and read what this machine's own people may.
fn unknown_name(name: &str) -> Problem {
    let detail = format!(
        "without a token this machine is answered only if it asks for itself by a name that is surely its own, \
         and `{name}` might be a web page's: ask for localhost or 127.0.0.1, send a token, or add the name to \
         `api.host_names` in the controller's config"
    );
    let title = "the request is for another name";
    Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown-name", title, detail)
}

/// Whose token this is. The comparison with the file's is in constant time; on the others see [`book`].
fn identify(api: &Api, token: &str) -> Shown {
    if api.token.matches(token) {
        return Shown::Right(Who { name: FILE_TOKEN.to_owned(), scope: Scope::Admin });
    }
    let now = api.clock.wall();
    let shown = api.tokens.look_up(token, now);
    if let Shown::Right(who) = &shown {
        book::used(&api.tokens, &api.store, token, &who.name, now);
    }
    shown
}

fn may(need: Need, who: Who) -> Result<Who, Refused> {
    match need {
        Need::Scope(needed) if who.scope < needed => {
            let detail = format!(
                "this needs the scope `{needed}`, and the token `{}` has `{}`",
                who.name, who.scope
            );
            let title = "the token may not do this";
            let problem = Problem::new(StatusCode::FORBIDDEN, "scope", title, detail);
            Err(Box::new((Refusal::Scope, problem, None)))
        }
        _ => Ok(who),
    }
}

/// Lets through what may change something, and journals it.
async fn change(
    api: &Api,
    peer: &Peer,
    rule: &Rule,
    who: &Who,
    request: Request,
    next: Next,
) -> Response {
    let is_admin = rule.need == Need::Scope(Scope::Admin);
    if is_admin && let Err(e) = api.store.check().await {
        api.guard.count(Refusal::Journal);
        let detail = format!(
            "what needs the scope `admin` is not done while it cannot be journaled ({e}): see /readyz"
        );
        let (status, title) = (StatusCode::SERVICE_UNAVAILABLE, "the journal cannot be written");
        return Problem::new(status, "journal-unavailable", title, detail).into_response();
    }
    let (request, body) = match body::whole(request, rule.body_max).await {
        Ok(both) => both,
        Err(problem) => return problem.into_response(),
    };
    if let Some(key) = audit::secret_in(rule.told.unwrap_or_default(), &body) {
        api.guard.count(Refusal::Secret);
        return secret_at(&format!("`{key}`")).into_response();
    }
    let entry = audit::Entry::new(who, peer, rule, request.uri(), &body);
    let ticket = Ticket { api: api.clone(), entry: Some(entry), is_admin };
    let response = next.run(request).await;
    ticket.journal(response.status()).await;
    response
}

/// What must be journaled, whatever becomes of the request: a route that is broken off, because it took too
/// long or its client went away, may have changed something all the same.
struct Ticket {
    api: Api,
    entry: Option<audit::Entry>,
    is_admin: bool,
}

/// What an entry tells as the answer of a request that was broken off.
const BROKEN_OFF: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

impl Ticket {
    async fn journal(mut self, status: StatusCode) {
        let Some(entry) = self.entry.take() else { return };
        let until = if self.is_admin { Journaled::Written } else { Journaled::Queued };
        write(&self.api, entry, status, until).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let api = self.api.clone();
        // None: the controller is stopping, and nothing is journaled any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move { write(&api, entry, BROKEN_OFF, Journaled::Queued).await });
    }
}

async fn write(api: &Api, entry: audit::Entry, status: StatusCode, until: Journaled) {
    let data = entry.data(status.as_u16());
    let text = serde_json::to_string(&data).unwrap_or_default();
    // In the log at once: the journal may have to wait for its disk.
    log::info!("API: {text}");
    match api.control.audit(data, until).await {
        Ok(()) => api.guard.audited.fetch_add(1, Ordering::Relaxed),
        Err(e) => {
            log::error!("API: this could not be journaled ({e}): {text}");
            api.guard.audit_failed.fetch_add(1, Ordering::Relaxed)
        }
    };
}

/// Refuses TLS clients without a certificate, where `api.client_ca_file` asks for one. The handshake cannot:
/// it is over before a path is known.
fn check_certificate(tls: Option<&Tls>, peer: &Peer, path: &str) -> Result<(), Problem> {
    let asked = peer.tls && tls.is_some_and(Tls::asks_clients);
    if !asked || peer.certificate || path.starts_with(ENROL) {
        return Ok(());
    }
    let detail = "the controller's api.client_ca_file asks for a certificate: show one (heartwatchctl \
                  --client-cert and --client-key)";
    let title = "a client certificate is needed";
    Err(Problem::new(StatusCode::FORBIDDEN, "certificate-needed", title, detail))
}

/// What `/metrics` shows of it all.
pub(super) fn families(f: &mut Families, api: &Api) {
    let guard = &api.guard;
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let help = "Requests that the API refused: for want of a certificate, a token, its scope or a journal.";
    let refused = Refusal::ALL
        .map(|r| (vec![("reason", r.as_str().to_owned())], count(&guard.refused[r as usize])));
    f.counters("api_refused_total", help, refused);
    let by = |value: &str| vec![("outcome", value.to_owned())];
    let help =
        "Calls that may have changed something: journaled (or waiting for that), or only logged.";
    let audited = [(by("journaled"), &guard.audited), (by("failed"), &guard.audit_failed)];
    f.counters("api_audit_total", help, audited.map(|(labels, n)| (labels, count(n))));
    f.gauge("api_tokens", "API tokens given out, ended ones too.", api.tokens.len() as f64);
    if let Some(tls) = &api.tls {
        tls_families(f, tls, api.clock.wall());
    }
}

fn tls_families(f: &mut Families, tls: &Tls, now: Wall) {
    let help = "Time until the API's certificate ends; negative: since. A day has 86400.";
    f.gauge("api_certificate_left_seconds", help, tls.current().days_left(now) * 86_400.0);
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let c = &tls.counts;
    let by = |value: &str| vec![("outcome", value.to_owned())];
    let help = "Changes of the API's certificate files: taken, or refused and the one before kept.";
    let reloads = [(by("taken"), count(&c.reloads)), (by("refused"), count(&c.reloads_refused))];
    f.counters("api_certificate_reloads_total", help, reloads);
    let help = "TLS handshakes of the API.";
    let handshakes =
        [(by("done"), count(&c.handshakes)), (by("failed"), count(&c.handshakes_failed))];
    f.counters("api_tls_handshakes_total", help, handshakes);
    let help = "Connections from other machines that spoke plain HTTP and were told to use https.";
    f.counters("api_plain_refused_total", help, [(Vec::new(), count(&c.plain_refused))]);
    let help = "Connections that the API refused, as their source had as many as one may have.";
    let refused = [(Vec::new(), count(&c.connections_refused))];
    f.counters("api_connections_refused_total", help, refused);
}
