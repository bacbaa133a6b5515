//! Checkpoints: a run that was interrupted, or killed at any moment, ends with the bits of one that was not.

#[path = "support/scripted.rs"]
mod scripted;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Distiller, EpisodeSpec};
use squire::error::Fault;
use squire::serve::{Engine, EngineOptions, Level, Log, ServedModel};

fn document() -> Value {
    // Numbers of many digits: what is written must be read as the same.
    json!({"preset": "guided-opd", "steps": 8, "seed": 11,
        "actor": {"kind": "bernoulli", "beta": {"start": 0.9137465028374651, "end": 0, "shape": "cosine", "finish": 0.8, "clock": "fraction"}},
        "optimizer": {"learning_rate": 0.010000000000000002, "weight_decay": 0.011111111111111112, "beta2": 0.9800000000000001}})
}

/// One update, and an evaluation after every second.
fn one_update(d: &Distiller) {
    play_together(d, 3, 2);
    let report = update(d).report().clone();
    assert!(report.differing == 0 && report.trained_episodes == 3);
    if d.step().is_multiple_of(2) {
        Seat::new(d, EpisodeSpec { evaluation: true, ..Default::default() }).play(2);
    }
}

fn fresh(kind: Kind, compute: Compute) -> Distiller {
    distiller(kind, compute, document())
}

