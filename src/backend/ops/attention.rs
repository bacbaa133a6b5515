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
use std::sync::atomic::{AtomicUsize, Ordering};

use super::linear::narrow;
use crate::backend::cpu::dot::{B16, Form, Paired, Wide, Widen, tile};
use crate::backend::cpu::lanes::round_bf16_bits;
use crate::backend::cpu::math::exp;
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared};
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

/// Blocks of rows times key heads, dealt out among as many workers as compute: each has its own scores.
struct Forward<'a, F: Form> {
    of: Operands<'a, F>,
    /// (span, first row) of each block of rows.
    blocks: Vec<(usize, usize)>,
    /// the next piece that nobody has begun
    next: AtomicUsize,
    scores: Shared<f32>,
    /// of a worker
    n_scores: usize,
}

/// f32 that a worker needs for a block of rows that ends at position `longest`: a row of scores and a sum a query.
fn scores_of(n_rows: usize, group: usize, longest: usize) -> usize {
    (n_rows * group * (longest + 1)).next_multiple_of(16)
}

/// Bytes of scratch that the scores of `n` rows take at most, of which the last stands at position `context` - 1.
pub fn attention_scratch_bytes(cpu: &Cpu, heads: Heads, n: usize, context: usize) -> u64 {
    let a_worker = scores_of(n.min(ROWS_PER_TASK), heads.group(), context);
    Cpu::scratch_bytes(4 * cpu.n_threads() * a_worker)
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
    let n_workers = cpu.n_threads().min(blocks.len() * of.heads.n_kv_heads);
    let mut scores = cpu.scratch::<f32>(n_workers * n_scores)?;
    let (next, scores) = (AtomicUsize::new(0), Shared::new(&mut scores));
    cpu.launch(n_workers, &Forward::<F> { of, blocks, next, scores, n_scores });
    Ok(())
}

impl<F: Form> Kernel for Forward<'_, F>
where
    F::W: PageElements,
{
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, worker: usize) {
        // SAFETY: each worker has its own scores.
        let scores = unsafe { self.scores.slice(worker * self.n_scores, self.n_scores) };
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.blocks.len() * self.of.heads.n_kv_heads {
                return;
            }
            // SAFETY: the caller's contract; the counter gives each piece once.
            unsafe { self.block::<V>(piece, scores) };
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
        // SAFETY: offsets lie inside the page, the batch and the worker's scores; this piece alone writes its rows.
        unsafe {
            for (p, page) in span.pages.iter().enumerate().take(longest.div_ceil(PAGE)) {
                let keys = F::W::of(page).as_ptr().add(layer.key_offset(head, 0));
                let n_slots = (longest - p * PAGE).min(PAGE);
                let out = scores.as_mut_ptr().add(p * PAGE);
                let mut m = 0;
                while m < n_queries {
                    let q = |i: usize| queries.as_ptr().add(at(m + i));
                    match n_queries - m {
                        1 => score::<V, F, 1>([q(0)], keys, n_slots, head_dim, out.add(m * longest), longest),
                        2 => score::<V, F, 2>([q(0), q(1)], keys, n_slots, head_dim, out.add(m * longest), longest),
                        _ => {
                            let three = [q(0), q(1), q(2)];
                            score::<V, F, 3>(three, keys, n_slots, head_dim, out.add(m * longest), longest)
                        }
                    }
                    m += 3.min(n_queries - m);
                }
            }
            for (m, sum) in sums[..n_queries].iter_mut().enumerate() {
                *sum = softmax::<V>(scores.as_mut_ptr().add(m * longest), len(m), scale);
            }
            let values =
                |page: &Page| F::W::of(page).as_ptr().add(layer.key_offset(head, 0) + layer.shape.value_offset());
            for (m, &sum) in sums[..n_queries].iter().enumerate() {
                let p = scores.as_ptr().add(m * longest);
                let mut d = 0;
                while d < head_dim {
                    let width = (head_dim - d).min(8 * 16);
                    let mut acc = [V::zero(); 8];
                    let n_vectors = width.div_ceil(16);
                    for (i, page) in span.pages.iter().enumerate().take(len(m).div_ceil(PAGE)) {
                        let v = values(page).add(d);
                        let slots = (len(m) - i * PAGE).min(PAGE);
                        if width == 8 * 16 {
                            for s in 0..slots {
                                let weight = V::splat(*p.add(i * PAGE + s));
                                let row = v.add(s * head_dim);
                                for (j, a) in acc.iter_mut().enumerate() {
                                    *a = weight.fma(F::W::load(row.add(16 * j), 16), *a);
                                }
                            }
                        } else {
                            for s in 0..slots {
                                let weight = V::splat(*p.add(i * PAGE + s));
                                let row = v.add(s * head_dim);
                                for (j, a) in acc.iter_mut().enumerate().take(n_vectors) {
                                    *a = weight.fma(F::W::load(row.add(16 * j), (width - 16 * j).min(16)), *a);
                                }
                            }
                        }
                    }
                    let sum = V::splat(sum);
                    for (j, a) in acc.iter().enumerate().take(n_vectors) {
                        a.div(sum).store_rounded(out.at(at(m) + d + 16 * j), width - 16 * j, *round);
                    }
                    d += width;
                }
            }
        }
    }
}

