//! A teacher in the host's own code that takes turns: what it says is checked, and is then the turn as a model's would be.

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
use squire::distill::{
    Actor, Distiller, Episode, EpisodeSpec, ForkOptions, Reason, Request, Teacher, TeacherQueue, TeacherSays, Words,
};
use squire::error::{Error, Fault};
use squire::serve::{Cancel, Engine, EngineOptions, Finish, GenerationOptions, Next, ServedModel, Session};
use squire::text::Json;
use squire::text::source::Source;

fn ids<'a>(ids: &'a [i32], logprobs: &'a [f32]) -> TeacherSays<'a> {
    TeacherSays { what: Words::Ids(ids, logprobs), cut_off: false }
}

/// Says to a request what a model says under the same seed, or scores.
fn serve(queue: &TeacherQueue, model: &ServedModel, request: &Request) {
    let Some(turn) = &request.turn else {
        return queue.reply(request.number, answer(model, request).reply()).unwrap();
    };
    let session = Session::new(model).unwrap();
    session.append(&request.ids, Source::Host).unwrap();
    let options = GenerationOptions {
        max_tokens: turn.max_tokens,
        sampling: turn.sampling,
        seed: turn.seed,
        stop_ids: turn.stop_ids.clone(),
        ignore_model_stops: true,
        source: Source::Teacher,
        ..Default::default()
    };
    let said = session.generate(options).unwrap().collect().unwrap().0;
    queue.say(request.number, ids(&said.ids, &said.logprobs)).unwrap();
}

/// Answers on a thread of its own until the teacher is closed.
fn serving<T>(queue: &TeacherQueue, model: &ServedModel, f: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        scope.spawn(|| {
            while !queue.is_closed() {
                queue.next(4, Duration::from_secs(1)).iter().for_each(|request| serve(queue, model, request));
            }
        });
        let done = f();
        queue.close();
        done
    })
}

fn guided(changes: Value) -> Value {
    let mut document = json!({
        "preset": "guided-opd", "seed": 7, "actor": {"kind": "bernoulli", "beta": 0.5}, "batch_episodes": 4,
    });
    changes.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    document
}

/// An episode whose first turn is the teacher's.
fn teachers(d: &Distiller) -> Episode {
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2, 3]).unwrap();
    episode.override_actor(Actor::Teacher).unwrap();
    episode
}

fn is(e: Error, fault: Fault, said: &str) {
    assert!(e.fault() == fault && e.message().contains(said), "{e}");
}

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

/// An episode that the policy gives to the teacher.
fn decided(d: &Distiller) -> Episode {
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2, 3]).unwrap();
    assert_eq!(episode.decide().unwrap().actor, Some(Actor::Teacher));
    episode
}

#[test]
fn a_teacher_that_does_not_speak_costs_its_deadline_and_no_episode() {
    for fails in ["again", "student"] {
        let document = guided(json!({"actor": {"kind": "teacher"}, "teacher_fails": fails, "batch_episodes": 1}));
        let (d, queue, model) = taught(json!({"top_k": VOCABULARY, "acts": true, "deadline_ms": 30}), document);
        let episode = decided(&d);
        for taken in [false, true] {
            let generation = episode.act(&options()).unwrap();
            let request = taken.then(|| queue.next(1, SHORT).pop().unwrap());
            is(episode.trace().err().unwrap(), Fault::SessionBusy, "asked for its turn");
            is(episode.end(0.0, None).unwrap_err(), Fault::SessionBusy, "asked for its turn");
            let since = Instant::now();
            let why =
                if taken { "was taken and not answered within 30 ms" } else { "was taken by nobody within 30 ms" };
            is(generation.collect().err().unwrap(), Fault::TeacherSilent, why);
            assert!(since.elapsed() < Duration::from_secs(20));
            if let Some(request) = request {
                is(queue.say(request.number, ids(&[STOP], &[])).unwrap_err(), Fault::TeacherRequest, "deadline passed");
            }
            let next = episode.decide().unwrap();
            if fails == "student" {
                assert_eq!(
                    (next.actor, next.reason, next.train_on_this),
                    (Some(Actor::Student), Reason::TeacherFailed, true)
                );
                break;
            }
            assert_eq!((next.actor, next.reason), (Some(Actor::Teacher), Reason::Method));
        }
        if fails == "again" {
            let generation = episode.act(&options()).unwrap();
            let request = queue.next(1, SHORT).pop().unwrap();
            queue.fail(request.number, "the server said 500").unwrap();
            is(generation.collect().err().unwrap(), Fault::TeacherFailed, "the server said 500");
        }
        let generation = episode.act(&options()).unwrap();
        queue.next(1, SHORT).iter().for_each(|request| serve(&queue, &model, request));
        assert!(!generation.collect().unwrap().0.ids.is_empty());
        episode.outcome(None, true).unwrap();
        let actor = if fails == "again" { Actor::Teacher } else { Actor::Student };
        assert_eq!(episode.trajectory().unwrap().turns()[0].actor, actor);
        episode.end(1.0, None).unwrap();
        answer_all(&queue, &model);
        assert_eq!(build(&d).report().trained_episodes, 1);
    }
}

