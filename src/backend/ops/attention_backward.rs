//! The gradients of causal attention over whole packed sequences.
//!
//! With p the softmax weights of a query at position i and P_s = dout . v\[s\], s <= i:
//! dv\[s\] += p_s dout;  ds = p_s (P_s - sum p P) scale;  dq += ds k\[s\];  dk\[s\] += ds q.
//!
//! The queries go by in waves of `WAVE` positions of every sequence: first the weights of a wave and their gradients, with the
//! gradients of its queries (tasks: rows of a sequence under one key head), then what they add to keys and values (tasks: keys
//! of a sequence under one key head). So one sequence has work for four threads a key head, no weight is computed twice, and
//! what is held is a wave's, never T x T. Tiles weigh positions behind a query's own with 0: a number there that is not finite
//! reaches the gradients of the rows before it in its task, of a batch whose own are not finite then.
//!
//! Scores are canonical dots, as the forward's; sums over positions that end in one number run in sixteen lanes by s mod 16;
//! every gradient adds its terms in the order of positions, and of heads within one. Waves, tiles and threads change no bit.

use std::ops::Range;

use super::attention::{KeysValues, Slots, score_all, softmax};
use super::fill;
use crate::backend::cpu::dot::Wide;
use crate::backend::cpu::outer::{Rows, Steps, TILE, Terms, add};
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared};
use crate::backend::host;
use crate::backend::terms::Heads;
use crate::backend::{Device, Tensor};
use crate::error::Result;

/// Gradients that `attention_backward` overwrites.
pub struct AttentionGradients<'a> {
    /// [N, H*D]
    pub dq: &'a mut Tensor,
    /// [N, G*D]
    pub dk: &'a mut Tensor,
    /// [N, G*D]
    pub dv: &'a mut Tensor,
}

/// Positions of a sequence whose weights are held at once.
const WAVE: usize = 48;
/// Of them, those of one task: two register tiles of rows.
const ROWS: usize = 12;
/// Keys of a task that adds to them, and those that pass by all queries of a task before the next ones do: whole tiles.
const KEYS: usize = 72;

/// The gradients of attention; `spans` are row ranges that start at position 0, and together the first N rows.
///
/// q, dout [N, H*D]; k, v [N, G*D]; all f32, k and v as stored in the cache. Overwrites N rows of dq, dk and dv.
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
    // By these bounds every offset below lies in its operand, and no two tasks of a launch write the same.
    let n = spans.iter().fold(0, |end, span| {
        assert!(
            span.start == end && span.end >= end,
            "spans stand side by side from row 0 on, found {span:?} behind {end}"
        );
        span.end
    });
    assert!([q, dout, k, v, &*dq, &*dk, &*dv].iter().all(|t| t.extent(0) >= n), "{n} rows are wanted");
    let longest = spans.iter().map(Range::len).max().unwrap_or(0);
    let waves = (0..longest).step_by(WAVE);
    let weights = |first| spans.iter().map(|span| Part::of(span, first, 0).n_weights()).sum::<usize>();
    let n_weights = heads.n_heads * waves.clone().map(weights).max().unwrap_or(0);
    let mut scratch = cpu.scratch::<f32>(2 * n_weights)?;
    let (p, ds) = scratch.split_at_mut(n_weights);
    // A wave has most tasks of either kind at its longest.
    let most = |span: &Range<usize>| WAVE.div_ceil(ROWS).max(span.len().div_ceil(KEYS));
    let mut tasks = host::with_room(spans.iter().map(most).sum())?;
    for t in [&mut *dq, &mut *dk, &mut *dv] {
        fill(device, t, 0.0, n);
    }
    let wave = Wave {
        dq: Shared::new(dq.f32_mut()),
        dk: Shared::new(dk.f32_mut()),
        dv: Shared::new(dv.f32_mut()),
        dout: dout.f32(),
        q: q.f32(),
        k: k.f32(),
        v: v.f32(),
        heads,
        p: Shared::new(p),
        ds: Shared::new(ds),
    };
    for first in waves {
        let parts = || {
            spans.iter().filter(|span| span.len() > first).scan(0, |held, span| {
                let part = Part::of(span, first, *held);
                *held += part.n_weights();
                Some(part)
            })
        };
        deal(&mut tasks, parts(), ROWS, |part| part.first..part.end);
        cpu.launch(tasks.len() * heads.n_kv_heads, &Weigh { of: &wave, tasks: &tasks });
        deal(&mut tasks, parts(), KEYS, |part| 0..part.end);
        cpu.launch(tasks.len() * heads.n_kv_heads, &Add { of: &wave, tasks: &tasks });
    }
    Ok(())
}