/// out[r * stride + s] = x[r] . w[s] for `n` consecutive rows w of length k.
#[inline(always)]
unsafe fn score<V: Lanes, F: Form, const R: usize>(
    x: [*const F::X; R],
    w: *const F::W,
    n: usize,
    k: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's: R rows of x and n of w are readable, and R rows of n scores are writable.
    unsafe {
        let mut s = 0;
        while s < n {
            if V::COLUMNS == 8 && s + 8 <= n {
                let y = tile::<V, F, R, 8>(x, std::array::from_fn(|c| w.add((s + c) * k)), k);
                for (r, row) in y.iter().enumerate() {
                    std::ptr::copy_nonoverlapping(row.as_ptr(), out.add(r * stride + s), 8);
                }
                s += 8;
            } else {
                let y = tile::<V, F, R, 1>(x, [w.add(s * k)], k);
                for (r, row) in y.iter().enumerate() {
                    *out.add(r * stride + s) = row[0];
                }
                s += 1;
            }
        }
    }
}

/// Replaces `n` scores by exp(score * scale - max) and gives their sum.
#[inline(always)]
unsafe fn softmax<V: Lanes>(scores: *mut f32, n: usize, scale: f32) -> f32 {
    // SAFETY: the caller's: `n` scores are readable and writable.
    unsafe {
        let mut max = f32::NEG_INFINITY;
        for s in 0..n {
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

/// Gradients that `attention_backward` overwrites, in the spans' rows.
pub struct AttentionGradients<'a> {
    /// [N, H*D]
    pub dq: &'a mut Tensor,
    /// [N, G*D]
    pub dk: &'a mut Tensor,
    /// [N, G*D]
    pub dv: &'a mut Tensor,
}

/// Gradients of attention over whole packed sequences: `spans` are row ranges that start at position 0.
///
/// q, dout [N, H*D]; k, v [N, G*D]; all f32, k and v as stored in the cache. Overwrites the
/// spans' rows of dq, dk and dv. With p the softmax weights and P_s = dout . v\[s\]:
/// dv\[s\] += p_s dout;  ds = p_s (P_s - sum p P) scale;  dq += ds k\[s\];  dk\[s\] += ds q.
pub fn attention_backward(
    device: &Device,
    to: AttentionGradients,
    dout: &Tensor,
    q: &Tensor,
    kv: KeysValues,
    spans: &[Range<usize>],
    heads: Heads,
) -> Result<()> {
    let (AttentionGradients { dq, dk, dv }, KeysValues { k, v }) = (to, kv);
    let (wide, narrow) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
    assert!([q.extent(1), dq.extent(1), dout.extent(1)] == [wide; 3]);
    assert!([k.extent(1), v.extent(1), dk.extent(1), dv.extent(1)] == [narrow; 4]);
    let cpu = device.cpu();
    let n_scores = backward_scores(heads, spans.iter().map(Range::len).max().unwrap_or(0));
    let n_workers = cpu.n_threads().min(spans.len() * heads.n_kv_heads);
    let mut scores = cpu.scratch::<f32>(n_workers * n_scores)?;
    let kernel = Backward {
        dq: Shared::new(dq.f32_mut()),
        dk: Shared::new(dk.f32_mut()),
        dv: Shared::new(dv.f32_mut()),
        dout: dout.f32(),
        q: q.f32(),
        k: k.f32(),
        v: v.f32(),
        spans,
        heads,
        next: AtomicUsize::new(0),
        scores: Shared::new(&mut scores),
        n_scores,
    };
    cpu.launch(n_workers, &kernel);
    Ok(())
}

/// Rows whose gradients of keys and values are added together: so often is each read and written once for all of them.
const BACKWARD_ROWS: usize = 4;

/// f32 that a worker of the backward needs: of each query of a block of rows, its weights and their gradients.
fn backward_scores(heads: Heads, longest: usize) -> usize {
    2 * BACKWARD_ROWS * heads.group() * longest.next_multiple_of(16)
}

/// Bytes of scratch that the backward of `n` rows takes at most.
pub fn attention_backward_scratch_bytes(cpu: &Cpu, heads: Heads, n: usize) -> u64 {
    Cpu::scratch_bytes(4 * cpu.n_threads() * backward_scores(heads, n))
}

/// Spans times key heads, dealt out among as many workers as compute.
struct Backward<'a> {
    dq: Shared<f32>,
    dk: Shared<f32>,
    dv: Shared<f32>,
    dout: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    spans: &'a [Range<usize>],
    heads: Heads,
    next: AtomicUsize,
    scores: Shared<f32>,
    n_scores: usize,
}

/// Terms a x with x a vector: one for each of `inner`, for each of `outer`, in this order.
#[derive(Clone, Copy)]
struct Terms {
    a: *const f32,
    x: *const f32,
    outer: Steps,
    inner: Steps,
}

/// So many, whose weights and vectors lie so far apart.
#[derive(Clone, Copy)]
struct Steps {
    n: usize,
    a: usize,
    x: usize,
}

/// y[0..d] += the terms, one after the other.
#[inline(always)]
unsafe fn add_terms<V: Lanes>(y: *mut f32, terms: Terms, d: usize) {
    let mut c = 0;
    // SAFETY: the caller's: every weight and `d` elements of every vector are readable, and as many of y writable.
    unsafe {
        while c + 64 <= d {
            add_columns::<V, 4>(y, terms, c, 16);
            c += 64;
        }
        while c < d {
            let n = (d - c).min(16);
            add_columns::<V, 1>(y, terms, c, n);
            c += n;
        }
    }
}

/// The same for `N` vectors of `n` columns from `c` on, held in registers.
#[inline(always)]
unsafe fn add_columns<V: Lanes, const N: usize>(y: *mut f32, terms: Terms, c: usize, n: usize) {
    let Terms { a, x, outer, inner } = terms;
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [V::zero(); N];
        for (v, acc) in acc.iter_mut().enumerate() {
            *acc = V::load_up_to(y.add(c + 16 * v), n);
        }
        for u in 0..outer.n {
            let (a, x) = (a.add(u * outer.a), x.add(u * outer.x + c));
            for t in 0..inner.n {
                let (a, x) = (V::splat(*a.add(t * inner.a)), x.add(t * inner.x));
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = a.fma(V::load_up_to(x.add(16 * v), n), *acc);
                }
            }
        }
        for (v, acc) in acc.iter().enumerate() {
            acc.store_rounded(y.add(c + 16 * v), n, false);
        }
    }
}

