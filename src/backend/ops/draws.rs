//! The tokens that one decode step draws, a row each.
//!
//! On the CPU they are there when the op returns. On a GPU they come later: `drawn` stays on the device, where the next
//! step's embedding reads it, and the records are sent to the host, which waits for them when it wants to know.

use std::collections::VecDeque;

use super::head::Head;
use super::logprob::select_bytes;
use super::sample::{Sampled, sample_token};
use crate::backend::cuda::step::{Draw, put};
use crate::backend::cuda::{Address, Buffer, Cuda, Event, KernelArgs, Launch, Pinned};
use crate::backend::terms::{MAX_DECODE_ROWS, Pick};
use crate::backend::{Batch, Device, Tensor, host};
use crate::error::Result;

/// Bytes of a record: id, log-prob, log-prob it was drawn with.
const RECORD: usize = 12;

/// Draws of one step.
pub struct Draws {
    /// of the CPU
    sampled: Vec<Sampled>,
    gpu: Option<OnGpu>,
}

/// Fixed addresses, so that a graph may name them.
struct OnGpu {
    device: Cuda,
    /// i32 [64]
    drawn: Buffer,
    /// [64] records of the last step
    records: Buffer,
    /// steps on their way to the host, first sent first
    sent: VecDeque<Sent>,
    /// what was taken, to be used again
    spare: Vec<Sent>,
}

struct Sent {
    pinned: Pinned,
    event: Event,
    n: usize,
}

/// Draws a token for each row of the head's logits; on a GPU as the batch's step says.
pub fn sample_rows(device: &Device, draws: &mut Draws, head: &Head, wanted: &[Pick], batch: &Batch) -> Result<()> {
    match device {
        Device::Cpu(_) => {
            let mut sampled = host::with_room(wanted.len())?;
            for (i, pick) in wanted.iter().enumerate() {
                sampled.push(sample_token(device, &head.logits, i, pick)?);
            }
            draws.sampled = sampled;
        }
        Device::Cuda(cuda) => {
            let gpu = draws.gpu.as_ref().expect("the draws of a GPU lie there");
            let (rows, at) = (batch.plan().rows, batch.addresses());
            assert!(rows <= MAX_DECODE_ROWS, "{rows} rows draw at once");
            // The step's first word is the number of its rows.
            let out = (gpu.drawn.address(), gpu.records.address());
            launch(cuda, &head.logits, head.stats(), 0, rows, (at.counts, at.draws), out);
        }
    }
    Ok(())
}

/// Draws from a row of the head's logits, and waits for it.
pub fn sample_row(device: &Device, head: &Head, row: usize, pick: &Pick) -> Result<Sampled> {
    match device {
        Device::Cpu(_) => sample_token(device, &head.logits, row, pick),
        Device::Cuda(cuda) => sample_row_on(cuda, &head.logits, head.stats(), row, pick),
    }
}

/// The same from the first `v` ids alone, as if a row had no more. On the CPU.
pub fn sample_row_among(device: &Device, head: &Head, row: usize, v: usize, pick: &Pick) -> Result<Sampled> {
    sample_token(device, &head.part(row, v)?, 0, pick)
}

/// Draws from row `row` on a GPU, and waits for it.
fn sample_row_on(cuda: &Cuda, logits: &Tensor, stats: &Tensor, row: usize, pick: &Pick) -> Result<Sampled> {
    const COUNT: usize = 16;
    const DRAW: usize = size_of::<Draw>();
    let memory = cuda.allocate(COUNT + DRAW + 4 + RECORD)?;
    let mut asked = [0; COUNT + DRAW];
    put(&mut asked, 0, &[1u32]);
    put(&mut asked, COUNT, &[Draw::from(pick)]);
    memory.view(0, COUNT + DRAW).write(&asked)?;
    let of = |offset: usize| memory.address() + offset as u64;
    launch(cuda, logits, stats, row, 1, (of(0), of(COUNT)), (of(COUNT + DRAW), of(COUNT + DRAW + 4)));
    Ok(sampled(&memory.view(COUNT + DRAW + 4, RECORD).read()?))
}

