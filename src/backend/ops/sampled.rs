//! Losses of a token that the student drew, from log-probs alone: what each is worth, and its factor on the gradient of
//! -ln p, which is p_s - 1[target] by the logits.
//!
//! With p the student's and q the teacher's probability of the token, l = ln p - ln q, o the student's probability when
//! it drew the token and r = p / o, in nats:
//!
//! | loss | value | factor |
//! |---|---|---|
//! | sampled reverse KL | l | -l |
//! | k2 | l^2 / 2 | -l |
//! | weighted k3 | r (e^-l - 1 + l), r differentiated too | -r l |
//! | policy gradient | -phi(r) A | phi'(r) r A |
//!
//! Over what the student draws, the means of the first three have the gradient of the reverse KL: k2's by its own
//! derivative, the sampled KL by that of the mean (its own value's is zero on average), k3's only with r in it (without r
//! it is the forward KL's). They agree token by token where r is 1. docs/methods.md has the identities; tests enumerate a
//! vocabulary of seven.
//!
//! The policy gradient's advantage A = k g(ln q - ln o) + a is no function of the weights that are trained; k (with the
//! turn's weight) and a (what rewards say) come with the token. The reference of the log-ratio is o as it was drawn
//! (frozen) or p now (recomputed). Its shape g is the identity, a clamp to +-c, c tanh(x / c), or a difference of powers q^a - o^a
//! (PowerOPD, arXiv 2606.17199). The ratio phi is
//!
//! - none: 1, and the factor A (REINFORCE);
//! - the token's r, or the turn's: e to the mean of ln r over its tokens, of which each token's factor is taken as if it
//!   were its own (GSPO-token, arXiv 2507.18071): the exact gradient where A is one number over the turn;
//!
//! and it is left alone, truncated (min(r, c), not differentiated), or clipped as in PPO: min(r A, clip(r, 1 - low, 1 + high) A),
//! with a dual clip d the larger of that and d A where A < 0. ln r is held within +-20.

use super::logprob::exp_at_most_one;
use super::loss::Loss;
use super::surrogate::{Clip, PolicyGradient, Ratio, Reference, Shape, Surrogate, Worth};

/// How far ln r goes: e^20 is beyond every clip, and a mean of such ratios is still a number.
const MAX_LOG_RATIO: f64 = 20.0;

/// What is known of a token that the student drew, besides the two log-probs of now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drawn {
    /// ln o: the student's raw log-prob when it drew the token, nats.
    pub logprob: f32,
    /// The mean of ln r over its turn; read where the ratio is the turn's.
    pub turn_log_ratio: f64,
    /// k: factor of what the teacher says.
    pub teacher: f64,
    /// a: the rest of the advantage.
    pub rest: f64,
}

/// What a token is worth with log-probs ln p = `student` and ln q = `teacher` (not read where the loss asks for none);
/// None of a loss that is not of sampled tokens.
pub fn worth(kind: Loss, student: f32, teacher: f32, drawn: &Drawn) -> Option<Worth> {
    // Infinite only of logits beyond f32.
    let (p, q) = (student.max(-1e30), teacher.max(-1e30));
    let gap = p - q;
    let told = |loss: f32, factor: f32| Some(Worth { loss, factor, gap: Some(gap), surrogate: None });
    match kind {
        Loss::SampledReverseKl => told(gap, -gap),
        Loss::K2 => told((f64::from(gap) * f64::from(gap) * 0.5).min(f64::from(f32::MAX)) as f32, -gap),
        Loss::WeightedK3 => {
            let (l, r) = (f64::from(gap), ratio(f64::from(p) - f64::from(drawn.logprob)));
            // Beyond e^60, with r, a loss would soon be no number that a float32 holds; the gradient is not touched by that.
            told((r * (exp((-l).min(60.0)) - 1.0 + l)) as f32, -(r * l) as f32)
        }
        Loss::PolicyGradient(settings) => Some(policy_gradient(settings, p, q, drawn)),
        Loss::ReverseKl | Loss::ForwardKl | Loss::JensenShannon(_) | Loss::CrossEntropy => None,
    }
}

