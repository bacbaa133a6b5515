//! The guided loop with an adapter as the student: what is sampled is what is trained on bit for bit, only the adapter
//! moves, and a run that was interrupted ends as one that was not. And with an adapter of the student's own model as the teacher.

#[path = "support/scripted.rs"]
mod scripted;

use std::path::Path;

use scripted::*;
use serde_json::{Value, json};
use squire::backend::{Compute, Tensor, ops};
use squire::distill::{CheckText, Distiller, EpisodeSpec, QueueOptions, Teacher, TeacherQueue, Update};
use squire::error::Fault;
use squire::model::{Adapter, Lora, Parameters, Weights, read_adapter};
use squire::serve::{Cancel, ServedModel, Session};
use squire::tensor::Dtype;

fn document() -> Value {
    json!({"preset": "guided-opd", "steps": 8, "seed": 11, "lora": {"rank": 3, "alpha": 9.0},
        "actor": {"kind": "bernoulli", "beta": {"start": 0.6, "end": 0, "shape": "linear", "finish": 1.0, "clock": "fraction"}},
        "optimizer": {"learning_rate": 0.02, "weight_decay": 0.01}})
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut document = document();
    change(&mut document);
    document
}

/// The bytes of the adapter that new sessions get.
fn adapter_bytes(model: &ServedModel) -> Vec<(String, Vec<u8>)> {
    let current = model.current();
    let adapter = current.adapter().expect("an adapter is served");
    adapter.tensors().into_iter().map(|(name, t)| (name, t.bytes().to_vec())).collect()
}

fn one_update(d: &Distiller) -> squire::distill::report::Report {
    play_together(d, 3, 2);
    update(d).report().clone()
}

#[test]
fn rollout_and_training_log_probs_are_equal_bit_for_bit_and_the_base_never_moves() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, document());
        let (base, weights) = (weight_bytes(d.student()), d.student().current().weights.clone());
        let mut served: Vec<Vec<(String, Vec<u8>)>> = Vec::new();
        for step in 0..5 {
            let report = one_update(&d);
            assert!(report.compared > 0 && report.differing == 0, "{kind:?} {compute:?}, step {step}: {report:?}");
            assert!(report.gradient_norm > 0.0 && report.update_kl.unwrap() > 0.0);
            served.push(adapter_bytes(d.student()));
            assert!(!served[..step].contains(&served[step]), "each step serves another adapter");
        }
        assert!(weight_bytes(d.student()) == base);
        assert!(
            std::sync::Arc::ptr_eq(&d.student().current().weights, &weights),
            "a step costs the adapter's bytes alone"
        );
        assert_eq!(d.student().current().number, 6);
        let dtype = if compute == Compute::F32 { Dtype::F32 } else { Dtype::Bf16 };
        assert_eq!(d.student().current().adapter().unwrap().dtype(), dtype);
    }
}

#[test]
fn the_loss_falls_and_gradients_are_the_adapters_alone() {
    let d = distiller(
        Kind::Dense,
        Compute::F32,
        with(|s| {
            s["actor"] = json!({"kind": "student"});
            s["lora"] = json!({"rank": 8, "alpha": 32.0});
        }),
    );
    let mut losses = Vec::new();
    for _ in 0..8 {
        play_together(&d, 12, 2);
        let mut update = build(&d);
        assert!(matches!(update.gradients(), Parameters::Adapter(_)));
        assert_eq!(update.gradients().tensors().len(), 2 * 7 * 2, "two layers, seven projections, A and B");
        d.apply(&mut update).unwrap();
        d.publish().unwrap();
        losses.push(update.report().loss);
    }
    assert!(losses[5..].iter().all(|&loss| loss < 0.8 * losses[0]), "{losses:?}");
}

