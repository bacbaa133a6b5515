//! What batches, ops and devices all speak of: heads, how a token is drawn, what is rounded, and the plan of a batch.
#![forbid(unsafe_code)]

/// The most rows that decode together, and that the decode forms of the products take.
pub const MAX_DECODE_ROWS: usize = 64;

/// Query columns of one prefill tile on a GPU: rows times the heads that share keys.
pub const TILE_COLUMNS: usize = 64;

/// Positions in a split of decode attention on a GPU.
pub const SPLIT: usize = 256;

/// Extents of the heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// H
    pub n_heads: usize,
    /// G
    pub n_kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// 1 / sqrt(D)
    pub scale: f32,
}

impl Heads {
    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits, up to 1e6. 0 (below 1e-5, or NaN) takes the most likely id.
    pub temperature: f32,
    /// Keep the `top_k` most likely ids; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely ids whose mass reaches `top_p`, at least one; 1 keeps all.
    pub top_p: f32,
}

/// What is cut besides, after top-k and top-p. The default cuts nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cuts {
    /// Keep the ids with at least this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Keep the smallest set of ids whose mass reaches `typical_p`, at least one, taken in the order in which their
    /// -ln p lies near the entropy; 1 keeps all.
    pub typical_p: f32,
}

impl Default for Cuts {
    fn default() -> Cuts {
        Cuts { min_p: 0.0, typical_p: 1.0 }
    }
}

/// What is done to the logit of one id before anything else.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Edit {
    /// The id. One beyond the vocabulary has no logit.
    pub id: u32,
    /// Added first.
    pub bias: f32,
    /// Then a negative logit is multiplied by this, another divided; above 0.
    pub penalty: f32,
    /// Then taken away; infinity rules the id out.
    pub less: f32,
}

impl Edit {
    /// The logit x as it is edited; no finite one becomes +inf, which would leave no distribution.
    pub fn of(&self, x: f32) -> f32 {
        let x = x + self.bias;
        let x = if x < 0.0 { x * self.penalty } else { x / self.penalty };
        (x - self.less).min(f32::MAX)
    }
}

/// How the token after one row is drawn: its logits are edited, tempered, cut, and walked by `u`.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// Temperature, and the first cuts.
    pub sampling: Sampling,
    /// The cuts that follow.
    pub cuts: Cuts,
    /// In this order; an id may come more than once.
    pub edits: &'a [Edit],
    /// The draw, in [0, 1).
    pub u: f32,
}

impl From<(Sampling, f32)> for Pick<'_> {
    fn from((sampling, u): (Sampling, f32)) -> Self {
        Pick { sampling, cuts: Cuts::default(), edits: &[], u }
    }
}

/// What activations are rounded to at the named points (docs/numerics.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Nothing is rounded; stored weights are widened exactly.
    F32,
    /// bf16 at the named points; bf16 weights are multiplied as pairs.
    Bf16,
}

impl Compute {
    /// Whether results are rounded to bf16.
    pub fn rounds(self) -> bool {
        self == Compute::Bf16
    }

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }
}

/// What decides which launches a batch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Rows that ops work on: those in use, on a GPU rounded up where they decode.
    pub rows: usize,
    /// Positions that attention reaches at most, rounded up.
    pub context: usize,
    /// Query columns that share what is read of a page: 8, 16 or 32.
    pub columns: usize,
    /// Whether each row is the newest position of a timeline of its own.
    pub decodes: bool,
}

impl Plan {
    /// One step of `n` rows on a GPU, of which the longest reaches `context` positions.
    pub fn of_decode(n: usize, context: usize) -> Plan {
        Plan { rows: n.next_power_of_two(), context: context_bucket(context), columns: 8, decodes: true }
    }
}

/// 1k, 4k, 16k, ...: the context of a recorded decode step.
fn context_bucket(context: usize) -> usize {
    let mut bucket = 1024;
    while bucket < context {
        bucket *= 4;
    }
    bucket
}
