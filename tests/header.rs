//! `include/squire.h` is what the sources say. The header is written section by section, one file of `src/ffi` each,
//! and compared with the committed one; `SQUIRE_WRITE_HEADER=1 cargo test --test header` writes it instead.

mod cc;

use std::fmt::Write;
use std::process::Command;

/// The sections, in the header's order: title and files.
const SECTIONS: &[(&str, &[&str])] = &[
    ("version and build", &["version"]),
    ("status", &["status"]),
    ("errors", &["error"]),
    ("callbacks", &["callbacks"]),
    ("results", &["text", "tokens", "scores"]),
    ("cancelling", &["cancel"]),
    ("engine", &["engine"]),
    ("model, tokens and text", &["model"]),
    ("session", &["session"]),
    ("adapter", &["adapter"]),
    ("chat", &["chat"]),
    ("generation", &["gen_options", "event", "generation"]),
    ("queue", &["queue"]),
    ("score", &["score"]),
];

/// The sections under SQUIRE_EXPERIMENTAL.
const EXPERIMENTAL: &[(&str, &[&str])] = &[
    ("distiller", &["distiller"]),
    ("teacher", &["teacher"]),
    ("episode", &["episode"]),
    ("update", &["update"]),
    ("record", &["record"]),
];

fn config() -> cbindgen::Config {
    cbindgen::Config::from_file(cc::root().join("cbindgen.toml")).expect("cbindgen.toml is valid")
}

/// The declarations of one file.
fn declarations(file: &str) -> String {
    let mut config = config();
    config.header = None;
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = builder.with_src(cc::root().join(format!("src/ffi/{file}.rs")));
    let mut text = Vec::new();
    builder.generate().expect("the sources parse").write(&mut text);
    tidy(&String::from_utf8(text).expect("the header is UTF-8"))
}

/// The generator's text with a star on each line of a comment, and macros one a line with their comments behind.
fn tidy(text: &str) -> String {
    let (mut lines, mut start) = (Vec::<String>::new(), None);
    for line in text.trim().lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        match (line.trim(), start) {
            ("/*", _) => start = Some("/* "),
            ("*/", Some(_)) => {
                lines.last_mut().expect("a comment has text").push_str(" */");
                start = None;
            }
            (sentence, Some(mark)) => {
                // Inside a comment the generator indents by one more.
                let indent = if mark == "/* " { &indent[1..] } else { indent };
                lines.push(format!("{indent}{mark}{sentence}"));
                start = Some("* ");
            }
            _ => lines.push(line.to_owned()),
        }
    }
    let mut tidied = String::new();
    for block in lines.join("\n").split("\n\n") {
        let lines: Vec<_> = block.lines().collect();
        let after_macro = tidied.lines().last().is_some_and(|line| line.starts_with("#define"));
        match lines[..] {
            [comment, line] if line.starts_with("#define ") => {
                let (name, value) = line["#define ".len()..].split_once(' ').expect("a macro has a value");
                let value = if value.starts_with('-') { format!("({value})") } else { value.to_owned() };
                let gap = if after_macro || tidied.is_empty() { "" } else { "\n" };
                writeln!(tidied, "{gap}#define {name} {value} {comment}").expect("memory");
            }
            _ => writeln!(tidied, "{}{block}", if tidied.is_empty() { "" } else { "\n" }).expect("memory"),
        }
    }
    tidied.trim().to_owned()
}

/// The detail codes, read from the table in `src/error.rs`: its sentences are the header's.
fn details() -> String {
    let source = std::fs::read_to_string(cc::root().join("src/error.rs")).expect("the table is there");
    let table = source.split_once("\nfaults! {").and_then(|(_, rest)| rest.split_once("\n}")).expect("the table").0;
    let (mut text, mut sentence) = (String::new(), String::new());
    for line in table.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            sentence.push_str(doc);
        } else if let Some((name, rest)) = line.split_once(" = ") {
            let code: i32 = rest.split(' ').next().and_then(|code| code.parse().ok()).expect("name = code => status");
            let name = screaming(name);
            // An outcome makes no error object, so nobody sees its code.
            if code > 0 {
                writeln!(text, "#define SQUIRE_DETAIL_{name} {code} /*{sentence} */").expect("memory");
            }
            sentence.clear();
        }
    }
    text
}

