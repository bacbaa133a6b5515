//! One step of the engine: who prefills and who decodes, one batched forward a revision, then deliver.
//!
//! Decoding jobs go first, one row each; the rest of the row budget goes to prefill chunks in order of
//! arrival. All jobs on one revision share a forward, so its weights are read once a round. A job that
//! cannot get its pages fails alone, before the forward.
//!
//! On a GPU, rows that decode have a round of their own, which is a recorded graph, and while everybody just decodes the
//! next round is asked for before the last one's tokens are known (`ahead`): its rows take them from the device.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use super::generation::Finish;
use super::job::{End, Job, ScoreRow, Work};
use super::metrics::{Counters, add};
use super::model::Revision;
use super::timeline::{Timeline, Token};
use crate::backend::batch::MAX_DECODE_ROWS;
use crate::backend::ops;
use crate::backend::page::PAGE;
use crate::error::{Error, Fault, Result};
use crate::model::forward::{Segment, decode, forward, head};
use crate::model::{Activations, Model};
use crate::random::{Stream, uniform};

/// Rows of logits held at once: [32, V] is 19 MB for Qwen3.
const LOGIT_ROWS: usize = 32;

/// The jobs under way and the scratch memory of their models.
pub(super) struct Scheduler {
    jobs: Vec<Job>,
    /// the number of the next job
    next_id: u64,
    scratch: HashMap<usize, Scratch>,
    /// the round whose draws are not taken yet
    ahead: Option<Ahead>,
    max_batch_tokens: usize,
    /// the job that is served first
    first: usize,
}

/// One model's activations and logits.
struct Scratch {
    /// keeps the key, the model's address, from being given to another model
    model: Arc<Model>,
    activations: Activations,
}

/// A round of decode whose draws are not taken yet.
struct Ahead {
    revision: Arc<Revision>,
    model: Arc<Model>,
    /// the job of each row; a job that ended meanwhile is gone from the list of jobs
    jobs: Vec<u64>,
}

/// A job's share of a round.
struct Share {
    /// index in the list of jobs
    job: usize,
    /// rows it feeds
    n: usize,
    /// position of the first
    start: usize,
    /// row of the batch of the first
    row: usize,
}

/// A row of the batch whose logits are wanted.
struct Wanted {
    job: usize,
    row: usize,
    /// the given token that follows, to be scored; 0 where one is to be sampled
    next: i32,
}

