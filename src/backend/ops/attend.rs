//! The attention half between its projections: QK-norm and RoPE, append to the KV cache, attention.
//!
//! q_raw [N, H*D], k_raw, v [N, G*D] in; q, k after norm and RoPE and the attention output [N, H*D] out. One op, because
//! a GPU that decodes does all of it in one launch (kernels/attend.cu), and one that does not in two.

use std::sync::Arc;

use super::{
    HeadNorm, KeysValues, Norm, PageLayer, RopeTable, Span, attention_forward, kv_append, qk_norm_rope_forward,
};
use crate::backend::batch::Batch;
use crate::backend::cuda::step::Addresses;
use crate::backend::cuda::{Address, Cuda, KernelArgs, Launch};
use crate::backend::page::PAGE;
use crate::backend::terms::{Heads, Plan, SPLIT, TILE_COLUMNS};
use crate::backend::{Compute, Device, Tensor};
use crate::error::Result;
use crate::tensor::Dtype;

/// Operands and results of `attend_forward`. A GPU may leave q and k unwritten.
pub struct Attend<'a> {
    /// [N, H*D] query projection
    pub q_raw: &'a Tensor,
    /// [N, G*D] key projection
    pub k_raw: &'a Tensor,
    /// [N, G*D] value projection
    pub v: &'a Tensor,
    /// [N, H*D] after norm and RoPE
    pub q: &'a mut Tensor,
    /// [N, G*D] after norm and RoPE
    pub k: &'a mut Tensor,
    /// [N, H*D] attention output
    pub out: &'a mut Tensor,
    /// parts of it
    pub scratch: &'a mut AttendScratch,
}

/// Where a GPU keeps the parts of attention that several splits of a row's positions give, until the last one of them
/// adds them up. Empty on the CPU.
#[derive(Default)]
pub struct AttendScratch {
    /// f32: [N, H, S, D] what each split gives, then [N, H, S, 2] its largest score and its sum of exponentials
    parts: Option<Tensor>,
    /// [N, G] u32 counters, 0 between launches
    counters: Option<Tensor>,
}

impl AttendScratch {
    /// Bytes of a plan on a GPU.
    pub fn bytes(device: &Device, heads: Heads, plan: Plan) -> u64 {
        device.taken(4 * n_parts(heads, plan)) + device.taken(4 * n_counters(heads, plan))
    }

    /// Whether a plan needs more room. Making it voids the graphs that name what is there.
    pub fn is_short(&self, device: &Device, heads: Heads, plan: Plan) -> bool {
        plan.decodes
            && matches!(device, Device::Cuda(_))
            && (short(&self.parts, n_parts(heads, plan)) || short(&self.counters, n_counters(heads, plan)))
    }

    /// Makes room for a plan.
    pub fn reserve(&mut self, device: &Device, heads: Heads, plan: Plan) -> Result<()> {
        let (n_parts, n_counters) = (n_parts(heads, plan), n_counters(heads, plan));
        if short(&self.parts, n_parts) {
            self.parts = None;
            self.parts = Some(Tensor::on(device, Dtype::F32, &[n_parts])?);
        }
        if short(&self.counters, n_counters) {
            // Zero has the same bits in f32.
            self.counters = Some(Tensor::zeros(Dtype::F32, &[n_counters])?.to_device(device)?);
        }
        Ok(())
    }
}

fn short(t: &Option<Tensor>, n: usize) -> bool {
    t.as_ref().is_none_or(|t| t.extent(0) < n)
}

fn n_parts(heads: Heads, plan: Plan) -> usize {
    parts(heads, plan) * (heads.head_dim + 2)
}

fn n_counters(heads: Heads, plan: Plan) -> usize {
    plan.rows * heads.n_kv_heads
}

/// Parts of attention that the rows of a plan have.
fn parts(heads: Heads, plan: Plan) -> usize {
    plan.rows * heads.n_heads * plan.context.div_ceil(SPLIT)
}

/// What attention takes of a layer and of its model.
pub struct AttendLayer<'a> {
    /// `[D]` over each query head, where the model has such norms
    pub q_norm: Option<Norm<'a>>,
    /// `[D]` over each key head, likewise
    pub k_norm: Option<Norm<'a>>,
    /// rotary angles
    pub table: &'a RopeTable,
    /// extents of the heads
    pub heads: Heads,
    /// where keys and values go
    pub at: PageLayer,
    /// Weights that the next ops read: a GPU that has nothing better to do meanwhile moves them closer.
    pub next: [&'a Tensor; 2],
}

