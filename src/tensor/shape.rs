//! Extents of a tensor, row-major, the last one contiguous.
#![forbid(unsafe_code)]

use std::fmt;

/// Up to three extents. Prints as `[a, b, c]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    extents: [usize; 3],
    rank: usize,
}

impl Shape {
    /// A shape from its extents, or None above rank 3 or where the element count overflows.
    pub fn new(extents: &[usize]) -> Option<Shape> {
        if extents.len() > 3 {
            return None;
        }
        extents.iter().try_fold(1usize, |n, &e| n.checked_mul(e))?;
        let mut all = [1; 3];
        all[..extents.len()].copy_from_slice(extents);
        Some(Shape { extents: all, rank: extents.len() })
    }

    /// The extents.
    pub fn extents(&self) -> &[usize] {
        &self.extents[..self.rank]
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.extents().iter().product()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.extents())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.extents())
    }
}
