//! The backward pass: `forward.rs` read upwards.
//!
//! Gradients of parameters are added to; gradients of activations live in a scratch set. Rounding is
//! taken as the identity. Packed sequences: each span of rows is one whole timeline from position 0.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::activations::{Activations, LayerActivations};
use super::weights::{Ffn, Layer, Mlp, Weights};
use super::{Model, ModelConfig, Moe};
use crate::backend::ops::{ExpertActivations, FfnActivations};
use crate::backend::{Device, Tensor, ops};
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
    /// [N, k]
    dweights: Tensor,
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
                dweights: zeros(moe.n_experts_per_token)?,
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
            e.dweights.reserve_rows(n)?;
            e.dslots.reserve_rows(n * n_slots)?;
            // All rows may have gone to one expert.
            e.dx.reserve_rows(n)?;
            e.dy.reserve_rows(n)?;
            e.ffn.reserve(n)?;
        }
        self.ffn.reserve(n)
    }

    /// Bytes of `n` rows.
    pub fn bytes(device: &Device, config: &ModelConfig, n: usize) -> u64 {
        let rows = Tensor::rows_reserved(n);
        let of = |rows: usize, width: usize| device.taken(rows * width * Dtype::F32.size());
        let (c, hd, gd) = (config.hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let dense = [c, c, hd, hd, gd, gd, hd, gd].map(|width| of(rows, width)).iter().sum::<u64>()
            + FfnActivations::bytes(device, rows, config.intermediate_size);
        dense
            + config.moe.as_ref().map_or(0, |moe| {
                let slots = Tensor::rows_reserved(n * moe.n_experts_per_token);
                of(rows, moe.n_experts)
                    + of(rows, moe.n_experts_per_token)
                    + of(slots, c)
                    + 2 * of(rows, c)
                    + FfnActivations::bytes(device, rows, moe.expert_intermediate_size)
            })
    }

    /// Bytes that it has.
    pub fn taken(&self) -> u64 {
        let dense = [&self.dstream, &self.dnormed, &self.dattended, &self.dq, &self.dk, &self.dv];
        let raw = [&self.dq_raw, &self.dk_raw];
        let experts = self.experts.as_ref().map_or(0, |e| {
            let tensors = [&e.dlogits, &e.dweights, &e.dslots, &e.dx, &e.dy];
            tensors.iter().map(|t| t.taken()).sum::<u64>() + e.ffn.taken()
        });
        dense.iter().chain(&raw).map(|t| t.taken()).sum::<u64>() + self.ffn.taken() + experts
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
    let norm = |weight| ops::Norm { weight, eps };
    let to = ops::NormGradients { dx: &mut scratch.dstream, dw: &mut gradients.norm };
    ops::rmsnorm_backward(device, to, dhidden, &activations.stream, norm(&weights.norm), n)?;
    for l in (0..weights.layers.len()).rev() {
        let (layer, dlayer, a) = (&weights.layers[l], &mut gradients.layers[l], &activations.layers[l]);
        // dstream is the gradient of the layer's output; the residual passes it on unchanged.
        ops::fill(device, &mut scratch.dnormed, 0.0, n);
        let (dx, dy, x) = (&mut scratch.dnormed, &scratch.dstream, &a.post_normed);
        match (&layer.mlp, &mut dlayer.mlp, &config.moe, &a.experts, &mut scratch.experts) {
            (
                Mlp::Experts { router, experts },
                Mlp::Experts { router: drouter, experts: dexperts },
                Some(moe),
                Some(e),
                Some(s),
            ) => {
                experts_backward(model, moe, (router, experts), (drouter, dexperts), e, s, Flow { dx, dy, x, n })?;
            }
            (Mlp::Dense(w), Mlp::Dense(dw), ..) => {
                ffn_backward(model, w, dw, &a.ffn, &mut scratch.ffn, Flow { dx, dy, x, n });
            }
            _ => unreachable!("weights, activations and configuration agree on which layers have experts"),
        }
        let to = ops::NormGradients { dx: &mut scratch.dstream, dw: &mut dlayer.post_norm };
        ops::rmsnorm_backward(device, to, &scratch.dnormed, &a.middle, norm(&layer.post_norm), n)?;
        attention_half_backward(model, layer, dlayer, a, spans, activations.batch.positions(), scratch)?;
    }
    ops::embedding_backward(device, &mut gradients.embedding, ids, &scratch.dstream);
    Ok(())
}

/// What flows through a feed-forward part, each [N, C].
struct Flow<'a> {
    /// gradient of its input, which is added to
    dx: &'a mut Tensor,
    /// gradient of its output
    dy: &'a Tensor,
    /// its input
    x: &'a Tensor,
    /// N
    n: usize,
}

