//! What rewards come to: one number for each turn, which a policy gradient adds to its advantage.
//!
//! A turn's reward r is the episode's score, its success (1 or 0), the turn's own, or the return from the turn on, the sum
//! over later turns v >= u of discount^(v - u) r_v; rewards that the environment did not give are 0. Compared with its group
//! (the episodes of one `group`, or of one task where none is named, that have a turn learnt by its reward, whatever a filter
//! makes of them, stale ones too) it is r - mean, or (r - mean) / (std + eps) as in GRPO (arXiv 2402.03300). Score and success
//! give an episode one number; of rewards by turn the mean and deviation are over all turns of the group, those that a fork
//! shares with its parent once. The deviation is the sample's (n - 1). One episode alone has nothing to be compared with: its
//! reward comes to 0, and the report counts it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Serialize;

use super::advantage::{Baseline, Reward, RewardOf};
use super::trajectory::Trajectory;
use crate::backend::ops::Loss;

/// The groups of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GroupReport {
    /// Groups that are compared.
    pub groups: usize,
    /// Those of one episode, whose reward comes to 0.
    pub alone: usize,
    /// Those with more or fewer episodes than `reward.group` says, one alone among them.
    pub uneven: usize,
    /// Those in which all got the same, so that their rewards say nothing.
    pub level: usize,
}

/// Rewards of a batch.
#[derive(Default)]
pub struct Rewards {
    /// By trajectory and turn.
    pub of_turns: Vec<Vec<f64>>,
    /// What was compared with what.
    pub report: GroupReport,
}

/// What the turns of a batch come to. Evaluations have no part in it.
pub fn rewards(trajectories: &[&Trajectory], settings: &Reward) -> Rewards {
    let mut of_turns: Vec<Vec<f64>> = trajectories.iter().map(|t| given(t, settings)).collect();
    let mut report = GroupReport::default();
    if settings.baseline != Baseline::None {
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, t) in trajectories.iter().enumerate().filter(|(_, t)| !t.heading.evaluation && is_rewarded(t)) {
            groups.entry(t.heading.group()).or_default().push(i);
        }
        for members in groups.values() {
            let by_turn = matches!(settings.of, RewardOf::Turn | RewardOf::Return);
            let values = |i: &usize| match by_turn {
                true => of_turns[*i][own_from(trajectories[*i])..].to_vec(),
                false => of_turns[*i][..1].to_vec(),
            };
            let all: Vec<f64> = members.iter().flat_map(values).collect();
            let n = all.len() as f64;
            let mean = all.iter().sum::<f64>() / n;
            let squares: f64 = all.iter().map(|r| (r - mean) * (r - mean)).sum();
            let is_level = all.iter().all(|r| *r == all[0]);
            let scale = match settings.baseline {
                Baseline::Group if n > 1.0 => (squares / (n - 1.0)).sqrt() + settings.eps,
                _ => 1.0,
            };
            report.groups += 1;
            report.alone += usize::from(members.len() == 1);
            report.uneven += usize::from(members.len() != settings.group as usize);
            report.level += usize::from(members.len() > 1 && is_level);
            for &i in members {
                // A mean of equal numbers may lie a bit beside them.
                let against = |r: &mut f64| *r = if members.len() == 1 || is_level { 0.0 } else { (*r - mean) / scale };
                of_turns[i].iter_mut().for_each(against);
            }
        }
    }
    Rewards { of_turns, report }
}

/// Whether a turn of its own is learnt by its reward: a fork in which the teacher labels a turn is no rollout of the group.
fn is_rewarded(t: &Trajectory) -> bool {
    t.turns().iter().any(|turn| turn.train && matches!(turn.loss.kind, Some(Loss::PolicyGradient(_))))
}

/// The first turn that counts in a group's mean: what a fork shares with its parent counts there, unless both learn it.
fn own_from(t: &Trajectory) -> usize {
    let shared = t.shared_turns();
    if t.turns()[..shared].iter().any(|turn| turn.train) { 0 } else { shared }
}

