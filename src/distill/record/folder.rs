//! The two files of a run's folder, as their one writer has them: lines are appended whole, and what a kill or a full disk has
//! left of a line is cut off.
#![forbid(unsafe_code)]

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::line::{Any, VERSION};
use super::options::RecordOptions;
use super::reader::RECORD;
use crate::distill::run_id::RunId;
use crate::error::{Error, Fault, Result};
use crate::format::check_regular;
use crate::format::durable::sync_folder;

/// The name of the file of events.
pub const METRICS: &str = "metrics.jsonl";
/// The longest first line that is read, in bytes: it has the settings of a run.
const LONGEST_FIRST_LINE: u64 = 1 << 20;

/// A run's folder, locked while it is written.
pub(in crate::distill) struct RunFolder {
    pub(super) path: PathBuf,
    pub(super) record: Appended,
    pub(super) metrics: Appended,
    pub(super) options: RecordOptions,
    /// of the settings
    pub(super) fingerprint: String,
    /// episodes that were written
    pub(super) episodes: u64,
    /// why the last line of the metrics could not be written
    pub(super) failed: Option<String>,
}

impl RunFolder {
    /// Opens or makes the folder for `run`; says what was cut off of lines that somebody did not finish.
    ///
    /// Errors: `CannotWrite`, `CannotRead`; `RecordInUse` where somebody else writes into it; `RecordMismatch` where it holds
    /// another run; `RecordForm`, `RecordVersion` where what lies there is none, or is of a later form.
    pub(super) fn open(
        path: &Path,
        run: RunId,
        (options, fingerprint): (RecordOptions, String),
    ) -> Result<(RunFolder, Vec<String>)> {
        fs::create_dir_all(path).map_err(|e| failed(path, e))?;
        let mut record = Appended::open(&path.join(RECORD))?;
        // The one lock holds for both.
        match record.file.try_lock() {
            // Where the file system has no locks nobody can be told apart.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                let why = format!("{}: another distiller writes into this folder; choose another", path.display());
                return Err(Error::new(Fault::RecordInUse, why));
            }
        }
        let mut metrics = Appended::open(&path.join(METRICS))?;
        for file in [&mut record, &mut metrics] {
            // Behind the lock: whoever had it before may have written until then.
            file.len = file.file.metadata().map_err(|e| failed(&file.path, e))?.len();
            file.check_run(run)?;
        }
        let mut cut = Vec::new();
        for file in [&mut record, &mut metrics] {
            if let n @ 1.. = file.cut_to_whole_lines()? {
                cut.push(format!("{}: a last line of {n} bytes was not finished and is cut off", file.path.display()));
            }
        }
        // Two files that are new outlive a power cut with their folder alone; one that cannot be synced takes nothing back.
        let _ = sync_folder(path);
        let path = path.to_path_buf();
        Ok((RunFolder { path, record, metrics, options, fingerprint, episodes: 0, failed: None }, cut))
    }

    /// Whether a path leads to it.
    pub(super) fn is(&self, path: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().ok();
        real(path).is_some_and(|path| real(&self.path) == Some(path))
    }

    /// Both files once more, to be synced while lines are written.
    pub(super) fn files(&self) -> Result<[Appended; 2]> {
        Ok([self.record.again()?, self.metrics.again()?])
    }
}

/// A file of lines that only grows.
pub(super) struct Appended {
    file: File,
    path: PathBuf,
    /// bytes of whole lines
    len: u64,
}

impl Appended {
    fn open(path: &Path) -> Result<Appended> {
        if path.symlink_metadata().is_ok() {
            check_regular(path)?;
        }
        let file = File::options().read(true).append(true).create(true).open(path).map_err(|e| failed(path, e))?;
        let len = file.metadata().map_err(|e| failed(path, e))?.len();
        Ok(Appended { file, path: path.to_path_buf(), len })
    }

