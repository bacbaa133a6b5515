//! The losses of a token by name, and what each asks of a teacher. Their formulas stand in `divergence`, those of sampled tokens
//! in `sampled`.

use super::surrogate::{PolicyGradient, Worth};

/// A loss of one token; q is the teacher, p the student, both at temperature 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// KL(p, q), nats per token.
    ReverseKl,
    /// KL(q, p), nats per token.
    ForwardKl,
    /// b KL(q, m) + (1 - b) KL(p, m) with m = b q + (1 - b) p, nats per token; b from 0.01 to 0.99.
    JensenShannon(f32),
    /// -ln p of the token that stands there, nats per token.
    CrossEntropy,
    /// ln p - ln q of the token that stands there, which p has drawn, nats per token.
    SampledReverseKl,
    /// (ln p - ln q)^2 / 2 of the token that stands there, which p has drawn.
    K2,
    /// r (q/p - 1 - ln(q/p)) of the token that stands there, which p has drawn; r: its probability over what it was then.
    WeightedK3,
    /// -phi(r) A of the token that stands there, which p has drawn, A its advantage.
    PolicyGradient(PolicyGradient),
}

/// What a loss asks of a teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// No teacher.
    Nothing,
    /// The log-prob of the token that stands there.
    Logprob,
    /// A distribution: all logits, or the most likely ids.
    Distribution,
}

impl Loss {
    /// What it asks of a teacher. Whatever else depends on that asks here.
    pub fn needs(self) -> Needs {
        match self {
            Loss::CrossEntropy => Needs::Nothing,
            Loss::SampledReverseKl | Loss::K2 | Loss::WeightedK3 => Needs::Logprob,
            Loss::PolicyGradient(settings) if settings.asks_teacher => Needs::Logprob,
            Loss::PolicyGradient(_) => Needs::Nothing,
            Loss::ReverseKl | Loss::ForwardKl | Loss::JensenShannon(_) => Needs::Distribution,
        }
    }

    /// Whether it asks for a teacher at all.
    pub fn needs_teacher(self) -> bool {
        self.needs() != Needs::Nothing
    }

    /// Whether it is of tokens that the student drew.
    pub fn is_sampled(self) -> bool {
        matches!(self, Loss::SampledReverseKl | Loss::K2 | Loss::WeightedK3 | Loss::PolicyGradient(_))
    }

    /// Whether it compares distributions.
    pub(super) fn compares(self) -> bool {
        self.needs() == Needs::Distribution
    }
}

/// The loss of one row.
#[derive(Clone, Copy, Debug)]
pub struct RowLoss {
    /// Which loss.
    pub kind: Loss,
    /// Factor on the row's gradient; 0 gives a gradient of zeros.
    pub weight: f32,
    /// The token that stands there; not read by what compares distributions.
    pub target: i32,
    /// What a sampled token's loss comes to; not read by others.
    pub worth: Worth,
}

impl RowLoss {
    /// A loss that is not of sampled tokens.
    pub fn new(kind: Loss, weight: f32, target: i32) -> RowLoss {
        RowLoss { kind, weight, target, worth: Worth::default() }
    }
}
