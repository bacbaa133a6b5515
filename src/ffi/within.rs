//! What a thread is in: a call of the host's, where panics are quiet and numbers squire's own, or one of the host's
//! callbacks, where both are the host's.
//!
//! The one process-wide thing of the C boundary stands here: a panic hook, put up by the first call, that prints nothing
//! for panics inside a call or on a thread of squire's own (their text travels in the error object instead) and passes
//! every other panic to the hook that was there before. A Rust program that uses the crate directly and never calls this
//! floor keeps its hook untouched.
//!
//! A call computes in squire's own floating-point environment, whatever the host's rounding mode and traps are, so that
//! bits do not depend on them; the host's callbacks run in the host's, and it finds that again on return, flags and all.
//! Threads of squire's inherit squire's, since they are started inside a call.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::backend::cpu::FloatMode;

thread_local! {
    /// How many guarded calls this thread is in.
    static GUARDED: Cell<u32> = const { Cell::new(0) };
    /// How many of the host's callbacks this thread is in.
    static CALLBACKS: Cell<u32> = const { Cell::new(0) };
    /// The host's floating-point environment, while this thread is in a guarded call and in none of its callbacks.
    static HOST: Cell<Option<FloatMode>> = const { Cell::new(None) };
    /// Where the last quiet panic of this thread began.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Names of threads that squire starts begin so; their panics are quiet once the hook is up.
const THREAD_PREFIX: &str = "squire-";

/// Runs `f` with panics on this thread kept from the standard error stream, and in squire's floating-point environment.
/// A panic gives its text and place.
pub(crate) fn squire<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    put_up_hook();
    let _guarded = Depth::enter(&GUARDED);
    let _floats = OwnFloats::enter();
    take_place();
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let what = text_of(payload);
        format!("{what} (at {})", take_place().as_deref().unwrap_or("a place not known"))
    })
}

/// Whether this thread is in one of the host's callbacks.
pub(crate) fn a_callback() -> bool {
    CALLBACKS.get() > 0
}

/// Runs one of the host's callbacks: meanwhile this thread may not call back into squire, panics are not quiet, and
/// the floating-point environment is the host's.
pub(crate) fn callback<T>(f: impl FnOnce() -> T) -> T {
    let _inside = Depth::enter(&CALLBACKS);
    // A thread of squire's has no host.
    let Some(host) = HOST.take() else { return f() };
    let own = FloatMode::current();
    host.enter();
    let value = f();
    HOST.set(Some(FloatMode::current()));
    own.enter();
    value
}

/// Squire's floating-point environment, until it is dropped: then the host's is back.
struct OwnFloats {
    /// that of a call further out, where the host releases an object in a callback of that
    outer: Option<FloatMode>,
}

impl OwnFloats {
    fn enter() -> OwnFloats {
        let outer = HOST.replace(Some(FloatMode::current()));
        FloatMode::SCALARS.enter();
        OwnFloats { outer }
    }
}

impl Drop for OwnFloats {
    fn drop(&mut self) {
        // None while a callback that panicked is unwound; the environment is the host's then.
        if let Some(host) = HOST.replace(self.outer) {
            host.enter();
        }
    }
}

/// A panic's text. A payload that is not text is leaked, since dropping it could panic again.
fn text_of(payload: Box<dyn Any + Send>) -> String {
    let payload = match payload.downcast::<String>() {
        Ok(text) => return *text,
        Err(payload) => payload,
    };
    match payload.downcast::<&str>() {
        Ok(text) => text.to_string(),
        Err(payload) => {
            std::mem::forget(payload);
            "no text".into()
        }
    }
}

/// Where the last quiet panic of this thread began; none on a thread that is ending, which has no place for it.
fn take_place() -> Option<String> {
    PLACE.try_with(RefCell::take).ok().flatten()
}

/// Counts one level of depth for as long as it lives.
struct Depth(&'static std::thread::LocalKey<Cell<u32>>);

impl Depth {
    fn enter(key: &'static std::thread::LocalKey<Cell<u32>>) -> Depth {
        key.set(key.get() + 1);
        Depth(key)
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Puts up the panic hook, once a process.
fn put_up_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let guarded = GUARDED.try_with(Cell::get).unwrap_or(0) > 0;
            let in_host = CALLBACKS.try_with(Cell::get).unwrap_or(0) > 0;
            let ours = std::thread::current().name().is_some_and(|name| name.starts_with(THREAD_PREFIX));
            if in_host || !(guarded || ours) {
                return previous(info);
            }
            let place = info.location().map(|l| format!("{}:{}", l.file(), l.line()));
            // On a thread that is ending the panic's text alone must tell.
            let _ = PLACE.try_with(|noted| noted.replace(place));
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_its_own_floating_point_environment_and_a_callback_the_hosts() {
        let before = FloatMode::current();
        // The kernels' will do as one that a host has set.
        FloatMode::KERNELS.enter();
        let mut seen = Vec::new();
        let done = squire(|| {
            seen.push(FloatMode::current());
            callback(|| {
                seen.push(FloatMode::current());
                squire(|| seen.push(FloatMode::current())).expect("no panic");
                seen.push(FloatMode::current());
            });
            seen.push(FloatMode::current());
        });
        seen.push(FloatMode::current());
        assert!(squire(|| panic!("no")).is_err_and(|_: String| true));
        seen.push(FloatMode::current());
        before.enter();
        let (own, host) = (FloatMode::SCALARS, FloatMode::KERNELS);
        assert_eq!((done, &seen[..]), (Ok(()), &[own, host, own, host, own, host, host][..]));
    }

    #[test]
    fn a_panic_gives_its_text_and_place() {
        let panicked = squire(|| panic!("no"));
        assert!(panicked.is_err_and(|said: String| said.starts_with("no (at ") && said.contains("within.rs:")));
        assert_eq!(squire(|| 8), Ok(8));
    }
}