#[test]
fn a_turn_that_the_host_gave_to_the_teacher_stays_the_teachers() {
    let document = guided(json!({"teacher_fails": "student"}));
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), document);
    let episode = teachers(&d);
    let generation = episode.act(&options()).unwrap();
    queue.fail(queue.next(1, SHORT)[0].number, "no").unwrap();
    assert_eq!(generation.collect().err().unwrap().fault(), Fault::TeacherFailed);
    assert_eq!(episode.decide().unwrap().actor, Some(Actor::Teacher));
    assert_eq!(episode.override_actor(Actor::Student).unwrap().actor, Some(Actor::Student));
}

#[test]
fn a_closed_teacher_takes_no_turn() {
    for fails in ["again", "student"] {
        let document = guided(json!({"actor": {"kind": "teacher"}, "teacher_fails": fails}));
        let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), document);
        let waiting = decided(&d);
        let generation = waiting.act(&options()).unwrap();
        queue.close();
        assert_eq!(generation.collect().err().unwrap().fault(), Fault::TeacherClosed);
        let episode = decided(&d);
        assert_eq!(episode.act(&options()).err().unwrap().fault(), Fault::TeacherClosed);
        let actor = if fails == "again" { Actor::Teacher } else { Actor::Student };
        for episode in [waiting, episode] {
            assert_eq!(episode.decide().unwrap().actor, Some(actor));
        }
    }
}

#[test]
fn a_cancelled_turn_is_withdrawn_and_asked_for_anew() {
    let document = guided(json!({"actor": {"kind": "teacher"}, "teacher_fails": "student"}));
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), document);
    let episode = decided(&d);
    let generation = episode.act(&options()).unwrap();
    let request = queue.next(1, SHORT).pop().unwrap();
    generation.cancel();
    // Before anybody pulls.
    is(queue.say(request.number, ids(&[STOP], &[])).unwrap_err(), Fault::TeacherRequest, "nobody wants the answer");
    assert_eq!(generation.collect().unwrap().1, Finish::Cancelled);
    // Cancelled is not failed: the turn is the teacher's still. Dropped is cancelled.
    drop(episode.act(&options()).unwrap());
    assert_eq!((queue.n_waiting(), episode.decide().unwrap().actor), (0, Some(Actor::Teacher)));
    // An episode that goes while its generation is held: that one ends by its deadline or its drop.
    let generation = episode.act(&options()).unwrap();
    drop(episode);
    let request = queue.next(1, SHORT).pop().unwrap();
    queue.say(request.number, ids(&[9, STOP], &[])).unwrap();
    assert_eq!(generation.collect().unwrap().0.ids, [9, STOP]);
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

/// A student with a tokenizer and Qwen3's template, and a teacher of another vocabulary.
fn of_text(document: Value) -> (Distiller, TeacherQueue) {
    let folder = tempfile::tempdir().unwrap();
    folders::write_chat_model(folder.path(), 1);
    let student = engine(Compute::F32).load(folder.path(), Default::default()).unwrap();
    let queue = queue(json!({"vocabulary": "another"}));
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(document)).unwrap();
    (d, queue)
}

fn imitation() -> Value {
    json!({
        "actor": {"kind": "teacher"}, "student_turns": {"kernel": "none"}, "teacher_turns": {"kernel": "cross-entropy"}, "batch_episodes": 1,
    })
}

fn message(role: &str, content: &str) -> Json {
    Json::parse(&json!([{"role": role, "content": content}]).to_string()).unwrap()
}

