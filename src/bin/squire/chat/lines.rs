//! Where the lines of a chat come from: an editor with a history where people type, else stdin as it is.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, IsTerminal, Read, Write, stdin, stdout};
use std::path::Path;

use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use crate::output::{Failure, Output};

const PROMPT: &str = "> ";
/// Lines that are remembered.
const REMEMBERED: usize = 1000;
/// Bytes of a history file that are read.
const MOST: u64 = 1 << 24;

/// The lines, one after the other.
pub enum Lines {
    Edited {
        editor: Box<DefaultEditor>,
        /// where they are remembered beyond the chat
        history: Option<File>,
    },
    /// as they come, each asked for or not
    Plain { asks: bool },
}

impl Lines {
    /// Those of somebody who types, where stdin and stdout are a terminal. `history` is read, and what is typed is added to it.
    pub fn of(json: bool, history: Option<&Path>) -> Result<Lines, Failure> {
        let typed = stdin().is_terminal() && !json;
        if !typed || !stdout().is_terminal() {
            return Ok(Lines::Plain { asks: typed });
        }
        let cannot = |e: ReadlineError| Failure::Failed(format!("cannot read from the terminal: {e}"));
        let config = Config::builder().max_history_size(REMEMBERED).map_err(cannot)?.auto_add_history(true).build();
        let mut editor = Box::new(DefaultEditor::with_config(config).map_err(cannot)?);
        let history = history.map(|path| remember(path, &mut editor)).transpose()?;
        Ok(Lines::Edited { editor, history })
    }

    /// The next line without its end; None where no more will come.
    pub fn next(&mut self, out: &mut Output) -> Result<Option<String>, Failure> {
        match self {
            Lines::Edited { editor, history } => match editor.readline(PROMPT) {
                Ok(line) => {
                    if let Some(file) = history {
                        let written = writeln!(file, "{}", line.replace(['\n', '\r'], " "));
                        written.map_err(|e| Failure::Failed(format!("cannot write the history: {e}")))?;
                    }
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(e) => Err(Failure::Failed(format!("cannot read from the terminal: {e}"))),
            },
            Lines::Plain { asks } => {
                if *asks {
                    out.text(PROMPT)?;
                }
                let mut line = String::new();
                let read = stdin().lock().read_line(&mut line);
                read.map_err(|e| Failure::Failed(format!("cannot read a message from stdin: {e}")))?;
                Ok((!line.is_empty()).then(|| line.trim_end_matches(['\n', '\r']).to_string()))
            }
        }
    }

    /// Whether somebody types them.
    pub fn are_typed(&self) -> bool {
        matches!(self, Lines::Edited { .. } | Lines::Plain { asks: true })
    }
}

/// Tells the editor what a file remembers, and opens it for what is typed; a new one is its owner's alone.
fn remember(path: &Path, editor: &mut DefaultEditor) -> Result<File, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("--history {}: {e}", path.display()));
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|e| failed(&e))?;
    let facts = file.metadata().map_err(|e| failed(&e))?;
    if !facts.is_file() || facts.len() > MOST {
        let why = format!("wanted a regular file of at most {MOST} bytes, found {} bytes", facts.len());
        return Err(failed(&why));
    }
    let mut bytes = Vec::new();
    (&file).take(MOST).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    for line in String::from_utf8_lossy(&bytes).lines() {
        editor.add_history_entry(line).map_err(|e| failed(&e))?;
    }
    Ok(file)
}
