//! The weights of a model in their revisions: which one is current, which are still used, how many may be.
//!
//! A revision is base weights, which others may share, and at most one generation of an adapter. Neither ever changes. New
//! sessions get the current one, or the one that an adapter's name stands for; sessions under way keep theirs, and a
//! revision's memory goes with its last user.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use crate::error::{Error, Fault, Result, brief};
use crate::model::{Adapter, KvPool, Parameters, Weights};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Something of the engine's weights, counted as long as it lives.
pub struct Counted<T> {
    value: T,
    bytes: u64,
    /// bytes of all weights of the engine, these included
    total: Arc<AtomicU64>,
}

impl<T> Counted<T> {
    fn new(total: &Arc<AtomicU64>, value: T, bytes: u64) -> Arc<Counted<T>> {
        total.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Counted { value, bytes, total: total.clone() })
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// One set of weights, never changed.
pub struct Revision {
    /// Its number: from 1 for what is published, above `NAMED` for adapters with names.
    pub number: u64,
    /// The base weights; revisions that differ by their adapters share them.
    pub weights: Arc<Counted<Weights>>,
    /// The generation of an adapter that applies to its rows.
    pub adapter: Option<Arc<Counted<Adapter>>>,
    /// The name under which that was loaded; None of what is current.
    pub name: Option<String>,
    /// who is bound to it
    bound: AtomicUsize,
    computed: Computed,
}

/// What was computed under a revision, kept for whoever asks for the same ids, and gone with it.
struct Computed {
    pool: Arc<KvPool>,
    root: u64,
}

impl Drop for Computed {
    fn drop(&mut self) {
        self.pool.forget(self.root);
    }
}

impl Revision {
    /// By what its pages are known to the pool. No two revisions share it, also where a checkpoint gave them one number.
    pub(super) fn root(&self) -> u64 {
        self.computed.root
    }

    /// Its adapter.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref().map(|adapter| &***adapter)
    }

    /// Bytes that are its alone where others share its base.
    fn own_bytes(&self) -> u64 {
        self.adapter.as_ref().map_or(self.weights.bytes, |adapter| adapter.bytes)
    }
}

/// A hold on a revision that counts: that of a session, and of what was computed by it. Who only looks at a revision holds
/// an `Arc` of it, which keeps nobody from publishing.
pub struct Bound(Arc<Revision>);

impl Bound {
    /// Under the lock of the lineage.
    fn to(revision: &Arc<Revision>) -> Bound {
        revision.bound.fetch_add(1, Ordering::Relaxed);
        Bound(revision.clone())
    }

    /// Tells later whether a revision is this one; holds nothing.
    pub(crate) fn watch(&self) -> Weak<Revision> {
        Arc::downgrade(&self.0)
    }

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
    /// where their pages come from
    pool: Arc<KvPool>,
    revisions: Mutex<Revisions>,
}

struct Revisions {
    current: Arc<Revision>,
    /// those that were current
    alive: Vec<Weak<Revision>>,
    /// what each adapter's name stands for
    named: BTreeMap<String, Named>,
    /// the largest number of a named generation
    last_named: u64,
}

/// Generations of named adapters are numbered from here on. So what is published has numbers without gaps, by which
/// staleness is counted, and what a checkpoint puts back has nobody else's.
pub const NAMED: u64 = 1_000_000_000;

