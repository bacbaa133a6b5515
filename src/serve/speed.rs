//! Tokens a second of late, in constant memory.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seconds that are looked back at, the one under way among them.
const WINDOW: u64 = 10;
/// Seconds that are kept: a second more than are looked at is enough, and a power of two divides fast.
const KEPT: usize = 16;

/// Tokens by the second that they came in.
pub(super) struct Speed {
    begun: Instant,
    /// of the latest second with this remainder: its number in the upper half, its tokens in the lower
    seconds: [AtomicU64; KEPT],
}

impl Default for Speed {
    fn default() -> Speed {
        Speed { begun: Instant::now(), seconds: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Speed {
    /// A token that came now.
    pub(super) fn add(&self, now: Instant) {
        self.add_at(now.saturating_duration_since(self.begun));
    }

    /// Tokens a second over the last nine whole seconds and the one under way, or since the beginning where that is less.
    pub(super) fn rate(&self) -> f64 {
        self.rate_at(self.begun.elapsed())
    }

    fn add_at(&self, age: Duration) {
        let second = age.as_secs() << 32;
        let counted = |n: u64| Some(if n & !0xffff_ffff == second { n + 1 } else { second + 1 });
        let slot = &self.seconds[age.as_secs() as usize % KEPT];
        // It always has an answer.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    fn rate_at(&self, age: Duration) -> f64 {
        let first = (age.as_secs() + 1).saturating_sub(WINDOW);
        let counts = self.seconds.iter().map(|slot| slot.load(Ordering::Relaxed));
        let n: u64 = counts.filter(|n| n >> 32 >= first).map(|n| n & 0xffff_ffff).sum();
        let time = age.saturating_sub(Duration::from_secs(first));
        if n == 0 { 0.0 } else { n as f64 / time.as_secs_f64().max(1e-9) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds_and_of_less_where_there_is_less() {
        let speed = Speed::default();
        let at = |ms| Duration::from_millis(ms);
        assert_eq!(speed.rate_at(at(0)), 0.0);
        // Forty a second for half a minute, then nothing.
        for ms in (0..30_000).step_by(25) {
            speed.add_at(at(ms));
            if ms == 475 {
                assert_eq!(speed.rate_at(at(500)), 40.0, "twenty in half a second");
            }
        }
        assert_eq!(speed.rate_at(at(30_000)), 40.0);
        assert_eq!(speed.rate_at(at(33_000)), 40.0 * 6.0 / 9.0, "the last three of nine seconds had none");
        assert_eq!(speed.rate_at(at(33_500)), 40.0 * 6.0 / 9.5);
        assert_eq!(speed.rate_at(at(39_000)), 0.0);
        speed.add_at(at(50_000));
        assert_eq!(speed.rate_at(at(50_500)), 1.0 / 9.5);
    }

    #[test]
    fn tokens_of_many_threads_all_count() {
        let speed = Speed::default();
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| (0..5000).for_each(|_| speed.add_at(Duration::from_secs(3))))));
        });
        assert_eq!(speed.rate_at(Duration::from_secs(4)), 5000.0);
    }
}
