//! Several continuations of one prompt, which is computed once.
#![forbid(unsafe_code)]

use super::cancel::Cancel;
use super::generation::Generation;
use super::generation_options::GenerationOptions;
use super::session::{Counted, Session};
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::random::{Stream, bits};

/// One of several continuations: a session of its own, and what is said on it. The session may be kept or dropped.
pub struct Continuation {
    /// The fork that it stands on.
    pub session: Session,
    /// What is sampled behind the prompt.
    pub generation: Generation,
}

impl Session {
    /// Starts `n` generations on `n` forks of this session, which share its pages: what is pending is computed first, once, and
    /// waited for. The first draws by the seed of `options`, the i-th by one derived from it and i. The session itself stays as it is
    /// and may go on.
    ///
    /// Errors: `BadOption` where n is 0; `SessionBudget` where there is no room for n more sessions; those of
    /// [`Session::generate`] and of [`Session::prefill`]. None is started then.
    pub fn continuations(&self, n: usize, options: &GenerationOptions, cancel: &Cancel) -> Result<Vec<Continuation>> {
        if n == 0 {
            return Err(Error::new(Fault::BadOption, "n: wanted at least 1, found 0"));
        }
        self.check_generates(options)?;
        let counted = Counted::several(self.model.engine(), n)?;
        let mut all = memory::reserved(n, "the continuations of a session")?;
        self.prefill_first(options.priority, &cancel.or(&options.stopping()), &mut |_, _| true)?;
        for (i, counted) in counted.into_iter().enumerate() {
            let session = self.fork_counted(counted)?;
            let generation =
                session.generate(GenerationOptions { seed: seed_of(options.seed, i), ..options.clone() })?;
            all.push(Continuation { session, generation });
        }
        Ok(all)
    }
}

/// The seed of the i-th continuation; that of the first is the given one.
fn seed_of(seed: u64, i: usize) -> u64 {
    if i == 0 { seed } else { bits(Stream::Continuation, &[seed, i as u64]) }
}