#[test]
fn a_fresh_adapter_begins_as_peft_begins_one() {
    let d = distiller(Kind::Dense, Compute::F32, with(|s| s["optimizer"]["learning_rate"] = json!(1e-30)));
    one_update(&d);
    let current = d.student().current();
    for (name, t) in current.adapter().unwrap().tensors() {
        let x = t.f32();
        if name.contains("lora_B") {
            assert!(x.iter().all(|&x| x.abs() < 1e-25), "{name}: zero");
            continue;
        }
        // Kaiming's bound for a = sqrt(5), 1 / sqrt(K), uniformly: the mean square is a third of its square.
        let bound = 1.0 / (t.extent(1) as f32).sqrt();
        let square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        assert!(x.iter().all(|x| x.abs() <= bound) && (square / (bound * bound / 3.0) - 1.0).abs() < 0.4, "{name}");
    }
    let other = distiller(Kind::Dense, Compute::F32, with(|s| s["seed"] = json!(12)));
    one_update(&other);
    assert!(adapter_bytes(other.student()) != adapter_bytes(d.student()), "A is drawn by the seed");
}

fn resume(kind: Kind, compute: Compute, path: &Path, document: Value) -> squire::error::Result<Distiller> {
    let (student, teacher) = pair(kind, compute);
    Distiller::resume(&student, Some(&teacher), settings(document), path)
}

#[test]
fn a_run_resumed_at_every_border_ends_with_the_bits_of_the_unbroken_one() {
    for (kind, compute) in [(Kind::Dense, Compute::Bf16), (Kind::Moe, Compute::F32)] {
        let whole = distiller(kind, compute, document());
        (0..4).for_each(|_| drop(one_update(&whole)));
        let folder = tempfile::tempdir().unwrap();
        distiller(kind, compute, document()).save(folder.path()).unwrap();
        for _ in 0..4 {
            let broken = resume(kind, compute, folder.path(), document()).unwrap();
            one_update(&broken);
            broken.save(folder.path()).unwrap();
        }
        let broken = resume(kind, compute, folder.path(), document()).unwrap();
        assert!(adapter_bytes(whole.student()) == adapter_bytes(broken.student()), "{kind:?} {compute:?}");
        assert_eq!(whole.student().current().number, broken.student().current().number);
        let (a, b) = (one_update(&whole), one_update(&broken));
        assert_eq!((a.loss, b.differing), (b.loss, 0));
        assert!(adapter_bytes(whole.student()) == adapter_bytes(broken.student()), "{kind:?} {compute:?}");
    }
}

#[test]
fn a_checkpoint_holds_the_adapter_alone_and_is_of_its_base_and_its_settings() {
    let d = distiller(Kind::Dense, Compute::F32, document());
    one_update(&d);
    let folder = tempfile::tempdir().unwrap();
    d.save(folder.path()).unwrap();
    let step = folder.path().join("step-00000001");
    let bytes = std::fs::metadata(step.join("masters.safetensors")).unwrap().len();
    assert!(bytes < d.student().current().weights.bytes() / 2, "{bytes}");
    let mismatch = |document: Value, what: &str| {
        let e = resume(Kind::Dense, Compute::F32, folder.path(), document).map(drop).unwrap_err();
        assert!(e.fault() == Fault::CheckpointMismatch && e.message().contains(what), "{what}: {e}");
    };
    mismatch(with(|s| s["lora"]["rank"] = json!(4)), "lora");
    mismatch(with(|s| s["lora"] = json!(null)), "");
    mismatch(with(|s| s["lora"]["targets"] = json!(["q_proj"])), "lora");
    // Other base weights of the same shape.
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    student.restore(wide(&student, 77), 1);
    let e = Distiller::resume(&student, Some(&teacher), settings(document()), folder.path()).map(drop).unwrap_err();
    assert!(e.fault() == Fault::CheckpointMismatch && e.message().contains("base"), "{e}");
    assert!(student.current().adapter.is_none(), "nothing changed");
}

