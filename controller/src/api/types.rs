//! The JSON shapes that exist only in the API; what `control` and `store` define is used as it is.
//!
//! Times are milliseconds since 1970 and end in `_ms`; `now_ms` is the controller's wall clock when it
//! answered, so that a reader can tell "how long ago" without trusting its own clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use heartwatch_common::config::Span;
use heartwatch_common::id::{Boot, Generation, HostId};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::{Instant, Wall};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::access::{Scope, TokenRow};
use super::dropped::DroppedOrder;
use crate::config::Config;
use crate::control::{
    Doubt, HoldStatus, HostWhy, Maintenance, Pause, ReceiverReport, Status, TwinWhy, WaitStatus,
    Window,
};
use crate::enrol::Revoked;
use crate::event::{Cause, EventId, EventKind, IncidentId, State};
use crate::store::{AttemptRow, Cursor, DeliveryRow, EventRow, Token};
use crate::view::HostView;

/// A host's last load sample. What is unknown is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is documented in LoadSample under the same name")]
pub struct LoadJson {
    pub cpu_busy_ratio: Option<f64>,
    pub memory_used_ratio: Option<f64>,
    pub swap_used_ratio: Option<f64>,
    pub disk_used_ratio: Option<f64>,
    pub run_queue_per_core: Option<f64>,
    pub network_kib_per_s: Option<u32>,
    pub psi_cpu_ratio: Option<f64>,
    pub psi_memory_ratio: Option<f64>,
    pub psi_io_ratio: Option<f64>,
    /// For ranking: 0 = idle, 1000 = a resource is exhausted.
    pub score: u16,
}

impl From<LoadSample> for LoadJson {
    fn from(l: LoadSample) -> Self {
        let known = |n: u16| (n != u16::MAX).then(|| f64::from(n) / 100.0);
        Self {
            cpu_busy_ratio: l.cpu_busy.ratio(),
            memory_used_ratio: l.memory_used.ratio(),
            swap_used_ratio: l.swap_used.ratio(),
            disk_used_ratio: l.disk_used.ratio(),
            run_queue_per_core: known(l.run_queue_centi),
            network_kib_per_s: Some(l.network_kib_per_s).filter(|n| *n != u32::MAX),
            psi_cpu_ratio: l.psi_cpu.ratio(),
            psi_memory_ratio: l.psi_memory.ratio(),
            psi_io_ratio: l.psi_io.ratio(),
            score: l.score(),
        }
    }
}

/// A host of the registry with its live figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostJson {
    /// Who.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// Why, if down; `unreachable` if suspect only because the controller cannot hear it.
    pub cause: Option<Cause>,
    /// Since when.
    pub since_ms: Wall,
    /// When it was first registered.
    pub first_seen_ms: Wall,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Operating system.
    pub os: String,
    /// Version of its agent.
    pub agent_version: String,
    /// Life of its agent.
    pub boot: Boot,
    /// Lowest key generation that is accepted.
    pub generation: Generation,
    /// Where its last proof of life came from.
    pub address: Option<SocketAddr>,
    /// The outage that it is in.
    pub incident: Option<IncidentId>,
    /// Two machines answered under this identity, and it is not certain that one is left.
    pub duplicate: bool,
    /// What is known of the other; only where one host is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<TwinWhy>,
    /// Where an operator keeps its margin, milliseconds.
    #[serde(default)]
    pub frozen_ms: Option<u64>,
    /// It left, and said that it would be back by then.
    #[serde(default)]
    pub back_by_ms: Option<Wall>,
    /// The maintenance window that covers it now.
    #[serde(default)]
    pub maintenance: Option<Window>,
    /// Time since the last proof of life that this controller process took; null before the first.
    pub silence_ms: Option<u64>,
    /// The gap that its last beat announced.
    pub gap_ms: Option<u64>,
    /// Its last load sample.
    pub load: Option<LoadJson>,
}

/// Where a host's margin is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeJson {
    /// Whose.
    pub host: HostId,
    /// Milliseconds; `null`: it learns.
    pub frozen_ms: Option<u64>,
}

/// Answer of `DELETE /v1/hosts/{host}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenJson {
    /// Whom.
    pub host: HostId,
    /// Its orders that nobody had taken yet, and that ended with this.
    #[serde(default)]
    pub dropped: Vec<DroppedOrder>,
}

