//! What a write that was killed leaves beside its place, and what becomes of it.
//!
//! A write works under names of the form `.NAME.PID-N.tmp` beside NAME, where N is drawn: what it makes, and what it has
//! replaced and deletes. Where the system cannot exchange two names, the folder that is replaced bears
//! `.NAME.PID-N.old` for the moment in which NAME stands for nothing. The next write, and for the latter the next load,
//! cleans up: an `.old` beside a NAME that is not there, or is an empty folder, is put back, the rest is deleted.
//!
//! Only after the dead: a name whose process lives stays, as does one that somebody holds the lock of, since on a shared
//! disk the number may be one of another machine or container. Where neither can be told, it stays. A number that was
//! given to another process only delays. One that was given to this very process, as a container gives every first
//! process the same, does not: a process knows the names that it gave, and the others of its number are of the dead.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::layout::Layout;
use super::mmap::open_at_once;
use super::system;
use crate::random::fresh_seed;

/// The numbers of the names that this process has given: a range that starts where a draw says. Drawn with the first
/// name; 0 until then. No lock, since a child made by fork() would inherit it as it is.
static FIRST: AtomicU64 = AtomicU64::new(0);
static GIVEN: AtomicU64 = AtomicU64::new(0);

/// A name beside a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Aside<'a> {
    /// The name of the place.
    pub(super) name: &'a str,
    pid: u32,
    number: u64,
    /// Whether it is the replaced one, which may have to be put back.
    old: bool,
}

impl<'a> Aside<'a> {
    pub(super) fn parse(file_name: &'a str) -> Option<Aside<'a>> {
        let rest = file_name.strip_prefix('.')?;
        let (rest, old) = match rest.strip_suffix(".old") {
            Some(rest) => (rest, true),
            None => (rest.strip_suffix(".tmp")?, false),
        };
        let (name, numbers) = rest.rsplit_once('.')?;
        let (pid, n) = numbers.split_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (digits(n) && digits(pid)).then_some(Aside { name, pid: pid.parse().ok()?, number: n.parse().ok()?, old })
    }
}

/// A name beside `path` that no other write uses and no earlier one has left; None where the path has no last name.
pub(super) fn beside(path: &Path, ending: &str) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    let drawn = fresh_seed().max(1);
    // Another thread may have been faster.
    let first = FIRST.compare_exchange(0, drawn, Relaxed, Relaxed).map_or_else(|first| first, |_| drawn);
    let number = first + GIVEN.fetch_add(1, Relaxed);
    Some(path.with_file_name(format!(".{name}.{}-{number}.{ending}", std::process::id())))
}

/// Whether this process has given the number.
fn is_given(number: u64) -> bool {
    let first = FIRST.load(Relaxed);
    first != 0 && number.checked_sub(first).is_some_and(|at| at < GIVEN.load(Relaxed))
}

/// Takes the lock that tells other machines and containers that somebody works in a folder. Where there are no locks it
/// is none: those who clean up then leave the folder alone too.
pub(super) fn lock(dir: &Path) -> Option<File> {
    let file = open_at_once(dir).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Whether the process that gave a name has ended, as far as this one can see.
fn is_dead(aside: &Aside) -> bool {
    match aside.pid == std::process::id() {
        true => !is_given(aside.number),
        false => !system::lives(aside.pid),
    }
}

/// The folders of dead writers beside places that `is_place` knows by name, and whether each is a replaced one.
fn abandoned(parent: &Path, is_place: impl Fn(&str) -> bool) -> Vec<(PathBuf, bool)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let Some(aside) = file_name.to_str().and_then(Aside::parse).filter(|aside| is_place(aside.name)) else {
            continue;
        };
        let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|at| at.is_dir()));
        if is_folder && is_dead(&aside) && lock(&path).is_some() {
            found.push((path, aside.old));
        }
    }
    found
}

/// Puts a replaced folder back whose writer was killed before the new one stood in its place, which may meanwhile hold an
/// empty folder: a host makes one before it saves. Best effort: where it cannot be done the place is empty, which whoever
/// asked finds out.
pub(super) fn put_back(dir: &Path, layout: &Layout) {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name().and_then(|name| name.to_str())) else { return };
    let is_taken = match dir.symlink_metadata() {
        Ok(at) if at.is_dir() => fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_some()),
        found => found.is_ok(),
    };
    if is_taken {
        return;
    }
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let changed = |path: &PathBuf| path.symlink_metadata().and_then(|at| at.modified()).ok();
    let old = abandoned(parent, |place| place == name).into_iter().filter(|(path, old)| *old && layout.is_whole(path));
    if let Some(newest) = old.map(|(path, _)| path).max_by_key(changed) {
        // Refused by the system where something has come into the empty folder meanwhile.
        let _ = fs::remove_dir(dir);
        let _ = fs::rename(newest, dir);
    }
}

/// Deletes what dead writers have begun or were deleting in `parent` beside places that `is_place` knows by name: folders of
/// this layout, whole or not, and no others. Best effort: what cannot be deleted lies there still.
pub(super) fn sweep(parent: &Path, layout: &Layout, is_place: impl Fn(&str) -> bool) {
    for (path, _) in abandoned(parent, is_place).into_iter().filter(|(_, old)| !old) {
        let _ = layout.delete(&path);
    }
}

