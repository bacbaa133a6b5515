//! What an applied step made, until it is published: looked at before anybody gets it.
#![forbid(unsafe_code)]

use super::config::Config;
use super::probe::Expected;
use crate::error::{Error, Fault, Result};
use crate::model::Parameters;

/// The student's parameters after an applied step.
pub(super) struct Unpublished {
    pub(super) parameters: Parameters,
    /// whether all of them are numbers
    pub(super) are_finite: bool,
    /// from the revision that is served to them; None where it is not known
    pub(super) update_kl: Option<f64>,
    /// what serving them is to say
    pub(super) probe: Option<Expected>,
}

impl Unpublished {
    /// Refuses what must not be served: nor may it take the place of the last good checkpoint.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        if !self.are_finite {
            let why = "the last step made weights that are not finite, which are never served; go back to the revision that is \
                 served, or resume the last checkpoint";
            return Err(Error::new(Fault::NotFinite, why));
        }
        let bound = config.refuse_update_kl;
        // Where nobody measures, nobody knows.
        if bound == 0.0 || config.update_kl_tokens == 0 || self.update_kl.is_some_and(|kl| kl <= bound) {
            return Ok(());
        }
        let found = self.update_kl.map_or("an unknown KL".to_string(), |kl| format!("a KL of {kl:.4} nats a token"));
        let why = format!(
            "the student moved by {found} from the revision that is served, refuse_update_kl is {bound}; go \
             back to that revision, resume the last checkpoint, or publish anyway"
        );
        Err(Error::new(Fault::UpdateTooFar, why))
    }
}