fn resume(kind: Kind, compute: Compute, path: &Path) -> Distiller {
    let (student, teacher) = pair(kind, compute);
    Distiller::resume(&student, Some(&teacher), settings(document()), path).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_resumed_at_every_border_ends_with_the_bits_of_the_unbroken_one() {
    for (kind, compute) in [(Kind::Dense, Compute::F32), (Kind::Moe, Compute::Bf16)] {
        let whole = fresh(kind, compute);
        (0..6).for_each(|_| one_update(&whole));

        let folder = tempfile::tempdir().unwrap();
        let mut broken = fresh(kind, compute);
        broken.save(folder.path()).unwrap();
        for step in 0..6 {
            assert_eq!(broken.step(), step);
            broken = resume(kind, compute, folder.path());
            one_update(&broken);
            broken.save(folder.path()).unwrap();
            assert_eq!(names(folder.path()), [format!("step-{:08}", step + 1)]);
        }
        assert!(weight_bytes(whole.student()) == weight_bytes(broken.student()), "{kind:?} {compute:?}");
        let standing = |d: &Distiller| {
            let m = d.metrics();
            ["step", "beta", "learning_rate", "revision"].map(|key| m[key].clone())
        };
        assert_eq!(standing(&whole), standing(&broken));
        // What an update starts from, masters and moments, is the same too.
        one_update(&whole);
        one_update(&broken);
        assert!(weight_bytes(whole.student()) == weight_bytes(broken.student()), "{kind:?} {compute:?}");
    }
}

#[test]
fn a_resumed_run_may_have_another_learning_rate_and_says_so() {
    let (folder, _) = checkpoint();
    let stepped = |document: Value| {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        let log = Log(Arc::new(move |_: Level, _: &str, text: &str| kept.lock().unwrap().push(text.to_string())));
        let options = EngineOptions { n_threads: 2, compute: Compute::F32, log: Some(log), ..Default::default() };
        let engine = Engine::new(options).unwrap();
        let student = model(&engine, &config(Kind::Dense, 32, 2), 1);
        let teacher = model(&engine, &config(Kind::Dense, 48, 3), 2);
        let d = Distiller::resume(&student, Some(&teacher), settings(document), folder.path()).unwrap();
        let before = student.current().weights.tensors().iter().flat_map(|(_, t)| t.f32().to_vec()).collect::<Vec<_>>();
        one_update(&d);
        let after = student.current().weights.tensors().iter().flat_map(|(_, t)| t.f32().to_vec()).collect::<Vec<_>>();
        let moved: Vec<f64> = after.iter().zip(&before).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let lines = lines.lock().unwrap().join("\n");
        (moved, lines, d)
    };
    // Without decay AdamW's step is proportional to the rate.
    let mut document = document();
    document["optimizer"]["weight_decay"] = 0.into();
    let (plain, _, _) = stepped(document.clone());
    document["optimizer"]["learning_rate"] = (2.0 * 0.010000000000000002).into();
    let (doubled, lines, d) = stepped(document.clone());
    let largest = plain.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    assert!(plain.iter().zip(&doubled).all(|(a, b)| (2.0 * a - b).abs() < 1e-4 * largest), "twice the step");
    assert!(largest > 1e-3);
    let told = "resumed with optimizer.learning_rate 0.020000000000000004 in place of 0.010000000000000002";
    assert!(lines.contains(told), "{lines}");
    // It goes on in its folder, and what it replaces there is its own.
    d.save(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["step-00000002"]);
    // A run of its own with that rate is another run.
    let other = distiller(Kind::Dense, Compute::F32, with_another_rate(&document));
    (0..3).for_each(|_| one_update(&other));
    assert_eq!(fault(other.save(folder.path())), Fault::CheckpointMismatch);
}

#[test]
fn what_is_left_of_a_run_before_it_was_resumed_otherwise_is_its_own() {
    let (folder, at) = checkpoint();
    let mut longer = document();
    longer["steps"] = 16.into();
    let resumed = || {
        let (student, teacher) = pair(Kind::Dense, Compute::F32);
        Distiller::resume(&student, Some(&teacher), settings(longer.clone()), folder.path()).unwrap()
    };
    let kept = tempfile::tempdir().unwrap();
    for name in fs::read_dir(&at).unwrap().map(|e| e.unwrap().file_name()) {
        fs::copy(at.join(&name), kept.path().join(&name)).unwrap();
    }
    let d = resumed();
    one_update(&d);
    d.save(folder.path()).unwrap();
    // The process ended before what it replaces was removed.
    fs::create_dir(&at).unwrap();
    for name in fs::read_dir(kept.path()).unwrap().map(|e| e.unwrap().file_name()) {
        fs::copy(kept.path().join(&name), at.join(&name)).unwrap();
    }
    let d = resumed();
    assert_eq!(d.step(), 2);
    one_update(&d);
    d.save(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["step-00000003"]);
}

#[test]
fn a_knob_that_did_nothing_is_no_other_run() {
    let (folder, at) = checkpoint();
    let mut older = state(folder.path());
    // Settings of before could say so; now they are refused, since no teacher's advantage is asked for.
    older["settings"]["reward"]["discount"] = 0.5.into();
    older["settings"]["turn_weights"]["renormalise"] = true.into();
    fs::write(at.join("state.json"), older.to_string()).unwrap();
    assert_eq!(resume(Kind::Dense, Compute::F32, folder.path()).step(), 1);
}

#[test]
fn a_checkpoint_from_before_a_knob_there_was_is_resumed_and_one_with_a_knob_that_is_none_is_not() {
    let (folder, at) = checkpoint();
    let whole = state(folder.path());
    let mut older = whole.clone();
    let settings = older["settings"].as_object_mut().unwrap();
    for knob in
        ["advantage", "ratio", "reward", "turn_weights", "normaliser_scope", "learn_turns", "truncated", "max_repeats"]
    {
        settings.remove(knob).unwrap();
    }
    settings["optimizer"].as_object_mut().unwrap().remove("eps").unwrap();
    fs::write(at.join("state.json"), older.to_string()).unwrap();
    assert_eq!(resume(Kind::Dense, Compute::F32, folder.path()).step(), 1);
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    // What it had by default is not what this run is to have.
    let mut other = document();
    other["normaliser_scope"] = "actor".into();
    let (fault, message) = refusal(&student, &teacher, other, folder.path());
    assert!(
        fault == Fault::CheckpointMismatch
            && message.contains("normaliser_scope is \"batch\" there and \"actor\" here"),
        "{message}"
    );
    for (object, key) in [("optimizer", "momentum"), ("advantage", "critic")] {
        let mut later = whole.clone();
        later["settings"][object][key] = 0.5.into();
        fs::write(at.join("state.json"), later.to_string()).unwrap();
        let (fault, message) = refusal(&student, &teacher, document(), folder.path());
        let told = format!("{object}.{key} is 0.5 there and no knob here");
        assert!(fault == Fault::CheckpointMismatch && message.contains(&told), "{message}");
    }
    let mut later = whole;
    later["settings"]["critic"] = true.into();
    fs::write(at.join("state.json"), later.to_string()).unwrap();
    let (_, message) = refusal(&student, &teacher, document(), folder.path());
    assert!(message.contains("critic is true there and no knob here"), "{message}");
}

/// The same with a rate that no checkpoint has.
fn with_another_rate(document: &Value) -> Value {
    let mut other = document.clone();
    other["optimizer"]["learning_rate"] = 0.03.into();
    other
}

#[test]
fn what_was_applied_and_not_published_is_published_by_resuming() {
    let folder = tempfile::tempdir().unwrap();
    let d = fresh(Kind::Dense, Compute::F32);
    play(&d, 2, 2);
    let mut built = build(&d);
    d.apply(&mut built).unwrap();
    d.save(folder.path()).unwrap();
    let again = resume(Kind::Dense, Compute::F32, folder.path());
    assert_eq!((again.student().current().number, again.step()), (2, 1));
    d.publish().unwrap();
    assert!(weight_bytes(d.student()) == weight_bytes(again.student()));
}

#[test]
fn a_second_checkpoint_of_a_step_never_takes_the_first_away_before_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let d = fresh(Kind::Dense, Compute::F32);
    one_update(&d);
    for name in ["step-00000001", "step-00000001-1", "step-00000001-2"] {
        d.save(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [name]);
        // The counters of episodes have moved on, and the newest says so.
        assert_eq!(state(folder.path())["next_episode"], play(&d, 1, 1)[0].heading.episode);
        d.discard();
    }
    assert_eq!(resume(Kind::Dense, Compute::F32, folder.path()).step(), 1);
}

