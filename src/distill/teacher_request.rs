//! What the host's teacher is asked and what it answers: scores of what was said, or a turn (`teacher_turn`). An answer is checked before it counts: it repeats the ids that it
//! scores, its log-prob of an id is that of the same id among the most likely ones, and a log-prob that is missing, not finite,
//! above 0 or below -1,000 is an error, never 0.
#![forbid(unsafe_code)]

use super::teacher_turn::{TurnWanted, is_logprob};
use crate::backend::host;
use crate::error::{Error, Fault, Result};

/// How far above 1 the sum of a place's probabilities may lie, and how far apart two log-probs of one id: those of bf16 logits
/// are no better.
const SLACK: f64 = 1e-2;

/// The episode of what is asked for no episode's sake: a check of the teacher.
pub const NO_EPISODE: u64 = u64::MAX;

/// Who asks a teacher. Several distillers may share one, and number their episodes each for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The distiller's number, of which the process has no other.
    pub distiller: u64,
    /// Identity of the episode in it; [`NO_EPISODE`] for none.
    pub episode: u64,
    /// Updates that were applied when the episode began.
    pub step: u64,
    /// The student's revision that acts in it.
    pub revision: u64,
}

/// What a teacher is asked: the log-probs of `ids[from..]`, each given all ids before it; or to say what follows all of them.
#[derive(Debug)]
pub struct Request {
    /// Its number, by which it is answered.
    pub number: u64,
    /// Whose ids these are.
    pub asker: Asker,
    /// The whole text so far as the teacher is to read it, which may be another than the student's.
    pub ids: Vec<i32>,
    /// The first id that is asked about, at least 1; their number where a turn is wanted.
    pub from: usize,
    /// Most likely ids wanted in each place.
    pub top_k: usize,
    /// Ids that there are: those of an answer lie below.
    pub vocabulary: usize,
    /// The turn that is wanted; None: scores are.
    pub turn: Option<TurnWanted>,
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
    /// Position of each token in the text that was asked about.
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

/// An answer, checked against its request, as far as it is kept.
pub(super) fn said(request: &Request, positions: &[usize], reply: Reply) -> Result<Said> {
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
