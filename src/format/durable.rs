//! Writes that a crash cannot tear: a file or a folder is built under a temporary name beside its
//! place, synced, and moved into it. At every moment the place holds the old whole or the new whole; where the
//! system cannot exchange two names, a replaced folder lies for a moment beside its place, from where the next save
//! or load puts it back (`leftovers.rs`).
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::{leftovers, system};
use crate::error::{Error, Fault, Result};

fn failed(path: &Path, e: io::Error) -> Error {
    Error::new(Fault::CannotWrite, format!("{}: {e}", path.display()))
}

/// Syncs a folder, so that the renames in it survive a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| failed(path, e))
}

fn beside(path: &Path, ending: &str) -> Result<PathBuf> {
    let no_name = || Error::new(Fault::CannotWrite, format!("{}: the path has no last name", path.display()));
    leftovers::beside(path, ending).ok_or_else(no_name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Writes a file: `fill` writes its bytes under a temporary name, which is synced and renamed to
/// `path`; then the folder is synced.
///
/// Errors: `CannotWrite`; the old file, if any, is then untouched.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let temporary = beside(path, "tmp")?;
    let file = File::create_new(&temporary).map_err(|e| failed(&temporary, e))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let written = fill(&mut writer)
        .and_then(|()| writer.into_inner().map_err(io::IntoInnerError::into_error))
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = written {
        // Best effort: the error that brought us here matters more than this one.
        let _ = fs::remove_file(&temporary);
        return Err(failed(path, e));
    }
    sync_folder(parent(path))
}

/// Makes or replaces the folder `dir`: `fill` gets a fresh temporary folder beside it, which is synced
/// and moved into place. A folder that is already there is replaced only if it is empty or holds exactly what `layout` says;
/// so a wrong path never costs anyone their files. What earlier saves that were killed have left is cleared first.
///
/// Errors: `CannotWrite`, or what `fill` returns; the old folder is then where it was. Once the new one stands in its
/// place the save is done: what cannot be deleted of the old one is left to the next.
pub fn replace_folder(dir: &Path, layout: &Layout, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    leftovers::put_back(dir, layout);
    // A link is followed, so that the folder it names is replaced and not the link.
    let exists = dir.symlink_metadata().is_ok();
    let dir = if exists { dir.canonicalize().map_err(|e| failed(dir, e))? } else { dir.to_path_buf() };
    if exists {
        check_replaceable(&dir, layout)?;
    }
    let parent = parent(&dir);
    fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    leftovers::sweep(parent, layout, |place| dir.file_name().is_some_and(|name| name == place));
    let temporary = beside(&dir, "tmp")?;
    fs::create_dir(&temporary).map_err(|e| failed(&temporary, e))?;
    let _lock = leftovers::lock(&temporary);
    let placed = fill(&temporary).and_then(|()| sync_folder(&temporary)).and_then(|()| match exists {
        true if system::exchange(&temporary, &dir) => Ok(()),
        true => in_two_steps(&temporary, &dir, layout),
        false => fs::rename(&temporary, &dir).map_err(|e| failed(&dir, e)),
    });
    // The unfinished new folder, or the old one; best effort.
    let _ = layout.delete(&temporary);
    placed?;
    sync_folder(parent)
}

fn check_replaceable(dir: &Path, layout: &Layout) -> Result<()> {
    let refuse = |path: &Path, why: String| Err(Error::new(Fault::CannotWrite, format!("{}: {why}", path.display())));
    if let Some(path) = layout.foreign(dir).map_err(|e| failed(dir, e))? {
        return refuse(&path, format!("not a file of {}, so the folder is not replaced", layout.kind));
    }
    let is_empty = fs::read_dir(dir).map_err(|e| failed(dir, e))?.next().is_none();
    match layout.missing(dir).filter(|_| !is_empty) {
        None => Ok(()),
        Some(name) => refuse(dir, format!("it lacks {name}, so it is not {} and is not replaced", layout.kind)),
    }
}

/// Puts `temporary` into the place of the folder `dir` where the system has no exchange: between two renames the place is
/// empty.
fn in_two_steps(temporary: &Path, dir: &Path, layout: &Layout) -> Result<()> {
    let old = beside(dir, "old")?;
    fs::rename(dir, &old).map_err(|e| failed(dir, e))?;
    if let Err(e) = fs::rename(temporary, dir) {
        // Put the old folder back; if even that fails the next save or load does.
        let _ = fs::rename(&old, dir);
        return Err(failed(dir, e));
    }
    let _ = layout.delete(&old);
    Ok(())
}

/// Removes a folder that holds exactly what `layout` says, and says whether it did: any other is left as it is. It is moved
/// aside first, so that a kill leaves no part of it in its place.
///
/// Errors: `CannotWrite`.
pub fn remove_folder(dir: &Path, layout: &Layout) -> Result<bool> {
    if !layout.is_whole(dir) {
        return Ok(false);
    }
    let aside = beside(dir, "tmp")?;
    fs::rename(dir, &aside).map_err(|e| failed(dir, e))?;
    layout.delete(&aside).map_err(|e| failed(&aside, e))?;
    Ok(true)
}

/// Clears what saves that were killed have left in the folder `parent`, of folders of this layout whose names are places.
pub fn clear_leftovers(parent: &Path, layout: &Layout, is_place: impl Fn(&str) -> bool) {
    leftovers::sweep(parent, layout, is_place);
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::LAYOUT;
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Fills both files of a folder.
    fn put(text: &'static str) -> impl Fn(&Path) -> Result<()> {
        move |d| ["a", "b"].iter().try_for_each(|f| write_file(&d.join(f), |w| w.write_all(text.as_bytes())))
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
        replace_folder(&dir, &LAYOUT, put("1")).unwrap();
        replace_folder(&dir, &LAYOUT, put("2")).unwrap();
        let e = replace_folder(&dir, &LAYOUT, |_| Err(Error::new(Fault::NotFinite, "no"))).unwrap_err();
        assert_eq!(e.fault(), Fault::NotFinite);
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"2");
        assert_eq!(names(root.path()), ["m"]);
    }

    #[test]
    fn without_an_exchange_of_names_two_renames_do_it() {
        let root = tempfile::tempdir().unwrap();
        let (dir, temporary) = (root.path().join("m"), root.path().join("t"));
        replace_folder(&dir, &LAYOUT, put("1")).unwrap();
        replace_folder(&temporary, &LAYOUT, put("2")).unwrap();
        in_two_steps(&temporary, &dir, &LAYOUT).unwrap();
        assert_eq!((fs::read(dir.join("a")).unwrap(), names(root.path())), (b"2".to_vec(), vec!["m".to_string()]));
        // The second of them fails: the old folder is back.
        in_two_steps(&temporary, &dir, &LAYOUT).unwrap_err();
        assert_eq!((fs::read(dir.join("a")).unwrap(), names(root.path())), (b"2".to_vec(), vec!["m".to_string()]));
    }

    #[test]
    fn a_folder_with_foreign_files_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.txt"), "years of work").unwrap();
        let e = replace_folder(root.path(), &LAYOUT, |_| Ok(())).unwrap_err();
        assert_eq!(e.fault(), Fault::CannotWrite);
        assert!(e.message().contains("thesis.txt"), "{e}");
        assert!(root.path().join("thesis.txt").exists());
    }

    #[test]
    fn a_folder_of_known_names_that_is_not_one_of_its_kind_is_neither_replaced_nor_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("m");
        fs::create_dir(&dir).unwrap();
        replace_folder(&dir, &LAYOUT, put("1")).unwrap(); // an empty one is nobody's
        fs::remove_file(dir.join("b")).unwrap();
        let e = replace_folder(&dir, &LAYOUT, put("2")).unwrap_err();
        assert!(e.fault() == Fault::CannotWrite && e.message().contains("lacks b"), "{e}");
        assert!(!remove_folder(&dir, &LAYOUT).unwrap());
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"1");
        fs::write(dir.join("b"), "").unwrap();
        assert!(remove_folder(&dir, &LAYOUT).unwrap());
        assert!(names(root.path()).is_empty());
    }

    #[test]
    #[cfg(unix)]
    fn a_save_that_took_effect_is_done_even_if_the_old_folder_cannot_be_deleted() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("m");
        replace_folder(&dir, &LAYOUT, put("1")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)).unwrap();
        replace_folder(&dir, &LAYOUT, put("2")).unwrap();
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"2");
        // Whoever may delete everything has deleted it.
        for left in names(root.path()).iter().filter(|name| *name != "m") {
            fs::set_permissions(root.path().join(left), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
}