/// out[s] = x . w[s] for rows w that lie `stride` apart.
#[inline(always)]
unsafe fn dots<V: Lanes>(x: *const f32, w: *const f32, stride: usize, n: usize, d: usize, out: &mut [f32]) {
    // SAFETY: the caller's: x and each of the `n` rows of w have `d` readable elements.
    unsafe {
        let mut s = 0;
        while s < n {
            if V::COLUMNS == 8 && s + 8 <= n {
                let y = tile::<V, Wide<f32>, 1, 8>([x], std::array::from_fn(|c| w.add((s + c) * stride)), d);
                out[s..s + 8].copy_from_slice(&y[0]);
                s += 8;
            } else if s + 4 <= n {
                let y = tile::<V, Wide<f32>, 1, 4>([x], std::array::from_fn(|c| w.add((s + c) * stride)), d);
                out[s..s + 4].copy_from_slice(&y[0]);
                s += 4;
            } else {
                out[s] = tile::<V, Wide<f32>, 1, 1>([x], [w.add(s * stride)], d)[0][0];
                s += 1;
            }
        }
    }
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, worker: usize) {
        // SAFETY: each worker has its own scores.
        let scores = unsafe { self.scores.slice(worker * self.n_scores, self.n_scores) };
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.spans.len() * self.heads.n_kv_heads {
                return;
            }
            // SAFETY: the caller's contract; the counter gives each piece once.
            unsafe { self.piece::<V>(piece, scores) };
        }
    }
}

