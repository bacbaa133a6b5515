//! Episodes with rewards, groups and whatever else a preset builds on, for tests that go through all presets.
#![allow(dead_code)] // each test file uses its part

use super::scripted::*;
use serde_json::{Value, json};
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Distiller, EpisodeSpec, Reason, Replay};
use squire::serve::Cancel;

/// A preset with what makes it learn something of eight such episodes.
pub fn preset(name: &str) -> Value {
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

/// The score of an episode.
pub fn score(episode: usize) -> f64 {
    ((episode * 5) % 7) as f64 / 3.0
}

/// Plays episode `i` of at most three turns, four of each task. `outcome` gives a turn's reward, and whether the host did what was
/// said.
pub fn play_one(d: &Distiller, i: usize, outcome: impl Fn(usize) -> (f64, bool)) -> Trajectory {
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
                said = episode.act(&options()).unwrap().collect().unwrap().0.ids;
                let judged = (decision.reason == Reason::Proposal).then(|| episode.judge(&Cancel::default()).unwrap());
                if judged.is_some_and(|judged| judged.actor == Some(Actor::Teacher)) {
                    said = episode.act(&options()).unwrap().collect().unwrap().0.ids;
                }
            }
        }
        let (reward, executed) = outcome(turn as usize);
        episode.outcome(Some(reward), executed).unwrap();
    }
    episode.end(score(i), Some(i.is_multiple_of(2))).unwrap();
    episode.trajectory().unwrap()
}
