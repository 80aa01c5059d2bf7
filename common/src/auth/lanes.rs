//! BLAKE3's keyed hash of many messages of one block at once: one message in each *lane* of the processor's
//! widest vectors.
//!
//! The library hashes one message at a time, and within one block each step waits for the one before. Tags of
//! different hosts do not wait for each other. The function is that of the BLAKE3 paper, §2.2 (O'Connor,
//! Aumasson, Neves, Wilcox-O'Hearn, 2020), for a chunk of one block that is the root; tests hold every lane
//! against the library.
//!
//! All time is the same whatever keys and messages hold: there is no branch and no look-up that depends on
//! them.

/// Messages that are hashed at once.
pub(super) const LANES: usize = 16;

/// One word of each lane.
pub(super) type Word = [u32; LANES];

/// Whether this processor has vectors that are worth it.
#[inline]
pub(super) fn are_lanes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Keyed hashes of the first `len` bytes of blocks, whose other bytes are zero. `false`: there are no lanes
/// here, and nothing was hashed.
#[inline]
pub(super) fn keyed_hashes(
    key: &[Word; 8],
    block: &[Word; 16],
    len: u32,
    hashes: &mut [Word; 8],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            #[expect(
                unsafe_code,
                reason = "vector instructions are safe only where they are known to exist"
            )]
            // SAFETY: the line above has asked for them.
            unsafe {
                avx512::hash(key, block, len, hashes);
            }
            return true;
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            #[expect(
                unsafe_code,
                reason = "vector instructions are safe only where they are known to exist"
            )]
            // SAFETY: the line above has asked for them.
            unsafe {
                avx2::hash(key, block, len, hashes);
            }
            return true;
        }
    }
    // Of no use on other processors.
    let _ = (key, block, len, hashes);
    false
}

#[cfg(target_arch = "x86_64")]
mod table {
    /// The first half of the state's second half; the words of SHA-256's initial value.
    pub(super) const IV: [u32; 4] = [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A];
    /// A keyed hash; the block is the first and last of its chunk, and the chunk is the root.
    pub(super) const FLAGS: u32 = KEYED_HASH | CHUNK_START | CHUNK_END | ROOT;
    const CHUNK_START: u32 = 1 << 0;
    const CHUNK_END: u32 = 1 << 1;
    const ROOT: u32 = 1 << 3;
    const KEYED_HASH: u32 = 1 << 4;

    pub(super) const ROUNDS: usize = 7;

    /// Which word of the message each place of a round takes: those of the round before, permuted.
    pub(super) const SCHEDULE: [[usize; 16]; ROUNDS] = {
        const PERMUTED: [usize; 16] = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
        let mut schedule = [[0; 16]; ROUNDS];
        let (mut round, mut i) = (1, 0);
        while i < 16 {
            schedule[0][i] = i;
            i += 1;
        }
        while round < ROUNDS {
            i = 0;
            while i < 16 {
                schedule[round][i] = schedule[round - 1][PERMUTED[i]];
                i += 1;
            }
            round += 1;
        }
        schedule
    };
}

