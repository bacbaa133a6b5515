//! The end of a model: logits of some rows, of the residual stream through the final norm or of what is normed already.
//!
//! x [N, C], logits [R, V] f32 in any compute. stats [R, ceil(V/16), 2] f32 exist on a GPU alone: the
//! largest x of each 16 ids and the sum of e^(x - largest), from which log-probs and draws are made without reading all
//! logits again.

use super::draws::sample_row_on;
use super::logprob::{logprobs_on, top_k_on};
use super::{Sampled, Sampling, gather_rows, linear_forward_f32, logprobs_of, rmsnorm_forward, sample_token, top_k};
use crate::backend::cuda::Buffer;
use crate::backend::{Compute, Device, Tensor};
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
    pub fn first(n: usize) -> RowList {
        RowList { rows: (0..n).collect(), listed: None }
    }

    /// Any rows. Waits for their upload on a GPU.
    pub fn of(device: &Device, rows: &[usize]) -> Result<RowList> {
        let listed = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => {
                let buffer = cuda.allocate(4 * rows.len())?;
                let bytes: Vec<u8> = rows.iter().flat_map(|&r| (r as u32).to_ne_bytes()).collect();
                buffer.write(&bytes)?;
                Some(buffer)
            }
        };
        Ok(RowList { rows: rows.to_vec(), listed })
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

    /// The statistics of a head on a GPU.
    pub fn stats(&self) -> &Tensor {
        self.stats.as_ref().expect("a head on a GPU has statistics")
    }
}

/// Log-prob of `ids[i]` under row i of the head's logits.
pub fn logprobs_of_head(device: &Device, head: &Head, ids: &[i32]) -> Result<Vec<f32>> {
    match device {
        Device::Cpu(_) => Ok(logprobs_of(device, &head.logits, ids, ids.len())),
        Device::Cuda(cuda) => logprobs_on(cuda, &head.logits, head.stats(), ids),
    }
}

/// The `k` likeliest ids of a row of the head's logits, with their log-probs.
pub fn top_k_of_head(device: &Device, head: &Head, row: usize, k: usize) -> Result<Vec<(i32, f32)>> {
    match device {
        Device::Cpu(_) => Ok(top_k(device, &head.logits, row, k)),
        Device::Cuda(cuda) => top_k_on(cuda, &head.logits, head.stats(), row, k),
    }
}

/// Draws from a row of the head's logits, and waits for it.
pub fn sample_row(device: &Device, head: &Head, row: usize, sampling: Sampling, u: f32) -> Result<Sampled> {
    match device {
        Device::Cpu(_) => Ok(sample_token(device, &head.logits, row, sampling, u)),
        Device::Cuda(cuda) => sample_row_on(cuda, &head.logits, head.stats(), row, sampling, u),
    }
}

/// Logits (and statistics) of rows of x [N, C], through a norm (its weight and eps) where one is given: row i of the
/// list in row i of `head.logits`.
pub fn head_forward(
    device: &Device,
    head: &mut Head,
    x: &Tensor,
    norm: Option<(&Tensor, f32)>,
    w: &Tensor,
    rows: &RowList,
    compute: Compute,
) {
    let n = rows.len();
    gather_rows(device, &mut head.gathered, x, rows.rows());
    let hidden = match norm {
        Some((norm, eps)) => {
            rmsnorm_forward(device, &mut head.hidden, &head.gathered, norm, n, eps, compute);
            &head.hidden
        }
        None => &head.gathered,
    };
    linear_forward_f32(device, &mut head.logits, hidden, w, n, compute);
}
