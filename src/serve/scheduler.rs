//! One step of the engine: who prefills and who decodes, one batched forward over each base, then deliver.
//!
//! Jobs that decode go first, one row each; the rest of the row budget goes to chunks of prompts, as many rows as the
//! model's pace allows, in equal parts (`fair`). Who is served first moves on by those who were, so that more jobs than rows
//! starve nobody. All jobs on one base share a forward whatever their adapters, so its weights are read once a round. A job
//! without pages waits (`pages`).
//!
//! On a GPU, rows that decode have a round of their own, which is a recorded graph, and while everybody just decodes the
//! next round is asked for before the last one's tokens are known (`ahead`): its rows take them from the device.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::fair::divide;
use super::job::{End, Job, Work, end_each};
use super::metrics::Counters;
use super::pages;
use super::revision::Counted;
use super::round::{Rounds, Share};
use crate::backend::Device;
use crate::backend::batch::MAX_DECODE_ROWS;
use crate::error::{Error, Fault};
use crate::model::{Model, Weights};

/// The jobs under way and the scratch memory of their models.
pub(super) struct Scheduler {
    /// in order of arrival
    jobs: Vec<Job>,
    /// the number of the next job
    next_id: u64,
    rounds: Rounds,
    max_batch_tokens: usize,
    slice: Option<Duration>,
    /// how long the next round may take, as far as that can be seen to
    budget: Option<Duration>,
    device: Device,
    /// steps so far
    steps: u64,
    /// who is served first: of those that decode, and of those with a prompt
    first: [u64; 2],
}

/// Shares that run together.
struct Group {
    weights: Arc<Counted<Weights>>,
    /// whether each is one step of a plain generation
    decodes: bool,
    shares: Vec<Share>,
}