impl Scheduler {
    pub(super) fn new(max_batch_tokens: usize) -> Scheduler {
        Scheduler {
            jobs: Vec::new(),
            next_id: 0,
            scratch: HashMap::new(),
            ahead: None,
            max_batch_tokens: max_batch_tokens.max(1),
            first: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn add(&mut self, mut job: Job) {
        job.id = self.next_id;
        self.next_id += 1;
        self.jobs.push(job);
    }

    /// Forgets every job; each fails with `why`. After a panic, when nothing can be trusted.
    pub(super) fn abandon(&mut self, why: &Error) {
        self.jobs.drain(..).for_each(|job| job.lose(|| Error::new(why.fault(), why.message())));
        self.ahead = None;
        self.scratch.clear();
    }

    /// Ends the jobs that their callers cancelled.
    pub(super) fn end_cancelled(&mut self, counters: &Counters) {
        if self.jobs.iter().any(|job| job.cancel.is_set()) {
            // A timeline goes back only when the device is done with its last row.
            self.take_ahead(counters);
        }
        self.end_jobs(|job| job.cancel.is_set().then_some(End::Cancelled));
    }

    /// One round.
    pub(super) fn step(&mut self, counters: &Counters) {
        self.end_cancelled(counters);
        if self.run_ahead(counters) {
            return;
        }
        self.take_ahead(counters);
        self.end_jobs(|job| {
            let (timeline, work) = job.parts();
            let pending = timeline.len() - timeline.kv.len();
            let done = pending == 0 && !matches!(work, Work::Generate(_));
            // What was asked for must have come about before anybody is told that it did.
            done.then(|| job.model().model().device.finish().map_or_else(End::Failed, |()| End::Done))
        });
        let shares = self.plan();
        // Jobs of one revision share a round; on some devices those that decode have one of their own.
        let mut groups: Vec<(Arc<Revision>, bool, Vec<Share>)> = Vec::new();
        for share in shares {
            let (revision, model) =
                (self.jobs[share.job].revision().clone(), self.jobs[share.job].model().model().clone());
            let decodes = self.jobs[share.job].decodes(share.n);
            let joins = |(r, d, list): &(Arc<Revision>, bool, Vec<Share>)| {
                Arc::ptr_eq(r, &revision)
                    && (model.device.mixes_rows() || *d == decodes)
                    && (model.device.mixes_rows() || !decodes || list.len() < MAX_DECODE_ROWS)
            };
            match groups.iter_mut().find(|group| joins(group)) {
                Some((_, d, list)) => {
                    *d &= decodes;
                    list.push(share);
                }
                None => groups.push((revision, decodes, vec![share])),
            }
        }
        let alone = groups.len() == 1;
        let mut ends: Vec<(u64, End)> = Vec::new();
        for (revision, decodes, mut shares) in groups {
            let done = if decodes && shares.len() <= MAX_DECODE_ROWS {
                self.decode_round(&revision, &shares, alone, counters, &mut ends)
            } else {
                self.round(&revision, &mut shares, counters, &mut ends)
            };
            if let Err(e) = done {
                ends.extend(shares.iter().map(|s| (self.jobs[s.job].id, End::Failed(e.again()))));
            }
        }
        self.end_each(ends);
        self.scratch.retain(|_, s| Arc::strong_count(&s.model) > 1);
    }

    fn end_each(&mut self, ends: Vec<(u64, End)>) {
        for (id, end) in ends {
            if let Some(i) = self.jobs.iter().position(|job| job.id == id) {
                self.jobs.remove(i).finish(end);
            }
        }
    }

    fn scratch(&mut self, model: &Arc<Model>) -> Result<&mut Scratch> {
        Ok(match self.scratch.entry(Arc::as_ptr(model) as usize) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(Scratch { model: model.clone(), activations: Activations::for_serving(model)? })
            }
        })
    }

    /// One token more for jobs that all decode. On a device that runs ahead the tokens are taken by the next step, if
    /// these jobs are `alone`.
    fn decode_round(
        &mut self,
        revision: &Arc<Revision>,
        shares: &[Share],
        alone: bool,
        counters: &Counters,
        ends: &mut Vec<(u64, End)>,
    ) -> Result<()> {
        let model = self.jobs[shares[0].job].model().model().clone();
        self.scratch(&model)?;
        let ids: Vec<i32> = shares.iter().map(|s| self.jobs[s.job].parts().0.ids[s.start]).collect();
        let jobs: Vec<u64> = shares.iter().map(|s| self.jobs[s.job].id).collect();
        self.launch(&model, revision, &jobs, &ids, counters)?;
        let ahead = Ahead { revision: revision.clone(), model, jobs };
        if alone && ahead.model.device.runs_ahead() {
            self.ahead = Some(ahead);
            return Ok(());
        }
        self.deliver(&ahead, counters, ends)
    }

    /// Asks for one row of each job and a draw of the token after it. `ids` are the rows' tokens.
    fn launch(
        &mut self,
        model: &Arc<Model>,
        revision: &Revision,
        jobs: &[u64],
        ids: &[i32],
        counters: &Counters,
    ) -> Result<()> {
        let mut rows: Vec<(usize, Segment, (ops::Sampling, f32))> = Vec::with_capacity(jobs.len());
        for job in self.jobs.iter_mut() {
            let Some(row) = jobs.iter().position(|&id| id == job.id) else { continue };
            let (timeline, work) = job.parts();
            let Work::Generate(g) = work else { continue };
            let position = timeline.kv.len() + 1;
            let u = uniform(Stream::Sample, &[g.options.seed, position as u64]);
            let segment = Segment { ids: &ids[row..row + 1], kv: &mut timeline.kv };
            rows.push((row, segment, (g.options.sampling, u)));
        }
        rows.sort_by_key(|(row, ..)| *row);
        let mut draws = Vec::with_capacity(rows.len());
        let mut segments = Vec::with_capacity(rows.len());
        for (_, segment, draw) in rows {
            segments.push(segment);
            draws.push(draw);
        }
        let scratch = match self.scratch.get_mut(&(Arc::as_ptr(model) as usize)) {
            Some(scratch) => scratch,
            None => unreachable!("whoever launches made the scratch"),
        };
        decode(model, &revision.weights, &mut segments, &draws, &mut scratch.activations)?;
        add(&counters.rounds, 1);
        add(&counters.rows, draws.len() as u64);
        let fed = self.jobs.iter_mut().filter(|job| jobs.contains(&job.id));
        fed.for_each(|job| job.parts().0.n_computed += 1);
        Ok(())
    }

