//! What a build works on: finished episodes with the teacher's side of them, and the buffers that are kept from one build to
//! the next.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::batch::TokenLoss;
use super::quantities::TeacherFacts;
use super::room::Fitted;
use super::teacher_request::Said;
use super::trajectory::Trajectory;
use crate::backend::ops::{self, RowLoss, Spread, Tail, TeacherRows, TopK};
use crate::backend::{Device, Tensor, host};
use crate::error::{Error, Fault, Result};
use crate::model::backward::BackwardScratch;
use crate::model::forward::head_forward;
use crate::model::plan::LOSS_ROWS;
use crate::model::{Activations, KvPool, Model, Parameters};
use crate::serve::{Bound, Hidden, Revision, ServedModel};
use crate::tensor::Dtype;

/// A finished training episode, waiting for its update.
pub struct Finished {
    /// The record.
    pub trajectory: Trajectory,
    /// The teacher's side; None without a teacher.
    pub scores: Option<Scores>,
    /// Whether the run's record has what the teacher says.
    pub is_noted: bool,
    /// Whether it came from a record, so that nobody here knows what weights its revision's number stood for.
    pub is_imported: bool,
}

/// A teacher's side of an episode.
pub enum Scores {
    /// A model's hidden states: with its output projection they are exact over the vocabulary.
    Hidden {
        /// Of the rows that predict action tokens, in the teacher's timeline; none where no loss asks for them.
        hidden: Hidden,
        /// The weights that computed them, to which the output projection belongs.
        revision: Bound,
    },
    /// What the host's teacher said.
    Said(Said),
}

impl Scores {
    /// The weights whose output projection they need. Scores of different weights do not go into one chunk.
    pub(super) fn weights(&self) -> Option<*const Revision> {
        match self {
            Scores::Hidden { revision, .. } => Some(std::ptr::from_ref::<Revision>(revision)),
            Scores::Said(_) => None,
        }
    }
}

/// Where a chunk's teacher rows stand.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum TeachersRows {
    /// Nowhere: no row asks for them.
    Nowhere,
    /// In the logits of the teacher's side.
    Logits,
    /// Among what was said.
    Said,
}

impl TeachersRows {
    /// The rows themselves.
    fn of<'a>(self, side: &'a Option<TeacherSide>, said: &'a TopK) -> TeacherRows<'a> {
        match (self, side) {
            (TeachersRows::Logits, Some(side)) => TeacherRows::Logits(side.compared()),
            (TeachersRows::Said, _) => TeacherRows::TopK(said),
            _ => TeacherRows::None,
        }
    }
}

/// Gives the ids from `vocabulary` on probability 0 in the first `n` rows of logits [N, V].
pub(super) fn leave_out(logits: &mut Tensor, vocabulary: usize, n: usize) {
    let v = logits.extent(1);
    if vocabulary < v {
        let rows = logits.f32_mut().chunks_exact_mut(v).take(n);
        rows.for_each(|row| row[vocabulary..].fill(f32::NEG_INFINITY));
    }
}

/// Buffers of a build, kept from one to the next.
pub struct Workspace {
    /// the student's
    device: Device,
    pub(super) pool: Arc<KvPool>,
    pub(super) activations: Activations,
    pub(super) scratch: BackwardScratch,
    /// [N, C] gradient of the hidden states
    pub(super) dhidden: Tensor,
    /// [LOSS_ROWS, C]
    pub(super) hidden: Tensor,
    /// [LOSS_ROWS, C]
    pub(super) dhidden_rows: Tensor,
    /// [LOSS_ROWS, V] logits, then their gradient
    pub(super) logits: Tensor,
    pub(super) teacher_side: Option<TeacherSide>,
    /// of a chunk, where the host's teacher says them
    said: TopK,
    /// of the last build, shared with its update
    pub(super) gradients: Option<Arc<Parameters>>,
    /// so much it has room for
    most: (usize, usize),
}

pub(super) struct TeacherSide {
    /// [LOSS_ROWS, C of the teacher]
    hidden: Tensor,
    /// [LOSS_ROWS, V of the teacher]
    logits: Tensor,
    /// [LOSS_ROWS, V of the student], where that is another
    in_students_rows: Option<Tensor>,
}

impl TeacherSide {
    /// The logits as the student's are laid out.
    pub(super) fn compared(&self) -> &Tensor {
        self.in_students_rows.as_ref().unwrap_or(&self.logits)
    }
}

