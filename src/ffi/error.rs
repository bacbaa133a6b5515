//! The error object: made by the failing call, owned by the caller, readable on any thread.

use std::ffi::c_char;
use std::sync::OnceLock;

use serde_json::json;

use super::handle::{self, Object};
use super::status::{self, squire_status};
use super::text::CText;
use crate::error::Error;

/// Why a call failed: the status, a stable detail code, a message and a JSON document.
pub struct squire_error {
    _opaque: [u8; 0],
}

/// What stands behind a `squire_error`.
pub(crate) struct Failure {
    error: Error,
    message: CText,
    json: OnceLock<CText>,
}

impl Object for squire_error {
    type Body = Failure;
    const TAG: [u8; 8] = *b"sq error";
    const NAME: &'static str = "squire_error";
}

impl squire_error {
    /// Makes the handle that a failing call hands out.
    pub(crate) fn from(error: Error) -> *mut squire_error {
        let message = CText::new(error.message());
        handle::into_raw(Failure { error, message, json: OnceLock::new() })
    }
}

fn document(error: &Error) -> CText {
    let code = error.status() as i32;
    let document = json!({
        "status": status::name(code).to_str().unwrap_or_default(),
        "status_code": code,
        "detail": error.fault().name(),
        "detail_code": error.fault() as i32,
        "message": error.message(),
        "cause": error.causes().collect::<Vec<_>>(),
        "bytes": error.bytes().map(|(needed, free)| json!({ "needed": needed, "free": free })),
    });
    CText::new(&document.to_string())
}

/// The status that the failing call answered; SQUIRE_OK for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_error_status(error: *const squire_error) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::peek(error) }.map_or(status::SQUIRE_OK, |failure| failure.error.status() as squire_status)
}

/// The stable detail code, one of SQUIRE_DETAIL_...; 0 for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_error_detail(error: *const squire_error) -> i32 {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::peek(error) }.map_or(0, |failure| failure.error.fault() as i32)
}

/// The message: UTF-8, ended by NUL, its length without the NUL in *len unless len is NULL. It lives as long as the
/// error. NULL and 0 for NULL. The text may change between versions. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_error_message(error: *const squire_error, len: *mut usize) -> *const c_char {
    // SAFETY: the conventions at the head of the header.
    unsafe { CText::hand_out(handle::peek(error).map(|failure| &failure.message), len) }
}

/// The error as a JSON object: status, status_code, detail, detail_code, message, cause (the messages before each
/// context was put in front, nearest first) and bytes ({"needed", "free"} for memory and budget faults, else null).
/// UTF-8, ended by NUL, its length without the NUL in *len unless len is NULL; lives as long as the error. NULL and 0
/// for NULL. Keys may be added. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_error_json(error: *const squire_error, len: *mut usize) -> *const c_char {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        let json = handle::peek(error).map(|failure| failure.json.get_or_init(|| document(&failure.error)));
        CText::hand_out(json, len)
    }
}

/// Frees an error. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_error_release(error: *mut squire_error) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fault;
    use std::ptr::{null, null_mut};

    #[test]
    fn an_error_shows_status_detail_message_and_document() {
        let error = Error::memory(Fault::KvBudget, 100, 40, "the KV budget is used up").within("session 3");
        let e = squire_error::from(error);
        // SAFETY: an error that was just made; its document is read before its release.
        unsafe {
            assert_eq!(squire_error_status(e), status::SQUIRE_E_BUDGET);
            assert_eq!(squire_error_detail(e), 1101);
            let mut len = 0;
            let json = squire_error_json(e, &mut len);
            let json = std::ffi::CStr::from_ptr(json);
            assert_eq!(json.to_bytes().len(), len);
            let json: serde_json::Value = serde_json::from_slice(json.to_bytes()).unwrap();
            assert_eq!(json["status"], "SQUIRE_E_BUDGET");
            assert_eq!(json["detail"], "KvBudget");
            assert_eq!(json["message"], "session 3: the KV budget is used up");
            assert_eq!(json["cause"], serde_json::json!(["the KV budget is used up"]));
            assert_eq!(json["bytes"], serde_json::json!({ "needed": 100, "free": 40 }));
            squire_error_release(e);
        }
    }

    #[test]
    fn a_null_error_is_read_as_nothing() {
        // SAFETY: NULL is an error that every call takes.
        unsafe {
            let mut len = 9;
            assert_eq!((squire_error_status(null()), squire_error_detail(null())), (0, 0));
            assert!(squire_error_message(null(), &mut len).is_null());
            assert_eq!(len, 0);
            assert!(squire_error_json(null(), null_mut()).is_null());
            squire_error_release(null_mut());
        }
    }
}
