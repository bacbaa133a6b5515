//! The loss over a whole vocabulary is computed a few rows at a time: no buffer of [tokens, vocabulary] exists.

#[path = "support/child.rs"]
mod child;

use serde_json::json;
use squire::backend::Compute;
use squire::distill::{Actor, Config, Distiller, EpisodeSpec, Replay};
use squire::model::ModelConfig;
use squire::serve::{Cancel, Engine, EngineOptions, ServedModel};
use squire::tensor::Dtype;

/// Qwen3's vocabulary, and an episode of so many tokens.
const VOCABULARY: usize = 151_936;
const TOKENS: usize = 4096;

fn model(engine: &Engine, vocabulary: usize, seed: u64) -> ServedModel {
    let config = json!({
        "model_type": "qwen3", "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    engine.random_model(ModelConfig::from_json(&config).unwrap(), Dtype::F32, seed, TOKENS).unwrap()
}

/// How many bytes the peak of an update of one episode lies above what was held before, gradients, masters and moments
/// taken off.
fn extra(vocabulary: usize) -> u64 {
    let engine = Engine::new(EngineOptions { n_threads: 2, compute: Compute::F32, ..Default::default() }).unwrap();
    let (student, teacher) = (model(&engine, vocabulary, 1), model(&engine, vocabulary, 2));
    let settings = json!({
        "actor": {"kind": "replay"}, "student_turns": {"kernel": "none"}, "replay_turns": {"kernel": "reverse-kl"},
        "update_kl_tokens": 0, "recompute": "layer"
    });
    let d = Distiller::new(&student, Some(&teacher), Config::from_value(&settings).unwrap()).unwrap();
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(&[1]).unwrap();
    assert_eq!(episode.decide().unwrap().actor, Some(Actor::Replay));
    let ids: Vec<i32> = (0..TOKENS as i32 - 1).map(|i| i * 7 % 1000).collect();
    episode.replay(Replay::Ids(&ids)).unwrap();
    episode.outcome(None, true).unwrap();
    episode.end(1.0, None).unwrap();
    let before = child::held_bytes();
    let update = d.build(0, &Cancel::default(), &mut |_, _| true).unwrap();
    assert_eq!(update.report().trained_tokens, TOKENS - 1);
    let parameters: u64 = update.gradients().tensors().iter().map(|(_, t)| t.bytes().len() as u64).sum();
    (child::peak_bytes() - before).saturating_sub(4 * parameters)
}

#[test]
fn the_loss_of_a_long_episode_over_qwens_vocabulary_takes_less_than_512_megabytes() {
    if let Some(case) = child::case() {
        return child::say(extra(case.parse().unwrap()));
    }
    let peak = |vocabulary: usize| -> u64 {
        let test = "the_loss_of_a_long_episode_over_qwens_vocabulary_takes_less_than_512_megabytes";
        let ran = child::run(test, &vocabulary.to_string(), child::Limits { seconds: 600, memory: 0 });
        assert_eq!(ran.died, None, "{}", ran.errors);
        ran.said[0].parse().unwrap()
    };
    if child::peak_bytes() == 0 {
        return eprintln!("SKIPPED: this system does not tell a process's peak");
    }
    let (whole, small) = (peak(VOCABULARY), peak(1000));
    eprintln!(
        "an update of {TOKENS} tokens takes {} MB with {VOCABULARY} ids, {} MB with 1000",
        whole >> 20,
        small >> 20
    );
    assert!(whole < 512 << 20, "{whole} bytes");
    // The comparison can fail: one such buffer of all tokens has 2.5 GB.
    assert!((TOKENS * VOCABULARY * 4) as u64 > 4 * (512 << 20));
}
