//! A record read back: every line checked, nothing counted twice, and a last line that was cut off left out.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::line::{Any, EpisodeLine, RecordLine, TeacherLine, VERSION};
use crate::distill::run_id::RunId;
use crate::distill::trajectory::Trajectory;
use crate::distill::turn_loss::TurnLoss;
use crate::error::{Error, Fault, Result, brief};
use crate::format::open_regular;

/// The name of the file in a run's folder.
pub const RECORD: &str = "record.jsonl";
/// The longest line, in bytes: far beyond an episode that fills the longest context, with the ids of a teacher's top 64.
const LONGEST_LINE: u64 = 1 << 30;

/// An episode of a record.
#[derive(Clone, Debug)]
pub struct RecordedEpisode {
    /// What was played.
    pub played: EpisodeLine,
    /// What the host's teacher said of it.
    pub said: Option<TeacherLine>,
    /// Ids that there are where it was played.
    pub rows: usize,
}

impl RecordedEpisode {
    /// The episode; its turns carry no loss until somebody's settings give them one.
    pub fn trajectory(&self) -> Result<Trajectory> {
        self.played.trajectory(self.rows, |_, _| TurnLoss::NONE)
    }

    /// All but what is said of each token of its `trajectory`, as [`Trajectory::facts`], with what the record has beside.
    pub fn facts(&self, trajectory: &Trajectory) -> Value {
        let mut facts = trajectory.facts();
        facts["settings"] = json!(self.played.settings);
        for (turn, played) in self.played.turns.iter().enumerate() {
            let turn = &mut facts["turns"][turn];
            turn["kernel"] = json!(played.kernel);
            turn["weight"] = json!(played.weight);
            turn["train"] = json!(played.train);
            turn["before"] = json!(played.before);
            turn["text"] = json!(played.text);
        }
        facts
    }
}

/// A record, in the order of its file; of several episodes of one identity the last one.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The first line of each run.
    pub runs: BTreeMap<RunId, RecordLine>,
    /// The episodes, evaluations too.
    pub episodes: Vec<RecordedEpisode>,
    /// Episodes that stood there again, so that an earlier one was left out.
    pub superseded: usize,
    /// What a teacher said of episodes that are not there.
    pub unattached: usize,
    /// Bytes of a last line that was cut off.
    pub cut: Option<u64>,
}

impl Record {
    /// Reads a record: a file, or the one in a run's folder.
    ///
    /// Errors: `MissingFile`, `CannotOpen`, `CannotRead`; `RecordForm` with the line; `RecordVersion` for a later form.
    pub fn read(path: &Path) -> Result<Record> {
        let path = if path.is_dir() { path.join(RECORD) } else { path.to_path_buf() };
        let mut reading = Reading { path, record: Record::default(), places: BTreeMap::new() };
        let file = BufReader::with_capacity(1 << 20, open_regular(&reading.path)?);
        reading.all(file)?;
        Ok(reading.record)
    }

    /// What it holds, for people and programs: runs, episodes, evaluations, superseded, cut.
    pub fn to_json(&self) -> Value {
        let of = |run: RunId| self.episodes.iter().filter(|e| e.played.run == run).count();
        let runs = self.runs.iter().map(|(run, line)| {
            json!({
                "run": run,
                "episodes": of(*run),
                "vocabulary": line.vocabulary,
                "rows": line.rows,
                "compute": line.compute,
                "settings": line.settings,
                "fingerprint": line.fingerprint,
            })
        });
        json!({
            "runs": runs.collect::<Vec<_>>(),
            "episodes": self.episodes.len(),
            "evaluations": self.episodes.iter().filter(|e| e.played.evaluation).count(),
            "scored": self.episodes.iter().filter(|e| e.said.is_some()).count(),
            "superseded": self.superseded,
            "unattached": self.unattached,
            "cut": self.cut,
        })
    }
}

struct Reading {
    path: PathBuf,
    record: Record,
    /// where each episode stands in the record: evaluations are counted by themselves
    places: BTreeMap<(RunId, bool, u64, u64), usize>,
}

