//! Whether a teacher says the same twice, asked before a run: one sequence is scored twice and once in two parts, and how far
//! the answers lie apart is told beside how far teacher and student do. A teacher that moves as much by itself teaches noise.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::distiller::Distiller;
use super::document::{bad, fields, integer};
use super::scoring::{Asked, SLICE};
use super::teacher::{self, Teacher};
use super::teacher_queue::TeacherQueue;
use super::teacher_request::{Asker, NO_EPISODE};
use crate::backend::cpu::FloatEnv;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::random::{Stream, bits};
use crate::serve::{Cancel, GenerationOptions, Level, Next, Session};
use crate::text::source::Source;
use crate::text::tokenizer::{Control, Room};
use crate::text::{Json, RenderOptions, Watch};

/// What the student is asked where it is to speak for itself.
const QUESTION: &str = "Tell me about a place that you like, and why.";
/// Likeliest ids of a model in each place.
const TOP_K: usize = 8;
/// Of the difference to the student, what a teacher's own unrest may be before it is warned of.
const MOST: f64 = 0.1;

/// What a check scores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckText {
    /// These ids, from the second on.
    Ids(Vec<i32>),
    /// The ids of this text, likewise.
    Text(String),
    /// So many tokens that the student says, drawn as the settings draw.
    Sampled(usize),
}

impl CheckText {
    /// Reads `{"ids": [...]}`, `{"text": "..."}`, `{"tokens": 64}` or `{}`, which is the last.
    pub fn from_json(text: &str) -> Result<CheckText> {
        let document: Value = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the options of a check are not JSON: {e}")))?;
        let map = fields(&document, "", &["ids", "text", "tokens"])?;
        match (map.get("ids"), map.get("text"), map.get("tokens")) {
            (Some(ids), None, None) => {
                let id = |id: &Value| id.as_i64().and_then(|id| i32::try_from(id).ok());
                let list = ids.as_array().and_then(|list| list.iter().map(id).collect::<Option<Vec<i32>>>());
                list.map(CheckText::Ids).ok_or_else(|| bad(ids, "ids", "a list of token ids"))
            }
            (None, Some(said), None) => {
                let text = said.as_str().ok_or_else(|| bad(said, "text", "a text"))?;
                Ok(CheckText::Text(text.to_string()))
            }
            (None, None, tokens) => {
                let tokens = tokens.map_or(Ok(64), |tokens| integer(tokens, "tokens", 2, 4096))?;
                Ok(CheckText::Sampled(tokens as usize))
            }
            _ => Err(bad(&document, "", "an object with one of ids, text and tokens")),
        }
    }
}

/// What a teacher said when it was asked once: of each place the log-prob of the id there and the `k` likeliest ids.
#[derive(Default)]
struct Heard {
    k: usize,
    logprobs: Vec<f32>,
    top: Vec<(i32, f32)>,
}

impl Heard {
    /// The same with what it said of the places behind.
    fn and(mut self, more: Heard) -> Heard {
        self.logprobs.extend(more.logprobs);
        self.top.extend(more.top);
        Heard { k: more.k, ..self }
    }

    fn place(&self, i: usize) -> &[(i32, f32)] {
        &self.top[i * self.k..][..self.k]
    }
}

/// Sizes of differences, in nats.
struct Sizes {
    largest: f64,
    mean: f64,
}

impl Sizes {
    fn of(differences: impl Iterator<Item = f64>) -> Sizes {
        let (mut largest, mut sum, mut n) = (0.0f64, 0.0, 0);
        for difference in differences {
            (largest, sum, n) = (largest.max(difference), sum + difference, n + 1);
        }
        Sizes { largest, mean: sum / f64::from(n.max(1)) }
    }
}

/// How far two answers to one question lie apart.
struct Apart {
    /// in the ids that stand there
    said: Sizes,
    /// in the likeliest ids: of each place the mean under the teacher's probabilities
    top: Sizes,
}

impl Apart {
    fn between(a: &Heard, b: &Heard) -> Apart {
        let gap = |(x, y): (&f32, &f32)| f64::from(x - y).abs();
        let place = |i: usize| {
            let (a, b) = (a.place(i), b.place(i));
            let least = b.iter().fold(0.0f32, |least, (_, logprob)| least.min(*logprob));
            let of_id = |&(id, logprob): &(i32, f32)| {
                let other = b.iter().find(|(other, _)| *other == id).map(|(_, logprob)| *logprob);
                // Of an id that is not among the others it is known that it is no likelier than those.
                let other = other.unwrap_or(logprob.min(least));
                f64::from(logprob).exp() * f64::from(logprob - other).abs()
            };
            a.iter().map(of_id).sum()
        };
        let n = a.logprobs.len();
        Apart { said: Sizes::of(a.logprobs.iter().zip(&b.logprobs).map(gap)), top: Sizes::of((0..n).map(place)) }
    }

