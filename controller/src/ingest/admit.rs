//! Which datagrams count: they are decoded, authenticated, and only then asked whether they are fresh.
//!
//! Pure. A datagram that fails is a [`Reject`]: counted by reason, never logged, and, unless it
//! authenticated, never answered.
//!
//! # Freshness
//!
//! A true tag proves who wrote a datagram, not when. A recording must not feign life, and a lost state
//! file, a stepped clock or a restored machine must not lock a host out. So a datagram *proves* life only
//! if it echoes this controller's epoch, its (boot, seq) rises, and its send time fits the clock of the
//! host's boot to within `timeout_max`. Anything else that authenticates causes one rate-limited
//! challenge, and whatever answers that is fresh: an ack with the present epoch (the next datagram that
//! echoes it counts), or a probe with a nonce, whose answer re-bases everything.

use std::time::Duration;

use heartwatch_common::auth::{HostKey, Keyring};
use heartwatch_common::id::{Boot, Epoch, Generation, HostId, Seq};
use heartwatch_common::time::{Instant, nanos};
use heartwatch_common::wire::{Datagram, DecodeError, Header, Message, Stamp};

use crate::detector::timeout::offset_ns;
use crate::metrics::Reject;

/// A datagram that is what it claims to be, under the key that its header names.
#[derive(Clone, Copy, Debug)]
pub struct Admitted<'d> {
    /// What it says.
    pub datagram: &'d Datagram<'d>,
    /// Its stamp.
    pub stamp: &'d Stamp,
}

impl Admitted<'_> {
    /// The key that it is sealed under, to answer under. Made when it is needed: few beats are answered.
    /// `None` only if the keyring is no longer that which it was admitted with.
    pub fn key(&self, keyring: &Keyring) -> Option<HostKey> {
        key_of(self.datagram, keyring)
    }
}

fn key_of(datagram: &Datagram<'_>, keyring: &Keyring) -> Option<HostKey> {
    let Header { host, key_id, generation, .. } = datagram.header;
    keyring.host_key(key_id, host, generation)
}

impl From<DecodeError> for Reject {
    fn from(e: DecodeError) -> Self {
        match e {
            DecodeError::TooShort => Self::TooShort,
            DecodeError::TooLong => Self::TooLong,
            DecodeError::Version => Self::Version,
            DecodeError::Kind => Self::Kind,
            DecodeError::Fields | DecodeError::Gap => Self::Malformed,
        }
    }
}

/// Authenticates what was decoded, and stays where it is: a beat is not worth being moved. `generation_min`
/// says which of a host's key generations are revoked; `verdict`, whether it is sealed under the live key
/// that it names, if that was found out already.
#[inline]
pub fn admit<'d>(
    datagram: &'d Datagram<'d>,
    keyring: &Keyring,
    verdict: Option<bool>,
    generation_min: impl FnOnce(HostId) -> Generation,
) -> Result<Admitted<'d>, Reject> {
    let stamp = datagram.message.stamp().ok_or(Reject::Kind)?;
    let header = &datagram.header;
    if header.generation < generation_min(header.host) {
        return Err(Reject::Revoked);
    }
    let alone = || key_of(datagram, keyring).is_some_and(|key| key.verify(datagram));
    let is_sealed = verdict.unwrap_or_else(alone);
    if is_sealed { Ok(Admitted { datagram, stamp }) } else { Err(Reject::Unauthentic) }
}

/// What a host has proved in the life that is known: all that a beat like any other is compared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Newest {
    /// The life that it proved last; zero before the first.
    pub boot: Boot,
    /// Its newest number in that life.
    pub seq: Seq,
    /// The agent's clock when it sent its newest proof.
    pub sent: Instant,
    /// Usual `arrival − sent` in that life, nanoseconds; `None`: nothing was proved since our start.
    pub baseline_ns: Option<i64>,
}

/// What else it has proved: needed only for another life, or the first proof since our start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    /// The highest life that it ever proved: not the same where a boot number fell.
    pub boot_max: Boot,
    /// It is suspect or down: of a new life, or one that proved nothing since our start, only a nonce is
    /// believed.
    pub strict: bool,
    /// Until when a datagram of a new life may answer the challenge that it was given.
    pub challenged_until: Instant,
}

