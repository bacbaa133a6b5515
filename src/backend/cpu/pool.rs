//! A small thread pool for kernels: numbered tasks, handed out by a shared counter.
//!
//! A decode step is some two hundred parallel regions of a few microseconds each, so workers spin
//! for a short while before they sleep, and the caller never waits for a worker that has not begun:
//! a region that is over by the time a sleeper wakes is simply closed. Every thread computes under
//! the same floating-point environment (`float_env`). Regions of one pool exclude each other, and those of work that can
//! wait stop between two tasks for a round that somebody waits for (`turns`).

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::float_env::FloatEnv;
use super::turns::{Round, Turns, Work};
use crate::sync::{Condvar, Mutex};

/// How often a worker looks for work before it sleeps; about 50 microseconds.
const SPINS: u32 = 20_000;

/// The region's state in one word: number of the region, whether it is open, how many workers are inside.
const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const REGION: u64 = 1 << 17;

/// The task function of the open region. Only read by workers that are inside it.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    n_tasks: usize,
    /// whether it stops when its turn is over
    stops: bool,
}

thread_local! {
    /// Which of its pool's threads this is; 0: none, so that it can only be the caller.
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// Which of the region's threads computes the task: below the pool's `n_threads`.
pub fn worker() -> usize {
    WORKER.get()
}

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    job: std::cell::UnsafeCell<Option<Job>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
    turns: Turns,
}

// SAFETY: `job` is written only while no region is open and nobody is inside, and read only by workers
// that entered an open region; the state word orders the two.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only dereferenced inside an open region, see above.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes tasks until none is left, or the turn is over; the caller at least one.
    fn work(&self, job: Job, is_caller: bool) {
        let mut takes = is_caller;
        while takes || !(job.stops && self.turns.is_over()) {
            takes = false;
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.n_tasks {
                return;
            }
            // SAFETY: the region is open and the caller waits for everyone inside, so the closure lives.
            let task = unsafe { &*job.task };
            if catch_unwind(AssertUnwindSafe(|| task(i))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Enters the open region if it is newer than `seen`; returns its number.
    fn enter(&self, seen: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        if state & OPEN == 0 || state / REGION == seen {
            return None;
        }
        let entered = self.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed);
        entered.ok().map(|s| s / REGION)
    }

    fn worker(&self, number: usize) {
        WORKER.set(number);
        let _env = FloatEnv::set();
        let mut seen = 0;
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(region) = self.enter(seen) {
                seen = region;
                // SAFETY: we are inside an open region, so the job is set and stays.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.work(job, false);
                }
                self.state.fetch_sub(1, Ordering::Release);
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let mut sleepers = self.sleepers.lock();
            let state = self.state.load(Ordering::SeqCst);
            if (state & OPEN == 0 || state / REGION == seen) && !self.stop.load(Ordering::SeqCst) {
                *sleepers += 1;
                self.wake.wait(&mut sleepers);
                *sleepers -= 1;
            }
            idle = 0;
        }
    }
}

/// The pool. Dropping it ends its threads.
pub struct Pool {
    shared: Arc<Shared>,
    region: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool that computes with `n_threads` threads, the caller's included.
    pub fn new(n_threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: std::cell::UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
            turns: Turns::new(),
        });
        let mut pool = Pool { shared, region: Mutex::new(()), workers: Vec::new() };
        for i in 1..n_threads.max(1) {
            let shared = pool.shared.clone();
            pool.workers
                .push(std::thread::Builder::new().name(format!("squire-cpu-{i}")).spawn(move || shared.worker(i))?);
        }
        Ok(pool)
    }

    /// Number of threads that compute, the caller's included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Waits for a turn to compute a round in.
    pub fn round(&self) -> Round<'_> {
        self.shared.turns.round()
    }

    /// From here on, until the guard goes, what the thread runs gives way to rounds.
    pub fn work_that_waits(&self) -> Work<'_> {
        self.shared.turns.work()
    }

    /// Calls `f` as a thread that is at no such work.
    pub fn at_rest<T>(&self, f: impl FnOnce() -> T) -> T {
        self.shared.turns.at_rest(f)
    }

    /// How long such work may keep a round waiting at a time; None: until it is done.
    pub fn set_slice(&self, slice: Option<Duration>) {
        self.shared.turns.set_slice(slice);
    }

    /// Runs `task(0) .. task(n_tasks - 1)`, in any order and on any thread, and returns when all are done.
    /// A panic in a task is raised again here.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let env = FloatEnv::set();
        let mut next = 0;
        let mut panicked = false;
        while next < n_tasks && !panicked {
            let turn = self.shared.turns.region();
            let stops = turn.is_some();
            if n_tasks - next == 1 || self.workers.is_empty() {
                task(next);
                next += 1;
                while next < n_tasks && !(stops && self.shared.turns.is_over()) {
                    task(next);
                    next += 1;
                }
            } else {
                (next, panicked) = self.region(next, n_tasks, stops, task);
            }
        }
        drop(env);
        if panicked {
            resume_unwind(Box::new("a kernel task panicked"));
        }
    }

    /// Runs tasks from `first` on with all threads. Returns the first that nobody took, and whether one panicked.
    fn region(&self, first: usize, n_tasks: usize, stops: bool, task: &(dyn Fn(usize) + Sync)) -> (usize, bool) {
        let _region = self.region.lock();
        let shared = &*self.shared;
        // SAFETY: only the lifetime is widened. Workers use the pointer inside the open region alone, and
        // this function leaves only after the region is closed and empty.
        let task: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task as *const _) };
        let job = Job { task, n_tasks, stops };
        // SAFETY: no region is open and nobody is inside (we hold the region lock and waited last time).
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(first, Ordering::Relaxed);
        let opened = (shared.state.load(Ordering::Relaxed) / REGION + 1) * REGION + OPEN;
        shared.state.store(opened, Ordering::SeqCst);
        // The state was published before this lock is taken, and a worker checks it under the lock before it sleeps.
        if *shared.sleepers.lock() > 0 {
            shared.wake.notify_all();
        }
        shared.work(job, true);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        // Each thread that found none left has counted one more.
        (shared.next.load(Ordering::Relaxed).min(n_tasks), shared.panicked.swap(false, Ordering::Relaxed))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _sleepers = self.shared.sleepers.lock();
            self.shared.stop.store(true, Ordering::SeqCst);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_thread_count() {
        for n_threads in 1..5 {
            let pool = Pool::new(n_threads).unwrap();
            for n_tasks in [0usize, 1, 2, 7, 100] {
                let hits: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(n_tasks, &|i| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_up_again() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(3).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|i| assert_ne!(i, 5))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn several_callers_share_one_pool() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(8, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 28);
                    }
                });
            }
        });
    }
}
