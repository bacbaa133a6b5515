//! What a forward pass writes on its way. Serving lends every layer the same set; training lends each
//! layer its own, and its backward reads them.
#![forbid(unsafe_code)]

use super::{Model, ModelConfig};
use crate::backend::ops::{AttendScratch, Dealing, Draws, ExpertActivations, ExpertExtents, FfnActivations, Head};
use crate::backend::{Batch, Device, Graphs, Tensor, host};
use crate::error::Result;

/// Activations of a batch of N rows.
pub struct Activations {
    /// The rows, their tokens and positions.
    pub batch: Batch,
    /// [N, C] the residual stream
    pub stream: Tensor,
    /// [N, C] scratch: what is added to the stream
    pub branch: Tensor,
    /// one set in all, or one a layer
    pub layers: Vec<LayerActivations>,
    /// whether each layer has its own set
    pub keep: bool,
    /// [N, C] after the final norm; `decode` leaves it as it was
    pub hidden: Tensor,
    /// Parts of attention, where a GPU splits the positions; lent to every layer.
    pub attend_scratch: AttendScratch,
    /// Logits and what leads to them, of the rows that are wanted.
    pub head: Option<Head>,
    /// What the last decode step drew.
    pub draws: Draws,
    /// Recorded decode steps over these buffers.
    pub(super) graphs: Graphs,
    /// rows that everything has room for
    n_rows: usize,
    /// where they lie
    device: Device,
    /// the batch's generation that the graphs were recorded in
    generation: u64,
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

/// Elements of a row of each tensor of a layer, in the order of the struct; the first two are kept for training alone.
fn widths(config: &ModelConfig) -> [usize; 10] {
    let (c, hd, gd) = (config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    [c, c, c, hd, gd, gd, hd, gd, hd, c]
}

impl LayerActivations {
    /// Those of a layer with experts, or without.
    fn new(device: &Device, config: &ModelConfig, keep: bool, sparse: bool) -> Result<LayerActivations> {
        let zeros = |width: usize| Tensor::on(device, device.activation_dtype(), &[0, width]);
        let experts = match expert_extents(config) {
            Some(extents) if sparse => Some(ExpertActivations::new(device, extents, keep)?),
            _ => None,
        };
        let [input, middle, normed, q_raw, k_raw, v, q, k, attended, post_normed] = widths(config);
        Ok(LayerActivations {
            input: zeros(input)?,
            middle: zeros(middle)?,
            normed: zeros(normed)?,
            q_raw: zeros(q_raw)?,
            k_raw: zeros(k_raw)?,
            v: zeros(v)?,
            q: zeros(q)?,
            k: zeros(k)?,
            attended: zeros(attended)?,
            post_normed: zeros(post_normed)?,
            ffn: FfnActivations::new(device, 0, config.intermediate_size)?,
            experts,
        })
    }

    /// Its own tensors, in the order of `widths`.
    fn tensors(&self) -> [&Tensor; 10] {
        let LayerActivations { input, middle, normed, q_raw, k_raw, v, q, k, attended, post_normed, .. } = self;
        [input, middle, normed, q_raw, k_raw, v, q, k, attended, post_normed]
    }

    fn reserve(&mut self, device: &Device, n: usize, keep: bool) -> Result<()> {
        let LayerActivations { input, middle, normed, q_raw, k_raw, v, q, k, attended, post_normed, .. } = self;
        for t in [normed, q_raw, k_raw, v, q, k, attended, post_normed] {
            t.reserve_rows(n)?;
        }
        if keep {
            input.reserve_rows(n)?;
            middle.reserve_rows(n)?;
        }
        if let Some(experts) = &mut self.experts {
            experts.reserve(device, n)?;
        }
        self.ffn.reserve(n)
    }

    fn bytes(device: &Device, config: &ModelConfig, n: usize, keep: bool, sparse: bool) -> u64 {
        let (rows, size) = (Tensor::rows_reserved(n), device.activation_dtype().size());
        let of = |(i, width): (usize, usize)| device.taken(if i >= 2 || keep { rows * width * size } else { 0 });
        let own: u64 = widths(config).into_iter().enumerate().map(of).sum();
        let experts = expert_extents(config).filter(|_| sparse);
        own + FfnActivations::bytes(device, rows, config.intermediate_size)
            + experts.map_or(0, |extents| ExpertActivations::bytes(device, n, &extents, keep))
    }

    fn taken(&self) -> u64 {
        let experts = self.experts.as_ref().map_or(0, ExpertActivations::taken);
        self.tensors().iter().map(|t| t.taken()).sum::<u64>() + self.ffn.taken() + experts
    }
}

fn expert_extents(config: &ModelConfig) -> Option<ExpertExtents> {
    config.moe.as_ref().map(|moe| ExpertExtents {
        hidden_size: config.hidden_size,
        width: moe.expert_intermediate_size,
        n_experts: moe.n_experts,
        dealing: Dealing { n_experts_per_token: moe.n_experts_per_token, norm_topk_prob: moe.norm_topk_prob },
    })
}

/// Rows of logits that there is room for where `n` are wanted.
fn head_rows(n: usize) -> usize {
    n.next_power_of_two().max(8)
}

impl Activations {
    /// One set shared by all layers.
    pub fn for_serving(model: &Model) -> Result<Activations> {
        Activations::new(&model.device, &model.config, false)
    }

    /// A set for each layer, read again by the backward.
    pub fn for_training(model: &Model) -> Result<Activations> {
        Activations::new(&model.device, &model.config, true)
    }

    fn new(device: &Device, config: &ModelConfig, keep: bool) -> Result<Activations> {
        let zeros = || Tensor::on(device, device.activation_dtype(), &[0, config.hidden_size]);
        let n_layers = if keep { config.n_layers } else { 1 };
        let mut layers = host::with_room(n_layers)?;
        for l in 0..n_layers {
            layers.push(LayerActivations::new(device, config, keep, !keep || config.is_moe_layer(l))?);
        }
        Ok(Activations {
            batch: Batch::default(),
            stream: zeros()?,
            branch: zeros()?,
            layers,
            keep,
            hidden: zeros()?,
            attend_scratch: AttendScratch::default(),
            head: None,
            draws: Draws::new(device)?,
            graphs: Graphs::default(),
            n_rows: 0,
            device: device.clone(),
            generation: 0,
        })
    }

    /// Bytes of the device's memory that a batch of `n` rows takes, without head and scratch: of one set in serving, of one
    /// a layer where they are kept. Exactly, but for experts in training, where it is the most that they take.
    pub fn bytes(device: &Device, config: &ModelConfig, n: usize, keep: bool) -> u64 {
        let shared = Tensor::rows_reserved(n) * config.hidden_size * device.activation_dtype().size();
        let n_layers = if keep { config.n_layers } else { 1 };
        let layer = |l| LayerActivations::bytes(device, config, n, keep, !keep || config.is_moe_layer(l));
        3 * device.taken(shared) + Draws::bytes(device) + (0..n_layers).map(layer).sum::<u64>()
    }

    /// Bytes that the logits of `n` rows take, with what leads to them.
    pub fn head_bytes(device: &Device, config: &ModelConfig, n: usize) -> u64 {
        Head::bytes(device, head_rows(n), config.hidden_size, config.vocab_size)
    }

    /// Bytes that it took for the rows of batches, as `bytes` counts them.
    pub fn taken(&self) -> u64 {
        let shared = [&self.stream, &self.branch, &self.hidden];
        let layers = self.layers.iter().map(LayerActivations::taken).sum::<u64>();
        shared.iter().map(|t| t.taken()).sum::<u64>() + Draws::bytes(&self.device) + layers
    }

    /// Makes room for the batch's rows. Graphs over buffers that move are forgotten, also where only some could move.
    pub(super) fn reserve(&mut self, model: &Model) -> Result<()> {
        let plan = self.batch.plan();
        let n = plan.rows;
        // Before anything moves: where there is room for half of it only, the rest must not be forgotten.
        if n > self.n_rows || self.generation != self.batch.generation() {
            self.graphs.clear();
            self.generation = self.batch.generation();
        }
        for t in [&mut self.stream, &mut self.branch, &mut self.hidden] {
            t.reserve_rows(n)?;
        }
        for layer in &mut self.layers {
            layer.reserve(&self.device, n, self.keep)?;
        }
        if self.attend_scratch.is_short(&self.device, model.heads(), plan) {
            self.graphs.clear();
            self.attend_scratch.reserve(&self.device, model.heads(), plan)?;
        }
        self.n_rows = self.n_rows.max(n);
        Ok(())
    }

    /// Makes room for the logits of `n` rows.
    pub(super) fn reserve_head(&mut self, model: &Model, n: usize) -> Result<()> {
        if self.head.as_ref().is_none_or(|h| h.logits.extent(0) < n) {
            self.graphs.clear();
            self.head = None;
            let n = head_rows(n);
            self.head = Some(Head::new(&self.device, n, model.config.hidden_size, model.config.vocab_size)?);
        }
        Ok(())
    }
}

impl Drop for Activations {
    fn drop(&mut self) {
        // What its passes needed meanwhile; whoever runs others takes his own again.
        self.device.release_scratch();
    }
}
