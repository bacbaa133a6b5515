//! A teacher in an engine of its own: what is learnt is the same to the bit, and neither engine pays for, waits on, or dies with
//! the other.

#[path = "support/answering.rs"]
mod answering;
#[path = "support/scripted.rs"]
mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use scripted::*;
use serde_json::{Value, json};
use squire::backend::cpu::KernelSet;
use squire::backend::page::PAGE;
use squire::backend::{Compute, Tensor};
use squire::distill::{Actor, Distiller, EpisodeSpec, Teacher, Update};
use squire::error::Fault;
use squire::model::ModelConfig;
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, Level, Log, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

fn engine_with(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions { n_threads: 1, compute: Compute::F32, ..Default::default() };
    change(&mut options);
    Engine::new(options).unwrap()
}

fn student(engine: &Engine, kind: Kind) -> ServedModel {
    model(engine, &config(kind, 32, 2), 1)
}

fn teacher(engine: &Engine) -> ServedModel {
    model(engine, &config(Kind::Dense, 48, 3), 2)
}

fn opd() -> Value {
    json!({"preset": "opd", "optimizer": {"learning_rate": 1e-2}})
}

fn distiller_of(student: &ServedModel, teacher: &ServedModel, document: Value) -> Distiller {
    Distiller::new(student, Some(teacher), settings(document)).unwrap()
}

/// Student and teacher, each in an engine of its own.
fn apart(of_student: impl FnOnce(&mut EngineOptions), of_teacher: impl FnOnce(&mut EngineOptions)) -> Distiller {
    let (one, other) = (engine_with(of_student), engine_with(of_teacher));
    distiller_of(&student(&one, Kind::Dense), &teacher(&other), opd())
}

#[test]
fn what_stands_in_an_episode_is_computed_whoever_drives_either_engine() {
    for driven in [[false, false], [true, false], [false, true], [true, true]] {
        let d = apart(|o| o.caller_driven = driven[0], |o| o.caller_driven = driven[1]);
        let teacher = d.teacher().unwrap().clone();
        let e = d.begin(EpisodeSpec::default()).unwrap();
        // Its turns are to be scored, so the teacher computes what stands before them too.
        e.observe_ids(&(0..40).collect::<Vec<_>>()).unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        thread::spawn(move || told.send(e.prefill(&Cancel::default()).map(|()| e.teacher_computed().unwrap())));
        let computed = heard.recv_timeout(std::time::Duration::from_secs(60)).expect("nobody is waited for in vain");
        assert_eq!(computed.unwrap(), 40, "{driven:?}");
        drop(teacher);
    }
}

fn gradients(update: &Update) -> Vec<(String, Vec<u8>)> {
    update.gradients().tensors().into_iter().map(|(name, t): (_, &Tensor)| (name, t.bytes().to_vec())).collect()
}

/// An episode whose one turn follows an observation of `n` ids; the teacher has seen none of it when it ends.
fn episode(d: &Distiller, n: usize) {
    let e = d.begin(EpisodeSpec::default()).unwrap();
    e.observe_ids(&(0..n).map(|i| (i % 60) as i32).collect::<Vec<_>>()).unwrap();
    assert_eq!(e.decide().unwrap().actor, Some(Actor::Student));
    let options = GenerationOptions { max_tokens: 3, ignore_model_stops: true, stop_ids: Vec::new(), ..options() };
    assert_eq!(e.act(&options).unwrap().collect().unwrap().0.ids.len(), 3);
    e.outcome(None, true).unwrap();
    e.end(1.0, None).unwrap();
}

/// A student and, in the other engine, a teacher that needs long for a long episode.
fn slow(of_student: &Engine, of_teacher: &Engine) -> Distiller {
    const LONG: usize = 4096;
    let of = |hidden: usize, n_layers: usize| {
        ModelConfig::from_json(&json!({
            "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 3 * hidden,
            "num_hidden_layers": n_layers, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "max_position_embeddings": LONG, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        }))
        .unwrap()
    };
    let student = of_student.random_model(of(16, 1), Dtype::F32, 1, LONG).unwrap();
    distiller_of(&student, &of_teacher.random_model(of(256, 4), Dtype::F32, 2, LONG).unwrap(), opd())
}

