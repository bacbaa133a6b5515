//! Objects behind opaque pointers: one `Arc` a handle, with a tag in front that names its kind.
//!
//! A pointer that the host hands in is refused when it is NULL, misaligned, tagged as another kind, tagged as
//! freed, poisoned by a panic, or made before a fork(). The tag is read through the pointer, so the check needs
//! at least eight readable bytes there: a pointer to one of squire's live objects is always judged rightly; a
//! freed one is found out only while its memory has not been used again; a pointer into unmapped memory faults.
//! A call holds a reference of its own while it runs, so that a release on another thread cannot pull the object
//! away from under it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::within;
use crate::error::{Error, Fault, Result};

/// Ties an opaque type of the header to what stands behind it.
pub(crate) trait Object {
    /// What stands behind the pointer. Any thread may use and drop it.
    type Body: Send + Sync + 'static;
    /// Eight letters that no other kind has; also what a debugger shows.
    const TAG: [u8; 8];
    /// The type's name in the header.
    const NAME: &'static str;
}

/// The tag of an object that was dropped.
const FREED: [u8; 8] = *b"sq freed";

/// Set when a panic left an object in a state that nobody can vouch for. Clones share the flag.
#[derive(Clone, Default)]
pub(crate) struct Poison(Arc<AtomicBool>);

impl Poison {
    /// Makes every later call on the object answer `POISONED`.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a handle points to. The tag comes first, so that it can be read before the kind is known.
#[repr(C)]
pub(crate) struct Handle<B> {
    tag: AtomicU64,
    pid: u32,
    poison: Poison,
    body: B,
}

impl<B> Drop for Handle<B> {
    fn drop(&mut self) {
        #[cfg(feature = "drill")]
        live::DRILL.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the field is ours. Volatile, because a store just before the memory is freed is otherwise dead.
        unsafe { self.tag.as_ptr().write_volatile(u64::from_le_bytes(FREED)) };
    }
}

/// How many handles live, counted in drill builds for the leak tests.
#[cfg(feature = "drill")]
pub(crate) mod live {
    use std::sync::atomic::AtomicUsize;

    pub(crate) static DRILL: AtomicUsize = AtomicUsize::new(0);
}

/// A reference that a call holds to the object it works on.
pub(crate) struct Held<B>(Arc<Handle<B>>);

impl<B> Held<B> {
    pub(crate) fn poison(&self) -> &Poison {
        &self.0.poison
    }
}

impl<B> Deref for Held<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.0.body
    }
}

/// Makes a handle with one reference, which the host releases.
pub(crate) fn into_raw<O: Object>(body: O::Body) -> *mut O {
    #[cfg(feature = "drill")]
    live::DRILL.fetch_add(1, Ordering::Relaxed);
    let tag = AtomicU64::new(u64::from_le_bytes(O::TAG));
    let handle = Handle { tag, pid: std::process::id(), poison: Poison::default(), body };
    Arc::into_raw(Arc::new(handle)).cast::<O>().cast_mut()
}

/// Judges a pointer by its tag.
///
/// # Safety
/// `p` is NULL or points to at least eight readable bytes.
unsafe fn check<O: Object>(p: *const O) -> Result<*const Handle<O::Body>> {
    let handle = p.cast::<Handle<O::Body>>();
    let refuse = |fault, what: &str| Err(Error::new(fault, format!("{} {what}", O::NAME)));
    if handle.is_null() {
        return refuse(Fault::NullPointer, "is NULL");
    }
    if !handle.is_aligned() {
        return refuse(Fault::WrongHandle, "is not a handle: its address is not aligned");
    }
    // SAFETY: eight readable bytes by this function's contract, aligned as just checked.
    let tag = unsafe { (*handle.cast::<AtomicU64>()).load(Ordering::Relaxed) }.to_le_bytes();
    match tag {
        tag if tag == O::TAG => Ok(handle),
        FREED => refuse(Fault::WrongHandle, "was already released"),
        _ => refuse(Fault::WrongHandle, "is a handle of another kind, or none"),
    }
}

/// Takes a reference to the object for the length of a call.
///
/// # Safety
/// `p` is NULL or points to at least eight readable bytes; if these are the tag, it came from [`into_raw`] and
/// the host holds a reference.
pub(crate) unsafe fn hold<O: Object>(p: *const O) -> Result<Held<O::Body>> {
    // SAFETY: passed on.
    let handle = unsafe { check(p) }?;
    // SAFETY: the tag says that this came from `into_raw`; the host's reference keeps it alive meanwhile.
    let held = unsafe {
        Arc::increment_strong_count(handle);
        Held(Arc::from_raw(handle))
    };
    if held.0.pid != std::process::id() {
        let message = format!("{} belongs to the process before fork(); a child makes its own engine", O::NAME);
        return Err(Error::new(Fault::AfterFork, message));
    }
    if held.0.poison.is_set() {
        let message = format!("{} was made unusable by an earlier panic; only release works", O::NAME);
        return Err(Error::new(Fault::Poisoned, message));
    }
    Ok(held)
}

/// The object for an accessor that returns a pointer into it. None for anything that is not such an object.
///
/// # Safety
/// As [`hold`]; the reference lives no longer than the host's.
pub(crate) unsafe fn peek<'a, O: Object>(p: *const O) -> Option<&'a O::Body> {
    // SAFETY: the contract is passed on, and the tag says that this came from `into_raw`.
    unsafe { check(p).ok().map(|handle| &(*handle).body) }
}

