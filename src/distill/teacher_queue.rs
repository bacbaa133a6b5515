//! A teacher in the host's own code: requests wait in a queue, any thread takes them and answers, over any transport.
//!
//! An episode that ended asks for the log-probs of the tokens that it is to learn, at temperature 1 on raw logits: of the ids
//! that stand there, and of the teacher's `top_k` most likely ids in each place. An answer is checked before it counts: it
//! repeats the ids that it scores, its log-prob of an id is that of the same id among the most likely ones, and a log-prob that
//! is missing, not finite, above 0 or below -1,000 is an error, never 0. What does not fit leaves the request open for a better
//! answer.
//!
//! Deadlines run while a build waits: from when a request was taken, or where nobody took it, from when the queue last moved. One
//! that is past is withdrawn, its episode is set aside, and it is asked anew for the next build. Nothing here has a thread of its
//! own.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use serde_json::Value;

use super::document::{bad, fields, integer, join};
use crate::backend::host;
use crate::error::{Error, Fault, Result};
use crate::format::document as files;
use crate::sync::{Condvar, Mutex};
use crate::text::tokenizer::Tokenizer;

/// How many requests that are done are remembered, to say of a late reply what became of its own.
const REMEMBERED: usize = 4096;
/// Ids of a place at most.
const MOST_IDS: u64 = 1024;
/// How far above 1 the sum of a place's probabilities may lie, and how far apart two log-probs of one id: those of bf16 logits
/// are no better.
const SLACK: f64 = 1e-2;
/// No softmax says less; servers have numbers like -9999 for what they do not know.
const LEAST: f32 = -1000.0;

/// What a queue's teacher is.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// Most likely ids that it gives in each place; 0: only the log-probs of the ids that stand there.
    pub top_k: u32,
    /// How long an answer may take.
    pub deadline: Duration,
    /// How its ids are known to mean what the student's mean.
    pub vocabulary: Vocabulary,
}

/// What is known of a teacher's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// The fingerprint of its tokenizer, compared with the student's.
    Fingerprint(u64),
    /// The host says that it is the student's.
    TheStudents,
}

impl QueueOptions {
    /// Reads `{"top_k": 32, "deadline_ms": 60000, "vocabulary": {"tokenizer": path} | {"fingerprint": hex} | "the-students"}`.
    /// `vocabulary` has no default; `top_k` is 0 and `deadline_ms` 60,000.
    pub fn from_json(text: &str) -> Result<QueueOptions> {
        let document: Value = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the teacher's options are not JSON: {e}")))?;
        let map = fields(&document, "", &["top_k", "deadline_ms", "vocabulary"])?;
        let whole =
            |key: &str, low, high, default| map.get(key).map_or(Ok(default), |value| integer(value, key, low, high));
        let (top_k, deadline) = (whole("top_k", 0, MOST_IDS, 0)?, whole("deadline_ms", 1, 86_400_000, 60_000)?);
        let vocabulary = map.get("vocabulary").ok_or_else(|| {
            let why = "vocabulary is missing: {\"tokenizer\": path of its tokenizer.json}, {\"fingerprint\": 16 hex digits}, or \
                       \"the-students\" where you know that it is";
            Error::new(Fault::BadValue, why)
        })?;
        let vocabulary = read_vocabulary(vocabulary, "vocabulary")?;
        Ok(QueueOptions { top_k: top_k as u32, deadline: Duration::from_millis(deadline), vocabulary })
    }
}

fn read_vocabulary(value: &Value, path: &str) -> Result<Vocabulary> {
    if value.as_str() == Some("the-students") {
        return Ok(Vocabulary::TheStudents);
    }
    let map = fields(value, path, &["tokenizer", "fingerprint"])?;
    match (map.get("tokenizer"), map.get("fingerprint")) {
        (Some(file), None) => {
            let at = join(path, "tokenizer");
            let file = PathBuf::from(file.as_str().ok_or_else(|| bad(file, &at, "the path of a tokenizer.json"))?);
            let none = || Error::new(Fault::MissingFile, format!("{}: there is no such file", file.display()));
            let text = files::read(&file, files::TOKENIZER).and_then(|text| text.ok_or_else(none));
            let text = text.map_err(|e| e.within(&at))?;
            let tokenizer = Tokenizer::from_json(&text).map_err(|e| e.within(format!("{at}: {}", file.display())))?;
            Ok(Vocabulary::Fingerprint(tokenizer.fingerprint()))
        }
        (None, Some(hex)) => {
            // A sign would be taken for a digit.
            let is_hex = |text: &&str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let digits = hex.as_str().filter(is_hex).and_then(|text| u64::from_str_radix(text, 16).ok());
            let wanted = "a fingerprint of 16 hex digits, as a model's info tells it (vocabulary_fingerprint)";
            digits.map(Vocabulary::Fingerprint).ok_or_else(|| bad(hex, &join(path, "fingerprint"), wanted))
        }
        _ => Err(bad(value, path, "one of tokenizer and fingerprint, or \"the-students\"")),
    }
}