#[test]
fn a_teacher_of_another_vocabulary_reads_messages_and_says_text() {
    let (d, queue) = of_text(imitation());
    let prefix = Json::parse(r#"{"role":"system","content":"the answer is é"}"#).unwrap();
    let episode = d.begin(EpisodeSpec { teacher_prefix: Some(vec![prefix]), ..Default::default() }).unwrap();
    let turn = |text: &str, wanted: Value, cut_off: bool| {
        episode.decide().unwrap();
        let generation = episode.act(&GenerationOptions::default()).unwrap();
        let request = queue.next(1, SHORT).pop().unwrap();
        let asked = request.turn.as_ref().unwrap();
        assert_eq!(serde_json::from_str::<Value>(asked.messages.as_ref().unwrap()).unwrap(), wanted);
        is(
            queue.say(request.number, ids(&[70, 266], &[])).unwrap_err(),
            Fault::TeacherReply,
            "it says its turns by text",
        );
        // More than the context, and more than is left of it.
        for long in [5000, 2040].map(|n| "x".repeat(n)) {
            let e = queue.say(request.number, TeacherSays { what: Words::Text(&long), cut_off }).unwrap_err();
            is(e, Fault::TeacherReply, "wanted a");
        }
        queue.say(request.number, TeacherSays { what: Words::Text(text), cut_off }).unwrap();
        let (chunk, finish) = generation.collect().unwrap();
        assert_eq!(chunk.text, text);
        assert_eq!(finish, if cut_off { Finish::Length } else { Finish::Stop });
        assert_eq!(chunk.ids.last() == Some(&266), !cut_off);
        episode.outcome(None, true).unwrap();
    };
    let system = json!({"role": "system", "content": "the answer is é"});
    let say = |role: &str, content: &str| json!({"role": role, "content": content});
    episode.observe(message("user", "where?")).unwrap();
    turn("go <|im_end|> é", json!([system, say("user", "where?")]), false);
    // Views are messages too.
    episode.observe_json(r#"{"messages": [{"role": "user", "content": "and?"}], "teacher_messages": [{"role": "user", "content": "north, and?"}]}"#).unwrap();
    let told = json!([system, say("user", "where?"), say("assistant", "go <|im_end|> é"), say("user", "north, and?")]);
    // A fork goes on from what was said by then.
    let fork = episode.fork(ForkOptions::default()).unwrap();
    turn("no", told.clone(), true);
    fork.decide().unwrap();
    let generation = fork.act(&GenerationOptions::default()).unwrap();
    let request = queue.next(1, SHORT).pop().unwrap();
    assert_eq!(serde_json::from_str::<Value>(request.turn.as_ref().unwrap().messages.as_ref().unwrap()).unwrap(), told);
    drop(generation);
    let trace = episode.trace().unwrap();
    assert_eq!(
        (trace["turns"][0]["from_text"].as_bool(), trace["turns"][1]["truncated"].as_bool()),
        (Some(true), Some(true))
    );
    episode.end(1.0, None).unwrap();
    let update = build(&d);
    assert_eq!((update.report().text_turns, update.report().teacher_turns), (2, 2));
    assert!(update.report().warnings.iter().any(|warning| warning.contains("2 turns are texts")));
    assert!(update.report().cross_entropy.is_some() && update.report().reverse_kl.is_none());
}

#[test]
fn what_a_text_becomes_is_what_a_replay_of_it_becomes() {
    let (d, queue) = of_text(imitation());
    let text = "take <think>the</think> lamp é\n";
    let begun = |actor| {
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe(message("user", "where?")).unwrap();
        episode.override_actor(actor).unwrap();
        episode
    };
    let (said, replayed) = (begun(Actor::Teacher), begun(Actor::Replay));
    let generation = said.act(&GenerationOptions::default()).unwrap();
    queue.say(queue.next(1, SHORT)[0].number, TeacherSays { what: Words::Text(text), cut_off: false }).unwrap();
    generation.collect().unwrap();
    said.outcome(None, true).unwrap();
    replayed.replay(squire::distill::Replay::Text(text)).unwrap();
    assert_eq!(said.trajectory().unwrap().ids(), replayed.trajectory().unwrap().ids());
}

#[test]
fn a_student_without_a_tokenizer_has_no_teacher_of_another_vocabulary() {
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let queue = TeacherQueue::new(squire::distill::QueueOptions::from_json(r#"{"vocabulary": "another"}"#).unwrap());
    let e = Distiller::taught(&student, Some(Teacher::Queue(queue)), settings(imitation())).err().unwrap();
    is(e, Fault::MissingFile, "the teacher's vocabulary is another");
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
fn who_polls_hears_of_a_deadline_and_of_a_cancel() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true, "deadline_ms": 60}), guided(json!({})));
    let poll = |generation: &squire::serve::Generation| {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match generation.next(Some(Duration::ZERO)) {
                Ok(Next::Timeout) if Instant::now() < until => thread::yield_now(),
                other => return other,
            }
        }
    };
    for taken in [false, true] {
        let episode = teachers(&d);
        let generation = episode.act(&options()).unwrap();
        // Nobody waits yet, so that nothing runs out; looking is not waiting.
        thread::sleep(Duration::from_millis(80));
        assert_eq!(episode.trace().err().unwrap().fault(), Fault::SessionBusy);
        if taken {
            assert_eq!(queue.next(1, SHORT).len(), 1);
        }
        let since = Instant::now();
        assert!(matches!(generation.next(Some(Duration::ZERO)).unwrap(), Next::Timeout));
        is(poll(&generation).err().unwrap(), Fault::TeacherSilent, "within 60 ms");
        assert!(since.elapsed() > Duration::from_millis(40));
        let generation = episode.act(&options()).unwrap();
        generation.cancel();
        assert!(matches!(poll(&generation).unwrap(), Next::End(Finish::Cancelled)));
    }
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

#[test]
fn what_was_said_and_not_heard_is_taken_back_when_its_generation_is_let_go_of() {
    let (d, queue, _) = taught(json!({"top_k": 2, "acts": true}), guided(json!({"teacher_fails": "student"})));
    let episode = decided_by_chance(&d);
    let say = |said: &[i32]| queue.say(queue.next(1, SHORT)[0].number, ids(said, &[])).unwrap();
    let generation = episode.act(&options()).unwrap();
    say(&[5, STOP]);
    drop(generation);
    // The turn is the teacher's still.
    assert_eq!(episode.decide().unwrap().actor, Some(Actor::Teacher));
    let generation = episode.act(&options()).unwrap();
    say(&[6, STOP]);
    assert!(matches!(generation.next(None).unwrap(), Next::Chunk(_)));
    drop(generation);
    // Heard, it is the turn.
    is(episode.decide().unwrap_err(), Fault::OutOfOrder, "outcome");
    episode.outcome(None, true).unwrap();
    assert_eq!(&episode.trajectory().unwrap().ids()[3..], [6, STOP]);
    // An answer that races with a release leaves the episode free either way.
    for _ in 0..200 {
        let episode = teachers(&d);
        let generation = episode.act(&options()).unwrap();
        let request = queue.next(1, SHORT).pop().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| drop(queue.say(request.number, ids(&[5, STOP], &[]))));
            drop(generation);
            episode.decide().unwrap();
            episode.end(0.0, None).unwrap();
        });
    }
}

