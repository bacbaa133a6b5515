//! A session: one timeline, bound to one revision of one model.
//!
//! One call works on it at a time. While a generation or a score runs, the timeline is with the engine
//! and every other call is refused as busy, at once. Appending computes nothing: ids are pending until
//! something needs them.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, bounded, unbounded};
use parking_lot::Mutex;

use super::cancel::Cancel;
use super::generation::{Generation, GenerationOptions, Outbox};
use super::job::{Generating, Job, ScoreRow, Work};
use super::model::{Revision, ServedModel};
use super::timeline::{Hidden, Timeline, Token, check_ids};
use crate::error::{Error, Fault, Result};
use crate::model::KvCache;
use crate::text::Json;
use crate::text::chat::{self, RenderOptions};
use crate::text::generation_prompt;
use crate::text::source::Source;
use crate::text::stream::TextStream;

/// Entries (`ids` times `top_k`) that one score may give: what a single call can make the host hold is bounded.
pub const MAX_SCORE_ENTRIES: usize = 1 << 24;

/// A session. Dropping it frees its pages; a running generation ends first.
pub struct Session {
    model: ServedModel,
    shared: Arc<Shared>,
}

/// How far a timeline reaches, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Tokens in it.
    pub len: usize,
    /// Of them, those that are not computed yet.
    pub pending: usize,
    /// Tokens that still fit into the context.
    pub room: usize,
}

/// What a session shares with a running job.
pub(super) struct Shared {
    model: ServedModel,
    slot: Mutex<Slot>,
}

struct Slot {
    timeline: Place,
    revision: Arc<Revision>,
}

enum Place {
    Idle(Timeline),
    Busy,
    /// its job died in a panic
    Lost,
}

impl Shared {
    pub(super) fn put_back(&self, timeline: Timeline) {
        self.slot.lock().timeline = Place::Idle(timeline);
    }

    pub(super) fn lose(&self) {
        self.slot.lock().timeline = Place::Lost;
    }

