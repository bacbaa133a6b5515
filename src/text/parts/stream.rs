//! Sampled ids to parts.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::super::stream::TextStream;
use super::super::tokenizer::Tokenizer;
use super::mark::Mark;
use super::parser::PartParser;
use super::part::Part;
use super::tools::Tools;

/// Tells apart what a model says, id by id. Special tokens give no text, as in the raw stream.
pub struct PartStream {
    tokenizer: Arc<Tokenizer>,
    /// The ids that are marks.
    marks: Vec<(i32, Mark)>,
    text: TextStream,
    parser: PartParser,
}

impl PartStream {
    /// A stream of what is said behind the ids `before`, of which those of the open turn count, at `position` of its timeline,
    /// which makes the ids of calls its own there: `call_17_0` is the first that was said from position 17 on. `tools` say
    /// the types of the parameters in calls of Qwen3-Coder's form.
    pub fn new(tokenizer: Arc<Tokenizer>, before: &[i32], position: u64, tools: Arc<Tools>) -> PartStream {
        let id = |mark: Mark| tokenizer.id_of(mark.text()).filter(|&id| tokenizer.is_added(id));
        let marks: Vec<_> = Mark::ALL.into_iter().filter_map(|mark| Some((id(mark)?, mark))).collect();
        let spelled = Mark::ALL.into_iter().filter(|&mark| id(mark).is_none()).collect();
        let parser = PartParser::new(spelled, tools, format!("call_{position}_"));
        let mut stream = PartStream { marks, text: TextStream::new(), parser, tokenizer };
        let turn = open_turn(&stream.tokenizer, before);
        stream.feed(turn);
        stream.text = TextStream::new();
        stream.parser.begin();
        stream
    }

    /// Takes ids, and gives what has become certain.
    pub fn push(&mut self, ids: &[i32]) -> Vec<Part> {
        self.feed(ids);
        self.parser.take()
    }

    /// Ends the output: what stands open comes as it is, with the reason.
    pub fn finish(&mut self) -> Vec<Part> {
        let broken_off = self.text.finish();
        self.parser.text(&broken_off);
        self.parser.finish();
        self.parser.take()
    }

    fn feed(&mut self, ids: &[i32]) {
        for &id in ids {
            if let Some(&(_, mark)) = self.marks.iter().find(|(of, _)| *of == id) {
                let broken_off = self.text.finish();
                self.parser.text(&broken_off);
                self.parser.mark(mark);
            } else if let Some(bytes) = self.tokenizer.token_bytes(id).filter(|_| !self.tokenizer.is_special(id)) {
                let text = self.text.push(bytes);
                self.parser.text(&text);
            }
        }
    }
}

/// The ids of the turn that `ids` end in: those from the last special token on that is no mark. None where no token begins turns:
/// what stands there may be anybody's text.
pub(crate) fn open_turn<'i>(tokenizer: &Tokenizer, ids: &'i [i32]) -> &'i [i32] {
    let begins = |&id: &i32| {
        let is_mark = || Mark::ALL.into_iter().any(|mark| tokenizer.id_of(mark.text()) == Some(id));
        tokenizer.is_special(id) && !is_mark()
    };
    ids.iter().rposition(begins).map_or(&[], |at| &ids[at..])
}

#[cfg(test)]
mod tests {
    use super::super::super::tiny_tokenizer::{tiny_tokenizer, tiny_tokenizer_json};
    use super::super::super::tokenizer::Control;
    use super::super::part::{ToolCall, joined};
    use super::*;
    use crate::random::{Stream, below};