#[test]
fn episodes_that_wait_are_no_part_of_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let d = fresh(Kind::Dense, Compute::F32);
    play(&d, 1, 1);
    assert_eq!(fault(d.save(folder.path())), Fault::OutOfOrder);
    assert!(names(folder.path()).is_empty());
    d.discard();
    d.save(folder.path()).unwrap();
}

/// A checkpoint after one update, and its folder within.
fn checkpoint() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let d = fresh(Kind::Dense, Compute::F32);
    one_update(&d);
    d.save(folder.path()).unwrap();
    let at = folder.path().join("step-00000001");
    (folder, at)
}

/// The state document of the only checkpoint.
fn state(path: &Path) -> Value {
    let text = fs::read(path.join(&names(path)[0]).join("state.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Resuming is refused, and the student is as it was.
fn refusal(student: &ServedModel, teacher: &ServedModel, document: Value, path: &Path) -> (Fault, String) {
    let facts = |m: &ServedModel| (m.current().number, m.n_revisions_alive(), weight_bytes(m));
    let before = facts(student);
    let e = Distiller::resume(student, Some(teacher), settings(document), path).err().expect("a refusal");
    assert!(facts(student) == before, "a refused resume changes nothing");
    (e.fault(), e.message().to_string())
}

#[test]
fn a_checkpoint_of_other_settings_or_another_model_is_refused() {
    let (folder, _) = checkpoint();
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    for (change, word) in [
        (json!({"seed": 12}), "seed is 11 there and 12 here"),
        (json!({"steps": 7}), "settings: its steps are not this run's"),
        (json!({"normaliser": "turn-mean"}), "normaliser"),
        (json!({"optimizer": {"learning_rate": 1e-3, "beta1": 0.8}}), "optimizer.beta1 is 0.9 there and 0.8 here"),
    ] {
        let mut changed = document();
        for (key, value) in change.as_object().unwrap() {
            changed[key] = value.clone();
        }
        let (fault, message) = refusal(&student, &teacher, changed, folder.path());
        assert_eq!(fault, Fault::CheckpointMismatch);
        assert!(message.contains("settings") && message.contains(word), "{message}");
    }
    let engine = engine(Compute::F32);
    let (other, teacher) =
        (model(&engine, &config(Kind::Dense, 32, 1), 1), model(&engine, &config(Kind::Dense, 48, 3), 2));
    let (fault, message) = refusal(&other, &teacher, document(), folder.path());
    assert!(fault == Fault::CheckpointMismatch && message.contains("num_hidden_layers"), "{message}");
    let (student, teacher) = pair(Kind::Dense, Compute::Bf16);
    let (fault, message) = refusal(&student, &teacher, document(), folder.path());
    assert!(fault == Fault::CheckpointMismatch && message.contains("dtype"), "{message}");
    // The same after all of that.
    let d = resume(Kind::Dense, Compute::F32, folder.path());
    assert_eq!(d.step(), 1);
}

#[test]
fn a_checkpoint_of_another_vocabulary_is_refused() {
    let (folder, at) = checkpoint();
    let mut changed = state(folder.path());
    assert_eq!(changed["vocabulary"], Value::Null, "these models have no tokenizer");
    changed["vocabulary"] = json!("0123456789abcdef");
    fs::write(at.join("state.json"), changed.to_string()).unwrap();
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let (fault, message) = refusal(&student, &teacher, document(), folder.path());
    assert!(fault == Fault::CheckpointMismatch && message.contains("vocabulary"), "{message}");
}

#[test]
fn broken_checkpoints_are_refused_by_name() {
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let nowhere = tempfile::tempdir().unwrap();
    assert_eq!(refusal(&student, &teacher, document(), nowhere.path()).0, Fault::MissingFile);
    assert_eq!(refusal(&student, &teacher, document(), &nowhere.path().join("no")).0, Fault::MissingFile);

    let (folder, at) = checkpoint();
    let whole = state(folder.path());
    let refused = |what: &str, wanted: Fault| {
        let (fault, message) = refusal(&student, &teacher, document(), folder.path());
        assert_eq!(fault, wanted, "{what}: {message}");
        // Who only asks hears of it too; shapes and values are for whoever resumes.
        let asked = Distiller::checkpoint(folder.path()).map_err(|e| e.fault());
        assert!(asked == Err(Fault::CheckpointForm) || wanted == Fault::TensorShape, "{what}: {asked:?}");
    };
    let write = |value: &Value| fs::write(at.join("state.json"), value.to_string()).unwrap();
    for text in ["", "{", "[]", "null", "\u{0}\u{1}", "{\"version\": 1}"] {
        fs::write(at.join("state.json"), text).unwrap();
        refused(text, Fault::CheckpointForm);
    }
    fs::write(at.join("state.json"), [0xff, 0xfe]).unwrap();
    refused("not UTF-8", Fault::CheckpointForm);
    fs::remove_file(at.join("state.json")).unwrap();
    refused("no state", Fault::CheckpointForm);
    for (key, value) in [
        ("version", json!(2)),
        ("version", json!("1")),
        ("step", json!(-1)),
        ("step", json!(2)),
        ("step", json!(u64::MAX)),
        ("next_episode", json!(1.5)),
        ("next_evaluation", Value::Null),
        ("revision", json!(u64::MAX)),
        ("published", json!(1)),
        ("imported", json!([])),
        ("unlearnt", json!("0:0:0-1")),
    ] {
        let mut changed = whole.clone();
        changed[key] = value.clone();
        write(&changed);
        refused(&format!("{key} {value}"), Fault::CheckpointForm);
    }
    write(&whole);
    for name in ["masters.safetensors", "first_moments.safetensors", "second_moments.safetensors"] {
        let file = at.join(name);
        let good = fs::read(&file).unwrap();
        fs::write(&file, &good[..good.len() - 1]).unwrap();
        refused(name, Fault::SafetensorsOffsets);
        fs::write(&file, &good[..5]).unwrap();
        refused(name, Fault::SafetensorsHeaderLength);
        fs::remove_file(&file).unwrap();
        refused(name, Fault::MissingFile);
        fs::write(&file, &good).unwrap();
    }
    // A folder of a later step that holds but one of the files is not passed over in silence.
    let damaged = folder.path().join("step-00000009");
    for left in ["state.json", "masters.safetensors"] {
        fs::create_dir(&damaged).unwrap();
        fs::write(damaged.join(left), "").unwrap();
        refused("damaged newest", Fault::CheckpointForm);
        fs::remove_dir_all(&damaged).unwrap();
    }
    // A far step is not believed, even where folder and state agree.
    fs::rename(&at, folder.path().join("step-18446744073709551615")).unwrap();
    let mut far = whole.clone();
    far["step"] = json!(u64::MAX);
    fs::write(folder.path().join("step-18446744073709551615/state.json"), far.to_string()).unwrap();
    refused("far step", Fault::CheckpointForm);
}

#[test]
fn a_folder_that_cannot_be_written_leaves_the_old_checkpoint() {
    let (folder, at) = checkpoint();
    let d = resume(Kind::Dense, Compute::F32, folder.path());
    let file = at.join("state.json");
    assert_eq!(fault(d.save(&file)), Fault::CannotWrite);
    assert_eq!(names(folder.path()), ["step-00000001"]);
}

#[test]
fn leftovers_of_killed_saves_are_swept_and_never_resumed_from() {
    let (folder, at) = checkpoint();
    // No system gives a process so large a number.
    let leftover = folder.path().join(".step-00000007.2147483647-4.tmp");
    fs::create_dir(&leftover).unwrap();
    fs::copy(at.join("state.json"), leftover.join("state.json")).unwrap();
    fs::write(folder.path().join("notes.txt"), "the host's own").unwrap();
    let d = resume(Kind::Dense, Compute::F32, folder.path());
    assert_eq!(d.step(), 1);
    one_update(&d);
    d.save(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["notes.txt", "step-00000002"]);
}

#[test]
fn only_folders_that_hold_exactly_a_checkpoint_are_ever_removed() {
    let (folder, at) = checkpoint();
    let root = folder.path();
    let d = resume(Kind::Dense, Compute::F32, root);
    let put = |path: &str| {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), path).unwrap();
    };
    // A folder of the host's by the name of one, and one that a host put a file of its own into.
    let theirs = [
        "step-00000000/thesis.txt",
        "step-0/state.json",
        "step-00000001/notes.txt",
        ".step-00000001.2147483647-0.tmp/thesis.txt",
    ];
    theirs.iter().for_each(|path| put(path));
    // What is no folder is no checkpoint: at the place of an older one, of a later one, of the one that comes next.
    let files = ["step-00000000-3", "step-00000002", "step-00000009"];
    files.iter().for_each(|path| put(path));
    #[cfg(unix)]
    std::os::unix::fs::symlink(&at, root.join("step-00000000-7")).unwrap();
    one_update(&d);
    d.save(root).unwrap();
    one_update(&d);
    d.save(root).unwrap();
    for path in theirs.iter().chain(&files) {
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), *path);
    }
    assert!(["state.json", "masters.safetensors"].iter().all(|name| at.join(name).exists()));
    assert!(root.join("step-00000003").is_dir() && !root.join("step-00000002-1").exists());
    assert_eq!(resume(Kind::Dense, Compute::F32, root).step(), 3);
}

