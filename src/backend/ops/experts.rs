//! The feed-forward halves of a layer: one SwiGLU block, or a router and its experts. Both read the stream through a norm
//! and add to it.
//!
//! stream += down(silu(gate x) * up x) with x = rmsnorm(stream) * w; with experts the weighted sum of a row's k best of
//! them (see `moe`). Activations are kept for the backward; a GPU keeps only what it needs.

use super::linear::{matmul, product_on};
use super::{
    Dealing, FfnWeights, GateUp, Norm, Routing, combine_forward, gate_up_forward, gather_rows, linear_forward,
    linear_residual_forward, residual_forward, rmsnorm_forward, route, scatter_rows, swiglu_forward,
};
use crate::backend::cuda::experts_rows::{self, Deal, ExpertsRows, Router};
use crate::backend::cuda::experts_tile::{ExpertsTile, sorted_bytes};
use crate::backend::cuda::rows::norms_within;
use crate::backend::cuda::{Buffer, Cuda};
use crate::backend::{Compute, Device, Matrix, Tensor, host};
use crate::error::Result;
use crate::tensor::Dtype;

/// Activations of one SwiGLU block over its own rows.
pub struct FfnActivations {
    /// [N, F] gate projection; a GPU leaves it unwritten
    pub gate: Tensor,
    /// [N, F] up projection; a GPU leaves it unwritten
    pub up: Tensor,
    /// [N, F] silu(gate) * up
    pub product: Tensor,
}

/// Activations of a layer of experts. A slot is one (row, rank) pair: slot = row * k + rank.
pub struct ExpertActivations {
    /// [N, E] router logits
    pub logits: Tensor,
    /// chosen experts and their weights; None before the first rows, and on a GPU
    pub routing: Option<Routing>,
    /// [N*k, C] each slot's result
    pub slots: Tensor,
    /// each expert's own rows; one shared entry when serving
    pub blocks: Vec<ExpertBlock>,
    /// in place of routing and blocks on a GPU
    on_gpu: Option<ExpertsOnGpu>,
    extents: ExpertExtents,
    /// whether each expert has its own rows
    keep: bool,
}

/// Extents of a layer of experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertExtents {
    /// C
    pub hidden_size: usize,
    /// F of each expert
    pub width: usize,
    /// E
    pub n_experts: usize,
    /// k, and how their weights are normed
    pub dealing: Dealing,
}

/// What a GPU keeps of a layer of experts: where rows go is known there alone.
struct ExpertsOnGpu {
    /// rows there is room for
    n: usize,
    /// [N, k] u32, in a tensor of f32
    ids: Tensor,
    /// [N, k] f32
    weights: Tensor,
    /// [N*k, F] silu(gate) * up
    product: Tensor,
    /// slots by expert
    sorted: Buffer,
    /// u32: blocks that have come, 0 between launches
    arrived: Tensor,
}

/// One expert's share of the batch, M rows.
pub struct ExpertBlock {
    /// [M, C] its inputs
    pub x: Tensor,
    /// its SwiGLU
    pub ffn: FfnActivations,
    /// [M, C] its outputs
    pub y: Tensor,
}

impl FfnActivations {
    /// Room for `n` rows.
    pub fn new(device: &Device, n: usize, width: usize) -> Result<FfnActivations> {
        let on = || Tensor::on(device, device.activation_dtype(), &[n, width]);
        Ok(FfnActivations { gate: on()?, up: on()?, product: on()? })
    }

    /// Makes room for `n` rows.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        [&mut self.gate, &mut self.up, &mut self.product].into_iter().try_for_each(|t| t.reserve_rows(n))
    }

    /// Bytes of `n` rows, each tensor's own.
    pub fn bytes(device: &Device, n: usize, width: usize) -> u64 {
        3 * device.taken(n * width * device.activation_dtype().size())
    }

    /// Bytes that it has.
    pub fn taken(&self) -> u64 {
        [&self.gate, &self.up, &self.product].iter().map(|t| t.taken()).sum()
    }
}

impl ExpertBlock {
    fn new(device: &Device, hidden_size: usize, width: usize) -> Result<ExpertBlock> {
        let on = || Tensor::on(device, device.activation_dtype(), &[0, hidden_size]);
        Ok(ExpertBlock { x: on()?, ffn: FfnActivations::new(device, 0, width)?, y: on()? })
    }

