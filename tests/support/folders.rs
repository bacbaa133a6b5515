//! Model folders that tests of the C interface and of the bindings load.

use std::path::{Path, PathBuf};

use serde_json::json;
use squire::backend::Device;
use squire::backend::cpu::Cpu;
use squire::format::{ChatTemplates, Companions, save_model};
use squire::model::{ModelConfig, Weights};
use squire::tensor::Dtype;

#[path = "tiny_tokenizer.rs"]
mod tiny_tokenizer;

/// A folder of `tests/golden`; these have no tokenizer.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Adds to a written folder's advice how to sample.
#[allow(dead_code)] // not every test samples
pub fn advise(folder: &Path, advice: serde_json::Value) {
    let path = folder.join("generation_config.json");
    let text = std::fs::read_to_string(&path).expect("the folder has advice");
    let mut document: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    for (key, value) in advice.as_object().expect("an object") {
        document[key] = value.clone();
    }
    std::fs::write(path, document.to_string()).expect("it can be written");
}

/// The same as `write_chat_model` with one NaN among its weights.
#[allow(dead_code)] // one test is about it
pub fn write_broken_model(folder: &Path) {
    write_model(folder, 1, |weights| weights.embedding.dense_mut().f32_mut()[200] = f32::NAN);
}

/// The same as `write_chat_model`, but whatever comes before, the likeliest id by far is `id`.
#[allow(dead_code)] // not every test needs a model of one word
pub fn write_model_that_says(folder: &Path, id: usize) {
    write_model(folder, 1, |weights| {
        // Every token is one and the same vector, which the layers leave alone, so the longest one is the likeliest.
        let width = weights.norm.f32().len();
        for (at, row) in weights.embedding.dense_mut().f32_mut().chunks_mut(width).enumerate() {
            row.fill(if at == id { 3.0 } else { 1.0 });
        }
        let names: Vec<String> = weights.tensors().into_iter().map(|(name, _)| name).collect();
        for (name, tensor) in names.iter().zip(weights.tensors_mut()) {
            if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
                tensor.f32_mut().fill(0.0);
            }
        }
    });
}

/// Writes a model of random weights with a tokenizer of bytes and Qwen3's chat template; turns end with id 266.
#[allow(dead_code)] // not every test takes it
pub fn write_chat_model(folder: &Path, seed: u64) {
    write_model(folder, seed, |_| {});
}

/// A chat model that, greedy, says these pieces one after the other behind a generation prompt, whatever stood before, and
/// ends its turn. Each piece is a token: one that the vocabulary has as it is, or one that is added to it.
#[allow(dead_code)] // not every test needs a model that recites
pub fn write_reciting_model(folder: &Path, pieces: &[&str]) {
    let mut tokenizer = tiny_tokenizer::tiny_tokenizer();
    let mut chain = vec![10]; // the line end of the generation prompt
    for piece in pieces {
        let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
        let known = added.iter().find(|token| token["content"] == *piece).and_then(|token| token["id"].as_i64());
        chain.push(known.unwrap_or(264 + added.len() as i64) as usize);
        if known.is_none() {
            added.push(json!({"id": 264 + added.len(), "content": piece, "single_word": false, "lstrip": false,
                              "rstrip": false, "normalized": false, "special": false}));
        }
    }
    chain.push(266);
    let (width, last) = (32, chain.iter().max().expect("ids") + 1);
    assert!(chain.len() <= width && last <= 288, "the model is too small for so many pieces");
    let change = |weights: &mut Weights| {
        for tensor in weights.tensors_mut() {
            tensor.f32_mut().fill(0.0);
        }
        weights.norm.f32_mut().fill(1.0);
        for (at, pair) in chain.windows(2).enumerate() {
            weights.embedding.dense_mut().f32_mut()[pair[0] * width + at] = 1.0;
            weights.head.as_mut().expect("a head of its own").dense_mut().f32_mut()[pair[1] * width + at] = 10.0;
        }
    };
    write_with(folder, 1, &tokenizer.to_string().into_bytes(), false, change);
}

fn write_model(folder: &Path, seed: u64, change: impl FnOnce(&mut Weights)) {
    write_with(folder, seed, &tiny_tokenizer::tiny_tokenizer_json(), true, change);
}

fn write_with(folder: &Path, seed: u64, tokenizer: &[u8], tied: bool, change: impl FnOnce(&mut Weights)) {
    let document = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 288, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "tie_word_embeddings": tied, "torch_dtype": "float32",
    });
    let config = ModelConfig::from_json(&document).expect("the configuration is right");
    let device = Device::Cpu(Cpu::new(1, None).expect("a processor"));
    let mut weights = Weights::random(&config, &device, Dtype::F32, seed, 0.2).expect("memory");
    change(&mut weights);
    let template = std::fs::read_to_string(golden("qwen3_chat_template.jinja")).expect("the template is there");
    let stops = json!({ "eos_token_id": [266] });
    let companions = Companions {
        tokenizer: Some(tokenizer),
        tokenizer_config: None,
        chat_templates: Some(&ChatTemplates::of(&template)),
        generation_config: Some(&stops),
    };
    let tensors = weights.tensors();
    let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
    save_model(folder, &document, list, companions).expect("the folder can be written");
}
