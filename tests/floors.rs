//! The house's order, read from the sources: imports point downwards, between the floors and between the files of one;
//! unsafe code stays where it is allowed, and the forward pass has the callers it should have.
//!
//! Comments, strings and test modules are not code: `//` lines are dropped, and a file is read up to its
//! `#[cfg(test)] mod tests`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The floors as `src/lib.rs` has them.
const FLOORS: [(&str, usize); 12] = [
    ("error", 0),
    ("memory", 0),
    ("random", 0),
    ("sync", 0),
    ("tensor", 1),
    ("format", 1),
    ("text", 1),
    ("backend", 2),
    ("model", 3),
    ("serve", 4),
    ("distill", 5),
    ("ffi", 6),
];
/// The program stands above everything.
const PROGRAM: usize = 6;
/// Where unsafe code may stand.
const UNSAFE: [&str; 4] = ["ffi", "backend", "format/mmap.rs", "format/system.rs"];
/// Who runs the forward pass. Rollout and training must be the same arithmetic, so there is one definition, in
/// `model/forward.rs`, and these calls of it.
const FORWARD_CALLS: [&str; 4] =
    ["bin/squire/bench/llama.rs", "distill/learner.rs", "distill/update_kl.rs", "serve/round.rs"];

/// Every source file by its path below `src`, without comments and tests.
fn sources() -> BTreeMap<String, String> {
    fn collect(folder: &Path, root: &Path, into: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, root, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                into.insert(name, code_of(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src"].iter().collect();
    let mut all = BTreeMap::new();
    collect(&root, &root, &mut all);
    all
}

fn code_of(text: &str) -> String {
    // The attribute may name an architecture too.
    let tests = text.match_indices("]\nmod tests").map(|(at, _)| text[..at].rfind("#[").unwrap_or(at));
    let text = &text[..tests.min().unwrap_or(text.len())];
    let uncommented = |line: &str| line.split("//").next().unwrap().to_string();
    text.lines().map(uncommented).collect::<Vec<_>>().join("\n")
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The floor a file stands on; None for `lib.rs`, which is the house itself.
fn floor_of_file(file: &str) -> Option<usize> {
    let module = file.split('/').next().unwrap().trim_end_matches(".rs");
    match module {
        "lib" => None,
        "bin" => Some(PROGRAM),
        _ => Some(floor_of(module).unwrap_or_else(|| panic!("{file} stands on no floor; add it to the table"))),
    }
}

fn is_part_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The modules of this crate that a text names: what follows each `root::`, braces opened one level.
fn modules_named(code: &str, root: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices(root) {
        if code[..at].ends_with(|c: char| is_part_of_a_name(c) || c == ':') {
            continue;
        }
        let rest = code[at + root.len()..].trim_start();
        match rest.strip_prefix('{') {
            None => modules.push(rest.chars().take_while(|&c| is_part_of_a_name(c)).collect()),
            Some(list) => {
                let (mut depth, mut word, mut at_start) = (0, String::new(), true);
                for c in list.chars() {
                    match c {
                        '}' if depth == 0 => break,
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 && at_start && is_part_of_a_name(c) {
                        word.push(c);
                    } else if !word.is_empty() {
                        modules.push(std::mem::take(&mut word));
                        at_start = false;
                    }
                    at_start |= depth == 0 && c == ',';
                }
                modules.extend((!word.is_empty()).then_some(word));
            }
        }
    }
    modules
}

/// Each import that points upwards, as "file: module".
fn upward(sources: &BTreeMap<String, String>) -> (usize, Vec<String>) {
    let (mut read, mut wrong) = (0, Vec::new());
    for (file, code) in sources {
        let Some(floor) = floor_of_file(file) else { continue };
        let root = if file.starts_with("bin/") { "squire::" } else { "crate::" };
        for module in modules_named(code, root) {
            // What is not a module is a macro or a re-export of the crate's root, which has none of its own.
            let named = floor_of(&module);
            read += 1;
            if named.is_none_or(|named| named > floor) {
                wrong.push(format!("{file}: {module}"));
            }
        }
    }
    (read, wrong)
}

#[test]
fn imports_point_downwards_only() {
    let (read, wrong) = upward(&sources());
    println!("{read} imports read");
    assert!(read > 100, "only {read} imports were found: the reader is broken");
    assert_eq!(wrong, Vec::<String>::new(), "upward imports");
}

#[test]
fn the_reader_of_imports_finds_upward_ones() {
    let upward = |file: &str, code: &str| upward(&BTreeMap::from([(file.to_string(), code_of(code))])).1;
    assert_eq!(upward("model/mod.rs", "use crate::serve::Engine;"), ["model/mod.rs: serve"]);
    assert_eq!(upward("text/a.rs", "use crate::{error::{Error, Fault}, backend::ops};"), ["text/a.rs: backend"]);
    assert_eq!(upward("serve/a.rs", "fn f() { crate::distill::g() }"), ["serve/a.rs: distill"]);
    assert_eq!(upward("error.rs", "use crate::random::mix; pub(crate) fn f() {}"), Vec::<String>::new());
    assert_eq!(upward("model/a.rs", "// use crate::serve\nuse crate::backend;"), Vec::<String>::new());
}

/// Whether `file` stands under `#![forbid(unsafe_code)]`: in its own head, or in that of the module file of a
/// folder it lies in (`a/mod.rs` for all of `a`, since the attribute reaches every module below).
fn forbids_unsafe(sources: &BTreeMap<String, String>, file: &str) -> bool {
    let says = |file: &str| sources.get(file).is_some_and(|code| code.contains("#![forbid(unsafe_code)]"));
    let folders = file.match_indices('/').map(|(at, _)| format!("{}/mod.rs", &file[..at]));
    says(file) || folders.into_iter().any(|parent| says(&parent))
}

/// Files outside the allowed places that do not forbid unsafe code, or use the keyword.
fn unsafe_outside(sources: &BTreeMap<String, String>) -> Vec<String> {
    // Files that hold nothing but the modules below them cannot forbid what one of those needs; they may not
    // use the keyword either.
    let parents = ["lib.rs", "format/mod.rs"];
    let allowed = |file: &str| UNSAFE.iter().any(|place| file == *place || file.starts_with(&format!("{place}/")));
    let uses = |code: &str| {
        // The keyword begins one of these; the word may stand in a sentence.
        let standing_alone = |at: usize| {
            let after = &code[at + "unsafe".len()..];
            let begins =
                ["{", "fn ", "impl", "extern", "trait"].iter().any(|word| after.trim_start().starts_with(word));
            !code[..at].ends_with(is_part_of_a_name) && !after.starts_with(is_part_of_a_name) && begins
        };
        code.match_indices("unsafe").any(|(at, _)| standing_alone(at))
    };
    let outside = sources.iter().filter(|(file, _)| !allowed(file));
    let wrong = outside
        .filter(|(file, code)| uses(code) || !(forbids_unsafe(sources, file) || parents.contains(&file.as_str())));
    wrong.map(|(file, _)| file.clone()).collect()
}

#[test]
fn unsafe_code_stands_only_where_it_is_allowed() {
    assert_eq!(unsafe_outside(&sources()), Vec::<String>::new());
}

#[test]
fn the_reader_of_unsafe_code_finds_it() {
    let of = |files: &[(&str, &str)]| {
        unsafe_outside(&files.iter().map(|(file, code)| (file.to_string(), code_of(code))).collect())
    };
    let forbid = "#![forbid(unsafe_code)]\n";
    assert_eq!(of(&[("model/a.rs", "fn f() {}")]), ["model/a.rs"]);
    assert_eq!(of(&[("model/mod.rs", forbid), ("model/a.rs", "fn f() {}")]), Vec::<String>::new());
    assert_eq!(of(&[("model/a.rs", "#![forbid(unsafe_code)]\nfn f() { unsafe {} }")]), ["model/a.rs"]);
    assert_eq!(of(&[("lib.rs", "unsafe fn f() {}")]), ["lib.rs"]);
    assert_eq!(of(&[("ffi/a.rs", "unsafe fn f() {}"), ("format/mmap.rs", "unsafe {}")]), Vec::<String>::new());
}

/// Definitions and calls of a function named exactly `forward` or `forward_while` (the same, given up on demand) from the
/// model's floor up, one entry a call, by file. The ops below have private functions of that name, and cannot call upwards.
fn forward_calls(sources: &BTreeMap<String, String>) -> (usize, Vec<String>) {
    let (mut definitions, mut calls) = (0, Vec::new());
    for (file, code) in sources.iter().filter(|(file, _)| floor_of_file(file) >= floor_of("model")) {
        let of = |name: &'static str| code.match_indices(name).map(|(at, _)| at);
        let own = |file: &str| file == "model/forward.rs";
        for at in of("forward(").chain(of("forward_while(").filter(|_| !own(file))) {
            let before = &code[..at];
            if before.ends_with("fn ") {
                definitions += 1;
            } else if !before.ends_with(is_part_of_a_name) && !before.ends_with('.') {
                calls.push(file.clone());
            }
        }
    }
    (definitions, calls)
}

#[test]
fn the_forward_pass_is_written_once_and_called_where_it_should_be() {
    let sources = sources();
    let (definitions, calls) = forward_calls(&sources);
    assert_eq!(definitions, 1);
    assert!(sources["model/forward.rs"].contains("pub fn forward("));
    assert_eq!(calls, FORWARD_CALLS);
    // Nobody gives it another name.
    let renamed = |code: &String| code.contains("forward as ") || code.contains("= forward;");
    assert!(!sources.values().any(renamed));
}

/// Floors whose files are held to an order among themselves.
const ORDERED: [&str; 5] = ["backend", "model", "serve", "distill", "ffi"];

/// The files of one floor and what each imports of the others.
///
/// A path is followed through modules to the file that defines its item: `pub use` in a module's file leads on, and is
/// itself no import, since a module's file lists what lies below it.
struct Floor<'a> {
    /// file by module path: `a/mod.rs` and `a.rs` are both `a`
    files: BTreeMap<Vec<String>, &'a str>,
    /// (module, name): where a `pub use` leads
    exports: BTreeMap<(Vec<String>, String), Vec<String>>,
    imports: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

/// The path of the module that a file is.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(String::from).collect()
}

/// Files that hold nothing but tests, whose module is declared under `#[cfg(test)]`.
fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.ends_with("claims.rs")
}

/// Every path of a use tree, `a::{b, c::{self, d as e}}`, with the name that it gets.
fn paths_of(tree: &str, before: &[String], into: &mut Vec<(Vec<String>, String)>) {
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        let names = |path: &str| path.split("::").map(str::trim).filter(|n| !n.is_empty()).map(String::from).collect();
        let mut path = before.to_vec();
        match part.find('{') {
            Some(open) => {
                path.extend::<Vec<String>>(names(&part[..open]));
                paths_of(&part[open + 1..part.rfind('}').unwrap()], &path, into);
            }
            None => {
                let (real, alias) = part.split_once(" as ").unwrap_or((part, ""));
                path.extend::<Vec<String>>(names(real));
                path.retain(|name| name != "self" || part == "self");
                let name =
                    if alias.is_empty() { path.last().cloned().unwrap_or_default() } else { alias.trim().into() };
                into.push((path, name));
            }
        }
    }
}

/// The paths that a file's code names, each with whether it hands it on.
fn paths_in(code: &str) -> Vec<(bool, Vec<String>, String)> {
    let mut found = Vec::new();
    let mut rest = String::new();
    let mut statement = String::new();
    for line in code.lines() {
        let begins = line.trim_start();
        let public = begins.starts_with("pub use ") || begins.starts_with("pub(") && begins.contains(") use ");
        if statement.is_empty() && !(public || begins.starts_with("use ")) {
            rest.push_str(line);
            rest.push('\n');
            continue;
        }
        statement.push_str(begins);
        if let Some(end) = statement.find(';') {
            let (head, tree) = statement[..end].split_once("use ").unwrap();
            let mut paths = Vec::new();
            paths_of(tree, &[], &mut paths);
            found.extend(paths.into_iter().map(|(path, name)| (!head.is_empty(), path, name)));
            statement.clear();
        }
    }
    // Paths in between; which of them begin in the crate, `absolute` knows.
    for (at, _) in rest.match_indices("::") {
        let start = rest[..at].rfind(|c: char| !is_part_of_a_name(c)).map_or(0, |before| before + 1);
        if start < at && !rest[..start].ends_with(':') {
            let path: String = rest[start..].chars().take_while(|&c| is_part_of_a_name(c) || c == ':').collect();
            let path = path.split("::").filter(|name| !name.is_empty()).map(String::from).collect();
            found.push((false, path, String::new()));
        }
    }
    found
}

impl<'a> Floor<'a> {
    fn read(sources: &'a BTreeMap<String, String>, floor: &str) -> Floor<'a> {
        let within = format!("{floor}/");
        let own: Vec<_> = sources.iter().filter(|(file, _)| file.starts_with(&within) && !is_test(file)).collect();
        let files = own.iter().map(|(file, _)| (module_of(file), file.as_str())).collect();
        let mut read = Floor { files, exports: BTreeMap::new(), imports: BTreeMap::new() };
        let named: Vec<_> = own.iter().map(|(file, code)| (file.as_str(), paths_in(code))).collect();
        for (file, paths) in &named {
            for (_, path, name) in paths.iter().filter(|(hands_on, ..)| *hands_on) {
                if let Some(path) = read.absolute(file, path) {
                    read.exports.insert((module_of(file), name.clone()), path);
                }
            }
        }
        for (file, paths) in named {
            let lists = |hands_on: bool| hands_on && file.ends_with("/mod.rs");
            let imported = paths.iter().filter(|(hands_on, ..)| !lists(*hands_on));
            let imported = imported.filter_map(|(_, path, _)| read.file_of(&read.absolute(file, path)?, 0));
            let imported = imported.filter(|other| *other != file).collect();
            read.imports.insert(file, imported);
        }
        read
    }

    /// A path from the crate's root; None for one that begins outside the crate.
    fn absolute(&self, file: &str, path: &[String]) -> Option<Vec<String>> {
        let (mut module, mut path) = (module_of(file), path);
        match path.first()?.as_str() {
            "crate" => return Some(path[1..].to_vec()),
            "super" => {
                while path.first().is_some_and(|name| name == "super") {
                    module.pop();
                    path = &path[1..];
                }
            }
            first => {
                let child: Vec<String> = module.iter().cloned().chain([first.to_string()]).collect();
                self.files.get(&child)?;
            }
        }
        Some(module.into_iter().chain(path.iter().cloned()).collect())
    }

    /// The file that defines what a path names, if it is one of this floor.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&'a str> {
        assert!(depth < 20, "{path:?} leads round in circles");
        let n = (1..=path.len()).rev().find(|&n| self.files.contains_key(&path[..n]))?;
        let (module, item) = path.split_at(n);
        let leads = item.first().and_then(|name| self.exports.get(&(module.to_vec(), name.clone())));
        match leads {
            Some(on) => self.file_of(&[on.as_slice(), &item[1..]].concat(), depth + 1),
            None => self.files.get(module).copied(),
        }
    }

    /// Files that can all be reached from each other.
    fn circles(&self) -> Vec<Vec<&'a str>> {
        let reached = |from: &'a str| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(file) = next.pop() {
                next.extend(self.imports[file].iter().filter(|other| seen.insert(**other)));
            }
            seen
        };
        let reached: BTreeMap<&str, BTreeSet<&str>> = self.imports.keys().map(|&file| (file, reached(file))).collect();
        let mut circles = BTreeSet::new();
        for (&file, others) in reached.iter().filter(|(file, others)| others.contains(*file)) {
            let with: Vec<&'a str> = self.imports.keys().copied().filter(|o| others.contains(o)).collect();
            circles.insert(with.into_iter().filter(|other| reached[other].contains(file)).collect());
        }
        circles.into_iter().collect()
    }
}

