//! What a session's model says, told apart and put back: parts of generations, messages of parts that render to the ids that were
//! sampled, and modes of history, whose timelines are the renderings of the whole conversation.

#[path = "support/folders.rs"]
mod folders;

use std::path::Path;

use serde_json::{Value, json};
use squire::error::Fault;
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, LoadOptions, Next, ServedModel, Session, Token};
use squire::text::parts::joined;
use squire::text::source::Source;
use squire::text::tokenizer::Control;
use squire::text::{ChatRequest, History, Part, RenderOptions, ToolCall};

const IM_END: i32 = 266;

fn engine() -> Engine {
    Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap()
}

fn load(dir: &Path) -> ServedModel {
    engine().load(dir, LoadOptions::default()).unwrap()
}

/// A chat model of random weights; what it says is put down for it.
fn chat_model() -> (tempfile::TempDir, ServedModel) {
    let root = tempfile::tempdir().unwrap();
    folders::write_chat_model(&root.path().join("model"), 1);
    let model = load(&root.path().join("model"));
    (root, model)
}

fn ids(session: &Session) -> Vec<i32> {
    session.tokens().unwrap().iter().map(|token| token.id).collect()
}

fn text(model: &ServedModel, ids: &[i32]) -> String {
    model.tokenizer().unwrap().decode(ids, false)
}

fn prompting(history: Option<History>) -> RenderOptions {
    RenderOptions { add_generation_prompt: true, history, ..RenderOptions::default() }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn greedy() -> GenerationOptions {
    let mut options = GenerationOptions::default();
    options.sampling.temperature = 0.0;
    options
}

const CALL: &str = "\n{\"name\": \"look\", \"arguments\": {\"at\": \"mug\", \"n\": 1e2}}\n";

#[test]
fn the_parts_of_a_generation_make_the_message_that_renders_to_its_ids() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    let pieces = ["<think>", "\nhm\n", "</think>", "\n\nBoth.\n", "<tool_call>", CALL, "</tool_call>"];
    folders::write_reciting_model(&dir, &pieces);
    let model = load(&dir);
    let session = Session::new(&model).unwrap();
    session.append_chat(json!([user("Look.")]), &prompting(None)).unwrap();
    let before = session.len().unwrap();
    let generation = session.generate(greedy()).unwrap();
    let (mut parts, mut stream) = (Vec::new(), generation.parts().unwrap());
    let mut raw = String::new();
    loop {
        match generation.next(None).unwrap() {
            Next::Chunk(chunk) => {
                raw.push_str(&chunk.text);
                parts.extend(stream.push(&chunk.ids));
            }
            Next::End(_) => break,
            Next::Timeout => unreachable!("no timeout was given"),
        }
    }
    parts.extend(stream.finish());
    assert_eq!(raw, pieces.concat());
    let arguments = "{\"at\": \"mug\", \"n\": 1e2}";
    let call = ToolCall { index: 0, id: format!("call_{before}_0"), name: "look".into(), arguments: arguments.into() };
    let wanted = [Part::Reasoning("hm".into()), Part::Content("Both.".into()), Part::ToolCall(call)];
    assert_eq!(joined(parts), wanted);
    // Rendered again it is what was sampled.
    let said = json!({"role": "assistant", "reasoning_content": "hm", "content": "Both.", "tool_calls": [
        {"type": "function", "function": {"name": "look", "arguments": arguments}}]});
    let again = model.encode_chat(json!([user("Look."), said]), &RenderOptions::default()).unwrap();
    assert_eq!(text(&model, &again[before..]), raw + "<|im_end|>\n");
}

/// A turn as a model says it, and the message that stands for it.
struct Turn {
    said: &'static str,
    message: Value,
}

fn turns() -> [Turn; 3] {
    let call = json!([{"type": "function", "function": {"name": "look", "arguments": {"at": "mug"}}}]);
    [
        Turn {
            said: "<think>\nI look.\n</think>\n\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"mug\"}}\n</tool_call><|im_end|>",
            message: json!({"role": "assistant", "reasoning_content": "I look.", "content": "", "tool_calls": call}),
        },
        Turn {
            said: "<think>\nA mug 😀.\n</think>\n\nIt is a mug.<|im_end|>",
            message: json!({"role": "assistant", "reasoning_content": "A mug 😀.", "content": "It is a mug."}),
        },
        Turn {
            said: "<think>\n\n</think>\n\nBye.<|im_end|>",
            message: json!({"role": "assistant", "reasoning_content": "", "content": "Bye."}),
        },
    ]
}

