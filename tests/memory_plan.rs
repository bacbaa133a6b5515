//! The plan of a model's memory is what its allocators take: to the byte, but where experts get their rows by chance.

#[path = "support/tiny_model.rs"]
#[allow(dead_code)]
mod tiny_model;

use serde_json::{Value, json};
use squire::backend::batch::Plan;
use squire::backend::cpu::Cpu;
use squire::backend::cuda::{Cuda, CudaOptions};
use squire::backend::ops::{RowList, Sampling};
use squire::backend::{Batch, Compute, Device};
use squire::model::activations::Recompute;
use squire::model::backward::{BackwardScratch, Passed, backward};
use squire::model::forward::{Segment, decode, forward, head};
use squire::model::{Activations, KvCache, KvPool, Load, MemoryPlan, Model, ModelConfig, Weights};
use squire::tensor::Dtype;
use tiny_model::{dense, moe};

const ROWS: usize = 75;

/// Extents that a GPU's kernels take.
fn for_gpu(mut document: Value) -> ModelConfig {
    let wide = json!({
        "vocab_size": 203, "hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "moe_intermediate_size": 160,
    });
    wide.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    ModelConfig::from_json(&document).unwrap()
}

fn ids(n: usize) -> Vec<i32> {
    (0..n as i32).map(|i| i * 31 % 200).collect()
}

fn load(config: &ModelConfig, dtype: Dtype, rows: usize) -> Load {
    let parameters = config.tensor_shapes().iter().map(|(_, shape)| shape.elements() as u64).sum();
    Load { max_context: 0, rows, parameters, stored: parameters * dtype.size() as u64 }
}

#[test]
fn activations_take_what_the_plan_says_serving_and_training() {
    for document in [dense(), moe()] {
        let config = ModelConfig::from_json(&document).unwrap();
        for (compute, dtype) in [(Compute::F32, Dtype::F32), (Compute::Bf16, Dtype::Bf16)] {
            let cpu = Cpu::new(2, None).unwrap();
            let device = Device::Cpu(cpu.clone());
            let model = Model::new(config.clone(), device.clone(), compute, 0).unwrap();
            let weights = Weights::random(&config, &device, dtype, 5, 0.05).unwrap();
            let pool = KvPool::new(&device, model.page_shape(), 1 << 30);
            let plan = MemoryPlan::new(&config, &device, compute, load(&config, dtype, ROWS)).unwrap();
            assert_eq!((plan.weights, plan.on_device, plan.device()), (weights.bytes(), false, None));
            assert_eq!(plan.kv_page, pool.shape().bytes() as u64);
            assert_eq!(plan.kv_page, 32 * plan.kv_per_token);

            let mut served = Activations::for_serving(&model).unwrap();
            assert_eq!(served.taken(), Activations::bytes(&device, &config, 0, None), "before the first rows");
            for n in [1, 16, 17, ROWS] {
                let mut kv = KvCache::new(&pool);
                forward(&model, &weights, &mut [Segment { ids: &ids(n), kv: &mut kv, adapter: None }], &mut served)
                    .unwrap();
                assert_eq!(served.taken(), Activations::bytes(&device, &config, n, None), "{n} rows");
            }
            assert_eq!(served.taken(), plan.activations);
            let rows: Vec<usize> = (0..64).collect();
            let rows = RowList::of(&device, &rows).unwrap();
            let taken = head(&model, &weights, &mut served, &rows).unwrap().taken();
            assert_eq!(taken, plan.head);
            let held = cpu.scratch_held();
            assert!(held > 0 && held <= plan.scratch, "{held} bytes of scratch, planned {}", plan.scratch);
            drop(served);
            assert_eq!(cpu.scratch_held(), 0, "nobody runs passes any more");

            // Several batches, so that experts get now more rows and now fewer.
            let mut gradients = Weights::zeros(&config).unwrap();
            for recompute in Recompute::ALL {
                let mut trained = Activations::recomputing(&model, recompute).unwrap();
                let mut scratch = BackwardScratch::new(&model).unwrap();
                let dhidden = squire::backend::Tensor::zeros(Dtype::F32, &[ROWS, config.hidden_size]).unwrap();
                for (n, seed) in [(30, 1), (ROWS, 7), (ROWS, 11), (ROWS, 13)] {
                    let ids: Vec<i32> = (0..n as i32).map(|i| i * i * seed % 200).collect();
                    let mut kv = KvCache::new(&pool);
                    forward(&model, &weights, &mut [Segment { ids: &ids, kv: &mut kv, adapter: None }], &mut trained)
                        .unwrap();
                    let span = 0..n;
                    let spans = std::slice::from_ref(&span);
                    let caches = std::slice::from_mut(&mut kv);
                    let facts = Passed { activations: &mut trained, caches, ids: &ids, spans, adapter: None };
                    backward(&model, &weights, &mut gradients, facts, &dhidden, &mut scratch).unwrap();
                    let planned = Activations::bytes(&device, &config, n.max(30), Some(recompute));
                    match config.moe {
                        None => assert_eq!(trained.taken(), planned),
                        Some(_) => assert!(trained.taken() <= planned, "{} bytes, planned {planned}", trained.taken()),
                    }
                    assert_eq!(scratch.taken(), BackwardScratch::bytes(&device, &config, n));
                }
                let training = plan.training;
                if recompute == Recompute::Nothing {
                    assert!(trained.taken() <= training.activations && trained.taken() > training.activations / 2);
                }
                assert!(trained.taken() <= training.activations, "{recompute:?} keeps less");
                assert_eq!(scratch.taken(), training.backward);
                assert_eq!(gradients.bytes(), training.gradients);
                assert!(cpu.scratch_held() <= training.scratch);
            }
        }
    }
}

