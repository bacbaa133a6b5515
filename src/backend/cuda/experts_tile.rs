//! Experts for many rows: launches of kernels/experts_tile.cu. The host knows neither how many rows an expert has nor how
//! many tiles there are; it launches as many as there could be.

use super::tile::{ROWS, Width};
use super::{Address, Cuda, KernelArgs, Launch};

/// Most experts of a layer: the sort has a thread for each.
pub const MAX_EXPERTS: usize = 1024;
const SORT_THREADS: u32 = 1024;
const SORT_SHARED: usize = (MAX_EXPERTS + 3 * 32) * 4;
const COMBINE_THREADS: u32 = 256;
/// Bytes of a tile's entry.
const TILE: usize = 16;

/// stream [n, c] += sum over rank j of weights[i, j] * down(silu(gate x) * up x) by the expert ids[i, j], rounded as
/// everywhere (docs/numerics.md). Matrices are bf16, row-major and aligned to 16 bytes; c and f are multiples of 32.
#[derive(Clone, Copy, Debug)]
pub struct ExpertsTile {
    /// [n, c] bf16
    pub stream: Address,
    /// [n, c] bf16, the stream after its norm
    pub x: Address,
    /// [n, k] u32, each below n_experts
    pub ids: Address,
    /// [n, k] f32
    pub weights: Address,
    /// [f, c] of expert 0
    pub gate: Address,
    /// [f, c] of expert 0
    pub up: Address,
    /// [c, f] of expert 0
    pub down: Address,
    /// elements between an expert's matrices and the next one's
    pub stride: usize,
    /// rows
    pub n: usize,
    /// experts of a row
    pub k: usize,
    /// experts of the layer
    pub n_experts: usize,
    /// columns of the stream
    pub c: usize,
    /// an expert's width
    pub f: usize,
    /// scratch: `sorted_bytes` bytes
    pub sorted: Address,
    /// scratch: [n k, f] bf16
    pub product: Address,
    /// scratch: [n k, c] bf16
    pub slots: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct SortArgs {
    order: Address,
    tiles: Address,
    n_tiles: Address,
    ids: Address,
    n_slots: u32,
    n_experts: u32,
    tile_tokens: u32,
    unused: u32,
}

// SAFETY: the struct of kernels/experts_tile.cu, four words of 8 bytes and four of 4.
unsafe impl KernelArgs for SortArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct ExpertsArgs {
    y: Address,
    x: Address,
    w: Address,
    up: Address,
    order: Address,
    tiles: Address,
    n_tiles: Address,
    stride: u64,
    width: u32,
    columns: u32,
    top_k: u32,
    unused: u32,
}

// SAFETY: the struct of kernels/experts_tile.cu, eight words of 8 bytes and four of 4.
unsafe impl KernelArgs for ExpertsArgs {}

#[derive(Clone, Copy)]
#[repr(C)]
struct CombineArgs {
    stream: Address,
    slots: Address,
    weights: Address,
    c: u32,
    top_k: u32,
}

// SAFETY: the struct of kernels/experts_tile.cu, three words of 8 bytes and two of 4.
unsafe impl KernelArgs for CombineArgs {}

/// Most tiles that `n_slots` can make: each expert may have one that is not full, and none is empty.
fn most_tiles(n_slots: usize, n_experts: usize, width: Width) -> usize {
    (n_slots / width.tokens() + n_experts).min(n_slots)
}

/// Bytes of scratch that sorting `n_slots` needs: tiles, their number, the order.
pub fn sorted_bytes(n_slots: usize, n_experts: usize) -> usize {
    (most_tiles(n_slots, n_experts, Width::Narrow) + 1) * TILE + 4 * n_slots
}

impl ExpertsTile {
    fn n_slots(&self) -> usize {
        self.n * self.k
    }

    /// Wide tiles where the mean expert fills one.
    fn width(&self) -> Width {
        let wide = self.n_slots() >= self.n_experts * Width::Wide.tokens();
        if wide { Width::Wide } else { Width::Narrow }
    }

    fn n_tiles(&self) -> Address {
        self.sorted + (most_tiles(self.n_slots(), self.n_experts, Width::Narrow) * TILE) as u64
    }

    fn order(&self) -> Address {
        self.n_tiles() + TILE as u64
    }

