//! The settings of a distillation: orthogonal knobs, one JSON document, every value with its origin.
//!
//! A distillation method is a point in a space of few knobs; this file holds the axes that squire
//! builds. Values come in three layers, defaults < preset < document, and each knob remembers which
//! layer set it, so that a run can say why it does what it does. Unknown keys are refused. Schedules
//! and `actor` are replaced as a whole; all other objects merge field by field.
//!
//! | key | values | default |
//! |---|---|---|
//! | `preset` | a name of [`PRESETS`] | none |
//! | `steps` | S, optimiser steps of the run; no update is built beyond, a resumed run may have more | 250 |
//! | `seed` | key of all draws | 42 |
//! | `actor` | `{"kind": "student"}`, `"teacher"`, `"replay"`, or `{"kind": "bernoulli", "beta": schedule}`: who acts | student |
//! | `depth` | schedule, its floor caps the turns rolled in training; `null` for none | null |
//! | `student_turns`, `teacher_turns`, `replay_turns` | `{"kernel": none, reverse-kl, forward-kl, jsd or {"jsd": share}, cross-entropy, sampled-reverse-kl; "weight": above 0}`: loss by actor; `backend/ops/divergence.rs` has the formulas | reverse-kl; none; none; weights 1 |
//! | `tail` | bucket, renormalised, truncated: what a divergence makes of all ids that are none of a teacher's most likely ones | bucket |
//! | `normaliser` | token-mean, sequence-mean, turn-mean | token-mean |
//! | `filter` | none, success: which trajectories are learnt | none |
//! | `max_staleness` | published revisions a trajectory may lag | 2 |
//! | `sampling` | `temperature`, `top_k` (0 off), `top_p` of training rollouts | 1, 0, 1 |
//! | `batch_episodes` | ended episodes that an update takes unless it is told how many | 16 |
//! | `optimizer` | AdamW: `learning_rate` (schedule), `warmup_steps`, `beta1`, `beta2`, `eps`, `weight_decay`, `grad_clip` (0 off) | 1e-6, 0, 0.9, 0.999, 1e-8, 0, 1 |
//! | `micro_tokens` | tokens of one forward and backward pass; one trajectory may be longer | 4096 |
//! | `recompute` | nothing, feed-forward, layer: what the backward computes again instead of keeping it, with the same bits; `null`: as little as `training_budget` allows | null |
//! | `training_budget` | bytes that an update may take beside serving, masters and moments included, and of the engine's host budget at that; 0: no limit of its own | 0 |
//! | `lora` | null: all weights; or `{"rank", "alpha", "rslora", "targets"}`: an adapter on the projections named, or on all | null; 16, 32, false, all |
//! | `kept_revisions` | revisions that may live at once | 2 |
//! | `max_turns` | turn cap of an episode | 30 |
//! | `update_kl_tokens` | trained tokens, at most, on which a step's KL is measured; 0: it is not | 64 |
//! | `max_update_kl` | nats a token that a step may move the student before the log warns; 0 never | 1 |
//! | `refuse_update_kl` | the same, beyond which `publish` refuses; 0 never | 0 |
//!
//! The learning rate at step s is its schedule times min(1, (s + 1) / warmup_steps). Not built, and so
//! refused as unknown: ratio clips, turn weights, reward
//! mixing and groups, replayed prefixes, privileged teacher views.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::document::{bad, fields, integer, join, name_of, number, shorten, word};
use super::knobs::{ActorPolicy, FILTERS, Filter, NORMALISERS, Normaliser, Optimizer, RECOMPUTE, Sampling};
use super::lora;
use super::preset::PRESETS;
use super::schedule::Schedule;
use super::turn_loss::{TAILS, TurnLoss};
use crate::backend::ops::{Loss, Tail};
use crate::error::{Error, Fault, Result};
use crate::model::Lora;
use crate::model::activations::Recompute;
use crate::model::plan::LOSS_ROWS;
use serde_json::{Value, json};

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

