//! How long an update takes: from the end of a batch's episodes, with the teacher's pass, to the step applied.
//!
//! `cargo bench --bench training -- SHAPE EPISODESxTOKENS COMPUTE [STEPS [RECOMPUTE [KL]]]` prints the seconds of each step, one a
//! line, and at last the resident memory with the models loaded, what it grew by at its peak, and what was planned for an
//! update. STEPS 0 takes one step for each line of the standard input, so that `benches/peers/training.py` can take turns with
//! it. SHAPE is one of [`shape`]'s; COMPUTE f32 or bf16; RECOMPUTE a word of the
//! settings, or any; KL the tokens on which a step's is measured. Random weights: times do not depend on values.

use std::io::BufRead;
use std::time::Instant;

use serde_json::{Value, json};
use squire::backend::Compute;
use squire::backend::page::PAGE;
use squire::distill::{Config, Distiller, EpisodeSpec, Replay};
use squire::model::activations::Recompute;
use squire::model::plan::{TrainingLoad, TrainingPlan};
use squire::model::{Adapter, ModelConfig};
use squire::serve::{Cancel, Engine, EngineOptions, ServedModel};
use squire::tensor::Dtype;

const ATTENTION: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];
/// Ids of an episode that are shown and not learnt.
const SHOWN: usize = 16;

/// A configuration, and what is trained of it: everything by the reverse KL to a teacher of the same shape, or an adapter on
/// the last quarter of an episode's tokens.
fn shape(name: &str) -> Option<(Value, Value)> {
    let dense = json!({
        "model_type": "qwen3", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "max_position_embeddings": 16_384, "tie_word_embeddings": true,
    });
    let lora = |n_layers: usize| {
        json!({
            "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": n_layers, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 16_384, "tie_word_embeddings": true,
        })
    };
    let moe = json!({
        "model_type": "qwen3_moe", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "max_position_embeddings": 16_384, "tie_word_embeddings": true, "num_experts": 16, "num_experts_per_tok": 4,
        "moe_intermediate_size": 384, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
    });
    let (by_kl, by_adapter) = (
        json!({"preset": "sft", "replay_turns": {"kernel": "reverse-kl"}}),
        json!({"preset": "sft", "lora": {"rank": 16, "alpha": 32}}),
    );
    match name {
        "dense" => Some((dense, by_kl)),
        "moe" => Some((moe, by_kl)),
        "dense-lora" => Some((dense, by_adapter)),
        "moe-lora" => Some((moe, json!({"preset": "sft", "lora": {"rank": 16, "alpha": 32, "targets": ATTENTION}}))),
        "lora" => Some((lora(8), by_adapter)),
        "qwen3-0.6b-lora" => Some((lora(28), by_adapter)),
        _ => None,
    }
}

struct Asked {
    episodes: usize,
    tokens: usize,
    compute: Compute,
    steps: usize,
}

fn read(arguments: &[String]) -> Option<(Value, Value, Asked)> {
    let [name, batch, compute, rest @ ..] = arguments else { return None };
    const LEAST: usize = SHOWN + 4;
    let (model, settings) = shape(name)?;
    let (episodes, tokens) = batch.split_once('x')?;
    let compute = match compute.as_str() {
        "f32" => Compute::F32,
        "bf16" => Compute::Bf16,
        _ => return None,
    };
    let (episodes, tokens) = (episodes.parse().ok()?, tokens.parse().ok()?);
    if episodes == 0 || tokens < LEAST {
        return None;
    }
    let steps = rest.first().map_or(Some(3), |n| n.parse().ok())?;
    let mut settings = settings;
    settings["recompute"] = rest.get(1).filter(|name| *name != "any").map_or(Value::Null, |name| json!(name));
    if let Some(tokens) = rest.get(2) {
        settings["update_kl_tokens"] = json!(tokens.parse::<u64>().ok()?);
    }
    Some((model, settings, Asked { episodes, tokens, compute, steps }))
}

