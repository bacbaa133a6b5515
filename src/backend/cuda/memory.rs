//! Device memory under the engine's budget, freed when its last view goes.

use std::fmt;
use std::sync::Arc;

use super::pool::Pool;
use super::{Address, Cuda, Pinned};
use crate::error::{Error, Fault, Result};

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
        self.device.0.pool.lock().give(self.device.api(), self.at, self.bytes);
    }
}

impl Cuda {
    /// Takes `bytes` of device memory, contents undefined. Errors: `DeviceBudget` beyond the budget,
    /// `OutOfDeviceMemory` beyond the device, both with the bytes needed and free; nothing is taken then.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let whole = Pool::whole(bytes);
        let at = self.0.pool.lock().take(self.api(), whole)?;
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
        const PIECE: usize = 32 << 20;
        let mut staging = Pinned::new(self.device(), bytes.len().clamp(1, PIECE))?;
        for (i, piece) in bytes.chunks(PIECE).enumerate() {
            staging.bytes_mut()[..piece.len()].copy_from_slice(piece);
            // SAFETY: the piece lies inside both, and the wait below keeps the staging as it is.
            unsafe { self.device().api().upload(self.address() + (i * PIECE) as u64, staging.as_ptr(), piece.len())? };
            self.device().api().synchronize()?;
        }
        Ok(())
    }

    /// Its bytes, after all that was launched.
    pub fn read(&self) -> Result<Vec<u8>> {
        const PIECE: usize = 32 << 20;
        let mut staging = Pinned::new(self.device(), self.bytes.clamp(1, PIECE))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.bytes).map_err(|_| {
            Error::memory(Fault::OutOfHostMemory, self.bytes as u64, 0, "cannot hold what is read from the device")
        })?;
        for start in (0..self.bytes).step_by(PIECE) {
            let n = (self.bytes - start).min(PIECE);
            // SAFETY: as in `write`.
            unsafe { self.device().api().download(staging.as_mut_ptr(), self.address() + start as u64, n)? };
            self.device().api().synchronize()?;
            bytes.extend_from_slice(&staging.bytes()[..n]);
        }
        self.device().check()?;
        Ok(bytes)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes on the device", self.bytes)
    }
}
