//! Text to token ids and back, for byte-level BPE as Qwen3 uses it.
//!
//! tokenizer.json is read and checked here. A text is cut at the added tokens that may count, the rest
//! normalised, cut into pieces, and each piece merged; the ids are those of Hugging Face's tokenizers,
//! in time that grows no faster than n log n. Who wrote a text decides which added tokens may count: in
//! what the host or the environment says, none does, so nobody can forge a control token. Ids go back
//! to bytes through a table, and bytes to text wherever the caller has enough of them.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use super::added_tokens::{AddedTokens, Piece};
use super::bpe::{ABSENT, Bpe, Merge, Scratch};
use super::byte_level;
use super::normalizer::Normalizer;
use super::pre_tokenizer::PreTokenizer;
use super::reading::{DAMAGED, form, list_of, quoted, type_of, unsupported};
use super::watch::Watch;
use crate::error::{Error, Fault, Result, brief};
use crate::memory;
use crate::random::mix;
use serde_json::Value;

/// The largest id, a bound on the table that a hostile file can ask for.
const MAX_ID: i32 = (1 << 22) - 1;
/// The most JSON values in tokenizer.json; those of 262,144 tokens and twice as many merges have two million.
const MAX_VALUES: usize = 8 << 20;

/// Which added tokens count when a text is encoded; the others are plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// None: what the host or the environment says.
    None,
    /// Those that are not special (`<think>`, `<tool_call>`): what a model is made to say.
    NotSpecial,
    /// All: template glue.
    All,
}

/// A tokenizer. Encoding is deterministic, takes `&self`, and uses no threads.
pub struct Tokenizer {
    added: AddedTokens,
    pre_tokenizer: PreTokenizer,
    bpe: Bpe,
    /// Bytes without a token.
    absent_bytes: Vec<u8>,
    ids: HashMap<String, i32>,
    /// The bytes of all tokens, and each id's window in them; an empty window where there is no token.
    bytes: Vec<u8>,
    windows: Vec<(u32, u32)>,
    special: Vec<bool>,
    /// Whether each id is an added token's.
    is_added: Vec<bool>,
    /// The length of the longest token, in bytes.
    longest: usize,
}

/// What a token takes in the tables, in bytes: its text twice, in hash tables that grow by doubling.
const TOKEN: usize = 320;
/// What a merge takes there.
const MERGE: usize = 96;
/// What the automata of the splitting patterns may take as they are used, in bytes.
const AUTOMATA: usize = 12 << 20;
/// How many bytes of text are encoded between two looks at the watch.
const ASK_EVERY: usize = 1 << 16;

/// How far an encoding may go.
#[derive(Clone, Copy)]
pub struct Room<'w> {
    /// The most ids.
    pub ids: usize,
    /// What may stop it.
    pub watch: &'w Watch,
}

impl Tokenizer {
    /// Reads tokenizer.json.
    ///
    /// Errors: `TokenizerForm` where the file is broken or contradicts itself; `UnsupportedTokenizer`,
    /// naming the part, where it uses more than byte-level BPE with Unicode normal forms and splits.
    pub fn from_json(json: &[u8]) -> Result<Tokenizer> {
        Tokenizer::build(json).map_err(|e| e.within("tokenizer.json"))
    }

