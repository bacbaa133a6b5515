//! Losses of rows of logits and their gradients by the student's logits, row by row.
//!
//! With p_s and p_t the softmax of the student's and the teacher's logits [N, V], in nats:
//! reverse KL = sum p_s (ln p_s - ln p_t), gradient p_s ((ln p_s - ln p_t) - KL);
//! forward KL = sum p_t (ln p_t - ln p_s), gradient p_s - p_t;
//! JSD(b) = b KL(p_t, m) + (1 - b) KL(p_s, m) with m = b p_t + (1 - b) p_s, gradient (1 - b) p_s (ln(p_s / m) - KL(p_s, m)):
//! the generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649), as trl writes it;
//! cross entropy = -ln p_s[target], gradient p_s - 1[target];
//! a sampled token's loss, which `sampled` computes from log-probs: its factor times p_s - 1[target].
//!
//! A teacher of which only its k most likely ids are known is compared over k + 1 events (`topk_divergence`).
//!
//! Differences of log-probs are taken as (a_s - a_t) - (ln S_s - ln S_t) with a = x - max x and S = sum e^a: both
//! brackets are exact zeros where the logits agree, so a student equal to its teacher has loss and gradient zero to
//! the bit, and nothing cancels where a KL is near; of a JSD the difference keeps an error of 1e-7 nats. a is kept above -1e30, so no finite logits give a NaN.

use super::logprob::{CHUNK, RowSum, exp_at_most_one, load_or_minus_infinity, logprobs_of, row_sums};
use super::loss::{Loss, RowLoss};
use super::topk_divergence::{TopK, topk_divergences};
use crate::backend::cpu::{FloatEnv, Kernel, Lanes, Shared, math, piece};
use crate::backend::{Device, Tensor, host};
use crate::error::Result;

