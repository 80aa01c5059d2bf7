//! How hosts get keys: join tokens, enrolments, renewals, revocations, and the fleet secrets behind them.
//!
//! [`decide`] says who may come in, [`nonces`] makes proofs fresh (both pure); [`registry`] is what shards
//! need to know; this is the shell that asks the store, tells the shards, and writes the secret file.
//! What is said on the wire: [`heartwatch_common::enrol`]. Why it is so: ADR 22.
//!
//! Bounds: [`TOKENS_MAX`] tokens, [`AT_ONCE_MAX`] enrolments and renewals at a time, and nothing is asked of
//! the store for a token that nobody made.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use heartwatch_common::auth::Keyring;
use heartwatch_common::enrol::{
    EnrolAnswer, EnrolRequest, Exchange, Hex, JoinToken, NAME_LEN_MAX, NONCE_LEN, Pin, Purpose,
    RenewAnswer, RenewRequest, StandingAnswer, StandingRequest,
};
use heartwatch_common::id::{ControllerId, Generation, HostId, KeyId};
use heartwatch_common::time::{Clock, Wall};
use heartwatch_common::words;
use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::canary::CANARY;
use crate::control::ImportHost;
use crate::shard::route::shard_of;
use crate::shard::worker::{Command as ShardCommand, ShardHandle};
use crate::store::StoreError;
use crate::view::View;
use counts::{Counts, Gained};
use decide::{Asked, Enrolment, Grant, Refusal, TokenRow};
use nonces::Nonces;
use registry::Enrolled;

pub mod counts;
pub mod decide;
pub mod nonces;
pub mod registry;
mod secrets;

/// Join tokens that are kept, the expired ones of the last month among them.
pub const TOKENS_MAX: usize = 10_000;
/// Enrolments and renewals under way at once; more are told to come back.
pub const AT_ONCE_MAX: usize = 32;
/// Longest life of a join token.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Most hosts that one join token lets in.
pub const USES_MAX: u32 = 10_000_000;
/// A token's name has at most this many bytes.
pub const TOKEN_NAME_LEN_MAX: usize = 64;

/// The store's part in it. All writes are one transaction each.
#[async_trait]
pub trait EnrolStore: Send + Sync {
    /// Keeps a token. `false`: there is one of that name or secret.
    async fn add_token(&self, hash: Hex<32>, new: TokenRow) -> Result<bool, StoreError>;

    /// All of them, the newest first.
    async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError>;

    /// Hashes of the secrets of all of them.
    async fn token_hashes(&self) -> Result<Vec<Hex<32>>, StoreError>;

    /// Ends one. `false`: there is none of that name.
    async fn revoke_token(&self, name: String, at: Wall) -> Result<bool, StoreError>;

    /// Decides, takes a use if it is a new enrolment, and keeps it.
    async fn enrol(&self, asked: Asked) -> Result<Result<Grant, Refusal>, StoreError>;

    /// Raises a host's least generation above all that it was given. Revoking again changes nothing.
    async fn revoke_host(&self, what: Revocation) -> Result<Revoked, StoreError>;

    /// Revoked hosts that were called so; two at most.
    async fn revoked_named(&self, name: String) -> Result<Vec<Enrolment>, StoreError>;

    /// Lets a revoked host enrol again; its old keys stay dead. `None`: it was not revoked.
    async fn lift(&self, host: HostId) -> Result<Option<Enrolment>, StoreError>;

    /// Enrolments by host, after one, a page of [`crate::store::READ_LEN_MAX`].
    async fn enrolments(&self, after: Option<HostId>) -> Result<Vec<Enrolment>, StoreError>;

    /// One host's.
    async fn enrolment(&self, host: HostId) -> Result<Option<Enrolment>, StoreError>;
}

/// Whose keys are to be revoked.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Whose.
    pub host: HostId,
    /// What it is called; empty: it is not known.
    pub name: String,
    /// The least generation that is accepted of it now.
    pub generation: Generation,
    /// Why, and who says so.
    pub reason: String,
    /// Random, for a host that never enrolled.
    pub fresh: Hex<16>,
    /// Now.
    pub at: Wall,
}

