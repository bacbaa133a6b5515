//! A run's folder as docs/record.md has it, made up from a seed: numbers of the right kind and size, learnt by no one.
#![allow(dead_code)] // each test file uses its part

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

/// What is made up.
pub struct Made {
    pub updates: u64,
    pub steps: u64,
    pub episodes: u64,
    pub turns: u64,
    pub evaluate_every: u64,
    /// a text of every third task and turn
    pub hostile: Option<String>,
    /// whether record.jsonl is written too
    pub record: bool,
}

impl Default for Made {
    fn default() -> Made {
        Made { updates: 12, steps: 12, episodes: 4, turns: 3, evaluate_every: 5, hostile: None, record: true }
    }
}

pub const RUN: &str = "0123456789abcdef0123456789abcdef";

/// SplitMix64.
pub struct Draws(pub u64);

impl Draws {
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The first line of metrics.jsonl.
pub fn begins(step: u64, settings: Value) -> Value {
    json!({
        "kind": "run", "run": RUN, "time": 1.7959e9 + 30.0 * step as f64, "version": 1, "step": step, "settings": settings,
        "fingerprint": "00112233445566aa", "student": {"parameters": 596_049_920, "layers": 28, "hidden_size": 1024},
        "squire": "0.1.0",
    })
}

pub fn settings(steps: u64) -> Value {
    json!({
        "steps": steps, "seed": 7, "actor": {"kind": "bernoulli", "beta": {"start": 1.0, "end": 0.0}}, "max_update_kl": 1.0,
        "refuse_update_kl": 2.0, "optimizer": {"learning_rate": 1e-5, "warmup_steps": 0, "beta1": 0.9}, "batch_episodes": 16,
    })
}

/// A value whose numbers have six digits each, which any reader reads alike.
fn rounded(value: Value) -> Value {
    match value {
        Value::Number(n) if n.is_f64() => json!(format!("{:.5e}", n.as_f64().unwrap()).parse::<f64>().unwrap()),
        Value::Array(list) => list.into_iter().map(rounded).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, rounded(value))).collect(),
        other => other,
    }
}

/// Lines of the form, one after the other.
#[derive(Default)]
pub struct Lines(pub String);

impl Lines {
    pub fn add(&mut self, line: &Value) {
        writeln!(self.0, "{line}").unwrap();
    }
}

