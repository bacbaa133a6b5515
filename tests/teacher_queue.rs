//! A teacher in the host's own code: it is asked through a queue, and what it says counts only where it fits.

#[path = "support/answering.rs"]
mod answering;
#[path = "support/folders.rs"]
#[allow(dead_code)]
mod folders;
#[path = "support/scripted.rs"]
mod scripted;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use answering::*;
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Asker, Distiller, EpisodeSpec, QueueOptions, Reply, Teacher, Update};
use squire::error::{Error, Fault};
use squire::serve::{Cancel, Session};
use squire::text::source::Source;

fn try_build(d: &Distiller) -> Result<Update, Error> {
    d.build(0, &Cancel::default(), &mut |_, _| true)
}

/// The largest difference of any gradient, by the largest gradient.
fn apart(a: &Update, b: &Update) -> f64 {
    let (mut gap, mut size) = (0.0f64, 0.0f64);
    for ((_, a), (_, b)) in a.gradients().tensors().into_iter().zip(b.gradients().tensors()) {
        for (a, b) in a.f32().iter().zip(b.f32()) {
            (gap, size) = (gap.max(f64::from(a - b).abs()), size.max(f64::from(b.abs())));
        }
    }
    gap / size
}

#[test]
fn a_queue_that_answers_from_the_same_weights_gives_the_update_of_the_local_teacher() {
    for kernel in [json!("reverse-kl"), json!("forward-kl"), json!({"jsd": 0.3})] {
        let document = json!({"preset": "opd", "student_turns": {"kernel": kernel}, "batch_episodes": 3});
        let local = plain(document.clone());
        play(&local, 3, 3);
        let wanted = build(&local);
        // All ids, or all but one and a tail.
        for top_k in [VOCABULARY, VOCABULARY - 1] {
            let (d, queue, model) = taught(json!({"top_k": top_k}), document.clone());
            play(&d, 3, 3);
            assert_eq!((queue.n_waiting(), answer_all(&queue, &model)), (3, 3));
            let found = build(&d);
            let gap = apart(&found, &wanted);
            // A tail is 1 less a sum of f32 probabilities: of one unlikely id it knows four digits.
            let limit = if top_k == VOCABULARY - 1 { 1e-3 } else { 1e-5 };
            assert!(gap < limit, "{kernel} {top_k}: {gap:e}");
            let (found, wanted) = (found.report().loss, wanted.report().loss);
            assert!((found - wanted).abs() < limit * wanted.abs(), "{kernel} {top_k}: {found} and {wanted}");
        }
    }
}

/// Kernels of what was said alone, and turn weights, which are of the same numbers.
#[test]
fn what_needs_log_probs_of_what_was_said_learns_the_same_to_the_bit_by_a_queue_of_any_top_k() {
    let kernels = ["sampled-reverse-kl", "k2", "weighted-k3", "policy-gradient"].map(|kernel| (kernel, "none"));
    let weighed = ["t-dur", "sod", "gap-ratio"].map(|rule| ("policy-gradient", rule));
    for (kernel, rule) in kernels.into_iter().chain(weighed) {
        let document = json!({
            "preset": "opd", "student_turns": {"kernel": kernel}, "turn_weights": {"rule": rule}, "batch_episodes": 3,
        });
        let local = plain(document.clone());
        play(&local, 3, 3);
        let wanted = build(&local);
        assert!(wanted.report().loss.abs() > 0.1, "{document}");
        for top_k in [0, 1, VOCABULARY] {
            let (d, queue, model) = taught(json!({"top_k": top_k}), document.clone());
            play(&d, 3, 3);
            assert_eq!(answer_all(&queue, &model), 3);
            let found = build(&d);
            assert_eq!(found.report().loss.to_bits(), wanted.report().loss.to_bits(), "{document} {top_k}");
            for ((name, a), (_, b)) in found.gradients().tensors().into_iter().zip(wanted.gradients().tensors()) {
                assert!(
                    a.f32().iter().zip(b.f32()).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{document} {top_k}: {name}"
                );
            }
        }
    }
}

#[test]
fn fewer_ids_and_a_tail_say_less_and_never_more() {
    let document = json!({"preset": "opd", "batch_episodes": 3});
    let local = plain(document.clone());
    play(&local, 3, 3);
    let whole = build(&local);
    let (whole, tokens) = (whole.report().reverse_kl.unwrap(), whole.report().trained_tokens);
    let of = |top_k: usize| {
        let (d, queue, model) = taught(json!({"top_k": top_k}), document.clone());
        play(&d, 3, 3);
        answer_all(&queue, &model);
        let update = build(&d);
        assert_eq!(update.report().trained_tokens, tokens);
        update.report().reverse_kl.unwrap()
    };
    let (few, more) = (of(1), of(16));
    assert!(0.0 < few && few < more && more < whole, "{few} {more} {whole}");
}

