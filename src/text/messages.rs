//! Messages as a chat template gets them: checked, and made plain as transformers makes them.
//!
//! From transformers' `apply_chat_template` (5.24): keys of a message that are null are dropped, since templates print
//! `None` for them or fail; a message's reasoning, which hosts pass as `reasoning_content`, `thinking` or `reasoning`,
//! is given under the first two names, which templates read; with `continue_final_message` the rendering is cut
//! behind the last message's text, found by a mark that is put there.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use super::json::Json;
use super::template::RenderOptions;
use crate::error::{Error, Fault, Result};

/// The names under which hosts pass what an assistant thought.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message with a text.
pub(super) fn message(role: &str, content: &str) -> Json {
    Json::Object(vec![("role".into(), role.into()), ("content".into(), content.into())])
}

/// A message's role.
pub(super) fn role_of(message: &Json) -> &str {
    message.get("role").and_then(Json::as_str).unwrap_or_default()
}

/// Checks that the value is a list of objects that have a role.
pub(super) fn check_messages(messages: &Json) -> Result<&[Json]> {
    let wrong = |why: String| Error::new(Fault::BadValue, why);
    let list = messages
        .as_list()
        .ok_or_else(|| wrong(format!("messages: wanted a list of {{role, content}}, found {}", messages.kind())))?;
    match list.iter().position(|message| message.get("role").and_then(Json::as_str).is_none()) {
        Some(n) => Err(wrong(format!("messages: message {n}: wanted an object with a role, such as user"))),
        None => Ok(list),
    }
}

/// The messages without nulls, and with reasoning under the names that templates read.
pub(super) fn plain(messages: &[Json]) -> Vec<Json> {
    let plain = |message: &Json| {
        let Json::Object(entries) = message else { return message.clone() };
        let mut entries: Vec<_> = entries.iter().filter(|(_, value)| *value != Json::Null).cloned().collect();
        let named = |name: &str| entries.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if let Some(reasoning) = REASONING.iter().find_map(|name| named(name)) {
            if named("thinking").is_none() {
                entries.insert(0, ("thinking".into(), reasoning.clone()));
            }
            match entries.iter_mut().find(|(key, _)| key == "reasoning_content") {
                Some((_, value)) => *value = reasoning,
                None => entries.push(("reasoning_content".into(), reasoning)),
            }
        }
        Json::Object(entries)
    };
    messages.iter().map(plain).collect()
}

/// Characters of the private use area that a request or a template's text holds.
pub(super) fn private_characters<'a>(
    messages: impl IntoIterator<Item = &'a Json>,
    options: &RenderOptions,
    source: &str,
) -> HashSet<char> {
    let mut found = HashSet::new();
    let mut take = |text: &str| {
        found.extend(text.chars().filter(|c| PRIVATE.contains(c)));
        // A text may spell a character as templates spell it that print a list by Python's repr.
        let spelled = text.match_indices("\\u").filter_map(|(at, _)| text.get(at + 2..at + 6));
        found.extend(spelled.filter_map(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?)));
    };
    take(source);
    messages.into_iter().for_each(|message| message.texts(&mut take));
    let variables = options.variables.iter().map(|(_, value)| value);
    options.tools.iter().chain(&options.documents).chain(variables).for_each(|value| value.texts(&mut take));
    found
}

/// A mark as Python's repr and an ASCII `tojson` print it.
pub(super) fn spelled(mark: char) -> String {
    format!("\\u{:04x}", u32::from(mark))
}

/// The characters that marks are chosen from: no text means anything by them.
pub(super) const PRIVATE: std::ops::RangeInclusive<char> = '\u{e000}'..='\u{f8ff}';

/// A mark behind the text of the last message, where a rendering that continues it ends.
pub(super) struct Open {
    mark: char,
}

impl Open {
    /// Puts the mark into the last message, if the options ask for it.
    ///
    /// Error: `BadValue` where there is no text to continue, or a generation prompt is asked for too.
    pub(super) fn mark(messages: &mut [Json], options: &RenderOptions, source: &str) -> Result<Option<Open>> {
        if !options.continue_final_message {
            return Ok(None);
        }
        let wrong = |why: &str| Error::new(Fault::BadValue, format!("continue_final_message: {why}"));
        if options.add_generation_prompt {
            return Err(wrong(
                "add_generation_prompt is true too; give one of them: the last message goes on, or a new turn begins",
            ));
        }
        let taken = private_characters(messages.iter(), options, source);
        let mark = PRIVATE.clone().find(|c| !taken.contains(c));
        let mark = mark.ok_or_else(|| wrong("the messages use every private-use character from U+E000 on"))?;
        let last = messages.last_mut().ok_or_else(|| wrong("there is no message to continue"))?;
        let text = match last.get_mut("content") {
            Some(Json::String(text)) => Some(text),
            Some(Json::List(blocks)) => blocks.iter_mut().rev().find_map(|block| match block.get_mut("text") {
                Some(Json::String(text)) => Some(text),
                _ => None,
            }),
            _ => None,
        };
        let text = text.ok_or_else(|| wrong("the last message has no text in content to continue"))?;
        // The space tells whether the template trims the text.
        text.extend([mark, ' ']);
        Ok(Some(Open { mark }))
    }

