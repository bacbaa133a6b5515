//! Products of up to `MAX_DECODE_ROWS` rows: launches of kernels/{linear,qkv,swiglu,head,rmsnorm}.cu. Which shape of tile serves is
//! chosen here; a row's bits do not depend on it.
//!
//! All matrices are bf16 and row-major; columns are a multiple of 32, outputs of a fused product one of 16.

use super::api::{Address, Launch, Matmul};
use super::device::{Cuda, KernelArgs};
use crate::backend::terms::MAX_DECODE_ROWS;

/// Rows that a product may normalise by itself.
pub(super) const MAX_NORMED: usize = 8;

const THREADS: u32 = 256;
const WARPS: usize = 8;
/// Bytes that a warp copies at once.
const LINE: usize = 512;

/// A compiled shape of tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) kernel: &'static str,
    /// weight rows
    pub(super) height: usize,
    /// tokens
    pub(super) width: usize,
    /// whether tokens are normalised within
    pub(super) normed: bool,
}

pub(super) const fn form(kernel: &'static str, height: usize, width: usize) -> Form {
    Form { kernel, height, width, normed: false }
}

const fn normed(kernel: &'static str) -> Form {
    Form { kernel, height: 16, width: MAX_NORMED, normed: true }
}

const LINEAR: &[Form] = &[
    form("squire_linear_rows8_by8", 8, 8),
    form("squire_linear_rows8_by16", 16, 8),
    form("squire_linear_rows16_by16", 16, 16),
    form("squire_linear_rows16_by32", 32, 16),
    form("squire_linear_rows32_by16", 16, 32),
    form("squire_linear_rows32_by32", 32, 32),
    form("squire_linear_rows64_by16", 16, 64),
    form("squire_linear_rows64_by32", 32, 64),
];
const QKV: &[Form] = &[
    form("squire_qkv_rows8", 16, 8),
    form("squire_qkv_rows16_by16", 16, 16),
    form("squire_qkv_rows16_by32", 32, 16),
    form("squire_qkv_rows32_by16", 16, 32),
    form("squire_qkv_rows32_by32", 32, 32),
    form("squire_qkv_rows64_by16", 16, 64),
    form("squire_qkv_rows64_by32", 32, 64),
];
const SWIGLU: &[Form] = &[
    form("squire_swiglu_rows8", 16, 8),
    form("squire_swiglu_rows16_by16", 16, 16),
    form("squire_swiglu_rows16_by32", 32, 16),
    form("squire_swiglu_rows32_by16", 16, 32),
    form("squire_swiglu_rows32_by32", 32, 32),
    form("squire_swiglu_rows64_by16", 16, 64),
    form("squire_swiglu_rows64_by32", 32, 64),
];
const HEAD: &[Form] = &[
    form("squire_head_rows8", 16, 8),
    form("squire_head_rows16", 32, 16),
    form("squire_head_rows32", 32, 32),
    form("squire_head_rows64", 32, 64),
];
const QKV_NORMED: &[Form] = &[normed("squire_qkv_normed8")];
const SWIGLU_NORMED: &[Form] = &[normed("squire_swiglu_normed8")];
const HEAD_NORMED: &[Form] = &[normed("squire_head_normed8")];