/// A host that is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// How it stands.
    #[serde(flatten)]
    pub enrolment: Enrolment,
    /// It was revoked before, and that reason stands.
    pub already: bool,
}

/// A host that was let in.
pub struct LetIn {
    /// What it is told.
    pub answer: EnrolAnswer,
    /// How it is to be registered, as pending, if it is not known.
    pub expected: ImportHost,
    /// What it changed.
    pub gained: Gained,
    /// What the journal keeps of it (`host.enrolled`); none of a repetition.
    pub news: Option<Map<String, Value>>,
}

/// What the journal keeps of an enrolment, nothing secret; `asked_for`: the id that was taken.
fn news(e: &Enrolment, gained: Gained, asked_for: Option<HostId>) -> Option<Map<String, Value>> {
    let (token, generation) = (&e.token, e.generation);
    let reason = match gained {
        Gained::Repeated => return None,
        Gained::New => format!("let in by the join token `{token}`"),
        Gained::Rekeyed => format!(
            "given a new key (generation {generation}) by the join token `{token}`: its older keys are dead"
        ),
        Gained::Kept => format!("proved its key, and enrolled again by the join token `{token}`"),
    };
    let instead = asked_for.map_or_else(String::new, |host| {
        format!("; it asked for the id {host}, which another machine has")
    });
    let enrolment = json!({
        "how": gained.as_str(),
        "token": token,
        "generation": generation,
        "labels": e.labels,
        "asked_for": asked_for,
    });
    Some(Map::from_iter([
        ("reason".to_owned(), json!(format!("{reason}{instead}"))),
        ("enrolment".to_owned(), enrolment),
    ]))
}

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// It is not granted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The proof is not one.
    #[error("{0}")]
    Unproved(String),
    /// What is asked for does not fit how things stand.
    #[error("{0}")]
    Conflict(String),
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// Too many at once.
    #[error("too many enrolments at once: try again in a moment")]
    Busy,
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The secret file could not be written or read.
    #[error("{0}")]
    Secrets(String),
}

/// A wish for a join token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name; drawn if not given.
    #[serde(default)]
    pub name: Option<String>,
    /// How long it lives, at most [`TTL_MAX`].
    pub ttl: heartwatch_common::config::Span,
    /// Hosts that it lets in, 1 to [`USES_MAX`].
    pub uses: u32,
    /// Labels that they get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether a host whose id is taken gets one of its own.
    #[serde(default)]
    pub clones: bool,
    /// Who says so.
    #[serde(default)]
    pub by: String,
}

/// A join token that was made. Holds its text: secret, told this once.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenMade {
    /// `hwj1_…`
    pub token: Zeroizing<String>,
    /// All else about it.
    #[serde(flatten)]
    pub row: TokenRow,
}

/// One fleet secret, without itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretStatus {
    /// Its key id.
    pub key_id: KeyId,
    /// `current` (new keys), `live` (its keys beat), `renew-only`.
    pub state: String,
    /// Hosts that beat under it since the controller's start.
    pub hosts: u64,
}

/// What the service works with.
pub struct Parts {
    /// What survives.
    pub store: Arc<dyn EnrolStore>,
    /// What shards know.
    pub enrolled: Arc<Enrolled>,
    /// The fleet secrets.
    pub keyring: Keyring,
    /// Their file.
    pub secret_file: PathBuf,
    /// The registry.
    pub view: Arc<View>,
    /// Who watches.
    pub shards: Vec<ShardHandle>,
    /// Which controller.
    pub controller: ControllerId,
    /// UDP port for beats.
    pub port: u16,
    /// Where hosts are told to beat to; empty: to the host of the URL by which they enrol.
    pub beat_addresses: Vec<String>,
    /// The certificate that the API shows.
    pub pin: Box<dyn Fn() -> Option<Pin> + Send + Sync>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// From the operating system's generator.
    pub rng: StdRng,
}

