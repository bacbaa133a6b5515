//! The weights of one revision: a struct of tensors with their shapes beside them.
//!
//! The same struct holds gradients, f32 masters and optimiser moments, so "for every tensor" is written
//! once. Letters: C hidden, F intermediate, H query heads, G key/value heads, D head size, V vocabulary,
//! E experts.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ModelConfig;
use crate::backend::cuda::Buffer;
use crate::backend::{Device, Tensor, host, ops};
use crate::error::{Error, Fault, Result};
use crate::format::StoredTensor;
use crate::tensor::{Dtype, Shape};

/// All tensors of a model.
#[derive(Debug)]
pub struct Weights {
    /// [V, C]; also the output projection of a tied model
    pub embedding: Tensor,
    /// L of them
    pub layers: Vec<Layer>,
    /// `[C]`
    pub norm: Tensor,
    /// [V, C] of an untied model
    pub head: Option<Tensor>,
}

/// One transformer layer.
#[derive(Debug)]
pub struct Layer {
    /// `[C]`
    pub input_norm: Tensor,
    /// [H*D, C]
    pub q: Tensor,
    /// [G*D, C]
    pub k: Tensor,
    /// [G*D, C]
    pub v: Tensor,
    /// [C, H*D]
    pub o: Tensor,
    /// `[D]`
    pub q_norm: Tensor,
    /// `[D]`
    pub k_norm: Tensor,
    /// `[C]`
    pub post_norm: Tensor,
    /// dense or experts
    pub mlp: Mlp,
}

/// The feed-forward part of a layer.
#[derive(Debug)]
pub enum Mlp {
    /// One SwiGLU block.
    Dense(Ffn),
    /// A router and its experts.
    Experts {
        /// [E, C]
        router: Tensor,
        /// E of them
        experts: Vec<Ffn>,
    },
}

impl Layer {
    /// What is read next when attention is done, in this order.
    pub(super) fn read_after_attention(&self) -> [&Tensor; 2] {
        match &self.mlp {
            Mlp::Dense(ffn) => [&self.o, &ffn.gate],
            Mlp::Experts { router, .. } => [&self.o, router],
        }
    }
}

impl Ffn {
    /// The matrices, as ops take them.
    pub fn matrices(&self) -> ops::FfnWeights<'_> {
        ops::FfnWeights { gate: &self.gate, up: &self.up, down: &self.down }
    }
}

/// One SwiGLU block: down(silu(gate x) * up x).
#[derive(Debug)]
pub struct Ffn {
    /// [F, C]
    pub gate: Tensor,
    /// [F, C]
    pub up: Tensor,
    /// [C, F]
    pub down: Tensor,
}

impl Weights {
    /// Builds the struct by asking `make` for every tensor by its Hugging Face name and shape.
    pub fn build(config: &ModelConfig, mut make: impl FnMut(&str, Shape) -> Result<Tensor>) -> Result<Weights> {
        let shapes: BTreeMap<String, Shape> = config.tensor_shapes().into_iter().collect();
        let mut get = |name: String| {
            let shape =
                shapes.get(&name).ok_or_else(|| Error::new(Fault::TensorMissing, format!("no shape for {name}")))?;
            make(&name, *shape)
        };
        let embedding = get("model.embed_tokens.weight".into())?;
        let mut layers = host::with_room(config.n_layers)?;
        for l in 0..config.n_layers {
            let mut part = |name: &str| get(format!("model.layers.{l}.{name}.weight"));
            layers.push(Layer {
                input_norm: part("input_layernorm")?,
                q: part("self_attn.q_proj")?,
                k: part("self_attn.k_proj")?,
                v: part("self_attn.v_proj")?,
                o: part("self_attn.o_proj")?,
                q_norm: part("self_attn.q_norm")?,
                k_norm: part("self_attn.k_norm")?,
                post_norm: part("post_attention_layernorm")?,
                mlp: match &config.moe {
                    Some(moe) if config.is_moe_layer(l) => Mlp::Experts {
                        router: part("mlp.gate")?,
                        experts: {
                            let mut experts = host::with_room(moe.n_experts)?;
                            for e in 0..moe.n_experts {
                                let mut part = |matrix: &str| part(&format!("mlp.experts.{e}.{matrix}"));
                                let (gate, up, down) = (part("gate_proj")?, part("up_proj")?, part("down_proj")?);
                                experts.push(Ffn { gate, up, down });
                            }
                            experts
                        },
                    },
                    _ => Mlp::Dense(Ffn {
                        gate: part("mlp.gate_proj")?,
                        up: part("mlp.up_proj")?,
                        down: part("mlp.down_proj")?,
                    }),
                },
            });
        }
        let norm = get("model.norm.weight".into())?;
        let head = if config.tied { None } else { Some(get("lm_head.weight".into())?) };
        Ok(Weights { embedding, layers, norm, head })
    }

