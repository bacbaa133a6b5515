//! Immutable bytes that are cheap to clone: a window of a memory-mapped file, or of a buffer.
//!
//! Weights are mapped and never copied: a tensor is a window, and the map lives as long as its last
//! window. One of the two files below the backend that need `unsafe`.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Fault, Result};

/// A window of immutable bytes; clones share what they look at.
#[derive(Clone)]
pub struct Bytes {
    backing: Arc<Backing>,
    start: usize,
    len: usize,
}

enum Backing {
    Map(Mmap),
    Buffer(Vec<u8>),
}

impl Backing {
    fn as_slice(&self) -> &[u8] {
        match self {
            Backing::Map(map) => map,
            Backing::Buffer(buffer) => buffer,
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Bytes {
    /// Maps a regular file. It must not be truncated or overwritten in place while the bytes live
    /// (replacing it by a rename is fine: the map keeps the old file).
    ///
    /// Errors: `MissingFile`, `CannotOpen` (also for what is not a regular file), `CannotMap`.
    pub fn map(path: &Path) -> Result<Bytes> {
        let file = open_regular(path)?;
        let len = file.metadata().map_err(|e| fault_at(Fault::CannotOpen, path, e))?.len();
        if len == 0 {
            return Ok(Bytes::from(Vec::new())); // a map of no bytes is an error to the system
        }
        // SAFETY: the map is read-only and private to this value. Rust's rule that the bytes behind
        // a `&[u8]` do not change is handed on to the caller by the sentence above: nobody writes
        // into or truncates a model file that is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| fault_at(Fault::CannotMap, path, e))?;
        let len = map.len();
        Ok(Bytes { backing: Arc::new(Backing::Map(map)), start: 0, len })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.backing.as_slice()[self.start..self.start + self.len]
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A smaller window, or None where `range` is not inside this one.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        let (start, len) = (self.start + range.start, range.end - range.start);
        Some(Bytes { backing: Arc::clone(&self.backing), start, len })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(buffer: Vec<u8>) -> Bytes {
        let len = buffer.len();
        Bytes { backing: Arc::new(Backing::Buffer(buffer)), start: 0, len }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len)
    }
}

/// Opens for reading without waiting for whoever would write into a pipe. Nothing changes for regular files.
pub(super) fn open_at_once(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK);
    options.read(true).open(path)
}

/// O_NONBLOCK.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NONBLOCK: i32 = 0o4000;
/// O_NONBLOCK of the systems that come from BSD.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
const NONBLOCK: i32 = 4;

fn must_be_regular(path: &Path, at: &Metadata) -> Result<()> {
    let kind = at.file_type();
    #[cfg(unix)]
    let special = {
        use std::os::unix::fs::FileTypeExt;
        let device = kind.is_block_device() || kind.is_char_device();
        [(kind.is_fifo(), "a pipe"), (kind.is_socket(), "a socket"), (device, "a device")]
    };
    #[cfg(not(unix))]
    let special = [];
    let plain = [(kind.is_file(), ""), (kind.is_dir(), "a folder"), (kind.is_symlink(), "a link")];
    let found = plain.into_iter().chain(special).find(|(is, _)| *is).map_or("something else", |(_, what)| what);
    if found.is_empty() {
        return Ok(());
    }
    let why = format!("{}: wanted a regular file, found {found}; put the file itself there", path.display());
    Err(Error::new(Fault::CannotOpen, why))
}

/// Opens a file for reading, refusing what is not a regular file: a pipe would block for ever, a device may answer to
/// being opened. What is looked at before and what is opened may be two things, so it is looked at again.
pub fn open_regular(path: &Path) -> Result<File> {
    let failed = |e: std::io::Error| {
        let fault = if e.kind() == ErrorKind::NotFound { Fault::MissingFile } else { Fault::CannotOpen };
        match path.read_link() {
            Ok(target) if fault == Fault::MissingFile => {
                let why = "which is not there; download the file again, or bring back the disk that it lies on";
                Error::new(fault, format!("{}: is a link to {}, {why}", path.display(), target.display()))
            }
            _ => fault_at(fault, path, e),
        }
    };
    must_be_regular(path, &path.metadata().map_err(failed)?)?;
    let file = open_at_once(path).map_err(failed)?;
    must_be_regular(path, &file.metadata().map_err(failed)?)?;
    Ok(file)
}

/// Refuses what is not a regular file itself, a link included: for files that squire alone writes.
///
/// Errors: `MissingFile`, `CannotOpen`.
pub fn check_regular(path: &Path) -> Result<()> {
    let at = path.symlink_metadata().map_err(|e| {
        let fault = if e.kind() == ErrorKind::NotFound { Fault::MissingFile } else { Fault::CannotOpen };
        fault_at(fault, path, e)
    })?;
    must_be_regular(path, &at)
}

/// Reads a text of at most `limit` bytes from a regular file.
///
/// Errors: `MissingFile`, `CannotOpen`, `CannotRead`, also for what is longer or not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let mut text = String::new();
    let read = open_regular(path)?.take(limit + 1).read_to_string(&mut text);
    read.map_err(|e| fault_at(Fault::CannotRead, path, e))?;
    if text.len() as u64 > limit {
        let why = format!("{}: wanted a document of at most {limit} bytes, found a longer one", path.display());
        return Err(Error::new(Fault::CannotRead, why));
    }
    Ok(text)
}

/// An error about a path, with what the system said.
pub(super) fn fault_at(fault: Fault, path: &Path, e: std::io::Error) -> Error {
    Error::new(fault, format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_share_the_map_and_outlive_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"0123456789").unwrap();
        let whole = Bytes::map(&path).unwrap();
        let inner = whole.slice(2..8).unwrap().slice(1..3).unwrap();
        drop(whole);
        assert_eq!(inner.as_slice(), b"34");
        assert!(inner.slice(0..3).is_none());
        assert!(inner.slice(3..3).is_none());
        assert!(inner.slice(2..2).unwrap().is_empty());
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(Bytes::map(&path).unwrap().as_slice(), b"");
    }

    #[test]
    fn a_folder_and_an_absent_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Bytes::map(dir.path()).unwrap_err().fault(), Fault::CannotOpen);
        assert_eq!(Bytes::map(&dir.path().join("none")).unwrap_err().fault(), Fault::MissingFile);
    }
}
