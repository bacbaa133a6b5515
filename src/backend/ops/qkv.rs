//! The projections before attention: normed = rmsnorm(stream) * w, then q, k, v = normed times their matrices.
//!
//! stream, normed [N, C]; q [N, H*D], k, v [N, G*D]; rounding after the norm and after each projection. One op, because a
//! GPU reads the stream once and launches once.

use super::{linear_forward, rmsnorm_forward};
use crate::backend::batch::MAX_DECODE_ROWS;
use crate::backend::cuda::rows::{self, Norm, QkvProduct};
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
    if let Device::Cuda(cuda) = device
        && n <= MAX_DECODE_ROWS
    {
        let c = norm.extent(0);
        let (q_out, kv_out) = (w.0.extent(0), w.1.extent(0));
        for (y, w) in [(&*out.q, w.0), (&*out.k, w.1), (&*out.v, w.2)] {
            assert!(w.extent(1) == c && y.extent(0) >= n && y.extent(1) == w.extent(0), "{y:?} of {w:?}");
        }
        assert!(stream.extent(0) >= n && stream.extent(1) == c && w.2.extent(0) == kv_out, "stream is {stream:?}");
        let (x, norm) = if rows::norms_within(cuda, n, c) {
            (stream, Some(Norm { weight: norm.bf16_address(), eps }))
        } else {
            rmsnorm_forward(device, out.normed, stream, norm, n, eps, compute);
            (&*out.normed, None)
        };
        let out = [out.q, out.k, out.v].map(|t| t.bf16_address());
        let w = [w.0, w.1, w.2].map(Tensor::bf16_address);
        return rows::qkv(cuda, &QkvProduct { out, x: x.bf16_address(), norm, w, n, c, q_out, kv_out });
    }
    rmsnorm_forward(device, out.normed, stream, norm, n, eps, compute);
    linear_forward(device, out.q, out.normed, w.0, n, compute);
    linear_forward(device, out.k, out.normed, w.1, n, compute);
    linear_forward(device, out.v, out.normed, w.2, n, compute);
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn qkv_on_a_gpu_equals_the_cpu_and_does_not_depend_on_the_row_count() {
        for (q_out, kv_out, c) in [(16, 16, 32), (64, 32, 96), (272, 48, 288)] {
            let stream = rounded(&random(1, &[70, c]));
            let norm = stored(&random(2, &[c]), Dtype::Bf16);
            let w = [(3, q_out), (4, kv_out), (5, kv_out)].map(|(seed, o)| stored(&random(seed, &[o, c]), Dtype::Bf16));
            let forward = |device: &Device, stream: &Tensor, norm: &Tensor, w: &[Tensor; 3]| {
                let n = stream.extent(0);
                let mut normed = room(device, n, c);
                let [mut q, mut k, mut v] = [q_out, kv_out, kv_out].map(|o| room(device, n, o));
                let out = Qkv { normed: &mut normed, q: &mut q, k: &mut k, v: &mut v };
                qkv_forward(device, out, stream, norm, (&w[0], &w[1], &w[2]), n, 1e-5, Compute::Bf16);
                [q, k, v]
            };
            let wanted = forward(&device(), &stream, &norm, &w).map(|t| wide(&t));
            for gpu in gpus() {
                let (norm, w) = (bf16_on(&gpu, &norm), w.each_ref().map(|t| bf16_on(&gpu, t)));
                let of = |rows: std::ops::Range<usize>| {
                    let stream = bf16_on(&gpu, &rows_of(&stream, rows));
                    forward(&gpu, &stream, &norm, &w).map(|t| read(&t))
                };
                let judge = of(0..64);
                for n in ROW_COUNTS {
                    for (i, y) in of(0..n).iter().enumerate() {
                        assert_close("y", y, &wanted[i][..y.len()], 1.0 / 64.0);
                        assert_same_bits("y by the row count", y, &judge[i][..y.len()]);
                    }
                }
                for row in [0, 7, 63] {
                    for (y, judge) in of(row..row + 1).iter().zip(&judge) {
                        assert_same_bits("a row alone", y, &judge[row * y.len()..(row + 1) * y.len()]);
                    }
                }
                let library = matches!(&gpu, Device::Cuda(cuda) if cuda.api().has_matmul());
                if !library {
                    for (y, judge) in of(0..70).iter().zip(&judge) {
                        assert_same_bits("a row among many", &y[..judge.len()], judge);
                    }
                }
            }
        }
    }
}