    /// As a part of the signal; None where there is no signal.
    fn share(&self, signal: f64) -> Option<f64> {
        (signal > 0.0).then(|| self.said.mean.max(self.top.mean) / signal)
    }

    fn to_json(&self, signal: f64) -> Value {
        let Apart { said, top } = self;
        json!({
            "largest": said.largest, "mean": said.mean, "top_largest": top.largest, "top_mean": top.mean,
            "share": self.share(signal),
        })
    }

    /// What to say of it where it is no small part of the signal; `how` it was asked the second time.
    fn warning(&self, how: &str, signal: f64) -> Option<String> {
        let size = self.said.mean.max(self.top.mean);
        (size > MOST * signal).then(|| {
            let share = self.share(signal).map_or(String::new(), |share| format!(", {:.0} % of that", share * 100.0));
            format!(
                "teacher and student lie {signal:.2e} nats apart on average, and what the teacher says itself moves by \
                 {size:.2e} where it is asked {how}{share}: the student learns that noise too"
            )
        })
    }
}

impl Distiller {
    /// Asks the teacher for one sequence twice and once in two parts, and compares: with itself, and with the student.
    ///
    /// The report has `ids` in the sequence, `positions` that were scored, `middle` where the second part begins, `top_k`;
    /// `again` and `in_parts`, each with the `largest` and `mean` difference in the log-probs of what stands there, `top_largest`
    /// and `top_mean` of the likeliest ids (of each place the mean under the teacher's probabilities), and `share`, the greater
    /// mean by that of the signal (null where there is none); `signal`, the difference between teacher and student, likewise;
    /// and `warnings`. A model of this runtime has exactly 0 in both.
    ///
    /// Without a sequence the student's own template and a draw by the settings' seed make one. Nothing of the run changes.
    /// Blocks. Errors: `BadOption` without a teacher that scores, `BadLength` for fewer than 3 ids; of the host's teacher `TeacherSilent`
    /// where it does not answer within `timeout` (0: its deadline) or its deadline, `TeacherFailed`, `TeacherClosed`.
    pub fn check_teacher(&self, text: &CheckText, timeout: Duration, cancel: &Cancel) -> Result<Value> {
        let _floats = FloatEnv::scalars();
        let teacher = self.any_teacher().ok_or_else(|| {
            Error::new(Fault::BadOption, "there is no teacher to check: the distiller was made without one")
        })?;
        if let Teacher::Queue(queue) = teacher
            && !queue.options().scores
        {
            return Err(Error::new(Fault::BadOption, "the host's teacher gives no scores, which a check compares"));
        }
        let (ids, from) = self.sequence(text, cancel)?;
        if ids.len() < from + 2 {
            let why = format!("a check scores 2 tokens at least and a sequence of 3, found {} ids", ids.len());
            return Err(Error::new(Fault::BadLength, why));
        }
        self.check_shared(&ids)?;
        let own = Session::new(self.student())?;
        let revision = own.revision().number;
        let own = heard(&own, &ids, from, 0, cancel)?;
        let middle = from + (ids.len() - from) / 2;
        let [once, again, first, second] = match teacher {
            Teacher::Local(model) => {
                let session = || teacher::session(model, self.config());
                let ask = |ids: &[i32], from| heard(&session()?, ids, from, TOP_K.min(self.vocabulary()), cancel);
                [ask(&ids, from)?, ask(&ids, from)?, ask(&ids[..middle], from)?, ask(&ids, middle)?]
            }
            Teacher::Queue(queue) => {
                let asker = Asker { distiller: self.number(), episode: NO_EPISODE, step: self.step(), revision };
                self.ask_the_host(queue, asker, &ids, (from, middle), timeout, cancel)?
            }
        };
        let parts = first.and(second);
        let signal = Sizes::of(own.logprobs.iter().zip(&once.logprobs).map(|(q, p)| f64::from(q - p).abs()));
        let (repeated, divided) = (Apart::between(&once, &again), Apart::between(&once, &parts));
        let told = [repeated.warning("again", signal.mean), divided.warning("in two parts", signal.mean)];
        let warnings: Vec<String> = told.into_iter().flatten().collect();
        warnings.iter().for_each(|warning| self.log(Level::Warning, &format!("check of the teacher: {warning}")));
        Ok(json!({
            "ids": ids.len(), "positions": ids.len() - from, "middle": middle, "top_k": once.k,
            "again": repeated.to_json(signal.mean), "in_parts": divided.to_json(signal.mean),
            "signal": {"largest": signal.largest, "mean": signal.mean}, "warnings": warnings,
        }))
    }

