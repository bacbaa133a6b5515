//! Models of an engine through the public interface: revisions, folders written and read again, budgets.

#[path = "support/folders.rs"]
#[allow(dead_code)] // other tests use the rest
mod folders;
#[path = "support/tiny_model.rs"]
mod tiny_model;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use squire::backend::Compute;
use squire::backend::page::PAGE;
use squire::error::{Error, Fault};
use squire::model::{ModelConfig, Weights};
use squire::random::{Stream, below};
use squire::serve::{
    Cancel, Engine, EngineOptions, Finish, GenerationOptions, LoadOptions, Next, ServedModel, Session,
};
use squire::tensor::Dtype;
use squire::text::source::Source;
use squire::text::{RenderOptions, Watch};
use tiny_model::{dense, moe, tiny};

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::default();
    change(&mut options);
    Engine::new(options).unwrap()
}

fn ids(seed: u64, n: usize) -> Vec<i32> {
    (0..n as u64).map(|i| below(Stream::World, &[seed, i], 301) as i32).collect()
}

fn session_of(model: &ServedModel, ids: &[i32]) -> Session {
    let session = Session::new(model).unwrap();
    session.append(ids, Source::Host).unwrap();
    session
}

fn generate(session: &Session, max_tokens: usize) -> Result<(Vec<i32>, Vec<u32>, u64), Error> {
    let options = GenerationOptions { max_tokens, seed: 4, ..GenerationOptions::default() };
    let (chunk, _) = session.generate(options)?.collect()?;
    Ok((chunk.ids, chunk.logprobs.iter().map(|x| x.to_bits()).collect(), chunk.revision))
}

fn fault<T>(result: Result<T, Error>) -> Fault {
    match result {
        Ok(_) => panic!("a refusal was expected"),
        Err(e) => e.fault(),
    }
}

fn weights(model: &ServedModel, dtype: Dtype, seed: u64) -> Weights {
    Weights::random(model.config(), model.engine().device(), dtype, seed, 0.2).unwrap()
}

/// Bits of all log-probs of all ids at each of 40 positions.
fn distributions(model: &ServedModel) -> Vec<Vec<(i32, u32)>> {
    let rows = session_of(model, &[1]).score(&ids(3, 40), 301, &Cancel::default()).unwrap();
    rows.into_iter().map(|r| r.top.into_iter().map(|(id, p)| (id, p.to_bits())).collect()).collect()
}

#[test]
fn a_session_keeps_its_revision_until_it_is_rebased() {
    let model = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let [first, second] = [1, 2].map(|seed| tiny(model.engine(), &dense(), Dtype::Bf16, seed));
    let wanted = [&first, &second].map(|m| generate(&session_of(m, &ids(1, 40)), 20).unwrap());
    assert_ne!(wanted[0].0, wanted[1].0);
    let old = session_of(&model, &ids(1, 40));
    assert_eq!(generate(&old, 20).unwrap(), wanted[0]);
    assert_eq!(model.publish(weights(&model, Dtype::Bf16, 2), 2).unwrap(), 2);
    let new = session_of(&model, &ids(1, 40));
    assert_eq!((old.revision().number, new.revision().number, model.n_revisions_alive()), (1, 2, 2));
    for session in [&old, &new, &old.fork().unwrap()] {
        session.truncate(40).unwrap();
        let number = session.revision().number;
        let (ids, logprobs, revision) = generate(session, 20).unwrap();
        let (wanted_ids, wanted_logprobs, _) = &wanted[number as usize - 1];
        assert_eq!((&ids, &logprobs, revision), (wanted_ids, wanted_logprobs, number));
        assert!(session.tokens().unwrap()[40..].iter().all(|t| t.revision == number));
    }
    old.truncate(40).unwrap();
    assert_eq!((old.rebase().unwrap(), model.n_revisions_alive()), (2, 1), "nobody uses the first any more");
    assert_eq!(generate(&old, 20).unwrap().1, wanted[1].1, "what the first had computed is computed again");
}

