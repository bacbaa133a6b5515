//! Writes that a crash cannot tear: a file or a folder is built under a temporary name beside its
//! place, synced, and renamed into it. At every moment the place holds the old whole or the new whole
//! (for a replaced folder: or the old one still lies beside it under a name that ends in `.old`).
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Fault, Result};

fn failed(path: &Path, e: io::Error) -> Error {
    Error::new(Fault::CannotWrite, format!("{}: {e}", path.display()))
}

/// Syncs a folder, so that the renames in it survive a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| failed(path, e))
}

/// A name beside `path` that no other write of this process or another running one uses.
fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| Error::new(Fault::CannotWrite, format!("{}: the path has no last name", path.display())))?;
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(path.with_file_name(format!(".{}.{}-{n}.{suffix}", name.to_string_lossy(), std::process::id())))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Removes what it names when dropped, unless it was disarmed.
struct Leftover<'a>(Option<&'a Path>);

impl Drop for Leftover<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            // Best effort: the error that brought us here matters more than this one.
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// Writes a file: `fill` writes its bytes under a temporary name, which is synced and renamed to
/// `path`; then the folder is synced.
///
/// Errors: `CannotWrite`; the old file, if any, is then untouched.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let temporary = beside(path, "tmp")?;
    let file = File::create_new(&temporary).map_err(|e| failed(&temporary, e))?;
    let mut leftover = Leftover(Some(&temporary));
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)
        .and_then(|()| writer.into_inner().map_err(io::IntoInnerError::into_error))
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|e| failed(path, e))?;
    leftover.0 = None;
    sync_folder(parent(path))
}

/// Makes or replaces the folder `dir`: `fill` gets a fresh temporary folder beside it, which is synced
/// and renamed into place. A folder that is already there is replaced only if every entry in it is
/// `ours` (by file name); so a wrong path never costs anyone their files.
///
/// Errors: `CannotWrite`, or what `fill` returns; the old folder is then where it was.
pub fn replace_folder(dir: &Path, ours: impl Fn(&str) -> bool, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    // A link is followed, so that the folder it names is replaced and not the link.
    let exists = dir.symlink_metadata().is_ok();
    let dir = if exists { dir.canonicalize().map_err(|e| failed(dir, e))? } else { dir.to_path_buf() };
    if exists {
        for entry in fs::read_dir(&dir).map_err(|e| failed(&dir, e))? {
            let entry = entry.map_err(|e| failed(&dir, e))?;
            let known = entry.file_name().to_str().is_some_and(&ours);
            if !known {
                let path = entry.path();
                let why = "not a file of such a folder, so the folder is not replaced";
                return Err(Error::new(Fault::CannotWrite, format!("{}: {why}", path.display())));
            }
        }
    }
    let parent = parent(&dir);
    fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    let temporary = beside(&dir, "tmp")?;
    fs::create_dir(&temporary).map_err(|e| failed(&temporary, e))?;
    let mut leftover = Leftover(Some(&temporary));
    fill(&temporary)?;
    sync_folder(&temporary)?;
    if exists {
        let old = beside(&dir, "old")?;
        fs::rename(&dir, &old).map_err(|e| failed(&dir, e))?;
        if let Err(e) = fs::rename(&temporary, &dir) {
            // Put the old folder back; if even that fails it still lies beside under its `.old` name.
            let _ = fs::rename(&old, &dir);
            return Err(failed(&dir, e));
        }
        leftover.0 = None;
        sync_folder(parent)?;
        fs::remove_dir_all(&old).map_err(|e| failed(&old, e))
    } else {
        fs::rename(&temporary, &dir).map_err(|e| failed(&dir, e))?;
        leftover.0 = None;
        sync_folder(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_file(&path, |w| w.write_all(b"old")).unwrap();
        let e = write_file(&path, |w| w.write_all(b"new").and(Err(io::Error::other("full")))).unwrap_err();
        assert_eq!(e.fault(), Fault::CannotWrite);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("m");
        let put = |text: &'static str| move |d: &Path| write_file(&d.join("a"), |w| w.write_all(text.as_bytes()));
        replace_folder(&dir, |n| n == "a", put("1")).unwrap();
        replace_folder(&dir, |n| n == "a", put("2")).unwrap();
        let e = replace_folder(&dir, |n| n == "a", |_| Err(Error::new(Fault::NotFinite, "no"))).unwrap_err();
        assert_eq!(e.fault(), Fault::NotFinite);
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"2");
        assert_eq!(names(root.path()), ["m"]);
    }

    #[test]
    fn a_folder_with_foreign_files_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.txt"), "years of work").unwrap();
        let e = replace_folder(root.path(), |n| n == "a", |_| Ok(())).unwrap_err();
        assert_eq!(e.fault(), Fault::CannotWrite);
        assert!(e.message().contains("thesis.txt"), "{e}");
        assert!(root.path().join("thesis.txt").exists());
    }
}
