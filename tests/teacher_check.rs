//! A teacher is asked the same twice, whole and in parts, before a run: how far its answers lie apart stands beside how far it
//! and the student do.

#[path = "support/answering.rs"]
mod answering;
#[path = "support/folders.rs"]
#[allow(dead_code)]
mod folders;
#[path = "support/scripted.rs"]
mod scripted;

use std::thread;
use std::time::{Duration, Instant};

use answering::*;
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::teacher_request::NO_EPISODE;
use squire::distill::{CheckText, Distiller, Teacher, TeacherQueue};
use squire::error::{Error, Fault};
use squire::serve::{Cancel, Engine, EngineOptions, ServedModel};

const LONG: Duration = Duration::from_secs(60);

fn ids() -> CheckText {
    CheckText::Ids((0..25).map(|i| i * 7 % 60).collect())
}

/// Answers so many requests, each changed by `change` after its number.
fn answer_each(queue: &TeacherQueue, model: &ServedModel, n: usize, change: impl Fn(u64, &mut Answer)) {
    for _ in 0..n {
        let request = queue.next(1, LONG).pop().unwrap();
        let mut told = answer(model, &request);
        change(request.number, &mut told);
        queue.reply(request.number, told.reply()).unwrap();
    }
}

/// A check whose four questions a thread answers.
fn checked(
    d: &Distiller,
    queue: &TeacherQueue,
    model: &ServedModel,
    change: impl Fn(u64, &mut Answer) + Send,
) -> Value {
    thread::scope(|s| {
        s.spawn(|| answer_each(queue, model, 4, change));
        d.check_teacher(&ids(), LONG, &Cancel::default()).unwrap()
    })
}

fn zero(report: &Value, which: &str) -> bool {
    ["largest", "mean", "top_largest", "top_mean", "share"].iter().all(|size| report[which][size] == 0.0)
}

#[test]
fn a_model_says_the_same_twice_and_in_parts_to_the_bit() {
    for (kind, compute) in ALL {
        let d = distiller(kind, compute, json!({"preset": "opd"}));
        let report = d.check_teacher(&ids(), Duration::ZERO, &Cancel::default()).unwrap();
        assert!(zero(&report, "again") && zero(&report, "in_parts"), "{kind:?} {compute:?}: {report}");
        assert!(report["signal"]["mean"].as_f64().unwrap() > 0.1, "{report}");
        assert_eq!((&report["ids"], &report["positions"], &report["middle"]), (&json!(25), &json!(24), &json!(13)));
        assert_eq!(report["warnings"], json!([]));
        assert_eq!((d.n_waiting(), d.metrics()["episodes"].as_u64()), (0, Some(0)));
    }
}

#[test]
fn the_hosts_teacher_is_asked_the_whole_twice_and_both_parts() {
    for top_k in [0, 5] {
        let document = json!({"preset": "opd", "student_turns": {"kernel": "sampled-reverse-kl"}});
        let (d, queue, model) = taught(json!({"top_k": top_k}), document);
        let report = thread::scope(|s| {
            let answering = s.spawn(|| {
                let mut asked = Vec::new();
                while asked.len() < 4 {
                    for r in queue.next(9, LONG) {
                        asked.push((r.from, r.ids.len(), r.asker.distiller, r.asker.episode, r.top_k));
                        queue.reply(r.number, answer(&model, &r).reply()).unwrap();
                    }
                }
                asked
            });
            let report = d.check_teacher(&ids(), LONG, &Cancel::default()).unwrap();
            let of = |(from, end)| (from, end, d.number(), NO_EPISODE, top_k);
            assert_eq!(answering.join().unwrap(), [(1, 25), (1, 25), (1, 13), (13, 25)].map(of));
            report
        });
        assert!(zero(&report, "again") && zero(&report, "in_parts"), "{report}");
        assert!(report["signal"]["mean"].as_f64().unwrap() > 0.1 && report["top_k"] == top_k, "{report}");
        // The local teacher of the same weights differs from the student by as much.
        let local = plain(json!({"preset": "opd"})).check_teacher(&ids(), LONG, &Cancel::default()).unwrap();
        assert_eq!(report["signal"], local["signal"]);
        // An episode is asked for as ever, by its number.
        play(&d, 1, 1);
        assert_eq!(answer_all(&queue, &model), 1);
        assert_eq!(build(&d).report().episodes, 1);
    }
}

