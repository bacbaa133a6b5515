//! How many rows of prompts a round may take: so many that those who wait for the round wait no longer than a slice.
//!
//! What a round takes by itself (reading the weights, and the rows of those who decode) is measured by rounds without a
//! prompt; while prompts come one after the other, one round in sixteen has a single row of them, to see it again. What a
//! row of a prompt adds is measured by the other rounds, the latest counting most, since it grows with the context that
//! stands before it. (Fitting both parts to rounds that are all alike fits noise, and takes a growing context for weights.)
//!
//! While somebody decodes, a prompt may add one slice to a round, or as much as the round takes by itself, where that is
//! longer: on a big model a slice is less than reading the weights, and the prompt would crawl while those who decode gained
//! little. While nobody decodes, only newcomers wait, and a round may be long enough to be efficient: five slices, or six
//! times what it takes by itself.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Rows of the first round, of which nothing is known.
const FIRST_ROWS: usize = 16;
/// Most that a round may have over those shortly before it: what was not measured is not trusted.
const GROWTH: f64 = 2.0;
/// What the most rows so far count after one round more.
const FADING: f64 = 0.9;
/// One round of so many shows what it takes by itself.
const SHOWN: u64 = 16;
/// How much the latest round counts against all before it.
const LATEST: f64 = 0.5;

/// What is known of one model's rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// seconds of a round without prompts
    by_itself: Option<f64>,
    /// seconds that a row of a prompt adds
    a_row: Option<f64>,
    /// most rows of prompts in the latest rounds, fading
    most: f64,
    /// rounds learnt from
    rounds: u64,
}

impl Pace {
    /// Learns from a round with so many rows of prompts. One among those who decode is hardly seen.
    pub(super) fn learn(&mut self, rows: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        self.rounds += 1;
        if rows <= 1 {
            self.by_itself = Some(moved(self.by_itself, seconds, 2.0));
            return;
        }
        let added = (seconds - self.by_itself.unwrap_or(0.0)).max(seconds / 8.0);
        self.a_row = Some(moved(self.a_row, added / rows as f64, 4.0));
        self.most = (rows as f64).max(self.most * FADING);
    }

    /// What the next round takes by itself at least, where that was measured.
    pub(super) fn least(&self) -> Option<Duration> {
        self.by_itself.map(Duration::from_secs_f64)
    }

    /// Rows of prompts with which the next round ends within a time, as far as that was measured; at least one.
    pub(super) fn rows_within(&self, time: Duration) -> usize {
        let Some(a_row) = self.a_row else { return FIRST_ROWS };
        let seconds = time.as_secs_f64() - self.by_itself.unwrap_or(0.0);
        self.trusted((seconds / a_row) as usize)
    }

    /// As many rows as were asked for, within those that say something and those that were measured.
    fn trusted(&self, rows: usize) -> usize {
        // One row would count as a round without prompts. A clock that stands gives as many rows as growth allows.
        rows.clamp(2, FIRST_ROWS.max((GROWTH * self.most) as usize))
    }

    /// Rows of prompts that the next round may take, at least one.
    pub(super) fn rows(&self, slice: Duration, somebody_decodes: bool) -> usize {
        let Some(a_row) = self.a_row else { return FIRST_ROWS };
        let Some(by_itself) = self.by_itself.filter(|_| !(self.rounds + 1).is_multiple_of(SHOWN)) else { return 1 };
        let slice = slice.as_secs_f64();
        let seconds = if somebody_decodes { slice.max(by_itself) } else { (5.0 * slice).max(6.0 * by_itself) };
        self.trusted((seconds / a_row) as usize)
    }
}

