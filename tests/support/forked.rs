//! Episodes to be forked: what the world shows depends on what was said alone, so that forks can be compared.
#![allow(dead_code)] // each test file uses its part

use squire::distill::trajectory::Trajectory;
use squire::distill::{Distiller, Episode, ForkOptions};

use super::scripted::*;

/// Shows what the world shows, whatever the episode's number is.
pub fn show(episode: &Episode) {
    let record = episode.trajectory().unwrap();
    let said = record.turns().last().map_or(&[][..], |turn| &record.ids()[turn.range.clone()]);
    episode.observe_ids(&observation(0, u64::from(episode.turn()), said)).unwrap();
}

/// Lets whoever shall act answer what was shown.
pub fn answer(episode: &Episode) {
    episode.decide().unwrap();
    episode.act(&options()).unwrap().collect().unwrap();
    episode.outcome(None, true).unwrap();
}

pub fn turn(episode: &Episode) {
    show(episode);
    answer(episode);
}

pub fn begun(d: &Distiller, number: u64, turns: usize) -> Episode {
    let episode = d.begin(numbered(number)).unwrap();
    (0..turns).for_each(|_| turn(&episode));
    episode
}

pub fn at(turn: u32) -> ForkOptions {
    ForkOptions { turn: Some(turn), ..ForkOptions::default() }
}

pub fn called(episode: u64) -> ForkOptions {
    ForkOptions { episode: Some(episode), ..ForkOptions::default() }
}

pub fn end(episode: &Episode) -> Trajectory {
    episode.end(1.0, Some(true)).unwrap();
    episode.trajectory().unwrap()
}

pub fn rows(d: &Distiller) -> u64 {
    d.student().engine().metrics().rows
}
