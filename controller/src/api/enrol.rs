//! Routes by which hosts get keys, and by which operators let them.
//!
//! | Route | Who | Does |
//! | --- | --- | --- |
//! | `GET /v1/enrol/nonce` | anybody | a nonce for a proof |
//! | `POST /v1/enrol` | who has a join token | a host's key |
//! | `POST /v1/enrol/renew` | who proves a host's present key | its next key |
//! | `POST /v1/enrol/standing` | who proves a host's key, revoked or not | whether it was revoked, when and why |
//! | `GET`, `POST /v1/join-tokens`, `DELETE /v1/join-tokens/{name}` | ▲ | join tokens; a secret is told once |
//! | `GET /v1/identities?after=` | ▲ | who came in by which, and who was revoked |
//! | `POST`, `DELETE /v1/hosts/{host}/revoke` | ▲ | `{"by", "reason"}`: its keys are dead, and it leaves the registry (`already`: it was before, and that reason stands; `dropped`: its orders that nobody will get); `DELETE` lets it enrol again |
//! | `GET /v1/secrets`, `POST /v1/secrets/rotate`, `/reload`, `/{key id}/retire` | ▲ | fleet secrets, never themselves |
//!
//! ▲: scope `admin`; changes are audited. `retire` and `reload` refuse to silence hosts that lately proved
//! themselves, but for `?force=true`.
//!
//! The first four hand out keys, or speak of them, and are therefore refused over plain HTTP from another
//! machine (as is every route of the API).

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use heartwatch_common::enrol::{
    EnrolAnswer, EnrolRequest, NonceAnswer, RenewAnswer, RenewRequest, StandingAnswer,
    StandingRequest,
};
use heartwatch_common::id::{HostId, KeyId};
use serde::{Deserialize, Serialize};

use super::access::Who;
use super::extract::{Body, Name, Params, Trusted, shorten};
use super::metrics::Families;
use super::problem::Problem;
use super::types::RevokedJson;
use super::{Api, dropped, holds, hosts};
use crate::control::ControlError;
use crate::enrol::decide::{Enrolment, Refusal, TokenRow};
use crate::enrol::{EnrolError, LetIn, NewToken, SecretStatus, TokenMade};

/// All of these routes.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/enrol/nonce", get(nonce))
        .route("/v1/enrol", post(enrol))
        .route("/v1/enrol/renew", post(renew))
        .route("/v1/enrol/standing", post(standing))
        .route("/v1/join-tokens", get(tokens).post(create))
        .route("/v1/join-tokens/{name}", delete(revoke_token))
        .route("/v1/identities", get(enrolments))
        .route("/v1/hosts/{host}/revoke", post(revoke).delete(lift))
        .route("/v1/secrets", get(secrets))
        .route("/v1/secrets/rotate", post(rotate))
        .route("/v1/secrets/reload", post(reload))
        .route("/v1/secrets/{key_id}/retire", post(retire))
}

impl From<EnrolError> for Problem {
    fn from(e: EnrolError) -> Self {
        let detail = e.to_string();
        let (status, slug, title) = match &e {
            EnrolError::Refused(refusal) => {
                let status = match refusal {
                    Refusal::UnknownToken => StatusCode::UNAUTHORIZED,
                    Refusal::TokenRevoked(_)
                    | Refusal::TokenExpired(_)
                    | Refusal::TokenUsedUp(_)
                    | Refusal::HostRevoked(_) => StatusCode::FORBIDDEN,
                    Refusal::Taken(_) | Refusal::Exhausted(_) => StatusCode::CONFLICT,
                };
                (status, refusal.slug(), "the host may not enrol")
            }
            EnrolError::Invalid(_) => return Self::bad_request(detail),
            EnrolError::Unproved(_) => {
                (StatusCode::FORBIDDEN, "unproved", "the host's key is not proved")
            }
            EnrolError::Conflict(_) => {
                (StatusCode::CONFLICT, "conflict", "this does not fit how things stand")
            }
            EnrolError::NotFound(_) => (StatusCode::NOT_FOUND, "unknown", "there is no such thing"),
            EnrolError::Busy | EnrolError::Secrets(_) => {
                return Self::of_status(StatusCode::SERVICE_UNAVAILABLE, &detail);
            }
            EnrolError::Store(_) => {
                let EnrolError::Store(e) = e else { unreachable!("matched just now") };
                return e.into();
            }
        };
        Self::new(status, slug, title, detail)
    }
}