/// The same for what acts on the object: none in a child after a fork(), whose threads are gone and whose locks may be held
/// by one of them.
///
/// # Safety
/// As [`peek`].
pub(crate) unsafe fn peek_alive<'a, O: Object>(p: *const O) -> Option<&'a O::Body> {
    // SAFETY: the contract is passed on, and the tag says that this came from `into_raw`.
    unsafe { check(p).ok().map(|handle| &*handle).filter(|h| h.pid == std::process::id()).map(|h| &h.body) }
}

/// Adds a reference for the host. Anything that is not such an object gives NULL.
///
/// # Safety
/// As [`hold`].
pub(crate) unsafe fn retain<O: Object>(p: *mut O) -> *mut O {
    // SAFETY: the contract is passed on, and the tag says that this came from `into_raw`.
    match unsafe { check(p) } {
        Ok(handle) => {
            // SAFETY: `check` found the tag that `into_raw` writes, and the host holds a reference, so the count is above zero.
            unsafe { Arc::increment_strong_count(handle) };
            p
        }
        Err(_) => std::ptr::null_mut(),
    }
}

/// Drops one reference of the host. NULL, and anything that is not such an object, is left alone.
///
/// In a child after fork() the object is left alone too: the threads that its drop would wait for are not there.
///
/// # Safety
/// As [`hold`]; the reference is not used again.
pub(crate) unsafe fn release<O: Object>(p: *mut O) {
    // SAFETY: passed on.
    if let Ok(handle) = unsafe { check(p) } {
        // SAFETY: the tag says that this came from `into_raw`.
        if unsafe { (*handle).pid } == std::process::id() {
            // A drop that panics must not leave through the C caller; there is nobody to tell.
            // SAFETY: the host gives up the reference that it held.
            let _ = within::squire(|| unsafe { drop(Arc::from_raw(handle)) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Apple;
    struct Pear;

    impl Object for Apple {
        type Body = Arc<()>;
        const TAG: [u8; 8] = *b"sq apple";
        const NAME: &'static str = "apple";
    }

    impl Object for Pear {
        type Body = u32;
        const TAG: [u8; 8] = *b"sq pear ";
        const NAME: &'static str = "pear";
    }

    fn fault<T>(r: Result<T>) -> Fault {
        r.err().expect("must be refused").fault()
    }

    #[test]
    fn the_last_release_drops_the_body_and_any_order_works() {
        let body = Arc::new(());
        let apple = into_raw::<Apple>(body.clone());
        // SAFETY: references that were just made, and each is released once.
        unsafe {
            let again = retain(apple);
            assert_eq!(again, apple);
            release(apple);
            assert_eq!(Arc::strong_count(&body), 2, "one reference is left");
            let held = hold(again).ok().unwrap();
            release(again);
            assert_eq!(Arc::strong_count(&held), 2, "a running call keeps the object");
            drop(held);
        }
        assert_eq!(Arc::strong_count(&body), 1);
    }

    #[test]
    fn null_is_refused_by_calls_and_ignored_by_release_and_retain() {
        // SAFETY: NULL is a pointer that every call takes.
        unsafe {
            assert_eq!(fault(hold::<Apple>(std::ptr::null())), Fault::NullPointer);
            assert!(peek::<Apple>(std::ptr::null()).is_none());
            assert!(retain::<Apple>(std::ptr::null_mut()).is_null());
            release::<Apple>(std::ptr::null_mut());
        }
    }

    #[test]
    fn a_handle_of_another_kind_is_refused_and_not_released() {
        let pear = into_raw::<Pear>(7);
        // SAFETY: a live handle, whose tag is read under either type, released once.
        unsafe {
            let as_apple = pear.cast::<Apple>();
            assert_eq!(fault(hold(as_apple)), Fault::WrongHandle);
            release(as_apple);
            assert_eq!(*hold(pear).ok().unwrap(), 7, "still there");
            release(pear);
        }
    }

    #[test]
    fn memory_that_is_no_handle_is_refused() {
        let words = [0u64, 1];
        // SAFETY: sixteen readable bytes; a pointer that is not aligned is not read.
        unsafe {
            assert_eq!(fault(hold(words.as_ptr().cast::<Apple>())), Fault::WrongHandle);
            let odd = words.as_ptr().cast::<u8>().add(1).cast::<Apple>();
            assert_eq!(fault(hold(odd)), Fault::WrongHandle);
        }
    }

    #[test]
    fn a_tag_marked_freed_is_reported_as_released() {
        let words = [u64::from_le_bytes(FREED), 0];
        // SAFETY: sixteen readable bytes.
        let e = unsafe { hold(words.as_ptr().cast::<Apple>()) }.err().unwrap();
        assert_eq!(e.fault(), Fault::WrongHandle);
        assert_eq!(e.message(), "apple was already released");
    }

    #[test]
    fn a_poisoned_object_answers_nothing_but_release() {
        let pear = into_raw::<Pear>(7);
        // SAFETY: a live handle, released once.
        unsafe {
            hold(pear).ok().unwrap().poison().set();
            assert_eq!(fault(hold(pear)), Fault::Poisoned);
            release(pear);
        }
    }
}
