//! The resolved settings of a distillation, and what follows from them at a step. A method is a point in the space of these
//! knobs; [`knob_table`](super::knob_table) says what each takes and means, [`settings`](super::settings) reads documents.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::advantage::{Advantage, Importance, Reward};
use super::knobs::{
    ActorPolicy, Filter, LearnTurns, Normaliser, Optimizer, Proposal, Sampling, Scope, TeacherFails, Truncated,
};
use super::schedule::Schedule;
use super::turn_loss::TurnLoss;
use super::turn_weights::TurnWeights;
use crate::backend::ops::{Loss, PolicyGradient, Tail};
use crate::model::Lora;
use crate::model::activations::Recompute;

/// Which layer set a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody asked for anything else.
    Default,
    /// The preset of that name.
    Preset(&'static str),
    /// The document.
    Given,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Preset(name) => write!(f, "preset {name}"),
            Origin::Given => f.write_str("given"),
        }
    }
}

/// The resolved settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The preset named by the document.
    pub preset: Option<&'static str>,
    /// S: optimiser steps of the run.
    pub steps: u64,
    /// Key of all draws.
    pub seed: u64,
    /// Who acts.
    pub actor: ActorPolicy,
    /// Tokens that the teacher may say between two updates; 0: as many as its turns have.
    pub teacher_tokens: u64,
    /// Whether the student takes a turn that the teacher fails to take.
    pub teacher_fails: TeacherFails,
    /// The adapter with which a teacher that is a model acts and scores, by its name there.
    pub teacher_adapter: Option<String>,
    /// Cap on the turns rolled in training.
    pub depth: Option<Schedule>,
    /// Loss on turns of the student.
    pub student_turns: TurnLoss,
    /// Loss on turns of the teacher.
    pub teacher_turns: TurnLoss,
    /// Loss on replayed turns.
    pub replay_turns: TurnLoss,
    /// Over which events a divergence from a teacher's top ids is taken.
    pub tail: Tail,
    /// What a policy gradient's advantage is made of.
    pub advantage: Advantage,
    /// How it makes up for what drew the tokens.
    pub ratio: Importance,
    /// What the environment's rewards come to.
    pub reward: Reward,
    /// How much the teacher's part counts in each turn.
    pub turn_weights: TurnWeights,
    /// Over what the loss is averaged.
    pub normaliser: Normaliser,
    /// Whose tokens are averaged together.
    pub normaliser_scope: Scope,
    /// Which turns of an episode are learnt.
    pub learn_turns: LearnTurns,
    /// Which trajectories are learnt.
    pub filter: Filter,
    /// What becomes of turns that were cut off.
    pub truncated: Truncated,
    /// How often one action may stand in a row; 0: any number of times.
    pub max_repeats: u32,
    /// Published revisions a trajectory may lag.
    pub max_staleness: u64,
    /// How training rollouts are sampled.
    pub sampling: Sampling,
    /// Episodes of one step.
    pub batch_episodes: u32,
    /// AdamW and its learning rate.
    pub optimizer: Optimizer,
    /// Tokens of one forward and backward pass.
    pub micro_tokens: u32,
    /// What the backward computes again; None: as little as the budget allows.
    pub recompute: Option<Recompute>,
    /// Bytes that an update may take beside serving; 0: no limit.
    pub training_budget: u64,
    /// The adapter that is trained; None where all weights are.
    pub lora: Option<Lora>,
    /// Revisions that may live at once.
    pub kept_revisions: u32,
    /// Published revisions that are kept to go back to, beside the current one.
    pub rollback_revisions: u32,
    /// Turn cap of an episode.
    pub max_turns: u32,
    /// Trained tokens on which the KL of an update is measured at most; 0: it is not.
    pub update_kl_tokens: u32,
    /// KL of one update, nats a token, above which the log warns; 0: never.
    pub max_update_kl: f64,
    /// The same above which `publish` refuses; 0: never, None: half of what the student knew, at least 1.
    pub refuse_update_kl: Option<f64>,
    /// Rows on which a published revision is compared with what was trained, at most; 0: none.
    pub probe_rows: u32,
    /// Which layer set each knob, in the table's order.
    pub(super) origins: Vec<Origin>,
}

impl Config {
    /// The loss of a turn of `actor`, as far as the whole run goes.
    pub fn loss_of(&self, actor: Actor) -> TurnLoss {
        let loss = match actor {
            Actor::Student => self.student_turns,
            Actor::Teacher => self.teacher_turns,
            Actor::Replay => self.replay_turns,
        };
        let asks_teacher = self.advantage.teacher.bounds() != (0.0, 0.0);
        self.with_surrogate(loss, asks_teacher)
    }

    /// The loss of a turn of `actor` in an episode that began at step `step`: where the teacher's share of the advantage is
    /// 0, nobody is asked.
    pub fn loss_at(&self, actor: Actor, step: u64) -> TurnLoss {
        let loss = self.loss_of(actor);
        self.with_surrogate(loss, self.advantage.teacher.value(step, self.steps) != 0.0)
    }

