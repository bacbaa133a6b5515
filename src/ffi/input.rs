//! Bytes from the host: pointer and length are checked before any slice is made.

use std::ffi::c_char;
use std::path::Path;

use crate::error::{Error, Fault, Result};

/// Types whose every bit pattern is a value, so that the host's memory can be read as them.
///
/// # Safety
/// Any bytes of the type's size are a valid value.
pub(crate) unsafe trait Bits: Copy {}

// SAFETY: a plain number.
unsafe impl Bits for u8 {}
// SAFETY: a plain number.
unsafe impl Bits for i32 {}
// SAFETY: a plain number.
unsafe impl Bits for f32 {}

/// `n` elements at `p`; NULL is an empty slice if `n` is 0. `what` names the parameter in the message.
///
/// # Safety
/// If `p` is not NULL, `n` elements are readable there and unchanged while the slice lives.
pub(crate) unsafe fn slice<'a, T: Bits>(p: *const T, n: usize, what: &str) -> Result<&'a [T]> {
    if n == 0 {
        return Ok(&[]);
    }
    if p.is_null() {
        return Err(Error::new(Fault::NullPointer, format!("{what} is NULL with length {n}")));
    }
    let fits = n
        .checked_mul(size_of::<T>())
        .is_some_and(|bytes| isize::try_from(bytes).is_ok() && p.addr().checked_add(bytes).is_some());
    if !fits {
        return Err(Error::new(Fault::BadLength, format!("{what} has length {n}, more than memory can hold")));
    }
    if !p.is_aligned() {
        let message = format!("{what} at {p:?} is not aligned to {} bytes", align_of::<T>());
        return Err(Error::new(Fault::Misaligned, message));
    }
    // SAFETY: not NULL, aligned, a length that an allocation can have; readable by contract.
    Ok(unsafe { std::slice::from_raw_parts(p, n) })
}

/// UTF-8 text of `n` bytes; it need not end in NUL and may hold NUL.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn text<'a>(p: *const c_char, n: usize, what: &str) -> Result<&'a str> {
    // SAFETY: passed on.
    let bytes = unsafe { slice(p.cast::<u8>(), n, what) }?;
    std::str::from_utf8(bytes).map_err(|e| {
        let message = format!("{what} is not UTF-8 at byte {} of {n}", e.valid_up_to());
        Error::new(Fault::NotUtf8, message)
    })
}

/// A file path: UTF-8 of `n` bytes, not empty, without NUL.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn path<'a>(p: *const c_char, n: usize, what: &str) -> Result<&'a Path> {
    // SAFETY: passed on.
    let text = unsafe { text(p, n, what) }?;
    if text.is_empty() {
        return Err(Error::new(Fault::BadLength, format!("{what} is empty")));
    }
    if text.contains('\0') {
        return Err(Error::new(Fault::BadOption, format!("{what} has a NUL inside")));
    }
    Ok(Path::new(text))
}

/// Token ids, none negative; whether they lie in a vocabulary is for the model to say.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn ids<'a>(p: *const i32, n: usize, what: &str) -> Result<&'a [i32]> {
    // SAFETY: passed on.
    let ids = unsafe { slice(p, n, what) }?;
    match ids.iter().position(|&id| id < 0) {
        Some(i) => Err(Error::new(Fault::IdOutOfRange, format!("{what}[{i}] is {}, ids are not negative", ids[i]))),
        None => Ok(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null;

    fn fault<T>(r: Result<T>) -> Fault {
        r.err().expect("must be refused").fault()
    }

    #[test]
    fn null_of_length_zero_is_empty() {
        // SAFETY: a length of 0 is not read.
        unsafe {
            assert_eq!(text(null(), 0, "s").unwrap(), "");
            assert!(ids(null(), 0, "ids").unwrap().is_empty());
        }
    }

    #[test]
    fn a_dangling_pointer_of_length_zero_is_not_read() {
        // SAFETY: a length of 0 is not read.
        assert!(unsafe { ids(std::ptr::dangling(), 0, "ids") }.unwrap().is_empty());
    }

    #[test]
    fn null_with_a_length_is_refused() {
        // SAFETY: NULL is not read.
        assert_eq!(fault(unsafe { text(null(), 1, "s") }), Fault::NullPointer);
    }

    #[test]
    fn lengths_beyond_memory_are_refused() {
        let a = [0i32; 2];
        let byte = a.as_ptr().cast::<c_char>();
        // SAFETY: lengths that no memory has are refused before anything is read.
        unsafe {
            assert_eq!(fault(text(byte, usize::MAX, "s")), Fault::BadLength);
            assert_eq!(fault(text(byte, isize::MAX as usize + 1, "s")), Fault::BadLength);
            assert_eq!(fault(ids(a.as_ptr(), usize::MAX / 2, "ids")), Fault::BadLength, "the product overflows");
            let last = (usize::MAX - 7) as *const i32;
            assert_eq!(fault(ids(last, 4, "ids")), Fault::BadLength, "the end wraps round");
        }
    }

    #[test]
    fn misaligned_numbers_are_refused() {
        let a = [0i32; 2];
        let odd = a.as_ptr().cast::<u8>().wrapping_add(1).cast::<i32>();
        // SAFETY: a pointer that is not aligned is not read.
        assert_eq!(fault(unsafe { ids(odd, 1, "ids") }), Fault::Misaligned);
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_with_the_place() {
        // SAFETY: three readable bytes.
        let e = unsafe { text(b"ab\xff".as_ptr().cast(), 3, "prompt") }.err().unwrap();
        assert_eq!(e.fault(), Fault::NotUtf8);
        assert_eq!(e.message(), "prompt is not UTF-8 at byte 2 of 3");
    }

    #[test]
    fn empty_paths_and_paths_with_nul_are_refused() {
        // SAFETY: NULL, or a literal of as many bytes.
        unsafe {
            assert_eq!(fault(path(null(), 0, "path")), Fault::BadLength);
            assert_eq!(fault(path(c"a".as_ptr(), 2, "path")), Fault::BadOption);
            assert_eq!(path(c"a".as_ptr(), 1, "path").unwrap(), Path::new("a"));
        }
    }

    #[test]
    fn negative_ids_are_refused_with_the_place() {
        // SAFETY: an array of two.
        let e = unsafe { ids([4, -1].as_ptr(), 2, "ids") }.err().unwrap();
        assert_eq!((e.fault(), e.message()), (Fault::IdOutOfRange, "ids[1] is -1, ids are not negative"));
    }
}
