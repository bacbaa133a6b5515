//! The end of a model: logits of some rows, of the residual stream through the final norm or of what is normed already.
//!
//! x [N, C], logits [R, V] f32 in any compute. stats [R, ceil(V/16), 2] f32 exist on a GPU alone: the
//! largest x of each 16 ids and the sum of e^(x - largest), from which log-probs and draws are made without reading all
//! logits again.

use super::logprob::{logprobs_on, top_k_on};
use super::{Norm, gather_rows, linear_forward_f32, logprobs_of, rmsnorm_forward, top_k};
use crate::backend::cuda::rows::{self, HeadProduct};
use crate::backend::cuda::{Buffer, Cuda};
use crate::backend::terms::MAX_DECODE_ROWS;
use crate::backend::{Compute, Device, Matrix, Tensor, host};
use crate::error::Result;
use crate::tensor::Dtype;

/// Ids of a piece of statistics.
pub const STATS_IDS: usize = 16;

/// Rows of a tensor: the first few, or a list.
pub struct RowList {
    rows: Vec<usize>,
    /// [R] u32 on a GPU; None: row i is row i
    listed: Option<Buffer>,
}

impl RowList {
    /// Rows 0 to n - 1.
    pub fn first(n: usize) -> Result<RowList> {
        Ok(RowList { rows: host::collected(0..n)?, listed: None })
    }

    /// Any rows. Waits for their upload on a GPU.
    pub fn of(device: &Device, rows: &[usize]) -> Result<RowList> {
        let listed = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => {
                let buffer = cuda.allocate(4 * rows.len())?;
                buffer.write_by(|at, piece| {
                    let words = piece.chunks_exact_mut(4).zip(&rows[at / 4..]);
                    words.for_each(|(to, &row)| to.copy_from_slice(&(row as u32).to_ne_bytes()));
                })?;
                Some(buffer)
            }
        };
        Ok(RowList { rows: host::collected(rows.iter().copied())?, listed })
    }

    /// The rows.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The list on the GPU, u32; 0 where row i is row i.
    pub fn address(&self) -> u64 {
        self.listed.as_ref().map_or(0, Buffer::address)
    }
}

/// Results of the head, kept from step to step.
pub struct Head {
    /// [R, C] rows of x
    pub gathered: Tensor,
    /// [R, C] after the final norm; unwritten on a GPU where few rows are wanted
    pub hidden: Tensor,
    /// [R, V] f32
    pub logits: Tensor,
    /// [R, ceil(V/16), 2] f32 on a GPU
    pub stats: Option<Tensor>,
}

impl Head {
    /// Room for `n_rows` rows.
    pub fn new(device: &Device, n_rows: usize, hidden_size: usize, vocab_size: usize) -> Result<Head> {
        let dtype = device.activation_dtype();
        let stats = match device {
            Device::Cpu(_) => None,
            Device::Cuda(_) => Some(Tensor::on(device, Dtype::F32, &[n_rows, vocab_size.div_ceil(STATS_IDS), 2])?),
        };
        Ok(Head {
            gathered: Tensor::on(device, dtype, &[n_rows, hidden_size])?,
            hidden: Tensor::on(device, dtype, &[n_rows, hidden_size])?,
            logits: Tensor::on(device, Dtype::F32, &[n_rows, vocab_size])?,
            stats,
        })
    }

    /// Bytes of `n_rows` rows.
    pub fn bytes(device: &Device, n_rows: usize, hidden_size: usize, vocab_size: usize) -> u64 {
        let stats = match device {
            Device::Cpu(_) => 0,
            Device::Cuda(_) => device.taken(n_rows * 2 * vocab_size.div_ceil(STATS_IDS) * Dtype::F32.size()),
        };
        let hidden = device.taken(n_rows * hidden_size * device.activation_dtype().size());
        2 * hidden + device.taken(n_rows * vocab_size * Dtype::F32.size()) + stats
    }

    /// Bytes that it has.
    pub fn taken(&self) -> u64 {
        let stats = self.stats.as_ref().map_or(0, Tensor::taken);
        self.gathered.taken() + self.hidden.taken() + self.logits.taken() + stats
    }

    /// The first `v` logits of a row [1, v], as if it had no more. On the CPU.
    pub fn part(&self, row: usize, v: usize) -> Result<Tensor> {
        let width = self.logits.extent(1);
        let v = v.min(width);
        Tensor::from_f32(&[1, v], &self.logits.f32()[row * width..][..v])
    }

    /// The statistics of a head on a GPU.
    pub fn stats(&self) -> &Tensor {
        self.stats.as_ref().expect("a head on a GPU has statistics")
    }
}

/// Log-prob of `ids[i]` under row i of the head's logits.
pub fn logprobs_of_head(device: &Device, head: &Head, ids: &[i32]) -> Result<Vec<f32>> {
    match device {
        Device::Cpu(_) => logprobs_of(device, &head.logits, ids, ids.len()),
        Device::Cuda(cuda) => logprobs_on(cuda, &head.logits, head.stats(), ids),
    }
}

/// The `k` likeliest ids of a row of the head's logits, with their log-probs.
pub fn top_k_of_head(device: &Device, head: &Head, row: usize, k: usize) -> Result<Vec<(i32, f32)>> {
    match device {
        Device::Cpu(_) => top_k(device, &head.logits, row, k),
        Device::Cuda(cuda) => top_k_on(cuda, &head.logits, head.stats(), row, k),
    }
}

/// The same of the first `v` ids alone, as if the row had no more. On the CPU.
pub fn top_k_of_head_among(device: &Device, head: &Head, row: usize, v: usize, k: usize) -> Result<Vec<(i32, f32)>> {
    top_k(device, &head.part(row, v)?, 0, k)
}

