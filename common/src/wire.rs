//! The datagrams: fixed layouts, versioned, read in place.
//!
//! Everything is big-endian ("network order"). A datagram is a body followed by a 16-byte tag; the tag
//! is the first 16 bytes of BLAKE3's keyed hash of the whole body under the host's 32-byte key
//! ([`crate::auth`] says how keys are made). All bodies but those of `hello` and `probe-via` are exactly
//! 64 bytes, one BLAKE3 block, so those datagrams are exactly 80 bytes. Reserved bytes are sent as zero
//! and ignored on receipt, so that later minor versions may use them. Of the zeros that end the body of an
//! ack, a probe or a probe-reply up to 8 may be left out, before it is sealed; whoever receives it puts them
//! there again. So a controller's answers are 74 bytes, fewer than any datagram that causes one. UDP port
//! 2328.
//!
//! # Every datagram
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version, 2 |
//! | 1 | 1 | kind: 1 beat, 2 hello, 3 ack, 4 leave, 5 probe, 6 probe-reply, 7 probe-via |
//! | 2 | 1 | flags, by kind |
//! | 3 | 1 | key id: which fleet secret the host's key was derived from |
//! | 4 | 2 | generation of the host's key |
//! | 6 | 2 | beat: check results, bit k set = check k fails; else reserved |
//! | 8 | 16 | host id (at a fixed offset, so that the kernel can steer by it) |
//! | … | | by kind, below |
//! | last 16 | 16 | tag |
//!
//! # Versions
//!
//! Every version, past or to come, has the version at 0, the key id at 3, the generation at 4, the host id at
//! 8, and last the tag over all that stands before it, under that host's key; 40 to 1,200 bytes in all. So
//! whoever does not speak a datagram's version can still tell, by its tag, whose it is ([`foreign()`]), and
//! counts it apart from junk. Nothing else of it is read, it proves nothing, and it is never answered.
//!
//! The version is raised when somebody who speaks the one before would refuse or misread a datagram that he
//! may get. A meaning for reserved bytes, a further flag or a further type of hello field does not raise it:
//! these are ignored by who does not know them. From the first release on a controller understands, and
//! answers in, the versions of agents up to two minor releases back, and agents speak one version: so
//! controllers are upgraded first.
//!
//! This is version 2, the first to be released. In version 1 nothing was left out: acks had 80 bytes and
//! agents refused shorter ones. Nobody understands it any more.
//!
//! # From agents: beat, hello, leave, probe-reply share offsets 24 to 47
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 24 | 4 | boot: rises with every start of the agent |
//! | 28 | 4 | seq: starts at 1 in every boot; every datagram to this controller takes the next |
//! | 32 | 8 | sent: the agent's own monotonic clock in µs when it sent this |
//! | 40 | 4 | gap: µs until its next beat, 1 to 3,600,000,000 |
//! | 44 | 4 | epoch: the controller's, learnt from its acks; 0 = none yet |
//!
//! Flags: bit 0 = please ack.
//!
//! Beat, from 48:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 48 | 2 | late: ms by which the agent's own timer fired late for this beat, at most 65,535 |
//! | 50 | 1 | CPU busy share, 0..=250 for 0..=100 %, 255 unknown |
//! | 51 | 1 | memory used share, likewise |
//! | 52 | 1 | swap used share, likewise |
//! | 53 | 1 | fullest local disk's used share, likewise |
//! | 54 | 2 | run queue, hundredths of a task per core; 65,535 unknown |
//! | 56 | 4 | network KiB/s; 4,294,967,295 unknown |
//! | 60 | 1 | PSI CPU `some avg10` share, as above |
//! | 61 | 1 | PSI memory, likewise |
//! | 62 | 1 | PSI I/O, likewise |
//! | 63 | 1 | the shorter of the agent's two newest round trips to this controller: 50 µs × 2^(byte ÷ 12); 0 unknown |
//! | 64 | 16 | tag |
//!
//! Hello, from 48: who this host is. Sent at start and whenever an ack asks, until acked; at most 1,200
//! bytes in all.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 48 | 2 | late, as in a beat |
//! | 50 | 2 | length n of the fields, at most 1,120 |
//! | 52 | 4 | the agent's own default interval, µs |
//! | 56 | 8 | reserved |
//! | 64 | n | fields: type (1 byte), length (1 byte), UTF-8 text of that length. Types: 1 host name, 2 agent version, 3 operating system, 4 a label as `key=value` (may repeat), 5 maintenance as `seconds reason`: the host is being worked on for so many more seconds, 1 to 604,800, in decimal, then one space and why in at most 200 bytes; a hello without it says that it is not (any more). Unknown types are skipped |
//! | 64+n | 16 | tag |
//!
//! Leave, from 48: a polite goodbye, after which silence is no failure.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 48 | 1 | reason: 1 shutdown, 2 restart of the agent, 3 reboot, 4 upgrade |
//! | 49 | 3 | reserved |
//! | 52 | 4 | how long it expects to be away, seconds; 0 = not said |
//! | 56 | 8 | reserved |
//! | 64 | 16 | tag |
//!
//! Probe-reply, from 48: 16 bytes, the nonce of the probe that it answers; then the tag.
//!
//! # From the controller
//!
//! Ack:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 24 | 4 | boot of the datagram acked |
//! | 28 | 4 | its seq |
//! | 32 | 8 | its sent time, echoed, so that the agent can measure the round trip |
//! | 40 | 4 | assigned interval, µs; 0 = keep your own |
//! | 44 | 4 | the controller's present epoch: echo it in every datagram from now on |
//! | 48 | 8 | controller id |
//! | 56 | 2 | ack cadence: ask for an ack once every so many beats; 0 = keep your own |
//! | 58 | 2 | reserved |
//! | 60 | 4 | lease, ms (0 for now) |
//! | 64 | 16 | tag |
//!
//! Ack flags: bit 0 = say hello again; bit 1 = what you sent proved nothing (wrong epoch): send again;
//! bit 2 = your key is of an older fleet secret: fetch your next one ([`crate::enrol`]), with no hurry.
//!
//! Probe: answered at once by a probe-reply to the address it came from, never by more than its size: a reply
//! to a probe that had zeros left out leaves those of its nonce out too. The probe that challenges a datagram
//! which proved nothing has a nonce of 8 random bytes and 8 zeros, of which it leaves 6 out, and its reply 8.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 24 | 4 | boot that the controller knows, or 0 |
//! | 28 | 4 | number of the probe, for people who read captures |
//! | 32 | 8 | controller id |
//! | 40 | 4 | reserved |
//! | 44 | 4 | the controller's present epoch, to be echoed as from an ack |
//! | 48 | 16 | nonce, random |
//! | 64 | 16 | tag |
//!
//! Probe-via: to a *peer*, sealed under the peer's key: "ask another host for me". The probe inside is
//! complete and sealed under the other host's key, so the peer can neither change nor answer it.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 24 | 4 | reserved |
//! | 28 | 4 | number of the request, for people who read captures |
//! | 32 | 8 | controller id |
//! | 40 | 2 | UDP port of the other host |
//! | 42 | 2 | reserved |
//! | 44 | 4 | the controller's present epoch |
//! | 48 | 16 | address of the other host, IPv4 as `::ffff:a.b.c.d` |
//! | 64 | 80 | the probe, tag included |
//! | 144 | 16 | tag |
//!
//! The peer sends the 80 bytes to that address as they are. When a probe-reply of the host that the probe
//! names comes with the probe's nonce, the peer sends its 80 bytes, as they are, to where the probe-via
//! came from: once, within 3 s. It passes nothing on unless controller id and epoch are those of a
//! session of its own and the nonce is new to it; and nothing to port 0, to an unspecified, multicast or
//! broadcast address, or to loopback unless it was itself asked over loopback.
//!
//! # Who answers what
//!
//! A controller answers an authenticated datagram with the wrong epoch by an ack (flag bit 1); the next
//! beat that echoes the epoch proves life. It answers a recognised one that asked by an ack. It answers
//! nothing that does not authenticate. Its answers are shorter than what caused them; nothing that an agent
//! answers or passes on is larger than what caused it.
//! Known-answer vectors: `tests/vectors/wire.json`.

