//! `squire record info`: what a record holds.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde_json::{Map, json};
use squire::text::source::Source;

use crate::output::{Failure, Output, or};
use crate::records::Merged;

/// Say what a record holds: runs, episodes, and tokens by source
#[derive(clap::Args)]
pub struct Args {
    /// The record: a file, or the folder of a run
    #[arg(value_name = "FILE-OR-FOLDER")]
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let record = Merged::read(std::slice::from_ref(&args.path))?.record;
    let sources = || record.episodes.iter().flat_map(|episode| &episode.played.sources);
    let tokens = Source::ALL.map(|source| {
        let n: usize = sources().filter(|(name, _)| name == source.name()).map(|(_, n)| n).sum();
        (source.name(), n)
    });
    let turns = record.episodes.iter().map(|episode| episode.played.turns.len()).sum::<usize>();
    let mut facts = record.to_json();
    if args.json {
        facts["turns"] = json!(turns);
        facts["tokens"] = tokens.iter().map(|(name, n)| (name.to_string(), json!(n))).collect::<Map<_, _>>().into();
        return out.json(&facts);
    }
    let count = |key: &str| facts[key].to_string();
    out.facts(
        &args.path.display().to_string(),
        &[
            ("episodes", format!("{}, {} of them evaluations", count("episodes"), count("evaluations"))),
            ("scored by a teacher", count("scored")),
            ("turns", turns.to_string()),
            ("superseded", count("superseded")),
            ("bytes cut off", or(record.cut, "none")),
        ],
    )?;
    let list = tokens.map(|(name, n)| vec![name.to_string(), n.to_string()]);
    out.text("tokens\n")?;
    out.table(&list)?;
    for (run, line) in &record.runs {
        let episodes = record.episodes.iter().filter(|episode| episode.played.run == *run).count();
        out.facts(
            &format!("run {run}"),
            &[
                ("episodes", episodes.to_string()),
                ("vocabulary", format!("{}, {} ids", or(line.vocabulary.as_ref(), "no tokenizer"), line.rows)),
                ("settings", line.fingerprint.clone()),
                ("written by squire", line.squire.clone()),
            ],
        )?;
    }
    Ok(())
}
