//! Losses over the whole vocabulary and their gradients by the student's logits, row by row.
//!
//! With p_s and p_t the softmax of the student's and the teacher's logits [N, V], in nats:
//! reverse KL = sum p_s (ln p_s - ln p_t), gradient p_s ((ln p_s - ln p_t) - KL);
//! forward KL = sum p_t (ln p_t - ln p_s), gradient p_s - p_t;
//! cross entropy = -ln p_s[target], gradient p_s - 1[target].
//! Differences of log-probs are taken as (a_s - a_t) - (ln S_s - ln S_t) with a = x - max x and S = sum e^a: both
//! brackets are exact zeros where the logits agree, so a student equal to its teacher has loss and gradient zero to
//! the bit, and nothing cancels where it is near. a is kept above -1e30, so no finite logits give a NaN.

use super::logprob::{CHUNK, RowSum, exp_at_most_one, load_or_minus_infinity, row_sums};
use crate::backend::cpu::{FloatEnv, Kernel, Lanes, Shared, math, piece};
use crate::backend::{Device, Tensor, host};
use crate::error::Result;

/// A loss of one token; q is the teacher, p the student, both at temperature 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// KL(p, q) over the whole vocabulary, nats per token.
    ReverseKl,
    /// KL(q, p) over the whole vocabulary, nats per token.
    ForwardKl,
    /// -ln p of the token that stands there, nats per token.
    CrossEntropy,
}

impl Loss {
    /// Whether it compares with a teacher's distribution.
    pub fn needs_teacher(self) -> bool {
        self != Loss::CrossEntropy
    }
}

/// The loss of one row.
#[derive(Clone, Copy, Debug)]
pub struct RowLoss {
    /// Which loss.
    pub kind: Loss,
    /// Factor on the row's gradient; 0 gives a gradient of zeros.
    pub weight: f32,
    /// The target id of cross entropy; not read by the others.
    pub target: i32,
}

/// Returns the loss of each of the first `n` rows, in nats and without its weight, and overwrites the student's
/// `logits` [N, V] by weight * dloss/dlogits: a second buffer of that size is worth sparing. `teacher` [N, V] is
/// read in rows with a KL alone.
pub fn divergence_forward_backward(
    device: &Device,
    logits: &mut Tensor,
    teacher: Option<&Tensor>,
    rows: &[RowLoss],
    n: usize,
) -> Result<Vec<f32>> {
    let v = logits.extent(1);
    let rows = &rows[..n];
    assert!(logits.extent(0) >= n, "logits are {} for {n} rows", logits.shape());
    for row in rows.iter().filter(|r| !r.kind.needs_teacher()) {
        assert!(row.target >= 0 && (row.target as usize) < v, "target {} of a vocabulary of {v}", row.target);
    }
    let mut compared = host::with_room(n)?;
    compared.extend((0..n).filter(|&i| rows[i].kind.needs_teacher()));
    if !compared.is_empty() {
        let fits = teacher.is_some_and(|t| t.extent(0) >= n && t.extent(1) == v);
        assert!(fits, "teacher logits are {teacher:?}, the student's {}", logits.shape());
    }
    let cpu = device.cpu();
    let _env = FloatEnv::set();

    let student_sums = row_sums(cpu, logits, &host::collected(0..n)?)?.rows;
    let mut facts = host::collected(rows.iter().zip(&student_sums).map(|(&spec, sum)| Row::new(spec, sum)))?;
    let teacher_logits = teacher.map_or(&[][..], |t| t.f32());
    if let Some(teacher) = teacher {
        for (&i, sum) in compared.iter().zip(row_sums(cpu, teacher, &compared)?.rows) {
            facts[i].teacher = Side::new(&sum);
            facts[i].shift = (student_sums[i].ln_sum - sum.ln_sum) as f32;
        }
    }
    for (i, fact) in facts.iter_mut().enumerate().filter(|(_, f)| !f.spec.kind.needs_teacher()) {
        let above = logits.f32()[i * v + fact.spec.target as usize] as f64 - student_sums[i].largest as f64;
        fact.loss = (student_sums[i].ln_sum - above) as f32;
    }

    let n_chunks = v.div_ceil(CHUNK);
    let mut parts = cpu.scratch::<f32>(compared.len() * n_chunks)?;
    let n_parts = parts.len();
    let x = logits.f32();
    let losses =
        Losses { parts: Shared::new(&mut parts), x, teacher: teacher_logits, compared: &compared, facts: &facts, v };
    cpu.launch(n_parts, &losses);
    for (&i, parts) in compared.iter().zip(parts.chunks_exact(n_chunks)) {
        facts[i].loss = parts.iter().map(|&p| p as f64).sum::<f64>() as f32;
    }
    let x = Shared::new(&mut logits.f32_mut()[..n * v]);
    cpu.launch(n * n_chunks, &Gradients { x, teacher: teacher_logits, facts: &facts, v });
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
    /// Not read with cross entropy.
    teacher: Side,
    /// ln S_s - ln S_t.
    shift: f32,
    loss: f32,
}

