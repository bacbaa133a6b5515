//! Every knob of a distillation, each written once: where it stands in a document, what it takes, its default, what it does,
//! how it is read and shown. Parsing, defaults, `explain`, the unknown keys' messages and docs/settings.md come from here.
#![forbid(unsafe_code)]

use super::advantage::{self, BASELINES, RATIOS, REFERENCES, REWARDS};
use super::config::Config;
use super::document::{bad, integer, name_of, number, word};
use super::knobs::{ActorPolicy, FILTERS, LEARN_TURNS, Normaliser, RECOMPUTE, SCOPES, TEACHER_FAILS, TRUNCATED};
use super::lora;
use super::schedule::Schedule;
use super::turn_loss::{TAILS, TurnLoss};
use super::turn_weights;
use crate::error::Result;
use crate::model::activations::Recompute;
use crate::model::plan::LOSS_ROWS;
use serde_json::{Value, json};

/// What a run that is resumed may do with a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnResume {
    /// It must be as it was.
    Kept,
    /// It may be changed, and no bit of what is learnt changes by it.
    Free,
    /// It may be changed: what was learnt stands, and the rest of the run is learnt by the new value.
    Retuned,
}

/// One knob.
pub struct Knob {
    /// Its path in a document, at most one object deep.
    pub path: &'static str,
    /// What it takes, in words.
    pub takes: &'static str,
    /// Its value where nobody says otherwise, as JSON.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Whether a resumed run may change it.
    pub on_resume: OnResume,
    /// Whether no paper stands behind it, so that it may change.
    pub experimental: bool,
    pub(super) read: fn(&mut Config, &Value, &str) -> Result<()>,
    pub(super) show: fn(&Config) -> Value,
}

const KNOB: Knob = Knob {
    path: "",
    takes: "",
    default: "null",
    meaning: "",
    on_resume: OnResume::Kept,
    experimental: false,
    read: |_, _, _| Ok(()),
    show: |_| Value::Null,
};

/// A knob that a resumed run may change, with no bit.
const FREE: Knob = Knob { on_resume: OnResume::Free, ..KNOB };
/// One that it may change, and then learns by.
const RETUNED: Knob = Knob { on_resume: OnResume::Retuned, ..KNOB };

/// What a turn's loss takes.
const KERNELS: &str = "none, reverse-kl, forward-kl, jsd or {\"jsd\": share}, cross-entropy, sampled-reverse-kl, k2, weighted-k3, \
                       policy-gradient";
const KERNELS_OF_OTHERS: &str = "none, reverse-kl, forward-kl, jsd or {\"jsd\": share}, cross-entropy";

