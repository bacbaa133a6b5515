//! A session: one timeline, bound to one revision of one model.
//!
//! One call works on it at a time. While a generation or a score runs, the timeline is with the engine
//! and every other call is refused as busy, at once. Appending computes nothing: ids are pending until
//! something needs them.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::Arc;

use super::cancel::Cancel;
use super::controls::Controls;
use super::engine::Engine;
use super::generation::{Generation, Maker, Opening};
use super::generation_options::GenerationOptions;
use super::history::History;
use super::job::{Generating, Job, ScoreRow, Work};
use super::metrics::{Clock, Counters, add};
use super::model::ServedModel;
use super::outbox::Outbox;
use super::revision::Bound;
use super::slot::{Out, Slot};
use super::timeline::{Hidden, Mark, Timeline, Token, check_ids};
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::model::KvCache;
use crate::sync::atomic::Ordering;
use crate::text::chat::RenderOptions;
use crate::text::source::Source;
use crate::text::{TextUntilStop, generation_prompt};
use crossbeam::channel::{Receiver, bounded, unbounded};

/// Entries (`ids` times `top_k`) that one score may give: what a single call can make the host hold is bounded.
pub const MAX_SCORE_ENTRIES: usize = 1 << 24;

/// A session. Dropping it frees its pages, as soon as a generation that still runs on it has ended.
pub struct Session {
    pub(super) model: ServedModel,
    slot: Arc<Slot>,
    _counted: Counted,
}

/// One of the sessions that may exist on an engine.
pub(super) struct Counted(Arc<Counters>);

