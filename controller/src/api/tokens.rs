//! Tokens for people and programs: given out, listed, revoked.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use heartwatch_common::config::Span;
use heartwatch_common::time::Wall;
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};

use super::access::{AddError, TokenRow};
use super::extract::{Body, Name, Params, Trusted};
use super::problem::Problem;
use super::types::{TokenBody, TokenMade, TokensJson};
use super::{Api, ApiToken};

/// Shortest life of a token.
const TTL_MIN: Duration = Duration::from_secs(60);
/// Longest, if it has an end at all.
const TTL_MAX: Duration = Duration::from_secs(3_650 * 86_400);

/// `GET /v1/tokens`
pub(super) async fn list(
    _: Trusted,
    State(api): State<Api>,
    params: Params,
) -> Result<Json<TokensJson>, Problem> {
    params.only(&[])?;
    Ok(Json(TokensJson { tokens: api.tokens.list(), now_ms: api.clock.wall() }))
}

/// `POST /v1/tokens`
pub(super) async fn create(
    _: Trusted,
    State(api): State<Api>,
    params: Params,
    Body(body): Body<TokenBody>,
) -> Result<(StatusCode, Json<TokenMade>), Problem> {
    params.only(&[])?;
    let now = api.clock.wall();
    let ends = |ttl: Span| {
        if !(TTL_MIN..=TTL_MAX).contains(&ttl.0) {
            let detail =
                "`ttl`: 1m to 3650d are allowed; without it a token lasts until it is revoked";
            return Err(Problem::bad_request(detail));
        }
        Ok(Wall(now.0.saturating_add(i64::try_from(ttl.0.as_millis()).unwrap_or(i64::MAX))))
    };
    let row = TokenRow {
        name: body.name,
        scope: body.scope,
        created_ms: now,
        expires_ms: body.ttl.map(ends).transpose()?,
        last_used_ms: None,
    };
    let mut rng = StdRng::try_from_rng(&mut SysRng).map_err(|e| {
        let detail = format!("the system gives no randomness: {e}");
        Problem::of_status(StatusCode::SERVICE_UNAVAILABLE, &detail)
    })?;
    let token = ApiToken::draw(&mut rng);
    api.tokens.add(&token, row.clone(), now, &*api.store).await?;
    Ok((StatusCode::CREATED, Json(TokenMade { token: token.to_string(), row })))
}

/// `DELETE /v1/tokens/{name}`
pub(super) async fn revoke(
    _: Trusted,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<StatusCode, Problem> {
    params.only(&[])?;
    if api.tokens.revoke(&name, &*api.store).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = format!(
        "no token `{}` is good: it was revoked before, has ended, or never was; `heartwatchctl api-token list` \
         shows those that are there",
        super::extract::shorten(&name)
    );
    Err(Problem::new(StatusCode::NOT_FOUND, "unknown-token", "no such token", detail))
}

impl From<AddError> for Problem {
    fn from(e: AddError) -> Self {
        let text = e.to_string();
        match e {
            AddError::Name => Self::bad_request(text),
            AddError::Taken(_) => {
                Self::new(StatusCode::CONFLICT, "token-exists", "the name is taken", text)
            }
            AddError::Full => {
                Self::new(StatusCode::CONFLICT, "too-many-tokens", "too many tokens", text)
            }
            AddError::Store(e) => e.into(),
        }
    }
}
