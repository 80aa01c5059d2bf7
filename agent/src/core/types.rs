//! What goes into a [`Core`](super::Core) and what comes out of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::auth::HostKey;
use heartwatch_common::id::{Boot, HostId};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{self, DATAGRAM_LEN_MIN, Field, Fixed, Header, HelloTooLong, Stamp};

use crate::schedule::Pace;

/// Everything that an agent is told before it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who this host is.
    pub host: HostId,
    /// Its key: seals what goes out and checks what comes in.
    pub key: HostKey,
    /// This life of the agent; higher than any before.
    pub boot: Boot,
    /// Time between beats when no controller assigns one.
    pub interval: Duration,
    /// Share of the interval by which a gap may differ from it, 0 to 0.5.
    pub jitter: f64,
    /// An assigned interval is never taken to be shorter.
    pub interval_min: Duration,
    /// An assigned interval is never taken to be longer.
    pub interval_max: Duration,
    /// Every so manieth beat asks for an ack, unless a controller says otherwise.
    pub ack_every: u16,
    /// The host's name, for people.
    pub name: String,
    /// Its operating system, for people.
    pub os: String,
    /// Labels, by which rules and failure domains are formed.
    pub labels: BTreeMap<String, String>,
    /// How many controllers are configured.
    pub controllers: usize,
}

impl Settings {
    pub(super) fn pace(&self) -> Pace {
        Pace {
            interval: self.interval,
            jitter: self.jitter,
            interval_min: self.interval_min,
            interval_max: self.interval_max,
        }
    }

    /// The hello of these settings, unsealed.
    pub(super) fn hello(
        &self,
        flags: u8,
        stamp: &Stamp,
        late_ms: u16,
        maintenance: Option<(u32, &str)>,
    ) -> Result<Vec<u8>, HelloTooLong> {
        let mut fields = vec![
            Field::Name(&self.name),
            Field::AgentVersion(env!("CARGO_PKG_VERSION")),
            Field::Os(&self.os),
        ];
        fields.extend(self.labels.iter().map(|(k, v)| Field::Label(k, v)));
        fields.extend(maintenance.map(|(seconds, why)| Field::Maintenance(seconds, why)));
        wire::encode_hello(&self.header(flags), stamp, late_ms, self.interval, &fields)
    }

    pub(super) fn header(&self, flags: u8) -> Header {
        Header {
            host: self.host,
            key_id: self.key.key_id(),
            generation: self.key.generation(),
            flags,
        }
    }

    /// Whether a hello with these settings fits the wire.
    pub fn check_hello(&self) -> Result<(), HelloTooLong> {
        self.check_hello_with(None)
    }

    /// The same, if it announces maintenance for this reason.
    pub(super) fn check_hello_with(&self, why: Option<&str>) -> Result<(), HelloTooLong> {
        let stamp = Stamp {
            boot: self.boot,
            seq: Default::default(),
            sent: Instant(0),
            gap: Duration::from_secs(1),
            epoch: Default::default(),
        };
        self.hello(0, &stamp, 0, why.map(|why| (wire::MAINTENANCE_MAX_S, why))).map(drop)
    }
}

/// The host is being worked on: what its hellos announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Until then, on the core's clock.
    pub ends: Instant,
    /// Why; at most [`wire::MAINTENANCE_WHY_LEN_MAX`] bytes.
    pub reason: String,
}

impl Announced {
    /// Whole seconds that are left, rounded up; 0: it is over.
    pub fn seconds_left(&self, now: Instant) -> u32 {
        let left = self.ends.since(now);
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        u32::try_from(seconds).unwrap_or(u32::MAX).min(wire::MAINTENANCE_MAX_S)
    }
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To the configured controller of that index.
    Controller(usize),
    /// To the address that a probe came from or is for, or that waits for another host's answer.
    Addr(SocketAddr),
}

/// The bytes of a sealed datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Any datagram but those below.
    Fixed(Fixed),
    /// The answer to a probe that had zeros left out.
    Short([u8; DATAGRAM_LEN_MIN]),
    /// A hello, whose length varies.
    Hello(Vec<u8>),
}

impl Packet {
    /// The bytes to send.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Short(bytes) => bytes,
            Self::Hello(bytes) => bytes,
        }
    }
}

/// One datagram to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub to: To,
    /// What.
    pub bytes: Packet,
}

/// What came in another version of the wire, sealed with this host's key. It may be a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OtherVersion {
    /// Which.
    pub version: u8,
    /// How many datagrams.
    pub datagrams: u64,
    /// Where the last came from.
    pub from: SocketAddr,
}

/// Why a datagram that came in was ignored; each is a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reject {
    /// Not a datagram of this protocol, or cut short.
    Malformed,
    /// Of a kind that this agent does not know, or of another version and not sealed with this host's key.
    Unknown,
    /// Of another version, sealed with this host's key: its controller is older or newer than this agent.
    OtherVersion,
    /// For another host, and no answer that a controller waits for.
    WrongHost,
    /// Not sealed with this host's key.
    WrongTag,
    /// Of a kind that only agents send.
    WrongKind,
    /// An ack for another boot.
    OtherBoot,
    /// An ack for nothing that is unacknowledged: a recording, a duplicate, or far too late.
    Unmatched,
    /// A probe beyond the limit on answers.
    ProbeLimit,
    /// A probe to be passed on, but of no present session, or passed on before: a recording.
    RelayStale,
    /// A probe to be passed on to where no other host can be.
    RelayAddress,
    /// A probe to be passed on beyond the limit.
    RelayLimit,
    /// It came after the agent had said goodbye.
    Left,
}

impl Reject {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::Unknown,
        Self::OtherVersion,
        Self::WrongHost,
        Self::WrongTag,
        Self::WrongKind,
        Self::OtherBoot,
        Self::Unmatched,
        Self::ProbeLimit,
        Self::RelayStale,
        Self::RelayAddress,
        Self::RelayLimit,
        Self::Left,
    ];
}
