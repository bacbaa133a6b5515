//! How spread out rows of logits [N, V] are, beside the log-prob of a token in each.
//!
//! With a = x - max x and S = sum e^a the entropy of the softmax in nats is H = ln S - (sum a e^a) / S. Both terms are at
//! least 0, so nothing cancels; masked ids (-inf) add nothing. Chunks and lanes are those of `logprob`: chunk j gives m_j,
//! s_j and t_j = sum of (x - m_j) e^(x - m_j), and with M = max of m_j the row's sums are, in order and in f64,
//! S = sum of s_j e^(m_j - M) and sum a e^a = sum of e^(m_j - M) (t_j + (m_j - M) s_j). So the log-prob has the bits of
//! `logprobs_of`, and either is one number for any number of threads and any kernel set.
//!
//! Of a teacher's k most likely ids the entropy is known where these are all ids there are; the student's mass on them always is.

use super::logprob::{CHUNK, ChunkSum, RowSum, exp_at_most_one, load_or_minus_infinity};
use super::topk_divergence::TopK;
use crate::backend::cpu::{FloatEnv, Kernel, Lanes, Shared, math, piece};
use crate::backend::host::{self, Plain};
use crate::backend::{Device, Tensor};
use crate::error::Result;

/// What a row of logits says.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Log-prob of the token that stands there, in nats.
    pub logprob: f32,
    /// Entropy of the row's distribution, in nats.
    pub entropy: f32,
    /// ln of the sum of e^x
    lse: f64,
}

/// What the first `n` rows say, each of the token in `targets`. NaN where a row has no distribution.
pub fn spreads_of(device: &Device, logits: &Tensor, targets: &[i32], n: usize) -> Result<Vec<Spread>> {
    let v = logits.extent(1);
    let targets = &targets[..n];
    assert!(n <= logits.extent(0), "logits are {} for {n} rows", logits.shape());
    assert!(targets.iter().all(|&id| id >= 0 && (id as usize) < v), "an id lies outside the vocabulary of {v}");
    let cpu = device.cpu();
    let _env = FloatEnv::set();
    let n_chunks = v.div_ceil(CHUNK);
    let mut chunks = cpu.scratch::<ChunkSpread>(n * n_chunks)?;
    let x = logits.f32();
    cpu.launch(n * n_chunks, &ChunkSpreads { chunks: Shared::new(&mut chunks), x, v });
    let spread = |(row, chunks): (usize, &[ChunkSpread])| {
        let sum = RowSum::new(chunks.iter().map(|c| c.sums));
        let logprob = sum.logprob(x[row * v + targets[row] as usize]);
        Spread { logprob, entropy: entropy(&sum, chunks), lse: sum.lse() }
    };
    host::collected(chunks.chunks_exact(n_chunks).enumerate().map(spread))
}

fn entropy(row: &RowSum, chunks: &[ChunkSpread]) -> f32 {
    let (mut sum, mut weighted) = (0.0, 0.0);
    for c in chunks {
        let below = f64::from(c.sums.largest) - f64::from(row.largest);
        let scale = exp_at_most_one(below);
        if scale > 0.0 {
            sum += scale * f64::from(c.sums.sum);
            weighted += scale * (f64::from(c.weighted) + below * f64::from(c.sums.sum));
        }
    }
    (row.ln_sum - weighted / sum) as f32
}

/// The student's probability of the teacher's most likely ids of a row, from its logits and what they say.
pub fn top_mass(logits: &Tensor, topk: &TopK, row: usize, says: &Spread) -> f64 {
    let x = &logits.f32()[row * logits.extent(1)..][..logits.extent(1)];
    topk.row(row).0.iter().map(|&id| exp_at_most_one((f64::from(x[id as usize]) - says.lse).min(0.0))).sum()
}

/// The entropy of a teacher whose most likely ids of a row are known, all `vocabulary` of them; None where there are more.
pub fn top_entropy(topk: &TopK, row: usize, vocabulary: usize) -> Option<f32> {
    let (ids, logprobs) = topk.row(row);
    if ids.is_empty() || ids.len() < vocabulary {
        return None;
    }
    // Given as log-probs, they sum to 1 within rounding alone.
    let of = |&logprob: &f32| (f64::from(logprob), exp_at_most_one(f64::from(logprob).min(0.0)));
    let add = |(sum, weighted), (logprob, q)| (sum + q, weighted + q * logprob);
    let (sum, weighted) = logprobs.iter().map(of).fold((0.0, 0.0), add);
    Some((math::ln(sum) - weighted / sum) as f32)
}

/// A chunk's sums, and that of (x - largest) e^(x - largest).
#[derive(Clone, Copy, Default)]
struct ChunkSpread {
    sums: ChunkSum,
    weighted: f32,
}

// SAFETY: three f32 without padding, and any bits are one.
unsafe impl Plain for ChunkSpread {}

/// Task i: chunk i % n_chunks of row i / n_chunks.
struct ChunkSpreads<'a> {
    chunks: Shared<ChunkSpread>,
    x: &'a [f32],
    v: usize,
}