impl Backward<'_> {
    /// The gradients of one span under one key head.
    ///
    /// # Safety
    /// The contract of [`Lanes`]; each piece is computed once, with scores of its own.
    #[inline(always)]
    unsafe fn piece<V: Lanes>(&self, index: usize, scores: &mut [f32]) {
        let Heads { n_heads, n_kv_heads, head_dim: d, .. } = self.heads;
        let (span, g) = (&self.spans[index / n_kv_heads], index % n_kv_heads);
        let (group, stride) = (self.heads.group(), n_kv_heads * d);
        let start = (span.start * n_kv_heads + g) * d;
        let len = self.n_scores / (2 * BACKWARD_ROWS * group);
        let (p, ds) = scores.split_at_mut(self.n_scores / 2);
        // SAFETY: a piece owns one key head of one span: those rows of dk and dv, and the group's heads of dq.
        unsafe {
            let (k, v) = (self.k.as_ptr().add(start), self.v.as_ptr().add(start));
            for i in 0..span.len() {
                self.dk.slice(start + i * stride, d).fill(0.0);
                self.dv.slice(start + i * stride, d).fill(0.0);
            }
            for first in (0..span.len()).step_by(BACKWARD_ROWS) {
                let rows = first..span.len().min(first + BACKWARD_ROWS);
                let query = |i: usize, h: usize| ((span.start + i) * n_heads + g * group + h) * d;
                for (i, h) in rows.clone().flat_map(|i| (0..group).map(move |h| (i, h))) {
                    let (at, of) = (query(i, h), ((i - first) * group + h) * len);
                    let (p, ds) = (&mut p[of..=of + i], &mut ds[of..=of + i]);
                    self.weigh::<V>(at, (k, v), stride, (p, ds));
                    self.dq.slice(at, d).fill(0.0);
                    let (outer, inner) = (Steps { n: 1, a: 0, x: 0 }, Steps { n: i + 1, a: 1, x: stride });
                    let terms = Terms { a: ds.as_ptr(), x: k, outer, inner };
                    add_terms::<V>(self.dq.at(at), terms, d);
                }
                for s in 0..rows.end {
                    // Rows that come before a position do not see it.
                    let i = first.max(s);
                    let from = (i - first) * group * len + s;
                    let outer = Steps { n: rows.end - i, a: group * len, x: n_heads * d };
                    let inner = Steps { n: group, a: len, x: d };
                    let (q, dout) = (self.q.as_ptr().add(query(i, 0)), self.dout.as_ptr().add(query(i, 0)));
                    let keys = Terms { a: ds.as_ptr().add(from), x: q, outer, inner };
                    add_terms::<V>(self.dk.at(start + s * stride), keys, d);
                    let values = Terms { a: p.as_ptr().add(from), x: dout, outer, inner };
                    add_terms::<V>(self.dv.at(start + s * stride), values, d);
                }
            }
        }
    }

    /// The weights of the query at element `at`, and the gradients of its scores, over as many positions as `p` has.
    ///
    /// # Safety
    /// The contract of [`Lanes`]; keys and values have as many rows.
    #[inline(always)]
    unsafe fn weigh<V: Lanes>(
        &self,
        at: usize,
        (k, v): (*const f32, *const f32),
        stride: usize,
        (p, ds): (&mut [f32], &mut [f32]),
    ) {
        let (n, d, scale) = (p.len(), self.heads.head_dim, self.heads.scale);
        // SAFETY: the caller's.
        unsafe {
            dots::<V>(self.q.as_ptr().add(at), k, stride, n, d, p);
            let sum = softmax::<V>(p.as_mut_ptr(), n, scale);
            dots::<V>(self.dout.as_ptr().add(at), v, stride, n, d, ds);
            let mut mean = 0.0f32;
            for (p, dp) in p.iter_mut().zip(ds.iter()) {
                *p /= sum;
                mean += *p * dp;
            }
            for (p, ds) in p.iter().zip(ds) {
                *ds = p * (*ds - mean) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests;