/// Positions of a part that one task takes.
type Piece = (Part, Range<usize>);

/// Cuts `positions` of every part into pieces of `n`.
fn deal(pieces: &mut Vec<Piece>, parts: impl Iterator<Item = Part>, n: usize, positions: fn(&Part) -> Range<usize>) {
    pieces.clear();
    for part in parts {
        let all = positions(&part);
        pieces.extend(all.clone().step_by(n).map(|at| (part, at..all.end.min(at + n))));
    }
}

/// Bytes of scratch that the backward of `n` rows takes at most.
pub fn attention_backward_scratch_bytes(heads: Heads, n: usize) -> u64 {
    Cpu::scratch_bytes(2 * size_of::<f32>() * heads.n_heads * n.min(WAVE) * n)
}

/// What a wave has of a span.
#[derive(Clone, Copy)]
struct Part {
    /// the span's first row
    row: usize,
    /// its positions
    first: usize,
    end: usize,
    /// weights of one head that the parts before it hold
    held: usize,
}

impl Part {
    fn of(span: &Range<usize>, first: usize, held: usize) -> Part {
        let end = span.len().min(first + WAVE);
        Part { row: span.start, first: first.min(end), end, held }
    }

    /// Weights of one head: of each of its positions, over all up to the wave's last.
    fn n_weights(&self) -> usize {
        (self.end - self.first) * self.end
    }
}

/// Operands and results, and what a wave holds of its queries: for each part, for each key head, for each position and head of
/// the group, a row of weights over positions from 0 to the part's end, 0 behind its own.
struct Wave<'a> {
    dq: Shared<f32>,
    dk: Shared<f32>,
    dv: Shared<f32>,
    dout: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: Heads,
    p: Shared<f32>,
    ds: Shared<f32>,
}

impl Wave<'_> {
    /// Element of q, dq and dout where head `h` of group `g` begins, of the row at `position`.
    fn query(&self, part: &Part, position: usize, g: usize, h: usize) -> usize {
        let Heads { n_heads, head_dim, .. } = self.heads;
        ((part.row + position) * n_heads + g * self.heads.group() + h) * head_dim
    }

    /// Element of k, v, dk and dv where key head `g` begins, of the row at `position`.
    fn key(&self, part: &Part, position: usize, g: usize) -> usize {
        ((part.row + position) * self.heads.n_kv_heads + g) * self.heads.head_dim
    }

    /// Element of the weights where those of head `h` of group `g` begin, of the query at `position`.
    fn weight(&self, part: &Part, position: usize, g: usize, h: usize) -> usize {
        let group = self.heads.group();
        let rows = part.held * self.heads.n_heads + g * group * part.n_weights();
        rows + ((position - part.first) * group + h) * part.end
    }
}

/// Weights and their gradients, and the gradients of queries. A task: positions of a part, under one key head.
struct Weigh<'a> {
    of: &'a Wave<'a>,
    tasks: &'a [Piece],
}

