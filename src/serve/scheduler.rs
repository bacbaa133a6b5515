//! One step of the engine: who prefills and who decodes, one batched forward over each base, then deliver.
//!
//! Rows go to jobs by priority, to those that decode before prompts, and to prompts as many as the model's pace allows (`deal`).
//! All jobs on one base share a forward whatever their adapters, so its weights are read once a round. A job without pages
//! waits (`pages`).
//!
//! On a GPU, rows that decode have a round of their own, which is a recorded graph, and while everybody just decodes the
//! next round is asked for before the last one's tokens are known (`ahead`): its rows take them from the device.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::deal::{Dealer, Prompts, Wish};
use super::job::{End, Job, Standing, Work, end_each};
use super::metrics::Counters;
use super::pages;
use super::revision::Counted;
use super::round::{Rounds, Share};
use crate::backend::Device;
use crate::backend::batch::MAX_DECODE_ROWS;
use crate::error::{Error, Fault};
use crate::model::Weights;
use crate::sync::atomic::Ordering;

/// The jobs under way and the scratch memory of their models.
pub(super) struct Scheduler {
    /// by priority, the highest first, and then in order of arrival
    jobs: Vec<Job>,
    /// the number of the next job
    next_id: u64,
    rounds: Rounds,
    dealer: Dealer,
    slice: Option<Duration>,
    /// how long the next round may take, as far as that can be seen to
    budget: Option<Duration>,
    device: Device,
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
            dealer: Dealer::new(max_batch_tokens),
            slice,
            budget: None,
            device,
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
        let models: BTreeSet<usize> = self.jobs.iter().map(|job| Arc::as_ptr(job.model()) as usize).collect();
        models.into_iter().map(|model| self.rounds.pace(model).least()).sum()
    }

    pub(super) fn add(&mut self, mut job: Job) {
        job.id = self.next_id;
        self.next_id += 1;
        let at = self.jobs.partition_point(|other| other.priority() >= job.priority());
        self.jobs.insert(at, job);
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
        self.count_jobs(counters);
    }

    /// Frees the scratch memory of models that nobody has any more.
    pub(super) fn forget_released(&mut self) {
        self.rounds.forget_released();
    }

    /// One round.
    ///
    /// Returns whether anything came of it: nothing does where all wait for pages that are on their way.
    pub(super) fn step(&mut self, counters: &Counters) -> bool {
        let moved = self.round(counters);
        self.count_jobs(counters);
        moved
    }

    fn round(&mut self, counters: &Counters) -> bool {
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

    /// Says how many jobs wait, run and had to give way.
    fn count_jobs(&self, counters: &Counters) {
        let of = |standing| self.jobs.iter().filter(|job| job.standing == standing).count() as u64;
        counters.jobs_waiting.store(of(Standing::Waiting), Ordering::Relaxed);
        counters.jobs_running.store(of(Standing::Running), Ordering::Relaxed);
        counters.jobs_preempted.store(of(Standing::Preempted), Ordering::Relaxed);
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
        let jobs: Vec<usize> = (0..self.jobs.len()).filter(|&i| runs[i] && self.jobs[i].pending() > 0).collect();
        let wish = |&i: &usize| {
            let job = &self.jobs[i];
            // A device that runs ahead tells the time of nothing.
            let paced = ((self.slice.is_some() || self.budget.is_some()) && job.model().device.mixes_rows())
                .then(|| Arc::as_ptr(job.model()) as usize);
            Wish { id: job.id, priority: job.priority(), rows: job.pending(), paced }
        };
        let wishes: Vec<Wish> = jobs.iter().map(wish).collect();
        let (rounds, slice, budget) = (&self.rounds, self.slice, self.budget);
        // Who decodes waits for the rounds of all models.
        let pace = |of: Prompts| {
            let pace = rounds.pace(of.model);
            let by_slice = slice.map(|slice| pace.rows(slice / of.n_models, of.somebody_decodes));
            let by_budget = budget.map(|budget| pace.rows_within(budget / of.n_models));
            by_slice.into_iter().chain(by_budget).min().unwrap_or(usize::MAX)
        };
        let rows = self.dealer.deal(&wishes, pace);
        let served = jobs.into_iter().zip(rows).filter(|&(_, n)| n > 0);
        served.map(|(i, n)| Share { job: i, n, start: self.jobs[i].parts().0.kv.len(), row: 0 }).collect()
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
