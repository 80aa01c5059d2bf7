//! What must survive: the journal, the outbox, the registry. One trait, one engine (SQLite).
//!
//! # Promises
//!
//! - An event and its deliveries are committed in one transaction *before* anything is sent.
//! - `append` is idempotent by event id, so a caller that does not know whether a write happened
//!   ([`StoreError::Unknown`]) repeats it.
//! - A delivery's attempt is journaled ([`Store::begin_attempt`]) before its first byte leaves. So
//!   whatever was never begun was never sent and may be *cancelled*; anything begun may have arrived
//!   and can only be *superseded*.
//! - Per receiver and host, deliveries are begun in the order of their events: `begin_attempt` refuses
//!   one that an unfinished earlier one precedes ([`Begin::NotYet`]). Only a notice
//!   ([`EventKind::is_notice`]) overtakes what is held; what it overtook is journaled again when it is let
//!   go, under a higher token, so that tokens rise in the order of sending all the same.
//! - Fencing tokens rise strictly per host: `token = store epoch · 2³² + counter`, below 2⁵³. The epoch
//!   is kept in a file beside the database too and rises at every start and every restore.
//!
//! What this leaves room for: an engine shared by several controllers. Appends carry an owner epoch and
//! may answer *fenced*; cursors are opaque to clients; a batch has at most [`BATCH_LEN_MAX`] events.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use heartwatch_common::id::{Boot, ControllerId, Generation, HostId};
use heartwatch_common::time::Wall;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::{Cause, EventId, EventKind, IncidentId, State};

#[cfg(test)]
mod oracle;
pub mod sqlite;

/// Most events in one append.
pub const BATCH_LEN_MAX: usize = 100;
/// Most events in one [`Store::record`].
pub const RECORD_LEN_MAX: usize = 1_000;
/// Most rows that one read returns.
pub const READ_LEN_MAX: usize = 1_000;

/// A place in the journal. Opaque outside: compare for equality, hand back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(pub u64);

/// One delivery: one event on its way to one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeliveryId(pub u64);

/// Strictly rising per host; below 2⁵³, so that JSON numbers carry it exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub u64);

/// What is kept of a host across restarts. Written when one of these changes, never per beat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Who.
    pub id: HostId,
    /// Its name, as it says itself or as imported.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Operating system, as it says itself.
    pub os: String,
    /// Version of its agent.
    pub agent_version: String,
    /// Where it stands.
    pub state: State,
    /// Why, if down, or suspect for good.
    pub cause: Option<Cause>,
    /// Last proved life of its agent.
    pub boot: Boot,
    /// Lowest key generation that is accepted.
    pub generation: Generation,
    /// Where its last proof of life came from.
    pub address: Option<SocketAddr>,
    /// When it was first registered.
    pub first_seen: Wall,
    /// Since when it has been in this state.
    pub since: Wall,
    /// The outage that it is in.
    pub incident: Option<IncidentId>,
    /// Two boots answer under this identity: never failed over.
    pub duplicate: bool,
    /// Where an operator keeps its margin, milliseconds.
    pub frozen_ms: Option<u64>,
    /// It left, and said that it would be back by then.
    #[serde(default)]
    pub back_by: Option<Wall>,
}

/// Whose unfinished deliveries an event brings to an end: of those that tell of something that goes on
/// ([`EventKind::goes_on`]). News of an end is never brought to an end by another: whoever took an order
/// is owed the word that it is over, in order, however late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Nobody's.
    Nothing,
    /// The host's earlier ones at the receivers that get this event: it tells more (suspect → down).
    SameReceivers,
    /// The host's earlier ones at these receivers: it is asked of others from now on.
    At(Vec<String>),
    /// All of the host's earlier ones: they are no longer true (recovered, left, forgotten).
    All,
}

/// Which of the listed receivers get an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// All.
    All,
    /// Those that may have heard of this incident: some delivery of it to them was begun. To the others
    /// its end would be news of nothing.
    Told,
}

/// Some receivers, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receivers {
    /// Each.
    All,
    /// This one.
    Only(String),
    /// Each but these.
    AllBut(Vec<String>),
}

impl Receivers {
    /// Whether one is among them.
    pub fn has(&self, receiver: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(one) => one == receiver,
            Self::AllBut(others) => !others.iter().any(|other| other == receiver),
        }
    }
}

