//! What the API may ask of the running controller: one trait, so that routes know nothing of shards.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use heartwatch_common::id::{Boot, ControllerId, Epoch, HostId, Seq};
use heartwatch_common::time::Wall;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::canary::{Canary, CanaryStatus};
pub use crate::detector::doubt::DoubtReason;
use crate::event::{EventKind, IncidentId, State};
use crate::intervals::IntervalsStatus;
pub use crate::policy::guard::{
    GuardStatus, HoldKind, HoldReport, HoldStatus, HoldsPage, StormStatus, Target,
};
pub use crate::policy::holds::Word;
pub use crate::policy::maintenance::{Maintenance, Scope, Window, WindowId};
pub use crate::policy::question::Foresight;
pub use crate::policy::waits::{RuleWaits, WaitFor, WaitStatus};
use crate::store::{DeliveryId, StoreError, Token};

mod candidates;
mod receivers;
mod rules;

pub use candidates::{CandidatesAsk, CandidatesReport};
pub use receivers::{BEHIND_AFTER, Health, ReceiverReport, TestBegun};
pub use rules::{RuleStatus, RulesReport};

/// For what the caller of [`Control::audit`] waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journaled {
    /// Until it is on the disk.
    Written,
    /// For a place in the queue, which is there or not.
    Queued,
}

/// Most hosts in one import.
pub const IMPORT_LEN_MAX: usize = 100_000;
/// Longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Bounds of a margin that an operator may freeze.
pub const FREEZE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(600);

/// What becomes of a host's margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    /// It is kept as it is now.
    AsItIs,
    /// It is kept here.
    At(Duration),
    /// It learns.
    Off,
}

/// An expected host, to be registered as `pending`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportHost {
    /// Who.
    pub id: HostId,
    /// Its name until it says its own.
    #[serde(default)]
    pub name: String,
    /// Its labels until it says its own.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Registered as pending.
    pub added: u64,
    /// Known already; left as they are.
    pub known: u64,
    /// Left out: their keys were revoked, and until that is lifted nothing of them is believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<HostId>,
}

/// What a redrive did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedriveReport {
    /// On their way again.
    pub redriven: Vec<DeliveryId>,
    /// Judged again and no longer true: cancelled, with the reason.
    pub cancelled: Vec<(DeliveryId, String)>,
    /// Not dead letters, so left alone.
    pub skipped: Vec<DeliveryId>,
}

/// What to redrive.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redrive {
    /// These.
    Ids(Vec<DeliveryId>),
    /// All dead letters, or those of one receiver; the oldest 1,000.
    Dead {
        /// Only to this receiver.
        receiver: Option<String>,
    },
}

/// A pause of all actions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When it ends, milliseconds since 1970.
    pub until_ms: Wall,
    /// Why, in the operator's words.
    pub reason: String,
}

/// One reason why the controller distrusts its own eyes, or why its hands are tied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// Which.
    pub reason: DoubtReason,
    /// Which shard; none: the whole controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u16>,
    /// Since when, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<Wall>,
    /// In plain words.
    #[serde(default)]
    pub text: String,
    /// `drops`: share of datagrams lost in the last window, parts per million.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_ppm: Option<u64>,
    /// `lagging`: by how much, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// `restarted`: how long that goes on, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
    /// `store`: what it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Doubt {
    /// A reason without further figures.
    pub fn new(reason: DoubtReason) -> Self {
        Self {
            reason,
            shard: None,
            since_ms: None,
            text: reason.words().to_owned(),
            drop_ppm: None,
            lag_ms: None,
            remaining_ms: None,
            error: None,
        }
    }
}

/// One shard, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub shard: u16,
    /// Its hosts.
    pub hosts: u64,
    /// Datagrams read.
    pub received: u64,
    /// Beats that proved life.
    pub beats: u64,
    /// Datagrams dropped by the kernel at its sockets.
    pub dropped: u64,
    /// Datagrams rejected, by reason; zeroes are left out.
    pub rejects: BTreeMap<String, u64>,
    /// Hosts being probed.
    pub probing: u64,
    /// How far judging lags behind now, milliseconds.
    pub lag_ms: u64,
    /// Receive buffer as granted, bytes.
    pub receive_buffer_bytes: u64,
}

