//! Work on one timeline, as the scheduler sees it: feed the pending ids, and then score, sample, or nothing.
//!
//! A job owns what a round needs of model, revision and session, and no engine: whoever drops the last one may be the
//! engine's own thread.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Sender;

use super::cancel::Cancel;
use super::generation_options::GenerationOptions;
use super::history::History;
use super::metrics::Clock;
use super::outbox::{Finish, Outbox, Rest};
use super::revision::{Bound, Revision};
use super::slot::Slot;
use super::timeline::Timeline;
use crate::backend::ops::Pick;
use crate::error::{Error, Fault, Result};
use crate::model::Model;
use crate::text::TextUntilStop;
use crate::text::source::Source;

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
    /// Compute all pending ids; `next` wrote the token that follows them, if it is known. `told` hears after each round how
    /// many ids are computed.
    Feed { next: Option<Source>, priority: i32, told: Option<Sender<usize>>, reply: Sender<Result<()>> },
    /// Compute all pending ids and score those from position `from` on.
    Score { from: usize, top_k: usize, rows: Vec<ScoreRow>, reply: Sender<Result<Vec<ScoreRow>>> },
    /// Compute all pending ids, then sample.
    Generate(Box<Generating>),
}

impl Work {
    /// Who wrote the token that follows the timeline, where that is known.
    pub(super) fn next_source(&self) -> Option<Source> {
        match self {
            Work::Generate(g) => Some(g.options.source),
            Work::Feed { next, .. } => *next,
            Work::Score { .. } => None,
        }
    }

    /// Higher ones are served first.
    fn priority(&self) -> i32 {
        match self {
            Work::Generate(g) => g.options.priority,
            Work::Feed { priority, .. } => *priority,
            Work::Score { .. } => 0,
        }
    }
}

/// The state of a generation.
pub(super) struct Generating {
    pub(super) options: GenerationOptions,
    /// the model's stop ids, unless they are ignored, and the caller's
    pub(super) stop_ids: Vec<i32>,
    pub(super) n_sampled: usize,
    /// when its time is up
    pub(super) until: Option<Instant>,
    /// what its controls know of the timeline; None where nothing edits logits
    pub(super) history: Option<History>,
    /// the text of what was sampled
    pub(super) text: TextUntilStop,
    pub(super) outbox: Arc<Outbox>,
    /// by which its tokens are timed
    pub(super) clock: Clock,
}

impl Generating {
    /// How the token after `ids` is drawn by `u`.
    pub(super) fn pick(&mut self, ids: &[i32], u: f32) -> Result<Pick<'_>> {
        let edits = self.history.as_mut().map_or(Ok(&[][..]), |history| history.edits(ids))?;
        Ok(Pick { sampling: self.options.sampling, cuts: self.options.controls.cuts(), edits, u })
    }

    /// Tells how it ended, with the text that was held back until now.
    fn end(mut self, end: Result<Finish>) {
        let text = self.text.finish();
        let stop = self.text.found();
        // A character that was broken off may complete a stop string.
        let ended_by_itself = |finish| matches!(finish, Finish::Length | Finish::ContextFull | Finish::Time);
        let end = end.map(|finish| if stop.is_some() && ended_by_itself(finish) { Finish::Stop } else { finish });
        self.outbox.end(end, Rest { text, stop });
    }
}

/// One piece of work on one timeline. Dropping it unfinished (a panic, an engine that stops) fails it and
/// marks its session lost.
pub(super) struct Job {
    /// tells it from others, in order of arrival; given by the scheduler
    pub(super) id: u64,
    pub(super) cancel: Cancel,
    /// what came of its asking for pages, in the latest step
    pub(super) standing: Standing,
    /// Some until the job is finished
    state: Option<State>,
}

struct State {
    model: Arc<Model>,
    slot: Arc<Slot>,
    revision: Bound,
    timeline: Timeline,
    work: Work,
}

/// Whether a job is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Waiting,
    Running,
    /// it gave up its pages, and waits
    Preempted,
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

/// What ends a job before it is done: its caller, or the time.
pub(super) struct Limits {
    cancel: Cancel,
    until: Option<Instant>,
}

impl Limits {
    /// The end that it comes to, None while it may go on.
    pub(super) fn reached(&self) -> Option<End> {
        match self.cancel.is_set() {
            true => Some(End::Cancelled),
            false => is_past(self.until).then_some(End::Finished(Finish::Time)),
        }
    }
}

