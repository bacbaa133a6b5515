//! Tiny models for tests: extents that are no multiples of anything, weights strong enough that attention
//! and routing matter.

use serde_json::{Value, json};
use squire::backend::ops;
use squire::model::{Adapter, Lora, ModelConfig, Weights};
use squire::serve::{Engine, ServedModel};
use squire::tensor::Dtype;

/// A dense configuration: C 48, H 4, G 2, D 16, F 80, V 301, tied, 512 positions.
pub fn dense() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 301, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": true,
    })
}

/// A mixture of experts: the dense one's extents, 6 experts of 24, 2 a token, own head, layer 1 dense.
#[allow(dead_code)] // not every test needs experts
pub fn moe() -> Value {
    let mut document = dense();
    let more = json!({
        "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [1], "tie_word_embeddings": false,
    });
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    document
}

/// The dense one without norms of heads and with biases of queries, keys and values, stretched as Llama 3.1 is.
#[allow(dead_code)] // not every test needs every family
pub fn biased() -> Value {
    let mut document = dense();
    document["model_type"] = "qwen2".into();
    document["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    });
    document
}

/// An adapter of the model with random matrices, strong enough to matter; a function of the seed.
#[allow(dead_code)] // not every test needs adapters
pub fn adapter(model: &ServedModel, rank: usize, dtype: Dtype, seed: u64) -> Adapter {
    let lora = Lora { rank, alpha: 1.5 * rank as f64, rslora: seed.is_multiple_of(2), targets: Vec::new() };
    let mut number = 0;
    Adapter::build(model.config(), &lora, |_, _, _, extents| {
        let mut tensor = squire::backend::Tensor::zeros(dtype, &extents)?;
        number += 1;
        ops::fill_random(&model.model().device, &mut tensor, 1000 + seed, number, 0.4);
        Ok(tensor)
    })
    .unwrap()
}

/// A model of the configuration with random weights of standard deviation 0.2; a function of the seed.
pub fn tiny(engine: &Engine, document: &Value, dtype: Dtype, seed: u64) -> ServedModel {
    let config = ModelConfig::from_json(document).unwrap();
    let weights = Weights::random(&config, engine.device(), dtype, seed, 0.2).unwrap();
    // The engine's own random models are too weak; their first revision is replaced before anyone sees it.
    let model = engine.random_model(config, dtype, 0, 0).unwrap();
    model.restore(weights, 1);
    model
}
