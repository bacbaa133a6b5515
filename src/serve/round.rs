//! The rounds of a step: rows through the model, then what they were wanted for. A round's jobs share base weights; each
//! brings the adapter of its own revision.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::history::all_ruled_out;
use super::job::{End, Job, Limits, ScoreRow, Work, end_each, is_past};
use super::metrics::{Counters, add};
use super::outbox::{Finish, Sampled};
use super::pace::Pace;
use super::revision::Counted;
use super::timeline::{Timeline, Token};
use crate::backend::ops;
use crate::error::{Error, Fault, Result};
use crate::model::forward::{Segment, decode, forward_while, head};
use crate::model::{Activations, Model, Weights};
use crate::random::{Stream, uniform};

/// Rows of logits held at once: [32, V] is 19 MB for Qwen3.
const LOGIT_ROWS: usize = 32;

/// What rounds leave for the next ones: scratch memory, and draws that are not taken yet.
#[derive(Default)]
pub(super) struct Rounds {
    scratch: HashMap<usize, Scratch>,
    /// the round whose draws are not taken yet
    ahead: Option<Ahead>,
}

/// One model's activations and logits, and what is known of its rounds.
struct Scratch {
    /// keeps the key, the model's address, from being given to another model
    model: Arc<Model>,
    activations: Activations,
    pace: Pace,
}

/// A job's share of a round.
pub(super) struct Share {
    /// index in the list of jobs
    pub(super) job: usize,
    /// rows it feeds
    pub(super) n: usize,
    /// position of the first
    pub(super) start: usize,
    /// row of the batch of the first
    pub(super) row: usize,
}

/// A round of decode whose draws are not taken yet.
struct Ahead {
    weights: Arc<Counted<Weights>>,
    model: Arc<Model>,
    /// the job of each row; a job that ended meanwhile is gone from the list of jobs
    jobs: Vec<u64>,
}

/// A row of the batch whose logits are wanted.
struct Wanted {
    job: usize,
    row: usize,
    /// the given token that follows, to be scored; 0 where one is to be sampled
    next: i32,
}

