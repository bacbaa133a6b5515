//! What a model says, for somebody who reads it at a terminal: its thoughts dimmed, and nothing that the terminal would obey.
#![forbid(unsafe_code)]

use squire::text::Part;

use crate::visible::visible;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Parts as text for a terminal, each kind begun on a line of its own.
#[derive(Default)]
pub struct Shown {
    thinks: bool,
    /// whether text stands in the last line
    in_line: bool,
}

impl Shown {
    /// What is to be printed for a part.
    pub fn text(&mut self, part: &Part) -> String {
        let called;
        let (thinks, text) = match part {
            Part::Reasoning(text) => (true, text),
            Part::Content(text) | Part::Unparsed { text, .. } => (false, text),
            Part::ToolCall(call) => {
                called = format!("{} {}", call.name, call.arguments);
                (false, &called)
            }
        };
        let begins = thinks != self.thinks || matches!(part, Part::ToolCall(_));
        let mut shown = String::new();
        if begins && !text.is_empty() {
            shown.push_str(if self.thinks { PLAIN } else { "" });
            shown.push_str(if self.in_line { "\n" } else { "" });
            shown.push_str(if thinks { DIM } else { "" });
            self.thinks = thinks;
        }
        shown.push_str(&visible(text));
        self.in_line = if text.is_empty() { self.in_line } else { !text.ends_with('\n') };
        shown
    }

    /// What is to be printed behind the last part.
    pub fn end(&self) -> &'static str {
        if self.thinks { PLAIN } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use squire::text::ToolCall;

    #[test]
    fn thoughts_are_dimmed_and_everything_begins_on_a_line_of_its_own() {
        let mut shown = Shown::default();
        let call = ToolCall { index: 0, id: "c".into(), name: "look".into(), arguments: "{}".into() };
        let parts = [
            Part::Reasoning("h".into()),
            Part::Reasoning("m".into()),
            Part::Content("Yes".into()),
            Part::Content(".\n".into()),
            Part::ToolCall(call),
            Part::Reasoning("so".into()),
            Part::Unparsed { text: String::new(), reason: "the end".into() },
        ];
        let text: String = parts.iter().map(|part| shown.text(part)).collect();
        assert_eq!(text + shown.end(), "\x1b[2mhm\x1b[0m\nYes.\nlook {}\n\x1b[2mso\x1b[0m");
    }

    #[test]
    fn no_part_sends_a_terminal_what_it_would_obey() {
        let call = ToolCall { index: 0, id: "c".into(), name: "l\u{9b}".into(), arguments: "{\"\x1b\": 1}".into() };
        let unparsed = Part::Unparsed { text: "\u{202e}".into(), reason: "the end".into() };
        let said = [Part::Reasoning("\x1b".into()), Part::Content("\x1b[0m".into()), Part::ToolCall(call), unparsed];
        let mut shown = Shown::default();
        let text: String = said.iter().map(|part| shown.text(part)).collect();
        let wanted = "\x1b[2m\\u{1b}\x1b[0m\n\\u{1b}[0m\nl\\u{9b} {\"\\u{1b}\": 1}\\u{202e}";
        assert_eq!(text, wanted);
    }
}
