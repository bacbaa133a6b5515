//! The attention half between its projections: QK-norm and RoPE, append to the KV cache, attention.
//!
//! q_raw [N, H*D], k_raw, v [N, G*D] in; q, k after norm and RoPE and the attention output [N, H*D] out. One op, because
//! a GPU that decodes does all of it in one launch.

use std::sync::Arc;

use super::{Heads, RopeTable, Span, attention_forward, kv_append, qk_norm_rope_forward};
use crate::backend::batch::Batch;
use crate::backend::page::{PAGE, PageShape};
use crate::backend::{Compute, Device, Tensor};

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
    /// f32 partial results
    pub parts: Option<Tensor>,
    /// u32 counters, 0 between launches
    pub counters: Option<Tensor>,
}

/// Attention of all rows of a batch in one layer; their keys and values are in the pages afterwards. `spans` are the
/// batch's timelines, whose pages of new positions have no other owner. `next` are weights that the next ops read:
/// a GPU that has nothing better to do meanwhile moves them closer.
#[allow(clippy::too_many_arguments)] // half a layer: its operands, its weights, the batch
pub fn attend_forward(
    device: &Device,
    a: Attend,
    (q_norm, k_norm): (&Tensor, &Tensor),
    table: &RopeTable,
    batch: &Batch,
    spans: &mut [Span],
    shape: PageShape,
    layer: usize,
    heads: Heads,
    eps: f32,
    compute: Compute,
    _next: &[&Tensor],
) {
    let (n, positions) = (batch.len(), batch.positions());
    qk_norm_rope_forward(device, a.q, a.q_raw, q_norm, table, positions, n, heads.n_heads, eps, compute);
    qk_norm_rope_forward(device, a.k, a.k_raw, k_norm, table, positions, n, heads.n_kv_heads, eps, compute);
    for span in spans.iter_mut() {
        let (mut row, mut pos) = (span.rows.start, span.start);
        while row < span.rows.end {
            let count = (PAGE - pos % PAGE).min(span.rows.end - row);
            // The cache made the page this timeline's own, and only a fork, which needs the cache, could share it again.
            let page = Arc::get_mut(&mut span.pages[pos / PAGE]).expect("a reserved page has one owner");
            kv_append(device, page, shape, layer, pos % PAGE, (a.k, a.v), row..row + count);
            row += count;
            pos += count;
        }
    }
    attention_forward(device, a.out, a.q, spans, shape, layer, heads, compute);
}
