//! One generation of an adapter: pairs of low-rank matrices beside the projections of a model (LoRA), never changed once it
//! is served. The same struct holds its gradients, f32 masters and moments.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::ModelConfig;
use super::weights::{Mlp, Weights};
use crate::backend::{Device, LayerPairs, LoraPair, Matrix, Projection, Tensor, host, ops};
use crate::error::{Error, Fault, Result};
use crate::tensor::Dtype;

/// The largest rank; more than the narrower side of a matrix says nothing anyway.
pub const MAX_RANK: usize = 4096;

/// What an adapter is, apart from its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// R, at most the narrower side of each adapted matrix.
    pub rank: usize,
    /// What is added is scaled by alpha / R.
    pub alpha: f64,
    /// By alpha / sqrt(R) instead (rsLoRA, arXiv 2312.03732).
    pub rslora: bool,
    /// The adapted projections, in their order; none stands for all that the model has.
    pub targets: Vec<Projection>,
}

impl Lora {
    /// The factor of what is added.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// The targets' names.
    pub fn target_names(&self) -> Vec<&'static str> {
        self.targets.iter().map(|target| target.name()).collect()
    }

    /// The same with the targets spelt out, checked against a model.
    ///
    /// Errors: `AdapterForm` for a rank or alpha that no adapter can have; `AdapterMismatch` for a rank beyond the matrix or
    /// a target that the model does not have.
    pub fn of(&self, config: &ModelConfig) -> Result<Lora> {
        let form = |why: String| Err(Error::new(Fault::AdapterForm, why));
        if self.rank == 0 || self.rank > MAX_RANK {
            return form(format!("rank: wanted 1 to {MAX_RANK}, found {}", self.rank));
        }
        let scale = self.scale();
        if !(self.alpha > 0.0 && scale > 0.0 && scale.is_finite()) {
            let why = "a positive number whose quotient by the rank a 32-bit float holds";
            return form(format!("alpha: wanted {why}, found {}", self.alpha));
        }
        let mismatch = |why: String| Err(Error::new(Fault::AdapterMismatch, why));
        let is_sparse = |l| config.is_moe_layer(l);
        let has = |target: Projection| target.module() == "self_attn" || !(0..config.n_layers).any(is_sparse);
        let targets: Vec<Projection> = match self.targets.is_empty() {
            true => Projection::ALL.into_iter().filter(|&target| has(target)).collect(),
            false => Projection::ALL.into_iter().filter(|target| self.targets.contains(target)).collect(),
        };
        for &target in &targets {
            let name = target.name();
            if !has(target) {
                return mismatch(format!(
                    "target {name}: wanted a projection of attention, since in this model's layers it is a matrix of each \
                     expert, and experts have no adapters; leave it out"
                ));
            }
            let (o, k) = extents(config, target);
            if self.rank > o.min(k) {
                let why = format!("wanted at most {}, the narrower side of {name} [{o}, {k}]", o.min(k));
                return mismatch(format!("rank: {why}, found {}", self.rank));
            }
        }
        Ok(Lora { targets, ..self.clone() })
    }
}

/// [O, K] of a projection of a dense layer.
fn extents(config: &ModelConfig, projection: Projection) -> (usize, usize) {
    let (c, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
    match projection {
        Projection::Q => (config.n_heads * d, c),
        Projection::K | Projection::V => (config.n_kv_heads * d, c),
        Projection::O => (c, config.n_heads * d),
        Projection::Gate | Projection::Up => (f, c),
        Projection::Down => (c, f),
    }
}

/// The pairs of a model's layers.
#[derive(Debug)]
pub struct Adapter {
    /// What it is; the targets are spelt out.
    pub lora: Lora,
    layers: Vec<LayerPairs>,
}

/// Which matrix of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A [R, K]
    A,
    /// B, kept as its transpose [R, O]
    B,
}

impl Side {
    /// Its name in PEFT's files.
    pub fn name(self) -> &'static str {
        match self {
            Side::A => "lora_A",
            Side::B => "lora_B",
        }
    }
}

/// The name of a pair's matrix in PEFT's files.
pub(super) fn name_of(layer: usize, projection: Projection, side: Side) -> String {
    let (module, name) = (projection.module(), projection.name());
    format!("base_model.model.model.layers.{layer}.{module}.{name}.{}.weight", side.name())
}

impl Adapter {
    /// Builds the pairs by asking `make` for every matrix by layer, projection, side and extents [R, K] or [R, O].
    pub fn build(
        config: &ModelConfig,
        lora: &Lora,
        mut make: impl FnMut(usize, Projection, Side, [usize; 2]) -> Result<Tensor>,
    ) -> Result<Adapter> {
        let lora = lora.of(config)?;
        let (rank, scale) = (lora.rank, lora.scale());
        let mut layers = host::with_room(config.n_layers)?;
        for l in 0..config.n_layers {
            let mut pairs = LayerPairs::default();
            for &target in &lora.targets {
                let (o, k) = extents(config, target);
                let (a, b) = (make(l, target, Side::A, [rank, k])?, make(l, target, Side::B, [rank, o])?);
                pairs[target as usize] = Some(LoraPair { a, b, scale });
            }
            layers.push(pairs);
        }
        Ok(Adapter { lora, layers })
    }

    /// A fresh adapter, as PEFT begins one: A uniform within 1 / sqrt(K) by the seed, B zero, so that it changes nothing.
    /// f32, like masters.
    pub fn fresh(config: &ModelConfig, lora: &Lora, device: &Device, seed: u64) -> Result<Adapter> {
        let mut number = 0;
        Adapter::build(config, lora, |_, _, side, extents| {
            let mut tensor = Tensor::zeros(Dtype::F32, &extents)?;
            if side == Side::A {
                number += 1;
                ops::fill_random(device, &mut tensor, seed, number, 2.0 / (extents[1] as f32).sqrt());
            }
            Ok(tensor)
        })
    }

