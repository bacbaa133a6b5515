//! How long things took: a histogram that grows by one atomic addition a value, whatever the range, in constant memory.
//!
//! Its buckets are sixteen to a power of two of nanoseconds, from 1,024 ns on: each begins behind the end of the one before, and
//! its end is at most a sixteenth above its beginning. A percentile is the end of the bucket that the value lies in: never below
//! the true one, and at most a sixteenth (6.25 %) above it. Up to 1,024 ns all values are one bucket.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// Buckets to a power of two, as bits.
const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
/// The end of the first bucket as a power of two, ns.
const FIRST: u32 = 10;
const N_BUCKETS: usize = 1 + (64 - FIRST as usize) * SUB;

/// The bucket of so many nanoseconds.
fn bucket_of(ns: u64) -> usize {
    // The end belongs to the bucket.
    let before = ns.saturating_sub(1);
    let Some(power) = before.checked_ilog2().filter(|&power| power >= FIRST) else { return 0 };
    let sub = (before >> (power - SUB_BITS)) as usize % SUB;
    1 + (power - FIRST) as usize * SUB + sub
}

/// The largest value of a bucket, ns.
fn end_of(bucket: usize) -> u64 {
    let Some(at) = bucket.checked_sub(1) else { return 1 << FIRST };
    let end = (SUB + at % SUB + 1) as u128;
    u64::try_from(end << (FIRST - SUB_BITS + (at / SUB) as u32)).unwrap_or(u64::MAX)
}

/// A histogram that anybody may add to.
pub(super) struct Histogram {
    buckets: [AtomicU64; N_BUCKETS],
    /// ns
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub(super) fn add(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(ns, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Latency {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        Latency { buckets, sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)) }
    }
}

/// How long something took each time: a snapshot of a histogram. As JSON its count, its sum and percentiles in seconds, null
/// where nothing was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latency {
    buckets: Vec<u64>,
    sum: Duration,
}

impl Latency {
    /// Times that were measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The least time that so large a `share` of the measured ones (0 to 1) do not exceed, up to 6.25 % more than it was; up to
    /// 1,024 ns where it was less than that. None where nothing was measured.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((share * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut below = 0;
        let at = self.buckets.iter().position(|n| {
            below += n;
            below >= rank
        })?;
        Some(Duration::from_nanos(end_of(at)))
    }

    /// How many took at most 2^`power` ns, exactly; `power` from 10 to 63.
    pub(super) fn within(&self, power: u32) -> u64 {
        self.buckets.iter().take(1 + bucket_of(1 << power)).sum()
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all = serializer.serialize_struct("Latency", 5)?;
        all.serialize_field("count", &self.count())?;
        all.serialize_field("sum", &self.sum.as_secs_f64())?;
        for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            all.serialize_field(name, &self.percentile(share).map(|time| time.as_secs_f64()))?;
        }
        all.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, bits, uniform};

    #[test]
    fn buckets_follow_each_other_without_a_gap_and_are_at_most_a_sixteenth_wide() {
        assert_eq!((bucket_of(0), bucket_of(1), bucket_of(1024), bucket_of(1025)), (0, 0, 0, 1));
        assert_eq!((bucket_of(u64::MAX), end_of(N_BUCKETS - 1)), (N_BUCKETS - 1, u64::MAX));
        for bucket in 1..N_BUCKETS {
            let (before, end) = (end_of(bucket - 1), end_of(bucket));
            assert_eq!((bucket_of(before), bucket_of(before + 1), bucket_of(end)), (bucket - 1, bucket, bucket));
            assert!((end - before) as f64 <= before as f64 / 16.0, "{before} to {end}");
        }
    }

    #[test]
    fn percentiles_are_the_true_ones_within_the_width_of_a_bucket() {
        for n in [1u64, 2, 10, 99, 100, 1000] {
            for spread in [2.0, 20.0] {
                let histogram = Histogram::default();
                // From 2 µs to hours, and bits that are no power of anything.
                let time = |i| 2000.0 * f64::from(uniform(Stream::World, &[n, i]) * spread).exp2();
                let mut all: Vec<u64> = (0..n).map(|i| time(i) as u64 + bits(Stream::World, &[i]) % 7).collect();
                all.iter().for_each(|&ns| histogram.add(Duration::from_nanos(ns)));
                all.sort_unstable();
                let found = histogram.snapshot();
                assert_eq!((found.count(), found.sum().as_nanos() as u64), (n, all.iter().sum()));
                for share in [0.0, 0.01, 0.5, 0.9, 0.99, 1.0] {
                    let rank = ((share * n as f64).ceil() as usize).clamp(1, n as usize);
                    let (wanted, got) = (all[rank - 1], found.percentile(share).unwrap().as_nanos() as u64);
                    assert!(
                        got >= wanted && got as f64 <= wanted as f64 * 17.0 / 16.0,
                        "{share} of {n}: {got}, {wanted}"
                    );
                }
                for power in 10..40 {
                    let wanted = all.iter().filter(|&&ns| ns <= 1 << power).count() as u64;
                    assert_eq!(found.within(power), wanted, "2^{power}");
                }
            }
        }
    }

    #[test]
    fn where_nothing_was_measured_there_is_no_percentile() {
        for nothing in [Latency::default(), Histogram::default().snapshot()] {
            assert_eq!((nothing.count(), nothing.percentile(0.5), nothing.within(63)), (0, None, 0));
            let json = serde_json::json!(nothing);
            assert_eq!(json, serde_json::json!({"count": 0, "sum": 0.0, "p50": null, "p90": null, "p99": null}));
        }
    }

    #[test]
    fn what_many_threads_add_is_all_there() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let histogram = &histogram;
                scope.spawn(move || (0..5000).for_each(|i| histogram.add(Duration::from_micros(thread * 1000 + i))));
            }
        });
        let found = histogram.snapshot();
        let sum = (0..4).flat_map(|thread| (0..5000).map(move |i| thread * 1000 + i)).sum();
        assert_eq!((found.count(), found.sum()), (20_000, Duration::from_micros(sum)));
    }
}