    fn again(&self) -> Result<Appended> {
        let file = self.file.try_clone().map_err(|e| failed(&self.path, e))?;
        Ok(Appended { file, path: self.path.clone(), len: self.len })
    }

    /// Puts what was written where a power cut does not reach it.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| failed(&self.path, e))
    }

    /// Refuses a file that is not this run's.
    fn check_run(&mut self, run: RunId) -> Result<()> {
        let mut first = Vec::new();
        let read = self.file.rewind().and_then(|()| (&self.file).take(LONGEST_FIRST_LINE).read_to_end(&mut first));
        read.map_err(|e| Error::new(Fault::CannotRead, format!("{}: {e}", self.path.display())))?;
        let Some(end) = first.iter().position(|&b| b == b'\n') else {
            // Nothing yet, or the beginning of a first line.
            return match first.first() {
                None | Some(b'{') if (first.len() as u64) < LONGEST_FIRST_LINE => Ok(()),
                _ => Err(self.not_ours("its first line is none of squire's")),
            };
        };
        let line = &first[..end];
        let Ok(any) = serde_json::from_slice::<Any>(line) else {
            return Err(self.not_ours("its first line is none of squire's"));
        };
        let version = serde_json::from_slice::<serde_json::Value>(line).ok().and_then(|line| line["version"].as_u64());
        if let Some(version) = version.filter(|&version| version > VERSION) {
            let why = format!("{}: it is of version {version}, this squire writes {VERSION}", self.path.display());
            return Err(Error::new(Fault::RecordVersion, why));
        }
        if any.run != run {
            let why = format!(
                "{}: it is of run {}, this one is {run}; choose another folder, or resume that run's checkpoint",
                self.path.display(),
                any.run
            );
            return Err(Error::new(Fault::RecordMismatch, why));
        }
        Ok(())
    }

    fn not_ours(&self, why: &str) -> Error {
        Error::new(Fault::RecordForm, format!("{}: {why}; choose another folder", self.path.display()))
    }

    /// Cuts off what stands behind the last line feed, and says how many bytes that were.
    fn cut_to_whole_lines(&mut self) -> Result<u64> {
        const BLOCK: u64 = 1 << 16;
        let read = |at: u64, n: u64| -> std::io::Result<Vec<u8>> {
            let mut block = Vec::new();
            (&self.file).seek(SeekFrom::Start(at))?;
            (&self.file).take(n).read_to_end(&mut block)?;
            Ok(block)
        };
        let (len, mut end) = (self.len, self.len);
        let whole = loop {
            let at = end.saturating_sub(BLOCK);
            let block = read(at, end - at);
            let block = block.map_err(|e| Error::new(Fault::CannotRead, format!("{}: {e}", self.path.display())))?;
            match block.iter().rposition(|&b| b == b'\n') {
                Some(i) => break at + i as u64 + 1,
                None if at == 0 => break 0,
                None => end = at,
            }
        };
        if whole < len {
            self.file.set_len(whole).map_err(|e| failed(&self.path, e))?;
        }
        self.len = whole;
        Ok(len - whole)
    }

    /// Appends a line. Errors: `CannotWrite`; the file then ends where it did.
    pub(super) fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let of_json = |e: serde_json::Error| Error::new(Fault::CannotWrite, format!("{}: {e}", self.path.display()));
        let mut text = serde_json::to_vec(line).map_err(of_json)?;
        text.push(b'\n');
        // A line that could not be taken back before must go now.
        let is_torn = |file: &File| file.metadata().is_ok_and(|at| at.len() != self.len);
        let written = match is_torn(&self.file) {
            true => self.file.set_len(self.len).and_then(|()| self.file.write_all(&text)),
            false => self.file.write_all(&text),
        };
        if let Err(e) = written {
            let _ = self.file.set_len(self.len);
            return Err(failed(&self.path, e));
        }
        self.len += text.len() as u64;
        Ok(())
    }
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::new(Fault::CannotWrite, format!("{}: {e}", path.display()))
}
