//! The calls of an episode from outside: which are in order when, and turns that do not go straight, with
//! refusals, cancellations, overrides and replays between.

#[path = "support/scripted.rs"]
mod scripted;
#[path = "support/tiny_tokenizer.rs"]
mod tiny_tokenizer;

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Actor, Distiller, Episode, EpisodeSpec, Reason, Replay};
use squire::error::{Fault, Result};
use squire::format::{ChatTemplates, Companions, save_model};
use squire::model::Weights;
use squire::serve::{Engine, EngineOptions, Finish, GenerationOptions, LoadOptions};
use squire::tensor::Dtype;
use squire::text::source::Source;

// The order of calls.

const CALLS: [&str; 7] = ["observe", "decide", "override", "act", "replay", "outcome", "end"];

fn call(episode: &Episode, name: &str) -> Result<()> {
    match name {
        "observe" => episode.observe_ids(&[1]).map(drop),
        "decide" => episode.decide().map(drop),
        "override" => episode.override_actor(Actor::Student).map(drop),
        "act" => episode.act(&options()).map(drop),
        "replay" => episode.replay(Replay::Ids(&[1])),
        "outcome" => episode.outcome(None, true),
        _ => episode.end(0.0, None),
    }
}

/// Options under which the first token ends the turn.
fn stopped() -> GenerationOptions {
    GenerationOptions { stop_ids: (0..VOCABULARY as i32).collect(), ..options() }
}

fn say(e: &Episode) {
    assert_eq!(e.act(&stopped()).unwrap().collect().unwrap().1, Finish::Stop);
}

fn see_and_decide(e: &Episode) {
    e.observe_ids(&[4, 5]).unwrap();
    e.decide().unwrap();
}

fn see_and_say(e: &Episode) {
    see_and_decide(e);
    say(e);
}

fn reach_the_depth_cap(e: &Episode) {
    see_and_say(e);
    e.outcome(None, true).unwrap();
    see_and_decide(e);
    assert_eq!(e.decide().unwrap().actor, None);
}

fn see_and_replay(e: &Episode) {
    see_and_decide(e);
    e.replay(Replay::Ids(&[7, STOP])).unwrap();
}

/// A phase: its name, the preset, the way there, the calls that are in order, and the one that is expected.
type Stage = (&'static str, &'static str, fn(&Episode), &'static [&'static str], &'static str);

const STAGES: [Stage; 8] = [
    ("open", "opd", |_| {}, &["observe", "end"], "observe"),
    ("observed", "opd", |e| assert!(e.observe_ids(&[4]).is_ok()), &["observe", "decide", "override", "end"], "decide"),
    ("decided", "opd", see_and_decide, &["decide", "override", "act", "end"], "act"),
    ("to be replayed", "sft", see_and_decide, &["decide", "override", "replay", "end"], "replay"),
    ("beyond the cap", "tcod-f2b", reach_the_depth_cap, &["decide", "override", "end"], "end"),
    ("said", "opd", see_and_say, &["outcome"], "outcome"),
    ("replayed", "sft", see_and_replay, &["outcome"], "outcome"),
    ("ended", "opd", |e| e.end(1.0, None).unwrap(), &[], "nothing"),
];

