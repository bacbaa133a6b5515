//! A running generation, pulled by the caller.
#![forbid(unsafe_code)]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::cancel::Cancel;
use super::engine::Engine;
use super::outbox::{Finish, Outbox, Taken};
use super::slot::Slot;
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::text::parts::{Tools, open_turn};
use crate::text::source::Source;
use crate::text::{PartStream, StopFound, Tokenizer};

/// What was sampled since the last pull.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// The exact sampled ids.
    pub ids: Vec<i32>,
    /// Their log-probs at temperature 1, nats.
    pub logprobs: Vec<f32>,
    /// Their log-probs in the distribution sampled from.
    pub sampled_logprobs: Vec<f32>,
    /// Their likeliest alternatives, [ids, k] with the k of `top_logprobs`, likeliest first: ids, -1 where there are no more.
    pub top_ids: Vec<i32>,
    /// The log-probs of those at temperature 1, nats; -inf where there are no more.
    pub top_logprobs: Vec<f32>,
    /// Whole UTF-8 text of them, without special tokens; bytes of a broken-off character come later, and so does what may
    /// be the beginning of a stop string and is none.
    pub text: String,
    /// The stop string that the last of them completed.
    pub stop: Option<StopFound>,
    /// Position of the first of them in the timeline.
    pub position: u64,
    /// Revision of the weights that sampled them.
    pub revision: u64,
}

impl Chunk {
    fn of(Taken { tokens, rest }: Taken) -> Chunk {
        let top = || tokens.iter().flat_map(|t| &t.top);
        let mut text: String = tokens.iter().map(|t| t.text.as_str()).collect();
        text += &rest;
        Chunk {
            ids: tokens.iter().map(|t| t.id).collect(),
            logprobs: tokens.iter().map(|t| t.logprob).collect(),
            sampled_logprobs: tokens.iter().map(|t| t.sampled_logprob).collect(),
            top_ids: top().map(|one| one.0).collect(),
            top_logprobs: top().map(|one| one.1).collect(),
            text,
            stop: tokens.iter().find_map(|t| t.stop),
            position: tokens.first().map_or(0, |t| t.position),
            revision: tokens.first().map_or(0, |t| t.revision),
        }
    }
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

/// Who speaks. It has no thread: whoever waits for it looks after it.
pub(crate) trait Speaker: Send + Sync {
    /// Ends what is said where it was cancelled or its time is up. Called now and then while somebody waits.
    fn look(&self);
    /// Nobody will pull it any more: what was not heard is not said.
    fn let_go(&self);
}

/// Who makes the tokens.
pub(super) enum Maker {
    /// The engine: whose timeline grows, and which work on it this is.
    Engine(Weak<Slot>, u64),
    /// Somebody outside of it.
    Elsewhere(Arc<dyn Speaker>),
}

/// Where what is said begins.
#[derive(Default)]
pub(crate) struct Opening {
    /// what stands there of the turn
    turn: Vec<i32>,
    /// in the timeline that is shown to whoever pulls
    position: u64,
    /// what the conversation says of tools
    tools: Arc<Tools>,
}

impl Opening {
    /// Behind `ids`, all of a timeline. Error: `OutOfHostMemory`.
    pub(crate) fn behind(ids: &[i32], tokenizer: Option<&Tokenizer>, tools: &Arc<Tools>) -> Result<Opening> {
        let turn = tokenizer.map_or(&[][..], |tokenizer| open_turn(tokenizer, ids));
        let turn = memory::copied(turn, "the ids of an open turn")?;
        Ok(Opening { turn, position: ids.len() as u64, tools: tools.clone() })
    }
}

/// How long whoever pulls what is made elsewhere waits before it looks whether time is up.
const SLICE: Duration = Duration::from_millis(20);

/// A running generation. Dropping it cancels it and waits for nothing; the session's next call waits for the round under
/// way, so that it finds the session idle.
pub struct Generation {
    pub(super) engine: Engine,
    pub(super) outbox: Arc<Outbox>,
    pub(super) cancel: Cancel,
    pub(super) source: Source,
    pub(super) seed: u64,
    pub(super) maker: Maker,
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
    pub(super) opening: Opening,
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