/// Answer of `POST /v1/hosts/{host}/revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedJson {
    /// The host.
    #[serde(flatten)]
    pub revoked: Revoked,
    /// Its orders that nobody had taken yet, and that ended with this.
    #[serde(default)]
    pub dropped: Vec<DroppedOrder>,
}

/// An operator's word that one machine is left under a host's identity, taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SingleJson {
    /// Whose.
    pub host: HostId,
    /// An order of it was held: it is judged again now.
    pub held: bool,
}

impl HostJson {
    /// A host as of `now`.
    pub fn new(host: &HostView, windows: &Maintenance, now: Instant) -> Self {
        let row = &host.row;
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let last = host.live.last_arrival;
        Self {
            id: row.id,
            name: row.name.clone(),
            state: row.state,
            cause: row.cause,
            since_ms: row.since,
            first_seen_ms: row.first_seen,
            labels: row.labels.clone(),
            os: row.os.clone(),
            agent_version: row.agent_version.clone(),
            boot: row.boot,
            generation: row.generation,
            address: row.address,
            incident: row.incident,
            duplicate: row.duplicate,
            twin: None,
            frozen_ms: row.frozen_ms,
            back_by_ms: row.back_by,
            maintenance: windows.cover(row.id, &row.labels).map(|w| Window::clone(w)),
            silence_ms: last.map(|at| millis(now.since(at))),
            gap_ms: last.map(|_| millis(host.live.gap)),
            load: host.live.load.map(LoadJson::from),
        }
    }
}

/// A page of hosts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostsPage {
    /// The hosts.
    pub hosts: Vec<HostJson>,
    /// Hand it back as `page` for the next page; null: this was the last.
    pub next_page: Option<String>,
    /// Where `/v1/events?after=` continues what the *first* page of this listing showed.
    pub cursor: String,
    /// The controller's wall clock.
    pub now_ms: Wall,
}

/// A journaled event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventJson {
    /// Where it stands: opaque.
    pub cursor: String,
    /// Its name.
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When.
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

impl From<EventRow> for EventJson {
    fn from(e: EventRow) -> Self {
        Self {
            cursor: cursor_text(e.cursor),
            id: e.id,
            kind: e.kind,
            at_ms: e.at_ms,
            host: e.host,
            incident: e.incident,
            token: e.token,
            data: e.data,
        }
    }
}

/// A page of events, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventsPage {
    /// The events.
    pub events: Vec<EventJson>,
    /// Where the next read continues; always set, also if there was nothing.
    pub cursor: String,
    /// Whether to ask again at once: the page was full.
    pub more: bool,
}

/// A delivery with its attempts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryJson {
    /// The delivery.
    #[serde(flatten)]
    pub delivery: DeliveryRow,
    /// Its attempts, oldest first.
    pub attempt_log: Vec<AttemptRow>,
}

/// A page of deliveries, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeliveriesPage {
    /// The deliveries.
    pub deliveries: Vec<DeliveryRow>,
    /// Hand it back as `after` for the next page; null: this was the last.
    pub next_after: Option<u64>,
}

/// An outage that is still open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentJson {
    /// Which.
    pub id: IncidentId,
    /// When its first event happened, as far as the events shown reach back.
    pub opened_ms: Option<Wall>,
    /// How far its orders are.
    #[serde(default)]
    pub stage: IncidentStage,
}

/// Everything that is known about why a host stands where it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyJson {
    /// The controller's wall clock.
    pub now_ms: Wall,
    /// The host.
    pub host: HostJson,
    /// What the detector knows right now; null if it can't be asked.
    pub detector: Option<HostWhy>,
    /// Why it can't be asked.
    pub detector_error: Option<String>,
    /// The outage that it is in.
    pub incident: Option<IncidentJson>,
    /// The newest events of the host, newest first.
    pub events: Vec<EventJson>,
    /// Whether there are older events.
    pub events_truncated: bool,
    /// The newest deliveries about the host with their attempts, newest first.
    pub deliveries: Vec<DeliveryJson>,
    /// Whether there are deliveries that are not shown.
    pub deliveries_truncated: bool,
    /// Why the controller distrusts itself; empty is good.
    pub doubts: Vec<Doubt>,
    /// A pause of all actions, if one is in force.
    pub pause: Option<Pause>,
    /// What holds its order now, if something does.
    #[serde(default)]
    pub hold: Option<HoldStatus>,
    /// What happened to its failure domains in its newest outage, and what operators said of their held
    /// orders, newest first.
    #[serde(default)]
    pub around: Vec<EventJson>,
    /// What rules keep back from single receivers.
    #[serde(default)]
    pub waits: Vec<WaitStatus>,
}