#[test]
fn a_host_s_folder_by_the_name_of_a_later_checkpoint_stands_in_nobody_s_way_and_a_damaged_one_does() {
    let (folder, _) = checkpoint();
    let root = folder.path();
    let thesis = root.join("step-99999999/thesis.txt");
    fs::create_dir(thesis.parent().unwrap()).unwrap();
    fs::write(&thesis, "years of work").unwrap();
    fs::create_dir(root.join("step-00000009")).unwrap();
    assert_eq!(Distiller::checkpoint(root).unwrap(), Some(1));
    let d = resume(Kind::Dense, Compute::F32, root);
    one_update(&d);
    d.save(root).unwrap();
    assert_eq!(names(root), ["step-00000002", "step-00000009", "step-99999999"]);
    assert_eq!(fs::read(&thesis).unwrap(), b"years of work");
    // One of a checkpoint's files, and it may be a later run's.
    fs::write(thesis.with_file_name("second_moments.safetensors"), "").unwrap();
    assert_eq!(fault(Distiller::checkpoint(root).map(|_| ())), Fault::CheckpointForm);
    assert_eq!(fault(d.save(root)), Fault::CheckpointMismatch);
}

#[test]
fn another_run_s_checkpoint_is_not_removed() {
    let (folder, _) = checkpoint();
    let mut document = document();
    document["optimizer"]["weight_decay"] = 0.5.into();
    let mut longer = self::document();
    longer["steps"] = 16.into();
    for document in [document, longer] {
        let other = distiller(Kind::Dense, Compute::F32, document);
        for _ in 0..2 {
            one_update(&other);
            assert_eq!(fault(other.save(folder.path())), Fault::CheckpointMismatch);
        }
    }
    assert_eq!(names(folder.path()), ["step-00000001"]);
    assert_eq!(resume(Kind::Dense, Compute::F32, folder.path()).step(), 1);
}

