//! Whole models on a GPU, held against the CPU: on the host shim (feature `shim`), or on the machine's first device
//! (feature `cuda`). On a machine without one every test says that it was skipped.
#![cfg(any(feature = "cuda", feature = "shim"))]

use serde_json::json;
use squire::backend::cuda::{Cuda, CudaOptions};
use squire::backend::ops::Sampling;
use squire::backend::{Compute, Device};
use squire::error::Fault;
use squire::format::{Companions, save_model};
use squire::model::ModelConfig;
use squire::serve::{
    Cancel, Controls, DeviceChoice, Engine, EngineOptions, GenerationOptions, LoadOptions, ServedModel, Session,
};
use squire::tensor::Dtype;

/// A dense model with everything that differs: two layers, grouped heads, a vocabulary that is no multiple of 16.
fn dense() -> ModelConfig {
    ModelConfig::from_json(&json!({
        "model_type": "qwen3", "vocab_size": 203, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
    }))
    .unwrap()
}

/// A sparse one: eight experts, two a token, an output projection of its own.
fn sparse() -> ModelConfig {
    ModelConfig::from_json(&json!({
        "model_type": "qwen3_moe", "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }))
    .unwrap()
}

/// The dense one of Llama's family: heads without norms, three query heads a key head.
fn normless() -> ModelConfig {
    let mut document = dense().to_json();
    document["model_type"] = json!("llama");
    document["num_attention_heads"] = json!(6);
    ModelConfig::from_json(&document).unwrap()
}

fn has_gpu() -> bool {
    let there = Cuda::open(&CudaOptions::default()).is_ok();
    if !there {
        eprintln!("skipped: no GPU and no host shim (feature shim)");
    }
    there
}

fn engine(device: DeviceChoice, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions {
        n_threads: 2,
        compute: Compute::Bf16,
        caller_driven: true,
        device,
        kv_budget: 64 << 20,
        ..EngineOptions::default()
    };
    change(&mut options);
    Engine::new(options).unwrap()
}

const GPU: DeviceChoice = DeviceChoice::Cuda { index: 0 };

/// The same model on any device. Its weights deviate so much that logits spread and margins are clear: with those of a
/// model's start every distribution would be flat, and every result near every other.
fn model(device: DeviceChoice, config: &ModelConfig) -> ServedModel {
    model_in(device, Compute::Bf16, config)
}

fn model_in(device: DeviceChoice, compute: Compute, config: &ModelConfig) -> ServedModel {
    let cpu = Device::Cpu(squire::backend::cpu::Cpu::new(1, None).unwrap());
    let weights = squire::model::Weights::random(config, &cpu, Dtype::Bf16, 5, 0.12).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let tensors = weights.tensors();
    let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
    let none = Companions { tokenizer: None, tokenizer_config: None, chat_templates: None, generation_config: None };
    save_model(&path, &config.to_json(), list, none).unwrap();
    let copied = LoadOptions { copy: true, ..LoadOptions::default() };
    engine(device, |o| o.compute = compute).load(&path, copied).unwrap()
}

fn ids(n: usize, seed: usize, v: usize) -> Vec<i32> {
    (0..n).map(|i| ((i * 31 + i * i * 7 + seed * 13) % v) as i32).collect()
}

fn session(model: &ServedModel, prompt: &[i32]) -> Session {
    let s = Session::new(model).unwrap();
    s.append(prompt, squire::text::source::Source::Host).unwrap();
    s
}

/// Log-probs of `of` after `prompt`, with the `top` likeliest at each.
fn scores(model: &ServedModel, prompt: &[i32], of: &[i32], top: usize) -> Vec<(f32, Vec<(i32, f32)>)> {
    let rows = session(model, prompt).score(of, top, &Cancel::default()).unwrap();
    rows.into_iter().map(|r| (r.logprob, r.top)).collect()
}

fn greedy(max_tokens: usize) -> GenerationOptions {
    GenerationOptions {
        max_tokens,
        sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 },
        ignore_model_stops: true,
        ..GenerationOptions::default()
    }
}

fn sampled(max_tokens: usize, seed: u64) -> GenerationOptions {
    let sampling = Sampling { temperature: 0.9, top_k: 20, top_p: 0.95 };
    GenerationOptions { sampling, seed, ..greedy(max_tokens) }
}

/// The ids and raw log-probs that a generation gives.
fn generate(session: &Session, options: GenerationOptions) -> (Vec<i32>, Vec<u32>) {
    let before = session.len().unwrap();
    session.generate(options).unwrap().collect().unwrap();
    let tokens = session.tokens().unwrap();
    tokens[before..].iter().map(|t| (t.id, t.logprob.to_bits())).unzip()
}

#[test]
fn log_probs_are_the_cpus_within_three_hundredths_of_the_largest_logit() {
    if !has_gpu() {
        return;
    }
    for config in [dense(), sparse(), normless()] {
        let (cpu, gpu) = (model(DeviceChoice::Cpu, &config), model(GPU, &config));
        let wide = model_in(DeviceChoice::Cpu, Compute::F32, &config);
        // Few rows take the decode forms, many the tiles, chunks of 512 both.
        for n in [2, 7, 20, 70, 150] {
            let (all, v) = (ids(n, n, config.vocab_size), config.vocab_size);
            let (wanted, got) = (scores(&cpu, &all[..1], &all[1..], v), scores(&gpu, &all[..1], &all[1..], v));
            // Log-probs of a whole vocabulary are its logits but for a constant; the largest logit is at least half of
            // how far they lie apart.
            let spread = |top: &[(i32, f32)]| top[0].1 - top[v - 1].1;
            let largest = wanted.iter().map(|(_, top)| spread(top) / 2.0).fold(0.0, f32::max);
            assert!(largest > 1.0, "the logits are flat: {largest}");
            let by_id = |list: &[(i32, f32)]| {
                let mut list = list.to_vec();
                list.sort_by_key(|(id, _)| *id);
                list
            };
            let mut far = Vec::new();
            for (i, ((w, top), (g, gpu_top))) in wanted.iter().zip(&got).enumerate() {
                let pairs = by_id(top).into_iter().zip(by_id(gpu_top));
                let apart = pairs.map(|((_, w), (_, g))| (w - g).abs()).fold((w - g).abs(), f32::max);
                if apart > 3e-2 * largest {
                    far.push((i, apart / largest));
                } else if top[0].1 - top[1].1 > 6e-2 * largest {
                    assert_eq!(top[0].0, gpu_top[0].0, "{n} tokens, row {i}: the likeliest token");
                }
            }
            if config.moe.is_none() || n <= 20 {
                assert!(far.is_empty(), "{n} tokens: {far:?} are too far from the CPU");
                continue;
            }
            // Where two experts are as good as each other, the last bit decides which one a row goes to, and all rows that
            // attend to it follow: so does the CPU's bf16 against its own f32. The GPU must lie no farther from f32.
            let exact = scores(&wide, &all[..1], &all[1..], v);
            let median = |rows: &[(f32, Vec<(i32, f32)>)]| {
                let apart = rows.iter().zip(&exact).map(|((_, a), (_, b))| {
                    by_id(a).iter().zip(by_id(b)).map(|(a, b)| (a.1 - b.1).abs()).fold(0.0, f32::max)
                });
                let mut apart: Vec<f32> = apart.collect();
                apart.sort_by(f32::total_cmp);
                apart[apart.len() / 2]
            };
            let (of_gpu, of_cpu) = (median(&got), median(&wanted));
            assert!(
                of_gpu <= 1.5 * of_cpu && of_gpu <= 3e-2 * largest,
                "{n} tokens: {of_gpu} from f32, the CPU {of_cpu}"
            );
        }
    }
}

#[test]
fn greedy_ids_are_the_cpus_where_margins_allow() {
    if !has_gpu() {
        return;
    }
    for config in [dense(), sparse(), normless()] {
        let (cpu, gpu) = (model(DeviceChoice::Cpu, &config), model(GPU, &config));
        let prompt = ids(9, 1, config.vocab_size);
        let (got, _) = generate(&session(&gpu, &prompt), greedy(24));
        // The GPU's own choices, scored by the CPU: each is the likeliest or as good as.
        let v = config.vocab_size;
        let rows = scores(&cpu, &prompt, &got, v);
        let largest = rows.iter().map(|(_, top)| (top[0].1 - top[v - 1].1) / 2.0).fold(0.0, f32::max);
        for (i, (logprob, top)) in rows.iter().enumerate() {
            assert!(top[0].1 - logprob <= 3e-2 * largest, "token {i}: {} where {:?} was likelier", got[i], top[0]);
        }
        assert_eq!(got.len(), 24);
    }
}

#[test]
fn a_decode_step_has_one_set_of_bits_whoever_decodes_beside_it() {
    if !has_gpu() {
        return;
    }
    for config in [dense(), sparse()] {
        let gpu = model(GPU, &config);
        let prompts: Vec<Vec<i32>> = (0..9).map(|i| ids(3 + 5 * i, i, config.vocab_size)).collect();
        let prefilled = |p: &Vec<i32>| {
            let s = session(&gpu, p);
            s.prefill(&Cancel::default()).unwrap();
            s
        };
        let alone: Vec<_> = prompts.iter().map(|p| generate(&prefilled(p), sampled(6, 3))).collect();
        for together in [2, 3, 8, 9] {
            // Each prompt is computed by itself, so that only decoding is shared.
            let sessions: Vec<Session> = prompts[..together].iter().map(prefilled).collect();
            let running: Vec<_> = sessions.iter().map(|s| s.generate(sampled(6, 3)).unwrap()).collect();
            running.into_iter().for_each(|g| drop(g.collect().unwrap()));
            for (i, s) in sessions.iter().enumerate() {
                let tokens = s.tokens().unwrap();
                let got: (Vec<i32>, Vec<u32>) =
                    tokens[prompts[i].len()..].iter().map(|t| (t.id, t.logprob.to_bits())).unzip();
                assert_eq!(got, alone[i], "row {i} of {together}");
            }
        }
    }
}

#[test]
fn forks_that_share_a_prefix_decode_as_sessions_of_their_own() {
    if !has_gpu() {
        return;
    }
    // A prefix longer than a split of attention, so that rows are grouped by the pages they share.
    let config = dense();
    let gpu = model(GPU, &config);
    let prompt = ids(300, 4, config.vocab_size);
    let first = session(&gpu, &prompt);
    first.prefill(&Cancel::default()).unwrap();
    let forks: Vec<Session> = (0..5).map(|_| first.fork().unwrap()).collect();
    let running: Vec<_> = forks.iter().enumerate().map(|(i, s)| s.generate(sampled(5, i as u64)).unwrap()).collect();
    running.into_iter().for_each(|g| drop(g.collect().unwrap()));
    for (i, fork) in forks.iter().enumerate() {
        let alone = generate(&first.fork().unwrap(), sampled(5, i as u64));
        let tokens = fork.tokens().unwrap();
        let got: (Vec<i32>, Vec<u32>) = tokens[300..].iter().map(|t| (t.id, t.logprob.to_bits())).unzip();
        assert_eq!(got, alone, "fork {i}");
    }
}

#[test]
fn a_stop_token_ends_a_generation_though_the_next_step_was_asked_for() {
    if !has_gpu() {
        return;
    }
    let config = dense();
    let gpu = model(GPU, &config);
    let prompt = ids(5, 2, config.vocab_size);
    let (all, bits) = generate(&session(&gpu, &prompt), sampled(12, 8));
    for stop in [0, 3, 7] {
        let s = session(&gpu, &prompt);
        let options = GenerationOptions { stop_ids: vec![all[stop]], ..sampled(12, 8) };
        let end = all.iter().position(|&id| id == all[stop]).unwrap();
        let (got, got_bits) = generate(&s, options);
        assert_eq!((&got[..], &got_bits[..]), (&all[..=end], &bits[..=end]));
        // What comes after is as if nothing had been asked for ahead.
        let (rest, rest_bits) = generate(&s, sampled(12 - got.len(), 8));
        assert_eq!((&rest[..], &rest_bits[..]), (&all[end + 1..], &bits[end + 1..]));
    }
}

#[test]
fn the_likeliest_beside_each_token_are_those_of_its_row() {
    if !has_gpu() {
        return;
    }
    let config = dense();
    let gpu = model(GPU, &config);
    let prompt = ids(5, 2, config.vocab_size);
    let options = GenerationOptions { top_logprobs: 3, ..sampled(6, 8) };
    let (chunk, _) = session(&gpu, &prompt).generate(options).unwrap().collect().unwrap();
    assert_eq!((chunk.ids.len(), chunk.top_ids.len()), (6, 18));
    for (i, (_, top)) in scores(&gpu, &prompt, &chunk.ids, 3).iter().enumerate() {
        for (k, (_, logprob)) in top.iter().enumerate() {
            let got = chunk.top_logprobs[3 * i + k];
            assert!((got - logprob).abs() < 0.05, "token {i}: {got}, not {logprob}");
        }
        let own = chunk.top_ids[3 * i..][..3].iter().position(|&id| id == chunk.ids[i]);
        assert!(own.is_none_or(|k| chunk.top_logprobs[3 * i + k] == chunk.logprobs[i]), "one row, one number");
    }
}

#[test]
fn controls_that_a_gpu_does_not_have_are_refused_by_name() {
    if !has_gpu() {
        return;
    }
    let config = dense();
    let s = session(&model(GPU, &config), &ids(5, 2, config.vocab_size));
    let neutral = Controls::default;
    for (name, controls) in [
        ("min_p", Controls { min_p: 0.1, ..neutral() }),
        ("typical_p", Controls { typical_p: 0.9, ..neutral() }),
        ("repetition_penalty", Controls { repetition_penalty: 1.1, ..neutral() }),
        ("presence_penalty", Controls { presence_penalty: 0.1, ..neutral() }),
        ("frequency_penalty", Controls { frequency_penalty: 0.1, ..neutral() }),
        ("no_repeat_ngram_size", Controls { no_repeat_ngram_size: 3, ..neutral() }),
        ("logit_bias", Controls { logit_bias: vec![(1, 1.0)], ..neutral() }),
    ] {
        let e = s.generate(GenerationOptions { controls, ..greedy(1) }).err().unwrap();
        assert_eq!(e.fault(), Fault::UnsupportedBackend);
        assert!(e.message().starts_with(&format!("{name}: wanted unset on a GPU")), "{}", e.message());
    }
    assert_eq!(generate(&s, greedy(2)).0.len(), 2);
}

#[test]
fn sessions_that_come_and_go_between_steps_change_nothing_for_others() {
    if !has_gpu() {
        return;
    }
    let config = dense();
    let gpu = model(GPU, &config);
    let (long, short) = (ids(6, 1, config.vocab_size), ids(40, 2, config.vocab_size));
    let (wanted, _) = generate(&session(&gpu, &long), sampled(16, 1));
    let s = session(&gpu, &long);
    let running = s.generate(sampled(16, 1)).unwrap();
    for i in 0..3 {
        gpu.engine().step().unwrap();
        gpu.engine().step().unwrap();
        let other = session(&gpu, &short[..10 + 7 * i]);
        let beside = other.generate(sampled(3, 2)).unwrap();
        if i == 1 {
            drop(beside);
        } else {
            beside.collect().unwrap();
        }
    }
    running.collect().unwrap();
    let got: Vec<i32> = s.tokens().unwrap()[long.len()..].iter().map(|t| t.id).collect();
    assert_eq!(got, wanted);
}

#[test]
fn overlapping_launches_change_no_bit() {
    if !has_gpu() {
        return;
    }
    use squire::model::forward::{Segment, decode, forward};
    use squire::model::{Activations, KvCache, KvPool, Model, Weights};
    let config = dense();
    let mut judge = None;
    for (no_overlap, seed) in [(true, 1), (false, 2), (false, 3)] {
        let cuda = Cuda::open(&CudaOptions { no_overlap, seed, ..CudaOptions::default() }).unwrap();
        let device = Device::Cuda(cuda);
        let m = Model::new(config.clone(), device.clone(), Compute::Bf16, 256).unwrap();
        let cpu = Device::Cpu(squire::backend::cpu::Cpu::new(1, None).unwrap());
        let w = Weights::random(&config, &cpu, Dtype::Bf16, 5, 0.05).unwrap();
        let w = w.to_device(&config, &device, &mut |_, _| Ok(())).unwrap();
        let pool = KvPool::new(&device, m.page_shape(), 1 << 30);
        let mut kv = KvCache::new(&pool);
        let mut a = Activations::for_serving(&m).unwrap();
        forward(&m, &w, &mut [Segment { ids: &ids(11, 1, 203), kv: &mut kv, adapter: None }], &mut a).unwrap();
        let mut drawn = Vec::new();
        let mut next = 7;
        for _ in 0..4 {
            let draw = (Sampling { temperature: 0.8, top_k: 0, top_p: 1.0 }, 0.4);
            decode(&m, &w, &mut [Segment { ids: &[next], kv: &mut kv, adapter: None }], &[draw.into()], &mut a)
                .unwrap();
            let s = a.draws.take().unwrap()[0];
            drawn.push((s.id, s.logprob.to_bits(), s.sampled_logprob.to_bits()));
            next = s.id;
        }
        assert_eq!(*judge.get_or_insert_with(|| drawn.clone()), drawn);
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_and_nothing_is_leaked() {
    if !has_gpu() {
        return;
    }
    let config = dense();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    engine(DeviceChoice::Cpu, |_| {}).random_model(config.clone(), Dtype::Bf16, 1, 0).unwrap().save(&path).unwrap();
    let small = engine(GPU, |o| o.device_budget = 100_000);
    let e = small.load(&path, Default::default()).err().unwrap();
    assert_eq!(e.fault(), Fault::DeviceBudget, "{e}");
    let (needed, free) = e.bytes().expect("the bytes are told");
    assert!(needed > free, "{needed} of {free}");
    let plan = small.plan(&path, Default::default()).unwrap();
    assert_eq!(plan["device_bytes"].as_u64().unwrap(), needed);
    assert_eq!(plan["device_bytes_free"].as_u64().unwrap(), free, "nothing was taken");
    let enough = engine(GPU, |o| o.device_budget = 64 << 20);
    let served = enough.load(&path, Default::default()).unwrap();
    generate(&session(&served, &[1, 2, 3]), greedy(2));
}

#[test]
fn running_out_of_device_memory_ends_the_call_and_nothing_else() {
    if !has_gpu() {
        return;
    }
    let config = dense();
    // Room for the model and a few pages of KV cache, not for the activations of a long prompt and its pages.
    let tight = engine(GPU, |o| o.device_budget = 1_400_000);
    let gpu = tight.random_model(config.clone(), Dtype::Bf16, 5, 0).unwrap();
    let s = session(&gpu, &ids(900, 1, config.vocab_size));
    let e = s.prefill(&Cancel::default()).unwrap_err();
    assert!(matches!(e.fault(), Fault::DeviceBudget | Fault::OutOfDeviceMemory), "{e}");
    drop(s);
    let again = session(&gpu, &ids(5, 1, config.vocab_size));
    assert_eq!(generate(&again, greedy(3)).0.len(), 3);
}

#[test]
fn two_engines_share_a_device_and_what_they_say() {
    if !has_gpu() {
        return;
    }
    let config = dense();
    let (a, b) = (model(GPU, &config), model(GPU, &config));
    let prompt = ids(8, 3, config.vocab_size);
    let one = std::thread::scope(|scope| {
        let other = scope.spawn(|| generate(&session(&b, &prompt), sampled(8, 4)));
        let one = generate(&session(&a, &prompt), sampled(8, 4));
        assert_eq!(one, other.join().unwrap());
        one
    });
    drop(a);
    assert_eq!(generate(&session(&b, &prompt), sampled(8, 4)), one, "an engine that goes takes nothing along");
}

#[test]
fn what_the_device_cannot_do_is_refused_by_name() {
    if !has_gpu() {
        return;
    }
    let odd = |key: &str, value: i64| {
        let mut document = dense().to_json();
        document[key] = json!(value);
        let config = ModelConfig::from_json(&document).unwrap();
        engine(GPU, |_| {}).random_model(config, Dtype::Bf16, 1, 0).map(|_| ()).unwrap_err()
    };
    for (key, value) in [("hidden_size", 72), ("intermediate_size", 100), ("head_dim", 16)] {
        let e = odd(key, value);
        assert_eq!(e.fault(), Fault::NoKernels, "{key}: {e}");
        assert!(e.message().contains(&value.to_string()), "{e}");
    }
    let absent = EngineOptions { device: DeviceChoice::Cuda { index: 99 }, ..EngineOptions::default() };
    assert_eq!(Engine::new(absent).err().unwrap().fault(), Fault::NoSuchDevice);
    let wide = EngineOptions { device: GPU, compute: Compute::F32, ..EngineOptions::default() };
    assert_eq!(Engine::new(wide).err().unwrap().fault(), Fault::UnsupportedBackend);
    let gpu = model(GPU, &dense());
    let e = squire::distill::Distiller::new(&gpu, None, Default::default()).err().unwrap();
    assert_eq!(e.fault(), Fault::UnsupportedBackend);
}

#[test]
fn a_saved_model_of_the_device_is_the_one_that_was_loaded() {
    if !has_gpu() {
        return;
    }
    for config in [dense(), sparse()] {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        engine(DeviceChoice::Cpu, |_| {}).random_model(config, Dtype::Bf16, 1, 0).unwrap().save(&first).unwrap();
        engine(GPU, |_| {}).load(&first, Default::default()).unwrap().save(&second).unwrap();
        let bytes = |path: &std::path::Path| std::fs::read(path.join("model.safetensors")).unwrap();
        assert!(bytes(&first) == bytes(&second));
    }
}
