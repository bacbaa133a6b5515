//! Causal attention with grouped heads over a paged KV cache.
//!
//! For query head h of row i at position p, with g = h / (H/G):
//! out[i, h] = sum over s <= p of softmax_s(q[i, h] . k[s, g] * scale) v[s, g].
//!
//! q, out [N, H*D] f32; keys and values in pages (`backend::page`). The order is fixed by absolute
//! positions, never by packing or page: scores are canonical dots, the maximum is exact, the sum of
//! exponentials runs in sixteen lanes by s mod 16, and values are added in order of s. Slots beyond a
//! row's own position are skipped, not multiplied by zero.

use std::ops::Range;
use std::sync::Arc;

use super::linear::narrow;
use crate::backend::cpu::dot::{B16, Form, Paired, Wide, Widen, tile};
use crate::backend::cpu::lanes::round_bf16_bits;
use crate::backend::cpu::math::exp;
use crate::backend::cpu::outer::{Rows, Steps, TILE, Terms, add};
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared, worker};
use crate::backend::host;
use crate::backend::page::{PAGE, Page, PageShape};
use crate::backend::terms::Heads;
use crate::backend::{Compute, Device, Elements, Tensor};
use crate::error::Result;
use crate::tensor::Dtype;

/// Query rows of one timeline: rows `rows` of the batch are its positions `start..`.
pub struct Span<'a> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub start: usize,
    /// The timeline's pages; positions up to the last row are written.
    pub pages: &'a mut [Arc<Page>],
}

/// One layer of pages of one shape.
#[derive(Clone, Copy)]
pub struct PageLayer {
    /// of the pages
    pub shape: PageShape,
    /// which of their layers
    pub layer: usize,
}

impl PageLayer {
    /// Element offset of key row (head, slot).
    #[inline]
    fn key_offset(&self, head: usize, slot: usize) -> usize {
        self.shape.key_offset(self.layer, head, slot)
    }
}

/// Keys and values of some rows, each [N, G*D] f32, already rounded to the precision of the KV dtype.
#[derive(Clone, Copy)]
pub struct KeysValues<'a> {
    /// after norm and RoPE
    pub k: &'a Tensor,
    /// as projected
    pub v: &'a Tensor,
}

/// Writes rows `rows` of keys and values into slots `slot..` of a page.
pub fn kv_append(device: &Device, page: &mut Page, at: PageLayer, slot: usize, kv: KeysValues, rows: Range<usize>) {
    device.cpu();
    let shape = at.shape;
    let (g, d) = (shape.n_kv_heads, shape.head_dim);
    assert!(slot + rows.len() <= PAGE && kv.k.extent(1) == g * d && kv.v.extent(1) == g * d);
    for (value, source) in [(0, kv.k.f32()), (shape.value_offset(), kv.v.f32())] {
        for (i, row) in rows.clone().enumerate() {
            for head in 0..g {
                let from = &source[(row * g + head) * d..][..d];
                let at = at.key_offset(head, slot + i) + value;
                match shape.dtype {
                    Dtype::F32 => page.elements_mut().f32_mut()[at..at + d].copy_from_slice(from),
                    _ => {
                        let to = &mut page.elements_mut().u16_mut()[at..at + d];
                        to.iter_mut().zip(from).for_each(|(t, f)| *t = (round_bf16_bits(f.to_bits()) >> 16) as u16);
                    }
                }
            }
        }
    }
}