#[test]
fn a_teacher_that_moves_by_itself_is_warned_of_with_how_much() {
    let (d, queue, model) = taught(json!({"top_k": 3}), json!({"preset": "opd"}));
    // Less likely by a half where it is asked again; both parts as the whole.
    let lower = |answer: &mut Answer, by: f32| {
        answer.logprobs.iter_mut().chain(&mut answer.top_logprobs).for_each(|logprob| *logprob -= by);
    };
    let report = checked(&d, &queue, &model, |number, answer| {
        if number == 2 {
            lower(answer, 0.5)
        }
    });
    let close = |value: &Value, wanted: f64| (value.as_f64().unwrap() - wanted).abs() < 1e-5;
    assert!(close(&report["again"]["mean"], 0.5) && close(&report["again"]["largest"], 0.5), "{report}");
    assert!(report["again"]["top_mean"].as_f64().unwrap() > 0.05 && zero(&report, "in_parts"), "{report}");
    let share = 0.5 / report["signal"]["mean"].as_f64().unwrap();
    assert!((report["again"]["share"].as_f64().unwrap() - share).abs() < 1e-5, "{report}");
    let warnings = report["warnings"].as_array().unwrap();
    assert!(share > 0.1 && warnings.len() == 1, "{report}");
    assert!(warnings[0].as_str().unwrap().contains("moves by 5.00e-1 where it is asked again"), "{report}");
    // In its parts alone, and by little: told, and no warning.
    let report = checked(&d, &queue, &model, |number, answer| {
        if number == 8 {
            lower(answer, 1e-3)
        }
    });
    assert!(zero(&report, "again") && close(&report["in_parts"]["largest"], 1e-3), "{report}");
    assert!(close(&report["in_parts"]["mean"], 0.5e-3) && report["warnings"] == json!([]), "{report}");
    // Other ids than before, as if they were as likely: those that are missing are no likelier than what is there.
    let report = checked(&d, &queue, &model, |number, answer| {
        if number == 10 {
            answer.top_ids.iter_mut().zip(0..).for_each(|(id, i)| *id = (i % 3 + 30 + answer.ids[i as usize / 3]) % 60);
            answer.top_logprobs.fill(-4.0);
            answer.logprobs.iter_mut().for_each(|logprob| *logprob = logprob.min(-4.0));
        }
    });
    assert!(report["again"]["top_mean"].as_f64().unwrap() > 0.1 && !report["warnings"].as_array().unwrap().is_empty());
}

#[test]
fn a_teacher_of_the_students_weights_has_no_signal_to_be_a_part_of() {
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let d = Distiller::new(&student, Some(&student), settings(json!({"preset": "opd"}))).unwrap();
    let report = d.check_teacher(&ids(), LONG, &Cancel::default()).unwrap();
    assert_eq!((&report["signal"]["mean"], &report["again"]["share"]), (&json!(0.0), &Value::Null));
    assert_eq!(report["warnings"], json!([]));
}

#[test]
fn a_teacher_that_is_silent_fails_or_is_closed_says_so_and_loses_nothing() {
    let (d, queue, model) = taught(json!({"top_k": 3, "deadline_ms": 60_000}), json!({"preset": "opd"}));
    play(&d, 1, 1);
    let check = |timeout| d.check_teacher(&ids(), timeout, &Cancel::default()).unwrap_err();
    let begun = Instant::now();
    let e = check(Duration::from_millis(60));
    assert!(e.fault() == Fault::TeacherSilent && e.message().contains("did not answer within 60 ms"), "{e}");
    assert!(e.message().starts_with("the sequence: ") && begun.elapsed() < Duration::from_secs(30), "{e}");
    // What it asked is withdrawn; the episode's request stands.
    assert_eq!((d.n_waiting(), queue.n_waiting()), (1, 1));
    let failing = |taken: usize| {
        thread::scope(|s| {
            s.spawn(|| {
                let mut n = 0;
                while n < 4 {
                    for r in queue.next(1, LONG).iter().filter(|r| r.asker.episode == NO_EPISODE) {
                        n += 1;
                        match n == taken {
                            true => return queue.fail(r.number, "HTTP 500").unwrap(),
                            false => queue.reply(r.number, answer(&model, r).reply()).unwrap(),
                        }
                    }
                }
            });
            check(LONG)
        })
    };
    for (taken, what) in [(1, "the sequence: "), (2, "the sequence again: "), (4, "its second part: ")] {
        let e = failing(taken);
        assert!(e.fault() == Fault::TeacherFailed && e.message().starts_with(what), "{e}");
        assert!(e.message().contains("HTTP 500"), "{e}");
    }
    // Nothing of the run has changed.
    assert_eq!((d.step(), d.n_waiting(), d.n_set_aside()), (0, 1, 0));
    // Stopped by whoever waits.
    let cancel = Cancel::default();
    cancel.set();
    assert_eq!(fault(d.check_teacher(&ids(), LONG, &cancel)), Fault::Cancelled);
    queue.close();
    let e = check(LONG);
    assert!(e.fault() == Fault::TeacherClosed && e.message().starts_with("the sequence: "), "{e}");
    // By its own deadline, where no time is given.
    let (d, _, _) = taught(json!({"top_k": 3, "deadline_ms": 30}), json!({"preset": "opd"}));
    assert_eq!(fault(d.check_teacher(&ids(), Duration::ZERO, &Cancel::default())), Fault::TeacherSilent);
}