/// The controller, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its lasting identity.
    pub controller: ControllerId,
    /// Its epoch: drawn at this start.
    pub epoch: Epoch,
    /// UDP addresses on which beats are received.
    pub listen: Vec<SocketAddr>,
    /// The version of the wire that it speaks.
    #[serde(default)]
    pub wire_version: u8,
    /// When it started, milliseconds since 1970.
    pub started_ms: Wall,
    /// Hosts by state.
    pub hosts: BTreeMap<String, u64>,
    /// Its shards.
    pub shards: Vec<ShardStatus>,
    /// Why it distrusts itself; empty is good.
    pub doubts: Vec<Doubt>,
    /// A pause of all actions, if one is in force.
    pub pause: Option<Pause>,
    /// Deliveries by receiver and state, unfinished and dead ones.
    pub deliveries: BTreeMap<String, BTreeMap<String, u64>>,
    /// Events that wait in memory for the store.
    pub events_waiting: u64,
    /// Rows of the registry that changed without an event and wait to be written.
    #[serde(default)]
    pub rows_waiting: u64,
    /// What is held, and which failure domains are in a storm.
    #[serde(default)]
    pub guard: GuardStatus,
    /// Maintenance windows, in figures.
    #[serde(default)]
    pub maintenance: MaintenanceStatus,
    /// How the controller's own drills go.
    #[serde(default)]
    pub canary: CanaryStatus,
    /// Assigned intervals, if there is a budget of beats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<IntervalsStatus>,
    /// Hosts whose agents speak another version of the wire, by version: nothing of them counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_versions: Vec<OtherVersionStatus>,
    /// By state: hosts under whose identity two machines answered, and that are in another state than
    /// `duplicate`, since they do not beat.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub silent_duplicates: BTreeMap<String, u64>,
}

/// Maintenance windows, in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceStatus {
    /// Windows that are open.
    pub open: u64,
    /// Windows that will open.
    pub coming: u64,
    /// Hosts that are in maintenance now.
    pub hosts: u64,
}

/// A window that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowAdded {
    /// As it is now.
    pub window: Window,
    /// Registered hosts that it covers, now or when it opens.
    pub hosts: u64,
}

/// One bin of the overdue histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverdueBin {
    /// Beats in this bin were overdue by more than this, milliseconds.
    pub above_ms: f64,
    /// How many (decayed).
    pub count: f64,
}

/// What an operator decided about a host's margin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnobsWhy {
    /// Name of the override that holds; empty: none.
    pub name: String,
    /// Seconds of later detection that one false suspicion per beat is worth, as it stands now.
    pub false_suspicion_cost_s: f64,
    /// The rate of mistakes to which that cost is steered, if it is.
    pub max_mistakes_per_host_day: Option<f64>,
    /// Least margin, milliseconds.
    pub timeout_min_ms: u64,
    /// Greatest margin, milliseconds.
    pub timeout_max_ms: u64,
    /// Where an operator keeps this host's margin, milliseconds.
    pub frozen_ms: Option<u64>,
}

/// What excuses a host's silence, or did before it was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcuseWhy {
    /// Which doubt of the controller.
    pub reason: DoubtReason,
    /// Since when, milliseconds ago.
    pub since_ms: u64,
    /// When it is looked at again, milliseconds from now; zero: it has been judged.
    pub remaining_ms: u64,
}

/// A suspect's probes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeWhy {
    /// Sent so far.
    pub sent: u16,
    /// Of how many before a verdict; while a host is unreachable they go on.
    pub of: u8,
    /// How many its kernel answered with "nobody listens".
    pub unreachable: u16,
    /// Requests to peers to probe it too.
    #[serde(default)]
    pub peers_asked: u16,
    /// Answers of its agent that peers brought back.
    #[serde(default)]
    pub testimonies: u16,
    /// Least time between two probes of it, by its round trip, milliseconds.
    #[serde(default)]
    pub spacing_ms: u64,
}

/// The other of two machines under one identity. Which of the two is the true one nobody here can know: this
/// is the one that was not heard last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinWhy {
    /// Life of its agent; `None`: it has not been heard since the controller's start.
    pub boot: Option<Boot>,
    /// Where it was last heard from.
    pub address: Option<SocketAddr>,
    /// How long ago, milliseconds; `None`: before the controller's start.
    pub silence_ms: Option<u64>,
    /// If it stays silent it is taken for gone in so long, milliseconds; zero: at the next sign of life of
    /// the host.
    pub over_in_ms: u64,
    /// The last that was heard of it is a goodbye.
    #[serde(default)]
    pub left: bool,
}

/// What came of a host in another version of the wire, sealed with its key: a recording may be, so it counts
/// for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherVersionWhy {
    /// Its agent's version of the wire.
    pub version: u8,
    /// The controller's.
    pub ours: u8,
    /// Such datagrams that were recognised.
    pub datagrams: u64,
    /// How long ago the last came, milliseconds.
    pub last_ago_ms: u64,
    /// Where that came from.
    pub from: SocketAddr,
}