/// How to ask for proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// By an ack that tells the present epoch.
    Epoch,
    /// By a probe with a nonce.
    Nonce,
}

/// Whether an authenticated datagram proves life; if not, why, and how to ask.
#[inline]
pub fn prove(
    newest: &Newest,
    past: impl FnOnce() -> Past,
    stamp: &Stamp,
    arrival: Instant,
    epoch: Epoch,
    tolerance: Duration,
) -> Result<(), (Reject, Challenge)> {
    if stamp.epoch != epoch {
        return Err((Reject::WrongEpoch, Challenge::Epoch));
    }
    let known = if stamp.boot == newest.boot { newest.baseline_ns } else { None };
    let Some(baseline) = known else {
        return prove_life(newest, &past(), stamp, arrival);
    };
    if stamp.seq <= newest.seq || stamp.sent < newest.sent {
        return Err((Reject::NotRising, Challenge::Nonce));
    }
    let off = offset_ns(arrival, stamp.sent).wrapping_sub(baseline).unsigned_abs();
    if off > nanos(tolerance) {
        return Err((Reject::OffTime, Challenge::Nonce));
    }
    Ok(())
}

/// The same for a life of which nothing was proved since our start.
fn prove_life(
    newest: &Newest,
    past: &Past,
    stamp: &Stamp,
    arrival: Instant,
) -> Result<(), (Reject, Challenge)> {
    if stamp.boot != newest.boot && stamp.boot <= past.boot_max {
        // Below the present life, or above it after a fall: of such a one there may be recordings that
        // echo the right epoch.
        return Err((Reject::EarlierBoot, Challenge::Nonce));
    }
    // A new life, or one that we know from before our own start, learnt the epoch from a challenge of
    // ours a moment ago; or it is a recording that somebody kept from us until now.
    let asked = arrival <= past.challenged_until;
    if asked && !past.strict { Ok(()) } else { Err((Reject::OffTime, Challenge::Nonce)) }
}

