//! A scripted world for the guided loop: tiny random models, and a host whose observations are a function
//! of the episode, the turn and what was said, so that any token that differs shows in all that follow.
#![allow(dead_code)] // each test file uses its part

use serde_json::{Value, json};
use squire::backend::{Compute, Tensor};
use squire::distill::trajectory::Trajectory;
use squire::distill::{Actor, Config, Distiller, Episode, EpisodeSpec, Replay, Update};
use squire::error::{Fault, Result};
use squire::model::{ModelConfig, Parameters, Weights};
use squire::random::{Stream, below};
use squire::serve::{Cancel, Engine, EngineOptions, Generation, GenerationOptions, ServedModel};
use squire::tensor::Dtype;

pub const VOCABULARY: usize = 64;
/// Ends a turn.
pub const STOP: i32 = 63;
pub const CONTEXT: usize = 128;
/// Tokens of the longest turn.
pub const LONGEST: usize = 6;

/// Which models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Dense,
    Moe,
}

pub fn config(kind: Kind, hidden: usize, n_layers: usize) -> ModelConfig {
    let mut document = json!({
        "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 48,
        "num_hidden_layers": n_layers, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    if kind == Kind::Moe {
        document["model_type"] = json!("qwen3_moe");
        document["num_experts"] = json!(4);
        document["num_experts_per_tok"] = json!(2);
        document["moe_intermediate_size"] = json!(24);
        document["norm_topk_prob"] = json!(true);
    }
    ModelConfig::from_json(&document).unwrap()
}

pub fn engine(compute: Compute) -> Engine {
    Engine::new(EngineOptions { n_threads: 1, compute, ..Default::default() }).unwrap()
}

/// A model whose weights are wide enough that what it says depends on what it read.
pub fn model(engine: &Engine, config: &ModelConfig, seed: u64) -> ServedModel {
    let dtype = if engine.options().compute == Compute::F32 { Dtype::F32 } else { Dtype::Bf16 };
    let model = engine.random_model(config.clone(), dtype, seed, CONTEXT).unwrap();
    model.restore(wide(&model, seed), 1);
    model
}

/// Wide random weights in the model's shapes and dtype.
pub fn wide(model: &ServedModel, seed: u64) -> Weights {
    let dtype = model.current().weights.embedding.dense().dtype();
    Weights::random(model.config(), &model.model().device, dtype, seed, 0.2).unwrap()
}

/// A student and a larger teacher on one engine.
pub fn pair(kind: Kind, compute: Compute) -> (ServedModel, ServedModel) {
    let engine = engine(compute);
    (model(&engine, &config(kind, 32, 2), 1), model(&engine, &config(Kind::Dense, 48, 3), 2))
}

pub fn settings(document: Value) -> Config {
    Config::from_value(&document).unwrap()
}

/// A distiller of a fresh student towards a fresh teacher.
pub fn distiller(kind: Kind, compute: Compute, document: Value) -> Distiller {
    let (student, teacher) = pair(kind, compute);
    Distiller::new(&student, Some(&teacher), settings(document)).unwrap()
}

pub const ALL: [(Kind, Compute); 4] =
    [(Kind::Dense, Compute::F32), (Kind::Dense, Compute::Bf16), (Kind::Moe, Compute::F32), (Kind::Moe, Compute::Bf16)];

/// What the world shows in a turn after `said`: 3 to 7 ids.
pub fn observation(episode: u64, turn: u64, said: &[i32]) -> Vec<i32> {
    let heard = said.iter().fold(0, |h, &id| h * 31 + id as u64 % 31);
    let draw = |i: u64, n: u64| below(Stream::World, &[episode, turn, heard, i], n);
    (0..3 + draw(99, 5)).map(|i| draw(i, 60) as i32).collect()
}

/// What a demonstration says in a turn.
pub fn demonstration(episode: u64, turn: u64) -> Vec<i32> {
    let draw = |i: u64, n: u64| below(Stream::World, &[episode, turn, 7, 7, i], n);
    (0..1 + draw(99, 4)).map(|i| draw(i, 60) as i32).chain([STOP]).collect()
}

pub fn options() -> GenerationOptions {
    GenerationOptions { max_tokens: LONGEST, stop_ids: vec![STOP], ..Default::default() }
}

/// An episode at its table in the world.
pub struct Seat {
    pub episode: Episode,
    id: u64,
    turn: u64,
    said: Vec<i32>,
}

impl Seat {
    pub fn new(distiller: &Distiller, spec: EpisodeSpec) -> Seat {
        let episode = distiller.begin(spec).unwrap();
        let id = episode.trajectory().unwrap().heading.episode;
        Seat { episode, id, turn: 0, said: Vec::new() }
    }

    /// Shows what the world shows, and lets whoever shall act begin; None where the rollout ends.
    pub fn start(&mut self) -> Option<Option<Generation>> {
        self.episode.observe_ids(&observation(self.id, self.turn, &self.said)).unwrap();
        match self.episode.decide().unwrap().actor {
            None => None,
            Some(Actor::Replay) => {
                self.said = demonstration(self.id, self.turn);
                self.episode.replay(Replay::Ids(&self.said)).unwrap();
                Some(None)
            }
            Some(_) => Some(Some(self.episode.act(&options()).unwrap())),
        }
    }

    /// Waits for what was begun and ends the turn.
    pub fn finish(&mut self, generation: Option<Generation>) {
        if let Some(generation) = generation {
            self.said = generation.collect().unwrap().0.ids;
        }
        self.episode.outcome(None, true).unwrap();
        self.turn += 1;
    }

    pub fn turn(&mut self) -> bool {
        let begun = self.start();
        begun.map(|generation| self.finish(generation)).is_some()
    }

    /// Plays on for at most `turns` turns and ends.
    pub fn play(mut self, turns: u64) -> Trajectory {
        while self.turn < turns && self.turn() {}
        self.end()
    }

    pub fn end(&self) -> Trajectory {
        self.episode.end(1.0, Some(self.id.is_multiple_of(2))).unwrap();
        self.episode.trajectory().unwrap()
    }
}

/// Plays `n` episodes of `turns` turns, one after the other.
pub fn play(distiller: &Distiller, n: usize, turns: u64) -> Vec<Trajectory> {
    (0..n).map(|_| Seat::new(distiller, EpisodeSpec::default()).play(turns)).collect()
}

/// Plays `n` episodes side by side: all begin their turn before anyone is waited for.
pub fn play_together(distiller: &Distiller, n: usize, turns: u64) -> Vec<Trajectory> {
    let mut seats: Vec<Seat> = (0..n).map(|_| Seat::new(distiller, EpisodeSpec::default())).collect();
    let mut playing: Vec<usize> = (0..n).collect();
    for _ in 0..turns {
        let begun: Vec<_> = playing.iter().filter_map(|&i| seats[i].start().map(|g| (i, g))).collect();
        playing = begun.iter().map(|(i, _)| *i).collect();
        begun.into_iter().for_each(|(i, generation)| seats[i].finish(generation));
    }
    seats.iter().map(Seat::end).collect()
}

pub fn build(distiller: &Distiller) -> Update {
    distiller.build(0, &Cancel::default(), &mut |_, _| true).unwrap()
}

/// Builds, applies and publishes.
pub fn update(distiller: &Distiller) -> Update {
    let mut update = build(distiller);
    distiller.apply(&mut update).unwrap();
    distiller.publish().unwrap();
    update
}

/// A set of tensors with names.
pub trait Named {
    fn named(&self) -> Vec<(String, &Tensor)>;
}

impl Named for Weights {
    fn named(&self) -> Vec<(String, &Tensor)> {
        self.tensors()
    }
}

impl Named for Parameters {
    fn named(&self) -> Vec<(String, &Tensor)> {
        self.tensors()
    }
}

/// The bytes of every tensor.
pub fn bytes(set: &impl Named) -> Vec<(String, Vec<u8>)> {
    set.named().into_iter().map(|(name, t)| (name, t.bytes().to_vec())).collect()
}

/// The bytes of the weights that new sessions get.
pub fn weight_bytes(model: &ServedModel) -> Vec<(String, Vec<u8>)> {
    let weights: &Weights = &model.current().weights;
    bytes(weights)
}

/// Ids, log-probs, sampled log-probs, and who spoke from where to where.
pub type Record = (Vec<i32>, Vec<u32>, Vec<u32>, Vec<(Actor, usize, usize)>);

/// All that was recorded of sampling, as bits.
pub fn record(t: &Trajectory) -> Record {
    let bits = |list: &[f32]| list.iter().map(|x| x.to_bits()).collect();
    let turns = t.turns().iter().map(|turn| (turn.actor, turn.range.start, turn.range.end)).collect();
    (t.ids().to_vec(), bits(t.logprobs()), bits(t.sampled_logprobs()), turns)
}

pub fn records(list: &[Trajectory]) -> Vec<Record> {
    list.iter().map(record).collect()
}

/// The episode of that number.
pub fn numbered(episode: u64) -> EpisodeSpec {
    EpisodeSpec { episode: Some(episode), ..Default::default() }
}

/// What a call was refused with.
pub fn fault<T>(result: Result<T>) -> Fault {
    result.err().expect("a refusal").fault()
}

/// A dense distiller in f32.
pub fn plain(document: Value) -> Distiller {
    distiller(Kind::Dense, Compute::F32, document)
}

/// A distiller on an engine that moves only when it is told to.
pub fn stepped(document: Value) -> (Engine, Distiller) {
    let options = EngineOptions { n_threads: 1, compute: Compute::F32, caller_driven: true, ..Default::default() };
    let engine = Engine::new(options).unwrap();
    let (student, teacher) =
        (model(&engine, &config(Kind::Dense, 32, 2), 1), model(&engine, &config(Kind::Dense, 48, 3), 2));
    let d = Distiller::new(&student, Some(&teacher), settings(document)).unwrap();
    (engine, d)
}

pub fn half_guided() -> Value {
    json!({"preset": "guided-opd", "actor": {"kind": "bernoulli", "beta": 0.5}, "optimizer": {"learning_rate": 1e-2}})
}
