//! What leaves the shared library: the names of `tests/exports.txt` and no other, under the SONAME of this ABI.
#![cfg(target_os = "linux")]

mod cc;

use std::process::Command;

#[test]
fn the_library_exports_the_committed_names_and_no_other() {
    let table = cc::run(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(cc::library()));
    let names = table.lines().map(|line| line.split(' ').next().expect("a name"));
    let mut names: Vec<_> =
        names.filter(|name| !(cfg!(feature = "drill") && name.starts_with("squire_drill_"))).collect();
    names.sort_unstable();
    let wanted = std::fs::read_to_string(cc::root().join("tests/exports.txt")).expect("the list is committed");
    assert_eq!(names, wanted.lines().collect::<Vec<_>>());
    assert!(names.iter().all(|name| name.starts_with("squire_")));
}

/// Identifiers of C or C++ outside comments.
fn identifiers(code: &str) -> std::collections::BTreeSet<String> {
    let mut text = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("/*") {
        text.push_str(before);
        rest = after.split_once("*/").expect("a comment ends").1;
    }
    text.push_str(rest);
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned).collect()
}

#[test]
fn the_cpp_wrapper_has_every_export() {
    let read = |name: &str| std::fs::read_to_string(cc::root().join(name)).expect("it is committed");
    let wrapped = identifiers(&read("include/squire.hpp"));
    let exports = read("tests/exports.txt");
    let missing: Vec<_> = exports.lines().filter(|name| !wrapped.contains(*name)).collect();
    assert!(missing.is_empty(), "include/squire.hpp has nothing for {missing:?}");
}

#[test]
fn the_soname_names_the_abi() {
    let dynamic = cc::run(Command::new("readelf").arg("-d").arg(cc::library()));
    assert!(dynamic.contains("Library soname: [libsquire.so.0]"), "{dynamic}");
}

#[test]
fn cargo_leaves_a_link_of_the_soname_beside_the_library() {
    let profile = cc::library().ancestors().nth(2).expect("the tests lie in PROFILE/deps").to_owned();
    let link = std::fs::read_link(profile.join("libsquire.so.0")).expect("the build script makes it");
    assert_eq!(link.to_str(), Some("libsquire.so"));
}
