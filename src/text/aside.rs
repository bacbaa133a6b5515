//! A template's code runs on a thread of its own: its stack is of a known size, whoever calls, so that how deep a template
//! may go is the same everywhere; and a panic there is an error here, with nothing of the caller's half done.
#![forbid(unsafe_code)]

use std::thread;

use crate::error::{Error, Fault, Result};
use crate::memory;

/// The stack, in bytes. Twice what the deepest template that the limits allow takes in a debug build.
const STACK: usize = 4 << 20;

/// The address space that the C library takes at most for what a new thread allocates, in bytes. Where it cannot have it,
/// each small allocation takes a page.
const ARENA: usize = 128 << 20;

/// Runs `work` aside and waits for it.
///
/// Errors: `OutOfHostMemory` where no thread can be had; `TemplateFailed` for a panic.
pub(super) fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    memory::room_for(ARENA + STACK, "chat template: a thread of its own")?;
    thread::scope(|scope| {
        // Panics of threads with such a name are not printed (ffi/within.rs).
        let thread = thread::Builder::new().name("squire-template".into()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, work).map_err(|e| {
            let why = format!("chat template: no thread of {STACK} bytes of stack can be had: {e}");
            Error::memory(Fault::OutOfHostMemory, STACK as u64, 0, why)
        })?;
        thread.join().map_err(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let said = said.unwrap_or("no text").to_string();
            std::mem::forget(panic); // dropping it could panic again
            Error::new(Fault::TemplateFailed, format!("chat template: a defect of squire was caught: {said}"))
        })
    })
}