    /// Runs it: sort, gate and up, down, weighted sum.
    pub fn launch(&self, cuda: &Cuda) {
        let &ExpertsTile { c, f, n_experts, .. } = self;
        assert!(c % 32 == 0 && f % 32 == 0 && n_experts <= MAX_EXPERTS, "{n_experts} experts of {f} and {c} columns");
        if self.n == 0 {
            return;
        }
        self.sort(cuda);
        self.gate_up(cuda);
        self.down(cuda);
        self.combine(cuda);
    }

    fn sort(&self, cuda: &Cuda) {
        let args = SortArgs {
            order: self.order(),
            tiles: self.sorted,
            n_tiles: self.n_tiles(),
            ids: self.ids,
            n_slots: self.n_slots() as u32,
            n_experts: self.n_experts as u32,
            tile_tokens: self.width().tokens() as u32,
            unused: 0,
        };
        let grid = [self.n_experts as u32, 1, 1];
        cuda.launch(Launch::new("squire_experts_sort", grid, SORT_THREADS, SORT_SHARED), &args);
    }

    fn gate_up(&self, cuda: &Cuda) {
        let (y, x, row_tiles) = (self.product, self.x, (2 * self.f).div_ceil(ROWS));
        let args = ExpertsArgs { y, x, w: self.gate, up: self.up, ..self.args(self.f, self.c) };
        let kernels = ["squire_experts_gate_up_tile64", "squire_experts_gate_up_tile128"];
        cuda.launch(self.tiles(kernels, row_tiles), &args);
    }

    fn down(&self, cuda: &Cuda) {
        let args = ExpertsArgs { y: self.slots, x: self.product, w: self.down, ..self.args(self.c, self.f) };
        let kernels = ["squire_experts_down_tile64", "squire_experts_down_tile128"];
        cuda.launch(self.tiles(kernels, self.c.div_ceil(ROWS)), &args);
    }

    fn combine(&self, cuda: &Cuda) {
        let &ExpertsTile { stream, slots, weights, n, c, k, .. } = self;
        let args = CombineArgs { stream, slots, weights, c: c as u32, top_k: k as u32 };
        cuda.launch(Launch::new("squire_experts_combine", [n as u32, 1, 1], COMBINE_THREADS, 0), &args);
    }

