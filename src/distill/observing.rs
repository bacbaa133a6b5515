//! What the host shows before a turn: to both actors the same, or to the teacher something else.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::conversation::Conversation;
use super::episode::{Episode, Phase, Seen, State, out_of_order};
use super::spec::{Observation, observation};
use crate::error::Result;
use crate::text::source::Source;
use crate::text::{History, Json, RenderOptions, Watch};

impl Episode {
    /// Shows messages (a list of `{role, content}`) to the actors, rendered with the episode's options. Computes nothing.
    /// Returns the tokens added to the student's timeline.
    pub fn observe(&self, messages: impl Into<Json>) -> Result<usize> {
        let messages = messages.into();
        self.observe_messages(
            |prompt, _| Ok(Observation { messages, teacher_messages: None, prompt: prompt.clone() }),
            None,
        )
    }

    /// The same with a document as [`observation`] reads it: messages, what the teacher is shown in their place, and what this
    /// turn is rendered with besides.
    pub fn observe_json(&self, text: &str) -> Result<usize> {
        self.observe_watched(text, &Watch::default())
    }

    /// The same until `watch` stops it: `Cancelled`, and the episode is as it was.
    pub fn observe_watched(&self, text: &str, watch: &Watch) -> Result<usize> {
        self.observe_messages(
            |prompt, state| observation(text, prompt, state.student()?.model().template().ok()),
            Some(watch),
        )
    }

    fn observe_messages(
        &self,
        read: impl FnOnce(&Arc<RenderOptions>, &State) -> Result<Observation>,
        watch: Option<&Watch>,
    ) -> Result<usize> {
        let mut state = self.state.lock();
        check_may_observe(&mut state)?;
        let Observation { messages, teacher_messages, prompt } = read(state.prompt(), &state)?;
        // The watch is this call's; what else the turn is rendered with is not stopped by it.
        let watched = RenderOptions {
            watch: watch.unwrap_or(&prompt.watch).clone(),
            // Whatever the model's own is: the record is of the very tokens.
            history: Some(History::Keep),
            ..RenderOptions::clone(&prompt)
        };
        let student = state.student()?;
        let theirs = state.shown.messages(student, &messages, teacher_messages.as_ref(), &watched)?;
        let told = state.conversation.is_some().then(|| teacher_messages.unwrap_or_else(|| messages.clone()));
        let added = student.append_chat(messages, &watched)?;
        let ids: Vec<i32> = added.iter().map(|token| token.id).collect();
        state.shown.told(&theirs);
        if let (Some(conversation), Some(told)) = (&mut state.conversation, told) {
            conversation.show(told);
        }
        observed(&mut state, prompt, (&ids, theirs), false)
    }

    /// Shows ids, for hosts that render for themselves. Ids that begin the actor's turn, as a rendering with
    /// `add_generation_prompt` does, begin it: no generation prompt is added then.
    pub fn observe_ids(&self, ids: &[i32]) -> Result<usize> {
        self.observe_rendered(ids, None)
    }

    /// The same where the teacher is to read other ids. Both begin the actor's turn, with the same ids, or neither.
    pub fn observe_ids_as(&self, ids: &[i32], teacher_ids: &[i32]) -> Result<usize> {
        self.observe_rendered(ids, Some(teacher_ids))
    }

    fn observe_rendered(&self, ids: &[i32], teacher_ids: Option<&[i32]>) -> Result<usize> {
        if !self.heading().evaluation {
            self.distiller.check_shared(ids)?;
        }
        let mut state = self.state.lock();
        check_may_observe(&mut state)?;
        let student = state.student()?;
        let theirs = state.shown.ids(student, ids.len(), teacher_ids)?;
        student.append(ids, Source::Host)?;
        let prompt = state.prompt().clone();
        if let Some(conversation) = &mut state.conversation {
            conversation.break_off();
        }
        observed(&mut state, prompt, (ids, theirs), true)
    }
}

fn check_may_observe(state: &mut State) -> Result<()> {
    match state.phase_or_last() {
        Phase::Open | Phase::Observed => Ok(()),
        phase => Err(out_of_order("observe", phase)),
    }
}

/// Notes what the student's timeline ends with since, and what the teacher got in its place.
fn observed(
    state: &mut State,
    prompt: Arc<RenderOptions>,
    (ids, theirs): (&[i32], Option<Vec<i32>>),
    by_ids: bool,
) -> Result<usize> {
    let (end, turn) = (state.student()?.mark()?, state.turn as usize);
    state.shown.show(end.len, ids, theirs);
    state.seen.truncate(turn);
    let n_messages = state.conversation.as_ref().and_then(Conversation::len);
    state.seen.push(Seen { end, prompt, by_ids, n_messages, shown: state.shown.clone() });
    state.phase = Phase::Observed;
    Ok(ids.len())
}
