//! The record of one host and the turns its story can take.

use std::mem::offset_of;
use std::net::{SocketAddr, SocketAddrV6};
use std::time::Duration;

use heartwatch_common::id::{Boot, Generation, HostId, KeyId, Seq};
use heartwatch_common::time::{Instant, nanos};
use heartwatch_common::wire::{LeaveReason, RoundTrip};
use serde::Serialize;

use super::doubt::DoubtReason;
use super::knobs::Profile;
use super::peers::Domain;
use super::timeout::{GroupId, Learned, MarginSource, Patience};
use crate::event::{Cause, State};
use crate::ingest::admit::{Newest, Past};
use crate::view::LiveId;

/// Newest overdue times kept for `why`.
pub const RECENT: usize = 4;

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
    /// It left, and said that it would be back within this, from now.
    pub back_in: Option<Duration>,
    /// What its labels make of it.
    pub profile: Profile,
    /// Where an operator wants its margin kept, if anywhere.
    pub frozen: Option<Duration>,
    /// Its failure domain.
    pub domain: Domain,
    /// Where its live figures are published.
    pub live: LiveId,
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

/// An internet address in 24 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Address {
    ip: [u8; 16],
    scope: u32,
    port: u16,
    /// 0 = none, 4, 6.
    family: u8,
}

impl Address {
    pub(crate) fn get(self) -> Option<SocketAddr> {
        let [a, b, c, d, ..] = self.ip;
        match self.family {
            4 => Some(SocketAddr::from(([a, b, c, d], self.port))),
            6 => Some(SocketAddrV6::new(self.ip.into(), self.port, 0, self.scope).into()),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    #[inline]
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => {
                let mut ip = [0; 16];
                ip[..4].copy_from_slice(&v4.ip().octets());
                Self { ip, scope: 0, port: v4.port(), family: 4 }
            }
            SocketAddr::V6(v6) => {
                Self { ip: v6.ip().octets(), scope: v6.scope_id(), port: v6.port(), family: 6 }
            }
        }
    }
}

/// Two boots answer under this identity.
pub(crate) const DUPLICATE: u8 = 1;
/// [`Rare::excused`] says why its silence is not held against it.
pub(crate) const EXCUSED: u8 = 2;
/// An operator keeps its margin at `frozen_ms`.
pub(crate) const FROZEN: u8 = 4;
/// It has been heard since the start, under the key that `key_id` and `key_generation` tell.
pub(crate) const KEYED: u8 = 8;
/// It shall say hello.
pub(crate) const HELLO_WANTED: u8 = 16;
/// It is expected, and was reported missing.
pub(crate) const MISSING_REPORTED: u8 = 32;
/// It left, and said when it would be back.
pub(crate) const AWAITED: u8 = 64;

/// The record of one host: four cache lines, of which a beat like any other touches three.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
pub(crate) struct Host {
    // First and second line: what says whether a beat is fresh, and until when the host is alive.
    pub(crate) sent: Instant,
    /// When the next beat is expected.
    pub(crate) expected: Instant,
    /// When it was last heard; zero: never since the start.
    heard: Instant,
    /// When its row will next be looked at, while it stands in one.
    pub(crate) due: Instant,
    pub(crate) learned: Learned,
    pub(crate) id: HostId,
    pub(crate) seq: Seq,
    pub(crate) boot: Boot,
    /// What its last datagram announced, microseconds.
    gap_us: u32,
    pub(crate) generation: Generation,
    pub(crate) key_generation: Generation,
    pub(crate) key_id: KeyId,
    pub(crate) flags: u8,
    pub(crate) state: State,
    /// Index of its knobs.
    pub(crate) knobs: u8,
    /// Its class of intervals.
    pub(crate) class: u8,
    pub(crate) group: GroupId,
    /// Which of the shard's sockets its last proof of life came in by.
    pub(crate) listen: u8,
    /// Its agent's round trip to us, as its beats tell.
    pub(crate) round_trip: RoundTrip,

    // Third line: what each beat leaves behind for people, and where it came from.
    pub(crate) address: Address,
    pub(crate) live: LiveId,
    /// Inter-arrival mean and mean deviation, microseconds; 0 = none yet.
    pub(crate) mean_us: u32,
    pub(crate) deviation_us: u32,
    /// What 99 of 100 inter-arrival times do not exceed, about, microseconds; 0 = none yet.
    pub(crate) p99_us: u32,
    /// Newest overdue times, microseconds, newest at `recent_len − 1` modulo [`RECENT`].
    recent: [i32; RECENT],
    /// How much of each was its own timer's doing.
    recent_late: [RoundTrip; RECENT],
    pub(crate) late_ms: u16,
    /// How many there are; from [`RECENT`] on, only its remainder counts.
    recent_len: u8,

