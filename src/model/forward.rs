//! The forward pass: the only one in the crate, for prefill, decode, scoring and training.
//!
//! A batch is rows of several timelines side by side, prefill chunks and decode rows mixed. No op looks
//! across rows but attention, and attention looks only along a row's own timeline, so a row's result
//! does not depend on its neighbours. Rounding points (bf16 compute) are inside the ops: after each
//! norm, projection, QK-norm with RoPE, attention output, SwiGLU product, residual add, weighted sum of
//! experts; the KV store holds what was rounded; logits stay f32.
//!
//! `decode` is the same pass for one row of each of several timelines, with its head and its draws: on a GPU one
//! recorded graph, whose results the host need not wait for before it asks for the next.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::Model;
use super::activations::{Activations, FeedForwardActivations, of_layer_mut};
use super::adapter::Adapter;
use super::kv_cache::KvCache;
use super::weights::{Layer, Mlp, Weights};
use crate::backend::batch::BatchSegment;
use crate::backend::{AdaptedRows, Projection, Tensor, Weight, host, ops};
use crate::error::{Error, Fault, Result};

/// New rows of one timeline: `ids` go to positions `kv.len()..`.
pub struct Segment<'a> {
    /// Token ids, each below the vocabulary size; in `decode` also -1 - j, what draw j of the last step chose.
    pub ids: &'a [i32],
    /// The timeline's cache; advanced by `ids.len()` on success.
    pub kv: &'a mut KvCache,
    /// The adapter that applies to its rows.
    pub adapter: Option<&'a Adapter>,
}

/// Runs all segments' rows, in order, through the model. Row i's state after the final norm is
/// `activations.hidden` row i. On failure no cache has advanced.
pub fn forward(
    model: &Model,
    weights: &Weights,
    segments: &mut [Segment],
    activations: &mut Activations,
) -> Result<()> {
    forward_while(model, weights, segments, activations, &mut || Ok(()))
}

/// The same, given up between two layers as soon as `go_on` fails: its error, and no cache has advanced.
pub fn forward_while(
    model: &Model,
    weights: &Weights,
    segments: &mut [Segment],
    activations: &mut Activations,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    if let Some(id) = segments.iter().flat_map(|s| s.ids).find(|&&id| id < 0) {
        return Err(outside(model, *id));
    }
    begin(model, segments, &[], activations)?;
    layers(model, weights, segments, activations, go_on)?;
    let Activations { hidden, stream, batch, .. } = activations;
    let (n, eps) = (batch.plan().rows, model.config.rms_norm_eps);
    let norm = ops::Norm { weight: &weights.norm, eps };
    ops::rmsnorm_forward(&model.device, hidden, stream, norm, n, model.compute);
    model.device.check()?;
    segments.iter_mut().for_each(|s| s.kv.advance(s.ids.len()));
    Ok(())
}

/// One more row of each timeline through the layers, its logits, and a draw of the token that follows: draw i, of
/// segment i, is in `activations.draws` when it is waited for. At most `MAX_DECODE_ROWS` segments of one row each.
pub fn decode(
    model: &Model,
    weights: &Weights,
    segments: &mut [Segment],
    draws: &[ops::Pick],
    activations: &mut Activations,
) -> Result<()> {
    assert_eq!(segments.len(), draws.len(), "a draw a segment");
    begin(model, segments, draws, activations)?;
    let n = segments.len();
    activations.reserve_head(model, n)?;
    let plan = activations.batch.plan();
    let mut graphs = std::mem::take(&mut activations.graphs);
    let run = model.device.replay(&mut graphs, (weights.identity(), plan), || {
        layers(model, weights, segments, activations, &mut || Ok(()))?;
        let Activations { stream, head, draws: drawn, batch, .. } = activations;
        let (device, eps) = (&model.device, model.config.rms_norm_eps);
        let head = head.as_mut().expect("room was made for the head");
        let rows = ops::RowList::first(plan.rows)?;
        let norm = Some(ops::Norm { weight: &weights.norm, eps });
        ops::head_forward(device, head, stream, norm, weights.head(), &rows, model.compute)?;
        ops::sample_rows(device, drawn, head, draws, batch)
    });
    activations.graphs = graphs;
    run?;
    model.device.check()?;
    activations.draws.send(n)?;
    segments.iter_mut().for_each(|s| s.kv.advance(s.ids.len()));
    Ok(())
}

