//! Choosing a token from a row of logits [V].
//!
//! The cuts come in the order temperature, top-k, top-p; what is left is renormalised. With a cut the candidates
//! are walked from the most likely down (ties: lower id first), without one the ids are walked upwards,
//! first by the fixed chunks of `logprob`, then inside the chunk, until the cumulative mass exceeds the draw. Nothing is
//! sorted but what a cut leaves, so a vocabulary of 150,000 costs about as much as its log-sum-exp.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::logprob::{CHUNK, ChunkSum, Ranked, RowSum, largest, load_or_minus_infinity, row_sums};
use super::split::{Elementwise, launch_elementwise};
use crate::backend::cpu::{Cpu, FloatEnv, Kernel, Lanes, Scratch, Shared, math, piece};
use crate::backend::terms::Sampling;
use crate::backend::{Device, Tensor, host};
use crate::error::Result;

/// Below this a temperature counts as 0.
const COLDEST: f32 = 1e-5;
/// A higher temperature counts as this one.
const HOTTEST: f32 = 1e6;

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The id.
    pub id: i32,
    /// ln p(id) at temperature 1 over the whole vocabulary: the bits of `logprobs_of`.
    pub logprob: f32,
    /// ln p(id) in the distribution it was drawn from; the same bits as `logprob` where nothing was changed.
    pub sampled_logprob: f32,
}

/// Chooses an id of row `row` of logits [N, V] by the draw `u` in [0, 1). A draw has 24 bits, so it stands for the
/// middle of an interval of 2^-24: a draw of 0 must not give the first id whatever its probability. A row that holds
/// NaN or +inf, or nothing above -inf, has no distribution: its most likely id is taken, with NaN for log-probs.
pub fn sample_token(device: &Device, logits: &Tensor, row: usize, sampling: Sampling, u: f32) -> Result<Sampled> {
    let v = logits.extent(1);
    let cpu = device.cpu();
    let _env = FloatEnv::set();
    let sums = row_sums(cpu, logits, &[row])?;
    let (sum, chunks) = (&sums.rows[0], sums.chunks(0));
    let x = &logits.f32()[row * v..][..v];
    let temperature = sampling.temperature.min(HOTTEST);
    let greedy = sampling.temperature.is_nan() || temperature < COLDEST;
    if greedy || sum.ln_sum.is_nan() {
        let id = largest(x, chunks, 1)?.first().copied().unwrap_or(0);
        let logprob = sum.logprob(x[id]);
        let sampled_logprob = if sum.ln_sum.is_nan() { logprob } else { 0.0 };
        return Ok(Sampled { id: id as i32, logprob, sampled_logprob });
    }
    let row = Row { cpu, x, sum, chunks, temperature };
    let u = u as f64 + 0.5 / (1u64 << 24) as f64;
    let top_k = if sampling.top_k == 0 { v } else { (sampling.top_k as usize).min(v) };
    let by_mass = sampling.top_p < 1.0;
    let (id, ln_mass) = if top_k < v {
        walk_down(row.best(top_k, sampling.top_p)?, u)
    } else if by_mass {
        walk_down(row.nucleus(sampling.top_p)?, u)
    } else {
        row.walk_up(u)?
    };
    let logprob = sum.logprob(x[id]);
    let unchanged = top_k == v && !by_mass && temperature == 1.0;
    let tempered = (x[id] as f64 - sum.largest as f64) / temperature as f64 - ln_mass;
    Ok(Sampled { id: id as i32, logprob, sampled_logprob: if unchanged { logprob } else { tempered as f32 } })
}

/// Bytes of scratch that a draw from `v` ids takes at most beside what a pass has left: their masses, and sums.
pub fn sample_scratch_bytes(v: usize) -> u64 {
    Cpu::scratch_bytes(v * size_of::<f32>()) + Cpu::scratch_bytes(1)
}

/// A row under a temperature. An id's mass is e^((x - largest) / temperature), at most 1.
struct Row<'a> {
    cpu: &'a Cpu,
    x: &'a [f32],
    sum: &'a RowSum,
    chunks: &'a [ChunkSum],
    temperature: f32,
}

