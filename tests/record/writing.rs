//! What stands in the two files, and what happens to them.

use super::*;
use squire::error::Fault;

fn document() -> Value {
    json!({"preset": "guided-opd", "seed": 5, "batch_episodes": 4, "actor": {"kind": "bernoulli", "beta": 0.5}})
}

#[test]
fn the_metrics_tell_the_run() {
    let (folder, checkpoints) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let d = plain(document());
    record(&d, folder.path());
    let played = play_rewarded(&d, 0, 4);
    let mut update = build(&d);
    d.apply(&mut update).unwrap();
    let revision = d.publish().unwrap();
    d.save(checkpoints.path()).unwrap();

    let told = lines(folder.path(), "metrics.jsonl");
    let kinds: Vec<&str> = told.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["run", "episode", "episode", "episode", "episode", "update", "applied", "published", "saved"]);
    assert!(told.iter().all(|line| line["run"] == json!(d.run()) && line["time"].as_f64().unwrap() > 1.7e9));
    assert_eq!(
        (&told[0]["version"], &told[0]["step"], &told[0]["settings"]["seed"]),
        (&json!(1), &json!(0), &json!(5))
    );
    assert!(told[0]["student"]["parameters"].as_u64().unwrap() > 1000);
    let one = &played[1];
    let rewards: f64 = one.turns().iter().filter_map(|turn| turn.reward).sum();
    assert_eq!(told[2]["return"].as_f64(), Some(rewards + one.outcome().unwrap().score));
    assert_eq!(told[2]["tokens"], json!(one.ids().len()));
    let tokens = |actor: Actor| one.turns().iter().filter(|t| t.actor == actor).map(|t| t.range.len()).sum::<usize>();
    assert_eq!(told[2]["student_tokens"], json!(tokens(Actor::Student)));
    assert_eq!(told[2]["teacher_tokens"], json!(tokens(Actor::Teacher)));
    assert_eq!((&told[5]["step"], &told[5]["report"]["loss"]), (&json!(0), &json!(update.report().loss)));
    assert_eq!(told[5]["schedules"]["beta"], json!(0.5));
    assert_eq!((&told[6]["step"], &told[6]["finite"]), (&json!(1), &json!(true)));
    assert_eq!(told[6]["update_kl"], json!(update.report().update_kl));
    assert_eq!((&told[7]["revision"], &told[7]["probe"]["differing"]), (&json!(revision), &json!(0)));
    assert_eq!(d.metrics()["recording"]["episodes"], json!(4));
    d.stop_recording();
    assert_eq!(d.metrics()["recording"], Value::Null);
}

#[test]
fn a_run_that_is_driven_into_the_ground_says_why_it_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let mut document = document();
    document["optimizer"] = json!({"learning_rate": 10.0});
    let d = plain(document);
    record(&d, folder.path());
    play_rewarded(&d, 0, 4);
    let mut update = build(&d);
    d.apply(&mut update).unwrap();
    let e = d.publish().unwrap_err();
    assert_eq!(e.fault(), Fault::UpdateTooFar);
    let last = || lines(folder.path(), "metrics.jsonl").pop().unwrap();
    assert_eq!((&last()["kind"], &last()["reason"]), (&json!("refused"), &json!(e.message())));
    // Back to what is served, and the file says so.
    d.rollback(1).unwrap();
    assert_eq!(last()["kind"], json!("rolled_back"));
}

#[test]
fn a_resumed_run_goes_on_in_its_folder_and_what_was_cut_off_is_gone() {
    let (folder, checkpoints) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let d = plain(document());
    record(&d, folder.path());
    play_rewarded(&d, 0, 4);
    super::update(&d);
    d.save(checkpoints.path()).unwrap();
    play_rewarded(&d, 4, 2);
    let run = d.run();
    drop(d);
    for file in ["record.jsonl", "metrics.jsonl"] {
        let path = folder.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
    }
    let cut = read(folder.path());
    assert_eq!(cut.episodes.len(), 5, "up to the last whole episode");
    assert!(cut.cut.is_some_and(|n| n > 100) && cut.to_json()["cut"].is_u64());

    let (student, teacher) = pair(Kind::Dense, squire::backend::Compute::F32);
    let resumed = Distiller::resume(&student, Some(&teacher), settings(document()), checkpoints.path()).unwrap();
    assert_eq!(resumed.run(), run);
    record(&resumed, folder.path());
    play_rewarded(&resumed, 4, 2);
    let whole = read(folder.path());
    assert_eq!((whole.episodes.len(), whole.superseded, whole.cut, whole.runs.len()), (6, 1, None, 1));
    let told = lines(folder.path(), "metrics.jsonl");
    let begins: Vec<&Value> = told.iter().filter(|line| line["kind"] == "run").map(|line| &line["step"]).collect();
    assert_eq!(begins, [&json!(0), &json!(1)]);
}

#[test]
fn a_folder_has_one_run_and_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |d: &Distiller| d.record(folder.path(), RecordOptions::default()).unwrap_err();
    let d = plain(document());
    record(&d, folder.path());
    let other = plain(document());
    let e = refused(&other);
    assert_eq!(e.fault(), Fault::RecordInUse);
    assert!(e.message().ends_with("another distiller writes into this folder; choose another"), "{e}");
    // The same distiller may begin again.
    record(&d, folder.path());
    drop(d);
    let e = refused(&other);
    assert_eq!(e.fault(), Fault::RecordMismatch);
    assert!(e.message().contains(&format!("this one is {}; choose another folder", other.run())), "{e}");
    // What is refused leaves the record before as it was.
    let own = tempfile::tempdir().unwrap();
    record(&other, own.path());
    assert_eq!(refused(&other).fault(), Fault::RecordMismatch);
    play_rewarded(&other, 0, 1);
    assert_eq!(read(own.path()).episodes.len(), 1);
}

#[test]
fn what_is_no_record_is_not_written_to() {
    let d = plain(document());
    let refused = |file: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        let e = d.record(folder.path(), RecordOptions::default()).unwrap_err();
        assert_eq!(std::fs::read_to_string(folder.path().join(file)).unwrap(), text);
        (e.fault(), e.message().to_string())
    };
    for (file, text) in [("record.jsonl", "hello\n"), ("metrics.jsonl", "{\"kind\": 1}\n"), ("record.jsonl", "PNG")] {
        let (fault, said) = refused(file, text);
        let wanted = "its first line is none of squire's; choose another folder";
        assert!(fault == Fault::RecordForm && said.contains(wanted), "{said}");
    }
    let later = format!("{{\"kind\":\"record\",\"run\":\"{}\",\"version\":2}}\n", d.run());
    let (fault, said) = refused("record.jsonl", &later);
    assert!(fault == Fault::RecordVersion && said.ends_with("it is of version 2, this squire writes 1"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("record.jsonl")).unwrap();
    let e = d.record(folder.path(), RecordOptions::default()).unwrap_err();
    assert!(e.message().contains("regular file"), "{e}");
}

#[test]
fn recording_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let run = |folder: Option<&Path>| {
        let d = plain(document());
        folder.into_iter().for_each(|folder| record(&d, folder));
        let played = records(&play_rewarded(&d, 0, 4));
        let update = super::update(&d);
        (played, bytes(update.gradients()), weight_bytes(d.student()))
    };
    assert!(run(Some(folder.path())) == run(None));
}
