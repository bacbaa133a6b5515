//! A file of JSON lines, one line held at a time and none of any length.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::output::Failure;

/// The longest line that is read: texts of megabytes fit, a file that is no lines at all does not.
const LONGEST: u64 = 64 << 20;

/// Lines of a file, in order.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    /// where the line stands in the file
    at: u64,
    next: u64,
    cut: u64,
}

impl Lines {
    /// Opens a file. `wanted` says what it should have been where there is none.
    pub fn open(path: &Path, wanted: &str) -> Result<Lines, Failure> {
        let failed = |why: String| Failure::Failed(format!("{}: {why}", path.display()));
        let found = path.metadata().map_err(|e| match e.kind() {
            ErrorKind::NotFound => failed(format!("there is no such file; wanted {wanted}")),
            _ => failed(e.to_string()),
        })?;
        // A pipe would be waited for, and a folder opens like a file.
        if !found.is_file() {
            return Err(failed(format!("no regular file; wanted {wanted}")));
        }
        let file = File::open(path).map_err(|e| failed(e.to_string()))?;
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(Lines { path: path.to_path_buf(), reader, line: Vec::new(), number: 0, at: 0, next: 0, cut: 0 })
    }

    /// Goes on to the next line, and says whether there is one. A rest without a line feed was cut off and is none.
    pub fn advance(&mut self) -> Result<bool, Failure> {
        self.line.clear();
        let read = self.reader.by_ref().take(LONGEST + 1).read_until(b'\n', &mut self.line);
        let n = read.map_err(|e| self.refuse(&e.to_string()))? as u64;
        self.number += 1;
        (self.at, self.next) = (self.next, self.next + n);
        if self.line.last() == Some(&b'\n') {
            return Ok(true);
        }
        if n > LONGEST {
            return Err(self.refuse(&format!("wanted a line of at most {LONGEST} bytes, found a longer one")));
        }
        self.cut = n;
        Ok(false)
    }

    /// The line as JSON of one form; keys that the form does not have are skipped.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        // "at line 1 column 7" is of the text that was given, and a line of a file stands at its own number.
        serde_json::from_slice(&self.line).map_err(|e| {
            let why = e.to_string();
            let what = why.rsplit_once(" at line ").map_or(why.as_str(), |(what, _)| what);
            self.refuse(&format!("wanted a JSON object of a run, found at byte {}: {what}", e.column()))
        })
    }

    /// A refusal of the line.
    pub fn refuse(&self, why: &str) -> Failure {
        Failure::Failed(format!("{}, line {}: {why}", self.path.display(), self.number))
    }

    /// Where the line begins in the file.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of a last line that was cut off.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Goes to a line by where it begins.
    pub fn go_to(&mut self, at: u64) -> Result<(), Failure> {
        self.reader.seek(SeekFrom::Start(at)).map_err(|e| self.refuse(&e.to_string()))?;
        self.next = at;
        Ok(())
    }
}
