//! Divergences from a teacher of which only its k most likely ids are known: over k + 1 events, those ids and "any other".
//!
//! Per row, with P and Q the student's and the teacher's probabilities of the events, D = KL or JSD of `divergence` over
//! them. Putting ids together never makes a divergence larger, so D is a lower bound of the one over all ids, and equal to
//! it where the k + 1 events are all ids. With g_e = dD/dP_e and m = sum P_e g_e, the gradient by the logit of an id of event e
//! is p (g_e - m), p the id's probability. A constant that is added to every g_e is no matter where the P_e sum to 1.
//!
//! The student's tail is the sum over the ids outside. The teacher's is 1 less the sum of what is known, which log-probs in f32
//! tell to about 1e-7: it is taken to be at least [`LEAST_TAIL`], without which a KL to a teacher that is certain would be
//! infinite, and Q to sum to 1 with it. Where there are no ids outside, there is no such event. Each row is computed in f64 from
//! its log-sum-exp, by one thread; the ids outside get their gradient with all other losses, in `divergence`.
//!
//! Two variants that compare less have names: renormalised (P and Q given that the id is a known one) and truncated (the known
//! events' terms alone).

use super::logprob::{RowSum, exp_at_most_one, row_sums};
use super::loss::{Loss, RowLoss};
use crate::backend::cpu::{Cpu, math};
use crate::backend::{Tensor, host};
use crate::error::Result;

/// The least probability of "any other" that a teacher is taken to have.
pub const LEAST_TAIL: f64 = 1e-7;

/// Over what the events of a teacher's most likely ids are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// The known ids and one event for all others.
    #[default]
    Bucket,
    /// The known ids, as if there were no others.
    Renormalised,
    /// The terms of the known ids alone: no divergence, and negative where the student lies below.
    Truncated,
}

/// A teacher's most likely ids of N rows.
#[derive(Debug, Default)]
pub struct TopK {
    k: usize,
    tail: Tail,
    /// [N, k]
    ids: Vec<i32>,
    /// [N, k] in nats
    logprobs: Vec<f32>,
    /// [N] of the token that stands there
    targets: Vec<f32>,
}

impl TopK {
    /// No rows yet.
    pub fn new(k: usize, tail: Tail) -> TopK {
        TopK { k, tail, ..TopK::default() }
    }

    /// Adds a row: the ids, all different, with their log-probs, and the log-prob of the token that stands there.
    pub fn push(&mut self, ids: &[i32], logprobs: &[f32], target: f32) -> Result<()> {
        assert!(ids.len() == self.k && logprobs.len() == self.k, "a row of {} of {}", ids.len(), self.k);
        host::reserve(&mut self.ids, self.k)?;
        host::reserve(&mut self.logprobs, self.k)?;
        host::reserve(&mut self.targets, 1)?;
        self.ids.extend_from_slice(ids);
        self.logprobs.extend_from_slice(logprobs);
        self.targets.push(target);
        Ok(())
    }

    /// Adds a row that is not read.
    pub fn push_none(&mut self) -> Result<()> {
        host::reserve(&mut self.ids, self.k)?;
        host::reserve(&mut self.logprobs, self.k)?;
        host::reserve(&mut self.targets, 1)?;
        self.ids.resize(self.ids.len() + self.k, 0);
        self.logprobs.resize(self.logprobs.len() + self.k, 0.0);
        self.targets.push(0.0);
        Ok(())
    }

    /// Whether ids are known at all, beside what stands there.
    pub fn has_ids(&self) -> bool {
        self.k > 0
    }

    /// The ids of a row with their log-probs.
    pub(super) fn row(&self, row: usize) -> (&[i32], &[f32]) {
        let place = row * self.k..(row + 1) * self.k;
        self.ids.get(place.clone()).zip(self.logprobs.get(place)).unwrap_or_default()
    }

    /// Log-probs of the tokens that stand there, one a row.
    pub fn targets(&self) -> &[f32] {
        &self.targets
    }
}

/// Divergences of some rows.
pub(super) struct Known {
    /// Of each: its loss, and the derivative by the logits over p of the ids outside.
    pub rows: Vec<(f32, f32)>,
    /// (place in the logits, gradient) of the ids inside.
    pub inside: Vec<(usize, f32)>,
}

