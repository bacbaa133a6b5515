//! What is trained of a model: all its weights, or an adapter beside them. Gradients, f32 masters, moments and what an
//! optimiser step makes are of one form, so a step is written once.
#![forbid(unsafe_code)]

use super::adapter::Adapter;
use super::backward::Gradients;
use super::{ModelConfig, Weights};
use crate::backend::{Device, Tensor, ops};
use crate::error::Result;
use crate::tensor::Dtype;

/// A set of parameters.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a handful a model
pub enum Parameters {
    /// Of full fine-tuning.
    Weights(Weights),
    /// Of an adapter.
    Adapter(Adapter),
}

impl From<Weights> for Parameters {
    fn from(weights: Weights) -> Parameters {
        Parameters::Weights(weights)
    }
}

impl<'a> From<&'a mut Parameters> for Gradients<'a> {
    fn from(parameters: &'a mut Parameters) -> Gradients<'a> {
        match parameters {
            Parameters::Weights(weights) => Gradients::Weights(weights),
            Parameters::Adapter(adapter) => Gradients::Adapter(adapter),
        }
    }
}

impl Parameters {
    /// The adapter, if it is one.
    pub fn adapter(self) -> Option<Adapter> {
        match self {
            Parameters::Weights(_) => None,
            Parameters::Adapter(adapter) => Some(adapter),
        }
    }

    /// Every tensor with its name, in one order for sets of one form.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        match self {
            Parameters::Weights(weights) => weights.tensors(),
            Parameters::Adapter(adapter) => adapter.tensors(),
        }
    }

    /// Every tensor, in the order of `tensors`.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        match self {
            Parameters::Weights(weights) => weights.tensors_mut(),
            Parameters::Adapter(adapter) => adapter.tensors_mut(),
        }
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> u64 {
        match self {
            Parameters::Weights(weights) => weights.n_parameters(),
            Parameters::Adapter(adapter) => adapter.n_parameters(),
        }
    }

    /// Whether the tensors have the same names and shapes.
    pub fn has_form_of(&self, other: &Parameters) -> bool {
        let (own, others) = (self.tensors(), other.tensors());
        own.len() == others.len() && own.iter().zip(&others).all(|(a, b)| a.0 == b.0 && a.1.shape() == b.1.shape())
    }

    /// f32 zeros of the same form.
    pub fn zeros(&self, config: &ModelConfig) -> Result<Parameters> {
        Ok(match self {
            Parameters::Weights(_) => Parameters::Weights(Weights::zeros(config)?),
            Parameters::Adapter(adapter) => Parameters::Adapter(Adapter::zeros(config, &adapter.lora, Dtype::F32)?),
        })
    }

    /// Overwrites them by f32 masters, rounded to the stored dtypes.
    pub fn round_from(&mut self, device: &Device, masters: &Parameters) {
        for (to, (_, from)) in self.tensors_mut().into_iter().zip(masters.tensors()) {
            ops::convert(device, to, from);
        }
    }
}
