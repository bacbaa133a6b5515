//! What squire renders is what transformers renders, by Qwen3's own template and tokenizer: recorded by `tests/chat/record.py`, whole
//! conversations and timelines that grow by turns. The text is compared everywhere; ids where Qwen3's tokenizer lies in
//! `target/qwen3` (`.ci/run` gets it, and makes the record again to compare), else the tests say that they are skipped.

use std::path::PathBuf;

use serde_json::json;
use squire::error::Fault;
use squire::format::{ChatTemplates, Companions, save_model};
use squire::model::{ModelConfig, Weights};
use squire::serve::{Engine, EngineOptions, LoadOptions, ServedModel, Session};
use squire::text::source::Source;
use squire::text::tokenizer::Control;
use squire::text::{ChatRequest, ChatTemplate, Json};

/// The record, with every digit of its numbers.
fn record() -> Json {
    Json::parse(include_str!("chat/renderings.json")).unwrap()
}

fn list<'j>(of: &'j Json, key: &str) -> &'j [Json] {
    of.get(key).unwrap().as_list().unwrap()
}

fn text<'j>(of: &'j Json, key: &str) -> &'j str {
    of.get(key).unwrap().as_str().unwrap()
}

/// A model of Qwen3's vocabulary that says nothing; None where its tokenizer is not at hand.
fn model(record: &Json) -> Option<(tempfile::TempDir, ServedModel)> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "target/qwen3/package/models/tokenizer.json"].iter().collect();
    let Ok(tokenizer) = std::fs::read(path) else {
        println!("skipped: Qwen3's tokenizer does not lie in target/qwen3");
        return None;
    };
    let document = json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 40_960,
        "tie_word_embeddings": true,
    });
    let config = ModelConfig::from_json(&document).unwrap();
    let weights = Weights::zeros(&config).unwrap();
    let companions = Companions {
        tokenizer: Some(&tokenizer),
        chat_templates: Some(&ChatTemplates::of(text(record, "template"))),
        ..Companions::default()
    };
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    let tensors = weights.tensors();
    let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
    save_model(&folder, &config.to_json(), list, companions).unwrap();
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    let model = engine.load(&folder, LoadOptions::default()).unwrap();
    Some((root, model))
}

