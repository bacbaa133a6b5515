//! Files: weights as safetensors, model folders as Hugging Face lays them out, and writes that survive a crash.
#![deny(unsafe_code)] // allowed again in `mmap` alone

mod chat_templates;
pub mod durable;
mod mmap;
pub mod model_dir;
pub mod safetensors;

pub use chat_templates::ChatTemplates;
pub use mmap::Bytes;
pub use model_dir::{Companions, GenerationDefaults, ModelDir, save_model};
pub use safetensors::StoredTensor;
