//! Tags of many datagrams at once, where the processor has vectors for it ([`super::lanes`]).
//!
//! A tag costs two hashes, the host's key and the tag itself: some 200 ns one after the other, a third of
//! what a beat costs a controller in all; 30 ns in lanes of AVX-512 (AMD Zen 5).

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::lanes::{LANES, Word, are_lanes, keyed_hashes};
use super::{DERIVE_CONTEXT, HostKey, Keyring};
use crate::id::KeyId;
use crate::wire::{BODY_LEN, Fixed};

/// Fewer are cheaper one by one: all lanes are hashed, whether anything stands in them or not.
const WORTH: usize = 3;
/// Bytes from which a host's key is derived: fewer than a block.
const DERIVED_LEN: u32 = 40;

const _: () = assert!(BODY_LEN == 64, "one block");

/// Which datagrams of a batch are sealed under the key that they name, as far as that was looked at.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    of: Vec<Option<bool>>,
    /// Datagrams of the batch that wait for a lane.
    waiting: Vec<(usize, Fixed)>,
}

impl Verdicts {
    /// Whether datagram `i` is sealed under the live key that it names; `None`: that was not looked at, or
    /// has been asked already.
    #[inline]
    pub fn take(&mut self, i: usize) -> Option<bool> {
        self.of.get_mut(i)?.take()
    }
}

/// A word of little-endian bytes.
#[inline]
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(4 * at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Puts bytes into a lane.
#[inline]
fn put<const N: usize>(words: &mut [Word; N], lane: usize, bytes: &[u8]) {
    for (i, of) in words.iter_mut().enumerate() {
        of[lane] = word(bytes, i);
    }
}

impl Keyring {
    /// Looks at a batch of datagrams: of those that have the length of a beat it is said whether they are
    /// sealed under the live key that they name. It says nothing about any if the processor has no vectors
    /// for it, or of the last few.
    pub fn verify_many<'a>(&self, batch: impl Iterator<Item = &'a [u8]>, verdicts: &mut Verdicts) {
        let Verdicts { of, waiting } = verdicts;
        of.clear();
        waiting.clear();
        if !are_lanes() {
            return;
        }
        for (i, bytes) in batch.enumerate() {
            of.push(None);
            if let Ok(fixed) = bytes.try_into() {
                waiting.push((i, fixed));
                if waiting.len() == LANES {
                    self.verify_waiting(waiting, of);
                }
            }
        }
        if waiting.len() >= WORTH {
            self.verify_waiting(waiting, of);
        }
    }

    fn verify_waiting(&self, waiting: &mut Vec<(usize, Fixed)>, of: &mut [Option<bool>]) {
        if let Some(tags) = self.tags(waiting) {
            for (lane, (i, bytes)) in waiting.iter().enumerate() {
                let known = self.live_secret(KeyId(bytes[3])).is_some();
                let differs =
                    (0..4).fold(0, |all, i| all | (tags[i][lane] ^ word(&bytes[BODY_LEN..], i)));
                of[*i] = Some(known && bool::from(differs.ct_eq(&0)));
            }
        }
        waiting.clear();
    }

    /// What the tags of at most [`LANES`] datagrams ought to be.
    fn tags(&self, datagrams: &[(usize, Fixed)]) -> Option<[Word; 8]> {
        let mut secrets = Zeroizing::new([[0; LANES]; 8]);
        let (mut derived, mut bodies) = ([[0; LANES]; 16], [[0; LANES]; 16]);
        for (lane, (_, bytes)) in datagrams.iter().enumerate() {
            let Some(secret) = self.live_secret(KeyId(bytes[3])) else { continue };
            put(&mut secrets, lane, &secret.bytes);
            put(&mut bodies, lane, &bytes[..BODY_LEN]);
            // As in `FleetSecret::host_key`: the context, then what stands in a header from byte 3 on.
            let [.., last] = DERIVE_CONTEXT;
            for (i, of) in derived.iter_mut().enumerate().take(5) {
                of[lane] = word(DERIVE_CONTEXT, i);
            }
            derived[5][lane] = u32::from_le_bytes([*last, bytes[3], bytes[4], bytes[5]]);
            for (i, of) in derived[6..10].iter_mut().enumerate() {
                of[lane] = word(bytes, 2 + i);
            }
        }
        let mut keys = Zeroizing::new([[0; LANES]; 8]);
        let mut tags = [[0; LANES]; 8];
        let hashed = keyed_hashes(&secrets, &derived, DERIVED_LEN, &mut keys)
            && keyed_hashes(&keys, &bodies, BODY_LEN as u32, &mut tags);
        hashed.then_some(tags)
    }
}

/// Writes the tags over the last 16 bytes of encoded datagrams, each under its own key.
pub fn seal_many(datagrams: &mut [(&HostKey, &mut Fixed)]) {
    for group in datagrams.chunks_mut(LANES) {
        if group.len() < WORTH || !seal_group(group) {
            group.iter_mut().for_each(|(key, bytes)| key.seal(&mut bytes[..]));
        }
    }
}