#[test]
fn a_teacher_in_an_engine_of_its_own_gives_the_same_records_and_updates_to_the_bit() {
    for (kind, compute) in ALL {
        let one = engine_with(|o| o.compute = compute);
        let together = distiller_of(&student(&one, kind), &teacher(&one), half_guided());
        // Other threads and other kernels, and either driven by its caller.
        for (threads, kernels, driven) in [
            (3, Some(KernelSet::Scalar), [false; 2]),
            (1, None, [true, false]),
            (2, None, [false, true]),
            (1, None, [true; 2]),
        ] {
            let own = engine_with(|o| (o.compute, o.caller_driven) = (compute, driven[0]));
            let other = engine_with(|o| {
                (o.compute, o.n_threads, o.kernels, o.caller_driven) = (compute, threads, kernels, driven[1]);
            });
            let d = distiller_of(&student(&own, kind), &teacher(&other), half_guided());
            let wanted = distiller_of(&student(&one, kind), together.teacher().unwrap(), half_guided());
            for _ in 0..2 {
                let (found, records_wanted) = (play(&d, 4, 3), play(&wanted, 4, 3));
                assert_eq!(records(&found), records(&records_wanted));
                let acted = |actor| found.iter().any(|t| t.turns().iter().any(|turn| turn.actor == actor));
                assert!(acted(Actor::Teacher) && acted(Actor::Student));
                let (found, wanted) = (update(&d), update(&wanted));
                assert_eq!((found.report().episodes, found.report().set_aside.len()), (4, 0));
                assert!(gradients(&found) == gradients(&wanted), "{kind:?} {compute:?} {threads} {driven:?}");
            }
            assert!(weight_bytes(d.student()) == weight_bytes(wanted.student()));
            let check = d.check_teacher(
                &squire::distill::CheckText::Ids((0..20).collect()),
                std::time::Duration::ZERO,
                &Cancel::default(),
            );
            assert_eq!(check.unwrap()["in_parts"]["largest"], 0.0);
        }
    }
}

#[test]
fn a_teacher_that_computes_in_another_precision_is_what_its_engine_says_it_is() {
    // The student in bf16, its teacher in f32; the same teacher behind a queue says all ids.
    let document = json!({"preset": "opd", "batch_episodes": 3});
    let (own, other) = (engine_with(|o| o.compute = Compute::Bf16), engine_with(|_| {}));
    let (of_model, of_queue) = (student(&own, Kind::Dense), student(&own, Kind::Dense));
    let teacher = teacher(&other);
    let (local, queue) =
        (distiller_of(&of_model, &teacher, document.clone()), answering::queue(json!({"top_k": VOCABULARY})));
    let said = Distiller::taught(&of_queue, Some(Teacher::Queue(queue.clone())), settings(document)).unwrap();
    play(&local, 3, 2);
    play(&said, 3, 2);
    assert_eq!(answering::answer_all(&queue, &teacher), 3);
    let (local, said) = (build(&local).report().loss, build(&said).report().loss);
    assert!((local - said).abs() < 1e-4 * local.abs(), "{local} and {said}");
}

#[test]
fn each_engine_pays_for_its_own() {
    let weights = |model: &ServedModel| model.info()["weight_bytes"].as_u64().unwrap();
    // So wide that it takes more than an update of the student, by whichever kernels.
    let wide = config(Kind::Dense, 256, 8);
    let probe = engine_with(|_| {});
    let (of_student, of_teacher) = (weights(&student(&probe, Kind::Dense)), weights(&model(&probe, &wide, 2)));
    // The teacher's engine has room for its weights and no byte more.
    let teachers = || engine_with(|o| o.host_budget = of_teacher);
    let tried = |budget: u64| {
        let own = engine_with(|o| o.host_budget = budget);
        let pupil = own.random_model(config(Kind::Dense, 32, 2), Dtype::F32, 1, CONTEXT).unwrap();
        let d = Distiller::new(
            &pupil,
            Some(&teachers().random_model(wide.clone(), Dtype::F32, 2, CONTEXT).unwrap()),
            settings(opd()),
        )?;
        play(&d, 2, 1);
        d.build(0, &Cancel::default(), &mut |_, _| true).map(drop)
    };
    assert_eq!(fault(tried(of_student + 1)), Fault::HostBudget);
    let budget = (1..).map(|i| of_student + i * 100_000).find(|&budget| tried(budget).is_ok()).unwrap();
    // In one engine with as much the teacher itself has no room.
    assert!(budget < of_teacher, "{budget} and {of_teacher}");
    let own = engine_with(|o| o.host_budget = budget);
    assert_eq!(fault(own.random_model(wide.clone(), Dtype::F32, 2, CONTEXT)), Fault::HostBudget);

    // Pages likewise: what the teacher's lack sets an episode aside, and tells whose they are.
    let page = teacher(&probe).info()["kv_bytes_per_token"].as_u64().unwrap() * PAGE as u64;
    let d = apart(|_| {}, |o| o.kv_budget = 2 * page);
    episode(&d, 70);
    episode(&d, 10);
    let update = build(&d);
    let aside = &update.report().set_aside;
    assert_eq!((update.report().episodes, aside.len()), (1, 1));
    assert!(
        aside[0].reason.starts_with("the teacher's engine: ") && aside[0].reason.contains("KV"),
        "{}",
        aside[0].reason
    );
}