    /// Takes the draws of a round and gives them to the jobs that are still there.
    fn deliver(&mut self, ahead: &Ahead, counters: &Counters, ends: &mut Vec<(u64, End)>) -> Result<()> {
        let sampled = self.scratch(&ahead.model)?.activations.draws.take()?;
        for (&id, sampled) in ahead.jobs.iter().zip(sampled) {
            let Some(job) = self.jobs.iter_mut().find(|job| job.id == id) else { continue };
            ends.extend(give(job, &ahead.model, ahead.revision.number, sampled, counters).map(|end| (id, end)));
        }
        Ok(())
    }

    /// Takes what a round that ran ahead drew.
    fn take_ahead(&mut self, counters: &Counters) {
        let Some(ahead) = self.ahead.take() else { return };
        let mut ends = Vec::new();
        if let Err(e) = self.deliver(&ahead, counters, &mut ends) {
            ends.extend(ahead.jobs.iter().map(|&id| (id, End::Failed(e.again()))));
        }
        self.end_each(ends);
    }

    /// While everybody just decodes: asks for the next round, then takes the last one's draws. Returns whether it did;
    /// it does not where somebody else waits, or where somebody's next token may be beyond what was asked for.
    fn run_ahead(&mut self, counters: &Counters) -> bool {
        let Some(ahead) = &self.ahead else { return false };
        let (model, limit) = (ahead.model.clone(), ahead.model.max_context());
        let everybody = self.jobs.iter().all(|job| ahead.jobs.contains(&job.id));
        let may_go_on = |job: &mut Job| {
            let (timeline, work) = job.parts();
            let Work::Generate(g) = work else { return false };
            // The token that is under way, and the one that is to be asked for.
            let (most, length) = (g.options.max_tokens, timeline.len());
            (most == 0 || g.n_sampled + 1 < most) && length + 1 < limit && timeline.kv.reserve(1).is_ok()
        };
        if !everybody || self.jobs.is_empty() || !self.jobs.iter_mut().all(may_go_on) {
            return false;
        }
        let Some(ahead) = self.ahead.take() else { return false };
        let rows = ahead.jobs.iter().enumerate().filter(|(_, id)| self.jobs.iter().any(|job| job.id == **id));
        let (ids, jobs): (Vec<i32>, Vec<u64>) = rows.map(|(row, &id)| (-1 - row as i32, id)).unzip();
        let launched = self.launch(&model, &ahead.revision, &jobs, &ids, counters);
        let mut ends = Vec::new();
        let delivered = self.deliver(&ahead, counters, &mut ends);
        // Whoever failed, draws that were asked for are taken: they must not be the next round's.
        let is_under_way = launched.is_ok();
        let next = Ahead { revision: ahead.revision, model, jobs };
        if let Err(e) = delivered.and(launched) {
            ends.extend(next.jobs.iter().map(|&id| (id, End::Failed(e.again()))));
        }
        self.ahead = is_under_way.then_some(next);
        self.end_each(ends);
        if self.jobs.is_empty() {
            self.take_ahead(counters);
        }
        true
    }

    fn end_jobs(&mut self, mut end_of: impl FnMut(&mut Job) -> Option<End>) {
        let mut i = 0;
        while i < self.jobs.len() {
            match end_of(&mut self.jobs[i]) {
                Some(end) => self.jobs.remove(i).finish(end),
                None => i += 1,
            }
        }
    }

