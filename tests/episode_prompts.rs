//! A student is trained under the prompts that it is served with, and on the tokens that it would say: demonstrations,
//! their ends, tools and template variables of episodes, ids that open a turn, turns that were cancelled.

#[path = "support/folders.rs"]
mod folders;

use std::path::PathBuf;

use serde_json::{Value, json};
use squire::distill::{Actor, Config, Distiller, Episode, EpisodeSpec, ForkOptions, Replay};
use squire::error::{Error, Fault};
use squire::serve::{Engine, EngineOptions, GenerationOptions, LoadOptions, Next, ServedModel, Session};
use squire::text::source::Source;
use squire::text::tokenizer::Control;
use squire::text::{ChatRequest, RenderOptions};

const END_OF_TEXT: i32 = 264;
const IM_END: i32 = 266;

struct Rig {
    _root: tempfile::TempDir,
    model: ServedModel,
}

/// A chat model whose generation_config.json is `generation`, none where it is null.
fn rig(generation: Value) -> Rig {
    let root = tempfile::tempdir().unwrap();
    let dir: PathBuf = root.path().join("model");
    folders::write_chat_model(&dir, 1);
    match generation {
        Value::Null => std::fs::remove_file(dir.join("generation_config.json")).unwrap(),
        document => std::fs::write(dir.join("generation_config.json"), document.to_string()).unwrap(),
    }
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    Rig { model: engine.load(&dir, LoadOptions::default()).unwrap(), _root: root }
}

impl Rig {
    fn distiller(&self, settings: Value) -> Distiller {
        let config = Config::from_json(&settings.to_string()).unwrap();
        Distiller::new(&self.model, Some(&self.model), config).unwrap()
    }

    fn begin(&self, distiller: &Distiller, spec: Value) -> Episode {
        distiller.begin(EpisodeSpec::from_json(&spec.to_string(), self.model.template().ok()).unwrap()).unwrap()
    }

    fn ids(&self, text: &str) -> Vec<i32> {
        self.model.tokenizer().unwrap().encode(text, Control::All)
    }

    fn text(&self, ids: &[i32]) -> String {
        self.model.tokenizer().unwrap().decode(ids, false)
    }
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn fault<T>(result: Result<T, Error>) -> Fault {
    result.err().expect("a refusal").fault()
}

fn short() -> GenerationOptions {
    GenerationOptions { max_tokens: 5, ..GenerationOptions::default() }
}

#[test]
fn a_demonstration_is_tokenised_as_the_assistants_message_that_it_is() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let said = "<think>\nplan\n</think>\n\n<tool_call>\n{\"name\": \"look\", \"arguments\": {}}\n</tool_call>";
    let wanted = rig.ids(&format!("{said}<|im_end|>"));
    for token in ["<think>", "</think>", "<tool_call>", "</tool_call>"] {
        assert!(wanted.contains(&rig.model.tokenizer().unwrap().id_of(token).unwrap()));
    }
    let distiller = rig.distiller(json!({"preset": "sft"}));
    for stored in [true, false] {
        let spec = if stored { json!({"demonstration": [said]}) } else { json!({}) };
        let episode = rig.begin(&distiller, spec);
        episode.observe(user("go")).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(if stored { Replay::Stored } else { Replay::Text(said) }).unwrap();
        episode.outcome(None, true).unwrap();
        let record = episode.trajectory().unwrap();
        let turn = &record.turns()[0];
        assert!(turn.train);
        assert_eq!(record.ids()[turn.range.clone()], wanted);
        if stored {
            continue; // its demonstration has one turn
        }
        // Special tokens stay text, whoever spells them.
        episode.observe(user("on")).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Text("a<|im_end|>b<|im_start|>")).unwrap();
        episode.outcome(None, true).unwrap();
        let record = episode.trajectory().unwrap();
        let ids = &record.ids()[record.turns()[1].range.clone()];
        assert_eq!(ids.iter().filter(|&&id| id >= END_OF_TEXT).count(), 1, "only the end is control: {ids:?}");
    }
}