/// The divergences of those of the logits' rows whose numbers stand in `rows`.
pub(super) fn topk_divergences(
    cpu: &Cpu,
    logits: &mut Tensor,
    topk: &TopK,
    losses: &[RowLoss],
    sums: &[RowSum],
    rows: &[usize],
) -> Result<Known> {
    let (v, k) = (logits.extent(1), topk.k);
    assert!(rows.iter().all(|row| (row + 1) * k <= topk.ids.len()), "{} ids for the rows {rows:?}", topk.ids.len());
    let tails = match topk.tail {
        Tail::Bucket => tails(cpu, logits, topk, sums, rows)?,
        Tail::Renormalised | Tail::Truncated => Vec::new(),
    };
    let x = logits.f32();
    let mut known = Known { rows: host::with_room(rows.len())?, inside: host::with_room(rows.len() * k)? };
    let (mut p, mut q, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
    for list in [&mut p, &mut q, &mut slopes] {
        host::reserve::<f64>(list, k + 1)?;
    }
    for (i, &row) in rows.iter().enumerate() {
        let (ids, logprobs) = (&topk.ids[row * k..][..k], &topk.logprobs[row * k..][..k]);
        assert!(ids.iter().all(|&id| id >= 0 && (id as usize) < v), "an id lies outside the vocabulary of {v}");
        // Log-probs of the events.
        p.clear();
        p.extend(ids.iter().map(|&id| f64::from(x[row * v + id as usize]) - sums[row].lse()));
        q.clear();
        q.extend(logprobs.iter().map(|&logprob| f64::from(logprob)));
        let sum = [&p, &q].map(|list| list.iter().map(|&x| exp_at_most_one(x)).sum::<f64>());
        match topk.tail {
            Tail::Bucket => {
                let others = tails[i].map(|_| (1.0 - sum[1]).max(LEAST_TAIL));
                p.extend(tails[i]);
                q.extend(others.map(math::ln));
                let all = math::ln((sum[1] + others.unwrap_or(0.0)).max(f64::MIN_POSITIVE));
                q.iter_mut().for_each(|x| *x -= all);
            }
            Tail::Renormalised => {
                let all = sum.map(|sum| math::ln(sum.max(f64::MIN_POSITIVE)));
                p.iter_mut().for_each(|x| *x -= all[0]);
                q.iter_mut().for_each(|x| *x -= all[1]);
            }
            Tail::Truncated => {}
        }
        let RowLoss { kind, weight, .. } = losses[row];
        slopes.clear();
        let mut loss = 0.0;
        for (&p, &q) in p.iter().zip(&q) {
            let (term, mut slope) = term(kind, p, q);
            if (topk.tail, kind) == (Tail::Truncated, Loss::ReverseKl) {
                slope += exp_at_most_one(p);
            }
            loss += term;
            slopes.push(slope);
        }
        let (mean, weight) = (slopes.iter().sum::<f64>(), f64::from(weight));
        // Renormalised, P is relative, and so is what the known ids get; the others take part in nothing.
        let outside = match topk.tail {
            Tail::Bucket if p.len() > k => (slopes[k] / exp_at_most_one(p[k]) - mean).clamp(-1e30, 1e30),
            Tail::Bucket | Tail::Renormalised => 0.0,
            Tail::Truncated => -mean,
        };
        known.rows.push((loss as f32, outside as f32));
        for (i, &id) in ids.iter().enumerate() {
            known.inside.push((row * v + id as usize, (weight * (slopes[i] - exp_at_most_one(p[i]) * mean)) as f32));
        }
    }
    Ok(known)
}

/// ln of the student's probability of all ids outside, of each of the rows; None where there are none.
fn tails(cpu: &Cpu, logits: &mut Tensor, topk: &TopK, sums: &[RowSum], rows: &[usize]) -> Result<Vec<Option<f64>>> {
    let (v, k) = (logits.extent(1), topk.k);
    let places = || rows.iter().flat_map(|&row| topk.ids[row * k..][..k].iter().map(move |&id| row * v + id as usize));
    let mut held = host::with_room(rows.len() * k)?;
    held.extend(places().map(|at| logits.f32()[at]));
    places().for_each(|at| logits.f32_mut()[at] = f32::NEG_INFINITY);
    let outside = row_sums(cpu, logits, rows);
    places().zip(held).for_each(|(at, x)| logits.f32_mut()[at] = x);
    // Less likely than that it is no matter, and its numbers stay numbers.
    let ln = |(sum, &row): (&RowSum, &usize)| {
        Some(sum.lse() - sums[row].lse()).filter(|x| x.is_finite()).map(|x| x.max(-200.0))
    };
    host::collected(outside?.rows.iter().zip(rows).map(ln))
}

/// An event's part of the divergence, and P times its derivative by the student's probability P, of log-probs p and q.
fn term(kind: Loss, p: f64, q: f64) -> (f64, f64) {
    let (d, of_p, of_q) = (p - q, exp_at_most_one(p), exp_at_most_one(q));
    match kind {
        // The derivative of P (ln P - ln Q) less its constant 1, which is no matter where all events are there.
        Loss::ReverseKl => (of_p * d, of_p * d),
        Loss::ForwardKl => (-of_q * d, -of_q),
        Loss::JensenShannon(share) => {
            let share = f64::from(share);
            // ln(P / M) and ln(Q / M), from the larger of the two.
            let to_p = -math::ln((1.0 - share) + share * exp_at_most_one(-d.abs()));
            let to_q = -math::ln(share + (1.0 - share) * exp_at_most_one(-d.abs()));
            let (of_p_m, of_q_m) = if d >= 0.0 { (to_p, to_p - d) } else { (to_q + d, to_q) };
            let ours = (1.0 - share) * of_p * of_p_m;
            (share * of_q * of_q_m + ours, ours)
        }
        // They do not compare distributions.
        _ => (0.0, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::super::divergence::{TeacherRows, divergence_forward_backward};
    use super::super::sampled::{Drawn, worth};
    use super::*;
    use crate::backend::Tensor;
    use Loss::{CrossEntropy, ForwardKl, JensenShannon, ReverseKl, SampledReverseKl};

    const KINDS: [Loss; 4] = [ReverseKl, ForwardKl, JensenShannon(0.5), JensenShannon(0.1)];
    const TAILS: [Tail; 3] = [Tail::Bucket, Tail::Renormalised, Tail::Truncated];

    fn logits(seed: u64, n: usize, v: usize) -> Tensor {
        let x: Vec<f32> = random(seed, &[n, v]).f32().iter().map(|x| 3.0 * x).collect();
        Tensor::from_f32(&[n, v], &x).unwrap()
    }

    fn log_softmax(x: &[f64]) -> Vec<f64> {
        let m = x.iter().fold(f64::MIN, |m, &x| m.max(x));
        let lse = m + x.iter().map(|x| (x - m).exp()).sum::<f64>().ln();
        x.iter().map(|x| x - lse).collect()
    }

    /// The k most likely ids of a row with their log-probs.
    fn best(row: &[f64], k: usize) -> (Vec<i32>, Vec<f32>) {
        let logprobs = log_softmax(row);
        let mut ids: Vec<usize> = (0..row.len()).collect();
        ids.sort_by(|&a, &b| logprobs[b].total_cmp(&logprobs[a]));
        ids.truncate(k);
        (ids.iter().map(|&id| id as i32).collect(), ids.iter().map(|&id| logprobs[id] as f32).collect())
    }

    /// The loss of a row by its definition, from probabilities of events.
    fn wanted(kind: Loss, tail: Tail, x: &[f64], ids: &[i32], logprobs: &[f32]) -> f64 {
        let own = log_softmax(x);
        let mut p: Vec<f64> = ids.iter().map(|&id| own[id as usize].exp()).collect();
        let mut q: Vec<f64> = logprobs.iter().map(|&x| f64::from(x).exp()).collect();
        let (of_p, of_q) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
        match tail {
            Tail::Bucket if ids.len() == x.len() => q.iter_mut().for_each(|q| *q /= of_q),
            Tail::Bucket => {
                let outside = (0..x.len()).filter(|id| !ids.contains(&(*id as i32)));
                p.push(outside.map(|id| own[id].exp()).sum());
                q.push((1.0 - of_q).max(LEAST_TAIL));
                let all: f64 = q.iter().sum();
                q.iter_mut().for_each(|q| *q /= all);
            }
            Tail::Renormalised => {
                p.iter_mut().for_each(|x| *x /= of_p);
                q.iter_mut().for_each(|x| *x /= of_q);
            }
            Tail::Truncated => {}
        }
        let of = |p: f64, q: f64| match kind {
            ReverseKl => p * (p / q).ln(),
            ForwardKl => q * (q / p).ln(),
            JensenShannon(b) => {
                let b = f64::from(b);
                let m = b * q + (1.0 - b) * p;
                b * q * (q / m).ln() + (1.0 - b) * p * (p / m).ln()
            }
            _ => 0.0,
        };
        p.iter().zip(&q).map(|(&p, &q)| of(p, q)).sum()
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_events_by_their_definition() {
        for (v, k) in [(7, 3), (4097, 32), (9, 9), (2, 1)] {
            for (seed, kind) in KINDS.into_iter().enumerate() {
                for tail in TAILS {
                    let seed = seed as u64;
                    let (student, teacher) = (logits(10 + seed, 1, v), logits(20 + seed, 1, v));
                    let (ids, logprobs) = best(&wide(&teacher), k);
                    let mut topk = TopK::new(k, tail);
                    topk.push(&ids, &logprobs, -1.0).unwrap();
                    let mut x = Tensor::from_f32(&[1, v], student.f32()).unwrap();
                    let row = RowLoss::new(kind, 0.5, 0);
                    let teacher = TeacherRows::TopK(&topk);
                    let got = divergence_forward_backward(&device(), &mut x, teacher, &[row], 1).unwrap()[0] as f64;
                    let by_definition = |x: &[f64]| wanted(kind, tail, x, &ids, &logprobs);
                    let exact = by_definition(&wide(&student));
                    assert!((got - exact).abs() < 2e-6, "{kind:?} {tail:?} {v} {k}: {got} and not {exact}");
                    let slope = finite_difference(&wide(&student), by_definition);
                    let doubled: Vec<f32> = x.f32().iter().map(|g| 2.0 * g).collect();
                    let mut slope = slope.to_vec();
                    let mut doubled = doubled;
                    slope.push(1.0);
                    doubled.push(1.0);
                    assert_close(&format!("{kind:?} {tail:?} {v} {k}"), &doubled, &slope, 1e-5);
                }
            }
        }
    }

    #[test]
    fn all_ids_known_are_the_divergence_over_the_vocabulary() {
        let v = 40;
        for kind in KINDS {
            let (student, teacher) = (logits(1, 1, v), logits(2, 1, v));
            let row = RowLoss::new(kind, 1.0, 0);
            let of = |teacher: TeacherRows| {
                let mut x = Tensor::from_f32(&[1, v], student.f32()).unwrap();
                let loss = divergence_forward_backward(&device(), &mut x, teacher, &[row], 1).unwrap()[0];
                (loss, x.f32().to_vec())
            };
            let whole = of(TeacherRows::Logits(&teacher));
            for (k, tail) in [(v, Tail::Bucket), (v, Tail::Renormalised), (v, Tail::Truncated), (v - 1, Tail::Bucket)] {
                let (ids, logprobs) = best(&wide(&teacher), k);
                let mut topk = TopK::new(k, tail);
                topk.push(&ids, &logprobs, -1.0).unwrap();
                let known = of(TeacherRows::TopK(&topk));
                // A tail of log-probs in f32 is known to about 1e-7, however small it is.
                let limit = if k == v { 1e-5 } else { 1e-4 };
                assert!((whole.0 - known.0).abs() < limit, "{kind:?} {tail:?} {k}: {} and not {}", known.0, whole.0);
                let apart = whole.1.iter().zip(&known.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(apart < limit, "{kind:?} {tail:?} {k}: {apart}");
            }
        }
    }

    #[test]
    fn a_row_of_each_kind_in_one_batch_is_what_it_is_alone_with_one_set_of_bits() {
        let (v, k) = (5000, 8);
        let kinds = [ReverseKl, CrossEntropy, JensenShannon(0.5), SampledReverseKl, ForwardKl];
        let (student, teacher) = (logits(3, 5, v), logits(4, 5, v));
        let mut rows: Vec<RowLoss> = kinds.iter().map(|&kind| RowLoss::new(kind, 1.5, 4321)).collect();
        let own = log_softmax(&wide(&student)[3 * v..4 * v])[4321];
        rows[3].worth = worth(SampledReverseKl, own as f32, -2.5, &Drawn::default()).unwrap();
        let side = |which: &[usize]| {
            let mut topk = TopK::new(k, Tail::Bucket);
            for &i in which {
                match kinds[i] {
                    CrossEntropy => topk.push_none().unwrap(),
                    _ => {
                        let (ids, logprobs) = best(&wide(&teacher)[i * v..][..v], k);
                        topk.push(&ids, &logprobs, -2.5).unwrap();
                    }
                }
            }
            topk
        };
        let mut judge: Option<(Vec<f32>, Vec<f32>)> = None;
        for device in devices() {
            let mut x = Tensor::from_f32(&[5, v], student.f32()).unwrap();
            let topk = side(&[0, 1, 2, 3, 4]);
            let losses = divergence_forward_backward(&device, &mut x, TeacherRows::TopK(&topk), &rows, 5).unwrap();
            let judge = judge.get_or_insert_with(|| (losses.clone(), x.f32().to_vec()));
            assert_same_bits("losses", &losses, &judge.0);
            assert_same_bits("gradients", x.f32(), &judge.1);
            for i in 0..5 {
                let mut alone = Tensor::from_f32(&[1, v], &student.f32()[i * v..][..v]).unwrap();
                let topk = side(&[i]);
                let loss = divergence_forward_backward(&device, &mut alone, TeacherRows::TopK(&topk), &rows[i..=i], 1)
                    .unwrap();
                assert_same_bits("its loss", &loss, &losses[i..=i]);
                assert_same_bits("its gradient", alone.f32(), &x.f32()[i * v..][..v]);
            }
            assert!((f64::from(losses[3]) - (own + 2.5)).abs() < 1e-5, "by the teacher's own log-prob");
        }
    }

    #[test]
    fn a_tail_that_the_student_has_given_up_is_still_taught() {
        // The ids outside have a probability of 1e-9 together with the student, and of 5 % with the teacher.
        let v = 9000;
        let mut x = vec![-29.8f32; v];
        (x[3], x[4]) = (0.0, 0.0);
        let mut topk = TopK::new(2, Tail::Bucket);
        topk.push(&[3, 4], &[0.475f32.ln(), 0.475f32.ln()], -1.0).unwrap();
        let mut logits = Tensor::from_f32(&[1, v], &x).unwrap();
        let row = RowLoss::new(ForwardKl, 1.0, 0);
        let loss = divergence_forward_backward(&device(), &mut logits, TeacherRows::TopK(&topk), &[row], 1).unwrap()[0];
        let outside: f64 =
            wide(&logits).iter().enumerate().filter(|(id, _)| ![3, 4].contains(id)).map(|(_, g)| g).sum();
        let p = (v - 2) as f64 * (-29.8f64).exp() / 2.0;
        assert!(p < 1e-8 && (f64::from(loss) - (0.05 * (0.05 / p).ln() + 0.95 * 0.95f64.ln())).abs() < 1e-4, "{loss}");
        assert!((outside - (p - 0.05)).abs() < 1e-5, "{outside}");
        let all: f64 = wide(&logits).iter().sum();
        assert!(all.abs() < 1e-6, "{all}");
    }

    #[test]
    fn certain_teachers_and_extreme_students_give_no_nan() {
        for certain in [true, false] {
            for student in [[3e38f32, -3e38, 0.0, 1e4], [-3e38; 4], [0.0; 4], [-1e4, 200.0, 1e30, 5.0]] {
                for kind in KINDS {
                    for tail in TAILS {
                        let mut topk = TopK::new(2, tail);
                        let logprobs: [f32; 2] = if certain { [0.0, -3e38] } else { [-0.7, -0.7] };
                        topk.push(&[1, 2], &logprobs, 0.0).unwrap();
                        let mut x = Tensor::from_f32(&[1, 4], &student).unwrap();
                        let row = RowLoss::new(kind, 1.0, 0);
                        let teacher = TeacherRows::TopK(&topk);
                        let loss = divergence_forward_backward(&device(), &mut x, teacher, &[row], 1).unwrap()[0];
                        let all = x.f32();
                        assert!(
                            !loss.is_nan() && all.iter().all(|g| !g.is_nan()),
                            "{kind:?} {tail:?} {student:?} {all:?}"
                        );
                    }
                }
            }
        }
    }
}
