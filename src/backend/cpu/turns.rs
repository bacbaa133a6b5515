//! Who computes: rounds that somebody waits for, and work that can wait.
//!
//! Work that can wait, which is an update's, has the processor for a slice at a time. A round that comes meanwhile waits for
//! the end of the slice, then runs whole and without company, and the work gets a new slice. Where no round comes the work
//! is not stopped at all, however long its slices have been over; and where there is no such work a round waits for nobody.
//! The work stops between two tasks of a region, and goes on with the next one, so no result depends on it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// How long a slice is where nobody says otherwise.
pub const SLICE: Duration = Duration::from_millis(20);

/// A slice that does not end: thirty years.
const ENDLESS: Duration = Duration::from_secs(1 << 30);

/// The turns of one pool.
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    /// whether a round waits
    wanted: AtomicBool,
    /// when the slice under way ends, in nanoseconds since `since`
    ends: AtomicU64,
    since: Instant,
    /// nanoseconds
    slice: AtomicU64,
}

#[derive(Default)]
struct State {
    /// threads at work that can wait (not at rest), and those of them that wait for their turn
    at_work: usize,
    work_waits: usize,
    /// whether a region of such work is under way
    region: bool,
    /// rounds that wait, and whether one is under way
    rounds: usize,
    round: bool,
    /// when the slice ends; None: the next region begins one
    ends: Option<Instant>,
}

thread_local! {
    /// How many `Work` guards the thread holds. A thread works for one pool at a time.
    static AT_WORK: Cell<usize> = const { Cell::new(0) };
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns {
            state: Mutex::default(),
            changed: Condvar::new(),
            wanted: AtomicBool::new(false),
            ends: AtomicU64::new(0),
            since: Instant::now(),
            slice: AtomicU64::new(SLICE.as_nanos() as u64),
        }
    }

    /// Slices are so long from now on; None: without end.
    pub(super) fn set_slice(&self, slice: Option<Duration>) {
        let slice = slice.unwrap_or(ENDLESS).min(ENDLESS);
        self.slice.store(slice.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Waits for a turn of a round.
    pub(super) fn round(&self) -> Round<'_> {
        // A thread whose own work wants the round does not wait for it; and the round's regions are not that work's.
        let at_work = AT_WORK.replace(0);
        let mut state = self.state.lock();
        state.rounds += 1;
        self.wanted.store(true, Ordering::Relaxed);
        loop {
            let now = Instant::now();
            if state.round || state.region || (state.work_waits > 0 && state.ends.is_none()) {
                self.changed.wait(&mut state);
            } else if let Some(ends) = state.ends.filter(|ends| state.at_work > 0 && at_work == 0 && now < *ends) {
                // The work is between two regions, or waits for something: no longer than its slice.
                self.changed.wait_until(&mut state, ends);
            } else {
                break;
            }
        }
        state.rounds -= 1;
        state.round = true;
        self.wanted.store(state.rounds > 0, Ordering::Relaxed);
        Round { turns: self, at_work, own: PhantomData }
    }

    /// From here on, until the guard goes, what the thread computes can wait.
    pub(super) fn work(&self) -> Work<'_> {
        let outer = AT_WORK.replace(AT_WORK.get() + 1);
        if outer == 0 {
            self.state.lock().at_work += 1;
        }
        Work(self, PhantomData)
    }

    /// Calls `f`, which may take its time and wait for rounds itself, as if the thread were at no such work.
    pub(super) fn at_rest<T>(&self, f: impl FnOnce() -> T) -> T {
        let rest = Rest { turns: self, at_work: AT_WORK.replace(0) };
        if rest.at_work > 0 {
            self.change(|state| state.at_work -= 1);
        }
        f()
    }

    /// Waits for a turn of a region of work that can wait; None for a thread at anything else.
    pub(super) fn region(&self) -> Option<Region<'_>> {
        if AT_WORK.get() == 0 {
            return None;
        }
        let mut state = self.state.lock();
        state.work_waits += 1;
        let over = |state: &State| state.rounds > 0 && state.ends.is_some_and(|ends| Instant::now() >= ends);
        while state.round || state.region || over(&state) {
            self.changed.wait(&mut state);
        }
        state.work_waits -= 1;
        state.region = true;
        let slice = Duration::from_nanos(self.slice.load(Ordering::Relaxed));
        let ends = *state.ends.get_or_insert_with(|| Instant::now() + slice);
        self.ends.store((ends - self.since).as_nanos() as u64, Ordering::Relaxed);
        Some(Region(self))
    }

    /// Whether the region under way is to stop before its next task.
    pub(super) fn is_over(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
            && self.since.elapsed().as_nanos() as u64 >= self.ends.load(Ordering::Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
}

/// The turn of a round.
pub struct Round<'a> {
    turns: &'a Turns,
    /// what the thread was at
    at_work: usize,
    /// of that thread alone
    own: PhantomData<*const ()>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        AT_WORK.set(self.at_work);
        self.turns.change(|state| {
            state.round = false;
            state.ends = None;
        });
    }
}

/// While it lives, what its thread computes can wait. Of that thread alone.
pub struct Work<'a>(&'a Turns, PhantomData<*const ()>);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let inner = AT_WORK.replace(AT_WORK.get() - 1);
        if inner == 1 {
            self.0.change(|state| state.at_work -= 1);
        }
    }
}

/// A thread that was at work and for now is not.
struct Rest<'a> {
    turns: &'a Turns,
    at_work: usize,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        AT_WORK.set(self.at_work);
        if self.at_work > 0 {
            self.turns.change(|state| state.at_work += 1);
        }
    }
}