/// What is known after one more measurement, of which no more counts than `most` times what was known: the machine may have
/// been elsewhere.
fn moved(known: Option<f64>, new: f64, most: f64) -> f64 {
    // Of what was nothing, no multiple says anything.
    known.filter(|&known| known > 0.0).map_or(new, |known| known + LATEST * (new.min(most * known) - known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, uniform};

    const SLICE: Duration = Duration::from_millis(20);

    fn ms(milliseconds: f64) -> Duration {
        Duration::from_secs_f64(milliseconds / 1e3)
    }

    /// Rounds of a machine that takes `fixed` and `a_row` milliseconds, each with as many rows of a prompt as it is told.
    fn run(fixed: f64, a_row: f64, decoding: bool, rounds: usize) -> Vec<usize> {
        let mut pace = Pace::default();
        let mut all = Vec::new();
        for _ in 0..rounds {
            let n = pace.rows(SLICE, decoding).min(512);
            pace.learn(n, ms(fixed + a_row * n as f64));
            all.push(n);
        }
        all
    }

    #[test]
    fn a_small_models_round_is_a_slice_long() {
        let rows = run(1.0, 0.1, true, 60);
        assert_eq!(rows[..5], [FIRST_ROWS, 1, 32, 64, 128]);
        assert!(rows.iter().all(|&n| n <= 202), "no round beyond a slice: {rows:?}");
        assert!(rows[15..].iter().all(|&n| n == 1 || (195..=202).contains(&n)), "{rows:?}");
        assert_eq!(
            rows[20..52].iter().filter(|&&n| n == 1).count(),
            2,
            "one round in sixteen shows what it takes by itself"
        );
    }

    #[test]
    fn a_big_models_prompt_doubles_a_round_at_most() {
        let rows = run(60.0, 6.0, true, 60);
        assert!(rows[15..].iter().all(|&n| n == 1 || (11..=12).contains(&n)), "{rows:?}");
    }

    #[test]
    fn a_prompt_alone_gets_rounds_that_are_worth_the_reading() {
        let rows = run(60.0, 6.0, false, 60);
        assert!(rows[15..].iter().all(|&n| n == 1 || (62..=68).contains(&n)), "{rows:?}");
        let rows = run(0.5, 0.01, false, 60);
        assert!(rows[15..].iter().all(|&n| n == 1 || n == 512), "all that a round may hold");
    }

    #[test]
    fn the_rows_follow_a_machine_that_slows_down() {
        let mut pace = Pace::default();
        for round in 0..80 {
            let n = pace.rows(SLICE, true);
            let a_row = if round < 60 { 0.1 } else { 0.4 };
            // Rounds without a prompt lie between, as they do while others decode.
            pace.learn(0, ms(1.0 + a_row * 4.0));
            pace.learn(n, ms(1.0 + a_row * (4 + n) as f64));
        }
        let n = pace.rows(SLICE, true);
        assert!((49..=51).contains(&n), "{n}");
    }

    #[test]
    fn neither_noise_nor_a_growing_context_makes_a_round_long_or_a_prompt_crawl() {
        // Two prompts of 20,000 tokens beside four who decode: a row costs more the more stand before it, every round is up to
        // a tenth off, and in one of fifty the machine is elsewhere for as long again.
        for seed in 0..8 {
            let (mut pace, mut round, mut longest, mut all) = (Pace::default(), 0, 0.0f64, 0.0);
            pace.learn(0, ms(2.0));
            for _ in 0..2 {
                let mut done = 0;
                while done < 20_000 {
                    round += 1;
                    let n = pace.rows(SLICE, true).min(508);
                    let expected = 2.0 + (0.1 + 2e-4 * done as f64) * n as f64;
                    let noise = f64::from(uniform(Stream::World, &[seed, round]));
                    let elsewhere = if uniform(Stream::World, &[seed, round, 1]) < 0.02 { 2.0 } else { 1.0 };
                    pace.learn(n, ms(expected * (0.9 + 0.2 * noise) * elsewhere));
                    (done, longest, all) = (done + n, longest.max(expected), all + expected);
                }
            }
            assert!(longest < 45.0, "a round was expected to take {longest} ms");
            let rows_alone = 2.0 * (0..20_000).map(|at| 0.1 + 2e-4 * at as f64).sum::<f64>();
            assert!(all < 1.25 * rows_alone, "the prompts took {all} ms, where their rows take {rows_alone}");
        }
    }

    #[test]
    fn rows_within_a_time_end_within_it_and_a_round_that_takes_longer_by_itself_has_the_fewest() {
        let mut pace = Pace::default();
        assert_eq!((pace.rows_within(ms(1.0)), pace.least()), (FIRST_ROWS, None));
        let took = |n: usize| 3.0 + 0.1 * n as f64;
        let mut rows = Vec::new();
        for _ in 0..40 {
            pace.learn(0, ms(took(0)));
            let n = pace.rows_within(ms(10.0));
            pace.learn(n, ms(took(n)));
            rows.push(n);
        }
        assert!(rows.iter().all(|&n| took(n) <= 10.0), "{rows:?}");
        assert!(rows[15..].iter().all(|&n| (69..=70).contains(&n)), "{rows:?}");
        assert_eq!(pace.least().map(|least| least.as_micros()), Some(3000));
        assert_eq!((pace.rows_within(ms(2.0)), pace.rows_within(Duration::ZERO)), (2, 2));
        assert!(pace.rows_within(Duration::MAX) <= 140, "what was not measured is not trusted");
    }

    #[test]
    fn clocks_that_stand_or_leap_give_at_least_a_row() {
        let mut pace = Pace::default();
        pace.learn(16, Duration::ZERO);
        assert!(pace.rows(SLICE, true) >= 1);
        pace.learn(0, Duration::ZERO);
        assert_eq!(pace.rows(SLICE, true), 32);
        pace.learn(16, Duration::from_secs(1 << 40));
        pace.learn(0, Duration::from_secs(1 << 40));
        assert!(pace.rows(SLICE, true) >= 1);
        pace.learn(1, Duration::MAX);
        assert!(pace.rows(SLICE, true) >= 1);
    }
}
