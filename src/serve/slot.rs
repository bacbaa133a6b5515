//! Where a session's timeline is: with the session while it rests, with a job while the engine works on it.
//!
//! KV is a cache of ids: a session that rests can lose its pages to one that works, and computes them again when it needs
//! them. The slots of one model know each other for that.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::revision::Bound;
use super::timeline::Timeline;
use crate::error::{Error, Fault, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// A session's timeline and the revision that it is bound to.
pub(super) struct Slot {
    state: Mutex<State>,
    /// told when a timeline comes back
    returned: Condvar,
    slots: Arc<Slots>,
    /// when it was last given work, by the clock of `slots`
    used: AtomicU64,
    /// the latest work whose asker has let go of it: it ends by itself soon
    released: AtomicU64,
}

struct State {
    whereabouts: Whereabouts,
    revision: Bound,
}

enum Whereabouts {
    Resting(Timeline),
    /// with the work of that number
    Working(u64),
    /// its job died in a panic
    Lost,
}

/// A timeline on its way to a job.
pub(super) struct Out<T> {
    /// tells this work from the session's other
    pub(super) work: u64,
    pub(super) timeline: Timeline,
    pub(super) revision: Bound,
    pub(super) prepared: T,
}

impl Slot {
    /// The slot of a new session, known to its model's others.
    pub(super) fn new(slots: &Arc<Slots>, timeline: Timeline, revision: Bound) -> Arc<Slot> {
        let state = Mutex::new(State { whereabouts: Whereabouts::Resting(timeline), revision });
        let used = AtomicU64::new(slots.tick());
        let slot =
            Arc::new(Slot { state, returned: Condvar::new(), slots: slots.clone(), used, released: AtomicU64::new(0) });
        slots.add(&slot);
        slot
    }

    /// The revision that it is bound to.
    pub(super) fn revision(&self) -> Bound {
        self.state.lock().revision.clone()
    }

    /// Waits until the timeline rests. `SessionBusy` while somebody waits for work on it; work that was let go of is
    /// waited for.
    fn rested(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        loop {
            match &state.whereabouts {
                Whereabouts::Resting(_) => return Ok(state),
                Whereabouts::Working(work) if *work == self.released.load(Ordering::SeqCst) => {
                    self.returned.wait(&mut state);
                }
                Whereabouts::Working(_) => return Err(busy()),
                Whereabouts::Lost => return Err(lost()),
            }
        }
    }

    /// Runs `f` on the timeline once it rests.
    pub(super) fn resting<T>(&self, f: impl FnOnce(&mut Timeline, &mut Bound) -> Result<T>) -> Result<T> {
        let State { whereabouts, revision } = &mut *self.rested()?;
        match whereabouts {
            Whereabouts::Resting(timeline) => f(timeline, revision),
            _ => Err(busy()),
        }
    }

    /// Takes the timeline out for work, if `prepare` agrees.
    pub(super) fn take<T>(&self, prepare: impl FnOnce(&mut Timeline) -> Result<T>) -> Result<Out<T>> {
        let work = self.slots.tick();
        let State { whereabouts, revision } = &mut *self.rested()?;
        let Whereabouts::Resting(timeline) = whereabouts else { return Err(busy()) };
        let prepared = prepare(timeline)?;
        let Whereabouts::Resting(timeline) = std::mem::replace(whereabouts, Whereabouts::Working(work)) else {
            return Err(busy());
        };
        self.used.store(work, Ordering::Relaxed);
        Ok(Out { work, timeline, revision: revision.clone(), prepared })
    }

    /// Gives the timeline back.
    pub(super) fn put_back(&self, timeline: Timeline) {
        self.settle(Whereabouts::Resting(timeline));
    }

    /// Says that the timeline will not come back.
    pub(super) fn lose(&self) {
        self.settle(Whereabouts::Lost);
    }

    fn settle(&self, whereabouts: Whereabouts) {
        let replaced = std::mem::replace(&mut self.state.lock().whereabouts, whereabouts);
        self.returned.notify_all();
        drop(replaced);
    }

    /// Says that nobody waits for this work any more: the next call on the session waits for its end instead. Takes no lock,
    /// which a call that is rendering may hold for long.
    pub(super) fn release(&self, work: u64) {
        self.released.fetch_max(work, Ordering::SeqCst);
    }

    /// The other sessions of its model.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Adds the addresses of the pages that it holds while it rests.
    fn add_pages_at_rest(&self, pages: &mut HashSet<usize>) {
        if let Some(State { whereabouts: Whereabouts::Resting(t), .. }) = self.state.try_lock().as_deref() {
            pages.extend(t.kv.addresses());
        }
    }

    /// Drops what was computed, if it rests and holds pages, `alone` or shared; returns whether it did.
    fn give_up_pages(&self, alone: bool) -> bool {
        // Who holds the lock is using the timeline now.
        let Some(mut state) = self.state.try_lock() else { return false };
        match &mut state.whereabouts {
            Whereabouts::Resting(t) if !t.kv.is_empty() && (!alone || t.kv.holds_a_page_alone()) => {
                t.give_up_pages();
                true
            }
            _ => false,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.remove_dropped();
    }
}

/// The slots of one model's sessions.
#[derive(Default)]
pub(super) struct Slots {
    all: Mutex<Vec<Weak<Slot>>>,
    clock: AtomicU64,
}

impl Slots {
    fn tick(&self) -> u64 {
        // From 1: no work has the number 0.
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn add(&self, slot: &Arc<Slot>) {
        self.all.lock().push(Arc::downgrade(slot));
    }

    fn remove_dropped(&self) {
        self.all.lock().retain(|slot| slot.strong_count() > 0);
    }

    /// Adds the addresses of the pages that sessions at rest hold.
    pub(super) fn add_pages_at_rest(&self, pages: &mut HashSet<usize>) {
        let slots: Vec<Arc<Slot>> = self.all.lock().iter().filter_map(Weak::upgrade).collect();
        slots.iter().for_each(|slot| slot.add_pages_at_rest(pages));
    }

    /// Takes the pages of the resting session that was used the longest ago; returns whether there was one.
    pub(super) fn take_pages_of_the_oldest(&self) -> bool {
        let mut slots: Vec<Arc<Slot>> = self.all.lock().iter().filter_map(Weak::upgrade).collect();
        // Read once each: hosts give sessions work meanwhile, and a key that moves is no order.
        slots.sort_by_cached_key(|slot| slot.used.load(Ordering::Relaxed));
        // Pages that forks share are free only once the last of them lets go: what many share goes last.
        [true, false].into_iter().any(|alone| slots.iter().any(|slot| slot.give_up_pages(alone)))
    }
}

fn busy() -> Error {
    Error::new(Fault::SessionBusy, "the session is being worked on; wait for its generation to end, or cancel it")
}

fn lost() -> Error {
    Error::new(Fault::Poisoned, "the session's timeline was lost in a failure of the engine; release it")
}
