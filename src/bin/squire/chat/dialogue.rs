//! A conversation: what was said, the session in which it stands, and the way back.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use squire::serve::{Finish, GenerationOptions, Session};
use squire::text::parts::joined;
use squire::text::{Part, RenderOptions};

use crate::output::Failure;
use crate::sampling::pull;
use crate::waiting::Waiting;

/// Exchanges that can be undone: each keeps a session, and with it the page of KV cache that it ends in.
const KEPT: usize = 32;

/// What a model answered.
pub struct Answer {
    pub text: String,
    pub ids: Vec<i32>,
    parts: Vec<Part>,
    pub finish: Finish,
    pub prompt_tokens: usize,
    pub seed: u64,
    /// until the first token
    pub first: Option<Duration>,
    /// in all
    pub time: Duration,
}

/// A message and its answer.
struct Exchange {
    /// where the session stood; None where that was too long ago
    before: Option<Session>,
    said: String,
    answer: Answer,
}

/// A conversation.
pub struct Dialogue {
    pub session: Session,
    rendering: RenderOptions,
    /// how answers are drawn
    pub options: GenerationOptions,
    system: Option<String>,
    exchanges: Vec<Exchange>,
}

/// Who hears an answer as it comes: its text, and the same told apart.
pub type Hears<'a> = &'a mut dyn FnMut(&str, &[Part]) -> Result<(), Failure>;

impl Dialogue {
    /// One in which nothing was said, on a session that is empty.
    pub fn new(
        session: Session,
        rendering: RenderOptions,
        options: GenerationOptions,
        system: Option<String>,
    ) -> Dialogue {
        Dialogue { session, rendering, options, system, exchanges: Vec::new() }
    }

    /// Says something and hears the answer, until it ends or is `stopped`. Where that fails nothing was said.
    pub fn say(&mut self, said: String, stopped: &dyn Fn() -> bool, hears: Hears) -> Result<&Answer, Failure> {
        let before = self.session.fork()?;
        let answer = match self.answer(&said, stopped, hears) {
            Ok(answer) => answer,
            Err(e) => {
                self.session = before;
                return Err(e);
            }
        };
        if let Some(old) = self.exchanges.len().checked_sub(KEPT) {
            self.exchanges[old].before = None;
        }
        let exchange = Exchange { before: Some(before), said, answer };
        Ok(&self.exchanges.push_mut(exchange).answer)
    }

    fn answer(&self, said: &str, stopped: &dyn Fn() -> bool, hears: Hears) -> Result<Answer, Failure> {
        // Only what is new is rendered and computed; what stands in the session stays as it was said.
        let mut messages: Vec<Value> = Vec::new();
        let system = self.system.as_ref().filter(|_| self.exchanges.is_empty());
        messages.extend(system.map(|text| json!({"role": "system", "content": text})));
        messages.push(json!({"role": "user", "content": said}));
        let prompt_tokens = self.session.append_chat(Value::from(messages), &self.rendering)?.len();
        let waiting = Waiting::begin("reading");
        let begun = Instant::now();
        let generation = self.session.generate(self.options.clone())?;
        let (mut text, mut ids, mut all, mut first) = (String::new(), Vec::new(), Vec::new(), None);
        let mut stream = generation.parts()?;
        let finish = pull(&generation, waiting, stopped, |chunk| {
            first.get_or_insert_with(|| begun.elapsed());
            let parts = stream.push(&chunk.ids);
            hears(&chunk.text, &parts)?;
            text.push_str(&chunk.text);
            ids.extend(chunk.ids);
            all.extend(parts);
            Ok(())
        })?;
        let time = begun.elapsed();
        let rest = stream.finish();
        hears("", &rest)?;
        all.extend(rest);
        Ok(Answer { text, ids, parts: joined(all), finish, prompt_tokens, seed: self.options.seed, first, time })
    }

    /// Begins anew, with this system message.
    pub fn reset(&mut self, system: Option<String>) -> Result<(), Failure> {
        self.session.truncate(0)?;
        self.exchanges.clear();
        self.system = system;
        Ok(())
    }

    pub fn system(&self) -> Option<&String> {
        self.system.as_ref()
    }

    /// Goes back to before the last exchange. Error: why that cannot be.
    pub fn undo(&mut self) -> Result<(), String> {
        let (before, _) = self.take_last()?;
        self.session = before;
        Ok(())
    }

    /// The last exchange, taken out, with where the session stood before it.
    fn take_last(&mut self) -> Result<(Session, Exchange), String> {
        let last = self.exchanges.last_mut().ok_or("nothing was said yet")?;
        let before = last.before.take().ok_or_else(|| format!("the last {KEPT} exchanges can be undone, no more"))?;
        self.exchanges.pop().map(|last| (before, last)).ok_or_else(|| "nothing was said yet".into())
    }

    /// Says the last message again and hears another answer, by the next seed. Where that fails the old one stays.
    pub fn regenerate(&mut self, stopped: &dyn Fn() -> bool, hears: Hears) -> Result<&Answer, Failure> {
        let (before, last) = self.take_last().map_err(|why| Failure::Usage(format!("/regenerate: {why}")))?;
        let kept = std::mem::replace(&mut self.session, before);
        self.options.seed = self.options.seed.wrapping_add(1);
        if let Err(e) = self.say(last.said.clone(), stopped, hears) {
            let before = Some(std::mem::replace(&mut self.session, kept));
            self.exchanges.push(Exchange { before, ..last });
            return Err(e);
        }
        self.last().ok_or_else(|| Failure::Usage("/regenerate: nothing was said yet".into()))
    }

    /// The last answer.
    pub fn last(&self) -> Option<&Answer> {
        self.exchanges.last().map(|exchange| &exchange.answer)
    }

    /// All messages as a chat template takes them.
    pub fn messages(&self) -> Vec<Value> {
        let mut messages: Vec<Value> = Vec::new();
        messages.extend(self.system.iter().map(|text| json!({"role": "system", "content": text})));
        for Exchange { said, answer, .. } in &self.exchanges {
            messages.push(json!({"role": "user", "content": said}));
            messages.push(message_of(&answer.parts));
        }
        messages
    }
}

/// An assistant's message.
fn message_of(parts: &[Part]) -> Value {
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Reasoning(text) => reasoning.push_str(text),
            Part::Content(text) | Part::Unparsed { text, .. } => content.push_str(text),
            Part::ToolCall(call) => {
                let function = json!({"name": call.name, "arguments": call.arguments});
                calls.push(json!({"id": call.id, "type": "function", "function": function}));
            }
        }
    }
    let mut message = json!({"role": "assistant", "content": content});
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use squire::text::ToolCall;

    #[test]
    fn a_message_has_thought_answer_and_calls_each_where_templates_look_for_them() {
        let said = |text: &str| Part::Content(text.into());
        assert_eq!(message_of(&[said("Yes.")]), json!({"role": "assistant", "content": "Yes."}));
        let call = ToolCall { index: 0, id: "call_1_0".into(), name: "look".into(), arguments: "{}".into() };
        let broken = Part::Unparsed { text: "<tool_call>{".into(), reason: "the end".into() };
        let all = message_of(&[Part::Reasoning("hm".into()), said("Look."), Part::ToolCall(call), broken]);
        let function = json!({"name": "look", "arguments": "{}"});
        let calls = json!([{"id": "call_1_0", "type": "function", "function": function}]);
        let wanted = json!({
            "role": "assistant", "content": "Look.<tool_call>{", "reasoning_content": "hm", "tool_calls": calls,
        });
        assert_eq!(all, wanted);
    }
}
