//! One step of the engine: who prefills and who decodes, one batched forward a revision, then deliver.
//!
//! Decoding jobs go first, one row each; the rest of the row budget goes to prefill chunks in order of
//! arrival. All jobs on one revision share a forward, so its weights are read once a round. A job that
//! cannot get its pages fails alone, before the forward.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use super::generation::Finish;
use super::job::{End, Generating, Job, ScoreRow, Work};
use super::metrics::{Counters, add};
use super::model::Revision;
use super::timeline::{Timeline, Token};
use crate::backend::page::PAGE;
use crate::backend::{Tensor, ops};
use crate::error::{Error, Result};
use crate::model::forward::{Segment, forward, head_forward};
use crate::model::{Activations, Model};
use crate::random::{Stream, uniform};
use crate::tensor::Dtype;
use crate::text::tokenizer::Tokenizer;

/// Rows of logits held at once: [32, V] is 19 MB for Qwen3.
const LOGIT_ROWS: usize = 32;

/// The jobs under way and the scratch memory of their models.
pub(super) struct Scheduler {
    jobs: Vec<Job>,
    scratch: HashMap<usize, Scratch>,
    max_batch_tokens: usize,
    /// the job that is served first
    first: usize,
}

/// One model's activations, logits and gathered rows.
struct Scratch {
    /// keeps the key, the model's address, from being given to another model
    model: Arc<Model>,
    activations: Activations,
    /// [LOGIT_ROWS, C]
    rows: Tensor,
    /// [LOGIT_ROWS, V]
    logits: Tensor,
}

impl Scratch {
    fn new(model: &Arc<Model>) -> Result<Scratch> {
        let config = &model.config;
        Ok(Scratch {
            model: model.clone(),
            activations: Activations::for_serving(model)?,
            rows: Tensor::zeros(Dtype::F32, &[LOGIT_ROWS, config.hidden_size])?,
            logits: Tensor::zeros(Dtype::F32, &[LOGIT_ROWS, config.vocab_size])?,
        })
    }
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
        Scheduler { jobs: Vec::new(), scratch: HashMap::new(), max_batch_tokens: max_batch_tokens.max(1), first: 0 }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn add(&mut self, job: Job) {
        self.jobs.push(job);
    }

    /// Forgets every job; each fails with `why`. After a panic, when nothing can be trusted.
    pub(super) fn abandon(&mut self, why: &Error) {
        self.jobs.drain(..).for_each(|job| job.lose(|| Error::new(why.fault(), why.message())));
        self.scratch.clear();
    }

    /// Ends the jobs that their callers cancelled.
    pub(super) fn end_cancelled(&mut self) {
        self.end_jobs(|job| job.cancel.is_set().then_some(End::Cancelled));
    }

