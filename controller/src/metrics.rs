//! Counters that shards and the policy write and `/metrics` reads. Relaxed atomics, one writer each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use heartwatch_common::time::Instant;

use crate::detector::doubt::DoubtReason;
use crate::intervals::CLASSES_MAX;

/// Why a datagram counted for nothing. The peer's fault or the network's; never a state change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Reject {
    /// Shorter than its kind.
    TooShort,
    /// Longer than its kind.
    TooLong,
    /// A version that is not spoken here, and not sealed by a host of this fleet; or there were too many of
    /// those for each tag to be looked at.
    Version,
    /// A version that is not spoken here, sealed with the key of the host that it names: an agent that is
    /// older or newer than this controller.
    OtherVersion,
    /// A kind that agents do not send.
    Kind,
    /// Malformed fields or an impossible gap.
    Malformed,
    /// Its tag is wrong, or its key unknown.
    Unauthentic,
    /// It names a generation of its host's key that is revoked.
    Revoked,
    /// Its host is not registered and it is no hello.
    UnknownHost,
    /// Its number did not rise: a replay, a duplicate, or reordered on the way.
    NotRising,
    /// From an earlier boot of the host.
    EarlierBoot,
    /// Echoes another epoch: a recording, or not yet acked since the controller's start.
    WrongEpoch,
    /// Its send time does not fit the host's clock: delayed on purpose, or the clock stepped.
    OffTime,
    /// A probe reply that answers no probe of ours.
    UnaskedReply,
    /// The registry of this shard is full.
    Full,
    /// It belongs to another shard and was handed over.
    OtherShard,
    /// Not looked at: its source has sent nothing but what does not authenticate, and the shard is behind.
    OverBudget,
}

impl Reject {
    /// Every reason.
    pub const ALL: [Self; 17] = [
        Self::TooShort,
        Self::TooLong,
        Self::Version,
        Self::OtherVersion,
        Self::Kind,
        Self::Malformed,
        Self::Unauthentic,
        Self::Revoked,
        Self::UnknownHost,
        Self::NotRising,
        Self::EarlierBoot,
        Self::WrongEpoch,
        Self::OffTime,
        Self::UnaskedReply,
        Self::Full,
        Self::OtherShard,
        Self::OverBudget,
    ];

    /// As it stands in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::TooLong => "too_long",
            Self::Version => "version",
            Self::OtherVersion => "other_version",
            Self::Kind => "kind",
            Self::Malformed => "malformed",
            Self::Unauthentic => "unauthentic",
            Self::Revoked => "revoked",
            Self::UnknownHost => "unknown_host",
            Self::NotRising => "not_rising",
            Self::EarlierBoot => "earlier_boot",
            Self::WrongEpoch => "wrong_epoch",
            Self::OffTime => "off_time",
            Self::UnaskedReply => "unasked_reply",
            Self::Full => "full",
            Self::OtherShard => "other_shard",
            Self::OverBudget => "over_budget",
        }
    }
}

/// Upper bounds of the detection-time histogram, seconds; one more bucket holds the rest.
pub const DETECTION_BUCKETS: [f64; 11] =
    [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0];

/// Since when each reason for doubt holds, and for how long they held in all.
#[derive(Debug, Default)]
pub struct DoubtMetrics {
    /// Monotonic microseconds; 0: it does not hold.
    since_us: [AtomicU64; DoubtReason::ALL.len()],
    /// Microseconds in all, but for the present time.
    ended_us: [AtomicU64; DoubtReason::ALL.len()],
}

impl DoubtMetrics {
    /// Says since when a reason holds. One writer.
    pub fn set(&self, why: DoubtReason, since: Option<Instant>, now: Instant) {
        let (was, is) =
            (get(&self.since_us[why as usize]), since.map_or(0, |s| s.as_micros().max(1)));
        if was != is {
            if was != 0 {
                let span = now.as_micros().saturating_sub(was);
                add(&self.ended_us[why as usize], span);
            }
            set(&self.since_us[why as usize], is);
        }
    }

    /// Since when a reason holds.
    pub fn since(&self, why: DoubtReason) -> Option<Instant> {
        Some(get(&self.since_us[why as usize])).filter(|us| *us > 0).map(Instant::from_micros)
    }