/// What is known of the teacher in a batch of rows.
#[derive(Clone, Copy)]
pub enum TeacherRows<'a> {
    /// Nothing.
    None,
    /// Its logits [N, V].
    Logits(&'a Tensor),
    /// Its most likely ids, none maybe, and the log-prob of the token that stands there.
    TopK(&'a TopK),
}

/// The teacher's log-probs of the `targets` of the first `n` rows. Rows whose loss asks for none may say anything.
pub fn teacher_logprobs(device: &Device, teacher: TeacherRows, targets: &[i32], n: usize) -> Result<Vec<f32>> {
    match teacher {
        TeacherRows::Logits(logits) => logprobs_of(device, logits, targets, n),
        TeacherRows::TopK(topk) => host::collected(topk.targets()[..n].iter().copied()),
        TeacherRows::None => host::collected(std::iter::repeat_n(0.0, n)),
    }
}

/// Returns the loss of each of the first `n` rows, in nats and without its weight, and overwrites the student's
/// `logits` [N, V] by weight * dloss/dlogits: a second buffer of that size is worth sparing. `teacher` must have what the
/// rows' losses need, and is read in those rows alone.
pub fn divergence_forward_backward(
    device: &Device,
    logits: &mut Tensor,
    teacher: TeacherRows,
    rows: &[RowLoss],
    n: usize,
) -> Result<Vec<f32>> {
    let v = logits.extent(1);
    let rows = &rows[..n];
    assert!(logits.extent(0) >= n, "logits are {} for {n} rows", logits.shape());
    for row in rows.iter().filter(|r| !r.kind.compares()) {
        assert!(row.target >= 0 && (row.target as usize) < v, "target {} of a vocabulary of {v}", row.target);
    }
    let mut compared = host::with_room(n)?;
    compared.extend((0..n).filter(|&i| rows[i].kind.compares()));
    let logits_of_teacher = match teacher {
        TeacherRows::Logits(t) => Some(t),
        _ => None,
    };
    if let Some(t) = logits_of_teacher {
        assert!(t.extent(0) >= n && t.extent(1) == v, "teacher logits are {t:?}, the student's {}", logits.shape());
    }
    let cpu = device.cpu();
    let _env = FloatEnv::set();

    let student_sums = row_sums(cpu, logits, &host::collected(0..n)?)?.rows;
    let mut facts = host::collected(rows.iter().zip(&student_sums).map(|(&spec, sum)| Row::new(spec, sum)))?;
    for (i, fact) in facts.iter_mut().enumerate().filter(|(_, f)| !f.spec.kind.compares()) {
        let above = logits.f32()[i * v + fact.spec.target as usize] as f64 - student_sums[i].largest as f64;
        fact.loss = (student_sums[i].ln_sum - above) as f32;
        if fact.spec.kind.is_sampled() {
            fact.loss = fact.spec.worth.loss;
            fact.spec.weight *= fact.spec.worth.factor;
        }
    }
    let mut of_known = Vec::new();
    match teacher {
        _ if compared.is_empty() => {}
        TeacherRows::Logits(_) => {}
        TeacherRows::TopK(topk) => {
            let known = topk_divergences(cpu, logits, topk, rows, &student_sums, &compared)?;
            for (&i, (loss, outside)) in compared.iter().zip(known.rows) {
                (facts[i].loss, facts[i].outside) = (loss, Some(outside));
            }
            of_known = known.inside;
            compared.clear();
        }
        _ => panic!("rows compare distributions, and the teacher has none"),
    }
    let teacher_logits = logits_of_teacher.map_or(&[][..], |t| t.f32());
    if let (Some(teacher), false) = (logits_of_teacher, compared.is_empty()) {
        for (&i, sum) in compared.iter().zip(row_sums(cpu, teacher, &compared)?.rows) {
            facts[i].teacher = Side::new(&sum);
            facts[i].shift = (student_sums[i].ln_sum - sum.ln_sum) as f32;
        }
    }

    let n_chunks = v.div_ceil(CHUNK);
    let n_parts = compared.len() * n_chunks;
    let mut parts = cpu.scratch::<f32>(2 * n_parts)?;
    let x = logits.f32();
    let losses =
        Losses { parts: Shared::new(&mut parts), x, teacher: teacher_logits, compared: &compared, facts: &facts, v };
    cpu.launch(n_parts, &losses);
    for (&i, parts) in compared.iter().zip(parts.chunks_exact(2 * n_chunks)) {
        let sum = |which: usize| parts[which..].iter().step_by(2).map(|&p| p as f64).sum::<f64>() as f32;
        (facts[i].loss, facts[i].slope) = (sum(0), sum(1));
    }
    let x = Shared::new(&mut logits.f32_mut()[..n * v]);
    cpu.launch(n * n_chunks, &Gradients { x, teacher: teacher_logits, facts: &facts, v });
    let gradients = logits.f32_mut();
    of_known.iter().for_each(|&(at, gradient)| gradients[at] = gradient);
    host::collected(facts.iter().map(|f| f.loss))
}

/// One of the two distributions of a row.
#[derive(Clone, Copy, Default)]
struct Side {
    /// The largest logit.
    largest: f32,
    /// 1 / sum of e^(x - largest).
    scale: f32,
}

impl Side {
    fn new(sum: &RowSum) -> Side {
        Side { largest: sum.largest, scale: exp_at_most_one(-sum.ln_sum) as f32 }
    }

    /// a = x - largest of up to sixteen ids and p = e^a * scale; p is 0 or nearly so in the lanes beyond `n`.
    ///
    /// # Safety
    /// The contract of [`Lanes`]; `n` elements are readable.
    #[inline(always)]
    unsafe fn load<V: Lanes>(self, x: *const f32, n: usize) -> (V, V) {
        // SAFETY: the caller's.
        unsafe {
            let a = load_or_minus_infinity::<V>(x, n).sub(V::splat(self.largest)).max(V::splat(-1e30));
            (a, math::exp(a).mul(V::splat(self.scale)))
        }
    }
}

/// What the kernels know of a row.
struct Row {
    spec: RowLoss,
    student: Side,
    /// Read where logits are compared.
    teacher: Side,
    /// ln S_s - ln S_t.
    shift: f32,
    loss: f32,
    /// sum of p_s times the loss's derivative by it, where that is not the loss
    slope: f32,
    /// the derivative by the logits over p_s of all ids outside the teacher's most likely ones, where only those are known
    outside: Option<f32>,
}

impl Row {
    fn new(spec: RowLoss, student: &RowSum) -> Row {
        let (student, teacher) = (Side::new(student), Side::default());
        Row { spec, student, teacher, shift: 0.0, loss: 0.0, slope: 0.0, outside: None }
    }
}

/// (ln(p / m), ln(q / m)) with m = b q + (1 - b) p and d = ln(p / q): zeros to the bit where d is 0.
///
/// # Safety
/// The contract of [`Lanes`].
#[inline(always)]
unsafe fn over_mixture<V: Lanes>(d: V, b: f32) -> (V, V) {
    // SAFETY: the caller's.
    unsafe {
        let (zero, one) = (V::zero(), V::splat(1.0));
        let (up, down) = (d.max(zero), d.min(zero));
        // Of the larger of the two: -ln(1 - c (1 - e^-|d|)), c the share of the other; the smaller one's lies |d| below.
        let gap = one.sub(math::exp(down.sub(up)));
        // The sign of d, as 0 or 1.
        let is_up = up.mul(V::splat(f32::MAX)).min(one);
        let is_down = zero.sub(down).mul(V::splat(f32::MAX)).min(one);
        let c = is_up.mul(V::splat(b)).add(is_down.mul(V::splat(1.0 - b)));
        let larger = zero.sub(math::ln_1p(zero.sub(c.mul(gap))));
        (larger.add(down), larger.sub(up))
    }
}

/// Task i: the parts of chunk i % n_chunks in the loss of row compared[i / n_chunks] and in what its gradient takes off, one
/// behind the other.
struct Losses<'a> {
    parts: Shared<f32>,
    x: &'a [f32],
    teacher: &'a [f32],
    compared: &'a [usize],
    facts: &'a [Row],
    v: usize,
}