    /// The tiles of weight rows of one tile of slots are neighbours: an expert's matrices are in use by all its tiles of
    /// slots at once, and blocks beyond the last tile come last.
    fn tiles(&self, kernels: [&'static str; 2], row_tiles: usize) -> Launch {
        let width = self.width();
        width.launch(kernels, [row_tiles, most_tiles(self.n_slots(), self.n_experts, width)])
    }

    fn args(&self, width: usize, columns: usize) -> ExpertsArgs {
        ExpertsArgs {
            y: 0,
            x: 0,
            w: 0,
            up: 0,
            order: self.order(),
            tiles: self.sorted,
            n_tiles: self.n_tiles(),
            stride: self.stride as u64,
            width: width as u32,
            columns: columns as u32,
            top_k: self.k as u32,
            unused: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tile::{self, GateUpProduct};
    use super::super::{Buffer, Matmul};
    use super::*;
    use crate::backend::ops::claims::*;
    use crate::backend::ops::{
        combine_forward, gather_rows, linear_forward, residual_forward, scatter_rows, swiglu_forward,
    };
    use crate::backend::{Compute, Device, Tensor};
    use crate::tensor::Dtype;

    /// A layer's experts, some rows and where they go; on the host, holding bf16 values.
    struct Case {
        stream: Tensor,
        x: Tensor,
        ids: Vec<u32>,
        weights: Vec<f32>,
        gate: Vec<Tensor>,
        up: Vec<Tensor>,
        down: Vec<Tensor>,
        k: usize,
    }

    impl Case {
        /// `pick(row, rank)` is the expert.
        fn new(n: usize, n_experts: usize, k: usize, c: usize, f: usize, pick: fn(usize, usize) -> u32) -> Case {
            let matrices = |seed: u64, extents: [usize; 2]| -> Vec<Tensor> {
                (0..n_experts as u64).map(|e| stored(&random(seed + e, &extents), Dtype::Bf16)).collect()
            };
            let widened = |seed, width| {
                let t = stored(&random(seed, &[n, width]), Dtype::Bf16);
                Tensor::from_f32(&[n, width], &t.to_f32()).unwrap()
            };
            Case {
                stream: widened(1, c),
                x: widened(2, c),
                ids: (0..n * k).map(|i| pick(i / k, i % k)).collect(),
                weights: random(3, &[n * k]).f32().to_vec(),
                gate: matrices(100, [f, c]),
                up: matrices(200, [f, c]),
                down: matrices(300, [c, f]),
                k,
            }
        }

        fn extents(&self) -> (usize, usize, usize, usize) {
            (self.x.extent(0), self.gate.len(), self.x.extent(1), self.gate[0].extent(0))
        }

        fn slots_of(&self, e: usize) -> Vec<usize> {
            (0..self.ids.len()).filter(|&slot| self.ids[slot] == e as u32).collect()
        }

        /// The stream afterwards, by the CPU's ops.
        fn judge(&self) -> Tensor {
            let ((n, n_experts, c, f), cpu, compute) = (self.extents(), device(), Compute::Bf16);
            let zeros = |rows, width| Tensor::zeros(Dtype::F32, &[rows, width]).unwrap();
            let mut slots = zeros(n * self.k, c);
            for e in 0..n_experts {
                let mine = self.slots_of(e);
                let rows: Vec<usize> = mine.iter().map(|slot| slot / self.k).collect();
                let m = rows.len();
                let (mut x, mut gate, mut up, mut product, mut y) =
                    (zeros(m, c), zeros(m, f), zeros(m, f), zeros(m, f), zeros(m, c));
                gather_rows(&cpu, &mut x, &self.x, &rows);
                linear_forward(&cpu, &mut gate, &x, (&matrix(&self.gate[e])).into(), m, compute).unwrap();
                linear_forward(&cpu, &mut up, &x, (&matrix(&self.up[e])).into(), m, compute).unwrap();
                swiglu_forward(&cpu, &mut product, &gate, &up, m, compute);
                linear_forward(&cpu, &mut y, &product, (&matrix(&self.down[e])).into(), m, compute).unwrap();
                scatter_rows(&cpu, &mut slots, &y, &mine);
            }
            let (mut branch, mut stream) = (zeros(n, c), stored(&self.stream, Dtype::F32));
            combine_forward(&cpu, &mut branch, &slots, &self.weights, n, self.k, compute);
            residual_forward(&cpu, &mut stream, &branch, n, compute);
            stream
        }
    }

    /// The case on a GPU: experts side by side with a gap between them, scratch.
    struct OnGpu {
        stream: Tensor,
        slots: Tensor,
        order: Buffer,
        /// What `args` names and nobody reads here.
        _kept: Vec<Tensor>,
        buffers: Vec<Buffer>,
        args: ExpertsTile,
    }

    fn words(cuda: &Cuda, words: &[u32]) -> Buffer {
        let buffer = cuda.allocate(4 * words.len()).unwrap();
        buffer.write(&words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>()).unwrap();
        buffer
    }

    fn put(gpu: &Device, case: &Case) -> OnGpu {
        let Device::Cuda(cuda) = gpu else { unreachable!("gpus() are") };
        let (n, n_experts, c, f) = case.extents();
        let (k, gap) = (case.k, 32);
        let stride = f * c + gap;
        let side_by_side = |experts: &[Tensor]| {
            let all: Vec<f32> = experts.iter().flat_map(|w| [w.to_f32(), vec![f32::NAN; gap]].concat()).collect();
            bf16_on(gpu, &Tensor::from_f32(&[n_experts, stride], &all).unwrap())
        };
        let matrices = [&case.gate, &case.up, &case.down].map(|w| side_by_side(w));
        let (stream, x) = (bf16_on(gpu, &case.stream), bf16_on(gpu, &case.x));
        let (slots, product) =
            (Tensor::on(gpu, Dtype::Bf16, &[n * k, c]).unwrap(), Tensor::on(gpu, Dtype::Bf16, &[n * k, f]).unwrap());
        let ids = words(cuda, &case.ids);
        let weights = words(cuda, &case.weights.iter().map(|w| w.to_bits()).collect::<Vec<u32>>());
        let sorted = cuda.allocate(sorted_bytes(n * k, n_experts)).unwrap();
        let [gate, up, down] = [0, 1, 2].map(|i| matrices[i].address());
        let args = ExpertsTile {
            stream: stream.address(),
            x: x.address(),
            ids: ids.address(),
            weights: weights.address(),
            gate,
            up,
            down,
            stride,
            n,
            k,
            n_experts,
            c,
            f,
            sorted: sorted.address(),
            product: product.address(),
            slots: slots.address(),
        };
        let order = sorted.view((args.order() - sorted.address()) as usize, 4 * n * k);
        let _kept = matrices.into_iter().chain([x, product]).collect();
        OnGpu { stream, slots, order, _kept, buffers: vec![ids, weights, sorted], args }
    }

    fn cases() -> Vec<Case> {
        vec![
            // Some experts without rows, one with half of all.
            Case::new(9, 8, 2, 64, 32, |row, rank| if rank == 0 { 5 } else { [0, 1, 7][row % 3] }),
            // Tails: outputs of one and a half tiles, experts of one row and of more than a tile.
            Case::new(70, 4, 2, 160, 96, |row, rank| if row == 3 { [2, 1][rank] } else { [0, 3][rank] }),
            // Every row goes everywhere.
            Case::new(33, 4, 4, 32, 64, |row, rank| ((row + rank) % 4) as u32),
            // Wide tiles, all rows to the same experts.
            Case::new(260, 4, 2, 64, 32, |_, rank| [3, 1][rank]),
        ]
    }

    #[test]
    fn experts_of_many_rows_equal_the_cpu_and_leave_slots_in_order() {
        for case in cases() {
            let wanted = wide(&case.judge());
            let order: Vec<u32> = (0..case.gate.len()).flat_map(|e| case.slots_of(e)).map(|slot| slot as u32).collect();
            for gpu in gpus() {
                let on = put(&gpu, &case);
                on.args.launch(on.buffers[0].device());
                assert_close("stream", &read(&on.stream), &wanted, 1.0 / 64.0);
                let got = on.order.read().unwrap();
                let got: Vec<u32> = got.chunks(4).map(|w| u32::from_ne_bytes(w.try_into().unwrap())).collect();
                assert_eq!(got, order);
            }
        }
    }

    #[test]
    fn an_expert_gives_its_rows_the_bits_of_dense_products_and_rows_sum_them_by_rank() {
        for case in cases() {
            let (n, n_experts, c, f) = case.extents();
            for gpu in gpus() {
                let on = put(&gpu, &case);
                let (cuda, args) = (on.buffers[0].device(), on.args);
                args.launch(cuda);
                let slots = read(&on.slots);
                for e in 0..n_experts {
                    let mine = case.slots_of(e);
                    let rows: Vec<f32> =
                        mine.iter().flat_map(|slot| &case.x.f32()[slot / case.k * c..][..c]).copied().collect();
                    let m = mine.len();
                    let x = bf16_on(&gpu, &Tensor::from_f32(&[m, c], &rows).unwrap());
                    let (product, y) = (
                        Tensor::on(&gpu, Dtype::Bf16, &[m, f]).unwrap(),
                        Tensor::on(&gpu, Dtype::Bf16, &[m, c]).unwrap(),
                    );
                    let [gate, up, down] =
                        [&case.gate[e], &case.up[e], &case.down[e]].map(|w| w.to_device(&gpu).unwrap());
                    let (px, py) = (product.address(), y.address());
                    let dense =
                        GateUpProduct { y: px, x: x.address(), gate: gate.address(), up: up.address(), n: m, f, k: c };
                    let scratch = [(); 2].map(|_| Tensor::on(&gpu, Dtype::Bf16, &[m, f]).unwrap());
                    tile::gate_up(cuda, &dense, [scratch[0].address(), scratch[1].address()]);
                    tile::product(cuda, &Matmul { y: py, x: px, w: down.address(), n: m, m: c, k: f, y_stride: c });
                    // A library's products would have other bits.
                    if !cuda.api().has_matmul() {
                        let of_mine: Vec<f32> = mine.iter().flat_map(|slot| &slots[slot * c..][..c]).copied().collect();
                        assert_same_bits("slots", &of_mine, &read(&y));
                    }
                }
                let (mut branch, mut stream) =
                    (Tensor::zeros(Dtype::F32, &[n, c]).unwrap(), stored(&case.stream, Dtype::F32));
                let slots = Tensor::from_f32(&[n * case.k, c], &slots).unwrap();
                combine_forward(&device(), &mut branch, &slots, &case.weights, n, case.k, Compute::Bf16);
                residual_forward(&device(), &mut stream, &branch, n, Compute::Bf16);
                assert_same_bits("stream", &read(&on.stream), stream.f32());
            }
        }
    }
}
