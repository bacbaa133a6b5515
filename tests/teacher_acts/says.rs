//! What a host's teacher says, how it is checked, and what it is asked that it does not give.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use answering::*;
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Distiller, EpisodeSpec, Reason, Request, Teacher, TeacherSays, Words};
use squire::error::Fault;
use squire::serve::{Cancel, Engine, EngineOptions, Finish, Next};
use squire::text::source::Source;

#[test]
fn a_host_that_draws_from_the_same_weights_plays_and_teaches_as_the_local_teacher() {
    let local = plain(guided(json!({})));
    let wanted = play_together(&local, 4, 4);
    let (wanted_records, wanted) = (wanted.iter().map(record).collect::<Vec<_>>(), build(&local));
    assert!(wanted.report().teacher_turns > 2 && wanted.report().student_turns > 2);
    let (d, queue, model) = taught(json!({"top_k": VOCABULARY, "acts": true}), guided(json!({})));
    let (records, update) = serving(&queue, &model, || {
        let played = play_together(&d, 4, 4);
        (played.iter().map(record).collect::<Vec<_>>(), build(&d))
    });
    for (a, b) in records.iter().zip(&wanted_records) {
        // All but what the teacher drew from, which a host does not tell.
        assert_eq!(a, b);
    }
    let (a, b) = (update.report().loss, wanted.report().loss);
    assert!((a - b).abs() < 1e-5 * b.abs(), "{a} {b}");
    assert_eq!(update.report().teacher_tokens, wanted.report().teacher_tokens);
    assert_eq!(
        (update.report().text_turns, d.metrics()["teacher_tokens"].as_u64()),
        (0, local.metrics()["teacher_tokens"].as_u64())
    );
}

/// What an episode's record is made of, but for the log-probs of the teacher's draws.
fn record(t: &squire::distill::trajectory::Trajectory) -> Vec<String> {
    let turns = t
        .turns()
        .iter()
        .map(|turn| format!("{:?} {:?} {:?} {}", turn.actor, turn.range, turn.decision, turn.truncated));
    let logprobs = t.logprobs().iter().map(|x| format!("{:x}", x.to_bits()));
    turns.chain(logprobs).chain([format!("{:?} {:?}", t.ids(), t.sources())]).collect()
}

#[test]
fn what_does_not_fit_is_refused_and_the_request_waits_for_better() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), guided(json!({})));
    let episode = teachers(&d);
    let generation = episode.act(&options()).unwrap();
    let request = queue.next(1, SHORT).pop().unwrap();
    let turn = request.turn.as_ref().unwrap();
    assert_eq!((&request.ids[..], request.from, request.top_k), (&[1, 2, 3][..], 3, 0));
    assert_eq!((turn.max_tokens, &turn.stop_ids[..], turn.sampling.temperature), (LONGEST, &[STOP][..], 1.0));
    assert!(turn.messages.is_none(), "ids were observed");
    let number = request.number;
    let long = [5; LONGEST + 1];
    for (says, why) in [
        (ids(&[], &[]), "wanted a turn of 1 to 6 tokens, found 0"),
        (ids(&long, &[]), "wanted a turn of 1 to 6 tokens, found 7"),
        (ids(&[5, 64, STOP], &[]), "place 1: id 64 is none of the 64"),
        (ids(&[-1, STOP], &[]), "place 0: id -1 is none"),
        (ids(&[5, STOP, 6], &[]), "place 1: id 63 ends a turn, and 1 ids follow"),
        (ids(&[5, 6], &[]), "ends with id 6, which is none of its stop_ids"),
        (TeacherSays { cut_off: true, ..ids(&[5, STOP], &[]) }, "id 63 ends the turn, which is said to be cut off"),
        (ids(&[5, STOP], &[-0.5]), "wanted 2 log-probs or none, found 1"),
        (ids(&[5, STOP], &[-0.5, f32::NAN]), "place 1: the log-prob of id 63 is NaN"),
        (ids(&[5, STOP], &[0.5, -0.5]), "place 0: the log-prob of id 5 is 0.5"),
        (ids(&[5, STOP], &[-9999.0, -0.5]), "place 0: the log-prob of id 5 is -9999"),
    ] {
        is(queue.say(number, says).unwrap_err(), Fault::TeacherReply, why);
    }
    let scores = answer(
        d.student(),
        &Request {
            number,
            asker: request.asker,
            ids: vec![1, 2],
            from: 1,
            top_k: 2,
            vocabulary: VOCABULARY,
            turn: None,
        },
    );
    is(queue.reply(number, scores.reply()).unwrap_err(), Fault::TeacherReply, "a turn is wanted and not scores");
    // A text has no ids where there is no tokenizer.
    is(
        queue.say(number, TeacherSays { what: Words::Text("go"), cut_off: false }).unwrap_err(),
        Fault::MissingFile,
        "no tokenizer",
    );
    // All of it was refused, so nothing was said.
    assert!(matches!(generation.next(Some(Duration::ZERO)).unwrap(), Next::Timeout));
    queue.say(number, ids(&[5, 6, STOP], &[])).unwrap();
    is(queue.say(number, ids(&[5, STOP], &[])).unwrap_err(), Fault::TeacherRequest, "answered already");
    is(queue.say(77, ids(&[5, STOP], &[])).unwrap_err(), Fault::TeacherRequest, "there never was one");
    let (chunk, finish) = generation.collect().unwrap();
    assert_eq!((&chunk.ids[..], chunk.position, finish), (&[5, 6, STOP][..], 3, Finish::Stop));
    is(episode.act(&options()).err().unwrap(), Fault::OutOfOrder, "act is out of order");
    episode.outcome(Some(1.0), true).unwrap();
    let t = episode.trajectory().unwrap();
    assert_eq!((t.turns()[0].actor, t.turns()[0].range.clone()), (Actor::Teacher, 3..6));
    assert_eq!((&t.sources()[3..], t.turns()[0].truncated), (&[Source::Teacher; 3][..], false));
    // Not told is not known.
    assert!(t.logprobs().iter().chain(t.sampled_logprobs()).all(|x| x.is_nan()));
    // A score's request takes no turn.
    episode.end(1.0, None).unwrap();
    let request = queue.next(1, SHORT).pop().unwrap();
    assert!(request.turn.is_none());
    is(
        queue.say(request.number, ids(&[5, STOP], &[])).unwrap_err(),
        Fault::TeacherReply,
        "scores are wanted and no turn",
    );
}

