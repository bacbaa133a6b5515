//! The model: its configuration, its weights, the KV cache, and the one forward pass with its backward.
//!
//! Nothing here knows of text, sampling, or which device computes.
#![forbid(unsafe_code)]

pub mod activations;
pub mod adapter;
mod adapter_folder;
pub mod backward;
pub mod config;
mod config_fields;
mod config_rope;
mod folder;
pub mod forward;
pub mod kv_cache;
mod parameters;
pub mod plan;
mod prefixes;
pub mod weights;

pub use activations::Activations;
pub use adapter::{Adapter, Lora};
pub use adapter_folder::{check_adapter_place, read_adapter, target as adapter_target, write_adapter};
pub use config::{ModelConfig, Moe};
pub use config_rope::{Llama3, Rope, RopeScaling, Yarn};
pub use kv_cache::{KvCache, KvPool};
pub use parameters::Parameters;
pub use plan::{Load, MemoryPlan};
pub use weights::Weights;

use crate::backend::page::PageShape;
use crate::backend::{Compute, Device, ops};
use crate::error::{Error, Fault, Result};
use crate::tensor::Dtype;

/// Bytes that the rotary table may take; a million positions with heads of 128 take half of it.
const MAX_TABLE: usize = 1 << 30;

/// The tokens that a timeline of `config` can hold where `max_context` are wanted (0: the configuration's own limit).
/// Errors: as [`Model::new`], before anything is allocated.
pub fn context_of(config: &ModelConfig, device: &Device, max_context: usize) -> Result<usize> {
    config.check()?;
    let limit = config.max_position;
    if max_context > limit {
        let why = format!(
            "max_context: wanted {max_context} tokens, the model was made for {limit}; ask for at most that, or extend it \
             by YaRN (rope_scaling in config.json)"
        );
        return Err(Error::new(Fault::BadOption, why));
    }
    ops::check_extents(device, &extents(config))?;
    let max_context = if max_context == 0 { limit } else { max_context };
    let d = config.head_dim;
    // max_position comes from a document that no weight backs: it must not decide alone what is allocated.
    if max_context.saturating_mul(d) > MAX_TABLE / size_of::<f32>() {
        let why = format!(
            "the rotary table of {max_context} positions with heads of {d} would take more than {MAX_TABLE} \
             bytes; ask for a smaller context"
        );
        return Err(Error::new(Fault::BadOption, why));
    }
    Ok(max_context)
}

/// The shape of the KV pages of `config`.
pub fn page_shape(config: &ModelConfig, compute: Compute) -> PageShape {
    PageShape {
        n_layers: config.n_layers,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        dtype: if compute.rounds() { Dtype::Bf16 } else { Dtype::F32 },
    }
}

/// The extents of the attention heads of `config`.
pub fn heads(config: &ModelConfig) -> ops::Heads {
    ops::Heads {
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        scale: 1.0 / (config.head_dim as f32).sqrt(),
    }
}

fn extents(config: &ModelConfig) -> ops::Extents {
    let moe = config.moe.as_ref();
    // A dense model's width and its experts' must both be what kernels take; the odd one is the one to name.
    let widths = [Some(config.intermediate_size), moe.map(|m| m.expert_intermediate_size)];
    let ffn_size = widths.into_iter().flatten().find(|w| w % 32 != 0).unwrap_or(config.intermediate_size);
    ops::Extents {
        hidden_size: config.hidden_size,
        ffn_size,
        vocab_size: config.vocab_size,
        head_dim: config.head_dim,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        n_experts: moe.map_or(0, |m| m.n_experts),
        n_experts_per_token: moe.map_or(0, |m| m.n_experts_per_token),
        is_biased: config.qkv_bias || config.o_bias,
    }
}

/// What all revisions of a model share: extents, device, rotary table.
pub struct Model {
    /// Extents and constants.
    pub config: ModelConfig,
    /// Where it computes.
    pub device: Device,
    /// What activations are rounded to.
    pub compute: Compute,
    /// Rotary angles of all positions up to the context.
    pub rope: ops::RopeTable,
    max_context: usize,
}

impl Model {
    /// A model of `config` that holds at most `max_context` tokens a timeline (0: the configuration's own limit).
    ///
    /// Errors: `ConfigContradiction`; `BadOption` for a context beyond the configuration's, or one whose
    /// rotary table would be larger than any real model's; `NoKernels` for extents that the device's kernels do not take.
    pub fn new(config: ModelConfig, device: Device, compute: Compute, max_context: usize) -> Result<Model> {
        let max_context = context_of(&config, &device, max_context)?;
        let (frequencies, scaling) = config.rope.frequencies(config.head_dim);
        let rope = ops::RopeTable::new(&frequencies, max_context, scaling)?.on(&device)?;
        Ok(Model { config, device, compute, rope, max_context })
    }

    /// Tokens a timeline can hold.
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// The shape of this model's KV pages.
    pub fn page_shape(&self) -> PageShape {
        page_shape(&self.config, self.compute)
    }

    /// The extents of its attention heads.
    pub fn heads(&self) -> ops::Heads {
        heads(&self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use serde_json::json;

    fn config(max_position: usize) -> ModelConfig {
        ModelConfig::from_json(&json!({
            "model_type": "qwen3", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": max_position,
        }))
        .unwrap()
    }

    fn made(config: ModelConfig, max_context: usize) -> Result<usize> {
        let device = Device::Cpu(Cpu::new(1, None)?);
        Model::new(config, device, Compute::F32, max_context).map(|m| m.max_context())
    }

    #[test]
    fn a_context_beyond_the_configuration_is_refused() {
        assert_eq!(made(config(64), 0).unwrap(), 64);
        assert_eq!(made(config(64), 10).unwrap(), 10);
        assert_eq!(made(config(64), 65).unwrap_err().fault(), Fault::BadOption);
    }

    #[test]
    fn a_document_cannot_ask_for_an_endless_rotary_table() {
        let endless = config(i32::MAX as usize);
        assert_eq!(made(endless.clone(), 0).unwrap_err().fault(), Fault::BadOption);
        assert_eq!(made(endless, 100).unwrap(), 100);
    }

    #[test]
    fn a_configuration_made_by_hand_is_checked() {
        let mut odd = config(64);
        odd.head_dim = 3;
        assert_eq!(made(odd, 0).unwrap_err().fault(), Fault::ConfigContradiction);
    }
}
