//! Gradients by hand: a sequence at a time in one forward, a loss's gradient by the logits in f64.
#![allow(dead_code)] // each test uses some of it

use super::scripted::{Named, VOCABULARY};
use squire::backend::Tensor;
use squire::backend::ops::Loss;
use squire::distill::trajectory::Trajectory;
use squire::model::backward::{BackwardScratch, Passed, backward, head_backward};
use squire::model::forward::{Segment, forward, head_forward};
use squire::model::{Activations, KvCache, KvPool, Weights};
use squire::serve::ServedModel;
use squire::tensor::Dtype;

/// Logits [T, V] of a whole sequence in one forward, with its activations.
pub fn logits(model: &ServedModel, ids: &[i32]) -> (Vec<f32>, Tensor, Activations) {
    let (m, revision) = (model.model(), model.current());
    let mut activations = Activations::for_training(m).unwrap();
    let mut kv = KvCache::new(&KvPool::new(&m.device, m.page_shape(), u64::MAX));
    forward(m, &revision.weights, &mut [Segment { ids, kv: &mut kv, adapter: None }], &mut activations).unwrap();
    let mut logits = Tensor::zeros(Dtype::F32, &[ids.len(), VOCABULARY]).unwrap();
    head_forward(m, &revision.weights, &mut logits, &activations.hidden, ids.len()).unwrap();
    (logits.f32().to_vec(), logits, activations)
}

pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) as f64;
    let all: Vec<f64> = logits.iter().map(|&x| (x as f64 - largest).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.iter().map(|x| x / sum).collect()
}

/// The gradient of a divergence, or of -ln p, by the logits; `said` is the token that stands there.
pub fn by_logits(loss: Loss, p: &[f64], q: &[f64], said: usize) -> Vec<f64> {
    let kl: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
    let of = |id: usize| {
        let target = f64::from(u8::from(said == id));
        match loss {
            Loss::ReverseKl => p[id] * ((p[id] / q[id]).ln() - kl),
            Loss::ForwardKl => p[id] - q[id],
            Loss::JensenShannon(share) => {
                let share = f64::from(share);
                let to = |id: usize| (p[id] / (share * q[id] + (1.0 - share) * p[id])).ln();
                let mean: f64 = (0..p.len()).map(|id| p[id] * to(id)).sum();
                (1.0 - share) * p[id] * (to(id) - mean)
            }
            Loss::SampledReverseKl => (p[said] / q[said]).ln() * (target - p[id]),
            _ => p[id] - target,
        }
    };
    (0..p.len()).map(of).collect()
}

/// The gradients of losses (trajectory, position, what) whose gradient by the logits `by_logits` says, given the student's
/// probabilities there.
pub fn gradients<T>(
    student: &ServedModel,
    batch: &[Trajectory],
    losses: &[(usize, usize, T)],
    mut by_logits: impl FnMut(usize, usize, &[f64], &T) -> Vec<f64>,
) -> Weights {
    let (m, revision) = (student.model(), student.current());
    let mut gradients = Weights::zeros(&m.config).unwrap();
    let mut scratch = BackwardScratch::new(m).unwrap();
    for (i, t) in batch.iter().enumerate() {
        let (n, v) = (t.ids().len(), VOCABULARY);
        let (student_logits, mut dlogits, mut activations) = logits(student, t.ids());
        dlogits.f32_mut().fill(0.0);
        for (_, position, what) in losses.iter().filter(|l| l.0 == i) {
            let row = (position - 1) * v..position * v;
            let p = softmax(&student_logits[row.clone()]);
            let by_logit = by_logits(i, *position, &p, what);
            dlogits.f32_mut()[row].iter_mut().zip(by_logit).for_each(|(d, g)| *d = g as f32);
        }
        let mut dhidden = Tensor::zeros(Dtype::F32, &[n, m.config.hidden_size]).unwrap();
        head_backward(m, &revision.weights, &mut gradients, &mut dhidden, (&dlogits, &activations.hidden), n);
        let whole = std::iter::once(0..n).collect::<Vec<_>>();
        let facts =
            Passed { activations: &mut activations, caches: &mut [], ids: t.ids(), spans: &whole, adapter: None };
        backward(m, &revision.weights, &mut gradients, facts, &dhidden, &mut scratch).unwrap();
    }
    gradients
}

/// Asserts that every tensor's gradient is the other's within `limit` of its norm.
pub fn assert_near(a: &impl Named, b: &impl Named, limit: f64, what: &str) {
    for ((name, a), (_, b)) in a.named().into_iter().zip(b.named()) {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let gap = norm(&mut a.f32().iter().zip(b.f32()).map(|(a, b)| (a - b) as f64));
        let size = norm(&mut b.f32().iter().map(|&x| x as f64));
        assert!(gap <= limit * size, "{what}, {name}: {gap:e} of {size:e}");
    }
}
