//! Many sessions at once: who is served, what is freed, and what one caller does to the others.

#[path = "support/tiny_model.rs"]
#[allow(dead_code)] // other tests use the rest
mod tiny_model;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use squire::serve::{Cancel, Engine, EngineOptions, Generation, GenerationOptions, Next, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{dense, tiny};

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::default();
    change(&mut options);
    Engine::new(options).unwrap()
}

/// The tiny dense model with a context of 4,096 tokens.
fn long_model(engine: &Engine) -> ServedModel {
    let mut document = dense();
    document["max_position_embeddings"] = 4096.into();
    tiny(engine, &document, Dtype::Bf16, 3)
}

fn session_of(model: &ServedModel, n: usize) -> Session {
    let session = Session::new(model).unwrap();
    session.append(&(0..n).map(|i| (i * 7 % 301) as i32).collect::<Vec<_>>(), Source::Host).unwrap();
    session
}

fn endless() -> GenerationOptions {
    GenerationOptions { ignore_model_stops: true, ..GenerationOptions::default() }
}

/// Tokens that came since the last pull.
fn came(generation: &Generation) -> usize {
    match generation.next(Some(Duration::ZERO)).unwrap() {
        Next::Chunk(chunk) => chunk.ids.len(),
        _ => 0,
    }
}

/// Waits for something that another thread does soon.
fn comes_true(what: &str, is: impl Fn() -> bool) {
    let late = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < late, "{what} did not come about");
        std::thread::yield_now();
    }
}

#[test]
fn with_more_decoders_than_rows_all_advance_alike() {
    let engine = engine(|o| (o.caller_driven, o.max_batch_tokens, o.max_sessions) = (true, 7, 64));
    let model = long_model(&engine);
    let sessions: Vec<Session> = (0..40).map(|_| session_of(&model, 1)).collect();
    let running: Vec<Generation> = sessions.iter().map(|s| s.generate(endless()).unwrap()).collect();
    let mut counts = vec![0; sessions.len()];
    for _ in 0..60 {
        engine.step().unwrap();
        for (count, generation) in counts.iter_mut().zip(&running) {
            *count += came(generation);
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 1, "{counts:?}");
    }
    assert_eq!(counts.iter().sum::<usize>(), 60 * 7, "no row stood empty");
}

#[test]
fn few_rows_starve_neither_prompts_nor_decoders() {
    for rows in 1..=5 {
        let engine = engine(|o| (o.caller_driven, o.max_batch_tokens) = (true, rows));
        let model = long_model(&engine);
        let decoders: Vec<Session> = (0..6).map(|_| session_of(&model, 1)).collect();
        let running: Vec<Generation> = decoders.iter().map(|s| s.generate(endless()).unwrap()).collect();
        let prompt = session_of(&model, 12);
        let answer = prompt.generate(endless()).unwrap();
        let (mut first, mut others) = (0, 0);
        for _ in 0..80 {
            engine.step().unwrap();
            first += came(&answer);
            others += running.iter().map(came).sum::<usize>();
        }
        assert!(first > 0, "the prompt was never computed with {rows} rows");
        assert!(others >= 50, "those who decode came to {others} tokens in 80 steps of {rows} rows");
    }
}

#[test]
fn a_short_prompt_beside_a_long_one_is_computed_in_the_next_round() {
    let engine = engine(|o| (o.caller_driven, o.max_batch_tokens, o.prefill_slice) = (true, 64, None));
    let model = long_model(&engine);
    let (long, short) = (session_of(&model, 4000), session_of(&model, 8));
    let _long = long.generate(endless()).unwrap();
    engine.step().unwrap();
    let answer = short.generate(endless()).unwrap();
    engine.step().unwrap();
    assert_eq!(came(&answer), 1);
    assert_eq!(engine.metrics().rows, 2 * 64, "the long one got all rows that the short one left");
}

#[test]
fn a_released_models_memory_goes_without_another_round() {
    for caller_driven in [false, true] {
        let engine = engine(|o| o.caller_driven = caller_driven);
        let model = long_model(&engine);
        session_of(&model, 40).prefill(&Cancel::default()).unwrap();
        let gone = Arc::downgrade(model.model());
        drop(model);
        comes_true("the end of the model's scratch", || gone.strong_count() == 0);
    }
}

#[test]
fn nobody_who_looks_keeps_a_revision_from_being_published() {
    let engine = engine(|_| {});
    let model = long_model(&engine);
    let stop = Arc::new(AtomicBool::new(false));
    let looks: Vec<_> = (0..2)
        .map(|_| {
            let (model, stop) = (model.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(model.info()["revision"].as_u64().unwrap() > 0);
                    assert!(model.current().weights.bytes() > 0);
                }
            })
        })
        .collect();
    let next = || squire::model::Weights::random(model.config(), engine.device(), Dtype::Bf16, 5, 0.02).unwrap();
    let published: Vec<bool> = (0..200).map(|_| model.publish(next(), 1).is_ok()).collect();
    stop.store(true, Ordering::Relaxed);
    looks.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(published.iter().all(|&ok| ok), "{} of 200 were refused", published.iter().filter(|&&ok| !ok).count());
}

#[test]
fn a_prompt_that_nobody_wants_is_given_up_within_its_round() {
    // One layer of these rows takes a while; the whole round takes many.
    let document = serde_json::json!({
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 4096,
    });
    let engine = engine(|o| (o.max_batch_tokens, o.prefill_slice) = (4096, None));
    let config = squire::model::ModelConfig::from_json(&document).unwrap();
    let model = engine.random_model(config, Dtype::Bf16, 1, 0).unwrap();
    let session = Session::new(&model).unwrap();
    session.append(&vec![1; 4000], Source::Host).unwrap();
    let before = engine.metrics();
    let generation = session.generate(endless()).unwrap();
    // It has its pages, so that its round is the next thing or under way.
    comes_true("the round", || model.kv_pages() > 0);
    drop(generation);
    assert_eq!(session.extent().unwrap().pending, 4000, "the round of all rows did not come to its end");
    assert_eq!(engine.metrics().rows, before.rows);
    // What was given up left nothing behind.
    let short = session.fork().unwrap();
    short.truncate(30).unwrap();
    let fresh = Session::new(&model).unwrap();
    fresh.append(&[1; 30], Source::Host).unwrap();
    let given = [1, 2, 3, 4];
    let scores = |s: &Session| s.score(&given, 0, &Cancel::default()).unwrap();
    assert_eq!(scores(&short), scores(&fresh));
}