    /// The stop string that ended it, once it has ended.
    pub fn stopped_by(&self) -> Option<StopFound> {
        self.outbox.stop()
    }

    /// Whether it is made outside the engine.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.maker, Maker::Elsewhere(_))
    }

    /// Looks after it where it is made outside the engine.
    pub(super) fn look(&self) {
        if let Maker::Elsewhere(speaker) = &self.maker {
            speaker.look();
        }
    }

    /// What tells apart its thought, its answer and its tool calls: it is to be pushed the ids of every chunk, and stands where the
    /// turn stood when the generation began. The chunks stay as they are.
    ///
    /// Error: `MissingFile` without a tokenizer.
    pub fn parts(&self) -> Result<PartStream> {
        let missing = || {
            let why =
                "parts: the model folder has no tokenizer.json; put the model's there, or take the ids as they are";
            Error::new(Fault::MissingFile, why)
        };
        let tokenizer = self.tokenizer.clone().ok_or_else(missing)?;
        let Opening { turn, position, tools } = &self.opening;
        Ok(PartStream::new(tokenizer, turn, *position, tools.clone()))
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
            self.look();
            if let Some(next) = self.take() {
                return next;
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(Next::Timeout);
            }
            match &self.maker {
                Maker::Elsewhere(_) => self.wait_a_moment(deadline),
                Maker::Engine(..) if !self.engine.is_caller_driven() => self.outbox.wait(deadline),
                Maker::Engine(..) => {
                    if let Err(e) = self.engine.step() {
                        // A step that fails ends this generation too, and its end is told once.
                        return self.take().unwrap_or(Err(e));
                    }
                }
            }
        }
    }

    /// Waits a moment for whoever speaks elsewhere. Where the caller drives the engine, sessions go on meanwhile.
    fn wait_a_moment(&self, deadline: Option<Instant>) {
        // A round that fails ends those that it was for, and this one is none of them.
        let is_at_work = self.engine.is_caller_driven() && self.engine.step().unwrap_or(false);
        if !is_at_work {
            let moment = Instant::now() + SLICE;
            self.outbox.wait(Some(deadline.map_or(moment, |deadline| deadline.min(moment))));
        }
    }

    /// What is there now, None if nothing is.
    fn take(&self) -> Option<Result<Next>> {
        let chunk = Chunk::of(self.outbox.take()?);
        if !(chunk.ids.is_empty() && chunk.text.is_empty()) {
            return Some(Ok(Next::Chunk(chunk)));
        }
        self.outbox.finish().map(|finish| finish.map(Next::End))
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
                        a.top_ids.extend(chunk.top_ids);
                        a.top_logprobs.extend(chunk.top_logprobs);
                        a.text.push_str(&chunk.text);
                        a.stop = a.stop.or(chunk.stop);
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
        if let Maker::Elsewhere(speaker) = &self.maker {
            speaker.look();
        }
    }

    /// Cancels it for whoever will not pull it any more: the session's next call waits for its end. Waits for nothing.
    pub(crate) fn let_go(&self) {
        self.cancel.set();
        match &self.maker {
            Maker::Elsewhere(speaker) => speaker.let_go(),
            Maker::Engine(slot, work) => {
                if let Some(slot) = slot.upgrade() {
                    slot.release(*work);
                }
                self.engine.end_cancelled();
            }
        }
    }
}

/// How a generation ended, for somebody else than who pulls it.
#[derive(Clone)]
pub(crate) struct Ending(Arc<Outbox>);

impl Ending {
    /// Whether it ended with an error.
    pub(crate) fn failed(&self) -> bool {
        self.0.failed()
    }

    /// Whether a stop string ended it.
    pub(crate) fn was_ended_by_a_string(&self) -> bool {
        self.0.stop().is_some()
    }

    /// Whether it was cancelled, or failed.
    pub(crate) fn was_stopped(&self) -> bool {
        self.0.was_stopped()
    }

    /// Why it ended; None while it runs.
    pub(crate) fn finish(&self) -> Option<Finish> {
        self.0.end_of()
    }

    /// Which of its stop strings ended it.
    pub(crate) fn stop_string(&self) -> Option<usize> {
        self.0.stop().map(|found| found.index)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.let_go();
    }
}
