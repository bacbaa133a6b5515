//! A timeline: token ids with who wrote each, its log-probs and the revision that made it, and the KV
//! cache of a prefix of them. The ids beyond the cache are pending: the next forward computes them.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::model::KvCache;
use crate::text::After;
use crate::text::parts::Tools;
use crate::text::source::Source;

/// What is known of one token besides its id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// The id.
    pub id: i32,
    /// Who wrote it.
    pub source: Source,
    /// Log-prob at temperature 1 over the whole vocabulary, nats; NaN where nothing was sampled.
    pub logprob: f32,
    /// Log-prob of the distribution sampled from; NaN where nothing was sampled.
    pub sampled_logprob: f32,
    /// Revision of the weights that sampled it; 0 where nothing was sampled.
    pub revision: u64,
}

impl Token {
    /// A token that nobody sampled here.
    pub fn given(id: i32, source: Source) -> Token {
        Token { id, source, logprob: f32::NAN, sampled_logprob: f32::NAN, revision: 0 }
    }
}

/// A place in a timeline, at which it may be forked later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// Tokens before it.
    pub(crate) len: usize,
    /// where an assistant turn began by then
    turn_begun_at: Option<usize>,
}

impl Mark {
    /// The same place in a timeline in which it has so many tokens before it.
    pub(crate) fn moved_to(self, len: usize) -> Mark {
        Mark { len, turn_begun_at: self.turn_begun_at }
    }
}

/// Final hidden states of the rows that predict action tokens, kept for a teacher's scores.
#[derive(Debug, Default)]
pub struct Hidden {
    /// Position of the predicted token of each row, ascending.
    pub positions: Vec<usize>,
    /// [positions, C] f32
    pub rows: Vec<f32>,
}

impl Hidden {
    /// A copy of the rows that predict these positions.
    fn copied(&self, positions: Range<usize>) -> Result<Hidden> {
        let before = |end: usize| self.positions.partition_point(|&p| p < end);
        let (from, to) = (before(positions.start), before(positions.end));
        let width = self.rows.len().checked_div(self.positions.len()).unwrap_or(0);
        let of = "the hidden states of a fork";
        Ok(Hidden {
            positions: memory::copied(&self.positions[from..to], of)?,
            rows: memory::copied(&self.rows[from * width..to * width], of)?,
        })
    }
}

/// The state of a session while it is idle, and of a job while it runs.
pub struct Timeline {
    pub(super) tokens: Vec<Token>,
    /// the ids of `tokens`, contiguous for the forward
    pub(super) ids: Vec<i32>,
    pub(super) kv: KvCache,
    /// Some: keep the hidden state of each row that predicts an action token
    pub(super) hidden: Option<Hidden>,
    /// positions below this have had theirs kept, whoever has taken them since
    hidden_to: usize,
    /// length at which an assistant turn began: just behind the generation prompt
    pub(super) turn_begun_at: Option<usize>,
    /// what its conversation says of tools, and the length at which it was said
    pub(super) tools: (Arc<Tools>, usize),
    /// rows that forwards computed for this timeline
    pub(super) n_computed: u64,
}

