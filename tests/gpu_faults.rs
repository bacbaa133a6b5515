//! What goes wrong on a GPU, and who hears of it: on the host shim, which shows what a device would only do now and then.
//! There are none in other builds.
#![cfg(feature = "shim")]

use std::collections::BTreeMap;

use serde_json::json;
use squire::backend::batch::Plan;
use squire::backend::cuda::{Buffer, Cuda, CudaOptions, Graph, Graphs};
use squire::backend::ops::{Sampled, Sampling};
use squire::backend::{Compute, Device};
use squire::error::{Error, Fault};
use squire::model::forward::{Segment, decode, forward};
use squire::model::{Activations, KvCache, KvPool, Model, ModelConfig, Weights};
use squire::serve::{Cancel, DeviceChoice, Engine, EngineOptions, GenerationOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

fn config(change: &[(&str, i64)]) -> ModelConfig {
    let mut document = json!({
        "model_type": "qwen3", "vocab_size": 203, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    change.iter().for_each(|(key, value)| document[key] = json!(value));
    ModelConfig::from_json(&document).unwrap()
}

fn shim(budget: u64) -> Option<Cuda> {
    if cfg!(feature = "shim") {
        return Some(Cuda::open(&CudaOptions { budget, no_pool: true, ..CudaOptions::default() }).unwrap());
    }
    eprintln!("skipped: it needs the host shim (feature shim)");
    None
}

const PLAN: Plan = Plan { rows: 1, context: 1024, columns: 8, decodes: true };

fn copied(cuda: &Cuda, from: &Buffer, to: &Buffer) {
    // SAFETY: both are live buffers of one length.
    cuda.keep(unsafe { cuda.api().copy(to.address(), from.address(), to.len()) });
}

#[test]
fn what_one_thread_records_is_its_own_and_disturbs_no_other() {
    let Some(cuda) = shim(0) else { return };
    let (from, to, beside) = (cuda.allocate(256).unwrap(), cuda.allocate(256).unwrap(), cuda.allocate(256).unwrap());
    from.write(&[1; 256]).unwrap();
    to.write(&[0; 256]).unwrap();
    let mut graphs = Graphs::default();
    let run = |graphs: &mut Graphs| {
        cuda.replay(graphs, (1, PLAN), || {
            // Another model is loaded meanwhile: an upload, a wait, and a read.
            std::thread::scope(|scope| {
                let loads = scope.spawn(|| {
                    beside.write(&[7; 256])?;
                    beside.read()
                });
                assert_eq!(loads.join().unwrap().unwrap(), [7; 256], "the other thread is served at once");
            });
            copied(&cuda, &from, &to);
            Ok(())
        })
    };
    run(&mut graphs).unwrap();
    beside.write(&[9; 256]).unwrap();
    to.write(&[0; 256]).unwrap();
    run(&mut graphs).unwrap();
    assert_eq!(to.read().unwrap(), [1; 256]);
    assert_eq!(beside.read().unwrap(), [9; 256], "what the other thread did is not done again");
}

#[test]
fn a_recording_that_fails_or_panics_leaves_the_stream_usable() {
    let Some(cuda) = shim(0) else { return };
    let mut graphs = Graphs::default();
    let buffer = cuda.allocate(256).unwrap();
    let e = cuda.replay(&mut graphs, (1, PLAN), || Err(Error::new(Fault::BadOption, "no"))).unwrap_err();
    assert_eq!(e.fault(), Fault::BadOption);
    let panics = || cuda.replay(&mut graphs, (1, PLAN), || panic!("in the middle"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    let waits = cuda.replay(&mut graphs, (1, PLAN), || buffer.write(&[3; 256])).unwrap_err();
    assert_eq!(waits.fault(), Fault::DeviceError, "an op that waits cannot be recorded");
    assert!(graphs.is_empty());
    buffer.write(&[5; 256]).unwrap();
    assert_eq!(buffer.read().unwrap(), [5; 256]);
}

#[test]
fn a_failure_is_told_to_the_thread_that_caused_it() {
    let Some(cuda) = shim(0) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| cuda.keep(Err(Error::new(Fault::DeviceError, "of the loader")))).join().unwrap();
    });
    cuda.check().unwrap();
    cuda.keep(Err(Error::new(Fault::DeviceError, "of the scheduler")));
    std::thread::scope(|scope| scope.spawn(|| cuda.check()).join().unwrap()).unwrap();
    assert_eq!(cuda.check().unwrap_err().message(), "of the scheduler");
    cuda.check().unwrap();
}

/// A model on a device, and one timeline of `n` tokens.
struct Stand {
    model: Model,
    weights: Weights,
    kv: KvCache,
    activations: Activations,
}

impl Stand {
    fn new(cuda: &Cuda, n: usize) -> Stand {
        let (config, device) = (config(&[]), Device::Cuda(cuda.clone()));
        let model = Model::new(config.clone(), device.clone(), Compute::Bf16, 0).unwrap();
        let weights = Weights::random(&config, &device, Dtype::Bf16, 5, 0.05).unwrap();
        let pool = KvPool::new(&device, model.page_shape(), 1 << 30);
        let mut stand =
            Stand { activations: Activations::for_serving(&model).unwrap(), kv: KvCache::new(&pool), model, weights };
        stand.prefill(n).unwrap();
        stand
    }

    fn prefill(&mut self, n: usize) -> squire::error::Result<()> {
        let ids: Vec<i32> = (0..n as i32).map(|i| i * 31 % 203).collect();
        let Stand { model, weights, kv, activations } = self;
        forward(model, weights, &mut [Segment { ids: &ids, kv, adapter: None }], activations)
    }

    fn decode(&mut self, id: i32) -> Sampled {
        let draw = (Sampling { temperature: 0.8, top_k: 0, top_p: 1.0 }, 0.4);
        let Stand { model, weights, kv, activations } = self;
        decode(model, weights, &mut [Segment { ids: &[id], kv, adapter: None }], &[draw.into()], activations).unwrap();
        activations.draws.take().unwrap()[0]
    }
}

#[test]
fn room_that_was_made_for_half_of_a_batch_voids_what_was_recorded() {
    // Each budget lets a prompt of 600 rows get a little further before memory runs out.
    for spare in (0..16).map(|i| 40_000 * i) {
        let Some(judge) = shim(0) else { return };
        let start = {
            let mut stand = Stand::new(&judge, 5);
            stand.decode(3);
            judge.held() + spare
        };
        let run = |budget: u64| {
            let cuda = shim(budget).unwrap();
            let mut stand = Stand::new(&cuda, 5);
            let mut drawn = vec![stand.decode(3)];
            let (mut refused, before) = (0, stand.kv.len());
            for _ in 0..2 {
                refused += usize::from(budget > 0 && stand.prefill(600).is_err());
                stand.kv.truncate(before);
                // Batches of every size between, each with whatever room it finds.
                for n in [1, 20, 40, 80] {
                    let _ = (budget > 0).then(|| stand.prefill(n));
                    stand.kv.truncate(before);
                    drawn.push(stand.decode(4));
                    stand.kv.truncate(before);
                }
            }
            (drawn, refused)
        };
        let (drawn, refused) = run(start);
        assert_eq!(drawn, run(0).0, "with {spare} bytes to spare, {refused} prompts refused");
    }
}

#[test]
fn a_step_sends_what_is_new_and_locks_no_memory() {
    // 3 pages of context, and 47; a place in the table holds 4, and 64.
    let traffic = |n: usize| {
        let cuda = shim(0)?;
        let mut stand = Stand::new(&cuda, n);
        stand.decode(3);
        let (mut steps, mut before) = (Vec::new(), cuda.traffic());
        for _ in 0..70 {
            stand.decode(4);
            let now = cuda.traffic();
            assert_eq!((now.pins, now.pinned_bytes), (before.pins, before.pinned_bytes), "a step locks memory");
            steps.push((now.uploads - before.uploads, now.uploaded_bytes - before.uploaded_bytes));
            before = now;
        }
        Some(steps)
    };
    let (Some(short), Some(long)) = (traffic(96), traffic(1504)) else { return };
    for steps in [&short, &long] {
        // One block a step; its bytes are those of a row, but for the pieces of attention.
        let of_new_page = |step: &&(u64, u64)| step.0 == 2;
        assert_eq!(steps.iter().filter(of_new_page).count(), 2, "70 steps reach two new pages: {steps:?}");
        assert!(steps.iter().all(|&(copies, bytes)| copies <= 2 && bytes < 1024), "{steps:?}");
    }
    let bytes = |steps: &[(u64, u64)]| steps.iter().map(|s| s.1).max().unwrap();
    let (pages, pieces) = (8 * 44, 20 * 4);
    assert!(bytes(&long) <= bytes(&short) + pieces + 256 && bytes(&long) < bytes(&short) + pages, "{short:?} {long:?}");
}

#[test]
fn rows_that_come_and_go_find_their_pages_in_the_table() {
    let Some(cuda) = shim(0) else { return };
    let mut stand = Stand::new(&cuda, 300);
    let Stand { model, weights, kv, activations } = &mut stand;
    let draw = (Sampling { temperature: 0.8, top_k: 0, top_p: 1.0 }, 0.4);
    let mut forks: Vec<KvCache> = (0..5).map(|_| kv.fork().unwrap()).collect();
    // Alone, each in turn: what each row must draw whoever stands beside it. They share the pages of the first split.
    let mut wanted = Vec::new();
    for (i, kv) in forks.iter_mut().enumerate() {
        let ids = [3 + i as i32];
        decode(model, weights, &mut [Segment { ids: &ids, kv, adapter: None }], &[draw.into()], activations).unwrap();
        wanted.push(activations.draws.take().unwrap()[0]);
        kv.truncate(300);
    }
    // Together, in other orders and numbers, with a prompt of another timeline between.
    for list in [vec![0, 1, 2, 3, 4], vec![4, 2, 0], vec![1], vec![3, 4, 1, 0, 2], vec![0, 1]] {
        let mut other = kv.fork().unwrap();
        let ids: Vec<i32> = (0..40).collect();
        forward(model, weights, &mut [Segment { ids: &ids, kv: &mut other, adapter: None }], activations).unwrap();
        let ids: Vec<[i32; 1]> = list.iter().map(|&i| [3 + i as i32]).collect();
        let mut taken: Vec<(usize, KvCache)> = list.iter().map(|&i| (i, forks[i].fork().unwrap())).collect();
        let mut segments: Vec<Segment> =
            taken.iter_mut().zip(&ids).map(|((_, kv), ids)| Segment { ids, kv, adapter: None }).collect();
        decode(model, weights, &mut segments, &vec![draw.into(); list.len()], activations).unwrap();
        let drawn = activations.draws.take().unwrap();
        for (i, got) in list.iter().zip(drawn) {
            assert_eq!(got, wanted[*i], "row {i} of {list:?}");
        }
    }
}

#[test]
fn loading_goes_through_one_locked_buffer_however_many_tensors_there_are() {
    let Some(cuda) = shim(0) else { return };
    let (config, device) = (config(&[("num_hidden_layers", 6)]), Device::Cuda(cuda.clone()));
    let cpu = Device::Cpu(squire::backend::cpu::Cpu::new(1, None).unwrap());
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let weights = Weights::random(&config, &cpu, dtype, 5, 0.05).unwrap();
        let (n, judge) =
            (weights.tensors().len() as u64, Weights::random(&config, &cpu, Dtype::Bf16, 5, 0.05).unwrap());
        let before = cuda.traffic();
        let there = weights.to_device(&config, &device, &mut |_, _| Ok(())).unwrap();
        let now = cuda.traffic();
        // It grows a few times at most, and then never again.
        let pins = now.pins - before.pins;
        assert!(pins <= 4, "{pins} times for {n} tensors");
        assert_eq!(now.uploads - before.uploads, n);
        let back = there.to_host(&config).unwrap();
        assert_eq!(cuda.traffic().pins, now.pins, "reading back locks nothing more");
        for ((name, a), (_, b)) in back.tensors().iter().zip(judge.tensors()) {
            assert!(a.bytes() == b.bytes(), "{name} as {dtype}");
        }
    }
}

fn served(change: &[(&str, i64)]) -> squire::error::Result<ServedModel> {
    let options = EngineOptions {
        n_threads: 1,
        caller_driven: true,
        device: DeviceChoice::Cuda { index: 0 },
        kv_budget: 64 << 20,
        max_batch_tokens: 32,
        ..EngineOptions::default()
    };
    Engine::new(options)?.random_model(config(change), Dtype::Bf16, 1, 0)
}

fn session(model: &ServedModel, n: i32) -> Session {
    let session = Session::new(model).unwrap();
    session.append(&(0..n).map(|i| i % 203).collect::<Vec<_>>(), Source::Host).unwrap();
    session
}

#[test]
fn a_device_that_is_lost_under_way_ends_its_engine() {
    let Some(_) = shim(0) else { return };
    let model = served(&[]).unwrap();
    let Device::Cuda(cuda) = model.engine().device() else { panic!("it is on a GPU") };
    let s = session(&model, 5);
    let running = s.generate(GenerationOptions { max_tokens: 30, ..GenerationOptions::default() }).unwrap();
    (0..4).for_each(|_| assert!(model.engine().step().unwrap()));
    // SAFETY: there is no such graph, which is what loses the device.
    let _ = unsafe { cuda.api().replay(Graph(u64::MAX)) };
    assert_eq!(running.collect().unwrap_err().fault(), Fault::DeviceLost);
    assert_eq!(model.engine().check_alive().unwrap_err().fault(), Fault::DeviceLost);
    // The host lives on, and so does what it holds.
    assert!(s.len().unwrap() >= 5);
    drop((s, model));
}

#[test]
fn adapters_and_biases_are_refused_by_name_on_a_gpu() {
    let Ok(model) = served(&[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    // One that squire wrote: its base's fingerprint must not be asked of memory that the host cannot read.
    std::fs::write(folder.path().join("squire_adapter.json"), r#"{"base": "0"}"#).unwrap();
    std::fs::write(
        folder.path().join("adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#,
    )
    .unwrap();
    let e = model.load_adapter("a", folder.path()).unwrap_err();
    assert!(e.fault() == Fault::UnsupportedBackend && e.message().contains("adapters"), "{e}");
    let mut document = config(&[]).to_json();
    document["model_type"] = json!("qwen2");
    let biased = ModelConfig::from_json(&document).unwrap();
    let e = model.engine().random_model(biased, Dtype::Bf16, 5, 0).map(drop).unwrap_err();
    assert!(e.fault() == Fault::NoKernels && e.message().contains("bias"), "{e}");
    // Heads without norms are served.
    document["model_type"] = json!("llama");
    let llama = ModelConfig::from_json(&document).unwrap();
    let model = model.engine().random_model(llama, Dtype::Bf16, 5, 0).unwrap();
    let session = Session::new(&model).unwrap();
    session.append(&[1, 2, 3], Source::Host).unwrap();
    let generation = session.generate(GenerationOptions { max_tokens: 3, ..GenerationOptions::default() }).unwrap();
    while model.engine().step().unwrap() {}
    assert_eq!(generation.collect().unwrap().0.ids.len(), 3);
}

#[test]
fn extents_that_no_block_has_room_for_are_refused_before_loading() {
    let Some(_) = shim(0) else { return };
    for (key, value) in [("hidden_size", 65_536), ("vocab_size", 2_000_000)] {
        let mut small = BTreeMap::from([("num_hidden_layers", 1), ("intermediate_size", 32), ("vocab_size", 64)]);
        small.extend([("hidden_size", 32), (key, value)]);
        let e = served(&Vec::from_iter(small)).map(|_| ()).unwrap_err();
        assert_eq!(e.fault(), Fault::NoKernels, "{e}");
        assert!(e.message().contains(&value.to_string()), "{e}");
    }
}

#[test]
fn a_prefill_is_cancelled_between_its_chunks() {
    let Some(_) = shim(0) else { return };
    let model = served(&[]).unwrap();
    let s = session(&model, 400);
    let running = s.generate(GenerationOptions { max_tokens: 3, ..GenerationOptions::default() }).unwrap();
    (0..3).for_each(|_| assert!(model.engine().step().unwrap()));
    drop(running);
    let computed = s.n_computed().unwrap();
    assert_eq!(computed, 3 * 32);
    s.prefill(&Cancel::default()).unwrap();
    assert_eq!(s.n_computed().unwrap(), 400);
}

#[test]
fn a_plan_counts_what_the_first_calls_take() {
    let Some(_) = shim(0) else { return };
    // A large vocabulary and a long context: what a step takes is more than the weights. With experts their activations
    // are the most of it.
    let dense = config(&[("vocab_size", 3001), ("num_hidden_layers", 1), ("max_position_embeddings", 60_000)]);
    let mut sparse = config(&[("num_hidden_layers", 1), ("max_position_embeddings", 4096)]).to_json();
    let experts = json!({
        "model_type": "qwen3_moe", "num_experts": 12, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
    });
    experts.as_object().unwrap().iter().for_each(|(key, value)| sparse[key] = value.clone());
    for config in [dense, ModelConfig::from_json(&sparse).unwrap()] {
        first_calls_take_what_is_planned(config);
    }
}

fn first_calls_take_what_is_planned(config: ModelConfig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let cpu = EngineOptions { n_threads: 1, ..EngineOptions::default() };
    Engine::new(cpu).unwrap().random_model(config, Dtype::Bf16, 1, 0).unwrap().save(&path).unwrap();
    let with = |device_budget| {
        let device = DeviceChoice::Cuda { index: 0 };
        let options =
            EngineOptions { device, device_budget, caller_driven: true, max_batch_tokens: 64, ..Default::default() };
        Engine::new(options).unwrap()
    };
    let needed = with(0).plan(&path, Default::default()).unwrap()["device_bytes"].as_u64().unwrap();
    let engine = with(needed + needed / 16);
    let model = engine.load(&path, Default::default()).unwrap();
    let s = session(&model, 9);
    let options = || GenerationOptions { max_tokens: 3, ignore_model_stops: true, ..GenerationOptions::default() };
    s.generate(options()).unwrap().collect().unwrap();
    s.score(&[1, 2, 3], 2, &Cancel::default()).unwrap();
    let many: Vec<_> = (0..20).map(|_| s.fork().unwrap()).collect();
    let running: Vec<_> = many.iter().map(|s| s.generate(options()).unwrap()).collect();
    running.into_iter().for_each(|g| drop(g.collect().unwrap()));
}
