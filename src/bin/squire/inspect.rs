//! `squire inspect`: what a model folder holds, and the memory that serving it takes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use squire::format::{ModelDir, StoredTensor, within_folder};
use squire::model::ModelConfig;
use squire::serve::{Documents, Engine, EngineOptions, LoadOptions, StopId, stop_ids_json};
use squire::tensor::{Dtype, Shape};
use squire::text::tokenizer::Tokenizer;

use crate::output::{Failure, Output, bytes, or};
use crate::waiting::Waiting;

/// Show what a model folder holds and the memory it needs
#[derive(clap::Args)]
pub struct Args {
    /// The model folder
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Tensors that differ only in their layer or expert.
struct Group {
    /// the name, `*` for layer and expert
    name: String,
    dtype: Dtype,
    shape: Shape,
    tensors: usize,
    bytes: u64,
}

/// Groups of the tensors that the model uses, in the order of the forward pass.
fn groups(config: &ModelConfig, tensors: &BTreeMap<String, StoredTensor>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut at: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for (name, _) in config.tensor_shapes() {
        let Some(t) = tensors.get(&name) else { continue };
        let parts = name.split('.').map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { "*" } else { part });
        let pattern = parts.collect::<Vec<_>>().join(".");
        let key = (pattern.clone(), t.dtype.to_string(), t.shape.to_string());
        let i = *at.entry(key).or_insert_with(|| {
            groups.push(Group { name: pattern, dtype: t.dtype, shape: t.shape, tensors: 0, bytes: 0 });
            groups.len() - 1
        });
        groups[i].tensors += 1;
        groups[i].bytes += t.bytes.len() as u64;
    }
    groups
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let waiting = Waiting::begin("reading the folder");
    // The engine only plans: it needs neither threads nor a loop of its own.
    let engine = Engine::new(EngineOptions { n_threads: 1, caller_driven: true, ..EngineOptions::default() })?;
    let plan = engine.plan(&args.dir, LoadOptions::default())?;
    let within = |e| within_folder(e, &args.dir);
    let mut dir = ModelDir::open(&args.dir).map_err(within)?;
    let config = ModelConfig::of_folder(&mut dir).map_err(within)?;
    let Documents { tokenizer, stop_ids, .. } = Documents::read(&mut dir, config.vocab_size).map_err(within)?;
    let defaults = dir.generation_defaults();
    let templates = &dir.chat_templates.by_name;
    let groups = groups(&config, &dir.tensors);
    drop(waiting);

    if args.json {
        let group = |g: &Group| {
            json!({
                "name": g.name, "tensors": g.tensors, "dtype": g.dtype.to_string(), "shape": g.shape.extents(),
                "bytes": g.bytes,
            })
        };
        return out.json(&json!({
            "folder": args.dir.display().to_string(),
            "config": config.to_json(),
            "tensors": groups.iter().map(group).collect::<Vec<_>>(),
            "tokenizer": tokenizer.as_ref().map(|t| json!({"ids": t.n_ids(), "fingerprint": fingerprint(t)})),
            "chat_templates": templates.iter().map(|(name, text)| (name.clone(), json!({"bytes": text.len()}))).collect::<Map<_, _>>(),
            "generation_defaults": {
                "temperature": defaults.temperature, "top_k": defaults.top_k, "top_p": defaults.top_p,
                "min_p": defaults.min_p, "typical_p": defaults.typical_p,
                "repetition_penalty": defaults.repetition_penalty, "presence_penalty": defaults.presence_penalty,
                "frequency_penalty": defaults.frequency_penalty,
                "no_repeat_ngram_size": defaults.no_repeat_ngram_size,
                "logit_bias": defaults.logit_bias, "stop_strings": defaults.stop_strings,
            },
            "stop_ids": stop_ids.iter().map(|stop| stop.id).collect::<Vec<_>>(),
            "stop_ids_from": stop_ids_json(&stop_ids, tokenizer.as_ref()),
            "warnings": dir.warnings,
            "plan": plan,
        }));
    }

