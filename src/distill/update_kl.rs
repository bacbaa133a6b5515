//! How far an applied step moves the student: KL(p, q) on tokens that it learnt from, p what the revision says that is
//! served and q what publishing would serve.
//!
//! Each row counts over the whole vocabulary that student and teacher share, so the number is exact where it is taken: the
//! mean in nats over at most `update_kl_tokens` trained tokens, from the batch's first trajectories on as far as their prefixes fit. Its
//! cost is bounded likewise: a forward of at most 512 tokens and of an eighth of the batch, but 128 where that is less; where no
//! trained token lies so near, of the trajectory in which one comes first, with what is trained of the 16 tokens from there. It
//! takes no more rows than the build took at once.
//!
//! What the served revision says stands in the build's own logits. Only where another one is served meanwhile, or the
//! build was of what is not published, is it computed again.
#![forbid(unsafe_code)]

use std::sync::{Arc, Weak};

use super::batch::{BatchPlan, TokenLoss};
use super::room::pages_of;
use super::workspace::{Finished, Workspace, leave_out};
use crate::backend::ops::{self, Loss, RowLoss, TeacherRows};
use crate::backend::{Device, Tensor};
use crate::error::Result;
use crate::model::forward::{Segment, forward, head_forward};
use crate::model::plan::LOSS_ROWS;
use crate::model::{Adapter, KvCache, Model, ModelConfig, Parameters, Weights};
use crate::serve::Revision;
use crate::tensor::Dtype;

/// Tokens that are fed: at most so many, and of a small batch an eighth, or the least of them.
const MAX_FED: usize = 512;
const LEAST_FED: usize = 128;
/// Of the trajectory whose first trained token comes first, where none lies that near: tokens from there.
const NEXT: usize = 16;

/// The tokens of a batch on which an update is measured; kept with it, since its episodes are spent.
#[derive(Default)]
pub struct Sample {
    /// prefixes of trajectories
    sequences: Vec<Vec<i32>>,
    /// the rows that predict the tokens, of all sequences side by side
    rows: Vec<usize>,
    /// the trajectory and position of each token
    tokens: Vec<(usize, usize)>,
    /// what the build computed of these rows, if with a revision that is served
    kept: Option<Kept>,
}

/// Logits [rows, V] by a revision.
struct Kept {
    by: Weak<Revision>,
    logits: Tensor,
}

impl Sample {
    /// At most `wanted` trained tokens of the batch in its order, as far as their prefixes fit, thinned out evenly. `extent`:
    /// the most rows that the build takes at once, and pages of their timelines.
    pub(super) fn of(finished: &[&Finished], batch: &BatchPlan, extent: (usize, usize), wanted: usize) -> Sample {
        if wanted == 0 {
            return Sample::default();
        }
        let max_fed = (batch.n_fed() / 8).clamp(LEAST_FED, MAX_FED).min(extent.0);
        // What fits of each trajectory.
        let (mut fed, mut pages, mut near): (usize, usize, Vec<&[TokenLoss]>) = (0, 0, Vec::new());
        let trajectories = || batch.tokens.chunk_by(|a, b| a.trajectory == b.trajectory);
        for tokens in trajectories() {
            let fits =
                tokens.iter().take_while(|t| fed + t.position <= max_fed && pages + pages_of(t.position) <= extent.1);
            let fits = fits.count();
            near.push(&tokens[..fits]);
            let last = tokens[..fits].last().map_or(0, |t| t.position);
            fed += last;
            pages += pages_of(last);
        }
        if fed == 0 {
            let first = |tokens: &&[TokenLoss]| tokens.first().map_or(usize::MAX, |t| t.position);
            let earliest = trajectories().min_by_key(first).unwrap_or_default();
            let end = first(&earliest).saturating_add(NEXT);
            near.push(&earliest[..earliest.partition_point(|t| t.position < end)]);
        }
        let n: usize = near.iter().map(|tokens| tokens.len()).sum();
        let thinned = n.div_ceil(wanted.min(LOSS_ROWS)).max(1);
        let chosen: Vec<&TokenLoss> = near.into_iter().flatten().step_by(thinned).collect();
        let (mut sample, mut start) = (Sample::default(), 0);
        for tokens in chosen.chunk_by(|a, b| a.trajectory == b.trajectory) {
            let Some(last) = tokens.last() else { continue };
            sample.sequences.push(finished[last.trajectory].trajectory.ids()[..last.position].to_vec());
            sample.rows.extend(tokens.iter().map(|t| start + t.position - 1));
            sample.tokens.extend(tokens.iter().map(|t| (t.trajectory, t.position)));
            start += last.position;
        }
        sample
    }

    /// The tokens at some positions of one sequence.
    pub(super) fn of_sequence(ids: &[i32], positions: &[usize]) -> Sample {
        let last = positions.last().copied().unwrap_or(0);
        let rows = positions.iter().map(|at| at - 1).collect();
        Sample { sequences: vec![ids[..last].to_vec()], rows, ..Sample::default() }
    }