impl Row<'_> {
    fn masses(&self, x: &[f32]) -> Result<Scratch<f32>> {
        let mut masses = self.cpu.scratch(x.len())?;
        let (largest, warmth) = (self.sum.largest, 1.0 / self.temperature);
        launch_elementwise(self.cpu, x.len(), &Masses { masses: Shared::new(&mut masses), x, largest, warmth });
        Ok(masses)
    }

    /// The masses of some ids.
    fn masses_of(&self, ids: &[usize]) -> Result<Scratch<f32>> {
        let mut x = self.cpu.scratch::<f32>(ids.len())?;
        x.iter_mut().zip(ids).for_each(|(x, &i)| *x = self.x[i]);
        self.masses(&x)
    }

    /// The mass of each chunk, and of all.
    fn chunk_masses(&self) -> Result<(Scratch<f32>, f64)> {
        let n_tasks = self.chunks.len();
        let mut masses = self.cpu.scratch::<f32>(n_tasks)?;
        masses.fill(0.0);
        let (largest, warmth) = (self.sum.largest, 1.0 / self.temperature);
        let shared = Shared::new(&mut masses);
        let kernel = ChunkMasses { masses: shared, chunks: self.chunks, x: self.x, largest, warmth };
        self.cpu.launch(n_tasks, &kernel);
        let total = masses.iter().map(|&m| m as f64).sum();
        Ok((masses, total))
    }

    /// The `k` most likely ids with their masses, cut further to `top_p` of their mass.
    fn best(&self, k: usize, top_p: f32) -> Result<Vec<(usize, f32)>> {
        let ids = largest(self.x, self.chunks, k)?;
        let masses = self.masses_of(&ids)?;
        let mut kept = host::collected(ids.into_iter().zip(masses.iter().copied()))?;
        if top_p < 1.0 {
            let wanted = top_p as f64 * kept.iter().map(|&(_, m)| m as f64).sum::<f64>();
            let mut mass = 0.0;
            let enough = kept.iter().position(|&(_, m)| {
                mass += m as f64;
                mass >= wanted
            });
            kept.truncate(enough.map_or(kept.len(), |i| i + 1));
        }
        Ok(kept)
    }

    /// The most likely ids that together have `top_p` of all mass. Ids below (1 - top_p) / V cannot be needed,
    /// since all of them together have less than 1 - top_p; the others come from a heap one by one.
    fn nucleus(&self, top_p: f32) -> Result<Vec<(usize, f32)>> {
        let (_, total) = self.chunk_masses()?;
        let top_p = top_p.max(0.0) as f64;
        // A hundredth lower, so that roundings cannot lose an id.
        let least = 0.99 * (1.0 - top_p) * total / self.x.len() as f64;
        let floor = (self.sum.largest as f64 + self.temperature as f64 * math::ln(least)) as f32;
        let mut ids = Vec::new();
        for (j, _) in self.chunks.iter().enumerate().filter(|(_, c)| c.largest >= floor) {
            let chunk = piece(j, CHUNK, self.x.len());
            host::reserve(&mut ids, chunk.len())?;
            ids.extend(chunk.filter(|&i| self.x[i] >= floor));
        }
        let masses = self.masses_of(&ids)?;
        // Ids rise with their place in `ids`, so a tie goes to the lower id.
        let ranked = host::collected(ids.iter().enumerate().map(|(at, &i)| Reverse(Ranked { x: self.x[i], i: at })))?;
        let mut heap = BinaryHeap::from(ranked);
        let (mut kept, mut mass) = (host::with_room(ids.len())?, 0.0);
        while let Some(Reverse(best)) = heap.pop() {
            kept.push((ids[best.i], masses[best.i]));
            mass += masses[best.i] as f64;
            if mass >= top_p * total {
                break;
            }
        }
        Ok(kept)
    }

    /// Draws among all ids in rising order; returns the id and ln of all mass.
    fn walk_up(&self, u: f64) -> Result<(usize, f64)> {
        let (chunks, total) = self.chunk_masses()?;
        let mut mass = 0.0;
        let mut at = 0;
        for (j, &m) in chunks.iter().enumerate().filter(|(_, m)| **m > 0.0) {
            at = j;
            if mass + m as f64 > u * total {
                break;
            }
            mass += m as f64;
        }
        let range = piece(at, CHUNK, self.x.len());
        let masses = self.masses(&self.x[range.clone()])?;
        let mut id = range.start;
        for (i, &m) in range.zip(masses.iter()).filter(|&(i, _)| self.x[i] > f32::NEG_INFINITY) {
            id = i;
            mass += m as f64;
            if mass > u * total {
                break;
            }
        }
        Ok((id, math::ln(total)))
    }
}

