//! Times of single ops on two threads: at the shapes of Qwen3-0.6B, linear layers of one, eight and 512 rows, attention of
//! one row over a context, the choice of a token, also under controls in whole decode steps, and of who acts in a turn; at those of SmolLM2-135M, the products of a training step.
//!
//! Rows of linear layers are given as elements, so the report's rate is rows a second; of a training step's products the
//! elements are floating-point operations.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use squire::backend::cpu::Cpu;
use squire::backend::ops::{self, Edit, Heads, Pick, Sampling, Span};
use squire::backend::page::{PAGE, Page, PageShape};
use squire::backend::{Compute, Device, Matrix, Tensor};
use squire::distill::Config;
use squire::distill::policy::{self, DecideInput};
use squire::model::ModelConfig;
use squire::random::{Stream, uniform};
use squire::serve::{Cancel, Controls, Engine, EngineOptions, GenerationOptions, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

fn device() -> Device {
    Device::Cpu(Cpu::new(2, None).expect("two threads of the best kernel set"))
}

/// Numbers spread over (-1, 1).
fn random(extents: &[usize]) -> Tensor {
    let n: usize = extents.iter().product();
    let x: Vec<f32> = (0..n as u64).map(|i| 2.0 * uniform(Stream::World, &[i]) - 1.0).collect();
    Tensor::from_f32(extents, &x).expect("a tensor of the bench fits memory")
}

fn stored(device: &Device, wide: &Tensor) -> Tensor {
    let mut narrow = Tensor::zeros(Dtype::Bf16, wide.shape().extents()).expect("a tensor of the bench fits memory");
    ops::convert(device, &mut narrow, wide);
    narrow
}

fn linear(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("linear");
    for (name, o, k) in [("q", 2048, 1024), ("gate", 3072, 1024), ("down", 1024, 3072), ("head", 151_936, 1024)] {
        // As many copies as overflow the caches: a forward pass finds each weight matrix in memory, not in a cache.
        let n_copies = (256usize << 20).div_ceil(2 * o * k);
        let first = stored(&device, &random(&[o, k]));
        let copies: Vec<Matrix> = (0..n_copies).map(|_| copy(&first).into()).collect();
        for n in [1, 8, 512] {
            if o > 100_000 && n > 8 {
                continue;
            }
            let x = random(&[n, k]);
            let mut y = Tensor::zeros(Dtype::F32, &[n, o]).expect("a tensor of the bench fits memory");
            let mut next = 0;
            group.throughput(Throughput::Elements(n as u64));
            group.bench_function(BenchmarkId::new(name, n), |b| {
                b.iter(|| {
                    next = (next + 1) % n_copies;
                    ops::linear_forward(&device, &mut y, &x, (&copies[next]).into(), n, Compute::Bf16).unwrap();
                })
            });
        }
    }
    group.finish();
}

/// Eight games of `examples/twc`: bf16 weights; forward in both computes, and the gradient of the input.
fn training(c: &mut Criterion) {
    const ROWS: usize = 1552;
    let device = device();
    let mut group = c.benchmark_group("training");
    group.sample_size(10);
    for (name, o, k) in [("q", 576, 576), ("k", 192, 576), ("gate", 1536, 576), ("down", 576, 1536)] {
        let w: Matrix = stored(&device, &random(&[o, k])).into();
        let (x, dy) = (random(&[ROWS, k]), random(&[ROWS, o]));
        let zeros = |width| Tensor::zeros(Dtype::F32, &[ROWS, width]).expect("a tensor of the bench fits memory");
        let (mut y, mut dx) = (zeros(o), zeros(k));
        group.throughput(Throughput::Elements(2 * (ROWS * o * k) as u64));
        for (form, compute) in [("f32", Compute::F32), ("bf16", Compute::Bf16)] {
            group.bench_function(BenchmarkId::new(name, form), |b| {
                b.iter(|| ops::linear_forward(&device, &mut y, &x, (&w).into(), ROWS, compute).unwrap())
            });
        }
        group.bench_function(BenchmarkId::new(name, "dx"), |b| {
            b.iter(|| ops::linear_backward_input(&device, &mut dx, &dy, &w, ROWS))
        });
        let mut dw = Tensor::zeros(Dtype::F32, &[o, k]).expect("a tensor of the bench fits memory");
        group.bench_function(BenchmarkId::new(name, "dw"), |b| {
            b.iter(|| ops::linear_backward_weight(&device, &mut dw, &dy, &x, ROWS))
        });
    }
    group.finish();
}

fn copy(t: &Tensor) -> Tensor {
    let mut own = Tensor::zeros(t.dtype(), t.shape().extents()).expect("a tensor of the bench fits memory");
    own.bytes_mut().copy_from_slice(t.bytes());
    own
}

fn attention(c: &mut Criterion) {
    let device = device();
    let heads = Heads { n_heads: 16, n_kv_heads: 8, head_dim: 128, scale: 1.0 / 128f32.sqrt() };
    let shape = PageShape { n_layers: 1, n_kv_heads: 8, head_dim: 128, dtype: Dtype::Bf16 };
    let at = ops::PageLayer { shape, layer: 0 };
    let mut group = c.benchmark_group("attention");
    for context in [128, 2048] {
        let rows = random(&[context, 8 * 128]);
        let mut pages = Vec::new();
        for start in (0..context).step_by(PAGE) {
            let mut page = Page::new(&device, shape).expect("a page of the bench fits memory");
            let kv = ops::KeysValues { k: &rows, v: &rows };
            ops::kv_append(&device, &mut page, at, 0, kv, start..start + PAGE);
            pages.push(Arc::new(page));
        }
        let q = random(&[1, 16 * 128]);
        let mut out = Tensor::zeros(Dtype::F32, &[1, 16 * 128]).expect("a tensor of the bench fits memory");
        let spans = [Span { rows: 0..1, start: context - 1, pages: &mut pages }];
        group.bench_function(BenchmarkId::new("decode", context), |b| {
            b.iter(|| ops::attention_forward(&device, &mut out, &q, &spans, at, heads, Compute::Bf16).unwrap())
        });
    }
    group.finish();
}

fn sampler(c: &mut Criterion) {
    let device = device();
    let logits = random(&[1, 151_936]);
    let mut group = c.benchmark_group("sample");
    for (name, temperature, top_k, top_p) in
        [("greedy", 0.0, 0, 1.0), ("temperature", 1.0, 0, 1.0), ("top-k 20, top-p 0.95", 0.6, 20, 0.95)]
    {
        let sampling = Sampling { temperature, top_k, top_p };
        group.bench_function(name, |b| {
            b.iter(|| black_box(ops::sample_token(&device, &logits, 0, &(sampling, 0.37).into()).unwrap()))
        });
    }
    group.finish();
}

/// A decode step of the shape of Qwen3-0.6B, vocabulary 151,936, drawn plainly and under many controls, and the sampler alone: what
/// controls take of a step is (controls - plain) of `decode step`, or `sample/controls` over it.
fn controls(c: &mut Criterion) {
    let sampling = Sampling { temperature: 0.7, top_k: 20, top_p: 0.95 };
    let controls = Controls {
        min_p: 0.05,
        repetition_penalty: 1.1,
        presence_penalty: 0.5,
        frequency_penalty: 0.2,
        no_repeat_ngram_size: 3,
        logit_bias: (0..16).map(|i| (1000 * i, 0.5)).collect(),
        ..Controls::default()
    };
    let device = device();
    let logits = random(&[1, 151_936]);
    // As many ids as a conversation of a few thousand tokens has.
    let edit = |i: u32| Edit { id: i * 97 % 151_936, bias: 0.0, penalty: 1.1, less: 0.5 };
    let edits: Vec<Edit> = (0..1500).map(edit).collect();
    let pick = Pick { sampling, cuts: controls.cuts(), edits: &edits, u: 0.37 };
    let mut group = c.benchmark_group("sample");
    group.bench_function("controls", |b| b.iter(|| black_box(ops::sample_token(&device, &logits, 0, &pick).unwrap())));
    group.finish();

    let engine = Engine::new(EngineOptions::default()).expect("an engine is made");
    let config = ModelConfig::from_json(&json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 8192, "tie_word_embeddings": true,
    }))
    .expect("the shape is known");
    let model = engine.random_model(config, Dtype::Bf16, 1, 0).expect("the model fits memory");
    let session = Session::new(&model).expect("a session is made");
    let ids: Vec<i32> = (0..2000).map(|i| i * 97 % 151_936).collect();
    session.append(&ids, Source::Host).expect("the context has room");
    session.prefill(&Cancel::default()).expect("the prompt is computed");
    let mut group = c.benchmark_group("decode step");
    group.sample_size(10);
    for (name, controls) in [("plain", Controls::default()), ("controls", controls)] {
        let options = GenerationOptions { sampling, controls, max_tokens: 16, ..GenerationOptions::default() };
        group.throughput(Throughput::Elements(16));
        group.bench_function(name, |b| {
            b.iter(|| {
                session.truncate(2000).unwrap();
                black_box(session.generate(options.clone()).unwrap().collect().unwrap())
            })
        });
    }
    group.finish();
}

