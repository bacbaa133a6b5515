//! How fast this machine's threads can read memory: the ceiling of decoding.
//!
//! A buffer far larger than the caches is cut into one part a thread; each thread adds up the 64-bit words
//! of its part, all at the same time. The result is the buffer's size over the time of the fastest of
//! several passes: interference only ever slows a pass down. One thread may not reach what the memory can
//! give, so it is measured with as many threads as compute.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use crate::output::Failure;

/// Passes over the buffer, after one that touches it.
const PASSES: usize = 7;
/// The buffer's size where memory permits.
const BUFFER: u64 = 1 << 30;

/// A measured read bandwidth.
pub struct Bandwidth {
    pub bytes_per_s: f64,
    pub buffer_bytes: u64,
}

/// Measures it with `n_threads` threads, using at most a quarter of the free memory.
pub fn measure(n_threads: usize, free: Option<u64>) -> Result<Bandwidth, Failure> {
    let n_words = (free.map_or(BUFFER, |free| BUFFER.min(free / 4)) / 8) as usize;
    let mut buffer: Vec<u64> = Vec::new();
    let no_room = |_| Failure::Failed(format!("cannot allocate {} bytes to measure the read bandwidth", 8 * n_words));
    buffer.try_reserve_exact(n_words).map_err(no_room)?;
    // Untouched zero pages may all be one page of memory, so write something else.
    buffer.resize(n_words, 1);
    let part = n_words.div_ceil(n_threads.max(1)).max(1);
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let begun = Instant::now();
        let sum = std::thread::scope(|scope| {
            let parts: Vec<_> = buffer.chunks(part).map(|words| scope.spawn(move || sum(words))).collect();
            parts.into_iter().filter_map(|thread| thread.join().ok()).fold(0, u64::wrapping_add)
        });
        black_box(sum);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    let buffer_bytes = 8 * n_words as u64;
    Ok(Bandwidth { bytes_per_s: buffer_bytes as f64 / best, buffer_bytes })
}

/// Eight sums side by side, so that additions do not wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for line in words.chunks_exact(8) {
        for (sum, &word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(word);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Bytes of memory that can be had without swapping; None where the system does not say.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
