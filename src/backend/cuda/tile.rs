//! Products of many rows: launches of kernels/linear_tile.cu and swiglu_tile.cu, or of a library's product followed by
//! the small kernels of elementwise.cu. A row's result has the same bits as in the kernels for few rows, except where a
//! library multiplies.
//!
//! All matrices are bf16, row-major and aligned to 16 bytes; k is a multiple of 32, the width of a result one of 8.

use super::api::{Address, Launch, Matmul};
use super::device::{Cuda, KernelArgs};

const THREADS: u32 = 256;
/// Weight rows of a tile.
pub(super) const ROWS: usize = 128;
/// Threads of the elementwise kernels, and elements that each takes.
const ELEMENTWISE_THREADS: u32 = 256;
const ELEMENTS: usize = 8;

/// The two shapes of a tile: tokens, and the bytes of shared memory of its three stages of 64 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// 64 tokens.
    Narrow,
    /// 128 tokens: fewer bytes of shared memory read a product.
    Wide,
}

impl Width {
    /// Wide tiles where they fill the device once.
    fn of(cuda: &Cuda, n: usize, row_tiles: usize) -> Width {
        let wide = n.div_ceil(128) * row_tiles >= cuda.facts().n_sms as usize;
        if wide { Width::Wide } else { Width::Narrow }
    }

    /// Tokens of a tile.
    pub(super) fn tokens(self) -> usize {
        match self {
            Width::Narrow => 64,
            Width::Wide => 128,
        }
    }

    /// Bytes of shared memory of a block.
    fn shared(self) -> usize {
        3 * (ROWS + self.tokens()) * 64 * 2
    }