#[test]
fn sessions_of_two_revisions_run_side_by_side() {
    let engine = engine(|o| (o.caller_driven, o.prefill_slice) = (true, None));
    let model = tiny(&engine, &dense(), Dtype::Bf16, 1);
    let old = session_of(&model, &ids(1, 40));
    model.publish(weights(&model, Dtype::Bf16, 2), 2).unwrap();
    let new = session_of(&model, &ids(1, 40));
    let options = GenerationOptions { max_tokens: 20, seed: 4, ..GenerationOptions::default() };
    let running = [&old, &new].map(|s| s.generate(options.clone()).unwrap());
    while engine.step().unwrap() {}
    assert_eq!(engine.metrics().rounds, 40, "one round a revision");
    let together = running.map(|g| g.collect().unwrap().0.logprobs);
    for (session, logprobs) in [&old, &new].into_iter().zip(together) {
        session.truncate(40).unwrap();
        let alone: Vec<f32> = generate(session, 20).unwrap().1.into_iter().map(f32::from_bits).collect();
        assert_eq!(alone, logprobs);
    }
}

#[test]
fn publishing_beyond_the_limit_is_refused_until_older_sessions_end() {
    let model = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let first = Session::new(&model).unwrap();
    assert_eq!(model.publish(weights(&model, Dtype::Bf16, 2), 2).unwrap(), 2);
    let second = Session::new(&model).unwrap();
    assert_eq!(fault(model.publish(weights(&model, Dtype::Bf16, 3), 2)), Fault::HostBudget);
    assert_eq!((model.current().number, model.n_revisions_alive()), (2, 2), "a refusal changes nothing");
    drop(first);
    assert_eq!(model.publish(weights(&model, Dtype::Bf16, 3), 2).unwrap(), 3);
    drop(second);
    // The one that is replaced goes, so a limit of one is enough where no session holds it.
    for number in 4..8 {
        assert_eq!(model.publish(weights(&model, Dtype::Bf16, 3), 1).unwrap(), number);
        assert_eq!(model.n_revisions_alive(), 1);
    }
}

#[test]
fn weights_of_another_model_are_refused() {
    let engine = engine(|_| {});
    let model = tiny(&engine, &dense(), Dtype::Bf16, 1);
    let other = tiny(&engine, &moe(), Dtype::Bf16, 1);
    assert_eq!(fault(model.publish(weights(&other, Dtype::Bf16, 1), 9)), Fault::TensorShape);
    assert_eq!(model.current().number, 1);
}

#[test]
fn a_saved_model_loads_with_the_same_bits() {
    for (document, dtype) in [(dense(), Dtype::Bf16), (dense(), Dtype::F16), (moe(), Dtype::F32), (moe(), Dtype::Bf16)]
    {
        for compute in [Compute::Bf16, Compute::F32] {
            let engine = engine(|o| o.compute = compute);
            let model = tiny(&engine, &document, dtype, 1);
            model.publish(weights(&model, dtype, 2), 2).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model");
            model.save(&path).unwrap();
            let wanted = distributions(&model);
            for copy in [false, true] {
                let loaded = engine.load(&path, LoadOptions { copy, ..LoadOptions::default() }).unwrap();
                assert_eq!(
                    loaded.config(),
                    &ModelConfig { stored_dtype: loaded.config().stored_dtype, ..model.config().clone() }
                );
                assert_eq!(loaded.current().weights.embedding.dense().dtype(), dtype);
                assert!(distributions(&loaded) == wanted, "{dtype} {} copy {copy}", compute.name());
            }
        }
    }
}

#[test]
fn a_models_own_stop_ids_end_a_generation_unless_they_are_ignored() {
    let engine = engine(|_| {});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    tiny(&engine, &dense(), Dtype::Bf16, 1).save(&path).unwrap();
    let plain = engine.load(&path, LoadOptions::default()).unwrap();
    assert!(plain.stop_ids().is_empty());
    let whole = generate(&session_of(&plain, &[1]), 30).unwrap().0;
    let stop = whole[7];
    let at = whole.iter().position(|&id| id == stop).unwrap();
    std::fs::write(path.join("generation_config.json"), format!("{{\"eos_token_id\": [300, {stop}]}}")).unwrap();
    let stopping = engine.load(&path, LoadOptions::default()).unwrap();
    assert_eq!(stopping.stop_ids(), [300, stop]);
    assert_eq!(generate(&session_of(&stopping, &[1]), 30).unwrap().0, whole[..at + 1]);
    let options = GenerationOptions { max_tokens: 30, seed: 4, ignore_model_stops: true, ..Default::default() };
    let (chunk, _) = session_of(&stopping, &[1]).generate(options).unwrap().collect().unwrap();
    assert_eq!(chunk.ids, whole);
    std::fs::write(path.join("generation_config.json"), "{\"eos_token_id\": 301}").unwrap();
    assert_eq!(fault(engine.load(&path, LoadOptions::default())), Fault::IdOutOfRange);
}