/// FNV-1a over the ids' bytes, as the record has it.
fn digest(ids: &[i32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// Whether ids are the recorded ones; or, where content spells control tokens, at least their text is: what is forged is control
/// in transformers and text here.
fn check(model: &ServedModel, name: &str, recorded: &Json, ids: &[i32]) -> bool {
    let same = text(recorded, "ids") == digest(ids) && *recorded.get("n").unwrap() == Json::from(json!(ids.len()));
    if !same {
        assert_eq!(model.tokenizer().unwrap().decode(ids, false), text(recorded, "text"), "{name}");
        assert!(name.starts_with("forged"), "{name}: other ids of the same text");
    }
    same
}

fn request(value: &Json, template: &ChatTemplate) -> ChatRequest {
    ChatRequest::parse(&value.to_text(), Some(template)).unwrap()
}

#[test]
fn every_conversation_renders_to_the_text_of_transformers_or_fails_where_it_fails() {
    let record = record();
    let golden = include_str!("golden/qwen3_chat_template.jinja");
    assert_eq!(text(&record, "template"), golden, "the template of the golden cases is Qwen3's own");
    let template = ChatTemplate::compile(golden).unwrap();
    let (mut texts, mut refusals) = (0, 0);
    for case in list(&record, "conversations") {
        let ChatRequest { messages, options } = request(case.get("request").unwrap(), &template);
        match (template.render(messages, &options), case.get("text").and_then(Json::as_str)) {
            (Ok(text), Some(wanted)) => {
                assert_eq!(text, wanted, "{:?}", case.get("name"));
                texts += 1;
            }
            (Err(_), None) => refusals += 1,
            (found, wanted) => panic!("{:?}: {found:?}, transformers {wanted:?}", case.get("name")),
        }
    }
    assert!(texts > 120 && refusals > 5, "{texts} texts, {refusals} refusals");
}

#[test]
fn every_conversation_has_the_ids_of_transformers() {
    let record = record();
    let Some((_root, model)) = model(&record) else { return };
    let (mut same, mut forged, mut dropped) = (0, 0, 0);
    for case in list(&record, "conversations") {
        let name = text(case, "name");
        let ChatRequest { messages, options } = request(case.get("request").unwrap(), model.template().unwrap());
        match model.encode_chat(messages, &options) {
            Err(_) if case.get("refused").is_some() => {}
            // transformers renders the conversation without the message.
            Err(e) if e.fault() == Fault::BadValue && ["unknown role", "developer"].contains(&name) => dropped += 1,
            Err(e) => panic!("{name}: {e}"),
            Ok(ids) if check(&model, name, case, &ids) => same += 1,
            Ok(_) => forged += 1,
        }
    }
    println!("{same} of the same ids, {forged} of forged control kept text, {dropped} of a dropped role refused");
    assert!(same > 100 && forged > 5 && dropped == 2);
}

/// The options of a dialogue as a request of messages in a mode of history.
fn asked(options: &Json, messages: &[Json], mode: &str) -> Json {
    let Json::Object(mut entries) = options.clone() else { panic!("options are an object") };
    entries.push(("messages".into(), Json::List(messages.to_vec())));
    entries.push(("add_generation_prompt".into(), true.into()));
    entries.push(("history".into(), mode.into()));
    Json::Object(entries)
}

#[test]
fn a_timeline_that_grows_by_turns_has_the_ids_of_the_whole_rendering_in_every_mode() {
    let record = record();
    let Some((_root, model)) = model(&record) else { return };
    let tokenizer = model.tokenizer().unwrap();
    let (mut same, mut forged, mut grown) = (0, 0, 0);
    for dialogue in list(&record, "dialogues") {
        let (name, options) = (text(dialogue, "name"), dialogue.get("options").unwrap());
        let thinking = options.get("chat_template_kwargs").and_then(|kwargs| kwargs.get("enable_thinking"));
        for mode in ["tool_cycle", "strip_thinking", "keep"] {
            // Where thinking is off the prompt writes an empty thought; the template shows it no more while tools are called,
            // and a timeline of this mode keeps what was prompted until a user speaks.
            if mode == "tool_cycle" && thinking == Some(&Json::Bool(false)) && options.get("tools").is_some() {
                continue;
            }
            let session = Session::new(&model).unwrap();
            let (mut stood, mut whole) = (Vec::new(), Vec::new());
            let breaks = model.engine().metrics().prefix_breaks;
            for step in list(dialogue, "steps") {
                whole.extend(list(step, "shown").to_vec());
                let shown = request(&asked(options, list(step, "shown"), mode), model.template().unwrap());
                session.append_chat(shown.messages, &shown.options).unwrap();
                let ids: Vec<i32> = session.tokens().unwrap().iter().map(|token| token.id).collect();
                if mode == "keep" {
                    assert!(ids.starts_with(&stood), "{name}");
                    grown += 1;
                } else {
                    *(if check(&model, name, step.get(mode).unwrap(), &ids) { &mut same } else { &mut forged }) += 1;
                    // The whole conversation, rendered at once in the same mode.
                    let all = request(&asked(options, &whole, mode), model.template().unwrap());
                    assert_eq!(model.encode_chat(all.messages, &all.options).unwrap(), ids, "{name}, {mode}");
                }
                session.append(&tokenizer.encode(text(step, "said"), Control::All), Source::Student).unwrap();
                stood = session.tokens().unwrap().iter().map(|token| token.id).collect();
                whole.push(step.get("message").unwrap().clone());
            }
            let broken = model.engine().metrics().prefix_breaks - breaks;
            assert_eq!(broken > 0, mode != "keep", "{name}, {mode}");
        }
    }
    println!("{same} timelines of the same ids, {forged} of forged control kept text, {grown} that only grew");
    assert!(same > 150 && forged > 20 && grown > 100);
}