use std::cmp::Ordering;
use std::time::Duration;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::id::{Boot, ControllerId, Epoch, Generation, HostId, KeyId, Seq};
use crate::load::{LoadSample, Share};
use crate::time::Instant;
pub use foreign::{Foreign, foreign};
pub use short::{ANSWER_LEN, CHALLENGE_NONCE_LEN, DATAGRAM_LEN_MIN, LEFT_OUT_MAX, shorter};
pub use trip::RoundTrip;
pub use via::{ProbeVia, VIA_LEN, ViaDatagram};

mod foreign;
mod short;
mod trip;
mod via;

/// Version that this code speaks; the module's doc says when it is raised.
pub const VERSION: u8 = 2;
/// The port: B-E-A-T on a phone's keys.
pub const PORT: u16 = 2328;
/// Length of the tag that ends every datagram.
pub const TAG_LEN: usize = 16;
/// Length of every body but a hello's and a probe-via's: one BLAKE3 block.
pub const BODY_LEN: usize = 64;
/// Length of every datagram but a hello and a probe-via.
pub const DATAGRAM_LEN: usize = BODY_LEN + TAG_LEN;
/// No datagram is longer: it fits any path's MTU without fragmentation.
pub const DATAGRAM_LEN_MAX: usize = 1_200;
/// Longest maintenance that a hello can announce, seconds: a week.
pub const MAINTENANCE_MAX_S: u32 = 604_800;
/// Longest reason of it, bytes.
pub const MAINTENANCE_WHY_LEN_MAX: usize = 200;
/// Longest announced gap that is understood.
pub const GAP_MAX: Duration = Duration::from_secs(3_600);
/// Offset of the host id, for the kernel's steering filter.
pub const HOST_ID_OFFSET: usize = 8;

