//! What a person may ask a running agent: plain figures, ready to be serialised.
//!
//! Lengths of time are in the unit that ends their name; `None` = not known yet.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::id::{Boot, ControllerId, Epoch, HostId};
use heartwatch_common::time::Instant;
use serde::{Deserialize, Serialize};

use super::session::Session;
use super::{Core, Reject};

/// The protocol's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoreStatus {
    /// Who this host is.
    pub host: HostId,
    /// This life of the agent.
    pub boot: Boot,
    /// The interval in force, milliseconds.
    pub interval_ms: f64,
    /// The interval without an assignment, milliseconds.
    pub interval_default_ms: f64,
    /// Time until the next planned beat, milliseconds.
    pub next_beat_ms: f64,
    /// Probes passed on to other hosts for a controller.
    pub relayed: u64,
    /// Answers of other hosts brought back to it.
    pub relay_replies: u64,
    /// What came in and was ignored, by reason; only those that happened.
    pub rejects: BTreeMap<String, u64>,
    /// One per configured controller, in the order of the configuration.
    pub controllers: Vec<ControllerStatus>,
}

/// One controller, as this agent sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControllerStatus {
    /// Its id, learnt from its acks.
    pub id: Option<ControllerId>,
    /// Whether it answers at present.
    pub heard: bool,
    /// Time since its last ack, milliseconds.
    pub last_ack_age_ms: Option<f64>,
    /// Latest round trip, milliseconds.
    pub rtt_last_ms: Option<f64>,
    /// Shortest round trip of this boot, milliseconds.
    pub rtt_min_ms: Option<f64>,
    /// Smoothed round trip, milliseconds.
    pub rtt_smoothed_ms: Option<f64>,
    /// The interval that it assigned, within local bounds, milliseconds.
    pub assigned_interval_ms: Option<f64>,
    /// Whether its epoch is known.
    pub epoch_known: bool,
    /// Whether it acknowledged our hello.
    pub hello_acked: bool,
    /// The last seq used.
    pub seq: u32,
    /// Beats sent.
    pub beats_sent: u64,
    /// Hellos sent.
    pub hellos_sent: u64,
    /// Beats and hellos that asked for an ack.
    pub acks_wanted: u64,
    /// Acks that answered such a request.
    pub acks_received: u64,
    /// Requests without an answer, less those of the last 2 s.
    pub losses: u64,
    /// `losses` ÷ `acks_wanted`: the estimated share of round trips that fail.
    pub loss_ratio: Option<f64>,
    /// Acks that said "what you sent proved nothing".
    pub challenges: u64,
    /// Acks that matched nothing unacknowledged.
    pub acks_unmatched: u64,
    /// Probes answered.
    pub probes_answered: u64,
    /// Times that its acks stopped.
    pub lost: u64,
}

fn ms(d: Duration) -> f64 {
    // Whole microseconds: the wire knows no finer.
    d.as_micros() as f64 / 1e3
}

impl ControllerStatus {
    fn new(s: &Session, now: Instant) -> Self {
        let losses = s.acks_missing(now);
        Self {
            id: s.id,
            heard: s.is_heard(),
            last_ack_age_ms: s.acked.map(|at| ms(now.since(at))),
            rtt_last_ms: s.round_trip.map(|r| ms(r.last)),
            rtt_min_ms: s.round_trip.map(|r| ms(r.min)),
            rtt_smoothed_ms: s.round_trip.map(|r| ms(r.smoothed)),
            assigned_interval_ms: s.assigned.map(ms),
            epoch_known: s.epoch != Epoch(0),
            hello_acked: s.hello_due.is_none(),
            seq: s.seq(),
            beats_sent: s.counts.beats,
            hellos_sent: s.counts.hellos,
            acks_wanted: s.counts.acks_wanted,
            acks_received: s.counts.acks_received,
            losses,
            loss_ratio: (s.counts.acks_wanted > 0)
                .then(|| losses as f64 / s.counts.acks_wanted as f64),
            challenges: s.counts.challenges,
            acks_unmatched: s.counts.acks_unmatched,
            probes_answered: s.counts.probes_answered,
            lost: s.counts.lost,
        }
    }
}

impl Core {
    /// The protocol's state at `now`.
    pub fn status(&self, now: Instant) -> CoreStatus {
        let rejects = Reject::ALL
            .iter()
            .filter(|r| self.rejects(**r) > 0)
            .map(|r| (r.as_str().to_owned(), self.rejects(*r)))
            .collect();
        CoreStatus {
            host: self.settings.host,
            boot: self.settings.boot,
            interval_ms: ms(self.schedule.interval()),
            interval_default_ms: ms(self.settings.interval),
            next_beat_ms: ms(self.schedule.next().since(now)),
            relayed: self.relays.passed_on,
            relay_replies: self.relays.brought_back,
            rejects,
            controllers: self.sessions.iter().map(|s| ControllerStatus::new(s, now)).collect(),
        }
    }

    /// How many datagrams were ignored for that reason.
    pub fn rejects(&self, reason: Reject) -> u64 {
        self.rejects[reason as usize]
    }
}

impl Reject {
    /// The reason as a word, as it stands in status output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::OtherVersion => "other_version",
            Self::WrongHost => "wrong_host",
            Self::WrongTag => "wrong_tag",
            Self::WrongKind => "wrong_kind",
            Self::OtherBoot => "other_boot",
            Self::Unmatched => "unmatched",
            Self::ProbeLimit => "probe_limit",
            Self::RelayStale => "relay_stale",
            Self::RelayAddress => "relay_address",
            Self::RelayLimit => "relay_limit",
            Self::Left => "left",
        }
    }
}