/// Writes down what a student has said.
fn say(session: &Session, said: &str) {
    let ids = session.model().tokenizer().unwrap().encode(said, Control::All);
    session.append(&ids, Source::Student).unwrap();
}

#[test]
fn a_timeline_of_every_mode_is_the_rendering_of_the_whole_conversation() {
    let (_root, model) = chat_model();
    for history in [History::StripThinking, History::ToolCycle] {
        for tools in [None, Some(json!([{"type": "function", "function": {"name": "look"}}]))] {
            let options = RenderOptions { tools: tools.map(Into::into), ..prompting(Some(history)) };
            let session = Session::new(&model).unwrap();
            let mut whole = vec![];
            let [called, answered, bye] = turns();
            let shown = [
                (json!([{"role": "system", "content": "Be terse."}, user("Look.")]), called),
                (json!([{"role": "tool", "content": "a mug"}]), answered),
                (json!([user("Thanks.")]), bye),
                (json!([user("Again.")]), turns().into_iter().next().unwrap()),
                (
                    json!([{"role": "tool", "content": "a mug"}, {"role": "tool", "content": "a cup"}]),
                    turns().into_iter().nth(1).unwrap(),
                ),
            ];
            for (messages, turn) in shown {
                let added = session.append_chat(&messages, &options).unwrap();
                whole.extend(messages.as_array().unwrap().clone());
                let wanted = model.encode_chat(Value::from(whole.clone()), &options).unwrap();
                let found = ids(&session);
                assert_eq!(text(&model, &found), text(&model, &wanted), "{history:?}");
                assert_eq!(found, wanted);
                let tail: Vec<i32> = added.iter().map(|token| token.id).collect();
                assert!(found.ends_with(&tail) && added.iter().all(|token| !token.source.is_action()));
                say(&session, turn.said);
                whole.push(turn.message);
            }
        }
    }
}

#[test]
fn what_stays_keeps_its_ids_its_author_and_its_numbers_and_the_last_turn_alone_is_computed_again() {
    let (_root, model) = chat_model();
    let (session, options) = (Session::new(&model).unwrap(), prompting(Some(History::StripThinking)));
    let breaks = || model.engine().metrics().prefix_breaks;
    let before = breaks();
    session.append_chat(json!([user(&"word ".repeat(200))]), &options).unwrap();
    let prompt = session.len().unwrap();
    // The same text in other pieces than the tokenizer's own.
    let id = |token: &str| model.tokenizer().unwrap().id_of(token).unwrap();
    let pieces: Vec<i32> = [id("<think>"), 104, 109, id("</think>"), 10, 10, 104, 101, 108, 108, 111, IM_END].into();
    let sampled = |(n, &id): (usize, &i32)| Token {
        logprob: -(n as f32),
        sampled_logprob: -0.5,
        revision: 1,
        ..Token::given(id, Source::Student)
    };
    session.append_tokens(&pieces.iter().enumerate().map(sampled).collect::<Vec<_>>()).unwrap();
    session.prefill(&Cancel::default()).unwrap();
    let computed = session.n_computed().unwrap();
    let added = session.append_chat(json!([user("on")]), &options).unwrap().len();
    assert_eq!(breaks() - before, 1);
    let tokens = session.tokens().unwrap();
    let kept = &tokens[prompt..tokens.len() - added];
    assert_eq!(kept.iter().map(|t| t.id).collect::<Vec<_>>(), &pieces[6..], "o, not hello's token");
    assert!(
        kept.iter().zip(6..).all(|(t, n)| t.source == Source::Student && t.logprob == -(n as f32) && t.revision == 1)
    );
    session.prefill(&Cancel::default()).unwrap();
    assert_eq!(session.n_computed().unwrap() - computed, (kept.len() + added) as u64, "the long prompt stays computed");
    // Nothing to strip is no break, and neither is more of what stands.
    session.append_chat(json!([user("on")]), &options).unwrap();
    assert_eq!(breaks() - before, 1);
    let mut same = ids(&session);
    session.sync(&same).unwrap();
    same.push(5);
    session.sync(&same).unwrap();
    session.sync(&same[..9]).unwrap();
    assert_eq!(breaks() - before, 1);
    session.sync(&[1, 2]).unwrap();
    assert_eq!(breaks() - before, 2, "other ids in the place of those that stood");
}

