//! A running generation: the caller pulls what was sampled since it last asked.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::cancel::Cancel;
use super::engine::Engine;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::text::source::Source;

/// How to generate. The default is the distribution itself under seed 0, the same in every run;
/// `ServedModel::generation_options` has what a model's makers advise and a fresh seed.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Most tokens to sample; 0: up to the context.
    pub max_tokens: usize,
    /// Temperature and cuts.
    pub sampling: Sampling,
    /// Draws are keyed by (seed, position), so they depend on neither batch nor rewind.
    pub seed: u64,
    /// Ids that end the generation besides the model's own; the id that ends it is part of the timeline.
    pub stop_ids: Vec<i32>,
    /// Whether the model's own stop ids are not obeyed.
    pub ignore_model_stops: bool,
    /// Who is written down as the author.
    pub source: Source,
    /// Draw from the ids below this alone, as if the vocabulary had no more: log-probs are of what is drawn from. 0: all.
    /// For models of the cpu backend.
    pub vocabulary: usize,
}

impl Default for GenerationOptions {
    fn default() -> GenerationOptions {
        GenerationOptions {
            max_tokens: 0,
            sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
            seed: 0,
            stop_ids: Vec::new(),
            ignore_model_stops: false,
            source: Source::Student,
            vocabulary: 0,
        }
    }
}

impl GenerationOptions {
    /// Refuses values outside their range.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str, found: f32| Err(Error::new(Fault::BadOption, format!("{what}, found {found}")));
        let Sampling { temperature, top_p, .. } = self.sampling;
        if !(0.0..=1e4).contains(&temperature) {
            return refuse("temperature must lie between 0 and 10000", temperature);
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p must lie above 0 and at most 1", top_p);
        }
        Ok(())
    }
}

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

/// What was sampled since the last pull.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// The exact sampled ids.
    pub ids: Vec<i32>,
    /// Their log-probs at temperature 1, nats.
    pub logprobs: Vec<f32>,
    /// Their log-probs in the distribution sampled from.
    pub sampled_logprobs: Vec<f32>,
    /// Whole UTF-8 text of them, without special tokens; bytes of a broken-off character come later.
    pub text: String,
    /// Position of the first of them in the timeline.
    pub position: u64,
    /// Revision of the weights that sampled them.
    pub revision: u64,
}

/// The answer to a pull.
#[derive(Debug)]
pub enum Next {
    /// New tokens.
    Chunk(Chunk),
    /// Nothing more will come; the session is idle again.
    End(Finish),
    /// Nothing came in time.
    Timeout,
}

/// Where the scheduler puts what it sampled.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Chunk,
    /// whether the engine is done with it
    ended: bool,
    /// whether it ended with an error
    failed: bool,
    /// how it ended, until that was pulled
    end: Option<Result<Finish>>,
    finish: Option<Finish>,
}

impl Outbox {
    pub(super) fn push(&self, id: i32, logprobs: (f32, f32), text: &str, position: u64, revision: u64) {
        let mut state = self.state.lock();
        let chunk = &mut state.waiting;
        if chunk.ids.is_empty() {
            (chunk.position, chunk.revision) = (position, revision);
        }
        chunk.ids.push(id);
        chunk.logprobs.push(logprobs.0);
        chunk.sampled_logprobs.push(logprobs.1);
        chunk.text.push_str(text);
        self.changed.notify_all();
    }

    pub(super) fn end(&self, tail: &str, end: Result<Finish>) {
        let mut state = self.state.lock();
        state.waiting.text.push_str(tail);
        (state.ended, state.failed, state.end) = (true, end.is_err(), Some(end));
        self.changed.notify_all();
    }

    /// What is there now, None if nothing is.
    fn take(state: &mut State) -> Option<Result<Next>> {
        if !state.waiting.ids.is_empty() || !state.waiting.text.is_empty() {
            return Some(Ok(Next::Chunk(std::mem::take(&mut state.waiting))));
        }
        if let Some(finish) = state.finish {
            return Some(Ok(Next::End(finish)));
        }
        match state.end.take()? {
            Ok(finish) => {
                state.finish = Some(finish);
                Some(Ok(Next::End(finish)))
            }
            Err(e) => {
                state.finish = Some(Finish::Failed);
                Some(Err(e))
            }
        }
    }
}

/// A running generation. Dropping it cancels it and waits for the round under way, so that the session is
/// idle afterwards.
pub struct Generation {
    pub(super) engine: Engine,
    pub(super) outbox: Arc<Outbox>,
    pub(super) cancel: Cancel,
    pub(super) source: Source,
    pub(super) seed: u64,
}

impl Generation {
    /// The seed of its draws: the same seed, ids, options and weights give the same tokens.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Who writes the tokens.
    pub fn source(&self) -> Source {
        self.source
    }

    /// What tells later how it ended, whoever pulls it.
    pub(crate) fn ending(&self) -> Ending {
        Ending(self.outbox.clone())
    }

    /// Waits up to `timeout` (None: as long as it takes) for new tokens. In caller-driven mode it steps
    /// the engine meanwhile. After an error or the end, `End` is returned again and again.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Next> {
        // A deadline that no clock reaches is none.
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            let mut state = self.outbox.state.lock();
            if let Some(next) = Outbox::take(&mut state) {
                return next;
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(Next::Timeout);
            }
            if self.engine.is_caller_driven() {
                drop(state);
                if let Err(e) = self.engine.step() {
                    // A step that fails ends this generation too, and its end is told once.
                    return Outbox::take(&mut self.outbox.state.lock()).unwrap_or(Err(e));
                }
            } else if let Some(d) = deadline {
                self.outbox.changed.wait_until(&mut state, d);
            } else {
                self.outbox.changed.wait(&mut state);
            }
        }
    }

    /// Waits for the end and returns everything that was not pulled before.
    pub fn collect(&self) -> Result<(Chunk, Finish)> {
        let mut all: Option<Chunk> = None;
        loop {
            match self.next(None)? {
                Next::Chunk(chunk) => match &mut all {
                    None => all = Some(chunk),
                    Some(a) => {
                        a.ids.extend(chunk.ids);
                        a.logprobs.extend(chunk.logprobs);
                        a.sampled_logprobs.extend(chunk.sampled_logprobs);
                        a.text.push_str(&chunk.text);
                    }
                },
                Next::End(finish) => return Ok((all.unwrap_or_default(), finish)),
                Next::Timeout => {}
            }
        }
    }

    /// Asks it to stop at the next whole token. Any thread, any time.
    pub fn cancel(&self) {
        self.cancel.set();
    }
}

/// How a generation ended, for somebody else than who pulls it.
#[derive(Clone)]
pub(crate) struct Ending(Arc<Outbox>);

impl Ending {
    /// Whether it ended with an error.
    pub(crate) fn failed(&self) -> bool {
        self.0.state.lock().failed
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.set();
        if self.engine.is_caller_driven() {
            self.engine.end_cancelled();
            return;
        }
        let mut state = self.outbox.state.lock();
        while !state.ended {
            self.outbox.changed.wait(&mut state);
        }
    }
}
