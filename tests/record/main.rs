//! A run that is written down: an update from its record is the update bit for bit, for every method; what a kill leaves is read up
//! to its last whole episode; nothing counts twice; what is broken is refused by its line.

#[path = "../support/answering.rs"]
mod answering;
#[path = "../support/by_hand.rs"]
mod by_hand;
#[path = "../support/rewarded.rs"]
mod rewarded;
#[path = "../support/scripted.rs"]
mod scripted;

mod full_disk;
mod hostile;
mod kills;
mod replay;
mod writing;

use rewarded::{play_one, preset};
use scripted::*;
use serde_json::{Value, json};
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Distiller, EpisodeSpec, Record, RecordOptions};
use std::path::Path;

/// Plays episodes with rewards; now and then the host does something else than what was said.
fn play_rewarded(d: &Distiller, from: usize, n: usize) -> Vec<Trajectory> {
    let outcome = |i: usize, turn: usize| (((i * 7 + turn * 3) % 5) as f64 / 3.0, (i + turn) % 11 != 5);
    (from..from + n).map(|i| play_one(d, i, |turn| outcome(i, turn))).collect()
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