#[test]
fn sessions_beyond_the_limit_are_refused_until_one_is_released() {
    let model = tiny(&engine(|o| o.max_sessions = 3), &dense(), Dtype::Bf16, 1);
    let mut sessions: Vec<Session> = (0..3).map(|i| session_of(&model, &ids(i, 4))).collect();
    assert_eq!(fault(Session::new(&model)), Fault::SessionBudget);
    assert_eq!(fault(sessions[0].fork()), Fault::SessionBudget);
    assert_eq!(generate(&sessions[0], 3).unwrap().0.len(), 3, "the others are not hurt");
    for _ in 0..50 {
        let last = sessions.pop().unwrap();
        generate(&last, 2).unwrap();
        drop(last);
        sessions.push(session_of(&model, &[1]));
    }
    assert_eq!(model.engine().metrics().sessions, 3);
}

#[test]
fn a_timeline_beyond_the_kv_budget_is_a_refusal_that_leaves_its_session_usable() {
    let roomy = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let page = roomy.model().page_shape().bytes() as u64;
    let model = tiny(&engine(|o| o.kv_budget = 3 * page), &dense(), Dtype::Bf16, 1);
    let b = session_of(&model, &ids(2, 4 * PAGE));
    let refused = b.prefill(&Cancel::default()).unwrap_err();
    assert_eq!((refused.fault(), refused.bytes().map(|b| b.0)), (Fault::KvBudget, Some(page)));
    assert_eq!((b.len().unwrap(), model.kv_pages()), (4 * PAGE, 0));
    assert_eq!(fault(generate(&b, 1)), Fault::KvBudget);
    assert_eq!(fault(b.score(&[1, 2, 3], 0, &Cancel::default())), Fault::KvBudget);
    assert_eq!(b.len().unwrap(), 4 * PAGE, "a score that was refused leaves no trace");
    // A generation ends whole where the last page is full.
    let a = session_of(&model, &ids(1, 3 * PAGE - 4));
    let wanted = generate(&session_of(&roomy, &ids(1, 3 * PAGE - 4)), 6).unwrap();
    let options = GenerationOptions { max_tokens: 6, seed: 4, ..GenerationOptions::default() };
    let generation = a.generate(options).unwrap();
    let mut came = Vec::new();
    let refused = loop {
        match generation.next(None) {
            Ok(Next::Chunk(chunk)) => came.extend(chunk.ids),
            Ok(other) => panic!("{other:?}"),
            Err(e) => break e.fault(),
        }
    };
    assert_eq!((refused, &came[..]), (Fault::KvBudget, &wanted.0[..5]));
    assert_eq!(a.len().unwrap(), 3 * PAGE + 1);
    drop((a, generation));
    assert_eq!(model.kv_pages(), 0);
    b.truncate(2 * PAGE).unwrap();
    assert_eq!(generate(&b, 9).unwrap(), generate(&session_of(&roomy, &ids(2, 2 * PAGE)), 9).unwrap());
}

