//! Who acts in a turn, and why. Pure arithmetic on the settings and one counter-keyed draw: no model,
//! no allocation, the same answer for the same (seed, episode, turn, step) whenever it is asked.
//!
//! The draw has a stream of its own, so that guided distillation with beta 0 takes the very samples
//! of plain on-policy distillation. The step of an episode is the step at its begin: beta and depth
//! are the same for all its turns, as in arXiv 2606.15912. The order of the rules is the order of the code:
//! turn cap, evaluation, host override, depth cap, actor policy.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::config::{ActorPolicy, Config, Kernel};
use crate::error::{Error, Fault, Result};
use crate::random::{Stream, uniform};

/// Why a decision fell as it did. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Reason {
    /// The method always lets this actor act.
    Method = 1,
    /// Drawn against the teacher's scheduled share.
    Curriculum = 2,
    /// The depth curriculum ends the rollout here.
    DepthCap = 3,
    /// The host asked for this actor.
    HostOverride = 4,
    /// Evaluation episodes are the student's alone.
    Evaluation = 5,
    /// The teacher's turn, but there is no teacher.
    TeacherNotAble = 6,
    /// The demonstration has no action for this turn.
    ReplayEnded = 7,
    /// The episode's turn cap is reached.
    TurnCap = 8,
}

impl Reason {
    /// One sentence for people.
    pub fn text(self) -> &'static str {
        match self {
            Reason::Method => "the method always lets this actor act",
            Reason::Curriculum => "drawn against the teacher's share at this step",
            Reason::DepthCap => "the depth curriculum ends the rollout here",
            Reason::HostOverride => "the host asked for this actor",
            Reason::Evaluation => "an evaluation episode is the student's alone",
            Reason::TeacherNotAble => "it is the teacher's turn, but there is no teacher, so the student acts",
            Reason::ReplayEnded => "the demonstration has no action for this turn",
            Reason::TurnCap => "the episode's turn cap is reached",
        }
    }
}

/// What a decision depends on, besides the settings.
#[derive(Clone, Copy, Debug)]
pub struct DecideInput {
    /// Seed of the distillation.
    pub seed: u64,
    /// Identity of the episode.
    pub episode: u64,
    /// The turn to be decided, counted from 0.
    pub turn: u32,
    /// The step at which the episode began.
    pub step: u64,
    /// Whether the episode is an evaluation.
    pub evaluation: bool,
    /// Whether a teacher can act.
    pub has_teacher: bool,
    /// Whether a demonstration has an action for this turn.
    pub replay_available: bool,
    /// The actor that the host asks for.
    pub asked: Option<Actor>,
    /// Turn cap of the episode.
    pub max_turns: u32,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Who acts; `None` ends the rollout here.
    pub actor: Option<Actor>,
    /// Why.
    pub reason: Reason,
    /// Whether the turn's tokens will carry loss.
    pub train_on_this: bool,
    /// Turns left to the cap in force, this one included; 0 when the rollout ends.
    pub horizon: u32,
    /// The teacher's probability that the draw was held against (0 in evaluation).
    pub probability: f32,
}

/// Decides the turn. An override wins over the curriculum (turns beyond the depth cap then carry no loss),
/// not over the turn cap. [`Fault::BadOption`] where the host asks for an actor that the episode does not have.
pub fn decide(config: &Config, input: &DecideInput) -> Result<Decision> {
    let probability = if input.evaluation { 0.0 } else { config.beta_at(input.step) as f32 };
    let depth = if input.evaluation { u32::MAX } else { config.depth_at(input.step) };
    let within_depth = input.turn < depth;
    let stop = |reason| Decision { actor: None, reason, train_on_this: false, horizon: 0, probability };
    let act = |actor: Actor, reason| {
        let cap = if within_depth { input.max_turns.min(depth) } else { input.max_turns };
        Decision {
            actor: Some(actor),
            reason,
            train_on_this: !input.evaluation && within_depth && config.loss_of(actor).kernel != Kernel::None,
            horizon: cap - input.turn, // the turn cap was checked first
            probability,
        }
    };

    check_override(input)?;
    if input.turn >= input.max_turns {
        return Ok(stop(Reason::TurnCap));
    }
    if input.evaluation {
        return Ok(act(Actor::Student, Reason::Evaluation));
    }
    if let Some(actor) = input.asked {
        return Ok(act(actor, Reason::HostOverride));
    }
    if !within_depth {
        return Ok(stop(Reason::DepthCap));
    }
    let (wants_teacher, reason) = match config.actor {
        ActorPolicy::Student => (false, Reason::Method),
        ActorPolicy::Teacher => (true, Reason::Method),
        ActorPolicy::Bernoulli { .. } => {
            let key = [input.seed, input.episode, u64::from(input.turn), input.step];
            (uniform(Stream::Actor, &key) < probability, Reason::Curriculum)
        }
        ActorPolicy::Replay if input.replay_available => return Ok(act(Actor::Replay, Reason::Method)),
        ActorPolicy::Replay if input.has_teacher && config.teacher_turns.kernel != Kernel::None => {
            return Ok(act(Actor::Teacher, Reason::ReplayEnded));
        }
        ActorPolicy::Replay => return Ok(stop(Reason::ReplayEnded)),
    };
    Ok(match (wants_teacher, input.has_teacher) {
        (false, _) => act(Actor::Student, reason),
        (true, true) => act(Actor::Teacher, reason),
        (true, false) => act(Actor::Student, Reason::TeacherNotAble),
    })
}

fn check_override(input: &DecideInput) -> Result<()> {
    let lacking = match input.asked {
        Some(Actor::Teacher | Actor::Replay) if input.evaluation => "an evaluation episode is the student's alone",
        Some(Actor::Teacher) if !input.has_teacher => "the episode has no teacher that can act",
        Some(Actor::Replay) if !input.replay_available => "no demonstration has an action for this turn",
        _ => return Ok(()),
    };
    let asked = input.asked.map_or("", Actor::name);
    Err(Error::new(Fault::BadOption, format!("override to {asked} refused: {lacking}")))
}