    /// Deals out the rows of this step and reserves their pages; a job whose pages cannot be had ends here.
    fn plan(&mut self) -> Vec<Share> {
        self.end_jobs(|job| {
            let (timeline, _) = job.parts();
            let n = (timeline.len() - timeline.kv.len()).min(1);
            timeline.kv.reserve(n).err().map(End::Failed)
        });
        // Who is served first moves on each round, and a quarter of the rows is kept for prefill, so that more
        // jobs than rows starve nobody.
        let n_jobs = self.jobs.len();
        self.first = (self.first + 1) % n_jobs.max(1);
        let pending_of = |job: &mut Job| {
            let (timeline, _) = job.parts();
            timeline.len() - timeline.kv.len()
        };
        let prefilling = self.jobs.iter_mut().any(|job| pending_of(job) > 1);
        let kept = if prefilling { self.max_batch_tokens / 4 } else { 0 };
        let mut left = self.max_batch_tokens - kept;
        let mut shares: Vec<Share> = Vec::new();
        for decoding in [true, false] {
            for i in 0..n_jobs {
                let job = (self.first + i) % n_jobs;
                let pending = pending_of(&mut self.jobs[job]);
                if (pending == 1) != decoding || pending == 0 || left == 0 {
                    continue;
                }
                let (timeline, _) = self.jobs[job].parts();
                // A chunk that finds no pages shrinks to the rest of the page that is reserved already.
                let mut n = pending.min(left);
                if timeline.kv.reserve(n).is_err() {
                    n = n.min(PAGE - timeline.kv.len() % PAGE);
                }
                left -= n;
                shares.push(Share { job, n, start: timeline.kv.len(), row: 0 });
            }
            left += kept;
        }
        shares.sort_by_key(|s| s.job);
        shares
    }

