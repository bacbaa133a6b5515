//! The program `squire` run by tests, and a folder that it can chat with.
#![allow(dead_code)] // not every test needs all of it

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use squire::backend::Device;
use squire::backend::cpu::Cpu;
use squire::format::{ChatTemplates, Companions, save_model};
use squire::model::{ModelConfig, Weights};
use squire::tensor::Dtype;

use crate::tiny_tokenizer;

/// What a run of the program left: exit code, stdout, stderr.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn squire(args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_squire")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().expect("no signal"), out: text(output.stdout), err: text(output.stderr) }
}

/// The one JSON object of a run that succeeded.
pub fn json_of(args: &[&str]) -> Value {
    let ran = squire(args);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
    assert_eq!(ran.out.lines().count(), 1, "{args:?}: one object, one line");
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(value.is_object());
    value
}

/// A run that must be refused: by exit code, with a message that names what is wrong and nothing else.
pub fn refused(args: &[&str], code: i32, named: &str) {
    let ran = squire(args);
    assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
    assert_eq!(ran.out, "", "{args:?}: a refusal prints nothing on stdout");
    assert!(ran.err.starts_with("squire: ") && ran.err.contains(named), "{args:?}: {}", ran.err);
    assert!(!ran.err.contains("panicked") && !ran.err.contains("RUST_BACKTRACE"), "{args:?}: {}", ran.err);
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with a tokenizer and a chat template: random weights of the shape of a golden model.
pub fn chat_folder() -> (tempfile::TempDir, PathBuf) {
    chat_folder_with(|_| {})
}

pub fn chat_folder_with(change: impl FnOnce(&mut Weights)) -> (tempfile::TempDir, PathBuf) {
    let mut config = ModelConfig::from_json(&golden_json("dense_f32/config.json")).unwrap();
    config.vocab_size = 273;
    let device = Device::Cpu(Cpu::new(1, None).unwrap());
    let mut weights = Weights::random(&config, &device, Dtype::F32, 5, 0.2).unwrap();
    change(&mut weights);
    let template = std::fs::read_to_string(golden("qwen3_chat_template.jinja")).unwrap();
    let tokenizer = tiny_tokenizer::tiny_tokenizer_json();
    let companions = Companions {
        tokenizer: Some(&tokenizer),
        chat_templates: Some(&ChatTemplates::of(&template)),
        ..Companions::default()
    };
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    let tensors = weights.tensors();
    let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
    save_model(&dir, &config.to_json(), list, companions).unwrap();
    (parent, dir)
}

/// What the program answers to lines on stdin.
pub fn squire_with(args: &[&str], stdin: &str) -> Ran {
    use std::io::Write;
    let mut command = Command::new(env!("CARGO_BIN_EXE_squire"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().expect("no signal"), out: text(output.stdout), err: text(output.stderr) }
}
