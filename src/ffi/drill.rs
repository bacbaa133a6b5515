//! Entries of test builds (feature `drill`): they fail on purpose, to show that the host lives on. Not in the header.

use std::sync::atomic::Ordering;

use super::cancel::squire_cancel;
use super::engine::squire_engine;
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::handle::live;
use super::status::squire_status;
use super::text::squire_text;

/// Panics in a call that gives a status.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_drill_panic(err: *mut *mut squire_error) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard(err, |_| panic!("a drill")) }
}

/// Panics in a call that makes an object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_drill_panic_out(
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |_| panic!("a drill")) }
}

/// Panics while working on an object, which is poisoned thereby.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_drill_panic_on(
    cancel: *mut squire_cancel,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let _cancel = call.subject(cancel)?;
            panic!("a drill")
        })
    }
}

/// Only looks at an object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_drill_touch(
    cancel: *const squire_cancel,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard(err, |call| call.shared(cancel).map(|_| Outcome::Done)) }
}

/// Makes every later step of an engine panic.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_drill_panic_in_steps(
    engine: *mut squire_engine,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            call.shared(engine)?.drill_panic();
            Ok(Outcome::Done)
        })
    }
}

/// How many handles live in this process.
#[unsafe(no_mangle)]
pub extern "C" fn squire_drill_live_handles() -> usize {
    live::DRILL.load(Ordering::Relaxed)
}
