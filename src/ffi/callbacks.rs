//! The host's callbacks: user data first, then scalars, pointers and lengths. While one runs, its thread may not call
//! back into squire. Progress and tensor callbacks run inside their call, so what it works on stays busy meanwhile: an
//! update that is built keeps its distiller busy. A log line may come while an update is published.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;

use super::within::callback;

/// Takes a log line. level: 0 error, 1 warning, 2 info, 3 debug, 4 trace. target names the part of squire that speaks.
/// Both texts are UTF-8, do not end in NUL, and live until the callback returns. Called from any of the library's
/// threads, several at once; in caller-driven mode only inside a call. Must not throw or jump out.
pub type squire_log_fn = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        level: i32,
        target: *const c_char,
        target_len: usize,
        message: *const c_char,
        message_len: usize,
    ),
>;

/// Hears of progress: phase (UTF-8, not ended by NUL, lives until the callback returns), and how much of total is
/// done. Return 0 to go on, anything else to stop: the call then answers SQUIRE_CANCELLED. Called on the thread of the
/// call that was given it. Must not throw or jump out.
pub type squire_progress_fn = Option<
    unsafe extern "C" fn(user: *mut c_void, phase: *const c_char, phase_len: usize, done: u64, total: u64) -> i32,
>;

/// The host's pointer, handed back to it untouched.
#[derive(Clone, Copy)]
struct User(*mut c_void);

// SAFETY: squire never looks behind the pointer; that the host's callback copes with any thread is its contract.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

/// A log callback with its user pointer and the most detailed level that it wants.
#[derive(Clone, Copy)]
pub(crate) struct Log {
    f: squire_log_fn,
    user: User,
    level: i32,
}

impl Log {
    /// # Safety
    /// `f` may be called with `user` from any thread for as long as the value or a copy lives.
    pub(crate) unsafe fn new(f: squire_log_fn, user: *mut c_void, level: i32) -> Log {
        Log { f, user: User(user), level }
    }

    /// Hands a line to the host.
    pub(crate) fn line(&self, level: i32, target: &str, message: &str) {
        if let Some(f) = self.f.filter(|_| level <= self.level) {
            let (user, target_ptr, message_ptr) = (self.user.0, target.as_ptr().cast(), message.as_ptr().cast());
            // SAFETY: by the contract of `new`; the texts live through the call.
            callback(|| unsafe { f(user, level, target_ptr, target.len(), message_ptr, message.len()) });
        }
    }
}

/// A progress callback with its user pointer.
#[derive(Clone, Copy)]
pub(crate) struct Progress {
    f: squire_progress_fn,
    user: User,
}

impl Progress {
    /// # Safety
    /// `f` may be called with `user` for as long as the value or a copy lives.
    pub(crate) unsafe fn new(f: squire_progress_fn, user: *mut c_void) -> Progress {
        Progress { f, user: User(user) }
    }

    /// Tells the host, and hears whether to go on.
    pub(crate) fn tell(&self, phase: &str, done: u64, total: u64) -> ControlFlow<()> {
        let Some(f) = self.f else { return ControlFlow::Continue(()) };
        let user = self.user.0;
        // SAFETY: by the contract of `new`; the text lives through the call.
        match callback(|| unsafe { f(user, phase.as_ptr().cast(), phase.len(), done, total) }) {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard::{Outcome, guard};
    use super::super::status::SQUIRE_E_STATE;
    use super::*;
    use std::ptr::null_mut;

    /// Notes each line, and what a call into squire answers meanwhile.
    unsafe extern "C" fn note(
        user: *mut c_void,
        level: i32,
        target: *const c_char,
        target_len: usize,
        message: *const c_char,
        message_len: usize,
    ) {
        // SAFETY: `user` is the list below, and each text is readable for its length while this runs.
        unsafe {
            let notes = &mut *user.cast::<Vec<(i32, String, i32)>>();
            let target = super::super::input::text(target, target_len, "target").unwrap();
            let message = super::super::input::text(message, message_len, "message").unwrap();
            let inside = guard(null_mut(), |_| Ok(Outcome::Done));
            notes.push((level, format!("{target}: {message}"), inside));
        }
    }

    #[test]
    fn a_log_line_reaches_the_host_and_squire_refuses_calls_meanwhile() {
        let mut notes: Vec<(i32, String, i32)> = Vec::new();
        // SAFETY: the list outlives the log, and one thread uses both.
        let log = unsafe { Log::new(Some(note), (&raw mut notes).cast(), 2) };
        log.line(2, "engine", "it rains");
        log.line(3, "engine", "too detailed");
        assert_eq!(notes, [(2, "engine: it rains".into(), SQUIRE_E_STATE)]);
        // SAFETY: a function that is not there needs nothing of its user.
        unsafe { Log::new(None, null_mut(), 4) }.line(0, "engine", "nobody listens");
    }

    #[test]
    fn progress_goes_on_with_zero_and_stops_with_anything_else() {
        unsafe extern "C" fn half(_: *mut c_void, _: *const c_char, _: usize, done: u64, total: u64) -> i32 {
            -i32::from(done * 2 > total)
        }
        // SAFETY: the function takes no notice of its user.
        let progress = unsafe { Progress::new(Some(half), null_mut()) };
        assert_eq!(progress.tell("load", 1, 2), ControlFlow::Continue(()));
        assert_eq!(progress.tell("load", 2, 2), ControlFlow::Break(()));
        // SAFETY: a function that is not there needs nothing of its user.
        let silent = unsafe { Progress::new(None, null_mut()) };
        assert_eq!(silent.tell("load", 2, 2), ControlFlow::Continue(()));
    }
}
