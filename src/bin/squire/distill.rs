//! `squire distill --explain`: what a distillation would do, before it does it.
#![forbid(unsafe_code)]

use squire::distill::config::Config;
use squire::distill::explain::{explain, explain_text};

use crate::output::{Failure, Output};

/// Explain a distillation: every knob with its source, every schedule's value by step
#[derive(clap::Args)]
pub struct Args {
    /// The preset to explain
    #[arg(long, value_name = "PRESET")]
    explain: String,
    /// Steps of the run
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    steps: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let config = Config::preset(&args.explain)?;
    if args.json { out.json(&explain(&config, args.steps)) } else { out.text(&explain_text(&config, args.steps)) }
}