impl Workspace {
    /// Empty buffers; they grow to what the batches need.
    pub fn new(model: &Model, teacher: Option<&ServedModel>) -> Result<Workspace> {
        let (config, rows) = (&model.config, LOSS_ROWS);
        let zeros = |width: usize| Tensor::zeros(Dtype::F32, &[rows, width]);
        let teacher_side = match teacher {
            None => None,
            Some(t) => {
                let (c, v) = (t.config().hidden_size, t.config().vocab_size);
                let other = (v != config.vocab_size).then(|| zeros(config.vocab_size)).transpose()?;
                Some(TeacherSide { hidden: zeros(c)?, logits: zeros(v)?, in_students_rows: other })
            }
        };
        Ok(Workspace {
            device: model.device.clone(),
            pool: KvPool::new(&model.device, model.page_shape(), u64::MAX),
            activations: Activations::for_training(model)?,
            scratch: BackwardScratch::new(model)?,
            dhidden: Tensor::zeros(Dtype::F32, &[0, config.hidden_size])?,
            hidden: zeros(config.hidden_size)?,
            dhidden_rows: zeros(config.hidden_size)?,
            logits: zeros(config.vocab_size)?,
            teacher_side,
            said: TopK::default(),
            gradients: None,
            most: (0, 0),
        })
    }

    /// Makes ready for passes that were found to fit.
    pub(super) fn fit(&mut self, model: &Model, fitted: Fitted) -> Result<()> {
        if fitted.afresh {
            self.pool = KvPool::new(&model.device, model.page_shape(), u64::MAX);
            self.activations = Activations::recomputing(model, fitted.recompute)?;
            self.scratch = BackwardScratch::new(model)?;
            self.dhidden = Tensor::zeros(Dtype::F32, &[0, model.config.hidden_size])?;
        }
        if self.activations.recompute != Some(fitted.recompute) {
            self.activations = Activations::recomputing(model, fitted.recompute)?;
        }
        self.most = fitted.most;
        Ok(())
    }

    /// The most tokens of a pass so far, and pages of its timelines.
    pub(super) fn most(&self) -> (usize, usize) {
        self.most
    }

    /// f32 zeros of the form of what is trained: in the memory of the last build's, once its update is gone.
    pub(super) fn zero_gradients(&mut self, student: &Model, trained: &Parameters) -> Result<Parameters> {
        match self.gradients.take().and_then(Arc::into_inner) {
            Some(mut gradients) if gradients.has_form_of(trained) => {
                gradients.tensors_mut().into_iter().for_each(|tensor| tensor.f32_mut().fill(0.0));
                Ok(gradients)
            }
            _ => trained.zeros(&student.config),
        }
    }

    /// Bytes that it has, without scratch of the ops and gradients.
    pub fn taken(&self) -> u64 {
        let side =
            self.teacher_side.iter().flat_map(|s| [Some(&s.hidden), Some(&s.logits), s.in_students_rows.as_ref()]);
        let chunks = [&self.dhidden, &self.hidden, &self.dhidden_rows, &self.logits];
        let chunks = chunks.into_iter().chain(side.flatten()).map(|t| t.taken()).sum::<u64>();
        let pages = (self.pool.pages_existing() * self.pool.shape().bytes()) as u64;
        pages + self.activations.taken() + self.scratch.taken() + chunks
    }

    /// The losses of `n` rows of logits, which become their gradients.
    pub(super) fn divergences(
        &mut self,
        device: &Device,
        teachers: TeachersRows,
        rows: &[RowLoss],
        n: usize,
    ) -> Result<Vec<f32>> {
        let teacher = teachers.of(&self.teacher_side, &self.said);
        ops::divergence_forward_backward(device, &mut self.logits, teacher, rows, n)
    }

    /// The teacher's log-probs of `targets`, from the rows of a chunk that were filled.
    pub(super) fn teacher_logprobs(
        &self,
        device: &Device,
        teachers: TeachersRows,
        targets: &[i32],
        n: usize,
    ) -> Result<Vec<f32>> {
        ops::teacher_logprobs(device, teachers.of(&self.teacher_side, &self.said), targets, n)
    }

