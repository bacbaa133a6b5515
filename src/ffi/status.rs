//! The status table as C sees it. The numbers are those of [`Status`]; the outcomes are the boundary's own.

use std::ffi::c_char;

#[cfg(doc)]
use crate::error::Status;

/// What a call answers: 0 is success, a positive number an outcome, a negative one an error.
/// Numbers are never reused; treat an unknown negative number as an error.
pub type squire_status = i32;

/// The call did what was asked.
pub const SQUIRE_OK: squire_status = 0;
/// There is nothing more to come.
pub const SQUIRE_END: squire_status = 1;
/// The time given ran out first.
pub const SQUIRE_TIMEOUT: squire_status = 2;
/// The call was cancelled; the state stands at the last whole token.
pub const SQUIRE_CANCELLED: squire_status = 3;
/// A parameter is wrong in itself: NULL, out of range, not UTF-8, unknown key.
pub const SQUIRE_E_ARGUMENT: squire_status = -1;
/// The call is not allowed now; the message names the expected one.
pub const SQUIRE_E_STATE: squire_status = -2;
/// Another call is working on this object.
pub const SQUIRE_E_BUSY: squire_status = -3;
/// The caller was compiled against an incompatible header.
pub const SQUIRE_E_ABI: squire_status = -4;
/// Understood, but not built, or not supported by this version.
pub const SQUIRE_E_UNSUPPORTED: squire_status = -5;
/// The operating system refused a file operation.
pub const SQUIRE_E_IO: squire_status = -6;
/// A file's bytes contradict its format.
pub const SQUIRE_E_FORMAT: squire_status = -7;
/// Two things that must agree do not.
pub const SQUIRE_E_MISMATCH: squire_status = -8;
/// Host memory could not be had.
pub const SQUIRE_E_HOST_MEMORY: squire_status = -9;
/// Device memory could not be had.
pub const SQUIRE_E_DEVICE_MEMORY: squire_status = -10;
/// A budget set by the caller would be exceeded.
pub const SQUIRE_E_BUDGET: squire_status = -11;
/// The session has no room for more tokens.
pub const SQUIRE_E_CONTEXT_FULL: squire_status = -12;
/// A grammar is wrong or cannot be satisfied.
pub const SQUIRE_E_GRAMMAR: squire_status = -13;
/// The chat template failed.
pub const SQUIRE_E_TEMPLATE: squire_status = -14;
/// The device reported an error.
pub const SQUIRE_E_DEVICE: squire_status = -15;
/// The device is gone for this process.
pub const SQUIRE_E_DEVICE_LOST: squire_status = -16;
/// The teacher failed or did not answer in time.
pub const SQUIRE_E_TEACHER: squire_status = -17;
/// An update is not finite; the weights are unchanged.
pub const SQUIRE_E_DIVERGED: squire_status = -18;
/// An earlier panic made this object unusable; only release works.
pub const SQUIRE_E_POISONED: squire_status = -19;
/// A defect of squire was caught at the boundary.
pub const SQUIRE_E_PANIC: squire_status = -20;

/// The name of a status as written here, such as "SQUIRE_E_IO", ended by NUL and valid for the life of the
/// process; "SQUIRE_UNKNOWN" for a number without one. Never NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub extern "C" fn squire_status_name(status: squire_status) -> *const c_char {
    name(status).as_ptr()
}

/// The name of a status.
pub(crate) fn name(status: squire_status) -> &'static std::ffi::CStr {
    match status {
        SQUIRE_OK => c"SQUIRE_OK",
        SQUIRE_END => c"SQUIRE_END",
        SQUIRE_TIMEOUT => c"SQUIRE_TIMEOUT",
        SQUIRE_CANCELLED => c"SQUIRE_CANCELLED",
        SQUIRE_E_ARGUMENT => c"SQUIRE_E_ARGUMENT",
        SQUIRE_E_STATE => c"SQUIRE_E_STATE",
        SQUIRE_E_BUSY => c"SQUIRE_E_BUSY",
        SQUIRE_E_ABI => c"SQUIRE_E_ABI",
        SQUIRE_E_UNSUPPORTED => c"SQUIRE_E_UNSUPPORTED",
        SQUIRE_E_IO => c"SQUIRE_E_IO",
        SQUIRE_E_FORMAT => c"SQUIRE_E_FORMAT",
        SQUIRE_E_MISMATCH => c"SQUIRE_E_MISMATCH",
        SQUIRE_E_HOST_MEMORY => c"SQUIRE_E_HOST_MEMORY",
        SQUIRE_E_DEVICE_MEMORY => c"SQUIRE_E_DEVICE_MEMORY",
        SQUIRE_E_BUDGET => c"SQUIRE_E_BUDGET",
        SQUIRE_E_CONTEXT_FULL => c"SQUIRE_E_CONTEXT_FULL",
        SQUIRE_E_GRAMMAR => c"SQUIRE_E_GRAMMAR",
        SQUIRE_E_TEMPLATE => c"SQUIRE_E_TEMPLATE",
        SQUIRE_E_DEVICE => c"SQUIRE_E_DEVICE",
        SQUIRE_E_DEVICE_LOST => c"SQUIRE_E_DEVICE_LOST",
        SQUIRE_E_TEACHER => c"SQUIRE_E_TEACHER",
        SQUIRE_E_DIVERGED => c"SQUIRE_E_DIVERGED",
        SQUIRE_E_POISONED => c"SQUIRE_E_POISONED",
        SQUIRE_E_PANIC => c"SQUIRE_E_PANIC",
        _ => c"SQUIRE_UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fault;

    #[test]
    fn every_status_of_the_table_has_the_same_name_and_number_in_c() {
        for status in Fault::ALL.iter().map(|fault| fault.status()) {
            let camel = format!("{status:?}");
            let snake: String = camel.chars().fold(String::new(), |mut s, c| {
                if c.is_uppercase() {
                    s.push('_');
                }
                s.push(c.to_ascii_uppercase());
                s
            });
            let prefix = if (status as i32) < 0 { "SQUIRE_E" } else { "SQUIRE" };
            assert_eq!(name(status as i32).to_str().unwrap(), format!("{prefix}{snake}"));
        }
    }

    #[test]
    fn an_unknown_status_has_a_name_too() {
        assert_eq!(name(-21), c"SQUIRE_UNKNOWN");
        assert_eq!(name(i32::MIN), c"SQUIRE_UNKNOWN");
    }
}
