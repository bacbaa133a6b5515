//! The frame around every exported call: no panic leaves, errors go out through the last parameter, a call from
//! inside a callback is refused.
//!
//! A panic becomes `SQUIRE_E_PANIC` with its message and place, and poisons the objects that the call named as its
//! subjects. What a thread is in meanwhile is [`super::within`].

use std::cell::RefCell;

use super::error::squire_error;
use super::handle::{self, Held, Object, Poison};
use super::status::{SQUIRE_CANCELLED, SQUIRE_END, SQUIRE_OK, SQUIRE_TIMEOUT, squire_status};
use super::within;
use crate::error::{Error, Fault, Result};

/// How a call without an error ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what was asked.
    Done,
    /// There is nothing more to come.
    End,
    /// The time given ran out first.
    Timeout,
    /// It was cancelled; the state stands at the last whole token.
    Cancelled,
}

impl Outcome {
    fn status(self) -> squire_status {
        match self {
            Outcome::Done => SQUIRE_OK,
            Outcome::End => SQUIRE_END,
            Outcome::Timeout => SQUIRE_TIMEOUT,
            Outcome::Cancelled => SQUIRE_CANCELLED,
        }
    }
}

/// One guarded call: turns handles into references and remembers whom a panic poisons.
pub(crate) struct Call {
    subjects: RefCell<Vec<Poison>>,
}

impl Call {
    /// The object that this call works on and could leave half-changed: a panic poisons it.
    ///
    /// # Safety
    /// As [`handle::hold`].
    pub(crate) unsafe fn subject<O: Object>(&self, p: *const O) -> Result<Held<O::Body>> {
        // SAFETY: passed on.
        let held = unsafe { handle::hold(p) }?;
        self.subjects.borrow_mut().push(held.poison().clone());
        Ok(held)
    }

    /// An object that this call only reads or shares: a panic leaves it usable.
    ///
    /// # Safety
    /// As [`handle::hold`].
    pub(crate) unsafe fn shared<O: Object>(&self, p: *const O) -> Result<Held<O::Body>> {
        // SAFETY: passed on.
        unsafe { handle::hold(p) }
    }

    /// The same where NULL means none.
    ///
    /// # Safety
    /// As [`handle::hold`].
    pub(crate) unsafe fn optional<O: Object>(&self, p: *const O) -> Result<Option<Held<O::Body>>> {
        // SAFETY: passed on.
        if p.is_null() { Ok(None) } else { unsafe { self.shared(p) }.map(Some) }
    }
}

/// Runs a call that gives a status.
///
/// # Safety
/// `err` is NULL or points to a writable pointer.
pub(crate) unsafe fn guard(err: *mut *mut squire_error, f: impl FnOnce(&Call) -> Result<Outcome>) -> squire_status {
    // SAFETY: passed on.
    unsafe { report(err, || run(f).map(Outcome::status)) }
}

/// Runs a call that makes an object. `out` is set to NULL before anything else, so that it is NULL on failure.
///
/// # Safety
/// `err` and `out` are NULL or point to writable pointers.
pub(crate) unsafe fn guard_out<O: Object>(
    out: *mut *mut O,
    err: *mut *mut squire_error,
    f: impl FnOnce(&Call) -> Result<O::Body>,
) -> squire_status {
    // SAFETY: passed on.
    unsafe { guard_out_unless(out, err, |call| f(call).map(Ok)) }
}

/// The same for a call that may end well and make none.
///
/// # Safety
/// As [`guard_out`].
pub(crate) unsafe fn guard_out_unless<O: Object>(
    out: *mut *mut O,
    err: *mut *mut squire_error,
    f: impl FnOnce(&Call) -> Result<std::result::Result<O::Body, Outcome>>,
) -> squire_status {
    let usable = !out.is_null() && out.is_aligned();
    if usable {
        // SAFETY: not NULL, aligned, writable by contract.
        unsafe { out.write(std::ptr::null_mut()) };
    }
    let body = || {
        if !usable {
            let fault = if out.is_null() { Fault::NullPointer } else { Fault::Misaligned };
            return Err(Error::new(fault, format!("the out-parameter for {} is {out:?}", O::NAME)));
        }
        let made = match run(f)? {
            Ok(made) => made,
            Err(outcome) => return Ok(outcome.status()),
        };
        // SAFETY: checked above.
        unsafe { out.write(handle::into_raw::<O>(made)) };
        Ok(SQUIRE_OK)
    };
    // SAFETY: passed on.
    unsafe { report(err, body) }
}

