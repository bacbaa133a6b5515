//! Who teaches: a model beside the student, in its engine or another, which acts and is exact over the vocabulary, or the host's own code behind a
//! queue, which scores, acts, or both.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::config::Config;
use super::knobs::{ActorPolicy, By, Proposal};
use super::teacher_queue::TeacherQueue;
use crate::backend::ops::{Needs, Tail};
use crate::error::{Error, Fault, Result};
use crate::serve::{ServedModel, Session};

/// A teacher.
#[derive(Clone)]
pub enum Teacher {
    /// A model of the student's engine or of another.
    Local(ServedModel),
    /// The host's code.
    Queue(TeacherQueue),
}

impl Teacher {
    /// The model, if it is one.
    pub fn model(&self) -> Option<&ServedModel> {
        match self {
            Teacher::Local(model) => Some(model),
            Teacher::Queue(_) => None,
        }
    }

    /// Whether it can take a turn.
    pub(super) fn acts(&self) -> bool {
        match self {
            Teacher::Local(_) => true,
            Teacher::Queue(queue) => queue.options().acts,
        }
    }

    /// The most that it gives a loss.
    fn gives(&self) -> Needs {
        match self {
            Teacher::Local(_) => Needs::Distribution,
            Teacher::Queue(queue) if !queue.options().scores => Needs::Nothing,
            Teacher::Queue(queue) if queue.options().top_k > 0 => Needs::Distribution,
            Teacher::Queue(_) => Needs::Logprob,
        }
    }

    /// Refuses settings that ask it for more than it gives.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        let refused = |why: String| Err(Error::new(Fault::BadOption, why));
        if let (false, true) = (self.acts(), config.lets_teacher_act()) {
            return refused(
                "actor: the teacher is to act, and the host's teacher only scores; use actor student or replay, a teacher with \
                 acts true, or a model as the teacher"
                    .into(),
            );
        }
        if let (ActorPolicy::Proposal(Proposal { by: By::Teacher, .. }), Needs::Nothing) = (config.actor, self.gives())
        {
            return refused(
                "actor.by: the teacher is to judge proposals, and it scores nothing; use by student".into(),
            );
        }
        match (self, &config.teacher_adapter) {
            (Teacher::Queue(_), Some(_)) => {
                let why = "teacher_adapter: wanted null, since the host's teacher answers by itself; use a model as the teacher";
                return Err(Error::new(Fault::BadOption, why));
            }
            (Teacher::Local(model), Some(name)) => {
                model.check_named(name).map_err(|e| e.within("teacher_adapter"))?;
            }
            (_, None) => {}
        }
        let top_k = match self {
            Teacher::Local(_) => 0,
            Teacher::Queue(queue) => queue.options().top_k,
        };
        if config.tail != Tail::Bucket && top_k < 2 {
            let why = "tail: other than bucket it has a meaning only where the teacher gives two most likely ids or more (top_k)";
            return refused(why.into());
        }
        for actor in [Actor::Student, Actor::Teacher, Actor::Replay] {
            let loss = config.loss_of(actor);
            let (kernel, needs) = (format!("{}_turns.kernel: {}", actor.name(), loss.name()), loss.needs());
            match self.gives() {
                gives if needs <= gives => {}
                Needs::Nothing => {
                    return refused(format!(
                        "{kernel} asks for the teacher's scores, and the host's teacher gives none; use cross-entropy, \
                         policy-gradient of rewards or none, or a teacher with scores true"
                    ));
                }
                _ => {
                    return refused(format!(
                        "{kernel} compares distributions, and the teacher gives the log-probs of what was said alone (top_k 0); use \
                         sampled-reverse-kl or none, or a teacher with top_k above 0"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A session of a teacher that is a model, on the adapter with which it teaches; the errors of [`Session::with_adapter`].
pub(super) fn session(model: &ServedModel, config: &Config) -> Result<Session> {
    match &config.teacher_adapter {
        None => Session::new(model),
        Some(name) => Session::with_adapter(model, name).map_err(|e| e.within("teacher_adapter")),
    }
}
