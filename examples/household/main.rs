//! The household demo: plays one game with the expert and prints it, and writes the demo's tokenizer.
//!
//! ```text
//! cargo run --example household -- play [SPLIT [SEED [NOISE]]]
//! cargo run --example household -- tokenizer FOLDER
//! ```
//!
//! SPLIT is train, validation or unseen, NOISE the share of turns that are random. FOLDER gets tokenizer.json
//! and what goes with it.
#![forbid(unsafe_code)]

mod demos;
mod expert;
mod words;
mod world;

use std::error::Error;
use std::path::Path;

use demos::demonstration;
use world::{Game, Split};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["play"] => play(Split::Unseen, 0, 0.0),
        ["play", name] => play(split(name)?, 0, 0.0),
        ["play", name, seed] => play(split(name)?, seed.parse()?, 0.0),
        ["play", name, seed, noise] => play(split(name)?, seed.parse()?, noise.parse()?),
        ["tokenizer", folder] => {
            for (name, bytes) in words::tokenizer_files() {
                std::fs::write(Path::new(folder).join(name), bytes)?;
            }
        }
        _ => return Err("usage: household [play [SPLIT [SEED [NOISE]]] | tokenizer FOLDER]".into()),
    }
    Ok(())
}

fn split(name: &str) -> Result<Split, String> {
    match name {
        "train" => Ok(Split::Train),
        "validation" => Ok(Split::Validation),
        "unseen" => Ok(Split::Unseen),
        _ => Err(format!("the splits are train, validation and unseen, not {name}")),
    }
}

fn play(split: Split, seed: u64, noise: f32) {
    println!("task: {}", Game::new(split, seed).task());
    let episode = demonstration(split, seed, noise);
    for turn in &episode.turns {
        println!("{}\n    >{}{}", turn.observation.trim(), turn.action, if turn.labelled { "" } else { "   (random)" });
    }
    println!("{} after {} turns", if episode.won { "won" } else { "lost" }, episode.turns.len());
}