/// Whether a time is up.
pub(super) fn is_past(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

impl Job {
    pub(super) fn new(
        model: Arc<Model>,
        slot: Arc<Slot>,
        revision: Bound,
        cancel: Cancel,
        timeline: Timeline,
        work: Work,
    ) -> Job {
        Job { id: 0, cancel, standing: Standing::Waiting, state: Some(State { model, slot, revision, timeline, work }) }
    }

    fn state(&self) -> &State {
        // Only `finish` and `drop`, which both end the job, take the state.
        self.state.as_ref().expect("a job in the scheduler's list is not finished")
    }

    /// What it is to end by before it is done, as things stand.
    pub(super) fn over(&self) -> Option<End> {
        self.limits().reached()
    }

    /// The same for whoever looks while it is in a round.
    pub(super) fn limits(&self) -> Limits {
        let until = match &self.state().work {
            Work::Generate(g) => g.until,
            Work::Feed { .. } | Work::Score { .. } => None,
        };
        Limits { cancel: self.cancel.clone(), until }
    }

    /// The model it runs on.
    pub(super) fn model(&self) -> &Arc<Model> {
        &self.state().model
    }

    /// The weights it runs on.
    pub(super) fn revision(&self) -> &Arc<Revision> {
        self.state().revision.revision()
    }

    /// Where its timeline goes back to.
    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.state().slot
    }

    /// Those of a higher one are served first.
    pub(super) fn priority(&self) -> i32 {
        self.state().work.priority()
    }

    /// Ids that are not computed yet.
    pub(super) fn pending(&self) -> usize {
        let timeline = &self.state().timeline;
        timeline.len() - timeline.kv.len()
    }

    /// Tells the pool what was computed of whole pages, and takes what others computed from the same ids, but for rows that
    /// something is wanted of. Returns how many rows it took.
    pub(super) fn adopt(&mut self) -> usize {
        let most = self.adoptable();
        let root = self.revision().root();
        let Timeline { ids, kv, .. } = self.parts().0;
        kv.tell_ids(root, ids);
        kv.adopt(root, ids, most)
    }

    /// What the page that it computes next will be known by, and whether it would rather take it from somebody else.
    pub(super) fn next_page(&self) -> Option<((u64, &[i32]), bool)> {
        let State { timeline, revision, .. } = self.state();
        let next = timeline.kv.next_page(revision.root(), &timeline.ids)?;
        Some((next, timeline.kv.may_adopt(self.adoptable())))
    }

    /// Positions whose rows may have been computed for somebody else: those behind give what this work is for.
    fn adoptable(&self) -> usize {
        let State { timeline, work, .. } = self.state();
        let (len, next) = (timeline.len(), work.next_source());
        let of_work = match work {
            Work::Feed { .. } => len,
            Work::Score { from, rows, .. } => from + rows.len() - 1,
            Work::Generate(_) => len - 1,
        };
        // The row before an action has a hidden state to keep; whether the last one is before one may be known only later.
        let first = (timeline.kv.len() + 1..=len).find(|&p| timeline.keeps_hidden(p) && timeline.is_action(p, next));
        let of_hidden = first.map_or(if timeline.hidden.is_some() { len.saturating_sub(1) } else { len }, |p| p - 1);
        of_work.min(of_hidden)
    }

    /// Whether all that is pending is one step of a generation from the whole vocabulary whose hidden states nobody keeps, and
    /// whose logits nobody looks at after a device has run ahead.
    pub(super) fn decodes_plainly(&self) -> bool {
        let State { model, timeline, work, .. } = self.state();
        let looks = |g: &Generating| g.options.top_logprobs > 0 && model.device.runs_ahead();
        self.pending() == 1
            && timeline.hidden.is_none()
            && matches!(work, Work::Generate(g) if g.options.vocabulary == 0 && !looks(g))
    }

    /// The timeline, the work, and the weights that it runs on.
    pub(super) fn all_parts(&mut self) -> (&mut Timeline, &mut Work, &Revision) {
        let state = self.state.as_mut().expect("a job in the scheduler's list is not finished");
        (&mut state.timeline, &mut state.work, &state.revision)
    }

    /// The timeline and the work.
    pub(super) fn parts(&mut self) -> (&mut Timeline, &mut Work) {
        let state = self.state.as_mut().expect("a job in the scheduler's list is not finished");
        (&mut state.timeline, &mut state.work)
    }

    /// Gives the timeline back to the session, lets go of it, and answers whoever waits, in this order: a
    /// caller who was answered finds the session idle, and if it then drops it, its pages free.
    pub(super) fn finish(mut self, end: End) {
        let Some(State { slot, revision, mut timeline, work, .. }) = self.state.take() else { return };
        timeline.kv.tell_ids(revision.root(), &timeline.ids);
        match &work {
            // A score that failed leaves the timeline as it was.
            Work::Score { from, .. } if !matches!(end, End::Done) => timeline.truncate(*from),
            // Pages reserved for rows that did not come go back, and rows of tokens that nobody learned.
            _ => timeline.kv.truncate(timeline.len()),
        }
        slot.put_back(timeline);
        drop((slot, revision));
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
            Work::Generate(g) => g.end(match end {
                End::Failed(e) => Err(e),
                End::Cancelled => Ok(Finish::Cancelled),
                End::Finished(f) => Ok(f),
                End::Done => Ok(Finish::Length),
            }),
        }
    }

    /// Fails it; its session is lost.
    pub(super) fn lose(mut self, why: impl Fn() -> Error) {
        self.fail(why);
    }

    fn fail(&mut self, why: impl Fn() -> Error) {
        let Some(State { slot, revision, timeline, work, .. }) = self.state.take() else { return };
        slot.lose();
        drop((slot, revision, timeline));
        match work {
            Work::Feed { reply, .. } => drop(reply.send(Err(why()))),
            Work::Score { reply, .. } => drop(reply.send(Err(why()))),
            Work::Generate(g) => g.end(Err(why())),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.fail(|| Error::new(Fault::EngineStopped, "the engine stopped before the call was done"));
    }
}

/// Ends the jobs of these identities that are still there.
pub(super) fn end_each(jobs: &mut Vec<Job>, ends: Vec<(u64, End)>) {
    for (id, end) in ends {
        if let Some(i) = jobs.iter().position(|job| job.id == id) {
            jobs.remove(i).finish(end);
        }
    }
}