    /// What the teacher says of `targets`, from the rows of a chunk that were filled, beside what the student's logits say of them.
    /// Of rows that ask no teacher it may say anything.
    pub(super) fn teacher_facts(
        &self,
        teachers: TeachersRows,
        targets: &[i32],
        student: &[Spread],
        vocabulary: usize,
    ) -> Result<Vec<TeacherFacts>> {
        match teachers.of(&self.teacher_side, &self.said) {
            TeacherRows::None => host::collected(targets.iter().map(|_| TeacherFacts::default())),
            TeacherRows::Logits(logits) => {
                let says = ops::spreads_of(&self.device, logits, targets, targets.len())?;
                let facts = |s: Spread| TeacherFacts { logprob: s.logprob, entropy: Some(s.entropy), mass: None };
                host::collected(says.into_iter().map(facts))
            }
            TeacherRows::TopK(topk) => {
                let facts = |(row, (&logprob, says)): (usize, (&f32, &Spread))| TeacherFacts {
                    logprob,
                    entropy: ops::top_entropy(topk, row, vocabulary),
                    mass: topk.has_ids().then(|| ops::top_mass(&self.logits, topk, row, says)),
                };
                host::collected(topk.targets().iter().zip(student).enumerate().map(facts))
            }
        }
    }

    /// Fills the teacher's rows of a chunk.
    pub(super) fn fill_teacher_rows(
        &mut self,
        (teacher, tail): (Option<&ServedModel>, Tail),
        vocabulary: usize,
        finished: &[&Finished],
        chunk: &[(usize, &TokenLoss)],
    ) -> Result<TeachersRows> {
        let asks = chunk.iter().map(|(_, t)| t).find(|t| t.kind.needs_teacher());
        let Some(asks) = asks else { return Ok(TeachersRows::Nowhere) };
        if let Some(Scores::Said(said)) = &finished[asks.trajectory].scores {
            self.said = TopK::new(said.top_k, tail);
            for (_, t) in chunk {
                match (&finished[t.trajectory].scores, t.kind.needs_teacher()) {
                    (Some(Scores::Said(said)), true) => {
                        let position = position_of(finished, t);
                        let (at, k) = (said.positions.binary_search(&position).map_err(|_| not_scored(t))?, said.top_k);
                        let (ids, logprobs) = (&said.top_ids[at * k..][..k], &said.top_logprobs[at * k..][..k]);
                        self.said.push(ids, logprobs, said.logprobs[at])?;
                    }
                    (_, true) => return Err(not_scored(t)),
                    (_, false) => self.said.push_none()?,
                }
            }
            return Ok(TeachersRows::Said);
        }
        let (Some(side), Some(teacher)) = (&mut self.teacher_side, teacher) else {
            return Err(Error::new(Fault::TeacherFailed, "a divergence is to be trained, but there is no teacher"));
        };
        let width = teacher.config().hidden_size;
        let mut weights = None;
        for (i, (_, t)) in chunk.iter().enumerate().filter(|(_, (_, t))| t.kind.needs_teacher()) {
            let Some(Scores::Hidden { hidden: kept, revision }) = &finished[t.trajectory].scores else {
                return Err(not_scored(t));
            };
            let at = kept.positions.binary_search(&position_of(finished, t)).map_err(|_| not_scored(t))?;
            weights = Some(&revision.weights);
            side.hidden.f32_mut()[i * width..][..width].copy_from_slice(&kept.rows[at * width..][..width]);
        }
        if let Some(weights) = weights {
            let (model, n) = (teacher.model(), chunk.len());
            // The teacher's engine may be another, with rounds of its own.
            let head = || head_forward(model, weights, &mut side.logits, &side.hidden, n);
            self.device.working_on(&model.device, head)?;
            if let Some(other) = &mut side.in_students_rows {
                let (to, from) = (other.extent(1), side.logits.extent(1));
                let rows = other.f32_mut().chunks_exact_mut(to).zip(side.logits.f32().chunks_exact(from));
                for (to, from) in rows.take(chunk.len()) {
                    to[..vocabulary].copy_from_slice(&from[..vocabulary]);
                }
                leave_out(other, vocabulary, chunk.len());
            }
        }
        Ok(TeachersRows::Logits)
    }
}

/// Where a token stands in what the teacher read.
fn position_of(finished: &[&Finished], token: &TokenLoss) -> usize {
    finished[token.trajectory].trajectory.view().position(token.position)
}

fn not_scored(token: &TokenLoss) -> Error {
    Error::new(Fault::TeacherFailed, format!("the teacher has not scored token {} of an episode", token.position))
}