#[test]
fn a_replayed_turn_ends_as_the_template_ends_it_whatever_the_stop_ids_are() {
    let between = "\n<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n";
    for generation in [
        json!({"eos_token_id": [END_OF_TEXT, IM_END]}),
        json!({"eos_token_id": [IM_END, END_OF_TEXT]}),
        json!({"eos_token_id": END_OF_TEXT}),
        Value::Null,
    ] {
        let rig = rig(generation.clone());
        let distiller = rig.distiller(json!({"preset": "sft"}));
        let episode = rig.begin(&distiller, json!({"demonstration": ["ok", "fine"]}));
        for text in ["go", "next"] {
            episode.observe(user(text)).unwrap();
            episode.decide().unwrap();
            episode.replay(Replay::Stored).unwrap();
            episode.outcome(None, true).unwrap();
        }
        let record = episode.trajectory().unwrap();
        let turns: Vec<_> = record.turns().iter().map(|t| t.range.clone()).collect();
        let said: Vec<String> = turns.iter().map(|range| rig.text(&record.ids()[range.clone()])).collect();
        assert_eq!(said, ["ok<|im_end|>", "fine<|im_end|>"], "{generation}");
        assert_eq!(rig.text(&record.ids()[turns[0].end..turns[1].start]), between, "{generation}");
    }
}

#[test]
fn a_turn_that_ended_by_another_stop_id_or_was_closed_by_the_host_is_closed_once() {
    let rig = rig(json!({"eos_token_id": [IM_END, END_OF_TEXT]}));
    let distiller = rig.distiller(json!({"preset": "sft"}));
    for (said, glue) in [
        ("ok<|endoftext|>", "\n<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n"),
        ("ok<|im_end|>\n", "<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n"),
        ("ok", "<|im_end|>\n<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n"),
    ] {
        let episode = rig.begin(&distiller, json!({}));
        for text in ["go", "next"] {
            episode.observe(user(text)).unwrap();
            episode.override_actor(Actor::Replay).unwrap();
            episode.replay(Replay::Ids(&rig.ids(said))).unwrap();
            episode.outcome(None, true).unwrap();
        }
        let record = episode.trajectory().unwrap();
        let turns: Vec<_> = record.turns().iter().map(|t| t.range.clone()).collect();
        assert_eq!(rig.text(&record.ids()[turns[0].end..turns[1].start]), glue, "{said:?}");
        // A session that is served is no different.
        let session = Session::new(&rig.model).unwrap();
        let prompt = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        session.append_chat(user("go"), &prompt).unwrap();
        session.append(&rig.ids(said), Source::Student).unwrap();
        let added = session.append_chat(user("next"), &prompt).unwrap();
        assert_eq!(rig.text(&added.iter().map(|t| t.id).collect::<Vec<_>>()), glue, "{said:?}");
    }
}

#[test]
fn the_ids_of_an_episode_are_those_of_the_session_that_is_served() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {"maximum": 3}}}]);
    let kwargs = json!({"enable_thinking": false});
    let distiller = rig.distiller(json!({"preset": "opd"}));
    let turns = [
        json!([{"role": "system", "content": "Be terse."}, {"role": "user", "content": "go"}]),
        json!([{"role": "tool", "content": "a mug"}]),
        json!([{"role": "user", "content": "and now"}]),
    ];
    for evaluation in [false, true] {
        // For the whole episode, for each turn, and as the template's variable at the top level.
        for way in 0..3 {
            let spec = match way {
                0 => json!({"tools": tools, "chat_template_kwargs": kwargs, "evaluation": evaluation}),
                1 => json!({"evaluation": evaluation}),
                _ => json!({"tools": tools, "enable_thinking": false, "evaluation": evaluation}),
            };
            let episode = rig.begin(&distiller, spec);
            for messages in &turns {
                let shown = match way {
                    1 => json!({"messages": messages, "tools": tools, "chat_template_kwargs": kwargs}),
                    _ => messages.clone(),
                };
                episode.observe_json(&shown.to_string()).unwrap();
                episode.override_actor(Actor::Student).unwrap();
                episode.act(&short()).unwrap().collect().unwrap();
                episode.outcome(None, true).unwrap();
            }
            let record = episode.trajectory().unwrap();
            let session = Session::new(&rig.model).unwrap();
            for (messages, turn) in turns.iter().zip(record.turns()) {
                let request = json!({"messages": messages, "tools": tools, "chat_template_kwargs": kwargs,
                                     "add_generation_prompt": true});
                let request = ChatRequest::parse(&request.to_string(), rig.model.template().ok()).unwrap();
                session.append_chat(request.messages, &request.options).unwrap();
                assert_eq!(session.len().unwrap(), turn.range.start, "the turn begins where the served one does");
                session.append(&record.ids()[turn.range.clone()], Source::Student).unwrap();
            }
            let served: Vec<i32> = session.tokens().unwrap().iter().map(|t| t.id).collect();
            assert_eq!(served, record.ids(), "{}", rig.text(record.ids()));
            let text = rig.text(&served);
            assert!(text.contains("\"look\"") && text.contains("<think>\n\n</think>\n\n"), "{text}");
        }
    }
}