/// What must still be current when something is published that was computed from it.
pub(super) enum Upon<'a> {
    /// nothing
    Anything,
    /// the base weights
    Base(&'a Arc<Counted<Weights>>),
    /// the revision
    Revision(&'a Arc<Revision>),
}

/// What the name of an adapter stands for.
enum Named {
    /// its newest generation
    Loaded(Arc<Revision>),
    /// none any more: the base that it was made for was replaced by the revision of this number
    Orphaned(u64),
}

impl Revisions {
    /// Returns the one that was current, and the adapters of its base if that is no longer current, whose memory may go with
    /// them: to be dropped without the lock.
    fn replace(&mut self, revision: Arc<Revision>) -> Vec<Arc<Revision>> {
        let mut replaced = Vec::new();
        if !Arc::ptr_eq(&revision.weights, &self.current.weights) {
            for named in self.named.values_mut() {
                if let Named::Loaded(orphan) = std::mem::replace(named, Named::Orphaned(revision.number)) {
                    // Who is bound to it keeps the old base.
                    self.alive.push(Arc::downgrade(&orphan));
                    replaced.push(orphan);
                }
            }
        }
        self.alive.push(Arc::downgrade(&revision));
        replaced.push(std::mem::replace(&mut self.current, revision));
        replaced
    }

    fn unknown(&self, name: &str) -> Error {
        const SHOWN: usize = 8;
        let names: Vec<String> = self.named.keys().take(SHOWN).map(brief).collect();
        let more = match self.named.len().saturating_sub(SHOWN) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let known = match names.is_empty() {
            true => "none is loaded".to_string(),
            false => format!("loaded are {}{more}", names.join(", ")),
        };
        Error::new(Fault::UnknownAdapter, format!("adapter {}: not known; {known}", brief(name)))
    }

    fn named(&self, name: &str) -> Result<&Arc<Revision>> {
        match self.named.get(name) {
            Some(Named::Loaded(revision)) => Ok(revision),
            Some(Named::Orphaned(number)) => {
                let why = format!(
                    "adapter {}: its base was replaced by revision {number}, for which it was not made; load one that was",
                    brief(name)
                );
                Err(Error::new(Fault::AdapterMismatch, why))
            }
            None => Err(self.unknown(name)),
        }
    }

    fn check_upon(&self, upon: &Upon) -> Result<()> {
        let (what, holds) = match upon {
            Upon::Anything => ("", true),
            Upon::Base(base) => ("base weights were", Arc::ptr_eq(base, &self.current.weights)),
            Upon::Revision(revision) => ("revision was", Arc::ptr_eq(revision, &self.current)),
        };
        if holds {
            return Ok(());
        }
        let number = self.current.number;
        let why = format!(
            "the {what} replaced by revision {number} since this was computed, which would be lost; begin again from there"
        );
        Err(Error::new(Fault::AdapterMismatch, why))
    }

    fn check_room(&mut self, limit: usize) -> Result<()> {
        // One that nobody is bound to is gone as soon as whoever looks at it has looked, the current one once it is
        // replaced. Under this lock nobody binds one anew.
        let bound = |r: &Weak<Revision>| r.upgrade().is_some_and(|r| r.bound.load(Ordering::Relaxed) > 0);
        let alive = self.alive.iter().filter(|r| bound(r)).count() + 1;
        if alive > limit.max(1) {
            let bytes = self.current.own_bytes();
            let why = format!("{alive} revisions would be alive, {limit} may be; end or rebase older sessions first");
            return Err(Error::memory(Fault::HostBudget, bytes, 0, why));
        }
        Ok(())
    }
}

/// A revision without a name.
fn made(
    pool: &Arc<KvPool>,
    number: u64,
    weights: Arc<Counted<Weights>>,
    adapter: Option<Arc<Counted<Adapter>>>,
) -> Revision {
    let computed = Computed { pool: pool.clone(), root: pool.new_root() };
    Revision { number, weights, adapter, name: None, bound: AtomicUsize::new(0), computed }
}

impl Lineage {
    /// A lineage that begins with `weights` as revision 1; `total` counts the bytes of all the engine's.
    pub(super) fn new(total: &Arc<AtomicU64>, weights: Weights, pool: &Arc<KvPool>) -> Lineage {
        let bytes = weights.bytes();
        let current = Arc::new(made(pool, 1, Counted::new(total, weights, bytes), None));
        let revisions =
            Revisions { alive: vec![Arc::downgrade(&current)], current, named: BTreeMap::new(), last_named: NAMED };
        Lineage { total: total.clone(), pool: pool.clone(), revisions: Mutex::new(revisions) }
    }

    /// A revision of parameters: weights of its own, or the base of `current` under an adapter.
    fn revision(&self, number: u64, parameters: Parameters, current: &Revision) -> Revision {
        match parameters {
            Parameters::Weights(weights) => {
                let bytes = weights.bytes();
                made(&self.pool, number, Counted::new(&self.total, weights, bytes), None)
            }
            Parameters::Adapter(adapter) => {
                let bytes = adapter.bytes();
                let adapter = Counted::new(&self.total, adapter, bytes);
                made(&self.pool, number, current.weights.clone(), Some(adapter))
            }
        }
    }

    pub(super) fn current(&self) -> Arc<Revision> {
        self.revisions.lock().current.clone()
    }

    /// The current revision, for a session that keeps it.
    pub(super) fn bind(&self) -> Bound {
        let revisions = self.revisions.lock();
        Bound::to(&revisions.current)
    }

    /// The newest generation of the adapter of that name, for a session that keeps it.
    ///
    /// Errors: `UnknownAdapter`; `AdapterMismatch` where other base weights were published since it was loaded.
    pub(super) fn bind_named(&self, name: &str) -> Result<Bound> {
        let revisions = self.revisions.lock();
        revisions.named(name).map(Bound::to)
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

    /// Makes `parameters` the current revision and returns its number. Refused, and the parameters given back, if more than
    /// `limit` would then be alive, or (`AdapterMismatch`) if what they were computed from is no longer current.
    pub(super) fn publish(
        &self,
        parameters: Parameters,
        upon: Upon,
        limit: usize,
    ) -> std::result::Result<u64, Box<(Parameters, Error)>> {
        let mut revisions = self.revisions.lock();
        if let Err(e) = revisions.check_upon(&upon).and_then(|()| revisions.check_room(limit)) {
            return Err(Box::new((parameters, e)));
        }
        let number = revisions.current.number + 1;
        let revision = self.revision(number, parameters, &revisions.current);
        let replaced = revisions.replace(Arc::new(revision));
        drop(revisions);
        drop(replaced);
        Ok(number)
    }

    /// Makes what a revision is the current one once more, under the next number, which is returned. Weights and adapter are
    /// shared, so it takes no memory, and no limit refuses it.
    pub(super) fn publish_again(&self, revision: &Revision) -> u64 {
        let mut revisions = self.revisions.lock();
        let number = revisions.current.number + 1;
        let again = made(&self.pool, number, revision.weights.clone(), revision.adapter.clone());
        let replaced = revisions.replace(Arc::new(again));
        drop(revisions);
        drop(replaced);
        number
    }

    /// Makes `parameters` the current revision under a number from a checkpoint.
    pub(super) fn restore(&self, parameters: Parameters, number: u64) {
        let mut revisions = self.revisions.lock();
        let revision = self.revision(number, parameters, &revisions.current);
        let replaced = revisions.replace(Arc::new(revision));
        drop(revisions);
        drop(replaced);
    }

    /// Makes an adapter of the current base the one that `name` stands for, and returns its number. Sessions on an older
    /// one keep it.
    pub(super) fn name(&self, name: &str, adapter: Adapter, base: &Arc<Counted<Weights>>) -> Result<u64> {
        let mut revisions = self.revisions.lock();
        if !Arc::ptr_eq(base, &revisions.current.weights) {
            let why =
                format!("adapter {}: the base was replaced while the adapter was read; load it again", brief(name));
            return Err(Error::new(Fault::AdapterMismatch, why));
        }
        revisions.last_named += 1;
        let number = revisions.last_named;
        let mut revision = self.revision(number, Parameters::Adapter(adapter), &revisions.current);
        revision.name = Some(name.to_string());
        let replaced = revisions.named.insert(name.to_string(), Named::Loaded(Arc::new(revision)));
        drop(revisions);
        drop(replaced);
        Ok(number)
    }

    /// Forgets the adapter of that name; sessions on it keep it.
    pub(super) fn forget(&self, name: &str) -> Result<()> {
        let mut revisions = self.revisions.lock();
        let forgotten = revisions.named.remove(name);
        let unknown = forgotten.is_none().then(|| revisions.unknown(name));
        drop(revisions);
        drop(forgotten);
        unknown.map_or(Ok(()), Err)
    }

    /// The names of adapters with their newest generations.
    pub(super) fn names(&self) -> Vec<(String, Arc<Revision>)> {
        let loaded = |(name, named): (&String, &Named)| match named {
            Named::Loaded(revision) => Some((name.clone(), revision.clone())),
            Named::Orphaned(_) => None,
        };
        self.revisions.lock().named.iter().filter_map(loaded).collect()
    }
}
