//! What a run may be trusted with: a report that agrees with itself, weights that are served as they were trained, steps that
//! destroy and are not published, and the way back.

#[path = "support/scripted.rs"]
mod scripted;

use std::sync::{Arc, Mutex};

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Distiller, Report};
use squire::error::{Fault, Status};
use squire::serve::{Cancel, Engine, EngineOptions, Level, Log, ServedModel, Session};

/// The lines that the host hears: how much each matters, and what it says.
type Lines = Arc<Mutex<Vec<(Level, String)>>>;

/// Of the projections that layers with experts have too.
const LORA: &str = r#"{"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "o_proj"]}"#;

/// The document with an adapter to be trained, or without.
fn of(lora: bool, mut document: Value) -> Value {
    if lora {
        document["lora"] = serde_json::from_str(LORA).unwrap();
    }
    document
}

fn listening(compute: Compute, options: EngineOptions, document: Value) -> (Distiller, Lines) {
    let lines = Lines::default();
    let kept = lines.clone();
    let log = Log(Arc::new(move |level: Level, _: &str, message: &str| {
        kept.lock().unwrap().push((level, message.to_string()));
    }));
    let options = EngineOptions { n_threads: 1, compute, log: Some(log), ..options };
    let engine = Engine::new(options).unwrap();
    let (student, teacher) =
        (model(&engine, &config(Kind::Dense, 32, 2), 1), model(&engine, &config(Kind::Dense, 48, 3), 2));
    (Distiller::new(&student, Some(&teacher), settings(document)).unwrap(), lines)
}

fn heard(lines: &Lines, level: Level) -> Vec<String> {
    lines.lock().unwrap().iter().filter(|line| line.0 == level).map(|line| line.1.clone()).collect()
}

/// Log-probs of some ids by what new sessions get, as bits.
fn said(model: &ServedModel) -> Vec<u32> {
    let session = Session::new(model).unwrap();
    session.sync(&[5, 9, 33]).unwrap();
    let rows = session.score(&[1, 60, 17, 42], 0, &Cancel::default()).unwrap();
    rows.iter().map(|row| row.logprob.to_bits()).collect()
}

fn one_step(d: &Distiller) -> (Report, u64) {
    play_together(d, 3, 2);
    let mut update = build(d);
    d.apply(&mut update).unwrap();
    (update.report().clone(), d.publish().unwrap())
}

fn clean() -> Value {
    json!({"rows": 4, "differing": 0, "largest_difference": 0.0})
}

