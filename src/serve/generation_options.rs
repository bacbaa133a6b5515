//! How to generate: how much, how it is drawn, what ends it.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::cancel::Cancel;
use super::controls::Controls;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::text::check_stop_strings;
use crate::text::source::Source;

/// Log-probs beside each token at most.
pub const MAX_TOP_LOGPROBS: usize = 128;

/// The priorities that there are.
const PRIORITIES: RangeInclusive<i32> = -100..=100;

/// How to generate. The default is the distribution itself under seed 0, the same in every run;
/// `ServedModel::generation_options` has what a model's makers advise and a fresh seed.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Most tokens to sample; 0: up to the context.
    pub max_tokens: usize,
    /// Temperature and cuts.
    pub sampling: Sampling,
    /// What changes the distribution besides.
    pub controls: Controls,
    /// Draws are keyed by (seed, position), so they depend on neither batch nor rewind.
    pub seed: u64,
    /// Ids that end the generation besides the model's own; the id that ends it is part of the timeline.
    pub stop_ids: Vec<i32>,
    /// Texts that end the generation: the text that is handed out ends before the first of them, and ids go on to the token that
    /// completes it. Special tokens are no text. At most 128, of 1 to 4096 bytes each; they need a tokenizer.
    pub stop_strings: Vec<String>,
    /// How long it may take from its beginning on, prompt and waits included; it ends behind the last token within, which may be
    /// none. None: as long as it takes.
    pub time_limit: Option<Duration>,
    /// A flag that stops it as [`Generation::cancel`](super::Generation::cancel) does, and whatever else was given it.
    pub cancel: Option<Cancel>,
    /// How many of the likeliest ids are told beside each token, with their log-probs at temperature 1; at most 128.
    pub top_logprobs: usize,
    /// Whether the model's own stop ids are not obeyed.
    pub ignore_model_stops: bool,
    /// Who is written down as the author.
    pub source: Source,
    /// Those of a higher one are served first, and get the pages where there are not enough for all; from -100 to 100.
    pub priority: i32,
    /// Draw from the ids below this alone, as if the vocabulary had no more: log-probs are of what is drawn from. 0: all.
    /// For models of the cpu backend.
    pub vocabulary: usize,
}

impl Default for GenerationOptions {
    fn default() -> GenerationOptions {
        GenerationOptions {
            max_tokens: 0,
            sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
            controls: Controls::default(),
            seed: 0,
            stop_ids: Vec::new(),
            stop_strings: Vec::new(),
            time_limit: None,
            cancel: None,
            top_logprobs: 0,
            ignore_model_stops: false,
            source: Source::Student,
            priority: 0,
            vocabulary: 0,
        }
    }
}

impl GenerationOptions {
    /// When its time is up, of a generation that begins now; None where no clock comes so far.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.time_limit.and_then(|limit| Instant::now().checked_add(limit))
    }

    /// What stops a generation of its own: a flag that is set with the given one.
    pub(crate) fn stopping(&self) -> Cancel {
        self.cancel.as_ref().map_or_else(Cancel::default, Cancel::inner)
    }

    /// Refuses values outside their range, for a model of so many ids.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        let refuse = |what: &str, found: f32| Err(Error::new(Fault::BadOption, format!("{what}, found {found}")));
        let Sampling { temperature, top_p, .. } = self.sampling;
        if !(0.0..=1e4).contains(&temperature) {
            return refuse("temperature must lie between 0 and 10000", temperature);
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p must lie above 0 and at most 1", top_p);
        }
        let most = MAX_TOP_LOGPROBS.min(vocabulary);
        if self.top_logprobs > most {
            let why = format!("top_logprobs: wanted a number from 0 to {most}, found {}", self.top_logprobs);
            return Err(Error::new(Fault::BadOption, why));
        }
        if !PRIORITIES.contains(&self.priority) {
            let (least, most) = (PRIORITIES.start(), PRIORITIES.end());
            let why = format!("priority: wanted a number from {least} to {most}, found {}", self.priority);
            return Err(Error::new(Fault::BadOption, why));
        }
        check_stop_strings(&self.stop_strings)?;
        self.controls.check(vocabulary)
    }
}