/// Attention of all spans' rows in one layer; q [N, H*D]. Overwrites their rows of `out` [N, H*D], rounded in bf16
/// compute.
pub fn attention_forward(
    device: &Device,
    out: &mut Tensor,
    q: &Tensor,
    spans: &[Span],
    at: PageLayer,
    heads: Heads,
    compute: Compute,
) -> Result<()> {
    let width = heads.n_heads * heads.head_dim;
    let n = spans.iter().map(|s| s.rows.end).max().unwrap_or(0);
    assert!(q.extent(0) >= n && q.extent(1) == width && out.extent(0) >= n && out.extent(1) == width);
    for span in spans {
        assert!(span.pages.len() * PAGE >= span.start + span.rows.len(), "a span's pages do not reach its last row");
    }
    let cpu = device.cpu();
    let out = Shared::new(&mut out.f32_mut()[..n * width]);
    let q = &q.f32()[..n * width];
    let round = compute.rounds();
    match at.shape.dtype {
        Dtype::F32 => forward::<Wide<f32>>(cpu, Operands { out, q, spans, at, heads, round }),
        _ => forward::<Paired>(cpu, Operands { out, q: &narrow(cpu, q)?, spans, at, heads, round }),
    }
}

/// Rows of a span in one task.
const ROWS_PER_TASK: usize = 16;

/// What attention reads and writes, with the form of the product chosen.
struct Operands<'a, F: Form> {
    out: Shared<f32>,
    q: &'a [F::X],
    spans: &'a [Span<'a>],
    at: PageLayer,
    heads: Heads,
    round: bool,
}

/// Blocks of rows times key heads; each thread has its own scores.
struct Forward<'a, F: Form> {
    of: Operands<'a, F>,
    /// (span, first row) of each block of rows.
    blocks: Vec<(usize, usize)>,
    scores: Shared<f32>,
    /// of a thread
    n_scores: usize,
}

/// f32 that a thread needs for a block of rows that ends at position `longest`: a row of scores and a sum a query.
fn scores_of(n_rows: usize, group: usize, longest: usize) -> usize {
    (n_rows * group * (longest + 1)).next_multiple_of(16)
}

/// Bytes of scratch that the scores of `n` rows take at most, of which the last stands at position `context` - 1.
pub fn attention_scratch_bytes(cpu: &Cpu, heads: Heads, n: usize, context: usize) -> u64 {
    let a_thread = scores_of(n.min(ROWS_PER_TASK), heads.group(), context);
    Cpu::scratch_bytes(4 * cpu.n_threads() * a_thread)
}

/// A page's elements in the form's stored type.
trait PageElements: Sized {
    fn of(page: &Page) -> &[Self];
}

impl PageElements for f32 {
    fn of(page: &Page) -> &[f32] {
        page.elements().f32()
    }
}

impl PageElements for B16 {
    fn of(page: &Page) -> &[B16] {
        match page.elements().elements() {
            Elements::Bf16(x) => x,
            _ => panic!("a bf16 page is wanted"),
        }
    }
}

fn forward<F: Form>(cpu: &Cpu, of: Operands<F>) -> Result<()>
where
    F::W: PageElements,
{
    let steps = |span: &Span| span.rows.clone().step_by(ROWS_PER_TASK);
    let mut blocks = host::with_room(of.spans.iter().map(|span| steps(span).len()).sum())?;
    for (i, span) in of.spans.iter().enumerate() {
        blocks.extend(steps(span).map(|row| (i, row)));
    }
    let of_block = |&(i, row): &(usize, usize)| {
        let span = &of.spans[i];
        let n = ROWS_PER_TASK.min(span.rows.end - row);
        scores_of(n, of.heads.group(), span.start + row - span.rows.start + n)
    };
    let n_scores = blocks.iter().map(of_block).max().unwrap_or(0);
    let n_tasks = blocks.len() * of.heads.n_kv_heads;
    let mut scores = cpu.scratch::<f32>(cpu.n_threads() * n_scores)?;
    let scores = Shared::new(&mut scores);
    cpu.launch(n_tasks, &Forward::<F> { of, blocks, scores, n_scores });
    Ok(())
}

impl<F: Form> Kernel for Forward<'_, F>
where
    F::W: PageElements,
{
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        // SAFETY: each thread has its own scores; the caller's contract.
        unsafe {
            let scores = self.scores.slice(worker() * self.n_scores, self.n_scores);
            self.block::<V>(index, scores);
        }
    }
}