#[test]
fn what_a_turn_is_rendered_with_is_that_turns_alone() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let distiller = rig.distiller(json!({"preset": "sft"}));
    let episode = rig.begin(&distiller, json!({}));
    let off = json!({"messages": user("one"), "chat_template_kwargs": {"enable_thinking": false}});
    for shown in [off, user("two")] {
        episode.observe_json(&shown.to_string()).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Text("x")).unwrap();
        episode.outcome(None, true).unwrap();
    }
    let record = episode.trajectory().unwrap();
    let text = rig.text(record.ids());
    let wanted = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nx<|im_end|>\n\
                  <|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\nx<|im_end|>";
    assert_eq!(text, wanted);
}

#[test]
fn what_holds_for_a_turn_holds_for_all_that_is_shown_in_it_and_for_no_other() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let distiller = rig.distiller(json!({"preset": "sft"}));
    let episode = rig.begin(&distiller, json!({}));
    let off = json!({"messages": user("one"), "enable_thinking": false});
    episode.observe_json(&off.to_string()).unwrap();
    episode.observe(user("more")).unwrap();
    let say = || {
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Text("x")).unwrap();
        episode.outcome(None, true).unwrap();
    };
    say();
    // The next turn is shown by ids, which say nothing of how to render.
    episode.observe_ids(&rig.ids("\n<|im_start|>user\ntwo<|im_end|>\n")).unwrap();
    say();
    let wanted = "<|im_start|>user\none<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n\
                  <think>\n\n</think>\n\nx<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\nx<|im_end|>";
    assert_eq!(rig.text(episode.trajectory().unwrap().ids()), wanted);
}

#[test]
fn a_demonstration_does_not_say_again_what_the_prompt_has_said() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let distiller = rig.distiller(json!({"preset": "sft"}));
    let empty = "<think>\n\n</think>\n\n";
    for (thinking, text, trained) in [
        (false, format!("{empty}ok"), "ok<|im_end|>".to_string()),
        (false, "ok".into(), "ok<|im_end|>".into()),
        (false, empty.into(), "<|im_end|>".into()),
        (true, format!("{empty}ok"), format!("{empty}ok<|im_end|>")),
    ] {
        let episode = rig.begin(&distiller, json!({"demonstration": [text], "enable_thinking": thinking}));
        episode.observe(user("go")).unwrap();
        episode.decide().unwrap();
        episode.replay(Replay::Stored).unwrap();
        let record = episode.trajectory().unwrap();
        let range = record.turns()[0].range.clone();
        assert_eq!(record.ids()[range], rig.ids(&trained), "{thinking} {text:?}");
    }
}

#[test]
fn a_named_template_ends_its_turns_by_its_own_end() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    folders::write_chat_model(&dir, 1);
    let qwen3 = std::fs::read_to_string(dir.join("chat_template.jinja")).unwrap();
    let other = qwen3.replace("<|im_end|>", "<|endoftext|>");
    std::fs::create_dir(dir.join("additional_chat_templates")).unwrap();
    std::fs::write(dir.join("additional_chat_templates/tool_use.jinja"), other).unwrap();
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    let rig = Rig { model: engine.load(&dir, LoadOptions::default()).unwrap(), _root: root };
    assert_eq!(rig.model.stop_ids(), [IM_END, END_OF_TEXT]);
    let distiller = rig.distiller(json!({"preset": "sft"}));
    for (spec, end) in [(json!({}), IM_END), (json!({"tools": [{"name": "look"}]}), END_OF_TEXT)] {
        let episode = rig.begin(&distiller, spec);
        episode.observe(user("go")).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Text("ok")).unwrap();
        assert_eq!(episode.trajectory().unwrap().ids().last(), Some(&end));
    }
}

