//! Other languages over the C interface give the ids that the Rust interface gives.
#![cfg(target_os = "linux")]

mod cc;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use squire::backend::Compute;
use squire::backend::ops::Sampling;
use squire::serve::{Engine, EngineOptions, GenerationOptions, LoadOptions, Session};

const PROMPT: [i32; 4] = [5, 6, 7, 8];

/// Whether a tool is there. If not, says so on the real standard error: the test then proves nothing.
fn have(tool: &str, version: &str) -> bool {
    let found = Command::new(tool).arg(version).output().is_ok_and(|output| output.status.success());
    if !found {
        let _ = writeln!(std::io::stderr(), "skipped, not passed: {tool} is not on the path");
    }
    found
}

/// The folder that all of them load.
fn model() -> PathBuf {
    cc::root().join("tests/golden/dense_f32")
}

/// Eight greedy tokens by the Rust interface, printed as the programs print them.
fn expected() -> String {
    let engine = Engine::new(EngineOptions { compute: Compute::F32, ..EngineOptions::default() }).expect("an engine");
    let model = engine.load(&model(), LoadOptions::default()).expect("the model loads");
    let session = Session::new(&model).expect("a session");
    session.sync(&PROMPT).expect("the ids are known");
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    let options = GenerationOptions { max_tokens: 8, sampling, ..GenerationOptions::default() };
    let (chunk, _) = session.generate(options).expect("it starts").collect().expect("it ends");
    assert_eq!(chunk.ids.len(), 8);
    chunk.ids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ") + "\n"
}

#[test]
fn python_gives_the_ids_that_rust_gives() {
    if have("python3", "--version") {
        let mut python = Command::new("python3");
        python.arg(cc::root().join("bindings/python/smoke.py")).arg(cc::library()).arg(model());
        assert_eq!(cc::run(python.args(PROMPT.map(|id| id.to_string()))), expected());
    }
}

#[test]
fn go_gives_the_ids_that_rust_gives() {
    if have("go", "version") {
        let folder = tempfile::tempdir().expect("a folder for the program");
        for name in ["libsquire.so", "libsquire.so.0"] {
            std::os::unix::fs::symlink(cc::library(), folder.path().join(name)).expect("a link to the library");
        }
        let program = folder.path().join("smoke");
        let mut go = Command::new("go");
        go.current_dir(cc::root().join("bindings/go/smoke")).args(["build", "-o"]).arg(&program).arg(".");
        cc::run(go.env("CGO_LDFLAGS", format!("-L{}", folder.path().display())).env("GOWORK", "off"));
        let mut smoke = Command::new(program);
        smoke.env("LD_LIBRARY_PATH", folder.path()).arg(model());
        assert_eq!(cc::run(smoke.args(PROMPT.map(|id| id.to_string()))), expected());
    }
}