#[test]
fn a_check_steps_an_engine_that_its_caller_drives() {
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, caller_driven: true, ..Default::default() };
    let student = scripted::model(&Engine::new(options).unwrap(), &config(Kind::Dense, 32, 2), 1);
    let (_, _, model) = taught(json!({}), json!({"preset": "sft"}));
    let queue = queue(json!({"top_k": 2}));
    let d =
        Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(json!({"preset": "opd"}))).unwrap();
    assert!(zero(&checked(&d, &queue, &model, |_, _| {}), "again"));
    let (_, d) = stepped(json!({"preset": "opd"}));
    assert!(zero(&d.check_teacher(&ids(), LONG, &Cancel::default()).unwrap(), "in_parts"));
}

#[test]
fn a_text_or_what_the_student_says_is_scored_likewise() {
    let folder = tempfile::tempdir().unwrap();
    folders::write_chat_model(folder.path(), 1);
    let engine = engine(Compute::F32);
    let load = || engine.load(folder.path(), Default::default()).unwrap();
    let (student, teacher) = (load(), load());
    let d = Distiller::new(&student, Some(&teacher), settings(json!({"preset": "opd"}))).unwrap();
    let check = |json: &str| d.check_teacher(&CheckText::from_json(json).unwrap(), LONG, &Cancel::default());
    let (one, two) = (check("{}").unwrap(), check(r#"{"tokens": 64}"#).unwrap());
    assert_eq!(one, two, "the same draw");
    assert_eq!(one["positions"], 64);
    assert!(one["ids"].as_u64().unwrap() > 64 + 5, "behind the template's prompt: {one}");
    assert_eq!(check(r#"{"tokens": 7}"#).unwrap()["positions"], 7);
    let text = check(r#"{"text": "hello user"}"#).unwrap();
    assert_eq!(text["ids"].as_u64().unwrap(), text["positions"].as_u64().unwrap() + 1);
    assert_eq!(check(r#"{"text": ""}"#).unwrap_err().fault(), Fault::BadLength);
    let cancel = Cancel::default();
    cancel.set();
    assert_eq!(fault(d.check_teacher(&CheckText::Sampled(64), LONG, &cancel)), Fault::Cancelled);
}

#[test]
fn what_cannot_be_checked_is_refused_by_name() {
    let d = plain(json!({"preset": "opd"}));
    let check = |ids: &[i32]| d.check_teacher(&CheckText::Ids(ids.to_vec()), LONG, &Cancel::default()).unwrap_err();
    let is = |e: Error, fault, part: &str| assert!(e.fault() == fault && e.message().contains(part), "{e}");
    is(check(&[1, 2]), Fault::BadLength, "a sequence of 3, found 2");
    is(check(&[]), Fault::BadLength, "found 0");
    is(check(&[1, 2, VOCABULARY as i32]), Fault::IdOutOfRange, "64");
    is(check(&[-1, 2, 3]), Fault::IdOutOfRange, "-1");
    is(check(&[1; CONTEXT + 1]), Fault::ContextFull, "");
    let e = d.check_teacher(&CheckText::Sampled(8), LONG, &Cancel::default()).unwrap_err();
    is(e, Fault::NoTemplate, "give the check ids or a text");
    let e = d.check_teacher(&CheckText::Text("a".into()), LONG, &Cancel::default()).unwrap_err();
    is(e, Fault::MissingFile, "tokenizer.json");
    let alone = Distiller::new(d.student(), None, settings(json!({"preset": "sft"}))).unwrap();
    is(alone.check_teacher(&ids(), LONG, &Cancel::default()).unwrap_err(), Fault::BadOption, "no teacher to check");
    for (json, fault, part) in [
        ("{", Fault::BadJson, "not JSON"),
        ("[]", Fault::BadValue, "an object"),
        (r#"{"id": 1}"#, Fault::UnknownKey, "id"),
        (r#"{"ids": 1}"#, Fault::BadValue, "a list of token ids"),
        (r#"{"ids": [1, 2.5]}"#, Fault::BadValue, "a list of token ids"),
        (r#"{"ids": [4294967296]}"#, Fault::BadValue, "a list of token ids"),
        (r#"{"text": []}"#, Fault::BadValue, "a text"),
        (r#"{"tokens": 1}"#, Fault::BadValue, "from 2 to 4096"),
        (r#"{"tokens": 5000}"#, Fault::BadValue, "from 2 to 4096"),
        (r#"{"ids": [1], "text": "a"}"#, Fault::BadValue, "one of ids, text and tokens"),
        (r#"{"text": "a", "tokens": 5}"#, Fault::BadValue, "one of ids, text and tokens"),
    ] {
        is(CheckText::from_json(json).unwrap_err(), fault, part);
    }
}