/// What the environment gave for each turn.
pub(super) fn given(trajectory: &Trajectory, settings: &Reward) -> Vec<f64> {
    let n = trajectory.turns().len();
    let outcome = trajectory.outcome();
    match settings.of {
        RewardOf::Score => vec![outcome.map_or(0.0, |o| o.score); n],
        RewardOf::Success => vec![f64::from(u8::from(outcome.and_then(|o| o.success) == Some(true))); n],
        RewardOf::Turn => trajectory.turns().iter().map(|t| t.reward.unwrap_or(0.0)).collect(),
        RewardOf::Return => {
            let mut returns = vec![0.0; n];
            let mut later = 0.0;
            for (turn, to) in trajectory.turns().iter().zip(&mut returns).rev() {
                later = turn.reward.unwrap_or(0.0) + settings.discount * later;
                *to = later;
            }
            returns
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::actor::Actor;
    use super::super::config::Config;
    use super::super::policy::{Decision, Reason};
    use super::super::trajectory::{Action, Heading, Outcome};
    use super::*;
    use crate::text::source::Source;

    /// An episode of a task with these rewards, a score and a verdict.
    fn episode(task: &str, group: &str, turns: &[Option<f64>], score: f64, success: Option<bool>) -> Trajectory {
        let (task, group) = (task.to_string(), group.to_string());
        let mut t = Trajectory::new(Heading {
            episode: 0,
            step: 0,
            task,
            group,
            seed: 0,
            revision: 0,
            evaluation: false,
            ..Heading::default()
        });
        for &reward in turns {
            t.add_context(&[1], Source::Host).unwrap();
            let (actor, ids, logprobs) = (Actor::Student, &[2][..], &[-1.0][..]);
            let action =
                Action { actor, ids, logprobs, sampled_logprobs: logprobs, truncated: false, from_text: false };
            let reason = Reason::Method;
            let decision = Decision { actor: Some(actor), reason, train_on_this: true, horizon: 1, probability: 0.0 };
            t.add_turn(&action, &decision, Config::preset("grpo").unwrap().loss_of(actor)).unwrap();
            if let Some(reward) = reward {
                t.reward(reward).unwrap();
            }
        }
        t.end(Outcome { score, success }).unwrap();
        t
    }

    fn of(batch: &[Trajectory], of: RewardOf, baseline: Baseline) -> Rewards {
        let settings = Reward { of, baseline, group: 2, eps: 1e-6, discount: 0.5 };
        rewards(&batch.iter().collect::<Vec<_>>(), &settings)
    }

    #[test]
    fn what_a_turn_gets_is_the_score_the_verdict_its_own_or_the_return() {
        let batch =
            [episode("a", "", &[Some(1.0), None, Some(4.0)], 7.0, Some(true)), episode("a", "", &[None], 2.0, None)];
        let plain = |kind| of(&batch, kind, Baseline::None).of_turns;
        assert_eq!(plain(RewardOf::Score), [vec![7.0; 3], vec![2.0]]);
        assert_eq!(plain(RewardOf::Success), [vec![1.0; 3], vec![0.0]]);
        assert_eq!(plain(RewardOf::Turn), [vec![1.0, 0.0, 4.0], vec![0.0]]);
        // 1 + 0.5 (0 + 0.5 * 4), 0 + 0.5 * 4, 4.
        assert_eq!(plain(RewardOf::Return), [vec![2.0, 2.0, 4.0], vec![0.0]]);
    }

    #[test]
    fn a_group_is_compared_with_its_mean_and_its_samples_deviation() {
        let one = [Some(0.0)];
        let batch = [
            episode("a", "", &one, 1.0, None),
            episode("b", "", &one, 10.0, None),
            episode("a", "", &one, 4.0, None),
            // The named group wins over the task.
            episode("b", "a", &one, 7.0, None),
        ];
        let told = of(&batch, RewardOf::Score, Baseline::GroupMean);
        assert_eq!(told.of_turns, [[-3.0], [0.0], [0.0], [3.0]]);
        assert_eq!((told.report.groups, told.report.alone, told.report.uneven, told.report.level), (2, 1, 2, 0));
        let told = of(&batch, RewardOf::Score, Baseline::Group);
        assert!((told.of_turns[0][0] + 3.0 / (3.0 + 1e-6)).abs() < 1e-12, "{:?}", told.of_turns);
        assert_eq!((told.of_turns[1][0], told.of_turns[2][0]), (0.0, 0.0));
    }

    #[test]
    fn a_group_in_which_all_got_the_same_says_nothing_to_the_bit() {
        let batch = [0.1, 0.1, 0.1].map(|score| episode("a", "", &[None, None], score, None));
        let told = of(&batch, RewardOf::Score, Baseline::Group);
        assert!(told.of_turns.iter().flatten().all(|r| *r == 0.0));
        assert_eq!((told.report.groups, told.report.alone, told.report.level), (1, 0, 1));
    }

    #[test]
    fn rewards_by_turn_are_compared_over_all_turns_of_the_group() {
        let batch = [episode("a", "", &[Some(1.0), Some(2.0)], 0.0, None), episode("a", "", &[Some(6.0)], 0.0, None)];
        let told = of(&batch, RewardOf::Turn, Baseline::GroupMean);
        assert_eq!(told.of_turns, [vec![-2.0, -1.0], vec![3.0]]);
    }

    #[test]
    fn what_a_fork_shares_with_its_parent_counts_once() {
        let parent = episode("a", "", &[Some(10.0), Some(0.0)], 0.0, None);
        let fork = |own: f64| {
            let heading = Heading { forked_from: Some((0, 1)), ..parent.heading.clone() };
            let mut t = parent.fork(heading, 1, false);
            let action = Action {
                actor: Actor::Student,
                ids: &[2],
                logprobs: &[-1.0],
                sampled_logprobs: &[-1.0],
                truncated: false,
                from_text: false,
            };
            let turn = &parent.turns()[1];
            t.add_turn(&action, &turn.decision, turn.loss).unwrap();
            t.reward(own).unwrap();
            t
        };
        let batch = [parent.clone(), fork(1.0), fork(2.0), fork(3.0)];
        let told = of(&batch, RewardOf::Turn, Baseline::GroupMean);
        // The mean of 10, 0, 1, 2 and 3.
        assert_eq!(told.of_turns[1], [10.0 - 3.2, 1.0 - 3.2]);
    }

    #[test]
    fn evaluations_and_episodes_without_a_rewarded_turn_are_in_no_group() {
        let mut evaluation = episode("a", "", &[None], 100.0, None);
        evaluation.heading.evaluation = true;
        // A label's fork: its own turn is the teacher's, and what it shares is not learnt.
        let label = episode("a", "", &[None], 0.0, None).fork(evaluation.heading.clone(), 1, false);
        let mut label = label;
        label.heading.evaluation = false;
        let batch = [episode("a", "", &[None], 1.0, None), evaluation, episode("a", "", &[], 50.0, None), label];
        let told = of(&batch, RewardOf::Score, Baseline::GroupMean);
        assert_eq!((told.report.groups, told.report.alone), (1, 1));
    }
}
