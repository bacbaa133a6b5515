//! How many rows of prompts a round may take: so many that those who wait for the round wait no longer than a slice.
//!
//! A round takes about `fixed + n * a_row` seconds: reading the weights once, and computing n rows. Both are learnt from the
//! rounds themselves by least squares in which older rounds count less, so that they follow the machine's load and the
//! growing context. While somebody decodes, a prompt may add one slice to a round, or as much as the round takes without
//! it, where that is longer: on a big model a slice is less than reading the weights, and the prompt would crawl while
//! those who decode gained little. While nobody decodes, only newcomers wait, and a round may be long enough to be
//! efficient: five slices, or four times the fixed part.
#![forbid(unsafe_code)]

use std::time::Duration;

/// What a round counts after one more.
const FORGETTING: f64 = 0.9;
/// Rows of the first round, of which nothing is known.
const FIRST_ROWS: usize = 16;
/// Most that the rows may grow by from one round to the next: what was not measured is not trusted.
const GROWTH: usize = 4;

/// What is known of one model's rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// sums over the rounds, each with its weight: of 1, n, n * n, seconds, n * seconds
    sums: [f64; 5],
    /// most rows of a round so far
    most: usize,
}

impl Pace {
    /// Learns from a round of `n` rows.
    pub(super) fn learn(&mut self, n: usize, took: Duration) {
        let (rows, seconds) = (n as f64, took.as_secs_f64());
        for (sum, new) in self.sums.iter_mut().zip([1.0, rows, rows * rows, seconds, rows * seconds]) {
            *sum = *sum * FORGETTING + new;
        }
        self.most = self.most.max(n);
    }

    /// Seconds that a round takes however few its rows, and seconds that each row adds.
    fn costs(&self) -> (f64, f64) {
        let [rounds, n, nn, t, nt] = self.sums;
        let spread = rounds * nn - n * n;
        // All rounds alike tell nothing of the two parts: all of it is laid on the rows, which makes rounds short.
        let all_on_rows = if n > 0.0 { t / n } else { 0.0 };
        if spread <= 1e-9 * rounds * nn {
            return (0.0, all_on_rows);
        }
        let a_row = (rounds * nt - n * t) / spread;
        if !(a_row > 0.0 && a_row <= all_on_rows) {
            return (0.0, all_on_rows);
        }
        ((t - a_row * n) / rounds, a_row)
    }

    /// Rows of prompts that the next round may take, at least one.
    pub(super) fn rows(&self, slice: Duration, somebody_decodes: bool) -> usize {
        let (fixed, a_row) = self.costs();
        if a_row <= 0.0 {
            return FIRST_ROWS;
        }
        let slice = slice.as_secs_f64();
        let seconds = if somebody_decodes { slice.max(fixed) } else { (5.0 * slice).max(4.0 * fixed) };
        ((seconds / a_row) as usize).min(self.most.saturating_mul(GROWTH)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(20);

    /// Rounds of a machine that takes `fixed` and `a_row` milliseconds, each with as many rows as it is told.
    fn run(fixed: f64, a_row: f64, decoding: bool, rounds: usize) -> Vec<usize> {
        let mut pace = Pace::default();
        let mut all = Vec::new();
        for _ in 0..rounds {
            let n = pace.rows(SLICE, decoding).min(512);
            pace.learn(n, Duration::from_secs_f64((fixed + a_row * n as f64) / 1e3));
            all.push(n);
        }
        all
    }

    #[test]
    fn a_small_models_round_is_a_slice_long() {
        let rows = run(1.0, 0.1, true, 30);
        assert_eq!(rows[0], FIRST_ROWS);
        assert!(rows[1..].iter().all(|&n| n <= 200), "no round beyond a slice: {rows:?}");
        assert!(rows[10..].iter().all(|&n| (190..=200).contains(&n)), "{rows:?}");
    }

    #[test]
    fn a_big_models_prompt_doubles_a_round_at_most() {
        let rows = run(60.0, 6.0, true, 30);
        assert!(rows[10..].iter().all(|&n| (9..=10).contains(&n)), "{rows:?}");
    }

    #[test]
    fn a_prompt_alone_gets_rounds_that_are_worth_the_reading() {
        let rows = run(60.0, 6.0, false, 30);
        assert!(rows[10..].iter().all(|&n| (39..=40).contains(&n)), "{rows:?}");
        let rows = run(0.5, 0.01, false, 30);
        assert_eq!(rows[29], 512, "all that a round may hold");
    }

    #[test]
    fn the_rows_follow_a_machine_that_slows_down() {
        let mut pace = Pace::default();
        for round in 0..120 {
            let n = pace.rows(SLICE, true);
            let a_row = if round < 60 { 0.1 } else { 0.4 };
            // Rounds without a prompt lie between, as they do while others decode.
            pace.learn(4, Duration::from_secs_f64((1.0 + a_row * 4.0) / 1e3));
            pace.learn(n, Duration::from_secs_f64((1.0 + a_row * n as f64) / 1e3));
        }
        assert!((45..=50).contains(&pace.rows(SLICE, true)), "{}", pace.rows(SLICE, true));
    }

    #[test]
    fn clocks_that_stand_or_leap_give_at_least_a_row() {
        let mut pace = Pace::default();
        pace.learn(16, Duration::ZERO);
        assert!(pace.rows(SLICE, true) >= 1);
        pace.learn(16, Duration::from_secs(1 << 40));
        assert_eq!(pace.rows(SLICE, true), 1);
        pace.learn(1, Duration::from_secs(3));
        assert!(pace.rows(SLICE, true) >= 1);
    }
}
