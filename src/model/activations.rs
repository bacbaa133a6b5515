//! What a forward pass writes on its way. Serving lends every layer the same set. Training keeps what its backward reads:
//! each layer has a set of its own, or what it does not keep is lent too, and the backward computes it again (`Recompute`).
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
    /// [N, C] of each layer, the stream before it; none in serving
    pub inputs: Vec<Tensor>,
    /// of the attention halves: one a layer, or one that is lent to all
    pub attention: Vec<AttentionActivations>,
    /// [N, C] the stream between a layer's halves: one a layer, or one that is lent to all; none in serving
    pub middles: Vec<Tensor>,
    /// of the feed-forward halves: one a layer, or one that is lent to all
    pub feed_forward: Vec<FeedForwardActivations>,
    /// what is not kept for the backward; None in serving, where nothing is
    pub recompute: Option<Recompute>,
    /// whether a backward has computed something again in them, so that no other one may read them
    pub(super) spent: bool,
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

/// What a training forward does not keep, so that its backward computes it once more. The bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// All is kept.
    Nothing,
    /// The feed-forward half of each layer, which is most of it.
    FeedForward,
    /// Each layer, from the stream before it.
    Layer,
}

impl Recompute {
    /// From the fastest to the one that takes least memory.
    pub const ALL: [Recompute; 3] = [Recompute::Nothing, Recompute::FeedForward, Recompute::Layer];

    /// The name in settings and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Recompute::Nothing => "nothing",
            Recompute::FeedForward => "feed-forward",
            Recompute::Layer => "layer",
        }
    }
}

/// The set of layer `l`: its own, or the one that is lent to all.
pub fn of_layer<T>(sets: &[T], l: usize) -> &T {
    &sets[l.min(sets.len() - 1)]
}

/// The same, to be written.
pub fn of_layer_mut<T>(sets: &mut [T], l: usize) -> &mut T {
    let last = sets.len() - 1;
    &mut sets[l.min(last)]
}

/// Activations of the attention half of a layer.
pub struct AttentionActivations {
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
}

impl AttentionActivations {
    /// Elements of a row of each tensor, in the order of the struct.
    fn widths(config: &ModelConfig) -> [usize; 7] {
        let (c, hd, gd) = (config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        [c, hd, gd, gd, hd, gd, hd]
    }

    fn new(device: &Device, config: &ModelConfig) -> Result<AttentionActivations> {
        let zeros = |width: usize| Tensor::on(device, device.activation_dtype(), &[0, width]);
        let [normed, q_raw, k_raw, v, q, k, attended] = AttentionActivations::widths(config);
        Ok(AttentionActivations {
            normed: zeros(normed)?,
            q_raw: zeros(q_raw)?,
            k_raw: zeros(k_raw)?,
            v: zeros(v)?,
            q: zeros(q)?,
            k: zeros(k)?,
            attended: zeros(attended)?,
        })
    }

    fn reserve(&mut self, n: usize) -> Result<()> {
        let AttentionActivations { normed, q_raw, k_raw, v, q, k, attended } = self;
        [normed, q_raw, k_raw, v, q, k, attended].into_iter().try_for_each(|t| t.reserve_rows(n))
    }

    fn bytes(device: &Device, config: &ModelConfig, n: usize) -> u64 {
        AttentionActivations::widths(config).into_iter().map(|width| rows_bytes(device, n, width)).sum()
    }

    fn taken(&self) -> u64 {
        let AttentionActivations { normed, q_raw, k_raw, v, q, k, attended } = self;
        [normed, q_raw, k_raw, v, q, k, attended].iter().map(|t| t.taken()).sum()
    }
}

/// Activations of the feed-forward half of a layer.
pub struct FeedForwardActivations {
    /// [N, C] after the post-attention norm
    pub normed: Tensor,
    /// the SwiGLU of a dense layer
    pub ffn: FfnActivations,
    /// the experts of a sparse layer
    pub experts: Option<ExpertActivations>,
}

impl FeedForwardActivations {
    /// Those of a layer with experts, or without; `keep` says whether a backward will read them.
    fn new(device: &Device, config: &ModelConfig, keep: bool, sparse: bool) -> Result<FeedForwardActivations> {
        let experts = match expert_extents(config) {
            Some(extents) if sparse => Some(ExpertActivations::new(device, extents, keep)?),
            _ => None,
        };
        Ok(FeedForwardActivations {
            normed: Tensor::on(device, device.activation_dtype(), &[0, config.hidden_size])?,
            ffn: FfnActivations::new(device, 0, config.intermediate_size)?,
            experts,
        })
    }

    fn reserve(&mut self, device: &Device, n: usize) -> Result<()> {
        self.normed.reserve_rows(n)?;
        if let Some(experts) = &mut self.experts {
            experts.reserve(device, n)?;
        }
        self.ffn.reserve(n)
    }

    fn bytes(device: &Device, config: &ModelConfig, n: usize, keep: bool, sparse: bool) -> u64 {
        let experts = expert_extents(config).filter(|_| sparse);
        rows_bytes(device, n, config.hidden_size)
            + FfnActivations::bytes(device, Tensor::rows_reserved(n), config.intermediate_size)
            + experts.map_or(0, |extents| ExpertActivations::bytes(device, n, &extents, keep))
    }