    fn build(json: &[u8]) -> Result<Tokenizer> {
        // A mark that some editors put before UTF-8.
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        let values = memory::json_values(json);
        if values > MAX_VALUES {
            return Err(form(format!("wanted at most {MAX_VALUES} values, found {values}; use a smaller vocabulary")));
        }
        memory::room_for(memory::json_bytes(json.len(), values), "the document")?;
        let parsed = serde_json::from_slice(json);
        let mut document: Value = parsed.map_err(|e| form(format!("wanted JSON, found an error: {e}; {DAMAGED}")))?;
        if !document.is_object() {
            return Err(form(format!("wanted a JSON object, found something else; {DAMAGED}")));
        }
        let normalizer = Normalizer::from_json(&document["normalizer"])?;
        let pre_tokenizer = PreTokenizer::from_json(&document["pre_tokenizer"])?;
        check_decoder(&document["decoder"])?;
        let added = AddedTokens::from_json(&document["added_tokens"], normalizer, MAX_ID)?;
        let mut model = document["model"].take();
        check_model(&model)?;
        let count =
            |key: &str| model[key].as_object().map_or(0, |part| part.len()) + model[key].as_array().map_or(0, Vec::len);
        let tokens = count("vocab") + added.iter().count();
        memory::room_for(tokens * TOKEN + count("merges") * MERGE, "the tables of the tokenizer")?;
        let mut ids = read_vocabulary(&model["vocab"])?;
        let merges = read_merges(model["merges"].take(), &ids)?;
        let byte_ids = byte_ids(&ids, model["unk_token"].is_null())?;
        // An added token that is listed in the vocabulary too is text only where text can make it by merges.
        let made: HashSet<i32> = merges.iter().map(|merge| merge.made).chain(byte_ids.iter().copied()).collect();
        let absent_bytes = (0..=255).filter(|&byte| byte_ids[usize::from(byte)] == ABSENT).collect();
        for token in added.iter() {
            let Some(&id) = ids.get(&token.text) else { continue };
            if id != token.id {
                return Err(form(format!(
                    "added token {}: wanted its id {}, found {id} in the vocabulary; make both the same",
                    quoted(&token.text),
                    token.id
                )));
            }
            if !made.contains(&id) {
                ids.remove(&token.text);
            }
        }
        let table = Table::new(&ids, &added)?;
        let mut whole = HashMap::new();
        if model.get("ignore_merges").and_then(Value::as_bool).unwrap_or(false) {
            whole.extend(ids.values().map(|&id| (table.bytes_of(id).to_vec(), id)));
        }
        let bpe = Bpe::new(byte_ids, &merges, whole, &table.special);
        ids.extend(added.iter().map(|token| (token.text.clone(), token.id)));
        let Table { bytes, windows, special } = table;
        let mut is_added = memory::reserved(windows.len(), "the ids")?;
        is_added.resize(windows.len(), false);
        added.iter().for_each(|token| is_added[token.id as usize] = true);
        // An added token that stands in the vocabulary too has two readings, of which the table keeps one.
        let texts = added.iter().map(|token| token.text.len());
        let longest = windows.iter().map(|&(_, len)| len as usize).chain(texts).max().unwrap_or(0);
        Ok(Tokenizer { added, pre_tokenizer, bpe, absent_bytes, ids, bytes, windows, special, is_added, longest })
    }

    /// The ids of a text. Any text encodes, of any length; the bytes of the ids are the bytes of the
    /// normalised text, but for white space that an added token takes with it (`lstrip`, `rstrip`) and for bytes of which
    /// the vocabulary has no token ([`Tokenizer::absent_bytes`]).
    ///
    /// A special token that is also made by merges (an ordinary word, added as special) is made by no text
    /// for which special tokens do not count: it comes out as its parts. A single byte has none, and stays.
    ///
    /// # Panics
    /// Where memory cannot be had; [`Tokenizer::encode_within`] refuses then.
    pub fn encode(&self, text: &str, control: Control) -> Vec<i32> {
        let mut ids = Vec::new();
        let room = Room { ids: usize::MAX, watch: &Watch::default() };
        if let Err(e) = self.encode_within(text, control, room, &mut ids) {
            panic!("{e}");
        }
        ids
    }

    /// Appends the ids of a text to `ids`, which then has at most `room.ids`. Memory beside them: up to 24 bytes for each
    /// byte of the longest piece that the pattern does not cut, and the text's normal form where that is another.
    ///
    /// Errors: `ContextFull` where there are more ids, as soon as that is known: no token stands for more bytes than the
    /// longest, so that a text far too long is not encoded first; `OutOfHostMemory`, `Cancelled`; `BadLength` for a piece of
    /// 4 GiB.
    pub fn encode_within(&self, text: &str, control: Control, room: Room<'_>, ids: &mut Vec<i32>) -> Result<()> {
        self.room_for_automata()?;
        self.encode_more(text, control, room, ids)
    }

