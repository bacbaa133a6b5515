//! The projections before attention: normed = rmsnorm(stream) * w, then q, k, v = normed times their matrices.
//!
//! stream, normed [N, C]; q [N, H*D], k, v [N, G*D]; rounding after the norm and after each projection. One op, because a
//! GPU reads the stream once and launches once.

use super::{Norm, linear_forward, rmsnorm_forward};
use crate::backend::cuda::rows::{self, QkvProduct};
use crate::backend::terms::MAX_DECODE_ROWS;
use crate::backend::{Compute, Device, Tensor, Weight};
use crate::error::Result;

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

/// The matrices of `qkv_forward`.
#[derive(Clone, Copy)]
pub struct QkvWeights<'a> {
    /// [H*D, C]
    pub q: Weight<'a>,
    /// [G*D, C]
    pub k: Weight<'a>,
    /// [G*D, C]
    pub v: Weight<'a>,
}

/// Overwrites the first `n` rows of the results; stream [N, C].
pub fn qkv_forward(
    device: &Device,
    out: Qkv,
    stream: &Tensor,
    norm: Norm,
    w: QkvWeights,
    n: usize,
    compute: Compute,
) -> Result<()> {
    if let Device::Cuda(cuda) = device
        && n <= MAX_DECODE_ROWS
    {
        let c = norm.weight.extent(0);
        let [w_q, w_k, w_v] = [w.q, w.k, w.v].map(|w| w.plain());
        let (q_out, kv_out) = (w_q.extent(0), w_k.extent(0));
        for (y, w) in [(&*out.q, w_q), (&*out.k, w_k), (&*out.v, w_v)] {
            assert!(w.extent(1) == c && y.extent(0) >= n && y.extent(1) == w.extent(0), "{y:?} of {w:?}");
        }
        assert!(stream.extent(0) >= n && stream.extent(1) == c && w_v.extent(0) == kv_out, "stream is {stream:?}");
        let (x, norm) = if rows::norms_within(cuda, n, c) {
            (stream, Some(norm.on_gpu()))
        } else {
            rmsnorm_forward(device, out.normed, stream, norm, n, compute);
            (&*out.normed, None)
        };
        let out = [out.q, out.k, out.v].map(|t| t.bf16_address());
        let w = [w_q, w_k, w_v].map(Tensor::bf16_address);
        rows::qkv(cuda, &QkvProduct { out, x: x.bf16_address(), norm, w, n, c, q_out, kv_out });
        return Ok(());
    }
    rmsnorm_forward(device, out.normed, stream, norm, n, compute);
    linear_forward(device, out.q, out.normed, w.q, n, compute)?;
    linear_forward(device, out.k, out.normed, w.k, n, compute)?;
    linear_forward(device, out.v, out.normed, w.v, n, compute)
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
                let (norm, [q_w, k_w, v_w]) = (Norm { weight: norm, eps: 1e-5 }, w.each_ref().map(matrix));
                let w = QkvWeights { q: (&q_w).into(), k: (&k_w).into(), v: (&v_w).into() };
                qkv_forward(device, out, stream, norm, w, n, Compute::Bf16).unwrap();
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
