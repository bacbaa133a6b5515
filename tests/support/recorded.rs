//! Runs that are played and learnt in this process, with their records, beside what the program makes of these.
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Distiller, EpisodeSpec, RecordOptions, Teacher, TeacherQueue};
use squire::serve::{LoadOptions, ServedModel};

use super::answering::{answer_all, queue};
use super::folders::write_chat_model;
use super::scripted::*;

/// Who teaches a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Taught {
    /// A model beside the student.
    Model,
    /// The host, which answers from that model with so many ids a place.
    Host(u32),
}

/// A folder with models, a record, and what was learnt.
pub struct Recorded {
    pub root: tempfile::TempDir,
    pub run: PathBuf,
    pub student: PathBuf,
    pub teacher: PathBuf,
    /// what was learnt in this process
    pub learnt: PathBuf,
}

/// The settings of a run of `steps` steps of 3 episodes.
pub fn steps(steps: u64, more: Value) -> Value {
    let mut document = json!({
        "preset": "opd", "steps": steps, "batch_episodes": 3, "max_turns": 3, "seed": 11,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
    });
    more.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    document
}

/// Plays an episode of three turns, of which the second is rewarded.
fn play_one(d: &Distiller, spec: EpisodeSpec) {
    let episode = d.begin(spec).unwrap();
    let (id, mut said) = (episode.trajectory().unwrap().heading.episode, Vec::new());
    for turn in 0..3 {
        episode.observe_ids(&observation(id, turn, &said)).unwrap();
        if episode.decide().unwrap().actor.is_none() {
            break;
        }
        said = episode.act(&options()).unwrap().collect().unwrap().0.ids;
        episode.outcome((turn == 1).then_some(0.1), true).unwrap();
    }
    episode.end(0.7, [None, Some(true), Some(false)][id as usize % 3]).unwrap();
}

/// Plays and learns `updates` updates under these settings.
pub fn recorded(taught: Taught, document: Value, updates: u64) -> Recorded {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let [run, student, teacher, learnt] = ["run", "student", "teacher", "learnt"].map(at);
    write_chat_model(&student, 1);
    write_chat_model(&teacher, 2);
    let engine = engine(Compute::F32);
    let load = |folder: &Path| -> ServedModel { engine.load(folder, LoadOptions::default()).unwrap() };
    let (model, teaches) = (load(&student), load(&teacher));
    let config = settings(document);
    let trains_adapter = config.lora.is_some();
    let (who, asked): (Teacher, Option<TeacherQueue>) = match taught {
        Taught::Model => (Teacher::Local(teaches.clone()), None),
        Taught::Host(top_k) => {
            let queue = queue(json!({"top_k": top_k}));
            (Teacher::Queue(queue.clone()), Some(queue))
        }
    };
    let d = Distiller::taught(&model, Some(who), config).unwrap();
    d.record(&run, RecordOptions::default()).unwrap();
    for update_of in 0..updates {
        for i in 0..3 {
            let task = format!("task {i}, \u{201c}quoted\u{201d}");
            play_one(&d, EpisodeSpec { task, task_seed: (i > 0).then_some(u64::MAX - i), ..Default::default() });
        }
        if update_of == 0 {
            play_one(&d, EpisodeSpec { evaluation: true, ..Default::default() });
        }
        asked.iter().for_each(|queue| {
            answer_all(queue, &teaches);
        });
        update(&d);
    }
    match trains_adapter {
        true => model.save_adapter(None, &learnt).unwrap(),
        false => model.save(&learnt).unwrap(),
    }
    drop(d);
    Recorded { run, student, teacher, learnt, root }
}

/// The program, to be called with these words.
pub fn squire(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_squire"));
    command.args(args);
    command
}

/// The one JSON object of a run that succeeded.
pub fn json_of(args: &[&str]) -> Value {
    let Output { status, stdout, stderr } = squire(args).output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!((status.code(), err.as_str()), (Some(0), ""), "{args:?}");
    assert_eq!(out.lines().count(), 1, "{args:?}: one object, one line");
    serde_json::from_str(&out).unwrap()
}

/// A run that must be refused: by exit code, with a message that names what is wrong and nothing else.
pub fn refused(args: &[&str], code: i32, named: &str) {
    let Output { status, stdout, stderr } = squire(args).output().unwrap();
    let err = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stdout.as_slice()), (Some(code), &b""[..]), "{args:?}: {err}");
    assert!(err.starts_with("squire: ") && err.contains(named), "{args:?}: wanted {named}, found {err}");
    assert!(!err.contains("panicked") && !err.contains("RUST_BACKTRACE"), "{args:?}: {err}");
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
