//! The model floor against torch: logits, greedy choices, gradients and ten training steps of the recorded
//! tiny models (`tests/golden/README.md`), by every set of kernels that this machine has.

#[path = "support/golden.rs"]
mod golden;

use golden::{Batch, distance, floats, ints, largest};
use squire::backend::ops::{self, AdamW, Loss, RowLoss, Sampling};
use squire::backend::{Compute, KernelSet, Tensor};
use squire::model::backward::{BackwardScratch, Passed, backward, head_backward};
use squire::model::forward::{Segment, forward, head_forward};
use squire::model::{Activations, KvCache, KvPool, Model, Weights};
use squire::serve::{Engine, EngineOptions, Finish, GenerationOptions, LoadOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

const MODELS: [&str; 10] = [
    "teacher_f32",
    "dense_f32",
    "dense_bf16",
    "dense_f16",
    "dense_yarn",
    "moe_f32",
    "moe_bf16",
    "llama_llama3_f32",
    "llama_linear_bias_f32",
    "qwen2_f32",
];

fn kernel_sets() -> impl Iterator<Item = KernelSet> {
    KernelSet::ALL.into_iter().filter(|set| set.available())
}

fn load(name: &str, compute: Compute, kernels: KernelSet) -> ServedModel {
    let options = EngineOptions { compute, kernels: Some(kernels), ..EngineOptions::default() };
    let engine = Engine::new(options).unwrap();
    engine.load(&golden::path(name), LoadOptions::default()).unwrap()
}

/// The batch through the model, packed, each sequence with a cache of its own.
fn run(model: &Model, weights: &Weights, batch: &Batch, activations: &mut Activations) {
    let pool = KvPool::new(&model.device, model.page_shape(), 1 << 30);
    let mut caches: Vec<KvCache> = batch.ids.iter().map(|_| KvCache::new(&pool)).collect();
    let mut segments: Vec<Segment> =
        batch.ids.iter().zip(&mut caches).map(|(ids, kv)| Segment { ids, kv, adapter: None }).collect();
    forward(model, weights, &mut segments, activations).unwrap();
}

/// Hidden states and logits of some rows of the packed batch.
fn heads(model: &Model, weights: &Weights, activations: &Activations, rows: &[usize]) -> (Tensor, Tensor) {
    let zeros = |width| Tensor::zeros(Dtype::F32, &[rows.len(), width]).unwrap();
    let (mut hidden, mut logits) = (zeros(model.config.hidden_size), zeros(model.config.vocab_size));
    ops::gather_rows(&model.device, &mut hidden, &activations.hidden, rows);
    head_forward(model, weights, &mut logits, &hidden, rows.len()).unwrap();
    (hidden, logits)
}

fn recorded_logits(name: &str, compute: Compute, kernels: KernelSet) -> Vec<f32> {
    let served = load(name, compute, kernels);
    let (model, revision, batch) = (served.model(), served.current(), golden::batch());
    let mut activations = Activations::for_serving(model).unwrap();
    run(model, &revision.weights, &batch, &mut activations);
    let rows = batch.rows(&batch.logit_positions);
    heads(model, &revision.weights, &activations, &rows).1.f32().to_vec()
}

#[test]
fn f32_logits_are_those_of_torch_to_1e_5_of_the_largest() {
    for kernels in kernel_sets() {
        for name in MODELS {
            let wanted = &golden::tensors(&format!("{name}.logits.safetensors"))["logits_f32"];
            let found = recorded_logits(name, Compute::F32, kernels);
            let error = distance(&found, wanted) / largest(wanted);
            println!("{kernels}, {name}: {error:.2e} of the largest logit");
            assert!(error < 1e-5, "{kernels}, {name}: {error:e}");
        }
    }
}

#[test]
fn bf16_logits_are_nearer_to_f32_than_those_of_torch_in_bf16() {
    for kernels in kernel_sets() {
        for name in ["dense_bf16", "moe_bf16"] {
            let recorded = golden::tensors(&format!("{name}.logits.safetensors"));
            let (torch, exact) = (&recorded["logits_bf16"], &recorded["logits_f32"]);
            let facts = golden::document(&format!("{name}.json"));
            // A routing that is nearly a tie may fall the other way in bf16, and then the row is another row.
            let gaps = facts.get("router_gaps").map(floats);
            let found = recorded_logits(name, Compute::Bf16, kernels);
            let v = exact.len() / 23;
            let rows: Vec<usize> = (0..23).filter(|&row| gaps.as_ref().is_none_or(|g| g[row] >= 0.05)).collect();
            let of = |x: &[f32]| rows.iter().flat_map(|row| &x[row * v..][..v]).copied().collect::<Vec<f32>>();
            let (found, torch, exact) = (of(&found), of(torch), of(exact));
            let mean =
                |a: &[f32]| a.iter().zip(&exact).map(|(a, b)| (a - b).abs() as f64).sum::<f64>() / a.len() as f64;
            let scale = largest(&exact);
            let (ours, theirs) = (mean(&found) / scale, mean(&torch) / scale);
            let (from_exact, from_torch) = (distance(&found, &exact) / scale, distance(&found, &torch) / scale);
            println!(
                "{kernels}, {name}: of the largest logit over {} of 23 rows: {from_exact:.1e} from f32 (mean {ours:.1e}, of torch's \
                 bf16 {theirs:.1e}), {from_torch:.1e} from torch's bf16",
                rows.len()
            );
            assert!(rows.len() >= 20, "{kernels}, {name}: only {} rows say anything", rows.len());
            assert!(
                from_exact < 2e-2 && ours < theirs,
                "{kernels}, {name}: {from_exact:e} from f32, mean {ours:e} to {theirs:e}"
            );
            // torch is itself up to 2.5e-2 from f32, on the other side in places.
            assert!(from_torch < 4e-2, "{kernels}, {name}: {from_torch:e} from torch's bf16");
        }
    }
}

#[test]
fn greedy_ids_are_those_of_torch_wherever_the_margin_exceeds_ten_errors() {
    for kernels in kernel_sets() {
        let mut total = 0;
        for name in MODELS {
            let wanted = &golden::tensors(&format!("{name}.logits.safetensors"))["logits_f32"];
            let error = distance(&recorded_logits(name, Compute::F32, kernels), wanted);
            let served = load(name, Compute::F32, kernels);
            let facts = golden::document(&format!("{name}.json"));
            let mut qualified = 0;
            for (ids, greedy) in golden::batch().ids.iter().zip(facts["greedy"].as_array().unwrap()) {
                let (wanted, margins) = (ints::<i32>(&greedy["ids"]), floats(&greedy["margins"]));
                let session = Session::new(&served).unwrap();
                session.append(ids, Source::Host).unwrap();
                let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
                let options = GenerationOptions { max_tokens: wanted.len(), sampling, ..GenerationOptions::default() };
                let (chunk, finish) = session.generate(options).unwrap().collect().unwrap();
                assert_eq!(finish, Finish::Length);
                // Behind a choice that may differ the contexts may differ too.
                let n = margins.iter().position(|&m| m <= 10.0 * error).unwrap_or(margins.len());
                assert_eq!(chunk.ids[..n], wanted[..n], "{kernels}, {name}");
                qualified += n;
            }
            println!("{kernels}, {name}: {qualified} of 72 positions qualified, error {error:.1e}");
            total += qualified;
        }
        assert!(total >= 690, "{kernels}: only {total} of 720 positions say anything");
    }
}

/// The batch's losses, and what their gradients need.
struct Objective {
    batch: Batch,
    /// rows of the packed batch that carry loss
    rows: Vec<usize>,
    specs: Vec<RowLoss>,
    teacher: Tensor,
}

impl Objective {
    fn new(kind: Loss, kernels: KernelSet) -> Objective {
        let (batch, served) = (golden::batch(), load("teacher_f32", Compute::F32, kernels));
        let rows = batch.rows(&batch.loss_positions);
        let packed = batch.ids.concat();
        let weight = 1.0 / rows.len() as f32;
        let specs = rows.iter().map(|&row| RowLoss::new(kind, weight, packed[row + 1])).collect();
        let mut activations = Activations::for_serving(served.model()).unwrap();
        run(served.model(), &served.current().weights, &batch, &mut activations);
        let (_, teacher) = heads(served.model(), &served.current().weights, &activations, &rows);
        Objective { batch, rows, specs, teacher }
    }

    /// The mean loss, and its gradient by every parameter added to `gradients`.
    fn gradients(&self, model: &Model, weights: &Weights, gradients: &mut Weights) -> f64 {
        let mut activations = Activations::for_training(model).unwrap();
        run(model, weights, &self.batch, &mut activations);
        let n = self.rows.len();
        let (hidden, mut logits) = heads(model, weights, &activations, &self.rows);
        let losses = ops::divergence_forward_backward(
            &model.device,
            &mut logits,
            ops::TeacherRows::Logits(&self.teacher),
            &self.specs,
            n,
        )
        .unwrap();
        let zeros = |n| Tensor::zeros(Dtype::F32, &[n, model.config.hidden_size]).unwrap();
        let (mut dhead, mut dhidden) = (zeros(n), zeros(activations.batch.len()));
        head_backward(model, weights, &mut *gradients, &mut dhead, (&logits, &hidden), n);
        ops::scatter_add_rows(&model.device, &mut dhidden, &dhead, &self.rows);
        let (ids, mut scratch) = (self.batch.ids.concat(), BackwardScratch::new(model).unwrap());
        let spans = self.batch.spans();
        let batch = Passed { activations: &mut activations, caches: &mut [], ids: &ids, spans: &spans, adapter: None };
        backward(model, weights, gradients, batch, &dhidden, &mut scratch).unwrap();
        losses.iter().map(|&l| l as f64).sum::<f64>() / n as f64
    }
}

fn kind_of(loss: &str) -> Loss {
    match loss {
        "cross_entropy" => Loss::CrossEntropy,
        "reverse_kl" => Loss::ReverseKl,
        "forward_kl" => Loss::ForwardKl,
        other => panic!("no loss {other}"),
    }
}

#[test]
fn losses_and_gradients_are_those_of_torch_to_1e_4_of_each_tensors_largest() {
    for kernels in kernel_sets() {
        for name in ["dense_f32", "moe_f32", "llama_llama3_f32", "llama_linear_bias_f32", "qwen2_f32"] {
            let (wanted, facts) =
                (golden::tensors(&format!("{name}.grads.safetensors")), golden::document(&format!("{name}.json")));
            let served = load(name, Compute::F32, kernels);
            for loss in ["cross_entropy", "reverse_kl", "forward_kl"] {
                let mut gradients = Weights::zeros(served.config()).unwrap();
                let mean = Objective::new(kind_of(loss), kernels).gradients(
                    served.model(),
                    &served.current().weights,
                    &mut gradients,
                );
                let wanted_mean = facts["losses"][loss].as_f64().unwrap();
                assert!(
                    (mean - wanted_mean).abs() < 1e-5 * wanted_mean,
                    "{kernels}, {name} {loss}: {mean} for {wanted_mean}"
                );
                let (mut worst, mut n) = ((0.0, String::new()), 0);
                for (tensor, found) in gradients.tensors() {
                    let wanted = &wanted[&format!("{loss}/{tensor}")];
                    assert!(largest(wanted) > 0.0, "{tensor}");
                    let error = distance(found.f32(), wanted) / largest(wanted);
                    n += 1;
                    if error >= worst.0 {
                        worst = (error, tensor);
                    }
                }
                println!("{kernels}, {name} {loss}: the worst of {n} gradients is {} with {:.1e}", worst.1, worst.0);
                let recorded = wanted.keys().filter(|k| k.starts_with(&format!("{loss}/"))).count();
                assert_eq!(n, recorded, "{kernels}, {name}: gradients compared of those recorded");
                assert!(worst.0 < 1e-4, "{kernels}, {name} {loss}: {worst:?}");
            }
        }
    }
}

#[test]
fn ten_training_steps_follow_torch() {
    for kernels in kernel_sets() {
        for name in ["dense_f32", "moe_f32"] {
            let facts = golden::document(&format!("train_{name}.json"));
            let wanted = golden::tensors(&format!("train_{name}.safetensors"));
            let served = load(name, Compute::F32, kernels);
            let (model, config) = (served.model(), served.config());
            let objective = Objective::new(kind_of(facts["loss"].as_str().unwrap()), kernels);
            let mut weights = Weights::widened(config, &served.current().weights).unwrap();
            let (mut m, mut v) = (Weights::zeros(config).unwrap(), Weights::zeros(config).unwrap());
            let (lr, losses, norms) = (floats(&facts["lr"]), floats(&facts["losses"]), floats(&facts["grad_norms"]));
            let (betas, eps) = (floats(&facts["betas"]), facts["eps"].as_f64().unwrap());
            for t in 0..10 {
                let mut g = Weights::zeros(config).unwrap();
                let loss = objective.gradients(model, &weights, &mut g);
                let norm =
                    g.tensors().iter().map(|(_, g)| ops::sum_of_squares(&model.device, g).unwrap()).sum::<f64>().sqrt();
                assert!(
                    (loss - losses[t]).abs() < 1e-4 * losses[t],
                    "{kernels}, {name} step {t}: loss {loss} for {}",
                    losses[t]
                );
                assert!(
                    (norm - norms[t]).abs() < 1e-4 * norms[t],
                    "{kernels}, {name} step {t}: norm {norm} for {}",
                    norms[t]
                );
                let grad_scale = f64::min(1.0, facts["max_grad_norm"].as_f64().unwrap() / (norm + 1e-6)) as f32;
                let moments = m.tensors_mut().into_iter().zip(v.tensors_mut());
                for ((w, (m, v)), (_, g)) in weights.tensors_mut().into_iter().zip(moments).zip(g.tensors()) {
                    let decay = if g.shape().extents().len() == 1 { "ndim_1" } else { "ndim_2_or_more" };
                    let step = AdamW {
                        lr: lr[t],
                        beta1: betas[0],
                        beta2: betas[1],
                        eps,
                        weight_decay: facts["weight_decay"][decay].as_f64().unwrap(),
                        bias_correction1: 1.0 - betas[0].powi(t as i32 + 1),
                        bias_correction2: 1.0 - betas[1].powi(t as i32 + 1),
                        grad_scale,
                    };
                    ops::adamw_step(&model.device, w, m, v, g, step);
                }
            }
            let after = objective.gradients(model, &weights, &mut Weights::zeros(config).unwrap());
            let wanted_after = facts["loss_after"].as_f64().unwrap();
            assert!(
                (after - wanted_after).abs() < 1e-4 * wanted_after,
                "{kernels}, {name}: {after} for {wanted_after}"
            );
            // The weights moved by about 1e-2; an element whose gradient is nearly zero may step either way in Adam.
            let (mut worst, mut squares, mut n) = (0.0f64, 0.0f64, 0);
            for (tensor, w) in weights.tensors() {
                let (found, wanted) = (w.f32(), &wanted[&tensor]);
                worst = worst.max(distance(found, wanted));
                squares += found.iter().zip(wanted).map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>();
                n += found.len();
            }
            let (rms, moved) = ((squares / n as f64).sqrt(), facts["moved_rms"].as_f64().unwrap());
            println!(
                "{kernels}, {name}: after ten steps rms {rms:.1e}, worst {worst:.1e}, where weights moved by {moved:.1e}"
            );
            assert!(
                rms < 1e-4 * moved && worst < 1e-2 * moved,
                "{kernels}, {name}: rms {rms:e}, worst {worst:e}, moved {moved:e}"
            );
        }
    }
}

#[test]
fn stretched_frequencies_are_those_of_transformers() {
    let recorded = golden::document("rope_frequencies.json");
    for (name, facts) in recorded.as_object().unwrap() {
        let number = |key: &str| facts[key].as_f64().unwrap();
        let (head_dim, theta) = (number("head_dim") as usize, number("rope_theta"));
        let found = match facts["rope_type"].as_str().unwrap() {
            "linear" => {
                let plain = ops::inverse_frequencies(head_dim, theta);
                plain.into_iter().map(|f| f / number("factor") as f32).collect()
            }
            _ => {
                let (turns, original) = (
                    (number("low_freq_factor"), number("high_freq_factor")),
                    number("original_max_position_embeddings"),
                );
                ops::llama3_inverse_frequencies(head_dim, theta, number("factor"), turns, original as usize)
            }
        };
        let wanted = floats(&facts["inverse_frequencies"]);
        assert_eq!(found.len(), wanted.len());
        for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert!((f64::from(*found) / wanted - 1.0).abs() < 1e-6, "{name}, dimension {i}: {found} for {wanted}");
        }
    }
}
