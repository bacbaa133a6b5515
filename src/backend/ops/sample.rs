//! Choosing a token from a row of logits [V].
//!
//! Logits are edited first, in a copy of the row; then come temperature, top-k, top-p, min-p and typical-p, each on what
//! the one before has left; the rest is renormalised. With a cut the candidates
//! are walked from the most likely down (ties: lower id first), without one the ids are walked upwards,
//! first by the fixed chunks of `logprob`, then inside the chunk, until the cumulative mass exceeds the draw. Nothing is
//! sorted but what a cut leaves, so a vocabulary of 150,000 costs about as much as its log-sum-exp, and edited twice that.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::logprob::{CHUNK, ChunkSum, Ranked, RowSum, RowSums, largest, load_or_minus_infinity, row_sums, sums_of};
use super::split::{Elementwise, launch_elementwise};
use crate::backend::cpu::{Cpu, FloatEnv, Kernel, Lanes, Scratch, Shared, math, piece};
use crate::backend::terms::{Edit, Pick};
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
/// NaN or +inf, or nothing above -inf, has no distribution: its most likely id is taken, with NaN for log-probs. Where
/// edits rule out every id that had a probability, only the log-prob of the draw is NaN.
pub fn sample_token(device: &Device, logits: &Tensor, row: usize, pick: &Pick) -> Result<Sampled> {
    let v = logits.extent(1);
    let cpu = device.cpu();
    let _env = FloatEnv::set();
    let raw = row_sums(cpu, logits, &[row])?;
    let own = &logits.f32()[row * v..][..v];
    let edited = match pick.edits.is_empty() || raw.rows[0].ln_sum.is_nan() {
        true => None,
        false => Some(edited(cpu, own, pick.edits)?),
    };
    let (x, sums) = edited.as_ref().map_or((own, &raw), |(x, sums)| (&x[..], sums));
    let (sum, chunks) = (&sums.rows[0], sums.chunks(0));
    let logprob = |id: usize| raw.rows[0].logprob(own[id]);
    let Pick { sampling, cuts, u, .. } = *pick;
    let temperature = sampling.temperature.min(HOTTEST);
    let greedy = sampling.temperature.is_nan() || temperature < COLDEST;
    if greedy || sum.ln_sum.is_nan() {
        let id = largest(x, chunks, 1)?.first().copied().unwrap_or(0);
        let sampled_logprob = if sum.ln_sum.is_nan() { f32::NAN } else { 0.0 };
        return Ok(Sampled { id: id as i32, logprob: logprob(id), sampled_logprob });
    }
    let row = Row { cpu, x, sum, chunks, temperature };
    let u = u as f64 + 0.5 / (1u64 << 24) as f64;
    let top_k = if sampling.top_k == 0 { v } else { (sampling.top_k as usize).min(v) };
    let (by_mass, by_typicality) = (sampling.top_p < 1.0, cuts.typical_p < 1.0);
    let kept = if top_k < v {
        Some(row.best(top_k, sampling.top_p)?)
    } else if by_mass {
        Some(row.nucleus(sampling.top_p)?)
    } else if cuts.min_p > 0.0 {
        Some(row.near_the_largest(cuts.min_p)?)
    } else if by_typicality {
        Some(row.all()?)
    } else {
        None
    };
    let unchanged = kept.is_none() && edited.is_none() && temperature == 1.0;
    let (id, ln_mass) = match kept {
        Some(mut kept) => {
            keep_near_the_first(&mut kept, cuts.min_p);
            walk_down(if by_typicality { row.typical(kept, cuts.typical_p)? } else { kept }, u)
        }
        None => row.walk_up(u)?,
    };
    let tempered = (x[id] as f64 - sum.largest as f64) / temperature as f64 - ln_mass;
    let sampled_logprob = if unchanged { logprob(id) } else { tempered as f32 };
    Ok(Sampled { id: id as i32, logprob: logprob(id), sampled_logprob })
}

/// A row with its logits edited, and its sums.
fn edited(cpu: &Cpu, own: &[f32], edits: &[Edit]) -> Result<(Scratch<f32>, RowSums)> {
    let mut x = cpu.scratch::<f32>(own.len())?;
    x.copy_from_slice(own);
    for edit in edits {
        if let Some(x) = x.get_mut(edit.id as usize) {
            *x = edit.of(*x);
        }
    }
    let sums = sums_of(cpu, &x, own.len(), &[0])?;
    Ok((x, sums))
}