    /// Whether nothing is measured.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Keeps what a build with a served revision computes of the sample's rows.
    pub(super) fn keeping(mut self, config: &ModelConfig, by: Weak<Revision>) -> Result<Sample> {
        let logits = self.room(config)?;
        self.kept = Some(Kept { by, logits });
        Ok(self)
    }

    /// Keeps the logits [n, V] of the rows that predict these tokens, so far as they are of the sample.
    pub(super) fn keep<'a>(&mut self, tokens: impl Iterator<Item = &'a TokenLoss>, logits: &Tensor) {
        let (Some(kept), v) = (&mut self.kept, logits.extent(1)) else { return };
        for (row, token) in tokens.enumerate() {
            // Tokens of a plan stand in this order, and so those of the sample do.
            if let Ok(at) = self.tokens.binary_search(&(token.trajectory, token.position)) {
                kept.logits.f32_mut()[at * v..][..v].copy_from_slice(&logits.f32()[row * v..][..v]);
            }
        }
    }

    /// Room for logits [rows, V].
    pub(super) fn room(&self, config: &ModelConfig) -> Result<Tensor> {
        Tensor::zeros(Dtype::F32, &[self.rows.len(), config.vocab_size])
    }

    /// The logits [rows, V] under the served revision, once: what was kept of them is given away.
    pub(super) fn served_logits(
        &mut self,
        model: &Model,
        served: &Arc<Revision>,
        vocabulary: usize,
        workspace: &mut Workspace,
    ) -> Result<Tensor> {
        if let Some(kept) = self.kept.take_if(|kept| kept.by.as_ptr() == Arc::as_ptr(served)) {
            return Ok(kept.logits);
        }
        let mut logits = self.room(&model.config)?;
        self.logits(model, (&served.weights, served.adapter()), vocabulary, workspace, &mut logits)?;
        Ok(logits)
    }

    /// The logits [rows, V] under some weights and an adapter, if any.
    pub(super) fn logits(
        &self,
        model: &Model,
        student: (&Weights, Option<&Adapter>),
        vocabulary: usize,
        workspace: &mut Workspace,
        logits: &mut Tensor,
    ) -> Result<()> {
        self.pass(model, student, workspace)?;
        head_forward(model, student.0, logits, &workspace.hidden, self.rows.len())?;
        leave_out(logits, vocabulary, self.rows.len());
        Ok(())
    }

    /// The log-probs of `targets`, one a row, over the whole vocabulary: what serving says of them.
    pub(super) fn logprobs(
        &self,
        model: &Model,
        student: (&Weights, Option<&Adapter>),
        targets: &[i32],
        workspace: &mut Workspace,
    ) -> Result<Vec<f32>> {
        self.pass(model, student, workspace)?;
        head_forward(model, student.0, &mut workspace.logits, &workspace.hidden, self.rows.len())?;
        ops::logprobs_of(&model.device, &workspace.logits, targets, self.rows.len())
    }

    /// Leaves the hidden states of the rows in the workspace.
    fn pass(
        &self,
        model: &Model,
        (weights, adapter): (&Weights, Option<&Adapter>),
        workspace: &mut Workspace,
    ) -> Result<()> {
        let mut caches: Vec<KvCache> = self.sequences.iter().map(|_| KvCache::new(&workspace.pool)).collect();
        let mut segments: Vec<Segment> =
            self.sequences.iter().zip(&mut caches).map(|(ids, kv)| Segment { ids, kv, adapter }).collect();
        forward(model, weights, &mut segments, &mut workspace.activations)?;
        ops::gather_rows(&model.device, &mut workspace.hidden, &workspace.activations.hidden, &self.rows);
        Ok(())
    }
}

/// What rows of logits [rows, V] over `vocabulary` ids know: their mean KL to an even guess, in nats.
pub(super) fn mean_known(device: &Device, rows: &Tensor, vocabulary: usize) -> Result<f64> {
    let n = rows.extent(0);
    let says = ops::spreads_of(device, rows, &vec![0; n], n)?;
    let entropy = says.iter().map(|row| f64::from(row.entropy)).sum::<f64>() / n.max(1) as f64;
    Ok((vocabulary as f64).ln() - entropy)
}

/// The mean KL(before, after) of rows of logits [rows, V], in nats. `after` is spent.
pub(super) fn mean_kl(device: &Device, before: &Tensor, mut after: Tensor) -> Result<f64> {
    let n = after.extent(0);
    let rows = vec![RowLoss::new(Loss::ForwardKl, 0.0, 0); n];
    let values = ops::divergence_forward_backward(device, &mut after, TeacherRows::Logits(before), &rows, n)?;
    Ok(values.iter().map(|&kl| f64::from(kl)).sum::<f64>() / n.max(1) as f64)
}