/// Attention of all rows of a batch in one layer; their keys and values are in the pages afterwards. `spans` are the
/// batch's timelines, whose pages of new positions have no other owner.
pub fn attend_forward(
    device: &Device,
    a: Attend,
    layer: &AttendLayer,
    batch: &Batch,
    spans: &mut [Span],
    compute: Compute,
) -> Result<()> {
    if let Device::Cuda(cuda) = device {
        match batch.plan().decodes {
            true => decode(cuda, a, layer, batch),
            false => prefill(cuda, a, layer, batch),
        }
        return Ok(());
    }
    let AttendLayer { q_norm, k_norm, table, heads, at, .. } = *layer;
    let of = |norm, n_heads| HeadNorm { norm, table, n_heads };
    let positions = batch.positions();
    qk_norm_rope_forward(device, a.q, a.q_raw, of(q_norm, heads.n_heads), positions, compute);
    qk_norm_rope_forward(device, a.k, a.k_raw, of(k_norm, heads.n_kv_heads), positions, compute);
    let kv = KeysValues { k: a.k, v: a.v };
    for span in spans.iter_mut() {
        let (mut row, mut pos) = (span.rows.start, span.start);
        while row < span.rows.end {
            let count = (PAGE - pos % PAGE).min(span.rows.end - row);
            // The cache made the page this timeline's own, and only a fork, which needs the cache, could share it again.
            let page = Arc::get_mut(&mut span.pages[pos / PAGE]).expect("a reserved page has one owner");
            kv_append(device, page, at, pos % PAGE, kv, row..row + count);
            row += count;
            pos += count;
        }
    }
    attention_forward(device, a.out, a.q, spans, at, heads, compute)
}

/// Weights that idle blocks bring into L2.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Range {
    at: Address,
    bytes: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DecodeArgs {
    step: Addresses,
    out: Address,
    q: Address,
    k: Address,
    v: Address,
    q_norm: Address,
    k_norm: Address,
    cosine: Address,
    sine: Address,
    partial: Address,
    weight: Address,
    arrived: Address,
    ahead: [Range; 2],
    ahead_lines: u32,
    layer: u32,
    group: u32,
    splits: u32,
    scale: f32,
    eps: f32,
}

// SAFETY: `AttendArgs` of kernels/attend.cu: addresses and lengths, then an even number of words.
unsafe impl KernelArgs for DecodeArgs {}

const THREADS: u32 = 128;
/// Lines of 128 bytes that a thread of an idle block may ask for, so that looking ahead never takes longer than attention.
const AHEAD_LINES: u32 = 16;

fn decode(cuda: &Cuda, a: Attend, l: &AttendLayer, batch: &Batch) {
    let Heads { n_heads, n_kv_heads, head_dim, scale } = l.heads;
    let plan = batch.plan();
    let kernel = match (head_dim, plan.columns) {
        (32, 8) => "squire_attend_d32_n8",
        (32, 16) => "squire_attend_d32_n16",
        (32, 32) => "squire_attend_d32_n32",
        (64, 8) => "squire_attend_d64_n8",
        (64, 16) => "squire_attend_d64_n16",
        (64, 32) => "squire_attend_d64_n32",
        (128, 8) => "squire_attend_d128_n8",
        (128, 16) => "squire_attend_d128_n16",
        (128, 32) => "squire_attend_d128_n32",
        (d, columns) => panic!("there is no attention for heads of {d} and {columns} columns"),
    };
    let room = "room was made for the parts of attention";
    let (all_parts, counters) = (a.scratch.parts.as_ref().expect(room), a.scratch.counters.as_ref().expect(room));
    let parts = parts(l.heads, plan);
    assert!(all_parts.extent(0) >= n_parts(l.heads, plan) && counters.extent(0) >= n_counters(l.heads, plan), "{room}");
    let [cosine, sine] = l.table.addresses();
    let args = DecodeArgs {
        step: batch.addresses(),
        out: a.out.address(),
        q: a.q_raw.address(),
        k: a.k_raw.address(),
        v: a.v.address(),
        q_norm: address_of(l.q_norm),
        k_norm: address_of(l.k_norm),
        cosine,
        sine,
        partial: all_parts.address(),
        weight: all_parts.address() + (parts * head_dim * size_of::<f32>()) as u64,
        arrived: counters.address(),
        ahead: prefetched(cuda, l.next),
        ahead_lines: AHEAD_LINES,
        layer: l.at.layer as u32,
        group: (n_heads / n_kv_heads) as u32,
        splits: plan.context.div_ceil(SPLIT) as u32,
        scale,
        eps: eps_of(l.q_norm),
    };
    // Multiprocessors that no item needs get a block to look ahead.
    let idle = (cuda.facts().n_sms as usize).saturating_sub(batch.max_items() * n_kv_heads);
    let blocks = [(batch.max_items() + idle.div_ceil(n_kv_heads)) as u32, n_kv_heads as u32, 1];
    cuda.launch(Launch::new(kernel, blocks, THREADS, decode_shared(head_dim, plan.columns)), &args);
}

