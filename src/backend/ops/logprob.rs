//! Log-probabilities of token ids from rows of logits [N, V].
//!
//! A row is cut into fixed chunks of 4096 ids. Chunk j gives m_j = max of x and s_j = sum of e^(x - m_j), sixteen
//! lanes in the canonical order; with M = max of m_j the row's log-sum-exp is M + ln(sum over j, in order,
//! of s_j e^(m_j - M)), in f64, and log p(id) = x[id] - lse, rounded to f32 once. Every user of a row's
//! log-probability (losses, sampling, the tally of alternatives) takes it from here, so it is one number.

use std::collections::BinaryHeap;

use crate::backend::cpu::{Cpu, FloatEnv, Kernel, Lanes, Scratch, Shared, math, piece};
use crate::backend::cuda::{Address, Buffer, Cuda, KernelArgs, Launch};
use crate::backend::host::{self, Plain};
use crate::backend::{Device, Tensor};
use crate::error::Result;
use crate::tensor::Dtype;

/// Ids of a chunk.
pub(super) const CHUNK: usize = 4096;

/// ln of the sum of e^x over each of the first `n` rows.
pub fn logsumexp(device: &Device, logits: &Tensor, n: usize) -> Result<Vec<f32>> {
    let cpu = device.cpu();
    let _env = FloatEnv::set();
    let sums = row_sums(cpu, logits, &host::collected(0..n)?)?;
    host::collected(sums.rows.iter().map(|r| r.lse() as f32))
}

/// `log p(ids[i])` under row i, in nats, for the first `n` rows.
pub fn logprobs_of(device: &Device, logits: &Tensor, ids: &[i32], n: usize) -> Result<Vec<f32>> {
    let v = logits.extent(1);
    let ids = &ids[..n];
    assert!(ids.iter().all(|&id| id >= 0 && (id as usize) < v), "an id lies outside the vocabulary of {v}");
    let cpu = device.cpu();
    let _env = FloatEnv::set();
    let sums = row_sums(cpu, logits, &host::collected(0..n)?)?;
    let x = logits.f32();
    host::collected(ids.iter().enumerate().map(|(i, &id)| sums.rows[i].logprob(x[i * v + id as usize])))
}

/// The `k` most likely ids of a row with their log-probabilities, most likely first, ties to the lower id. NaN is
/// never chosen.
pub fn top_k(device: &Device, logits: &Tensor, row: usize, k: usize) -> Result<Vec<(i32, f32)>> {
    let v = logits.extent(1);
    let cpu = device.cpu();
    let _env = FloatEnv::set();
    let sums = row_sums(cpu, logits, &[row])?;
    let x = &logits.f32()[row * v..][..v];
    let best = largest(x, sums.chunks(0), k)?;
    host::collected(best.into_iter().map(|id| (id as i32, sums.rows[0].logprob(x[id]))))
}

/// Threads that work on a row on a GPU, and the most ids that are ranked there.
const ROW_THREADS: u32 = 1024;

/// Bytes of shared memory of what selects from a row: sums, what is left, bins, a list of its strips of 16 ids.
pub fn select_bytes(v: usize) -> usize {
    ROW_BYTES + 32 + 2048 * 8 + 4 * v.div_ceil(16)
}

/// Bytes of shared memory of what sums a row up.
const ROW_BYTES: usize = 280;

/// The statistics [R, ceil(V/16), 2] of the first `n` rows of logits on a GPU, where their maker left none.
pub fn logit_stats(device: &Device, stats: &mut Tensor, logits: &Tensor, n: usize) {
    let Device::Cuda(cuda) = device else { panic!("statistics are made on a GPU alone") };
    let v = logits.extent(1);
    let strips = v.div_ceil(16);
    assert!(n <= logits.extent(0) && n <= stats.extent(0), "{n} rows of {logits:?}, {stats:?}");
    assert_eq!((stats.extent(1), stats.extent(2)), (strips, 2), "statistics of {logits:?}");
    let args = LogitStatsArgs { stats: stats.address(), logits: logits.address(), v: v as u32, unused: 0 };
    let grid = [strips.div_ceil(64) as u32, n as u32, 1];
    cuda.launch(Launch::new("squire_logit_stats", grid, 256, 0), &args);
}

