//! Who gets pages of KV cache where there are not enough for all: the higher priority, and within one whoever came first.
//!
//! A job runs once it holds the pages of all its pending rows. Where they cannot be had, sessions that rest give up
//! theirs, the one that was used the longest ago first, then jobs behind it, the last one first, and nobody where all
//! of it would not be enough; what they had computed is computed again when their turn comes (with the same bits on the
//! processor; on a GPU prefill and decode agree within rounding). A job that finds no pages all the same waits for those before it, and those behind it that hold none
//! wait with it. Pages may also be on their way: with a session whose host is just using it, with work that has not arrived,
//! with a session that is being dropped; they are waited for too. Only a job that does not fit alone fails, and at once.
//!
//! What somebody has computed from the same ids under the same weights is taken and not computed. Where several are to compute the
//! same page, the first does, and the others follow.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::job::{End, Job, Standing};
use super::metrics::{Counters, add};
use crate::error::{Error, Fault, Result};

/// What came of the asking.
enum Asked {
    Runs,
    Waits,
    Fails(Error),
}

/// Sees to the pages of every job, in their order. Returns which may run, and which end here by their identity.
pub(super) fn reserve(jobs: &mut [Job], counters: &Counters) -> (Vec<bool>, Vec<(u64, End)>) {
    let mut runs = vec![false; jobs.len()];
    let mut ends = Vec::new();
    // Models, by address, for whose pages somebody waits.
    let mut waited_for: Vec<usize> = Vec::new();
    // Pages that somebody computes in this round.
    let mut under_way: BTreeSet<(usize, u64, Vec<i32>)> = BTreeSet::new();
    for i in 0..jobs.len() {
        let pool = pool_of(&jobs[i]);
        // Who waits in line takes nothing, not even what is there.
        if waited_for.contains(&pool) && held(&mut jobs[i]) == 0 {
            continue;
        }
        let rows = jobs[i].adopt() as u64;
        if rows > 0 {
            add(&counters.prefix_hits, 1);
            add(&counters.prefix_rows, rows);
        }
        let (next, follows) = match jobs[i].next_page() {
            Some(((before, ids), follows)) => (Some((pool, before, ids.to_vec())), follows),
            None => (None, false),
        };
        if follows && next.as_ref().is_some_and(|next| under_way.contains(next)) {
            continue;
        }
        match ask(jobs, i, &mut runs, counters) {
            Asked::Runs => {
                runs[i] = true;
                under_way.extend(next);
            }
            Asked::Waits => waited_for.push(pool),
            Asked::Fails(e) => ends.push((jobs[i].id, End::Failed(e))),
        }
    }
    for (job, &runs) in jobs.iter_mut().zip(&runs) {
        job.standing = match job.standing {
            _ if runs => Standing::Running,
            Standing::Preempted => Standing::Preempted,
            _ => Standing::Waiting,
        };
    }
    (runs, ends)
}

/// Jobs of one model take their pages from one pool.
fn pool_of(job: &Job) -> usize {
    Arc::as_ptr(job.model()) as usize
}

fn held(job: &mut Job) -> usize {
    job.parts().0.kv.pages().len()
}

fn take(job: &mut Job) -> Result<()> {
    let pending = job.pending();
    job.parts().0.kv.reserve(pending)
}

fn ask(jobs: &mut [Job], i: usize, runs: &mut [bool], counters: &Counters) -> Asked {
    let pool = pool_of(&jobs[i]);
    loop {
        let refused = match take(&mut jobs[i]) {
            Ok(()) => return Asked::Runs,
            Err(e) => e,
        };
        let (pending, of_budget) = (jobs[i].pending(), refused.fault() == Fault::KvBudget);
        if of_budget && !jobs[i].parts().0.kv.fits_alone(pending) {
            return Asked::Fails(refused);
        }
        // Who cannot have enough takes nothing: sessions at rest and those behind give way only if that helps.
        let later: Vec<usize> = (i + 1..jobs.len()).filter(|&j| pool_of(&jobs[j]) == pool).collect();
        // Shared pages are there once, and those that somebody before shares are not to be had.
        let mut theirs: HashSet<usize> = HashSet::new();
        later.iter().for_each(|&j| theirs.extend(jobs[j].parts().0.kv.addresses()));
        jobs[i].slot().slots().add_pages_at_rest(&mut theirs);
        for job in jobs[..=i].iter_mut() {
            for page in job.parts().0.kv.addresses() {
                theirs.remove(&page);
            }
        }
        let kv = &jobs[i].parts().0.kv;
        let enough = kv.lacking(pending) <= kv.available() + theirs.len();
        if enough && jobs[i].slot().slots().take_pages_of_the_oldest() {
            add(&counters.evicted, 1);
            continue;
        }
        let last = later.into_iter().rev().find(|&j| held(&mut jobs[j]) > 0);
        if let Some(j) = last.filter(|_| enough) {
            jobs[j].parts().0.give_up_pages();
            jobs[j].standing = Standing::Preempted;
            runs[j] = false;
            add(&counters.preempted, 1);
            continue;
        }
        let before = (0..i).any(|j| pool_of(&jobs[j]) == pool && held(&mut jobs[j]) > 0);
        return if before || of_budget { Asked::Waits } else { Asked::Fails(refused) };
    }
}
