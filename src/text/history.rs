//! What of the thoughts of earlier turns stays in a conversation.
//!
//! | mode | thoughts of earlier turns |
//! |---|---|
//! | `keep` | stay: a timeline only grows, and what was computed is never computed again |
//! | `strip_thinking` | go with the next message of whatever role |
//! | `tool_cycle` | stay while tools are called, and go with the next message of a user, as Qwen3's template has it |
//!
//! *In a timeline* a thought is cut out by its ids: from `<think>` at the beginning of an assistant's turn to `</think>` with
//! the line ends behind it, or to the turn's end where it has none. What was said besides keeps the very ids that were sampled, so
//! that no text is tokenised a second time; what stands behind the cut is computed again, of the last turn alone where every
//! message strips. *In a whole rendering* the same messages lose their reasoning before the template sees them.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::json::Json;
use super::messages::{REASONING, role_of};
use super::parts::Mark;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Fault, Result, brief};

/// A mode of history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum History {
    /// Thoughts stay.
    #[default]
    Keep,
    /// Thoughts go with the next message.
    StripThinking,
    /// Thoughts go with a user's next message.
    ToolCycle,
}

impl History {
    /// All modes.
    pub const ALL: [History; 3] = [History::Keep, History::StripThinking, History::ToolCycle];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            History::Keep => "keep",
            History::StripThinking => "strip_thinking",
            History::ToolCycle => "tool_cycle",
        }
    }

    /// The mode of a name. Error: `BadValue`, naming those that there are.
    pub fn named(name: &str) -> Result<History> {
        History::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| {
            let known = History::ALL.map(History::name).join(", ");
            let found = brief(format_args!("{name:?}"));
            Error::new(Fault::BadValue, format!("history: wanted one of {known}, found {found}"))
        })
    }

    /// Whether thoughts that stand go when these messages come.
    pub fn strips_before(self, messages: &[Json]) -> bool {
        match self {
            History::Keep => false,
            History::StripThinking => !messages.is_empty(),
            History::ToolCycle => messages.iter().any(|message| role_of(message) == "user"),
        }
    }

    /// The messages as the mode has them: those of an assistant lose their reasoning where messages follow that take it away.
    pub fn of_messages(self, mut messages: Json) -> Json {
        let Json::List(list) = &mut messages else { return messages };
        let last = match self {
            History::Keep => 0,
            History::StripThinking => list.len().saturating_sub(1),
            History::ToolCycle => list.iter().rposition(|message| role_of(message) == "user").unwrap_or(0),
        };
        list[..last].iter_mut().filter(|message| role_of(message) == "assistant").for_each(strip);
        messages
    }
}

/// Takes a message's reasoning away, whether it has a key of its own or stands in the text.
fn strip(message: &mut Json) {
    let Json::Object(entries) = message else { return };
    entries.retain(|(key, _)| !REASONING.contains(&key.as_str()));
    if let Some(Json::String(text)) = message.get_mut("content")
        && let Some((_, answer)) = text.rsplit_once(Mark::ThoughtEnds.text())
    {
        *text = answer.trim_start_matches('\n').to_string();
    }
}

