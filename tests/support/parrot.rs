//! A model that says what it is told to, with a tokenizer whose byte tokens are the bytes.

use serde_json::json;
use squire::format::{ChatTemplates, Companions, save_model};
use squire::model::{ModelConfig, Weights};
use squire::serve::{Engine, LoadOptions, ServedModel};

use crate::tiny_tokenizer;

/// A model of 16 ids and no layers' effect whose greedy continuation of `cycle[i]` is `cycle[i + 1]`, round and
/// round. Its vocabulary has `vocabulary` ids; its documents a tokenizer whose byte tokens are the bytes.
pub fn parrot(engine: &Engine, cycle: &[i32], vocabulary: usize) -> ServedModel {
    let config = ModelConfig::from_json(&json!({
        "model_type": "qwen3", "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 256, "tie_word_embeddings": false,
    }))
    .unwrap();
    let mut weights = Weights::zeros(&config).unwrap();
    weights.norm.f32_mut().fill(1.0);
    assert!(cycle.len() <= 16);
    for (i, &id) in cycle.iter().enumerate() {
        let next = cycle[(i + 1) % cycle.len()];
        weights.embedding.dense_mut().f32_mut()[id as usize * 16 + i] = 1.0;
        weights.head.as_mut().unwrap().dense_mut().f32_mut()[next as usize * 16 + i] = 10.0;
    }
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen3_chat_template.jinja");
    let (template, tokenizer) = (std::fs::read_to_string(template).unwrap(), tiny_tokenizer::tiny_tokenizer_json());
    let companions = Companions {
        tokenizer: Some(&tokenizer),
        chat_templates: Some(&ChatTemplates::of(&template)),
        ..Companions::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("parrot");
    let tensors = weights.tensors();
    let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
    save_model(&path, &config.to_json(), list, companions).unwrap();
    engine.load(&path, LoadOptions { copy: true, ..LoadOptions::default() }).unwrap()
}