    /// Makes room for `n` rows.
    fn reserve(&mut self, n: usize) -> Result<()> {
        self.x.reserve_rows(n)?;
        self.y.reserve_rows(n)?;
        self.ffn.reserve(n)
    }

    fn bytes(device: &Device, n: usize, of: &ExpertExtents) -> u64 {
        let rows = device.taken(n * of.hidden_size * device.activation_dtype().size());
        2 * rows + FfnActivations::bytes(device, n, of.width)
    }

    fn taken(&self) -> u64 {
        self.x.taken() + self.y.taken() + self.ffn.taken()
    }
}

impl ExpertsOnGpu {
    /// Room for `n` rows.
    fn new(device: &Cuda, n: usize, of: &ExpertExtents) -> Result<ExpertsOnGpu> {
        let (on, k) = (Device::Cuda(device.clone()), of.dealing.n_experts_per_token);
        Ok(ExpertsOnGpu {
            n,
            ids: Tensor::on(&on, Dtype::F32, &[n, k])?,
            weights: Tensor::on(&on, Dtype::F32, &[n, k])?,
            product: Tensor::on(&on, Dtype::Bf16, &[n * k, of.width])?,
            sorted: device.allocate(sorted_bytes(n * k, of.n_experts))?,
            // Zero has the same bits in f32.
            arrived: Tensor::zeros(Dtype::F32, &[1])?.to_device(&on)?,
        })
    }

    fn bytes(device: &Device, n: usize, of: &ExpertExtents) -> u64 {
        let slots = n * of.dealing.n_experts_per_token;
        let pieces = [4 * slots, 4 * slots, 2 * slots * of.width, sorted_bytes(slots, of.n_experts), 4];
        pieces.into_iter().map(|bytes| device.taken(bytes)).sum()
    }

    fn taken(&self) -> u64 {
        let tensors = [&self.ids, &self.weights, &self.product, &self.arrived];
        tensors.iter().map(|t| t.taken()).sum::<u64>() + self.sorted.taken()
    }
}

impl ExpertActivations {
    /// Empty activations, with one block for each expert or one for all.
    pub fn new(device: &Device, extents: ExpertExtents, keep: bool) -> Result<Self> {
        let ExpertExtents { hidden_size, width, n_experts, .. } = extents;
        let on = |width: usize| Tensor::on(device, device.activation_dtype(), &[0, width]);
        let n_blocks = if keep { n_experts } else { 1 };
        let on_gpu = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(ExpertsOnGpu::new(cuda, 0, &extents)?),
        };
        let mut blocks = host::with_room(n_blocks)?;
        for _ in 0..n_blocks {
            blocks.push(ExpertBlock::new(device, hidden_size, width)?);
        }
        Ok(ExpertActivations {
            logits: on(n_experts)?,
            routing: None,
            slots: on(hidden_size)?,
            blocks,
            on_gpu,
            extents,
            keep,
        })
    }

    /// Makes room for `n` rows.
    pub fn reserve(&mut self, device: &Device, n: usize) -> Result<()> {
        match device {
            // As activations grow, so that all of them move in the same step.
            Device::Cuda(cuda) => {
                if self.on_gpu.as_ref().is_none_or(|g| g.n < n) {
                    self.on_gpu = Some(ExpertsOnGpu::new(cuda, Tensor::rows_reserved(n), &self.extents)?);
                }
            }
            Device::Cpu(_) => {
                let ExpertExtents { n_experts, dealing, .. } = self.extents;
                let n = Tensor::rows_reserved(n);
                match &mut self.routing {
                    Some(routing) => routing.reserve(n)?,
                    none => none.insert(Routing::new(n_experts, dealing)?).reserve(n)?,
                }
                if let (false, [all]) = (self.keep, self.blocks.as_mut_slice()) {
                    // All rows may go to one expert.
                    all.reserve(n)?;
                }
            }
        }
        self.logits.reserve_rows(n)?;
        self.slots.reserve_rows(n * self.extents.dealing.n_experts_per_token)
    }

    /// Makes room for each expert's own rows. Where one has to grow, all are made anew: else each would end with room for
    /// the most rows that it ever had, and all together with more than any batch has.
    fn reserve_blocks(&mut self, device: &Device) -> Result<()> {
        let (Some(routing), true) = (&self.routing, self.keep) else { return Ok(()) };
        let wanted = |e: usize| routing.slots_of(e).len();
        if self.blocks.iter().enumerate().all(|(e, block)| block.x.extent(0) >= wanted(e)) {
            return Ok(());
        }
        let ExpertExtents { hidden_size, width, .. } = self.extents;
        for block in &mut self.blocks {
            *block = ExpertBlock::new(device, hidden_size, width)?;
        }
        self.blocks.iter_mut().enumerate().try_for_each(|(e, block)| block.reserve(wanted(e)))
    }

    /// Bytes that `n` rows take: exactly, but for the rows of each expert in training, where this is the most.
    pub fn bytes(device: &Device, n: usize, of: &ExpertExtents, keep: bool) -> u64 {
        let (k, size) = (of.dealing.n_experts_per_token, device.activation_dtype().size());
        let (rows, n_slots) = (Tensor::rows_reserved(n), Tensor::rows_reserved(n * k));
        let tensors = device.taken(rows * of.n_experts * size) + device.taken(n_slots * of.hidden_size * size);
        let block = |n: usize| ExpertBlock::bytes(device, n, of);
        let n_blocks = if keep { of.n_experts } else { 1 };
        tensors
            + match device {
                // The blocks stay empty: where rows go is known on the device alone.
                Device::Cuda(_) => n_blocks as u64 * block(0) + ExpertsOnGpu::bytes(device, rows, of),
                Device::Cpu(_) if n == 0 => 0,
                Device::Cpu(_) if !keep => block(rows) + Routing::bytes(rows, of.n_experts, k),
                // One row to each of as many experts as there are slots: each rounds it up. The others go to one of them.
                Device::Cpu(_) => {
                    let hit = of.n_experts.min(n * k);
                    let most = Tensor::rows_reserved(n * k - hit + 1);
                    (hit as u64 - 1) * block(16) + block(most) + Routing::bytes(rows, of.n_experts, k)
                }
            }
    }

    /// Bytes that it has.
    pub fn taken(&self) -> u64 {
        let blocks: u64 = self.blocks.iter().map(ExpertBlock::taken).sum();
        let routing = self.routing.as_ref().map_or(0, Routing::taken);
        let on_gpu = self.on_gpu.as_ref().map_or(0, ExpertsOnGpu::taken);
        self.logits.taken() + self.slots.taken() + blocks + on_gpu + routing
    }
}

