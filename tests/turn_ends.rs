//! What ends a turn of an episode: the turn is the ids that stand there, the record says what ended it, and an update learns of
//! them whatever it was.

#[path = "support/folders.rs"]
#[allow(dead_code)]
mod folders;
#[path = "support/scripted.rs"]
mod scripted;

use std::thread::sleep;
use std::time::Duration;

use scripted::{build, bytes, fault, record};
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Config, Distiller, Episode, Record, RecordOptions, Replay, TurnEnd};
use squire::error::Fault;
use squire::serve::{Cancel, Chunk, Engine, EngineOptions, Finish, GenerationOptions};
use squire::text::Json;

/// A student and a teacher with a tokenizer and Qwen3's template.
fn of_text(caller_driven: bool) -> Distiller {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, caller_driven, ..Default::default() };
    let engine = Engine::new(options).unwrap();
    let load = |seed: u64| {
        let folder = folder.path().join(seed.to_string());
        folders::write_chat_model(&folder, seed);
        engine.load(&folder, Default::default()).unwrap()
    };
    let settings = json!({"preset": "guided-opd", "actor": {"kind": "student"}, "batch_episodes": 1, "teacher_turns": {"kernel": "cross-entropy"}});
    Distiller::new(&load(1), Some(&load(2)), Config::from_value(&settings).unwrap()).unwrap()
}

/// An episode that a user has spoken in, where `actor` is to act.
fn begun(d: &Distiller, actor: Actor) -> Episode {
    let episode = d.begin(scripted::numbered(3)).unwrap();
    episode.observe(Json::parse(r#"[{"role": "user", "content": "where?"}]"#).unwrap()).unwrap();
    episode.override_actor(actor).unwrap();
    episode
}

fn up_to(n: usize) -> GenerationOptions {
    GenerationOptions { max_tokens: n, ignore_model_stops: true, ..GenerationOptions::default() }
}

fn act(episode: &Episode, options: &GenerationOptions) -> (Chunk, Finish) {
    episode.act(options).unwrap().collect().unwrap()
}

/// What is said of the first turn's end.
fn end_of(episode: &Episode) -> Option<TurnEnd> {
    let trace = episode.trace().unwrap();
    let turn = &trace["turns"][0];
    let end = episode.trajectory().unwrap().turns()[0].ended_by.clone();
    assert_eq!(turn["ended_by"].as_str(), end.as_ref().map(TurnEnd::name));
    assert_eq!(turn["stop_string"].as_str(), end.as_ref().and_then(TurnEnd::stop_string));
    assert_eq!(turn["truncated"], end.is_some_and(|end| end.is_cut_off()));
    episode.trajectory().unwrap().turns()[0].ended_by.clone()
}

/// A stop string amid what is said, and the ids up to it.
fn a_stop_string(d: &Distiller, actor: Actor) -> (String, Vec<i32>) {
    let (whole, _) = act(&begun(d, actor), &up_to(30));
    let stop: String = whole.text.chars().skip(6).take(2).collect();
    let begins = whole.text.find(&stop).unwrap();
    let (cut, finish) = act(&begun(d, actor), &GenerationOptions { stop_strings: vec![stop.clone()], ..up_to(30) });
    assert_eq!((cut.text.as_str(), finish), (&whole.text[..begins], Finish::Stop));
    let n = cut.ids.len();
    assert!(n > 2 && whole.ids[..n] == cut.ids);
    (stop, cut.ids)
}

#[test]
fn the_same_ids_are_learnt_alike_whatever_ended_them_and_the_record_says_what_did() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (stop, said) = a_stop_string(&of_text(false), actor);
        let (n, last) = (said.len(), said[said.len() - 1]);
        let stop_strings = vec!["never said by it".to_string(), stop.clone()];
        let by_string = GenerationOptions { stop_strings, ..up_to(0) };
        let by_id = GenerationOptions { stop_ids: vec![last], ..up_to(0) };
        let ways =
            [(by_string, TurnEnd::StopString(stop.clone())), (up_to(n), TurnEnd::MaxTokens), (by_id, TurnEnd::StopId)];
        let mut learnt = Vec::new();
        for (options, wanted) in ways {
            let (d, folder) = (of_text(false), tempfile::tempdir().unwrap());
            d.record(folder.path(), RecordOptions::default()).unwrap();
            let episode = begun(&d, actor);
            let (chunk, _) = act(&episode, &options);
            if wanted == TurnEnd::StopId && chunk.ids.len() < n {
                // The id stands in the turn before: this way ends it earlier.
                continue;
            }
            assert_eq!(chunk.ids, said);
            assert_eq!(end_of(&episode), Some(wanted.clone()), "as it stands");
            episode.outcome(None, true).unwrap();
            episode.end(1.0, None).unwrap();
            assert_eq!(end_of(&episode), Some(wanted.clone()));
            let line = std::fs::read_to_string(folder.path().join("record.jsonl")).unwrap();
            let line: Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
            let turn = &line["turns"][0];
            assert_eq!(turn["ended_by"], wanted.name());
            assert_eq!(turn.get("stop_string").and_then(Value::as_str), wanted.stop_string());
            let update = build(&d);
            learnt.push((record(&episode.trajectory().unwrap()), bytes(update.gradients())));
            // And from the record, by whoever reads it.
            let again = of_text(false);
            again.import(&Record::read(folder.path()).unwrap(), 0).unwrap();
            assert!(bytes(build(&again).gradients()) == learnt[0].1, "{actor:?}");
        }
        assert!(learnt.len() >= 2);
        assert!(learnt.iter().all(|one| *one == learnt[0]), "{actor:?}");
    }
}

