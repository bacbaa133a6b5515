//! What a report tells beside losses: by turn and over the batch, how sure student and teacher are, how far they lie apart,
//! and what the episodes were like.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::actor::Actor;
use super::advantage::{Reward, RewardOf};
use super::batch::TokenLoss;
use super::rewards::given;
use super::run_id::RunId;
use super::trajectory::{Trajectory, Turn};
use crate::backend::ops::{Loss, Worth};

/// Tasks that are told by name.
const MOST_TASKS: usize = 64;

/// Means in nats over trained tokens; None without one of which it is known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Quantities {
    /// By turn index, as far as an episode of the batch goes.
    pub turns: Vec<TurnQuantities>,
    /// Mean entropy of the student.
    pub entropy: Option<f64>,
    /// The teacher's: over the whole vocabulary, so none of one that gives its most likely ids alone.
    pub teacher_entropy: Option<f64>,
    /// Mean |ln p - ln q| of what stands there, p the student's now and q the teacher's.
    pub log_ratio: Option<f64>,
    /// The student's mean probability of the teacher's most likely ids, where it gave such.
    pub teacher_mass: Option<f64>,
    /// Mean tokens of a turn of the student's.
    pub response_length: Option<f64>,
    /// Share of turns that say what the turn before in their episode said.
    pub repetition: Option<f64>,
    /// Share of turns, those that a fork shares with its parent aside, that the host did not carry out.
    pub executed_otherwise: Option<f64>,
    /// Revisions that the episodes lag.
    pub lag: Option<Lag>,
    /// What the environment gave, as `reward.of` says; None where no turn is learnt by it.
    pub rewards: Option<RewardQuantities>,
    /// Trained tokens of whose advantage the bound of `advantage.shape` holds the teacher's part.
    pub clipped_advantages: usize,
    /// (successes, episodes) of each task; beyond the first 64 by name all together under "".
    pub by_task: BTreeMap<String, (usize, usize)>,
}

/// The turns of one index.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TurnQuantities {
    /// Trained tokens.
    pub tokens: usize,
    /// Their share of the weighted loss; None where that is 0.
    pub loss_share: Option<f64>,
    /// Mean |ln p - ln q|.
    pub log_ratio: Option<f64>,
    /// Mean -ln q.
    pub teacher_nll: Option<f64>,
    /// Mean entropy of the teacher.
    pub teacher_entropy: Option<f64>,
    /// Of the student.
    pub entropy: Option<f64>,
    /// Episodes that have such a turn.
    pub episodes: usize,
    /// Of these turns, those that the student took; one that forks share counts once.
    pub student: usize,
    /// That the teacher took.
    pub teacher: usize,
    /// That were replayed.
    pub replay: usize,
}

/// How many published revisions lie between an episode and its update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lag {
    /// The mean over the episodes.
    pub mean: f64,
    /// The largest.
    pub largest: u64,
}

/// Rewards of the batch's turns: one an episode where each of its turns has the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RewardQuantities {
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub least: f64,
    /// The largest.
    pub largest: f64,
    /// Trained tokens that have a reward's part in their advantage, and whose gradient a bound of `ratio` holds.
    pub clipped: usize,
}

/// What a trained token's rows say.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenFacts {
    /// Of what stands there, by the student.
    pub(super) logprob: f32,
    /// Of the student.
    pub(super) entropy: f32,
    /// None where no teacher was asked.
    pub(super) teacher: Option<TeacherFacts>,
}

/// The teacher's side of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct TeacherFacts {
    /// Of what stands there.
    pub(super) logprob: f32,
    /// None where not all ids are known.
    pub(super) entropy: Option<f32>,
    /// The student's probability of its most likely ids.
    pub(super) mass: Option<f64>,
}

/// A sum and how many numbers are in it.
#[derive(Clone, Copy, Default)]
struct Sum(f64, usize);

impl Sum {
    fn add(&mut self, value: f64) {
        *self = Sum(self.0 + value, self.1 + 1);
    }

