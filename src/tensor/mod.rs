//! Element types and shapes: what a tensor is, apart from where it lives.
#![forbid(unsafe_code)]

mod dtype;
mod shape;

pub use dtype::Dtype;
pub use shape::Shape;
