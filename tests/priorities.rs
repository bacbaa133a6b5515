//! Priorities, bounds of waiting, and what work is told to be: waiting, running or preempted.

#[path = "support/tiny_model.rs"]
#[allow(dead_code)] // other tests use the rest
mod tiny_model;

use std::time::Duration;

use squire::backend::page::PAGE;
use squire::error::Fault;
use squire::random::{Stream, below};
use squire::serve::{Engine, EngineOptions, Finish, Generation, GenerationOptions, Next, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{dense, tiny};

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions { caller_driven: true, ..EngineOptions::default() };
    change(&mut options);
    Engine::new(options).unwrap()
}

/// The tiny dense model of one layer and head, with room for a long prompt.
fn long_model(engine: &Engine) -> ServedModel {
    let mut document = dense();
    document["max_position_embeddings"] = 24_000.into();
    for one in ["num_hidden_layers", "num_attention_heads", "num_key_value_heads"] {
        document[one] = 1.into();
    }
    tiny(engine, &document, Dtype::Bf16, 3)
}

fn session_of(model: &ServedModel, seed: u64, n: usize) -> Session {
    let session = Session::new(model).unwrap();
    let ids: Vec<i32> = (0..n as u64).map(|i| below(Stream::World, &[seed, i], 301) as i32).collect();
    session.append(&ids, Source::Host).unwrap();
    session
}

fn at(priority: i32, max_tokens: usize) -> GenerationOptions {
    GenerationOptions { priority, max_tokens, seed: 4, ignore_model_stops: true, ..GenerationOptions::default() }
}

/// Tokens that came since the last pull.
fn came(generation: &Generation) -> usize {
    match generation.next(Some(Duration::ZERO)).unwrap() {
        Next::Chunk(chunk) => chunk.ids.len(),
        _ => 0,
    }
}

/// Jobs that wait, run and were preempted.
fn jobs(engine: &Engine) -> [u64; 3] {
    let metrics = engine.metrics();
    [metrics.jobs_waiting, metrics.jobs_running, metrics.jobs_preempted]
}

/// What a session comes to alone.
fn alone(document: &serde_json::Value, seed: u64, n: usize, max_tokens: usize) -> Vec<i32> {
    let model = tiny(&engine(|_| {}), document, Dtype::Bf16, 3);
    session_of(&model, seed, n).generate(at(0, max_tokens)).unwrap().collect().unwrap().0.ids
}

#[test]
fn a_higher_priority_takes_the_pages_of_a_lower_one_which_comes_through_later() {
    let page = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 3).model().page_shape().bytes() as u64;
    let engine = engine(|o| (o.kv_budget, o.prefill_slice) = (5 * page, None));
    let model = tiny(&engine, &dense(), Dtype::Bf16, 3);
    // Both came before; only one of them is below.
    let (low, same) = (session_of(&model, 1, 3 * PAGE - 9), session_of(&model, 2, PAGE));
    let lower = low.generate(at(-1, 20)).unwrap();
    let older = same.generate(at(0, 8)).unwrap();
    engine.step().unwrap();
    assert_eq!(jobs(&engine), [0, 2, 0]);
    let high = session_of(&model, 3, 2 * PAGE - 3);
    let higher = high.generate(at(7, 20)).unwrap();
    engine.step().unwrap();
    assert_eq!(jobs(&engine), [0, 2, 1], "one of three gave way");
    assert_eq!((low.model().kv_pages(), engine.metrics().preempted), (4, 1));
    let collected = |generation: Generation| {
        let (chunk, finish) = generation.collect().unwrap();
        assert_eq!(finish, Finish::Length);
        chunk.ids
    };
    assert_eq!(collected(higher), alone(&dense(), 3, 2 * PAGE - 3, 20));
    assert_eq!(collected(older), alone(&dense(), 2, PAGE, 8));
    assert_eq!(collected(lower), alone(&dense(), 1, 3 * PAGE - 9, 20));
    assert_eq!(jobs(&engine), [0, 0, 0]);
}