/// A delivery to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Receiver's name.
    pub receiver: String,
    /// `Some(reason)`: keep it back until released or settled.
    pub hold: Option<String>,
}

/// An event to be journaled, with all that hangs on it.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// Its name for ever; appending the same again changes nothing.
    pub id: EventId,
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: Wall,
    /// To whom; `None` for the controller's own events.
    pub host: Option<HostId>,
    /// In which outage.
    pub incident: Option<IncidentId>,
    /// The payload's `data`, less `token` and `supersedes`, which the store adds.
    pub data: Map<String, Value>,
    /// The host's row after this event, saved in the same transaction. `None` leaves it alone.
    pub row: Option<HostRow>,
    /// Whose deliveries it ends.
    pub settle: Settle,
    /// Who is told.
    pub deliveries: Vec<NewDelivery>,
    /// Which of them.
    pub audience: Audience,
}

/// What became of an appended event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its place in the journal.
    pub cursor: Cursor,
    /// Its fencing token, if it is a host's.
    pub token: Option<Token>,
    /// Deliveries made for it that are to be sent now (held ones are not among them).
    pub deliveries: Vec<Due>,
    /// Deliveries that were cancelled or superseded by it.
    pub settled: Vec<DeliveryId>,
}

/// A journaled event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Where it stands; the next read continues after it.
    pub cursor: Cursor,
    /// Its name.
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When, milliseconds since 1970.
    pub at_ms: Wall,
    /// To whom.
    pub host: Option<HostId>,
    /// In which outage.
    pub incident: Option<IncidentId>,
    /// Its fencing token.
    pub token: Option<Token>,
    /// The payload's `data`.
    pub data: Map<String, Value>,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// Kept back, with a reason.
    Held,
    /// To be sent, or sent without success so far.
    Pending,
    /// The receiver said 2xx.
    Delivered,
    /// Ended before any attempt: the receiver never heard of it.
    Cancelled,
    /// Ended after an attempt: a later event with a higher token replaces it.
    Superseded,
    /// Given up; can be redriven.
    Dead,
    /// The receiver answered that it will not do it, and why.
    Vetoed,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Held,
        Self::Pending,
        Self::Delivered,
        Self::Cancelled,
        Self::Superseded,
        Self::Dead,
        Self::Vetoed,
    ];

    /// As it stands in JSON, labels and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::Dead => "dead",
            Self::Vetoed => "vetoed",
        }
    }
}

impl std::str::FromStr for DeliveryState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
            format!("`{text}` is not a delivery state: use held, pending, delivered, cancelled, superseded, dead or vetoed")
        })
    }
}

/// What the delivery schedule needs of an unfinished delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub id: DeliveryId,
    /// To whom.
    pub receiver: String,
    /// About which host; order is kept per receiver and host.
    pub host: Option<HostId>,
    /// Attempts begun so far.
    pub attempts: u32,
    /// Time spent waiting between attempts so far (by a monotonic clock, so a stepped wall clock
    /// neither stalls nor hurries it); the schedule gives up by this.
    pub waited: Duration,
}

/// A delivery for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryRow {
    /// Which.
    pub id: DeliveryId,
    /// Of which event.
    pub event: EventId,
    /// What kind of event.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// About which host.
    pub host: Option<HostId>,
    /// Of which outage.
    pub incident: Option<IncidentId>,
    /// To whom.
    pub receiver: String,
    /// How far.
    pub state: DeliveryState,
    /// Why held, dead, cancelled or superseded.
    pub reason: Option<String>,
    /// Its event's fencing token.
    pub token: Option<Token>,
    /// Attempts begun.
    pub attempts: u32,
    /// When journaled, milliseconds since 1970.
    pub created_ms: Wall,
    /// When it reached its present state, milliseconds since 1970.
    pub changed_ms: Wall,
    /// How the last attempt ended, for people.
    pub last_outcome: Option<String>,
    /// What it says in place of its event's `data`: the candidates of the moment when a held order went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed: Option<Map<String, Value>>,
}

/// The answer to [`Store::begin_attempt`].
#[derive(Clone, Debug, PartialEq)]
pub enum Begin {
    /// Journaled: send this body now.
    Go(Outgoing),
    /// Settled meanwhile: drop it.
    Gone,
    /// An earlier delivery to the same receiver about the same host is unfinished.
    NotYet,
}