/// `asked`: how many rows are in use, and their draws; `out`: ids and records.
fn launch(
    cuda: &Cuda,
    logits: &Tensor,
    stats: &Tensor,
    first: usize,
    n: usize,
    asked: (Address, Address),
    out: (Address, Address),
) {
    let v = logits.extent(1);
    assert!(first + n <= logits.extent(0) && first + n <= stats.extent(0), "{n} rows from {first} of {logits:?}");
    let (stats, logits) = (stats.address(), logits.address());
    let args = SampleArgs {
        logits: logits + (first * v * 4) as u64,
        stats: stats + (first * v.div_ceil(16) * 8) as u64,
        rows: asked.0,
        draws: asked.1,
        drawn: out.0,
        records: out.1,
        v: v as u32,
        unused: 0,
    };
    cuda.launch(Launch::new("squire_sample", [n as u32, 1, 1], 1024, select_bytes(v)), &args);
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SampleArgs {
    logits: Address,
    stats: Address,
    rows: Address,
    draws: Address,
    drawn: Address,
    records: Address,
    v: u32,
    unused: u32,
}

// SAFETY: the struct of kernels/sample.cu, without padding.
unsafe impl KernelArgs for SampleArgs {}

fn sampled(record: &[u8]) -> Sampled {
    let word = |i: usize| u32::from_ne_bytes([record[i], record[i + 1], record[i + 2], record[i + 3]]);
    let (logprob, sampled_logprob) = (f32::from_bits(word(4)), f32::from_bits(word(8)));
    Sampled { id: word(0) as i32, logprob, sampled_logprob }
}

impl Draws {
    /// Room for the draws of a step.
    pub fn new(device: &Device) -> Result<Draws> {
        let gpu = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(OnGpu {
                device: cuda.clone(),
                drawn: cuda.allocate(4 * MAX_DECODE_ROWS)?,
                records: cuda.allocate(RECORD * MAX_DECODE_ROWS)?,
                sent: VecDeque::new(),
                spare: Vec::new(),
            }),
        };
        Ok(Draws { sampled: Vec::new(), gpu })
    }

    /// Bytes of a GPU that it takes; none of the host's to speak of.
    pub fn bytes(device: &Device) -> u64 {
        match device {
            Device::Cpu(_) => 0,
            Device::Cuda(_) => device.taken(4 * MAX_DECODE_ROWS) + device.taken(RECORD * MAX_DECODE_ROWS),
        }
    }

    /// Where the drawn ids lie on the GPU; 0 where there are none.
    pub fn address(&self) -> u64 {
        self.gpu.as_ref().map_or(0, |gpu| gpu.drawn.address())
    }

    /// Sends the first `n` draws of the step that was just launched to the host. Nothing is sent where this fails.
    pub fn send(&mut self, n: usize) -> Result<()> {
        let Some(gpu) = &mut self.gpu else { return Ok(()) };
        let api = gpu.device.api();
        let mut slot = match gpu.spare.pop() {
            Some(slot) => slot,
            None => {
                let pinned = Pinned::new(&gpu.device, RECORD * MAX_DECODE_ROWS)?;
                Sent { pinned, event: api.event()?, n }
            }
        };
        slot.n = n;
        assert!(n <= MAX_DECODE_ROWS, "{n} draws of one step");
        // SAFETY: both hold so many records, and the slot is not touched before its event has passed.
        let copied = unsafe { api.download(slot.pinned.as_mut_ptr(), gpu.records.address(), RECORD * n) };
        match copied.and_then(|()| api.record(slot.event)) {
            Ok(()) => gpu.sent.push_back(slot),
            Err(e) => {
                gpu.spare.push(slot);
                return Err(e);
            }
        }
        Ok(())
    }

    /// The draws of the step that was sent first of those not yet taken, once they are there.
    pub fn take(&mut self) -> Result<Vec<Sampled>> {
        let Some(gpu) = &mut self.gpu else { return Ok(std::mem::take(&mut self.sampled)) };
        let Some(slot) = gpu.sent.pop_front() else { return Ok(Vec::new()) };
        let arrived = gpu.device.api().wait(slot.event).and_then(|()| gpu.device.check());
        let draws = slot.pinned.bytes()[..RECORD * slot.n].chunks_exact(RECORD).map(sampled).collect();
        gpu.spare.push(slot);
        arrived.map(|()| draws)
    }
}