/// Every knob by its path in the document, in reading order.
pub const KNOBS: &[&str] = &[
    "steps",
    "seed",
    "actor",
    "depth",
    "student_turns.kernel",
    "student_turns.weight",
    "teacher_turns.kernel",
    "teacher_turns.weight",
    "replay_turns.kernel",
    "replay_turns.weight",
    "tail",
    "normaliser",
    "filter",
    "max_staleness",
    "sampling.temperature",
    "sampling.top_k",
    "sampling.top_p",
    "batch_episodes",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.grad_clip",
    "micro_tokens",
    "recompute",
    "training_budget",
    "lora",
    "kept_revisions",
    "max_turns",
    "update_kl_tokens",
    "max_update_kl",
    "refuse_update_kl",
];

const TOP_KEYS: &[&str] = &[
    "preset",
    "steps",
    "seed",
    "actor",
    "depth",
    "student_turns",
    "teacher_turns",
    "replay_turns",
    "tail",
    "normaliser",
    "filter",
    "max_staleness",
    "sampling",
    "batch_episodes",
    "optimizer",
    "micro_tokens",
    "recompute",
    "training_budget",
    "lora",
    "kept_revisions",
    "max_turns",
    "update_kl_tokens",
    "max_update_kl",
    "refuse_update_kl",
];

const OPTIMIZER_KEYS: &[&str] =
    &["learning_rate", "warmup_steps", "beta1", "beta2", "eps", "weight_decay", "grad_clip"];

/// The resolved settings. The module's text says what each knob means.
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
    /// Over what the loss is averaged.
    pub normaliser: Normaliser,
    /// Which trajectories are learnt.
    pub filter: Filter,
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
    /// Turn cap of an episode.
    pub max_turns: u32,
    /// Trained tokens on which the KL of an update is measured at most; 0: it is not.
    pub update_kl_tokens: u32,
    /// KL of one update, nats a token, above which the log warns; 0: never.
    pub max_update_kl: f64,
    /// The same above which `publish` refuses; 0: never.
    pub refuse_update_kl: f64,
    origins: [Origin; KNOBS.len()],
}

impl Default for Config {
    fn default() -> Config {
        Config {
            preset: None,
            steps: 250,
            seed: 42,
            actor: ActorPolicy::Student,
            depth: None,
            student_turns: TurnLoss { kind: Some(Loss::ReverseKl), weight: 1.0 },
            teacher_turns: TurnLoss::NONE,
            replay_turns: TurnLoss::NONE,
            tail: Tail::Bucket,
            normaliser: Normaliser::TokenMean,
            filter: Filter::None,
            max_staleness: 2,
            sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
            batch_episodes: 16,
            optimizer: Optimizer {
                learning_rate: Schedule::fixed(1e-6),
                warmup_steps: 0,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
                grad_clip: 1.0,
            },
            micro_tokens: 4096,
            recompute: None,
            training_budget: 0,
            lora: None,
            kept_revisions: 2,
            max_turns: 30,
            update_kl_tokens: 64,
            // A whole nat a token: what the student said becomes e times less likely in one step. Steps that teach stay
            // far below (the household's under 0.1).
            max_update_kl: 1.0,
            refuse_update_kl: 0.0,
            origins: [Origin::Default; KNOBS.len()],
        }
    }
}

impl Config {
    /// Reads a document. [`Fault::BadJson`], [`Fault::UnknownKey`], [`Fault::BadValue`], [`Fault::UnknownPreset`];
    /// [`Fault::UnsupportedMethod`] where no turn would ever carry loss.
    pub fn from_json(text: &str) -> Result<Config> {
        let document = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the distillation settings are not JSON: {e}")))?;
        Config::from_value(&document)
    }

