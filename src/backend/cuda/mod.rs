//! The CUDA device: device memory, launches in order on one stream, graphs of recorded launches.
//!
//! Ops launch and do not wait. A failure is kept and told by the next `check` of the same thread: the first one counts.
//! One thread steps while others load and save, and none of them hears of another's failures, but for the loss of the
//! device, which refuses everything from then on. The layer compiles in every build; what is behind it depends on the
//! features (`api`).

pub mod api;
mod device;
#[cfg(all(feature = "cuda", not(feature = "shim")))]
mod driver;
#[cfg(feature = "shim")]
mod emulation;
pub mod experts_rows;
pub mod experts_tile;
#[cfg(any(test, all(feature = "cuda", not(feature = "shim"))))]
mod failure;
mod memory;
mod pinned;
mod pool;
pub mod rows;
mod staging;
pub mod step;
pub mod tile;

pub use api::{Address, Api, CudaOptions, Event, Facts, Graph, Launch, Matmul};
pub use device::{Cuda, GraphKey, Graphs, KernelArgs, Traffic};
pub use memory::Buffer;
pub use pinned::Pinned;