impl<F: Form> Forward<'_, F>
where
    F::W: PageElements,
{
    /// Attention of one block of rows under one key head.
    ///
    /// # Safety
    /// The contract of [`Lanes`]; each piece is computed once, with scores of its own.
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, piece: usize, scores: &mut [f32]) {
        let Operands { out, q: queries, spans, at: layer, heads, round } = &self.of;
        let Heads { n_heads, n_kv_heads, head_dim, scale } = *heads;
        let group = heads.group();
        let (head, (span, first)) = (piece % n_kv_heads, self.blocks[piece / n_kv_heads]);
        let span = &spans[span];
        let rows = first..(first + ROWS_PER_TASK).min(span.rows.end);
        // Query (row, head of the group) m attends to the first lens(m) positions.
        let n_queries = rows.len() * group;
        let len = |m: usize| span.start + (first - span.rows.start) + m / group + 1;
        let longest = len(n_queries - 1);
        let at = |m: usize| ((first + m / group) * n_heads + head * group + m % group) * head_dim;
        let (scores, sums) = scores.split_at_mut(n_queries * longest);
        // SAFETY: offsets lie inside the page, the batch and the thread's scores; this piece alone writes its rows.
        unsafe {
            for (p, page) in span.pages.iter().enumerate().take(longest.div_ceil(PAGE)) {
                let keys = F::W::of(page).as_ptr().add(layer.key_offset(head, 0));
                let keys = Slots { at: keys, stride: head_dim, n: (longest - p * PAGE).min(PAGE) };
                let out = scores.as_mut_ptr().add(p * PAGE);
                score_all::<V, F>(n_queries, |m| queries.as_ptr().add(at(m)), keys, head_dim, out, longest);
            }
            for (m, sum) in sums[..n_queries].iter_mut().enumerate() {
                *sum = softmax::<V>(scores.as_mut_ptr().add(m * longest), len(m), scale);
            }
            for m in 0..n_queries {
                out.slice(at(m), head_dim).fill(0.0);
            }
            for (i, page) in span.pages.iter().enumerate().take(longest.div_ceil(PAGE)) {
                let values = F::W::of(page).as_ptr().add(layer.key_offset(head, 0) + layer.shape.value_offset());
                // Slots of the page that a query sees.
                let seen = |m: usize| len(m).saturating_sub(i * PAGE).min(PAGE);
                let of = |m: usize, slots: Range<usize>| {
                    let weights = scores.as_ptr().add(m * longest + i * PAGE + slots.start);
                    (weights, values.add(slots.start * head_dim), slots.len())
                };
                if rows.len() == 1 {
                    // Its heads lie side by side.
                    let to = Rows { at: out.at(at(0)), stride: head_dim, n: group };
                    add_values::<V, F::W>(to, of(0, 0..seen(0)), longest, head_dim);
                    continue;
                }
                for (h, row) in (0..group).flat_map(|h| (0..rows.len()).step_by(TILE).map(move |row| (h, row))) {
                    let query = |r: usize| (row + r) * group + h;
                    let n = TILE.min(rows.len() - row);
                    // What all of a tile see, then what only the later ones do.
                    let all = seen(query(0));
                    let to = Rows { at: out.at(at(query(0))), stride: n_heads * head_dim, n };
                    add_values::<V, F::W>(to, of(query(0), 0..all), group * longest, head_dim);
                    for m in (1..n).map(query) {
                        let to = Rows { at: out.at(at(m)), stride: 0, n: 1 };
                        add_values::<V, F::W>(to, of(m, all..seen(m)), 0, head_dim);
                    }
                }
            }
            for (m, &sum) in sums[..n_queries].iter().enumerate() {
                let at = out.at(at(m));
                for d in (0..head_dim).step_by(16) {
                    let n = (head_dim - d).min(16);
                    V::load_up_to(at.add(d), n).div(V::splat(sum)).store_rounded(at.add(d), n, *round);
                }
            }
        }
    }
}