    // Fourth line: what a beat like any other leaves alone.
    /// When patience ends, unless the host is alive and has been heard: see [`Host::deadline`].
    pub(crate) until: Instant,
    pub(crate) challenged_until: Instant,
    /// When it may next be challenged by an ack, and by a nonce.
    pub(crate) challenge_next: Instant,
    pub(crate) nonce_next: Instant,
    pub(crate) facts_hash: u64,
    pub(crate) boot_max: Boot,
    pub(crate) mistakes: u32,
    /// Its failure domain, by the newest labels that are known.
    pub(crate) domain: Domain,
    /// Where an operator keeps its margin, milliseconds, if [`FROZEN`].
    frozen_ms: u32,
}

/// Cache lines of a record that every beat needs.
pub(crate) const BEAT_LINES: usize = 3;

const _: () = assert!(size_of::<Option<Host>>() == 256, "four lines, none for the Option");
const _: () = assert!(offset_of!(Host, address) == 128 && offset_of!(Host, until) == 192);

/// What is known of few hosts at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rare {
    /// What excuses its silence, or did before it was judged.
    pub(crate) excused: Option<Excused>,
    /// The life before the present one, and until when its return would mean two of them.
    pub(crate) other_boot: Boot,
    /// Where it was heard from before.
    pub(crate) other_address: Address,
    /// [`DUPLICATE_WINDOW`](super::DUPLICATE_WINDOW) after it was last heard; zero: it can't come back.
    pub(crate) other_until: Instant,
    /// How often the two have taken turns since.
    pub(crate) turns: u8,
}

impl Host {
    /// One of which no more is known; `due` is when it must have been heard.
    pub(crate) fn new(known: &Known, due: Option<Instant>, now: Instant) -> Self {
        let mut host = Self {
            sent: Instant(0),
            expected: due.unwrap_or(now),
            heard: Instant(0),
            due: Instant::FAR,
            learned: Learned::default(),
            id: known.id,
            seq: Seq(0),
            boot: known.boot,
            gap_us: 1_000_000,
            generation: known.generation,
            key_generation: Generation(0),
            key_id: KeyId(0),
            flags: 0,
            state: known.state.heard(),
            knobs: 0,
            class: 0,
            group: GroupId(0),
            listen: 0,
            round_trip: RoundTrip::UNKNOWN,
            address: known.address.map_or_else(Address::default, Address::from),
            live: known.live,
            mean_us: 0,
            deviation_us: 0,
            p99_us: 0,
            recent: [0; RECENT],
            recent_late: [RoundTrip::UNKNOWN; RECENT],
            late_ms: 0,
            recent_len: 0,
            until: due.unwrap_or(Instant::FAR),
            challenged_until: Instant(0),
            challenge_next: Instant(0),
            nonce_next: Instant(0),
            facts_hash: 0,
            boot_max: known.boot,
            mistakes: 0,
            domain: known.domain,
            frozen_ms: 0,
        };
        host.flag(HELLO_WANTED, known.state == State::Pending);
        host.flag(DUPLICATE, known.duplicate);
        host.flag(MISSING_REPORTED, known.missing_reported);
        host.flag(AWAITED, known.state == State::Left && known.back_in.is_some());
        host.freeze(known.frozen);
        host
    }

