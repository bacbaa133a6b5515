//! `squire distill`: what a distillation would do before it does it, and one from records.
#![forbid(unsafe_code)]

mod learning;
mod run;
mod teacher;

use squire::distill::config::Config;
use squire::distill::explain::{explain, explain_text};

use crate::output::{Failure, Output};

/// Explain a distillation (every knob with its source, every schedule's value by step), or learn from records (run)
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The preset to explain
    #[arg(long, value_name = "PRESET", required = true)]
    explain: Option<String>,
    /// Steps of the run
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    steps: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    Run(Box<run::Args>),
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    if let Some(Command::Run(args)) = &args.command {
        return run::run(args, out);
    }
    let config = Config::preset(args.explain.as_deref().unwrap_or_default())?;
    if args.json { out.json(&explain(&config, args.steps)) } else { out.text(&explain_text(&config, args.steps)) }
}