fn policy_gradient(settings: PolicyGradient, p: f32, q: f32, drawn: &Drawn) -> Worth {
    let reference = match settings.reference {
        Reference::Frozen => drawn.logprob,
        Reference::Recomputed => p,
    };
    let (log_p, log_q, log_reference) = (f64::from(p), f64::from(q), f64::from(reference));
    let said = if settings.asks_teacher { drawn.teacher * shaped(settings.shape, log_q, log_reference) } else { 0.0 };
    let advantage = said + drawn.rest;
    let r = match settings.ratio {
        Ratio::None => 1.0,
        Ratio::Token => ratio(log_p - f64::from(drawn.logprob)),
        Ratio::Turn => ratio(drawn.turn_log_ratio),
    };
    let (phi, slope) = match settings.clip {
        Clip::None => (r, r),
        Clip::Truncate(most) => (r.min(most), r.min(most)),
        Clip::Ppo { low, high } => {
            let (bound, is_bound) = match advantage >= 0.0 {
                true => (1.0 + high, r > 1.0 + high),
                false => (1.0 - low, r < 1.0 - low),
            };
            if is_bound { (bound, 0.0) } else { (r, r) }
        }
    };
    let dual = settings.dual_clip;
    let (phi, slope) = if dual > 0.0 && advantage < 0.0 && phi > dual { (dual, 0.0) } else { (phi, slope) };
    let held = match settings.shape {
        Shape::Clamp(c) => settings.asks_teacher && (log_q - log_reference).abs() > c,
        Shape::Identity | Shape::Tanh(_) | Shape::Power(_) => false,
    };
    let surrogate = Surrogate { ratio: r, advantage, clipped: slope != r, held };
    let gap = settings.asks_teacher.then_some(p - q);
    Worth { loss: -(phi * advantage) as f32, factor: (slope * advantage) as f32, gap, surrogate: Some(surrogate) }
}

/// g(ln q - ln o).
fn shaped(shape: Shape, log_q: f64, log_reference: f64) -> f64 {
    let x = log_q - log_reference;
    match shape {
        Shape::Identity => x,
        Shape::Clamp(c) => x.clamp(-c, c),
        Shape::Tanh(c) => {
            let e = exp_at_most_one(-2.0 * (x / c).abs());
            (c * (1.0 - e) / (1.0 + e)).copysign(x)
        }
        Shape::Power(a) => exp(a * log_q) - exp(a * log_reference),
    }
}

/// e^(ln r), ln r held within bounds.
fn ratio(log_ratio: f64) -> f64 {
    exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
}

