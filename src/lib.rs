//! squire: serve a distilled student and teach it while it works, in one process.
//!
//! The crate is a house of floors; imports point downwards only (`tests/floors.rs` checks it):
//!
//! | floor | module | holds |
//! |---|---|---|
//! | 6 | [`ffi`] | the C boundary |
//! | 5 | [`distill`] | schedules, turn policy, episodes, losses, optimiser, checkpoints |
//! | 4 | [`serve`] | engine, sessions, generation, sampling |
//! | 3 | [`model`] | configuration, weights, KV cache, the one forward pass and its backward |
//! | 2 | [`backend`] | tensors on a device, the ops, the CPU kernels |
//! | 1 | [`tensor`], [`format`](mod@format), [`text`] | dtypes and shapes; model folders; tokenizer and chat template |
//! | 0 | [`error`], [`memory`], [`random`], `sync` | one error type; memory asked for beforehand; keyed draws; locks |

#![warn(missing_docs)]

pub mod backend;
pub mod distill;
pub mod error;
pub mod ffi;
pub mod format;
pub mod memory;
pub mod model;
pub mod random;
pub mod serve;
mod sync;
pub mod tensor;
pub mod text;
