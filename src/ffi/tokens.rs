//! Token ids that the library owns and the host reads.

use std::ptr::null;

use super::handle::{self, Object};
use super::text::write_len;

/// An array of token ids, owned by the library. Freed by squire_tokens_release.
pub struct squire_tokens {
    _opaque: [u8; 0],
}

impl Object for squire_tokens {
    type Body = Box<[i32]>;
    const TAG: [u8; 8] = *b"sq tokns";
    const NAME: &'static str = "squire_tokens";
}

/// The ids, their number in *len unless len is NULL. They live as long as the object. NULL and 0 for NULL; with no
/// ids the pointer is not NULL but points to nothing. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_tokens_data(tokens: *const squire_tokens, len: *mut usize) -> *const i32 {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        let (data, n) = handle::peek(tokens).map_or((null(), 0), |ids| (ids.as_ptr(), ids.len()));
        write_len(len, n);
        data
    }
}

/// Frees the ids. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_tokens_release(tokens: *mut squire_tokens) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(tokens) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_with_their_number() {
        let tokens = handle::into_raw::<squire_tokens>(vec![3, 1, 4].into());
        // SAFETY: a live handle whose ids are read before its release, or NULL; the slot is a local.
        unsafe {
            let mut len = 0;
            let data = squire_tokens_data(tokens, &mut len);
            assert_eq!(std::slice::from_raw_parts(data, len), [3, 1, 4]);
            squire_tokens_release(tokens);
            assert!(squire_tokens_data(null(), &mut len).is_null());
        }
        let mut len = 9;
        // SAFETY: NULL is a list that every call takes, and the slot is a local.
        unsafe { squire_tokens_data(null(), &mut len) };
        assert_eq!(len, 0);
    }
}