/// `log p(ids[i])` under row i, on a GPU. Waits.
pub(super) fn logprobs_on(cuda: &Cuda, logits: &Tensor, stats: &Tensor, ids: &[i32]) -> Result<Vec<f32>> {
    let (n, v) = (ids.len(), logits.extent(1));
    assert!(n <= logits.extent(0) && n <= stats.extent(0), "{n} rows of {logits:?}, {stats:?}");
    assert!(ids.iter().all(|&id| id >= 0 && (id as usize) < v), "an id lies outside the vocabulary of {v}");
    if n == 0 {
        return Ok(Vec::new());
    }
    let memory = cuda.allocate(8 * n)?;
    let (asked, out) = (memory.view(0, 4 * n), memory.view(4 * n, 4 * n));
    asked.write_by(|at, piece| {
        let words = piece.chunks_exact_mut(4).zip(&ids[at / 4..]);
        words.for_each(|(to, id)| to.copy_from_slice(&id.to_ne_bytes()));
    })?;
    let args = LogprobsArgs {
        logprobs: out.address(),
        logits: logits.address(),
        stats: stats.address(),
        ids: asked.address(),
        v: v as u32,
        unused: 0,
    };
    cuda.launch(Launch::new("squire_logprobs", [n as u32, 1, 1], ROW_THREADS, ROW_BYTES), &args);
    host::collected(words(&out)?.into_iter().map(f32::from_bits))
}

/// `top_k` of a row on a GPU; beyond 1024 ids the row is ranked on the host. Waits.
pub(super) fn top_k_on(cuda: &Cuda, logits: &Tensor, stats: &Tensor, row: usize, k: usize) -> Result<Vec<(i32, f32)>> {
    let v = logits.extent(1);
    assert!(row < logits.extent(0) && row < stats.extent(0), "row {row} of {logits:?}, {stats:?}");
    let k = k.min(v);
    if k == 0 {
        return Ok(Vec::new());
    }
    let (from, stats) = (logits.buffer().view(row * v * 4, v * 4), stats.address() + (row * v.div_ceil(16) * 8) as u64);
    if k > ROW_THREADS as usize {
        let mut copy = Tensor::zeros(Dtype::F32, &[1, v])?;
        from.read_into(copy.bytes_mut())?;
        return top_k(&Device::Cpu(Cpu::new(1, None)?), &copy, 0, k);
    }
    let memory = cuda.allocate(8 * k + 4)?;
    let of = |word: usize| memory.address() + 4 * word as u64;
    let (ids, logprobs, counts) = (of(0), of(k), of(2 * k));
    let args = TopKArgs { ids, logprobs, counts, logits: from.address(), stats, v: v as u32, k: k as u32 };
    cuda.launch(Launch::new("squire_top_k", [1, 1, 1], ROW_THREADS, select_bytes(v)), &args);
    let words = words(&memory)?;
    let (ids, logprobs) = words[..2 * k].split_at(k);
    let best = ids.iter().zip(logprobs).map(|(&id, &logprob)| (id as i32, f32::from_bits(logprob)));
    Ok(best.take(words[2 * k] as usize).collect())
}

