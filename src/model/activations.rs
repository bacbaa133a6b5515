//! What a forward pass writes on its way. Serving lends every layer the same set; training lends each
//! layer its own, and its backward reads them.
#![forbid(unsafe_code)]

use super::ModelConfig;
use crate::backend::{Tensor, ops::Routing};
use crate::error::Result;
use crate::tensor::Dtype;

/// Activations of a batch of N rows.
pub struct Activations {
    /// Rows in use.
    pub n: usize,
    /// Position of each row in its timeline.
    pub positions: Vec<u32>,
    /// [N, C] the residual stream
    pub stream: Tensor,
    /// [N, C] scratch: what is added to the stream
    pub branch: Tensor,
    /// one set in all, or one a layer
    pub layers: Vec<LayerActivations>,
    /// whether each layer has its own set
    pub keep: bool,
    /// [N, C] after the final norm
    pub hidden: Tensor,
}

/// Activations of one layer.
pub struct LayerActivations {
    /// [N, C] the stream before the layer (only kept for training)
    pub input: Tensor,
    /// [N, C] after the input norm
    pub normed: Tensor,
    /// [N, H*D] query projection
    pub q_raw: Tensor,
    /// [N, G*D] key projection
    pub k_raw: Tensor,
    /// [N, G*D] value projection
    pub v: Tensor,
    /// [N, H*D] after norm and RoPE
    pub q: Tensor,
    /// [N, G*D] after norm and RoPE
    pub k: Tensor,
    /// [N, H*D] attention output
    pub attended: Tensor,
    /// [N, C] the stream after attention (only kept for training)
    pub middle: Tensor,
    /// [N, C] after the post-attention norm
    pub post_normed: Tensor,
    /// the SwiGLU of a dense layer
    pub ffn: FfnActivations,
    /// the experts of a sparse layer
    pub experts: Option<ExpertActivations>,
}

/// Activations of one SwiGLU block over its own rows.
pub struct FfnActivations {
    /// [N, F] gate projection
    pub gate: Tensor,
    /// [N, F] up projection
    pub up: Tensor,
    /// [N, F] silu(gate) * up
    pub product: Tensor,
}

/// Activations of a layer of experts. A slot is one (row, rank) pair: slot = row * k + rank.
pub struct ExpertActivations {
    /// [N, E] router logits
    pub logits: Tensor,
    /// chosen experts and their weights
    pub routing: Option<Routing>,
    /// [N*k, C] each slot's result
    pub slots: Tensor,
    /// each expert's own rows; one shared entry when serving
    pub blocks: Vec<ExpertBlock>,
}

/// One expert's share of the batch, M rows.
pub struct ExpertBlock {
    /// slots it computes, in order
    pub slots: Vec<usize>,
    /// [M, C] its inputs
    pub x: Tensor,
    /// its SwiGLU
    pub ffn: FfnActivations,
    /// [M, C] its outputs
    pub y: Tensor,
}

impl FfnActivations {
    pub(super) fn new(n: usize, width: usize) -> Result<FfnActivations> {
        let zeros = || Tensor::zeros(Dtype::F32, &[n, width]);
        Ok(FfnActivations { gate: zeros()?, up: zeros()?, product: zeros()? })
    }

    pub(super) fn reserve(&mut self, n: usize) -> Result<()> {
        [&mut self.gate, &mut self.up, &mut self.product].into_iter().try_for_each(|t| t.reserve_rows(n))
    }
}

impl ExpertBlock {
    fn new(config: &ModelConfig, width: usize) -> Result<ExpertBlock> {
        let zeros = || Tensor::zeros(Dtype::F32, &[0, config.hidden_size]);
        Ok(ExpertBlock { slots: Vec::new(), x: zeros()?, ffn: FfnActivations::new(0, width)?, y: zeros()? })
    }

    pub(super) fn reserve(&mut self, n: usize) -> Result<()> {
        self.x.reserve_rows(n)?;
        self.y.reserve_rows(n)?;
        self.ffn.reserve(n)
    }
}

impl LayerActivations {
    fn new(config: &ModelConfig, keep: bool, layer: Option<usize>) -> Result<LayerActivations> {
        let zeros = |width: usize| Tensor::zeros(Dtype::F32, &[0, width]);
        let (c, hd, gd) = (config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let sparse = layer.is_none_or(|l| config.is_moe_layer(l));
        let experts = match &config.moe {
            Some(moe) if sparse => {
                let n_blocks = if keep { moe.n_experts } else { 1 };
                Some(ExpertActivations {
                    logits: zeros(moe.n_experts)?,
                    routing: None,
                    slots: zeros(c)?,
                    blocks: (0..n_blocks)
                        .map(|_| ExpertBlock::new(config, moe.expert_intermediate_size))
                        .collect::<Result<_>>()?,
                })
            }
            _ => None,
        };
        Ok(LayerActivations {
            input: zeros(c)?,
            normed: zeros(c)?,
            q_raw: zeros(hd)?,
            k_raw: zeros(gd)?,
            v: zeros(gd)?,
            q: zeros(hd)?,
            k: zeros(gd)?,
            attended: zeros(hd)?,
            middle: zeros(c)?,
            post_normed: zeros(c)?,
            ffn: FfnActivations::new(0, config.intermediate_size)?,
            experts,
        })
    }

    fn reserve(&mut self, n: usize, keep: bool, n_slots: usize) -> Result<()> {
        let always = [
            &mut self.normed,
            &mut self.q_raw,
            &mut self.k_raw,
            &mut self.v,
            &mut self.q,
            &mut self.k,
            &mut self.attended,
            &mut self.post_normed,
        ];
        always.into_iter().try_for_each(|t| t.reserve_rows(n))?;
        if keep {
            self.input.reserve_rows(n)?;
            self.middle.reserve_rows(n)?;
        }
        if let Some(experts) = &mut self.experts {
            experts.logits.reserve_rows(n)?;
            experts.slots.reserve_rows(n * n_slots)?;
        }
        self.ffn.reserve(n)
    }
}

impl Activations {
    /// One set shared by all layers.
    pub fn for_serving(config: &ModelConfig) -> Result<Activations> {
        Activations::new(config, false)
    }

    /// A set for each layer, read again by the backward.
    pub fn for_training(config: &ModelConfig) -> Result<Activations> {
        Activations::new(config, true)
    }

    fn new(config: &ModelConfig, keep: bool) -> Result<Activations> {
        let zeros = || Tensor::zeros(Dtype::F32, &[0, config.hidden_size]);
        let layers = if keep {
            (0..config.n_layers).map(|l| LayerActivations::new(config, true, Some(l))).collect::<Result<_>>()?
        } else {
            vec![LayerActivations::new(config, false, None)?]
        };
        Ok(Activations {
            n: 0,
            positions: Vec::new(),
            stream: zeros()?,
            branch: zeros()?,
            layers,
            keep,
            hidden: zeros()?,
        })
    }

    /// Makes room for `n` rows.
    pub(super) fn reserve(&mut self, config: &ModelConfig, n: usize) -> Result<()> {
        let n_slots = config.moe.as_ref().map_or(0, |m| m.n_experts_per_token);
        for t in [&mut self.stream, &mut self.branch, &mut self.hidden] {
            t.reserve_rows(n)?;
        }
        self.layers.iter_mut().try_for_each(|l| l.reserve(n, self.keep, n_slots))?;
        self.n = n;
        Ok(())
    }
}
