//! The ops, one a file: the formula with its shapes, the forward, the backward, the CPU loops, the tests.
//!
//! Conventions. N rows in use are given as `n`; a tensor may have more. A forward overwrites its result.
//! A backward adds to gradients of parameters (`dw`), and says for each activation gradient whether it
//! overwrites or adds. `compute` says whether the result is rounded to bf16. Extents are checked once, on
//! entry, by assertion: shapes come from a validated model, so a mismatch is a defect of squire.
//!
//! The ops that the forward pass calls are those that a GPU does in one launch; on the CPU they are made of smaller ones.
//! A GPU's side of an op launches and does not wait; what goes wrong is told by `Device::check`.

mod adamw;
mod attend;
mod attention;
mod attention_backward;
mod divergence;
mod draws;
mod embedding;
mod entropy;
mod experts;
mod extents;
mod few_rows;
mod gather;
mod head;
mod linear;
mod logprob;
mod lora;
mod loss;
mod moe;
mod product;
mod qkv;
mod random;
mod residual;
mod rmsnorm;
mod rope;
mod rows;
mod sample;
mod sampled;
mod split;
mod surrogate;
mod swiglu;
mod topk_divergence;

pub use super::terms::{Cuts, Edit, Heads, Pick, Sampling};
pub use adamw::{AdamW, adamw_step, convert, sum_of_squares};
pub use attend::{Attend, AttendLayer, AttendScratch, attend_forward};
pub use attention::{KeysValues, PageLayer, Span, attention_forward, attention_scratch_bytes, kv_append};
pub use attention_backward::{AttentionGradients, attention_backward, attention_backward_scratch_bytes};
pub use divergence::{TeacherRows, divergence_forward_backward, teacher_logprobs};
pub use draws::{Draws, sample_row, sample_row_among, sample_rows};
pub use embedding::{embedding_backward, embedding_forward};
pub use entropy::{Spread, spreads_of, top_entropy, top_mass};
pub use experts::{
    ExpertActivations, ExpertBlock, ExpertExtents, ExpertWeights, FfnActivations, FfnHalf, experts_forward, ffn_forward,
};
pub use extents::{Extents, check_extents};
pub use gather::{gather_rows, scatter_add_rows};
pub use head::{Head, RowList, STATS_IDS, head_forward, logprobs_of_head, top_k_of_head, top_k_of_head_among};
pub use linear::{
    LinearGradient, linear_backward, linear_backward_input, linear_backward_weight, linear_forward, linear_forward_f32,
    linear_residual_forward, linear_scratch_bytes,
};
pub use logprob::{logit_stats, logprobs_of, logsumexp, select_bytes, top_k};
pub use lora::lora_merge;
pub use loss::{Loss, Needs, RowLoss};
pub use moe::{CombineGradients, Dealing, Routing, combine_backward, combine_forward, route, route_backward};
pub use qkv::{Qkv, QkvWeights, qkv_forward};
pub use random::fill_random;
pub use residual::residual_forward;
pub use rmsnorm::{Norm, NormGradients, rmsnorm_backward, rmsnorm_forward};
pub use rope::{
    HeadNorm, RopeTable, inverse_frequencies, llama3_inverse_frequencies, qk_norm_rope_backward, qk_norm_rope_forward,
    yarn_inverse_frequencies,
};
pub use rows::{copy_rows, fill, read_rows, scatter_rows};
pub use sample::{Sampled, sample_scratch_bytes, sample_token};
pub use sampled::{Drawn, worth};
pub use surrogate::{Clip, PolicyGradient, Ratio, Reference, Shape as AdvantageShape, Surrogate, Worth};
pub use swiglu::{FfnWeights, GateUp, gate_up_forward, swiglu_backward, swiglu_forward};

pub use topk_divergence::{Tail, TopK};

#[cfg(test)]
pub(crate) mod claims;