/// Flag of agents' datagrams: please ack.
pub const FLAG_ACK_WANTED: u8 = 1;
/// Flag of acks: say hello again.
pub const FLAG_SAY_HELLO: u8 = 1;
/// Flag of acks: what you sent proved nothing, its epoch was not mine.
pub const FLAG_CHALLENGE: u8 = 2;

/// Flag of acks: fetch your next key.
pub const FLAG_RENEW: u8 = 4;

/// One sealed or unsealed fixed-size datagram.
pub type Fixed = [u8; DATAGRAM_LEN];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    version: u8,
    kind: u8,
    flags: u8,
    key_id: u8,
    generation: U16,
    checks: U16,
    host: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawStamp {
    boot: U32,
    seq: U32,
    sent_us: U64,
    gap_us: U32,
    epoch: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBeat {
    late_ms: U16,
    cpu_busy: u8,
    memory_used: u8,
    swap_used: u8,
    disk_used: u8,
    run_queue_centi: U16,
    network_kib_per_s: U32,
    psi_cpu: u8,
    psi_memory: u8,
    psi_io: u8,
    round_trip: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    late_ms: U16,
    fields_len: U16,
    interval_us: U32,
    reserved: [u8; 8],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLeave {
    reason: u8,
    reserved: [u8; 3],
    expected_s: U32,
    reserved_2: [u8; 8],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAck {
    boot: U32,
    seq: U32,
    echoed_sent_us: U64,
    interval_us: U32,
    epoch: U32,
    controller: U64,
    cadence: U16,
    reserved: U16,
    lease_ms: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawProbe {
    boot: U32,
    number: U32,
    controller: U64,
    reserved: U32,
    epoch: U32,
    nonce: [u8; 16],
}

/// What a datagram is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One heartbeat.
    Beat = 1,
    /// Who a host is.
    Hello = 2,
    /// A controller's answer.
    Ack = 3,
    /// A polite goodbye.
    Leave = 4,
    /// "Do you live?", with a nonce.
    Probe = 5,
    /// The nonce, back.
    ProbeReply = 6,
    /// "Ask another host for me."
    ProbeVia = 7,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Beat,
            2 => Self::Hello,
            3 => Self::Ack,
            4 => Self::Leave,
            5 => Self::Probe,
            6 => Self::ProbeReply,
            7 => Self::ProbeVia,
            _ => return None,
        })
    }
}

