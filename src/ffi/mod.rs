//! The C boundary: pointers, panics, ownership, UTF-8. It converts and decides nothing.
//!
//! `include/squire.h` is written from these files, one section a file, by `SQUIRE_WRITE_HEADER=1 cargo test --test
//! header`; the same test without the variable fails if they differ. Every export is written out by hand, since the
//! header's generator does not expand macros. The contract of every pointer stands once, at the head of the header.
//!
//! | file | holds |
//! |---|---|
//! | `guard` | the frame around every call: panics, error slot, callbacks |
//! | `handle` | objects behind opaque pointers: kinds, references, poison |
//! | `input`, `output`, `options` | arrays and text in; plain values out; structs that may grow |
//! | `callbacks` | `squire_log_fn`, `squire_progress_fn` |
//! | `status`, `error` | `squire_status_name`; `squire_error_status`, `_detail`, `_message`, `_json`, `_release` |
//! | `version` | `squire_abi_version`, `squire_version`, `squire_build_json` |
//! | `text`, `tokens`, `scores` | results: `squire_text_data`, `squire_tokens_data`, `squire_scores_row`, and `_release` |
//! | `cancel` | `squire_cancel_create`, `_set`, `_retain`, `_release` |
//! | `drill` | test builds only: entries that panic on purpose |
#![allow(non_camel_case_types)] // the types carry the header's names
#![allow(clippy::missing_safety_doc)] // said once for all calls, at the head of the header

pub mod callbacks;
pub mod cancel;
#[cfg(feature = "drill")]
pub mod drill;
pub mod error;
mod guard;
mod handle;
mod input;
mod options;
mod output;
pub mod scores;
pub mod status;
pub mod text;
pub mod tokens;
pub mod version;