    pub(super) fn model(&self) -> &ServedModel {
        &self.model
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.model.engine().counters().sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    /// An empty session on the model's current revision.
    pub fn new(model: &ServedModel) -> Result<Session> {
        Session::with(model, model.current(), Timeline::new(KvCache::new(&model.0.pool)))
    }

    fn with(model: &ServedModel, revision: Arc<Revision>, timeline: Timeline) -> Result<Session> {
        let (counters, limit) = (model.engine().counters(), model.engine().options().max_sessions as u64);
        let below = |n: u64| if n < limit { Some(n + 1) } else { None };
        if counters.sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_err() {
            let why = format!("{limit} sessions exist, and the engine was made for as many; release one");
            return Err(Error::new(Fault::SessionBudget, why));
        }
        let slot = Mutex::new(Slot { timeline: Place::Idle(timeline), revision });
        Ok(Session { model: model.clone(), shared: Arc::new(Shared { model: model.clone(), slot }) })
    }

    /// Its model.
    pub fn model(&self) -> &ServedModel {
        &self.model
    }

    fn idle<T>(&self, f: impl FnOnce(&mut Timeline, &mut Arc<Revision>) -> Result<T>) -> Result<T> {
        let mut slot = self.shared.slot.lock();
        let Slot { timeline, revision } = &mut *slot;
        match timeline {
            Place::Idle(t) => f(t, revision),
            Place::Busy => Err(busy()),
            Place::Lost => Err(lost()),
        }
    }

    /// The revision it is bound to.
    pub fn revision(&self) -> Arc<Revision> {
        self.shared.slot.lock().revision.clone()
    }

    /// Tokens in the timeline.
    pub fn len(&self) -> Result<usize> {
        self.idle(|t, _| Ok(t.len()))
    }

    /// Whether the timeline is empty.
    pub fn is_empty(&self) -> Result<bool> {
        self.idle(|t, _| Ok(t.len() == 0))
    }

    /// How long the timeline is, how much of it is still to be computed, and how much fits behind it.
    pub fn extent(&self) -> Result<Extent> {
        let context = self.model.0.model.max_context();
        self.idle(|t, _| {
            let len = t.len();
            Ok(Extent { len, pending: len - t.kv.len(), room: context.saturating_sub(len) })
        })
    }

    /// All tokens with what is known of them.
    pub fn tokens(&self) -> Result<Vec<Token>> {
        self.idle(|t, _| Ok(t.tokens.clone()))
    }

    /// Rows that forwards computed for it so far.
    pub fn n_computed(&self) -> Result<u64> {
        self.idle(|t, _| Ok(t.n_computed))
    }

    /// Makes the timeline equal to `ids`: keeps the longest common prefix and appends the rest as the
    /// host's. Returns how many tokens need no computing again.
    pub fn sync(&self, ids: &[i32]) -> Result<usize> {
        self.idle(|t, _| {
            let config = &self.model.0.model;
            check_ids(ids, config.config.vocab_size)?;
            if ids.len() > config.max_context() {
                let why = format!("{} tokens are wanted, the context holds {}", ids.len(), config.max_context());
                return Err(Error::new(Fault::ContextFull, why));
            }
            let common = t.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
            t.truncate(common);
            t.append(&ids[common..], Source::Host, config.config.vocab_size, config.max_context())?;
            Ok(t.kv.len())
        })
    }

    /// Appends ids written by `source`. Computes nothing yet.
    pub fn append(&self, ids: &[i32], source: Source) -> Result<()> {
        let model = &self.model.0.model;
        self.idle(|t, _| t.append(ids, source, model.config.vocab_size, model.max_context()))
    }

    /// Appends already sampled tokens with their log-probs, as another session sampled them.
    pub fn append_tokens(&self, tokens: &[Token]) -> Result<()> {
        let model = &self.model.0.model;
        let ids: Vec<i32> = tokens.iter().map(|t| t.id).collect();
        self.idle(|t, _| {
            let before = t.len();
            t.append(&ids, Source::Host, model.config.vocab_size, model.max_context())?;
            t.tokens[before..].copy_from_slice(tokens);
            Ok(())
        })
    }

    /// Renders messages by the model's template and appends their ids; content never becomes control.
    /// Returns the tokens added: template glue and host text, marked so.
    pub fn append_chat(&self, messages: impl Into<Json>, options: &RenderOptions) -> Result<Vec<Token>> {
        let messages = messages.into();
        let (tokenizer, template, model) = (self.model.tokenizer()?, self.model.template()?, &self.model.0.model);
        let added = self.idle(|t, _| {
            let after = t.after(self.model.stop_ids());
            let room = model.max_context().saturating_sub(t.len());
            let ids = chat::encode_append_within(tokenizer, template, after, &messages, options, room)?;
            let before = t.len();
            t.append(&ids, Source::Host, model.config.vocab_size, model.max_context())?;
            for token in &mut t.tokens[before..] {
                if tokenizer.is_added(token.id) {
                    token.source = Source::Glue;
                }
            }
            let last = messages.as_list().and_then(|list| list.last()?.get("role")?.as_str());
            let begun = options.add_generation_prompt || (options.continue_final_message && last == Some("assistant"));
            t.turn_begun_at = begun.then_some(t.len());
            Ok(t.tokens[before..].to_vec())
        })?;
        self.model.tell_of(&messages, options);
        Ok(added)
    }

    /// Whether the timeline stands in an assistant's turn that ids of the host have begun: the generation prompt of the
    /// model's template stands in it, at `from` or later, with whatever the template puts behind it (an empty thought), and no id that ends a
    /// turn follows.
    pub fn turn_is_begun(&self, from: usize, options: &RenderOptions) -> Result<bool> {
        let (tokenizer, template) = (self.model.tokenizer()?, self.model.template()?);
        let prompt = generation_prompt(tokenizer, template, options)?;
        if prompt.is_empty() {
            return Ok(false);
        }
        let control = prompt.iter().any(|&id| tokenizer.is_added(id));
        self.idle(|t, _| {
            let begins = |at: &usize| t.ids[*at..].starts_with(&prompt);
            let Some(at) = (from.min(t.len())..t.len()).rev().find(begins) else { return Ok(false) };
            let behind = &t.ids[at + prompt.len()..];
            // Without a token of its own a prompt is text that anybody may write: only the very end counts then.
            let begun = if control { !behind.iter().any(|id| self.model.ends_turn(*id)) } else { behind.is_empty() };
            if begun {
                t.turn_begun_at = Some(t.len());
            }
            Ok(begun)
        })
    }

    /// Keeps the first `len` tokens. More than there are is refused.
    pub fn truncate(&self, len: usize) -> Result<()> {
        self.idle(|t, _| {
            if len > t.len() {
                let why = format!("the session has {} tokens, {len} cannot be kept", t.len());
                return Err(Error::new(Fault::BadLength, why));
            }
            t.truncate(len);
            Ok(())
        })
    }

    /// A session with the same timeline on the same revision; the pages are shared until one writes.
    pub fn fork(&self) -> Result<Session> {
        let (timeline, revision) = self.idle(|t, revision| Ok((t.fork(), revision.clone())))?;
        Session::with(&self.model, revision, timeline)
    }

    /// Moves the session to the model's current revision; everything is computed again when needed.
    pub fn rebase(&self) -> Result<u64> {
        let current = self.model.current();
        self.idle(|t, revision| {
            t.forget_computed(0);
            *revision = current.clone();
            Ok(current.number)
        })
    }

    /// Keeps, from now on, the hidden state of every row that predicts an action token.
    pub fn keep_hidden(&self) -> Result<()> {
        self.idle(|t, _| {
            t.hidden.get_or_insert_default();
            Ok(())
        })
    }

    /// Takes what `keep_hidden` kept so far.
    pub fn take_hidden(&self) -> Result<Hidden> {
        self.idle(|t, _| Ok(t.hidden.as_mut().map(std::mem::take).unwrap_or_default()))
    }

    /// Starts to generate. The session is busy until the generation ends; dropping it ends it.
    pub fn generate(&self, options: GenerationOptions) -> Result<Generation> {
        options.check()?;
        check_ids(&options.stop_ids, self.model.config().vocab_size)
            .map_err(|e| e.within("generation options: stop_ids"))?;
        if options.vocabulary > 0 && !self.model.model().device.trains() {
            let why = "vocabulary: wanted 0 on a GPU, where every id may be drawn; load the model on the cpu backend";
            return Err(Error::new(Fault::UnsupportedBackend, why));
        }
        let outbox = Arc::new(Outbox::default());
        let cancel = Cancel::default();
        let mut stop_ids = if options.ignore_model_stops { Vec::new() } else { self.model.stop_ids().to_vec() };
        stop_ids.extend_from_slice(&options.stop_ids);
        let (source, seed) = (options.source, options.seed);
        let generating =
            Generating { options, stop_ids, n_sampled: 0, text: TextStream::new(), outbox: outbox.clone() };
        self.submit(&cancel, |t| {
            if t.len() == 0 {
                return Err(Error::new(Fault::EmptySession, "the session is empty; there is nothing to continue"));
            }
            if t.len() >= self.model.0.model.max_context() {
                let why = format!("the session has {} tokens and its context holds no more", t.len());
                return Err(Error::new(Fault::ContextFull, why));
            }
            // The last token's row must be computed (again) to sample after it.
            t.forget_computed(t.len() - 1);
            Ok(Work::Generate(Box::new(generating)))
        })?;
        Ok(Generation { engine: self.model.engine().clone(), outbox, cancel, source, seed })
    }

    /// Appends `ids` as the host's and gives each one's log-prob, given all before it, with the `top_k`
    /// likeliest tokens there. Blocks. The session must not be empty. On an error the timeline is as before.
    /// `BadOption` if `ids` times `top_k` is more than [`MAX_SCORE_ENTRIES`].
    pub fn score(&self, ids: &[i32], top_k: usize, cancel: &Cancel) -> Result<Vec<ScoreRow>> {
        let model = &self.model.0.model;
        if top_k > model.config.vocab_size {
            let why = format!("the {top_k} likeliest of {} tokens are wanted", model.config.vocab_size);
            return Err(Error::new(Fault::BadOption, why));
        }
        let entries = ids.len().saturating_mul(top_k);
        if entries > MAX_SCORE_ENTRIES {
            let why = format!(
                "the {top_k} likeliest tokens of {} ids are {entries} entries, allowed are {MAX_SCORE_ENTRIES}; score \
                 fewer ids at a time",
                ids.len()
            );
            return Err(Error::new(Fault::BadOption, why));
        }
        let (reply, answer) = bounded(1);
        self.submit(cancel, |t| {
            if t.len() == 0 {
                return Err(Error::new(Fault::EmptySession, "the session is empty; the first token has no log-prob"));
            }
            let from = t.len();
            t.append(ids, Source::Host, model.config.vocab_size, model.max_context())?;
            t.forget_computed(from - 1);
            Ok(Work::Score { from, top_k, rows: Vec::with_capacity(ids.len()), reply })
        })?;
        self.wait(answer)?
    }

    /// Computes all pending ids, so that forks made afterwards share what was computed. Blocks. Cancelled, it keeps what
    /// is computed already.
    pub fn prefill(&self, cancel: &Cancel) -> Result<()> {
        self.prefill_watched(cancel, &mut |_, _| true)
    }

    /// The same; `progress` is told ids computed and in all, on the calling thread, and may stop it by returning false.
    pub fn prefill_watched(&self, cancel: &Cancel, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        let Extent { pending, len, .. } = self.extent()?;
        let (cancel, first) = (cancel.inner(), len - pending);
        let mut stopped = false;
        let mut tell = |computed: usize| {
            if !progress(computed.saturating_sub(first).min(pending) as u64, pending as u64) {
                stopped = true;
                cancel.set();
            }
        };
        tell(first);
        let (told, computed) = unbounded();
        let (reply, answer) = bounded(1);
        self.submit(&cancel, |_| Ok(Work::Feed { next: None, told: Some(told), reply }))?;
        // It ends with the job, or with the engine, of which the answer tells.
        while let Ok(computed) = self.wait(computed.clone()) {
            tell(computed);
        }
        self.wait(answer)??;
        // Stopped at the last moment: the engine may have been done already, and the caller is told what he asked for.
        if stopped { Err(cancelled()) } else { Ok(()) }
    }

    /// Starts to compute all pending ids; the answer comes when they are. `next` wrote the token that follows
    /// the timeline, where it is known though not appended: its row's hidden state is kept as an action's.
    pub(crate) fn start_prefill(&self, cancel: &Cancel, next: Option<Source>) -> Result<Receiver<Result<()>>> {
        let (reply, answer) = bounded(1);
        self.submit(cancel, |_| Ok(Work::Feed { next, told: None, reply }))?;
        Ok(answer)
    }

    /// Waits for an answer, stepping the engine where the caller drives it.
    pub(crate) fn wait<T>(&self, answer: Receiver<T>) -> Result<T> {
        self.model.engine().wait(answer)
    }

    fn submit(&self, cancel: &Cancel, work: impl FnOnce(&mut Timeline) -> Result<Work>) -> Result<()> {
        let engine = self.model.engine();
        engine.check_alive()?;
        let job = {
            let mut slot = self.shared.slot.lock();
            let work = match &mut slot.timeline {
                Place::Idle(t) => work(t)?,
                Place::Busy => return Err(busy()),
                Place::Lost => return Err(lost()),
            };
            let Place::Idle(timeline) = std::mem::replace(&mut slot.timeline, Place::Busy) else { return Err(busy()) };
            Job::new(self.shared.clone(), slot.revision.clone(), cancel.clone(), timeline, work)
        };
        engine.submit(job)
    }
}

fn busy() -> Error {
    Error::new(Fault::SessionBusy, "the session is being worked on; wait for its generation to end, or cancel it")
}

fn cancelled() -> Error {
    Error::new(Fault::Cancelled, "the call was cancelled")
}

fn lost() -> Error {
    Error::new(Fault::Poisoned, "the session's timeline was lost in a failure of the engine; release it")
}
