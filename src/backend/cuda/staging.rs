//! Page-locked buffers that transfers go through, kept from one to the next: locking pages costs more than copying them.

use super::api::Api;
use crate::sync::Mutex;

/// Locked memory that nobody copies through: as many pieces as threads ever copied at once.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Locked>>);

/// A piece of locked memory.
pub(super) struct Locked {
    pub at: *mut u8,
    pub len: usize,
}

// SAFETY: plain memory that whoever takes it has alone.
unsafe impl Send for Locked {}

impl Spare {
    /// The smallest piece of at least `len` bytes; where there is none, the largest, which makes way for a larger one.
    pub fn take(&self, len: usize) -> Option<Locked> {
        let mut spare = self.0.lock();
        let fits = (0..spare.len()).filter(|&i| spare[i].len >= len).min_by_key(|&i| spare[i].len);
        let best = fits.or_else(|| (0..spare.len()).max_by_key(|&i| spare[i].len));
        best.map(|i| spare.swap_remove(i))
    }

    /// Keeps a piece for the next transfer.
    pub fn give(&self, api: &dyn Api, piece: Locked) {
        let mut spare = self.0.lock();
        match spare.try_reserve(1) {
            Ok(()) => spare.push(piece),
            Err(_) => api.unpin(piece.at),
        }
    }

    /// Gives everything back to the system; the device is about to go.
    pub fn release(&self, api: &dyn Api) {
        self.0.lock().drain(..).for_each(|piece| api.unpin(piece.at));
    }
}
