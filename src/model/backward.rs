//! The backward pass: `forward.rs` read upwards.
//!
//! Gradients of parameters are added to; gradients of activations live in a scratch set. Rounding is
//! taken as the identity. Packed sequences: each span of rows is one whole timeline from position 0.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::activations::{Activations, AttentionActivations, Recompute, of_layer};
use super::adapter::Adapter;
use super::forward::{attention_half, feed_forward_half};
use super::kv_cache::KvCache;
use super::weights::{Ffn, Layer, Mlp, Weights};
use super::{Model, ModelConfig, Moe};
use crate::backend::ops::{ExpertActivations, FfnActivations, LinearGradient};
use crate::backend::{AdaptedRows, Device, LayerPairs, Matrix, Projection, Tensor, Weight, host, ops};
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

/// What is trained, to be added to.
pub enum Gradients<'a> {
    /// All weights.
    Weights(&'a mut Weights),
    /// The pairs of the adapter that applies to all rows.
    Adapter(&'a mut Adapter),
}

impl<'a> From<&'a mut Weights> for Gradients<'a> {
    fn from(weights: &'a mut Weights) -> Gradients<'a> {
        Gradients::Weights(weights)
    }
}

impl<'a> From<&'a mut Adapter> for Gradients<'a> {
    fn from(adapter: &'a mut Adapter) -> Gradients<'a> {
        Gradients::Adapter(adapter)
    }
}

impl Gradients<'_> {
    fn weights(&mut self) -> Option<&mut Weights> {
        match self {
            Gradients::Weights(weights) => Some(weights),
            Gradients::Adapter(_) => None,
        }
    }

    fn layer(&mut self, l: usize) -> LayerGradients<'_> {
        match self {
            Gradients::Weights(weights) => LayerGradients { layer: Some(&mut weights.layers[l]), pairs: None },
            Gradients::Adapter(adapter) => LayerGradients { layer: None, pairs: Some(adapter.layer_mut(l)) },
        }
    }
}

/// What is trained of one layer: all of it, or the pairs of its projections.
struct LayerGradients<'a> {
    layer: Option<&'a mut Layer>,
    pairs: Option<&'a mut LayerPairs>,
}

impl LayerGradients<'_> {
    fn norm(&mut self, of: fn(&mut Layer) -> Option<&mut Tensor>) -> Option<&mut Tensor> {
        self.layer.as_mut().and_then(|layer| of(layer))
    }

    fn linear(&mut self, projection: Projection, of: fn(&mut Layer) -> Option<&mut Matrix>) -> LinearGradient<'_> {
        LinearGradient {
            matrix: self.layer.as_mut().and_then(|layer| of(layer)),
            pair: self.pairs.as_mut().and_then(|pairs| pairs[projection as usize].as_mut()),
        }
    }
}

/// The matrices of a dense layer's feed-forward part.
fn ffn_of(layer: &mut Layer) -> Option<&mut Ffn> {
    match &mut layer.mlp {
        Mlp::Dense(ffn) => Some(ffn),
        Mlp::Experts { .. } => None,
    }
}

/// The head's gradients for `n` rows: adds dlogits^T hidden to the output projection's gradient where that is trained, and
/// dlogits W to `dhidden`. hidden, dhidden [n, C]; dlogits [n, V].
pub fn head_backward<'a>(
    model: &Model,
    weights: &Weights,
    gradients: impl Into<Gradients<'a>>,
    dhidden: &mut Tensor,
    (dlogits, hidden): (&Tensor, &Tensor),
    n: usize,
) {
    if let Some(weights) = gradients.into().weights() {
        ops::linear_backward_weight(&model.device, weights.head_mut().dense_mut(), dlogits, hidden, n);
    }
    ops::linear_backward_input(&model.device, dhidden, dlogits, weights.head(), n);
}

/// What a training forward leaves to its backward.
pub struct Passed<'a> {
    /// Those of all layers, or what they are computed from again.
    pub activations: &'a mut Activations,
    /// The timelines, where layers are computed again.
    pub caches: &'a mut [KvCache],
    /// The ids of the rows.
    pub ids: &'a [i32],
    /// The rows of each timeline, from its position 0 on.
    pub spans: &'a [Range<usize>],
    /// The adapter that applied to all rows.
    pub adapter: Option<&'a Adapter>,
}

/// From the gradient of the hidden states after the final norm ([N, C]) to all that is trained. Adds to `gradients`.
pub fn backward<'a>(
    model: &Model,
    weights: &Weights,
    gradients: impl Into<Gradients<'a>>,
    passed: Passed,
    dhidden: &Tensor,
    scratch: &mut BackwardScratch,
) -> Result<()> {
    backward_while(model, weights, gradients, passed, dhidden, scratch, &mut || Ok(()))
}

