//! The record of one host and the turns its story can take.

use std::mem::offset_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use heartwatch_common::id::{Boot, Generation, HostId, KeyId, Seq};
use heartwatch_common::time::{Instant, nanos};
use heartwatch_common::wire::{LeaveReason, RoundTrip};
use serde::Serialize;

use super::knobs::Profile;
use super::peers::Domain;
use super::timeout::{GroupId, Histograms, Learned, MarginSource, Patience, U24};
use crate::event::{Cause, State};
use crate::ingest::admit::{Newest, Past};
use crate::view::LiveId;

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
    /// It is down because its agent is lost: its machine is asked whether it lives.
    pub agent_lost: bool,
    /// It left, and said that it would be back within this, from now.
    pub back_in: Option<Duration>,
    /// What its labels make of it.
    pub profile: Profile,
    /// Where an operator wants its margin kept, if anywhere.
    pub frozen: Option<Duration>,
    /// Its failure domain.
    pub domain: Domain,
    /// Where its live figures are published; [`LiveId::NONE`]: wherever there is room.
    pub live: LiveId,
}

impl Known {
    /// A host of which nothing else is known.
    pub fn new(id: HostId, state: State) -> Self {
        Self {
            id,
            state,
            boot: Boot(0),
            generation: Generation(0),
            address: None,
            in_state: Duration::ZERO,
            missing_reported: false,
            duplicate: false,
            agent_lost: false,
            back_in: None,
            profile: Profile::default(),
            frozen: None,
            domain: Domain::default(),
            live: LiveId::NONE,
        }
    }
}

/// An internet address in 24 bytes, of which two are compared in a few instructions: bytes that are written
/// one by one and then read in one go would keep the processor waiting at every beat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Address {
    /// Both halves, the upper one first; of an IPv4 address the lower one alone.
    ip: [u64; 2],
    scope: u32,
    port: u16,
    /// 0 = none, 4, 6.
    family: u8,
}

