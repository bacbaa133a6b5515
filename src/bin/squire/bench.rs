//! `squire bench`: tokens a second of a model of a given shape with random weights.
//!
//! Speed does not depend on the values, so no weights need to be at hand. Prefill is one prompt from an
//! empty session to its first sampled token; decode is that many tokens sampled one by one from a session
//! of one token. Sampling is part of both, at temperature 1 without cuts. Medians over the repeats, after
//! an untimed one. Decoding reads all weights for each token, so its ceiling is the machine's read
//! bandwidth (`bandwidth`), and the share of it that is reached says how much is left to gain.
//!
//! Two other ways to measure stand beside it: as llama-bench does (`llama`), and an agent's transcript that grows (`replay`).
#![forbid(unsafe_code)]

mod bed;
mod llama;
mod replay;

use std::time::Instant;

use serde_json::json;
use squire::model::ModelConfig;
use squire::random::{Stream, below};
use squire::serve::{GenerationOptions, ServedModel, Session};
use squire::text::source::Source;

use crate::bandwidth::measure;
use crate::options::EngineArgs;
use crate::output::{Failure, Output, bytes};
use crate::shapes::shape;
use crate::waiting::Waiting;
use bed::Bed;

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
    /// Measure as llama-bench does, in its columns: the forward pass with logits and without sampling, at several depths
    #[arg(long, conflicts_with = "replay")]
    llama_bench: bool,
    /// With --llama-bench: tokens that stand in the KV cache before what is timed
    #[arg(short, long, value_name = "N,N", value_delimiter = ',', default_values_t = [0, 4096, 16_384], requires = "llama_bench",
        value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    depths: Vec<u32>,
    /// Measure the time to the first token of each turn of a transcript that grows, as an agent's does
    #[arg(long)]
    replay: bool,
    /// With --replay: turns
    #[arg(long, value_name = "N", default_value_t = 20, requires = "replay", value_parser = clap::value_parser!(u32).range(2..=1000))]
    turns: u32,
    /// With --replay: tokens that a turn observes
    #[arg(long, value_name = "N", default_value_t = 40, requires = "replay", value_parser = clap::value_parser!(u32).range(1..=32_768))]
    observed: u32,
    /// With --replay: tokens that a turn generates
    #[arg(long, value_name = "N", default_value_t = 20, requires = "replay", value_parser = clap::value_parser!(u32).range(1..=32_768))]
    generated: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
    match (args.llama_bench, args.replay) {
        (true, _) => llama::run(args, out),
        (_, true) => replay::run(args, out),
        _ => whole(args, out),
    }
}

/// Prefill and decode as whole generations.
fn whole(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let (name, config) = &args.shape;
    let bed = Bed::make(&args.shape, &args.engine, args.prefill.max(args.decode) as usize + 1)?;
    let (n_threads, kernels) = (bed.n_threads, bed.kernels);
    let waiting = Waiting::begin("measuring the read bandwidth");
    let bandwidth = measure(n_threads, bed.free)?;
    drop(waiting);
    let model = bed.model()?;
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
        let mut facts = bed.facts(&model);
        let measured = json!({
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
        });
        facts.extend(measured.as_object().cloned().unwrap_or_default());
        return out.json(&facts.into());
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