/// The same, given up between two layers as soon as `go_on` fails: its error, and the gradients are of no use.
pub fn backward_while<'a>(
    model: &Model,
    weights: &Weights,
    gradients: impl Into<Gradients<'a>>,
    passed: Passed,
    dhidden: &Tensor,
    scratch: &mut BackwardScratch,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut gradients = gradients.into();
    let Passed { activations, caches, ids, spans, adapter } = passed;
    let n = activations.batch.len();
    let again = activations
        .recompute
        .filter(|_| ids.len() == n && !activations.spent)
        .ok_or_else(|| Error::new(Fault::OutOfOrder, "a backward pass needs the activations of a training forward"))?;
    if again == Recompute::Layer && caches.len() != spans.len() {
        return Err(Error::new(Fault::OutOfOrder, "layers are computed again from timelines that are still there"));
    }
    activations.spent = again != Recompute::Nothing;
    let (device, config, eps) = (&model.device, &model.config, model.config.rms_norm_eps);
    scratch.reserve(n, config.moe.as_ref().map_or(0, |m| m.n_experts_per_token))?;
    ops::fill(device, &mut scratch.dstream, 0.0, n);
    let norm = |weight| ops::Norm { weight, eps };
    let dw = gradients.weights().map(|weights| &mut weights.norm);
    let to = ops::NormGradients { dx: &mut scratch.dstream, dw };
    ops::rmsnorm_backward(device, to, dhidden, &activations.stream, norm(&weights.norm), n)?;
    for l in (0..weights.layers.len()).rev() {
        go_on()?;
        let (layer, mut to) = (&weights.layers[l], gradients.layer(l));
        let adapted = adapter.map(|of| AdaptedRows { rows: 0..n, pairs: of.layer(l) });
        let adapted = adapted.as_slice();
        // What is lent holds the last layer still.
        match if l + 1 == weights.layers.len() { Recompute::Nothing } else { again } {
            Recompute::Nothing => {}
            Recompute::FeedForward => {
                ops::copy_rows(device, &mut activations.stream, &activations.middles[l], n);
                feed_forward_half(model, layer, l, activations, adapted)?;
            }
            Recompute::Layer => {
                ops::copy_rows(device, &mut activations.stream, &activations.inputs[l], n);
                let rows = spans.iter().cloned().zip(&mut *caches);
                let timelines = rows.map(|(rows, kv)| ops::Span { rows, start: 0, pages: kv.pages_mut() });
                attention_half(model, layer, l, activations, &mut host::collected(timelines)?, adapted)?;
                feed_forward_half(model, layer, l, activations, adapted)?;
            }
        }
        let (a, f) = (of_layer(&activations.attention, l), of_layer(&activations.feed_forward, l));
        ops::fill(device, &mut scratch.dnormed, 0.0, n);
        let flow = Flow { dx: &mut scratch.dnormed, dy: &scratch.dstream, x: &f.normed, n };
        match (&layer.mlp, &f.experts, &mut scratch.experts, &config.moe) {
            (Mlp::Experts { router, experts }, Some(ea), Some(es), Some(moe)) => {
                let trained = match &mut to.layer {
                    Some(Layer { mlp: Mlp::Experts { router, experts }, .. }) => Some((router, experts.as_mut_slice())),
                    _ => None,
                };
                experts_backward(model, moe, (router, experts), trained, ea, es, flow)?;
            }
            (Mlp::Dense(ffn), _, _, _) => {
                ffn_backward(model, ffn, adapted, &mut to, &f.ffn, &mut scratch.ffn, flow)?;
            }
            _ => unreachable!("weights, activations and configuration agree on which layers have experts"),
        }
        let dw = to.norm(|layer| Some(&mut layer.post_norm));
        let to_norm = ops::NormGradients { dx: &mut scratch.dstream, dw };
        ops::rmsnorm_backward(
            device,
            to_norm,
            &scratch.dnormed,
            of_layer(&activations.middles, l),
            norm(&layer.post_norm),
            n,
        )?;
        let read = (&activations.inputs[l], a, activations.batch.positions());
        attention_half_backward(model, layer, adapted, to, read, spans, scratch)?;
    }
    if let Some(weights) = gradients.weights() {
        ops::embedding_backward(device, weights.embedding.dense_mut(), ids, &scratch.dstream);
    }
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
    adapted: &[AdaptedRows],
    mut to: LayerGradients,
    (input, a, positions): (&Tensor, &AttentionActivations, &[u32]),
    spans: &[Range<usize>],
    s: &mut BackwardScratch,
) -> Result<()> {
    let (device, config) = (&model.device, &model.config);
    let (n, eps) = (positions.len(), config.rms_norm_eps);
    let weight = |matrix, projection| Weight::adapted(matrix, projection, adapted);
    for t in [&mut s.dattended, &mut s.dq_raw] {
        ops::fill(device, t, 0.0, n);
    }
    ops::fill(device, &mut s.dk_raw, 0.0, n);
    ops::fill(device, &mut s.dnormed, 0.0, n);
    let o = to.linear(Projection::O, |layer| Some(&mut layer.o));
    ops::linear_backward(device, &mut s.dattended, &s.dstream, &a.attended, weight(&layer.o, Projection::O), o, n)?;
    let of_attention = ops::AttentionGradients { dq: &mut s.dq, dk: &mut s.dk, dv: &mut s.dv };
    let kv = ops::KeysValues { k: &a.k, v: &a.v };
    ops::attention_backward(device, of_attention, &s.dattended, &a.q, kv, spans, model.heads())?;
    let norm = |weight| ops::Norm { weight, eps };
    let of = |norm, n_heads| ops::HeadNorm { norm, table: &model.rope, n_heads };
    let (q_norm, k_norm) = (layer.q_norm.as_ref().map(norm), layer.k_norm.as_ref().map(norm));
    let of_q = ops::NormGradients { dx: &mut s.dq_raw, dw: to.norm(|layer| layer.q_norm.as_mut()) };
    ops::qk_norm_rope_backward(device, of_q, &s.dq, &a.q_raw, of(q_norm, config.n_heads), positions)?;
    let of_k = ops::NormGradients { dx: &mut s.dk_raw, dw: to.norm(|layer| layer.k_norm.as_mut()) };
    ops::qk_norm_rope_backward(device, of_k, &s.dk, &a.k_raw, of(k_norm, config.n_kv_heads), positions)?;
    let q = to.linear(Projection::Q, |layer| Some(&mut layer.q));
    ops::linear_backward(device, &mut s.dnormed, &s.dq_raw, &a.normed, weight(&layer.q, Projection::Q), q, n)?;
    let k = to.linear(Projection::K, |layer| Some(&mut layer.k));
    ops::linear_backward(device, &mut s.dnormed, &s.dk_raw, &a.normed, weight(&layer.k, Projection::K), k, n)?;
    let v = to.linear(Projection::V, |layer| Some(&mut layer.v));
    ops::linear_backward(device, &mut s.dnormed, &s.dv, &a.normed, weight(&layer.v, Projection::V), v, n)?;
    let dw = to.norm(|layer| Some(&mut layer.input_norm));
    let to_norm = ops::NormGradients { dx: &mut s.dstream, dw };
    ops::rmsnorm_backward(device, to_norm, &s.dnormed, input, norm(&layer.input_norm), n)
}

