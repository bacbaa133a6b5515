//! Random draws keyed by a counter, never by call order.
//!
//! A draw is a pure function of its key, so it does not depend on batch, rewind, thread or who else
//! runs. Different purposes use different streams, so that for example the actor draws of a
//! distillation do not disturb the sampling draws. The mixer is SplitMix64's finaliser (Steele, Lea,
//! Flood 2014) chained over the words of the key.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a draw is for; part of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Choosing a token while generating.
    Sample = 1,
    /// Choosing the actor of a turn.
    Actor = 2,
    /// Deriving the sampling seed of one turn of one episode.
    Rollout = 3,
    /// Making weights for tests and benches.
    Weights = 4,
    /// Whatever an example or a test draws for itself.
    World = 5,
    /// Deriving the seeds of several continuations of one prompt.
    Continuation = 6,
}

/// A seed that differs from run to run and from call to call: the only draw here that is no function of a key. Below
/// 2^53, so that every reader of JSON keeps it.
pub fn fresh_seed() -> u64 {
    // The standard library's hasher is keyed by the operating system; a process made by fork() has the same keys.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    RandomState::new().hash_one((now, std::process::id())) >> 11
}

/// SplitMix64's finaliser: a bijection of 64 bits with good avalanche.
pub const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of `bytes` behind what was hashed before, for telling things apart that nobody forges.
pub fn mix_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    bytes.chunks(8).fold(mix(hash ^ bytes.len() as u64), |hash, chunk| mix(hash ^ word(chunk)))
}

/// 64 random bits for (stream, key words).
pub fn bits(stream: Stream, key: &[u64]) -> u64 {
    key.iter().fold(mix(stream as u64), |h, &word| mix(h ^ mix(word)))
}

/// A number in [0, 1) with 24 random bits, exact in f32.
pub fn uniform(stream: Stream, key: &[u64]) -> f32 {
    (bits(stream, key) >> 40) as f32 * (1.0 / (1u64 << 24) as f32)
}

/// A number below `n` (n > 0), by the multiply-shift reduction.
pub fn below(stream: Stream, key: &[u64], n: u64) -> u64 {
    ((bits(stream, key) as u128 * n as u128) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_keys_differ() {
        let a = bits(Stream::Sample, &[1, 2]);
        assert_eq!(a, bits(Stream::Sample, &[1, 2]));
        assert_ne!(a, bits(Stream::Actor, &[1, 2]));
        assert_ne!(a, bits(Stream::Sample, &[2, 1]));
    }

    #[test]
    fn fresh_seeds_differ_and_are_whole_in_json() {
        let seeds: std::collections::HashSet<u64> = (0..1000).map(|_| fresh_seed()).collect();
        assert_eq!(seeds.len(), 1000);
        assert!(seeds.iter().all(|&seed| seed < 1 << 53));
    }

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        let mut bins = [0u32; 10];
        for i in 0..100_000 {
            let u = uniform(Stream::World, &[7, i]);
            assert!((0.0..1.0).contains(&u));
            bins[(u * 10.0) as usize] += 1;
        }
        // 10,000 expected a bin, standard deviation 95; six of them is a defect, not chance.
        assert!(bins.iter().all(|&n| (n as i64 - 10_000).abs() < 570), "{bins:?}");
    }
}