#[test]
fn every_call_out_of_order_is_refused_names_what_is_expected_and_changes_nothing() {
    for (stage, preset, way, allowed, expected) in STAGES {
        let d = plain(json!({ "preset": preset }));
        for name in CALLS {
            let episode = d.begin(EpisodeSpec::default()).unwrap();
            way(&episode);
            let before = episode.trace().unwrap();
            let waiting = d.n_waiting();
            // A stop id as the host's options name it ends the turn for good.
            let result = if name == "act" { episode.act(&stopped()).map(drop) } else { call(&episode, name) };
            if allowed.contains(&name) {
                result.unwrap_or_else(|e| panic!("{name} when {stage}: {e}"));
                continue;
            }
            let e = result.expect_err(&format!("{name} when {stage}"));
            assert_eq!(e.fault(), Fault::OutOfOrder, "{name} when {stage}");
            let wanted = format!("{name} is out of order; expected now: ");
            let told = e.message().strip_prefix(&wanted).unwrap_or_else(|| panic!("{name} when {stage}: {e}"));
            assert!(told.contains(expected) && before["phase"] == told, "{name} when {stage}: {e}");
            assert_eq!(episode.trace().unwrap(), before, "{name} when {stage}");
            assert_eq!(d.n_waiting(), waiting, "{name} when {stage}");
            // What was refused is no hindrance.
            for name in allowed.iter().filter(|n| **n == expected) {
                call(&episode, name).unwrap();
            }
        }
    }
}

#[test]
fn after_a_generation_that_said_nothing_refusals_and_the_trace_name_the_call_that_is_due() {
    for refused in ["observe", "replay", "outcome", "nothing"] {
        let (_engine, d) = stepped(json!({"preset": "opd"}));
        let e = d.begin(EpisodeSpec::default()).unwrap();
        e.observe_ids(&[1, 2, 3]).unwrap();
        e.decide().unwrap();
        drop(e.act(&options()).unwrap());
        let due = "act, override, or end";
        let message = match refused {
            "observe" => e.observe_ids(&[4]).unwrap_err().to_string(),
            "replay" => e.replay(Replay::Ids(&[4])).unwrap_err().to_string(),
            "outcome" => e.outcome(None, true).unwrap_err().to_string(),
            _ => due.to_string(),
        };
        assert!(message.ends_with(due), "{message}");
        assert_eq!(e.trace().unwrap()["phase"], due);
        assert_eq!(
            e.act(&options()).unwrap().collect().unwrap().0.ids.len(),
            e.trace().unwrap()["ids"].as_array().unwrap().len() - 3
        );
    }
}

#[test]
fn while_somebody_speaks_nothing_else_happens() {
    let (engine, d) = stepped(json!({"preset": "opd"}));
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2]).unwrap();
    episode.decide().unwrap();
    let generation = episode.act(&options()).unwrap();
    engine.step().unwrap();
    for name in CALLS {
        let wanted = if matches!(name, "observe" | "replay") { Fault::OutOfOrder } else { Fault::SessionBusy };
        assert_eq!(fault(call(&episode, name)), wanted, "{name}");
    }
    assert_eq!(fault(episode.trace()), Fault::SessionBusy);
    let said = generation.collect().unwrap().0.ids;
    assert_eq!(episode.trajectory().unwrap().ids()[2..], said);
    episode.outcome(Some(0.5), true).unwrap();
    assert_eq!(episode.trajectory().unwrap().turns()[0].reward, Some(0.5));
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    let d = plain(json!({"preset": "opd"}));
    let mut seat = Seat::new(&d, EpisodeSpec::default());
    seat.start().unwrap().unwrap().collect().unwrap();
    assert_eq!(fault(seat.episode.outcome(Some(f64::NAN), true)), Fault::BadValue);
    seat.episode.outcome(Some(1.0), true).unwrap();
    assert_eq!(fault(seat.episode.end(f64::INFINITY, None)), Fault::BadValue);
    assert_eq!(d.n_waiting(), 0);
    seat.episode.end(1.0, None).unwrap();
    assert_eq!(d.n_waiting(), 1);
}

#[test]
fn a_begin_that_is_refused_takes_no_number() {
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, max_sessions: 2, ..Default::default() };
    let engine = Engine::new(options).unwrap();
    let config = config(Kind::Dense, 32, 1);
    let (student, teacher) = (model(&engine, &config, 1), model(&engine, &config, 2));
    let d = Distiller::new(&student, Some(&teacher), settings(json!({"preset": "opd"}))).unwrap();
    let number = |e: &Episode| e.trajectory().unwrap().heading.episode;
    let first = d.begin(EpisodeSpec::default()).unwrap();
    assert_eq!(fault(d.begin(EpisodeSpec::default())), Fault::SessionBudget);
    assert_eq!(number(&first), 0);
    drop(first);
    assert_eq!(number(&d.begin(EpisodeSpec::default()).unwrap()), 1);
}

