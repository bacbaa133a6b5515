//! `squire generate`: continue a prompt, printing the text as it comes.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use squire::serve::{Chunk, GenerationOptions};
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
    /// The K likeliest tokens at each place, with their log-probs
    #[arg(long, value_name = "K", default_value_t = 0, requires = "json")]
    top_logprobs: usize,
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
    let (sampling, controls, seed) = (options.sampling, options.controls.clone(), options.seed);
    let stop_strings = options.stop_strings.clone();
    let begun = Instant::now();
    let generation = session.generate(options)?;
    let is_read = stdout().is_terminal();
    let mut all = Chunk::default();
    let mut first_token = None;
    let finish = pull(&generation, waiting, &|| false, |chunk| {
        if !chunk.ids.is_empty() {
            first_token.get_or_insert_with(|| begun.elapsed());
        }
        if !args.json {
            out.text(&if is_read { visible(&chunk.text) } else { (&*chunk.text).into() })?;
        }
        all.ids.extend(chunk.ids);
        all.logprobs.extend(chunk.logprobs);
        all.top_ids.extend(chunk.top_ids);
        all.top_logprobs.extend(chunk.top_logprobs);
        all.text.push_str(&chunk.text);
        Ok(())
    })?;
    if !args.json {
        return if all.text.ends_with('\n') { Ok(()) } else { out.text("\n") };
    }
    let first_token = first_token.unwrap_or_default();
    let later = begun.elapsed().saturating_sub(first_token);
    // Of a vocabulary with fewer ids than were asked for, or with masked ones, all that there are.
    let top = |at: usize| {
        let places = at * args.top_logprobs..(at + 1) * args.top_logprobs;
        let there = all.top_ids[places.clone()].iter().zip(&all.top_logprobs[places]).filter(|(id, _)| **id >= 0);
        there.map(|(id, logprob)| json!({"id": id, "logprob": logprob})).collect::<Vec<Value>>()
    };
    let top: Option<Vec<_>> = (args.top_logprobs > 0).then(|| (0..all.ids.len()).map(top).collect());
    let stop = generation.stopped_by().map(|found| {
        json!({"string": stop_strings[found.index], "index": found.index, "byte": found.byte, "token": found.token})
    });
    out.json(&json!({
        "text": all.text,
        "ids": all.ids,
        "logprobs": all.logprobs,
        "top_logprobs": top,
        "finish": name_of(finish),
        "stop": stop,
        "prompt_ids": prompt_ids,
        "chat_template": templated,
        "sampling": {
            "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "seed": seed,
            "min_p": controls.min_p, "typical_p": controls.typical_p,
            "repetition_penalty": controls.repetition_penalty, "presence_penalty": controls.presence_penalty,
            "frequency_penalty": controls.frequency_penalty, "no_repeat_ngram_size": controls.no_repeat_ngram_size,
            "logit_bias": controls.logit_bias, "stop_strings": stop_strings,
        },
        "compute": args.engine.compute.name(),
        "seconds_to_first_token": first_token.as_secs_f64(),
        "decode_tokens_per_s": rate(all.ids.len().saturating_sub(1), later),
    }))
}

/// Things a second, None where no time passed.
fn rate(n: usize, time: Duration) -> Option<f64> {
    (n > 0 && !time.is_zero()).then(|| n as f64 / time.as_secs_f64())
}