#[test]
fn with_pages_for_nine_of_sixteen_sessions_all_finish_and_say_what_they_say_with_room() {
    let document = {
        let mut document = dense();
        document["max_position_embeddings"] = 512.into();
        document
    };
    let roomy = tiny(&engine(|_| {}), &document, Dtype::Bf16, 1);
    let page = roomy.model().page_shape().bytes() as u64;
    // Each session comes to 4 pages: of a prompt of 3, and 40 tokens more.
    let long = 3 * PAGE - 5;
    let wanted: Vec<_> = (0..16).map(|i| generate(&session_of(&roomy, &ids(i, long)), 40).unwrap()).collect();
    for caller_driven in [false, true] {
        let change = |o: &mut EngineOptions| (o.kv_budget, o.caller_driven) = (9 * 4 * page, caller_driven);
        let model = tiny(&engine(change), &document, Dtype::Bf16, 1);
        let sessions: Vec<Session> = (0..16).map(|i| session_of(&model, &ids(i, long))).collect();
        let options = GenerationOptions { max_tokens: 40, seed: 4, ..GenerationOptions::default() };
        let running: Vec<_> = sessions.iter().map(|s| s.generate(options.clone()).unwrap()).collect();
        for (generation, wanted) in running.iter().zip(&wanted) {
            let (chunk, finish) = generation.collect().unwrap();
            let logprobs: Vec<u32> = chunk.logprobs.iter().map(|x| x.to_bits()).collect();
            assert_eq!((&chunk.ids, &logprobs, finish), (&wanted.0, &wanted.1, Finish::Length));
        }
        assert!(model.kv_pages() <= 36);
        let metrics = model.engine().metrics();
        assert!(metrics.evicted > 0, "sessions at rest gave up their pages: {metrics:?}");
        // Each goes on where it stood.
        for session in &sessions {
            assert_eq!(generate(session, 2).unwrap().0.len(), 2);
        }
    }
}

#[test]
fn two_prompts_that_each_fit_alone_both_come_through() {
    let roomy = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let page = roomy.model().page_shape().bytes() as u64;
    let model = tiny(&engine(|o| o.kv_budget = 4 * page), &dense(), Dtype::Bf16, 1);
    let sessions = [1, 2].map(|i| session_of(&model, &ids(i, 3 * PAGE)));
    let options = GenerationOptions { max_tokens: 9, seed: 4, ..GenerationOptions::default() };
    let running = sessions.each_ref().map(|s| s.generate(options.clone()).unwrap());
    for (i, generation) in running.iter().enumerate() {
        let wanted = generate(&session_of(&roomy, &ids(i as u64 + 1, 3 * PAGE)), 9).unwrap();
        assert_eq!(generation.collect().unwrap().0.ids, wanted.0);
    }
    // Scores and hidden states that were under way are as with room.
    let given = ids(9, 30);
    let wanted = session_of(&roomy, &ids(1, 3 * PAGE)).score(&given, 2, &Cancel::default()).unwrap();
    let scored = session_of(&model, &ids(1, 3 * PAGE)).score(&given, 2, &Cancel::default()).unwrap();
    assert_eq!(scored, wanted);
}

#[test]
fn what_many_sessions_share_is_given_up_last() {
    let roomy = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let page = roomy.model().page_shape().bytes() as u64;
    let model = tiny(&engine(|o| o.kv_budget = 4 * page), &dense(), Dtype::Bf16, 1);
    // The base is the oldest, and two forks go on from it.
    let base = session_of(&model, &ids(1, PAGE));
    base.prefill(&Cancel::default()).unwrap();
    let forks = [base.fork().unwrap(), base.fork().unwrap()];
    for fork in &forks {
        fork.append(&ids(2, 5), Source::Host).unwrap();
        fork.prefill(&Cancel::default()).unwrap();
    }
    assert_eq!(model.kv_pages(), 3);
    let other = session_of(&model, &ids(3, 2 * PAGE));
    other.prefill(&Cancel::default()).unwrap();
    let pending: Vec<usize> = [&base, &forks[0], &forks[1]].map(|s| s.extent().unwrap().pending).into();
    assert_eq!(
        pending,
        [0, PAGE + 5, 0],
        "the fork that was used the longest ago gave way, and the base kept its page"
    );
    // At last all of it goes.
    let whole = session_of(&model, &ids(4, 4 * PAGE - 1));
    whole.prefill(&Cancel::default()).unwrap();
    assert_eq!((model.kv_pages(), base.extent().unwrap().pending), (4, PAGE));
}

