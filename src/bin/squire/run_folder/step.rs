//! What is known of one step of a run: the episodes that began at it, the update that was built at it, and what became
//! of that.

use super::event::{Applied, Published, Update};

/// Episodes that began at a step, all of training or all of evaluation.
#[derive(Default)]
pub struct Played {
    pub episodes: u64,
    /// those whose host said whether they were a success
    pub judged: u64,
    pub successes: u64,
    /// sum of the returns, and how many there are
    pub returns: (f64, u64),
    /// turns cut off
    pub truncated: f64,
    /// of the last of them
    pub time: f64,
}

impl Played {
    /// Share of successes.
    pub fn success(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.successes as f64 / self.judged as f64)
    }

    /// Mean return.
    pub fn mean_return(&self) -> Option<f64> {
        (self.returns.1 > 0).then(|| self.returns.0 / self.returns.1 as f64)
    }
}

/// One step.
#[derive(Default)]
pub struct Step {
    pub training: Played,
    pub evaluation: Played,
    pub update: Option<Update>,
    /// when the update was built
    pub time: f64,
    pub applied: Option<Applied>,
    pub published: Option<Published>,
    /// why publishing was refused, where it was not published after all
    pub refused: Option<String>,
    /// what failed, and why
    pub failed: Option<(String, String)>,
}

impl Step {
    /// How far the update moved the student, in nats a token.
    pub fn update_kl(&self) -> Option<f64> {
        let applied = self.applied.as_ref().and_then(|applied| applied.update_kl);
        applied.or_else(|| self.update.as_ref()?.report.update_kl)
    }
}
