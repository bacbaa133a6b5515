//! Teachers that score ended episodes: waited for, heard of, set aside where they cannot, and gone with their engine.

#[path = "support/scripted.rs"]
mod scripted;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scripted::*;
use serde_json::json;
use squire::backend::Compute;
use squire::backend::page::PAGE;
use squire::distill::{Actor, Distiller, EpisodeSpec};
use squire::error::Fault;
use squire::model::ModelConfig;
use squire::serve::{Cancel, Engine, EngineOptions, Level, Log, ServedModel};
use squire::tensor::Dtype;

fn engine_with(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions { n_threads: 1, compute: Compute::F32, ..Default::default() };
    change(&mut options);
    Engine::new(options).unwrap()
}

/// Student and teacher of one engine, with plain on-policy distillation.
fn opd(engine: &Engine) -> Distiller {
    let (student, teacher) =
        (model(engine, &config(Kind::Dense, 32, 2), 1), model(engine, &config(Kind::Dense, 48, 3), 2));
    Distiller::new(&student, Some(&teacher), settings(json!({"preset": "opd", "optimizer": {"learning_rate": 1e-2}})))
        .unwrap()
}

/// An episode whose one turn follows an observation of `n` ids; the teacher has seen none of it when it ends.
fn episode(d: &Distiller, n: usize) {
    let e = d.begin(EpisodeSpec::default()).unwrap();
    e.observe_ids(&(0..n).map(|i| (i % 60) as i32).collect::<Vec<_>>()).unwrap();
    assert_eq!(e.decide().unwrap().actor, Some(Actor::Student));
    let mut options = options();
    (options.max_tokens, options.ignore_model_stops, options.stop_ids) = (3, true, Vec::new());
    assert_eq!(e.act(&options).unwrap().collect().unwrap().0.ids.len(), 3);
    e.outcome(None, true).unwrap();
    e.end(1.0, None).unwrap();
}

/// A student and a teacher that needs long for a long episode.
fn slow(engine: &Engine) -> Distiller {
    const LONG: usize = 4096;
    let of = |hidden: usize, n_layers: usize| {
        ModelConfig::from_json(&json!({
            "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 3 * hidden,
            "num_hidden_layers": n_layers, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "max_position_embeddings": LONG, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        }))
        .unwrap()
    };
    let load = |config: ModelConfig, seed| engine.random_model(config, Dtype::F32, seed, LONG).unwrap();
    let (student, teacher) = (load(of(16, 1), 1), load(of(384, 6), 2));
    Distiller::new(&student, Some(&teacher), settings(json!({"preset": "opd"}))).unwrap()
}

fn metric(d: &Distiller, name: &str) -> u64 {
    d.metrics()[name].as_u64().unwrap()
}

#[test]
fn an_engine_is_gone_with_its_last_handle_though_a_teacher_was_scoring() {
    for caller_driven in [false, true] {
        let listener = Arc::new(());
        let kept = listener.clone();
        let engine = engine_with(|o| {
            o.caller_driven = caller_driven;
            o.log = Some(Log(Arc::new(move |_: Level, _: &str, _: &str| drop(kept.clone()))));
        });
        let d = slow(&engine);
        episode(&d, 3000);
        drop(engine);
        assert_eq!(d.n_waiting(), 1);
        drop(d);
        // The engine's thread, which holds the listener, has been joined.
        assert_eq!(Arc::strong_count(&listener), 1, "caller-driven: {caller_driven}");
    }
}

#[test]
fn a_build_hears_cancel_and_progress_while_the_teacher_scores() {
    for caller_driven in [false, true] {
        let d = slow(&engine_with(|o| (o.caller_driven, o.max_batch_tokens) = (caller_driven, 64)));
        episode(&d, 3000);
        // By its progress.
        let mut heard = Vec::new();
        let stopped = d.build(0, &Cancel::default(), &mut |done, all| {
            heard.push((done, all));
            heard.len() < 3
        });
        assert_eq!(fault(stopped), Fault::Cancelled);
        // Whatever is fed to learn this token: 3,000 ids and two sampled ones.
        assert_eq!(heard, [(0, 3002); 3]);
        // By a flag that another thread sets.
        let cancel = Cancel::default();
        let told = AtomicBool::new(false);
        let stopped = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !told.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                cancel.set();
            });
            d.build(0, &cancel, &mut |_, _| {
                told.store(true, Ordering::Release);
                true
            })
        });
        assert_eq!(fault(stopped), Fault::Cancelled);
        // The teacher went on meanwhile, and nothing is lost or set aside.
        assert_eq!((d.n_waiting(), d.n_set_aside()), (1, 0));
        assert_eq!(build(&d).report().trained_tokens, 3);
    }
}

