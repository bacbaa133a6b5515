//! The learner: f32 masters with their moments, and the two halves of an update, build and apply.
//!
//! Building packs whole trajectories into micro-batches, runs the same forward that served them (with
//! activations kept), and turns hidden states into losses a few rows at a time, so that no [T, V] buffer
//! exists. The teacher's side of a row is its hidden state, kept when it scored the turn, or what the host's teacher
//! said of it. Applying is
//! AdamW on the masters; the student's weights are the masters rounded to their stored dtypes. All of that holds for the
//! parameters that are trained: all weights, or an adapter's pairs alone.
//!
//! Student and teacher may differ in rows of padding. Both distributions are then taken over the ids that they share:
//! logits beyond have probability 0 and no gradient, so padding is neither taught nor unlearnt.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::batch::TokenLoss;
use super::config::Config;
use super::packing::{Packing, last_loss};
use super::probe::ProbeRows;
use super::quantities::TokenFacts;
use super::report::{Report, Tally};
use super::trajectory::Trajectory;
use super::update_kl::Sample;
use super::weighing::targets;
use super::workspace::{Finished, Scores, TeachersRows, Workspace, leave_out};
use crate::backend::ops::{self, AdamW, Drawn, Loss, Ratio, RowLoss, Spread};
use crate::backend::{Compute, Device, host};
use crate::error::{Error, Fault, Result};
use crate::model::backward::{Passed, backward_while, head_backward};
use crate::model::forward::{Segment, forward_while, head_forward};
use crate::model::plan::LOSS_ROWS;
use crate::model::{Adapter, KvCache, Model, ModelConfig, Parameters, Weights};
use crate::serve::{Cancel, Revision, ServedModel};
use crate::text::source::Source;

/// Masters and moments, f32, in the form of what is trained.
pub struct Learner {
    pub(super) masters: Parameters,
    pub(super) m: Parameters,
    pub(super) v: Parameters,
    /// Steps applied since the moments were zero, by which their bias is corrected. The run may have more.
    pub(super) steps: u64,
}

impl Learner {
    /// A learner that starts from f32 `masters`: 12 bytes a parameter with them.
    pub fn new(config: &ModelConfig, masters: Parameters) -> Result<Learner> {
        let (m, v) = (masters.zeros(config)?, masters.zeros(config)?);
        Ok(Learner { masters, m, v, steps: 0 })
    }

    /// One AdamW step, the run's of number `step` from 0, with the gradients scaled to the clip; `norm` is their global norm.
    pub fn apply(&mut self, device: &Device, gradients: &Parameters, norm: f64, (config, step): (&Config, u64)) {
        let o = &config.optimizer;
        let lr = o.learning_rate_at(step, config.steps);
        self.steps += 1;
        let clipped = o.grad_clip > 0.0 && norm > o.grad_clip;
        // As torch: the clip coefficient has 1e-6 in its denominator.
        let grad_scale = if clipped { (o.grad_clip / (norm + 1e-6)) as f32 } else { 1.0 };
        let power = |b: f64| 1.0 - (0..self.steps).fold(1.0, |p, _| p * b);
        let (bias_correction1, bias_correction2) = (power(o.beta1), power(o.beta2));
        let (w, m, v) = (self.masters.tensors_mut(), self.m.tensors_mut(), self.v.tensors_mut());
        for (((w, m), v), (_, g)) in w.into_iter().zip(m).zip(v).zip(gradients.tensors()) {
            // Norm weights are not decayed.
            let weight_decay = if g.shape().extents().len() >= 2 { o.weight_decay } else { 0.0 };
            let (beta1, beta2, eps) = (o.beta1, o.beta2, o.eps);
            let step = AdamW { lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale };
            ops::adamw_step(device, w, m, v, g, step);
        }
    }
}

