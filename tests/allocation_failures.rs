//! Memory that runs out is an error of the call and never the end of the process: the allocator of this program refuses
//! what is asked of it, at every place in turn.

#[path = "support/tiny_model.rs"]
#[allow(dead_code)]
mod tiny_model;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};

use serde_json::json;
use squire::backend::cpu::Cpu;
use squire::backend::ops::{self, Loss, RowList, RowLoss, Sampling};
use squire::backend::{Compute, Device, Tensor};
use squire::error::{Fault, Result};
use squire::model::activations::Recompute;
use squire::model::backward::{BackwardScratch, Passed, backward, head_backward};
use squire::model::forward::{Segment, decode, forward, head, head_forward};
use squire::model::{Activations, KvCache, KvPool, Model, ModelConfig, Weights};
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

/// The system's allocator, which refuses on demand.
struct Refusing;

/// Requests below are always served.
static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Requests that are served before the first is refused.
static SERVED: AtomicIsize = AtomicIsize::new(isize::MAX);
/// Whether all are refused from then on, or one alone.
static FOR_GOOD: AtomicBool = AtomicBool::new(false);

fn refuses(bytes: usize) -> bool {
    if bytes < LEAST.load(Ordering::Relaxed) {
        return false;
    }
    let left = SERVED.fetch_sub(1, Ordering::Relaxed);
    left == 0 || left < 0 && FOR_GOOD.load(Ordering::Relaxed)
}

// SAFETY: the system's allocator, or no memory, which an allocator may give at any time.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if bytes > layout.size() && refuses(bytes) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// Runs `call` again and again, each time with the next request of at least `least` bytes refused, until it gets all that
/// it asks for. Returns how many times it was refused something.
fn sweep(what: &str, least: usize, mut call: impl FnMut() -> Result<()>) -> usize {
    let mut n_refused = 0;
    for for_good in [false, true] {
        for n in 0.. {
            FOR_GOOD.store(for_good, Ordering::Relaxed);
            SERVED.store(n, Ordering::Relaxed);
            LEAST.store(least, Ordering::Relaxed);
            let result = call();
            LEAST.store(usize::MAX, Ordering::Relaxed);
            let refused = SERVED.load(Ordering::Relaxed) < 0;
            match result {
                Ok(()) if !refused => break,
                // What can do without goes on: a buffer that was only to be kept.
                Ok(()) => {}
                Err(e) => assert!(refused && e.fault() == Fault::OutOfHostMemory, "{what}, request {n}: {e}"),
            }
            n_refused += usize::from(refused);
        }
    }
    println!("{what}: refused {n_refused} times");
    n_refused
}