impl Reading {
    fn all(&mut self, mut file: impl BufRead) -> Result<()> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = (&mut file).take(LONGEST_LINE).read_until(b'\n', &mut line);
            let read = read.map_err(|e| Error::new(Fault::CannotRead, format!("{}: {e}", self.path.display())))?;
            if read == 0 {
                break;
            }
            if line.pop() != Some(b'\n') {
                if read as u64 == LONGEST_LINE {
                    return Err(self.broken(number, format!("wanted a line of at most {LONGEST_LINE} bytes")));
                }
                self.record.cut = Some(read as u64);
                break;
            }
            self.line(&line).map_err(|e| e.within(format!("{}: line {number}", self.path.display())))?;
        }
        if self.record.runs.is_empty() && self.record.cut.is_none() {
            let why = format!("{}: wanted a record of squire, found an empty file", self.path.display());
            return Err(Error::new(Fault::RecordForm, why));
        }
        Ok(())
    }

    fn broken(&self, number: u64, why: String) -> Error {
        Error::new(Fault::RecordForm, format!("{}: line {number}: {why}", self.path.display()))
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        let Any { kind, run } = read(line)?;
        let rows = |reading: &Reading| {
            let known = reading.record.runs.get(&run).map(|line| line.rows);
            known.ok_or_else(|| {
                let why =
                    format!("wanted a line of kind \"record\" of run {run} before its first of kind {}", brief(&kind));
                Error::new(Fault::RecordForm, why)
            })
        };
        match kind.as_str() {
            "record" => {
                let version = serde_json::from_slice::<Value>(line).ok().and_then(|line| line["version"].as_u64());
                if let Some(version) = version.filter(|&version| version > VERSION) {
                    let why = format!(
                        "the record is of version {version}, this squire reads up to {VERSION}; take a newer one"
                    );
                    return Err(Error::new(Fault::RecordVersion, why));
                }
                let header: RecordLine = read(line)?;
                if header.rows == 0 || header.rows > i32::MAX as usize {
                    let why = format!("rows: wanted a number from 1 to {}, found {}", i32::MAX, header.rows);
                    return Err(Error::new(Fault::RecordForm, why));
                }
                if let Some(first) = self.record.runs.get(&run)
                    && (&first.vocabulary, first.rows) != (&header.vocabulary, header.rows)
                {
                    let why = format!("run {run} went on with another vocabulary");
                    return Err(Error::new(Fault::RecordForm, why));
                }
                self.record.runs.entry(run).or_insert(header);
            }
            "episode" => {
                let rows = rows(self)?;
                let played: EpisodeLine = read(line)?;
                // Whatever contradicts itself is found now, with its line.
                played.trajectory(rows, |_, _| TurnLoss::NONE)?;
                let identity = played.identity();
                let episode = RecordedEpisode { played, said: None, rows };
                match self.places.get(&identity) {
                    Some(&place) => {
                        self.record.superseded += 1;
                        self.record.episodes[place] = episode;
                    }
                    None => {
                        self.places.insert(identity, self.record.episodes.len());
                        self.record.episodes.push(episode);
                    }
                }
            }
            "teacher" => {
                let rows = rows(self)?;
                let said: TeacherLine = read(line)?;
                // Of an episode that ended before somebody began to write, or into another folder.
                let Some(&place) = self.places.get(&(run, false, said.step, said.episode)) else {
                    self.record.unattached += 1;
                    return Ok(());
                };
                let episode = &mut self.record.episodes[place];
                let trajectory = episode.played.trajectory(rows, |_, _| TurnLoss::NONE)?;
                said.said(&trajectory, rows)?;
                episode.said = Some(said);
            }
            // A later version of the same form may write more.
            _ => {}
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|e| {
        // Of one line: the line of the message is always the first.
        let why = e.to_string().replace(" at line 1 column", " at byte");
        Error::new(Fault::RecordForm, brief(why))
    })
}
