//! Adapters against peft: logits, merged logits, greedy choices, every gradient and ten training steps of the recorded tiny
//! adapters (`tests/lora/README.md`), by every set of kernels that this machine has.

#[path = "support/golden.rs"]
mod golden;

use std::path::PathBuf;

use golden::{Batch, distance, floats, ints, largest};
use squire::backend::ops::{self, AdamW, Loss, RowLoss, Sampling};
use squire::backend::{Compute, KernelSet, Tensor};
use squire::model::backward::{BackwardScratch, Passed, backward, head_backward};
use squire::model::forward::{Segment, forward, head_forward};
use squire::model::{Activations, Adapter, KvCache, KvPool, Model, Weights, read_adapter};
use squire::serve::{Engine, EngineOptions, GenerationOptions, LoadOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

const CASES: [&str; 4] = ["dense_seven", "dense_other_seven", "moe_attention", "dense_rslora"];

fn kernel_sets() -> impl Iterator<Item = KernelSet> {
    KernelSet::ALL.into_iter().filter(|set| set.available())
}

fn path(name: &str) -> PathBuf {
    golden::path("../lora").join(name)
}

fn load_model(name: &str, kernels: KernelSet) -> ServedModel {
    let options = EngineOptions { compute: Compute::F32, kernels: Some(kernels), ..EngineOptions::default() };
    let own = path(name);
    let folder = if own.join("config.json").exists() { own } else { golden::path(name) };
    Engine::new(options).unwrap().load(&folder, LoadOptions::default()).unwrap()
}

/// A recorded case: its base, its adapter, what peft says of them.
struct Case {
    served: ServedModel,
    adapter: Adapter,
    facts: serde_json::Value,
    recorded: std::collections::BTreeMap<String, Vec<f32>>,
}

impl Case {
    fn new(name: &'static str, kernels: KernelSet) -> Case {
        let facts = golden::document(&format!("../lora/{name}.json"));
        let served = load_model(facts["base"].as_str().unwrap(), kernels);
        let adapter = read_adapter(&path(name), served.config(), &served.current().weights).unwrap();
        let recorded = golden::tensors(&format!("../lora/{name}.safetensors"));
        Case { served, adapter, facts, recorded }
    }

    fn model(&self) -> &Model {
        self.served.model()
    }
}

/// The batch through the model, packed, each sequence with a cache of its own.
fn run(model: &Model, weights: &Weights, adapter: Option<&Adapter>, batch: &Batch, activations: &mut Activations) {
    let pool = KvPool::new(&model.device, model.page_shape(), 1 << 30);
    let mut caches: Vec<KvCache> = batch.ids.iter().map(|_| KvCache::new(&pool)).collect();
    let mut segments: Vec<Segment> =
        batch.ids.iter().zip(&mut caches).map(|(ids, kv)| Segment { ids, kv, adapter }).collect();
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

fn logits(model: &Model, weights: &Weights, adapter: Option<&Adapter>) -> Vec<f32> {
    let (batch, mut activations) = (golden::batch(), Activations::for_serving(model).unwrap());
    run(model, weights, adapter, &batch, &mut activations);
    let rows = batch.rows(&batch.logit_positions);
    heads(model, weights, &activations, &rows).1.f32().to_vec()
}

#[test]
fn logits_are_those_of_peft_and_a_merged_model_is_within_2e_5_of_them() {
    for kernels in kernel_sets() {
        for name in CASES {
            let case = Case::new(name, kernels);
            let base = &case.served.current().weights;
            let found = logits(case.model(), base, Some(&case.adapter));
            let merged = case.adapter.merged(&case.model().config, &case.model().device, base).unwrap();
            let found_merged = logits(case.model(), &merged, None);
            let scale = largest(&case.recorded["logits_f32"]);
            let errors = [
                distance(&found, &case.recorded["logits_f32"]) / scale,
                distance(&found_merged, &case.recorded["merged_logits_f32"]) / scale,
                distance(&found, &found_merged) / scale,
            ];
            println!("{kernels}, {name}: adapted, merged, one from the other: {errors:?} of the largest logit");
            assert!(errors[0] < 1e-5 && errors[1] < 1e-5 && errors[2] < 2e-5, "{kernels}, {name}: {errors:?}");
            let moved = distance(&found, &logits(case.model(), base, None));
            assert!(moved > 1.0, "{name}: the adapter must move the logits, by {moved}");
        }
    }
}

#[test]
fn greedy_ids_are_those_of_peft_wherever_the_margin_exceeds_ten_errors() {
    let mut total = 0;
    for name in CASES {
        let case = Case::new(name, KernelSet::best());
        case.served.load_adapter("a", &path(name)).unwrap();
        let error = 1e-5 * largest(&case.recorded["logits_f32"]);
        for (ids, greedy) in golden::batch().ids.iter().zip(case.facts["greedy"].as_array().unwrap()) {
            let (wanted, margins) = (ints::<i32>(&greedy["ids"]), floats(&greedy["margins"]));
            let session = Session::with_adapter(&case.served, "a").unwrap();
            session.append(ids, Source::Host).unwrap();
            let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
            let options = GenerationOptions { max_tokens: wanted.len(), sampling, ..GenerationOptions::default() };
            let (chunk, _) = session.generate(options).unwrap().collect().unwrap();
            let n = margins.iter().position(|&m| m <= 10.0 * error).unwrap_or(margins.len());
            assert_eq!(chunk.ids[..n], wanted[..n], "{name}");
            total += n;
        }
    }
    assert!(total >= 270, "only {total} of 288 positions say anything");
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
    fn new(loss: &str, kernels: KernelSet) -> Objective {
        let kind = match loss {
            "cross_entropy" => Loss::CrossEntropy,
            "reverse_kl" => Loss::ReverseKl,
            "forward_kl" => Loss::ForwardKl,
            other => panic!("no loss {other}"),
        };
        let (batch, served) = (golden::batch(), load_model("teacher_f32", kernels));
        let rows = batch.rows(&batch.loss_positions);
        let packed = batch.ids.concat();
        let weight = 1.0 / rows.len() as f32;
        let specs = rows.iter().map(|&row| RowLoss::new(kind, weight, packed[row + 1])).collect();
        let mut activations = Activations::for_serving(served.model()).unwrap();
        let weights = &served.current().weights;
        run(served.model(), weights, None, &batch, &mut activations);
        let teacher = heads(served.model(), weights, &activations, &rows).1;
        Objective { batch, rows, specs, teacher }
    }

    /// The mean loss, with the adapter's gradients added.
    fn gradients(&self, model: &Model, weights: &Weights, adapter: &Adapter, gradients: &mut Adapter) -> f64 {
        let n = self.rows.len();
        let mut activations = Activations::for_training(model).unwrap();
        run(model, weights, Some(adapter), &self.batch, &mut activations);
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
        let (ids, spans, mut scratch) =
            (self.batch.ids.concat(), self.batch.spans(), BackwardScratch::new(model).unwrap());
        let passed =
            Passed { activations: &mut activations, caches: &mut [], ids: &ids, spans: &spans, adapter: Some(adapter) };
        backward(model, weights, gradients, passed, &dhidden, &mut scratch).unwrap();
        losses.iter().map(|&l| l as f64).sum::<f64>() / n as f64
    }
}

/// A tensor of an adapter as PEFT stores it: B is [O, R] there.
fn as_stored(name: &str, tensor: &Tensor) -> Vec<f32> {
    let (x, rank, width) = (tensor.f32(), tensor.extent(0), tensor.extent(1));
    if !name.contains("lora_B") {
        return x.to_vec();
    }
    (0..rank * width).map(|i| x[i % rank * width + i / rank]).collect()
}

#[test]
fn every_gradient_is_that_of_peft_to_1e_4_of_its_largest() {
    for kernels in kernel_sets() {
        for name in CASES {
            let case = Case::new(name, kernels);
            let (model, base) = (case.model(), case.served.current());
            for loss in ["cross_entropy", "reverse_kl", "forward_kl"] {
                let mut gradients = Adapter::zeros(&model.config, &case.adapter.lora, Dtype::F32).unwrap();
                let mean = Objective::new(loss, kernels).gradients(model, &base.weights, &case.adapter, &mut gradients);
                let wanted_mean = case.facts["losses"][loss].as_f64().unwrap();
                assert!((mean - wanted_mean).abs() < 1e-5 * wanted_mean, "{name} {loss}: {mean} for {wanted_mean}");
                let (mut worst, mut n) = ((0.0, String::new()), 0);
                for (tensor, found) in gradients.tensors() {
                    let wanted = &case.recorded[&format!("{loss}/{tensor}")];
                    assert!(largest(wanted) > 0.0, "{tensor}");
                    let error = distance(&as_stored(&tensor, found), wanted) / largest(wanted);
                    n += 1;
                    if error >= worst.0 {
                        worst = (error, tensor);
                    }
                }
                println!("{kernels}, {name} {loss}: the worst of {n} gradients is {} with {:.1e}", worst.1, worst.0);
                let recorded = case.recorded.keys().filter(|k| k.starts_with(&format!("{loss}/"))).count();
                assert_eq!(n, recorded, "{name}: gradients compared of those recorded");
                assert!(worst.0 < 1e-4, "{kernels}, {name} {loss}: {worst:?}");
            }
        }
    }
}

#[test]
fn ten_training_steps_follow_peft() {
    for kernels in kernel_sets() {
        for name in ["dense_seven", "moe_attention"] {
            let case = Case::new(name, kernels);
            let (model, base, facts) = (case.model(), case.served.current(), &case.facts["train"]);
            let objective = Objective::new(facts["loss"].as_str().unwrap(), kernels);
            let zeros = || Adapter::zeros(&model.config, &case.adapter.lora, Dtype::F32).unwrap();
            let mut adapter = case.adapter.widened(&model.config).unwrap();
            let (mut m, mut v) = (zeros(), zeros());
            let (lr, losses, norms) = (floats(&facts["lr"]), floats(&facts["losses"]), floats(&facts["grad_norms"]));
            let (betas, eps) = (floats(&facts["betas"]), facts["eps"].as_f64().unwrap());
            for t in 0..10 {
                let mut g = zeros();
                let loss = objective.gradients(model, &base.weights, &adapter, &mut g);
                let norm =
                    g.tensors().iter().map(|(_, g)| ops::sum_of_squares(&model.device, g).unwrap()).sum::<f64>().sqrt();
                assert!((loss - losses[t]).abs() < 1e-4 * losses[t], "{name} step {t}: {loss} for {}", losses[t]);
                assert!((norm - norms[t]).abs() < 1e-4 * norms[t], "{name} step {t}: {norm} for {}", norms[t]);
                let grad_scale = f64::min(1.0, facts["max_grad_norm"].as_f64().unwrap() / (norm + 1e-6)) as f32;
                let moments = m.tensors_mut().into_iter().zip(v.tensors_mut());
                for ((w, (m, v)), (_, g)) in adapter.tensors_mut().into_iter().zip(moments).zip(g.tensors()) {
                    let step = AdamW {
                        lr: lr[t],
                        beta1: betas[0],
                        beta2: betas[1],
                        eps,
                        weight_decay: facts["weight_decay"].as_f64().unwrap(),
                        bias_correction1: 1.0 - betas[0].powi(t as i32 + 1),
                        bias_correction2: 1.0 - betas[1].powi(t as i32 + 1),
                        grad_scale,
                    };
                    ops::adamw_step(&model.device, w, m, v, g, step);
                }
            }
            let after = objective.gradients(model, &base.weights, &adapter, &mut zeros());
            let wanted_after = facts["loss_after"].as_f64().unwrap();
            assert!((after - wanted_after).abs() < 1e-4 * wanted_after, "{name}: {after} for {wanted_after}");
            let (mut worst, mut squares, mut n) = (0.0f64, 0.0f64, 0);
            for (tensor, w) in adapter.tensors() {
                let (found, wanted) = (as_stored(&tensor, w), &case.recorded[&format!("trained/{tensor}")]);
                worst = worst.max(distance(&found, wanted));
                squares += found.iter().zip(wanted).map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>();
                n += found.len();
            }
            let (rms, moved) = ((squares / n as f64).sqrt(), facts["moved_rms"].as_f64().unwrap());
            println!("{kernels}, {name}: after ten steps rms {rms:.1e}, worst {worst:.1e}, moved by {moved:.1e}");
            assert!(rms < 1e-3 * moved && worst < 2e-2 * moved, "{name}: rms {rms:e}, worst {worst:e} of {moved:e}");
        }
    }
}

#[test]
fn an_adapter_that_is_written_is_the_one_that_was_read() {
    for name in CASES {
        let case = Case::new(name, KernelSet::best());
        case.served.load_adapter("a", &path(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("adapter");
        case.served.save_adapter(Some("a"), &copy).unwrap();
        let again = read_adapter(&copy, case.served.config(), &case.served.current().weights).unwrap();
        assert_eq!(again.lora, case.adapter.lora);
        for ((name, a), (_, b)) in again.tensors().into_iter().zip(case.adapter.tensors()) {
            assert_eq!(a.f32(), b.f32(), "{name}");
        }
    }
}
