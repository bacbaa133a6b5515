//! `squire generate`: continue a prompt, printing the text as it comes.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use squire::backend::ops::Sampling;
use squire::serve::{Chunk, Engine, Finish, Generation, GenerationOptions, LoadOptions, Next, ServedModel, Session};
use squire::text::chat::RenderOptions;
use squire::text::source::Source;
use squire::text::tokenizer::Control;

use crate::options::EngineArgs;
use crate::output::{Failure, Output};
use crate::waiting::Waiting;

/// Generate text after a prompt
#[derive(clap::Args)]
pub struct Args {
    /// The model folder
    dir: PathBuf,
    /// The prompt: a user's message where the folder has a chat template, else the text to continue
    prompt: String,
    /// Most tokens to generate; 0 goes on to the end of the context
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Divides the logits, 0 takes the likeliest token [default: the folder's, else 1]
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    temperature: Option<f32>,
    /// Keep the K likeliest tokens, 0 keeps all [default: the folder's, else 0]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keep the likeliest tokens of this mass [default: the folder's, else 1]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    top_p: Option<f32>,
    /// Seed of the draws; the same seed gives the same text [default: another one each run, printed with --json]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Continue the prompt as it is: no chat template, and control tokens in it count
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let waiting = Waiting::begin("loading the model and reading the prompt");
    let model = Engine::new(args.engine.engine()?)?.load(&args.dir, LoadOptions::default())?;
    let session = Session::new(&model)?;
    let templated = !args.raw && model.template().is_ok();
    append_prompt(&session, &model, &args.prompt, templated)?;
    let prompt_ids: Vec<i32> = session.tokens()?.iter().map(|t| t.id).collect();

    let defaults = model.generation_options();
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(defaults.sampling.temperature),
        top_k: args.top_k.unwrap_or(defaults.sampling.top_k),
        top_p: args.top_p.unwrap_or(defaults.sampling.top_p),
    };
    let seed = args.seed.unwrap_or(defaults.seed);
    let options = GenerationOptions { max_tokens: args.max_tokens, sampling, seed, ..defaults };
    let begun = Instant::now();
    let generation = session.generate(options)?;
    let mut all = Chunk::default();
    let mut first_token = None;
    let finish = pull(&generation, waiting, |chunk| {
        if !chunk.ids.is_empty() {
            first_token.get_or_insert_with(|| begun.elapsed());
        }
        if !args.json {
            out.text(&chunk.text)?;
        }
        all.ids.extend(chunk.ids);
        all.logprobs.extend(chunk.logprobs);
        all.text.push_str(&chunk.text);
        Ok(())
    })?;
    if !args.json {
        return if all.text.ends_with('\n') { Ok(()) } else { out.text("\n") };
    }
    let first_token = first_token.unwrap_or_default();
    let later = begun.elapsed().saturating_sub(first_token);
    out.json(&json!({
        "text": all.text,
        "ids": all.ids,
        "logprobs": all.logprobs,
        "finish": name_of(finish),
        "prompt_ids": prompt_ids,
        "chat_template": templated,
        "sampling": {
            "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "seed": seed,
        },
        "compute": args.engine.compute.name(),
        "seconds_to_first_token": first_token.as_secs_f64(),
        "decode_tokens_per_s": rate(all.ids.len().saturating_sub(1), later),
    }))
}

fn append_prompt(session: &Session, model: &ServedModel, prompt: &str, templated: bool) -> Result<(), Failure> {
    if templated {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        session.append_chat(json!([{"role": "user", "content": prompt}]), &options)?;
        return Ok(());
    }
    let ids = model.tokenizer()?.encode(prompt, Control::All);
    if ids.is_empty() {
        return Err(Failure::Usage("the prompt is empty; there is nothing to continue".into()));
    }
    Ok(session.append(&ids, Source::Host)?)
}

/// Hands every chunk to `take` until the end; the wait ends with the first.
fn pull(
    generation: &Generation,
    waiting: Waiting,
    mut take: impl FnMut(Chunk) -> Result<(), Failure>,
) -> Result<Finish, Failure> {
    let mut next = generation.next(None)?;
    drop(waiting);
    loop {
        match next {
            Next::Chunk(chunk) => take(chunk)?,
            Next::End(finish) => return Ok(finish),
            Next::Timeout => {}
        }
        next = generation.next(None)?;
    }
}

/// Things a second, None where no time passed.
fn rate(n: usize, time: Duration) -> Option<f64> {
    (n > 0 && !time.is_zero()).then(|| n as f64 / time.as_secs_f64())
}

fn name_of(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ContextFull => "context-full",
        Finish::Cancelled => "cancelled",
        Finish::Failed => "failed",
    }
}
