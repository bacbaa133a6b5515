//! Files: weights as safetensors, model folders as Hugging Face lays them out, and writes that survive a crash.
#![deny(unsafe_code)] // allowed again in `mmap` and `system` alone

mod chat_templates;
pub(crate) mod document;
pub mod durable;
pub mod generation_config;
mod json;
mod layout;
mod leftovers;
mod mmap;
pub mod model_dir;
mod not_a_model;
pub mod safetensors;
mod system;
mod tensor_names;
mod weight_files;

pub use chat_templates::ChatTemplates;
pub use generation_config::GenerationDefaults;
pub use layout::Layout;
pub use mmap::{Bytes, check_regular, open_regular, read_text};
pub use model_dir::{Companions, ModelDir, check_model_place, save_model};
pub use safetensors::StoredTensor;

use std::path::Path;

use crate::error::Error;

/// Puts a folder in front of a message that does not begin with it: a path stands once in a message.
pub fn within_folder(e: Error, folder: &Path) -> Error {
    let shown = folder.display().to_string();
    let rest = e.message().strip_prefix(shown.trim_end_matches('/'));
    if rest.is_some_and(|rest| rest.starts_with(['/', ':'])) { e } else { e.within(shown) }
}