impl Form {
    /// The narrowest that holds `n` rows; of those the tallest whose tiles still occupy three multiprocessors of four
    /// twice, since taller tiles read the tokens less often.
    fn choose(forms: &'static [Form], cuda: &Cuda, n: usize, outputs: usize) -> &'static Form {
        let width = forms.iter().map(|f| f.width).filter(|&w| w >= n).min().expect("at most MAX_DECODE_ROWS rows");
        let enough = 3 * cuda.facts().n_sms as usize / 2;
        let fit = || forms.iter().filter(|f| f.width == width);
        let tall = fit().filter(|f| outputs.div_ceil(f.height) >= enough).max_by_key(|f| f.height);
        tall.or(fit().min_by_key(|f| f.height)).expect("a form of this width")
    }

    /// Bytes of shared memory where `n` tokens of `k` columns are multiplied.
    fn shared(&self, n: usize, k: usize) -> usize {
        let quads = self.height / 8;
        let travelling = if self.width == 8 && !self.normed { 1 } else { 0 };
        let ring = WARPS * (8 / quads) * (quads + travelling) * LINE;
        let fragments = quads.div_ceil(2) * self.width / 8;
        let sums = if fragments <= 4 { 2 } else { 1 } * WARPS * fragments * LINE;
        let norm = if self.normed { norm_bytes(n, k) } else { 0 };
        ring + sums + norm
    }

    /// The launch for `outputs` weight rows of `k` columns and, where the tokens are normalised within, `n` of them.
    pub(super) fn launch(&self, cuda: &Cuda, outputs: usize, n: usize, k: usize) -> Launch {
        assert!(k.is_multiple_of(32), "a product over {k} columns");
        // More tiles than the device holds at once: two blocks a multiprocessor stay and share them, and leave room for
        // the first blocks of the next kernel.
        let (tiles, n_sms) = (outputs.div_ceil(self.height), cuda.facts().n_sms as usize);
        let blocks = if tiles <= 3 * n_sms { tiles } else { 2 * n_sms };
        Launch::new(self.kernel, [blocks as u32, 1, 1], THREADS, self.shared(n, k))
    }
}

/// Whether products of n rows of c columns normalise them by themselves. Every block keeps all rows; where that would
/// leave room for one block a multiprocessor, a launch of its own costs less.
pub fn norms_within(cuda: &Cuda, n: usize, c: usize) -> bool {
    let bytes = |n| HEAD_NORMED[0].launch(cuda, 16, n, c).shared;
    let shared = cuda.facts().shared_bytes;
    (n == 1 && bytes(1) <= shared) || (n <= MAX_NORMED && 2 * bytes(n) <= shared)
}

/// Shared memory of kernels/norm.cuh for n rows of c columns.
pub fn norm_bytes(n: usize, c: usize) -> usize {
    4 * MAX_NORMED * WARPS + 2 * c + 2 * n * ((c / 32) | 1) * 32
}

#[derive(Clone, Copy)]
#[repr(C)]
struct LinearArgs {
    y: Address,
    x: Address,
    w: Address,
    n: u32,
    o: u32,
    k: u32,
    adds: u32,
}

// SAFETY: the struct of kernels/linear.cu, three words of 8 bytes and four of 4.
unsafe impl KernelArgs for LinearArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct QkvArgs {
    q: Address,
    k: Address,
    v: Address,
    x: Address,
    norm: Address,
    wq: Address,
    wk: Address,
    wv: Address,
    n: u32,
    c: u32,
    q_out: u32,
    kv_out: u32,
    eps: f32,
    unused: u32,
}

// SAFETY: the struct of kernels/qkv.cu, eight words of 8 bytes and six of 4.
unsafe impl KernelArgs for QkvArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct SwigluRowsArgs {
    y: Address,
    x: Address,
    norm: Address,
    gate: Address,
    up: Address,
    n: u32,
    f: u32,
    c: u32,
    eps: f32,
}

// SAFETY: the struct of kernels/swiglu.cu, five words of 8 bytes and four of 4.
unsafe impl KernelArgs for SwigluRowsArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct HeadArgs {
    logits: Address,
    stats: Address,
    x: Address,
    rows: Address,
    norm: Address,
    w: Address,
    n: u32,
    v: u32,
    c: u32,
    eps: f32,
}

// SAFETY: the struct of kernels/head.cu, six words of 8 bytes and four of 4.
unsafe impl KernelArgs for HeadArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct RmsnormArgs {
    y: Address,
    x: Address,
    rows: Address,
    w: Address,
    c: u32,
    eps: f32,
}

// SAFETY: the struct of kernels/rmsnorm.cu, four words of 8 bytes and two of 4.
unsafe impl KernelArgs for RmsnormArgs {}

/// A norm's weight `[C]` and epsilon.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[C]`
    pub weight: Address,
    /// epsilon
    pub eps: f32,
}

/// y [n, c] = the norm of rows of x, of those that `rows` (u32, 0: the first n) lists.
pub fn rmsnorm(cuda: &Cuda, y: Address, x: Address, rows: Address, norm: Norm, n: usize, c: usize) {
    assert!(c.is_multiple_of(32), "a norm of {c} columns");
    let args = RmsnormArgs { y, x, rows, w: norm.weight, c: c as u32, eps: norm.eps };
    cuda.launch(Launch::new("squire_rmsnorm", [n as u32, 1, 1], THREADS, norm_bytes(1, c)), &args);
}