/// Writes the folder, and gives the updates as they were written.
pub fn write(folder: &Path, made: &Made) -> Vec<Value> {
    let mut draws = Draws(42);
    let (mut metrics, mut record) = (Lines::default(), Lines::default());
    metrics.add(&begins(0, settings(made.steps)));
    record.add(&json!({
        "kind": "record", "run": RUN, "version": 1, "vocabulary": null, "rows": 324, "settings": settings(made.steps),
        "fingerprint": "00112233445566aa", "squire": "0.1.0",
    }));
    let (mut updates, mut number) = (Vec::new(), 0);
    for step in 0..made.updates {
        let (done, time) = (step as f64 / made.steps as f64, 1.7959e9 + 30.0 * step as f64);
        let ability = 0.05 + 0.85 * done * done * (3.0 - 2.0 * done);
        let evaluated = if step % made.evaluate_every == 0 { 8 } else { 0 };
        let mut successes = 0;
        for i in 0..made.episodes + evaluated {
            let (evaluation, success) = (i >= made.episodes, draws.unit() < ability);
            successes += u64::from(success && !evaluation);
            let task = match &made.hostile {
                Some(text) if number % 3 == 0 => text.clone(),
                _ => format!("put a clean mug {} in the cabinet", number % 17),
            };
            let (mut turns, mut at) = (Vec::new(), 20);
            for turn in 0..made.turns {
                let teacher = draws.unit() < 1.0 - done && !evaluation;
                let n = 6 + (8.0 * draws.unit()) as u64;
                let text = match &made.hostile {
                    Some(text) if turn == 1 => text.clone(),
                    _ => format!(
                        "go to the {} {}",
                        ["cabinet", "fridge", "sink", "table"][(turn % 4) as usize],
                        1 + turn % 3
                    ),
                };
                turns.push(json!({
                    "actor": if teacher { "teacher" } else { "student" }, "start": at, "end": at + n,
                    "reason": if teacher { "drawn: beta" } else { "drawn" }, "probability": 1.0 - done, "horizon": 1,
                    "reward": if turn + 1 == made.turns { json!(f64::from(u8::from(success))) } else { Value::Null },
                    "kernel": "reverse-kl", "weight": 1.0, "train": !evaluation, "learnable": true, "truncated": false,
                    "from_text": false, "logprobs": vec![-0.5; n as usize], "sampled_logprobs": vec![-0.25; n as usize],
                    "before": format!("<|im_end|>\n<|im_start|>user\nYou arrive. On the shelf you see a mug {turn}, a plate 2 and an apple 1.<|im_end|>\n<|im_start|>assistant\n"),
                    "text": text,
                }));
                at += n + 12;
            }
            if made.record {
                record.add(&json!({
                    "kind": "episode", "run": RUN, "episode": number, "step": step, "task": task, "group": "", "panel": "",
                    "task_seed": number, "seed": 7, "revision": step + 1, "evaluation": evaluation, "forked_from": null,
                    "settings": "00112233445566aa", "score": 0.0, "success": success, "ids": vec![5; at as usize],
                    "sources": [["host", at]], "turns": turns, "views": [], "rest": "<|im_end|>\n",
                }));
            }
            metrics.add(&json!({
                "kind": "episode", "run": RUN, "time": time + i as f64, "episode": number, "step": step, "task": task,
                "evaluation": evaluation, "score": 0.0, "success": success, "revision": step + 1, "turns": made.turns,
                "tokens": at, "student_tokens": 20, "teacher_tokens": 10, "replay_tokens": 0, "student_turns": 2,
                "teacher_turns": 1, "replay_turns": 0, "return": f64::from(u8::from(success)), "truncated": 0,
            }));
            number += 1;
        }
        let noise = |draws: &mut Draws| 0.85 + 0.3 * draws.unit();
        let kl = (0.02 + 1.2 * (1.0 - done).powi(2)) * noise(&mut draws);
        let spike = if step % 97 == 96 { 6.0 } else { 1.0 };
        let by_turn = |draws: &mut Draws, turn: u64| {
            json!({
                "tokens": 80, "loss_share": 1.0 / made.turns as f64, "log_ratio": kl * (0.3 + turn as f64 / made.turns as f64) * noise(draws),
                "teacher_nll": 0.7, "teacher_entropy": 0.5, "entropy": 0.9, "episodes": 16, "student": 12, "teacher": 4, "replay": 0,
            })
        };
        let teacher_share = 1.0 - done;
        let mut update = json!({
            "kind": "update", "run": RUN, "time": time + 20.0, "step": step,
            "schedules": {"beta": 0.5 + 0.5 * (std::f64::consts::PI * done).cos()}, "learning_rate": 1e-5 * (1.0 - 0.9 * done),
            "report": {
                "step": step, "loss": kl * 0.8 * spike, "reverse_kl": kl, "forward_kl": kl * 0.7, "jsd": null, "cross_entropy": null,
                "episodes": made.episodes, "successes": successes, "trained_tokens": 900,
                "student_tokens": (1400.0 * (1.0 - teacher_share * 0.8) * noise(&mut draws)).round(),
                "teacher_tokens": (900.0 * teacher_share * noise(&mut draws)).round(), "replay_tokens": 0,
                "student_turns": (160.0 * (1.0 - teacher_share * 0.8)).round(), "teacher_turns": (120.0 * teacher_share).round(),
                "replay_turns": 0, "turns": (0..made.turns).map(|turn| by_turn(&mut draws, turn)).collect::<Vec<_>>(),
                "gradient_norm": kl * 3.0 * noise(&mut draws) * spike, "entropy": 0.4 + kl * 0.5, "teacher_entropy": 0.35,
                "log_ratio": kl * 1.1, "response_length": 9.0 + 4.0 * draws.unit(), "repetition": 0.1,
                "lag": {"mean": draws.unit(), "largest": 1.0 + (2.0 * draws.unit()).floor()}, "by_task": {"": [successes, made.episodes]},
                "set_aside": [], "seconds": 14.0 * noise(&mut draws), "teacher_seconds": 5.0 * noise(&mut draws),
                "warnings": if step % 50 == 49 { json!([format!("reverse_kl is {kl:.1e} nats a token: below 5e-4 it is rounding in bf16 compute; f32 compute tells more")]) } else { json!([]) },
                "update_kl": null,
            },
        });
        update["report"] = rounded(update["report"].take());
        update["schedules"] = rounded(update["schedules"].take());
        metrics.add(&update);
        updates.push(update);
        let moved = 0.004 * (0.3 + draws.unit()) * spike * spike;
        let line =
            |kind: &str, seconds: f64| json!({"kind": kind, "run": RUN, "time": time + seconds, "step": step + 1});
        let mut applied = line("applied", 24.0);
        applied["update_kl"] = json!(moved);
        applied["finite"] = json!(true);
        applied["seconds"] = json!(1.5);
        metrics.add(&applied);
        let mut published = line("published", 25.0);
        published["revision"] = json!(step + 2);
        published["probe"] = Value::Null;
        metrics.add(&published);
        if step % 50 == 49 {
            metrics.add(&line("saved", 26.0));
        }
    }
    std::fs::write(folder.join("metrics.jsonl"), metrics.0).unwrap();
    if made.record {
        std::fs::write(folder.join("record.jsonl"), record.0).unwrap();
    }
    updates
}
