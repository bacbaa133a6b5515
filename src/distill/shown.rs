//! What an episode's teacher is shown: what the student is shown, or what the host gives it instead (a privileged view: a skill, a
//! clean request, the answer).
//!
//! Once the two timelines differ, messages and generation prompts are rendered for each by itself, since a template writes by what
//! stands before. Actions are ids that both get. The teacher's side is always rendered first: what is refused changes neither.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::distiller::Distiller;
use super::view::View;
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::serve::{GenerationOptions, Session, Token, after, turn_opening};
use crate::text::source::Source;
use crate::text::{After, Json, RenderOptions, encode_append_within};

/// Where a teacher's view stands.
#[derive(Clone, Default)]
pub(super) struct Shown {
    pub(super) view: View,
    /// None: nobody reads it
    reader: Option<Reader>,
    /// messages that stand before the first observation's, until that comes
    prefix: Option<Arc<Vec<Json>>>,
    /// where the assistant's turn began, in the teacher's timeline, that no message has followed
    turn_begun_at: Option<usize>,
}

/// Who reads it.
#[derive(Clone, Copy)]
struct Reader {
    /// tokens that its context holds; None: the host's teacher, which says so itself
    context: Option<usize>,
    /// ids that it shares with the student
    vocabulary: usize,
}

impl Shown {
    /// Nothing yet. An evaluation has no teacher. Errors: `NoTemplate` where a prefix cannot be rendered.
    pub(super) fn new(distiller: &Distiller, evaluation: bool, prefix: Option<Vec<Json>>) -> Result<Shown> {
        if distiller.any_teacher().is_none() || evaluation {
            return Ok(Shown::default());
        }
        let prefix = prefix.filter(|messages| !messages.is_empty()).map(Arc::new);
        if prefix.is_some() {
            distiller.student().template().map_err(|e| e.within("teacher_prefix"))?;
        }
        let context = distiller.teacher().map(|teacher| teacher.model().max_context());
        let reader = Some(Reader { context, vocabulary: distiller.vocabulary() });
        Ok(Shown { reader, prefix, ..Shown::default() })
    }

    /// Whether the teacher reads what the student reads, and will if nothing else is said.
    pub(super) fn is_the_students(&self) -> bool {
        self.view.is_the_students() && self.prefix.is_none()
    }

    /// The teacher's timeline where the student's is `students`.
    pub(super) fn tokens(&self, students: &[Token]) -> Result<Vec<Token>> {
        self.view.woven(students, |id| Token::given(id, Source::Host))
    }

    /// Tokens that its timeline still has room for, where it holds `len`; None where that is not known.
    fn room(&self, len: usize) -> Option<usize> {
        self.reader.and_then(|reader| reader.context).map(|context| context.saturating_sub(len))
    }

    /// Gives a teacher's timeline what it is shown of the student's and has not.
    pub(super) fn catch_up(&self, teacher: &Session, student: &Session) -> Result<()> {
        let tokens = self.tokens(&student.tokens()?)?;
        teacher.append_tokens(&tokens[teacher.len()?.min(tokens.len())..])
    }

    /// Keeps what an actor says within the context of the other, which may have less room left. The turn starts at `start` of the
    /// student's timeline.
    pub(super) fn fit_both(
        &self,
        student: &Session,
        (actor, teacher_acts): (&Session, bool),
        start: usize,
        options: &mut GenerationOptions,
    ) -> Result<()> {
        let len = actor.len()?;
        let (why, room) = if teacher_acts {
            let (context, len) = (student.model().model().max_context(), len - self.view.position(start) + start);
            let may_be_less = context != actor.model().model().max_context() || !self.is_the_students();
            let why = format!("the episode has {len} tokens and the student's context holds no more");
            (why, may_be_less.then_some(context.saturating_sub(len)))
        } else {
            let len = self.view.position(len);
            let why = format!("the teacher reads {len} tokens and its context holds no more; show it less");
            // What the student reads fits into every teacher's context.
            (why, self.room(len).filter(|_| !self.is_the_students()))
        };
        match room {
            None => {}
            Some(0) => return Err(Error::new(Fault::ContextFull, why)),
            Some(room) if options.max_tokens == 0 => options.max_tokens = room,
            Some(room) => options.max_tokens = options.max_tokens.min(room),
        }
        Ok(())
    }

    /// What the teacher gets of an observation by messages, its `own` in the place of the student's; None: what the student
    /// gets.
    pub(super) fn messages(
        &self,
        student: &Session,
        students: &Json,
        own: Option<&Json>,
        prompt: &RenderOptions,
    ) -> Result<Option<Vec<i32>>> {
        if self.reader.is_none() || (self.is_the_students() && own.is_none()) {
            return Ok(None);
        }
        let what = if own.is_some() { "teacher_messages" } else { "what the teacher is shown" };
        let mut messages = own.unwrap_or(students).clone();
        if let (Json::List(list), Some(prefix)) = (&mut messages, &self.prefix) {
            list.splice(0..0, prefix.iter().cloned());
        }
        // An empty list of its own is nothing, not even the end of a turn.
        if own.is_some() && messages.as_list().is_some_and(<[Json]>::is_empty) {
            return Ok(Some(Vec::new()));
        }
        self.rendered(student, messages, prompt).map(Some).map_err(|e| e.within(what))
    }

