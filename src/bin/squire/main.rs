//! The program `squire`: look into model folders, generate, chat, score, measure, explain a distillation, learn from records, and
//! watch a run.
//!
//! Results go to stdout, as text or with `--json` as one object; everything else goes to stderr. It exits
//! with 0, with 1 where something failed, with 2 where it was called wrongly.
#![forbid(unsafe_code)]

mod bandwidth;
mod bench;
mod chat;
mod distill;
mod generate;
mod inspect;
mod options;
mod output;
mod page;
mod parts;
mod record;
mod records;
mod report;
mod run_folder;
mod sampling;
mod score;
mod shapes;
mod tensorboard;
mod visible;
mod waiting;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use output::{Failure, Output};

/// Serve a distilled student and look at how it is taught.
#[derive(Parser)]
#[command(name = "squire", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Score(score::Args),
    Bench(bench::Args),
    Distill(distill::Args),
    Report(report::Args),
    Record(record::Args),
}

fn main() -> ExitCode {
    let mut out = Output::new();
    let done = Cli::try_parse().map_err(Failure::from).and_then(|cli| match cli.command {
        Command::Inspect(args) => inspect::run(&args, &mut out),
        Command::Generate(args) => generate::run(&args, &mut out),
        Command::Chat(args) => chat::run(&args, &mut out),
        Command::Score(args) => score::run(&args, &mut out),
        Command::Bench(args) => bench::run(&args, &mut out),
        Command::Distill(args) => distill::run(&args, &mut out),
        Command::Report(args) => report::run(&args, &mut out),
        Command::Record(args) => record::run(&args, &mut out),
    });
    output::exit(done)
}

impl From<clap::Error> for Failure {
    fn from(e: clap::Error) -> Failure {
        let text = e.to_string();
        match e.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Failure::Asked(text),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Failure::Usage(format!("a subcommand is missing\n\n{}", text.trim_end()))
            }
            _ => Failure::Usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_string()),
        }
    }
}
