//! Chat requests as hosts write them, through folders as people have them: which template renders, that what was given
//! arrives, that a saved folder renders as the one it came from, and what a host hears of.

#[path = "support/folders.rs"]
mod folders;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use squire::error::{Fault, Result};
use squire::serve::{Engine, EngineOptions, LoadOptions, Log, ServedModel, Session};
use squire::text::ChatRequest;

fn engine(log: Option<Log>) -> Engine {
    Engine::new(EngineOptions { n_threads: 1, log, ..EngineOptions::default() }).unwrap()
}

/// A folder whose templates are `tokenizer_config`'s and the `files`.
fn folder(root: &Path, tokenizer_config: Value, files: &[(&str, &str)]) -> std::path::PathBuf {
    let dir = root.join("model");
    folders::write_chat_model(&dir, 1);
    fs::remove_file(dir.join("chat_template.jinja")).unwrap();
    fs::write(dir.join("tokenizer_config.json"), tokenizer_config.to_string()).unwrap();
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn load(engine: &Engine, dir: &Path) -> ServedModel {
    engine.load(dir, LoadOptions::default()).unwrap()
}

/// What a request becomes, as text.
fn render(model: &ServedModel, request: Value) -> Result<String> {
    let ChatRequest { messages, options } = ChatRequest::parse(&request.to_string(), model.template().ok())?;
    let ids = model.encode_chat(messages, &options)?;
    Ok(model.tokenizer()?.decode(&ids, false))
}

const PRINT: &str = "{% for m in messages %}[{{ m.content }}]{% endfor %}";

fn with_tools() -> Value {
    json!({"messages": [{"role": "user", "content": "Hi"}],
           "tools": [{"type": "function", "function": {"name": "look"}}]})
}

const LOOK: &str = r#"[Hi] tools: [{"type": "function", "function": {"name": "look"}}]"#;

#[test]
fn the_template_named_tool_use_renders_requests_with_tools_in_every_layout() {
    let tools = format!("{PRINT} tools: {{{{ tools | tojson }}}}");
    let list = json!({"chat_template": [
        {"name": "default", "template": format!("{PRINT}{{% if tools %}} no tools here{{% endif %}}")},
        {"name": "tool_use", "template": tools},
        {"name": "rag", "template": "rag"}]});
    let default_file = format!("{PRINT}{{% if tools %}} no tools here{{% endif %}}");
    let files = [
        ("chat_template.jinja", default_file.as_str()),
        ("additional_chat_templates/tool_use.jinja", tools.as_str()),
        ("additional_chat_templates/rag.jinja", "rag"),
    ];
    let plain = json!({"messages": [{"role": "user", "content": "Hi"}]});
    for (config, files) in [(list, &[][..]), (json!({}), &files[..])] {
        let root = tempfile::tempdir().unwrap();
        let engine = engine(None);
        let model = load(&engine, &folder(root.path(), config, files));
        // A saved folder renders as the one it came from, and so does one saved from that.
        let (second, third) = (root.path().join("second"), root.path().join("third"));
        model.save(&second).unwrap();
        let second = load(&engine, &second);
        second.save(&third).unwrap();
        second.save(&third).unwrap(); // a folder of ours, additional templates and all, is replaced
        for model in [&model, &second, &load(&engine, &third)] {
            assert_eq!(render(model, with_tools()).unwrap(), LOOK);
            assert_eq!(render(model, plain.clone()).unwrap(), "[Hi]");
            let mut named = with_tools();
            named["chat_template"] = "default".into();
            assert_eq!(render(model, named.clone()).unwrap(), "[Hi] no tools here");
            named["chat_template"] = "rag".into();
            assert_eq!(render(model, named.clone()).unwrap(), "rag");
            named["chat_template"] = "absent".into();
            let e = render(model, named).unwrap_err();
            assert_eq!(e.fault(), Fault::NoTemplate);
            assert!(e.message().contains("default, rag, tool_use"), "{e}");
            assert_eq!(model.info()["chat_templates"], json!(["default", "rag", "tool_use"]));
            let mut empty = plain.clone();
            empty["tools"] = json!([]);
            assert_eq!(render(model, empty).unwrap(), "[Hi] tools: []", "an empty list is given, too");
        }
        assert_eq!(third.join("chat_template.jinja").exists(), !files.is_empty());
    }
}

#[test]
fn a_folder_without_a_default_says_so_when_it_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let config = json!({"chat_template": [{"name": "tool_use", "template": "t{{ messages[0].content }}"}]});
    let model = load(&engine(None), &folder(root.path(), config, &[]));
    assert_eq!(render(&model, with_tools()).unwrap(), "tHi");
    let e = render(&model, json!({"messages": [{"role": "user", "content": "Hi"}]})).unwrap_err();
    assert_eq!(e.fault(), Fault::NoTemplate);
    assert!(e.message().contains("tool_use") && e.message().contains("chat_template"), "{e}");
}

