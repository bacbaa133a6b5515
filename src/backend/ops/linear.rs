//! Linear layer: y[n, o] = sum over k of x[n, k] * w[o, k], plus the bias, plus what the row's adapter adds (`lora`).
//!
//! x [N, K] f32, w [O, K] as stored (f32, bf16, f16), y [N, O] f32, rounded to bf16 once, at the end, in bf16 compute. With
//! bf16 compute and bf16 weights the products are taken in pairs (`vdpbf16ps`); otherwise weights are
//! widened. The order over k is canonical (`cpu::dot`), so a row's result does not depend on n.

use super::few_rows::{few_rows, few_rows_scratch_bytes, suits};
use super::lora::{adapt, lora_backward};
use super::product::{Extents, input_gradient, product, product_scratch_bytes, weight_gradient};
use super::residual_forward;
use crate::backend::cpu::dot::{B16, H16, Paired, Wide};
use crate::backend::cpu::lanes::round_bf16_bits;
use crate::backend::cpu::{Cpu, Kernel, Lanes, Scratch, Shared, piece};
use crate::backend::cuda::{Cuda, Matmul, rows, tile as tiles};
use crate::backend::terms::MAX_DECODE_ROWS;
use crate::backend::{Compute, Device, Elements, LoraPair, Matrix, Tensor, Weight};
use crate::error::Result;

/// y = x w^T. Overwrites the first `n` rows of `y`.
pub fn linear_forward(
    device: &Device,
    y: &mut Tensor,
    x: &Tensor,
    w: Weight,
    n: usize,
    compute: Compute,
) -> Result<()> {
    linear(device, y, x, w, n, compute, compute.rounds())
}

/// y = x w^T where y stays f32 in any compute (the logits). Overwrites the first `n` rows of `y`.
pub fn linear_forward_f32(
    device: &Device,
    y: &mut Tensor,
    x: &Tensor,
    w: Weight,
    n: usize,
    compute: Compute,
) -> Result<()> {
    linear(device, y, x, w, n, compute, false)
}

/// stream += x w^T, rounded after the product and after the sum. `branch` [N, O] is scratch.
pub fn linear_residual_forward(
    device: &Device,
    stream: &mut Tensor,
    branch: &mut Tensor,
    x: &Tensor,
    w: Weight,
    n: usize,
    compute: Compute,
) -> Result<()> {
    if let Device::Cuda(cuda) = device {
        let matmul = matmul(stream, x, w.plain(), n);
        match n {
            0..=MAX_DECODE_ROWS => rows::product(cuda, &matmul, true),
            _ => tiles::product_residual(cuda, &matmul, branch.bf16_address()),
        }
        return Ok(());
    }
    linear_forward(device, branch, x, w, n, compute)?;
    residual_forward(device, stream, branch, n, compute);
    Ok(())
}

/// y = x w^T on a GPU.
pub(super) fn matmul(y: &Tensor, x: &Tensor, w: &Tensor, n: usize) -> Matmul {
    let (m, k) = (w.extent(0), w.extent(1));
    assert!(x.extent(0) >= n && x.extent(1) == k, "x is {}, w {}", x.shape(), w.shape());
    assert!(y.extent(0) >= n && y.extent(1) == m, "y is {}, w {}", y.shape(), w.shape());
    Matmul { y: y.bf16_address(), x: x.bf16_address(), w: w.bf16_address(), n, m, k, y_stride: m }
}

/// A product on a GPU by the kernel for its number of rows.
pub(super) fn product_on(cuda: &Cuda, matmul: &Matmul) {
    match matmul.n {
        0..=MAX_DECODE_ROWS => rows::product(cuda, matmul, false),
        // A router may have any number of experts; nothing else is so odd.
        _ if !matmul.m.is_multiple_of(8) => rows::product(cuda, matmul, false),
        _ => tiles::product(cuda, matmul),
    }
}

