//! A chat request from outside, encoded by Qwen3's template and a small tokenizer, whole and behind a timeline.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use squire::text::request::ChatRequest;
use squire::text::tokenizer::Tokenizer;
use squire::text::{After, ChatTemplate, encode_append, encode_chat};

#[path = "../../support/tiny_tokenizer.rs"]
#[allow(dead_code)]
mod tiny_tokenizer;

const QWEN3: &str = include_str!("../../golden/qwen3_chat_template.jinja");

fuzz_target!(|text: &str| {
    static PARTS: OnceLock<(Tokenizer, ChatTemplate)> = OnceLock::new();
    let (tokenizer, template) = PARTS.get_or_init(|| {
        let tokenizer = Tokenizer::from_json(&tiny_tokenizer::tiny_tokenizer_json()).expect("the tiny tokenizer");
        (tokenizer, ChatTemplate::compile(QWEN3).expect("Qwen3's template"))
    });
    let Ok(ChatRequest { messages, options }) = ChatRequest::parse(text, Some(template)) else { return };
    let whole = encode_chat(tokenizer, template, messages.clone(), &options);
    for after in [After::Nothing, After::Messages, After::Turn { said: &[104, 105], ends: &[266] }] {
        let appended = encode_append(tokenizer, template, after, messages.clone(), &options);
        if let (After::Nothing, Ok(whole), Ok(appended)) = (after, &whole, &appended) {
            assert_eq!(whole, appended);
        }
    }
});