/// What a feed-forward half reads and adds to, each [N, C].
pub struct FfnHalf<'a> {
    /// the residual stream
    pub stream: &'a mut Tensor,
    /// the stream after the norm; the backward reads it
    pub normed: &'a mut Tensor,
    /// scratch: what is added to the stream
    pub branch: &'a mut Tensor,
}

/// stream += ffn(rmsnorm(stream)), for the first `n` rows.
pub fn ffn_forward(
    device: &Device,
    half: FfnHalf,
    a: &mut FfnActivations,
    norm: Norm,
    w: FfnWeights,
    n: usize,
    compute: Compute,
) -> Result<()> {
    let FfnHalf { stream, normed, branch } = half;
    let out = GateUp { normed, gate: &mut a.gate, up: &mut a.up, product: &mut a.product };
    gate_up_forward(device, out, stream, norm, w, n, compute)?;
    linear_residual_forward(device, stream, branch, &a.product, w.down, n, compute)
}

/// The matrices of a layer of experts.
pub struct ExpertWeights<'a, 'w> {
    /// [E, C]
    pub router: &'a Matrix,
    /// an expert's own; on a GPU those of all lie at equal distances
    pub expert: &'a dyn Fn(usize) -> FfnWeights<'w>,
}

/// stream += sum over a row's chosen experts of weight * expert(rmsnorm(stream)), in router-rank order, for the first `n`
/// rows.
pub fn experts_forward(
    device: &Device,
    half: FfnHalf,
    a: &mut ExpertActivations,
    norm: Norm,
    w: ExpertWeights,
    n: usize,
    compute: Compute,
) -> Result<()> {
    if let Device::Cuda(cuda) = device {
        experts_on_gpu(cuda, half, a, norm, w, n);
        return Ok(());
    }
    let FfnHalf { stream, normed, branch } = half;
    let k = a.extents.dealing.n_experts_per_token;
    rmsnorm_forward(device, normed, stream, norm, n, compute);
    linear_forward(device, &mut a.logits, normed, w.router.into(), n, compute)?;
    let room = "room was made for the rows";
    route(device, a.routing.as_mut().expect(room), &a.logits, n)?;
    a.reserve_blocks(device)?;
    let ExpertActivations { routing, slots, blocks, keep, .. } = a;
    let routing = routing.as_ref().expect(room);
    for e in 0..w.router.extent(0) {
        let (own, rows) = (routing.slots_of(e), routing.rows_of(e));
        let m = own.len();
        if m == 0 {
            continue;
        }
        let block = &mut blocks[if *keep { e } else { 0 }];
        let (w, ffn) = ((w.expert)(e), &mut block.ffn);
        gather_rows(device, &mut block.x, normed, rows);
        linear_forward(device, &mut ffn.gate, &block.x, w.gate, m, compute)?;
        linear_forward(device, &mut ffn.up, &block.x, w.up, m, compute)?;
        swiglu_forward(device, &mut ffn.product, &ffn.gate, &ffn.up, m, compute);
        linear_forward(device, &mut block.y, &ffn.product, w.down, m, compute)?;
        scatter_rows(device, slots, &block.y, own);
    }
    combine_forward(device, branch, slots, &routing.weights, n, k, compute);
    residual_forward(device, stream, branch, n, compute);
    Ok(())
}

