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
    const K: [u64; 4] = [
        0x9fb2_1c65_1e98_df25,
        0xd6e8_feb8_6659_fd93,
        0x9e37_79b9_7f4a_7c15,
        0xbf58_476d_1ce4_e5b9,
    ];
    // Four lanes that do not wait for one another.
    let mut lanes = [
        0x243f_6a88_85a3_08d3_u64,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
        bytes.len() as u64,
    ];
    let mut take = |block: &[u8; 32]| {
        for ((lane, word), k) in lanes.iter_mut().zip(block.as_chunks::<8>().0).zip(K) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(k).rotate_left(29);
        }
    };
    let (blocks, rest) = bytes.as_chunks::<32>();
    blocks.iter().for_each(&mut take);
    let mut last = [0; 32];
    last[..rest.len()].copy_from_slice(rest);
    take(&last);
    take(&[0x5a; 32]);
    let [a, b, c, d] = lanes;
    let mix = |x: u64, y: u64| (x ^ y.rotate_left(23)).wrapping_mul(K[0]) ^ (y >> 31);
    u128::from(mix(mix(a, b), c) ^ d) << 64 | u128::from(mix(mix(d, c), b) ^ a)
}
