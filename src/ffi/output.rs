//! Plain out-parameters: checked before the work starts, written after it has succeeded, so that a failing call
//! leaves them as they were.

use crate::error::{Error, Fault, Result};

/// Where one value goes.
pub(crate) struct Slot<T>(Option<*mut T>);

impl<T> Slot<T> {
    /// A slot that must be there.
    ///
    /// # Safety
    /// `p` is NULL, or writable until the slot is gone.
    pub(crate) unsafe fn required(p: *mut T, what: &str) -> Result<Slot<T>> {
        if p.is_null() {
            return Err(Error::new(Fault::NullPointer, format!("the out-parameter {what} is NULL")));
        }
        // SAFETY: passed on.
        unsafe { Slot::optional(p, what) }
    }

    /// A slot that may be NULL if the value is not wanted.
    ///
    /// # Safety
    /// `p` is NULL, or writable until the slot is gone.
    pub(crate) unsafe fn optional(p: *mut T, what: &str) -> Result<Slot<T>> {
        if !p.is_aligned() {
            return Err(Error::new(Fault::Misaligned, format!("the out-parameter {what} at {p:?} is not aligned")));
        }
        Ok(Slot((!p.is_null()).then_some(p)))
    }

    /// Writes the value.
    pub(crate) fn set(self, value: T) {
        if let Some(p) = self.0 {
            // SAFETY: not NULL and aligned as checked, writable by the constructors' contract.
            unsafe { p.write(value) };
        }
    }
}

/// Where `n` values go.
pub(crate) struct Slots<T>(*mut T, usize);

impl<T> Slots<T> {
    /// Slots that must be there.
    ///
    /// # Safety
    /// `p` is NULL, or `n` values are writable there until the slots are gone.
    pub(crate) unsafe fn required(p: *mut T, n: usize, what: &str) -> Result<Slots<T>> {
        // SAFETY: passed on.
        unsafe { Slot::required(p, what) }?;
        Ok(Slots(p, n))
    }

    /// Writes the i-th value.
    pub(crate) fn set(&self, i: usize, value: T) {
        assert!(i < self.1, "value {i} of {}", self.1);
        // SAFETY: one of the n, which are aligned as checked and writable by the constructor's contract.
        unsafe { self.0.add(i).write(value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null_mut;

    #[test]
    fn a_required_slot_refuses_null_and_an_optional_one_ignores_it() {
        // SAFETY: NULL, or a local.
        unsafe {
            assert_eq!(Slot::<u64>::required(null_mut(), "n").err().unwrap().fault(), Fault::NullPointer);
            Slot::<u64>::optional(null_mut(), "n").unwrap().set(1);
            let mut n = 0u64;
            Slot::required(&mut n, "n").unwrap().set(7);
            assert_eq!(n, 7);
        }
    }

    #[test]
    fn a_misaligned_slot_is_refused() {
        let mut n = [0u64; 2];
        let odd = n.as_mut_ptr().cast::<u8>().wrapping_add(1).cast::<u64>();
        // SAFETY: a slot that is not aligned is not written.
        assert_eq!(unsafe { Slot::optional(odd, "n") }.err().unwrap().fault(), Fault::Misaligned);
    }
}
