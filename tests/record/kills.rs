//! Runs with rewards, groups, an adapter and a teacher of the host's that are killed at random moments, again and again: each goes
//! on with its checkpoint and with what its record has beyond that, and ends with the bits of one that was not killed.
#![cfg(unix)]

use super::answering::{answer_all, queue};
use super::*;
use squire::backend::Compute;
use squire::distill::Teacher;
use squire::random::{Stream, uniform};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where a child finds its folder.
const FOLDER: &str = "SQUIRE_TEST_KILLED_RUN";
const STEPS: u64 = 5;
const BATCH: usize = 8;

fn document() -> Value {
    json!({
        "preset": "opd-then-rl", "seed": 5, "steps": STEPS, "batch_episodes": BATCH, "reward": {"group": 4},
        "lora": {"rank": 4, "alpha": 8}, "optimizer": {"learning_rate": 1e-2, "eps": 1e-2},
    })
}

/// The whole of a run in a folder, from where it stands.
fn run(folder: &Path) {
    let (student, model) = pair(Kind::Dense, Compute::F32);
    let q = queue(json!({"top_k": 8}));
    let (checkpoints, teacher) = (folder.join("checkpoints"), Some(Teacher::Queue(q.clone())));
    let d = match Distiller::checkpoint(&checkpoints).unwrap() {
        None => Distiller::taught(&student, teacher, settings(document())).unwrap(),
        Some(_) => Distiller::resume_taught(&student, teacher, settings(document()), &checkpoints).unwrap(),
    };
    // The first checkpoint gives the run its name, before anything is recorded under it.
    if Distiller::checkpoint(&checkpoints).unwrap().is_none() {
        d.save(&checkpoints).unwrap();
    }
    record(&d, &folder.join("run"));
    d.import(&read(&folder.join("run")), 0).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let answering = std::thread::spawn({
        let (q, done) = (q.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                answer_all(&q, &model);
            }
        }
    });
    while d.step() < STEPS {
        let first = d.step() as usize * BATCH;
        play_rewarded(&d, first + d.n_waiting(), BATCH - d.n_waiting());
        super::update(&d);
        d.save(&checkpoints).unwrap();
    }
    done.store(true, Ordering::Relaxed);
    answering.join().unwrap();
    let adapter = student.current();
    let tensors = adapter.adapter().unwrap().tensors();
    let bytes: Vec<u8> = tensors.iter().flat_map(|(_, t)| t.bytes().to_vec()).collect();
    fs::write(folder.join("final.part"), bytes).unwrap();
    fs::rename(folder.join("final.part"), folder.join("final")).unwrap();
}

/// Not a test of its own: what the children run until they are killed, or are done.
#[test]
fn child() {
    if let Ok(folder) = std::env::var(FOLDER) {
        run(Path::new(&folder));
    }
}

fn spawn(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::child", "--test-threads", "1"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What is played, whenever it was: identity, ids, bits of the log-probs, what the teacher said.
fn played(folder: &Path) -> Vec<String> {
    let record = read(&folder.join("run"));
    assert_eq!(record.runs.len(), 1);
    let mut lines: Vec<(u64, String)> = record
        .episodes
        .iter()
        .map(|e| {
            let turns: Vec<_> = e.played.turns.iter().map(|t| (&t.logprobs, &t.sampled_logprobs, t.reward)).collect();
            let said = e.said.as_ref().map(|said| (&said.positions, &said.logprobs, &said.top_ids, &said.top_logprobs));
            (e.played.episode, format!("{} {:?} {turns:?} {said:?}", e.played.step, e.played.ids))
        })
        .collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

fn kills_change_no_bit(n: u64) {
    let unbroken = tempfile::tempdir().unwrap();
    let begun = std::time::Instant::now();
    assert!(spawn(unbroken.path()).wait().unwrap().success());
    let whole = begun.elapsed().as_secs_f32();
    let wanted = fs::read(unbroken.path().join("final")).unwrap();
    let wanted_record = played(unbroken.path());
    assert_eq!(wanted_record.len(), STEPS as usize * BATCH);

    let (mut kills, mut runs, mut mid_episode, mut cut) = (0, 0, 0, 0);
    // Drawn anew for each child: one that ends before its time tells nothing of when the next is to die.
    let mut children = 0;
    while kills < n {
        let folder = tempfile::tempdir().unwrap();
        loop {
            let mut child = spawn(folder.path());
            children += 1;
            if kills < n {
                std::thread::sleep(Duration::from_secs_f32(whole * uniform(Stream::World, &[11, children])));
            }
            let ended = match kills < n {
                true => child.try_wait().unwrap(),
                false => Some(child.wait().unwrap()),
            };
            if let Some(status) = ended {
                assert!(status.success(), "{status}");
                break;
            }
            child.kill().unwrap();
            let status = child.wait().unwrap();
            if status.success() {
                // It was done a moment before.
                break;
            }
            assert_eq!(status.signal(), Some(9), "a child fails only by being killed: {status}");
            kills += 1;
            if let Ok(record) = Record::read(&folder.path().join("run")) {
                cut += u64::from(record.cut.is_some());
                mid_episode += u64::from(!record.episodes.len().is_multiple_of(BATCH));
            }
        }
        runs += 1;
        assert!(fs::read(folder.path().join("final")).unwrap() == wanted, "after {kills} kills");
        assert!(played(folder.path()) == wanted_record, "after {kills} kills");
        // Every line of the metrics is whole.
        assert!(lines(&folder.path().join("run"), "metrics.jsonl").len() > 40);
    }
    eprintln!("{kills} kills in {runs} runs: {mid_episode} within a batch, {cut} within a line");
    // Of ten it may be none.
    assert!(n < 100 || mid_episode > 0, "no kill fell between two episodes of a batch");
}

#[test]
fn ten_kills_change_no_bit() {
    kills_change_no_bit(10);
}

/// The long form: cargo test --release --test record -- --ignored --nocapture a_hundred
#[test]
#[ignore = "ten of the same run above; a hundred take from a quarter of a minute to minutes beside other work"]
fn a_hundred_kills_change_no_bit() {
    kills_change_no_bit(100);
}
