//! Locks that live in their own memory alone, and that a panic leaves usable.
//!
//! parking_lot keeps its sleepers in a table that is one for the process: a thread that holds a part of the table's lock
//! while another forks leaves it locked in the child, whose own, new engine then waits for ever. The standard library's locks
//! have no such table. What a panic leaves half-done is not their business either: handles and engines are poisoned one
//! floor up, each by what it knows.
//!
//! Under the feature `model-check` they are shuttle's, which runs threads in orders that it chooses, so that tests see the rare ones
//! (`serve/model_checks.rs`). There a wait has no end but the news.
#![forbid(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::time::Instant;

#[cfg(feature = "model-check")]
use shuttle::sync;
#[cfg(not(feature = "model-check"))]
use std::sync;
pub(crate) use sync::atomic;
use sync::{PoisonError, TryLockError};

/// A lock.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

/// The right to what the lock protects. The lock is let go of when it is dropped.
pub(crate) struct MutexGuard<'a, T> {
    /// None while a condition is waited for
    held: Option<sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    /// Waits until nobody else holds it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { held: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Without waiting, since nobody else can hold it.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// None where somebody else holds it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(held) => Some(MutexGuard { held: Some(held) }),
            Err(TryLockError::Poisoned(e)) => Some(MutexGuard { held: Some(e.into_inner()) }),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Only a wait takes the inner guard, and it puts it back.
const HELD: &str = "the lock is held but while a condition is waited for";

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect(HELD)
    }
}

/// Something that becomes true under a lock.
#[derive(Debug, Default)]
pub(crate) struct Condvar(sync::Condvar);

impl Condvar {
    pub(crate) const fn new() -> Condvar {
        Condvar(sync::Condvar::new())
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Lets go of the lock, waits to be notified, perhaps for nothing, and takes the lock again.
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().expect(HELD);
        guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
    }

    /// The same, no longer than until `deadline`; returns whether that is past.
    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> bool {
        let held = guard.held.take().expect(HELD);
        let left = deadline.saturating_duration_since(Instant::now());
        let (held, result) = self.0.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner);
        guard.held = Some(held);
        result.timed_out()
    }
}

/// A lock that many may read under.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> RwLock<T> {
        RwLock(sync::RwLock::new(value))
    }

    /// None while somebody writes.
    pub(crate) fn try_read(&self) -> Option<sync::RwLockReadGuard<'_, T>> {
        match self.0.try_read() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// None while somebody reads or writes.
    pub(crate) fn try_write(&self) -> Option<sync::RwLockWriteGuard<'_, T>> {
        match self.0.try_write() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_panic_under_the_lock_leaves_it_usable() {
        let lock = Mutex::new(1);
        let _ = catch_unwind(AssertUnwindSafe(|| {
            *lock.lock() = 2;
            panic!("no");
        }));
        assert_eq!(*lock.lock(), 2);
        assert_eq!(lock.try_lock().map(|guard| *guard), Some(2));
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(held);
    }

    #[test]
    fn a_wait_ends_with_the_news_or_with_its_time() {
        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let mut guard = pair.0.lock();
        assert!(pair.1.wait_until(&mut guard, Instant::now() + Duration::from_millis(5)));
        let other = pair.clone();
        let thread = std::thread::spawn(move || {
            *other.0.lock() = true;
            other.1.notify_all();
        });
        while !*guard {
            pair.1.wait(&mut guard);
        }
        drop(guard);
        thread.join().unwrap();
    }
}