/// A chat model with another template, whose generation_config.json names the end of text.
fn rig_with(template: &str) -> Rig {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    folders::write_chat_model(&dir, 1);
    std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
    std::fs::write(dir.join("generation_config.json"), format!("{{\"eos_token_id\": {END_OF_TEXT}}}")).unwrap();
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    Rig { model: engine.load(&dir, LoadOptions::default()).unwrap(), _root: root }
}

#[test]
fn what_the_prompt_ends_with_closes_no_turn() {
    let template = "{% for m in messages %}## {{ m.role }}:\n{{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}## assistant:\n{% endif %}";
    let rig = rig_with(template);
    let prompt = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    // A turn of nothing, one that was cut short, and one that holds the template's end already.
    for (said, glue) in [("", "\n"), ("ok", "\n"), ("ok\n", "")] {
        let session = Session::new(&rig.model).unwrap();
        session.append_chat(user("go"), &prompt).unwrap();
        session.append(&rig.ids(said), Source::Student).unwrap();
        session.append_chat(user("next"), &prompt).unwrap();
        let ids: Vec<i32> = session.tokens().unwrap().iter().map(|t| t.id).collect();
        let wanted = format!("## user:\ngo\n## assistant:\n{said}{glue}## user:\nnext\n## assistant:\n");
        assert_eq!(rig.text(&ids), wanted, "{said:?}");
    }
}

#[test]
fn a_template_that_closes_no_turn_keeps_the_beginning_of_the_next_message() {
    let opens = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant:{% endif %}";
    let rig = rig_with(opens);
    assert_eq!(rig.model.stop_ids(), [END_OF_TEXT]);
    let distiller = rig.distiller(json!({"preset": "sft"}));
    let episode = rig.begin(&distiller, json!({}));
    for text in ["go", "next"] {
        episode.observe(user(text)).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Text("ok")).unwrap();
        episode.outcome(None, true).unwrap();
    }
    // Nothing closes a turn, so the first stop id ends it; and it takes nothing away from what follows.
    let wanted = "<|im_start|>user:go<|im_start|>assistant:ok<|endoftext|>\
                  <|im_start|>user:next<|im_start|>assistant:ok<|endoftext|>";
    assert_eq!(rig.text(episode.trajectory().unwrap().ids()), wanted);
    // Ids whose last assistant's turn is followed by another message begin none.
    let episode = rig.begin(&distiller, json!({}));
    episode.observe_ids(&rig.ids("<|im_start|>assistant:hm<|im_start|>user:go")).unwrap();
    episode.override_actor(Actor::Replay).unwrap();
    episode.replay(Replay::Text("ok")).unwrap();
    let text = rig.text(episode.trajectory().unwrap().ids());
    assert!(text.ends_with("user:go<|im_start|>assistant:ok<|endoftext|>"), "{text}");
}

#[test]
fn ids_that_open_the_turn_open_it_once() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let distiller = rig.distiller(json!({"preset": "sft"}));
    let plain = "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n";
    let closed = "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n";
    let with_thought = format!("{plain}<think>\n\n</think>\n\n");
    let opened = "<|im_start|>user\nassistant\n<|im_end|>\n";
    for (shown, wanted) in [
        (plain, plain.to_string()),
        (&with_thought, with_thought.clone()),
        // A turn that stands closed, and content that reads like a prompt, begin nothing.
        (closed, format!("{closed}<|im_start|>assistant\n")),
        (opened, format!("{opened}<|im_start|>assistant\n")),
    ] {
        let episode = rig.begin(&distiller, json!({}));
        episode.observe_ids(&rig.ids(shown)).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Text("ok")).unwrap();
        episode.outcome(None, true).unwrap();
        let record = episode.trajectory().unwrap();
        assert_eq!(rig.text(&record.ids()[..record.turns()[0].range.start]), wanted, "{shown:?}");
        // What follows closes the turn as ever.
        episode.observe(user("next")).unwrap();
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Text("ok")).unwrap();
        let record = episode.trajectory().unwrap();
        let between = &record.ids()[record.turns()[0].range.end..record.turns()[1].range.start];
        assert_eq!(rig.text(between), "\n<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n");
    }
}

