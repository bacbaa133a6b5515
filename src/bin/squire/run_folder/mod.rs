//! What the folder of a run holds (docs/record.md), read line by line: `metrics.jsonl` becomes numbers by step, and of
//! `record.jsonl` the episodes that are asked for.
#![forbid(unsafe_code)]

mod event;
mod history;
mod lines;
mod record;
mod step;

pub use event::{Report, Update};
pub use history::{History, State};
pub use record::{Chosen, Episode, Record};
pub use step::Step;