/// Gradients of a batch with the account of how they came about.
pub struct Gradients {
    /// f32, of what is trained. The workspace has their memory again when nobody else holds them.
    pub parameters: Arc<Parameters>,
    /// Their global norm.
    pub norm: f64,
    /// The account.
    pub report: Report,
    /// On what the step that applies them is measured.
    pub(super) sample: Sample,
    /// On what it is looked whether the result is served as it was trained.
    pub(super) probe: ProbeRows,
    /// What a teacher that is a model says of the trained tokens: trajectory, token, log-prob. For the record.
    pub(super) by_model: Vec<ByModel>,
}

/// A trajectory of the batch, a token of it, and the log-prob of that by a teacher that is a model.
pub(super) type ByModel = (usize, usize, f32);

/// What the gradients of a batch are computed from.
pub struct Task<'a> {
    /// The student's model.
    pub student: &'a Model,
    /// The student's weights at `revision`; the base, where an adapter is trained.
    pub weights: &'a Weights,
    /// The adapter at `revision`.
    pub adapter: Option<&'a Adapter>,
    /// Of the form of what is trained.
    pub trained: &'a Parameters,
    /// Their revision; None while they are not published.
    pub revision: Option<u64>,
    /// The same, to be known again.
    pub served: Option<Weak<Revision>>,
    /// The revision that new episodes get, from which staleness is counted.
    pub published: u64,
    /// The teacher, where a loss asks for one.
    pub teacher: Option<&'a ServedModel>,
    /// Ids that student and teacher share.
    pub vocabulary: usize,
    /// The settings.
    pub config: &'a Config,
}

