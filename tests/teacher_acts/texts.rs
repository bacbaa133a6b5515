//! Turns said by text, and the messages that are read for them.

use super::*;
use answering::*;
use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Distiller, EpisodeSpec, ForkOptions, Teacher, TeacherQueue, TeacherSays, Words};
use squire::error::Fault;
use squire::serve::{Finish, GenerationOptions};
use squire::text::Json;

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
fn a_teachers_turn_ends_with_the_token_that_completes_a_stop_string() {
    let (d, queue) = of_text(imitation());
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe(message("user", "where?")).unwrap();
    episode.override_actor(Actor::Teacher).unwrap();
    let stop_strings = vec!["!".to_string(), "st and".to_string()];
    let options = GenerationOptions { stop_strings: stop_strings.clone(), ..GenerationOptions::default() };
    let generation = episode.act(&options).unwrap();
    let request = queue.next(1, SHORT).pop().unwrap();
    assert_eq!(request.turn.as_ref().unwrap().stop_strings, stop_strings);
    let whole = "go east and then north!";
    queue.say(request.number, TeacherSays { what: Words::Text(whole), cut_off: false }).unwrap();
    let (chunk, finish) = generation.collect().unwrap();
    assert_eq!((chunk.text.as_str(), finish), ("go ea", Finish::Stop));
    assert_eq!(chunk.stop.map(|found| (found.index, found.byte)), Some((1, 5)));
    let said = d.student().tokenizer().unwrap().decode(&chunk.ids, true);
    assert!(said.starts_with("go east and") && said.len() < whole.len(), "{said}");
    episode.outcome(None, true).unwrap();
    let record = episode.trajectory().unwrap();
    assert_eq!(&record.ids()[record.turns()[0].range.clone()], &chunk.ids[..]);
    assert!(!record.turns()[0].truncated);
}

#[test]
fn a_teacher_of_ids_may_end_its_turn_with_a_stop_string_and_what_it_says_behind_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    folders::write_chat_model(folder.path(), 1);
    let student = engine(Compute::F32).load(folder.path(), Default::default()).unwrap();
    let queue = queue(json!({"acts": true, "scores": false}));
    let d = Distiller::taught(&student, Some(Teacher::Queue(queue.clone())), settings(imitation())).unwrap();
    let options = GenerationOptions { stop_strings: vec!["go!".into()], ..GenerationOptions::default() };
    let spell = |text: &str| text.bytes().map(i32::from).collect::<Vec<_>>();
    // Whole, with more behind it, with what is no id behind it, and cut off though it is not.
    let said = [
        (spell("so go!"), false),
        (spell("so go! and on"), false),
        ([spell("so go!"), vec![266, -7, 1 << 20]].concat(), false),
        (spell("so go!"), true),
    ];
    for (ids, cut_off) in said {
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe(message("user", "where?")).unwrap();
        episode.override_actor(Actor::Teacher).unwrap();
        let generation = episode.act(&options).unwrap();
        let number = queue.next(1, SHORT)[0].number;
        let says = |ids: &[i32], logprobs: &[f32], cut_off| {
            queue.say(number, TeacherSays { what: Words::Ids(ids, logprobs), cut_off })
        };
        // Before it the ids are a turn's like any other's, and log-probs are of all.
        is(says(&spell("so go"), &[], false).unwrap_err(), Fault::TeacherReply, "completes no stop string");
        let ended = [vec![266], spell("go!")].concat();
        is(says(&ended, &[], false).unwrap_err(), Fault::TeacherReply, "place 0: id 266 ends a turn, and 3 ids follow");
        is(says(&ids, &[-1.0; 6][1..], cut_off).unwrap_err(), Fault::TeacherReply, "log-probs or none, found 5");
        says(&ids, &vec![-1.0; ids.len()], cut_off).unwrap();
        let (chunk, finish) = generation.collect().unwrap();
        assert_eq!((chunk.text.as_str(), &chunk.ids, finish), ("so ", &spell("so go!"), Finish::Stop));
        episode.outcome(None, true).unwrap();
        let record = episode.trajectory().unwrap();
        let turn = &record.turns()[0];
        assert_eq!(record.ids()[turn.range.clone()], spell("so go!"));
        assert_eq!(turn.ended_by, Some(TurnEnd::StopString("go!".into())));
        assert_eq!(record.logprobs()[turn.range.clone()], [-1.0; 6]);
    }
}

#[test]
fn a_teachers_turn_is_told_what_ended_it() {
    let (d, queue) = of_text(imitation());
    let ends = [(false, 0, TurnEnd::StopId), (true, 0, TurnEnd::CutOff), (true, 3, TurnEnd::CutOff)];
    for (cut_off, max_tokens, wanted) in ends {
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe(message("user", "where?")).unwrap();
        episode.override_actor(Actor::Teacher).unwrap();
        let generation = episode.act(&GenerationOptions { max_tokens, ..GenerationOptions::default() }).unwrap();
        queue.say(queue.next(1, SHORT)[0].number, TeacherSays { what: Words::Text("go"), cut_off }).unwrap();
        generation.collect().unwrap();
        episode.outcome(None, true).unwrap();
        assert_eq!(episode.trajectory().unwrap().turns()[0].ended_by, Some(wanted));
    }
}

#[test]
fn a_student_stops_at_a_stop_string_in_training_and_controls_are_refused_there() {
    let (d, _) = of_text(imitation());
    let begun = || {
        let episode = d.begin(EpisodeSpec::default()).unwrap();
        episode.observe(message("user", "where?")).unwrap();
        episode.override_actor(Actor::Student).unwrap();
        episode
    };
    let (first, second) = (begun(), begun());
    let free = GenerationOptions { max_tokens: 30, ignore_model_stops: true, ..GenerationOptions::default() };
    let controls = squire::serve::Controls { frequency_penalty: 0.5, ..Default::default() };
    let why = "frequency_penalty is set, but training rollouts sample as the distiller's settings say";
    is(first.act(&GenerationOptions { controls, ..free.clone() }).err().unwrap(), Fault::BadOption, why);
    // Another episode draws otherwise: the stop string is of what this one says, which is all characters.
    let all: Vec<String> = ('a'..='z').chain(['\u{fffd}', ' ']).map(String::from).collect();
    let options = GenerationOptions { stop_strings: all.clone(), top_logprobs: 2, ..free };
    for episode in [first, second] {
        let (chunk, finish) = episode.act(&options).unwrap().collect().unwrap();
        assert!(finish == Finish::Stop && chunk.top_ids.len() == 2 * chunk.ids.len());
        assert!(all.iter().all(|stop| !chunk.text.contains(stop.as_str())), "{:?}", chunk.text);
        assert_eq!(chunk.logprobs, chunk.sampled_logprobs, "nothing changes the distribution");
        is(episode.act(&options).err().unwrap(), Fault::OutOfOrder, "act");
        episode.outcome(None, true).unwrap();
        assert_eq!(episode.trajectory().unwrap().turns()[0].range.len(), chunk.ids.len());
    }
}

#[test]
fn a_student_without_a_tokenizer_has_no_teacher_of_another_vocabulary() {
    let (student, _) = pair(Kind::Dense, Compute::F32);
    let queue = TeacherQueue::new(squire::distill::QueueOptions::from_json(r#"{"vocabulary": "another"}"#).unwrap());
    let e = Distiller::taught(&student, Some(Teacher::Queue(queue)), settings(imitation())).err().unwrap();
    is(e, Fault::MissingFile, "the teacher's vocabulary is another");
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
