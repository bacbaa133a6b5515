//! What a folder of one kind holds. A folder is replaced or removed only where it holds that and nothing else, so that
//! a wrong path costs nobody their files: regular files of known names, no link, no pipe, no folder but the one named.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::leftovers::Aside;

/// The entries that make a folder one of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// What such a folder is called in messages.
    pub kind: &'static str,
    /// Files that must be there.
    pub required: &'static [&'static str],
    /// Files that may be there.
    pub optional: &'static [&'static str],
    /// A folder that may be there, and the extension of every file in it.
    pub folder: Option<(&'static str, &'static str)>,
}

impl Layout {
    /// Whether `dir` is a folder that holds exactly this: nothing else, and nothing is missing.
    pub fn is_whole(&self, dir: &Path) -> bool {
        let is_folder = dir.symlink_metadata().is_ok_and(|at| at.is_dir());
        is_folder && matches!(self.foreign(dir), Ok(None)) && self.missing(dir).is_none()
    }

    /// Whether `dir` holds any of the required files, so that it may be one that was damaged. What cannot be looked at
    /// may be there.
    pub fn is_any(&self, dir: &Path) -> bool {
        let is_absent =
            |name: &&str| matches!(dir.join(name).symlink_metadata(), Err(e) if e.kind() == io::ErrorKind::NotFound);
        !self.required.iter().all(is_absent)
    }

    /// A required file that is not there.
    pub(super) fn missing(&self, dir: &Path) -> Option<&'static str> {
        self.required.iter().copied().find(|name| dir.join(name).symlink_metadata().is_err())
    }

    /// An entry of `dir` that does not belong in such a folder.
    pub(super) fn foreign(&self, dir: &Path) -> io::Result<Option<PathBuf>> {
        let (mut files, mut foreign) = (Vec::new(), None);
        self.look(dir, false, &mut files, &mut foreign)?;
        Ok(foreign)
    }

    /// Deletes a folder that was begun, replaced or given up: it may lack files and hold unfinished ones. Nothing is
    /// deleted where something else lies in it.
    pub(super) fn delete(&self, dir: &Path) -> io::Result<()> {
        let (mut files, mut foreign) = (Vec::new(), None);
        self.look(dir, true, &mut files, &mut foreign)?;
        if let Some(foreign) = foreign {
            return Err(io::Error::other(format!("{} is not a file of {}", foreign.display(), self.kind)));
        }
        files.iter().try_for_each(fs::remove_file)?;
        if let Some((name, _)) = self.folder {
            match fs::remove_dir(dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        // Refused by the system where something has come meanwhile.
        fs::remove_dir(dir)
    }

    /// Lists the files of `dir` that are of this kind, with `partial` unfinished ones too, and notes one that is not.
    fn look(
        &self,
        dir: &Path,
        partial: bool,
        files: &mut Vec<PathBuf>,
        foreign: &mut Option<PathBuf>,
    ) -> io::Result<()> {
        let known = |name: &str| self.required.contains(&name) || self.optional.contains(&name);
        let mut folder = None;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let (path, name, at) = (entry.path(), entry.file_name(), entry.file_type()?);
            let name = name.to_str().unwrap_or("");
            let unfinished = partial && Aside::parse(name).is_some_and(|aside| known(aside.name));
            match self.folder {
                _ if at.is_file() && (known(name) || unfinished) => files.push(path),
                Some((of_files, _)) if at.is_dir() && name == of_files => folder = Some(path),
                _ => *foreign = Some(path),
            }
        }
        let (Some(folder), Some((_, extension))) = (folder, self.folder) else { return Ok(()) };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let unfinished = partial && name.to_str().and_then(Aside::parse).is_some_and(|a| has(a.name, extension));
            match entry.file_type()?.is_file() && (name.to_str().is_some_and(|n| has(n, extension)) || unfinished) {
                true => files.push(path),
                false => *foreign = Some(path),
            }
        }
        Ok(())
    }
}

fn has(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == extension)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A folder of two files and a folder of texts.
    pub(in crate::format) const LAYOUT: Layout =
        Layout { kind: "a test", required: &["a", "b"], optional: &["c"], folder: Some(("texts", "txt")) };

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "").unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_is_of_its_kind_with_all_its_files_and_nothing_else() {
        for whole in [&["a", "b"][..], &["a", "b", "c", "texts/x.txt", "texts/y.txt"]] {
            assert!(LAYOUT.is_whole(folder(whole).path()), "{whole:?}");
        }
        let others = [&[][..], &["a"], &["a", "c"], &["a", "b", "d"], &["a", "b", "texts/x"], &["a", "b/x"]];
        for other in others.into_iter().chain([&["a", "b", "texts/more/x.txt"][..], &["a", "b", ".a.7-0.tmp"]]) {
            assert!(!LAYOUT.is_whole(folder(other).path()), "{other:?}");
        }
        for (files, any) in [(&[][..], false), (&["thesis", "c", "texts/x.txt"], false), (&["b", "thesis"], true)] {
            assert_eq!(LAYOUT.is_any(folder(files).path()), any, "{files:?}");
        }
        assert!(!LAYOUT.is_whole(&folder(&["a"]).path().join("a")));
        assert!(!LAYOUT.is_whole(Path::new("/nowhere")));
    }

    #[test]
    fn a_partial_folder_is_deleted_and_one_with_anything_else_left_untouched() {
        for partial in [&[][..], &["a"], &["b", ".a.7-0.tmp", "texts/x.txt", "texts/.y.txt.7-1.tmp"]] {
            let dir = folder(partial);
            LAYOUT.delete(dir.path()).unwrap();
            assert!(!dir.path().exists(), "{partial:?}");
        }
        for other in [&["a", "thesis"][..], &["a", "texts/thesis"], &["a", ".thesis.7-0.tmp"], &["a", "b/thesis"]] {
            let dir = folder(other);
            LAYOUT.delete(dir.path()).unwrap_err();
            assert!(other.iter().all(|file| dir.path().join(file).exists()), "{other:?}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn links_and_pipes_belong_to_no_folder() {
        let elsewhere = folder(&["kept", "x.txt"]);
        for (at, target) in [("a", "kept"), ("texts", ""), ("texts/x.txt", "kept")] {
            let dir = folder(&["b"]);
            fs::create_dir_all(dir.path().join(at).parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(elsewhere.path().join(target), dir.path().join(at)).unwrap();
            assert!(LAYOUT.foreign(dir.path()).unwrap().is_some(), "{at}");
            LAYOUT.delete(dir.path()).unwrap_err();
            assert!(dir.path().join(at).exists() && dir.path().join("b").exists());
        }
        assert!(elsewhere.path().join("kept").exists() && elsewhere.path().join("x.txt").exists());
        let dir = folder(&["b"]);
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("a")).status().unwrap();
        assert!(made.success() && !LAYOUT.is_whole(dir.path()) && LAYOUT.delete(dir.path()).is_err());
    }
}
