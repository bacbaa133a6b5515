//! Guided OPD beside its alternatives, printed as they fall.
//!
//! Equal updates is one comparison; a guided update costs more than an imitation update, so each
//! alternative also runs with as many updates as fit into the seconds that guided OPD took.
#![forbid(unsafe_code)]

use serde_json::json;
use squire::distill::{Distiller, Report, Teacher};
use squire::error::Result;
use squire::serve::{Engine, LoadOptions};

use crate::learn::{Learnt, Method, Plan, learn, unseen};
use crate::models::shipped;

/// Runs every method from the shipped student for each seed, at equal updates and at equal seconds.
pub fn compare(engine: &Engine, seeds: &[u64], updates: u64, games: u64) -> Result<()> {
    println!("The expert is free and perfect here, which no real task has; it needs no teacher and no rollout.");
    println!("seed  method               updates  seconds  success on {games} unseen games");
    let mut sums: Vec<(String, f64)> = Vec::new();
    for &seed in seeds {
        let mut guided = Learnt { seconds: 0.0, games: 0 };
        for method in Method::COMPARED {
            let (learnt, success) = one(engine, method, updates, seed, games)?;
            print(seed, method, updates, learnt, success, "");
            add(&mut sums, format!("{}, {updates} updates", method.name()), success);
            if method == Method::GuidedOpd {
                guided = learnt;
                continue;
            }
            // As many updates as fit into guided OPD's seconds.
            let fitting = (updates as f64 * guided.seconds / learnt.seconds).round().max(1.0) as u64;
            let (learnt, success) = one(engine, method, fitting, seed, games)?;
            print(seed, method, fitting, learnt, success, "  (the seconds of guided-opd)");
            add(&mut sums, format!("{}, equal seconds", method.name()), success);
        }
    }
    println!("\nmean of {} seeds", seeds.len());
    for (what, sum) in sums {
        println!("{what:38} {:5.1} %", 100.0 * sum / seeds.len() as f64);
    }
    Ok(())
}

fn one(engine: &Engine, method: Method, updates: u64, seed: u64, games: u64) -> Result<(Learnt, f64)> {
    let teacher = Teacher::Local(engine.load(&shipped("teacher"), LoadOptions::default())?);
    let student = engine.load(&shipped("student"), LoadOptions::default())?;
    let watch = |_: &Distiller, _: f64, _: &Report| {};
    let (distiller, learnt) = learn(
        &student,
        &teacher,
        &Plan { method, updates, seed, lora: None, seats: None, set: json!({}), checkpoint: None, record: None, watch },
    )?;
    Ok((learnt, unseen(&distiller, games)?))
}

fn print(seed: u64, method: Method, updates: u64, learnt: Learnt, success: f64, note: &str) {
    println!("{seed:4}  {:19}  {updates:7}  {:7.1}  {:5.1} %{note}", method.name(), learnt.seconds, 100.0 * success);
}

fn add(sums: &mut Vec<(String, f64)>, what: String, success: f64) {
    match sums.iter_mut().find(|(w, _)| *w == what) {
        Some((_, sum)) => *sum += success,
        None => sums.push((what, success)),
    }
}