fn linear(
    device: &Device,
    y: &mut Tensor,
    x: &Tensor,
    w: Weight,
    n: usize,
    compute: Compute,
    round: bool,
) -> Result<()> {
    let (o, k) = (w.extent(0), w.extent(1));
    assert!(x.extent(0) >= n && x.extent(1) == k, "x is {}, w {}", x.shape(), w.shape());
    assert!(y.extent(0) >= n && y.extent(1) == o, "y is {}, w {}", y.shape(), w.shape());
    let cpu = match device {
        Device::Cpu(cpu) => cpu,
        Device::Cuda(cuda) => {
            assert!(round, "logits are made by the head");
            product_on(cuda, &matmul(y, x, w.plain(), n));
            return Ok(());
        }
    };
    let x = &x.f32()[..n * k];
    let y = Shared::new(&mut y.f32_mut()[..n * o]);
    let extents = Extents { n, o, k };
    // What comes on top of the product comes before the one rounding.
    let is_bare = w.matrix.bias.is_none() && w.pairs().next().is_none();
    match (w.matrix.dense().elements(), compute) {
        (Elements::Bf16(w), Compute::Bf16) => {
            let x = narrow(cpu, x)?;
            match suits(cpu, n) {
                true => few_rows(cpu, &x, w, y, extents, round && is_bare)?,
                false => product::<Paired>(cpu, &x, w, y, extents, round && is_bare)?,
            }
        }
        (Elements::Bf16(w), Compute::F32) => product::<Wide<B16>>(cpu, x, w, y, extents, round && is_bare)?,
        (Elements::F16(w), _) => product::<Wide<H16>>(cpu, x, w, y, extents, round && is_bare)?,
        (Elements::F32(w), _) => product::<Wide<f32>>(cpu, x, w, y, extents, round && is_bare)?,
    }
    if !is_bare {
        adapt(cpu, y, x, w, extents, round)?;
    }
    Ok(())
}

/// What of a layer is trained: the matrix with its bias, or the pair of its adapter. Each is added to.
#[derive(Default)]
pub struct LinearGradient<'a> {
    /// The gradient of the matrix [O, K] and of the bias.
    pub matrix: Option<&'a mut Matrix>,
    /// The gradients of the pair.
    pub pair: Option<&'a mut LoraPair>,
}

/// The layer's gradients, of rows under one adapter or none: adds dy w (and what passes through the adapter) to the first
/// `n` rows of `dx`, and to what is trained.
pub fn linear_backward(
    device: &Device,
    dx: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    w: Weight,
    to: LinearGradient,
    n: usize,
) -> Result<()> {
    let LinearGradient { matrix, pair: dpair } = to;
    if let Some(dw) = matrix {
        linear_backward_weight(device, dw.dense_mut(), dy, x, n);
        if let Some(db) = &mut dw.bias {
            bias_gradient(db, dy, n);
        }
    }
    linear_backward_input(device, dx, dy, w.matrix, n);
    let mut pairs = w.pairs();
    if let Some((rows, pair)) = pairs.next() {
        assert!(rows == (0..n) && pairs.next().is_none(), "one adapter for all {n} rows, found {rows:?}");
        lora_backward(device, dx, dy, x, pair, dpair, n)?;
    }
    Ok(())
}

/// db[o] += sum over n of dy[n, o], rows in order.
fn bias_gradient(db: &mut Tensor, dy: &Tensor, n: usize) {
    let o = db.extent(0);
    let db = db.f32_mut();
    for row in dy.f32()[..n * o].chunks_exact(o) {
        db.iter_mut().zip(row).for_each(|(d, g)| *d += g);
    }
}