impl Rounds {
    fn scratch(&mut self, model: &Arc<Model>) -> Result<&mut Scratch> {
        Ok(match self.scratch.entry(Arc::as_ptr(model) as usize) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                let activations = Activations::for_serving(model)?;
                e.insert(Scratch { model: model.clone(), activations, pace: Pace::default() })
            }
        })
    }

    /// The scratch of a model that `scratch` was asked for before.
    fn made(&mut self, model: &Arc<Model>) -> &mut Scratch {
        match self.scratch.get_mut(&(Arc::as_ptr(model) as usize)) {
            Some(scratch) => scratch,
            None => unreachable!("whoever runs a round has asked for the scratch"),
        }
    }

    /// What is known of the rounds of a model, which is named by its address.
    pub(super) fn pace(&self, model: usize) -> Pace {
        self.scratch.get(&model).map_or_else(Pace::default, |s| s.pace.clone())
    }

    /// Frees the scratch memory of models that nobody has any more.
    pub(super) fn forget_released(&mut self) {
        self.scratch.retain(|_, s| Arc::strong_count(&s.model) > 1);
    }

    /// One token more for jobs that all decode. On a device that runs ahead the tokens are taken by the next step, if
    /// these jobs are `alone`.
    pub(super) fn decode(
        &mut self,
        jobs: &mut [Job],
        weights: &Arc<Counted<Weights>>,
        shares: &[Share],
        alone: bool,
        counters: &Counters,
        ends: &mut Vec<(u64, End)>,
    ) -> Result<()> {
        let model = jobs[shares[0].job].model().clone();
        self.scratch(&model)?;
        let ids: Vec<i32> = shares.iter().map(|s| jobs[s.job].parts().0.ids[s.start]).collect();
        let rows: Vec<u64> = shares.iter().map(|s| jobs[s.job].id).collect();
        let begun = Instant::now();
        let ahead = Ahead { weights: weights.clone(), model, jobs: rows };
        self.launch(jobs, &ahead, &ids, counters)?;
        if alone && ahead.model.device.runs_ahead() {
            self.ahead = Some(ahead);
            return Ok(());
        }
        self.deliver(jobs, &ahead, counters, ends)?;
        self.scratch(&ahead.model)?.pace.learn(0, begun.elapsed());
        Ok(())
    }

    /// Asks for one row of each of the round's jobs and a draw of the token after it. `ids` are the rows' tokens.
    fn launch(&mut self, jobs: &mut [Job], round: &Ahead, ids: &[i32], counters: &Counters) -> Result<()> {
        let Ahead { weights, model, jobs: wanted } = round;
        let scratch = self.made(model);
        let mut rows: Vec<(usize, Segment, ops::Pick)> = Vec::with_capacity(wanted.len());
        for job in jobs.iter_mut() {
            let Some(row) = wanted.iter().position(|&id| id == job.id) else { continue };
            let (timeline, work, revision) = job.all_parts();
            let Work::Generate(g) = work else { continue };
            let position = timeline.kv.len() + 1;
            let u = uniform(Stream::Sample, &[g.options.seed, position as u64]);
            let pick = g.pick(&timeline.ids, u)?;
            let (kv, adapter) = (&mut timeline.kv, revision.adapter());
            let segment = Segment { ids: &ids[row..row + 1], kv, adapter };
            rows.push((row, segment, pick));
        }
        rows.sort_by_key(|(row, ..)| *row);
        let mut draws = Vec::with_capacity(rows.len());
        let mut segments = Vec::with_capacity(rows.len());
        for (_, segment, draw) in rows {
            segments.push(segment);
            draws.push(draw);
        }
        let read = model.device.weight_bytes();
        decode(model, weights, &mut segments, &draws, &mut scratch.activations)?;
        add(&counters.round_weight_bytes, model.device.weight_bytes() - read);
        add(&counters.rounds, 1);
        add(&counters.rows, draws.len() as u64);
        let fed = jobs.iter_mut().filter(|job| wanted.contains(&job.id));
        fed.for_each(|job| job.parts().0.n_computed += 1);
        Ok(())
    }

    /// Takes the draws of a round and gives them to the jobs that are still there.
    fn deliver(
        &mut self,
        jobs: &mut [Job],
        ahead: &Ahead,
        counters: &Counters,
        ends: &mut Vec<(u64, End)>,
    ) -> Result<()> {
        let activations = &mut self.scratch(&ahead.model)?.activations;
        let sampled = activations.draws.take()?;
        for (row, (&id, sampled)) in ahead.jobs.iter().zip(sampled).enumerate() {
            let Some(job) = jobs.iter_mut().find(|job| job.id == id) else { continue };
            // Where a device runs ahead, no such job is in the round.
            let top = match &activations.head {
                Some(head) => likeliest(&ahead.model, head, row, job)?,
                None => Vec::new(),
            };
            ends.extend(give(job, &ahead.model, sampled, top, counters).map(|end| (id, end)));
        }
        Ok(())
    }

    /// Takes what a round that ran ahead drew.
    pub(super) fn take_ahead(&mut self, jobs: &mut Vec<Job>, counters: &Counters) {
        let Some(ahead) = self.ahead.take() else { return };
        let mut ends = Vec::new();
        if let Err(e) = self.deliver(jobs, &ahead, counters, &mut ends) {
            ends.extend(ahead.jobs.iter().map(|&id| (id, End::Failed(e.again()))));
        }
        end_each(jobs, ends);
    }

    /// While everybody just decodes: asks for the next round, then takes the last one's draws. Returns whether it did;
    /// it does not where somebody else waits, or where somebody's next token may be beyond what was asked for.
    pub(super) fn run_ahead(&mut self, jobs: &mut Vec<Job>, counters: &Counters) -> bool {
        let Some(ahead) = &self.ahead else { return false };
        let (model, limit) = (ahead.model.clone(), ahead.model.max_context());
        let everybody = jobs.iter().all(|job| ahead.jobs.contains(&job.id));
        let may_go_on = |job: &mut Job| {
            let (timeline, work) = job.parts();
            let Work::Generate(g) = work else { return false };
            // The token that is under way, and the one that is to be asked for.
            let (most, length) = (g.options.max_tokens, timeline.len());
            (most == 0 || g.n_sampled + 1 < most) && length + 1 < limit && timeline.kv.reserve(1).is_ok()
        };
        if !everybody || jobs.is_empty() || !jobs.iter_mut().all(may_go_on) {
            return false;
        }
        let Some(ahead) = self.ahead.take() else { return false };
        let rows = ahead.jobs.iter().enumerate().filter(|(_, id)| jobs.iter().any(|job| job.id == **id));
        let (ids, rows): (Vec<i32>, Vec<u64>) = rows.map(|(row, &id)| (-1 - row as i32, id)).unzip();
        let next = Ahead { weights: ahead.weights.clone(), model, jobs: rows };
        let launched = self.launch(jobs, &next, &ids, counters);
        let mut ends = Vec::new();
        let delivered = self.deliver(jobs, &ahead, counters, &mut ends);
        // Whoever failed, draws that were asked for are taken: they must not be the next round's.
        let is_under_way = launched.is_ok();
        if let Err(e) = delivered.and(launched) {
            ends.extend(next.jobs.iter().map(|&id| (id, End::Failed(e.again()))));
        }
        self.ahead = is_under_way.then_some(next);
        end_each(jobs, ends);
        if jobs.is_empty() {
            self.take_ahead(jobs, counters);
        }
        true
    }

    /// Rows of all kinds.
    pub(super) fn run(
        &mut self,
        jobs: &mut [Job],
        weights: &Arc<Counted<Weights>>,
        shares: &mut [Share],
        counters: &Counters,
        ends: &mut Vec<(u64, End)>,
    ) -> Result<()> {
        let model = jobs[shares[0].job].model().clone();
        self.scratch(&model)?;
        let begun = Instant::now();
        let mut n_rows = 0;
        for share in shares.iter_mut() {
            share.row = n_rows;
            n_rows += share.n;
        }
        let of_prompts = shares.iter().filter(|s| jobs[s.job].pending() > 1).map(|s| s.n).sum();
        let limits: Vec<Limits> = shares.iter().map(|s| jobs[s.job].limits()).collect();
        let scratch = self.made(&model);
        let read = model.device.weight_bytes();
        {
            let mut wanted = shares.iter().peekable();
            let mut segments = Vec::with_capacity(shares.len());
            for (i, job) in jobs.iter_mut().enumerate() {
                let Some(share) = wanted.next_if(|s| s.job == i) else { continue };
                let (timeline, _, revision) = job.all_parts();
                let Timeline { ids, kv, .. } = timeline;
                let ids = &ids[share.start..share.start + share.n];
                segments.push(Segment { ids, kv, adapter: revision.adapter() });
            }
            // Rows that nobody wants any more are not computed to their end.
            let mut go_on = || match limits.iter().all(|limits| limits.reached().is_some()) {
                false => Ok(()),
                true => Err(Error::new(Fault::Cancelled, "nobody wants the rows any more")),
            };
            forward_while(&model, weights, &mut segments, &mut scratch.activations, &mut go_on)?;
        }
        add(&counters.rounds, 1);
        add(&counters.rows, n_rows as u64);

        let mut wanted = Vec::new();
        for share in shares.iter() {
            let (timeline, work) = jobs[share.job].parts();
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
                    // Rows that were scored before the pages were lost are not scored again.
                    Work::Score { from, rows, .. } => predicts >= *from + rows.len() && predicts < timeline.len(),
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
            let head = head(&model, weights, &mut scratch.activations, &rows)?;
            let ids: Vec<i32> = chunk.iter().map(|w| w.next).collect();
            let logprobs = ops::logprobs_of_head(&model.device, head, &ids)?;
            for (i, w) in chunk.iter().enumerate() {
                let job = &mut jobs[w.job];
                let (timeline, work) = job.parts();
                match work {
                    Work::Feed { .. } => {}
                    Work::Score { top_k, rows, from, .. } => {
                        let logprob = logprobs[i];
                        if logprob.is_nan() {
                            let position = *from + rows.len();
                            ends.push((job.id, End::Failed(not_finite(position, job.revision().number))));
                            continue;
                        }
                        let top =
                            if *top_k == 0 { Vec::new() } else { ops::top_k_of_head(&model.device, head, i, *top_k)? };
                        rows.push(ScoreRow { logprob, top });
                    }
                    Work::Generate(g) => {
                        let u = uniform(Stream::Sample, &[g.options.seed, timeline.len() as u64]);
                        let vocabulary = g.options.vocabulary;
                        let pick = g.pick(&timeline.ids, u)?;
                        let sampled = match vocabulary {
                            0 => ops::sample_row(&model.device, head, i, &pick)?,
                            v => ops::sample_row_among(&model.device, head, i, v, &pick)?,
                        };
                        let top = likeliest(&model, head, i, job)?;
                        ends.extend(give(job, &model, sampled, top, counters).map(|end| (job.id, end)));
                    }
                }
            }
        }
        add(&counters.round_weight_bytes, model.device.weight_bytes() - read);
        if model.device.mixes_rows() {
            scratch.pace.learn(of_prompts, begun.elapsed());
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
    if timeline.hidden.is_none() {
        return Ok(());
    }
    let wanted = |p: usize| timeline.keeps_hidden(p) && timeline.is_action(p, work.next_source());
    let rows: Vec<usize> = (0..share.n).filter(|i| wanted(share.start + i + 1)).collect();
    let at: Vec<usize> = rows.iter().map(|i| share.row + i).collect();
    let hidden = ops::read_rows(&model.device, &activations.hidden, &at)?;
    timeline.keep_hidden(rows.iter().map(|i| share.start + i + 1), hidden, share.start + share.n);
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

/// The likeliest ids of a job's row of the head's logits, as many as it asked for, -1 where there are fewer.
fn likeliest(model: &Model, head: &ops::Head, row: usize, job: &mut Job) -> Result<Vec<(i32, f32)>> {
    let (_, Work::Generate(g)) = job.parts() else { return Ok(Vec::new()) };
    let k = g.options.top_logprobs;
    let mut top = match (k, g.options.vocabulary) {
        (0, _) => return Ok(Vec::new()),
        (_, 0) => ops::top_k_of_head(&model.device, head, row, k)?,
        (_, v) => ops::top_k_of_head_among(&model.device, head, row, v, k)?,
    };
    top.resize(k, (-1, f32::NEG_INFINITY));
    Ok(top)
}

/// Appends a sampled token to its timeline and delivers it; returns how the generation ends, if it does. A row without
/// a distribution gives no token, nor does one of which controls leave nothing, and none comes once the time is up.
fn give(job: &mut Job, model: &Model, sampled: ops::Sampled, top: Vec<(i32, f32)>, counters: &Counters) -> Option<End> {
    let revision = job.revision().number;
    let (timeline, work) = job.parts();
    let Work::Generate(g) = work else { return None };
    let position = timeline.len() as u64;
    if is_past(g.until) {
        // Whoever goes on draws it again.
        timeline.forget_computed(timeline.len().saturating_sub(1));
        return Some(End::Finished(Finish::Time));
    }
    if !(sampled.logprob.is_finite() && sampled.sampled_logprob.is_finite()) {
        // Whoever tries again computes the row again, and a hidden state that predicts nothing goes.
        timeline.forget_computed(timeline.len().saturating_sub(1));
        return Some(End::Failed(match sampled.logprob.is_nan() {
            true => not_finite(timeline.len(), revision),
            false => all_ruled_out(timeline.len(), g.options.controls.no_repeat_ngram_size),
        }));
    }
    counters.sampled(&mut g.clock);
    let (id, logprob, sampled_logprob) = (sampled.id, sampled.logprob, sampled.sampled_logprob);
    timeline.push(Token { id, source: g.options.source, logprob, sampled_logprob, revision });
    g.n_sampled += 1;
    let text = g.text.push(id);
    let stop = g.text.found();
    g.outbox.push(Sampled { id, logprob, sampled_logprob, top, position, revision, text, stop });
    if let Some(Err(e)) = g.history.as_mut().map(|history| history.push(&timeline.ids)) {
        return Some(End::Failed(e));
    }
    if stop.is_some() || g.stop_ids.contains(&id) {
        Some(End::Finished(Finish::Stop))
    } else if g.n_sampled == g.options.max_tokens {
        Some(End::Finished(Finish::Length))
    } else if timeline.len() >= model.max_context() {
        Some(End::Finished(Finish::ContextFull))
    } else {
        None
    }
}