/// The turn of a region of work that can wait.
pub(super) struct Region<'a>(&'a Turns);

impl Drop for Region<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.region = false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pool;
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Lets the other thread end, also where this one's assertions fail.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    const MS: Duration = Duration::from_millis(1);

    /// A pool whose work that can wait has tasks of a millisecond.
    fn pool(n_threads: usize, slice: Option<Duration>) -> Pool {
        let pool = Pool::new(n_threads).unwrap();
        pool.set_slice(slice);
        pool
    }

    #[test]
    fn every_task_of_work_that_is_stopped_runs_once() {
        for n_threads in 1..4 {
            let pool = pool(n_threads, Some(2 * MS));
            let over = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let _round = pool.round();
                        pool.run(3, &|_| std::hint::spin_loop());
                    }
                });
                let (_over, _work) = (Over(&over), pool.work_that_waits());
                for n in [1usize, 2, 40] {
                    let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(n, &|i| {
                        std::thread::sleep(MS);
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            });
        }
    }

    #[test]
    fn a_round_and_work_that_can_wait_are_never_under_way_at_once() {
        for n_threads in [1, 3] {
            let pool = pool(n_threads, Some(MS));
            let (in_round, over) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let _round = pool.round();
                        in_round.store(true, Ordering::SeqCst);
                        std::thread::sleep(MS / 4);
                        in_round.store(false, Ordering::SeqCst);
                    }
                });
                let (_over, _work) = (Over(&over), pool.work_that_waits());
                for _ in 0..20 {
                    pool.run(8, &|_| {
                        assert!(!in_round.load(Ordering::SeqCst));
                        std::thread::sleep(MS / 4);
                        assert!(!in_round.load(Ordering::SeqCst));
                    });
                }
            });
        }
    }

    #[test]
    fn rounds_and_slices_take_turns() {
        let pool = pool(2, Some(5 * MS));
        let (rounds, over, at_work) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _round = pool.round();
                    rounds.fetch_add(usize::from(at_work.load(Ordering::SeqCst)), Ordering::SeqCst);
                    std::thread::sleep(MS / 4);
                }
            });
            let (_over, _work) = (Over(&over), pool.work_that_waits());
            // A hundred milliseconds of work on two threads: neither is kept waiting for ever by the other.
            pool.run(200, &|_| {
                at_work.store(true, Ordering::SeqCst);
                std::thread::sleep(MS);
            });
            at_work.store(false, Ordering::SeqCst);
            over.store(true, Ordering::Relaxed);
        });
        let rounds = rounds.into_inner();
        assert!(rounds >= 2, "{rounds} rounds beside work that was cut into slices");
    }

    #[test]
    fn a_round_waits_for_no_work_that_is_at_rest_or_done() {
        let pool = pool(2, None);
        let work = pool.work_that_waits();
        drop(work);
        drop(pool.round());
        // A thread at work that wants a round itself, as a host that drives its engine does.
        let _work = pool.work_that_waits();
        pool.run(4, &|_| ());
        let _round = pool.round();
        pool.run(4, &|_| ());
    }

    #[test]
    fn a_slice_that_has_begun_is_waited_for_and_no_longer() {
        let pool = pool(2, Some(30 * MS));
        let started = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let _work = pool.work_that_waits();
                pool.run(1, &|_| ());
                started.store(true, Ordering::SeqCst);
                // Busy with something else: the slice runs out all the same.
                std::thread::sleep(300 * MS);
            });
            while !started.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            let begun = Instant::now();
            let _round = pool.round();
            assert!(begun.elapsed() < 250 * MS, "the round waited for the whole of the work");
        });
    }

    #[test]
    fn a_turn_does_one_task_at_least_however_short_its_slice() {
        for n_threads in [1, 2] {
            let pool = pool(n_threads, Some(Duration::ZERO));
            let over = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        drop(pool.round());
                        std::thread::sleep(MS / 10);
                    }
                });
                let (_over, _work) = (Over(&over), pool.work_that_waits());
                pool.run(50, &|_| std::thread::sleep(MS / 10));
            });
        }
    }

    #[test]
    fn a_thread_at_rest_keeps_no_round_waiting_and_may_wait_for_one() {
        let pool = pool(2, None);
        let _work = pool.work_that_waits();
        pool.run(4, &|_| ());
        // A host's callback that waits for another thread's token.
        pool.at_rest(|| std::thread::scope(|s| s.spawn(|| drop(pool.round())).join().unwrap()));
        pool.run(4, &|_| ());
    }

    #[test]
    fn without_slices_a_round_waits_for_the_whole_of_the_work() {
        let pool = pool(2, None);
        let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                let _work = pool.work_that_waits();
                for _ in 0..5 {
                    pool.run(8, &|_| {
                        begun.store(true, Ordering::SeqCst);
                        std::thread::sleep(MS);
                    });
                }
                done.store(true, Ordering::SeqCst);
            });
            while !begun.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            let _round = pool.round();
            assert!(done.load(Ordering::SeqCst), "the round came between");
        });
    }

    #[test]
    fn a_task_that_panics_leaves_the_turns_usable() {
        for n_threads in [1, 3] {
            let pool = pool(n_threads, Some(MS));
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _work = pool.work_that_waits();
                pool.run(10, &|i| assert_ne!(i, 5));
            }));
            assert!(caught.is_err());
            drop(pool.round());
            let _work = pool.work_that_waits();
            pool.run(10, &|_| ());
        }
    }
}