/// dx = dy w. Adds to the first `n` rows of `dx`.
pub fn linear_backward_input(device: &Device, dx: &mut Tensor, dy: &Tensor, w: &Matrix, n: usize) {
    let w = w.dense();
    let (o, k) = (w.extent(0), w.extent(1));
    assert!(dx.extent(0) >= n && dx.extent(1) == k, "dx is {}, w {}", dx.shape(), w.shape());
    assert!(dy.extent(0) >= n && dy.extent(1) == o, "dy is {}, w {}", dy.shape(), w.shape());
    let cpu = device.cpu();
    let dy = &dy.f32()[..n * o];
    let dx = Shared::new(&mut dx.f32_mut()[..n * k]);
    let extents = Extents { n, o, k };
    match w.elements() {
        Elements::F32(w) => input_gradient(cpu, dx, dy, w, extents),
        Elements::Bf16(w) => input_gradient(cpu, dx, dy, w, extents),
        Elements::F16(w) => input_gradient(cpu, dx, dy, w, extents),
    }
}

/// dw = dy^T x. Adds to `dw` [O, K], which is f32 whatever w is stored as.
pub fn linear_backward_weight(device: &Device, dw: &mut Tensor, dy: &Tensor, x: &Tensor, n: usize) {
    let (o, k) = (dw.extent(0), dw.extent(1));
    assert!(x.extent(0) >= n && x.extent(1) == k, "x is {}, dw {}", x.shape(), dw.shape());
    assert!(dy.extent(0) >= n && dy.extent(1) == o, "dy is {}, dw {}", dy.shape(), dw.shape());
    let cpu = device.cpu();
    let (dy, x) = (&dy.f32()[..n * o], &x.f32()[..n * k]);
    weight_gradient(cpu, Shared::new(dw.f32_mut()), dy, x, Extents { n, o, k });
}

/// Elements of x converted in one task of `Narrow`.
const NARROW_PIECE: usize = 1 << 14;

struct Narrow<'a> {
    x: &'a [f32],
    y: Shared<B16>,
}

impl Kernel for Narrow<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let range = piece(index, NARROW_PIECE, self.x.len());
        let mut i = range.start;
        while i < range.end {
            // SAFETY: the piece lies inside both buffers, and pieces are disjoint.
            unsafe {
                if range.end - i >= 16 {
                    V::load(self.x.as_ptr().add(i)).round_bf16().store_bf16(self.y.at(i) as *mut u16);
                } else {
                    for j in i..range.end {
                        *self.y.at(j) = B16((round_bf16_bits(self.x[j].to_bits()) >> 16) as u16);
                    }
                }
            }
            i += 16;
        }
    }
}

/// x as bf16; exact where x already holds rounded values.
pub(super) fn narrow(cpu: &Cpu, x: &[f32]) -> Result<Scratch<B16>> {
    let mut y = cpu.scratch::<B16>(x.len())?;
    cpu.launch(x.len().div_ceil(NARROW_PIECE), &Narrow { x, y: Shared::new(&mut y) });
    Ok(y)
}