#[test]
fn files_of_a_floor_import_each_other_in_one_direction() {
    let sources = sources();
    for floor in ORDERED {
        let read = Floor::read(&sources, floor);
        let n: usize = read.imports.values().map(BTreeSet::len).sum();
        println!("{floor}: {} files, {n} imports", read.imports.len());
        assert!(n >= read.imports.len() / 2, "only {n} imports were found in {floor}: the reader is broken");
        let circles = read.circles();
        assert!(circles.is_empty(), "circles of files in {floor}: {circles:?}; {:#?}", read.imports);
    }
}

#[test]
fn the_reader_of_files_finds_circles() {
    let circles = |files: &[(&str, &str)]| -> Vec<String> {
        let sources = files.iter().map(|(file, code)| (file.to_string(), code_of(code))).collect();
        Floor::read(&sources, "a").circles().iter().map(|files| files.join(" ")).collect()
    };
    let none = Vec::<String>::new();
    // Straight and through a module's list; a list alone is no import.
    let list = ("a/mod.rs", "mod b;\nmod c;\npub use b::{B, other as Other};\npub use c::C;");
    assert_eq!(circles(&[list, ("a/b.rs", "use super::C;"), ("a/c.rs", "use crate::error::Error;")]), none);
    assert_eq!(circles(&[list, ("a/b.rs", "use super::C;"), ("a/c.rs", "use crate::a::Other;")]), ["a/b.rs a/c.rs"]);
    assert_eq!(circles(&[list, ("a/b.rs", "use super::{\n    x,\n    c::{self, D},\n};"), ("a/c.rs", "")]), none);
    assert_eq!(
        circles(&[list, ("a/b.rs", "fn f() { super::c::g() }"), ("a/c.rs", "use super::b;")]),
        ["a/b.rs a/c.rs"]
    );
    // What a module's file defines itself, and what a test imports.
    let defines = ("a/mod.rs", "mod b;\nuse b::B;\npub struct A;");
    assert_eq!(circles(&[defines, ("a/b.rs", "use super::A;")]), ["a/b.rs a/mod.rs"]);
    assert_eq!(circles(&[defines, ("a/b.rs", "#[cfg(test)]\nmod tests {\n    use super::super::A;\n}")]), none);
    // Deeper, and in a ring of three.
    let deep = [
        ("a/mod.rs", "pub mod d;\nmod e;"),
        ("a/d/mod.rs", "mod f;\npub use f::F;"),
        ("a/d/f.rs", "use crate::a::e::E;"),
    ];
    let files = |last| [deep[0], deep[1], deep[2], ("a/e.rs", last)];
    assert_eq!(circles(&files("use super::d::F;")), ["a/d/f.rs a/e.rs"]);
    assert_eq!(circles(&files("use std::fmt;")), none);
}
