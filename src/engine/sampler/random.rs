//! The random number of a draw.

/// A random number of (seed, position): the finalizer of SplitMix64 twice, so that neighboring seeds and positions, and
/// seeds that differ by the generator's own increment, are uncorrelated.
///
/// Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014; constants of Stafford's Mix13.
pub(in crate::engine) fn hash(seed: u64, position: u64) -> u64 {
    const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let stream = mix(seed.wrapping_add(INCREMENT));
    mix(stream.wrapping_add(INCREMENT.wrapping_mul(position.wrapping_add(1))))
}

/// The upper 53 bits as a number in `[0, 1)`.
pub(super) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A number in `[0, 1)`, moved towards 1 by a positive skew and towards 0 by a negative one.
pub(super) fn skewed(random: f64, skew: f32) -> f64 {
    if skew == 0.0 { random } else { random.powf((-f64::from(skew)).exp()).min(1.0_f64.next_down()) }
}
