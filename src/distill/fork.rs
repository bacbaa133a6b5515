//! An episode that begins where another stands, or stood before one of its turns: branches, and groups of rollouts that
//! share a beginning.
//!
//! Timelines are forked, so pages of KV are shared until one writes into them, and the hidden states that the teacher has kept
//! come along where the fork learns from them: nothing that was computed for the parent is computed again for the fork. What
//! was not computed yet each computes for itself, unless the parent is told to compute it first ([`Episode::prefill`]).
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `episode` | identity, the key of its draws | the distiller counts |
//! | `turn` | the first turn of its own, counted from 0; the observation before it is shared | the parent's present one |
//! | `train_prefix` | whether the turns before carry loss in the fork as they do in the parent | false |
//! | `demonstration` | texts of actions to be replayed, one for each turn from turn 0 on | the parent's |
//! | `max_turns` | turn cap, the shared turns counted | the parent's |
#![forbid(unsafe_code)]

use std::sync::Arc;

use crossbeam::channel::Receiver;
use serde_json::Value;

use super::document::{bad, fields, integer};
use super::episode::{Episode, Phase, Sessions, State, out_of_order};
use super::trajectory::MOST_EPISODES;
use super::turn_end::Asked;
use crate::error::{Error, Fault, Result};
use crate::serve::{Cancel, Engine, Session};
use crate::sync::Mutex;
use crate::text::source::Source;

/// What a fork has of its own.
#[derive(Clone, Debug, Default)]
pub struct ForkOptions {
    /// Identity; None: the next number.
    pub episode: Option<u64>,
    /// The first turn of its own; None: the parent's present one.
    pub turn: Option<u32>,
    /// Whether the turns before carry loss in the fork as well.
    pub train_prefix: bool,
    /// Actions to be replayed, from turn 0 on; None: the parent's.
    pub demonstration: Option<Vec<String>>,
    /// Turn cap; None: the parent's.
    pub max_turns: Option<u32>,
}

const KNOWN: [&str; 5] = ["episode", "turn", "train_prefix", "demonstration", "max_turns"];

impl ForkOptions {
    /// Reads a document. [`Fault::BadJson`], [`Fault::UnknownKey`], [`Fault::BadValue`].
    pub fn from_json(text: &str) -> Result<ForkOptions> {
        let document: Value = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the fork's options are not JSON: {e}")))?;
        let map = fields(&document, "", &KNOWN)?;
        let whole = |key: &str, low, high| map.get(key).map(|value| integer(value, key, low, high)).transpose();
        let turns = |key: &str, low| whole(key, low, u32::MAX.into()).map(|n| n.map(|n| n as u32));
        let texts = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_string)).collect()
        };
        let key = "train_prefix";
        let train_prefix =
            map.get(key).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| bad(value, key, "true or false")))?;
        let key = "demonstration";
        let demonstration = map.get(key).map(|value| texts(value).ok_or_else(|| bad(value, key, "a list of texts")));
        Ok(ForkOptions {
            episode: whole("episode", 0, MOST_EPISODES)?,
            turn: turns("turn", 0)?,
            train_prefix,
            demonstration: demonstration.transpose()?,
            max_turns: turns("max_turns", 1)?,
        })
    }
}

impl Episode {
    /// A new episode that stands where this one stands between two turns, or stood before the turn that is asked for: what was
    /// observed for it is there, who acts is decided anew, under the fork's own identity. It has this one's step, revision and
    /// options, a copy of its record, and its pages. Computes nothing, and neither needs the other from then on.
    ///
    /// Errors: `OutOfOrder` while a turn is said or waits for its outcome, and after the end; `SessionBusy` while a
    /// generation runs; `BadValue` for a turn that is not reached yet; `SessionBudget`.
    pub fn fork(&self, options: ForkOptions) -> Result<Episode> {
        let mut state = self.state.lock();
        check_between_turns(&mut state, "fork")?;
        let (state, turn) = (&*state, options.turn.unwrap_or(state.turn));
        if turn > state.turn {
            let why = format!("turn: wanted one that the episode has reached, 0 to {}, found {turn}", state.turn);
            return Err(Error::new(Fault::BadValue, why));
        }
        let n_turns = turn as usize;
        let Sessions { student, teacher } = state.sessions()?;
        // Nothing was observed for a turn that is only next.
        let end = state.seen.get(n_turns).map_or_else(|| student.mark(), |seen| Ok(seen.end))?;
        let shown = state.seen.get(n_turns).map_or(&state.shown, |seen| &seen.shown);
        let theirs = end.moved_to(shown.view.position(end.len));
        let hidden_from = |end: usize| if options.train_prefix { 0 } else { end };
        let sessions = Sessions {
            student: student.fork_at(end, hidden_from(end.len))?,
            teacher: teacher.as_ref().map(|teacher| teacher.fork_at(theirs, hidden_from(theirs.len))).transpose()?,
        };
        // Last, so that a fork that is refused takes no number.
        let parent = &state.trajectory.heading;
        let heading = self.distiller.heading_of_fork(options.episode, (parent, turn));
        let fork = State {
            phase: if state.seen.len() > n_turns { Phase::Observed } else { Phase::Open },
            trajectory: state.trajectory.fork(heading, n_turns, options.train_prefix),
            sessions: Some(sessions),
            start: None,
            seen: state.seen.iter().take(n_turns + 1).cloned().collect(),
            shown: shown.clone(),
            ending: None,
            asked: Asked::default(),
            asked_turn: None,
            conversation: state.conversation.as_ref().map(|conversation| {
                conversation.up_to(state.seen.get(n_turns).map_or_else(|| conversation.len(), |seen| seen.n_messages))
            }),
            steps_in: state.steps_in,
            prompt: state.prompt.clone(),
            demonstration: options.demonstration.map(Arc::new).or_else(|| state.demonstration.clone()),
            max_turns: options.max_turns.unwrap_or(state.max_turns),
            turn,
            teacher_computed: 0,
        };
        Ok(Episode { distiller: self.distiller.clone(), state: Mutex::new(fork) })
    }

