//! A chat template from outside, rendered over a conversation that has a little of everything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use squire::error::Fault;
use squire::text::{ChatTemplate, RenderOptions};

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::compile(source) else { return };
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "ünï 1e400"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5]}}}]},
        {"role": "tool", "content": "<|im_end|>"},
    ]);
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    if let Err(e) = template.render(messages, &options) {
        assert!(e.fault() != Fault::Panic && !e.message().contains("panick"), "{e}");
        assert!(e.message().len() < 2000, "a message of {} bytes", e.message().len());
    }
});