#[test]
fn a_cancelled_turn_is_what_stands_there() {
    let rig = rig(Value::Null);
    let distiller = rig.distiller(json!({"preset": "opd"}));
    let episode = rig.begin(&distiller, json!({}));
    episode.observe(user("go")).unwrap();
    episode.override_actor(Actor::Student).unwrap();
    let options = GenerationOptions { ignore_model_stops: true, ..GenerationOptions::default() };
    let generation = episode.act(&options).unwrap();
    let Next::Chunk(first) = generation.next(None).unwrap() else { panic!("something is said first") };
    generation.cancel();
    let mut said = first.ids;
    while let Next::Chunk(chunk) = generation.next(None).unwrap() {
        said.extend(chunk.ids);
    }
    episode.outcome(Some(1.0), true).unwrap();
    let record = episode.trajectory().unwrap();
    assert_eq!(record.ids()[record.turns()[0].range.clone()], said);
    assert_eq!(record.turns()[0].reward, Some(1.0));
    episode.end(0.0, None).unwrap();
}

#[test]
fn a_turn_that_was_cancelled_before_its_first_token_is_none_yet() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let root = &rig._root;
    let options = EngineOptions { n_threads: 1, caller_driven: true, ..EngineOptions::default() };
    let engine = Engine::new(options).unwrap();
    let model = engine.load(&root.path().join("model"), LoadOptions::default()).unwrap();
    let config = Config::from_json(r#"{"preset": "opd"}"#).unwrap();
    let distiller = Distiller::new(&model, Some(&model), config).unwrap();
    let cancelled = || {
        let episode = distiller.begin(EpisodeSpec::default()).unwrap();
        episode.observe(user("go")).unwrap();
        episode.override_actor(Actor::Student).unwrap();
        let generation = episode.act(&short()).unwrap();
        generation.cancel();
        assert!(generation.collect().unwrap().0.ids.is_empty(), "no step was taken before");
        let e = episode.outcome(None, true).unwrap_err();
        assert_eq!(e.fault(), Fault::OutOfOrder);
        assert!(e.message().contains("act, override, or end"), "{e}");
        episode
    };
    // From here everything goes on: the turn is played, by the same actor or another, or the episode ends.
    let played = cancelled();
    played.decide().unwrap();
    let said = played.act(&short()).unwrap().collect().unwrap().0.ids;
    played.outcome(None, true).unwrap();
    let record = played.trajectory().unwrap();
    assert_eq!(record.ids()[record.turns()[0].range.clone()], said);
    let replayed = cancelled();
    replayed.override_actor(Actor::Replay).unwrap();
    replayed.replay(Replay::Text("ok")).unwrap();
    replayed.outcome(None, true).unwrap();
    let prompt = "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rig.text(replayed.trajectory().unwrap().ids()), format!("{prompt}ok<|im_end|>"), "one prompt, not two");
    cancelled().end(0.0, None).unwrap();
}

/// A fork whose first own turn is this one.
fn forked(episode: &Episode, turn: u32) -> Episode {
    episode.fork(ForkOptions { turn: Some(turn), ..ForkOptions::default() }).unwrap()
}

#[test]
fn a_fork_at_any_turn_begins_it_as_its_parent_did() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let distiller = rig.distiller(json!({"preset": "sft"}));
    let show = |episode: &Episode, turn: usize| match turn {
        // A prompt of its own, a turn that is left open.
        0 => {
            let shown = json!({"messages": user("one"), "enable_thinking": false});
            episode.observe_json(&shown.to_string()).unwrap();
        }
        // Ids that close it not, ids that begin the turn themselves, and messages in two calls.
        1 => drop(episode.observe_ids(&rig.ids(" and so on")).unwrap()),
        2 => {
            let shown = "\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n";
            episode.observe_ids(&rig.ids(shown)).unwrap();
        }
        _ => {
            episode.observe(user("four")).unwrap();
            episode.observe(user("more")).unwrap();
        }
    };
    let say = |episode: &Episode| {
        episode.override_actor(Actor::Replay).unwrap();
        episode.replay(Replay::Ids(&rig.ids("ok"))).unwrap();
        episode.outcome(None, true).unwrap();
    };
    let episode = rig.begin(&distiller, json!({}));
    for turn in 0..4 {
        show(&episode, turn);
        say(&episode);
    }
    let wanted = rig.text(episode.trajectory().unwrap().ids());
    assert!(wanted.contains("ok and so on<|im_end|>\n<|im_start|>assistant\nok"), "{wanted}");
    for first in 0..4 {
        let fork = forked(&episode, first);
        say(&fork);
        for turn in first as usize + 1..4 {
            show(&fork, turn);
            say(&fork);
        }
        assert_eq!(rig.text(fork.trajectory().unwrap().ids()), wanted, "turn {first}");
        // More may be shown before the turn, in its prompt.
        let fork = forked(&episode, first);
        fork.observe(user("wait")).unwrap();
        say(&fork);
        let record = fork.trajectory().unwrap();
        let text = rig.text(&record.ids()[..record.turns()[first as usize].range.end]);
        let thought = if first == 0 { "<think>\n\n</think>\n\n" } else { "" };
        let end = format!("<|im_start|>user\nwait<|im_end|>\n<|im_start|>assistant\n{thought}ok");
        assert!(text.ends_with(&end), "turn {first}: {text}");
    }
}