#[test]
fn older_work_takes_the_pages_of_younger_work_which_comes_through_later() {
    let roomy = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let page = roomy.model().page_shape().bytes() as u64;
    // Both prompts fit side by side; what they generate does not.
    let engine = engine(|o| (o.kv_budget, o.caller_driven) = (5 * page, true));
    let model = tiny(&engine, &dense(), Dtype::Bf16, 1);
    let (a, b) = (session_of(&model, &ids(1, 2 * PAGE - 2)), session_of(&model, &ids(2, 3 * PAGE - 20)));
    let options = GenerationOptions { max_tokens: 30, seed: 4, ..GenerationOptions::default() };
    let older = a.generate(options.clone()).unwrap();
    engine.step().unwrap();
    let scored = ids(7, 15);
    let younger = b.generate(options).unwrap();
    let wanted: Vec<_> = [(1, 2 * PAGE - 2), (2, 3 * PAGE - 20)]
        .map(|(seed, n)| generate(&session_of(&roomy, &ids(seed, n)), 30).unwrap().0)
        .into();
    assert_eq!(older.collect().unwrap().0.ids, wanted[0]);
    assert_eq!(younger.collect().unwrap().0.ids, wanted[1]);
    assert!(engine.metrics().preempted > 0, "{:?}", engine.metrics());
    assert_eq!(b.score(&scored, 0, &Cancel::default()).unwrap().len(), 15);
}

#[test]
fn what_fits_nowhere_is_refused_and_takes_nothing_from_others() {
    let roomy = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let page = roomy.model().page_shape().bytes() as u64;
    for caller_driven in [false, true] {
        let engine = engine(|o| (o.kv_budget, o.caller_driven) = (4 * page, caller_driven));
        let model = tiny(&engine, &dense(), Dtype::Bf16, 1);
        let rests = session_of(&model, &ids(1, 2 * PAGE));
        rests.prefill(&Cancel::default()).unwrap();
        let big = session_of(&model, &ids(2, 5 * PAGE));
        assert_eq!(fault(big.prefill(&Cancel::default())), Fault::KvBudget);
        assert_eq!(fault(generate(&big, 1)), Fault::KvBudget);
        assert_eq!((rests.extent().unwrap().pending, model.kv_pages(), engine.metrics().evicted), (0, 2, 0));
    }
}

#[test]
fn work_that_waits_all_the_same_takes_nothing_from_sessions_at_rest() {
    let roomy = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    let page = roomy.model().page_shape().bytes() as u64;
    let engine = engine(|o| (o.kv_budget, o.caller_driven) = (8 * page, true));
    let model = tiny(&engine, &dense(), Dtype::Bf16, 1);
    let [runs, rests] = [(1, 4 * PAGE - 9), (2, 2 * PAGE)].map(|(seed, n)| session_of(&model, &ids(seed, n)));
    rests.prefill(&Cancel::default()).unwrap();
    let first = runs.generate(GenerationOptions { max_tokens: 8, seed: 4, ..GenerationOptions::default() }).unwrap();
    engine.step().unwrap();
    assert_eq!(model.kv_pages(), 6);
    // Two pages are free, two more rest: five cannot be had before the first has ended.
    let big = session_of(&model, &ids(3, 5 * PAGE));
    let second = big.generate(GenerationOptions { max_tokens: 1, seed: 4, ..GenerationOptions::default() }).unwrap();
    for _ in 0..3 {
        engine.step().unwrap();
        assert_eq!((engine.metrics().evicted, rests.extent().unwrap().pending), (0, 0));
    }
    first.collect().unwrap();
    second.collect().unwrap();
    assert!(engine.metrics().evicted > 0, "then all of them were enough");
}

