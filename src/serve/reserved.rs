//! What an update holds of the host budget: it and the weights of the engine's models draw on one account.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::engine::Engine;
use crate::error::Result;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Bytes of an engine's host budget, given back when it goes.
pub struct Reserved {
    engine: Engine,
    bytes: u64,
    /// bytes of weights and of whatever is reserved, these included
    total: Arc<AtomicU64>,
}

impl Reserved {
    /// Nothing yet.
    pub fn of(engine: &Engine) -> Reserved {
        Reserved { engine: engine.clone(), bytes: 0, total: engine.host_bytes().clone() }
    }

    /// How many bytes it may have at most; None: no limit.
    pub fn most(&self) -> Option<u64> {
        let budget = self.engine.options().host_budget;
        let others = self.total.load(Ordering::Relaxed).saturating_sub(self.bytes);
        (budget > 0).then(|| budget.saturating_sub(others))
    }

    /// Has so many bytes from now on. Errors: `HostBudget`; it keeps what it had then.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        let (had, budget) = (self.bytes, self.engine.options().host_budget);
        let next = |total: u64| total.checked_sub(had)?.checked_add(bytes).filter(|&all| budget == 0 || all <= budget);
        match self.total.try_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(_) => self.bytes = bytes,
            Err(total) => return Err(self.engine.beyond_budget("an update needs", bytes, total.saturating_sub(had))),
        }
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
