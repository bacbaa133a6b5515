//! The gradient of a whole model against differences of its loss: a judge that shares nothing with the backward.
//!
//! Along a direction of random signs, scaled by eps, the loss's difference is compared with the gradient's inner
//! product, for all parameters together and for each kind of tensor alone: of all weights, and of an adapter. Errors are
//! measured in |gradient| * eps, the size of such a product, as a single one may by chance be nearly zero.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use serde_json::Value;
use squire::backend::ops::{self, Loss, RowLoss};
use squire::backend::{Compute, KernelSet, Tensor};
use squire::model::backward::{BackwardScratch, Passed, backward, head_backward};
use squire::model::forward::{Segment, forward, head_forward};
use squire::model::{Activations, Adapter, KvCache, KvPool, Lora, Model, Parameters, Weights};
use squire::random::{Stream, below, bits};
use squire::serve::{Engine, EngineOptions};
use squire::tensor::Dtype;
use tiny_model::{dense, moe, tiny};

/// Sequences of the packed batch.
const LENGTHS: [usize; 3] = [33, 5, 18];
/// Directions for each kind of tensor.
const DIRECTIONS: u64 = 3;

struct Objective {
    ids: Vec<Vec<i32>>,
    /// rows that carry loss: all but the last of each sequence
    rows: Vec<usize>,
    specs: Vec<RowLoss>,
    teacher: Tensor,
}

/// A forward pass with its losses.
struct Rows {
    activations: Activations,
    hidden: Tensor,
    /// gradients by the logits, as the losses overwrite them
    dlogits: Tensor,
    /// the weighted mean, added in f64
    loss: f64,
}

impl Rows {
    /// Every row's experts, layer by layer.
    fn routing(&self) -> Vec<u32> {
        let experts = self.activations.feed_forward.iter().filter_map(|l| l.experts.as_ref());
        experts.flat_map(|e| e.routing.as_ref().unwrap().experts.clone()).collect()
    }
}

impl Objective {
    /// The rows take turns between the three losses.
    fn new(model: &Model, teacher: &Weights) -> Objective {
        let id = |s: usize, i: usize| below(Stream::World, &[s as u64, i as u64], 301) as i32;
        let ids: Vec<Vec<i32>> = LENGTHS.iter().enumerate().map(|(s, &n)| (0..n).map(|i| id(s, i)).collect()).collect();
        let (mut rows, mut start) = (Vec::new(), 0);
        for n in LENGTHS {
            rows.extend(start..start + n - 1);
            start += n;
        }
        let (packed, weight) = (ids.concat(), 1.0 / rows.len() as f32);
        let kinds = [Loss::CrossEntropy, Loss::ReverseKl, Loss::ForwardKl];
        let spec = |(i, &row): (usize, &usize)| RowLoss::new(kinds[i % 3], weight, packed[row + 1]);
        let specs = rows.iter().enumerate().map(spec).collect();
        let activations = run(model, teacher, None, &ids);
        let teacher = heads(model, teacher, &activations, &rows).1;
        Objective { ids, rows, specs, teacher }
    }

    fn pass(&self, model: &Model, at: Point) -> Rows {
        let activations = run(model, at.weights, at.adapter, &self.ids);
        let (hidden, mut dlogits) = heads(model, at.weights, &activations, &self.rows);
        let n = self.rows.len();
        let losses = ops::divergence_forward_backward(
            &model.device,
            &mut dlogits,
            ops::TeacherRows::Logits(&self.teacher),
            &self.specs,
            n,
        )
        .unwrap();
        let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / n as f64;
        Rows { activations, hidden, dlogits, loss }
    }

