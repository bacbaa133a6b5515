//! `squire record parquet`: records as a Parquet file, every number with the record's bits.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::errors::Result as Written;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value, json};
use squire::distill::Record;
use squire::distill::record::reader::RECORD;
use squire::format::durable::write_file;

use super::episodes::Episodes;
use super::leaf::Form;
use super::per_token::Tokens as OfEpisode;
use super::tokens::Tokens;
use crate::output::{Failure, Output, bytes};
use crate::records::Merged;
use crate::waiting::Counting;

/// Values and nulls of a row group: it is held in memory until it is written.
const GROUP: usize = 1 << 21;

/// Write records as Parquet, token by token
#[derive(clap::Args)]
pub struct Args {
    /// The records: files, or folders of runs; what stands in several counts once
    #[arg(value_name = "FILE-OR-FOLDER", required = true)]
    record: Vec<PathBuf>,
    /// Where it goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// One row a token in place of one an episode
    #[arg(long)]
    tokens: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was written.
#[derive(Default)]
struct Done {
    rows: usize,
    groups: usize,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    check_output(args)?;
    let merged = Merged::read(&args.record)?;
    let record = &merged.record;
    let metadata = metadata(record, if args.tokens { Tokens::ROW } else { Episodes::ROW })?;
    let bar = Counting::begin(record.episodes.len() as u64, "episodes");
    let mut done = Done::default();
    write_file(&args.output, |file| {
        done = match args.tokens {
            true => write(file, record, metadata, Tokens::default(), &bar),
            false => write(file, record, metadata, Episodes::default(), &bar),
        }
        .map_err(io::Error::other)?;
        Ok(())
    })?;
    drop(bar);
    let size = std::fs::metadata(&args.output).map(|at| at.len());
    let size = size.map_err(|e| Failure::Failed(format!("{}: {e}", args.output.display())))?;
    let row = if args.tokens { Tokens::ROW } else { Episodes::ROW };
    let notes = merged.notes();
    if args.json {
        return out.json(&json!({
            "path": args.output.display().to_string(),
            "bytes": size,
            "row": row,
            "rows": done.rows,
            "row_groups": done.groups,
            "record": merged.to_json(),
            "notes": notes,
        }));
    }
    for note in &notes {
        eprintln!("squire: {note}");
    }
    let (path, rows) = (args.output.display(), done.rows);
    out.text(&format!("{path}  {}, {rows} rows, one a {row}\n", bytes(size)))
}

/// Refuses to write over a record that is read.
fn check_output(args: &Args) -> Result<(), Failure> {
    let Ok(output) = args.output.canonicalize() else { return Ok(()) };
    let file = |path: &PathBuf| if path.is_dir() { path.join(RECORD) } else { path.clone() };
    match args.record.iter().any(|path| file(path).canonicalize().is_ok_and(|path| path == output)) {
        true => Err(Failure::Usage(format!("--output: {} is a record that is to be read", args.output.display()))),
        false => Ok(()),
    }
}

/// What the file says of itself.
fn metadata(record: &Record, row: &str) -> Result<Vec<KeyValue>, Failure> {
    let mut lines = record.runs.iter();
    let Some((first, line)) = lines.next() else {
        return Err(Failure::Failed("wanted a record with the line of a run, found none".into()));
    };
    let is_other = |vocabulary: &Option<String>, rows: usize| {
        *vocabulary != line.vocabulary || (vocabulary.is_none() && rows != line.rows)
    };
    if let Some((run, other)) = lines.find(|(_, other)| is_other(&other.vocabulary, other.rows)) {
        let shown = |vocabulary: &Option<String>, rows: usize| match vocabulary {
            Some(fingerprint) => fingerprint.clone(),
            None => format!("no tokenizer and {rows} ids"),
        };
        let why = format!(
            "the records are of different vocabularies: {} in run {first}, {} in run {run}; one file has one",
            shown(&line.vocabulary, line.rows),
            shown(&other.vocabulary, other.rows)
        );
        return Err(Failure::Failed(why));
    }
    let settings: Map<String, Value> =
        record.runs.values().map(|line| (line.fingerprint.clone(), line.settings.clone())).collect();
    let rows = record.runs.values().map(|line| line.rows).max().unwrap_or(line.rows);
    let pairs = [
        ("squire.row", row.to_string()),
        ("squire.version", env!("CARGO_PKG_VERSION").to_string()),
        ("squire.rows", rows.to_string()),
        ("squire.settings", Value::Object(settings).to_string()),
    ];
    let vocabulary = line.vocabulary.clone().map(|fingerprint| ("squire.vocabulary", fingerprint));
    let pairs = pairs.into_iter().chain(vocabulary);
    Ok(pairs.map(|(key, value)| KeyValue::new(key.to_string(), value)).collect())
}

fn write<F: Form>(
    file: &mut (dyn Write + Send),
    record: &Record,
    metadata: Vec<KeyValue>,
    mut form: F,
    bar: &Counting,
) -> Written<Done> {
    let declared: String = form.columns().iter().map(|column| column.declared()).collect();
    let schema = parse_message_type(&format!("message {} {{ {declared} }}", F::ROW))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by(format!("squire {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(metadata))
        .build();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
    let mut done = Done::default();
    let mut held = 0;
    for (i, episode) in record.episodes.iter().enumerate() {
        let rows = form.add(&OfEpisode::of(episode));
        done.rows += rows;
        held += rows;
        if form.columns().iter().map(|column| column.len()).sum::<usize>() >= GROUP {
            flush(&mut writer, &mut form)?;
            done.groups += 1;
            held = 0;
        }
        bar.done(i as u64 + 1);
    }
    if held > 0 {
        flush(&mut writer, &mut form)?;
        done.groups += 1;
    }
    writer.close()?;
    Ok(done)
}

/// Writes a row group of what the columns hold.
fn flush<F: Form>(writer: &mut SerializedFileWriter<&mut (dyn Write + Send)>, form: &mut F) -> Written<()> {
    let mut group = writer.next_row_group()?;
    for column in form.columns() {
        // The schema was made of these columns, so there are as many.
        let Some(mut to) = group.next_column()? else { break };
        column.write(&mut to)?;
        to.close()?;
    }
    group.close()?;
    Ok(())
}