fn attention_half_backward(
    model: &Model,
    layer: &Layer,
    dlayer: &mut Layer,
    a: &LayerActivations,
    spans: &[Range<usize>],
    positions: &[u32],
    s: &mut BackwardScratch,
) -> Result<()> {
    let (device, config) = (&model.device, &model.config);
    let (n, eps) = (positions.len(), config.rms_norm_eps);
    for t in [&mut s.dattended, &mut s.dq_raw] {
        ops::fill(device, t, 0.0, n);
    }
    ops::fill(device, &mut s.dk_raw, 0.0, n);
    ops::fill(device, &mut s.dnormed, 0.0, n);
    ops::linear_backward_weight(device, &mut dlayer.o, &s.dstream, &a.attended, n);
    ops::linear_backward_input(device, &mut s.dattended, &s.dstream, &layer.o, n);
    let to = ops::AttentionGradients { dq: &mut s.dq, dk: &mut s.dk, dv: &mut s.dv };
    let kv = ops::KeysValues { k: &a.k, v: &a.v };
    ops::attention_backward(device, to, &s.dattended, &a.q, kv, spans, model.heads())?;
    let norm = |weight| ops::Norm { weight, eps };
    let of = |weight, n_heads| ops::HeadNorm { norm: norm(weight), table: &model.rope, n_heads };
    let to = ops::NormGradients { dx: &mut s.dq_raw, dw: &mut dlayer.q_norm };
    ops::qk_norm_rope_backward(device, to, &s.dq, &a.q_raw, of(&layer.q_norm, config.n_heads), positions)?;
    let to = ops::NormGradients { dx: &mut s.dk_raw, dw: &mut dlayer.k_norm };
    ops::qk_norm_rope_backward(device, to, &s.dk, &a.k_raw, of(&layer.k_norm, config.n_kv_heads), positions)?;
    for (dw, w, dy) in
        [(&mut dlayer.q, &layer.q, &s.dq_raw), (&mut dlayer.k, &layer.k, &s.dk_raw), (&mut dlayer.v, &layer.v, &s.dv)]
    {
        ops::linear_backward_weight(device, dw, dy, &a.normed, n);
        ops::linear_backward_input(device, &mut s.dnormed, dy, w, n);
    }
    let to = ops::NormGradients { dx: &mut s.dstream, dw: &mut dlayer.input_norm };
    ops::rmsnorm_backward(device, to, &s.dnormed, &a.input, norm(&layer.input_norm), n)
}

/// Adds to the flow's `dx` and to the block's parameters.
fn ffn_backward(model: &Model, w: &Ffn, dw: &mut Ffn, a: &FfnActivations, s: &mut FfnActivations, flow: Flow) {
    let (device, Flow { dx, dy, x, n }) = (&model.device, flow);
    ops::fill(device, &mut s.product, 0.0, n);
    ops::linear_backward_weight(device, &mut dw.down, dy, &a.product, n);
    ops::linear_backward_input(device, &mut s.product, dy, &w.down, n);
    ops::swiglu_backward(device, &mut s.gate, &mut s.up, &s.product, &a.gate, &a.up, n);
    ops::linear_backward_weight(device, &mut dw.gate, &s.gate, x, n);
    ops::linear_backward_input(device, dx, &s.gate, &w.gate, n);
    ops::linear_backward_weight(device, &mut dw.up, &s.up, x, n);
    ops::linear_backward_input(device, dx, &s.up, &w.up, n);
}

/// Adds to the flow's `dx` and to router and experts.
fn experts_backward(
    model: &Model,
    moe: &Moe,
    (router, experts): (&Tensor, &[Ffn]),
    (drouter, dexperts): (&mut Tensor, &mut [Ffn]),
    a: &ExpertActivations,
    s: &mut ExpertScratch,
    flow: Flow,
) -> Result<()> {
    let (device, k, Flow { dx, dy, x, n }) = (&model.device, moe.n_experts_per_token, flow);
    let routing = a.routing.as_ref().filter(|routing| routing.weights.len() == n * k);
    let missing = || Error::new(Fault::OutOfOrder, "a layer of experts has no routing: its forward has not run");
    let routing = routing.ok_or_else(missing)?;
    let dweights = &mut s.dweights.f32_mut()[..n * k];
    let to = ops::CombineGradients { dslots: &mut s.dslots, dweights };
    ops::combine_backward(device, to, dy, &a.slots, &routing.weights, k);
    for (e, block) in a.blocks.iter().enumerate() {
        let (slots, rows) = (routing.slots_of(e), routing.rows_of(e));
        let n = slots.len();
        if n == 0 {
            continue;
        }
        ops::gather_rows(device, &mut s.dy, &s.dslots, slots);
        ops::fill(device, &mut s.dx, 0.0, n);
        let flow = Flow { dx: &mut s.dx, dy: &s.dy, x: &block.x, n };
        ffn_backward(model, &experts[e], &mut dexperts[e], &block.ffn, &mut s.ffn, flow);
        ops::scatter_add_rows(device, dx, &s.dx, rows);
    }
    ops::route_backward(device, &mut s.dlogits, &s.dweights.f32()[..n * k], routing, n);
    ops::linear_backward_weight(device, drouter, &s.dlogits, x, n);
    ops::linear_backward_input(device, dx, &s.dlogits, router, n);
    Ok(())
}