    fn mean(self) -> Option<f64> {
        (self.1 > 0).then(|| self.0 / self.1 as f64)
    }
}

/// Sums of tokens.
#[derive(Clone, Copy, Default)]
struct Sums {
    entropy: Sum,
    teacher_entropy: Sum,
    log_ratio: Sum,
    teacher_nll: Sum,
    mass: Sum,
    /// the weighted loss
    loss: f64,
}

impl Sums {
    fn add(&mut self, weighted: f64, facts: &TokenFacts) {
        self.loss += weighted;
        self.entropy.add(f64::from(facts.entropy));
        let Some(teacher) = facts.teacher else { return };
        // Infinite only of logits beyond f32.
        let [p, q] = [facts.logprob, teacher.logprob].map(|x| f64::from(x.max(-1e30)));
        self.log_ratio.add((p - q).abs());
        self.teacher_nll.add(-q);
        teacher.entropy.iter().for_each(|&entropy| self.teacher_entropy.add(f64::from(entropy)));
        teacher.mass.iter().for_each(|&mass| self.mass.add(mass));
    }
}

/// Quantities under way.
pub(super) struct Counting {
    told: Quantities,
    all: Sums,
    by_turn: Vec<Sums>,
}

impl Counting {
    /// What the episodes of a batch say by themselves. `published`: the revision from which lag is counted; `reward`: what
    /// rewards are, where any is learnt by.
    pub(super) fn new(trajectories: &[&Trajectory], published: u64, reward: Option<&Reward>) -> Counting {
        let mut told = Quantities::default();
        let identities: BTreeSet<(RunId, u64)> =
            trajectories.iter().map(|t| (t.heading.run, t.heading.episode)).collect();
        let (mut of_student, mut repeated, mut otherwise) = (Sum::default(), Sum::default(), Sum::default());
        let (mut lags, mut largest) = (Sum::default(), 0);
        let mut rewards: Vec<f64> = Vec::new();
        for t in trajectories {
            let lag = published.saturating_sub(t.heading.revision);
            lags.add(lag as f64);
            largest = largest.max(lag);
            if told.turns.len() < t.turns().len() {
                told.turns.resize(t.turns().len(), TurnQuantities::default());
            }
            told.turns.iter_mut().take(t.turns().len()).for_each(|turn| turn.episodes += 1);
            // What a fork shares with its parent was said once, and is counted there if that is here.
            let parent = t.heading.forked_from.filter(|(parent, _)| identities.contains(&(t.heading.run, *parent)));
            let from = parent.map_or(0, |_| t.shared_turns());
            let said = |turn: &Turn| &t.ids()[turn.range.clone()];
            for (i, turn) in t.turns().iter().enumerate().skip(from) {
                let of = &mut told.turns[i];
                *match turn.actor {
                    Actor::Student => &mut of.student,
                    Actor::Teacher => &mut of.teacher,
                    Actor::Replay => &mut of.replay,
                } += 1;
                if turn.actor == Actor::Student {
                    of_student.add(turn.range.len() as f64);
                }
                repeated.add(f64::from(u8::from(i > 0 && said(&t.turns()[i - 1]) == said(turn))));
            }
            // Of what it shares with an episode that is not here nobody knows whether the host carried it out.
            for turn in t.turns().iter().skip(t.shared_turns()) {
                otherwise.add(f64::from(u8::from(turn.left_out)));
            }
            if let Some(reward) = reward {
                let by_turn = matches!(reward.of, RewardOf::Turn | RewardOf::Return);
                let values = given(t, reward);
                rewards.extend(values.iter().skip(from).take(if by_turn { usize::MAX } else { 1 }));
            }
        }
        (told.response_length, told.repetition) = (of_student.mean(), repeated.mean());
        told.executed_otherwise = otherwise.mean();
        told.lag = lags.mean().map(|mean| Lag { mean, largest });
        told.rewards = (!rewards.is_empty()).then(|| RewardQuantities {
            mean: rewards.iter().sum::<f64>() / rewards.len() as f64,
            least: rewards.iter().copied().fold(f64::INFINITY, f64::min),
            largest: rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            clipped: 0,
        });
        told.by_task = by_task(trajectories);
        Counting { told, all: Sums::default(), by_turn: Vec::new() }
    }