impl Scheduler {
    pub(super) fn new(device: Device, max_batch_tokens: usize, slice: Option<Duration>) -> Scheduler {
        Scheduler {
            jobs: Vec::new(),
            next_id: 0,
            rounds: Rounds::default(),
            max_batch_tokens: max_batch_tokens.max(1),
            slice,
            budget: None,
            device,
            steps: 0,
            first: [0; 2],
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Bounds the rounds to come by a time, None by none.
    pub(super) fn bound(&mut self, budget: Option<Duration>) {
        self.budget = budget;
    }

    /// What the next round takes at least, as far as that was measured; None where it was not for every model.
    pub(super) fn least_round(&self) -> Option<Duration> {
        let models: BTreeMap<usize, &Arc<Model>> =
            self.jobs.iter().map(|job| (Arc::as_ptr(job.model()) as usize, job.model())).collect();
        models.into_values().map(|model| self.rounds.pace(model).least()).sum()
    }

    pub(super) fn add(&mut self, mut job: Job) {
        job.id = self.next_id;
        self.next_id += 1;
        self.jobs.push(job);
    }

    /// Forgets every job; each fails with `why`. After a panic, when nothing can be trusted.
    pub(super) fn abandon(&mut self, why: &Error) {
        self.jobs.drain(..).for_each(|job| job.lose(|| Error::new(why.fault(), why.message())));
        self.rounds = Rounds::default();
    }

    /// Whether a caller cancelled a job, or the time of one is up.
    pub(super) fn has_stopped(&self) -> bool {
        self.jobs.iter().any(|job| job.over().is_some())
    }

    /// Ends the jobs that their callers cancelled, and those whose time is up.
    pub(super) fn end_stopped(&mut self, counters: &Counters) {
        if self.has_stopped() {
            // A timeline goes back only when the device is done with its last row.
            self.rounds.take_ahead(&mut self.jobs, counters);
        }
        self.end_jobs(|job| job.over());
    }

    /// Frees the scratch memory of models that nobody has any more.
    pub(super) fn forget_released(&mut self) {
        self.rounds.forget_released();
    }

    /// One round.
    ///
    /// Returns whether anything came of it: nothing does where all wait for pages that are on their way.
    pub(super) fn step(&mut self, counters: &Counters) -> bool {
        self.end_stopped(counters);
        if self.rounds.run_ahead(&mut self.jobs, counters) {
            return true;
        }
        self.rounds.take_ahead(&mut self.jobs, counters);
        self.end_jobs(|job| {
            let done = job.pending() == 0 && !matches!(job.parts().1, Work::Generate(_));
            // What was asked for must have come about before anybody is told that it did.
            done.then(|| job.model().device.finish().map_or_else(End::Failed, |()| End::Done))
        });
        let (runs, ends) = pages::reserve(&mut self.jobs, counters);
        let waits = !self.jobs.is_empty() && ends.is_empty() && !runs.contains(&true);
        let shares = self.deal(&runs);
        let groups = self.group(shares);
        let alone = groups.len() == 1 && runs.iter().all(|&runs| runs);
        let mut ends: Vec<(u64, End)> = ends;
        let device = self.device.clone();
        let turn = (!groups.is_empty()).then(|| device.round());
        for Group { weights, decodes, mut shares } in groups {
            let done = if decodes && shares.len() <= MAX_DECODE_ROWS {
                self.rounds.decode(&mut self.jobs, &weights, &shares, alone, counters, &mut ends)
            } else {
                self.rounds.run(&mut self.jobs, &weights, &mut shares, counters, &mut ends)
            };
            if let Err(e) = done {
                let end = |job: &Job| match e.fault() {
                    Fault::Cancelled => job.over().unwrap_or(End::Cancelled),
                    _ => End::Failed(e.again()),
                };
                ends.extend(shares.iter().map(|s| (self.jobs[s.job].id, end(&self.jobs[s.job]))));
            }
        }
        drop(turn);
        end_each(&mut self.jobs, ends);
        self.forget_released();
        !waits
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

    /// Deals out the rows of this step to the jobs that may run.
    fn deal(&mut self, runs: &[bool]) -> Vec<Share> {
        self.steps += 1;
        let pending: Vec<usize> = self.jobs.iter().map(Job::pending).collect();
        let of = |wanted: fn(usize) -> bool| (0..pending.len()).filter(|&i| runs[i] && wanted(pending[i])).collect();
        let (single, prompts): (Vec<usize>, Vec<usize>) = (of(|n| n == 1), of(|n| n > 1));
        // A quarter of the rows is kept for prompts: of few rows one, in every fourth step.
        let quarter = self.max_batch_tokens / 4;
        let kept = match prompts.is_empty() {
            true => 0,
            false if quarter == 0 && self.steps.is_multiple_of(4) => 1,
            false => quarter,
        };
        let mut shares: Vec<Share> = Vec::new();
        let mut left = self.max_batch_tokens - kept;
        for i in self.in_turn(0, &single) {
            if left == 0 {
                break;
            }
            left -= 1;
            shares.push(Share { job: i, n: 1, start: self.jobs[i].parts().0.kv.len(), row: 0 });
            self.first[0] = self.jobs[i].id + 1;
        }
        left += kept;
        let prompts = self.in_turn(1, &prompts);
        let (rows, last) = self.rows_of_prompts(&prompts, &pending, left, !single.is_empty());
        for (&i, &n) in prompts.iter().zip(&rows).filter(|(_, n)| **n > 0) {
            shares.push(Share { job: i, n, start: self.jobs[i].parts().0.kv.len(), row: 0 });
        }
        if let Some(last) = last {
            self.first[1] = self.jobs[prompts[last]].id + 1;
        }
        shares.sort_by_key(|s| s.job);
        shares
    }

    /// Rows for each prompt, in their turn: at most `left` in all, and of each model's as many as its pace allows. Returns
    /// them and the last prompt that got a row which did not divide.
    fn rows_of_prompts(
        &self,
        prompts: &[usize],
        pending: &[usize],
        left: usize,
        somebody_decodes: bool,
    ) -> (Vec<usize>, Option<usize>) {
        let wanted: Vec<usize> = prompts.iter().map(|&i| pending[i]).collect();
        let (mut rows, mut last) = divide(&wanted, left);
        // A device that runs ahead tells the time of nothing.
        let timed = |i: &usize| self.jobs[*i].model().device.mixes_rows();
        if (self.slice.is_none() && self.budget.is_none()) || !prompts.iter().any(timed) {
            return (rows, last);
        }
        let mut by_model: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (k, i) in prompts.iter().enumerate().filter(|(_, i)| timed(i)) {
            by_model.entry(Arc::as_ptr(self.jobs[*i].model()) as usize).or_default().push(k);
        }
        // Who decodes waits for the rounds of all models.
        let n_models = by_model.len() as u32;
        for of in by_model.into_values() {
            let pace = self.rounds.pace(self.jobs[prompts[of[0]]].model());
            let by_slice = self.slice.map(|slice| pace.rows(slice / n_models, somebody_decodes));
            let by_budget = self.budget.map(|budget| pace.rows_within(budget / n_models));
            let allowed = by_slice.into_iter().chain(by_budget).min().unwrap_or(usize::MAX);
            let wanted: Vec<usize> = of.iter().map(|&k| rows[k]).collect();
            let (within, last_within) = divide(&wanted, allowed);
            of.iter().zip(within).for_each(|(&k, n)| rows[k] = n);
            last = last_within.map(|j| of[j]).or(last);
        }
        (rows, last)
    }

    /// Jobs of one kind in the order in which they are served: from the first one on, and round.
    fn in_turn(&self, kind: usize, jobs: &[usize]) -> Vec<usize> {
        let at = jobs.partition_point(|&i| self.jobs[i].id < self.first[kind]);
        jobs[at..].iter().chain(&jobs[..at]).copied().collect()
    }

    /// Jobs of one base share a round; on some devices those that decode have one of their own.
    fn group(&self, shares: Vec<Share>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for share in shares {
            let job = &self.jobs[share.job];
            let (decodes, mixes) = (share.n == 1 && job.decodes_plainly(), job.model().device.mixes_rows());
            let joins = |g: &Group| {
                Arc::ptr_eq(&g.weights, &job.revision().weights)
                    && (mixes || g.decodes == decodes)
                    && (mixes || !decodes || g.shares.len() < MAX_DECODE_ROWS)
            };
            match groups.iter_mut().find(|g| joins(g)) {
                Some(group) => {
                    group.decodes &= decodes;
                    group.shares.push(share);
                }
                None => groups.push(Group { weights: job.revision().weights.clone(), decodes, shares: vec![share] }),
            }
        }
        groups
    }
}
