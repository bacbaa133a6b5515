//! What the ops' kernels take: on the CPU any model, on a GPU the extents that they were made for.
#![forbid(unsafe_code)]

use super::logprob::select_bytes;
use crate::backend::Device;
use crate::backend::cuda::rows;
use crate::error::{Error, Fault, Result};

/// The extents of a model that kernels depend on.
#[derive(Clone, Copy, Debug)]
pub struct Extents {
    /// C
    pub hidden_size: usize,
    /// V
    pub vocab_size: usize,
    /// F, of every feed-forward block
    pub ffn_size: usize,
    /// D
    pub head_dim: usize,
    /// H
    pub n_heads: usize,
    /// G
    pub n_kv_heads: usize,
    /// E; 0 without experts
    pub n_experts: usize,
    /// k; 0 without experts
    pub n_experts_per_token: usize,
    /// whether a projection has a bias
    pub is_biased: bool,
}

/// Refuses, with `NoKernels`, extents that its kernels were not made for.
pub fn check_extents(device: &Device, e: &Extents) -> Result<()> {
    let Device::Cuda(cuda) = device else { return Ok(()) };
    let shared = cuda.facts().shared_bytes as usize;
    let group = e.n_heads / e.n_kv_heads.max(1);
    let experts = e.n_experts_per_token;
    let demands = [
        (e.hidden_size.is_multiple_of(32), format!("a hidden size that is a multiple of 32, not {}", e.hidden_size)),
        (e.ffn_size.is_multiple_of(32), format!("an intermediate size that is a multiple of 32, not {}", e.ffn_size)),
        (rows::norm_bytes(1, e.hidden_size) <= shared, format!("a smaller hidden size than {}", e.hidden_size)),
        (select_bytes(e.vocab_size) <= shared, format!("a smaller vocabulary than {} ids", e.vocab_size)),
        ([32, 64, 128].contains(&e.head_dim), format!("heads of 32, 64 or 128, not {}", e.head_dim)),
        (group <= 8, format!("at most 8 query heads a key head, not {group}")),
        (e.n_experts <= 256, format!("at most 256 experts, not {}", e.n_experts)),
        (experts <= 8, format!("at most 8 experts a token, not {experts}")),
        (!e.is_biased, "projections without biases".into()),
    ];
    match demands.into_iter().find(|(met, _)| !met) {
        Some((_, wanted)) => {
            let why = format!("the cuda backend has kernels for {wanted}; use the cpu backend");
            Err(Error::new(Fault::NoKernels, why))
        }
        None => Ok(()),
    }
}