impl Kernel for Weigh<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let wave = self.of;
        let Heads { n_heads, n_kv_heads, head_dim: d, scale } = wave.heads;
        let (g, (part, positions)) = (index % n_kv_heads, &self.tasks[index / n_kv_heads]);
        let (group, row) = (wave.heads.group(), n_kv_heads * d);
        let n_queries = positions.len() * group;
        let at = wave.weight(part, positions.start, g, 0);
        // SAFETY: the task's rows of weights and of dq are its own, and every offset lies in the operands by the parts' bounds.
        unsafe {
            let (p, ds) = (wave.p.at(at), wave.ds.at(at));
            let query = |m: usize| wave.query(part, positions.start + m / group, g, m % group);
            for s in (0..positions.end).step_by(KEYS) {
                let n = KEYS.min(positions.end - s);
                let of = wave.key(part, s, g);
                let (k, v) = (wave.k.as_ptr().add(of), wave.v.as_ptr().add(of));
                let (keys, values) = (Slots { at: k, stride: row, n }, Slots { at: v, stride: row, n });
                score_all::<V, Wide<f32>>(n_queries, |m| wave.q.as_ptr().add(query(m)), keys, d, p.add(s), part.end);
                score_all::<V, Wide<f32>>(
                    n_queries,
                    |m| wave.dout.as_ptr().add(query(m)),
                    values,
                    d,
                    ds.add(s),
                    part.end,
                );
            }
            for m in 0..n_queries {
                let (p, ds, n) = (p.add(m * part.end), ds.add(m * part.end), positions.start + m / group + 1);
                gradients_of_scores::<V>(p, ds, n, scale);
                // Tiles below and `Add` reach beyond a query's own position.
                p.add(n).write_bytes(0, part.end - n);
                ds.add(n).write_bytes(0, part.end - n);
            }
            for s in (0..positions.end).step_by(2 * KEYS) {
                let inner = Steps { n: (2 * KEYS).min(positions.end - s), a: 1, b: row };
                let b = wave.k.as_ptr().add(wave.key(part, s, g));
                for h in 0..group {
                    let a = ds.add(h * part.end + s);
                    let terms = Terms { a, a_row: group * part.end, b, outer: Steps::ONE, inner };
                    let to = wave.dq.at(wave.query(part, positions.start, g, h));
                    add::<V, f32>(Rows { at: to, stride: n_heads * d, n: positions.len() }, terms, d);
                }
            }
        }
    }
}

/// Replaces `n` scores by their weights, and as many dout . v by the gradients of the scores.
///
/// # Safety
/// The contract of [`Lanes`]; `n` of each are readable and writable.
#[inline(always)]
unsafe fn gradients_of_scores<V: Lanes>(p: *mut f32, ds: *mut f32, n: usize, scale: f32) {
    // SAFETY: the caller's.
    unsafe {
        let sum = V::splat(softmax::<V>(p, n, scale));
        let mut mean = V::zero();
        for s in (0..n).step_by(16) {
            let count = (n - s).min(16);
            let weight = V::load_up_to(p.add(s), count).div(sum);
            weight.store_rounded(p.add(s), count, false);
            mean = weight.fma(V::load_up_to(ds.add(s), count), mean);
        }
        let (mean, scale) = (V::splat(mean.reduce_add()), V::splat(scale));
        for s in (0..n).step_by(16) {
            let count = (n - s).min(16);
            let from_mean = V::load_up_to(ds.add(s), count).sub(mean);
            let ds_of = V::load_up_to(p.add(s), count).mul(from_mean).mul(scale);
            ds_of.store_rounded(ds.add(s), count, false);
        }
    }
}

/// What the queries of a wave add to the gradients of keys and values. A task: positions of a part's sequence, under one key
/// head.
struct Add<'a> {
    of: &'a Wave<'a>,
    tasks: &'a [Piece],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let wave = self.of;
        let Heads { n_heads, n_kv_heads, head_dim: d, .. } = wave.heads;
        let (g, (part, keys)) = (index % n_kv_heads, &self.tasks[index / n_kv_heads]);
        let group = wave.heads.group();
        for s in keys.clone().step_by(TILE) {
            // Queries that come before a key do not see it; those of a tile's first key weigh its others with 0.
            let first = part.first.max(s);
            let n = TILE.min(keys.end - s);
            let outer = Steps { n: part.end - first, a: group * part.end, b: n_heads * d };
            let inner = Steps { n: group, a: part.end, b: d };
            let (a_at, b_at) = (wave.weight(part, first, g, 0) + s, wave.query(part, first, g, 0));
            let (to_row, stride) = (wave.key(part, s, g), n_kv_heads * d);
            // SAFETY: the task's rows of dk and dv are its own, and every offset lies in the operands by the parts' bounds.
            unsafe {
                for (to, a, b) in [(&wave.dk, &wave.ds, wave.q), (&wave.dv, &wave.p, wave.dout)] {
                    let rows = Rows { at: to.at(to_row), stride, n };
                    let terms = Terms { a: a.at(a_at), a_row: 1, b: b.as_ptr().add(b_at), outer, inner };
                    add::<V, f32>(rows, terms, d);
                }
            }
        }
    }
}
