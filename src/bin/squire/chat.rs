//! `squire chat`: a conversation, a line a message.
#![forbid(unsafe_code)]

mod command;
mod dialogue;
mod interrupt;
mod lines;

use std::fs::File;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};

use serde_json::json;
use squire::serve::{Finish, Latency};
use squire::text::Part;

use crate::options::{EngineArgs, ModelArgs};
use crate::output::{Failure, Output, bytes};
use crate::parts::Shown;
use crate::sampling::{SamplingArgs, TemplateArgs, name_of};
use crate::waiting::Waiting;
use command::{Command, HELP, Line};
use dialogue::{Answer, Dialogue};
use interrupt::Interrupt;
use lines::Lines;

/// Talk with a model: each line of stdin is a message, an empty one or its end ends the chat; /help lists commands
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
    /// Remember what is typed at a terminal in this file, and offer what it remembers
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
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
    let mut lines = Lines::of(args.json, args.history.as_deref())?;
    let is_typed = lines.are_typed();
    let mut chat = Chat {
        dialogue: Dialogue::new(session, rendering, options, args.template.system.clone()),
        sampling: args.sampling.clone(),
        interrupt: Interrupt::listen()?,
        json: args.json,
    };
    while let Some(line) = lines.next(out)?.filter(|line| !line.is_empty()) {
        // A program that sends messages hears of an answer that failed by the exit code; who types reads it, as anybody does of
        // a command that is refused.
        let (is_message, done) = match Line::read(&line) {
            Err(why) => (false, Err(Failure::Usage(why))),
            Ok(Line::Command(Command::Quit)) => return Ok(()),
            Ok(Line::Command(Command::Regenerate)) => (false, chat.answer(out, None)),
            Ok(Line::Command(command)) => (false, chat.obey(command)),
            Ok(Line::Message(said)) => (true, chat.answer(out, Some(said))),
        };
        match done {
            Ok(()) => {}
            Err(Failure::Usage(why)) if is_typed || !is_message => tell(&format!("squire: {why}")),
            Err(Failure::Failed(why)) if is_typed => tell(&format!("squire: {why}")),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Says something beside the answers; a reader who has gone away misses it.
fn tell(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// A chat under way.
struct Chat {
    dialogue: Dialogue,
    /// what was asked for of sampling
    sampling: SamplingArgs,
    interrupt: Interrupt,
    json: bool,
}

impl Chat {
    /// Answers a message, or with None the last one again.
    fn answer(&mut self, out: &mut Output, said: Option<String>) -> Result<(), Failure> {
        let Chat { dialogue, interrupt, json, .. } = self;
        // Who reads it sees thoughts dimmed; a file or another program gets the text as it is.
        let (json, is_read) = (*json, stdout().is_terminal() && !*json);
        let mut shown = Shown::default();
        let mut hears = |text: &str, parts: &[Part]| match is_read {
            true => parts.iter().try_for_each(|part| out.text(&shown.text(part))),
            false if json => Ok(()),
            false => out.text(text),
        };
        let answered = interrupt.during(|stopped| match said {
            Some(said) => dialogue.say(said, stopped, &mut hears),
            None => dialogue.regenerate(stopped, &mut hears),
        });
        if is_read {
            // Also behind an answer that failed: what comes next is no thought.
            out.text(shown.end())?;
        }
        let Answer { text, ids, finish, prompt_tokens, seed, .. } = answered?;
        if json {
            let finish = name_of(*finish);
            return out.json(
                &json!({"text": text, "ids": ids, "finish": finish, "prompt_tokens": prompt_tokens, "seed": seed}),
            );
        }
        out.text("\n")?;
        if is_read && *finish == Finish::Cancelled {
            tell("squire: interrupted; what was said stays");
        }
        Ok(())
    }

    /// Does what a command asks for that no answer comes of.
    fn obey(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Help => tell(HELP),
            Command::Reset => {
                self.dialogue.reset(self.dialogue.system().cloned())?;
                tell("a new conversation");
            }
            Command::System(text) => {
                self.dialogue.reset((!text.is_empty()).then_some(text))?;
                tell("a new conversation");
            }
            Command::Undo => {
                self.dialogue.undo().map_err(|why| Failure::Usage(format!("/undo: {why}")))?;
                tell("the last message and its answer are gone");
            }
            Command::Save(path) => self.save(&path)?,
            Command::Stats => tell(&self.stats()?),
            Command::Set { name, value } => self.set(&name, &value)?,
            // The loop that asks does these itself.
            Command::Regenerate | Command::Quit => {}
        }
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = format!("{:#}\n", json!({"messages": self.dialogue.messages()}));
        let written = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|e| Failure::Usage(format!("/save {}: {e}", path.display())))?;
        tell(&format!("written to {}", path.display()));
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let refused = |why: String| Failure::Usage(format!("/set: {why}"));
        let sampling = self.sampling.with(name, value).map_err(refused)?;
        let model = self.dialogue.session.model();
        let mut options = sampling.options(model);
        if name != "seed" {
            options.seed = self.dialogue.options.seed;
        }
        options.check(model.config().vocab_size).map_err(|e| refused(e.to_string()))?;
        (self.sampling, self.dialogue.options) = (sampling, options);
        Ok(())
    }

    /// What /stats says.
    fn stats(&self) -> Result<String, Failure> {
        let session = &self.dialogue.session;
        let (extent, metrics) = (session.extent()?, session.model().engine().metrics());
        let last = self.dialogue.last().map_or("none".into(), |answer| {
            let n = answer.ids.len();
            let first = answer.first.map_or(String::new(), |first| {
                let later = (answer.time - first).as_secs_f64();
                let speed =
                    if n > 1 { format!(", then {:.1} tokens/s", (n - 1) as f64 / later) } else { String::new() };
                format!(", the first after {:.3} s{speed}", first.as_secs_f64())
            });
            format!("{n} tokens{first}; finish {}", name_of(answer.finish))
        });
        let spread = |times: &Latency| {
            let at = |share| times.percentile(share).map_or(0.0, |time| 1e3 * time.as_secs_f64());
            format!("{:.1}, {:.1} and {:.1} ms (p50, p90, p99) of {}", at(0.5), at(0.9), at(0.99), times.count())
        };
        Ok(format!(
            "  conversation     {} tokens, room for {}\n  last answer      {last}\n  to first token   {}\n  between tokens   \
             {}\n  KV cache         {} in use, {} idle",
            extent.len,
            extent.room,
            spread(&metrics.time_to_first_token_seconds),
            spread(&metrics.inter_token_seconds),
            bytes(metrics.kv_in_use_bytes),
            bytes(metrics.kv_idle_bytes),
        ))
    }
}
