//! `squire generate`: continue a prompt, printing the text as it comes.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use squire::backend::ops::Sampling;
use squire::serve::{Cancel, Chunk, Finish, Generation, GenerationOptions, Session};
use squire::text::source::Source;
use squire::text::tokenizer::Control;

use crate::options::{EngineArgs, ModelArgs};
use crate::output::{Failure, Output};
use crate::sampling::{SamplingArgs, TemplateArgs, name_of, pull};
use crate::visible::visible;
use crate::waiting::Waiting;

/// Generate text after a prompt
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt: a user's message where the folder has a chat template, else the text to continue
    prompt: String,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Continue the prompt as it is: no chat template, and control tokens in it count
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
    /// Continue the prompt N times, each with a seed of its own; all share what was computed of it
    #[arg(short = 'n', long = "n", value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = several)]
    n: usize,
    /// The K likeliest tokens at each place, with their log-probs
    #[arg(long, value_name = "K", default_value_t = 0, requires = "json")]
    top_logprobs: usize,
}

/// Continuations at most: each is a session.
const MOST: u64 = 512;

fn several(text: &str) -> Result<usize, String> {
    let n = text.parse::<u64>().ok().filter(|n| (1..=MOST).contains(n));
    n.map(|n| n as usize).ok_or_else(|| format!("wanted a number from 1 to {MOST}"))
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let rendering = args.template.options()?;
    if args.raw {
        args.template.refuse("--raw asks for none")?;
    }
    let waiting = Waiting::begin("loading the model and reading the prompt");
    let (model, session) = args.model.load(&args.engine)?;
    let templated = !args.raw && model.template().is_ok();
    if templated {
        let mut messages: Vec<Value> = Vec::new();
        messages.extend(args.template.system.iter().map(|text| json!({"role": "system", "content": text})));
        messages.push(json!({"role": "user", "content": args.prompt}));
        session.append_chat(Value::from(messages), &rendering)?;
    } else {
        args.template.refuse("the folder has none")?;
        let ids = model.tokenizer()?.encode(&args.prompt, Control::All);
        if ids.is_empty() {
            return Err(Failure::Usage("the prompt is empty; there is nothing to continue".into()));
        }
        session.append(&ids, Source::Host)?;
    }
    let prompt_ids: Vec<i32> = session.tokens()?.iter().map(|t| t.id).collect();
    let options = GenerationOptions { top_logprobs: args.top_logprobs, ..args.sampling.options(&model) };
    let begun = Instant::now();
    let all = continue_prompt(&session, args.n, &options)?;
    let is_read = stdout().is_terminal();
    let mut waiting = Some(waiting);
    let mut said = Vec::with_capacity(all.len());
    for (i, generation) in all.iter().enumerate() {
        if !args.json && args.n > 1 {
            out.text(&format!("{}[{} of {}]\n", if i > 0 { "\n" } else { "" }, i + 1, args.n))?;
        }
        let tell = |text: &str| match (args.json, is_read) {
            (true, _) => Ok(()),
            (false, true) => out.text(&visible(text)),
            (false, false) => out.text(text),
        };
        said.push(hear(generation, (waiting.take(), begun), tell)?);
        if !args.json && !said[i].all.text.ends_with('\n') {
            out.text("\n")?;
        }
    }
    if !args.json {
        return Ok(());
    }
    let Sampling { temperature, top_k, top_p } = options.sampling;
    let controls = &options.controls;
    let first_token = said.iter().filter_map(|one| one.first_token).min().unwrap_or_default();
    let later = begun.elapsed().saturating_sub(first_token);
    let mut document = json!({
        "prompt_ids": prompt_ids,
        "chat_template": templated,
        "sampling": {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": options.seed,
            "min_p": controls.min_p, "typical_p": controls.typical_p,
            "repetition_penalty": controls.repetition_penalty, "presence_penalty": controls.presence_penalty,
            "frequency_penalty": controls.frequency_penalty, "no_repeat_ngram_size": controls.no_repeat_ngram_size,
            "logit_bias": controls.logit_bias, "stop_strings": options.stop_strings,
        },
        "compute": args.engine.compute.name(),
        "seconds_to_first_token": first_token.as_secs_f64(),
        "decode_tokens_per_s": rate(said.iter().map(|one| one.all.ids.len().saturating_sub(1)).sum(), later),
    });
    let mut told: Vec<Value> =
        said.iter().zip(&all).map(|(said, generation)| said.to_json(generation, &options)).collect();
    if args.n > 1 {
        document["continuations"] = told.into();
    } else if let (Value::Object(document), Some(Value::Object(one))) = (&mut document, told.pop()) {
        document.extend(one.into_iter().filter(|(key, _)| key != "seed"));
    }
    out.json(&document)
}

/// Starts as many generations behind the prompt; the first draws by the seed of the options.
fn continue_prompt(session: &Session, n: usize, options: &GenerationOptions) -> Result<Vec<Generation>, Failure> {
    if n == 1 {
        return Ok(vec![session.generate(options.clone())?]);
    }
    let all = session.continuations(n, options, &Cancel::default())?;
    Ok(all.into_iter().map(|one| one.generation).collect())
}

/// What a generation said.
struct Said {
    all: Chunk,
    finish: Finish,
    first_token: Option<Duration>,
}

/// Hears a generation to its end, telling its text as it comes.
fn hear(
    generation: &Generation,
    (waiting, begun): (Option<Waiting>, Instant),
    mut tell: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<Said, Failure> {
    let (mut all, mut first_token) = (Chunk::default(), None);
    let finish = pull(generation, waiting, &|| false, |chunk| {
        if !chunk.ids.is_empty() {
            first_token.get_or_insert_with(|| begun.elapsed());
        }
        tell(&chunk.text)?;
        all.ids.extend(chunk.ids);
        all.logprobs.extend(chunk.logprobs);
        all.top_ids.extend(chunk.top_ids);
        all.top_logprobs.extend(chunk.top_logprobs);
        all.text.push_str(&chunk.text);
        Ok(())
    })?;
    Ok(Said { all, finish, first_token })
}

impl Said {
    fn to_json(&self, generation: &Generation, options: &GenerationOptions) -> Value {
        let (all, k) = (&self.all, options.top_logprobs);
        // Of a vocabulary with fewer ids than were asked for, or with masked ones, all that there are.
        let top = |at: usize| {
            let places = at * k..(at + 1) * k;
            let there = all.top_ids[places.clone()].iter().zip(&all.top_logprobs[places]).filter(|(id, _)| **id >= 0);
            there.map(|(id, logprob)| json!({"id": id, "logprob": logprob})).collect::<Vec<Value>>()
        };
        let top: Option<Vec<_>> = (k > 0).then(|| (0..all.ids.len()).map(top).collect());
        let stop = generation.stopped_by().map(|found| {
            let string = &options.stop_strings[found.index];
            json!({"string": string, "index": found.index, "byte": found.byte, "token": found.token})
        });
        json!({
            "text": all.text,
            "ids": all.ids,
            "logprobs": all.logprobs,
            "top_logprobs": top,
            "finish": name_of(self.finish),
            "stop": stop,
            "seed": generation.seed(),
        })
    }
}

/// Things a second, None where no time passed.
fn rate(n: usize, time: Duration) -> Option<f64> {
    (n > 0 && !time.is_zero()).then(|| n as f64 / time.as_secs_f64())
}