    /// A trained token with its unweighted loss.
    pub(super) fn add(&mut self, token: &TokenLoss, value: f64, worth: Option<&Worth>, facts: &TokenFacts) {
        if self.by_turn.len() <= token.turn {
            self.by_turn.resize(token.turn + 1, Sums::default());
        }
        self.all.add(token.weight * value, facts);
        self.by_turn[token.turn].add(token.weight * value, facts);
        if self.told.turns.len() <= token.turn {
            self.told.turns.resize(token.turn + 1, TurnQuantities::default());
        }
        self.told.turns[token.turn].tokens += 1;
        if let (Loss::PolicyGradient(_), Some(surrogate)) = (token.kind, worth.and_then(|worth| worth.surrogate)) {
            self.told.clipped_advantages += usize::from(surrogate.held);
            if let Some(rewards) = &mut self.told.rewards {
                rewards.clipped += usize::from(surrogate.clipped && token.rest != 0.0);
            }
        }
    }

    /// What all of it comes to.
    pub(super) fn told(self) -> Quantities {
        let Counting { mut told, all, by_turn } = self;
        told.entropy = all.entropy.mean();
        told.teacher_entropy = all.teacher_entropy.mean();
        told.log_ratio = all.log_ratio.mean();
        told.teacher_mass = all.mass.mean();
        for (turn, sums) in told.turns.iter_mut().zip(by_turn) {
            turn.loss_share = (turn.tokens > 0 && all.loss != 0.0).then(|| sums.loss / all.loss);
            turn.log_ratio = sums.log_ratio.mean();
            turn.teacher_nll = sums.teacher_nll.mean();
            turn.teacher_entropy = sums.teacher_entropy.mean();
            turn.entropy = sums.entropy.mean();
        }
        told
    }
}

