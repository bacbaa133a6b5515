//! Where an engine's few log lines go: to a function of the host's, never to a stream of the process.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

/// How much a line matters. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// Something failed that the host will notice.
    Error = 0,
    /// Something is not as it should be, and the work goes on.
    Warning = 1,
    /// A landmark: a model loaded, a revision published.
    Info = 2,
    /// What helps to find a fault.
    Debug = 3,
    /// Everything.
    Trace = 4,
}

/// Takes a log line: level, the part of squire that speaks, message.
pub type Sink = dyn Fn(Level, &str, &str) + Send + Sync;

/// A sink of log lines, called from any thread, with no lock held that a caller could wait for.
#[derive(Clone)]
pub struct Log(pub Arc<Sink>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}