    fn tiny() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::from_json(&tiny_tokenizer_json()).unwrap())
    }

    /// A tokenizer without tokens for the marks.
    fn markless() -> Arc<Tokenizer> {
        let mut document = tiny_tokenizer();
        document["added_tokens"].as_array_mut().unwrap().truncate(3);
        Arc::new(Tokenizer::from_json(&document.to_string().into_bytes()).unwrap())
    }

    fn stream(tokenizer: &Arc<Tokenizer>, before: &str) -> PartStream {
        PartStream::new(tokenizer.clone(), &tokenizer.encode(before, Control::All), 17, Arc::default())
    }

    fn of(tokenizer: &Arc<Tokenizer>, before: &str, said: &str) -> Vec<Part> {
        let mut stream = stream(tokenizer, before);
        let mut parts = stream.push(&tokenizer.encode(said, Control::All));
        parts.extend(stream.finish());
        joined(parts)
    }

    const PROMPT: &str = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    const SAID: &str = "<think>\nhm 😀\n</think>\n\nLook.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {}}\n</tool_call><|im_end|>";

    fn look() -> Part {
        Part::ToolCall(ToolCall { index: 0, id: "call_17_0".into(), name: "look".into(), arguments: "{}".into() })
    }

    #[test]
    fn marks_are_ids_where_the_vocabulary_has_them_and_text_where_it_has_not() {
        let wanted = [Part::Reasoning("hm 😀".into()), Part::Content("Look.".into()), look()];
        let with = tiny();
        for tokenizer in [&with, &markless()] {
            assert_eq!(of(tokenizer, PROMPT, SAID), wanted);
        }
        // What only spells a mark is text where the vocabulary has the mark.
        let spelled = "<think>\nhm</think>";
        let mut stream = stream(&with, PROMPT);
        let mut parts = stream.push(&with.encode(spelled, Control::None));
        parts.extend(stream.finish());
        assert_eq!(joined(parts), [Part::Content(spelled.into())]);
    }

    #[test]
    fn a_stream_begins_where_the_turn_stands() {
        let thought = |text: &str| Part::Reasoning(text.into());
        let said = |text: &str| Part::Content(text.into());
        for tokenizer in [&tiny(), &markless()] {
            let after = |prompt: &str, text: &str| of(tokenizer, &format!("{PROMPT}{prompt}"), text);
            assert_eq!(after("<think>\n", "hm\n</think>\n\nYes."), [thought("hm"), said("Yes.")]);
            assert_eq!(after("<think>\n\n</think>\n\n", "Yes."), [said("Yes.")]);
            assert_eq!(after("<think>\nso", " far\n</think>\n\nYes."), [thought(" far"), said("Yes.")]);
            assert_eq!(after("The answer", " is 5."), [said(" is 5.")]);
            // A call that an earlier generation has begun comes whole.
            assert_eq!(after("<tool_call>\n{\"name\": \"lo", "ok\", \"arguments\": {}}\n</tool_call>"), [look()]);
            // What others said opens nothing.
            assert_eq!(of(tokenizer, "<think>\n", "Yes."), [said("Yes.")]);
            assert_eq!(
                of(tokenizer, "<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n", "Yes."),
                [said("Yes.")]
            );
        }
    }

    #[test]
    fn any_pieces_of_the_same_ids_give_the_same_parts() {
        let tokenizer = tiny();
        for case in 0..1000 {
            let draw = |i: u64, n: u64| below(Stream::World, &[case, i], n);
            // Ids of every kind: bytes that break characters, merges, special tokens, marks, and none at all.
            let ids: Vec<i32> = (0..draw(0, 60))
                .map(|i| match draw(100 + i, 4) {
                    0 => 264 + draw(200 + i, 9) as i32,
                    1 => [10, 123, 125, 240, 159, 152, 128][draw(200 + i, 7) as usize],
                    _ => draw(200 + i, 280) as i32,
                })
                .collect();
            let all = |size: &mut dyn FnMut() -> usize| {
                let mut stream = stream(&tokenizer, PROMPT);
                let (mut parts, mut at) = (Vec::new(), 0);
                while at < ids.len() {
                    let end = (at + size()).min(ids.len());
                    parts.extend(stream.push(&ids[at..end]));
                    at = end;
                }
                parts.extend(stream.finish());
                joined(parts)
            };
            let whole = all(&mut || usize::MAX / 2);
            assert_eq!(all(&mut || 1), whole, "{ids:?}");
            let mut i = 1000;
            let mut any = || {
                i += 1;
                1 + draw(i, 7) as usize
            };
            assert_eq!(all(&mut any), whole, "{ids:?}");
        }
    }
}
