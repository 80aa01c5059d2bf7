//! The record of one host and the turns its story can take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::id::{Boot, Generation, HostId, KeyId, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{LeaveReason, RoundTrip};
use serde::Serialize;

use super::doubt::DoubtReason;
use super::knobs::Profile;
use super::peers::Domain;
use super::timeout::{GroupId, Learned, MarginSource, Patience};
use crate::event::{Cause, State};
use crate::ingest::admit::Seen;
use crate::view::LiveCell;

/// Newest overdue times kept for `why`.
pub const RECENT: usize = 8;

/// What is known of a host when it is registered.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who.
    pub id: HostId,
    /// Where it stood.
    pub state: State,
    /// Its last proved life.
    pub boot: Boot,
    /// Lowest key generation that is accepted.
    pub generation: Generation,
    /// Where it was last heard from.
    pub address: Option<SocketAddr>,
    /// How long it has been in its state.
    pub in_state: Duration,
    /// Expected, and already reported missing.
    pub missing_reported: bool,
    /// Two boots answer under this identity.
    pub duplicate: bool,
    /// What its labels make of it.
    pub profile: Profile,
    /// Where an operator wants its margin kept, if anywhere.
    pub frozen: Option<Duration>,
    /// Its failure domain.
    pub domain: Domain,
    /// Where its live figures are published.
    pub live: Arc<LiveCell>,
}

/// Why a host's silence is not held against it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Excused {
    pub(crate) since: Instant,
    /// Looked at again then.
    pub(crate) until: Instant,
    pub(crate) why: DoubtReason,
}

impl Excused {
    /// How long it has been excused, as of `at`.
    pub(crate) fn span(&self, at: Instant) -> Duration {
        self.until.min(at).since(self.since)
    }
}

/// The record of one host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) state: State,
    pub(crate) boot: Boot,
    pub(crate) boot_max: Boot,
    pub(crate) seq: Seq,
    pub(crate) sent: Instant,
    pub(crate) generation: Generation,
    pub(crate) address: Option<SocketAddr>,
    /// When the next beat is expected.
    pub(crate) expected: Instant,
    /// When patience ends.
    pub(crate) deadline: Instant,
    pub(crate) last_arrival: Option<Instant>,
    pub(crate) gap: Duration,
    pub(crate) learned: Learned,
    pub(crate) group: GroupId,
    /// Index of its knobs.
    pub(crate) knobs: u8,
    /// Its class of intervals.
    pub(crate) class: u8,
    /// Where an operator keeps its margin.
    pub(crate) frozen: Option<Duration>,
    /// Inter-arrival mean and mean deviation, microseconds; 0 = none yet.
    pub(crate) mean_us: u32,
    pub(crate) deviation_us: u32,
    /// What 99 of 100 inter-arrival times do not exceed, about, microseconds; 0 = none yet.
    pub(crate) p99_us: u32,
    /// Newest overdue times, microseconds, newest at `recent_len − 1` modulo [`RECENT`].
    pub(crate) recent: [i32; RECENT],
    pub(crate) recent_len: u32,
    /// How much of each was its own timer's doing, milliseconds.
    pub(crate) recent_late: [u16; RECENT],
    pub(crate) late_ms: u16,
    pub(crate) mistakes: u32,
    pub(crate) challenged_until: Instant,
    /// When it may next be challenged by an ack, and by a nonce.
    pub(crate) challenge_next: Instant,
    pub(crate) nonce_next: Instant,
    pub(crate) hello_wanted: bool,
    pub(crate) facts_hash: u64,
    /// The life before the present one, and until when its return would mean two of them.
    pub(crate) other_boot: Boot,
    pub(crate) other_until: Instant,
    pub(crate) duplicate: bool,
    pub(crate) missing_reported: bool,
    /// What excuses its silence, or did before it was judged; `None` once it is heard again.
    pub(crate) excused: Option<Excused>,
    /// Which key its last proof of life was sealed under; `None` since the controller's start.
    pub(crate) key: Option<(KeyId, Generation)>,
    /// Which of the shard's sockets its last proof of life came in by.
    pub(crate) listen: u8,
    /// Its failure domain, by the newest labels that are known.
    pub(crate) domain: Domain,
    /// Its agent's round trip to us, as its beats tell.
    pub(crate) round_trip: RoundTrip,
    pub(crate) live: Arc<LiveCell>,
}

impl Host {
    pub(crate) fn seen(&self) -> Seen {
        Seen {
            boot: self.boot,
            boot_max: self.boot_max,
            seq: self.seq,
            sent: self.sent,
            baseline_ns: self.learned.baseline_ns(),
            strict: matches!(self.state, State::Suspect | State::Down),
            challenged_until: self.challenged_until,
        }
    }

    /// Learns the plain inter-arrival time, for people.
    pub(crate) fn inter_arrival(&mut self, since_last: Duration) {
        let us = i64::try_from(since_last.as_micros()).unwrap_or(i64::MAX).min(i64::from(u32::MAX));
        if self.mean_us == 0 {
            self.mean_us = us as u32;
            self.deviation_us = (us / 2) as u32;
            self.p99_us = self.p99_us.max(us as u32);
            return;
        }
        self.p99_us = p99_step(self.p99_us, us as u32);
        // RFC 6298's smoothing: mean by eighths of the error, deviation by quarters of its size.
        let error = us - i64::from(self.mean_us);
        let spread = error.abs() - i64::from(self.deviation_us);
        self.mean_us = (i64::from(self.mean_us) + error / 8) as u32;
        self.deviation_us = (i64::from(self.deviation_us) + spread / 4) as u32;
    }