    let count = |n: usize| n.to_string();
    let mut facts = vec![
        ("architecture", plain(&config.to_json()["model_type"])),
        ("vocabulary", count(config.vocab_size)),
        ("hidden", count(config.hidden_size)),
        ("layers", count(config.n_layers)),
        ("heads / kv heads x size", format!("{} / {} x {}", config.n_heads, config.n_kv_heads, config.head_dim)),
        ("feed-forward", count(config.intermediate_size)),
    ];
    if let Some(moe) = &config.moe {
        let (n, k, f) = (moe.n_experts, moe.n_experts_per_token, moe.expert_intermediate_size);
        facts.push(("experts", format!("{n}, {k} a token, feed-forward {f}")));
    }
    let rope = match &config.rope.scaling {
        None => format!("theta {}", config.rope.theta),
        Some(scaling) => format!("theta {}, {}", config.rope.theta, scaling.describe()),
    };
    facts.push(("rope", rope));
    facts.push(("output projection", if config.tied { "the embedding" } else { "its own" }.into()));
    out.facts("model", &facts)?;

    out.text("tensors\n")?;
    let mut table = vec![["name", "count", "dtype", "bytes", "shape"].map(String::from).to_vec()];
    table.extend(
        groups
            .iter()
            .map(|g| vec![g.name.clone(), count(g.tensors), g.dtype.to_string(), bytes(g.bytes), g.shape.to_string()]),
    );
    out.table(&table)?;

    let tokenizer = tokenizer.map(|t| format!("{} ids, fingerprint {}", t.n_ids(), fingerprint(&t)));
    let template = (!templates.is_empty()).then(|| {
        templates.iter().map(|(name, text)| format!("{name}, {} bytes", text.len())).collect::<Vec<_>>().join("; ")
    });
    let mut sampling = format!(
        "temperature {}, top-k {}, top-p {}",
        or(defaults.temperature, "-"),
        or(defaults.top_k, "-"),
        or(defaults.top_p, "-")
    );
    for (name, value) in [
        ("min-p", defaults.min_p.map(f64::from)),
        ("typical-p", defaults.typical_p.map(f64::from)),
        ("repetition penalty", defaults.repetition_penalty.map(f64::from)),
        ("presence penalty", defaults.presence_penalty.map(f64::from)),
        ("frequency penalty", defaults.frequency_penalty.map(f64::from)),
        ("no-repeat n-gram", defaults.no_repeat_ngram_size.map(f64::from)),
    ] {
        sampling.extend(value.map(|value| format!(", {name} {}", value as f32)));
    }
    if !defaults.logit_bias.is_empty() {
        sampling += &format!(", {} biased ids", defaults.logit_bias.len());
    }
    if !defaults.stop_strings.is_empty() {
        sampling += &format!(", stops at {:?}", defaults.stop_strings);
    }
    let stop = |stop: &StopId| format!("{} ({})", stop.id, stop.from.join(", "));
    let stops: Vec<String> = stop_ids.iter().map(stop).collect();
    let stops = if stops.is_empty() { "none".into() } else { stops.join("; ") };
    let text = [
        ("tokenizer", or(tokenizer, "none")),
        ("chat template", or(template, "none")),
        ("generation defaults", sampling),
        ("stop ids", stops),
    ];
    out.facts("text", &text)?;

    if !dir.warnings.is_empty() {
        out.text("warnings\n")?;
        for warning in &dir.warnings {
            out.text(&format!("  {warning}\n"))?;
        }
    }

    let number = |key: &str| plan[key].as_u64().unwrap_or(0);
    let size = |key: &str| bytes(number(key));
    let memory = [
        ("parameters", number("parameters").to_string()),
        ("weights, mapped from the files", size("weight_bytes")),
        ("KV cache of a token", size("kv_bytes_per_token")),
        (
            "KV cache of a full session",
            format!("{} ({} tokens)", size("kv_bytes_per_full_session"), number("max_context")),
        ),
        ("KV budget", size("kv_budget")),
        ("activations", size("activation_bytes")),
        ("logits", size("logit_bytes")),
        ("training, in all", size("training_bytes")),
    ];
    out.facts("memory", &memory)
}

fn fingerprint(tokenizer: &Tokenizer) -> String {
    format!("{:016x}", tokenizer.fingerprint())
}

/// A value as people read it: text without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}
