//! Text and marks, as they come, to parts. It knows nothing of ids: whoever feeds it decides what is a mark, and names the
//! marks that are to be looked for in the text.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::call::calls;
use super::mark::Mark;
use super::part::{Part, ToolCall};
use super::tools::Tools;

/// The longest text of a call, in bytes; a longer one is given as text that is no call, as it comes.
const MAX_CALL: usize = 1 << 20;
/// White space behind a call that is kept back, in bytes: more of it is part of the answer.
const MAX_SPACE: usize = 4096;

const NO_END: &str = "the output ended within a tool call";

/// Tells apart what a model says. Text may be cut into pieces anywhere between characters: the parts, neighbours of a kind
/// joined, are the same.
#[derive(Debug)]
pub struct PartParser {
    state: State,
    /// Marks that are told by their text.
    spelled: Vec<Mark>,
    tools: Arc<Tools>,
    /// What begins the ids of calls.
    prefix: String,
    n_calls: usize,
    /// The beginning of a spelled mark, perhaps.
    pending: String,
    /// Whether only white space stands before the next character in its line.
    line_starts: bool,
    /// White space of which what follows decides.
    held: String,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum State {
    /// Within a thought; whether nothing was said in it.
    Thought { fresh: bool },
    /// Within the answer.
    Answer(Behind),
    /// Within a call.
    Call { text: String, in_thought: bool },
    /// Within a call that is no longer read.
    Spoiled { reason: String, in_thought: bool },
}

/// What the next text of the answer stands behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// The answer's own text, or nothing.
    Text,
    /// A thought: line ends are the template's.
    Thought,
    /// A call: white space is, where another one follows or nothing does.
    Call,
}

impl PartParser {
    /// A parser that stands at the beginning of an answer. `spelled` are the marks that are told by their text, `tools` says
    /// the types of parameters, `prefix` begins the ids of calls.
    pub fn new(spelled: Vec<Mark>, tools: Arc<Tools>, prefix: String) -> PartParser {
        PartParser {
            state: State::Answer(Behind::Text),
            spelled,
            tools,
            prefix,
            n_calls: 0,
            pending: String::new(),
            line_starts: true,
            held: String::new(),
            parts: Vec::new(),
        }
    }

    /// Forgets what it would still give, and goes on from where it stands: what it was fed was there before.
    pub fn begin(&mut self) {
        self.pending.clear();
        self.held.clear();
        self.parts.clear();
    }

    /// Takes text.
    pub fn text(&mut self, text: &str) {
        if self.spelled.is_empty() {
            return self.plain(text);
        }
        let text = std::mem::take(&mut self.pending) + text;
        let mut rest = text.as_str();
        while let Some(at) = rest.find('<') {
            self.plain_line(&rest[..at]);
            rest = &rest[at..];
            let wanted = |mark: &&Mark| self.looks_for(**mark);
            if let Some(&mark) = self.spelled.iter().filter(wanted).find(|mark| rest.starts_with(mark.text())) {
                rest = &rest[mark.text().len()..];
                self.mark(mark);
                self.line_starts = true;
            } else if self.spelled.iter().filter(wanted).any(|mark| mark.text().starts_with(rest)) {
                self.pending = rest.to_string();
                return;
            } else {
                self.plain_line(&rest[..1]);
                rest = &rest[1..];
            }
        }
        self.plain_line(rest);
    }

    /// Whether a mark that is spelled here counts.
    fn looks_for(&self, mark: Mark) -> bool {
        match self.state {
            State::Answer(_) => mark.opens() && self.line_starts,
            State::Thought { .. } => mark == Mark::ThoughtEnds,
            State::Call { .. } | State::Spoiled { .. } => mark == Mark::CallEnds,
        }
    }

    /// Takes text that holds no mark, and minds where lines begin.
    fn plain_line(&mut self, text: &str) {
        let line = text.rfind('\n').map_or(text, |at| &text[at + 1..]);
        self.line_starts = (self.line_starts || line.len() < text.len()) && line.trim_start().is_empty();
        self.plain(text);
    }