#[test]
fn a_prompt_that_stands_is_no_part_of_a_fork() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let options = EngineOptions { n_threads: 1, caller_driven: true, ..EngineOptions::default() };
    let engine = Engine::new(options).unwrap();
    let model = engine.load(&rig._root.path().join("model"), LoadOptions::default()).unwrap();
    let config = Config::from_json(r#"{"preset": "guided-opd"}"#).unwrap();
    let distiller = Distiller::new(&model, Some(&model), config).unwrap();
    for actor in [Actor::Student, Actor::Teacher] {
        let episode = distiller.begin(EpisodeSpec::default()).unwrap();
        episode.observe(user("go")).unwrap();
        episode.override_actor(actor).unwrap();
        let generation = episode.act(&short()).unwrap();
        generation.cancel();
        assert!(generation.collect().unwrap().0.ids.is_empty(), "no step was taken before");
        // Computed with it or not.
        for prefilled in [false, true] {
            if prefilled {
                episode.prefill(&Default::default()).unwrap();
            }
            let fork = forked(&episode, 0);
            fork.observe(user("wait")).unwrap();
            fork.override_actor(Actor::Student).unwrap();
            fork.act(&short()).unwrap().collect().unwrap();
            fork.outcome(None, true).unwrap();
            let record = fork.trajectory().unwrap();
            let text = rig.text(&record.ids()[..record.turns()[0].range.start]);
            let wanted = "<|im_start|>user\ngo<|im_end|>\n<|im_start|>user\nwait<|im_end|>\n<|im_start|>assistant\n";
            assert_eq!(text, wanted, "one prompt, not two");
            fork.end(1.0, None).unwrap();
        }
        episode.override_actor(Actor::Student).unwrap();
        episode.act(&short()).unwrap().collect().unwrap();
        episode.outcome(None, true).unwrap();
        episode.end(1.0, None).unwrap();
    }
    // The teacher has scored all of it.
    let update = distiller.build(6, &Default::default(), &mut |_, _| true).unwrap();
    assert_eq!((update.report().trained_turns, distiller.n_set_aside()), (6, 0));
}

#[test]
fn keys_that_an_episode_cannot_take_are_refused_by_name() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let template = rig.model.template().ok();
    for (spec, wanted) in [
        (json!({"enable_thinkng": false}), Fault::UnknownKey),
        (json!({"add_generation_prompt": true}), Fault::BadValue),
        (json!({"tools": "look"}), Fault::BadValue),
        (json!({"chat_template_kwargs": []}), Fault::BadValue),
    ] {
        assert_eq!(fault(EpisodeSpec::from_json(&spec.to_string(), template)), wanted, "{spec}");
    }
    let distiller = rig.distiller(json!({"preset": "sft"}));
    let episode = rig.begin(&distiller, json!({}));
    for shown in [json!({"messages": user("x"), "toolz": []}), json!({"messages": [{"role": "usr", "content": "x"}]})] {
        assert!(episode.observe_json(&shown.to_string()).is_err(), "{shown}");
    }
    assert_eq!(episode.trajectory().unwrap().ids().len(), 0, "a call that fails changes nothing");
    episode.observe(user("x")).unwrap();
}

