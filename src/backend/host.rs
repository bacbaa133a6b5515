//! Host memory that is asked for and may be refused: nothing that grows with a model, a context or a batch may end the
//! process of the host.

use crate::error::{Error, Fault, Result};

/// Types whose bytes may go to a device, and that any bytes are a value of.
///
/// # Safety
/// No padding, and every bit pattern is a value.
pub unsafe trait Plain: Copy + Send + Sync {}
// SAFETY: a number without padding.
unsafe impl Plain for u32 {}
// SAFETY: a number without padding.
unsafe impl Plain for i32 {}
// SAFETY: a number without padding.
unsafe impl Plain for u64 {}
// SAFETY: a number without padding, and any bits are one.
unsafe impl Plain for f32 {}
// SAFETY: a number without padding, and any bits are one.
unsafe impl Plain for f64 {}

/// The error of `bytes` that could not be had.
pub fn refused(bytes: u64, what: impl std::fmt::Display) -> Error {
    Error::memory(Fault::OutOfHostMemory, bytes, 0, format!("cannot allocate {bytes} bytes for {what}"))
}

/// An empty list with room for `n` elements. Errors: `OutOfHostMemory`.
pub fn with_room<T>(n: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(n).map_err(|_| refused_list::<T>(n))?;
    Ok(list)
}

/// `n` times the same. Errors: `OutOfHostMemory`.
pub fn filled<T: Clone>(n: usize, value: T) -> Result<Vec<T>> {
    let mut list = with_room(n)?;
    list.resize(n, value);
    Ok(list)
}

/// The elements that an iterator of known length gives. Errors: `OutOfHostMemory`.
pub fn collected<T>(elements: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    let mut list = with_room(elements.len())?;
    list.extend(elements);
    Ok(list)
}

/// Makes room for `n` more elements. Errors: `OutOfHostMemory`; the list is as it was.
pub fn reserve<T>(list: &mut Vec<T>, n: usize) -> Result<()> {
    list.try_reserve(n).map_err(|_| refused_list::<T>(n))
}

fn refused_list<T>(n: usize) -> Error {
    refused((n as u64).saturating_mul(size_of::<T>() as u64), format_args!("a list of {n}"))
}

/// One cache line, so that what begins with one is aligned for every vector load.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Owned bytes, aligned to a cache line.
#[derive(Default)]
pub struct Lines {
    lines: Vec<Line>,
    len: usize,
}

impl Lines {
    /// `len` zeros. Errors: `OutOfHostMemory`, in the name of `what` they are for.
    pub fn zeros(len: usize, what: impl std::fmt::Display) -> Result<Lines> {
        let n = len.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(n).map_err(|_| refused(len as u64, what))?;
        lines.resize(n, Line([0; 64]));
        Ok(Lines { lines, len })
    }

    /// What `len` bytes take.
    pub fn taken(len: usize) -> usize {
        len.next_multiple_of(size_of::<Line>())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the lines hold at least `len` initialised bytes, and any bit pattern is a byte.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the lines are held exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