fn config(sparse: bool) -> ModelConfig {
    let mut document = if sparse { tiny_model::moe() } else { tiny_model::dense() };
    let wide = json!({ "vocab_size": 5000, "hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 160 });
    wide.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    ModelConfig::from_json(&document).unwrap()
}

/// Requests of a page and more: with the extents above everything that grows with model, context or batch.
const LARGE: usize = 4 << 10;

fn passes_over_a_model_end_with_out_of_host_memory_and_never_abort() {
    let ids: Vec<i32> = (0..170).map(|i| i * 37 % 5000).collect();
    for sparse in [false, true] {
        for (compute, dtype) in [(Compute::Bf16, Dtype::Bf16), (Compute::F32, Dtype::F16)] {
            let (cpu, config) = (Cpu::new(2, None).unwrap(), config(sparse));
            let device = Device::Cpu(cpu.clone());
            let name = |what: &str| format!("{what}, {}{}", compute.name(), if sparse { ", experts" } else { "" });
            let made = || -> Result<(Model, Weights)> {
                let model = Model::new(config.clone(), device.clone(), compute, 0)?;
                Ok((model, Weights::random(&config, &device, dtype, 3, 0.1)?))
            };
            assert!(sweep(&name("making"), LARGE, || made().map(drop)) > 20);
            let (model, weights) = made().unwrap();

            let serve = || -> Result<()> {
                cpu.release_scratch();
                let pool = KvPool::new(&device, model.page_shape(), 1 << 30);
                let (mut kv, mut a) = (KvCache::new(&pool), Activations::for_serving(&model)?);
                forward(&model, &weights, &mut [Segment { ids: &ids, kv: &mut kv, adapter: None }], &mut a)?;
                let rows = RowList::of(&device, &[0, 5, 169])?;
                let head = head(&model, &weights, &mut a, &rows)?;
                ops::logprobs_of_head(&device, head, &[1, 2, 3])?;
                ops::top_k_of_head(&device, head, 1, 3000)?;
                let mut fork = kv.fork()?;
                for (top_k, top_p) in [(0, 1.0), (0, 0.99), (2000, 1.0)] {
                    let draw = (Sampling { temperature: 3.0, top_k, top_p }, 0.7);
                    decode(
                        &model,
                        &weights,
                        &mut [Segment { ids: &[7], kv: &mut fork, adapter: None }],
                        &[draw.into()],
                        &mut a,
                    )?;
                    a.draws.take()?;
                }
                ops::read_rows(&device, &a.hidden, &[0, 1, 2]).map(drop)
            };
            assert!(sweep(&name("serving"), LARGE, serve) > 20);

            let train = |recompute| -> Result<()> {
                cpu.release_scratch();
                let pool = KvPool::new(&device, model.page_shape(), u64::MAX);
                let (mut kv, mut a) = (KvCache::new(&pool), Activations::recomputing(&model, recompute)?);
                let (mut gradients, mut scratch) = (Weights::zeros(&config)?, BackwardScratch::new(&model)?);
                forward(&model, &weights, &mut [Segment { ids: &ids, kv: &mut kv, adapter: None }], &mut a)?;
                let (n, v) = (40, config.vocab_size);
                let mut logits = Tensor::zeros(Dtype::F32, &[n, v])?;
                head_forward(&model, &weights, &mut logits, &a.hidden, n)?;
                let teacher = Tensor::zeros(Dtype::F32, &[n, v])?;
                let rows = [RowLoss::new(Loss::ReverseKl, 1.0, 0); 40];
                ops::divergence_forward_backward(&device, &mut logits, ops::TeacherRows::Logits(&teacher), &rows, n)?;
                let mut dhidden = Tensor::zeros(Dtype::F32, &[ids.len(), config.hidden_size])?;
                head_backward(&model, &weights, &mut gradients, &mut dhidden, (&logits, &a.hidden), n);
                let span = 0..ids.len();
                let spans = std::slice::from_ref(&span);
                let facts = Passed {
                    activations: &mut a,
                    caches: std::slice::from_mut(&mut kv),
                    ids: &ids,
                    spans,
                    adapter: None,
                };
                backward(&model, &weights, &mut gradients, facts, &dhidden, &mut scratch)?;
                for (_, g) in gradients.tensors() {
                    ops::sum_of_squares(&device, g)?;
                }
                Weights::widened(&config, &weights).map(drop)
            };
            for recompute in Recompute::ALL {
                let name = format!("{}, {} again", name("training"), recompute.name());
                // Where less is kept, less is asked for.
                let least = if recompute == Recompute::Nothing { 60 } else { 30 };
                assert!(sweep(&name, LARGE, || train(recompute)) > least);
            }
        }
    }
}

fn calls_of_an_engine_end_with_out_of_host_memory_and_it_serves_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let options = || EngineOptions { n_threads: 2, caller_driven: true, ..EngineOptions::default() };
    let engine = Engine::new(options()).unwrap();
    engine.random_model(config(true), Dtype::Bf16, 1, 0).unwrap().save(&path).unwrap();
    // Requests of the backend and the model; what the engine asks for by itself is less.
    const LARGER: usize = 10 << 10;
    assert!(sweep("loading", LARGER, || engine.load(&path, Default::default()).map(drop)) > 1);
    let model = engine.load(&path, Default::default()).unwrap();
    let prompt: Vec<i32> = (0..200).map(|i| i * 37 % 5000).collect();
    let options = || GenerationOptions { max_tokens: 3, ignore_model_stops: true, ..GenerationOptions::default() };
    let started = |model: &ServedModel| -> Result<Session> {
        let session = Session::new(model)?;
        session.append(&prompt, Source::Host)?;
        Ok(session)
    };
    let wanted = started(&model).unwrap().generate(options()).unwrap().collect().unwrap().0.ids;
    let generate = || started(&model)?.generate(options())?.collect().map(drop);
    sweep("generating", LARGER, generate);
    let score = || started(&model)?.score(&prompt[..50], 5, &Cancel::default()).map(drop);
    sweep("scoring", LARGER, score);
    let fresh = || {
        let model = engine.load(&path, Default::default())?;
        started(&model)?.generate(options())?.collect().map(drop)
    };
    assert!(sweep("loading and generating", LARGER, fresh) > 10);
    let again = started(&model).unwrap().generate(options()).unwrap().collect().unwrap().0.ids;
    assert_eq!(again, wanted);
}

/// One test: the allocator refuses every thread, also that of the harness, which asks for memory whenever a test ends.
#[test]
fn memory_that_runs_out_anywhere_is_an_error_and_no_abort() {
    passes_over_a_model_end_with_out_of_host_memory_and_never_abort();
    calls_of_an_engine_end_with_out_of_host_memory_and_it_serves_on();
}
