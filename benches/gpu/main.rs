//! Decode, prefill and what the card itself can do, in one table: `cargo bench --bench gpu`, or the built binary alone.
//!
//! Weights are random, made on the device: latency does not depend on values. Every line stands for itself, so a run that
//! is cut short has said what it knows; `--only NAME` runs one model, `--tiny` models that the host shim can run.

use std::time::Instant;

use serde_json::json;
use squire::backend::batch::BatchSegment;
use squire::backend::cuda::{Buffer, Cuda, CudaOptions, KernelArgs, Launch};
use squire::backend::ops::{self, Sampling};
use squire::backend::{Batch, Compute, Device, Tensor};
use squire::error::Result;
use squire::model::forward::{Segment, decode, forward};
use squire::model::{Activations, KvCache, KvPool, Model, ModelConfig, Weights};
use squire::random::{Stream, uniform};
use squire::tensor::Dtype;

const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];
const CONTEXTS: [usize; 3] = [512, 2048, 8192];
/// Rows of one prefill pass.
const CHUNK: usize = 1024;
/// Timings of which the median counts.
const ROUNDS: usize = 5;

/// A Qwen3 shape: name, hidden, layers, query and key heads, intermediate, tied, experts.
type Shape = (&'static str, usize, usize, usize, usize, usize, bool, usize);

const SHAPES: [Shape; 5] = [
    ("0.6B", 1024, 28, 16, 8, 3072, true, 0),
    ("1.7B", 2048, 28, 16, 8, 6144, true, 0),
    ("4B", 2560, 36, 32, 8, 9728, true, 0),
    ("8B", 4096, 36, 32, 8, 12288, false, 0),
    ("30B-A3B", 2048, 48, 32, 4, 6144, false, 128),
];

fn config((_, hidden, layers, heads, kv_heads, ffn, tied, experts): Shape, tiny: bool) -> ModelConfig {
    let mut document = json!({
        "model_type": if experts > 0 { "qwen3_moe" } else { "qwen3" },
        "vocab_size": if tiny { 256 } else { 151_936 },
        "hidden_size": if tiny { 64 } else { hidden },
        "intermediate_size": if tiny { 96 } else { ffn },
        "num_hidden_layers": if tiny { 2 } else { layers },
        "num_attention_heads": if tiny { heads / kv_heads } else { heads },
        "num_key_value_heads": if tiny { 1 } else { kv_heads },
        "head_dim": if tiny { 32 } else { 128 },
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": tied,
    });
    if experts > 0 {
        document["num_experts"] = json!(if tiny { 8 } else { experts });
        document["num_experts_per_tok"] = json!(if tiny { 2 } else { 8 });
        document["moe_intermediate_size"] = json!(if tiny { 32 } else { 768 });
        document["norm_topk_prob"] = json!(true);
        document["decoder_sparse_step"] = json!(1);
        document["mlp_only_layers"] = json!([]);
    }
    ModelConfig::from_json(&document).expect("the shapes are whole")
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ReadArgs {
    from: u64,
    to: u64,
    n: u64,
}
// SAFETY: the struct of kernels/measure.cu.
unsafe impl KernelArgs for ReadArgs {}

#[repr(C)]
#[derive(Clone, Copy)]
struct NothingArgs {
    counter: u64,
}
// SAFETY: the struct of kernels/measure.cu.
unsafe impl KernelArgs for NothingArgs {}

/// Microseconds of what `run` launches, by the device's own clock.
fn device_us(cuda: &Cuda, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let api = cuda.api();
    let (from, to) = (api.event()?, api.event()?);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        api.record(from)?;
        run()?;
        api.record(to)?;
        api.wait(to)?;
        times.push(f64::from(api.elapsed_us(from, to)?));
    }
    cuda.check()?;
    api.drop_event(from);
    api.drop_event(to);
    Ok(median(times))
}

/// Bytes a second of a stream of reads, from a buffer far larger than any cache.
fn read_bandwidth(cuda: &Cuda, tiny: bool) -> Result<f64> {
    let bytes = if tiny { 1 << 16 } else { 4usize << 30 };
    let (from, to) = (cuda.allocate(bytes)?, cuda.allocate(1 << 16)?);
    // SAFETY: the buffer has as many bytes.
    unsafe { cuda.api().fill(from.address(), 0x3c, bytes)? };
    let mut best = 0.0f64;
    for blocks_per_sm in [1, 2, 4] {
        let blocks = cuda.facts().n_sms * blocks_per_sm;
        let args = ReadArgs { from: from.address(), to: to.address(), n: bytes as u64 / 16 };
        let us = device_us(cuda, || {
            cuda.launch(Launch::new("squire_measure_read", [blocks, 1, 1], 512, 0), &args);
            Ok(())
        })?;
        println!("read {blocks_per_sm} blocks an SM: {:.0} GB/s", bytes as f64 / us / 1e3);
        best = best.max(bytes as f64 / us * 1e6);
    }
    Ok(best)
}

/// Microseconds from one empty kernel to the next inside a graph.
fn graph_gap(cuda: &Cuda, counter: &Buffer) -> Result<f64> {
    const KERNELS: usize = 200;
    let api = cuda.api();
    api.begin_capture()?;
    for _ in 0..KERNELS {
        let args = NothingArgs { counter: counter.address() };
        cuda.launch(Launch::new("squire_measure_nothing", [1, 1, 1], 32, 0), &args);
    }
    let graph = api.end_capture()?;
    // SAFETY: the counter lives until the graph is dropped.
    let us = device_us(cuda, || unsafe { api.replay(graph) })?;
    api.drop_graph(graph);
    Ok(us / KERNELS as f64)
}

struct Bench {
    device: Device,
    model: Model,
    weights: Weights,
    bandwidth: f64,
    name: &'static str,
    /// steps of one timing, and timings
    steps: usize,
    rounds: usize,
}

/// A cache that says it holds `n` positions; what they hold is whatever the pages' memory was filled with.
fn filled(pool: &std::sync::Arc<KvPool>, n: usize, cuda: &Cuda) -> Result<KvCache> {
    let mut kv = KvCache::new(pool);
    kv.reserve(n)?;
    for page in kv.pages() {
        let elements = page.elements();
        // SAFETY: the page is as long.
        unsafe { cuda.api().fill(elements.address(), 0x3c, elements.n_bytes())? };
    }
    kv.advance(n);
    Ok(kv)
}

impl Bench {
    /// Microseconds a step of decode, the host running one step ahead as the engine does.
    fn decode(&self, cuda: &Cuda, batch: usize, context: usize) -> Result<f64> {
        let pool = KvPool::new(&self.device, self.model.page_shape(), u64::MAX);
        let first = context.saturating_sub(self.steps * (self.rounds + 1) + 1).max(1);
        let mut caches = (0..batch).map(|_| filled(&pool, first, cuda)).collect::<Result<Vec<_>>>()?;
        let mut activations = Activations::for_serving(&self.model)?;
        let draws = vec![(Sampling { temperature: 0.7, top_k: 20, top_p: 0.95 }, 0.3).into(); batch];
        let mut ids: Vec<i32> = vec![1; batch];
        let mut times = Vec::new();
        for round in 0..=self.rounds {
            cuda.finish()?;
            let start = Instant::now();
            for step in 0..self.steps {
                let segments = caches.iter_mut().zip(&ids);
                let mut segments: Vec<Segment> =
                    segments.map(|(kv, id)| Segment { ids: std::slice::from_ref(id), kv, adapter: None }).collect();
                decode(&self.model, &self.weights, &mut segments, &draws, &mut activations)?;
                if step > 0 {
                    activations.draws.take()?;
                }
                ids = (0..batch as i32).map(|row| -1 - row).collect();
            }
            activations.draws.take()?;
            // The first round records the graph.
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e6 / self.steps as f64);
            }
        }
        Ok(median(times))
    }

    /// Bytes that a decode step reads: weights, and the keys and values of every row.
    fn bytes(&self, batch: usize, context: usize) -> f64 {
        let c = &self.model.config;
        let kv = 4 * c.n_layers * c.n_kv_heads * c.head_dim * context * batch;
        let weights = match &c.moe {
            None => self.weights.bytes_per_pass() as f64,
            Some(moe) => {
                let expert = 2.0 * (3 * c.hidden_size * moe.expert_intermediate_size) as f64;
                let (n, k) = (moe.n_experts as f64, moe.n_experts_per_token as f64);
                // The expected number of distinct experts of `batch` rows.
                let distinct = n * (1.0 - (1.0 - k / n).powi(batch as i32));
                self.weights.bytes_per_pass() as f64 - c.n_layers as f64 * expert * (n - distinct)
            }
        };
        weights + kv as f64
    }

    /// Tokens a second of prefill.
    fn prefill(&self, cuda: &Cuda, n: usize) -> Result<f64> {
        let pool = KvPool::new(&self.device, self.model.page_shape(), u64::MAX);
        let mut activations = Activations::for_serving(&self.model)?;
        let ids: Vec<i32> = (0..n).map(|i| ((i * 7919) % self.model.config.vocab_size) as i32).collect();
        let mut times = Vec::new();
        for round in 0..=self.rounds.min(3) {
            let mut kv = KvCache::new(&pool);
            cuda.finish()?;
            let start = Instant::now();
            for chunk in ids.chunks(CHUNK) {
                forward(
                    &self.model,
                    &self.weights,
                    &mut [Segment { ids: chunk, kv: &mut kv, adapter: None }],
                    &mut activations,
                )?;
            }
            cuda.finish()?;
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(n as f64 / median(times))
    }

    /// Microseconds of drawing one token, by the device's clock; logits are spread as a model's are.
    fn sampler(&self, cuda: &Cuda, sampling: Sampling) -> Result<f64> {
        let (c, v) = (self.model.config.hidden_size, self.model.config.vocab_size);
        let mut head = ops::Head::new(&self.device, 1, c, v)?;
        let mut logits = Tensor::zeros(Dtype::F32, &[1, v])?;
        for (i, x) in logits.f32_mut().iter_mut().enumerate() {
            let u = |key| f64::from(uniform(Stream::World, &[key, i as u64])).max(1e-9);
            // Normal with deviation 3, by Box and Muller.
            *x = 3.0 * ((-2.0 * u(1).ln()).sqrt() * (std::f64::consts::TAU * u(2)).cos()) as f32;
        }
        head.logits = logits.to_device(&self.device)?;
        if let Some(stats) = &mut head.stats {
            ops::logit_stats(&self.device, stats, &head.logits, 1);
        }
        let pool = KvPool::new(&self.device, self.model.page_shape(), u64::MAX);
        let mut kv = KvCache::new(&pool);
        kv.reserve(1)?;
        let (mut batch, mut draws) = (Batch::default(), ops::Draws::new(&self.device)?);
        let row = BatchSegment { ids: &[1], start: 0, pages: kv.pages() };
        batch.set(&self.device, &[row], &[(sampling, 0.3).into()], self.model.heads())?;
        device_us(cuda, || {
            ops::sample_rows(&self.device, &mut draws, &head, &[(sampling, 0.3).into()], &batch)?;
            Ok(())
        })
    }

    fn run(&self, cuda: &Cuda, batches: &[usize], contexts: &[usize]) -> Result<()> {
        for &context in contexts {
            for &batch in batches {
                match self.decode(cuda, batch, context) {
                    Ok(us) => {
                        let share = 100.0 * self.bytes(batch, context) / (us / 1e6) / self.bandwidth;
                        println!(
                            "decode {:8} batch {batch:2} context {context:5}: {us:9.1} us a step, {share:5.1} % of reads",
                            self.name
                        );
                    }
                    Err(e) => println!("decode {:8} batch {batch:2} context {context:5}: {e}", self.name),
                }
            }
        }
        for (name, temperature, top_k, top_p) in
            [("greedy", 0.0, 0, 1.0), ("temperature 0.7", 0.7, 0, 1.0), ("top-k 20, top-p 0.95", 0.7, 20, 0.95)]
        {
            let us = self.sampler(cuda, Sampling { temperature, top_k, top_p })?;
            println!("sampler {:7} {name}: {us:.1} us", self.name);
        }
        for &n in contexts {
            println!("prefill {:7} {n:5} tokens: {:9.0} tokens a second", self.name, self.prefill(cuda, n)?);
        }
        Ok(())
    }
}

