//! The forward pass: the only one in the crate, for prefill, decode, scoring and training.
//!
//! A batch is rows of several timelines side by side, prefill chunks and decode rows mixed. No op looks
//! across rows but attention, and attention looks only along a row's own timeline, so a row's result
//! does not depend on its neighbours. Rounding points (bf16 compute) are inside the ops: after each
//! norm, projection, QK-norm with RoPE, attention output, SwiGLU product, residual add, weighted sum of
//! experts; the KV store holds what was rounded; logits stay f32.
#![forbid(unsafe_code)]

use super::activations::{Activations, ExpertActivations, FfnActivations, LayerActivations};
use super::kv_cache::KvCache;
use super::weights::{Ffn, Layer, Mlp, Weights};
use super::{Model, Moe};
use crate::backend::page::PAGE;
use crate::backend::{Tensor, ops};
use crate::error::{Error, Fault, Result};

/// New rows of one timeline: `ids` go to positions `kv.len()..`.
pub struct Segment<'a> {
    /// Token ids, each below the vocabulary size.
    pub ids: &'a [i32],
    /// The timeline's cache; advanced by `ids.len()` on success.
    pub kv: &'a mut KvCache,
}

/// Runs all segments' rows, in order, through the model. Row i's state after the final norm is
/// `activations.hidden` row i. On failure no cache has advanced.
pub fn forward(
    model: &Model,
    weights: &Weights,
    segments: &mut [Segment],
    activations: &mut Activations,
) -> Result<()> {
    let config = &model.config;
    let ids: Vec<i32> = segments.iter().flat_map(|s| s.ids).copied().collect();
    let n = ids.len();
    if let Some(id) = ids.iter().find(|&&id| id < 0 || id as usize >= config.vocab_size) {
        let why = format!("token id {id} lies outside the vocabulary of {}", config.vocab_size);
        return Err(Error::new(Fault::IdOutOfRange, why));
    }
    activations.positions.clear();
    for s in segments.iter_mut() {
        let end = s.kv.len() + s.ids.len();
        if end > model.max_context() {
            let why = format!("{end} tokens are wanted, the context holds {}", model.max_context());
            return Err(Error::new(Fault::ContextFull, why));
        }
        s.kv.reserve(s.ids.len())?;
        activations.positions.extend(s.kv.len() as u32..end as u32);
    }
    activations.reserve(config, n)?;

    let Activations { stream, branch, positions, layers, keep, hidden, .. } = activations;
    ops::embedding_forward(&model.device, stream, &ids, &weights.embedding, model.compute);
    for (l, layer) in weights.layers.iter().enumerate() {
        let acts = if *keep { &mut layers[l] } else { &mut layers[0] };
        if *keep {
            ops::copy_rows(&model.device, &mut acts.input, stream, n);
        }
        attention_half(model, layer, l, acts, stream, branch, positions, segments);
        if *keep {
            ops::copy_rows(&model.device, &mut acts.middle, stream, n);
        }
        let eps = config.rms_norm_eps;
        ops::rmsnorm_forward(&model.device, &mut acts.post_normed, stream, &layer.post_norm, n, eps, model.compute);
        match (&layer.mlp, &config.moe, &mut acts.experts) {
            (Mlp::Experts { router, experts }, Some(moe), Some(e)) => {
                experts_forward(model, moe, router, experts, e, &acts.post_normed, branch, n, *keep)?;
            }
            (Mlp::Dense(ffn), ..) => ffn_forward(model, ffn, &mut acts.ffn, &acts.post_normed, branch, n),
            _ => unreachable!("weights, activations and configuration agree on which layers have experts"),
        }
        ops::residual_forward(&model.device, stream, branch, n, model.compute);
    }
    ops::rmsnorm_forward(&model.device, hidden, stream, &weights.norm, n, config.rms_norm_eps, model.compute);
    for s in segments {
        s.kv.advance(s.ids.len());
    }
    Ok(())
}

/// Logits [n, V] of rows of hidden states [n, C] after the final norm; f32 in any compute.
pub fn head_forward(model: &Model, weights: &Weights, logits: &mut Tensor, hidden: &Tensor, n: usize) {
    ops::linear_forward_f32(&model.device, logits, hidden, weights.head(), n, model.compute);
}