/// Deletes the replaced folders that dead writers left beside `dir`, if a whole folder stands there: until then one of
/// them may be the only whole one. Best effort, as above.
pub(super) fn sweep_replaced(dir: &Path, parent: &Path, layout: &Layout) {
    let Some(name) = dir.file_name().filter(|_| layout.is_whole(dir)) else { return };
    for (path, _) in abandoned(parent, |place| name == place).into_iter().filter(|(_, old)| *old) {
        let _ = layout.delete(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::LAYOUT;
    use super::*;

    /// No system gives a process so large a number.
    const DEAD: u32 = i32::MAX as u32;

    /// A folder beside `m`, with these files.
    fn put(root: &Path, name: &str, files: &[&str]) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        files.iter().for_each(|file| fs::write(dir.join(file), name).unwrap());
        dir
    }

    fn sweep_m(root: &Path) {
        sweep(root, &LAYOUT, |name| name == "m");
        sweep_replaced(&root.join("m"), root, &LAYOUT);
    }

    /// A folder beside `m` under a name that this process gave.
    fn put_ours(root: &Path, ending: &str, files: &[&str]) -> PathBuf {
        let ours = beside(&root.join("m"), ending).unwrap();
        put(root, ours.file_name().unwrap().to_str().unwrap(), files)
    }

    #[test]
    fn names_aside_are_told_from_all_others() {
        let of = |name: &'static str| Aside::parse(name).map(|a| (a.name, a.pid, a.old));
        assert_eq!(of(".m.12-0.tmp"), Some(("m", 12, false)));
        assert_eq!(of(".step-00000003-1.12-34.old"), Some(("step-00000003-1", 12, true)));
        assert_eq!(of(".a.b.1-2.tmp"), Some(("a.b", 1, false)));
        for other in
            ["m", ".m", ".m.tmp", "m.1-2.tmp", ".m.1.tmp", ".m.1-.tmp", ".m.-1-2.tmp", ".m.1-2.tmp.gz", ".m.+1-2.old"]
        {
            assert_eq!(Aside::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_the_dead_left_is_deleted_and_what_lives_or_is_not_ours_stays() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let dead =
            [put(root, &format!(".m.{DEAD}-0.tmp"), &["a"]), put(root, &format!(".m.{DEAD}-1.tmp"), &["a", "b"])];
        let staying = [
            put(root, ".m.1-0.tmp", &["a"]),
            put(root, &format!(".n.{DEAD}-0.tmp"), &["a"]),
            put(root, &format!(".m.{DEAD}-2.tmp"), &["a", "thesis"]),
            put(root, &format!(".m.{DEAD}-3.old"), &["a", "b"]),
        ];
        fs::write(root.join(format!(".m.{DEAD}-9.tmp")), "a file").unwrap();
        // Somebody whose number means nothing here, such as one in another container, holds its lock.
        let held = put(root, &format!(".m.{DEAD}-4.tmp"), &["a"]);
        let lock_of_another = lock(&held).unwrap();
        let ours = put_ours(root, "tmp", &["a"]);
        sweep_m(root);
        assert!(ours.exists());
        assert!(dead.iter().all(|path| !path.exists()));
        assert!(staying.iter().all(|path| path.exists()) && held.exists());
        assert!(root.join(format!(".m.{DEAD}-9.tmp")).exists());
        drop(lock_of_another);
        sweep_m(root);
        assert!(!held.exists());
    }

    #[test]
    fn a_replaced_folder_whose_place_is_empty_is_put_back_if_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let (root, m) = (root.path(), root.path().join("m"));
        let broken = put(root, &format!(".m.{DEAD}-0.old"), &["a"]);
        let alive = put_ours(root, "old", &["a", "b"]);
        put_back(&m, &LAYOUT);
        assert!(!m.exists() && broken.exists() && alive.exists());
        put(root, &format!(".m.{DEAD}-1.old"), &["a", "b"]);
        put_back(&m, &LAYOUT);
        assert!(LAYOUT.is_whole(&m));
        // Once something stands there, what lies beside it is of no use.
        let late = put(root, &format!(".m.{DEAD}-2.old"), &["a", "b"]);
        put_back(&m, &LAYOUT);
        assert!(late.exists());
        sweep_m(root);
        assert!(!late.exists() && !broken.exists() && alive.exists());
    }

    #[test]
    fn a_name_of_this_process_number_that_it_did_not_give_is_of_a_dead_one_of_the_same_number() {
        let root = tempfile::tempdir().unwrap();
        let (root, m, own) = (root.path(), root.path().join("m"), std::process::id());
        let begun = put(root, &format!(".m.{own}-0.tmp"), &["a"]);
        put(root, &format!(".m.{own}-1.old"), &["a", "b"]);
        let ours = put_ours(root, "tmp", &["a"]);
        put_back(&m, &LAYOUT);
        assert!(LAYOUT.is_whole(&m));
        sweep_m(root);
        assert!(!begun.exists() && ours.exists());
    }

    #[test]
    fn a_replaced_folder_is_put_back_into_an_empty_place_and_stays_until_a_whole_one_stands() {
        let root = tempfile::tempdir().unwrap();
        let (root, m) = (root.path(), root.path().join("m"));
        fs::create_dir(&m).unwrap();
        // Nothing to put back: the host's empty folder is left to it.
        put_back(&m, &LAYOUT);
        assert!(m.is_dir());
        let old = put(root, &format!(".m.{DEAD}-0.old"), &["a", "b"]);
        sweep_m(root);
        assert!(old.exists());
        fs::write(m.join("a"), "the host's").unwrap();
        put_back(&m, &LAYOUT);
        sweep_m(root);
        assert!(old.exists() && fs::read(m.join("a")).unwrap() == b"the host's");
        fs::remove_file(m.join("a")).unwrap();
        put_back(&m, &LAYOUT);
        assert!(LAYOUT.is_whole(&m) && !old.exists());
    }
}