#[test]
fn only_what_needs_the_teacher_is_asked_of_it() {
    // Replayed turns by cross-entropy, the student's by the reverse KL: an episode of the former asks nobody.
    let document = json!({
        "preset": "opd", "replay_turns": {"kernel": "cross-entropy"}, "batch_episodes": 2,
    });
    let (d, queue, model) = taught(json!({"top_k": 4}), document);
    let replayed = Seat::new(&d, EpisodeSpec::default());
    replayed.episode.observe_ids(&[1, 2, 3]).unwrap();
    replayed.episode.override_actor(Actor::Replay).unwrap();
    replayed.episode.replay(squire::distill::Replay::Ids(&[5, 6, STOP])).unwrap();
    replayed.episode.outcome(None, true).unwrap();
    replayed.end();
    assert_eq!(queue.n_waiting(), 0);
    let record = Seat::new(&d, EpisodeSpec::default()).play(2);
    let request = queue.next(10, SHORT).pop().unwrap();
    let (first, last) = (record.turns()[0].range.start, record.turns()[1].range.end);
    assert_eq!((request.from, request.ids.len(), request.top_k), (first, last, 4));
    assert_eq!((&request.ids[..], request.vocabulary), (&record.ids()[..last], VOCABULARY));
    queue.reply(request.number, answer(&model, &request).reply()).unwrap();
    let update = build(&d);
    assert_eq!(update.report().trained_episodes, 2);
    assert!(update.report().cross_entropy.is_some() && update.report().reverse_kl.is_some());
    // An evaluation asks nobody.
    Seat::new(&d, EpisodeSpec { evaluation: true, ..Default::default() }).play(2);
    assert_eq!(queue.n_waiting(), 0);
}

#[test]
fn what_a_teacher_does_not_give_is_refused_with_the_distiller() {
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let refused = |options: Value, document: Value| {
        Distiller::taught(&student, Some(Teacher::Queue(queue(options))), settings(document)).err().unwrap()
    };
    let e = refused(json!({"top_k": 8}), json!({"preset": "guided-opd"}));
    assert!(e.fault() == Fault::BadOption && e.message().contains("only scores"), "{e}");
    let e = refused(json!({}), json!({"preset": "opd"}));
    assert!(e.fault() == Fault::BadOption && e.message().contains("student_turns.kernel: reverse-kl"), "{e}");
    assert!(e.message().contains("use sampled-reverse-kl"), "{e}");
    // The student has no tokenizer to compare with.
    let e = refused(json!({"vocabulary": {"fingerprint": "0123456789abcdef"}}), json!({"preset": "sft"}));
    assert!(e.fault() == Fault::TeacherVocabulary && e.message().contains("the student has no tokenizer"), "{e}");
}

#[test]
fn vocabularies_are_compared_by_what_their_ids_mean() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    folders::write_chat_model(&one, 1);
    folders::write_chat_model(&other, 2);
    // The same tokenizer but for the meaning of one id.
    let text = std::fs::read_to_string(other.join("tokenizer.json")).unwrap();
    let changed = text.replacen("<|im_end|>", "<|im_fin|>", usize::MAX);
    assert_ne!(text, changed);
    std::fs::write(other.join("tokenizer.json"), changed).unwrap();
    let student = engine(Compute::F32).load(&one, Default::default()).unwrap();
    let own = student.info()["vocabulary_fingerprint"].as_str().unwrap().to_string();
    let taught = |vocabulary: Value| {
        let queue = queue(json!({"top_k": 2, "vocabulary": vocabulary}));
        Distiller::taught(&student, Some(Teacher::Queue(queue)), settings(json!({"preset": "opd"}))).map(|_| ())
    };
    taught(json!({"fingerprint": own})).unwrap();
    taught(json!({"tokenizer": one.join("tokenizer.json")})).unwrap();
    taught(json!("the-students")).unwrap();
    for wrong in [json!({"tokenizer": other.join("tokenizer.json")}), json!({"fingerprint": "0123456789abcdef"})] {
        let e = taught(wrong).unwrap_err();
        assert!(e.fault() == Fault::TeacherVocabulary && e.message().contains(&own), "{e}");
    }
}

