//! The projections before attention: normed = rmsnorm(stream) * w, then q, k, v = normed times their matrices.
//!
//! stream, normed [N, C]; q [N, H*D], k, v [N, G*D]; rounding after the norm and after each projection. One op, because a
//! GPU reads the stream once and launches once.

use super::{linear_forward, rmsnorm_forward};
use crate::backend::{Compute, Device, Tensor};

/// Results of `qkv_forward`. A GPU may leave `normed` unwritten.
pub struct Qkv<'a> {
    /// [N, C]
    pub normed: &'a mut Tensor,
    /// [N, H*D]
    pub q: &'a mut Tensor,
    /// [N, G*D]
    pub k: &'a mut Tensor,
    /// [N, G*D]
    pub v: &'a mut Tensor,
}

/// Overwrites the first `n` rows of the results; `w` are the matrices of q, k and v.
#[allow(clippy::too_many_arguments)] // the op's tensors
pub fn qkv_forward(
    device: &Device,
    out: Qkv,
    stream: &Tensor,
    norm: &Tensor,
    w: (&Tensor, &Tensor, &Tensor),
    n: usize,
    eps: f32,
    compute: Compute,
) {
    rmsnorm_forward(device, out.normed, stream, norm, n, eps, compute);
    linear_forward(device, out.q, out.normed, w.0, n, compute);
    linear_forward(device, out.k, out.normed, w.1, n, compute);
    linear_forward(device, out.v, out.normed, w.2, n, compute);
}
