//! HTML as it is put together: what this program says itself is `'static`, and everything else is escaped. There is no
//! third way in, so no text of a run can become markup.

/// A document under way.
#[derive(Default)]
pub struct Html(String);

impl Html {
    /// Markup of this program's own.
    pub fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Any text, as text or within a quoted attribute.
    pub fn text(&mut self, text: &str) -> &mut Html {
        text.chars().for_each(|c| escape(c, &mut self.0));
        self
    }

    /// At most `most` characters of a text, and how many are left out.
    pub fn cut(&mut self, text: &str, most: usize) -> &mut Html {
        match text.char_indices().nth(most) {
            None => self.text(text),
            Some((at, _)) => {
                let left = text[at..].chars().count();
                self.text(&text[..at])
                    .raw("<span class=cut> ... ")
                    .text(&left.to_string())
                    .raw(" characters more</span>")
            }
        }
    }

    /// An attribute: ` name="value"`.
    pub fn attribute(&mut self, name: &'static str, value: &str) -> &mut Html {
        self.raw(" ").raw(name).raw("=\"").text(value).raw("\"")
    }

    /// A figure for programs, in an attribute; nothing where there is none.
    pub fn figure(&mut self, name: &'static str, value: Option<f64>) -> &mut Html {
        match value {
            Some(value) => self.attribute(name, &value.to_string()),
            None => self,
        }
    }

    /// An element of a kind and a class with a text in it.
    pub fn element(&mut self, open: &'static str, text: &str, close: &'static str) -> &mut Html {
        self.raw(open).text(text).raw(close)
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Writes a character as text. What cannot be seen, or moves what stands around it, is spelled out.
fn escape(c: char, into: &mut String) {
    let code = u32::from(c);
    match c {
        '&' => into.push_str("&amp;"),
        '<' => into.push_str("&lt;"),
        '>' => into.push_str("&gt;"),
        '"' => into.push_str("&quot;"),
        '\'' => into.push_str("&#39;"),
        '\n' | '\t' => into.push(c),
        // Controls; marks, embeddings, overrides and isolates of direction; separators; invisible ones; tags.
        '\0'..='\x1f'
        | '\x7f'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => into.push_str(&format!("[U+{code:04X}]")),
        _ => into.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        let mut html = Html::default();
        html.text(text);
        html.0
    }

    #[test]
    fn no_text_becomes_markup_or_moves_what_stands_around_it() {
        assert_eq!(
            of("</script><img src=x onerror='a(\"&\")'>"),
            "&lt;/script&gt;&lt;img src=x onerror=&#39;a(&quot;&amp;&quot;)&#39;&gt;"
        );
        assert_eq!(of("a\u{1b}[31m\r\0\u{7f}"), "a[U+001B][31m[U+000D][U+0000][U+007F]");
        assert_eq!(of("\u{202e}x\u{2066}\u{85}\u{feff}\u{e0041}"), "[U+202E]x[U+2066][U+0085][U+FEFF][U+E0041]");
        assert_eq!(of("line\n\ttab, \u{e9}\u{4e2d}\u{1f600}"), "line\n\ttab, \u{e9}\u{4e2d}\u{1f600}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_much_is_left() {
        let mut html = Html::default();
        html.cut("\u{e9}\u{e9}<\u{e9}", 3);
        assert_eq!(html.0, "\u{e9}\u{e9}&lt;<span class=cut> ... 1 characters more</span>");
    }
}