/// The first 24 bytes, less version, kind and check results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose key seals this.
    pub host: HostId,
    /// Which fleet secret that key came from.
    pub key_id: KeyId,
    /// Which generation of the host's key.
    pub generation: Generation,
    /// Meaning depends on the kind.
    pub flags: u8,
}

/// What every datagram from an agent says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The agent's life.
    pub boot: Boot,
    /// Number within it.
    pub seq: Seq,
    /// The agent's own monotonic clock when it sent this, whole microseconds.
    pub sent: Instant,
    /// Time until its next beat, at most [`GAP_MAX`].
    pub gap: Duration,
    /// The controller epoch that it last learnt.
    pub epoch: Epoch,
}

/// One heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Number, time, gap, epoch.
    pub stamp: Stamp,
    /// How late the agent's own timer fired for this beat, milliseconds.
    pub late_ms: u16,
    /// Bit k set: check k fails.
    pub checks: u16,
    /// How busy the host is.
    pub load: LoadSample,
    /// The agent's round trip to this controller: the shorter of its two newest, so that one ack that waited
    /// somewhere does not count.
    pub round_trip: RoundTrip,
}

/// Who a host is; texts borrow from the datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Number, time, gap, epoch.
    pub stamp: Stamp,
    /// How late the agent's own timer fired, milliseconds.
    pub late_ms: u16,
    /// The agent's own default interval.
    pub interval: Duration,
    fields: &'a [u8],
}

/// One field of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// The host's name.
    Name(&'a str),
    /// The agent's version.
    AgentVersion(&'a str),
    /// The operating system, for people.
    Os(&'a str),
    /// A label's key and value.
    Label(&'a str, &'a str),
    /// It is being worked on, for so many seconds more, and why.
    Maintenance(u32, &'a str),
}

impl<'a> Hello<'a> {
    /// The fields in order; unknown types are skipped. Checked when decoded, so nothing can fail here.
    pub fn fields(&self) -> impl Iterator<Item = Field<'a>> + use<'a> {
        let mut rest = self.fields;
        std::iter::from_fn(move || {
            loop {
                let (kind, text, after) = split_field(rest).ok().flatten()?;
                rest = after;
                match kind {
                    1 => return Some(Field::Name(text)),
                    2 => return Some(Field::AgentVersion(text)),
                    3 => return Some(Field::Os(text)),
                    4 => {
                        if let Some((k, v)) = text.split_once('=') {
                            return Some(Field::Label(k, v));
                        }
                    }
                    5 => {
                        if let Some(field) = maintenance(text) {
                            return Some(field);
                        }
                    }
                    _ => {}
                }
            }
        })
    }
}

/// Reads what a hello says of maintenance; what is out of bounds says nothing.
fn maintenance(text: &str) -> Option<Field<'_>> {
    let (seconds, why) = text.split_once(' ')?;
    let seconds = seconds.bytes().all(|b| b.is_ascii_digit()).then(|| seconds.parse().ok())??;
    let good = (1..=MAINTENANCE_MAX_S).contains(&seconds) && why.len() <= MAINTENANCE_WHY_LEN_MAX;
    good.then_some(Field::Maintenance(seconds, why))
}

/// A field's type and text, and what follows it.
type Split<'a> = (u8, &'a str, &'a [u8]);

/// Splits the first field off; `None` at the end.
fn split_field(bytes: &[u8]) -> Result<Option<Split<'_>>, DecodeError> {
    let [kind, len, rest @ ..] = bytes else {
        return if bytes.is_empty() { Ok(None) } else { Err(DecodeError::Fields) };
    };
    let (text, after) = rest.split_at_checked(usize::from(*len)).ok_or(DecodeError::Fields)?;
    let text = std::str::from_utf8(text).map_err(|_| DecodeError::Fields)?;
    Ok(Some((*kind, text, after)))
}

/// Why a host says goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum LeaveReason {
    /// The agent was stopped for good, or the machine shuts down.
    Shutdown = 1,
    /// The agent alone restarts.
    Restart = 2,
    /// The machine reboots.
    Reboot = 3,
    /// The agent's package is being upgraded.
    Upgrade = 4,
}