    /// Zeros of the same form, all of one dtype.
    pub fn zeros(config: &ModelConfig, lora: &Lora, dtype: Dtype) -> Result<Adapter> {
        Adapter::build(config, lora, |_, _, _, extents| Tensor::zeros(dtype, &extents))
    }

    /// f32 copies: the optimiser's masters.
    pub fn widened(&self, config: &ModelConfig) -> Result<Adapter> {
        let mut out = Adapter::zeros(config, &self.lora, Dtype::F32)?;
        for (to, (.., from)) in out.tensors_mut().into_iter().zip(self.sides()) {
            from.widen_into(to.f32_mut());
        }
        Ok(out)
    }

    /// The dtype of all its matrices.
    pub fn dtype(&self) -> Dtype {
        self.sides().next().map_or(Dtype::F32, |(.., t)| t.dtype())
    }

    /// Parameters of an adapter of this form.
    pub fn parameters_of(config: &ModelConfig, lora: &Lora) -> u64 {
        let of = |&target| {
            let (o, k) = extents(config, target);
            lora.rank * (o + k)
        };
        (config.n_layers * lora.targets.iter().map(of).sum::<usize>()) as u64
    }

    /// Refuses pairs that are not this model's.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        if self.layers.len() != config.n_layers || self.lora.of(config)? != self.lora {
            let why = format!("the adapter has {} layers, the model {}", self.layers.len(), config.n_layers);
            return Err(Error::new(Fault::AdapterMismatch, why));
        }
        for pairs in &self.layers {
            for &target in &self.lora.targets {
                let (o, k) = extents(config, target);
                let fits = |pair: &LoraPair| {
                    let rank = self.lora.rank;
                    pair.a.shape().extents() == [rank, k] && pair.b.shape().extents() == [rank, o]
                };
                if !pairs[target as usize].as_ref().is_some_and(fits) {
                    let why = format!("{}: the adapter's matrices are not those of [{o}, {k}]", target.name());
                    return Err(Error::new(Fault::AdapterMismatch, why));
                }
            }
        }
        Ok(())
    }

    /// The pairs of layer `l`.
    pub fn layer(&self, l: usize) -> &LayerPairs {
        &self.layers[l]
    }

    /// The same, to be added to (gradients).
    pub fn layer_mut(&mut self, l: usize) -> &mut LayerPairs {
        &mut self.layers[l]
    }

    /// Every matrix with its name in PEFT's files, A before B. B stands transposed, [R, O].
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        self.sides().map(|(l, projection, side, t)| (name_of(l, projection, side), t)).collect()
    }

    /// Every matrix with where it belongs, in the order of `tensors`.
    pub(super) fn sides(&self) -> impl Iterator<Item = (usize, Projection, Side, &Tensor)> {
        self.layers.iter().enumerate().flat_map(|(l, pairs)| {
            let pairs = Projection::ALL.into_iter().zip(pairs);
            pairs.filter_map(move |(projection, pair)| pair.as_ref().map(|pair| (l, projection, pair))).flat_map(
                |(l, projection, pair)| [(l, projection, Side::A, &pair.a), (l, projection, Side::B, &pair.b)],
            )
        })
    }

    /// Every matrix, in the order of `tensors`.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let pairs = self.layers.iter_mut().flatten().flatten();
        pairs.flat_map(|LoraPair { a, b, .. }| [a, b]).collect()
    }

    /// Bytes as stored.
    pub fn bytes(&self) -> u64 {
        self.sides().map(|(.., t)| t.n_bytes() as u64).sum()
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> u64 {
        self.sides().map(|(.., t)| t.shape().elements() as u64).sum()
    }

    /// Rank, alpha, targets and sizes, for programs.
    pub fn describe(&self) -> Value {
        json!({
            "rank": self.lora.rank,
            "alpha": self.lora.alpha,
            "rslora": self.lora.rslora,
            "targets": self.lora.target_names(),
            "parameters": self.n_parameters(),
            "bytes": self.bytes(),
        })
    }

    /// The weights with the adapter folded in: W + s B A, rounded to the dtype of W. A model of its own, whose numbers are
    /// near those of the adapted one and not the same.
    pub fn merged(&self, config: &ModelConfig, device: &Device, base: &Weights) -> Result<Weights> {
        let mut merged = Weights::copied(config, base)?;
        for (layer, pairs) in merged.layers.iter_mut().zip(&self.layers) {
            let into = |matrix: &mut Matrix, projection: Projection| {
                let Some(pair) = &pairs[projection as usize] else { return Ok(()) };
                ops::lora_merge(device, matrix.dense_mut(), pair)?;
                if matrix.dense().is_finite() {
                    return Ok(());
                }
                let why =
                    format!("{}: merged, it is beyond what its dtype holds; serve it unmerged", projection.name());
                Err(Error::new(Fault::NotFinite, why))
            };
            into(&mut layer.q, Projection::Q)?;
            into(&mut layer.k, Projection::K)?;
            into(&mut layer.v, Projection::V)?;
            into(&mut layer.o, Projection::O)?;
            if let Mlp::Dense(ffn) = &mut layer.mlp {
                into(&mut ffn.gate, Projection::Gate)?;
                into(&mut ffn.up, Projection::Up)?;
                into(&mut ffn.down, Projection::Down)?;
            }
        }
        Ok(merged)
    }
}