#[test]
fn a_report_agrees_with_itself() {
    let d = plain(half_guided());
    play_together(&d, 6, 4);
    let update = build(&d);
    let report = json!(update.report());
    let (n, list) = (report["trained_tokens"].as_u64().unwrap(), report["turns"].as_array().unwrap());
    let sum = |key: &str| list.iter().map(|turn| turn[key].as_f64().unwrap()).sum::<f64>();
    assert_eq!((list.len(), sum("tokens") as u64), (4, n));
    assert!((sum("loss_share") - 1.0).abs() < 1e-12, "{report:#}");
    for (key, of_turns) in [("student_turns", "student"), ("teacher_turns", "teacher"), ("replay_turns", "replay")] {
        assert_eq!(report[key].as_f64().unwrap(), sum(of_turns), "{key}");
    }
    for key in ["entropy", "teacher_entropy", "log_ratio"] {
        let all = list.iter().map(|turn| turn[key].as_f64().unwrap() * turn["tokens"].as_f64().unwrap()).sum::<f64>();
        assert!((report[key].as_f64().unwrap() - all / n as f64).abs() < 1e-9, "{key}: {report:#}");
        assert!(report[key].as_f64().unwrap() > 0.0);
    }
    assert!(list.iter().all(|turn| turn["episodes"] == 6 && turn["teacher_nll"].as_f64().unwrap() > 0.0));
    let length = report["student_tokens"].as_f64().unwrap() / report["student_turns"].as_f64().unwrap();
    assert_eq!(report["response_length"].as_f64().unwrap(), length);
    assert_eq!(report["lag"], json!({"mean": 0.0, "largest": 0}));
    // The host of these tests calls every second episode a success.
    assert_eq!((&report["by_task"], &report["executed_otherwise"]), (&json!({"": [3, 6]}), &json!(0.0)));
    assert_eq!((&report["rewards"], &report["teacher_mass"]), (&Value::Null, &Value::Null));
    assert!(report["teacher_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_student_that_is_its_own_teacher_is_as_sure_as_it() {
    let engine = engine(Compute::F32);
    let (a, b) = (model(&engine, &config(Kind::Dense, 32, 2), 1), model(&engine, &config(Kind::Dense, 32, 2), 1));
    for preset in ["opd", "opd-sampled"] {
        let d = Distiller::new(&a, Some(&b), settings(json!({"preset": preset}))).unwrap();
        play_together(&d, 2, 2);
        let report = build(&d).report().clone().quantities;
        assert_eq!((report.log_ratio, report.entropy), (Some(0.0), report.teacher_entropy), "{preset}");
        // Within what a vocabulary of 64 can have.
        assert!(report.entropy.is_some_and(|x| x > 0.1 && x < 64f64.ln()), "{report:?}");
    }
}

#[test]
fn what_is_published_is_served_as_it_was_trained() {
    for (lora, (kind, compute)) in [false, true].into_iter().flat_map(|lora| ALL.map(|all| (lora, all))) {
        for preset in ["opd", "guided-opd", "sft"] {
            let mut document = of(lora, json!({"preset": preset, "optimizer": {"learning_rate": 1e-2}}));
            if preset == "sft" {
                document["actor"] = json!({"kind": "student"});
                document["student_turns"] = json!({"kernel": "cross-entropy"});
            }
            let d = distiller(kind, compute, document);
            assert_eq!(d.metrics()["probe"], Value::Null);
            for _ in 0..2 {
                let (report, _) = one_step(&d);
                println!("{preset} {kind:?} {compute:?} lora {lora}: KL {:?}", report.update_kl);
                assert_eq!(d.metrics()["probe"], clean(), "{preset} {kind:?} {compute:?} {lora}");
            }
        }
    }
}

#[test]
fn nobody_is_asked_where_nobody_shall_be_and_publishing_stands_where_nobody_can() {
    let (d, lines) = listening(Compute::F32, EngineOptions::default(), json!({"preset": "opd", "probe_rows": 0}));
    assert_eq!((one_step(&d).1, &d.metrics()["probe"]), (2, &Value::Null));
    assert!(heard(&lines, Level::Warning).is_empty());
    // No session more may be.
    let options = EngineOptions { max_sessions: 6, ..Default::default() };
    let (d, lines) = listening(Compute::F32, options, json!({"preset": "opd"}));
    let (_, number) = one_step(&d);
    assert_eq!((number, &d.metrics()["probe"]), (2, &clean()));
    play_together(&d, 3, 2);
    let mut update = build(&d);
    d.apply(&mut update).unwrap();
    let held: Vec<Session> = (0..6).map(|_| Session::new(d.student()).unwrap()).collect();
    assert_eq!((d.publish().unwrap(), &d.metrics()["probe"]), (3, &Value::Null));
    let said = heard(&lines, Level::Warning);
    assert!(said.len() == 1 && said[0].contains("is not known") && said[0].contains("sessions"), "{said:?}");
    drop(held);
    // No page is free, since a session that rests holds the only one, and it loses it to no probe.
    let options = EngineOptions { kv_budget: 1, ..Default::default() };
    let page = {
        let engine = engine(Compute::F32);
        model(&engine, &config(Kind::Dense, 32, 2), 1).model().page_shape().bytes() as u64
    };
    let (d, lines) = listening(
        Compute::F32,
        EngineOptions { kv_budget: 4 * page, ..options },
        json!({"preset": "opd", "kept_revisions": 4}),
    );
    play_together(&d, 2, 1);
    let mut update = build(&d);
    d.apply(&mut update).unwrap();
    let holder = Session::new(d.student()).unwrap();
    holder.sync(&[7; 120]).unwrap();
    holder.prefill(&Cancel::default()).unwrap();
    let computed = holder.n_computed().unwrap();
    assert_eq!((d.publish().unwrap(), &d.metrics()["probe"]), (2, &Value::Null));
    let said = heard(&lines, Level::Warning);
    assert!(said.len() == 1 && said[0].contains("no free pages"), "{said:?}");
    holder.prefill(&Cancel::default()).unwrap();
    assert_eq!(holder.n_computed().unwrap(), computed);
}

#[test]
fn an_engine_that_its_caller_steps_is_stepped_by_what_asks_it() {
    let (_engine, d) = stepped(json!({"preset": "opd"}));
    for number in 2..4 {
        for episode in play_together(&d, 2, 1) {
            assert!(!episode.turns().is_empty());
        }
        let mut update = build(&d);
        d.apply(&mut update).unwrap();
        assert_eq!((d.publish().unwrap(), &d.metrics()["probe"]["differing"]), (number, &json!(0)));
    }
}

#[test]
fn a_learning_rate_of_ten_is_not_published() {
    for (lora, compute) in [(false, Compute::F32), (false, Compute::Bf16), (true, Compute::F32), (true, Compute::Bf16)]
    {
        for clip in [1.0, 0.0] {
            let folder = tempfile::tempdir().unwrap();
            let mut document =
                of(lora, json!({"preset": "opd", "optimizer": {"learning_rate": 10, "grad_clip": clip}}));
            if lora {
                // A student of random weights is hardly further from what it said than chance, wherever an adapter takes it.
                document["refuse_update_kl"] = json!(1);
            }
            let (d, lines) = listening(compute, EngineOptions::default(), document);
            d.save(folder.path()).unwrap();
            let before = said(d.student());
            play_together(&d, 3, 2);
            let mut update = build(&d);
            d.apply(&mut update).unwrap();
            println!("lora {lora} {compute:?} clip {clip}: KL {:?}", update.report().update_kl);
            for _ in 0..2 {
                let e = d.publish().unwrap_err();
                assert!(e.fault() == Fault::UpdateTooFar && e.status() == Status::Diverged, "{e}");
                let bound = if lora { "refuse_update_kl is 1;" } else { "refuse_update_kl is null" };
                assert!(e.message().contains(bound), "{e}");
                assert_eq!(fault(d.save(folder.path())), Fault::UpdateTooFar);
            }
            let warned = heard(&lines, Level::Warning);
            assert!(
                warned.iter().any(|w| w.contains("is not published") && w.contains("refuse_update_kl")),
                "{warned:?}"
            );
            assert!(d.student().current().number == 1 && said(d.student()) == before, "the old revision serves on");
            // The way on without a checkpoint: what was applied is dropped, and the revision that is served is learnt from.
            assert_eq!(d.rollback(1).unwrap(), 1);
            assert_eq!(d.publish().unwrap(), 1);
            d.save(folder.path()).unwrap();
            assert!(said(d.student()) == before && d.step() == 1);
        }
    }
}

#[test]
fn a_student_that_knows_something_is_guarded_by_what_it_knows() {
    let engine = engine(Compute::F32);
    let (student, teacher) =
        (model(&engine, &config(Kind::Dense, 32, 2), 1), model(&engine, &config(Kind::Dense, 48, 3), 2));
    let of = |lora: bool, rate: f64| {
        let document = json!({"preset": "sft", "optimizer": {"learning_rate": rate}, "batch_episodes": 4});
        Distiller::new(&student, Some(&teacher), settings(of(lora, document))).unwrap()
    };
    // It learns a few demonstrations by heart, always the same ones.
    let learn = |d: &Distiller| {
        for episode in 0..4 {
            Seat::new(d, numbered(episode)).play(2);
        }
        let mut update = build(d);
        d.apply(&mut update).unwrap();
        update.report().clone()
    };
    let d = of(false, 1e-2);
    for _ in 0..30 {
        learn(&d);
        d.publish().unwrap();
    }
    let report = learn(&of(true, 1e-3));
    assert!(report.quantities.entropy.unwrap() < 1.0, "{:?}", report.quantities.entropy);
    let d = of(true, 10.0);
    let kl = learn(&d).update_kl.unwrap();
    println!("an adapter's step of 10 on a student of entropy {:?}: KL {kl}", report.quantities.entropy);
    assert!(kl > 3.0 && fault(d.publish()) == Fault::UpdateTooFar, "{kl}");
}

#[test]
fn the_way_back_leads_to_the_same_weights_under_a_new_number() {
    for lora in [false, true] {
        let document =
            of(lora, json!({"preset": "opd", "optimizer": {"learning_rate": 1e-2}, "rollback_revisions": 2}));
        let (d, _) = listening(Compute::F32, EngineOptions::default(), document);
        let mut served = vec![said(d.student())];
        for number in 2..=4 {
            assert_eq!(one_step(&d).1, number);
            served.push(said(d.student()));
        }
        assert!((1..4).all(|i| served[i] != served[i - 1]));
        assert_eq!(d.metrics()["kept_for_rollback"], json!([2, 3]));
        let e = d.rollback(1).unwrap_err();
        assert!(e.fault() == Fault::UnknownRevision && e.status() == Status::Argument, "{e}");
        assert!(e.message().contains("kept are 2, 3") && e.message().contains("current one is 4"), "{e}");
        // A step that was applied is dropped, and one that was only built is stale.
        play_together(&d, 3, 2);
        let mut applied = build(&d);
        d.apply(&mut applied).unwrap();
        play_together(&d, 3, 2);
        let mut built = build(&d);
        let session = Session::new(d.student()).unwrap();
        assert_eq!(d.rollback(2).unwrap(), 5);
        assert!(d.student().current().number == 5 && said(d.student()) == served[1]);
        assert_eq!(
            (d.metrics()["kept_for_rollback"].clone(), d.metrics()["probe"].clone()),
            (json!([3, 4]), Value::Null)
        );
        assert_eq!((d.publish().unwrap(), d.step()), (5, 4), "nothing waits to be published; the run's steps are done");
        assert_eq!(fault(d.apply(&mut built)), Fault::StaleUpdate);
        assert_eq!((session.revision().number, session.rebase().unwrap()), (4, 5), "sessions under way keep theirs");
        // It is learnt from what is served.
        assert_eq!((one_step(&d).1, &d.metrics()["probe"]), (6, &clean()));
        assert_eq!(d.metrics()["kept_for_rollback"], json!([4, 5]));
    }
}

#[test]
fn learning_goes_on_from_there_as_a_run_would_that_begins_there() {
    for lora in [false, true] {
        let rate = json!({"start": 1e-2, "end": 1e-3, "shape": "linear", "finish": 9, "clock": "step"});
        let document =
            of(lora, json!({"preset": "opd", "optimizer": {"learning_rate": rate}, "rollback_revisions": 9}));
        let (d, _) = listening(Compute::F32, EngineOptions::default(), document.clone());
        one_step(&d);
        one_step(&d);
        assert_eq!(d.rollback(1).unwrap(), 4);
        let folder = tempfile::tempdir().unwrap();
        d.save(folder.path()).unwrap();
        let state = std::fs::read_to_string(folder.path().join("step-00000002/state.json")).unwrap();
        assert!(state.contains("\"optimizer_steps\": 0") && state.contains("\"step\": 2"), "{state}");
        // Resumed from there it is the same run, bit for bit.
        let (student, teacher) = pair(Kind::Dense, Compute::F32);
        let settings_given = document.clone();
        let again = Distiller::resume(&student, Some(&teacher), settings(document), folder.path()).unwrap();
        for d in [&d, &again] {
            one_step(d);
            one_step(d);
        }
        assert!(said(d.student()) == said(again.student()) && d.step() == 4);
        d.save(folder.path()).unwrap();
        let state = std::fs::read_to_string(folder.path().join("step-00000004/state.json")).unwrap();
        assert!(state.contains("\"optimizer_steps\": 2"), "{state}");
        // A checkpoint of before has none, which is the run's.
        let path = folder.path().join("step-00000004/state.json");
        let mut document: Value = serde_json::from_str(&state).unwrap();
        document.as_object_mut().unwrap().remove("optimizer_steps");
        std::fs::write(&path, document.to_string()).unwrap();
        let (student, teacher) = pair(Kind::Dense, Compute::F32);
        let resumed = Distiller::resume(&student, Some(&teacher), settings(settings_given), folder.path()).unwrap();
        resumed.save(folder.path()).unwrap();
        let state = std::fs::read_to_string(folder.path().join("step-00000004-1/state.json")).unwrap();
        assert!(state.contains("\"optimizer_steps\": 4"), "{state}");
        std::fs::write(
            folder.path().join("step-00000004-1/state.json"),
            state.replace("\"optimizer_steps\": 4", "\"optimizer_steps\": 5"),
        )
        .unwrap();
        assert_eq!(fault(Distiller::checkpoint(folder.path())), Fault::CheckpointForm);
    }
}

#[test]
fn revisions_that_are_kept_keep_nobody_from_publishing() {
    let (d, _) = listening(
        Compute::F32,
        EngineOptions::default(),
        json!({"preset": "opd", "kept_revisions": 1, "rollback_revisions": 64}),
    );
    for number in 2..=6 {
        assert_eq!(one_step(&d).1, number);
    }
    assert_eq!(d.metrics()["kept_for_rollback"], json!([1, 2, 3, 4, 5]));
    assert_eq!(d.metrics()["revisions_alive"], 6);
    // By default none is kept beside the current.
    let (d, _) = listening(Compute::F32, EngineOptions::default(), json!({"preset": "opd"}));
    one_step(&d);
    assert_eq!(
        (d.metrics()["kept_for_rollback"].clone(), d.metrics()["revisions_alive"].clone()),
        (json!([]), json!(1))
    );
    let e = d.rollback(1).unwrap_err();
    assert!(e.fault() == Fault::UnknownRevision && e.message().contains("none is: rollback_revisions"), "{e}");
}

#[test]
fn nobody_goes_back_while_an_update_is_built() {
    let d = plain(json!({"preset": "opd", "rollback_revisions": 1}));
    one_step(&d);
    play_together(&d, 3, 2);
    let mut asked = 0;
    let built = d.build(0, &Cancel::default(), &mut |_, _| {
        asked += 1;
        assert_eq!((fault(d.rollback(1)), fault(d.publish())), (Fault::DistillerBusy, Fault::DistillerBusy));
        true
    });
    assert!(built.is_ok() && asked > 0 && d.student().current().number == 2);
}
