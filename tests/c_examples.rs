//! The programs of `examples/c` compile without a warning and do what they say.
#![cfg(target_os = "linux")]

mod cc;
#[path = "support/folders.rs"]
mod folders;

use std::path::Path;
use std::process::Command;

use squire::serve::{Engine, EngineOptions, LoadOptions};

/// A chat model whose folder advises to take the likeliest token: what is said is the same in every run.
fn write_greedy_model(folder: &Path) {
    folders::write_chat_model(folder, 1);
    folders::advise(folder, serde_json::json!({ "do_sample": false }));
}

#[test]
fn the_readmes_lines_make_a_program_that_continues_a_prompt_from_any_folder() {
    let readme = std::fs::read_to_string(cc::root().join("README.md")).expect("there is a README");
    let block = |kind: &str| {
        let rest = readme.split(&format!("```{kind}\n")).nth(1).expect("it has such a block");
        rest.split("```").next().expect("a block ends").to_owned()
    };
    // As the tree is after `cargo build --release`, with the library of these tests.
    let folder = tempfile::tempdir().expect("a folder");
    let release = folder.path().join("target/release");
    std::fs::create_dir_all(&release).expect("a folder for the library");
    let link = |to: &Path, at: &Path| std::os::unix::fs::symlink(to, at).expect("a link");
    link(&cc::root().join("include"), &folder.path().join("include"));
    link(&cc::library(), &release.join("libsquire.so"));
    link("libsquire.so".as_ref(), &release.join("libsquire.so.0"));
    std::fs::write(folder.path().join("hello.c"), block("c")).expect("the source can be written");
    let shell = block("sh");
    let compile = shell.split("&&").map(str::trim).find(|line| line.starts_with("cc ")).expect("a line that compiles");
    let compile = compile.lines().next().expect("a line");
    cc::run(Command::new("sh").args(["-c", compile]).current_dir(folder.path()));
    let model = folder.path().join("model");
    write_greedy_model(&model);
    let say = |at: &Path| {
        let mut hello = Command::new(folder.path().join("hello"));
        cc::run(hello.args([model.as_os_str(), "hello".as_ref()]).current_dir(at))
    };
    let said = say(folder.path());
    assert!(!said.is_empty());
    assert_eq!(say("/".as_ref()), said);
}

#[test]
fn hello_continues_a_prompt() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("examples/c/hello.c"));
    let model = program.folder.path().join("model");
    write_greedy_model(&model);
    let say = |model: &Path, rest: &[&str]| {
        program.run([model.as_os_str(), "hello".as_ref()].into_iter().chain(rest.iter().map(|s| s.as_ref())))
    };
    assert!(!say(&model, &[]).is_empty());
    assert_eq!(say(&model, &[]), say(&model, &["cpu", "7"]), "the likeliest token needs no seed");
    let drawing = program.folder.path().join("drawing");
    folders::write_chat_model(&drawing, 1);
    assert_eq!(say(&drawing, &["cpu", "7"]), say(&drawing, &["cpu", "7"]), "the same seed, the same text");
    assert_ne!(say(&drawing, &["cpu", "7"]), say(&drawing, &["cpu", "8"]));
}

#[cfg(feature = "shim")]
#[test]
fn hello_says_on_a_gpu_what_it_says_on_the_processor() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("examples/c/hello.c"));
    let model = program.folder.path().join("model");
    folders::write_chat_model(&model, 1);
    // A short context, so that what a shim has to run ends soon.
    let config = model.join("config.json");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, text.replace("2048", "24")).expect("it can be written");
    let say = |backend: &str| program.run([model.as_os_str(), "hello".as_ref(), backend.as_ref(), "0".as_ref()]);
    // Both draw by the same seed and positions, and random weights of this deviation leave clear margins.
    let (on_gpu, on_cpu) = (say("cuda"), say("cpu"));
    assert!(!on_gpu.is_empty());
    assert_eq!(on_gpu.chars().next(), on_cpu.chars().next(), "{on_gpu:?} and {on_cpu:?}");
    assert_eq!(say("best"), on_gpu, "the best there is is the GPU");
}

#[test]
fn agent_teaches_a_teacher_and_lets_it_guide_a_student() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("examples/c/agent.c"));
    let at = |name: &str| program.folder.path().join(name);
    folders::write_chat_model(&at("student"), 1);
    folders::write_chat_model(&at("teacher"), 2);
    let said = program.run([at("student").as_os_str(), at("teacher").as_os_str(), at("out").as_os_str(), "2".as_ref()]);
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("teacher: sft, 2 updates: 0 of 18 games before"), "{said}");
    assert!(lines[1].starts_with("student: guided-opd, 2 updates: 0 of 18 games before"), "{said}");
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    engine.load(&at("out"), LoadOptions::default()).expect("the saved student loads");
}
