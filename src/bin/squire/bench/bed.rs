//! What is measured: an engine on the processor and a model of a known shape with random weights.
#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};
use squire::backend::{Device, KernelSet};
use squire::model::{Load, MemoryPlan, ModelConfig};
use squire::serve::{Engine, EngineOptions, ServedModel};
use squire::tensor::Dtype;

use crate::bandwidth::free_memory;
use crate::options::EngineArgs;
use crate::output::{Failure, bytes};
use crate::waiting::Waiting;

/// An engine, refused where the shape would not fit.
pub struct Bed {
    pub engine: Engine,
    pub n_threads: usize,
    pub kernels: KernelSet,
    /// bytes of memory; None where the system does not say
    pub free: Option<u64>,
    name: &'static str,
    config: ModelConfig,
    context: usize,
}

impl Bed {
    /// For a model of that shape and timelines of `context` tokens, one at a time.
    pub fn make(
        (name, config): &(&'static str, ModelConfig),
        args: &EngineArgs,
        context: usize,
    ) -> Result<Bed, Failure> {
        // What a repeat has computed is not to be found by the next.
        let engine = Engine::new(EngineOptions { prefix_budget: 0, ..args.engine()? })?;
        let (needed, free) = (bytes_needed(config, context, &engine)?, free_memory());
        if let Some(free) = free.filter(|&free| free < needed) {
            let why =
                format!("shape {name} needs {needed} bytes ({}), {free} are free ({})", bytes(needed), bytes(free));
            return Err(Failure::Failed(why));
        }
        let Device::Cpu(cpu) = engine.device() else {
            return Err(Failure::Failed("squire bench measures the processor; use --backend cpu".into()));
        };
        let (n_threads, kernels, config) = (cpu.n_threads(), cpu.kernels(), config.clone());
        Ok(Bed { engine, n_threads, kernels, free, name, config, context })
    }

    /// The model.
    pub fn model(&self) -> Result<ServedModel, Failure> {
        let _waiting = Waiting::begin(format!("making random weights of {}", self.name));
        Ok(self.engine.random_model(self.config.clone(), Dtype::Bf16, 1, self.context)?)
    }

    /// What every kind of measurement says of itself.
    pub fn facts(&self, model: &ServedModel) -> Map<String, Value> {
        let weights = &model.current().weights;
        let facts = json!({
            "shape": self.name,
            "parameters": weights.n_parameters(),
            "weight_bytes": weights.bytes(),
            "compute": self.engine.options().compute.name(),
            "kernels": self.kernels.name(),
            "threads": self.n_threads,
            // What was found and not computed: a figure counts where there is none.
            "prefix_rows": self.engine.metrics().prefix_rows,
        });
        match facts {
            Value::Object(facts) => facts,
            _ => unreachable!("it is written as an object"),
        }
    }
}

/// Bytes that the bench will hold at once: what serving takes of bf16 weights, and the KV cache of one timeline.
fn bytes_needed(config: &ModelConfig, context: usize, engine: &Engine) -> squire::error::Result<u64> {
    let options = engine.options();
    let parameters = config.tensor_shapes().iter().map(|(_, s)| s.elements() as u64).sum();
    let load = Load { max_context: context, rows: options.max_batch_tokens, parameters, stored: 2 * parameters };
    let plan = MemoryPlan::new(config, engine.device(), options.compute, load)?;
    Ok(plan.serving() + plan.kv_session() + plan.kv_page)
}
