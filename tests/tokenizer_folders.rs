//! Tokenizers as people have them: tokens added in every way, words that are merges, and runs of any length.
//! The reference is Hugging Face's crate where its regex engine is right, else the explicit ids.

#[path = "support/tiny_tokenizer.rs"]
#[allow(dead_code)]
mod tiny_tokenizer;

use serde_json::{Value, json};
use squire::random::{Stream, below};
use squire::text::{ChatTemplate, Control, RenderOptions, Tokenizer, encode_chat};
use tiny_tokenizer::tiny_tokenizer;

/// The tiny tokenizer with more merges (the nth makes id 273 + n) and more added tokens (behind those).
fn document(merges: &[(&str, &str)], added: &[Value]) -> Value {
    let mut document = tiny_tokenizer();
    for (n, (left, right)) in merges.iter().enumerate() {
        document["model"]["vocab"][format!("{left}{right}")] = (273 + n).into();
        document["model"]["merges"].as_array_mut().unwrap().push(json!([left, right]));
    }
    for (n, token) in added.iter().enumerate() {
        let mut entry = json!({"id": 273 + merges.len() + n, "single_word": false, "lstrip": false, "rstrip": false,
                               "normalized": true, "special": false});
        token.as_object().unwrap().iter().for_each(|(key, value)| entry[key] = value.clone());
        document["added_tokens"].as_array_mut().unwrap().push(entry);
    }
    document
}

fn read(document: &Value) -> Tokenizer {
    Tokenizer::from_json(document.to_string().as_bytes()).unwrap()
}

fn reference(document: &Value) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(document.to_string()).unwrap()
}

/// The bytes' own ids.
fn bytes(text: &str) -> Vec<i32> {
    text.bytes().map(i32::from).collect()
}

fn draw_text(case: u64, pool: &[&str]) -> String {
    let draw = |i, n: usize| below(Stream::World, &[case, i], n as u64) as usize;
    (0..draw(0, 12)).map(|i| pool[draw(i as u64 + 1, pool.len())]).collect()
}

const POOL: [&str; 34] = [
    "<obs>",
    "</obs>",
    "<o",
    "obs",
    "bs>",
    "<",
    ">",
    "<é>",
    "<e\u{301}>",
    "é",
    "e",
    "\u{301}",
    "\u{338}",
    "hello",
    "hell",
    "o",
    " world",
    "!",
    "!!",
    "<|im_end|>",
    "<think>",
    " ",
    "  ",
    "\n",
    "\t",
    "\u{3000}",
    "_",
    "1",
    "ﬁ",
    "fi",
    "가",
    "\u{1100}\u{1161}",
    "\u{200d}",
    "漢",
];

#[test]
fn a_million_spaces_are_split_as_a_few_are() {
    // Merges across which the pattern cuts; one piece of all would use them.
    let t = read(&document(&[("Ġ", "Ġ"), ("2", "0"), (",", "Ġ")], &[]));
    let spaces = 1_000_002;
    let ids = t.encode(&("x".to_string() + &" ".repeat(spaces) + "Hello world, it's 2025."), Control::None);
    let mut wanted = bytes("x");
    wanted.extend(vec![273; spaces / 2 - 1]);
    wanted.extend(bytes("  He"));
    wanted.extend([257, 111, 260]);
    wanted.extend(bytes("orld, it's 2025."));
    assert!(ids == wanted, "{} ids, wanted {}, last {:?}", ids.len(), wanted.len(), &ids[ids.len() - 24..]);
}

#[test]
fn runs_of_white_space_of_any_length_and_place_are_split_alike() {
    let t = read(&document(&[("Ġ", "Ġ"), ("Ċ", "Ċ"), ("ĉ", "ĉ"), ("Ġ", "h")], &[]));
    // What the ids are with a run of ten they are with one of more than a million, but for the run's middle.
    let (few, many) = (10, 1_200_000);
    for (before, run, after) in [
        ("x", " ", "hello"),
        ("", " ", ""),
        ("x", " ", "\n"),
        ("\n", " ", "x"),
        ("x", "\n", " x"),
        ("x", "\n", ""),
        ("x", "\t", "x"),
        ("x", "\t", "\nx"),
        ("1", " \n", " x"),
        ("", "\n ", "x"),
        (".", "\r\n", "x"),
        ("x", "\u{a0}", "x"),
        ("x", "\u{3000}", " 漢"),
        ("x", "\u{2028}", "1"),
        ("x ", "\t ", " hello"),
    ] {
        let ids = |times: usize| t.encode(&(before.to_string() + &run.repeat(times) + after), Control::All);
        let (short, long) = (ids(few), ids(many));
        let grown = (many - few) * (ids(few + 2).len() - short.len()) / 2;
        assert_eq!(long.len(), short.len() + grown, "{before:?} {run:?} {after:?}");
        let edge = short.len() / 2;
        assert_eq!(long[..edge], short[..edge], "{before:?} {run:?} {after:?}");
        assert_eq!(long[long.len() - edge..], short[short.len() - edge..], "{before:?} {run:?} {after:?}");
    }
}

