//! The main job of squire in one program: a weak student plays a text household, a teacher guides it,
//! every update is built, applied and published in this process, and the better student is saved, loaded
//! again and watched for one game.
//!
//! ```text
//! cargo run --release --example household                  the run
//! cargo run --release --example household -- --json        the same; the last line is one JSON object
//! cargo run --release --example household -- --method opd --student FOLDER --teacher-url http://127.0.0.1:PORT
//!                                                          a teacher in another process (queue_teacher.py)
//! cargo run --release --example household -- compare       beside OPD and imitation, from the same student
//! cargo run --release --example household -- methods       every preset from the same student
//! cargo run --release --example household -- measure       the shipped models alone
//! cargo run --release --example household -- make-models F makes the shipped models again
//! ```
#![forbid(unsafe_code)]

mod compare;
mod demos;
mod expert;
mod learn;
mod methods;
mod models;
mod play;
mod remote;
mod words;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Distiller, EpisodeSpec, Report, Teacher};
use squire::error::Result;
use squire::serve::{Engine, EngineOptions, GenerationOptions, LoadOptions, ServedModel};

use learn::{Method, Plan, learn, unseen};
use models::COOL;
use world::{Game, Split};

#[derive(Parser)]
#[command(about = "A student learns a text household from its teacher")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The method.
    #[arg(long, value_enum, default_value = "guided-opd")]
    method: Method,
    /// Optimiser updates, each of 32 games.
    #[arg(long, default_value_t = 300)]
    updates: u64,
    /// Seed of all draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Unseen games that success is measured on, before and after.
    #[arg(long, default_value_t = 200)]
    games: u64,
    /// Threads that compute (0: one a core).
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Write a checkpoint here after every update, and go on from one that is there.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Write the run down in this folder: `squire report` makes a page of it.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Where the better student goes.
    #[arg(long, default_value = "target/household/student")]
    save: PathBuf,
    /// Train an adapter of this rank (LoRA, alpha twice the rank) instead of all weights.
    #[arg(long)]
    lora: Option<u32>,
    /// Games that are played side by side, instead of all of an update; as one ends, the next begins.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    seats: Option<u16>,
    /// Settings in place of the method's own, a JSON object of what differs.
    #[arg(long, default_value = "{}", value_parser = object)]
    set: Value,
    /// Begin with this student instead of the shipped one.
    #[arg(long)]
    student: Option<PathBuf>,
    /// Ask the teacher at this address, which scores and does not act (queue_teacher.py), instead of the shipped one in this
    /// process.
    #[arg(long)]
    teacher_url: Option<String>,
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Guided OPD beside OPD and two kinds of imitation, at the same updates and at the same seconds.
    Compare {
        /// Seeds of the comparison.
        #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
        seeds: Vec<u64>,
    },
    /// Every preset from the same student, at the same updates, printed as it falls.
    Methods {
        /// Which (all, unless they are named).
        #[arg(long, value_delimiter = ',')]
        presets: Vec<String>,
        /// Seeds of each.
        #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
        seeds: Vec<u64>,
    },
    /// The shipped models alone: at two temperatures, and after random turns.
    Measure,
    /// Makes the shipped teacher and student again.
    MakeModels {
        /// Where to.
        folder: PathBuf,
        /// Only this one.
        #[arg(long)]
        only: Option<String>,
    },
}

fn object(text: &str) -> std::result::Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if value.is_object() { Ok(value) } else { Err("wanted a JSON object".into()) }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("household: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let options = EngineOptions { compute: Compute::F32, n_threads: arguments.threads, ..EngineOptions::default() };
    let engine = Engine::new(options)?;
    match &arguments.command {
        None => demonstrate(&engine, arguments),
        Some(Command::Compare { seeds }) => compare::compare(&engine, seeds, arguments.updates, arguments.games),
        Some(Command::Methods { presets, seeds }) => {
            methods::methods(&engine, presets, seeds, arguments.updates, arguments.games)
        }
        Some(Command::Measure) => {
            for recipe in &models::RECIPES {
                models::measure_all(&load(&engine, recipe.name)?, recipe.name)?;
            }
            Ok(())
        }
        Some(Command::MakeModels { folder, only }) => {
            for recipe in models::RECIPES.iter().filter(|r| only.as_ref().is_none_or(|o| o == r.name)) {
                models::make(&engine, recipe, &folder.join(recipe.name))?;
            }
            Ok(())
        }
    }
}