/// Hosts whose agents speak another version of the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherVersionStatus {
    /// Which.
    pub version: u8,
    /// How many hosts, lately; of each shard at most 1,024 are counted.
    pub hosts: u64,
    /// Datagrams of theirs that were recognised.
    pub datagrams: u64,
    /// When the last came, milliseconds since 1970.
    pub last_ms: Wall,
    /// Some of the hosts.
    pub named: Vec<HostId>,
}

/// What the detector knows of one host right now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostWhy {
    /// Where it stands in its shard.
    pub state: State,
    /// Which shard.
    pub shard: u16,
    /// Life of its agent.
    pub boot: Boot,
    /// Number of its newest datagram.
    pub seq: Seq,
    /// Time since the last proof of life, milliseconds; `None` before the first.
    pub silence_ms: Option<u64>,
    /// When the next beat is expected, milliseconds from now (negative: it is overdue); `None`: none is.
    pub expected_in_ms: Option<i64>,
    /// How much later than expected it may come, milliseconds; `None`: nothing is expected of it.
    pub margin_ms: Option<f64>,
    /// What set the margin: `learned`, `prior`, `floor`, `ceiling` or `frozen`.
    pub margin_source: String,
    /// When it becomes suspect, milliseconds from now; `None` if it can't.
    pub deadline_in_ms: Option<i64>,
    /// The gap that its last beat announced, milliseconds.
    pub gap_ms: u64,
    /// Mean of recent inter-arrival times, milliseconds.
    pub inter_arrival_mean_ms: f64,
    /// Mean deviation of recent inter-arrival times, milliseconds.
    pub inter_arrival_deviation_ms: f64,
    /// What 99 of 100 inter-arrival times do not exceed, about, milliseconds.
    #[serde(default)]
    pub inter_arrival_p99_ms: f64,
    /// How overdue its beats were while it was calm.
    pub overdue: Vec<OverdueBin>,
    /// How overdue they were within sixteen beats of a missing or unusually late one.
    pub overdue_disturbed: Vec<OverdueBin>,
    /// Whether it is `calm` or `disturbed` now.
    pub context: String,
    /// The margin that costs least while it is calm, before the bounds, milliseconds.
    pub margin_calm_ms: f64,
    /// The same while it is disturbed.
    pub margin_disturbed_ms: f64,
    /// Suspicions of it, alive, to be foreseen in a day; `None`: its margin is frozen, or it has no beats.
    pub mistakes_foreseen_per_day: Option<f64>,
    /// What an operator decided.
    pub knobs: KnobsWhy,
    /// The labels that make its group, as `key=value, …`; empty: it has none of them.
    #[serde(default)]
    pub group: String,
    /// Beats that its group has taught this shard.
    pub group_beats: u64,
    /// Beats learned from (decayed).
    pub beats_learned: f64,
    /// The newest arrivals' overdue times, milliseconds, newest first.
    pub last_overdue_ms: Vec<f64>,
    /// How late the host's own timer was for each of them, milliseconds.
    pub last_late_ms: Vec<u16>,
    /// How late its own timer fired for its last beat, milliseconds.
    pub late_ms: u16,
    /// Suspicions that proved wrong (same boot came back).
    pub mistakes: u32,
    /// Probing, if it is.
    pub probes: Option<ProbeWhy>,
    /// What excuses its silence, or did until it was judged.
    #[serde(default)]
    pub excuse: Option<ExcuseWhy>,
    /// The other machine, if two answered under its identity.
    #[serde(default)]
    pub twin: Option<TwinWhy>,
    /// Its agent speaks another version of the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_version: Option<OtherVersionWhy>,
    /// How long ago this shard began to listen, milliseconds.
    #[serde(default)]
    pub listening_ms: u64,
    /// This shard's drop share in the last window, parts per million.
    pub shard_drop_ppm: u64,
    /// How far this shard's judging lags, milliseconds.
    pub shard_lag_ms: u64,
}

/// A receiver's report of how an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The order's token.
    pub token: Token,
    /// Who reports; may be left out of an order that went to one receiver only.
    pub receiver: Option<String>,
    /// Whether it could not be done.
    pub failed: bool,
    /// In its words; may be empty.
    pub reason: String,
}

/// Why the controller could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No such host.
    #[error("no host {0} is registered")]
    UnknownHost(HostId),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// What was reported is of an order that is no longer the one that counts.
    #[error("{message}")]
    Stale {
        /// What is wrong.
        message: String,
        /// The newest order's token.
        highest: Token,
    },
    /// No such maintenance window.
    #[error("{0}")]
    Unknown(String),
    /// What is asked for does not fit how things stand.
    #[error("{0}")]
    Conflict(String),
    /// A shard did not answer in time.
    #[error("shard {0} did not answer in time")]
    Busy(u16),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The running controller.
