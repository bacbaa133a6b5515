//! The shapes that can be measured without their weights: Qwen3's own, and a tiny one for trying out.
#![forbid(unsafe_code)]

use squire::model::Rope;
use squire::model::{ModelConfig, Moe};
use squire::tensor::Dtype;

struct Extents {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    tied: bool,
    /// experts, experts a token, feed-forward of one
    experts: Option<(usize, usize, usize)>,
}

const fn dense(hidden: usize, layers: usize, heads: usize, kv_heads: usize, ffn: usize, tied: bool) -> Extents {
    Extents { hidden, layers, heads, kv_heads, head_dim: 128, ffn, vocab: 151_936, tied, experts: None }
}

const SHAPES: &[(&str, Extents)] = &[
    ("tiny", Extents { head_dim: 16, vocab: 512, ..dense(64, 2, 4, 2, 128, true) }),
    ("qwen3-0.6b", dense(1024, 28, 16, 8, 3072, true)),
    ("qwen3-1.7b", dense(2048, 28, 16, 8, 6144, true)),
    ("qwen3-4b", dense(2560, 36, 32, 8, 9728, true)),
    ("qwen3-8b", dense(4096, 36, 32, 8, 12_288, false)),
    ("qwen3-30b-a3b", Extents { experts: Some((128, 8, 768)), ..dense(2048, 48, 32, 4, 6144, false) }),
];

/// A shape by its name, the `qwen3-` of which may be left out.
pub fn shape(name: &str) -> Result<(&'static str, ModelConfig), String> {
    let found = SHAPES.iter().find(|(known, _)| *known == name || known.strip_prefix("qwen3-") == Some(name));
    let (name, e) = found.ok_or_else(|| {
        let names: Vec<_> = SHAPES.iter().map(|(name, _)| *name).collect();
        format!("known are {}", names.join(", "))
    })?;
    let moe = e.experts.map(|(n_experts, n_experts_per_token, expert_intermediate_size)| Moe {
        n_experts,
        n_experts_per_token,
        expert_intermediate_size,
        norm_topk_prob: true,
        decoder_sparse_step: 1,
        mlp_only_layers: Vec::new(),
    });
    let config = ModelConfig {
        vocab_size: e.vocab,
        hidden_size: e.hidden,
        intermediate_size: e.ffn,
        n_layers: e.layers,
        n_heads: e.heads,
        n_kv_heads: e.kv_heads,
        head_dim: e.head_dim,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 1e6, scaling: None },
        max_position: 40_960,
        head_norms: true,
        qkv_bias: false,
        o_bias: false,
        tied: e.tied,
        moe,
        stored_dtype: Some(Dtype::Bf16),
    };
    Ok((name, config))
}