/// What to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The idempotency key.
    pub event: EventId,
    /// What happened.
    pub kind: EventKind,
    /// To whom it happened.
    pub host: Option<HostId>,
    /// Its token.
    pub token: Option<Token>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// The JSON body: byte for byte the same on every attempt.
    pub body: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// When, for the journal.
    pub at: Wall,
    /// HTTP status, if one came.
    pub status: Option<u16>,
    /// For people: "200 OK", "connect: refused", "timeout after 10 s".
    pub detail: String,
    /// What becomes of the delivery.
    pub verdict: FinishVerdict,
}

/// What becomes of a delivery after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishVerdict {
    /// Accepted.
    Delivered,
    /// Try again after a wait of this length.
    Retry {
        /// The wait that was scheduled.
        wait: Duration,
    },
    /// Given up.
    Dead {
        /// Why.
        reason: String,
    },
    /// The receiver answered, and will not do it.
    Vetoed {
        /// Why, in its words.
        reason: String,
    },
    /// The receiver has seen a higher token (HTTP 409). If it was one of ours for this host, this
    /// delivery is stale: superseded. Otherwise the host's counter rises above it and the event is
    /// journaled again under a new id and token, superseding this one; after a few rounds of that, or
    /// at a token that cannot be, it is dead. The delivery's own token after an earlier attempt means
    /// that that one arrived: delivered. A lower one contradicts itself: it stays pending.
    Conflict {
        /// The highest token that the receiver says it has seen.
        highest: Token,
    },
}

/// Which deliveries to list.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Only in this state.
    pub state: Option<DeliveryState>,
    /// Only to this receiver.
    pub receiver: Option<String>,
    /// Only about this host.
    pub host: Option<HostId>,
    /// Only of this outage.
    pub incident: Option<IncidentId>,
    /// Only with an id above this.
    pub after: Option<DeliveryId>,
}

/// An attempt for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptRow {
    /// Its number, from 1.
    pub number: u32,
    /// When it was begun, milliseconds since 1970.
    pub began_ms: Wall,
    /// When it ended; `None`: still under way, or the controller died in it.
    pub ended_ms: Option<Wall>,
    /// HTTP status, if one came.
    pub status: Option<u16>,
    /// For people.
    pub detail: Option<String>,
}

/// What may be thrown away.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events and finished deliveries older than this go; unfinished, held and dead ones stay until
    /// they are finished, redriven or older than `dead`.
    pub events: Duration,
    /// Dead letters older than this go.
    pub dead: Duration,
    /// Most events kept at all; the oldest finished ones go first.
    pub events_max: u64,
}

/// Counts for `/metrics` and `/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Deliveries by receiver and state, unfinished and dead ones only.
    pub by_receiver: BTreeMap<(String, DeliveryState), u64>,
    /// When the oldest pending delivery was journaled.
    pub oldest_pending: Option<Wall>,
}

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Refused, and nothing was changed: disk full, read-only, I/O error. Worth repeating later.
    #[error("the store cannot write now: {0}")]
    Unavailable(String),
    /// Another controller owns the store now. Never worth repeating.
    #[error("another controller owns the store")]
    Fenced,
    /// No answer: the write may or may not have happened. Repeat it (idempotent by id).
    #[error("the store did not answer: the write may or may not have happened")]
    Unknown,
    /// The caller asked for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The database file is locked by a running controller, damaged, or of a newer version.
    #[error("cannot open the store: {0}")]
    Open(String),
}

/// The store. All methods may be called from any task; writes are put in one order.
#[async_trait]
pub trait Store: Send + Sync {
    /// This controller's lasting identity.
    fn controller(&self) -> ControllerId;

    /// Hosts of the registry above an id, in the order of their ids, at most `limit` (bounded by
    /// [`READ_LEN_MAX`]).
    async fn hosts(&self, after: Option<HostId>, limit: usize) -> Result<Vec<HostRow>, StoreError>;

    /// Saves rows that changed without an event (address, labels, registration). At most
    /// [`READ_LEN_MAX`] at a time.
    async fn save_hosts(&self, rows: Vec<HostRow>) -> Result<(), StoreError>;

    /// Journals events with their deliveries, in one transaction; answers in the same order. At most
    /// [`BATCH_LEN_MAX`]. On error nothing was journaled, but for [`StoreError::Unknown`].
    async fn append(&self, events: Vec<NewEvent>) -> Result<Vec<Appended>, StoreError>;

