//! A tokenizer.json for tests: Qwen3's pipeline over 256 bytes, a few merges, and Qwen3's kinds of added
//! tokens. The id of a byte is the byte.

use serde_json::{Value, json};

/// The merges; the nth makes id 256 + n. `Ġ` is a space.
pub const MERGES: [(&str, &str); 8] =
    [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("u", "s"), ("us", "er"), ("e", "r")];

/// The added tokens and whether each is special; the nth has id 264 + n.
pub const ADDED: [(&str, bool); 9] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<think>", false),
    ("</think>", false),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<tool_response>", false),
    ("</tool_response>", false),
];

/// The splitting pattern of Qwen2 to Qwen3.
pub const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The document, for tests that change it.
pub fn tiny_tokenizer() -> Value {
    let printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut vocabulary = serde_json::Map::new();
    let mut next = 0x100;
    for byte in 0..256u32 {
        let symbol = if printable(&byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocabulary.insert(char::from_u32(symbol).unwrap().to_string(), byte.into());
    }
    for (n, (left, right)) in MERGES.iter().enumerate() {
        vocabulary.insert(format!("{left}{right}"), (256 + n).into());
    }
    let added: Vec<Value> = ADDED
        .iter()
        .enumerate()
        .map(|(n, (content, special))| {
            json!({"id": 264 + n, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": special})
        })
        .collect();
    let merges: Vec<Value> = MERGES.iter().map(|(left, right)| json!([left, right])).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": merges},
    })
}

/// The document as bytes.
#[allow(dead_code)] // not every test needs its text
pub fn tiny_tokenizer_json() -> Vec<u8> {
    tiny_tokenizer().to_string().into_bytes()
}
