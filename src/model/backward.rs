//! The backward pass: `forward.rs` read upwards.
//!
//! Gradients of parameters are added to; gradients of activations live in a scratch set. Rounding is
//! taken as the identity. Packed sequences: each span of rows is one whole timeline from position 0.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::activations::{Activations, LayerActivations};
use super::weights::{Ffn, Layer, Mlp, Weights};
use super::{Model, Moe};
use crate::backend::ops::{ExpertActivations, FfnActivations};
use crate::backend::{Tensor, ops};
use crate::error::{Error, Fault, Result};
use crate::tensor::Dtype;

/// Gradients of activations, reused from layer to layer.
pub struct BackwardScratch {
    /// [N, C] gradient of the residual stream
    dstream: Tensor,
    /// [N, C] gradient of a norm's output
    dnormed: Tensor,
    /// [N, H*D]
    dattended: Tensor,
    /// [N, H*D]
    dq: Tensor,
    /// [N, G*D]
    dk: Tensor,
    /// [N, G*D]
    dv: Tensor,
    /// [N, H*D]
    dq_raw: Tensor,
    /// [N, G*D]
    dk_raw: Tensor,
    ffn: FfnActivations,
    experts: Option<ExpertScratch>,
}

struct ExpertScratch {
    /// [N, E]
    dlogits: Tensor,
    /// [N*k, C]
    dslots: Tensor,
    /// [M, C]
    dx: Tensor,
    /// [M, C]
    dy: Tensor,
    ffn: FfnActivations,
}

