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
use crate::backend::{Device, Matrix, Tensor, host, ops};
use crate::error::{Error, Fault, Result};
use crate::format::StoredTensor;
use crate::tensor::{Dtype, Shape};

/// All tensors of a model.
#[derive(Debug)]
pub struct Weights {
    /// [V, C]; also the output projection of a tied model
    pub embedding: Matrix,
    /// L of them
    pub layers: Vec<Layer>,
    /// `[C]`
    pub norm: Tensor,
    /// [V, C] of an untied model
    pub head: Option<Matrix>,
}

/// One transformer layer.
#[derive(Debug)]
pub struct Layer {
    /// `[C]`
    pub input_norm: Tensor,
    /// [H*D, C]
    pub q: Matrix,
    /// [G*D, C]
    pub k: Matrix,
    /// [G*D, C]
    pub v: Matrix,
    /// [C, H*D]
    pub o: Matrix,
    /// `[D]`, of a family that norms query heads
    pub q_norm: Option<Tensor>,
    /// `[D]`, likewise of key heads
    pub k_norm: Option<Tensor>,
    /// `[C]`
    pub post_norm: Tensor,
    /// dense or experts
    pub mlp: Mlp,
}

/// The feed-forward part of a layer.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one a layer
pub enum Mlp {
    /// One SwiGLU block.
    Dense(Ffn),
    /// A router and its experts.
    Experts {
        /// [E, C]
        router: Matrix,
        /// E of them
        experts: Vec<Ffn>,
    },
}

impl Layer {
    /// What is read next when attention is done, in this order.
    pub(super) fn read_after_attention(&self) -> [&Tensor; 2] {
        match &self.mlp {
            Mlp::Dense(ffn) => [self.o.dense(), ffn.gate.dense()],
            Mlp::Experts { router, .. } => [self.o.dense(), router.dense()],
        }
    }
}

impl Ffn {
    /// The matrices without adapters, as ops take them.
    pub fn matrices(&self) -> ops::FfnWeights<'_> {
        ops::FfnWeights { gate: (&self.gate).into(), up: (&self.up).into(), down: (&self.down).into() }
    }
}

/// One SwiGLU block: down(silu(gate x) * up x).
#[derive(Debug)]
pub struct Ffn {
    /// [F, C]
    pub gate: Matrix,
    /// [F, C]
    pub up: Matrix,
    /// [C, F]
    pub down: Matrix,
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
        let embedding = get("model.embed_tokens.weight".into())?.into();
        let mut layers = host::with_room(config.n_layers)?;
        for l in 0..config.n_layers {
            let prefix = format!("model.layers.{l}");
            let mut part = |name: &str| get(format!("{prefix}.{name}"));
            let input_norm = part("input_layernorm.weight")?;
            let mut matrix = |name: &str| -> Result<Matrix> {
                let mut matrix = Matrix::from(part(&format!("{name}.weight"))?);
                let bias = format!("{name}.bias");
                let is_biased = shapes.contains_key(&format!("{prefix}.{bias}"));
                matrix.bias = is_biased.then(|| part(&bias)).transpose()?;
                Ok(matrix)
            };
            let (q, k) = (matrix("self_attn.q_proj")?, matrix("self_attn.k_proj")?);
            let (v, o) = (matrix("self_attn.v_proj")?, matrix("self_attn.o_proj")?);
            let mut head_norm = |name: &str| config.head_norms.then(|| part(name)).transpose();
            let (q_norm, k_norm) = (head_norm("self_attn.q_norm.weight")?, head_norm("self_attn.k_norm.weight")?);
            let post_norm = part("post_attention_layernorm.weight")?;
            let mut matrix = |name: &str| part(&format!("{name}.weight")).map(Matrix::from);
            let mlp = match &config.moe {
                Some(moe) if config.is_moe_layer(l) => {
                    let router = matrix("mlp.gate")?;
                    let mut experts = host::with_room(moe.n_experts)?;
                    for e in 0..moe.n_experts {
                        let mut matrix = |name: &str| matrix(&format!("mlp.experts.{e}.{name}"));
                        let (gate, up, down) = (matrix("gate_proj")?, matrix("up_proj")?, matrix("down_proj")?);
                        experts.push(Ffn { gate, up, down });
                    }
                    Mlp::Experts { router, experts }
                }
                _ => Mlp::Dense(Ffn {
                    gate: matrix("mlp.gate_proj")?,
                    up: matrix("mlp.up_proj")?,
                    down: matrix("mlp.down_proj")?,
                }),
            };
            layers.push(Layer { input_norm, q, k, v, o, q_norm, k_norm, post_norm, mlp });
        }
        let norm = get("model.norm.weight".into())?;
        let head = if config.tied { None } else { Some(get("lm_head.weight".into())?.into()) };
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

    /// A copy in memory of its own.
    pub fn copied(config: &ModelConfig, other: &Weights) -> Result<Weights> {
        let mut tensors = other.tensors().into_iter();
        Weights::build(config, |name, _| {
            let (_, from) = tensors.next().unwrap_or_else(|| unreachable!("{name} has a tensor"));
            from.to_host()
        })
    }

