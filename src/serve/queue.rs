//! One wait for many generations: whoever has something to tell is pulled next, each in its turn.
#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::bell::{Bell, Rings};
use super::engine::Engine;
use super::generation::{Generation, Next};
use crate::error::{Error, Fault, Result};
use crate::sync::Mutex;

/// How long a wait looks away from generations that nobody in the engine makes, and from an engine that its caller drives.
const SLICE: Duration = Duration::from_millis(20);
/// How long it looks away from such an engine that has nothing to do.
const IDLE: Duration = Duration::from_millis(1);

/// Generations of one engine, with a tag of the host's each. It holds none of them: one that is dropped is gone from it.
pub struct Queue<T: Borrow<Generation> = Generation> {
    engine: Engine,
    bell: Arc<Bell>,
    members: Mutex<Members<T>>,
}

struct Members<T> {
    by_number: BTreeMap<u64, Member<T>>,
    last: u64,
}

struct Member<T> {
    generation: Weak<T>,
    /// whether it is made outside the engine, so that somebody must look after it
    is_elsewhere: bool,
    tag: u64,
    rings: Arc<Rings>,
}

/// What came of pulling one.
pub enum Heard<E> {
    /// There was nothing.
    Nothing,
    /// Something, and more may follow.
    Something(E),
    /// Its end.
    Last(E),
    /// It was let go of: nobody is to hear of it.
    Gone,
}

impl Queue {
    /// What some generation of the queue tells next, with its tag, as [`Generation::next`] gives it: tokens, the end after which it is
    /// no longer in the queue, or its error. Waits up to `timeout` (None: as long as it takes, also while the queue is empty); then
    /// None. Generations that have something take turns.
    pub fn next(&self, timeout: Option<Duration>) -> Option<(u64, Result<Next>)> {
        let pull = |generation: &Generation| match generation.next(Some(Duration::ZERO)) {
            Ok(Next::Timeout) => Heard::Nothing,
            Ok(next @ Next::End(_)) => Heard::Last(Ok(next)),
            other => Heard::Something(other),
        };
        self.pull(timeout, pull)
    }
}

impl<T: Borrow<Generation>> Queue<T> {
    /// An empty queue for generations of an engine, which it steps while it waits where the caller drives it.
    pub fn new(engine: &Engine) -> Queue<T> {
        let members = Members { by_number: BTreeMap::new(), last: 0 };
        Queue { engine: engine.clone(), bell: Arc::default(), members: Mutex::new(members) }
    }

    /// Takes a generation in, from its next event on.
    ///
    /// Errors: `ForeignHandle` of another engine's; `BadValue` where it is in a queue already.
    pub fn add(&self, generation: &Arc<T>, tag: u64) -> Result<()> {
        let one: &Generation = (**generation).borrow();
        if !one.engine.is(&self.engine) {
            let why = "the generation belongs to another engine than the queue; make a queue for each";
            return Err(Error::new(Fault::ForeignHandle, why));
        }
        let mut members = self.members.lock();
        members.last += 1;
        let number = members.last;
        let rings = Rings::new(&self.bell, number);
        if !one.outbox.watch(&rings) {
            return Err(Error::new(Fault::BadValue, "the generation is in a queue already"));
        }
        members.by_number.retain(|_, member| member.generation.strong_count() > 0);
        let is_elsewhere = one.is_elsewhere();
        members.by_number.insert(number, Member { generation: Arc::downgrade(generation), is_elsewhere, tag, rings });
        Ok(())
    }

    /// Generations that are in it.
    pub fn len(&self) -> usize {
        self.members.lock().by_number.values().filter(|member| member.generation.strong_count() > 0).count()
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A descriptor that is readable while some generation may have something to tell; for an event loop, which then pulls with a
    /// timeout of 0 until there is nothing. It is the queue's, and not to be read from or closed. None where there is none.
    #[cfg(unix)]
    pub fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        self.bell.descriptor()
    }

    /// The same as [`Queue::next`] with another way to pull.
    pub fn pull<E>(&self, timeout: Option<Duration>, mut pull: impl FnMut(&T) -> Heard<E>) -> Option<(u64, E)> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            if self.bell.is_closed() {
                return None;
            }
            let is_elsewhere = self.look();
            while let Some(number) = self.bell.take() {
                let Some((generation, tag, rings)) = self.member(number) else { continue };
                // Before it is looked at: what comes meanwhile rings again.
                rings.taken();
                match pull(&generation) {
                    Heard::Nothing => {}
                    Heard::Something(event) => {
                        rings.ring();
                        return Some((tag, event));
                    }
                    Heard::Last(event) => {
                        (*generation).borrow().outbox.unwatch();
                        // Of two who hear it one tells it.
                        if self.remove(number) {
                            return Some((tag, event));
                        }
                    }
                    Heard::Gone => {
                        self.remove(number);
                    }
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
            let within = |moment: Duration| {
                let moment = Instant::now() + moment;
                Some(deadline.map_or(moment, |deadline| deadline.min(moment)))
            };
            match self.engine.is_caller_driven() {
                // A round that fails ends those that it was for, which then say so.
                true if self.engine.step().unwrap_or(false) => {}
                true => self.bell.wait(within(IDLE)),
                false => self.bell.wait(if is_elsewhere { within(SLICE) } else { deadline }),
            }
        }
    }

    fn member(&self, number: u64) -> Option<(Arc<T>, u64, Arc<Rings>)> {
        let mut members = self.members.lock();
        let Member { generation, tag, rings, .. } = members.by_number.get(&number)?;
        let Some(generation) = generation.upgrade() else {
            members.by_number.remove(&number);
            return None;
        };
        Some((generation, *tag, rings.clone()))
    }

    /// Whether it was there.
    fn remove(&self, number: u64) -> bool {
        self.members.lock().by_number.remove(&number).is_some()
    }

    /// Looks after those that are made outside the engine, which have no thread; whether there are some.
    fn look(&self) -> bool {
        let members = self.members.lock();
        let elsewhere = members.by_number.values().filter(|member| member.is_elsewhere);
        let alive: Vec<Arc<T>> = elsewhere.filter_map(|member| member.generation.upgrade()).collect();
        drop(members);
        alive.iter().for_each(|generation| (**generation).borrow().look());
        !alive.is_empty()
    }

    /// Ends it: whoever waits hears of nothing, and the generations in it are pulled as before, or put into another queue.
    pub fn close(&self) {
        let members = std::mem::take(&mut self.members.lock().by_number);
        let alive = members.into_values().filter_map(|member| member.generation.upgrade());
        alive.for_each(|generation| (*generation).borrow().outbox.unwatch());
        self.bell.close();
    }
}

impl<T: Borrow<Generation>> Drop for Queue<T> {
    fn drop(&mut self) {
        self.close();
    }
}
