//! `heartwatchctl api-token`: tokens for people and programs.

use std::path::PathBuf;

use clap::Subcommand;
use heartwatch_common::config::Span;
use serde_json::json;

use super::client::ClientError;
use super::place::Place;
use super::remote::Run;
use super::text::{Table, between, clean};
use super::{CtlError, chain};
use crate::api::Scope;
use crate::api::types::{TokenBody, TokenMade, TokensJson};

#[derive(Debug, Subcommand)]
pub(super) enum ApiToken {
    /// Makes a token and shows it, this once.
    Create {
        /// For whom it is, such as grafana: up to 63 letters, digits, `.`, `_` or `-`.
        #[arg(long)]
        name: String,
        /// What it may do: read, operate (that too, and steer), admin (everything).
        #[arg(long)]
        scope: Scope,
        /// For how long, 1m to 3650d [default: until it is revoked].
        #[arg(long)]
        ttl: Option<Span>,
        /// Writes it into this new file of mode 0600, and not to the terminal. The file must not exist; it is
        /// made before the token is.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Lists tokens by name, without themselves.
    List,
    /// Revokes a token: it is refused from now on.
    Revoke {
        /// Its name.
        name: String,
    },
}

impl Run<'_> {
    pub(super) async fn api_token(&mut self, command: &ApiToken) -> Result<(), CtlError> {
        match command {
            ApiToken::Create { name, scope, ttl, out } => {
                self.create_token(name, *scope, *ttl, out.as_ref()).await
            }
            ApiToken::List => {
                let answer = self.client.tokens().await?;
                self.print(answer, table)
            }
            ApiToken::Revoke { name } => {
                let name = super::enrol::name_of_token(name, "api-token list")?;
                self.client.revoke_token(name).await?;
                if self.global.json {
                    return self.json(&json!({"revoked": name}));
                }
                Ok(writeln!(self.out, "{} is refused from now on", clean(name))?)
            }
        }
    }

    async fn create_token(
        &mut self,
        name: &str,
        scope: Scope,
        ttl: Option<Span>,
        out: Option<&PathBuf>,
    ) -> Result<(), CtlError> {
        let body = TokenBody { name: name.to_owned(), scope, ttl };
        let Some(path) = out else {
            let made = self.create(&body).await?;
            let shown = if self.global.json {
                self.json(&made)
            } else {
                writeln!(self.out, "{}", clean(&made.token)).map_err(CtlError::from)
            };
            let shown = shown.and_then(|()| Ok(self.out.flush()?));
            return match shown {
                Err(CtlError::Output(e)) => {
                    Err(self.take_back(name, &format!("cannot print the token: {e}")).await)
                }
                other => other,
            };
        };
        // The place first: a token that was made and could not be kept is one that nobody has.
        let place = Place::take(path).map_err(CtlError::Failed)?;
        let made = self.create(&body).await?;
        if let Err(e) = place.fill(&made.token) {
            return Err(self
                .take_back(name, &format!("cannot write {}: {e}", path.display()))
                .await);
        }
        if self.global.json {
            return self.json(&made.row);
        }
        Ok(writeln!(self.out, "the token of {} is in {}", clean(name), path.display())?)
    }

    async fn create(&self, body: &TokenBody) -> Result<TokenMade, CtlError> {
        self.client.create_token(body).await.map_err(|e| match e {
            // Nobody knows what has become of it: what was asked may still happen.
            ClientError::TimedOut { .. } | ClientError::Broken { .. } | ClientError::Form(_) => {
                CtlError::Failed(format!(
                    "{}; if `heartwatchctl api-token list` shows {name}, nobody has its token: \
                     `heartwatchctl api-token revoke {name}`, and make it again",
                    chain(&e),
                    name = clean(&body.name)
                ))
            }
            e => e.into(),
        })
    }

    /// Revokes a token that was made and could not be handed over.
    async fn take_back(&self, name: &str, why: &str) -> CtlError {
        let name_shown = clean(name);
        CtlError::Failed(match self.client.revoke_token(name).await {
            Ok(()) => format!("{why}; the token of {name_shown} was revoked again"),
            Err(e) => format!(
                "{why}; and nobody has the token of {name_shown} now, which cannot be revoked either ({}): \
                 run `heartwatchctl api-token revoke {name_shown}`",
                chain(&e)
            ),
        })
    }
}

fn table(out: &mut dyn std::io::Write, page: TokensJson) -> std::io::Result<()> {
    let mut table = Table::new(&["NAME", "SCOPE", "MADE", "ENDS", "LAST USED"], &[]);
    for row in &page.tokens {
        let ends = match row.expires_ms {
            None => "when revoked".to_owned(),
            Some(end) if end.0 <= page.now_ms.0 => "has ended".to_owned(),
            Some(end) => format!("in {}", between(page.now_ms, end)),
        };
        let used = row
            .last_used_ms
            .map_or_else(|| "never".to_owned(), |at| format!("{} ago", between(at, page.now_ms)));
        table.row([
            row.name.clone(),
            row.scope.to_string(),
            format!("{} ago", between(row.created_ms, page.now_ms)),
            ends,
            used,
        ]);
    }
    table.write(out)
}