impl Kernel for Losses<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let n_chunks = self.v.div_ceil(CHUNK);
        let row = self.compared[index / n_chunks];
        let fact = &self.facts[row];
        let range = piece(index % n_chunks, CHUNK, self.v);
        // SAFETY: the chunk lies inside both rows, and each task writes its own element.
        unsafe {
            let x = self.x.as_ptr().add(row * self.v + range.start);
            let teacher = self.teacher.as_ptr().add(row * self.v + range.start);
            let shift = V::splat(fact.shift);
            let (mut acc, mut slope) = (V::zero(), V::zero());
            let mut i = 0;
            while i < range.len() {
                let n = range.len() - i;
                let (a, p): (V, V) = fact.student.load(x.add(i), n);
                let (b, q): (V, V) = fact.teacher.load(teacher.add(i), n);
                match fact.spec.kind {
                    Loss::ReverseKl => acc = p.fma(a.sub(b).sub(shift), acc),
                    Loss::JensenShannon(share) => {
                        let (of_p, of_q) = over_mixture::<V>(a.sub(b).sub(shift), share);
                        let ours = p.mul(V::splat(1.0 - share)).mul(of_p);
                        slope = slope.add(ours);
                        acc = q.mul(V::splat(share)).fma(of_q, acc.add(ours));
                    }
                    _ => acc = q.fma(b.sub(a).add(shift), acc),
                }
                i += 16;
            }
            (*self.parts.at(2 * index), *self.parts.at(2 * index + 1)) = (acc.reduce_add(), slope.reduce_add());
        }
    }
}

/// Task i: the gradient in chunk i % n_chunks of row i / n_chunks, over the student's logits.
struct Gradients<'a> {
    x: Shared<f32>,
    teacher: &'a [f32],
    facts: &'a [Row],
    v: usize,
}