#[test]
fn added_tokens_of_every_kind_are_found_as_the_reference_finds_them() {
    let flags = ["normalized", "single_word", "lstrip", "rstrip", "special"];
    for set in 0..96u64 {
        let draw = |i: u64, n: u64| below(Stream::World, &[set, 1000 + i], n);
        let contents = ["<obs>", "</obs>", "<é>", "e\u{301}", "obs", " ", "\n", "<o", "ﬁ", "가"];
        let mut added: Vec<Value> = Vec::new();
        for (n, content) in contents.iter().enumerate().filter(|&(n, _)| draw(n as u64, 2) == 0) {
            let mut token = json!({"content": content});
            for (f, flag) in flags.iter().enumerate() {
                // Tokens of white space that strip it overlap, at which the reference panics.
                let strips = flag.ends_with("strip") && content.trim().is_empty();
                token[flag] = (!strips && draw((10 * n + f) as u64 + 10, 3) == 0).into();
            }
            added.push(token);
        }
        let mut document = document(&[], &added);
        document["normalizer"] = match set % 4 {
            0 => json!({"type": "NFKC"}),
            1 => json!({"type": "NFD"}),
            2 => json!(null),
            _ => json!({"type": "NFC"}),
        };
        let (ours, theirs) = (read(&document), reference(&document));
        for case in 0..150 {
            let text = draw_text(set * 1000 + case, &POOL);
            let wanted: Vec<i32> =
                theirs.encode(text.as_str(), false).unwrap().get_ids().iter().map(|&id| id as i32).collect();
            assert_eq!(ours.encode(&text, Control::All), wanted, "{text:?} {added:?}");
        }
    }
}

#[test]
fn a_token_added_as_a_string_is_found_in_normal_form_and_only_where_it_counts() {
    let t = read(&document(&[], &[json!({"content": "<obs>"}), json!({"content": "<e\u{301}>"})]));
    assert_eq!(t.encode("a<obs>b", Control::All), [97, 273, 98]);
    for spelling in ["<é>", "<e\u{301}>"] {
        assert_eq!(t.encode(spelling, Control::All), [274]);
        assert_eq!(t.encode(spelling, Control::None), bytes("<é>"));
        assert_eq!(t.decode(&[274], false), "<é>");
    }
    // What composes with its last character leaves no token.
    assert_eq!(t.encode("<obs>\u{338}", Control::All), bytes("<obs≯"));
    assert_eq!(t.id_of("<e\u{301}>"), Some(274));
}

#[test]
fn two_tokens_of_one_normal_form_are_refused() {
    let document = document(&[], &[json!({"content": "é"}), json!({"content": "e\u{301}"})]);
    let e = Tokenizer::from_json(document.to_string().as_bytes()).unwrap_err();
    assert!(e.message().contains("two normal forms") && e.message().contains("remove one"), "{e}");
}

#[test]
fn a_word_that_merges_make_can_be_an_added_token() {
    let mut changed = document(&[("hello", "user")], &[]);
    changed["added_tokens"].as_array_mut().unwrap().push(json!({"id": 259, "content": "hello", "normalized": true}));
    let t = read(&changed);
    // As control it is found before any merge, in other words too; as text it is what merges make.
    assert_eq!(t.encode("hellouser", Control::All), [259, 262]);
    assert_eq!(t.encode("hellouser", Control::None), [273]);
    assert_eq!(t.encode("hello hello", Control::None), [259, 32, 259]);
    assert_eq!(t.token_bytes(259), Some(&b"hello"[..]));
    assert!(t.is_added(259) && !t.is_special(259));
}

