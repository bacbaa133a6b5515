//! The terms of losses of sampled tokens: the settings of a policy gradient, and what a token comes to under one. The formulas
//! stand in `sampled`.

/// What the teacher's log-prob is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The student's when it drew the token.
    Frozen,
    /// The student's now, not differentiated.
    Recomputed,
}

/// What a log-ratio counts as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Itself.
    Identity,
    /// Held within plus and minus so many nats.
    Clamp(f64),
    /// c tanh(x / c).
    Tanh(f64),
    /// The difference of the probabilities' powers.
    Power(f64),
}

/// Whose ratio weighs a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ratio {
    /// None.
    None,
    /// Its own.
    Token,
    /// Its turn's.
    Turn,
}

/// How the ratio is bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// It is not.
    None,
    /// At most so large.
    Truncate(f64),
    /// PPO's, from 1 - low to 1 + high.
    Ppo {
        /// Below 1.
        low: f64,
        /// Above 0.
        high: f64,
    },
}

/// The settings of a policy gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyGradient {
    /// Whether the teacher's log-prob is part of the advantage.
    pub asks_teacher: bool,
    /// What it is compared with.
    pub reference: Reference,
    /// What the comparison counts as.
    pub shape: Shape,
    /// The importance ratio.
    pub ratio: Ratio,
    /// Its bounds.
    pub clip: Clip,
    /// PPO's second bound where the advantage is below 0; 0 for none.
    pub dual_clip: f64,
}

/// What a sampled token's loss comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Worth {
    /// The loss, without the token's weight.
    pub loss: f32,
    /// Factor on the gradient of -ln p.
    pub factor: f32,
    /// ln p - ln q; None where the teacher was not asked.
    pub gap: Option<f32>,
    /// The ratio and the advantage of a policy gradient, and whether a bound holds the gradient.
    pub surrogate: Option<Surrogate>,
}

/// How a policy gradient weighed a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Surrogate {
    /// r, of the token or its turn; 1 where there is none.
    pub ratio: f64,
    /// A.
    pub advantage: f64,
    /// Whether a bound changed what the gradient would be.
    pub clipped: bool,
    /// Whether the shape's bound holds what the teacher says.
    pub held: bool,
}