/// What a teacher is asked: the log-probs of `ids[from..]`, each given all ids before it.
#[derive(Debug)]
pub struct Request {
    /// Its number, by which it is answered.
    pub number: u64,
    /// Whose ids these are.
    pub episode: u64,
    /// The whole text so far.
    pub ids: Vec<i32>,
    /// The first id that is asked about, at least 1.
    pub from: usize,
    /// Most likely ids wanted in each place.
    pub top_k: usize,
    /// Ids that there are: those of an answer lie below.
    pub vocabulary: usize,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The ids that it scores, `ids[from..]` of the request: n of them.
    pub ids: &'a [i32],
    /// n log-probs of theirs, in nats.
    pub logprobs: &'a [f32],
    /// n times `top_k` ids, each place's all different, in any order.
    pub top_ids: &'a [i32],
    /// Their log-probs.
    pub top_logprobs: &'a [f32],
}

/// What a teacher said of some tokens.
#[derive(Debug)]
pub struct Said {
    /// Position of each token.
    pub positions: Vec<usize>,
    /// Its log-prob.
    pub logprobs: Vec<f32>,
    /// Ids in each place.
    pub top_k: usize,
    /// [positions, top_k]
    pub top_ids: Vec<i32>,
    /// [positions, top_k]
    pub top_logprobs: Vec<f32>,
}

/// A teacher behind a queue. Cheap to clone; clones are the same one.
#[derive(Clone)]
pub struct TeacherQueue(Arc<Inner>);

struct Inner {
    options: QueueOptions,
    state: Mutex<State>,
    asked: Condvar,
}

#[derive(Default)]
struct State {
    last: u64,
    /// when the last request was handed out
    moved: Option<Instant>,
    waiting: VecDeque<u64>,
    open: HashMap<u64, Open>,
    done: VecDeque<(u64, Done)>,
}

struct Open {
    request: Arc<Request>,
    /// positions that are kept of an answer
    positions: Arc<Vec<usize>>,
    answer: Sender<Result<Said>>,
    asked: Instant,
    taken: Option<Instant>,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq)]
enum Done {
    Answered,
    Failed,
    TooLate,
    Withdrawn,
}

impl State {
    fn end(&mut self, number: u64, how: Done) -> Option<Open> {
        let open = self.open.remove(&number)?;
        if self.done.len() == REMEMBERED {
            self.done.pop_front();
        }
        self.done.push_back((number, how));
        self.waiting.retain(|&waiting| waiting != number);
        Some(open)
    }

    /// Why a request of this number takes no answer.
    fn not_open(&self, number: u64) -> Error {
        let done = self.done.iter().find(|(known, _)| *known == number).map(|(_, how)| *how);
        let why = match done {
            _ if number == 0 || number > self.last => "there never was one of this number",
            Some(Done::Answered) => "it was answered already",
            Some(Done::Failed) => "it was said to have failed already",
            Some(Done::TooLate) => "its deadline passed, and the episode does without it",
            Some(Done::Withdrawn) => "nobody wants the answer any more: its episode was thrown away",
            None => "it ended long ago",
        };
        Error::new(Fault::TeacherRequest, format!("request {number}: {why}"))
    }
}

impl TeacherQueue {
    /// A queue that nobody has asked yet.
    pub fn new(options: QueueOptions) -> TeacherQueue {
        TeacherQueue(Arc::new(Inner { options, state: Mutex::default(), asked: Condvar::new() }))
    }

