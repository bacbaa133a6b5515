//! What may stop a long piece of work on text: a flag of the caller's, and a time at which it has taken too long.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Fault, Result};

/// How long one request may take, all its renderings together. It is the last resort: what a template does is counted,
/// and what it may do takes a second or two, so that on a machine of any speed only a defect here comes to this.
const LONGEST: Duration = Duration::from_secs(30);

/// A flag and a deadline. The default has neither.
#[derive(Clone, Default)]
pub struct Watch {
    cancelled: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
    until: Option<Instant>,
}

impl Watch {
    /// Stops when `cancelled` says so; it is asked every millisecond or so, by the thread that works.
    pub fn on(cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Watch {
        Watch { cancelled: Some(Arc::new(cancelled)), until: None }
    }

    /// The same with a deadline from now on, unless it has one.
    pub(super) fn begun(&self) -> Watch {
        Watch { until: self.until.or_else(|| Instant::now().checked_add(LONGEST)), ..self.clone() }
    }

    /// One whose deadline has passed.
    #[cfg(test)]
    pub(super) fn over() -> Watch {
        Watch { cancelled: None, until: Some(Instant::now()) }
    }

    /// Whether to go on. Errors: `Cancelled`; `TemplateFailed` past the deadline.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.as_ref().is_some_and(|cancelled| cancelled()) {
            return Err(Error::new(Fault::Cancelled, "the call was cancelled"));
        }
        if self.until.is_some_and(|until| Instant::now() >= until) {
            let seconds = LONGEST.as_secs();
            return Err(Error::new(Fault::TemplateFailed, format!("the request took more than {seconds} seconds")));
        }
        Ok(())
    }

    /// What came of asking a template about itself: one that fails has no answer, but what stopped it is no answer either.
    pub(super) fn answer<T>(&self, asked: Result<T>) -> Result<Option<T>> {
        match asked {
            Ok(answer) => Ok(Some(answer)),
            Err(e) if matches!(e.fault(), Fault::Cancelled | Fault::OutOfHostMemory) => Err(e),
            Err(_) => self.check().map(|()| None),
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch(cancel: {}, until: {:?})", self.cancelled.is_some(), self.until)
    }
}