    /// Both in one transaction: saves rows as [`save_hosts`](Store::save_hosts) does, then journals events
    /// as [`append`](Store::append) does, at most [`RECORD_LEN_MAX`]. For many small changes, each commit
    /// of which would cost more than its writes.
    async fn record(
        &self,
        rows: Arc<[HostRow]>,
        events: Arc<[NewEvent]>,
    ) -> Result<Vec<Appended>, StoreError>;

    /// Removes a host, settles its deliveries; its token counter stays for ever. The event (if any) is
    /// appended in the same transaction. `false` if it was not there.
    async fn forget(&self, host: HostId, event: NewEvent) -> Result<bool, StoreError>;

    /// Pending deliveries to one receiver with ids above `after`, in order.
    async fn pending(
        &self,
        receiver: &str,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError>;

    /// Journals that an attempt begins, and says what to send.
    async fn begin_attempt(&self, id: DeliveryId, at: Wall) -> Result<Begin, StoreError>;

    /// Journals how an attempt ended. Answers deliveries that came into being by it
    /// ([`FinishVerdict::Conflict`]). A delivery settled while its attempt ran stays settled, unless it
    /// was delivered: then it is `Delivered`, since that is the truth.
    async fn finish_attempt(&self, id: DeliveryId, finish: Finish) -> Result<Vec<Due>, StoreError>;

    /// Held deliveries of one host to these receivers: to `Pending` (answered) or `Cancelled` with the
    /// reason.
    async fn release(
        &self,
        host: HostId,
        which: Receivers,
        verdict: Result<(), String>,
        at: Wall,
    ) -> Result<Vec<Due>, StoreError>;

    /// The same, and they say this in place of those members of their event's `data`. Deliveries of the event
    /// that were not held say what they said.
    async fn release_placed(
        &self,
        host: HostId,
        which: Receivers,
        data: Map<String, Value>,
        at: Wall,
    ) -> Result<Vec<Due>, StoreError>;

    /// Hosts that have held deliveries.
    async fn held_hosts(&self) -> Result<Vec<HostId>, StoreError>;

    /// Dead or pending deliveries back to due-now. The caller judges first. `Ok(None)`: not dead.
    async fn redrive(&self, id: DeliveryId, at: Wall) -> Result<Option<Due>, StoreError>;

    /// Ends a dead, held or never-begun delivery as cancelled, with the reason. `false`: too late.
    async fn cancel(&self, id: DeliveryId, reason: String, at: Wall) -> Result<bool, StoreError>;

    /// Events after a cursor, oldest first, at most `limit` (bounded by [`READ_LEN_MAX`]), optionally
    /// of one host.
    async fn events(
        &self,
        after: Cursor,
        host: Option<HostId>,
        limit: usize,
    ) -> Result<Vec<EventRow>, StoreError>;

    /// The newest `limit` events of one host, newest first.
    async fn events_of(&self, host: HostId, limit: usize) -> Result<Vec<EventRow>, StoreError>;

    /// The cursor of the newest event; 0 if there is none.
    async fn head(&self) -> Result<Cursor, StoreError>;

    /// Deliveries, by id, at most `limit`.
    async fn deliveries(
        &self,
        filter: DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<DeliveryRow>, StoreError>;

    /// Attempts of one delivery, oldest first, the newest 100.
    async fn attempts(&self, id: DeliveryId) -> Result<Vec<AttemptRow>, StoreError>;

    /// Counts of what is on its way.
    async fn backlog(&self) -> Result<Backlog, StoreError>;

    /// Throws away what is past its retention; a bounded amount per call. Answers how many rows went.
    async fn prune(&self, retention: Retention, now: Wall) -> Result<u64, StoreError>;

    /// Small named values (pause end, …).
    async fn get(&self, key: &str) -> Result<Option<String>, StoreError>;

    /// All whose names begin so, by name. For a bounded number of things that come and go.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError>;

    /// Sets or removes one.
    async fn put(&self, key: &str, value: Option<String>) -> Result<(), StoreError>;

    /// Writes a consistent copy of the whole store to a new file while everything goes on.
    async fn backup(&self, to: &Path) -> Result<(), StoreError>;

    /// Whether a write would succeed now (writes and removes a probe value).
    async fn check(&self) -> Result<(), StoreError>;
}