#[test]
fn training_goes_on_from_the_adapter_that_the_student_has() {
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let make = |document: Value| Distiller::new(&student, Some(&teacher), settings(document));
    let first = make(document()).unwrap();
    one_update(&first);
    let folder = tempfile::tempdir().unwrap();
    student.save_adapter(None, &folder.path().join("a")).unwrap();
    let trained = adapter_bytes(&student);
    // Another rank, alpha, scaling, targets, or all weights: each is refused by name, and nothing changes.
    for (change, what) in [
        (json!({"rank": 4, "alpha": 9.0}), "rank"),
        (json!({"rank": 3, "alpha": 8.0}), "alpha"),
        (json!({"rank": 3, "alpha": 9.0, "rslora": true}), "rslora"),
        (json!({"rank": 3, "alpha": 9.0, "targets": ["q_proj"]}), "targets"),
        (json!(null), "all weights"),
    ] {
        let e = make(with(|s| s["lora"] = change)).map(drop).unwrap_err();
        assert!(e.fault() == Fault::AdapterMismatch && e.message().contains(what), "{what}: {e}");
    }
    assert!(adapter_bytes(&student) == trained);
    // In another process: the folder becomes the student's adapter, and the next step starts from it.
    let (again, teacher) = pair(Kind::Dense, Compute::F32);
    let adapter = read_adapter(&folder.path().join("a"), again.config(), &again.current().weights).unwrap();
    again.publish_adapter(adapter, 2).unwrap();
    assert!(adapter_bytes(&again) == trained);
    let second = Distiller::new(&again, Some(&teacher), settings(document())).unwrap();
    let report = one_update(&second);
    assert!(report.compared > 0 && report.differing == 0);
    assert!(adapter_bytes(&again) != trained);
}

#[test]
fn a_base_that_is_replaced_under_a_learner_is_refused_and_nothing_is_lost() {
    let d = distiller(Kind::Dense, Compute::F32, document());
    one_update(&d);
    play_together(&d, 3, 2);
    let mut built = build(&d);
    let student = d.student();
    let next = wide(student, 5);
    student.publish(next, 9).unwrap();
    let e = d.apply(&mut built).unwrap_err();
    assert!(e.fault() == Fault::AdapterMismatch && e.message().contains("base weights were replaced"), "{e}");
    play_together(&d, 3, 2);
    let e = d.build(0, &Default::default(), &mut |_, _| true).map(drop).unwrap_err();
    assert!(e.fault() == Fault::AdapterMismatch && e.message().contains("base weights were replaced"), "{e}");
    assert_eq!((d.step(), d.n_waiting()), (1, 3));
    assert!(student.current().adapter.is_none());
}

#[test]
fn a_step_that_breaks_the_adapter_is_not_served() {
    let d = distiller(
        Kind::Dense,
        Compute::F32,
        with(|s| {
            s["optimizer"]["learning_rate"] = json!(10.0);
            s["lora"]["alpha"] = json!(1e6);
            s["max_update_kl"] = json!(0.0);
            s["refuse_update_kl"] = json!(0.5);
        }),
    );
    play_together(&d, 3, 2);
    let mut update = build(&d);
    d.apply(&mut update).unwrap();
    let e = d.publish().unwrap_err();
    assert!([Fault::UpdateTooFar, Fault::NotFinite].contains(&e.fault()), "{e}");
    assert!(d.student().current().adapter.is_none(), "the old revision serves on");
}

#[test]
fn sessions_under_way_and_named_adapters_live_beside_a_run() {
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let d = Distiller::new(&student, Some(&teacher), settings(document())).unwrap();
    let lora = squire::model::Lora { rank: 2, alpha: 4.0, rslora: false, targets: Vec::new() };
    let fresh = squire::model::Adapter::fresh(student.config(), &lora, &student.model().device, 5).unwrap();
    student.add_adapter("host", fresh).unwrap();
    let session = Session::with_adapter(&student, "host").unwrap();
    for _ in 0..3 {
        one_update(&d);
    }
    // A step of an adapter replaces no base, so the host's own adapter stays.
    assert!(Session::with_adapter(&student, "host").is_ok());
    let before = session.revision().number;
    assert_eq!(session.rebase().unwrap(), before, "nobody loaded another under the name");
    // Full fine-tuning does.
    student.merge_adapter(None, 9).unwrap();
    let full = Distiller::new(&student, Some(&teacher), settings(with(|s| s["lora"] = json!(null)))).unwrap();
    Seat::new(&full, EpisodeSpec::default()).play(2);
    update(&full);
    assert_eq!(Session::with_adapter(&student, "host").map(drop).unwrap_err().fault(), Fault::AdapterMismatch);
}

