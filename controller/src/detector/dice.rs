//! The detector's own randomness: from one seed, so that a run can be replayed.

/// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016.
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed; in production from the operating system's generator.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// 32 random bits.
    #[inline]
    pub fn roll(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    /// A nonce. That nobody has seen it before is all that is asked of it: no answer to it can be made
    /// without the key of the host that is asked.
    pub fn nonce(&mut self) -> [u8; 16] {
        let mut nonce = [0; 16];
        for chunk in nonce.chunks_exact_mut(4) {
            chunk.copy_from_slice(&self.roll().to_be_bytes());
        }
        nonce
    }
}
