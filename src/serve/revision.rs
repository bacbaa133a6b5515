//! The weights of a model in their revisions: which one is current, which are still used, how many may be.
//!
//! A revision's weights never change. New sessions get the current one, sessions under way keep theirs, and a revision's
//! memory goes with its last user.
#![forbid(unsafe_code)]

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crate::error::{Error, Fault, Result};
use crate::model::Weights;
use crate::sync::Mutex;

/// One set of weights, never changed.
pub struct Revision {
    /// Its number in the lineage, from 1.
    pub number: u64,
    /// The weights.
    pub weights: Weights,
    /// who is bound to it
    bound: AtomicUsize,
    /// bytes of all revisions of the engine, these included
    total: Arc<AtomicU64>,
}

impl Revision {
    fn new(total: &Arc<AtomicU64>, number: u64, weights: Weights) -> Arc<Revision> {
        total.fetch_add(weights.bytes(), Ordering::Relaxed);
        Arc::new(Revision { number, weights, bound: AtomicUsize::new(0), total: total.clone() })
    }
}

impl Drop for Revision {
    fn drop(&mut self) {
        self.total.fetch_sub(self.weights.bytes(), Ordering::Relaxed);
    }
}

/// A hold on a revision that counts: that of a session, and of what was computed by it. Who only looks at a revision holds
/// an `Arc` of it, which keeps nobody from publishing.
pub struct Bound(Arc<Revision>);

impl Bound {
    pub(super) fn revision(&self) -> &Arc<Revision> {
        &self.0
    }
}

impl Clone for Bound {
    fn clone(&self) -> Bound {
        self.0.bound.fetch_add(1, Ordering::Relaxed);
        Bound(self.0.clone())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.0.bound.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deref for Bound {
    type Target = Revision;

    fn deref(&self) -> &Revision {
        &self.0
    }
}

/// The revisions of one model.
pub(super) struct Lineage {
    /// bytes of all revisions of the engine
    total: Arc<AtomicU64>,
    revisions: Mutex<Revisions>,
}

struct Revisions {
    current: Arc<Revision>,
    alive: Vec<Weak<Revision>>,
}

impl Revisions {
    /// Returns the one that was current, whose memory may go with it: to be dropped without the lock.
    fn replace(&mut self, revision: Arc<Revision>) -> Arc<Revision> {
        self.alive.push(Arc::downgrade(&revision));
        std::mem::replace(&mut self.current, revision)
    }

    fn check_room(&mut self, limit: usize) -> Result<()> {
        // One that nobody is bound to is gone as soon as whoever looks at it has looked, the current one once it is
        // replaced. Under this lock nobody binds one anew.
        let bound = |r: &Weak<Revision>| r.upgrade().is_some_and(|r| r.bound.load(Ordering::Relaxed) > 0);
        let alive = self.alive.iter().filter(|r| bound(r)).count() + 1;
        if alive > limit.max(1) {
            let bytes = self.current.weights.bytes();
            let why = format!("{alive} revisions would be alive, {limit} may be; end or rebase older sessions first");
            return Err(Error::memory(Fault::HostBudget, bytes, 0, why));
        }
        Ok(())
    }
}

impl Lineage {
    /// A lineage that begins with `weights` as revision 1; `total` counts the bytes of all the engine's.
    pub(super) fn new(total: &Arc<AtomicU64>, weights: Weights) -> Lineage {
        let current = Revision::new(total, 1, weights);
        let revisions = Revisions { alive: vec![Arc::downgrade(&current)], current };
        Lineage { total: total.clone(), revisions: Mutex::new(revisions) }
    }

    pub(super) fn current(&self) -> Arc<Revision> {
        self.revisions.lock().current.clone()
    }

    /// The current revision, for a session that keeps it.
    pub(super) fn bind(&self) -> Bound {
        let revisions = self.revisions.lock();
        revisions.current.bound.fetch_add(1, Ordering::Relaxed);
        Bound(revisions.current.clone())
    }

    /// Revisions that somebody still uses, the current one included.
    pub(super) fn n_alive(&self) -> usize {
        let mut revisions = self.revisions.lock();
        revisions.alive.retain(|r| r.strong_count() > 0);
        revisions.alive.len()
    }

    pub(super) fn check_room(&self, limit: usize) -> Result<()> {
        self.revisions.lock().check_room(limit)
    }

    /// Makes `weights` the current revision and returns its number. Refused, and the weights given back, if more than
    /// `limit` would then be alive.
    pub(super) fn publish(&self, weights: Weights, limit: usize) -> std::result::Result<u64, Box<(Weights, Error)>> {
        let mut revisions = self.revisions.lock();
        if let Err(e) = revisions.check_room(limit) {
            return Err(Box::new((weights, e)));
        }
        let number = revisions.current.number + 1;
        let replaced = revisions.replace(Revision::new(&self.total, number, weights));
        drop(revisions);
        drop(replaced);
        Ok(number)
    }

    /// Makes `weights` the current revision under a number from a checkpoint.
    pub(super) fn restore(&self, weights: Weights, number: u64) {
        let mut revisions = self.revisions.lock();
        let replaced = revisions.replace(Revision::new(&self.total, number, weights));
        drop(revisions);
        drop(replaced);
    }
}
