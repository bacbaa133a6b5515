//! The flag that stops a blocking call from another thread.

use super::guard::Call;
use super::handle::{self, Object};
use crate::error::Result;
use crate::serve::Cancel;
use crate::text::Watch;

/// A flag that stops the calls it was given to. Once set it stays set. Shared: see squire_cancel_retain.
pub struct squire_cancel {
    _opaque: [u8; 0],
}

impl Object for squire_cancel {
    type Body = Cancel;
    const TAG: [u8; 8] = *b"sq cancl";
    const NAME: &'static str = "squire_cancel";
}

/// What stops a call's work on text: a flag, or nothing for NULL. A flag that is set already is `Cancelled`.
///
/// # Safety
/// As [`handle::hold`].
pub(super) unsafe fn watch(call: &Call, cancel: *const squire_cancel) -> Result<Watch> {
    // SAFETY: passed on.
    let Some(cancel) = unsafe { call.optional(cancel) }? else { return Ok(Watch::default()) };
    let cancel = cancel.clone();
    let watch = Watch::on(move || cancel.is_set());
    watch.check()?;
    Ok(watch)
}

/// Makes a flag that is not set. The caller releases it. Never NULL. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn squire_cancel_create() -> *mut squire_cancel {
    handle::into_raw(Cancel::default())
}

/// Sets the flag: calls that were given it answer SQUIRE_CANCELLED at the next token or prefill chunk. NULL does
/// nothing. Never blocks. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_cancel_set(cancel: *mut squire_cancel) {
    // SAFETY: the conventions at the head of the header.
    if let Some(cancel) = unsafe { handle::peek(cancel) } {
        cancel.set();
    }
}

/// Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_cancel_retain(cancel: *mut squire_cancel) -> *mut squire_cancel {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::retain(cancel) }
}

/// Drops a reference; the last one frees the flag. Calls under way keep it. NULL is allowed. Any thread, also inside
/// a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_cancel_release(cancel: *mut squire_cancel) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(cancel) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null_mut;

    #[test]
    fn setting_the_flag_reaches_the_call_that_holds_it() {
        let cancel = squire_cancel_create();
        // SAFETY: a handle that was just made, released once and not used afterwards, or NULL.
        unsafe {
            let held = handle::hold(cancel).ok().unwrap();
            squire_cancel_set(cancel);
            squire_cancel_release(cancel);
            assert!(held.is_set());
            squire_cancel_set(null_mut());
            squire_cancel_release(null_mut());
            assert!(squire_cancel_retain(null_mut()).is_null());
        }
    }
}
