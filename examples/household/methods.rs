//! Every preset from the same student, printed as it falls: methods are settings, and this is the host that gives each what it
//! asks for. A method with groups plays fewer games, each several times; one that replays has the expert's actions, which stand
//! in for the successful demonstrations of a teacher; a budget of updates is the same for all.
#![forbid(unsafe_code)]

use std::time::Instant;

use serde_json::{Value, json};
use squire::distill::preset::PRESETS;
use squire::distill::{Config, Distiller, EpisodeSpec};
use squire::error::{Error, Fault, Result};
use squire::serve::{Cancel, Engine, LoadOptions};

use crate::demos::demonstration;
use crate::learn::{BATCH, Method, unseen};
use crate::models::shipped;
use crate::play::{Mode, play_as, success};
use crate::world::{Game, Split};

/// One run: what the student wins, in how many seconds, and of what its batches were made.
struct Run {
    success: f64,
    seconds: f64,
    won_in_training: f64,
    teacher_tokens: usize,
    student_tokens: usize,
}

/// Runs each preset (all of them where none is named) for each seed.
pub fn methods(engine: &Engine, names: &[String], seeds: &[u64], updates: u64, games: u64) -> Result<()> {
    println!(
        "preset               seed  success on {games} unseen games  won in training  seconds  tokens an update: student  teacher"
    );
    let chosen = |name: &&str| names.is_empty() || names.iter().any(|n| n == name);
    if let Some(name) = names.iter().find(|n| PRESETS.iter().all(|p| p.name != n.as_str())) {
        return Err(Error::new(Fault::UnknownPreset, format!("preset {name} is not known")));
    }
    for name in PRESETS.iter().map(|p| p.name).filter(chosen) {
        let mut found = Vec::new();
        for &seed in seeds {
            let run = run(engine, name, seed, updates, games)?;
            println!(
                "{name:20} {seed:4}  {:27.1} %  {:13.1} %  {:7.0}  {:25}  {:7}",
                100.0 * run.success,
                100.0 * run.won_in_training,
                run.seconds,
                run.student_tokens / updates as usize,
                run.teacher_tokens / updates as usize
            );
            found.push(100.0 * run.success);
        }
        println!("{name:20} mean  {}", mean(&found));
    }
    Ok(())
}

/// The mean over seeds with its 95 % interval by Student's t.
fn mean(found: &[f64]) -> String {
    let n = found.len() as f64;
    let mean = found.iter().sum::<f64>() / n;
    let variance = found.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // Of 1 to 9 degrees of freedom.
    const T: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
    match found.len() {
        2..=10 => format!("{mean:.1} +- {:.1} %", T[found.len() - 2] * (variance / n).sqrt()),
        _ => format!("{mean:.1} %"),
    }
}

/// The settings of a preset in this example: those that all methods share, and what a batch of 32 games asks for.
fn settings(name: &str, updates: u64, seed: u64) -> Value {
    let mut settings = Method::Opd.settings(updates, seed);
    settings["preset"] = json!(name);
    // Curricula in steps are of the papers' 100 to 250; here they end at the same share of the run.
    let share = |of: f64| json!((updates as f64 * of).round().max(1.0));
    match name {
        "atod" => {
            let line = |start: f64, end: f64| json!({"start": start, "end": end, "shape": "linear", "finish": share(80.0 / 150.0), "clock": "step"});
            settings["advantage"] = json!({"teacher": line(1.0, 0.1), "reward": line(1.0, 2.0)});
        }
        "opd-then-rl" => {
            let jump = |start: f64, end: f64| json!({"start": start, "end": end, "shape": "step", "finish": share(60.0 / 150.0), "clock": "step"});
            settings["advantage"] = json!({"teacher": jump(1.0, 0.0), "reward": jump(0.0, 1.0)});
        }
        "dagger" => {
            let beta = json!({"start": 1, "end": 0.6, "shape": "linear", "finish": 2, "clock": {"units": share(0.2).as_f64().unwrap_or(1.0) as u64}});
            settings["actor"] = json!({"kind": "bernoulli", "beta": beta});
        }
        "uopd" => {
            let rate = json!({"start": 0.3, "end": 0.05, "shape": "linear", "finish": share(1.0), "clock": "step"});
            settings["actor"] = json!({"kind": "proposal", "by": "teacher", "rate": rate});
        }
        // Games are of 20 turns, and the expert needs about half of them.
        "oec" => settings["actor"] = json!({"kind": "switch", "from": 0, "to": 10}),
        // Twenty turns withdrawn over four fifths of the run: by one every 6 updates more would be left of a short run.
        "tcod-b2f" => {
            let withdrawn = json!({"start": 0, "end": 20, "shape": "linear", "finish": share(0.8), "clock": "step"});
            settings["actor"] = json!({"kind": "prefix", "withdrawn": withdrawn});
        }
        _ => {}
    }
    settings
}

fn run(engine: &Engine, name: &str, seed: u64, updates: u64, games: u64) -> Result<Run> {
    let teacher = engine.load(&shipped("teacher"), LoadOptions::default())?;
    let student = engine.load(&shipped("student"), LoadOptions::default())?;
    let config = Config::from_value(&settings(name, updates, seed))?;
    let compares = config.schedules().iter().any(|(knob, s)| *knob == "advantage.reward" && s.bounds() != (0.0, 0.0));
    let each = if compares { u64::from(config.reward.group) } else { 1 };
    let labels = name == "dagger";
    let distiller = Distiller::new(&student, Some(&teacher), config)?;
    let (mut won, mut teacher_tokens, mut student_tokens, mut in_vain) = (Vec::new(), 0, 0, 0);
    let started = Instant::now();
    while distiller.step() < updates {
        let first = (seed << 32) + distiller.step() * BATCH;
        let seat = |i: u64| {
            let game = first + i / each;
            let shown = demonstration(Split::Train, game, 0.0).turns.into_iter().map(|turn| turn.action).collect();
            let spec = EpisodeSpec { group: format!("{game}"), demonstration: Some(shown), ..Default::default() };
            (Game::new(Split::Train, game), spec)
        };
        won.extend(play_as(&distiller, (0..BATCH).map(seat).collect(), Mode { labels, ..Mode::default() })?);
        let mut update = match distiller.build(distiller.n_waiting(), &Cancel::default(), &mut |_, _| true) {
            // A batch without a success teaches nothing where only those are learnt.
            Err(e) if e.fault() == Fault::NothingToLearn && in_vain < 100 => {
                distiller.discard();
                in_vain += 1;
                continue;
            }
            update => update?,
        };
        teacher_tokens += update.report().teacher_tokens;
        student_tokens += update.report().student_tokens;
        distiller.apply(&mut update)?;
        distiller.publish()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let success_on = unseen(&distiller, games)?;
    Ok(Run { success: success_on, seconds, won_in_training: success(&won), teacher_tokens, student_tokens })
}