    /// The rendering up to the mark. Error: `TemplateFailed` where the template does not print it.
    pub(super) fn cut(&self, mut rendering: String) -> Result<String> {
        let printed = [self.mark.to_string(), spelled(self.mark)];
        let last = printed.iter().filter_map(|mark| Some((rendering.rfind(mark.as_str())?, mark.len()))).max();
        let Some((at, length)) = last else {
            let why = "chat template: continue_final_message: it does not print the last message's text, so there is \
                       nothing to continue";
            return Err(Error::new(Fault::TemplateFailed, why));
        };
        let trims = !rendering[at + length..].starts_with(' ');
        rendering.truncate(at);
        if trims {
            rendering.truncate(rendering.trim_end().len());
        }
        Ok(rendering)
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::ChatTemplate;
    use super::*;
    use serde_json::json;

    fn continued(template: &str, messages: serde_json::Value) -> Result<String> {
        let options = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
        ChatTemplate::compile(template).unwrap().render(messages, &options)
    }

    const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}";
    const TRIMMING: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}";
    const BLOCKS: &str = "{% for m in messages %}{% for b in m.content %}[{{ b.text }}]{% endfor %}{% endfor %}";

    #[test]
    fn a_message_that_is_continued_stays_open() {
        let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": " The answer is  "}]);
        assert_eq!(continued(PLAIN, messages.clone()).unwrap(), "<user>x</><assistant> The answer is  ");
        assert_eq!(continued(TRIMMING, messages).unwrap(), "<user>x</><assistant>The answer is");
        let blocks = json!([{"role": "assistant", "content": [{"text": "a"}, {"text": "b"}, {"image": "c"}]}]);
        assert_eq!(continued(BLOCKS, blocks).unwrap(), "[a][b");
        let repr = continued(PLAIN, json!([{"role": "assistant", "content": [{"text": "The"}]}])).unwrap();
        assert_eq!(repr, "<assistant>[{'text': 'The", "a list is printed by Python's repr, which spells the mark");
        let empty = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]);
        assert_eq!(continued(PLAIN, empty).unwrap(), "<user>x</><assistant>");
    }

    #[test]
    fn what_cannot_be_continued_is_refused() {
        for (messages, fault) in [
            (json!([]), Fault::BadValue),
            (json!([{"role": "assistant"}]), Fault::BadValue),
            (json!([{"role": "assistant", "content": null}]), Fault::BadValue),
            (json!([{"role": "assistant", "content": [{"image": "x"}]}]), Fault::BadValue),
        ] {
            assert_eq!(continued(PLAIN, messages.clone()).unwrap_err().fault(), fault, "{messages}");
        }
        let hides = continued("{{ messages | length }}", json!([{"role": "assistant", "content": "x"}]));
        assert_eq!(hides.unwrap_err().fault(), Fault::TemplateFailed);
        let both =
            RenderOptions { continue_final_message: true, add_generation_prompt: true, ..RenderOptions::default() };
        let template = ChatTemplate::compile(PLAIN).unwrap();
        let e = template.render(json!([{"role": "assistant", "content": "x"}]), &both).unwrap_err();
        assert_eq!(e.fault(), Fault::BadValue);
    }

    #[test]
    fn nulls_are_dropped_and_reasoning_is_found_under_every_name() {
        let list = |value| check_messages(&Json::from(value)).unwrap().to_vec();
        let given = list(json!([
            {"role": "tool", "content": null, "tool_calls": null, "x": [null]},
            {"role": "assistant", "content": "a", "reasoning": "r"},
            {"role": "assistant", "thinking": "t", "content": "a"},
            {"role": "assistant", "content": "a", "reasoning_content": ""},
        ]));
        // The order of keys is transformers' too: {"thinking": r, **message, "reasoning_content": r}.
        let wanted = list(json!([
            {"role": "tool", "x": [null]},
            {"thinking": "r", "role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": "r"},
            {"role": "assistant", "thinking": "t", "content": "a", "reasoning_content": "t"},
            {"thinking": "", "role": "assistant", "content": "a", "reasoning_content": ""},
        ]));
        assert_eq!(plain(&given), wanted);
    }

    #[test]
    fn messages_that_are_none_are_refused() {
        for wrong in [json!({}), json!("x"), json!(["x"]), json!([{"content": "x"}]), json!([{"role": 1}])] {
            assert_eq!(check_messages(&wrong.into()).unwrap_err().fault(), Fault::BadValue);
        }
    }
}