    /// What it was made with.
    pub fn options(&self) -> &QueueOptions {
        &self.0.options
    }

    /// Requests that wait for somebody to take them.
    pub fn n_waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }

    /// Takes up to `most` requests, in the order in which they were asked; none where none comes within `timeout`.
    pub fn next(&self, most: usize, timeout: Duration) -> Vec<Arc<Request>> {
        let until = Instant::now() + timeout.min(Duration::from_secs(86_400));
        let mut state = self.0.state.lock();
        while state.waiting.is_empty() {
            if self.0.asked.wait_until(&mut state, until) {
                break;
            }
        }
        let State { waiting, open, moved, .. } = &mut *state;
        let (n, now) = (waiting.len().min(most), Instant::now());
        if n > 0 {
            *moved = Some(now);
        }
        let take = |number| {
            let open = open.get_mut(&number)?;
            open.taken = Some(now);
            Some(open.request.clone())
        };
        waiting.drain(..n).filter_map(take).collect()
    }

    /// Answers a request. Errors: `TeacherRequest` where none of this number is open; `TeacherReply` where the answer does not
    /// fit, and the request stays open.
    pub fn reply(&self, number: u64, reply: Reply) -> Result<()> {
        let (request, positions) = {
            let state = self.0.state.lock();
            let Some(open) = state.open.get(&number) else { return Err(state.not_open(number)) };
            (open.request.clone(), open.positions.clone())
        };
        // Without the lock: a long answer keeps no other waiting.
        let said = said(&request, &positions, reply).map_err(|e| e.within(format!("request {number}")))?;
        let mut state = self.0.state.lock();
        match state.end(number, Done::Answered) {
            None => Err(state.not_open(number)),
            Some(open) => {
                // Whoever waits may be gone.
                let _ = open.answer.send(Ok(said));
                Ok(())
            }
        }
    }

    /// Says that a request cannot be answered. Errors: `TeacherRequest` where none of this number is open.
    pub fn fail(&self, number: u64, why: &str) -> Result<()> {
        let mut state = self.0.state.lock();
        match state.end(number, Done::Failed) {
            None => Err(state.not_open(number)),
            Some(open) => {
                let why: String = why.chars().take(1000).collect();
                let _ = open.answer.send(Err(Error::new(Fault::TeacherFailed, format!("the teacher failed: {why}"))));
                Ok(())
            }
        }
    }

    /// Asks for the log-probs of the tokens at some positions, ascending and none 0.
    pub(super) fn ask(&self, episode: u64, ids: &[i32], positions: &[usize], vocabulary: usize) -> Result<Ask> {
        let (from, end) = (positions.first().copied().unwrap_or(1), positions.last().map_or(1, |last| last + 1));
        let (answer, said) = bounded(1);
        let ids = host::collected(ids[..end].iter().copied())?;
        let positions = Arc::new(host::collected(positions.iter().copied())?);
        let mut state = self.0.state.lock();
        state.last += 1;
        let number = state.last;
        let top_k = (self.0.options.top_k as usize).min(vocabulary);
        let request = Arc::new(Request { number, episode, ids, from, top_k, vocabulary });
        state.open.insert(number, Open { request, positions, answer, asked: Instant::now(), taken: None });
        state.waiting.push_back(number);
        drop(state);
        self.0.asked.notify_all();
        Ok(Ask { queue: self.clone(), number, said })
    }
}

/// A request of an episode's; dropped, it is withdrawn.
pub(super) struct Ask {
    queue: TeacherQueue,
    number: u64,
    said: Receiver<Result<Said>>,
}

impl Ask {
    /// The answer, None where it is still to come. `waited_since`: when the caller began to wait.
    pub(super) fn wait(&self, slice: Duration, waited_since: Instant) -> Result<Option<Said>> {
        if let Ok(answer) = self.said.recv_timeout(slice) {
            return answer.map(Some);
        }
        let mut state = self.queue.0.state.lock();
        let Some(open) = state.open.get(&self.number) else {
            drop(state);
            // It came in this moment.
            return self.said.try_recv().ok().transpose();
        };
        // Who takes one after another keeps those behind alive.
        let untaken = waited_since.max(open.asked).max(state.moved.unwrap_or(open.asked));
        let (since, deadline) = (open.taken.unwrap_or(untaken), self.queue.0.options.deadline);
        if since.elapsed() < deadline {
            return Ok(None);
        }
        let what = if open.taken.is_some() { "was taken and not answered" } else { "was taken by nobody" };
        state.end(self.number, Done::TooLate);
        let why = format!("the teacher's request {} {what} within {} ms", self.number, deadline.as_millis());
        Err(Error::new(Fault::TeacherSilent, why))
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.queue.0.state.lock().end(self.number, Done::Withdrawn);
    }
}

