//! A turn of the host's teacher between the episode that asked for it and the generation that pulls it.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::teacher_queue::TeacherQueue;
use super::teacher_request::Asker;
use super::teacher_turn::{Told, TurnWanted};
use crate::error::{Error, Fault, Result};
use crate::serve::{Cancel, Feed, Speaker, Token};

/// A turn that was asked for; dropped or cancelled, it is withdrawn.
pub(super) struct AskedTurn {
    queue: TeacherQueue,
    number: u64,
    asked: Instant,
    cancel: Cancel,
    told: Told,
}

impl AskedTurn {
    /// Asks for the turn that follows `ids`, of the student's vocabulary of so many. Errors: `TeacherClosed`.
    pub(super) fn new(
        queue: &TeacherQueue,
        asker: Asker,
        ids: Vec<i32>,
        (turn, vocabulary): (TurnWanted, usize),
    ) -> Result<AskedTurn> {
        let (asked, (number, told)) = (Instant::now(), queue.ask_turn(asker, ids, (turn, vocabulary))?);
        Ok(AskedTurn { queue: queue.clone(), number, asked, cancel: Cancel::default(), told })
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
        self.look();
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
        self.queue.look(self.number, self.asked, self.cancel.is_set());
    }
}

impl Drop for AskedTurn {
    fn drop(&mut self) {
        self.queue.look(self.number, self.asked, true);
    }
}
