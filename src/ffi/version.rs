//! What this library is: callable before anything else, and inside callbacks.

use std::ffi::c_char;
use std::sync::OnceLock;

use serde_json::json;

use super::text::CText;
use crate::backend::KernelSet;
use crate::backend::cuda::Cuda;

/// Of the ABI that this header describes: changes when something is removed or means something else.
pub const SQUIRE_ABI_MAJOR: u32 = 0;
/// Of the same: counts the additions within a major.
pub const SQUIRE_ABI_MINOR: u32 = 11;
/// What the _init function of the engine's options is told of the header in use.
pub const SQUIRE_ABI: u32 = SQUIRE_ABI_MAJOR << 16 | SQUIRE_ABI_MINOR;

/// The ABI of the library at hand: major * 65536 + minor. squire_engine_create refuses a program of another major;
/// while the major is 0, the interface may still change between releases. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub extern "C" fn squire_abi_version() -> u32 {
    SQUIRE_ABI
}

/// The library's version, such as "0.1.0", ended by NUL, valid for the life of the process. Any thread, also inside a
/// callback.
#[unsafe(no_mangle)]
pub extern "C" fn squire_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What was built and what this machine can run, as a JSON object: version, abi, profile, target, backends (built; whether
/// a device is there is squire_device_probe's to say),
/// kernel_sets (those of this machine, slowest first). Ended by NUL, valid for the life of the process. Keys may be
/// added. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub extern "C" fn squire_build_json() -> *const c_char {
    static BUILD: OnceLock<CText> = OnceLock::new();
    let build = BUILD.get_or_init(|| {
        let sets: Vec<_> = KernelSet::ALL.into_iter().filter(|set| set.available()).map(KernelSet::name).collect();
        let document = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "abi": [SQUIRE_ABI_MAJOR, SQUIRE_ABI_MINOR],
            "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
            "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "backends": if Cuda::BUILT { &["cpu", "cuda"][..] } else { &["cpu"] },
            "kernel_sets": sets,
        });
        CText::new(&document.to_string())
    });
    // SAFETY: no length is wanted.
    unsafe { CText::hand_out(Some(build), std::ptr::null_mut()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn version_and_build_agree_with_the_package() {
        // SAFETY: a C string that lives as long as the library.
        let version = unsafe { CStr::from_ptr(squire_version()) }.to_str().unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        // SAFETY: a C string that lives as long as the library.
        let build = unsafe { CStr::from_ptr(squire_build_json()) };
        let build: serde_json::Value = serde_json::from_slice(build.to_bytes()).unwrap();
        assert_eq!(build["version"], version);
        assert_eq!(build["kernel_sets"][0], "scalar");
        assert_eq!(squire_build_json(), squire_build_json(), "made once");
    }
}
