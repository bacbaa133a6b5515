//! How the program speaks: results to stdout, failures to stderr with an exit code, and no panic where a
//! reader has gone away.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use serde_json::Value;
use squire::error::{Error, Status};

/// Why the program stops before its end.
pub enum Failure {
    /// It was called wrongly.
    Usage(String),
    /// Something else went wrong.
    Failed(String),
    /// Help or the version was asked for.
    Asked(String),
    /// Nobody reads stdout any more, which is no failure (`squire generate ... | head`).
    Closed,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        match e.status() {
            Status::Argument => Failure::Usage(e.to_string()),
            _ => Failure::Failed(e.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        match e.kind() {
            ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Failed(format!("cannot write to stdout: {e}")),
        }
    }
}

/// Says on stderr what went wrong, and gives the exit code.
pub fn exit(done: Result<(), Failure>) -> ExitCode {
    let (why, code) = match done {
        Ok(()) | Err(Failure::Closed) => return ExitCode::SUCCESS,
        Err(Failure::Asked(text)) => return exit(Output::new().text(&text)),
        Err(Failure::Failed(why)) => (why, ExitCode::FAILURE),
        Err(Failure::Usage(why)) => (why, ExitCode::from(2)),
    };
    // Where stderr is closed too, the exit code alone has to say it.
    let _ = writeln!(io::stderr(), "squire: {why}");
    code
}

/// Stdout.
pub struct Output(io::Stdout);

impl Output {
    pub fn new() -> Output {
        Output(io::stdout())
    }

    /// Text as it is, at once.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.0.write_all(text.as_bytes())?;
        Ok(self.0.flush()?)
    }

    /// One JSON object on a line.
    pub fn json(&mut self, value: &Value) -> Result<(), Failure> {
        self.text(&format!("{value}\n"))
    }

    /// Rows of cells under each other: the first column to the left, the last as it is, the others to the
    /// right, indented by two.
    pub fn table(&mut self, rows: &[Vec<String>]) -> Result<(), Failure> {
        let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..n_columns).map(width).collect();
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let width = widths[c];
                line.push_str("  ");
                line.push_str(&match c {
                    0 => format!("{cell:width$}"),
                    _ if c + 1 == n_columns => cell.clone(),
                    _ => format!("{cell:>width$}"),
                });
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        self.text(&text)
    }

    /// A heading and facts, a name and a value each.
    pub fn facts(&mut self, heading: &str, facts: &[(&str, String)]) -> Result<(), Failure> {
        self.text(&format!("{heading}\n"))?;
        self.table(&facts.iter().map(|(name, value)| vec![name.to_string(), value.clone()]).collect::<Vec<_>>())
    }
}

/// A count of bytes with its size in decimal units.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A value, or a word for its absence.
pub fn or<T: Display>(value: Option<T>, absent: &str) -> String {
    value.map_or_else(|| absent.to_string(), |v| v.to_string())
}