/// e^x for x below 700.
fn exp(x: f64) -> f64 {
    if x <= 0.0 { exp_at_most_one(x) } else { 1.0 / exp_at_most_one(-x) }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::super::divergence::{TeacherRows, divergence_forward_backward};
    use super::super::loss::RowLoss;
    use super::*;
    use crate::backend::Tensor;

    /// A vocabulary of seven: the student now, the student when it drew, the teacher.
    fn vocabulary() -> [Vec<f64>; 3] {
        [8, 10, 9].map(|seed| {
            let x: Vec<f64> = random(seed, &[1, 7]).f32().iter().map(|x| f64::from(*x)).collect();
            let lse = x.iter().map(|x| x.exp()).sum::<f64>().ln();
            x.iter().map(|x| x - lse).collect()
        })
    }

    fn settings(ratio: Ratio, clip: Clip, dual_clip: f64) -> PolicyGradient {
        PolicyGradient {
            asks_teacher: true,
            reference: Reference::Frozen,
            shape: Shape::Identity,
            ratio,
            clip,
            dual_clip,
        }
    }

    const TEACHER_ALONE: Drawn = Drawn { logprob: -1.0, turn_log_ratio: 0.0, teacher: 1.0, rest: 0.0 };

    /// The gradient of the exact KL(p, q), or KL(q, p), by the logits.
    fn exact(p: &[f64], q: &[f64], forward: bool) -> Vec<f64> {
        let kl: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
        let reverse = |i: usize| p[i].exp() * (p[i] - q[i] - kl);
        (0..7).map(|i| if forward { p[i].exp() - q[i].exp() } else { reverse(i) }).collect()
    }

    /// The mean over draws of `o` of factor (p - 1[y]).
    fn mean_gradient(o: &[f64], p: &[f64], factor: impl Fn(usize) -> f64) -> Vec<f64> {
        let of = |i: usize, y: usize| factor(y) * (p[i].exp() - f64::from(u8::from(i == y)));
        (0..7).map(|i| (0..7).map(|y| o[y].exp() * of(i, y)).sum()).collect()
    }

    fn assert_near(what: &str, a: &[f64], b: &[f64]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{what}: {a:?} {b:?}");
        assert!(what.contains("zero") || b.iter().any(|b| b.abs() > 0.05), "{what}: {b:?} shows nothing");
    }

    #[test]
    fn the_estimators_are_the_reverse_kls_on_average_over_what_the_student_draws() {
        let [p, o, q] = vocabulary();
        let of = |kind: Loss, old: &[f64], y: usize| {
            worth(kind, p[y] as f32, q[y] as f32, &Drawn { logprob: old[y] as f32, ..TEACHER_ALONE }).unwrap()
        };
        let factor = |kind: Loss, old: &[f64]| {
            let factors: Vec<f64> = (0..7).map(|y| f64::from(of(kind, old, y).factor)).collect();
            mean_gradient(old, &p, |y| factors[y])
        };
        let wanted = exact(&p, &q, false);
        let plain = settings(Ratio::Token, Clip::None, 0.0);
        let recomputed = PolicyGradient { reference: Reference::Recomputed, ..plain };
        for kind in [Loss::SampledReverseKl, Loss::K2, Loss::WeightedK3, Loss::PolicyGradient(plain)] {
            assert_near("drawn from the student as it is", &factor(kind, &p), &wanted);
        }
        // Drawn from an older student, the ratio makes up for it where what is compared is the student of now.
        for kind in [Loss::WeightedK3, Loss::PolicyGradient(recomputed)] {
            assert_near("drawn from an older student", &factor(kind, &o), &wanted);
        }
        let mean: f64 = (0..7).map(|y| p[y].exp() * f64::from(of(Loss::SampledReverseKl, &p, y).loss)).sum();
        assert!((mean - p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()).abs() < 1e-6);
        // What is refused: k1's own derivative teaches nothing, k3's without the ratio is the forward KL's.
        assert_near("k1 is zero", &mean_gradient(&p, &p, |_| -1.0), &[0.0; 7]);
        let k3 = |y: usize| (q[y] - p[y]).exp() - 1.0;
        assert_near("k3 without a ratio", &mean_gradient(&p, &p, k3), &exact(&p, &q, true));
    }

    #[test]
    fn factors_are_the_derivatives_of_the_values_by_the_log_prob() {
        // Where the advantage does not depend on ln p: of k2, k3 and the surrogate with a frozen reference.
        let kinds = [
            Loss::K2,
            Loss::WeightedK3,
            Loss::PolicyGradient(settings(Ratio::Token, Clip::None, 0.0)),
            Loss::PolicyGradient(settings(Ratio::Token, Clip::Ppo { low: 0.2, high: 0.3 }, 0.0)),
            Loss::PolicyGradient(settings(Ratio::Token, Clip::Ppo { low: 0.2, high: 0.3 }, 3.0)),
        ];
        for kind in kinds {
            for (p, q, old) in [(-1.0f32, -2.0, -1.1), (-1.0, -0.5, -3.0), (-2.5, -0.5, -1.0), (-1.0, -4.0, -2.5)] {
                let drawn = Drawn { logprob: old, rest: 0.3, ..TEACHER_ALONE };
                let at = |p: f32| f64::from(worth(kind, p, q, &drawn).unwrap().loss);
                let e = 0.0078125;
                let slope = (at(p + e) - at(p - e)) / (2.0 * f64::from(e));
                let factor = f64::from(worth(kind, p, q, &drawn).unwrap().factor);
                assert!(
                    (slope + factor).abs() < 2e-3 * (1.0 + factor.abs()),
                    "{kind:?} {p} {q} {old}: {slope} {factor}"
                );
            }
        }
    }

    #[test]
    fn clips_hold_the_ratio_where_the_advantage_would_drive_it_further() {
        let of = |clip, dual, log_ratio: f32, advantage: f64| {
            let kind =
                Loss::PolicyGradient(PolicyGradient { asks_teacher: false, ..settings(Ratio::Token, clip, dual) });
            let drawn = Drawn { logprob: -1.0, rest: advantage, ..Drawn::default() };
            let w = worth(kind, -1.0 + log_ratio, f32::NAN, &drawn).unwrap();
            let s = w.surrogate.unwrap();
            assert!((s.ratio - f64::from(log_ratio).exp()).abs() < 1e-6 && s.advantage == advantage && w.gap.is_none());
            (w.loss, w.factor, s.clipped)
        };
        let ppo = Clip::Ppo { low: 0.2, high: 0.25 };
        let r = 0.5f32.exp();
        assert_eq!(of(Clip::None, 0.0, 0.5, 2.0), (-2.0 * r, 2.0 * r, false));
        assert_eq!(of(ppo, 0.0, 0.5, 2.0), (-2.5, 0.0, true));
        // The other way the ratio is not held: that would keep the policy where it should not be.
        assert_eq!(of(ppo, 0.0, 0.5, -2.0), (2.0 * r, -2.0 * r, false));
        assert_eq!(of(ppo, 0.0, -0.5, -2.0), (1.6, 0.0, true));
        let low = (-0.5f32).exp();
        assert_eq!(of(ppo, 0.0, -0.5, 2.0), (-2.0 * low, 2.0 * low, false));
        // A dual clip bounds that loss, as TCOD's code has it with 3.
        assert_eq!(of(ppo, 3.0, 2.0, -2.0), (6.0, 0.0, true));
        assert_eq!(of(ppo, 3.0, 2.0, 2.0), (-2.5, 0.0, true));
        assert_eq!(of(Clip::Truncate(1.25), 0.0, 2.0, 2.0), (-2.5, 2.5, true));
        // At ratio 1 no clip is seen.
        for clip in [Clip::None, ppo, Clip::Truncate(1.0)] {
            assert_eq!(of(clip, 0.0, 0.0, 2.0), (-2.0, 2.0, false));
        }
    }

    #[test]
    fn a_turns_ratio_is_its_own_number() {
        let kind = Loss::PolicyGradient(settings(Ratio::Turn, Clip::None, 0.0));
        let drawn = Drawn { turn_log_ratio: 0.25, ..TEACHER_ALONE };
        let w = worth(kind, -3.0, -2.0, &drawn).unwrap();
        let r = 0.25f64.exp();
        assert!((f64::from(w.factor) + r).abs() < 1e-6 && (w.surrogate.unwrap().ratio - r).abs() < 1e-12);
        let kind = Loss::PolicyGradient(settings(Ratio::None, Clip::None, 0.0));
        assert_eq!(worth(kind, -3.0, -2.0, &drawn).unwrap().factor, -1.0, "whatever it was drawn with");
    }

    #[test]
    fn shapes_of_the_advantage_are_the_formulas() {
        for (q, o) in [(-1.0f64, -3.0f64), (-3.0, -1.0), (-0.25, -0.25), (-60.0, -0.5)] {
            let x = q - o;
            let near = |shape, wanted: f64| {
                let got = shaped(shape, q, o);
                assert!((got - wanted).abs() < 1e-12, "{shape:?} {x}: {got} {wanted}");
            };
            near(Shape::Identity, x);
            near(Shape::Clamp(1.5), x.clamp(-1.5, 1.5));
            near(Shape::Tanh(5.0), 5.0 * (x / 5.0).tanh());
            near(Shape::Power(1.0), q.exp() - o.exp());
            near(Shape::Power(500.0), (500.0 * q).exp() - (500.0 * o).exp());
            // Divided by its power it is the log-ratio in the limit.
            assert!((shaped(Shape::Power(1e-7), q, o) / 1e-7 - x).abs() < 1e-3);
        }
    }

    #[test]
    fn a_clamp_tells_whether_it_holds() {
        let of = |shape, q: f32, asks_teacher| {
            let settings = PolicyGradient { shape, asks_teacher, ..settings(Ratio::None, Clip::None, 0.0) };
            let told = worth(Loss::PolicyGradient(settings), -1.0, q, &TEACHER_ALONE).unwrap();
            told.surrogate.unwrap().held
        };
        let clamp = Shape::Clamp(0.5);
        assert_eq!([-1.75, -1.5, -1.0, -0.5, -0.25].map(|q| of(clamp, q, true)), [true, false, false, false, true]);
        assert!(!of(clamp, -9.0, false) && !of(Shape::Tanh(0.5), -9.0, true) && !of(Shape::Identity, -9.0, true));
    }

    #[test]
    fn extreme_log_probs_give_numbers() {
        let kinds = [
            Loss::SampledReverseKl,
            Loss::K2,
            Loss::WeightedK3,
            Loss::PolicyGradient(settings(Ratio::Token, Clip::None, 0.0)),
            Loss::PolicyGradient(PolicyGradient {
                shape: Shape::Power(500.0),
                ..settings(Ratio::Token, Clip::None, 3.0)
            }),
        ];
        let wild = [0.0f32, -1e-30, -103.0, -1000.0, -3e38, f32::NEG_INFINITY];
        for kind in kinds {
            for (p, q, o) in wild.iter().flat_map(|p| wild.iter().flat_map(move |q| wild.map(|o| (*p, *q, o)))) {
                let w = worth(kind, p, q, &Drawn { logprob: o.max(-1e30), ..TEACHER_ALONE }).unwrap();
                assert!(!w.loss.is_nan() && !w.factor.is_nan(), "{kind:?} {p} {q} {o}: {w:?}");
            }
        }
    }

    #[test]
    fn the_row_has_the_worths_loss_and_its_factor_on_the_gradient_of_the_log_prob() {
        let [p, _, q] = vocabulary();
        let mut x = Tensor::from_f32(&[1, 7], &p.iter().map(|x| *x as f32).collect::<Vec<_>>()).unwrap();
        let worth = worth(Loss::K2, p[3] as f32, q[3] as f32, &Drawn::default()).unwrap();
        let row = RowLoss { worth, ..RowLoss::new(Loss::K2, 2.0, 3) };
        let loss = divergence_forward_backward(&device(), &mut x, TeacherRows::None, &[row], 1).unwrap();
        let l = p[3] - q[3];
        assert!((f64::from(loss[0]) - l * l / 2.0).abs() < 1e-6);
        let wanted: Vec<f64> = (0..7).map(|i| 2.0 * l * (f64::from(u8::from(i == 3)) - p[i].exp())).collect();
        assert_close("gradient", x.f32(), &wanted, 1e-5);
    }
}