    /// The same from parsed JSON.
    pub fn from_value(document: &Value) -> Result<Config> {
        let mut config = Config::default();
        if let Some(asked) = document.get("preset") {
            let asked = asked.as_str().ok_or_else(|| bad(asked, "preset", "a preset's name"))?;
            let found = PRESETS.iter().find(|(name, _)| *name == asked);
            let &(name, text) = found.ok_or_else(|| {
                let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
                let message = format!("preset {} is not known; known are {}", shorten(asked), names.join(", "));
                Error::new(Fault::UnknownPreset, message)
            })?;
            let settings = serde_json::from_str(text)
                .map_err(|e| Error::new(Fault::BadJson, format!("preset {name} is not JSON: {e}")))?;
            config.layer(&settings, Origin::Preset(name)).map_err(|e| e.within(format_args!("preset {name}")))?;
            config.preset = Some(name);
        }
        config.layer(document, Origin::Given)?;
        config.check_that_something_is_learnt()?;
        config.student_turns.check_of_student(config.sampling)?;
        config.teacher_turns.check_of_others("teacher_turns")?;
        config.replay_turns.check_of_others("replay_turns")?;
        let bounds = [("refuse_update_kl", config.refuse_update_kl), ("max_update_kl", config.max_update_kl)];
        for (knob, bound) in bounds {
            let is_asked_for = bound > 0.0 && config.origin(knob) != Some(Origin::Default);
            if is_asked_for && config.update_kl_tokens == 0 {
                let why = format!("{knob}: wanted 0, or update_kl_tokens above 0, without which no step's KL is known");
                return Err(Error::new(Fault::BadValue, why));
            }
        }
        Ok(config)
    }

    /// A preset on its own; [`Fault::UnknownPreset`].
    pub fn preset(name: &str) -> Result<Config> {
        Config::from_value(&json!({ "preset": name }))
    }

    /// The resolved document: every knob, no preset. Reading it gives the same settings, so it is what
    /// a checkpoint compares.
    pub fn to_json(&self) -> Value {
        let (sampling, optimizer) = (&self.sampling, &self.optimizer);
        json!({
            "steps": self.steps,
            "seed": self.seed,
            "actor": self.actor.to_json(),
            "depth": self.depth.map(|depth| depth.to_json()),
            "student_turns": self.student_turns.to_json(),
            "teacher_turns": self.teacher_turns.to_json(),
            "replay_turns": self.replay_turns.to_json(),
            "tail": name_of(self.tail, TAILS),
            "normaliser": name_of(self.normaliser, NORMALISERS),
            "filter": name_of(self.filter, FILTERS),
            "max_staleness": self.max_staleness,
            "sampling": {
                "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
            },
            "batch_episodes": self.batch_episodes,
            "optimizer": {
                "learning_rate": optimizer.learning_rate.to_json(),
                "warmup_steps": optimizer.warmup_steps,
                "beta1": optimizer.beta1,
                "beta2": optimizer.beta2,
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                "grad_clip": optimizer.grad_clip,
            },
            "micro_tokens": self.micro_tokens,
            "recompute": self.recompute.map(Recompute::name),
            "training_budget": self.training_budget,
            "lora": lora::to_json(self.lora.as_ref()),
            "kept_revisions": self.kept_revisions,
            "max_turns": self.max_turns,
            "update_kl_tokens": self.update_kl_tokens,
            "max_update_kl": self.max_update_kl,
            "refuse_update_kl": self.refuse_update_kl,
        })
    }

    /// Which layer set the knob at `path` (one of [`KNOBS`]).
    pub fn origin(&self, path: &str) -> Option<Origin> {
        KNOBS.iter().position(|knob| *knob == path).map(|i| self.origins[i])
    }

    /// The loss of a turn of `actor`.
    pub fn loss_of(&self, actor: Actor) -> TurnLoss {
        match actor {
            Actor::Student => self.student_turns,
            Actor::Teacher => self.teacher_turns,
            Actor::Replay => self.replay_turns,
        }
    }

    /// The probability that the teacher acts in a training turn of step `step`.
    pub fn beta_at(&self, step: u64) -> f64 {
        match self.actor {
            ActorPolicy::Bernoulli { beta } => beta.value(step, self.steps),
            ActorPolicy::Teacher => 1.0,
            ActorPolicy::Student | ActorPolicy::Replay => 0.0,
        }
    }