/// Ends a batch of episodes, and gives the seconds from there to the step applied.
fn step(distiller: &Distiller, asked: &Asked, learnt: usize, vocabulary: usize) -> f64 {
    let id = |i: usize| (i * 31 % vocabulary.min(8000)) as i32;
    let episodes: Vec<_> = (0..asked.episodes)
        .map(|e| {
            let episode = distiller.begin(EpisodeSpec::default()).expect("an episode");
            let ids: Vec<i32> = (0..asked.tokens).map(|i| id(i + 7 * e)).collect();
            let (shown, said) = ids.split_at(asked.tokens - learnt);
            episode.observe_ids(shown).expect("an observation");
            episode.decide().expect("a decision");
            episode.replay(Replay::Ids(said)).expect("an action");
            episode.outcome(None, true).expect("an outcome");
            episode
        })
        .collect();
    let begun = Instant::now();
    for episode in episodes {
        episode.end(1.0, Some(true)).expect("an end");
    }
    let mut update = distiller.build(0, &Cancel::default(), &mut |_, _| true).expect("an update");
    distiller.apply(&mut update).expect("a step");
    let seconds = begun.elapsed().as_secs_f64();
    distiller.publish_anyway().expect("a revision");
    seconds
}

/// Memory that is resident (VmRSS), or was at most (VmHWM), in MiB, where Linux tells.
fn resident(which: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(which))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib >> 10)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if arguments.iter().any(|a| a == "--list") {
        return;
    }
    let Some((document, mut settings, asked)) = read(&arguments) else {
        println!(
            "usage: cargo bench --bench training -- SHAPE EPISODESxTOKENS f32|bf16 [STEPS [nothing|feed-forward|layer|any [KL]]]"
        );
        return;
    };
    settings["batch_episodes"] = json!(asked.episodes);
    settings["steps"] = json!(1_000_000);
    let engine = Engine::new(EngineOptions { compute: asked.compute, n_threads: 2, ..EngineOptions::default() })
        .expect("an engine");
    let model = |seed| -> ServedModel {
        let config = ModelConfig::from_json(&document).expect("the bench's own configuration");
        engine.random_model(config, Dtype::Bf16, seed, asked.tokens + 1).expect("a model that fits memory")
    };
    let by_adapter = settings.get("lora").is_some();
    let teacher = (!by_adapter).then(|| model(2));
    let student = model(1);
    let loaded = resident("VmRSS:");
    let config = Config::from_value(&settings).expect("settings");
    let distiller = Distiller::new(&student, teacher.as_ref(), config).expect("a distiller");
    let learnt = if by_adapter { asked.tokens / 4 } else { asked.tokens - SHOWN };
    let vocabulary = student.config().vocab_size;
    let one = || println!("{:.4}", step(&distiller, &asked, learnt, vocabulary));
    match asked.steps {
        0 => std::io::stdin().lock().lines().for_each(|_| one()),
        n => (0..n).for_each(|_| one()),
    }
    let fed = asked.tokens - 1;
    let lora = distiller.config().lora.as_ref();
    let parameters = match lora {
        Some(lora) => Adapter::parameters_of(student.config(), &lora.of(student.config()).expect("the bench's own")),
        None => student.current().weights.n_parameters(),
    };
    // As many episodes as fit go by at once.
    let at_once = (distiller.config().micro_tokens as usize / fed).clamp(1, asked.episodes);
    let load = TrainingLoad {
        rows: at_once * fed,
        pages: at_once * fed.div_ceil(PAGE),
        parameters,
        stored: 2 * parameters,
        rank: lora.map_or(0, |lora| lora.rank),
        recompute: distiller.config().recompute.unwrap_or(Recompute::Nothing),
        teacher: teacher.as_ref().map(|t| (t.config().hidden_size, t.config().vocab_size)),
    };
    let plan = TrainingPlan::new(student.config(), engine.device(), asked.compute, load).total() >> 20;
    if let (Some(loaded), Some(peak)) = (loaded, resident("VmHWM:")) {
        println!("loaded {loaded} MiB, peak {} MiB beyond, planned {plan} MiB", peak - loaded);
    }
}