/// An answer, checked against its request, as far as it is kept.
fn said(request: &Request, positions: &[usize], reply: Reply) -> Result<Said> {
    let wrong = |why: String| Err(Error::new(Fault::TeacherReply, why));
    let (asked, k) = (&request.ids[request.from..], request.top_k);
    let n = asked.len();
    for (what, found, wanted) in [
        ("ids", reply.ids.len(), n),
        ("log-probs", reply.logprobs.len(), n),
        ("most likely ids", reply.top_ids.len(), n * k),
        ("log-probs of most likely ids", reply.top_logprobs.len(), n * k),
    ] {
        if found != wanted {
            return wrong(format!("wanted {wanted} {what}, found {found}"));
        }
    }
    if let Some(i) = (0..n).find(|&i| reply.ids[i] != asked[i]) {
        let (at, wanted, found) = (request.from + i, asked[i], reply.ids[i]);
        return wrong(format!(
            "position {at}: the answer is of id {found}, asked was id {wanted}: another text was scored"
        ));
    }
    let is_logprob = |x: f32| (LEAST..=0.0).contains(&x);
    let mut sorted: Vec<i32> = host::with_room(k)?;
    for (i, (&id, &logprob)) in asked.iter().zip(reply.logprobs).enumerate() {
        let at = request.from + i;
        if !is_logprob(logprob) {
            return wrong(format!("position {at}: the log-prob of id {id} is {logprob}, which is none"));
        }
        let (ids, logprobs) = (&reply.top_ids[i * k..][..k], &reply.top_logprobs[i * k..][..k]);
        if let Some(id) = ids.iter().find(|&&id| id < 0 || id as usize >= request.vocabulary) {
            return wrong(format!("position {at}: id {id} is none of the {} of the vocabulary", request.vocabulary));
        }
        if let Some(j) = (0..k).find(|&j| !is_logprob(logprobs[j])) {
            return wrong(format!("position {at}: the log-prob of id {} is {}, which is none", ids[j], logprobs[j]));
        }
        sorted.clear();
        sorted.extend_from_slice(ids);
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong(format!("position {at}: id {} stands among the most likely ids twice", twice[0]));
        }
        let mut sum: f64 = logprobs.iter().map(|&x| f64::from(x).exp()).sum();
        let least = logprobs.iter().fold(0.0f32, |least, &x| least.min(x));
        match ids.iter().position(|&known| known == id) {
            Some(j) if f64::from(logprobs[j] - logprob).abs() > SLACK => {
                let other = logprobs[j];
                return wrong(format!(
                    "position {at}: id {id} has the log-prob {logprob} and, among the most likely, {other}"
                ));
            }
            None if f64::from(logprob - least) > SLACK && k > 0 => {
                return wrong(format!(
                    "position {at}: id {id} has the log-prob {logprob} and is not among the {k} most likely"
                ));
            }
            Some(_) => {}
            None => sum += f64::from(logprob).exp(),
        }
        if sum > 1.0 + SLACK {
            return wrong(format!("position {at}: the ids have a probability of {sum:.4} together"));
        }
    }
    let kept = || positions.iter().map(|&at| at - request.from);
    let mut said = Said {
        positions: host::collected(positions.iter().copied())?,
        logprobs: host::collected(positions.iter().map(|&at| reply.logprobs[at - request.from]))?,
        top_k: k,
        top_ids: host::with_room(positions.len() * k)?,
        top_logprobs: host::with_room(positions.len() * k)?,
    };
    for i in kept() {
        said.top_ids.extend_from_slice(&reply.top_ids[i * k..][..k]);
        said.top_logprobs.extend_from_slice(&reply.top_logprobs[i * k..][..k]);
    }
    Ok(said)
}