#[test]
fn documents_variables_and_digits_arrive() {
    let root = tempfile::tempdir().unwrap();
    let template = "{% for d in documents or [] %}<{{ d.title }}>{% endfor %}{% for m in messages %}{{ m.content }}\
                    {% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}\
                    {% if date_string is defined %} on {{ date_string }}{% endif %}";
    let model = load(&engine(None), &folder(root.path(), json!({ "chat_template": template }), &[]));
    let user = json!([{"role": "user", "content": "Hi"}]);
    let documents = json!({"messages": user, "documents": [{"title": "Atlas", "text": "maps"}]});
    assert_eq!(render(&model, documents).unwrap(), "<Atlas>Hi");
    for request in [
        json!({"messages": user, "chat_template_kwargs": {"date_string": "1 May"}}),
        json!({"messages": user, "date_string": "1 May"}),
    ] {
        assert_eq!(render(&model, request).unwrap(), "Hi on 1 May");
    }
    let text = r#"{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "send",
        "arguments": {"wei": 1000000000000000000000, "lr": 1e-05, "id": 18446744073709551617}}}]}]}"#;
    let ChatRequest { messages, options } = ChatRequest::parse(text, model.template().ok()).unwrap();
    let ids = model.encode_chat(messages, &options).unwrap();
    let wanted = r#"{"wei": 1000000000000000000000, "lr": 1e-05, "id": 18446744073709551617}"#;
    assert_eq!(model.tokenizer().unwrap().decode(&ids, false), wanted);
}

#[test]
fn a_message_that_is_continued_is_gone_on_with_in_a_session() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    folders::write_chat_model(&dir, 1);
    let model = load(&engine(None), &dir);
    let request = json!({
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "The answer is"}],
        "continue_final_message": true,
    });
    let open = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nThe answer is";
    assert_eq!(render(&model, request.clone()).unwrap(), open);
    let session = Session::new(&model).unwrap();
    let ChatRequest { messages, options } = ChatRequest::parse(&request.to_string(), model.template().ok()).unwrap();
    session.append_chat(messages, &options).unwrap();
    // The turn stands open: what is said next belongs to it, and the next message closes it first.
    let next = json!({"messages": [{"role": "user", "content": "and"}]});
    let ChatRequest { messages, options } = ChatRequest::parse(&next.to_string(), model.template().ok()).unwrap();
    session.append_chat(messages, &options).unwrap();
    let ids: Vec<i32> = session.tokens().unwrap().iter().map(|t| t.id).collect();
    let text = model.tokenizer().unwrap().decode(&ids, false);
    assert_eq!(text, format!("{open}<|im_end|>\n<|im_start|>user\nand<|im_end|>\n"));
}

#[test]
fn a_host_hears_once_of_what_a_template_does_silently() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    let log = Log(Arc::new(move |_, target, text| {
        if target == "chat" {
            sink.lock().unwrap().push(text.to_string());
        }
    }));
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    folders::write_chat_model(&dir, 1);
    let model = load(&engine(Some(log)), &dir);
    let request = json!({
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "<think>\nx\n</think>\n\nA"},
            {"role": "user", "content": "<tool_response>\nr\n</tool_response>"},
        ],
        "chat_template_kwargs": {"enable_thinkng": false},
    });
    for _ in 0..3 {
        render(&model, request.clone()).unwrap();
    }
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard.iter().any(|line| line.contains("enable_thinkng")), "{heard:?}");
    assert!(heard.iter().any(|line| line.contains("role tool")), "{heard:?}");
}

#[test]
fn a_text_cut_inside_an_emoji_is_named_with_its_message() {
    let text = r#"{"messages":[{"role":"tool","content":"cut here \ud83d"}]}"#;
    let e = ChatRequest::parse(text, None).err().unwrap();
    assert_eq!(e.fault(), Fault::BadJson);
    assert!(e.message().starts_with("messages[0].content: a lone surrogate \\ud83d"), "{e}");
}