    /// Asks for what the automata may take; once for all texts of a request.
    pub(super) fn room_for_automata(&self) -> Result<()> {
        memory::room_for(AUTOMATA, "the tokenizer's automata")
    }

    /// [`Tokenizer::encode_within`], room for the automata having been asked for.
    pub(super) fn encode_more(&self, text: &str, control: Control, room: Room<'_>, ids: &mut Vec<i32>) -> Result<()> {
        let mut scratch = Scratch::default();
        if control == Control::None {
            self.check_room(self.added.normalizer_least(text.len()), room, ids)?;
            return self.encode_normal(&self.added.normal_form(text)?, false, &mut scratch, room, ids);
        }
        if let Some(least) = self.added.least(text.len()) {
            self.check_room(least, room, ids)?;
        }
        let special = control == Control::All;
        self.added.split(
            text,
            |token| special || !token.special,
            |piece| match piece {
                Piece::Token(id) => self.push_within(id, room, ids),
                Piece::Text(text) => self.encode_normal(&text, special, &mut scratch, room, ids),
            },
        )
    }

    /// Appends an id that no text made.
    pub(super) fn push_within(&self, id: i32, room: Room<'_>, ids: &mut Vec<i32>) -> Result<()> {
        self.check_room(1, room, ids)?;
        memory::reserve(ids, 1, "the ids of a text")?;
        ids.push(id);
        Ok(())
    }

    fn encode_normal(
        &self,
        text: &str,
        special: bool,
        scratch: &mut Scratch,
        room: Room<'_>,
        ids: &mut Vec<i32>,
    ) -> Result<()> {
        self.check_room(text.len(), room, ids)?;
        let mut ask_at = ASK_EVERY;
        self.pre_tokenizer.split(text, &mut |piece| {
            if piece.end >= ask_at {
                ask_at = piece.end + ASK_EVERY;
                room.watch.check()?;
                self.check_room(text.len() - piece.start, room, ids)?;
            }
            self.bpe.encode(&text.as_bytes()[piece], special, scratch, room.watch, ids)
        })?;
        self.check_room(0, room, ids)
    }

    /// Refuses a text of which so many bytes are still to be encoded and which then has more ids than there is room for.
    fn check_room(&self, bytes: usize, room: Room<'_>, ids: &[i32]) -> Result<()> {
        let wanted = ids.len().saturating_add(bytes.div_ceil(self.longest));
        if wanted <= room.ids {
            return Ok(());
        }
        let most = room.ids;
        let why = format!("at least {wanted} more tokens are wanted, there is room for {most}; truncate or begin anew");
        Err(Error::new(Fault::ContextFull, why))
    }

    /// The bytes of a token: for a merged one those it stands for, for an added one its text in UTF-8 (the
    /// normal form of it, where that is what is looked for).
    /// None where no token has this id.
    pub fn token_bytes(&self, id: i32) -> Option<&[u8]> {
        let &(start, len) = self.windows.get(usize::try_from(id).ok()?)?;
        (len > 0).then(|| &self.bytes[start as usize..(start + len) as usize])
    }