    /// Takes text that holds no mark.
    fn plain(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Thought { fresh } => {
                let text = if *fresh { text.trim_start_matches('\n') } else { text };
                *fresh &= text.is_empty();
                self.held.push_str(text);
                let said = self.held.trim_end_matches('\n').len();
                self.give(said, Part::Reasoning);
            }
            State::Answer(behind) => {
                let text = if *behind == Behind::Thought { text.trim_start_matches('\n') } else { text };
                self.held.push_str(text);
                if *behind == Behind::Call && self.held.len() <= MAX_SPACE && self.held.trim_start().is_empty() {
                    return;
                }
                if !self.held.is_empty() {
                    *behind = Behind::Text;
                }
                // One line end may be that before a call.
                let said = self.held.strip_suffix('\n').unwrap_or(&self.held).len();
                self.give(said, Part::Content);
            }
            State::Call { text: said, in_thought } if said.len() + text.len() > MAX_CALL => {
                let reason = format!("a tool call of more than {MAX_CALL} bytes");
                let text = format!("{}{said}{text}", Mark::CallBegins.text());
                self.state = State::Spoiled { reason: reason.clone(), in_thought: *in_thought };
                self.parts.push(Part::Unparsed { text, reason });
            }
            State::Call { text: said, .. } => said.push_str(text),
            State::Spoiled { reason, .. } => {
                self.parts.push(Part::Unparsed { text: text.to_string(), reason: reason.clone() });
            }
        }
    }

    /// Takes a mark.
    pub fn mark(&mut self, mark: Mark) {
        let state = std::mem::replace(&mut self.state, State::Answer(Behind::Text));
        self.state = match (state, mark) {
            (State::Answer(_), Mark::ThoughtBegins) => {
                self.held.clear();
                State::Thought { fresh: true }
            }
            (State::Thought { .. }, Mark::ThoughtEnds) => {
                self.held.clear();
                State::Answer(Behind::Thought)
            }
            (State::Answer(_), Mark::CallBegins) => {
                self.held.clear();
                State::Call { text: String::new(), in_thought: false }
            }
            (State::Thought { .. }, Mark::CallBegins) => {
                self.give(self.held.len(), Part::Reasoning);
                State::Call { text: String::new(), in_thought: true }
            }
            (State::Call { text, in_thought }, Mark::CallEnds) => {
                self.call(&text, in_thought);
                after_call(in_thought)
            }
            (State::Spoiled { reason, in_thought }, Mark::CallEnds) => {
                self.parts.push(Part::Unparsed { text: mark.text().into(), reason });
                after_call(in_thought)
            }
            (State::Call { text, in_thought }, Mark::CallBegins) => {
                self.no_call(&text, "", "another tool call begins before this one has ended");
                State::Call { text: String::new(), in_thought }
            }
            // Closing the thought is more than what was called in it.
            (State::Call { text, in_thought: true }, Mark::ThoughtEnds) => {
                self.no_call(&text, "", NO_END);
                State::Answer(Behind::Thought)
            }
            (State::Spoiled { in_thought: true, .. }, Mark::ThoughtEnds) => State::Answer(Behind::Thought),
            // A call may speak of marks.
            (state @ (State::Call { .. } | State::Spoiled { .. }), mark) => {
                self.state = state;
                return self.plain(mark.text());
            }
            (state, mark) => {
                let (part, reason): (fn(String) -> Part, _) = match (&state, mark) {
                    (State::Thought { .. }, Mark::ThoughtBegins) => {
                        (Part::Reasoning, "a thought begins within a thought")
                    }
                    (State::Thought { .. }, _) => (Part::Reasoning, "no tool call has begun that could end here"),
                    (_, Mark::ThoughtEnds) => (Part::Content, "no thought has begun that could end here"),
                    _ => (Part::Content, "no tool call has begun that could end here"),
                };
                self.give(self.held.len(), part);
                self.parts.push(Part::Unparsed { text: mark.text().into(), reason: reason.into() });
                state
            }
        };
    }

    /// Ends the output. What stands open is given as it is, with the reason.
    pub fn finish(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.plain(&pending);
        match std::mem::replace(&mut self.state, State::Answer(Behind::Text)) {
            State::Answer(Behind::Call) => self.held.clear(),
            State::Answer(_) => self.give(self.held.len(), Part::Content),
            State::Thought { .. } => {
                self.give(self.held.len(), Part::Reasoning);
                let reason = "the output ended within a thought".into();
                self.parts.push(Part::Unparsed { text: String::new(), reason });
            }
            State::Call { text, .. } => self.no_call(&text, "", NO_END),
            // That it is no call was said.
            State::Spoiled { .. } => {}
        }
        self.line_starts = true;
    }

    /// Takes what has become certain.
    pub fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }

    /// Gives the first `n` bytes of what is held.
    fn give(&mut self, n: usize, part: fn(String) -> Part) {
        if n > 0 {
            self.parts.push(part(self.held.drain(..n).collect()));
        }
    }

    /// Gives a call that has ended.
    fn call(&mut self, text: &str, in_thought: bool) {
        if in_thought {
            return self.no_call(text, Mark::CallEnds.text(), "a tool call within a thought");
        }
        match calls(text, &self.tools) {
            Err(reason) => {
                self.no_call(text, Mark::CallEnds.text(), &format!("a tool call that cannot be read: {reason}"))
            }
            Ok(calls) => {
                for (name, arguments) in calls {
                    let id = format!("{}{}", self.prefix, self.n_calls);
                    self.parts.push(Part::ToolCall(ToolCall { index: self.n_calls, id, name, arguments }));
                    self.n_calls += 1;
                }
            }
        }
    }

    /// Gives the text of what is no call.
    fn no_call(&mut self, text: &str, end: &str, reason: &str) {
        let text = format!("{}{text}{end}", Mark::CallBegins.text());
        self.parts.push(Part::Unparsed { text, reason: reason.into() });
    }
}