/// The body of `POST /v1/rules/test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupposeBody {
    /// Of which host, by id or name.
    pub host: String,
    /// What is supposed to happen to it: `down`, `suspect`, `recovered`, …
    #[serde(rename = "as")]
    pub kind: String,
    /// When, milliseconds since 1970; now, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<Wall>,
}

/// Maintenance windows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowsJson {
    /// The windows, in the order in which they were made.
    pub windows: Vec<Window>,
    /// The controller's wall clock.
    pub now_ms: Wall,
}

/// The body of a new maintenance window: one of `host`, `domain` and `labels`, one of `for` and `until_ms`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowBody {
    /// This host, by id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// This failure domain, `zone=a,rack=7`; `fleet`: every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Hosts whose labels fit, `pool=db,zone!=a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// How long it lasts, at most `maintenance.window_max`.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// Instead: when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<Wall>,
    /// When it begins [default: now].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<Wall>,
    /// Who says so: 1 to 100 characters.
    pub by: String,
    /// Why: 1 to 500 characters.
    pub reason: String,
}

/// A drill that was begun, or joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillBegun {
    /// Its number: it has ended when `last.number` of `GET /v1/drill` is no lower.
    pub number: u64,
}

/// The body of a word on a held order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordBody {
    /// Who says so: 1 to 100 characters.
    pub by: String,
    /// Why: 1 to 500 characters.
    pub reason: String,
}

/// How a receiver says that an order ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompleteResult {
    /// It is done.
    #[default]
    Completed,
    /// It could not be done.
    Failed,
}

impl CompleteResult {
    /// As it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// The body of a receiver's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompleteBody {
    /// The order's fencing token.
    pub token: u64,
    /// Who reports; needed if the order went to several receivers.
    #[serde(default)]
    pub receiver: Option<String>,
    /// How it ended; completed, if it is left out.
    #[serde(default)]
    pub result: CompleteResult,
    /// In a few words, at most 500 characters.
    #[serde(default)]
    pub reason: String,
}

/// How far an outage's orders are: of several, the one that most needs somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncidentStage {
    /// Nobody was ordered to do anything.
    #[default]
    Opened,
    /// Cancelled, or replaced by later news, before anybody took it.
    Cancelled,
    /// Held.
    Held,
    /// On its way.
    Ordered,
    /// A receiver refused it.
    Vetoed,
    /// Given up, or reported as failed.
    Failed,
    /// Not accepted, not completed in time, or failed: the rule's next receiver was told.
    Escalated,
    /// A receiver took it.
    Accepted,
    /// A receiver reported that it is done.
    Completed,
}

impl IncidentStage {
    /// As it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Cancelled => "cancelled",
            Self::Held => "held",
            Self::Ordered => "ordered",
            Self::Vetoed => "vetoed",
            Self::Failed => "failed",
            Self::Escalated => "escalated",
            Self::Accepted => "accepted",
            Self::Completed => "completed",
        }
    }
}

/// An order with one receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderJson {
    /// Its delivery.
    #[serde(flatten)]
    pub delivery: DeliveryRow,
    /// How the receiver reported its end, if it did.
    pub reported: Option<CompleteResult>,
}

/// An outage with its orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentStatusJson {
    /// Which.
    pub id: IncidentId,
    /// Whether it goes on.
    pub open: bool,
    /// Whose.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where the host stands now.
    pub state: State,
    /// Why.
    pub cause: Option<Cause>,
    /// Since when, milliseconds since 1970.
    pub since_ms: Wall,
    /// How far its newest order is.
    pub stage: IncidentStage,
    /// Token of the newest order that was sent.
    pub token: Option<Token>,
    /// All orders, oldest first, one entry a receiver.
    pub orders: Vec<OrderJson>,
}

/// A page of open outages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IncidentsPage {
    /// The outages; a page may hold fewer than asked for, or none, and not be the last.
    pub incidents: Vec<IncidentStatusJson>,
    /// Hand it back as `page` for the next one; null: this was the last.
    pub next_page: Option<String>,
    /// When it was answered.
    pub now_ms: Wall,
}