impl Kernel for Gradients<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let n_chunks = self.v.div_ceil(CHUNK);
        let row = index / n_chunks;
        let fact = &self.facts[row];
        let range = piece(index % n_chunks, CHUNK, self.v);
        // SAFETY: the chunk lies inside both rows, and tasks own disjoint chunks.
        unsafe {
            let out = self.x.slice(row * self.v + range.start, range.len());
            if fact.spec.weight == 0.0 {
                out.fill(0.0);
                return;
            }
            let x = out.as_mut_ptr();
            let teacher = self.teacher.as_ptr().wrapping_add(row * self.v + range.start);
            let (shift, loss, weight) = (V::splat(fact.shift), V::splat(fact.loss), V::splat(fact.spec.weight));
            let slope = V::splat(fact.slope);
            let mut i = 0;
            while i < range.len() {
                let n = range.len() - i;
                let (a, p): (V, V) = fact.student.load(x.add(i), n);
                let gradient = match fact.spec.kind {
                    _ if fact.outside.is_some() => p.mul(V::splat(fact.outside.unwrap_or(0.0))),
                    Loss::ReverseKl => {
                        let (b, _): (V, V) = fact.teacher.load(teacher.add(i), n);
                        p.mul(a.sub(b).sub(shift).sub(loss))
                    }
                    Loss::ForwardKl => p.sub(fact.teacher.load::<V>(teacher.add(i), n).1),
                    Loss::JensenShannon(share) => {
                        let (b, _): (V, V) = fact.teacher.load(teacher.add(i), n);
                        let (of_p, _) = over_mixture::<V>(a.sub(b).sub(shift), share);
                        p.mul(of_p.mul(V::splat(1.0 - share)).sub(slope))
                    }
                    // Of what stands there: the gradient of -ln p, with its factor in the weight.
                    _ => p,
                };
                // Adding zero makes a -0 +0.
                gradient.mul(weight).add(V::zero()).store_rounded(x.add(i), n, false);
                i += 16;
            }
            let target = fact.spec.target as usize;
            if !fact.spec.kind.compares() && range.contains(&target) {
                *x.add(target - range.start) -= fact.spec.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::super::sampled::{Drawn, worth};
    use super::*;
    use Loss::{CrossEntropy, ForwardKl, JensenShannon, ReverseKl, SampledReverseKl};

    const VOCABULARIES: [usize; 5] = [1, 2, 17, 4097, 9001];
    const KINDS: [Loss; 7] = [
        ReverseKl,
        ForwardKl,
        CrossEntropy,
        JensenShannon(0.5),
        JensenShannon(0.01),
        JensenShannon(0.9),
        SampledReverseKl,
    ];

    fn logits(seed: u64, n: usize, v: usize) -> Tensor {
        let x: Vec<f32> = random(seed, &[n, v]).f32().iter().map(|x| 4.0 * x).collect();
        Tensor::from_f32(&[n, v], &x).unwrap()
    }

    fn copy(t: &Tensor) -> Tensor {
        Tensor::from_f32(t.shape().extents(), t.f32()).unwrap()
    }

    fn log_softmax(x: &[f64]) -> Vec<f64> {
        let m = x.iter().fold(f64::MIN, |m, &x| m.max(x));
        let lse = m + x.iter().map(|x| (x - m).exp()).sum::<f64>().ln();
        x.iter().map(|x| x - lse).collect()
    }

    fn loss(kind: Loss, x: &[f64], t: &[f64], target: usize) -> f64 {
        let (s, t) = (log_softmax(x), log_softmax(t));
        match kind {
            ReverseKl => s.iter().zip(&t).map(|(s, t)| s.exp() * (s - t)).sum(),
            ForwardKl => s.iter().zip(&t).map(|(s, t)| t.exp() * (t - s)).sum(),
            JensenShannon(b) => {
                let b = f64::from(b);
                let to = |x: f64, s: f64, t: f64| x.exp() * (x - (b * t.exp() + (1.0 - b) * s.exp()).ln());
                s.iter().zip(&t).map(|(&s, &t)| b * to(t, s, t) + (1.0 - b) * to(s, s, t)).sum()
            }
            CrossEntropy => -s[target],
            _ => s[target] - t[target],
        }
    }

    /// Rows with the worth of what is sampled.
    fn specs(student: &Tensor, teacher: &Tensor, rows: &[(Loss, f32, usize)]) -> Vec<RowLoss> {
        let targets: Vec<i32> = rows.iter().map(|row| row.2 as i32).collect();
        let n = rows.len();
        let ours = logprobs_of(&device(), student, &targets, n).unwrap();
        let theirs = teacher_logprobs(&device(), TeacherRows::Logits(teacher), &targets, n).unwrap();
        let of = |i: usize| {
            let (kind, weight, target) = rows[i];
            let worth = worth(kind, ours[i], theirs[i], &Drawn::default()).unwrap_or_default();
            RowLoss { worth, ..RowLoss::new(kind, weight, target as i32) }
        };
        (0..n).map(of).collect()
    }

    fn gradient(kind: Loss, x: &[f64], t: &[f64], target: usize) -> Vec<f64> {
        let value = loss(kind, x, t, target);
        let (s, t) = (log_softmax(x), log_softmax(t));
        let slope = |i: usize, b: f64| (1.0 - b) * (s[i] - (b * t[i].exp() + (1.0 - b) * s[i].exp()).ln());
        let mean: f64 = match kind {
            JensenShannon(b) => (0..s.len()).map(|i| s[i].exp() * slope(i, f64::from(b))).sum(),
            _ => 0.0,
        };
        let at = |i: usize| match kind {
            ReverseKl => s[i].exp() * (s[i] - t[i] - value),
            ForwardKl => s[i].exp() - t[i].exp(),
            JensenShannon(b) => s[i].exp() * (slope(i, f64::from(b)) - mean),
            CrossEntropy => s[i].exp() - (i == target) as u8 as f64,
            // Of ln p, times what is not differentiated.
            _ => value * ((i == target) as u8 as f64 - s[i].exp()),
        };
        (0..x.len()).map(at).collect()
    }

    #[test]
    fn divergence_gradient_formulas_match_finite_difference() {
        let (x, t) = (wide(&logits(1, 1, 17)), wide(&logits(2, 1, 17)));
        for kind in KINDS.into_iter().filter(|kind| *kind != SampledReverseKl) {
            let got: Vec<f32> = gradient(kind, &x, &t, 5).iter().map(|&g| g as f32).collect();
            assert_close("gradient", &got, &finite_difference(&x, |x| loss(kind, x, &t, 5)), 1e-6);
        }
    }

    #[test]
    fn divergences_equal_the_formulas_in_a_batch_of_all_kinds_with_one_set_of_bits() {
        for v in VOCABULARIES {
            let kinds = [
                ReverseKl,
                CrossEntropy,
                ForwardKl,
                ReverseKl,
                CrossEntropy,
                JensenShannon(0.5),
                JensenShannon(0.01),
                SampledReverseKl,
                JensenShannon(0.9),
            ];
            let weights = [1.0f32, 0.25, -2.0, 0.0, 3.0, 1.0, -0.5, 2.0, 1.0];
            let n = kinds.len();
            let (student, teacher) = (logits(1, n + 1, v), logits(2, n, v));
            let rows: Vec<_> = (0..n).map(|i| (kinds[i], weights[i], (v - 1) / (i + 1))).collect();
            let rows = specs(&student, &teacher, &rows);
            let mut judge: Option<(Vec<f32>, Vec<f32>)> = None;
            for device in devices() {
                let mut x = copy(&student);
                let got =
                    divergence_forward_backward(&device, &mut x, TeacherRows::Logits(&teacher), &rows, n).unwrap();
                for (i, row) in rows.iter().enumerate() {
                    let at = i * v..(i + 1) * v;
                    let (s, t) = (&wide(&student)[at.clone()], &wide(&teacher)[at.clone()]);
                    assert!((got[i] as f64 - loss(row.kind, s, t, row.target as usize)).abs() < 2e-6);
                    let mut wanted = gradient(row.kind, s, t, row.target as usize);
                    wanted.iter_mut().for_each(|g| *g *= row.weight as f64);
                    let floor = if v == 1 { 1.0 } else { 0.0 };
                    wanted.push(floor);
                    let mut gradient = x.f32()[at].to_vec();
                    gradient.push(floor as f32);
                    assert_close("gradient", &gradient, &wanted, 1e-5);
                }
                assert_same_bits("the row not in use", &x.f32()[n * v..], &student.f32()[n * v..]);
                let judge = judge.get_or_insert_with(|| (got.clone(), x.f32().to_vec()));
                assert_same_bits("losses", &got, &judge.0);
                assert_same_bits("gradients", x.f32(), &judge.1);
            }
        }
    }

    #[test]
    fn a_student_equal_to_its_teacher_has_zero_loss_and_zero_gradient_to_the_bit() {
        for v in VOCABULARIES {
            let teacher = logits(3, 4, v);
            let rows = [(ReverseKl, 1.0), (ForwardKl, 0.5), (JensenShannon(0.3), -3.0), (SampledReverseKl, -1.0)];
            let rows = specs(&teacher, &teacher, &rows.map(|(kind, weight)| (kind, weight, 0)));
            for device in devices() {
                let mut x = copy(&teacher);
                let losses =
                    divergence_forward_backward(&device, &mut x, TeacherRows::Logits(&teacher), &rows, 4).unwrap();
                assert_same_bits("losses", &losses, &[0.0; 4]);
                assert_same_bits("gradients", x.f32(), &vec![0.0; 4 * v]);
            }
        }
    }

    #[test]
    fn ids_left_out_by_minus_infinity_change_no_bit_and_get_no_gradient() {
        for (v, more) in [(17, 3), (4096, 5), (4097, 4200)] {
            let (student, teacher) = (logits(6, 5, v), logits(7, 5, v));
            let kinds = [ReverseKl, ForwardKl, CrossEntropy, JensenShannon(0.5), SampledReverseKl];
            let weights = [1.0, -0.5, 2.0, 3.0, 0.25];
            let rows: Vec<_> = kinds.iter().zip(weights).map(|(&kind, weight)| (kind, weight, 7)).collect();
            let rows = specs(&student, &teacher, &rows);
            let wider = |t: &Tensor| {
                let rows = t.f32().chunks_exact(v).flat_map(|row| {
                    row.iter().copied().chain(std::iter::repeat_n(f32::NEG_INFINITY, more)).collect::<Vec<_>>()
                });
                Tensor::from_f32(&[5, v + more], &rows.collect::<Vec<_>>()).unwrap()
            };
            for device in devices() {
                let mut x = copy(&student);
                let wanted =
                    divergence_forward_backward(&device, &mut x, TeacherRows::Logits(&teacher), &rows, 5).unwrap();
                let mut y = wider(&student);
                let found =
                    divergence_forward_backward(&device, &mut y, TeacherRows::Logits(&wider(&teacher)), &rows, 5)
                        .unwrap();
                assert_same_bits("losses", &found, &wanted);
                for (y, x) in y.f32().chunks_exact(v + more).zip(x.f32().chunks_exact(v)) {
                    assert_same_bits("gradients", &y[..v], x);
                    assert_same_bits("gradients of what is left out", &y[v..], &vec![0.0; more]);
                }
            }
        }
    }

    #[test]
    fn a_small_divergence_keeps_its_digits() {
        let v = 4097;
        let teacher = logits(4, 2, v);
        let near: Vec<f32> = teacher.f32().iter().zip(random(5, &[2, v]).f32()).map(|(t, e)| t + 1e-2 * e).collect();
        let student = Tensor::from_f32(&[2, v], &near).unwrap();
        for kind in [ReverseKl, ForwardKl, JensenShannon(0.5), JensenShannon(0.05)] {
            let rows = [RowLoss::new(kind, 1.0, 0); 2];
            let mut x = copy(&student);
            let got = divergence_forward_backward(&device(), &mut x, TeacherRows::Logits(&teacher), &rows, 2).unwrap();
            for (i, &got) in got.iter().enumerate() {
                let at = i * v..(i + 1) * v;
                let wanted = loss(kind, &wide(&student)[at.clone()], &wide(&teacher)[at], 0);
                // About 1.7e-5 nats, or a fraction; the f32 sums of a chunk leave an error of about 1e-7.
                let close = (got as f64 - wanted).abs() < 0.02 * wanted.max(1e-5);
                assert!(close, "{kind:?}: {got} and not {wanted}");
            }
        }
    }

    #[test]
    fn extreme_but_finite_logits_never_give_a_nan() {
        let wild = [3e38f32, -3e38, 1e4, -1e4, 0.0, 88.0, -104.0, 1e30];
        for shift in 0..wild.len() {
            let mut turned = wild;
            turned.rotate_left(shift);
            for kind in KINDS {
                for (s, t) in [(wild, turned), (turned, [3e38; 8]), ([-3e38; 8], turned)] {
                    let mut x = Tensor::from_f32(&[1, 8], &s).unwrap();
                    let teacher = Tensor::from_f32(&[1, 8], &t).unwrap();
                    let row = specs(&x, &teacher, &[(kind, 1.0, 2)])[0];
                    let loss = divergence_forward_backward(&device(), &mut x, TeacherRows::Logits(&teacher), &[row], 1)
                        .unwrap();
                    assert!(!loss[0].is_nan() && x.f32().iter().all(|g| !g.is_nan()), "{kind:?} {s:?} {t:?}");
                }
            }
        }
    }

    #[test]
    fn cross_entropy_needs_no_teacher() {
        let student = logits(6, 1, 30);
        let mut x = copy(&student);
        let row = RowLoss::new(CrossEntropy, 1.0, 29);
        let got = divergence_forward_backward(&device(), &mut x, TeacherRows::None, &[row], 1).unwrap();
        assert!((got[0] as f64 - loss(CrossEntropy, &wide(&student), &[0.0; 30], 29)).abs() < 1e-6);
    }
}
