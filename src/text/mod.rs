//! Text and where it came from.
#![forbid(unsafe_code)]

pub mod source;
