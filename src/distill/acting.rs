//! Who was decided upon acts: the student, a teacher that is a model, or the host's teacher, which is asked through its queue.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::actor::Actor;
use super::asked_turn::AskedTurn;
use super::conversation::Conversation;
use super::episode::{Episode, Phase, Sessions, State, out_of_order, stepped_in};
use super::policy::Decision;
use super::spoken::Spoken;
use super::teacher_queue::TeacherQueue;
use super::teacher_request::Asker;
use super::teacher_turn::{Place, TurnWanted};
use super::trajectory::Heading;
use super::turn_end::Asked;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::random::{Stream, bits};
use crate::serve::{Controls, Ending, Generation, GenerationOptions, Opening, ServedModel};
use crate::text::source::Source;

impl Episode {
    /// Starts the decided actor's turn. Temperature and cuts come from the settings in training and from
    /// `options` in evaluation; seed and author are the episode's own in both. The generation's ids are
    /// the turn. After a cancelled or failed generation `act` may be called again and goes on from where it stopped.
    pub fn act(&self, options: &GenerationOptions) -> Result<Generation> {
        let mut state = self.state.lock();
        let decision = match state.phase()? {
            Phase::Decided(decision) | Phase::Acting(decision) | Phase::Broken(decision) => decision,
            phase => return Err(out_of_order("act", phase)),
        };
        let teacher_acts = match decision.actor {
            Some(Actor::Student) => false,
            Some(Actor::Teacher) => true,
            _ => return Err(out_of_order("act", state.phase)),
        };
        let heading = &state.trajectory.heading;
        let config = self.distiller.config();
        let (episode, turn) = (heading.episode, u64::from(state.turn));
        let seed = match heading.evaluation {
            false => bits(Stream::Rollout, &[config.seed, heading.step, episode, turn, 0]),
            // Evaluations draw alike at every step, so that what differs is the student.
            true => bits(Stream::Rollout, &[config.seed, episode, turn, 1]),
        };
        let training = Sampling {
            temperature: config.sampling.temperature as f32,
            top_k: config.sampling.top_k,
            top_p: config.sampling.top_p as f32,
        };
        let own = state.student()?.model().clone();
        if !heading.evaluation {
            refuse_controls(&options.controls, &own)?;
        }
        let mut options = GenerationOptions {
            sampling: if heading.evaluation { options.sampling } else { training },
            controls: if heading.evaluation { options.controls.clone() } else { Controls::default() },
            seed,
            source: if teacher_acts { Source::Teacher } else { Source::Student },
            // What one says in training the other must be able to read.
            vocabulary: if heading.evaluation { 0 } else { self.distiller.vocabulary_to_draw_from(teacher_acts) },
            ..options.clone()
        };
        options.check(own.config().vocab_size)?;
        if let (true, Some(queue)) = (teacher_acts, self.distiller.acting_queue()) {
            return self.ask_host(queue, &mut state, decision, options);
        }
        let start = state.begin_turn()?;
        let Sessions { student, teacher } = state.sessions()?;
        let actor = match teacher {
            Some(teacher) if teacher_acts => {
                state.shown.catch_up(teacher, student)?;
                teacher
            }
            _ => student,
        };
        let max_tokens = options.max_tokens;
        state.shown.fit_both(student, (actor, teacher_acts), start, &mut options)?;
        let start = if teacher_acts { state.shown.view.position(start) } else { start };
        if let Some(last) = actor.tokens()?.get(start..).and_then(|said| said.last()) {
            let model_stops = actor.model().stop_ids().contains(&last.id) && !options.ignore_model_stops;
            let string_stops = state.ending.as_ref().is_some_and(Ending::was_ended_by_a_string);
            if model_stops || string_stops || options.stop_ids.contains(&last.id) {
                return Err(out_of_order("act", state.phase));
            }
        }
        let asked = Asked::new(&options, max_tokens, options.max_tokens);
        let generation = actor.generate(options)?;
        (state.ending, state.asked) = (Some(generation.ending()), asked);
        state.phase = Phase::Acting(decision);
        Ok(generation)
    }

    /// Asks the host's teacher for the turn.
    fn ask_host(
        &self,
        queue: &TeacherQueue,
        state: &mut State,
        decision: Decision,
        options: GenerationOptions,
    ) -> Result<Generation> {
        if matches!(state.phase, Phase::Acting(_)) {
            // What it said is the turn, and a whole one.
            return Err(out_of_order("act", state.phase));
        }
        let start = state.begin_turn()?;
        let student = state.student()?;
        let (model, tokens, seed) = (student.model().clone(), student.tokens()?, options.seed);
        if !options.stop_strings.is_empty() {
            model.tokenizer().map_err(|e| e.within("generation options: stop_strings"))?;
        }
        let room = model.model().max_context().saturating_sub(start);
        if room == 0 {
            let why = format!("the episode has {start} tokens and the student's context holds no more");
            return Err(Error::new(Fault::ContextFull, why));
        }
        let own = if options.ignore_model_stops { &[][..] } else { model.stop_ids() };
        let mut stop_ids = own.to_vec();
        stop_ids.extend_from_slice(&options.stop_ids);
        let most = if options.max_tokens == 0 { room } else { options.max_tokens.min(room) };
        let (limits, until, cancel) =
            (Asked::new(&options, options.max_tokens, most), options.until(), options.stopping());
        let turn = TurnWanted {
            max_tokens: most,
            sampling: options.sampling,
            seed: options.seed,
            stop_ids,
            stop_strings: options.stop_strings,
            until,
            messages: state.conversation.as_ref().and_then(Conversation::to_text),
        };
        let spoken = Spoken::new(&model, state.prompt(), tokens.iter().map(|token| token.id).collect());
        let place = Place { position: start, room, spoken };
        let Heading { episode, step, revision, .. } = state.trajectory.heading;
        let asker = Asker { distiller: self.distiller.number(), episode, step, revision };
        let ids: Vec<i32> = state.shown.tokens(&tokens)?.iter().map(|token| token.id).collect();
        let opening = Opening::behind(&ids, model.shared_tokenizer().as_deref(), &Arc::default())?;
        let asked = AskedTurn::new(queue, asker, (ids, self.distiller.vocabulary()), (turn, place), cancel);
        let asked = Arc::new(asked.inspect_err(|_| {
            // Closed, it takes no turn of this run any more.
            if let Some(trains) = state.steps_in {
                state.phase = Phase::Decided(stepped_in(decision, trains));
            }
        })?);
        let how = (Source::Teacher, seed, asked.cancel().clone());
        let told_by = (model.shared_tokenizer(), opening);
        let generation = asked.feed().generation(model.engine(), asked.clone(), how, told_by);
        (state.ending, state.asked) = (Some(generation.ending()), limits);
        state.asked_turn = Some(asked);
        state.phase = Phase::Acting(decision);
        Ok(generation)
    }
}

/// Refuses controls in training, where rollouts are drawn from the distribution that the settings name. What a folder advises is
/// passed over, as its temperature is.
fn refuse_controls(given: &Controls, student: &ServedModel) -> Result<()> {
    if *given == student.generation_options().controls {
        return Ok(());
    }
    match given.differs_from(&Controls::default()) {
        None => Ok(()),
        Some(name) => {
            let why = format!(
                "{name} is set, but training rollouts sample as the distiller's settings say, which have no {name}; leave it unset"
            );
            Err(Error::new(Fault::BadOption, why))
        }
    }
}