/// Bytes of scratch that a product of `n` rows of `k` elements takes at most.
pub fn linear_scratch_bytes(cpu: &Cpu, n: usize, k: usize, compute: Compute) -> u64 {
    let narrow = if compute.rounds() { Cpu::scratch_bytes(n * k * size_of::<B16>()) } else { 0 };
    // Pairs fill larger blocks than single terms.
    narrow + product_scratch_bytes::<Paired>(cpu, n, k).max(few_rows_scratch_bytes(cpu, n, k))
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::tensor::Dtype;

    /// (rows, outputs, terms): from 24 rows on for packed weights, in whole tiles and with one, two, three and five rows left,
    /// whole panels and none, terms for more than a chunk.
    const EXTENTS: [(usize, usize, usize); 14] = [
        (1, 1, 1),
        (2, 17, 7),
        (5, 33, 48),
        // Few rows, whole tiles and what is left, short and long.
        (4, 9, 32),
        (8, 300, 1024),
        (7, 21, 2101),
        (23, 11, 65),
        (13, 19, 100),
        (40, 70, 129),
        (26, 50, 1555),
        (24, 32, 16),
        (25, 49, 33),
        (27, 16, 31),
        (29, 15, 32),
    ];

    fn naive(x: &Tensor, w: &Tensor) -> Vec<f64> {
        let (n, o, k) = (x.extent(0), w.extent(0), w.extent(1));
        let (x, w) = (wide(x), wide(w));
        let dot = |i: usize, j: usize| (0..k).map(|l| x[i * k + l] * w[j * k + l]).sum();
        (0..n * o).map(|i| dot(i / o, i % o)).collect()
    }

    #[test]
    fn linear_forward_equals_the_formula_for_every_stored_dtype() {
        for (n, o, k) in EXTENTS {
            let x = random(1, &[n, k]);
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let w = stored(&random(2, &[o, k]), dtype);
                let mut y = Tensor::zeros(Dtype::F32, &[n, o]).unwrap();
                linear_forward(&device(), &mut y, &x, (&matrix(&w)).into(), n, Compute::F32).unwrap();
                assert_close("y", y.f32(), &naive(&x, &w), 1e-5);
                let rounded = stored(&x, Dtype::Bf16);
                linear_forward_f32(&device(), &mut y, &x, (&matrix(&w)).into(), n, Compute::Bf16).unwrap();
                if dtype == Dtype::Bf16 {
                    assert_close("y of pairs", y.f32(), &naive(&rounded, &w), 1e-5);
                }
            }
        }
    }

    #[test]
    fn linear_forward_has_one_set_of_bits_for_all_sets_threads_and_row_counts() {
        for (n, o, k) in EXTENTS {
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                for compute in [Compute::F32, Compute::Bf16] {
                    let (x, w) = (random(3, &[n, k]), stored(&random(4, &[o, k]), dtype));
                    let mut judge: Option<Vec<f32>> = None;
                    for device in devices() {
                        let mut y = Tensor::zeros(Dtype::F32, &[n, o]).unwrap();
                        linear_forward(&device, &mut y, &x, (&matrix(&w)).into(), n, compute).unwrap();
                        let judge = judge.get_or_insert_with(|| y.f32().to_vec());
                        assert_same_bits("y", y.f32(), judge);
                        for i in 0..n {
                            let row = Tensor::from_f32(&[1, k], &x.f32()[i * k..(i + 1) * k]).unwrap();
                            linear_forward(&device, &mut y, &row, (&matrix(&w)).into(), 1, compute).unwrap();
                            assert_same_bits("row", &y.f32()[..o], &judge[i * o..(i + 1) * o]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn linear_backward_matches_finite_difference_and_accumulates() {
        for (n, o, k) in [(1, 1, 1), (3, 5, 7), (7, 66, 65)] {
            let (x, w, dy) = (random(5, &[n, k]), random(6, &[o, k]), random(7, &[n, o]));
            let weighted = |x: &[f64], w: &[f64]| -> f64 {
                let dy = wide(&dy);
                (0..n * o).map(|i| dy[i] * (0..k).map(|l| x[i / o * k + l] * w[i % o * k + l]).sum::<f64>()).sum()
            };
            let start = random(8, &[n, k]);
            let mut dx = Tensor::from_f32(&[n, k], start.f32()).unwrap();
            linear_backward_input(&device(), &mut dx, &dy, &matrix(&w), n);
            let mut wanted = finite_difference(&wide(&x), |x| weighted(x, &wide(&w)));
            wanted.iter_mut().zip(wide(&start)).for_each(|(d, s)| *d += s);
            assert_close("dx", dx.f32(), &wanted, 1e-5);

            let mut dw = Tensor::zeros(Dtype::F32, &[o, k]).unwrap();
            linear_backward_weight(&device(), &mut dw, &dy, &x, n);
            linear_backward_weight(&device(), &mut dw, &dy, &x, n);
            let wanted = finite_difference(&wide(&w), |w| 2.0 * weighted(&wide(&x), w));
            assert_close("dw", dw.f32(), &wanted, 1e-5);
        }
    }

    #[test]
    fn linear_backward_does_not_depend_on_the_thread_count() {
        let (n, o, k) = (150, 130, 100);
        let (x, w, dy) = (random(5, &[n, k]), random(6, &[o, k]), random(7, &[n, o]));
        let mut judge: Option<(Vec<f32>, Vec<f32>)> = None;
        for device in devices() {
            let mut dx = Tensor::zeros(Dtype::F32, &[n, k]).unwrap();
            linear_backward_input(&device, &mut dx, &dy, &matrix(&w), n);
            let mut dw = Tensor::zeros(Dtype::F32, &[o, k]).unwrap();
            linear_backward_weight(&device, &mut dw, &dy, &x, n);
            let judge = judge.get_or_insert_with(|| (dx.f32().to_vec(), dw.f32().to_vec()));
            assert_same_bits("dx", dx.f32(), &judge.0);
            assert_same_bits("dw", dw.f32(), &judge.1);
        }
    }

    /// (outputs, columns): fewer steps over k than slices and more, one tile and more than the shim keeps resident.
    const FEW_ROWS: [(usize, usize); 4] = [(16, 32), (48, 96), (400, 288), (272, 576)];

    #[test]
    fn linear_of_few_rows_on_a_gpu_equals_the_cpu_and_does_not_depend_on_the_row_count() {
        for (o, k) in FEW_ROWS {
            let (x, w) = (rounded(&random(1, &[70, k])), stored(&random(2, &[o, k]), Dtype::Bf16));
            let start = rounded(&random(3, &[70, o]));
            let (mut wanted, mut added) = (stored(&start, Dtype::F32), stored(&start, Dtype::F32));
            let mut branch = stored(&start, Dtype::F32);
            linear_forward(&device(), &mut wanted, &x, (&matrix(&w)).into(), 70, Compute::Bf16).unwrap();
            linear_residual_forward(&device(), &mut added, &mut branch, &x, (&matrix(&w)).into(), 70, Compute::Bf16)
                .unwrap();
            let (wanted, added) = (wide(&wanted), wide(&added));
            for gpu in gpus() {
                let w = bf16_on(&gpu, &w);
                let product = |x: &Tensor, start: &Tensor, adds: bool| {
                    let (n, x) = (x.extent(0), bf16_on(&gpu, x));
                    let (mut y, mut branch) = (bf16_on(&gpu, start), room(&gpu, n, o));
                    if adds {
                        linear_residual_forward(&gpu, &mut y, &mut branch, &x, (&matrix(&w)).into(), n, Compute::Bf16)
                            .unwrap();
                    } else {
                        linear_forward(&gpu, &mut y, &x, (&matrix(&w)).into(), n, Compute::Bf16).unwrap();
                    }
                    read(&y)
                };
                let judge = product(&rows_of(&x, 0..64), &start, false);
                let kept = &start.f32()[64 * o..];
                assert_same_bits("rows beyond the last", &judge[64 * o..], kept);
                for n in ROW_COUNTS {
                    let x = rows_of(&x, 0..n);
                    let y = product(&x, &rows_of(&start, 0..n), false);
                    assert_close("y", &y, &wanted[..n * o], 1.0 / 128.0);
                    assert_same_bits("y by the row count", &y, &judge[..n * o]);
                    let y = product(&x, &rows_of(&start, 0..n), true);
                    assert_close("the stream", &y, &added[..n * o], 1.0 / 128.0);
                }
                for i in [0, 7, 63] {
                    let alone = product(&rows_of(&x, i..i + 1), &rows_of(&start, 0..1), false);
                    assert_same_bits("a row alone", &alone, &judge[i * o..(i + 1) * o]);
                }
                let library = matches!(&gpu, Device::Cuda(cuda) if cuda.api().has_matmul());
                if !library {
                    let many = product(&x, &start, false);
                    assert_same_bits("a row among many", &many[..64 * o], &judge[..64 * o]);
                }
            }
        }
    }
}