/// See the module.
pub struct Enrolling {
    p: Parts,
    keyring: Arc<RwLock<Arc<Keyring>>>,
    rng: Mutex<StdRng>,
    nonces: Mutex<Nonces>,
    tokens: Mutex<HashSet<Hex<32>>>,
    places: Semaphore,
    counts: Counts,
    /// One change of the secret file at a time.
    writing: tokio::sync::Mutex<()>,
}

fn held<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a text is short and of one line.
fn plain(what: &str, text: &str, len_max: usize) -> Result<(), EnrolError> {
    if text.len() > len_max || text.chars().any(char::is_control) {
        let message = format!("{what}: at most {len_max} bytes in one line are allowed");
        return Err(EnrolError::Invalid(message));
    }
    Ok(())
}

impl Enrolling {
    /// Reads what is known of enrolments, for the shards too.
    pub async fn load(mut p: Parts) -> Result<Self, StoreError> {
        let hashes = p.store.token_hashes().await?;
        load_enrolled(&*p.store, &p.enrolled).await?;
        let mut key = [0; 32];
        p.rng.fill_bytes(&mut key);
        let rng = Mutex::new(rand::SeedableRng::from_rng(&mut p.rng));
        Ok(Self {
            keyring: Arc::new(RwLock::new(Arc::new(p.keyring.clone()))),
            rng,
            nonces: Mutex::new(Nonces::new(key)),
            tokens: Mutex::new(hashes.into_iter().collect()),
            places: Semaphore::new(AT_ONCE_MAX),
            counts: Counts::default(),
            writing: tokio::sync::Mutex::new(()),
            p,
        })
    }

    /// The fleet secrets in force.
    pub fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where they are looked up, for parts that live longer than one ring.
    pub fn keyrings(&self) -> Arc<RwLock<Arc<Keyring>>> {
        Arc::clone(&self.keyring)
    }

    /// Makes a token.
    pub async fn create(&self, wish: NewToken) -> Result<TokenMade, EnrolError> {
        let wrong = |text: &str| Err(EnrolError::Invalid(text.to_owned()));
        if wish.ttl.0.is_zero() || wish.ttl.0 > TTL_MAX {
            return wrong("`ttl`: more than 0 and at most 366d are allowed");
        }
        if !(1..=USES_MAX).contains(&wish.uses) {
            return wrong("`uses`: 1 to 10,000,000 are allowed");
        }
        plain("`by`", &wish.by, NAME_LEN_MAX)?;
        let host =
            ImportHost { id: HostId([0; 16]), name: String::new(), labels: wish.labels.clone() };
        crate::api::check_import(&host).map_err(|e| EnrolError::Invalid(format!("labels: {e}")))?;
        let pin = (self.p.pin)();
        let (token, drawn) = {
            let mut rng = held(&self.rng);
            (JoinToken::draw(pin, &mut *rng), Hex::<4>::draw(&mut *rng))
        };
        let name = wish.name.unwrap_or_else(|| format!("join-{drawn}"));
        plain("`name`", &name, TOKEN_NAME_LEN_MAX)?;
        if name.is_empty() || name.contains('/') {
            return wrong("`name`: must not be empty and holds no `/`");
        }
        let now = self.p.clock.wall();
        let ttl_ms = i64::try_from(wish.ttl.0.as_millis()).unwrap_or(i64::MAX);
        let row = TokenRow {
            name,
            uses: wish.uses,
            uses_left: wish.uses,
            expires_ms: Wall(now.0.saturating_add(ttl_ms)),
            clones: wish.clones,
            labels: wish.labels,
            created_ms: now,
            by: wish.by,
            revoked_ms: None,
        };
        if !self.p.store.add_token(token.hash(), row.clone()).await? {
            let message = format!("there is a join token `{}`: give another --name", row.name);
            return Err(EnrolError::Conflict(message));
        }
        held(&self.tokens).insert(token.hash());
        let hosts = words::count(u64::from(row.uses), "host");
        log::info!("join token {}: {hosts} until {}", row.name, row.expires_ms);
        Ok(TokenMade { token: token.to_text(), row })
    }

