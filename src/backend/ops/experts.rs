//! The feed-forward halves of a layer: one SwiGLU block, or a router and its experts. Both read the stream through a norm
//! and add to it.
//!
//! stream += down(silu(gate x) * up x) with x = rmsnorm(stream) * w; with experts the weighted sum of a row's k best of
//! them (see `moe`). Activations are kept for the backward; a GPU keeps only what it needs.

use super::{
    GateUp, Routing, combine_forward, gate_up_forward, gather_rows, linear_forward, linear_residual_forward,
    residual_forward, rmsnorm_forward, route, scatter_rows, swiglu_forward,
};
use crate::backend::{Compute, Device, Tensor};
use crate::error::Result;

/// The matrices of one SwiGLU block.
#[derive(Clone, Copy)]
pub struct FfnWeights<'a> {
    /// [F, C]
    pub gate: &'a Tensor,
    /// [F, C]
    pub up: &'a Tensor,
    /// [C, F]
    pub down: &'a Tensor,
}

/// Activations of one SwiGLU block over its own rows.
pub struct FfnActivations {
    /// [N, F] gate projection; a GPU leaves it unwritten
    pub gate: Tensor,
    /// [N, F] up projection; a GPU leaves it unwritten
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

/// How rows are dealt to experts.
#[derive(Clone, Copy, Debug)]
pub struct Dealing {
    /// Experts of a row, k.
    pub n_experts_per_token: usize,
    /// Whether their weights are divided by their sum.
    pub norm_topk_prob: bool,
}

impl FfnActivations {
    /// Room for `n` rows.
    pub fn new(device: &Device, n: usize, width: usize) -> Result<FfnActivations> {
        let on = || Tensor::on(device, device.activation_dtype(), &[n, width]);
        Ok(FfnActivations { gate: on()?, up: on()?, product: on()? })
    }

    /// Makes room for `n` rows.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        [&mut self.gate, &mut self.up, &mut self.product].into_iter().try_for_each(|t| t.reserve_rows(n))
    }
}

impl ExpertBlock {
    fn new(device: &Device, hidden_size: usize, width: usize) -> Result<ExpertBlock> {
        let on = || Tensor::on(device, device.activation_dtype(), &[0, hidden_size]);
        Ok(ExpertBlock { slots: Vec::new(), x: on()?, ffn: FfnActivations::new(device, 0, width)?, y: on()? })
    }

    /// Makes room for `n` rows.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        self.x.reserve_rows(n)?;
        self.y.reserve_rows(n)?;
        self.ffn.reserve(n)
    }
}

impl ExpertActivations {
    /// Empty activations of E experts of width `width`, with one block for each or one for all.
    pub fn new(device: &Device, hidden_size: usize, width: usize, n_experts: usize, keep: bool) -> Result<Self> {
        let on = |width: usize| Tensor::on(device, device.activation_dtype(), &[0, width]);
        let n_blocks = if keep { n_experts } else { 1 };
        Ok(ExpertActivations {
            logits: on(n_experts)?,
            routing: None,
            slots: on(hidden_size)?,
            blocks: (0..n_blocks).map(|_| ExpertBlock::new(device, hidden_size, width)).collect::<Result<_>>()?,
        })
    }

    /// Makes room for `n` rows of `k` experts each.
    pub fn reserve(&mut self, n: usize, k: usize) -> Result<()> {
        self.logits.reserve_rows(n)?;
        self.slots.reserve_rows(n * k)
    }
}

/// stream += ffn(rmsnorm(stream)). `normed` and `branch` [N, C] are scratch that the backward reads.
#[allow(clippy::too_many_arguments)] // half a layer: its tensors
pub fn ffn_forward(
    device: &Device,
    stream: &mut Tensor,
    (normed, branch): (&mut Tensor, &mut Tensor),
    a: &mut FfnActivations,
    norm: &Tensor,
    w: FfnWeights,
    n: usize,
    eps: f32,
    compute: Compute,
) {
    let out = GateUp { normed, gate: &mut a.gate, up: &mut a.up, product: &mut a.product };
    gate_up_forward(device, out, stream, norm, (w.gate, w.up), n, eps, compute);
    linear_residual_forward(device, stream, branch, &a.product, w.down, n, compute);
}

/// stream += sum over a row's chosen experts of weight * expert(rmsnorm(stream)), in router-rank order. `expert` gives an
/// expert's matrices; on a GPU those of all lie at equal distances.
#[allow(clippy::too_many_arguments)] // half a layer: its tensors
pub fn experts_forward<'w>(
    device: &Device,
    stream: &mut Tensor,
    (normed, branch): (&mut Tensor, &mut Tensor),
    a: &mut ExpertActivations,
    norm: &Tensor,
    router: &Tensor,
    expert: &dyn Fn(usize) -> FfnWeights<'w>,
    dealing: Dealing,
    n: usize,
    eps: f32,
    keep: bool,
    compute: Compute,
) -> Result<()> {
    let k = dealing.n_experts_per_token;
    rmsnorm_forward(device, normed, stream, norm, n, eps, compute);
    linear_forward(device, &mut a.logits, normed, router, n, compute);
    let routing = a.routing.insert(route(device, &a.logits, n, k, dealing.norm_topk_prob));
    let mut slots_of: Vec<Vec<usize>> = vec![Vec::new(); router.extent(0)];
    for (slot, &e) in routing.experts.iter().enumerate() {
        slots_of[e as usize].push(slot);
    }
    for (e, slots) in slots_of.into_iter().enumerate() {
        let block = &mut a.blocks[if keep { e } else { 0 }];
        let m = slots.len();
        block.slots = slots;
        if m == 0 {
            continue;
        }
        block.reserve(m)?;
        let (w, ffn) = (expert(e), &mut block.ffn);
        let rows: Vec<usize> = block.slots.iter().map(|s| s / k).collect();
        gather_rows(device, &mut block.x, normed, &rows);
        linear_forward(device, &mut ffn.gate, &block.x, w.gate, m, compute);
        linear_forward(device, &mut ffn.up, &block.x, w.up, m, compute);
        swiglu_forward(device, &mut ffn.product, &ffn.gate, &ffn.up, m, compute);
        linear_forward(device, &mut block.y, &ffn.product, w.down, m, compute);
        scatter_rows(device, &mut a.slots, &block.y, &block.slots);
    }
    combine_forward(device, branch, &a.slots, &routing.weights, n, k, compute);
    residual_forward(device, stream, branch, n, compute);
    Ok(())
}