fn load(engine: &Engine, name: &str) -> Result<ServedModel> {
    engine.load(&models::shipped(name), LoadOptions::default())
}

/// The whole story once.
fn demonstrate(engine: &Engine, arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let teacher = load(engine, "teacher")?;
    let student = match &arguments.student {
        Some(folder) => engine.load(folder, LoadOptions::default())?,
        None => load(engine, "student")?,
    };
    let remote = arguments.teacher_url.as_ref().map(|url| remote::Remote::new(url, 2)).transpose()?;
    let (n, updates) = (arguments.games, arguments.updates);
    let success_teacher = models::measure(&teacher, Split::Unseen, n, COOL, 0)?;
    println!("teacher on {n} unseen games: {:.1} %", 100.0 * success_teacher);
    let before = Distiller::new(&student, Some(&teacher), squire::distill::Config::preset("opd")?)?;
    let success_before = unseen(&before, n)?;
    println!("student on {n} unseen games: {:.1} %\n", 100.0 * success_before);
    println!("{}, {updates} updates of {} games:", arguments.method.name(), learn::BATCH);
    println!("update  beta  won in training   KL (nats a token)  tokens: student  teacher  replayed");
    let plan = Plan {
        method: arguments.method,
        updates,
        seed: arguments.seed,
        lora: arguments.lora,
        seats: arguments.seats.map(usize::from),
        set: arguments.set.clone(),
        checkpoint: arguments.checkpoint.clone(),
        record: arguments.record.clone(),
        watch,
    };
    let asked = match &remote {
        Some(remote) => Teacher::Queue(remote.queue.clone()),
        None => Teacher::Local(teacher),
    };
    let (distiller, learnt) = learn(&student, &asked, &plan)?;
    let success_after = unseen(&distiller, n)?;
    println!(
        "\nplayed and learnt for {:.1} s\nstudent on {n} unseen games: {:.1} % before, {:.1} % after",
        learnt.seconds,
        100.0 * success_before,
        100.0 * success_after
    );
    student.save(&arguments.save)?;
    println!("saved to {}; loaded again, it plays an unseen game:\n", arguments.save.display());
    let saved = engine.load(&arguments.save, LoadOptions::default())?;
    watch_a_game(&saved)?;
    if arguments.json {
        let result = json!({
            "success_before": success_before,
            "success_after": success_after,
            "success_teacher": success_teacher,
            "games": learnt.games,
            "updates": updates,
            "learning_seconds": learnt.seconds,
            "seconds": started.elapsed().as_secs_f64(),
        });
        println!("{result}");
    }
    Ok(())
}

/// A line every ten updates.
fn watch(distiller: &Distiller, won: f64, report: &Report) {
    let step = distiller.step();
    if !step.is_multiple_of(10) && step != 1 && step != distiller.config().steps {
        return;
    }
    let beta = distiller.config().beta_at(step - 1);
    let kl = report.reverse_kl.or(report.forward_kl).or(report.cross_entropy).unwrap_or(f64::NAN);
    println!(
        "{step:6}  {beta:4.2}  {:12.0} %  {kl:17.3}  {:15}  {:7}  {:8}",
        100.0 * won,
        report.student_tokens,
        report.teacher_tokens,
        report.replay_tokens
    );
}

/// Plays one unseen game and prints it.
fn watch_a_game(student: &ServedModel) -> Result<()> {
    let settings = json!({"preset": "sft", "student_turns": {"kernel": "cross-entropy"}, "actor": {"kind": "student"}});
    let distiller = models::imitation(student, settings)?;
    let mut game = Game::new(Split::Unseen, models::EVALUATION + 7);
    let episode = distiller.begin(EpisodeSpec { evaluation: true, ..EpisodeSpec::default() })?;
    let mut seen = game.first_observation();
    loop {
        println!(" {seen}");
        episode.observe(json!([{"role": "user", "content": seen}]))?;
        episode.decide()?;
        let mut options = GenerationOptions { max_tokens: 8, ..GenerationOptions::default() };
        options.sampling.temperature = COOL;
        let (said, _) = episode.act(&options)?.collect()?;
        println!("     {}", said.text);
        let step = game.act(&said.text);
        episode.outcome(None, true)?;
        seen = step.observation;
        if step.done {
            println!(" {seen}\n\n{} after {} turns", if step.won { "won" } else { "lost" }, game.turns());
            return episode.end(f64::from(u8::from(step.won)), Some(step.won));
        }
    }
}