/// Bytes of a page of a model's cache.
fn page(model: &ServedModel) -> u64 {
    model.info()["kv_bytes_per_token"].as_u64().unwrap() * PAGE as u64
}

/// A distiller whose teacher may hold `pages` pages.
fn short_of_pages(pages: u64) -> Distiller {
    let teachers_page = page(opd(&engine_with(|_| {})).teacher().unwrap());
    opd(&engine_with(|o| o.kv_budget = pages * teachers_page))
}

#[test]
fn an_episode_that_cannot_be_scored_is_set_aside_with_its_reason() {
    // Three pages of the smaller student fit where the teacher has two.
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let kept = warnings.clone();
    let teachers_page = page(opd(&engine_with(|_| {})).teacher().unwrap());
    let d = opd(&engine_with(|o| {
        o.kv_budget = 2 * teachers_page;
        o.log = Some(Log(Arc::new(move |level: Level, _: &str, message: &str| {
            if level == Level::Warning {
                kept.lock().unwrap().push(message.to_string());
            }
        })));
    }));
    episode(&d, 70);
    (0..2).for_each(|_| episode(&d, 10));
    let mut update = build(&d);
    let report = update.report();
    assert_eq!((report.episodes, report.trained_episodes, report.trained_tokens), (2, 2, 6));
    assert_eq!(report.set_aside.iter().map(|s| s.episode).collect::<Vec<_>>(), [0]);
    assert!(report.set_aside[0].reason.contains("KV"), "{}", report.set_aside[0].reason);
    let told = warnings.lock().unwrap().clone();
    assert!(told.len() == 1 && told[0].starts_with("episode 0 is set aside") && told[0].contains("KV"), "{told:?}");
    assert_eq!((metric(&d, "waiting"), metric(&d, "set_aside"), d.n_waiting(), d.n_set_aside()), (0, 1, 0, 1));
    assert_eq!(d.teacher().unwrap().kv_pages(), 0, "it holds no pages");
    d.apply(&mut update).unwrap();
    // It stands in the way of no checkpoint, and is asked again by every build.
    d.save(tempfile::tempdir().unwrap().path()).unwrap();
    episode(&d, 10);
    let report = build(&d).report().clone();
    assert_eq!((report.episodes, report.set_aside.len(), d.n_set_aside()), (1, 1, 1));
    assert_eq!((d.discard(), d.n_set_aside(), metric(&d, "thrown_away")), (1, 0, 1));
}

#[test]
fn another_episode_takes_the_place_of_one_that_is_set_aside() {
    let d = short_of_pages(2);
    episode(&d, 70);
    (0..3).for_each(|_| episode(&d, 10));
    let update = d.build(2, &Cancel::default(), &mut |_, _| true).unwrap();
    assert_eq!((update.report().episodes, d.n_waiting(), d.n_set_aside()), (2, 1, 1));
}

#[test]
fn teachers_that_each_have_pages_enough_alone_are_all_scored() {
    let d = short_of_pages(2);
    (0..5).for_each(|_| episode(&d, 50));
    let report = build(&d).report().clone();
    assert_eq!((report.episodes, report.set_aside.len()), (5, 0));
}

#[test]
fn a_build_of_which_no_episode_can_be_scored_names_the_reason_and_changes_nothing() {
    let d = short_of_pages(2);
    (0..2).for_each(|_| episode(&d, 70));
    let e = d.build(0, &Cancel::default(), &mut |_, _| true).err().unwrap();
    assert!(e.fault() == Fault::KvBudget && e.message().starts_with("episode 0: "), "{e}");
    assert_eq!((d.n_waiting(), d.n_set_aside()), (2, 0));
    // Nor does one that is cancelled.
    episode(&d, 10);
    let cancel = Cancel::default();
    cancel.set();
    assert_eq!(fault(d.build(0, &cancel, &mut |_, _| true)), Fault::Cancelled);
    assert_eq!((d.n_waiting(), d.n_set_aside()), (3, 0));
    assert_eq!(build(&d).report().episodes, 1);
}
