//! What a model takes of memory, before anything of it is allocated: every number by the formula of whoever allocates.
#![forbid(unsafe_code)]

use super::activations::Recompute;
use super::backward::BackwardScratch;
use super::{Activations, ModelConfig, Weights, context_of, heads, page_shape};
use crate::backend::batch::{MAX_DECODE_ROWS, Plan};
use crate::backend::cpu::Cpu;
use crate::backend::page::PAGE;
use crate::backend::{Batch, Compute, Device, Tensor, ops};
use crate::error::Result;
use crate::tensor::Dtype;

/// What is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Tokens of a timeline; 0: what the configuration says.
    pub max_context: usize,
    /// Rows of a round at most.
    pub rows: usize,
    /// Parameters of the weights.
    pub parameters: u64,
    /// Bytes of the weights as they are stored.
    pub stored: u64,
}

/// Bytes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Whether they are a device's of its own.
    pub on_device: bool,
    /// Tokens of a timeline.
    pub max_context: usize,
    /// Weights: as stored in host memory, as bf16 on a GPU.
    pub weights: u64,
    /// Rotary angles of all positions.
    pub rotary_table: u64,
    /// KV cache of one token.
    pub kv_per_token: u64,
    /// KV cache of one page, which is the least that a timeline takes.
    pub kv_page: u64,
    /// Activations of a round of as many rows as there may be.
    pub activations: u64,
    /// Logits of a full round of decode rows, with what leads to them.
    pub head: u64,
    /// What a step needs besides: on a GPU the facts of its rows and the parts of attention of one timeline that fills the
    /// context, on the CPU the scratch of its ops.
    pub scratch: u64,
    /// What full fine-tuning takes besides serving, with a teacher of the same shape, where nothing is computed again.
    pub training: TrainingPlan,
}

/// What an update is planned for.
#[derive(Clone, Copy, Debug)]
pub struct TrainingLoad {
    /// Tokens of one forward and backward pass.
    pub rows: usize,
    /// Pages of their timelines.
    pub pages: usize,
    /// Parameters that are trained: all, or an adapter's.
    pub parameters: u64,
    /// Bytes of them in the form that is served.
    pub stored: u64,
    /// Rank of the adapter; 0: none.
    pub rank: usize,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// Hidden size and vocabulary of the teacher, if its logits are wanted.
    pub teacher: Option<(usize, usize)>,
}

/// Bytes of an update beside serving, in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingPlan {
    /// f32 masters.
    pub masters: u64,
    /// Both f32 moments.
    pub moments: u64,
    /// f32 gradients.
    pub gradients: u64,
    /// What a step makes, beside what is served.
    pub weights: u64,
    /// Pages of the timelines of one pass.
    pub kv: u64,
    /// Activations of one pass, as far as they are kept for the backward.
    pub activations: u64,
    /// Gradients of activations of one pass.
    pub backward: u64,
    /// Scratch of the ops.
    pub scratch: u64,
    /// Logits and hidden states of `LOSS_ROWS` rows at a time, of student and teacher, before and after a step.
    pub logits: u64,
}

/// Rows whose logits an update holds at once.
pub const LOSS_ROWS: usize = 64;

impl MemoryPlan {
    /// The plan of a model on a device. Errors: those of [`context_of`].
    pub fn new(config: &ModelConfig, device: &Device, compute: Compute, load: Load) -> Result<MemoryPlan> {
        let max_context = context_of(config, device, load.max_context)?;
        let on_device = device.free_bytes()?.is_some();
        let page = page_shape(config, compute).bytes();
        Ok(MemoryPlan {
            on_device,
            max_context,
            weights: if on_device { Weights::bytes_on_gpu(config) } else { load.stored },
            rotary_table: ops::RopeTable::bytes(device, max_context, config.head_dim),
            kv_per_token: (page / PAGE) as u64,
            kv_page: device.taken(page),
            activations: Activations::bytes(device, config, load.rows, None),
            head: Activations::head_bytes(device, config, MAX_DECODE_ROWS),
            scratch: match device {
                Device::Cpu(_) => scratch(config, device, compute, load.rows, max_context),
                Device::Cuda(_) => {
                    let decode = Plan::of_decode(1, max_context);
                    ops::AttendScratch::bytes(device, heads(config), decode) + Batch::bytes(device, decode)
                }
            },
            training: TrainingPlan::new(
                config,
                device,
                compute,
                TrainingLoad {
                    rows: load.rows,
                    pages: load.rows.div_ceil(PAGE),
                    parameters: load.parameters,
                    stored: load.stored,
                    rank: 0,
                    recompute: Recompute::Nothing,
                    teacher: Some((config.hidden_size, config.vocab_size)),
                },
            ),
        })
    }

