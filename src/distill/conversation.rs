//! What was said in an episode as the host's teacher is to read it: messages, as long as nothing but messages was shown. What ids say
//! as messages is not known.
#![forbid(unsafe_code)]

use crate::text::Json;

/// The messages of an episode.
#[derive(Clone, Default)]
pub(super) struct Conversation {
    messages: Vec<Json>,
    /// whether ids were observed since
    is_broken: bool,
}

impl Conversation {
    /// It begins with these.
    pub(super) fn new(prefix: Vec<Json>) -> Conversation {
        Conversation { messages: prefix, is_broken: false }
    }

    /// Adds what was shown, a list of messages.
    pub(super) fn show(&mut self, shown: Json) {
        if let Json::List(shown) = shown {
            self.messages.extend(shown);
        }
    }

    /// Adds what an actor said.
    pub(super) fn say(&mut self, said: String) {
        let entry = |key: &str, value: String| (key.to_string(), Json::String(value));
        self.messages.push(Json::Object(vec![entry("role", "assistant".into()), entry("content", said)]));
    }

    /// Notes that ids were shown.
    pub(super) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// How many messages there are; None where they are not all.
    pub(super) fn len(&self) -> Option<usize> {
        (!self.is_broken).then_some(self.messages.len())
    }

    /// The same as it was when it had so many messages.
    pub(super) fn up_to(&self, n: Option<usize>) -> Conversation {
        let kept = &self.messages[..n.unwrap_or(0).min(self.messages.len())];
        Conversation { messages: kept.to_vec(), is_broken: n.is_none() }
    }

    /// A JSON list of them; None where they are not all.
    pub(super) fn to_text(&self) -> Option<String> {
        (!self.is_broken).then(|| Json::List(self.messages.clone()).to_text())
    }
}
