//! A generation ends where a turn does, whichever of a folder's documents names the id; and a model says which do.

#[path = "support/folders.rs"]
mod folders;

use serde_json::{Value, json};
use squire::serve::{Engine, EngineOptions, Finish, GenerationOptions, LoadOptions, ServedModel, Session};
use squire::text::source::Source;

const END_OF_TEXT: i32 = 264;
const IM_END: i32 = 266;

/// A model that always says `<|im_end|>`, in a folder whose configurations and tokenizer_config.json say what is given.
fn model(eos: Value, tokenizer_config: Option<Value>, template: Option<&str>) -> ServedModel {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    folders::write_model_that_says(&dir, IM_END as usize);
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["eos_token_id"] = eos.clone();
    write("config.json", config.to_string());
    write("generation_config.json", json!({"eos_token_id": eos}).to_string());
    if let Some(document) = tokenizer_config {
        write("tokenizer_config.json", document.to_string());
    }
    match template {
        Some(text) => write("chat_template.jinja", text.to_string()),
        None => std::fs::remove_file(dir.join("chat_template.jinja")).unwrap(),
    }
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    let model = engine.load(&dir, LoadOptions { copy: true, ..LoadOptions::default() }).unwrap();
    drop(root);
    model
}

fn said(model: &ServedModel) -> (Vec<i32>, Finish) {
    let session = Session::new(model).unwrap();
    session.append(&[104, 105], Source::Host).unwrap();
    let options = GenerationOptions { max_tokens: 6, ..GenerationOptions::default() };
    let (chunk, finish) = session.generate(options).unwrap().collect().unwrap();
    (chunk.ids, finish)
}

#[test]
fn a_chat_model_in_a_base_models_folder_stops_where_its_turn_ends() {
    let qwen3 = std::fs::read_to_string(folders::golden("qwen3_chat_template.jinja")).unwrap();
    let eos = || json!({"eos_token": "<|im_end|>"});
    let object = || json!({"eos_token": {"content": "<|im_end|>", "special": true}});
    let (configured, tokens, template) =
        ("generation_config.json eos_token_id", "tokenizer_config.json eos_token", "the chat template's end of turn");
    let (all, by_token, by_template) = (json!([tokens, template]), json!([tokens]), json!([template]));
    for (tokenizer_config, has_template, from) in [
        (Some(eos()), true, &all),
        (Some(object()), true, &all),
        (Some(eos()), false, &by_token),
        (None, true, &by_template),
        (Some(json!({"eos_token": null})), true, &by_template),
    ] {
        let model = model(json!(END_OF_TEXT), tokenizer_config, has_template.then_some(&qwen3));
        assert_eq!(model.stop_ids(), [END_OF_TEXT, IM_END], "{from}");
        assert_eq!(said(&model), (vec![IM_END], Finish::Stop), "{from}");
        let info = model.info();
        assert_eq!(info["stop_ids"], json!([END_OF_TEXT, IM_END]));
        let wanted = json!([
            {"id": END_OF_TEXT, "token": "<|endoftext|>", "from": [configured]},
            {"id": IM_END, "token": "<|im_end|>", "from": from},
        ]);
        assert_eq!(info["stop_ids_from"], wanted);
        assert_eq!(info["warnings"], json!([]));
    }
}

#[test]
fn a_folder_in_which_nothing_names_an_end_goes_on() {
    let model = model(json!(END_OF_TEXT), None, None);
    assert_eq!(model.stop_ids(), [END_OF_TEXT]);
    assert_eq!(said(&model), (vec![IM_END; 6], Finish::Length));
}

#[test]
fn the_order_of_the_configurations_stays() {
    let qwen3 = std::fs::read_to_string(folders::golden("qwen3_chat_template.jinja")).unwrap();
    for eos in [[IM_END, END_OF_TEXT], [END_OF_TEXT, IM_END]] {
        let model = model(json!(eos), Some(json!({"eos_token": "<|endoftext|>"})), Some(&qwen3));
        assert_eq!(model.stop_ids(), eos);
        assert_eq!(said(&model), (vec![IM_END], Finish::Stop));
    }
}

#[test]
fn an_eos_token_that_the_tokenizer_lacks_is_told() {
    let model = model(json!(END_OF_TEXT), Some(json!({"eos_token": "</s>"})), None);
    assert_eq!(model.stop_ids(), [END_OF_TEXT]);
    let warnings = model.info()["warnings"].to_string();
    assert!(warnings.contains("tokenizer_config.json") && warnings.contains("</s>"), "{warnings}");
}