    /// The sequence, and the first of its ids that is scored.
    fn sequence(&self, text: &CheckText, cancel: &Cancel) -> Result<(Vec<i32>, usize)> {
        let student = self.student();
        match text {
            CheckText::Ids(ids) => Ok((ids.clone(), 1)),
            CheckText::Text(text) => {
                let mut ids = Vec::new();
                let room = Room { ids: student.model().max_context(), watch: &Watch::default() };
                student.tokenizer()?.encode_within(text, Control::NotSpecial, room, &mut ids)?;
                Ok((ids, 1))
            }
            CheckText::Sampled(tokens) => {
                let of_template = |e: Error| e.within("a sequence of the student's own (give the check ids or a text)");
                student.template().map_err(of_template)?;
                let session = Session::new(student)?;
                let prompt = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
                let question = json!([{"role": "user", "content": QUESTION}]);
                session.append_chat(Json::from(question), &prompt).map_err(of_template)?;
                let from = session.len()?;
                let config = self.config();
                let generation = session.generate(GenerationOptions {
                    max_tokens: *tokens,
                    sampling: Sampling {
                        temperature: config.sampling.temperature as f32,
                        top_k: config.sampling.top_k,
                        top_p: config.sampling.top_p as f32,
                    },
                    seed: bits(Stream::Rollout, &[config.seed, NO_EPISODE]),
                    // A short answer is too little to compare.
                    ignore_model_stops: true,
                    vocabulary: self.vocabulary_to_draw_from(false),
                    ..GenerationOptions::default()
                })?;
                while !matches!(generation.next(Some(SLICE))?, Next::End(_)) {
                    if cancel.is_set() {
                        return Err(cancelled());
                    }
                }
                Ok((session.tokens()?.iter().map(|token| token.id).collect(), from))
            }
        }
    }

    /// All four questions at once, so that whoever answers one after another is asked as he is in a run.
    fn ask_the_host(
        &self,
        queue: &TeacherQueue,
        asker: Asker,
        ids: &[i32],
        (from, middle): (usize, usize),
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<[Heard; 4]> {
        let since = Instant::now();
        let timeout = if timeout.is_zero() { queue.options().deadline } else { timeout };
        let all = ids.len();
        let questions = [
            ("the sequence", from, all),
            ("the sequence again", from, all),
            ("its first part", from, middle),
            ("its second part", middle, all),
        ];
        let mut asked = Vec::new();
        for (what, from, end) in questions {
            let of = Asked::new(
                queue,
                self.student().engine(),
                asker,
                &ids[..end],
                (from..end).collect(),
                self.vocabulary(),
            );
            let mut of = of?;
            of.start().map_err(|e| e.within(what))?;
            asked.push((what, of));
        }
        let mut heard = [(); 4].map(|()| Heard::default());
        for (into, (what, mut of)) in heard.iter_mut().zip(asked) {
            let mut waits = || !cancel.is_set() && since.elapsed() < timeout;
            let said = of.said(since, &mut waits).map_err(|e| match e.fault() {
                Fault::Cancelled if !cancel.is_set() => {
                    let why = format!("{what}: the teacher did not answer within {} ms", timeout.as_millis());
                    Error::new(Fault::TeacherSilent, why)
                }
                Fault::Cancelled => cancelled(),
                _ => e.within(what),
            })?;
            let top = said.top_ids.into_iter().zip(said.top_logprobs).collect();
            *into = Heard { k: said.top_k, logprobs: said.logprobs, top };
        }
        Ok(heard)
    }
}

fn cancelled() -> Error {
    Error::new(Fault::Cancelled, "the check of the teacher was cancelled")
}

/// What a model says in an empty session of its own.
fn heard(session: &Session, ids: &[i32], from: usize, k: usize, cancel: &Cancel) -> Result<Heard> {
    session.append(&ids[..from], Source::Host)?;
    let rows = session.score(&ids[from..], k, cancel)?;
    let logprobs = rows.iter().map(|row| row.logprob).collect();
    Ok(Heard { k, logprobs, top: rows.into_iter().flat_map(|row| row.top).collect() })
}