    /// The cap on turns rolled in training at step `step`; `u32::MAX` without a curriculum.
    pub fn depth_at(&self, step: u64) -> u32 {
        self.depth.map_or(u32::MAX, |depth| depth.value(step, self.steps) as u32)
    }

    /// Notes the layer that set the knob at `path`; a path that is no knob of its own (`optimizer`) is passed over.
    pub(super) fn mark(&mut self, path: &str, origin: Origin) {
        if let Some(i) = KNOBS.iter().position(|knob| *knob == path) {
            self.origins[i] = origin;
        }
    }

    /// Lays the keys of `document` over the settings.
    fn layer(&mut self, document: &Value, origin: Origin) -> Result<()> {
        for (key, value) in fields(document, "", TOP_KEYS)? {
            let path = key.as_str();
            match path {
                "steps" => self.steps = integer(value, path, 1, 1_000_000_000)?,
                "seed" => self.seed = integer(value, path, 0, u64::MAX)?,
                "actor" => self.actor = ActorPolicy::from_json(value, path)?,
                "depth" => self.depth = depth(value, path)?,
                "student_turns" | "teacher_turns" | "replay_turns" => self.layer_turns(value, path, origin)?,
                "tail" => self.tail = word(value, path, TAILS)?,
                "normaliser" => self.normaliser = word(value, path, NORMALISERS)?,
                "filter" => self.filter = word(value, path, FILTERS)?,
                "max_staleness" => self.max_staleness = integer(value, path, 0, 1_000_000)?,
                "sampling" => self.layer_sampling(value, path, origin)?,
                "batch_episodes" => self.batch_episodes = integer(value, path, 1, 65_536)? as u32,
                "optimizer" => self.layer_optimizer(value, path, origin)?,
                "micro_tokens" => self.micro_tokens = integer(value, path, 1, 1 << 24)? as u32,
                "recompute" if value.is_null() => self.recompute = None,
                "recompute" => self.recompute = Some(word(value, path, &RECOMPUTE)?),
                "training_budget" => self.training_budget = integer(value, path, 0, u64::MAX)?,
                "lora" => self.lora = lora::from_json(value, path)?,
                "kept_revisions" => self.kept_revisions = integer(value, path, 1, 1024)? as u32,
                "max_turns" => self.max_turns = integer(value, path, 1, 1_000_000)? as u32,
                "update_kl_tokens" => self.update_kl_tokens = integer(value, path, 0, LOSS_ROWS as u64)? as u32,
                "max_update_kl" => self.max_update_kl = nats(value, path)?,
                "refuse_update_kl" => self.refuse_update_kl = nats(value, path)?,
                _ => {} // "preset", which was read before; other keys were refused
            }
            self.mark(path, origin);
        }
        Ok(())
    }

    fn layer_turns(&mut self, value: &Value, path: &str, origin: Origin) -> Result<()> {
        for (key, value) in fields(value, path, &["kernel", "weight"])? {
            let knob = join(path, key);
            let loss = match path {
                "student_turns" => &mut self.student_turns,
                "teacher_turns" => &mut self.teacher_turns,
                _ => &mut self.replay_turns,
            };
            match key.as_str() {
                "kernel" => loss.set_kernel(value, &knob)?,
                _ => loss.weight = number(value, &knob, "a number above 0, at most 1e6", |x| x > 0.0 && x <= 1e6)?,
            }
            self.mark(&knob, origin);
        }
        Ok(())
    }

    fn layer_sampling(&mut self, value: &Value, path: &str, origin: Origin) -> Result<()> {
        for (key, value) in fields(value, path, &["temperature", "top_k", "top_p"])? {
            let (knob, sampling) = (join(path, key), &mut self.sampling);
            match key.as_str() {
                "temperature" => {
                    let wanted = "a number from 0 to 100";
                    sampling.temperature = number(value, &knob, wanted, |x| (0.0..=100.0).contains(&x))?;
                }
                "top_k" => sampling.top_k = integer(value, &knob, 0, u64::from(u32::MAX))? as u32,
                _ => {
                    let wanted = "a number above 0, at most 1";
                    sampling.top_p = number(value, &knob, wanted, |x| x > 0.0 && x <= 1.0)?;
                }
            }
            self.mark(&knob, origin);
        }
        Ok(())
    }

