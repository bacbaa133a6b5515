//! `squire chat`: a conversation, a line a message.
#![forbid(unsafe_code)]

use std::io::{BufRead, IsTerminal, stdin, stdout};

use serde_json::{Value, json};

use crate::options::{EngineArgs, ModelArgs};
use crate::output::{Failure, Output};
use crate::parts::Shown;
use crate::sampling::{SamplingArgs, TemplateArgs, name_of, pull};
use crate::waiting::Waiting;

/// Talk with a model: each line of stdin is a message, an empty one or its end ends the chat
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object an answer instead of the text as it comes
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let rendering = args.template.options()?;
    let waiting = Waiting::begin("loading the model");
    let (model, session) = args.model.load(&args.engine)?;
    model.tokenizer()?;
    model.template()?;
    drop(waiting);
    let options = args.sampling.options(&model);
    let prompts = stdin().is_terminal() && !args.json;
    // Who reads it sees thoughts dimmed; a file or another program gets the text as it is.
    let dims = stdout().is_terminal() && !args.json;
    let mut system = args.template.system.as_deref();
    loop {
        if prompts {
            out.text("> ")?;
        }
        let mut line = String::new();
        let read = stdin().lock().read_line(&mut line);
        read.map_err(|e| Failure::Failed(format!("cannot read a message from stdin: {e}")))?;
        let said = line.trim_end_matches(['\n', '\r']);
        if said.is_empty() {
            return Ok(());
        }
        // Only what is new is rendered and computed; what stands in the session stays as it was said.
        let mut messages: Vec<Value> = Vec::new();
        messages.extend(system.take().map(|text| json!({"role": "system", "content": text})));
        messages.push(json!({"role": "user", "content": said}));
        let prompt = session.append_chat(Value::from(messages), &rendering)?.len();
        let waiting = Waiting::begin("reading");
        let generation = session.generate(options.clone())?;
        let (mut text, mut ids) = (String::new(), Vec::new());
        let (mut parts, mut shown) = (generation.parts()?, Shown::default());
        let finish = pull(&generation, waiting, |chunk| {
            if dims {
                parts.push(&chunk.ids).iter().try_for_each(|part| out.text(&shown.text(part)))?;
            } else if !args.json {
                out.text(&chunk.text)?;
            }
            text.push_str(&chunk.text);
            ids.extend(chunk.ids);
            Ok(())
        })?;
        if dims {
            parts.finish().iter().try_for_each(|part| out.text(&shown.text(part)))?;
            out.text(shown.end())?;
        }
        if args.json {
            let finish = name_of(finish);
            out.json(
                &json!({"text": text, "ids": ids, "finish": finish, "prompt_tokens": prompt, "seed": options.seed}),
            )?;
        } else {
            out.text("\n")?;
        }
    }
}