/// Where the weight of a head's norm lies; 0 where there is none.
fn address_of(norm: Option<Norm>) -> Address {
    norm.map_or(0, |norm| norm.weight.address())
}

/// What is added under its root; below 0 where there is none.
fn eps_of(norm: Option<Norm>) -> f32 {
    norm.map_or(-1.0, |norm| norm.eps)
}

/// The first two of `next`, as far as half of L2 holds them: the rest of it belongs to what is being read now.
fn prefetched(cuda: &Cuda, next: [&Tensor; 2]) -> [Range; 2] {
    let mut left = cuda.facts().l2_bytes / 2;
    let mut ranges = [Range::default(); 2];
    for (range, weights) in ranges.iter_mut().zip(next) {
        *range = Range { at: weights.address(), bytes: (weights.n_bytes() as u64).min(left) };
        left -= range.bytes;
    }
    ranges
}

/// Bytes of `AttendShared`: values, q, p, the key; a column's maxima and sums, a row's number and splits.
fn decode_shared(head_dim: usize, columns: usize) -> usize {
    let warps = THREADS as usize / 32;
    SPLIT * head_dim * 2 + columns * head_dim * 2 + columns * SPLIT * 2 + head_dim * 2 + columns * (2 * warps + 2) * 4
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AppendArgs {
    step: Addresses,
    k: Address,
    v: Address,
    k_norm: Address,
    cosine: Address,
    sine: Address,
    layer: u32,
    eps: f32,
}

// SAFETY: `AppendArgs` of kernels/attend_prefill.cu: addresses, then an even number of words.
unsafe impl KernelArgs for AppendArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct PrefillArgs {
    step: Addresses,
    out: Address,
    q: Address,
    q_norm: Address,
    cosine: Address,
    sine: Address,
    layer: u32,
    group: u32,
    scale: f32,
    eps: f32,
}

// SAFETY: `PrefillArgs` of kernels/attend_prefill.cu: addresses, then an even number of words.
unsafe impl KernelArgs for PrefillArgs {}

fn prefill(cuda: &Cuda, a: Attend, l: &AttendLayer, batch: &Batch) {
    let Heads { n_heads, n_kv_heads, head_dim, scale } = l.heads;
    let (append, attend) = match head_dim {
        32 => ("squire_append_d32", "squire_attend_prefill_d32"),
        64 => ("squire_append_d64", "squire_attend_prefill_d64"),
        128 => ("squire_append_d128", "squire_attend_prefill_d128"),
        d => panic!("there is no attention for heads of {d}"),
    };
    let (step, [cosine, sine], layer) = (batch.addresses(), l.table.addresses(), l.at.layer as u32);
    let eps = eps_of(l.q_norm);
    let blocks = [batch.n_tiles() as u32, n_kv_heads as u32, 1];
    let (k, v, k_norm) = (a.k_raw.address(), a.v.address(), address_of(l.k_norm));
    // The values of a tile, two elements more a row than it has.
    let shared = TILE_COLUMNS * (head_dim + 2) * 2;
    let args = AppendArgs { step, k, v, k_norm, cosine, sine, layer, eps };
    cuda.launch(Launch::new(append, blocks, THREADS, shared), &args);
    let (out, q, q_norm) = (a.out.address(), a.q_raw.address(), address_of(l.q_norm));
    let group = (n_heads / n_kv_heads) as u32;
    let args = PrefillArgs { step, out, q, q_norm, cosine, sine, layer, group, scale, eps };
    // Keys and values of two pages.
    let shared = 2 * 2 * PAGE * head_dim * 2;
    cuda.launch(Launch::new(attend, blocks, THREADS, shared), &args);
}

#[cfg(test)]
mod tests;
