//! Text that the library owns and the host reads: the result of a call, and the text inside other objects.

use std::ffi::c_char;
use std::ptr::null;

use super::handle::{self, Object};

/// UTF-8 text or a JSON document, owned by the library. Freed by squire_text_release.
pub struct squire_text {
    _opaque: [u8; 0],
}

impl Object for squire_text {
    type Body = CText;
    const TAG: [u8; 8] = *b"sq text ";
    const NAME: &'static str = "squire_text";
}

/// Text with a NUL behind it, for hosts that read it so. The length, which leaves the NUL out, is the truth: the text
/// itself may hold NUL.
pub(crate) struct CText(Box<[u8]>);

impl CText {
    pub(crate) fn new(text: &str) -> CText {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        CText(bytes.into_boxed_slice())
    }

    /// The pointer of an accessor, its length written unless `len` is NULL. NULL and 0 for none.
    ///
    /// # Safety
    /// `len` is NULL or writable.
    pub(crate) unsafe fn hand_out(text: Option<&CText>, len: *mut usize) -> *const c_char {
        let (data, n) = text.map_or((null(), 0), |text| (text.0.as_ptr().cast(), text.0.len() - 1));
        // SAFETY: passed on.
        unsafe { write_len(len, n) };
        data
    }
}

/// Writes the length of an accessor where the host wants it.
///
/// # Safety
/// `len` is NULL or writable.
pub(crate) unsafe fn write_len(len: *mut usize, n: usize) {
    if !len.is_null() && len.is_aligned() {
        // SAFETY: just checked, and writable by contract.
        unsafe { len.write(n) };
    }
}

/// The text: UTF-8, ended by NUL, its length without the NUL in *len unless len is NULL. It lives as long as the
/// object. NULL and 0 for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_text_data(text: *const squire_text, len: *mut usize) -> *const c_char {
    // SAFETY: the conventions at the head of the header.
    unsafe { CText::hand_out(handle::peek(text), len) }
}

/// Frees a text. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_text_release(text: *mut squire_text) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null_mut;

    #[test]
    fn text_comes_back_with_its_length_and_a_nul_behind_it() {
        let text = handle::into_raw::<squire_text>(CText::new("a\0é"));
        // SAFETY: a live handle whose bytes are read before its release; the slot is a local or NULL.
        unsafe {
            let mut len = 0;
            let data = squire_text_data(text, &mut len);
            assert_eq!(std::slice::from_raw_parts(data.cast::<u8>(), len + 1), b"a\0\xc3\xa9\0");
            assert_eq!(squire_text_data(text, null_mut()), data, "the length may be left out");
            squire_text_release(text);
        }
    }

    #[test]
    fn no_text_is_null_of_length_zero() {
        let mut len = 3;
        // SAFETY: NULL is a text that every call takes, and the slot is a local.
        assert!(unsafe { squire_text_data(null(), &mut len) }.is_null());
        assert_eq!(len, 0);
    }
}