impl Address {
    pub(crate) fn get(self) -> Option<SocketAddr> {
        let [high, low] = self.ip.map(u128::from);
        match self.family {
            4 => Some(SocketAddr::from((Ipv4Addr::from_bits(low as u32), self.port))),
            6 => {
                let ip = Ipv6Addr::from_bits(high << 64 | low);
                Some(SocketAddrV6::new(ip, self.port, 0, self.scope).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    #[inline]
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => {
                let ip = [0, v4.ip().to_bits().into()];
                Self { ip, scope: 0, port: v4.port(), family: 4 }
            }
            SocketAddr::V6(v6) => {
                let bits = v6.ip().to_bits();
                let ip = [(bits >> 64) as u64, bits as u64];
                Self { ip, scope: v6.scope_id(), port: v6.port(), family: 6 }
            }
        }
    }
}

/// Two boots answer under this identity.
pub(crate) const DUPLICATE: u8 = 1;
/// Its silence is not held against it: [`Excuses`](super::excuses::Excuses) says why. Or it was not, until it
/// was judged.
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
/// The beat that is missing of it was judged before, in a moment in which nobody at all was heard.
pub(crate) const HUSHED: u8 = 128;

/// A moment in an eighth of a second, rounded up: what is not done again before then need not be exact. The
/// far end is 17 years after the origin; everything later is that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Coarse(u32);

impl Coarse {
    /// Nanoseconds of a unit, as a power of two.
    const BITS: u32 = 27;

    pub(crate) fn at_least(at: Instant) -> Self {
        Self(u32::try_from(at.0.div_ceil(1 << Self::BITS)).unwrap_or(u32::MAX))
    }

    /// Whether it has come.
    pub(crate) fn is_over(self, now: Instant) -> bool {
        u64::from(self.0) << Self::BITS <= now.0
    }

    /// The end of it.
    pub(crate) fn get(self) -> Instant {
        Instant(u64::from(self.0) << Self::BITS)
    }
}

/// The record of one host: three cache lines, of which a beat like any other touches two. What a beat leaves
/// behind for people alone stands in the host's live cell, which each beat writes to anyway.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Host {
    // First and second line: what says whether a beat is fresh, and until when the host is alive.
    pub(crate) sent: Instant,
    /// When the next beat is expected.
    pub(crate) expected: Instant,
    /// When it was last heard; zero: never since the start.
    heard: Instant,
    pub(crate) id: HostId,
    pub(crate) address: Address,
    pub(crate) learned: Learned,
    pub(crate) seq: Seq,
    pub(crate) boot: Boot,
    /// What its last datagram announced, microseconds: below 72 minutes.
    pub(crate) gap_us: u32,
    /// When it may next be challenged by an ack, and by a nonce.
    pub(crate) challenge_next: Coarse,
    pub(crate) nonce_next: Coarse,
    pub(crate) generation: Generation,
    pub(crate) key_generation: Generation,
    /// Suspicions that proved wrong, as far as they can be counted.
    pub(crate) mistakes: u16,
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

    // Third line: what a beat like any other leaves alone.
    /// When patience ends, unless the host is alive and has been heard: see [`Host::deadline`].
    pub(crate) until: Instant,
    pub(crate) facts_hash: u64,
    pub(crate) boot_max: Boot,
    /// Its failure domain, by the newest labels that are known.
    pub(crate) domain: Domain,
    pub(crate) challenged_until: Coarse,
    pub(crate) histograms: Histograms,
    /// Where an operator keeps its margin, milliseconds, if [`FROZEN`].
    frozen_ms: U24,
}

/// Cache lines of a record that every beat needs.
pub(crate) const BEAT_LINES: usize = 2;

const _: () = assert!(size_of::<Option<Host>>() == 192, "three lines, none for the Option");
const _: () = assert!(offset_of!(Host, until) == 128);

/// What is known of few hosts at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rare {
    /// What the life before the present one has proved; boot 0: nothing is known of it.
    pub(crate) other_life: Newest,
    /// Where it was heard from before.
    pub(crate) other_address: Address,
    /// Until when its return would mean two of them: [`DUPLICATE_WINDOW`](super::DUPLICATE_WINDOW) after it
    /// was last heard; zero: it can't come back.
    pub(crate) other_until: Instant,
    /// It said goodbye, and was not heard since.
    pub(crate) other_left: bool,
    /// Until when it then said that it would be back, at the latest; zero: it did not say.
    pub(crate) other_back: Instant,
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
            until: due.unwrap_or(Instant::FAR),
            challenged_until: Coarse::default(),
            challenge_next: Coarse::default(),
            nonce_next: Coarse::default(),
            histograms: Histograms::default(),
            facts_hash: 0,
            boot_max: known.boot,
            mistakes: 0,
            domain: known.domain,
            frozen_ms: U24::default(),
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

    /// Keeps its margin there (to the millisecond, at most 4.6 hours), or lets it learn.
    pub(crate) fn freeze(&mut self, margin: Option<Duration>) {
        self.flag(FROZEN, margin.is_some());
        let ms = margin.unwrap_or_default().as_millis();
        self.frozen_ms.set(u32::try_from(ms).unwrap_or(u32::MAX));
    }

    /// Where an operator keeps its margin.
    pub(crate) fn frozen(&self) -> Option<Duration> {
        self.is(FROZEN).then(|| Duration::from_millis(u64::from(self.frozen_ms.get())))
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
            challenged_until: self.challenged_until.get(),
        }
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
    /// Time since the last proof of life, milliseconds; if it is [`unheard`](Self::unheard), since the
    /// controller began to listen.
    pub silence_ms: u64,
    /// It has not been heard since the controller's start. When it was last heard before that is not kept.
    pub unheard: bool,
    /// It was down already, as its agent was lost; now its machine does not answer either.
    pub agent_lost: bool,
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
    /// Suspicions of this host that proved wrong since the controller's start.
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