    fn round(
        &mut self,
        revision: &Arc<Revision>,
        shares: &mut [Share],
        counters: &Counters,
        ends: &mut Vec<(u64, End)>,
    ) -> Result<()> {
        let model = self.jobs[shares[0].job].model().model().clone();
        self.scratch(&model)?;
        let scratch = match self.scratch.get_mut(&(Arc::as_ptr(&model) as usize)) {
            Some(scratch) => scratch,
            None => unreachable!("it was just made"),
        };
        let mut n_rows = 0;
        for share in shares.iter_mut() {
            share.row = n_rows;
            n_rows += share.n;
        }
        {
            let mut wanted = shares.iter().peekable();
            let mut segments = Vec::with_capacity(shares.len());
            for (i, job) in self.jobs.iter_mut().enumerate() {
                let Some(share) = wanted.next_if(|s| s.job == i) else { continue };
                let (timeline, _) = job.parts();
                let Timeline { ids, kv, .. } = timeline;
                segments.push(Segment { ids: &ids[share.start..share.start + share.n], kv });
            }
            forward(&model, &revision.weights, &mut segments, &mut scratch.activations)?;
        }
        add(&counters.rounds, 1);
        add(&counters.rows, n_rows as u64);

        let mut wanted = Vec::new();
        for share in shares.iter() {
            let (timeline, work) = self.jobs[share.job].parts();
            timeline.n_computed += share.n as u64;
            keep_hidden(&model, &scratch.activations, timeline, work, share)?;
            if let Work::Feed { told: Some(told), .. } = work {
                // Who no longer listens has gone on without the answer.
                let _ = told.send(timeline.kv.len());
            }
            for i in 0..share.n {
                let predicts = share.start + i + 1;
                let want = match work {
                    Work::Feed { .. } => false,
                    Work::Score { from, .. } => predicts >= *from && predicts < timeline.len(),
                    Work::Generate(_) => predicts == timeline.len(),
                };
                if want {
                    let next = timeline.ids.get(predicts).copied().unwrap_or(0);
                    wanted.push(Wanted { job: share.job, row: share.row + i, next });
                }
            }
        }
        for chunk in wanted.chunks(LOGIT_ROWS) {
            let rows: Vec<usize> = chunk.iter().map(|w| w.row).collect();
            let rows = ops::RowList::of(&model.device, &rows)?;
            let head = head(&model, &revision.weights, &mut scratch.activations, &rows)?;
            let ids: Vec<i32> = chunk.iter().map(|w| w.next).collect();
            let logprobs = ops::logprobs_of_head(&model.device, head, &ids)?;
            for (i, w) in chunk.iter().enumerate() {
                let job = &mut self.jobs[w.job];
                let (timeline, work) = job.parts();
                match work {
                    Work::Feed { .. } => {}
                    Work::Score { top_k, rows, from, .. } => {
                        let logprob = logprobs[i];
                        if logprob.is_nan() {
                            let position = *from + rows.len();
                            ends.push((job.id, End::Failed(not_finite(position, revision.number))));
                            continue;
                        }
                        let top =
                            if *top_k == 0 { Vec::new() } else { ops::top_k_of_head(&model.device, head, i, *top_k)? };
                        rows.push(ScoreRow { logprob, top });
                    }
                    Work::Generate(g) => {
                        let u = uniform(Stream::Sample, &[g.options.seed, timeline.len() as u64]);
                        let sampled = match g.options.vocabulary {
                            0 => ops::sample_row(&model.device, head, i, g.options.sampling, u)?,
                            v => ops::sample_row_among(&model.device, head, i, v, g.options.sampling, u)?,
                        };
                        ends.extend(give(job, &model, revision.number, sampled, counters).map(|end| (job.id, end)));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Keeps the hidden states of a share's rows that predict action tokens, where the timeline asks for them.
fn keep_hidden(
    model: &Model,
    activations: &Activations,
    timeline: &mut Timeline,
    work: &Work,
    share: &Share,
) -> Result<()> {
    let Timeline { hidden: Some(hidden), tokens, .. } = timeline else { return Ok(()) };
    let next_source = match work {
        Work::Generate(g) => Some(g.options.source),
        Work::Feed { next, .. } => *next,
        Work::Score { .. } => None,
    };
    let is_action = |p: usize| tokens.get(p).map(|t| t.source).or(next_source).is_some_and(|s| s.is_action());
    let rows: Vec<usize> = (0..share.n).filter(|i| is_action(share.start + i + 1)).collect();
    let at: Vec<usize> = rows.iter().map(|i| share.row + i).collect();
    hidden.rows.extend(ops::read_rows(&model.device, &activations.hidden, &at)?);
    hidden.positions.extend(rows.iter().map(|i| share.start + i + 1));
    Ok(())
}

/// Why a row gives no token and no score. Its log-sum-exp is NaN where a logit is NaN or +inf, or all are -inf, and with
/// it every log-prob of the row: argmax and draws would give an id all the same.
fn not_finite(position: usize, revision: u64) -> Error {
    let why = format!(
        "the logits for position {position} are not finite under revision {revision}: wanted a distribution, found NaN \
         or infinity; the weights hold such values or overflow in this compute: load weights that are finite, go on \
         from an earlier checkpoint, or use compute f32"
    );
    Error::new(Fault::NotFinite, why)
}

/// Appends a sampled token to its timeline and delivers it; returns how the generation ends, if it does. A row without
/// a distribution gives no token.
fn give(job: &mut Job, model: &Model, revision: u64, sampled: ops::Sampled, counters: &Counters) -> Option<End> {
    let tokenizer = job.model().0.tokenizer.clone();
    let (timeline, work) = job.parts();
    let Work::Generate(g) = work else { return None };
    let position = timeline.len() as u64;
    if !(sampled.logprob.is_finite() && sampled.sampled_logprob.is_finite()) {
        // Whoever tries again computes the row again, and a hidden state that predicts nothing goes.
        timeline.forget_computed(timeline.len().saturating_sub(1));
        return Some(End::Failed(not_finite(timeline.len(), revision)));
    }
    add(&counters.sampled, 1);
    let (id, logprob, sampled_logprob) = (sampled.id, sampled.logprob, sampled.sampled_logprob);
    timeline.push(Token { id, source: g.options.source, logprob, sampled_logprob, revision });
    g.n_sampled += 1;
    let bytes = tokenizer.as_deref().filter(|t| !t.is_special(id)).and_then(|t| t.token_bytes(id));
    let text = bytes.map(|b| g.text.push(b)).unwrap_or_default();
    g.outbox.push(id, (logprob, sampled_logprob), &text, position, revision);
    if g.stop_ids.contains(&id) {
        Some(End::Finished(Finish::Stop))
    } else if g.n_sampled == g.options.max_tokens {
        Some(End::Finished(Finish::Length))
    } else if timeline.len() >= model.max_context() {
        Some(End::Finished(Finish::ContextFull))
    } else {
        None
    }
}
