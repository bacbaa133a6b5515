//! Ctrl-C: it ends the answer that is under way, and the program where none is.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::output::Failure;

/// Listens until the program ends.
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    /// whether the signal does what it does to any program
    idle: Arc<AtomicBool>,
}

impl Interrupt {
    /// Begins to listen.
    pub fn listen() -> Result<Interrupt, Failure> {
        let interrupt = Interrupt { asked: Arc::default(), idle: Arc::new(AtomicBool::new(true)) };
        flag::register_conditional_default(SIGINT, interrupt.idle.clone())
            .and_then(|_| flag::register(SIGINT, interrupt.asked.clone()))
            .map_err(|e| Failure::Failed(format!("cannot listen to Ctrl-C: {e}")))?;
        Ok(interrupt)
    }

    /// Runs `f`, which may ask whether somebody wants it to end.
    pub fn during<T>(&self, f: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
        self.asked.store(false, Ordering::SeqCst);
        self.idle.store(false, Ordering::SeqCst);
        let done = f(&|| self.asked.load(Ordering::SeqCst));
        self.idle.store(true, Ordering::SeqCst);
        done
    }
}