/// The function for one kind of vectors. Not generic: what is enabled for a function is not handed on to
/// what is written for any kind.
#[cfg(target_arch = "x86_64")]
macro_rules! vectors {
    ($name:ident, $feature:literal, $vector:ident, $set:ident, $add:ident, $xor:ident, $rotate:ident) => {
        mod $name {
            use std::arch::x86_64::*;

            use super::table::{FLAGS, IV, ROUNDS, SCHEDULE};
            use super::*;

            /// Lanes of one vector.
            const WIDTH: usize = size_of::<$vector>() / size_of::<u32>();
            const _: () = assert!(LANES.is_multiple_of(WIDTH));

            #[target_feature(enable = $feature)]
            #[inline]
            fn load<const N: usize>(words: &[Word; N], part: usize) -> [$vector; N] {
                // No closures: what is enabled here is not enabled in those who call them.
                let mut vectors = [$set(0); N];
                for (vector, words) in vectors.iter_mut().zip(words) {
                    let mut own = [0; WIDTH];
                    own.copy_from_slice(&words[part * WIDTH..][..WIDTH]);
                    #[expect(unsafe_code, reason = "vectors have no safe way from arrays")]
                    // SAFETY: both are as many bytes, and any of them are valid in either.
                    unsafe {
                        *vector = std::mem::transmute::<[u32; WIDTH], $vector>(own);
                    }
                }
                vectors
            }

            #[target_feature(enable = $feature)]
            #[inline]
            fn mix(v: &mut [$vector; 16], at: [usize; 4], x: $vector, y: $vector) {
                let [a, b, c, d] = at;
                v[a] = $add($add(v[a], v[b]), x);
                v[d] = $rotate::<16>($xor(v[d], v[a]));
                v[c] = $add(v[c], v[d]);
                v[b] = $rotate::<12>($xor(v[b], v[c]));
                v[a] = $add($add(v[a], v[b]), y);
                v[d] = $rotate::<8>($xor(v[d], v[a]));
                v[c] = $add(v[c], v[d]);
                v[b] = $rotate::<7>($xor(v[b], v[c]));
            }

            #[target_feature(enable = $feature)]
            #[inline]
            fn round(v: &mut [$vector; 16], m: &[$vector; 16], s: &[usize; 16]) {
                mix(v, [0, 4, 8, 12], m[s[0]], m[s[1]]);
                mix(v, [1, 5, 9, 13], m[s[2]], m[s[3]]);
                mix(v, [2, 6, 10, 14], m[s[4]], m[s[5]]);
                mix(v, [3, 7, 11, 15], m[s[6]], m[s[7]]);
                mix(v, [0, 5, 10, 15], m[s[8]], m[s[9]]);
                mix(v, [1, 6, 11, 12], m[s[10]], m[s[11]]);
                mix(v, [2, 7, 8, 13], m[s[12]], m[s[13]]);
                mix(v, [3, 4, 9, 14], m[s[14]], m[s[15]]);
            }

            #[target_feature(enable = $feature)]
            pub(super) fn hash(
                key: &[Word; 8],
                block: &[Word; 16],
                len: u32,
                hashes: &mut [Word; 8],
            ) {
                for part in 0..LANES / WIDTH {
                    let m = load(block, part);
                    let mut v = [$set(0); 16];
                    v[..8].copy_from_slice(&load(key, part));
                    for (word, iv) in v[8..12].iter_mut().zip(IV) {
                        *word = $set(iv.cast_signed());
                    }
                    // 12 and 13 are the chunk's number, which is 0.
                    v[14] = $set(len.cast_signed());
                    v[15] = $set(FLAGS.cast_signed());
                    // Written out, so that every place is known to the compiler and no word leaves its
                    // register.
                    const _: () = assert!(ROUNDS == 7);
                    round(&mut v, &m, const { &SCHEDULE[0] });
                    round(&mut v, &m, const { &SCHEDULE[1] });
                    round(&mut v, &m, const { &SCHEDULE[2] });
                    round(&mut v, &m, const { &SCHEDULE[3] });
                    round(&mut v, &m, const { &SCHEDULE[4] });
                    round(&mut v, &m, const { &SCHEDULE[5] });
                    round(&mut v, &m, const { &SCHEDULE[6] });
                    for (i, word) in hashes.iter_mut().enumerate() {
                        let both = $xor(v[i], v[i + 8]);
                        #[expect(unsafe_code, reason = "vectors have no safe way to arrays")]
                        // SAFETY: as in `load`.
                        let own = unsafe { std::mem::transmute::<$vector, [u32; WIDTH]>(both) };
                        word[part * WIDTH..][..WIDTH].copy_from_slice(&own);
                    }
                }
            }
        }
    };
}