#[test]
fn options_that_say_too_little_or_nonsense_are_refused() {
    let refused = |text: &str| QueueOptions::from_json(text).err().unwrap();
    for (text, fault, part) in [
        ("{", Fault::BadJson, "not JSON"),
        ("{}", Fault::BadValue, "vocabulary is missing"),
        (r#"{"vocabulary": "mine"}"#, Fault::BadValue, "vocabulary must be"),
        (r#"{"vocabulary": {}}"#, Fault::BadValue, "one of tokenizer and fingerprint"),
        (r#"{"vocabulary": {"fingerprint": "12"}}"#, Fault::BadValue, "16 hex digits"),
        (r#"{"vocabulary": {"fingerprint": "+123456789abcdef"}}"#, Fault::BadValue, "16 hex digits"),
        (r#"{"vocabulary": {"tokenizer": 3}}"#, Fault::BadValue, "path of a tokenizer.json"),
        (r#"{"vocabulary": {"tokenizer": "/nowhere/tokenizer.json"}}"#, Fault::MissingFile, "/nowhere"),
        (r#"{"vocabulary": {"tokenizer": "/dev/zero"}}"#, Fault::CannotOpen, "/dev/zero"),
        (r#"{"vocabulary": "the-students", "top_k": 1025}"#, Fault::BadValue, "top_k"),
        (r#"{"vocabulary": "the-students", "deadline_ms": 0}"#, Fault::BadValue, "deadline_ms"),
        (r#"{"vocabulary": "the-students", "timeout": 1}"#, Fault::UnknownKey, "timeout"),
    ] {
        let e = refused(text);
        assert!(e.fault() == fault && e.message().contains(part), "{text}: {e}");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_refused_and_the_request_waits_on() {
    let (d, queue, model) = taught(json!({"top_k": 3}), json!({"preset": "opd"}));
    play(&d, 1, 2);
    let request = queue.next(1, SHORT).pop().unwrap();
    let (right, at) = (answer(&model, &request), request.from);
    let refused = |change: &dyn Fn(&mut Answer), part: &str| {
        let mut wrong = answer(&model, &request);
        change(&mut wrong);
        let e = queue.reply(request.number, wrong.reply()).unwrap_err();
        assert!(e.fault() == Fault::TeacherReply && e.message().contains(part), "{e}");
        assert!(e.message().starts_with(&format!("request {}: ", request.number)), "{e}");
    };
    refused(&|a| a.ids.truncate(a.ids.len() - 1), "wanted");
    refused(&|a| a.logprobs.truncate(a.logprobs.len() - 1), "log-probs, found");
    refused(&|a| a.top_ids.truncate(a.top_ids.len() - 1), "most likely ids, found");
    refused(&|a| a.top_logprobs.push(-1.0), "log-probs of most likely ids, found");
    refused(&|a| a.ids[1] ^= 1, &format!("position {}: the answer is of id", at + 1));
    for bad in [0.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -9999.0, -3e38] {
        refused(&|a| a.logprobs[0] = bad, &format!("position {at}: the log-prob of id"));
        refused(&|a| a.top_logprobs[2] = bad, &format!("position {at}: the log-prob of id"));
    }
    refused(&|a| a.top_ids[0] = VOCABULARY as i32, "is none of the 64 of the vocabulary");
    refused(&|a| a.top_ids[4] = -1, "is none of the 64 of the vocabulary");
    refused(&|a| a.top_ids[1] = a.top_ids[0], "twice");
    refused(&|a| a.top_logprobs[..3].fill(-0.1), "");
    // The same id cannot be as likely as it is and as another says; nor may one that is likely be none of the likely.
    let own = right.top_ids[..3].iter().position(|&id| id == right.ids[0]);
    match own {
        Some(_) => refused(&|a| a.logprobs[0] -= 1.0, "and, among the most likely"),
        None => refused(
            &|a| a.logprobs[0] = a.top_logprobs[..3].iter().fold(0.0, |m: f32, &x| m.min(x)) / 2.0,
            "is not among",
        ),
    }
    // Another's number, and one that never was.
    for number in [0, request.number + 1] {
        let e = queue.reply(number, right.reply()).unwrap_err();
        assert!(e.fault() == Fault::TeacherRequest && e.message().contains("never was one"), "{e}");
    }
    queue.reply(request.number, right.reply()).unwrap();
    for again in [queue.reply(request.number, right.reply()), queue.fail(request.number, "late")] {
        let e = again.unwrap_err();
        assert!(e.fault() == Fault::TeacherRequest && e.message().contains("answered already"), "{e}");
    }
    build(&d);
}

#[test]
fn a_teacher_that_is_silent_costs_its_episodes_one_deadline_and_is_asked_anew() {
    let document = json!({"preset": "opd", "batch_episodes": 4});
    let (d, queue, model) = taught(json!({"top_k": 3, "deadline_ms": 2000}), document);
    play(&d, 4, 2);
    // Nobody takes two of them; one is taken and not answered, one answered.
    let taken = queue.next(2, SHORT);
    queue.reply(taken[1].number, answer(&model, &taken[1]).reply()).unwrap();
    let begun = Instant::now();
    let update = build(&d);
    assert!(begun.elapsed() < Duration::from_secs(5), "they run out together: {:?}", begun.elapsed());
    let reasons: Vec<&str> = update.report().set_aside.iter().map(|s| s.reason.as_str()).collect();
    assert_eq!((update.report().episodes, reasons.len()), (1, 3));
    assert_eq!(reasons.iter().filter(|r| r.contains("was taken by nobody within 2000 ms")).count(), 2, "{reasons:?}");
    assert_eq!(reasons.iter().filter(|r| r.contains("was taken and not answered within 2000 ms")).count(), 1);
    let late = queue.reply(taken[0].number, answer(&model, &taken[0]).reply()).unwrap_err();
    assert!(late.fault() == Fault::TeacherRequest && late.message().contains("its deadline passed"), "{late}");
    // They stand in the queue again, with new numbers, and may be answered before the next build and on its own thread.
    assert_eq!((d.n_waiting(), d.n_set_aside(), queue.n_waiting()), (0, 3, 3));
    assert_eq!(answer_all(&queue, &model), 3);
    let again = build(&d);
    assert_eq!((again.report().episodes, again.report().set_aside.len(), d.n_set_aside()), (3, 0, 0));
}

#[test]
fn a_slow_teacher_that_takes_one_after_another_loses_none() {
    // Eight requests that take more than the deadline together, and a sixth of it each.
    let document = json!({"preset": "opd", "batch_episodes": 8});
    let (d, queue, model) = taught(json!({"top_k": 3, "deadline_ms": 4000}), document);
    play(&d, 8, 1);
    thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..8 {
                let request = queue.next(1, Duration::from_secs(20)).pop().unwrap();
                thread::sleep(Duration::from_millis(700));
                queue.reply(request.number, answer(&model, &request).reply()).unwrap();
            }
        });
        let update = try_build(&d).unwrap();
        assert_eq!((update.report().episodes, update.report().set_aside.len()), (8, 0));
    });
}

#[test]
fn where_nobody_answers_at_all_the_build_fails_with_the_reason_and_loses_nothing() {
    let (d, queue, model) = taught(json!({"top_k": 3, "deadline_ms": 50}), json!({"preset": "opd"}));
    play(&d, 2, 1);
    let e = try_build(&d).err().unwrap();
    assert!(e.fault() == Fault::TeacherSilent && e.message().contains("episode 0: the teacher's request 1"), "{e}");
    assert_eq!((d.n_waiting(), queue.n_waiting()), (2, 2));
    // What failed is told by its own words, and asked again too.
    queue.next(10, SHORT).iter().for_each(|r| queue.fail(r.number, "HTTP 500").unwrap());
    let e = try_build(&d).err().unwrap();
    assert!(e.fault() == Fault::TeacherFailed && e.message().contains("HTTP 500"), "{e}");
    assert_eq!((d.n_waiting(), queue.n_waiting()), (2, 2));
    assert_eq!(answer_all(&queue, &model), 2);
    assert_eq!(build(&d).report().episodes, 2);
}

#[test]
fn a_build_that_waits_steps_an_engine_that_its_caller_drives() {
    let engine = squire::serve::Engine::new(squire::serve::EngineOptions {
        n_threads: 1,
        compute: Compute::F32,
        caller_driven: true,
        ..Default::default()
    });
    let engine = engine.unwrap();
    let student = scripted::model(&engine, &config(Kind::Dense, 32, 2), 1);
    let queue = queue(json!({"top_k": 0, "deadline_ms": 20_000}));
    let document = json!({"preset": "opd", "student_turns": {"kernel": "sampled-reverse-kl"}});
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(document)).unwrap();
    play(&d, 1, 1);
    let session = Session::new(&student).unwrap();
    session.append(&[1, 2, 3], Source::Host).unwrap();
    let generation =
        session.generate(squire::serve::GenerationOptions { max_tokens: 5, stop_ids: vec![], ..options() }).unwrap();
    thread::scope(|s| {
        s.spawn(|| {
            let request = queue.next(1, Duration::from_secs(20)).pop().unwrap();
            // Long enough for five tokens, of which nobody pulls one.
            thread::sleep(Duration::from_millis(500));
            let ids = &request.ids[request.from..];
            let logprobs = vec![-2.0; ids.len()];
            queue.reply(request.number, Reply { ids, logprobs: &logprobs, top_ids: &[], top_logprobs: &[] }).unwrap();
        });
        try_build(&d).unwrap();
    });
    assert!(!engine.step().unwrap(), "all of it was said meanwhile");
    assert!(!generation.collect().unwrap().0.ids.is_empty());
}

#[test]
fn a_build_that_waits_for_the_teacher_can_be_stopped_and_the_request_stands() {
    let (d, queue, model) = taught(json!({"top_k": 3}), json!({"preset": "opd"}));
    play(&d, 1, 2);
    let mut asked = 0;
    let stopped = d.build(0, &Cancel::default(), &mut |_, _| {
        asked += 1;
        asked < 3
    });
    assert_eq!(fault(stopped), Fault::Cancelled);
    let cancel = Cancel::default();
    cancel.set();
    assert_eq!(fault(d.build(0, &cancel, &mut |_, _| true)), Fault::Cancelled);
    assert_eq!((d.n_waiting(), queue.n_waiting()), (1, 1));
    let request = queue.next(1, SHORT).pop().unwrap();
    assert_eq!(request.number, 1, "it was asked once");
    queue.reply(1, answer(&model, &request).reply()).unwrap();
    build(&d);
}

#[test]
fn what_is_thrown_away_is_withdrawn() {
    let (d, queue, model) = taught(json!({"top_k": 3}), json!({"preset": "opd"}));
    play(&d, 3, 1);
    let taken = queue.next(1, SHORT).pop().unwrap();
    assert_eq!((d.discard(), queue.n_waiting()), (3, 0));
    let e = queue.reply(taken.number, answer(&model, &taken).reply()).unwrap_err();
    assert!(e.fault() == Fault::TeacherRequest && e.message().contains("thrown away"), "{e}");
    assert!(queue.next(10, SHORT).is_empty());
}

#[test]
fn many_threads_take_each_request_once() {
    let (d, queue, model) = taught(json!({"top_k": 2}), json!({"preset": "opd", "batch_episodes": 24}));
    let stop = AtomicBool::new(false);
    let (update, counts) = thread::scope(|s| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                s.spawn(|| {
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        for request in queue.next(2, SHORT) {
                            queue.reply(request.number, answer(&model, &request).reply()).unwrap();
                            n += 1;
                        }
                    }
                    n
                })
            })
            .collect();
        play(&d, 24, 2);
        let update = try_build(&d);
        stop.store(true, Ordering::Relaxed);
        (update.unwrap(), workers.into_iter().map(|w| w.join().unwrap()).sum::<usize>())
    });
    assert_eq!((update.report().episodes, counts), (24, 24));
}

#[test]
fn settings_that_no_teacher_of_that_kind_can_meet_are_refused() {
    use squire::distill::Config;
    let cut = json!({"student_turns": {"kernel": "sampled-reverse-kl"}, "sampling": {"temperature": 0.5}});
    let e = Config::from_value(&cut).err().unwrap();
    assert!(e.fault() == Fault::UnsupportedMethod && e.message().contains("temperature 1"), "{e}");
    let e = Config::from_value(&json!({"update_kl_tokens": 0, "max_update_kl": 2})).err().unwrap();
    assert!(e.fault() == Fault::BadValue && e.message().contains("max_update_kl"), "{e}");
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let document = json!({"preset": "opd", "tail": "renormalised"});
    for teacher in [Teacher::Local(teacher), Teacher::Queue(queue(json!({"top_k": 1})))] {
        let e = Distiller::taught(&student, Some(teacher), settings(document.clone())).err().unwrap();
        assert!(e.fault() == Fault::BadOption && e.message().starts_with("tail"), "{e}");
    }
    Distiller::taught(&student, Some(Teacher::Queue(queue(json!({"top_k": 2})))), settings(document)).unwrap();
}

#[test]
fn names_that_promise_what_they_do_not_hold_are_refused_with_the_reason() {
    use squire::distill::Config;
    for (name, part) in [("k1", "zero on average"), ("k3", "forward KL"), ("top-k-policy-gradient", "no advantage")] {
        let e = Config::from_value(&json!({"student_turns": {"kernel": name}})).err().unwrap();
        assert!(e.fault() == Fault::UnsupportedMethod && e.message().contains(part), "{e}");
    }
    for turns in ["teacher_turns", "replay_turns"] {
        let mut document = json!({"preset": "opd"});
        document[turns] = json!({"kernel": "sampled-reverse-kl"});
        let e = Config::from_value(&document).err().unwrap();
        assert!(e.fault() == Fault::UnsupportedMethod && e.message().contains(turns), "{e}");
    }
    for wrong in [json!({"jsd": 0}), json!({"jsd": 1}), json!({"jsd": "half"}), json!({}), json!({"kl": 1})] {
        let document = json!({"student_turns": {"kernel": wrong}});
        assert!(Config::from_value(&document).is_err(), "{document}");
    }
}

#[test]
fn a_teacher_that_is_closed_wakes_who_waits_and_refuses_who_asks() {
    let (d, queue, model) =
        taught(json!({"top_k": 3, "deadline_ms": 600_000}), json!({"preset": "opd", "batch_episodes": 3}));
    let closed = |e: &Error| e.fault() == Fault::TeacherClosed && e.message().contains("the teacher is closed");
    let begun = Instant::now();
    thread::scope(|s| {
        let waiters: Vec<_> = (0..3).map(|_| s.spawn(|| queue.next(1, Duration::from_secs(600)).len())).collect();
        thread::sleep(Duration::from_millis(20));
        queue.close();
        waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), 0));
    });
    assert!(begun.elapsed() < Duration::from_secs(10) && queue.is_closed());
    queue.close();
    // An episode ends all the same; a build is refused and waits for nothing.
    play(&d, 1, 1);
    let e = try_build(&d).err().unwrap();
    assert!(closed(&e) && e.message().starts_with("episode 0: "), "{e}");
    assert_eq!((d.n_waiting(), queue.n_waiting()), (1, 0));

    // Of three requests one is taken, and answered later; those that nobody took are refused with the build under way.
    let (d, queue, _) =
        taught(json!({"top_k": 3, "deadline_ms": 600_000}), json!({"preset": "opd", "batch_episodes": 3}));
    play(&d, 3, 1);
    let taken = queue.next(1, SHORT).pop().unwrap();
    let update = thread::scope(|s| {
        s.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            queue.close();
            thread::sleep(Duration::from_millis(50));
            queue.reply(taken.number, answer(&model, &taken).reply()).unwrap();
        });
        try_build(&d).unwrap()
    });
    assert_eq!((update.report().episodes, update.report().set_aside.len(), d.n_set_aside()), (1, 2, 2));
    assert!(update.report().set_aside.iter().all(|s| s.reason.contains("the teacher is closed")));
    // It answers nobody again, so nobody asks it again.
    let e = d.build(0, &Cancel::default(), &mut |_, _| true).err().unwrap();
    assert!(e.fault() == Fault::NothingToLearn && d.n_set_aside() == 2, "{e}");
    let e = queue.reply(taken.number + 1, answer(&model, &taken).reply()).unwrap_err();
    assert!(e.fault() == Fault::TeacherRequest && e.message().contains("closed before anybody took it"), "{e}");
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn distillers_that_share_a_teacher_are_told_apart() {
    let document = || json!({"preset": "opd", "batch_episodes": 2, "kept_revisions": 4});
    let (one, queue, model) = taught(json!({"top_k": 3}), document());
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let other = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(document())).unwrap();
    assert_ne!(one.number(), other.number());
    play(&one, 2, 1);
    assert_eq!(answer_all(&queue, &model), 2);
    update(&one);
    play(&other, 2, 1);
    play(&one, 1, 1);
    let requests = queue.next(9, SHORT);
    let told: Vec<_> = requests.iter().map(|r| r.asker).collect();
    let asker = |distiller: &Distiller, episode, step, revision| Asker {
        distiller: distiller.number(),
        episode,
        step,
        revision,
    };
    // Both have an episode 0 and 1.
    assert_eq!(told, [asker(&other, 0, 0, 1), asker(&other, 1, 0, 1), asker(&one, 2, 1, 2)]);
    requests.iter().for_each(|r| queue.reply(r.number, answer(&model, r).reply()).unwrap());
    assert_eq!((build(&other).report().episodes, build(&one).report().episodes), (2, 1));
}
