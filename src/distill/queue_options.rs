//! What a host says of its teacher: whether it acts and scores, how many ids it gives in each place, how long it may take, and how its vocabulary is known
//! to be the student's.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::document::{bad, fields, integer, join};
use crate::error::{Error, Fault, Result};
use crate::format::document as files;
use crate::text::tokenizer::Tokenizer;

/// Ids of a place at most.
const MOST_IDS: u64 = 1024;

/// What a queue's teacher is.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// Most likely ids that it gives in each place; 0: only the log-probs of the ids that stand there.
    pub top_k: u32,
    /// How long an answer may take.
    pub deadline: Duration,
    /// How its ids are known to mean what the student's mean.
    pub vocabulary: Vocabulary,
    /// Whether it says turns.
    pub acts: bool,
    /// Whether it scores what was said.
    pub scores: bool,
}

/// What is known of a teacher's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// The fingerprint of its tokenizer, compared with the student's.
    Fingerprint(u64),
    /// The host says that it is the student's.
    TheStudents,
    /// It is another: the teacher acts, by text, and scores nothing.
    Another,
}

impl QueueOptions {
    /// Reads `{"top_k": 32, "deadline_ms": 60000, "vocabulary": {"tokenizer": path} | {"fingerprint": hex} |
    /// "the-students" | "another", "acts": true, "scores": false}`. `vocabulary` has no default; `top_k` is 0, `deadline_ms` 60,000,
    /// `acts` false and `scores` true; of another vocabulary it is the other way round, and can be no other.
    pub fn from_json(text: &str) -> Result<QueueOptions> {
        let document: Value = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the teacher's options are not JSON: {e}")))?;
        let map = fields(&document, "", &["top_k", "deadline_ms", "vocabulary", "acts", "scores"])?;
        let whole =
            |key: &str, low, high, default| map.get(key).map_or(Ok(default), |value| integer(value, key, low, high));
        let (top_k, deadline) = (whole("top_k", 0, MOST_IDS, 0)?, whole("deadline_ms", 1, 86_400_000, 60_000)?);
        let vocabulary = map.get("vocabulary").ok_or_else(|| {
            let why = "vocabulary is missing: {\"tokenizer\": path of its tokenizer.json}, {\"fingerprint\": 16 hex digits}, or \
                       \"the-students\" where you know that it is, or \"another\"";
            Error::new(Fault::BadValue, why)
        })?;
        let vocabulary = read_vocabulary(vocabulary, "vocabulary")?;
        let is_another = vocabulary == Vocabulary::Another;
        let flag = |key: &str, default| {
            map.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(|| bad(value, key, "true or false")))
        };
        let (acts, scores) = (flag("acts", is_another)?, flag("scores", !is_another)?);
        let refused = match (acts, scores) {
            (_, true) if is_another => {
                "scores: a teacher of another vocabulary has other ids than those that were said; it acts, by text"
            }
            (false, false) => "acts, scores: both are false, so the teacher does nothing",
            (_, false) if top_k > 0 => "top_k: it is of scores, and the teacher gives none",
            _ => {
                return Ok(QueueOptions {
                    top_k: top_k as u32,
                    deadline: Duration::from_millis(deadline),
                    vocabulary,
                    acts,
                    scores,
                });
            }
        };
        Err(Error::new(Fault::BadValue, refused))
    }
}

fn read_vocabulary(value: &Value, path: &str) -> Result<Vocabulary> {
    if value.as_str() == Some("the-students") {
        return Ok(Vocabulary::TheStudents);
    }
    if value.as_str() == Some("another") {
        return Ok(Vocabulary::Another);
    }
    let wanted = "one of tokenizer and fingerprint, \"the-students\", or \"another\"";
    if value.is_string() {
        return Err(bad(value, path, wanted));
    }
    let map = fields(value, path, &["tokenizer", "fingerprint"])?;
    match (map.get("tokenizer"), map.get("fingerprint")) {
        (Some(file), None) => {
            let at = join(path, "tokenizer");
            let file = PathBuf::from(file.as_str().ok_or_else(|| bad(file, &at, "the path of a tokenizer.json"))?);
            let none = || Error::new(Fault::MissingFile, format!("{}: there is no such file", file.display()));
            let text = files::read(&file, files::TOKENIZER).and_then(|text| text.ok_or_else(none));
            let text = text.map_err(|e| e.within(&at))?;
            let tokenizer = Tokenizer::from_json(&text).map_err(|e| e.within(format!("{at}: {}", file.display())))?;
            Ok(Vocabulary::Fingerprint(tokenizer.fingerprint()))
        }
        (None, Some(hex)) => {
            // A sign would be taken for a digit.
            let is_hex = |text: &&str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let digits = hex.as_str().filter(is_hex).and_then(|text| u64::from_str_radix(text, 16).ok());
            let hex_wanted = "a fingerprint of 16 hex digits, as a model's info tells it (vocabulary_fingerprint)";
            digits.map(Vocabulary::Fingerprint).ok_or_else(|| bad(hex, &join(path, "fingerprint"), hex_wanted))
        }
        _ => Err(bad(value, path, wanted)),
    }
}