    /// The weights of a model folder, used where they are mapped.
    pub fn from_stored(config: &ModelConfig, tensors: &BTreeMap<String, StoredTensor>) -> Result<Weights> {
        config.check_tensors(tensors)?;
        Weights::build(config, |name, shape| {
            let missing = || Error::new(Fault::TensorMissing, format!("the weights have no tensor {name}"));
            let stored = tensors.get(name).ok_or_else(missing)?;
            Tensor::from_shared(stored.dtype, shape, Arc::new(stored.bytes.clone())).map_err(|e| e.within(name))
        })
    }

    /// Checks that these are weights of `config`. Errors: `TensorShape`, naming the first tensor that is not.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let wanted: BTreeMap<String, Shape> = config.tensor_shapes().into_iter().collect();
        let found = self.tensors();
        for (name, t) in &found {
            if wanted.get(name) != Some(&t.shape()) {
                let wanted = wanted.get(name).map_or("nothing".to_string(), Shape::to_string);
                return Err(Error::new(Fault::TensorShape, format!("{name}: wanted {wanted}, found {}", t.shape())));
            }
        }
        if found.len() != wanted.len() {
            let why = format!("{} tensors are wanted, found {}", wanted.len(), found.len());
            return Err(Error::new(Fault::TensorShape, why));
        }
        Ok(())
    }

    /// f32 zeros of the model's shapes: gradients, moments.
    pub fn zeros(config: &ModelConfig) -> Result<Weights> {
        Weights::build(config, |_, shape| Tensor::zeros(Dtype::F32, shape.extents()))
    }

    /// f32 copies of another set: the optimiser's masters.
    pub fn widened(config: &ModelConfig, weights: &Weights) -> Result<Weights> {
        let mut copies = weights.tensors().into_iter();
        let mut out = Weights::zeros(config)?;
        for (to, (_, from)) in out.tensors_mut().into_iter().zip(&mut copies) {
            from.widen_into(to.f32_mut());
        }
        Ok(out)
    }

    /// Zeros with the shapes and dtypes of another set.
    pub fn like(config: &ModelConfig, other: &Weights) -> Result<Weights> {
        let mut dtypes = other.tensors().into_iter().map(|(_, t)| t.dtype());
        Weights::build(config, |_, shape| Tensor::zeros(dtypes.next().unwrap_or(Dtype::F32), shape.extents()))
    }

    /// The dtypes that they are stored in: one name, or where they are mixed each with its number of tensors.
    pub fn dtypes(&self) -> String {
        let mut counts = BTreeMap::new();
        self.tensors().iter().for_each(|(_, t)| *counts.entry(t.dtype().to_string()).or_insert(0) += 1);
        match counts.len() {
            1 => counts.into_keys().collect(),
            _ => counts.iter().map(|(dtype, n)| format!("{dtype} x {n}")).collect::<Vec<_>>().join(", "),
        }
    }

    /// Overwrites these weights by f32 masters, rounded to the stored dtypes.
    pub fn round_from(&mut self, device: &Device, masters: &Weights) {
        for (to, (_, from)) in self.tensors_mut().into_iter().zip(masters.tensors()) {
            ops::convert(device, to, from);
        }
    }

    /// Random weights of the model's shapes where `device` computes: matrices uniform with the given standard deviation,
    /// norms 1. For speed and for tests; the values are a function of the seed alone. On a GPU they are bf16 whatever
    /// `dtype` is, and laid out as in `to_device`.
    pub fn random(config: &ModelConfig, device: &Device, dtype: Dtype, seed: u64, deviation: f32) -> Result<Weights> {
        let spread = 2.0 * 3f32.sqrt() * deviation;
        let mut place = Arena::new(config, device)?;
        let mut number = 0;
        let weights = Weights::build(config, |_, shape| {
            number += 1;
            let ones = match shape.extents() {
                &[n] => {
                    let mut ones = Tensor::zeros(Dtype::F32, &[n])?;
                    ones.f32_mut().fill(1.0);
                    Some(ones)
                }
                _ => None,
            };
            let mut tensor = match &mut place {
                Some(place) => place.take(shape),
                None => Tensor::zeros(dtype, shape.extents())?,
            };
            match ones {
                Some(ones) if tensor.is_on_gpu() => tensor.upload_as_bf16(&ones)?,
                Some(ones) => ops::convert(device, &mut tensor, &ones),
                None => ops::fill_random(device, &mut tensor, seed, number, spread),
            }
            Ok(tensor)
        })?;
        device.check()?;
        Ok(weights)
    }

    /// What tells weights on a GPU from others there; 0 in host memory.
    pub(super) fn identity(&self) -> u64 {
        if self.norm.is_on_gpu() { self.norm.address() } else { 0 }
    }

    /// The weights where `device` computes. On a GPU they become bf16 in one allocation, in the order of `tensors`, so an
    /// expert's matrices lie as far from the next expert's as everybody's. `progress` is told the bytes done and in all.
    pub fn to_device(
        self,
        config: &ModelConfig,
        device: &Device,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Weights> {
        let Some(mut place) = Arena::new(config, device)? else { return Ok(self) };
        let (mut done, all) = (0, self.bytes());
        let mut tensors = self.tensors().into_iter();
        Weights::build(config, |name, shape| {
            let (_, from) = tensors.next().unwrap_or_else(|| unreachable!("{name} has a tensor in host memory"));
            let to = place.take(shape);
            to.upload_as_bf16(from)?;
            done += from.n_bytes() as u64;
            progress(done, all)?;
            Ok(to)
        })
    }

    /// Copies in host memory: the same weights, as bf16 where they lie on a GPU.
    pub fn to_host(&self, config: &ModelConfig) -> Result<Weights> {
        let mut tensors = self.tensors().into_iter();
        Weights::build(config, |name, _| {
            let (_, from) = tensors.next().unwrap_or_else(|| unreachable!("{name} has a tensor"));
            from.to_host()
        })
    }

    /// Bytes that the weights of a model take on a GPU.
    pub fn bytes_on_gpu(config: &ModelConfig) -> u64 {
        config.tensor_shapes().iter().map(|(_, shape)| Arena::bytes_of(*shape) as u64).sum()
    }

    /// The output projection, [V, C].
    pub fn head(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The output projection, to be added to (gradients).
    pub fn head_mut(&mut self) -> &mut Tensor {
        self.head.as_mut().unwrap_or(&mut self.embedding)
    }

    /// Every tensor with its Hugging Face name, in the order of `build`.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("model.embed_tokens.weight".to_string(), &self.embedding)];
        for (l, layer) in self.layers.iter().enumerate() {
            let mut part = |name: &str, t| all.push((format!("model.layers.{l}.{name}.weight"), t));
            part("input_layernorm", &layer.input_norm);
            part("self_attn.q_proj", &layer.q);
            part("self_attn.k_proj", &layer.k);
            part("self_attn.v_proj", &layer.v);
            part("self_attn.o_proj", &layer.o);
            part("self_attn.q_norm", &layer.q_norm);
            part("self_attn.k_norm", &layer.k_norm);
            part("post_attention_layernorm", &layer.post_norm);
            match &layer.mlp {
                Mlp::Dense(ffn) => {
                    part("mlp.gate_proj", &ffn.gate);
                    part("mlp.up_proj", &ffn.up);
                    part("mlp.down_proj", &ffn.down);
                }
                Mlp::Experts { router, experts } => {
                    part("mlp.gate", router);
                    for (e, ffn) in experts.iter().enumerate() {
                        part(&format!("mlp.experts.{e}.gate_proj"), &ffn.gate);
                        part(&format!("mlp.experts.{e}.up_proj"), &ffn.up);
                        part(&format!("mlp.experts.{e}.down_proj"), &ffn.down);
                    }
                }
            }
        }
        all.push(("model.norm.weight".to_string(), &self.norm));
        if let Some(head) = &self.head {
            all.push(("lm_head.weight".to_string(), head));
        }
        all
    }

    /// Every tensor, in the order of `tensors`.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let mut all = vec![&mut self.embedding];
        for layer in &mut self.layers {
            all.extend([&mut layer.input_norm, &mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o]);
            all.extend([&mut layer.q_norm, &mut layer.k_norm, &mut layer.post_norm]);
            match &mut layer.mlp {
                Mlp::Dense(ffn) => all.extend([&mut ffn.gate, &mut ffn.up, &mut ffn.down]),
                Mlp::Experts { router, experts } => {
                    all.push(router);
                    for ffn in experts {
                        all.extend([&mut ffn.gate, &mut ffn.up, &mut ffn.down]);
                    }
                }
            }
        }
        all.push(&mut self.norm);
        all.extend(self.head.as_mut());
        all
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, t)| t.shape().elements() as u64).sum()
    }

    /// Bytes that one forward pass reads: all but the embedding table of an untied model, of which only rows are read.
    pub fn bytes_per_pass(&self) -> u64 {
        let table = if self.head.is_some() { self.embedding.n_bytes() as u64 } else { 0 };
        self.bytes() - table
    }

    /// Bytes as stored.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|(_, t)| t.n_bytes() as u64).sum()
    }
}

/// One allocation on a GPU from which a model's tensors are cut one behind another.
struct Arena {
    all: Buffer,
    used: usize,
}

impl Arena {
    /// Room for a model's weights; None where they stay in host memory.
    fn new(config: &ModelConfig, device: &Device) -> Result<Option<Arena>> {
        let bytes = Weights::bytes_on_gpu(config) as usize;
        Ok(device.allocate(bytes)?.map(|all| Arena { all, used: 0 }))
    }

    fn bytes_of(shape: Shape) -> usize {
        (shape.elements() * Dtype::Bf16.size()).next_multiple_of(256)
    }

    fn take(&mut self, shape: Shape) -> Tensor {
        let buffer = self.all.view(self.used, shape.elements() * Dtype::Bf16.size());
        self.used += Arena::bytes_of(shape);
        Tensor::over(Dtype::Bf16, shape, buffer)
    }
}