    /// What the teacher gets of an observation by ids; None: what the student gets. Errors: `BadValue` before a prefix, which is
    /// messages; `IdOutOfRange`; `ContextFull`.
    pub(super) fn ids(&self, student: &Session, n: usize, own: Option<&[i32]>) -> Result<Option<Vec<i32>>> {
        let Some(reader) = self.reader else { return Ok(None) };
        if self.prefix.is_some() {
            let why = "teacher_prefix: it stands before messages, and ids were observed first; give the teacher its own ids \
                       (squire_episode_observe_view_ids) and leave the prefix out";
            return Err(Error::new(Fault::BadValue, why));
        }
        if self.is_the_students() && own.is_none() {
            return Ok(None);
        }
        let ids = own.unwrap_or(&[]);
        if let Some(i) = ids.iter().position(|&id| id < 0 || id as usize >= reader.vocabulary) {
            let why = format!(
                "teacher_ids: id {} at {i}: wanted one of the {} that student and teacher share",
                ids[i], reader.vocabulary
            );
            return Err(Error::new(Fault::IdOutOfRange, why));
        }
        self.check_room(student.len()?, own.map_or(n, <[i32]>::len))?;
        Ok(own.map(<[i32]>::to_vec))
    }

    /// Refuses `added` tokens that the teacher has no room for, where the student's timeline holds `len`.
    pub(super) fn check_room(&self, len: usize, added: usize) -> Result<()> {
        let len = self.view.position(len);
        match self.room(len) {
            Some(room) if added > room => {
                let why = format!(
                    "the teacher reads {len} tokens and is to get {added} more, its context has room for {room}; show the teacher \
                     less"
                );
                Err(Error::new(Fault::ContextFull, why))
            }
            _ => Ok(()),
        }
    }

    /// The teacher's generation prompt; None: the student's.
    pub(super) fn prompt(&self, student: &Session, prompt: &RenderOptions) -> Result<Option<Vec<i32>>> {
        if self.reader.is_none() || self.is_the_students() {
            return Ok(None);
        }
        self.rendered(student, Json::List(Vec::new()), prompt)
            .map(Some)
            .map_err(|e| e.within("the teacher's generation prompt"))
    }

    fn rendered(&self, student: &Session, messages: Json, prompt: &RenderOptions) -> Result<Vec<i32>> {
        let model = student.model();
        let theirs = self.tokens(&student.tokens()?)?;
        let mut ids = memory::reserved(theirs.len(), "the teacher's view")?;
        ids.extend(theirs.iter().map(|token| token.id));
        let after = match after(&theirs, &ids, self.turn_begun_at, model.stop_ids()) {
            // A teacher that was shown nothing has no conversation that could begin: the prompt stands alone.
            After::Nothing if messages.as_list().is_some_and(<[Json]>::is_empty) => After::Messages,
            after => after,
        };
        let room = self.room(theirs.len()).unwrap_or(usize::MAX);
        encode_append_within(model.tokenizer()?, model.template()?, after, messages, prompt, room)
    }

    /// Notes that messages came: for the teacher too, unless it was shown none of them.
    pub(super) fn told(&mut self, theirs: &Option<Vec<i32>>) {
        if theirs.as_ref().is_none_or(|theirs| !theirs.is_empty()) {
            self.turn_begun_at = None;
        }
        self.prefix = None;
    }

    /// Notes what the teacher got in place of the ids with which the student's timeline of `len` tokens ends.
    pub(super) fn show(&mut self, len: usize, students: &[i32], theirs: Option<Vec<i32>>) {
        if let Some(theirs) = theirs {
            self.view.replace(len - students.len()..len, students, theirs);
        }
    }

    /// Notes that the actor's turn begins, where the student's timeline holds `len` tokens.
    pub(super) fn begin_turn(&mut self, len: usize) {
        self.turn_begun_at = Some(self.view.position(len));
    }

    /// Refuses an actor's turn that ids of the host begin for one of the two alone, or for each with other ids: what is said then
    /// would not follow the same beginning. `from`: where the student's last turn ended. Without a template nobody knows what
    /// begins a turn, but something must stand before it.
    pub(super) fn check_opening(
        &self,
        student: &Session,
        (from, by_ids): (usize, bool),
        prompt: &RenderOptions,
    ) -> Result<()> {
        if self.reader.is_none() || self.is_the_students() {
            return Ok(());
        }
        let refused = |fault, why: &str| Err(Error::new(fault, why));
        let (model, students) = (student.model(), student.tokens()?);
        let theirs = self.tokens(&students)?;
        if model.template().is_err() {
            return match theirs.is_empty() {
                true => Err(shown_nothing()),
                false => Ok(()),
            };
        }
        if !by_ids {
            return Ok(());
        }
        let opening = |tokens: &[Token], from: usize| {
            let ids: Vec<i32> = tokens.iter().map(|token| token.id).collect();
            let at = turn_opening(model, &ids, from, prompt)?;
            Ok(at.map(|at| ids[at..].to_vec()))
        };
        // Behind the last action, whatever the teacher was shown there.
        let their_from = from.checked_sub(1).map_or(0, |last| self.view.position(last) + 1);
        match (opening(&students, from)?, opening(&theirs, their_from)?) {
            (Some(own), Some(theirs)) if own != theirs => refused(
                Fault::BadValue,
                "the ids for the teacher begin the actor's turn otherwise than the student's do; end both with the same \
                 generation prompt, an empty thought included",
            ),
            (Some(_), None) => refused(
                Fault::BadValue,
                "the student's ids begin the actor's turn and the teacher's do not; end both with the generation prompt, or \
                 neither",
            ),
            (None, Some(_)) => refused(
                Fault::BadValue,
                "the teacher's ids begin the actor's turn and the student's do not; end both with the generation prompt, or \
                 neither",
            ),
            _ => Ok(()),
        }
    }
}

/// The refusal of an action that would stand first in the teacher's timeline.
pub(super) fn shown_nothing() -> Error {
    Error::new(Fault::BadLength, "the teacher was shown nothing: an action needs at least one token before it")
}