fn screaming(camel: &str) -> String {
    let mut name = String::new();
    for c in camel.chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

fn write_sections(text: &mut String, sections: &[(&str, &[&str])]) {
    for (title, files) in sections {
        let bar = "-".repeat(100 - title.len());
        write!(text, "\n/* ---- {title} {bar} */\n").expect("memory");
        for file in *files {
            write!(text, "\n{}\n", declarations(file)).expect("memory");
        }
        if *title == "errors" {
            let head =
                "/* What squire_error_detail gives: one number for every distinguishable fault, never reused. */";
            write!(text, "\n{head}\n{}", details()).expect("memory");
        }
    }
}

/// The whole header.
fn header() -> String {
    let mut text = config().header.expect("the head stands in cbindgen.toml").trim().to_owned();
    text.push_str("\n\n#ifndef SQUIRE_H\n#define SQUIRE_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n");
    let version = env!("CARGO_PKG_VERSION");
    writeln!(text, "/* The version that this header belongs to. */\n#define SQUIRE_VERSION \"{version}\"")
        .expect("memory");
    text.push_str("\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n");
    write_sections(&mut text, SECTIONS);
    text.push_str("\n#ifdef SQUIRE_EXPERIMENTAL\n");
    write_sections(&mut text, EXPERIMENTAL);
    text.push_str("\n#endif /* SQUIRE_EXPERIMENTAL */\n");
    text.push_str("\n#ifdef __cplusplus\n}\n#endif\n\n#endif /* SQUIRE_H */\n");
    text
}

fn committed() -> String {
    std::fs::read_to_string(cc::root().join("include/squire.h")).expect("include/squire.h is committed")
}

#[test]
fn the_committed_header_is_what_the_sources_say() {
    let wanted = header();
    if std::env::var_os("SQUIRE_WRITE_HEADER").is_some() {
        std::fs::write(cc::root().join("include/squire.h"), wanted).expect("the header can be written");
        return;
    }
    let found = committed();
    if let Some((i, (wanted, found))) = wanted.lines().zip(found.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("line {} is\n{found}\nwanted\n{wanted}\nrun SQUIRE_WRITE_HEADER=1 cargo test --test header", i + 1);
    }
    assert_eq!(wanted.len(), found.len(), "one is longer; run SQUIRE_WRITE_HEADER=1 cargo test --test header");
}

#[test]
fn every_file_of_the_boundary_stands_in_the_header_or_has_nothing_for_it() {
    let listed: Vec<_> = SECTIONS.iter().chain(EXPERIMENTAL).flat_map(|(_, files)| *files).collect();
    for entry in std::fs::read_dir(cc::root().join("src/ffi")).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        let source = std::fs::read_to_string(&path).expect("a source file");
        let exports = source.contains("no_mangle") && name != "drill";
        assert!(!exports || listed.contains(&&name.as_str()), "src/ffi/{name}.rs exports, but has no section");
    }
}

#[test]
fn every_function_of_the_header_has_its_comment() {
    let text = committed();
    let lines: Vec<_> = text.lines().collect();
    let mut found = 0;
    for (i, line) in lines.iter().enumerate() {
        let function = line.starts_with(|c: char| c.is_ascii_lowercase()) && !line.starts_with("typedef");
        if function && line.split('(').next().is_some_and(|head| head != *line && head.contains("squire_")) {
            found += 1;
            assert!(lines[i - 1].ends_with(" */"), "no comment before: {line}");
        }
    }
    let exports = std::fs::read_to_string(cc::root().join("tests/exports.txt")).expect("the list is committed");
    assert_eq!(found, exports.lines().count(), "functions in the header and names in tests/exports.txt");
}

#[test]
fn no_struct_goes_by_value_and_no_enum_stands_in_the_header() {
    let text = committed();
    assert!(!text.contains("enum "), "an enum has no fixed size");
    assert!(!text.contains("bool"), "a bool is no field of the interface");
}

#[test]
fn the_header_alone_compiles_without_a_warning_as_c99_c11_and_cpp17() {
    let cases = [("gcc", "c99", "c"), ("gcc", "c11", "c"), ("g++", "c++17", "c++")];
    for (compiler, standard, language) in cases {
        for experimental in ["-DSQUIRE_EXPERIMENTAL", "-USQUIRE_EXPERIMENTAL"] {
            cc::run(
                Command::new(compiler)
                    .arg(format!("-std={standard}"))
                    .args(cc::STRICT)
                    .args([experimental, "-fsyntax-only", "-x", language])
                    .args(["-include", "squire.h", "-I"])
                    .arg(cc::root().join("include"))
                    .arg("/dev/null"),
            );
        }
    }
}

#[test]
fn the_cpp_header_alone_compiles_without_a_warning_as_cpp17_and_cpp20() {
    for standard in ["c++17", "c++20"] {
        cc::run(
            Command::new("g++")
                .arg(format!("-std={standard}"))
                .args(cc::STRICT)
                .args(["-DSQUIRE_EXPERIMENTAL", "-fsyntax-only", "-x", "c++", "-include", "squire.hpp", "-I"])
                .arg(cc::root().join("include"))
                .arg("/dev/null"),
        );
    }
}

#[test]
fn detail_codes_of_the_header_are_those_of_the_table() {
    let text = committed();
    let faults: Vec<_> = squire::error::Fault::ALL.iter().filter(|&&fault| fault as i32 > 0).collect();
    for &&fault in &faults {
        let line = format!("#define SQUIRE_DETAIL_{} {} ", screaming(fault.name()), fault as i32);
        assert!(text.contains(&line), "{line}");
    }
    assert_eq!(text.matches("#define SQUIRE_DETAIL_").count(), faults.len());
}
