//! Tensors on a device and the ops over them. Above this floor nobody knows which device it is.

pub mod batch;
pub mod cpu;
pub mod cuda;
mod device;
pub(crate) mod host;
mod matrix;
pub mod ops;
pub mod page;
mod tensor;
mod terms;

pub use batch::Batch;
pub use cpu::KernelSet;
pub use cuda::Graphs;
pub use device::Device;
pub use matrix::{AdaptedRows, LayerPairs, LoraPair, Matrix, Projection, Weight};
pub use tensor::{Elements, SharedBytes, Tensor};
pub use terms::Compute;