impl LeaveReason {
    /// The reason as text, as it stands in events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Restart => "restart",
            Self::Reboot => "reboot",
            Self::Upgrade => "upgrade",
        }
    }
}

/// A polite goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// Number, time, epoch.
    pub stamp: Stamp,
    /// Why. An unknown reason from a newer agent reads as `Shutdown`.
    pub reason: LeaveReason,
    /// How long it expects to be away; zero = not said.
    pub expected: Duration,
}

/// A nonce, back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReply {
    /// Number, time, gap to the next beat, epoch.
    pub stamp: Stamp,
    /// The probe's nonce.
    pub nonce: [u8; 16],
}

/// A controller's answer to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Boot of what is acked.
    pub boot: Boot,
    /// Seq of what is acked.
    pub seq: Seq,
    /// Its sent time, echoed.
    pub echoed_sent: Instant,
    /// Assigned interval; zero = keep your own.
    pub interval: Duration,
    /// The controller's present epoch.
    pub epoch: Epoch,
    /// Which controller this is.
    pub controller: ControllerId,
    /// Beats between two requests for an ack; 0 = keep your own.
    pub cadence: u16,
    /// Lease; zero for now.
    pub lease: Duration,
}

/// "Do you live?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The boot that the controller knows; 0 = none.
    pub boot: Boot,
    /// Number of the probe.
    pub number: u32,
    /// Which controller asks.
    pub controller: ControllerId,
    /// Its present epoch.
    pub epoch: Epoch,
    /// To be sent back.
    pub nonce: [u8; 16],
}

/// What a datagram says, read but not yet believed: see [`Datagram::signed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// One heartbeat.
    Beat(Beat),
    /// Who a host is.
    Hello(Hello<'a>),
    /// A controller's answer.
    Ack(Ack),
    /// A polite goodbye.
    Leave(Leave),
    /// "Do you live?"
    Probe(Probe),
    /// The nonce, back.
    ProbeReply(ProbeReply),
    /// "Ask another host for me."
    ProbeVia(ProbeVia<'a>),
}

impl Message<'_> {
    /// The stamp of a datagram from an agent; `None` for those from controllers.
    pub const fn stamp(&self) -> Option<&Stamp> {
        match self {
            Self::Beat(m) => Some(&m.stamp),
            Self::Hello(m) => Some(&m.stamp),
            Self::Leave(m) => Some(&m.stamp),
            Self::ProbeReply(m) => Some(&m.stamp),
            Self::Ack(_) | Self::Probe(_) | Self::ProbeVia(_) => None,
        }
    }
}

/// A decoded datagram. Nothing in it may be believed before [`crate::auth::HostKey::verify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Whose it claims to be.
    pub header: Header,
    /// What it says.
    pub message: Message<'a>,
    /// The bytes that the tag covers.
    pub signed: &'a [u8],
    /// The tag.
    pub tag: &'a [u8; TAG_LEN],
}

/// Why bytes are not a datagram. Small and `Copy`: counted, never logged one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than any datagram, or than its kind demands.
    #[error("too short")]
    TooShort,
    /// Longer than its kind allows.
    #[error("too long")]
    TooLong,
    /// Not a version that this code speaks; [`foreign()`] tells whose it claims to be.
    #[error("unknown version")]
    Version,
    /// Not a kind that this version has.
    #[error("unknown kind")]
    Kind,
    /// A hello whose fields do not add up or are not UTF-8.
    #[error("malformed hello fields")]
    Fields,
    /// An announced gap of zero or beyond [`GAP_MAX`].
    #[error("gap out of bounds")]
    Gap,
}