#[test]
fn no_text_makes_a_special_token_that_merges_make() {
    for ignore_merges in [false, true] {
        let mut changed = document(&[("hello", "user")], &[]);
        changed["model"]["ignore_merges"] = ignore_merges.into();
        let added = changed["added_tokens"].as_array_mut().unwrap();
        added.push(json!({"id": 259, "content": "hello", "special": true}));
        added.push(json!({"id": 258, "content": "hell", "special": true}));
        let t = read(&changed);
        assert_eq!(t.encode("hello", Control::All), [259]);
        for control in [Control::None, Control::NotSpecial] {
            assert_eq!(t.encode("hello", control), [256, 257, 111]);
            // Words that pass through it are made as ever.
            assert_eq!(t.encode("hellouser", control), [273]);
        }
    }
    // A single byte has no parts.
    let mut changed = tiny_tokenizer();
    changed["added_tokens"].as_array_mut().unwrap().push(json!({"id": 33, "content": "!", "special": true}));
    assert_eq!(read(&changed).encode("a!", Control::None), [97, 33]);
}

#[test]
fn a_byte_order_mark_before_the_document_is_no_fault() {
    let json = [&b"\xef\xbb\xbf"[..], tiny_tokenizer().to_string().as_bytes()].concat();
    assert!(Tokenizer::from_json(&json).is_ok());
}

#[test]
fn content_becomes_no_token_by_its_normal_form() {
    let tags = ["<é>", "</obs>", "=\u{338}>", "<가나>", "<obs>"];
    let added: Vec<Value> = tags.iter().map(|tag| json!({"content": tag})).collect();
    for normalizer in ["NFC", "NFD", "NFKC"] {
        let mut document = document(&[], &added);
        document["normalizer"] = json!({"type": normalizer});
        let t = read(&document);
        let glue = ["<|im_start|>", "<", "<e", "e", "<가", "<\u{1100}", "<가\u{1102}"].map(|glue| (glue, ""));
        let ends = [">", "\u{301}>", "\u{1161}>", "\u{1161}나>", "\u{338}>", ""].map(|end| ("", end));
        // A fragment of letters alone stays whole, as in any chat: templates compare such texts.
        let contents = [
            "<é>",
            "<e\u{301}>",
            "e\u{301}>",
            "\u{301}>",
            "<e",
            "<e\u{301}",
            "é>",
            "＜obs＞",
            "<obs>",
            "obs>",
            "<ob",
            "<가나>",
            "<\u{1100}\u{1161}\u{1102}\u{1161}>",
            "\u{1161}나>",
            "<가\u{1102}",
            "\u{338}>",
            "<\u{1100}",
            "\u{1161}>",
            "=",
            "x=",
            "≠",
            "\u{1102}\u{1161}>",
            "e",
        ];
        for (glue, end) in glue.into_iter().chain(ends) {
            let source = format!("{{% for m in messages %}}{glue}{{{{ m.content }}}}{end}{{% endfor %}}");
            let template = ChatTemplate::compile(&source).unwrap();
            // Tokens of the glue alone, and between two messages, are the template's own.
            let own = |content: &str| {
                let messages = json!([{"role": "user", "content": content}, {"role": "tool", "content": content}]);
                let ids = encode_chat(&t, &template, &messages, &RenderOptions::default()).unwrap();
                ids.iter().filter(|&&id| id >= 273).count()
            };
            let honest = own("§");
            for content in contents {
                assert_eq!(own(content), honest, "{normalizer}: {glue:?} {content:?} {end:?}");
            }
        }
    }
}

#[test]
fn a_mark_at_the_beginning_of_content_unmakes_no_token_of_the_template() {
    let t = read(&document(&[], &[json!({"content": "<obs>"})]));
    let template = ChatTemplate::compile("{% for m in messages %}<obs>{{ m.content }}{% endfor %}").unwrap();
    let messages = json!([{"role": "user", "content": "\u{338}x"}]);
    let ids = encode_chat(&t, &template, &messages, &RenderOptions::default()).unwrap();
    assert_eq!(ids, [vec![273], bytes("\u{338}x")].concat());
}

#[test]
fn ten_megabytes_of_anything_take_time_in_proportion() {
    let added = [json!({"content": " ", "rstrip": true}), json!({"content": "<<<<<<<<<<<<<<<>"})];
    let t = read(&document(&[("a", "a"), ("aa", "aa"), ("Ġ", "Ġ")], &added));
    for run in [" ", "a", "<", "\u{301}", "e\u{301}", "\n", "\r\n", "é", " a", "<|im_end|>", "'s", "1"] {
        let text = run.repeat(10_000_000 / run.len());
        let begun = std::time::Instant::now();
        let ids = t.encode(&text, Control::All);
        // Quadratic time would be hours.
        assert!(begun.elapsed().as_secs() < 60, "{run:?}: {:?}", begun.elapsed());
        assert!(!ids.is_empty() && ids.len() <= text.len());
    }
}
