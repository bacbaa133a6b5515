//! The record of a run on disk: what was played, so that an update can be built from it again bit for bit, and what became of it.
//! docs/record.md has the form of both files.
//!
//! [`mod@line`] has an episode and its line, `folder` writes both files, [`reader`] reads the record back, `writing` is what a
//! distiller writes and when, [`import`] what it takes from a record.
#![forbid(unsafe_code)]

pub(super) mod folder;
pub mod import;
pub(super) mod known;
pub mod line;
pub mod options;
pub mod reader;
mod writing;

pub use import::Imported;
pub use options::RecordOptions;
pub use reader::{Record, RecordedEpisode};
