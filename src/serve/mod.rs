//! Serving: an engine that batches many sessions, sessions that are timelines of ids, generation.
//!
//! Nothing here knows of gradients or teachers.
#![forbid(unsafe_code)]

pub mod cancel;
mod device;
mod documents;
pub mod engine;
pub mod generation;
mod job;
pub mod log;
pub mod metrics;
pub mod model;
mod scheduler;
pub mod session;
mod timeline;

pub use cancel::Cancel;
pub use device::DeviceChoice;
pub use documents::{Documents, StopId, stop_ids_json};
pub use engine::{Engine, EngineOptions};
pub(crate) use generation::Ending;
pub use generation::{Chunk, Finish, Generation, GenerationOptions, Next};
pub use job::ScoreRow;
pub use log::{Level, Log};
pub use metrics::Metrics;
pub use model::{LoadOptions, Revision, ServedModel};
pub use session::{Extent, MAX_SCORE_ENTRIES, Session};
pub use timeline::{Hidden, Token};