/// Reads a datagram in place: no copy of variable data, no allocation, no panic on any input.
#[inline]
pub fn decode(bytes: &[u8]) -> Result<Datagram<'_>, DecodeError> {
    if bytes.len() < DATAGRAM_LEN_MIN {
        return Err(DecodeError::TooShort);
    }
    if bytes.len() > DATAGRAM_LEN_MAX {
        return Err(DecodeError::TooLong);
    }
    let (signed, tag) = bytes.split_last_chunk::<TAG_LEN>().ok_or(DecodeError::TooShort)?;
    let (raw, rest) = RawHeader::ref_from_prefix(signed).map_err(|_| DecodeError::TooShort)?;
    if raw.version != VERSION {
        return Err(DecodeError::Version);
    }
    let kind = Kind::from_byte(raw.kind).ok_or(DecodeError::Kind)?;
    let len = match kind {
        Kind::Hello => bytes.len().max(DATAGRAM_LEN),
        Kind::ProbeVia => VIA_LEN,
        // Not shorter than DATAGRAM_LEN_MIN, as was seen above.
        Kind::Ack | Kind::Probe | Kind::ProbeReply => bytes.len().min(DATAGRAM_LEN),
        _ => DATAGRAM_LEN,
    };
    match bytes.len().cmp(&len) {
        Ordering::Less => return Err(DecodeError::TooShort),
        Ordering::Equal => {}
        Ordering::Greater => return Err(DecodeError::TooLong),
    }
    let message = match kind {
        Kind::Beat => {
            let (stamp, rest) = decode_stamp(rest)?;
            let (b, _) = RawBeat::ref_from_prefix(rest).map_err(|_| DecodeError::TooShort)?;
            Message::Beat(Beat {
                stamp,
                late_ms: b.late_ms.get(),
                checks: raw.checks.get(),
                load: decode_load(b),
                round_trip: RoundTrip(b.round_trip),
            })
        }
        Kind::Hello => Message::Hello(decode_hello(rest)?),
        Kind::Leave => {
            let (stamp, rest) = decode_stamp(rest)?;
            let (l, _) = RawLeave::ref_from_prefix(rest).map_err(|_| DecodeError::TooShort)?;
            Message::Leave(Leave {
                stamp,
                reason: match l.reason {
                    2 => LeaveReason::Restart,
                    3 => LeaveReason::Reboot,
                    4 => LeaveReason::Upgrade,
                    _ => LeaveReason::Shutdown,
                },
                expected: Duration::from_secs(u64::from(l.expected_s.get())),
            })
        }
        Kind::ProbeReply => {
            let tail = short::filled(rest);
            let (stamp, rest) = decode_stamp(&tail)?;
            let nonce = *rest.first_chunk::<16>().ok_or(DecodeError::TooShort)?;
            Message::ProbeReply(ProbeReply { stamp, nonce })
        }
        Kind::Ack => {
            let tail = short::filled(rest);
            let (a, _) = RawAck::ref_from_prefix(&tail).map_err(|_| DecodeError::TooShort)?;
            Message::Ack(Ack {
                boot: Boot(a.boot.get()),
                seq: Seq(a.seq.get()),
                echoed_sent: Instant::from_micros(a.echoed_sent_us.get()),
                interval: Duration::from_micros(u64::from(a.interval_us.get())),
                epoch: Epoch(a.epoch.get()),
                controller: ControllerId(a.controller.get()),
                cadence: a.cadence.get(),
                lease: Duration::from_millis(u64::from(a.lease_ms.get())),
            })
        }
        Kind::Probe => {
            let tail = short::filled(rest);
            let (p, _) = RawProbe::ref_from_prefix(&tail).map_err(|_| DecodeError::TooShort)?;
            Message::Probe(Probe {
                boot: Boot(p.boot.get()),
                number: p.number.get(),
                controller: ControllerId(p.controller.get()),
                epoch: Epoch(p.epoch.get()),
                nonce: p.nonce,
            })
        }
        Kind::ProbeVia => Message::ProbeVia(via::decode(rest)?),
    };
    let header = Header {
        host: HostId(raw.host),
        key_id: KeyId(raw.key_id),
        generation: Generation(raw.generation.get()),
        flags: raw.flags,
    };
    Ok(Datagram { header, message, signed, tag })
}