#[test]
fn a_build_that_waits_steps_what_its_caller_drives_and_hears_cancel() {
    for driven in [[true, false], [false, true], [true, true]] {
        let [own, other] = driven.map(|driven| engine_with(|o| (o.caller_driven, o.max_batch_tokens) = (driven, 64)));
        let d = slow(&own, &other);
        episode(&d, 3000);
        let mut heard = 0;
        let stopped = d.build(0, &Cancel::default(), &mut |_, _| {
            heard += 1;
            heard < 3
        });
        assert_eq!((fault(stopped), d.n_waiting(), d.n_set_aside()), (Fault::Cancelled, 1, 0), "{driven:?}");
        let session = Session::new(d.student()).unwrap();
        session.append(&[1, 2, 3], Source::Host).unwrap();
        let options = GenerationOptions { max_tokens: 5, stop_ids: vec![], ignore_model_stops: true, ..options() };
        let generation = session.generate(options).unwrap();
        assert_eq!(build(&d).report().trained_tokens, 3);
        if driven[0] {
            assert!(!own.step().unwrap(), "all of it was said meanwhile");
        }
        assert_eq!(generation.collect().unwrap().0.ids.len(), 5);
    }
}

#[test]
fn both_engines_are_gone_with_their_last_handle_though_the_teacher_was_scoring() {
    for driven in [[false, false], [true, false], [false, true]] {
        let listeners = [Arc::new(()), Arc::new(())];
        let [own, other] = [0, 1].map(|i| {
            let kept = listeners[i].clone();
            engine_with(|o| {
                o.caller_driven = driven[i];
                o.log = Some(Log(Arc::new(move |_: Level, _: &str, _: &str| drop(kept.clone()))));
            })
        });
        let d = slow(&own, &other);
        episode(&d, 3000);
        // The host lets go of the teacher's engine: it stands as long as somebody is taught by it.
        drop((own, other));
        assert_eq!(d.n_waiting(), 1);
        drop(d);
        assert_eq!(listeners.map(|l| Arc::strong_count(&l)), [1, 1], "{driven:?}");
    }
}

#[test]
fn two_engines_teach_each_other_while_both_serve() {
    // Each build computes on both engines, which have rounds of their own meanwhile.
    let engines = [engine_with(|o| o.n_threads = 2), engine_with(|o| o.n_threads = 2)];
    let taught = |i: usize| distiller_of(&student(&engines[i], Kind::Dense), &teacher(&engines[1 - i]), opd());
    let learn = |d: &Distiller| {
        for _ in 0..4 {
            play(d, 3, 3);
            assert_eq!(update(d).report().episodes, 3);
        }
        weight_bytes(d.student())
    };
    let wanted = learn(&taught(0));
    let (pairs, over) = ([taught(0), taught(1)], AtomicBool::new(false));
    thread::scope(|s| {
        for d in &pairs {
            s.spawn(|| {
                let say = || {
                    let session = Session::new(d.teacher().unwrap()).unwrap();
                    session.append(&[1, 2, 3], Source::Host).unwrap();
                    session
                        .generate(GenerationOptions { max_tokens: 20, ..options() })
                        .unwrap()
                        .collect()
                        .unwrap()
                        .0
                        .ids
                };
                let first = say();
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(say(), first);
                }
            });
        }
        let learners = pairs.each_ref().map(|d| s.spawn(move || learn(d)));
        let found = learners.map(|learner| learner.join());
        over.store(true, Ordering::Relaxed);
        found.into_iter().for_each(|found| assert!(found.unwrap() == wanted));
    });
}

/// Where the teacher's engine dies with episodes that wait for it, those that were scored are learnt, the others are set aside.
#[cfg(feature = "drill")]
#[test]
fn a_teachers_engine_that_dies_costs_what_it_had_not_scored() {
    for driven in [false, true] {
        let (own, other) = (engine_with(|_| {}), engine_with(|o| o.caller_driven = driven));
        let document = json!({"preset": "opd", "batch_episodes": 3, "micro_tokens": 1});
        let d = distiller_of(&student(&own, Kind::Dense), &teacher(&other), document);
        episode(&d, 10);
        episode(&d, 10);
        // Both scored, by a build that is stopped between the one's gradients and the other's.
        let stopped = d.build(0, &Cancel::default(), &mut |done, _| done == 0);
        assert_eq!((fault(stopped), d.n_waiting()), (Fault::Cancelled, 2));
        other.drill_panic();
        episode(&d, 10);
        let update = build(&d);
        let aside = &update.report().set_aside;
        assert_eq!((update.report().episodes, aside.len(), d.n_set_aside()), (2, 1, 1), "driven: {driven}");
        assert!(aside[0].reason.starts_with("the teacher's engine: "), "{}", aside[0].reason);
        // The student's engine serves on; whoever needs the dead one is told.
        episode(&d, 10);
        let e = d.build(0, &Cancel::default(), &mut |_, _| true).err().unwrap();
        assert!(e.message().starts_with("episode 3: the teacher's engine: "), "{e}");
        assert!(matches!(e.fault(), Fault::Poisoned | Fault::Panic), "{e}");
        assert!(own.check_alive().is_ok() && d.discard() == 2);
        let e =
            d.check_teacher(&squire::distill::CheckText::Ids((0..9).collect()), Default::default(), &Cancel::default());
        assert_eq!(fault(e), Fault::Poisoned);
    }
}
