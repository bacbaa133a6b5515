//! What an applied step made, until it is published: looked at before anybody gets it.
#![forbid(unsafe_code)]

use super::config::Config;
use super::probe::Expected;
use crate::error::{Error, Fault, Result};
use crate::model::Parameters;

/// How far a step moves the student, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moved {
    /// The KL from the revision that is served to what the step made.
    pub(super) kl: f64,
    /// What the served revision knows: the KL from it to an even guess over the vocabulary.
    pub(super) known: f64,
}

/// Beyond how many nats a token publish refuses a step. A student that says something else altogether is no further from what it
/// said than an even guess is, so a step that takes more than half of that way has destroyed what it knew. Who knows next to
/// nothing has little to lose: below [`LEAST_BOUND`] nothing is refused.
fn bound(config: &Config, known: f64) -> f64 {
    config.refuse_update_kl.unwrap_or_else(|| (known / 2.0).max(LEAST_BOUND))
}

/// A student that begins at random moves this far in steps that teach it: twice `max_update_kl`, beyond which the log warns.
pub(super) const LEAST_BOUND: f64 = 2.0;

/// The student's parameters after an applied step.
pub(super) struct Unpublished {
    pub(super) parameters: Parameters,
    /// whether all of them are numbers
    pub(super) are_finite: bool,
    /// from the revision that is served to them; None where it is not known
    pub(super) moved: Option<Moved>,
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
        // Where nobody measures, nobody knows.
        if config.refuse_update_kl == Some(0.0) || config.update_kl_tokens == 0 {
            return Ok(());
        }
        let found = match self.moved {
            None => "an unknown KL".to_string(),
            Some(Moved { kl, known }) if kl > bound(config, known) => format!("a KL of {kl:.4} nats a token"),
            Some(_) => return Ok(()),
        };
        let most = match (config.refuse_update_kl, self.moved) {
            (Some(most), _) => format!("refuse_update_kl is {most}"),
            (None, Some(Moved { known, .. })) => format!(
                "refuse_update_kl is null, which is {:.4}: half of the {known:.4} that lie between it and an even guess, at least \
                 {LEAST_BOUND}",
                bound(config, known)
            ),
            (None, None) => "refuse_update_kl is null".to_string(),
        };
        let why = format!(
            "the student moved by {found} from the revision that is served, {most}; go back to that revision, resume the last \
             checkpoint, or publish anyway"
        );
        Err(Error::new(Fault::UpdateTooFar, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Parameters, Weights};
    use serde_json::json;

    #[test]
    fn what_is_refused_by_default_goes_by_what_the_student_knew() {
        let model = json!({
            "model_type": "qwen3", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 8,
        });
        let model = crate::model::ModelConfig::from_json(&model).unwrap();
        let of = |settings: serde_json::Value, moved: Option<(f64, f64)>, are_finite: bool| {
            let parameters = Parameters::Weights(Weights::zeros(&model).unwrap());
            let moved = moved.map(|(kl, known)| Moved { kl, known });
            let step = Unpublished { parameters, are_finite, moved, probe: None };
            step.check(&Config::from_value(&settings).unwrap()).map_err(|e| (e.fault(), e.message().to_string()))
        };
        let refused = |settings, moved| of(settings, moved, true).err().map(|e| e.0) == Some(Fault::UpdateTooFar);
        let default = || json!({});
        // A student of 150,000 ids that is sure of them; one of 64 ids; one that knows next to nothing.
        assert!(!refused(default(), Some((5.0, 10.9))) && refused(default(), Some((5.5, 10.9))));
        assert!(!refused(default(), Some((2.4, 4.9))) && refused(default(), Some((2.5, 4.9))));
        assert!(!refused(default(), Some((2.0, 0.1))) && refused(default(), Some((2.1, 0.1))));
        assert!(refused(default(), None), "no number");
        assert!(!refused(json!({"update_kl_tokens": 0}), None) && !refused(json!({"refuse_update_kl": 0}), None));
        let given = || json!({"refuse_update_kl": 7});
        assert!(!refused(given(), Some((7.0, 3.0))) && refused(given(), Some((7.1, 30.0))));
        let (_, message) = of(default(), Some((6.0, 10.0)), true).unwrap_err();
        assert!(message.contains("refuse_update_kl is null, which is 5.0000"), "{message}");
        for settings in [default(), json!({"refuse_update_kl": 0}), json!({"update_kl_tokens": 0})] {
            assert_eq!(of(settings, Some((0.1, 1.0)), false).unwrap_err().0, Fault::NotFinite);
        }
    }
}
