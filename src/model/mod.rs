//! The model: its configuration, its weights, the KV cache, and the one forward pass with its backward.
//!
//! Nothing here knows of text, sampling, or which device computes.
#![forbid(unsafe_code)]

pub mod activations;
pub mod backward;
pub mod config;
mod config_fields;
pub mod forward;
pub mod kv_cache;
pub mod weights;

pub use activations::Activations;
pub use config::{ModelConfig, Moe};
pub use kv_cache::{KvCache, KvPool};
pub use weights::Weights;

use crate::backend::page::PageShape;
use crate::backend::{Compute, Device, ops};
use crate::error::{Error, Fault, Result};
use crate::tensor::Dtype;

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
    pub fn new(config: ModelConfig, device: Device, compute: Compute, max_context: usize) -> Result<Model> {
        let limit = config.max_position;
        if max_context > limit {
            let why = format!("a context of {max_context} tokens is wanted, the model was made for {limit}");
            return Err(Error::new(Fault::BadOption, why));
        }
        let max_context = if max_context == 0 { limit } else { max_context };
        let (d, theta) = (config.head_dim, config.rope.theta);
        let (frequencies, scaling) = match &config.rope.yarn {
            None => (ops::inverse_frequencies(d, theta), 1.0),
            Some(y) => {
                let f = ops::yarn_inverse_frequencies(
                    d,
                    theta,
                    y.factor,
                    y.original_max_position,
                    y.beta_fast,
                    y.beta_slow,
                    y.truncate,
                );
                (f, y.attention_factor as f32)
            }
        };
        let rope = ops::RopeTable::new(&frequencies, max_context, scaling)?;
        Ok(Model { config, device, compute, rope, max_context })
    }

    /// Tokens a timeline can hold.
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// The shape of this model's KV pages.
    pub fn page_shape(&self) -> PageShape {
        PageShape {
            n_layers: self.config.n_layers,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim,
            dtype: if self.compute.rounds() { Dtype::Bf16 } else { Dtype::F32 },
        }
    }

    /// The extents of its attention heads.
    pub fn heads(&self) -> ops::Heads {
        ops::Heads {
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim,
            scale: 1.0 / (self.config.head_dim as f32).sqrt(),
        }
    }
}
