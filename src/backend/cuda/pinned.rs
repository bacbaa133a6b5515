//! Page-locked host memory: what copies to and from the device go through.

use super::Cuda;
use crate::error::Result;

/// A piece of page-locked memory.
pub struct Pinned {
    device: Cuda,
    at: *mut u8,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` bytes of zeros.
    pub fn new(device: &Cuda, len: usize) -> Result<Pinned> {
        let at = device.api().pin(len.max(1))?;
        // SAFETY: `len` bytes were just allocated.
        unsafe { at.write_bytes(0, len) };
        Ok(Pinned { device: device.clone(), at, len })
    }

    /// The bytes. The caller knows that no copy to them is under way.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised by `new`, owned, and not being written by the caller's word.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// The bytes, to be written. The caller knows that no copy from them is under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Where it lies.
    pub fn as_ptr(&self) -> *const u8 {
        self.at
    }

    /// Where it lies, to be written.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.at
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.device.api().unpin(self.at);
    }
}
