//! How long one caller keeps the others waiting: cancel and release inside a long prompt at the shape of Qwen3-0.6B, and the
//! time between two tokens of four generations on a small model, alone, while an update is built, and while a long
//! prompt of another session is computed.
//!
//! `cargo bench --bench stalls` prints medians and tails; `-- --quick` runs each part once or twice. Random weights: times
//! do not depend on values.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use squire::distill::{Config, Distiller, EpisodeSpec};
use squire::model::ModelConfig;
use squire::random::{Stream, uniform};
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, Next, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

fn model(engine: &Engine, document: Value) -> ServedModel {
    let config = ModelConfig::from_json(&document).expect("the bench's own configuration");
    engine.random_model(config, Dtype::Bf16, 1, 0).expect("a model that fits memory")
}

/// The shape of Qwen3-0.6B.
fn big() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 8192, "tie_word_embeddings": true,
    })
}

/// A small student: 7.4 million parameters.
fn small() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 16_384, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
        "max_position_embeddings": 32_768, "tie_word_embeddings": true,
    })
}

fn prompt(n: usize) -> Vec<i32> {
    (0..n).map(|i| (i * 31 % 16_000) as i32).collect()
}

fn session(model: &ServedModel, n: usize) -> Session {
    let session = Session::new(model).expect("a session");
    session.append(&prompt(n), Source::Host).expect("a prompt that fits");
    session
}

fn endless() -> GenerationOptions {
    GenerationOptions { ignore_model_stops: true, ..GenerationOptions::default() }
}

/// Prints the middle and the tails of times, in milliseconds.
fn tell(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e3;
    let (n, p50, p95, p99, most) = (times.len(), at(0.5), at(0.95), at(0.99), at(1.0));
    println!("{what}: p50 {p50:.2} ms, p95 {p95:.2} ms, p99 {p99:.2} ms, most {most:.2} ms ({n} times)");
}

fn cancel_and_release(trials: u64) {
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let model = model(&engine, big());
    // Weights are touched once, so that no trial pays for it.
    session(&model, 32).prefill(&Cancel::default()).expect("a short prompt");
    let (mut cancels, mut releases, mut idles, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for trial in 0..trials {
        let wait = Duration::from_secs_f64(0.2 + 1.3 * uniform(Stream::World, &[trial]) as f64);
        let long = session(&model, 4096);
        let generation = long.generate(endless()).expect("it starts");
        std::thread::sleep(wait);
        let begun = Instant::now();
        generation.cancel();
        while !matches!(generation.next(None), Ok(Next::End(_)) | Err(_)) {}
        cancels.push(begun.elapsed().as_secs_f64());
        drop(generation);
        let long = session(&model, 4096);
        let generation = long.generate(endless()).expect("it starts");
        std::thread::sleep(wait);
        let begun = Instant::now();
        drop(generation);
        releases.push(begun.elapsed().as_secs_f64());
        long.len().expect("idle");
        idles.push(begun.elapsed().as_secs_f64());
        // A short question of somebody else's, while a long prompt is under way.
        let long = session(&model, 4096);
        let generation = long.generate(endless()).expect("it starts");
        std::thread::sleep(wait);
        let short = session(&model, 8);
        let begun = Instant::now();
        let answer = short.generate(endless()).expect("it starts");
        answer.next(None).expect("a token");
        others.push(begun.elapsed().as_secs_f64());
        drop((answer, generation));
    }
    tell("cancel inside a prompt of 4,096 tokens, until its end is told", cancels);
    tell("release inside a prompt of 4,096 tokens, until it returns", releases);
    tell("the same, until the session is idle", idles);
    tell("first token of 8 while a prompt of 4,096 tokens is computed", others);
    let begun = Instant::now();
    session(&model, 1024).prefill(&Cancel::default()).expect("a prompt");
    println!("a prompt of 1,024 tokens alone: {:.0} tokens a second", 1024.0 / begun.elapsed().as_secs_f64());
}

/// Times between tokens of four generations until `over` says so.
fn between_tokens(model: &ServedModel, over: &AtomicBool) -> Vec<f64> {
    let times = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let session = session(model, 16);
                let generation = session.generate(endless()).expect("it starts");
                let (mut own, mut last): (Vec<f64>, Option<Instant>) = (Vec::new(), None);
                while !over.load(Ordering::Relaxed) {
                    let Ok(Next::Chunk(chunk)) = generation.next(None) else { break };
                    let now = Instant::now();
                    // Tokens that came together came at once.
                    own.extend(last.map(|last| (now - last).as_secs_f64()));
                    own.extend(std::iter::repeat_n(0.0, chunk.ids.len() - 1));
                    last = Some(now);
                }
                times.lock().expect("nobody panics").extend(own);
            });
        }
    });
    times.into_inner().expect("nobody panics")
}

fn while_it(model: &ServedModel, what: &str, work: impl FnOnce() + Send) {
    let over = Arc::new(AtomicBool::new(false));
    let times = std::thread::scope(|scope| {
        let tokens = scope.spawn(|| between_tokens(model, &over));
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        work();
        let took = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        println!("{what}: {:.2} s", took.as_secs_f64());
        tokens.join().expect("nobody panics")
    });
    tell(&format!("between two tokens of four generations, {what}"), times);
}

fn stalls(repeats: usize) {
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let (student, teacher) = (model(&engine, small()), model(&engine, small()));
    while_it(&student, "alone", || std::thread::sleep(Duration::from_secs(3)));
    while_it(&student, "while a prompt of 20,000 tokens is computed", || {
        for _ in 0..repeats {
            session(&student, 20_000).prefill(&Cancel::default()).expect("a prompt");
        }
    });
    let settings = json!({"preset": "opd", "steps": 1000, "batch_episodes": 8});
    let distiller = Distiller::new(&student, Some(&teacher), Config::from_value(&settings).expect("settings"))
        .expect("a distiller");
    for _ in 0..8 * repeats {
        let episode = distiller.begin(EpisodeSpec::default()).expect("an episode");
        episode.observe_ids(&prompt(400)).expect("an observation");
        episode.decide().expect("a decision");
        let options = GenerationOptions { max_tokens: 120, ..endless() };
        episode.act(&options).expect("it acts").collect().expect("an action");
        episode.outcome(None, true).expect("an outcome");
        episode.end(1.0, Some(true)).expect("an end");
    }
    while_it(&student, "while an update of 8 episodes of 520 tokens is built", || {
        for _ in 0..repeats {
            let update = distiller.build(0, &Cancel::default(), &mut |_, _| true).expect("an update");
            drop(update);
        }
    });
}

fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    stalls(if quick { 1 } else { 3 });
    cancel_and_release(if quick { 2 } else { 20 });
}
