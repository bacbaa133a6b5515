//! The demo's tokenizer: one id a word, in the files and form of a Hugging Face model folder.
//!
//! A byte-level BPE without merges. Ids 0 to 255 are the byte symbols, so that any text can be encoded;
//! then come the words of the game, each with its leading space, and the special tokens. `ignore_merges`
//! takes a word that is in the vocabulary whole; everything else falls apart into bytes. A turn of chat
//! costs three tokens of glue: who speaks, twice, and the end of the answer. Texts bring their own leading
//! space (see `world.rs`), because glue and text are encoded apart, and a space at the end of the glue
//! would be a token of its own.
#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};

use crate::world::{OBJECTS, PLACES};

/// The words of the household that are neither a place nor an object.
const HOUSEHOLD: [&str; 26] = [
    "you", "see", ".", "task", "put", "clean", "hot", "cold", "examine", "in", "go", "to", "open", "take", "from",
    "with", "heat", "cool", "has", "is", "empty", "closed", "hold", "nothing", "happens", "examined",
];
/// What the smaller game of the C example, `examples/c/door.h`, needs besides.
const DOOR: [&str; 4] = ["door", "red", "green", "blue"];
/// Role names stand behind `<|im_start|>`, so they have no leading space.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// The special tokens in the order of their ids, which follow those of the words.
const SPECIAL: [&str; 5] = [PAD, "<|im_start|>", END_OF_TURN, "<|user|>", "<|assistant|>"];
const PAD: &str = "<|endoftext|>";
/// Ends each answer; the one token at which generation stops.
const END_OF_TURN: &str = "<|im_end|>";

/// A system message is plain ChatML. User and assistant, which alternate through a whole game, have a
/// token each; only what the assistant says needs an end, since the user's text ends where it answers.
const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '<|user|>' + message.content -}}
    {%- elif message.role == 'assistant' -%}
        {{- '<|assistant|>' + message.content + '<|im_end|>' -}}
    {%- elif message.role == 'system' -%}
        {{- '<|im_start|>system\\n' + message.content + '<|im_end|>' -}}
    {%- else -%}
        {{- raise_exception('the household has no role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}";

/// The files of the tokenizer as (name, bytes), always the same bytes.
pub fn tokenizer_files() -> Vec<(&'static str, Vec<u8>)> {
    let vocabulary = vocabulary();
    let first_special = vocabulary.len();
    let id_of = |token: &str| SPECIAL.iter().position(|&t| t == token).map(|k| first_special + k);
    let added = |content: &str| {
        json!({
            "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        })
    };

    let mut added_tokens = Vec::new();
    let mut added_tokens_decoder = Map::new();
    for (k, token) in SPECIAL.into_iter().enumerate() {
        let mut entry = Map::from_iter([("id".to_string(), json!(first_special + k))]);
        entry.extend(added(token).as_object().cloned().unwrap_or_default());
        added_tokens.push(Value::Object(entry));
        added_tokens_decoder.insert((first_special + k).to_string(), added(token));
    }
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true
    });
    let vocab: Map<String, Value> = vocabulary.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": []
        }
    });
    let tokenizer_config = json!({
        "add_prefix_space": false,
        "added_tokens_decoder": added_tokens_decoder,
        "bos_token": null,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": null
    });
    let generation_config = json!({ "eos_token_id": id_of(END_OF_TURN), "pad_token_id": id_of(PAD) });
    vec![
        ("tokenizer.json", document(&tokenizer)),
        ("tokenizer_config.json", document(&tokenizer_config)),
        ("generation_config.json", document(&generation_config)),
    ]
}