impl Kernel for ChunkSpreads<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let n_chunks = self.v.div_ceil(CHUNK);
        let range = piece(index % n_chunks, CHUNK, self.v);
        let start = index / n_chunks * self.v + range.start;
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
            let (sum, weighted) = if largest == f32::NEG_INFINITY {
                // Nothing but masked ids, or NaN.
                let nan = self.x[start..start + range.len()].iter().any(|x| x.is_nan());
                (if nan { f32::NAN } else { 0.0 }, 0.0)
            } else {
                // Beyond, e^a is 0 or the least that it comes to, which times a must be nothing too.
                let (m, least) = (V::splat(largest), V::splat(-200.0));
                let (mut acc, mut weighted) = (V::zero(), V::zero());
                let mut i = 0;
                while i < range.len() {
                    let n = range.len() - i;
                    let a = load_or_minus_infinity::<V>(x.add(i), n).sub(m);
                    let mut e = math::exp(a);
                    if n < 16 {
                        // The sum of what is there, whatever e^-inf comes to.
                        let mut there = [0.0f32; 16];
                        e.store_tail(there.as_mut_ptr(), n);
                        e = V::load(there.as_ptr());
                    }
                    acc = acc.add(e);
                    weighted = e.fma(a.max(least), weighted);
                    i += 16;
                }
                (acc.reduce_add(), weighted.reduce_add())
            };
            *self.chunks.at(index) = ChunkSpread { sums: ChunkSum { largest, sum }, weighted };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::super::logprob::logprobs_of;
    use super::super::topk_divergence::Tail;
    use super::*;

    fn logits(n: usize, v: usize) -> Tensor {
        let x: Vec<f32> = random(3, &[n, v]).f32().iter().map(|x| 6.0 * x).collect();
        Tensor::from_f32(&[n, v], &x).unwrap()
    }

    /// The entropy of a row by its definition.
    fn by_definition(x: &[f64]) -> f64 {
        let m = x.iter().fold(f64::MIN, |m, &x| m.max(x));
        let sum: f64 = x.iter().map(|x| (x - m).exp()).sum();
        x.iter().map(|x| (x - m).exp() / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum()
    }

    #[test]
    fn entropies_are_those_of_the_definition_with_one_set_of_bits() {
        for (n, v) in [(1, 1), (3, 17), (2, 4096), (2, 4097), (3, 20_011)] {
            let logits = logits(n, v);
            let wanted: Vec<f64> = wide(&logits).chunks_exact(v).map(by_definition).collect();
            let targets: Vec<i32> = (0..n).map(|i| ((i * 7919) % v) as i32).collect();
            let mut judge: Option<Vec<f32>> = None;
            for device in devices() {
                let got = spreads_of(&device, &logits, &targets, n).unwrap();
                let entropies: Vec<f32> = got.iter().map(|s| s.entropy).collect();
                for (got, wanted) in entropies.iter().zip(&wanted) {
                    assert!((f64::from(*got) - wanted).abs() < 2e-6 * (1.0 + wanted), "{v}: {got} and not {wanted}");
                }
                assert_same_bits("entropies", &entropies, judge.get_or_insert_with(|| entropies.clone()));
                // The log-prob is the one that everybody takes.
                let logprobs: Vec<f32> = got.iter().map(|s| s.logprob).collect();
                assert_same_bits("logprobs", &logprobs, &logprobs_of(&device, &logits, &targets, n).unwrap());
            }
        }
    }

    #[test]
    fn known_distributions_have_known_entropies() {
        let of = |x: &[f32]| {
            let logits = Tensor::from_f32(&[1, x.len()], x).unwrap();
            spreads_of(&device(), &logits, &[0], 1).unwrap()[0].entropy
        };
        // Even over eight, over two of five thousand, certain, and 1/2, 1/4, 1/4.
        assert!((of(&[-3.5; 8]) - 8f32.ln()).abs() < 1e-6);
        let mut masked = vec![f32::NEG_INFINITY; 5000];
        (masked[7], masked[4999]) = (2.0, 2.0);
        assert!((of(&masked) - 2f32.ln()).abs() < 1e-6);
        assert!(of(&[0.0, -1e30, f32::NEG_INFINITY]).abs() < 1e-30);
        assert!((of(&[2f32.ln(), 0.0, 0.0]) - 1.5 * 2f32.ln()).abs() < 1e-6);
        // A tail of thousands, each unlikely: 1/2, and 1/2 over 8192.
        let mut tail = vec![0.0; 8193];
        tail[0] = 8192f32.ln();
        assert!((of(&tail) - (2f32.ln() + 0.5 * 8192f32.ln())).abs() < 1e-5);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(of(&[0.0, bad, 1.0]).is_nan());
        }
        assert!(of(&[f32::NEG_INFINITY; 4]).is_nan());
    }

    #[test]
    fn a_teachers_likely_ids_have_the_students_mass_and_all_of_them_an_entropy() {
        let x = [0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
        let student = Tensor::from_f32(&[1, 4], &x).unwrap();
        let says = spreads_of(&device(), &student, &[0], 1).unwrap()[0];
        let mut topk = TopK::new(2, Tail::Bucket);
        topk.push(&[3, 1], &[0.75f32.ln(), 0.125f32.ln()], -1.0).unwrap();
        assert!((top_mass(&student, &topk, 0, &says) - 0.375).abs() < 1e-6);
        assert_eq!((top_entropy(&topk, 0, 4), top_entropy(&TopK::new(0, Tail::Bucket), 0, 0)), (None, None));
        let mut all = TopK::new(2, Tail::Bucket);
        all.push(&[0, 1], &[0.25f32.ln(), 0.75f32.ln()], -1.0).unwrap();
        let wanted = -(0.25f32 * 0.25f32.ln() + 0.75 * 0.75f32.ln());
        assert!((top_entropy(&all, 0, 2).unwrap() - wanted).abs() < 1e-6);
    }
}
