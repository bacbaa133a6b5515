//! Serving: the floor between the model and what is built on it.
#![forbid(unsafe_code)]

mod cancel;

pub use cancel::Cancel;