/// y = round(x w^T), or y = round(y + round(x w^T)) where it `adds`. Every MAX_DECODE_ROWS rows read the weights anew.
pub fn product(cuda: &Cuda, all: &Matmul, adds: bool) {
    for first in (0..all.n).step_by(MAX_DECODE_ROWS) {
        let n = (all.n - first).min(MAX_DECODE_ROWS);
        let (y, x) = (all.y + 2 * (first * all.m) as u64, all.x + 2 * (first * all.k) as u64);
        linear(cuda, Form::choose(LINEAR, cuda, n, all.m), &Matmul { y, x, n, ..*all }, adds);
    }
}

fn linear(cuda: &Cuda, form: &Form, matmul: &Matmul, adds: bool) {
    let &Matmul { y, x, w, n, m, k, y_stride } = matmul;
    assert_eq!(y_stride, m, "a product has no gaps");
    let args = LinearArgs { y, x, w, n: n as u32, o: m as u32, k: k as u32, adds: u32::from(adds) };
    cuda.launch(form.launch(cuda, m, n, k), &args);
}

/// q [n, q_out], k, v [n, kv_out] = the three products of x [n, c], normed within where a norm is given.
#[derive(Clone, Copy, Debug)]
pub struct QkvProduct {
    /// results of q, k and v
    pub out: [Address; 3],
    /// [n, c]
    pub x: Address,
    /// where `norms_within`
    pub norm: Option<Norm>,
    /// matrices of q, k and v
    pub w: [Address; 3],
    /// rows of x
    pub n: usize,
    /// columns
    pub c: usize,
    /// outputs of q
    pub q_out: usize,
    /// outputs of k and of v
    pub kv_out: usize,
}

/// What `QkvProduct` says.
pub fn qkv(cuda: &Cuda, p: &QkvProduct) {
    let forms = if p.norm.is_some() { QKV_NORMED } else { QKV };
    qkv_by(cuda, Form::choose(forms, cuda, p.n, p.q_out + 2 * p.kv_out), p);
}

fn qkv_by(cuda: &Cuda, form: &Form, p: &QkvProduct) {
    let &QkvProduct { out: [q, k, v], x, norm, w: [wq, wk, wv], n, c, q_out, kv_out } = p;
    assert!(q_out.is_multiple_of(16) && kv_out.is_multiple_of(16), "projections to {q_out} and {kv_out}");
    let Norm { weight, eps } = norm.unwrap_or(Norm { weight: 0, eps: 0.0 });
    let launch = form.launch(cuda, q_out + 2 * kv_out, n, c);
    let [n, c, q_out, kv_out] = [n, c, q_out, kv_out].map(|extent| extent as u32);
    cuda.launch(launch, &QkvArgs { q, k, v, x, norm: weight, wq, wk, wv, n, c, q_out, kv_out, eps, unused: 0 });
}

/// y [n, f] = round(silu(round(x gate^T)) round(x up^T)), x [n, c] normed within where a norm is given.
#[derive(Clone, Copy, Debug)]
pub struct SwigluProduct {
    /// [n, f]
    pub y: Address,
    /// [n, c]
    pub x: Address,
    /// where `norms_within`
    pub norm: Option<Norm>,
    /// [f, c]
    pub gate: Address,
    /// [f, c]
    pub up: Address,
    /// rows of x
    pub n: usize,
    /// outputs
    pub f: usize,
    /// columns
    pub c: usize,
}

/// What `SwigluProduct` says.
pub fn swiglu(cuda: &Cuda, p: &SwigluProduct) {
    let forms = if p.norm.is_some() { SWIGLU_NORMED } else { SWIGLU };
    swiglu_by(cuda, Form::choose(forms, cuda, p.n, 2 * p.f), p);
}

fn swiglu_by(cuda: &Cuda, form: &Form, p: &SwigluProduct) {
    let &SwigluProduct { y, x, norm, gate, up, n, f, c } = p;
    assert!(f.is_multiple_of(8), "{f} gates");
    let Norm { weight, eps } = norm.unwrap_or(Norm { weight: 0, eps: 0.0 });
    let launch = form.launch(cuda, 2 * f, n, c);
    let [n, f, c] = [n, f, c].map(|extent| extent as u32);
    cuda.launch(launch, &SwigluRowsArgs { y, x, norm: weight, gate, up, n, f, c, eps });
}

