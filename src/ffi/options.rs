//! Structs that may grow: the first field is `struct_size`, and library and host need not agree on the rest.
//!
//! On the way in, the library starts from its own defaults and lays the first `struct_size` bytes of the host's struct
//! over them: an older, shorter struct gets the newer fields' defaults, and a newer, longer one is taken only if all
//! that this library does not know is zero. On the way out, no more than `struct_size` bytes are written, and what a
//! newer host has beyond this library's fields reads as zero.

use std::mem::MaybeUninit;

use super::version::SQUIRE_ABI_MAJOR;
use crate::error::{Error, Fault, Result};

/// No struct of any version is longer; a `struct_size` beyond it is a field that was never set.
pub(crate) const LARGEST: usize = 1 << 16;

/// A struct of the header that begins with `struct_size`.
///
/// # Safety
/// `repr(C)`, with `struct_size: u32` first, no padding, a size that is a multiple of 8; any bytes are a valid value.
pub(crate) unsafe trait Versioned: Copy {
    /// The struct's name in the header.
    const NAME: &'static str;
    /// Its size in the first released header: no host's is shorter.
    const FIRST_SIZE: usize;
    /// The values that the library starts from; `struct_size` is its own size.
    fn defaults() -> Self;
}

/// The body of an `_init` function: zeroes exactly `size` bytes, writes the defaults of the fields that fit, and sets
/// `struct_size`. NULL, and a size that no struct has, leaves everything alone.
///
/// # Safety
/// `p` is NULL or `size` bytes are writable there.
pub(crate) unsafe fn init<T: Versioned>(p: *mut T, size: usize) {
    let bytes = p.cast::<u8>();
    if bytes.is_null() || !(size_of::<u32>()..=LARGEST).contains(&size) {
        return;
    }
    let defaults = T::defaults();
    // SAFETY: `size` bytes are writable by contract; no more than the struct has are read from it.
    unsafe {
        bytes.write_bytes(0, size);
        bytes.copy_from_nonoverlapping((&raw const defaults).cast(), size.min(size_of::<T>()));
        bytes.cast::<u32>().write_unaligned(size as u32); // `size` is at most LARGEST
    }
}

/// The host's struct over the library's defaults.
///
/// # Safety
/// `p` is NULL or points to a struct whose `struct_size` bytes are readable.
pub(crate) unsafe fn read<T: Versioned>(p: *const T) -> Result<T> {
    // SAFETY: passed on.
    let size = unsafe { check(p) }?;
    let known = size_of::<T>();
    // SAFETY: `size` bytes are readable by contract.
    let tail = unsafe { std::slice::from_raw_parts(p.cast::<u8>(), size) }.get(known..).unwrap_or_default();
    if let Some(i) = tail.iter().position(|&byte| byte != 0) {
        let what = format!("byte {} is set in {} of {size} bytes", known + i, T::NAME);
        let message = format!("{what}, of which this library knows {known}; it is older than the program's header");
        return Err(Error::new(Fault::StructSize, message));
    }
    let mut value = MaybeUninit::new(T::defaults());
    // SAFETY: no more bytes than either has; any bytes are a valid value.
    unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(p.cast(), size.min(known));
        Ok(value.assume_init())
    }
}

/// Where a struct that the library fills goes.
pub(crate) struct Filled<T> {
    p: *mut T,
    size: usize,
}

/// Checks a struct that the library is to fill.
///
/// # Safety
/// `p` is NULL or points to a struct whose `struct_size` is set and of which that many bytes are writable until the
/// result is gone.
pub(crate) unsafe fn fill<T: Versioned>(p: *mut T) -> Result<Filled<T>> {
    // SAFETY: passed on.
    Ok(Filled { p, size: unsafe { check(p) }? })
}

impl<T: Versioned> Filled<T> {
    /// Writes the value, as far as the host's struct reaches; `struct_size` stays the host's.
    pub(crate) fn set(self, value: T) {
        let (to, skip) = (self.p.cast::<u8>(), size_of::<u32>());
        let known = self.size.min(size_of::<T>());
        // SAFETY: `size` bytes are writable by the contract of `fill`; no more than the value has are read from it.
        unsafe {
            to.add(skip).copy_from_nonoverlapping((&raw const value).cast::<u8>().add(skip), known - skip);
            to.add(known).write_bytes(0, self.size - known);
        }
    }
}