    /// KV cache of a timeline that fills the context.
    pub fn kv_session(&self) -> u64 {
        self.kv_per_token * self.max_context as u64
    }

    /// All but KV cache and training.
    pub fn serving(&self) -> u64 {
        self.weights + self.rotary_table + self.activations + self.head + self.scratch
    }

    /// What loading and a first token take of the device's own memory; None where there is none.
    pub fn device(&self) -> Option<u64> {
        self.on_device.then(|| self.serving() + self.kv_page)
    }

    /// What loading and a first token take of host memory; on a GPU that is nothing to speak of.
    pub fn host(&self) -> u64 {
        if self.on_device { 0 } else { self.serving() + self.kv_page }
    }
}

impl TrainingPlan {
    /// The plan of a model that is trained on a device.
    pub fn new(config: &ModelConfig, device: &Device, compute: Compute, load: TrainingLoad) -> TrainingPlan {
        let TrainingLoad { rows, pages, parameters, stored, rank, recompute, teacher } = load;
        let f32s = Dtype::F32.size() as u64;
        let of = |rows: usize, width: usize| device.taken(rows * width * Dtype::F32.size());
        let (c, v) = (config.hidden_size, config.vocab_size);
        let of_teacher = teacher.map_or(0, |(width, vocabulary)| {
            let in_students_rows = if vocabulary == v { 0 } else { of(LOSS_ROWS, v) };
            of(LOSS_ROWS, width) + of(LOSS_ROWS, vocabulary) + in_students_rows
        });
        TrainingPlan {
            masters: parameters * f32s,
            moments: 2 * parameters * f32s,
            gradients: parameters * f32s,
            weights: stored,
            kv: pages as u64 * device.taken(page_shape(config, compute).bytes()),
            activations: Activations::bytes(device, config, rows, Some(recompute)),
            backward: BackwardScratch::bytes(device, config, rows),
            scratch: match device {
                Device::Cpu(_) => {
                    let backward = ops::attention_backward_scratch_bytes(heads(config), rows);
                    let of_adapter = 2 * Cpu::scratch_bytes(rows * rank * Dtype::F32.size());
                    scratch(config, device, compute, rows.max(LOSS_ROWS), rows) + backward + of_adapter
                }
                Device::Cuda(_) => 0,
            },
            // Of the build one set of logits, of the measure of a step two; of hidden states two, and one of the pass.
            logits: 3 * of(LOSS_ROWS, v) + 2 * of(LOSS_ROWS, c) + of(Tensor::rows_reserved(rows), c) + of_teacher,
        }
    }

    /// What does not depend on how many tokens are trained at once.
    pub fn fixed(&self) -> u64 {
        self.masters + self.moments + self.gradients + self.weights
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.fixed() + self.kv + self.activations + self.backward + self.scratch + self.logits
    }
}

/// The most scratch that passes over `n` rows leave to each other on the CPU, in a context of so many tokens: products take
/// one buffer, attention another, and a draw a third.
fn scratch(config: &ModelConfig, device: &Device, compute: Compute, n: usize, context: usize) -> u64 {
    let Device::Cpu(cpu) = device else { return 0 };
    let heads = heads(config);
    let expert = config.moe.as_ref().map_or(0, |moe| moe.expert_intermediate_size);
    let widths = [config.hidden_size, config.intermediate_size, expert, heads.n_heads * heads.head_dim];
    let product = ops::linear_scratch_bytes(cpu, n, widths.into_iter().max().unwrap_or(0), compute);
    product + ops::attention_scratch_bytes(cpu, heads, n, context) + ops::sample_scratch_bytes(config.vocab_size)
}