/// All knobs, in reading order. Those of one object stand together.
pub const KNOBS: &[Knob] = &[
    Knob {
        path: "steps",
        takes: "a whole number from 1 to 1e9",
        default: "250",
        meaning: "S, optimiser steps of the run; no update is built beyond. Resumed, it may have more, not fewer, and schedules by the fraction go by the new number.",
        read: |c, v, p| set(&mut c.steps, integer(v, p, 1, 1_000_000_000)),
        show: |c| json!(c.steps),
        ..RETUNED
    },
    Knob {
        path: "seed",
        takes: "a whole number",
        default: "42",
        meaning: "The key of all draws.",
        read: |c, v, p| set(&mut c.seed, integer(v, p, 0, u64::MAX)),
        show: |c| json!(c.seed),
        ..KNOB
    },
    Knob {
        path: "actor",
        takes: "{\"kind\": student, teacher, replay, bernoulli with \"beta\", switch with \"from\" and \"to\", prefix with \
                \"withdrawn\", mixture with \"replay\", proposal with \"by\": teacher or student, \"rate\", \"window\", \"minimum\"}",
        default: r#"{"kind": "student"}"#,
        meaning: "Who acts. bernoulli: the teacher with probability beta, drawn a turn. switch: the student, and from turn K on \
                  the teacher, K drawn evenly from `from` to `to` an episode. prefix: of the episode's demonstration of L turns the \
                  first max(0, L - 1 - floor(withdrawn)) are replayed, then the student acts. mixture: an episode is replayed as a \
                  whole with probability replay, else the student's. proposal: the student proposes every turn; of the proposals a share `rate`, \
                  those that are the most uncertain by the last `window` (1000) once there are `minimum` (300), is replaced by the teacher's turn \
                  (squire_episode_judge). replay: where the demonstration has ended the teacher acts, if \
                  its turns carry loss.",
        read: |c, v, p| set(&mut c.actor, ActorPolicy::from_json(v, p)),
        show: |c| c.actor.to_json(),
        ..KNOB
    },
    Knob {
        path: "teacher_tokens",
        takes: "a whole number",
        default: "0",
        meaning: "Tokens that the teacher may say between two updates, over all episodes; where they are spent the student takes its \
                  turns. A turn that is decided stays the teacher's. 0: no such budget. Which turn finds it spent depends on the order in \
                  which episodes are played.",
        experimental: true,
        read: |c, v, p| set(&mut c.teacher_tokens, integer(v, p, 0, 1_000_000_000_000)),
        show: |c| json!(c.teacher_tokens),
        ..KNOB
    },
    Knob {
        path: "teacher_fails",
        takes: "again or student",
        default: r#""again""#,
        meaning: "Who takes a turn of which the teacher said nothing, since it failed or was silent beyond its deadline: the teacher when \
                  it is asked again, or the student. A turn that the host gave to the teacher stays the teacher's.",
        read: |c, v, p| set(&mut c.teacher_fails, word(v, p, TEACHER_FAILS)),
        show: |c| json!(name_of(c.teacher_fails, TEACHER_FAILS)),
        ..KNOB
    },
    Knob {
        path: "teacher_adapter",
        takes: "an adapter's name, or null",
        default: "null",
        meaning: "The adapter with which a teacher that is a model acts and scores: one that its model has under that name \
                  (squire_adapter_load) when the distiller is made. The model may be the student's own, so that one base serves both. \
                  null: the model as it is.",
        read: |c, v, p| {
            let name = v.as_str().filter(|name| !name.is_empty()).map(str::to_string);
            if name.is_none() && !v.is_null() {
                return Err(bad(v, p, "an adapter's name, or null"));
            }
            c.teacher_adapter = name;
            Ok(())
        },
        show: |c| json!(c.teacher_adapter),
        ..KNOB
    },
    Knob {
        path: "depth",
        takes: "a number or a schedule of at least 1, or null",
        default: "null",
        meaning: "Its floor caps the turns rolled in training; null: no cap but max_turns.",
        read: |c, v, p| {
            c.depth = if v.is_null() { None } else { Some(Schedule::within(v, p, 1.0, 1_000_000.0)?) };
            Ok(())
        },
        show: |c| c.depth.map_or(Value::Null, |depth| depth.to_json()),
        ..KNOB
    },
    Knob {
        path: "student_turns.kernel",
        takes: KERNELS,
        default: r#""reverse-kl""#,
        meaning: "The loss of the tokens that the student drew.",
        read: |c, v, p| c.student_turns.set_kernel(v, p),
        show: |c| c.student_turns.kernel_to_json(),
        ..KNOB
    },
    Knob {
        path: "student_turns.weight",
        takes: "a number above 0, at most 1e6",
        default: "1.0",
        meaning: "Its factor.",
        read: |c, v, p| weight(&mut c.student_turns, v, p),
        show: |c| json!(c.student_turns.weight),
        ..KNOB
    },
    Knob {
        path: "teacher_turns.kernel",
        takes: KERNELS_OF_OTHERS,
        default: r#""none""#,
        meaning: "The loss of what the teacher said.",
        read: |c, v, p| c.teacher_turns.set_kernel(v, p),
        show: |c| c.teacher_turns.kernel_to_json(),
        ..KNOB
    },
    Knob {
        path: "teacher_turns.weight",
        takes: "a number above 0, at most 1e6",
        default: "1.0",
        meaning: "Its factor.",
        read: |c, v, p| weight(&mut c.teacher_turns, v, p),
        show: |c| json!(c.teacher_turns.weight),
        ..KNOB
    },
    Knob {
        path: "replay_turns.kernel",
        takes: KERNELS_OF_OTHERS,
        default: r#""none""#,
        meaning: "The loss of what was replayed.",
        read: |c, v, p| c.replay_turns.set_kernel(v, p),
        show: |c| c.replay_turns.kernel_to_json(),
        ..KNOB
    },
    Knob {
        path: "replay_turns.weight",
        takes: "a number above 0, at most 1e6",
        default: "1.0",
        meaning: "Its factor.",
        read: |c, v, p| weight(&mut c.replay_turns, v, p),
        show: |c| json!(c.replay_turns.weight),
        ..KNOB
    },
    Knob {
        path: "tail",
        takes: "bucket, renormalised, truncated",
        default: r#""bucket""#,
        meaning: "What a divergence makes of all ids that are none of a teacher's most likely ones.",
        read: |c, v, p| set(&mut c.tail, word(v, p, TAILS)),
        show: |c| json!(name_of(c.tail, TAILS)),
        ..KNOB
    },
    Knob {
        path: "advantage.teacher",
        takes: "a number or a schedule from 0 to 1e3",
        default: "1.0",
        meaning: "kappa, of kernel policy-gradient: the factor of ln q - ln p in the advantage. Where it is 0 when an episode begins, \
                  the teacher is not asked.",
        read: |c, v, p| set(&mut c.advantage.teacher, Schedule::within(v, p, 0.0, 1e3)),
        show: |c| c.advantage.teacher.to_json(),
        ..KNOB
    },
    Knob {
        path: "advantage.reward",
        takes: "a number or a schedule from 0 to 1e3",
        default: "0.0",
        meaning: "rho, of kernel policy-gradient: the factor of what the rewards come to in the advantage.",
        read: |c, v, p| set(&mut c.advantage.reward, Schedule::within(v, p, 0.0, 1e3)),
        show: |c| c.advantage.reward.to_json(),
        ..KNOB
    },
    Knob {
        path: "advantage.constant",
        takes: "a number from -1e3 to 1e3",
        default: "0.0",
        meaning: "Added to every token's advantage.",
        read: |c, v, p| set(&mut c.advantage.constant, number(v, p, "a number from -1e3 to 1e3", |x| x.abs() <= 1e3)),
        show: |c| json!(c.advantage.constant),
        ..KNOB
    },
    Knob {
        path: "advantage.reference",
        takes: "frozen, recomputed",
        default: r#""frozen""#,
        meaning: "Which ln p is compared with the teacher's: that of the draw, or that of now (not differentiated). They differ where \
                  episodes lag.",
        read: |c, v, p| set(&mut c.advantage.reference, word(v, p, REFERENCES)),
        show: |c| json!(name_of(c.advantage.reference, REFERENCES)),
        ..KNOB
    },
    Knob {
        path: "advantage.shape",
        takes: "identity, {\"clamp\": nats}, {\"tanh\": nats}, {\"power\": exponent}",
        default: r#""identity""#,
        meaning: "What the log-ratio counts as: itself, held within +-c, c tanh(x / c), or q^a - p^a.",
        read: |c, v, p| set(&mut c.advantage.shape, advantage::shape(v, p)),
        show: |c| advantage::shape_to_json(c.advantage.shape),
        ..KNOB
    },
    Knob {
        path: "ratio.of",
        takes: "none, token, turn",
        default: r#""none""#,
        meaning: "The importance ratio of a policy gradient: none, the token's p over what it was when it was drawn, or e to the mean of \
                  its logarithm over the turn.",
        read: |c, v, p| set(&mut c.ratio.of, word(v, p, RATIOS)),
        show: |c| json!(name_of(c.ratio.of, RATIOS)),
        ..KNOB
    },
    Knob {
        path: "ratio.clip",
        takes: "none, {\"truncate\": most}, {\"ppo\": bound} or {\"ppo\": {\"low\", \"high\"}}",
        default: r#""none""#,
        meaning: "How the ratio is bounded: not, at most so large, or as in PPO from 1 - low to 1 + high.",
        read: |c, v, p| set(&mut c.ratio.clip, advantage::clip(v, p)),
        show: |c| advantage::clip_to_json(c.ratio.clip),
        ..KNOB
    },
    Knob {
        path: "ratio.dual_clip",
        takes: "0, or a number above 1",
        default: "0.0",
        meaning: "PPO's second bound on the ratio, where the advantage is below 0; 0: none.",
        read: |c, v, p| set(&mut c.ratio.dual_clip, advantage::dual_clip(v, p)),
        show: |c| json!(c.ratio.dual_clip),
        ..KNOB
    },
    Knob {
        path: "reward.of",
        takes: "score, success, turn, return",
        default: r#""score""#,
        meaning: "What a turn's reward is: the episode's score, 1 where it was a success and else 0, the turn's own reward, or the \
                  discounted sum of the rewards from the turn on.",
        read: |c, v, p| set(&mut c.reward.of, word(v, p, REWARDS)),
        show: |c| json!(name_of(c.reward.of, REWARDS)),
        ..KNOB
    },
    Knob {
        path: "reward.baseline",
        takes: "none, group-mean, group",
        default: r#""group""#,
        meaning: "With what it is compared: nothing, its group's mean, or that and the group's standard deviation, (r - mean) / (std + \
                  eps). A group is the episodes of a batch of one `group`, or of one `task` where their specification names none.",
        read: |c, v, p| set(&mut c.reward.baseline, word(v, p, BASELINES)),
        show: |c| json!(name_of(c.reward.baseline, BASELINES)),
        ..KNOB
    },
    Knob {
        path: "reward.group",
        takes: "a whole number from 2 to 65536",
        default: "8",
        meaning: "Episodes of a group; batch_episodes must be a multiple of it, and the report counts and warns of groups of another size.",
        read: |c, v, p| set(&mut c.reward.group, small(v, p, 2, 65_536)),
        show: |c| json!(c.reward.group),
        ..KNOB
    },
    Knob {
        path: "reward.eps",
        takes: "a number from 1e-12 to 1",
        default: "1e-6",
        meaning: "Added to the standard deviation that divides.",
        read: |c, v, p| {
            set(&mut c.reward.eps, number(v, p, "a number from 1e-12 to 1", |x| (1e-12..=1.0).contains(&x)))
        },
        show: |c| json!(c.reward.eps),
        ..KNOB
    },
    Knob {
        path: "reward.discount",
        takes: "a number from 0 to 1",
        default: "1.0",
        meaning: "Factor of a reward one turn later in a return.",
        read: |c, v, p| set(&mut c.reward.discount, number(v, p, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))),
        show: |c| json!(c.reward.discount),
        ..KNOB
    },
    Knob {
        path: "turn_weights.rule",
        takes: "none, t-dur, sod or {\"sod\": delta}, gap-ratio or {\"gap-ratio\": cap}",
        default: r#""none""#,
        meaning: "How much the teacher's part counts in each of the student's turns. They are weighed when all scores are there.",
        read: |c, v, p| set(&mut c.turn_weights.rule, turn_weights::rule(v, p)),
        show: |c| turn_weights::rule_to_json(c.turn_weights.rule),
        ..KNOB
    },
    Knob {
        path: "turn_weights.renormalise",
        takes: "true, false",
        default: "false",
        meaning: "Whether turn weights are scaled so that their mean over the batch's loss is 1.",
        read: |c, v, p| set(&mut c.turn_weights.renormalise, truth(v, p)),
        show: |c| json!(c.turn_weights.renormalise),
        ..KNOB
    },
    Knob {
        path: "normaliser",
        takes: "token-mean, sequence-mean, turn-mean, {\"blend\": share of turns}, {\"fixed\": tokens}",
        default: r#""token-mean""#,
        meaning: "Over what the loss is averaged: every trained token counts the same; every trajectory; every turn; so much of the turn \
                  mean and the rest of the token mean; or the sum is divided by a number that does not depend on the batch.",
        read: |c, v, p| set(&mut c.normaliser, Normaliser::from_json(v, p)),
        show: |c| c.normaliser.to_json(),
        ..KNOB
    },
    Knob {
        path: "normaliser_scope",
        takes: "batch, actor",
        default: r#""batch""#,
        meaning: "Whose tokens are averaged together: all of the batch, or each actor's by themselves, so that the actors' means are \
                  added with their weights.",
        read: |c, v, p| set(&mut c.normaliser_scope, word(v, p, SCOPES)),
        show: |c| json!(name_of(c.normaliser_scope, SCOPES)),
        ..KNOB
    },
    Knob {
        path: "learn_turns",
        takes: "all, last",
        default: r#""all""#,
        meaning: "Which of an episode's turns that carry loss are learnt: all, or the last of them.",
        read: |c, v, p| set(&mut c.learn_turns, word(v, p, LEARN_TURNS)),
        show: |c| json!(name_of(c.learn_turns, LEARN_TURNS)),
        ..KNOB
    },
    Knob {
        path: "filter",
        takes: "none, success",
        default: r#""none""#,
        meaning: "Which trajectories are learnt: all, or those that the host called a success.",
        read: |c, v, p| set(&mut c.filter, word(v, p, FILTERS)),
        show: |c| json!(name_of(c.filter, FILTERS)),
        ..KNOB
    },
    Knob {
        path: "truncated",
        takes: "learn, mask, drop",
        default: r#""learn""#,
        meaning: "What becomes of turns that ended at max_tokens, the end of the context or a time limit: they are learnt like others, carry no loss, \
                  or their episodes are dropped.",
        read: |c, v, p| set(&mut c.truncated, word(v, p, TRUNCATED)),
        show: |c| json!(name_of(c.truncated, TRUNCATED)),
        ..KNOB
    },
    Knob {
        path: "max_repeats",
        takes: "a whole number",
        default: "0",
        meaning: "An episode in which one action, the same ids, stands more often in a row than this is dropped; 0: none is.",
        read: |c, v, p| set(&mut c.max_repeats, small(v, p, 0, 1_000_000)),
        show: |c| json!(c.max_repeats),
        ..KNOB
    },
    Knob {
        path: "max_staleness",
        takes: "a whole number",
        default: "2",
        meaning: "Published revisions that a trajectory may lag; older ones are dropped.",
        read: |c, v, p| set(&mut c.max_staleness, integer(v, p, 0, 1_000_000)),
        show: |c| json!(c.max_staleness),
        ..KNOB
    },
    Knob {
        path: "sampling.temperature",
        takes: "a number from 0 to 100",
        default: "1.0",
        meaning: "Divides the logits of training rollouts; 0 takes the most likely token. Losses are at temperature 1 whatever it is.",
        read: |c, v, p| {
            set(&mut c.sampling.temperature, number(v, p, "a number from 0 to 100", |x| (0.0..=100.0).contains(&x)))
        },
        show: |c| json!(c.sampling.temperature),
        ..KNOB
    },
    Knob {
        path: "sampling.top_k",
        takes: "a whole number",
        default: "0",
        meaning: "Keeps only that many tokens; 0 keeps all.",
        read: |c, v, p| set(&mut c.sampling.top_k, small(v, p, 0, u64::from(u32::MAX))),
        show: |c| json!(c.sampling.top_k),
        ..KNOB
    },
    Knob {
        path: "sampling.top_p",
        takes: "a number above 0, at most 1",
        default: "1.0",
        meaning: "Keeps the smallest set of tokens with at least this probability.",
        read: |c, v, p| {
            set(&mut c.sampling.top_p, number(v, p, "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0))
        },
        show: |c| json!(c.sampling.top_p),
        ..KNOB
    },
    Knob {
        path: "batch_episodes",
        takes: "a whole number from 1 to 65536",
        default: "16",
        meaning: "Ended episodes that an update takes unless it is told how many.",
        read: |c, v, p| set(&mut c.batch_episodes, small(v, p, 1, 65_536)),
        show: |c| json!(c.batch_episodes),
        ..KNOB
    },
    Knob {
        path: "optimizer.learning_rate",
        takes: "a number or a schedule from 0 to 10",
        default: "1e-6",
        meaning: "AdamW's, at step s times min(1, (s + 1) / warmup_steps).",
        read: |c, v, p| set(&mut c.optimizer.learning_rate, Schedule::within(v, p, 0.0, 10.0)),
        show: |c| c.optimizer.learning_rate.to_json(),
        ..RETUNED
    },
    Knob {
        path: "optimizer.warmup_steps",
        takes: "a whole number",
        default: "0",
        meaning: "Steps over which the learning rate rises to its schedule.",
        read: |c, v, p| set(&mut c.optimizer.warmup_steps, integer(v, p, 0, 1_000_000_000)),
        show: |c| json!(c.optimizer.warmup_steps),
        ..RETUNED
    },
    Knob {
        path: "optimizer.beta1",
        takes: "a number from 0, below 1",
        default: "0.9",
        meaning: "Decay of the first moment.",
        read: |c, v, p| set(&mut c.optimizer.beta1, decay(v, p)),
        show: |c| json!(c.optimizer.beta1),
        ..KNOB
    },
    Knob {
        path: "optimizer.beta2",
        takes: "a number from 0, below 1",
        default: "0.999",
        meaning: "Decay of the second moment.",
        read: |c, v, p| set(&mut c.optimizer.beta2, decay(v, p)),
        show: |c| json!(c.optimizer.beta2),
        ..KNOB
    },
    Knob {
        path: "optimizer.eps",
        takes: "a number from 1e-30 to 1",
        default: "1e-8",
        meaning: "Added to the root of the second moment.",
        read: |c, v, p| {
            // Smaller ones are 0 in f32, and where there is no gradient 0 / 0 is no number.
            set(&mut c.optimizer.eps, number(v, p, "a number from 1e-30 to 1", |x| (1e-30..=1.0).contains(&x)))
        },
        show: |c| json!(c.optimizer.eps),
        ..KNOB
    },
    Knob {
        path: "optimizer.weight_decay",
        takes: "a number from 0 to 1",
        default: "0.0",
        meaning: "Decoupled weight decay of matrices; norms and biases have none.",
        read: |c, v, p| {
            set(&mut c.optimizer.weight_decay, number(v, p, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x)))
        },
        show: |c| json!(c.optimizer.weight_decay),
        ..RETUNED
    },
    Knob {
        path: "optimizer.grad_clip",
        takes: "a number from 0 to 1e12",
        default: "1.0",
        meaning: "Largest norm of the whole gradient; 0 leaves it alone.",
        read: |c, v, p| {
            set(&mut c.optimizer.grad_clip, number(v, p, "a number from 0 to 1e12", |x| (0.0..=1e12).contains(&x)))
        },
        show: |c| json!(c.optimizer.grad_clip),
        ..RETUNED
    },
    Knob {
        path: "micro_tokens",
        takes: "a whole number from 1 to 16777216",
        default: "4096",
        meaning: "Tokens of one forward and backward pass; one trajectory may be longer.",
        read: |c, v, p| set(&mut c.micro_tokens, small(v, p, 1, 1 << 24)),
        show: |c| json!(c.micro_tokens),
        ..KNOB
    },
    Knob {
        path: "recompute",
        takes: "nothing, feed-forward, layer, or null",
        default: "null",
        meaning: "What the backward computes again instead of keeping it, with the same bits; null: as little as training_budget and the \
                  engine's host budget allow.",
        read: |c, v, p| {
            c.recompute = if v.is_null() { None } else { Some(word(v, p, &RECOMPUTE)?) };
            Ok(())
        },
        show: |c| json!(c.recompute.map(Recompute::name)),
        ..FREE
    },
    Knob {
        path: "training_budget",
        takes: "bytes",
        default: "0",
        meaning: "Bytes that an update may take beside serving, masters and moments included, and of the engine's host budget at that; 0: \
                  no limit of its own.",
        read: |c, v, p| set(&mut c.training_budget, integer(v, p, 0, u64::MAX)),
        show: |c| json!(c.training_budget),
        ..FREE
    },
    Knob {
        path: "lora",
        takes: "null, or {\"rank\", \"alpha\", \"rslora\", \"targets\"}",
        default: "null",
        meaning: "What is trained: null all weights, or an adapter on the projections named, or on all. An object's own defaults: rank 16, \
                  alpha 32, rslora false.",
        read: |c, v, p| set(&mut c.lora, lora::from_json(v, p)),
        show: |c| lora::to_json(c.lora.as_ref()),
        ..KNOB
    },
    Knob {
        path: "kept_revisions",
        takes: "a whole number from 1 to 1024",
        default: "2",
        meaning: "Revisions that may live at once.",
        read: |c, v, p| set(&mut c.kept_revisions, small(v, p, 1, 1024)),
        show: |c| json!(c.kept_revisions),
        ..KNOB
    },
    Knob {
        path: "rollback_revisions",
        takes: "a whole number from 0 to 64",
        default: "0",
        meaning: "Published revisions that are kept to go back to (squire_distiller_rollback), the last ones before the current. They do not \
                  count in kept_revisions, so they keep nobody from publishing; each takes an adapter's bytes, or those of all weights, of \
                  the engine's host budget too.",
        read: |c, v, p| set(&mut c.rollback_revisions, small(v, p, 0, 64)),
        show: |c| json!(c.rollback_revisions),
        ..FREE
    },
    Knob {
        path: "max_turns",
        takes: "a whole number from 1 to 1000000",
        default: "30",
        meaning: "Turn cap of an episode.",
        read: |c, v, p| set(&mut c.max_turns, small(v, p, 1, 1_000_000)),
        show: |c| json!(c.max_turns),
        ..KNOB
    },
    Knob {
        path: "update_kl_tokens",
        takes: "a whole number from 0 to 64",
        default: "64",
        meaning: "Trained tokens, at most, on which a step's KL is measured; 0: it is not.",
        read: |c, v, p| set(&mut c.update_kl_tokens, small(v, p, 0, LOSS_ROWS as u64)),
        show: |c| json!(c.update_kl_tokens),
        ..FREE
    },
    Knob {
        path: "max_update_kl",
        takes: "nats from 0 to 1e12",
        // A whole nat a token: what the student said becomes e times less likely in one step. Steps that teach stay
        // far below (the household's under 0.1).
        default: "1.0",
        meaning: "Nats a token that a step may move the student before the log warns; 0: never.",
        read: |c, v, p| set(&mut c.max_update_kl, nats(v, p)),
        show: |c| json!(c.max_update_kl),
        ..FREE
    },
    Knob {
        path: "refuse_update_kl",
        takes: "nats from 0 to 1e12, or null",
        default: "null",
        meaning: "The same, beyond which publish refuses (squire_distiller_publish_anyway does not), as where the KL is no number; null: half of \
                  what the student knew, the nats a token from what it said to an even guess over the vocabulary, and at least 2; 0: never.",
        read: |c, v, p| set(&mut c.refuse_update_kl, if v.is_null() { Ok(None) } else { nats(v, p).map(Some) }),
        show: |c| json!(c.refuse_update_kl),
        ..FREE
    },
    Knob {
        path: "probe_rows",
        takes: "a whole number from 0 to 64",
        default: "4",
        meaning: "Trained tokens, at most, on which each published revision is compared with what was trained, bit for bit; 0: it is not.",
        read: |c, v, p| set(&mut c.probe_rows, small(v, p, 0, LOSS_ROWS as u64)),
        show: |c| json!(c.probe_rows),
        ..FREE
    },
];

fn set<T>(to: &mut T, read: Result<T>) -> Result<()> {
    *to = read?;
    Ok(())
}

/// A whole number that is kept in 32 bits; `high` is no larger.
fn small(value: &Value, path: &str, low: u64, high: u64) -> Result<u32> {
    integer(value, path, low, high).map(|n| n as u32)
}

fn weight(loss: &mut TurnLoss, value: &Value, path: &str) -> Result<()> {
    set(&mut loss.weight, number(value, path, "a number above 0, at most 1e6", |x| x > 0.0 && x <= 1e6))
}

fn decay(value: &Value, path: &str) -> Result<f64> {
    number(value, path, "a number from 0, below 1", |x| (0.0..1.0).contains(&x))
}

fn nats(value: &Value, path: &str) -> Result<f64> {
    number(value, path, "a number from 0 to 1e12", |x| (0.0..=1e12).contains(&x))
}

fn truth(value: &Value, path: &str) -> Result<bool> {
    value.as_bool().ok_or_else(|| bad(value, path, "true or false"))
}
