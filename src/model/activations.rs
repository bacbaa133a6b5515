//! What a forward pass writes on its way. Serving lends every layer the same set; training lends each
//! layer its own, and its backward reads them.
#![forbid(unsafe_code)]

use super::{Model, ModelConfig};
use crate::backend::ops::{AttendScratch, Draws, ExpertActivations, FfnActivations, Head};
use crate::backend::{Batch, Device, Graphs, Tensor};
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
    /// parts of it, where a GPU splits the positions
    pub attend_scratch: AttendScratch,
    /// [N, C] the stream after attention (only kept for training)
    pub middle: Tensor,
    /// [N, C] after the post-attention norm
    pub post_normed: Tensor,
    /// the SwiGLU of a dense layer
    pub ffn: FfnActivations,
    /// the experts of a sparse layer
    pub experts: Option<ExpertActivations>,
}

impl LayerActivations {
    fn new(device: &Device, config: &ModelConfig, keep: bool, layer: Option<usize>) -> Result<LayerActivations> {
        let zeros = |width: usize| Tensor::on(device, device.activation_dtype(), &[0, width]);
        let (c, hd, gd) = (config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let sparse = layer.is_none_or(|l| config.is_moe_layer(l));
        let experts = match &config.moe {
            Some(moe) if sparse => {
                Some(ExpertActivations::new(device, c, moe.expert_intermediate_size, moe.n_experts, keep)?)
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
            attend_scratch: AttendScratch::default(),
            middle: zeros(c)?,
            post_normed: zeros(c)?,
            ffn: FfnActivations::new(device, 0, config.intermediate_size)?,
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
            experts.reserve(n, n_slots)?;
        }
        self.ffn.reserve(n)
    }
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
        let layers = if keep {
            let layer = |l| LayerActivations::new(device, config, true, Some(l));
            (0..config.n_layers).map(layer).collect::<Result<_>>()?
        } else {
            vec![LayerActivations::new(device, config, false, None)?]
        };
        Ok(Activations {
            batch: Batch::default(),
            stream: zeros()?,
            branch: zeros()?,
            layers,
            keep,
            hidden: zeros()?,
            head: None,
            draws: Draws::new(device)?,
            graphs: Graphs::default(),
            n_rows: 0,
            device: device.clone(),
            generation: 0,
        })
    }

    /// Makes room for the batch's rows. Graphs over buffers that move are forgotten, also where only some could move.
    pub(super) fn reserve(&mut self, model: &Model) -> Result<()> {
        let plan = self.batch.plan();
        let n = plan.rows;
        let n_slots = model.config.moe.as_ref().map_or(0, |m| m.n_experts_per_token);
        // Before anything moves: where there is room for half of it only, the rest must not be forgotten.
        if n > self.n_rows || self.generation != self.batch.generation() {
            self.graphs.clear();
            self.generation = self.batch.generation();
        }
        for t in [&mut self.stream, &mut self.branch, &mut self.hidden] {
            t.reserve_rows(n)?;
        }
        for layer in &mut self.layers {
            layer.reserve(n, self.keep, n_slots)?;
            if layer.attend_scratch.is_short(&self.device, model.heads(), plan) {
                self.graphs.clear();
                layer.attend_scratch.reserve(&self.device, model.heads(), plan)?;
            }
        }
        self.n_rows = self.n_rows.max(n);
        Ok(())
    }

    /// Makes room for the logits of `n` rows.
    pub(super) fn reserve_head(&mut self, model: &Model, n: usize) -> Result<()> {
        if self.head.as_ref().is_none_or(|h| h.logits.extent(0) < n) {
            self.graphs.clear();
            self.head = None;
            let n = n.next_power_of_two().max(8);
            self.head = Some(Head::new(&self.device, n, model.config.hidden_size, model.config.vocab_size)?);
        }
        Ok(())
    }
}
