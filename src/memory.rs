//! Memory that is asked for before it is needed.
//!
//! Rust's collections end the process where the system has no more memory. What squire allocates by itself, in a size that
//! a text, a file or a model decides, is asked for by [`reserved`] and refused with a fault. Where a library allocates
//! (a JSON parser, a compiler of patterns) its input is bounded, and [`room_for`] asks beforehand, in one piece, for all
//! that it can take. Between the question and the use another thread may take the memory, and a system that promises more
//! than it has answers yes to everything: then the process ends as it would have without the question.
#![forbid(unsafe_code)]

use crate::error::{Error, Fault, Result};

/// What is always asked for besides: messages and other small things.
const SLACK: usize = 1 << 20;

/// Whether this many bytes can be had now; they are given back at once. `what` takes them, for the message.
///
/// Error: `OutOfHostMemory`.
pub fn room_for(bytes: usize, what: &str) -> Result<()> {
    Vec::<u8>::new().try_reserve_exact(bytes.saturating_add(SLACK)).map_err(|_| refused(bytes, what))
}

/// An empty vector with room for `n` items. `what` they are, for the message.
///
/// Error: `OutOfHostMemory`.
pub fn reserved<T>(n: usize, what: &str) -> Result<Vec<T>> {
    let mut items = Vec::new();
    reserve(&mut items, n, what)?;
    Ok(items)
}

/// Makes room for `n` more items, as `Vec::reserve` does.
///
/// Error: `OutOfHostMemory`; the vector is as it was.
pub fn reserve<T>(items: &mut Vec<T>, n: usize, what: &str) -> Result<()> {
    items.try_reserve(n).map_err(|_| refused(n.saturating_mul(size_of::<T>()), what))
}

/// A copy. `what` its items are, for the message.
///
/// Error: `OutOfHostMemory`.
pub fn copied<T: Clone>(items: &[T], what: &str) -> Result<Vec<T>> {
    let mut copy = reserved(items.len(), what)?;
    copy.extend_from_slice(items);
    Ok(copy)
}

/// How many values a JSON document has at most, its keys left out: each but the first stands behind a comma or a bracket.
pub fn json_values(document: &[u8]) -> usize {
    let (mut values, mut inside, mut escaped) = (1, false, false);
    for &byte in document {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            b',' | b'[' | b'{' if !inside => values += 1,
            _ => {}
        }
    }
    values
}

/// What a JSON document of so many bytes and values takes once it is parsed, in bytes: the texts, and for each value its
/// place in a list or object that grows by doubling, with its key and its neighbours' empty places.
pub fn json_bytes(bytes: usize, values: usize) -> usize {
    const VALUE: usize = 5 * size_of::<serde_json::Value>();
    bytes.saturating_mul(2).saturating_add(values.saturating_mul(VALUE))
}

/// The refusal of so many bytes.
pub fn refused(bytes: usize, what: &str) -> Error {
    let why = format!("{what}: {bytes} bytes of host memory cannot be had; free some, or raise the process's limit");
    Error::memory(Fault::OutOfHostMemory, bytes as u64, 0, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_document_are_counted_without_parsing_it() {
        let most =
            [("1", 1), ("[]", 2), ("[1, 2]", 3), (r#"{"a,[": "\",\\", "b": {"c": [0]}}"#, 5), ("[[[", 4), ("\"", 1)];
        most.into_iter().for_each(|(text, n)| assert_eq!(json_values(text.as_bytes()), n, "{text}"));
    }

    #[test]
    fn what_no_machine_has_is_refused_with_its_size() {
        for e in [room_for(1 << 60, "a test").unwrap_err(), reserved::<u64>(1 << 57, "a test").unwrap_err()] {
            assert_eq!(e.fault(), Fault::OutOfHostMemory);
            assert_eq!(e.bytes(), Some((1 << 60, 0)));
            assert!(e.message().starts_with("a test: "), "{e}");
        }
        assert!(reserved::<u64>(usize::MAX, "a test").is_err());
        assert!(room_for(usize::MAX, "a test").is_err());
        room_for(1 << 20, "a test").unwrap();
        assert!(reserved::<u8>(100, "a test").unwrap().capacity() >= 100);
    }
}