    /// How long it held in all.
    pub fn total(&self, why: DoubtReason, now: Instant) -> Duration {
        let present = self.since(why).map_or(Duration::ZERO, |since| now.since(since));
        Duration::from_micros(get(&self.ended_us[why as usize])) + present
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: AtomicU64,)*
            /// Gauge: hosts that are alive, suspect or down, by class of intervals.
            pub class_hosts: [AtomicU64; CLASSES_MAX],
            /// Datagrams rejected, by reason.
            pub rejects: [AtomicU64; Reject::ALL.len()],
            /// Detection times (crash at a uniformly random moment is not known here: from the last
            /// proof of life to `down`), by bucket.
            pub detection: [AtomicU64; DETECTION_BUCKETS.len() + 1],
            /// Why this shard distrusts its own eyes.
            pub doubts: DoubtMetrics,
            /// Whether judging is excused by own losses for longer than `doubt_max`.
            pub blind: AtomicBool,
        }
    };
}

counters! {
    /// One shard's counters. "Gauge" says which ones also fall.
    ShardMetrics {
        /// Datagrams read from the sockets.
        received,
        /// Bytes of them.
        received_bytes,
        /// Beats that proved life.
        beats,
        /// Hellos taken.
        hellos,
        /// Goodbyes taken.
        leaves,
        /// Probe replies that answered a probe of ours.
        probe_replies,
        /// Beats that hosts numbered but that never came (gaps in seq, less what came late).
        beats_lost,
        /// Beats that arrived behind a later one.
        beats_late,
        /// Datagrams that the kernel dropped at our sockets.
        dropped,
        /// Acks sent because they were asked for.
        acks,
        /// Acks sent as challenges, because an epoch was not ours.
        challenges,
        /// Probes sent.
        probes,
        /// Requests to peers to probe a suspect.
        vias,
        /// Answers of suspects that peers brought back and that answered a request of ours.
        testimonies,
        /// ICMP port-unreachable answers that quoted one of our nonces.
        unreachables,
        /// Datagrams that could not be sent.
        send_errors,
        /// Hosts that became suspect.
        suspects,
        /// Suspects that proved alive with the same boot: mistakes.
        mistakes,
        /// Hosts that became down.
        downs,
        /// Downs that proved alive with the same boot: false downs, or long cuts.
        false_downs,
        /// Deadlines that passed while own losses, or a moment in which nobody was heard, excused the host.
        excused,
        /// Lines of `--record` that did not fit its queue; those that the disk refused, with shard 0.
        record_dropped,
        /// Sum of detection times, microseconds.
        detection_us,
        /// Gauge: hosts of this shard.
        hosts,
        /// Gauge: hosts being probed.
        probing,
        /// Gauge: hosts that answer peers, but not us.
        unreachable_hosts,
        /// Gauge: how far judging lags behind now, microseconds.
        lag_us,
        /// Gauge: the longest time of late that it was away from its beat sockets, naps included, µs.
        longest_pass_us,
        /// Gauge: share of datagrams dropped in the last window, parts per million.
        drop_ppm,
        /// Gauge: receive buffer as the kernel granted it, bytes.
        receive_buffer_bytes,
        /// Gauge: notices waiting for the policy.
        outbox_len,
        /// Loops of the shard's thread; its standing still means a stuck shard.
        loops,
    }
}

impl ShardMetrics {
    /// Counts a reject.
    pub fn reject(&self, why: Reject) {
        self.rejects[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Records one detection time.
    pub fn detected(&self, micros: u64) {
        let seconds = micros as f64 / 1e6;
        let bucket = DETECTION_BUCKETS.iter().position(|b| seconds <= *b);
        self.detection[bucket.unwrap_or(DETECTION_BUCKETS.len())].fetch_add(1, Ordering::Relaxed);
        self.detection_us.fetch_add(micros, Ordering::Relaxed);
    }
}

/// Adds one.
pub fn inc(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Adds `n` to a counter that nobody else writes: no locked instruction.
pub fn bump(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Adds `n`.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Sets a gauge.
pub fn set(gauge: &AtomicU64, value: u64) {
    gauge.store(value, Ordering::Relaxed);
}

/// Reads one.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