    /// A launch of the kernel of this width.
    pub(super) fn launch(self, [narrow, wide]: [&'static str; 2], [x, y]: [usize; 2]) -> Launch {
        let kernel = if self == Width::Wide { wide } else { narrow };
        Launch::new(kernel, [x as u32, y as u32, 1], THREADS, self.shared())
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct LinearTileArgs {
    y: Address,
    x: Address,
    w: Address,
    n: u32,
    m: u32,
    k: u32,
    y_stride: u32,
}

// SAFETY: the struct of kernels/linear_tile.cu, three words of 8 bytes and four of 4.
unsafe impl KernelArgs for LinearTileArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct SwigluTileArgs {
    y: Address,
    x: Address,
    gate: Address,
    up: Address,
    n: u32,
    f: u32,
    k: u32,
    unused: u32,
}

// SAFETY: the struct of kernels/swiglu_tile.cu, four words of 8 bytes and four of 4.
unsafe impl KernelArgs for SwigluTileArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct ResidualArgs {
    y: Address,
    x: Address,
    n: u64,
}

// SAFETY: the struct of kernels/elementwise.cu, three words of 8 bytes.
unsafe impl KernelArgs for ResidualArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct SwigluArgs {
    y: Address,
    gate: Address,
    up: Address,
    n: u64,
}

// SAFETY: the struct of kernels/elementwise.cu, four words of 8 bytes.
unsafe impl KernelArgs for SwigluArgs {}

/// y [n, f] = round(silu(round(x gate^T)) round(x up^T)) for x [n, k], gate and up [f, k].
#[derive(Clone, Copy, Debug)]
pub struct GateUpProduct {
    /// [n, f]
    pub y: Address,
    /// [n, k]
    pub x: Address,
    /// [f, k]
    pub gate: Address,
    /// [f, k]
    pub up: Address,
    /// rows of x
    pub n: usize,
    /// rows of gate and of up
    pub f: usize,
    /// columns of x, gate and up
    pub k: usize,
}

/// y = round(x w^T).
pub fn product(cuda: &Cuda, matmul: &Matmul) {
    if cuda.api().has_matmul() {
        // SAFETY: ops pass addresses of live tensors.
        cuda.keep(unsafe { cuda.api().matmul(matmul) });
    } else {
        linear_tile(cuda, ["squire_linear_tile64", "squire_linear_tile128"], matmul);
    }
}

/// y = round(y + round(x w^T)). `scratch` has room for [n, m]; it is used where a library multiplies.
pub fn product_residual(cuda: &Cuda, matmul: &Matmul, scratch: Address) {
    if cuda.api().has_matmul() {
        residual_apart(cuda, matmul, scratch);
    } else {
        linear_tile(cuda, ["squire_linear_residual_tile64", "squire_linear_residual_tile128"], matmul);
    }
}

/// What `GateUpProduct` says. Each of `scratch` has room for [n, f]; they are used where a library multiplies.
pub fn gate_up(cuda: &Cuda, g: &GateUpProduct, scratch: [Address; 2]) {
    if cuda.api().has_matmul() {
        swiglu_apart(cuda, g, scratch);
    } else {
        swiglu_tile(cuda, g);
    }
}

fn linear_tile(cuda: &Cuda, kernels: [&'static str; 2], matmul: &Matmul) {
    let &Matmul { y, x, w, n, m, k, y_stride } = matmul;
    assert!(k % 32 == 0 && m % 8 == 0 && y_stride % 8 == 0, "a product of {m} outputs and {k} columns");
    let row_tiles = m.div_ceil(ROWS);
    let width = Width::of(cuda, n, row_tiles);
    let args = LinearTileArgs { y, x, w, n: n as u32, m: m as u32, k: k as u32, y_stride: y_stride as u32 };
    cuda.launch(width.launch(kernels, [n.div_ceil(width.tokens()), row_tiles]), &args);
}

fn swiglu_tile(cuda: &Cuda, g: &GateUpProduct) {
    let &GateUpProduct { y, x, gate, up, n, f, k } = g;
    assert!(k % 32 == 0 && f % 8 == 0, "gate and up of {f} outputs and {k} columns");
    let row_tiles = (2 * f).div_ceil(ROWS);
    let width = Width::of(cuda, n, row_tiles);
    let args = SwigluTileArgs { y, x, gate, up, n: n as u32, f: f as u32, k: k as u32, unused: 0 };
    let kernels = ["squire_swiglu_tile64", "squire_swiglu_tile128"];
    cuda.launch(width.launch(kernels, [n.div_ceil(width.tokens()), row_tiles]), &args);
}

fn residual_apart(cuda: &Cuda, matmul: &Matmul, scratch: Address) {
    let &Matmul { y, n, m, y_stride, .. } = matmul;
    assert_eq!(y_stride, m, "the residual stream has no gaps");
    product(cuda, &Matmul { y: scratch, ..*matmul });
    elementwise(cuda, "squire_residual", n * m, &ResidualArgs { y, x: scratch, n: (n * m) as u64 });
}

fn swiglu_apart(cuda: &Cuda, g: &GateUpProduct, scratch: [Address; 2]) {
    let &GateUpProduct { y, x, gate, up, n, f, k } = g;
    for (y, w) in scratch.into_iter().zip([gate, up]) {
        product(cuda, &Matmul { y, x, w, n, m: f, k, y_stride: f });
    }
    let [gate, up] = scratch;
    elementwise(cuda, "squire_swiglu", n * f, &SwigluArgs { y, gate, up, n: (n * f) as u64 });
}

fn elementwise<A: KernelArgs>(cuda: &Cuda, kernel: &'static str, len: usize, args: &A) {
    let blocks = len.div_ceil(ELEMENTWISE_THREADS as usize * ELEMENTS);
    cuda.launch(Launch::new(kernel, [blocks as u32, 1, 1], ELEMENTWISE_THREADS, 0), args);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ops::claims::*;
    use crate::backend::ops::{linear_forward, residual_forward, swiglu_forward};
    use crate::backend::{Compute, Device, Tensor};
    use crate::tensor::Dtype;

    /// (rows, outputs, columns): tails of both widths of tile, one tile and several, fewer steps than slices and more.
    const SHAPES: [(usize, usize, usize); 5] =
        [(65, 32, 64), (100, 144, 96), (128, 256, 160), (129, 48, 32), (200, 256, 288)];

    fn cuda(device: &Device) -> &Cuda {
        match device {
            Device::Cuda(cuda) => cuda,
            Device::Cpu(_) => unreachable!("gpus() are"),
        }
    }

    /// The CPU path's product in bf16 compute.
    fn judge(x: &Tensor, w: &Tensor) -> Tensor {
        let mut y = Tensor::zeros(Dtype::F32, &[x.extent(0), w.extent(0)]).unwrap();
        linear_forward(&device(), &mut y, x, (&matrix(&stored(w, Dtype::Bf16))).into(), x.extent(0), Compute::Bf16)
            .unwrap();
        y
    }

    /// The contract's order over k with sums as the shim takes them: sixteen products of an mma from zero, added to the
    /// slice; slices added in order.
    fn emulate(x: &Tensor, w: &Tensor) -> Vec<f32> {
        let (n, m, k) = (x.extent(0), w.extent(0), x.extent(1));
        let (x, w) = (rounded(x), rounded(w));
        let steps = k / 32;
        let one = |x: &[f32], w: &[f32]| {
            (0..8).fold(0.0f32, |total, slice| {
                let range = slice * steps / 8..(slice + 1) * steps / 8;
                let sum = range.fold(0.0f32, |sum, step| {
                    [0, 4].iter().fold(sum, |sum, half| {
                        let column = |i: usize| step * 32 + i % 8 / 2 * 8 + half + i / 8 * 2 + i % 2;
                        sum + (0..16).fold(0.0f32, |s, i| s + x[column(i)] * w[column(i)])
                    })
                });
                total + sum
            })
        };
        let y: Vec<f32> = (0..n * m).map(|i| one(&x.f32()[i / m * k..][..k], &w.f32()[i % m * k..][..k])).collect();
        rounded(&Tensor::from_f32(&[n, m], &y).unwrap()).to_f32()
    }

    fn matmul(y: &Tensor, x: &Tensor, w: &Tensor) -> Matmul {
        let (n, m, k) = (x.extent(0), w.extent(0), x.extent(1));
        Matmul { y: y.address(), x: x.address(), w: w.address(), n, m, k, y_stride: y.extent(1) }
    }

    #[test]
    fn a_product_of_many_rows_equals_the_cpu_and_its_order_over_k_to_the_bit() {
        for (n, m, k) in SHAPES {
            let (x, w) = (random(1, &[n, k]), random(2, &[m, k]));
            let judge = wide(&judge(&rounded(&x), &w));
            let emulated = emulate(&x, &w);
            for gpu in gpus() {
                let (x, w) = (bf16_on(&gpu, &x), bf16_on(&gpu, &w));
                // One row more than is used, and columns beyond the result's.
                let start = random(3, &[n + 1, m + 16]);
                let y = bf16_on(&gpu, &start);
                linear_tile(cuda(&gpu), ["squire_linear_tile64", "squire_linear_tile128"], &matmul(&y, &x, &w));
                let got = read(&y);
                let kept = rounded(&start);
                let inside: Vec<f32> = (0..n * m).map(|i| got[i / m * (m + 16) + i % m]).collect();
                assert_close("y", &inside, &judge, 1.0 / 128.0);
                if cfg!(feature = "shim") {
                    assert_same_bits("y", &inside, &emulated);
                }
                for (i, (g, k)) in got.iter().zip(kept.f32()).enumerate() {
                    let outside = i / (m + 16) >= n || i % (m + 16) >= m;
                    assert!(!outside || g == k, "element {i} lies outside the result and is {g}, no more {k}");
                }
            }
        }
    }

    #[test]
    fn both_widths_of_tile_give_the_same_bits() {
        let (n, m, k) = (130, 144, 96);
        let (x, w) = (random(1, &[n, k]), random(2, &[m, k]));
        for gpu in gpus() {
            let (x, w) = (bf16_on(&gpu, &x), bf16_on(&gpu, &w));
            let of = |width: Width| {
                let y = Tensor::on(&gpu, Dtype::Bf16, &[n, m]).unwrap();
                let Matmul { y: at, x, w, .. } = matmul(&y, &x, &w);
                let (n, m, k, y_stride) = (n as u32, m as u32, k as u32, m as u32);
                let args = LinearTileArgs { y: at, x, w, n, m, k, y_stride };
                let tiles = (n as usize).div_ceil(width.tokens());
                cuda(&gpu).launch(width.launch(["squire_linear_tile64", "squire_linear_tile128"], [tiles, 2]), &args);
                read(&y)
            };
            assert_same_bits("y", &of(Width::Narrow), &of(Width::Wide));
        }
    }

    #[test]
    fn a_product_added_to_the_stream_rounds_twice_in_one_kernel_and_in_two() {
        for (n, m, k) in SHAPES {
            let (x, w, start) = (rounded(&random(1, &[n, k])), random(2, &[m, k]), rounded(&random(3, &[n, m])));
            let mut wanted = stored(&start, Dtype::F32);
            residual_forward(&device(), &mut wanted, &judge(&x, &w), n, Compute::Bf16);
            for gpu in gpus() {
                let (x, w) = (bf16_on(&gpu, &x), bf16_on(&gpu, &w));
                let (fused, apart) = (bf16_on(&gpu, &start), bf16_on(&gpu, &start));
                let scratch = Tensor::on(&gpu, Dtype::Bf16, &[n, m]).unwrap();
                product_residual(cuda(&gpu), &matmul(&fused, &x, &w), scratch.address());
                residual_apart(cuda(&gpu), &matmul(&apart, &x, &w), scratch.address());
                assert_close("stream", &read(&fused), &wide(&wanted), 1.0 / 128.0);
                // A library's product would have other bits.
                if !cuda(&gpu).api().has_matmul() {
                    assert_same_bits("stream", &read(&apart), &read(&fused));
                }
            }
        }
    }

    #[test]
    fn gate_and_up_of_many_rows_equal_the_cpu_in_one_kernel_and_in_three() {
        for (n, f, k) in [(65, 32, 64), (100, 72, 96), (129, 128, 160), (200, 96, 288)] {
            let (x, gate, up) = (rounded(&random(1, &[n, k])), random(2, &[f, k]), random(3, &[f, k]));
            let mut wanted = Tensor::zeros(Dtype::F32, &[n, f]).unwrap();
            swiglu_forward(&device(), &mut wanted, &judge(&x, &gate), &judge(&x, &up), n, Compute::Bf16);
            for gpu in gpus() {
                let [x, gate, up] = [&x, &gate, &up].map(|t| bf16_on(&gpu, t));
                let of = |launch: fn(&Cuda, &GateUpProduct, [Address; 2])| {
                    let y = Tensor::on(&gpu, Dtype::Bf16, &[n, f]).unwrap();
                    let scratch = [(); 2].map(|_| Tensor::on(&gpu, Dtype::Bf16, &[n, f]).unwrap());
                    let [y_at, x, gate, up] = [&y, &x, &gate, &up].map(Tensor::address);
                    let product = GateUpProduct { y: y_at, x, gate, up, n, f, k };
                    launch(cuda(&gpu), &product, [scratch[0].address(), scratch[1].address()]);
                    read(&y)
                };
                let fused = of(gate_up);
                assert_close("y", &fused, &wide(&wanted), 1.0 / 64.0);
                if !cuda(&gpu).api().has_matmul() {
                    assert_same_bits("y", &of(swiglu_apart), &fused);
                }
            }
        }
    }
}