fn experts_on_gpu(cuda: &Cuda, half: FfnHalf, a: &mut ExpertActivations, norm: Norm, w: ExpertWeights, n: usize) {
    let FfnHalf { stream, normed, .. } = half;
    let (expert, router) = (w.expert, w.router.dense());
    let Dealing { n_experts_per_token: k, norm_topk_prob } = a.extents.dealing;
    let (e, c) = (router.extent(0), norm.weight.extent(0));
    let g = a.on_gpu.as_ref().expect("activations are where the weights are");
    assert!(stream.extent(0) >= n && stream.extent(1) == c && normed.shape() == stream.shape(), "stream is {stream:?}");
    assert!(g.n >= n && g.ids.extent(1) == k && a.slots.extent(0) >= n * k, "room for {} rows of {k} experts", g.n);
    let deal = Deal {
        experts: g.ids.address(),
        weights: g.weights.address(),
        logits: a.logits.bf16_address(),
        n,
        e,
        k,
        norm_topk_prob,
    };
    if norms_within(cuda, n, c) {
        let norm = norm.on_gpu();
        let (normed, stream, w) = (normed.bf16_address(), stream.bf16_address(), router.bf16_address());
        deal.route_normed(cuda, &Router { normed, stream, norm, w, c }, g.arrived.address());
    } else {
        let device = Device::Cuda(cuda.clone());
        rmsnorm_forward(&device, normed, stream, norm, n, Compute::Bf16);
        product_on(cuda, &matmul(&a.logits, normed, router, n));
        deal.route(cuda);
    }

    let first = expert(0);
    let (f, matrices) = (first.gate.extent(0), [first.gate, first.up, first.down].map(|w| w.plain().bf16_address()));
    let stride = if e > 1 { (expert(1).gate.plain().bf16_address() - matrices[0]) as usize / 2 } else { 0 };
    let last = expert(e - 1);
    for (first, last) in matrices.into_iter().zip([last.gate, last.up, last.down]) {
        let distance = 2 * (stride * (e - 1)) as u64;
        assert_eq!(last.plain().bf16_address() - first, distance, "experts lie at equal distances");
    }
    let (stream, x, ids, weights) = (stream.bf16_address(), normed.bf16_address(), deal.experts, deal.weights);
    let product = g.product.bf16_address();
    if n <= experts_rows::MAX_ROWS {
        ExpertsRows { stream, x, ids, weights, matrices, stride, n, k, c, f, product }.launch(cuda);
    } else {
        let [gate, up, down] = matrices;
        let (sorted, slots) = (g.sorted.address(), a.slots.bf16_address());
        let layer = ExpertsTile {
            stream,
            x,
            ids,
            weights,
            gate,
            up,
            down,
            stride,
            n,
            k,
            n_experts: e,
            c,
            f,
            sorted,
            product,
            slots,
        };
        layer.launch(cuda);
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;

    const EPS: f32 = 1e-5;

    /// The matrices of experts in one allocation, as a model's.
    struct Experts {
        all: Vec<[Matrix; 3]>,
    }

    impl Experts {
        fn new(n_experts: usize, c: usize, f: usize) -> Experts {
            let matrix = |seed: usize, rows: usize, columns: usize| {
                Matrix::from(stored(&random(100 + seed as u64, &[rows, columns]), Dtype::Bf16))
            };
            let one = |e: usize| [matrix(3 * e, f, c), matrix(3 * e + 1, f, c), matrix(3 * e + 2, c, f)];
            Experts { all: (0..n_experts).map(one).collect() }
        }

        fn on(&self, gpu: &Device) -> Experts {
            let Device::Cuda(cuda) = gpu else { unreachable!("gpus() are") };
            let bytes: Vec<u8> = self.all.iter().flatten().flat_map(|m| m.dense().bytes()).copied().collect();
            let buffer = cuda.allocate(bytes.len()).unwrap();
            buffer.write(&bytes).unwrap();
            let mut at = 0;
            let mut take = |t: &Tensor| {
                at += t.n_bytes();
                Tensor::over(Dtype::Bf16, t.shape(), buffer.view(at - t.n_bytes(), t.n_bytes()))
            };
            Experts { all: self.all.iter().map(|e| e.each_ref().map(|m| Matrix::from(take(m.dense())))).collect() }
        }

        fn get(&self, e: usize) -> FfnWeights<'_> {
            let [gate, up, down] = &self.all[e];
            FfnWeights { gate: gate.into(), up: up.into(), down: down.into() }
        }
    }

    /// What the CPU makes of the rows when they go where a GPU sent them: near-equal logits may send them elsewhere.
    fn judge(stream: &Tensor, normed: &Tensor, ids: &[u32], weights: &[f32], experts: &Experts, k: usize) -> Vec<f64> {
        let (n, c) = (stream.extent(0), stream.extent(1));
        let mut slots = Tensor::zeros(Dtype::F32, &[n * k, c]).unwrap();
        for (slot, &e) in ids.iter().enumerate() {
            let w = experts.get(e as usize);
            let f = w.gate.extent(0);
            let x = rows_of(normed, slot / k..slot / k + 1);
            let [mut gate, mut up, mut product] = [f, f, f].map(|width| room(&device(), 1, width));
            let mut y = room(&device(), 1, c);
            linear_forward(&device(), &mut gate, &x, w.gate, 1, Compute::Bf16).unwrap();
            linear_forward(&device(), &mut up, &x, w.up, 1, Compute::Bf16).unwrap();
            swiglu_forward(&device(), &mut product, &gate, &up, 1, Compute::Bf16);
            linear_forward(&device(), &mut y, &product, w.down, 1, Compute::Bf16).unwrap();
            scatter_rows(&device(), &mut slots, &y, &[slot]);
        }
        let (mut branch, mut sum) = (room(&device(), n, c), stored(stream, Dtype::F32));
        combine_forward(&device(), &mut branch, &slots, weights, n, k, Compute::Bf16);
        residual_forward(&device(), &mut sum, &branch, n, Compute::Bf16);
        wide(&sum)
    }

    #[test]
    fn experts_on_a_gpu_equal_the_cpu_and_do_not_depend_on_the_row_count() {
        for (c, f, e, k, norm_topk_prob) in [(32, 32, 1, 1, true), (96, 64, 7, 2, false), (288, 96, 40, 8, true)] {
            let stream = rounded(&random(1, &[70, c]));
            let norm = stored(&random(2, &[c]), Dtype::Bf16);
            let router = stored(&random(3, &[e, c]), Dtype::Bf16);
            let experts = Experts::new(e, c, f);
            let dealing = Dealing { n_experts_per_token: k, norm_topk_prob };
            let extents = ExpertExtents { hidden_size: c, width: f, n_experts: e, dealing };
            for gpu in gpus() {
                let (norm, router, experts_there) = (bf16_on(&gpu, &norm), bf16_on(&gpu, &router), experts.on(&gpu));
                let mut a = ExpertActivations::new(&gpu, extents, false).unwrap();
                let mut of = |rows: std::ops::Range<usize>| {
                    let n = rows.len();
                    a.reserve(&gpu, n).unwrap();
                    let mut y = bf16_on(&gpu, &rows_of(&stream, rows));
                    let (mut normed, mut branch) = (room(&gpu, n, c), room(&gpu, n, c));
                    let half = FfnHalf { stream: &mut y, normed: &mut normed, branch: &mut branch };
                    let w = ExpertWeights { router: &matrix(&router), expert: &|i: usize| experts_there.get(i) };
                    let norm = Norm { weight: &norm, eps: EPS };
                    experts_forward(&gpu, half, &mut a, norm, w, n, Compute::Bf16).unwrap();
                    let g = a.on_gpu.as_ref().unwrap();
                    let first = |t: &Tensor, len: usize| read(t)[..len].to_vec();
                    let ids: Vec<u32> = first(&g.ids, n * k).iter().map(|id| id.to_bits()).collect();
                    (read(&y), ids, first(&g.weights, n * k), first(&a.logits, n * e), read(&normed))
                };
                let (judge_y, judge_ids, judge_weights, logits, normed) = of(0..70);
                let logits = Tensor::from_f32(&[70, e], &logits).unwrap();
                let mut routing = Routing::new(e, dealing).unwrap();
                route(&device(), &mut routing, &logits, 70).unwrap();
                assert_eq!(judge_ids, routing.experts);
                let weights: Vec<f64> = routing.weights.iter().map(|&w| w as f64).collect();
                assert_close("weights", &judge_weights, &weights, 1e-5);
                let normed = Tensor::from_f32(&[70, c], &normed).unwrap();
                let wanted = judge(&stream, &normed, &judge_ids, &judge_weights, &experts, k);
                assert_close("stream", &judge_y, &wanted, 1.0 / 64.0);
                for n in [1, 2, 3, 8, 9, 17, 64] {
                    let (y, ids, weights, _, _) = of(0..n);
                    assert_eq!(ids, judge_ids[..n * k]);
                    assert_same_bits("weights by the row count", &weights, &judge_weights[..n * k]);
                    assert_same_bits("stream by the row count", &y, &judge_y[..n * c]);
                }
                let (y, ids, ..) = of(33..34);
                assert_eq!(ids, judge_ids[33 * k..34 * k]);
                assert_same_bits("a row alone", &y, &judge_y[33 * c..34 * c]);
            }
        }
    }

    #[test]
    fn rows_are_dealt_on_a_gpu_as_on_the_cpu_ties_included() {
        for (n, e, k) in [(1, 1, 1), (9, 7, 2), (5, 17, 17), (20, 128, 8), (3, 600, 10)] {
            // Coarse logits, so that there are ties.
            let x: Vec<f32> = random(1, &[n, e]).f32().iter().map(|x| (8.0 * x).round() / 2.0).collect();
            let logits = Tensor::from_f32(&[n, e], &x).unwrap();
            for norm_topk_prob in [false, true] {
                let mut wanted = Routing::new(e, Dealing { n_experts_per_token: k, norm_topk_prob }).unwrap();
                route(&device(), &mut wanted, &logits, n).unwrap();
                for gpu in gpus() {
                    let Device::Cuda(cuda) = &gpu else { unreachable!("gpus() are") };
                    let logits = bf16_on(&gpu, &logits);
                    let [ids, weights] = [(); 2].map(|()| Tensor::on(&gpu, Dtype::F32, &[n, k]).unwrap());
                    let (experts, weights_at) = (ids.address(), weights.address());
                    let deal = Deal { experts, weights: weights_at, logits: logits.address(), n, e, k, norm_topk_prob };
                    deal.route(cuda);
                    let ids: Vec<u32> = read(&ids).iter().map(|id| id.to_bits()).collect();
                    assert_eq!(ids, wanted.experts);
                    let wanted: Vec<f64> = wanted.weights.iter().map(|&w| w as f64).collect();
                    assert_close("weights", &read(&weights), &wanted, 1e-5);
                }
            }
        }
    }

    #[test]
    fn rows_of_nan_logits_still_go_to_distinct_experts_on_a_gpu() {
        let (n, e, k) = (3, 9, 4);
        let mut x = random(1, &[n, e]).f32().to_vec();
        x[..e].fill(f32::NAN);
        x[e + 2] = f32::NAN;
        x[2 * e + 1] = f32::INFINITY;
        let logits = Tensor::from_f32(&[n, e], &x).unwrap();
        for gpu in gpus() {
            let Device::Cuda(cuda) = &gpu else { unreachable!("gpus() are") };
            let logits = bf16_on(&gpu, &logits);
            let [ids, weights] = [(); 2].map(|()| Tensor::on(&gpu, Dtype::F32, &[n, k]).unwrap());
            let (experts, weights) = (ids.address(), weights.address());
            Deal { experts, weights, logits: logits.address(), n, e, k, norm_topk_prob: true }.route(cuda);
            for row in read(&ids).chunks(k) {
                let mut row: Vec<u32> = row.iter().map(|id| id.to_bits()).collect();
                row.sort_unstable();
                row.dedup();
                assert!(row.len() == k && row[k - 1] < e as u32, "{row:?}");
            }
        }
    }
}
