//! Every loss's values and gradients are those that torch's autograd found in f64, the Jensen-Shannon divergence those of
//! TRL's own function (tests/golden/make_losses.py).

#[path = "support/golden.rs"]
mod golden;

use golden::{document, floats, ints};
use serde_json::Value;
use squire::backend::cpu::Cpu;
use squire::backend::ops::{
    self, AdvantageShape, Clip, Drawn, Loss, PolicyGradient, Ratio, Reference, RowLoss, Tail, TeacherRows, TopK,
};
use squire::backend::{Device, Tensor};
use std::collections::HashSet;

/// Rows of logits, flat, and how many.
fn rows(value: &Value) -> (Vec<f32>, usize) {
    let rows = value.as_array().unwrap();
    (rows.iter().flat_map(floats).map(|x| x as f32).collect(), rows.len())
}

/// The loss of a case's name.
fn loss(name: &str) -> Loss {
    let plain = PolicyGradient {
        asks_teacher: true,
        reference: Reference::Frozen,
        shape: AdvantageShape::Identity,
        ratio: Ratio::Token,
        clip: Clip::None,
        dual_clip: 0.0,
    };
    let ppo = Clip::Ppo { low: 0.1, high: 0.15 };
    let settings = match name {
        "pg none" => PolicyGradient { ratio: Ratio::None, ..plain },
        "pg token" => plain,
        "pg token recomputed" => PolicyGradient { reference: Reference::Recomputed, ..plain },
        "pg token truncate" => PolicyGradient { clip: Clip::Truncate(1.05), ..plain },
        "pg token ppo" => PolicyGradient { clip: ppo, ..plain },
        "pg token ppo dual" => PolicyGradient { clip: ppo, dual_clip: 1.2, ..plain },
        "pg turn ppo" => PolicyGradient { ratio: Ratio::Turn, clip: Clip::Ppo { low: 0.05, high: 0.05 }, ..plain },
        "pg clamp" => PolicyGradient { shape: AdvantageShape::Clamp(1.5), ..plain },
        "pg tanh" => PolicyGradient { shape: AdvantageShape::Tanh(2.0), ..plain },
        "pg power" => PolicyGradient { shape: AdvantageShape::Power(0.5), ..plain },
        _ => {
            return match name.split(' ').next().unwrap() {
                "reverse-kl" => Loss::ReverseKl,
                "forward-kl" => Loss::ForwardKl,
                "cross-entropy" => Loss::CrossEntropy,
                "sampled-reverse-kl" => Loss::SampledReverseKl,
                "k2" => Loss::K2,
                "weighted-k3" => Loss::WeightedK3,
                "jsd" => Loss::JensenShannon(name[4..].parse().unwrap()),
                other => panic!("{other}"),
            };
        }
    };
    Loss::PolicyGradient(settings)
}

#[test]
fn every_loss_is_torchs_and_the_jensen_shannon_divergence_is_trls() {
    let golden = document("losses.json");
    let device = Device::Cpu(Cpu::new(1, None).unwrap());
    let ((student, n), (teacher, _)) = (rows(&golden["student"]), rows(&golden["teacher"]));
    let v = student.len() / n;
    let tensor = |x: &[f32]| Tensor::from_f32(&[n, v], x).unwrap();
    let (targets, turns): (Vec<i32>, Vec<usize>) = (ints(&golden["targets"]), ints(&golden["turns"]));
    let (drawn, rest) = (floats(&golden["drawn"]), floats(&golden["rest"]));
    let theirs = tensor(&teacher);
    let ours = ops::logprobs_of(&device, &tensor(&student), &targets, n).unwrap();
    let said = ops::teacher_logprobs(&device, TeacherRows::Logits(&theirs), &targets, n).unwrap();
    let log_ratio = |turn: usize| {
        let of: Vec<usize> = (0..n).filter(|&i| turns[i] == turn).collect();
        of.iter().map(|&i| f64::from(ours[i]) - drawn[i]).sum::<f64>() / of.len() as f64
    };
    let mut losses = HashSet::new();
    for (name, case) in golden["cases"].as_object().unwrap() {
        let kind = loss(name);
        losses.insert(std::mem::discriminant(&kind));
        let row = |i: usize| {
            let drawn = Drawn {
                logprob: drawn[i] as f32,
                turn_log_ratio: log_ratio(turns[i]),
                teacher: golden["teacher_share"].as_f64().unwrap(),
                rest: rest[i],
            };
            let worth = ops::worth(kind, ours[i], said[i], &drawn).unwrap_or_default();
            RowLoss { worth, ..RowLoss::new(kind, 1.0, targets[i]) }
        };
        let specs: Vec<RowLoss> = (0..n).map(row).collect();
        let tail = [("bucket", Tail::Bucket), ("renormalised", Tail::Renormalised), ("truncated", Tail::Truncated)];
        let tail = tail.iter().find(|(word, _)| name.ends_with(word)).map(|(_, tail)| *tail);
        let mut known = TopK::new(golden["k"].as_u64().unwrap() as usize, tail.unwrap_or(Tail::Bucket));
        for (i, said) in said.iter().enumerate() {
            let top = ops::top_k(&device, &theirs, i, golden["k"].as_u64().unwrap() as usize).unwrap();
            let (ids, logprobs): (Vec<i32>, Vec<f32>) = top.into_iter().unzip();
            known.push(&ids, &logprobs, *said).unwrap();
        }
        let side = if tail.is_some() { TeacherRows::TopK(&known) } else { TeacherRows::Logits(&theirs) };
        let mut x = tensor(&student);
        let values = ops::divergence_forward_backward(&device, &mut x, side, &specs, n).unwrap();
        let wanted = floats(&case["values"]);
        for (i, (found, wanted)) in values.iter().zip(&wanted).enumerate() {
            let close = (f64::from(*found) - wanted).abs() < 2e-6 * wanted.abs().max(1.0);
            assert!(close, "{name}, row {i}: {found} and torch has {wanted}");
        }
        let wanted: Vec<f64> = case["gradients"].as_array().unwrap().iter().flat_map(floats).collect();
        let largest = wanted.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        for (i, (found, wanted)) in x.f32().iter().zip(&wanted).enumerate() {
            let close = (f64::from(*found) - wanted).abs() < 3e-6 * largest.max(1.0);
            assert!(close, "{name}, row {} id {}: {found} and torch has {wanted}", i / v, i % v);
        }
        assert!(largest > 0.01, "{name} has a gradient");
    }
    assert_eq!(losses.len(), 8, "every loss there is");
}