impl Task<'_> {
    /// The gradients of the planned loss over the finished episodes. `progress` is told the tokens done and
    /// in all, and stops the build by returning false.
    pub fn gradients(
        &self,
        workspace: &mut Workspace,
        finished: &[&Finished],
        packing: &Packing,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Gradients> {
        let started = Instant::now();
        let trajectories: Vec<&Trajectory> = finished.iter().map(|f| &f.trajectory).collect();
        let Packing { batch, trained, micro_batches } = packing;
        let mut tally = Tally::new(&trajectories, batch, self.config, self.published);
        let mut gradients = workspace.zero_gradients(self.student, self.trained)?;
        let mut sample = Sample::of(finished, batch, packing.extent(), self.config.update_kl_tokens as usize);
        if let (Some(served), false) = (&self.served, sample.is_empty()) {
            sample = sample.keeping(&self.student.config, served.clone())?;
        }
        let is_by_model = |t: &&TokenLoss| {
            t.kind.needs_teacher() && matches!(finished[t.trajectory].scores, Some(Scores::Hidden { .. }))
        };
        let mut by_model = host::with_room(batch.tokens.iter().filter(is_by_model).count())?;
        let total = batch.n_fed();
        let mut done = 0;
        for (members, n) in micro_batches {
            let mut go_on = || match !cancel.is_set() && progress(done as u64, total as u64) {
                true => Ok(()),
                false => Err(Error::new(Fault::Cancelled, "the update was cancelled")),
            };
            let account = (&mut tally, &mut sample, &mut by_model);
            let members = &trained[members.clone()];
            self.micro_batch(workspace, &mut gradients, finished, members, &batch.tokens, account, &mut go_on)?;
            done += n;
        }
        progress(done as u64, total as u64);
        let squares = gradients.tensors().into_iter().map(|(_, g)| ops::sum_of_squares(&self.student.device, g));
        let squares: f64 = squares.sum::<Result<f64>>()?;
        let norm = squares.sqrt();
        let mut report = tally.report(norm, started.elapsed().as_secs_f64());
        if self.student.compute == Compute::Bf16 {
            report.warn_of_rounding(self.student.config.moe.is_some());
        }
        if !norm.is_finite() || !report.loss.is_finite() {
            let why = format!("the loss is {} and the gradient norm {norm}; the weights are unchanged", report.loss);
            return Err(Error::new(Fault::NotFinite, why));
        }
        let parameters = Arc::new(gradients);
        workspace.gradients = Some(parameters.clone());
        let probe = ProbeRows::of(finished, batch, self.config.probe_rows as usize);
        by_model.sort_unstable_by_key(|&(trajectory, position, _)| (trajectory, position));
        Ok(Gradients { parameters, norm, report, sample, probe, by_model })
    }

    /// Adds the gradients of some whole trajectories, packed side by side. `go_on` is asked before each layer and each chunk
    /// of rows with losses.
    #[allow(clippy::too_many_arguments)] // what is read, what is added to, and who may stop it
    fn micro_batch(
        &self,
        workspace: &mut Workspace,
        gradients: &mut Parameters,
        finished: &[&Finished],
        members: &[usize],
        losses: &[TokenLoss],
        (tally, sample, by_model): (&mut Tally, &mut Sample, &mut Vec<ByModel>),
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (model, device) = (self.student, &self.student.device);
        // A trajectory is fed up to the row that predicts its last trained token.
        let mut ids: Vec<i32> = host::with_room(members.iter().map(|&i| last_loss(losses, i)).sum())?;
        let mut spans: Vec<Range<usize>> = Vec::new();
        for &i in members {
            let n = last_loss(losses, i);
            spans.push(ids.len()..ids.len() + n);
            ids.extend_from_slice(&finished[i].trajectory.ids()[..n]);
        }
        let mut caches: Vec<KvCache> = members.iter().map(|_| KvCache::new(&workspace.pool)).collect();
        let adapter = self.adapter;
        let rows = caches.iter_mut().zip(&spans);
        let mut segments: Vec<Segment> =
            rows.map(|(kv, span)| Segment { ids: &ids[span.clone()], kv, adapter }).collect();
        forward_while(model, self.weights, &mut segments, &mut workspace.activations, go_on)?;
        drop(segments);

        // Every trained token: (row of the batch, its loss).
        let of_members = members.iter().zip(&spans).flat_map(|(&i, span)| {
            let of_member = losses.iter().filter(move |t| t.trajectory == i);
            of_member.map(move |t| (span.start + t.position - 1, t))
        });
        let mut rows: Vec<(usize, &TokenLoss)> = host::with_room(of_members.clone().count())?;
        rows.extend(of_members);
        workspace.dhidden.reserve_rows(ids.len())?;
        ops::fill(device, &mut workspace.dhidden, 0.0, ids.len());
        let turn_log_ratios = self.turn_log_ratios(workspace, finished, &rows, go_on)?;
        // One output projection a chunk: a teacher may have moved on between two episodes.
        let teacher_of = |t: &TokenLoss| finished[t.trajectory].scores.as_ref().map(Scores::weights);
        let runs = rows.chunk_by(|(_, a), (_, b)| teacher_of(a) == teacher_of(b));
        for chunk in runs.flat_map(|run| run.chunks(LOSS_ROWS)) {
            go_on()?;
            let at: Vec<usize> = chunk.iter().map(|(row, _)| *row).collect();
            let n = at.len();
            ops::gather_rows(device, &mut workspace.hidden, &workspace.activations.hidden, &at);
            head_forward(model, self.weights, &mut workspace.logits, &workspace.hidden, n)?;
            leave_out(&mut workspace.logits, self.vocabulary, n);
            sample.keep(chunk.iter().map(|(_, t)| *t), &workspace.logits);
            let targets = targets(finished, chunk);
            let says = ops::spreads_of(device, &workspace.logits, &targets, n)?;
            for ((_, t), &Spread { logprob, .. }) in chunk.iter().zip(&says) {
                let trajectory = &finished[t.trajectory].trajectory;
                let sampled_here = trajectory.sources()[t.position] == Source::Student;
                let is_known = !finished[t.trajectory].is_imported;
                if sampled_here && is_known && Some(trajectory.heading.revision) == self.revision {
                    tally.compare(trajectory.logprobs()[t.position], logprob);
                }
            }
            let teacher = (self.teacher, self.config.tail);
            let teachers = workspace.fill_teacher_rows(teacher, self.vocabulary, finished, chunk)?;
            // Before the logits become gradients.
            let theirs = workspace.teacher_facts(teachers, &targets, &says, self.vocabulary)?;
            let spec = |(i, (_, t)): (usize, &(usize, &TokenLoss))| {
                let mut spec = RowLoss::new(t.kind, t.weight as f32, targets[i]);
                if t.kind.is_sampled() {
                    let turn_log_ratio = turn_log_ratios.get(&(t.trajectory, t.turn)).copied().unwrap_or(0.0);
                    let logprob = finished[t.trajectory].trajectory.logprobs()[t.position];
                    let drawn = Drawn { logprob, turn_log_ratio, teacher: t.teacher, rest: t.rest };
                    spec.worth = ops::worth(t.kind, says[i].logprob, theirs[i].logprob, &drawn).unwrap_or_default();
                }
                spec
            };
            let specs: Vec<RowLoss> = chunk.iter().enumerate().map(spec).collect();
            let values = workspace.divergences(device, teachers, &specs, n)?;
            for (i, ((_, t), value)) in chunk.iter().zip(values).enumerate() {
                let Spread { logprob, entropy, .. } = says[i];
                let facts = TokenFacts { logprob, entropy, teacher: t.kind.needs_teacher().then_some(theirs[i]) };
                tally.add(t, value as f64, t.kind.is_sampled().then_some(&specs[i].worth), &facts);
                if facts.teacher.is_some() && teachers == TeachersRows::Logits {
                    by_model.push((t.trajectory, t.position, theirs[i].logprob));
                }
            }
            ops::fill(device, &mut workspace.dhidden_rows, 0.0, n);
            let operands = (&workspace.logits, &workspace.hidden);
            head_backward(model, self.weights, &mut *gradients, &mut workspace.dhidden_rows, operands, n);
            ops::scatter_add_rows(device, &mut workspace.dhidden, &workspace.dhidden_rows, &at);
        }
        let (activations, caches) = (&mut workspace.activations, caches.as_mut_slice());
        let passed = Passed { activations, caches, ids: &ids, spans: &spans, adapter: self.adapter };
        backward_while(model, self.weights, gradients, passed, &workspace.dhidden, &mut workspace.scratch, go_on)
    }

    /// The mean of ln r over the tokens of each turn whose loss weighs by it, of rows that were just passed. All of a turn
    /// must be known before any of it is differentiated, so its output projection is computed twice.
    fn turn_log_ratios(
        &self,
        workspace: &mut Workspace,
        finished: &[&Finished],
        rows: &[(usize, &TokenLoss)],
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<BTreeMap<(usize, usize), f64>> {
        let asks = |t: &TokenLoss| matches!(t.kind, Loss::PolicyGradient(settings) if settings.ratio == Ratio::Turn);
        let mut rows_of_turns = host::with_room(rows.iter().filter(|(_, t)| asks(t)).count())?;
        rows_of_turns.extend(rows.iter().filter(|(_, t)| asks(t)).copied());
        let device = &self.student.device;
        let mut sums: BTreeMap<(usize, usize), (f64, f64)> = BTreeMap::new();
        for chunk in rows_of_turns.chunks(LOSS_ROWS) {
            go_on()?;
            let at: Vec<usize> = chunk.iter().map(|(row, _)| *row).collect();
            ops::gather_rows(device, &mut workspace.hidden, &workspace.activations.hidden, &at);
            head_forward(self.student, self.weights, &mut workspace.logits, &workspace.hidden, at.len())?;
            leave_out(&mut workspace.logits, self.vocabulary, at.len());
            let logprobs = ops::logprobs_of(device, &workspace.logits, &targets(finished, chunk), at.len())?;
            for ((_, t), now) in chunk.iter().zip(logprobs) {
                let then = finished[t.trajectory].trajectory.logprobs()[t.position];
                let sum = sums.entry((t.trajectory, t.turn)).or_default();
                *sum = (sum.0 + f64::from(now) - f64::from(then), sum.1 + 1.0);
            }
        }
        Ok(sums.into_iter().map(|(turn, (sum, n))| (turn, sum / n)).collect())
    }
}