impl Timeline {
    pub(super) fn new(kv: KvCache) -> Timeline {
        Timeline {
            tokens: Vec::new(),
            ids: Vec::new(),
            kv,
            hidden: None,
            hidden_to: 0,
            turn_begun_at: None,
            tools: Default::default(),
            n_computed: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn push(&mut self, token: Token) {
        self.ids.push(token.id);
        self.tokens.push(token);
    }

    /// Appends given ids. Checks all of them first: vocabulary and room.
    pub(super) fn append(&mut self, ids: &[i32], source: Source, vocab_size: usize, max_context: usize) -> Result<()> {
        check_ids(ids, vocab_size)?;
        let wanted = self.len() + ids.len();
        if wanted > max_context {
            let why = format!("{wanted} tokens are wanted, the context holds {max_context}; truncate or begin anew");
            return Err(Error::new(Fault::ContextFull, why));
        }
        self.reserve(ids.len())?;
        ids.iter().for_each(|&id| self.push(Token::given(id, source)));
        Ok(())
    }

    /// Asks for the memory of `n` more tokens.
    pub(super) fn reserve(&mut self, n: usize) -> Result<()> {
        let refused = self.ids.try_reserve(n).and_then(|()| self.tokens.try_reserve(n));
        refused.map_err(|_| {
            let bytes = (n * (size_of::<Token>() + size_of::<i32>())) as u64;
            Error::memory(Fault::OutOfHostMemory, bytes, 0, format!("there is no memory for {n} more tokens"))
        })
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.tokens.truncate(len);
        self.turn_begun_at = self.turn_begun_at.filter(|&at| at <= len);
        if len <= self.tools.1 {
            self.tools = Default::default();
        }
        self.forget_computed(len);
    }

    /// What a chat template finds before messages that are appended; `ends` are ids that end a turn.
    pub(super) fn after<'a>(&'a self, ends: &'a [i32]) -> After<'a> {
        after(&self.tokens, &self.ids, self.turn_begun_at, ends)
    }

    /// Drops what was computed for positions from `len` on; the ids stay and become pending.
    pub(super) fn forget_computed(&mut self, len: usize) {
        self.kv.truncate(len);
        self.hidden_to = self.hidden_to.min(len + 1);
        if let Some(hidden) = &mut self.hidden {
            // A row at position p predicts p + 1; rows kept are those at positions below `len`.
            let n = hidden.positions.partition_point(|&p| p <= len);
            if n < hidden.positions.len() {
                let width = hidden.rows.len() / hidden.positions.len();
                hidden.rows.truncate(n * width);
                hidden.positions.truncate(n);
            }
        }
    }

    /// Begins to keep hidden states: those of rows that are computed from now on.
    pub(super) fn begin_to_keep_hidden(&mut self) {
        if self.hidden.is_none() {
            (self.hidden, self.hidden_to) = (Some(Hidden::default()), self.kv.len() + 1);
        }
    }

    /// Gives its pages to others. What was computed comes again, so hidden states that were kept stay.
    pub(super) fn give_up_pages(&mut self) {
        self.kv.truncate(0);
    }

    /// Keeps the hidden states [positions, C] that predict these positions, of rows up to the one before `end`; those that
    /// were kept before are left out by `keeps_hidden`.
    pub(super) fn keep_hidden(&mut self, positions: impl IntoIterator<Item = usize>, rows: Vec<f32>, end: usize) {
        if let Some(hidden) = &mut self.hidden {
            hidden.positions.extend(positions);
            hidden.rows.extend(rows);
            self.hidden_to = self.hidden_to.max(end + 1);
        }
    }

    /// Whether the token at this position is an action's; `next` wrote the one behind the last, if that is known.
    pub(super) fn is_action(&self, position: usize, next: Option<Source>) -> bool {
        self.tokens.get(position).map(|t| t.source).or(next).is_some_and(|source| source.is_action())
    }

    /// Whether the hidden state that predicts this position is still to be kept.
    pub(super) fn keeps_hidden(&self, position: usize) -> bool {
        self.hidden.is_some() && position >= self.hidden_to
    }

    pub(super) fn fork(&self) -> Result<Timeline> {
        Ok(Timeline {
            tokens: memory::copied(&self.tokens, "the tokens of a fork")?,
            ids: memory::copied(&self.ids, "the ids of a fork")?,
            kv: self.kv.fork()?,
            hidden: None,
            hidden_to: 0,
            turn_begun_at: self.turn_begun_at,
            tools: self.tools.clone(),
            n_computed: 0,
        })
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { len: self.len(), turn_begun_at: self.turn_begun_at }
    }

    /// A fork that stands as this timeline stood at a mark, with the hidden states that were kept for positions from
    /// `hidden_from` on. A timeline that does not reach the mark is forked as it is.
    pub(super) fn fork_at(&self, at: Mark, hidden_from: usize) -> Result<Timeline> {
        let len = at.len.min(self.len());
        let mut fork = self.fork()?;
        fork.truncate(len);
        fork.turn_begun_at = at.turn_begun_at.filter(|&begun| begun <= len);
        if let Some(hidden) = &self.hidden {
            let hidden = hidden.copied(hidden_from.min(len + 1)..len + 1)?;
            let says_what_follows = hidden.positions.last() == Some(&len);
            (fork.hidden, fork.hidden_to) = (Some(hidden), self.hidden_to.min(len + 1));
            if !says_what_follows {
                // What followed here was no action, in the fork it may be one: then the row before it is wanted.
                fork.forget_computed(len.saturating_sub(1));
            }
        }
        Ok(fork)
    }
}

/// What a chat template finds behind `tokens`, whose ids are `ids`; an assistant's turn began at `turn_begun_at`.
pub(crate) fn after<'a>(tokens: &[Token], ids: &'a [i32], turn_begun_at: Option<usize>, ends: &'a [i32]) -> After<'a> {
    match tokens.last() {
        None => After::Nothing,
        Some(last) if last.source.is_action() || turn_begun_at.is_some() => {
            let sampled = || tokens.iter().rposition(|t| !t.source.is_action()).map_or(0, |at| at + 1);
            After::Turn { said: &ids[turn_begun_at.unwrap_or_else(sampled)..], ends }
        }
        Some(_) => After::Messages,
    }
}

/// Refuses ids outside the vocabulary.
pub(super) fn check_ids(ids: &[i32], vocab_size: usize) -> Result<()> {
    match ids.iter().position(|&id| id < 0 || id as usize >= vocab_size) {
        None => Ok(()),
        Some(i) => {
            let why = format!("token id {} at {i} lies outside the vocabulary of {vocab_size}", ids[i]);
            Err(Error::new(Fault::IdOutOfRange, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Device;
    use crate::backend::cpu::Cpu;
    use crate::backend::page::PageShape;
    use crate::model::KvPool;
    use crate::tensor::Dtype;

    /// Ids 0 to 6 of the host, of which all but the last are computed, with the hidden states kept for positions 3, 4 and 6.
    fn timeline() -> Timeline {
        let shape = PageShape { n_layers: 1, n_kv_heads: 1, head_dim: 4, dtype: Dtype::F32 };
        let pool = KvPool::new(&Device::Cpu(Cpu::new(1, None).unwrap()), shape, u64::MAX);
        let mut t = Timeline::new(crate::model::KvCache::new(&pool));
        t.append(&[0, 1, 2, 3, 4, 5, 6], Source::Host, 10, 10).unwrap();
        t.begin_to_keep_hidden();
        t.kv.reserve(6).unwrap();
        t.kv.advance(6);
        t.keep_hidden([3, 4, 6], vec![3.0, 3.5, 4.0, 4.5, 6.0, 6.5], 6);
        t
    }

    fn kept(t: &Timeline) -> (Vec<usize>, Vec<f32>) {
        let hidden = t.hidden.as_ref().unwrap();
        (hidden.positions.clone(), hidden.rows.clone())
    }

    #[test]
    fn a_fork_at_a_mark_has_the_hidden_states_that_were_kept_by_then() {
        let t = timeline();
        let at = |len| Mark { len, turn_begun_at: None };
        let fork = t.fork_at(at(4), 0).unwrap();
        assert_eq!((fork.len(), fork.kv.len(), fork.n_computed), (4, 4, 0));
        assert_eq!(kept(&fork), (vec![3, 4], vec![3.0, 3.5, 4.0, 4.5]));
        assert!(!fork.keeps_hidden(4) && fork.keeps_hidden(5));
        assert_eq!(kept(&t.fork_at(at(4), 4).unwrap()), (vec![4], vec![4.0, 4.5]), "of what follows alone");
        assert_eq!(kept(&t.fork_at(at(4), 9).unwrap()).0, Vec::<usize>::new());
        // Further than it reaches.
        let fork = t.fork_at(at(9), 0).unwrap();
        assert_eq!((fork.len(), fork.kv.len(), kept(&fork).0), (7, 6, vec![3, 4, 6]));
        assert_eq!(kept(&t).0, [3, 4, 6]);
    }

    #[test]
    fn a_row_whose_hidden_state_may_be_wanted_after_all_is_computed_again() {
        let t = timeline();
        // What followed position 4 was said by the host.
        let fork = t.fork_at(Mark { len: 5, turn_begun_at: None }, 0).unwrap();
        assert_eq!((fork.len(), fork.kv.len(), kept(&fork).0), (5, 4, vec![3, 4]));
        assert!(!fork.keeps_hidden(4) && fork.keeps_hidden(5));
        // Also where nothing is computed any more.
        let mut t = timeline();
        t.give_up_pages();
        let fork = t.fork_at(Mark { len: 5, turn_begun_at: None }, 0).unwrap();
        assert!(fork.kv.is_empty() && !fork.keeps_hidden(4) && fork.keeps_hidden(5));
    }
}
