//! The house's order, read from the sources: imports point downwards, unsafe code stays where it is allowed,
//! and the forward pass has the callers it should have.
//!
//! Comments, strings and test modules are not code: `//` lines are dropped, and a file is read up to its
//! `#[cfg(test)] mod tests`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors as `src/lib.rs` has them.
const FLOORS: [(&str, usize); 10] = [
    ("error", 0),
    ("random", 0),
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
const FORWARD_CALLS: [&str; 3] = ["distill/learner.rs", "distill/update_kl.rs", "serve/scheduler.rs"];

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
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
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

/// Definitions and calls of a function named exactly `forward` from the model's floor up, one entry a call, by
/// file. The ops below have private functions of that name, and cannot call upwards.
fn forward_calls(sources: &BTreeMap<String, String>) -> (usize, Vec<String>) {
    let (mut definitions, mut calls) = (0, Vec::new());
    for (file, code) in sources.iter().filter(|(file, _)| floor_of_file(file) >= floor_of("model")) {
        for (at, _) in code.match_indices("forward(") {
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
