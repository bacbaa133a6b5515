//! Serving: an engine that batches many sessions, sessions that are timelines of ids, generation.
//!
//! Nothing here knows of gradients or teachers.
#![forbid(unsafe_code)]

mod adapters;
mod bell;
pub mod cancel;
mod continuations;
mod controls;
mod deal;
mod device;
mod documents;
mod driver;
mod elsewhere;
pub mod engine;
mod fair;
pub mod generation;
mod generation_options;
mod history;
mod job;
mod latency;
mod loading;
pub mod log;
pub mod messages;
mod metrics;
pub mod model;
#[cfg(all(test, feature = "model-check"))]
mod model_checks;
mod options;
mod outbox;
mod pace;
mod pages;
mod prometheus;
pub mod queue;
mod reserved;
mod revision;
mod round;
mod scheduler;
pub mod session;
mod slot;
mod speed;
mod timeline;

pub use cancel::Cancel;
pub use continuations::Continuation;
pub use controls::{Controls, MAX_BIAS, MAX_NGRAM};
pub use documents::{Documents, StopId, stop_ids_json};
pub(crate) use elsewhere::Feed;
pub use engine::Engine;
pub use generation::{Chunk, Generation, Next};
pub(crate) use generation::{Ending, Opening, Speaker};
pub use generation_options::{GenerationOptions, MAX_TOP_LOGPROBS};
pub use job::ScoreRow;
pub use latency::Latency;
pub use loading::LoadOptions;
pub use log::{Level, Log};
pub use metrics::Metrics;
pub use model::ServedModel;
pub use options::{DeviceChoice, EngineOptions};
pub use outbox::Finish;
pub use queue::{Heard, Queue};
pub use reserved::Reserved;
pub use revision::{Bound, Counted, NAMED, Revision};
pub(crate) use session::turn_opening;
pub use session::{Extent, MAX_SCORE_ENTRIES, Session};
pub use timeline::{Hidden, Token};
pub(crate) use timeline::{Mark, after};
