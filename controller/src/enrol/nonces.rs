//! Nonces for proofs: each is good once, for a minute, and costs nothing to hand out (pure).
//!
//! ```text
//! nonce = made (8, BE, µs of the monotonic clock) ‖ random (8) ‖ MAC over these (32)
//! ```
//!
//! The MAC's key is drawn at each start, so nothing is kept of a nonce until it comes back used: who asks for
//! millions of them fills no table. Used ones are remembered until they are too old anyway.

use std::collections::VecDeque;
use std::time::Duration;

use heartwatch_common::enrol::{Hex, NONCE_LEN};
use heartwatch_common::time::Instant;

/// How long a nonce is good.
pub const NONCE_LIFE: Duration = Duration::from_secs(60);
/// Used nonces that are remembered; beyond that no proof is taken until the oldest are too old.
pub const USED_MAX: usize = 65_536;

/// Hands out nonces and takes each back once.
pub struct Nonces {
    key: [u8; 32],
    /// Used ones, by when they were used, and their random parts.
    used: VecDeque<(Instant, [u8; 16])>,
    known: std::collections::HashSet<[u8; 16]>,
}

/// Why a nonce is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNonce {
    /// Not ours, too old, or used.
    #[error("the nonce is not this controller's, too old, or used before: fetch another")]
    Stale,
    /// Too many are used.
    #[error("too many proofs at once: try again in a minute")]
    Busy,
}

impl Nonces {
    /// With a key from a cryptographic source.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, used: VecDeque::new(), known: std::collections::HashSet::new() }
    }

    /// A new one; `random` from a cryptographic source.
    pub fn give(&self, now: Instant, random: [u8; 8]) -> Hex<NONCE_LEN> {
        let mut bytes = [0; NONCE_LEN];
        bytes[..8].copy_from_slice(&now.as_micros().to_be_bytes());
        bytes[8..16].copy_from_slice(&random);
        let mac = blake3::keyed_hash(&self.key, &bytes[..16]);
        bytes[16..].copy_from_slice(mac.as_bytes());
        Hex(bytes)
    }

    /// Takes one back: good once.
    pub fn take(&mut self, nonce: &Hex<NONCE_LEN>, now: Instant) -> Result<(), BadNonce> {
        let (head, mac) = nonce.0.split_at(16);
        let true_mac = blake3::keyed_hash(&self.key, head);
        let mac: [u8; 32] = mac.try_into().map_err(|_| BadNonce::Stale)?;
        // `blake3::Hash` compares in constant time.
        if true_mac != mac {
            return Err(BadNonce::Stale);
        }
        let head: [u8; 16] = head.try_into().map_err(|_| BadNonce::Stale)?;
        let made = u64::from_be_bytes(*head.first_chunk().ok_or(BadNonce::Stale)?);
        let made = Instant::from_micros(made);
        while self.used.front().is_some_and(|(at, _)| now.since(*at) > NONCE_LIFE) {
            if let Some((_, old)) = self.used.pop_front() {
                self.known.remove(&old);
            }
        }
        if now.since(made) > NONCE_LIFE || self.known.contains(&head) {
            return Err(BadNonce::Stale);
        }
        if self.used.len() >= USED_MAX {
            return Err(BadNonce::Busy);
        }
        self.used.push_back((now, head));
        self.known.insert(head);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_for_a_minute_and_only_where_it_was_made() {
        let mut ours = Nonces::new([1; 32]);
        let at = |s: u64| Instant::from_millis(1_000_000 + s * 1_000);
        let nonce = ours.give(at(0), [5; 8]);
        assert_eq!(Nonces::new([2; 32]).take(&nonce, at(1)), Err(BadNonce::Stale));
        let mut bent = nonce;
        bent.0[3] ^= 1;
        assert_eq!(ours.take(&bent, at(1)), Err(BadNonce::Stale));
        assert_eq!(ours.take(&nonce, at(60)), Ok(()));
        assert_eq!(ours.take(&nonce, at(60)), Err(BadNonce::Stale));
        // Remembered for as long as it would be good, forgotten afterwards.
        assert_eq!(ours.take(&nonce, at(121)), Err(BadNonce::Stale));
        assert_eq!(ours.known.len(), 0);
        let late = ours.give(at(0), [6; 8]);
        assert_eq!(ours.take(&late, at(61)), Err(BadNonce::Stale));
    }

    #[test]
    fn used_nonces_are_bounded() {
        let mut ours = Nonces::new([1; 32]);
        let at = Instant::from_millis(5_000);
        for n in 0..USED_MAX as u64 {
            let nonce = ours.give(at, n.to_be_bytes());
            assert_eq!(ours.take(&nonce, at), Ok(()));
        }
        let one_more = ours.give(at, [255; 8]);
        assert_eq!(ours.take(&one_more, at), Err(BadNonce::Busy));
        let later = Instant::from_millis(66_000);
        let one_more = ours.give(later, [255; 8]);
        assert_eq!(ours.take(&one_more, later), Ok(()));
        assert_eq!(ours.used.len(), 1);
    }
}