/// Checks the error slot, runs the body, and writes the error.
unsafe fn report(err: *mut *mut squire_error, body: impl FnOnce() -> Result<squire_status>) -> squire_status {
    if !err.is_null() {
        // A slot that holds something would leak it or be mistaken for this call's error; it is left as it is.
        // SAFETY: aligned as checked first, readable by contract.
        if !err.is_aligned() || !unsafe { err.read() }.is_null() {
            return Fault::ErrorNotNull.status() as squire_status;
        }
    }
    let result = if within::a_callback() {
        Err(Error::new(Fault::InsideCallback, "this call is not allowed inside a callback; return first"))
    } else {
        body()
    };
    result.unwrap_or_else(|error| {
        let status = error.status() as squire_status;
        // A cancelled call is an outcome and makes no error object.
        if !err.is_null() && status < 0 {
            // SAFETY: checked above.
            unsafe { err.write(squire_error::from(error)) };
        }
        status
    })
}

/// Runs the body of a call; a panic poisons the subjects and becomes an error.
fn run<T>(f: impl FnOnce(&Call) -> Result<T>) -> Result<T> {
    let call = Call { subjects: RefCell::new(Vec::new()) };
    within::squire(|| f(&call)).unwrap_or_else(|panic| {
        call.subjects.take().iter().for_each(Poison::set);
        Err(Error::new(Fault::Panic, format!("a defect of squire was caught: {panic}")))
    })
}

#[cfg(test)]
mod tests {
    use super::super::error::{squire_error_message, squire_error_release, squire_error_status};
    use super::super::status::{SQUIRE_E_ARGUMENT, SQUIRE_E_PANIC, SQUIRE_E_POISONED, SQUIRE_E_STATE};
    use super::super::text::{CText, squire_text, squire_text_release};
    use super::*;
    use std::ptr::null_mut;

    /// Takes the error out of its slot: status and message.
    fn take(err: *mut squire_error) -> (squire_status, String) {
        // SAFETY: a live error, whose message is readable for its length, released once.
        unsafe {
            let mut len = 0;
            let message = squire_error_message(err, &mut len).cast::<u8>();
            let message = std::str::from_utf8(std::slice::from_raw_parts(message, len)).unwrap().to_owned();
            let status = squire_error_status(err);
            squire_error_release(err);
            (status, message)
        }
    }

    #[test]
    fn outcomes_are_positive_and_leave_the_error_slot_null() {
        let cases = [(Outcome::Done, 0), (Outcome::End, 1), (Outcome::Timeout, 2), (Outcome::Cancelled, 3)];
        for (outcome, status) in cases {
            let mut err = null_mut();
            // SAFETY: the slot is a local that holds NULL, or NULL itself.
            assert_eq!(unsafe { guard(&mut err, |_| Ok(outcome)) }, status);
            assert!(err.is_null());
        }
    }

