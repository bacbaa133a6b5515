//! What a model says, as a terminal may have it. A terminal obeys some characters: they clear the screen, write into its title or
//! its clipboard, or turn the direction of writing around. Whoever talks with a model talks with the texts that it has read, so
//! these characters are shown and not sent.
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// Whether a terminal, or whoever reads it, would take the character for something other than itself: the C0 and C1 controls but
/// for the ends of lines and tabs, DEL, and what sets the direction of writing.
fn is_obeyed(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && !matches!(c, '\n' | '\t')) || turns
}

/// The text with such characters spelled out, as `\u{1b}`. Every character is judged by itself, so it does not matter where a
/// text was cut.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_obeyed(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_spelled_out_and_everything_else_stays() {
        for (said, wanted) in [
            ("plain, ä, 界, 😀\n\tnext", "plain, ä, 界, 😀\n\tnext"),
            ("\x1b[2J\x1b]0;title\x07", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            ("\u{9b}31m\u{9d}52;c;aGk=\u{9c}", "\\u{9b}31m\\u{9d}52;c;aGk=\\u{9c}"),
            ("over\rwritten\x08\x7f\0", "over\\u{d}written\\u{8}\\u{7f}\\u{0}"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{61c}", "a\\u{202e}b\\u{2066}c\\u{200f}d\\u{61c}"),
        ] {
            assert_eq!(visible(said), wanted);
        }
    }

    #[test]
    fn it_does_not_matter_where_a_text_is_cut() {
        let said = "a\x1b[31mred\u{202e}\u{9d}0;x\x07 end";
        let whole = visible(said).into_owned();
        for at in (0..said.len()).filter(|&at| said.is_char_boundary(at)) {
            assert_eq!(format!("{}{}", visible(&said[..at]), visible(&said[at..])), whole);
        }
        assert!(!whole.contains(is_obeyed));
    }
}