/// What a call says that must not wait for anybody.
#[cfg(unix)]
fn at_once<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(call()));
    told.recv_timeout(std::time::Duration::from_secs(60)).expect("an answer within a minute")
}

#[test]
#[cfg(unix)]
fn pipes_sockets_devices_links_and_folders_are_no_files_of_a_checkpoint() {
    let (folder, at) = checkpoint();
    let root = folder.path().to_path_buf();
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["state.json", "masters.safetensors", "first_moments.safetensors", "second_moments.safetensors"] {
        let (file, kept) = (at.join(name), elsewhere.path().join(name));
        fs::rename(&file, &kept).unwrap();
        let mut socket = None;
        for found in ["a pipe", "a socket", "a link", "a folder"] {
            match found {
                "a pipe" => assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success()),
                "a socket" => socket = Some(std::os::unix::net::UnixListener::bind(&file).unwrap()),
                "a link" => std::os::unix::fs::symlink(&kept, &file).unwrap(),
                _ => fs::create_dir(&file).unwrap(),
            }
            let path = root.clone();
            let probed =
                at_once(move || Distiller::checkpoint(&path).map_err(|e| (e.fault(), e.message().to_string())));
            let (fault, message) = probed.unwrap_err();
            assert!(fault == Fault::CheckpointForm && message.contains(found) && message.contains(name), "{message}");
            let path = root.clone();
            let resumed = at_once(move || {
                let (student, teacher) = pair(Kind::Dense, Compute::F32);
                refusal(&student, &teacher, document(), &path)
            });
            assert!(resumed.1.contains(found), "{resumed:?}");
            if found == "a folder" { fs::remove_dir(&file) } else { fs::remove_file(&file) }.unwrap();
        }
        drop(socket);
        fs::rename(&kept, &file).unwrap();
    }
    assert_eq!(Distiller::checkpoint(&root).unwrap(), Some(1));
}