/// The same of at most [`LANES`]. `false`: they are not sealed.
fn seal_group(group: &mut [(&HostKey, &mut Fixed)]) -> bool {
    if !are_lanes() {
        return false;
    }
    let mut keys = Zeroizing::new([[0; LANES]; 8]);
    let (mut bodies, mut tags) = ([[0; LANES]; 16], [[0; LANES]; 8]);
    for (lane, (key, bytes)) in group.iter().enumerate() {
        put(&mut keys, lane, &key.bytes);
        put(&mut bodies, lane, &bytes[..BODY_LEN]);
    }
    if !keyed_hashes(&keys, &bodies, BODY_LEN as u32, &mut tags) {
        return false;
    }
    for (lane, (_, bytes)) in group.iter_mut().enumerate() {
        let (into, _) = bytes[BODY_LEN..].as_chunks_mut();
        for (into, word) in into.iter_mut().zip(&tags) {
            *into = word[lane].to_le_bytes();
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::FleetSecret;
    use crate::id::{Generation, HostId};
    use crate::wire::{self, DATAGRAM_LEN};
    use proptest::prelude::*;

    /// What somebody may send: sealed well or not, under any key id, of any length.
    fn datagram() -> impl Strategy<Value = Vec<u8>> {
        let parts =
            (any::<[u8; 16]>(), 0..4u8, 0..3u16, any::<[u8; BODY_LEN]>(), 0..10u8, 0..DATAGRAM_LEN);
        parts.prop_map(|(host, key_id, generation, body, kind, spoilt)| {
            let mut bytes = body.to_vec();
            bytes[3] = key_id;
            bytes[4..6].copy_from_slice(&generation.to_be_bytes());
            bytes[8..24].copy_from_slice(&host);
            bytes.extend([0; 16]);
            let key = secret(key_id).host_key(HostId(host), Generation(generation));
            key.seal(&mut bytes);
            match kind {
                0 => bytes[spoilt] ^= 1,
                1 => bytes.truncate(spoilt),
                2 => bytes.push(0),
                _ => {}
            }
            bytes
        })
    }

    fn secret(id: u8) -> FleetSecret {
        FleetSecret::new(KeyId(id), [id ^ 0x5a; 32])
    }

    proptest! {
        #[test]
        fn many_are_judged_as_each_alone(batch in proptest::collection::vec(datagram(), 0..70)) {
            // Under 2 one may renew, but not beat; 3 is unknown.
            let ring = Keyring::with(vec![secret(0), secret(1)], vec![secret(2)]).unwrap();
            let mut verdicts = Verdicts::default();
            ring.verify_many(batch.iter().map(Vec::as_slice), &mut verdicts);
            let mut unsaid = 0;
            for (i, bytes) in batch.iter().enumerate() {
                let Some((signed, tag)) = bytes.split_last_chunk() else { continue };
                let fixed = bytes.len() == DATAGRAM_LEN;
                let alone = fixed && {
                    let host = HostId(*bytes[8..].first_chunk().unwrap());
                    let generation = Generation(u16::from_be_bytes([bytes[4], bytes[5]]));
                    let key = ring.host_key(KeyId(bytes[3]), host, generation);
                    key.is_some_and(|key| key.is_tag(signed, tag))
                };
                match verdicts.take(i) {
                    Some(said) => prop_assert!(fixed && said == alone, "datagram {i}"),
                    None => unsaid += usize::from(fixed),
                }
            }
            prop_assert!(unsaid < WORTH || !are_lanes(), "{unsaid} were not looked at");
            prop_assert_eq!(verdicts.take(batch.len()), None);
            prop_assert_eq!(verdicts.take(0), None, "once asked");
        }

        #[test]
        fn many_are_sealed_as_each_alone(bodies in proptest::collection::vec(any::<[u8; BODY_LEN]>(), 0..40)) {
            let keys: Vec<HostKey> = (0..bodies.len())
                .map(|n| secret(1).host_key(HostId([n as u8; 16]), Generation(0)))
                .collect();
            let whole = |body: &[u8; BODY_LEN]| -> Fixed {
                std::array::from_fn(|i| body.get(i).copied().unwrap_or(0xee))
            };
            let mut many: Vec<Fixed> = bodies.iter().map(whole).collect();
            let mut alone = many.clone();
            seal_many(&mut keys.iter().zip(&mut many).collect::<Vec<_>>());
            keys.iter().zip(&mut alone).for_each(|(key, bytes)| key.seal(bytes));
            prop_assert_eq!(many, alone);
        }
    }

    #[test]
    fn where_a_key_is_named_is_where_the_wire_has_it() {
        let header = wire::Header {
            host: HostId([7; 16]),
            key_id: KeyId(9),
            generation: Generation(0x0102),
            flags: 0,
        };
        let leave = wire::Leave {
            stamp: wire::Stamp {
                boot: crate::id::Boot(1),
                seq: crate::id::Seq(1),
                sent: crate::time::Instant(0),
                gap: std::time::Duration::from_secs(1),
                epoch: crate::id::Epoch(1),
            },
            reason: wire::LeaveReason::Shutdown,
            expected: std::time::Duration::ZERO,
        };
        let bytes = leave.encode(&header);
        assert_eq!((bytes[3], &bytes[4..6], &bytes[8..24]), (9, &[1, 2][..], &[7; 16][..]));
    }
}