#[test]
fn masters_moments_and_gradients_are_the_adapters() {
    let d = distiller(Kind::Dense, Compute::F32, document());
    one_update(&d);
    let folder = tempfile::tempdir().unwrap();
    d.save(folder.path()).unwrap();
    for name in ["masters.safetensors", "first_moments.safetensors", "second_moments.safetensors"] {
        let path = folder.path().join("step-00000001").join(name);
        let names: Vec<String> =
            squire::format::safetensors::read(&path).unwrap().into_iter().map(|(name, _)| name).collect();
        assert!(names.len() == 28 && names.iter().all(|name| name.contains(".lora_")), "{names:?}");
    }
    let all: &Weights = &d.student().current().weights;
    assert!(all.tensors().len() < 28);
}

#[test]
fn two_distillers_of_one_student_do_not_train_through_each_others_adapters() {
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let make = |lora: Value| Distiller::new(&student, Some(&teacher), settings(with(|s| s["lora"] = lora))).unwrap();
    let (small, large) = (make(json!({"rank": 1, "alpha": 1.0})), make(json!({"rank": 9, "alpha": 9.0})));
    let full = make(json!(null));
    for d in [&small, &large, &full] {
        play_together(d, 2, 2);
        drop(build(d));
    }
    one_update(&large);
    let served = adapter_bytes(&student);
    for d in [&small, &full] {
        play_together(d, 2, 2);
        let e = d.build(0, &Default::default(), &mut |_, _| true).map(drop).unwrap_err();
        assert_eq!(e.fault(), Fault::AdapterMismatch, "{e}");
        assert!(d.save(tempfile::tempdir().unwrap().path()).is_err(), "nor is it saved");
    }
    assert!(adapter_bytes(&student) == served);
    one_update(&large);
}

#[test]
fn a_step_that_was_applied_is_not_published_over_another_base() {
    let d = distiller(Kind::Dense, Compute::F32, document());
    one_update(&d);
    play_together(&d, 3, 2);
    let mut built = build(&d);
    d.apply(&mut built).unwrap();
    d.student().merge_adapter(None, 9).unwrap();
    let (merged, number) = (weight_bytes(d.student()), d.student().current().number);
    let e = d.publish().unwrap_err();
    assert!(e.fault() == Fault::AdapterMismatch && e.message().contains("base weights"), "{e}");
    assert!(d.student().current().adapter.is_none() && weight_bytes(d.student()) == merged);
    assert_eq!(d.student().current().number, number);
}

#[test]
fn adapters_that_are_loaded_make_no_episode_stale_and_take_no_published_number() {
    let d = distiller(Kind::Dense, Compute::F32, document());
    one_update(&d);
    play_together(&d, 3, 2);
    let lora = squire::model::Lora { rank: 2, alpha: 4.0, rslora: false, targets: Vec::new() };
    let fresh = |seed| squire::model::Adapter::fresh(d.student().config(), &lora, &d.student().model().device, seed);
    for seed in 0..5 {
        let number = d.student().add_adapter("host", fresh(seed).unwrap()).unwrap();
        assert_eq!(number, squire::serve::NAMED + 1 + seed);
    }
    let report = update(&d).report().clone();
    assert_eq!((report.stale, report.trained_episodes, d.student().current().number), (0, 3, 3));
    // What a checkpoint puts back has a number that is nobody else's.
    let folder = tempfile::tempdir().unwrap();
    d.save(folder.path()).unwrap();
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    student.add_adapter("host", fresh(9).unwrap()).unwrap();
    let session = Session::with_adapter(&student, "host").unwrap();
    Distiller::resume(&student, Some(&teacher), settings(document()), folder.path()).unwrap();
    assert_eq!(session.use_adapter(None).unwrap(), 3);
    assert_eq!(session.revision().number, student.current().number);
}