    /// Computes what stands in the episode, so that forks made afterwards share it: the student's side, and the teacher's where
    /// the settings ask for a teacher. Blocks. Cancelled, it keeps what is computed already.
    ///
    /// Errors: `OutOfOrder` and `SessionBusy` as [`Episode::fork`]; `KvBudget` where the pages do not fit; `Cancelled`.
    pub fn prefill(&self, cancel: &Cancel) -> Result<()> {
        let mut state = self.state.lock();
        check_between_turns(&mut state, "prefill")?;
        let Sessions { student, teacher } = state.sessions()?;
        let asks_teacher = self.distiller.config().asks_teacher_at(state.trajectory.heading.step);
        let teacher = teacher.as_ref().filter(|_| asks_teacher);
        if let Some(teacher) = teacher {
            state.shown.catch_up(teacher, student)?;
        }
        let of_teacher = |teacher: &Session| {
            // Whether an action follows is not known yet: the last row's hidden state is kept as if one did.
            Ok((teacher.model().engine().clone(), teacher.start_prefill(cancel, Some(Source::Student))?))
        };
        let own = (student.model().engine().clone(), student.start_prefill(cancel, None)?);
        let theirs = teacher.map(of_teacher).transpose();
        // Whoever asks meanwhile is told that it is busy.
        drop(state);
        // Each is waited for on its own engine, which may be one that this call steps; what was begun is waited for also where
        // the other was refused.
        let ended = |(engine, answer): (Engine, Receiver<Result<()>>)| engine.wait(&answer)?;
        let own = ended(own);
        theirs?.map_or(Ok(()), ended).and(own)
    }
}

/// Refuses what is done between two turns only.
fn check_between_turns(state: &mut State, call: &str) -> Result<()> {
    match state.phase()? {
        Phase::Open | Phase::Observed | Phase::Decided(_) => Ok(()),
        Phase::Ended => {
            let why =
                format!("{call} is out of order: the episode has ended and holds no pages; {call} before the end");
            Err(Error::new(Fault::OutOfOrder, why))
        }
        phase => Err(out_of_order(call, phase)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_and_none_is_needed() {
        let text = r#"{"episode": 9, "turn": 2, "train_prefix": true, "demonstration": ["a", "b"], "max_turns": 5}"#;
        let read = ForkOptions::from_json(text).unwrap();
        assert_eq!((read.episode, read.turn, read.train_prefix, read.max_turns), (Some(9), Some(2), true, Some(5)));
        assert_eq!(read.demonstration, Some(vec!["a".to_string(), "b".to_string()]));
        let none = ForkOptions::from_json("{}").unwrap();
        assert_eq!((none.episode, none.turn, none.train_prefix, none.max_turns), (None, None, false, None));
        assert!(none.demonstration.is_none());
    }

    #[test]
    fn what_is_wrong_is_refused_by_its_path_with_what_was_wanted_and_found() {
        for (text, fault, said) in [
            ("{", Fault::BadJson, "the fork's options are not JSON"),
            ("[]", Fault::BadValue, "the document must be an object, found an array"),
            (r#"{"trun": 1}"#, Fault::UnknownKey, "unknown key `trun`; known here: episode, turn, train_prefix"),
            (r#"{"evaluation": true}"#, Fault::UnknownKey, "unknown key `evaluation`"),
            (r#"{"episode": -1}"#, Fault::BadValue, "episode must be a whole number from 0"),
            (r#"{"turn": 4294967296}"#, Fault::BadValue, "turn must be a whole number from 0 to 4294967295"),
            (r#"{"turn": null}"#, Fault::BadValue, "turn must be a whole number"),
            (r#"{"train_prefix": 1}"#, Fault::BadValue, "train_prefix must be true or false, found 1"),
            (
                r#"{"demonstration": ["a", 1]}"#,
                Fault::BadValue,
                "demonstration must be a list of texts, found an array",
            ),
            (r#"{"max_turns": 0}"#, Fault::BadValue, "max_turns must be a whole number from 1 to 4294967295, found 0"),
        ] {
            let e = ForkOptions::from_json(text).unwrap_err();
            assert!(e.fault() == fault && e.message().starts_with(said), "{text}: {e}");
        }
    }
}
