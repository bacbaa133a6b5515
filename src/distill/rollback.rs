//! Back to weights that were served before, or to those that are served now where a step was applied since.
//!
//! They come back under a new number: a revision's number never means two weights, and staleness counts on numbers. Learning
//! goes on from what is served: the next build makes masters of it, with moments of zero and a bias correction that begins anew,
//! while the run's step, its schedules and its episodes stay as they are.
#![forbid(unsafe_code)]

use std::sync::Weak;

use serde_json::json;

use super::distiller::Distiller;
use super::trained;
use crate::error::{Error, Fault, Result};
use crate::serve::Level;

impl Distiller {
    /// Makes the weights of a kept revision those that new sessions and episodes get, under the next number, which is returned;
    /// the current revision's own number changes nothing that is served. A step that was applied and not published is dropped
    /// either way, and so are masters and moments. Updates that were built before are stale.
    ///
    /// Errors: `UnknownRevision` for one that is not kept; `DistillerBusy` while an update is built, applied or published.
    pub fn rollback(&self, revision: u64) -> Result<u64> {
        let mut learning = self.learning()?;
        let (student, config) = (self.student(), self.config());
        let current = student.current();
        let (kept, numbers) = {
            let state = self.0.state.lock();
            (state.kept.find(revision), state.kept.numbers())
        };
        let (number, replaced) = match kept {
            _ if revision == current.number => (revision, None),
            Some(kept) => {
                trained::check(config, student.config(), &kept)?;
                (student.publish_again(&kept), Some(current))
            }
            None => {
                let list = match numbers.is_empty() {
                    true => "none is: rollback_revisions says how many are".to_string(),
                    false => format!("kept are {}", numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
                };
                let why = format!("revision {revision} is not kept; {list}; the current one is {}", current.number);
                return Err(Error::new(Fault::UnknownRevision, why));
            }
        };
        // The next build, or save, makes a learner of what is served.
        let dropped = (learning.learner.take(), learning.unpublished.take(), learning.begun.take());
        learning.base = Weak::new();
        learning.line += 1;
        let forgotten = self.keep_for_rollback(replaced);
        let step = {
            let mut state = self.0.state.lock();
            state.probe = None;
            state.step
        };
        drop(learning);
        drop((dropped, forgotten));
        let what = match number == revision {
            true => format!("step {step}: what was applied since revision {revision} is dropped"),
            false => format!("step {step}: back to revision {revision}, which is served again as revision {number}"),
        };
        self.log(Level::Info, &what);
        self.note("rolled_back", || json!({"step": step, "revision": number}));
        Ok(number)
    }
}