    /// The text of ids, with U+FFFD where their bytes are not UTF-8. Ids that no token has give nothing.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> String {
        let ids = ids.iter().filter(|&&id| !(skip_special && self.is_special(id)));
        let bytes: Vec<u8> = ids.filter_map(|&id| self.token_bytes(id)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The id of a token by its spelling in tokenizer.json: the text of an added token, or the byte
    /// alphabet's characters of a merged one.
    pub fn id_of(&self, token: &str) -> Option<i32> {
        self.ids.get(token).copied()
    }

    /// One more than the largest id.
    pub fn n_ids(&self) -> usize {
        self.windows.len()
    }

    /// Whether the id is that of an added token, special or not.
    pub fn is_added(&self, id: i32) -> bool {
        usize::try_from(id).is_ok_and(|id| self.is_added.get(id) == Some(&true))
    }

    /// Whether the id is that of a special added token.
    pub fn is_special(&self, id: i32) -> bool {
        usize::try_from(id).is_ok_and(|id| self.special.get(id) == Some(&true))
    }

    /// Bytes that have no token: they are left out of what is encoded.
    pub fn absent_bytes(&self) -> &[u8] {
        &self.absent_bytes
    }

    /// A hash over every id with its bytes: equal for two tokenizers whose ids mean the same. It depends
    /// on nothing else, so it may be stored.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = mix(self.n_ids() as u64);
        for id in 0..self.windows.len() {
            let Some(bytes) = self.token_bytes(id as i32) else { continue };
            hash = mix(hash ^ mix((id as u64) << 32 | bytes.len() as u64));
            for chunk in bytes.chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                hash = mix(hash ^ u64::from_le_bytes(word));
            }
        }
        hash
    }

    pub(super) fn added(&self) -> &AddedTokens {
        &self.added
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids)", self.n_ids())
    }
}

/// What each id stands for.
struct Table {
    bytes: Vec<u8>,
    windows: Vec<(u32, u32)>,
    special: Vec<bool>,
}

impl Table {
    fn new(vocabulary: &HashMap<String, i32>, added: &AddedTokens) -> Result<Table> {
        let last = vocabulary.values().copied().chain(added.iter().map(|t| t.id)).max().unwrap_or(0);
        let n_ids = last as usize + 1; // at most MAX_ID + 1, checked where the ids were read
        let (mut windows, mut special) = (memory::reserved(n_ids, "the ids")?, memory::reserved(n_ids, "the ids")?);
        windows.resize(n_ids, (0, 0));
        special.resize(n_ids, false);
        let mut table = Table { bytes: Vec::new(), windows, special };
        let by_char = byte_level::bytes_by_char();
        for (text, &id) in vocabulary {
            let bytes = text.chars().map(|c| by_char.get(c as usize).copied().flatten());
            let bytes: Option<Vec<u8>> = bytes.collect();
            let bytes = bytes.ok_or_else(|| {
                let text = quoted(text);
                unsupported(format!(
                    "model: token {text}: wanted characters of the byte alphabet only, found another; use a \
                     tokenizer of byte-level BPE, or list the token under added_tokens"
                ))
            })?;
            table.place(id, text, &bytes)?;
        }
        for token in added.iter() {
            if !vocabulary.contains_key(&token.text) {
                table.place(token.id, &token.text, token.form.as_bytes())?;
            }
            table.special[token.id as usize] = token.special;
        }
        Ok(table)
    }

    fn bytes_of(&self, id: i32) -> &[u8] {
        let (start, len) = self.windows[id as usize];
        &self.bytes[start as usize..(start + len) as usize]
    }

