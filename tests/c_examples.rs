//! The programs of `examples/c` compile without a warning and do what they say.
#![cfg(target_os = "linux")]

mod cc;
#[path = "support/folders.rs"]
mod folders;

use squire::serve::{Engine, EngineOptions, LoadOptions};

#[test]
fn the_readmes_program_compiles_and_continues_a_prompt() {
    let readme = std::fs::read_to_string(cc::root().join("README.md")).expect("there is a README");
    let code = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).expect("it shows a program");
    let folder = tempfile::tempdir().expect("a folder for the source");
    let source = folder.path().join("hello.c");
    std::fs::write(&source, code).expect("the source can be written");
    let program = cc::Program::compile("gcc", "c99", &source);
    let model = program.folder.path().join("model");
    folders::write_chat_model(&model, 1);
    assert!(!program.run([model.as_os_str(), "hello".as_ref()]).is_empty());
}

#[test]
fn hello_continues_a_prompt() {
    let program = cc::Program::compile("gcc", "c99", &cc::root().join("examples/c/hello.c"));
    let model = program.folder.path().join("model");
    folders::write_chat_model(&model, 1);
    let said = program.run([model.as_os_str(), "hello".as_ref()]);
    assert!(!said.is_empty());
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
    let say = |backend: &str| program.run([model.as_os_str(), "hello".as_ref(), backend.as_ref()]);
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
