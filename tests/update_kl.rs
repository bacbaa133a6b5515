//! Updates that destroy: how far a step moves the student is told, warned of, and on request not published.

#[path = "support/scripted.rs"]
mod scripted;

use std::sync::{Arc, Mutex};

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Config, Distiller, Update};
use squire::error::Fault;
use squire::model::Weights;
use squire::serve::{Engine, EngineOptions, Level, Log};
use squire::tensor::Dtype;

/// What the host is warned of.
type Warnings = Arc<Mutex<Vec<String>>>;

fn listening(document: Value) -> (Distiller, Warnings) {
    let warnings = Warnings::default();
    let kept = warnings.clone();
    let log = Log(Arc::new(move |level: Level, _: &str, message: &str| {
        if level == Level::Warning {
            kept.lock().unwrap().push(message.to_string());
        }
    }));
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, log: Some(log), ..Default::default() };
    let engine = Engine::new(options).unwrap();
    let (student, teacher) =
        (model(&engine, &config(Kind::Dense, 32, 2), 1), model(&engine, &config(Kind::Dense, 48, 3), 2));
    (Distiller::new(&student, Some(&teacher), settings(document)).unwrap(), warnings)
}

/// Learning rate 10 and no clipping, with these bounds.
fn destroying(bounds: Value) -> Value {
    let mut document = json!({"preset": "opd", "optimizer": {"learning_rate": 10, "grad_clip": 0}});
    bounds.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    document
}

fn applied(d: &Distiller) -> Update {
    play_together(d, 3, 2);
    let mut update = build(d);
    d.apply(&mut update).unwrap();
    update
}

#[test]
fn an_update_that_destroys_is_told_and_warned_of_and_one_that_teaches_is_not() {
    let (d, warnings) = listening(destroying(json!({})));
    let update = applied(&d);
    assert!(update.report().update_kl.unwrap() > 1.0, "{:?}", update.report().update_kl);
    let said = warnings.lock().unwrap().clone();
    assert!(said.len() == 1 && said[0].contains("max_update_kl is 1") && said[0].contains("learning rate"), "{said:?}");
    assert_eq!(fault(d.publish()), Fault::UpdateTooFar);
    d.publish_anyway().unwrap();
    let (d, _) = listening(destroying(json!({"refuse_update_kl": 0})));
    applied(&d);
    assert_eq!(d.publish().unwrap(), 2);

    let (d, warnings) = listening(destroying(json!({"max_update_kl": 0})));
    applied(&d);
    assert!(warnings.lock().unwrap().is_empty());

    let (d, warnings) = listening(json!({"preset": "opd", "optimizer": {"learning_rate": 1e-3}}));
    let kl = applied(&d).report().update_kl.unwrap();
    assert!(kl > 0.0 && kl < 0.1 && warnings.lock().unwrap().is_empty(), "{kl}");
}

#[test]
fn publish_refuses_what_moves_the_student_too_far_until_it_is_told_to_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (d, _) = listening(destroying(json!({"refuse_update_kl": 0.5})));
    d.save(folder.path()).unwrap();
    let before = weight_bytes(d.student());
    applied(&d);
    for _ in 0..2 {
        let e = d.publish().unwrap_err();
        assert!(e.fault() == Fault::UpdateTooFar && e.message().contains("refuse_update_kl is 0.5"), "{e}");
        assert!(d.student().current().number == 1 && weight_bytes(d.student()) == before);
        // The last checkpoint stands, and can be resumed, also under another bound.
        assert_eq!(fault(d.save(folder.path())), Fault::UpdateTooFar);
        assert_eq!(Distiller::checkpoint(folder.path()).unwrap(), Some(0));
    }
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let other = settings(destroying(json!({"refuse_update_kl": 1e9, "max_update_kl": 7})));
    let again = Distiller::resume(&student, Some(&teacher), other, folder.path()).unwrap();
    applied(&again);
    assert_eq!(again.publish().unwrap(), 2);

    assert_eq!(d.publish_anyway().unwrap(), 2);
    assert!(weight_bytes(d.student()) == weight_bytes(again.student()));
    assert_eq!((d.publish().unwrap(), d.publish_anyway().unwrap()), (2, 2));
    d.save(folder.path()).unwrap();
}

#[test]
fn a_step_whose_kl_nobody_asks_for_is_the_same_step_without_it() {
    let with = |more: serde_json::Value| {
        let mut document = json!({"preset": "opd", "optimizer": {"learning_rate": 1e-3}});
        more.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
        listening(document)
    };
    let ((a, _), (b, warnings)) = (with(json!({})), with(json!({"update_kl_tokens": 0})));
    for _ in 0..2 {
        let (asked, unasked) = (applied(&a), applied(&b));
        assert!(asked.report().update_kl.is_some() && unasked.report().update_kl.is_none());
        assert_eq!((a.publish().unwrap(), b.publish().unwrap()), (asked.step() + 2, asked.step() + 2));
        assert!(weight_bytes(a.student()) == weight_bytes(b.student()));
    }
    assert!(warnings.lock().unwrap().is_empty());
    let both = Config::from_value(&json!({"update_kl_tokens": 0, "refuse_update_kl": 1})).err().unwrap();
    assert!(both.fault() == Fault::BadValue && both.message().contains("update_kl_tokens above 0"), "{both}");
}

#[test]
fn several_steps_without_publishing_are_measured_from_what_is_served() {
    // The second step has a learning rate of 0: it moves nothing from where the first has left the student.
    let rate = json!({"start": 1e-2, "end": 0, "shape": "step", "finish": 1});
    let (d, _) = listening(json!({"preset": "opd", "optimizer": {"learning_rate": rate}}));
    let [first, second] = [applied(&d), applied(&d)].map(|update| update.report().update_kl.unwrap());
    assert!(first > 1e-3 && second > first / 10.0, "{first}, {second}");
    d.publish().unwrap();
    assert_eq!(applied(&d).report().update_kl, Some(0.0));
}

#[test]
fn weights_that_are_not_finite_are_never_served_nor_saved() {
    let folder = tempfile::tempdir().unwrap();
    let document = json!({"preset": "opd", "optimizer": {"learning_rate": 10, "weight_decay": 1}});
    let (d, warnings) = listening(document);
    // A weight of 60,000 decays to -540,000, which f16 has not.
    let student = d.student();
    let mut weights = Weights::random(student.config(), &student.model().device, Dtype::F16, 1, 0.2).unwrap();
    weights.embedding.dense_mut().u16_mut()[62 * 32..63 * 32].fill(0x7b53);
    student.restore(weights, 1);
    d.save(folder.path()).unwrap();
    let update = applied(&d);
    assert_eq!(update.report().update_kl, None);
    assert!(warnings.lock().unwrap().iter().any(|w| w.contains("not finite")), "{warnings:?}");
    for answer in [d.publish(), d.publish_anyway(), d.save(folder.path()).map(|()| 0)] {
        assert_eq!(fault(answer), Fault::NotFinite);
    }
    assert_eq!((student.current().number, Distiller::checkpoint(folder.path()).unwrap()), (1, Some(0)));
}
