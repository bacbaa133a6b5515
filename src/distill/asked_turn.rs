//! A turn of the host's teacher between the episode that asked for it and the generation that pulls it.
#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::time::Instant;

use super::teacher_queue::TeacherQueue;
use super::teacher_request::Asker;
use super::teacher_turn::{Place, Told, TurnWanted};
use crate::error::{Error, Fault, Result};
use crate::serve::{Cancel, Feed, Speaker, Token};

/// A turn that was asked for; dropped or cancelled, it is withdrawn.
pub(super) struct AskedTurn {
    queue: TeacherQueue,
    number: u64,
    /// when somebody first pulled
    pulled: OnceLock<Instant>,
    cancel: Cancel,
    /// when its time is up
    until: Option<Instant>,
    told: Told,
}

impl AskedTurn {
    /// Asks for the turn that follows `ids`, of the student's vocabulary of so many. Errors: `TeacherClosed`.
    pub(super) fn new(
        queue: &TeacherQueue,
        asker: Asker,
        (ids, vocabulary): (Vec<i32>, usize),
        (turn, place): (TurnWanted, Place),
        cancel: Cancel,
    ) -> Result<AskedTurn> {
        let until = turn.until;
        let (number, told) = queue.ask_turn(asker, (ids, vocabulary), (turn, place))?;
        Ok(AskedTurn { queue: queue.clone(), number, pulled: OnceLock::new(), cancel, until, told })
    }

    /// What stops it.
    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Where it is put.
    pub(super) fn feed(&self) -> &Feed {
        &self.told.feed
    }

    /// What was said; nothing where it was cancelled or failed. `SessionBusy` while it is still to come.
    pub(super) fn said(&self) -> Result<Vec<Token>> {
        let busy = "the teacher is asked for its turn; wait for the generation to end, or cancel it";
        self.told.feed.said().ok_or_else(|| Error::new(Fault::SessionBusy, busy))
    }

    /// Whether its ids were made of a text.
    pub(super) fn is_from_text(&self) -> bool {
        self.told.is_from_text()
    }
}

impl Speaker for AskedTurn {
    fn look(&self) {
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        match self.cancel.is_set() {
            true => self.queue.withdraw(self.number),
            false if is_late => self.queue.time_is_up(self.number),
            false => self.queue.look(self.number, *self.pulled.get_or_init(Instant::now)),
        }
    }

    fn let_go(&self) {
        self.queue.withdraw(self.number);
        self.told.feed.unsay();
    }
}

impl Drop for AskedTurn {
    fn drop(&mut self) {
        self.queue.withdraw(self.number);
    }
}