fn after_call(in_thought: bool) -> State {
    if in_thought { State::Thought { fresh: false } } else { State::Answer(Behind::Call) }
}

#[cfg(test)]
mod tests {
    use super::super::part::joined;
    use super::*;
    use crate::random::{Stream, below};

    enum Fed {
        Text(String),
        Mark(Mark),
    }

    /// The text cut at the marks that it spells.
    fn cut(text: &str) -> Vec<Fed> {
        let mut fed = vec![Fed::Text(String::new())];
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            match Mark::ALL.into_iter().find(|mark| rest.starts_with(mark.text())) {
                Some(mark) => {
                    rest = &rest[mark.text().len()..];
                    fed.extend([Fed::Mark(mark), Fed::Text(String::new())]);
                }
                None => {
                    rest = &rest[c.len_utf8()..];
                    if let Some(Fed::Text(text)) = fed.last_mut() {
                        text.push(c);
                    }
                }
            }
        }
        fed
    }

    fn parser(spelled: &[Mark]) -> PartParser {
        PartParser::new(spelled.to_vec(), Arc::default(), "c".into())
    }

    /// The parts of a text whose marks are ids.
    fn parts(text: &str) -> Vec<Part> {
        let mut parser = parser(&[]);
        for fed in cut(text) {
            match fed {
                Fed::Text(text) => parser.text(&text),
                Fed::Mark(mark) => parser.mark(mark),
            }
        }
        parser.finish();
        joined(parser.take())
    }

    /// The parts of a text whose marks are spelled, fed in pieces that `size` gives the lengths of, in characters.
    fn spelled(text: &str, mut size: impl FnMut() -> usize) -> Vec<Part> {
        let mut parser = parser(&Mark::ALL);
        let mut all = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(size()).map_or(rest.len(), |(at, _)| at);
            parser.text(&rest[..end]);
            all.extend(parser.take());
            rest = &rest[end..];
        }
        parser.finish();
        all.extend(parser.take());
        joined(all)
    }

    fn thought(text: &str) -> Part {
        Part::Reasoning(text.into())
    }

    fn said(text: &str) -> Part {
        Part::Content(text.into())
    }

    fn call(index: usize, name: &str, arguments: &str) -> Part {
        Part::ToolCall(ToolCall { index, id: format!("c{index}"), name: name.into(), arguments: arguments.into() })
    }

    fn unparsed(text: &str, reason: &str) -> Part {
        Part::Unparsed { text: text.into(), reason: reason.into() }
    }

    const LOOK: &str = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"mug\"}}\n</tool_call>";

    fn look(index: usize) -> Part {
        call(index, "look", r#"{"at": "mug"}"#)
    }

    #[test]
    fn thought_answer_and_calls_are_told_apart_and_the_templates_white_space_is_nobodys() {
        for (text, wanted) in [
            ("Hi.\n", vec![said("Hi.\n")]),
            ("", vec![]),
            ("\n\nHi.", vec![said("\n\nHi.")]),
            ("<think>\nhm\n\nso\n</think>\n\nYes.\n\nNo.", vec![thought("hm\n\nso"), said("Yes.\n\nNo.")]),
            ("<think>\n\n</think>\n\nYes.", vec![said("Yes.")]),
            (&format!("<think>\nhm\n</think>\n\n{LOOK}"), vec![thought("hm"), look(0)]),
            (&format!("Both.\n{LOOK}\n{LOOK}\n"), vec![said("Both."), look(0), look(1)]),
            (&format!("A.\n\n{LOOK}\nB."), vec![said("A.\n"), look(0), said("\nB.")]),
            (
                "<tool_call>\n<function=look>\n<parameter=at>\nmug\n</parameter>\n</function>\n</tool_call>",
                vec![call(0, "look", r#"{"at":"mug"}"#)],
            ),
            ("<think>\na\n</think>\n\nb<think>\nc\n</think>d", vec![thought("a"), said("b"), thought("c"), said("d")]),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"<think></think>\"}}</tool_call>",
                vec![call(0, "f", r#"{"a": "<think></think>"}"#)],
            ),
        ] {
            assert_eq!(parts(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_given_as_text_with_the_reason() {
        let unreadable = "a tool call that cannot be read: expected a value, found 'l' (byte 0)";
        for (text, wanted) in [
            ("a\n<tool_call>look</tool_call>", vec![said("a"), unparsed("<tool_call>look</tool_call>", unreadable)]),
            ("<tool_call>\n{\"name\"", vec![unparsed("<tool_call>\n{\"name\"", NO_END)]),
            ("<think>\nhm\n", vec![thought("hm\n"), unparsed("", "the output ended within a thought")]),
            (
                "a\n</think>b",
                vec![said("a\n"), unparsed("</think>", "no thought has begun that could end here"), said("b")],
            ),
            ("a</tool_call>", vec![said("a"), unparsed("</tool_call>", "no tool call has begun that could end here")]),
            ("<think><think>a</think>", vec![unparsed("<think>", "a thought begins within a thought"), thought("a")]),
            (
                &format!("<think>a\n{LOOK}\nb</think>c"),
                vec![thought("a\n"), unparsed(LOOK, "a tool call within a thought"), thought("\nb"), said("c")],
            ),
            ("<think>a<tool_call>b</think>c", vec![thought("a"), unparsed("<tool_call>b", NO_END), said("c")]),
            (
                &format!("<tool_call>a{LOOK}"),
                vec![unparsed("<tool_call>a", "another tool call begins before this one has ended"), look(0)],
            ),
        ] {
            assert_eq!(parts(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_call_of_any_length_takes_bounded_memory_and_is_lost_to_nobody() {
        let long = "x".repeat(MAX_CALL + 10);
        let wanted = format!("<tool_call>{long}</tool_call>");
        let [Part::Unparsed { text, reason }, Part::Content(behind)] = &parts(&format!("{wanted}\nb"))[..] else {
            panic!("a text that is no call, and what follows it");
        };
        assert!(*text == wanted && reason.contains("1048576 bytes") && behind == "\nb");
        let mut parser = parser(&[]);
        parser.mark(Mark::CallBegins);
        for _ in 0..3 {
            parser.text(&long);
            assert!(matches!(&parser.take()[..], [Part::Unparsed { text, .. }] if text.len() >= long.len()));
        }
        let spaces = " ".repeat(MAX_SPACE + 1);
        assert_eq!(parts(&format!("{LOOK}{spaces}")), [look(0), said(&spaces)]);
    }

    #[test]
    fn text_is_given_as_soon_as_it_is_certain() {
        let mut parser = parser(&[]);
        parser.mark(Mark::ThoughtBegins);
        for (text, wanted) in
            [("\n", vec![]), ("h", vec![thought("h")]), ("m\n", vec![thought("m")]), ("\nx", vec![thought("\n\nx")])]
        {
            parser.text(text);
            assert_eq!(parser.take(), wanted);
        }
        parser.mark(Mark::ThoughtEnds);
        for (text, wanted) in
            [("\n\nY", vec![said("Y")]), ("es.", vec![said("es.")]), ("\n", vec![]), ("b", vec![said("\nb")])]
        {
            parser.text(text);
            assert_eq!(parser.take(), wanted);
        }
        parser.finish();
        assert_eq!(parser.take(), []);
        let mut parser = self::parser(&Mark::ALL);
        for (text, wanted) in [
            ("a < b <think", vec![said("a < b <think")]),
            (">\n<", vec![said(">")]),
            ("th", vec![]),
            ("e", vec![said("\n<the")]),
        ] {
            parser.text(text);
            assert_eq!(joined(parser.take()), wanted, "{text}");
        }
    }

    #[test]
    fn a_spelled_mark_counts_where_it_can_mean_something() {
        let whole = |text: &str| spelled(text, || usize::MAX);
        for (text, wanted) in [
            ("<think>\nhm</think>\n\nYes.", vec![thought("hm"), said("Yes.")]),
            (
                "The <think> tag and </think> and </tool_call>",
                vec![said("The <think> tag and </think> and </tool_call>")],
            ),
            ("<think>a <tool_call> tag</think>b", vec![thought("a <tool_call> tag"), said("b")]),
            (&format!("Ok.\n  {LOOK}{LOOK}"), vec![said("Ok.\n  "), look(0), look(1)]),
            ("a\n<thi", vec![said("a\n<thi")]),
            ("<tool_call></tool_cal", vec![unparsed("<tool_call></tool_cal", NO_END)]),
        ] {
            assert_eq!(whole(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn parts_do_not_depend_on_how_the_text_is_cut() {
        let pool = [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "\n",
            "\n\n",
            " ",
            "a",
            "é😀",
            "<",
            "</",
            "<tool",
            LOOK,
            "{\"name\": \"f\"",
            "<function=f><parameter=a>1</parameter></function>",
            "<tool_call>\n<function=f>\n</function>\n</tool_call>",
            ">",
            "b\n",
        ];
        let mut seen = [0; 4];
        for case in 0..3000 {
            let draw = |i: u64, n: usize| below(Stream::World, &[case, i], n as u64) as usize;
            let text: String = (0..draw(0, 14) as u64).map(|i| pool[draw(1 + i, pool.len())]).collect();
            let whole = spelled(&text, || usize::MAX);
            let mut at = 100;
            let pieces = spelled(&text, || {
                at += 1;
                1 + draw(at, 9)
            });
            assert_eq!(pieces, whole, "{text:?}");
            assert_eq!(spelled(&text, || 1), whole, "{text:?}");
            // And so it is where the marks are ids.
            let wanted = parts(&text);
            let mut parser = parser(&[]);
            let mut all = Vec::new();
            for fed in cut(&text) {
                match fed {
                    Fed::Text(text) => text.chars().for_each(|c| parser.text(c.encode_utf8(&mut [0; 4]))),
                    Fed::Mark(mark) => parser.mark(mark),
                }
                all.extend(parser.take());
            }
            parser.finish();
            all.extend(parser.take());
            assert_eq!(joined(all), wanted, "{text:?}");
            for part in &wanted {
                seen[match part {
                    Part::Reasoning(_) => 0,
                    Part::Content(_) => 1,
                    Part::ToolCall(_) => 2,
                    Part::Unparsed { .. } => 3,
                }] += 1;
            }
        }
        assert!(seen.iter().all(|&n| n > 300), "{seen:?}");
    }
}
