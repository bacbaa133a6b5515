//! The ops, one a file: the formula with its shapes, the forward, the backward, the CPU loops, the tests.
//!
//! Conventions. N rows in use are given as `n`; a tensor may have more. A forward overwrites its result.
//! A backward adds to gradients of parameters (`dw`), and says for each activation gradient whether it
//! overwrites or adds. `compute` says whether the result is rounded to bf16. Extents are checked once, on
//! entry, by assertion: shapes come from a validated model, so a mismatch is a defect of squire.

mod attention;
mod linear;

pub use attention::{Heads, Span, attention_backward, attention_forward, kv_append};
pub use linear::{linear_backward_input, linear_backward_weight, linear_forward, linear_forward_f32};

#[cfg(test)]
pub(crate) mod claims;
