//! A run that is written down: an update from its record is the update bit for bit, for every method; what a kill leaves is read up
//! to its last whole episode; nothing counts twice; what is broken is refused by its line.

#[path = "../support/answering.rs"]
mod answering;
#[path = "../support/scripted.rs"]
mod scripted;

mod full_disk;
mod hostile;
mod kills;
mod replay;
mod writing;

use scripted::*;
use serde_json::{Value, json};
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Distiller, EpisodeSpec, Reason, Record, RecordOptions, Replay};
use squire::serve::Cancel;
use std::path::Path;

/// Plays episodes of at most three turns, four of each task, with rewards.
fn play_rewarded(d: &Distiller, from: usize, n: usize) -> Vec<Trajectory> {
    (from..from + n).map(|i| play_one(d, i, &mut |_| {})).collect()
}

/// One of them; `waits` is called before anybody is waited for.
fn play_one(d: &Distiller, i: usize, waits: &mut dyn FnMut(u32)) -> Trajectory {
    let spec = EpisodeSpec {
        task: format!("task {}", i / 4),
        panel: "panel".into(),
        task_seed: Some(i as u64),
        demonstration: Some(vec!["shown".to_string(); 3]),
        ..Default::default()
    };
    let episode = d.begin(spec).unwrap();
    let mut said = Vec::new();
    for turn in 0..3 {
        episode.observe_ids(&observation(i as u64, turn, &said)).unwrap();
        let decision = episode.decide().unwrap();
        match decision.actor {
            None => break,
            Some(Actor::Replay) => {
                said = demonstration(i as u64, turn);
                episode.replay(Replay::Ids(&said)).unwrap();
            }
            Some(_) => {
                waits(turn as u32);
                said = episode.act(&options()).unwrap().collect().unwrap().0.ids;
                let judged = (decision.reason == Reason::Proposal).then(|| episode.judge(&Cancel::default()).unwrap());
                if judged.is_some_and(|judged| judged.actor == Some(Actor::Teacher)) {
                    said = episode.act(&options()).unwrap().collect().unwrap().0.ids;
                }
            }
        }
        // Now and then the host does something else than what was said.
        episode.outcome(Some(((i * 7 + turn as usize * 3) % 5) as f64 / 3.0), (i + turn as usize) % 11 != 5).unwrap();
    }
    episode.end(((i * 5) % 7) as f64 / 3.0, Some(i.is_multiple_of(2))).unwrap();
    episode.trajectory().unwrap()
}

/// A preset with what makes it learn something of eight such episodes.
fn preset(name: &str) -> Value {
    let mut document = json!({
        "preset": name, "seed": 5, "batch_episodes": 8, "kept_revisions": 4,
        "optimizer": {"learning_rate": 1e-2, "eps": 1e-2}
    });
    let more = match name {
        "guided-opd" | "guided-opd-sampled" | "dagger" => json!({"actor": {"kind": "bernoulli", "beta": 0.5}}),
        "tcod-f2b" | "tcod-code" => json!({"depth": 3}),
        "oec" => json!({"actor": {"kind": "switch", "from": 0, "to": 2}}),
        "uopd" => json!({"actor": {"kind": "proposal", "by": "teacher", "rate": 0.5, "window": 20, "minimum": 4}}),
        "atod" | "grpo" | "skill-sd" | "opd-then-rl" | "turn-ppo" | "sod" => json!({"reward": {"group": 4}}),
        _ => json!({}),
    };
    more.as_object().unwrap().iter().for_each(|(key, value)| document[key] = value.clone());
    document
}

fn record(d: &Distiller, folder: &Path) {
    d.record(folder, RecordOptions::default()).unwrap();
}

fn read(folder: &Path) -> Record {
    Record::read(folder).unwrap()
}

/// The lines of a file of a run's folder.
fn lines(folder: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