/// 32-bit words of device memory, after all that was launched.
fn words(buffer: &Buffer) -> Result<Vec<u32>> {
    host::collected(buffer.read()?.chunks_exact(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]])))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LogitStatsArgs {
    stats: Address,
    logits: Address,
    v: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LogprobsArgs {
    logprobs: Address,
    logits: Address,
    stats: Address,
    ids: Address,
    v: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TopKArgs {
    ids: Address,
    logprobs: Address,
    counts: Address,
    logits: Address,
    stats: Address,
    v: u32,
    k: u32,
}

// SAFETY: the structs of kernels/logprob.cu, without padding.
unsafe impl KernelArgs for LogitStatsArgs {}
// SAFETY: as above.
unsafe impl KernelArgs for LogprobsArgs {}
// SAFETY: as above.
unsafe impl KernelArgs for TopKArgs {}

/// A chunk's largest logit (-inf where there is none) and the sum of e^(x - largest).
#[derive(Clone, Copy, Default)]
pub(super) struct ChunkSum {
    pub largest: f32,
    pub sum: f32,
}

// SAFETY: two f32 without padding, and any bits are one.
unsafe impl Plain for ChunkSum {}

/// What the chunks of a row add up to.
pub(super) struct RowSum {
    /// The row's largest logit, NaN apart.
    pub largest: f32,
    /// ln of the sum of e^(x - largest).
    pub ln_sum: f64,
}

impl RowSum {
    pub fn new(chunks: impl Iterator<Item = ChunkSum> + Clone) -> RowSum {
        let largest = chunks.clone().fold(f32::NEG_INFINITY, |m, c| if c.largest > m { c.largest } else { m });
        let scaled = |c: ChunkSum| c.sum as f64 * exp_at_most_one(c.largest as f64 - largest as f64);
        let sum: f64 = chunks.map(scaled).sum();
        // Where a logit is NaN or infinite, or all are -inf, there is no distribution.
        let ln_sum = if sum > 0.0 && sum.is_finite() { math::ln(sum) } else { f64::NAN };
        RowSum { largest, ln_sum }
    }

    pub fn lse(&self) -> f64 {
        self.largest as f64 + self.ln_sum
    }

    pub fn logprob(&self, logit: f32) -> f32 {
        (logit as f64 - self.lse()) as f32
    }
}

/// e^x for x <= 0 of any size; NaN stays NaN.
pub(super) fn exp_at_most_one(x: f64) -> f64 {
    if x < -700.0 { 0.0 } else { math::exp_f64(x) }
}

/// The sums of some rows and of their chunks.
pub(super) struct RowSums {
    pub rows: Vec<RowSum>,
    chunks: Scratch<ChunkSum>,
}

impl RowSums {
    /// The chunks of the i-th of the rows.
    pub fn chunks(&self, i: usize) -> &[ChunkSum] {
        let n = self.chunks.len() / self.rows.len();
        &self.chunks[i * n..(i + 1) * n]
    }
}

/// The sums of some rows of logits [N, V]; the caller has set the float environment.
pub(super) fn row_sums(cpu: &Cpu, logits: &Tensor, rows: &[usize]) -> Result<RowSums> {
    assert!(rows.iter().all(|&row| row < logits.extent(0)), "a row lies outside the logits, {}", logits.shape());
    sums_of(cpu, logits.f32(), logits.extent(1), rows)
}

/// The same of logits x [N, v].
pub(super) fn sums_of(cpu: &Cpu, x: &[f32], v: usize, rows: &[usize]) -> Result<RowSums> {
    let n_chunks = v.div_ceil(CHUNK);
    let mut chunks = cpu.scratch::<ChunkSum>(rows.len() * n_chunks)?;
    let n_tasks = chunks.len();
    cpu.launch(n_tasks, &ChunkSums { chunks: Shared::new(&mut chunks), x, rows, v });
    let rows = host::collected(chunks.chunks_exact(n_chunks).map(|c| RowSum::new(c.iter().copied())))?;
    Ok(RowSums { rows, chunks })
}

/// Task i: chunk i % n_chunks of row rows[i / n_chunks].
struct ChunkSums<'a> {
    chunks: Shared<ChunkSum>,
    x: &'a [f32],
    rows: &'a [usize],
    v: usize,
}

/// The last lanes of a row, and -inf in the lanes beyond it.
///
/// # Safety
/// `n` elements (at most 16) are readable.
#[inline(always)]
pub(super) unsafe fn load_or_minus_infinity<V: Lanes>(p: *const f32, n: usize) -> V {
    // SAFETY: the caller's.
    unsafe {
        if n >= 16 {
            return V::load(p);
        }
        let mut x = [f32::NEG_INFINITY; 16];
        std::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), n);
        V::load(x.as_ptr())
    }
}