/// Adds to each row the values of `n` slots, from `weights` and `values` on; the rows' weights lie `apart`.
///
/// # Safety
/// The contract of [`Lanes`]; the weights and values are readable and the rows the caller's to write.
#[inline(always)]
unsafe fn add_values<V: Lanes, W: Widen>(
    to: Rows,
    (weights, values, n): (*const f32, *const W, usize),
    apart: usize,
    d: usize,
) {
    let inner = Steps { n, a: 1, b: d };
    // SAFETY: the caller's.
    unsafe { add::<V, W>(to, Terms { a: weights, a_row: apart, b: values, outer: Steps::ONE, inner }, d) }
}

/// `n` keys, or values, of one head: the first, and elements from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Slots<W> {
    pub(super) at: *const W,
    pub(super) stride: usize,
    pub(super) n: usize,
}

/// out[r * out_stride + s] = x[r] . w[s] over k elements.
///
/// # Safety
/// The contract of [`Lanes`]; R rows of x and all slots are readable, and R rows of as many scores are writable.
#[inline(always)]
pub(super) unsafe fn score<V: Lanes, F: Form, const R: usize>(
    x: [*const F::X; R],
    w: Slots<F::W>,
    k: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let Slots { at: w, stride, n } = w;
    // SAFETY: the caller's.
    unsafe {
        let mut s = 0;
        while s < n {
            if V::COLUMNS == 8 && s + 8 <= n {
                let y = tile::<V, F, R, 8>(x, std::array::from_fn(|c| w.add((s + c) * stride)), k);
                for (r, row) in y.iter().enumerate() {
                    std::ptr::copy_nonoverlapping(row.as_ptr(), out.add(r * out_stride + s), 8);
                }
                s += 8;
            } else {
                let y = tile::<V, F, R, 1>(x, [w.add(s * stride)], k);
                for (r, row) in y.iter().enumerate() {
                    *out.add(r * out_stride + s) = row[0];
                }
                s += 1;
            }
        }
    }
}

/// The same for `n` queries, three at a time; `query` tells where the elements of one stand.
///
/// # Safety
/// As for `score`.
#[inline(always)]
pub(super) unsafe fn score_all<V: Lanes, F: Form>(
    n: usize,
    query: impl Fn(usize) -> *const F::X,
    w: Slots<F::W>,
    k: usize,
    out: *mut f32,
    out_stride: usize,
) {
    for m in (0..n).step_by(3) {
        // SAFETY: the caller's.
        unsafe {
            let out = out.add(m * out_stride);
            match n - m {
                1 => score::<V, F, 1>([query(m)], w, k, out, out_stride),
                2 => score::<V, F, 2>([query(m), query(m + 1)], w, k, out, out_stride),
                _ => score::<V, F, 3>([query(m), query(m + 1), query(m + 2)], w, k, out, out_stride),
            }
        }
    }
}

/// Replaces `n` scores by exp(score * scale - max) and gives their sum.
///
/// # Safety
/// The contract of [`Lanes`]; `n` scores are readable and writable.
#[inline(always)]
pub(super) unsafe fn softmax<V: Lanes>(scores: *mut f32, n: usize, scale: f32) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        // The largest of all, whatever the order; a NaN is passed over here and comes out of the exponential.
        let (mut tops, factor) = (V::splat(f32::NEG_INFINITY), V::splat(scale));
        let mut s = 0;
        while s + 16 <= n {
            let t = V::load(scores.add(s)).mul(factor);
            t.store(scores.add(s));
            tops = t.max(tops);
            s += 16;
        }
        let mut max = tops.reduce_max();
        for s in s..n {
            let t = *scores.add(s) * scale;
            *scores.add(s) = t;
            max = if t > max { t } else { max };
        }
        let (mut lanes, top) = (V::zero(), V::splat(max));
        let mut s = 0;
        while s < n {
            let count = (n - s).min(16);
            let e = exp(V::load_up_to(scores.add(s), count).sub(top));
            e.store_rounded(scores.add(s), count, false);
            lanes = lanes.add(V::load_up_to(scores.add(s), count));
            s += count;
        }
        lanes.reduce_add()
    }
}

#[cfg(test)]
mod tests;
