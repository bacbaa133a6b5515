//! What a host with agents feels, at the shape of Qwen3-0.6B: sessions that decode together, a chat that grows by turns, opening a
//! folder, resident memory, decode behind a long context; and what the interface costs where the model costs nothing.
//!
//! `cargo bench --bench serving` prints one line a figure; `-- --quick` runs each part once with little. Names of parts after `--` run
//! those alone: together, chat, open, depth, interface. Random weights: times do not depend on values. `benches/peers/llama_cpp.py`
//! has the same parts.

use std::time::Instant;

use serde_json::{Value, json};
use squire::backend::ops::Sampling;
use squire::model::ModelConfig;
use squire::random::{Stream, below};
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

/// The shape of Qwen3-0.6B.
fn shape() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 32_768, "tie_word_embeddings": true,
    })
}

/// A model that costs next to nothing.
fn empty() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32_768,
    })
}

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::default();
    change(&mut options);
    Engine::new(options).expect("an engine")
}

fn model(engine: &Engine, document: &Value) -> ServedModel {
    let config = ModelConfig::from_json(document).expect("the bench's own configuration");
    engine.random_model(config, Dtype::Bf16, 1, 0).expect("a model that fits memory")
}

fn ids(seed: u64, n: usize) -> Vec<i32> {
    (0..n as u64).map(|i| below(Stream::World, &[seed, i], 150_000) as i32).collect()
}

fn session(model: &ServedModel, ids: &[i32]) -> Session {
    let session = Session::new(model).expect("a session");
    session.append(ids, Source::Host).expect("ids that fit");
    session
}

fn greedy(n: usize) -> GenerationOptions {
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    GenerationOptions { max_tokens: n, sampling, ignore_model_stops: true, ..GenerationOptions::default() }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Tokens a second of so many sessions that decode together.
fn together(model: &ServedModel, n: usize, tokens: usize) -> f64 {
    let sessions: Vec<Session> = (0..n).map(|i| session(model, &ids(i as u64, 8))).collect();
    sessions.iter().for_each(|session| session.prefill(&Cancel::default()).expect("a short prompt"));
    let begun = Instant::now();
    let running: Vec<_> = sessions.iter().map(|session| session.generate(greedy(tokens)).expect("it starts")).collect();
    running.iter().for_each(|generation| drop(generation.collect().expect("it ends")));
    (n * tokens) as f64 / begun.elapsed().as_secs_f64()
}

/// Seconds of each turn of a chat that grows: 40 tokens observed, 20 generated.
fn chat(model: &ServedModel, turns: usize) -> Vec<f64> {
    let session = Session::new(model).expect("a session");
    (0..turns)
        .map(|turn| {
            let begun = Instant::now();
            session.append(&ids(turn as u64, 40), Source::Host).expect("ids that fit");
            session.generate(greedy(20)).expect("it starts").collect().expect("it ends");
            begun.elapsed().as_secs_f64()
        })
        .collect()
}

/// Tokens a second behind so many.
fn at_depth(model: &ServedModel, depth: usize, tokens: usize) -> f64 {
    let session = session(model, &ids(5, depth));
    session.prefill(&Cancel::default()).expect("a prompt that fits");
    session.generate(greedy(1)).expect("it starts").collect().expect("it ends");
    let begun = Instant::now();
    session.generate(greedy(tokens)).expect("it starts").collect().expect("it ends");
    tokens as f64 / begun.elapsed().as_secs_f64()
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Microseconds a token of a model that costs nothing, in generations of 64 tokens behind three.
fn interface(generations: usize, caller_driven: bool) -> f64 {
    let engine = engine(|o| (o.caller_driven, o.n_threads) = (caller_driven, 1));
    let model = model(&engine, &empty());
    let session = Session::new(&model).expect("a session");
    session.append(&[1, 2, 3], Source::Host).expect("ids that fit");
    let mut took = 0.0;
    for _ in 0..generations {
        session.truncate(3).expect("a session at rest");
        let generation = session.generate(greedy(64)).expect("it starts");
        let begun = Instant::now();
        let mut came = 0;
        while let Ok(squire::serve::Next::Chunk(chunk)) = generation.next(None) {
            came += chunk.ids.len();
        }
        took += begun.elapsed().as_secs_f64();
        assert_eq!(came, 64);
    }
    took * 1e6 / (64 * generations) as f64
}

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    let parts: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let say = |line: Value| println!("{line}");
    let (repeats, tokens) = if quick { (1, 4) } else { (5, 64) };
    if wants("interface") {
        let n = if quick { 2 } else { 200 };
        for caller_driven in [true, false] {
            let all = (0..repeats).map(|_| interface(n, caller_driven)).collect();
            say(json!({"part": "interface", "caller_driven": caller_driven, "us_per_token": median(all)}));
        }
    }
    let engine = engine(|_| {});
    if wants("open") {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model");
        model(&engine, &shape()).save(&path).expect("a model that is written");
        let open = || {
            let begun = Instant::now();
            let loaded = engine.load(&path, Default::default()).expect("it loads");
            (begun.elapsed().as_secs_f64(), loaded)
        };
        let all = (0..repeats).map(|_| open().0).collect();
        let before = resident();
        let (_, loaded) = open();
        together(&loaded, 1, 8);
        let weights = loaded.current().weights.bytes();
        let kv = (loaded.kv_pages() * loaded.model().page_shape().bytes()) as u64;
        say(json!({
            "part": "open", "seconds": median(all), "resident_bytes": resident(), "resident_before": before,
            "weight_bytes": weights, "kv_bytes": kv,
        }));
    }
    if !["together", "chat", "depth"].into_iter().any(wants) {
        return;
    }
    let model = model(&engine, &shape());
    together(&model, 1, 4);
    if wants("together") {
        // In turn, since the machine's speed moves.
        let pairs: Vec<(f64, f64)> =
            (0..repeats).map(|_| (together(&model, 1, tokens), together(&model, 8, tokens))).collect();
        let (one, eight) = (pairs.iter().map(|p| p.0).collect(), pairs.iter().map(|p| p.1).collect());
        let ratio = pairs.iter().map(|p| p.1 / p.0).collect();
        say(json!({"part": "together", "one": median(one), "eight": median(eight), "ratio": median(ratio)}));
    }
    if wants("chat") {
        let chats: Vec<Vec<f64>> = (0..repeats).map(|_| chat(&model, if quick { 3 } else { 20 })).collect();
        let of = |turn: usize| median(chats.iter().map(|chat| chat[turn]).collect());
        let last = chats[0].len() - 1;
        let ratio = median(chats.iter().map(|chat| chat[last] / chat[1]).collect());
        say(json!({"part": "chat", "turn_2_s": of(1), "last_turn_s": of(last), "turns": last + 1, "ratio": ratio}));
    }
    if wants("depth") {
        for depth in if quick { vec![64] } else { vec![1, 4096, 16_384] } {
            say(json!({"part": "depth", "depth": depth, "tokens_per_s": at_depth(&model, depth, tokens)}));
        }
    }
}