/// AVX2 has no rotation: whole bytes are shuffled, others shifted twice.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn rotate_avx2<const BITS: i32>(v: std::arch::x86_64::__m256i) -> std::arch::x86_64::__m256i {
    use std::arch::x86_64::*;
    const fn order(bytes: [i32; 4]) -> [i32; 4] {
        let [a, b, c, d] = bytes;
        let one = a | b << 8 | c << 16 | d << 24;
        // Of each word its own bytes.
        [one, one + 0x0404_0404, one + 0x0808_0808, one + 0x0c0c_0c0c]
    }
    const BY_16: [i32; 4] = order([2, 3, 0, 1]);
    const BY_8: [i32; 4] = order([1, 2, 3, 0]);
    match BITS {
        16 => shuffled(v, BY_16),
        8 => shuffled(v, BY_8),
        12 => _mm256_or_si256(_mm256_srli_epi32::<12>(v), _mm256_slli_epi32::<20>(v)),
        7 => _mm256_or_si256(_mm256_srli_epi32::<7>(v), _mm256_slli_epi32::<25>(v)),
        _ => unreachable!("BLAKE3 rotates by 16, 12, 8 and 7"),
    }
}

/// The bytes of both halves in another order.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn shuffled(v: std::arch::x86_64::__m256i, order: [i32; 4]) -> std::arch::x86_64::__m256i {
    use std::arch::x86_64::*;
    let [a, b, c, d] = order;
    _mm256_shuffle_epi8(v, _mm256_setr_epi32(a, b, c, d, a, b, c, d))
}

#[cfg(target_arch = "x86_64")]
vectors!(
    avx512,
    "avx512f",
    __m512i,
    _mm512_set1_epi32,
    _mm512_add_epi32,
    _mm512_xor_si512,
    _mm512_ror_epi32
);
#[cfg(target_arch = "x86_64")]
vectors!(avx2, "avx2", __m256i, _mm256_set1_epi32, _mm256_add_epi32, _mm256_xor_si256, rotate_avx2);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Words of bytes, lane by lane.
    fn words<const N: usize>(bytes: &[Vec<u8>]) -> [Word; N] {
        std::array::from_fn(|i| {
            std::array::from_fn(|lane| {
                u32::from_le_bytes(*bytes[lane][4 * i..].first_chunk().unwrap())
            })
        })
    }

    fn check(keys: &[Vec<u8>], messages: &[Vec<u8>], len: usize, hashes: &[Word; 8]) {
        for lane in 0..LANES {
            let key: &[u8; 32] = keys[lane].first_chunk().unwrap();
            let library = blake3::keyed_hash(key, &messages[lane][..len]);
            let own: Vec<u8> = hashes.iter().flat_map(|word| word[lane].to_le_bytes()).collect();
            assert_eq!(own, library.as_bytes(), "lane {lane}, {len} bytes");
        }
    }

    proptest! {
        #[test]
        fn every_lane_of_every_kind_is_what_the_library_says(
            keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 32), LANES),
            mut messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 64), LANES),
            len in 0..=64usize,
        ) {
            for message in &mut messages {
                message[len..].fill(0);
            }
            let (key, block): ([Word; 8], [Word; 16]) = (words(&keys), words(&messages));
            let mut hashes = [[0; LANES]; 8];
            if !keyed_hashes(&key, &block, len as u32, &mut hashes) {
                println!("SKIPPED: this processor has neither AVX2 nor AVX-512");
                return Ok(());
            }
            check(&keys, &messages, len, &hashes);
            // Where there are wider vectors nobody would take these.
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                let mut hashes = [[0; LANES]; 8];
                #[expect(unsafe_code, reason = "as in `keyed_hashes`")]
                // SAFETY: the line above has asked for them.
                unsafe {
                    avx2::hash(&key, &block, len as u32, &mut hashes);
                }
                check(&keys, &messages, len, &hashes);
            }
        }
    }
}