/// Logits (and statistics) of rows of x [N, C], through a norm where one is given; w [V, C]: row i of the list in row i of
/// `head.logits`.
pub fn head_forward(
    device: &Device,
    head: &mut Head,
    x: &Tensor,
    norm: Option<Norm>,
    w: &Matrix,
    rows: &RowList,
    compute: Compute,
) -> Result<()> {
    if let Device::Cuda(cuda) = device {
        head_on(cuda, head, x, norm, w.dense(), rows);
        return Ok(());
    }
    let n = rows.len();
    gather_rows(device, &mut head.gathered, x, rows.rows());
    let hidden = match norm {
        Some(norm) => {
            rmsnorm_forward(device, &mut head.hidden, &head.gathered, norm, n, compute);
            &head.hidden
        }
        None => &head.gathered,
    };
    linear_forward_f32(device, &mut head.logits, hidden, w.into(), n, compute)
}

/// On a GPU, where the product finds the rows by itself, and up to MAX_DECODE_ROWS of them read the matrix once.
fn head_on(cuda: &Cuda, head: &mut Head, x: &Tensor, norm: Option<Norm>, w: &Tensor, rows: &RowList) {
    let (n, v, c) = (rows.len(), w.extent(0), w.extent(1));
    assert!(x.extent(1) == c && rows.rows().iter().all(|&r| r < x.extent(0)), "{n} rows of {x:?}, w {w:?}");
    assert!(head.logits.extent(0) >= n && head.logits.extent(1) == v, "logits are {:?}, w {w:?}", head.logits);
    let stats = head.stats.as_ref().expect("a head on a GPU has statistics").address();
    let norm = norm.map(|norm| norm.on_gpu());
    let few = HeadProduct {
        logits: head.logits.address(),
        stats,
        x: x.bf16_address(),
        rows: rows.address(),
        norm,
        w: w.bf16_address(),
        n,
        v,
        c,
    };
    if n == 0 {
        return;
    }
    if norm.is_some() && rows::norms_within(cuda, n, c) {
        return rows::head(cuda, &few);
    }
    let mut of = few;
    if let Some(norm) = norm {
        assert!(head.hidden.extent(0) >= n && head.hidden.extent(1) == c, "hidden is {:?}", head.hidden);
        let hidden = head.hidden.bf16_address();
        rows::rmsnorm(cuda, hidden, few.x, few.rows, norm, n, c);
        of = HeadProduct { x: hidden, rows: 0, norm: None, ..few };
    }
    for first in (0..n).step_by(MAX_DECODE_ROWS) {
        let at = first as u64;
        rows::head(
            cuda,
            &HeadProduct {
                logits: of.logits + at * 4 * v as u64,
                stats: of.stats + at * 8 * v.div_ceil(STATS_IDS) as u64,
                x: if of.rows == 0 { of.x + at * 2 * c as u64 } else { of.x },
                rows: if of.rows == 0 { 0 } else { of.rows + at * 4 },
                n: (n - first).min(MAX_DECODE_ROWS),
                ..of
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;

    fn statistics(logits: &[f32], v: usize) -> Vec<f64> {
        let piece = |x: &[f32]| {
            let most = x.iter().copied().fold(f32::MIN, f32::max) as f64;
            [most, x.iter().map(|&x| (x as f64 - most).exp()).sum()]
        };
        logits.chunks(v).flat_map(|row| row.chunks(STATS_IDS).flat_map(piece)).collect()
    }

    #[test]
    fn the_head_on_a_gpu_equals_the_cpu_and_its_rows_do_not_depend_on_their_number() {
        for (v, c) in [(1, 32), (17, 96), (411, 160)] {
            let x = rounded(&random(1, &[140, c]));
            let norm = stored(&random(2, &[c]), Dtype::Bf16);
            let w = stored(&random(3, &[v, c]), Dtype::Bf16);
            let run = |device: &Device, [x, norm, w]: [&Tensor; 3], norms: bool, rows: &RowList| {
                let mut head = Head::new(device, rows.len(), c, v).unwrap();
                head_forward(
                    device,
                    &mut head,
                    x,
                    norms.then_some(Norm { weight: norm, eps: 1e-5 }),
                    &matrix(w),
                    rows,
                    Compute::Bf16,
                )
                .unwrap();
                head
            };
            let scattered: Vec<usize> = (0..140).map(|i| i * 37 % 140).collect();
            for norms in [true, false] {
                let all = RowList::of(&device(), &scattered).unwrap();
                let wanted = wide(&run(&device(), [&x, &norm, &w], norms, &all).logits);
                for gpu in gpus() {
                    let [x, norm, w] = [&x, &norm, &w].map(|t| bf16_on(&gpu, t));
                    let of = |list: &[usize]| {
                        let head = run(&gpu, [&x, &norm, &w], norms, &RowList::of(&gpu, list).unwrap());
                        let logits = read(&head.logits);
                        let stats = read(head.stats.as_ref().unwrap());
                        assert_close("stats", &stats, &statistics(&logits, v), 1e-5);
                        logits
                    };
                    let judge = of(&scattered);
                    assert_close("logits", &judge, &wanted, 1.0 / 64.0);
                    for n in ROW_COUNTS {
                        assert_same_bits("logits by the row count", &of(&scattered[..n]), &judge[..n * v]);
                    }
                    assert_same_bits("a row alone", &of(&scattered[9..10]), &judge[9 * v..10 * v]);
                    let listed = of(&(0..9).collect::<Vec<_>>());
                    let first = run(&gpu, [&x, &norm, &w], norms, &RowList::first(9).unwrap());
                    assert_same_bits("the first rows", &read(&first.logits), &listed);
                }
            }
        }
    }
}
