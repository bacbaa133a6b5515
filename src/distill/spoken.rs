//! Ids of what somebody says as text in the assistant's place: tokens that are not special keep their ids (`<think>`), special ones
//! are text, and what the generation prompt has written of it already, such as an empty thought, is left out.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::error::Result;
use crate::serve::ServedModel;
use crate::text::tokenizer::{Control, Room};
use crate::text::{RenderOptions, TextUntilStop, Watch, unsaid};

/// A place in a timeline where an assistant's text is to stand.
pub(super) struct Spoken {
    model: ServedModel,
    prompt: Arc<RenderOptions>,
    /// the timeline before it
    before: Vec<i32>,
}

impl Spoken {
    /// Behind the student's ids so far, the turn's generation prompt included.
    pub(super) fn new(model: &ServedModel, prompt: &Arc<RenderOptions>, before: Vec<i32>) -> Spoken {
        Spoken { model: model.clone(), prompt: prompt.clone(), before }
    }

    /// What makes text of the ids that are said, up to the first of these strings.
    pub(super) fn until(&self, stop_strings: &[String]) -> Result<TextUntilStop> {
        TextUntilStop::new(self.model.shared_tokenizer(), stop_strings)
    }

    /// The ids of a text, with the one by which the template ends a turn where `ends` says so. Errors: `ContextFull` where the text
    /// alone has more than `room`.
    pub(super) fn ids(&self, text: &str, ends: bool, room: usize) -> Result<Vec<i32>> {
        let (model, mut ids) = (&self.model, Vec::new());
        let text = unsaid(model.tokenizer()?, &self.before, text);
        let room = Room { ids: room, watch: &Watch::default() };
        model.tokenizer()?.encode_within(text, Control::NotSpecial, room, &mut ids)?;
        if ends {
            ids.extend(model.end_of_turn(&self.prompt)?);
        }
        Ok(ids)
    }
}
