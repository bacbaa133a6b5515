//! Training episodes that are begun and that no update had: a checkpoint names them, so that what was recorded of them after it
//! counts when the run goes on from there.
#![forbid(unsafe_code)]

use super::record::known::{Identity, Known};
use super::trajectory::Heading;

/// Those that the distiller knows of.
#[derive(Debug, Default)]
pub(super) struct Unlearnt {
    /// begun here, and not ended
    open: Known,
    /// of a process before this one, as its checkpoint names them
    before: Known,
    /// in updates that were built and not applied
    built: Known,
}

impl Unlearnt {
    /// As a checkpoint has them.
    pub(super) fn of_checkpoint(before: Known) -> Unlearnt {
        Unlearnt { before, ..Unlearnt::default() }
    }

    /// One is begun. Of an earlier process's under the same identity nothing counts any more.
    pub(super) fn begun(&mut self, heading: &Heading) {
        if !heading.evaluation {
            let identity = identity(heading);
            self.before.remove(&identity);
            self.open.add(identity);
        }
    }

    /// One has ended, or is given up.
    pub(super) fn closed(&mut self, heading: &Heading) {
        // Evaluations are numbered by themselves.
        if !heading.evaluation {
            self.open.remove(&identity(heading));
        }
    }

    /// An update was built from these.
    pub(super) fn built(&mut self, episodes: impl Iterator<Item = Identity>) {
        episodes.for_each(|identity| self.built.add(identity));
    }

    /// An update was applied: what others were built from, for the same step, is learnt by none.
    pub(super) fn applied(&mut self) {
        self.built = Known::default();
    }

    /// One of an earlier process came from its record.
    pub(super) fn taken(&mut self, identity: &Identity) {
        self.before.remove(identity);
    }

    /// Whether an earlier process left it, and nobody has taken it since.
    pub(super) fn was_left(&self, identity: &Identity) -> bool {
        self.before.has(identity)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = Identity> {
        self.open.iter().chain(self.before.iter()).chain(self.built.iter()).copied()
    }
}

/// By what it is told from others of the run.
pub(super) fn identity(heading: &Heading) -> Identity {
    (heading.run, heading.step, heading.episode)
}