    /// How much later than expected its next beat may come, and what says so.
    pub(crate) fn margin(&self, patience: &Patience) -> (Duration, MarginSource) {
        self.frozen.map_or_else(|| self.learned.margin(patience), |m| (m, MarginSource::Frozen))
    }

    pub(crate) fn remember_overdue(&mut self, overdue_ns: i64, late_ms: u16) {
        let us = (overdue_ns / 1_000).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        self.recent[self.recent_len as usize % RECENT] = us;
        self.recent_late[self.recent_len as usize % RECENT] = late_ms;
        self.recent_len = self.recent_len.wrapping_add(1);
    }

    /// Places of the newest overdue times, newest first.
    fn recent_places(&self) -> impl Iterator<Item = usize> + use<> {
        let len = self.recent_len as usize;
        (1..=len.min(RECENT)).map(move |back| (len - back) % RECENT)
    }

    /// Newest overdue times, newest first, milliseconds.
    pub(crate) fn recent_ms(&self) -> Vec<f64> {
        self.recent_places().map(|at| f64::from(self.recent[at]) / 1e3).collect()
    }

    /// How late the host's own timer was each time, newest first, milliseconds.
    pub(crate) fn recent_late_ms(&self) -> Vec<u16> {
        self.recent_places().map(|at| self.recent_late[at]).collect()
    }
}

/// Moves an estimate of the 99th percentile by one sample: up by 99 steps if it was too low, down by one
/// otherwise, so that it stands still where one in a hundred lies above.
///
/// Source: Ma, Muthukrishnan, Sandler, "Frugal Streaming for Estimating Quantiles" (2013), with the length
/// of its steps in proportion to the quantile instead of their chance: no dice, four bytes, integers.
fn p99_step(p99_us: u32, sample_us: u32) -> u32 {
    let step = (p99_us >> 12).max(1);
    if sample_us > p99_us {
        p99_us.saturating_add(step.saturating_mul(99))
    } else {
        p99_us.saturating_sub(step)
    }
}

/// How a host's story turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// First proof of life.
    Joined,
    /// Overdue; probes are on their way.
    Suspect,
    /// Its agent answers hosts in other failure domains, but not us; still suspect.
    Unreachable,
    /// Nobody answered.
    Down(Cause),
    /// Proof of life from suspect, down or left.
    Recovered {
        /// The life is the one that we gave up: we were wrong, unless it was only unreachable.
        same_boot: bool,
    },
    /// A new life without an outage in between.
    Restarted,
    /// Said goodbye.
    Left {
        /// Why.
        reason: LeaveReason,
        /// How long it expects to be away; zero = not said.
        expected: Duration,
    },
    /// Expected, but never heard in time.
    Missing,
    /// Two boots answer under one identity.
    Duplicate {
        /// The other one.
        other: Boot,
    },
    /// Left or down for so long that it may be forgotten.
    Forgettable,
}

/// What the detector saw when a story turned, for events and `why`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Evidence {
    /// Time since the last proof of life, milliseconds.
    pub silence_ms: u64,
    /// How far past the expected arrival it was, milliseconds (negative: not yet due).
    pub overdue_ms: i64,
    /// The margin that it was given, milliseconds.
    pub margin_ms: f64,
    /// What set it.
    pub margin_source: &'static str,
    /// The gap that its last beat announced, milliseconds.
    pub gap_ms: u64,
    /// Number of its newest datagram.
    pub last_seq: u32,
    /// Probes sent.
    pub probes_sent: u16,
    /// Probes that its kernel answered with "nobody listens".
    pub probes_unreachable: u16,
    /// Requests to peers to probe it too.
    pub peers_asked: u16,
    /// Answers of its agent that peers brought back.
    pub testimonies: u16,
    /// Share of datagrams that this shard dropped in its last window, parts per million.
    pub drop_ppm: u64,
    /// Whether it was judged although own losses might have excused it (`doubt_max` was used up).
    pub judged_in_doubt: bool,
    /// Which doubt of the controller excused it before, if any did.
    pub excused_by: &'static str,
    /// For how long, milliseconds.
    pub excused_ms: u64,
    /// Suspicions of this host that proved wrong so far.
    pub mistakes: u32,
}

/// One turn of one host's story.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// Whose.
    pub host: HostId,
    /// What.
    pub turn: Turn,
    /// Where it stands now.
    pub state: State,
    /// Its newest proved life.
    pub boot: Boot,
    /// Where it was last heard from.
    pub address: Option<SocketAddr>,
    /// When, on the shard's clock.
    pub at: Instant,
    /// Two boots answer under this identity.
    pub duplicate: bool,
    /// What was seen.
    pub evidence: Evidence,
}

#[cfg(test)]
mod tests {
    use super::p99_step;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn the_estimate_settles_where_one_in_a_hundred_lies_above() {
        let mut rng = StdRng::seed_from_u64(2);
        // Uniform from 0.9 to 1.1 s, then a tenth as long: it follows down too.
        for (low, high) in [(900_000u32, 1_100_000u32), (90_000, 110_000)] {
            let mut p99 = 1_000_000;
            let mut above = 0;
            for k in 0..60_000 {
                let x = rng.random_range(low..high);
                above += u32::from(k >= 30_000 && x > p99);
                p99 = p99_step(p99, x);
            }
            assert!((250..350).contains(&above), "{above} of 30,000 above {p99}");
            assert!(p99 > high - (high - low) / 10 && p99 < high + high / 30, "{p99}");
        }
    }

    #[test]
    fn the_estimate_stays_within_its_four_bytes() {
        assert_eq!(p99_step(u32::MAX, u32::MAX), u32::MAX - (u32::MAX >> 12));
        assert_eq!((p99_step(0, 7), p99_step(u32::MAX - 1, u32::MAX)), (99, u32::MAX));
        assert_eq!(p99_step(0, 0), 0);
    }
}