/// stream += O(attention(norm(stream))).
#[allow(clippy::too_many_arguments)] // half a layer: its weights, its activations, the batch
fn attention_half(
    model: &Model,
    layer: &Layer,
    l: usize,
    a: &mut LayerActivations,
    stream: &mut Tensor,
    branch: &mut Tensor,
    positions: &[u32],
    segments: &mut [Segment],
) {
    let (device, config, compute) = (&model.device, &model.config, model.compute);
    let (n, eps) = (positions.len(), config.rms_norm_eps);
    ops::rmsnorm_forward(device, &mut a.normed, stream, &layer.input_norm, n, eps, compute);
    ops::linear_forward(device, &mut a.q_raw, &a.normed, &layer.q, n, compute);
    ops::linear_forward(device, &mut a.k_raw, &a.normed, &layer.k, n, compute);
    ops::linear_forward(device, &mut a.v, &a.normed, &layer.v, n, compute);
    let rope = &model.rope;
    ops::qk_norm_rope_forward(
        device,
        &mut a.q,
        &a.q_raw,
        &layer.q_norm,
        rope,
        positions,
        n,
        config.n_heads,
        eps,
        compute,
    );
    ops::qk_norm_rope_forward(
        device,
        &mut a.k,
        &a.k_raw,
        &layer.k_norm,
        rope,
        positions,
        n,
        config.n_kv_heads,
        eps,
        compute,
    );
    let shape = model.page_shape();
    let mut row = 0;
    for s in segments.iter_mut() {
        let (mut pos, end) = (s.kv.len(), s.kv.len() + s.ids.len());
        while pos < end {
            let count = (PAGE - pos % PAGE).min(end - pos);
            ops::kv_append(device, s.kv.page_mut(pos), shape, l, pos % PAGE, (&a.k, &a.v), row..row + count);
            row += count;
            pos += count;
        }
    }
    let mut row = 0;
    let spans: Vec<ops::Span> = segments
        .iter()
        .filter(|s| !s.ids.is_empty())
        .map(|s| {
            row += s.ids.len();
            ops::Span { rows: row - s.ids.len()..row, start: s.kv.len(), pages: s.kv.pages() }
        })
        .collect();
    ops::attention_forward(device, &mut a.attended, &a.q, &spans, shape, l, model.heads(), compute);
    ops::linear_forward(device, branch, &a.attended, &layer.o, n, compute);
    ops::residual_forward(device, stream, branch, n, compute);
}

/// y = down(silu(gate x) * up x).
fn ffn_forward(model: &Model, w: &Ffn, a: &mut FfnActivations, x: &Tensor, y: &mut Tensor, n: usize) {
    let (device, compute) = (&model.device, model.compute);
    ops::linear_forward(device, &mut a.gate, x, &w.gate, n, compute);
    ops::linear_forward(device, &mut a.up, x, &w.up, n, compute);
    ops::swiglu_forward(device, &mut a.product, &a.gate, &a.up, n, compute);
    ops::linear_forward(device, y, &a.product, &w.down, n, compute);
}

/// y = sum over a row's chosen experts of weight * expert(x), in router-rank order.
#[allow(clippy::too_many_arguments)] // a layer of experts: its weights, its activations, the batch
fn experts_forward(
    model: &Model,
    moe: &Moe,
    router: &Tensor,
    experts: &[Ffn],
    a: &mut ExpertActivations,
    x: &Tensor,
    y: &mut Tensor,
    n: usize,
    keep: bool,
) -> Result<()> {
    let (device, compute, k) = (&model.device, model.compute, moe.n_experts_per_token);
    ops::linear_forward(device, &mut a.logits, x, router, n, compute);
    let routing = a.routing.insert(ops::route(device, &a.logits, n, k, moe.norm_topk_prob));
    let mut slots_of: Vec<Vec<usize>> = vec![Vec::new(); experts.len()];
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
        let rows: Vec<usize> = block.slots.iter().map(|s| s / k).collect();
        ops::gather_rows(device, &mut block.x, x, &rows);
        ffn_forward(model, &experts[e], &mut block.ffn, &block.x, &mut block.y, m);
        ops::scatter_rows(device, &mut a.slots, &block.y, &block.slots);
    }
    ops::combine_forward(device, y, &a.slots, &routing.weights, n, k, compute);
    Ok(())
}
