//! The main job of squire in one program: a weak student plays a text household, a teacher guides it,
//! every update is built, applied and published in this process, and the better student is saved,
//! loaded again and watched for one game.
#![forbid(unsafe_code)]

mod demos;
mod expert;
mod models;
mod play;
mod words;
mod world;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use squire::backend::Compute;
use squire::error::Result;
use squire::serve::{Engine, EngineOptions};

#[derive(Parser)]
#[command(about = "A student learns a text household from its teacher")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the shipped teacher and student again.
    MakeModels {
        /// Where to.
        folder: PathBuf,
        /// Only this one.
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let engine = Engine::new(EngineOptions { compute: Compute::F32, ..EngineOptions::default() })?;
    if let Some(Command::MakeModels { folder, only }) = &arguments.command {
        for recipe in models::RECIPES.iter().filter(|r| only.as_ref().is_none_or(|o| o == r.name)) {
            models::make(&engine, recipe, &folder.join(recipe.name))?;
        }
    }
    Ok(())
}
