//! How many rows of prompts a round may take: so many that those who wait for the round wait no longer than a slice.
//!
//! A round takes about `fixed + n * a_row` seconds: reading the weights once, and computing n rows. Both are learnt from the
//! rounds themselves by least squares in which older rounds count less, so that they follow the machine's load and the
//! growing context. Rounds that are all alike would say nothing of the two parts, and then noise would: so every fourth
//! takes half as many rows, one that took unexpectedly long counts as twice what was expected, and a round has at most
//! twice the rows of those shortly before it. While somebody decodes, a prompt may add one slice to a round, or as much as the round takes without
//! it, where that is longer: on a big model a slice is less than reading the weights, and the prompt would crawl while
//! those who decode gained little. While nobody decodes, only newcomers wait, and a round may be long enough to be
//! efficient: five slices, or four times the fixed part.
#![forbid(unsafe_code)]

use std::time::Duration;

/// What a round counts after one more.
const FORGETTING: f64 = 0.95;
/// Rows of the first round, of which nothing is known.
const FIRST_ROWS: usize = 16;
/// Most that a round may have over those shortly before it: what was not measured is not trusted.
const GROWTH: f64 = 2.0;
/// What the most rows so far count after one round more.
const FADING: f64 = 0.9;
/// Most that a round counts of what was expected: the machine may have been elsewhere.
const SURPRISE: f64 = 2.0;
/// One round of so many has half the rows, so that the two parts stay apart.
const HALVED: u64 = 4;

/// What is known of one model's rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// sums over the rounds, each with its weight: of 1, n, n * n, seconds, n * seconds
    sums: [f64; 5],
    /// most rows of the latest rounds, fading
    most: f64,
    /// rounds learnt from
    rounds: u64,
}

impl Pace {
    /// Learns from a round of `n` rows.
    pub(super) fn learn(&mut self, n: usize, took: Duration) {
        let (rows, mut seconds) = (n as f64, took.as_secs_f64());
        let (fixed, a_row) = self.costs();
        let expected = fixed + a_row * rows;
        if self.rounds >= HALVED && expected > 0.0 {
            seconds = seconds.min(SURPRISE * expected);
        }
        for (sum, new) in self.sums.iter_mut().zip([1.0, rows, rows * rows, seconds, rows * seconds]) {
            *sum = *sum * FORGETTING + new;
        }
        self.most = rows.max(self.most * FADING);
        self.rounds += 1;
    }

    /// Seconds that a round takes however few its rows, and seconds that each row adds.
    fn costs(&self) -> (f64, f64) {
        let [rounds, n, nn, t, nt] = self.sums;
        let spread = rounds * nn - n * n;
        // All rounds alike tell nothing of the two parts: all of it is laid on the rows, which makes rounds short.
        let all_on_rows = if n > 0.0 { t / n } else { 0.0 };
        if spread <= 1e-6 * rounds * nn {
            return (0.0, all_on_rows);
        }
        let a_row = (rounds * nt - n * t) / spread;
        // Neither part is less than nothing, and rows are never free.
        let a_row = a_row.clamp(all_on_rows / 16.0, all_on_rows);
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
        let rows = ((seconds / a_row) as usize).min(FIRST_ROWS.max((GROWTH * self.most) as usize));
        let halved = self.rounds % HALVED == HALVED - 1;
        (if halved { rows / 2 } else { rows }).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, uniform};

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

    /// Rows of the last rounds, without the halved ones.
    fn last(rows: &[usize]) -> Vec<usize> {
        let whole = |i: &usize| i % HALVED as usize != HALVED as usize - 1;
        (rows.len() - 12..rows.len()).filter(whole).map(|i| rows[i]).collect()
    }

    #[test]
    fn a_small_models_round_is_a_slice_long() {
        let rows = run(1.0, 0.1, true, 40);
        assert_eq!(rows[..3], [FIRST_ROWS, 2 * FIRST_ROWS, 4 * FIRST_ROWS]);
        assert!(rows.iter().all(|&n| n <= 200), "no round beyond a slice: {rows:?}");
        assert!(last(&rows).iter().all(|n| (190..=200).contains(n)), "{rows:?}");
    }

    #[test]
    fn a_big_models_prompt_doubles_a_round_at_most() {
        let rows = run(60.0, 6.0, true, 40);
        assert!(last(&rows).iter().all(|n| (9..=10).contains(n)), "{rows:?}");
    }

    #[test]
    fn a_prompt_alone_gets_rounds_that_are_worth_the_reading() {
        let rows = run(60.0, 6.0, false, 40);
        assert!(last(&rows).iter().all(|n| (39..=40).contains(n)), "{rows:?}");
        let rows = run(0.5, 0.01, false, 41);
        assert_eq!(rows[40], 512, "all that a round may hold");
    }

    #[test]
    fn the_rows_follow_a_machine_that_slows_down() {
        let mut pace = Pace::default();
        for round in 0..122 {
            let n = pace.rows(SLICE, true);
            let a_row = if round < 60 { 0.1 } else { 0.4 };
            // Rounds without a prompt lie between, as they do while others decode.
            pace.learn(4, Duration::from_secs_f64((1.0 + a_row * 4.0) / 1e3));
            pace.learn(n, Duration::from_secs_f64((1.0 + a_row * n as f64) / 1e3));
        }
        assert!((45..=55).contains(&pace.rows(SLICE, true)), "{}", pace.rows(SLICE, true));
    }

    #[test]
    fn noise_makes_no_round_long_and_no_prompt_crawl() {
        // A prompt of 20,000 tokens beside four who decode: a row costs more the more stand before it, every round is up to a
        // tenth off, and in one of fifty the machine is elsewhere for as long again.
        for seed in 0..8 {
            let (mut pace, mut done, mut round, mut longest, mut all) = (Pace::default(), 0, 0, 0.0f64, 0.0);
            while done < 20_000 {
                round += 1;
                let n = pace.rows(SLICE, true).min(508);
                let expected = 1.2 + (0.2 + 2e-4 * done as f64) * (n + 4) as f64;
                let noise = f64::from(uniform(Stream::World, &[seed, round]));
                let elsewhere = if uniform(Stream::World, &[seed, round, 1]) < 0.02 { 2.0 } else { 1.0 };
                pace.learn(n + 4, Duration::from_secs_f64(expected * (0.9 + 0.2 * noise) * elsewhere / 1e3));
                (done, longest, all) = (done + n, longest.max(expected), all + expected);
            }
            // At the end four rows of those who decode take 17 ms beside the slice of 20 ms.
            assert!(longest < 80.0, "a round was expected to take {longest} ms");
            let ideal = (0..20_000).map(|at| 0.2 + 2e-4 * at as f64).sum::<f64>();
            assert!(all < 2.2 * ideal, "the prompt took {all} ms, where its rows take {ideal}");
        }
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
