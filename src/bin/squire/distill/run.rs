//! `squire distill run`: a student learns from records of what was played, with no environment.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use squire::distill::{Config, Distiller, Record, RecordOptions, Teacher};
use squire::format::{check_model_place, read_text};
use squire::model::check_adapter_place;
use squire::serve::{Engine, LoadOptions, ServedModel};

use super::learning::{Learnt, learn};
use super::teacher::teacher;
use crate::options::EngineArgs;
use crate::output::{Failure, Output, or};
use crate::records::Merged;
use crate::waiting::Waiting;

/// The longest settings document, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;

/// Learn from records of what was played: no environment is needed
#[derive(clap::Args)]
pub struct Args {
    /// The settings, a JSON document (docs/settings.md); those of the record where it is - or not given
    #[arg(value_name = "SETTINGS")]
    settings: Option<PathBuf>,
    /// Records: files, or folders of runs; what stands in several counts once
    #[arg(long, value_name = "FILE-OR-FOLDER", required = true, num_args = 1..)]
    record: Vec<PathBuf>,
    /// The folder of the model that learns
    #[arg(long, value_name = "MODEL")]
    student: PathBuf,
    /// The folder of a model that teaches; what a teacher said in the record counts if not given
    #[arg(long, value_name = "MODEL")]
    teacher: Option<PathBuf>,
    /// Where the student goes, or its adapter where the settings train one (lora)
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Keep a checkpoint there after each update, and go on from one that is there
    #[arg(long, value_name = "FOLDER")]
    checkpoint: Option<PathBuf>,
    /// Steps of the run, in place of the settings'
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    steps: Option<u64>,
    /// Write what becomes of the run there: `squire report` makes a page of it
    #[arg(long, value_name = "FOLDER")]
    metrics: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let begun = Instant::now();
    let merged = Merged::read(&args.record)?;
    let training = merged.record.episodes.len() - merged.evaluations();
    if training == 0 {
        let why = format!(
            "there is nothing to learn: wanted episodes of training in the record, found {} evaluations alone",
            merged.evaluations()
        );
        return Err(Failure::Failed(why));
    }
    let config = settings(args, &merged.record)?;
    let trains_adapter = config.lora.is_some();
    // Now, and not when all is learnt.
    if trains_adapter { check_adapter_place(&args.out) } else { check_model_place(&args.out) }
        .map_err(|e| e.within("--out"))?;
    let loading = Waiting::begin("loading");
    let engine = Engine::new(args.engine.engine()?)?;
    let student = engine.load(&args.student, LoadOptions::default())?;
    let teacher = teacher(args.teacher.as_deref(), &engine, &config, &merged.record)?;
    drop(loading);
    let (distiller, is_resumed) = begin(args, &student, teacher, config, &merged.record)?;
    let first = distiller.step();
    let learnt = learn(&distiller, &merged.record, args.checkpoint.as_deref())?;
    if learnt.updates == 0 && !is_resumed {
        return Err(Failure::Failed(format!("there is nothing to learn: {}", why_nothing(&learnt, training))));
    }
    let saving = Waiting::begin("saving");
    if trains_adapter { student.save_adapter(None, &args.out) } else { student.save(&args.out) }?;
    drop(saving);