    fn taken(&self) -> u64 {
        let experts = self.experts.as_ref().map_or(0, ExpertActivations::taken);
        self.normed.taken() + self.ffn.taken() + experts
    }
}

/// Bytes of a tensor of `n` rows of activations.
fn rows_bytes(device: &Device, n: usize, width: usize) -> u64 {
    device.taken(Tensor::rows_reserved(n) * width * device.activation_dtype().size())
}

/// How many sets there are of a model's layers.
struct Sets {
    inputs: usize,
    attention: usize,
    middles: usize,
    feed_forward: usize,
}

impl Sets {
    fn of(config: &ModelConfig, recompute: Option<Recompute>) -> Sets {
        let all = config.n_layers;
        let (inputs, attention, middles, feed_forward) = match recompute {
            None => (0, 1, 0, 1),
            Some(Recompute::Nothing) => (all, all, all, all),
            Some(Recompute::FeedForward) => (all, all, all, 1),
            Some(Recompute::Layer) => (all, 1, 1, 1),
        };
        Sets { inputs, attention, middles, feed_forward }
    }

    /// Whether set `l` of the feed-forward halves serves layers with experts.
    fn is_sparse(&self, config: &ModelConfig, l: usize) -> bool {
        self.feed_forward < config.n_layers || config.is_moe_layer(l)
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
        Activations::new(&model.device, &model.config, None)
    }

    /// Sets that a backward reads, where all is kept.
    pub fn for_training(model: &Model) -> Result<Activations> {
        Activations::recomputing(model, Recompute::Nothing)
    }

    /// The same, where less is.
    pub fn recomputing(model: &Model, recompute: Recompute) -> Result<Activations> {
        Activations::new(&model.device, &model.config, Some(recompute))
    }

    fn new(device: &Device, config: &ModelConfig, recompute: Option<Recompute>) -> Result<Activations> {
        let zeros = || Tensor::on(device, device.activation_dtype(), &[0, config.hidden_size]);
        let sets = Sets::of(config, recompute);
        let streams = |n| host::collected((0..n).map(|_| zeros()))?.into_iter().collect::<Result<Vec<_>>>();
        let attention = (0..sets.attention).map(|_| AttentionActivations::new(device, config));
        let (keep, sparse) = (recompute.is_some(), |l| sets.is_sparse(config, l));
        let feed_forward = (0..sets.feed_forward).map(|l| FeedForwardActivations::new(device, config, keep, sparse(l)));
        Ok(Activations {
            batch: Batch::default(),
            stream: zeros()?,
            branch: zeros()?,
            inputs: streams(sets.inputs)?,
            attention: host::collected(attention)?.into_iter().collect::<Result<Vec<_>>>()?,
            middles: streams(sets.middles)?,
            feed_forward: host::collected(feed_forward)?.into_iter().collect::<Result<Vec<_>>>()?,
            recompute,
            spent: false,
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

    /// Bytes of the device's memory that a batch of `n` rows takes, without head and scratch; `recompute` None: in serving.
    /// Exactly, but for experts in training, where it is the most that they take.
    pub fn bytes(device: &Device, config: &ModelConfig, n: usize, recompute: Option<Recompute>) -> u64 {
        let (sets, keep) = (Sets::of(config, recompute), recompute.is_some());
        let streams = (3 + sets.inputs + sets.middles) as u64 * rows_bytes(device, n, config.hidden_size);
        let attention = sets.attention as u64 * AttentionActivations::bytes(device, config, n);
        let of = |l| FeedForwardActivations::bytes(device, config, n, keep, sets.is_sparse(config, l));
        streams + Draws::bytes(device) + attention + (0..sets.feed_forward).map(of).sum::<u64>()
    }

    /// Bytes that the logits of `n` rows take, with what leads to them.
    pub fn head_bytes(device: &Device, config: &ModelConfig, n: usize) -> u64 {
        Head::bytes(device, head_rows(n), config.hidden_size, config.vocab_size)
    }

    /// Bytes that it took for the rows of batches, as `bytes` counts them.
    pub fn taken(&self) -> u64 {
        let streams = [&self.stream, &self.branch, &self.hidden].into_iter().chain(&self.inputs).chain(&self.middles);
        streams.map(|t| t.taken()).sum::<u64>()
            + Draws::bytes(&self.device)
            + self.attention.iter().map(AttentionActivations::taken).sum::<u64>()
            + self.feed_forward.iter().map(FeedForwardActivations::taken).sum::<u64>()
    }

    /// Makes room for the batch's rows. Graphs over buffers that move are forgotten, also where only some could move.
    pub(super) fn reserve(&mut self, model: &Model) -> Result<()> {
        let plan = self.batch.plan();
        let n = plan.rows;
        self.spent = false;
        // Before anything moves: where there is room for half of it only, the rest must not be forgotten.
        if n > self.n_rows || self.generation != self.batch.generation() {
            self.graphs.clear();
            self.generation = self.batch.generation();
        }
        let streams = [&mut self.stream, &mut self.branch, &mut self.hidden].into_iter();
        streams.chain(&mut self.inputs).chain(&mut self.middles).try_for_each(|t| t.reserve_rows(n))?;
        self.attention.iter_mut().try_for_each(|a| a.reserve(n))?;
        self.feed_forward.iter_mut().try_for_each(|f| f.reserve(&self.device, n))?;
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