impl Kernel for ChunkSums<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let n_chunks = self.v.div_ceil(CHUNK);
        let range = piece(index % n_chunks, CHUNK, self.v);
        let start = self.rows[index / n_chunks] * self.v + range.start;
        // SAFETY: the chunk lies inside the row, and each task writes its own element.
        unsafe {
            let x = self.x.as_ptr().add(start);
            let mut largest = V::splat(f32::NEG_INFINITY);
            let mut i = 0;
            while i < range.len() {
                largest = load_or_minus_infinity::<V>(x.add(i), range.len() - i).max(largest);
                i += 16;
            }
            let largest = largest.reduce_max();
            let sum = if largest == f32::NEG_INFINITY {
                // Nothing but masked ids, or NaN.
                let nan = self.x[start..start + range.len()].iter().any(|x| x.is_nan());
                if nan { f32::NAN } else { 0.0 }
            } else {
                let m = V::splat(largest);
                let mut acc = V::zero();
                let mut i = 0;
                while i + 16 <= range.len() {
                    acc = acc.add(math::exp(V::load(x.add(i)).sub(m)));
                    i += 16;
                }
                if i < range.len() {
                    let n = range.len() - i;
                    let mut e = [0.0f32; 16];
                    math::exp(load_or_minus_infinity::<V>(x.add(i), n).sub(m)).store_tail(e.as_mut_ptr(), n);
                    acc = acc.add(V::load(e.as_ptr()));
                }
                acc.reduce_add()
            };
            *self.chunks.at(index) = ChunkSum { largest, sum };
        }
    }
}

/// The indices of the `k` largest elements, largest first, ties to the lower index, NaN and -inf apart. Chunks
/// whose largest element cannot enter are skipped.
pub(super) fn largest(x: &[f32], chunks: &[ChunkSum], k: usize) -> Result<Vec<usize>> {
    // A sorted list would move k elements an insertion; the heap keeps the worst of the chosen on top.
    let mut chosen = BinaryHeap::from(host::with_room::<Ranked>(k.min(x.len()))?);
    for (j, chunk) in chunks.iter().enumerate() {
        let mut floor = if chosen.len() < k { f32::NEG_INFINITY } else { chosen.peek().map_or(f32::INFINITY, |w| w.x) };
        if chunk.largest <= floor {
            continue;
        }
        for i in piece(j, CHUNK, x.len()) {
            // Ids come in rising order, so an equal one never replaces an earlier one.
            if x[i] > floor {
                if chosen.len() == k {
                    chosen.pop();
                }
                chosen.push(Ranked { x: x[i], i });
                if chosen.len() == k {
                    floor = chosen.peek().map_or(f32::INFINITY, |w| w.x);
                }
            }
        }
    }
    host::collected(chosen.into_sorted_vec().into_iter().map(|w| w.i))
}