#[test]
fn a_state_document_that_no_checkpoint_has_is_not_read_into_memory() {
    let (folder, at) = checkpoint();
    let file = fs::File::options().write(true).open(at.join("state.json")).unwrap();
    file.set_len(1 << 40).unwrap(); // a hole in the file: nothing of it lies on disk
    let e = Distiller::checkpoint(folder.path()).unwrap_err();
    assert!(e.fault() == Fault::CheckpointForm && e.message().contains("16777216"), "{e}");
}

#[test]
fn an_episode_that_ends_before_the_learner_is_locked_is_not_missed() {
    // Counted under the locks of the checkpoint: while an update is built, the waiting are not looked at.
    let folder = tempfile::tempdir().unwrap();
    let d = fresh(Kind::Dense, Compute::F32);
    play_together(&d, 3, 2);
    let mut answers = Vec::new();
    let built = d.build(0, &Default::default(), &mut |_, _| {
        answers.push(fault(d.save(folder.path())));
        play(&d, 1, 1);
        true
    });
    drop(built.unwrap());
    assert!(!answers.is_empty() && answers.iter().all(|&answer| answer == Fault::DistillerBusy), "{answers:?}");
    // Those that ended meanwhile are no part of a checkpoint, and it says so.
    assert_eq!(fault(d.save(folder.path())), Fault::OutOfOrder);
    d.discard();
    d.save(folder.path()).unwrap();
    assert_eq!(state(folder.path())["next_episode"], 3 + answers.len());
}

// Kills.

#[cfg(unix)]
mod kills {
    use super::*;
    use squire::random::{Stream, below, uniform};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    const STEPS: u64 = 12;
    const KILLS: usize = 20;
    /// Where a child finds its folder.
    const FOLDER: &str = "SQUIRE_TEST_CHECKPOINT_FOLDER";

    /// Of a run in a folder: one whose name begins so trains an adapter.
    fn child_settings(path: &Path) -> Value {
        let is_lora = path.file_name().unwrap().to_str().unwrap().starts_with("lora");
        let lora = if is_lora { json!({"rank": 4, "alpha": 8}) } else { json!(null) };
        json!({"preset": "guided-opd", "steps": STEPS, "optimizer": {"learning_rate": 1e-2}, "lora": lora})
    }

    fn run_to_the_end(path: &Path) {
        let child_settings = || settings(child_settings(path));
        let (student, teacher) = pair(Kind::Dense, Compute::F32);
        let begun = path.exists() && names(path).iter().any(|name| name.starts_with("step-"));
        let d = match begun {
            true => Distiller::resume(&student, Some(&teacher), child_settings(), path).unwrap(),
            false => Distiller::new(&student, Some(&teacher), child_settings()).unwrap(),
        };
        while d.step() < STEPS {
            play_together(&d, 3, 2);
            update(&d);
            d.save(path).unwrap();
        }
        d.student().save(&path.with_extension("model")).unwrap();
    }

