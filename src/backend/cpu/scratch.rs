//! Scratch of the CPU's ops: what one needs while it runs and nobody needs afterwards. Buffers are kept from one op to
//! the next, so a step asks the system for none once it has had them all.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::backend::host::{Lines, Plain};
use crate::error::Result;
use crate::sync::Mutex;

/// Buffers grow by whole pieces of this size, so that a context that grows by a token does not move its scratch.
const PIECE: usize = 64 << 10;

/// The buffers that nobody uses.
#[derive(Clone, Default)]
pub(super) struct Spare(Arc<Mutex<Vec<Lines>>>);

impl Spare {
    /// `n` elements of any value, aligned to 64 bytes. Errors: `OutOfHostMemory`.
    pub(super) fn take<T: Plain>(&self, n: usize) -> Result<Scratch<T>> {
        let bytes = Spare::bytes(n * size_of::<T>());
        let kept = {
            let mut spare = self.0.lock();
            // The smallest that is large enough; where there is none, the largest makes way for a larger one.
            let fits = (0..spare.len()).filter(|&i| spare[i].len() >= bytes).min_by_key(|&i| spare[i].len());
            let best = fits.or_else(|| (0..spare.len()).max_by_key(|&i| spare[i].len()));
            best.map(|i| spare.swap_remove(i))
        };
        let lines = match kept.filter(|lines| lines.len() >= bytes) {
            Some(lines) => lines,
            None => Lines::zeros(bytes, "the scratch of an op")?,
        };
        Ok(Scratch { lines, n, spare: self.clone(), of: PhantomData })
    }

    /// What a buffer for so many bytes takes.
    pub(super) fn bytes(bytes: usize) -> usize {
        bytes.next_multiple_of(PIECE)
    }

    /// Bytes held for the next op.
    pub(super) fn held(&self) -> u64 {
        self.0.lock().iter().map(|lines| lines.len() as u64).sum()
    }

    /// Gives all of them back to the system.
    pub(super) fn clear(&self) {
        drop(std::mem::take(&mut *self.0.lock()));
    }
}

/// `n` elements for the time that an op runs; what they hold before they are written is whatever was there.
pub struct Scratch<T> {
    lines: Lines,
    n: usize,
    spare: Spare,
    of: PhantomData<T>,
}

impl<T: Plain> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let bytes = self.lines.bytes();
        assert!(bytes.len() >= self.n * size_of::<T>());
        // SAFETY: so many initialised bytes, aligned to 64, and any bit pattern is a T (`Plain`).
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.n) }
    }
}

impl<T: Plain> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes = self.lines.bytes_mut();
        assert!(bytes.len() >= self.n * size_of::<T>());
        // SAFETY: as in `deref`; the bytes are held exclusively, and a T's bytes are initialised (`Plain`: no padding).
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), self.n) }
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut spare = self.spare.0.lock();
        // A list of a few buffers; where it cannot grow, the buffer goes back to the system.
        if spare.try_reserve(1).is_ok() {
            spare.push(lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_used_again_and_grows_in_place_of_what_is_too_small() {
        let spare = Spare::default();
        let first = spare.take::<f32>(10).unwrap();
        let at = first.as_ptr();
        drop(first);
        assert_eq!(spare.held(), PIECE as u64);
        assert_eq!(spare.take::<u32>(PIECE / 4).unwrap().as_ptr().cast::<f32>(), at, "the same bytes");
        drop(spare.take::<f32>(PIECE).unwrap());
        assert_eq!(spare.held(), 4 * PIECE as u64, "the larger one took its place");
        let (a, b) = (spare.take::<f32>(PIECE).unwrap(), spare.take::<f64>(3).unwrap());
        assert_eq!((a.len(), b.len(), a.as_ptr().align_offset(64), b.as_ptr().align_offset(64)), (PIECE, 3, 0, 0));
        drop((a, b));
        assert_eq!(spare.held(), 5 * PIECE as u64);
        spare.clear();
        assert_eq!(spare.held(), 0);
    }
}
