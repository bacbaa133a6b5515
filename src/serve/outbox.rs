//! Where the scheduler puts what it sampled, and where a caller waits for it. It knows ids and numbers; text is made of
//! them by whoever pulls (`generation`).
#![forbid(unsafe_code)]

use std::time::Instant;

use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Finish {
    /// A stop id was sampled.
    Stop = 1,
    /// `max_tokens` were sampled.
    Length = 2,
    /// The context has no room for another token.
    ContextFull = 3,
    /// It was cancelled.
    Cancelled = 4,
    /// It failed, and the error was told before; the timeline stands at the last whole token.
    Failed = 5,
}

/// One sampled token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampled {
    pub(super) id: i32,
    /// at temperature 1, nats
    pub(super) logprob: f32,
    /// in the distribution sampled from, nats
    pub(super) sampled_logprob: f32,
    pub(super) position: u64,
    pub(super) revision: u64,
}

/// What lies there for a pull.
pub(super) enum Taken {
    /// Tokens that were not pulled before, and whether they are the last.
    Tokens(Vec<Sampled>, bool),
    /// No token is left, and none will come.
    Over,
}

/// The tokens of one generation between the scheduler and its caller.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Sampled>,
    /// whether some were taken
    taken: bool,
    /// how it ended
    end: Option<End>,
}

struct End {
    finish: Finish,
    /// the error, until it was told
    error: Option<Error>,
}

impl Outbox {
    pub(super) fn push(&self, sampled: Sampled) {
        self.state.lock().waiting.push(sampled);
        self.changed.notify_all();
    }

    /// Puts all tokens there are and the end.
    pub(super) fn put_whole(&self, tokens: Vec<Sampled>, finish: Finish) {
        let mut state = self.state.lock();
        state.waiting = tokens;
        state.end = Some(End { finish, error: None });
        drop(state);
        self.changed.notify_all();
    }

    /// Takes tokens back that nobody took, as if it had been cancelled before; whether there were some.
    pub(super) fn take_back(&self) -> bool {
        let mut state = self.state.lock();
        let untaken = !state.taken && !state.waiting.is_empty();
        if untaken {
            state.waiting.clear();
            state.end = Some(End { finish: Finish::Cancelled, error: None });
        }
        untaken
    }

    pub(super) fn end(&self, end: Result<Finish>) {
        let end = match end {
            Ok(finish) => End { finish, error: None },
            Err(e) => End { finish: Finish::Failed, error: Some(e) },
        };
        self.state.lock().end = Some(end);
        self.changed.notify_all();
    }

    /// What is there now, None if nothing is.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut state = self.state.lock();
        if !state.waiting.is_empty() {
            state.taken = true;
            return Some(Taken::Tokens(std::mem::take(&mut state.waiting), state.end.is_some()));
        }
        state.end.is_some().then_some(Taken::Over)
    }

    /// How it ended; an error is told once, and `Failed` afterwards. None while it runs.
    pub(super) fn finish(&self) -> Option<Result<Finish>> {
        let mut state = self.state.lock();
        let end = state.end.as_mut()?;
        Some(end.error.take().map_or(Ok(end.finish), Err))
    }

    /// Whether it ended, pulled or not.
    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().end.is_some()
    }

    /// Whether it ended with an error.
    pub(super) fn failed(&self) -> bool {
        self.state.lock().end.as_ref().is_some_and(|end| end.finish == Finish::Failed)
    }

    /// Whether it was cancelled, or failed.
    pub(super) fn was_stopped(&self) -> bool {
        let end = |end: &End| matches!(end.finish, Finish::Cancelled | Finish::Failed);
        self.state.lock().end.as_ref().is_some_and(end)
    }

    /// Whether it ended for want of room: `max_tokens` or the context.
    pub(super) fn was_cut_off(&self) -> bool {
        let end = |end: &End| matches!(end.finish, Finish::Length | Finish::ContextFull);
        self.state.lock().end.as_ref().is_some_and(end)
    }

    /// Waits until something is there, or `deadline` is past.
    pub(super) fn wait(&self, deadline: Option<Instant>) {
        let mut state = self.state.lock();
        while state.waiting.is_empty() && state.end.is_none() {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    if self.changed.wait_until(&mut state, deadline) {
                        return;
                    }
                }
            }
        }
    }
}