fn run(tiny: bool, only: Option<&str>) -> Result<()> {
    let cuda = match Cuda::open(&CudaOptions::default()) {
        Ok(cuda) => cuda,
        Err(e) => {
            println!("skipped: {e}");
            return Ok(());
        }
    };
    let facts = cuda.facts();
    println!("{}, capability {}, driver {}, {} SMs", facts.name, facts.capability, facts.driver, facts.n_sms);
    let bandwidth = read_bandwidth(&cuda, tiny)?;
    println!("read bandwidth: {:.0} GB/s", bandwidth / 1e9);
    for no_overlap in [true, false] {
        let own = Cuda::open(&CudaOptions { no_overlap, ..CudaOptions::default() })?;
        let counter = own.allocate(4)?;
        // SAFETY: four bytes are there.
        unsafe { own.api().fill(counter.address(), 0, 4)? };
        println!("graph gap, overlap {}: {:.2} us", !no_overlap, graph_gap(&own, &counter)?);
    }
    let (batches, contexts): (&[usize], &[usize]) = if tiny { (&[1, 3], &[100]) } else { (&BATCHES, &CONTEXTS) };
    for shape in SHAPES.into_iter().filter(|s| only.is_none_or(|name| name == s.0)) {
        let config = config(shape, tiny);
        let device = Device::Cuda(cuda.clone());
        let model = Model::new(config.clone(), device.clone(), Compute::Bf16, 0)?;
        let weights = Weights::random(&config, &device, Dtype::Bf16, 1, 0.02)?;
        let (steps, rounds) = if tiny { (2, 1) } else { (40, ROUNDS) };
        let mut bench = Bench { device, model, weights, bandwidth, name: shape.0, steps, rounds };
        bench.run(&cuda, batches, contexts)?;
        drop(bench.weights);
        // Stage 1: the same graph, launched plainly.
        let plain = Cuda::open(&CudaOptions { no_overlap: true, ..CudaOptions::default() })?;
        bench.device = Device::Cuda(plain.clone());
        bench.model = Model::new(config.clone(), bench.device.clone(), Compute::Bf16, 0)?;
        bench.weights = Weights::random(&config, &bench.device, Dtype::Bf16, 1, 0.02)?;
        let us = bench.decode(&plain, 1, contexts[0])?;
        println!("decode {:8} batch  1 context {:5}: {us:9.1} us a step without overlap", bench.name, contexts[0]);
    }
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let only = args.iter().position(|a| a == "--only").and_then(|i| args.get(i + 1)).map(String::as_str);
    if let Err(e) = run(args.iter().any(|a| a == "--tiny"), only) {
        eprintln!("{e}");
        std::process::exit(1);
    }
}