/// Adds to the flow's `dx` and to what is trained of the layer.
fn ffn_backward(
    model: &Model,
    w: &Ffn,
    adapted: &[AdaptedRows],
    to: &mut LayerGradients,
    a: &FfnActivations,
    s: &mut FfnActivations,
    flow: Flow,
) -> Result<()> {
    let weights = ops::FfnWeights {
        gate: Weight::adapted(&w.gate, Projection::Gate, adapted),
        up: Weight::adapted(&w.up, Projection::Up, adapted),
        down: Weight::adapted(&w.down, Projection::Down, adapted),
    };
    let LayerGradients { layer, pairs } = to;
    let (gate, up, down) = match layer.as_mut().and_then(|layer| ffn_of(layer)) {
        Some(Ffn { gate, up, down }) => (Some(gate), Some(up), Some(down)),
        None => (None, None, None),
    };
    let (dgate, dup, ddown) = match pairs {
        Some([.., gate, up, down]) => (gate.as_mut(), up.as_mut(), down.as_mut()),
        None => (None, None, None),
    };
    let gradients = [(gate, dgate), (up, dup), (down, ddown)].map(|(matrix, pair)| LinearGradient { matrix, pair });
    block_backward(model, weights, gradients, a, s, flow)
}

/// One SwiGLU block; `to` is of gate, up and down.
fn block_backward(
    model: &Model,
    w: ops::FfnWeights,
    to: [LinearGradient; 3],
    a: &FfnActivations,
    s: &mut FfnActivations,
    flow: Flow,
) -> Result<()> {
    let (device, Flow { dx, dy, x, n }, [gate, up, down]) = (&model.device, flow, to);
    ops::fill(device, &mut s.product, 0.0, n);
    ops::linear_backward(device, &mut s.product, dy, &a.product, w.down, down, n)?;
    ops::swiglu_backward(device, &mut s.gate, &mut s.up, &s.product, &a.gate, &a.up, n);
    ops::linear_backward(device, dx, &s.gate, x, w.gate, gate, n)?;
    ops::linear_backward(device, dx, &s.up, x, w.up, up, n)
}

/// Adds to the flow's `dx` and, where they are trained, to router and experts.
fn experts_backward(
    model: &Model,
    moe: &Moe,
    (router, experts): (&Matrix, &[Ffn]),
    mut trained: Option<(&mut Matrix, &mut [Ffn])>,
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
        let to = match &mut trained {
            Some((_, experts)) => {
                let Ffn { gate, up, down } = &mut experts[e];
                [gate, up, down].map(|matrix| LinearGradient { matrix: Some(matrix), pair: None })
            }
            None => Default::default(),
        };
        block_backward(model, experts[e].matrices(), to, &block.ffn, &mut s.ffn, flow)?;
        ops::scatter_add_rows(device, dx, &s.dx, rows);
    }
    ops::route_backward(device, &mut s.dlogits, &s.dweights.f32()[..n * k], routing, n);
    let to = LinearGradient { matrix: trained.map(|(router, _)| router), pair: None };
    ops::linear_backward(device, dx, &s.dlogits, x, router.into(), to, n)
}