impl Drop for OnGpu {
    fn drop(&mut self) {
        let slots = self.sent.iter().chain(&self.spare);
        slots.for_each(|slot| self.device.api().drop_event(slot.event));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::claims::*;
    use super::super::logprob::{logit_stats, logprobs_of};
    use super::*;
    use crate::backend::batch::BatchSegment;
    use crate::backend::ops::Heads;
    use crate::backend::page::{Page, PageShape};
    use crate::backend::terms::{Cuts, Sampling};
    use crate::random::{Stream, below, uniform};
    use crate::tensor::Dtype;

    const RAW: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    const TEMPERATURES: [f32; 8] = [0.0, 1e-6, 2e-5, 0.3, 1.0, 1.0, 1.7, 1e7];
    const TOP_K: [u32; 6] = [0, 0, 1, 5, 1000, 3000];
    const TOP_P: [f32; 8] = [0.0, 0.1, 0.5, 0.9, 0.999, 1.0, 1.0, f32::NAN];
    const MIN_P: [f32; 8] = [0.0, 0.0, 0.0, 0.0, 0.003, 0.1, 0.7, 1.0];
    const TYPICAL_P: [f32; 8] = [1.0, 1.0, 1.0, 1.0, 0.999, 0.9, 0.4, 0.01];
    const LAST: f32 = 1.0 - f32::EPSILON / 2.0;

    /// Rows of logits on a GPU with their statistics, as the output projection leaves them.
    fn head_on(gpu: &Device, rows: &[f32], v: usize) -> Head {
        let n = rows.len() / v;
        let mut head = Head::new(gpu, n, 32, v).unwrap();
        head.logits = Tensor::from_f32(&[n, v], rows).unwrap().to_device(gpu).unwrap();
        logit_stats(gpu, head.stats.as_mut().unwrap(), &head.logits, n);
        head
    }

    fn pick(sampling: Sampling, u: f32) -> Pick<'static> {
        (sampling, u).into()
    }

    /// A step of one row for each draw.
    fn batch_of(gpu: &Device, wanted: &[Pick]) -> Batch {
        let shape = PageShape { n_layers: 1, n_kv_heads: 1, head_dim: 32, dtype: Dtype::Bf16 };
        let pages = [Arc::new(Page::new(gpu, shape).unwrap())];
        let rows: Vec<BatchSegment> =
            wanted.iter().map(|_| BatchSegment { ids: &[0], start: 0, pages: &pages }).collect();
        let mut batch = Batch::default();
        batch.set(gpu, &rows, wanted, Heads { n_heads: 1, n_kv_heads: 1, head_dim: 32, scale: 1.0 }).unwrap();
        batch
    }

    /// All that is wanted of one row, drawn on a GPU in steps of 32.
    fn draw_all(gpu: &Device, row: &[f32], wanted: &[Pick]) -> Vec<Sampled> {
        let head = head_on(gpu, &row.repeat(32), row.len());
        let mut draws = Draws::new(gpu).unwrap();
        let mut all = Vec::new();
        for wanted in wanted.chunks(32) {
            sample_rows(gpu, &mut draws, &head, wanted, &batch_of(gpu, wanted)).unwrap();
            draws.send(wanted.len()).unwrap();
            all.extend(draws.take().unwrap());
        }
        all
    }

