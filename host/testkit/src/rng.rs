//! Reproducible chance, and a digest for telling states apart.

/// SplitMix64: a small generator whose whole state is its seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must be above zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias of the remainder does not matter for bounds this far below 2^64.
        self.next_u64() % bound
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }
}

/// 128 bits that differ for different bytes, as far as chance goes. Not against an adversary.
pub fn digest(bytes: &[u8]) -> u128 {
    let (mut a, mut b) = (bytes.len() as u64 ^ 0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344_u64);
    let mut take = |word: u64| {
        a = (a ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
        b = b.wrapping_add(word).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(32) ^ a;
    };
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        take(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    take(u64::from_le_bytes(last));
    take(0);
    u128::from(a) << 64 | u128::from(b)
}
