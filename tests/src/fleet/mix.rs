//! Numbers that look random and can be computed back: host ids, draws.

use heartwatch_common::id::HostId;

/// Which numbers a mass of hosts has, so that its ids differ from others'.
const SALT: u64 = 0x6865_6172_7462_6561;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64 bits.
pub(super) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Undoes [`mix`].
const fn unmix(mut z: u64) -> u64 {
    z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

/// The id of host number `n` of a [`Mass`](super::Mass): spread evenly, and the same in every run.
pub fn mass_id(n: usize) -> HostId {
    let half = mix(n as u64 ^ SALT);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&half.to_be_bytes());
    id[8..].copy_from_slice(&mix(half.rotate_left(32) ^ SALT).to_be_bytes());
    HostId(id)
}

/// The number of the host with that id; `None` if [`mass_id`] gives it to none.
pub fn mass_number(id: &HostId) -> Option<usize> {
    let (half, rest) = id.0.split_first_chunk::<8>()?;
    let half = u64::from_be_bytes(*half);
    let same = rest == mix(half.rotate_left(32) ^ SALT).to_be_bytes();
    same.then(|| usize::try_from(unmix(half) ^ SALT).ok()).flatten()
}

/// SplitMix64: a draw costs a nanosecond, and a load generator needs no better one.
#[derive(Clone, Debug)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `n`, or 0 if that is 0; the bias is under n ÷ 2³².
    pub(super) fn below(&mut self, n: u32) -> u32 {
        (((self.draw() >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// An order of `count` hosts in which neighbours have nothing to do with each other: multiples of a
/// number near the golden section that has no divisor in common with `count`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shuffle {
    count: usize,
    stride: usize,
    /// The multiplicative inverse of `stride`.
    back: usize,
}

impl Shuffle {
    pub(super) fn new(count: usize) -> Self {
        const fn divisor(a: usize, b: usize) -> usize {
            if b == 0 { a } else { divisor(b, a % b) }
        }
        let wish = (count as f64 * 0.618) as usize;
        let stride = (wish.max(1)..).find(|s| divisor(*s, count) == 1).unwrap_or(1);
        // Euclid's extended algorithm.
        let (mut r, mut s) = ((count as i128, stride as i128), (0i128, 1i128));
        while r.1 != 0 {
            let q = r.0 / r.1;
            (r, s) = ((r.1, r.0 - q * r.1), (s.1, s.0 - q * s.1));
        }
        let back = s.0.rem_euclid(count as i128) as usize;
        Self { count, stride, back }
    }

    /// How many hosts.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The place of a host in this order.
    pub(super) fn place(&self, host: usize) -> usize {
        ((host as u128 * self.back as u128) % self.count as u128) as usize
    }

    /// The host at a place of this order.
    pub(super) fn host(&self, place: usize) -> usize {
        ((place as u128 * self.stride as u128) % self.count as u128) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_number_and_foreign_ids_tell_none() {
        for n in (0..100).chain([999_999, 4_000_000, usize::MAX]) {
            assert_eq!(mass_number(&mass_id(n)), Some(n));
        }
        let mut other = mass_id(7);
        other.0[12] ^= 1;
        assert_eq!(mass_number(&other), None);
    }

    #[test]
    fn a_shuffle_names_every_host_once() {
        for count in [1, 2, 10, 97, 1_000, 10_000] {
            let shuffle = Shuffle::new(count);
            let mut hosts: Vec<_> = (0..count).map(|p| shuffle.host(p)).collect();
            assert!(hosts.iter().enumerate().all(|(p, h)| shuffle.place(*h) == p), "{count}");
            hosts.sort_unstable();
            assert!(hosts.iter().enumerate().all(|(i, h)| i == *h), "{count}");
        }
    }

    #[test]
    fn draws_spread_evenly_below_their_bound() {
        let (mut draws, mut counts) = (Draws::new(1), [0u32; 10]);
        (0..100_000).for_each(|_| counts[draws.below(10) as usize] += 1);
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
        assert_eq!(draws.below(0), 0);
    }
}
