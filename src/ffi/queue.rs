//! One wait for many generations.

use std::time::Duration;

use super::engine::squire_engine;
use super::error::squire_error;
use super::event::squire_event;
use super::generation::{Pulled, pull, squire_gen};
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::options;
use super::output::Slot;
use super::status::squire_status;
use super::within;
use crate::error::{Error, Fault};
use crate::serve::{Heard, Queue};
use crate::sync::Mutex;

/// Generations of one engine that are waited for together. Freed by squire_queue_release.
pub struct squire_queue {
    _opaque: [u8; 0],
}

/// What stands behind a `squire_queue`.
pub(crate) struct Body {
    queue: Queue<Pulled>,
    /// held while a call waits: what the last event points to must not change under another
    pulling: Mutex<()>,
}

impl Object for squire_queue {
    type Body = Body;
    const TAG: [u8; 8] = *b"sq queue";
    const NAME: &'static str = "squire_queue";
}

/// Makes an empty queue for generations of the engine. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_queue_create(
    engine: *mut squire_engine,
    out: *mut *mut squire_queue,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let engine = call.shared(engine)?;
            Ok(Body { queue: Queue::new(&engine), pulling: Mutex::default() })
        })
    }
}

/// Puts a generation into the queue under a tag of the host's, from its next event on. It stays the host's: it is cancelled and
/// released as ever, is pulled by nobody else meanwhile, and leaves the queue with its end or its release. Several may have one tag. SQUIRE_E_ARGUMENT (detail
/// FOREIGN_HANDLE) for one of another engine, SQUIRE_E_ARGUMENT for one that is in a queue already. Any thread, also while another
/// waits in squire_queue_next.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_queue_add(
    queue: *mut squire_queue,
    generation: *mut squire_gen,
    tag: u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let (queue, pulled) = (call.shared(queue)?, call.shared(generation)?);
            queue.queue.add(&pulled, tag)?;
            Ok(Outcome::Done)
        })
    }
}

/// Waits up to timeout_ms (-1: as long as it takes, also while the queue is empty; 0: not at all) until one of the queue's
/// generations has something to tell, and gives it with its tag as squire_gen_next does: all tokens since its last event, or its
/// end, after which it is no longer in the queue. Those that have something take turns. SQUIRE_OK with *tag and an event, whose
/// kind tells an end; SQUIRE_TIMEOUT with both as they were. An error is the generation's of *tag, of which the end comes next;
/// where no generation can be blamed *tag is as it was. What the event points to lives until the queue's next
/// squire_queue_next, the generation's next squire_gen_next or its release. SQUIRE_E_BUSY while another call waits for this
/// queue. On an engine that the caller drives, it steps meanwhile. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_queue_next(
    queue: *mut squire_queue,
    timeout_ms: i32,
    tag: *mut u64,
    event: *mut squire_event,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let queue = call.subject(queue)?;
            let tag = Slot::required(tag, "tag")?;
            // Refused before anybody is waited for.
            options::fill(event)?;
            let timeout = match timeout_ms {
                -1 => None,
                ms => Some(Duration::from_millis(options::count(ms, "timeout_ms")? as u64)),
            };
            let busy = || Error::new(Fault::SessionBusy, "another call waits for this queue");
            let _pulling = queue.pulling.try_lock().ok_or_else(busy)?;
            let heard = queue.queue.pull(timeout, |pulled| {
                if pulled.is_released() {
                    return Heard::Gone;
                }
                let outcome = options::fill(event).and_then(|event| pull(pulled, Some(Duration::ZERO), event));
                match outcome {
                    // Its tag may stand for nothing any more.
                    _ if pulled.is_released() => Heard::Gone,
                    Ok(Outcome::Timeout) => Heard::Nothing,
                    // Somebody pulls it beside the queue, and has what there is.
                    Err(e) if e.fault() == Fault::SessionBusy => Heard::Nothing,
                    Ok(Outcome::End) => Heard::Last(Ok(Outcome::Done)),
                    other => Heard::Something(other),
                }
            });
            match heard {
                None => Ok(Outcome::Timeout),
                Some((whose, outcome)) => {
                    tag.set(whose);
                    outcome
                }
            }
        })
    }
}

/// A descriptor in *fd that is readable while a generation of the queue may have something to tell, for poll, epoll and what is
/// built on them: call squire_queue_next with a timeout of 0 until it says SQUIRE_TIMEOUT, then wait again. While turns of a
/// host's teacher are in the queue, call it now and then all the same: their deadlines are looked at in it. It is the queue's: it is not to be
/// read from or closed, and is gone with the queue. On an engine that the caller drives nothing moves while nobody steps. SQUIRE_E_UNSUPPORTED where the platform has none. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_queue_fd(
    queue: *mut squire_queue,
    fd: *mut i32,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let queue = call.shared(queue)?;
            let fd = Slot::required(fd, "fd")?;
            #[cfg(unix)]
            let descriptor = queue.queue.descriptor();
            #[cfg(not(unix))]
            let descriptor: Option<i32> = None;
            let none = || Error::new(Fault::NoDescriptor, "there is no descriptor for a queue here, or none is left");
            fd.set(descriptor.ok_or_else(none)?);
            Ok(Outcome::Done)
        })
    }
}

/// Frees the queue. Generations that were in it go on and are pulled by squire_gen_next. A call of squire_queue_next that waits
/// on another thread answers SQUIRE_TIMEOUT. NULL is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_queue_release(queue: *mut squire_queue) {
    // SAFETY: the conventions at the head of the header.
    if let Some(body) = unsafe { handle::peek_alive(queue) } {
        // A waiter on another thread keeps the object for a moment more. There is nobody to tell of a panic.
        let _ = within::squire(|| body.queue.close());
    }
    // SAFETY: as above.
    unsafe { handle::release(queue) }
}