async fn nonce(State(api): State<Api>, params: Params) -> Result<Json<NonceAnswer>, Problem> {
    params.only(&[])?;
    Ok(Json(NonceAnswer { nonce: api.enrol.nonce() }))
}

async fn enrol(
    State(api): State<Api>,
    params: Params,
    Body(ask): Body<EnrolRequest>,
) -> Result<Json<EnrolAnswer>, Problem> {
    params.only(&[])?;
    let LetIn { answer, expected, news, .. } = api.enrol.enrol(ask).await?;
    // It is granted whatever becomes of this: its hello would register it too.
    if let Err(e) = api.control.import(vec![expected]).await {
        let called = api.view.called(answer.host);
        log::warn!("host {called} enrolled, but is not shown as pending: {e}");
    }
    if let Some(news) = news
        && let Err(e) = api.control.enrolled(answer.host, news).await
    {
        let called = api.view.called(answer.host);
        log::warn!("host {called} enrolled, which is not in the journal: {e}");
    }
    Ok(Json(answer))
}

async fn renew(
    State(api): State<Api>,
    params: Params,
    Body(ask): Body<RenewRequest>,
) -> Result<Json<RenewAnswer>, Problem> {
    params.only(&[])?;
    Ok(Json(api.enrol.renew(&ask)?))
}

async fn standing(
    State(api): State<Api>,
    params: Params,
    Body(ask): Body<StandingRequest>,
) -> Result<Json<StandingAnswer>, Problem> {
    params.only(&[])?;
    Ok(Json(api.enrol.standing(&ask).await?))
}

/// Answer of `GET /v1/join-tokens`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TokensJson {
    /// The newest first.
    pub(crate) tokens: Vec<TokenRow>,
}

async fn tokens(State(api): State<Api>, params: Params) -> Result<Json<TokensJson>, Problem> {
    params.only(&[])?;
    Ok(Json(TokensJson { tokens: api.enrol.tokens().await? }))
}

async fn create(
    _: Trusted,
    Extension(who): Extension<Who>,
    State(api): State<Api>,
    params: Params,
    Body(wish): Body<NewToken>,
) -> Result<Json<TokenMade>, Problem> {
    params.only(&[])?;
    let wish = NewToken { by: who.said(&wish.by), ..wish };
    Ok(Json(api.enrol.create(wish).await?))
}

