//! The demo's models: what they are, and how squire itself made the ones that are shipped.
//!
//! Both are Qwen3 models with random first weights. The teacher imitates the expert on games of which
//! most are disturbed by random turns, so that it knows the way back; the student imitates it on clean
//! games for a short while and stops as soon as it wins between 5 and 25 % of validation games.
//! Everything is a function of the seeds below and of nothing else, so `household make-models` gives the
//! shipped files again, byte for byte (on machines of any core count and instruction set the forward is
//! the same; the backward is the same for one instruction set).
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use squire::backend::Device;
use squire::backend::cpu::Cpu;
use squire::distill::{Config, Distiller};
use squire::error::Result;
use squire::format::{Companions, save_model};
use squire::model::{ModelConfig, Weights};
use squire::serve::{Cancel, Engine, LoadOptions, ServedModel};
use squire::tensor::Dtype;

use crate::demos::demonstration;
use crate::play::{Mode, play, replay, success};
use crate::words;
use crate::world::{Game, Split};

/// Where the shipped models lie.
pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/household/models").join(name)
}

/// Tokens of context; the longest game has fewer.
pub const CONTEXT: usize = 320;
/// The temperature of evaluations.
pub const COOL: f32 = 0.4;

/// How a model comes about.
pub struct Recipe {
    pub name: &'static str,
    n_layers: usize,
    seed: u64,
    steps: u64,
    batch: u64,
    learning_rate: f64,
    /// share of random turns in three of four demonstrations
    noise: f32,
    /// stop when a validation measurement falls into this range
    stop_between: Option<(f64, f64)>,
}

/// The teacher's and the student's.
pub const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "teacher",
        n_layers: 4,
        seed: 1,
        steps: 700,
        batch: 64,
        learning_rate: 2e-3,
        noise: 0.2,
        stop_between: None,
    },
    Recipe {
        name: "student",
        n_layers: 3,
        seed: 2,
        steps: 400,
        batch: 64,
        learning_rate: 2e-3,
        noise: 0.0,
        stop_between: Some((0.05, 0.25)),
    },
];

fn config_json(n_layers: usize) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": words::vocabulary_size(),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "use_sliding_window": false,
        "torch_dtype": "float32",
    })
}

/// Writes a folder with random weights and the demo's tokenizer.
fn first_weights(recipe: &Recipe, folder: &Path) -> Result<()> {
    let document = config_json(recipe.n_layers);
    let config = ModelConfig::from_json(&document)?;
    let device = Device::Cpu(Cpu::new(1, None)?);
    let weights = Weights::random(&config, &device, Dtype::F32, recipe.seed, 0.05)?;
    let files = words::tokenizer_files();
    let file = |name: &str| files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.as_slice());
    let document_of = |name: &str| file(name).and_then(|bytes| serde_json::from_slice(bytes).ok());
    let (tokenizer_config, generation_config) =
        (document_of("tokenizer_config.json"), document_of("generation_config.json"));
    let companions = Companions {
        tokenizer: file("tokenizer.json"),
        tokenizer_config: tokenizer_config.as_ref(),
        chat_templates: None,
        generation_config: generation_config.as_ref(),
    };
    let tensors = weights.tensors();
    let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
    save_model(folder, &document, list, companions)
}

/// A distiller that only measures or imitates: no teacher.
pub fn imitation(model: &ServedModel, settings: Value) -> Result<Distiller> {
    Distiller::new(model, None, Config::from_value(&settings)?)
}

/// Success of a model alone on `n` games of a split, at a temperature, after some random turns.
pub fn measure(model: &ServedModel, split: Split, n: u64, temperature: f32, random_turns: usize) -> Result<f64> {
    let settings = json!({"preset": "sft", "student_turns": {"kernel": "cross-entropy"}, "actor": {"kind": "student"},
        "sampling": {"temperature": temperature}, "seed": 9, "max_turns": 20});
    let distiller = imitation(model, settings)?;
    let mut won = Vec::new();
    for first in (0..n).step_by(64) {
        let games = (first..n.min(first + 64)).map(|seed| Game::new(split, EVALUATION + seed)).collect();
        won.extend(play(&distiller, games, Mode { random_turns, ..Mode::default() })?);
        distiller.discard();
    }
    Ok(success(&won))
}

/// Seeds of games that are measured on lie above those that are learnt from.
pub const EVALUATION: u64 = 1 << 40;

/// Makes one model into `folder` and prints its way.
pub fn make(engine: &Engine, recipe: &Recipe, folder: &Path) -> Result<()> {
    let start = folder.with_extension("first");
    first_weights(recipe, &start)?;
    let model = engine.load(&start, LoadOptions { max_context: 0, copy: true })?;
    let settings = json!({
        "preset": "sft",
        "steps": recipe.steps,
        "seed": recipe.seed,
        "batch_episodes": recipe.batch,
        "micro_tokens": 8192,
        "max_turns": 64,
        "optimizer": {
            "learning_rate": {"start": recipe.learning_rate, "end": 0.0, "shape": "cosine",
                              "begin": 0, "finish": recipe.steps, "clock": "step"},
            "warmup_steps": 20, "beta1": 0.9, "beta2": 0.98, "grad_clip": 1.0,
        },
    });
    let distiller = imitation(&model, settings)?;
    for step in 0..recipe.steps {
        for i in 0..recipe.batch {
            let seed = step * recipe.batch + i;
            let noise = if seed % 4 == 3 { 0.0 } else { recipe.noise };
            replay(&distiller, &demonstration(Split::Train, (recipe.seed << 32) + seed, noise))?;
        }
        let mut update = distiller.build(0, &Cancel::default(), &mut |_, _| true)?;
        distiller.apply(&mut update)?;
        distiller.publish()?;
        let every = if recipe.stop_between.is_some() { 5 } else { 50 };
        if (step + 1) % every == 0 || step + 1 == recipe.steps {
            let won = measure(&model, Split::Validation, 200, COOL, 0)?;
            let loss = update.report().loss;
            eprintln!("{} step {}: loss {loss:.4}, validation success {:.1} %", recipe.name, step + 1, 100.0 * won);
            if recipe.stop_between.is_some_and(|(low, high)| (low..=high).contains(&won)) {
                break;
            }
        }
    }
    model.save(folder)?;
    std::fs::remove_dir_all(&start).ok();
    measure_all(&model, recipe.name)
}

/// Prints a model's success: cool, at temperature 1, and after random turns.
pub fn measure_all(model: &ServedModel, name: &str) -> Result<()> {
    for split in [Split::Validation, Split::Unseen] {
        for (temperature, random_turns) in [(COOL, 0), (1.0, 0), (COOL, 3), (COOL, 6)] {
            let won = 100.0 * measure(model, split, 400, temperature, random_turns)?;
            println!(
                "{name}, {split:?}, temperature {temperature}, after {random_turns} random turns: {won:.1} % of 400"
            );
        }
    }
    Ok(())
}