/// An adapter that changes what the model says; a function of the seed.
fn expert(model: &ServedModel, seed: u64) -> Adapter {
    let lora = Lora { rank: 4, alpha: 8.0, rslora: false, targets: Vec::new() };
    let (dtype, mut number) = (model.current().weights.embedding.dense().dtype(), 0);
    Adapter::build(model.config(), &lora, |_, _, _, extents| {
        let mut tensor = Tensor::zeros(dtype, &extents)?;
        number += 1;
        ops::fill_random(&model.model().device, &mut tensor, seed, number, 0.3);
        Ok(tensor)
    })
    .unwrap()
}

/// The settings with the named adapter as the teacher's.
fn by_expert() -> Value {
    with(|s| s["teacher_adapter"] = json!("expert"))
}

/// The student, with an expert's adapter by name.
fn with_expert(kind: Kind, compute: Compute) -> ServedModel {
    let (student, _) = pair(kind, compute);
    student.add_adapter("expert", expert(&student, 3)).unwrap();
    student
}

/// A distiller of a model that teaches itself.
fn taught_by_itself(model: &ServedModel, document: Value) -> Distiller {
    Distiller::new(model, Some(model), settings(document)).unwrap()
}

/// Values of all gradients.
fn gradients(update: &Update) -> Vec<f32> {
    update.gradients().tensors().into_iter().flat_map(|(_, t)| t.f32().to_vec()).collect()
}

#[test]
fn a_teacher_that_is_an_adapter_of_the_students_model_teaches_what_a_second_copy_with_it_does() {
    for (kind, compute) in ALL {
        let (student, apart) = (with_expert(kind, compute), with_expert(kind, compute));
        let one = taught_by_itself(&student, by_expert());
        // The copy is another model, of an engine of its own.
        let two = Distiller::new(&pair(kind, compute).0, Some(&apart), settings(by_expert())).unwrap();
        for step in 0..3 {
            let (found, wanted) = (play_together(&one, 4, 3), play_together(&two, 4, 3));
            assert_eq!(records(&found), records(&wanted));
            let (found, wanted) = (update(&one), update(&two));
            let report = found.report();
            assert!(report.teacher_turns > 0 && report.student_turns > 0, "both act");
            assert!(report.loss > 0.05 && report.differing == 0, "{kind:?} {compute:?}, step {step}: {report:?}");
            assert_eq!(report.loss.to_bits(), wanted.report().loss.to_bits());
            assert!(gradients(&found) == gradients(&wanted), "{kind:?} {compute:?}, step {step}");
            assert!(adapter_bytes(&student) == adapter_bytes(two.student()));
        }
        assert_eq!(weight_bytes(&student), weight_bytes(&apart), "one base, as it was");
    }
}

#[test]
fn it_teaches_what_a_model_does_that_it_is_merged_into() {
    let opd = |mut document: Value| {
        document["actor"] = json!({"kind": "student"});
        document
    };
    let (student, merged) = (with_expert(Kind::Dense, Compute::F32), with_expert(Kind::Dense, Compute::F32));
    merged.merge_adapter(Some("expert"), 9).unwrap();
    let one = taught_by_itself(&student, opd(by_expert()));
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let two = Distiller::new(&student, Some(&merged), settings(opd(document()))).unwrap();
    assert_eq!(records(&play_together(&one, 4, 3)), records(&play_together(&two, 4, 3)));
    let (one, two) = (update(&one), update(&two));
    let (found, wanted) = (one.report().loss, two.report().loss);
    assert!(found > 0.05 && (found - wanted).abs() < 1e-5 * wanted, "{found}, {wanted}");
    let (found, wanted) = (gradients(&one), gradients(&two));
    let largest = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let apart = found.iter().zip(&wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart < 1e-4 * largest, "{apart:e} of {largest:e}");
}

