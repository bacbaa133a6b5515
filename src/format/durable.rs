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

/// Lets `place` move something into its place in the folder `parent`, and syncs that. Once it is moved the write is done:
/// a folder that cannot be synced, as one that may be written and not read, takes nothing back.
fn move_in(parent: &Path, place: impl FnOnce() -> Result<()>) -> Result<()> {
    // Before, while the folder is sure to be the one.
    let folder = File::open(parent);
    place()?;
    let _ = folder.and_then(|folder| folder.sync_all());
    Ok(())
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
/// `path`; then the folder is synced, if it can be.
///
/// Errors: `CannotWrite`; the old file, if any, is then untouched.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()>) -> Result<()> {
    let temporary = beside(path, "tmp")?;
    let file = File::create_new(&temporary).map_err(|e| failed(&temporary, e))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let written = fill(&mut writer)
        .and_then(|()| writer.into_inner().map_err(io::IntoInnerError::into_error))
        .and_then(|file| file.sync_all())
        .map_err(|e| failed(path, e));
    let rename = || fs::rename(&temporary, path).map_err(|e| failed(path, e));
    let placed = written.and_then(|()| move_in(parent(path), rename));
    if placed.is_err() {
        // Best effort: the error that brought us here matters more than this one.
        let _ = fs::remove_file(&temporary);
    }
    placed
}

/// Makes or replaces the folder `dir`: `fill` gets a fresh temporary folder beside it, which is synced
/// and moved into place. A folder that is already there is replaced only if it is empty or holds exactly what `layout` says;
/// so a wrong path never costs anyone their files. What earlier saves that were killed have begun is cleared first, what they
/// had replaced last.
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
    let place = || match exists {
        true if system::exchange(&temporary, &dir) => Ok(()),
        true => in_two_steps(&temporary, &dir, layout),
        false => fs::rename(&temporary, &dir).map_err(|e| failed(&dir, e)),
    };
    let placed = fill(&temporary).and_then(|()| sync_folder(&temporary)).and_then(|()| move_in(parent, place));
    // The unfinished new folder, or the old one; best effort.
    let _ = layout.delete(&temporary);
    placed?;
    leftovers::sweep_replaced(&dir, parent, layout);
    Ok(())
}

/// Whether [`replace_folder`] would take the place `dir`: nothing is there, or what it replaces. For who works long before it
/// writes. Errors: `CannotWrite`.
pub fn check_place(dir: &Path, layout: &Layout) -> Result<()> {
    if dir.exists() { check_replaceable(dir, layout) } else { Ok(()) }
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
    // Another container's process may bear this one's number: the lock tells it that the old folder is in use.
    let _lock = leftovers::lock(dir);
    fs::rename(dir, &old).map_err(|e| failed(dir, e))?;
    if let Err(e) = fs::rename(temporary, dir) {
        // Put the old folder back; if even that fails the next process does.
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

/// Clears what saves that were killed have begun in the folder `parent`, of folders of this layout whose names are places.
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
    fn a_kill_between_the_two_renames_loses_nothing_even_if_the_next_save_fails() {
        // A dead process, and one that bore this one's number, as in a container.
        for pid in [i32::MAX as u32, std::process::id()] {
            for host_makes_the_folder in [false, true] {
                let root = tempfile::tempdir().unwrap();
                let dir = root.path().join("m");
                // The kill: the old folder is aside, the new one whole and not yet in its place.
                replace_folder(&root.path().join("new"), &LAYOUT, put("2")).unwrap();
                fs::rename(root.path().join("new"), root.path().join(format!(".m.{pid}-0.tmp"))).unwrap();
                replace_folder(&dir, &LAYOUT, put("1")).unwrap();
                fs::rename(&dir, root.path().join(format!(".m.{pid}-1.old"))).unwrap();
                if host_makes_the_folder {
                    fs::create_dir(&dir).unwrap();
                }
                replace_folder(&dir, &LAYOUT, |_| Err(Error::new(Fault::NotFinite, "no"))).unwrap_err();
                assert_eq!((fs::read(dir.join("a")).unwrap(), names(root.path())), (b"1".to_vec(), vec!["m".into()]));
                replace_folder(&dir, &LAYOUT, put("3")).unwrap();
                assert_eq!((fs::read(dir.join("a")).unwrap(), names(root.path())), (b"3".to_vec(), vec!["m".into()]));
            }
        }
    }

    #[test]
    fn a_replaced_folder_is_cleared_only_once_a_new_one_stands() {
        let root = tempfile::tempdir().unwrap();
        let (dir, old) = (root.path().join("m"), root.path().join(format!(".m.{}-1.old", i32::MAX)));
        replace_folder(&dir, &LAYOUT, put("1")).unwrap();
        fs::rename(&dir, &old).unwrap();
        replace_folder(&root.path().join("n"), &LAYOUT, put("2")).unwrap();
        fs::rename(root.path().join("n"), &dir).unwrap();
        replace_folder(&dir, &LAYOUT, |_| Err(Error::new(Fault::NotFinite, "no"))).unwrap_err();
        assert!(old.exists());
        replace_folder(&dir, &LAYOUT, put("3")).unwrap();
        assert_eq!(names(root.path()), ["m"]);
    }

    #[test]
    fn a_save_after_a_kill_under_the_same_process_number_succeeds_and_clears_up() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("m");
        for n in 0..32 {
            let left = root.path().join(format!(".m.{}-{n}.tmp", std::process::id()));
            fs::create_dir(&left).unwrap();
            put("1")(&left).unwrap();
        }
        replace_folder(&dir, &LAYOUT, put("2")).unwrap();
        assert_eq!((fs::read(dir.join("a")).unwrap(), names(root.path())), (b"2".to_vec(), vec!["m".to_string()]));
    }

    #[test]
    fn what_was_moved_into_its_place_is_done_even_if_the_folder_around_it_cannot_be_synced() {
        let nowhere = Path::new("/nowhere/at/all");
        move_in(nowhere, || Ok(())).unwrap();
        move_in(nowhere, || Err(Error::new(Fault::NotFinite, "no"))).unwrap_err();
    }

    /// Root may read it all the same.
    #[test]
    #[cfg(unix)]
    fn a_folder_that_may_be_written_and_not_read_takes_saves() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let (dir, file) = (root.path().join("m"), root.path().join("f"));
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o300)).unwrap();
        let saved = [put("1"), put("2")].map(|fill| replace_folder(&dir, &LAYOUT, fill));
        let written = write_file(&file, |w| w.write_all(b"new"));
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        saved.into_iter().chain([written]).for_each(|result| result.unwrap());
        assert_eq!(
            (fs::read(dir.join("a")).unwrap(), names(root.path())),
            (b"2".to_vec(), vec!["f".into(), "m".into()])
        );
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