#[inline]
fn decode_stamp(bytes: &[u8]) -> Result<(Stamp, &[u8]), DecodeError> {
    let (s, rest) = RawStamp::ref_from_prefix(bytes).map_err(|_| DecodeError::TooShort)?;
    let gap = Duration::from_micros(u64::from(s.gap_us.get()));
    if gap.is_zero() || gap > GAP_MAX {
        return Err(DecodeError::Gap);
    }
    let stamp = Stamp {
        boot: Boot(s.boot.get()),
        seq: Seq(s.seq.get()),
        sent: Instant::from_micros(s.sent_us.get()),
        gap,
        epoch: Epoch(s.epoch.get()),
    };
    Ok((stamp, rest))
}

#[inline]
fn decode_load(b: &RawBeat) -> LoadSample {
    LoadSample {
        cpu_busy: Share::from_byte(b.cpu_busy),
        memory_used: Share::from_byte(b.memory_used),
        swap_used: Share::from_byte(b.swap_used),
        disk_used: Share::from_byte(b.disk_used),
        run_queue_centi: b.run_queue_centi.get(),
        network_kib_per_s: b.network_kib_per_s.get(),
        psi_cpu: Share::from_byte(b.psi_cpu),
        psi_memory: Share::from_byte(b.psi_memory),
        psi_io: Share::from_byte(b.psi_io),
    }
}

fn decode_hello(bytes: &[u8]) -> Result<Hello<'_>, DecodeError> {
    let (stamp, rest) = decode_stamp(bytes)?;
    let (h, fields) = RawHello::ref_from_prefix(rest).map_err(|_| DecodeError::TooShort)?;
    if fields.len() != usize::from(h.fields_len.get()) {
        return Err(DecodeError::Fields);
    }
    let mut rest = fields;
    while let Some((_, _, after)) = split_field(rest)? {
        rest = after;
    }
    Ok(Hello {
        stamp,
        late_ms: h.late_ms.get(),
        interval: Duration::from_micros(u64::from(h.interval_us.get())),
        fields,
    })
}

fn raw_header(kind: Kind, header: &Header, checks: u16) -> RawHeader {
    RawHeader {
        version: VERSION,
        kind: kind as u8,
        flags: header.flags,
        key_id: header.key_id.0,
        generation: header.generation.0.into(),
        checks: checks.into(),
        host: header.host.0,
    }
}

/// Whole microseconds of `d`, at most `u32::MAX`.
fn micros(d: Duration) -> U32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX).into()
}

fn raw_stamp(stamp: &Stamp) -> RawStamp {
    RawStamp {
        boot: stamp.boot.0.into(),
        seq: stamp.seq.0.into(),
        sent_us: stamp.sent.as_micros().into(),
        gap_us: micros(stamp.gap.clamp(Duration::from_micros(1), GAP_MAX)),
        epoch: stamp.epoch.0.into(),
    }
}

/// Lays the parts of a 64-byte body one behind the other; the tag stays zero until sealed.
fn body(parts: &[&[u8]]) -> Fixed {
    let mut out = [0; DATAGRAM_LEN];
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    debug_assert_eq!(at, BODY_LEN);
    out
}

impl Beat {
    /// The unsealed datagram.
    pub fn encode(&self, header: &Header) -> Fixed {
        let l = &self.load;
        let raw = RawBeat {
            late_ms: self.late_ms.into(),
            cpu_busy: l.cpu_busy.to_byte(),
            memory_used: l.memory_used.to_byte(),
            swap_used: l.swap_used.to_byte(),
            disk_used: l.disk_used.to_byte(),
            run_queue_centi: l.run_queue_centi.into(),
            network_kib_per_s: l.network_kib_per_s.into(),
            psi_cpu: l.psi_cpu.to_byte(),
            psi_memory: l.psi_memory.to_byte(),
            psi_io: l.psi_io.to_byte(),
            round_trip: self.round_trip.0,
        };
        let head = raw_header(Kind::Beat, header, self.checks);
        body(&[head.as_bytes(), raw_stamp(&self.stamp).as_bytes(), raw.as_bytes()])
    }
}

