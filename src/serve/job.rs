//! Work on one timeline, as the scheduler sees it: feed the pending ids, and then score, sample, or nothing.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crossbeam::channel::Sender;

use super::cancel::Cancel;
use super::generation::{Finish, GenerationOptions, Outbox};
use super::model::Revision;
use super::session::Shared;
use super::timeline::Timeline;
use crate::error::{Error, Fault, Result};
use crate::text::source::Source;
use crate::text::stream::TextStream;

/// The score of one given token.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRow {
    /// Log-prob of the token at temperature 1 over the whole vocabulary, nats.
    pub logprob: f32,
    /// The likeliest tokens there with their log-probs, best first, ties by the lower id.
    pub top: Vec<(i32, f32)>,
}

/// What a job is for.
pub(super) enum Work {
    /// Compute all pending ids; `next` wrote the token that follows them, if it is known.
    Feed { next: Option<Source>, reply: Sender<Result<()>> },
    /// Compute all pending ids and score those from position `from` on.
    Score { from: usize, top_k: usize, rows: Vec<ScoreRow>, reply: Sender<Result<Vec<ScoreRow>>> },
    /// Compute all pending ids, then sample.
    Generate(Box<Generating>),
}

/// The state of a generation.
pub(super) struct Generating {
    pub(super) options: GenerationOptions,
    /// the model's stop ids, unless they are ignored, and the caller's
    pub(super) stop_ids: Vec<i32>,
    pub(super) n_sampled: usize,
    pub(super) text: TextStream,
    pub(super) outbox: Arc<Outbox>,
}

/// One piece of work on one timeline. Dropping it unfinished (a panic, an engine that stops) fails it and
/// marks its session lost.
pub(super) struct Job {
    pub(super) session: Arc<Shared>,
    pub(super) revision: Arc<Revision>,
    pub(super) cancel: Cancel,
    /// Some until the job is finished
    pub(super) state: Option<(Timeline, Work)>,
}

/// How a job ends.
pub(super) enum End {
    /// Everything was done.
    Done,
    /// The generation ended by itself.
    Finished(Finish),
    /// The caller asked for it.
    Cancelled,
    /// It failed; the timeline is as after its last whole token.
    Failed(Error),
}

impl Job {
    /// The timeline and the work.
    pub(super) fn parts(&mut self) -> (&mut Timeline, &mut Work) {
        let (timeline, work) = self.state.as_mut().expect("a job in the scheduler's list is not finished");
        (timeline, work)
    }

    /// Gives the timeline back to the session and answers whoever waits, in this order, so that a caller
    /// who was answered finds the session idle.
    pub(super) fn finish(mut self, end: End) {
        let Some((timeline, work)) = self.state.take() else { return };
        self.session.put_back(timeline);
        let cancelled = || Error::new(Fault::Cancelled, "the call was cancelled");
        match work {
            Work::Feed { reply, .. } => {
                let _ = reply.send(match end {
                    End::Failed(e) => Err(e),
                    End::Cancelled => Err(cancelled()),
                    _ => Ok(()),
                });
            }
            Work::Score { rows, reply, .. } => {
                let _ = reply.send(match end {
                    End::Failed(e) => Err(e),
                    End::Cancelled => Err(cancelled()),
                    _ => Ok(rows),
                });
            }
            Work::Generate(mut g) => {
                let tail = g.text.finish();
                g.outbox.end(
                    &tail,
                    match end {
                        End::Failed(e) => Err(e),
                        End::Cancelled => Ok(Finish::Cancelled),
                        End::Finished(f) => Ok(f),
                        End::Done => Ok(Finish::Length),
                    },
                );
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let Some((_, work)) = self.state.take() else { return };
        self.session.lose();
        let stopped = || Error::new(Fault::EngineStopped, "the engine stopped before the call was done");
        match work {
            Work::Feed { reply, .. } => drop(reply.send(Err(stopped()))),
            Work::Score { reply, .. } => drop(reply.send(Err(stopped()))),
            Work::Generate(g) => g.outbox.end("", Err(stopped())),
        }
    }
}