// Turns that do not go straight.

/// Begins a turn of `actor` in a fresh episode 5.
fn decided(d: &Distiller, actor: Actor) -> Episode {
    let episode = d.begin(numbered(5)).unwrap();
    episode.observe_ids(&observation(5, 0, &[])).unwrap();
    episode.override_actor(actor).unwrap();
    episode
}

#[test]
fn a_cancelled_turn_goes_on_as_if_it_had_not_been() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (engine, d) = stepped(half_guided());
        let whole = decided(&d, actor);
        let long = GenerationOptions { max_tokens: 9, ..Default::default() };
        whole.act(&long).unwrap().collect().unwrap();
        whole.outcome(None, true).unwrap();

        let cut = decided(&d, actor);
        let generation = cut.act(&long).unwrap();
        (0..4).for_each(|_| assert!(engine.step().unwrap()));
        generation.cancel();
        let (chunk, finish) = generation.collect().unwrap();
        assert_eq!((chunk.ids.len(), finish), (4, Finish::Cancelled));
        // To look is not to touch.
        assert_eq!(cut.trajectory().unwrap().turns()[0].range.len(), 4);
        assert_eq!(fault(cut.end(0.0, None)), Fault::OutOfOrder);
        let rest = cut.act(&GenerationOptions { max_tokens: 5, ..long }).unwrap().collect().unwrap();
        assert_eq!((rest.0.ids.len(), rest.1), (5, Finish::Length));
        cut.outcome(None, true).unwrap();
        assert_eq!(record(&cut.trajectory().unwrap()), record(&whole.trajectory().unwrap()), "{actor:?}");
        for episode in [whole, cut] {
            episode.end(0.0, None).unwrap();
        }
        let report = build(&d).report().clone();
        assert_eq!((report.trained_tokens, report.differing), (18, 0));
    }
}

#[test]
fn a_turn_cancelled_before_its_first_token_is_still_to_be_acted() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (_, d) = stepped(half_guided());
        let silent = || {
            let episode = decided(&d, actor);
            let generation = episode.act(&options()).unwrap();
            generation.cancel();
            let (chunk, finish) = generation.collect().unwrap();
            assert!(chunk.ids.is_empty() && finish == Finish::Cancelled);
            assert!(episode.trajectory().unwrap().turns().is_empty());
            assert_eq!(fault(episode.outcome(None, true)), Fault::OutOfOrder);
            episode
        };
        silent().end(0.0, None).unwrap();
        assert_eq!(silent().decide().unwrap().actor, Some(actor));
        let again = |episode: Episode| {
            episode.act(&options()).unwrap().collect().unwrap();
            episode.outcome(None, true).unwrap();
            record(&episode.trajectory().unwrap())
        };
        let straight = again(decided(&d, actor));
        assert_eq!(again(silent()), straight);
        for other in [Actor::Student, Actor::Teacher] {
            let episode = silent();
            episode.override_actor(other).unwrap();
            assert_eq!(again(episode), again(decided(&d, other)), "{actor:?} then {other:?}");
        }
    }
}

#[test]
fn a_turn_that_has_stopped_is_not_gone_on_with() {
    let d = plain(half_guided());
    for actor in [Actor::Student, Actor::Teacher] {
        let episode = decided(&d, actor);
        say(&episode);
        assert_eq!(fault(episode.act(&stopped())), Fault::OutOfOrder);
        episode.outcome(None, true).unwrap();
        assert_eq!(episode.trajectory().unwrap().turns()[0].range.len(), 1);
    }
}

