//! Device memory under the engine's budget, freed when its last view goes.

use std::fmt;
use std::sync::Arc;

use super::api::Address;
use super::device::Cuda;
use super::pinned::{PIECE, Staging};
use super::pool::{LARGEST_PIECE, Pool};
use crate::backend::host;
use crate::error::Result;

/// A piece of device memory. Views of one allocation share it.
#[derive(Clone)]
pub struct Buffer {
    block: Arc<Block>,
    offset: u64,
    bytes: usize,
}

struct Block {
    device: Cuda,
    at: Address,
    bytes: u64,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.device.pool().give(self.device.api(), self.at, self.bytes);
    }
}

impl Cuda {
    /// Takes `bytes` of device memory, contents undefined. Errors: `DeviceBudget` beyond the budget,
    /// `OutOfDeviceMemory` beyond the device, both with the bytes needed and free; nothing is taken then.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let whole = Pool::whole(bytes);
        let at = self.pool().take(self.api(), whole)?;
        Ok(Buffer { block: Arc::new(Block { device: self.clone(), at, bytes: whole }), offset: 0, bytes })
    }
}

impl Buffer {
    /// Where it lies.
    pub fn address(&self) -> Address {
        self.block.at + self.offset
    }

    /// Its length.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Bytes that its allocation took of the device, that of a view the whole one's.
    pub fn taken(&self) -> u64 {
        self.block.bytes
    }

    /// What an allocation of so many bytes takes of a device.
    pub fn taken_by(bytes: usize) -> u64 {
        Pool::whole(bytes)
    }

    /// Whether so many bytes are carved from a slab, so that the device is not asked for them.
    pub fn is_carved(bytes: usize) -> bool {
        Pool::whole(bytes) <= LARGEST_PIECE
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The device it lies on.
    pub fn device(&self) -> &Cuda {
        &self.block.device
    }

    /// `bytes` of it from `offset` on, kept alive with the whole.
    pub fn view(&self, offset: usize, bytes: usize) -> Buffer {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes from {offset} of a buffer of {}", self.bytes);
        Buffer { block: self.block.clone(), offset: self.offset + offset as u64, bytes }
    }

    /// Copies host bytes into it and waits.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.bytes);
        self.write_by(|at, piece| piece.copy_from_slice(&bytes[at..at + piece.len()]))
    }

    /// Copies into it what `fill` writes, piece by piece, and waits. `fill` is given the offset of a piece, a multiple of
    /// 4 KiB, and its bytes.
    pub fn write_by(&self, mut fill: impl FnMut(usize, &mut [u8])) -> Result<()> {
        let mut staging = Staging::of(self.device(), self.bytes)?;
        for at in (0..self.bytes).step_by(PIECE) {
            let n = (self.bytes - at).min(PIECE);
            fill(at, &mut staging.bytes_mut()[..n]);
            // SAFETY: the piece lies inside both, and the wait below keeps the staging as it is.
            let asked = unsafe { self.device().upload(self.address() + at as u64, staging.as_mut_ptr(), n) };
            // Waited for in any case: the staging is somebody else's next.
            self.device().api().synchronize().and(asked)?;
        }
        Ok(())
    }

    /// Its bytes, after all that was launched.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = host::filled(self.bytes, 0)?;
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// Copies its bytes to the host, after all that was launched.
    pub fn read_into(&self, bytes: &mut [u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.bytes);
        let mut staging = Staging::of(self.device(), self.bytes)?;
        for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
            let from = self.address() + (i * PIECE) as u64;
            // SAFETY: as in `write_by`.
            let asked = unsafe { self.device().api().download(staging.as_mut_ptr(), from, piece.len()) };
            self.device().api().synchronize().and(asked)?;
            piece.copy_from_slice(&staging.bytes()[..piece.len()]);
        }
        self.device().check()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes on the device", self.bytes)
    }
}
