//! Routers, and the experts of at most eight rows: launches of kernels/router.cu and experts.cu. What is read of the
//! weights is decided on the device; the host does not wait to learn who goes where.

use super::rows::{Form, MAX_NORMED, Norm, form};
use super::{Address, Cuda, KernelArgs, Launch};

/// Rows whose experts read their weights slot by slot; for more there are tiles (`experts_tile`).
pub const MAX_ROWS: usize = 8;

const ROUTE_THREADS: u32 = 256;
/// Rows that one block deals.
const ROUTE_ROWS: usize = 8;

const ROUTER: Form = Form { kernel: "squire_router_normed8", height: 8, width: MAX_NORMED, normed: true };
const GATE_UP: Form = form("squire_experts_gate_up_rows8", 16, 8);
const DOWN: Form = form("squire_experts_down_rows8", 8, 8);

/// Which experts rows go to: the k largest of the softmax of logits [n, e], and their weights.
#[derive(Clone, Copy, Debug)]
pub struct Deal {
    /// [n, k] u32
    pub experts: Address,
    /// [n, k] f32
    pub weights: Address,
    /// [n, e] bf16
    pub logits: Address,
    /// rows
    pub n: usize,
    /// experts of the layer
    pub e: usize,
    /// experts of a row
    pub k: usize,
    /// whether weights are divided by their sum
    pub norm_topk_prob: bool,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RouteArgs {
    experts: Address,
    weights: Address,
    logits: Address,
    n: u32,
    e: u32,
    k: u32,
    norm: u32,
}

// SAFETY: the struct of kernels/route.cuh, three words of 8 bytes and four of 4.
unsafe impl KernelArgs for RouteArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct RouterArgs {
    route: RouteArgs,
    logits: Address,
    normed: Address,
    x: Address,
    norm: Address,
    w: Address,
    arrived: Address,
    c: u32,
    eps: f32,
}

// SAFETY: the struct of kernels/router.cu: RouteArgs, six words of 8 bytes and two of 4.
unsafe impl KernelArgs for RouterArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct GateUpArgs {
    y: Address,
    x: Address,
    experts: Address,
    gate: Address,
    up: Address,
    stride: u64,
    n_slots: u32,
    k: u32,
    f: u32,
    c: u32,
}

// SAFETY: the struct of kernels/experts.cu, six words of 8 bytes and four of 4.
unsafe impl KernelArgs for GateUpArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct DownArgs {
    stream: Address,
    x: Address,
    experts: Address,
    weights: Address,
    down: Address,
    stride: u64,
    k: u32,
    f: u32,
    c: u32,
    unused: u32,
}

// SAFETY: the struct of kernels/experts.cu, six words of 8 bytes and four of 4.
unsafe impl KernelArgs for DownArgs {}

impl Deal {
    fn args(&self) -> RouteArgs {
        let &Deal { experts, weights, logits, n, e, k, norm_topk_prob } = self;
        assert!(k >= 1 && k <= e, "{k} of {e} experts");
        let [n, e, k] = [n, e, k].map(|extent| extent as u32);
        RouteArgs { experts, weights, logits, n, e, k, norm: u32::from(norm_topk_prob) }
    }

    /// Bytes of shared memory that dealing takes.
    fn shared(&self) -> usize {
        16 + 4 * ROUTE_ROWS * (self.e.next_multiple_of(4) + self.k)
    }

    /// From logits that are there.
    pub fn route(&self, cuda: &Cuda) {
        let grid = [self.n.div_ceil(ROUTE_ROWS) as u32, 1, 1];
        cuda.launch(Launch::new("squire_route", grid, ROUTE_THREADS, self.shared()), &self.args());
    }

    /// From the stream: norm, logits and dealing in one launch, for rows that `rows::norms_within`. `arrived` is a u32
    /// that is 0, and is 0 again afterwards.
    pub fn route_normed(&self, cuda: &Cuda, r: &Router, arrived: Address) {
        let &Router { normed, stream, norm: Norm { weight: norm, eps }, w, c } = r;
        let mut launch = ROUTER.launch(cuda, self.e, self.n, c);
        launch.shared = launch.shared.max(16 + self.shared() as u32);
        let (route, logits) = (self.args(), self.logits);
        cuda.launch(launch, &RouterArgs { route, logits, normed, x: stream, norm, w, arrived, c: c as u32, eps });
    }
}

/// A router and its input.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    /// [n, c] bf16, written
    pub normed: Address,
    /// [n, c] bf16
    pub stream: Address,
    /// of the stream
    pub norm: Norm,
    /// [e, c] bf16
    pub w: Address,
    /// columns
    pub c: usize,
}

/// stream += the weighted sum of a row's experts, for at most MAX_ROWS rows, as `experts_tile::ExpertsTile` for more.
#[derive(Clone, Copy, Debug)]
pub struct ExpertsRows {
    /// [n, c] bf16
    pub stream: Address,
    /// [n, c] bf16, the stream after its norm
    pub x: Address,
    /// [n, k] u32
    pub ids: Address,
    /// [n, k] f32
    pub weights: Address,
    /// gate, up [f, c] and down [c, f] of expert 0
    pub matrices: [Address; 3],
    /// elements between an expert's matrices and the next one's
    pub stride: usize,
    /// rows
    pub n: usize,
    /// experts of a row
    pub k: usize,
    /// columns of the stream
    pub c: usize,
    /// an expert's width
    pub f: usize,
    /// scratch: [n k, f] bf16
    pub product: Address,
}

impl ExpertsRows {
    /// Runs it: gate and up, then down with the weighted sum.
    pub fn launch(&self, cuda: &Cuda) {
        let &ExpertsRows { stream, x, ids, weights, matrices: [gate, up, down], stride, n, k, c, f, product } = self;
        assert!(n <= MAX_ROWS && c % 32 == 0 && f % 32 == 0, "{n} rows of {c} columns, experts of {f}");
        let (n_slots, stride) = (n * k, stride as u64);
        let first = GATE_UP.launch(cuda, 2 * f * n_slots, n, c);
        // A block has its outputs' experts one after another.
        let second = Launch { grid: [(n * c / DOWN.height) as u32, 1, 1], ..DOWN.launch(cuda, c, n, f) };
        let [n_slots, k, c, f] = [n_slots, k, c, f].map(|extent| extent as u32);
        cuda.launch(first, &GateUpArgs { y: product, x, experts: ids, gate, up, stride, n_slots, k, f, c });
        cuda.launch(second, &DownArgs { stream, x: product, experts: ids, weights, down, stride, k, f, c, unused: 0 });
    }
}