/// Bytes of scratch that a draw from `v` ids takes at most beside what a pass has left: their masses, a copy that is
/// edited, and sums.
pub fn sample_scratch_bytes(v: usize) -> u64 {
    2 * Cpu::scratch_bytes(v * size_of::<f32>()) + Cpu::scratch_bytes(1)
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

    /// The ids whose mass is at least about `least`, in rising order, and their masses.
    fn reaching(&self, least: f64) -> Result<(Vec<usize>, Scratch<f32>)> {
        let floor = (self.sum.largest as f64 + self.temperature as f64 * math::ln(least)) as f32;
        let mut ids = Vec::new();
        for (j, _) in self.chunks.iter().enumerate().filter(|(_, c)| c.largest >= floor) {
            let chunk = piece(j, CHUNK, self.x.len());
            host::reserve(&mut ids, chunk.len())?;
            ids.extend(chunk.filter(|&i| self.x[i] >= floor));
        }
        let masses = self.masses_of(&ids)?;
        Ok((ids, masses))
    }

    /// The most likely ids that together have `top_p` of all mass. Ids below (1 - top_p) / V cannot be needed,
    /// since all of them together have less than 1 - top_p; the others come from a heap one by one.
    fn nucleus(&self, top_p: f32) -> Result<Vec<(usize, f32)>> {
        let (_, total) = self.chunk_masses()?;
        let top_p = top_p.max(0.0) as f64;
        // A hundredth lower, so that roundings cannot lose an id.
        let (ids, masses) = self.reaching(0.99 * (1.0 - top_p) * total / self.x.len() as f64)?;
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

    /// The ids with about `min_p` of the largest mass or more, the likeliest first.
    fn near_the_largest(&self, min_p: f32) -> Result<Vec<(usize, f32)>> {
        let (ids, masses) = self.reaching(0.99 * min_p as f64)?;
        let mut kept = host::with_room(ids.len())?;
        kept.extend(ids.into_iter().zip(masses.iter().copied()).filter(|&(i, m)| self.has_mass(i, m)));
        self.sort(&mut kept);
        Ok(kept)
    }

    /// Whether an id of mass m can be drawn: that of a masked one is next to nothing, and not always nothing.
    fn has_mass(&self, i: usize, m: f32) -> bool {
        m > 0.0 && self.x[i] > f32::NEG_INFINITY
    }

    /// All ids that have a mass, in rising order.
    fn all(&self) -> Result<Vec<(usize, f32)>> {
        let masses = self.masses(self.x)?;
        let mut all = host::with_room(self.x.len())?;
        all.extend(masses.iter().copied().enumerate().filter(|&(i, m)| self.has_mass(i, m)));
        Ok(all)
    }

    /// The likeliest first, ties by the lower id.
    fn sort(&self, kept: &mut [(usize, f32)]) {
        kept.sort_unstable_by_key(|&(i, _)| Ranked { x: self.x[i], i });
    }

    /// Of candidates, those whose -ln p lies nearest to their entropy, until they have `typical_p` of the mass; the likeliest
    /// first. -ln p is ln(total) - a with a = (x - largest) / temperature, and the entropy ln(total) minus the mean of a.
    fn typical(&self, candidates: Vec<(usize, f32)>, typical_p: f32) -> Result<Vec<(usize, f32)>> {
        let ln_mass = |i: usize| (self.x[i] as f64 - self.sum.largest as f64) / self.temperature as f64;
        let total: f64 = candidates.iter().map(|&(_, m)| m as f64).sum();
        let mean = candidates.iter().map(|&(i, m)| m as f64 * ln_mass(i)).sum::<f64>() / total;
        let far = |i: usize| (ln_mass(i) - mean).abs();
        let apart = candidates
            .iter()
            .map(|&(i, mass)| Reverse(Apart { far: far(i), ranked: Ranked { x: self.x[i], i }, mass }));
        let mut heap = BinaryHeap::from(host::collected(apart)?);
        let (mut kept, mut mass) = (candidates, 0.0);
        kept.clear();
        while let Some(Reverse(next)) = heap.pop() {
            kept.push((next.ranked.i, next.mass));
            mass += next.mass as f64;
            if mass >= typical_p as f64 * total {
                break;
            }
        }
        self.sort(&mut kept);
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

/// Of candidates from the likeliest down, those with at least `min_p` of the first one's mass.
fn keep_near_the_first(kept: &mut Vec<(usize, f32)>, min_p: f32) {
    let least = kept.first().map_or(0.0, |&(_, m)| min_p as f64 * m as f64);
    if min_p > 0.0 {
        kept.truncate(kept.partition_point(|&(_, m)| m as f64 >= least));
    }
}

/// A candidate; greater is worse: further from the entropy, or as far and less likely.
struct Apart {
    far: f64,
    ranked: Ranked,
    mass: f32,
}

impl Ord for Apart {
    fn cmp(&self, other: &Apart) -> Ordering {
        self.far.total_cmp(&other.far).then_with(|| self.ranked.cmp(&other.ranked))
    }
}

impl PartialOrd for Apart {
    fn partial_cmp(&self, other: &Apart) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Apart {
    fn eq(&self, other: &Apart) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Apart {}

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
    use crate::backend::terms::{Cuts, Sampling};
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
                            let got = sample_token(&device, &logits, row, &(s, u).into()).unwrap();
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

    /// The same of edited logits under all cuts, by plain sums over sorted lists.
    fn distribution_under(x: &[f32], pick: &Pick) -> Vec<(usize, f64)> {
        let mut x: Vec<f64> = x.iter().map(|&x| x as f64).collect();
        for e in pick.edits {
            let z = x[e.id as usize] + e.bias as f64;
            x[e.id as usize] = if z < 0.0 { z * e.penalty as f64 } else { z / e.penalty as f64 } - e.less as f64;
        }
        let x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
        let mut left = distribution(&x, pick.sampling);
        left.sort_by(|a, b| x[b.0].partial_cmp(&x[a.0]).unwrap().then(a.0.cmp(&b.0)));
        let norm = |left: &mut Vec<(usize, f64)>| {
            let total: f64 = left.iter().map(|t| t.1).sum();
            left.iter_mut().for_each(|t| t.1 /= total);
        };
        let most = left[0].1;
        left.retain(|t| t.1 >= pick.cuts.min_p as f64 * most);
        norm(&mut left);
        if pick.cuts.typical_p < 1.0 {
            let entropy: f64 = left.iter().filter(|t| t.1 > 0.0).map(|t| -t.1 * t.1.ln()).sum();
            let mut by_surprise = left.clone();
            by_surprise.sort_by(|a, b| (-a.1.ln() - entropy).abs().total_cmp(&(-b.1.ln() - entropy).abs()));
            let mut mass = 0.0;
            let enough = by_surprise.iter().position(|t| {
                mass += t.1;
                mass >= pick.cuts.typical_p as f64
            });
            let kept = &by_surprise[..enough.map_or(by_surprise.len(), |i| i + 1)];
            left.retain(|t| kept.iter().any(|k| k.0 == t.0));
            norm(&mut left);
        }
        left
    }

    #[test]
    fn cuts_and_edits_follow_the_formula_with_one_set_of_bits() {
        let cuts = [(0.1, 1.0), (0.0, 0.3), (0.0, 0.9), (0.02, 0.8), (1.0, 1.0)];
        for (v, scale) in [(2, 1.0), (7, 2.0), (300, 9.0), (9001, 14.0)] {
            // No ties: which of two equally surprising ids goes first is the only thing that a rounding may change.
            let x: Vec<f32> = random(v as u64, &[v]).f32().iter().map(|x| scale * x).collect();
            let logits = Tensor::from_f32(&[1, v], &x).unwrap();
            let edit = |i: usize| Edit {
                id: ((i * 31) % v) as u32,
                bias: [0.0, 2.5, -1.0][i % 3],
                penalty: [1.3, 1.0][i % 2],
                less: [0.0, 0.75, f32::INFINITY][(i / 2) % 3],
            };
            let edits: Vec<Edit> = (0..(v - 1).min(40)).map(edit).filter(|e| v > 7 || e.less < 1.0).collect();
            for sampling in SAMPLINGS {
                for (min_p, typical_p) in cuts {
                    for edits in [&[][..], &edits] {
                        for draw in 0..6 {
                            let u = uniform(Stream::World, &[v as u64, draw]);
                            let pick = Pick { sampling, cuts: Cuts { min_p, typical_p }, edits, u };
                            let mut judge: Option<Sampled> = None;
                            for device in devices() {
                                let got = sample_token(&device, &logits, 0, &pick).unwrap();
                                assert_eq!(got, *judge.get_or_insert(got));
                            }
                            let (got, wanted) = (judge.unwrap(), distribution_under(&x, &pick));
                            let at = wanted.iter().position(|t| t.0 == got.id as usize);
                            let at = at.unwrap_or_else(|| panic!("{pick:?}: {got:?} was cut of {v}: {wanted:?}"));
                            let below: f64 = wanted[..at].iter().map(|t| t.1).sum();
                            let p = wanted[at].1;
                            // With nothing but edits the walk goes up the ids.
                            let is_cut = min_p > 0.0 || typical_p < 1.0 || sampling.top_k > 0 || sampling.top_p < 1.0;
                            let inside = below - 1e-5 < u as f64 && (u as f64) < below + p + 1e-5;
                            assert!(inside || !is_cut, "{pick:?}: {u} outside {below} + {p}");
                            assert!(
                                (got.sampled_logprob as f64 - p.ln()).abs() < 2e-5,
                                "{pick:?}: {got:?}, {}",
                                p.ln()
                            );
                            assert_eq!(got.logprob, logprobs_of(&device(), &logits, &[got.id], 1).unwrap()[0]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn of_a_row_whose_ids_are_all_ruled_out_the_raw_log_prob_stands_and_that_of_the_draw_is_none() {
        let logits = Tensor::from_f32(&[1, 3], &[1.0, 2.0, f32::NEG_INFINITY]).unwrap();
        let edits = [0, 1].map(|id| Edit { id, bias: 0.0, penalty: 1.0, less: f32::INFINITY });
        for sampling in SAMPLINGS.into_iter().chain([Sampling { temperature: 0.0, ..RAW }]) {
            let pick = Pick { edits: &edits, ..Pick::from((sampling, 0.5)) };
            let got = sample_token(&device(), &logits, 0, &pick).unwrap();
            assert!(got.sampled_logprob.is_nan() && got.logprob.is_finite(), "{got:?}");
            // One that is left is taken for certain, and an id beyond the row is none.
            let beyond = [edits[1], Edit { id: 77, ..edits[0] }];
            let got = sample_token(&device(), &logits, 0, &Pick { edits: &beyond, ..pick }).unwrap();
            assert_eq!((got.id, got.sampled_logprob), (0, 0.0));
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
                counts[sample_token(&device, &logits, 0, &(s, u).into()).unwrap().id as usize] += 1;
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
            let got = sample_token(&device(), &logits, 0, &(s, 0.999).into()).unwrap();
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
                assert_eq!(sample_token(&device(), &logits, 0, &(s, u).into()).unwrap().id, 5003, "{s:?}");
            }
        }
        let hot = |top_p| Sampling { temperature: f32::INFINITY, top_k: 0, top_p };
        for s in [hot(1.0), hot(0.9)] {
            for u in [0.0, 0.3, 0.7, 1.0 - f32::EPSILON / 2.0] {
                let got = sample_token(&device(), &logits, 0, &(s, u).into()).unwrap();
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
                    let got = sample_token(&device(), &logits, 0, &(s, 0.5).into()).unwrap();
                    assert!((0..5000).contains(&got.id));
                    assert_eq!(got.logprob.is_nan(), !(mixed && bad == f32::NEG_INFINITY));
                }
            }
        }
    }

    #[test]
    fn an_unlikely_first_id_is_not_taken_by_a_draw_of_zero() {
        let logits = Tensor::from_f32(&[1, 3], &[-60.0, 0.0, 0.0]).unwrap();
        assert_eq!(sample_token(&device(), &logits, 0, &(RAW, 0.0).into()).unwrap().id, 1);
    }
}
