//! From what a folder stores to what its model uses: which output projection counts, experts that lie fused in one
//! tensor, and nothing left over. Afterwards a folder's tensors are exactly those of its configuration, so whoever
//! counts, plans or loads them counts the same.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::ModelConfig;
use super::config::{EMBEDDING, HEAD};
use crate::error::{Error, Fault, Result};
use crate::format::{ModelDir, StoredTensor};
use crate::tensor::{Dtype, Shape};

impl ModelConfig {
    /// The configuration of a folder, whose tensors become those that the model uses and whose config.json says what
    /// is so. What had to be decided is told in the folder's warnings.
    ///
    /// Errors: as [`ModelConfig::from_json`] and [`ModelConfig::check_tensors`]; `TensorNames` where an expert is
    /// stored twice.
    pub fn of_folder(dir: &mut ModelDir) -> Result<ModelConfig> {
        let mut config = ModelConfig::read(&dir.config, &mut dir.warnings)?;
        split_experts(&config, &mut dir.tensors)?;
        settle_head(&mut config, dir);
        config.check_tensors(&dir.tensors)?;
        Ok(config)
    }
}

/// Decides which output projection counts, as transformers and vLLM do: a stored one that differs from the embedding
/// was trained, whatever config.json says; where none is stored, the embedding is all there is.
fn settle_head(config: &mut ModelConfig, dir: &mut ModelDir) {
    let said = match dir.config.get("tie_word_embeddings") {
        Some(serde_json::Value::Bool(_)) => format!("tie_word_embeddings is {}", config.tied),
        _ => "tie_word_embeddings is not given, which means false".to_string(),
    };
    let Some(embedding) = dir.tensors.get(EMBEDDING) else { return };
    match (config.tied, dir.tensors.get(HEAD)) {
        (true, Some(head)) if same_numbers(embedding, head) => drop(dir.tensors.remove(HEAD)),
        (true, Some(_)) => {
            config.tied = false;
            let why = format!("but {HEAD} is stored and differs from {EMBEDDING}; {HEAD} is used");
            dir.warnings.push(format!("config.json: {said}, {why}"));
        }
        (false, None) => {
            config.tied = true;
            let why = format!("but the weights have no {HEAD}; {EMBEDDING} is used in its place");
            dir.warnings.push(format!("config.json: {said}, {why}"));
        }
        _ => {}
    }
    // What is saved later must say what is used, also to those who take an absent key otherwise.
    dir.config["tie_word_embeddings"] = config.tied.into();
}

/// Whether two tensors hold the same numbers, each in its own dtype.
fn same_numbers(a: &StoredTensor, b: &StoredTensor) -> bool {
    if a.shape != b.shape {
        return false;
    }
    let (x, y) = (a.bytes.as_slice(), b.bytes.as_slice());
    if a.dtype == b.dtype {
        return x == y;
    }
    let numbers = x.chunks_exact(a.dtype.size()).zip(y.chunks_exact(b.dtype.size()));
    let mut pairs = numbers.map(|(x, y)| (widened(a.dtype, x), widened(b.dtype, y)));
    pairs.all(|(x, y)| x == y || (x.is_nan() && y.is_nan()))
}

/// The number that these little-endian bytes of one element are.
fn widened(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        _ => unreachable!("an element has the bytes of its dtype"),
    }
}

/// Cuts experts that are stored in one tensor, as transformers 5 saves them, into the matrices of each: windows of the
/// same bytes. With E experts, hidden size C and expert size F, `gate_up_proj` is [E, 2F, C], the gate's rows first, and
/// `down_proj` [E, C, F].
fn split_experts(config: &ModelConfig, tensors: &mut BTreeMap<String, StoredTensor>) -> Result<()> {
    let Some(moe) = &config.moe else { return Ok(()) };
    let (e, c, f) = (moe.n_experts, config.hidden_size, moe.expert_intermediate_size);
    let gate_up: &[&str] = &["gate_proj", "up_proj"];
    for layer in (0..config.n_layers).filter(|&layer| config.is_moe_layer(layer)) {
        for (fused, parts, rows, columns) in [("gate_up_proj", gate_up, f, c), ("down_proj", &["down_proj"], c, f)] {
            let name = format!("model.layers.{layer}.mlp.experts.{fused}");
            let Some(whole) = tensors.remove(&name) else { continue };
            let wanted = [e, parts.len() * rows, columns];
            if whole.shape.extents() != wanted {
                let why = format!(
                    "tensor {name}: wanted {wanted:?} (experts, outputs, inputs) as transformers 5 saves it, or a tensor \
                     for each expert (model.layers.{layer}.mlp.experts.0.{}.weight, {:?}), found {}; save the model with \
                     transformers 5, or transpose the last two extents",
                    parts[0],
                    [rows, columns],
                    whole.shape
                );
                return Err(Error::new(Fault::TensorShape, why));
            }
            let part_bytes = rows * columns * whole.dtype.size();
            for (i, (expert, part)) in (0..e).flat_map(|x| parts.iter().map(move |part| (x, part))).enumerate() {
                let window = whole.bytes.slice(i * part_bytes..(i + 1) * part_bytes);
                let (Some(bytes), Some(shape)) = (window, Shape::new(&[rows, columns])) else {
                    unreachable!("the whole was found to have these extents");
                };
                match tensors.entry(format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight")) {
                    Entry::Vacant(slot) => slot.insert(StoredTensor { dtype: whole.dtype, shape, bytes }),
                    Entry::Occupied(slot) => {
                        let why = format!("tensors {name} and {} are one expert twice; keep one of them", slot.key());
                        return Err(Error::new(Fault::TensorNames, why));
                    }
                };
            }
        }
    }
    Ok(())
}
