//! `squire generate`: continue a prompt, printing the text as it comes.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use squire::serve::Chunk;
use squire::text::source::Source;
use squire::text::tokenizer::Control;

use crate::options::{EngineArgs, ModelArgs};
use crate::output::{Failure, Output};
use crate::sampling::{SamplingArgs, TemplateArgs, name_of, pull};
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
    let options = args.sampling.options(&model);
    let (sampling, seed) = (options.sampling, options.seed);
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

/// Things a second, None where no time passed.
fn rate(n: usize, time: Duration) -> Option<f64> {
    (n > 0 && !time.is_zero()).then(|| n as f64 / time.as_secs_f64())
}