    fn with_surrogate(&self, loss: TurnLoss, asks_teacher: bool) -> TurnLoss {
        match loss.kind {
            Some(Loss::PolicyGradient(_)) => {
                let Importance { of, clip, dual_clip } = self.ratio;
                let Advantage { reference, shape, .. } = self.advantage;
                let settings = PolicyGradient { asks_teacher, reference, shape, ratio: of, clip, dual_clip };
                TurnLoss { kind: Some(Loss::PolicyGradient(settings)), ..loss }
            }
            _ => loss,
        }
    }

    /// The probability that the teacher acts in a training turn of step `step`, where it is drawn a turn.
    pub fn beta_at(&self, step: u64) -> f64 {
        match self.actor {
            ActorPolicy::Bernoulli { beta } => beta.value(step, self.steps),
            ActorPolicy::Teacher => 1.0,
            _ => 0.0,
        }
    }

    /// The cap on turns rolled in training at step `step`; `u32::MAX` without a curriculum.
    pub fn depth_at(&self, step: u64) -> u32 {
        self.depth.map_or(u32::MAX, |depth| depth.value(step, self.steps) as u32)
    }

    /// What moves at step `step`, by name: beta, and what [`Config::schedules`] lists.
    pub fn schedules_at(&self, step: u64) -> serde_json::Value {
        let beta = std::iter::once(("beta".to_string(), self.beta_at(step).into()));
        let others = self
            .schedules()
            .into_iter()
            .map(|(name, schedule)| (name.to_string(), schedule.value(step, self.steps).into()));
        serde_json::Value::Object(beta.chain(others).collect())
    }

    /// What moves over the run beside the learning rate, by the names that tables have for it.
    pub fn schedules(&self) -> Vec<(&'static str, Schedule)> {
        let mut schedules = Vec::new();
        match self.actor {
            ActorPolicy::Bernoulli { beta } => schedules.push(("beta", beta)),
            ActorPolicy::Prefix { withdrawn } => schedules.push(("withdrawn", withdrawn)),
            ActorPolicy::Mixture { replay } => schedules.push(("replay", replay)),
            ActorPolicy::Proposal(Proposal { rate, .. }) => schedules.push(("rate", rate)),
            _ => {}
        }
        schedules.extend(self.depth.map(|depth| ("depth", depth)));
        if matches!(self.student_turns.kind, Some(Loss::PolicyGradient(_))) {
            schedules.push(("advantage.teacher", self.advantage.teacher));
            schedules.push(("advantage.reward", self.advantage.reward));
        }
        if let Normaliser::Blend(share) = self.normaliser {
            schedules.push(("turn_share", share));
        }
        schedules
    }

    /// Whether the policy has the teacher act.
    pub fn lets_teacher_act(&self) -> bool {
        use ActorPolicy::{Bernoulli, Proposal, Switch, Teacher};
        matches!(self.actor, Teacher | Bernoulli { .. } | Switch { .. } | Proposal(_))
    }

    /// Whether a teacher that acts takes the turns behind a demonstration's last.
    pub(super) fn teacher_follows_replay(&self) -> bool {
        self.actor == ActorPolicy::Replay && self.teacher_turns.kind.is_some()
    }

    /// Whether a run under these settings asks for a teacher: to act, or to score turns of an actor that the policy has.
    pub fn needs_teacher(&self) -> bool {
        let actors = match self.actor {
            _ if self.lets_teacher_act() => &[][..],
            ActorPolicy::Replay => &[Actor::Replay][..],
            ActorPolicy::Prefix { .. } | ActorPolicy::Mixture { .. } => &[Actor::Student, Actor::Replay][..],
            _ => &[Actor::Student, Actor::Teacher][..],
        };
        self.lets_teacher_act() || actors.iter().any(|&actor| self.loss_of(actor).needs_teacher())
    }

    /// Whether the student's turns carry loss, where it takes those that the teacher fails to take.
    pub(super) fn student_steps_in(&self) -> Option<bool> {
        (self.teacher_fails == TeacherFails::Student).then(|| self.loss_of(Actor::Student).kind.is_some())
    }

    /// Whether an episode that began at step `step` asks for a teacher.
    pub(super) fn asks_teacher_at(&self, step: u64) -> bool {
        self.lets_teacher_act() || self.actors().iter().any(|&actor| self.loss_at(actor, step).needs_teacher())
    }

    /// Who may act, as far as the policy goes.
    pub(super) fn actors(&self) -> &'static [Actor] {
        match self.actor {
            ActorPolicy::Student => &[Actor::Student],
            ActorPolicy::Teacher => &[Actor::Teacher],
            ActorPolicy::Replay => &[Actor::Replay, Actor::Teacher],
            ActorPolicy::Bernoulli { .. } | ActorPolicy::Switch { .. } | ActorPolicy::Proposal(_) => {
                &[Actor::Student, Actor::Teacher]
            }
            ActorPolicy::Prefix { .. } | ActorPolicy::Mixture { .. } => &[Actor::Student, Actor::Replay],
        }
    }
}
