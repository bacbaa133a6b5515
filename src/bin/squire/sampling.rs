//! Options of the subcommands that generate: how to sample, and what the chat template is told.
#![forbid(unsafe_code)]

use std::time::Duration;

use clap::{CommandFactory, Parser};
use squire::backend::ops::Sampling;
use squire::serve::{Chunk, Controls, Finish, Generation, GenerationOptions, Next, ServedModel};
use squire::text::{Json, RenderOptions, request};

use crate::output::Failure;
use crate::waiting::Waiting;

/// Most tokens of an answer where nobody says otherwise.
const MAX_TOKENS: usize = 256;

/// How to sample.
#[derive(Clone, clap::Args)]
pub struct SamplingArgs {
    /// Most tokens to generate; 0 and -1 go on to the end of the context [default: 256]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = most)]
    max_tokens: Option<usize>,
    /// Divides the logits, 0 takes the likeliest token [default: the folder's, else 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the K likeliest tokens, 0 and -1 keep all [default: the folder's, else 0]
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = likeliest)]
    top_k: Option<u32>,
    /// Keep the likeliest tokens of this mass [default: the folder's, else 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep tokens with at least this share of the likeliest one's probability [default: the folder's, else 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Keep tokens of this mass whose surprise lies nearest to the entropy [default: the folder's, else 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    typical_p: Option<f32>,
    /// Divides positive logits of tokens that came, prompt included, and multiplies others [default: the folder's, else 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Taken from logits of tokens that were said in this turn [default: the folder's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Taken from them for each time that they were [default: the folder's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// No N tokens side by side come again, prompt included [default: the folder's, else 0: they may]
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<u32>,
    /// Add X to the logit of a token, may be given more than once [default: the folder's]
    #[arg(long, value_name = "ID=X", allow_negative_numbers = true, value_parser = bias)]
    logit_bias: Vec<(i32, f32)>,
    /// End before this text, may be given more than once [default: the folder's]
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End after so many milliseconds, whatever was said by then
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    time_limit: Option<u64>,
    /// Seed of the draws; the same seed gives the same text [default: another one each run, printed with --json]
    #[arg(long, value_name = "SEED", allow_negative_numbers = true, value_parser = seed)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The options of a generation: what was given, else the folder's.
    pub fn options(&self, model: &ServedModel) -> GenerationOptions {
        let defaults = model.generation_options();
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(defaults.sampling.temperature),
            top_k: self.top_k.unwrap_or(defaults.sampling.top_k),
            top_p: self.top_p.unwrap_or(defaults.sampling.top_p),
        };
        let own = &defaults.controls;
        let controls = Controls {
            min_p: self.min_p.unwrap_or(own.min_p),
            typical_p: self.typical_p.unwrap_or(own.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(own.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(own.frequency_penalty),
            no_repeat_ngram_size: self.no_repeat_ngram_size.unwrap_or(own.no_repeat_ngram_size),
            logit_bias: given(&self.logit_bias, &own.logit_bias),
        };
        let stop_strings = given(&self.stop, &defaults.stop_strings);
        let seed = self.seed.unwrap_or(defaults.seed);
        let max_tokens = self.max_tokens.unwrap_or(MAX_TOKENS);
        let time_limit = self.time_limit.map(Duration::from_millis);
        GenerationOptions { max_tokens, sampling, controls, stop_strings, time_limit, seed, ..defaults }
    }
}

/// One option, by its name.
#[derive(clap::Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Named {
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl SamplingArgs {
    /// The same with another value for the option of that name. Error: what was wrong.
    pub fn with(&self, name: &str, value: &str) -> Result<SamplingArgs, String> {
        let (command, long) = (Named::command(), name.replace('_', "-"));
        let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        if !known.contains(&long.as_str()) {
            return Err(format!("wanted one of {}, found {name:?}", known.join(", ")));
        }
        let mut named = Named { sampling: self.clone() };
        named.try_update_from([format!("--{long}={value}")]).map_err(|e| {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_string()
        })?;
        Ok(named.sampling)
    }
}

/// What was given, else the folder's.
fn given<T: Clone>(given: &[T], own: &[T]) -> Vec<T> {
    if given.is_empty() { own.to_vec() } else { given.to_vec() }
}

fn bias(text: &str) -> Result<(i32, f32), String> {
    let parts = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parts.ok_or_else(|| "wanted a token's id and a number, as 42=-1.5".into())
}

/// A number of which 0 and -1 mean "no limit".
fn unlimited<T: TryFrom<i64> + Default>(text: &str, what: &str) -> Result<T, String> {
    let wrong = || format!("wanted {what}, or 0 or -1 for no limit");
    match text.parse::<i64>().map_err(|_| wrong())? {
        -1 | 0 => Ok(T::default()),
        n => T::try_from(n).map_err(|_| wrong()),
    }
}

fn most(text: &str) -> Result<usize, String> {
    unlimited(text, "a number of tokens")
}

fn likeliest(text: &str) -> Result<u32, String> {
    unlimited(text, "a number of tokens to keep")
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "wanted a whole number from 0 to 18446744073709551615; leave it out for another each run".into())
}

/// What the chat template is told.
#[derive(clap::Args)]
pub struct TemplateArgs {
    /// A system message before the first
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// The template's variables, a JSON object such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON")]
    chat_template_kwargs: Option<String>,
}

impl TemplateArgs {
    /// Options of a rendering that an assistant's turn follows.
    pub fn options(&self) -> Result<RenderOptions, Failure> {
        let mut options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        if let Some(text) = &self.chat_template_kwargs {
            let within = |e: squire::error::Error| e.within("--chat-template-kwargs");
            request::take(&mut options, "chat_template_kwargs", &Json::parse(text).map_err(within)?)?;
        }
        Ok(options)
    }

    /// Refuses what only a template can use.
    pub fn refuse(&self, why: &str) -> Result<(), Failure> {
        let given = [("--system", &self.system), ("--chat-template-kwargs", &self.chat_template_kwargs)];
        match given.iter().find(|(_, value)| value.is_some()) {
            Some((name, _)) => Err(Failure::Usage(format!("{name} is for a chat template, and {why}"))),
            None => Ok(()),
        }
    }
}

/// How long a wait may be before whoever may stop it is asked.
const LOOK: Duration = Duration::from_millis(50);

/// Hands every chunk to `take` until the end, or cancels it once it is `stopped`; the wait ends with the first chunk.
pub fn pull(
    generation: &Generation,
    waiting: impl Into<Option<Waiting>>,
    stopped: &dyn Fn() -> bool,
    mut take: impl FnMut(Chunk) -> Result<(), Failure>,
) -> Result<Finish, Failure> {
    let mut waiting = waiting.into();
    loop {
        if stopped() {
            generation.cancel();
        }
        match generation.next(Some(LOOK))? {
            Next::Chunk(chunk) => {
                drop(waiting.take());
                take(chunk)?;
            }
            Next::End(finish) => return Ok(finish),
            Next::Timeout => {}
        }
    }
}

/// The word for why a generation ended.
pub fn name_of(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ContextFull => "context-full",
        Finish::Cancelled => "cancelled",
        Finish::Failed => "failed",
        Finish::Time => "time",
    }
}
