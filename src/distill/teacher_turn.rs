//! A turn that the host's teacher is to say, and what it says: ids of the student's vocabulary, or text, which is made ids as a
//! replayed action's is. What it says is checked before it counts, and counts as a whole.
//!
//! Nothing is drawn here: whether the same seed gives the same turn again is the host's to know.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::spoken::Spoken;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::serve::{Feed, Finish, Token};
use crate::text::TextUntilStop;
use crate::text::source::Source;

/// How a turn is to be said.
#[derive(Debug)]
pub struct TurnWanted {
    /// Tokens at most, the one that ends the turn among them; of a text as its teacher counts them.
    pub max_tokens: usize,
    /// How the student's settings draw.
    pub sampling: Sampling,
    /// The episode's seed for this turn.
    pub seed: u64,
    /// Ids that end a turn.
    pub stop_ids: Vec<i32>,
    /// Texts that end a turn: what is said behind the token that completes the first of them does not count.
    pub stop_strings: Vec<String>,
    /// When its time is up; what is said later is not the turn.
    pub until: Option<Instant>,
    /// What was said so far, as the teacher is to read it: a JSON list of `{role, content}`. None where that is not known, since ids
    /// were observed.
    pub messages: Option<String>,
}

impl TurnWanted {
    /// What is left of its time; None where it has no limit.
    pub fn time_left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether its time is up.
    pub(super) fn is_late(&self) -> bool {
        self.time_left().is_some_and(|left| left.is_zero())
    }
}

/// Where a turn is to stand.
pub(super) struct Place {
    /// where it starts in the student's timeline
    pub(super) position: usize,
    /// tokens that the student's context has room for
    pub(super) room: usize,
    /// what makes ids of a text
    pub(super) spoken: Spoken,
}

/// What a teacher says.
#[derive(Clone, Copy, Debug)]
pub struct TeacherSays<'a> {
    /// The turn.
    pub what: Words<'a>,
    /// Whether it ends for want of room, before the teacher was done.
    pub cut_off: bool,
}

/// The turn in itself.
#[derive(Clone, Copy, Debug)]
pub enum Words<'a> {
    /// n ids of the student's vocabulary, the one that ends the turn included, and their n log-probs of the raw logits at
    /// temperature 1 in nats, or none.
    Ids(&'a [i32], &'a [f32]),
    /// A text, without the end.
    Text(&'a str),
}

/// No softmax says less; servers have numbers like -9999 for what they do not know.
const LEAST: f32 = -1000.0;

/// Whether it is the log-prob of something, in nats.
pub(super) fn is_logprob(x: f32) -> bool {
    (LEAST..=0.0).contains(&x)
}

/// The tokens of a turn and why it ended, checked against what was wanted. `by_text`: whether the teacher's ids are another
/// vocabulary's, so that it can only say texts.
pub(super) fn said_turn(
    (wanted, place): (&TurnWanted, &Place),
    vocabulary: usize,
    says: TeacherSays,
    by_text: bool,
) -> Result<(Vec<Token>, Finish)> {
    fn wrong<T>(why: String) -> Result<T> {
        Err(Error::new(Fault::TeacherReply, why))
    }
    let made;
    let (ids, logprobs, most) = match says.what {
        Words::Ids(..) if by_text => {
            return wrong("the teacher's vocabulary is another than the student's: it says its turns by text".into());
        }
        Words::Ids(ids, logprobs) => (ids, logprobs, wanted.max_tokens),
        Words::Text(text) => {
            let room = place.room;
            made = place.spoken.ids(text, !says.cut_off, room).or_else(|e| match e.fault() {
                Fault::ContextFull => wrong(format!("wanted a text of at most {room} tokens, found a longer one")),
                _ => Err(e),
            })?;
            (&made[..], &[][..], place.room)
        }
    };
    if !logprobs.is_empty() && logprobs.len() != ids.len() {
        return wrong(format!("wanted {} log-probs or none, found {}", ids.len(), logprobs.len()));
    }
    // What was said behind a stop string does not count, whatever it is.
    let by_string = string_end(wanted, place, ids)?;
    let n = by_string.unwrap_or(ids.len());
    let (ids, logprobs) = (&ids[..n], &logprobs[..n.min(logprobs.len())]);
    if n == 0 || n > most {
        return wrong(format!("wanted a turn of 1 to {most} tokens, found {n}"));
    }
    if let Some(i) = ids.iter().position(|&id| id < 0 || id as usize >= vocabulary) {
        return wrong(format!("place {i}: id {} is none of the {} of the vocabulary", ids[i], vocabulary));
    }
    if let Some(i) = logprobs.iter().position(|&x| !is_logprob(x)) {
        return wrong(format!("place {i}: the log-prob of id {} is {}, which is none", ids[i], logprobs[i]));
    }
    let finish = match says.what {
        Words::Text(_) if says.cut_off && by_string.is_none() => Finish::Length,
        Words::Text(_) => Finish::Stop,
        Words::Ids(..) => {
            let ends = |id: &i32| wanted.stop_ids.contains(id);
            match (ids.iter().position(ends), says.cut_off) {
                (Some(i), _) if i + 1 < n => {
                    return wrong(format!("place {i}: id {} ends a turn, and {} ids follow", ids[i], n - i - 1));
                }
                _ if by_string.is_some() => Finish::Stop,
                (Some(_), true) => {
                    return wrong(format!("id {} ends the turn, which is said to be cut off", ids[n - 1]));
                }
                (Some(_), false) => Finish::Stop,
                (None, true) => Finish::Length,
                (None, false) if n == wanted.max_tokens => Finish::Length,
                (None, false) => {
                    return wrong(format!(
                        "the turn ends with id {}, which is none of its stop_ids and completes no stop string; add the one that ended it, or say that it is cut off",
                        ids[n - 1]
                    ));
                }
            }
        }
    };
    let token = |(i, &id): (usize, &i32)| Token {
        logprob: logprobs.get(i).copied().unwrap_or(f32::NAN),
        ..Token::given(id, Source::Teacher)
    };
    Ok((ids.iter().enumerate().map(token).collect(), finish))
}

/// How many of the ids are the turn where one of them completes a stop string.
fn string_end(wanted: &TurnWanted, place: &Place, ids: &[i32]) -> Result<Option<usize>> {
    if wanted.stop_strings.is_empty() {
        return Ok(None);
    }
    let mut text = place.spoken.until(&wanted.stop_strings)?;
    let completes = |&id: &i32| {
        text.push(id);
        text.found().is_some()
    };
    Ok(ids.iter().position(completes).map(|at| at + 1))
}

/// Where the answer goes.
#[derive(Clone, Default)]
pub(super) struct Told {
    pub(super) feed: Feed,
    from_text: Arc<AtomicBool>,
}

impl Told {
    /// Puts the answer down; `position`: where the turn starts in the student's timeline.
    pub(super) fn say(
        &self,
        (tokens, finish): (Vec<Token>, Finish),
        text: TextUntilStop,
        position: usize,
        from_text: bool,
    ) {
        self.from_text.store(from_text, Ordering::Release);
        self.feed.say(tokens, position, text, finish);
    }

    /// Whether its ids were made of a text.
    pub(super) fn is_from_text(&self) -> bool {
        self.from_text.load(Ordering::Acquire)
    }
}