#[test]
fn options_that_are_refused_leave_the_turn_to_be_acted() {
    let d = plain(half_guided());
    let episode = decided(&d, Actor::Student);
    let before = episode.trace().unwrap();
    let bad = GenerationOptions { stop_ids: vec![VOCABULARY as i32], ..options() };
    assert_eq!(fault(episode.act(&bad)), Fault::IdOutOfRange);
    assert_eq!(episode.trace().unwrap(), before);
    episode.override_actor(Actor::Teacher).unwrap();
    episode.act(&options()).unwrap().collect().unwrap();
    episode.outcome(None, true).unwrap();
}

#[test]
fn a_teachers_turn_ends_where_the_students_context_does() {
    let engine = engine(Compute::F32);
    let small = engine.random_model(config(Kind::Dense, 32, 2), Dtype::F32, 1, 24).unwrap();
    let teacher = model(&engine, &config(Kind::Dense, 48, 2), 2);
    let d = Distiller::new(&small, Some(&teacher), settings(json!({"preset": "guided-opd"}))).unwrap();
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[3; 20]).unwrap();
    episode.decide().unwrap();
    let (said, _) = episode.act(&GenerationOptions::default()).unwrap().collect().unwrap();
    assert_eq!(said.ids.len(), 4);
    episode.outcome(None, true).unwrap();
    assert_eq!(fault(episode.observe_ids(&[1])), Fault::ContextFull);
    episode.observe_ids(&[]).unwrap();
    episode.decide().unwrap();
    assert_eq!(fault(episode.act(&options())), Fault::ContextFull);
    episode.end(0.0, None).unwrap();
    assert_eq!(build(&d).report().teacher_tokens, 4);
}

#[test]
fn replayed_ids_are_recorded_as_they_are() {
    let d = plain(json!({"preset": "sft"}));
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1, 2]).unwrap();
    episode.decide().unwrap();
    let before = episode.trace().unwrap();
    assert_eq!(fault(episode.replay(Replay::Ids(&[3, VOCABULARY as i32]))), Fault::IdOutOfRange);
    assert_eq!(fault(episode.replay(Replay::Ids(&[3; CONTEXT]))), Fault::ContextFull);
    assert_eq!(fault(episode.replay(Replay::Ids(&[]))), Fault::BadLength);
    assert_eq!(fault(episode.replay(Replay::Stored)), Fault::BadValue);
    assert_eq!(fault(episode.replay(Replay::Text("no tokenizer"))), Fault::MissingFile);
    assert_eq!(episode.trace().unwrap(), before);
    episode.replay(Replay::Ids(&[3, 4, STOP])).unwrap();
    episode.outcome(None, true).unwrap();
    episode.observe_ids(&[9]).unwrap();
    episode.decide().unwrap();
    episode.replay(Replay::Ids(&[5])).unwrap();
    episode.outcome(None, false).unwrap();
    episode.end(1.0, Some(true)).unwrap();
    let record = episode.trajectory().unwrap();
    assert_eq!(record.ids(), [1, 2, 3, 4, STOP, 9, 5]);
    let (h, r) = (Source::Host, Source::Replay);
    assert_eq!(record.sources(), [h, h, r, r, r, h, r]);
    assert!(record.logprobs().iter().all(|p| p.is_nan()));
    assert_eq!(record.turns().iter().map(|t| t.train).collect::<Vec<_>>(), [true, false]);
    let report = build(&d).report().clone();
    assert_eq!((report.replay_turns, report.trained_turns, report.trained_tokens, report.compared), (2, 1, 3, 0));
}

#[test]
fn nothing_is_said_before_anything_is_seen() {
    let d = plain(json!({"preset": "sft"}));
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[]).unwrap();
    episode.decide().unwrap();
    for _ in 0..2 {
        assert_eq!(fault(episode.replay(Replay::Ids(&[1]))), Fault::BadLength);
    }
    episode.override_actor(Actor::Student).unwrap();
    assert_eq!(fault(episode.act(&options())), Fault::EmptySession);
    assert!(episode.trajectory().unwrap().ids().is_empty());
    episode.end(0.0, None).unwrap();
}