#[test]
fn a_turn_of_as_many_tokens_as_were_wanted_or_said_to_be_cut_off_is_cut_off() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), guided(json!({})));
    for (said, cut_off) in [(&[5; LONGEST][..], false), (&[5, 6][..], true)] {
        let episode = teachers(&d);
        let generation = episode.act(&options()).unwrap();
        let request = queue.next(1, SHORT).pop().unwrap();
        queue.say(request.number, TeacherSays { cut_off, ..ids(said, &[]) }).unwrap();
        assert_eq!(generation.collect().unwrap().1, Finish::Length);
        episode.outcome(None, true).unwrap();
        assert!(episode.trajectory().unwrap().turns()[0].truncated);
    }
}

#[test]
fn one_that_waits_holds_nobody_else_up_on_an_engine_that_its_caller_drives() {
    let engine = Engine::new(EngineOptions { caller_driven: true, ..Default::default() }).unwrap();
    let student = model(&engine, &config(Kind::Dense, 32, 2), 1);
    let queue = queue(json!({"acts": true, "top_k": 4}));
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(guided(json!({})))).unwrap();
    let (slow, other) = (teachers(&d), d.begin(EpisodeSpec::default()).unwrap());
    let waiting = slow.act(&options()).unwrap();
    other.observe_ids(&[4, 5]).unwrap();
    other.override_actor(Actor::Student).unwrap();
    let beside = other.act(&options()).unwrap();
    // The one that pulls in vain steps the engine for the other.
    let until = Instant::now() + Duration::from_secs(20);
    while beside.next(Some(Duration::ZERO)).is_ok_and(|next| !matches!(next, Next::End(_))) && Instant::now() < until {
        assert!(matches!(waiting.next(Some(Duration::from_millis(1))).unwrap(), Next::Timeout));
    }
    other.outcome(None, true).unwrap();
    queue.say(queue.next(1, SHORT)[0].number, ids(&[9, STOP], &[])).unwrap();
    assert_eq!(waiting.collect().unwrap().0.ids, [9, STOP]);
}

#[test]
fn proposals_are_judged_by_the_hosts_teacher_as_by_a_model() {
    let actor = json!({"kind": "proposal", "by": "teacher", "rate": 0.5, "window": 8, "minimum": 2});
    let document = json!({"preset": "uopd", "seed": 5, "actor": actor});
    let judged = |d: &Distiller| -> Vec<_> {
        let one = |number: u64| {
            let episode = d.begin(numbered(number)).unwrap();
            episode.observe_ids(&observation(number, 0, &[])).unwrap();
            episode.decide().unwrap();
            episode.act(&options()).unwrap().collect().unwrap();
            let reason = episode.judge(&Cancel::default()).unwrap().reason;
            if reason == Reason::ProposalReplaced {
                episode.act(&options()).unwrap().collect().unwrap();
            }
            episode.outcome(None, true).unwrap();
            (reason, episode.trajectory().unwrap().ids().to_vec())
        };
        (0..12).map(one).collect()
    };
    let wanted = judged(&plain(document.clone()));
    let (d, queue, model) = taught(json!({"top_k": 4, "acts": true}), document.clone());
    let found = serving(&queue, &model, || judged(&d));
    assert_eq!(found, wanted);
    assert!(found.iter().any(|(reason, _)| *reason == Reason::ProposalReplaced));
    // Nobody answers: the proposal stays, to be judged again; a cancel stops the wait.
    let (d, queue, model) = taught(json!({"top_k": 4, "acts": true, "deadline_ms": 30}), document);
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2, 3]).unwrap();
    episode.decide().unwrap();
    episode.act(&options()).unwrap().collect().unwrap();
    is(episode.judge(&Cancel::default()).unwrap_err(), Fault::TeacherSilent, "within 30 ms");
    let cancel = Cancel::default();
    cancel.set();
    is(episode.judge(&cancel).unwrap_err(), Fault::Cancelled, "the judgement was cancelled");
    serving(&queue, &model, || assert_eq!(episode.judge(&Cancel::default()).unwrap().reason, Reason::ProposalStands));
}