async fn revoke_token(
    _: Trusted,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<StatusCode, Problem> {
    params.only(&[])?;
    api.enrol.revoke_token(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What `/metrics` shows of it.
pub(super) fn families(f: &mut Families, api: &Api) {
    let counts = api.enrol.counts();
    let by = |key: &'static str| move |(value, n): (&str, u64)| (vec![(key, value.to_owned())], n);
    let help = "Enrolments that were granted: of a new host, one with a new key, one that kept its own, or repeated.";
    f.counters("enrolments_total", help, counts.granted().map(by("outcome")));
    let help = "Enrolments that were refused, by reason.";
    f.counters("enrolments_refused_total", help, counts.refused().map(by("reason")));
    let help = "Keys that hosts renewed.";
    f.counters("key_renewals_total", help, [(Vec::new(), counts.renewals())]);
    let help = "Renewals of keys that were refused, by reason.";
    f.counters("key_renewals_refused_total", help, counts.renewals_refused().map(by("reason")));
    f.gauge("hosts_revoked", "Hosts whose keys are revoked.", api.enrol.revoked_len() as f64);
}

/// Answer of `GET /v1/identities`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EnrolmentsJson {
    /// By host.
    pub(crate) enrolments: Vec<Enrolment>,
}

async fn enrolments(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<EnrolmentsJson>, Problem> {
    let params = params.only(&["after"])?;
    let after = params.parsed::<HostId>("after")?;
    let mut enrolments = api.enrol.enrolments(after).await?;
    for e in &mut enrolments {
        // What it is called now, where it is known.
        let now = api.view.get(e.host).map(|known| known.row.name).unwrap_or_default();
        if !now.is_empty() {
            e.name = now;
        }
    }
    Ok(Json(EnrolmentsJson { enrolments }))
}

/// Body of `POST /v1/hosts/{host}/revoke`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeBody {
    /// Who says so; if nobody is named, the token's name stands for it.
    #[serde(default)]
    pub(crate) by: String,
    /// Why; others will ask.
    pub(crate) reason: String,
}

async fn revoke(
    _: Trusted,
    Extension(who): Extension<Who>,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
    Body(body): Body<RevokeBody>,
) -> Result<Json<RevokedJson>, Problem> {
    params.only(&[])?;
    if body.reason.trim().is_empty() {
        return Err(Problem::bad_request("`reason` must say why: others will ask"));
    }
    let reason = holds::check("reason", &body.reason, holds::REASON_LEN_MAX)?;
    holds::without_secret("by", &body.by)?;
    // A host that is not registered can be revoked too, by its id: its key may be in wrong hands.
    let host = match hosts::find_id(&api, &name) {
        Ok(host) => host,
        Err(unknown) => api.enrol.revocation(&name).await?.ok_or(unknown)?.host,
    };
    let by = who.said(&body.by);
    let orders = dropped::unfinished(&api, host).await?;
    let gone = api.enrol.revoke(host, &format!("{reason} ({by})")).await?;
    match api.control.revoke(host, gone.enrolment.reason.clone()).await {
        Ok(()) | Err(ControlError::UnknownHost(_)) => {}
        Err(e) => return Err(e.into()),
    }
    let dropped = dropped::become_of(&api, host, orders).await?;
    Ok(Json(RevokedJson { revoked: gone, dropped }))
}

async fn lift(
    _: Trusted,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<Enrolment>, Problem> {
    params.only(&[])?;
    // Its name left the registry with it; another host may have it by now.
    let host = match api.enrol.revocation(&name).await? {
        Some(revoked) => revoked.host,
        None => hosts::find_id(&api, &name).map_err(|unknown| match unknown.status() {
            StatusCode::NOT_FOUND => Problem {
                detail: format!(
                    "no host is revoked under the name `{0}`, and none is registered: if its revocation was lifted \
                     before, it may enrol; `heartwatchctl hosts enrolled` lists who is what",
                    shorten(&name)
                ),
                ..unknown
            },
            _ => unknown,
        })?,
    };
    Ok(Json(api.enrol.lift(host).await?))
}

/// Answer of `GET /v1/secrets` and of what changes them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SecretsJson {
    /// The current one first.
    pub(crate) secrets: Vec<SecretStatus>,
}

async fn secrets(State(api): State<Api>, params: Params) -> Result<Json<SecretsJson>, Problem> {
    params.only(&[])?;
    Ok(Json(SecretsJson { secrets: api.enrol.secrets().await? }))
}

async fn rotate(
    _: Trusted,
    State(api): State<Api>,
    params: Params,
) -> Result<Json<SecretsJson>, Problem> {
    params.only(&[])?;
    Ok(Json(SecretsJson { secrets: api.enrol.rotate().await? }))
}

async fn reload(
    _: Trusted,
    State(api): State<Api>,
    params: Params,
) -> Result<Json<SecretsJson>, Problem> {
    let force = params.only(&["force"])?.parsed::<bool>("force")?.unwrap_or(false);
    Ok(Json(SecretsJson { secrets: api.enrol.reload(force).await? }))
}

async fn retire(
    _: Trusted,
    State(api): State<Api>,
    Name(key_id): Name,
    params: Params,
) -> Result<Json<SecretsJson>, Problem> {
    let params = params.only(&["force"])?;
    let key_id = key_id
        .parse()
        .map(KeyId)
        .map_err(|_| Problem::bad_request("a key id is a number from 0 to 255"))?;
    let force = params.parsed::<bool>("force")?.unwrap_or(false);
    Ok(Json(SecretsJson { secrets: api.enrol.retire(key_id, force).await? }))
}