    fn place(&mut self, id: i32, text: &str, bytes: &[u8]) -> Result<()> {
        let window = &mut self.windows[id as usize];
        if window.1 > 0 {
            let text = quoted(text);
            return Err(form(format!(
                "token {text}: wanted an id of its own, found {id}, which another token has too; {DAMAGED}"
            )));
        }
        let too_long = |_| form("wanted less than 4 GiB of tokens, found more; use a smaller vocabulary");
        *window = (u32::try_from(self.bytes.len()).map_err(too_long)?, u32::try_from(bytes.len()).map_err(too_long)?);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// The decoder's whole effect is in the table; it must only be the one that the table assumes.
fn check_decoder(part: &Value) -> Result<()> {
    match if part.is_null() { "no decoder" } else { type_of(part, "decoder")? } {
        "ByteLevel" => Ok(()),
        "Sequence" => {
            let parts = list_of(part, "decoders", "decoder")?;
            match parts.iter().find(|part| part.get("type").and_then(Value::as_str) != Some("ByteLevel")) {
                None if !parts.is_empty() => Ok(()),
                _ => Err(unsupported(
                    "decoder: wanted ByteLevel, found a Sequence of something else; use a tokenizer of byte-level BPE",
                )),
            }
        }
        other => {
            let other = brief(other);
            Err(unsupported(format!("decoder: wanted ByteLevel, found {other}; use a tokenizer of byte-level BPE")))
        }
    }
}

/// Refuses models that are not plain BPE.
fn check_model(model: &Value) -> Result<()> {
    match type_of(model, "model")? {
        "BPE" => {}
        other => {
            let other = brief(other);
            return Err(unsupported(format!("model: wanted BPE, found {other}; use a tokenizer of byte-level BPE")));
        }
    }
    let off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    };
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"] {
        if !model.get(key).is_none_or(off) {
            return Err(unsupported(format!(
                "model: wanted {key} unset, found {}; set it to null if the model was trained without it",
                brief(&model[key])
            )));
        }
    }
    Ok(())
}

fn read_vocabulary(part: &Value) -> Result<HashMap<String, i32>> {
    let part = part.as_object().ok_or_else(|| form(format!("model: wanted an object vocab, found none; {DAMAGED}")))?;
    let mut ids = HashMap::with_capacity(part.len());
    for (token, id) in part {
        let found = id.as_i64().filter(|id| (0..=MAX_ID as i64).contains(id) && !token.is_empty());
        let wrong = || {
            let (token, id) = (quoted(token), brief(id));
            form(format!("model: token {token}: wanted a text and an id from 0 to {MAX_ID}, found {id}; {DAMAGED}"))
        };
        ids.insert(token.clone(), found.ok_or_else(wrong)? as i32);
    }
    Ok(ids)
}

/// Reads the merges, in either spelling, and checks that each makes a token of the vocabulary.
fn read_merges(part: Value, vocabulary: &HashMap<String, i32>) -> Result<Vec<Merge>> {
    let Value::Array(list) = part else {
        return Err(form(format!("model: merges: wanted a list, found something else; {DAMAGED}")));
    };
    if list.len() > u32::MAX as usize {
        return Err(form("model: merges: wanted fewer than 2^32; use a smaller vocabulary"));
    }
    let wrong = |found: &Value| form(format!("model: merges: wanted two tokens, found {}; {DAMAGED}", brief(found)));
    let mut merges = Vec::with_capacity(list.len());
    let mut made = String::new();
    for merge in &list {
        let (left, right) = match merge {
            Value::String(pair) => pair.split_once(' ').ok_or_else(|| wrong(merge))?,
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => (left.as_str(), right.as_str()),
                _ => return Err(wrong(merge)),
            },
            _ => return Err(wrong(merge)),
        };
        let id = |token: &str| {
            vocabulary.get(token).copied().ok_or_else(|| {
                let why = "is not in the vocabulary, wanted it there; use the vocab and the merges of one tokenizer";
                form(format!("model: merge {} {}: {} {why}", quoted(left), quoted(right), quoted(token)))
            })
        };
        made.clear();
        made.extend([left, right]);
        merges.push(Merge { left: id(left)?, right: id(right)?, made: id(&made)? });
    }
    Ok(merges)
}