    fn gradients(&self, model: &Model, at: Point, mut gradients: Parameters, passed: &mut Rows) -> Parameters {
        let Rows { activations, hidden, dlogits, .. } = passed;
        let zeros = |n| Tensor::zeros(Dtype::F32, &[n, model.config.hidden_size]).unwrap();
        let (mut dhead, mut dhidden) = (zeros(self.rows.len()), zeros(activations.batch.len()));
        head_backward(model, at.weights, &mut gradients, &mut dhead, (dlogits, hidden), self.rows.len());
        ops::scatter_add_rows(&model.device, &mut dhidden, &dhead, &self.rows);
        let mut end = 0;
        let spans = LENGTHS.map(|n| {
            end += n;
            end - n..end
        });
        let (packed, mut scratch) = (self.ids.concat(), BackwardScratch::new(model).unwrap());
        let batch = Passed { activations, caches: &mut [], ids: &packed, spans: &spans, adapter: at.adapter };
        backward(model, at.weights, &mut gradients, batch, &dhidden, &mut scratch).unwrap();
        gradients
    }
}

/// Where the loss is taken.
#[derive(Clone, Copy)]
struct Point<'a> {
    weights: &'a Weights,
    adapter: Option<&'a Adapter>,
}

impl<'a> Point<'a> {
    /// At these parameters: all weights, or an adapter of the base.
    fn of(base: &'a Weights, parameters: &'a Parameters) -> Point<'a> {
        match parameters {
            Parameters::Weights(weights) => Point { weights, adapter: None },
            Parameters::Adapter(adapter) => Point { weights: base, adapter: Some(adapter) },
        }
    }
}

/// The sequences through the model, packed, each with a cache of its own.
fn run(model: &Model, weights: &Weights, adapter: Option<&Adapter>, ids: &[Vec<i32>]) -> Activations {
    let mut activations = Activations::for_training(model).unwrap();
    let pool = KvPool::new(&model.device, model.page_shape(), 1 << 30);
    let mut caches: Vec<KvCache> = ids.iter().map(|_| KvCache::new(&pool)).collect();
    let mut segments: Vec<Segment> =
        ids.iter().zip(&mut caches).map(|(ids, kv)| Segment { ids, kv, adapter }).collect();
    forward(model, weights, &mut segments, &mut activations).unwrap();
    activations
}

/// Hidden states and logits of some rows.
fn heads(model: &Model, weights: &Weights, activations: &Activations, rows: &[usize]) -> (Tensor, Tensor) {
    let zeros = |width| Tensor::zeros(Dtype::F32, &[rows.len(), width]).unwrap();
    let (mut hidden, mut logits) = (zeros(model.config.hidden_size), zeros(model.config.vocab_size));
    ops::gather_rows(&model.device, &mut hidden, &activations.hidden, rows);
    head_forward(model, weights, &mut logits, &hidden, rows.len()).unwrap();
    (hidden, logits)
}

/// The kind of a tensor: its name without layer and expert.
fn kind(name: &str) -> String {
    name.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
}

/// f32 copies.
fn copied(model: &Model, parameters: &Parameters) -> Parameters {
    match parameters {
        Parameters::Weights(weights) => Weights::widened(&model.config, weights).unwrap().into(),
        Parameters::Adapter(adapter) => Parameters::Adapter(adapter.widened(&model.config).unwrap()),
    }
}

/// A copy, of which the kinds in question are moved by `step` times the direction's signs.
fn moved(
    model: &Model,
    parameters: &Parameters,
    is_moved: impl Fn(&str) -> bool,
    direction: u64,
    step: f32,
) -> Parameters {
    let mut out = copied(model, parameters);
    let names: Vec<String> = parameters.tensors().into_iter().map(|(name, _)| name).collect();
    for (t, tensor) in out.tensors_mut().into_iter().enumerate().filter(|(t, _)| is_moved(&names[*t])) {
        for (i, x) in tensor.f32_mut().iter_mut().enumerate() {
            let word = bits(Stream::World, &[1_000 + direction, t as u64, i as u64 / 64]);
            *x += if word >> (i % 64) & 1 == 1 { step } else { -step };
        }
    }
    out
}

/// All weights, or an adapter whose B is no longer zero.
fn start(model: &Model, base: &Weights, lora: Option<&Lora>) -> Parameters {
    let Some(lora) = lora else { return Weights::widened(&model.config, base).unwrap().into() };
    let fresh = Adapter::fresh(&model.config, &lora.of(&model.config).unwrap(), &model.device, 3).unwrap();
    moved(model, &Parameters::Adapter(fresh), |_| true, 77, 0.05)
}