#[async_trait]
pub trait Control: Send + Sync {
    /// The controller, for people.
    async fn status(&self) -> Status;

    /// Why it distrusts itself right now; empty is good.
    fn doubts(&self) -> Vec<Doubt>;

    /// For how long each reason held since the start, over all shards.
    fn doubted_for(&self) -> BTreeMap<DoubtReason, Duration>;

    /// Whether it can do its work: `Err` says why not (store unwritable, a shard stuck, blind).
    async fn ready(&self) -> Result<(), Vec<String>>;

    /// What the detector knows of a host right now.
    async fn why(&self, host: HostId) -> Result<HostWhy, ControlError>;

    /// Registers expected hosts as pending.
    async fn import(&self, hosts: Vec<ImportHost>) -> Result<ImportReport, ControlError>;

    /// Removes a host from the registry; it comes back if it says hello again.
    async fn forget(&self, host: HostId) -> Result<(), ControlError>;

    /// The same for a host whose keys were revoked, which therefore does not come back; with the reason.
    async fn revoke(&self, host: HostId, reason: String) -> Result<(), ControlError>;

    /// Keeps a host's margin where an operator wants it, or lets it learn again. Answers where it is kept.
    async fn freeze(&self, host: HostId, what: Freeze) -> Result<Option<Duration>, ControlError>;

    /// Journals how a host enrolled, as `host.enrolled`, in order with what else is journaled of it.
    async fn enrolled(&self, host: HostId, news: Map<String, Value>) -> Result<(), ControlError>;

    /// Takes an operator's word that of two machines under one identity one is left.
    async fn single(&self, host: HostId, word: Word) -> Result<(), ControlError>;

    /// Holds all actions for a time; state stays true and visible. Zero ends a pause.
    async fn pause(&self, span: Duration, reason: String) -> Result<Option<Pause>, ControlError>;

    /// Sends dead letters again, after judging each against the present state.
    async fn redrive(&self, what: Redrive) -> Result<RedriveReport, ControlError>;

    /// Held orders, the oldest first: of one domain (by its labels) or all, after a place, at most `limit`.
    async fn holds(
        &self,
        domain: Option<BTreeMap<String, String>>,
        after: Option<String>,
        limit: usize,
    ) -> Result<HoldsPage, ControlError>;

    /// What holds a host's order, if something does.
    async fn hold_of(&self, host: HostId) -> Result<Option<HoldStatus>, ControlError>;

    /// What rules keep back of a host.
    async fn waits_of(&self, host: HostId) -> Result<Vec<WaitStatus>, ControlError>;

    /// Each rule: whom it means, what waits for it, what is odd about it.
    async fn rules(&self) -> Result<RulesReport, ControlError>;

    /// What would be told of a host, and when, if this happened to it then (`None`: now). Changes nothing.
    async fn foresee(
        &self,
        host: HostId,
        kind: EventKind,
        at: Option<Wall>,
    ) -> Result<Foresight, ControlError>;

    /// Lets held orders go: one host's at once, a domain's at its action rate, each if it is still true.
    async fn approve(&self, target: Target, word: Word) -> Result<HoldReport, ControlError>;

    /// Has held orders cancelled.
    async fn reject(&self, target: Target, word: Word) -> Result<HoldReport, ControlError>;

    /// Takes a receiver's report of how an order of an incident ended.
    async fn complete(&self, incident: IncidentId, what: Completion) -> Result<(), ControlError>;

    /// All maintenance windows as of a moment ago, the coming ones too.
    fn maintenance(&self) -> Arc<Maintenance>;

    /// Adds a window, which gets its name here; answers it with how many registered hosts it covers.
    async fn add_window(&self, window: Window) -> Result<WindowAdded, ControlError>;

    /// Ends a window before its time. `why`: in an operator's words.
    async fn end_window(&self, id: WindowId, why: String) -> Result<Arc<Window>, ControlError>;

    /// The controller's own drills.
    fn canary(&self) -> &Canary;

    /// Who could take over from a host.
    async fn candidates(&self, ask: CandidatesAsk) -> Result<CandidatesReport, ControlError>;

    /// Where each receiver stands, by name: those of the config, and others that the store has unfinished
    /// or dead deliveries for.
    async fn receivers(&self) -> Result<Vec<ReceiverReport>, ControlError>;

    /// Journals who had the API change what, as `controller.audit`, in order with what else is journaled.
    ///
    /// # Errors
    /// It will not be journaled, or it is not known whether it will in the end.
    async fn audit(&self, data: Map<String, Value>, until: Journaled) -> Result<(), ControlError>;

    /// Journals a test event for one receiver of the config, which is then delivered as any other.
    async fn test_receiver(&self, receiver: &str) -> Result<TestBegun, ControlError>;
}