/// The host shim, or the machine's first GPU; none in other builds.
fn gpu() -> Option<Cuda> {
    let opened = Cuda::open(&CudaOptions { no_pool: true, ..CudaOptions::default() }).ok();
    if opened.is_none() {
        eprintln!("skipped: no GPU and no host shim (feature shim)");
    }
    opened
}

#[test]
fn a_device_gives_what_the_plan_says_experts_included() {
    for document in [dense(), moe()] {
        let Some(cuda) = gpu() else { return };
        let (config, device) = (for_gpu(document), Device::Cuda(cuda.clone()));
        let plan = MemoryPlan::new(&config, &device, Compute::Bf16, load(&config, Dtype::Bf16, ROWS)).unwrap();
        assert!(plan.on_device);
        let mut before = cuda.held();
        let mut taken = || {
            let now = cuda.held();
            now - std::mem::replace(&mut before, now)
        };
        let model = Model::new(config.clone(), device.clone(), Compute::Bf16, 0).unwrap();
        assert_eq!(taken(), plan.rotary_table);
        let weights = Weights::random(&config, &device, Dtype::Bf16, 5, 0.05).unwrap();
        assert_eq!(taken(), plan.weights);
        let pool = KvPool::new(&device, model.page_shape(), 1 << 30);
        let mut kv = KvCache::new(&pool);
        let mut a = Activations::for_serving(&model).unwrap();
        forward(&model, &weights, &mut [Segment { ids: &ids(ROWS), kv: &mut kv, adapter: None }], &mut a).unwrap();
        let pages = (ROWS as u64).div_ceil(32) * plan.kv_page;
        assert_eq!(a.taken(), plan.activations);
        assert_eq!(taken(), plan.activations + a.batch.taken() + pages);
        drop((a, kv));
        taken();

        // A first decode step takes the attention and the facts of its plan, and eight rows of head.
        let (mut a, mut kv) = (Activations::for_serving(&model).unwrap(), KvCache::new(&pool));
        let draw = (Sampling { temperature: 0.8, top_k: 0, top_p: 1.0 }, 0.4);
        decode(&model, &weights, &mut [Segment { ids: &[7], kv: &mut kv, adapter: None }], &[draw.into()], &mut a)
            .unwrap();
        a.draws.take().unwrap();
        assert_eq!(a.batch.taken(), Batch::bytes(&device, Plan::of_decode(1, 1)));
        let rows = Activations::bytes(&device, &config, 1, None);
        assert_eq!(taken(), rows + Activations::head_bytes(&device, &config, 1) + plan.kv_page + plan.scratch);
        assert!(plan.device().unwrap() > plan.weights + plan.activations + plan.scratch);
    }
}