impl Leave {
    /// The unsealed datagram.
    pub fn encode(&self, header: &Header) -> Fixed {
        let raw = RawLeave {
            reason: self.reason as u8,
            reserved: [0; 3],
            expected_s: u32::try_from(self.expected.as_secs()).unwrap_or(u32::MAX).into(),
            reserved_2: [0; 8],
        };
        let head = raw_header(Kind::Leave, header, 0);
        body(&[head.as_bytes(), raw_stamp(&self.stamp).as_bytes(), raw.as_bytes()])
    }
}

impl ProbeReply {
    /// The unsealed datagram.
    pub fn encode(&self, header: &Header) -> Fixed {
        let head = raw_header(Kind::ProbeReply, header, 0);
        body(&[head.as_bytes(), raw_stamp(&self.stamp).as_bytes(), &self.nonce])
    }
}

impl Ack {
    /// The unsealed datagram.
    pub fn encode(&self, header: &Header) -> Fixed {
        let raw = RawAck {
            boot: self.boot.0.into(),
            seq: self.seq.0.into(),
            echoed_sent_us: self.echoed_sent.as_micros().into(),
            interval_us: micros(self.interval),
            epoch: self.epoch.0.into(),
            controller: self.controller.0.into(),
            cadence: self.cadence.into(),
            reserved: 0.into(),
            lease_ms: u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX).into(),
        };
        let head = raw_header(Kind::Ack, header, 0);
        body(&[head.as_bytes(), raw.as_bytes()])
    }
}

impl Probe {
    /// The unsealed datagram.
    pub fn encode(&self, header: &Header) -> Fixed {
        let raw = RawProbe {
            boot: self.boot.0.into(),
            number: self.number.into(),
            controller: self.controller.0.into(),
            reserved: 0.into(),
            epoch: self.epoch.0.into(),
            nonce: self.nonce,
        };
        let head = raw_header(Kind::Probe, header, 0);
        body(&[head.as_bytes(), raw.as_bytes()])
    }
}

/// A hello does not fit [`DATAGRAM_LEN_MAX`] bytes, or one of its texts 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "name and labels need {needed} bytes on the wire, {limit} are allowed: shorten or drop labels"
)]
pub struct HelloTooLong {
    /// Bytes needed.
    pub needed: usize,
    /// Bytes allowed.
    pub limit: usize,
}

/// Encodes a hello, unsealed: `fields` in the order given. Allocates; a hello is rare.
pub fn encode_hello(
    header: &Header,
    stamp: &Stamp,
    late_ms: u16,
    interval: Duration,
    fields: &[Field<'_>],
) -> Result<Vec<u8>, HelloTooLong> {
    let mut tail = Vec::new();
    for field in fields {
        let (kind, text) = match field {
            Field::Name(t) => (1u8, (*t).to_owned()),
            Field::AgentVersion(t) => (2, (*t).to_owned()),
            Field::Os(t) => (3, (*t).to_owned()),
            Field::Label(k, v) => (4, format!("{k}={v}")),
            Field::Maintenance(seconds, why) => (5, format!("{seconds} {why}")),
        };
        let len = u8::try_from(text.len())
            .map_err(|_| HelloTooLong { needed: text.len(), limit: 255 })?;
        tail.push(kind);
        tail.push(len);
        tail.extend_from_slice(text.as_bytes());
    }
    let needed = DATAGRAM_LEN + tail.len();
    if needed > DATAGRAM_LEN_MAX {
        return Err(HelloTooLong { needed, limit: DATAGRAM_LEN_MAX });
    }
    let raw = RawHello {
        late_ms: late_ms.into(),
        // Bounded by DATAGRAM_LEN_MAX just above.
        fields_len: u16::try_from(tail.len()).unwrap_or(u16::MAX).into(),
        interval_us: micros(interval),
        reserved: [0; 8],
    };
    let mut out = Vec::with_capacity(needed);
    out.extend_from_slice(raw_header(Kind::Hello, header, 0).as_bytes());
    out.extend_from_slice(raw_stamp(stamp).as_bytes());
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(&tail);
    out.extend_from_slice(&[0; TAG_LEN]);
    Ok(out)
}

#[cfg(test)]
mod tests;