/// An episode that the draw gives to the teacher.
fn decided_by_chance(d: &Distiller) -> Episode {
    let begun = || {
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe_ids(&[1, 2, 3]).unwrap();
        (episode.decide().unwrap().actor == Some(Actor::Teacher)).then_some(episode)
    };
    (0..100).find_map(|_| begun()).unwrap()
}

#[test]
fn a_text_of_the_teachers_marks_its_own_turn_and_no_other() {
    let (d, queue) = of_text(imitation());
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    for actor in [Actor::Teacher, Actor::Student, Actor::Replay] {
        episode.observe(message("user", "where?")).unwrap();
        episode.override_actor(actor).unwrap();
        if actor == Actor::Replay {
            episode.replay(squire::distill::Replay::Text("there")).unwrap();
        } else {
            let generation = episode.act(&GenerationOptions { max_tokens: 4, ..Default::default() }).unwrap();
            queue.next(1, SHORT).iter().for_each(|request| {
                queue.say(request.number, TeacherSays { what: Words::Text("here"), cut_off: false }).unwrap();
            });
            generation.collect().unwrap();
        }
        episode.outcome(None, true).unwrap();
    }
    let t = episode.trajectory().unwrap();
    assert_eq!(t.turns().iter().map(|turn| turn.from_text).collect::<Vec<_>>(), [true, false, false]);
    // The other actors' words are part of what the teacher reads.
    episode.observe(message("user", "and?")).unwrap();
    episode.override_actor(Actor::Teacher).unwrap();
    let _generation = episode.act(&GenerationOptions::default()).unwrap();
    let request = queue.next(1, SHORT).pop().unwrap();
    let messages: Value = serde_json::from_str(request.turn.as_ref().unwrap().messages.as_ref().unwrap()).unwrap();
    assert_eq!((messages[1]["content"].as_str(), messages[5]["content"].as_str()), (Some("here"), Some("there")));
    assert_eq!(messages.as_array().unwrap().len(), 7);
}

