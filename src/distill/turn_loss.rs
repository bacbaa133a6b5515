//! The loss of one actor's turns: its words in documents and traces, and what is refused under a name.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::document::{bad, fields, join, name_of, number, word};
use super::knobs::Sampling;
use crate::backend::ops::{AdvantageShape, Clip, Loss, Needs, PolicyGradient, Ratio, Reference, Tail};
use crate::error::{Error, Fault, Result};

/// The loss of one actor's turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnLoss {
    /// Which loss; None for no loss.
    pub kind: Option<Loss>,
    /// Its factor, above 0.
    pub weight: f64,
}

/// Words that stand for a loss in documents; one that has a number of its own stands in an object, `{"jsd": 0.9}`.
const LOSSES: &[(&str, Option<Loss>)] = &[
    ("none", None),
    ("reverse-kl", Some(Loss::ReverseKl)),
    ("forward-kl", Some(Loss::ForwardKl)),
    ("jsd", Some(Loss::JensenShannon(0.5))),
    ("cross-entropy", Some(Loss::CrossEntropy)),
    ("sampled-reverse-kl", Some(Loss::SampledReverseKl)),
    ("k2", Some(Loss::K2)),
    ("weighted-k3", Some(Loss::WeightedK3)),
    ("policy-gradient", Some(Loss::PolicyGradient(UNSET))),
];

/// A policy gradient whose settings are still to be read.
const UNSET: PolicyGradient = PolicyGradient {
    asks_teacher: true,
    reference: Reference::Frozen,
    shape: AdvantageShape::Identity,
    ratio: Ratio::None,
    clip: Clip::None,
    dual_clip: 0.0,
};

/// What is known under a name and is not what the name promises.
const REFUSED: &[(&str, &str)] = &[
    (
        "k1",
        "the gradient of ln p - ln q at the sampled token is zero on average, so it teaches nothing; its value is what \
         sampled-reverse-kl reports, whose gradient is that of the mean",
    ),
    (
        "k3",
        "the gradient of q/p - 1 - ln(q/p) at the sampled token is that of the forward KL, so it is no reverse KL; use \
         weighted-k3, which differentiates the ratio too, sampled-reverse-kl, or reverse-kl where the teacher gives distributions",
    ),
    (
        "top-k-policy-gradient",
        "a divergence over the teacher's top ids is no advantage of the token that was sampled; use reverse-kl, which is \
         differentiated over those ids and a tail",
    ),
];

pub(super) const TAILS: &[(&str, Tail)] =
    &[("bucket", Tail::Bucket), ("renormalised", Tail::Renormalised), ("truncated", Tail::Truncated)];

impl TurnLoss {
    /// No loss.
    pub const NONE: TurnLoss = TurnLoss { kind: None, weight: 1.0 };

    /// The word that stands for the loss in traces.
    pub fn name(self) -> &'static str {
        match self.kind {
            Some(Loss::JensenShannon(_)) => "jsd",
            Some(Loss::PolicyGradient(_)) => "policy-gradient",
            kind => name_of(kind, LOSSES),
        }
    }

    /// What its tokens ask of a teacher.
    pub fn needs(self) -> Needs {
        self.kind.map_or(Needs::Nothing, Loss::needs)
    }

    /// Whether its tokens ask for a teacher.
    pub fn needs_teacher(self) -> bool {
        self.needs() != Needs::Nothing
    }

    /// The kernel's form that is read.
    pub(super) fn kernel_to_json(self) -> Value {
        match self.kind {
            // As it was written: an f32 has no more digits than that.
            Some(Loss::JensenShannon(share)) => json!({"jsd": share.to_string().parse::<f64>().unwrap_or(0.5)}),
            _ => json!(self.name()),
        }
    }

    /// Takes the kernel written at `path`.
    pub(super) fn set_kernel(&mut self, value: &Value, path: &str) -> Result<()> {
        if let Some((name, why)) = value.as_str().and_then(|name| REFUSED.iter().find(|(known, _)| *known == name)) {
            return Err(Error::new(Fault::UnsupportedMethod, format!("{path}: {name} is not built: {why}")));
        }
        self.kind = match value {
            Value::Object(_) => {
                let map = fields(value, path, &["jsd"])?;
                let share = map.get("jsd").ok_or_else(|| bad(value, path, "a loss's name, or {\"jsd\": share}"))?;
                let wanted = "a number from 0.01 to 0.99 (for the ends take forward-kl and reverse-kl: divided by the share, it tends to them)";
                let share = number(share, &join(path, "jsd"), wanted, |x| (0.01..=0.99).contains(&x))?;
                Some(Loss::JensenShannon(share as f32))
            }
            _ => word(value, path, LOSSES)?,
        };
        Ok(())
    }

    /// Refuses a loss of sampled tokens where the student's draws are not those of its distribution.
    pub(super) fn check_of_student(self, sampling: Sampling) -> Result<()> {
        let is_whole = (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 0, 1.0);
        match self.kind.filter(|kind| kind.is_sampled()) {
            Some(_) if !is_whole => {
                let why = format!(
                    "student_turns.kernel: {} is an average over what the student draws at temperature 1 without cuts, and \
                     sampling says otherwise; use reverse-kl, or sampling.temperature 1, top_k 0, top_p 1",
                    self.name()
                );
                Err(Error::new(Fault::UnsupportedMethod, why))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a loss of sampled tokens where nothing is sampled from the student.
    pub(super) fn check_of_others(self, path: &str) -> Result<()> {
        match self.kind.filter(|kind| kind.is_sampled()) {
            Some(_) => {
                let why = format!(
                    "{path}.kernel: {} is an average over what the student draws, and these turns are not drawn from it; use \
                     reverse-kl, forward-kl, jsd or cross-entropy",
                    self.name()
                );
                Err(Error::new(Fault::UnsupportedMethod, why))
            }
            _ => Ok(()),
        }
    }
}
