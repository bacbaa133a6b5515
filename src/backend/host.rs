//! Host memory that is asked for and may be refused: nothing that grows with a model, a context or a batch may end the
//! process of the host.

use memmap2::MmapMut;

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

/// From this many bytes on a buffer is a mapping of its own: the system zeroes its pages when they are first touched, by
/// whichever thread that is, takes large pages where it has some, and has all of them back as soon as the buffer goes.
/// Faults of small pages were a seventh of an update's time.
const MAPPED: usize = 4 << 20;

/// Owned bytes, aligned to a cache line.
pub struct Lines {
    held: Held,
    len: usize,
}

enum Held {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

impl Default for Lines {
    fn default() -> Lines {
        Lines { held: Held::Lines(Vec::new()), len: 0 }
    }
}

impl Lines {
    /// `len` zeros. Errors: `OutOfHostMemory`, in the name of `what` they are for.
    pub fn zeros(len: usize, what: impl std::fmt::Display) -> Result<Lines> {
        if len >= MAPPED {
            let pages = MmapMut::map_anon(len).map_err(|_| refused(len as u64, what))?;
            // Only advice: where there are no large pages, small ones do.
            #[cfg(target_os = "linux")]
            let _ = pages.advise(memmap2::Advice::HugePage);
            return Ok(Lines { held: Held::Pages(pages), len });
        }
        let n = len.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(n).map_err(|_| refused(len as u64, what))?;
        lines.resize(n, Line([0; 64]));
        Ok(Lines { held: Held::Lines(lines), len })
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
        match &self.held {
            // SAFETY: the lines hold at least `len` initialised bytes, and any bit pattern is a byte.
            Held::Lines(lines) => unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), self.len) },
            Held::Pages(pages) => pages,
        }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.held {
            // SAFETY: as in `bytes`, and the lines are held exclusively.
            Held::Lines(lines) => unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), self.len) },
            Held::Pages(pages) => pages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_small_and_large_are_zeros_aligned_and_of_their_length() {
        for len in [0, 1, 64, 65, MAPPED - 1, MAPPED, MAPPED + 1, 3 * MAPPED + 77] {
            let mut lines = Lines::zeros(len, "a test").unwrap();
            assert_eq!((lines.len(), lines.bytes().len()), (len, len));
            assert!(lines.bytes().iter().all(|&b| b == 0));
            assert!(len == 0 || (lines.bytes().as_ptr() as usize).is_multiple_of(size_of::<Line>()));
            lines.bytes_mut().fill(7);
            assert!(lines.bytes().iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn what_no_machine_has_is_refused_in_the_name_of_what_it_is_for() {
        let e = Lines::zeros(1 << 60, "a test").err().unwrap();
        assert_eq!(
            (e.fault(), e.message()),
            (Fault::OutOfHostMemory, "cannot allocate 1152921504606846976 bytes for a test")
        );
    }
}