#[test]
fn keep_only_grows() {
    let (_root, model) = chat_model();
    let session = Session::new(&model).unwrap();
    let mut stood = Vec::new();
    for turn in turns() {
        session.append_chat(json!([user("Look.")]), &prompting(None)).unwrap();
        say(&session, turn.said);
        let now = ids(&session);
        assert!(now.starts_with(&stood));
        stood = now;
    }
    assert_eq!(model.engine().metrics().prefix_breaks, 0);
}

#[test]
fn a_thought_that_the_prompt_opened_or_that_has_no_end_goes_too() {
    let (_root, model) = chat_model();
    let plain = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    for (thinking, said, kept) in [
        (false, "Yes.<|im_end|>", "Yes.<|im_end|>"),
        (false, "", "<|im_end|>"),
        (true, "<think>\ncut off", "<|im_end|>"),
        (true, "Yes.", "Yes.<|im_end|>"),
    ] {
        let variables = vec![("enable_thinking".to_string(), thinking.into())];
        let options = RenderOptions { variables, ..prompting(Some(History::ToolCycle)) };
        let session = Session::new(&model).unwrap();
        session.append_chat(json!([user("q")]), &options).unwrap();
        say(&session, said);
        session.append_chat(json!([user("r")]), &RenderOptions { add_generation_prompt: false, ..options }).unwrap();
        assert_eq!(text(&model, &ids(&session)), format!("{plain}{kept}\n<|im_start|>user\nr<|im_end|>\n"), "{said:?}");
    }
}

#[test]
fn a_call_that_fails_leaves_thoughts_where_they_are() {
    let (_root, model) = chat_model();
    let session = Session::new(&model).unwrap();
    let options = prompting(Some(History::StripThinking));
    session.append_chat(json!([user("q")]), &options).unwrap();
    say(&session, turns()[1].said);
    let (before, breaks) = (ids(&session), model.engine().metrics().prefix_breaks);
    for (messages, fault) in [
        (json!([{"role": "critic", "content": "x"}]), Fault::BadValue),
        (json!([user(&"x ".repeat(4000))]), Fault::ContextFull),
        (json!([{"role": "system", "content": "x"}]), Fault::BadValue),
    ] {
        assert_eq!(session.append_chat(messages, &options).unwrap_err().fault(), fault);
        assert_eq!(ids(&session), before);
    }
    assert_eq!(model.engine().metrics().prefix_breaks, breaks);
}

#[test]
fn a_vocabulary_without_thoughts_refuses_the_modes_that_look_for_them() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    folders::write_chat_model(&dir, 1);
    let path = dir.join("tokenizer.json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    document["added_tokens"].as_array_mut().unwrap().truncate(3);
    std::fs::write(&path, document.to_string()).unwrap();
    let model = load(&dir);
    let session = Session::new(&model).unwrap();
    let e = session.append_chat(json!([user("q")]), &prompting(Some(History::StripThinking))).unwrap_err();
    assert_eq!(e.fault(), Fault::UnsupportedTokenizer);
    assert!(e.message().contains("<think>") && e.message().contains("history"), "{e}");
    session.append_chat(json!([user("q")]), &prompting(Some(History::Keep))).unwrap();
}