    fn layer_optimizer(&mut self, value: &Value, path: &str, origin: Origin) -> Result<()> {
        for (key, value) in fields(value, path, OPTIMIZER_KEYS)? {
            let (knob, optimizer) = (join(path, key), &mut self.optimizer);
            let decay = |value| number(value, &knob, "a number from 0, below 1", |x| (0.0..1.0).contains(&x));
            match key.as_str() {
                "learning_rate" => optimizer.learning_rate = Schedule::within(value, &knob, 0.0, 10.0)?,
                "warmup_steps" => optimizer.warmup_steps = integer(value, &knob, 0, 1_000_000_000)?,
                "beta1" => optimizer.beta1 = decay(value)?,
                "beta2" => optimizer.beta2 = decay(value)?,
                "eps" => {
                    // Smaller ones are 0 in f32, and where there is no gradient 0 / 0 is no number.
                    let wanted = "a number from 1e-30 to 1";
                    optimizer.eps = number(value, &knob, wanted, |x| (1e-30..=1.0).contains(&x))?;
                }
                "weight_decay" => {
                    let wanted = "a number from 0 to 1";
                    optimizer.weight_decay = number(value, &knob, wanted, |x| (0.0..=1.0).contains(&x))?;
                }
                _ => {
                    optimizer.grad_clip =
                        number(value, &knob, "a number from 0 to 1e12", |x| (0.0..=1e12).contains(&x))?
                }
            }
            self.mark(&knob, origin);
        }
        Ok(())
    }

    /// Whether the policy has the teacher act.
    pub fn lets_teacher_act(&self) -> bool {
        matches!(self.actor, ActorPolicy::Teacher | ActorPolicy::Bernoulli { .. })
    }

    /// Whether a run under these settings asks for a teacher: to act, or to score turns of an actor that the policy has.
    pub fn needs_teacher(&self) -> bool {
        let actors = match self.actor {
            ActorPolicy::Teacher | ActorPolicy::Bernoulli { .. } => &[][..],
            ActorPolicy::Student => &[Actor::Student, Actor::Teacher][..],
            ActorPolicy::Replay => &[Actor::Replay][..],
        };
        self.lets_teacher_act() || actors.iter().any(|&actor| self.loss_of(actor).needs_teacher())
    }

    /// Refuses settings under which every actor that the policy can choose carries no loss.
    fn check_that_something_is_learnt(&self) -> Result<()> {
        let (kind, actors): (_, &[Actor]) = match self.actor {
            ActorPolicy::Student => ("student", &[Actor::Student]),
            ActorPolicy::Teacher => ("teacher", &[Actor::Teacher]),
            ActorPolicy::Replay => ("replay", &[Actor::Replay, Actor::Teacher]),
            ActorPolicy::Bernoulli { .. } => ("bernoulli", &[Actor::Student, Actor::Teacher]),
        };
        if actors.iter().any(|&actor| self.loss_of(actor).kind.is_some()) {
            return Ok(());
        }
        let turns: Vec<_> = actors.iter().map(|actor| format!("{}_turns.kernel", actor.name())).collect();
        let message = format!("no turn would carry loss: actor {kind} with {} none", turns.join(" and "));
        Err(Error::new(Fault::UnsupportedMethod, message))
    }
}

fn nats(value: &Value, path: &str) -> Result<f64> {
    number(value, path, "a number from 0 to 1e12", |x| (0.0..=1e12).contains(&x))
}

fn depth(value: &Value, path: &str) -> Result<Option<Schedule>> {
    if value.is_null() { Ok(None) } else { Schedule::within(value, path, 1.0, 1_000_000.0).map(Some) }
}