    /// One round.
    pub(super) fn step(&mut self, counters: &Counters) {
        self.end_cancelled();
        self.end_jobs(|job| {
            let (timeline, work) = job.parts();
            let pending = timeline.len() - timeline.kv.len();
            (pending == 0 && !matches!(work, Work::Generate(_))).then_some(End::Done)
        });
        let shares = self.plan();
        // Jobs of one revision share a round.
        let mut groups: Vec<(Arc<Revision>, Vec<Share>)> = Vec::new();
        for share in shares {
            let revision = self.jobs[share.job].revision();
            match groups.iter_mut().find(|(r, _)| Arc::ptr_eq(r, revision)) {
                Some((_, list)) => list.push(share),
                None => groups.push((revision.clone(), vec![share])),
            }
        }
        let mut ends: Vec<(usize, End)> = Vec::new();
        for (revision, mut shares) in groups {
            if let Err(e) = self.round(&revision, &mut shares, counters, &mut ends) {
                let (fault, message) = (e.fault(), e.message().to_string());
                ends.extend(shares.iter().map(|s| (s.job, End::Failed(Error::new(fault, message.clone())))));
            }
        }
        ends.sort_by_key(|(job, _)| std::cmp::Reverse(*job));
        for (job, end) in ends {
            self.jobs.remove(job).finish(end);
        }
        self.scratch.retain(|_, s| Arc::strong_count(&s.model) > 1);
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
        ends: &mut Vec<(usize, End)>,
    ) -> Result<()> {
        let model = self.jobs[shares[0].job].model().model().clone();
        let scratch = match self.scratch.entry(Arc::as_ptr(&model) as usize) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => e.insert(Scratch::new(&model)?),
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
            keep_hidden(&model, scratch, timeline, work, share);
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
            ops::gather_rows(&model.device, &mut scratch.rows, &scratch.activations.hidden, &rows);
            head_forward(&model, &revision.weights, &mut scratch.logits, &scratch.rows, rows.len());
            let ids: Vec<i32> = chunk.iter().map(|w| w.next).collect();
            let logprobs = ops::logprobs_of(&model.device, &scratch.logits, &ids, rows.len());
            for (i, w) in chunk.iter().enumerate() {
                let job = &mut self.jobs[w.job];
                let tokenizer = job.model().0.tokenizer.clone();
                let (timeline, work) = job.parts();
                match work {
                    Work::Feed { .. } => {}
                    Work::Score { top_k, rows, .. } => {
                        let logprob = logprobs[i];
                        let top = if *top_k == 0 {
                            Vec::new()
                        } else {
                            ops::top_k(&model.device, &scratch.logits, i, *top_k)
                        };
                        rows.push(ScoreRow { logprob, top });
                    }
                    Work::Generate(g) => {
                        add(&counters.sampled, 1);
                        if let Some(finish) =
                            sample(&model, revision.number, (&scratch.logits, i), tokenizer.as_deref(), timeline, g)
                        {
                            ends.push((w.job, End::Finished(finish)));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Keeps the hidden states of a share's rows that predict action tokens, where the timeline asks for them.
fn keep_hidden(model: &Model, scratch: &mut Scratch, timeline: &mut Timeline, work: &Work, share: &Share) {
    let Timeline { hidden: Some(hidden), tokens, .. } = timeline else { return };
    let next_source = match work {
        Work::Generate(g) => Some(g.options.source),
        Work::Feed { next, .. } => *next,
        Work::Score { .. } => None,
    };
    let is_action = |p: usize| tokens.get(p).map(|t| t.source).or(next_source).is_some_and(|s| s.is_action());
    let rows: Vec<usize> = (0..share.n).filter(|i| is_action(share.start + i + 1)).collect();
    for chunk in rows.chunks(LOGIT_ROWS) {
        let at: Vec<usize> = chunk.iter().map(|i| share.row + i).collect();
        ops::gather_rows(&model.device, &mut scratch.rows, &scratch.activations.hidden, &at);
        hidden.positions.extend(chunk.iter().map(|i| share.start + i + 1));
        hidden.rows.extend_from_slice(&scratch.rows.f32()[..chunk.len() * model.config.hidden_size]);
    }
}

/// Samples the timeline's next token, appends and delivers it; returns why the generation ends, if it does.
fn sample(
    model: &Model,
    revision: u64,
    (logits, row): (&Tensor, usize),
    tokenizer: Option<&Tokenizer>,
    timeline: &mut Timeline,
    g: &mut Generating,
) -> Option<Finish> {
    let position = timeline.len();
    let u = uniform(Stream::Sample, &[g.options.seed, position as u64]);
    let sampled = ops::sample_token(&model.device, logits, row, g.options.sampling, u);
    let (id, logprob, sampled_logprob) = (sampled.id, sampled.logprob, sampled.sampled_logprob);
    timeline.push(Token { id, source: g.options.source, logprob, sampled_logprob, revision });
    g.n_sampled += 1;
    let bytes = tokenizer.filter(|t| !t.is_special(id)).and_then(|t| t.token_bytes(id));
    let text = bytes.map(|b| g.text.push(b)).unwrap_or_default();
    g.outbox.push(id, (logprob, sampled_logprob), &text, position as u64, revision);
    if g.stop_ids.contains(&id) {
        Some(Finish::Stop)
    } else if g.n_sampled == g.options.max_tokens {
        Some(Finish::Length)
    } else if timeline.len() >= model.max_context() {
        Some(Finish::ContextFull)
    } else {
        None
    }
}