    /// Zeros with the shapes and dtypes of another set.
    pub fn like(config: &ModelConfig, other: &Weights) -> Result<Weights> {
        let mut dtypes = other.tensors().into_iter().map(|(_, t)| t.dtype());
        Weights::build(config, |_, shape| Tensor::zeros(dtypes.next().unwrap_or(Dtype::F32), shape.extents()))
    }

    /// What tells these weights from others: sixteen hexadecimal digits over the configuration, the tensors' names, dtypes
    /// and shapes, and pieces of each one's bytes, 64 or, of thousands of tensors, fewer. It reads tens of megabytes at
    /// most and not the model; who edits single numbers between the pieces is not found out. In host memory.
    pub fn fingerprint(&self, config: &ModelConfig) -> String {
        const PIECE: usize = 1024;
        let tensors = self.tensors();
        let n_pieces = (32_768 / tensors.len().max(1)).clamp(2, 64);
        let mut hash = 0;
        let mut take = |bytes: &[u8]| hash = crate::random::mix_bytes(hash, bytes);
        take(config.to_json().to_string().as_bytes());
        for (name, tensor) in tensors {
            take(format!("{name} {} {}", tensor.dtype(), tensor.shape()).as_bytes());
            let bytes = tensor.bytes();
            let step = (bytes.len() / n_pieces).max(PIECE);
            bytes.chunks(step).for_each(|piece| take(&piece[..piece.len().min(PIECE)]));
            take(&bytes[bytes.len().saturating_sub(PIECE)..]);
        }
        format!("{hash:016x}")
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
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The output projection, to be added to (gradients).
    pub fn head_mut(&mut self) -> &mut Matrix {
        self.head.as_mut().unwrap_or(&mut self.embedding)
    }

    /// Every tensor with its Hugging Face name, in the order of `build`.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("model.embed_tokens.weight".to_string(), self.embedding.dense())];
        for (l, layer) in self.layers.iter().enumerate() {
            let mut part = |name: &str, t| all.push((format!("model.layers.{l}.{name}"), t));
            part("input_layernorm.weight", &layer.input_norm);
            for (name, m) in [("q_proj", &layer.q), ("k_proj", &layer.k), ("v_proj", &layer.v), ("o_proj", &layer.o)] {
                part(&format!("self_attn.{name}.weight"), m.dense());
                if let Some(bias) = &m.bias {
                    part(&format!("self_attn.{name}.bias"), bias);
                }
            }
            for (name, norm) in [("q_norm", &layer.q_norm), ("k_norm", &layer.k_norm)] {
                if let Some(norm) = norm {
                    part(&format!("self_attn.{name}.weight"), norm);
                }
            }
            part("post_attention_layernorm.weight", &layer.post_norm);
            let mut blocks = Vec::new();
            match &layer.mlp {
                Mlp::Dense(ffn) => blocks.push(("mlp".to_string(), ffn)),
                Mlp::Experts { router, experts } => {
                    part("mlp.gate.weight", router.dense());
                    blocks.extend(experts.iter().enumerate().map(|(e, ffn)| (format!("mlp.experts.{e}"), ffn)));
                }
            }
            for (block, Ffn { gate, up, down }) in blocks {
                for (name, m) in [("gate_proj", gate), ("up_proj", up), ("down_proj", down)] {
                    part(&format!("{block}.{name}.weight"), m.dense());
                }
            }
        }
        all.push(("model.norm.weight".to_string(), &self.norm));
        all.extend(self.head.as_ref().map(|head| ("lm_head.weight".to_string(), head.dense())));
        all
    }

    /// Every tensor, in the order of `tensors`.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let mut all: Vec<&mut Tensor> = self.embedding.tensors_mut().collect();
        for layer in &mut self.layers {
            let Layer { input_norm, q, k, v, o, q_norm, k_norm, post_norm, mlp } = layer;
            all.push(input_norm);
            all.extend([q, k, v, o].into_iter().flat_map(Matrix::tensors_mut));
            all.extend(q_norm.iter_mut().chain(k_norm).chain([post_norm]));
            match mlp {
                Mlp::Dense(Ffn { gate, up, down }) => all.extend([gate, up, down].map(Matrix::dense_mut)),
                Mlp::Experts { router, experts } => {
                    all.push(router.dense_mut());
                    let matrices = experts.iter_mut().flat_map(|Ffn { gate, up, down }| [gate, up, down]);
                    all.extend(matrices.map(Matrix::dense_mut));
                }
            }
        }
        all.push(&mut self.norm);
        all.extend(self.head.iter_mut().flat_map(Matrix::tensors_mut));
        all
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, t)| t.shape().elements() as u64).sum()
    }

    /// Bytes that one forward pass reads: all but the embedding table of an untied model, of which only rows are read.
    pub fn bytes_per_pass(&self) -> u64 {
        let table = if self.head.is_some() { self.embedding.dense().n_bytes() as u64 } else { 0 };
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
