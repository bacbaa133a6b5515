//! How uncertain proposals were: the window by whose quantile the next one is judged.
//!
//! A proposal is replaced where its uncertainty lies above the (1 - rate) quantile of the last `window` proposals before it, by
//! nearest rank, once there are `minimum` of them: so the share of turns that are replaced follows the rate, whatever the scale of
//! the uncertainty.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::knobs::Proposal;

/// The uncertainties of the last proposals, in the order in which they were judged.
#[derive(Clone, Debug, Default)]
pub struct Uncertainties(VecDeque<f64>);

impl Uncertainties {
    /// Those of a checkpoint.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Uncertainties {
        Uncertainties(values.into_iter().collect())
    }

    /// All of them, oldest first.
    pub fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().copied()
    }

    /// Whether a proposal is to be replaced.
    pub fn is_replaced(&self, settings: &Proposal, rate: f64, uncertainty: f64) -> bool {
        let n = self.0.len();
        n >= settings.minimum as usize && n > 0 && rate > 0.0 && {
            let mut sorted: Vec<f64> = self.0.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            let rank = ((1.0 - rate) * n as f64).ceil() as usize;
            // A rate of 1 replaces all.
            rank == 0 || uncertainty > sorted[rank.min(n) - 1]
        }
    }

    /// Puts a proposal that was judged into the window.
    pub fn push(&mut self, settings: &Proposal, uncertainty: f64) {
        self.0.push_back(uncertainty);
        while self.0.len() > settings.window as usize {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::knobs::By;
    use super::super::schedule::Schedule;
    use super::*;

    fn settings(window: u32, minimum: u32) -> Proposal {
        Proposal { by: By::Student, rate: Schedule::fixed(0.5), window, minimum }
    }

    /// Judges one, which stands in the window from then on.
    fn judge(u: &mut Uncertainties, settings: &Proposal, rate: f64, uncertainty: f64) -> bool {
        let is_replaced = u.is_replaced(settings, rate, uncertainty);
        u.push(settings, uncertainty);
        is_replaced
    }

    #[test]
    fn what_lies_above_the_quantile_of_those_before_is_replaced() {
        let s = settings(4, 4);
        let mut u = Uncertainties::default();
        // Too few to be judged by.
        assert!([1.0, 2.0, 3.0, 4.0].map(|x| judge(&mut u, &s, 0.25, x)).iter().all(|replaced| !replaced));
        // Of 1, 2, 3, 4 the three quarters' rank is 3.
        assert!(!judge(&mut u, &s, 0.25, 3.0) && u.values().collect::<Vec<_>>() == [2.0, 3.0, 4.0, 3.0]);
        // Of 2, 3, 3, 4 it is 3 again.
        assert!(judge(&mut u, &s, 0.25, 3.5) && u.values().collect::<Vec<_>>() == [3.0, 4.0, 3.0, 3.5]);
        // A rate of nothing replaces nothing, one of everything all.
        assert!(!judge(&mut u, &s, 0.0, 100.0) && judge(&mut u, &s, 1.0, 0.0));
    }

    #[test]
    fn the_share_that_is_replaced_is_the_rate() {
        let s = settings(1000, 300);
        let mut u = Uncertainties::default();
        let draw = |i: u64| f64::from(crate::random::uniform(crate::random::Stream::World, &[i]));
        let replaced = (0..10_300).filter(|&i| judge(&mut u, &s, 0.3, draw(i) * draw(i + 1_000_000))).count();
        // One standard deviation of the share is 0.0046, and the window's own as much again.
        assert!((replaced as f64 / 10_000.0 - 0.3).abs() < 0.03, "{replaced}");
    }
}