    let Learnt { updates, episodes, loss, known, other_settings, without_loss, set_aside, left, warnings } = &learnt;
    let mut notes = merged.notes();
    let compute = student.model().compute.name();
    let mut played = merged.record.runs.values().map(|line| line.compute.as_str());
    if let Some(other) = played.find(|of| !of.is_empty() && *of != compute) {
        notes.push(format!(
            "the record was played in {other} compute and learnt in {compute}: the update is another in its last bits; --compute {other} \
             makes it the same"
        ));
    }
    if let (n @ 1.., reason) = set_aside {
        let reason = or(reason.as_ref(), "nobody scored them");
        notes.push(format!(
            "{n} episodes are set aside, since the record does not have all that a teacher has to say of them: {reason}"
        ));
    }
    if *without_loss > 0 {
        notes.push(format!("{without_loss} episodes have no token that carries loss under these settings"));
    }
    notes.extend(warnings.iter().cloned());
    let kind = if trains_adapter { "adapter" } else { "model" };
    if args.json {
        return out.json(&json!({
            "run": distiller.run(),
            "out": args.out.display().to_string(),
            "kind": kind,
            "resumed_at": is_resumed.then_some(first),
            "step": distiller.step(),
            "steps": distiller.config().steps,
            "updates": updates,
            "episodes": episodes,
            "loss": loss,
            "record": merged.to_json(),
            "known": known,
            "other_settings": other_settings,
            "without_loss": without_loss,
            "set_aside": set_aside.0,
            "left": left,
            "notes": notes,
            "seconds": begun.elapsed().as_secs_f64(),
        }));
    }
    for note in &notes {
        eprintln!("squire: {note}");
    }
    let resumed = if is_resumed { format!(", resumed at step {first}") } else { String::new() };
    out.facts(
        &args.out.display().to_string(),
        &[
            ("written", format!("{} {kind}", if trains_adapter { "an" } else { "a" })),
            ("steps", format!("{} of {}{resumed}", distiller.step(), distiller.config().steps)),
            ("updates", updates.to_string()),
            ("episodes", format!("{episodes} of {training}, {known} learnt before, {left} left")),
            ("loss", or(loss.map(|loss| format!("{loss:.6}")), "none")),
        ],
    )
}

/// The settings: a document, or what the record was played under.
fn settings(args: &Args, record: &Record) -> Result<Config, Failure> {
    let mut config = match args.settings.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let text = read_text(path, MAX_SETTINGS)?;
            Config::from_json(&text).map_err(|e| e.within(path.display()))?
        }
        None => {
            let mut lines = record.runs.values();
            // A record has a first line, or it was refused.
            let first = lines.next().ok_or_else(|| Failure::Failed("the record has no line of a run".into()))?;
            if let Some(other) = lines.find(|line| line.fingerprint != first.fingerprint) {
                let why = format!(
                    "the records were played under different settings: {} in run {}, {} in run {}; give a settings document",
                    first.fingerprint, first.run, other.fingerprint, other.run
                );
                return Err(Failure::Usage(why));
            }
            // A run may have been resumed under others.
            if let Some(other) = record.episodes.iter().find(|e| e.played.settings != first.fingerprint) {
                let why = format!(
                    "the record begins under the settings {} and has episodes of others: {} in episode {}; give a settings document",
                    first.fingerprint, other.played.settings, other.played.episode
                );
                return Err(Failure::Usage(why));
            }
            Config::from_value(&first.settings).map_err(|e| e.within("the record's settings"))?
        }
    };
    config.steps = args.steps.unwrap_or(config.steps);
    Ok(config)
}

/// The distiller, and whether it goes on from a checkpoint.
fn begin(
    args: &Args,
    student: &ServedModel,
    teacher: Option<Teacher>,
    config: Config,
    record: &Record,
) -> Result<(Distiller, bool), Failure> {
    let checkpoint = args.checkpoint.as_deref();
    let is_resumed = checkpoint.map(Distiller::checkpoint).transpose()?.flatten().is_some();
    let distiller = match checkpoint.filter(|_| is_resumed) {
        Some(folder) => Distiller::resume_taught(student, teacher, config, folder)?,
        None => {
            // A record of another vocabulary is refused before anything is written.
            Distiller::taught(student, teacher.clone(), config.clone())?.import(record, 1)?;
            let distiller = Distiller::taught(student, teacher, config)?;
            // One that is killed amid its first update goes on as the same run, in the same folder of metrics.
            checkpoint.map_or(Ok(()), |folder| distiller.save(folder))?;
            distiller
        }
    };
    if let Some(folder) = &args.metrics {
        distiller.record(folder, RecordOptions::default())?;
    }
    Ok((distiller, is_resumed))
}

/// Why no update was made.
fn why_nothing(learnt: &Learnt, training: usize) -> String {
    match &learnt.set_aside {
        (0, _) => format!("of {training} episodes none has a token that carries loss under these settings"),
        (n, reason) => format!(
            "{n} of {training} episodes lack what a teacher has to say of them, the others carry no loss; give --teacher ({})",
            or(reason.as_ref(), "nobody scored them")
        ),
    }
}