// With a tokenizer and a template.

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const IM_END: i32 = 266;

fn chatting(document: Value) -> Distiller {
    let mut config = config(Kind::Dense, 32, 2);
    config.vocab_size = 273;
    let engine = engine(Compute::F32);
    let make = |seed| {
        let folder = tempfile::tempdir().unwrap();
        let weights = Weights::random(&config, engine.device(), Dtype::F32, seed, 0.2).unwrap();
        let tensors = weights.tensors();
        let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
        let (tokenizer, stops) = (tiny_tokenizer::tiny_tokenizer_json(), json!({"eos_token_id": IM_END}));
        let companions = Companions {
            tokenizer: Some(&tokenizer),
            tokenizer_config: None,
            chat_templates: Some(&ChatTemplates::of(TEMPLATE)),
            generation_config: Some(&stops),
        };
        save_model(folder.path().join("m").as_path(), &config.to_json(), list, companions).unwrap();
        engine.load(&folder.path().join("m"), LoadOptions { max_context: 0, copy: true }).unwrap()
    };
    Distiller::new(&make(1), Some(&make(2)), settings(document)).unwrap()
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn stored_demonstrations_are_replayed_as_text_and_learnt_with_their_end() {
    let d = chatting(json!({"preset": "sft"}));
    let texts = ["hello", "us <|im_end|>"].map(str::to_string).to_vec();
    let episode = d.begin(EpisodeSpec { demonstration: Some(texts.clone()), ..Default::default() }).unwrap();
    for text in ["one", "two"] {
        episode.observe(user(text)).unwrap();
        assert_eq!(episode.decide().unwrap().actor, Some(Actor::Replay));
        episode.replay(Replay::Stored).unwrap();
        episode.outcome(None, true).unwrap();
    }
    episode.observe(user("three")).unwrap();
    let decision = episode.decide().unwrap();
    assert_eq!((decision.actor, decision.reason), (Some(Actor::Teacher), Reason::ReplayEnded));
    episode.end(1.0, Some(true)).unwrap();
    let record = episode.trajectory().unwrap();
    let tokenizer = d.student().tokenizer().unwrap();
    for (turn, text) in record.turns().iter().zip(&texts) {
        let ids = &record.ids()[turn.range.clone()];
        assert_eq!(ids.last(), Some(&IM_END));
        assert!(!ids[..ids.len() - 1].contains(&IM_END), "content is never control");
        let bytes: Vec<u8> =
            ids[..ids.len() - 1].iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), *text);
    }
    assert_eq!(build(&d).report().trained_turns, 2);
}

#[test]
fn a_generation_prompt_stands_once_whatever_was_refused() {
    let d = chatting(half_guided());
    let run = |trouble: bool| {
        let episode = d.begin(numbered(1)).unwrap();
        for text in ["one", "two"] {
            episode.observe(user(text)).unwrap();
            if trouble {
                episode.override_actor(Actor::Replay).unwrap();
                assert_eq!(fault(episode.replay(Replay::Ids(&[1, 999]))), Fault::IdOutOfRange);
                episode.override_actor(Actor::Teacher).unwrap();
                let bad = GenerationOptions { stop_ids: vec![999], ..Default::default() };
                assert_eq!(fault(episode.act(&bad)), Fault::IdOutOfRange);
            }
            episode.override_actor(Actor::Student).unwrap();
            episode.act(&GenerationOptions { max_tokens: 4, ..Default::default() }).unwrap().collect().unwrap();
            episode.outcome(None, true).unwrap();
        }
        record(&episode.trajectory().unwrap())
    };
    let straight = run(false);
    let begins = straight.0.iter().filter(|&&id| id == IM_END - 1).count();
    assert!(begins >= 4, "two questions and two answers begin");
    assert_eq!(run(true), straight);
}