/// Whether a datagram is a probe reply; its nonce if so.
pub fn nonce_of(message: &Message<'_>) -> Option<[u8; 16]> {
    match message {
        Message::ProbeReply(reply) => Some(reply.nonce),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::auth::FleetSecret;
    use heartwatch_common::id::{ControllerId, KeyId};
    use heartwatch_common::load::LoadSample;
    use heartwatch_common::wire::{self, Ack, Beat, RoundTrip};

    const EPOCH: Epoch = Epoch(77);
    const TOLERANCE: Duration = Duration::from_secs(30);
    const HOST: HostId = HostId([4; 16]);

    fn ring() -> Keyring {
        Keyring::new(vec![FleetSecret::new(KeyId(1), [9; 32])]).unwrap()
    }

    fn stamp(boot: u32, seq: u32, sent_s: u64) -> Stamp {
        Stamp {
            boot: Boot(boot),
            seq: Seq(seq),
            sent: Instant::from_millis(sent_s * 1_000),
            gap: Duration::from_secs(1),
            epoch: EPOCH,
        }
    }

    fn sealed(key_id: u8, generation: u16) -> [u8; 80] {
        let header = Header {
            host: HOST,
            key_id: KeyId(key_id),
            generation: Generation(generation),
            flags: 0,
        };
        let (load, round_trip) = (LoadSample::UNKNOWN, RoundTrip::UNKNOWN);
        let beat = Beat { stamp: stamp(1, 1, 1), late_ms: 0, checks: 0, load, round_trip };
        let mut bytes = beat.encode(&header);
        FleetSecret::new(KeyId(key_id), [9; 32])
            .host_key(HOST, Generation(generation))
            .seal(&mut bytes);
        bytes
    }

    #[test]
    fn only_a_true_tag_under_a_known_and_unrevoked_key_is_admitted() {
        let admit = |bytes: &[u8], said, min| {
            let decoded = wire::decode(bytes)?;
            admit(&decoded, &ring(), said, |_| Generation(min)).map(|_| ())
        };
        assert_eq!(admit(&sealed(1, 0), None, 0), Ok(()));
        let reject = |bytes: &[u8], min| admit(bytes, None, min).unwrap_err();
        assert_eq!(reject(&sealed(2, 0), 0), Reject::Unauthentic);
        assert_eq!(reject(&sealed(1, 3), 4), Reject::Revoked);
        let mut forged = sealed(1, 0);
        forged[30] ^= 1;
        assert_eq!(reject(&forged, 0), Reject::Unauthentic);
        // What was found out already is not looked at again, and no more than that.
        assert_eq!(admit(&sealed(1, 0), Some(false), 0), Err(Reject::Unauthentic));
        assert_eq!(admit(&sealed(1, 3), Some(true), 4), Err(Reject::Revoked));
        assert_eq!(reject(&forged[..79], 0), Reject::TooShort);
    }

    #[test]
    fn a_reflected_ack_is_not_for_controllers() {
        let header = Header { host: HOST, key_id: KeyId(1), generation: Generation(0), flags: 0 };
        let mut ack = Ack {
            boot: Boot(1),
            seq: Seq(1),
            echoed_sent: Instant(0),
            interval: Duration::ZERO,
            epoch: EPOCH,
            controller: ControllerId(1),
            cadence: 0,
            lease: Duration::ZERO,
        }
        .encode(&header);
        ring().host_key(KeyId(1), HOST, Generation(0)).unwrap().seal(&mut ack);
        let ack = wire::decode(&ack).unwrap();
        assert_eq!(admit(&ack, &ring(), None, |_| Generation(0)).unwrap_err(), Reject::Kind);
    }

    #[test]
    fn freshness_is_epoch_rising_numbers_and_fitting_time() {
        let newest = Newest {
            boot: Boot(5),
            seq: Seq(100),
            sent: Instant::from_millis(49_000),
            baseline_ns: Some(0),
        };
        let past = Past {
            boot_max: Boot(8),
            challenged_until: Instant::from_millis(10_000),
            strict: false,
        };
        let prove = |s: &Stamp, at_s: u64| {
            prove(&newest, || past, s, Instant::from_millis(at_s * 1_000), EPOCH, TOLERANCE)
        };
        assert_eq!(prove(&stamp(5, 101, 50), 50), Ok(()));
        assert_eq!(prove(&stamp(5, 101, 50), 79), Ok(()));
        let cases = [
            (stamp(5, 100, 50), 50, Reject::NotRising),
            (stamp(5, 99, 50), 50, Reject::NotRising),
            (stamp(5, 101, 48), 48, Reject::NotRising),
            (stamp(4, 999, 50), 50, Reject::EarlierBoot),
            (stamp(5, 101, 50), 81, Reject::OffTime),
            (stamp(5, 101, 81), 50, Reject::OffTime),
            (stamp(8, 1, 9), 9, Reject::EarlierBoot),
            (stamp(9, 1, 50), 11, Reject::OffTime),
        ];
        for (s, at, why) in cases {
            assert_eq!(prove(&s, at), Err((why, Challenge::Nonce)), "{s:?}");
        }
        assert_eq!(prove(&stamp(9, 1, 9), 9), Ok(()));
        // After our own restart nothing is known of a life but its number.
        let fresh = |strict, at_s: u64| {
            let newest = Newest { baseline_ns: None, seq: Seq(0), ..newest };
            let past = Past { strict, ..past };
            let at = Instant::from_millis(at_s * 1_000);
            super::prove(&newest, || past, &stamp(5, 101, 50), at, EPOCH, TOLERANCE)
        };
        let refused = Err((Reject::OffTime, Challenge::Nonce));
        assert_eq!((fresh(false, 9), fresh(false, 11), fresh(true, 9)), (Ok(()), refused, refused));
        let old = Stamp { epoch: Epoch(76), ..stamp(5, 101, 50) };
        assert_eq!(prove(&old, 50), Err((Reject::WrongEpoch, Challenge::Epoch)));
    }
}