/// Who acts: of each kind of policy that draws or follows a schedule.
fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for preset in ["opd", "guided-opd", "tcod-f2b", "tcod-b2f", "oec", "gkd", "uopd"] {
        let config = Config::preset(preset).expect("a preset is read");
        let mut input = DecideInput {
            seed: 42,
            episode: 7,
            turn: 0,
            step: 100,
            evaluation: false,
            has_teacher: true,
            replay_available: true,
            demonstration: 12,
            teacher_spent: false,
            asked: None,
            max_turns: 30,
        };
        group.bench_function(preset, |b| {
            b.iter(|| {
                input.turn = (input.turn + 1) % 30;
                black_box(policy::decide(&config, black_box(&input)).expect("a decision"))
            })
        });
    }
    group.finish();
}

/// Rows of logits, 64 as a build takes them: their log-probs alone, and with their entropies.
fn rows_of_logits(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("rows of logits");
    for v in [64, 8192, 151_936] {
        let (logits, ids) = (random(&[64, v]), [1; 64]);
        group.throughput(Throughput::Elements(64));
        group.bench_function(BenchmarkId::new("logprobs", v), |b| {
            b.iter(|| black_box(ops::logprobs_of(&device, &logits, &ids, 64).unwrap()))
        });
        group.bench_function(BenchmarkId::new("entropies", v), |b| {
            b.iter(|| black_box(ops::spreads_of(&device, &logits, &ids, 64).unwrap()))
        });
    }
}

criterion_group!(benches, linear, training, attention, rows_of_logits, sampler, controls, decide);
criterion_main!(benches);