impl BackwardScratch {
    /// Scratch for a model of this shape.
    pub fn new(model: &Model) -> Result<BackwardScratch> {
        let (device, config) = (&model.device, &model.config);
        let zeros = |width: usize| Tensor::zeros(Dtype::F32, &[0, width]);
        let (c, hd, gd) = (config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let experts = match &config.moe {
            None => None,
            Some(moe) => Some(ExpertScratch {
                dlogits: zeros(moe.n_experts)?,
                dslots: zeros(c)?,
                dx: zeros(c)?,
                dy: zeros(c)?,
                ffn: FfnActivations::new(device, 0, moe.expert_intermediate_size)?,
            }),
        };
        Ok(BackwardScratch {
            dstream: zeros(c)?,
            dnormed: zeros(c)?,
            dattended: zeros(hd)?,
            dq: zeros(hd)?,
            dk: zeros(gd)?,
            dv: zeros(gd)?,
            dq_raw: zeros(hd)?,
            dk_raw: zeros(gd)?,
            ffn: FfnActivations::new(device, 0, config.intermediate_size)?,
            experts,
        })
    }

    fn reserve(&mut self, n: usize, n_slots: usize) -> Result<()> {
        let all = [
            &mut self.dstream,
            &mut self.dnormed,
            &mut self.dattended,
            &mut self.dq,
            &mut self.dk,
            &mut self.dv,
            &mut self.dq_raw,
            &mut self.dk_raw,
        ];
        all.into_iter().try_for_each(|t| t.reserve_rows(n))?;
        if let Some(e) = &mut self.experts {
            e.dlogits.reserve_rows(n)?;
            e.dslots.reserve_rows(n * n_slots)?;
        }
        self.ffn.reserve(n)
    }
}

/// The head's gradients for `n` rows: adds dlogits^T hidden to the output projection's gradient and
/// dlogits W to `dhidden`. hidden, dhidden [n, C]; dlogits [n, V].
pub fn head_backward(
    model: &Model,
    weights: &Weights,
    gradients: &mut Weights,
    dhidden: &mut Tensor,
    (dlogits, hidden): (&Tensor, &Tensor),
    n: usize,
) {
    ops::linear_backward_weight(&model.device, gradients.head_mut(), dlogits, hidden, n);
    ops::linear_backward_input(&model.device, dhidden, dlogits, weights.head(), n);
}

/// From the gradient of the hidden states after the final norm ([N, C]) to all parameters.
///
/// `ids` and `spans` are those of the forward that filled `activations`, each span a whole timeline.
/// Adds to `gradients`.
pub fn backward(
    model: &Model,
    weights: &Weights,
    gradients: &mut Weights,
    (activations, ids, spans): (&Activations, &[i32], &[Range<usize>]),
    dhidden: &Tensor,
    scratch: &mut BackwardScratch,
) -> Result<()> {
    let n = activations.batch.len();
    if !activations.keep || ids.len() != n {
        return Err(Error::new(Fault::OutOfOrder, "a backward pass needs the activations of a training forward"));
    }
    let (device, config, eps) = (&model.device, &model.config, model.config.rms_norm_eps);
    scratch.reserve(n, config.moe.as_ref().map_or(0, |m| m.n_experts_per_token))?;
    ops::fill(device, &mut scratch.dstream, 0.0, n);
    let (dw, x) = (&mut gradients.norm, &activations.stream);
    ops::rmsnorm_backward(device, &mut scratch.dstream, dw, dhidden, x, &weights.norm, n, eps);
    for l in (0..weights.layers.len()).rev() {
        let (layer, dlayer, a) = (&weights.layers[l], &mut gradients.layers[l], &activations.layers[l]);
        // dstream is the gradient of the layer's output; the residual passes it on unchanged.
        ops::fill(device, &mut scratch.dnormed, 0.0, n);
        match (&layer.mlp, &mut dlayer.mlp, &config.moe, &a.experts, &mut scratch.experts) {
            (
                Mlp::Experts { router, experts },
                Mlp::Experts { router: drouter, experts: dexperts },
                Some(moe),
                Some(e),
                Some(s),
            ) => {
                let (dx, dy) = (&mut scratch.dnormed, &scratch.dstream);
                experts_backward(model, moe, (router, experts), (drouter, dexperts), e, s, dx, dy, &a.post_normed, n)?;
            }
            (Mlp::Dense(w), Mlp::Dense(dw), ..) => {
                let (dx, dy) = (&mut scratch.dnormed, &scratch.dstream);
                ffn_backward(model, w, dw, &a.ffn, &mut scratch.ffn, dx, dy, &a.post_normed, n);
            }
            _ => unreachable!("weights, activations and configuration agree on which layers have experts"),
        }
        let (dw, x) = (&mut dlayer.post_norm, &a.middle);
        ops::rmsnorm_backward(device, &mut scratch.dstream, dw, &scratch.dnormed, x, &layer.post_norm, n, eps);
        attention_half_backward(model, layer, dlayer, a, spans, activations.batch.positions(), scratch);
    }
    ops::embedding_backward(device, &mut gradients.embedding, ids, &scratch.dstream);
    Ok(())
}

fn attention_half_backward(
    model: &Model,
    layer: &Layer,
    dlayer: &mut Layer,
    a: &LayerActivations,
    spans: &[Range<usize>],
    positions: &[u32],
    s: &mut BackwardScratch,
) {
    let (device, config) = (&model.device, &model.config);
    let (n, eps) = (positions.len(), config.rms_norm_eps);
    for t in [&mut s.dattended, &mut s.dq_raw] {
        ops::fill(device, t, 0.0, n);
    }
    ops::fill(device, &mut s.dk_raw, 0.0, n);
    ops::fill(device, &mut s.dnormed, 0.0, n);
    ops::linear_backward_weight(device, &mut dlayer.o, &s.dstream, &a.attended, n);
    ops::linear_backward_input(device, &mut s.dattended, &s.dstream, &layer.o, n);
    let (gradients, operands) = ((&mut s.dq, &mut s.dk, &mut s.dv), (&a.q, &a.k, &a.v));
    ops::attention_backward(device, gradients, &s.dattended, operands, spans, model.heads());
    let rope = &model.rope;
    let (dw, w, heads) = (&mut dlayer.q_norm, &layer.q_norm, config.n_heads);
    ops::qk_norm_rope_backward(device, &mut s.dq_raw, dw, &s.dq, &a.q_raw, w, rope, positions, n, heads, eps);
    let (dw, w, heads) = (&mut dlayer.k_norm, &layer.k_norm, config.n_kv_heads);
    ops::qk_norm_rope_backward(device, &mut s.dk_raw, dw, &s.dk, &a.k_raw, w, rope, positions, n, heads, eps);
    for (dw, w, dy) in
        [(&mut dlayer.q, &layer.q, &s.dq_raw), (&mut dlayer.k, &layer.k, &s.dk_raw), (&mut dlayer.v, &layer.v, &s.dv)]
    {
        ops::linear_backward_weight(device, dw, dy, &a.normed, n);
        ops::linear_backward_input(device, &mut s.dnormed, dy, w, n);
    }
    let (dw, w) = (&mut dlayer.input_norm, &layer.input_norm);
    ops::rmsnorm_backward(device, &mut s.dstream, dw, &s.dnormed, &a.input, w, n, eps);
}

/// Adds to `dx` [n, C] and to the block's parameters, from `dy` [n, C].
#[allow(clippy::too_many_arguments)] // one block: weights, gradients, activations, scratch
fn ffn_backward(
    model: &Model,
    w: &Ffn,
    dw: &mut Ffn,
    a: &FfnActivations,
    s: &mut FfnActivations,
    dx: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    n: usize,
) {
    let device = &model.device;
    ops::fill(device, &mut s.product, 0.0, n);
    ops::linear_backward_weight(device, &mut dw.down, dy, &a.product, n);
    ops::linear_backward_input(device, &mut s.product, dy, &w.down, n);
    ops::swiglu_backward(device, &mut s.gate, &mut s.up, &s.product, &a.gate, &a.up, n);
    ops::linear_backward_weight(device, &mut dw.gate, &s.gate, x, n);
    ops::linear_backward_input(device, dx, &s.gate, &w.gate, n);
    ops::linear_backward_weight(device, &mut dw.up, &s.up, x, n);
    ops::linear_backward_input(device, dx, &s.up, &w.up, n);
}

/// Adds to `dx` [n, C] and to router and experts, from `dy` [n, C].
#[allow(clippy::too_many_arguments)] // a layer of experts: weights, gradients, activations, scratch
fn experts_backward(
    model: &Model,
    moe: &Moe,
    (router, experts): (&Tensor, &[Ffn]),
    (drouter, dexperts): (&mut Tensor, &mut [Ffn]),
    a: &ExpertActivations,
    s: &mut ExpertScratch,
    dx: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    n: usize,
) -> Result<()> {
    let (device, k) = (&model.device, moe.n_experts_per_token);
    let missing = || Error::new(Fault::OutOfOrder, "a layer of experts has no routing: its forward has not run");
    let routing = a.routing.as_ref().ok_or_else(missing)?;
    let mut dweights = vec![0.0; n * k];
    ops::combine_backward(device, &mut s.dslots, &mut dweights, dy, &a.slots, &routing.weights, n, k);
    for (e, block) in a.blocks.iter().enumerate() {
        let m = block.slots.len();
        if m == 0 {
            continue;
        }
        for t in [&mut s.dx, &mut s.dy] {
            t.reserve_rows(m)?;
        }
        s.ffn.reserve(m)?;
        ops::gather_rows(device, &mut s.dy, &s.dslots, &block.slots);
        ops::fill(device, &mut s.dx, 0.0, m);
        ffn_backward(model, &experts[e], &mut dexperts[e], &block.ffn, &mut s.ffn, &mut s.dx, &s.dy, &block.x, m);
        let rows: Vec<usize> = block.slots.iter().map(|slot| slot / k).collect();
        ops::scatter_add_rows(device, dx, &s.dx, &rows);
    }
    ops::route_backward(device, &mut s.dlogits, &dweights, routing, n);
    ops::linear_backward_weight(device, drouter, &s.dlogits, x, n);
    ops::linear_backward_input(device, dx, &s.dlogits, router, n);
    Ok(())
}