#[test]
fn an_update_takes_the_settings_batch_unless_it_is_told_how_many() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let distiller = rig.distiller(json!({"preset": "sft", "batch_episodes": 2, "steps": 2}));
    let played = |n: usize| {
        for _ in 0..n {
            let episode = rig.begin(&distiller, json!({"demonstration": ["ok"]}));
            episode.observe(user("go")).unwrap();
            episode.decide().unwrap();
            episode.replay(Replay::Stored).unwrap();
            episode.outcome(None, true).unwrap();
            episode.end(1.0, Some(true)).unwrap();
        }
    };
    let build = |most| distiller.build(most, &Default::default(), &mut |_, _| true);
    played(5);
    let mut first = build(0).unwrap();
    assert_eq!((first.report().episodes, distiller.n_waiting()), (2, 3));
    distiller.apply(&mut first).unwrap();
    let mut second = build(3).unwrap();
    assert_eq!((second.report().episodes, distiller.n_waiting()), (3, 0));
    distiller.apply(&mut second).unwrap();
    // The run's steps are done: what waits stays, and the refusal says how to go on.
    played(1);
    let refusal = build(0).err().unwrap();
    assert_eq!((refusal.fault(), distiller.n_waiting()), (Fault::RunComplete, 1));
    assert!(refusal.message().contains("resume"), "{refusal}");
}

#[test]
fn a_resumed_run_may_have_more_steps_and_not_fewer() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let settings = |steps: u64| json!({"preset": "sft", "steps": steps});
    let distiller = rig.distiller(settings(1));
    let train = |distiller: &Distiller| {
        let episode = rig.begin(distiller, json!({"demonstration": ["ok"]}));
        episode.observe(user("go")).unwrap();
        episode.decide().unwrap();
        episode.replay(Replay::Stored).unwrap();
        episode.outcome(None, true).unwrap();
        episode.end(1.0, Some(true)).unwrap();
        let mut update = distiller.build(0, &Default::default(), &mut |_, _| true)?;
        distiller.apply(&mut update)
    };
    train(&distiller).unwrap();
    assert_eq!(fault(train(&distiller)), Fault::RunComplete);
    distiller.discard();
    let folder = tempfile::tempdir().unwrap();
    distiller.save(folder.path()).unwrap();
    let resume = |steps| {
        let config = Config::from_json(&settings(steps).to_string()).unwrap();
        Distiller::resume(&rig.model, Some(&rig.model), config, folder.path())
    };
    let more = resume(3).unwrap();
    assert_eq!(more.step(), 1);
    train(&more).unwrap();
    train(&more).unwrap();
    assert_eq!(fault(train(&more)), Fault::RunComplete);
    more.discard();
    more.save(folder.path()).unwrap();
    let e = resume(2).err().unwrap();
    assert_eq!(e.fault(), Fault::CheckpointMismatch);
    assert!(e.message().contains("steps") && e.message().contains("give 3 or more"), "{e}");
}

#[test]
fn a_history_that_rewrites_what_was_said_is_refused_in_an_episode_by_name() {
    let rig = rig(json!({"eos_token_id": [IM_END]}));
    let distiller = rig.distiller(json!({"preset": "sft"}));
    for mode in [json!("strip_thinking"), json!("tool_cycle"), json!("none"), json!(1), json!(null)] {
        for spec in [json!({"history": mode}), json!({"history": mode, "evaluation": true})] {
            let e = EpisodeSpec::from_json(&spec.to_string(), rig.model.template().ok()).err().unwrap();
            assert_eq!(e.fault(), Fault::BadValue);
            assert!(e.message().contains("history: wanted keep") && e.message().contains("token-exact"), "{e}");
        }
    }
    // A model whose own mode strips thoughts keeps them in an episode.
    rig.model.set_history(squire::text::History::StripThinking);
    let episode = rig.begin(&distiller, json!({"history": "keep"}));
    for _ in 0..2 {
        episode.observe(user("hello")).unwrap();
        episode.decide().unwrap();
        episode.replay(Replay::Text("<think>\nplan\n</think>\n\nYes.")).unwrap();
        episode.outcome(None, true).unwrap();
    }
    assert_eq!(rig.text(episode.trajectory().unwrap().ids()).matches("plan").count(), 2);
    assert_eq!(rig.model.engine().metrics().prefix_breaks, 0);
}
