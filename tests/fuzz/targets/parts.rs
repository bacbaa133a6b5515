//! What a model may say, as ids drawn from a small tokenizer with and without tokens for the marks, cut into pieces: nothing may
//! panic, and the parts may depend neither on the pieces nor lose a call's text.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use squire::text::parts::{Tools, joined};
use squire::text::tokenizer::{Control, Tokenizer};
use squire::text::{Json, Part, PartStream};

#[path = "../../support/tiny_tokenizer.rs"]
#[allow(dead_code)]
mod tiny_tokenizer;

const TOOLS: &str = r#"[{"name": "f", "parameters": {"properties": {"i": {"type": "integer"}, "b": {"type": "boolean"},
    "o": {"type": "object"}, "n": {"type": ["number", "null"]}}}}]"#;

struct Shared {
    /// with the marks as tokens, and without
    tokenizers: [Arc<Tokenizer>; 2],
    tools: Arc<Tools>,
}

fuzz_target!(|data: &[u8]| {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let mut document = tiny_tokenizer::tiny_tokenizer();
        let read = |document: &serde_json::Value| {
            Arc::new(Tokenizer::from_json(document.to_string().as_bytes()).expect("the tiny tokenizer"))
        };
        let with = read(&document);
        document["added_tokens"].as_array_mut().expect("a list").truncate(3);
        let tools = Arc::new(Tools::of(&Json::parse(TOOLS).expect("JSON")).expect("memory"));
        Shared { tokenizers: [with, read(&document)], tools }
    });
    let Some((&how, rest)) = data.split_first() else { return };
    let tokenizer = &shared.tokenizers[usize::from(how & 1)];
    // A byte is its id, so that text comes as it is; from 0xf8 on, which no UTF-8 has, it is an added token or none.
    let said: Vec<i32> = match how & 2 {
        0 => rest.iter().map(|&byte| if byte >= 0xf8 { 264 + i32::from(byte - 0xf8) } else { i32::from(byte) }).collect(),
        _ => tokenizer.encode(&String::from_utf8_lossy(rest), Control::All),
    };
    let prompt = ["", "<think>\n", "<think>\n\n</think>\n\n", "<tool_call>\n"][usize::from(how >> 2) % 4];
    let before = tokenizer.encode(&format!("<|im_start|>assistant\n{prompt}"), Control::All);
    let parts = |size: usize| {
        let mut stream = PartStream::new(tokenizer.clone(), &before, 0, shared.tools.clone());
        let mut parts: Vec<Part> = said.chunks(size).flat_map(|ids| stream.push(ids)).collect();
        parts.extend(stream.finish());
        assert!(stream.finish().is_empty());
        joined(parts)
    };
    let whole = parts(usize::MAX);
    assert_eq!(parts(1), whole);
    assert_eq!(parts(2 + usize::from(how >> 4)), whole);
    for part in &whole {
        if let Part::ToolCall(call) = part {
            assert!(matches!(Json::parse(&call.arguments), Ok(Json::Object(_))) && !call.name.is_empty());
        }
    }
});
