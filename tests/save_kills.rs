//! Saves that are killed at random moments: whatever lies there loads whole, and the next save clears up.
#![cfg(unix)]

#[path = "support/scripted.rs"]
mod scripted;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::Distiller;
use squire::model::{Adapter, read_adapter};
use squire::random::{Stream, uniform};
use squire::serve::LoadOptions;

/// Where a child finds its folder.
const FOLDER: &str = "SQUIRE_TEST_KILLED_SAVES";

fn document() -> Value {
    json!({"preset": "opd", "steps": 4, "optimizer": {"learning_rate": 1e-2}})
}

/// A distiller of an adapter, which the student serves from the beginning.
fn of_an_adapter() -> Distiller {
    let mut document = document();
    document["lora"] = json!({"rank": 5, "alpha": 10.0});
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let config = settings(document);
    let fresh = Adapter::fresh(student.config(), config.lora.as_ref().unwrap(), &student.model().device, 3).unwrap();
    student.publish_adapter(fresh, 2).unwrap();
    Distiller::new(&student, Some(&teacher), config).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Not a test of its own: what the children of the next ones run, until they are killed.
#[test]
fn child() {
    let Ok(root) = std::env::var(FOLDER) else { return };
    let root = Path::new(&root);
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let d = Distiller::new(&student, Some(&teacher), settings(document())).unwrap();
    let lora = of_an_adapter();
    fs::write(root.join("ready"), "").unwrap();
    loop {
        d.save(&root.join("run")).unwrap();
        student.save(&root.join("model")).unwrap();
        lora.save(&root.join("lora")).unwrap();
        lora.student().save_adapter(None, &root.join("adapter")).unwrap();
    }
}

/// Kills `n` children amid their saves.
fn kill_saves(n: u64) {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (run, model) = (root.join("run"), root.join("model"));
    let (student, teacher) = pair(Kind::Dense, Compute::F32);
    let first = Distiller::new(&student, Some(&teacher), settings(document())).unwrap();
    first.save(&run).unwrap();
    student.save(&model).unwrap();
    let wanted = weight_bytes(&student);
    let (lora, adapter, lora_run) = (of_an_adapter(), root.join("adapter"), root.join("lora"));
    lora.save(&lora_run).unwrap();
    lora.student().save_adapter(None, &adapter).unwrap();
    let adapted = |of: &Adapter| of.tensors().iter().map(|(_, t)| t.bytes().to_vec()).collect::<Vec<_>>();
    let wanted_adapter = adapted(lora.student().current().adapter().unwrap());
    // (left amid a checkpoint, left amid a model)
    let (mut amid_run, mut amid_model) = (0, 0);
    for kill in 0..n {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads", "1"])
            .env(FOLDER, root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !root.join("ready").exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_secs_f64(0.1 * f64::from(uniform(Stream::World, &[3, kill]))));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "a child fails only by being killed");
        fs::remove_file(root.join("ready")).unwrap();

        // Whole, both of them, before anything is cleared up.
        assert!(model.is_dir(), "the model's place is empty after kill {kill}: {:?}", names(root));
        let loaded = student.engine().load(&model, LoadOptions { max_context: CONTEXT, ..Default::default() }).unwrap();
        assert!(weight_bytes(&loaded) == wanted);
        assert_eq!(Distiller::checkpoint(&run).unwrap(), Some(0));
        let (fresh, teacher) = pair(Kind::Dense, Compute::F32);
        let d = Distiller::resume(&fresh, Some(&teacher), settings(document()), &run).unwrap();
        assert!(weight_bytes(&fresh) == wanted);
        let read = read_adapter(&adapter, fresh.config(), &fresh.current().weights).unwrap();
        assert!(adapted(&read) == wanted_adapter);
        let (other, teacher) = pair(Kind::Dense, Compute::F32);
        let resumed = Distiller::resume(&other, Some(&teacher), lora.config().clone(), &lora_run).unwrap();
        assert!(adapted(other.current().adapter().unwrap()) == wanted_adapter);

        let hidden = |path: &Path| names(path).iter().filter(|name| name.starts_with('.')).count();
        amid_run += hidden(&run) + hidden(&lora_run);
        amid_model += hidden(root);
        assert!(
            hidden(&run) <= 1 && hidden(&lora_run) <= 1 && hidden(root) <= 1,
            "leftovers pile up: {:?} {:?}",
            names(&run),
            names(root)
        );
        d.save(&run).unwrap();
        student.save(&model).unwrap();
        resumed.save(&lora_run).unwrap();
        lora.student().save_adapter(None, &adapter).unwrap();
        for run in [&run, &lora_run] {
            let left = names(run);
            assert!(left.len() == 1 && left[0].starts_with("step-00000000"), "{left:?}");
        }
        assert_eq!(names(root), ["adapter", "lora", "model", "run"]);
        assert_eq!(names(&adapter), ["adapter_config.json", "adapter_model.safetensors", "squire_adapter.json"]);
        assert_eq!(names(&model), ["config.json", "model.safetensors"]);
    }
    eprintln!("{n} kills: {amid_run} left a checkpoint's folder aside, {amid_model} a model's");
    assert!(amid_run + amid_model > 0, "no kill hit a save");
}

#[test]
fn twelve_kills_amid_saves_leave_whole_folders_and_nothing_after_the_next_save() {
    kill_saves(12);
}

/// The long form: cargo test --release --test save_kills -- --ignored --nocapture
#[test]
#[ignore = "takes long and finds what the short form above finds less often; run by hand"]
fn a_hundred_kills_amid_saves_leave_whole_folders_and_nothing_after_the_next_save() {
    kill_saves(100);
}