/// The meaning of a number that stands for a choice; `name` is the field's.
pub(crate) fn choice<T: Copy>(found: i32, name: &str, choices: &[(i32, T)]) -> Result<T> {
    choices.iter().find(|(number, _)| *number == found).map(|&(_, choice)| choice).ok_or_else(|| {
        let known: Vec<_> = choices.iter().map(|(number, _)| number.to_string()).collect();
        Error::new(Fault::BadOption, format!("{name} must be one of {}, found {found}", known.join(", ")))
    })
}

/// A number of things that the header has as a signed field.
pub(crate) fn count(found: i32, name: &str) -> Result<usize> {
    usize::try_from(found)
        .map_err(|_| Error::new(Fault::BadOption, format!("{name} must not be negative, found {found}")))
}

/// Flags of which only those in `known` may be set.
pub(crate) fn flags(found: u32, name: &str, known: u32) -> Result<u32> {
    match found & !known {
        0 => Ok(found),
        unknown => Err(Error::new(Fault::BadOption, format!("{name} has the unknown flags {unknown:#x}"))),
    }
}

/// Refuses a host whose header has another ABI major than this library.
pub(crate) fn check_abi(abi: u32) -> Result<()> {
    let major = abi >> 16;
    if major == SQUIRE_ABI_MAJOR {
        return Ok(());
    }
    let message = format!("the program's header has ABI major {major}, this library {SQUIRE_ABI_MAJOR}");
    Err(Error::new(Fault::AbiMajor, message))
}

