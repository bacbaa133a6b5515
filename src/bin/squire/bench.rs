//! `squire bench`: tokens a second of a model of a given shape with random weights.
//!
//! Speed does not depend on the values, so no weights need to be at hand. Prefill is one prompt from an
//! empty session to its first sampled token; decode is that many tokens sampled one by one from a session
//! of one token. Sampling is part of both, at temperature 1 without cuts. Medians over the repeats, after
//! an untimed one. Decoding reads all weights for each token, so its ceiling is the machine's read
//! bandwidth (`bandwidth`), and the share of it that is reached says how much is left to gain.
#![forbid(unsafe_code)]

use std::time::Instant;

use serde_json::json;
use squire::backend::Device;
use squire::model::{Load, MemoryPlan, ModelConfig};
use squire::random::{Stream, below};
use squire::serve::{Engine, GenerationOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

use crate::bandwidth::{free_memory, measure};
use crate::options::EngineArgs;
use crate::output::{Failure, Output, bytes};
use crate::shapes::shape;
use crate::waiting::Waiting;

/// Measure prefill and decode on random weights of a true shape
#[derive(clap::Args)]
pub struct Args {
    /// tiny, qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b or qwen3-30b-a3b
    #[arg(long, value_name = "NAME", default_value = "qwen3-0.6b", value_parser = shape)]
    shape: (&'static str, ModelConfig),
    #[command(flatten)]
    engine: EngineArgs,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=32_768))]
    prefill: u32,
    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=32_768))]
    decode: u32,
    /// Timed runs of each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Bytes that the bench will hold at once: what serving takes of bf16 weights, and the KV cache of one timeline.
fn bytes_needed(config: &ModelConfig, context: usize, engine: &Engine) -> squire::error::Result<u64> {
    let options = engine.options();
    let parameters = config.tensor_shapes().iter().map(|(_, s)| s.elements() as u64).sum();
    let load = Load { max_context: context, rows: options.max_batch_tokens, parameters, stored: 2 * parameters };
    let plan = MemoryPlan::new(config, engine.device(), options.compute, load)?;
    Ok(plan.serving() + plan.kv_session() + plan.kv_page)
}

/// Bytes of the experts that one token does not see.
fn idle_expert_bytes(config: &ModelConfig) -> u64 {
    let Some(moe) = &config.moe else { return 0 };
    let n_layers = (0..config.n_layers).filter(|&l| config.is_moe_layer(l)).count();
    let idle = n_layers * (moe.n_experts - moe.n_experts_per_token);
    2 * (idle * 3 * config.hidden_size * moe.expert_intermediate_size) as u64
}

/// A session of `n` random ids.
fn prompted(model: &ServedModel, n: u32) -> Result<Session, Failure> {
    let vocab = model.config().vocab_size as u64;
    let ids: Vec<i32> = (0..u64::from(n)).map(|i| below(Stream::World, &[i], vocab) as i32).collect();
    let session = Session::new(model)?;
    session.append(&ids, Source::Host)?;
    Ok(session)
}

/// Tokens a second of `n_tokens` that a generation of `n_sampled` tokens after `n_given` stands for.
fn rate(model: &ServedModel, n_given: u32, n_sampled: u32, n_tokens: u32) -> Result<f64, Failure> {
    let session = prompted(model, n_given)?;
    let options =
        GenerationOptions { max_tokens: n_sampled as usize, ignore_model_stops: true, ..GenerationOptions::default() };
    let begun = Instant::now();
    session.generate(options)?.collect()?;
    Ok(f64::from(n_tokens) / begun.elapsed().as_secs_f64())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n % 2 == 1 { sorted[n / 2] } else { (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0 }
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let (name, config) = &args.shape;
    let engine = Engine::new(args.engine.engine()?)?;
    let context = args.prefill.max(args.decode) as usize + 1;
    let (needed, free) = (bytes_needed(config, context, &engine)?, free_memory());
    if let Some(free) = free.filter(|&free| free < needed) {
        let why = format!("shape {name} needs {needed} bytes ({}), {free} are free ({})", bytes(needed), bytes(free));
        return Err(Failure::Failed(why));
    }
    let Device::Cpu(cpu) = engine.device() else {
        return Err(Failure::Failed("squire bench measures the processor; use --backend cpu".into()));
    };
    let (n_threads, kernels) = (cpu.n_threads(), cpu.kernels());
    let waiting = Waiting::begin("measuring the read bandwidth");
    let bandwidth = measure(n_threads, free)?;
    drop(waiting);
    let waiting = Waiting::begin(format!("making random weights of {name}"));
    let model = engine.random_model(config.clone(), Dtype::Bf16, 1, context)?;
    drop(waiting);
    let waiting = Waiting::begin("prefill");
    let mut prefill = Vec::new();
    for i in 0..=args.repeats {
        let rate = rate(&model, args.prefill, 1, args.prefill)?;
        if i > 0 {
            prefill.push(rate);
        }
    }
    drop(waiting);
    let waiting = Waiting::begin("decode");
    rate(&model, 1, args.decode.min(8), args.decode)?;
    let decode = (0..args.repeats).map(|_| rate(&model, 1, args.decode, args.decode)).collect::<Result<Vec<_>, _>>()?;
    drop(waiting);

    let weights = &model.current().weights;
    let (parameters, weight_bytes) = (weights.n_parameters(), weights.bytes());
    let bytes_per_token = (weights.bytes_per_pass() - idle_expert_bytes(config)) as f64;
    let (prefill_rate, decode_rate) = (median(&prefill), median(&decode));
    let share = decode_rate * bytes_per_token / bandwidth.bytes_per_s;
    if args.json {
        return out.json(&json!({
            "shape": name,
            "parameters": parameters,
            "weight_bytes": weight_bytes,
            "compute": args.engine.compute.name(),
            "kernels": kernels.name(),
            "threads": n_threads,
            "prefill_tokens": args.prefill,
            "prefill_tokens_per_s": prefill_rate,
            "prefill_repeats": prefill,
            "decode_tokens": args.decode,
            "decode_tokens_per_s": decode_rate,
            "decode_repeats": decode,
            "decode_bytes_per_token": bytes_per_token,
            "read_bandwidth_bytes_per_s": bandwidth.bytes_per_s,
            "read_bandwidth_buffer_bytes": bandwidth.buffer_bytes,
            "decode_bandwidth_share": share,
        }));
    }
    let model_line = format!("{name}, {parameters} parameters, {} of bf16", bytes(weight_bytes));
    let engine_line = format!("{n_threads} threads, {kernels}, compute {}", args.engine.compute.name());
    let spread = |rates: &[f64]| {
        let (low, high) = rates.iter().fold((f64::INFINITY, 0f64), |(l, h), &r| (l.min(r), h.max(r)));
        format!("{:.1} tokens/s (median of {}, {low:.1} to {high:.1})", median(rates), rates.len())
    };
    let per_s = |x: f64| format!("{:.1} GB/s", x / 1e9);
    let reads =
        format!("{} of {}, {:.0} %", per_s(decode_rate * bytes_per_token), per_s(bandwidth.bytes_per_s), 100.0 * share);
    let facts = [
        ("shape".to_string(), model_line),
        ("engine".to_string(), engine_line),
        (format!("prefill {}", args.prefill), spread(&prefill)),
        (format!("decode {}", args.decode), spread(&decode)),
        ("decode reads".to_string(), reads),
    ];
    out.facts("bench", &facts.iter().map(|(name, value)| (name.as_str(), value.clone())).collect::<Vec<_>>())
}