impl Row {
    fn new(spec: RowLoss, student: &RowSum) -> Row {
        Row { spec, student: Side::new(student), teacher: Side::default(), shift: 0.0, loss: 0.0 }
    }
}

/// Task i: the part of chunk i % n_chunks in the KL of row compared[i / n_chunks].
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
            let mut acc = V::zero();
            let mut i = 0;
            while i < range.len() {
                let n = range.len() - i;
                let (a, p): (V, V) = fact.student.load(x.add(i), n);
                let (b, q): (V, V) = fact.teacher.load(teacher.add(i), n);
                acc = match fact.spec.kind {
                    Loss::ReverseKl => p.fma(a.sub(b).sub(shift), acc),
                    _ => q.fma(b.sub(a).add(shift), acc),
                };
                i += 16;
            }
            *self.parts.at(index) = acc.reduce_add();
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
            let mut i = 0;
            while i < range.len() {
                let n = range.len() - i;
                let (a, p): (V, V) = fact.student.load(x.add(i), n);
                let gradient = match fact.spec.kind {
                    Loss::ReverseKl => {
                        let (b, _): (V, V) = fact.teacher.load(teacher.add(i), n);
                        p.mul(a.sub(b).sub(shift).sub(loss))
                    }
                    Loss::ForwardKl => p.sub(fact.teacher.load::<V>(teacher.add(i), n).1),
                    Loss::CrossEntropy => p,
                };
                // Adding zero makes a -0 +0.
                gradient.mul(weight).add(V::zero()).store_rounded(x.add(i), n, false);
                i += 16;
            }
            let target = fact.spec.target as usize;
            if fact.spec.kind == Loss::CrossEntropy && range.contains(&target) {
                *x.add(target - range.start) -= fact.spec.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use Loss::{CrossEntropy, ForwardKl, ReverseKl};

    const VOCABULARIES: [usize; 5] = [1, 2, 17, 4097, 9001];
    const KINDS: [Loss; 3] = [ReverseKl, ForwardKl, CrossEntropy];

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
            CrossEntropy => -s[target],
        }
    }

    fn gradient(kind: Loss, x: &[f64], t: &[f64], target: usize) -> Vec<f64> {
        let value = loss(kind, x, t, target);
        let (s, t) = (log_softmax(x), log_softmax(t));
        let at = |i: usize| match kind {
            ReverseKl => s[i].exp() * (s[i] - t[i] - value),
            ForwardKl => s[i].exp() - t[i].exp(),
            CrossEntropy => s[i].exp() - (i == target) as u8 as f64,
        };
        (0..x.len()).map(at).collect()
    }

    #[test]
    fn divergence_gradient_formulas_match_finite_difference() {
        let (x, t) = (wide(&logits(1, 1, 17)), wide(&logits(2, 1, 17)));
        for kind in KINDS {
            let got: Vec<f32> = gradient(kind, &x, &t, 5).iter().map(|&g| g as f32).collect();
            assert_close("gradient", &got, &finite_difference(&x, |x| loss(kind, x, &t, 5)), 1e-6);
        }
    }

    #[test]
    fn divergences_equal_the_formulas_in_a_batch_of_all_kinds_with_one_set_of_bits() {
        for v in VOCABULARIES {
            let kinds = [ReverseKl, CrossEntropy, ForwardKl, ReverseKl, CrossEntropy];
            let weights = [1.0f32, 0.25, -2.0, 0.0, 3.0];
            let n = kinds.len();
            let (student, teacher) = (logits(1, n + 1, v), logits(2, n, v));
            let rows: Vec<RowLoss> = (0..n)
                .map(|i| RowLoss { kind: kinds[i], weight: weights[i], target: ((v - 1) / (i + 1)) as i32 })
                .collect();
            let mut judge: Option<(Vec<f32>, Vec<f32>)> = None;
            for device in devices() {
                let mut x = copy(&student);
                let got = divergence_forward_backward(&device, &mut x, Some(&teacher), &rows, n).unwrap();
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
            let row = |kind, weight| RowLoss { kind, weight, target: 0 };
            let rows = [row(ReverseKl, 1.0), row(ForwardKl, 0.5), row(ReverseKl, -3.0), row(ForwardKl, -1.0)];
            for device in devices() {
                let mut x = copy(&teacher);
                let losses = divergence_forward_backward(&device, &mut x, Some(&teacher), &rows, 4).unwrap();
                assert_same_bits("losses", &losses, &[0.0; 4]);
                assert_same_bits("gradients", x.f32(), &vec![0.0; 4 * v]);
            }
        }
    }

    #[test]
    fn ids_left_out_by_minus_infinity_change_no_bit_and_get_no_gradient() {
        for (v, more) in [(17, 3), (4096, 5), (4097, 4200)] {
            let (student, teacher) = (logits(6, 5, v), logits(7, 5, v));
            let kinds = [ReverseKl, ForwardKl, CrossEntropy, ReverseKl, ForwardKl];
            let weights = [1.0, -0.5, 2.0, 3.0, 0.25];
            let rows: Vec<RowLoss> =
                kinds.iter().zip(weights).map(|(&kind, weight)| RowLoss { kind, weight, target: 7 }).collect();
            let wider = |t: &Tensor| {
                let rows = t.f32().chunks_exact(v).flat_map(|row| {
                    row.iter().copied().chain(std::iter::repeat_n(f32::NEG_INFINITY, more)).collect::<Vec<_>>()
                });
                Tensor::from_f32(&[5, v + more], &rows.collect::<Vec<_>>()).unwrap()
            };
            for device in devices() {
                let mut x = copy(&student);
                let wanted = divergence_forward_backward(&device, &mut x, Some(&teacher), &rows, 5).unwrap();
                let mut y = wider(&student);
                let found = divergence_forward_backward(&device, &mut y, Some(&wider(&teacher)), &rows, 5).unwrap();
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
        let rows = [ReverseKl, ForwardKl].map(|kind| RowLoss { kind, weight: 1.0, target: 0 });
        let mut x = copy(&student);
        let got = divergence_forward_backward(&device(), &mut x, Some(&teacher), &rows, 2).unwrap();
        for i in 0..2 {
            let at = i * v..(i + 1) * v;
            let wanted = loss(rows[i].kind, &wide(&student)[at.clone()], &wide(&teacher)[at], 0);
            // About 1.7e-5 nats; the f32 sums of a chunk leave an error of about 1e-7.
            assert!((got[i] as f64 / wanted - 1.0).abs() < 0.02, "{} and not {wanted}", got[i]);
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
                    let row = RowLoss { kind, weight: 1.0, target: 2 };
                    let loss = divergence_forward_backward(&device(), &mut x, Some(&teacher), &[row], 1).unwrap();
                    assert!(!loss[0].is_nan() && x.f32().iter().all(|g| !g.is_nan()), "{kind:?} {s:?} {t:?}");
                }
            }
        }
    }

    #[test]
    fn cross_entropy_needs_no_teacher() {
        let student = logits(6, 1, 30);
        let mut x = copy(&student);
        let row = RowLoss { kind: CrossEntropy, weight: 1.0, target: 29 };
        let got = divergence_forward_backward(&device(), &mut x, None, &[row], 1).unwrap();
        assert!((got[0] as f64 - loss(CrossEntropy, &wide(&student), &[0.0; 30], 29)).abs() < 1e-6);
    }
}