/// A candidate; greater is worse: a smaller logit, or an equal one with a higher index.
#[derive(PartialEq)]
pub(super) struct Ranked {
    pub x: f32,
    pub i: usize,
}

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Ranked) -> std::cmp::Ordering {
        // total_cmp would part -0 from +0; no NaN comes here.
        other.x.partial_cmp(&self.x).unwrap_or(std::cmp::Ordering::Equal).then(self.i.cmp(&other.i))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Ranked) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;

    const EXTENTS: [(usize, usize); 5] = [(1, 1), (3, 17), (2, 4096), (2, 4097), (3, 20_011)];

    fn logits(n: usize, v: usize) -> Tensor {
        let x: Vec<f32> = random(1, &[n, v]).f32().iter().map(|x| 20.0 * x).collect();
        Tensor::from_f32(&[n, v], &x).unwrap()
    }

    fn formula(row: &[f64]) -> f64 {
        let m = row.iter().fold(f64::MIN, |m, &x| m.max(x));
        m + row.iter().map(|x| (x - m).exp()).sum::<f64>().ln()
    }

    #[test]
    fn logprobs_equal_the_formula_with_one_set_of_bits() {
        for (n, v) in EXTENTS {
            let logits = logits(n, v);
            let lse: Vec<f64> = wide(&logits).chunks_exact(v).map(formula).collect();
            let ids: Vec<i32> = (0..n).map(|i| ((i * 7919) % v) as i32).collect();
            let wanted: Vec<f64> = (0..n).map(|i| wide(&logits)[i * v + ids[i] as usize] - lse[i]).collect();
            let mut judge: Option<Vec<f32>> = None;
            for device in devices() {
                assert_close("lse", &logsumexp(&device, &logits, n).unwrap(), &lse, 1e-6);
                let got = logprobs_of(&device, &logits, &ids, n).unwrap();
                assert_close("logprobs", &got, &wanted, 1e-6);
                assert_same_bits("logprobs", &got, judge.get_or_insert_with(|| got.clone()));
                for (i, &id) in ids.iter().enumerate() {
                    let row = Tensor::from_f32(&[1, v], &logits.f32()[i * v..(i + 1) * v]).unwrap();
                    assert_same_bits("row", &logprobs_of(&device, &row, &[id], 1).unwrap(), &got[i..=i]);
                }
            }
        }
    }

    #[test]
    fn top_k_is_ordered_by_logprob_then_id() {
        let device = device();
        for (n, v) in EXTENTS {
            // Coarse logits, so that there are many ties.
            let x: Vec<f32> = logits(n, v).f32().iter().map(|x| x.round()).collect();
            let logits = Tensor::from_f32(&[n, v], &x).unwrap();
            for row in 0..n {
                let mut order: Vec<usize> = (0..v).collect();
                order.sort_by(|&a, &b| x[row * v + b].partial_cmp(&x[row * v + a]).unwrap().then(a.cmp(&b)));
                for k in [0, 1, 5, 100, v, v + 1] {
                    let got = top_k(&device, &logits, row, k).unwrap();
                    assert_eq!(got.len(), k.min(v));
                    for (at, (&(id, logprob), &wanted)) in got.iter().zip(&order).enumerate() {
                        assert_eq!(id as usize, wanted);
                        if at % 100 == 0 {
                            assert_eq!(logprob, logprobs_of(&device, &logits, &vec![id; n], n).unwrap()[row]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn masked_ids_add_nothing_and_a_nan_is_not_hidden() {
        let mut x = vec![f32::NEG_INFINITY; 9000];
        (x[5000], x[5001]) = (1.0, 2.0);
        let lse = |x: &[f32]| logsumexp(&device(), &Tensor::from_f32(&[1, x.len()], x).unwrap(), 1).unwrap()[0];
        assert_close("lse", &[lse(&x)], &[formula(&[1.0, 2.0])], 1e-7);
        for at in [0, 5002, 8999] {
            let mut x = x.clone();
            x[at] = f32::NAN;
            assert!(lse(&x).is_nan());
        }
        let logits = Tensor::from_f32(&[1, 9000], &x).unwrap();
        let ids: Vec<i32> = top_k(&device(), &logits, 0, 9000).unwrap().iter().map(|t| t.0).collect();
        assert_eq!(ids, [5001, 5000]);
        assert!(lse(&vec![f32::NEG_INFINITY; 5000]).is_nan());
        assert_eq!(lse(&[3e38, -3e38]), 3e38);
    }

    /// Logits on a GPU with their statistics.
    fn on_gpu(gpu: &Device, logits: &Tensor) -> (Tensor, Tensor) {
        let (n, v) = (logits.extent(0), logits.extent(1));
        let logits = logits.to_device(gpu).unwrap();
        let mut stats = Tensor::on(gpu, Dtype::F32, &[n, v.div_ceil(16), 2]).unwrap();
        logit_stats(gpu, &mut stats, &logits, n);
        (logits, stats)
    }

    #[test]
    fn statistics_on_a_gpu_are_those_of_sixteen_ids() {
        for gpu in gpus() {
            let mut x = logits(2, 1040).f32().to_vec();
            x.iter_mut().skip(16).take(16).for_each(|x| *x = f32::NEG_INFINITY);
            (x[40], x[50]) = (f32::NAN, f32::INFINITY);
            let (_, stats) = on_gpu(&gpu, &Tensor::from_f32(&[2, 1040], &x).unwrap());
            for (i, (strip, got)) in x.chunks(16).zip(read(&stats).chunks(2)).enumerate() {
                let largest = strip.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
                let sum: f64 = strip.iter().map(|&x| (x as f64 - largest as f64).exp()).sum();
                assert_eq!(got[0], largest, "strip {i}");
                match i {
                    1 => assert_eq!(got[1], 0.0),
                    2 | 3 => assert!(got[1].is_nan()),
                    _ => assert!((got[1] as f64 - sum).abs() < 1e-5, "strip {i}: {} and not {sum}", got[1]),
                }
            }
        }
    }

    #[test]
    fn logprobs_on_a_gpu_are_the_cpus() {
        for (n, v) in [(1, 1), (3, 17), (2, 4096), (5, 4097)] {
            let logits = logits(n, v);
            let ids: Vec<i32> = (0..n).map(|i| ((i * 7919) % v) as i32).collect();
            let wanted = logprobs_of(&device(), &logits, &ids, n).unwrap();
            for gpu in gpus() {
                let Device::Cuda(cuda) = &gpu else { unreachable!() };
                let (logits, stats) = on_gpu(&gpu, &logits);
                let got = logprobs_on(cuda, &logits, &stats, &ids).unwrap();
                for (g, w) in got.iter().zip(&wanted) {
                    assert!((g - w).abs() <= 1e-5 * (1.0 + w.abs()), "V {v}: {g} and not {w}");
                }
            }
        }
    }

    #[test]
    fn a_row_without_a_distribution_gives_nan_for_every_id_on_a_gpu_too() {
        let whole: Vec<f32> = logits(1, 300).f32().to_vec();
        let with = |bad: f32| whole.iter().enumerate().map(|(i, &x)| if i == 123 { bad } else { x }).collect();
        for x in [with(f32::NAN), with(f32::INFINITY), vec![f32::NEG_INFINITY; 300]] {
            let logits = Tensor::from_f32(&[1, 300], &x).unwrap();
            for id in [0, 123, 299] {
                assert!(logprobs_of(&device(), &logits, &[id], 1).unwrap()[0].is_nan());
                for gpu in gpus() {
                    let Device::Cuda(cuda) = &gpu else { unreachable!() };
                    let (logits, stats) = on_gpu(&gpu, &logits);
                    assert!(logprobs_on(cuda, &logits, &stats, &[id]).unwrap()[0].is_nan());
                }
            }
        }
    }

    #[test]
    fn top_k_on_a_gpu_is_the_cpus() {
        for (n, v) in [(1, 1), (2, 17), (1, 1000), (2, 4097)] {
            let fine = logits(n, v);
            let coarse: Vec<f32> = fine.f32().iter().map(|x| x.round()).collect();
            let mut masked = vec![f32::NEG_INFINITY; n * v];
            masked.iter_mut().step_by(3).for_each(|x| *x = -0.0);
            masked.iter_mut().step_by(6).for_each(|x| *x = 0.0);
            let mut bad = fine.f32().to_vec();
            (bad[v / 2], bad[v / 3]) = (f32::NAN, -f32::NAN);
            for x in [fine.f32(), &coarse, &masked, &bad, &vec![f32::NEG_INFINITY; n * v]] {
                let logits = Tensor::from_f32(&[n, v], x).unwrap();
                for gpu in gpus() {
                    let Device::Cuda(cuda) = &gpu else { unreachable!() };
                    let (on_gpu, stats) = on_gpu(&gpu, &logits);
                    for k in [0, 1, 5, 100, 1024, 3000] {
                        let wanted = top_k(&device(), &logits, n - 1, k).unwrap();
                        let got = top_k_on(cuda, &on_gpu, &stats, n - 1, k).unwrap();
                        assert_eq!(got.len(), wanted.len(), "V {v}, k {k}");
                        for (g, w) in got.iter().zip(&wanted) {
                            assert_eq!(g.0, w.0, "V {v}, k {k}");
                            let close = (g.1 - w.1).abs() <= 1e-5 * (1.0 + w.1.abs());
                            assert!(close || (g.1.is_nan() && w.1.is_nan()), "{g:?} and not {w:?}");
                        }
                    }
                }
            }
        }
    }
}