/// Draws among candidates in their order; returns the id and ln of their mass.
fn walk_down(kept: Vec<(usize, f32)>, u: f64) -> (usize, f64) {
    let total: f64 = kept.iter().map(|&(_, m)| m as f64).sum();
    let mut mass = 0.0;
    let reached = kept.iter().find(|&&(_, m)| {
        mass += m as f64;
        mass > u * total
    });
    // A row with a distribution has at least its largest logit among the candidates.
    let (id, _) = reached.or(kept.last()).copied().unwrap_or((0, 0.0));
    (id, math::ln(total))
}

struct Masses<'a> {
    masses: Shared<f32>,
    x: &'a [f32],
    largest: f32,
    warmth: f32,
}

impl Elementwise for Masses<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: both have the elements i..i + n, and blocks are disjoint.
        unsafe {
            let a = V::load_up_to(self.x.as_ptr().add(i), n).sub(V::splat(self.largest)).mul(V::splat(self.warmth));
            math::exp(a).store_rounded(self.masses.at(i), n, false);
        }
    }
}

struct ChunkMasses<'a> {
    masses: Shared<f32>,
    chunks: &'a [ChunkSum],
    x: &'a [f32],
    largest: f32,
    warmth: f32,
}

impl Kernel for ChunkMasses<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        if self.chunks[index].largest == f32::NEG_INFINITY {
            return; // nothing but masked ids; the mass stays 0
        }
        let chunk = &self.x[piece(index, CHUNK, self.x.len())];
        // SAFETY: reads inside the chunk, and each task writes its own element.
        unsafe {
            let mut acc = V::zero();
            let mut i = 0;
            while i < chunk.len() {
                let x: V = load_or_minus_infinity(chunk.as_ptr().add(i), chunk.len() - i);
                acc = acc.add(math::exp(x.sub(V::splat(self.largest)).mul(V::splat(self.warmth))));
                i += 16;
            }
            *self.masses.at(index) = acc.reduce_add();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::super::logprob::logprobs_of;
    use super::*;
    use crate::random::{Stream, uniform};

    const RAW: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    const SAMPLINGS: [Sampling; 8] = [
        RAW,
        Sampling { temperature: 0.6, ..RAW },
        Sampling { top_k: 1, ..RAW },
        Sampling { top_k: 20, ..RAW },
        Sampling { top_p: 0.9, ..RAW },
        Sampling { temperature: 1.7, top_k: 5, top_p: 0.7 },
        Sampling { temperature: 0.7, top_k: 0, top_p: 0.01 },
        Sampling { temperature: 0.6, top_k: 20, top_p: 0.95 },
    ];

    /// Logits in steps of a quarter, so that there are ties.
    fn logits(n: usize, v: usize) -> Tensor {
        let x: Vec<f32> = random(1, &[n, v]).f32().iter().map(|x| (32.0 * x).round() / 4.0).collect();
        Tensor::from_f32(&[n, v], &x).unwrap()
    }

    /// The distribution after the cuts, as (id, p) in the order of the walk, from a full sort in f64.
    fn distribution(x: &[f32], s: Sampling) -> Vec<(usize, f64)> {
        let m = x.iter().fold(f32::MIN, |m, &x| m.max(x)) as f64;
        let mut all: Vec<(usize, f64)> =
            x.iter().map(|&x| ((x as f64 - m) / s.temperature as f64).exp()).enumerate().collect();
        let cut = s.top_k > 0 && (s.top_k as usize) < x.len();
        if cut || s.top_p < 1.0 {
            all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        }
        if cut {
            all.truncate(s.top_k as usize);
        }
        if s.top_p < 1.0 {
            let total: f64 = all.iter().map(|t| t.1).sum();
            let mut mass = 0.0;
            let enough = all.iter().position(|t| {
                mass += t.1;
                mass >= s.top_p as f64 * total
            });
            all.truncate(enough.unwrap() + 1);
        }
        let total: f64 = all.iter().map(|t| t.1).sum();
        all.into_iter().map(|(i, p)| (i, p / total)).collect()
    }

    #[test]
    fn sample_follows_the_formula_with_one_set_of_bits() {
        for (n, v) in [(1, 1), (2, 7), (2, 300), (1, 9001)] {
            let logits = logits(n, v);
            for s in SAMPLINGS {
                for row in 0..n {
                    let x = &logits.f32()[row * v..(row + 1) * v];
                    let wanted = distribution(x, s);
                    for draw in 0..20 {
                        let u = uniform(Stream::World, &[v as u64, draw]);
                        let mut judge: Option<Sampled> = None;
                        for device in devices() {
                            let got = sample_token(&device, &logits, row, s, u).unwrap();
                            assert_eq!(got, *judge.get_or_insert(got));
                        }
                        let got = judge.unwrap();
                        let at = wanted.iter().position(|t| t.0 == got.id as usize).expect("an id that was cut");
                        let below: f64 = wanted[..at].iter().map(|t| t.1).sum();
                        let (u, p) = (u as f64, wanted[at].1);
                        assert!(below - 1e-5 < u && u < below + p + 1e-5, "{s:?}: {u} outside {below} + {p}");
                        assert!((got.sampled_logprob as f64 - p.ln()).abs() < 2e-5);
                        assert_eq!(got.logprob, logprobs_of(&device(), &logits, &vec![got.id; n], n).unwrap()[row]);
                        if s == RAW {
                            assert_eq!(got.sampled_logprob.to_bits(), got.logprob.to_bits());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sample_frequencies_are_the_probabilities() {
        let logits = Tensor::from_f32(&[1, 5], &[0.0, 1.0, -1.0, 2.0, 0.5]).unwrap();
        let device = Device::Cpu(Cpu::new(1, None).unwrap());
        for s in SAMPLINGS {
            let mut counts = [0u32; 5];
            for i in 0..20_000 {
                let u = uniform(Stream::World, &[99, i]);
                counts[sample_token(&device, &logits, 0, s, u).unwrap().id as usize] += 1;
            }
            for (id, p) in distribution(logits.f32(), s) {
                // Standard deviation at most 0.0036; six of them is a defect, not chance.
                assert!((counts[id] as f64 / 20_000.0 - p).abs() < 0.022, "{s:?}: id {id}");
                counts[id] = 0;
            }
            assert_eq!(counts, [0; 5], "an id that was cut");
        }
    }

    #[test]
    fn temperature_zero_takes_the_lowest_of_the_largest() {
        let mut x = vec![0.5f32; 9000];
        (x[700], x[8000]) = (3.0, 3.0);
        let logits = Tensor::from_f32(&[1, 9000], &x).unwrap();
        for s in [0.0, -1.0, f32::NAN].map(|temperature| Sampling { temperature, top_k: 3, top_p: 0.5 }) {
            let got = sample_token(&device(), &logits, 0, s, 0.999).unwrap();
            assert_eq!((got.id, got.sampled_logprob), (700, 0.0));
            assert_eq!(got.logprob, logprobs_of(&device(), &logits, &[700], 1).unwrap()[0]);
        }
    }

    #[test]
    fn masked_ids_are_never_sampled() {
        let mut x = vec![f32::NEG_INFINITY; 9000];
        (x[5000], x[5003]) = (-100.0, 2.0);
        let logits = Tensor::from_f32(&[1, 9000], &x).unwrap();
        let hottest = Sampling { temperature: f32::INFINITY, top_k: 1, top_p: 1.0 };
        for s in SAMPLINGS.into_iter().chain([hottest]) {
            for u in [0.0, 0.5, 1.0 - f32::EPSILON / 2.0] {
                assert_eq!(sample_token(&device(), &logits, 0, s, u).unwrap().id, 5003, "{s:?}");
            }
        }
        let hot = |top_p| Sampling { temperature: f32::INFINITY, top_k: 0, top_p };
        for s in [hot(1.0), hot(0.9)] {
            for u in [0.0, 0.3, 0.7, 1.0 - f32::EPSILON / 2.0] {
                let got = sample_token(&device(), &logits, 0, s, u).unwrap();
                assert!((got.id == 5000) == (u < 0.5) || s.top_p < 1.0);
                assert!([5000, 5003].contains(&got.id) && (got.sampled_logprob - 0.5f32.ln()).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn a_row_without_a_distribution_does_not_panic() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for mixed in [false, true] {
                let mut x = vec![bad; 5000];
                if mixed {
                    (x[77], x[4500]) = (1.0, 2.0);
                }
                let logits = Tensor::from_f32(&[1, 5000], &x).unwrap();
                for s in SAMPLINGS {
                    let got = sample_token(&device(), &logits, 0, s, 0.5).unwrap();
                    assert!((0..5000).contains(&got.id));
                    assert_eq!(got.logprob.is_nan(), !(mixed && bad == f32::NEG_INFINITY));
                }
            }
        }
    }

    #[test]
    fn an_unlikely_first_id_is_not_taken_by_a_draw_of_zero() {
        let logits = Tensor::from_f32(&[1, 3], &[-60.0, 0.0, 0.0]).unwrap();
        assert_eq!(sample_token(&device(), &logits, 0, RAW, 0.0).unwrap().id, 1);
    }
}