/// The controller, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusJson {
    /// What runs.
    #[serde(flatten)]
    pub status: Status,
    /// The controller's wall clock.
    pub now_ms: Wall,
    /// Its settings, as far as everybody may know them.
    pub config: ConfigSummary,
    /// The API's certificate.
    #[serde(default)]
    pub certificate: Option<CertificateJson>,
}

/// The body of `POST /v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBody {
    /// 1 to 63 letters, digits, `.`, `_` or `-`; none that exists.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// For how long, 1m to 3650d; without: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
}

/// Its answer: the only place where the token itself ever stands.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenMade {
    /// Secret.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub row: TokenRow,
}

impl std::fmt::Debug for TokenMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenMade({:?}, secret)", self.row)
    }
}

/// The answer of `GET /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensJson {
    /// By name, ended ones too.
    pub tokens: Vec<TokenRow>,
    /// The controller's wall clock.
    pub now_ms: Wall,
}

/// The certificate that the API shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificateJson {
    /// SHA-256 of it as it is sent, 64 hexadecimal digits: what clients pin.
    pub sha256: String,
    /// When it ends.
    pub not_after_ms: Wall,
    /// Whether TLS clients must show one too.
    pub asks_clients: bool,
}

impl From<&crate::tls::Tls> for CertificateJson {
    fn from(tls: &crate::tls::Tls) -> Self {
        let current = tls.current();
        Self {
            sha256: current.fingerprint.to_string(),
            not_after_ms: current.not_after,
            asks_clients: tls.asks_clients(),
        }
    }
}

/// A receiver, less its URL: that may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverSummary {
    /// Its name.
    pub name: String,
    /// Whether what it gets is signed.
    pub signed: bool,
    /// How it is told, such as `native` or `exec`.
    #[serde(default)]
    pub format: String,
}

/// The answer of `GET /v1/receivers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiversJson {
    /// By name.
    pub receivers: Vec<ReceiverReport>,
    /// The controller's wall clock.
    pub now_ms: Wall,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSummary {
    /// Its name.
    pub name: String,
    /// Labels that a host must have.
    pub labels: BTreeMap<String, String>,
    /// Its label expression, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// Event kinds.
    pub events: Vec<EventKind>,
    /// Names of receivers.
    pub receivers: Vec<String>,
    /// Decides, but sends nothing.
    pub dry_run: bool,
    /// Is never held.
    #[serde(default)]
    pub always: bool,
}

/// Settings that everybody who may read may know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSummary {
    /// Who is told.
    pub receivers: Vec<ReceiverSummary>,
    /// Which events go to whom.
    pub rules: Vec<RuleSummary>,
}

impl From<&Config> for ConfigSummary {
    fn from(config: &Config) -> Self {
        let receivers = config.receivers.values();
        Self {
            receivers: receivers
                .map(|r| ReceiverSummary {
                    name: r.name.clone(),
                    signed: r.secret_file.is_some(),
                    format: r.kind.as_str().to_owned(),
                })
                .collect(),
            rules: config
                .rules
                .iter()
                .map(|r| RuleSummary {
                    name: r.name.clone(),
                    labels: r.labels.clone(),
                    expression: r.expression.as_ref().map(ToString::to_string),
                    events: r.events.iter().copied().collect(),
                    receivers: r.receivers.clone(),
                    dry_run: r.dry_run,
                    always: r.always,
                })
                .collect(),
        }
    }
}

/// The body of `POST /v1/pause`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseBody {
    /// For how long, with its unit.
    #[serde(rename = "for")]
    pub span: heartwatch_common::config::Span,
    /// Why, in the operator's words.
    pub reason: String,
}

/// The answer of both pause routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseJson {
    /// The pause now in force, if any.
    pub pause: Option<Pause>,
}

/// A cursor as clients see it. The letter keeps them from counting with it.
pub fn cursor_text(cursor: Cursor) -> String {
    format!("c{:x}", cursor.0)
}

/// Reads [`cursor_text`]'s form.
pub fn parse_cursor(text: &str) -> Option<Cursor> {
    let digits = text.strip_prefix('c').filter(|d| (1..=16).contains(&d.len()))?;
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok().map(Cursor)
}
