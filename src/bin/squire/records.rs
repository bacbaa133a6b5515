//! Records that are given on the command line, put together as one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use squire::distill::Record;
use squire::distill::record::RecordedEpisode;

use crate::output::{Failure, bytes};
use crate::waiting::Waiting;

/// Several records as one: an episode counts once.
pub struct Merged {
    /// All of them.
    pub record: Record,
    /// Records that were read.
    files: usize,
    /// Episodes that an earlier record has too.
    again: usize,
    /// Of these: otherwise than there, so that the later one counts.
    differing: usize,
}

impl Merged {
    /// Reads files, or those in runs' folders, in this order.
    pub fn read(paths: &[PathBuf]) -> Result<Merged, Failure> {
        let _waiting = Waiting::begin("reading the record");
        let mut merged = Merged { record: Record::default(), files: paths.len(), again: 0, differing: 0 };
        let mut places = BTreeMap::new();
        for path in paths {
            let Record { runs, episodes, superseded, unattached, cut } = Record::read(path)?;
            for (run, line) in runs {
                let first = merged.record.runs.entry(run).or_insert_with(|| line.clone());
                if (&first.vocabulary, first.rows) != (&line.vocabulary, line.rows) {
                    let why = format!("{}: run {run} has another vocabulary in a record before it", path.display());
                    return Err(Failure::Failed(why));
                }
            }
            merged.record.superseded += superseded;
            merged.record.unattached += unattached;
            merged.record.cut = [merged.record.cut, cut].into_iter().flatten().reduce(|a, b| a + b);
            for episode in episodes {
                let identity = episode.played.identity();
                match places.get(&identity) {
                    None => {
                        places.insert(identity, merged.record.episodes.len());
                        merged.record.episodes.push(episode);
                    }
                    Some(&place) => merged.once_more(place, episode)?,
                }
            }
        }
        Ok(merged)
    }

    /// Takes an episode that is there already.
    fn once_more(&mut self, place: usize, later: RecordedEpisode) -> Result<(), Failure> {
        let text = |of: &RecordedEpisode| {
            serde_json::to_string(&of.played)
                .map_err(|e| Failure::Failed(format!("an episode cannot be compared: {e}")))
        };
        let earlier = &mut self.record.episodes[place];
        let differs = text(earlier)? != text(&later)?;
        self.again += 1;
        self.differing += usize::from(differs);
        // What a teacher said of the very same episode holds for both.
        let said = if differs { None } else { earlier.said.take() };
        *earlier = RecordedEpisode { said: later.said.or(said), ..later };
        Ok(())
    }

    /// What was put together, for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "files": self.files,
            "runs": self.record.runs.len(),
            "episodes": self.record.episodes.len(),
            "evaluations": self.evaluations(),
            "again": self.again,
            "differing": self.differing,
            "superseded": self.record.superseded,
            "cut": self.record.cut,
        })
    }

    /// Episodes that are evaluations.
    pub fn evaluations(&self) -> usize {
        self.record.episodes.iter().filter(|episode| episode.played.evaluation).count()
    }

    /// What people should know of it, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.again > 0 {
            notes.push(format!(
                "{} episodes stand in more than one record and count once; {} of them differ, and the later one counts",
                self.again, self.differing
            ));
        }
        if let Some(cut) = self.record.cut {
            notes.push(format!("a last line is cut off: {} are left out", bytes(cut)));
        }
        notes
    }
}
