//! A sign of life on stderr while something takes longer than a second, and a bar of work that is counted; nothing where stderr is
//! no terminal.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a wait may be before it is shown.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// A wait that is shown until it is dropped.
pub struct Waiting {
    ended: Option<Sender<()>>,
    painter: Option<JoinHandle<()>>,
}

impl Waiting {
    /// Begins to wait for `what`.
    pub fn begin(what: impl Into<String>) -> Waiting {
        if !stderr().is_terminal() {
            return Waiting { ended: None, painter: None };
        }
        let (ended, end) = channel();
        let what = what.into();
        // Where no thread can be had, the wait goes unseen.
        let painter = std::thread::Builder::new().spawn(move || paint(&what, &end)).ok();
        Waiting { ended: Some(ended), painter }
    }
}

fn paint(what: &str, end: &Receiver<()>) {
    let waits = |time| end.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    if !waits(PATIENCE) {
        return;
    }
    let style =
        ProgressStyle::with_template("{spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style).with_message(what.to_string()).with_elapsed(PATIENCE);
    bar.tick();
    while waits(TICK) {
        bar.tick();
    }
    bar.finish_and_clear();
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.ended = None;
        if let Some(painter) = self.painter.take() {
            // It only paints; whatever happened to it is no concern of the work.
            let _ = painter.join();
        }
    }
}

/// Work that is counted, shown until it is dropped.
pub struct Counting(ProgressBar);

impl Counting {
    /// Begins with none of `all` done.
    pub fn begin(all: u64, what: &str) -> Counting {
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} {elapsed}");
        let bar = ProgressBar::with_draw_target(Some(all), target);
        Counting(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_prefix(what.to_string()))
    }

    /// So many are done.
    pub fn done(&self, n: u64) {
        self.0.set_position(n);
    }

    /// What stands behind the bar.
    pub fn note(&self, what: String) {
        self.0.set_message(what);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
