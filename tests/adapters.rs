//! Adapters served: many of one base in one round, each its own bytes, nothing computed under one used under another.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use squire::backend::ops::Sampling;
use squire::backend::{Compute, KernelSet};
use squire::error::Fault;
use squire::model::{Adapter, Lora, Weights};
use squire::random::{Stream, below};
use squire::serve::{
    Cancel, Engine, EngineOptions, Generation, GenerationOptions, Metrics, Next, ServedModel, Session,
};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{adapter, dense, moe, tiny};

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn ids(seed: u64, n: usize) -> Vec<i32> {
    (0..n as u64).map(|i| below(Stream::World, &[seed, i], 301) as i32).collect()
}

fn session(model: &ServedModel, name: Option<&str>, ids: &[i32]) -> Session {
    let session = match name {
        None => Session::new(model).unwrap(),
        Some(name) => Session::with_adapter(model, name).unwrap(),
    };
    session.append(ids, Source::Host).unwrap();
    session
}

fn greedy(n: usize) -> GenerationOptions {
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    GenerationOptions { max_tokens: n, sampling, ..GenerationOptions::default() }
}

/// Ids with the bits of their log-probs.
fn said(session: &Session, n: usize) -> (Vec<i32>, Vec<u32>) {
    let (chunk, _) = session.generate(greedy(n)).unwrap().collect().unwrap();
    (chunk.ids, chunk.logprobs.iter().map(|x| x.to_bits()).collect())
}

fn engine(options: EngineOptions) -> Engine {
    Engine::new(options).unwrap()
}

/// A model with eight adapters.
fn eight(engine: &Engine) -> ServedModel {
    let model = tiny(engine, &dense(), Dtype::Bf16, 5);
    for (seed, name) in (0..).zip(NAMES) {
        model.add_adapter(name, adapter(&model, 4 + seed as usize, Dtype::Bf16, seed)).unwrap();
    }
    model
}

#[test]
fn eight_adapters_decode_in_one_round_that_reads_the_base_once() {
    let options = EngineOptions { caller_driven: true, compute: Compute::Bf16, ..Default::default() };
    let engine = engine(options);
    let model = eight(&engine);
    let step = |generations: &[Generation]| {
        let before = engine.metrics();
        engine.step().unwrap();
        let after = engine.metrics();
        assert_eq!(after.rounds - before.rounds, 1, "all share a forward");
        assert_eq!(after.rows - before.rows, generations.len() as u64);
        after.weight_bytes - before.weight_bytes
    };
    let start = |names: &[Option<&str>]| -> (Vec<Session>, Vec<Generation>) {
        let sessions: Vec<Session> = names.iter().map(|name| session(&model, *name, &ids(1, 1))).collect();
        let generations = sessions.iter().map(|s| s.generate(greedy(20)).unwrap()).collect();
        (sessions, generations)
    };
    let base = model.current().weights.bytes_per_pass();
    let plain = start(&[None; 8]);
    let norms_and_embedding = base - step(&plain.1);
    drop(plain);
    engine.step().unwrap();
    let adapted = start(&NAMES.map(Some));
    let adapters: u64 = NAMES.iter().map(|name| model.adapters()[*name]["bytes"].as_u64().unwrap()).sum();
    assert_eq!(step(&adapted.1), base - norms_and_embedding + adapters);
    drop(adapted);
    engine.step().unwrap();
    // The same one eight times is one piece of work, and read once.
    let one = start(&[Some("a"); 8]);
    let a = model.adapters()["a"]["bytes"].as_u64().unwrap();
    assert_eq!(step(&one.1), base - norms_and_embedding + a);
}