    /// Some samplings and cuts of all kinds, with draws that reach both ends.
    fn some_picks(seed: u64, n: u64) -> Vec<Pick<'static>> {
        let one = |i: u64, what: u64, n: usize| below(Stream::World, &[seed, i, what], n as u64) as usize;
        let of = |i| {
            let sampling = Sampling {
                temperature: TEMPERATURES[one(i, 0, TEMPERATURES.len())],
                top_k: TOP_K[one(i, 1, TOP_K.len())],
                top_p: TOP_P[one(i, 2, TOP_P.len())],
            };
            let cuts = Cuts { min_p: MIN_P[one(i, 5, MIN_P.len())], typical_p: TYPICAL_P[one(i, 6, TYPICAL_P.len())] };
            let u = match one(i, 3, 6) {
                0 => 0.0,
                1 => LAST,
                _ => uniform(Stream::World, &[seed, i, 4]),
            };
            Pick { cuts, ..pick(sampling, u) }
        };
        (0..n).map(of).collect()
    }

    /// By how much each cut, and the mean that typical ids lie around, may be off.
    type Slack = [f64; 4];
    const SLACK: [f64; 3] = [-1e-5, 0.0, 1e-5];

    /// What the cuts leave of a row with its masses, in the order of the walk, by full sorts in f64.
    fn left(x: &[f32], pick: &Pick, off: Slack) -> Vec<(usize, f64)> {
        let (s, cuts) = (pick.sampling, pick.cuts);
        let (m, t) = (x.iter().fold(f32::MIN, |m, &x| m.max(x)) as f64, s.temperature.min(1e6) as f64);
        let gap = |i: usize| m - x[i] as f64;
        let mut all: Vec<(usize, f64)> = (0..x.len()).map(|i| (i, (-gap(i) / t).exp())).collect();
        let until = |all: &mut Vec<(usize, f64)>, share: f64| {
            let wanted = share * all.iter().map(|t| t.1).sum::<f64>();
            let mut mass = 0.0;
            let enough = all.iter().position(|t| {
                mass += t.1;
                mass >= wanted
            });
            all.truncate(enough.map_or(all.len(), |i| i + 1));
        };
        let walk = |all: &mut Vec<(usize, f64)>| {
            all.sort_by(|a, b| x[b.0].partial_cmp(&x[a.0]).unwrap().then(a.0.cmp(&b.0)));
        };
        let by_count = s.top_k > 0 && (s.top_k as usize) < x.len();
        if by_count || s.top_p < 1.0 || cuts != Cuts::default() {
            walk(&mut all);
        }
        if by_count {
            all.truncate(s.top_k as usize);
        }
        if s.top_p < 1.0 {
            until(&mut all, s.top_p as f64 + off[0]);
        }
        // Of a share of 1 the likeliest is left in any case.
        all.retain(|t| gap(t.0) == 0.0 || t.1 >= cuts.min_p as f64 * (1.0 + off[1]));
        if cuts.typical_p < 1.0 {
            let total: f64 = all.iter().map(|t| t.1).sum();
            let mean = all.iter().map(|t| t.1 * gap(t.0)).sum::<f64>() / total + t.min(1.0) * off[3];
            let far = |i: usize| (gap(i) - mean).abs();
            all.sort_by(|a, b| far(a.0).total_cmp(&far(b.0)).then(gap(a.0).total_cmp(&gap(b.0))).then(a.0.cmp(&b.0)));
            until(&mut all, cuts.typical_p as f64 + off[2]);
            walk(&mut all);
        }
        all
    }

    /// How far `u` lies outside the part of the walk that chooses `id`; each cut may fall on either side of an id whose
    /// border it meets.
    fn distance(x: &[f32], pick: &Pick, id: i32) -> f64 {
        let distance = |kept: &[(usize, f64)]| {
            let total: f64 = kept.iter().map(|t| t.1).sum();
            let Some(at) = kept.iter().position(|t| t.0 == id as usize) else { return f64::INFINITY };
            let start = kept[..at].iter().map(|t| t.1).sum::<f64>() / total;
            let u = pick.u as f64 + 0.5 / (1u64 << 24) as f64;
            (start - u).max(u - start - kept[at].1 / total).max(0.0)
        };
        let offs = (0..81).map(|i| [1, 3, 9, 27].map(|place| SLACK[i / place % 3]));
        offs.map(|off| distance(&left(x, pick, off))).fold(f64::INFINITY, f64::min)
    }

    fn agree(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-5 * (1.0 + b.abs())
    }

    /// Holds draws of a GPU against the CPU's; returns how many differ, each of them at a border.
    fn compare(x: &[f32], wanted: &[Pick], got: &[Sampled]) -> usize {
        let (device, logits) = (device(), Tensor::from_f32(&[1, x.len()], x).unwrap());
        let mut n_border = 0;
        for (pick, got) in wanted.iter().zip(got) {
            let judge = sample_token(&device, &logits, 0, pick).unwrap();
            assert!((got.id as usize) < x.len(), "{pick:?}: {got:?}");
            let logprob = logprobs_of(&device, &logits, &[got.id], 1).unwrap()[0];
            assert!(agree(got.logprob, logprob), "{pick:?}: {got:?}, log-prob {logprob}");
            if got.id == judge.id && agree(got.sampled_logprob, judge.sampled_logprob) {
                continue;
            }
            n_border += 1;
            let off = distance(x, pick, got.id);
            assert!(off < 1e-5, "V {} {pick:?}: {got:?}, not {judge:?}, {off:.1e} from the border", x.len());
        }
        n_border
    }

    /// Rows of every kind.
    fn kinds(v: usize) -> Vec<Vec<f32>> {
        let spread: Vec<f32> = random(v as u64, &[v]).f32().iter().map(|x| 12.0 * x).collect();
        let ties: Vec<f32> = spread.iter().map(|x| (x / 3.0).round()).collect();
        let mut one_hot = vec![-0.0; v];
        one_hot[v / 3] = 30.0;
        one_hot[v / 2] = 0.0;
        let mut masked = vec![f32::NEG_INFINITY; v];
        (masked[v - 1], masked[v / 2], masked[1]) = (-100.0, 2.0, 1.5);
        let peaked: Vec<f32> = spread.iter().map(|x| x * x.abs()).collect();
        vec![spread, ties, vec![0.5; v], one_hot, masked, peaked]
    }

    #[test]
    fn a_gpu_draws_as_the_cpu_does() {
        let (mut n, mut n_border) = (0, 0);
        for v in [5, 16, 17, 1000, 4097] {
            for (kind, x) in kinds(v).iter().enumerate() {
                let wanted = some_picks((v * 10 + kind) as u64, 40);
                let mut first: Option<Vec<Sampled>> = None;
                for gpu in gpus() {
                    let got = draw_all(&gpu, x, &wanted);
                    n += got.len();
                    n_border += compare(x, &wanted, &got);
                    // Another order of threads, the same bits.
                    assert_eq!(&got, first.get_or_insert_with(|| got.clone()));
                }
            }
        }
        eprintln!("{n_border} of {n} draws at a border");
        assert!(n_border * 50 <= n, "{n_border} of {n} draws at a border");
    }

    #[test]
    fn a_gpu_draws_from_a_large_vocabulary() {
        let x: Vec<f32> = random(3, &[40_000]).f32().iter().map(|x| 15.0 * x).collect();
        let of = |temperature, top_k, top_p| pick(Sampling { temperature, top_k, top_p }, 0.37);
        let cut = |min_p, typical_p| Pick { cuts: Cuts { min_p, typical_p }, ..of(0.9, 0, 1.0) };
        let plain = [of(1.0, 0, 1.0), of(0.7, 0, 1.0), of(0.6, 20, 0.95), of(1.0, 0, 0.95), of(1.5, 2000, 0.9)];
        let wanted = [&plain[..], &[cut(0.05, 1.0), cut(0.0, 0.9), cut(0.001, 0.5)]].concat();
        for gpu in gpus().into_iter().take(1) {
            let head = head_on(&gpu, &x.repeat(8), x.len());
            let got: Vec<Sampled> = wanted
                .iter()
                .enumerate()
                .map(|(row, pick)| super::super::sample_row(&gpu, &head, row, pick).unwrap())
                .collect();
            compare(&x, &wanted, &got);
        }
    }

    #[test]
    fn a_gpu_takes_some_id_of_a_row_without_a_distribution() {
        for gpu in gpus().into_iter().take(1) {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for mixed in [false, true] {
                    let mut x = vec![bad; 300];
                    if mixed {
                        (x[77], x[250]) = (1.0, 2.0);
                    }
                    let cuts = Cuts { min_p: 0.1, typical_p: 0.5 };
                    let cut = Pick { cuts, ..pick(Sampling { top_k: 3, top_p: 0.5, ..RAW }, 0.5) };
                    let wanted = [pick(RAW, 0.5), Pick { cuts: Cuts::default(), ..cut }, cut];
                    let logits = Tensor::from_f32(&[1, 300], &x).unwrap();
                    for (pick, got) in wanted.iter().zip(draw_all(&gpu, &x, &wanted)) {
                        let judge = sample_token(&device(), &logits, 0, pick).unwrap();
                        assert_eq!(got.id, judge.id, "{bad} {mixed} {pick:?}");
                        assert!(agree(got.logprob, judge.logprob), "{bad} {mixed}: {got:?}, not {judge:?}");
                        assert!(agree(got.sampled_logprob, judge.sampled_logprob), "{got:?}, not {judge:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn frequencies_on_a_gpu_are_the_probabilities() {
        let x = [0.0f32, 1.0, -1.0, 2.0, 0.5];
        const N: u64 = 256;
        for gpu in gpus().into_iter().take(1) {
            let cut = |min_p, typical_p| Pick { cuts: Cuts { min_p, typical_p }, ..pick(RAW, 0.0) };
            let several = pick(Sampling { temperature: 1.7, top_k: 4, top_p: 0.9 }, 0.0);
            // -1 has a share of 0.05 of the likeliest; nearest to the entropy are 1, then 2, which have 0.76 of the mass.
            for (kind, ids) in [
                (pick(RAW, 0.0), &[3, 1, 4, 0, 2][..]),
                (several, &[3, 1, 4, 0]),
                (cut(0.06, 1.0), &[3, 1, 4, 0]),
                (cut(0.0, 0.7), &[3, 1]),
                (cut(0.06, 0.2), &[1]),
            ] {
                let wanted: Vec<_> = (0..N).map(|i| Pick { u: (i as f32 + 0.5) / N as f32, ..kind }).collect();
                let mut counts = [0u32; 5];
                draw_all(&gpu, &x, &wanted).iter().for_each(|d| counts[d.id as usize] += 1);
                let kept = left(&x, &kind, [0.0; 4]);
                let total: f64 = kept.iter().map(|t| t.1).sum();
                assert_eq!(kept.len(), ids.len(), "{kind:?}: {kept:?}");
                for (i, &count) in counts.iter().enumerate() {
                    let p = kept.iter().find(|t| t.0 == i).map_or(0.0, |t| t.1 / total);
                    assert_eq!(p > 0.0, ids.contains(&i), "{kind:?}: {kept:?}");
                    // Draws at equal distances: an id has its share of them, but for one at each end.
                    assert!((count as f64 - p * N as f64).abs() <= 2.0, "{kind:?}: id {i} {count} times");
                }
            }
        }
    }

    #[test]
    fn steps_are_taken_in_the_order_they_were_sent() {
        for gpu in gpus().into_iter().take(1) {
            let mut draws = Draws::new(&gpu).unwrap();
            let greedy = pick(Sampling { temperature: 0.0, ..RAW }, 0.0);
            for round in 0..3 {
                for step in 0..3 {
                    let mut x = vec![0.0; 3 * 20];
                    (0..3).for_each(|row| x[20 * row + 3 * row + step + round] = 1.0);
                    // Three rows launch as four; the fourth is not in use.
                    let head = head_on(&gpu, &[x, vec![0.0; 20]].concat(), 20);
                    sample_rows(&gpu, &mut draws, &head, &[greedy; 3], &batch_of(&gpu, &[greedy; 3])).unwrap();
                    draws.send(3).unwrap();
                }
                for step in 0..3 {
                    let ids: Vec<i32> = draws.take().unwrap().iter().map(|d| d.id).collect();
                    assert_eq!(ids, [0, 3, 6].map(|i| i + step + round as i32), "step {step}");
                }
            }
            assert_eq!(draws.take().unwrap(), []);
        }
    }
}