    #[test]
    fn a_cancelled_call_is_an_outcome_without_an_error_object() {
        let mut err = null_mut();
        let cancelled = || Error::new(Fault::Cancelled, "the call was cancelled");
        // SAFETY: the slot is a local that holds NULL, or NULL itself.
        assert_eq!(unsafe { guard(&mut err, |_| Err(cancelled())) }, 3);
        let mut out = null_mut::<squire_text>();
        // SAFETY: both slots are locals that hold NULL.
        assert_eq!(unsafe { guard_out(&mut out, &mut err, |_| Err(cancelled())) }, 3);
        assert!(err.is_null() && out.is_null());
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_message_and_place() {
        let mut err = null_mut();
        // SAFETY: the slot is a local that holds NULL, or NULL itself.
        let status = unsafe { guard(&mut err, |_| panic!("the sky fell on {}", "Tuesday")) };
        assert_eq!(status, SQUIRE_E_PANIC);
        let (status, message) = take(err);
        assert_eq!(status, SQUIRE_E_PANIC);
        assert!(message.contains("the sky fell on Tuesday") && message.contains("guard.rs:"), "{message}");
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_survived() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        // SAFETY: an error slot that is NULL is not written.
        let status = unsafe { guard(null_mut(), |_| std::panic::panic_any(Bomb)) };
        assert_eq!(status, SQUIRE_E_PANIC);
    }

    #[test]
    fn a_panic_poisons_the_subject_and_spares_what_is_shared() {
        let subject = handle::into_raw::<squire_text>(CText::new("a"));
        let shared = handle::into_raw::<squire_text>(CText::new("b"));
        // SAFETY: the handles are alive until they are released below.
        let touch = |text| unsafe { guard(null_mut(), |call| call.shared(text).map(|_| Outcome::Done)) };
        // SAFETY: the handles are alive until they are released below.
        let status = unsafe {
            guard(null_mut(), |call| {
                let _a = call.subject(subject)?;
                let _b = call.shared(shared)?;
                panic!("half way")
            })
        };
        assert_eq!(status, SQUIRE_E_PANIC);
        assert_eq!((touch(subject), touch(shared)), (SQUIRE_E_POISONED, SQUIRE_OK));
        // SAFETY: the last use of each.
        unsafe {
            squire_text_release(subject);
            squire_text_release(shared);
        }
    }

    #[test]
    fn an_error_slot_that_is_not_null_is_refused_and_left_alone() {
        let occupied = 8usize as *mut squire_error;
        let mut err = occupied;
        // SAFETY: the slot is a local; what it holds is compared with NULL and not followed.
        let status = unsafe { guard(&mut err, |_| unreachable!("the call must not run")) };
        assert_eq!((status, err), (SQUIRE_E_ARGUMENT, occupied));
    }

    #[test]
    fn a_missing_error_slot_still_gives_the_status() {
        // SAFETY: an error slot that is NULL is not written.
        let status = unsafe { guard(null_mut(), |_| Err(Error::new(Fault::BadJson, "no"))) };
        assert_eq!(status, SQUIRE_E_ARGUMENT);
    }

    #[test]
    fn an_object_out_parameter_is_null_after_any_failure() {
        let stale = 8usize as *mut squire_text;
        let mut occupied = 8usize as *mut squire_error;
        let refused = Error::new(Fault::BadJson, "no");
        // SAFETY: the slots are locals or NULL; what they held before is not followed.
        unsafe {
            let mut out = stale;
            assert_eq!(guard_out(&mut out, null_mut(), |_| Err(refused)), SQUIRE_E_ARGUMENT);
            assert!(out.is_null());
            out = stale;
            assert_eq!(guard_out(&mut out, null_mut(), |_| panic!("no")), SQUIRE_E_PANIC);
            assert!(out.is_null());
            out = stale;
            assert_eq!(guard_out(&mut out, &mut occupied, |_| unreachable!()), SQUIRE_E_ARGUMENT);
            assert!(out.is_null());
            assert_eq!(guard_out::<squire_text>(null_mut(), null_mut(), |_| unreachable!()), SQUIRE_E_ARGUMENT);
            assert_eq!(guard_out(&mut out, null_mut(), |_| Ok(CText::new("a"))), SQUIRE_OK);
            squire_text_release(out);
        }
    }

    #[test]
    fn a_call_inside_a_callback_is_refused_and_one_after_it_is_not() {
        // SAFETY: an error slot that is NULL is not written.
        let call = || unsafe { guard(null_mut(), |_| Ok(Outcome::Done)) };
        let mut inside = 0;
        // SAFETY: an error slot that is NULL is not written.
        let outer = unsafe {
            guard(null_mut(), |_| {
                inside = within::callback(call);
                Ok(Outcome::Done)
            })
        };
        assert_eq!((inside, outer, call()), (SQUIRE_E_STATE, SQUIRE_OK, SQUIRE_OK));
    }
}