/// logits [n, v] f32 and their statistics, of rows of x, normed within where a norm is given.
#[derive(Clone, Copy, Debug)]
pub struct HeadProduct {
    /// [n, v] f32
    pub logits: Address,
    /// [n, ceil(v / 16), 2] f32
    pub stats: Address,
    /// [., c]
    pub x: Address,
    /// `[n]` u32 rows of x; 0: the first n
    pub rows: Address,
    /// where `norms_within`
    pub norm: Option<Norm>,
    /// [v, c]
    pub w: Address,
    /// rows wanted
    pub n: usize,
    /// ids
    pub v: usize,
    /// columns
    pub c: usize,
}

/// What `HeadProduct` says.
pub fn head(cuda: &Cuda, p: &HeadProduct) {
    let &HeadProduct { logits, stats, x, rows, norm, w, n, v, c } = p;
    let forms = if norm.is_some() { HEAD_NORMED } else { HEAD };
    let Norm { weight, eps } = norm.unwrap_or(Norm { weight: 0, eps: 0.0 });
    let launch = Form::choose(forms, cuda, n, v).launch(cuda, v, n, c);
    let [n, v, c] = [n, v, c].map(|extent| extent as u32);
    cuda.launch(launch, &HeadArgs { logits, stats, x, rows, norm: weight, w, n, v, c, eps });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ops::claims::*;
    use crate::backend::{Device, Tensor};
    use crate::tensor::Dtype;

    fn cuda(device: &Device) -> &Cuda {
        match device {
            Device::Cuda(cuda) => cuda,
            Device::Cpu(_) => unreachable!("gpus() are"),
        }
    }

    /// Every form that holds `n` rows gives the bits of the first.
    fn assert_one_set_of_bits(forms: &[Form], n: usize, of: impl Fn(&Form) -> Vec<f32>) {
        let mut judge: Option<Vec<f32>> = None;
        for form in forms.iter().filter(|f| f.width >= n) {
            let y = of(form);
            assert_same_bits(form.kernel, &y, judge.get_or_insert_with(|| y.clone()));
        }
    }

    #[test]
    fn every_shape_of_tile_gives_the_same_bits() {
        let c = 288;
        for gpu in gpus() {
            let x = bf16_on(&gpu, &random(1, &[64, c]));
            let [a, b] = [2, 3].map(|seed| bf16_on(&gpu, &random(seed, &[304, c])));
            let norm = bf16_on(&gpu, &random(4, &[c]));
            for n in [1, 3, 8, 16, 30, 64] {
                let x = x.address();
                let y = |width: usize| Tensor::on(&gpu, Dtype::Bf16, &[n, width]).unwrap();
                assert_one_set_of_bits(LINEAR, n, |form| {
                    let y = y(304);
                    let matmul = Matmul { y: y.address(), x, w: a.address(), n, m: 304, k: c, y_stride: 304 };
                    linear(cuda(&gpu), form, &matmul, false);
                    read(&y)
                });
                let normed = y(c);
                let norm = Norm { weight: norm.address(), eps: 1e-5 };
                rmsnorm(cuda(&gpu), normed.address(), x, 0, norm, n, c);
                let input = |form: &Form| if form.normed { (x, Some(norm)) } else { (normed.address(), None) };
                assert_one_set_of_bits(&[SWIGLU, SWIGLU_NORMED].concat(), n, |form| {
                    let (y, (x, norm)) = (y(304), input(form));
                    let (gate, up) = (a.address(), b.address());
                    swiglu_by(cuda(&gpu), form, &SwigluProduct { y: y.address(), x, norm, gate, up, n, f: 304, c });
                    read(&y)
                });
                assert_one_set_of_bits(&[QKV, QKV_NORMED].concat(), n, |form| {
                    let (q, k, v, (x, norm)) = (y(304), y(48), y(48), input(form));
                    let out = [&q, &k, &v].map(Tensor::address);
                    let w = [a.address(), b.address(), a.address()];
                    qkv_by(cuda(&gpu), form, &QkvProduct { out, x, norm, w, n, c, q_out: 304, kv_out: 48 });
                    [&q, &k, &v].map(read).concat()
                });
            }
        }
    }
}