    /// Not a test of its own: what the children of the next one run.
    #[test]
    fn child() {
        if let Ok(path) = std::env::var(FOLDER) {
            run_to_the_end(Path::new(&path));
        }
    }

    fn start(path: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::child", "--test-threads", "1"])
            .env(FOLDER, path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Everything that a finished run left.
    fn results(path: &Path) -> Vec<(String, Vec<u8>)> {
        // A kill between the last checkpoint and the removal of the one before leaves that, or what is left of it aside.
        let (left, before) = (names(path), format!("step-{:08}", STEPS - 1));
        assert_eq!(*left.last().unwrap(), format!("step-{STEPS:08}"));
        let removed = |name: &str| name == before || name.starts_with(&format!(".{before}."));
        assert!(left.len() == 1 || left.len() == 2 && removed(&left[0]), "{left:?}");
        let last = path.join(format!("step-{STEPS:08}"));
        let mut files: Vec<_> = names(&last).iter().map(|name| last.join(name)).collect();
        files.push(path.with_extension("model").join("model.safetensors"));
        let read = |f: PathBuf| {
            let (name, mut bytes) = (f.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&f).unwrap());
            if name == "state.json" {
                // Two runs have two names.
                let mut state: Value = serde_json::from_slice(&bytes).unwrap();
                assert!(state.as_object_mut().unwrap().remove("run").is_some());
                bytes = state.to_string().into_bytes();
            }
            (name, bytes)
        };
        files.into_iter().map(read).collect()
    }

    /// The step of the newest checkpoint.
    fn reached(path: &Path) -> u64 {
        let all = fs::read_dir(path).into_iter().flatten();
        let step = |e: fs::DirEntry| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
        all.filter_map(|e| step(e.ok()?)).max().unwrap_or(0)
    }

    #[test]
    fn twenty_kills_at_random_moments_change_no_bit() {
        kills_change_no_bit("");
    }

    #[test]
    fn twenty_kills_while_an_adapter_is_trained_change_no_bit() {
        kills_change_no_bit("lora");
    }

    fn kills_change_no_bit(prefix: &str) {
        let root = tempfile::tempdir().unwrap();
        let clock = Instant::now();
        let unbroken = root.path().join(format!("{prefix}unbroken"));
        assert!(start(&unbroken).wait().unwrap().success());
        let update_time = clock.elapsed().as_secs_f64() / STEPS as f64;
        let wanted = results(&unbroken);
        assert_eq!((wanted.len(), names(&unbroken).len()), (5, 1));

        // A child lives for none to two updates and a random share of two more; a run that comes to its end
        // between the kills is compared, and the next one begins.
        let (mut kills, mut amid_a_save, mut at) = (0, 0, Vec::new());
        let (mut run, mut finished) = (root.path().join(format!("{prefix}0")), 0);
        for draw in 0.. {
            let (mut child, begins_at) = (start(&run), reached(&run));
            if kills < KILLS {
                let lives = begins_at + below(Stream::World, &[1, draw], 3);
                while reached(&run) < lives && child.try_wait().unwrap().is_none() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let share = f64::from(uniform(Stream::World, &[2, draw]));
                std::thread::sleep(Duration::from_secs_f64(2.0 * share * update_time));
                child.kill().unwrap();
            }
            let status = child.wait().unwrap();
            if status.success() {
                assert!(results(&run) == wanted, "the bits are those of the unbroken run");
                finished += 1;
                if kills == KILLS {
                    break;
                }
                run = root.path().join(format!("{prefix}{finished}"));
                continue;
            }
            assert_eq!(status.signal(), Some(9), "a child fails only by being killed");
            kills += 1;
            at.push(reached(&run));
            assert!(reached(&run) >= begins_at, "a checkpoint that stood is gone");
            let left = if run.exists() { names(&run) } else { Vec::new() };
            let leftovers = left.iter().filter(|name| name.ends_with(".tmp")).count();
            assert!(leftovers <= 1, "leftovers do not pile up: {left:?}");
            amid_a_save += leftovers;
        }
        eprintln!("{kills} kills at steps {at:?}, {amid_a_save} amid a save; {finished} runs came to their end");
        at.sort();
        at.dedup();
        assert!(at.len() >= 4, "kills at {at:?} alone");
    }
}
