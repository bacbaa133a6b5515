//! What the standard library lacks of the operating system: the exchange of two names, and whether a process lives.
#![allow(unsafe_code)]

use std::path::Path;

/// Exchanges what two names stand for, so that neither is ever without: true where the system and the file system can
/// and did. Where it is false nothing has changed.
#[cfg(any(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")), target_os = "macos"))]
pub(super) fn exchange(a: &Path, b: &Path) -> bool {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    match (text(a), text(b)) {
        (Ok(a), Ok(b)) => call::exchange(&a, &b),
        _ => false, // no system has a name with a NUL in it
    }
}

#[cfg(not(any(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")), target_os = "macos")))]
pub(super) fn exchange(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod call {
    use std::ffi::{CStr, c_char, c_int, c_long, c_uint};

    /// renameat2, by its number: not every C library has a function for it.
    #[cfg(target_arch = "x86_64")]
    const RENAMEAT2: c_long = 316;
    #[cfg(target_arch = "aarch64")]
    const RENAMEAT2: c_long = 276;
    const AT_FDCWD: c_int = -100;
    const RENAME_EXCHANGE: c_uint = 2;

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }

    pub(super) fn exchange(a: &CStr, b: &CStr) -> bool {
        let (a, b): (*const c_char, *const c_char) = (a.as_ptr(), b.as_ptr());
        // SAFETY: the arguments are those of renameat2: two texts that end in NUL and live through the call, each behind
        // the folder that it starts from, and the flags.
        unsafe { syscall(RENAMEAT2, AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0 }
    }
}

#[cfg(target_os = "macos")]
mod call {
    use std::ffi::{CStr, c_char, c_int, c_uint};

    const RENAME_SWAP: c_uint = 2;

    unsafe extern "C" {
        fn renamex_np(from: *const c_char, to: *const c_char, flags: c_uint) -> c_int;
    }

    pub(super) fn exchange(a: &CStr, b: &CStr) -> bool {
        // SAFETY: two texts that end in NUL and live through the call, which keeps neither.
        unsafe { renamex_np(a.as_ptr(), b.as_ptr(), RENAME_SWAP) == 0 }
    }
}

/// Whether a process of this number lives, as far as this process can see; true where that cannot be known.
#[cfg(unix)]
pub(super) fn lives(pid: u32) -> bool {
    unsafe extern "C" {
        fn kill(pid: std::ffi::c_int, signal: std::ffi::c_int) -> std::ffi::c_int;
    }
    const ESRCH: i32 = 3;
    match std::ffi::c_int::try_from(pid) {
        // Zero and negative numbers are groups of processes.
        Ok(pid) if pid > 0 => {
            // SAFETY: signal 0 is sent to nobody; the call only looks whether the process is there.
            let there = unsafe { kill(pid, 0) } == 0;
            there || std::io::Error::last_os_error().raw_os_error() != Some(ESRCH)
        }
        _ => false,
    }
}

#[cfg(not(unix))]
pub(super) fn lives(_: u32) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn two_folders_change_places_or_stay_where_they_are() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        for (folder, file) in [(&a, "first"), (&b, "second")] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(file), "").unwrap();
        }
        let (in_a, in_b) = if exchange(&a, &b) { ("second", "first") } else { ("first", "second") };
        assert!(a.join(in_a).exists() && b.join(in_b).exists());
        assert!(!exchange(&a, &root.path().join("nothing")));
        assert!(a.join(in_a).exists());
    }

    #[test]
    #[cfg(unix)]
    fn a_process_that_ended_does_not_live() {
        assert!(lives(std::process::id()) && lives(1));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(!lives(pid) && !lives(0) && !lives(u32::MAX));
    }
}