#[test]
fn what_is_asked_of_a_teacher_that_does_not_give_it_is_refused_with_the_distiller() {
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let refused = |options: Value, document: Value, said: &str| {
        let e = Distiller::taught(&student, Some(Teacher::Queue(queue(options))), settings(document)).err().unwrap();
        is(e, Fault::BadOption, said);
    };
    refused(json!({"top_k": 8}), guided(json!({})), "the host's teacher only scores");
    let silent = json!({"acts": true, "scores": false});
    refused(
        silent.clone(),
        guided(json!({})),
        "student_turns.kernel: reverse-kl asks for the teacher's scores, and the host's teacher gives none",
    );
    let proposal = json!({"kind": "proposal", "by": "teacher", "rate": 0.5, "window": 8, "minimum": 2});
    let imitated = json!({
        "actor": proposal, "student_turns": {"kernel": "none"}, "teacher_turns": {"kernel": "cross-entropy"},
    });
    refused(silent.clone(), imitated, "actor.by: the teacher is to judge proposals, and it scores nothing");
    // It acts, and cross-entropy asks for nothing else.
    let document = json!({
        "actor": {"kind": "teacher"}, "student_turns": {"kernel": "none"}, "teacher_turns": {"kernel": "cross-entropy"}, "batch_episodes": 1,
    });
    let queue = queue(silent);
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(document)).unwrap();
    let check = d.check_teacher(&squire::distill::CheckText::Ids(vec![1, 2, 3, 4]), SHORT, &Cancel::default());
    is(check.err().unwrap(), Fault::BadOption, "gives no scores");
    let episode = teachers(&d);
    let generation = episode.act(&options()).unwrap();
    queue.say(queue.next(1, SHORT)[0].number, ids(&[9, STOP], &[-0.5, -0.25])).unwrap();
    let said = generation.collect().unwrap().0;
    assert_eq!(said.logprobs, [-0.5, -0.25]);
    episode.outcome(None, true).unwrap();
    assert_eq!(&episode.trajectory().unwrap().logprobs()[3..], [-0.5, -0.25]);
    episode.end(1.0, None).unwrap();
    assert_eq!(queue.n_waiting(), 0, "nothing is to be scored");
    assert!(build(&d).report().cross_entropy.is_some());
}

#[test]
fn contradictions_in_what_a_teacher_is_said_to_be_are_refused() {
    let refused = |options: Value, said: &str| {
        let e = squire::distill::QueueOptions::from_json(&options.to_string()).err().unwrap();
        is(e, Fault::BadValue, said);
    };
    refused(json!({"vocabulary": "another", "scores": true}), "scores: a teacher of another vocabulary has other ids");
    refused(json!({"vocabulary": "another", "acts": false}), "acts, scores: both are false");
    refused(json!({"vocabulary": "another", "top_k": 4}), "top_k: it is of scores");
    refused(json!({"vocabulary": "the-students", "scores": false, "acts": true, "top_k": 4}), "top_k: it is of scores");
    refused(json!({"vocabulary": "the-students", "acts": 1}), "acts must be true or false");
    refused(json!({"vocabulary": "theirs"}), "\"another\"");
}

/// Many episodes, answered by several threads in any order, while others are dropped.
#[test]
fn many_turns_at_once_each_get_their_own_answer() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), guided(json!({})));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for request in queue.next(5, SHORT).iter().rev().filter(|request| request.turn.is_some()) {
                        // The first id of its own text comes back; those that were dropped are told so.
                        let _ = queue.say(request.number, ids(&[request.ids[0], STOP], &[]));
                    }
                }
            });
        }
        let mut waiting = Vec::new();
        for i in 0..60 {
            let episode = d.begin(EpisodeSpec::default()).unwrap();
            episode.observe_ids(&[i % 60, 2, 3]).unwrap();
            episode.override_actor(Actor::Teacher).unwrap();
            let generation = episode.act(&options()).unwrap();
            match i % 4 {
                0 => drop(generation),
                _ => waiting.push((i, episode, generation)),
            }
        }
        for (i, episode, generation) in waiting {
            assert_eq!(generation.collect().unwrap().0.ids, [i % 60, STOP]);
            episode.outcome(None, true).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(queue.n_waiting(), 0);
}

#[test]
fn a_turn_comes_in_one_piece_to_whoever_waits() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), guided(json!({})));
    for _ in 0..50 {
        let episode = teachers(&d);
        let generation = episode.act(&options()).unwrap();
        let request = queue.next(1, SHORT).pop().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| generation.next(None).unwrap());
            queue.say(request.number, ids(&[5, 6, 7, 8, STOP], &[])).unwrap();
            let Next::Chunk(chunk) = waiting.join().unwrap() else { panic!("no tokens") };
            assert_eq!(chunk.ids, [5, 6, 7, 8, STOP]);
        });
    }
}