impl Counted {
    fn new(engine: &Engine) -> Result<Counted> {
        let (counters, limit) = (engine.counters(), engine.options().max_sessions as u64);
        let below = |n: u64| if n < limit { Some(n + 1) } else { None };
        if counters.sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).is_err() {
            let why = format!("{limit} sessions exist, and the engine was made for as many; release one");
            return Err(Error::new(Fault::SessionBudget, why));
        }
        Ok(Counted(counters.clone()))
    }

    /// `n` of them, or none.
    pub(super) fn several(engine: &Engine, n: usize) -> Result<Vec<Counted>> {
        let (exist, limit) = (engine.counters().sessions.load(Ordering::Relaxed), engine.options().max_sessions as u64);
        let room = limit.saturating_sub(exist);
        if n as u64 > room {
            let why = format!(
                "n: wanted at most {room}, found {n}: each continuation is a session, {exist} exist, and the engine was made \
                 for {limit}"
            );
            return Err(Error::new(Fault::SessionBudget, why));
        }
        let mut all = memory::reserved(n, "the continuations of a session")?;
        for _ in 0..n {
            // Others may have come between.
            all.push(Counted::new(engine)?);
        }
        Ok(all)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
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

impl Session {
    /// An empty session on the model's current revision.
    pub fn new(model: &ServedModel) -> Result<Session> {
        Session::with(model, model.0.lineage.bind(), Timeline::new(KvCache::new(&model.0.pool)))
    }

    /// An empty session on the newest generation of an adapter of the model.
    ///
    /// Errors: `UnknownAdapter`; `AdapterMismatch` where other base weights were published since it was loaded.
    pub fn with_adapter(model: &ServedModel, name: &str) -> Result<Session> {
        Session::with(model, model.0.lineage.bind_named(name)?, Timeline::new(KvCache::new(&model.0.pool)))
    }

    fn with(model: &ServedModel, revision: Bound, timeline: Timeline) -> Result<Session> {
        Ok(Session::counted(model, revision, timeline, Counted::new(model.engine())?))
    }

    fn counted(model: &ServedModel, revision: Bound, timeline: Timeline, counted: Counted) -> Session {
        Session { model: model.clone(), slot: Slot::new(&model.0.slots, timeline, revision), _counted: counted }
    }

    /// Its model.
    pub fn model(&self) -> &ServedModel {
        &self.model
    }

    pub(super) fn idle<T>(&self, f: impl FnOnce(&mut Timeline) -> Result<T>) -> Result<T> {
        self.slot.resting(|timeline, _| f(timeline))
    }

    /// The revision it is bound to.
    pub fn revision(&self) -> Bound {
        self.slot.revision()
    }

    /// Tokens in the timeline.
    pub fn len(&self) -> Result<usize> {
        self.idle(|t| Ok(t.len()))
    }

    /// Whether the timeline is empty.
    pub fn is_empty(&self) -> Result<bool> {
        self.idle(|t| Ok(t.len() == 0))
    }

    /// How long the timeline is, how much of it is still to be computed, and how much fits behind it.
    pub fn extent(&self) -> Result<Extent> {
        let context = self.model.0.model.max_context();
        self.idle(|t| {
            let len = t.len();
            Ok(Extent { len, pending: len - t.kv.len(), room: context.saturating_sub(len) })
        })
    }

    /// Whether pages for `n` tokens more are free, so that nobody has to give up any.
    pub(crate) fn finds_pages(&self, n: usize) -> Result<bool> {
        self.idle(|t| Ok(t.kv.lacking(n) <= t.kv.available()))
    }

    /// All tokens with what is known of them.
    pub fn tokens(&self) -> Result<Vec<Token>> {
        self.idle(|t| memory::copied(&t.tokens, "the tokens of a session"))
    }

    /// Rows that forwards computed for it so far.
    pub fn n_computed(&self) -> Result<u64> {
        self.idle(|t| Ok(t.n_computed))
    }

    /// Makes the timeline equal to `ids`: keeps the longest common prefix and appends the rest as the
    /// host's. Returns how many tokens need no computing again.
    pub fn sync(&self, ids: &[i32]) -> Result<usize> {
        self.idle(|t| {
            let config = &self.model.0.model;
            check_ids(ids, config.config.vocab_size)?;
            if ids.len() > config.max_context() {
                let why = format!("{} tokens are wanted, the context holds {}", ids.len(), config.max_context());
                return Err(Error::new(Fault::ContextFull, why));
            }
            let common = t.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
            if common < t.len().min(ids.len()) {
                add(&self.model.engine().counters().prefix_breaks, 1);
            }
            t.truncate(common);
            t.append(&ids[common..], Source::Host, config.config.vocab_size, config.max_context())?;
            Ok(t.kv.len())
        })
    }

    /// Appends ids written by `source`. Computes nothing yet.
    pub fn append(&self, ids: &[i32], source: Source) -> Result<()> {
        let model = &self.model.0.model;
        self.idle(|t| t.append(ids, source, model.config.vocab_size, model.max_context()))
    }

    /// Appends already sampled tokens with their log-probs, as another session sampled them.
    pub fn append_tokens(&self, tokens: &[Token]) -> Result<()> {
        let model = &self.model.0.model;
        let ids: Vec<i32> = tokens.iter().map(|t| t.id).collect();
        self.idle(|t| {
            let before = t.len();
            t.append(&ids, Source::Host, model.config.vocab_size, model.max_context())?;
            t.tokens[before..].copy_from_slice(tokens);
            Ok(())
        })
    }

    /// Whether the timeline stands in an assistant's turn that ids of the host have begun: the generation prompt of the
    /// model's template stands in it, at `from` or later, with whatever the template puts behind it (an empty thought), and no id that ends a
    /// turn follows.
    pub fn turn_is_begun(&self, from: usize, options: &RenderOptions) -> Result<bool> {
        self.idle(|t| {
            let begun = turn_opening(&self.model, &t.ids, from, options)?.is_some();
            if begun {
                t.turn_begun_at = Some(t.len());
            }
            Ok(begun)
        })
    }

    /// Keeps the first `len` tokens. More than there are is refused.
    pub fn truncate(&self, len: usize) -> Result<()> {
        self.idle(|t| {
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
        self.fork_counted(Counted::new(self.model.engine())?)
    }

    /// The same where the session is counted already.
    pub(super) fn fork_counted(&self, counted: Counted) -> Result<Session> {
        let (timeline, revision) = self.slot.resting(|t, revision| Ok((t.fork()?, revision.clone())))?;
        Ok(Session::counted(&self.model, revision, timeline, counted))
    }

    /// Where the timeline stands now, to be forked at when it has gone on.
    pub(crate) fn mark(&self) -> Result<Mark> {
        self.idle(|t| Ok(t.mark()))
    }

    /// The same as [`Session::fork`] of what stood at a mark, or as far as the timeline reaches. Hidden states that were kept
    /// for positions from `hidden_from` on come along, and the fork keeps further ones.
    pub(crate) fn fork_at(&self, at: Mark, hidden_from: usize) -> Result<Session> {
        let fork = |t: &mut Timeline, revision: &mut Bound| Ok((t.fork_at(at, hidden_from)?, revision.clone()));
        let (timeline, revision) = self.slot.resting(fork)?;
        Session::with(&self.model, revision, timeline)
    }

    /// Moves the session to the model's current revision, or to the newest generation of the adapter that it is on;
    /// everything is computed again when needed.
    pub fn rebase(&self) -> Result<u64> {
        let lineage = &self.model.0.lineage;
        let revision = self.revision();
        self.rebase_to(match &revision.name {
            None => lineage.bind(),
            Some(name) => lineage.bind_named(name)?,
        })
    }

    /// Gives its pages to others; what was computed is computed again when needed, on the same revision.
    pub(crate) fn give_up_pages(&self) -> Result<()> {
        self.idle(|t| {
            t.give_up_pages();
            Ok(())
        })
    }

    /// Moves the session to the newest generation of an adapter, or with None to the model's current revision. Where it is
    /// there already nothing is computed again.
    ///
    /// Errors: as [`Session::with_adapter`]; the session then stays where it was.
    pub fn use_adapter(&self, name: Option<&str>) -> Result<u64> {
        let lineage = &self.model.0.lineage;
        let wanted = match name {
            None => lineage.bind(),
            Some(name) => lineage.bind_named(name)?,
        };
        let is_there = Arc::ptr_eq(self.revision().revision(), wanted.revision());
        if is_there { Ok(wanted.number) } else { self.rebase_to(wanted) }
    }

    fn rebase_to(&self, wanted: Bound) -> Result<u64> {
        self.slot.resting(|t, revision| {
            t.forget_computed(0);
            *revision = wanted.clone();
            Ok(wanted.number)
        })
    }

    /// Keeps, from now on, the hidden state of every row that predicts an action token.
    pub fn keep_hidden(&self) -> Result<()> {
        self.idle(|t| {
            t.begin_to_keep_hidden();
            Ok(())
        })
    }

    /// Takes what `keep_hidden` kept so far.
    pub fn take_hidden(&self) -> Result<Hidden> {
        self.idle(|t| Ok(t.hidden.as_mut().map(std::mem::take).unwrap_or_default()))
    }

    /// The same after a move to an adapter, as [`Session::use_adapter`] does; what is refused leaves the session where it was.
    pub fn generate_on(&self, adapter: &str, options: GenerationOptions) -> Result<Generation> {
        self.check_generates(&options)?;
        self.use_adapter(Some(adapter))?;
        self.generate(options)
    }

    /// Refuses to continue as these options say, or at all.
    pub(super) fn check_generates(&self, options: &GenerationOptions) -> Result<()> {
        self.check_options(options)?;
        self.model.engine().check_alive()?;
        self.idle(|t| self.check_goes_on(t))
    }

    fn check_options(&self, options: &GenerationOptions) -> Result<()> {
        options.check(self.model.config().vocab_size)?;
        if !options.stop_strings.is_empty() {
            self.model.tokenizer().map_err(|e| e.within("generation options: stop_strings"))?;
        }
        check_ids(&options.stop_ids, self.model.config().vocab_size)
            .map_err(|e| e.within("generation options: stop_ids"))?;
        if options.vocabulary > 0 && !self.model.model().device.trains() {
            let why = "vocabulary: wanted 0 on a GPU, where every id may be drawn; load the model on the cpu backend";
            return Err(Error::new(Fault::UnsupportedBackend, why));
        }
        let differs = options.controls.differs_from(&Controls::default());
        if let (Some(name), true) = (differs, self.model.model().device.runs_ahead()) {
            let why =
                format!("{name}: wanted unset on a GPU, which draws without it; load the model on the cpu backend");
            return Err(Error::new(Fault::UnsupportedBackend, why));
        }
        Ok(())
    }

    fn check_goes_on(&self, t: &Timeline) -> Result<()> {
        if t.len() == 0 {
            return Err(Error::new(Fault::EmptySession, "the session is empty; there is nothing to continue"));
        }
        if t.len() >= self.model.0.model.max_context() {
            let why = format!("the session has {} tokens and its context holds no more", t.len());
            return Err(Error::new(Fault::ContextFull, why));
        }
        Ok(())
    }

    /// Starts to generate. The session is busy until the generation ends; dropping it ends it.
    pub fn generate(&self, options: GenerationOptions) -> Result<Generation> {
        let clock = Clock::begin();
        self.check_options(&options)?;
        let outbox = Arc::new(Outbox::default());
        let (cancel, until) = (options.stopping(), options.until());
        let mut stop_ids = if options.ignore_model_stops { Vec::new() } else { self.model.stop_ids().to_vec() };
        stop_ids.extend_from_slice(&options.stop_ids);
        let (source, seed) = (options.source, options.seed);
        let text = TextUntilStop::new(self.model.shared_tokenizer(), &options.stop_strings)?;
        let waiting = outbox.clone();
        let mut opening = Opening::default();
        let work = self.submit(&cancel, |t| {
            self.check_goes_on(t)?;
            opening = Opening::behind(&t.ids, self.model.0.tokenizer.as_deref(), &t.tools.0)?;
            let history = History::of(&options.controls, &t.tokens, &t.ids)?;
            let generating =
                Generating { options, stop_ids, n_sampled: 0, until, history, text, outbox: waiting, clock };
            // The last token's row must be computed (again) to sample after it.
            t.forget_computed(t.len() - 1);
            Ok(Work::Generate(Box::new(generating)))
        })?;
        Ok(Generation {
            engine: self.model.engine().clone(),
            outbox,
            cancel,
            source,
            seed,
            maker: Maker::Engine(Arc::downgrade(&self.slot), work),
            tokenizer: self.model.0.tokenizer.clone(),
            opening,
        })
    }

    /// Appends `ids` as the host's and gives each one's log-prob, given all before it, with the `top_k`
    /// likeliest tokens there. Blocks. The session must not be empty. On an error the timeline is as before.
    /// `BadOption` if `ids` times `top_k` is more than [`MAX_SCORE_ENTRIES`].
    pub fn score(&self, ids: &[i32], top_k: usize, cancel: &Cancel) -> Result<Vec<ScoreRow>> {
        self.wait(self.start_score(ids, top_k, cancel)?)?
    }

    /// The same without waiting: the answer is the engine's to give.
    pub(crate) fn start_score(
        &self,
        ids: &[i32],
        top_k: usize,
        cancel: &Cancel,
    ) -> Result<Receiver<Result<Vec<ScoreRow>>>> {
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
            Ok(Work::Score { from, top_k, rows: memory::reserved(ids.len(), "the rows of a score")?, reply })
        })?;
        Ok(answer)
    }

    /// Computes all pending ids, so that forks made afterwards share what was computed. Blocks. Cancelled, it keeps what
    /// is computed already.
    pub fn prefill(&self, cancel: &Cancel) -> Result<()> {
        self.prefill_watched(cancel, &mut |_, _| true)
    }

    /// The same; `progress` is told ids computed and in all, on the calling thread, and may stop it by returning false.
    pub fn prefill_watched(&self, cancel: &Cancel, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        self.prefill_first(0, cancel, progress)
    }

    /// The same at a priority.
    pub(super) fn prefill_first(
        &self,
        priority: i32,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<()> {
        let Extent { pending, len, .. } = self.extent()?;
        let (cancel, first) = (cancel.inner(), len - pending);
        // What is computed again, of pages that were given up, is no step back.
        let (mut stopped, mut most, is_whole) = (false, first, Cell::new(pending == 0));
        let mut tell = |computed: usize| {
            most = most.max(computed);
            is_whole.set(most >= len);
            if !progress((most - first).min(pending) as u64, pending as u64) {
                stopped = true;
                cancel.set();
            }
        };
        tell(first);
        let (told, computed) = unbounded();
        let (reply, answer) = bounded(1);
        self.submit(&cancel, |_| Ok(Work::Feed { next: None, priority, told: Some(told), reply }))?;
        // It ends with the job, or with the engine, of which the answer tells.
        while let Ok(computed) = self.wait(computed.clone()) {
            tell(computed);
        }
        self.wait(answer)??;
        // The last of it may have been found.
        if !is_whole.get() {
            tell(len);
        }
        // Stopped at the last moment: the engine may have been done already, and the caller is told what he asked for.
        if stopped { Err(cancelled()) } else { Ok(()) }
    }

    /// Starts to compute all pending ids; the answer comes when they are. `next` wrote the token that follows
    /// the timeline, where it is known though not appended: its row's hidden state is kept as an action's.
    pub(crate) fn start_prefill(&self, cancel: &Cancel, next: Option<Source>) -> Result<Receiver<Result<()>>> {
        let (reply, answer) = bounded(1);
        self.submit(cancel, |_| Ok(Work::Feed { next, priority: 0, told: None, reply }))?;
        Ok(answer)
    }

    /// Waits for an answer, stepping the engine where the caller drives it.
    pub(crate) fn wait<T>(&self, answer: Receiver<T>) -> Result<T> {
        self.model.engine().wait(&answer)
    }

    /// Gives the engine work on the timeline; returns what tells the work from other work.
    fn submit(&self, cancel: &Cancel, work: impl FnOnce(&mut Timeline) -> Result<Work>) -> Result<u64> {
        let engine = self.model.engine();
        engine.check_alive()?;
        let Out { work: number, timeline, revision, prepared } = self.slot.take(work)?;
        let model = self.model.0.model.clone();
        engine.submit(Job::new(model, self.slot.clone(), revision, cancel.clone(), timeline, prepared))?;
        Ok(number)
    }
}

/// Where ids of the host's begin the assistant's turn that `ids` stand in, at `from` or later, by the template of a model; None
/// where they do not.
pub(crate) fn turn_opening(
    model: &ServedModel,
    ids: &[i32],
    from: usize,
    options: &RenderOptions,
) -> Result<Option<usize>> {
    let (tokenizer, template) = (model.tokenizer()?, model.template()?);
    let prompt = generation_prompt(tokenizer, template, options)?;
    let begins = |at: &usize| ids[*at..].starts_with(&prompt);
    let at = (from.min(ids.len())..ids.len()).rev().find(begins).filter(|_| !prompt.is_empty());
    let is_open = |at: &usize| {
        let behind = &ids[at + prompt.len()..];
        // Without a token of its own a prompt is text that anybody may write: only the very end counts then.
        match prompt.iter().any(|&id| tokenizer.is_added(id)) {
            true => !behind.iter().any(|id| model.ends_turn(*id)),
            false => behind.is_empty(),
        }
    };
    Ok(at.filter(is_open))
}

fn cancelled() -> Error {
    Error::new(Fault::Cancelled, "the call was cancelled")
}
