//! Inputs: what lies at the edges of a type, and pseudorandom values.

/// Inputs of a test.
pub const COUNT: usize = 4096;

/// Pseudorandom numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }
}

/// Combinations of the edges first, then pairs of random values, edges among them.
fn combined<const N: usize>(edges: [&[u64]; N], mut random: impl FnMut(usize, u64) -> u64) -> Vec<[u64; N]> {
    let mut numbers = Random(17);
    let combinations = edges.iter().map(|edges| edges.len()).product::<usize>();
    (0..COUNT.max(combinations.min(COUNT * 2)))
        .map(|number| {
            let mut rest = number;
            std::array::from_fn(|source| {
                let edges = edges[source];
                let edge = edges[rest % edges.len()];
                rest /= edges.len();
                let value = numbers.next();
                if combinations <= COUNT * 2 && number < combinations || value.is_multiple_of(8) {
                    edge
                } else {
                    random(source, numbers.next())
                }
            })
        })
        .collect()
}

/// Integers of these widths in bits; upper bits of the 64 are zero.
pub fn integers<const N: usize>(bits: [u32; N]) -> Vec<[u64; N]> {
    let edges = bits.map(|bits| {
        let mask = u64::MAX >> (64 - bits);
        let mut edges = vec![0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 255, 256, mask / 2 - 1, mask / 2, mask / 2 + 1];
        edges.extend([mask / 2 + 2, mask - 1, mask, 0x5555_5555_5555_5555 & mask, 0x8000_0001 & mask]);
        edges
    });
    combined(edges.each_ref().map(Vec::as_slice), |source, value| {
        // few bits as often as many
        value >> (64 - bits[source]) >> (value % u64::from(bits[source]))
    })
}

/// Bits of f32: all classes of numbers, and random ones of moderate and of any exponent.
pub fn floats<const N: usize>() -> Vec<[u64; N]> {
    combined([&F32_EDGES; N], |_, value| {
        let bits = value as u32;
        let moderate = bits & 0x807f_ffff | (127 - 8 + (bits >> 23) % 16) << 23;
        u64::from(if value >> 32 & 3 == 0 { bits } else { moderate })
    })
}

const F32_EDGES: [u64; 20] = [
    0x0000_0000,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x3f7f_ffff,
    0x3f80_0001,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffff_ffff,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x4b00_0001,
    0x477f_efff,
    0x477f_f000,
    0x3880_0000,
];

/// Bits of f32 that [`crate::fixed`] can hold, with products and sums.
pub fn moderate_floats<const N: usize>() -> Vec<[u64; N]> {
    let edges =
        [0x0000_0000, 0x8000_0000, 0x3f80_0000, 0xbf80_0000, 0x3f80_0001, 0xbf80_0001, 0x3f7f_ffff, 0x3300_0000];
    combined([&edges; N], |_, value| {
        let bits = value as u32;
        u64::from(bits & 0x807f_ffff | (127 - 12 + (bits >> 23) % 24) << 23)
    })
}

/// Bits of f64.
pub fn doubles<const N: usize>() -> Vec<[u64; N]> {
    let edges = [
        0,
        1 << 63,
        0x3ff0 << 48,
        0xbff0 << 48,
        0x7ff0 << 48,
        0xfff0 << 48,
        0x7ff8 << 48,
        1,
        0x7fef_ffff_ffff_ffff,
        0x0010 << 48,
    ];
    combined([&edges; N], |_, value| value & 0x800f_ffff_ffff_ffff | (1023 - 20 + (value >> 52) % 40) << 52)
}

/// Bits of halves: random pairs, among them all classes of numbers.
pub fn halves<const N: usize>() -> Vec<[u64; N]> {
    let edges = [
        0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x3bff, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x3f80,
        0x7f80, 0xff80, 0x7f7f, 0x0080, 0x007f,
    ];
    combined([&edges; N], |_, value| value & 0xffff)
}

/// Every value of 16 bits.
pub fn all_halves() -> Vec<[u64; 1]> {
    (0..=0xffff).map(|bits| [bits]).collect()
}
