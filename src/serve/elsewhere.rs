//! A generation whose tokens are made outside the engine: somebody else says a turn, and whoever pulls it sees what it would see
//! of a model's.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::cancel::Cancel;
use super::engine::Engine;
use super::generation::{Generation, Maker, Opening, Speaker};
use super::outbox::{Finish, Outbox, Rest, Sampled};
use super::timeline::Token;
use crate::error::Result;
use crate::sync::Mutex;
use crate::text::source::Source;
use crate::text::{TextUntilStop, Tokenizer};

/// Where what is said is put, once and as a whole. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Feed {
    outbox: Arc<Outbox>,
    /// a copy for the record: whoever pulls takes the tokens away
    said: Arc<Mutex<Vec<Token>>>,
}

impl Feed {
    /// Puts a whole turn down; its first token stands at `position` of the timeline that is shown to whoever pulls. It ends
    /// with the token that completes a stop string, whatever was said behind it.
    pub(crate) fn say(&self, mut tokens: Vec<Token>, position: usize, mut text: TextUntilStop, finish: Finish) {
        let mut all = Vec::with_capacity(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            if text.found().is_some() {
                break;
            }
            all.push(Sampled {
                id: token.id,
                logprob: token.logprob,
                sampled_logprob: token.sampled_logprob,
                top: Vec::new(),
                position: (position + i) as u64,
                revision: token.revision,
                text: text.push(token.id),
                stop: text.found(),
            });
        }
        tokens.truncate(all.len());
        let rest = Rest { text: text.finish(), stop: text.found() };
        let finish = if rest.stop.is_some() { Finish::Stop } else { finish };
        let mut said = self.said.lock();
        *said = tokens;
        self.outbox.put_whole(all, finish, rest);
    }

    /// Takes back what was said and nobody has heard, as if it had been cancelled before.
    pub(crate) fn unsay(&self) {
        let mut said = self.said.lock();
        if self.outbox.take_back() {
            said.clear();
        }
    }

    /// Ends it with nothing said.
    pub(crate) fn end(&self, end: Result<Finish>) {
        self.outbox.end(end, Rest::default());
    }

    /// What was said; None while it is still to come.
    pub(crate) fn said(&self) -> Option<Vec<Token>> {
        self.outbox.has_ended().then(|| self.said.lock().clone())
    }

    /// The generation that pulls from it. `engine` is stepped meanwhile where its caller drives it.
    pub(crate) fn generation(
        &self,
        engine: &Engine,
        speaker: Arc<dyn Speaker>,
        (source, seed, cancel): (Source, u64, Cancel),
        (tokenizer, opening): (Option<Arc<Tokenizer>>, Opening),
    ) -> Generation {
        Generation {
            engine: engine.clone(),
            outbox: self.outbox.clone(),
            cancel,
            source,
            seed,
            maker: Maker::Elsewhere(speaker),
            tokenizer,
            opening,
        }
    }
}