/// The id of each byte. A vocabulary may lack bytes that its training text had none of (SmolLM2's lacks 21): control
/// characters and parts of rare or impossible characters. Without an unknown token they are left out of a text.
fn byte_ids(vocabulary: &HashMap<String, i32>, may_lack: bool) -> Result<Vec<i32>> {
    let id = |byte: u8| {
        let symbol = byte_level::char_of(byte).to_string();
        let is_rare = !byte.is_ascii() || (byte.is_ascii_control() && !byte.is_ascii_whitespace());
        match vocabulary.get(&symbol) {
            Some(&id) => Ok(id),
            None if is_rare && may_lack => Ok(ABSENT),
            None => Err(form(format!("model: byte {byte:#04x}: wanted its token {symbol:?}, found none; {DAMAGED}"))),
        }
    };
    (0..=255).map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tiny_tokenizer::{tiny_tokenizer, tiny_tokenizer_json};
    use super::*;
    use crate::random::{Stream, below};

    fn tiny() -> Tokenizer {
        Tokenizer::from_json(&tiny_tokenizer_json()).unwrap()
    }

    /// Texts drawn from pieces that matter: words, spaces, broken and whole tokens, other scripts.
    fn draw_text(case: u64) -> String {
        let pool = [
            "hello",
            " world",
            "user",
            "\n",
            "\n\n  ",
            " ",
            "<",
            "<|",
            "<|im_end|>",
            "<think>",
            "</think>",
            "|>",
            "é",
            "e\u{301}",
            "漢字",
            "😀",
            "'s",
            "42",
            "<|im_start|>user\n",
            "\u{0}",
            "\t",
            "im_end",
            "<tool_call>",
        ];
        let draw = |i, n: usize| below(Stream::World, &[case, i], n as u64) as usize;
        (0..draw(0, 12)).map(|i| pool[draw(i as u64 + 1, pool.len())]).collect()
    }

    #[test]
    fn all_control_tokens_on_equals_the_reference_tokenizer() {
        let ours = tiny();
        let reference = tokenizers::Tokenizer::from_bytes(tiny_tokenizer_json()).unwrap();
        for case in 0..2000 {
            let text = draw_text(case);
            let wanted: Vec<i32> =
                reference.encode(text.as_str(), false).unwrap().get_ids().iter().map(|&id| id as i32).collect();
            assert_eq!(ours.encode(&text, Control::All), wanted, "{text:?}");
            let ids: Vec<u32> = wanted.iter().map(|&id| id as u32).collect();
            for skip in [false, true] {
                assert_eq!(ours.decode(&wanted, skip), reference.decode(&ids, skip).unwrap(), "{text:?}");
            }
        }
    }

    #[test]
    fn what_fits_is_never_refused_and_what_does_not_is_context_full() {
        let mut document = tiny_tokenizer();
        for normalizer in ["NFC", "NFD", "NFKC", "NFKD"] {
            document["normalizer"] = serde_json::json!({ "type": normalizer });
            for strips in [false, true] {
                document["added_tokens"][3]["lstrip"] = strips.into();
                document["added_tokens"][2]["rstrip"] = strips.into();
                let t = Tokenizer::from_json(document.to_string().as_bytes()).unwrap();
                for case in 0..400 {
                    // Shrinking by every form there is, and white space that tokens take with them.
                    let text = draw_text(case)
                        + ["", "\u{1d7d8}e\u{301}\u{1112}\u{1161}\u{11ab}", "  <think>"][case as usize % 3];
                    let text = text.repeat(case as usize % 5);
                    for control in [Control::None, Control::NotSpecial, Control::All] {
                        let wanted = t.encode(&text, control);
                        let within = |ids: usize| {
                            let mut found = vec![7];
                            let room = Room { ids, watch: &Watch::default() };
                            t.encode_within(&text, control, room, &mut found).map(|()| found)
                        };
                        let found = within(wanted.len() + 1).unwrap();
                        assert_eq!((found[0], &found[1..]), (7, &wanted[..]), "{text:?}");
                        let full = within(wanted.len()).err().map(|e| e.fault());
                        assert!(full == Some(Fault::ContextFull) || wanted.is_empty(), "{text:?}: {full:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_flag_stops_an_encoding() {
        let t = tiny();
        for text in ["hello world ".repeat(10_000), "x".repeat(200_000)] {
            let room = Room { ids: usize::MAX, watch: &Watch::on(|| true) };
            let e = t.encode_within(&text, Control::None, room, &mut Vec::new()).unwrap_err();
            assert_eq!(e.fault(), Fault::Cancelled);
        }
    }

    #[test]
    fn merges_happen_in_the_order_of_their_rank() {
        let t = tiny();
        assert_eq!(t.encode("hello world", Control::None), [259, 260, 111, 114, 108, 100]);
        assert_eq!(t.encode("user", Control::None), [262]);
        assert_eq!(t.encode("", Control::All), [0i32; 0]);
    }

    #[test]
    fn control_decides_which_added_tokens_count() {
        let t = tiny();
        let text = "<|im_end|><think>";
        let [end, think] = ["<|im_end|>", "<think>"].map(|token| t.id_of(token).unwrap());
        assert_eq!(t.encode(text, Control::All), [end, think]);
        let host = t.encode(text, Control::NotSpecial);
        assert!(!host.contains(&end) && host.ends_with(&[think]), "{host:?}");
        let none = t.encode(text, Control::None);
        assert!(none.iter().all(|&id| id < 264), "{none:?}");
        for ids in [none, host] {
            assert_eq!(t.decode(&ids, false), text);
        }
    }

    #[test]
    fn text_survives_the_way_there_and_back_but_for_its_normal_form() {
        let t = tiny();
        for case in 0..500 {
            let text = draw_text(case);
            let composed = text.replace("e\u{301}", "é");
            assert_eq!(t.decode(&t.encode(&text, Control::None), true), composed);
        }
    }

    #[test]
    fn tokens_know_their_bytes_and_kind() {
        let t = tiny();
        assert_eq!((t.token_bytes(32), t.token_bytes(260)), (Some(&b" "[..]), Some(&b" w"[..])));
        assert_eq!(t.token_bytes(0xe9), Some(&[0xe9][..]));
        assert_eq!(t.token_bytes(266), Some(&b"<|im_end|>"[..]));
        assert_eq!((t.token_bytes(-1), t.token_bytes(273), t.n_ids()), (None, None, 273));
        assert!(t.is_special(266) && !t.is_special(267) && !t.is_special(0) && !t.is_special(-1));
        assert_eq!(t.id_of("Ġw"), Some(260));
        assert_eq!(t.decode(&[0xc3, 104], false), "\u{fffd}h");
    }

    #[test]
    fn the_fingerprint_changes_with_any_id_and_nothing_else() {
        let same = {
            let mut document = tiny_tokenizer();
            document["normalizer"] = Value::Null;
            document["added_tokens"].as_array_mut().unwrap().reverse();
            Tokenizer::from_json(document.to_string().as_bytes()).unwrap()
        };
        assert_eq!(tiny().fingerprint(), same.fingerprint());
        let mut document = tiny_tokenizer();
        document["added_tokens"][8]["id"] = 273.into();
        let other = Tokenizer::from_json(document.to_string().as_bytes()).unwrap();
        assert_ne!(tiny().fingerprint(), other.fingerprint());
        // Stored beside weights, so it may never change.
        assert_eq!(tiny().fingerprint(), 13_855_196_086_601_777_176);
    }

    #[test]
    fn an_added_token_in_the_vocabulary_is_not_reached_by_merges() {
        let mut document = tiny_tokenizer();
        document["model"]["vocab"]["<|im_end|>"] = 266.into();
        document["model"]["ignore_merges"] = true.into();
        document["pre_tokenizer"] =
            serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        let t = Tokenizer::from_json(document.to_string().as_bytes()).unwrap();
        assert!(!t.encode("<|im_end|>", Control::None).contains(&266));
        assert_eq!(t.encode("<|im_end|>", Control::All), [266]);
    }

    #[test]
    fn long_runs_of_one_character_survive() {
        let t = tiny();
        for run in [" ", "a", "\n", "<", "é", " \n", "1"] {
            let text = run.repeat(200_000);
            assert_eq!(t.decode(&t.encode(&text, Control::All), false), text);
        }
    }
}