/// Logits [R, V], f32 in any compute, of rows of the last forward: row i of the list is row i of the head's logits.
pub fn head<'a>(
    model: &Model,
    weights: &Weights,
    activations: &'a mut Activations,
    rows: &ops::RowList,
) -> Result<&'a ops::Head> {
    activations.reserve_head(model, rows.len())?;
    let Activations { hidden, head, .. } = activations;
    let head = head.as_mut().expect("room was made for the head");
    ops::head_forward(&model.device, head, hidden, None, weights.head(), rows, model.compute)?;
    Ok(head)
}

/// Logits [n, V] of rows of hidden states [n, C] after the final norm; f32 in any compute.
pub fn head_forward(model: &Model, weights: &Weights, logits: &mut Tensor, hidden: &Tensor, n: usize) -> Result<()> {
    ops::linear_forward_f32(&model.device, logits, hidden, weights.head().into(), n, model.compute)
}

fn outside(model: &Model, id: i32) -> Error {
    let why = format!("token id {id} lies outside the vocabulary of {}", model.config.vocab_size);
    Error::new(Fault::IdOutOfRange, why)
}

/// Checks ids and context, reserves pages, tells the device of the rows and makes room for them.
fn begin(model: &Model, segments: &mut [Segment], draws: &[ops::Pick], activations: &mut Activations) -> Result<()> {
    let ids = segments.iter().flat_map(|s| s.ids);
    if let Some(id) = ids.into_iter().find(|&&id| id >= 0 && id as usize >= model.config.vocab_size) {
        return Err(outside(model, *id));
    }
    for s in segments.iter_mut() {
        let end = s.kv.len() + s.ids.len();
        if end > model.max_context() {
            let why = format!("{end} tokens are wanted, the context holds {}", model.max_context());
            return Err(Error::new(Fault::ContextFull, why));
        }
        s.kv.reserve(s.ids.len())?;
    }
    let rows = segments.iter().map(|s| BatchSegment { ids: s.ids, start: s.kv.len(), pages: s.kv.pages() });
    let rows = host::collected(rows)?;
    activations.batch.set(&model.device, &rows, draws, model.heads())?;
    activations.reserve(model)
}

/// The layers: from the tokens of the batch to the residual stream.
fn layers(
    model: &Model,
    weights: &Weights,
    segments: &mut [Segment],
    activations: &mut Activations,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let n = activations.batch.plan().rows;
    let mut row = 0;
    let mut spans: Vec<ops::Span> = host::with_room(segments.len())?;
    // Rows of one adapter that stand side by side are one piece of work.
    let mut runs: Vec<(Range<usize>, &Adapter)> = host::with_room(segments.len())?;
    for s in segments.iter_mut().filter(|s| !s.ids.is_empty()) {
        let (start, rows) = (s.kv.len(), row..row + s.ids.len());
        if let Some(adapter) = s.adapter {
            match runs.last_mut().filter(|(last, of)| last.end == row && std::ptr::eq(*of, adapter)) {
                Some((last, _)) => last.end = rows.end,
                None => runs.push((rows.clone(), adapter)),
            }
        }
        row = rows.end;
        spans.push(ops::Span { rows, start, pages: s.kv.pages_mut() });
    }
    let mut adapted: Vec<AdaptedRows> = host::with_room(runs.len())?;
    let Activations { batch, stream, draws, .. } = &mut *activations;
    ops::embedding_forward(&model.device, stream, batch, weights.embedding.dense(), draws, model.compute);
    for (l, layer) in weights.layers.iter().enumerate() {
        go_on()?;
        adapted.clear();
        adapted.extend(runs.iter().map(|(rows, of)| AdaptedRows { rows: rows.clone(), pairs: of.layer(l) }));
        if let Some(input) = activations.inputs.get_mut(l) {
            ops::copy_rows(&model.device, input, &activations.stream, n);
        }
        attention_half(model, layer, l, activations, &mut spans, &adapted)?;
        feed_forward_half(model, layer, l, activations, &adapted)?;
    }
    Ok(())
}

