//! Seeds that nobody chose: random ones, and those of a request's samples.

use rustix::rand::{GetRandomFlags, getrandom};

use super::sampler::hash;
use crate::error::{Error, ErrorCode, Result};

/// Bits of a seed made here: every JSON reader keeps an integer of so many bits exactly.
const SEED_BITS: u32 = 53;

/// A random seed from the operating system, so that processes forked from one another draw different ones.
///
/// # Errors
/// `io_failed`.
pub fn random_seed() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes[..], GetRandomFlags::empty())
        .map_err(|e| Error::new(ErrorCode::IoFailed, format!("no random seed: {e}")))?;
    Ok(u64::from_le_bytes(bytes) >> (u64::BITS - SEED_BITS))
}

/// The seed of one of a request's samples. The first has the request's own.
pub(super) fn sample_seed(seed: u64, sample: usize) -> u64 {
    match sample {
        0 => seed,
        // Not `seed + sample`: the samples of neighboring seeds would be the same.
        sample => hash(seed, sample as u64) >> (u64::BITS - SEED_BITS),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn random_seeds_differ() {
        let seeds: HashSet<u64> = (0..1000).map(|_| random_seed().expect("the system has random numbers")).collect();
        assert_eq!(seeds.len(), 1000);
        assert!(seeds.iter().all(|&seed| seed < 1 << SEED_BITS));
    }

    #[test]
    fn the_first_sample_has_the_seed_of_the_request_and_all_samples_of_neighboring_seeds_differ() {
        assert_eq!(sample_seed(u64::MAX, 0), u64::MAX);
        let all: HashSet<u64> =
            (0..100).flat_map(|seed| (0..100).map(move |sample| sample_seed(seed, sample))).collect();
        assert_eq!(all.len(), 100 * 100);
    }
}