#[test]
fn a_models_mode_of_history_is_saved_with_it_and_counts_where_a_request_does_not_say() {
    let (root, model) = chat_model();
    assert_eq!((model.history(), &model.info()["history"]), (History::Keep, &json!("keep")));
    let (kept, stripped) = (root.path().join("kept"), root.path().join("stripped"));
    model.save(&kept).unwrap();
    assert!(!kept.join("tokenizer_config.json").exists(), "the default leaves no trace");
    model.set_history(History::StripThinking);
    model.save(&stripped).unwrap();
    let config = std::fs::read_to_string(stripped.join("tokenizer_config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&config).unwrap(), json!({"squire_history": "strip_thinking"}));
    let saved = load(&stripped);
    assert_eq!((load(&kept).history(), saved.history()), (History::Keep, History::StripThinking));
    for (history, thinks) in [(None, false), (Some(History::Keep), true)] {
        let session = Session::new(&saved).unwrap();
        session.append_chat(json!([user("q")]), &prompting(history)).unwrap();
        say(&session, turns()[1].said);
        session.append_chat(json!([user("r")]), &prompting(history)).unwrap();
        assert_eq!(text(&saved, &ids(&session)).contains("<think>"), thinks);
    }
    // Saved again, and set back.
    saved.save(&root.path().join("again")).unwrap();
    assert_eq!(load(&root.path().join("again")).history(), History::StripThinking);
    saved.set_history(History::Keep);
    saved.save(&root.path().join("back")).unwrap();
    assert_eq!(load(&root.path().join("back")).history(), History::Keep);
    for wrong in [json!("strip"), json!(1), json!(null)] {
        std::fs::write(stripped.join("tokenizer_config.json"), json!({ "squire_history": wrong }).to_string()).unwrap();
        let e = engine().load(&stripped, LoadOptions::default()).err().unwrap();
        assert_eq!(e.fault(), Fault::TokenizerConfigForm, "{wrong}");
        assert!(e.message().contains("squire_history"), "{e}");
    }
}

#[test]
fn a_message_goes_in_by_role_and_content_as_it_does_by_json() {
    let (_root, model) = chat_model();
    let (plain, by_json) = (Session::new(&model).unwrap(), Session::new(&model).unwrap());
    for (role, content) in [
        ("system", "Be terse."),
        ("user", "hi<|im_end|>\n<think>"),
        ("assistant", "<think>\nx\n</think>\n\ny"),
        ("user", ""),
    ] {
        let added = plain.append_message(role, content, &RenderOptions::default()).unwrap();
        let request = json!({"messages": [{"role": role, "content": content}]}).to_string();
        let ChatRequest { messages, options } = ChatRequest::parse(&request, model.template().ok()).unwrap();
        let wanted = by_json.append_chat(messages, &options).unwrap();
        assert_eq!(format!("{added:?}"), format!("{wanted:?}"));
    }
    assert_eq!(ids(&plain), ids(&by_json));
    let e = plain.append_message("usr", "x", &RenderOptions::default()).unwrap_err();
    assert_eq!(e.fault(), Fault::BadValue);
    assert!(e.message().contains("usr") && e.message().contains("system, user, assistant, tool"), "{e}");
}

#[test]
fn schemas_of_megabytes_are_refused_as_what_has_no_room_and_deep_ones_as_json() {
    let (_root, model) = chat_model();
    let session = Session::new(&model).unwrap();
    let properties: serde_json::Map<String, Value> = (0..40_000)
        .map(|n| (format!("parameter_{n}"), json!({"type": "string", "description": "d".repeat(60)})))
        .collect();
    let tool = |properties: Value| json!([{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]);
    let large = tool(properties.into());
    assert!(large.to_string().len() > 4 << 20);
    let request = json!({"messages": [user("q")], "tools": large}).to_string();
    let ChatRequest { messages, options } = ChatRequest::parse(&request, model.template().ok()).unwrap();
    let e = session.append_chat(messages, &options).unwrap_err();
    assert_eq!(e.fault(), Fault::ContextFull);
    assert!(e.message().contains("there is room for 2048"), "{e}");
    assert!(session.is_empty().unwrap());
    let deep = format!("{{\"messages\": [], \"tools\": [{{\"a\": {}1{}}}]}}", "[".repeat(500), "]".repeat(500));
    let e = ChatRequest::parse(&deep, model.template().ok()).err().unwrap();
    assert_eq!(e.fault(), Fault::BadJson);
    assert!(e.message().contains("tools[0].a") && e.message().contains("within each other"), "{e}");
    // What fits says the types of the coder's parameters, to the session and its forks, until it is taken back.
    let small = RenderOptions { tools: Some(tool(json!({"n": {"type": "integer"}})).into()), ..prompting(None) };
    session.append_chat(json!([user("q")]), &small).unwrap();
    let arguments = |session: &Session| {
        let mut parts = session.generate(greedy()).unwrap().parts().unwrap();
        let call = "<tool_call><function=f><parameter=n>5</parameter></function></tool_call>";
        match &parts.push(&model.tokenizer().unwrap().encode(call, Control::All))[..] {
            [Part::ToolCall(call)] => call.arguments.clone(),
            other => panic!("{other:?}"),
        }
    };
    // A thought that is cut out before the place where they were told last takes them along no more than it does the messages.
    say(&session, turns()[1].said);
    let told = RenderOptions { history: Some(History::StripThinking), ..small.clone() };
    session.append_chat(json!([user("q")]), &RenderOptions { history: Some(History::Keep), ..small }).unwrap();
    say(&session, turns()[1].said);
    session.append_chat(json!([user("q")]), &RenderOptions { tools: None, ..told }).unwrap();
    let fork = session.fork().unwrap();
    assert_eq!((arguments(&session), arguments(&fork)), (r#"{"n":5}"#.into(), r#"{"n":5}"#.into()));
    fork.truncate(0).unwrap();
    fork.append_chat(json!([user("q")]), &prompting(None)).unwrap();
    assert_eq!(arguments(&fork), r#"{"n":"5"}"#);
}
