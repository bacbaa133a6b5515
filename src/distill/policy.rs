//! Who acts in a turn, and why. Pure arithmetic on the settings and one counter-keyed draw: no model,
//! no allocation, the same answer for the same (seed, episode, turn, step) whenever it is asked.
//!
//! The draw has a stream of its own, so that guided distillation with beta 0 takes the very samples
//! of plain on-policy distillation. The step of an episode is the step at its begin: beta and depth
//! are the same for all its turns, as in arXiv 2606.15912. The order of the rules is the order of the code:
//! turn cap, evaluation, host override, depth cap, actor policy.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::config::Config;
use super::knobs::ActorPolicy;
use crate::error::{Error, Fault, Result};
use crate::random::{Stream, below, uniform};

/// Stands for the turn in the key of a draw that is the episode's.
const OF_THE_EPISODE: u64 = u64::MAX;

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
    /// The teacher's turn, but its tokens until the next update are spent.
    TeacherSpent = 9,
    /// The student proposes; what it said is judged before it counts.
    Proposal = 10,
    /// What the student proposed stands.
    ProposalStands = 11,
    /// What the student proposed is too uncertain, so the teacher takes the turn.
    ProposalReplaced = 12,
    /// The teacher's turn, but it failed to take it.
    TeacherFailed = 13,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Reason; 13] = [
        Reason::Method,
        Reason::Curriculum,
        Reason::DepthCap,
        Reason::HostOverride,
        Reason::Evaluation,
        Reason::TeacherNotAble,
        Reason::ReplayEnded,
        Reason::TurnCap,
        Reason::TeacherSpent,
        Reason::Proposal,
        Reason::ProposalStands,
        Reason::ProposalReplaced,
        Reason::TeacherFailed,
    ];

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
            Reason::Proposal => "the student proposes, and what it says is judged",
            Reason::ProposalStands => "what the student proposed stands",
            Reason::ProposalReplaced => "what the student proposed is too uncertain, so the teacher takes the turn",
            Reason::TeacherFailed => "it is the teacher's turn, but the teacher failed to take it, so the student acts",
            Reason::TeacherSpent => {
                "it is the teacher's turn, but its tokens until the next update are spent, so the student acts"
            }
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
    /// Turns of the stored demonstration; 0 without one.
    pub demonstration: u32,
    /// Whether the teacher may say no more until the next update.
    pub teacher_spent: bool,
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
            train_on_this: !input.evaluation && within_depth && config.loss_of(actor).kind.is_some(),
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
        ActorPolicy::Switch { from, to } => {
            // One draw an episode, by a key that no turn has.
            let key = [input.seed, input.episode, OF_THE_EPISODE, input.step];
            let turn = u64::from(from) + below(Stream::Actor, &key, u64::from(to - from) + 1);
            (u64::from(input.turn) >= turn, Reason::Curriculum)
        }
        ActorPolicy::Prefix { withdrawn } => {
            let withdrawn = withdrawn.value(input.step, config.steps) as u32;
            let replayed = input.demonstration.saturating_sub(1).saturating_sub(withdrawn);
            let actor = if input.turn < replayed { Actor::Replay } else { Actor::Student };
            return Ok(act(actor, Reason::Curriculum));
        }
        ActorPolicy::Mixture { replay } => {
            let key = [input.seed, input.episode, OF_THE_EPISODE, input.step];
            let share = replay.value(input.step, config.steps) as f32;
            match (uniform(Stream::Actor, &key) < share, input.replay_available) {
                (true, true) => return Ok(act(Actor::Replay, Reason::Curriculum)),
                (true, false) => return Ok(stop(Reason::ReplayEnded)),
                (false, _) => (false, Reason::Curriculum),
            }
        }
        ActorPolicy::Proposal(_) if input.has_teacher && !input.teacher_spent => {
            return Ok(act(Actor::Student, Reason::Proposal));
        }
        ActorPolicy::Proposal(_) => (true, Reason::Proposal),
        ActorPolicy::Replay if input.replay_available => return Ok(act(Actor::Replay, Reason::Method)),
        ActorPolicy::Replay if input.has_teacher && config.teacher_turns.kind.is_some() => {
            return Ok(act(Actor::Teacher, Reason::ReplayEnded));
        }
        ActorPolicy::Replay => return Ok(stop(Reason::ReplayEnded)),
    };
    Ok(match (wants_teacher, input.has_teacher) {
        (false, _) => act(Actor::Student, reason),
        (true, true) if input.teacher_spent => act(Actor::Student, Reason::TeacherSpent),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const INPUT: DecideInput = DecideInput {
        seed: 42,
        episode: 3,
        turn: 0,
        step: 0,
        evaluation: false,
        has_teacher: true,
        replay_available: false,
        demonstration: 0,
        teacher_spent: false,
        asked: None,
        max_turns: 30,
    };

    fn config(document: Value) -> Config {
        Config::from_value(&document).unwrap()
    }

    fn bernoulli(beta: f64) -> Config {
        config(json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": beta}}))
    }

    fn outcome(config: &Config, input: DecideInput) -> (Option<Actor>, Reason, bool) {
        let decision = decide(config, &input).unwrap();
        (decision.actor, decision.reason, decision.train_on_this)
    }

    fn refusal(config: &Config, input: DecideInput) -> String {
        let e = decide(config, &input).unwrap_err();
        assert_eq!(e.fault(), Fault::BadOption);
        e.message().to_string()
    }

    #[test]
    fn the_teacher_acts_as_often_as_beta_says() {
        for beta in [0.0, 0.25, 0.854, 1.0] {
            let config = bernoulli(beta);
            let teacher_turns = (0..20_000u64)
                .filter(|&i| {
                    let input = DecideInput { episode: i / 20, turn: (i % 20) as u32, step: i / 640, ..INPUT };
                    outcome(&config, input).0 == Some(Actor::Teacher)
                })
                .count();
            // One standard deviation of the share is at most 0.0036; five of them are a defect.
            assert!((teacher_turns as f64 / 20_000.0 - beta).abs() < 0.018, "{beta}: {teacher_turns}");
            if beta == 0.0 || beta == 1.0 {
                assert_eq!(teacher_turns, (20_000.0 * beta) as usize);
            }
        }
    }

    #[test]
    fn every_word_of_the_key_changes_the_draws() {
        let config = bernoulli(0.5);
        let draws = |change: fn(&mut DecideInput)| -> Vec<_> {
            let decision = |turn| {
                let mut input = DecideInput { turn, max_turns: 1000, ..INPUT };
                change(&mut input);
                outcome(&config, input).0
            };
            (0..64).map(decision).collect()
        };
        let base = draws(|_| {});
        assert_eq!(base, draws(|_| {}));
        assert_ne!(base, draws(|input| input.seed += 1));
        assert_ne!(base, draws(|input| input.episode += 1));
        assert_ne!(base, draws(|input| input.step += 1));
        assert_ne!(base, draws(|input| input.turn += 1));
    }

    #[test]
    fn probability_is_the_beta_drawn_against() {
        let guided = config(json!({"preset": "guided-opd"}));
        let at = |step| decide(&guided, &DecideInput { step, ..INPUT }).unwrap().probability;
        assert_eq!([at(0), at(100), at(200), at(249)], [1.0, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn the_depth_cap_ends_the_rollout_and_counts_in_the_horizon() {
        let f2b = config(json!({"preset": "tcod-f2b"}));
        let at = |step, turn| decide(&f2b, &DecideInput { step, turn, ..INPUT }).unwrap();
        assert_eq!((at(5, 0).actor, at(5, 0).horizon), (Some(Actor::Student), 1));
        assert_eq!((at(5, 1).actor, at(5, 1).reason, at(5, 1).horizon), (None, Reason::DepthCap, 0));
        assert_eq!((at(6, 1).actor, at(6, 1).horizon, at(6, 2).actor), (Some(Actor::Student), 1, None));
        assert_eq!((at(240, 0).horizon, at(240, 29).horizon, at(240, 30).reason), (30, 1, Reason::TurnCap));
    }

    #[test]
    fn an_evaluation_is_the_students_to_the_turn_cap_and_not_trained() {
        let sft = config(json!({"preset": "sft"}));
        let f2b = config(json!({"preset": "tcod-f2b"}));
        for config in [sft, f2b, bernoulli(1.0)] {
            let evaluation = DecideInput { evaluation: true, turn: 29, replay_available: true, ..INPUT };
            assert_eq!(outcome(&config, evaluation), (Some(Actor::Student), Reason::Evaluation, false));
            let beyond = DecideInput { turn: 30, ..evaluation };
            assert_eq!(outcome(&config, beyond), (None, Reason::TurnCap, false));
        }
    }

    #[test]
    fn without_a_teacher_the_student_takes_its_turns() {
        let input = DecideInput { has_teacher: false, ..INPUT };
        let wanted = (Some(Actor::Student), Reason::TeacherNotAble, true);
        assert_eq!(outcome(&bernoulli(1.0), input), wanted);
        let teacher = config(json!({"actor": {"kind": "teacher"}, "teacher_turns": {"kernel": "cross-entropy"}}));
        assert_eq!(outcome(&teacher, input), wanted);
        assert_eq!(outcome(&teacher, INPUT), (Some(Actor::Teacher), Reason::Method, true));
    }

    #[test]
    fn where_a_demonstration_ends_the_teacher_goes_on_if_its_turns_are_trained() {
        let sft = config(json!({"preset": "sft"}));
        let replay = DecideInput { replay_available: true, ..INPUT };
        assert_eq!(outcome(&sft, replay), (Some(Actor::Replay), Reason::Method, true));
        assert_eq!(outcome(&sft, INPUT), (Some(Actor::Teacher), Reason::ReplayEnded, true));
        let alone = DecideInput { has_teacher: false, ..INPUT };
        assert_eq!(outcome(&sft, alone), (None, Reason::ReplayEnded, false));
        let only = config(json!({"preset": "sft", "teacher_turns": {"kernel": "none"}}));
        assert_eq!(outcome(&only, INPUT), (None, Reason::ReplayEnded, false));
    }

    #[test]
    fn an_override_wins_over_the_curriculum_but_is_not_trained_beyond_its_depth() {
        let asked = DecideInput { asked: Some(Actor::Student), ..INPUT };
        assert_eq!(outcome(&bernoulli(1.0), asked), (Some(Actor::Student), Reason::HostOverride, true));
        let f2b = config(json!({"preset": "tcod-f2b"}));
        let beyond = DecideInput { turn: 4, ..asked };
        assert_eq!(outcome(&f2b, beyond), (Some(Actor::Student), Reason::HostOverride, false));
        assert_eq!(decide(&f2b, &beyond).unwrap().horizon, 26);
        let silent = DecideInput { asked: Some(Actor::Teacher), ..INPUT };
        assert_eq!(outcome(&f2b, silent), (Some(Actor::Teacher), Reason::HostOverride, false));
        assert_eq!(outcome(&f2b, DecideInput { turn: 30, ..asked }), (None, Reason::TurnCap, false));
    }

    #[test]
    fn an_override_to_an_actor_that_is_not_there_is_refused() {
        let config = bernoulli(0.5);
        let teacher = DecideInput { asked: Some(Actor::Teacher), has_teacher: false, ..INPUT };
        assert_eq!(refusal(&config, teacher), "override to teacher refused: the episode has no teacher that can act");
        let replay = DecideInput { asked: Some(Actor::Replay), ..INPUT };
        assert_eq!(
            refusal(&config, replay),
            "override to replay refused: no demonstration has an action for this turn"
        );
        let evaluation = DecideInput { asked: Some(Actor::Teacher), evaluation: true, ..INPUT };
        assert!(refusal(&config, evaluation).ends_with("an evaluation episode is the student's alone"));
        let student = DecideInput { asked: Some(Actor::Student), ..evaluation };
        assert_eq!(outcome(&config, student).1, Reason::Evaluation);
    }

    #[test]
    fn extreme_inputs_do_not_fail() {
        for config in [bernoulli(0.5), config(json!({"preset": "tcod-f2b"})), config(json!({"preset": "sft"}))] {
            for (turn, max_turns) in [(0, 0), (u32::MAX, u32::MAX), (u32::MAX - 1, u32::MAX), (0, u32::MAX)] {
                let input = DecideInput { turn, max_turns, step: u64::MAX, episode: u64::MAX, ..INPUT };
                let decision = decide(&config, &input).unwrap();
                assert_eq!(decision.actor.is_some(), decision.horizon > 0);
            }
        }
    }
}