/// Where thoughts stand in a timeline: those with which assistants' turns begin, each with the line ends behind it. `prompt` is
/// asked for the template's generation prompt where there is something to look for, `ends_turn` says which ids end a turn.
///
/// Errors: `UnsupportedTokenizer` where the vocabulary has no tokens for the marks of a thought; the prompt's.
pub fn thoughts(
    tokenizer: &Tokenizer,
    prompt: impl FnOnce() -> Result<Vec<i32>>,
    ids: &[i32],
    ends_turn: impl Fn(i32) -> bool,
) -> Result<Vec<Range<usize>>> {
    let mark = |mark: Mark| {
        let id = tokenizer.id_of(mark.text()).filter(|&id| tokenizer.is_added(id));
        id.ok_or_else(|| {
            let text = mark.text();
            let why =
                format!("history: the tokenizer has no token {text}, so no thought can be found; use history keep");
            Error::new(Fault::UnsupportedTokenizer, why)
        })
    };
    let (begin, end) = (mark(Mark::ThoughtBegins)?, mark(Mark::ThoughtEnds)?);
    let is_made_of = |id: i32, of: fn(&u8) -> bool| tokenizer.token_bytes(id).is_some_and(|bytes| bytes.iter().all(of));
    let trimmed = |ids: &[i32]| {
        let said = |&id: &i32| !is_made_of(id, u8::is_ascii_whitespace);
        ids.iter().rposition(said).map_or(0, |last| last + 1)
    };
    if !ids.contains(&begin) {
        return Ok(Vec::new());
    }
    let prompt = prompt()?;
    // A prompt may open the thought itself.
    let opened = prompt.iter().position(|&id| id == begin).unwrap_or(prompt.len());
    let prompt = &prompt[..trimmed(&prompt[..opened])];
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while let Some(from) = ids[at..].iter().position(|&id| id == begin).map(|n| at + n) {
        at = from + 1;
        if prompt.is_empty() || !ids[..trimmed(&ids[..from])].ends_with(prompt) {
            continue;
        }
        let is_over = |&id: &i32| id == end || ends_turn(id) || tokenizer.is_special(id);
        at += ids[at..].iter().position(is_over).unwrap_or(ids.len() - at);
        if ids.get(at) == Some(&end) {
            at += 1;
            at += ids[at..].iter().take_while(|&&id| is_made_of(id, |&byte| byte == b'\n')).count();
        }
        found.push(from..at);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::tiny_tokenizer::tiny_tokenizer_json;
    use super::super::tokenizer::Control;
    use super::*;
    use serde_json::json;

    fn cut(text: &str) -> String {
        let tokenizer = Tokenizer::from_json(&tiny_tokenizer_json()).unwrap();
        let (ids, prompt) = (tokenizer.encode(text, Control::All), "<|im_start|>assistant\n");
        let prompt = tokenizer.encode(prompt, Control::All);
        let mut kept = ids.clone();
        for range in thoughts(&tokenizer, || Ok(prompt), &ids, |id| id == 266).unwrap().into_iter().rev() {
            kept.drain(range);
        }
        tokenizer.decode(&kept, false)
    }

    #[test]
    fn a_thought_goes_with_the_line_ends_behind_it_and_nothing_else_does() {
        let turn = |said: &str| format!("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{said}");
        for (said, kept) in [
            ("<think>\nhm\n</think>\n\nYes.<|im_end|>\n", "Yes.<|im_end|>\n"),
            ("<think>\n\n</think>\n\n", ""),
            ("\n<think>\nhm</think> Yes.", "\n Yes."),
            ("<think>\nhm<|im_end|>\n", "<|im_end|>\n"),
            ("<think>\nhm", ""),
            ("Yes. <think>no</think>", "Yes. <think>no</think>"),
            ("Yes.<|im_end|>\n", "Yes.<|im_end|>\n"),
            ("<think>a</think><think>b</think>c", "<think>b</think>c"),
        ] {
            assert_eq!(cut(&turn(said)), turn(kept), "{said:?}");
        }
        let others = "<|im_start|>user\n<think>\nhm</think><|im_end|>\n";
        assert_eq!(cut(others), others);
        let twice = turn("<think>a</think>\nb<|im_end|>\n") + &turn("<think>c</think>\n\nd<|im_end|>");
        assert_eq!(cut(&twice), turn("b<|im_end|>\n") + &turn("d<|im_end|>"));
    }

    #[test]
    fn messages_lose_their_reasoning_where_others_follow_that_take_it_away() {
        let user = json!({"role": "user", "content": "q"});
        let called = json!({"role": "assistant", "content": "<think>\na\n</think>\n\nLook.", "tool_calls": []});
        let tool = json!({"role": "tool", "content": "<think>r</think>"});
        let said = json!({"role": "assistant", "reasoning_content": "b", "content": "Yes.", "thinking": "b", "reasoning": "b"});
        let (bare_call, bare) = (
            json!({"role": "assistant", "content": "Look.", "tool_calls": []}),
            json!({"role": "assistant", "content": "Yes."}),
        );
        let of = |mode: History, messages: &[&serde_json::Value]| mode.of_messages(json!(messages).into());
        let list = |messages: &[&serde_json::Value]| Json::from(json!(messages));
        let open = [&user, &called, &tool, &said];
        assert_eq!(of(History::Keep, &open), list(&open));
        assert_eq!(of(History::StripThinking, &open), list(&[&user, &bare_call, &tool, &said]));
        assert_eq!(of(History::ToolCycle, &open), list(&open));
        let closed = [&user, &called, &tool, &said, &user];
        for mode in [History::StripThinking, History::ToolCycle] {
            assert_eq!(of(mode, &closed), list(&[&user, &bare_call, &tool, &bare, &user]));
        }
        for mode in History::ALL {
            assert_eq!(of(mode, &[]), list(&[]));
            assert_eq!(mode.of_messages(Json::Null), Json::Null);
            assert_eq!(History::named(mode.name()).unwrap(), mode);
        }
        let e = History::named("strip").unwrap_err();
        assert_eq!(e.message(), "history: wanted one of keep, strip_thinking, tool_cycle, found \"strip\"");
    }
}
