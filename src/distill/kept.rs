//! Published revisions that are kept to go back to.
//!
//! They are looked at and not bound, so they keep nobody from publishing (`kept_revisions` counts what sessions keep), and
//! count in the engine's host budget as all weights do.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use crate::serve::Revision;

/// The last ones before the current, the oldest first.
#[derive(Default)]
pub(super) struct Kept(VecDeque<Arc<Revision>>);

impl Kept {
    /// Keeps one that was just replaced, of `most` at most. Those that are kept no longer come back, whose memory goes with
    /// them: to be dropped without a lock.
    pub(super) fn push(&mut self, replaced: Arc<Revision>, most: usize) -> Vec<Arc<Revision>> {
        self.0.push_back(replaced);
        let n = self.0.len().saturating_sub(most);
        self.0.drain(..n).collect()
    }

    /// The revision of that number.
    pub(super) fn find(&self, number: u64) -> Option<Arc<Revision>> {
        self.0.iter().find(|revision| revision.number == number).cloned()
    }

    /// Their numbers.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.0.iter().map(|revision| revision.number).collect()
    }
}
