//! Episodes to read, out of `record.jsonl`: the file is gone through once for where they stand, and those chosen are read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::event::verdict;
use super::lines::Lines;
use crate::output::Failure;

/// The newest form of the file that is read.
const VERSION: u64 = 1;

#[derive(Deserialize)]
struct Head {
    kind: String,
    run: String,
    version: Option<u64>,
}

/// What the choice goes by.
#[derive(Deserialize)]
struct Heading {
    episode: u64,
    #[serde(default)]
    step: u64,
    #[serde(default)]
    evaluation: bool,
    score: Option<f64>,
    #[serde(default)]
    turns: Vec<Reward>,
}

#[derive(Deserialize)]
struct Reward {
    reward: Option<f64>,
}

/// Where an episode stands, and what the choice goes by.
struct Place {
    at: u64,
    evaluation: bool,
    gain: f64,
}

/// An episode, turn by turn.
#[derive(Deserialize)]
pub struct Episode {
    pub episode: u64,
    #[serde(default)]
    pub step: u64,
    #[serde(default)]
    pub task: Option<String>,
    #[serde(default)]
    pub evaluation: bool,
    pub revision: Option<u64>,
    pub score: Option<f64>,
    #[serde(default, deserialize_with = "verdict")]
    pub success: Option<bool>,
    pub forked_from: Option<Fork>,
    #[serde(default)]
    pub turns: Vec<Turn>,
    pub rest: Option<String>,
}

/// Where a fork left its parent.
#[derive(Deserialize)]
pub struct Fork {
    pub episode: u64,
    pub turn: u64,
}

/// A turn of it.
#[derive(Deserialize)]
pub struct Turn {
    #[serde(default)]
    pub actor: String,
    #[serde(default)]
    pub start: u64,
    #[serde(default)]
    pub end: u64,
    pub reason: Option<String>,
    pub probability: Option<f64>,
    pub reward: Option<f64>,
    #[serde(default)]
    pub train: bool,
    #[serde(default)]
    pub truncated: bool,
    pub ended_by: Option<String>,
    pub before: Option<String>,
    pub text: Option<String>,
}

/// An episode and by what rules it was chosen.
pub struct Chosen {
    pub episode: Episode,
    pub why: Vec<&'static str>,
}

/// Of an episode in its run: whether it is an evaluation, step and number.
type Identity = (bool, u64, u64);

/// The record of a run, gone through.
pub struct Record {
    lines: Lines,
    places: BTreeMap<Identity, Place>,
    cut: u64,
}

/// How many each rule takes; the rest of the places is spread over the run.
const FIRST: usize = 4;
const LAST: usize = 6;
const BEST: usize = 6;
const WORST: usize = 6;
const EVALUATIONS: usize = 8;

impl Record {
    /// Goes through `record.jsonl` of the run's folder; None where there is none.
    pub fn read(folder: &Path, run: &str) -> Result<Option<Record>, Failure> {
        let path = folder.join("record.jsonl");
        if !path.exists() {
            return Ok(None);
        }
        let mut lines = Lines::open(&path, "the record of a run")?;
        let mut places = BTreeMap::new();
        while lines.advance()? {
            let head: Head = lines.parse()?;
            if head.run != run {
                let other = &head.run;
                return Err(lines.refuse(&format!(
                    "wanted a line of run {run:?}, found one of run {other:?}; a folder is of one run"
                )));
            }
            match head.kind.as_str() {
                "record" if head.version.is_none_or(|version| version > VERSION) => {
                    let found = head.version.map_or("none".into(), |version| format!("version {version}"));
                    return Err(lines.refuse(&format!("wanted a record of version {VERSION} or older, found {found}")));
                }
                "episode" => {
                    let Heading { episode, step, evaluation, score, turns } = lines.parse()?;
                    let gain = score.unwrap_or(0.0) + turns.iter().filter_map(|turn| turn.reward).sum::<f64>();
                    // Of several of one identity the last counts.
                    places.insert((evaluation, step, episode), Place { at: lines.at(), evaluation, gain });
                }
                _ => {}
            }
        }
        let cut = lines.cut();
        Ok(Some(Record { lines, places, cut }))
    }

    /// Bytes of a last line that was cut off.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Episodes that there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// At most `most` episodes, in the order of the run.
    pub fn choose(&mut self, most: usize) -> Result<Vec<Chosen>, Failure> {
        let mut chosen = Vec::new();
        for (at, why) in choice(&self.places, most) {
            self.lines.go_to(at)?;
            if !self.lines.advance()? {
                return Err(self.lines.refuse("the file became shorter while it was read"));
            }
            chosen.push(Chosen { episode: self.lines.parse()?, why });
        }
        Ok(chosen)
    }
}

/// Where the chosen ones stand and why they were chosen, by step and number.
fn choice(places: &BTreeMap<Identity, Place>, most: usize) -> Vec<(u64, Vec<&'static str>)> {
    let mut played: Vec<(Identity, &Place)> = places.iter().map(|(identity, place)| (*identity, place)).collect();
    played.sort_by_key(|((evaluation, step, number), _)| (*step, *number, *evaluation));
    let (evaluations, training): (Vec<_>, Vec<_>) = played.iter().partition(|(_, place)| place.evaluation);
    let mut by_gain: Vec<&(Identity, &Place)> = training.to_vec();
    by_gain.sort_by(|a, b| b.1.gain.total_cmp(&a.1.gain));

    let mut why: BTreeMap<Identity, Vec<&'static str>> = BTreeMap::new();
    let mut take = |list: &mut dyn Iterator<Item = Identity>, n: usize, rule: &'static str| {
        for number in list.take(n) {
            if why.len() < most || why.contains_key(&number) {
                why.entry(number).or_default().push(rule);
            }
        }
    };
    take(&mut training.iter().map(|e| e.0), FIRST, "first");
    take(&mut training.iter().rev().map(|e| e.0), LAST, "last");
    take(&mut by_gain.iter().map(|e| e.0), BEST, "highest return");
    take(&mut by_gain.iter().rev().map(|e| e.0), WORST, "lowest return");
    take(&mut evaluations.iter().rev().map(|e| e.0), EVALUATIONS, "evaluation");
    let left = most.saturating_sub(why.len());
    let mut take = |number: Identity| why.entry(number).or_insert_with(|| vec!["spread over the run"]).len();
    (0..left.min(played.len())).for_each(|i| {
        // The middles of equal stretches.
        take(played[(2 * i + 1) * played.len() / (2 * left.min(played.len()))].0);
    });
    played.iter().filter_map(|(identity, place)| Some((place.at, why.remove(identity)?))).collect()
}