#[test]
fn each_says_in_company_what_it_says_alone() {
    for compute in [Compute::Bf16, Compute::F32] {
        let engine = engine(EngineOptions { compute, max_batch_tokens: 40, ..Default::default() });
        let model = eight(&engine);
        let names: Vec<Option<&str>> = NAMES.into_iter().map(Some).chain([None]).collect();
        let prompts: Vec<Vec<i32>> = (0..9).map(|i| ids(i, 3 + 9 * i as usize)).collect();
        let alone: Vec<_> = names.iter().zip(&prompts).map(|(name, p)| said(&session(&model, *name, p), 20)).collect();
        let sessions: Vec<Session> = names.iter().zip(&prompts).map(|(name, p)| session(&model, *name, p)).collect();
        let running: Vec<Generation> = sessions.iter().map(|s| s.generate(greedy(20)).unwrap()).collect();
        for (generation, alone) in running.into_iter().zip(&alone) {
            let (chunk, _) = generation.collect().unwrap();
            assert_eq!(
                (&chunk.ids, chunk.logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
                (&alone.0, alone.1.clone())
            );
        }
        let different: std::collections::HashSet<_> = alone.iter().map(|(_, bits)| bits.clone()).collect();
        assert_eq!(different.len(), 9);
    }
}

#[test]
fn an_adapter_takes_its_bytes_and_no_copy_of_the_base() {
    let model = tiny(&engine(EngineOptions::default()), &dense(), Dtype::F32, 5);
    let (base, one) = (model.current().weights.bytes(), adapter(&model, 4, Dtype::F32, 1).bytes());
    assert!(3 * one < base);
    let engine = engine(EngineOptions { host_budget: base + 2 * one, ..EngineOptions::default() });
    // The weights that are replaced when the model is made tiny must not count.
    let model = tiny(&engine, &dense(), Dtype::F32, 5);
    model.add_adapter("a", adapter(&model, 4, Dtype::F32, 1)).unwrap();
    model.add_adapter("b", adapter(&model, 4, Dtype::F32, 2)).unwrap();
    let refused = model.add_adapter("c", adapter(&model, 4, Dtype::F32, 3)).unwrap_err();
    assert_eq!(refused.fault(), Fault::HostBudget, "{refused}");
    // A session keeps what was unloaded; then its memory is there for another.
    let kept = session(&model, Some("a"), &ids(1, 5));
    model.unload_adapter("a").unwrap();
    assert_eq!(model.add_adapter("c", adapter(&model, 4, Dtype::F32, 3)).unwrap_err().fault(), Fault::HostBudget);
    said(&kept, 3);
    drop(kept);
    model.add_adapter("c", adapter(&model, 4, Dtype::F32, 3)).unwrap();
}

#[test]
fn what_was_computed_under_one_adapter_is_never_used_under_another() {
    let model = eight(&engine(EngineOptions::default()));
    let prompt = ids(3, 70);
    let fresh = |name: Option<&str>| said(&session(&model, name, &prompt), 12);
    let moving = session(&model, Some("a"), &prompt);
    assert_eq!(said(&moving, 12), fresh(Some("a")));
    for name in [Some("b"), None, Some("h"), Some("a")] {
        moving.truncate(prompt.len()).unwrap();
        moving.use_adapter(name).unwrap();
        let before = model.engine().metrics();
        assert_eq!(said(&moving, 12), fresh(name), "{name:?}");
        let after = model.engine().metrics();
        let rows = |m: &Metrics| m.rows + m.prefix_rows;
        assert!(rows(&after) - rows(&before) >= 2 * prompt.len() as u64, "all of it is computed again, or found");
        // What the first session on an adapter computed serves the second, and nobody on another.
        let of_others = name != Some("a");
        assert_eq!(after.rows - before.rows >= prompt.len() as u64, of_others, "{name:?}");
    }
    // A fork goes on where it was made, whatever its parent does, and pages that they share stay whose they are.
    let parent = session(&model, Some("c"), &prompt);
    parent.prefill(&Cancel::default()).unwrap();
    let fork = parent.fork().unwrap();
    parent.use_adapter(Some("d")).unwrap();
    assert_eq!((said(&parent, 12), said(&fork, 12)), (fresh(Some("d")), fresh(Some("c"))));
    // Where it is already nothing is computed again.
    let before = model.engine().metrics().rows;
    fork.use_adapter(Some("c")).unwrap();
    assert_eq!(model.engine().metrics().rows, before);
}

#[test]
fn a_name_answers_with_the_newest_and_sessions_under_way_keep_theirs() {
    let model = eight(&engine(EngineOptions::default()));
    let prompt = ids(4, 20);
    let old = said(&session(&model, Some("a"), &prompt), 10);
    let under_way = session(&model, Some("a"), &prompt);
    let generation = under_way.generate(greedy(10)).unwrap();
    let number = model.add_adapter("a", adapter(&model, 9, Dtype::F32, 77)).unwrap();
    let new = said(&session(&model, Some("a"), &prompt), 10);
    assert_ne!(old, new);
    assert_eq!(generation.collect().unwrap().0.ids, old.0);
    under_way.truncate(prompt.len()).unwrap();
    assert_eq!(said(&under_way, 10), old, "until it asks");
    assert_eq!(under_way.rebase().unwrap(), number);
    under_way.truncate(prompt.len()).unwrap();
    assert_eq!(said(&under_way, 10), new);
    // A forgotten name leaves its sessions where they are, also when they ask.
    model.unload_adapter("a").unwrap();
    assert_eq!(under_way.rebase().unwrap_err().fault(), Fault::UnknownAdapter);
    under_way.truncate(prompt.len()).unwrap();
    assert_eq!(said(&under_way, 10), new);
}

#[test]
fn two_generations_outlive_their_base() {
    let engine = engine(EngineOptions::default());
    let model = eight(&engine);
    let prompt = ids(5, 20);
    let wanted = ["a", "b"].map(|name| said(&session(&model, Some(name), &prompt), 10));
    let kept = ["a", "b"].map(|name| session(&model, Some(name), &prompt));
    let base = std::sync::Arc::downgrade(&model.current().weights);
    let next = Weights::random(model.config(), engine.device(), Dtype::Bf16, 99, 0.2).unwrap();
    model.publish(next, 9).unwrap();
    assert!(base.upgrade().is_some(), "two sessions use it");
    // Nobody new gets an adapter of other weights than it was made for, under any name.
    for name in NAMES {
        let refused = Session::with_adapter(&model, name).map(drop).unwrap_err();
        assert!(refused.fault() == Fault::AdapterMismatch && refused.message().contains("revision"), "{refused}");
        model.unload_adapter(name).unwrap();
    }
    assert_eq!(kept.each_ref().map(|s| said(s, 10)), wanted, "and who has one goes on");
    let [a, b] = kept;
    drop(a);
    assert!(base.upgrade().is_some());
    drop(b);
    // The engine's thread may hold the last job for a moment.
    let gone = || {
        (0..2000).any(|_| {
            base.upgrade().is_none() || {
                std::thread::sleep(std::time::Duration::from_millis(1));
                false
            }
        })
    };
    assert!(gone(), "the base goes with its last generation");
}

#[test]
fn a_merged_model_is_near_the_adapted_one_and_the_base_stays_what_it_was() {
    for document in [dense(), moe()] {
        let engine = engine(EngineOptions { compute: Compute::F32, ..Default::default() });
        let model = tiny(&engine, &document, Dtype::F32, 5);
        model.add_adapter("a", adapter(&model, 6, Dtype::F32, 3)).unwrap();
        let score = |session: &Session| -> Vec<f32> {
            let rows = session.score(&ids(7, 60)[1..], 0, &Cancel::default()).unwrap();
            rows.iter().map(|row| row.logprob).collect()
        };
        let (plain, adapted) = (session(&model, None, &ids(7, 1)), session(&model, Some("a"), &ids(7, 1)));
        let (before, wanted) = (score(&plain), score(&adapted));
        let folder = tempfile::tempdir().unwrap();
        model.merge_adapter(Some("a"), 9).unwrap();
        let merged = score(&session(&model, None, &ids(7, 1)));
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance(&merged, &wanted) < 2e-3, "{}", distance(&merged, &wanted));
        assert!(distance(&before, &wanted) > 0.5);
        plain.truncate(1).unwrap();
        assert_eq!(score(&plain), before, "who was on the base is on it still");
        // A trained adapter is saved merged with the model.
        let lora = Lora { rank: 3, alpha: 6.0, rslora: false, targets: Vec::new() };
        let fresh = Adapter::fresh(model.config(), &lora, engine.device(), 1).unwrap();
        model.publish_adapter(fresh, 9).unwrap();
        model.save(&folder.path().join("model")).unwrap();
        let loaded = engine.load(&folder.path().join("model"), Default::default()).unwrap();
        assert_eq!(score(&session(&loaded, None, &ids(7, 1))), merged, "one that changes nothing merges to the same");
        // One that changes something is saved as what merging it makes, bit for bit.
        model.publish_adapter(adapter(&model, 6, Dtype::F32, 4), 9).unwrap();
        model.save(&folder.path().join("changed")).unwrap();
        let loaded = engine.load(&folder.path().join("changed"), Default::default()).unwrap();
        let saved = score(&session(&loaded, None, &ids(7, 1)));
        model.merge_adapter(None, 9).unwrap();
        assert_eq!(score(&session(&model, None, &ids(7, 1))), saved);
        assert!(distance(&saved, &merged) > 0.5);
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_before_anything_changes() {
    let engine = engine(EngineOptions { kernels: Some(KernelSet::Scalar), ..Default::default() });
    let (model, other) = (tiny(&engine, &dense(), Dtype::F32, 5), tiny(&engine, &moe(), Dtype::F32, 5));
    let foreign = adapter(&model, 4, Dtype::F32, 1);
    let (revision, names) = (other.current().number, other.adapters());
    assert_eq!(other.add_adapter("a", foreign).unwrap_err().fault(), Fault::AdapterMismatch);
    let foreign = adapter(&model, 4, Dtype::F32, 1);
    assert_eq!(other.publish_adapter(foreign, 9).unwrap_err().fault(), Fault::AdapterMismatch);
    assert_eq!((other.current().number, other.adapters()), (revision, names));
}

#[test]
fn a_generation_whose_adapter_is_gone_ends_as_it_began() {
    let engine = engine(EngineOptions { caller_driven: true, ..Default::default() });
    let model = eight(&engine);
    let wanted = {
        let session = session(&model, Some("b"), &ids(2, 9));
        let generation = session.generate(greedy(8)).unwrap();
        while engine.step().unwrap() {}
        generation.collect().unwrap().0.ids
    };
    let session = session(&model, Some("b"), &ids(2, 9));
    let generation = session.generate(greedy(8)).unwrap();
    engine.step().unwrap();
    model.unload_adapter("b").unwrap();
    drop(session);
    let mut found = Vec::new();
    while engine.step().unwrap() {}
    while let Next::Chunk(chunk) = generation.next(None).unwrap() {
        found.extend(chunk.ids);
    }
    assert_eq!(found, wanted);
}

#[test]
fn a_generation_that_is_refused_leaves_the_session_where_it_was() {
    let model = eight(&engine(EngineOptions::default()));
    let here = session(&model, None, &ids(6, 30));
    here.prefill(&Cancel::default()).unwrap();
    let computed = here.extent().unwrap();
    let bad_stop = GenerationOptions { stop_ids: vec![9999], ..greedy(3) };
    for (name, options) in [("a", bad_stop), ("nobody", greedy(3))] {
        assert!(here.generate_on(name, options).is_err());
        assert_eq!((here.revision().number, here.extent().unwrap()), (1, computed));
    }
    let empty = Session::new(&model).unwrap();
    assert_eq!(empty.generate_on("a", greedy(3)).map(drop).unwrap_err().fault(), Fault::EmptySession);
    assert_eq!(empty.revision().number, 1);
    let (chunk, _) = here.generate_on("a", greedy(10)).unwrap().collect().unwrap();
    assert_eq!(chunk.ids, said(&session(&model, Some("a"), &ids(6, 30)), 10).0);
}

#[test]
fn old_bases_that_sessions_on_adapters_keep_count_among_the_revisions_that_may_live() {
    let engine = engine(EngineOptions::default());
    let model = tiny(&engine, &dense(), Dtype::F32, 5);
    let next = |seed| Weights::random(model.config(), engine.device(), Dtype::F32, seed, 0.2).unwrap();
    let mut kept = Vec::new();
    for seed in 0..2 {
        model.add_adapter("a", adapter(&model, 3, Dtype::F32, seed)).unwrap();
        kept.push(session(&model, Some("a"), &ids(seed, 5)));
        if seed == 0 {
            model.publish(next(seed), 2).unwrap();
        }
    }
    let refused = model.publish(next(3), 1).unwrap_err();
    assert_eq!(refused.fault(), Fault::HostBudget, "{refused}");
    kept.clear();
    let published = (0..2000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        model.publish(next(3), 1).is_ok()
    });
    assert!(published);
}

#[test]
fn a_merge_that_overflows_the_base_or_loses_what_was_published_is_refused() {
    let engine = engine(EngineOptions::default());
    let model = tiny(&engine, &dense(), Dtype::F16, 5);
    let lora = Lora { rank: 2, alpha: 1e9, rslora: false, targets: Vec::new() };
    let mut number = 0;
    let huge = Adapter::build(model.config(), &lora, |_, _, _, extents| {
        number += 1;
        let mut tensor = squire::backend::Tensor::zeros(Dtype::F32, &extents)?;
        squire::backend::ops::fill_random(engine.device(), &mut tensor, 3, number, 0.4);
        Ok(tensor)
    });
    model.add_adapter("huge", huge.unwrap()).unwrap();
    let e = model.merge_adapter(Some("huge"), 9).unwrap_err();
    assert!(e.fault() == Fault::NotFinite && model.current().number == 1, "{e}");
    // Two at once: the second to come would undo the first.
    for name in ["a", "b"] {
        model.add_adapter(name, adapter(&model, 3, Dtype::F32, 1)).unwrap();
    }
    let merged: Vec<_> = std::thread::scope(|scope| {
        let threads = ["a", "b"].map(|name| {
            scope.spawn({
                let model = &model;
                move || model.merge_adapter(Some(name), 9)
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let done = merged.iter().filter(|merged| merged.is_ok()).count();
    assert_eq!(done, 1, "{merged:?}");
    let e = merged.into_iter().find_map(|merged| merged.err()).unwrap();
    assert_eq!(e.fault(), Fault::AdapterMismatch, "{e}");
    assert_eq!(model.current().number, 2);
}