/// A JSON file for human eyes; keys keep their order.
fn document(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Number of ids, special ones included.
pub fn vocabulary_size() -> usize {
    vocabulary().len() + SPECIAL.len()
}

/// The tokens that are not special, by id, as a byte-level vocabulary writes them.
fn vocabulary() -> Vec<String> {
    let bytes = byte_symbols();
    let space = bytes[usize::from(b' ')];
    let words = HOUSEHOLD.into_iter().chain(PLACES).chain(OBJECTS).chain(DOOR);
    let mut tokens: Vec<String> = bytes.iter().map(char::to_string).collect();
    // A word of one letter would repeat a byte only without the space, so nothing occurs twice.
    tokens.extend(words.map(|word| format!("{space}{word}")));
    tokens.extend(ROLES.map(str::to_string));
    tokens
}

/// The character that stands for each byte in a byte-level vocabulary: itself where it is visible, else
/// the next one from U+0100 on (GPT-2's table).
fn byte_symbols() -> [char; 256] {
    let mut hidden = (0x100u32..).filter_map(char::from_u32);
    std::array::from_fn(|byte| match byte as u8 {
        visible @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(visible),
        // The range has far more characters than there are bytes.
        _ => hidden.next().unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demos::{Episode, demonstration};
    use crate::expert::random_action;
    use crate::world::{Game, MAX_TURNS, Split};
    use squire::text::{ChatTemplate, RenderOptions};
    use tokenizers::Tokenizer;

    /// The context of the demo's models.
    const CONTEXT: usize = 320;

    fn file(name: &str) -> Vec<u8> {
        tokenizer_files().into_iter().find(|(n, _)| *n == name).unwrap().1
    }

    fn json_file(name: &str) -> Value {
        serde_json::from_slice(&file(name)).unwrap()
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(file("tokenizer.json")).unwrap()
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    fn render(messages: &[(&str, &str)], add_generation_prompt: bool) -> squire::error::Result<String> {
        let template = json_file("tokenizer_config.json")["chat_template"].as_str().unwrap().to_string();
        let messages: Vec<Value> =
            messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
        ChatTemplate::compile(&template)?.render(Value::from(messages), &options)
    }

    fn messages(episode: &Episode) -> Vec<(&str, &str)> {
        episode
            .turns
            .iter()
            .flat_map(|turn| [("user", turn.observation.as_str()), ("assistant", turn.action.as_str())])
            .collect()
    }

    fn n_words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn the_files_are_always_the_same_bytes_and_the_vocabulary_is_small() {
        assert_eq!(tokenizer_files(), tokenizer_files());
        let tokenizer = tokenizer();
        let size = tokenizer.get_vocab_size(true);
        println!("vocabulary: {size}");
        assert_eq!(size, 256 + HOUSEHOLD.len() + PLACES.len() + OBJECTS.len() + DOOR.len() + ROLES.len() + 5);
        assert!((0..size as u32).all(|id| tokenizer.id_to_token(id).is_some()));
        let generation = json_file("generation_config.json");
        assert_eq!(generation["eos_token_id"].as_u64().map(|id| id as u32), tokenizer.token_to_id(END_OF_TURN));
    }

    #[test]
    fn observations_and_actions_take_one_id_a_word_and_come_back_unchanged() {
        let tokenizer = tokenizer();
        let mut used = std::collections::HashSet::new();
        for split in [Split::Train, Split::Validation, Split::Unseen] {
            for seed in 0..500 {
                for turn in demonstration(split, seed, 0.6).turns {
                    for text in [turn.observation, turn.action] {
                        let ids = ids(&tokenizer, &text);
                        assert_eq!(ids.len(), n_words(&text), "{text}");
                        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
                        used.extend(ids);
                    }
                }
            }
        }
        let words = 256..256 + (HOUSEHOLD.len() + PLACES.len() + OBJECTS.len()) as u32;
        let idle: Vec<String> =
            words.filter(|id| !used.contains(id)).filter_map(|id| tokenizer.id_to_token(id)).collect();
        assert!(idle.is_empty(), "never used: {idle:?}");
    }

    #[test]
    fn a_chat_costs_three_tokens_of_glue_a_turn_and_each_prompt_continues_the_one_before() {
        let tokenizer = tokenizer();
        for seed in 0..100 {
            let episode = demonstration(Split::Train, seed, 0.2);
            let messages = messages(&episode);
            let words: usize = messages.iter().map(|(_, content)| n_words(content)).sum();
            let whole = render(&messages, false).unwrap();
            assert_eq!(ids(&tokenizer, &whole).len(), words + 3 * episode.turns.len());
            for k in (1..messages.len()).step_by(2) {
                let prompt = render(&messages[..k], true).unwrap();
                let answered = format!("{prompt}{}{END_OF_TURN}", messages[k].1);
                assert_eq!(answered, render(&messages[..k + 1], false).unwrap());
                assert!(whole.starts_with(&answered));
            }
        }
    }

    #[test]
    fn the_template_knows_a_system_message_and_refuses_other_roles() {
        let text = render(&[("system", " nothing"), ("user", " you see")], true).unwrap();
        assert_eq!(text, "<|im_start|>system\n nothing<|im_end|><|user|> you see<|assistant|>");
        assert_eq!(ids(&tokenizer(), &text).len(), 9);
        assert!(render(&[("critic", " nothing")], true).is_err());
    }

    #[test]
    fn an_expert_game_takes_110_tokens_at_most_on_average() {
        for split in [Split::Train, Split::Validation, Split::Unseen] {
            let mut lengths: Vec<usize> = (0..1_000)
                .map(|seed| render(&messages(&demonstration(split, seed, 0.0)), false).unwrap())
                .map(|text| ids(&tokenizer(), &text).len())
                .collect();
            lengths.sort_unstable();
            let mean = lengths.iter().sum::<usize>() as f64 / 1_000.0;
            println!("{split:?}: mean {mean:.1} tokens, 90 % {} most {}", lengths[900], lengths[999]);
            assert!(mean <= 110.0);
        }
    }

    #[test]
    fn the_longest_game_fits_the_context() {
        // At most: the storages and the task in 15 words; then an observation names a place and five
        // objects in 7 words; an action that does something has 4.
        let bound = (15 + 4) + (MAX_TURNS - 1) * (7 + 4) + 3 * MAX_TURNS;
        println!("longest game possible: {bound} tokens");
        assert!(bound <= CONTEXT);
        let mut most = 0;
        for seed in 0..3_000 {
            let mut game = Game::new(Split::Train, seed);
            let mut tokens = 0;
            let mut observation = game.first_observation();
            loop {
                let action = random_action(&game, seed);
                tokens += n_words(&observation) + n_words(&action) + 3;
                let step = game.act(&action);
                observation = step.observation;
                if step.done {
                    break;
                }
            }
            most = most.max(tokens);
        }
        println!("longest of 3000 random games: {most} tokens");
        assert!(most <= bound);
    }

    #[test]
    fn any_text_comes_back_from_its_ids() {
        let tokenizer = tokenizer();
        let all: String = (0..0x3000).filter_map(char::from_u32).collect();
        for text in ["", " ", "Mug, please!  \n\tmugs x2", "\0\u{1f9c6}\u{200d}é", "kitchen sink", &all] {
            assert_eq!(tokenizer.decode(&ids(&tokenizer, text), false).unwrap(), text);
        }
    }

    #[test]
    fn every_word_of_the_door_game_is_one_id() {
        let tokenizer = tokenizer();
        let source = include_str!("../c/door.h");
        let literals = source.lines().filter(|line| !line.starts_with("#include")).flat_map(|line| {
            // Texts stand between every second pair of quotes.
            line.split('"').skip(1).step_by(2)
        });
        let mut n = 0;
        for word in literals.flat_map(str::split_whitespace).filter(|word| !word.contains('%')) {
            assert_eq!(ids(&tokenizer, &format!(" {word}")).len(), 1, "{word}");
            n += 1;
        }
        assert!(n > 20);
    }
}