/// Whether every element of every tensor is a finite number.
pub(super) fn are_finite(parameters: &Parameters) -> bool {
    parameters.tensors().iter().all(|(_, tensor)| tensor.is_finite())
}

#[cfg(test)]
mod tests {
    use super::super::trajectory::{Heading, Trajectory};
    use super::*;
    use crate::text::source::Source;

    fn token(trajectory: usize, position: usize) -> TokenLoss {
        let kind = Loss::ReverseKl;
        TokenLoss { trajectory, turn: 0, position, kind, weight: 1.0, teacher: 1.0, rest: 0.0 }
    }

    fn of_length(n: usize) -> Finished {
        let heading = Heading {
            episode: 0,
            step: 0,
            task: String::new(),
            group: String::new(),
            seed: 0,
            revision: 1,
            evaluation: false,
            ..Heading::default()
        };
        let mut trajectory = Trajectory::new(heading);
        trajectory.add_context(&vec![0; n], Source::Host).unwrap();
        Finished { trajectory, scores: None, is_noted: false, is_imported: false }
    }

    /// The sample of trajectories whose trained tokens stand at these positions.
    fn sample(trained: &[Vec<usize>]) -> Sample {
        let tokens = trained.iter().enumerate().flat_map(|(i, list)| list.iter().map(move |&p| token(i, p))).collect();
        let finished: Vec<Finished> = trained.iter().map(|list| of_length(list.last().unwrap() + 1)).collect();
        let batch = BatchPlan { tokens, ..Default::default() };
        Sample::of(&finished.iter().collect::<Vec<_>>(), &batch, (100_000, 100_000), 64)
    }

    fn lengths(sample: &Sample) -> Vec<usize> {
        sample.sequences.iter().map(Vec::len).collect()
    }

    #[test]
    fn an_update_is_measured_on_rows_that_predict_trained_tokens() {
        let s = sample(&[vec![3, 4, 9], vec![2]]);
        assert_eq!((lengths(&s), s.rows), (vec![9, 2], vec![2, 3, 8, 10]));
    }

    #[test]
    fn what_is_fed_and_counted_is_bounded() {
        // Forty trajectories of 100 trained tokens: five are an eighth of them; too many rows.
        let s = sample(&vec![(1..=100).collect(); 40]);
        assert!(s.rows.len() <= LOSS_ROWS && s.rows.len() > LOSS_ROWS / 2);
        assert!(s.sequences.len() == 5 && lengths(&s).iter().all(|&n| n > 90));
        assert!(s.tokens.is_sorted() && s.tokens.len() == s.rows.len());
        // More than 512 tokens, however large the batch. Prefixes that fit no longer, and one behind them that does.
        let many = vec![4000, 4001];
        let s = sample(&[vec![300, 301], vec![200, 250], vec![300], vec![10], many]);
        assert_eq!(lengths(&s), [301, 200, 10]);
        // An eighth of a small batch, and 128 of one that is smaller.
        let mut eight = vec![vec![200]; 8];
        (eight[0], eight[1]) = (vec![150, 160, 200], vec![100, 200]);
        assert_eq!(lengths(&sample(&eight)), [200]);
        assert_eq!(lengths(&sample(&[(1..=100).collect(), (1..=100).collect()])).iter().sum::<usize>(), 99 + 27);
        // None fits: what comes first all the same, and what comes soon after it.
        assert_eq!(lengths(&sample(&[vec![6000], vec![5000, 5003, 5015, 5016], vec![5001]])), [5015]);
        // Asked for few, or none.
        let finished: Vec<Finished> = (0..20).map(|_| of_length(101)).collect();
        let finished: Vec<&Finished> = finished.iter().collect();
        let tokens = (0..20).map(|trajectory| token(trajectory, 10)).collect();
        let batch = BatchPlan { tokens, ..Default::default() };
        assert_eq!(lengths(&Sample::of(&finished, &batch, (1000, 100), 6)).len(), 6);
        assert!(Sample::of(&finished, &batch, (1000, 100), 0).is_empty());
    }

    #[test]
    fn no_more_is_fed_than_the_build_takes_at_once() {
        let tokens = |trajectory| token(trajectory, 60);
        let finished: Vec<Finished> = (0..40).map(|_| of_length(61)).collect();
        let finished: Vec<&Finished> = finished.iter().collect();
        let batch = BatchPlan { tokens: (0..40).map(tokens).collect(), ..Default::default() };
        assert_eq!(lengths(&Sample::of(&finished, &batch, (100, 100), 64)), [60]);
        assert_eq!(lengths(&Sample::of(&finished, &batch, (1000, 100), 64)), [60; 5]);
        // A timeline takes whole pages.
        assert_eq!(lengths(&Sample::of(&finished, &batch, (1000, 3 * pages_of(60)), 64)), [60; 3]);
    }
}