    #[inline]
    pub(crate) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline]
    pub(crate) fn flag(&mut self, flag: u8, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// When it was last heard, since the start.
    #[inline]
    pub(crate) fn last_arrival(&self) -> Option<Instant> {
        Some(self.heard).filter(|at| at.0 > 0)
    }

    pub(crate) fn hear(&mut self, at: Instant) {
        self.heard = at;
    }

    /// What its last datagram announced.
    pub(crate) fn gap(&self) -> Duration {
        Duration::from_micros(u64::from(self.gap_us))
    }

    /// Takes an announced gap, which is below 72 minutes.
    #[inline]
    pub(crate) fn set_gap(&mut self, gap: Duration) {
        self.gap_us = u32::try_from(nanos(gap) / 1_000).unwrap_or(u32::MAX);
    }

    /// Whether it must be filed anew to be looked at by `deadline`, or had better be: a look before the next
    /// beat is due would find nothing but that, and would have to fetch the record for it. Now it is at hand.
    #[inline]
    pub(crate) fn is_filed_badly(&self, deadline: Instant) -> bool {
        self.due > deadline || self.due < self.expected
    }

    /// Whether its next beat will most likely have it filed anew: the look that it stands filed for comes
    /// before the beat after that one.
    #[inline]
    pub(crate) fn will_be_filed(&self) -> bool {
        self.due.0 < self.expected.0.saturating_add(u64::from(self.gap_us) * 1_000)
    }

    /// Keeps its margin there (to the millisecond), or lets it learn.
    pub(crate) fn freeze(&mut self, margin: Option<Duration>) {
        self.flag(FROZEN, margin.is_some());
        let ms = margin.unwrap_or_default().as_millis();
        self.frozen_ms = u32::try_from(ms).unwrap_or(u32::MAX);
    }

    /// Where an operator keeps its margin.
    pub(crate) fn frozen(&self) -> Option<Duration> {
        self.is(FROZEN).then(|| Duration::from_millis(u64::from(self.frozen_ms)))
    }

    /// Which key its last proof of life was sealed under; `None` since the controller's start.
    pub(crate) fn key(&self) -> Option<(KeyId, Generation)> {
        self.is(KEYED).then_some((self.key_id, self.key_generation))
    }

    /// When its patience ends. Of an alive host that has been heard it follows from its last beat and its
    /// margin, so that no beat needs to write it down.
    pub(crate) fn deadline(&self, patience: &Patience) -> Instant {
        if self.state == State::Alive && self.heard.0 > 0 {
            Instant(self.expected.0.saturating_add(self.margin_ns(patience)))
        } else {
            self.until
        }
    }

    /// What it has proved in the life that is known.
    pub(crate) fn newest(&self) -> Newest {
        Newest {
            boot: self.boot,
            seq: self.seq,
            sent: self.sent,
            baseline_ns: self.learned.baseline_ns(),
        }
    }

    /// What else it has proved.
    pub(crate) fn past(&self) -> Past {
        Past {
            boot_max: self.boot_max,
            strict: matches!(self.state, State::Suspect | State::Down),
            challenged_until: self.challenged_until,
        }
    }

    /// Learns the plain inter-arrival time, for people.
    #[inline]
    pub(crate) fn inter_arrival(&mut self, since_last_ns: u64) {
        let us = (since_last_ns / 1_000).min(u64::from(u32::MAX)) as i64;
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

    /// How much later than expected its next beat may come, nanoseconds.
    #[inline]
    pub(crate) fn margin_ns(&self, patience: &Patience) -> u64 {
        match self.frozen() {
            Some(margin) => nanos(margin),
            None => self.learned.margin_ns(patience),
        }
    }

    /// How much later than expected its next beat may come, and what says so.
    pub(crate) fn margin(&self, patience: &Patience) -> (Duration, MarginSource) {
        match self.frozen() {
            Some(margin) => (margin, MarginSource::Frozen),
            None => self.learned.margin(patience),
        }
    }

    #[inline]
    pub(crate) fn remember_overdue(&mut self, overdue_ns: i64, late_ms: u16) {
        let us = (overdue_ns / 1_000).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        let at = usize::from(self.recent_len) % RECENT;
        self.recent[at] = us;
        self.recent_late[at] = match late_ms {
            0 => RoundTrip::UNKNOWN,
            ms => RoundTrip::new(Duration::from_millis(ms.into())),
        };
        // Before it wraps, back to the same place of the ring.
        self.recent_len = self.recent_len.checked_add(1).unwrap_or(RECENT as u8);
    }

    /// Whether no overdue time has been noted yet.
    pub(crate) fn is_new(&self) -> bool {
        self.recent_len == 0
    }

    /// Places of the newest overdue times, newest first.
    fn recent_places(&self) -> impl Iterator<Item = usize> + use<> {
        let len = usize::from(self.recent_len);
        (1..=len.min(RECENT)).map(move |back| (len - back) % RECENT)
    }

    /// Newest overdue times, newest first, milliseconds.
    pub(crate) fn recent_ms(&self) -> Vec<f64> {
        self.recent_places().map(|at| f64::from(self.recent[at]) / 1e3).collect()
    }

    /// How late the host's own timer was each time, to 6 %, newest first, milliseconds.
    pub(crate) fn recent_late_ms(&self) -> Vec<u16> {
        let ms = |late: RoundTrip| late.duration().map_or(0, |d| d.as_millis() as u16);
        self.recent_places().map(|at| ms(self.recent_late[at])).collect()
    }
}

/// Moves an estimate of the 99th percentile by one sample: up by 99 steps if it was too low, down by one
/// otherwise, so that it stands still where one in a hundred lies above.
///
/// Source: Ma, Muthukrishnan, Sandler, "Frugal Streaming for Estimating Quantiles" (2013), with the length
/// of its steps in proportion to the quantile instead of their chance: no dice, four bytes, integers.
#[inline]
fn p99_step(p99_us: u32, sample_us: u32) -> u32 {
    let step = (p99_us >> 12).max(1);
    if sample_us > p99_us {
        p99_us.saturating_add(step.saturating_mul(99))
    } else {
        p99_us.saturating_sub(step)
    }
}

/// Why no more than one machine is taken to be left under an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OneLeft {
    /// The other has been silent for [`DUPLICATE_WINDOW`](super::DUPLICATE_WINDOW).
    Silent,
    /// The keys that the other may have are believed no more.
    Rekeyed,
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
    /// It left, said when it would be back, and is not: probes are on their way.
    Overdue {
        /// How long it said that it would be away; zero: that was before our start.
        expected: Duration,
    },
    /// Two machines answer under one identity: their boots, or their addresses, take turns.
    Duplicate {
        /// The other's boot.
        other: Boot,
        /// Where the other was heard from.
        address: Option<SocketAddr>,
    },
    /// Of two that did only one is left.
    Single(OneLeft),
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
