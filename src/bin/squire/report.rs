//! `squire report`: the page of a run, or its figures for TensorBoard.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde_json::json;
use squire::format::durable::write_file;

use crate::output::{Failure, Output, bytes};
use crate::page::{count, page};
use crate::run_folder::{History, Record};
use crate::tensorboard;
use crate::waiting::Waiting;

/// Episodes that a page holds to be read.
const EPISODES: usize = 40;

/// Make a page of a run's folder, or an event file for TensorBoard
#[derive(clap::Args)]
pub struct Args {
    /// The folder of a run: what it wrote down is in metrics.jsonl and record.jsonl
    dir: PathBuf,
    /// Where the page goes; report.html in the folder if not given
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the figures into this folder for TensorBoard; the page then only with --output
    #[arg(long, value_name = "FOLDER")]
    tensorboard: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let waiting = Waiting::begin("reading the run");
    let mut history = History::read(&args.dir)?;
    let mut written: Vec<(&str, PathBuf, usize)> = Vec::new();
    if let Some(folder) = &args.tensorboard {
        std::fs::create_dir_all(folder).map_err(|e| Failure::Failed(format!("{}: {e}", folder.display())))?;
        let path = folder.join(tensorboard::file_name(&history));
        written.push(("events", path.clone(), put(&path, &tensorboard::events(&history))?));
    }
    if args.tensorboard.is_none() || args.output.is_some() {
        let mut record = Record::read(&args.dir, &history.run)?;
        let chosen = record.as_mut().map(|record| record.choose(EPISODES)).transpose()?.unwrap_or_default();
        if let Some(cut) = record.as_ref().map(Record::cut).filter(|cut| *cut > 0) {
            history.notes.push(format!("the last line of record.jsonl is cut off: {cut} bytes are left out"));
        }
        let path = args.output.clone().unwrap_or_else(|| args.dir.join("report.html"));
        let page = page(&history, &chosen, record.as_ref().map(Record::len));
        written.push(("page", path.clone(), put(&path, &page)?));
    }
    drop(waiting);

    let updates = history.updates().count();
    if args.json {
        let files: serde_json::Map<_, _> = written
            .iter()
            .map(|(what, path, n)| (what.to_string(), json!({"path": path.display().to_string(), "bytes": n})))
            .collect();
        return out.json(&json!({
            "run": history.run, "step": history.applied(), "updates": updates, "notes": history.notes, "files": files,
        }));
    }
    for note in &history.notes {
        eprintln!("squire: {note}");
    }
    for (_, path, n) in &written {
        out.text(&format!("{}  {}, {}\n", path.display(), bytes(*n as u64), count(updates as u64, "update")))?;
    }
    Ok(())
}

/// Writes a file whole or not at all, and gives its size.
fn put(path: &Path, content: &[u8]) -> Result<usize, Failure> {
    write_file(path, |file| file.write_all(content))?;
    Ok(content.len())
}
