//! Who teaches: a model beside the student, in its engine or another, which acts and is exact over the vocabulary, or the host's own code behind a
//! queue, which scores.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::config::Config;
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

    /// The most that it gives a loss.
    fn gives(&self) -> Needs {
        match self {
            Teacher::Local(_) => Needs::Distribution,
            Teacher::Queue(queue) if queue.options().top_k > 0 => Needs::Distribution,
            Teacher::Queue(_) => Needs::Logprob,
        }
    }

    /// Refuses settings that ask it for more than it gives.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        if let (Teacher::Queue(_), true) = (self, config.lets_teacher_act()) {
            let why = "actor: the teacher is to act, and the host's teacher only scores; use actor student or replay, or a \
                       model as the teacher";
            return Err(Error::new(Fault::BadOption, why));
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
            return Err(Error::new(Fault::BadOption, why));
        }
        for actor in [Actor::Student, Actor::Teacher, Actor::Replay] {
            let loss = config.loss_of(actor);
            if loss.needs() > self.gives() {
                let why = format!(
                    "{}_turns.kernel: {} compares distributions, and the teacher gives the log-probs of what was said alone \
                     (top_k 0); use sampled-reverse-kl or none, or a teacher with top_k above 0",
                    actor.name(),
                    loss.name()
                );
                return Err(Error::new(Fault::BadOption, why));
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