#[test]
fn a_teachers_adapter_without_a_teacher_that_has_it_is_refused() {
    let student = with_expert(Kind::Dense, Compute::F32);
    let refusal = |teacher: Option<Teacher>, document: Value| {
        let e = Distiller::taught(&student, teacher, settings(document)).map(drop).unwrap_err();
        (e.fault(), e.message().to_string())
    };
    let (fault, why) = refusal(None, json!({"preset": "sft", "teacher_adapter": "expert"}));
    assert!(fault == Fault::BadOption && why.starts_with("teacher_adapter: wanted null"), "{why}");
    let options = QueueOptions::from_json(r#"{"vocabulary": "the-students", "top_k": 4}"#).unwrap();
    let queue = Teacher::Queue(TeacherQueue::new(options));
    let (fault, why) = refusal(Some(queue), json!({"preset": "opd", "teacher_adapter": "expert"}));
    assert!(fault == Fault::BadOption && why.contains("the host's teacher"), "{why}");
    let own = || Some(Teacher::Local(student.clone()));
    let (fault, why) = refusal(own(), with(|s| s["teacher_adapter"] = json!("novice")));
    assert!(fault == Fault::UnknownAdapter && why.contains("novice") && why.contains("loaded are expert"), "{why}");
    // The first update would replace the base under it.
    let (fault, why) = refusal(own(), json!({"preset": "opd", "teacher_adapter": "expert"}));
    assert!(fault == Fault::BadOption && why.contains("give lora"), "{why}");
    let copy = with_expert(Kind::Dense, Compute::F32);
    let all = settings(json!({"preset": "opd", "teacher_adapter": "expert"}));
    assert!(Distiller::new(&student, Some(&copy), all).is_ok(), "a copy keeps its base");
}

#[test]
fn an_episode_keeps_the_teachers_adapter_that_it_was_begun_with() {
    let untouched = taught_by_itself(&with_expert(Kind::Dense, Compute::F32), by_expert());
    let student = with_expert(Kind::Dense, Compute::F32);
    let d = taught_by_itself(&student, by_expert());
    let seats = |d: &Distiller| [0; 3].map(|_| Seat::new(d, EpisodeSpec::default()));
    let (wanted, found) = (seats(&untouched), seats(&d));
    student.unload_adapter("expert").unwrap();
    let e = d.begin(EpisodeSpec::default()).map(drop).unwrap_err();
    assert_eq!(e.fault(), Fault::UnknownAdapter, "{e}");
    let played = |seats: [Seat; 3]| records(&seats.map(|seat| seat.play(3)));
    assert_eq!(played(found), played(wanted));
    assert!(gradients(&update(&d)) == gradients(&update(&untouched)));
    // New episodes get the newest of the name; what was refused has taken no number.
    student.add_adapter("expert", expert(&student, 4)).unwrap();
    let seat = Seat::new(&d, EpisodeSpec::default());
    assert_eq!(seat.episode.heading().episode, 3);
    seat.play(3);
    Seat::new(&untouched, EpisodeSpec::default()).play(3);
    assert!(gradients(&update(&d)) != gradients(&update(&untouched)));
}

#[test]
fn a_run_goes_on_with_the_same_teachers_adapter_and_its_check_asks_that_one() {
    let (whole, student) = (with_expert(Kind::Dense, Compute::F32), with_expert(Kind::Dense, Compute::F32));
    let (whole, broken) = (taught_by_itself(&whole, by_expert()), taught_by_itself(&student, by_expert()));
    let check = |d: &Distiller| {
        let text = CheckText::Ids((0..20).map(|i| i * 7 % 60).collect());
        d.check_teacher(&text, Default::default(), &Cancel::default()).unwrap()["signal"]["mean"].as_f64().unwrap()
    };
    assert!(check(&whole) > 0.05);
    assert_eq!(check(&taught_by_itself(&student, document())), 0.0, "without the adapter it is the student");
    let folder = tempfile::tempdir().unwrap();
    one_update(&whole);
    one_update(&broken);
    broken.save(folder.path()).unwrap();
    let again = with_expert(Kind::Dense, Compute::F32);
    let resume = |document: Value| Distiller::resume(&again, Some(&again), settings(document), folder.path());
    let e = resume(document()).map(drop).unwrap_err();
    assert!(e.fault() == Fault::CheckpointMismatch && e.message().contains("teacher_adapter"), "{e}");
    let broken = resume(by_expert()).unwrap();
    assert_eq!(one_update(&whole).loss.to_bits(), one_update(&broken).loss.to_bits());
    assert!(adapter_bytes(&again) == adapter_bytes(whole.student()));
}