/// (successes, episodes) of each task.
fn by_task(trajectories: &[&Trajectory]) -> BTreeMap<String, (usize, usize)> {
    let mut tasks: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for t in trajectories {
        let (successes, episodes) = tasks.entry(&t.heading.task).or_default();
        *successes += usize::from(t.outcome().and_then(|o| o.success) == Some(true));
        *episodes += 1;
    }
    let mut told = BTreeMap::new();
    // Episodes without a task's name stand under "" anyway, and take no name's place.
    let mut names = 0;
    for (task, (successes, episodes)) in tasks {
        names += usize::from(!task.is_empty());
        let name = if names <= MOST_TASKS { task } else { "" };
        let sum: &mut (usize, usize) = told.entry(name.to_string()).or_default();
        *sum = (sum.0 + successes, sum.1 + episodes);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::super::advantage::Baseline;
    use super::super::config::Config;
    use super::super::policy::{Decision, Reason};
    use super::super::trajectory::{Action, Heading, Outcome};
    use super::super::turn_loss::TurnLoss;
    use super::*;
    use crate::backend::ops::Surrogate;
    use crate::text::source::Source;
    use serde_json::json;

    /// An episode of a task at a revision whose turns are by these actors and say these ids; `forked` from the first episode
    /// behind so many turns.
    fn episode(heading: (u64, &str, u64), forked: Option<u32>, turns: &[(Actor, &[i32], Option<f64>)]) -> Trajectory {
        let (episode, task, revision) = heading;
        let mut t = Trajectory::new(Heading {
            episode,
            step: 0,
            task: task.to_string(),
            group: String::new(),
            seed: 0,
            revision,
            evaluation: false,
            forked_from: forked.map(|turn| (0, turn)),
            ..Heading::default()
        });
        for &(actor, ids, reward) in turns {
            t.add_context(&[9], Source::Host).unwrap();
            let logprobs = vec![-1.0; ids.len()];
            let (truncated, from_text) = (false, false);
            let action = Action { actor, ids, logprobs: &logprobs, sampled_logprobs: &logprobs, truncated, from_text };
            let (reason, train_on_this) = (Reason::Method, true);
            let decision = Decision { actor: Some(actor), reason, train_on_this, horizon: 1, probability: 0.0 };
            t.add_turn(&action, &decision, TurnLoss { kind: Some(Loss::ReverseKl), weight: 1.0 }).unwrap();
            reward.iter().for_each(|&reward| t.reward(reward).unwrap());
        }
        t
    }

    fn end(mut t: Trajectory, score: f64, success: Option<bool>) -> Trajectory {
        t.end(Outcome { score, success }).unwrap();
        t
    }

    fn token(turn: usize, weight: f64, kind: Loss) -> TokenLoss {
        TokenLoss { trajectory: 0, turn, position: 1, kind, weight, teacher: 1.0, rest: 0.5 }
    }

    const STUDENT: Actor = Actor::Student;

    #[test]
    fn episodes_tell_their_turns_lengths_repetitions_and_lag() {
        let mut first = episode((0, "a", 5), None, &[(STUDENT, &[1, 2], None), (STUDENT, &[1, 2], None)]);
        first.executed_otherwise().unwrap();
        // Its own turn says what the shared one said; the shared ones are counted in the first.
        let turns: &[(Actor, &[i32], Option<f64>)] =
            &[(STUDENT, &[1, 2], None), (STUDENT, &[1, 2], None), (Actor::Teacher, &[1, 2], None)];
        let fork = episode((1, "a", 5), Some(2), turns);
        let other = episode((2, "b", 8), None, &[(Actor::Replay, &[3], None), (STUDENT, &[4, 5, 6, 7, 8], None)]);
        let batch = [end(first, 1.0, Some(true)), end(fork, 0.0, Some(false)), end(other, 0.0, None)];
        let told = Counting::new(&batch.iter().collect::<Vec<_>>(), 8, None).told();
        let counts: Vec<_> = told.turns.iter().map(|t| (t.episodes, t.student, t.teacher, t.replay)).collect();
        assert_eq!(counts, [(3, 1, 0, 1), (3, 2, 0, 0), (1, 0, 1, 0)]);
        assert_eq!(told.response_length, Some((2.0 + 2.0 + 5.0) / 3.0));
        // Of five turns two say what the one before said; of five own ones one was not carried out.
        assert_eq!((told.repetition, told.executed_otherwise), (Some(0.4), Some(0.2)));
        assert_eq!(told.lag, Some(Lag { mean: 2.0, largest: 3 }));
        assert_eq!(json!(told.by_task), json!({"a": [1, 2], "b": [0, 1]}));
        assert_eq!((told.rewards, told.entropy, told.turns[0].loss_share), (None, None, None));
        let none = Counting::new(&[], 8, None).told();
        assert_eq!(
            (none.lag, none.response_length, none.repetition, none.executed_otherwise),
            (None, None, None, None)
        );
    }

    #[test]
    fn rewards_are_told_as_the_settings_take_them() {
        let turns = |a: Option<f64>, b: Option<f64>| [(STUDENT, &[1][..], a), (STUDENT, &[2][..], b)];
        let batch = [
            end(episode((0, "", 1), None, &turns(Some(1.0), Some(4.0))), 7.0, Some(true)),
            end(episode((1, "", 1), None, &turns(None, Some(-3.0))), 2.0, None),
        ];
        let of = |of: RewardOf| {
            let reward = Reward { of, baseline: Baseline::None, group: 2, eps: 1e-6, discount: 0.5 };
            let told = Counting::new(&batch.iter().collect::<Vec<_>>(), 1, Some(&reward)).told().rewards.unwrap();
            (told.mean, told.least, told.largest, told.clipped)
        };
        assert_eq!(of(RewardOf::Score), (4.5, 2.0, 7.0, 0));
        assert_eq!(of(RewardOf::Success), (0.5, 0.0, 1.0, 0));
        // 1, 4, 0 and -3; the returns are 3, 4, -1.5 and -3.
        assert_eq!(of(RewardOf::Turn), (0.5, -3.0, 4.0, 0));
        assert_eq!(of(RewardOf::Return), (0.625, -3.0, 4.0, 0));
    }

    #[test]
    fn tokens_tell_means_by_turn_and_over_all() {
        let facts = |logprob, entropy, teacher: Option<(f32, Option<f32>, Option<f64>)>| TokenFacts {
            logprob,
            entropy,
            teacher: teacher.map(|(logprob, entropy, mass)| TeacherFacts { logprob, entropy, mass }),
        };
        let mut counting = Counting::new(&[], 1, None);
        let kl = |turn, weight| token(turn, weight, Loss::ReverseKl);
        counting.add(&kl(0, 0.5), 2.0, None, &facts(-1.0, 0.5, Some((-3.0, Some(0.25), None))));
        counting.add(&kl(0, 0.5), 4.0, None, &facts(-2.0, 1.0, Some((-1.0, None, Some(0.75)))));
        counting.add(&kl(2, 0.25), 4.0, None, &facts(-2.0, 3.0, None));
        let told = counting.told();
        assert_eq!((told.entropy, told.teacher_entropy, told.log_ratio), (Some(1.5), Some(0.25), Some(1.5)));
        assert_eq!((told.teacher_mass, told.clipped_advantages), (Some(0.75), 0));
        let first = TurnQuantities {
            tokens: 2,
            loss_share: Some(0.75),
            log_ratio: Some(1.5),
            teacher_nll: Some(2.0),
            teacher_entropy: Some(0.25),
            entropy: Some(0.75),
            ..TurnQuantities::default()
        };
        let last =
            TurnQuantities { tokens: 1, loss_share: Some(0.25), entropy: Some(3.0), ..TurnQuantities::default() };
        assert_eq!(told.turns, [first, TurnQuantities::default(), last]);
    }

    #[test]
    fn held_advantages_are_counted_and_clips_of_what_has_a_reward() {
        let reward = Reward { of: RewardOf::Score, baseline: Baseline::None, group: 2, eps: 1e-6, discount: 1.0 };
        let t = end(episode((0, "", 1), None, &[(STUDENT, &[1], None)]), 1.0, None);
        let mut counting = Counting::new(&[&t], 1, Some(&reward));
        let kind = Config::preset("grpo").unwrap().loss_of(STUDENT).kind.unwrap();
        let facts = TokenFacts { logprob: -1.0, entropy: 0.0, teacher: None };
        for (held, clipped, rest) in [(true, false, 0.5), (true, true, 0.0), (false, true, 0.5), (false, true, -1.0)] {
            let surrogate = Some(Surrogate { ratio: 1.0, advantage: 1.0, clipped, held });
            let worth = Worth { surrogate, ..Worth::default() };
            counting.add(&TokenLoss { rest, ..token(0, 1.0, kind) }, 0.0, Some(&worth), &facts);
        }
        let told = counting.told();
        assert_eq!((told.clipped_advantages, told.rewards.unwrap().clipped), (2, 2));
        assert_eq!(told.turns[0].loss_share, None, "of a loss of 0");
    }

    #[test]
    fn tasks_beyond_the_first_by_name_are_told_together() {
        let of = |name: &str| end(episode((0, name, 1), None, &[(STUDENT, &[1], None)]), 0.0, Some(true));
        let mut batch: Vec<Trajectory> = (0..66).map(|i| of(&format!("task {i:02}"))).collect();
        batch.push(of(""));
        batch.push(of("task 03"));
        let told = by_task(&batch.iter().collect::<Vec<_>>());
        assert_eq!((told.len(), told[""], told["task 03"], told["task 63"]), (65, (3, 3), (2, 2), (1, 1)));
    }
}