/// stream += O(attention(norm(stream))), by layer `l`. Where a backward will come, the stream is kept as it then is.
pub(super) fn attention_half(
    model: &Model,
    layer: &Layer,
    l: usize,
    activations: &mut Activations,
    spans: &mut [ops::Span],
    adapted: &[AdaptedRows],
) -> Result<()> {
    let (device, config, compute) = (&model.device, &model.config, model.compute);
    let Activations { batch, stream, branch, attention, middles, attend_scratch, .. } = activations;
    let a = of_layer_mut(attention, l);
    let weight = |matrix, projection| Weight::adapted(matrix, projection, adapted);
    let (n, eps) = (batch.plan().rows, config.rms_norm_eps);
    let norm = |weight| ops::Norm { weight, eps };
    let projected = ops::Qkv { normed: &mut a.normed, q: &mut a.q_raw, k: &mut a.k_raw, v: &mut a.v };
    let w = ops::QkvWeights {
        q: weight(&layer.q, Projection::Q),
        k: weight(&layer.k, Projection::K),
        v: weight(&layer.v, Projection::V),
    };
    ops::qkv_forward(device, projected, stream, norm(&layer.input_norm), w, n, compute)?;
    let (q_raw, k_raw, v, scratch) = (&a.q_raw, &a.k_raw, &a.v, attend_scratch);
    let heads = ops::Attend { q_raw, k_raw, v, q: &mut a.q, k: &mut a.k, out: &mut a.attended, scratch };
    let of_layer = ops::AttendLayer {
        q_norm: layer.q_norm.as_ref().map(norm),
        k_norm: layer.k_norm.as_ref().map(norm),
        table: &model.rope,
        heads: model.heads(),
        at: ops::PageLayer { shape: model.page_shape(), layer: l },
        next: layer.read_after_attention(),
    };
    ops::attend_forward(device, heads, &of_layer, batch, spans, compute)?;
    let o = weight(&layer.o, Projection::O);
    ops::linear_residual_forward(device, stream, branch, &a.attended, o, n, compute)?;
    if !middles.is_empty() {
        ops::copy_rows(device, of_layer_mut(middles, l), stream, n);
    }
    Ok(())
}

/// stream += down(swiglu(norm(stream))), or the experts' sum, by layer `l`.
pub(super) fn feed_forward_half(
    model: &Model,
    layer: &Layer,
    l: usize,
    activations: &mut Activations,
    adapted: &[AdaptedRows],
) -> Result<()> {
    let (device, config, compute) = (&model.device, &model.config, model.compute);
    let Activations { batch, stream, branch, feed_forward, .. } = activations;
    let FeedForwardActivations { normed, ffn: swiglu, experts: chosen } = of_layer_mut(feed_forward, l);
    let weight = |matrix, projection| Weight::adapted(matrix, projection, adapted);
    let n = batch.plan().rows;
    let norm = ops::Norm { weight: &layer.post_norm, eps: config.rms_norm_eps };
    let half = ops::FfnHalf { stream, normed, branch };
    match (&layer.mlp, chosen) {
        (Mlp::Experts { router, experts }, Some(a)) => {
            let w = ops::ExpertWeights { router, expert: &|e: usize| experts[e].matrices() };
            ops::experts_forward(device, half, a, norm, w, n, compute)
        }
        (Mlp::Dense(ffn), _) => {
            let w = ops::FfnWeights {
                gate: weight(&ffn.gate, Projection::Gate),
                up: weight(&ffn.up, Projection::Up),
                down: weight(&ffn.down, Projection::Down),
            };
            ops::ffn_forward(device, half, swiglu, norm, w, n, compute)
        }
        _ => unreachable!("weights, activations and configuration agree on which layers have experts"),
    }
}