#[test]
fn work_that_has_never_run_is_waiting() {
    let page = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 3).model().page_shape().bytes() as u64;
    let engine = engine(|o| o.kv_budget = 3 * page);
    let model = tiny(&engine, &dense(), Dtype::Bf16, 3);
    let (first, second) = (session_of(&model, 1, 2 * PAGE), session_of(&model, 2, 2 * PAGE));
    let runs = first.generate(at(0, 4)).unwrap();
    let waits = second.generate(at(0, 4)).unwrap();
    engine.step().unwrap();
    assert_eq!(jobs(&engine), [1, 1, 0]);
    drop(waits);
    assert_eq!(jobs(&engine), [0, 1, 0], "what is let go of waits no more");
    runs.collect().unwrap();
    assert_eq!(jobs(&engine), [0, 0, 0]);
}

#[test]
fn a_higher_priority_is_computed_first_and_what_is_below_is_not_starved() {
    let engine = engine(|o| (o.max_batch_tokens, o.prefill_slice) = (64, None));
    let model = long_model(&engine);
    let (low, high) = (session_of(&model, 1, 480), session_of(&model, 2, 480));
    let (below, above) = (low.generate(at(0, 1)).unwrap(), high.generate(at(1, 1)).unwrap());
    let mut steps = [0, 0];
    for step in 1..40 {
        engine.step().unwrap();
        for (steps, generation) in steps.iter_mut().zip([&above, &below]) {
            *steps = if came(generation) == 1 { step } else { *steps };
        }
    }
    // 48 of 64 rows are the higher one's: 10 rounds; the lower one has 160 rows by then, and then all of them.
    assert_eq!(steps, [10, 15]);
}

#[test]
fn a_long_prompt_beside_a_hundred_who_decode_comes_through_and_holds_none_of_them_up() {
    let engine = engine(|o| o.prefill_slice = None);
    let model = long_model(&engine);
    let decoders: Vec<Session> = (0..100).map(|i| session_of(&model, i, 2)).collect();
    let running: Vec<Generation> = decoders.iter().map(|s| s.generate(at(0, 0)).unwrap()).collect();
    engine.step().unwrap();
    running.iter().for_each(|generation| assert_eq!(came(generation), 1));
    let long = session_of(&model, 200, 20_000);
    let answer = long.generate(at(0, 1)).unwrap();
    // 412 of 512 rows are the prompt's.
    let bound = 20_000usize.div_ceil(512 - 100);
    let mut rounds = 0;
    while came(&answer) == 0 {
        engine.step().unwrap();
        rounds += 1;
        assert!(rounds <= bound, "more than {bound} rounds");
        running.iter().for_each(|generation| assert_eq!(came(generation), 1, "a round without a token for each"));
    }
    assert_eq!(rounds, bound);
}

#[test]
fn with_a_slice_too_the_long_prompt_comes_through_and_a_short_one_beside_it_in_as_many_rounds_as_it_has_rows() {
    // A slice of nothing: the least that a pace may allow.
    let engine = engine(|o| o.prefill_slice = Some(Duration::from_nanos(1)));
    let model = long_model(&engine);
    let decoder = session_of(&model, 1, 2);
    let running = decoder.generate(at(0, 0)).unwrap();
    let long = session_of(&model, 2, 20_000);
    let answer = long.generate(at(0, 1)).unwrap();
    for _ in 0..40 {
        engine.step().unwrap();
        assert_eq!(came(&running), 1);
    }
    let short = session_of(&model, 3, 20);
    let soon = short.generate(at(0, 1)).unwrap();
    let mut rounds = 0;
    while came(&soon) == 0 {
        engine.step().unwrap();
        rounds += 1;
        assert!(rounds <= 2 * 20, "with one row a round for both it has every other one");
    }
    // The long one is not at its end, and goes on.
    assert_eq!(came(&answer), 0);
    drop(answer);
    let computed = long.n_computed().unwrap();
    assert!(computed >= 40, "the long prompt came to {computed} rows");
}

#[test]
fn priorities_out_of_range_are_refused_by_name() {
    let model = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 3);
    let session = session_of(&model, 1, 4);
    for priority in [-101, 101, i32::MIN, i32::MAX] {
        let refused = session.generate(at(priority, 1)).err().unwrap();
        assert_eq!(refused.fault(), Fault::BadOption);
        let wanted = format!("priority: wanted a number from -100 to 100, found {priority}");
        assert_eq!(refused.message(), wanted);
    }
    for priority in [-100, 100] {
        assert_eq!(session.generate(at(priority, 1)).unwrap().collect().unwrap().0.ids.len(), 1);
    }
}