    /// All tokens.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, EnrolError> {
        Ok(self.p.store.tokens().await?)
    }

    /// Ends a token. Hosts that it let in stay.
    pub async fn revoke_token(&self, name: &str) -> Result<(), EnrolError> {
        if !self.p.store.revoke_token(name.to_owned(), self.p.clock.wall()).await? {
            let message =
                format!("there is no join token `{name}`: see `heartwatchctl token list`");
            return Err(EnrolError::NotFound(message));
        }
        log::info!("join token {name} was revoked");
        Ok(())
    }

    /// A nonce.
    pub fn nonce(&self) -> Hex<NONCE_LEN> {
        let random = Hex::<8>::draw(&mut *held(&self.rng));
        held(&self.nonces).give(self.p.clock.now(), random.0)
    }

    fn take_nonce(&self, nonce: &Hex<NONCE_LEN>) -> Result<(), EnrolError> {
        let taken = held(&self.nonces).take(nonce, self.p.clock.now());
        taken.map_err(|e| match e {
            nonces::BadNonce::Stale => EnrolError::Unproved(e.to_string()),
            nonces::BadNonce::Busy => EnrolError::Busy,
        })
    }

    /// How enrolments and renewals ended, since the start.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many hosts are revoked.
    pub fn revoked_len(&self) -> usize {
        self.p.enrolled.revoked_len()
    }

    /// Lets a host in.
    pub async fn enrol(&self, ask: EnrolRequest) -> Result<LetIn, EnrolError> {
        let done = self.let_in(ask).await;
        self.counts.enrolled(done.as_ref().map(|let_in| let_in.gained));
        done
    }

    async fn let_in(&self, ask: EnrolRequest) -> Result<LetIn, EnrolError> {
        let _place = self.places.try_acquire().map_err(|_| EnrolError::Busy)?;
        let token: JoinToken =
            ask.token.parse().map_err(|e| EnrolError::Invalid(format!("`token`: {e}")))?;
        plain("`name`", &ask.name, NAME_LEN_MAX)?;
        if ask.host == CANARY {
            return Err(EnrolError::Invalid("this host id is the controller's own".to_owned()));
        }
        // Asked of no disk: strangers may guess as often as they like.
        if !held(&self.tokens).contains(&token.hash()) {
            return Err(Refusal::UnknownToken.into());
        }
        let ring = self.keyring();
        let known = self.p.view.get(ask.host);
        let least = known.as_ref().map_or(Generation(0), |k| k.row.generation);
        let mut proved = None;
        if let Some(proof) = &ask.proof {
            let ex = Exchange { host: ask.host, nonce: proof.nonce, own: ask.attempt };
            let key = ring.renewable_key(proof.key_id, ask.host, proof.generation);
            // A wrong one is none: the host has a key of another fleet, say, and a good token.
            proved = key
                .filter(|key| proof.mac.is(&ex.proof(Purpose::Enrol, key)))
                .map(|_| proof.generation)
                .filter(|g| *g >= self.p.enrolled.least(ask.host));
            if proved.is_some() {
                self.take_nonce(&proof.nonce)?;
            }
        }
        let asked = Asked {
            token: token.hash(),
            host: ask.host,
            attempt: ask.attempt,
            machine: ask.machine,
            proved,
            name: ask.name.clone(),
            standing: known.as_ref().map(|k| k.row.state).into(),
            generation: least.max(self.p.enrolled.least(ask.host)),
            fresh: HostId(Hex::<16>::draw(&mut *held(&self.rng)).0),
            at: self.p.clock.wall(),
        };
        let before = asked.generation;
        let granted = self.p.store.enrol(asked).await??;
        let e = granted.enrolment();
        let gained = match granted {
            Grant::Again(_) => Gained::Repeated,
            Grant::Kept(_) => Gained::Kept,
            Grant::New(_) if proved.is_some() => Gained::Kept,
            Grant::New(_) if e.host == ask.host && e.least > before => Gained::Rekeyed,
            Grant::New(_) => Gained::New,
        };
        self.p.enrolled.set(e.host, e.least, &e.labels);
        self.tell(e.host, ShardCommand::Least(e.host, e.least));
        log::info!(
            "host {} ({}) enrolled ({}) by join token {}, generation {}",
            e.host,
            ask.name,
            gained.as_str(),
            e.token,
            e.generation
        );
        let answer = EnrolAnswer {
            host: e.host,
            key: ring.current().host_key(e.host, e.generation).to_text(),
            controllers: self.p.beat_addresses.clone(),
            port: self.p.port,
            labels: e.labels.clone(),
            controller: self.p.controller,
        };
        let expected = ImportHost { id: e.host, name: ask.name, labels: e.labels.clone() };
        let asked_for = (e.host != ask.host).then_some(ask.host);
        let news = news(e, gained, asked_for);
        Ok(LetIn { answer, expected, gained, news })
    }

    /// Gives a host its next key: the one under the current secret.
    pub fn renew(&self, ask: &RenewRequest) -> Result<RenewAnswer, EnrolError> {
        let done = self.next_key(ask);
        self.counts.renewed(done.as_ref().map(drop));
        done
    }

    fn next_key(&self, ask: &RenewRequest) -> Result<RenewAnswer, EnrolError> {
        let _place = self.places.try_acquire().map_err(|_| EnrolError::Busy)?;
        let ring = self.keyring();
        let ex = Exchange { host: ask.host, nonce: ask.nonce, own: ask.own };
        let present = ring
            .renewable_key(ask.key_id, ask.host, ask.generation)
            .filter(|key| ask.mac.is(&ex.proof(Purpose::Renew, key)))
            .ok_or_else(|| {
                let text = "this controller does not know that key: enrol with a join token";
                EnrolError::Unproved(text.to_owned())
            })?;
        // Only now: used ones take a place, which strangers without a key must not fill.
        self.take_nonce(&ask.nonce)?;
        let known = self.p.view.get(ask.host).map_or(Generation(0), |k| k.row.generation);
        if ask.generation < known.max(self.p.enrolled.least(ask.host)) {
            let text = "that key is revoked: enrol with a join token, if an operator lets you";
            return Err(EnrolError::Unproved(text.to_owned()));
        }
        let next = ring.current().host_key(ask.host, ask.generation);
        Ok(RenewAnswer::seal(&ex, &present, &next, (self.p.pin)()))
    }

    /// How a host stands, for its own agent alone: it proves a key that it has or had.
    pub async fn standing(&self, ask: &StandingRequest) -> Result<StandingAnswer, EnrolError> {
        let _place = self.places.try_acquire().map_err(|_| EnrolError::Busy)?;
        let ex = Exchange { host: ask.host, nonce: ask.nonce, own: ask.own };
        let present = self
            .keyring()
            .renewable_key(ask.key_id, ask.host, ask.generation)
            .filter(|key| ask.mac.is(&ex.proof(Purpose::Standing, key)))
            .ok_or_else(|| {
                EnrolError::Unproved("this controller does not know that key".to_owned())
            })?;
        self.take_nonce(&ask.nonce)?;
        let found = match self.is_revoked(ask.host) {
            true => self.p.store.enrolment(ask.host).await?,
            false => None,
        };
        let revoked = found.and_then(|e| {
            e.revoked_ms.map(|at_ms| heartwatch_common::enrol::Revoked { at_ms, reason: e.reason })
        });
        Ok(StandingAnswer::seal(&ex, &present, revoked))
    }

    /// Revokes a host's keys, all that it has ever had. From now on nothing of it is believed; what becomes
    /// of its row is the policy's.
    pub async fn revoke(&self, host: HostId, reason: &str) -> Result<Revoked, EnrolError> {
        plain("the reason", reason, 512)?;
        if host == CANARY {
            let text = "the canary is the controller's own: see `canary` in its config";
            return Err(EnrolError::Invalid(text.to_owned()));
        }
        // Before it leaves the registry, and its name with it.
        let called = self.p.view.called(host);
        let row = self.p.view.get(host).map(|known| known.row);
        let known = row.as_ref().map_or(Generation(0), |row| row.generation);
        let what = Revocation {
            host,
            name: row.map(|row| row.name).unwrap_or_default(),
            generation: known.max(self.p.enrolled.least(host)),
            reason: reason.to_owned(),
            fresh: Hex::draw(&mut *held(&self.rng)),
            at: self.p.clock.wall(),
        };
        let gone = self.p.store.revoke_host(what).await?;
        let e = &gone.enrolment;
        self.p.enrolled.set(host, e.least, &e.labels);
        self.p.enrolled.set_revoked(host, true);
        self.tell(host, ShardCommand::Least(host, e.least));
        match gone.already {
            true => log::info!("host {called} is revoked already: {}", e.reason),
            false => log::warn!("host {called} was revoked: {reason}"),
        }
        Ok(gone)
    }

    /// The revoked host of that id, or of that name if only one has it; `None`: there is none.
    pub async fn revocation(&self, name: &str) -> Result<Option<Enrolment>, EnrolError> {
        if let Ok(host) = name.parse::<HostId>() {
            let found = self.p.store.enrolment(host).await?;
            return Ok(found.filter(|e| e.revoked_ms.is_some()));
        }
        if name.is_empty() {
            return Ok(None);
        }
        let mut named = self.p.store.revoked_named(name.to_owned()).await?;
        if named.len() > 1 {
            let text = format!("more than one host named `{name}` is revoked: use an id");
            return Err(EnrolError::Conflict(text));
        }
        Ok(named.pop())
    }

    /// Whether a host is revoked.
    pub fn is_revoked(&self, host: HostId) -> bool {
        self.p.enrolled.is_revoked(host)
    }

    /// Lets a revoked host enrol again.
    pub async fn lift(&self, host: HostId) -> Result<Enrolment, EnrolError> {
        let lifted = self.p.store.lift(host).await?;
        self.p.enrolled.set_revoked(host, false);
        if let Some(lifted) = lifted {
            return Ok(lifted);
        }
        let called = self.p.view.called(host);
        // A revocation that was lifted leaves its enrolment, which raises the least generation.
        let stands = match self.p.store.enrolment(host).await? {
            _ if self.p.view.contains(host) => "it is registered, and its keys are good",
            Some(_) => "it may enrol (its revocation was lifted before, or it never was revoked)",
            None => "nothing is known of it",
        };
        let text = format!("host {called} is not revoked: {stands}; nothing was changed");
        Err(EnrolError::NotFound(text))
    }

    /// One page of all enrolments.
    pub async fn enrolments(&self, after: Option<HostId>) -> Result<Vec<Enrolment>, EnrolError> {
        Ok(self.p.store.enrolments(after).await?)
    }

    /// Revoked hosts that are still registered: a crash came between. Their rows are the policy's to end.
    pub async fn unfinished(&self) -> Result<Vec<Enrolment>, StoreError> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.p.store.enrolments(after).await?;
            let Some(last) = page.last() else { return Ok(found) };
            after = Some(last.host);
            let gone = page.into_iter().filter(|e| e.revoked_ms.is_some());
            found.extend(gone.filter(|e| self.p.view.contains(e.host)));
        }
    }

    fn tell(&self, host: HostId, command: ShardCommand) {
        // Tests of this alone have none.
        let Ok(count @ 1..) = u16::try_from(self.p.shards.len()) else { return };
        let shard = usize::from(shard_of(host, count));
        if self.p.shards[shard].send(command).is_err() {
            // It asks the registry when it next hears of the host anew.
            log::warn!("shard {shard} is too busy to hear of host {}", self.p.view.called(host));
        }
    }
}

/// Tells shards' registry of all enrolments.
async fn load_enrolled(store: &dyn EnrolStore, enrolled: &Enrolled) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = store.enrolments(after).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.host);
        for e in &page {
            enrolled.set(e.host, e.least, &e.labels);
            enrolled.set_revoked(e.host, e.revoked_ms.is_some());
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
