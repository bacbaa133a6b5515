//! What adapters cost in serving: eight sessions with eight different adapters beside eight on the base, and one beside one,
//! at the shape of Qwen3-0.6B in bf16, rank 16 on all seven projections.
//!
//! `cargo bench --bench adapters` prints tokens a second, the two in turn so that both meet the same machine; `-- --quick` takes
//! few tokens. Random weights: times do not depend on values.

use std::time::Instant;

use serde_json::json;
use squire::backend::{Tensor, ops};
use squire::model::{Adapter, Lora, ModelConfig};
use squire::serve::{Engine, EngineOptions, Generation, GenerationOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

const RANK: usize = 16;

fn model(engine: &Engine) -> ServedModel {
    let config = ModelConfig::from_json(&json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 8192, "tie_word_embeddings": true,
    }));
    let config = config.expect("the bench's own configuration");
    engine.random_model(config, Dtype::Bf16, 1, 0).expect("a model that fits memory")
}

fn adapter(model: &ServedModel, seed: u64) -> Adapter {
    let lora = Lora { rank: RANK, alpha: 32.0, rslora: false, targets: Vec::new() };
    let mut number = 0;
    let random = |_, _, _, extents: [usize; 2]| {
        number += 1;
        let mut tensor = Tensor::zeros(Dtype::Bf16, &extents)?;
        ops::fill_random(&model.model().device, &mut tensor, seed, number, 0.02);
        Ok(tensor)
    };
    Adapter::build(model.config(), &lora, random).expect("an adapter that fits memory")
}

/// Tokens a second of as many sessions as there are names, `n` tokens each.
fn rate(model: &ServedModel, names: &[Option<String>], n: usize) -> f64 {
    let options = GenerationOptions { max_tokens: n, ignore_model_stops: true, ..GenerationOptions::default() };
    let sessions: Vec<Session> = names
        .iter()
        .map(|name| {
            let session = match name {
                None => Session::new(model),
                Some(name) => Session::with_adapter(model, name),
            };
            let session = session.expect("a session");
            session.append(&[1, 2, 3], Source::Host).expect("a prompt that fits");
            session
        })
        .collect();
    let begun = Instant::now();
    let running: Vec<Generation> =
        sessions.iter().map(|s| s.generate(options.clone()).expect("a generation")).collect();
    running.into_iter().for_each(|g| drop(g.collect().expect("tokens")));
    (names.len() * n) as f64 / begun.elapsed().as_secs_f64()
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    let (n, repeats) = if quick { (4, 1) } else { (32, 7) };
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let model = model(&engine);
    let names: Vec<Option<String>> = (0..8).map(|i| Some(format!("adapter {i}"))).collect();
    for (seed, name) in (0..).zip(names.iter().flatten()) {
        model.add_adapter(name, adapter(&model, seed)).expect("an adapter of the model");
    }
    for n_sessions in [8, 1] {
        let (base, adapted) = (vec![None; n_sessions], &names[..n_sessions]);
        rate(&model, adapted, 2);
        let pairs: Vec<(f64, f64)> = (0..repeats).map(|_| (rate(&model, &base, n), rate(&model, adapted, n))).collect();
        let (base, adapted): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        let loss = median(pairs.iter().map(|(base, adapted)| 100.0 * (1.0 - adapted / base)).collect());
        println!(
            "{n_sessions} sessions: {:.1} tokens/s on the base, {:.1} on {n_sessions} different adapters of rank {RANK}: {loss:.1} % \
             fewer (medians of {repeats})",
            median(base),
            median(adapted),
        );
    }
}