/// The `struct_size` at `p`, if it is one that a version of `T` can have.
unsafe fn check<T: Versioned>(p: *const T) -> Result<usize> {
    const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() <= LARGEST) };
    const { assert!(T::FIRST_SIZE.is_multiple_of(8) && T::FIRST_SIZE <= size_of::<T>() && T::FIRST_SIZE >= 8) };
    if p.is_null() {
        return Err(Error::new(Fault::NullPointer, format!("{} is NULL", T::NAME)));
    }
    if !p.is_aligned() {
        return Err(Error::new(Fault::Misaligned, format!("{} at {p:?} is not aligned", T::NAME)));
    }
    // SAFETY: not NULL, aligned, and the field is readable by the callers' contract.
    let size = unsafe { p.cast::<u32>().read() } as usize;
    if (T::FIRST_SIZE..=LARGEST).contains(&size) && size.is_multiple_of(8) {
        return Ok(size);
    }
    let wanted = format!("a multiple of 8 from {} up", T::FIRST_SIZE);
    let message = format!("struct_size of {} is {size}, wanted {wanted}; set it with the _init function", T::NAME);
    Err(Error::new(Fault::StructSize, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::{null, null_mut};

    /// As it stood in the first header.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Old {
        struct_size: u32,
        a: i32,
    }

    /// As the library knows it.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Now {
        struct_size: u32,
        a: i32,
        b: u64,
    }

    /// As a newer header has it.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct New {
        now: Now,
        c: u64,
    }

    // SAFETY: `repr(C)` without padding, any bits are a value, and the first field is the size.
    unsafe impl Versioned for Now {
        const NAME: &'static str = "now";
        const FIRST_SIZE: usize = size_of::<Old>();
        fn defaults() -> Now {
            Now { struct_size: size_of::<Now>() as u32, a: 10, b: 20 }
        }
    }

    fn fault<T>(r: Result<T>) -> Fault {
        r.err().expect("must be refused").fault()
    }

    #[test]
    fn a_struct_of_this_version_is_taken_as_it_is() {
        let now = Now { struct_size: 16, a: 1, b: 2 };
        // SAFETY: a live struct of the size that it says.
        assert_eq!(unsafe { read(&now) }.unwrap(), now);
    }

    #[test]
    fn a_short_struct_gets_the_defaults_of_what_it_lacks() {
        let old = Old { struct_size: 8, a: 1 };
        // SAFETY: a live struct of the size that it says, which is all that is read.
        let now = unsafe { read((&raw const old).cast::<Now>()) }.unwrap();
        assert_eq!((now.a, now.b), (1, 20));
    }

    #[test]
    fn a_long_struct_with_a_zero_tail_is_taken() {
        let new = New { now: Now { struct_size: 24, a: 1, b: 2 }, c: 0 };
        // SAFETY: a live struct of the size that it says.
        let now = unsafe { read((&raw const new).cast::<Now>()) }.unwrap();
        assert_eq!((now.a, now.b), (1, 2));
    }

    #[test]
    fn a_long_struct_with_something_in_its_tail_is_refused() {
        let new = New { now: Now { struct_size: 24, a: 1, b: 2 }, c: 1 << 56 };
        // SAFETY: a live struct of the size that it says.
        let e = unsafe { read((&raw const new).cast::<Now>()) }.err().unwrap();
        assert_eq!(e.fault(), Fault::StructSize);
        assert!(e.message().starts_with("byte 23 is set"), "{e}");
    }

    #[test]
    fn sizes_that_no_version_has_are_refused() {
        for size in [0, 4, 7, 12, 15, 17, LARGEST as u32 + 8, u32::MAX] {
            let now = Now { struct_size: size, a: 1, b: 2 };
            // SAFETY: of a size that no version has, the size alone is read.
            assert_eq!(fault(unsafe { read(&now) }), Fault::StructSize, "{size}");
            let mut now = now;
            // SAFETY: of a size that no version has, the size alone is read.
            assert_eq!(fault(unsafe { fill(&mut now) }), Fault::StructSize, "{size}");
        }
    }

    #[test]
    fn null_and_misaligned_structs_are_refused() {
        let words = [16u64; 3];
        let odd = words.as_ptr().cast::<u8>().wrapping_add(4).cast::<Now>();
        // SAFETY: NULL and what is not aligned are not read.
        unsafe {
            assert_eq!(fault(read::<Now>(null())), Fault::NullPointer);
            assert_eq!(fault(fill::<Now>(null_mut())), Fault::NullPointer);
            assert_eq!(fault(read(odd)), Fault::Misaligned);
            init::<Now>(null_mut(), 16);
        }
    }

    #[test]
    fn init_writes_the_defaults_that_fit_and_not_a_byte_more() {
        for size in [8usize, 16, 24] {
            let mut bytes = [0xffffu64; 4];
            // SAFETY: an array larger than each size.
            unsafe { init(bytes.as_mut_ptr().cast::<Now>(), size) };
            let a = (bytes[0] >> 32) as i32;
            assert_eq!((bytes[0] as u32, a), (size as u32, 10));
            assert_eq!(bytes[1], if size >= 16 { 20 } else { 0xffff });
            assert_eq!(bytes[2], if size >= 24 { 0 } else { 0xffff });
            assert_eq!(bytes[3], 0xffff);
        }
    }

    #[test]
    fn init_with_a_size_that_no_struct_has_writes_nothing() {
        for size in [0, 3, LARGEST + 1, usize::MAX] {
            let mut bytes = [0xffffu64; 2];
            // SAFETY: a size that no struct has, for which nothing is written.
            unsafe { init(bytes.as_mut_ptr().cast::<Now>(), size) };
            assert_eq!(bytes, [0xffff; 2]);
        }
    }

    #[test]
    fn a_filled_struct_keeps_its_size_and_zeroes_what_the_library_does_not_know() {
        let value = Now { struct_size: 0, a: 1, b: 2 };
        for size in [8u32, 16, 24] {
            let mut bytes = [0xffffu64 << 32 | u64::from(size), 0xffff, 0xffff, 0xffff];
            // SAFETY: an array larger than each size that it says.
            unsafe { fill(bytes.as_mut_ptr().cast::<Now>()) }.unwrap().set(value);
            assert_eq!(bytes[0], 1 << 32 | u64::from(size));
            assert_eq!(bytes[1], if size >= 16 { 2 } else { 0xffff });
            assert_eq!(bytes[2], if size >= 24 { 0 } else { 0xffff });
            assert_eq!(bytes[3], 0xffff);
        }
    }

    #[test]
    fn unknown_choices_negative_counts_and_unknown_flags_are_refused_by_name() {
        let e = choice(4, "drive", &[(0, 'a'), (1, 'b')]).unwrap_err();
        assert_eq!((e.fault(), e.message()), (Fault::BadOption, "drive must be one of 0, 1, found 4"));
        assert_eq!(choice(1, "drive", &[(0, 'a'), (1, 'b')]).unwrap(), 'b');
        assert_eq!(count(-1, "threads").unwrap_err().message(), "threads must not be negative, found -1");
        assert_eq!(flags(6, "flags", 2).unwrap_err().message(), "flags has the unknown flags 0x4");
        assert_eq!((count(3, "threads").unwrap(), flags(2, "flags", 3).unwrap()), (3, 2));
    }

    #[test]
    fn another_abi_major_is_refused() {
        assert!(check_abi(super::super::version::squire_abi_version()).is_ok());
        assert!(check_abi(SQUIRE_ABI_MAJOR << 16 | 0xffff).is_ok());
        assert_eq!(fault(check_abi((SQUIRE_ABI_MAJOR + 1) << 16)), Fault::AbiMajor);
    }
}
