//! Messages that are appended to a session's timeline, and what the history of the conversation loses by them.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::metrics::add;
use super::model::ServedModel;
use super::session::Session;
use super::timeline::{Timeline, Token, after, check_ids};
use crate::error::Result;
use crate::memory;
use crate::text::chat::{self, RenderOptions};
use crate::text::history::thoughts;
use crate::text::parts::Tools;
use crate::text::source::Source;
use crate::text::{Json, generation_prompt};

impl Session {
    /// Renders messages by the model's template and appends their ids; content never becomes control.
    /// Returns the tokens added: template glue and host text, marked so.
    ///
    /// Where the history (the options', else the model's) takes thoughts away that stand in the timeline, they are cut out
    /// first; what stands behind the first of them is computed again when it is needed, and the engine counts a prefix break.
    /// Where the call fails the timeline is as it was.
    pub fn append_chat(&self, messages: impl Into<Json>, options: &RenderOptions) -> Result<Vec<Token>> {
        let model = self.model();
        let history = options.history.unwrap_or(model.history());
        let messages = history.of_messages(messages.into());
        let (tokenizer, template) = (model.tokenizer()?, model.template()?);
        let (vocabulary, context) = (model.config().vocab_size, model.model().max_context());
        let tools = options.tools.as_ref().map(Tools::of).transpose()?.map(Arc::new);
        let added = self.idle(|t| {
            let strips = history.strips_before(messages.as_list().unwrap_or_default());
            let stripped = if strips { Stripped::of(model, t, options)? } else { None };
            let (behind, len) = match &stripped {
                None => (t.after(model.stop_ids()), t.len()),
                Some(s) => (after(&s.tokens, &s.ids, s.turn_begun_at, model.stop_ids()), s.ids.len()),
            };
            let room = context.saturating_sub(len);
            let ids = chat::encode_append_within(tokenizer, template, behind, &messages, options, room)?;
            check_ids(&ids, vocabulary)?;
            t.reserve(ids.len())?;
            if let Some(stripped) = stripped {
                stripped.put(t);
                add(&model.engine().counters().prefix_breaks, 1);
            }
            t.append(&ids, Source::Host, vocabulary, context)?;
            for token in &mut t.tokens[len..] {
                if tokenizer.is_added(token.id) {
                    token.source = Source::Glue;
                }
            }
            let last = messages.as_list().and_then(|list| list.last()?.get("role")?.as_str());
            let begun = options.add_generation_prompt || (options.continue_final_message && last == Some("assistant"));
            t.turn_begun_at = begun.then_some(t.len());
            if let Some(tools) = tools {
                t.tools = (tools, len);
            }
            memory::copied(&t.tokens[len..], "the tokens of messages")
        })?;
        model.tell_of(&messages, options);
        Ok(added)
    }

    /// [`Session::append_chat`] of one message that has a role and a text.
    pub fn append_message(&self, role: &str, content: &str, options: &RenderOptions) -> Result<Vec<Token>> {
        // It is copied once for each of the messages' forms.
        memory::room_for(content.len().saturating_mul(3), "the text of a message")?;
        let message = Json::Object(vec![("role".into(), role.into()), ("content".into(), content.into())]);
        self.append_chat(Json::List(vec![message]), options)
    }
}

/// A timeline without the thoughts of its turns.
struct Stripped {
    tokens: Vec<Token>,
    ids: Vec<i32>,
    turn_begun_at: Option<usize>,
    /// where the first thought began
    from: usize,
}

impl Stripped {
    /// None where there is no thought. Errors: those of [`thoughts`], of [`generation_prompt`], and `OutOfHostMemory`.
    fn of(model: &ServedModel, t: &Timeline, options: &RenderOptions) -> Result<Option<Stripped>> {
        let tokenizer = model.tokenizer()?;
        let prompt = || generation_prompt(tokenizer, model.template()?, options);
        let cuts = thoughts(tokenizer, prompt, &t.ids, |id| model.ends_turn(id))?;
        let Some(from) = cuts.first().map(|cut| cut.start) else { return Ok(None) };
        let before = |at: usize| cuts.iter().map(|cut| at.min(cut.end) - at.min(cut.start)).sum::<usize>();
        Ok(Some(Stripped {
            tokens: kept(&t.tokens, &cuts)?,
            ids: kept(&t.ids, &cuts)?,
            turn_begun_at: t.turn_begun_at.map(|at| at - before(at)),
            from,
        }))
    }

    /// Puts it into the place of the timeline that it was made of, which has the room.
    fn put(self, t: &mut Timeline) {
        let (tools, at) = t.tools.clone();
        t.truncate(self.from);
        t.tools = (tools, at.min(self.from));
        self.tokens[self.from..].iter().for_each(|&token| t.push(token));
        t.turn_begun_at = self.turn_begun_at;
    }
}

/// What lies between the cuts.
fn kept<T: Clone>(items: &[T], cuts: &[Range<usize>]) -> Result<Vec<T>> {
    let mut kept = memory::reserved(items.len(), "a timeline without thoughts")?;
    let mut at = 0;
    for cut in cuts {
        kept.extend_from_slice(&items[at..cut.start]);
        at = cut.end;
    }
    kept.extend_from_slice(&items[at..]);
    Ok(kept)
}
