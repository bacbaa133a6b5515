//! How to generate: how much, how it is drawn, what ends it.
#![forbid(unsafe_code)]

use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::text::source::Source;

/// How to generate. The default is the distribution itself under seed 0, the same in every run;
/// `ServedModel::generation_options` has what a model's makers advise and a fresh seed.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Most tokens to sample; 0: up to the context.
    pub max_tokens: usize,
    /// Temperature and cuts.
    pub sampling: Sampling,
    /// Draws are keyed by (seed, position), so they depend on neither batch nor rewind.
    pub seed: u64,
    /// Ids that end the generation besides the model's own; the id that ends it is part of the timeline.
    pub stop_ids: Vec<i32>,
    /// Whether the model's own stop ids are not obeyed.
    pub ignore_model_stops: bool,
    /// Who is written down as the author.
    pub source: Source,
    /// Draw from the ids below this alone, as if the vocabulary had no more: log-probs are of what is drawn from. 0: all.
    /// For models of the cpu backend.
    pub vocabulary: usize,
}

impl Default for GenerationOptions {
    fn default() -> GenerationOptions {
        GenerationOptions {
            max_tokens: 0,
            sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
            seed: 0,
            stop_ids: Vec::new(),
            ignore_model_stops: false,
            source: Source::Student,
            vocabulary: 0,
        }
    }
}

impl GenerationOptions {
    /// Refuses values outside their range.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str, found: f32| Err(Error::new(Fault::BadOption, format!("{what}, found {found}")));
        let Sampling { temperature, top_p, .. } = self.sampling;
        if !(0.0..=1e4).contains(&temperature) {
            return refuse("temperature must lie between 0 and 10000", temperature);
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p must lie above 0 and at most 1", top_p);
        }
        Ok(())
    }
}