#[test]
fn a_fork_from_before_ids_were_shown_has_its_messages() {
    let (d, queue) = of_text(imitation());
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    for turn in 0..2 {
        match turn {
            0 => episode.observe(message("user", "where?")).unwrap(),
            _ => episode.observe_ids(&[70, 71]).unwrap(),
        };
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(squire::distill::Replay::Text("there")).unwrap();
        episode.outcome(None, true).unwrap();
    }
    for (turn, n) in [(0, Some(1)), (1, None), (2, None)] {
        let fork = episode.fork(ForkOptions { turn: Some(turn), ..Default::default() }).unwrap();
        if turn == 2 {
            fork.observe(message("user", "and?")).unwrap();
        }
        fork.override_actor(Actor::Teacher).unwrap();
        let _generation = fork.act(&GenerationOptions::default()).unwrap();
        let request = queue.next(1, SHORT).pop().unwrap();
        let messages = request.turn.as_ref().unwrap().messages.as_ref();
        let found = messages.map(|text| serde_json::from_str::<Value>(text).unwrap().as_array().unwrap().len());
        assert_eq!(found, n, "{turn}");
    }
}

#[test]
fn a_replaced_proposal_whose_teacher_fails_is_the_students_again() {
    let actor = json!({"kind": "proposal", "by": "student", "rate": 1.0, "window": 8, "minimum": 1});
    let document = json!({"preset": "uopd", "seed": 5, "actor": actor, "teacher_fails": "student"});
    let (d, queue, _) = taught(json!({"top_k": 4, "acts": true}), document);
    let mut stepped_in = 0;
    for number in 0..4 {
        let episode = d.begin(numbered(number)).unwrap();
        episode.observe_ids(&observation(number, 0, &[])).unwrap();
        episode.decide().unwrap();
        let proposed = episode.act(&options()).unwrap().collect().unwrap().0.ids;
        if episode.judge(&Cancel::default()).unwrap().reason == Reason::ProposalReplaced {
            let generation = episode.act(&options()).unwrap();
            queue.fail(queue.next(1, SHORT)[0].number, "no").unwrap();
            assert!(generation.collect().is_err());
            let decision = episode.decide().unwrap();
            assert_eq!((decision.actor, decision.reason), (Some(Actor::Student), Reason::TeacherFailed));
            // The same draw, so what it proposed; it is not judged a second time.
            assert_eq!(episode.act(&options()).unwrap().collect().unwrap().0.ids, proposed);
            assert_eq!(episode.judge(&Cancel::default()).unwrap(), decision);
            stepped_in += 1;
        }
        episode.outcome(None, true).unwrap();
    }
    assert_eq!(stepped_in, 3);
}

/// Imitation goes on with the teacher where a demonstration ends, and with the student where that fails.
#[test]
fn the_turns_behind_a_demonstration_are_the_teachers_or_the_students() {
    let (d, queue, _) = taught(json!({"acts": true}), json!({"preset": "sft", "teacher_fails": "student"}));
    let episode = d.begin(EpisodeSpec { demonstration: Some(Vec::new()), ..Default::default() }).unwrap();
    episode.observe_ids(&[1, 2, 3]).unwrap();
    let decision = episode.decide().unwrap();
    assert_eq!((decision.actor, decision.reason), (Some(Actor::Teacher), Reason::ReplayEnded));
    let generation = episode.act(&options()).unwrap();
    queue.fail(queue.next(1, SHORT)[0].number, "no").unwrap();
    assert!(generation.collect().is_err());
    assert_eq!(episode.decide().unwrap().reason, Reason::TeacherFailed);
}
