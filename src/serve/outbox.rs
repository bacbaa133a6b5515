//! Where the scheduler puts what it sampled, and where a caller waits for it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::bell::Rings;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex};
use crate::text::StopFound;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Finish {
    /// A stop id was sampled, or a stop string was completed.
    Stop = 1,
    /// `max_tokens` were sampled.
    Length = 2,
    /// The context has no room for another token.
    ContextFull = 3,
    /// It was cancelled.
    Cancelled = 4,
    /// It failed, and the error was told before; the timeline stands at the last whole token.
    Failed = 5,
    /// Its time limit was over; the timeline stands at the last whole token within it.
    Time = 6,
}

/// One sampled token.
#[derive(Debug)]
pub(super) struct Sampled {
    pub(super) id: i32,
    /// at temperature 1, nats
    pub(super) logprob: f32,
    /// in the distribution sampled from, nats
    pub(super) sampled_logprob: f32,
    /// the likeliest ids at temperature 1 with their log-probs, as many as were asked for: -1 where there are fewer
    pub(super) top: Vec<(i32, f32)>,
    pub(super) position: u64,
    pub(super) revision: u64,
    /// what became certain with it
    pub(super) text: String,
    /// the stop string that it completed
    pub(super) stop: Option<StopFound>,
}

/// What is told with the end.
#[derive(Default)]
pub(super) struct Rest {
    /// what was held back
    pub(super) text: String,
    /// the stop string that ended it
    pub(super) stop: Option<StopFound>,
}

/// What lies there for a pull.
#[derive(Default)]
pub(super) struct Taken {
    /// Tokens that were not pulled before; none where none will come.
    pub(super) tokens: Vec<Sampled>,
    /// What follows their text, once they are the last.
    pub(super) rest: String,
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
    /// in a queue: who is told that something is there
    rings: Option<Arc<Rings>>,
}

impl State {
    fn ring(&self) {
        if let Some(rings) = &self.rings {
            rings.ring();
        }
    }
}

struct End {
    finish: Finish,
    /// the error, until it was told
    error: Option<Error>,
    /// its text is taken with the last tokens
    rest: Rest,
}

impl Outbox {
    pub(super) fn push(&self, sampled: Sampled) {
        let mut state = self.state.lock();
        state.waiting.push(sampled);
        state.ring();
        drop(state);
        self.changed.notify_all();
    }

    /// Puts all tokens there are and the end.
    pub(super) fn put_whole(&self, tokens: Vec<Sampled>, finish: Finish, rest: Rest) {
        let mut state = self.state.lock();
        state.waiting = tokens;
        state.end = Some(End { finish, error: None, rest });
        state.ring();
        drop(state);
        self.changed.notify_all();
    }

    /// Takes tokens back that nobody took, as if it had been cancelled before; whether there were some.
    pub(super) fn take_back(&self) -> bool {
        let mut state = self.state.lock();
        let untaken = !state.taken && !state.waiting.is_empty();
        if untaken {
            state.waiting.clear();
            state.end = Some(End { finish: Finish::Cancelled, error: None, rest: Rest::default() });
            state.ring();
        }
        untaken
    }

    pub(super) fn end(&self, end: Result<Finish>, rest: Rest) {
        let end = match end {
            Ok(finish) => End { finish, error: None, rest },
            Err(e) => End { finish: Finish::Failed, error: Some(e), rest },
        };
        let mut state = self.state.lock();
        state.end = Some(end);
        state.ring();
        drop(state);
        self.changed.notify_all();
    }

    /// Rings from now on when something is there, and at once where something may be; false, and nothing, where another does.
    pub(super) fn watch(&self, rings: &Arc<Rings>) -> bool {
        let mut state = self.state.lock();
        let is_free = state.rings.is_none();
        if is_free {
            state.rings = Some(rings.clone());
            state.ring();
        }
        is_free
    }

    /// Rings no more.
    pub(super) fn unwatch(&self) {
        self.state.lock().rings = None;
    }

    /// What is there now, None if nothing is.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut state = self.state.lock();
        let tokens = std::mem::take(&mut state.waiting);
        state.taken |= !tokens.is_empty();
        match &mut state.end {
            None if tokens.is_empty() => None,
            None => Some(Taken { tokens, rest: String::new() }),
            Some(end) => Some(Taken { tokens, rest: std::mem::take(&mut end.rest.text) }),
        }
    }

    /// The stop string that ended it, once it has.
    pub(super) fn stop(&self) -> Option<StopFound> {
        self.state.lock().end.as_ref().and_then(|end| end.rest.stop)
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

    /// Why it ended, pulled or not; None while it runs.
    pub(super) fn end_of(&self) -> Option<Finish> {
        self.state.lock().end.as_ref().map(|end| end.finish)
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
