//! `squire record`: what records hold, and the same as Parquet.
#![forbid(unsafe_code)]

mod episodes;
mod export;
mod info;
mod leaf;
mod per_token;
mod tokens;

use crate::output::{Failure, Output};

/// Look into records of what was played, or write them as Parquet
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Info(info::Args),
    Parquet(export::Args),
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    match &args.command {
        Command::Info(args) => info::run(args, out),
        Command::Parquet(args) => export::run(args, out),
    }
}