/// Compares every kind alone and all together; `eps` for one kind, `eps_all` for all, are the longest steps.
fn check(name: &str, document: &Value, (lora, n_kinds): (Option<&Lora>, usize), eps: f32, eps_all: f32) {
    for kernels in KernelSet::ALL.into_iter().filter(|set| set.available()) {
        let options = EngineOptions { compute: Compute::F32, kernels: Some(kernels), ..EngineOptions::default() };
        let engine = Engine::new(options).unwrap();
        let served = tiny(&engine, document, Dtype::F32, 5);
        let teacher = tiny(&engine, document, Dtype::F32, 6);
        let (model, current) = (served.model(), served.current());
        let weights = &current.weights;
        let parameters = start(model, weights, lora);
        let at = Point::of(weights, &parameters);
        let objective = Objective::new(model, &teacher.current().weights);
        let mut base = objective.pass(model, at);
        let gradients = objective.gradients(model, at, parameters.zeros(&model.config).unwrap(), &mut base);
        let mut kinds: Vec<String> = parameters.tensors().iter().map(|(name, _)| kind(name)).collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds.len(), n_kinds, "{kinds:?}");
        for moving in kinds.iter().map(Some).chain([None]) {
            let is_moved = |name: &str| moving.is_none_or(|k| kind(name) == *k);
            let eps = if moving.is_none() { eps_all } else { eps };
            let mut worst = 0.0f64;
            for direction in 0..DIRECTIONS {
                // A step that crosses a tie between experts is halved until it does not.
                let (plus, minus, passed) = (0..6)
                    .map(|halvings| {
                        let step = eps / (1 << halvings) as f32;
                        let [plus, minus] = [step, -step].map(|s| moved(model, &parameters, is_moved, direction, s));
                        let passed = [&plus, &minus].map(|p| objective.pass(model, Point::of(weights, p)));
                        (plus, minus, passed)
                    })
                    .find(|(_, _, passed)| passed.iter().all(|p| p.routing() == base.routing()))
                    .expect("a step that leaves the routing as it is");
                let difference = passed[0].loss - passed[1].loss;
                // Of the weights as rounded, so that eps may be small beside them.
                let (mut product, mut squares) = (0.0, 0.0);
                for (((_, p), (_, m)), (_, g)) in plus.tensors().iter().zip(minus.tensors()).zip(gradients.tensors()) {
                    for ((p, m), g) in p.f32().iter().zip(m.f32()).zip(g.f32()) {
                        let step = f64::from(*p) - f64::from(*m);
                        product += f64::from(*g) * step;
                        squares += (f64::from(*g) * step).powi(2);
                    }
                }
                let size = squares.sqrt();
                assert!(size > 0.0, "{name} {moving:?}: no gradient");
                // Measured: differences are noisy by about 1.5e-7, up to 2e-3 of the smallest size (8e-5).
                worst = worst.max((difference - product).abs() / size);
                println!(
                    "{kernels}, {name} {}: loss differs by {difference:.4e}, gradient says {product:.4e}, size {size:.1e}",
                    moving.map_or("all", |k| k)
                );
            }
            assert!(worst < 1e-2, "{kernels}, {name} {moving:?}: off by {worst:.1e} of its size");
        }
    }
}

#[test]
fn gradients_of_a_dense_model_are_the_differences_of_its_loss() {
    // One embedding, three outer norms, six of attention, three of a block.
    check("dense", &dense(), (None, 13), 1e-3, 3e-4);
}

#[test]
fn gradients_of_a_mixture_of_experts_are_the_differences_of_its_loss() {
    // The same, and the experts' own, the router and the head.
    check("moe", &moe(), (None, 18), 1e-3, 3e-4);
}

#[test]
fn gradients_of_an_adapter_are_the_differences_of_the_loss() {
    let lora = Lora { rank: 3, alpha: 6.0, rslora: false, targets: Vec::new() };
    // A and B of seven projections; of those of attention where the others are experts'.
    check("dense, adapter", &dense(), (Some(&lora), 14), 3e-3, 1e-3);
    check("moe, adapter", &moe(), (Some(&lora), 8), 5e-4, 2e-4);
}