#[test]
fn a_turn_whose_time_is_up_is_what_stands_there_or_goes_on() {
    const LIMIT: Duration = Duration::from_millis(700);
    for actor in [Actor::Student, Actor::Teacher] {
        let d = of_text(true);
        let engine = d.student().engine().clone();
        let whole = act(&begun(&d, actor), &up_to(12)).0;
        let episode = begun(&d, actor);
        let generation = episode.act(&GenerationOptions { time_limit: Some(LIMIT), ..up_to(0) }).unwrap();
        while !matches!(generation.next(Some(Duration::ZERO)).unwrap(), squire::serve::Next::Chunk(_)) {
            engine.step().unwrap();
        }
        sleep(LIMIT);
        assert_eq!(generation.collect().unwrap().1, Finish::Time);
        let n = episode.trajectory().unwrap().turns()[0].range.len();
        assert!((1..12).contains(&n), "{n}");
        assert_eq!(end_of(&episode), Some(TurnEnd::Time));
        // It goes on as if there had been no limit, and the last end counts.
        act(&episode, &up_to(12 - n));
        episode.outcome(None, true).unwrap();
        let record = episode.trajectory().unwrap();
        assert_eq!(record.ids()[record.turns()[0].range.clone()], whole.ids);
        assert_eq!(end_of(&episode), Some(TurnEnd::MaxTokens));
    }
}

#[test]
fn a_turn_without_a_token_is_still_to_be_acted() {
    let d = of_text(false);
    let set = Cancel::default();
    set.set();
    let ways = [
        (GenerationOptions { time_limit: Some(Duration::ZERO), ..up_to(4) }, Finish::Time),
        (GenerationOptions { cancel: Some(set), ..up_to(4) }, Finish::Cancelled),
    ];
    for (options, wanted) in ways {
        for actor in [Actor::Student, Actor::Teacher] {
            let episode = begun(&d, actor);
            assert_eq!(act(&episode, &options), (Chunk::default(), wanted));
            assert!(episode.trajectory().unwrap().turns().is_empty());
            assert_eq!(fault(episode.outcome(None, true)), Fault::OutOfOrder);
            assert_eq!(episode.trace().unwrap()["phase"], "act, override, or end");
            assert_eq!(act(&episode, &up_to(4)).1, Finish::Length);
        }
    }
}

#[test]
fn the_ends_that_are_nobodys_limit_have_names_too() {
    let d = of_text(true);
    let engine = d.student().engine().clone();
    let cut = begun(&d, Actor::Student);
    let generation = cut.act(&up_to(0)).unwrap();
    while !matches!(generation.next(Some(Duration::ZERO)).unwrap(), squire::serve::Next::Chunk(_)) {
        engine.step().unwrap();
    }
    generation.cancel();
    assert_eq!(generation.collect().unwrap().1, Finish::Cancelled);
    cut.outcome(None, true).unwrap();
    assert_eq!(end_of(&cut), Some(TurnEnd::Cancelled));
    // The context holds 2,048.
    let full = begun(&d, Actor::Student);
    assert_eq!(act(&full, &up_to(0)).1, Finish::ContextFull);
    full.outcome(None, true).unwrap();
    assert_eq!(end_of(&full), Some(TurnEnd::Context));
    let replayed = begun(&d, Actor::Replay);
    replayed.replay(Replay::Text("there")).unwrap();
    assert_eq!(end_of(&replayed), None);
}
