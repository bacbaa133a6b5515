//! Page-locked host memory: kept by somebody, as for the copies of each step, or lent for one transfer.

use super::device::Cuda;
use super::staging::Locked;
use crate::error::Result;

/// The most that one copy takes; larger transfers go in pieces of it.
pub(super) const PIECE: usize = 32 << 20;
/// The least that is locked.
const LEAST: usize = 4 << 10;

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
        let at = device.pin(len.max(1))?;
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

/// A buffer for one transfer at a time. Whoever has it waits for each copy before the next.
pub(super) struct Staging<'a> {
    device: &'a Cuda,
    at: *mut u8,
    len: usize,
}

impl<'a> Staging<'a> {
    /// A buffer for a transfer of `bytes`, which holds the lesser of them and `PIECE`.
    pub fn of(device: &'a Cuda, bytes: usize) -> Result<Staging<'a>> {
        let wanted = bytes.clamp(LEAST, PIECE);
        if let Some(Locked { at, len }) = device.staging().take(wanted) {
            if len >= wanted {
                return Ok(Staging { device, at, len });
            }
            device.api().unpin(at);
        }
        let len = wanted.next_power_of_two();
        let at = device.pin(len)?;
        // SAFETY: so many bytes were just locked; whoever reads them finds them initialised.
        unsafe { at.write_bytes(0, len) };
        Ok(Staging { device, at, len })
    }

    /// Its bytes: what the last download brought.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised when they were locked, and no copy is under way: each was waited for.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// Its bytes, to be filled for the next upload.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and held exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Where it lies.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.at
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        self.device.staging().give(self.device.api(), Locked { at: self.at, len: self.len });
    }
}
