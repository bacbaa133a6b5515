//! One run of learning: play a batch, build the update, apply it, publish it, again and again.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use squire::distill::{Config, Distiller, RecordOptions, Report, Teacher};
use squire::error::Result;
use squire::serve::{Cancel, ServedModel};

use crate::demos::demonstration;
use crate::models::{COOL, EVALUATION};
use crate::play::{Mode, play, replay, success};
use crate::world::{Game, Split};

/// Games of one update.
pub const BATCH: u64 = 32;

/// The first learning rate of an adapter; of all weights it is 1.5e-3.
const LORA_RATE: f64 = 5e-3;

/// What is compared. All start from one student, learn from the same training games, and make one update
/// of the same size at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// Teacher turns in between, fewer and fewer; reverse KL on the student's turns, forward KL on the teacher's.
    GuidedOpd,
    /// The student plays alone; reverse KL to the teacher.
    Opd,
    /// The student plays alone, in the first updates only the first turns; reverse KL to the teacher.
    TcodF2b,
    /// Imitation of the games that the teacher wins.
    SftTeacher,
    /// Imitation of the expert, which is free and perfect here, as it is in no real task.
    SftExpert,
}

impl Method {
    pub const COMPARED: [Method; 4] = [Method::GuidedOpd, Method::Opd, Method::SftTeacher, Method::SftExpert];

    pub fn name(self) -> &'static str {
        match self {
            Method::GuidedOpd => "guided-opd",
            Method::Opd => "opd",
            Method::TcodF2b => "tcod-f2b",
            Method::SftTeacher => "sft, teacher's wins",
            Method::SftExpert => "sft, expert",
        }
    }

    /// The settings: a preset of squire, and what this example sets of it.
    pub fn settings(self, steps: u64, seed: u64) -> Value {
        let mut settings = json!({
            "steps": steps,
            "seed": seed,
            "batch_episodes": BATCH,
            "max_turns": 20,
            "micro_tokens": 8192,
            "optimizer": {
                "learning_rate": {"start": 1.5e-3, "end": 1.5e-4, "shape": "cosine", "begin": 0, "finish": 1, "clock": "fraction"},
                "warmup_steps": 5, "beta1": 0.9, "beta2": 0.98, "grad_clip": 1.0,
            },
        });
        let own = match self {
            Method::GuidedOpd => json!({"preset": "guided-opd"}),
            Method::Opd => json!({"preset": "opd"}),
            Method::TcodF2b => json!({"preset": "tcod-f2b"}),
            Method::SftTeacher => json!({
                "preset": "sft", "actor": {"kind": "teacher"}, "filter": "success",
                "teacher_turns": {"kernel": "cross-entropy"},
            }),
            Method::SftExpert => json!({"preset": "sft"}),
        };
        for (key, value) in own.as_object().into_iter().flatten() {
            settings[key] = value.clone();
        }
        settings
    }
}

/// How a run goes about it.
pub struct Plan {
    pub method: Method,
    pub updates: u64,
    pub seed: u64,
    /// The rank of the adapter that is trained; None: all weights.
    pub lora: Option<u32>,
    /// Games that are played side by side; None: all of an update.
    pub seats: Option<usize>,
    /// Settings in place of the method's own, an object; {} for none.
    pub set: Value,
    /// Where checkpoints go; an interrupted run goes on from there.
    pub checkpoint: Option<PathBuf>,
    /// Where the run is written down, for `squire report` and `squire distill run`.
    pub record: Option<PathBuf>,
    /// Called after every update: the distiller, the share of training games won, the report.
    pub watch: fn(&Distiller, f64, &Report),
}

/// What a run gave.
#[derive(Clone, Copy, Debug)]
pub struct Learnt {
    /// Wall time of the updates, evaluations excluded.
    pub seconds: f64,
    /// Games played in training.
    pub games: u64,
}

/// Runs the plan: afterwards the student's current revision is the result.
pub fn learn(student: &ServedModel, teacher: &Teacher, plan: &Plan) -> Result<(Distiller, Learnt)> {
    let mut settings = plan.method.settings(plan.updates, plan.seed);
    if let Some(rank) = plan.lora {
        settings["lora"] = json!({"rank": rank, "alpha": 2 * rank});
        settings["optimizer"]["learning_rate"]["start"] = json!(LORA_RATE);
        settings["optimizer"]["learning_rate"]["end"] = json!(LORA_RATE / 10.0);
    }
    overlay(&mut settings, &plan.set);
    let config = Config::from_value(&settings)?;
    let distiller = match &plan.checkpoint {
        Some(folder) if Distiller::checkpoint(folder)?.is_some() => {
            Distiller::resume_taught(student, Some(teacher.clone()), config, folder)?
        }
        _ => Distiller::taught(student, Some(teacher.clone()), config)?,
    };
    if let Some(record) = &plan.record {
        // A checkpoint keeps the run's name: without one, whoever goes on after a kill would be another run.
        if let Some(folder) = plan.checkpoint.as_ref().filter(|_| distiller.step() == 0) {
            distiller.save(folder)?;
        }
        distiller.record(record, RecordOptions::default())?;
    }
    let started = Instant::now();
    while distiller.step() < plan.updates {
        // The games of a step are a function of seed and step, so a resumed run plays the same ones.
        let first = (plan.seed << 32) + distiller.step() * BATCH;
        let won = match plan.method {
            Method::SftExpert => {
                let demonstrations = (first..first + BATCH).map(|seed| demonstration(Split::Train, seed, 0.0));
                demonstrations.map(|d| replay(&distiller, &d).map(|()| d.won)).collect::<Result<Vec<_>>>()?
            }
            _ => play(
                &distiller,
                (first..first + BATCH).map(|seed| Game::new(Split::Train, seed)).collect(),
                Mode { seats: plan.seats, ..Mode::default() },
            )?,
        };
        let mut update = distiller.build(0, &Cancel::default(), &mut |_, _| true)?;
        distiller.apply(&mut update)?;
        distiller.publish()?;
        (plan.watch)(&distiller, success(&won), update.report());
        if let Some(folder) = &plan.checkpoint {
            distiller.save(folder)?;
        }
    }
    Ok((distiller, Learnt { seconds: started.elapsed().as_secs_f64(), games: plan.updates * BATCH }))
}

/// Puts what an object says into another, key by key.
fn overlay(settings: &mut Value, set: &Value) {
    for (key, value) in set.as_object().into_iter().flatten() {
        match &mut settings[key] {
            of @ Value::Object(_) if value.is_object() => overlay(of, value),
            of => *of = value.clone(),
        }
    }
}

/// Success of the student alone on the first `n` unseen games, at the evaluation temperature.
pub fn unseen(distiller: &Distiller, n: u64) -> Result<f64> {
    let mut won = Vec::new();
    for first in (0..n).step_by(50) {
        let games = (first..n.min(first + 50)).map(|seed| Game::new(Split::Unseen, EVALUATION + seed)).collect();
        won.extend(play(distiller, games, Mode { evaluation: Some(COOL), ..Mode::default() })?);
    }
    Ok(success(&won))
}