#[test]
fn pages_of_a_session_that_its_host_is_using_are_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    folders::write_chat_model(&folder.path().join("chat"), 1);
    let load = |engine: &Engine| engine.load(&folder.path().join("chat"), LoadOptions::default()).unwrap();
    let roomy = load(&engine(|_| {}));
    let page = roomy.model().page_shape().bytes() as u64;
    let model = load(&engine(|o| o.kv_budget = 4 * page));
    let used = session_of(&model, &vec![7; 3 * PAGE]);
    used.prefill(&Cancel::default()).unwrap();
    // The host is inside a call on that session until it is let on.
    let (inside, on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (inside, on) = (inside.clone(), on.clone());
        Watch::on(move || {
            inside.store(true, Ordering::SeqCst);
            while !on.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            false
        })
    };
    let other = session_of(&model, &vec![9; 2 * PAGE]);
    std::thread::scope(|scope| {
        let messages = serde_json::json!([{"role": "user", "content": "hello"}]);
        let options = RenderOptions { watch, ..RenderOptions::default() };
        let used = &used;
        let appended = scope.spawn(move || used.append_chat(messages, &options).map(|added| added.len()));
        while !inside.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let options = GenerationOptions { max_tokens: 5, seed: 4, ..GenerationOptions::default() };
        let waits = other.generate(options).unwrap();
        let early = waits.next(Some(Duration::from_millis(50))).unwrap();
        on.store(true, Ordering::SeqCst);
        assert!(matches!(early, Next::Timeout), "it was neither refused nor served: {early:?}");
        let wanted = generate(&session_of(&roomy, &vec![9; 2 * PAGE]), 5).unwrap();
        assert_eq!(waits.collect().unwrap().0.ids, wanted.0);
        assert!(appended.join().unwrap().unwrap() > 0);
    });
    // What it had computed is computed again.
    let twin = session_of(&roomy, &vec![7; 3 * PAGE]);
    twin.append_chat(serde_json::json!([{"role": "user", "content": "hello"}]), &RenderOptions::default()).unwrap();
    assert_eq!(generate(&used, 5).unwrap(), generate(&twin, 5).unwrap());
}

#[test]
fn weights_beyond_the_host_budget_are_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let roomy = tiny(&engine(|_| {}), &dense(), Dtype::Bf16, 1);
    roomy.save(&path).unwrap();
    let bytes = roomy.current().weights.bytes();
    let small = engine(|o| o.host_budget = bytes - 1);
    let refused = small.load(&path, LoadOptions::default()).map(|_| ()).unwrap_err();
    assert_eq!((refused.fault(), refused.bytes()), (Fault::HostBudget, Some((bytes, bytes - 1))));
    assert_eq!(small.plan(&path, LoadOptions::default()).unwrap()["weight_bytes"], bytes);
    // Two models of one engine share it, and what is released can be used again.
    let engine = engine(|o| o.host_budget = 2 * bytes - 1);
    let first = engine.load(&path, LoadOptions::default()).unwrap();
    let refused = engine.load(&path, LoadOptions::default()).map(|_| ()).unwrap_err();
    assert_eq!((refused.fault(), refused.bytes()), (Fault::HostBudget, Some((bytes, bytes - 1))));
    drop(first);
    engine.load(&path, LoadOptions::default()).unwrap();
}

#[test]
fn random_models_are_a_function_of_their_seed() {
    let engine = engine(|_| {});
    let config = ModelConfig::from_json(&moe()).unwrap();
    let of = |dtype, seed| distributions(&engine.random_model(config.clone(), dtype, seed, 100).unwrap());
    assert!(of(Dtype::Bf16, 1) == of(Dtype::Bf16, 1));
    assert!(of(Dtype::Bf16, 1) != of(Dtype::Bf16, 2));
    let mut odd = config.clone();
    odd.n_kv_heads = 3;
    assert_eq!(fault(engine.random_model(odd, Dtype::Bf16, 1, 0)), Fault::ConfigContradiction);
    assert_eq!(fault(engine.random_model(config.clone(), Dtype::Bf16, 1, 513)), Fault::BadOption);
}

#[test]
fn engines_that_cannot_be_are_refused() {
    let refused = |change: fn(&mut EngineOptions)| {
        let mut options = EngineOptions::default();
        change(&mut options);
        fault(Engine::new(options))
    };
    assert_eq!(refused(|o| o.max_sessions = 0), Fault::BadOption);
    assert_eq!(refused(|o| o.max_batch_tokens = 0), Fault::BadOption);
    assert_eq!(refused(|o| o.max_batch_tokens = usize::MAX), Fault::BadOption);
    assert_eq!(refused(|o| o.n_threads = usize::MAX), Fault::BadOption);
}
